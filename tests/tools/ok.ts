/**
 * `deno task ok`: everything that must hold before a commit. `--static` leaves
 * the tests out. Every step runs, whatever the ones before came to; the last
 * line counts them.
 *
 * @module
 */
import { helped, onlyKnown } from "./help.ts";
import { floors } from "./layers.ts";
import {
  denoInTerminal,
  exists,
  listFiles,
  readmeBlocks,
  root,
  runDeno,
} from "./repository.ts";

if (
  helped(`
deno task ok [--static]

Everything that must hold before a commit: format, lint, types, documentation,
the import rule, the package's file list, and the tests.

  --static   all but the tests
  --help     this text
`)
) Deno.exit(0);
onlyKnown("check", "--static");

const tools = "tests/tools";

/** What only src/cli may do: print. */
async function quietRooms(): Promise<string[]> {
  const rooms = floors.flat().filter((room) => room !== "cli");
  const paths = rooms.map((room) => `src/${room}`);
  const present = await Promise.all(paths.map(exists));
  return paths.filter((_, i) => present[i]);
}

/** The modules that deno.json exports, which users import. */
async function exported(): Promise<string[]> {
  const { exports } = JSON.parse(
    await Deno.readTextFile(`${root}/deno.json`),
  ) as { exports: Record<string, string> };
  return Object.values(exports).map((path) => path.replace("./", ""));
}

const notebooks = await listFiles("notebooks", ".ipynb");

/**
 * The art tool's packages are big and nobody else's: they have a lock file of
 * their own, because `deno task` fetches all that stands in the common one.
 */
const art = "tests/tools/art";
/** So are those of what builds the package and tests it. */
const packaging = [
  ...["build", "studio"].map((name) => `tests/tools/${name}.ts`),
  ...["run", "node", "browser", "studio"].map((name) =>
    `tests/platform/${name}.ts`
  ),
];
const modules = (await listFiles(".", ".ts")).filter((file) =>
  file !== `${art}.ts` && !packaging.includes(file) && !file.startsWith("dist/")
);

/** README's example: its types are checked with those of the rest. */
const example = await Deno.makeTempFile({ suffix: ".ts" });
await Deno.writeTextFile(example, (await readmeBlocks("ts")).join("\n"));

// --ignore replaces deno.json's list, so it is repeated; notebooks have a step
// of their own.
const unformatted: string[] =
  JSON.parse(await Deno.readTextFile(`${root}/deno.json`)).fmt.exclude;

/** What is looked at, and deno's arguments that look. */
const steps: [name: string, args: string[]][] = [
  ["formatted", [
    "fmt",
    "--check",
    `--ignore=${[...unformatted, "**/*.ipynb"]}`,
  ]],
  ["lint", ["lint"]],
  ["src prints only in cli", [
    "lint",
    "--rules-tags=",
    "--rules-include=no-console",
    ...await quietRooms(),
  ]],
  ["types, lock file up to date", [
    "check",
    "--frozen",
    "--config=deno.json",
    ...modules,
    example,
  ]],
  ["types of the art tool", [
    "check",
    "--frozen",
    `--lock=${art}.lock`,
    `${art}.ts`,
  ]],
  ["types of the package's tools", [
    "check",
    "--frozen",
    "--lock=tests/tools/build.lock",
    ...packaging,
  ]],
  ["notebooks: format, lint, types", [
    "run",
    "-q",
    "-P=develop",
    `${tools}/notebook_check.ts`,
    ...notebooks,
  ]],
  ["documented", [
    "run",
    "-q",
    "-P=develop",
    `${tools}/doc_lint.ts`,
    ...await exported(),
  ]],
  ["imports go down", ["run", "-q", "-P=develop", `${tools}/layers.ts`]],
  ["can be published", ["publish", "--dry-run", "--allow-dirty"]],
];

let failed = 0;
for (const [name, args] of steps) {
  const start = performance.now();
  const { code, stdout, stderr } = await runDeno(args);
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`${code === 0 ? "ok    " : "FAILED"} ${name} (${seconds} s)`);
  if (code === 0) continue;
  failed++;
  console.error(`deno ${args.join(" ")}\n${stdout}${stderr}`);
}
await Deno.remove(example);
let passed = steps.length - failed;
if (!Deno.args.includes("--static")) {
  const code = await denoInTerminal([
    "run",
    "-q",
    "-P=develop",
    `${tools}/test_count.ts`,
  ]);
  if (code === 0) passed++;
  else failed++;
}
console.log(`${passed} passed, ${failed} failed`);
Deno.exitCode = failed > 0 ? 1 : 0;
