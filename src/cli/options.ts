/**
 * One typed table for each command: an option is written down once, and help,
 * parsing, validation, the request's type and shell completion come from it.
 *
 * ```ts
 * const OPTIONS = optionTable({
 *   images: { type: folder, needed: true, help: "pictures of the concept" },
 *   lrUnet: { type: number({ least: 0 }), default: 1e-4, help: "its rate" },
 *   prompt: { type: text, many: true, help: "what to draw" },
 *   flips: { type: flag, help: "also every picture mirrored" },
 *   size: { type: whole({ least: 1 }), otherwise: "the model's", help: "side" },
 *   ...BACKEND_OPTION,
 * });
 * type Request = Values<typeof OPTIONS>;
 * // { images: string; lrUnet: number; prompt: readonly string[];
 * //   flips: boolean; size: number | undefined; backend: BackendChoice }
 * ```
 *
 * A key is the field of the request; the option is the same in kebab-case:
 * `lrUnet` is `--lr-unet`. `command()` in command.ts makes a command of a table.
 *
 * @module
 */
import { BACKEND_CHOICES } from "../core/backend.ts";
import { cannot, listed } from "../core/errors.ts";
import { parseColour } from "../io/resize.ts";

/** What a value may be: how it is read, and what a shell offers for it. */
export interface OptionType<T> {
  /** What the value is called in help, such as `FOLDER`; none of a flag. */
  readonly hint?: string;
  /**
   * Reads a value.
   *
   * @throws If the text is no such value; `name` is the option as it is written.
   */
  readonly read: (what: string, name: string, text: string) => T;
  /** Whether `""` is a value. */
  readonly empty?: boolean;
  /** Words, files or folders that a shell completes to. */
  readonly complete?: readonly string[] | "file" | "folder";
}

/** The type of an option without a value. */
export interface FlagType extends OptionType<boolean> {
  /** There is none. */
  readonly hint?: undefined;
  /** Tells it from the others. */
  readonly flag: true;
}

/** One option of a command. */
export interface Option<T = unknown> {
  /** What its value may be. */
  readonly type: OptionType<T>;
  /** Its name without `--`, if not the field's. */
  readonly name?: string;
  /** What it does; the subject first, no full stop. */
  readonly help: string;
  /** What the value is called in help, if not as the type has it. */
  readonly hint?: string;
  /** The value where the option is absent; shown in help. */
  readonly default?: T;
  /** What happens where the option is absent, in words, shown as a default. */
  readonly otherwise?: string;
  /** Whether it must be there. */
  readonly needed?: boolean;
  /** Whether it may be given again; its values are a list. */
  readonly many?: boolean;
  /** Whether it is an argument without a name, in the table's order. */
  readonly argument?: boolean;
  /** Starts a paragraph of help, under this line unless it is empty. */
  readonly section?: string;
}

/** Options by the request's fields. */
// deno-lint-ignore no-explicit-any
export type OptionTable = Readonly<Record<string, Option<any>>>;

/** The value of an option, as a request holds it. */
export type ValueOf<O> = O extends { readonly type: OptionType<infer T> }
  ? O extends { readonly many: true } ? readonly T[]
  : O extends { readonly type: FlagType } ? boolean
  : O extends { readonly needed: true } ? T
  : O extends { readonly default: unknown } ? T
  : T | undefined
  : never;

/** What a table's command line asks for. */
export type Values<T> = { readonly [K in keyof T]: ValueOf<T[K]> };

/**
 * Keeps the exact types of a table.
 *
 * @param table The options.
 *
 * @example
 * ```ts ignore
 * const OPTIONS = optionTable({ out: { type: file, needed: true, help: "…" } });
 * ```
 */
export function optionTable<const T extends OptionTable>(table: T): T {
  return table;
}

/** Any text but none. */
export const text: OptionType<string> = {
  hint: "TEXT",
  read: (_what, _name, found) => found,
};

/** Any text, `""` too. */
export const anyText: OptionType<string> = { ...text, empty: true };

/** Path of a file. */
export const file: OptionType<string> = {
  hint: "FILE",
  read: (_what, _name, found) => found,
  complete: "file",
};

/** Path of a folder. */
export const folder: OptionType<string> = {
  hint: "FOLDER",
  read: (_what, _name, found) => found,
  complete: "folder",
};

/** An option without a value. */
export const flag: FlagType = {
  flag: true,
  read(what, name, found) {
    if (found === "true") return true;
    if (found === "false") return false;
    throw cannot(what, `${name} without a value`, found);
  },
};

/** Bounds of a number. */
export interface Bounds {
  /** The smallest that is valid. */
  readonly least?: number;
  /** The largest that is valid. */
  readonly most?: number;
}

/**
 * Any number within bounds.
 *
 * @param bounds Inclusive.
 */
