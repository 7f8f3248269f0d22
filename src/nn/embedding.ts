import * as tf from "@tensorflow/tfjs";
import { hostValues } from "../core/device.ts";
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

/** Chosen rows, picked on the host where the table waits there. */
function pick(table: tf.Tensor2D, ids: readonly number[]): tf.Tensor2D {
  const values = hostValues(table);
  if (!values) return tf.gather(table, tf.tensor1d([...ids], "int32"));
  const width = table.shape[1];
  const rows = new Float32Array(ids.length * width);
  ids.forEach((id, i) =>
    rows.set(values.subarray(id * width, (id + 1) * width), i * width)
  );
  return tf.tensor2d(rows, [ids.length, width]);
}

/**
 * Looks up rows of a table.
 *
 * A table that waits on the host stays there: CLIP's (152 MB) is larger than
 * what many graphics cards let an operation read.
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
    return {
      value: pick(t, ids),
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

/**
 * Consecutive rows of a table as a table.
 *
 * @param table [count, dim].
 * @param begin First row.
 * @param count How many.
 */
export function tableRows(
  table: tf.Tensor2D,
  begin: number,
  count: number,
): tf.Tensor2D {
  const width = table.shape[1];
  const values = hostValues(table);
  return values
    ? tf.tensor2d(values.slice(begin * width, (begin + count) * width), [
      count,
      width,
    ])
    : tf.slice(table, [begin, 0], [count, width]);
}

/**
 * One table below another.
 *
 * @param first [count, dim].
 * @param second [more, dim].
 * @returns [count + more, dim]; the caller's.
 */
export async function stackTables(
  first: tf.Tensor2D,
  second: tf.Tensor2D,
): Promise<tf.Tensor2D> {
  const values = hostValues(first);
  if (!values) return tf.concat([first, second], 0);
  const all = new Float32Array(first.size + second.size);
  all.set(values);
  all.set(await second.data(), first.size);
  return tf.tensor2d(all, [
    first.shape[0] + second.shape[0],
    first.shape[1],
  ]);
}

/** Standard deviation of a table's entries and mean length of its vectors. */
export interface TableSpread {
  /** Root of the variance of all entries. */
  readonly deviation: number;
  /** Mean Euclidean norm of a row. */
  readonly meanNorm: number;
}

/**
 * How spread out the vectors of a table are.
 *
 * @param table [count, dim].
 */
export async function tableSpread(table: tf.Tensor2D): Promise<TableSpread> {
  const values = hostValues(table);
  if (values) return spreadOf(values, table.shape[1]);
  const results = tf.tidy(() => [
    tf.moments(table).variance,
    tf.mean(tf.norm(table, 2, 1)),
  ]);
  const [[variance], [meanNorm]] = await Promise.all(
    results.map((t) => t.data()),
  );
  tf.dispose(results);
  return { deviation: Math.sqrt(variance), meanNorm };
}

function spreadOf(values: Float32Array, width: number): TableSpread {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  const mean = sum / values.length;
  let squares = 0;
  let norms = 0;
  for (let row = 0; row < values.length; row += width) {
    let norm = 0;
    for (let i = row; i < row + width; i++) {
      squares += (values[i] - mean) ** 2;
      norm += values[i] ** 2;
    }
    norms += Math.sqrt(norm);
  }
  return {
    deviation: Math.sqrt(squares / values.length),
    meanNorm: norms / (values.length / width),
  };
}
