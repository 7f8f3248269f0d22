import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { attention as attentionKernel } from "../core/kernels/ops.ts";
import { type Context, type Linear, linear, linearSpec } from "./linear.ts";
import type { Spec } from "./spec.ts";

/** Parameters of a diffusers `Attention` module. */
export interface Attention {
  /** Queries. */
  readonly to_q: Linear;
  /** Keys. */
  readonly to_k: Linear;
  /** Values. */
  readonly to_v: Linear;
  /** `to_out.0` is the linear layer (`to_out.1` was a dropout). */
  readonly to_out: readonly [Linear];
}

/**
 * Spec of a diffusers `Attention` module.
 *
 * @param query Features of the queries and of the output.
 * @param options `states`: features of keys and values (default `query`);
 * `bias`: of to_q, to_k and to_v (default false).
 */
export function attentionSpec(
  query: number,
  options: { states?: number; bias?: boolean } = {},
): Spec<Attention> {
  const { states = query, bias = false } = options;
  return {
    to_q: linearSpec(query, query, { bias }),
    to_k: linearSpec(states, query, { bias }),
    to_v: linearSpec(states, query, { bias }),
    to_out: [linearSpec(query, query)],
  };
}

/** Computes softmax(q·kᵀ/√d)·v for projected queries and given states. */
export type Attend = (
  query: tf.Tensor3D,
  states: tf.Tensor3D,
) => tf.Tensor3D;

/**
 * Keys and values of states that do not change over many calls, such as those
 * of a prompt over the steps of a sampler. A module's are projected in its
 * first call and kept until they are disposed.
 *
 * All calls with one of these have to have the same states for a module.
 *
 * @example
 * ```ts ignore
 * const keyValues = new KeyValues();
 * for (const t of timesteps) unet(params, config, x, [t], states, { keyValues });
 * keyValues.dispose();
 * ```
 */
export class KeyValues {
  readonly #made = new Map<
    Attention,
    { readonly states: readonly number[]; readonly pair: KeyValue }
  >();

  /**
   * A module's keys and values.
   *
   * @param module The module, by identity.
   * @param states Their source, [b, m, d].
   * @param project Makes them, once.
   * @throws If the states have another shape than before.
   */
  of(
    module: Attention,
    states: tf.Tensor3D,
    project: () => KeyValue,
  ): KeyValue {
    const known = this.#made.get(module);
    if (!known) {
      const pair = project().map((x) => tf.keep(x)) as unknown as KeyValue;
      this.#made.set(module, { states: states.shape, pair });
      return pair;
    }
    if (!tf.util.arraysEqual(known.states as number[], states.shape)) {
      throw cannot(
        "keep keys and values",
        `states [${known.states}] as before`,
        `[${states.shape}]`,
      );
    }
    return known.pair;
  }

  /** Frees them. */
  dispose(): void {
    for (const { pair } of this.#made.values()) tf.dispose([...pair]);
    this.#made.clear();
  }
}

/** Projected keys and values [b, m, c]. */
export type KeyValue = readonly [keys: tf.Tensor3D, values: tf.Tensor3D];

/** What an attention call lets its caller replace or observe. */
export interface AttentionHooks {
  /**
   * Replaces the attention between projected queries and states, before
   * `to_out`.
   *
   * @param query Projected queries [b, n, c].
   * @param states Keys' and values' source [b, m, d].
   * @param attend The plain computation, callable on any part.
   */
  readonly replace?: (
    query: tf.Tensor3D,
    states: tf.Tensor3D,
    attend: Attend,
  ) => tf.Tensor3D;
  /**
   * Sees the attention probabilities [b, heads, n, m]; asking for them costs
   * the score matrix.
   */
  readonly probabilities?: (probabilities: tf.Tensor4D) => void;
}

/** softmax(q·kᵀ/√d) with the heads split, differentiable. */
function probabilities(
  q: tf.Tensor3D,
  k: tf.Tensor3D,
  heads: number,
): tf.Tensor4D {
  const split = (x: tf.Tensor3D) =>
    x.reshape([x.shape[0], x.shape[1], heads, x.shape[2] / heads])
      .transpose([0, 2, 1, 3]);
  const scale = 1 / Math.sqrt(q.shape[2] / heads);
  return tf.softmax(
    tf.matMul(split(q), split(k), false, true).mul(scale),
  ) as tf.Tensor4D;
}

/**
 * A diffusers `Attention` forward: self-attention when `states` is `x`.
 *
 * @param p Parameters.
 * @param x [b, n, c].
 * @param states [b, m, d].
 * @param heads Number of heads.
 * @param context Observers of projections.
 * @param hooks Replacement and observation of the attention itself.
 * @param kept Where keys and values of `states` are kept for later calls; not
 * where `context` observes or alters projections.
 * @returns [b, n, c].
 */
export function attend(
  p: Attention,
  x: tf.Tensor3D,
  states: tf.Tensor3D,
  heads: number,
  context?: Context,
  hooks?: AttentionHooks,
  kept?: KeyValues,
): tf.Tensor3D {
  const query = linear(p.to_q, x, context);
  const plain: Attend = (q, s) => {
    const project = () =>
      [linear(p.to_k, s, context), linear(p.to_v, s, context)] as const;
    // Regions have states of their own.
    const [k, v] = kept && s === states && !context?.gate && !context?.tap
      ? kept.of(p, s, project)
      : project();
    if (!hooks?.probabilities) return attentionKernel(q, k, v, heads);
    const probs = probabilities(q, k, heads);
    hooks.probabilities(probs);
    const [b, m, c] = v.shape;
    const split = v.reshape([b, m, heads, c / heads]).transpose([0, 2, 1, 3]);
    return tf.matMul(probs, split).transpose([0, 2, 1, 3])
      .reshape([b, q.shape[1], c]) as tf.Tensor3D;
  };
  const hidden = hooks?.replace
    ? hooks.replace(query, states, plain)
    : plain(query, states);
  return linear(p.to_out[0], hidden, context);
}
