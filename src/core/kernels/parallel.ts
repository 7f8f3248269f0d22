/**
 * How the calls of `simd.as` are split among threads.
 *
 * Only along rows, columns, images or heads, never along a sum: every number of
 * a result is made by one thread as it would be by one alone, so results do not
 * depend on the number of threads.
 *
 * @module
 */
import type { SimdExports, SimdProcedure } from "./simd_exports.ts";
import type { Threads } from "./threads.ts";

/** Multiplications that are worth a part of their own: some 10 µs. */
const PRODUCTS = 400_000;

/** The same of numbers that are only read and written. */
const NUMBERS = 32_768;

/** Parts of a call, and floats of scratch memory that each thread needs. */
interface Split {
  readonly parts: number[][];
  readonly scratch: number;
}

type Splitter = (
  args: readonly number[],
  most: number,
  simd: SimdExports,
) => Split | undefined;

/**
 * The exports, with those that can be split run by all threads.
 *
 * @param simd The exports of this thread.
 * @param threads The threads.
 */
export function parallel(simd: SimdExports, threads: Threads): SimdExports {
  const all: SimdExports = { ...simd };
  for (const name of SCRATCH) {
    // A multiple of 16 bytes for each thread.
    all[name] = (...sizes) => threads.count * aligned(simd[name](...sizes));
  }
  for (const [key, split] of Object.entries(SPLITTERS)) {
    const name = key as SimdProcedure;
    const one = simd[name];
    all[name] = (...args) => {
      const found = split(args, 2 * threads.count, simd);
      if (found && found.parts.length > 1) {
        threads.run(name, found.parts, 4 * aligned(found.scratch));
      } else one(...args);
    };
  }
  return all;
}

/** Exports that say how much scratch memory a split call needs. */
const SCRATCH = [
  "gemmScratch",
  "convScratch",
  "winogradScratch",
  "groupNormScratch",
  "attentionScratch",
  "layerNormScratch",
] as const;

const aligned = (floats: number) => (floats + 3) & ~3;

/**
 * Neighbouring ranges of about the same size.
 *
 * @param size How far.
 * @param count How many ranges at most.
 * @param step What their borders are multiples of.
 */
export function ranges(
  size: number,
  count: number,
  step = 1,
): { from: number; count: number }[] {
  const steps = Math.ceil(size / step);
  const used = Math.min(count, steps);
  return Array.from({ length: used }, (_, i) => {
    const from = Math.floor(steps * i / used) * step;
    const to = Math.min(Math.floor(steps * (i + 1) / used) * step, size);
    return { from, count: to - from };
  });
}

const SPLITTERS: Readonly<
  Partial<Record<SimdProcedure, Splitter>>
> = {
  gemm: (args, most, simd) => {
    const [a, ras, cas, b, rbs, cbs, c, rcs, m, n, k, flags, bias, s] = args;
    const found = products(
      [1, a, 0, ras, cas, b, 0, rbs, cbs, c, 0, rcs, m, n, k, flags, bias, s],
      most,
      simd,
    );
    // The batch of one and its strides are not gemm's.
    const left = (_: number, i: number) => ![0, 2, 6, 10].includes(i);
    return found &&
      { ...found, parts: found.parts.map((part) => part.filter(left)) };
  },
  gemmBatch: products,
  conv2d: convolutions,
  winograd: winogradTiles,
  attention: (args, most, simd) =>
    heads(args, { from: 3, sizes: 5, products: 2 }, most, simd),
  attentionGrad: (args, most, simd) =>
    heads(args, { from: 4, sizes: 6, products: 5 }, most, simd),
  groupNorm: images,
  activation: (args, most) => rows(args, most, { 1: 1, 2: 1 }, 3, 1),
  activationGrad: (args, most) => rows(args, most, { 1: 1, 2: 1, 3: 1 }, 4, 1),
  geglu: (args, most) =>
    rows(args, most, { 0: 2 * args[3], 1: args[3] }, 2, args[3]),
  gegluGrad: (args, most) => {
    const c = args[4];
    return rows(args, most, { 0: 2 * c, 1: c, 2: 2 * c }, 3, c);
  },
  layerNorm: (args, most) =>
    rows(args, most, { 0: args[2], 6: args[2] }, 1, args[2], 4),
  upsample: (args, most) => {
    const line = args[2] * args[3];
    return rows(args, most, { 0: line, 4: 4 * line }, 1, line);
  },
  upsampleGrad: (args, most) => {
    const line = args[2] * args[3];
    return rows(args, most, { 0: 4 * line, 4: line }, 1, line);
  },
  adamw: (args, most) =>
    rows(
      args,
      most,
      { 0: 1, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1 },
      7,
      1,
    ),
};

/** gemmBatch by items of the batch, else by rows or columns of the result. */
function products(
  args: readonly number[],
  most: number,
  simd: SimdExports,
): Split | undefined {
  // deno-fmt-ignore
  const [batch, a, sa, ras, cas, b, sb, rbs, cbs, c, sc, rcs, m, n, k, flags,
    bias, s] = args;
  const wanted = Math.min(most, Math.floor(batch * m * n * k / PRODUCTS));
  if (wanted < 2) return undefined;
  const scratch = simd.gemmScratch(m, n, k);
  if (batch >= wanted) {
    const parts = ranges(batch, wanted).map(({ from, count }) => [
      ...[count, a + 4 * from * sa, sa, ras, cas],
      ...[b + 4 * from * sb, sb, rbs, cbs],
      ...[c + 4 * from * sc, sc, rcs, m, n, k, flags, bias, s],
    ]);
    return { parts, scratch };
  }
  const each = Math.ceil(wanted / batch);
  const parts: number[][] = [];
  for (let i = 0; i < batch; i++) {
    const [ai, bi, ci] = [a + 4 * i * sa, b + 4 * i * sb, c + 4 * i * sc];
    // The longer side: what is packed for the other is packed by all.
    if (m >= n) {
      for (const { from, count } of ranges(m, each, 4)) {
        parts.push([
          ...[1, ai + 4 * from * ras, sa, ras, cas, bi, sb, rbs, cbs],
          ...[ci + 4 * from * rcs, sc, rcs, count, n, k, flags, bias, s],
        ]);
      }
    } else {
      for (const { from, count } of ranges(n, each, 8)) {
        parts.push([
          ...[1, ai, sa, ras, cas, bi + 4 * from * cbs, sb, rbs, cbs],
          ...[ci + 4 * from, sc, rcs, m, count, k, flags],
          ...[bias && bias + 4 * from, s],
        ]);
      }
    }
  }
  return { parts, scratch };
}

