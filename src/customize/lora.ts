/**
 * Low-rank adapters: where they go, how they start, attaching, detaching and
 * merging them.
 *
 * Every function returns new trees that share the base tensors; nothing is
 * patched and nothing is disposed.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot, KeysError, listed } from "../core/errors.ts";
import {
  fold,
  type Key,
  key as rootKey,
  normal,
  permutation,
  uniform,
} from "../core/random.ts";
import { at, type TreeLike, updateAt } from "../core/tree.ts";
import { outputNorms } from "../nn/dora.ts";
import {
  type Conv,
  type Linear,
  type LowRank,
  lowRankDelta,
  type Spectrum,
} from "../nn/linear.ts";
import type { Model } from "../models/model.ts";
import { checkDoraWeighting, type DoraWeighting, weighted } from "./dora.ts";
import {
  type Component,
  COMPONENTS,
  type Site,
  sites,
  type TargetName,
  type Targets,
  targets,
} from "./sites.ts";

export type { DoraWeighting } from "./dora.ts";
export {
  attentionSites,
  type Component,
  COMPONENTS,
  type Site,
  sites,
  TARGET_NAMES,
  type TargetName,
  type Targets,
  targets,
} from "./sites.ts";

/**
 * The factor of `up·down` as a function of α and the rank r: α in Mix-of-Show,
 * α/r in kohya and PEFT, α/√r in rank-stabilised LoRA.
 */
export type ScaleRule = "alpha" | "alpha/rank" | "alpha/sqrt(rank)";

/** A named set of low-rank additions, keyed by the paths of their layers. */
export interface Adapter {
  /** Unique among the adapters of a model. */
  readonly name: string;
  /** The rule by which the scales of its leaves were made. */
  readonly scaleRule: ScaleRule;
  /** Layers of the text encoder, by path in its parameter tree. */
  readonly textEncoder: ReadonlyMap<string, LowRank>;
  /** Layers of the UNet, by path in its parameter tree. */
  readonly unet: ReadonlyMap<string, LowRank>;
}

/**
 * How `down` starts: `kaiming` uniform with a = √5 (Mix-of-Show main, PyTorch's
 * default), `normal` N(0, 1/r²) (its research branch), `orthogonal`: columns,
 * drawn by the key, of an orthogonal basis that is the same for all concepts
 * (Po et al. 2024), or `identity`: the rank is the number of inputs and `up` is
 * all of ΔW (with `down` frozen in training this is plain fine-tuning of the
 * layer).
 */
export type LoraInit = "kaiming" | "normal" | "orthogonal" | "identity";

/**
 * Gives the `down` matrix of a layer, such as a basis that all clients share.
 *
 * @returns Values of [in, rank], or [kh, kw, in, rank].
 */
export type LoraBasis = (
  component: Component,
  site: Site,
  rank: number,
) => Float32Array;

/** Settings of {@linkcode initLora}. */
export interface InitLoraOptions {
  /** Random key; every layer draws from a key of its own. */
  readonly key: Key;
  /**
   * Rank of every layer.
   *
   * @default 4
   */
  readonly rank?: number;
  /**
   * How `down` starts.
   *
   * @default "kaiming"
   */
  readonly init?: LoraInit | LoraBasis;
  /**
   * Layers.
   *
   * @default "attention"
   */
  readonly targets?: TargetName | Targets;
  /**
   * Name of the adapter.
   *
   * @default "lora"
   */
  readonly name?: string;
  /**
   * Whether layers have a magnitude of their own (DoRA, Liu et al. 2024); it
   * starts at the norms of the base weight.
   *
   * @default {false}
   */
  readonly dora?: boolean;
}

/** The networks of a model that adapters change. */
export type Adaptable = Pick<Model, "textEncoder" | "unet">;

/**
 * Makes a fresh adapter: `down` random, `up` zero, scale 1 (α is given when it
 * is attached).
 *
 * @param model The model whose layers it fits.
 * @param options Rank, layers, initialisation.
 * @returns The adapter; its tensors are the caller's.
 * @throws If the rank is not an integer in [1, min(in, out)] or no layer is
 * chosen.
 *
 * @example
 * ```ts
 * const adapter = initLora(model, { rank: 4, key: key(1) });
 * const adapted = attach(model, adapter, { alpha: 0.7 });
 * ```
 */
