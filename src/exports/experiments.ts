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
  type AblationNumbers,
  finishedSeeds,
} from "../experiments/ablation.ts";
export {
  type AblationPictures,
  type AblationPlan,
  type AblationRecord,
  type FusionName,
  FUSIONS,
  table2,
} from "../experiments/table2.ts";
export {
  ablationReport,
  ablationTable,
  armLabel,
  armsOf,
  conceptFigure,
  fusionLossFigure,
  PAPER_TABLE_2,
  scoreFigure,
  tradeFigure,
  trainingFigure,
} from "../experiments/ablation_table.ts";
export {
  type AblationReport,
  ablationSchema,
  type Arm,
  type LayerFit,
  type ScoreRow,
  type Scores,
} from "../experiments/ablation_json.ts";
export {
  type EvaluatorOutcome,
  testEvaluator,
} from "../experiments/evaluator.ts";
export {
  checkOther,
  evaluate,
  type Evaluation,
  evaluationTable,
  planOf,
} from "../experiments/evaluators.ts";
export {
  type Domain,
  domainLabel,
  type DomainMethod,
  type DomainPlan,
  type DomainReport,
  domainReport,
  type DomainRow,
  domainTable,
  type EmbeddingShare,
  fig3,
  shareTable,
} from "../experiments/fig3.ts";
export {
  REGION_SCORES,
  type RegionFinding,
  type RegionRow,
  type RegionScore,
  type RegionScoreKind,
} from "../experiments/fig5/score.ts";
export { fig5, type RegionPlan } from "../experiments/fig5/run.ts";
export { REGION_ARMS } from "../experiments/fig5/scenes.ts";
export { regionSheets } from "../experiments/fig5/sheets.ts";
export {
  readRegions,
  type RegionCell,
  regionFigures,
  regionLabel,
  type RegionReport,
  type RegionSites,
  regionsReport,
  type RegionSummary,
  regionTable,
  type RegionTiming,
  regionTimingTable,
  resolutionTable,
  type TimedPart,
} from "../experiments/fig5/table.ts";
export {
  conceptSheet,
  type PictureRow,
  pictureRows,
} from "../experiments/pictures.ts";
export {
  type EmbeddingName,
  type ExperimentPreset,
  presetOf,
  PRESETS,
} from "../experiments/presets.ts";
export type {
  Cell,
  ConceptScores,
  Drawn,
  ScoreName,
  Scorer,
} from "../experiments/scores.ts";
export { type Subject, subjects } from "../experiments/subjects.ts";
export {
  bestLambdas,
  sweep,
  type SweepArm,
  type SweepPlan,
  type SweepRow,
  sweepTable,
} from "../experiments/sweeps.ts";
export {
  overfit,
  type OverfitArm,
  overfitLabel,
  type OverfitPlan,
  overfitReport,
  type OverfitRow,
  overfitTable,
} from "../experiments/overfit.ts";
