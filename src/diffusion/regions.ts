/**
 * Regionally controllable sampling (Mix-of-Show §4): each region of the picture
 * has its own prompt.
 *
 * Only cross-attention is repeated, and only for the region's pixels:
 * h[M] = CA(z[M], region prompt) where h = CA(z, global prompt).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { AttentionHooks } from "../nn/attention.ts";
import type { Model } from "../models/model.ts";
import {
  type PromptReading,
  type PromptSyntax,
  readPrompts,
} from "../models/prompts.ts";
import type { CrossAttentionCall, UNetOptions } from "../models/unet.ts";
import type { GuidanceBranch } from "./guidance.ts";
import type { UNetCall } from "./pipeline.ts";

/** A box in fractions of the picture's height and width, from the top left. */
export interface Box {
  /** Upper edge. */
  readonly top: number;
  /** Left edge. */
  readonly left: number;
  /** Lower edge. */
  readonly bottom: number;
  /** Right edge. */
  readonly right: number;
}

/** A region of any shape: the fraction of each pixel inside it. */
export interface Mask {
  /** Pixels of a row. */
  readonly width: number;
  /** Rows. */
  readonly height: number;
  /** `height * width` values in [0, 1], rows from the top. */
  readonly values: ArrayLike<number>;
}

/** Where a region is. */
export type Shape = { readonly box: Box } | { readonly mask: Mask };

/** A box in cells of a grid: rows [top, bottom), columns [left, right). */
export interface Cells {
  /** First row. */
  readonly top: number;
  /** First column. */
  readonly left: number;
  /** Row after the last. */
  readonly bottom: number;
  /** Column after the last. */
  readonly right: number;
}

/** Settings of {@linkcode shapeMap}. */
export interface ShapeOptions {
  /**
   * Softness of the edges: standard deviation of a Gaussian blur, as a fraction
   * of the grid's shorter side. With 0 a cell is inside or outside.
   *
   * @default 0
   */
  readonly feather?: number;
  /**
   * Fraction of a cell that a mask must cover for the cell to be inside. A box
   * must cover the whole cell, as in the official code.
   *
   * @default 0.5
   */
  readonly coverage?: number;
}

/**
 * The cells of a box on a grid: start rounded up, end rounded down (official
 * code).
 */
export function boxCells(box: Box, height: number, width: number): Cells {
  // Fractions of pixel counts are not exact: 7/100 · 100 is above 7.
  const slack = 1e-9;
  return {
    top: Math.max(0, Math.ceil(box.top * height - slack)),
    left: Math.max(0, Math.ceil(box.left * width - slack)),
    bottom: Math.floor(box.bottom * height + slack),
    right: Math.floor(box.right * width + slack),
  };
}

/** Fraction of every cell that a box covers. */
function boxCoverage(box: Box, height: number, width: number): Float32Array {
  const along = (from: number, to: number, n: number) =>
    Array.from(
      { length: n },
      (_, i) => Math.max(0, Math.min(i + 1, to * n) - Math.max(i, from * n)),
    );
  const rows = along(box.top, box.bottom, height);
  const columns = along(box.left, box.right, width);
  return Float32Array.from(
    { length: height * width },
    (_, i) => rows[Math.floor(i / width)] * columns[i % width],
  );
}

/**
 * Mean of a mask over every cell of a grid; partly covered pixels have partial
 * weight.
 */
function maskCoverage(mask: Mask, height: number, width: number): Float32Array {
  // One axis after the other: a mean over a rectangle is separable.
  const rows = new Float64Array(height * mask.width);
  spans(mask.height, height).forEach((span, y) => {
    for (const [source, weight] of span) {
      for (let x = 0; x < mask.width; x++) {
        rows[y * mask.width + x] += weight *
          mask.values[source * mask.width + x];
      }
    }
  });
  const map = new Float32Array(height * width);
  spans(mask.width, width).forEach((span, x) => {
    for (let y = 0; y < height; y++) {
      let sum = 0;
      for (const [source, weight] of span) {
        sum += weight * rows[y * mask.width + source];
      }
      map[y * width + x] = sum;
    }
  });
  return map;
}

