/**
 * CLIP's tokenizer: text → words → byte-level BPE → ids, padded for the text
 * encoder, with added tokens for learned concepts.
 *
 * Pre-tokenization and BPE are those of `@huggingface/tokenizers`; what is here
 * is CLIP's pipeline set up in it, added tokens and the special tokens around
 * the text, as transformers' `CLIPTokenizer` does them.
 *
 * @module
 */
import { Tokenizer as Pipeline } from "@huggingface/tokenizers";
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import {
  exists,
  joinPath,
  readJson,
  readText,
  type Schema,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { fileOf, type FolderSource, hasFile, placeName } from "../io/folder.ts";

/**
 * How text is cleaned before BPE.
 *
 * - `"basic"`: transformers' slow `CLIPTokenizer` without ftfy: control
 *   characters go, accents are stripped, every CJK character and punctuation
 *   mark is a word of its own, lower case.
 * - `"fast"`: `CLIPTokenizerFast`: NFC, lower case; accents stay, runs of
 *   punctuation stay together, and `'s`, `'t`, `'re` are words.
 */
export type Cleaning = "basic" | "fast";

/** What a tokenizer is made of. */
export interface TokenizerSpec {
  /** Token → id, ids 0…n−1 each once; word-final tokens end in `</w>`. */
  vocab: Readonly<Record<string, number>>;
  /** Pairs to merge, most urgent first, as `"left right"`. */
  merges: readonly string[];
  /**
   * Ids of a padded prompt, start and end included.
   *
   * @default 77
   */
  modelMaxLength?: number;
  /**
   * The token that starts a prompt.
   *
   * @default "<|startoftext|>"
   */
  bos?: string;
  /**
   * The token that ends a prompt.
   *
   * @default "<|endoftext|>"
   */
  eos?: string;
  /**
   * The token that fills a prompt up.
   *
   * @default "<|endoftext|>"
   */
  pad?: string;
  /**
   * The token for pieces the vocabulary lacks.
   *
   * @default "<|endoftext|>"
   */
  unk?: string;
  /** Tokens beyond the vocabulary, in the order of their ids. */
  added?: readonly string[];
  /**
   * How text is cleaned before BPE.
   *
   * @default "basic"
   */
  cleaning?: Cleaning;
}

/** A padded prompt. */
export interface Encoded {
  /** `[start, …, end, pad, …]`, exactly the asked length. */
  ids: number[];
  /** How many tokens of the text did not fit and were dropped. */
  truncated: number;
}

/** CLIP's tokenizer; immutable. */
export interface Tokenizer {
  /** What it was made of, defaults filled in. */
  readonly spec: Readonly<Required<TokenizerSpec>>;
  /** Ids in use, added tokens included: the rows of the embedding table. */
  readonly vocabSize: number;
  /** Ids of a padded prompt. */
  readonly modelMaxLength: number;
  /** Id of the start token. */
  readonly bosId: number;
  /** Id of the end token. */
  readonly eosId: number;
  /** Id that pads a prompt. */
  readonly padId: number;
  /** Tokens beyond the vocabulary and their ids, in order. */
  readonly added: ReadonlyMap<string, number>;
  /** The id of a token as the vocabulary spells it (`"cat</w>"`), if any. */
  idOf(token: string): number | undefined;
  /** Whether the token, as the vocabulary spells it, has an id. */
  has(token: string): boolean;
  /** The ids of a text: no start, end, padding or truncation. */
  tokenize(text: string): number[];
  /**
   * The ids of a prompt: start, text, end, padded to the maximum length, as
   * `CLIPTokenizer(text, padding="max_length", truncation=True)`.
   *
   * @throws If `maxLength` is not an integer ≥ 2.
   */
  encode(text: string, options?: { maxLength?: number }): Encoded;
  /**
   * The text of ids; start, end and padding are left out.
   *
   * @throws If an id is not in the vocabulary.
   */
  decode(ids: Iterable<number>): string;
  /**
   * A tokenizer that knows further tokens, with ids from {@link vocabSize} up.
   * They are matched as they are written (case counts), before cleaning and
   * BPE, the longest first.
   *
   * @throws If a token is empty, has spaces at its ends, or is already known.
   */
  withAddedTokens(tokens: readonly string[]): Tokenizer;
  /**
   * Writes `vocab.json`, `merges.txt`, `tokenizer_config.json`,
   * `special_tokens_map.json` and `added_tokens.json`, as transformers'
   * `CLIPTokenizer` loads them.
   */
  save(folder: string | URL): Promise<void>;
}

const START = "<|startoftext|>";
const END = "<|endoftext|>";
const WORD_END = "</w>";
const CLIP_LENGTH = 77;
const MERGES_HEADER = "#version: 0.2";
/** CLIPTokenizer reads so many merges of its file and ignores the rest. */
const MERGES_READ = 49152 - 256 - 2;

/** CLIP's words: contractions, letters, single digits, runs of the rest. */
const WORDS = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";
/** Each a word of its own in BERT's basic tokenizer: Han, no kana or Hangul. */
const HAN = "[\\u{3400}-\\u{4DBF}\\u{4E00}-\\u{9FFF}\\u{F900}-\\u{FAFF}" +
  "\\u{20000}-\\u{2A6DF}\\u{2A700}-\\u{2CEAF}\\u{2F800}-\\u{2FA1F}]";

/**
 * A tokenizer from its vocabulary and merges.
 *
 * @throws If ids are not 0…n−1 each once, a merge is not a pair or makes no
 * token of the vocabulary, a special token is unknown, or an added one known.
 *
 * @example
 * ```ts
 * const tokenizer = createTokenizer({
 *   vocab: { a: 0, "t</w>": 1, "at</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4 },
 *   merges: ["a t</w>"],
 *   modelMaxLength: 5,
 * });
 * tokenizer.encode("At at").ids; // [3, 2, 2, 4, 4]
 * ```
 */
export function createTokenizer(spec: TokenizerSpec): Tokenizer {
  const full: Required<TokenizerSpec> = {
    vocab: spec.vocab,
    merges: spec.merges,
    modelMaxLength: spec.modelMaxLength ?? CLIP_LENGTH,
    bos: spec.bos ?? START,
    eos: spec.eos ?? END,
    pad: spec.pad ?? END,
    unk: spec.unk ?? END,
    added: spec.added ?? [],
    cleaning: spec.cleaning ?? "basic",
  };
  const ids = checkVocab(full.vocab);
  checkMerges(full.merges, ids);
  checkLength(full.modelMaxLength, "make a tokenizer");
  return assemble(full, ids, makePipeline(full));
}

function checkVocab(
  vocab: Readonly<Record<string, number>>,
): Map<string, number> {
  const ids = new Map(Object.entries(vocab));
  const used = new Set<number>();
  for (const [token, id] of ids) {
    if (!Number.isInteger(id) || id < 0 || id >= ids.size || used.has(id)) {
      throw cannot(
        "make a tokenizer",
        `vocabulary ids 0…${ids.size - 1} each once`,
        `${id} for ${JSON.stringify(token)}`,
      );
    }
    used.add(id);
  }
  return ids;
}

function checkMerges(
  merges: readonly string[],
  ids: Map<string, number>,
): void {
  for (const merge of merges) {
    const parts = merge.split(" ");
    if (parts.length !== 2 || parts.includes("") || !ids.has(parts.join(""))) {
      throw cannot(
        "make a tokenizer",
        "merges of two tokens that join to a token of the vocabulary",
        JSON.stringify(merge),
      );
    }
  }
}

function checkLength(length: number, what: string): void {
  if (!Number.isSafeInteger(length) || length < 2) {
    throw cannot(what, "a maximum length of at least 2 ids", length);
  }
}

/** Cleaning, words and BPE as a pipeline of the tokenizers library. */
function makePipeline(spec: Required<TokenizerSpec>): Pipeline {
  const bytes = {
    type: "ByteLevel",
    add_prefix_space: false,
    use_regex: false,
  };
  const split = (regex: string, behavior: string, invert: boolean) => ({
    type: "Split",
    pattern: { Regex: regex },
    behavior,
    invert,
  });
  const words = split(WORDS, "Removed", true);
  const basic = {
    normalizer: {
      type: "Sequence",
      normalizers: [
        // BERT drops unassigned code points as control characters.
        { type: "Replace", pattern: { Regex: "\\p{Cn}" }, content: "" },
        {
          type: "BertNormalizer",
          clean_text: true,
          // Done by the split on HAN: the library's looks at 16-bit halves.
          handle_chinese_chars: false,
          strip_accents: true,
          lowercase: true,
        },
      ],
    },
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "BertPreTokenizer" },
        split(HAN, "Isolated", false),
        words,
        bytes,
      ],
    },
  };
  const fast = {
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "NFC" },
        { type: "Replace", pattern: { Regex: "\\s+" }, content: " " },
        { type: "Lowercase" },
      ],
    },
    pre_tokenizer: { type: "Sequence", pretokenizers: [words, bytes] },
  };
  return new Pipeline({
    version: "1.0",
    added_tokens: [],
    ...(spec.cleaning === "basic" ? basic : fast),
    post_processor: null,
    decoder: null,
    model: {
      type: "BPE",
      unk_token: spec.unk,
      continuing_subword_prefix: "",
      end_of_word_suffix: WORD_END,
      fuse_unk: false,
      vocab: spec.vocab,
      merges: spec.merges,
    },
  }, {});
}

