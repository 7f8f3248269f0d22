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
   * On the fixture's three concepts (66 spatial layers; mean loss and ‖ΔW‖):
   * 0 gives 0.02352 and 21.1, 1e-6 0.02352 and 18.1, 1e-5 0.02355 and 11.8, 1e-4
   * 0.02364 and 6.9; 50 iterations of L-BFGS give 0.02416 and 3.5. What a ridge
   * holds back are directions the features hardly ever take.
   *
   * @default 1e-5
   */
  readonly ridge?: number;
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

/** The default ridge of {@linkcode SolveOptions}. */
export const DEFAULT_RIDGE: number = 1e-5;

/** A solved layer. */
export interface LayerSolution {
  /** The fused change of weight. */
  readonly delta: Delta;
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

/**
 * The inputs of one layer, or of several that share them, summed over
 * concepts: Σ wᵢ Gᵢ, or the rows √wᵢ Xᵢ as long as all of them together are no
 * more than the features.
 */
export class InputSystem {
  /** Rows over all concepts. */
  rows: number = 0;
  /** Rows weighted by wᵢ: what a mean divides by. */
  weight: number = 0;
  #stacked: Matrix | undefined;
  #gram: Matrix | undefined;
  #factors = new Map<string, (right: Matrix) => Matrix>();

  /**
   * An empty sum.
   *
   * @param features Input features d.
   */
  constructor(readonly features: number) {
    this.#stacked = matrix(0, features);
  }

  /**
   * Adds the inputs of one concept.
   *
   * @param stats Its statistics.
   * @param weight wᵢ.
   */
  add(stats: Stats, weight = 1): void {
    const d = this.features;
    if (stats.features !== d) {
      throw cannot(
        "fuse a layer",
        `statistics of ${d} features`,
        stats.features,
      );
    }
    if (!(weight >= 0 && Number.isFinite(weight))) {
      throw cannot("fuse a layer", "finite weights ≥ 0", weight);
    }
    this.rows += stats.count;
    this.weight += weight * stats.count;
    this.#factors.clear();
    if (this.#stacked && stats.rows && this.rows <= d) {
      const rows = scaled(stats.rows, Math.sqrt(weight));
      this.#stacked = stack(this.#stacked, rows);
      this.#gram = undefined;
      return;
    }
    this.#gram ??= gram(this.#stacked!);
    this.#stacked = undefined;
    const own = gramOf(stats).data;
    for (let i = 0; i < own.length; i++) {
      this.#gram.data[i] += weight * own[i];
    }
  }

  /** A copy that can be added to on its own. */
  clone(): InputSystem {
    const copy = new InputSystem(this.features);
    copy.rows = this.rows;
    copy.weight = this.weight;
    copy.#stacked = this.#stacked;
    copy.#gram = this.#gram &&
      matrix(this.features, this.features, this.#gram.data.slice());
    return copy;
  }

  /** The weighted rows, if there are at most as many as features. */
  get stacked(): Matrix | undefined {
    return this.#stacked;
  }

  /** Σ wᵢ Gᵢ. */
  get gram(): Matrix {
    return this.#gram ??= gram(this.#stacked!);
  }

  /**
   * Minimum-change or ridge solution of X·Z = targets (dual, given rows) or
   * G·Z = right.
   *
   * @param right [d, R].
   * @param targets [rows, R], in the dual form.
   * @param ridge Relative to trace(G)/d.
   * @param cutoff For ridge 0.
   */
  solve(
    right: Matrix,
    targets: Matrix | undefined,
    ridge: number,
    cutoff: number,
  ): Matrix {
    const x = this.#stacked;
    const dual = x !== undefined && targets !== undefined;
    const name = `${dual} ${ridge} ${cutoff}`;
    let apply = this.#factors.get(name);
    if (!apply) {
      // XXᵀ and XᵀX have the same trace, so the mean of its diagonal is d/rows
      // times as large, and the same ridge is rows/d times as much of it.
      const [a, relative] = dual
        ? [gram(transpose(x)), ridge * x.rows / this.features]
        : [this.gram, ridge];
      apply = solver(a, relative, cutoff);
      this.#factors.set(name, apply);
    }
    return dual ? multiply(transpose(x), apply(targets)) : apply(right);
  }
}

function scaled(a: Matrix, factor: number): Matrix {
  return factor === 1
    ? a
    : matrix(a.rows, a.columns, a.data.map((x) => factor * x));
}

/** The least squares problem of one layer, summed over concepts. */
export class LayerProblem {
  /** [d, R]: downᵢ side by side. */
  #down: Matrix;
  /** [R, out]: upᵢ one below the other; the identity once it is dense. */
  #up: Matrix;
  /** [d, R]: wᵢ Gᵢ·downᵢ side by side. */
  #right: Matrix;
  /** [rows, R]: √wᵢ Xᵢ·downᵢ as diagonal blocks, in the dual form. */
  #targets: Matrix | undefined;
  /** [R, R]: wᵢ downᵢᵀ·Gᵢ·downᵢ as diagonal blocks. */
  #energy: Matrix;
  #dense = false;
  #concepts = 0;

