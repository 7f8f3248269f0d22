/**
 * Gradient fusion of one layer: W = argmin Σᵢ wᵢ ‖Xᵢ(W₀ + ΔWᵢ) − Xᵢ W‖²_F
 * (Mix-of-Show, eq. 4), in closed form or by L-BFGS.
 *
 * Written for ΔW = W − W₀ the minimiser solves (Σ Gᵢ) ΔW = Σ Gᵢ ΔWᵢ. With
 * ΔWᵢ = downᵢ · upᵢ the right side is [G₁·down₁ | G₂·down₂ | …] · [up₁; up₂; …],
 * so only Σ rᵢ columns have to be solved for and the fused ΔW is again a low-rank
 * matrix, of rank ≤ Σ rᵢ. Everything that is kept adds up over concepts.
 *
 * Layers are in the house layout: y = x·W with W [in, out].
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import {
  type Evaluation,
  lbfgs,
  OFFICIAL_LBFGS,
  type Vector,
} from "../optim/lbfgs.ts";
import {
  beside,
  blockDiagonal,
  combine,
  gram,
  identity,
  inner,
  type Matrix,
  matrix,
  multiply,
  solver,
  stack,
  transpose,
} from "../optim/least_squares.ts";
import { gramOf, type Stats } from "./statistics.ts";

/** A change of weight as a product: ΔW = down · up, scale included. */
export interface Delta {
  /** [in, r]. */
  readonly down: Matrix;
  /** [r, out]. */
  readonly up: Matrix;
}

/**
 * The change of weight a {@linkcode Delta} stands for, [in, out].
 *
 * @param delta The factors.
 */
export function denseDelta(delta: Delta): Matrix {
  return multiply(delta.down, delta.up);
}

/** How a layer's least squares problem is solved. */
export interface SolveOptions {
  /**
   * The exact minimiser, or an iterative one as in the official code.
   *
   * @default "closed"
   */
  readonly method?: "closed" | "lbfgs";
  /**
   * Closed form: added to the diagonal of Σ Gᵢ, relative to its mean. It pulls
   * ΔW towards 0, not W towards 0; 0 takes the exact minimum-change solution
   * from eigenvalues.
   *
   * What a ridge holds back are directions the features hardly ever take, where
   * concepts that contradict each other ask for large changes. How much of that
   * helps depends on the layer, so `auto` asks the features: it fits on one half
   * of every concept's features and scores on the other, both ways, for ridges
   * from 1e-5 to 100, and takes the best (see {@linkcode crossValidate}). It
   * needs statistics with halves; where a concept has none it takes
   * {@linkcode FALLBACK_RIDGE}. Of a UNet's spatial layers it takes at least
   * {@linkcode SPATIAL_RIDGE}.
   *
   * @default "auto"
   */
  readonly ridge?: number | "auto";
  /**
   * Closed form with ridge 0: eigenvalues below this share of the largest count
   * as zero.
   *
   * @default 1e-12
   */
  readonly cutoff?: number;
  /**
   * L-BFGS: most iterations.
   *
   * @default 500
   */
  readonly iterations?: number;
  /**
   * L-BFGS: arithmetic of point and gradient; `float32` is how the official
   * code runs, `float64` gets closer to the minimum.
   *
   * @default "float64"
   */
  readonly precision?: "float32" | "float64";
}

/**
 * The smallest ridge `auto` takes, and its ridge where statistics have no halves to
 * compare.
 */
export const FALLBACK_RIDGE: number = 1e-5;

/**
 * The smallest ridge `auto` takes in a UNet's spatial layers, chosen on the
 * development concepts (`results/development`). The halves of their features are
 * sampling steps of the same pictures, so alike that cross-validation nearly always
 * chooses the smallest ridge there is. Without a bound, prompts with words that the
 * features do not cover can draw noise.
 */
export const SPATIAL_RIDGE: number = 0.01;

/** A solved layer. */
export interface LayerSolution {
  /** The fused change of weight. */
  readonly delta: Delta;
  /** The ridge it was solved with; NaN for L-BFGS. */
  readonly ridge: number;
  /** Mean squared feature error of W₀: over all rows and outputs. */
  readonly lossBefore: number;
  /** The same of the fused weight. */
  readonly lossAfter: number;
  /** The same of weight fusion, W₀ + λ Σ ΔWᵢ. */
  readonly lossWeightFusion: number;
  /** Rows over all concepts. */
  readonly rows: number;
  /** Input features d. */
  readonly features: number;
  /** Whether the rows themselves were used, being fewer than the features. */
  readonly dual: boolean;
}

