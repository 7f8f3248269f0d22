import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  addConcept,
  type Delta,
  denseDelta,
  fuseLayer,
  type LayerTerm,
  LeastSquares,
  solve,
} from "../../src/fusion/layer.ts";
import type { Stats } from "../../src/fusion/statistics.ts";
import { openSafetensors, toFloat32 } from "../../src/io/safetensors.ts";
import {
  combine,
  gram,
  identity,
  inner,
  type Matrix,
  matrix,
  multiply,
  svd,
  transpose,
} from "../../src/optim/least_squares.ts";
import { close, fixtureJson, fixturePath } from "../helpers.ts";

function random(seed: number, rows: number, columns: number, std = 1): Matrix {
  return matrix(rows, columns, normal(key(seed), rows * columns, std));
}

/** Statistics of given rows, as rows or as a Gram matrix. */
function statsOf(x: Matrix, form: "rows" | "gram"): Stats {
  return {
    features: x.columns,
    count: x.rows,
    ...(form === "rows" ? { rows: x } : { gram: gram(x) }),
  };
}

function lowRank(seed: number, d: number, r: number, out: number): Delta {
  return { down: random(seed, d, r, 0.3), up: random(seed + 1, r, out, 0.3) };
}

/** The definition: Σ wᵢ ‖XᵢΔWᵢ − XᵢΔW‖² / (Σ wᵢ nᵢ · out). */
function meanSquaredError(
  terms: readonly { x: Matrix; delta?: Delta; weight?: number }[],
  change: Matrix,
): number {
  let sum = 0;
  let count = 0;
  for (const { x, delta, weight = 1 } of terms) {
    const own = delta ? denseDelta(delta) : matrix(x.columns, change.columns);
    const error = multiply(x, combine(own, change, 1, -1));
    sum += weight * inner(error, error);
    count += weight * x.rows * change.columns;
  }
  return sum / count;
}

interface LinearCase {
  mse_W0: number;
  mse_lbfgs50: number;
  mse_lbfgs500: number;
  mse_closed_f64: number;
  mse_weightfusion: number;
}

/** A case of fixtures/fusion/linear: PyTorch [out, in], turned to [in, out]. */
async function linearCase(name: string) {
  const file = await openSafetensors(fixturePath("fusion/linear.safetensors"));
  const read = async (key: string) => {
    const raw = await file.read(`${name}.${key}`);
    return matrix(raw.shape[0], raw.shape[1], toFloat32(raw));
  };
  const xs = await Promise.all([0, 1, 2].map((i) => read(`X${i}`)));
  const deltas = await Promise.all([0, 1, 2].map(async (i): Promise<Delta> => {
    const down = transpose(await read(`dW${i}`));
    return { down, up: identity(down.columns) };
  }));
  const fused = async (key: string) =>
    combine(transpose(await read(key)), transpose(await read("W0")), 1, -1);
  const result = {
    xs,
    deltas,
    closed: await fused("W_closed"),
  };
  file.close();
  return result;
}

/**
 * `over`: more rows than features. Fewer rows are what fixtures/fusion/pipeline
 * has in its key and value layers; all cases of the shared fixtures are compared
 * by `deno task verify`.
 */
const CASES = ["over"] as const;

