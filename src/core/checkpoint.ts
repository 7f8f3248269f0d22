/**
 * Gradient checkpointing: a part of a network keeps its inputs only, and its
 * gradients compute the rest again (Chen et al. 2016).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { currentRecording, gradientsOf } from "./tape.ts";
import { leaves, type TreeLike, updateAt } from "./tree.ts";

/**
 * Runs a function with gradient checkpointing: only its inputs are saved, and
 * the backward pass runs it a second time. Values and gradients are those of
 * the plain call, bit for bit where the backend is deterministic.
 *
 * @param f The function. It may not have effects, and what it computes with
 * must reach it through `inputs`, long-lived constants aside.
 * @param inputs A tree of tensors: features, parameters.
 * @returns The value; a tensor that `f` made.
 *
 * @example
 * ```ts
 * const x = tf.tensor1d([1, 2]);
 * const { grads } = valueAndGrads(
 *   ({ x }) => tf.sum(checkpointed(({ x }) => x.square().square(), { x })),
 *   { x },
 * );
 * ```
 */
export function checkpointed<I, T extends tf.Tensor>(
  f: (inputs: I) => T,
  inputs: I,
): T {
  const recording = currentRecording();
  if (!recording) return tf.tidy(() => f(inputs));
  const all = leaves(inputs as TreeLike);
  const distinct = [...new Map(all.map(([, t]) => [t.id, t])).values()];
  const moving = distinct.filter(({ id }) => recording.reached.has(id));
  if (moving.length === 0) return tf.tidy(() => f(inputs));
  // What was there before the recording is there on the way back.
  const kept = distinct.filter(({ id }) => id >= recording.first);
  const place = new Map(kept.map(({ id }, i) => [id, i]));
  const paths = all.filter(([, { id }]) => place.has(id)).map(([path]) => path);
  const op = tf.customGrad((...args: unknown[]) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    save(kept);
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) => {
      const now = (tensor: tf.Tensor) => {
        const i = place.get(tensor.id);
        return i === undefined ? tensor : saved[i];
      };
      const again = updateAt(inputs, paths, (was) => now(was as tf.Tensor));
      const xs = moving.map(now);
      const { value, grads } = gradientsOf(() => f(again), xs, dy);
      value.dispose();
      return grads.map((grad, i) => grad ?? tf.zerosLike(xs[i]));
    };
    return { value: f(inputs), gradFunc: gradFunc as never };
  });
  return op(...moving) as T;
}
