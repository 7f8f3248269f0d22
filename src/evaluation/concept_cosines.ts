/**
 * Similarity of the learned embeddings of different concepts.
 *
 * @module
 */
import type { Concept } from "../customize/concept.ts";
import type { Maybe } from "../report/format.ts";
import type { ClipVector } from "./clip.ts";
import { cosine } from "./clip_score.ts";
import { rounded } from "./compare.ts";
import { mean } from "./statistics.ts";

/** Cosines between pairs of concepts. */
export interface PairCosines {
  /** Mean over pairs; null of a single concept. */
  mean: Maybe;
  /** The most similar pair. */
  max: Maybe;
}

/**
 * A concept's learned vectors, unit length: every token at every site.
 *
 * @param concept The concept.
 */
export async function conceptVectors(concept: Concept): Promise<ClipVector[]> {
  const rows: ClipVector[] = [];
  for (const { vectors } of concept.tokens) {
    const [n, width] = vectors.shape;
    const values = await vectors.data() as Float32Array;
    for (let i = 0; i < n; i++) {
      const row = values.slice(i * width, (i + 1) * width);
      const norm = Math.hypot(...row);
      rows.push(row.map((value) => value / norm));
    }
  }
  return rows;
}

/**
 * Cosines between pairs of concepts, each the mean over vectors of the same
 * token and site.
 *
 * @param concepts Vectors of each concept, from {@linkcode conceptVectors}.
 */
export function pairCosines(
  concepts: readonly (readonly ClipVector[])[],
): PairCosines {
  const pairs = concepts.flatMap((own, i) =>
    concepts.slice(i + 1).map((other) =>
      mean(own.map((row, k) => cosine(row, other[k])))
    )
  );
  return pairs.length === 0
    ? { mean: null, max: null }
    : { mean: rounded(mean(pairs)), max: rounded(Math.max(...pairs)) };
}
