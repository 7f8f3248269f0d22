import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  beside,
  blockDiagonal,
  cholesky,
  choleskySolve,
  combine,
  gram,
  identity,
  inner,
  type Matrix,
  matrix,
  meanDiagonal,
  multiply,
  qr,
  rowsOf,
  solver,
  stack,
  svd,
  svdOfProduct,
  symmetricEigen,
  transpose,
  truncate,
} from "../../src/optim/least_squares.ts";
import { close } from "../helpers.ts";

function random(seed: number, rows: number, columns: number): Matrix {
  return matrix(rows, columns, normal(key(seed), rows * columns));
}

/** The definition, entry by entry. */
function product(a: Matrix, b: Matrix): Matrix {
  const c = matrix(a.rows, b.columns);
  for (let i = 0; i < a.rows; i++) {
    for (let j = 0; j < b.columns; j++) {
      for (let k = 0; k < a.columns; k++) {
        c.data[i * b.columns + j] += a.data[i * a.columns + k] *
          b.data[k * b.columns + j];
      }
    }
  }
  return c;
}

/** Whether the columns are orthonormal. */
function orthonormal(q: Matrix, tolerance: number): void {
  close(gram(q).data, identity(q.columns).data, tolerance, "QᵀQ");
}

Deno.test("multiply, transpose and gram agree with their definitions", () => {
  // Sizes around the unrolling by 4 and the block sizes.
  for (const [m, k, n] of [[1, 1, 1], [3, 5, 2], [37, 66, 33], [5, 130, 70]]) {
    const a = random(1, m, k);
    const b = random(2, k, n);
    close(multiply(a, b).data, product(a, b).data, 1e-12);
    close(gram(a).data, product(transpose(a), a).data, 1e-12);
    assertEquals(transpose(transpose(a)), a);
    close(inner(a, a), a.data.reduce((s, x) => s + x * x, 0), 1e-10);
  }
  // A wide right side, so that the cache blocks are smaller than k.
  const a = random(3, 3, 50);
  const b = random(4, 50, 2000);
  close(multiply(a, b).data, product(a, b).data, 1e-12);
});

Deno.test("gram adds to a sum", () => {
  const x = random(1, 9, 6);
  const sum = gram(rowsOf(x, 0, 4));
  gram(rowsOf(x, 4, 9), sum);
  close(sum.data, gram(x).data, 1e-13);
});

Deno.test("blocks of matrices are put together", () => {
  const a = matrix(2, 2, [1, 2, 3, 4]);
  const b = matrix(2, 1, [5, 6]);
  assertEquals([...beside(a, b).data], [1, 2, 5, 3, 4, 6]);
  assertEquals([...stack(a, transpose(matrix(2, 1, [7, 8]))).data], [
    1,
    2,
    3,
    4,
    7,
    8,
  ]);
  assertEquals([...blockDiagonal(b, matrix(1, 2, [7, 8])).data], [
    5,
    0,
    0,
    6,
    0,
    0,
    0,
    7,
    8,
  ]);
  assertEquals([...combine(a, a, 2, -1).data], [1, 2, 3, 4]);
  assertEquals(meanDiagonal(a), 2.5);
});

Deno.test("cholesky factors and solves across blocks", () => {
  for (const n of [1, 2, 63, 64, 65, 150]) {
    const a = gram(random(n, n + 10, n));
    const factor = cholesky(a, { ridge: 1e-3 });
    const { lower, ridge } = factor;
    close(ridge, 1e-3 * meanDiagonal(a), 1e-12);
    const back = product(lower, transpose(lower));
    const expected = combine(a, identity(n), 1, ridge);
    close(back.data, expected.data, 1e-11 * meanDiagonal(a));
    const x = random(n + 1, n, 3);
    // κ up to 1e4 here times 2e-16.
    close(choleskySolve(factor, multiply(expected, x)).data, x.data, 1e-9);
  }
});

Deno.test("cholesky adds jitter only where it must, and gives up", () => {
  const singular = gram(random(1, 3, 6));
  const { ridge } = cholesky(singular);
  assert(ridge > 0 && ridge < 1e-9 * meanDiagonal(singular));
  assertThrows(() => cholesky(singular, { jitter: 0 }), Error, "positive");
  assertThrows(
    () => cholesky(matrix(2, 2, [1, 0, 0, -1e9])),
    Error,
    "positive",
  );
  assertThrows(() => cholesky(matrix(2, 3)), Error, "square");
  assertThrows(() => cholesky(matrix(1, 1, [NaN])), Error, "positive");
});