function assemble(
  spec: Required<TokenizerSpec>,
  ids: ReadonlyMap<string, number>,
  pipeline: Pipeline,
): Tokenizer {
  const what = "make a tokenizer";
  const added = new Map<string, number>();
  for (const token of spec.added) {
    if (token === "" || token.trim() !== token) {
      throw cannot(
        "add a token",
        "text without spaces at its ends",
        JSON.stringify(token),
      );
    }
    if (ids.has(token) || added.has(token)) {
      throw cannot(
        "add a token",
        "one the tokenizer does not know",
        JSON.stringify(token),
      );
    }
    added.set(token, ids.size + added.size);
  }
  const idOf = (token: string) => ids.get(token) ?? added.get(token);
  const special = (name: string, token: string): number => {
    const id = idOf(token);
    if (id === undefined) {
      throw cannot(what, `the ${name} token in the vocabulary`, token);
    }
    return id;
  };
  const bosId = special("start", spec.bos);
  const eosId = special("end", spec.eos);
  const padId = special("padding", spec.pad);
  special("unknown", spec.unk);

  const whole = [
    ...new Set([spec.bos, spec.eos, spec.pad, spec.unk, ...added.keys()]),
  ];
  const splitter = new RegExp(
    `(${
      whole.toSorted((a, b) => b.length - a.length).map(escapeRegex).join("|")
    })`,
    "u",
  );
  const isWhole = new Set(whole);

  const tokenize = (text: string): number[] =>
    text.split(splitter).flatMap((piece) =>
      piece === ""
        ? []
        : isWhole.has(piece)
        ? [idOf(piece)!]
        : pipeline.encode(piece, { add_special_tokens: false }).ids
    );

  return {
    spec,
    vocabSize: ids.size + added.size,
    modelMaxLength: spec.modelMaxLength,
    bosId,
    eosId,
    padId,
    added,
    idOf,
    has: (token) => idOf(token) !== undefined,
    tokenize,
    encode(text, { maxLength = spec.modelMaxLength } = {}) {
      checkLength(maxLength, "encode a prompt");
      const all = tokenize(text);
      const kept = all.slice(0, maxLength - 2);
      const padded = new Array<number>(maxLength).fill(padId);
      [bosId, ...kept, eosId].forEach((id, i) => padded[i] = id);
      return { ids: padded, truncated: all.length - kept.length };
    },
    decode: (list) => decodeIds(list, spec, ids, added),
    withAddedTokens: (tokens) =>
      assemble({ ...spec, added: [...spec.added, ...tokens] }, ids, pipeline),
    save: (folder) => saveTokenizer(folder, spec, ids, added),
  };
}

