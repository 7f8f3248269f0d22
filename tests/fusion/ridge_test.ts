/** `ridge: "auto"`: cross-validation between two halves of the features. */
import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  addConcept,
  crossValidate,
  type Delta,
  denseDelta,
  FALLBACK_RIDGE,
  fuseLayer,
  type LayerTerm,
  type LeastSquares,
  type Problem,
  solve,
} from "../../src/fusion/layer.ts";
import {
  joinHalves,
  readStatistics,
  type Stats,
  writeStatistics,
} from "../../src/fusion/statistics.ts";
import {
  combine,
  gram,
  inner,
  type Matrix,
  matrix,
  meanDiagonal,
  multiply,
  solver,
} from "../../src/optim/least_squares.ts";
import { close } from "../helpers.ts";

function random(seed: number, rows: number, columns: number, std = 1): Matrix {
  return matrix(rows, columns, normal(key(seed), rows * columns, std));
}

function lowRank(seed: number, d: number, r: number, out: number): Delta {
  return { down: random(seed, d, r, 0.5), up: random(seed + 1, r, out, 0.5) };
}

type Form = "rows" | "gram";

function statsOf(x: Matrix, form: Form): Stats {
  const own = form === "rows" ? { rows: x } : { gram: gram(x) };
  return { features: x.columns, count: x.rows, ...own };
}

function split(a: Matrix, b: Matrix, form: Form = "gram"): Stats {
  const halves = [statsOf(a, form), statsOf(b, form)] as const;
  return { features: a.columns, count: a.rows + b.rows, halves };
}

/** One concept's features as a distribution: x ~ N(mean, diag(spread²)). */
interface Source {
  readonly mean: Matrix;
  readonly spread: readonly number[];
  readonly delta: Delta;
}

function drawn({ mean, spread }: Source, seed: number, n: number): Matrix {
  const x = random(seed, n, mean.columns);
  return matrix(
    n,
    mean.columns,
    x.data.map((z, i) =>
      mean.data[i % mean.columns] + z * spread[i % mean.columns]
    ),
  );
}

/** Σ E‖x(ΔW − ΔWᵢ)‖², exactly: what a fused layer is asked for. */
function risk(sources: readonly Source[], change: Matrix): number {
  return sources.reduce((sum, { mean, spread, delta }) => {
    const error = combine(change, denseDelta(delta), 1, -1);
    const shifted = multiply(mean, error);
    const spreadError = matrix(
      error.rows,
      error.columns,
      error.data.map((e, i) => e * spread[Math.floor(i / error.columns)]),
    );
    return sum + inner(shifted, shifted) + inner(spreadError, spreadError);
  }, 0);
}

/**
 * Concepts of one class: their features lie around one mean and differ in
 * directions that carry little, and there are fewer rows than it would take to
 * know those directions.
 */
function oneClass(seed: number, d: number, apart: number, noise: number) {
  const common = random(seed, 1, d);
  return [1, 2, 3].map((i): Source => ({
    mean: combine(common, random(seed + 10 * i, 1, d), 1, apart),
    spread: Array.from({ length: d }, (_, k) => noise * 0.85 ** k),
    delta: lowRank(seed + 100 * i, d, 2, 8),
  }));
}

const RIDGES = Array.from({ length: 41 }, (_, i) => 10 ** (2 - i / 4));

const PROBLEMS = [
  { name: "words apart", apart: 0.5, noise: 0.3, rows: 6, near: 1.15 },
  { name: "words too alike", apart: 0.05, noise: 0.3, rows: 6, near: 1.25 },
  { name: "few rows", apart: 0.3, noise: 0.5, rows: 3, near: 1.2 },
  { name: "many rows", apart: 0.2, noise: 0.5, rows: 40, near: 1.03 },
];

/** Terms of concepts, each with two halves of `rows` rows. */
function termsOf(
  sources: readonly Source[],
  seed: number,
  rows: number,
  form: Form,
): LayerTerm[] {
  return sources.map((source, i) => ({
    stats: split(
      drawn(source, seed + i + 1, rows),
      drawn(source, seed + i + 51, rows),
      form,
    ),
    delta: source.delta,
  }));
}

for (const { name, apart, noise, rows, near } of PROBLEMS) {
  for (const form of ["rows", "gram"] as const) {
    Deno.test(`auto is near the best ridge: ${name}, ${form}`, () => {
      const sum = { auto: 0, best: 0, small: 0, one: 0 };
      for (const seed of [1000, 2000, 3000, 4000, 5000]) {
        const sources = oneClass(seed, 24, apart, noise);
        const terms = termsOf(sources, seed, rows, form);
        const of = (ridge: number | "auto") =>
          risk(sources, denseDelta(fuseLayer(terms, { ridge }).delta));
        sum.auto += of("auto");
        // The best of each by the true risk, which nobody knows in practice.
        sum.best += Math.min(...RIDGES.map(of));
        sum.small += of(1e-6);
        sum.one += of(1);
      }
      const shown = JSON.stringify(sum);
      assert(sum.auto < near * sum.best, shown);
      assert(sum.auto < sum.small, shown);
      assert(sum.auto < sum.one, shown);
    });
  }
}

