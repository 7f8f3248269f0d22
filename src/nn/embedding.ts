import * as tf from "@tensorflow/tfjs";
import { ParamSpec, type Spec } from "./spec.ts";

/** A table of vectors. */
export interface Embedding {
  /** [count, dim]. */
  readonly weight: tf.Tensor2D;
}

/**
 * Spec of an embedding table.
 *
 * @param count Rows.
 * @param dim Columns.
 * @param std Standard deviation of the initial values.
 * @default std 0.02
 */
export function embeddingSpec(
  count: number,
  dim: number,
  std = 0.02,
): Spec<Embedding> {
  return {
    weight: new ParamSpec([count, dim], "plain", { type: "normal", std }),
  } as Spec<Embedding>;
}

/**
 * Looks up rows of a table.
 *
 * The gradient is a product with one-hot rows: `tf.gather`'s own needs a kernel
 * (UnsortedSegmentSum) that the wasm backend lacks.
 *
 * @param table [count, dim].
 * @param ids Row numbers.
 * @returns [ids.length, dim].
 */
export function lookup(
  table: tf.Tensor2D,
  ids: readonly number[],
): tf.Tensor2D {
  const [count] = table.shape;
  const op = tf.customGrad((...args: unknown[]) => {
    const t = args[0] as tf.Tensor2D;
    const index = tf.tensor1d(ids as number[], "int32");
    return {
      value: tf.gather(t, index),
      gradFunc: (dy: tf.Tensor) => {
        // tf.oneHot refuses a depth of 1, which a single learned token has.
        const hot = count === 1
          ? tf.ones([ids.length, 1])
          : tf.oneHot(tf.tensor1d(ids as number[], "int32"), count)
            .cast("float32") as tf.Tensor2D;
        return tf.matMul(hot, dy as tf.Tensor2D, true, false);
      },
    };
  });
  return op(table) as tf.Tensor2D;
}
