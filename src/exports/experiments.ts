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
export {
  bytesTable,
  type CostNumbers,
  costReport,
  type CostSolver,
  type FeatureBytes,
  featureBytes,
  type FusionTime,
} from "../experiments/cost.ts";
export {
  type FederatedArm,
  type FederatedNumbers,
  federatedReport,
  type FederatedRow,
  federatedTable,
} from "../experiments/federated.ts";
export {
  type Fig4Numbers,
  fig4Report,
  type Fig4Row,
  fig4Table,
  type FusionStage,
} from "../experiments/fig4.ts";
export {
  type Fig7Arm,
  fig7Label,
  type Fig7Numbers,
  type Fig7Pair,
  fig7Report,
  type Fig7Row,
  fig7Table,
  pairTable,
} from "../experiments/fig7_table.ts";
export {
  type Fig10Numbers,
  fig10Report,
  type Fig10Row,
  fig10Table,
} from "../experiments/fig10.ts";
export {
  type MergeNumbers,
  mergeReport,
  type MergeRow,
  mergeTable,
  type Needs,
} from "../experiments/merge_table.ts";
export {
  fingerprint,
  type ResultNumbers,
  resultOf,
  type ResultOptions,
  type StoredResult,
} from "../experiments/stored.ts";
export {
  conceptTable,
  methodTable,
  PAPER_TABLE_1,
  type Table1Arm,
  type Table1Numbers,
  table1Report,
  type Table1Row,
} from "../experiments/table1_table.ts";
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
  type Headroom,
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
export { REGION_ARMS } from "../experiments/fig5/scenes.ts";
export { regionSheets } from "../experiments/fig5/sheets.ts";
export {
  readRegions,
  REGION_SCORES,
  type RegionCell,
  regionFigures,
  type RegionFinding,
  regionLabel,
  type RegionNumbers,
  type RegionRow,
  type RegionScore,
  type RegionScoreKind,
  type RegionSites,
  regionsReport,
  type RegionSummary,
  regionTable,
  resolutionTable,
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
  type ConceptSize,
  sweep,
  type SweepArm,
  type SweepPlan,
  type SweepRow,
} from "../experiments/sweep.ts";
export {
  bestLambdas,
  type SweepAxis,
  sweepFigures,
  sweepTable,
} from "../experiments/sweep_table.ts";
export {
  type OverfitArm,
  overfitLabel,
  overfitReport,
  type OverfitRow,
  overfitTable,
} from "../experiments/overfit_table.ts";
