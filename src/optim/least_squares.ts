/**
 * Dense linear algebra in float64 on the host: what closed-form fusion and the
 * rank reductions need, and nothing else.
 *
 * Matrices are row-major. Factors and solutions halve their problem until it is
 * small, so that nearly all of the work is products of matrices, which
 * core/gemm64.ts does in WebAssembly.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { addProduct, type View } from "../core/gemm64.ts";

/** A dense matrix, row-major, float64. */
export interface Matrix {
  /** Number of rows. */
  readonly rows: number;
  /** Number of columns. */
  readonly columns: number;
  /** Entry (i, j) is `data[i * columns + j]`. */
  readonly data: Float64Array;
}

/**
 * Makes a matrix.
 *
 * @param rows Number of rows.
 * @param columns Number of columns.
 * @param data Its entries, row-major; zeros by default. A Float64Array is used
 * as it is, anything else is copied.
 * @throws If the number of entries does not fit.
 *
 * @example
 * ```ts
 * const identity2 = matrix(2, 2, [1, 0, 0, 1]);
 * ```
 */
export function matrix(
  rows: number,
  columns: number,
  data: ArrayLike<number> = new Float64Array(rows * columns),
): Matrix {
  if (data.length !== rows * columns) {
    throw cannot(
      "make a matrix",
      `${rows * columns} entries for ${rows} × ${columns}`,
      data.length,
    );
  }
  return {
    rows,
    columns,
    data: data instanceof Float64Array ? data : Float64Array.from(data),
  };
}

/**
 * The n × n identity.
 *
 * @param n Size.
 */
export function identity(n: number): Matrix {
  const result = matrix(n, n);
  for (let i = 0; i < n; i++) result.data[i * n + i] = 1;
  return result;
}

/**
 * aᵀ.
 *
 * @param a The matrix; it is not changed.
 */
export function transpose(a: Matrix): Matrix {
  const { rows, columns, data } = a;
  const result = new Float64Array(data.length);
  const block = 32;
  for (let i0 = 0; i0 < rows; i0 += block) {
    const i1 = Math.min(i0 + block, rows);
    for (let j0 = 0; j0 < columns; j0 += block) {
      const j1 = Math.min(j0 + block, columns);
      for (let i = i0; i < i1; i++) {
        for (let j = j0; j < j1; j++) {
          result[j * rows + i] = data[i * columns + j];
        }
      }
    }
  }
  return { rows: columns, columns: rows, data: result };
}

/**
 * The product a · b.
 *
 * @param a [m, k].
 * @param b [k, n].
 * @returns [m, n].
 * @throws If the inner sizes differ.
 */
export function multiply(a: Matrix, b: Matrix): Matrix {
  if (a.columns !== b.rows) {
    throw cannot(
      "multiply matrices",
      `${a.columns} rows on the right`,
      b.rows,
    );
  }
  const result = matrix(a.rows, b.columns);
  addProduct(
    [a.rows, b.columns, a.columns],
    viewOf(a),
    viewOf(b),
    viewOf(result),
  );
  return result;
}

/** The whole of a matrix. */
function viewOf({ data, columns }: Matrix): View {
  return { data, at: 0, row: columns, column: 1 };
}

/** The transpose of a view. */
function turned({ data, at, row, column }: View): View {
  return { data, at, row: column, column: row };
}

/** A view from row i and column j on. */
function inside(view: View, i: number, j: number): View {
  return { ...view, at: view.at + i * view.row + j * view.column };
}

/**
 * xᵀ · x, computed as half a matrix.
 *
 * @param x [rows, d].
 * @param into Sum to add to; a new matrix by default.
 * @returns [d, d], symmetric.
 */
export function gram(
  x: Matrix,
  into: Matrix = matrix(x.columns, x.columns),
): Matrix {
  const d = x.columns;
  if (into.rows !== d || into.columns !== d) {
    throw cannot(
      "add to a Gram matrix",
      `${d} × ${d}`,
      `${into.rows} × ${into.columns}`,
    );
  }
  const g = into.data;
  addProduct(
    [d, d, x.rows],
    turned(viewOf(x)),
    viewOf(x),
    viewOf(into),
    { part: "upper" },
  );
  for (let i = 0; i < d; i++) {
    for (let j = i + 1; j < d; j++) g[j * d + i] = g[i * d + j];
  }
  return into;
}