/** Which of `from` pixels lie in each of `to` cells, with weights of sum 1. */
function spans(from: number, to: number): [number, number][][] {
  const ratio = from / to;
  return Array.from({ length: to }, (_, i) => {
    const [start, end] = [i * ratio, (i + 1) * ratio];
    const span: [number, number][] = [];
    for (let j = Math.floor(start); j < Math.min(from, Math.ceil(end)); j++) {
      const part = Math.min(j + 1, end) - Math.max(j, start);
      if (part > 1e-12) span.push([j, part / ratio]);
    }
    return span;
  });
}

/**
 * Gaussian blur that repeats the border, so that the canvas has no edge.
 *
 * @param map `height * width` values, rows from the top.
 * @param height Rows.
 * @param width Columns.
 * @param sigma Standard deviation in cells, above 0.
 */
export function gaussianBlur(
  map: ArrayLike<number>,
  height: number,
  width: number,
  sigma: number,
): Float32Array {
  const reach = Math.ceil(3 * sigma);
  const kernel = Array.from(
    { length: 2 * reach + 1 },
    (_, i) => Math.exp(-((i - reach) ** 2) / (2 * sigma ** 2)),
  );
  const total = kernel.reduce((a, b) => a + b, 0);
  const clamp = (i: number, n: number) => Math.min(n - 1, Math.max(0, i));
  const pass = (source: ArrayLike<number>, vertical: boolean) =>
    Float32Array.from({ length: height * width }, (_, i) => {
      const [y, x] = [Math.floor(i / width), i % width];
      let sum = 0;
      for (let k = -reach; k <= reach; k++) {
        sum += kernel[k + reach] / total *
          (vertical
            ? source[clamp(y + k, height) * width + x]
            : source[y * width + clamp(x + k, width)]);
      }
      return sum;
    });
  return pass(pass(map, true), false);
}

/**
 * The weight of a region in every cell of a grid, 0 to 1.
 *
 * @param shape The region.
 * @param height Rows of the grid.
 * @param width Columns of the grid.
 * @param options Soft edges.
 * @returns `height * width` values, rows from the top.
 */
export function shapeMap(
  shape: Shape,
  height: number,
  width: number,
  options: ShapeOptions = {},
): Float32Array {
  const { feather = 0, coverage = 0.5 } = options;
  if (feather > 0) {
    const covered = "box" in shape
      ? boxCoverage(shape.box, height, width)
      : maskCoverage(shape.mask, height, width);
    const soft = gaussianBlur(
      covered,
      height,
      width,
      feather * Math.min(height, width),
    );
    // Weights in the Gaussian's tail are dropped, so that few pixels need the
    // region's attention.
    return soft.map((v) => v < 0.01 ? 0 : Math.min(1, v));
  }
  if ("mask" in shape) {
    return maskCoverage(shape.mask, height, width)
      .map((v) => v >= coverage - 1e-6 ? 1 : 0);
  }
  const { top, left, bottom, right } = boxCells(shape.box, height, width);
  return Float32Array.from({ length: height * width }, (_, i) => {
    const [y, x] = [Math.floor(i / width), i % width];
    return y >= top && y < bottom && x >= left && x < right ? 1 : 0;
  });
}

/**
 * Divides every cell among the regions that contain it.
 *
 * Regions with higher priority get their weight first; regions of equal
 * priority share equally (with hard edges this is the average of the official
 * code). The rest belongs to the global prompt.
 *
 * @param maps One map per region, from {@linkcode shapeMap}.
 * @param priorities One per region.
 * @returns One share map per region; the shares of a cell sum to at most 1.
 */
export function shareOut(
  maps: readonly Float32Array[],
  priorities: readonly number[] = maps.map(() => 0),
): Float32Array[] {
  const shares = maps.map((map) => new Float32Array(map.length));
  const size = maps[0]?.length ?? 0;
  const left = new Float64Array(size).fill(1);
  const levels = [...new Set(priorities)].sort((a, b) => b - a);
  for (const level of levels) {
    const members = maps.map((_, i) => i).filter((i) =>
      priorities[i] === level
    );
    for (let cell = 0; cell < size; cell++) {
      const claimed = members.reduce((sum, i) => sum + maps[i][cell], 0);
      if (claimed === 0) continue;
      for (const i of members) {
        shares[i][cell] = left[cell] * maps[i][cell] / Math.max(1, claimed);
      }
      left[cell] *= 1 - Math.min(1, claimed);
    }
  }
  return shares;
}

