/**
 * L-BFGS with a strong Wolfe line search, step for step as
 * `torch.optim.LBFGS` behaves (Nocedal & Wright, Numerical Optimization,
 * algorithms 7.4 and 3.5).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/**
 * A point or direction. The precision of the start is that of the whole run:
 * Float32Array follows PyTorch in float32, Float64Array converges further.
 */
export type Vector = Float64Array | Float32Array;

/** A point's value and gradient. */
export interface Evaluation {
  /** f(x). */
  readonly value: number;
  /** ∇f(x), as long as x; the minimiser copies what it keeps. */
  readonly gradient: ArrayLike<number>;
}

/** Options of {@linkcode lbfgs}; the defaults are PyTorch's. */
export interface LbfgsOptions {
  /**
   * First step length along a direction.
   *
   * @default 1
   */
  readonly lr?: number;
  /**
   * Most iterations.
   *
   * @default 20
   */
  readonly maxIterations?: number;
  /**
   * Most evaluations of f.
   *
   * @default 1.25 · maxIterations, rounded down
   */
  readonly maxEvaluations?: number;
  /**
   * Number of stored updates.
   *
   * @default 100
   */
  readonly history?: number;
  /**
   * Stops when no gradient entry is larger.
   *
   * @default 1e-7
   */
  readonly toleranceGradient?: number;
  /**
   * Stops when value or point change less.
   *
   * @default 1e-9
   */
  readonly toleranceChange?: number;
  /**
   * Line search, or a fixed step `lr`.
   *
   * @default "strong_wolfe"
   */
  readonly lineSearch?: "strong_wolfe" | "none";
}

/**
 * Settings of Mix-of-Show's gradient fusion: history 25, tolerances 1e-16,
 * strong Wolfe.
 */
export const OFFICIAL_LBFGS: LbfgsOptions = {
  lr: 1,
  history: 25,
  toleranceGradient: 1e-16,
  toleranceChange: 1e-16,
  lineSearch: "strong_wolfe",
};

/** How a minimisation ended. */
export interface LbfgsResult {
  /** The last point. */
  readonly x: Vector;
  /** f(x). */
  readonly value: number;
  /** The point with the lowest value seen, line searches included. */
  readonly best: Vector;
  /** f(best). */
  readonly bestValue: number;
  /** Iterations done. */
  readonly iterations: number;
  /** Evaluations of f. */
  readonly evaluations: number;
  /** Largest absolute gradient entry at `x`. */
  readonly gradient: number;
}

/** One evaluated point on a search line. */
interface LinePoint {
  readonly t: number;
  readonly value: number;
  readonly gradient: Vector;
  /** Directional derivative. */
  readonly slope: number;
}

/**
 * Minimises a smooth function.
 *
 * @param f Value and gradient at a point.
 * @param start First point; it is not changed.
 * @param options Settings.
 * @throws If `start` is empty or f is not finite there.
 *
 * @example
 * ```ts
 * const { x } = lbfgs(
 *   (x) => ({ value: (x[0] - 3) ** 2, gradient: [2 * (x[0] - 3)] }),
 *   [0],
 * );
 * ```
 */
export function lbfgs(
  f: (x: Vector) => Evaluation,
  start: ArrayLike<number>,
  options: LbfgsOptions = {},
): LbfgsResult {
  const run = minimise(start, options);
  let next = run.next();
  while (!next.done) next = run.next(f(next.value));
  return next.value;
}

type Run<T> = Generator<Vector, T, Evaluation>;

/** Settings with their defaults, checked. */
function settingsOf(
  n: number,
  {
    lr = 1,
    maxIterations = 20,
    maxEvaluations = Math.floor(1.25 * maxIterations),
    history = 100,
    toleranceGradient = 1e-7,
    toleranceChange = 1e-9,
    lineSearch = "strong_wolfe",
  }: LbfgsOptions,
): Required<LbfgsOptions> {
  if (n === 0) throw cannot("minimise", "at least one variable", "none");
  if (!(maxIterations >= 0 && history >= 1 && lr > 0)) {
    throw cannot(
      "minimise",
      "maxIterations ≥ 0, history ≥ 1 and lr > 0",
      { maxIterations, history, lr },
    );
  }
  return {
    ...{ lr, maxIterations, maxEvaluations, history },
    ...{ toleranceGradient, toleranceChange, lineSearch },
  };
}

/** Evaluates points, counts that and keeps the best of them. */
class Evaluator {
  count = 0;
  best: Vector;
  bestValue = Infinity;

  constructor(
    readonly start: Vector,
    readonly vector: (values: ArrayLike<number>) => Vector,
  ) {
    this.best = start;
  }