export function initLora(model: Adaptable, options: InitLoraOptions): Adapter {
  const { rank = 4, init = "kaiming", name = "lora", dora = false } = options;
  const what = "initialise a LoRA";
  const chosen = options.targets ?? "attention";
  const wanted = typeof chosen === "string" ? targets(chosen) : chosen;
  if (!Number.isInteger(rank) || rank < 1) {
    throw cannot(what, "an integer rank ≥ 1", rank);
  }
  const make = (component: Component): Map<string, LowRank> => {
    const found = sites(
      model[component].params,
      (site) => wanted(component, site),
    );
    for (const { path, inputs, outputs, kernel } of found) {
      if (init === "identity") continue;
      const limit = Math.min(inputs * kernel[0] * kernel[1], outputs);
      if (rank > limit) {
        throw cannot(what, `a rank ≤ ${limit} for ${path}`, rank);
      }
    }
    return new Map(
      found.map((site) => [site.path, {
        ...freshLowRank(
          site,
          init === "identity" ? fanIn(site) : rank,
          startOfDown(component, site, init, rank, options.key),
          name,
        ),
        ...(dora &&
          { magnitude: baseNorms(model[component].params, site.path) }),
      }]),
    );
  };
  const adapter: Adapter = {
    name,
    scaleRule: "alpha",
    textEncoder: make("textEncoder"),
    unet: make("unet"),
  };
  if (adapter.textEncoder.size + adapter.unet.size === 0) {
    throw cannot(what, "at least one layer", "none");
  }
  return adapter;
}

/** The norms of a layer's outputs in the base model. */
function baseNorms(params: unknown, path: string): tf.Tensor1D {
  return outputNorms((at(params as TreeLike, path) as Linear | Conv).weight);
}

/** Number of inputs of one output of a layer. */
function fanIn({ inputs, kernel }: Site): number {
  return inputs * kernel[0] * kernel[1];
}

function startOfDown(
  component: Component,
  site: Site,
  init: LoraInit | LoraBasis,
  rank: number,
  parent: Key,
): Float32Array {
  const n = fanIn(site);
  const size = n * rank;
  if (typeof init === "function") {
    const values = init(component, site, rank);
    if (values.length !== size) {
      throw cannot(
        "initialise a LoRA",
        `${size} values of down for ${site.path}`,
        values.length,
      );
    }
    return values;
  }
  const key = fold(parent, component, site.path);
  switch (init) {
    case "kaiming": {
      // √(6 / ((1 + a²)·fan_in)) with a = √5.
      const bound = 1 / Math.sqrt(n);
      return uniform(key, size, -bound, bound);
    }
    case "normal":
      return normal(key, size, 1 / rank);
    case "orthogonal":
      return orthogonalColumns(
        n,
        permutation(key, n).slice(0, rank),
        normal(fold(rootKey(0), "orthogonal", component, site.path), n),
      );
    case "identity": {
      const eye = new Float32Array(n * n);
      for (let i = 0; i < n; i++) eye[i * n + i] = 1;
      return eye;
    }
    default:
      throw cannot(
        "initialise a LoRA",
        "kaiming, normal, orthogonal, identity or a function",
        String(init),
      );
  }
}

/**
 * Columns of an orthogonal matrix that is never formed: the discrete cosine
 * basis with random signs of its rows, the same for every client.
 */
function orthogonalColumns(
  n: number,
  columns: ArrayLike<number>,
  signs: ArrayLike<number>,
): Float32Array {
  const rank = columns.length;
  const down = new Float32Array(n * rank);
  for (let c = 0; c < rank; c++) {
    const k = columns[c];
    const scale = Math.sqrt((k === 0 ? 1 : 2) / n);
    for (let j = 0; j < n; j++) {
      down[j * rank + c] = Math.sign(signs[j]) * scale *
        Math.cos(Math.PI * (j + 0.5) * k / n);
    }
  }
  return down;
}

