// The SIMD module: AssemblyScript, compiled by build.ts to
// src/core/kernels/simd_wasm.ts.
//
// It imports the memory of tfjs's wasm backend and works on its tensors in
// place. It has no data segment, no heap and no state: every address, scratch
// included, comes from the caller, so that nothing here can overlap a tensor.
// Strides (…s) are in floats, addresses in bytes.

// Micro tile: MR rows of the result by NR columns, in eight registers.
const MR: i32 = 4;
const NR: i32 = 8;
// Depth of a packed panel: NR·KC floats (10 KiB) stay in the first cache.
const KC: i32 = 320;
// Rows handled between two walks over the panels; MC·KC floats (160 KiB) stay
// in the second cache.
const MC: i32 = 128;
// Columns packed at a time.
const NC: i32 = 512;
// Up to so many columns, packing the rows of A costs more than it saves.
const DIRECT: i32 = 8;
// Floats of scratch of a block: its last tile, and packed rows.
const WORK: i32 = MR * NR + MC * KC;

// a·b + c, rounded once: a fifth faster than two instructions, and the same
// on every processor of the last decade (x86-64 with FMA3, ARM64).
// @ts-ignore: decorator
@inline
function fma(a: v128, b: v128, c: v128): v128 {
  return f32x4.relaxed_madd(a, b, c);
}

// Flags of gemm.
const ACCUMULATE: i32 = 1;

// ---------------------------------------------------------------- gemm

/** Floats of scratch that gemm needs. */
export function gemmScratch(m: i32, n: i32, k: i32): i32 {
  const kc = min(k, KC);
  const nc = min((n + NR - 1) & ~(NR - 1), NC);
  return kc * nc + WORK + 16;
}

// Rows a0…a3 are contiguous in k (step one float); bp is a packed panel.
function microRows(
  a0: usize, a1: usize, a2: usize, a3: usize, bp: usize, k: i32,
  c: usize, rcs: usize, add: i32, bias: usize,
): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00;
  let c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  let i = k >> 1;
  for (; i > 0; i--) {
    let b0 = v128.load(bp), b1 = v128.load(bp, 16);
    let t = v128.load32_splat(a0);
    c00 = fma(t, b0, c00);
    c01 = fma(t, b1, c01);
    t = v128.load32_splat(a1);
    c10 = fma(t, b0, c10);
    c11 = fma(t, b1, c11);
    t = v128.load32_splat(a2);
    c20 = fma(t, b0, c20);
    c21 = fma(t, b1, c21);
    t = v128.load32_splat(a3);
    c30 = fma(t, b0, c30);
    c31 = fma(t, b1, c31);
    b0 = v128.load(bp, 32);
    b1 = v128.load(bp, 48);
    t = v128.load32_splat(a0, 4);
    c00 = fma(t, b0, c00);
    c01 = fma(t, b1, c01);
    t = v128.load32_splat(a1, 4);
    c10 = fma(t, b0, c10);
    c11 = fma(t, b1, c11);
    t = v128.load32_splat(a2, 4);
    c20 = fma(t, b0, c20);
    c21 = fma(t, b1, c21);
    t = v128.load32_splat(a3, 4);
    c30 = fma(t, b0, c30);
    c31 = fma(t, b1, c31);
    a0 += 8;
    a1 += 8;
    a2 += 8;
    a3 += 8;
    bp += 64;
  }
  if (k & 1) {
    const b0 = v128.load(bp), b1 = v128.load(bp, 16);
    let t = v128.load32_splat(a0);
    c00 = fma(t, b0, c00);
    c01 = fma(t, b1, c01);
    t = v128.load32_splat(a1);
    c10 = fma(t, b0, c10);
    c11 = fma(t, b1, c11);
    t = v128.load32_splat(a2);
    c20 = fma(t, b0, c20);
    c21 = fma(t, b1, c21);
    t = v128.load32_splat(a3);
    c30 = fma(t, b0, c30);
    c31 = fma(t, b1, c31);
  }
  store8(c, c00, c01, add, bias);
  c += rcs;
  store8(c, c10, c11, add, bias);
  c += rcs;
  store8(c, c20, c21, add, bias);
  c += rcs;
  store8(c, c30, c31, add, bias);
}

// As microRows, with the four rows interleaved: [k][4]. One load gives four
// rows, spread by shuffles: where wasm has explicit bounds checks (Deno), loads
// cost more than multiplications. Not unrolled: that costs registers.
function microPacked(
  a: usize, bp: usize, k: i32, c: usize, rcs: usize, add: i32, bias: usize,
): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00;
  let c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  for (let i = k; i > 0; i--) {
    const x = v128.load(a);
    const b0 = v128.load(bp), b1 = v128.load(bp, 16);
    const t0 = v128.shuffle<f32>(x, x, 0, 0, 0, 0);
    c00 = fma(t0, b0, c00);
    c01 = fma(t0, b1, c01);
    const t1 = v128.shuffle<f32>(x, x, 1, 1, 1, 1);
    c10 = fma(t1, b0, c10);
    c11 = fma(t1, b1, c11);
    const t2 = v128.shuffle<f32>(x, x, 2, 2, 2, 2);
    c20 = fma(t2, b0, c20);
    c21 = fma(t2, b1, c21);
    const t3 = v128.shuffle<f32>(x, x, 3, 3, 3, 3);
    c30 = fma(t3, b0, c30);
    c31 = fma(t3, b1, c31);
    a += 16;
    bp += 32;
  }
  store8(c, c00, c01, add, bias);
  c += rcs;
  store8(c, c10, c11, add, bias);
  c += rcs;
  store8(c, c20, c21, add, bias);
  c += rcs;
  store8(c, c30, c31, add, bias);
}

// @ts-ignore: decorator
@inline
function store8(c: usize, x0: v128, x1: v128, add: i32, bias: usize): void {
  if (add) {
    x0 = f32x4.add(x0, v128.load(c));
    x1 = f32x4.add(x1, v128.load(c, 16));
  } else if (bias) {
    x0 = f32x4.add(x0, v128.load(bias));
    x1 = f32x4.add(x1, v128.load(bias, 16));
  }
  v128.store(c, x0);
  v128.store(c, x1, 16);
}

// Packs B(k, j), k < kc, j < n, into panels [n/NR][kc][NR] padded with zeros.
function packB(
  b: usize, rbs: i32, cbs: i32, kc: i32, n: i32, dst: usize,
): void {
  for (let j = 0; j < n; j += NR) {
    const w = min(NR, n - j);
    packPanel(b + ((<usize>j * cbs) << 2), rbs, cbs, kc, w, dst);
    dst += (<usize>kc * NR) << 2;
  }
}

function packPanel(
  b: usize, rbs: i32, cbs: i32, kc: i32, w: i32, dst: usize,
): void {
  const rb = <usize>rbs << 2;
  const cb = <usize>cbs << 2;
  if (cbs == 1 && w == NR) {
    for (let k = 0; k < kc; k++) {
      v128.store(dst, v128.load(b));
      v128.store(dst, v128.load(b, 16), 16);
      b += rb;
      dst += 32;
    }
    return;
  }
  if (rbs == 1 && w == NR) {
    let k = 0;
    for (; k + 4 <= kc; k += 4) {
      transpose4(b, cb, dst, 32);
      transpose4(b + 4 * cb, cb, dst + 16, 32);
      b += 16;
      dst += 128;
    }
    for (; k < kc; k++) {
      let p = b;
      for (let j = 0; j < NR; j++) {
        f32.store(dst + (<usize>j << 2), f32.load(p));
        p += cb;
      }
      b += 4;
      dst += 32;
    }
    return;
  }
  for (let k = 0; k < kc; k++) {
    let p = b;
    let j = 0;
    for (; j < w; j++) {
      f32.store(dst + (<usize>j << 2), f32.load(p));
      p += cb;
    }
    for (; j < NR; j++) f32.store(dst + (<usize>j << 2), 0);
    b += rb;
    dst += 32;
  }
}

// dst[i][j] = src[j][i] for a 4×4 block; ss, ds are row strides in bytes.
// @ts-ignore: decorator
@inline
function transpose4(src: usize, ss: usize, dst: usize, ds: usize): void {
  const r0 = v128.load(src);
  const r1 = v128.load(src + ss);
  const r2 = v128.load(src + 2 * ss);
  const r3 = v128.load(src + 3 * ss);
  const t0 = v128.shuffle<f32>(r0, r1, 0, 4, 1, 5);
  const t1 = v128.shuffle<f32>(r0, r1, 2, 6, 3, 7);
  const t2 = v128.shuffle<f32>(r2, r3, 0, 4, 1, 5);
  const t3 = v128.shuffle<f32>(r2, r3, 2, 6, 3, 7);
  v128.store(dst, v128.shuffle<f32>(t0, t2, 0, 1, 4, 5));
  v128.store(dst + ds, v128.shuffle<f32>(t0, t2, 2, 3, 6, 7));
  v128.store(dst + 2 * ds, v128.shuffle<f32>(t1, t3, 0, 1, 4, 5));
  v128.store(dst + 3 * ds, v128.shuffle<f32>(t1, t3, 2, 3, 6, 7));
}

// Packs A(i, k), i < m, k < kc, into panels [m/MR][kc][MR] padded with zeros.
function packA(
  a: usize, ras: i32, cas: i32, m: i32, kc: i32, dst: usize,
): void {
  const ra = <usize>ras << 2;
  const ca = <usize>cas << 2;
  for (let i = 0; i < m; i += MR) {
    const h = min(MR, m - i);
    let p = a + <usize>i * ra;
    if (h == MR && ras == 1) {
      for (let k = 0; k < kc; k++) {
        v128.store(dst, v128.load(p));
        p += ca;
        dst += 16;
      }
    } else if (h == MR && cas == 1) {
      let k = 0;
      for (; k + 4 <= kc; k += 4) {
        transpose4(p, ra, dst, 16);
        p += 16;
        dst += 64;
      }
      for (; k < kc; k++) {
        for (let r = 0; r < MR; r++) {
          f32.store(dst + (<usize>r << 2), f32.load(p + <usize>r * ra));
        }
        p += 4;
        dst += 16;
      }
    } else {
      for (let k = 0; k < kc; k++) {
        let q = p;
        let r = 0;
        for (; r < h; r++) {
          f32.store(dst + (<usize>r << 2), f32.load(q));
          q += ra;
        }
        for (; r < MR; r++) f32.store(dst + (<usize>r << 2), 0);
        p += ca;
        dst += 16;
      }
    }
  }
}

