/**
 * Statistics of a layer's inputs: the rows Xᵢ, or only their Gram matrix Gᵢ =
 * XᵢᵀXᵢ.
 *
 * Gradient fusion needs no other data of a concept's pictures. A Gram matrix
 * has d × d numbers for any number of rows and is a sum over them. So it is
 * accumulated during sampling, and no features are stored (the official code
 * stores 5.5 to 28 GB per concept of SD 1.5).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { at, type TreeLike } from "../core/tree.ts";
import {
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { Context, Conv, Linear } from "../nn/linear.ts";
import { fold, type Key, normal } from "../core/random.ts";
import {
  combine,
  gram,
  type Matrix,
  matrix,
  meanDiagonal,
  symmetricEigen,
} from "../optim/least_squares.ts";

/**
 * Inputs of one layer over all calls: the rows themselves if they are at most
 * as many as features, else their Gram matrix; or the same for two halves of
 * the inputs, for cross-validation.
 */
export interface Stats {
  /** Input features d; kh·kw·in for a convolution. */
  readonly features: number;
  /** Number of rows seen. */
  readonly count: number;
  /** X [count, d]. */
  readonly rows?: Matrix;
  /** XᵀX [d, d]. */
  readonly gram?: Matrix;
  /** In place of both: the statistics of two halves of the rows. */
  readonly halves?: readonly [Stats, Stats];
  /**
   * Rows on which a fit of the other half is scored, if they are more than
   * those fitted.
   *
   * @default halves
   */
  readonly scored?: readonly [Stats, Stats];
}

/**
 * The Gram matrix of statistics in any form.
 *
 * @param stats The statistics.
 */
export function gramOf({ gram: own, rows, halves }: Stats): Matrix {
  if (halves) return combine(gramOf(halves[0]), gramOf(halves[1]));
  return own ?? gram(rows!);
}

/**
 * Joins the statistics of two halves.
 *
 * @param first By layer.
 * @param second The same layers, sharing inputs in the same way.
 * @param scored What fits of the other half are scored on; the halves by
 * default.
 * @returns By layer; layers that shared an object share one again.
 */
export function joinHalves(
  first: ReadonlyMap<string, Stats>,
  second: ReadonlyMap<string, Stats>,
  scored?: readonly [ReadonlyMap<string, Stats>, ReadonlyMap<string, Stats>],
): Map<string, Stats> {
  const shared = new Map<Stats, Stats>();
  return new Map(
    [...first].map(([path, a]) => {
      const b = second.get(path)!;
      const both = shared.get(a) ?? {
        features: a.features,
        count: a.count + b.count,
        halves: [a, b] as const,
        ...(scored && {
          scored: [scored[0].get(path)!, scored[1].get(path)!] as const,
        }),
      };
      shared.set(a, both);
      return [path, both];
    }),
  );
}

/**
 * How Gram matrices are summed: `mixed` multiplies blocks of rows in float32 on
 * the backend and adds the products in float64 on the host; `float64` does all
 * of it on the host, slowly.
 */
export type Accuracy = "mixed" | "float64";

/** Options of a {@linkcode GramAccumulator}. */
export interface AccumulateOptions {
  /**
   * Arithmetic of the sums.
   *
   * @default "mixed"
   */
  readonly accuracy?: Accuracy;
  /**
   * Rows per float32 product. Fewer rows give smaller rounding errors.
   *
   * @default 4096
   */
  readonly blockRows?: number;
  /**
   * The largest number of rows that are kept as rows; 0 always makes a Gram
   * matrix.
   *
   * @default features
   */
  readonly keepRows?: number;
}

/**
 * Streams the inputs of one layer.
 *
 * `add` is synchronous and may be called inside `tf.tidy`; what it computed
 * waits on the backend until `flush` brings it to the host.
 *
 * @example
 * ```ts
 * const sum = new GramAccumulator(320);
 * sum.add(tf.randomNormal([4096, 320]));
 * const { gram, count } = await sum.finish();
 * ```
 */
