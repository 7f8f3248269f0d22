/**
 * `deno task test`: runs `deno test` with the arguments given and ends with
 * one line that counts, `N passed, N failed` (and `, N skipped` if any were).
 * Three files run at the same time; `DENO_JOBS` in the environment says otherwise.
 *
 * @module
 */
import { helped } from "./help.ts";
import { denoInTerminal } from "./repository.ts";

/** How many tests ended how; the steps of a test are not counted. */
export interface Counts {
  /** Ran and held. */
  passed: number;
  /** Ran and did not hold, or could not run. */
  failed: number;
  /** Were ignored. */
  skipped: number;
}

/** Counts the tests of a JUnit report as `deno test` writes it. */
export function countJunit(xml: string): Counts {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  // Names are escaped, so ">" closes a tag; " &gt; " parts a step from its
  // test, whose own result already covers it.
  const cases = xml.matchAll(
    /<testcase name="([^"]*)"[^>]*?(?:\/>|>([\s\S]*?)<\/testcase>)/g,
  );
  const names = new Set<string>();
  for (const [tag, name, body = ""] of cases) {
    const file = tag.match(/ classname="([^"]*)"/)?.[1];
    const parents = name.split(" &gt; ").slice(0, -1);
    const isStep = parents.some((_, i) =>
      names.has(`${file} ${parents.slice(0, i + 1).join(" &gt; ")}`)
    );
    names.add(`${file} ${name}`);
    if (isStep) continue;
    if (/<(failure|error)\b/.test(body)) counts.failed++;
    else if (/<skipped\b/.test(body)) counts.skipped++;
    else counts.passed++;
  }
  return counts;
}

/** The line that the run ends with. */
export function countLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed` +
    (skipped > 0 ? `, ${skipped} skipped` : "");
}

/**
 * Files at once. Most of them keep one core busy, see one_processor.ts; some wait
 * for a queue or for what they started. With three, two cores are never idle.
 */
const JOBS = "3";

const HELP = `
deno task test [files] [options of deno test]

Runs the tests and ends with a line that counts them: N passed, N failed.

  --filter NAME        only tests whose name has NAME in it
  --fail-fast          stop at the first failure
  --help               this text; npx deno test --help has all other options

DENO_JOBS=1 in the environment runs one file at a time instead of three.
MIX_OF_SHOW_REQUIRE_WEBGPU=1 fails the WebGPU tests where there is no adapter.
`;

if (import.meta.main && !helped(HELP)) {
  const report = await Deno.makeTempFile({ suffix: ".xml" });
  try {
    const code = await denoInTerminal([
      "test",
      "-q",
      "-P",
      "--parallel",
      "--preload=tests/tools/one_processor.ts",
      `--junit-path=${report}`,
      ...Deno.args,
    ], { DENO_JOBS: Deno.env.get("DENO_JOBS") ?? JOBS });
    const counts = countJunit(await Deno.readTextFile(report));
    // Code that does not compile or load fails without any test's name.
    if (code !== 0 && counts.failed === 0) counts.failed = 1;
    const nothing = counts.passed + counts.failed === 0;
    if (nothing) console.error("no test ran");
    console.log(countLine(counts));
    Deno.exitCode = code !== 0 || counts.failed > 0 || nothing ? 1 : 0;
  } finally {
    await Deno.remove(report);
  }
}
