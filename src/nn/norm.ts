import type * as tf from "@tensorflow/tfjs";
import {
  groupNorm as groupNormKernel,
  layerNorm as layerNormKernel,
} from "../core/kernels/ops.ts";
import { ParamSpec, type Spec } from "./spec.ts";

/** Parameters of a layer or group norm. */
export interface Norm {
  /** Scale γ [c]. */
  readonly weight: tf.Tensor1D;
  /** Shift β [c]. */
  readonly bias: tf.Tensor1D;
}

/**
 * Spec of a norm: ones and zeros.
 *
 * @param channels Normalised features.
 */
export function normSpec(channels: number): Spec<Norm> {
  return {
    weight: new ParamSpec([channels], "plain", { type: "ones" }),
    bias: new ParamSpec([channels], "plain", { type: "zeros" }),
  } as Spec<Norm>;
}

/**
 * Layer norm over the last axis.
 *
 * @param p Parameters.
 * @param x [..., c].
 * @param eps Added to the variance.
 * @default eps 1e-5
 */
export function layerNorm<T extends tf.Tensor>(p: Norm, x: T, eps = 1e-5): T {
  return layerNormKernel(x, p.weight, p.bias, eps) as T;
}

/**
 * Group norm over channels-last features, with an optional SiLU after it.
 *
 * @param p Parameters.
 * @param x [b, ..., c].
 * @param groups Number of groups.
 * @param eps Added to the variance.
 * @param silu Whether SiLU follows.
 * @default silu false
 */
export function groupNorm<T extends tf.Tensor>(
  p: Norm,
  x: T,
  groups: number,
  eps: number,
  silu = false,
): T {
  return groupNormKernel(x, groups, p.weight, p.bias, eps, { silu }) as T;
}
