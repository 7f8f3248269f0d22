/**
 * `deno task experiment`: the paper's other experiments.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { type Command, EXIT_CODES, runCommand } from "./command.ts";
import { domain } from "./domain.ts";
import { evaluators } from "./evaluators.ts";
import { overfit } from "./overfit.ts";
import { frames } from "./frames.ts";
import { regions } from "./regions.ts";
import { sweeps } from "./sweeps.ts";

/** An experiment, whatever it asks for. */
interface Entry {
  readonly name: string;
  readonly summary: string;
  readonly run: (args: readonly string[]) => Promise<number>;
}

function of<T>(command: Command<T>): Entry {
  const { name, summary } = command;
  return { name, summary, run: (args) => runCommand(command, args) };
}

const EXPERIMENTS: readonly Entry[] = [
  ...sweeps.map((one) => of(one)),
  of(overfit),
  of(frames),
  of(evaluators),
  of(domain),
  of(regions),
];

const HELP = `deno task experiment NAME [options]

${
  EXPERIMENTS.map(({ name, summary }) => `  ${name.padEnd(12)}${summary}`)
    .join("\n")
}

NAME --help lists the options of an experiment.

${EXIT_CODES}
`;

/**
 * Runs an experiment.
 *
 * @param args Arguments: its name, then its options.
 * @returns The exit code: 0, 1 if it failed, 2 for bad arguments.
 */
export async function main(args: readonly string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "help") {
    console.log(HELP);
    return name === undefined ? 2 : 0;
  }
  const found = EXPERIMENTS.find((one) => one.name === name);
  if (!found) {
    const names = EXPERIMENTS.map((one) => one.name).join(", ");
    console.error(
      cannot("run an experiment", `${names} or --help`, name).message,
    );
    return 2;
  }
  return await found.run(rest);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