function escapeRegex(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}

/**
 * The printable character that stands for each byte in a byte-level BPE
 * vocabulary: itself where it is printable Latin-1, else U+0100 and up; in the
 * order of CLIP's vocabulary (printable ones first).
 */
export function byteAlphabet(): [byte: number, char: string][] {
  const printable = [[0x21, 0x7e], [0xa1, 0xac], [0xae, 0xff]].flatMap(
    ([first, last]) =>
      Array.from({ length: last - first + 1 }, (_, i) => first + i),
  );
  const others = Array.from({ length: 256 }, (_, byte) => byte)
    .filter((byte) => !printable.includes(byte));
  return [
    ...printable.map((byte): [number, string] => [
      byte,
      String.fromCharCode(byte),
    ]),
    ...others.map((byte, i): [number, string] => [
      byte,
      String.fromCharCode(256 + i),
    ]),
  ];
}

function decodeIds(
  list: Iterable<number>,
  spec: Required<TokenizerSpec>,
  ids: ReadonlyMap<string, number>,
  added: ReadonlyMap<string, number>,
): string {
  const tokens = new Map([...ids, ...added].map(([token, id]) => [id, token]));
  const bytes = new Map(byteAlphabet().map(([byte, char]) => [char, byte]));
  const silent = new Set([spec.bos, spec.eos, spec.pad]);
  const out: number[] = [];
  const space = 0x20;
  for (const id of list) {
    const token = tokens.get(id);
    if (token === undefined) {
      throw cannot("decode", `ids below ${tokens.size}`, id);
    }
    if (silent.has(token)) continue;
    if (added.has(token)) {
      out.push(space, ...new TextEncoder().encode(token), space);
      continue;
    }
    const ends = token.endsWith(WORD_END);
    for (const char of ends ? token.slice(0, -WORD_END.length) : token) {
      const byte = bytes.get(char);
      if (byte !== undefined) out.push(byte);
      else out.push(...new TextEncoder().encode(char));
    }
    if (ends) out.push(space);
  }
  return new TextDecoder().decode(new Uint8Array(out))
    .replace(/ +/g, " ").trim();
}

