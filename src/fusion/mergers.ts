/**
 * Other ways to merge adapters, for comparison: sums, pruning, TIES, DARE,
 * KnOTS, RegMean, SSR, Custom Diffusion's merge, and rank reduction.
 *
 * All work on the ΔW of one layer, in float64 and this library's layout [in,
 * out]; {@linkcode mergeConcepts} applies them to whole models.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { fold, type Key, key as rootKey, stream } from "../core/random.ts";
import { at, type TreeLike, updateAt } from "../core/tree.ts";
import { addTokens, type Concept } from "../customize/concept.ts";
import { type Component, COMPONENTS } from "../customize/lora.ts";
import { type Model, promptStates } from "../models/model.ts";
import {
  beside,
  blockDiagonal,
  combine,
  gram,
  type Matrix,
  matrix,
  multiply,
  solver,
  stack,
  svd,
  svdOfProduct,
  transpose,
  truncate,
} from "../optim/least_squares.ts";
import { applyDelta, hostDelta } from "./gradient.ts";
import { type Delta, denseDelta } from "./layer.ts";
import { type ConceptStatistics, KEY_OR_VALUE } from "./features.ts";
import { gramOf, type Stats } from "./statistics.ts";
import {
  changedPaths,
  checkFusion,
  type Strength,
  strengthOf,
} from "./weight.ts";

/** Checks that there is a weight for each matrix and that all have one shape. */
function checkTerms(
  matrices: readonly Matrix[],
  weights: readonly number[],
): void {
  const what = "merge";
  if (matrices.length === 0) throw cannot(what, "at least one change", "none");
  if (weights.length !== matrices.length) {
    throw cannot(what, `${matrices.length} weights`, weights.length);
  }
  if (weights.some((w) => !Number.isFinite(w))) {
    throw cannot(what, "finite weights", weights);
  }
  const [{ rows, columns }] = matrices;
  for (const m of matrices) {
    if (m.rows !== rows || m.columns !== columns) {
      throw cannot(what, `${rows} × ${columns}`, `${m.rows} × ${m.columns}`);
    }
  }
}

function checkDensity(density: number): void {
  if (!(density > 0 && density <= 1)) {
    throw cannot("merge", "a density in (0, 1]", density);
  }
}

function mapMatrix(a: Matrix, fn: (x: number, i: number) => number): Matrix {
  return matrix(a.rows, a.columns, a.data.map(fn));
}

/**
 * Task arithmetic: Σ wᵢ ΔWᵢ. With wᵢ = λ this is the baseline of Orthogonal
 * Adaptation (λ = 0.6), with wᵢ = 1/n the average.
 *
 * @param deltas ΔWᵢ.
 * @param weights wᵢ, of any sign.
 * @throws If numbers or shapes do not fit.
 */
export function taskArithmetic(
  deltas: readonly Matrix[],
  weights: readonly number[],
): Matrix {
  checkTerms(deltas, weights);
  return deltas.reduce(
    (sum, delta, i) => combine(sum, delta, 1, weights[i]),
    matrix(deltas[0].rows, deltas[0].columns),
  );
}

/**
 * Keeps the ⌊density · size⌋ entries of largest magnitude (PEFT's
 * `magnitude_based_pruning`).
 *
 * @param a The matrix.
 * @param density Share that is kept.
 */
export function prune(a: Matrix, density: number): Matrix {
  checkDensity(density);
  if (density === 1) return a;
  const kept = Math.floor(density * a.data.length);
  const sizes = a.data.map(Math.abs).sort();
  const limit = sizes[sizes.length - kept] ?? Infinity;
  // Of entries equal to the limit, the first ones are kept, up to the density.
  let ties = kept - a.data.filter((x) => Math.abs(x) > limit).length;
  return mapMatrix(a, (x) => {
    const size = Math.abs(x);
    return size > limit || (size === limit && ties-- > 0) ? x : 0;
  });
}

/**
 * Magnitude pruning: Σ wᵢ prune(ΔWᵢ).
 *
 * @param deltas ΔWᵢ.
 * @param weights wᵢ.
 * @param density Share of entries that is kept.
 */
export function magnitudePrune(
  deltas: readonly Matrix[],
  weights: readonly number[],
  density: number,
): Matrix {
  return taskArithmetic(deltas.map((d) => prune(d, density)), weights);
}

/**
 * How TIES elects signs: by the sum of the values (`total`) or by counting them
 * (`frequency`).
 */
