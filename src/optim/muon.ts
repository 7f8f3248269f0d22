import * as tf from "@tensorflow/tfjs";
import { flatAdamW, type FlatAdamWOptions } from "./flat.ts";
import type { FlatLayout, FlatState } from "./flat.ts";

/** Coefficients of the quintic Newton–Schulz iteration (Jordan et al. 2024). */
const [A, B, C] = [3.4445, -4.775, 2.0315] as const;

/**
 * Replaces the singular values of a matrix by numbers near one, by five
 * Newton–Schulz steps (Muon, Jordan et al. 2024).
 *
 * @param matrix [m, n], not zero.
 * @returns [m, n] with the singular vectors of `matrix` and singular values of
 * about 0.7 to 1.2.
 *
 * @example
 * ```ts
 * const u = orthogonalised(tf.randomNormal([8, 4]));
 * ```
 */
export function orthogonalised(matrix: tf.Tensor2D): tf.Tensor2D {
  return tf.tidy(() => {
    const tall = matrix.shape[0] > matrix.shape[1];
    let x = (tall ? matrix.transpose() : matrix) as tf.Tensor2D;
    x = x.div(tf.add(x.square().sum().sqrt(), 1e-12));
    for (let i = 0; i < 5; i++) {
      const gram = tf.matMul(x, x, false, true);
      const mixed = gram.mul(B).add(tf.matMul(gram, gram).mul(C));
      x = x.mul(A).add(tf.matMul(mixed as tf.Tensor2D, x)) as tf.Tensor2D;
    }
    return (tall ? x.transpose() : x) as tf.Tensor2D;
  });
}

/** Momentum of matrices. */
const MOMENTUM = 0.95;

/**
 * One Muon step on the host, in place: matrices and kernels (as [inputs,
 * outputs]) move along their orthogonalised momentum, everything else by AdamW.
 * Updates of matrices have AdamW's size, 0.2 a number (Liu et al. 2025, §2.2),
 * so that one learning rate and one weight decay serve both.
 *
 * @param layout Where the parameters lie.
 * @param state Changed in place; `step` grows by one. A matrix's momentum is in
 * `m`, its `v` stays as it is.
 * @param grads Gradients, laid out alike; changed.
 * @param options Rates.
 * @returns The gradient's global norm before clipping.
 * @throws If the gradient is not finite; the state is then unchanged.
 */
export function flatMuon(
  layout: FlatLayout,
  state: FlatState,
  grads: Float32Array,
  options: FlatAdamWOptions,
): number {
  const vectors = layout.entries.filter(({ decay }) => !decay);
  const { lr, weightDecay = 0.01, maxNorm } = options;
  let squares = 0;
  for (let i = 0; i < grads.length; i++) squares += grads[i] * grads[i];
  const norm = Math.sqrt(squares);
  const clip = maxNorm !== undefined && norm > maxNorm ? maxNorm / norm : 1;
  if (clip < 1) { for (let i = 0; i < grads.length; i++) grads[i] *= clip; }
  // Throws where the gradient is not finite, before anything is changed.
  flatAdamW({ entries: vectors, size: layout.size }, state, grads, {
    ...options,
    maxNorm: undefined,
  });
  const step = state.step;
  const keep = Math.min(options.ema ?? 0.999, (1 + step) / (10 + step));
  const { params, m, ema } = state;
  for (const { shape, offset, size, decay } of layout.entries) {
    if (!decay) continue;
    const look = new Float32Array(size);
    for (let i = 0; i < size; i++) {
      const g = grads[offset + i];
      const moment = m[offset + i] = MOMENTUM * m[offset + i] + g;
      look[i] = g + MOMENTUM * moment;
    }
    const outputs = shape[shape.length - 1], inputs = size / outputs;
    const update = tf.tidy(() =>
      orthogonalised(tf.tensor2d(look, [inputs, outputs])).dataSync()
    ) as Float32Array;
    const rate = lr * 0.2 * Math.sqrt(Math.max(inputs, outputs));
    const shrink = 1 - lr * weightDecay;
    for (let i = 0; i < size; i++) {
      const p = params[offset + i] * shrink - rate * update[i];
      params[offset + i] = p;
      ema[offset + i] += (1 - keep) * (p - ema[offset + i]);
    }
  }
  return norm;
}
