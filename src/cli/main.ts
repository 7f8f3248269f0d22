/**
 * The command line: one program with a command for each step.
 *
 * @example
 * ```sh
 * deno run -A jsr:@mix-of-show/mix-of-show/cli --help
 * ```
 *
 * @module
 */
import { type Command, runCommand, runProgram } from "./command.ts";
import { VERSION } from "./version.ts";

/** A command that is loaded when it is asked for. */
interface Entry {
  readonly summary: string;
  readonly load: () => Promise<(args: readonly string[]) => Promise<number>>;
}

/** Makes what runs a command. */
function of<T>(
  command: Command<T>,
): (args: readonly string[]) => Promise<number> {
  return (args) => runCommand(command, args);
}

const COMMANDS: Readonly<Record<string, Entry>> = {
  train: {
    summary: "train a concept from pictures",
    load: async () => of((await import("./train.ts")).trainCommand),
  },
  fuse: {
    summary: "fuse concepts into one model",
    load: async () => of((await import("./fuse.ts")).fuseCommand),
  },
  sample: {
    summary: "draw pictures from a prompt or a layout",
    load: async () => of((await import("./sample.ts")).sampleCommand),
  },
  evaluate: {
    summary: "score pictures against prompts and references",
    load: async () => of((await import("./evaluate.ts")).evaluateCommand),
  },
  convert: {
    summary: "rewrite a LoRA or a model in another format",
    load: async () => of((await import("./convert.ts")).convertCommand),
  },
  memory: {
    summary: "count the memory that a run will need",
    load: async () => of((await import("./memory.ts")).memoryCommand),
  },
  ablation: {
    summary: "the paper's Table 2: fusions and adapters compared",
    load: async () => {
      const { main } = await import("./experiment.ts");
      return (args) => main(["ablation", ...args]);
    },
  },
  experiment: {
    summary: "another table or figure of the paper",
    load: async () => (await import("./experiment.ts")).main,
  },
  worker: {
    summary: "run jobs from a queue",
    load: async () => of((await import("./worker.ts")).workerCommand),
  },
  inspect: {
    summary: "say what is in a file or folder",
    load: async () => of((await import("./inspect.ts")).inspectCommand),
  },
};

/**
 * Runs a command.
 *
 * @param args Arguments: the command's name, then its options.
 * @returns The exit code: 0, 1 if something failed, 2 for bad arguments.
 */
export async function main(args: readonly string[]): Promise<number> {
  if (args[0] === "--version") {
    console.log(`Mix-of-Show ${VERSION}`);
    return 0;
  }
  return await runProgram({
    title: "Mix-of-Show: train concepts, fuse them, draw with them.",
    notes:
      "COMMAND --help lists the options of a command, --version says which this is.",
    task: "start",
    commands: Object.entries(COMMANDS).map(([name, one]) => ({ name, ...one })),
    run: async ({ load }, rest) => await (await load())(rest),
  }, args);
}

if (import.meta.main) Deno.exit(await main(Deno.args));