export type Election = "total" | "frequency";

/** Averages, entry by entry, the values that have the elected sign. */
function disjointMerge(
  deltas: readonly Matrix[],
  weights: readonly number[],
  election: Election,
): Matrix {
  checkTerms(deltas, weights);
  return mapMatrix(deltas[0], (_, i) => {
    let votes = 0;
    for (const { data } of deltas) {
      votes += election === "total" ? data[i] : Math.sign(data[i]);
    }
    const sign = votes >= 0 ? 1 : -1;
    let sum = 0;
    let count = 0;
    deltas.forEach(({ data }, k) => {
      if (Math.sign(data[i]) !== sign) return;
      sum += weights[k] * data[i];
      count++;
    });
    return sum / Math.max(1, count);
  });
}

/** Options of {@linkcode ties}. */
export interface TiesOptions {
  /**
   * Share of entries that is kept.
   *
   * @default 0.5
   */
  readonly density?: number;
  /**
   * How signs are elected.
   *
   * @default "total"
   */
  readonly election?: Election;
}

/**
 * TIES (Yadav et al. 2023) as PEFT has it: trim, elect signs on the unweighted
 * rest, average the values with the elected sign. Weights are not normalised.
 *
 * @param deltas ΔWᵢ.
 * @param weights wᵢ.
 * @param options Density, election.
 *
 * @example
 * ```ts
 * const merged = ties([fox, owl], [1, 1], { density: 0.2 });
 * ```
 */
export function ties(
  deltas: readonly Matrix[],
  weights: readonly number[],
  options: TiesOptions = {},
): Matrix {
  const { density = 0.5, election = "total" } = options;
  return disjointMerge(
    deltas.map((d) => prune(d, density)),
    weights,
    election,
  );
}

/**
 * Draws which entries DARE keeps, each with probability `density`.
 *
 * @param key Random key.
 * @param size Number of entries.
 * @param density Share that is kept.
 * @returns 1 where an entry is kept.
 */
export function dareMask(key: Key, size: number, density: number): Uint8Array {
  checkDensity(density);
  const draw = stream(key);
  return Uint8Array.from({ length: size }, () => +(draw.uniform() < density));
}

/**
 * Drops entries and rescales the rest by 1 / density (Yu et al. 2023).
 *
 * @param a The matrix.
 * @param mask 1 where an entry is kept.
 * @param density The share the mask was drawn with.
 */
export function drop(
  a: Matrix,
  mask: ArrayLike<number>,
  density: number,
): Matrix {
  checkDensity(density);
  if (mask.length !== a.data.length) {
    throw cannot("drop entries", `a mask of ${a.data.length}`, mask.length);
  }
  return mapMatrix(a, (x, i) => mask[i] ? x / density : 0);
}

/**
 * DARE, then a weighted sum.
 *
 * @param deltas ΔWᵢ.
 * @param weights wᵢ.
 * @param masks One per change.
 * @param density The share the masks were drawn with.
 */
export function dareLinear(
  deltas: readonly Matrix[],
  weights: readonly number[],
  masks: readonly ArrayLike<number>[],
  density: number,
): Matrix {
  return taskArithmetic(
    deltas.map((d, i) => drop(d, masks[i], density)),
    weights,
  );
}

/**
 * DARE, then TIES without its trimming.
 *
 * @param deltas ΔWᵢ.
 * @param weights wᵢ.
 * @param masks One per change.
 * @param density The share the masks were drawn with.
 * @param election How signs are elected.
 */
export function dareTies(
  deltas: readonly Matrix[],
  weights: readonly number[],
  masks: readonly ArrayLike<number>[],
  density: number,
  election: Election = "total",
): Matrix {
  return disjointMerge(
    deltas.map((d, i) => drop(d, masks[i], density)),
    weights,
    election,
  );
}

/**
 * The weighted sum as one adapter of rank Σ rᵢ: exact, no cross terms.
 *
 * @param deltas Factors.
 * @param weights wᵢ.
 */
export function concatenate(
  deltas: readonly Delta[],
  weights: readonly number[],
): Delta {
  if (weights.length !== deltas.length) {
    throw cannot("merge", `${deltas.length} weights`, weights.length);
  }
  return {
    down: beside(
      ...deltas.map(({ down }, i) => mapMatrix(down, (x) => weights[i] * x)),
    ),
    up: stack(...deltas.map(({ up }) => up)),
  };
}