// Golden: fixtures/fusion/linear, from the official update_quasi_newton and from
// numpy's pseudo-inverse in float64.
for (const name of CASES) {
  Deno.test(`closed form equals the golden minimum: ${name}`, async () => {
    const golden = (await fixtureJson<Record<string, LinearCase>>(
      "fusion/linear.json",
    ))[name];
    const { xs, deltas, closed } = await linearCase(name);
    for (const form of ["rows", "gram"] as const) {
      const terms = xs.map((x, i) => ({
        stats: statsOf(x, form),
        delta: deltas[i],
      }));
      const solution = fuseLayer(terms, { ridge: 0 });
      assertEquals(solution.rows, xs.reduce((n, x) => n + x.rows, 0));
      assertEquals(solution.dual, false);
      // Expected values come from float32 data: 1e-6 relative.
      const near = (actual: number, expected: number, what: string) =>
        close(actual, expected, 2e-6 * expected + 1e-13, `${form} ${what}`);
      near(solution.lossBefore, golden.mse_W0, "W₀");
      near(solution.lossWeightFusion, golden.mse_weightfusion, "weight fusion");
      near(solution.lossAfter, golden.mse_closed_f64, "closed");
      // Weights stored in float32.
      close(
        denseDelta(solution.delta).data,
        closed.data,
        2e-6,
        `${form} W`,
      );
      const definition = meanSquaredError(
        xs.map((x, i) => ({ x, delta: deltas[i] })),
        denseDelta(solution.delta),
      );
      close(solution.lossAfter, definition, 1e-9 * golden.mse_W0 + 1e-15);
    }
  });

  Deno.test(`L-BFGS follows torch.optim.LBFGS: ${name}`, async () => {
    const golden = (await fixtureJson<Record<string, LinearCase>>(
      "fusion/linear.json",
    ))[name];
    const { xs, deltas, closed } = await linearCase(name);
    const terms = xs.map((x, i) => ({
      stats: statsOf(x, x.rows < x.columns ? "rows" : "gram"),
      delta: deltas[i],
    }));
    for (const iterations of [50, 500] as const) {
      const torch = golden[`mse_lbfgs${iterations}`];
      const minimum = golden.mse_closed_f64;
      for (const precision of ["float32", "float64"] as const) {
        const { lossAfter, delta } = fuseLayer(terms, {
          method: "lbfgs",
          iterations,
          precision,
        });
        const what = `${precision}, ${iterations} iterations: ${lossAfter}, ` +
          `torch ${torch}, minimum ${minimum}`;
        // Never below the minimum. Never worse than torch: 1e-9 is what float32
        // leaves where the minimum is 0.
        assert(lossAfter >= minimum * (1 - 2e-6) - 1e-15, what);
        assert(lossAfter <= 1.03 * torch + 1e-9, what);
        // float32 goes torch's way.
        if (precision === "float32") {
          assert(Math.abs(lossAfter / torch - 1) < 0.03, what);
        }
        if (iterations === 500) {
          // torch's own relative distance from the minimum is 5e-4.
          close(denseDelta(delta).data, closed.data, 2e-3, what);
        }
      }
    }
  });
}

Deno.test("one concept alone is reproduced on its features", () => {
  const delta = lowRank(1, 24, 3, 10);
  for (const rows of [5, 24, 90]) {
    const x = random(rows, rows, 24);
    for (const form of ["rows", "gram"] as const) {
      const { delta: fused, lossBefore, lossAfter } = fuseLayer(
        [{ stats: statsOf(x, form), delta }],
        { ridge: 0 },
      );
      assert(lossBefore > 1e-3);
      // 1e-16 of the energies that cancel.
      assert(lossAfter < 1e-14, `${rows} ${form}: ${lossAfter}`);
      const difference = combine(
        multiply(x, denseDelta(fused)),
        multiply(x, denseDelta(delta)),
        1,
        -1,
      );
      close(difference.data, new Float64Array(rows * 10), 1e-9);
      if (rows >= 24) {
        // Full column rank: the weight itself is unique.
        close(denseDelta(fused).data, denseDelta(delta).data, 1e-9);
      }
    }
  }
});

