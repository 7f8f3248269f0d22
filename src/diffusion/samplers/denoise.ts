/**
 * The denoiser that all samplers call: it takes a noisy latent and its noise
 * level and returns the predicted clean latent x0. Only this module converts ε,
 * v or x0 predictions.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../core/errors.ts";
import type { PredictionType } from "../schedule.ts";
import type { ClipRule, Level } from "./table.ts";

/**
 * A network's raw output (ε, v or x0) for its input at timestep `t` in call
 * `index`.
 *
 * `x` [batch, height, width, channels] is already scaled for the network and is
 * the sampler's: do not keep or dispose it. The returned tensor becomes the
 * sampler's, which disposes it. It has the shape of `x`, or twice the channels
 * where the network also predicts variances (`variance_type` learned…).
 */
export type Predict = (
  x: tf.Tensor4D,
  t: number,
  index: number,
) => tf.Tensor4D | Promise<tf.Tensor4D>;

/** What a denoiser returns; its tensors become the sampler's. */
export interface Denoised {
  /** The clean latent, in the shape of the noisy one. */
  readonly x0: tf.Tensor4D;
  /** The network's variance output, if it predicts variances; same shape. */
  readonly variance?: tf.Tensor4D;
}

/**
 * A denoiser: `x` [batch, height, width, channels] is `alpha·x0 + sigma·ε` and
 * stays the sampler's.
 */
export type Denoise = (
  x: tf.Tensor4D,
  level: Level & { readonly timestep: number },
  index: number,
) => Denoised | Promise<Denoised>;

/**
 * Makes a denoiser of a network that predicts ε, v or x0.
 *
 * @param predict The network, with guidance, conditions and adapters inside.
 * @param prediction What it predicts.
 * @throws When called, if the output has a wrong shape.
 *
 * @example
 * ```ts
 * const denoise = denoiser((x, t) => unet(params, config, x, [t], text), "epsilon");
 * ```
 */
export function denoiser(
  predict: Predict,
  prediction: PredictionType,
): Denoise {
  return async (x, { alpha, sigma, timestep }, index) => {
    const channels = x.shape[3];
    // Networks are trained on variance-preserving inputs (alpha² + sigma² = 1).
    const radius = Math.hypot(alpha, sigma);
    const scale = Math.fround(1 / radius);
    // Always a new tensor, so that the network may return its input.
    const input: tf.Tensor4D = scale === 1 ? x.clone() : x.mul(scale);
    const owned = new Set<tf.Tensor>([input]);
    try {
      const output = await predict(input, timestep, index);
      owned.add(output);
      const [b, h, w, c] = output.shape;
      const same = tf.util.arraysEqual([b, h, w], x.shape.slice(0, 3));
      if (!same || (c !== channels && c !== 2 * channels)) {
        throw cannot(
          "sample",
          `a model output of shape [${x.shape}], or twice the channels`,
          `[${output.shape}]`,
        );
      }
      return tf.tidy(() => {
        const learned = c === 2 * channels;
        const half = (from: number) =>
          output.slice([0, 0, 0, from], [-1, -1, -1, channels]);
        return {
          x0: toX0(prediction, alpha, sigma, x, learned ? half(0) : output),
          ...(learned && { variance: half(channels) }),
        };
      }) as Denoised;
    } finally {
      for (const tensor of owned) if (!tensor.isDisposed) tensor.dispose();
    }
  };
}

/** Converts a network's output to x0; a new tensor. */
function toX0(
  prediction: PredictionType,
  alpha: number,
  sigma: number,
  x: tf.Tensor4D,
  output: tf.Tensor4D,
): tf.Tensor4D {
  const radius = Math.hypot(alpha, sigma);
  switch (prediction) {
    case "epsilon":
      return x.mul(1 / alpha).add(output.mul(-sigma / alpha));
    case "v_prediction":
      return x.mul(alpha / radius ** 2).add(output.mul(-sigma / radius));
    case "sample":
      return output.clone();
  }
}

/**
 * Keeps a predicted x0 in range.
 *
 * @param how The rule.
 * @param x0 The clean latent.
 * @returns A new tensor, or `x0` itself.
 */
export function clip(how: ClipRule, x0: tf.Tensor4D): tf.Tensor4D {
  switch (how.kind) {
    case "none":
      return x0;
    case "range":
      return tf.clipByValue(x0, -how.limit, how.limit) as tf.Tensor4D;
    case "dynamic":
      return threshold(x0, how.ratio, how.max);
  }
}

/**
 * Dynamic thresholding (Saharia et al. 2022, §2.3): clamps each item to its own
 * quantile of |x0|, at least 1, and rescales to [−1, 1].
 */
function threshold(
  x0: tf.Tensor4D,
  ratio: number,
  max: number,
): tf.Tensor4D {
  const batch = x0.shape[0];
  const size = x0.size / batch;
  const rank = ratio * (size - 1);
  const low = Math.floor(rank);
  const weight = rank - low;
  // Descending; only the part above the quantile is needed.
  const { values } = tf.topk(x0.abs().reshape([batch, size]), size - low);
  const at = (ascending: number) =>
    values.slice([0, size - 1 - ascending], [batch, 1]);
  const quantile = weight > 0
    ? at(low).mul(1 - weight).add(at(low + 1).mul(weight))
    : at(low);
  const bound = quantile.maximum(1).minimum(max).reshape([batch, 1, 1, 1]);
  return x0.minimum(bound).maximum(bound.neg()).div(bound);
}