/** What one concept asks of one layer. */
export interface Change {
  /** Output features. */
  readonly outputs: number;
  /** ΔWᵢ; nothing for a concept that leaves this layer as it is. */
  readonly delta?: Delta;
}

/** The right side of one layer, summed over concepts. */
interface Targets {
  readonly outputs: number;
  readonly concepts: number;
  /** [d, R]: downᵢ side by side. */
  readonly down: Matrix;
  /** [R, out]: upᵢ one below the other; the identity once it is dense. */
  readonly up: Matrix;
  /** Whether `down` is the sum of all ΔWᵢ, R being out. */
  readonly dense: boolean;
  /** [d, R]: wᵢ Gᵢ·downᵢ side by side. */
  readonly right: Matrix;
  /** [rows, R]: √wᵢ Xᵢ·downᵢ as diagonal blocks, as long as there are rows. */
  readonly shown: Matrix | undefined;
  /** [R, R]: wᵢ downᵢᵀ·Gᵢ·downᵢ as diagonal blocks. */
  readonly energy: Matrix;
}

function noTargets(features: number, outputs: number): Targets {
  return {
    outputs,
    concepts: 0,
    down: matrix(features, 0),
    up: matrix(0, outputs),
    dense: false,
    right: matrix(features, 0),
    shown: matrix(0, 0),
    energy: matrix(0, 0),
  };
}

/** Past full rank, factors only cost: folds `up` into all of them. */
function densified(targets: Targets): Targets {
  const { up, outputs, down, right, shown, energy } = targets;
  return {
    ...targets,
    down: multiply(down, up),
    up: identity(outputs),
    dense: true,
    right: multiply(right, up),
    shown: shown && multiply(shown, up),
    energy: multiply(transpose(up), multiply(energy, up)),
  };
}

/**
 * The least squares problem of layers that share their inputs (queries, keys
 * and values of a self-attention), summed over concepts: Σ wᵢ Gᵢ, or the rows
 * √wᵢ Xᵢ as long as all of them together are no more than the features, and for
 * each layer what its concepts ask of it.
 *
 * @example
 * ```ts
 * const problem = new LeastSquares(320);
 * problem.add(foxStats, new Map([["to_q", { outputs: 320, delta: fox }]]));
 * problem.add(owlStats, new Map([["to_q", { outputs: 320, delta: owl }]]));
 * const down = problem.solver(1e-3)("to_q");
 * ```
 */
export class LeastSquares {
  /** Rows over all concepts. */
  rows: number = 0;
  /** Rows weighted by wᵢ: what a mean divides by. */
  weight: number = 0;
  #stacked: Matrix | undefined;
  #gram: Matrix | undefined;
  readonly #layers = new Map<string, Targets>();

  /**
   * An empty sum.
   *
   * @param features Input features d.
   */
  constructor(readonly features: number) {
    this.#stacked = matrix(0, features);
  }

