/**
 * A fine-tuned or fused model as a LoRA again: the best low-rank approximation
 * of what changed in every layer, and how much it leaves out.
 *
 * By Eckart and Young the truncated singular value decomposition is the best
 * rank-r approximation. Large layers go through a randomised range finder with
 * power iterations (Halko, Martinsson and Tropp 2011, algorithm 4.4), which
 * needs the decomposition of a matrix of r + 10 columns only.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { forgetHostCopy } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { fold, type Key, key, normal } from "../core/random.ts";
import { at, leaves } from "../core/tree.ts";
import type { LowRank } from "../nn/linear.ts";
import {
  type Matrix,
  matrix,
  multiply,
  qr,
  svd,
  transpose,
  truncate,
} from "../optim/least_squares.ts";
import {
  type Adaptable,
  type Adapter,
  attachedAdapters,
  type Component,
  COMPONENTS,
  type Site,
  sites,
  type TargetName,
  type Targets,
  targets,
} from "../customize/lora.ts";

/** Settings of {@linkcode extractLora}. */
export interface ExtractLoraOptions {
  /** Rank of every layer; a layer that is smaller gets its full rank. */
  readonly rank: number;
  /**
   * Layers that may be in the LoRA; changes elsewhere are reported as lost.
   *
   * @default "all"
   */
  readonly targets?: TargetName | Targets;
  /**
   * Name of the adapter.
   *
   * @default "extracted"
   */
  readonly name?: string;
  /**
   * Layers whose smaller side is above this go through the randomised range
   * finder: ten times as fast, and even where all singular values are alike
   * within 0.1 % of the best residual.
   *
   * @default 32
   */
  readonly exactUpTo?: number;
  /**
   * Random key of the range finder.
   *
   * @default key(0)
   */
  readonly key?: Key;
  /** Told about every layer as soon as it is done. */
  readonly onLayer?: (layer: ExtractedLayer) => void;
}

/** How well the LoRA holds the change of one layer. */
export interface ExtractedLayer {
  /** The network it is in. */
  readonly component: Component;
  /** Path of the layer. */
  readonly path: string;
  /** Its rank. */
  readonly rank: number;
  /** Frobenius norm of ΔW. */
  readonly norm: number;
  /** ‖ΔW − down·up‖ / ‖ΔW‖, measured on the float32 factors. */
  readonly residual: number;
}

/** A change that the LoRA does not hold at all. */
export interface LostChange {
  /** The network it is in. */
  readonly component: Component;
  /** Path of the parameter. */
  readonly path: string;
  /** Frobenius norm of the change. */
  readonly norm: number;
}

/** A model's change as a LoRA. */
export interface ExtractedLora {
  /** Scale 1 everywhere; its tensors are the caller's. */
  readonly adapter: Adapter;
  /** One a changed layer. */
  readonly layers: readonly ExtractedLayer[];
  /**
   * Changes no LoRA can hold (biases, norms, embeddings) and those of layers
   * that were not chosen.
   */
  readonly lost: readonly LostChange[];
  /** ‖everything left out‖ / ‖the whole change‖, over all parameters. */
  readonly residual: number;
}

/**
 * Approximates the difference of two models of one architecture by a LoRA.
 *
 * @param base The model the LoRA is for.
 * @param tuned The changed model; its adapters must be merged.
 * @param options Rank, layers.
 * @returns The adapter, and what it leaves out.
 * @throws If the models differ in architecture or not at all, a weight is not
 * finite, adapters are attached, or the rank is no integer ≥ 1.
 *
 * @example
 * ```ts ignore
 * const { adapter, residual } = await extractLora(base, fused, { rank: 32 });
 * await saveLora("fused.safetensors", { adapter }, base, "kohya");
 * ```
 */
