/**
 * Training losses, as differentiable functions of tensors.
 *
 * Statistics over a whole batch (mask sums, attention maxima) are computed
 * here.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { addAll } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import {
  type PredictionType,
  predictionType,
  type Schedule,
  snr,
} from "../diffusion/schedule.ts";

/**
 * Noise with an offset: a constant per sample and channel is added, so that a
 * model learns to change the mean of an image (Mix-of-Show: 0.01).
 *
 * @param noise Unit normal [b, h, w, c].
 * @param offset Factor of the constant.
 * @param constants Unit normal [b, 1, 1, c].
 * @returns [b, h, w, c].
 */
export function offsetNoise(
  noise: tf.Tensor4D,
  offset: number,
  constants: tf.Tensor4D,
): tf.Tensor4D {
  return tf.add(noise, tf.mul(constants, offset));
}

/** Mean over all axes but the first. */
function perSample(x: tf.Tensor): tf.Tensor1D {
  return tf.mean(x, x.shape.map((_, i) => i).slice(1)) as tf.Tensor1D;
}

/**
 * Mean squared error of each sample.
 *
 * @param prediction [b, …].
 * @param target [b, …].
 * @returns [b].
 */
export function squaredErrors(
  prediction: tf.Tensor,
  target: tf.Tensor,
): tf.Tensor1D {
  return perSample(tf.square(tf.sub(prediction, target)));
}

/**
 * Masked squared error of each sample: the sum over pixels and channels inside
 * the mask over the sum of the one-channel mask. With a full mask this is the
 * number of channels times the mean squared error (official code).
 *
 * @param prediction [b, h, w, c].
 * @param target [b, h, w, c].
 * @param mask [b, h, w, 1]; not empty in any sample.
 * @returns [b].
 */
export function maskedErrors(
  prediction: tf.Tensor4D,
  target: tf.Tensor4D,
  mask: tf.Tensor4D,
): tf.Tensor1D {
  const [b, h, w, c] = prediction.shape;
  if (!tf.util.arraysEqual(mask.shape, [b, h, w, 1])) {
    throw cannot(
      "compute a masked loss",
      `a mask [${[b, h, w, 1]}] for [${[b, h, w, c]}]`,
      `[${mask.shape}]`,
    );
  }
  const errors = tf.mul(tf.square(tf.sub(prediction, target)), mask);
  return tf.div(tf.sum(errors, [1, 2, 3]), tf.sum(mask, [1, 2, 3]));
}

/**
 * Signal-to-noise ratios, capped at 1000 as in kohya's scripts.
 */
function capped(s: Schedule, timesteps: readonly number[]): number[] {
  return snr(s, timesteps).map((value) => Math.min(value, 1000));
}

/**
 * Min-SNR-γ weights (Hang et al. 2023): `min(snr, γ)/snr` where ε is predicted,
 * `min(snr, γ)/(snr + 1)` where v is, `min(snr, γ)` where x0 is.
 *
 * @param s The schedule.
 * @param timesteps One per sample.
 * @param gamma The cap; 5 is usual.
 * @param prediction What the network predicts; the schedule's by default.
 * @returns One weight per sample. Where ᾱ = 0 the ratio is 0: the weight is its
 * limit, 1 for ε and 0 for v and x0.
 */
export function minSnrWeights(
  s: Schedule,
  timesteps: readonly number[],
  gamma: number,
  prediction: PredictionType = predictionType(s),
): number[] {
  if (!(gamma > 0)) throw cannot("weight a loss", "γ > 0", gamma);
  return snr(s, timesteps).map((ratio) => {
    const low = Math.min(ratio, gamma);
    switch (prediction) {
      case "epsilon":
        return ratio === 0 ? 1 : ratio === Infinity ? 0 : low / ratio;
      case "v_prediction":
        return low / (ratio + 1);
      case "sample":
        return low;
    }
  });
}

/**
 * Debiased estimation weights (Yu et al. 2023; kohya-ss): `1/√snr` where ε is
 * predicted, `1/(snr + 1)` where v is; snr is capped at 1000.
 *
 * @param s The schedule.
 * @param timesteps One per sample.
 * @param prediction What the network predicts; the schedule's by default.
 * @throws If ε is predicted where ᾱ = 0, or x0 is predicted.
 */
export function debiasedWeights(
  s: Schedule,
  timesteps: readonly number[],
  prediction: PredictionType = predictionType(s),
): number[] {
  return capped(s, timesteps).map((ratio) => {
    if (prediction === "v_prediction") return 1 / (ratio + 1);
    if (prediction === "sample" || ratio === 0) {
      throw cannot(
        "debias a loss",
        "v, or ε where there is signal",
        prediction === "sample" ? "x0" : "ε at zero signal",
      );
    }
    return 1 / Math.sqrt(ratio);
  });
}

/**
 * Weights that scale a v loss like an ε loss (kohya-ss
 * `scale_v_pred_loss_like_noise_pred`): `snr/(snr + 1)`, snr capped at 1000.
 *
 * @param s The schedule.
 * @param timesteps One per sample.
 */
export function vLikeNoiseWeights(
  s: Schedule,
  timesteps: readonly number[],
): number[] {
  return capped(s, timesteps).map((ratio) => ratio / (ratio + 1));
}

