/**
 * Means with intervals: Student's t on paired differences, and a bootstrap that
 * respects how scores are nested (prompts in seeds in concepts).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, type Key, stream } from "../core/random.ts";

/** A mean and its interval. */
export interface Estimate {
  /** The mean. */
  readonly mean: number;
  /** Lower end of the interval. */
  readonly low: number;
  /** Upper end of the interval. */
  readonly high: number;
}

/**
 * The arithmetic mean.
 *
 * @throws If there are no values.
 */
export function mean(values: readonly number[]): number {
  if (values.length === 0) throw cannot("average", "values", "none");
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/**
 * Median of values; of an even number, the mean of the middle two.
 *
 * @throws If there are no values.
 */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw cannot("take a median", "values", "none");
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length / 2;
  return Number.isInteger(half)
    ? (sorted[half - 1] + sorted[half]) / 2
    : sorted[Math.floor(half)];
}

/** Logarithm of the gamma function (Lanczos, g = 7), for x > 0. */
function logGamma(x: number): number {
  const c = [
    0.99999999999980993,
    676.5203681218851,
    -1259.1392167224028,
    771.32342877765313,
    -176.61502916214059,
    12.507343278686905,
    -0.13857109526572012,
    9.9843695780195716e-6,
    1.5056327351493116e-7,
  ];
  let sum = c[0];
  for (let i = 1; i < c.length; i++) sum += c[i] / (x - 1 + i);
  const t = x + 6.5;
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t +
    Math.log(sum);
}

/** Regularised incomplete beta function, by Lentz's continued fraction. */
function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  // The fraction converges fast below the mean; above it, use the symmetry.
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = Math.exp(
    logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) +
      b * Math.log(1 - x),
  ) / a;
  const tiny = 1e-300;
  let f = 1, c = 1, d = 0;
  for (let i = 0; i <= 300; i++) {
    const m = Math.floor(i / 2);
    const term = i === 0
      ? 1
      : i % 2 === 0
      ? m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
      : -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 + term * d;
    d = 1 / (Math.abs(d) < tiny ? tiny : d);
    c = 1 + term / c;
    if (Math.abs(c) < tiny) c = tiny;
    f *= c * d;
    if (Math.abs(1 - c * d) < 1e-14) break;
  }
  return front * (f - 1);
}

/**
 * Quantile of Student's t distribution.
 *
 * @param p Probability in (0, 1).
 * @param df Degrees of freedom, ≥ 1.
 * @throws If `p` or `df` is out of range.
 */
