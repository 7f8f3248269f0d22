import { cannot } from "../../../src/core/errors.ts";

/**
 * Names, shapes and offsets of the parameters of a network laid end to end in
 * one `Float32Array`: what data-parallel workers share and the host updates.
 */
export interface FlatLayout {
  readonly entries: readonly {
    readonly path: string;
    readonly shape: readonly number[];
    readonly offset: number;
    readonly size: number;
    /** Whether weight decay applies: matrices and kernels, not vectors. */
    readonly decay: boolean;
  }[];
  readonly size: number;
}

/**
 * Lays parameters end to end.
 *
 * @param shapes Paths and shapes, in order.
 */
export function flatLayout(
  shapes: Iterable<readonly [path: string, shape: readonly number[]]>,
): FlatLayout {
  let size = 0;
  const entries = [];
  for (const [path, shape] of shapes) {
    const count = shape.reduce((a, b) => a * b, 1);
    entries.push({
      path,
      shape,
      offset: size,
      size: count,
      decay: shape.length > 1,
    });
    size += count;
  }
  return { entries, size };
}

/** Everything an AdamW run with averaged weights carries from step to step. */
export interface FlatState {
  /** Steps done. */
  step: number;
  /** Current parameters. */
  readonly params: Float32Array;
  /** First moments. */
  readonly m: Float32Array;
  /** Second moments. */
  readonly v: Float32Array;
  /** Exponential moving average of the parameters. */
  readonly ema: Float32Array;
}

/**
 * Starts an optimizer run.
 *
 * @param params Initial parameters; used in place.
 */
export function flatState(params: Float32Array): FlatState {
  return {
    step: 0,
    params,
    m: new Float32Array(params.length),
    v: new Float32Array(params.length),
    ema: Float32Array.from(params),
  };
}

/** Settings of one {@linkcode flatAdamW} step. */
export interface FlatAdamWOptions {
  readonly lr: number;
  /** Decoupled, of matrices and kernels only. @default 0.01 */
  readonly weightDecay?: number;
  /** Largest global gradient norm; larger gradients are scaled down. */
  readonly maxNorm?: number;
  /** Decay of the averaged weights, reached after a warm-up. @default 0.999 */
  readonly ema?: number;
}

/**
 * Norm of a gradient, and what it is multiplied by so that it is not larger than
 * it may be.
 *
 * @param grads The gradient.
 * @param maxNorm Largest norm. @default any
 * @throws If it is not finite.
 */
export function clipping(
  grads: Float32Array,
  maxNorm?: number,
): { norm: number; clip: number } {
  let squares = 0;
  for (let i = 0; i < grads.length; i++) squares += grads[i] * grads[i];
  const norm = Math.sqrt(squares);
  if (!Number.isFinite(norm)) {
    throw cannot("take an optimizer step", "finite gradients", `norm ${norm}`);
  }
  const clip = maxNorm !== undefined && norm > maxNorm ? maxNorm / norm : 1;
  return { norm, clip };
}

/**
 * Share of the averaged weights that stays in a step.
 *
 * @param step Steps done, this one included.
 * @param options `ema`: what it grows to.
 */
export function averageKept(
  step: number,
  { ema = 0.999 }: FlatAdamWOptions,
): number {
  return Math.min(ema, (1 + step) / (10 + step));
}

/**
 * One AdamW step on the host, in place, with the moving average in the same
 * pass.
 *
 * @param layout Where the parameters lie.
 * @param state Changed in place; `step` grows by one.
 * @param grads Gradients, laid out alike.
 * @param options Rates.
 * @returns The gradient's global norm before clipping.
 * @throws If the gradient is not finite; the state is then unchanged.
 */
export function flatAdamW(
  layout: FlatLayout,
  state: FlatState,
  grads: Float32Array,
  options: FlatAdamWOptions,
): number {
  const { norm, clip } = clipping(grads, options.maxNorm);
  adamwEntries(layout.entries, state, grads, clip, options);
  return norm;
}

/**
 * {@linkcode flatAdamW} of some entries, by a gradient that has been looked at.
 *
 * @param entries Which.
 * @param state Changed in place; `step` grows by one.
 * @param grads Gradients, laid out as the parameters; finite.
 * @param clip What they are multiplied by, from {@linkcode clipping}.
 * @param options Rates.
 */
export function adamwEntries(
  entries: FlatLayout["entries"],
  state: FlatState,
  grads: Float32Array,
  clip: number,
  options: FlatAdamWOptions,
): void {
  const { lr, weightDecay = 0.01 } = options;
  const beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  const step = state.step + 1;
  const rate = lr / (1 - beta1 ** step);
  const correct2 = 1 / Math.sqrt(1 - beta2 ** step);
  const keep = averageKept(step, options);
  const { params, m, v, ema } = state;
  for (const { offset, size, decay } of entries) {
    const shrink = decay ? 1 - lr * weightDecay : 1;
    for (let i = offset; i < offset + size; i++) {
      const g = grads[i] * clip;
      const mi = m[i] = beta1 * m[i] + (1 - beta1) * g;
      const vi = v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      const p = params[i] * shrink -
        rate * mi / (Math.sqrt(vi) * correct2 + eps);
      params[i] = p;
      ema[i] += (1 - keep) * (p - ema[i]);
    }
  }
  state.step = step;
}

/**
 * Learning rate with linear warm-up, a plateau and linear decay to zero.
 *
 * @param step Steps done.
 * @param options Peak rate, warm-up steps, total steps, and the share of the
 * total in which the rate decays (by default all that follows the warm-up).
 */
export function warmupLinear(
  step: number,
  options: { lr: number; warmup: number; steps: number; decay?: number },
): number {
  const { lr, warmup, steps, decay = 1 } = options;
  if (step < warmup) return lr * (step + 1) / warmup;
  const length = Math.min(decay * steps, steps - warmup);
  return lr * Math.min(1, Math.max(0, steps - step) / Math.max(1, length));
}