// Adds or copies the valid part of a 4×8 tile to C.
function storeTile(
  tile: usize, c: usize, rc: usize, h: i32, w: i32, add: i32, bias: usize,
): void {
  for (let i = 0; i < h; i++) {
    for (let j = 0; j < w; j++) {
      const o = <usize>j << 2;
      let x = f32.load(tile + o);
      if (add) x += f32.load(c + o);
      else if (bias) x += f32.load(bias + o);
      f32.store(c + o, x);
    }
    tile += 32;
    c += rc;
  }
}

// One block of C: rows × n, from A rows (row-major, stride ra bytes) or packed
// A, and panels bp.
function block(
  packed: i32, a: usize, ra: usize, bp: usize, rows: i32, n: i32, kc: i32,
  c: usize, rc: usize, add: i32, bias: usize, tile: usize,
): void {
  const panel = (<usize>kc * NR) << 2;
  const aPanel = (<usize>kc * MR) << 2;
  if (!packed && n > DIRECT) {
    const rowsPacked = tile + ((MR * NR) << 2);
    packA(a, <i32>(ra >> 2), 1, rows, kc, rowsPacked);
    a = rowsPacked;
    packed = 1;
  }
  for (let j = 0; j < n; j += NR) {
    const w = min(NR, n - j);
    const bj = bias ? bias + (<usize>j << 2) : 0;
    let cp = c + (<usize>j << 2);
    let ap = a;
    for (let i = 0; i < rows; i += MR) {
      const h = min(MR, rows - i);
      const full = h == MR && w == NR;
      const to = full ? cp : tile;
      const ts = full ? rc : 32;
      const tadd = full ? add : 0;
      const tb = full ? bj : 0;
      if (packed) {
        microPacked(ap, bp, kc, to, ts, tadd, tb);
        ap += aPanel;
      } else {
        // Rows past the end repeat the last one; they are not stored.
        microRows(
          ap, h > 1 ? ap + ra : ap, h > 2 ? ap + 2 * ra : ap,
          h > 3 ? ap + 3 * ra : ap, bp, kc, to, ts, tadd, tb,
        );
        ap += ra << 2;
      }
      if (!full) storeTile(tile, cp, rc, h, w, add, bj);
      cp += rc << 2;
    }
    bp += panel;
  }
}

/**
 * C (m × n, row stride rcs) = A·B (+ bias) or, with ACCUMULATE, C += A·B.
 * A(i, k) = a[i·ras + k·cas], B(k, j) = b[k·rbs + j·cbs]; bias [n] or 0.
 */
export function gemm(
  a: usize, ras: i32, cas: i32, b: usize, rbs: i32, cbs: i32, c: usize,
  rcs: i32, m: i32, n: i32, k: i32, flags: i32, bias: usize, scratch: usize,
): void {
  const rc = <usize>rcs << 2;
  const ra = <usize>ras << 2;
  const tile = scratch;
  const packedB = scratch + (WORK << 2);
  const depths = max((k + KC - 1) / KC, 1);
  const step = max((k + depths - 1) / depths, 1);
  const packedA = scratch + ((MR * NR) << 2);
  const direct = cas == 1;
  for (let jc = 0; jc < n; jc += NC) {
    const cols = min(NC, n - jc);
    let kp = 0;
    do {
      const kc = min(step, k - kp);
      const add = i32(kp > 0 || (flags & ACCUMULATE) != 0);
      packB(
        b + ((<usize>kp * rbs + <usize>jc * cbs) << 2), rbs, cbs, kc, cols,
        packedB,
      );
      for (let i = 0; i < m; i += MC) {
        const rows = min(MC, m - i);
        let ap = a + ((<usize>i * ras + <usize>kp * cas) << 2);
        if (!direct) {
          packA(ap, ras, cas, rows, kc, packedA);
          ap = packedA;
        }
        block(
          i32(!direct), ap, ra, packedB, rows, cols, kc,
          c + <usize>i * rc + (<usize>jc << 2), rc, add,
          bias ? bias + (<usize>jc << 2) : 0, tile,
        );
      }
      kp += step;
    } while (kp < k);
  }
}

/** Batched gemm; sa, sb, sc are batch strides in floats. */
export function gemmBatch(
  batch: i32, a: usize, sa: i32, ras: i32, cas: i32, b: usize, sb: i32,
  rbs: i32, cbs: i32, c: usize, sc: i32, rcs: i32, m: i32, n: i32, k: i32,
  flags: i32, bias: usize, scratch: usize,
): void {
  for (let i = 0; i < batch; i++) {
    gemm(
      a, ras, cas, b, rbs, cbs, c, rcs, m, n, k, flags, bias, scratch,
    );
    a += <usize>sa << 2;
    b += <usize>sb << 2;
    c += <usize>sc << 2;
  }
}

/** Copies rows of n floats between matrices of row strides ss and ds. */
export function copyRows(
  src: usize, ss: i32, dst: usize, ds: i32, rows: i32, n: i32,
): void {
  for (let r = 0; r < rows; r++) {
    copyFloats(dst, src, n);
    src += <usize>ss << 2;
    dst += <usize>ds << 2;
  }
}

// ---------------------------------------------------------------- conv2d

// Taps and channels of one depth block: whole taps if several fit into KC,
// else one tap's channels in even parts.
// @ts-ignore: decorator
@inline
function tapsPerBlock(cin: i32): i32 {
  return max(KC / cin, 1);
}

// @ts-ignore: decorator
@inline
function channelsPerBlock(cin: i32): i32 {
  if (cin <= KC) return cin;
  const parts = (cin + KC - 1) / KC;
  return (cin + parts - 1) / parts;
}

// Copies n floats.
// @ts-ignore: decorator
@inline
function copyFloats(dst: usize, src: usize, n: i32): void {
  let i = 0;
  for (; i + 8 <= n; i += 8) {
    v128.store(dst, v128.load(src));
    v128.store(dst, v128.load(src, 16), 16);
    dst += 32;
    src += 32;
  }
  for (; i + 4 <= n; i += 4) {
    v128.store(dst, v128.load(src));
    dst += 16;
    src += 16;
  }
  for (; i < n; i++) {
    f32.store(dst, f32.load(src));
    dst += 4;
    src += 4;
  }
}

/** Sets n floats to zero. */
export function zero(dst: usize, n: i32): void {
  memory.fill(dst, 0, <usize>n << 2);
}

// Rows first … first+rows of the im2col matrix, taps t0 … t1, channels
// c0 … c0+cc: dst [rows][(t1-t0)·cc].
function im2col(
  x: usize, h: i32, w: i32, cin: i32, kw: i32, sh: i32, sw: i32, dh: i32,
  dw: i32, pt: i32, pl: i32, oh: i32, ow: i32, first: i32, rows: i32, t0: i32,
  t1: i32, c0: i32, cc: i32, dst: usize,
): void {
  let n = first / (oh * ow);
  let rest = first - n * oh * ow;
  let oy = rest / ow;
  let ox = rest - oy * ow;
  const bytes = <usize>cc << 2;
  x += <usize>c0 << 2;
  for (let r = 0; r < rows; r++) {
    const y0 = oy * sh - pt;
    const x0 = ox * sw - pl;
    let ky = t0 / kw;
    let kx = t0 - ky * kw;
    for (let t = t0; t < t1; t++) {
      const iy = y0 + ky * dh;
      const ix = x0 + kx * dw;
      if (<u32>iy < <u32>h && <u32>ix < <u32>w) {
        const at = (<usize>n * h + iy) * w + ix;
        copyFloats(dst, x + ((at * cin) << 2), cc);
      } else {
        memory.fill(dst, 0, bytes);
      }
      dst += bytes;
      if (++kx == kw) {
        kx = 0;
        ky++;
      }
    }
    if (++ox == ow) {
      ox = 0;
      if (++oy == oh) {
        oy = 0;
        n++;
      }
    }
  }
}

/** Floats of scratch that conv2d needs. */
export function convScratch(kh: i32, kw: i32, cin: i32, cout: i32): i32 {
  const n = (cout + NR - 1) & ~(NR - 1);
  const depth = min(kh * kw, tapsPerBlock(cin)) * channelsPerBlock(cin);
  return kh * kw * cin * n + MC * depth + WORK + 16;
}

/**
 * Convolution as a product of im2col blocks with the packed filter.
 *
 * x [b, h, w, cin], y [b, oh, ow, cout], bias [cout] or 0. The filter is read
 * as W(tap, ci, co) = f[tap·cin·cout + ci·rbs + co·cbs], taps backwards when
 * flip: so the same function does the input gradient of stride 1.
 */
export function conv2d(
  x: usize, b: i32, h: i32, w: i32, cin: i32, f: usize, kh: i32, kw: i32,
  rbs: i32, cbs: i32, flip: i32, sh: i32, sw: i32, dh: i32, dw: i32, pt: i32,
  pl: i32, oh: i32, ow: i32, cout: i32, y: usize, bias: usize, scratch: usize,
): void {
  const taps = kh * kw;
  const tb = min(tapsPerBlock(cin), taps);
  const cb = channelsPerBlock(cin);
  const panels = (cout + NR - 1) / NR;
  const tile = scratch;
  const packed = scratch + (WORK << 2);
  const columns = packed + ((<usize>taps * cin * panels * NR) << 2);
  const ts = <usize>cin * cout;
  // Pack the filter: for every depth block, panels of [depth][NR].
  let dst = packed;
  for (let t0 = 0; t0 < taps; t0 += tb) {
    const t1 = min(t0 + tb, taps);
    for (let c0 = 0; c0 < cin; c0 += cb) {
      const cc = min(cb, cin - c0);
      for (let j = 0; j < cout; j += NR) {
        const cols = min(NR, cout - j);
        for (let t = t0; t < t1; t++) {
          const tap = flip ? taps - 1 - t : t;
          const at = <usize>tap * ts + <usize>c0 * rbs + <usize>j * cbs;
          packPanel(f + (at << 2), rbs, cbs, cc, cols, dst);
          dst += (<usize>cc * NR) << 2;
        }
      }
    }
  }
  const m = b * oh * ow;
  for (let i = 0; i < m; i += MC) {
    const rows = min(MC, m - i);
    const yi = y + ((<usize>i * cout) << 2);
    let bp = packed;
    let add = 0;
    for (let t0 = 0; t0 < taps; t0 += tb) {
      const t1 = min(t0 + tb, taps);
      for (let c0 = 0; c0 < cin; c0 += cb) {
        const cc = min(cb, cin - c0);
        const kc = (t1 - t0) * cc;
        im2col(
          x, h, w, cin, kw, sh, sw, dh, dw, pt, pl, oh, ow, i, rows, t0, t1,
          c0, cc, columns,
        );
        block(
          0, columns, <usize>kc << 2, bp, rows, cout, kc, yi,
          <usize>cout << 2, add, bias, tile,
        );
        bp += (<usize>kc * panels * NR) << 2;
        add = 1;
      }
    }
  }
}