function freshLowRank(
  site: Site,
  rank: number,
  down: Float32Array,
  adapter: string,
): LowRank {
  const [h, w] = site.kernel;
  return site.kind === "linear"
    ? {
      down: tf.tensor(down, [site.inputs, rank]),
      up: tf.zeros([rank, site.outputs]),
      scale: 1,
      adapter,
    }
    : {
      down: tf.tensor(down, [h, w, site.inputs, rank]),
      up: tf.zeros([1, 1, rank, site.outputs]),
      scale: 1,
      adapter,
    };
}

/** The rank of a low-rank addition. */
export function rankOf(low: LowRank): number {
  return low.down.shape[low.down.rank - 1] as number;
}

/** How strongly one adapter acts on one layer. */
export type Weight = (
  adapter: string,
  component: Component,
  path: string,
) => number;

/** Settings of {@linkcode attach} and {@linkcode setWeights}. */
export interface AttachOptions {
  /**
   * Factor on every layer of every adapter, the α of Mix-of-Show.
   *
   * @default 1
   */
  readonly alpha?: number;
  /**
   * Further factors: by adapter name, one number or one per part of the model,
   * or a function of adapter, component and layer.
   */
  readonly weights?:
    | Readonly<Record<string, number | BlockWeights>>
    | Weight;
  /**
   * What a weight does to a DoRA.
   *
   * @default "peft"
   */
  readonly dora?: DoraWeighting;
}

/** Weights by part of a model; the default is 1. */
export interface BlockWeights {
  /** Factor on the text encoder. */
  readonly textEncoder?: number;
  /** Factor on the UNet's encoder. */
  readonly down?: number;
  /** Factor on the UNet's middle. */
  readonly mid?: number;
  /** Factor on the UNet's decoder. */
  readonly up?: number;
  /**
   * Weights of layers whose path begins like this (`up_blocks.1.attentions.0`),
   * instead of those above; the longest matching prefix is used.
   */
  readonly paths?: Readonly<Record<string, number>>;
}

/**
 * A {@linkcode Weight} by part of the model.
 *
 * @param weights Factor of each part.
 */
export function blockWeights(weights: BlockWeights): Weight {
  const { textEncoder = 1, down = 1, mid = 1, up = 1, paths = {} } = weights;
  const longestFirst = Object.keys(paths).sort((a, b) => b.length - a.length);
  return (_, component, path) => {
    const beginning = longestFirst.find((start) =>
      path === start || path.startsWith(`${start}.`)
    );
    return beginning !== undefined
      ? paths[beginning]
      : component === "textEncoder"
      ? textEncoder
      : path.startsWith("down_blocks.")
      ? down
      : path.startsWith("mid_block.")
      ? mid
      : path.startsWith("up_blocks.")
      ? up
      : 1;
  };
}

/** The factors of {@linkcode AttachOptions} as one function. */
function weightOf(
  { alpha = 1, weights = {} }: AttachOptions,
  what: string,
): Weight {
  const byName = typeof weights === "function"
    ? undefined
    : new Map<string, Weight>(
      Object.entries(weights).map(([name, weight]) => [
        name,
        typeof weight === "number" ? () => weight : blockWeights(weight),
      ]),
    );
  return (adapter, component, path) => {
    const own = byName ? byName.get(adapter) ?? (() => 1) : weights as Weight;
    const weight = alpha * own(adapter, component, path);
    if (!Number.isFinite(weight)) {
      throw cannot(
        `${what} "${adapter}" at ${path}`,
        "a finite weight",
        weight,
      );
    }
    return weight;
  };
}

/** Names with weights that are not names of adapters. */
function strangers(
  weights: AttachOptions["weights"],
  names: readonly string[],
): string[] {
  return weights && typeof weights === "object"
    ? Object.keys(weights).filter((name) => !names.includes(name))
    : [];
}

/**
 * Attaches adapters: W·x becomes W·x + Σ weight·scale·up·down·x.
 *
 * @param model The base; not changed.
 * @param adapters One or several, with names not yet in the model.
 * @param options Factors, which {@linkcode setWeights} can change later.
 * @returns A model that shares all tensors with the base and the adapters.
 * @throws One error about all layers that are missing or do not fit; if a
 * name is taken or a factor is not finite.
 *
 * @example
 * ```ts
 * const both = attach(model, [cat, style], {
 *   weights: { cat: 0.8, style: { up: 0.5, textEncoder: 0 } },
 * });
 * ```
 */
