/**
 * Gradients of a batch by every tensor of a concept.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { type Concept, conceptTensors } from "../../src/customize/concept.ts";
import {
  type LossConfig,
  lossGradients,
  type Memory,
  type TrainBatch,
} from "../../src/customize/train.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import type { Model } from "../../src/models/model.ts";

/** A batch of noise, the left half of it masked; its tensors are the caller's. */
export function batchOf(
  model: Model,
  size: number,
  prompts: string[],
): TrainBatch {
  const { in_channels } = model.unet.config;
  const shape: [number, number, number, number] = [
    prompts.length,
    size,
    size,
    in_channels,
  ];
  const mask = tf.tidy(() =>
    tf.concat([
      tf.ones([prompts.length, size, size / 2, 1]),
      tf.zeros([prompts.length, size, size / 2, 1]),
    ], 2) as tf.Tensor4D
  );
  return {
    latents: tf.randomNormal(shape, 0, 1, "float32", 1),
    noise: tf.randomNormal(shape, 0, 1, "float32", 2),
    timesteps: prompts.map((_, i) => 100 + 300 * i),
    prompts,
    mask,
  };
}

/** Losses as numbers; gradients by name, the caller's. The batch stays. */
export async function conceptGradients(
  model: Model,
  concept: Concept,
  batch: TrainBatch,
  config: LossConfig,
  memory?: Memory,
): Promise<{ losses: Record<string, number>; grads: Map<string, tf.Tensor> }> {
  const params = conceptTensors(concept);
  const { grads, values } = lossGradients(
    model,
    concept,
    schedule(parseSchedulerConfig(model.scheduler)),
    params,
    [...params.keys()],
    () => batch,
    config,
    memory,
  );
  const losses: Record<string, number> = {};
  for (const [name, value] of Object.entries(values)) {
    losses[name] = (await value.data())[0];
    value.dispose();
  }
  return { losses, grads };
}
