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
export type { Folders, Tell } from "../lab/run.ts";
export type {
  Ask,
  ComposeHow,
  ComposeSpec,
  DrawnPicture,
  DrawSpec,
  EmbedSpec,
  FusedLayer,
  FuseLog,
  FuseSpec,
  GradientSettings,
  HeldOutSpec,
  LabSpec,
  ModelRef,
  Noise,
  OwnPicture,
  OwnPictures,
  PictureSet,
  ReferenceSpec,
  Sample,
  SamplingSettings,
  SketchObject,
  TextSpec,
  TrainLog,
  TrainSpec,
} from "../lab/specs.ts";
