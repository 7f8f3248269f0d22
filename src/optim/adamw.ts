/**
 * AdamW on named tensors: pure steps, no variables, state that can be saved.
 *
 * Parameters, gradients and moments are maps from a path to a tensor, as
 * `valueAndGrads` of `core/tree.ts` makes them.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { adamwUpdate } from "../core/kernels/ops.ts";
import { addAll } from "../core/device.ts";
import { cannot } from "../core/errors.ts";

/** Tensors by path. */
export type Tensors = ReadonlyMap<string, tf.Tensor>;

/** Moments of an AdamW run; shapes as the parameters. */
export interface AdamwState {
  /** Steps taken so far. */
  readonly step: number;
  /** First moments, one per parameter. */
  readonly m: Tensors;
  /** Second moments, one per parameter. */
  readonly v: Tensors;
}

/** Settings of {@linkcode adamwStep}. */
export interface AdamwStepOptions {
  /** Learning rate: one for all, or by path (parameter groups). */
  readonly lr: number | ((path: string) => number);
  /**
   * Decoupled weight decay, one for all or by path.
   *
   * @default {0.01}
   */
  readonly weightDecay?: number | ((path: string) => number);
  /**
   * Decay of the two moments.
   *
   * @default {[0.9, 0.999]}
   */
  readonly betas?: readonly [number, number];
  /**
   * Added to the root of the second moment.
   *
   * @default {1e-8}
   */
  readonly eps?: number;
}

/**
 * Starts AdamW: moments of zeros.
 *
 * @param params The parameters by path.
 * @returns State of step 0; its tensors are the caller's to dispose.
 */
export function adamwInit(params: Tensors): AdamwState {
  const zeros = () =>
    new Map([...params].map(([path, p]) => [path, tf.zeros(p.shape)]));
  return { step: 0, m: zeros(), v: zeros() };
}

function by<T extends number>(
  value: T | ((path: string) => T),
  path: string,
): T {
  return typeof value === "function" ? value(path) : value;
}

/**
 * One AdamW step (Loshchilov and Hutter 2019), with PyTorch's order of
 * operations: decay, moments, bias correction, update.
 *
 * A parameter without a gradient keeps its value and its moments, as in
 * PyTorch. Nothing is disposed: old parameters, gradients and state stay the
 * caller's (see {@linkcode disposeTensors}); everything returned is new.
 *
 * @param params Parameters by path.
 * @param grads Gradients by path; a subset of the parameters.
 * @param state Moments, of the same paths as `params`.
 * @param options Rates.
 * @returns New parameters and state, owned by the caller.
 * @throws If a gradient has no parameter, a parameter no moments, or a shape
 * differs.
 *
 * @example
 * ```ts
 * const next = adamwStep(params, grads, state, { lr: 1e-3 });
 * disposeTensors(params, grads, state.m, state.v);
 * ```
 */
export function adamwStep(
  params: Tensors,
  grads: Tensors,
  state: AdamwState,
  options: AdamwStepOptions,
): { params: Map<string, tf.Tensor>; state: AdamwState } {
  const { lr, weightDecay = 0.01, betas = [0.9, 0.999], eps = 1e-8 } = options;
  check(params, grads, state);
  const next = {
    params: new Map<string, tf.Tensor>(),
    m: new Map<string, tf.Tensor>(),
    v: new Map<string, tf.Tensor>(),
  };
  const step = state.step + 1;
  for (const [path, param] of params) {
    const grad = grads.get(path);
    const m = state.m.get(path)!;
    const v = state.v.get(path)!;
    const [p2, m2, v2] = grad
      ? adamwUpdate(param, grad, m, v, {
        lr: by(lr, path),
        beta1: betas[0],
        beta2: betas[1],
        eps,
        weightDecay: by(weightDecay, path),
        step,
      })
      // A clone shares the values but may be disposed like any other.
      : [param.clone(), m.clone(), v.clone()];
    next.params.set(path, p2);
    next.m.set(path, m2);
    next.v.set(path, v2);
  }
  return { params: next.params, state: { step, m: next.m, v: next.v } };
}

function check(params: Tensors, grads: Tensors, state: AdamwState): void {
  const what = "take an AdamW step";
  for (const [path, grad] of grads) {
    const param = params.get(path);
    if (!param) throw cannot(what, `a parameter "${path}"`, "only a gradient");
    if (!tf.util.arraysEqual(param.shape, grad.shape)) {
      throw cannot(
        what,
        `a gradient [${param.shape}] of "${path}"`,
        `[${grad.shape}]`,
      );
    }
  }
  for (const [path, param] of params) {
    for (const moments of [state.m, state.v]) {
      const moment = moments.get(path);
      if (!moment || !tf.util.arraysEqual(param.shape, moment.shape)) {
        throw cannot(
          what,
          `moments [${param.shape}] of "${path}"`,
          moment ? `[${moment.shape}]` : "none",
        );
      }
    }
  }
}