/**
 * Σ aᵢⱼ bᵢⱼ, which is tr(aᵀ·b).
 *
 * @param a A matrix.
 * @param b A matrix of the same shape.
 */
export function inner(a: Matrix, b: Matrix): number {
  if (a.rows !== b.rows || a.columns !== b.columns) {
    throw cannot(
      "take an inner product",
      `${a.rows} × ${a.columns}`,
      `${b.rows} × ${b.columns}`,
    );
  }
  let sum = 0;
  for (let i = 0; i < a.data.length; i++) sum += a.data[i] * b.data[i];
  return sum;
}

/**
 * x·a + y·b, entry by entry.
 *
 * @param a A matrix.
 * @param b A matrix of the same shape.
 * @param x Factor of `a`.
 * @param y Factor of `b`.
 */
export function combine(a: Matrix, b: Matrix, x = 1, y = 1): Matrix {
  if (a.rows !== b.rows || a.columns !== b.columns) {
    throw cannot(
      "add matrices",
      `${a.rows} × ${a.columns}`,
      `${b.rows} × ${b.columns}`,
    );
  }
  const result = matrix(a.rows, a.columns);
  for (let i = 0; i < a.data.length; i++) {
    result.data[i] = x * a.data[i] + y * b.data[i];
  }
  return result;
}

/**
 * Matrices side by side, [a | b | …].
 *
 * @param parts Matrices with equally many rows.
 */
export function beside(...parts: readonly Matrix[]): Matrix {
  const rows = parts[0].rows;
  const columns = parts.reduce((n, part) => n + part.columns, 0);
  const result = matrix(rows, columns);
  let at = 0;
  for (const part of parts) {
    if (part.rows !== rows) {
      throw cannot("put matrices side by side", `${rows} rows`, part.rows);
    }
    for (let i = 0; i < rows; i++) {
      result.data.set(
        part.data.subarray(i * part.columns, (i + 1) * part.columns),
        i * columns + at,
      );
    }
    at += part.columns;
  }
  return result;
}

/**
 * Matrices one below the other, [a; b; …].
 *
 * @param parts Matrices with equally many columns.
 */
export function stack(...parts: readonly Matrix[]): Matrix {
  const columns = parts[0].columns;
  const other = parts.find((part) => part.columns !== columns);
  if (other) {
    throw cannot("stack matrices", `${columns} columns`, other.columns);
  }
  const all = joined(Float64Array, parts.map(({ data }) => data));
  return matrix(parts.reduce((n, { rows }) => n + rows, 0), columns, all);
}

/**
 * [a, 0; 0, b].
 *
 * @param a Upper left block.
 * @param b Lower right block.
 */
export function blockDiagonal(a: Matrix, b: Matrix): Matrix {
  return stack(
    beside(a, matrix(a.rows, b.columns)),
    beside(matrix(b.rows, a.columns), b),
  );
}

/**
 * Rows `from` … `to` − 1 of a matrix.
 *
 * @param a The matrix.
 * @param from First row.
 * @param to Row after the last.
 */
export function rowsOf(a: Matrix, from: number, to: number): Matrix {
  return matrix(
    to - from,
    a.columns,
    a.data.slice(from * a.columns, to * a.columns),
  );
}

/** Mean of the diagonal, the scale that ridges are relative to. */
export function meanDiagonal(a: Matrix): number {
  let sum = 0;
  for (let i = 0; i < a.rows; i++) sum += a.data[i * a.columns + i];
  return a.rows === 0 ? 0 : sum / a.rows;
}

/** A lower triangular L with L·Lᵀ = a + ridge·I. */
export interface Cholesky {
  /** L, zeros above the diagonal. */
  readonly lower: Matrix;
  /** What was added to the diagonal, jitter included. */
  readonly ridge: number;
}

/** Options of {@linkcode cholesky}. */
export interface CholeskyOptions {
  /**
   * Added to the diagonal, relative to the mean diagonal.
   *
   * @default 0
   */
  readonly ridge?: number;
  /**
   * First jitter, relative to the mean diagonal, if the matrix turns out not
   * to be positive definite; then ten times as much and so on, up to 1e-3. 0
   * throws instead.
   *
   * @default 1e-12
   */
  readonly jitter?: number;
}

