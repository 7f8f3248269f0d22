/**
 * Compares two arms on the same concepts: the paired difference, and the
 * verdict on a claim.
 *
 * @module
 */
import type { Key } from "../core/random.ts";
import { type Interval, type Maybe, range, signed } from "../report/format.ts";
import { type Column, type Table, tableOf } from "../report/table.ts";
import {
  hierarchicalBootstrap,
  type Nested,
  nestedMean,
  pairedDifference,
} from "./statistics.ts";

/**
 * The verdict on a claim: `reproduced` for the paper's claims, `shown` for
 * others.
 */
export type Verdict =
  | "reproduced"
  | "shown"
  | "not shown"
  | "reversed"
  | "no conclusion";

/** A claim to be tested: the first of two arms is better. */
export interface Claim {
  /** The arms. */
  readonly id: string;
  /** The claim in words. */
  readonly claim: string;
  /** Whether it is the paper's; the others go beyond it. */
  readonly paper: boolean;
  /** By which score. */
  readonly score: string;
  /** Whether less of the score is better: the difference should be negative. */
  readonly less?: boolean;
}

/** A tested claim: a difference that should be positive. */
export interface Comparison {
  /** The arms. */
  id: string;
  /** The claim in words. */
  claim: string;
  /** Whether it is the paper's; the others go beyond it. */
  paper: boolean;
  /** By which score. */
  score: string;
  /** Mean difference over concepts. */
  mean: Maybe;
  /** Lower end of Student's t interval. */
  low: Maybe;
  /** Upper end. */
  high: Maybe;
  /** Hierarchical bootstrap of the same mean: concepts, seeds, prompts. */
  bootstrap?: { low: Maybe; high: Maybe };
  /** Concepts. */
  n: number;
  /** Concepts with a difference on the claimed side. */
  wins: number;
  /**
   * Whether the interval is above 0, below 0, or neither; none if the run is
   * not conclusive.
   */
  verdict: Verdict;
}

/** Rounds to five decimals, more than the accuracy of any score. */
export function rounded(value: number): number {
  return Math.round(value * 1e5) / 1e5;
}

/** The number, or null where it is none: JSON has no NaN and no infinity. */
export function orNull(value: number): Maybe {
  return Number.isFinite(value) ? value : null;
}

/**
 * An estimate with null for NaN and infinity.
 *
 * @param estimate Mean and ends, any of them NaN or infinite.
 */
export function finite(
  { mean, low, high }: Readonly<Record<"mean" | "low" | "high", number>>,
): Interval {
  return { mean: orNull(mean), low: orNull(low), high: orNull(high) };
}

/**
 * The verdict of a paired difference: whether its whole interval is on the
 * claimed side, on the other side, or neither.
 *
 * @param difference Ends of its interval.
 * @param claim Whose claim it is, and which side is claimed.
 * @param conclusive Whether the run allows a conclusion at all.
 */
export function verdictOf(
  difference: Pick<Interval, "low" | "high">,
  { paper, less = false }: Pick<Claim, "paper" | "less">,
  conclusive: boolean,
): Verdict {
  if (!conclusive) return "no conclusion";
  const [low, high] = [
    difference.low ?? -Infinity,
    difference.high ?? Infinity,
  ];
  const [above, below] = less ? [high < 0, low > 0] : [low > 0, high < 0];
  if (above) return paper ? "reproduced" : "shown";
  return below ? "reversed" : "not shown";
}

/** Differences of values in the same groups. */
export function minus(a: Nested, b: Nested): Nested {
  return typeof a === "number"
    ? a - (b as number)
    : a.map((part, i) => minus(part, (b as readonly Nested[])[i]));
}

/**
 * Tests a claim: the difference of two arms, paired by concept, with Student's
 * t interval and a hierarchical bootstrap of the same mean.
 *
 * @param claim The claim.
 * @param first Values of the arm that is claimed to be better, by concept and
 * the groups nested in it.
 * @param second Those of the other, in the same groups.
 * @param options Random key of the bootstrap; whether a verdict may be given.
 *
 * @example
 * ```ts
 * const claim = { id: "b > a", claim: "b has more", paper: false, score: "image" };
 * const { verdict } = compare(claim, [[0.8], [0.9]], [[0.4], [0.5]], {
 *   key: key(0),
 *   conclusive: true,
 * });
 * ```
 */
export function compare(
  { id, claim, paper, score, less }: Claim,
  first: readonly Nested[],
  second: readonly Nested[],
  options: { readonly key: Key; readonly conclusive: boolean },
): Comparison {
  const a = first.map(nestedMean), b = second.map(nestedMean);
  const d = pairedDifference(a, b);
  const { low, high } = hierarchicalBootstrap(
    minus(first, second) as readonly Nested[],
    options.key,
  );
  return {
    ...{ id, claim, paper, score },
    ...finite(d),
    bootstrap: { low: orNull(low), high: orNull(high) },
    n: d.n,
    wins: less ? pairedDifference(b, a).wins : d.wins,
    verdict: verdictOf(d, { paper, less }, options.conclusive),
  };
}

/** Scores whose name is not what tables call them. */
const SCORE_HEADS: Readonly<Record<string, string>> = {
  heldout: "held-out error",
  masked: "masked image",
};

/**
 * Tested claims as a table: differences with intervals, verdicts.
 *
 * @param report Where the comparisons are.
 * @param paper The paper's claims only, or only the others. @default all
 * @param first Columns before the others.
 */
export function comparisonTable<T extends Comparison>(
  { comparisons }: { readonly comparisons: readonly T[] },
  paper?: boolean,
  first: readonly Column<T>[] = [],
): Table {
  const chosen = comparisons.filter((one) =>
    paper === undefined || one.paper === paper
  );
  return tableOf(chosen, [
    ...first,
    ["claim", ({ claim }) => claim],
    ["score", ({ score }) => SCORE_HEADS[score] ?? score],
    ["difference", ({ mean }) => signed(mean)],
    ["95 % interval (t)", (one) => range(one)],
    ["bootstrap", ({ bootstrap }) => bootstrap ? range(bootstrap) : "–"],
    ["wins", ({ wins, n }) => `${wins}/${n}`],
    ["verdict", ({ verdict }) => verdict],
  ]);
}
