/**
 * What the commands share: options read strictly, one way to fail.
 *
 * @module
 */
import * as z from "zod";
import { cannot, KEYS_VARIABLE, KeysError } from "../core/errors.ts";
import { readJson } from "../io/files.ts";
import {
  columns,
  filled,
  type OptionTable,
  readTable,
  tableHelp,
  type Values,
  withFile,
} from "./options.ts";

/** A command: what it says about itself, how it is read and run. */
export interface Command<T> {
  /** Its name. */
  readonly name: string;
  /** What it does, in a line. */
  readonly summary: string;
  /** What `--help` prints. */
  readonly help: string;
  /** Its options; shell completion reads them. */
  readonly options?: OptionTable;
  /**
   * Reads the command line.
   *
   * @param args Arguments after the command's name.
   * @returns What is asked for; nothing if it is help.
   * @throws If an option is unknown or a value does not fit.
   */
  parse(args: readonly string[]): T | undefined;
  /**
   * Checks what the command line alone does not tell, such as files, before work.
   *
   * @param request What is asked for.
   * @throws If it cannot be done.
   */
  check?(request: T): void | Promise<void>;
  /**
   * Does it.
   *
   * @param request What is asked for.
   * @throws If something fails.
   */
  run(request: T): Promise<void>;
}

/** How {@linkcode command} is told what a command is. */
export interface CommandParts<T extends OptionTable, R> {
  /** Its name. */
  readonly name: string;
  /** What it does, as errors say it: a verb first. @default its name */
  readonly what?: string;
  /** What it does, in a line. */
  readonly summary: string;
  /** The first line of help, such as `deno task fuse --concept FILE [options]`. */
  readonly usage: string;
  /** What it does, in a paragraph. */
  readonly about: string;
  /** What stands behind the options in help. */
  readonly notes?: string;
  /** Command lines. */
  readonly examples?: readonly string[];
  /** The options. */
  readonly options: T;
  /**
   * Checks options against each other and makes the request.
   *
   * @throws If they do not go together.
   */
  readonly request: (values: Values<T>) => R;
  /** Does it. */
  readonly run: (request: R) => Promise<void>;
}

/**
 * Makes a command of its option table: `--help`, parsing and completion.
 *
 * @param parts What the command is; see options.ts for tables.
 *
 * @example
 * ```ts ignore
 * export const hello = command({
 *   name: "hello",
 *   summary: "greet",
 *   usage: "deno task hello --name TEXT",
 *   about: "Greets somebody.",
 *   options: optionTable({ name: { type: text, needed: true, help: "whom" } }),
 *   request: (values) => values,
 *   run: async ({ name }) => console.log(`Hello ${name}`),
 * });
 * ```
 */
export function command<const T extends OptionTable, R>(
  parts: CommandParts<T, R>,
): Command<R> {
  const { name, summary, usage, about, notes, examples, options, run } = parts;
  const { what = name } = parts;
  return {
    name,
    summary,
    options,
    help: [
      usage,
      filled(about),
      tableHelp(options),
      notes && filled(notes),
      EXIT_CODES,
      examples && `Examples:\n${examples.map((e) => `  ${e}`).join("\n")}`,
    ].filter((part) => part).join("\n\n") + "\n",
    parse(args) {
      const values = readTable(what, args, options);
      return values && parts.request(values);
    },
    run,
  };
}

/** What `--help` says about exit codes. */
export const EXIT_CODES =
  "Exit code: 0 if all went well, 1 if something failed, 2 for bad arguments.";

/**
 * The message of an error; all of it where the environment has DEBUG. All keys
 * that it is about go to the file that {@linkcode KEYS_VARIABLE} names.
 */
function complain(error: unknown): void {
  console.error(error instanceof Error ? error.message : error);
  const list = Deno.env.get(KEYS_VARIABLE);
  if (list && error instanceof KeysError) {
    try {
      Deno.writeTextFileSync(list, error.keys.join("\n") + "\n");
      console.error(`${list}: all ${error.keys.length} keys`);
    } catch (problem) {
      console.error(`Cannot write ${list}: ${(problem as Error).message}`);
    }
  }
  if (Deno.env.get("DEBUG")) console.error(error);
}

/** Whether an argument asks for help. */
function isHelp(arg: string): boolean {
  return arg === "--help" || arg === "-h";
}

/** A command line with what the file of `--config` says. */
async function withConfig<T>(
  { name, options }: Command<T>,
  args: readonly string[],
): Promise<readonly string[]> {
  const at = args.findIndex((arg) => /^--config(=|$)/.test(arg));
  if (at < 0 || !options?.config || args.some(isHelp)) return args;
  const [, path = args[at + 1]] = args[at].split(/=(.*)/s);
  if (!path) return args;
  const fields = await readJson(path, z.record(z.string(), z.unknown()));
  return withFile(name, args, options, fields);
}

/**
 * Runs a command.
 *
 * @param command The command.
 * @param args Arguments after its name.
 * @returns The exit code: 0, 1 if it failed, 2 for bad arguments.
 */
export async function runCommand<T>(
  command: Command<T>,
  args: readonly string[],
): Promise<number> {
  let request: T | undefined;
  try {
    request = command.parse(await withConfig(command, args));
    if (request !== undefined) await command.check?.(request);
  } catch (error) {
    complain(error);
    return 2;
  }
  if (request === undefined) {
    console.log(command.help);
    return 0;
  }
  try {
    await command.run(request);
    return 0;
  } catch (error) {
    complain(error);
    return 1;
  }
}

/** A program with several commands. */
export interface Program<C> {
  /** The first line of help. */
  readonly title: string;
  /** What help says below the commands. */
  readonly notes: string;
  /** What it cannot do with an unknown command. */
  readonly task: string;
  /** The commands. */
  readonly commands: readonly C[];
  /** Runs a command; gives the exit code. */
  readonly run: (command: C, args: readonly string[]) => Promise<number>;
}

/**
 * Runs the command that the first argument names, or prints help.
 *
 * @param program The program.
 * @param args Arguments: the command's name, then its options.
 * @returns The exit code: 0, 1 if it failed, 2 for bad arguments.
 */
export async function runProgram<
  C extends Pick<Command<unknown>, "name" | "summary">,
>(
  { title, notes, task, commands, run }: Program<C>,
  [name, ...rest]: readonly string[],
): Promise<number> {
  const names = commands.map((one) => one.name);
  if (name === undefined || isHelp(name) || name === "help") {
    const width = Math.max(...names.map(({ length }) => length)) + 4;
    const list = columns(commands.map((c) => [c.name, c.summary]), width);
    const parts = [title, list, filled(notes), EXIT_CODES];
    console.log(parts.join("\n\n") + "\n");
    return name === undefined ? 2 : 0;
  }
  const found = commands.find((one) => one.name === name);
  if (found) return await run(found, rest);
  console.error(cannot(task, `${names.join(", ")} or --help`, name).message);
  return 2;
}
