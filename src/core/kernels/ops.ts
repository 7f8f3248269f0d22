/**
 * Fused, differentiable operations that networks are made of.
 *
 * Plain functions on tensors, correct on every backend. On wasm they run in
 * an own SIMD module inside the backend's memory (`simd.ts`) with hand-written
 * gradients, because stock tfjs spends most of a training step there in
 * transposes, broadcasts and a slow batched product.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { COUNTING } from "../device.ts";
import { cannot } from "../errors.ts";
import {
  type AdamwOptions,
  genericAdamw,
  genericAttention,
  genericGeglu,
  genericGelu,
  genericGroupNorm,
  genericLayerNorm,
  genericLinear,
  genericQuickGelu,
  genericSilu,
  genericUpsample,
} from "./generic.ts";
import {
  wasmActivation,
  wasmAdamw,
  wasmAttention,
  wasmGeglu,
  wasmGroupNorm,
  wasmLayerNorm,
  wasmLowRank,
  wasmUpsample,
} from "./fused.ts";
import { kernelsRegistered } from "./register.ts";
import { currentRecording } from "../tape.ts";

/** Options of {@linkcode groupNorm}. */
export interface GroupNormOptions {
  /**
   * Apply `x·sigmoid(x)` to the result, in the same pass.
   *
   * @default {false}
   */
  silu?: boolean;
}

/** Options of {@linkcode attention}. */
export interface AttentionOptions {
  /**
   * Factor on the scores.
   *
   * @default {1/√(c/heads)}
   */
  scale?: number;
  /** Additive mask `[n, m]` on the scores; a constant, no gradient. */
  mask?: tf.Tensor2D;
  /**
   * Query `i` sees keys `0 … i` only.
   *
   * @default {false}
   */
  causal?: boolean;
  /**
   * Query rows handled at a time on backends that materialise scores.
   * The result does not depend on it beyond rounding.
   *
   * @default as many as keep the scores within 64 MiB
   */
  chunk?: number;
}

/** A score that softmax turns into 0; finite, as GPUs may not honour -∞. */
const MASKED = -1e30;

/** Scores larger than this are never materialised at once. */
const SCORE_BYTES = 64 * 2 ** 20;

/**
 * `x·sigmoid(x)`.
 *
 * @param x Any shape.
 * @returns The same shape.
 */
export function silu<T extends tf.Tensor>(x: T): T {
  return fast(x) ? wasmActivation(x, "silu") : genericSilu(x);
}

/**
 * `x·Φ(x)` with the exact (erf) normal distribution function.
 *
 * @param x Any shape.
 * @returns The same shape.
 */
export function geluExact<T extends tf.Tensor>(x: T): T {
  return fast(x) ? wasmActivation(x, "gelu") : genericGelu(x);
}

/**
 * `x·sigmoid(1.702·x)`, the activation of OpenAI's CLIP.
 *
 * @param x Any shape.
 * @returns The same shape.
 */
export function quickGelu<T extends tf.Tensor>(x: T): T {
  return fast(x) ? wasmActivation(x, "quickGelu") : genericQuickGelu(x);
}

/**
 * Gated gelu as in diffusers: the first half of the last axis times the exact
 * gelu of the second half.
 *
 * @param x `[..., 2c]`.
 * @returns `[..., c]`.
 * @throws If the last axis is odd.
 */
export function geglu<T extends tf.Tensor>(x: T): T {
  const c = x.shape[x.rank - 1];
  if (x.rank < 1 || c % 2 !== 0) {
    throw cannot("apply geglu", "an even last axis", x.shape);
  }
  return fast(x) ? wasmGeglu(x) : genericGeglu(x);
}

/**
 * Layer normalisation over the last axis.
 *
 * @param x `[..., c]`.
 * @param gamma Factor, `[c]`.
 * @param beta Offset, `[c]`.
 * @param eps Added to the variance.
 * @returns The shape of `x`.
 * @throws If `gamma` or `beta` is not `[c]`.
 */
