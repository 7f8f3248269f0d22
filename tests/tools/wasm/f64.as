/**
 * A product of float64 matrices, packed: the inner loop of src/core/gemm64.ts.
 * Memory is the module's own and all of it is the caller's.
 */

// Fused where the machine has it, like the float32 kernels in simd.as.
// @ts-ignore: decorator
@inline
function fma(a: v128, b: v128, c: v128): v128 {
  return f64x2.relaxed_madd(a, b, c);
}

// @ts-ignore: decorator
@inline
function addTo(at: usize, value: v128): void {
  v128.store(at, f64x2.add(v128.load(at), value));
}

/**
 * c += a · b on packed panels of four.
 *
 * a: for each four rows, k times their four entries of a column.
 * b: for each four columns, k times their four entries of a row.
 * c: rows of `stride` numbers. All three are addresses in bytes.
 *
 * rows, columns: in panels of four. Columns start at the panel `first` in b and
 * c, so that half of a symmetric product can be left out.
 */
export function product(
  rows: i32,
  columns: i32,
  k: i32,
  a: usize,
  b: usize,
  c: usize,
  stride: i32,
  first: i32,
): void {
  const panel = (<usize> k) << 5;
  const line = (<usize> stride) << 3;
  for (let j = first; j < columns; j++) {
    const bj = b + <usize> j * panel;
    const cj = c + (<usize> j << 5);
    for (let i = 0; i < rows; i++) {
      let x = a + <usize> i * panel;
      let y = bj;
      const end = y + panel;
      let s00 = f64x2.splat(0), s01 = f64x2.splat(0);
      let s10 = f64x2.splat(0), s11 = f64x2.splat(0);
      let s20 = f64x2.splat(0), s21 = f64x2.splat(0);
      let s30 = f64x2.splat(0), s31 = f64x2.splat(0);
      while (y < end) {
        const y0 = v128.load(y), y1 = v128.load(y, 16);
        const p = v128.load(x), q = v128.load(x, 16);
        const x0 = v128.shuffle<f64>(p, p, 0, 0);
        s00 = fma(x0, y0, s00);
        s01 = fma(x0, y1, s01);
        const x1 = v128.shuffle<f64>(p, p, 1, 1);
        s10 = fma(x1, y0, s10);
        s11 = fma(x1, y1, s11);
        const x2 = v128.shuffle<f64>(q, q, 0, 0);
        s20 = fma(x2, y0, s20);
        s21 = fma(x2, y1, s21);
        const x3 = v128.shuffle<f64>(q, q, 1, 1);
        s30 = fma(x3, y0, s30);
        s31 = fma(x3, y1, s31);
        x += 32;
        y += 32;
      }
      let to = cj + <usize> i * 4 * line;
      addTo(to, s00);
      addTo(to + 16, s01);
      to += line;
      addTo(to, s10);
      addTo(to + 16, s11);
      to += line;
      addTo(to, s20);
      addTo(to + 16, s21);
      to += line;
      addTo(to, s30);
      addTo(to + 16, s31);
    }
  }
}