/**
 * The best approximation of ΔW at a lower rank, by truncated SVD; no matrix of
 * full size is formed.
 *
 * @param delta Factors of any rank.
 * @param rank The new rank.
 * @throws If the rank is not an integer ≥ 1.
 */
export function rerank(delta: Delta, rank: number): Delta {
  if (!(Number.isInteger(rank) && rank >= 1)) {
    throw cannot("reduce a rank", "an integer ≥ 1", rank);
  }
  const { left, right } = truncate(svdOfProduct(delta.down, delta.up), rank);
  return { down: left, up: right };
}

/** A merge in KnOTS's shared basis. */
export interface Knots {
  /** The merged change. */
  readonly merged: Matrix;
  /** Singular values of all changes stacked, those above the cutoff. */
  readonly singularValues: Float64Array;
}

/**
 * KnOTS (Stoica et al. 2024): aligns changes in the left singular basis of
 * [ΔW₁ | ΔW₂ | …] (PyTorch's layout), merges there, and goes back.
 *
 * @param deltas ΔWᵢ [in, out]; as factors it is much faster.
 * @param merge Merges the aligned parts, such as `(p) => ties(p, weights)`.
 * @param cutoff Singular values below this share of the largest are dropped.
 *
 * @example
 * ```ts
 * const { merged } = knots([fox, owl], (parts) => ties(parts, [1, 1]));
 * ```
 */
export function knots(
  deltas: readonly Matrix[] | readonly Delta[],
  merge: (parts: readonly Matrix[]) => Matrix,
  cutoff = 1e-6,
): Knots {
  const factored = deltas.filter((d): d is Delta => "down" in d);
  const dense = deltas.filter((d): d is Matrix => "data" in d);
  checkTerms(
    factored.length > 0 ? factored.map(({ down }) => down) : dense,
    deltas.map(() => 1),
  );
  const inputs = factored.length > 0 ? factored[0].down.rows : dense[0].rows;
  // Stacked vertically, as [in, out] is the transpose of PyTorch's layout: left
  // singular vectors there are right ones here.
  const { u, s, v } = factored.length > 0
    ? svdOfProduct(
      factored.map(({ down }) => down).reduce(blockDiagonal),
      stack(...factored.map(({ up }) => up)),
    )
    : svd(stack(...dense));
  const rank = s.findLastIndex((x) => x > cutoff * s[0]) + 1;
  const outputs = v.rows;
  const aligned = deltas.map((_, k) => {
    const part = matrix(inputs, rank);
    for (let i = 0; i < inputs; i++) {
      for (let r = 0; r < rank; r++) {
        part.data[i * rank + r] = s[r] *
          u.data[(k * inputs + i) * u.columns + r];
      }
    }
    return part;
  });
  const basis = matrix(rank, outputs);
  for (let r = 0; r < rank; r++) {
    for (let j = 0; j < outputs; j++) {
      basis.data[r * outputs + j] = v.data[j * v.columns + r];
    }
  }
  return {
    merged: rank === 0
      ? matrix(inputs, outputs)
      : multiply(merge(aligned), basis),
    singularValues: s.slice(0, rank),
  };
}

/** A change and the Gram matrix of the inputs it was measured on. */
export interface GramTerm {
  readonly delta: Delta;
  /** XᵀX / n [in, in]. */
  readonly gram: Matrix;
}

/**
 * RegMean (Jin et al. 2022): (Σ Gᵢ')⁻¹ Σ Gᵢ' ΔWᵢ, off-diagonal entries of Gᵢ
 * times `a`. With a = 1 it is gradient fusion's minimiser for equally weighted
 * concepts.
 *
 * @param terms One per concept.
 * @param options `a` (default 1); `ridge` relative to the mean diagonal
 * (default 0).
 */
export function regMean(
  terms: readonly GramTerm[],
  options: { readonly a?: number; readonly ridge?: number } = {},
): Matrix {
  const { a = 1, ridge = 0 } = options;
  if (terms.length === 0) throw cannot("merge", "at least one change", "none");
  const grams = terms.map(({ gram }) => {
    const n = gram.rows;
    return mapMatrix(gram, (x, i) => Math.floor(i / n) === i % n ? x : a * x);
  });
  const right = terms.map(({ delta }, i) =>
    multiply(multiply(grams[i], delta.down), delta.up)
  );
  return solver(grams.reduce((x, y) => combine(x, y)), ridge)(
    right.reduce((x, y) => combine(x, y)),
  );
}

