/**
 * `deno task test:node`: builds the package, installs nothing else, and tests it
 * with Node's own test runner; the last line counts.
 *
 * @module
 */
import { build } from "../tools/build.ts";
import { helped, onlyKnown } from "../tools/help.ts";
import { root } from "../tools/repository.ts";
import { behavioursModule, denoOutcomes } from "./run.ts";
import { served } from "./served.ts";

const HELP = `
deno task test:node [--no-build]

Builds dist/ and tests the package in Node 22 or later: the behaviours of
tests/platform/behaviours.ts, compared with Deno's, workers, and files. Where
\`node\` is older, npx fetches Node 22.

  --no-build   dist/ is there
  --help       this text
`;

/** How to call a Node that is new enough. */
async function nodeCommand(): Promise<string[]> {
  const found = await new Deno.Command("node", {
    args: ["-p", "process.versions.node"],
  }).output().catch(() => undefined);
  const version = new TextDecoder().decode(found?.stdout ?? new Uint8Array());
  return parseInt(version) >= 22 ? ["node"] : ["npx", "-y", "node@22"];
}

/** The sum that Node's runner prints. */
export function countTap(output: string): { passed: number; failed: number } {
  const count = (name: string) =>
    Number(new RegExp(`^# ${name} (\\d+)$`, "m").exec(output)?.[1] ?? 0);
  return { passed: count("pass"), failed: count("fail") + count("cancelled") };
}

if (import.meta.main && !helped(HELP)) {
  onlyKnown("test", "--no-build");
  if (!Deno.args.includes("--no-build")) await build();
  const work = `${root}/dist/test`;
  await Deno.mkdir(work, { recursive: true });
  await Deno.writeTextFile(`${work}/behaviours.js`, await behavioursModule());
  await Deno.writeTextFile(
    `${work}/expected.json`,
    JSON.stringify(await denoOutcomes()),
  );
  for (const name of ["node_suite.js", "worker.js"]) {
    await Deno.copyFile(`${root}/tests/platform/${name}`, `${work}/${name}`);
  }
  await using server = served(root);
  const [command, ...args] = await nodeCommand();
  const { code, stdout } = await new Deno.Command(command, {
    args: [...args, "--test", "--test-reporter=tap", "node_suite.js"],
    cwd: work,
    env: { MIX_OF_SHOW_SERVER: server.url },
    stdout: "piped",
    stderr: "inherit",
  }).output();
  const output = new TextDecoder().decode(stdout);
  console.log(output);
  const { passed, failed } = countTap(output);
  const wrong = failed === 0 && (code !== 0 || passed === 0) ? 1 : failed;
  console.log(`${passed} passed, ${wrong} failed`);
  Deno.exitCode = wrong > 0 ? 1 : 0;
}
