/**
 * What the SIMD module exports.
 *
 * @module
 */

/**
 * Exports of `tests/tools/wasm/simd.as`: all arguments are numbers, addresses in
 * bytes, sizes and strides in floats; they are documented there, above each
 * function.
 */
export type SimdExports =
  & Record<
    | "gemmScratch"
    | "convScratch"
    | "convInputStridedScratch"
    | "convFilterScratch"
    | "winogradScratch"
    | "winogradFilterScratch"
    | "winogradPacked"
    | "layerNormScratch"
    | "groupNormScratch"
    | "attentionScratch",
    (...sizes: number[]) => number
  >
  & Record<SimdProcedure, (...args: number[]) => void>;

/** Names of the exports that return nothing. */
export type SimdProcedure =
  | "gemm"
  | "gemmBatch"
  | "zero"
  | "copyRows"
  | "conv2d"
  | "conv2dInputStrided"
  | "conv2dFilter"
  | "winogradPack"
  | "winograd"
  | "winogradFilter"
  | "activation"
  | "activationGrad"
  | "geglu"
  | "gegluGrad"
  | "sumMiddle"
  | "groupNorm"
  | "groupNormGrad"
  | "layerNorm"
  | "layerNormGrad"
  | "attention"
  | "attentionGrad"
  | "upsample"
  | "upsampleGrad"
  | "adamw";