/** Floats of scratch that conv2dInputStrided needs. */
export function convInputStridedScratch(
  kh: i32, kw: i32, cin: i32, cout: i32,
): i32 {
  const k = kh * kw * cin;
  return MC * k + gemmScratch(MC, k, cout);
}

/**
 * Input gradient of any stride: dy·Wᵀ per block of output pixels, added to
 * the pixels it came from. dx [b, h, w, cin] is overwritten.
 */
export function conv2dInputStrided(
  dy: usize, b: i32, oh: i32, ow: i32, cout: i32, f: usize, kh: i32, kw: i32,
  sh: i32, sw: i32, dh: i32, dw: i32, pt: i32, pl: i32, h: i32, w: i32,
  cin: i32, dx: usize, scratch: usize,
): void {
  const taps = kh * kw;
  const k = taps * cin;
  const m = b * oh * ow;
  const columns = scratch;
  const rest = scratch + ((<usize>MC * k) << 2);
  zero(dx, b * h * w * cin);
  for (let i = 0; i < m; i += MC) {
    const rows = min(MC, m - i);
    gemm(
      dy + ((<usize>i * cout) << 2), cout, 1, f, 1, cout, columns, k, rows, k,
      cout, 0, 0, rest,
    );
    let src = columns;
    for (let r = i; r < i + rows; r++) {
      const n = r / (oh * ow);
      const o = r - n * oh * ow;
      const oy = o / ow;
      const y0 = oy * sh - pt;
      const x0 = (o - oy * ow) * sw - pl;
      for (let ky = 0; ky < kh; ky++) {
        const iy = y0 + ky * dh;
        for (let kx = 0; kx < kw; kx++) {
          const ix = x0 + kx * dw;
          if (<u32>iy < <u32>h && <u32>ix < <u32>w) {
            const at = (<usize>n * h + iy) * w + ix;
            addFloats(dx + ((at * cin) << 2), src, cin);
          }
          src += <usize>cin << 2;
        }
      }
    }
  }
}

// dst += src, n floats.
// @ts-ignore: decorator
@inline
function addFloats(dst: usize, src: usize, n: i32): void {
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    v128.store(dst, f32x4.add(v128.load(dst), v128.load(src)));
    dst += 16;
    src += 16;
  }
  for (; i < n; i++) {
    f32.store(dst, f32.load(dst) + f32.load(src));
    dst += 4;
    src += 4;
  }
}

// Output pixels summed at a time in the filter gradient.
const PIXELS: i32 = 256;

/** Floats of scratch that conv2dFilter needs. */
export function convFilterScratch(cin: i32, cout: i32): i32 {
  const n = (cout + NR - 1) & ~(NR - 1);
  return WORK + PIXELS * n + PIXELS + cin + MC * PIXELS + 16;
}

/**
 * Filter gradient: dw[tap, ci, co] = Σ over output pixels of x·dy.
 *
 * For a chunk of pixels and a tap, a table of addresses (padding points at
 * zeros) lets the transposed im2col panel be read straight from x.
 */
export function conv2dFilter(
  x: usize, b: i32, h: i32, w: i32, cin: i32, dy: usize, oh: i32, ow: i32,
  cout: i32, kh: i32, kw: i32, sh: i32, sw: i32, dh: i32, dw: i32, pt: i32,
  pl: i32, df: usize, scratch: usize,
): void {
  const m = b * oh * ow;
  const panels = (cout + NR - 1) / NR;
  const tile = scratch;
  const packedDy = tile + (WORK << 2);
  const table = packedDy + ((<usize>PIXELS * panels * NR) << 2);
  const zeros = table + (<usize>PIXELS << 2);
  const packedX = zeros + (<usize>cin << 2);
  zero(zeros, cin);
  if (m == 0) zero(df, kh * kw * cin * cout);
  for (let p = 0; p < m; p += PIXELS) {
    const pixels = min(PIXELS, m - p);
    const add = i32(p > 0);
    packB(
      dy + ((<usize>p * cout) << 2), cout, 1, pixels, cout, packedDy,
    );
    for (let ky = 0; ky < kh; ky++) {
      for (let kx = 0; kx < kw; kx++) {
        addresses(
          x, h, w, cin, sh, sw, ky * dh - pt, kx * dw - pl, oh, ow, p, pixels,
          zeros, table,
        );
        const row = df + ((<usize>(ky * kw + kx) * cin * cout) << 2);
        for (let c0 = 0; c0 < cin; c0 += MC) {
          const cc = min(MC, cin - c0);
          packGathered(table, pixels, c0, cc, packedX);
          block(
            1, packedX, 0, packedDy, cc, cout, pixels,
            row + ((<usize>c0 * cout) << 2), <usize>cout << 2, add, 0, tile,
          );
        }
      }
    }
  }
}

function addresses(
  x: usize, h: i32, w: i32, cin: i32, sh: i32, sw: i32, y0: i32, x0: i32,
  oh: i32, ow: i32, first: i32, count: i32, zeros: usize, table: usize,
): void {
  let n = first / (oh * ow);
  let o = first - n * oh * ow;
  let oy = o / ow;
  let ox = o - oy * ow;
  for (let i = 0; i < count; i++) {
    const iy = oy * sh + y0;
    const ix = ox * sw + x0;
    let at = zeros;
    if (<u32>iy < <u32>h && <u32>ix < <u32>w) {
      at = x + ((((<usize>n * h + iy) * w + ix) * cin) << 2);
    }
    store<u32>(table, <u32>at);
    table += 4;
    if (++ox == ow) {
      ox = 0;
      if (++oy == oh) {
        oy = 0;
        n++;
      }
    }
  }
}

// Channels c0 … c0+cc of the tabled pixels as panels [cc/MR][count][MR].
function packGathered(
  table: usize, count: i32, c0: i32, cc: i32, dst: usize,
): void {
  const end = table + (<usize>count << 2);
  for (let c = 0; c < cc; c += MR) {
    const o = <usize>(c0 + c) << 2;
    const wide = min(MR, cc - c);
    if (wide == MR) {
      for (let p = table; p < end; p += 4) {
        v128.store(dst, v128.load(<usize>load<u32>(p) + o));
        dst += 16;
      }
    } else {
      for (let p = table; p < end; p += 4) {
        const at = <usize>load<u32>(p) + o;
        let j = 0;
        for (; j < wide; j++) {
          f32.store(dst + (<usize>j << 2), f32.load(at + (<usize>j << 2)));
        }
        for (; j < MR; j++) f32.store(dst + (<usize>j << 2), 0);
        dst += 16;
      }
    }
  }
}

// ---------------------------------------------------------------- vectors

// Loads and stores four floats or, past the last multiple of four, one.
// @ts-ignore: decorator
@inline
function load4(p: usize, full: bool): v128 {
  return full ? v128.load(p) : v128.load32_splat(p);
}

// @ts-ignore: decorator
@inline
function store4(p: usize, x: v128, full: bool): void {
  if (full) v128.store(p, x);
  else v128.store_lane<f32>(p, x, 0);
}

// @ts-ignore: decorator
@inline
function splat(x: f32): v128 {
  return f32x4.splat(x);
}

// @ts-ignore: decorator
@inline
function sum4(x: v128): f32 {
  return f32x4.extract_lane(x, 0) + f32x4.extract_lane(x, 1) +
    (f32x4.extract_lane(x, 2) + f32x4.extract_lane(x, 3));
}

// eˣ to two units in the last place: 2ⁿ times a polynomial of the rest.
// Below -87.3, where the result is no longer a normal number, it is 0.
// @ts-ignore: decorator
@inline
function exp4(x: v128): v128 {
  const tiny = f32x4.lt(x, splat(-87.33));
  x = f32x4.min(f32x4.max(x, splat(-87.33)), splat(88.37));
  const n = f32x4.nearest(f32x4.mul(x, splat(1.4426950408889634)));
  // ln 2 in two parts, the first exact in few bits.
  x = f32x4.sub(x, f32x4.mul(n, splat(0.693359375)));
  x = f32x4.add(x, f32x4.mul(n, splat(2.12194440e-4)));
  let p = fma(splat(1.0 / 5040.0), x, splat(1.0 / 720.0));
  p = fma(p, x, splat(1.0 / 120.0));
  p = fma(p, x, splat(1.0 / 24.0));
  p = fma(p, x, splat(1.0 / 6.0));
  p = fma(p, x, splat(0.5));
  p = fma(p, x, splat(1));
  p = fma(p, x, splat(1));
  const power = i32x4.shl(
    i32x4.add(i32x4.trunc_sat_f32x4_s(n), i32x4.splat(127)),
    23,
  );
  return v128.andnot(f32x4.mul(p, power), tiny);
}

// @ts-ignore: decorator
@inline
function sigmoid4(x: v128): v128 {
  const one = splat(1);
  return f32x4.div(one, f32x4.add(one, exp4(f32x4.neg(x))));
}

// The normal distribution function given e = exp(-x²/2); Abramowitz and
// Stegun 7.1.26, 1.5e-7 absolute, as tfjs's own erf.
// @ts-ignore: decorator
@inline
function phi4(x: v128, e: v128): v128 {
  const one = splat(1);
  const u = f32x4.mul(f32x4.abs(x), splat(0.7071067811865476));
  const t = f32x4.div(one, fma(splat(0.3275911), u, one));
  let p = fma(splat(1.061405429), t, splat(-1.453152027));
  p = fma(p, t, splat(1.421413741));
  p = fma(p, t, splat(-0.284496736));
  p = fma(p, t, splat(0.254829592));
  const tail = f32x4.mul(f32x4.mul(f32x4.mul(p, t), e), splat(0.5));
  return v128.bitselect(
    tail,
    f32x4.sub(one, tail),
    f32x4.lt(x, splat(0)),
  );
}

// @ts-ignore: decorator
@inline
function bell4(x: v128): v128 {
  return exp4(f32x4.mul(f32x4.mul(x, x), splat(-0.5)));
}

// ---------------------------------------------------------------- pointwise

const SILU: i32 = 0;
const GELU: i32 = 1;
const QUICK_GELU: i32 = 2;

// @ts-ignore: decorator
@inline
function act4(kind: i32, x: v128): v128 {
  if (kind == SILU) return f32x4.mul(x, sigmoid4(x));
  if (kind == GELU) return f32x4.mul(x, phi4(x, bell4(x)));
  return f32x4.mul(x, sigmoid4(f32x4.mul(x, splat(1.702))));
}

// @ts-ignore: decorator
@inline
function actGrad4(kind: i32, x: v128): v128 {
  const one = splat(1);
  if (kind == SILU) {
    const s = sigmoid4(x);
    return f32x4.mul(s, fma(x, f32x4.sub(one, s), one));
  }
  if (kind == GELU) {
    const e = bell4(x);
    return fma(f32x4.mul(x, splat(0.3989422804014327)), e, phi4(x, e));
  }
  const z = f32x4.mul(x, splat(1.702));
  const s = sigmoid4(z);
  return f32x4.mul(s, fma(z, f32x4.sub(one, s), one));
}

