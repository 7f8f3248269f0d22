/**
 * Muon for parameters laid end to end (Jordan et al. 2024): a matrix moves along
 * its momentum with all singular values near one.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { readInto } from "./read_into.ts";
import {
  adamwEntries,
  averageKept,
  clipping,
  type FlatAdamWOptions,
  type FlatLayout,
  type FlatState,
} from "./flat.ts";

/** Coefficients of the quintic Newton–Schulz iteration (Jordan et al. 2024). */
const [A, B, C] = [3.4445, -4.775, 2.0315] as const;

const STEPS = 5;

/**
 * Replaces the singular values of matrices by numbers near one, by five
 * Newton–Schulz steps (Jordan et al. 2024).
 *
 * @param matrices [k, m, n], none of them zero.
 * @returns [k, m, n] with the singular vectors of `matrices` and singular values
 * of about 0.7 to 1.2.
 *
 * @example
 * ```ts
 * const u = orthogonalised(tf.randomNormal([1, 8, 4]));
 * ```
 */
export function orthogonalised(matrices: tf.Tensor3D): tf.Tensor3D {
  return tf.tidy(() => {
    const [, rows, columns] = matrices.shape;
    const tall = rows > columns;
    const unit = matrices.div(
      matrices.square().sum([1, 2], true).sqrt().add(1e-12),
    );
    // X becomes (aI + bG + cG²) X with G = XXᵀ. All these factors commute, so
    // their product is computed on the short side, and X is touched twice.
    let gram = tf.matMul(unit, unit, tall, !tall);
    let product: tf.Tensor | undefined;
    for (let i = 0; i < STEPS; i++) {
      const factor = tf.eye(gram.shape[1]!).mul(A)
        .add(gram.mul(B)).add(tf.matMul(gram, gram).mul(C));
      product = product ? tf.matMul(product, factor) : factor;
      if (i < STEPS - 1) {
        gram = tf.matMul(tf.matMul(factor, factor), gram);
      }
    }
    return (tall
      ? tf.matMul(unit, product!)
      : tf.matMul(product!, unit)) as tf.Tensor3D;
  });
}

/** Matrices of one shape, as [inputs, outputs]: kernels have their rows first. */
export interface MatrixGroup {
  readonly shape: readonly [inputs: number, outputs: number];
  readonly offsets: readonly number[];
}

/** Inputs and outputs of a matrix or kernel whose last axis is its outputs. */
function sides(shape: readonly number[]): [inputs: number, outputs: number] {
  const outputs = shape[shape.length - 1];
  return [shape.reduce((a, b) => a * b, 1) / outputs, outputs];
}

/** Multiplications of one Newton–Schulz step, up to a factor. */
function work([a, b]: readonly [number, number]): number {
  const least = Math.min(a, b);
  return least * least * (Math.max(a, b) + 9 * least);
}

/** Matrices in one group at most, so that parts come out even. */
const GROUP = 8;

/**
 * Shares the matrices of a layout out into parts of about equal work.
 *
 * @param layout Where the parameters lie.
 * @param parts How many workers there are.
 */
export function matrixParts(
  layout: FlatLayout,
  parts: number,
): MatrixGroup[][] {
  const byShape = new Map<string, MatrixGroup & { offsets: number[] }>();
  const groups: (MatrixGroup & { offsets: number[] })[] = [];
  for (const { shape, offset, decay } of layout.entries) {
    if (!decay) continue;
    const name = String(sides(shape));
    let group = byShape.get(name);
    if (!group || group.offsets.length === GROUP) {
      group = { shape: sides(shape), offsets: [] };
      byShape.set(name, group);
      groups.push(group);
    }
    group.offsets.push(offset);
  }
  const cost = (g: MatrixGroup) => g.offsets.length * work(g.shape);
  const shares = Array.from(
    { length: parts },
    () => ({ cost: 0, groups: [] as MatrixGroup[] }),
  );
  for (const group of groups.sort((a, b) => cost(b) - cost(a))) {
    const least = shares.reduce((a, b) => b.cost < a.cost ? b : a);
    least.groups.push(group);
    least.cost += cost(group);
  }
  return shares.map(({ groups }) => groups);
}

/**
 * Orthogonalises matrices where they lie.
 *
 * @param values Changed in place.
 * @param groups Which matrices.
 */
export async function orthogonaliseInPlace(
  values: Float32Array,
  groups: readonly MatrixGroup[],
): Promise<void> {
  const sizes = groups.map(({ shape: [a, b], offsets }) =>
    a * b * offsets.length
  );
  const room = new Float32Array(Math.max(...sizes));
  for (const { shape: [inputs, outputs], offsets } of groups) {
    const size = inputs * outputs;
    const stacked = room.subarray(0, size * offsets.length);
    offsets.forEach((offset, i) =>
      stacked.set(values.subarray(offset, offset + size), i * size)
    );
    const result = tf.tidy(() =>
      orthogonalised(tf.tensor3d(stacked, [offsets.length, inputs, outputs]))
    );
    await readInto(result, stacked);
    result.dispose();
    offsets.forEach((offset, i) =>
      values.set(stacked.subarray(i * size, (i + 1) * size), offset)
    );
  }
}

/** Momentum of matrices. */
const MOMENTUM = 0.95;

/** Where matrices' updates are orthogonalised: in workers, or in place. */
export interface Orthogonaliser {
  /** Room for the updates, laid out as the parameters. */
  readonly updates: Float32Array;
  /** Orthogonalises all matrices of `updates` in place. */
  run(): Promise<void>;
}

/**
 * One Muon step in place: matrices and kernels move along their orthogonalised
 * Nesterov momentum, everything else by AdamW. A matrix's update has AdamW's
 * size, 0.2 a number (Liu et al. 2025, §2.2), so that one learning rate and one
 * weight decay serve both.
 *
 * @param layout Where the parameters lie.
 * @param state Changed in place; `step` grows by one. A matrix's momentum is in
 * `m`, its `v` stays as it is.
 * @param grads Gradients, laid out alike.
 * @param options Rates.
 * @param orthogonaliser Orthogonalises the matrices' updates.
 * @returns The gradient's global norm before clipping.
 * @throws If the gradient is not finite; the state is then unchanged.
 */
export async function flatMuon(
  layout: FlatLayout,
  state: FlatState,
  grads: Float32Array,
  options: FlatAdamWOptions,
  { updates, run }: Orthogonaliser,
): Promise<number> {
  const { lr, weightDecay = 0.01 } = options;
  const { norm, clip } = clipping(grads, options.maxNorm);
  const matrices = layout.entries.filter(({ decay }) => decay);
  const { params, m, ema } = state;
  for (const { offset, size } of matrices) {
    for (let i = offset; i < offset + size; i++) {
      const g = grads[i] * clip;
      m[i] = MOMENTUM * m[i] + (1 - MOMENTUM) * g;
      updates[i] = MOMENTUM * m[i] + (1 - MOMENTUM) * g;
    }
  }
  await run();
  const vectors = layout.entries.filter(({ decay }) => !decay);
  adamwEntries(vectors, state, grads, clip, options);
  const keep = averageKept(state.step, options);
  for (const { shape, offset, size } of matrices) {
    const rate = lr * 0.2 * Math.sqrt(Math.max(...sides(shape)));
    const shrink = 1 - lr * weightDecay;
    for (let i = offset; i < offset + size; i++) {
      const p = params[i] * shrink - rate * updates[i];
      params[i] = p;
      ema[i] += (1 - keep) * (p - ema[i]);
    }
  }
  return norm;
}