export function layerNorm<T extends tf.Tensor>(
  x: T,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
): T {
  const c = x.shape[x.rank - 1];
  checkAffine("apply layerNorm", c, gamma, beta);
  return fast(x, gamma, beta)
    ? wasmLayerNorm(x, gamma, beta, eps)
    : genericLayerNorm(x, gamma, beta, eps);
}

/**
 * Group normalisation, with an optional silu in the same pass.
 *
 * Channels are split into `groups` consecutive runs; each run is normalised
 * together with all spatial positions of its image.
 *
 * @param x `[b, h, w, c]` or `[b, n, c]`.
 * @param groups Number of groups, a divisor of `c`.
 * @param gamma Factor, `[c]`.
 * @param beta Offset, `[c]`.
 * @param eps Added to the variance.
 * @param options Whether to apply silu.
 * @returns The shape of `x`.
 * @throws If `groups` does not divide `c` or `gamma`, `beta` are not `[c]`.
 */
export function groupNorm<T extends tf.Tensor>(
  x: T,
  groups: number,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
  options: GroupNormOptions = {},
): T {
  const c = x.shape[x.rank - 1];
  if (x.rank < 3 || !(groups >= 1) || c % groups !== 0) {
    throw cannot(
      "apply groupNorm",
      "[b, …, c] with groups dividing c",
      `${groups} groups of [${x.shape}]`,
    );
  }
  checkAffine("apply groupNorm", c, gamma, beta);
  const withSilu = options.silu ?? false;
  return fast(x, gamma, beta)
    ? wasmGroupNorm(x, groups, gamma, beta, eps, withSilu)
    : genericGroupNorm(x, groups, gamma, beta, eps, withSilu);
}

/**
 * Dense layer over the last axis, `x·w + bias`.
 *
 * @param x `[..., in]`.
 * @param w `[in, out]`.
 * @param bias `[out]`, optional.
 * @returns `[..., out]`.
 * @throws If the shapes do not fit.
 */
export function linear(
  x: tf.Tensor,
  w: tf.Tensor2D,
  bias?: tf.Tensor1D,
): tf.Tensor {
  if (x.shape[x.rank - 1] !== w.shape[0]) {
    throw cannot("apply linear", `last axis ${w.shape[0]}`, x.shape);
  }
  if (bias && bias.size !== w.shape[1]) {
    throw cannot("apply linear", `bias [${w.shape[1]}]`, bias.shape);
  }
  return genericLinear(x, w, bias);
}

/**
 * A projection with a low-rank addition, `x·w + (x·down)·up`.
 *
 * Value and gradients have the bits of the parts; on wasm they are one kernel
 * each, where `w` is a constant.
 *
 * @param x `[rows, in]`.
 * @param w `[in, out]`.
 * @param down `[in, r]`.
 * @param up `[r, out]`.
 * @returns `[rows, out]`.
 */
export function lowRankProduct(
  x: tf.Tensor2D,
  w: tf.Tensor2D,
  down: tf.Tensor2D,
  up: tf.Tensor2D,
): tf.Tensor2D {
  const recording = currentRecording();
  // What may be trained, or be gone on the way back, is no constant.
  const constant = recording
    ? !recording.reached.has(w.id) && w.id < recording.first
    : taping() === 0;
  if (constant && x.size > 0 && fast(x, w, down, up)) {
    const frozen = recording !== undefined && !recording.reached.has(x.id);
    return wasmLowRank(x, w, down, up, frozen);
  }
  return tf.add(tf.matMul(x, w), tf.matMul(tf.matMul(x, down), up));
}

/** How many tapes tfjs is recording. */
function taping(): number {
  return (tf.engine() as unknown as { state: { gradientDepth: number } })
    .state.gradientDepth;
}

/**
 * Multi-head softmax attention, `softmax(scale·q·kᵀ + mask)·v` per head.
 *
 * Head `h` owns channels `h·c/heads … (h+1)·c/heads`, as in diffusers. Scores
 * are never kept: the gradient recomputes them, chunk by chunk.
 *
 * @param q Queries `[b, n, c]`.
 * @param k Keys `[b, m, c]`.
 * @param v Values `[b, m, c]`.
 * @param heads Number of heads, a divisor of `c`.
 * @param options Scale, mask, causality, chunk size.
 * @returns `[b, n, c]`.
 * @throws If shapes do not fit or `heads` does not divide `c`.
 */