/**
 * Factors a symmetric positive definite matrix, block by block.
 *
 * @param a Symmetric; only its lower half is read, and it is not changed.
 * @param options Ridge and jitter.
 * @throws If it is not square, or not positive definite even with jitter.
 *
 * @example
 * ```ts
 * const { lower } = cholesky(matrix(2, 2, [4, 2, 2, 3]));
 * ```
 */
export function cholesky(a: Matrix, options: CholeskyOptions = {}): Cholesky {
  if (a.rows !== a.columns) {
    throw cannot(
      "factor a matrix",
      "a square one",
      `${a.rows} × ${a.columns}`,
    );
  }
  const scale = meanDiagonal(a);
  const { ridge = 0, jitter = 1e-12 } = options;
  for (let extra = 0;; extra = extra === 0 ? jitter : extra * 10) {
    const added = (ridge + extra) * scale;
    const lower = tryCholesky(a, added);
    if (lower) return { lower, ridge: added };
    if (jitter <= 0 || extra > 1e-3) {
      throw cannot(
        "factor a matrix",
        "a positive definite one",
        `one that is not, with ${added} on the diagonal`,
      );
    }
  }
}

function tryCholesky(a: Matrix, added: number): Matrix | undefined {
  const n = a.rows;
  const lower = matrix(n, n);
  const l = lower.data;
  for (let i = 0; i < n; i++) {
    l.set(a.data.subarray(i * n, i * n + i + 1), i * n);
    l[i * n + i] += added;
  }
  return factor(viewOf(lower), n) ? lower : undefined;
}

/** Problems of this size are solved directly. */
const DIRECT = 32;

/** Where a problem is cut in two. */
const half = (n: number) => Math.ceil(n / 2 / DIRECT) * DIRECT;

/** Turns the lower half of a symmetric matrix into its factor, if it has one. */
function factor(l: View, n: number): boolean {
  const { data, at, row } = l;
  if (n <= DIRECT) {
    for (let j = 0; j < n; j++) {
      const jj = at + j * row;
      let sum = data[jj + j];
      for (let p = 0; p < j; p++) sum -= data[jj + p] * data[jj + p];
      if (!(sum > 0)) return false;
      const pivot = Math.sqrt(sum);
      data[jj + j] = pivot;
      for (let i = j + 1; i < n; i++) {
        const ii = at + i * row;
        let s = data[ii + j];
        for (let p = 0; p < j; p++) s -= data[ii + p] * data[jj + p];
        data[ii + j] = s / pivot;
      }
    }
    return true;
  }
  // [A, ·; B, C] = [L, 0; X, M]·[L, 0; X, M]ᵀ: L from A, X·Lᵀ = B, M from C − X·Xᵀ.
  const h = half(n), rest = n - h;
  if (!factor(l, h)) return false;
  const x = inside(l, h, 0), m = inside(l, h, h);
  solveLower(l, h, turned(x), rest);
  addProduct([rest, rest, h], x, turned(x), m, { sign: -1, part: "lower" });
  return factor(m, rest);
}

/** b ← L⁻¹·b for b of `columns` columns. */
function solveLower(l: View, n: number, b: View, columns: number): void {
  if (n > DIRECT) {
    const h = half(n), below = inside(b, h, 0);
    solveLower(l, h, b, columns);
    addProduct([n - h, columns, h], inside(l, h, 0), b, below, { sign: -1 });
    return solveLower(inside(l, h, h), n - h, below, columns);
  }
  const { data } = b;
  if (b.row === 1) {
    // Columns lie in lines: each is solved by itself.
    for (let j = 0; j < columns; j++) {
      const x = b.at + j * b.column;
      for (let i = 0; i < n; i++) {
        const line = l.at + i * l.row;
        let s = data[x + i];
        for (let p = 0; p < i; p++) s -= l.data[line + p] * data[x + p];
        data[x + i] = s / l.data[line + i];
      }
    }
    return;
  }
  for (let i = 0; i < n; i++) {
    const to = b.at + i * b.row;
    for (let p = 0; p < i; p++) {
      subtract(data, to, b.at + p * b.row, entry(l, i, p), columns, b.column);
    }
    scale(data, to, 1 / entry(l, i, i), columns, b.column);
  }
}