export function studentQuantile(p: number, df: number): number {
  if (!(p > 0 && p < 1) || !(df >= 1)) {
    throw cannot("invert Student's t", "p in (0, 1), df ≥ 1", `${p}, ${df}`);
  }
  if (p === 0.5) return 0;
  if (p < 0.5) return -studentQuantile(1 - p, df);
  const cdf = (t: number): number =>
    1 - 0.5 * incompleteBeta(df / (df + t * t), df / 2, 0.5);
  let high = 1;
  while (cdf(high) < p) high *= 2;
  let low = 0;
  for (let i = 0; i < 200 && high - low > 1e-12 * high; i++) {
    const middle = (low + high) / 2;
    if (cdf(middle) < p) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/**
 * Mean with Student's t interval.
 *
 * @param values Independent values, such as one difference per concept.
 * @param level Coverage.
 * @default level 0.95
 * @returns With a single value the interval is infinite.
 */
export function tInterval(
  values: readonly number[],
  level = 0.95,
): Estimate {
  const center = mean(values);
  const n = values.length;
  if (n === 1) return { mean: center, low: -Infinity, high: Infinity };
  const variance = values.reduce((s, v) => s + (v - center) ** 2, 0) / (n - 1);
  const half = studentQuantile((1 + level) / 2, n - 1) *
    Math.sqrt(variance / n);
  return { mean: center, low: center - half, high: center + half };
}

/** A comparison of two arms on the same concepts. */
export interface PairedDifference extends Estimate {
  /** Number of pairs. */
  readonly n: number;
  /** How many pairs have a − b > 0. */
  readonly wins: number;
}

/**
 * Mean of a − b with Student's t interval.
 *
 * @param a One value per concept.
 * @param b The other arm, same concepts, same order.
 * @param level Coverage.
 * @default level 0.95
 * @throws If the lengths differ.
 */
export function pairedDifference(
  a: readonly number[],
  b: readonly number[],
  level = 0.95,
): PairedDifference {
  if (a.length !== b.length) {
    throw cannot("pair values", `${a.length} of them`, b.length);
  }
  const differences = a.map((value, i) => value - b[i]);
  return {
    ...tInterval(differences, level),
    n: a.length,
    wins: differences.filter((d) => d > 0).length,
  };
}

/** Values in groups of groups: concept → seed → prompt. */
export type Nested = number | readonly Nested[];

/** Mean of means: every group has the same weight, whatever its size. */
export function nestedMean(values: Nested): number {
  return typeof values === "number" ? values : mean(values.map(nestedMean));
}

/** Settings of the bootstrap. */
export interface BootstrapOptions {
  /**
   * Resamples.
   *
   * @default 2000
   */
  readonly draws?: number;
  /**
   * Coverage of the interval.
   *
   * @default 0.95
   */
  readonly level?: number;
}

/**
 * Hierarchical bootstrap: groups are drawn with replacement, then groups in
 * each drawn group, and so on; the interval is the percentile one.
 *
 * @param values Nested values, same number of levels everywhere.
 * @param key Random key.
 * @param options Draws and coverage.
 *
 * @example
 * ```ts ignore
 * hierarchicalBootstrap([[[.8, .7]], [[.6, .9]]], key(0)); // { mean: .75, … }
 * ```
 */
export function hierarchicalBootstrap(
  values: readonly Nested[],
  key: Key,
  options: BootstrapOptions = {},
): Estimate {
  return bootstrap(
    (draw) => {
      const resample = (node: Nested): number => {
        if (typeof node === "number") return node;
        let sum = 0;
        for (let i = 0; i < node.length; i++) {
          sum += resample(node[draw(node.length)]);
        }
        return sum / node.length;
      };
      return resample(values);
    },
    nestedMean(values),
    key,
    options,
  );
}

/** Percentile interval of a statistic that draws its own resample. */
function bootstrap(
  statistic: (draw: (n: number) => number) => number,
  center: number,
  key: Key,
  options: BootstrapOptions,
): Estimate {
  const { draws = 2000, level = 0.95 } = options;
  if (!Number.isInteger(draws) || draws < 1) {
    throw cannot("bootstrap", "a positive number of draws", draws);
  }
  const { integer } = stream(fold(key, "bootstrap"));
  const results = Array.from({ length: draws }, () => statistic(integer))
    .filter((value) => Number.isFinite(value))
    .sort((a, b) => a - b);
  const at = (p: number): number =>
    results[Math.min(results.length - 1, Math.floor(p * results.length))] ??
      NaN;
  return {
    mean: center,
    low: at((1 - level) / 2),
    high: at((1 + level) / 2),
  };
}

/**
 * The share of the gain of customisation that survives fusion: (fused − lower)
 * / (single − lower), of the means over concepts, with a bootstrap interval
 * over concepts. 1: nothing is lost; 0: as the untouched model.
 *
 * @param fused One value per concept, from the fused model.
 * @param single The same from the single-concept models.
 * @param lower The same from the untouched base model.
 * @param key Random key.
 * @param options Draws and coverage.
 * @returns NaN if customisation gained nothing.
 * @throws If the lengths differ.
 */
export function retainedShare(
  fused: readonly number[],
  single: readonly number[],
  lower: readonly number[],
  key: Key,
  options: BootstrapOptions = {},
): Estimate {
  const n = fused.length;
  if (single.length !== n || lower.length !== n) {
    throw cannot(
      "compute a retained share",
      `${n} values of each kind`,
      `${single.length} and ${lower.length}`,
    );
  }
  const share = (indices: readonly number[]): number => {
    const sum = (values: readonly number[]) =>
      indices.reduce((s, i) => s + values[i], 0);
    const gain = sum(single) - sum(lower);
    return gain > 0 ? (sum(fused) - sum(lower)) / gain : NaN;
  };
  const all = Array.from({ length: n }, (_, i) => i);
  return bootstrap(
    (draw) => share(all.map(() => draw(n))),
    share(all),
    key,
    options,
  );
}