Deno.test("the solution is the minimum: no change of W makes it better", () => {
  const terms = [11, 22, 33].map((seed) => ({
    x: random(seed, 40, 16),
    delta: lowRank(seed + 1, 16, 2, 9),
  }));
  const solution = fuseLayer(
    terms.map(({ x, delta }) => ({ stats: statsOf(x, "gram"), delta })),
    { ridge: 0 },
  );
  const best = denseDelta(solution.delta);
  close(meanSquaredError(terms, best), solution.lossAfter, 1e-12);
  for (let seed = 0; seed < 5; seed++) {
    const moved = combine(best, random(seed, 16, 9), 1, 1e-3);
    assert(meanSquaredError(terms, moved) > solution.lossAfter);
  }
  // ∇ = 0 exactly there.
  const problem = new LeastSquares(16);
  for (const { x, delta } of terms) {
    problem.add(statsOf(x, "gram"), new Map([["w", { outputs: 9, delta }]]));
  }
  const { gradient } = problem.objective("w")(best.data);
  close(gradient, new Float64Array(16 * 9), 1e-12);
});

Deno.test("objective's gradient is its derivative, in both forms", () => {
  for (const form of ["rows", "gram"] as const) {
    const terms: LayerTerm[] = [1, 2].map((seed) => ({
      stats: statsOf(random(seed, 3, 8), form),
      delta: lowRank(seed, 8, 2, 5),
      weight: seed,
    }));
    const problem = new LeastSquares(8);
    for (const { stats, delta, weight } of terms) {
      const change = { outputs: 5, ...(delta ? { delta } : {}) };
      problem.add(stats, new Map([["w", change]]), weight);
    }
    const f = problem.objective("w");
    const at = random(7, 8, 5).data;
    const { gradient } = f(at);
    for (const i of [0, 13, 39]) {
      const [up, down] = [at.slice(), at.slice()];
      up[i] += 1e-5;
      down[i] -= 1e-5;
      close((f(up).value - f(down).value) / 2e-5, gradient[i], 1e-8, form);
    }
  }
});

Deno.test("dual and primal form give the same, ridge included", () => {
  for (const ridge of [0, 1e-8, 1e-4, 1e-1]) {
    const terms = [1, 2, 3].map((seed) => ({
      x: random(seed, 4, 20),
      delta: lowRank(seed + 10, 20, 2, 12),
    }));
    const [dual, primal] = (["rows", "gram"] as const).map((form) =>
      fuseLayer(
        terms.map(({ x, delta }) => ({ stats: statsOf(x, form), delta })),
        { ridge },
      )
    );
    assert(dual.dual && !primal.dual);
    // G is singular: in the primal form 1e-16 is divided by the ridge.
    const error = ridge === 1e-8 ? 1e-6 : 1e-9;
    close(denseDelta(dual.delta).data, denseDelta(primal.delta).data, error);
    for (
      const what of ["lossBefore", "lossWeightFusion", "lossAfter"] as const
    ) {
      close(dual[what], primal[what], 1e-10, what);
    }
  }
});

Deno.test("a ridge shrinks the change and raises the loss, little by little", () => {
  const terms = [1, 2].map((seed) => ({
    stats: statsOf(random(seed, 30, 12), "gram"),
    delta: lowRank(seed + 10, 12, 2, 7),
  }));
  let loss = -1;
  let size = Infinity;
  for (const ridge of [0, 1e-6, 1e-4, 1e-2, 1, 100]) {
    const { delta, lossAfter, lossBefore } = fuseLayer(terms, { ridge });
    const dense = denseDelta(delta);
    const norm = inner(dense, dense);
    assert(lossAfter >= loss, `loss at ${ridge}`);
    assert(norm < size, `size at ${ridge}`);
    assert(lossAfter < lossBefore);
    [loss, size] = [lossAfter, norm];
  }
});

Deno.test("the ridge is relative to trace(G)/d: units do not matter", () => {
  const x = random(1, 30, 12);
  const delta = lowRank(2, 12, 2, 7);
  const solve = (factor: number) =>
    denseDelta(
      fuseLayer([{
        stats: statsOf(matrix(30, 12, x.data.map((v) => factor * v)), "gram"),
        delta,
      }], { ridge: 0.1 }).delta,
    );
  close(solve(1000).data, solve(1).data, 1e-12);
});