/** A change merged by {@linkcode ssr}. */
export interface SsrResult {
  /** The merged change, still of rank Σ rᵢ. */
  readonly delta: Delta;
  /** R [Σ r, Σ r]: the matrix between the stacked A and B. */
  readonly mixing: Matrix;
}

/**
 * SSR-Merge: RegMean in rank space. ΔW is B_comb · R · A_comb, where R maps
 * every concept's A·x to its own block with least error.
 *
 * @param terms One per concept; scale belongs in `up`.
 * @param options `ridge` relative to the mean diagonal (default 0).
 */
export function ssr(
  terms: readonly GramTerm[],
  options: { readonly ridge?: number } = {},
): SsrResult {
  if (terms.length === 0) throw cannot("merge", "at least one change", "none");
  const down = beside(...terms.map(({ delta }) => delta.down));
  const up = stack(...terms.map(({ delta }) => delta.up));
  const shown = terms.map(({ gram }) => multiply(gram, down));
  const downT = transpose(down);
  const total = shown.map((x) => multiply(downT, x))
    .reduce((x, y) => combine(x, y));
  const routed = stack(
    ...terms.map(({ delta }, k) => multiply(transpose(delta.down), shown[k])),
  );
  // R·G = Q, and G is symmetric: Rᵀ = G⁻¹·Qᵀ.
  const mixingT = solver(total, options.ridge ?? 0)(transpose(routed));
  return {
    delta: { down: multiply(down, mixingT), up },
    mixing: transpose(mixingT),
  };
}

/** A change of weight, and the text features for which it must hold. */
export interface ConstraintTerm {
  /** The change. */
  readonly delta: Delta;
  /** C [rows, in]: states of the concept's prompts. */
  readonly rows: Matrix;
}

/**
 * Custom Diffusion's merge (Kumari et al. 2023, eqs. 4 and 5): the ΔW that
 * equals each concept's own ΔW on that concept's features, and acts as little
 * as possible on those of ordinary captions.
 *
 * argmin ‖C_reg·ΔW‖² with Cᵢ·ΔW = Cᵢ·ΔWᵢ for all i, which is
 * G⁻¹Cᵀ(C·G⁻¹·Cᵀ)⁻¹·T with G = C_regᵀ·C_reg, C all features stacked and T their
 * targets Cᵢ·ΔWᵢ. If the constraints contradict each other, they hold in the
 * least-squares sense.
 *
 * @param terms One per concept.
 * @param regular G [in, in], of the captions' features.
 * @param ridge Added to G's diagonal, relative to its mean, as captions may not
 * span every direction.
 * @throws If there are no concepts.
 *
 * @example
 * ```ts
 * const merged = constrainedMerge([fox, owl], gram(captionStates));
 * ```
 */
export function constrainedMerge(
  terms: readonly ConstraintTerm[],
  regular: Matrix,
  ridge = 1e-5,
): Matrix {
  if (terms.length === 0) throw cannot("merge", "at least one change", "none");
  const c = stack(...terms.map(({ rows }) => rows));
  const asked = stack(
    ...terms.map(({ rows, delta }) =>
      multiply(multiply(rows, delta.down), delta.up)
    ),
  );
  const free = solver(regular, ridge)(transpose(c));
  return multiply(free, solver(multiply(c, free), 0)(asked));
}

/** The rows of statistics that kept them. */
function rowsIn({ rows, halves }: Stats): Matrix {
  if (halves) return stack(...halves.map(rowsIn));
  if (rows) return rows;
  throw cannot("merge", "features as rows", "a Gram matrix");
}

/**
 * The Gram matrix of the text states of ordinary captions at all positions: the
 * regulariser of Custom Diffusion's merge.
 *
 * @param base The model whose text encoder reads them.
 * @param captions The captions; the article takes a thousand.
 * @returns [width, width].
 * @throws If there are none.
 */
export async function captionGram(
  base: Model,
  captions: readonly string[],
): Promise<Matrix> {
  if (captions.length === 0) {
    throw cannot("regularise a merge", "at least one caption", "none");
  }
  let sum: Matrix | undefined;
  for (let from = 0; from < captions.length; from += 32) {
    const states = tf.tidy(() => {
      const read = promptStates(base, captions.slice(from, from + 32));
      return read.reshape([-1, read.shape.at(-1)!]) as tf.Tensor2D;
    });
    const rows = matrix(...states.shape, await states.data());
    states.dispose();
    sum = gram(rows, sum);
  }
  return sum!;
}

