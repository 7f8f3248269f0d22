/**
 * DoRA (Liu et al. 2024): a low-rank change whose sum with the base weight is
 * renormalised to a learned magnitude.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";

/**
 * How a DoRA's magnitude acts: W' = W₀ + strength · ((W₀ + scale·down·up) ·
 * (1 + share·(m/‖·‖ − 1)) − W₀).
 *
 * Scaling a DoRA down means different things in different tools: PEFT lowers
 * `scale`, LyCORIS `share`, ComfyUI `strength`.
 */
export interface Dora {
  /**
   * What m and the norms are of: `output`, over the inputs of each output
   * (PEFT, kohya); `input`, over the outputs of each input (old LyCORIS).
   *
   * @default "output"
   */
  readonly of?: "output" | "input";
  /**
   * How far the norms are moved towards m, 0 to 1.
   *
   * @default 1
   */
  readonly share?: number;
  /**
   * Factor on the whole change of weight.
   *
   * @default 1
   */
  readonly strength?: number;
}

/** A tensor that gradients take for a number. */
function constant(x: tf.Tensor): tf.Tensor {
  const op = tf.customGrad((x) => ({
    value: (x as tf.Tensor).clone(),
    gradFunc: (dy: tf.Tensor) => tf.zerosLike(dy),
  }));
  return op(x);
}

/**
 * The norms of a weight's outputs, where a DoRA's magnitude starts.
 *
 * @param weight W₀ [in, out] or [kh, kw, in, out].
 * @returns [out]; the caller's.
 */
export function outputNorms(weight: tf.Tensor): tf.Tensor1D {
  const axes = weight.shape.slice(0, -1).map((_, i) => i);
  // A sum is whole floats also of half ones.
  return tf.tidy(() => weight.add(0).square().sum(axes).sqrt()) as tf.Tensor1D;
}

/**
 * What a DoRA changes a weight by. Gradients take the norm for a number, as
 * the paper (§4.3) and PEFT do.
 *
 * @param magnitude m: [out], or [in] where `dora.of` says so.
 * @param dora How it acts.
 * @param product The low-rank change, scale included, in the weight's shape.
 * @param weight W₀ [in, out] or [kh, kw, in, out].
 * @returns W' − W₀; differentiable.
 */
export function renormalisedChange(
  magnitude: tf.Tensor1D,
  dora: Dora | undefined,
  product: tf.Tensor,
  weight: tf.Tensor,
): tf.Tensor {
  const { of = "output", share = 1, strength = 1 } = dora ?? {};
  const sum = weight.add(product);
  const kept = of === "output" ? sum.rank - 1 : sum.rank - 2;
  const axes = sum.shape.map((_, i) => i).filter((i) => i !== kept);
  const norm = constant(sum.square().sum(axes, true).sqrt());
  const ratio = magnitude.reshape(norm.shape).div(norm);
  const factor = share === 1 ? ratio : ratio.sub(1).mul(share).add(1);
  const change = sum.mul(factor).sub(weight);
  return strength === 1 ? change : change.mul(strength);
}