async function saveTokenizer(
  folder: string | URL,
  spec: Required<TokenizerSpec>,
  ids: ReadonlyMap<string, number>,
  added: ReadonlyMap<string, number>,
): Promise<void> {
  const specials = {
    bos_token: spec.bos,
    eos_token: spec.eos,
    unk_token: spec.unk,
    pad_token: spec.pad,
  };
  const byId = [...ids].sort(([, a], [, b]) => a - b);
  await writeAtomic(joinPath(folder, "vocab.json"), jsonObject(byId));
  await writeAtomic(
    joinPath(folder, "merges.txt"),
    [MERGES_HEADER, ...spec.merges, ""].join("\n"),
  );
  await writeJson(joinPath(folder, "special_tokens_map.json"), specials);
  await writeJson(joinPath(folder, "tokenizer_config.json"), {
    add_prefix_space: false,
    ...specials,
    do_lower_case: true,
    errors: "replace",
    model_max_length: spec.modelMaxLength,
    tokenizer_class: spec.cleaning === "basic"
      ? "CLIPTokenizer"
      : "CLIPTokenizerFast",
  });
  const extra = joinPath(folder, "added_tokens.json");
  if (added.size > 0) await writeAtomic(extra, jsonObject([...added]));
  // One left there by an earlier save would add tokens this one lacks.
  else if (await exists(extra)) await machine.files.remove(extra);
}

/** JSON by hand: an object would put keys like "0" first. */
function jsonObject(entries: [string, number][]): string {
  const lines = entries.map(([key, value]) =>
    `  ${JSON.stringify(key)}: ${value}`
  );
  return `{\n${lines.join(",\n")}\n}\n`;
}

const ids = z.record(z.string(), z.number().int().nonnegative());
/** A special token is its text, or an object that holds it. */
const token = z.union([
  z.string(),
  z.object({ content: z.string() }).transform(({ content }) => content),
]);
const specials = z.object({
  bos_token: token.optional(),
  eos_token: token.optional(),
  unk_token: token.optional(),
  pad_token: token.optional(),
  additional_special_tokens: z.array(token).optional(),
});
const tokenizerConfig = specials.extend({
  model_max_length: z.number().min(2).optional(),
  tokenizer_class: z.string().optional(),
  added_tokens_decoder: z.record(
    z.string().regex(/^\d+$/),
    z.object({ content: z.string() }),
  ).optional(),
});
const tokenizerJson = z.object({
  added_tokens: z.array(
    z.object({ id: z.number().int().nonnegative(), content: z.string() }),
  ).default([]),
  model: z.object({
    type: z.literal("BPE"),
    end_of_word_suffix: z.literal(WORD_END),
    vocab: ids,
    merges: z.array(
      z.union([
        z.string(),
        z.tuple([z.string(), z.string()]).transform((pair) => pair.join(" ")),
      ]),
    ),
  }),
});

/** A document of the folder, or the fallback where there is no such file. */
async function readOptional<T>(
  [folder, ...names]: readonly [FolderSource, ...string[]],
  schema: Schema<T>,
  fallback: T,
): Promise<T> {
  return await hasFile(folder, ...names)
    ? await readJson(fileOf(folder, ...names), schema)
    : fallback;
}

