/**
 * Reads command lines by a table of options, and writes `--help` of it. The
 * tables themselves are in core/options.ts, where experiments have theirs, too.
 *
 * @module
 */
import { BACKEND_CHOICES } from "../core/backend.ts";
import { cannot, listed } from "../core/errors.ts";
import {
  isFlag,
  oneOf,
  type Option,
  optionName,
  type OptionTable,
  optionTable,
  type OptionType,
  parsed,
  type Values,
} from "../core/options.ts";
import { parseColour } from "../io/resize.ts";

export * from "../core/options.ts";

/** The option `--backend`. */
export const BACKEND_OPTION = optionTable({
  backend: {
    type: oneOf(BACKEND_CHOICES),
    default: "auto",
    help: "auto, webgpu, wasm or cpu",
  },
});

/** A size in pixels: `512`, or width and height `512x768`. */
export const pixels: OptionType<{ width: number; height: number }> = parsed(
  "N or WxH",
  (what, name, found) => {
    const [width, height = width, ...more] = found.split("x").map((side) =>
      /^\d+$/.test(side) ? Number(side) : 0
    );
    const count = width * height;
    if (count > 0 && Number.isSafeInteger(count) && more.length === 0) {
      return { width, height };
    }
    throw cannot(what, `${name} such as 512 or 512x768`, found);
  },
);

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

/** Whether an option was given: a value, a flag, an entry of a list. */
export function isGiven(value: unknown): boolean {
  return value !== undefined && value !== false &&
    !(Array.isArray(value) && value.length === 0);
}

/**
 * Those of some options that were given, as they are written.
 *
 * @param table The options of a command.
 * @param values What the command was given.
 * @param fields Which options.
 */