export function attach<M extends Adaptable>(
  model: M,
  adapters: Adapter | readonly Adapter[],
  options: AttachOptions = {},
): M {
  const list = Array.isArray(adapters)
    ? adapters as readonly Adapter[]
    : [adapters as Adapter];
  const { weights, dora = "peft" } = options;
  checkDoraWeighting(dora, "attach adapters");
  const factor = weightOf(options, "attach");
  const known = new Set(attachedAdapters(model));
  for (const { name } of list) {
    if (known.has(name)) {
      throw cannot("attach an adapter", "a name not in use", `"${name}"`);
    }
    known.add(name);
  }
  const unused = strangers(weights, list.map(({ name }) => name));
  if (unused.length > 0) {
    throw cannot(
      "attach adapters",
      `weights of ${list.map((a) => a.name).join(", ")}`,
      unused.join(", "),
    );
  }
  const problems: string[] = [];
  const result = { ...model };
  for (const component of COMPONENTS) {
    const network = model[component];
    const added = new Map<string, LowRank[]>();
    for (const adapter of list) {
      for (const [path, low] of adapter[component]) {
        const problem = misfit(network.params, path, low);
        if (problem) {
          problems.push(`${component} ${problem}`);
          continue;
        }
        const weight = factor(adapter.name, component, path);
        const leaf = weighted(
          { ...low, adapter: adapter.name },
          weight,
          dora,
        );
        added.set(path, [...added.get(path) ?? [], leaf]);
      }
    }
    if (added.size === 0) continue;
    if (problems.length > 0) continue;
    const params = updateAt(
      network.params as TreeLike,
      added.keys(),
      (node, path) => ({
        ...node,
        low: [...node.low ?? [], ...added.get(path)!],
      }),
    );
    Object.assign(result, { [component]: { ...network, params } });
  }
  if (problems.length > 0) {
    throw new KeysError(
      `Cannot attach ${
        list.map((a) => `"${a.name}"`).join(", ")
      }: ${problems.length} layers do not fit: ${listed(problems, 10, "; ")}`,
      problems,
    );
  }
  return result;
}

/**
 * Changes the weights of attached adapters without touching a tensor.
 *
 * @param model A model with adapters; not changed.
 * @param options Factors as for {@linkcode attach}, counted from weight 1. With
 * weights by name the adapters that are not named keep theirs.
 * @returns A model that shares all tensors.
 * @throws If the model has no adapter of a name, or a factor is not finite.
 *
 * @example
 * ```ts
 * const weaker = setWeights(model, { weights: { style: 0.3 } });
 * ```
 */
export function setWeights<M extends Adaptable>(
  model: M,
  options: AttachOptions,
): M {
  const { weights, dora = "peft" } = options;
  const what = "set weights";
  checkDoraWeighting(dora, what);
  const names = attachedAdapters(model);
  const unknown = strangers(weights, names);
  if (names.length === 0 || unknown.length > 0) {
    throw cannot(
      what,
      names.length === 0
        ? "a model with adapters"
        : `weights of ${names.join(", ")}`,
      unknown.join(", ") || "none",
    );
  }
  const factor = weightOf(options, "set the weight of");
  return replaceAdapted(model, (layer, component, path) => ({
    ...layer,
    low: layer.low!.map((leaf) =>
      leaf.adapter === undefined ||
        (typeof weights === "object" && !Object.hasOwn(weights, leaf.adapter))
        ? leaf
        : weighted(leaf, factor(leaf.adapter, component, path), dora)
    ),
  } as Adapted));
}

/** Why an adapter leaf does not fit a layer, or nothing. */
function misfit(
  tree: TreeLike,
  path: string,
  low: LowRank,
): string | undefined {
  const weight = at(tree, path)?.weight;
  if (!(weight instanceof tf.Tensor)) return `${path}: no such layer`;
  const rank = rankOf(low);
  const expected = weight.rank === 2
    ? { down: [weight.shape[0], rank], up: [rank, weight.shape[1]!] }
    : {
      down: [...weight.shape.slice(0, 3), rank],
      up: [1, 1, rank, weight.shape[3]!],
    };
  for (const part of ["down", "up"] as const) {
    if (!tf.util.arraysEqual(low[part].shape, expected[part])) {
      return `${path}: ${part} is [${low[part].shape}], expected [${
        expected[part]
      }]`;
    }
  }
  const of = low.dora?.of ?? "output";
  const size = weight.shape[weight.rank - (of === "output" ? 1 : 2)];
  if (low.magnitude && low.magnitude.size !== size) {
    return `${path}: magnitude is [${low.magnitude.shape}], expected [${size}]`;
  }
}

