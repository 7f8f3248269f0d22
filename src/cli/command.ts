/**
 * What the commands share: options read strictly, one way to fail.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { BACKEND_CHOICES, type BackendChoice } from "../core/backend.ts";
import { cannot, KEYS_VARIABLE, KeysError } from "../core/errors.ts";
import {
  type OptionTable,
  readTable,
  tableHelp,
  type Values,
} from "./options.ts";

/** Which options a command knows. */
export interface OptionNames {
  /** Options with a value. */
  readonly text: readonly string[];
  /** Options with a value that may be given again. */
  readonly many?: readonly string[];
  /** Options without a value. */
  readonly flags?: readonly string[];
  /** How many arguments without a name there may be, and what they are. */
  readonly rest?: {
    readonly least: number;
    readonly most: number;
    readonly what: string;
  };
}

/** Bounds of a number. */
export interface NumberBounds {
  /** Only integers. */
  readonly whole?: boolean;
  /** The smallest that is valid. */
  readonly least?: number;
  /** The largest that is valid. */
  readonly most?: number;
}

/** The options of a command line. */
export interface Options {
  /** Whether help is asked for. */
  readonly help: boolean;
  /** Arguments without a name. */
  readonly rest: readonly string[];
  /** The value of an option, if it is there. */
  text(name: string): string | undefined;
  /**
   * The value of an option that must be there.
   *
   * @throws If it is not.
   */
  needed(name: string): string;
  /** All values of an option. */
  many(name: string): readonly string[];
  /** Whether a flag is there. */
  flag(name: string): boolean;
  /**
   * The value of an option as a number.
   *
   * @throws If it is none, or out of bounds.
   */
  number(name: string, bounds?: NumberBounds): number | undefined;
  /** The value of an option as words between commas. */
  list(name: string): string[] | undefined;
  /**
   * The value of an option as some of several words, between commas.
   *
   * @throws If one is another.
   */
  someOf<T extends string>(
    name: string,
    words: readonly T[],
  ): T[] | undefined;
  /**
   * The value of an option as numbers between commas.
   *
   * @throws If one of them is none, or out of bounds.
   */
  numbers(name: string, bounds?: NumberBounds): number[] | undefined;
  /**
   * The value of an option as one of several words.
   *
   * @throws If it is another one.
   */
  oneOf<T extends string>(name: string, words: readonly T[]): T | undefined;
}

/** The option `--backend`. */
export function backendOf(options: Options): BackendChoice {
  return options.oneOf("backend", BACKEND_CHOICES) ?? "auto";
}

/** Types of numbers in files. */
const DTYPES = ["F32", "F16", "BF16"] as const;

/** The option `--dtype`. */
export function dtypeOf(options: Options): typeof DTYPES[number] | undefined {
  return options.oneOf("dtype", DTYPES);
}

/**
 * Reads a command line: every option must be known, none may be given twice.
 *
 * @param what The command, for messages.
 * @param args Arguments after the command's name.
 * @param names The options there are; `--help` is always one.
 * @throws If an option is unknown, has no value or one too many, or there are
 * too few or too many arguments without a name (unless help is asked for).
 */
export function readOptions(
  what: string,
  args: readonly string[],
  names: OptionNames,
): Options {
  const { text, many = [], flags = [], rest } = names;
  const parsed = parseArgs([...args], {
    string: [...text, ...many, "_"],
    boolean: [...flags, "help"],
    // Gathered even where one is allowed, to notice a second one.
    collect: [...text, ...many],
    unknown: (name: string, key?: string) => {
      if (key === undefined && rest) return true;
      throw cannot(
        what,
        key === undefined ? "options only (--help)" : "a known option (--help)",
        name,
      );
    },
  }) as unknown as Record<string, unknown> & { _: (string | number)[] };
  const help = parsed.help === true;
  // An option that the command does not know has no value.
  const values = (name: string) => (parsed[name] ?? []) as readonly string[];
  for (const name of [...text, ...many]) {
    if (!help && values(name).some((value) => value === "")) {
      throw cannot(what, `a value for --${name}`, "none");
    }
    if (!many.includes(name) && values(name).length > 1) {
      throw cannot(what, `one --${name}`, values(name).join(" and "));
    }
  }
  const free = parsed._.map(String);
  if (
    rest && !help && (free.length < rest.least || free.length > rest.most)
  ) {
    throw cannot(what, rest.what, free.join(" ") || "nothing");
  }
  const value = (name: string): string | undefined => values(name)[0];
  const list = (name: string) => value(name)?.split(",");
  const wordOf = <T extends string>(
    name: string,
    words: readonly T[],
    found: string,
  ): T => {
    const known = words.find((word) => word === found);
    if (known !== undefined) return known;
    throw cannot(what, `--${name} ${words.join(", ")}`, found || "nothing");
  };
  const numberOf = (
    name: string,
    found: string,
    { whole = false, least = -Infinity, most = Infinity }: NumberBounds = {},
    kind = whole ? "a whole number" : "a number",
  ): number => {
    const number = found.trim() === "" ? NaN : Number(found);
    if (
      Number.isFinite(number) && number >= least && number <= most &&
      (!whole || Number.isInteger(number))
    ) return number;
    const bounds = [
      Number.isFinite(least) ? ` from ${least}` : "",
      Number.isFinite(most) ? ` to ${most}` : "",
    ].join("");
    throw cannot(what, `--${name} ${kind}${bounds}`, found || "nothing");
  };
  return {
    help,
    rest: free,
    text: value,
    needed(name) {
      const found = value(name);
      if (found === undefined) throw cannot(what, `--${name}`, "none");
      return found;
    },
    many: values,
    flag: (name) => parsed[name] === true,
    number(name, bounds) {
      const found = value(name);
      return found === undefined ? undefined : numberOf(name, found, bounds);
    },
    list,
    someOf: (name, words) =>
      list(name)?.map((found) => wordOf(name, words, found)),
    numbers: (name, bounds) =>
      list(name)?.map((part) =>
        numberOf(
          name,
          part,
          bounds,
          `${bounds?.whole ? "whole numbers" : "numbers"} separated by commas`,
        )
      ),
    oneOf(name, words) {
      const found = value(name);
      return found === undefined ? undefined : wordOf(name, words, found);
    },
  };
}

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
  return {
    name,
    summary,
    options,
    help: [
      usage,
      about,
      tableHelp(options),
      notes,
      EXIT_CODES,
      examples && `Examples:\n${examples.map((e) => `  ${e}`).join("\n")}`,
    ].filter((part) => part).join("\n\n") + "\n",
    parse(args) {
      const values = readTable(name, args, options);
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

/**
 * Runs a program of its own: an error is a line, and exit code 1.
 *
 * @param main The program.
 */
export async function runScript(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    complain(error);
    Deno.exit(1);
  }
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
    request = command.parse(args);
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
