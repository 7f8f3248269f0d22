/**
 * Weight fusion: W = W₀ + λ Σ αᵢ ΔWᵢ, the baseline of Mix-of-Show (λ = 1/n).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { addAll } from "../core/device.ts";
import { cannot, KeysError, listed } from "../core/errors.ts";
import { at, type TreeLike, updateAt } from "../core/tree.ts";
import { addTokens, type Concept } from "../customize/concept.ts";
import {
  attachedAdapters,
  type Component,
  COMPONENTS,
  delta,
} from "../customize/lora.ts";
import type { LowRank } from "../nn/linear.ts";
import type { Model } from "../models/model.ts";

/**
 * Strength of a concept's adapter: `unet_alpha` and `text_encoder_alpha` of the
 * official concept list.
 */
export interface Strength {
  /**
   * α of the UNet.
   *
   * @default 1
   */
  readonly unet?: number;
  /**
   * α of the text encoder.
   *
   * @default 1
   */
  readonly textEncoder?: number;
}

/** Options of {@linkcode weightFusion}. */
export interface WeightFusionOptions {
  /**
   * λ, the factor of the sum.
   *
   * @default 1/n, the strict average
   */
  readonly lambda?: number;
  /**
   * αᵢ, one per concept.
   *
   * @default 1
   */
  readonly strengths?: readonly Strength[];
}

/**
 * αᵢ of a concept.
 *
 * @param strengths One per concept, or none.
 * @param i Which concept.
 * @param component Which network.
 */
export function strengthOf(
  strengths: readonly Strength[] | undefined,
  i: number,
  component: Component,
): number {
  return strengths?.[i]?.[component] ?? 1;
}

/**
 * Checks that concepts can be fused into a model.
 *
 * @param base The model.
 * @param concepts The concepts.
 * @param strengths Their strengths.
 * @param whole Whether fully fine-tuned networks are accepted. @default false
 * @throws If there are none, two have one name, the model carries adapters, or
 * a number is not finite.
 */
export function checkFusion(
  base: Model,
  concepts: readonly Concept[],
  strengths?: readonly Strength[],
  whole = false,
): void {
  const what = "fuse concepts";
  if (concepts.length === 0) throw cannot(what, "at least one", "none");
  const names = concepts.map(({ name }) => name);
  if (new Set(names).size !== names.length) {
    throw cannot(what, "different names", names.join(", "));
  }
  const tuned = concepts.filter(({ weights }) => weights);
  if (tuned.length > 0 && !whole) {
    throw cannot(
      what,
      "adapters (weight fusion also takes fine-tuned models; a LoRA can be " +
        "extracted from one)",
      tuned.map(({ name }) => name).join(", "),
    );
  }
  const attached = attachedAdapters(base);
  if (attached.length > 0) {
    throw cannot(
      what,
      "a base model without adapters (merge them first)",
      attached.join(", "),
    );
  }
  if (strengths && strengths.length !== concepts.length) {
    throw cannot(what, `${concepts.length} strengths`, strengths.length);
  }
  for (const strength of strengths ?? []) {
    for (const value of [strength.unet ?? 1, strength.textEncoder ?? 1]) {
      if (!Number.isFinite(value)) {
        throw cannot(what, "finite strengths", value);
      }
    }
  }
  const problems = concepts.flatMap(({ name, adapter }) =>
    COMPONENTS.flatMap((component) =>
      [...adapter[component]].flatMap(([path, low]) => {
        const weight: tf.Tensor | undefined = at(base[component].params, path)
          ?.weight;
        if (!weight) return [`${name}: no layer ${component} ${path}`];
        const inputs = weight.shape.slice(0, -1);
        const outputs = weight.shape[weight.rank - 1];
        const fits = tf.util.arraysEqual(low.down.shape.slice(0, -1), inputs) &&
          low.up.shape[low.up.rank - 1] === outputs;
        return fits
          ? []
          : [`${name}: ${component} ${path} is [${weight.shape}]`];
      })
    )
  );
  if (problems.length > 0) {
    throw new KeysError(
      `Cannot ${what}: ${problems.length} layers do not fit: ${
        listed(problems, 10, "; ")
      }`,
      problems,
    );
  }
}

/**
 * Checks λ.
 *
 * @param lambda Factor of the sum, if it is given.
 * @throws If it is not finite.
 */
