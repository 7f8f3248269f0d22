/**
 * Feature maps in horizontal bands, for pictures whose features are larger than
 * what an operation on the graphics card can take (128 channels of 512 × 512
 * pixels are 128 MiB).
 *
 * Results are those of the whole map: convolutions see the lines of the
 * neighbouring bands, and a group norm takes its mean and variance over all of
 * them. A band with its neighbours' lines is the largest tensor there is.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { addAll } from "../core/device.ts";
import { upsampleNearest2x } from "../core/kernels/ops.ts";
import { activate } from "../nn/activation.ts";
import { type Context, type Conv, conv2d } from "../nn/linear.ts";
import type { Norm } from "../nn/norm.ts";
import { type Resnet, resnet } from "./unet.ts";

/** Bands [b, h, w, c] of one map, from top to bottom. */
export type Bands = tf.Tensor4D[];

/** How large tensors may be. */
export interface BandOptions extends Context {
  /** Bytes of the largest tensor. */
  readonly maxBytes: number;
  /**
   * Heights of new bands are multiples of this, the last one's aside.
   *
   * @default 1
   */
  readonly multiple?: number;
}

/** Settings of the norms and activations between convolutions. */
export interface BandNorm {
  /** Groups of the norm. */
  readonly groups: number;
  /** Added to the variance. */
  readonly eps: number;
  /** Name of the activation after it. */
  readonly act: string;
}

function heightOf(bands: Bands): number {
  return bands.reduce((sum, band) => sum + band.shape[1], 0);
}

/**
 * Cuts bands so that each, with a line of each neighbour, fits.
 *
 * @param bands The map; where nothing is cut it is returned as it is.
 * @param channels The most channels it will have.
 * @param options How large tensors may be.
 * @returns The cut map; the old one is disposed by the enclosing tidy.
 */
export function cutBands(
  bands: Bands,
  channels: number,
  { maxBytes, multiple = 1 }: BandOptions,
): Bands {
  const [b, , w] = bands[0].shape;
  const height = heightOf(bands);
  const line = 4 * b * w * channels;
  if (bands.length === 1 && height * line <= maxBytes) return bands;
  const fitting = Math.floor((Math.floor(maxBytes / line) - 2) / multiple);
  const most = multiple * Math.max(fitting, 1);
  return bands.flatMap((band) => {
    const count = Math.ceil(band.shape[1] / most);
    if (count === 1) return [band];
    const even = Math.ceil(band.shape[1] / count / multiple) * multiple;
    const parts: tf.Tensor4D[] = [];
    for (let from = 0; from < band.shape[1]; from += even) {
      const rows = Math.min(even, band.shape[1] - from);
      parts.push(tf.slice(band, [0, from, 0, 0], [-1, rows, -1, -1]));
    }
    return parts;
  });
}

/**
 * The whole map.
 *
 * @param bands Its bands.
 */
export function joinBands(bands: Bands): tf.Tensor4D {
  return bands.length === 1 ? bands[0] : tf.concat(bands, 1);
}

/** A band with the last line of the one above and the first of the one below. */
function withNeighbours(
  bands: Bands,
  i: number,
  sides: { readonly above: boolean; readonly below: boolean },
): tf.Tensor4D {
  const parts = [bands[i]];
  if (sides.above && i > 0) {
    const rows = bands[i - 1].shape[1];
    parts.unshift(
      tf.slice(bands[i - 1], [0, rows - 1, 0, 0], [-1, 1, -1, -1]),
    );
  }
  if (sides.below && i + 1 < bands.length) {
    parts.push(tf.slice(bands[i + 1], [0, 0, 0, 0], [-1, 1, -1, -1]));
  }
  return joinBands(parts);
}

/** Mean and reciprocal deviation of each channel's group [b, 1, 1, c]. */
function moments(
  bands: Bands,
  groups: number,
  eps: number,
): { mean: tf.Tensor4D; scale: tf.Tensor4D } {
  const [b, , w, c] = bands[0].shape;
  const count = heightOf(bands) * w * c / groups;
  const perChannel = (groupSums: tf.Tensor) =>
    tf.tile(groupSums.reshape([b, groups, 1]), [1, 1, c / groups])
      .reshape([b, 1, 1, c]) as tf.Tensor4D;
  // Channel by channel first: it keeps the partial sums of float32 short.
  const over = (value: (band: tf.Tensor4D) => tf.Tensor): tf.Tensor =>
    tf.tidy(() =>
      addAll(
        bands.map((band): tf.Tensor =>
          tf.tidy(() =>
            value(band).sum([1]).sum([1]).reshape([b, groups, c / groups]).sum(
              2,
            )
          )
        ),
      ).div(count)
    );
  const mean = perChannel(over((band) => band));
  const variance = perChannel(over((band) => band.sub(mean).square()));
  return { mean, scale: variance.add(eps).rsqrt() as tf.Tensor4D };
}