Deno.test("order of concepts does not matter, duplicates count twice", () => {
  const terms: LayerTerm[] = [1, 2, 3].map((seed) => ({
    stats: statsOf(random(seed, 30, 12), seed === 2 ? "rows" : "gram"),
    delta: lowRank(seed + 10, 12, 2, 7),
  }));
  const forward = fuseLayer(terms);
  const backward = fuseLayer(terms.toReversed());
  close(denseDelta(forward.delta).data, denseDelta(backward.delta).data, 1e-10);
  close(forward.lossAfter, backward.lossAfter, 1e-13);
  // The same concept twice is the same as once …
  const once = fuseLayer(terms.slice(0, 1), { ridge: 0 });
  const twice = fuseLayer([terms[0], terms[0]], { ridge: 0 });
  close(denseDelta(twice.delta).data, denseDelta(once.delta).data, 1e-10);
  // … and beside others the same as weight 2.
  const doubled = fuseLayer([terms[0], ...terms]);
  const weighted = fuseLayer([{ ...terms[0], weight: 2 }, ...terms.slice(1)]);
  close(
    denseDelta(doubled.delta).data,
    denseDelta(weighted.delta).data,
    1e-10,
  );
  close(doubled.lossAfter, weighted.lossAfter, 1e-13);
});

Deno.test("weight 0 leaves a concept out; a large weight prefers it", () => {
  const terms: LayerTerm[] = [1, 2].map((seed) => ({
    stats: statsOf(random(seed, 30, 12), "gram"),
    delta: lowRank(seed + 10, 12, 2, 7),
  }));
  const own = denseDelta(terms[0].delta!);
  const distance = (weight: number) => {
    const { delta } = fuseLayer([terms[0], { ...terms[1], weight }], {
      ridge: 0,
    });
    const difference = combine(denseDelta(delta), own, 1, -1);
    return Math.sqrt(inner(difference, difference));
  };
  assert(distance(0) < 1e-10);
  assert(distance(0.01) < distance(1) && distance(1) < distance(100));
});

Deno.test("a concept without change keeps W₀ on its own features", () => {
  // Two concepts on orthogonal features: each gets its own weight.
  const left = matrix(
    6,
    4,
    random(1, 6, 4).data.map((v, i) => i % 4 < 2 ? v : 0),
  );
  const right = matrix(
    6,
    4,
    random(2, 6, 4).data.map((v, i) => i % 4 < 2 ? 0 : v),
  );
  const delta = lowRank(3, 4, 1, 5);
  const { delta: fused, lossAfter } = fuseLayer([
    { stats: statsOf(left, "gram"), delta },
    { stats: statsOf(right, "gram") },
  ], { ridge: 0 });
  assert(lossAfter < 1e-14);
  const change = denseDelta(fused);
  close(change.data.slice(0, 10), denseDelta(delta).data.slice(0, 10), 1e-9);
  close(change.data.slice(10), new Float64Array(10), 1e-9);
});

Deno.test("the fused change has rank ≤ Σ r, and goes dense past that", () => {
  const make = (r: number) =>
    [1, 2, 3].map((seed) => ({
      x: random(seed, 40, 10),
      delta: lowRank(seed + 10, 10, r, 8),
    }));
  const solve = (terms: ReturnType<typeof make>) =>
    fuseLayer(
      terms.map(({ x, delta }) => ({ stats: statsOf(x, "gram"), delta })),
      { ridge: 0 },
    );
  const small = solve(make(2));
  assertEquals(small.delta.down.columns, 6);
  const { s } = svd(denseDelta(small.delta));
  assert(s[5] > 1e-3 && s[6] < 1e-12, `${s}`);
  const terms = make(4);
  const large = solve(terms);
  assertEquals(large.delta.up, identity(8));
  close(
    meanSquaredError(terms, denseDelta(large.delta)),
    large.lossAfter,
    1e-12,
  );
  const zero = matrix(10, 8);
  close(meanSquaredError(terms, zero), large.lossBefore, 1e-12);
  const mean = terms.reduce(
    (sum, { delta }) => combine(sum, denseDelta(delta), 1, 1 / 3),
    zero,
  );
  close(meanSquaredError(terms, mean), large.lossWeightFusion, 1e-12);
  const scaled = fuseLayer(
    terms.map(({ x, delta }) => ({ stats: statsOf(x, "gram"), delta })),
    { lambda: 0.6 },
  );
  const sum = combine(mean, zero, 1.8);
  close(meanSquaredError(terms, sum), scaled.lossWeightFusion, 1e-12);
});