/**
 * FedAvg's weights (McMahan et al. 2017): a client's weight is its share of all
 * training pictures.
 *
 * @param counts Pictures of each client.
 * @returns wᵢ, adding up to 1.
 * @throws If a count is not positive.
 *
 * @example
 * ```ts
 * const weights = fedAvgWeights([4, 12]); // [0.25, 0.75]
 * await mergeConcepts(base, clients, { method: "task_arithmetic", weights });
 * ```
 */
export function fedAvgWeights(counts: readonly number[]): number[] {
  const total = counts.reduce((sum, n) => sum + n, 0);
  if (
    counts.length === 0 || counts.some((n) => !(n > 0)) || total === Infinity
  ) {
    throw cannot("weight clients", "positive numbers of pictures", counts);
  }
  return counts.map((n) => n / total);
}

/** The mergers {@linkcode mergeConcepts} knows. */
export type MergeMethod =
  | "task_arithmetic"
  | "magnitude_prune"
  | "ties"
  | "dare_linear"
  | "dare_ties"
  | "knots_ties"
  | "svd"
  | "regmean"
  | "ssr"
  | "custom_diffusion";

/** All mergers. */
export const MERGE_METHODS: readonly MergeMethod[] = [
  "task_arithmetic",
  "magnitude_prune",
  "ties",
  "dare_linear",
  "dare_ties",
  "knots_ties",
  "svd",
  "regmean",
  "ssr",
  "custom_diffusion",
];

/** Mergers that need what clients measured. */
const MEASURED: readonly MergeMethod[] = [
  "regmean",
  "ssr",
  "custom_diffusion",
];

/** Options of {@linkcode mergeConcepts}. */
export interface MergeOptions extends TiesOptions {
  /** How changes of weight are merged. */
  readonly method: MergeMethod;
  /**
   * wᵢ, one per concept. TIES divides by the number of agreeing values, sums do
   * not.
   *
   * @default 1/n for sums, 1 for TIES
   */
  readonly weights?: readonly number[];
  /** αᵢ, one per concept. */
  readonly strengths?: readonly Strength[];
  /**
   * DARE: which entries are kept.
   *
   * @default key(0)
   */
  readonly key?: Key;
  /**
   * `svd`: rank of the result.
   *
   * @default 4
   */
  readonly rank?: number;
  /** RegMean's factor of off-diagonal entries. */
  readonly a?: number;
  /**
   * RegMean, SSR, Custom Diffusion: ridge relative to the mean diagonal.
   *
   * @default 1e-5
   */
  readonly ridge?: number;
  /** {@linkcode MEASURED} methods: what clients measured, one per concept. */
  readonly statistics?: readonly ConceptStatistics[];
  /**
   * Custom Diffusion: ordinary captions, on which keys and values should change
   * little. It merges keys and values; other layers are summed.
   */
  readonly captions?: readonly string[];
}

/** What clients measured of one layer. */
interface Measured {
  /** XᵢᵀXᵢ / n, one per concept. */
  readonly grams: readonly Matrix[];
  /** Xᵢ, where the layer is a key or a value. */
  readonly rows?: readonly Matrix[];
  /** Σ of the captions' text states. */
  readonly regular?: Matrix;
}

/** One layer by one method. */
function mergeLayer(
  deltas: readonly Delta[],
  { grams, rows, regular }: Measured,
  weights: readonly number[],
  options: MergeOptions,
  key: Key,
): Delta | Matrix {
  const { method, density = 0.5, election = "total" } = options;
  const dense = () => deltas.map(denseDelta);
  const masks = (list: readonly Matrix[]) =>
    list.map(({ data }, i) => dareMask(fold(key, i), data.length, density));
  const terms = () => deltas.map((delta, i) => ({ delta, gram: grams[i] }));
  const ridge = options.ridge ?? 1e-5;
  switch (method) {
    case "task_arithmetic":
      return concatenate(deltas, weights);
    case "magnitude_prune":
      return magnitudePrune(dense(), weights, density);
    case "ties":
      return ties(dense(), weights, { density, election });
    case "dare_linear": {
      const list = dense();
      return dareLinear(list, weights, masks(list), density);
    }
    case "dare_ties": {
      const list = dense();
      return dareTies(list, weights, masks(list), density, election);
    }
    case "knots_ties":
      return knots(
        dense(),
        (parts) => ties(parts, weights, { density, election }),
      ).merged;
    case "svd":
      return rerank(concatenate(deltas, weights), options.rank ?? 4);
    case "regmean":
      return regMean(terms(), { a: options.a ?? 1, ridge });
    case "ssr":
      return ssr(terms(), { ridge }).delta;
    case "custom_diffusion":
      return rows && regular
        ? constrainedMerge(
          deltas.map((delta, i) => ({ delta, rows: rows[i] })),
          regular,
          ridge,
        )
        : concatenate(deltas, weights);
  }
}