export function number(bounds: Bounds = {}): OptionType<number> {
  return bounded("X", "a number", bounds, () => true);
}

/**
 * A whole number within bounds.
 *
 * @param bounds Inclusive.
 */
export function whole(bounds: Bounds = {}): OptionType<number> {
  return bounded("N", "a whole number", bounds, Number.isSafeInteger);
}

function bounded(
  hint: string,
  kind: string,
  { least = -Infinity, most = Infinity }: Bounds,
  fits: (value: number) => boolean,
): OptionType<number> {
  const range = (least > -Infinity ? ` from ${least}` : "") +
    (most < Infinity ? ` to ${most}` : "");
  return {
    hint,
    read(what, name, found) {
      const value = found.trim() === "" ? NaN : Number(found);
      if (
        Number.isFinite(value) && value >= least && value <= most && fits(value)
      ) return value;
      throw cannot(what, `${name} ${kind}${range}`, found || "nothing");
    },
  };
}

/**
 * One of several words.
 *
 * @param words The words.
 */
export function oneOf<const W extends string>(
  words: readonly W[],
): OptionType<W> {
  return {
    hint: "NAME",
    complete: words,
    read(what, name, found) {
      const known = words.find((word) => word === found);
      if (known !== undefined) return known;
      throw cannot(what, `${name} ${words.join(", ")}`, found || "nothing");
    },
  };
}

/**
 * Values between commas.
 *
 * @param type What each of them is.
 */
export function listOf<T>(type: OptionType<T>): OptionType<readonly T[]> {
  return {
    hint: "LIST",
    complete: type.complete,
    read: (what, name, found) =>
      found.split(",").map((part) => {
        try {
          return type.read(what, name, part.trim());
        } catch (error) {
          if (!(error instanceof Error)) throw error;
          throw new Error(`${error.message} (values separated by commas)`);
        }
      }),
  };
}

/**
 * A value that a function reads.
 *
 * @param hint What it is called in help, such as `WxH`.
 * @param read Reads it; throws if the text is none.
 * @param complete What a shell offers.
 */
export function parsed<T>(
  hint: string,
  read: OptionType<T>["read"],
  complete?: OptionType<T>["complete"],
): OptionType<T> {
  return { hint, read, complete };
}

/** The option `--backend`. */
export const BACKEND_OPTION = optionTable({
  backend: {
    type: oneOf(BACKEND_CHOICES),
    default: "auto",
    help: "auto, webgpu, wasm or cpu",
  },
});

/** The option `--background`, of pictures that are read. */
export const BACKGROUND_OPTION = optionTable({
  background: {
    type: parsed("COLOUR", (_, name, found) => {
      try {
        return parseColour(found);
      } catch {
        throw cannot(`read ${name}`, "white, black, grey or #rrggbb", found);
      }
    }),
    otherwise: "white",
    help: "what shows through transparent pictures: white, black, grey or " +
      "#rrggbb",
  },
});

/**
 * Refuses a background that nothing shows.
 *
 * @param background Of `--background`.
 * @param pictures What it would be seen through.
 * @throws If it is given and no picture is transparent.
 */
export function checkBackground(
  background: unknown,
  pictures: readonly { readonly transparent?: boolean }[],
): void {
  if (background === undefined) return;
  if (pictures.some(({ transparent }) => transparent)) return;
  throw cannot("use --background", "a transparent picture", "none");
}

/**
 * Names what lies in a folder of pictures and is not read.
 *
 * @param folder The folder.
 * @param names Files and folders.
 */
export function unreadFiles(folder: string, names: readonly string[]): string {
  return `not read in ${folder}: ${listed(names)}`;
}

/**
 * Names the animations among pictures: of each only the first frame counts.
 *
 * @param pictures Names, and whether they are animations.
 */
export function firstFrames(
  pictures: Iterable<{ readonly name?: string; readonly moving?: boolean }>,
): string[] {
  const moving = [...pictures].filter(({ moving }) => moving)
    .map(({ name }) => name ?? "a picture");
  return moving.length === 0
    ? []
    : [`of an animation only the first frame is used: ${listed(moving)}`];
}

const dtypes = oneOf(["F32", "F16", "BF16"]);

/** What PyTorch and kohya call them. */
const DTYPE_NAMES: Readonly<Record<string, string>> = {
  ...{ float: "F32", float32: "F32", fp32: "F32" },
  ...{ half: "F16", float16: "F16", fp16: "F16" },
  ...{ bfloat16: "BF16", bf16: "BF16" },
};

/** The option `--dtype`, of files that are written; `fp16` is `F16`, too. */
export const DTYPE_OPTION = optionTable({
  dtype: {
    type: {
      ...dtypes,
      read: (what: string, name: string, found: string) =>
        dtypes.read(what, name, DTYPE_NAMES[found.toLowerCase()] ?? found),
    },
    hint: "TYPE",
    help: "type of numbers in the file: F32, F16 or BF16",
  },
});

