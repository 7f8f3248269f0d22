/**
 * What commands say about prompts, and A1111's `<lora:NAME:X>` in them.
 *
 * @module
 */
import { cannot, listed } from "../core/errors.ts";
import { joinPath } from "../io/files.ts";
import { calledTokens, cutOff, type Model } from "../models/model.ts";
import { promptChunks, type PromptSyntax } from "../models/prompts.ts";
import type { ConceptRequest } from "./concepts.ts";

/** A LoRA that a prompt calls. */
export interface LoraTag {
  /** As it is written. */
  readonly tag: string;
  /** Its name. */
  readonly name: string;
  /** Its strength; 1 where none is written. */
  readonly alpha: number;
}

/** `<lyco:` is what an older extension for LyCORIS calls the same. */
const TAG = /<(?:lora|lyco):([^<>:]+)((?::[^<>:]*)*)>/gi;

/**
 * Takes A1111's LoRA tags out of a prompt.
 *
 * @param prompt The text.
 * @returns The text without them, and the tags.
 * @throws If a tag has another number of strengths than one, or none.
 */
export function loraTags(prompt: string): { text: string; tags: LoraTag[] } {
  const tags = [...prompt.matchAll(TAG)].map(([tag, name, rest]): LoraTag => {
    const values = rest.split(":").slice(1);
    const alpha = values.length === 0 ? 1 : Number(values[0] || NaN);
    if (values.length > 1 || !Number.isFinite(alpha)) {
      throw cannot(`read ${tag}`, "<lora:NAME:X> with one number X", rest);
    }
    return { tag, name: name.trim(), alpha };
  });
  if (tags.length === 0) return { text: prompt, tags };
  const text = prompt.replaceAll(TAG, " ").replace(/\s+,/g, ",")
    .replace(/\s+/g, " ").trim();
  return { text, tags };
}

const FILE = /\.(safetensors|pth?|ckpt|bin)$/i;

/** A file's name without folder and ending. */
function stemOf(path: string): string {
  return path.replace(/^.*[\\/]/, "").replace(FILE, "");
}

/** LoRA files of a folder and those below it, as A1111 finds them. */
async function loraFilesBelow(folder: string, below = ""): Promise<string[]> {
  const files: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    if (isDirectory) {
      files.push(
        ...await loraFilesBelow(joinPath(folder, name), `${below}${name}/`),
      );
    } else if (FILE.test(name)) files.push(below + name);
  }
  return files.sort();
}

/**
 * The concepts of a command and those that its prompt calls by tags.
 *
 * @param tags Of the prompt.
 * @param concepts Those given as `--concept`; a tag says how strong they are.
 * @param folder Of `--lora-folder`.
 * @throws If a tag calls none of them, several, or one that has a strength.
 */
export async function calledConcepts(
  tags: readonly LoraTag[],
  concepts: readonly ConceptRequest[],
  folder?: string,
): Promise<ConceptRequest[]> {
  const all = [...concepts];
  const called = new Set<number>();
  const files = folder === undefined || tags.length === 0
    ? []
    : await loraFilesBelow(folder);
  for (const { tag, name: written, alpha } of tags) {
    const name = written.replace(FILE, "");
    const find = (same: (other: string) => boolean) => ({
      given: concepts.flatMap((c, i) =>
        same(c.name ?? stemOf(c.path)) ? [i] : []
      ),
      found: files.filter((file) =>
        same(stemOf(file)) || same(file.replace(FILE, ""))
      ),
    });
    const exact = find((other) => other === name);
    const { given, found } = exact.given.length + exact.found.length > 0
      ? exact
      : find((other) => other.toLowerCase() === name.toLowerCase());
    const what = `draw ${tag}`;
    const names = [...given.map((i) => concepts[i].path), ...found];
    if (given.length > 1 || (given.length === 0 && found.length > 1)) {
      throw cannot(what, "one file of that name", listed(names));
    }
    if (names.length === 0) {
      throw cannot(
        what,
        `--concept FILE or --lora-folder FOLDER with a file ${name}.safetensors`,
        files.length > 0 ? listed(files) : "none",
      );
    }
    if (given.length === 1) {
      const [i] = given;
      if (concepts[i].alpha !== undefined || called.has(i)) {
        throw cannot(what, "one strength", `another for ${concepts[i].path}`);
      }
      called.add(i);
      all[i] = { ...concepts[i], alpha };
    } else {
      const path = joinPath(folder!, found[0]);
      if (all.slice(concepts.length).some((other) => other.path === path)) {
        throw cannot(what, "each LoRA once", `${path} again`);
      }
      all.push({ path, alpha, name: stemOf(path) });
    }
  }
  return all;
}

