/**
 * Condition images for T2I-Adapters and ControlNets: from masks, edges of a
 * picture, key points.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { Pixels } from "../io/png.ts";
import { gaussianBlur, type Mask, type Shape, shapeMap } from "./regions.ts";

/** A one-channel picture with values in [0, 1]; it can be used as a mask. */
export interface Grey extends Mask {
  /** `height * width` values in [0, 1], rows from the top. */
  readonly values: Float32Array;
}

/** How opaque a pixel is, 0 to 1. */
function alphaOf({ channels, data }: Pixels, pixel: number): number {
  return channels % 2 === 0 ? data[(pixel + 1) * channels - 1] / 255 : 1;
}

/**
 * The luminance of a picture (Rec. 601), transparent pixels on black.
 *
 * @param image 8-bit pixels of 1 to 4 channels.
 */
export function greyOf(image: Pixels): Grey {
  const { width, height, channels, data } = image;
  const colored = channels >= 3;
  const values = Float32Array.from({ length: width * height }, (_, i) => {
    const at = i * channels;
    const light = colored
      ? 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2]
      : data[at];
    return Math.min(1, light * alphaOf(image, i) / 255);
  });
  return { width, height, values };
}

/**
 * A one-channel picture as 8-bit pixels.
 *
 * @param image Values in [0, 1].
 */
export function greyPixels(image: Mask): Pixels {
  return {
    width: image.width,
    height: image.height,
    channels: 1,
    data: Uint8Array.from(
      image.values,
      (v) => Math.round(255 * Math.min(1, Math.max(0, v))),
    ),
  };
}

/**
 * Regions as one picture: white inside any of them.
 *
 * @param shapes The regions.
 * @param height Pixels.
 * @param width Pixels.
 */
export function maskImage(
  shapes: readonly Shape[],
  height: number,
  width: number,
): Grey {
  const values = new Float32Array(height * width);
  for (const shape of shapes) {
    shapeMap(shape, height, width).forEach((v, i) => {
      values[i] = Math.max(values[i], v);
    });
  }
  return { width, height, values };
}

/** Settings of {@linkcode canny}. */
export interface CannyOptions {
  /**
   * Standard deviation of the initial Gaussian blur, in pixels.
   *
   * @default 1
   */
  readonly sigma?: number;
  /**
   * Gradient above which a pixel next to an edge is also an edge; a step from
   * black to white has gradient 1 before the blur.
   *
   * @default 0.1
   */
  readonly low?: number;
  /**
   * Gradient above which a pixel is an edge.
   *
   * @default 0.2
   */
  readonly high?: number;
}

/**
 * Edges of a picture, one pixel wide (Canny 1986): Gaussian, Sobel, non-maximum
 * suppression, hysteresis.
 *
 * @param image The picture; see {@linkcode greyOf}.
 * @param options Blur and thresholds.
 * @returns 1 on edges, 0 elsewhere.
 * @throws If an option is out of range.
 *
 * @example
 * ```ts
 * const sketch = canny(greyOf(decodePng(await Deno.readFile("fox.png"))));
 * ```
 */
export function canny(image: Mask, options: CannyOptions = {}): Grey {
  const { sigma = 1, low = 0.1, high = 0.2 } = options;
  if (!(sigma >= 0) || !(low >= 0) || !(high >= low)) {
    throw cannot(
      "find edges",
      "sigma ≥ 0 and 0 ≤ low ≤ high",
      `sigma ${sigma}, low ${low}, high ${high}`,
    );
  }
  const { width, height } = image;
  const clamp = (i: number, n: number) => Math.min(n - 1, Math.max(0, i));
  const smooth = sigma === 0
    ? Float32Array.from(image.values)
    : gaussianBlur(image.values, height, width, sigma);
  const size = new Float32Array(width * height);
  // Direction across the edge: 0 →, 1 ↘, 2 ↓, 3 ↙.
  const across = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = (dy: number, dx: number) =>
        smooth[clamp(y + dy, height) * width + clamp(x + dx, width)];
      const dx = (value(-1, 1) + 2 * value(0, 1) + value(1, 1) -
        value(-1, -1) - 2 * value(0, -1) - value(1, -1)) / 4;
      const dy = (value(1, -1) + 2 * value(1, 0) + value(1, 1) -
        value(-1, -1) - 2 * value(-1, 0) - value(-1, 1)) / 4;
      size[y * width + x] = Math.hypot(dx, dy);
      across[y * width + x] = (Math.round(Math.atan2(dy, dx) / (Math.PI / 4)) +
        4) % 4;
    }
  }
  const steps = [[0, 1], [1, 1], [1, 0], [1, -1]] as const;
  const thin = size.map((v, i) => {
    const [y, x] = [Math.floor(i / width), i % width];
    const [dy, dx] = steps[across[i]];
    const at = (sign: number) => {
      const [py, px] = [y + sign * dy, x + sign * dx];
      return py < 0 || px < 0 || py >= height || px >= width
        ? 0
        : size[py * width + px];
    };
    // Of two equal neighbours the later one is kept, with a tolerance for
    // rounding.
    return v > at(1) + 1e-6 && v >= at(-1) - 1e-6 ? v : 0;
  });
  return { width, height, values: hysteresis(thin, width, low, high) };
}

