/**
 * Mix-of-Show in TypeScript: teach a diffusion model several concepts, each
 * trained by someone else, and fuse them into one model that still knows every
 * one of them (Gu et al., NeurIPS 2023, https://arxiv.org/abs/2305.18292).
 *
 * A network is a tree of tensors and a function; an adapter is more leaves in
 * that tree; a fused model has the type of the model it came from. Choose a
 * backend, load a {@linkcode Model}, and go on from there.
 *
 * @example
 * ```ts
 * import { encodePng, generate, loadModel, selectBackend } from "./mod.ts";
 *
 * await selectBackend("auto");
 * const model = await loadModel("models/micro");
 * const [picture] = await generate(model, { prompts: ["a red fox"] });
 * await Deno.writeFile("fox.png", encodePng(picture));
 * ```
 *
 * @module
 */

// The machine: backend, trees of tensors, random keys, workers.
export {
  type BackendChoice,
  type BackendInfo,
  type BackendName,
  selectBackend,
  type SelectBackendOptions,
} from "./src/core/backend.ts";
export { KeysError } from "./src/core/errors.ts";
export { finish } from "./src/core/finish.ts";
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
} from "./src/core/pool.ts";
export {
  fold,
  type Key,
  key,
  normal,
  permutation,
  type Stream,
  stream,
  uniform,
} from "./src/core/random.ts";
export {
  at,
  disposeTree,
  leaves,
  mapTree,
  parameterCount,
  type TreeLike,
  updateAt,
  valueAndGrads,
} from "./src/core/tree.ts";

// Bytes in and out: safetensors, pickles of plain tensors, pictures, the hub.
export {
  exists,
  type FileContent,
  joinPath,
  readJson,
  type Schema,
  writeAtomic,
  writeJson,
} from "./src/io/files.ts";
export type { ComponentOptions } from "./src/io/folder.ts";
export {
  type HubEvent,
  type HubOptions,
  type HubSpec,
  parseHubSpec,
  resolveModel,
} from "./src/io/hub.ts";
export { decodeJpeg } from "./src/io/jpeg.ts";
export { fitMask, maskOf } from "./src/io/mask.ts";
export {
  openPickle,
  openTensors,
  type PickleFile,
  type PickleTensor,
  type PickleValue,
} from "./src/formats/pickle.ts";
export { decodePicture, listPictures, readPicture } from "./src/io/picture.ts";
export { decodePng, encodePng, type Pixels } from "./src/io/png.ts";
export {
  BACKGROUND,
  type Box as PixelBox,
  type Colour,
  crop,
  type Filter,
  flatten,
  isTransparent,
  parseColour,
  resize,
  square,
} from "./src/io/resize.ts";
export { decodeWebp } from "./src/io/webp.ts";
export {
  type DType,
  type LazyTensor,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
  toFloat32,
  writeSafetensors,
} from "./src/io/safetensors.ts";

// Layers and parameters.
export type { Attend, Attention, AttentionHooks } from "./src/nn/attention.ts";
export type { Embedding } from "./src/nn/embedding.ts";
export type { Context, Conv, Dora, Linear, LowRank } from "./src/nn/linear.ts";
export type { Norm } from "./src/nn/norm.ts";
export {
  type Init,
  initialise,
  type ParamKind,
  type ParamSpec,
  type Spec,
} from "./src/nn/spec.ts";
export type { AdamwState, Tensors } from "./src/optim/adamw.ts";
export type { Matrix } from "./src/optim/least_squares.ts";