// @ts-ignore: decorator
@inline
function actLoop(kind: i32, x: usize, y: usize, n: i32): void {
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    v128.store(y, act4(kind, v128.load(x)));
    x += 16;
    y += 16;
  }
  for (; i < n; i++) {
    store4(y, act4(kind, load4(x, false)), false);
    x += 4;
    y += 4;
  }
}

// @ts-ignore: decorator
@inline
function actGradLoop(kind: i32, x: usize, dy: usize, dx: usize, n: i32): void {
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    v128.store(dx, f32x4.mul(v128.load(dy), actGrad4(kind, v128.load(x))));
    x += 16;
    dy += 16;
    dx += 16;
  }
  for (; i < n; i++) {
    const g = f32x4.mul(load4(dy, false), actGrad4(kind, load4(x, false)));
    store4(dx, g, false);
    x += 4;
    dy += 4;
    dx += 4;
  }
}

// Pieces short enough that the compiler can replace the loop's code between
// two of them: a loop entered once would stay in baseline code.
const PIECE: i32 = 4096;

function actPiece(kind: i32, x: usize, y: usize, n: i32): void {
  if (kind == SILU) actLoop(SILU, x, y, n);
  else if (kind == GELU) actLoop(GELU, x, y, n);
  else actLoop(QUICK_GELU, x, y, n);
}

function actGradPiece(
  kind: i32, x: usize, dy: usize, dx: usize, n: i32,
): void {
  if (kind == SILU) actGradLoop(SILU, x, dy, dx, n);
  else if (kind == GELU) actGradLoop(GELU, x, dy, dx, n);
  else actGradLoop(QUICK_GELU, x, dy, dx, n);
}

/** y = activation(x): 0 silu, 1 exact gelu, 2 quick gelu. */
export function activation(kind: i32, x: usize, y: usize, n: i32): void {
  for (let i = 0; i < n; i += PIECE) {
    const o = <usize>i << 2;
    actPiece(kind, x + o, y + o, min(PIECE, n - i));
  }
}

/** dx = dy·activation'(x). */
export function activationGrad(
  kind: i32, x: usize, dy: usize, dx: usize, n: i32,
): void {
  for (let i = 0; i < n; i += PIECE) {
    const o = <usize>i << 2;
    actGradPiece(kind, x + o, dy + o, dx + o, min(PIECE, n - i));
  }
}

// @ts-ignore: decorator
@inline
function geglu4(h: usize, g: usize, y: usize, full: bool): void {
  store4(y, f32x4.mul(load4(h, full), act4(GELU, load4(g, full))), full);
}

function gegluRow(x: usize, y: usize, c: i32): void {
  let g = x + (<usize>c << 2);
  let i = 0;
  for (; i + 4 <= c; i += 4) {
    geglu4(x, g, y, true);
    x += 16;
    g += 16;
    y += 16;
  }
  for (; i < c; i++) {
    geglu4(x, g, y, false);
    x += 4;
    g += 4;
    y += 4;
  }
}

/** y [rows, c] = x[:, :c]·gelu(x[:, c:]), x [rows, 2c]. */
export function geglu(x: usize, y: usize, rows: i32, c: i32): void {
  for (let r = 0; r < rows; r++) {
    gegluRow(x, y, c);
    x += <usize>c << 3;
    y += <usize>c << 2;
  }
}

// @ts-ignore: decorator
@inline
function gegluGrad4(
  h: usize, g: usize, dy: usize, dh: usize, dg: usize, full: bool,
): void {
  const x = load4(g, full);
  const e = bell4(x);
  const phi = phi4(x, e);
  const d = load4(dy, full);
  store4(dh, f32x4.mul(d, f32x4.mul(x, phi)), full);
  const slope = fma(f32x4.mul(x, splat(0.3989422804014327)), e, phi);
  store4(dg, f32x4.mul(f32x4.mul(d, load4(h, full)), slope), full);
}

function gegluGradRow(x: usize, dy: usize, dx: usize, c: i32): void {
  const half = <usize>c << 2;
  let i = 0;
  for (; i + 4 <= c; i += 4) {
    gegluGrad4(x, x + half, dy, dx, dx + half, true);
    x += 16;
    dy += 16;
    dx += 16;
  }
  for (; i < c; i++) {
    gegluGrad4(x, x + half, dy, dx, dx + half, false);
    x += 4;
    dy += 4;
    dx += 4;
  }
}

/** Gradient of geglu, dx [rows, 2c]. */
export function gegluGrad(
  x: usize, dy: usize, dx: usize, rows: i32, c: i32,
): void {
  for (let r = 0; r < rows; r++) {
    gegluGradRow(x, dy, dx, c);
    x += <usize>c << 3;
    dy += <usize>c << 2;
    dx += <usize>c << 3;
  }
}

// ---------------------------------------------------------------- sums

// y[0…c) (+)= column sums of x [rows, c].
function columnSums(x: usize, rows: i32, c: i32, y: usize, add: bool): void {
  const stride = <usize>c << 2;
  let j = 0;
  for (; j + 16 <= c; j += 16) {
    const o = <usize>j << 2;
    let p = x + o;
    let s0 = splat(0), s1 = s0, s2 = s0, s3 = s0;
    for (let r = 0; r < rows; r++) {
      s0 = f32x4.add(s0, v128.load(p));
      s1 = f32x4.add(s1, v128.load(p, 16));
      s2 = f32x4.add(s2, v128.load(p, 32));
      s3 = f32x4.add(s3, v128.load(p, 48));
      p += stride;
    }
    sumTo(y + o, s0, add, true);
    sumTo(y + o + 16, s1, add, true);
    sumTo(y + o + 32, s2, add, true);
    sumTo(y + o + 48, s3, add, true);
  }
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    let p = x + o;
    let s = splat(0);
    for (let r = 0; r < rows; r++) {
      s = f32x4.add(s, v128.load(p));
      p += stride;
    }
    sumTo(y + o, s, add, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    let p = x + o;
    let s = splat(0);
    for (let r = 0; r < rows; r++) {
      s = f32x4.add(s, load4(p, false));
      p += stride;
    }
    sumTo(y + o, s, add, false);
  }
}

// @ts-ignore: decorator
@inline
function sumTo(y: usize, s: v128, add: bool, full: bool): void {
  store4(y, add ? f32x4.add(load4(y, full), s) : s, full);
}

// Sum of n contiguous floats, in blocks so that the error stays small.
function rowSum(x: usize, n: i32): f32 {
  let s0 = splat(0), s1 = s0, s2 = s0, s3 = s0;
  let i = 0;
  for (; i + 16 <= n; i += 16) {
    s0 = f32x4.add(s0, v128.load(x));
    s1 = f32x4.add(s1, v128.load(x, 16));
    s2 = f32x4.add(s2, v128.load(x, 32));
    s3 = f32x4.add(s3, v128.load(x, 48));
    x += 64;
  }
  let s = sum4(f32x4.add(f32x4.add(s0, s1), f32x4.add(s2, s3)));
  for (; i < n; i++) {
    s += f32.load(x);
    x += 4;
  }
  return s;
}

/** y [outer, inner] = scale · Σ over the middle axis of x [outer, n, inner]. */
export function sumMiddle(
  x: usize, outer: i32, n: i32, inner: i32, scale: f32, y: usize,
): void {
  const total = outer * inner;
  if (inner == 1) {
    for (let o = 0; o < outer; o++) {
      let s: f32 = 0;
      for (let i = 0; i < n; i += PIECE) {
        const piece = min(PIECE, n - i);
        s += rowSum(x, piece);
        x += <usize>piece << 2;
      }
      f32.store(y + (<usize>o << 2), s);
    }
  } else {
    // Blocks of 256 rows: shorter sums, and cache lines are used whole.
    for (let o = 0; o < outer; o++) {
      const yo = y + ((<usize>o * inner) << 2);
      if (n == 0) zero(yo, inner);
      for (let i = 0; i < n; i += 256) {
        const rows = min(256, n - i);
        columnSums(x, rows, inner, yo, i > 0);
        x += (<usize>rows * inner) << 2;
      }
    }
  }
  if (scale != 1) {
    for (let i = 0; i < total; i++) {
      f32.store(y, f32.load(y) * scale);
      y += 4;
    }
  }
}

// ---------------------------------------------------------------- norms

/** Floats of scratch that groupNorm and groupNormGrad need. */
export function groupNormScratch(c: i32): i32 {
  return 8 * c + 16;
}