/** A region on one grid: which cells, and with what weight. */
export interface RegionPart {
  /** The bounding box. */
  readonly cells: Cells;
  /** Number of cells with a share. */
  readonly count: number;
  /** Indices into [h·w], if the cells are not a whole box. */
  readonly rows?: tf.Tensor1D;
  /** With `rows`: the index of every cell in `rows`, or 0 for none. */
  readonly places?: tf.Tensor1D;
  /** Shares [1, count, 1]; nothing if all are 1. */
  readonly shares?: tf.Tensor3D;
}

/** All regions on one grid. */
export interface RegionGrid {
  /** Undefined for a region that is too small for this grid. */
  readonly parts: readonly (RegionPart | undefined)[];
  /** The share of the global prompt (context) [1, h·w, 1]. */
  readonly context: tf.Tensor3D;
  /** Whether any cell has a share of the context. */
  readonly hasContext: boolean;
}

/** Regions on grids, cached by size; owns tensors. */
export interface RegionMaps {
  /** Number of regions. */
  readonly count: number;
  /** The regions on a grid; the tensors stay the maps'. */
  at(height: number, width: number): RegionGrid;
  /** Disposes the tensors. */
  dispose(): void;
}

/** A region without a prompt. */
export interface Place {
  /** Where it is. */
  readonly shape: Shape;
  /**
   * Where regions overlap, the highest priority wins; equal ones share.
   *
   * @default 0
   */
  readonly priority?: number;
}

/** Settings of {@linkcode regionMaps}. */
export interface RegionMapOptions extends ShapeOptions {
  /**
   * Fraction of the global prompt's attention that a region replaces, 0 to 1.
   *
   * @default 1
   */
  readonly replaceRatio?: number;
}

/**
 * Prepares regions for any resolution.
 *
 * @param places Where the regions are.
 * @param options Edges, replace ratio.
 * @throws If a box or mask is not valid, or an option out of range.
 */
export function regionMaps(
  places: readonly Place[],
  options: RegionMapOptions = {},
): RegionMaps {
  const { replaceRatio = 1, feather = 0 } = options;
  const what = "place regions";
  if (!(replaceRatio >= 0 && replaceRatio <= 1)) {
    throw cannot(what, "replaceRatio in [0, 1]", replaceRatio);
  }
  if (!(feather >= 0 && feather <= 0.5)) {
    throw cannot(what, "feather in [0, 0.5]", feather);
  }
  places.forEach(({ shape }, i) => checkShape(shape, `region ${i}`));
  const grids = new Map<string, RegionGrid>();
  return {
    count: places.length,
    at(height, width) {
      const name = `${height}x${width}`;
      const known = grids.get(name);
      if (known) return known;
      const shares = shareOut(
        places.map(({ shape }) => shapeMap(shape, height, width, options)),
        places.map(({ priority = 0 }) => priority),
      ).map((share) => share.map((v) => v * replaceRatio));
      const grid = makeGrid(shares, height, width);
      grids.set(name, grid);
      return grid;
    },
    dispose() {
      for (const { parts, context } of grids.values()) {
        tf.dispose([
          context,
          ...parts.flatMap((p) => p ? [p.rows, p.places, p.shares] : []),
        ]);
      }
      grids.clear();
    },
  };
}

