/**
 * Captions of training pictures in the usual formats: this library's (`{}`
 * stands for the concept), and those of kohya's sd-scripts and A1111 (a trigger
 * word, a list between commas, `.caption` or `.txt`, a folder `10_sks dog`).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { exists, joinPath, readText } from "../io/files.ts";

/** Placeholders of the concept in captions. */
export const PLACEHOLDERS: readonly string[] = [
  "{}",
  "<TOK>",
  // A1111's templates for textual inversion.
  "[name]",
];

/** How names of caption files end. */
export const CAPTION: RegExp = /\.(txt|caption)$/i;

/** Endings of caption files, in kohya's order of preference. */
const ENDINGS: readonly string[] = [".txt", ".caption"]
  // Cameras and Windows write upper case.
  .flatMap((ending) => [ending, ending.toUpperCase()]);

/**
 * Puts the concept into a caption.
 *
 * @param caption Text with `{}`, `<TOK>` or `[name]`; other text is not
 * changed.
 * @param phrase The concept's phrase in prompts.
 */
export function fillCaption(caption: string, phrase: string): string {
  return PLACEHOLDERS.reduce(
    (text, placeholder) => text.replaceAll(placeholder, phrase),
    caption,
  ).replace(/ +/g, " ").trim();
}

/**
 * Whether a caption has a placeholder for the concept.
 *
 * @param caption The caption.
 */
function namesConcept(caption: string): boolean {
  return PLACEHOLDERS.some((placeholder) => caption.includes(placeholder));
}

/**
 * Replaces the trigger words in a caption by the placeholder. A caption that
 * already has a placeholder is not changed.
 *
 * Words are matched whole and without regard to case; `_` counts as a space,
 * as in tags.
 *
 * @param caption The caption.
 * @param trigger The words, such as `sks dog`.
 *
 * @example
 * ```ts
 * triggered("Rex, on grass", "rex"); // "{}, on grass"
 * ```
 */
export function triggered(caption: string, trigger: string): string {
  if (namesConcept(caption)) return caption;
  const words = trigger.trim().split(/[\s_]+/)
    .map((word) => word.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"));
  const whole = new RegExp(
    `(?<![\\p{L}\\p{N}])${words.join("[\\s_]+")}(?![\\p{L}\\p{N}])`,
    "giu",
  );
  return caption.replace(whole, "{}");
}

/**
 * The captions in the file beside a picture, one per line; blank lines are
 * ignored.
 *
 * @param folder The picture's folder.
 * @param stem The picture's name without its ending.
 * @returns The captions and the file; none if there is no file or it is blank.
 * @throws If there are two caption files that differ.
 */
export async function captionsBeside(
  folder: string | URL,
  stem: string,
): Promise<{ readonly file: string; readonly lines: string[] } | undefined> {
  const found: { file: string; lines: string[] }[] = [];
  for (const ending of ENDINGS) {
    const path = joinPath(folder, stem + ending);
    if (!await exists(path)) continue;
    const lines = (await readText(path)).split("\n")
      .map((line) => line.trim()).filter((line) => line !== "");
    if (lines.length > 0) found.push({ file: stem + ending, lines });
  }
  const [first, second] = found;
  if (second && second.lines.join("\n") !== first.lines.join("\n")) {
    throw cannot(
      `read the captions of ${joinPath(folder, stem)}`,
      "one caption file, or two that say the same",
      `${first.file} and ${second.file}`,
    );
  }
  return first;
}

/** The parts of a folder's name in kohya's format. */
export interface FolderName {
  /** Repeats of its pictures. */
  readonly repeats: number;
  /** All words: trigger words and class, or the class alone. */
  readonly words: string;
  /** Trigger words: all but the last. */
  readonly trigger?: string;
  /** The class: the last word. */
  readonly class: string;
}

/**
 * Parses a folder's name in kohya's format, `10_sks dog`.
 *
 * @param path The folder.
 * @returns Its parts; undefined if the name has another format.
 */
export function kohyaFolder(path: string): FolderName | undefined {
  const name = path.replace(/[\\/]+$/, "").replace(/^.*[\\/]/, "");
  const match = /^(\d+)_(.+)$/.exec(name);
  const repeats = Number(match?.[1]);
  if (!match || repeats < 1) return undefined;
  const words = match[2].trim().split(/\s+/);
  return {
    repeats,
    words: words.join(" "),
    trigger: words.length > 1 ? words.slice(0, -1).join(" ") : undefined,
    class: words.at(-1)!,
  };
}