/**
 * Says which prompts are longer than the text encoder reads at once, each once.
 *
 * @param model What reads them.
 * @param prompts The prompts.
 * @param syntax With A1111's, they are read in chunks; else they are cut off.
 */
export function longPrompts(
  model: Pick<Model, "tokenizer" | "unet" | "added">,
  prompts: readonly string[],
  syntax: PromptSyntax,
): string[] {
  return [...new Set(prompts)].flatMap((prompt) => {
    if (syntax === "plain") {
      const cut = cutOff(model, prompt);
      if (!cut) return [];
      return [
        `"${shortened(prompt)}" has ${cut.tokens} tokens, the limit is ` +
        `${cut.limit}; cut off: "${cut.lost}"`,
      ];
    }
    const chunks = promptChunks(model, [prompt], syntax);
    if (chunks === 1) return [];
    const limit = model.tokenizer.modelMaxLength - 2;
    return [
      `"${
        shortened(prompt)
      }" is read in ${chunks} chunks of up to ${limit} tokens`,
    ];
  });
}

/**
 * Names words that a tokenizer has only in pieces of a letter or two: a model that was
 * trained with it has hardly seen them.
 *
 * @param model What reads the prompts.
 * @param prompts The prompts.
 */
export function spelledWords(
  model: Pick<Model, "tokenizer">,
  prompts: readonly string[],
): string[] {
  const words = prompts.flatMap((prompt) =>
    prompt.replaceAll(/<[^<>]*>/g, " ").toLowerCase().match(/\p{L}{3,}/gu) ?? []
  );
  const spelled = [...new Set(words)].filter((word) =>
    // CLIP's pieces have three letters and more.
    2 * model.tokenizer.tokenize(word).length >= [...word].length
  );
  return spelled.length === 0 ? [] : [
    `${listed(spelled)}: not a word of this model, split into tokens ` +
    "(deno task inspect MODEL --words lists a folder's words)",
  ];
}

/** What other programs do with a prompt, and is not done here. */
const NOT_DONE: readonly (readonly [what: string, sign: RegExp])[] = [
  ["prompt editing (A1111)", /\[[^[\]]*:\s*[\d.]+\s*\]/],
  ["alternating words (A1111)", /\[[^[\]|]*\|[^[\]]*\]/],
  ["AND between prompts (A1111)", /(?<=\S\s+)AND(?=\s+\S)/],
  ["choices (dynamic prompts)", /\{[^{}|]*\|[^{}]*\}/],
  ["wildcards (dynamic prompts)", /(?<![\w])__[\w/-]+__(?!\w)/],
  ["embedding: (ComfyUI; write the name alone)", /\bembedding:[\w-]+/],
];

/**
 * Says what prompts have of other programs' syntax that is read as text, each
 * kind once.
 *
 * @param prompts The prompts.
 * @param syntax A text that is to be read as it stands has no syntax.
 */
export function foreignSyntax(
  prompts: readonly string[],
  syntax: PromptSyntax,
): string[] {
  if (syntax === "plain") return [];
  return NOT_DONE.flatMap(([what, sign]) => {
    const found = prompts.map((prompt) => sign.exec(prompt)?.[0])
      .find((text) => text !== undefined);
    return found === undefined
      ? []
      : [`"${shortened(found)}" is read as text: ${what} is not supported`];
  });
}

/** The beginning of a prompt, enough to tell it from others. */
export function shortened(prompt: string): string {
  return prompt.length > 50 ? `${prompt.slice(0, 49)}…` : prompt;
}

/**
 * Names learned tokens that no prompt calls.
 *
 * @param model The model with the concepts.
 * @param prompts All prompts, negative ones too.
 * @param concepts Names and tokens.
 */
export function uncalled(
  model: Pick<Model, "added">,
  prompts: readonly string[],
  concepts: readonly {
    readonly name: string;
    readonly phrase: string;
    readonly tokens: readonly { readonly token: string }[];
  }[],
): string[] {
  const called = new Set(
    prompts.flatMap((prompt) =>
      calledTokens(model.added, prompt).flatMap((part) =>
        typeof part === "string" ? [] : part.tokens
      )
    ),
  );
  return concepts.filter(({ tokens }) =>
    tokens.length > 0 && !tokens.some(({ token }) => called.has(token))
  ).map(({ name, phrase }) => `no prompt calls ${name}: write ${phrase}`);
}