/** b ← L⁻ᵀ·b for b of `columns` columns. */
function solveUpper(l: View, n: number, b: View, columns: number): void {
  if (n > DIRECT) {
    const h = half(n), below = inside(b, h, 0);
    solveUpper(inside(l, h, h), n - h, below, columns);
    const x = turned(inside(l, h, 0));
    addProduct([h, columns, n - h], x, below, b, { sign: -1 });
    return solveUpper(l, h, b, columns);
  }
  const { data } = b;
  for (let i = n - 1; i >= 0; i--) {
    const from = b.at + i * b.row;
    scale(data, from, 1 / entry(l, i, i), columns, b.column);
    for (let p = 0; p < i; p++) {
      subtract(data, b.at + p * b.row, from, entry(l, i, p), columns, b.column);
    }
  }
}

function entry({ data, at, row, column }: View, i: number, j: number): number {
  return data[at + i * row + j * column];
}

/** One line of numbers minus a multiple of another. */
function subtract(
  x: Float64Array,
  to: number,
  from: number,
  factor: number,
  count: number,
  step: number,
): void {
  for (let j = 0; j < count; j++) {
    x[to] -= factor * x[from];
    to += step;
    from += step;
  }
}

function scale(
  x: Float64Array,
  at: number,
  factor: number,
  count: number,
  step: number,
): void {
  for (let j = 0; j < count; j++, at += step) x[at] *= factor;
}

/**
 * Solves L·Lᵀ·X = b.
 *
 * @param factor From {@linkcode cholesky}.
 * @param b [n, columns].
 * @returns X [n, columns].
 */
export function choleskySolve(factor: Cholesky, b: Matrix): Matrix {
  const l = viewOf(factor.lower), n = factor.lower.rows;
  if (b.rows !== n) throw cannot("solve", `${n} rows`, b.rows);
  const x = matrix(n, b.columns, b.data.slice());
  solveLower(l, n, viewOf(x), b.columns);
  solveUpper(l, n, viewOf(x), b.columns);
  return x;
}

/** Eigenvalues and eigenvectors of a symmetric matrix. */
export interface Eigen {
  /** Ascending. */
  readonly values: Float64Array;
  /** [n, n]: row i is the unit eigenvector of value i. */
  readonly vectors: Matrix;
}

/**
 * Decomposes a symmetric matrix: Householder reduction to tridiagonal form,
 * then implicit QL (Golub & Van Loan, Matrix Computations, §8.3).
 *
 * @param a Symmetric; it is not changed.
 * @throws If it is not square, holds a NaN, or an eigenvalue does not converge.
 */
export function symmetricEigen(a: Matrix): Eigen {
  const n = a.rows;
  if (n !== a.columns) {
    throw cannot(
      "decompose a matrix",
      "a square one",
      `${a.rows} × ${a.columns}`,
    );
  }
  if (a.data.some((x) => !Number.isFinite(x))) {
    throw cannot("decompose a matrix", "finite entries", "NaN or infinity");
  }
  // To size 1, or squares of small entries would underflow.
  const scale = largest(a.data) || 1;
  const work = a.data.map((x) => x / scale);
  const diagonal = new Float64Array(n);
  const off = new Float64Array(n);
  // reflectors[k] = v with H = I − v·vᵀ (scaled so that vᵀv = 2), acting on
  // indices k + 1 … n − 1.
  const reflectors: (Float64Array | undefined)[] = [];
  const p = new Float64Array(n);
  for (let k = 0; k + 2 < n; k++) {
    let norm = 0;
    for (let i = k + 1; i < n; i++) norm += work[k * n + i] ** 2;
    norm = Math.sqrt(norm);
    const head = work[k * n + k + 1];
    let tail = 0;
    for (let i = k + 2; i < n; i++) tail += Math.abs(work[k * n + i]);
    // Remainders of remainders, zero at any precision: as above.
    if (tail <= NOTHING) {
      off[k] = head;
      reflectors.push(undefined);
      continue;
    }
    const alpha = head > 0 ? -norm : norm;
    const v = new Float64Array(n);
    for (let i = k + 1; i < n; i++) v[i] = work[k * n + i];
    v[k + 1] -= alpha;
    let squared = 0;
    for (let i = k + 1; i < n; i++) squared += v[i] * v[i];
    const unit = Math.sqrt(2 / squared);
    for (let i = k + 1; i < n; i++) v[i] *= unit;
    off[k] = alpha;
    reflectors.push(v);
    // A ← H·A·H = A − v·wᵀ − w·vᵀ with w = A·v − ½(vᵀA·v)·v.
    let vp = 0;
    for (let i = k + 1; i < n; i++) {
      let s = 0;
      const ii = i * n;
      for (let j = k + 1; j < n; j++) s += work[ii + j] * v[j];
      p[i] = s;
      vp += s * v[i];
    }
    for (let i = k + 1; i < n; i++) p[i] -= 0.5 * vp * v[i];
    for (let i = k + 1; i < n; i++) {
      const ii = i * n;
      const [vi, pi] = [v[i], p[i]];
      for (let j = k + 1; j < n; j++) work[ii + j] -= vi * p[j] + pi * v[j];
    }
  }
  if (n >= 2) off[n - 2] = work[(n - 2) * n + n - 1];
  for (let i = 0; i < n; i++) diagonal[i] = work[i * n + i];
  // Rows of q are Qᵀ: columns of H₀·H₁·…, built from the last reflector back.
  const q = identity(n).data;
  for (let k = reflectors.length - 1; k >= 0; k--) {
    const v = reflectors[k];
    if (!v) continue;
    for (let i = k + 1; i < n; i++) {
      const ii = i * n;
      let s = 0;
      for (let j = k + 1; j < n; j++) s += q[ii + j] * v[j];
      if (s === 0) continue;
      for (let j = k + 1; j < n; j++) q[ii + j] -= s * v[j];
    }
  }
  implicitQL(diagonal, off, q, n);
  const order = Array.from({ length: n }, (_, i) => i)
    .sort((i, j) => diagonal[i] - diagonal[j]);
  const vectors = matrix(n, n);
  order.forEach((from, to) =>
    vectors.data.set(q.subarray(from * n, (from + 1) * n), to * n)
  );
  return {
    values: Float64Array.from(order, (i) => scale * diagonal[i]),
    vectors,
  };
}

