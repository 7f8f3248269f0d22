/**
 * Products of float64 matrices, in WebAssembly where the runtime has relaxed
 * SIMD, else in JavaScript.
 *
 * Blocked as in Goto & van de Geijn, "Anatomy of High-Performance Matrix
 * Multiplication" (2008): panels of both sides are packed, so that the inner
 * loop reads memory in order whatever the strides are.
 *
 * @module
 */
import { decodeBase64 } from "./kernels/base64.ts";
import { F64_WASM } from "./kernels/f64_wasm.ts";
import { ranges } from "./kernels/parallel.ts";
import { withSharedMemory } from "./kernels/shared_memory.ts";
import { startThreads, threadCount } from "./kernels/threads.ts";

/** A matrix inside an array: entry (i, j) is `data[at + i·row + j·column]`. */
export interface View {
  /** Where it lies. */
  readonly data: Float64Array;
  /** Index of its first entry. */
  readonly at: number;
  /** Distance between two rows. */
  readonly row: number;
  /** Distance between two columns. */
  readonly column: number;
}

/** Options of {@linkcode addProduct}. */
export interface ProductOptions {
  /**
   * Factor of the product.
   *
   * @default 1
   */
  readonly sign?: 1 | -1;
  /**
   * Which entries are needed: all, or those on and above the diagonal, or on and
   * below it. The others are left as they are.
   *
   * @default "all"
   */
  readonly part?: "all" | "upper" | "lower";
}

interface Kernel {
  readonly memory: WebAssembly.Memory;
  /** As `product` of `f64.as`. */
  readonly product: (
    rows: number,
    columns: number,
    k: number,
    a: number,
    b: number,
    c: number,
    stride: number,
    first: number,
  ) => void;
  /** Ends the threads. */
  readonly close: () => void;
}

let kernel: { of: Kernel | undefined; threads: number } | undefined;

/** The compiled kernel with memory of its own; undefined where it cannot run. */
function kernelOf(): Kernel | undefined {
  const threads = threadCount();
  if (kernel?.threads !== threads) {
    kernel?.of?.close();
    kernel = { of: compiled(threads), threads };
  }
  return kernel.of;
}

function compiled(count: number): Kernel | undefined {
  const bytes = decodeBase64(F64_WASM);
  if (!WebAssembly.validate(bytes)) return undefined;
  const shared = count > 1;
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared });
  const module = new WebAssembly.Module(
    shared ? withSharedMemory(bytes)! : bytes,
  );
  const exports = new WebAssembly.Instance(module, { env: { memory } })
    .exports as unknown as Pick<Kernel, "product">;
  if (!shared) return { memory, product: exports.product, close: () => {} };
  const threads = startThreads(count, module, memory, { ...exports });
  return {
    memory,
    product(rows, columns, k, a, b, c, stride, first) {
      const wanted = Math.floor(16 * rows * (columns - first) * k / PART);
      const parts = ranges(columns - first, Math.min(wanted, 2 * count))
        .map(({ from, count }) => [
          ...[rows, first + from + count, k, a, b, c, stride, first + from],
        ]);
      if (parts.length > 1) threads.run("product", parts, 0);
      else exports.product(rows, columns, k, a, b, c, stride, first);
    },
    close: () => threads.close(),
  };
}

/** Multiplications that are worth a part of their own. */
const PART = 200_000;

/** Rows of a, and inner entries, that are packed at once: 256 KiB. */
const ROWS = 128, INNER = 256;

/** Numbers of a result that stay in the kernel's memory: 32 MiB. */
const RESULT = 1 << 22;

/** Below this many multiplications packing costs more than it gives. */
const SMALL = 1 << 13;

const ceil4 = (n: number) => (n + 3) & ~3;

/**
 * c ← c ± a · b.
 *
 * @param size [m, n, k].
 * @param a [m, k].
 * @param b [k, n].
 * @param c [m, n], changed; shares no entries with a and b.
 * @param options Sign, and which half is needed.
 *
 * @example
 * ```ts ignore
 * const view = (data: Float64Array, columns: number) =>
 *   ({ data, at: 0, row: columns, column: 1 });
 * const c = new Float64Array(1);
 * addProduct([1, 1, 2], view(a, 2), view(b, 1), view(c, 1));
 * ```
 */