/**
 * Merges whole concepts by any of {@linkcode MERGE_METHODS}, layer by layer:
 * text encoder and UNet, every layer their adapters have. Where a concept lacks
 * a layer that another one has, it contributes zeros.
 *
 * @param base The model; not changed.
 * @param concepts The concepts; not changed.
 * @param options Method and its settings.
 * @returns A model of the same type; changed weights and token vectors are new
 * (`disposeModel(merged, base)` frees them), all else is shared.
 * @throws If a concept does not fit, or statistics are missing.
 *
 * @example
 * ```ts
 * const merged = await mergeConcepts(base, [potter, thanos], { method: "ties" });
 * ```
 */
export async function mergeConcepts(
  base: Model,
  concepts: readonly Concept[],
  options: MergeOptions,
): Promise<Model> {
  const what = "merge concepts";
  const { method, strengths, statistics } = options;
  if (!MERGE_METHODS.includes(method)) {
    throw cannot(what, MERGE_METHODS.join(", "), String(method));
  }
  checkFusion(base, concepts, strengths);
  checkDensity(options.density ?? 0.5);
  const n = concepts.length;
  const summed = !["ties", "dare_ties", "knots_ties"].includes(method);
  const weights = options.weights ?? new Array(n).fill(summed ? 1 / n : 1);
  if (weights.length !== n || weights.some((w) => !Number.isFinite(w))) {
    throw cannot(what, `${n} finite weights`, weights);
  }
  const measured = MEASURED.includes(method);
  if (measured && statistics?.length !== n) {
    throw cannot(what, `statistics of ${n} concepts`, statistics?.length ?? 0);
  }
  const constrained = method === "custom_diffusion";
  if (constrained !== (options.captions !== undefined)) {
    throw cannot(
      what,
      constrained ? "captions" : "captions with custom_diffusion only",
      constrained ? "none" : method,
    );
  }
  const regular = constrained
    ? await captionGram(base, options.captions!)
    : undefined;
  const merged = addTokens(base, concepts);
  const made: tf.Tensor[] = merged.added && merged !== base
    ? [merged.added.vectors]
    : [];
  try {
    const parts: Partial<Record<Component, unknown>> = {};
    for (const component of COMPONENTS) {
      const { config, params } = base[component];
      const changed = new Map<string, tf.Tensor>();
      for (const path of changedPaths(concepts, component)) {
        const weight: tf.Tensor = at(params, path).weight;
        const outputs = weight.shape.at(-1)!;
        const inputs = weight.size / outputs;
        const deltas = await Promise.all(concepts.map(({ adapter }, i) => {
          const low = adapter[component].get(path);
          return low
            ? hostDelta(low, weight, strengthOf(strengths, i, component))
            : { down: matrix(inputs, 1), up: matrix(1, outputs) };
        }));
        const text = KEY_OR_VALUE.test(path);
        const stats = measured && (!constrained || text)
          ? statistics!.map((given, i) => {
            const stats = given[component].get(path);
            if (stats) return stats;
            throw cannot(
              what,
              `statistics of ${path}`,
              `none of ${concepts[i].name}`,
            );
          })
          : [];
        const result = mergeLayer(
          deltas,
          constrained
            ? { grams: [], ...(text && { rows: stats.map(rowsIn), regular }) }
            : {
              grams: stats.map((own) =>
                mapMatrix(gramOf(own), (x) => x / own.count)
              ),
            },
          weights,
          options,
          fold(options.key ?? rootKey(0), component, path),
        );
        const tensor = applyDelta(weight, result);
        made.push(tensor);
        changed.set(path, tensor);
      }
      parts[component] = {
        config,
        params: updateAt(
          params as TreeLike,
          changed.keys(),
          (node, path) => ({ ...node, weight: changed.get(path) }),
        ),
      };
    }
    return { ...merged, ...parts } as Model;
  } catch (error) {
    tf.dispose(made);
    throw error;
  }
}