export async function extractLora(
  base: Adaptable,
  tuned: Adaptable,
  options: ExtractLoraOptions,
): Promise<ExtractedLora> {
  const { rank, name = "extracted", exactUpTo = 32, onLayer } = options;
  const what = "extract a LoRA";
  if (!Number.isInteger(rank) || rank < 1) {
    throw cannot(what, "an integer rank ≥ 1", rank);
  }
  for (const model of [base, tuned]) {
    const attached = attachedAdapters(model);
    if (attached.length > 0) {
      throw cannot(what, "models with merged adapters", attached.join(", "));
    }
  }
  const chosen = options.targets ?? "all";
  const wanted = typeof chosen === "string" ? targets(chosen) : chosen;
  const random = options.key ?? key(0);
  checkShapes(base, tuned, what);

  const made: Record<Component, Map<string, LowRank>> = {
    textEncoder: new Map(),
    unet: new Map(),
  };
  const layers: ExtractedLayer[] = [];
  const lost: LostChange[] = [];
  let whole = 0;
  let left = 0;
  try {
    for (const component of COMPONENTS) {
      const held = new Map(
        sites(base[component].params, (site) => wanted(component, site))
          .map((site) => [`${site.path}.weight`, site]),
      );
      for (const [path, before] of leaves(base[component].params)) {
        const after = at(tuned[component].params, path) as tf.Tensor;
        if (after === before) continue;
        const change = difference(await after.data(), await before.data());
        for (const tensor of [after, before]) forgetHostCopy(tensor);
        const norm = frobenius(change);
        if (!Number.isFinite(norm)) {
          throw cannot(what, "finite weights", `NaN at ${component} ${path}`);
        }
        if (norm === 0) continue;
        whole += norm ** 2;
        const site = held.get(path);
        if (!site) {
          lost.push({ component, path, norm });
          left += norm ** 2;
          continue;
        }
        const columns = site.outputs;
        const a = matrix(change.length / columns, columns, change);
        const factors = lowRank(
          a,
          rank,
          exactUpTo,
          fold(random, component, site.path),
        );
        const residual = frobenius(remainder(a, factors)) / norm;
        const layer = {
          component,
          path: site.path,
          rank: factors.left.columns,
          norm,
          residual,
        };
        made[component].set(site.path, toLeaf(site, factors, name));
        layers.push(layer);
        onLayer?.(layer);
        left += (residual * norm) ** 2;
      }
    }
    if (layers.length === 0) {
      throw cannot(
        what,
        "a model that differs in some chosen layer",
        lost.length > 0
          ? `changes only at ${lost[0].path}`
          : "the same weights",
      );
    }
  } catch (error) {
    for (const map of Object.values(made)) {
      for (const { down, up } of map.values()) tf.dispose([down, up]);
    }
    throw error;
  }
  return {
    adapter: { name, scaleRule: "alpha", ...made },
    layers,
    lost,
    residual: Math.sqrt(left / whole),
  };
}

function checkShapes(base: Adaptable, tuned: Adaptable, what: string): void {
  for (const component of COMPONENTS) {
    const [a, b] = [base, tuned].map((model) =>
      new Map(leaves(model[component].params))
    );
    for (const path of new Set([...a.keys(), ...b.keys()])) {
      const [x, y] = [a.get(path)?.shape, b.get(path)?.shape];
      if (!x || !y || !tf.util.arraysEqual(x, y)) {
        throw cannot(
          what,
          `models of one architecture ([${x ?? "nothing"}] at ${component} ` +
            `${path})`,
          y ? `[${y}]` : "nothing",
        );
      }
    }
  }
}

/** a − b, in float64. */
function difference(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
): Float64Array {
  const result = new Float64Array(a.length);
  for (let i = 0; i < result.length; i++) result[i] = a[i] - b[i];
  return result;
}

function frobenius(values: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] ** 2;
  return Math.sqrt(sum);
}

/** a ≈ left · right, factors rounded to float32. */
interface Factors {
  /** [rows, rank]. */
  readonly left: Matrix;
  /** [rank, columns]. */
  readonly right: Matrix;
}

/** More columns than the rank make the random range find the best one. */
const OVERSAMPLING = 10;
/** Each squares the gaps between singular values twice. */
const POWER_ITERATIONS = 3;

function lowRank(
  a: Matrix,
  rank: number,
  exactUpTo: number,
  random: Key,
): Factors {
  const side = Math.min(a.rows, a.columns);
  const kept = Math.min(rank, side);
  const width = kept + OVERSAMPLING;
  let factors: Factors;
  if (side <= Math.max(exactUpTo, width)) {
    factors = truncate(svd(a), kept);
  } else {
    const t = transpose(a);
    const start = matrix(
      a.columns,
      width,
      normal(random, a.columns * width),
    );
    let q = qr(multiply(a, start)).q;
    for (let i = 0; i < POWER_ITERATIONS; i++) {
      q = qr(multiply(a, qr(multiply(t, q)).q)).q;
    }
    const { left, right } = truncate(svd(multiply(transpose(q), a)), kept);
    factors = { left: multiply(q, left), right };
  }
  return { left: rounded(factors.left), right: rounded(factors.right) };
}

function rounded({ rows, columns, data }: Matrix): Matrix {
  return matrix(rows, columns, Float64Array.from(data, Math.fround));
}

function remainder(a: Matrix, { left, right }: Factors): Float64Array {
  return difference(a.data, multiply(left, right).data);
}

function toLeaf(
  site: Site,
  { left, right }: Factors,
  adapter: string,
): LowRank {
  const rank = left.columns;
  const { inputs, outputs, kernel } = site;
  const down = Float32Array.from(left.data);
  const up = Float32Array.from(right.data);
  return site.kind === "linear"
    ? {
      down: tf.tensor(down, [inputs, rank]),
      up: tf.tensor(up, [rank, outputs]),
      scale: 1,
      adapter,
    }
    : {
      // Rows of ΔW are [kh, kw, in] in order: the layout of the filter.
      down: tf.tensor(down, [...kernel, inputs, rank]),
      up: tf.tensor(up, [1, 1, rank, outputs]),
      scale: 1,
      adapter,
    };
}
