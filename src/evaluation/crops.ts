/**
 * Crops for the masked score: the square around the known mask of a reference,
 * and a grid of squares in a generated picture.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { PixelBox } from "./preprocess.ts";

/**
 * The smallest square around a mask, grown by a margin and moved back inside
 * the picture where it would leave it.
 *
 * @param mask [height, width], 0–1; above one half is the object.
 * @param width Width of the picture in pixels.
 * @param margin Border on each side, as a share of the object's longer side.
 * @default margin 0.1
 * @throws If the mask is empty or no multiple of the width.
 */
export function squareAround(
  mask: Float32Array,
  width: number,
  margin = 0.1,
): PixelBox {
  const height = mask.length / width;
  if (!Number.isInteger(height)) {
    throw cannot("crop to a mask", `a multiple of ${width}`, mask.length);
  }
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let i = 0; i < mask.length; i++) {
    if (mask[i] <= 0.5) continue;
    const x = i % width, y = Math.floor(i / width);
    left = Math.min(left, x);
    right = Math.max(right, x);
    top = Math.min(top, y);
    bottom = Math.max(bottom, y);
  }
  if (right < 0) throw cannot("crop to a mask", "an object in it", "none");
  const long = Math.max(right - left, bottom - top) + 1;
  const side = Math.min(width, height, Math.round(long * (1 + 2 * margin)));
  const place = (low: number, high: number, limit: number): number =>
    Math.max(
      0,
      Math.min(limit - side, Math.round((low + high + 1 - side) / 2)),
    );
  return {
    x: place(left, right, width),
    y: place(top, bottom, height),
    width: side,
    height: side,
  };
}

/** Settings of {@linkcode windows}. */
export interface WindowOptions {
  /**
   * Sides of the squares, as shares of the region's shorter side.
   *
   * @default [0.5, 0.65, 0.8]
   */
  readonly sides?: readonly number[];
  /**
   * Steps between squares, as a share of their side (rounded so that the first
   * and the last touch the region's edges).
   *
   * @default 0.3
   */
  readonly step?: number;
  /** Where the object may be; by default the whole picture. */
  readonly region?: PixelBox;
}

/**
 * A grid of squares in which an object may be.
 *
 * @param width Width of the picture in pixels.
 * @param height Height of the picture in pixels.
 * @param options Sizes, steps, region.
 * @returns Boxes of whole pixels inside the region, all different.
 */
export function windows(
  width: number,
  height: number,
  options: WindowOptions = {},
): PixelBox[] {
  const { sides = [0.5, 0.65, 0.8], step = 0.3 } = options;
  const region = options.region ?? { x: 0, y: 0, width, height };
  const boxes = new Map<string, PixelBox>();
  for (const share of sides) {
    const side = Math.max(
      1,
      Math.round(share * Math.min(region.width, region.height)),
    );
    const starts = (length: number): number[] => {
      const room = length - side;
      const count = Math.ceil(room / (step * side));
      return count === 0
        ? [0]
        : Array.from({ length: count + 1 }, (_, i) =>
          Math.round(room * i / count));
    };
    for (const y of starts(region.height)) {
      for (const x of starts(region.width)) {
        const box = {
          x: region.x + x,
          y: region.y + y,
          width: side,
          height: side,
        };
        boxes.set(Object.values(box).join(), box);
      }
    }
  }
  return [...boxes.values()];
}
