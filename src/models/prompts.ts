/**
 * Prompts as A1111's web UI writes them: attention weights `(fox:1.5)`,
 * `((fox))`, `[fox]`, escapes `\(`, `BREAK`, and prompts of any length, read in
 * chunks of as many tokens as the text encoder takes (75 for CLIP).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { calledTokens, type Model, promptStates } from "./model.ts";
import { crossAttentionSites } from "./config.ts";
import { textEncoder } from "./text_encoder.ts";

/** How a prompt is read: as it stands, or with A1111's weights and chunks. */
export type PromptSyntax = "plain" | "a1111";

/** How prompts are read. */
export interface PromptReading {
  /** Skips the last n layers of the text encoder (clip skip − 1). */
  readonly skipLast?: number;
  /**
   * What `(`, `[` and `BREAK` mean.
   *
   * @default "plain"
   */
  readonly syntax?: PromptSyntax;
  /** Least number of chunks, so that states of several calls stack. */
  readonly chunks?: number;
}

/** A part of a prompt with one weight, or a break between chunks. */
export type PromptPart =
  | { readonly text: string; readonly weight: number }
  | { readonly break: true };

/** What a bracket does to the weight. */
const ROUND = 1.1;
const SQUARE = 1 / 1.1;

/** Escapes, brackets, `:1.5)`, text, and a colon by itself. */
const PIECES =
  /\\[()[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()[\]:]+|:/g;

/**
 * Parses A1111's attention weights.
 *
 * @param prompt The text.
 * @returns Parts in order; neighbours of one weight are one part.
 *
 * @example
 * ```ts
 * parseAttention("a (fox:1.5) [on] grass");
 * // a ×1, fox ×1.5, on ×0.909, grass ×1; blanks stay where they are
 * ```
 */
export function parseAttention(prompt: string): PromptPart[] {
  const parts: { text: string; weight: number; break?: true }[] = [];
  const round: number[] = [];
  const square: number[] = [];
  const scale = (from: number, by: number) => {
    for (const part of parts.slice(from)) part.weight *= by;
  };
  for (const [piece, weight] of prompt.matchAll(PIECES)) {
    if (piece.length === 2 && piece[0] === "\\") {
      parts.push({ text: piece[1], weight: 1 });
    } else if (piece === "(") round.push(parts.length);
    else if (piece === "[") square.push(parts.length);
    else if (weight !== undefined && round.length > 0) {
      scale(round.pop()!, Number(weight));
    } else if (piece === ")" && round.length > 0) scale(round.pop()!, ROUND);
    else if (piece === "]" && square.length > 0) scale(square.pop()!, SQUARE);
    else {
      piece.split(/\s*\bBREAK\b\s*/).forEach((text, i) => {
        if (i > 0) parts.push({ text: "", weight: 1, break: true });
        parts.push({ text, weight: 1 });
      });
    }
  }
  // Brackets that are not closed count to the end.
  for (const from of round) scale(from, ROUND);
  for (const from of square) scale(from, SQUARE);
  const merged: typeof parts = [];
  for (const part of parts) {
    const last = merged.at(-1);
    if (!part.break && last && !last.break && last.weight === part.weight) {
      last.text += part.text;
    } else if (part.break || part.text !== "") merged.push({ ...part });
  }
  return merged.map(({ text, weight, break: breaks }) =>
    breaks ? { break: true } : { text, weight }
  );
}

/**
 * The words of a prompt without weights and breaks.
 *
 * @param prompt The text in A1111's syntax.
 */
export function plainWords(prompt: string): string {
  return parseAttention(prompt).map((part) => "break" in part ? " " : part.text)
    .join("").replace(/\s+/g, " ").trim();
}

/** Tokens of a chunk at every site, and their weights; no start and end. */
interface Chunk {
  readonly ids: (readonly number[])[];
  readonly weights: number[];
}

type Reader = Pick<Model, "tokenizer" | "unet" | "added">;

/** How far back a chunk that is full looks for a comma to end at. */
const BACKTRACK = 20;

/** Fills chunks as A1111 does. */
function chunksOf(model: Reader, prompt: string): Chunk[] {
  const { tokenizer, added } = model;
  const sites = crossAttentionSites(model.unet.config).length;
  const size = tokenizer.modelMaxLength - 2;
  const base = tokenizer.vocabSize - (added?.names.length ?? 0);
  const comma = tokenizer.idOf(",</w>");
  const chunks: Chunk[] = [];
  let chunk: Chunk = { ids: [], weights: [] };
  let lastComma = -1;
  const next = () => {
    chunks.push(chunk);
    chunk = { ids: [], weights: [] };
    lastComma = -1;
  };
  const add = (id: readonly number[], weight: number) => {
    if (id[0] === comma) lastComma = chunk.ids.length;
    else if (
      chunk.ids.length === size && lastComma >= 0 &&
      chunk.ids.length - lastComma <= BACKTRACK
    ) {
      // What stands behind the comma goes into the next chunk.
      const from = lastComma + 1;
      const rest = {
        ids: chunk.ids.splice(from),
        weights: chunk.weights.splice(from),
      };
      next();
      chunk = rest;
    }
    if (chunk.ids.length === size) next();
    chunk.ids.push(id);
    chunk.weights.push(weight);
  };
  for (const part of parseAttention(prompt)) {
    if ("break" in part) {
      next();
      continue;
    }
    for (const segment of calledTokens(added, part.text)) {
      if (typeof segment === "string") {
        for (const id of tokenizer.tokenize(segment)) {
          add(new Array(sites).fill(id), part.weight);
        }
        continue;
      }
      // The vectors of one embedding stay together.
      const { tokens } = segment;
      if (tokens.length > 1 && chunk.ids.length + tokens.length > size) next();
      for (const token of tokens) {
        add(
          added!.sites[token].slice(0, sites).map((i) => base + i),
          part.weight,
        );
      }
    }
  }
  if (chunk.ids.length > 0 || chunks.length === 0) chunks.push(chunk);
  return chunks;
}

/** Whether a prompt says nothing that plain reading does not. */
function isPlain(model: Reader, prompt: string): boolean {
  const parts = parseAttention(prompt);
  return parts.every((part) =>
    !("break" in part) && part.weight === 1 && part.text === prompt
  ) && chunksOf(model, prompt).length === 1;
}

/**
 * How many chunks the longest of some prompts takes.
 *
 * @param model What reads them.
 * @param prompts The prompts.
 * @param syntax How they are read; plain ones take one.
 */
export function promptChunks(
  model: Reader,
  prompts: readonly string[],
  syntax: PromptSyntax = "plain",
): number {
  if (syntax === "plain") return 1;
  return Math.max(1, ...prompts.map((p) => chunksOf(model, p).length));
}

/**
 * Text states of prompts, differentiable by text encoder and added vectors.
 *
 * With A1111's syntax each chunk is read by itself; the state of a token is
 * multiplied by its weight, and the chunk scaled back to the mean it had
 * (A1111's "Original" emphasis). Shorter prompts are filled with empty chunks.
 *
 * @param model What reads them.
 * @param prompts One per sample.
 * @param options Syntax, clip skip, least number of chunks.
 * @returns [b, tokens, width], or [b, sites, tokens, width] as soon as one
 * prompt is layer-wise; `tokens` is that of all chunks together.
 *
 * @example
 * ```ts ignore
 * const states = tf.tidy(() =>
 *   readPrompts(model, ["a (red:1.3) fox"], { syntax: "a1111" })
 * );
 * ```
 */
export function readPrompts(
  model: Reader & Pick<Model, "textEncoder">,
  prompts: readonly string[],
  options: PromptReading = {},
): tf.Tensor3D | tf.Tensor4D {
  const { skipLast, syntax = "plain", chunks: least = 1 } = options;
  if (
    syntax === "plain" ||
    (least === 1 && prompts.every((prompt) => isPlain(model, prompt)))
  ) return promptStates(model, prompts, { skipLast });
  const { tokenizer } = model;
  const length = tokenizer.modelMaxLength;
  const read = prompts.map((prompt) => chunksOf(model, prompt));
  const count = Math.max(least, ...read.map((chunks) => chunks.length));
  const layerwise = read.flat().some(({ ids }) =>
    ids.some((id) => id.some((other) => other !== id[0]))
  );
  const sites = layerwise ? crossAttentionSites(model.unet.config).length : 1;
  const rows: number[][] = [];
  const weights: number[] = [];
  for (const chunks of read) {
    for (let site = 0; site < sites; site++) {
      for (let c = 0; c < count; c++) {
        const { ids, weights: own } = chunks[c] ?? { ids: [], weights: [] };
        const row = new Array<number>(length).fill(tokenizer.padId);
        const tokens = [
          tokenizer.bosId,
          ...ids.map((id) => id[site]),
          tokenizer.eosId,
        ];
        tokens.forEach((id, i) => row[i] = id);
        rows.push(row);
        const factors = new Array<number>(length).fill(1);
        own.forEach((weight, i) => factors[i + 1] = weight);
        weights.push(...factors);
      }
    }
  }
  const { last } = textEncoder(
    model.textEncoder.params,
    model.textEncoder.config,
    rows,
    { skipLast, added: model.added?.vectors },
  );
  const width = last.shape[2];
  const factors = tf.tensor3d(weights, [rows.length, length, 1]);
  const weighted = tf.mul(last, factors);
  const scaled = tf.mul(
    weighted,
    tf.div(tf.mean(last, [1, 2], true), tf.mean(weighted, [1, 2], true)),
  );
  // A chunk without weights stays bit for bit what it was.
  const changed = rows.map((_, i) =>
    weights.slice(i * length, (i + 1) * length).some((w) => w !== 1) ? 1 : 0
  );
  const states = tf.where(
    tf.tensor3d(changed, [rows.length, 1, 1], "bool"),
    scaled,
    last,
  );
  return layerwise
    ? states.reshape([prompts.length, sites, count * length, width])
    : states.reshape([prompts.length, count * length, width]);
}