  /**
   * A problem without concepts.
   *
   * @param system The inputs; add a concept there first, then here.
   * @param outputs Output features.
   */
  constructor(readonly system: InputSystem, readonly outputs: number) {
    const d = system.features;
    this.#down = matrix(d, 0);
    this.#up = matrix(0, outputs);
    this.#right = matrix(d, 0);
    this.#targets = matrix(0, 0);
    this.#energy = matrix(0, 0);
  }

  /** The same problem over another, equal system. */
  withSystem(system: InputSystem): LayerProblem {
    const copy = new LayerProblem(system, this.outputs);
    copy.#down = this.#down;
    copy.#up = this.#up;
    copy.#right = this.#right;
    copy.#targets = this.#targets;
    copy.#energy = this.#energy;
    copy.#dense = this.#dense;
    copy.#concepts = this.#concepts;
    return copy;
  }

  /**
   * Adds one concept's change of weight.
   *
   * @param stats What the system was given.
   * @param delta ΔWᵢ; nothing for a concept that leaves this layer as it is.
   * @param weight wᵢ, as the system was given.
   */
  add(stats: Stats, delta: Delta | undefined, weight = 1): void {
    const { features: d } = this.system;
    this.#concepts++;
    let { down, up } = delta ??
      { down: matrix(d, 0), up: matrix(0, this.outputs) };
    if (
      down.rows !== d || up.columns !== this.outputs || down.columns !== up.rows
    ) {
      throw cannot(
        "fuse a layer",
        `a change of weight [${d}, r] · [r, ${this.outputs}]`,
        `[${down.rows}, ${down.columns}] · [${up.rows}, ${up.columns}]`,
      );
    }
    if (
      !this.#dense && down.columns + this.#up.rows > Math.min(d, this.outputs)
    ) this.#makeDense();
    if (this.#dense) {
      down = multiply(down, up);
      up = identity(this.outputs);
    }
    let right: Matrix;
    let energy: Matrix;
    let targets: Matrix | undefined;
    if (stats.rows) {
      targets = scaled(multiply(stats.rows, down), Math.sqrt(weight));
      right = multiply(
        transpose(scaled(stats.rows, Math.sqrt(weight))),
        targets,
      );
      energy = gram(targets);
    } else {
      right = scaled(multiply(stats.gram!, down), weight);
      energy = multiply(transpose(down), right);
    }
    if (!this.system.stacked) targets = undefined;
    if (this.#dense) {
      this.#down = combine(this.#down, down);
      this.#right = combine(this.#right, right);
      this.#energy = combine(this.#energy, energy);
      this.#targets = targets && this.#targets && stack(this.#targets, targets);
    } else {
      this.#down = beside(this.#down, down);
      this.#up = stack(this.#up, up);
      this.#right = beside(this.#right, right);
      this.#energy = blockDiagonal(this.#energy, energy);
      this.#targets = targets && this.#targets &&
        blockDiagonal(this.#targets, targets);
    }
  }

  /** Past full rank, factors only cost: fold `up` into all of them. */
  #makeDense(): void {
    const up = this.#up;
    const upT = transpose(up);
    this.#down = multiply(this.#down, up);
    this.#right = multiply(this.#right, up);
    this.#energy = multiply(upT, multiply(this.#energy, up));
    this.#targets = this.#targets && multiply(this.#targets, up);
    this.#up = identity(this.outputs);
    this.#dense = true;
  }