/** Beside entries of size 1 this is zero, and its square still a number. */
const NOTHING = 1e-100;

/** Diagonalises a tridiagonal matrix in place, rotating the rows of q along. */
function implicitQL(
  d: Float64Array,
  e: Float64Array,
  q: Float64Array,
  n: number,
): void {
  let norm = 0;
  for (let i = 0; i < n; i++) {
    norm = Math.max(norm, Math.abs(d[i]) + Math.abs(e[i]));
  }
  // What the reduction to tridiagonal form rounded away anyway; relative to the
  // neighbours alone, a rank-deficient matrix would never be done.
  const negligible = Number.EPSILON * norm;
  for (let first = 0; first < n; first++) {
    for (let round = 0;; round++) {
      let last = first;
      for (; last < n - 1; last++) {
        if (Math.abs(e[last]) <= negligible) break;
      }
      if (last === first) break;
      if (round === 60) {
        throw cannot("decompose a matrix", "60 QL rounds to be enough", "more");
      }
      // Wilkinson's shift, then chase the bulge upwards.
      let g = (d[first + 1] - d[first]) / (2 * e[first]);
      let r = Math.hypot(g, 1);
      g = d[last] - d[first] + e[first] / (g + (g >= 0 ? r : -r));
      let s = 1, c = 1, shift = 0;
      let i = last - 1;
      for (; i >= first; i--) {
        const f = s * e[i];
        const b = c * e[i];
        r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= shift;
          e[last] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - shift;
        r = (d[i] - g) * s + 2 * c * b;
        shift = s * r;
        d[i + 1] = g + shift;
        g = c * r - b;
        const upper = i * n;
        const lower = upper + n;
        for (let k = 0; k < n; k++) {
          const x = q[lower + k];
          const y = q[upper + k];
          q[lower + k] = s * y + c * x;
          q[upper + k] = c * y - s * x;
        }
      }
      if (r === 0 && i >= first) continue;
      d[first] -= shift;
      e[first] = g;
      e[last] = 0;
    }
  }
}

/**
 * Prepares to solve (a + ridge·mean(diag a)·I)·X = b for a symmetric positive
 * semi-definite matrix: by Cholesky with a ridge, else by eigenvalues, which
 * gives the minimum-norm solution a⁺·b.
 *
 * @param a [n, n]; all zeros give X = 0.
 * @param ridge Relative to the mean diagonal.
 * @param cutoff For ridge 0: eigenvalues below this share of the largest count
 * as zero.
 * @returns Solves for a right side b [n, columns].
 * @throws If the ridge is negative or the matrix not positive definite.
 *
 * @example
 * ```ts
 * const x = solver(matrix(1, 1, [4]), 0)(matrix(1, 1, [8]));
 * ```
 */