/**
 * Norm, activation and a 3×3 convolution in one go, band by band, so that what
 * is between them never exists as a whole.
 *
 * @param norm The norm.
 * @param conv The convolution.
 * @param bands The map.
 * @param settings Groups, ε, activation.
 * @param context Observers.
 */
export function normConvBands(
  norm: Norm,
  conv: Conv,
  bands: Bands,
  settings: BandNorm,
  context?: Context,
): Bands {
  return tf.tidy(() => {
    const { mean, scale } = moments(bands, settings.groups, settings.eps);
    const gamma = scale.mul(norm.weight);
    return convBands(conv, bands, context, (x) =>
      activate(
        settings.act,
        x.sub(mean).mul(gamma).add(norm.bias) as tf.Tensor4D,
      ));
  });
}

/**
 * A 3×3 convolution.
 *
 * @param conv The convolution.
 * @param bands The map.
 * @param context Observers.
 * @param before What is done to every pixel first.
 */
export function convBands(
  conv: Conv,
  bands: Bands,
  context?: Context,
  before: (x: tf.Tensor4D) => tf.Tensor4D = (x) => x,
): Bands {
  return bands.map((_, i) =>
    tf.tidy(() => {
      const x = withNeighbours(bands, i, { above: true, below: true });
      return conv2d(conv, before(x), { pad: edges(bands, i) }, context);
    })
  );
}

/** Padding of a band: above the first and below the last, and at the sides. */
function edges(
  bands: Bands,
  i: number,
): [[number, number], [number, number]] {
  return [[i === 0 ? 1 : 0, i === bands.length - 1 ? 1 : 0], [1, 1]];
}

/**
 * A resnet without time embedding.
 *
 * @param p Its parameters.
 * @param bands The map; cut further where the resnet needs it.
 * @param settings Groups, ε, activation.
 * @param options How large tensors may be.
 */
export function resnetBands(
  p: Resnet,
  bands: Bands,
  settings: BandNorm,
  options: BandOptions,
): Bands {
  const [, , inputs, outputs] = p.conv1.weight.shape;
  return tf.tidy(() => {
    const x = cutBands(bands, Math.max(inputs, outputs), options);
    if (x.length === 1) return [resnet(p, x[0], settings, options)];
    const inner = normConvBands(p.norm1, p.conv1, x, settings, options);
    const h = normConvBands(p.norm2, p.conv2, inner, settings, options);
    tf.dispose(inner);
    return h.map((band, i) =>
      tf.tidy(() => {
        const shortcut = p.conv_shortcut
          ? conv2d(p.conv_shortcut, x[i], { pad: 0 }, options)
          : x[i];
        return shortcut.add(band) as tf.Tensor4D;
      })
    );
  });
}

/**
 * Twice the resolution and a 3×3 convolution.
 *
 * @param conv The convolution.
 * @param bands The map.
 * @param options How large tensors may be.
 */
export function upsampleBands(
  conv: Conv,
  bands: Bands,
  options: BandOptions,
): Bands {
  const [, , inputs, outputs] = conv.weight.shape;
  return tf.tidy(() => {
    // Four pixels for each, and two lines of each neighbour.
    const most = 4 * Math.max(inputs, outputs);
    const x = cutBands(bands, most, options);
    return x.map((_, i) =>
      tf.tidy(() => {
        let y = upsampleNearest2x(
          withNeighbours(x, i, { above: true, below: true }),
        );
        const above = i > 0 ? 1 : 0;
        const below = i + 1 < x.length ? 1 : 0;
        if (above + below > 0) {
          // Of the neighbours' doubled lines the convolution sees one.
          const rows = y.shape[1] - above - below;
          y = tf.slice(y, [0, above, 0, 0], [-1, rows, -1, -1]);
        }
        return conv2d(conv, y, { pad: edges(x, i) }, options);
      })
    );
  });
}

/**
 * Half the resolution: a 3×3 convolution of stride 2, padded on the right and
 * below only.
 *
 * @param conv The convolution.
 * @param bands The map; every band has an even height, but for the last.
 * @param options How large tensors may be.
 */
export function downsampleBands(
  conv: Conv,
  bands: Bands,
  options: BandOptions,
): Bands {
  return tf.tidy(() => {
    const halves = bands.map((_, i) =>
      tf.tidy(() =>
        conv2d(
          conv,
          withNeighbours(bands, i, { above: false, below: true }),
          { stride: 2, pad: [[0, i === bands.length - 1 ? 1 : 0], [0, 1]] },
          options,
        )
      )
    );
    const [b, , w, c] = halves[0].shape;
    const whole = 4 * b * heightOf(halves) * w * c;
    return whole <= options.maxBytes ? [joinBands(halves)] : halves;
  });
}