/** Cross-attention of the concept's tokens at one layer. */
export interface TokenAttention {
  /** Mean over heads [b, n, tokens], n = height·width. */
  readonly map: tf.Tensor3D;
  readonly height: number;
  readonly width: number;
  /** Heads the mean was taken over. */
  readonly heads: number;
}

/**
 * Picks the attention on some tokens from the probabilities of a layer.
 *
 * @param probabilities [b, heads, n, m].
 * @param positions Positions of the tokens in each sample, equally many.
 * @returns Mean over heads [b, n, tokens].
 */
export function tokenMap(
  probabilities: tf.Tensor4D,
  positions: readonly (readonly number[])[],
): tf.Tensor3D {
  const [b, , n, m] = probabilities.shape;
  const count = positions[0]?.length ?? 0;
  if (positions.length !== b || positions.some((p) => p.length !== count)) {
    throw cannot(
      "pick attention maps",
      `as many token positions in each of ${b} samples`,
      positions.map((p) => p.length).join(),
    );
  }
  // A product with a constant selection matrix, as gather has no gradient on
  // wasm.
  const chosen = new Float32Array(b * m * count);
  positions.forEach((own, i) =>
    own.forEach((at, k) => chosen[(i * m + at) * count + k] = 1)
  );
  const mean = tf.mean(probabilities, 1).reshape([b, n, m]) as tf.Tensor3D;
  return tf.matMul(mean, tf.tensor3d(chosen, [b, m, count])) as tf.Tensor3D;
}

/** Settings of {@linkcode attentionRegularisation}. */
export interface AttentionRegularisationOptions {
  /**
   * Whether the noun's attention should also fill the mask (the whole subject
   * belongs to the identity). Otherwise it is only kept out of the background,
   * so that parts such as clothes need not be learned.
   *
   * @default {true}
   */
  readonly fullIdentity?: boolean;
  /** Indices of the samples that are used; all by default. */
  readonly samples?: readonly number[];
}

/**
 * Attention regularisation of Mix-of-Show's main branch: for each resolution
 * the maps of adjective (V_rand) and noun (V_class) are averaged over layers
 * and heads and divided by their maximum over the whole batch; the adjective is
 * penalised outside the mask, the noun for its distance to the mask. With one
 * token that token is the noun; with more, the first is the adjective and the
 * last the noun.
 *
 * @param layers Token maps of all cross-attention layers.
 * @param mask The subject [b, h, w, 1], 0 or 1.
 * @param options Full identity or not; which samples.
 * @returns The unweighted sum over resolutions, or 0 where no pixel of any mask
 * is background (the official code drops the term then).
 */
export function attentionRegularisation(
  layers: readonly TokenAttention[],
  mask: tf.Tensor4D,
  options: AttentionRegularisationOptions = {},
): tf.Scalar {
  const { fullIdentity = true } = options;
  const b = mask.shape[0];
  const samples = options.samples ?? Array.from({ length: b }, (_, i) => i);
  if (layers.length === 0 || samples.length === 0) return tf.scalar(0);
  const chosen = new Float32Array(b);
  for (const i of samples) chosen[i] = 1;
  const counts = tf.tensor3d(chosen, [b, 1, 1]);
  const groups = new Map<string, TokenAttention[]>();
  for (const layer of layers) {
    const name = `${layer.height}×${layer.width}`;
    groups.set(name, [...groups.get(name) ?? [], layer]);
  }
  let total: tf.Scalar = tf.scalar(0);
  for (const group of groups.values()) {
    const { height, width } = group[0];
    const tokens = group[0].map.shape[2];
    const heads = group.reduce((sum, layer) => sum + layer.heads, 0);
    // The mean over all heads of all layers of this resolution.
    const mean = addAll(
      group.map((layer) => tf.mul(layer.map, layer.heads / heads)),
    );
    const map = (token: number) => {
      const one = tf.mul(
        tf.slice(mean, [0, 0, token], [b, height * width, 1]),
        counts,
      );
      return tf.div(one, tf.max(one));
    };
    const truth = tf.reshape(resizeNearest(mask, height, width), [
      b,
      height * width,
      1,
    ]);
    const outside = tf.mul(tf.cast(tf.equal(truth, 0), "float32"), counts);
    const area = tf.sum(outside);
    // 0, not 0/0, if nothing is outside.
    const meanOutside = (x: tf.Tensor): tf.Scalar =>
      tf.div(tf.sum(tf.mul(x, outside)), tf.maximum(area, 1));
    const noun = map(tokens - 1);
    const subject: tf.Scalar = fullIdentity
      ? tf.div(
        tf.sum(tf.mul(tf.square(tf.sub(noun, truth)), counts)),
        samples.length * height * width,
      )
      : meanOutside(noun);
    let here = subject;
    if (tokens > 1) here = tf.add(here, meanOutside(map(0)));
    total = tf.add(total, tf.mul(here, tf.minimum(area, 1)));
  }
  return total;
}

/** Nearest-neighbour resize as PyTorch's: index ⌊i·from/to⌋. */
function resizeNearest(
  x: tf.Tensor4D,
  height: number,
  width: number,
): tf.Tensor4D {
  const [, h, w] = x.shape;
  if (h === height && w === width) return x;
  const index = (from: number, to: number) =>
    tf.tensor1d(
      Array.from({ length: to }, (_, i) => Math.floor(i * from / to)),
      "int32",
    );
  return tf.gather(tf.gather(x, index(h, height), 1), index(w, width), 2);
}