/**
 * Loads a tokenizer folder of transformers: `vocab.json` and `merges.txt`, or
 * else `tokenizer.json`; with `tokenizer_config.json`,
 * `special_tokens_map.json` and `added_tokens.json` where they exist.
 *
 * @param folder The folder.
 * @param options.cleaning Overrides the text cleaning; by default `"fast"` for
 * a folder that has only `tokenizer.json` or says `CLIPTokenizerFast`, else
 * `"basic"`, which is what pipelines of diffusers run.
 * @param options.inside A subfolder that it lies in.
 * @throws If a file is missing or broken, or the parts do not fit together.
 */
export async function loadTokenizer(
  folder: FolderSource,
  options: { cleaning?: Cleaning; inside?: string } = {},
): Promise<Tokenizer> {
  const { inside = "" } = options;
  const at = (name: string) => [folder, inside, name] as const;
  const what = `load the tokenizer in ${placeName(folder, inside)}`;
  const config = await readOptional(
    at("tokenizer_config.json"),
    tokenizerConfig,
    {},
  );
  const map = await readOptional(at("special_tokens_map.json"), specials, {});
  const extra = await readOptional(at("added_tokens.json"), ids, {});
  const slow = await hasFile(...at("vocab.json"));
  if (!slow && !await hasFile(...at("tokenizer.json"))) {
    throw cannot(what, "vocab.json and merges.txt, or tokenizer.json", "none");
  }
  const { vocab, merges, added_tokens } = slow
    ? {
      vocab: await readJson(fileOf(...at("vocab.json")), ids),
      merges: parseMerges(
        await readText(fileOf(...at("merges.txt"))),
        placeName(...at("merges.txt")),
      ),
      added_tokens: [],
    }
    : await readJson(fileOf(...at("tokenizer.json")), tokenizerJson).then((
      { model, added_tokens },
    ) => ({ ...model, added_tokens }));

  const added = addedInOrder(
    [
      ...Object.entries(extra),
      ...Object.entries(config.added_tokens_decoder ?? {}).map((
        [id, { content }],
      ): [string, number] => [content, Number(id)]),
      ...added_tokens.map(({ id, content }): [string, number] => [content, id]),
    ],
    vocab,
    what,
  );
  const more = map.additional_special_tokens ??
    config.additional_special_tokens ?? [];
  for (const token of more) {
    if (!Object.hasOwn(vocab, token) && !added.includes(token)) {
      added.push(token);
    }
  }
  const length = config.model_max_length ?? CLIP_LENGTH;
  return createTokenizer({
    vocab,
    merges,
    // Some folders say 10³⁰ for "unknown".
    modelMaxLength: length > 1e6 ? CLIP_LENGTH : length,
    bos: map.bos_token ?? config.bos_token,
    eos: map.eos_token ?? config.eos_token,
    pad: map.pad_token ?? config.pad_token,
    unk: map.unk_token ?? config.unk_token,
    added,
    cleaning: options.cleaning ??
      (slow && config.tokenizer_class !== "CLIPTokenizerFast"
        ? "basic"
        : "fast"),
  });
}

function parseMerges(text: string, from: string): string[] {
  const [header, ...merges] = text.trim().split(/\r?\n/);
  if (!header.startsWith("#version")) {
    throw cannot(`read ${from}`, 'a first line "#version: …"', header);
  }
  return merges.slice(0, MERGES_READ);
}

/** Added tokens must go on where the vocabulary ends, as transformers asks. */
function addedInOrder(
  entries: [string, number][],
  vocab: Readonly<Record<string, number>>,
  what: string,
): string[] {
  const size = Object.keys(vocab).length;
  const byId = new Map<number, string>();
  for (const [token, id] of entries) {
    const known = Object.hasOwn(vocab, token) ? vocab[token] : undefined;
    // Newer files list the vocabulary's own special tokens once more.
    if (known === id) continue;
    const other = byId.get(id);
    if (known !== undefined || (other !== undefined && other !== token)) {
      throw cannot(
        what,
        "one id a token",
        `${id} for ${JSON.stringify(token)} and ${
          known === undefined ? JSON.stringify(other) : known
        }`,
      );
    }
    byId.set(id, token);
  }
  const sorted = [...byId].sort(([a], [b]) => a - b);
  sorted.forEach(([id, token], i) => {
    if (id !== size + i) {
      throw cannot(
        what,
        `added tokens with ids from ${size} up without gaps`,
        `${id} for ${JSON.stringify(token)}`,
      );
    }
  });
  return sorted.map(([, token]) => token);
}
