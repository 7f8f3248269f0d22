/**
 * Gradients of a batch by every tensor of a concept.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
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