  /**
   * Mean squared feature error of W₀ + down · up, where `up` is this problem's
   * own.
   */
  #loss(down: Matrix): number {
    const n = this.system.weight * this.outputs;
    if (n === 0) return 0;
    const outer = multiply(this.#up, transpose(this.#up));
    const { stacked } = this.system;
    let energy: Matrix;
    if (stacked && this.#targets) {
      energy = gram(combine(multiply(stacked, down), this.#targets, 1, -1));
    } else {
      const cross = multiply(transpose(down), this.#right);
      energy = combine(
        combine(
          multiply(transpose(down), multiply(this.system.gram, down)),
          this.#energy,
        ),
        combine(cross, transpose(cross)),
        1,
        -1,
      );
    }
    // Rounding may leave a perfect fit a hair below zero.
    return Math.max(0, inner(outer, energy)) / n;
  }

  /**
   * Mean squared feature error of any change of weight.
   *
   * @param change ΔW [in, out].
   */
  loss(change: Matrix): number {
    return this.objective()(change.data).value;
  }

  /**
   * Mean squared feature error and its gradient, as a function of ΔW
   * (row-major [in, out]).
   */
  objective(): (change: Vector) => Evaluation {
    const { features: d, weight } = this.system;
    const n = weight * this.outputs;
    const { stacked } = this.system;
    const round = (value: number, like: Vector) =>
      like instanceof Float32Array ? Math.fround(value) : value;
    if (stacked && this.#targets) {
      const targets = multiply(this.#targets, this.#up);
      const xT = transpose(stacked);
      return (change) => {
        const residual = combine(
          multiply(stacked, matrix(d, this.outputs, change)),
          targets,
          1,
          -1,
        );
        return {
          value: round(inner(residual, residual) / n, change),
          gradient: multiply(xT, residual).data.map((g) => 2 * g / n),
        };
      };
    }
    const right = multiply(this.#right, this.#up);
    const constant = inner(
      multiply(this.#up, transpose(this.#up)),
      this.#energy,
    );
    const { gram: g } = this.system;
    return (change) => {
      const w = matrix(d, this.outputs, change);
      const gw = multiply(g, w);
      const value = inner(w, gw) - 2 * inner(w, right) + constant;
      return {
        value: round(Math.max(0, value) / n, change),
        gradient: combine(gw, right, 2 / n, -2 / n).data,
      };
    };
  }

  /**
   * Solves the layer.
   *
   * @param options Method and its settings.
   * @param lambda λ of the weight fusion it is compared with; 1/n by default.
   */
  solve(
    options: SolveOptions = {},
    lambda = 1 / Math.max(1, this.#concepts),
  ): LayerSolution {
    const { method = "closed", ridge = DEFAULT_RIDGE, cutoff = 1e-12 } =
      options;
    const up = this.#up;
    let delta: Delta;
    let lossAfter: number;
    if (method === "closed" || up.rows === 0) {
      const down = this.system.solve(
        this.#right,
        this.#targets,
        ridge,
        cutoff,
      );
      delta = { down, up };
      lossAfter = this.#loss(down);
    } else if (method === "lbfgs") {
      const start =
        new (options.precision === "float32" ? Float32Array : Float64Array)(
          this.system.features * this.outputs,
        );
      const { best, bestValue } = lbfgs(this.objective(), start, {
        ...OFFICIAL_LBFGS,
        maxIterations: options.iterations ?? 500,
      });
      delta = {
        down: matrix(this.system.features, this.outputs, best),
        up: identity(this.outputs),
      };
      lossAfter = bestValue;
    } else {
      throw cannot("fuse a layer", "closed or lbfgs", String(method));
    }
    return {
      delta,
      lossBefore: this.#loss(matrix(this.system.features, up.rows)),
      lossAfter,
      lossWeightFusion: this.#loss(scaled(this.#down, lambda)),
      rows: this.system.rows,
      features: this.system.features,
      dual: this.system.stacked !== undefined && this.#targets !== undefined,
    };
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
  const system = new InputSystem(first.down.rows);
  const problem = new LayerProblem(system, first.up.columns);
  for (const { stats, delta, weight = 1 } of terms) {
    system.add(stats, weight);
    problem.add(stats, delta, weight);
  }
  return problem.solve(options, options.lambda);
}