/**
 * Disposes every tensor of some maps.
 *
 * @param maps The maps; tensors already disposed are skipped.
 */
export function disposeTensors(...maps: readonly Tensors[]): void {
  for (const map of maps) {
    for (const tensor of map.values()) {
      if (!tensor.isDisposed) tensor.dispose();
    }
  }
}

/**
 * Names the tensors of a state, to save them; the step goes elsewhere (file
 * metadata).
 *
 * @param state The state.
 * @param prefix Put before every name.
 * @returns `<prefix>m.<path>` and `<prefix>v.<path>`, the state's own tensors.
 */
export function adamwTensors(
  state: AdamwState,
  prefix = "",
): Map<string, tf.Tensor> {
  return new Map([
    ...[...state.m].map(([path, t]) => [`${prefix}m.${path}`, t] as const),
    ...[...state.v].map(([path, t]) => [`${prefix}v.${path}`, t] as const),
  ]);
}

/**
 * Rebuilds a state from tensors named by {@linkcode adamwTensors}.
 *
 * @param tensors Named tensors; others may be among them.
 * @param step Steps taken so far.
 * @param prefix Put before every name.
 * @returns A state that shares the tensors.
 * @throws If a parameter has only one of its two moments.
 */
export function adamwFromTensors(
  tensors: Tensors,
  step: number,
  prefix = "",
): AdamwState {
  const pick = (kind: string) =>
    new Map(
      [...tensors].flatMap(([name, t]) =>
        name.startsWith(`${prefix}${kind}.`)
          ? [[name.slice(prefix.length + kind.length + 1), t] as const]
          : []
      ),
    );
  const [m, v] = [pick("m"), pick("v")];
  const odd = [...m.keys()].find((path) => !v.has(path)) ??
    [...v.keys()].find((path) => !m.has(path));
  if (odd !== undefined) {
    throw cannot("restore AdamW", `both moments of "${odd}"`, "one");
  }
  return { step, m, v };
}

/**
 * Learning-rate factor that warms up linearly from 0 and decays linearly to 0,
 * as diffusers' `get_scheduler("linear")`.
 *
 * @param step Step about to be taken, from 0.
 * @param total Number of steps.
 * @param warmup Steps of warm-up.
 * @default warmup 0
 * @returns A factor in [0, 1].
 */
export function linearDecay(step: number, total: number, warmup = 0): number {
  if (step < warmup) return step / Math.max(1, warmup);
  return Math.max(0, (total - step) / Math.max(1, total - warmup));
}

/**
 * Learning-rate factor that warms up linearly from 0 and falls to 0 along a
 * cosine, once or, from 1 again, several times: diffusers'
 * `get_scheduler("cosine")` and `"cosine_with_restarts"`.
 *
 * @param step Step about to be taken, from 0.
 * @param total Number of steps.
 * @param warmup Steps of warm-up.
 * @default warmup 0
 * @param cycles How often it falls.
 * @default cycles 1
 * @returns A factor in [0, 1].
 */
export function cosineDecay(
  step: number,
  total: number,
  warmup = 0,
  cycles = 1,
): number {
  if (step < warmup) return step / Math.max(1, warmup);
  const share = (step - warmup) / Math.max(1, total - warmup);
  if (share >= 1) return 0;
  return (1 + Math.cos(Math.PI * ((cycles * share) % 1))) / 2;
}

/**
 * Learning-rate factor that warms up linearly and then stays 1.
 *
 * @param step Step about to be taken, from 0.
 * @param warmup Steps of warm-up.
 * @default warmup 0
 */
export function constantRate(step: number, warmup = 0): number {
  return step < warmup ? step / Math.max(1, warmup) : 1;
}

/**
 * Scales gradients so that their common Euclidean norm is at most `limit`
 * (PyTorch's `clip_grad_norm_`). Nothing is read back from the device.
 *
 * @param grads Gradients by path; not changed, not disposed.
 * @param limit Largest norm allowed.
 * @returns New gradients and the norm before clipping, owned by the caller.
 */
export function clipGlobalNorm(
  grads: Tensors,
  limit: number,
): { grads: Map<string, tf.Tensor>; norm: tf.Scalar } {
  if (!(limit > 0)) throw cannot("clip gradients", "a limit above 0", limit);
  const norm = tf.tidy(() => {
    const squares = [...grads.values()].map((g) => tf.sum(tf.square(g)));
    return squares.length === 0
      ? tf.scalar(0)
      : tf.sqrt(addAll(squares)) as tf.Scalar;
  });
  const factor = tf.tidy(() =>
    tf.minimum(1, tf.div(limit, tf.add(norm, 1e-6)))
  );
  const clipped = new Map(
    [...grads].map(([path, g]) => [path, tf.mul(g, factor)]),
  );
  factor.dispose();
  return { grads: clipped, norm };
}
