/**
 * The lab: training, fusing, drawing and scoring, each done once and kept under
 * the hash of what was asked for.
 *
 * @example
 * ```ts
 * import { withLab } from "@mix-of-show/mix-of-show/lab";
 *
 * console.log(typeof withLab);
 * ```
 *
 * @module
 */

export {
  type Embedded,
  type Fused,
  type Lab,
  type LabHashes,
  type LabOptions,
  type LabRecord,
  openLab,
  type PublishedFile,
  type References,
  type Stage,
  type Trained,
  withLab,
} from "../lab/lab.ts";
export {
  inPlace,
  localPool,
  NotInStore,
  nowhere,
  type Runner,
} from "../lab/runner.ts";
export { openQueue, type QueueRequest } from "../lab/open_queue.ts";
export type { QueueIdentity } from "../lab/queue_options.ts";
export {
  averagePublished,
  fusePublished,
  publish,
  type Published,
  type PublishOptions,
  readPublished,
} from "../lab/published.ts";
export type { Folders, Tell } from "../lab/run.ts";
export type {
  Ask,
  ComposeHow,
  ComposeSpec,
  DrawnPicture,
  DrawSpec,
  EmbedSpec,
  EvaluatorSpec,
  FusedLayer,
  FuseLog,
  FuseSpec,
  GradientSettings,
  HeldOutSpec,
  IterisSettings,
  JointPictures,
  LabSpec,
  MeasureSettings,
  MergeSettings,
  ModelRef,
  Noise,
  OwnPicture,
  OwnPictures,
  PictureSet,
  PublishLog,
  PublishSpec,
  ReferenceSpec,
  Sample,
  SamplingSettings,
  TextSpec,
  TrainLog,
  TrainSpec,
} from "../lab/specs.ts";