// Columns of Σ (x - mean)², mean [c].
function columnSquares(
  x: usize, mean: usize, rows: i32, c: i32, y: usize, add: bool,
): void {
  const stride = <usize>c << 2;
  let j = 0;
  for (; j + 8 <= c; j += 8) {
    const o = <usize>j << 2;
    const m0 = v128.load(mean + o), m1 = v128.load(mean + o, 16);
    let p = x + o;
    let s0 = splat(0), s1 = s0;
    for (let r = 0; r < rows; r++) {
      const d0 = f32x4.sub(v128.load(p), m0);
      const d1 = f32x4.sub(v128.load(p, 16), m1);
      s0 = fma(d0, d0, s0);
      s1 = fma(d1, d1, s1);
      p += stride;
    }
    sumTo(y + o, s0, add, true);
    sumTo(y + o + 16, s1, add, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    const m = load4(mean + o, false);
    let p = x + o;
    let s = splat(0);
    for (let r = 0; r < rows; r++) {
      const d = f32x4.sub(load4(p, false), m);
      s = fma(d, d, s);
      p += stride;
    }
    sumTo(y + o, s, add, false);
  }
}

// @ts-ignore: decorator
@inline
function affine4(
  x: usize, a: usize, b: usize, y: usize, silu: bool, full: bool,
): void {
  let z = fma(load4(x, full), load4(a, full), load4(b, full));
  if (silu) z = f32x4.mul(z, sigmoid4(z));
  store4(y, z, full);
}

// y = x·a + b per channel, then silu.
function affineRow(
  x: usize, a: usize, b: usize, y: usize, c: i32, silu: bool,
): void {
  let j = 0;
  if (silu) {
    for (; j + 4 <= c; j += 4) {
      const o = <usize>j << 2;
      affine4(x + o, a + o, b + o, y + o, true, true);
    }
  } else {
    for (; j + 4 <= c; j += 4) {
      const o = <usize>j << 2;
      affine4(x + o, a + o, b + o, y + o, false, true);
    }
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    affine4(x + o, a + o, b + o, y + o, silu, false);
  }
}

// Spreads the groups' mean over channels, and makes a = γ/σ, b = β - mean·a.
function spread(
  stats: usize, groups: i32, c: i32, gamma: usize, beta: usize, mean: usize,
  a: usize, b: usize,
): void {
  const width = c / groups;
  for (let g = 0; g < groups; g++) {
    const mu = f32.load(stats + (<usize>g << 3));
    const rstd = f32.load(stats + (<usize>g << 3), 4);
    for (let j = g * width; j < (g + 1) * width; j++) {
      const o = <usize>j << 2;
      const scale = f32.load(gamma + o) * rstd;
      f32.store(mean + o, mu);
      f32.store(a + o, scale);
      f32.store(b + o, f32.load(beta + o) - mu * scale);
    }
  }
}

/**
 * Group normalisation of x [b, n, c]; stats [b, groups, 2] receives the mean
 * and the reciprocal standard deviation for the gradient.
 */
export function groupNorm(
  x: usize, b: i32, n: i32, c: i32, groups: i32, gamma: usize, beta: usize,
  eps: f32, silu: i32, y: usize, stats: usize, scratch: usize,
): void {
  const row = <usize>c << 2;
  const image = <usize>n * row;
  const mean = scratch, a = scratch + row, bb = scratch + 2 * row;
  const sums = scratch + 3 * row;
  const width = c / groups;
  const count = <f64>n * <f64>width;
  for (let i = 0; i < b; i++) {
    for (let r = 0; r < n; r += 256) {
      columnSums(x + <usize>r * row, min(256, n - r), c, sums, r > 0);
    }
    for (let g = 0; g < groups; g++) {
      let s: f64 = 0;
      for (let j = g * width; j < (g + 1) * width; j++) {
        s += <f64>f32.load(sums + (<usize>j << 2));
      }
      const mu = <f32>(s / count);
      f32.store(stats + (<usize>g << 3), mu);
      for (let j = g * width; j < (g + 1) * width; j++) {
        f32.store(mean + (<usize>j << 2), mu);
      }
    }
    for (let r = 0; r < n; r += 256) {
      columnSquares(
        x + <usize>r * row, mean, min(256, n - r), c, sums, r > 0,
      );
    }
    for (let g = 0; g < groups; g++) {
      let s: f64 = 0;
      for (let j = g * width; j < (g + 1) * width; j++) {
        s += <f64>f32.load(sums + (<usize>j << 2));
      }
      const rstd = <f32>(1 / Math.sqrt(s / count + <f64>eps));
      f32.store(stats + (<usize>g << 3), rstd, 4);
    }
    spread(stats, groups, c, gamma, beta, mean, a, bb);
    for (let r = 0; r < n; r++) {
      affineRow(x, a, bb, y, c, silu != 0);
      x += row;
      y += row;
    }
    stats += <usize>groups << 3;
  }
}

// @ts-ignore: decorator
@inline
function normGrad4(
  x: usize, dy: usize, dz: usize, mean: usize, a: usize, b: usize, s1: usize,
  s2: usize, silu: bool, full: bool,
): void {
  const v = load4(x, full);
  let d = load4(dy, full);
  if (silu) {
    d = f32x4.mul(d, actGrad4(SILU, fma(v, load4(a, full), load4(b, full))));
  }
  store4(dz, d, full);
  store4(s1, f32x4.add(load4(s1, full), d), full);
  const centred = f32x4.sub(v, load4(mean, full));
  store4(s2, fma(d, centred, load4(s2, full)), full);
}

// dz = dy·silu'(pre), s1 += dz, s2 += dz·(x - mean), for one row.
function normGradRow(
  x: usize, dy: usize, dz: usize, mean: usize, a: usize, b: usize, s1: usize,
  s2: usize, c: i32, silu: bool,
): void {
  let j = 0;
  if (silu) {
    for (; j + 4 <= c; j += 4) {
      const o = <usize>j << 2;
      normGrad4(
        x + o, dy + o, dz + o, mean + o, a + o, b + o, s1 + o, s2 + o, true,
        true,
      );
    }
  } else {
    for (; j + 4 <= c; j += 4) {
      const o = <usize>j << 2;
      normGrad4(
        x + o, dy + o, dz + o, mean + o, a + o, b + o, s1 + o, s2 + o, false,
        true,
      );
    }
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    normGrad4(
      x + o, dy + o, dz + o, mean + o, a + o, b + o, s1 + o, s2 + o, silu,
      false,
    );
  }
}

// @ts-ignore: decorator
@inline
function normBack4(
  x: usize, dx: usize, mean: usize, a: usize, c1: usize, c2: usize, full: bool,
): void {
  const centred = f32x4.sub(load4(x, full), load4(mean, full));
  const rest = fma(centred, load4(c2, full), load4(c1, full));
  store4(dx, fma(load4(dx, full), load4(a, full), rest), full);
}

// dx = dz·a + (x - mean)·c2 + c1, for one row; dz is in dx.
function normBackRow(
  x: usize, dx: usize, mean: usize, a: usize, c1: usize, c2: usize, c: i32,
): void {
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    normBack4(x + o, dx + o, mean + o, a + o, c1 + o, c2 + o, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    normBack4(x + o, dx + o, mean + o, a + o, c1 + o, c2 + o, false);
  }
}

/** Gradient of groupNorm; dgamma and dbeta [c] are overwritten. */
export function groupNormGrad(
  x: usize, dy: usize, b: i32, n: i32, c: i32, groups: i32, gamma: usize,
  beta: usize, silu: i32, stats: usize, dx: usize, dgamma: usize,
  dbeta: usize, scratch: usize,
): void {
  const row = <usize>c << 2;
  const mean = scratch, a = scratch + row, bb = scratch + 2 * row;
  const s1 = scratch + 3 * row, s2 = scratch + 4 * row;
  const c1 = scratch + 5 * row, c2 = scratch + 6 * row;
  const width = c / groups;
  const count = <f32>n * <f32>width;
  zero(dgamma, c);
  zero(dbeta, c);
  for (let i = 0; i < b; i++) {
    spread(stats, groups, c, gamma, beta, mean, a, bb);
    zero(s1, c);
    zero(s2, c);
    let p = x, q = dx;
    for (let r = 0; r < n; r++) {
      normGradRow(p, dy, q, mean, a, bb, s1, s2, c, silu != 0);
      p += row;
      q += row;
      dy += row;
    }
    for (let g = 0; g < groups; g++) {
      const rstd = f32.load(stats + (<usize>g << 3), 4);
      let t1: f32 = 0, t2: f32 = 0;
      for (let j = g * width; j < (g + 1) * width; j++) {
        const o = <usize>j << 2;
        const d1 = f32.load(s1 + o), d2 = f32.load(s2 + o) * rstd;
        f32.store(dbeta + o, f32.load(dbeta + o) + d1);
        f32.store(dgamma + o, f32.load(dgamma + o) + d2);
        t1 += f32.load(gamma + o) * d1;
        t2 += f32.load(gamma + o) * d2;
      }
      for (let j = g * width; j < (g + 1) * width; j++) {
        const o = <usize>j << 2;
        f32.store(c1 + o, -rstd * t1 / count);
        f32.store(c2 + o, -rstd * rstd * t2 / count);
      }
    }
    for (let r = 0; r < n; r++) {
      normBackRow(x, dx, mean, a, c1, c2, c);
      x += row;
      dx += row;
    }
    stats += <usize>groups << 3;
  }
}

// Mean of a row, and 1/√(variance + eps) through the second pointer.
function rowStats(x: usize, c: i32, eps: f32, out: usize): void {
  const mu = rowSum(x, c) / <f32>c;
  const m = splat(mu);
  let s = splat(0);
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const d = f32x4.sub(v128.load(x + (<usize>j << 2)), m);
    s = fma(d, d, s);
  }
  let variance = sum4(s);
  for (; j < c; j++) {
    const d = f32.load(x + (<usize>j << 2)) - mu;
    variance += d * d;
  }
  f32.store(out, mu);
  f32.store(out, <f32>1 / Mathf.sqrt(variance / <f32>c + eps), 4);
}

// @ts-ignore: decorator
@inline
function layer4(
  x: usize, mu: v128, rstd: v128, gamma: usize, beta: usize, y: usize,
  full: bool,
): void {
  const unit = f32x4.mul(f32x4.sub(load4(x, full), mu), rstd);
  store4(y, fma(unit, load4(gamma, full), load4(beta, full)), full);
}

function layerRow(
  x: usize, c: i32, gamma: usize, beta: usize, y: usize, stats: usize,
): void {
  const mu = v128.load32_splat(stats), rstd = v128.load32_splat(stats, 4);
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    layer4(x + o, mu, rstd, gamma + o, beta + o, y + o, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    layer4(x + o, mu, rstd, gamma + o, beta + o, y + o, false);
  }
}

/** Floats of scratch that layerNorm and layerNormGrad need. */
export function layerNormScratch(): i32 {
  return 4;
}

/** Layer normalisation of x [rows, c]; scratch 4 floats. */
export function layerNorm(
  x: usize, rows: i32, c: i32, gamma: usize, beta: usize, eps: f32, y: usize,
  scratch: usize,
): void {
  const row = <usize>c << 2;
  for (let r = 0; r < rows; r++) {
    rowStats(x, c, eps, scratch);
    layerRow(x, c, gamma, beta, y, scratch);
    x += row;
    y += row;
  }
}

// First pass: dgamma += dy·x̂, dbeta += dy; returns Σ γ·dy and Σ γ·dy·x̂.
function layerGradSums(
  x: usize, dy: usize, c: i32, gamma: usize, dgamma: usize, dbeta: usize,
  stats: usize,
): void {
  const mu = v128.load32_splat(stats), rstd = v128.load32_splat(stats, 4);
  let t1 = splat(0), t2 = t1;
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    const unit = f32x4.mul(f32x4.sub(v128.load(x + o), mu), rstd);
    const d = v128.load(dy + o);
    v128.store(dbeta + o, f32x4.add(v128.load(dbeta + o), d));
    v128.store(dgamma + o, fma(d, unit, v128.load(dgamma + o)));
    const g = f32x4.mul(d, v128.load(gamma + o));
    t1 = f32x4.add(t1, g);
    t2 = fma(g, unit, t2);
  }
  let u1 = sum4(t1), u2 = sum4(t2);
  for (; j < c; j++) {
    const o = <usize>j << 2;
    const unit = (f32.load(x + o) - f32.load(stats)) * f32.load(stats, 4);
    const d = f32.load(dy + o);
    f32.store(dbeta + o, f32.load(dbeta + o) + d);
    f32.store(dgamma + o, f32.load(dgamma + o) + d * unit);
    const g = d * f32.load(gamma + o);
    u1 += g;
    u2 += g * unit;
  }
  f32.store(stats, u1 / <f32>c, 8);
  f32.store(stats, u2 / <f32>c, 12);
}

