/**
 * Held-out denoising error: the error of a model's noise prediction on pictures
 * of a concept that were not trained on, inside the subject's mask. It needs no
 * sampling and no evaluator.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { fold, type Key, normal } from "../core/random.ts";
import type { TrainData } from "../customize/dataset.ts";
import { maskedErrors } from "../customize/losses.ts";
import {
  addNoise,
  parseSchedulerConfig,
  schedule,
  trainingTarget,
} from "../diffusion/schedule.ts";
import { type Model, promptStates } from "../models/model.ts";
import { unet } from "../models/unet.ts";
import { mean } from "./statistics.ts";

/** Seven timesteps from 50 to 950 of 1000. */
export const HELDOUT_TIMESTEPS: readonly number[] = [
  50,
  200,
  350,
  500,
  650,
  800,
  950,
];

/** Settings of {@linkcode heldOutError}. */
export interface HeldOutOptions {
  /** Key of the noise: the same for all models that are compared. */
  readonly key: Key;
  /** Timesteps. @default HELDOUT_TIMESTEPS */
  readonly timesteps?: readonly number[];
  /**
   * Pictures per batch; results do not depend on it.
   *
   * @default as many as hold 5120 latent pixels: 20 of 16×16, 1 of 64×64
   */
  readonly batch?: number;
  /** Called after each batch with the predictions done and all of them. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** Latent pixels per batch: 20 pictures of 16×16. */
const BATCH_PIXELS = 5120;

/** A held-out denoising error. */
export interface HeldOutError {
  /** Mean over pictures and timesteps: lower is better. */
  readonly mean: number;
  /** Mean over pictures, of each timestep. */
  readonly byTimestep: readonly number[];
  /** Mean over timesteps, of each picture. */
  readonly byPicture: readonly number[];
}

/**
 * Measures the masked denoising error on held-out pictures: the squared error
 * of the model's own prediction (ε or v), summed over channels and averaged over
 * the subject's mask, with fixed noise at fixed timesteps. It is the training
 * loss of Mix-of-Show's official code on pictures that were not trained on.
 *
 * @param model The model, adapters and tokens included.
 * @param data Encoded pictures and masks, from `encodeData`; latents are the
 * posterior's means.
 * @param prompts One per picture, with the concept's tokens or its class word.
 * @param options Key of the noise, timesteps.
 * @returns Errors by picture and timestep.
 * @throws If there is not one prompt per picture, a mask is empty, or a timestep
 * or the batch is out of range.
 *
 * @example
 * ```ts
 * const prompts = data.captions.map(([c]) => fillCaption(c, concept.phrase));
 * const { mean } = await heldOutError(model, data, prompts, { key: key(1) });
 * ```
 */
export async function heldOutError(
  model: Model,
  data: TrainData,
  prompts: readonly string[],
  options: HeldOutOptions,
): Promise<HeldOutError> {
  const { key, timesteps = HELDOUT_TIMESTEPS, onProgress } = options;
  const what = "measure a held-out error";
  const { height, width, channels, count } = data;
  const size = height * width * channels, area = height * width;
  const { batch = Math.max(1, Math.floor(BATCH_PIXELS / area)) } = options;
  if (!Number.isInteger(batch) || batch < 1) {
    throw cannot(what, "a batch ≥ 1", batch);
  }
  if (prompts.length !== data.count || data.count === 0) {
    throw cannot(
      what,
      `a prompt for each of ${data.count} pictures`,
      prompts.length,
    );
  }
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const last = s.alphasCumprod.length - 1;
  const odd = timesteps.find((t) => !Number.isInteger(t) || t < 0 || t > last);
  if (odd !== undefined || timesteps.length === 0) {
    throw cannot(what, `timesteps from 0 to ${last}`, odd ?? "none");
  }
  for (let i = 0; i < count; i++) {
    if (!data.mask.subarray(i * area, (i + 1) * area).some((m) => m > 0)) {
      throw cannot(what, "masks with something inside", `picture ${i} without`);
    }
  }
  const errors: number[][] = timesteps.map(() => []);
  let done = 0;
  for (let from = 0; from < count; from += batch) {
    const rows = Math.min(batch, count - from);
    const shape: [number, number, number, number] = [
      rows,
      height,
      width,
      channels,
    ];
    // The same at every timestep.
    const states = tf.tidy(() =>
      promptStates(model, prompts.slice(from, from + rows))
    );
    try {
      for (const [k, t] of timesteps.entries()) {
        const noises = new Float32Array(rows * size);
        for (let i = 0; i < rows; i++) {
          noises.set(normal(fold(key, "heldout", from + i, k), size), i * size);
        }
        const row = tf.tidy(() => {
          const latents = tf.tensor4d(
            data.mean.slice(from * size, (from + rows) * size),
            shape,
          );
          const noise = tf.tensor4d(noises, shape);
          const at = new Array<number>(rows).fill(t);
          const prediction = unet(
            model.unet.params,
            model.unet.config,
            addNoise(s, latents, noise, at),
            at,
            states,
          );
          return maskedErrors(
            prediction,
            trainingTarget(s, latents, noise, at),
            tf.tensor4d(
              Float32Array.from(
                data.mask.subarray(from * area, (from + rows) * area),
              ),
              [rows, height, width, 1],
            ),
          );
        });
        errors[k].push(...await row.data());
        row.dispose();
        done += rows;
        onProgress?.(done, timesteps.length * count);
      }
    } finally {
      states.dispose();
    }
  }
  const byTimestep = errors.map((row) => mean(row));
  return {
    mean: mean(byTimestep),
    byTimestep,
    byPicture: Array.from(
      { length: count },
      (_, i) => mean(errors.map((row) => row[i])),
    ),
  };
}

/**
 * The share of a concept's gain that is kept: (class word − arm) / (class word
 * − single), of held-out errors. 1: as good as the single concept; 0: as the
 * untouched model; below 0: worse than the untouched model.
 *
 * @param arm Error of the model in question.
 * @param classWord Error of the untouched model with the class word.
 * @param single Error of the single-concept model.
 * @returns NaN if the single concept gained nothing.
 */
export function keptShare(
  arm: number,
  classWord: number,
  single: number,
): number {
  const gain = classWord - single;
  return gain > 0 ? (classWord - arm) / gain : NaN;
}