// Models: text encoder, UNet, autoencoder, tokenizer, adapters; their files.
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
} from "./src/models/autoencoder.ts";
export type { TensorSource } from "./src/models/checkpoint.ts";
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
} from "./src/models/config.ts";
export {
  type ConditionEmbedding,
  type ControlNet,
  type ControlNetConfig,
  loadControlNet,
} from "./src/models/controlnet.ts";
export {
  type Clip,
  clipSpec,
  imageEmbedding,
  textEmbedding,
  type VisionModel,
} from "./src/models/image_encoder.ts";
export {
  loadNetworks,
  type LoadNetworksOptions,
  loadPart,
  loadSingleFile,
  type LoadSingleFileOptions,
  type Networks,
  saveSingleFile,
  type SaveSingleFileOptions,
} from "./src/formats/ldm.ts";
export {
  describeLdm,
  type LdmDescription,
  type LdmHeader,
  type LdmOverrides,
} from "./src/formats/ldm_config.ts";
export type {
  LdmComponent,
  LdmConfigs,
  LdmLayout,
  LdmPrediction,
} from "./src/formats/ldm_names.ts";
export {
  type AddedTokens,
  bindPrompt,
  type BoundPrompt,
  disposeModel,
  loadModel,
  type Model,
  type ModelParts,
  type Network,
  promptStates,
  saveModel,
} from "./src/models/model.ts";
export {
  type AdapterBlock,
  type AdapterResnet,
  type CombineOptions,
  loadT2IAdapter,
  type T2IAdapter,
  type T2IAdapterConfig,
} from "./src/models/t2i_adapter.ts";
export {
  type ClipLayer,
  type TextEncoder,
  textEncoder,
  type TextEncoderOptions,
  textEncoderSpec,
  type TextStates,
} from "./src/models/text_encoder.ts";
export {
  type Cleaning,
  createTokenizer,
  type Encoded,
  loadTokenizer,
  type Tokenizer,
  type TokenizerSpec,
} from "./src/models/tokenizer.ts";
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
} from "./src/models/unet.ts";

// Sampling: pipeline, samplers, regions, conditions, layouts.
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
} from "./src/diffusion/condition_images.ts";
export {
  type Condition,
  type ConditionedSampling,
  conditionedSampling,
  type ConditionNetwork,
} from "./src/diffusion/conditions.ts";
export type { GuidanceBranch } from "./src/diffusion/guidance.ts";
export {
  checkLayout,
  type CheckOptions,
  drawLayout,
  type DrawOptions,
  type Layout,
  type LayoutBox,
  type LayoutCondition,
  type LayoutImage,
  type LayoutImageInput,
  type LayoutInput,
  layoutJsonSchema,
  type LayoutMask,
  type LayoutOption,
  type LayoutRegion,
  modelSize,
  parseLayout,
  type PreparedLayout,
  prepareLayout,
  readLayout,
  type RegionSampler,
  type ResolvedCondition,
  type ResolvedLayout,
  resolveLayout,
  type ResolveOptions,
  type Size,
} from "./src/diffusion/layout.ts";
export {
  decodeImages,
  generate,
  type ImagesRecord,
  pipeline,
  type PipelineOptions,
  type PipelineRecord,
  type StepRecord,
  toPixels,
  type UNetCall,
} from "./src/diffusion/pipeline.ts";
export {
  type Box,
  type Cells,
  type Mask,
  type Place,
  type RegionalOptions,
  type RegionalSampling,
  regionalSampling,
  type RegionGrid,
  type RegionMapOptions,
  type RegionMaps,
  type RegionPart,
  type RegionPrompt,
  type RegionScope,
  type Shape,
  shapeMap,
  type ShapeOptions,
  type TextModel,
} from "./src/diffusion/regions.ts";
export {
  type ClipRule,
  type Combination,
  type Denoise,
  type Denoised,
  denoiser,
  type Level,
  plan,
  type PlanOptions,
  type Predict,
  sample,
  type SampleOptions,
  type SamplerCall,
  type SamplerName,
  type SamplerPlan,
  SAMPLERS,
  type SamplerState,
  type SampleStep,
  sampleSteps,
} from "./src/diffusion/samplers.ts";
export {
  addNoise,
  type BetaSchedule,
  parseSchedulerConfig,
  type PredictionType,
  type Schedule,
  schedule,
  type SchedulerConfig,
  type TimestepSpacing,
} from "./src/diffusion/schedule.ts";

