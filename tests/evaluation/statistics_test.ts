import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertThrows,
} from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  hierarchicalBootstrap,
  mean,
  median,
  nestedMean,
  pairedDifference,
  retainedShare,
  studentQuantile,
  tInterval,
} from "../../src/evaluation/statistics.ts";

// Table values of Student's t; df = 1 is tan(π(p − ½)) exactly.
for (
  const [p, df, t] of [
    [0.975, 1, 12.706204736432095],
    [0.975, 4, 2.7764451051977987],
    [0.975, 11, 2.200985160082949],
    [0.95, 10, 1.8124611228107335],
    [0.995, 30, 2.7499956535672232],
    [0.025, 4, -2.7764451051977987],
    [0.6, 2, 0.28867513459481287],
    [0.5, 7, 0],
  ]
) {
  Deno.test(`Student's t quantile ${p}, df ${df}`, () =>
    assertAlmostEquals(studentQuantile(p, df), t, 1e-8));
}

Deno.test("a t interval in closed form", () => {
  // mean 2, standard deviation 1, n 3: half width t(.975, 2)/√3.
  const { mean, low, high } = tInterval([1, 2, 3]);
  assertEquals(mean, 2);
  assertAlmostEquals(high - 2, 4.302652729749464 / Math.sqrt(3), 1e-8);
  assertAlmostEquals(2 - low, high - 2, 1e-12);
});

Deno.test("one value has no interval", () => {
  assertEquals(tInterval([5]), { mean: 5, low: -Infinity, high: Infinity });
});

Deno.test("paired differences forget what pairs share", () => {
  const shared = [10, 20, 30, 40];
  const a = shared.map((x, i) => x + 1 + 0.1 * i);
  const { mean, low, high, n, wins } = pairedDifference(a, shared);
  assertAlmostEquals(mean, 1.15, 1e-9);
  assert(low > 0.9 && high < 1.4);
  assertEquals([n, wins], [4, 4]);
  assertThrows(() => pairedDifference([1], [1, 2]), Error, "pair values");
});

Deno.test("nested means weigh groups, not leaves", () => {
  assertEquals(nestedMean([[1, 1, 1, 1], [3]]), 2);
  assertEquals(median([3, 1, 2]), 2);
  assertEquals(median([4, 1, 2, 3]), 2.5);
  assertThrows(() => mean([]), Error, "average");
});

Deno.test("the bootstrap is a function of its key", () => {
  const values = [1, 2, 3].map((seed) => [...normal(key(seed), 5)]);
  const first = hierarchicalBootstrap(values, key(1));
  assertEquals(hierarchicalBootstrap(values, key(1)), first);
  assert(hierarchicalBootstrap(values, key(2)).low !== first.low);
});

Deno.test("equal values have an interval of no width", () => {
  assertEquals(hierarchicalBootstrap([[3, 3], [3, 3]], key(0)), {
    mean: 3,
    low: 3,
    high: 3,
  });
});

Deno.test("variance between groups widens the interval as it should", () => {
  // 40 groups N(0, 1) of equal values: the standard error is 1/√40 = 0.158, the
  // interval ± 1.96 of it. Were leaves pooled (40 × 25), it would be five times
  // narrower. 15 % covers the sampling error of the spread of 40 draws.
  const groups = [...normal(key(3), 40)].map((v) => new Array(25).fill(v));
  const { low, high } = hierarchicalBootstrap(groups, key(4));
  const expected = 2 * 1.96 / Math.sqrt(40);
  assertAlmostEquals(high - low, expected, 0.3 * expected);
});

Deno.test("retained share: 1 when nothing is lost, 0 at the lower bound", () => {
  const single = [0.8, 0.9, 0.7], lower = [0.5, 0.6, 0.6];
  const at = (fused: number[]) => retainedShare(fused, single, lower, key(0));
  assertAlmostEquals(at(single).mean, 1, 1e-12);
  assertAlmostEquals(at(single).low, 1, 1e-12);
  assertAlmostEquals(at(lower).mean, 0, 1e-12);
  const half = single.map((s, i) => (s + lower[i]) / 2);
  assertAlmostEquals(at(half).mean, 0.5, 1e-12);
  assert(Number.isNaN(retainedShare([1], [1], [1], key(0)).mean));
});
