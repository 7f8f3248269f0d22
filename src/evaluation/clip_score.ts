/**
 * The paper's two scores, on unit vectors of a CLIP: text alignment (CLIPScore,
 * Hessel et al. 2021, as Mix-of-Show's research branch computes it) and image
 * alignment.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { ClipVector } from "./clip.ts";

/**
 * The text before a caption when its text alignment is measured. A CLIP whose
 * vocabulary lacks these words is given another prefix, or none.
 */
export const CLIP_SCORE_PREFIX = "A photo depicts ";

/** Factor of CLIPScore. */
const CLIP_SCORE_WEIGHT = 2.5;

/**
 * The cosine of two unit vectors.
 *
 * @throws If their lengths differ.
 */
export function cosine(a: ClipVector, b: ClipVector): number {
  if (a.length !== b.length) {
    throw cannot("compare embeddings", `${a.length} numbers`, b.length);
  }
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/**
 * Text alignment of one picture: 2.5·max(cos, 0).
 *
 * @param image The picture.
 * @param text Its caption, prefixed and with the class word in the concept's
 * place.
 */
export function textAlignment(image: ClipVector, text: ClipVector): number {
  return CLIP_SCORE_WEIGHT * Math.max(0, cosine(image, text));
}

/**
 * Image alignment of one picture: the mean of max(cos, 0) over references. The
 * mean over pictures is the paper's mean over all pairs.
 *
 * @param image The picture.
 * @param references Pictures of the concept.
 * @throws If there are no references.
 *
 * @example
 * ```ts ignore
 * const scores = generated.map((image) => imageAlignment(image, references));
 * ```
 */
export function imageAlignment(
  image: ClipVector,
  references: readonly ClipVector[],
): number {
  if (references.length === 0) {
    throw cannot("measure image alignment", "references", "none");
  }
  return references.reduce(
    (sum, reference) => sum + Math.max(0, cosine(image, reference)),
    0,
  ) / references.length;
}