/** Throws unless a shape can be used. */
function checkShape(shape: Shape, name: string): void {
  if ("box" in shape) {
    const { top, left, bottom, right } = shape.box;
    if (
      !(top >= 0 && left >= 0 && bottom <= 1 && right <= 1 && top < bottom &&
        left < right)
    ) {
      throw cannot(
        `place ${name}`,
        "a box with 0 ≤ top < bottom ≤ 1 and 0 ≤ left < right ≤ 1",
        shape.box,
      );
    }
    return;
  }
  const { width, height, values } = shape.mask;
  if (values.length !== width * height || values.length === 0) {
    throw cannot(
      `place ${name}`,
      `a mask of ${width}·${height} values`,
      values.length,
    );
  }
  let some = false;
  for (let i = 0; i < values.length; i++) {
    if (!(values[i] >= 0 && values[i] <= 1)) {
      throw cannot(`place ${name}`, "mask values in [0, 1]", values[i]);
    }
    some ||= values[i] > 0;
  }
  if (!some) throw cannot(`place ${name}`, "a mask that is not empty", "zeros");
}

function makeGrid(
  shares: readonly Float32Array[],
  height: number,
  width: number,
): RegionGrid {
  // Grids outlive the tidy of the step that first needs them.
  const own = <T extends tf.Tensor>(tensor: T): T => tf.keep(tensor);
  const left = new Float32Array(height * width).fill(1);
  const parts = shares.map((share): RegionPart | undefined => {
    const inside: number[] = [];
    share.forEach((v, i) => {
      if (v > 0) inside.push(i);
      left[i] -= v;
    });
    if (inside.length === 0) return undefined;
    const ys = inside.map((i) => Math.floor(i / width));
    const xs = inside.map((i) => i % width);
    const cells = {
      top: ys[0],
      left: xs.reduce((a, b) => Math.min(a, b)),
      bottom: ys[ys.length - 1] + 1,
      right: xs.reduce((a, b) => Math.max(a, b)) + 1,
    };
    const area = (cells.bottom - cells.top) * (cells.right - cells.left);
    const values = inside.map((i) => share[i]);
    const places = new Int32Array(height * width);
    inside.forEach((cell, i) => places[cell] = i + 1);
    return {
      cells,
      count: inside.length,
      ...(area === inside.length ? {} : {
        rows: own(tf.tensor1d(Int32Array.from(inside), "int32")),
        places: own(tf.tensor1d(places, "int32")),
      }),
      ...(values.every((v) => v === 1) ? {} : {
        shares: own(tf.tensor3d(values, [1, values.length, 1])),
      }),
    };
  });
  const rest = left.map((v) => v < 1e-6 ? 0 : v);
  return {
    parts,
    context: own(tf.tensor3d(rest, [1, height * width, 1])),
    hasContext: rest.some((v) => v > 0),
  };
}

/** The queries of a part [b, count, c]. */
function crop(
  query: tf.Tensor3D,
  part: RegionPart,
  height: number,
  width: number,
): tf.Tensor3D {
  const [b, , c] = query.shape;
  if (part.rows) return tf.gather(query, part.rows, 1);
  if (part.count === height * width) return query;
  const { top, left, bottom, right } = part.cells;
  return tf.slice(
    query.reshape([b, height, width, c]),
    [0, top, left, 0],
    [b, bottom - top, right - left, c],
  ).reshape([b, part.count, c]);
}

/** A part's output back in its place, zeros elsewhere [b, h·w, c]. */
function putBack(
  hidden: tf.Tensor3D,
  part: RegionPart,
  height: number,
  width: number,
): tf.Tensor3D {
  const [b, , c] = hidden.shape;
  if (part.places) {
    const none = tf.zeros([b, 1, c]) as tf.Tensor3D;
    return tf.gather(tf.concat([none, hidden], 1), part.places, 1);
  }
  if (part.count === height * width) return hidden;
  const { top, left, bottom, right } = part.cells;
  return tf.pad(
    hidden.reshape([b, bottom - top, right - left, c]),
    [[0, 0], [top, height - bottom], [left, width - right], [0, 0]],
  ).reshape([b, height * width, c]);
}

/** Wraps the attention computation of a region, or of the context. */
export type RegionScope = <T>(region: number, run: () => T) => T;