export function addProduct(
  size: readonly [m: number, n: number, k: number],
  a: View,
  b: View,
  c: View,
  options: ProductOptions = {},
): void {
  const [m, n, k] = size;
  if (m === 0 || n === 0 || k === 0) return;
  const wasm = m * n * k >= SMALL ? kernelOf() : undefined;
  if (!wasm) return plain(size, a, b, c, options);
  const { part = "all" } = options;
  // Few enough rows at once for the result to stay where it is made.
  const most = Math.max(
    ROWS,
    Math.floor(RESULT / ceil4(n) / ROWS) * ROWS,
  );
  for (let m0 = 0; m0 < m; m0 += most) {
    const rows = Math.min(most, m - m0);
    const from = part === "upper" ? m0 & ~3 : 0;
    const to = part === "lower" ? Math.min(n, m0 + rows) : n;
    if (from >= to) continue;
    packed(
      wasm,
      [rows, to - from, k],
      { ...a, at: a.at + m0 * a.row },
      { ...b, at: b.at + from * b.column },
      { ...c, at: c.at + m0 * c.row + from * c.column },
      options,
      m0 - from,
    );
  }
}

/**
 * One product that fits the kernel's memory. The diagonal goes through the
 * entries (i, i + shift).
 */
function packed(
  { memory, product }: Kernel,
  [m, n, k]: readonly [number, number, number],
  a: View,
  b: View,
  c: View,
  { sign = 1, part = "all" }: ProductOptions,
  shift: number,
): void {
  const width = ceil4(n), inner = Math.min(INNER, k);
  const atB = ROWS * inner, atC = atB + width * inner;
  const needed = 8 * (atC + ceil4(m) * width);
  const missing = Math.ceil((needed - memory.buffer.byteLength) / 65536);
  if (missing > 0) memory.grow(missing);
  const work = new Float64Array(memory.buffer);
  work.fill(0, atC, atC + ceil4(m) * width);
  for (let k0 = 0; k0 < k; k0 += inner) {
    const depth = Math.min(inner, k - k0);
    pack(work, atB, n, depth, b.data, b.at + k0 * b.row, b.column, b.row);
    for (let m0 = 0; m0 < m; m0 += ROWS) {
      const rows = Math.min(ROWS, m - m0);
      const first = part === "upper" ? Math.max(0, m0 + shift) >> 2 : 0;
      const last = part === "lower"
        ? Math.min(width, ceil4(m0 + rows + shift))
        : width;
      const start = a.at + m0 * a.row + k0 * a.column;
      pack(work, 0, rows, depth, a.data, start, a.row, a.column);
      product(
        ceil4(rows) >> 2,
        last >> 2,
        depth,
        0,
        8 * atB,
        8 * (atC + m0 * width),
        width,
        first,
      );
    }
  }
  for (let i = 0; i < m; i++) {
    const first = part === "upper" ? Math.max(0, i + shift) : 0;
    const end = part === "lower" ? Math.min(n, i + shift + 1) : n;
    let to = c.at + i * c.row + first * c.column;
    const line = atC + i * width;
    for (let j = first; j < end; j++) {
      c.data[to] += sign * work[line + j];
      to += c.column;
    }
  }
}

/** Panels of four lines: all entries at one depth side by side, zeros after. */
function pack(
  work: Float64Array,
  at: number,
  lines: number,
  depth: number,
  data: Float64Array,
  from: number,
  line: number,
  step: number,
): void {
  for (let i = 0; i < lines; i += 4) {
    const count = Math.min(4, lines - i);
    const start = from + i * line;
    if (count === 4) {
      let x = start;
      for (let p = 0; p < depth; p++) {
        work[at] = data[x];
        work[at + 1] = data[x + line];
        work[at + 2] = data[x + 2 * line];
        work[at + 3] = data[x + 3 * line];
        at += 4;
        x += step;
      }
      continue;
    }
    for (let p = 0; p < depth; p++) {
      for (let r = 0; r < 4; r++) {
        work[at++] = r < count ? data[start + r * line + p * step] : 0;
      }
    }
  }
}

/** The same in JavaScript, row by row of b. */
function plain(
  [m, n, k]: readonly [number, number, number],
  a: View,
  b: View,
  c: View,
  { sign = 1, part = "all" }: ProductOptions,
): void {
  const [x, y, z] = [a.data, b.data, c.data];
  for (let i = 0; i < m; i++) {
    const first = part === "upper" ? i : 0;
    const end = part === "lower" ? Math.min(n, i + 1) : n;
    for (let p = 0; p < k; p++) {
      const factor = sign * x[a.at + i * a.row + p * a.column];
      let from = b.at + p * b.row + first * b.column;
      let to = c.at + i * c.row + first * c.column;
      for (let j = first; j < end; j++) {
        z[to] += factor * y[from];
        from += b.column;
        to += c.column;
      }
    }
  }
}
