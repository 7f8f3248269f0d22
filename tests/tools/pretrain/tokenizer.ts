/**
 * The tokenizer of the embedded world: a small CLIP tokenizer made for a list of
 * words.
 *
 * @module
 */
import { cannot } from "../../../src/core/errors.ts";
import {
  byteAlphabet,
  createTokenizer,
  type Tokenizer,
} from "../../../src/models/tokenizer.ts";
import {
  BACKGROUNDS,
  CLASSES,
  COLORS,
  DESIGNS,
  IDENTITIES,
  NOUNS,
  PLACES,
  WIDE_NOUNS,
} from "../../../src/micro/world.ts";
import { MAX_TOKENS } from "./recipe.ts";

/** Words of the grammar that are no noun, class, colour, style, size or place. */
const FUNCTION_WORDS = [
  "a",
  "an",
  "the",
  "photo",
  "picture",
  "image",
  "of",
  "and",
  "next",
  "to",
  "on",
  "in",
  "at",
  "by",
  "with",
  "wall",
  "background",
  "small",
  "big",
];

const WORD_END = "</w>";

/** The tokenizer of the embedded world: every word is one token. */
export function tokenizerOfWorld(): Tokenizer {
  return buildTokenizer(worldWords(), MAX_TOKENS);
}

/**
 * Every word a caption, prompt or proper name can have: the words that a
 * tokenizer needs as whole tokens.
 *
 * @returns Distinct lower-case words in a fixed order.
 */
export function worldWords(): string[] {
  const words = [
    ...FUNCTION_WORDS,
    ...PLACES,
    ...COLORS.map((color) => color.word),
    ...DESIGNS.map((design) => design.word),
    ...BACKGROUNDS.map((background) => background.word),
    ...BACKGROUNDS.flatMap((b) => b.phrases.join(" ").split(" ")),
    ...CLASSES,
    ...NOUNS.map((noun) => noun.word),
    ...WIDE_NOUNS.map((noun) => noun.word),
    ...IDENTITIES.map((identity) => identity.name),
  ];
  return [...new Set(words)];
}

/**
 * A tokenizer in which each of the words is one token (`cat</w>`), and any
 * other text still has ids, byte by byte where need be.
 *
 * The vocabulary is laid out as CLIP's: 256 bytes, 256 bytes that end a word,
 * the merges' results, the start and the end token. The same words in the same
 * order give the same tokenizer.
 *
 * @param words Lower-case words; duplicates are ignored.
 * @param maxLength Ids of a padded prompt, start and end included.
 * @throws If a word is not a single word of CLIP (lower-case letters, one
 * digit or one punctuation mark; `t-shirt` is three words).
 *
 * @example
 * ```ts
 * const tokenizer = buildTokenizer(["a", "photo", "of", "cat"], 24);
 * ```
 */
export function buildTokenizer(
  words: readonly string[],
  maxLength: number,
): Tokenizer {
  const alphabet = byteAlphabet();
  const letters = new Map(alphabet);
  const tokens = new Set([
    ...alphabet.map(([, char]) => char),
    ...alphabet.map(([, char]) => char + WORD_END),
  ]);
  const ranks = new Map<string, number>();
  for (const word of words) {
    const bytes = [...new TextEncoder().encode(word)];
    let pieces = merged(
      bytes.map((byte, i) =>
        letters.get(byte)! + (i === bytes.length - 1 ? WORD_END : "")
      ),
      ranks,
    );
    // Merges added last never run before older ones, so words made earlier
    // stay one token; each addition shortens this word by a piece at least.
    while (pieces.length > 1) {
      ranks.set(`${pieces[0]} ${pieces[1]}`, ranks.size);
      tokens.add(pieces[0] + pieces[1]);
      pieces = merged(pieces, ranks);
    }
  }
  const names = [...tokens, "<|startoftext|>", "<|endoftext|>"];
  const tokenizer = createTokenizer({
    vocab: Object.fromEntries(names.map((name, id) => [name, id])),
    merges: [...ranks.keys()],
    modelMaxLength: maxLength,
  });
  for (const word of words) {
    const ids = tokenizer.tokenize(word);
    if (ids.length !== 1 || tokenizer.decode(ids) !== word) {
      throw cannot(
        "build a tokenizer",
        "single lower-case words",
        JSON.stringify(word),
      );
    }
  }
  return tokenizer;
}

/** BPE in its plain form: merge the pair of lowest rank until none is left. */
function merged(pieces: string[], ranks: Map<string, number>): string[] {
  while (true) {
    let best = Infinity;
    for (let i = 0; i + 1 < pieces.length; i++) {
      best = Math.min(
        best,
        ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity,
      );
    }
    if (best === Infinity) return pieces;
    const next: string[] = [];
    for (let i = 0; i < pieces.length; i++) {
      const pair = i + 1 < pieces.length
        ? `${pieces[i]} ${pieces[i + 1]}`
        : undefined;
      if (pair !== undefined && ranks.get(pair) === best) {
        next.push(pieces[i] + pieces[i + 1]);
        i++;
      } else next.push(pieces[i]);
    }
    pieces = next;
  }
}
