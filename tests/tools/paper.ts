/**
 * `deno task paper`: runs the experiments whose stored numbers the notebooks show,
 * puts numbers and pictures into `results/quick`, and executes all notebooks. One
 * command for a new base model; a run that is stopped continues.
 *
 * @module
 */
import { joinPath } from "../../src/io/files.ts";
import { helped } from "./help.ts";
import { root } from "./repository.ts";

/** Experiments that notebooks read from `results/quick`. */
const SHOWN = [
  "merge",
  "fig4",
  "federated",
  "cost",
  "table1",
  "rank",
  "domain",
];

const HELP = `
deno task paper [options of deno task experiment all]

Runs ${SHOWN.join(", ")}
with their quick plans, stores numbers and pictures in results/quick, and
executes the notebooks with --write. Options go to deno task experiment all,
such as --workers 1 or --train-steps 100.

  --help    this text
`;

/** Runs a command of this repository; what it says is shown. It ends with it. */
async function command(...args: string[]): Promise<void> {
  const child = new Deno.Command(Deno.execPath(), { args, cwd: root }).spawn();
  const { success, code } = await child.status;
  if (!success) Deno.exit(code);
}

if (import.meta.main && !helped(HELP)) {
  const out = joinPath(root, "out", "paper");
  const stored = joinPath(root, "results", "quick");
  await command(
    ...["run", "-q", "-P=local", "src/cli/experiment.ts", "all", "--quick"],
    ...["--only", SHOWN.join(","), "--out", out, ...Deno.args],
  );
  await Deno.mkdir(stored, { recursive: true });
  for (const name of SHOWN) {
    for await (const { name: file } of Deno.readDir(joinPath(out, name))) {
      if (!/\.(json|png)$/.test(file) || file === "runs.json") continue;
      await Deno.copyFile(joinPath(out, name, file), joinPath(stored, file));
    }
  }
  await command(
    ...["run", "-q", "-P=develop", "tests/tools/notebook_run.ts", "--write"],
  );
}