// @ts-ignore: decorator
@inline
function layerBack4(
  x: usize, dy: usize, gamma: usize, dx: usize, mu: v128, rstd: v128, t1: v128,
  t2: v128, full: bool,
): void {
  const unit = f32x4.mul(f32x4.sub(load4(x, full), mu), rstd);
  const g = f32x4.sub(f32x4.mul(load4(dy, full), load4(gamma, full)), t1);
  store4(dx, f32x4.mul(f32x4.sub(g, f32x4.mul(unit, t2)), rstd), full);
}

function layerGradRow(
  x: usize, dy: usize, c: i32, gamma: usize, dx: usize, stats: usize,
): void {
  const mu = v128.load32_splat(stats), rstd = v128.load32_splat(stats, 4);
  const t1 = v128.load32_splat(stats, 8), t2 = v128.load32_splat(stats, 12);
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    layerBack4(x + o, dy + o, gamma + o, dx + o, mu, rstd, t1, t2, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    layerBack4(x + o, dy + o, gamma + o, dx + o, mu, rstd, t1, t2, false);
  }
}

/** Gradient of layerNorm; scratch 4 floats. */
export function layerNormGrad(
  x: usize, dy: usize, rows: i32, c: i32, gamma: usize, eps: f32, dx: usize,
  dgamma: usize, dbeta: usize, scratch: usize,
): void {
  const row = <usize>c << 2;
  zero(dgamma, c);
  zero(dbeta, c);
  for (let r = 0; r < rows; r++) {
    rowStats(x, c, eps, scratch);
    layerGradSums(x, dy, c, gamma, dgamma, dbeta, scratch);
    layerGradRow(x, dy, c, gamma, dx, scratch);
    x += row;
    dy += row;
    dx += row;
  }
}

// ---------------------------------------------------------------- attention

// Softmax of scale·s (+ mask) over the first len of m entries; the rest is 0.
function softmaxRow(
  s: usize, len: i32, m: i32, scale: f32, mask: usize,
): void {
  const f = splat(scale);
  let top = splat(-3e38);
  let j = 0;
  if (mask) {
    for (; j + 4 <= len; j += 4) {
      const o = <usize>j << 2;
      const v = fma(v128.load(s + o), f, v128.load(mask + o));
      v128.store(s + o, v);
      top = f32x4.max(top, v);
    }
  } else {
    for (; j + 4 <= len; j += 4) {
      const o = <usize>j << 2;
      const v = f32x4.mul(v128.load(s + o), f);
      v128.store(s + o, v);
      top = f32x4.max(top, v);
    }
  }
  for (; j < len; j++) {
    const o = <usize>j << 2;
    let v = f32x4.mul(load4(s + o, false), f);
    if (mask) v = f32x4.add(v, load4(mask + o, false));
    store4(s + o, v, false);
    top = f32x4.max(top, v);
  }
  const t0 = f32x4.max(top, v128.shuffle<f32>(top, top, 2, 3, 0, 1));
  top = f32x4.max(t0, v128.shuffle<f32>(t0, t0, 1, 0, 3, 2));
  let total = splat(0);
  for (j = 0; j + 4 <= len; j += 4) {
    const o = <usize>j << 2;
    const e = exp4(f32x4.sub(v128.load(s + o), top));
    v128.store(s + o, e);
    total = f32x4.add(total, e);
  }
  let sum = sum4(total);
  for (; j < len; j++) {
    const o = <usize>j << 2;
    const e = exp4(f32x4.sub(load4(s + o, false), top));
    store4(s + o, e, false);
    sum += f32x4.extract_lane(e, 0);
  }
  const r = splat(<f32>1 / sum);
  for (j = 0; j + 4 <= len; j += 4) {
    const o = <usize>j << 2;
    v128.store(s + o, f32x4.mul(v128.load(s + o), r));
  }
  for (; j < len; j++) {
    const o = <usize>j << 2;
    store4(s + o, f32x4.mul(load4(s + o, false), r), false);
  }
  if (len < m) zero(s + (<usize>len << 2), m - len);
}

// dp = p·(dp - Σ p·dp)·scale.
function softmaxGradRow(p: usize, dp: usize, m: i32, scale: f32): void {
  let total = splat(0);
  let j = 0;
  for (; j + 4 <= m; j += 4) {
    const o = <usize>j << 2;
    total = fma(v128.load(p + o), v128.load(dp + o), total);
  }
  let sum = sum4(total);
  for (; j < m; j++) {
    const o = <usize>j << 2;
    sum += f32.load(p + o) * f32.load(dp + o);
  }
  const t = splat(sum), f = splat(scale);
  for (j = 0; j + 4 <= m; j += 4) {
    const o = <usize>j << 2;
    const d = f32x4.mul(f32x4.sub(v128.load(dp + o), t), f);
    v128.store(dp + o, f32x4.mul(v128.load(p + o), d));
  }
  for (; j < m; j++) {
    const o = <usize>j << 2;
    const d = f32x4.mul(f32x4.sub(load4(dp + o, false), t), f);
    store4(dp + o, f32x4.mul(load4(p + o, false), d), false);
  }
}

// Query rows handled at a time: 64 Ki scores stay in the second cache.
function attentionRows(n: i32, m: i32): i32 {
  return min(n, max(16, 65536 / m));
}

/** Floats of scratch that attention and attentionGrad need. */
export function attentionScratch(n: i32, m: i32, d: i32): i32 {
  const rows = attentionRows(n, m);
  const work = max(
    max(gemmScratch(rows, m, d), gemmScratch(rows, d, m)),
    gemmScratch(m, d, rows),
  );
  return 2 * rows * m + work;
}

function scores(
  q: usize, k: usize, c: i32, d: i32, rows: i32, m: i32, first: i32,
  scale: f32, mask: usize, causal: i32, s: usize, work: usize,
): void {
  gemm(q, c, 1, k, 1, c, s, m, rows, m, d, 0, 0, work);
  for (let r = 0; r < rows; r++) {
    const i = first + r;
    softmaxRow(
      s + ((<usize>r * m) << 2), causal ? min(i + 1, m) : m, m, scale,
      mask ? mask + ((<usize>i * m) << 2) : 0,
    );
  }
}

/**
 * y [b, n, c] = softmax(scale·q·kᵀ + mask)·v per head, heads read in place
 * from q [b, n, c], k and v [b, m, c]; mask [n, m] or 0. Heads of all items are
 * numbered through; those from … to − 1 are done, n > 0.
 */
export function attention(
  q: usize, k: usize, v: usize, from: i32, to: i32, n: i32, m: i32, c: i32,
  heads: i32, scale: f32, mask: usize, causal: i32, y: usize, scratch: usize,
): void {
  const d = c / heads;
  const chunk = attentionRows(n, m);
  const s = scratch;
  const work = scratch + ((<usize>chunk * m) << 2);
  for (let u = from; u < to; u++) {
    const i = u / heads;
    const o = <usize>(u - i * heads) * d;
    const qo = (<usize>i * n * c + o) << 2;
    const ko = (<usize>i * m * c + o) << 2;
    for (let first = 0; first < n; first += chunk) {
      const rows = min(chunk, n - first);
      const at = qo + ((<usize>first * c) << 2);
      scores(
        q + at, k + ko, c, d, rows, m, first, scale, mask, causal, s, work,
      );
      gemm(s, m, 1, v + ko, c, 1, y + at, c, rows, d, m, 0, 0, work);
    }
  }
}

/** Gradient of attention; the weights are made again, chunk by chunk. */
export function attentionGrad(
  q: usize, k: usize, v: usize, dy: usize, from: i32, to: i32, n: i32, m: i32,
  c: i32, heads: i32, scale: f32, mask: usize, causal: i32, dq: usize,
  dk: usize, dv: usize, scratch: usize,
): void {
  const d = c / heads;
  const chunk = attentionRows(n, m);
  const p = scratch;
  const dp = scratch + ((<usize>chunk * m) << 2);
  const work = dp + ((<usize>chunk * m) << 2);
  for (let u = from; u < to; u++) {
    const i = u / heads;
    const o = <usize>(u - i * heads) * d;
    const qo = (<usize>i * n * c + o) << 2;
    const ko = (<usize>i * m * c + o) << 2;
    for (let first = 0; first < n; first += chunk) {
      const rows = min(chunk, n - first);
      const at = qo + ((<usize>first * c) << 2);
      const flags = first > 0 ? ACCUMULATE : 0;
      scores(
        q + at, k + ko, c, d, rows, m, first, scale, mask, causal, p, work,
      );
      gemm(p, 1, m, dy + at, c, 1, dv + ko, c, m, d, rows, flags, 0, work);
      gemm(dy + at, c, 1, v + ko, 1, c, dp, m, rows, m, d, 0, 0, work);
      for (let r = 0; r < rows; r++) {
        const ro = (<usize>r * m) << 2;
        softmaxGradRow(p + ro, dp + ro, m, scale);
      }
      gemm(dp, m, 1, k + ko, c, 1, dq + at, c, rows, d, m, 0, 0, work);
      gemm(dp, 1, m, q + at, c, 1, dk + ko, c, m, d, rows, flags, 0, work);
    }
  }
}

// ---------------------------------------------------------------- pixels

/** y [b, 2h, 2w, c] = every pixel of x [b, h, w, c] twice each way. */
export function upsample(
  x: usize, rows: i32, w: i32, c: i32, y: usize,
): void {
  const pixel = <usize>c << 2;
  const line = <usize>w * pixel * 2;
  for (let r = 0; r < rows; r++) {
    const start = y;
    for (let i = 0; i < w; i++) {
      copyFloats(y, x, c);
      copyFloats(y + pixel, x, c);
      x += pixel;
      y += 2 * pixel;
    }
    memory.copy(y, start, line);
    y += line;
  }
}

// @ts-ignore: decorator
@inline
function four(a: usize, line: usize, pixel: usize, dx: usize, full: bool): void {
  const top = f32x4.add(load4(a, full), load4(a + pixel, full));
  const low = f32x4.add(load4(a + line, full), load4(a + line + pixel, full));
  store4(dx, f32x4.add(top, low), full);
}

/** Gradient of upsample: sums of 2×2 pixels. */
export function upsampleGrad(
  dy: usize, rows: i32, w: i32, c: i32, dx: usize,
): void {
  const pixel = <usize>c << 2;
  const line = <usize>w * pixel * 2;
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < w; i++) {
      upsampleGradPixel(dy, line, c, dx);
      dx += pixel;
      dy += 2 * pixel;
    }
    dy += line;
  }
}