// Concepts: adapters, learned tokens, training, file formats.
export {
  addTokens,
  attachConcept,
  type Concept,
  conceptPhrase,
  conceptTensors,
  type ConceptToken,
  disposeConcept,
  initConcept,
  type InitConceptOptions,
  releaseTokens,
  type TokenInit,
} from "./src/customize/concept.ts";
export { loadConcept, saveConcept } from "./src/formats/concept_file.ts";
export type { DoraWeighting } from "./src/customize/dora.ts";
export {
  type ConvertedLora,
  convertLora,
  type ConvertLoraOptions,
  type FindLoraOptions,
  inspectLora,
  type LoraSummary,
} from "./src/formats/convert.ts";
export { fillCaption } from "./src/customize/captions.ts";
export {
  encodeData,
  type EncodeOptions,
  type Example,
  readExamples,
  type ReadExamplesOptions,
  type TrainData,
} from "./src/customize/dataset.ts";
export {
  layersOf,
  type LoraBase,
  loraBase,
  type LoraBaseName,
  type LoraLayers,
} from "./src/formats/dialects/base.ts";
export type {
  LayerNames,
  LoraFaults,
  LoraHeader,
  Part,
  Present,
  TokenNames,
  TokenRows,
} from "./src/formats/dialects/dialect.ts";
export type { PeftConfigs } from "./src/formats/dialects/peft_config.ts";
export {
  type Adaptable,
  type Adapter,
  assertFinite,
  attach,
  attachedAdapters,
  type AttachOptions,
  type BlockWeights,
  blockWeights,
  type Component,
  delta,
  detach,
  disposeAdapter,
  initLora,
  type InitLoraOptions,
  type LoraBasis,
  type LoraInit,
  merge,
  rankOf,
  type ScaleRule,
  setWeights,
  type Site,
  sites,
  type TargetName,
  type Targets,
  targets,
  type Weight,
} from "./src/customize/lora.ts";
export {
  loraConcept,
  type LoraConceptOptions,
} from "./src/formats/lora_concept.ts";
export {
  type ForeignKind,
  foreignKind,
  type TensorHeader,
} from "./src/formats/kinds.ts";
export type { Algorithm, LycorisPart } from "./src/formats/lycoris.ts";
export {
  detectDialect,
  type Dialect,
  type DialectId,
  DIALECTS,
  disposeLora,
  type LayerAlgorithm,
  loadLora,
  type LoraFile,
  type LoraSource,
  type PeftConfig,
  readLora,
  type ReadLoraOptions,
  type ScaleSource,
} from "./src/formats/lora.ts";
export {
  type EncodedLora,
  encodeLora,
  loraBytes,
  type LoraContent,
  saveLora,
  savePeftFolder,
  type WriteLoraOptions,
} from "./src/formats/lora_write.ts";
export {
  type ExtractedLayer,
  type ExtractedLora,
  extractLora,
  type ExtractLoraOptions,
  type LostChange,
} from "./src/formats/extract.ts";
export {
  type Method,
  method,
  type MethodName,
  METHODS,
  type Preset,
  startConcept,
  type StartConceptOptions,
} from "./src/customize/methods.ts";
export {
  type AdapterRegion,
  type AdapterSampling,
  type CompositionOptions,
  loraComposite,
  loraSwitch,
  type RegionAdapterOptions,
  regionAdapters,
} from "./src/customize/region_adapters.ts";
export {
  conceptOf,
  customize,
  type CustomizeOptions,
  type Group,
  loadTrainState,
  type LossConfig,
  type Losses,
  saveTrainState,
  train,
  type TrainBatch,
  type TrainConfig,
  trainingLoss,
  type TrainOptions,
  type TrainRecord,
  type TrainState,
  type Weighting,
} from "./src/customize/train.ts";