export function attention(
  q: tf.Tensor3D,
  k: tf.Tensor3D,
  v: tf.Tensor3D,
  heads: number,
  options: AttentionOptions = {},
): tf.Tensor3D {
  const what = "apply attention";
  const [b, n, c] = q.shape;
  const m = k.shape[1];
  if (!(heads >= 1) || c % heads !== 0) {
    throw cannot(what, `heads dividing ${c}`, heads);
  }
  for (const [name, t] of [["k", k], ["v", v]] as const) {
    if (
      t.rank !== 3 || t.shape[0] !== b || t.shape[1] !== m || t.shape[2] !== c
    ) {
      throw cannot(what, `${name} [${b}, ${m}, ${c}]`, t.shape);
    }
  }
  const { mask, causal } = options;
  if (mask && (mask.shape[0] !== n || mask.shape[1] !== m)) {
    throw cannot(what, `a mask [${n}, ${m}]`, mask.shape);
  }
  const scale = options.scale ?? 1 / Math.sqrt(c / heads);
  if (m > 0 && fast(q, k, v, ...(mask ? [mask] : []))) {
    return wasmAttention(q, k, v, heads, scale, mask, causal ?? false);
  }
  const rowBytes = Math.max(4 * b * heads * m, 1);
  const chunk = Math.max(
    1,
    options.chunk ?? Math.min(n, Math.floor(SCORE_BYTES / rowBytes)),
  );
  return tf.tidy(() => {
    const constant = causal ? causalMask(n, m, mask) : mask;
    return genericAttention(q, k, v, heads, { scale, mask: constant, chunk });
  });
}

/**
 * Repeats every pixel twice in both directions (nearest-neighbour ×2).
 *
 * @param x `[b, h, w, c]`.
 * @returns `[b, 2h, 2w, c]`.
 */
export function upsampleNearest2x(x: tf.Tensor4D): tf.Tensor4D {
  return fast(x) ? wasmUpsample(x) : genericUpsample(x);
}

/**
 * One AdamW step (Loshchilov and Hutter 2019, as in PyTorch).
 *
 * Nothing is changed in place: the caller disposes the old tensors.
 *
 * @param param Parameter, any shape.
 * @param grad Its gradient.
 * @param m First moment.
 * @param v Second moment.
 * @param options Rates and step number.
 * @returns The new `[param, m, v]`.
 */
export function adamwUpdate<T extends tf.Tensor>(
  param: T,
  grad: T,
  m: T,
  v: T,
  options: AdamwOptions,
): [T, T, T] {
  if (!fast(param, grad, m, v)) {
    return genericAdamw(param, grad, m, v, options);
  }
  const { lr, beta1, beta2, eps, weightDecay, step } = options;
  return wasmAdamw([param, grad, m, v], {
    beta1,
    beta2,
    eps,
    rate: lr / (1 - beta1 ** step),
    root: 1 / Math.sqrt(1 - beta2 ** step),
    keep: 1 - lr * weightDecay,
  });
}

/** Whether our own wasm kernels can take these tensors. */
function fast(...tensors: tf.Tensor[]): boolean {
  const name = tf.getBackend();
  return (name === "wasm" ? kernelsRegistered() : name === COUNTING.wasm) &&
    tensors.every((t) => t.dtype === "float32");
}

function causalMask(n: number, m: number, mask?: tf.Tensor2D): tf.Tensor2D {
  const values = new Float32Array(n * m);
  for (let i = 0; i < n; i++) {
    values.fill(MASKED, Math.min(i * m + i + 1, (i + 1) * m), (i + 1) * m);
  }
  const causal = tf.tensor2d(values, [n, m]);
  if (!mask) return causal;
  return tf.add(causal, mask) as tf.Tensor2D;
}

function checkAffine(
  what: string,
  c: number,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
): void {
  if (gamma.size !== c || beta.size !== c) {
    throw cannot(
      what,
      `gamma and beta [${c}]`,
      `[${gamma.shape}] and [${beta.shape}]`,
    );
  }
}
