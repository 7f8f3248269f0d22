/**
 * The training loss: the denoising error of a batch, its weights by noise
 * level, prior preservation, and attention regularisation.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import {
  addNoise,
  type Schedule,
  trainingTarget,
} from "../diffusion/schedule.ts";
import { bindPrompt, type Model, promptStates } from "../models/model.ts";
import { unet } from "../models/unet.ts";
import {
  attentionRegularisation,
  debiasedWeights,
  maskedErrors,
  minSnrWeights,
  squaredErrors,
  type TokenAttention,
  tokenMap,
  vLikeNoiseWeights,
} from "./losses.ts";
import type { LossConfig, Weighting } from "./train_config.ts";

/**
 * The activations that are kept for the backward pass: all (`high`), or only
 * the inputs of blocks, which are then recomputed (`low`, gradient
 * checkpointing).
 */
export type Memory = "high" | "low";

/** A batch, ready for the loss. */
export interface TrainBatch {
  /** Clean latents [b, h, w, c], scaled. */
  readonly latents: tf.Tensor4D;
  /** Noise, offset included [b, h, w, c]. */
  readonly noise: tf.Tensor4D;
  /** One per sample. */
  readonly timesteps: readonly number[];
  /** Prompts with the concept's tokens. */
  readonly prompts: readonly string[];
  /** Subject [b, h, w, 1]; without it the whole picture. */
  readonly mask?: tf.Tensor4D;
  /**
   * How many of the last rows are class pictures.
   *
   * @default 0
   */
  readonly prior?: number;
}

/** A loss and its parts; scalars. */
export interface Losses {
  /** The minimised loss: the sum of the parts. */
  readonly total: tf.Scalar;
  /** Error of the denoiser's prediction. */
  readonly diffusion: tf.Scalar;
  /** Weighted. */
  readonly attention?: tf.Scalar;
  /** Weighted. */
  readonly prior?: tf.Scalar;
}

/**
 * The loss of a batch, differentiable by everything in the model.
 *
 * @param model The model, adapters and tokens included.
 * @param s Its schedule.
 * @param batch The batch.
 * @param config Which parts the loss has, and their weights.
 * @param memory Which activations are kept.
 * @default memory "high"
 * @returns Total and parts.
 */
export function trainingLoss(
  model: Model,
  s: Schedule,
  batch: TrainBatch,
  config: LossConfig,
  memory: Memory = "high",
): Losses {
  const recompute = memory === "low";
  const { latents, noise, timesteps, prompts, prior = 0 } = batch;
  const [rows, h, w] = latents.shape;
  const own = rows - prior;
  const regularised = config.attention.weight > 0 && batch.mask !== undefined;
  const { positions, counted } = regularised
    ? tokenPositions(model, prompts)
    : { positions: [], counted: [] };
  const samples = counted.filter((i) => i < own);
  const layers: TokenAttention[] = [];
  const prediction = unet(
    model.unet.params,
    model.unet.config,
    addNoise(s, latents, noise, timesteps),
    timesteps,
    promptStates(model, prompts, { recompute }),
    samples.length === 0 ? { recompute } : {
      recompute,
      crossAttend: ({ height, width, heads }) => ({
        probabilities: (p) => {
          layers.push({ map: tokenMap(p, positions), height, width, heads });
        },
      }),
    },
  );
  const target = trainingTarget(s, latents, noise, timesteps);
  const full = () => tf.ones([rows, h, w, 1]) as tf.Tensor4D;
  let errors = config.masked
    ? maskedErrors(prediction, target, batch.mask ?? full())
    : squaredErrors(prediction, target);
  const weights = noiseWeights(s, timesteps, config.weighting);
  if (weights) errors = tf.mul(errors, tf.tensor1d(weights));
  const parts = {
    ...preservingPrior(errors, prior, config.priorWeight),
    ...(samples.length > 0 && {
      attention: tf.mul<tf.Scalar>(
        attentionRegularisation(layers, batch.mask!, {
          fullIdentity: config.attention.fullIdentity,
          samples,
        }),
        config.attention.weight,
      ),
    }),
  };
  return { total: tf.addN(Object.values(parts)), ...parts };
}

/**
 * Prior preservation (DreamBooth): the mean error of the concept's rows, and
 * the weighted one of the class pictures after them.
 *
 * @param errors One per sample [b], weighted by noise level.
 * @param prior How many of the last rows are class pictures.
 * @param weight Of their error.
 * @returns Scalars; without class pictures no `prior`.
 */
export function preservingPrior(
  errors: tf.Tensor1D,
  prior: number,
  weight: number,
): Pick<Losses, "diffusion" | "prior"> {
  const own = errors.shape[0] - prior;
  const diffusion: tf.Scalar = tf.mean(tf.slice(errors, 0, own));
  if (prior === 0) return { diffusion };
  const others: tf.Scalar = tf.mean(tf.slice(errors, own, prior));
  return { diffusion, prior: tf.mul(others, weight) };
}

function noiseWeights(
  s: Schedule,
  timesteps: readonly number[],
  weighting: Weighting,
): number[] | undefined {
  switch (weighting.type) {
    case "none":
      return undefined;
    case "min-snr":
      return minSnrWeights(s, timesteps, weighting.gamma);
    case "debiased":
      return debiasedWeights(s, timesteps);
    case "v-like-noise":
      return vLikeNoiseWeights(s, timesteps);
    default:
      throw cannot(
        "weight a loss",
        "none, min-snr, debiased or v-like-noise",
        weighting,
      );
  }
}

/**
 * Positions of learned tokens in each prompt, and which prompts count: those
 * with the most of them (class prompts have none, a cut-off prompt may have
 * lost one). The others get dummy positions, so that the maps have one shape.
 */
function tokenPositions(
  model: Model,
  prompts: readonly string[],
): { positions: number[][]; counted: number[] } {
  const base = model.tokenizer.vocabSize - (model.added?.names.length ?? 0);
  const found = prompts.map((prompt) =>
    bindPrompt(model, prompt).rows[0].flatMap((id, i) => id >= base ? [i] : [])
  );
  const most = Math.max(0, ...found.map((p) => p.length));
  return {
    positions: found.map((p) =>
      p.length === most ? p : new Array<number>(most).fill(0)
    ),
    counted: found.flatMap((p, i) => most > 0 && p.length === most ? [i] : []),
  };
}
