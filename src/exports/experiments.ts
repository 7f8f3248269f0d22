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
  type Experiment,
  type Outcome,
  type Plan,
  planOf,
  type Scale,
  type Scaled,
} from "../experiments/experiment.ts";
export type {
  FlagType,
  Option,
  OptionTable,
  OptionType,
  ValueOf,
  Values,
} from "../core/options.ts";
export { EXPERIMENTS } from "../experiments/registry.ts";
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
} from "../experiments/table2/table.ts";
export {
  type AblationNumbers,
  type AblationReport,
  type Arm,
  type LayerFit,
  readAblation,
  type ScoreRow,
  type Scores,
} from "../experiments/table2/json.ts";
export {
  type EvaluatorOutcome,
  testEvaluator,
} from "../experiments/evaluator.ts";
export {
  checkOther,
  type Evaluation,
  evaluationTable,
} from "../experiments/evaluators.ts";
export {
  type Domain,
  domainLabel,
  type DomainMethod,
  type DomainReport,
  domainReport,
  type DomainRow,
  domainTable,
  type EmbeddingShare,
  shareTable,
} from "../experiments/fig3.ts";
export {
  REGION_SCORES,
  type RegionFinding,
  type RegionRow,
  type RegionScore,
  type RegionScoreKind,
} from "../experiments/fig5/score.ts";
export { REGION_ARMS } from "../experiments/fig5/scenes.ts";
export { regionSheets } from "../experiments/fig5/sheets.ts";
export {
  readRegions,
  type RegionCell,
  regionFigures,
  regionLabel,
  type RegionNumbers,
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
export { conceptPictures } from "../experiments/pictures.ts";
export {
  type EmbeddingName,
  type ExperimentPreset,
  PRESETS,
  type SettingName,
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
  sweep,
  type SweepArm,
  type SweepPlan,
  type SweepRow,
} from "../experiments/sweep.ts";
export { bestLambdas, sweepTable } from "../experiments/sweep_table.ts";
export {
  type OverfitArm,
  overfitLabel,
  overfitReport,
  type OverfitRow,
  overfitTable,
} from "../experiments/overfit_table.ts";