type Adapted = Linear | Conv;

/** Paths of layers that carry adapters. */
function adaptedPaths(tree: TreeLike): string[] {
  return sites(tree).map(({ path }) => path).filter((path) =>
    (at(tree, path) as Adapted).low !== undefined
  );
}

/**
 * Names of the adapters attached to a model, in order of attachment.
 *
 * @param model The model.
 */
export function attachedAdapters(model: Adaptable): string[] {
  const names = new Set<string>();
  for (const component of COMPONENTS) {
    const tree = model[component].params;
    for (const path of adaptedPaths(tree)) {
      for (const low of (at(tree, path) as Adapted).low ?? []) {
        if (low.adapter !== undefined) names.add(low.adapter);
      }
    }
  }
  return [...names];
}

/** Rebuilds both components with every adapted layer replaced. */
function replaceAdapted<M extends Adaptable>(
  model: M,
  replace: (layer: Adapted, component: Component, path: string) => Adapted,
): M {
  const result = { ...model };
  for (const component of COMPONENTS) {
    const network = model[component];
    const paths = adaptedPaths(network.params);
    if (paths.length === 0) continue;
    const params = updateAt(
      network.params as TreeLike,
      paths,
      (node, path) => replace(node, component, path),
    );
    Object.assign(result, { [component]: { ...network, params } });
  }
  return result;
}

/**
 * Detaches adapters from a model; the base tensors are shared, not copied.
 *
 * @param model The model.
 * @param name Which adapter; all of them if it is left out.
 * @throws If the model has no adapter of that name.
 */
export function detach<M extends Adaptable>(model: M, name?: string): M {
  if (name !== undefined && !attachedAdapters(model).includes(name)) {
    throw cannot(
      "detach an adapter",
      attachedAdapters(model).map((n) => `"${n}"`).join(", ") || "an adapter",
      `"${name}"`,
    );
  }
  return replaceAdapted(model, (layer) => {
    const { low = [], ...base } = layer;
    const kept = name === undefined
      ? []
      : low.filter((leaf) => leaf.adapter !== name);
    return (kept.length === 0 ? base : { ...base, low: kept }) as Adapted;
  });
}

/**
 * The change of weight ΔW an adapter leaf makes, in the layer's own layout.
 *
 * @param low The leaf.
 * @param weight Base weight; needed for DoRA, whose change depends on it.
 * @returns [in, out] of rank ≤ r, or [kh, kw, in, out]; the caller's.
 * @throws If a DoRA leaf comes without its base weight.
 */
export function delta(low: LowRank, weight?: tf.Tensor): tf.Tensor {
  if (low.magnitude && !weight) {
    throw cannot("compute a DoRA's ΔW", "its base weight", "none");
  }
  return tf.tidy(() => lowRankDelta(low, weight ?? low.up));
}

/**
 * Folds all attached adapters into the weights: W + Σ ΔW.
 *
 * @param model A model with adapters.
 * @returns A model without adapters; only the weights of adapted layers are
 * new tensors (the caller's), all others are shared.
 * @throws If a merged weight is not finite, naming the layers.
 */
export async function merge<M extends Adaptable>(model: M): Promise<M> {
  const made: [string, tf.Tensor][] = [];
  const merged = replaceAdapted(model, (layer, component, path) => {
    const { low = [], ...base } = layer;
    const weight = tf.tidy(() =>
      low.reduce<tf.Tensor>(
        (sum, leaf) => sum.add(delta(leaf, base.weight)),
        base.weight,
      )
    );
    made.push([`${component} ${path}`, weight]);
    return { ...base, weight } as Adapted;
  });
  const bad = await notFinite(made);
  if (bad.length > 0) {
    for (const [, weight] of made) weight.dispose();
    throw cannot(
      "merge adapters",
      "finite weights",
      `NaN in ${listed(bad)}`,
    );
  }
  return merged;
}