Deno.test("crossValidate's score is the definition's, half against half", () => {
  const [d, out] = [10, 5];
  const terms = [1, 2, 3].map((seed) => ({
    a: random(seed, 8, d),
    b: random(seed + 20, 7, d),
    delta: lowRank(seed + 40, d, 2, out),
    weight: seed,
  }));
  // Straight from eq. 4, on dense matrices.
  const fit = (half: "a" | "b", ridge: number) => {
    const grams = terms.map(({ [half]: x, weight }) => {
      const g = gram(x);
      return combine(g, g, weight, 0);
    });
    const total = grams.reduce((x, y) => combine(x, y));
    const right = terms
      .map(({ delta }, i) => multiply(grams[i], denseDelta(delta)))
      .reduce((x, y) => combine(x, y));
    const added = ridge * meanDiagonal(total);
    const regular = matrix(d, d, total.data.slice());
    for (let i = 0; i < d; i++) regular.data[i * d + i] += added;
    return solver(regular, 0)(right);
  };
  const error = (half: "a" | "b", change: Matrix) =>
    terms.reduce((sum, { [half]: x, delta, weight }) => {
      const e = multiply(x, combine(denseDelta(delta), change, 1, -1));
      return sum + weight * inner(e, e);
    }, 0);
  const score = (ridge: number) =>
    error("b", fit("a", ridge)) + error("a", fit("b", ridge));
  const fine = Array.from({ length: 401 }, (_, i) => 2 - i / 40);
  const best = fine.reduce((x, y) => score(10 ** y) < score(10 ** x) ? y : x);
  let problems: Problem[] = [];
  for (const { a, b, delta, weight } of terms) {
    problems = addConcept(
      problems,
      new Map([["w", split(a, b)]]),
      new Map([["w", { outputs: out, delta }]]),
      weight,
    );
  }
  const [first, second] = problems[0] as readonly LeastSquares[];
  const chosen = Math.log10(crossValidate(first, second).get("w")!);
  // Powers of ten and a parabola find it to a quarter of one.
  close(chosen, best, 0.25);
  assert(best > -6 && best < 1.5, `inside the range: ${best}`);
});

Deno.test("concepts that agree need no ridge, contradictions do", () => {
  const delta = lowRank(1, 12, 2, 6);
  const other = lowRank(7, 12, 2, 6);
  const shared = random(3, 1, 12);
  const around = (seed: number) => {
    const noise = random(seed, 8, 12, 0.05);
    return matrix(8, 12, noise.data.map((x, i) => x + shared.data[i % 12]));
  };
  const ridge = (deltas: readonly Delta[]) =>
    fuseLayer(
      deltas.map((own, i) => ({
        stats: split(around(10 + i), around(20 + i)),
        delta: own,
      })),
    ).ridge;
  // Both ask for the same: the features of either tell it exactly.
  assert(ridge([delta, delta]) <= 1e-5, `${ridge([delta, delta])}`);
  assert(ridge([delta, other]) > 1e-4, `${ridge([delta, other])}`);
});

Deno.test("a concept alone is itself, however few its rows", () => {
  for (const rows of [1, 3, 10, 40]) {
    for (const form of ["rows", "gram"] as const) {
      const [a, b] = [random(1, rows, 16), random(2, rows, 16)];
      const delta = lowRank(3, 16, 2, 5);
      const { lossAfter, lossBefore, ridge } = fuseLayer([
        { stats: split(a, b, form), delta },
      ]);
      assertEquals(ridge, 1e-8);
      assert(lossAfter < 1e-12 * lossBefore, `${rows} ${form}: ${lossAfter}`);
    }
  }
});

Deno.test("a given ridge solves halves as it solves the whole", () => {
  for (const rows of [3, 30]) {
    for (const form of ["rows", "gram"] as const) {
      const xs = [1, 2].map((seed) => [
        random(seed, rows, 16),
        random(seed + 10, rows, 16),
      ]);
      const deltas = [lowRank(5, 16, 2, 7), lowRank(9, 16, 3, 7)];
      const both = (ridge: number) =>
        [true, false].map((halves) =>
          fuseLayer(
            xs.map(([a, b], i) => {
              const joined = matrix(2 * rows, 16, [...a.data, ...b.data]);
              return {
                stats: halves ? split(a, b, form) : statsOf(joined, form),
                delta: deltas[i],
                weight: i + 1,
              };
            }),
            { ridge },
          )
        );
      for (const ridge of [1e-6, 0.1]) {
        const [split, whole] = both(ridge);
        close(denseDelta(split.delta).data, denseDelta(whole.delta).data, 1e-7);
        close(split.lossBefore, whole.lossBefore, 1e-10);
        close(split.lossAfter, whole.lossAfter, 1e-10);
        close(split.lossWeightFusion, whole.lossWeightFusion, 1e-10);
        assertEquals([split.rows, split.ridge], [whole.rows, ridge]);
      }
    }
  }
});