export function solver(
  a: Matrix,
  ridge: number,
  cutoff = 1e-12,
): (b: Matrix) => Matrix {
  if (!(ridge >= 0)) throw cannot("solve", "a ridge ≥ 0", ridge);
  if (meanDiagonal(a) === 0) return (b) => matrix(a.rows, b.columns);
  if (ridge > 0) {
    const factor = cholesky(a, { ridge });
    return (b) => choleskySolve(factor, b);
  }
  const { values, vectors } = symmetricEigen(a);
  const largest = values[values.length - 1];
  return (b) => {
    const coordinates = multiply(vectors, b);
    values.forEach((value, i) => {
      const inverse = value > cutoff * largest && value > 0 ? 1 / value : 0;
      const at = i * b.columns;
      for (let j = 0; j < b.columns; j++) coordinates.data[at + j] *= inverse;
    });
    return multiply(transpose(vectors), coordinates);
  };
}

/** A thin QR decomposition a = q·r. */
export interface QR {
  /** [m, k] with orthonormal columns, k = min(m, n). */
  readonly q: Matrix;
  /** [k, n], upper triangular. */
  readonly r: Matrix;
}

/**
 * Thin QR by Householder reflections.
 *
 * @param a [m, n]; it is not changed.
 */
export function qr(a: Matrix): QR {
  const [m, n] = [a.rows, a.columns];
  const k = Math.min(m, n);
  // Columns as rows, so that reflections run over contiguous memory.
  const work = transpose(a).data;
  const scale = largest(work) || 1;
  for (let i = 0; i < work.length; i++) work[i] /= scale;
  const reflectors: (Float64Array | undefined)[] = [];
  for (let j = 0; j < k; j++) {
    const at = j * m;
    let squared = 0;
    for (let i = j; i < m; i++) squared += work[at + i] ** 2;
    const norm = Math.sqrt(squared);
    if (norm <= NOTHING) {
      reflectors.push(undefined);
      continue;
    }
    const v = new Float64Array(m);
    for (let i = j; i < m; i++) v[i] = work[at + i];
    v[j] += v[j] > 0 ? norm : -norm;
    let vv = 0;
    for (let i = j; i < m; i++) vv += v[i] * v[i];
    const unit = Math.sqrt(2 / vv);
    for (let i = j; i < m; i++) v[i] *= unit;
    reflectors.push(v);
    for (let c = j; c < n; c++) reflect(work, c * m, v, j, m);
  }
  const r = matrix(k, n);
  for (let i = 0; i < k; i++) {
    for (let j = i; j < n; j++) r.data[i * n + j] = scale * work[j * m + i];
  }
  const columns = matrix(k, m);
  for (let c = 0; c < k; c++) {
    columns.data[c * m + c] = 1;
    for (let j = k - 1; j >= 0; j--) {
      const v = reflectors[j];
      if (v) reflect(columns.data, c * m, v, j, m);
    }
  }
  return { q: transpose(columns), r };
}

function largest(x: Float64Array): number {
  let most = 0;
  for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(x[i]));
  return most;
}

/** x ← x − v·(vᵀx) on x[at + from … at + to). */
function reflect(
  x: Float64Array,
  at: number,
  v: Float64Array,
  from: number,
  to: number,
): void {
  let s = 0;
  for (let i = from; i < to; i++) s += v[i] * x[at + i];
  if (s === 0) return;
  for (let i = from; i < to; i++) x[at + i] -= s * v[i];
}

/** A thin singular value decomposition a = u·diag(s)·vᵀ. */
export interface SVD {
  /** [m, k], orthonormal columns where s > 0; k = min(m, n). */
  readonly u: Matrix;
  /** Singular values, descending. */
  readonly s: Float64Array;
  /** [n, k], orthonormal columns where s > 0. */
  readonly v: Matrix;
}

/**
 * Singular value decomposition by one-sided Jacobi rotations after a QR step
 * (accurate to the last digits, also for small singular values).
 *
 * Meant for matrices with one side up to a few hundred.
 *
 * @param a [m, n]; it is not changed.
 * @throws If it holds a NaN, or 60 sweeps do not converge.
 */