/**
 * An option as it is written: `lrUnet` is `--lr-unet`.
 *
 * @param field The request's field.
 * @param option The option, which may have a name of its own.
 */
export function optionName(field: string, option?: Option): string {
  const name = option?.name ??
    field.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
  return `--${name}`;
}

function isFlag(type: OptionType<unknown>): type is FlagType {
  return (type as Partial<FlagType>).flag === true;
}

/**
 * Whether an option takes a value behind it.
 *
 * @param option The option.
 */
export function takesValue({ type }: Option): boolean {
  return !isFlag(type);
}

/** The texts of a command line, by field. */
interface Split {
  readonly help: boolean;
  readonly given: ReadonlyMap<string, readonly string[]>;
  readonly free: readonly string[];
}

/** Sorts arguments by option; says nothing of values yet. */
function split(
  what: string,
  args: readonly string[],
  table: OptionTable,
): Split {
  const byName = new Map(
    Object.entries(table).filter(([, option]) => !option.argument)
      .map(([field, option]) => [
        optionName(field, option),
        { field, option },
      ]),
  );
  const given = new Map<string, string[]>();
  const free: string[] = [];
  let help = false;
  for (let i = 0; i < args.length; i++) {
    const arg = args[i];
    if (arg === "--") {
      free.push(...args.slice(i + 1));
      break;
    }
    // "-" is a file's name to many tools, "-1" a number.
    if (!/^--?[A-Za-z]/.test(arg)) {
      free.push(arg);
      continue;
    }
    if (arg === "--help" || arg === "-h") {
      help = true;
      continue;
    }
    const at = arg.indexOf("=");
    const name = at < 0 ? arg : arg.slice(0, at);
    const known = byName.get(name);
    if (!known) {
      const near = similar(name, [...byName.keys()]);
      const hint = near.length > 0 ? `, perhaps ${near.join(", ")}` : "";
      throw cannot(what, `a known option (--help)${hint}`, name);
    }
    const { field, option } = known;
    let value = at < 0 ? undefined : arg.slice(at + 1);
    if (value === undefined) {
      if (isFlag(option.type)) value = "true";
      else {
        const next: string | undefined = args[i + 1];
        // A value after a space is a value, "-1" too; an option is none.
        if (next !== undefined && !/^--[A-Za-z]/.test(next)) {
          value = next;
          i++;
        } else if (next !== undefined && !byName.has(next.split("=")[0])) {
          throw cannot(
            what,
            `a value for ${name} (${name}=${next} if that is it)`,
            next,
          );
        } else value = "";
      }
    }
    const empty = value === "" && (args[i] === name || !option.type.empty);
    given.set(field, [...given.get(field) ?? [], empty ? MISSING : value]);
  }
  return { help, given, free };
}

/** What kohya, diffusers and A1111 call options that have another name here. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  "cfg-scale": "guidance",
  "ckpt": "model",
  "class-data-dir": "prior",
  "height": "size",
  "instance-data-dir": "images",
  "learning-rate": "lr-unet",
  "lora-rank": "rank",
  "max-train-steps": "steps",
  "network-alpha": "alpha",
  "network-dim": "rank",
  "num-images-per-prompt": "count",
  "num-inference-steps": "steps",
  "num-train-epochs": "steps",
  "output-dir": "out",
  "pretrained-model-name-or-path": "model",
  "resolution": "size",
  "sampler-name": "sampler",
  "save-precision": "dtype",
  "text-encoder-lr": "lr-text",
  "train-batch-size": "batch",
  "train-data-dir": "images",
  "unet-lr": "lr-unet",
  "width": "size",
};

/** Options that an unknown one may mean: `--lr_unet`, `--lr`, `--cfg-scale`. */
function similar(name: string, names: readonly string[]): string[] {
  const plain = name.replace(/^-+/, "").replaceAll("_", "-").toLowerCase();
  const exact = `--${ELSEWHERE[plain] ?? plain}`;
  if (names.includes(exact)) return [exact];
  return names.filter((known) =>
    known.startsWith(`--${plain}-`) || `--${plain}`.startsWith(`${known}-`)
  ).slice(0, 3);
}

/** Stands for a value that is not there; no argument can hold a NUL. */
const MISSING = "\0";

/**
 * Reads a command line by its table: every option must be known, none may be
 * given twice unless it says so. A value may be negative: `--guidance -1`.
 *
 * @param what The command, for messages.
 * @param args Arguments after the command's name.
 * @param table The options there are; `--help` is always one.
 * @returns What is asked for; nothing if it is help.
 * @throws If an option is unknown, needed and absent, given twice, or its value
 * does not fit; or there are too few or too many arguments.
 *
 * @example
 * ```ts ignore
 * const { steps } = readTable("train", ["--steps", "20"], OPTIONS)!;
 * ```
 */
