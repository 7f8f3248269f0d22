/**
 * Retrieval of an identity among all identities and their look-alikes, and
 * zero-shot classification by texts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { ClipVector } from "./clip.ts";
import { cosine } from "./clip_score.ts";

/** A class to choose from. */
export interface GalleryEntry {
  /** Its name. */
  readonly label: string;
  /** Unit vector that represents it. */
  readonly center: ClipVector;
}

/**
 * The direction of the mean of unit vectors.
 *
 * @param rows Unit vectors, at least one.
 * @throws If there are none, or they cancel out.
 */
export function centroid(rows: readonly ClipVector[]): ClipVector {
  if (rows.length === 0) throw cannot("average embeddings", "some", "none");
  const sum = new Float64Array(rows[0].length);
  for (const row of rows) {
    for (let i = 0; i < sum.length; i++) sum[i] += row[i];
  }
  const norm = Math.hypot(...sum);
  if (!(norm > 0)) {
    throw cannot("average embeddings", "a mean that is not zero", norm);
  }
  return Float32Array.from(sum, (value) => value / norm);
}

/**
 * A gallery of labelled examples, each label by its centroid.
 *
 * @param examples Unit vectors by label.
 */
export function gallery(
  examples: Iterable<readonly [string, readonly ClipVector[]]>,
): GalleryEntry[] {
  return [...examples].map(([label, rows]) => ({
    label,
    center: centroid(rows),
  }));
}

/** An answer of {@linkcode retrieve}. */
export interface Retrieved {
  /** The nearest label. */
  readonly label: string;
  /** Its cosine. */
  readonly cosine: number;
  /** Rank of `wanted`, 1 = nearest; undefined if it was not asked for. */
  readonly rank?: number;
}

/**
 * Finds the nearest label of a picture, or of several views of it: for each
 * label the best view is used.
 *
 * @param views Unit vectors of the picture's views.
 * @param entries The gallery.
 * @param wanted A label whose rank is asked for.
 * @throws If a list is empty or the wanted label is not in the gallery.
 */
export function retrieve(
  views: readonly ClipVector[],
  entries: readonly GalleryEntry[],
  wanted?: string,
): Retrieved {
  if (views.length === 0 || entries.length === 0) {
    throw cannot("retrieve", "a picture and a gallery", "nothing");
  }
  const scores = entries.map((entry) =>
    Math.max(...views.map((view) => cosine(view, entry.center)))
  );
  const best = scores.indexOf(Math.max(...scores));
  const result = { label: entries[best].label, cosine: scores[best] };
  if (wanted === undefined) return result;
  const at = entries.findIndex(({ label }) => label === wanted);
  if (at < 0) {
    throw cannot(
      "retrieve",
      entries.map(({ label }) => label).join(", "),
      wanted,
    );
  }
  // Ties count against the wanted label: a constant embedding is no success.
  const rank =
    scores.filter((score, i) => i !== at && score >= scores[at]).length + 1;
  return { ...result, rank };
}