export function svd(a: Matrix): SVD {
  if (a.data.some((x) => !Number.isFinite(x))) {
    throw cannot("decompose a matrix", "finite entries", "NaN or infinity");
  }
  if (a.rows < a.columns) {
    const { u, s, v } = svd(transpose(a));
    return { u: v, s, v: u };
  }
  if (a.rows > a.columns) {
    const { q, r } = qr(a);
    const { u, s, v } = svd(r);
    return { u: multiply(q, u), s, v };
  }
  const n = a.columns;
  // Rows of w are columns of a·V, rows of z the columns of V.
  const w = transpose(a).data;
  const z = identity(n).data;
  const rotate = (
    x: Float64Array,
    i: number,
    j: number,
    c: number,
    s: number,
  ) => {
    for (let k = 0; k < n; k++) {
      const [p, q] = [x[i + k], x[j + k]];
      x[i + k] = c * p - s * q;
      x[j + k] = s * p + c * q;
    }
  };
  let total = 0;
  for (let k = 0; k < w.length; k++) total += w[k] * w[k];
  // Columns below this share of the whole are zero, and need no angle.
  const nothing = total * 1e-40;
  for (let sweep = 0;; sweep++) {
    let rotated = false;
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) {
        const [ii, jj] = [i * n, j * n];
        let aa = 0, bb = 0, ab = 0;
        for (let k = 0; k < n; k++) {
          const [p, q] = [w[ii + k], w[jj + k]];
          aa += p * p;
          bb += q * q;
          ab += p * q;
        }
        if (aa <= nothing || bb <= nothing) continue;
        if (Math.abs(ab) <= 1e-15 * Math.sqrt(aa * bb)) continue;
        rotated = true;
        const zeta = (bb - aa) / (2 * ab);
        const t = (zeta >= 0 ? 1 : -1) /
          (Math.abs(zeta) + Math.hypot(1, zeta));
        const c = 1 / Math.hypot(1, t);
        rotate(w, ii, jj, c, c * t);
        rotate(z, ii, jj, c, c * t);
      }
    }
    if (!rotated) break;
    if (sweep === 60) {
      throw cannot("decompose a matrix", "60 sweeps to be enough", "more");
    }
  }
  const norms = Float64Array.from({ length: n }, (_, i) => {
    let sum = 0;
    for (let k = 0; k < n; k++) sum += w[i * n + k] ** 2;
    return Math.sqrt(sum);
  });
  const order = Array.from(norms.keys()).sort((i, j) => norms[j] - norms[i]);
  const u = matrix(n, n);
  const v = matrix(n, n);
  order.forEach((from, to) => {
    const norm = norms[from];
    for (let k = 0; k < n; k++) {
      u.data[k * n + to] = norm > 0 ? w[from * n + k] / norm : 0;
      v.data[k * n + to] = z[from * n + k];
    }
  });
  return { u, s: Float64Array.from(order, (i) => norms[i]), v };
}

/**
 * Singular value decomposition of a product left · right without forming it:
 * two QR steps and a decomposition of rank size.
 *
 * @param left [m, r].
 * @param right [r, n].
 * @returns Factors with k = min(m, r, n) columns.
 */
export function svdOfProduct(left: Matrix, right: Matrix): SVD {
  const a = qr(left);
  const b = qr(transpose(right));
  const { u, s, v } = svd(multiply(a.r, transpose(b.r)));
  return { u: multiply(a.q, u), s, v: multiply(b.q, v) };
}

/**
 * Keeps the first columns of a decomposition.
 *
 * @param decomposition From {@linkcode svd}.
 * @param rank How many.
 * @returns The best rank-`rank` approximation as two factors with the singular
 * values shared evenly: left [m, rank] · right [rank, n].
 */
export function truncate(
  decomposition: SVD,
  rank: number,
): { left: Matrix; right: Matrix } {
  const { u, s, v } = decomposition;
  const k = Math.min(rank, s.length);
  const left = matrix(u.rows, k);
  const right = matrix(k, v.rows);
  for (let r = 0; r < k; r++) {
    const root = Math.sqrt(s[r]);
    for (let i = 0; i < u.rows; i++) {
      left.data[i * k + r] = u.data[i * u.columns + r] * root;
    }
    for (let j = 0; j < v.rows; j++) {
      right.data[r * v.rows + j] = v.data[j * v.columns + r] * root;
    }
  }
  return { left, right };
}
