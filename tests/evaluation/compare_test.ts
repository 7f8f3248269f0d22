import { assertEquals } from "@std/assert";
import { key } from "../../src/core/random.ts";
import {
  compare,
  comparisonTable,
  minus,
  verdictOf,
} from "../../src/evaluation/compare.ts";

const claim = {
  id: "a > b",
  claim: "a has more",
  paper: false,
  score: "image",
};
const options = { key: key(0), conclusive: true };

Deno.test("a verdict needs the whole interval on one side", () => {
  const of = (low: number | null, high: number | null, less = false) =>
    verdictOf({ low, high }, { paper: false, less }, true);
  assertEquals(of(0.1, 0.3), "shown");
  assertEquals(of(-0.3, -0.1), "reversed");
  assertEquals(of(-0.1, 0.3), "not shown");
  assertEquals(of(0, 0.3), "not shown");
  // An interval without ends holds 0.
  assertEquals(of(null, null), "not shown");
  assertEquals(of(-0.3, -0.1, true), "shown");
  assertEquals(of(0.1, 0.3, true), "reversed");
  assertEquals(
    verdictOf({ low: 1, high: 2 }, { paper: true }, true),
    "reproduced",
  );
  assertEquals(
    verdictOf({ low: 1, high: 2 }, { paper: true }, false),
    "no conclusion",
  );
});

Deno.test("differences are paired by concept, whatever is nested in it", () => {
  const more = [[[0.8, 0.6]], [[0.9, 0.9]], [[0.2, 0.4]]];
  const less = [[[0.4, 0.4]], [[0.5, 0.7]], [[0.3, 0.3]]];
  assertEquals(minus([[3, 2], 1], [[1, 1], 4]), [[2, 1], -3]);
  const found = compare(claim, more, less, options);
  // 0.3, 0.3 and 0: mean 0.2, standard error 0.1, t(2) = 4.303.
  assertEquals(Math.round(found.mean! * 1e6), 200000);
  assertEquals(Math.round(found.low! * 1000), -230);
  assertEquals(Math.round(found.high! * 1000), 630);
  assertEquals([found.n, found.verdict], [3, "not shown"]);
  const { bootstrap } = found;
  assertEquals(bootstrap!.low! <= 0.2 && 0.2 <= bootstrap!.high!, true);
});

Deno.test("where less is better, the difference should be negative", () => {
  const [low, high] = [[[0.1], [0.2]], [[0.5], [0.61]]];
  const found = compare({ ...claim, less: true }, low, high, options);
  assertEquals([found.wins, found.verdict], [2, "shown"]);
  const equal = compare({ ...claim, less: true }, low, low, options);
  assertEquals([equal.mean, equal.wins, equal.verdict], [0, 0, "not shown"]);
  const one = compare(claim, [[1]], [[0]], options);
  assertEquals([one.low, one.high, one.verdict], [null, null, "not shown"]);
  const { rows } = comparisonTable({ comparisons: [one] });
  assertEquals(rows[0].slice(2, 4), ["+1.000", "–"]);
});