export function givenOptions<T extends OptionTable>(
  table: T,
  values: Values<T>,
  fields: readonly (keyof T & string)[],
): string[] {
  return fields.filter((field) => isGiven(values[field]))
    .map((field) => optionName(field, table[field]));
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

/**
 * What kohya, diffusers, PEFT and A1111 call options that have another name
 * here; of several the first that the command has.
 */
const ELSEWHERE: Readonly<Record<string, string | readonly string[]>> = {
  "adam-weight-decay": "weight-decay",
  "batch-size": "batch",
  "caption-dropout-rate": "caption-dropout",
  "cfg-scale": "guidance",
  "ckpt": "model",
  "class-data-dir": "prior",
  "class-prompt": "class",
  "enable-bucket": "buckets",
  "flip-aug": "flips",
  "gradient-accumulation-steps": "accumulate",
  "guidance-scale": "guidance",
  "height": "size",
  "image": ["init", "images"],
  "init-image": "init",
  "instance-data-dir": "images",
  "instance-prompt": "caption",
  "learning-rate": "lr-unet",
  "logging-dir": "log",
  "lora-alpha": "alpha",
  "lora-dropout": "dropout",
  "lora-rank": "rank",
  "lr-num-cycles": "cycles",
  "lr-scheduler": "scheduler",
  "lr-scheduler-num-cycles": "cycles",
  "lr-warmup-steps": "warmup",
  "mask-image": "mask",
  "max-train-epochs": ["train-steps", "steps"],
  "max-train-steps": ["train-steps", "steps"],
  "min-snr-gamma": "snr-gamma",
  "mixed-precision": "half",
  "negative-prompt": "negative",
  "network-alpha": "alpha",
  "network-dim": "rank",
  "network-dropout": "dropout",
  "network-weights": "concept",
  "num-images-per-prompt": "count",
  "num-inference-steps": "steps",
  "num-train-epochs": ["train-steps", "steps"],
  "output-dir": "out",
  "output-name": "name",
  "pretrained-model-name-or-path": "model",
  "prior-loss-weight": "prior-weight",
  "random-flip": "flips",
  "reg-data-dir": "prior",
  "resolution": "size",
  "sampler-name": "sampler",
  "save-precision": "dtype",
  "scheduler": "sampler",
  "shuffle-caption": "shuffle-captions",
  "target-modules": ["targets", "layers"],
  "text-encoder-lr": "lr-text",
  "train-batch-size": "batch",
  "train-data-dir": "images",
  "unet-lr": "lr-unet",
  "use-dora": "dora",
  "use-rslora": "rslora",
  "v-parameterization": "prediction",
  "validation-epochs": "validation-every",
  "validation-steps": "validation-every",
  "width": "size",
};

/** Options that an unknown one may mean: `--lr_unet`, `--lr`, `--cfg-scale`. */
function similar(name: string, names: readonly string[]): string[] {
  const plain = name.replace(/^-+/, "").replaceAll("_", "-").toLowerCase();
  const exact = [plain, ELSEWHERE[plain] ?? []].flat().map((one) => `--${one}`)
    .find((one) => names.includes(one));
  if (exact !== undefined) return [exact];
  return names.filter((known) =>
    known.startsWith(`--${plain}-`) || `--${plain}`.startsWith(`${known}-`)
  ).slice(0, 3);
}

/**
 * A file of options as arguments; what a command line has itself counts more.
 *
 * @param what The command, for messages.
 * @param args The command line.
 * @param table The options there are.
 * @param fields The file: values by field (`lrUnet`) or option (`lr-unet`);
 * `true` for a flag, a list where an option may be given again.
 * @returns The command line with the file's options.
 * @throws If the file has what is no option, or no value of one.
 *
 * @example
 * ```ts ignore
 * withFile("train", ["--steps", "5"], OPTIONS, { steps: 9, flips: true });
 * // ["--steps", "5", "--flips"]
 * ```
 */
export function withFile(
  what: string,
  args: readonly string[],
  table: OptionTable,
  fields: Readonly<Record<string, unknown>>,
): string[] {
  const given = new Set(args.map((arg) => arg.split("=")[0]));
  const more = Object.entries(fields).flatMap(([key, value]) => {
    const plain = key.replaceAll("_", "-");
    const found = Object.entries(table).find(([field, option]) =>
      key === field || `--${plain}` === optionName(field, option)
    );
    if (!found || found[1].argument) {
      const near = similar(
        `--${plain}`,
        Object.keys(table).map((f) => optionName(f, table[f])),
      );
      const hint = near.length > 0 ? `, perhaps ${near.join(", ")}` : "";
      throw cannot(what, `options in the file (--help)${hint}`, key);
    }
    const name = optionName(...found);
    if (given.has(name) || value === false || value === null) return [];
    if (value === true) return [name];
    return (Array.isArray(value) ? value : [value]).map((one) => {
      if (typeof one === "string" || typeof one === "number") {
        return `${name}=${one}`;
      }
      throw cannot(what, `text or a number for ${key}`, one);
    });
  });
  return [...args, ...more];
}

/** Stands for a value that is not there; no argument can hold a NUL. */
const MISSING = "\0";

/**
 * A word as its option has it: diffusers' `cosine_with_restarts` is
 * `cosine-with-restarts`, `EDLoRA` is `ed-lora`.
 */
function spelled(found: string, { type: { complete } }: Option): string {
  if (!Array.isArray(complete)) return found;
  const plain = (word: string) => word.toLowerCase().replace(/[-_]/g, "");
  return found.split(",").map((part) =>
    complete.includes(part)
      ? part
      : complete.find((word) => plain(word) === plain(part)) ?? part
  ).join(",");
}

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
    const read = texts.map((found) =>
      option.type.read(what, name, spelled(found, option))
    );
    values[field] = option.many
      ? read
      : read[0] ?? option.default ?? (isFlag(option.type) ? false : undefined);
  }
  return values as Values<T>;
}

/**
 * The options that have to be given, as a usage line has them: `--name NAME `.
 *
 * @param table The options.
 */
export function neededOptions(table: OptionTable): string {
  return Object.entries(table).filter(([, { needed }]) => needed)
    .map(([field, option]) =>
      `${expectation(optionName(field, option), option)} `
    ).join("");
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
    // In a list "  name   text", lines of the text begin below each other.
    const [, start, text] = /^( *(?:\S+ {2,})?)(.*)$/.exec(paragraph)!;
    let line = start, isEmpty = true;
    for (const word of text.trim().split(/ +/)) {
      if (!isEmpty && `${line} ${word}`.length > width) {
        lines.push(line);
        line = " ".repeat(start.length);
        isEmpty = true;
      }
      line += isEmpty ? word : ` ${word}`;
      isEmpty = false;
    }
    lines.push(line);
  }
  return lines;
}

/**
 * A text in lines of at most 80 characters; what is indented is a list, whose
 * lines stay.
 *
 * @param text Paragraphs, broken anywhere.
 */
export function filled(text: string): string {
  const paragraphs: string[] = [];
  let open = false;
  for (const line of text.split("\n")) {
    const isProse = /^\S/.test(line);
    if (open && isProse) paragraphs.push(`${paragraphs.pop()} ${line}`);
    else paragraphs.push(line);
    open = isProse;
  }
  return wrapped(paragraphs.join("\n"), WIDTH).join("\n");
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
  if (!Array.isArray(value)) return ` (default: ${value})`;
  return ` (default: ${value.length > 0 ? value.join(", ") : "none"})`;
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
