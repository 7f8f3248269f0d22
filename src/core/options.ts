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
 * });
 * type Request = Values<typeof OPTIONS>;
 * // { images: string; lrUnet: number; prompt: readonly string[];
 * //   flips: boolean; size: number | undefined }
 * ```
 *
 * A key is the field of the request; the option is the same in kebab-case:
 * `lrUnet` is `--lr-unet`. cli/options.ts reads command lines by such a table,
 * and cli/command.ts makes a command of it.
 *
 * @module
 */
import { cannot } from "./errors.ts";

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

/**
 * Path of a file that is written, with the ending of what is in it: other
 * programs tell a file by its ending.
 *
 * @param ending With its dot.
 */
export function outputFile(ending: string): OptionType<string> {
  return {
    ...file,
    read(what, name, found) {
      if (found.endsWith(ending)) return found;
      throw cannot(what, `${name} with the ending ${ending}`, found);
    },
  };
}

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

/** A seed. */
export const seedNumber: OptionType<number> = whole({ least: 0 });

/** Sampling steps: no more than a diffusion has. */
export const samplingSteps: OptionType<number> = whole({
  least: 1,
  most: 1000,
});

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
 * @param empty Whether there may be none, written `""`.
 * @default empty false
 */
export function listOf<T>(
  type: OptionType<T>,
  empty = false,
): OptionType<readonly T[]> {
  return {
    hint: "LIST",
    complete: type.complete,
    empty,
    read: (what, name, found) =>
      empty && found === "" ? [] : found.split(",").map((part) => {
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

/** Whether an option has no value. */
export function isFlag(type: OptionType<unknown>): type is FlagType {
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

/**
 * Checks values that come from a program instead of a command line: each must
 * be one that its option accepts, and no list may hold a value twice.
 *
 * @param what What is done, for messages.
 * @param table The options.
 * @param values Values by the options' fields; those that are absent pass.
 * @throws If a value does not fit.
 */
export function checkValues(
  what: string,
  table: OptionTable,
  values: Readonly<Record<string, unknown>>,
): void {
  for (const [field, option] of Object.entries(table)) {
    const value = values[field];
    if (value === undefined) continue;
    const name = optionName(field, option);
    if (Array.isArray(value)) {
      if (value.length === 0 && !option.type.empty) {
        throw cannot(what, `at least one value for ${name}`, "none");
      }
      if (new Set(value).size !== value.length) {
        throw cannot(what, `different values for ${name}`, value.join(", "));
      }
    }
    option.type.read(
      what,
      name,
      Array.isArray(value) ? value.join(",") : String(value),
    );
  }
}