Deno.test("layers that share inputs get ridges of their own", () => {
  const sources = oneClass(1000, 16, 0.3, 0.3);
  const agreed = lowRank(1, 16, 2, 6);
  const paths = ["to_q", "to_k"] as const;
  let problems: Problem[] = [];
  sources.forEach((source, i) => {
    const stats = split(drawn(source, i, 9), drawn(source, 50 + i, 9));
    const changes = new Map([
      ["to_q", { outputs: 8, delta: source.delta }],
      ["to_k", { outputs: 6, delta: agreed }],
    ]);
    const given = new Map(paths.map((path) => [path, stats]));
    problems = addConcept(problems, given, changes);
  });
  assertEquals(problems.length, 1);
  const solved = new Map(solve(problems[0]));
  const [q, k] = paths.map((path) => solved.get(path)!.ridge);
  assert(k <= 1e-5 && q > 1e-4, `${q} ${k}`);
  // Each is what its layer has alone, and the same every time.
  const alone = (delta: (i: number) => Delta) =>
    fuseLayer(sources.map((source, i) => ({
      stats: split(drawn(source, i, 9), drawn(source, 50 + i, 9)),
      delta: delta(i),
    }))).ridge;
  assertEquals(q, alone((i) => sources[i].delta));
  assertEquals(k, alone(() => agreed));
  // A least ridge holds the layer that asks for less, and no other.
  const held = new Map(solve(problems[0], {}, undefined, 1e-3));
  assertEquals(held.get("to_k")!.ridge, 1e-3);
  assertEquals(held.get("to_q")!.ridge, q);
});

Deno.test("without halves auto takes the fallback", () => {
  const sources = oneClass(1000, 24, 0.3, 0.3);
  const terms = termsOf(sources, 1, 6, "gram");
  const whole = terms.map((term, i) =>
    i === 1
      ? {
        ...term,
        stats: statsOf(drawn(sources[1], 5, 12), "gram"),
      }
      : term
  );
  for (const order of [whole, whole.toReversed()]) {
    const { ridge, delta } = fuseLayer(order);
    assertEquals(ridge, FALLBACK_RIDGE);
    const given = fuseLayer(order, { ridge: FALLBACK_RIDGE });
    close(denseDelta(delta).data, denseDelta(given.delta).data, 1e-12);
  }
  // An empty half cannot be scored on.
  const empty = split(matrix(0, 24), random(1, 9, 24), "rows");
  const [{ delta }] = terms;
  assertEquals(
    fuseLayer([{ stats: empty, delta }, ...terms.slice(1)]).ridge,
    FALLBACK_RIDGE,
  );
  assert(fuseLayer(terms).ridge !== FALLBACK_RIDGE);
});

Deno.test("files keep halves, sharing, and files without them are read", async () => {
  const folder = await Deno.makeTempDir();
  const one = (seed: number, form: Form) =>
    new Map([["q", statsOf(random(seed, 5, 8), form)]]);
  const first = one(1, "rows");
  const second = one(2, "gram");
  first.set("k", first.get("q")!);
  second.set("k", second.get("q")!);
  const joined = joinHalves(first, second);
  assertEquals(joined.get("k"), joined.get("q"));
  joined.set("other", statsOf(random(3, 4, 6), "gram"));
  const scored = [one(5, "gram"), one(6, "rows")] as const;
  joined.set("v", joinHalves(one(7, "rows"), one(8, "rows"), scored).get("q")!);
  await writeStatistics(`${folder}/halves`, joined);
  const read = await readStatistics(`${folder}/halves`);
  assertEquals(new Set(read.keys()), new Set(["q", "k", "v", "other"]));
  assertEquals(read.get("q"), joined.get("q"));
  assert(read.get("q") === read.get("k"), "shared again");
  assertEquals(read.get("other"), joined.get("other"));
  assertEquals(read.get("v"), joined.get("v"));
  await writeStatistics(`${folder}/whole`, first);
  assertEquals((await readStatistics(`${folder}/whole`)).get("q"), {
    ...first.get("q")!,
  });
  await Deno.remove(folder, { recursive: true });
});

Deno.test("bad ridges are refused", () => {
  const stats = statsOf(random(1, 20, 6), "gram");
  const delta = lowRank(1, 6, 2, 4);
  for (const ridge of [-1, NaN]) {
    assertThrows(() => fuseLayer([{ stats, delta }], { ridge }), Error, "≥ 0");
  }
});