function upsampleGradPixel(dy: usize, line: usize, c: i32, dx: usize): void {
  const pixel = <usize>c << 2;
  let j = 0;
  for (; j + 4 <= c; j += 4) {
    const o = <usize>j << 2;
    four(dy + o, line, pixel, dx + o, true);
  }
  for (; j < c; j++) {
    const o = <usize>j << 2;
    four(dy + o, line, pixel, dx + o, false);
  }
}

// ---------------------------------------------------------------- optimiser

// @ts-ignore: decorator
@inline
function adam4(
  p: usize, g: usize, m: usize, v: usize, p2: usize, m2: usize, v2: usize,
  beta1: v128, rest1: v128, beta2: v128, rest2: v128, rate: v128, root: v128,
  eps: v128, keep: v128, full: bool,
): void {
  const grad = load4(g, full);
  const mm = fma(load4(m, full), beta1, f32x4.mul(grad, rest1));
  const vv = fma(
    load4(v, full),
    beta2,
    f32x4.mul(f32x4.mul(grad, grad), rest2),
  );
  store4(m2, mm, full);
  store4(v2, vv, full);
  const below = fma(f32x4.sqrt(vv), root, eps);
  const step = f32x4.div(f32x4.mul(mm, rate), below);
  store4(p2, f32x4.sub(f32x4.mul(load4(p, full), keep), step), full);
}

/** One AdamW step of n parameters into new tensors p2, m2, v2. */
export function adamw(
  p: usize, g: usize, m: usize, v: usize, p2: usize, m2: usize, v2: usize,
  n: i32, beta1: f32, rest1: f32, beta2: f32, rest2: f32, rate: f32,
  root: f32, eps: f32, keep: f32,
): void {
  const b1 = splat(beta1), r1 = splat(rest1), b2 = splat(beta2);
  const r2 = splat(rest2), ra = splat(rate), ro = splat(root);
  const e = splat(eps), k = splat(keep);
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    adam4(
      p + o, g + o, m + o, v + o, p2 + o, m2 + o, v2 + o, b1, r1, b2, r2, ra,
      ro, e, k, true,
    );
  }
  for (; i < n; i++) {
    const o = <usize>i << 2;
    adam4(
      p + o, g + o, m + o, v + o, p2 + o, m2 + o, v2 + o, b1, r1, b2, r2, ra,
      ro, e, k, false,
    );
  }
}

// ---------------------------------------------------------------- winograd

// Convolutions 3×3 of stride 1 by F(2×2, 3×3) (Winograd 1980; Lavin and Gray
// 2015): 16 instead of 36 multiplications for four output pixels. Filters
// become U [16][cin][cout], 4×4 patches of x become V [16][tiles][cin], and
// M[p] = V[p]·U[p] becomes 2×2 pixels of y.

// Tiles handled at a time, so that V and M stay in the second cache.
const TILES: i32 = 64;

/** Floats of scratch that winograd needs; cin at most 320. */
export function winogradScratch(cin: i32, cout: i32): i32 {
  return 16 * TILES * (cin + cout) + 16 * max(cin, cout) + WORK + 16;
}

/** Floats of scratch that winogradFilter needs. */
export function winogradFilterScratch(cin: i32, cout: i32): i32 {
  return 16 * cin * cout + 16 * TILES * (cin + cout) + 16 * max(cin, cout) +
    gemmScratch(cin, cout, TILES) + 16;
}

// @ts-ignore: decorator
@inline
function filter4(
  f: usize, ts: usize, flip: i32, u: usize, us: usize, full: bool,
): void {
  const half = splat(0.5);
  // Rows: G·g, three columns of four.
  let a0 = splat(0), a1 = a0, a2 = a0, a3 = a0;
  let b0 = a0, b1 = a0, b2 = a0, b3 = a0;
  let c0 = a0, c1 = a0, c2 = a0, c3 = a0;
  const first = flip ? f + 8 * ts : f;
  const step: usize = flip ? 0 - ts : ts;
  let g0 = load4(first, full), g1 = load4(first + 3 * step, full);
  let g2 = load4(first + 6 * step, full);
  let s = f32x4.mul(f32x4.add(g0, g2), half), t = f32x4.mul(g1, half);
  a0 = g0;
  a1 = f32x4.add(s, t);
  a2 = f32x4.sub(s, t);
  a3 = g2;
  g0 = load4(first + step, full);
  g1 = load4(first + 4 * step, full);
  g2 = load4(first + 7 * step, full);
  s = f32x4.mul(f32x4.add(g0, g2), half);
  t = f32x4.mul(g1, half);
  b0 = g0;
  b1 = f32x4.add(s, t);
  b2 = f32x4.sub(s, t);
  b3 = g2;
  g0 = load4(first + 2 * step, full);
  g1 = load4(first + 5 * step, full);
  g2 = load4(first + 8 * step, full);
  s = f32x4.mul(f32x4.add(g0, g2), half);
  t = f32x4.mul(g1, half);
  c0 = g0;
  c1 = f32x4.add(s, t);
  c2 = f32x4.sub(s, t);
  c3 = g2;
  filterRow4(a0, b0, c0, u, us, full);
  filterRow4(a1, b1, c1, u + 4 * us, us, full);
  filterRow4(a2, b2, c2, u + 8 * us, us, full);
  filterRow4(a3, b3, c3, u + 12 * us, us, full);
}

// @ts-ignore: decorator
@inline
function filterRow4(
  a: v128, b: v128, c: v128, u: usize, us: usize, full: bool,
): void {
  const half = splat(0.5);
  const s = f32x4.mul(f32x4.add(a, c), half), t = f32x4.mul(b, half);
  store4(u, a, full);
  store4(u + us, f32x4.add(s, t), full);
  store4(u + 2 * us, f32x4.sub(s, t), full);
  store4(u + 3 * us, c, full);
}

// U = G·f·Gᵀ for n filters side by side: f [9][n], u [16][n].
function filterTransform(f: usize, n: i32, flip: i32, u: usize): void {
  const s = <usize>n << 2;
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    filter4(f + o, s, flip, u + o, s, true);
  }
  for (; i < n; i++) {
    const o = <usize>i << 2;
    filter4(f + o, s, flip, u + o, s, false);
  }
}

// @ts-ignore: decorator
@inline
function input4(
  p: usize, rs: usize, ps: usize, v: usize, vs: usize, full: bool,
): void {
  // Columns: Bᵀ·d, then rows.
  const q = p + rs, r = q + rs, s = r + rs;
  let d0 = load4(p, full), d1 = load4(q, full), d2 = load4(r, full);
  let d3 = load4(s, full);
  const a0 = f32x4.sub(d0, d2), a1 = f32x4.add(d1, d2);
  const a2 = f32x4.sub(d2, d1), a3 = f32x4.sub(d1, d3);
  d0 = load4(p + ps, full);
  d1 = load4(q + ps, full);
  d2 = load4(r + ps, full);
  d3 = load4(s + ps, full);
  const b0 = f32x4.sub(d0, d2), b1 = f32x4.add(d1, d2);
  const b2 = f32x4.sub(d2, d1), b3 = f32x4.sub(d1, d3);
  d0 = load4(p + 2 * ps, full);
  d1 = load4(q + 2 * ps, full);
  d2 = load4(r + 2 * ps, full);
  d3 = load4(s + 2 * ps, full);
  const c0 = f32x4.sub(d0, d2), c1 = f32x4.add(d1, d2);
  const c2 = f32x4.sub(d2, d1), c3 = f32x4.sub(d1, d3);
  d0 = load4(p + 3 * ps, full);
  d1 = load4(q + 3 * ps, full);
  d2 = load4(r + 3 * ps, full);
  d3 = load4(s + 3 * ps, full);
  inputRow4(a0, b0, c0, f32x4.sub(d0, d2), v, vs, full);
  inputRow4(a1, b1, c1, f32x4.add(d1, d2), v + 4 * vs, vs, full);
  inputRow4(a2, b2, c2, f32x4.sub(d2, d1), v + 8 * vs, vs, full);
  inputRow4(a3, b3, c3, f32x4.sub(d1, d3), v + 12 * vs, vs, full);
}

// @ts-ignore: decorator
@inline
function inputRow4(
  a: v128, b: v128, c: v128, d: v128, v: usize, vs: usize, full: bool,
): void {
  store4(v, f32x4.sub(a, c), full);
  store4(v + vs, f32x4.add(b, c), full);
  store4(v + 2 * vs, f32x4.sub(c, b), full);
  store4(v + 3 * vs, f32x4.sub(b, d), full);
}

// V = Bᵀ·d·B of one 4×4 patch of c channels.
function inputTile(
  p: usize, rs: usize, ps: usize, c: i32, v: usize, vs: usize,
): void {
  let i = 0;
  for (; i + 4 <= c; i += 4) {
    const o = <usize>i << 2;
    input4(p + o, rs, ps, v + o, vs, true);
  }
  for (; i < c; i++) {
    const o = <usize>i << 2;
    input4(p + o, rs, ps, v + o, vs, false);
  }
}

// @ts-ignore: decorator
@inline
function output4(
  m: usize, ms: usize, y: usize, rs: usize, ps: usize, bias: usize, full: bool,
): void {
  let s0 = splat(0), s1 = s0, t0 = s0, t1 = s0;
  let u0 = s0, u1 = s0, w0 = s0, w1 = s0;
  // Columns: Aᵀ·m.
  let a = load4(m + 4 * ms, full), b = load4(m + 8 * ms, full);
  s0 = f32x4.add(f32x4.add(load4(m, full), a), b);
  s1 = f32x4.sub(f32x4.sub(a, b), load4(m + 12 * ms, full));
  a = load4(m + 5 * ms, full);
  b = load4(m + 9 * ms, full);
  t0 = f32x4.add(f32x4.add(load4(m + ms, full), a), b);
  t1 = f32x4.sub(f32x4.sub(a, b), load4(m + 13 * ms, full));
  a = load4(m + 6 * ms, full);
  b = load4(m + 10 * ms, full);
  u0 = f32x4.add(f32x4.add(load4(m + 2 * ms, full), a), b);
  u1 = f32x4.sub(f32x4.sub(a, b), load4(m + 14 * ms, full));
  a = load4(m + 7 * ms, full);
  b = load4(m + 11 * ms, full);
  w0 = f32x4.add(f32x4.add(load4(m + 3 * ms, full), a), b);
  w1 = f32x4.sub(f32x4.sub(a, b), load4(m + 15 * ms, full));
  const e = bias ? load4(bias, full) : splat(0);
  a = f32x4.add(t0, e);
  store4(y, f32x4.add(f32x4.add(s0, a), u0), full);
  store4(y + ps, f32x4.sub(f32x4.sub(a, u0), w0), full);
  a = f32x4.add(t1, e);
  store4(y + rs, f32x4.add(f32x4.add(s1, a), u1), full);
  store4(y + rs + ps, f32x4.sub(f32x4.sub(a, u1), w1), full);
}

