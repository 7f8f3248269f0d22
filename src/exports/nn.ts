/**
 * Layers, networks and samplers: trees of tensors, the functions that run them,
 * and adapters as more leaves in those trees.
 *
 * @example
 * ```ts
 * import { loadModel, selectBackend } from "@mix-of-show/mix-of-show";
 * import { parameterCount } from "@mix-of-show/mix-of-show/nn";
 *
 * await selectBackend("auto");
 * const model = await loadModel("models/micro");
 * console.log(parameterCount(model.unet.params));
 * ```
 *
 * @module
 */

export { checkpointed } from "../core/checkpoint.ts";
export type { CountedBackend, CountingOptions } from "../core/counting.ts";
export { type MemoryLimit, memoryLimit } from "../core/limits.ts";
export {
  configsOf,
  type MemoryNeed,
  type ModelConfigs,
} from "../models/blank.ts";
export { KeysError } from "../core/errors.ts";
export {
  createPool,
  type Handlers,
  hardwareWorkers,
  type JobOf,
  type JobOptions,
  type Moved,
  moved,
  type Pool,
  type PoolOptions,
  type ResultOf,
  serve,
} from "../core/pool.ts";
export {
  normal,
  permutation,
  type Stream,
  stream,
  uniform,
} from "../core/random.ts";
export {
  at,
  disposeTree,
  leaves,
  mapTree,
  parameterCount,
  type TreeLike,
  updateAt,
  valueAndGrads,
} from "../core/tree.ts";
export type {
  Attend,
  Attention,
  AttentionHooks,
  KeyValue,
} from "../nn/attention.ts";
export { KeyValues } from "../nn/attention.ts";
export type { Embedding } from "../nn/embedding.ts";
export type {
  Context,
  Conv,
  Dora,
  Dropout,
  Linear,
  LowRank,
  Spectrum,
} from "../nn/linear.ts";
export type { Norm } from "../nn/norm.ts";
export {
  type Init,
  initialise,
  type ParamKind,
  type ParamSpec,
  type Spec,
} from "../nn/spec.ts";
export type { AdamwState, Tensors } from "../optim/adamw.ts";
export type { Matrix } from "../optim/least_squares.ts";
export {
  type Autoencoder,
  type AutoencoderAttention,
  type AutoencoderMid,
  type AutoencoderOptions,
  autoencoderSpec,
  decode,
  downsampleFactor,
  drawLatent,
  encode,
  type Posterior,
} from "../models/autoencoder.ts";
export type { TensorSource } from "../models/checkpoint.ts";
export {
  type AutoencoderConfig,
  type ClipConfig,
  type CrossAttentionSite,
  crossAttentionSites,
  parseAutoencoderConfig,
  parseClipConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
  type PerLevel,
  type TextEncoderConfig,
  type TowerConfig,
  type UNetConfig,
  type VisionConfig,
} from "../models/config.ts";
export type {
  ConditionEmbedding,
  ControlNet,
  ControlNetConfig,
} from "../models/controlnet.ts";
export {
  type Clip,
  clipSpec,
  imageEmbedding,
  textEmbedding,
  type VisionModel,
} from "../models/image_encoder.ts";
export {
  type AddedTokens,
  bindPrompt,
  type BoundPrompt,
  promptStates,
} from "../models/model.ts";
export type {
  AdapterBlock,
  AdapterResnet,
  CombineOptions,
  T2IAdapter,
  T2IAdapterConfig,
} from "../models/t2i_adapter.ts";
export {
  type ClipLayer,
  type TextEncoder,
  textEncoder,
  type TextEncoderOptions,
  textEncoderSpec,
  type TextStates,
} from "../models/text_encoder.ts";
export {
  type Cleaning,
  createTokenizer,
  type Encoded,
  loadTokenizer,
  type Tokenizer,
  type TokenizerSpec,
} from "../models/tokenizer.ts";
export {
  type CrossAttentionCall,
  type DownBlock,
  type MidBlock,
  type Resnet,
  type SpatialTransformer,
  type TransformerBlock,
  type UNet,
  unet,
  type UNetOptions,
  unetSpec,
  type UpBlock,
} from "../models/unet.ts";
export {
  canny,
  type CannyOptions,
  conditionTensor,
  type Grey,
  greyOf,
  greyPixels,
  type KeyPoint,
  keyPointImage,
  type KeyPointOptions,
  maskImage,
} from "../diffusion/condition_images.ts";
export type {
  ConditionedSampling,
  ConditionNetwork,
} from "../diffusion/conditions.ts";
export type { GuidanceBranch } from "../diffusion/guidance.ts";
export {
  encodeImages,
  type InitLatents,
  initLatents,
} from "../diffusion/init.ts";
export { startStepOf } from "../diffusion/start_step.ts";
export {
  checkLayout,
  type CheckOptions,
  type LayoutBox,
  type LayoutCondition,
  type LayoutImage,
  type LayoutImageInput,
  layoutJsonSchema,
  type LayoutMask,
  type LayoutOption,
  layoutPictures,
  type LayoutRegion,
  layoutSeeds,
  layoutStrength,
  modelSize,
  type PreparedLayout,
  prepareLayout,
  type RegionSampler,
  type ResolvedCondition,
  type ResolvedLayout,
  type ResolveOptions,
  type Size,
} from "../diffusion/layout.ts";
export {
  decodeImages,
  type ImagesRecord,
  type StepRecord,
  type UNetCall,
} from "../diffusion/pipeline.ts";
export {
  type Cells,
  type RegionGrid,
  type RegionMapOptions,
  type RegionMaps,
  type RegionPart,
  type RegionScope,
  shapeMap,
  type ShapeOptions,
  type TextModel,
} from "../diffusion/regions.ts";
export {
  type ClipRule,
  type Combination,
  type Denoise,
  type Denoised,
  denoiser,
  type KeptLatent,
  type Level,
  plan,
  type PlanOptions,
  type Predict,
  sample,
  type SampleOptions,
  type SamplerCall,
  type SamplerPlan,
  type SamplerState,
  type SampleStep,
  sampleSteps,
} from "../diffusion/samplers.ts";
export {
  addNoise,
  type BetaSchedule,
  parseSchedulerConfig,
  type PredictionType,
  type Schedule,
  schedule,
  type SchedulerConfig,
  type TimestepSpacing,
} from "../diffusion/schedule.ts";
export {
  samplingMemory,
  type SamplingPlan,
} from "../diffusion/sampling_memory.ts";
export { conceptTensors, type Weights } from "../customize/concept.ts";
export { bucketSizes, encodeBuckets } from "../customize/dataset.ts";
export {
  joinData,
  type JointName,
  startJoint,
  type StartJointOptions,
} from "../customize/joint.ts";
export {
  initSpectral,
  type InitSpectralOptions,
} from "../customize/spectral.ts";
export type { Block } from "../customize/sites.ts";
export type { DoraWeighting } from "../customize/dora.ts";
export { trainingMemory, type TrainingPlan } from "../customize/memory.ts";
export {
  type Adaptable,
  assertFinite,
  attachedAdapters,
  type BlockWeights,
  blockWeights,
  delta,
  type LoraBasis,
  type LoraInit,
  rankOf,
  type ScaleRule,
  type Site,
  sites,
} from "../customize/lora.ts";
export {
  type Group,
  type Losses,
  RATE_SCHEDULES,
  type RateSchedule,
  type TrainBatch,
  trainingLoss,
  type Weighting,
} from "../customize/train.ts";
export { promptShares } from "../customize/composition.ts";
export { scaled } from "../customize/scale.ts";
