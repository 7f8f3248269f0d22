import { assert, assertEquals, assertThrows } from "@std/assert";
import { lbfgs, OFFICIAL_LBFGS, type Vector } from "../../src/optim/lbfgs.ts";
import { close } from "../helpers.ts";

/** Rosenbrock's valley in n dimensions; minimum 0 at (1, …, 1). */
function rosenbrock(x: Vector) {
  let value = 0;
  const gradient = new Float64Array(x.length);
  for (let i = 0; i + 1 < x.length; i++) {
    const a = x[i + 1] - x[i] ** 2;
    value += 100 * a * a + (1 - x[i]) ** 2;
    gradient[i] += -400 * a * x[i] - 2 * (1 - x[i]);
    gradient[i + 1] += 200 * a;
  }
  return { value, gradient };
}

const precise = { ...OFFICIAL_LBFGS, maxIterations: 200 };

Deno.test("lbfgs finds the minimum of Rosenbrock's valley", () => {
  for (const n of [2, 10]) {
    const start = Array.from({ length: n }, (_, i) => i % 2 === 0 ? -1.2 : 1);
    const { x, value, iterations, evaluations } = lbfgs(
      rosenbrock,
      start,
      precise,
    );
    close(x, new Array(n).fill(1), 1e-6);
    assert(value < 1e-12, `value ${value}`);
    assert(iterations < 100, `${iterations} iterations`);
    assert(evaluations <= 250);
  }
});

Deno.test("lbfgs takes n steps for a quadratic in n dimensions, about", () => {
  // With full history and near-exact line search L-BFGS is the conjugate
  // gradient method, which ends after n steps.
  const scales = [1, 2, 3, 5, 8, 13];
  const { x, iterations } = lbfgs(
    (x) => ({
      value: scales.reduce((s, a, i) => s + a * (x[i] - i) ** 2, 0),
      gradient: scales.map((a, i) => 2 * a * (x[i] - i)),
    }),
    new Float64Array(6),
    precise,
  );
  close(x, [0, 1, 2, 3, 4, 5], 1e-7);
  assert(iterations <= 25, `${iterations} iterations`);
});

Deno.test("lbfgs counts as PyTorch: first step 1/‖g‖₁, evaluations capped", () => {
  const seen: number[] = [];
  const f = (x: Vector) => {
    seen.push(x[0]);
    return { value: x[0] ** 2, gradient: [2 * x[0]] };
  };
  // From 4 the gradient is 8: the first trial step has length 1, at 3. There
  // the slope −6 meets |slope'| ≤ 0.9·8 (in units of the direction): accepted.
  const result = lbfgs(f, [4], { maxIterations: 1 });
  assertEquals(seen, [4, 3]);
  assertEquals([...result.x], [3]);
  assertEquals([result.iterations, result.evaluations], [1, 2]);
  // Then the quadratic model is exact: H = ½, x = 0 in one step.
  seen.length = 0;
  close(lbfgs(f, [4], { maxIterations: 2, maxEvaluations: 9 }).x, [0], 1e-15);
  assertEquals(seen.length, 3);
  // An iteration begun is finished: 1.25 · 4 = 5 evaluations, then it stops.
  const capped = lbfgs(rosenbrock, [-1.2, 1], { maxIterations: 4 });
  assert(capped.evaluations >= 4 && capped.evaluations <= 5 + 25);
});

Deno.test("lbfgs keeps the best point seen", () => {
  // A fixed step of three times the gradient overshoots from the start.
  const f = (x: Vector) => ({
    value: Math.cosh(x[0]),
    gradient: [Math.sinh(x[0])],
  });
  const result = lbfgs(f, [0.1], {
    lineSearch: "none",
    lr: 3,
    maxIterations: 3,
    maxEvaluations: 100,
  });
  assert(result.bestValue <= result.value);
  assertEquals(Math.cosh(result.best[0]), result.bestValue);
});

Deno.test("lbfgs stops at once at a minimum, and at a NaN", () => {
  const still = lbfgs((x) => ({ value: 0, gradient: [0 * x[0]] }), [5]);
  assertEquals([still.iterations, still.evaluations], [0, 1]);
  assertEquals([...still.x], [5]);
  const broken = lbfgs(
    (x) => ({ value: x[0] < 4 ? NaN : x[0], gradient: [1] }),
    [5],
    { maxIterations: 50 },
  );
  assertEquals(broken.bestValue <= 5, true);
  assert(broken.best[0] >= 4);
});

Deno.test("lbfgs refuses bad input", () => {
  const f = (x: Vector) => ({ value: NaN, gradient: x });
  assertThrows(() => lbfgs(f, []), Error, "at least one variable");
  assertThrows(() => lbfgs(f, [1]), Error, "finite value");
  assertThrows(() => lbfgs(f, [1], { history: 0 }), Error, "history");
  assertThrows(
    () => lbfgs(() => ({ value: 1, gradient: [1] }), [1, 2]),
    Error,
    "2 entries",
  );
});
