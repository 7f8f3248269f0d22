/**
 * Mix-of-Show in TypeScript: train several concepts of a diffusion model, each
 * by itself, and fuse them into one model that knows all of them (Gu et al.,
 * NeurIPS 2023, https://arxiv.org/abs/2305.18292).
 *
 * A network is a tree of tensors and a function. An adapter adds leaves to that
 * tree. A fused model has the type of its base model. Start with a backend
 * ({@linkcode selectBackend}) and a {@linkcode Model}.
 *
 * @example
 * ```ts
 * import { encodePng, generate, loadModel, selectBackend } from "@mix-of-show/mix-of-show";
 *
 * await selectBackend("auto");
 * const model = await loadModel();
 * const [picture] = await generate(model, { prompts: ["a red fox"] });
 * await Deno.writeFile("fox.png", encodePng(picture));
 * ```
 *
 * @module
 */

export {
  type BackendChoice,
  type BackendInfo,
  type BackendName,
  selectBackend,
  type SelectBackendOptions,
} from "./src/core/backend.ts";
export { finish } from "./src/core/finish.ts";
export { fold, type Key, key } from "./src/core/random.ts";
export type { FileSource, FileTarget } from "./src/io/source.ts";
export { type HubEvent, type HubOptions, resolveModel } from "./src/io/hub.ts";
export { decodePicture, listPictures, readPicture } from "./src/io/picture.ts";
export { encodePng, type Pixels } from "./src/io/png.ts";
export { loadControlNet } from "./src/models/controlnet.ts";
export {
  loadSingleFile,
  type LoadSingleFileOptions,
  saveSingleFile,
  type SaveSingleFileOptions,
} from "./src/formats/ldm.ts";
export { loadModel } from "./src/formats/load_model.ts";
export { embeddedModel } from "./src/models/embedded.ts";
export {
  disposeModel,
  type Model,
  type ModelParts,
  type Network,
  saveModel,
} from "./src/models/model.ts";
export { loadT2IAdapter } from "./src/models/t2i_adapter.ts";
export {
  type Condition,
  conditionedSampling,
} from "./src/diffusion/conditions.ts";
export {
  drawLayout,
  type DrawOptions,
  type Layout,
  type LayoutInput,
  parseLayout,
  readLayout,
  resolveLayout,
} from "./src/diffusion/layout.ts";
export {
  generate,
  pipeline,
  type PipelineOptions,
  type PipelineRecord,
  toPixels,
} from "./src/diffusion/pipeline.ts";
export {
  type Box,
  type Mask,
  type Place,
  type RegionalOptions,
  type RegionalSampling,
  regionalSampling,
  type RegionPrompt,
  type Shape,
} from "./src/diffusion/regions.ts";
export { type SamplerName, SAMPLERS } from "./src/diffusion/samplers.ts";
export {
  addTokens,
  attachConcept,
  type Concept,
  conceptPhrase,
  type ConceptToken,
  disposeConcept,
  initConcept,
  type InitConceptOptions,
  releaseTokens,
  type TokenInit,
} from "./src/customize/concept.ts";
export {
  loadConcept,
  saveConcept,
  type SaveConceptOptions,
} from "./src/formats/concept_file.ts";
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
  type Adapter,
  attach,
  type AttachOptions,
  type Component,
  detach,
  disposeAdapter,
  initLora,
  type InitLoraOptions,
  merge,
  setWeights,
  type TargetName,
  type Targets,
  targets,
  type Weight,
} from "./src/customize/lora.ts";
export {
  loraConcept,
  type LoraConceptOptions,
} from "./src/formats/lora_concept.ts";
export { disposeLora, loadLora, type LoraFile } from "./src/formats/lora.ts";
export { type LoraContent, saveLora } from "./src/formats/lora_write.ts";
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
  type CompositionOptions,
  loraComposite,
  loraSwitch,
} from "./src/customize/composition.ts";
export {
  type AdapterRegion,
  type AdapterSampling,
  type RegionAdapterOptions,
  regionAdapters,
} from "./src/customize/region_adapters.ts";
export {
  conceptOf,
  customize,
  type CustomizeOptions,
  loadTrainState,
  type LossConfig,
  type Memory,
  saveTrainState,
  train,
  type TrainConfig,
  type TrainOptions,
  type TrainRecord,
  type TrainState,
} from "./src/customize/train.ts";
export {
  fuse,
  type FuseOptions,
  type FuseRecord,
} from "./src/fusion/gradient.ts";
export {
  MERGE_METHODS,
  mergeConcepts,
  type MergeMethod,
  type MergeOptions,
} from "./src/fusion/mergers.ts";
export {
  type Strength,
  weightFusion,
  type WeightFusionOptions,
} from "./src/fusion/weight.ts";
export {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "./src/evaluation/clip.ts";
export { imageAlignment, textAlignment } from "./src/evaluation/clip_score.ts";
export type { Evaluator } from "./src/evaluation/evaluator.ts";
export {
  checkEvaluator,
  type EvaluatorCheck,
  type EvaluatorSet,
} from "./src/evaluation/evaluator_check.ts";
export {
  type HeldOutError,
  heldOutError,
  type HeldOutOptions,
  keptShare,
} from "./src/evaluation/heldout.ts";
export type { PromptSyntax } from "./src/models/prompts.ts";