/** Names of the tensors that hold a NaN or an infinity. */
async function notFinite(
  named: readonly (readonly [string, tf.Tensor])[],
): Promise<string[]> {
  if (named.length === 0) return [];
  const flags = tf.tidy(() =>
    tf.stack(named.map(([, t]) => tf.all(tf.isFinite(t)).cast("float32")))
  );
  const values = await flags.data();
  flags.dispose();
  return named.filter((_, i) => values[i] !== 1).map(([name]) => name);
}

/**
 * Checks that all values of an adapter are finite.
 *
 * @param adapter The adapter.
 * @throws If one is not, naming the layers.
 */
export async function assertFinite(adapter: Adapter): Promise<void> {
  const bad = await notFinite(adapterTensors(adapter));
  if (bad.length > 0) {
    throw cannot(
      `use "${adapter.name}"`,
      "finite values",
      `NaN in ${listed(bad)}`,
    );
  }
}

/**
 * Names the tensors of an adapter: `<component>.<path>.down`, `.up`, for DoRA
 * `.magnitude`, for SVDiff `.sigma` and `.shift`.
 *
 * @param adapter The adapter.
 */
export function adapterTensors(adapter: Adapter): [string, tf.Tensor][] {
  return COMPONENTS.flatMap((component) =>
    [...adapter[component]].flatMap(([path, low]) => {
      const parts: [string, tf.Tensor][] = [
        [`${component}.${path}.down`, low.down],
        [`${component}.${path}.up`, low.up],
      ];
      if (low.magnitude) {
        parts.push([`${component}.${path}.magnitude`, low.magnitude]);
      }
      if (low.spectrum) {
        parts.push(
          [`${component}.${path}.sigma`, low.spectrum.sigma],
          [`${component}.${path}.shift`, low.spectrum.shift],
        );
      }
      return parts;
    })
  );
}

/**
 * Replaces the tensors of an adapter by others of the same names.
 *
 * @param adapter The adapter; not changed.
 * @param tensors By the names of {@linkcode adapterTensors}; others are kept.
 */
export function withTensors(
  adapter: Adapter,
  tensors: ReadonlyMap<string, tf.Tensor>,
): Adapter {
  const rebuild = (component: Component) =>
    new Map(
      [...adapter[component]].map(([path, low]) => {
        const name = `${component}.${path}`;
        const magnitude = tensors.get(`${name}.magnitude`) ?? low.magnitude;
        const { spectrum } = low;
        return [path, {
          ...low,
          down: tensors.get(`${name}.down`) ?? low.down,
          up: tensors.get(`${name}.up`) ?? low.up,
          ...(magnitude ? { magnitude: magnitude as tf.Tensor1D } : {}),
          ...(spectrum && {
            spectrum: {
              sigma: tensors.get(`${name}.sigma`) ?? spectrum.sigma,
              shift: tensors.get(`${name}.shift`) ?? spectrum.shift,
            } as Spectrum,
          }),
        }];
      }),
    );
  return {
    ...adapter,
    textEncoder: rebuild("textEncoder"),
    unet: rebuild("unet"),
  };
}

/**
 * The adapter with dropout, for a training step.
 *
 * @param adapter The adapter; its tensors are shared.
 * @param rate Share of the input values that are dropped, 0 to below 1.
 * @param key Which ones; every layer draws from a key of its own.
 */
export function withDropout(adapter: Adapter, rate: number, key: Key): Adapter {
  const of = (component: Component) =>
    new Map(
      [...adapter[component]].map(([path, low]) => [path, {
        ...low,
        dropout: { rate, key: fold(key, component, path) },
      }]),
    );
  return { ...adapter, textEncoder: of("textEncoder"), unet: of("unet") };
}

/**
 * Disposes the tensors of an adapter.
 *
 * @param adapter The adapter.
 */
export function disposeAdapter(adapter: Adapter): void {
  for (const [, tensor] of adapterTensors(adapter)) {
    if (!tensor.isDisposed) tensor.dispose();
  }
}
