/**
 * Files: safetensors and pickles, Stable Diffusion's single files, LoRA files of
 * every dialect, concepts, pictures.
 *
 * @example
 * ```ts
 * import { inspectLora } from "@mix-of-show/mix-of-show/formats";
 *
 * console.log(typeof inspectLora);
 * ```
 *
 * @module
 */

export {
  exists,
  type FileContent,
  joinPath,
  readJson,
  type Schema,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
export {
  layoutIn,
  parametersText,
  type PictureSettings,
  withSettings,
} from "../diffusion/picture_settings.ts";
export type { ComponentOptions, FolderSource } from "../io/folder.ts";
export type { LoadModelOptions } from "../formats/load_model.ts";
export { type HubSpec, parseHubSpec } from "../io/hub.ts";
export { decodeJpeg } from "../io/jpeg.ts";
export { fitMask, maskOf } from "../io/mask.ts";
export {
  openPickle,
  openTensors,
  type PickleFile,
  type PickleTensor,
  type PickleValue,
} from "../formats/pickle.ts";
export { decodePng } from "../io/png.ts";
export { textsOf, withTexts } from "../io/png_text.ts";
export {
  BACKGROUND,
  type Colour,
  crop,
  type Filter,
  flatten,
  isTransparent,
  parseColour,
  type PixelBox,
  resize,
  square,
} from "../io/resize.ts";
export { decodeWebp } from "../io/webp.ts";
export {
  type DType,
  type LazyTensor,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
export {
  loadNetworks,
  type LoadNetworksOptions,
  loadPart,
  type Networks,
} from "../formats/ldm.ts";
export {
  describeLdm,
  type LdmDescription,
  type LdmHeader,
  type LdmOverrides,
} from "../formats/ldm_config.ts";
export type {
  LdmComponent,
  LdmConfigs,
  LdmLayout,
  LdmPrediction,
} from "../formats/ldm_names.ts";
export {
  type ConvertedLora,
  convertLora,
  type ConvertLoraOptions,
  type FindLoraOptions,
  inspectLora,
  type LoraSummary,
} from "../formats/convert.ts";
export {
  layersOf,
  type LoraBase,
  loraBase,
  type LoraBaseName,
  type LoraLayers,
} from "../formats/dialects/base.ts";
export type {
  LayerNames,
  LoraFaults,
  LoraHeader,
  Part,
  Present,
  TokenNames,
  TokenRows,
} from "../formats/dialects/dialect.ts";
export type { PeftConfigs } from "../formats/dialects/peft_config.ts";
export {
  type ForeignKind,
  foreignKind,
  type TensorHeader,
} from "../formats/kinds.ts";
export type { Algorithm, LycorisPart } from "../formats/lycoris.ts";
export {
  detectDialect,
  type Dialect,
  type DialectId,
  DIALECTS,
  type LayerAlgorithm,
  type LoraSource,
  type PeftConfig,
  readLora,
  type ReadLoraOptions,
  type ScaleSource,
} from "../formats/lora.ts";
export {
  type EncodedLora,
  encodeLora,
  loraBytes,
  savePeftFolder,
  type WriteLoraOptions,
} from "../formats/lora_write.ts";
export {
  type ExtractedLayer,
  type ExtractedLora,
  extractLora,
  type ExtractLoraOptions,
  type LostChange,
} from "../formats/extract.ts";