export function readTable<const T extends OptionTable>(
  what: string,
  args: readonly string[],
  table: T,
): Values<T> | undefined {
  const { help, given, free } = split(what, args, table);
  if (help) return undefined;
  const places = Object.entries(table).filter(([, { argument }]) => argument);
  checkFree(what, free, places.map(([, option]) => option));
  const values: Record<string, unknown> = {};
  for (const [field, option] of Object.entries(table)) {
    const place = places.findIndex(([name]) => name === field);
    const texts = place >= 0
      ? free.slice(place, place + 1)
      : given.get(field) ?? [];
    const name = place >= 0 ? option.hint ?? field : optionName(field, option);
    if (texts.includes(MISSING)) {
      throw cannot(what, `a value for ${name}`, "none");
    }
    if (!option.many && texts.length > 1) {
      throw cannot(what, `one ${name}`, texts.join(" and "));
    }
    if (option.needed && texts.length === 0) {
      throw cannot(what, expectation(name, option), "none");
    }
    const read = texts.map((found) => option.type.read(what, name, found));
    values[field] = option.many
      ? read
      : read[0] ?? option.default ?? (isFlag(option.type) ? false : undefined);
  }
  return values as Values<T>;
}

function expectation(name: string, { type, hint }: Option): string {
  if (Array.isArray(type.complete)) {
    return `${name} ${type.complete.join(", ")}`;
  }
  const shown = hint ?? type.hint;
  return shown ? `${name} ${shown}` : name;
}

function checkFree(
  what: string,
  free: readonly string[],
  places: readonly Option[],
): void {
  if (places.length === 0 && free.length > 0) {
    throw cannot(what, "options only (--help)", free[0]);
  }
  const least = places.filter(({ needed }) => needed).length;
  if (free.length >= least && free.length <= places.length) return;
  throw cannot(
    what,
    places.map(({ hint, type }) => hint ?? type.hint).join(" and "),
    free.join(" ") || "nothing",
  );
}

const WIDTH = 80;
const INDENT = 23;

/** Breaks a text into lines no longer than so many characters. */
function wrapped(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const paragraph of text.split("\n")) {
    let line = "";
    // Leading blanks of a paragraph stay: a list inside a help text.
    const start = /^ */.exec(paragraph)![0];
    for (const word of paragraph.trim().split(/ +/)) {
      if (line !== "" && `${line} ${word}`.length > width) {
        lines.push(line);
        line = start + word;
      } else line = line === "" ? start + word : `${line} ${word}`;
    }
    lines.push(line);
  }
  return lines;
}

/**
 * A table of names and what they are, 80 characters wide.
 *
 * @param rows Names and texts.
 * @param indent Where the texts begin.
 */
export function columns(
  rows: readonly (readonly [string, string])[],
  indent = INDENT,
): string {
  return rows.flatMap(([name, text]) =>
    wrapped(text, WIDTH - indent).map((line, i) =>
      (i === 0 ? `  ${name}` : "").padEnd(indent) + line
    )
  ).join("\n");
}

function shownDefault({ default: value, otherwise, type }: Option): string {
  if (otherwise !== undefined) return ` (default: ${otherwise})`;
  if (value === undefined || isFlag(type)) return "";
  return ` (default ${Array.isArray(value) ? value.join(",") : value})`;
}

/**
 * The options' part of `--help`: two columns, 80 characters.
 *
 * @param table The options.
 */
export function tableHelp(table: OptionTable): string {
  const lines: string[] = [];
  for (const [field, option] of Object.entries(table)) {
    if (option.section !== undefined) {
      lines.push("", ...(option.section ? wrapped(option.section, WIDTH) : []));
    }
    const hint = option.hint ?? option.type.hint;
    const name = option.argument ? hint! : optionName(field, option);
    const left = "  " + (option.argument || !hint ? name : `${name} ${hint}`);
    const again = option.many ? "; may be given again" : "";
    const [first, ...more] = wrapped(
      `${option.help.split("\n")[0]}${again}${shownDefault(option)}` +
        option.help.split("\n").slice(1).map((line) => `\n${line}`).join(""),
      WIDTH - INDENT,
    );
    if (left.length < INDENT - 1) lines.push(left.padEnd(INDENT) + first);
    else lines.push(left, " ".repeat(INDENT) + first);
    lines.push(...more.map((line) => " ".repeat(INDENT) + line));
  }
  lines.push("  --help".padEnd(INDENT) + "this text");
  return lines.join("\n").replace(/^\n/, "");
}