// Aᵀ·m·A (+ bias): 2×2 pixels of c channels.
function outputTile(
  m: usize, ms: usize, y: usize, rs: usize, ps: usize, c: i32, bias: usize,
): void {
  let i = 0;
  for (; i + 4 <= c; i += 4) {
    const o = <usize>i << 2;
    output4(m + o, ms, y + o, rs, ps, bias ? bias + o : 0, true);
  }
  for (; i < c; i++) {
    const o = <usize>i << 2;
    output4(m + o, ms, y + o, rs, ps, bias ? bias + o : 0, false);
  }
}

// @ts-ignore: decorator
@inline
function spread4(
  p: usize, rs: usize, ps: usize, m: usize, ms: usize, full: bool,
): void {
  const a = load4(p, full), b = load4(p + ps, full);
  const c = load4(p + rs, full), d = load4(p + rs + ps, full);
  spreadRow4(a, b, m, ms, full);
  spreadRow4(f32x4.add(a, c), f32x4.add(b, d), m + 4 * ms, ms, full);
  spreadRow4(f32x4.sub(a, c), f32x4.sub(b, d), m + 8 * ms, ms, full);
  spreadRow4(f32x4.neg(c), f32x4.neg(d), m + 12 * ms, ms, full);
}

// @ts-ignore: decorator
@inline
function spreadRow4(a: v128, b: v128, m: usize, ms: usize, full: bool): void {
  store4(m, a, full);
  store4(m + ms, f32x4.add(a, b), full);
  store4(m + 2 * ms, f32x4.sub(a, b), full);
  store4(m + 3 * ms, f32x4.neg(b), full);
}

// A·dy·Aᵀ of 2×2 pixels of c channels.
function spreadTile(
  p: usize, rs: usize, ps: usize, c: i32, m: usize, ms: usize,
): void {
  let i = 0;
  for (; i + 4 <= c; i += 4) {
    const o = <usize>i << 2;
    spread4(p + o, rs, ps, m + o, ms, true);
  }
  for (; i < c; i++) {
    const o = <usize>i << 2;
    spread4(p + o, rs, ps, m + o, ms, false);
  }
}

// Copies side × side pixels from (iy, ix) of image n, zeros outside.
function patchOf(
  x: usize, h: i32, w: i32, c: i32, n: i32, iy: i32, ix: i32, side: i32,
  dst: usize,
): void {
  const bytes = <usize>c << 2;
  for (let i = iy; i < iy + side; i++) {
    for (let j = ix; j < ix + side; j++) {
      if (<u32>i < <u32>h && <u32>j < <u32>w) {
        copyFloats(dst, x + ((<usize>n * h + i) * w + j) * bytes, c);
      } else {
        memory.fill(dst, 0, bytes);
      }
      dst += bytes;
    }
  }
}

// V of tiles first … first+count; tile rows th, columns tw an image.
function inputTiles(
  x: usize, h: i32, w: i32, c: i32, pt: i32, pl: i32, th: i32, tw: i32,
  first: i32, count: i32, v: usize, patch: usize,
): void {
  const bytes = <usize>c << 2;
  const vs = <usize>TILES * bytes;
  for (let t = first; t < first + count; t++) {
    const n = t / (th * tw);
    const o = t - n * th * tw;
    const ty = o / tw;
    const iy = 2 * ty - pt, ix = 2 * (o - ty * tw) - pl;
    if (iy >= 0 && ix >= 0 && iy + 4 <= h && ix + 4 <= w) {
      const at = x + ((<usize>n * h + iy) * w + ix) * bytes;
      inputTile(at, <usize>w * bytes, bytes, c, v, vs);
    } else {
      patchOf(x, h, w, c, n, iy, ix, 4, patch);
      inputTile(patch, 4 * bytes, bytes, c, v, vs);
    }
    v += bytes;
  }
}

/** Floats that the filter of winograd takes when it is transformed and packed. */
export function winogradPacked(cin: i32, cout: i32): i32 {
  return 16 * cin * ((cout + NR - 1) & ~(NR - 1));
}

/**
 * Transforms and packs a 3×3 filter for winograd. W(tap, ci, co) as in conv2d:
 * rbs, cbs = cout, 1 forward and 1, cin of the forward pass backward (flip).
 * Scratch: 16·cin·cout floats.
 */
export function winogradPack(
  f: usize, cin: i32, cout: i32, rbs: i32, cbs: i32, flip: i32, packed: usize,
  scratch: usize,
): void {
  const one = (<usize>winogradPacked(cin, cout) >> 4) << 2;
  filterTransform(f, cin * cout, flip, scratch);
  for (let p = 0; p < 16; p++) {
    packB(
      scratch + ((<usize>p * cin * cout) << 2), rbs, cbs, cin, cout,
      packed + <usize>p * one,
    );
  }
}

/** As conv2d, of stride 1 and with a filter packed by winogradPack. */
export function winograd(
  x: usize, b: i32, h: i32, w: i32, cin: i32, packed: usize, pt: i32, pl: i32,
  oh: i32, ow: i32, cout: i32, y: usize, bias: usize, scratch: usize,
): void {
  const panels = (cout + NR - 1) / NR;
  const one = (<usize>cin * panels * NR) << 2;
  const tile = scratch;
  const v = tile + (WORK << 2);
  const m = v + ((<usize>16 * TILES * cin) << 2);
  const patch = m + ((<usize>16 * TILES * cout) << 2);
  const th = (oh + 1) / 2, tw = (ow + 1) / 2;
  const tiles = b * th * tw;
  const ps = <usize>cout << 2;
  const rs = <usize>ow * ps;
  const ms = <usize>TILES * ps;
  const vs = (<usize>TILES * cin) << 2;
  for (let first = 0; first < tiles; first += TILES) {
    const count = min(TILES, tiles - first);
    inputTiles(x, h, w, cin, pt, pl, th, tw, first, count, v, patch);
    for (let p = 0; p < 16; p++) {
      block(
        0, v + <usize>p * vs, <usize>cin << 2, packed + <usize>p * one, count,
        cout, cin, m + <usize>p * ms, ps, 0, 0, tile,
      );
    }
    for (let t = 0; t < count; t++) {
      const n = (first + t) / (th * tw);
      const o = first + t - n * th * tw;
      const ty = o / tw;
      const oy = 2 * ty, ox = 2 * (o - ty * tw);
      const to = y + <usize>(n * oh + oy) * rs + <usize>ox * ps;
      const from = m + <usize>t * ps;
      if (oy + 2 <= oh && ox + 2 <= ow) {
        outputTile(from, ms, to, rs, ps, cout, bias);
      } else {
        outputTile(from, ms, patch, 2 * ps, ps, cout, bias);
        copyFloats(to, patch, cout);
        if (ox + 1 < ow) copyFloats(to + ps, patch + ps, cout);
        if (oy + 1 < oh) copyFloats(to + rs, patch + 2 * ps, cout);
      }
    }
  }
}

// @ts-ignore: decorator
@inline
function fold4(u: usize, us: usize, f: usize, fs: usize, full: bool): void {
  const half = splat(0.5);
  // Gᵀ·u·G by rows, then columns.
  for (let i = 0; i < 4; i++) {
    const r = u + <usize>i * 4 * us;
    const b = load4(r + us, full), c = load4(r + 2 * us, full);
    const s = f32x4.mul(f32x4.add(b, c), half);
    const t = f32x4.mul(f32x4.sub(b, c), half);
    const a = load4(r, full), d = load4(r + 3 * us, full);
    store4(r, f32x4.add(a, s), full);
    store4(r + us, t, full);
    store4(r + 2 * us, f32x4.add(s, d), full);
  }
  for (let j = 0; j < 3; j++) {
    const r = u + <usize>j * us;
    const b = load4(r + 4 * us, full), c = load4(r + 8 * us, full);
    const s = f32x4.mul(f32x4.add(b, c), half);
    const t = f32x4.mul(f32x4.sub(b, c), half);
    const g = f + <usize>j * fs;
    store4(g, f32x4.add(load4(r, full), s), full);
    store4(g + 3 * fs, t, full);
    store4(g + 6 * fs, f32x4.add(s, load4(r + 12 * us, full)), full);
  }
}

// df [9][n] = Gᵀ·u·G; u [16][n] is overwritten.
function filterFold(u: usize, n: i32, f: usize): void {
  const s = <usize>n << 2;
  let i = 0;
  for (; i + 4 <= n; i += 4) {
    const o = <usize>i << 2;
    fold4(u + o, s, f + o, s, true);
  }
  for (; i < n; i++) {
    const o = <usize>i << 2;
    fold4(u + o, s, f + o, s, false);
  }
}

/** As conv2dFilter, for 3×3 filters of stride 1. */
export function winogradFilter(
  x: usize, b: i32, h: i32, w: i32, cin: i32, dy: usize, oh: i32, ow: i32,
  cout: i32, pt: i32, pl: i32, df: usize, scratch: usize,
): void {
  const u = scratch;
  const v = u + ((<usize>16 * cin * cout) << 2);
  const m = v + ((<usize>16 * TILES * cin) << 2);
  const patch = m + ((<usize>16 * TILES * cout) << 2);
  const work = patch + ((<usize>16 * max(cin, cout)) << 2);
  const th = (oh + 1) / 2, tw = (ow + 1) / 2;
  const tiles = b * th * tw;
  const ps = <usize>cout << 2;
  const rs = <usize>ow * ps;
  const ms = <usize>TILES * ps;
  const vs = (<usize>TILES * cin) << 2;
  for (let first = 0; first < tiles; first += TILES) {
    const count = min(TILES, tiles - first);
    inputTiles(x, h, w, cin, pt, pl, th, tw, first, count, v, patch);
    for (let t = 0; t < count; t++) {
      const n = (first + t) / (th * tw);
      const o = first + t - n * th * tw;
      const ty = o / tw;
      const oy = 2 * ty, ox = 2 * (o - ty * tw);
      const to = m + <usize>t * ps;
      if (oy + 2 <= oh && ox + 2 <= ow) {
        const at = dy + <usize>(n * oh + oy) * rs + <usize>ox * ps;
        spreadTile(at, rs, ps, cout, to, ms);
      } else {
        patchOf(dy, oh, ow, cout, n, oy, ox, 2, patch);
        spreadTile(patch, 2 * ps, ps, cout, to, ms);
      }
    }
    for (let p = 0; p < 16; p++) {
      gemm(
        v + <usize>p * vs, 1, cin, m + <usize>p * ms, cout, 1,
        u + ((<usize>p * cin * cout) << 2), cout, cin, cout, count,
        first > 0 ? ACCUMULATE : 0, 0, work,
      );
    }
  }
  filterFold(u, cin * cout, df);
}
