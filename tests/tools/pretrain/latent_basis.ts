import * as tf from "@tensorflow/tfjs";
import { ownedByCaller } from "../../../src/core/tree.ts";
import type { Autoencoder } from "../../../src/models/autoencoder.ts";
import { symmetricEigen } from "../../../src/optim/least_squares.ts";

/** An affine change of latents: z ↦ (z − mean)·forward; `backward` undoes it. */
export interface LatentBasis {
  /** What becomes zero, [channels]. */
  readonly mean: readonly number[];
  /** [channels, channels]: old axes by new. */
  readonly forward: readonly (readonly number[])[];
  /** [channels, channels]: new axes by old. */
  readonly backward: readonly (readonly number[])[];
}

/**
 * A basis of latents for diffusion: principal axes, largest first, zero mean,
 * std^0.6 of each axis divided out, and a mean square of one over all of them.
 * Fully whitened, axes that hold little of the picture would cost as much of
 * the loss as the others; left alone, an autoencoder puts nine tenths of the
 * variance on two axes, and what lies on the rest drowns in the noise.
 *
 * @param latents Latents end to end, channels last.
 * @param channels Number of channels.
 */
export function latentBasis(
  latents: Float32Array,
  channels: number,
): LatentBasis {
  const n = latents.length / channels;
  const mean = new Array<number>(channels).fill(0);
  for (let i = 0; i < latents.length; i++) mean[i % channels] += latents[i] / n;
  const covariance = new Float64Array(channels * channels);
  for (let i = 0; i < n; i++) {
    for (let a = 0; a < channels; a++) {
      const x = latents[i * channels + a] - mean[a];
      for (let b = 0; b < channels; b++) {
        covariance[a * channels + b] += x *
          (latents[i * channels + b] - mean[b]) / n;
      }
    }
  }
  const { values, vectors } = symmetricEigen({
    rows: channels,
    columns: channels,
    data: covariance,
  });
  const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a]);
  // A dead axis must not be blown up to the size of the others.
  const least = 1e-3 * Math.sqrt(values[order[0]]);
  const spread = order.map((j) =>
    Math.max(least, Math.sqrt(Math.max(0, values[j])))
  );
  const rms = Math.sqrt(
    spread.reduce((total, s) => total + s ** 0.8, 0) / channels,
  );
  const scale = spread.map((s) => s ** 0.6 * rms);
  const axis = (j: number, c: number): number =>
    vectors.data[order[j] * channels + c];
  const each = Array.from({ length: channels }, (_, i) => i);
  return {
    mean,
    forward: each.map((c) => each.map((j) => axis(j, c) / scale[j])),
    backward: each.map((j) => each.map((c) => axis(j, c) * scale[j])),
  };
}

/**
 * Changes the basis of an autoencoder's latents by folding the affine map into
 * `quant_conv` and `post_quant_conv`; images decode to the same pixels. No
 * linear map of a logarithm follows a rotation: the posterior's variance becomes
 * one number an axis, what it was on average.
 *
 * @param p The autoencoder; it is not changed.
 * @param basis The new basis.
 * @param variance Average posterior variance of each old channel.
 * @returns An autoencoder that shares all other parameters.
 */
export function rescaleLatents(
  p: Autoencoder,
  basis: LatentBasis,
  variance: readonly number[],
): Autoencoder {
  const n = basis.mean.length;
  const matrix = (rows: readonly (readonly number[])[]): tf.Tensor2D =>
    tf.tensor2d(rows.map((row) => [...row]));
  const logvar = basis.mean.map((_, j) =>
    Math.log(
      variance.reduce((sum, v, c) => sum + v * basis.forward[c][j] ** 2, 0),
    )
  );
  return ownedByCaller(() => {
    const mean = matrix([basis.mean]);
    const forward = matrix(basis.forward), backward = matrix(basis.backward);
    const into = p.quant_conv.weight.reshape([-1, 2 * n]) as tf.Tensor2D;
    const width = into.shape[0];
    const toMean = tf.matMul(tf.slice(into, [0, 0], [width, n]), forward);
    const bias = tf.slice(p.quant_conv.bias!, 0, n).reshape([1, n]).sub(mean);
    const out = p.post_quant_conv.weight.reshape([n, -1]) as tf.Tensor2D;
    return {
      ...p,
      quant_conv: {
        weight: tf.keep(
          tf.concat([toMean, tf.zerosLike(toMean)], 1)
            .reshape(p.quant_conv.weight.shape),
        ) as tf.Tensor4D,
        bias: tf.keep(
          tf.concat([
            tf.matMul(bias as tf.Tensor2D, forward).reshape([n]),
            tf.tensor1d(logvar),
          ]),
        ) as tf.Tensor1D,
      },
      post_quant_conv: {
        weight: tf.keep(
          tf.matMul(backward, out).reshape(p.post_quant_conv.weight.shape),
        ) as tf.Tensor4D,
        bias: tf.keep(
          p.post_quant_conv.bias!.add(tf.matMul(mean, out).reshape([-1])),
        ) as tf.Tensor1D,
      },
    };
  });
}