// Fusion.
export {
  type ConceptStatistics,
  conceptStatistics,
  type FeatureOptions,
  type FuseFeaturesRecord,
} from "./src/fusion/features.ts";
export {
  fuse,
  type FuseLayerRecord,
  type FuseOptions,
  type FuseRecord,
  type FuseStage,
} from "./src/fusion/gradient.ts";
export {
  type Delta,
  fuseLayer,
  type LayerSolution,
  type LayerTerm,
  type SolveOptions,
} from "./src/fusion/layer.ts";
export {
  constrainedMerge,
  type ConstraintTerm,
  type Election,
  fedAvgWeights,
  MERGE_METHODS,
  mergeConcepts,
  type MergeMethod,
  type MergeOptions,
  type TiesOptions,
} from "./src/fusion/mergers.ts";
export {
  type AccumulateOptions,
  type Accuracy,
  collect,
  type CollectOptions,
  type Collector,
  collector,
  readStatistics,
  type Stats,
  writeStatistics,
} from "./src/fusion/statistics.ts";
export {
  type Strength,
  weightFusion,
  type WeightFusionOptions,
} from "./src/fusion/weight.ts";

// Scores.
export {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
  type LoadClipOptions,
} from "./src/evaluation/clip.ts";
export {
  CLIP_SCORE_PREFIX,
  cosine,
  imageAlignment,
  textAlignment,
} from "./src/evaluation/clip_score.ts";
export {
  squareAround,
  type WindowOptions,
  windows,
} from "./src/evaluation/crops.ts";
export {
  corrupt,
  type Corruption,
  CORRUPTIONS,
  type MaskedPicture,
} from "./src/evaluation/corruptions.ts";
export {
  type Claim,
  compare,
  type Comparison,
  comparisonTable,
  type Verdict,
  verdictOf,
} from "./src/evaluation/compare.ts";
export type { PairCosines } from "./src/evaluation/concept_cosines.ts";
export type { Evaluator } from "./src/evaluation/evaluator.ts";
export {
  checkEvaluator,
  type Embed,
  EVALUATOR_FLOORS,
  type EvaluatorCheck,
  type EvaluatorSet,
  type TestedIdentity,
} from "./src/evaluation/evaluator_check.ts";
export {
  HELDOUT_TIMESTEPS,
  type HeldOutError,
  heldOutError,
  type HeldOutOptions,
  keptShare,
} from "./src/evaluation/heldout.ts";
export type { PromptSyntax } from "./src/models/prompts.ts";
export { type Preprocess, preprocess } from "./src/evaluation/preprocess.ts";
export {
  centroid,
  gallery,
  type GalleryEntry,
  retrieve,
  type Retrieved,
} from "./src/evaluation/retrieval.ts";
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
} from "./src/evaluation/statistics.ts";

// The embedded world.
export { type Art, loadArt, type Sprite } from "./src/micro/art.ts";
export {
  captionOf,
  type CaptionOptions,
  captionScene,
} from "./src/micro/captions.ts";
export {
  type ConceptImage,
  conceptImage,
  conceptImages,
  type FrameSet,
  identityOf,
  loadConceptArt,
} from "./src/micro/concepts.ts";
export {
  type ConceptPrompts,
  loadPrompts,
  type Prompt,
  type PROMPT_GROUPS,
  type PromptFacts,
  type PromptGroup,
  promptText,
} from "./src/micro/prompts.ts";
export {
  heldOutScene,
  type Place as ScenePlace,
  renderScene,
  sampleScene,
  type SampleSceneOptions,
  type Scene,
  type SceneObject,
  trainScene,
} from "./src/micro/scenes.ts";
export {
  type Background,
  type Color,
  type Design,
  IDENTITIES,
  type Identity,
  type Noun,
  NOUNS,
  type PLACES,
  WORLD,
  type World,
} from "./src/micro/world.ts";

export type { Capacity } from "./src/fusion/capacity.ts";
export { bestOrder, type Found, identify } from "./src/evaluation/regions.ts";