Deno.test("symmetricEigen reconstructs, also with repeated values", () => {
  const cases = [1, 2, 3, 10, 65, 120].map((n) => {
    const x = random(n, n, n);
    return combine(x, transpose(x));
  });
  cases.push(identity(7), matrix(5, 5), gram(random(5, 3, 8)));
  // Few distinct rows, many times over: remainders of remainders underflow.
  const few = random(9, 3, 40);
  cases.push(gram(stack(...new Array(20).fill(few))));
  const copies = stack(...new Array(16).fill(random(8, 4, 12)));
  cases.push(multiply(copies, transpose(copies)));
  cases.push(matrix(4, 4, new Float64Array(16).fill(1e-200)));
  cases.push(matrix(3, 3, [2, 0, 0, 0, -1, 0, 0, 0, 5]));
  for (const a of cases) {
    const { values, vectors } = symmetricEigen(a);
    orthonormal(transpose(vectors), 1e-12);
    for (let i = 1; i < values.length; i++) {
      assert(values[i - 1] <= values[i], "ascending");
    }
    const scaled = matrix(
      a.rows,
      a.rows,
      vectors.data.map((x, i) => x * values[Math.floor(i / a.rows)]),
    );
    const size = Math.max(1, ...a.data.map(Math.abs));
    close(product(transpose(vectors), scaled).data, a.data, 1e-12 * size);
  }
  assertThrows(() => symmetricEigen(matrix(1, 2)), Error, "square");
  assertThrows(() => symmetricEigen(matrix(1, 1, [NaN])), Error, "finite");
});

Deno.test("solver without ridge finds the minimum-norm solution", () => {
  const x = random(1, 4, 9);
  const g = gram(x);
  const truth = random(2, 9, 2);
  const solution = solver(g, 0)(multiply(g, truth));
  // G·S = G·T, and S lies in the row space of x: S = xᵀ(xxᵀ)⁻¹x·T.
  const dual = choleskySolve(
    cholesky(gram(transpose(x))),
    multiply(x, truth),
  );
  close(solution.data, multiply(transpose(x), dual).data, 1e-10);
});

Deno.test("solver with a ridge tends to the minimum-norm solution", () => {
  const g = gram(random(1, 5, 8));
  const b = multiply(g, random(2, 8, 3));
  const exact = solver(g, 0)(b);
  let previous = Infinity;
  for (const ridge of [1e-1, 1e-3, 1e-5, 1e-7]) {
    const difference = combine(solver(g, ridge)(b), exact, 1, -1);
    const error = Math.sqrt(inner(difference, difference));
    assert(error < previous, `ridge ${ridge}: ${error} after ${previous}`);
    previous = error;
  }
  assert(previous < 1e-5);
  close(solver(matrix(3, 3), 1e-6)(matrix(3, 1)).data, [0, 0, 0], 0);
  assertThrows(() => solver(g, -1), Error, "ridge");
});

Deno.test("qr and svd reconstruct any shape and rank", () => {
  const deficient = multiply(random(7, 12, 3), random(8, 3, 9));
  for (
    const a of [
      random(1, 1, 1),
      random(2, 8, 5),
      random(3, 5, 8),
      random(4, 40, 40),
      deficient,
      transpose(deficient),
      matrix(4, 3),
    ]
  ) {
    const { q, r } = qr(a);
    orthonormal(q, 1e-12);
    close(product(q, r).data, a.data, 1e-12);
    const { u, s, v } = svd(a);
    const scaled = matrix(
      u.rows,
      s.length,
      u.data.map((x, i) => x * s[i % s.length]),
    );
    close(product(scaled, transpose(v)).data, a.data, 1e-12);
    orthonormal(v, 1e-12);
    for (let i = 1; i < s.length; i++) assert(s[i] <= s[i - 1], "descending");
  }
  const { s } = svd(deficient);
  assert(s[2] > 0.1 && s[3] < 1e-12 * s[0], `rank 3: ${s}`);
});

Deno.test("svd finds known singular values", () => {
  // [[3, 0], [4, 5]] has √45 and √5.
  close(
    svd(matrix(2, 2, [3, 0, 4, 5])).s,
    [Math.sqrt(45), Math.sqrt(5)],
    1e-14,
  );
});

Deno.test("a truncated svd is the best approximation", () => {
  const a = random(1, 20, 14);
  const whole = svd(a);
  const { left, right } = truncate(whole, 5);
  const rest = combine(a, multiply(left, right), 1, -1);
  // Eckart–Young: the error is exactly the tail of the singular values.
  const tail = whole.s.slice(5).reduce((sum, x) => sum + x * x, 0);
  close(inner(rest, rest), tail, 1e-11 * tail);
});

Deno.test("svdOfProduct equals the svd of the product", () => {
  const [left, right] = [random(1, 30, 4), random(2, 4, 17)];
  const direct = svd(multiply(left, right));
  const factored = svdOfProduct(left, right);
  assertEquals(factored.s.length, 4);
  close(factored.s, direct.s.slice(0, 4), 1e-11);
  const a = truncate(direct, 2);
  const b = truncate(factored, 2);
  close(
    multiply(b.left, b.right).data,
    multiply(a.left, a.right).data,
    1e-11,
  );
});

Deno.test("shapes that do not fit are refused", () => {
  assertThrows(() => matrix(2, 2, [1]), Error, "4 entries");
  assertThrows(() => multiply(matrix(2, 3), matrix(2, 3)), Error, "3 rows");
  assertThrows(() => combine(matrix(1, 2), matrix(2, 1)), Error, "1 × 2");
  assertThrows(() => inner(matrix(1, 2), matrix(2, 1)), Error, "1 × 2");
  assertThrows(() => beside(matrix(1, 2), matrix(2, 1)), Error, "rows");
  assertThrows(() => stack(matrix(1, 2), matrix(2, 1)), Error, "columns");
  assertThrows(() => gram(matrix(1, 2), matrix(3, 3)), Error, "2 × 2");
});