  /** Paths of the layers. */
  get paths(): string[] {
    return [...this.#layers.keys()];
  }

  /** The weighted rows, if there are at most as many as features. */
  get stacked(): Matrix | undefined {
    return this.#stacked;
  }

  /** Σ wᵢ Gᵢ. */
  get gram(): Matrix {
    return this.#gram ??= gram(this.#stacked!);
  }

  /** A layer's change as factors, as far as it is known before solving. */
  targets(path: string): Pick<Targets, "down" | "up" | "outputs" | "concepts"> {
    const targets = this.#layers.get(path);
    if (!targets) throw cannot("fuse a layer", this.paths.join(", "), path);
    return targets;
  }

  /**
   * Adds one concept.
   *
   * @param stats Its inputs to the layers.
   * @param changes What it asks of each layer.
   * @param weight wᵢ.
   * @throws If a shape does not fit or the weight is negative.
   */
  add(
    stats: Stats,
    changes: ReadonlyMap<string, Change>,
    weight = 1,
  ): void {
    const what = "fuse a layer";
    const d = this.features;
    if (stats.features !== d) {
      throw cannot(what, `statistics of ${d} features`, stats.features);
    }
    if (!(weight >= 0 && Number.isFinite(weight))) {
      throw cannot(what, "finite weights ≥ 0", weight);
    }
    const rows = stats.rows && scaled(stats.rows, Math.sqrt(weight));
    this.#addInputs(stats, rows, weight);
    for (const [path, { outputs, delta }] of changes) {
      const own = delta ?? { down: matrix(d, 0), up: matrix(0, outputs) };
      const { down, up } = own;
      if (
        down.rows !== d || up.columns !== outputs || down.columns !== up.rows
      ) {
        throw cannot(
          what,
          `a change of weight [${d}, r] · [r, ${outputs}]`,
          `[${down.rows}, ${down.columns}] · [${up.rows}, ${up.columns}]`,
        );
      }
      let sum = this.#layers.get(path) ?? noTargets(d, outputs);
      const rank = down.columns + sum.up.rows;
      if (!sum.dense && rank > Math.min(d, outputs)) sum = densified(sum);
      const added = sum.dense
        ? this.#asked(stats, rows, multiply(down, up), weight)
        : this.#asked(stats, rows, down, weight);
      const [side, block] = sum.dense
        ? [combine, combine]
        : [beside, blockDiagonal];
      this.#layers.set(path, {
        outputs,
        concepts: sum.concepts + 1,
        dense: sum.dense,
        down: side(sum.down, added.down),
        up: sum.dense ? sum.up : stack(sum.up, up),
        right: side(sum.right, added.right),
        energy: block(sum.energy, added.energy),
        shown: !this.#stacked
          ? undefined
          : sum.dense
          ? stack(sum.shown!, added.shown!)
          : blockDiagonal(sum.shown!, added.shown!),
      });
    }
  }

  #addInputs(stats: Stats, rows: Matrix | undefined, weight: number): void {
    this.rows += stats.count;
    this.weight += weight * stats.count;
    if (this.#stacked && rows && this.rows <= this.features) {
      this.#stacked = stack(this.#stacked, rows);
      this.#gram = undefined;
      return;
    }
    const sum = this.gram;
    this.#stacked = undefined;
    const own = gramOf(stats).data;
    for (let i = 0; i < own.length; i++) sum.data[i] += weight * own[i];
  }

  /** What one concept's change adds to the right side. */
  #asked(
    stats: Stats,
    rows: Matrix | undefined,
    down: Matrix,
    weight: number,
  ): Pick<Targets, "down" | "right" | "shown" | "energy"> {
    if (rows) {
      const shown = multiply(rows, down);
      const right = multiply(transpose(rows), shown);
      return { down, right, shown, energy: gram(shown) };
    }
    const right = scaled(multiply(gramOf(stats), down), weight);
    const energy = multiply(transpose(down), right);
    return { down, right, shown: undefined, energy };
  }

  /**
   * The same problem for some of its layers, to be added to on its own.
   *
   * @param paths The layers.
   */
  only(paths: readonly string[]): LeastSquares {
    const copy = new LeastSquares(this.features);
    copy.rows = this.rows;
    copy.weight = this.weight;
    copy.#stacked = this.#stacked;
    copy.#gram = this.#gram && { ...this.#gram, data: this.#gram.data.slice() };
    for (const path of paths) copy.#layers.set(path, this.#layers.get(path)!);
    return copy;
  }

  /**
   * The sum of two problems: other rows of the same concepts.
   *
   * @param other Has the same layers, given the same changes.
   */
  plus(other: LeastSquares): LeastSquares {
    const sum = new LeastSquares(this.features);
    sum.rows = this.rows + other.rows;
    sum.weight = this.weight + other.weight;
    const few = sum.rows <= this.features;
    sum.#stacked = few && this.#stacked && other.#stacked
      ? stack(this.#stacked, other.#stacked)
      : undefined;
    if (!sum.#stacked) sum.#gram = combine(this.gram, other.gram);
    for (const [path, a] of this.#layers) {
      const b = other.#layers.get(path)!;
      sum.#layers.set(path, {
        ...a,
        right: combine(a.right, b.right),
        energy: combine(a.energy, b.energy),
        shown: sum.#stacked && stack(a.shown!, b.shown!),
      });
    }
    return sum;
  }

  /**
   * Prepares to solve the layers in closed form: minimum change, or with a
   * ridge; by the rows (dual form), where there are few, else by Σ Gᵢ.
   *
   * @param ridge Relative to trace(G)/d.
   * @param cutoff For ridge 0: eigenvalues below this share of the largest
   * count as zero.
   * @returns Gives `down` [d, R] of a layer's ΔW = down · up.
   */
  solver(ridge: number, cutoff = 1e-12): (path: string) => Matrix {
    const x = this.#stacked;
    if (!x) {
      const apply = solver(this.gram, ridge, cutoff);
      return (path) => apply(this.#layers.get(path)!.right);
    }
    const xT = transpose(x);
    // XXᵀ and XᵀX have the same trace, so the mean of its diagonal is d/rows
    // times as large, and the same ridge is rows/d times as much of it.
    const apply = solver(gram(xT), ridge * x.rows / this.features, cutoff);
    return (path) => multiply(xT, apply(this.#layers.get(path)!.shown!));
  }

  /**
   * Mean squared feature error of W₀ + down · up, with the layer's own `up`.
   *
   * @param path The layer.
   * @param down [d, R].
   */
  loss(path: string, down: Matrix): number {
    const { up, outputs, right, shown, energy } = this.#layers.get(path)!;
    const n = this.weight * outputs;
    if (n === 0) return 0;
    const outer = multiply(up, transpose(up));
    const x = this.#stacked;
    if (x) {
      const residual = combine(multiply(x, down), shown!, 1, -1);
      return inner(outer, gram(residual)) / n;
    }
    const downT = transpose(down);
    const cross = multiply(downT, right);
    const fitted = multiply(downT, multiply(this.gram, down));
    const error = combine(
      combine(fitted, energy),
      combine(cross, transpose(cross)),
      1,
      -1,
    );
    // Rounding may leave a perfect fit a hair below zero.
    return Math.max(0, inner(outer, error)) / n;
  }

  /**
   * Mean squared feature error of a layer and its gradient, as a function of
   * ΔW (row-major [in, out]).
   *
   * @param path The layer.
   */
  objective(path: string): (change: Vector) => Evaluation {
    const { up, outputs, right, shown, energy } = this.#layers.get(path)!;
    const d = this.features;
    const n = this.weight * outputs;
    const round = (value: number, like: Vector) =>
      like instanceof Float32Array ? Math.fround(value) : value;
    const x = this.#stacked;
    if (x) {
      const targets = multiply(shown!, up);
      const xT = transpose(x);
      return (change) => {
        const fitted = multiply(x, matrix(d, outputs, change));
        const residual = combine(fitted, targets, 1, -1);
        return {
          value: round(inner(residual, residual) / n, change),
          gradient: multiply(xT, residual).data.map((g) => 2 * g / n),
        };
      };
    }
    const target = multiply(right, up);
    const constant = inner(multiply(up, transpose(up)), energy);
    return (change) => {
      const w = matrix(d, outputs, change);
      const gw = multiply(this.gram, w);
      const value = inner(w, gw) - 2 * inner(w, target) + constant;
      return {
        value: round(Math.max(0, value) / n, change),
        gradient: combine(gw, target, 2 / n, -2 / n).data,
      };
    };
  }
}

function scaled(a: Matrix, factor: number): Matrix {
  return factor === 1
    ? a
    : matrix(a.rows, a.columns, a.data.map((x) => factor * x));
}

/**
 * The problem of layers that share their inputs: whole, or as two halves of
 * every concept's features, which add up to the whole, each with what a fit of
 * the other is scored on.
 */
export type Problem =
  | readonly [whole: LeastSquares]
  | readonly [
    first: LeastSquares,
    second: LeastSquares,
    scoredFirst: LeastSquares,
    scoredSecond: LeastSquares,
  ];

/**
 * Adds one concept to the problems of many layers.
 *
 * Layers stay in one problem as long as every concept's inputs are shared, and
 * in halves as long as every concept has them.
 *
 * @param problems Those of the concepts before; none for the first.
 * @param stats The concept's statistics by layer; layers may share one object.
 * @param changes What it asks of each layer.
 * @param weight wᵢ.
 * @returns The problems, with the concept.
 */
export function addConcept(
  problems: readonly Problem[],
  stats: ReadonlyMap<string, Stats>,
  changes: ReadonlyMap<string, Change>,
  weight = 1,
): Problem[] {
  const sharers = (paths: Iterable<string>) => [
    ...Map.groupBy(paths, (path) => stats.get(path)!),
  ];
  const add = (problem: Problem, own: Stats, paths: readonly string[]) => {
    const asked = new Map(paths.map((path) => [path, changes.get(path)!]));
    const parts = partsOf(own);
    if (problem.length === 1 || parts.length === 1) {
      const [first, second] = problem;
      const sum = second ? first.plus(second) : first;
      sum.add(own.halves ? whole(own) : own, asked, weight);
      return [sum] as const;
    }
    const [first, second] = problem;
    // What is scored on is the halves themselves until a concept says otherwise.
    const sums: Problem = problem[2] === first && own.scored
      ? [first, second, first.only(paths), second.only(paths)]
      : problem;
    for (const sum of new Set(sums)) {
      sum.add(parts[sums.lastIndexOf(sum)], asked, weight);
    }
    return sums;
  };
  if (problems.length === 0) {
    return sharers(stats.keys()).map(([own, paths]) => {
      const [a, b] = partsOf(own).map(() => new LeastSquares(own.features));
      return add(b ? [a, b, a, b] : [a], own, paths);
    });
  }
  return problems.flatMap((problem) => {
    const groups = sharers(problem[0].paths);
    return groups.map(([own, paths]) => {
      if (groups.length === 1) return add(problem, own, paths);
      const copies = new Map(problem.map((sum) => [sum, sum.only(paths)]));
      const copied = problem.map((sum) => copies.get(sum)!);
      return add(copied as unknown as Problem, own, paths);
    });
  });
}

/** Halves and what they are scored on, if none is empty; else the whole. */
function partsOf(stats: Stats): readonly Stats[] {
  const { halves, scored = halves } = stats;
  const parts = [...halves ?? [], ...scored ?? []];
  return parts.length === 4 && parts.every(({ count }) => count > 0)
    ? parts
    : [stats];
}

function whole({ features, count, halves }: Stats): Stats {
  const [a, b] = halves!;
  return a.rows && b.rows
    ? { features, count, rows: stack(a.rows, b.rows) }
    : { features, count, gram: combine(gramOf(a), gramOf(b)) };
}

/**
 * Powers of ten that cross-validation tries, the largest first. Below 1e-5 the
 * sums themselves are uncertain: their products are float32.
 */
const EXPONENTS: readonly number[] = [2, 1, 0, -1, -2, -3, -4, -5];

/** A single concept is met exactly; this only keeps the factor finite. */
const EXACT = 1e-8;

/**
 * The ridge of each layer that predicts best from one half of every concept's
 * features what the other half needs: two-fold cross-validation, in closed form.
 *
 * With Gᵃ and Gᵇ the Gram matrices of the halves, ΔWᵃ(ρ) solves
 * (Σ Gᵢᵃ + ρ·tr/d) ΔW = Σ Gᵢᵃ ΔWᵢ and its score is
 * Σ wᵢ tr((ΔWᵃ − ΔWᵢ)ᵀ Gᵢᵇ (ΔWᵃ − ΔWᵢ)), plus the same with the halves
 * exchanged. Ten-fold steps of ρ are tried and the best is refined by the parabola
 * through it and its neighbours; of equally good ones the largest is taken. It
 * takes two Cholesky factors of Σ Gᵢ per ridge for all layers that share it, where
 * a given ridge takes one.
 *
 * A single concept contradicts nobody: it gets next to no ridge, and so itself.
 *
 * @param first One half.
 * @param second The other half.
 * @param scored What fits of the other half are scored on, of each half.
 * @param least The smallest ridge that may be chosen.
 * @returns The ridge of each layer, relative to trace(G)/d.
 *
 * @example
 * ```ts
 * const ridges = crossValidate(first, second);
 * const down = first.plus(second).solver(ridges.get("to_q")!)("to_q");
 * ```
 */
export function crossValidate(
  first: LeastSquares,
  second: LeastSquares,
  scored: readonly [LeastSquares, LeastSquares] = [first, second],
  least: number = FALLBACK_RIDGE,
): Map<string, number> {
  const scores = new Map<string, number[]>(
    first.paths.map((path) => [path, []]),
  );
  const exponents = EXPONENTS.filter((own) => 10 ** own >= least * (1 - 1e-9));
  for (const exponent of exponents) {
    const fits = [first, second].map((half) => half.solver(10 ** exponent));
    for (const [path, list] of scores) {
      list.push(
        scored[1].weight * scored[1].loss(path, fits[0](path)) +
          scored[0].weight * scored[0].loss(path, fits[1](path)),
      );
    }
  }
  return new Map(
    [...scores].map(([path, list]) => [
      path,
      first.targets(path).concepts === 1
        ? EXACT
        : 10 ** bestExponent(exponents, list),
    ]),
  );
}

function bestExponent(
  exponents: readonly number[],
  scores: readonly number[],
): number {
  let best = 0;
  scores.forEach((score, i) => {
    // Differences of this size are rounding.
    if (score < scores[best] * (1 - 1e-9)) best = i;
  });
  const [before, at, after] = [
    scores[best - 1],
    scores[best],
    scores[best + 1],
  ];
  const bend = before - 2 * at + after;
  // At an end of the range, or on a plain, there is no parabola.
  const shift = bend > 0 ? (before - after) / (2 * bend) : 0;
  return exponents[best] - Math.max(-0.5, Math.min(0.5, shift));
}

/**
 * Solves the layers of a problem.
 *
 * @param problem Whole, or in halves.
 * @param options Method and its settings.
 * @param lambda λ of the weight fusion it is compared with; 1/n by default.
 * @param least The smallest ridge that `auto` takes.
 * @returns One solution per layer, solved when it is asked for.
 * @throws If the method is unknown or the ridge negative.
 */
export function* solve(
  problem: Problem,
  options: SolveOptions = {},
  lambda?: number,
  least: number = FALLBACK_RIDGE,
): Generator<[path: string, LayerSolution]> {
  const { method = "closed", ridge = "auto", cutoff = 1e-12 } = options;
  if (method !== "closed" && method !== "lbfgs") {
    throw cannot("fuse a layer", "closed or lbfgs", String(method));
  }
  const [first, second, ...scored] = problem;
  const sum = second ? first.plus(second) : first;
  const chosen = method === "closed" && ridge === "auto" && second
    ? crossValidate(
      first,
      second,
      scored as [LeastSquares, LeastSquares],
      least,
    )
    : undefined;
  const given = ridge === "auto" ? least : ridge;
  const shared = method === "closed" && !chosen
    ? sum.solver(given, cutoff)
    : undefined;
  for (const path of sum.paths) {
    const { down: asked, up, outputs, concepts } = sum.targets(path);
    let down: Matrix;
    let delta: Delta;
    let own = chosen?.get(path) ?? given;
    let lossAfter: number;
    if (method === "closed" || up.rows === 0) {
      down = (shared ?? sum.solver(own, cutoff))(path);
      delta = { down, up };
      lossAfter = sum.loss(path, down);
    } else {
      const numbers = options.precision === "float32"
        ? Float32Array
        : Float64Array;
      const { best, bestValue } = lbfgs(
        sum.objective(path),
        new numbers(sum.features * outputs),
        { ...OFFICIAL_LBFGS, maxIterations: options.iterations ?? 500 },
      );
      down = matrix(sum.features, outputs, best);
      delta = { down, up: identity(outputs) };
      lossAfter = bestValue;
      own = NaN;
    }
    yield [path, {
      delta,
      ridge: own,
      lossBefore: sum.loss(path, matrix(sum.features, up.rows)),
      lossAfter,
      lossWeightFusion: sum.loss(
        path,
        scaled(asked, lambda ?? 1 / Math.max(1, concepts)),
      ),
      rows: sum.rows,
      features: sum.features,
      dual: sum.stacked !== undefined,
    }];
  }
}

/** What one concept contributes to one layer. */
export interface LayerTerm {
  /** Its inputs to the layer. */
  readonly stats: Stats;
  /** Its change of weight, if it has one. */
  readonly delta?: Delta;
  /**
   * wᵢ.
   *
   * @default 1
   */
  readonly weight?: number;
}

/**
 * Fuses one layer from what clients send: (ΔWᵢ, Gᵢ) and nothing else.
 *
 * @param terms One a concept.
 * @param options Method, ridge.
 * @throws If shapes differ.
 *
 * @example
 * ```ts
 * const { delta, lossAfter } = fuseLayer([
 *   { stats: fox, delta: foxLora },
 *   { stats: owl, delta: owlLora },
 * ]);
 * ```
 */
export function fuseLayer(
  terms: readonly LayerTerm[],
  options: SolveOptions & {
    /**
     * λ of the weight fusion it is compared with.
     *
     * @default 1/n
     */
    readonly lambda?: number;
  } = {},
): LayerSolution {
  const first = terms.find(({ delta }) => delta)?.delta;
  if (!first) {
    throw cannot("fuse a layer", "a concept that changes it", "none");
  }
  const outputs = first.up.columns;
  const problems = terms.reduce<Problem[]>(
    (sum, { stats, delta, weight = 1 }) =>
      addConcept(
        sum,
        new Map([["", stats]]),
        new Map([["", { outputs, ...(delta ? { delta } : {}) }]]),
        weight,
      ),
    [],
  );
  const [[, solution]] = solve(problems[0], options, options.lambda);
  return solution;
}