// The lab: memoised training, fusing, drawing, scoring.
export {
  type Embedded,
  type Fused,
  type Lab,
  type LabOptions,
  type LabRecord,
  openLab,
  type References,
  type Stage,
  type Trained,
  withLab,
} from "./src/lab/lab.ts";
export {
  inPlace,
  localPool,
  NotInStore,
  nowhere,
  type Runner,
} from "./src/lab/runner.ts";
export type { Folders, Tell } from "./src/lab/run.ts";
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
  LabSpec,
  ModelRef,
  Noise,
  PictureSet,
  ReferenceSpec,
  Sample,
  SamplingSettings,
  SketchObject,
  TextSpec,
  TrainLog,
  TrainSpec,
} from "./src/lab/specs.ts";

// The paper's experiments.
export {
  ablation,
  type AblationNumbers,
  finishedSeeds,
} from "./src/experiments/ablation.ts";
export {
  type AblationPictures,
  type AblationPlan,
  type AblationRecord,
  type FusionName,
  FUSIONS,
  table2,
} from "./src/experiments/table2.ts";
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
} from "./src/experiments/ablation_table.ts";
export {
  type AblationReport,
  ablationSchema,
  type Arm,
  type LayerFit,
  type ScoreRow,
  type Scores,
} from "./src/experiments/ablation_json.ts";
export {
  type EvaluatorOutcome,
  testEvaluator,
} from "./src/experiments/evaluator.ts";
export {
  checkOther,
  evaluate,
  type Evaluation,
  evaluationTable,
  planOf,
} from "./src/experiments/evaluators.ts";
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
} from "./src/experiments/fig3.ts";
export {
  REGION_SCORES,
  type RegionFinding,
  type RegionRow,
  type RegionScore,
} from "./src/experiments/fig5/score.ts";
export { fig5, type RegionPlan } from "./src/experiments/fig5/run.ts";
export { REGION_ARMS } from "./src/experiments/fig5/scenes.ts";
export { regionSheets } from "./src/experiments/fig5/sheets.ts";
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
} from "./src/experiments/fig5/table.ts";
export {
  type MeasureRecord,
  type MicroNumbers,
  type MicroPictures,
  microReport,
  type MicroReportOptions,
  microTargets,
  type Target,
} from "./src/experiments/micro_report.ts";
export {
  conceptSheet,
  type PictureRow,
  pictureRows,
} from "./src/experiments/pictures.ts";
export {
  type EmbeddingName,
  type ExperimentPreset,
  presetOf,
  PRESETS,
} from "./src/experiments/presets.ts";
export type {
  Cell,
  ConceptScores,
  Drawn,
  ScoreName,
  Scorer,
} from "./src/experiments/scores.ts";
export { type Subject, subjects } from "./src/experiments/subjects.ts";
export {
  bestLambdas,
  sweep,
  type SweepArm,
  type SweepPlan,
  type SweepRow,
  sweepTable,
} from "./src/experiments/sweeps.ts";

// Tables, charts and sheets for reports and notebooks.
export {
  type Part as ReportPart,
  type Report,
  reportHtml,
  reportMarkdown,
  writeReport,
} from "./src/report/document.ts";
export {
  type Figure,
  plot,
  type PlotOptions,
  type Series,
} from "./src/report/figure.ts";
export {
  change,
  decimal,
  duration,
  type Interval,
  interval,
  type Maybe,
  percent,
  range,
  signed,
} from "./src/report/format.ts";
export { renderFigure, type RenderOptions } from "./src/report/chart.ts";
export {
  contactSheet,
  type ContactSheetOptions,
  type Sheet,
  sheetPixels,
} from "./src/report/grid.ts";
export {
  type Column,
  markdownTable,
  type Table,
  tableOf,
  textTable,
} from "./src/report/table.ts";
export {
  type Displayable,
  type MimeBundle,
  showFigure,
  showPicture,
  showTable,
} from "./src/report/notebook.ts";
