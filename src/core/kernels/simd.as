// The SIMD module: AssemblyScript, compiled by build.ts to simd_wasm.ts.
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

// Flags of gemm.
const ACCUMULATE: i32 = 1;

// ---------------------------------------------------------------- gemm

/** Floats of scratch that gemm needs. */
export function gemmScratch(m: i32, n: i32, k: i32): i32 {
  const kc = min(k, KC);
  const nc = min((n + NR - 1) & ~(NR - 1), NC);
  return kc * nc + MC * kc + MR * NR + 16;
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
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a1);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a2);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a3);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
    b0 = v128.load(bp, 32);
    b1 = v128.load(bp, 48);
    t = v128.load32_splat(a0, 4);
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a1, 4);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a2, 4);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a3, 4);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
    a0 += 8;
    a1 += 8;
    a2 += 8;
    a3 += 8;
    bp += 64;
  }
  if (k & 1) {
    const b0 = v128.load(bp), b1 = v128.load(bp, 16);
    let t = v128.load32_splat(a0);
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a1);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a2);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a3);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
  }
  store8(c, c00, c01, add, bias);
  c += rcs;
  store8(c, c10, c11, add, bias);
  c += rcs;
  store8(c, c20, c21, add, bias);
  c += rcs;
  store8(c, c30, c31, add, bias);
}

// As microRows, with the four rows interleaved: [k][4].
function microPacked(
  a: usize, bp: usize, k: i32, c: usize, rcs: usize, add: i32, bias: usize,
): void {
  let c00 = f32x4.splat(0), c01 = c00, c10 = c00, c11 = c00;
  let c20 = c00, c21 = c00, c30 = c00, c31 = c00;
  let i = k >> 1;
  for (; i > 0; i--) {
    let b0 = v128.load(bp), b1 = v128.load(bp, 16);
    let t = v128.load32_splat(a);
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 4);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 8);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 12);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
    b0 = v128.load(bp, 32);
    b1 = v128.load(bp, 48);
    t = v128.load32_splat(a, 16);
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 20);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 24);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 28);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
    a += 32;
    bp += 64;
  }
  if (k & 1) {
    const b0 = v128.load(bp), b1 = v128.load(bp, 16);
    let t = v128.load32_splat(a);
    c00 = f32x4.add(c00, f32x4.mul(t, b0));
    c01 = f32x4.add(c01, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 4);
    c10 = f32x4.add(c10, f32x4.mul(t, b0));
    c11 = f32x4.add(c11, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 8);
    c20 = f32x4.add(c20, f32x4.mul(t, b0));
    c21 = f32x4.add(c21, f32x4.mul(t, b1));
    t = v128.load32_splat(a, 12);
    c30 = f32x4.add(c30, f32x4.mul(t, b0));
    c31 = f32x4.add(c31, f32x4.mul(t, b1));
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
  const packedB = scratch + ((MR * NR) << 2);
  const depths = max((k + KC - 1) / KC, 1);
  const step = max((k + depths - 1) / depths, 1);
  const nc = min((n + NR - 1) & ~(NR - 1), NC);
  const packedA = packedB + ((<usize>nc * step) << 2);
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
  return kh * kw * cin * n + MC * depth + MR * NR + 16;
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
  const packed = scratch + ((MR * NR) << 2);
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
  return MR * NR + PIXELS * n + PIXELS + cin + MC * PIXELS + 16;
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
  const packedDy = tile + ((MR * NR) << 2);
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
