/**
 * What fusion is made of: features of the concepts' layers, their Gram matrices,
 * the least-squares problem of a layer, and the mergers of other articles.
 *
 * @example
 * ```ts
 * import { fedAvgWeights } from "@mix-of-show/mix-of-show/fusion";
 *
 * console.log(typeof fedAvgWeights);
 * ```
 *
 * @module
 */

export {
  type ConceptStatistics,
  conceptStatistics,
  type FeatureOptions,
  type FuseFeaturesRecord,
} from "../fusion/features.ts";
export type { FuseLayerRecord, FuseStage } from "../fusion/gradient.ts";
export { fusionMemory, type FusionPlan } from "../fusion/memory.ts";
export {
  type Delta,
  fuseLayer,
  type LayerSolution,
  type LayerTerm,
  type SolveOptions,
} from "../fusion/layer.ts";
export {
  iteris,
  iterisLayer,
  type IterisOptions,
  type IterisRecord,
  type IterisSolution,
  type IterisTerm,
} from "../fusion/iteris.ts";
export {
  captionGram,
  constrainedMerge,
  type ConstraintTerm,
  type Election,
  fedAvgWeights,
  type TiesOptions,
} from "../fusion/mergers.ts";
export {
  type AccumulateOptions,
  type Accuracy,
  collect,
  type CollectOptions,
  type Collector,
  collector,
  type NoiseOptions,
  noisyStatistics,
  readStatistics,
  type Stats,
  writeStatistics,
} from "../fusion/statistics.ts";
export { type Capacity, capacityOf, SD_CAPACITY } from "../fusion/capacity.ts";