  *at(point: Vector): Run<{ value: number; gradient: Vector }> {
    // A copy each way: the caller may keep what it is given.
    const { value, gradient } = yield point.slice();
    this.count++;
    const n = this.start.length;
    if (gradient.length !== n) {
      throw cannot("minimise", `a gradient of ${n} entries`, gradient.length);
    }
    if (value < this.bestValue) {
      this.bestValue = value;
      this.best = point;
    }
    return { value, gradient: this.vector(gradient) };
  }
}

/** What the last steps tell of the Hessian's inverse. */
class Curvature {
  readonly #updates: Update[] = [];
  #scale = 1;

  constructor(readonly history: number) {}

  /** Learns from a step s along which the gradient changed by y. */
  add(s: Vector, y: Vector): void {
    const ys = dot(y, s);
    // Updates that would spoil positive definiteness are left out.
    if (!(ys > 1e-10)) return;
    if (this.#updates.length === this.history) this.#updates.shift();
    this.#updates.push({ s, y, rho: 1 / ys });
    this.#scale = ys / dot(y, y);
  }

  /** −H·g. */
  direction(gradient: Vector): Vector {
    return twoLoop(gradient, this.#updates, this.#scale);
  }
}

/** The minimiser as a coroutine: yields a point, is sent its evaluation. */
function* minimise(
  start: ArrayLike<number>,
  options: LbfgsOptions,
): Run<LbfgsResult> {
  const settings = settingsOf(start.length, options);
  const { lr, maxIterations, toleranceGradient, toleranceChange } = settings;
  const vector = (values: ArrayLike<number>): Vector =>
    start instanceof Float32Array
      ? Float32Array.from(values)
      : Float64Array.from(values);
  let x = vector(start);
  const evaluator = new Evaluator(x, vector);
  let { value, gradient } = yield* evaluator.at(x);
  if (!Number.isFinite(value)) {
    throw cannot("minimise", "a finite value at the start", value);
  }
  let iterations = 0;
  const done = (): LbfgsResult => ({
    ...{ x, value, iterations, evaluations: evaluator.count },
    ...{ best: evaluator.best, bestValue: evaluator.bestValue },
    gradient: largest(gradient),
  });
  const curvature = new Curvature(settings.history);
  let t = 0;
  let direction = map(gradient, (g) => -g);
  let previousGradient = gradient;
  if (largest(gradient) <= toleranceGradient) return done();
  while (iterations < maxIterations) {
    iterations++;
    if (iterations > 1) {
      curvature.add(
        map(direction, (d) => t * d),
        map(gradient, (g, i) => g - previousGradient[i]),
      );
      direction = curvature.direction(gradient);
    }
    previousGradient = gradient;
    const previousValue = value;
    t = iterations === 1 ? Math.min(1, 1 / oneNorm(gradient)) * lr : lr;
    const slope = dot(gradient, direction);
    if (slope > -toleranceChange) break;
    const from = x;
    const along = (step: number) =>
      map(from, (v, i) => v + step * direction[i]);
    if (settings.lineSearch === "strong_wolfe") {
      ({ t, value, gradient } = yield* strongWolfe(
        function* (step) {
          const point = yield* evaluator.at(along(step));
          return { t: step, ...point, slope: dot(point.gradient, direction) };
        },
        { t: 0, value, gradient, slope },
        t,
        largest(direction),
        toleranceChange,
      ));
      x = along(t);
    } else {
      x = along(t);
      // As in PyTorch, a fixed step does not evaluate the last point.
      if (iterations !== maxIterations) {
        ({ value, gradient } = yield* evaluator.at(x));
      }
    }
    if (
      evaluator.count >= settings.maxEvaluations ||
      largest(gradient) <= toleranceGradient ||
      largest(direction) * Math.abs(t) <= toleranceChange ||
      Math.abs(value - previousValue) < toleranceChange
    ) break;
  }
  return done();
}

/** A step, the change of the gradient along it, and 1/(yᵀs). */
interface Update {
  readonly s: Vector;
  readonly y: Vector;
  readonly rho: number;
}

/** −H·g by the two-loop recursion, H₀ = scale·I. */
function twoLoop(
  gradient: Vector,
  updates: readonly Update[],
  scale: number,
): Vector {
  const q = map(gradient, (g) => -g);
  const alphas = new Float64Array(updates.length);
  for (let i = updates.length - 1; i >= 0; i--) {
    const { s, y, rho } = updates[i];
    alphas[i] = rho * dot(s, q);
    for (let k = 0; k < q.length; k++) q[k] -= alphas[i] * y[k];
  }
  for (let k = 0; k < q.length; k++) q[k] *= scale;
  for (let i = 0; i < updates.length; i++) {
    const { s, y, rho } = updates[i];
    const beta = rho * dot(y, q);
    for (let k = 0; k < q.length; k++) q[k] += (alphas[i] - beta) * s[k];
  }
  return q;
}

const SUFFICIENT_DECREASE = 1e-4;
const CURVATURE = 0.9;
const MOST_LINE_STEPS = 25;

/**
 * Finds a step that satisfies the strong Wolfe conditions: first a bracket,
 * then a zoom into it, both by cubic interpolation.
 *
 * @param at Evaluates a step.
 * @param origin Step 0.
 * @param first First step to try.
 * @param size Largest absolute entry of the direction.
 * @param toleranceChange Brackets that move x less are not refined.
 */
function* strongWolfe(
  at: (t: number) => Run<LinePoint>,
  origin: LinePoint,
  first: number,
  size: number,
  toleranceChange: number,
): Run<LinePoint> {
  const tooHigh = (p: LinePoint) =>
    p.value > origin.value + SUFFICIENT_DECREASE * p.t * origin.slope;
  const flat = (p: LinePoint) => Math.abs(p.slope) <= -CURVATURE * origin.slope;
  let previous = origin;
  let current = yield* at(first);
  let steps = 0;
  let bracket: [LinePoint, LinePoint] | undefined;
  for (; steps < MOST_LINE_STEPS; steps++) {
    if (
      tooHigh(current) || (steps > 1 && current.value >= previous.value)
    ) {
      bracket = [previous, current];
      break;
    }
    if (flat(current)) return current;
    if (current.slope >= 0) {
      bracket = [previous, current];
      break;
    }
    const next = cubicMinimum(
      previous,
      current,
      current.t + 0.01 * (current.t - previous.t),
      10 * current.t,
    );
    previous = current;
    current = yield* at(next);
  }
  bracket ??= [origin, current];
  let low = bracket[0].value <= bracket[1].value ? 0 : 1;
  let stuck = false;
  for (; steps < MOST_LINE_STEPS; steps++) {
    const left = Math.min(bracket[0].t, bracket[1].t);
    const right = Math.max(bracket[0].t, bracket[1].t);
    if ((right - left) * size < toleranceChange) break;
    let t = cubicMinimum(bracket[0], bracket[1], left, right);
    // Twice too near an end: step away from it, or the bracket stays wide.
    const margin = 0.1 * (right - left);
    if (Math.min(right - t, t - left) < margin) {
      if (stuck || t >= right || t <= left) {
        t = Math.abs(t - right) < Math.abs(t - left)
          ? right - margin
          : left + margin;
        stuck = false;
      } else {
        stuck = true;
      }
    } else {
      stuck = false;
    }
    const point = yield* at(t);
    const high = 1 - low;
    if (tooHigh(point) || point.value >= bracket[low].value) {
      bracket[high] = point;
      low = bracket[0].value <= bracket[1].value ? 0 : 1;
      continue;
    }
    const settled = flat(point);
    if (!settled && point.slope * (bracket[high].t - bracket[low].t) >= 0) {
      bracket[high] = bracket[low];
    }
    bracket[low] = point;
    if (settled) break;
  }
  return bracket[low];
}

/**
 * Minimum, within bounds, of the cubic through two points with their slopes;
 * the middle of the bounds if it has none.
 */
function cubicMinimum(
  a: LinePoint,
  b: LinePoint,
  lower: number,
  upper: number,
): number {
  const d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t);
  const square = d1 * d1 - a.slope * b.slope;
  // NaN, from points that coincide, takes the middle too.
  if (!(square >= 0)) return (lower + upper) / 2;
  const d2 = Math.sqrt(square);
  const [p, q] = a.t <= b.t ? [a, b] : [b, a];
  const t = q.t -
    (q.t - p.t) * ((q.slope + d2 - d1) / (q.slope - p.slope + 2 * d2));
  return Math.min(Math.max(t, lower), upper);
}

function map(a: Vector, fn: (x: number, i: number) => number): Vector {
  return a instanceof Float32Array ? a.map(fn) : a.map(fn);
}

function oneNorm(a: Vector): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += Math.abs(a[i]);
  return sum;
}

function dot(a: Vector, b: Vector): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function largest(a: Vector): number {
  let most = 0;
  for (let i = 0; i < a.length; i++) {
    const size = Math.abs(a[i]);
    // Also true for NaN, which then ends no loop by looking small.
    if (!(size <= most)) most = size;
  }
  return most;
}