Deno.test("rows turn into a Gram matrix when they outgrow the features", () => {
  const terms = [1, 2, 3].map((seed) => ({
    x: random(seed, 6, 16),
    delta: lowRank(seed + 10, 16, 2, 5),
  }));
  const solutions = [["rows", "rows", "rows"], ["gram", "rows", "rows"]].map(
    (forms) =>
      fuseLayer(
        terms.map(({ x, delta }, i) => ({
          stats: statsOf(x, forms[i] as "rows" | "gram"),
          delta,
        })),
        { ridge: 1e-3 },
      ),
  );
  assert(!solutions[0].dual, "18 rows, 16 features");
  close(
    denseDelta(solutions[0].delta).data,
    denseDelta(solutions[1].delta).data,
    1e-11,
  );
});

Deno.test("layers that shared a problem go their own ways", () => {
  const [a, b] = [1, 2].map((seed) => statsOf(random(seed, 20, 6), "gram"));
  const delta = lowRank(3, 6, 2, 4);
  const change = { outputs: 4, delta };
  const both = new Map([["q", change], ["k", change]]);
  const first = addConcept([], new Map([["q", a], ["k", a]]), both);
  assertEquals(first.map(([sum]) => sum.paths), [["q", "k"]]);
  const other = statsOf(random(4, 10, 6), "gram");
  const second = addConcept(first, new Map([["q", b], ["k", other]]), both);
  assertEquals(second.map(([sum]) => sum.paths), [["q"], ["k"]]);
  assertEquals(second.map(([sum]) => sum.rows), [40, 30]);
  close(second[0][0].gram.data, combine(a.gram!, b.gram!).data, 1e-12);
  close(second[1][0].gram.data, combine(a.gram!, other.gram!).data, 1e-12);
  // Each is what it would have been alone.
  for (const [i, stats] of [b, other].entries()) {
    const [[, solution]] = solve(second[i], { ridge: 1e-3 });
    const alone = fuseLayer([{ stats: a, delta }, { stats, delta }], {
      ridge: 1e-3,
    });
    close(solution.delta.down.data, alone.delta.down.data, 1e-12);
  }
});

Deno.test("inputs that are all zero leave W₀", () => {
  const stats = statsOf(matrix(30, 6), "gram");
  const solution = fuseLayer([{ stats, delta: lowRank(1, 6, 2, 4) }]);
  close(denseDelta(solution.delta).data, new Float64Array(24), 0);
  assertEquals(solution.lossAfter, 0);
});

Deno.test("bad input is refused", () => {
  const stats = statsOf(random(1, 20, 6), "gram");
  const delta = lowRank(1, 6, 2, 4);
  assertThrows(() => fuseLayer([{ stats }]), Error, "a concept that changes");
  assertThrows(
    () => fuseLayer([{ stats, delta }, { stats, delta: lowRank(1, 7, 2, 4) }]),
    Error,
    "[6, r]",
  );
  assertThrows(
    () => fuseLayer([{ stats: statsOf(random(1, 9, 5), "gram"), delta }]),
    Error,
    "[5, r]",
  );
  assertThrows(() => fuseLayer([{ stats, delta, weight: -1 }]), Error, "≥ 0");
  assertThrows(
    () => fuseLayer([{ stats, delta }], { ridge: -1 }),
    Error,
    "≥ 0",
  );
  assertThrows(
    () => fuseLayer([{ stats, delta }], { method: "sgd" as "lbfgs" }),
    Error,
    "closed or lbfgs",
  );
});