/**
 * Cross-attention with a prompt per region, as `crossAttend` of a UNet.
 *
 * @param maps Where the regions are.
 * @param states Text states, one tensor per region: [b or 1, tokens, d], or
 * layer-wise [b or 1, sites, tokens, d]; the caller's.
 * @param scope Called around the attention of every region.
 * @throws If the number of tensors is not that of the regions.
 *
 * @example
 * ```ts
 * const maps = regionMaps([{ shape: { box } }]);
 * const out = unet(params, config, x, [t], global, {
 *   crossAttend: regionalAttention(maps, [regionStates]),
 * });
 * ```
 */
export function regionalAttention(
  maps: RegionMaps,
  states: readonly tf.Tensor[],
  scope: RegionScope = (_, run) => run(),
): NonNullable<UNetOptions["crossAttend"]> {
  if (states.length !== maps.count) {
    throw cannot(
      "attend to regions",
      `text states for ${maps.count} regions`,
      states.length,
    );
  }
  return ({ index, height, width }: CrossAttentionCall) => {
    const grid = maps.at(height, width);
    if (grid.parts.every((part) => part === undefined)) return undefined;
    const replace: AttentionHooks["replace"] = (query, global, attend) => {
      let sum: tf.Tensor3D | undefined = grid.hasContext
        ? attend(query, global).mul(grid.context)
        : undefined;
      grid.parts.forEach((part, i) => {
        if (!part) return;
        const own = atSite(states[i], index, query.shape[0]);
        const hidden = scope(
          i,
          () => attend(crop(query, part, height, width), own),
        );
        const weighted: tf.Tensor3D = part.shares
          ? hidden.mul(part.shares)
          : hidden;
        const placed = putBack(weighted, part, height, width);
        sum = sum ? sum.add(placed) : placed;
      });
      return sum!;
    };
    return { replace };
  };
}

/** The states of one cross-attention site for a batch [b, tokens, d]. */
export function atSite(
  states: tf.Tensor,
  site: number,
  batch: number,
): tf.Tensor3D {
  const [rows] = states.shape;
  const here = states.rank === 3 ? states as tf.Tensor3D : tf.slice(
    states,
    [0, site, 0, 0],
    [rows, 1, states.shape[2]!, states.shape[3]!],
  ).reshape([rows, states.shape[2]!, states.shape[3]!]) as tf.Tensor3D;
  return rows === batch ? here : tf.tile(here, [batch / rows, 1, 1]);
}

/** The part of a model that encodes prompts. */
export type TextModel = Pick<
  Model,
  "tokenizer" | "unet" | "added" | "textEncoder"
>;

/** Text states of one prompt and its negative; owns tensors. */
export interface PromptRows {
  /**
   * States for a batch of one guidance branch, made once.
   *
   * @returns [rows, tokens, d] or [rows, sites, tokens, d], for `both` the
   * negative prompt's rows first; stays the owner's.
   */
  of(branch: GuidanceBranch, count: number): tf.Tensor3D | tf.Tensor4D;
  /** Disposes the states. */
  dispose(): void;
}

/**
 * Encodes a prompt and a negative prompt, for batches of any size.
 *
 * @param model The model whose text encoder and tokens are used.
 * @param prompt The prompt.
 * @param negative The negative prompt.
 * @param options Clip skip, syntax.
 * @returns Text states; dispose them afterwards.
 */
export function promptRows(
  model: TextModel,
  prompt: string,
  negative: string,
  options: PromptReading = {},
): PromptRows {
  // Encoded in one call, so that both are layer-wise or neither is.
  const pair = tf.tidy(() =>
    readPrompts(model, [negative, prompt], options) as tf.Tensor
  );
  const made = new Map<string, tf.Tensor>();
  return {
    of(branch, count) {
      const name = `${branch} ${count}`;
      const known = made.get(name);
      if (known) return known as tf.Tensor3D | tf.Tensor4D;
      const rows = tf.keep(tf.tidy(() => {
        const tail = pair.shape.slice(1);
        const times = [count, ...tail.map(() => 1)];
        const row = (i: number) =>
          tf.tile(
            tf.slice(pair, [i, ...tail.map(() => 0)], [1, ...tail]),
            times,
          );
        return branch === "both" ? tf.concat([row(0), row(1)], 0) : row(1);
      }));
      made.set(name, rows);
      return rows as tf.Tensor3D | tf.Tensor4D;
    },
    dispose() {
      tf.dispose([pair, ...made.values()]);
    },
  };
}