export function checkLambda(lambda: number | undefined): void {
  if (lambda !== undefined && !Number.isFinite(lambda)) {
    throw cannot("fuse weights", "a finite λ", lambda);
  }
}

/**
 * ΔW of one adapter leaf at strength α, [in, out] or HWIO; the caller's.
 *
 * @param low The leaf.
 * @param weight The layer's W₀.
 * @param alpha αᵢ.
 */
export function scaledDelta(
  low: LowRank,
  weight: tf.Tensor,
  alpha: number,
): tf.Tensor {
  return delta({ ...low, scale: low.scale * alpha }, weight);
}

/**
 * Replaces weights by W₀ + λ Σ αᵢ ΔWᵢ.
 *
 * @param tree Parameters of a component; not changed.
 * @param component Which one.
 * @param paths Layers.
 * @param concepts The concepts.
 * @param options λ and αᵢ.
 * @returns A tree whose weights at `paths` are new, the caller's.
 */
export function averageWeights<T>(
  tree: T,
  component: Component,
  paths: Iterable<string>,
  concepts: readonly Concept[],
  options: WeightFusionOptions = {},
): T {
  const { lambda = 1 / concepts.length, strengths } = options;
  return updateAt(tree as TreeLike, paths, (node, path) => ({
    ...node,
    weight: tf.tidy(() => {
      const weight: tf.Tensor = node.weight;
      const changes = concepts.flatMap(({ adapter }, i) => {
        const low = adapter[component].get(path);
        const alpha = strengthOf(strengths, i, component);
        return low ? [scaledDelta(low, weight, alpha)] : [];
      });
      return weight.add(addAll(changes).mul(lambda));
    }),
  })) as T;
}

/** Paths of the layers of a component that any concept changes. */
export function changedPaths(
  concepts: readonly Concept[],
  component: Component,
): string[] {
  return [
    ...new Set(
      concepts.flatMap(({ adapter }) => [...adapter[component].keys()]),
    ),
  ];
}

/** Adds λ Σ αᵢ (Wᵢ − W₀) of fine-tuned networks, biases and norms included. */
function averageWhole<T>(
  tree: T,
  base: Model,
  component: Component,
  concepts: readonly Concept[],
  { lambda = 1 / concepts.length, strengths }: WeightFusionOptions,
): T {
  const paths = new Set(
    concepts.flatMap(({ weights }) => [...weights?.[component].keys() ?? []]),
  );
  return updateAt(tree, paths, (leaf: tf.Tensor, path) => {
    const first: tf.Tensor = at(base[component].params, path);
    const sum = tf.tidy(() => {
      const changes = concepts.flatMap(({ weights }, i) => {
        const own = weights?.[component].get(path);
        const alpha = strengthOf(strengths, i, component);
        return own ? [own.sub(first).mul(alpha)] : [];
      });
      return leaf.add(addAll(changes).mul(lambda));
    });
    if (leaf !== first) leaf.dispose();
    return sum;
  });
}

/**
 * Fuses concepts by adding up their ΔW: in text encoder and UNet, every layer
 * of their adapters and every parameter that was fine-tuned. Learned tokens are
 * added unchanged.
 *
 * @param base The model; not changed.
 * @param concepts The concepts, n of them; not changed.
 * @param options λ and strengths.
 * @returns A model of the same type; changed weights and token vectors are new
 * (`disposeModel(fused, base)` frees them), all else is shared.
 * @throws If a concept does not fit the model.
 *
 * @example
 * ```ts
 * const average = weightFusion(base, [potter, thanos]);
 * const sum = weightFusion(base, [potter, thanos], { lambda: 0.6 });
 * ```
 */
export function weightFusion(
  base: Model,
  concepts: readonly Concept[],
  options: WeightFusionOptions = {},
): Model {
  checkFusion(base, concepts, options.strengths, true);
  checkLambda(options.lambda);
  const fused = addTokens(base, concepts);
  const parts = Object.fromEntries(
    COMPONENTS.map((component) => [component, {
      config: base[component].config,
      params: averageWhole(
        averageWeights(
          base[component].params as TreeLike,
          component,
          changedPaths(concepts, component),
          concepts,
          options,
        ),
        base,
        component,
        concepts,
        options,
      ),
    }]),
  );
  return { ...fused, ...parts } as Model;
}