/** Parts of a convolution: some images, or some rows of one. */
function pictures(
  b: number,
  oh: number,
  wanted: number,
  step: number,
): { image: number; images: number; row: number; rows: number }[] {
  if (b >= wanted) {
    return ranges(b, wanted).map(({ from, count }) => ({
      ...{ image: from, images: count },
      ...{ row: 0, rows: oh },
    }));
  }
  return Array.from(
    { length: b },
    (_, image) =>
      ranges(oh, Math.ceil(wanted / b), step).map(({ from, count }) => ({
        ...{ image, images: 1 },
        ...{ row: from, rows: count },
      })),
  ).flat();
}

function convolutions(
  args: readonly number[],
  most: number,
  simd: SimdExports,
): Split | undefined {
  // deno-fmt-ignore
  const [x, b, h, w, cin, f, kh, kw, rbs, cbs, flip, sh, sw, dh, dw, pt, pl,
    oh, ow, cout, y, bias, s] = args;
  const work = b * oh * ow * kh * kw * cin * cout;
  const wanted = Math.min(most, Math.floor(work / PRODUCTS));
  if (wanted < 2) return undefined;
  return {
    scratch: simd.convScratch(kh, kw, cin, cout),
    parts: pictures(b, oh, wanted, 1).map(({ image, images, row, rows }) => [
      ...[x + 4 * image * h * w * cin, images, h, w, cin, f, kh, kw, rbs, cbs],
      ...[flip, sh, sw, dh, dw, pt - row * sh, pl, rows, ow, cout],
      ...[y + 4 * (image * oh + row) * ow * cout, bias, s],
    ]),
  };
}

function winogradTiles(
  args: readonly number[],
  most: number,
  simd: SimdExports,
): Split | undefined {
  const [x, b, h, w, cin, packed, pt, pl, oh, ow, cout, y, bias, s] = args;
  const wanted = Math.min(
    most,
    Math.floor(b * oh * ow * 4 * cin * cout / PRODUCTS),
  );
  if (wanted < 2) return undefined;
  return {
    scratch: simd.winogradScratch(cin, cout),
    // Tiles have two rows.
    parts: pictures(b, oh, wanted, 2).map(({ image, images, row, rows }) => [
      ...[x + 4 * image * h * w * cin, images, h, w, cin, packed],
      ...[pt - row, pl, rows, ow, cout],
      ...[y + 4 * (image * oh + row) * ow * cout, bias, s],
    ]),
  };
}

/** Attention by heads; where the arguments are: `from`, `to` and the sizes. */
function heads(
  args: readonly number[],
  at: { from: number; sizes: number; products: number },
  most: number,
  simd: SimdExports,
): Split | undefined {
  const [first, end] = args.slice(at.from, at.from + 2);
  const [n, m, c, count] = args.slice(at.sizes, at.sizes + 4);
  const d = c / count;
  const work = (end - first) * n * m * d * at.products;
  const wanted = Math.min(most, Math.floor(work / PRODUCTS));
  if (wanted < 2) return undefined;
  return {
    scratch: simd.attentionScratch(n, m, d),
    parts: ranges(end - first, wanted).map(({ from, count }) => {
      const part = [...args];
      part[at.from] = first + from;
      part[at.from + 1] = first + from + count;
      return part;
    }),
  };
}

function images(
  args: readonly number[],
  most: number,
  simd: SimdExports,
): Split | undefined {
  const [x, b, n, c, groups, gamma, beta, eps, silu, y, stats, s] = args;
  const wanted = Math.min(most, b, Math.floor(b * n * c / NUMBERS));
  if (wanted < 2) return undefined;
  return {
    scratch: simd.groupNormScratch(c),
    parts: ranges(b, wanted).map(({ from, count }) => [
      ...[x + 4 * from * n * c, count, n, c, groups, gamma, beta, eps, silu],
      ...[y + 4 * from * n * c, stats + 8 * from * groups, s],
    ]),
  };
}

/**
 * What goes row by row.
 *
 * @param args The arguments.
 * @param most Parts at most.
 * @param moved Floats a row, of each address by its place.
 * @param count Place of the number of rows.
 * @param width Numbers a row, as they count.
 * @param scratch Floats of scratch memory; 0: the last argument is none.
 */
function rows(
  args: readonly number[],
  most: number,
  moved: Readonly<Record<number, number>>,
  count: number,
  width: number,
  scratch = 0,
): Split | undefined {
  const wanted = Math.min(most, Math.floor(args[count] * width / NUMBERS));
  if (wanted < 2) return undefined;
  return {
    scratch,
    parts: ranges(args[count], wanted, 32).map((range) => {
      const part = [...args];
      for (const [i, floats] of Object.entries(moved)) {
        part[Number(i)] += 4 * range.from * floats;
      }
      part[count] = range.count;
      return part;
    }),
  };
}