/** A region with its prompts. */
export interface RegionPrompt extends Place {
  /** The prompt. */
  readonly prompt: string;
  /**
   * The negative prompt.
   *
   * @default ""
   */
  readonly negative?: string;
  /**
   * The model whose text encoder and tokens are used.
   *
   * @default the model that samples
   */
  readonly text?: TextModel;
}

/** Settings of {@linkcode regionalSampling}. */
export interface RegionalOptions extends RegionMapOptions {
  /**
   * Fraction of the steps at which regions start, 0 to 1.
   *
   * @default 0
   */
  readonly start?: number;
  /**
   * Fraction of the steps at which regions end, 0 to 1.
   *
   * @default 1
   */
  readonly end?: number;
  /** Skips the last n layers of the text encoder. */
  readonly skipLast?: number;
  /** Whether prompts have A1111's weights, breaks and chunks. */
  readonly syntax?: PromptSyntax;
  /** Called around the attention of every region. */
  readonly scope?: RegionScope;
}

/**
 * Whether a call lies in an interval [start, end) of the sampling, where call i
 * of n is at i/n. Adjacent intervals share no call. In a run with one call,
 * that call is at 0.
 *
 * @param call The call.
 * @param part From `start` (0) to `end` (1).
 */
export function isWithin(
  { index, total }: Pick<UNetCall, "index" | "total">,
  { start = 0, end = 1 }: Pick<RegionalOptions, "start" | "end">,
): boolean {
  const at = index / total;
  return at >= start && at < end;
}

/** Regions ready for sampling; owns tensors. */
export interface RegionalSampling {
  /** `unet` of the pipeline: cross-attention for one call. */
  unet(call: UNetCall): UNetOptions;
  /** The regions' places at any resolution. */
  readonly maps: RegionMaps;
  /** Disposes the text states and maps. */
  dispose(): void;
}

/**
 * Prepares regional sampling for the pipeline: encodes the regions' prompts and
 * provides the options of every UNet call.
 *
 * @param model The model that samples.
 * @param regions Places and prompts; without any, the result is ordinary
 * sampling.
 * @param options Range of steps, replace ratio, soft edges.
 * @returns What the pipeline needs; dispose it afterwards.
 * @throws If a place or an option is not valid.
 *
 * @example
 * ```ts
 * const regional = regionalSampling(model, [{
 *   shape: { box: { top: 0, left: 0, bottom: 1, right: 0.5 } },
 *   prompt: "a <fox1> <fox2>",
 * }]);
 * const [picture] = await generate(model, {
 *   prompts: ["two animals on grass"],
 *   unet: (call) => regional.unet(call),
 * });
 * regional.dispose();
 * ```
 */
export function regionalSampling(
  model: Model,
  regions: readonly RegionPrompt[],
  options: RegionalOptions = {},
): RegionalSampling {
  const { start = 0, end = 1, skipLast, syntax, scope } = options;
  if (!(start >= 0 && start <= end && end <= 1)) {
    throw cannot(
      "sample regions",
      "0 ≤ start ≤ end ≤ 1",
      `start ${start}, end ${end}`,
    );
  }
  const maps = regionMaps(regions, options);
  const prompts: PromptRows[] = [];
  try {
    for (const { prompt, negative = "", text = model } of regions) {
      prompts.push(
        promptRows(
          text,
          prompt,
          negative,
          { skipLast, syntax },
        ),
      );
    }
  } catch (error) {
    for (const rows of prompts) rows.dispose();
    throw error;
  }
  return {
    maps,
    unet(call): UNetOptions {
      if (regions.length === 0 || !isWithin(call, { start, end })) return {};
      const { branch, count } = call;
      return {
        crossAttend: regionalAttention(
          maps,
          prompts.map((rows) => rows.of(branch, count)),
          scope,
        ),
      };
    },
    dispose() {
      maps.dispose();
      for (const rows of prompts) rows.dispose();
    },
  };
}
