/**
 * Puts solved weights into a model.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { type TreeLike, updateAt } from "../core/tree.ts";
import type { Component } from "../customize/lora.ts";
import type { Model } from "../models/model.ts";

/**
 * A model with other weights at some paths; all else is shared.
 *
 * @param model The model; not changed.
 * @param component Which network.
 * @param weights By the paths of their layers.
 */
export function replaceWeights(
  model: Model,
  component: Component,
  weights: ReadonlyMap<string, tf.Tensor>,
): Model {
  const params = updateAt(
    model[component].params as TreeLike,
    weights.keys(),
    (node, path) => ({ ...node, weight: weights.get(path) }),
  );
  return { ...model, [component]: { ...model[component], params } };
}
