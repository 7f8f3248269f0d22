/**
 * The paper's experiments, a program per table or figure.
 *
 * @example
 * ```ts
 * import { PAPER_TABLE_2 } from "@mix-of-show/mix-of-show/experiments";
 *
 * console.log(PAPER_TABLE_2);
 * ```
 *
 * @module
 */

export {
  ablation,
  finishedSeeds,
  FUSIONS,
  type PictureRow,
  pictureRows,
  table2,
} from "../experiments/ablation.ts";
export type {
  AblationNumbers,
  AblationPictures,
  AblationPlan,
  AblationRecord,
  FusionName,
} from "../experiments/ablation_plan.ts";
export {
  ablationFigures,
  ablationTable,
  armLabel,
  armsOf,
  comparisonTable,
  conceptFigure,
  fusionLossFigure,
  PAPER_TABLE_2,
  scoreFigure,
  tradeFigure,
  trainingFigure,
} from "../experiments/ablation_figures.ts";
export {
  type AblationReport,
  ablationSchema,
  type Arm,
  type Comparison,
  type LayerFit,
  type Maybe,
  type PairCosines,
  type ScoreEstimate,
  type ScoreName,
  type ScoreRow,
  type Scores,
  type Verdict,
} from "../experiments/ablation_schema.ts";
export {
  evaluate,
  type Evaluation,
  planOf,
} from "../experiments/evaluators.ts";
export {
  type Domain,
  type DomainMethod,
  type DomainPictures,
  type DomainPlan,
  type DomainReport,
  type DomainRow,
  type EmbeddingShare,
  fig3,
} from "../experiments/fig3.ts";
export { domainTable, shareTable } from "../experiments/fig3_table.ts";
export {
  COMPARED_SCORES,
  type ComparedScore,
  REGION_SCORES,
  type RegionFinding,
  type RegionRow,
  type RegionScore,
} from "../experiments/fig5/judge.ts";
export { fig5, type RegionPlan } from "../experiments/fig5/run.ts";
export { REGION_ARMS, type RegionSites } from "../experiments/fig5/scenes.ts";
export {
  type RegionCell,
  type RegionComparison,
  regionComparisonTable,
  type RegionDifference,
  regionFigures,
  regionLabel,
  type RegionReport,
  regionTable,
  regionTimingTable,
  resolutionTable,
} from "../experiments/fig5/table.ts";
export type { RegionTiming, TimedPart } from "../experiments/fig5/timing.ts";
export type { Capacity } from "../experiments/measure.ts";
export {
  type MeasureRecord,
  type MicroNumbers,
  type MicroPictures,
  microReport,
  type MicroReportOptions,
  microTargets,
  type Target,
} from "../experiments/micro_report.ts";
export {
  type EmbeddingName,
  type ExperimentPreset,
  presetOf,
  PRESETS,
} from "../experiments/presets.ts";
export type { Cell, Drawn, Scorer } from "../experiments/scorer.ts";
export { type Subject, subjects } from "../experiments/subjects.ts";
export {
  bestLambdas,
  sweep,
  type SweepArm,
  type SweepPlan,
  type SweepRow,
} from "../experiments/sweeps.ts";