/** Keeps what is above `high`, and what is above `low` and touches it. */
function hysteresis(
  size: Float32Array,
  width: number,
  low: number,
  high: number,
): Float32Array {
  const height = size.length / width;
  const edges = new Float32Array(size.length);
  const open: number[] = [];
  const take = (i: number) => {
    edges[i] = 1;
    open.push(i);
  };
  size.forEach((v, i) => {
    if (v > high && edges[i] === 0) take(i);
    while (open.length > 0) {
      const from = open.pop()!;
      const [y, x] = [Math.floor(from / width), from % width];
      for (
        let py = Math.max(0, y - 1);
        py <= Math.min(height - 1, y + 1);
        py++
      ) {
        for (
          let px = Math.max(0, x - 1);
          px <= Math.min(width - 1, x + 1);
          px++
        ) {
          const to = py * width + px;
          if (edges[to] === 0 && size[to] > low) take(to);
        }
      }
    }
  });
  return edges;
}

/** A point to draw, in fractions of the picture. */
export interface KeyPoint {
  /** From the left, a fraction of the width. */
  readonly x: number;
  /** From the top, a fraction of the height. */
  readonly y: number;
  /** RGB in [0, 1]; white if not given. */
  readonly color?: readonly [number, number, number];
}

/** Settings of {@linkcode keyPointImage}. */
export interface KeyPointOptions {
  /** Pairs of points to join by a line, in the first one's color. */
  readonly links?: readonly (readonly [number, number])[];
  /**
   * Radius of a point, as a fraction of the shorter side.
   *
   * @default 0.02
   */
  readonly radius?: number;
}

/**
 * Draws key points and the lines between them, on black.
 *
 * @param points The points; those outside the picture are not visible.
 * @param height Pixels.
 * @param width Pixels.
 * @param options Lines, radius.
 * @throws If a link names a point that is not there.
 */
export function keyPointImage(
  points: readonly KeyPoint[],
  height: number,
  width: number,
  options: KeyPointOptions = {},
): Pixels {
  const { links = [], radius = 0.02 } = options;
  const data = new Uint8Array(height * width * 3);
  const reach = Math.max(0.5, radius * Math.min(height, width));
  const stroke = (a: KeyPoint, b: KeyPoint, thick: number) => {
    const [ax, ay] = [a.x * width, a.y * height];
    const [bx, by] = [b.x * width, b.y * height];
    const length = (bx - ax) ** 2 + (by - ay) ** 2;
    const color = (a.color ?? [1, 1, 1]).map((v) => Math.round(255 * v));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [px, py] = [x + 0.5, y + 0.5];
        const along = length === 0 ? 0 : Math.min(
          1,
          Math.max(0, ((px - ax) * (bx - ax) + (py - ay) * (by - ay)) / length),
        );
        const distance = Math.hypot(
          px - ax - along * (bx - ax),
          py - ay - along * (by - ay),
        );
        if (distance <= thick) data.set(color, (y * width + x) * 3);
      }
    }
  };
  for (const [from, to] of links) {
    if (!points[from] || !points[to]) {
      throw cannot(
        "draw key points",
        `links between points 0 to ${points.length - 1}`,
        `${from} to ${to}`,
      );
    }
    stroke(points[from], points[to], Math.max(0.5, reach / 2));
  }
  for (const point of points) stroke(point, point, reach);
  return { width, height, channels: 3, data };
}

/**
 * Converts a condition image to the networks' input; transparent pixels become
 * black.
 *
 * @param image One channel in [0, 1], or 8-bit pixels.
 * @param channels Channels of the network: 1 or 3; grey is repeated.
 * @returns [1, height, width, channels] in [0, 1]; the caller's.
 * @throws If it has another number of channels.
 */
export function conditionTensor(
  image: Mask | Pixels,
  channels: number,
): tf.Tensor4D {
  const { width, height } = image;
  if (channels !== 1 && channels !== 3) {
    throw cannot("make a condition image", "1 or 3 channels", channels);
  }
  if ("data" in image && image.channels >= 3 && channels === 3) {
    const { data, channels: own } = image;
    const values = Float32Array.from({ length: width * height * 3 }, (_, i) => {
      const pixel = Math.floor(i / 3);
      return data[pixel * own + i % 3] * alphaOf(image, pixel) / 255;
    });
    return tf.tensor4d(values, [1, height, width, 3]);
  }
  const grey = "data" in image ? greyOf(image) : image;
  const values = Float32Array.from(
    { length: width * height * channels },
    (_, i) => grey.values[Math.floor(i / channels)],
  );
  return tf.tensor4d(values, [1, height, width, channels]);
}
