import { assert, assertEquals } from "@std/assert";
import { addProduct, type View } from "../../src/core/gemm64.ts";
import { key, stream } from "../../src/core/random.ts";

function random(n: number, seed: number): Float64Array {
  const draw = stream(key(seed));
  return Float64Array.from({ length: n }, () => 2 * draw.uniform() - 1);
}

const rowMajor = (data: Float64Array, columns: number): View => ({
  ...{ data, at: 0, row: columns, column: 1 },
});
const columnMajor = (data: Float64Array, rows: number): View => ({
  ...{ data, at: 0, row: 1, column: rows },
});
const entry = ({ data, at, row, column }: View, i: number, j: number) =>
  data[at + i * row + j * column];

// Below and above the size from which the kernel works; odd sizes; more rows
// than are packed at once; more inner entries than are packed at once; a result
// that does not stay in the kernel's memory at once.
for (
  const [m, n, k] of [
    [3, 5, 2],
    [33, 31, 29],
    [131, 66, 257],
    [6, 9, 1030],
    [300, 2, 40],
    [270, 33000, 3],
  ] as const
) {
  for (const part of ["all", "upper", "lower"] as const) {
    Deno.test(`[${m}, ${k}] · [${k}, ${n}], ${part}, is the sum of products`, () => {
      const a = columnMajor(random(m * k, 1), m);
      const b = rowMajor(random(k * n, 2), n);
      const start = random(m * n, 3);
      const c = rowMajor(start.slice(), n);
      addProduct([m, n, k], a, b, c, { sign: -1, part });
      const rows = m > 200
        ? [0, 1, 127, 128, 255, m - 1]
        : [...Array(m).keys()];
      for (const i of rows) {
        for (let j = 0; j < n; j += n > 1000 ? 97 : 1) {
          let sum = start[i * n + j];
          const wanted = part === "all" || (part === "upper" ? j >= i : j <= i);
          for (let p = 0; wanted && p < k; p++) {
            sum -= entry(a, i, p) * entry(b, p, j);
          }
          const got = entry(c, i, j);
          assert(Math.abs(got - sum) < 1e-12 * (1 + k), `${i}, ${j}: ${got}`);
        }
      }
    });
  }
}

Deno.test("a product is added into the middle of a larger matrix", () => {
  const [n, side] = [40, 100];
  const a = rowMajor(random(n * n, 1), n), b = rowMajor(random(n * n, 2), n);
  const whole = new Float64Array(side * side).fill(7);
  addProduct([n, n, n], a, b, {
    data: whole,
    at: 3 * side + 5,
    row: side,
    column: 1,
  });
  const alone = rowMajor(new Float64Array(n * n), n);
  addProduct([n, n, n], a, b, alone);
  whole.forEach((value, at) => {
    const [i, j] = [Math.floor(at / side) - 3, at % side - 5];
    const inside = i >= 0 && i < n && j >= 0 && j < n;
    assertEquals(value, inside ? 7 + entry(alone, i, j) : 7);
  });
});

Deno.test("a NaN is not lost, whatever it meets", () => {
  for (const n of [2, 40]) {
    const a = rowMajor(new Float64Array(n * n), n);
    const b = rowMajor(random(n * n, 1), n);
    b.data[1] = NaN;
    const c = rowMajor(new Float64Array(n * n), n);
    addProduct([n, n, n], a, b, c);
    assertEquals(Number.isNaN(c.data[1]), true);
    assertEquals(Number.isNaN(c.data[0]), false);
  }
});