export class GramAccumulator {
  /** Number of rows added. */
  count: number = 0;
  readonly #features: number;
  readonly #accuracy: Accuracy;
  readonly #blockRows: number;
  readonly #keepRows: number;
  /** What `flush` takes: rows, or products of columns from `column` on. */
  #pending: { column?: number; tensor: tf.Tensor }[] = [];
  /**
   * Products that are summed on the backend, up to as many rows as features:
   * fewer transfers, with the rounding of one product.
   */
  #open: { rows: number; parts: tf.Tensor[] } = { rows: 0, parts: [] };
  #rows: Float64Array[] = [];
  #gram: Matrix | undefined;

  /**
   * An empty sum.
   *
   * @param features Features of a row.
   * @param options Accuracy, and the number of rows up to which rows are kept.
   */
  constructor(features: number, options: AccumulateOptions = {}) {
    const { accuracy = "mixed", blockRows = 4096, keepRows = features } =
      options;
    if (!(Number.isInteger(blockRows) && blockRows >= 1)) {
      throw cannot("accumulate a Gram matrix", "blockRows ≥ 1", blockRows);
    }
    this.#features = features;
    this.#accuracy = accuracy;
    this.#blockRows = blockRows;
    this.#keepRows = keepRows;
  }

  /**
   * Adds rows.
   *
   * @param x [..., features]; stays the caller's.
   * @throws If the last dimension is another.
   */
  add(x: tf.Tensor): void {
    const d = this.#features;
    if (x.shape[x.rank - 1] !== d) {
      throw cannot(
        "accumulate a Gram matrix",
        `rows of ${d} features`,
        `[${x.shape}]`,
      );
    }
    const n = x.size / d;
    this.count += n;
    if (this.count <= this.#keepRows || this.#accuracy === "float64") {
      const tensor = tf.keep(tf.tidy(() => x.reshape([n, d]).clone()));
      this.#pending.push({ tensor });
      return;
    }
    const most = Math.min(this.#blockRows, d);
    for (let from = 0; from < n; from += this.#blockRows) {
      const size = Math.min(this.#blockRows, n - from);
      if (this.#open.rows + size > most) this.#close();
      this.#multiply(x, from, size);
    }
  }

  /** Adds the products of some rows to those on the backend. */
  #multiply(x: tf.Tensor, from: number, size: number): void {
    const d = this.#features;
    const before = this.#open.parts;
    const parts = tf.tidy(() => {
      const rows = tf.slice2d(x.reshape([-1, d]), [from, 0], [size, -1]);
      // The matrix is symmetric: only columns from the diagonal on.
      return columnsOf(d).map((column, i, all) => {
        const own = (all[i + 1] ?? d) - column;
        const product = tf.matMul(
          tf.slice2d(rows, [0, column], [-1, own]),
          tf.slice2d(rows, [0, column], [-1, -1]),
          true,
        );
        return before[i] ? product.add(before[i]) : product;
      });
    });
    parts.forEach((part) => tf.keep(part));
    tf.dispose(before);
    this.#open = { rows: this.#open.rows + size, parts };
  }

  /** Gives the products on the backend to the next flush. */
  #close(): void {
    const columns = columnsOf(this.#features);
    this.#open.parts.forEach((tensor, i) =>
      this.#pending.push({ column: columns[i], tensor })
    );
    this.#open = { rows: 0, parts: [] };
  }

  /**
   * Brings to the host what is complete on the backend: rows, and products
   * whose sum is complete.
   */
  flush(): Promise<void> {
    return GramAccumulator.flushAll([this]);
  }

  /**
   * Flushes several in one transfer from the backend.
   *
   * @param sums The accumulators.
   */
  static async flushAll(sums: Iterable<GramAccumulator>): Promise<void> {
    const waiting = [...sums].flatMap((sum) => {
      const pending = sum.#pending;
      sum.#pending = [];
      return pending.map((part) => ({ sum, ...part }));
    });
    if (waiting.length === 0) return;
    const tensors = waiting.map(({ tensor }) => tensor);
    const together = tf.tidy(() =>
      tensors.length === 1
        ? tensors[0].clone()
        : tf.concat(tensors.map((t) => t.flatten()), 0)
    );
    try {
      const values = await together.data();
      let at = 0;
      for (const { sum, column, tensor } of waiting) {
        sum.#take(values.subarray(at, at + tensor.size), column);
        at += tensor.size;
      }
    } finally {
      tf.dispose([together, ...tensors]);
    }
  }

  #take(values: ArrayLike<number>, column?: number): void {
    const d = this.#features;
    if (column === undefined) {
      this.#rows.push(Float64Array.from(values));
      if (this.count > this.#keepRows) this.#collapse();
      return;
    }
    const { data } = this.#gram ??= matrix(d, d);
    const wide = d - column;
    for (let at = 0, row = column; at < values.length; at += wide, row++) {
      const to = row * d + column;
      for (let i = 0; i < wide; i++) data[to + i] += values[at + i];
    }
  }

  /**
   * The statistics of everything added.
   *
   * @throws If an input was not finite.
   */
  async finish(): Promise<Stats> {
    this.#close();
    await this.flush();
    const d = this.#features;
    if (this.#gram !== undefined || this.count > this.#keepRows) {
      this.#collapse();
      mirror(this.#gram!);
    }
    const stats: Stats = this.#gram
      ? { features: d, count: this.count, gram: this.#gram }
      : { features: d, count: this.count, rows: this.#joined() };
    const { data } = (stats.gram ?? stats.rows)!;
    if (data.some((x) => !Number.isFinite(x))) {
      throw cannot("accumulate a Gram matrix", "finite inputs", "NaN or ∞");
    }
    return stats;
  }

  /** Frees what waits on the backend. */
  dispose(): void {
    this.#close();
    tf.dispose(this.#pending.map(({ tensor }) => tensor));
    this.#pending = [];
  }

  #joined(): Matrix {
    const d = this.#features;
    const all = joined(Float64Array, this.#rows);
    return matrix(all.length / d, d, all);
  }

  #collapse(): void {
    this.#gram = gram(this.#joined(), this.#gram);
    this.#rows = [];
  }
}

/** About how many columns a block of a symmetric product has. */
const WIDTH = 384;

/** Where the blocks of columns of a symmetric product begin. */
function columnsOf(features: number): number[] {
  const blocks = Math.max(1, Math.round(features / WIDTH));
  return Array.from(
    { length: blocks },
    (_, i) => Math.floor(features * i / blocks),
  );
}

/** Copies what is above the diagonal to below it. */
function mirror({ rows, data }: Matrix): void {
  for (let i = 1; i < rows; i++) {
    for (let j = 0; j < i; j++) data[i * rows + j] = data[j * rows + i];
  }
}

/** Observes the inputs of layers while a network runs. */
export interface Collector extends Context {
  /** Observes inputs of layers; goes into the forward pass. */
  readonly tap: NonNullable<Context["tap"]>;
  /** Await it between steps, so that few tensors wait on the backend. */
  readonly flush: () => Promise<void>;
  /**
   * The statistics of all layers, by path.
   *
   * @throws If a layer was never run, or an input was not finite.
   */
  readonly finish: () => Promise<Map<string, Stats>>;
  /** Frees what waits on the backend. */
  readonly dispose: () => void;
}

/** Options of {@linkcode collect}. */
export interface CollectOptions extends AccumulateOptions {
  /**
   * Stride and padding of a convolution, which its parameters do not hold.
   *
   * @default stride 2 where the path says `downsamplers`, else 1; padding
   * ⌊kernel / 2⌋
   */
  readonly conv?: (path: string) => { stride: number; pad: number };
  /**
   * Keeps two halves apart, for cross-validation: of the rows of every call the
   * first half (the upper half of a single picture) and the rest.
   *
   * @default false
   */
  readonly halves?: boolean;
}

/** Layers that share one input. */
interface Group {
  /** One sum, or one per half. */
  readonly sums: readonly GramAccumulator[];
  readonly leader: string;
  last: tf.Tensor;
  calls: number;
}

/** Adds the rows of one call, or half of them to each sum. */
function addRows(group: Group, rows: tf.Tensor2D): void {
  const [first, second] = group.sums;
  if (!second) return first.add(rows);
  tf.tidy(() => {
    const n = rows.shape[0];
    // Single rows go to the halves in turn.
    const cut = n === 1 ? group.calls++ % 2 : Math.floor(n / 2);
    if (cut > 0) first.add(tf.slice2d(rows, [0, 0], [cut, -1]));
    if (cut < n) second.add(tf.slice2d(rows, [cut, 0], [n - cut, -1]));
  });
}

/** Statistics of a whole, or of two halves. */
function statsOf([first, second]: readonly Stats[]): Stats {
  return second === undefined ? first : {
    features: first.features,
    count: first.count + second.count,
    halves: [first, second],
  };
}

/** The layers of a tree at some paths. */
function layersAt(
  tree: TreeLike,
  paths: Iterable<string>,
): Map<Linear | Conv, string> {
  const wanted = new Map<Linear | Conv, string>();
  for (const path of paths) {
    const layer = at(tree, path);
    if (!(layer?.weight instanceof tf.Tensor)) {
      throw cannot("collect statistics", `a layer at "${path}"`, "none");
    }
    wanted.set(layer, path);
  }
  return wanted;
}

/**
 * Makes an observer of chosen layers, to be passed to a forward pass.
 *
 * Layers whose input is the same tensor (queries, keys and values of
 * self-attention) share one {@linkcode Stats} object.
 *
 * @param tree Parameters of the network that runs.
 * @param paths Layers, linear or convolutions.
 * @param options Accuracy.
 * @throws If a path is no layer of the tree.
 *
 * @example
 * ```ts
 * const layers = collector(params, ["mid_block.attentions.0.proj_in"]);
 * tf.tidy(() => void unet(params, config, latent, [500], states, layers));
 * const stats = await layers.finish();
 * ```
 */
export function collector(
  tree: TreeLike,
  paths: Iterable<string>,
  options: CollectOptions = {},
): Collector {
  const wanted = layersAt(tree, paths);
  const conv = options.conv ?? convolutionAt;
  const groups = new Map<string, Group>();
  let newest: Group | undefined;
  const tap = (module: Linear | Conv, input: tf.Tensor) => {
    const path = wanted.get(module);
    if (path === undefined) return;
    const { weight } = module;
    const isLinear = weight.rank === 2;
    let group = groups.get(path);
    if (group === undefined && isLinear && newest?.last === input) {
      group = newest;
      groups.set(path, group);
    }
    if (group && group.leader !== path) {
      if (group.last !== input) {
        throw cannot(
          `collect statistics of ${path}`,
          `the same input as ${group.leader} in every call`,
          "another one",
        );
      }
      return;
    }
    const features = weight.size / weight.shape[weight.rank - 1]!;
    group ??= {
      sums: Array.from(
        { length: options.halves ? 2 : 1 },
        () => new GramAccumulator(features, options),
      ),
      leader: path,
      last: input,
      calls: 0,
    };
    groups.set(path, group);
    group.last = input;
    newest = isLinear ? group : undefined;
    const own = group;
    tf.tidy(() => addRows(own, inputRows(module, input, conv(path))));
  };
  const distinct = () => new Set(groups.values());
  const sums = () => [...distinct()].flatMap(({ sums }) => sums);
  const flush = () => GramAccumulator.flushAll(sums());
  const finish = async () => {
    const missing = [...wanted.values()].filter((path) => !groups.has(path));
    if (missing.length > 0) {
      throw cannot(
        "collect statistics",
        "every layer to be run",
        `nothing at ${missing.slice(0, 3).join(", ")}${
          missing.length > 3 ? ` and ${missing.length - 3} more` : ""
        }`,
      );
    }
    await flush();
    const finished = new Map<Group, Stats>();
    for (const group of distinct()) {
      const parts = await Promise.all(group.sums.map((sum) => sum.finish()));
      finished.set(group, statsOf(parts));
    }
    return new Map(
      [...wanted.values()].map((path) => [
        path,
        finished.get(groups.get(path)!)!,
      ]),
    );
  };
  const dispose = () => {
    for (const sum of sums()) sum.dispose();
  };
  return { tap, flush, finish, dispose };
}

/**
 * Runs a function and gathers the inputs of chosen layers.
 *
 * @param tree Parameters of the network that runs.
 * @param paths Layers, linear or convolutions.
 * @param run Runs the network with the given observer; it should await `flush`
 * between steps.
 * @param options Accuracy.
 * @returns Statistics by path.
 * @throws If a path is no layer of the tree, or a layer was never run.
 */
export async function collect(
  tree: TreeLike,
  paths: Iterable<string>,
  run: (collector: Collector) => unknown,
  options: CollectOptions = {},
): Promise<Map<string, Stats>> {
  const layers = collector(tree, paths, options);
  try {
    await run(layers);
    return await layers.finish();
  } finally {
    layers.dispose();
  }
}

/** Stride and padding of a convolution. */
interface ConvolutionShape {
  readonly stride: number;
  /** NaN: half the filter. */
  readonly pad: number;
}

/**
 * Stride and padding by a layer's path, as diffusers' networks have them.
 *
 * @param path Path of the layer.
 */
export function convolutionAt(path: string): ConvolutionShape {
  return { stride: path.includes("downsamplers") ? 2 : 1, pad: NaN };
}

/**
 * The input of a layer as the rows of a linear layer.
 *
 * @param layer Linear layer [in, out] or convolution [kh, kw, in, out].
 * @param input [..., in].
 * @param shape Stride and padding, of a convolution.
 * @returns [rows, in] or, of a convolution, [rows, kh·kw·in] (`unfold`).
 */
export function inputRows(
  { weight }: Linear | Conv,
  input: tf.Tensor,
  { stride, pad }: ConvolutionShape,
): tf.Tensor2D {
  if (weight.rank === 2) return input.reshape([-1, weight.shape[0]]);
  const [kh, kw] = weight.shape as [number, number];
  return unfold(input as tf.Tensor4D, {
    kernel: [kh, kw],
    stride,
    pad: Number.isNaN(pad) ? Math.floor(kh / 2) : pad,
  });
}

/**
 * Turns a convolution's input into the rows of the linear layer it is
 * (im2col): the columns are in the order of an HWIO filter.
 *
 * @param x [b, h, w, in].
 * @param options Filter size, stride and zero padding.
 * @returns [b·h'·w', kh·kw·in].
 */
export function unfold(
  x: tf.Tensor4D,
  options: {
    readonly kernel: readonly [number, number];
    readonly stride?: number;
    readonly pad?: number;
  },
): tf.Tensor2D {
  const { kernel: [kh, kw], stride = 1, pad = 0 } = options;
  return tf.tidy(() => {
    const padded = pad === 0
      ? x
      : tf.pad4d(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]]);
    const [b, h, w, c] = padded.shape;
    const high = Math.floor((h - kh) / stride) + 1;
    const wide = Math.floor((w - kw) / stride) + 1;
    const parts: tf.Tensor4D[] = [];
    for (let i = 0; i < kh; i++) {
      for (let j = 0; j < kw; j++) {
        parts.push(tf.stridedSlice(
          padded,
          [0, i, j, 0],
          [b, i + stride * (high - 1) + 1, j + stride * (wide - 1) + 1, c],
          [1, stride, stride, 1],
        ) as tf.Tensor4D);
      }
    }
    return tf.concat(parts, 3).reshape([b * high * wide, kh * kw * c]);
  });
}

/** Format 1 has whole statistics; format 2 may have halves. */
const FORMATS: readonly string[] = [
  "mix-of-show statistics 1",
  "mix-of-show statistics 2",
];

/**
 * Suffixes of names: the halves, and the rows that fits of the other half are
 * scored on.
 */
const PARTS = [".half0", ".half1", ".scored0", ".scored1"] as const;

function partsOf(stats: Stats): (readonly [name: string, part: Stats])[] {
  const { halves, scored = [] } = stats;
  return halves
    ? [...halves, ...scored].map((part, i) => [PARTS[i], part])
    : [["", stats]];
}

/** Statistics as named tensors, with metadata. */
export interface EncodedStatistics {
  /** By name: `<layer>.gram` or `.rows`, or of each half. */
  readonly tensors: [string, RawTensor][];
  /** `format`, `counts` and `shared`, for the header. */
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * Names the tensors of statistics; layers that share inputs are kept once.
 *
 * @param stats Statistics by layer.
 * @param dtype Type on disk.
 */
export function encodeStatistics(
  stats: ReadonlyMap<string, Stats>,
  dtype: "F64" | "F32",
): EncodedStatistics {
  const leaders = new Map<Stats, string>();
  const shared: Record<string, string> = {};
  const counts: Record<string, number> = {};
  const tensors: [string, RawTensor][] = [];
  for (const [layer, one] of stats) {
    const leader = leaders.get(one);
    if (leader !== undefined) {
      shared[layer] = leader;
      continue;
    }
    leaders.set(one, layer);
    counts[layer] = one.count;
    for (const [part, own] of partsOf(one)) {
      const kind = own.gram ? "gram" : "rows";
      const { rows, columns, data } = (own.gram ?? own.rows)!;
      const values = dtype === "F64" ? data : Float32Array.from(data);
      counts[layer + part] = own.count;
      tensors.push([`${layer}${part}.${kind}`, {
        dtype,
        shape: [rows, columns],
        data: new Uint8Array(values.slice().buffer),
      }]);
    }
  }
  const split = [...leaders.keys()].some(({ halves }) => halves);
  return {
    tensors,
    metadata: {
      format: split ? FORMATS[1] : FORMATS[0],
      counts: JSON.stringify(counts),
      shared: JSON.stringify(shared),
    },
  };
}

/**
 * Reads what {@linkcode encodeStatistics} named.
 *
 * @param what The file, for errors.
 * @param names Names of the tensors.
 * @param read Reads one of them.
 * @param metadata The header's part about them.
 * @throws If the format is another, or a matrix is not as it should be.
 */
export async function decodeStatistics(
  what: string,
  names: Iterable<string>,
  read: (name: string) => Promise<RawTensor>,
  metadata: Readonly<Record<string, string | undefined>>,
): Promise<Map<string, Stats>> {
  const { format, counts = "{}", shared = "{}" } = metadata;
  if (!FORMATS.includes(format ?? "")) {
    throw cannot(
      `read statistics from ${what}`,
      `format ${FORMATS.map((name) => `"${name}"`).join(" or ")}`,
      format ?? "none",
    );
  }
  const count: Record<string, number> = JSON.parse(counts);
  const result = new Map<string, Stats>();
  for (const name of names) {
    const { shape, dtype, data: raw } = await read(name);
    const split = name.lastIndexOf(".");
    const layer = name.slice(0, split);
    const kind = name.slice(split + 1);
    const fits = (dtype === "F64" || dtype === "F32") &&
      shape.length === 2 && count[layer] !== undefined &&
      (kind === "gram" ? shape[0] === shape[1] : shape[0] === count[layer]);
    if (!fits) {
      throw cannot(
        `read statistics from ${what}`,
        "Gram matrices or rows, F64 or F32, with their counts",
        `${name}: ${dtype} [${shape}]`,
      );
    }
    const data = raw.slice().buffer;
    const values = dtype === "F64"
      ? new Float64Array(data)
      : new Float32Array(data);
    result.set(layer, {
      features: shape[1],
      count: count[layer],
      [kind]: matrix(shape[0], shape[1], values),
    });
  }
  for (const layer of Object.keys(count)) {
    const [first, second, ...scored] = PARTS.map((part) => {
      const own = result.get(layer + part);
      result.delete(layer + part);
      return own;
    });
    if (!first || !second) continue;
    result.set(layer, {
      features: first.features,
      count: count[layer],
      halves: [first, second],
      ...(scored[0] && scored[1] && { scored: [scored[0], scored[1]] }),
    });
  }
  const others: Record<string, string> = JSON.parse(shared);
  for (const [layer, leader] of Object.entries(others)) {
    const stats = result.get(leader);
    if (!stats) {
      throw cannot(`read statistics from ${what}`, leader, "nothing there");
    }
    result.set(layer, stats);
  }
  return result;
}

/**
 * Writes statistics as a safetensors file of their own.
 *
 * @param path The file.
 * @param stats Statistics by layer.
 * @param options `dtype` on disk, F64 by default; F32 halves the size and is as
 * accurate as `mixed` sums.
 */
export async function writeStatistics(
  path: string | URL,
  stats: ReadonlyMap<string, Stats>,
  options: { readonly dtype?: "F64" | "F32" } = {},
): Promise<void> {
  const { tensors, metadata } = encodeStatistics(stats, options.dtype ?? "F64");
  await writeSafetensors(path, tensors, { ...metadata });
}

/**
 * Reads what {@linkcode writeStatistics} wrote.
 *
 * @param path The file.
 * @throws If the file is no statistics file or a matrix is not square.
 */
export async function readStatistics(
  path: string | URL,
): Promise<Map<string, Stats>> {
  const file = await openSafetensors(path);
  try {
    return await decodeStatistics(
      String(path),
      file.entries.keys(),
      (name) => file.read(name),
      file.metadata,
    );
  } finally {
    file.close();
  }
}

/** Settings of {@linkcode noisyStatistics}. */
export interface NoiseOptions {
  /**
   * Standard deviation of the noise on each entry of a Gram matrix, relative to
   * the mean squared norm of its rows: the contribution of one typical row.
   */
  readonly scale: number;
  /** Random key; a client keeps it secret. */
  readonly key: Key;
}

/**
 * Adds noise to statistics, so that they reveal less of a client: Gram matrices
 * replace rows, with symmetric Gaussian noise (Dwork et al. 2014, "Analyze
 * Gauss"), moved to the nearest positive semi-definite matrix.
 *
 * At scale 1 the noise is as large as the contribution of one typical row. This
 * is not differential privacy: rows are not clipped, and the adapter and tokens
 * sent with the statistics are trained on the pictures without noise.
 *
 * @param stats Statistics by layer; not changed.
 * @param options Scale and randomness.
 * @returns Statistics without rows; layers that shared inputs share them again.
 * @throws If the scale is negative.
 */
export function noisyStatistics(
  stats: ReadonlyMap<string, Stats>,
  { scale, key }: NoiseOptions,
): Map<string, Stats> {
  if (!(scale >= 0 && Number.isFinite(scale))) {
    throw cannot("add noise to statistics", "a scale ≥ 0", scale);
  }
  const made = new Map<Stats, Stats>();
  const noisy = (own: Stats, ...name: readonly (string | number)[]): Stats => {
    const { features, count, halves, scored } = own;
    const pair = (parts: readonly [Stats, Stats], of: string) =>
      [
        noisy(parts[0], ...name, of, 0),
        noisy(parts[1], ...name, of, 1),
      ] as const;
    if (halves) {
      return {
        ...{ features, count },
        halves: pair(halves, "half"),
        ...(scored && { scored: pair(scored, "scored") }),
      };
    }
    const sum = gramOf(own);
    const size = scale * meanDiagonal(sum) * features / Math.max(1, count);
    return {
      ...{ features, count },
      gram: size === 0 ? sum : nearestGram(sum, size, fold(key, ...name)),
    };
  };
  return new Map([...stats].map(([layer, own]) => {
    const known = made.get(own) ?? noisy(own, layer);
    made.set(own, known);
    return [layer, known];
  }));
}

/** A Gram matrix with symmetric noise, without its negative eigenvalues. */
function nearestGram(sum: Matrix, deviation: number, key: Key): Matrix {
  const n = sum.rows;
  const drawn = normal(key, n * (n + 1) / 2, deviation);
  const noisy = matrix(n, n, sum.data.slice());
  for (let i = 0, at = 0; i < n; i++) {
    for (let j = i; j < n; j++, at++) {
      noisy.data[i * n + j] += drawn[at];
      if (j > i) noisy.data[j * n + i] += drawn[at];
    }
  }
  const { values, vectors } = symmetricEigen(noisy);
  const kept = matrix(n, n, vectors.data.slice());
  values.forEach((value, i) => {
    const root = Math.sqrt(Math.max(0, value));
    for (let j = 0; j < n; j++) kept.data[i * n + j] *= root;
  });
  return gram(kept);
}
