/**
 * Classifier-free guidance (Ho & Salimans 2022).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { Predict } from "./samplers/denoise.ts";

/** Options of {@linkcode guide}. */
export interface GuideOptions {
  /**
   * φ of Lin et al. 2023, eqs. 15 and 16: how far the result's standard
   * deviation is rescaled to the conditional output's, 0 to 1 (diffusers'
   * `guidance_rescale`).
   *
   * @default {0}
   */
  rescale?: number;
}

/**
 * Combines the outputs without and with the prompt:
 * `uncond + scale·(cond − uncond)`.
 *
 * @param uncond The output for the negative prompt, [batch, …].
 * @param cond The output for the prompt, same shape.
 * @param scale The guidance scale; 1 gives exactly `cond`, 0 exactly `uncond`.
 * @param options Whether to rescale.
 * @returns A new tensor of the same shape.
 * @throws If shapes differ, `scale` is not finite or `rescale` not in [0, 1].
 */
export function guide<T extends tf.Tensor>(
  uncond: T,
  cond: T,
  scale: number,
  options: GuideOptions = {},
): T {
  const rescale = checkGuidance(scale, options);
  if (!tf.util.arraysEqual(uncond.shape, cond.shape)) {
    throw cannot(
      "guide",
      `two outputs of shape [${cond.shape}]`,
      `[${uncond.shape}]`,
    );
  }
  // Returned exactly, without the formula's rounding.
  if (scale === 1) return cond.clone() as T;
  if (scale === 0 && rescale === 0) return uncond.clone() as T;
  return tf.tidy(() => {
    const guided = uncond.add(cond.sub(uncond).mul(scale)) as T;
    return rescale === 0 ? guided : rescaled(guided, cond, rescale);
  });
}

/** Pulls each item's standard deviation towards the conditional output's. */
function rescaled<T extends tf.Tensor>(guided: T, cond: T, phi: number): T {
  const axes = guided.shape.map((_, i) => i).slice(1);
  const std = (x: tf.Tensor) => tf.moments(x, axes, true).variance.sqrt();
  // A constant output has nothing to rescale; the floor keeps 0/0 out.
  const ratio = std(cond).div(std(guided).maximum(1e-12));
  return guided.mul(ratio.mul(phi).add(1 - phi)) as T;
}

function checkGuidance(scale: number, options: GuideOptions): number {
  if (!Number.isFinite(scale)) {
    throw cannot("guide", "a finite guidance scale", scale);
  }
  const rescale = options.rescale ?? 0;
  if (!(rescale >= 0 && rescale <= 1)) {
    throw cannot("guide", "rescale in [0, 1]", rescale);
  }
  return rescale;
}

/** Which rows the input of a guided model has. */
export type GuidanceBranch = "both" | "conditional";

/**
 * A model that knows the conditions of both branches.
 *
 * With branch `"both"`, `x` [2·batch, …] holds the latents twice and the first
 * half is to be run without the prompt (diffusers' order); with
 * `"conditional"`, `x` [batch, …] is to be run with the prompt. The returned
 * tensor becomes the caller's.
 */
export type BranchedPredict = (
  x: tf.Tensor4D,
  t: number,
  index: number,
  branch: GuidanceBranch,
) => tf.Tensor4D | Promise<tf.Tensor4D>;

/** Options of {@linkcode classifierFree}. */
export interface ClassifierFreeOptions extends GuideOptions {
  /** The guidance scale; a function of timestep and call makes it vary. */
  scale: number | ((t: number, index: number) => number);
}

/**
 * Makes a guided model for a sampler: one batch with both branches per call.
 *
 * Where the scale is exactly 1 only the conditional branch runs, so a sampler
 * with guidance 1 is the conditional sampler, bit for bit and at half the cost.
 *
 * @param model The model with the conditions of both branches.
 * @param options The guidance scale, and whether to rescale.
 * @throws When called, if an option is out of range or the model's output does
 * not have the rows it was asked for.
 *
 * @example
 * ```ts
 * const predict = classifierFree(
 *   (x, t, _index, branch) => unet(x, t, branch === "both" ? both : prompt),
 *   { scale: 7.5 },
 * );
 * ```
 */
export function classifierFree(
  model: BranchedPredict,
  options: ClassifierFreeOptions,
): Predict {
  if (typeof options.scale === "number") checkGuidance(options.scale, options);
  return async (x, t, index): Promise<tf.Tensor4D> => {
    const scale = typeof options.scale === "number"
      ? options.scale
      : options.scale(t, index);
    checkGuidance(scale, options);
    if (scale === 1) return await model(x, t, index, "conditional");
    const twice: tf.Tensor4D = tf.concat([x, x], 0);
    const owned = new Set<tf.Tensor>([twice]);
    try {
      const output = await model(twice, t, index, "both");
      owned.add(output);
      if (output.shape[0] !== twice.shape[0]) {
        throw cannot(
          "guide",
          `a model output of ${twice.shape[0]} rows`,
          `[${output.shape}]`,
        );
      }
      return tf.tidy(() => {
        const [uncond, cond] = tf.split<tf.Tensor4D>(output, 2, 0);
        return guide(uncond, cond, scale, options);
      });
    } finally {
      for (const tensor of owned) if (!tensor.isDisposed) tensor.dispose();
    }
  };
}
