/**
 * What scores are made of: galleries, crops, corruptions that test an evaluator,
 * means with intervals.
 *
 * @example
 * ```ts
 * import { mean, tInterval } from "@mix-of-show/mix-of-show/evaluation";
 *
 * console.log(mean([0.5, 0.7]), tInterval([0.5, 0.7, 0.6]));
 * ```
 *
 * @module
 */

export type { LoadClipOptions } from "../evaluation/clip.ts";
export { CLIP_SCORE_PREFIX, cosine } from "../evaluation/clip_score.ts";
export {
  squareAround,
  type WindowOptions,
  windows,
} from "../evaluation/crops.ts";
export {
  corrupt,
  type Corruption,
  CORRUPTIONS,
  type MaskedPicture,
} from "../evaluation/corruptions.ts";
export {
  type Embed,
  EVALUATOR_FLOORS,
  type TestedIdentity,
} from "../evaluation/evaluator_check.ts";
export { HELDOUT_TIMESTEPS } from "../evaluation/heldout.ts";
export { type Preprocess, preprocess } from "../evaluation/preprocess.ts";
export {
  centroid,
  gallery,
  type GalleryEntry,
  retrieve,
  type Retrieved,
} from "../evaluation/retrieval.ts";
export {
  type BootstrapOptions,
  type Estimate,
  hierarchicalBootstrap,
  mean,
  median,
  type Nested,
  type PairedDifference,
  pairedDifference,
  retainedShare,
  tInterval,
} from "../evaluation/statistics.ts";
