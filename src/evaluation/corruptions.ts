/**
 * Corrupts pictures in known ways that an evaluator of identity must detect.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, type Key, permutation } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";

/** A way to corrupt the subject of a picture. */
export type Corruption =
  | "shuffled8"
  | "shuffled4"
  | "pixelated8"
  | "pixelated4"
  | "blob"
  | "hue";

/** All corruptions, in the order of tables. */
export const CORRUPTIONS: readonly Corruption[] = [
  "shuffled8",
  "shuffled4",
  "pixelated8",
  "pixelated4",
  "blob",
  "hue",
];

/** A picture of RGB bytes and where its subject is. */
export interface MaskedPicture {
  /** RGB. */
  readonly image: Pixels;
  /** `[height * width]`, 0–1: the subject. */
  readonly mask: Float32Array;
}

/**
 * Scales a length for 64-pixel pictures to the size of a picture; at least 1.
 */
function scaled(pixels: number, { width, height }: Pixels): number {
  return Math.max(1, Math.round(pixels * Math.min(width, height) / 64));
}

/**
 * Corrupts the subject of a picture. The background stays, except where tiles
 * at the subject's edge contain some of it.
 *
 * Tiles and blocks of 8 and 4 pixels are those of a 64-pixel picture and grow
 * with the picture.
 *
 * - `shuffled`: tiles that lie at least half inside the mask change places, all
 *   of them; a subject of fewer than two tiles stays as it is;
 * - `pixelated`: each block of the subject takes its mean colour;
 * - `blob`: the whole subject is blurred to its colours;
 * - `hue`: colours turn by a third of the circle; greys stay.
 *
 * @param subject Picture and mask of the same size.
 * @param how Which way.
 * @param key Randomness of a shuffle.
 * @returns A picture of the same size.
 * @throws If the picture is not RGB, the mask has another size or goes beyond
 * 0–1.
 *
 * @example
 * ```ts ignore
 * const scrambled = corrupt({ image, mask }, "shuffled8", key(1));
 * ```
 */
export function corrupt(
  { image, mask }: MaskedPicture,
  how: Corruption,
  key: Key,
): Pixels {
  if (image.channels !== 3 || mask.length !== image.width * image.height) {
    throw cannot(
      "spoil a picture",
      "RGB and a mask of its size",
      `${image.channels} channels, ${image.width}×${image.height} and ${mask.length} mask values`,
    );
  }
  const odd = mask.find((m) => !(m >= 0 && m <= 1));
  if (odd !== undefined) {
    throw cannot("spoil a picture", "mask values from 0 to 1", odd);
  }
  switch (how) {
    case "shuffled8":
    case "shuffled4":
      return shuffled(
        image,
        mask,
        scaled(how === "shuffled8" ? 8 : 4, image),
        key,
      );
    case "pixelated8":
    case "pixelated4":
      return blended(
        image,
        mask,
        pixelated(image, mask, scaled(how === "pixelated8" ? 8 : 4, image)),
      );
    case "blob":
      return blended(image, mask, blurred(image, mask, scaled(10, image)));
    case "hue":
      return blended(image, mask, turned(image));
  }
}

/** `other` inside the mask, the picture outside. */
function blended(
  image: Pixels,
  mask: Float32Array,
  other: Float32Array,
): Pixels {
  const data = new Uint8Array(image.data.length);
  for (let i = 0; i < data.length; i++) {
    const share = mask[Math.floor(i / 3)];
    data[i] = Math.round(image.data[i] * (1 - share) + other[i] * share);
  }
  return { ...image, data };
}

function shuffled(
  image: Pixels,
  mask: Float32Array,
  tile: number,
  key: Key,
): Pixels {
  const { width, height } = image;
  // The grid starts at the subject's edge, so that any subject has tiles.
  let left = width, top = height;
  mask.forEach((m, i) => {
    if (m < 0.5) return;
    left = Math.min(left, i % width);
    top = Math.min(top, Math.floor(i / width));
  });
  const tiles: [number, number][] = [];
  for (let y = top % tile; y + tile <= height; y += tile) {
    for (let x = left % tile; x + tile <= width; x += tile) {
      let inside = 0;
      for (let r = 0; r < tile; r++) {
        for (let c = 0; c < tile; c++) {
          inside += mask[(y + r) * width + x + c];
        }
      }
      if (inside >= tile * tile / 2) tiles.push([x, y]);
    }
  }
  const data = image.data.slice();
  const order = derangement(tiles.length, key);
  tiles.forEach(([x, y], i) => {
    const [fromX, fromY] = tiles[order[i]];
    for (let r = 0; r < tile; r++) {
      const from = ((fromY + r) * width + fromX) * 3;
      data.set(
        image.data.subarray(from, from + tile * 3),
        ((y + r) * width + x) * 3,
      );
    }
  });
  return { ...image, data };
}

/** A random derangement of n: no element stays in its place, if n > 1. */
function derangement(n: number, key: Key): number[] {
  const order = [...permutation(fold(key, "tiles"), n)];
  // An element in its own place is swapped with its neighbour; neither is in
  // its own place afterwards.
  for (let i = 0; i < n && n > 1; i++) {
    if (order[i] !== i) continue;
    const j = (i + 1) % n;
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/** Every block of the grid in the mean colour of what lies in the mask. */
function pixelated(
  image: Pixels,
  mask: Float32Array,
  block: number,
): Float32Array {
  const { width, height } = image;
  const out = Float32Array.from(image.data);
  for (let top = 0; top < height; top += block) {
    for (let left = 0; left < width; left += block) {
      const sum = [0, 0, 0];
      let weight = 0;
      const bottom = Math.min(height, top + block);
      const right = Math.min(width, left + block);
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          const m = mask[y * width + x];
          weight += m;
          for (let c = 0; c < 3; c++) {
            sum[c] += m * image.data[(y * width + x) * 3 + c];
          }
        }
      }
      if (weight === 0) continue;
      for (let y = top; y < bottom; y++) {
        for (let x = left; x < right; x++) {
          for (let c = 0; c < 3; c++) {
            out[(y * width + x) * 3 + c] = sum[c] / weight;
          }
        }
      }
    }
  }
  return out;
}

/** A wide box blur, twice, of the subject's own colours. */
function blurred(
  image: Pixels,
  mask: Float32Array,
  radius: number,
): Float32Array {
  const { width, height } = image;
  // Premultiplied by the mask, so that background colours are not mixed in.
  const planes = [0, 1, 2, 3].map((c) => {
    let now = new Float32Array(mask.length);
    for (let i = 0; i < now.length; i++) {
      now[i] = c === 3 ? mask[i] : mask[i] * image.data[i * 3 + c];
    }
    for (let pass = 0; pass < 2; pass++) {
      now = boxed(
        boxed(now, width, height, radius, 1),
        width,
        height,
        radius,
        width,
      );
    }
    return now;
  });
  const out = new Float32Array(image.data.length);
  for (let i = 0; i < mask.length; i++) {
    for (let c = 0; c < 3; c++) {
      out[i * 3 + c] = planes[3][i] > 1e-6
        ? planes[c][i] / planes[3][i]
        : image.data[i * 3 + c];
    }
  }
  return out;
}

/** Means along one axis: `stride` 1 is along rows, `width` along columns. */
function boxed(
  plane: Float32Array,
  width: number,
  height: number,
  radius: number,
  stride: number,
): Float32Array<ArrayBuffer> {
  const out = new Float32Array(plane.length);
  const length = stride === 1 ? width : height;
  const lines = stride === 1 ? height : width;
  const sums = new Float64Array(length + 1);
  for (let line = 0; line < lines; line++) {
    const start = line * (stride === 1 ? width : 1);
    for (let i = 0; i < length; i++) {
      sums[i + 1] = sums[i] + plane[start + i * stride];
    }
    for (let i = 0; i < length; i++) {
      const from = Math.max(0, i - radius);
      const to = Math.min(length, i + radius + 1);
      out[start + i * stride] = (sums[to] - sums[from]) / (2 * radius + 1);
    }
  }
  return out;
}

/** Red takes green's place, green blue's, blue red's: a third of the circle. */
function turned(image: Pixels): Float32Array {
  const out = new Float32Array(image.data.length);
  for (let i = 0; i < out.length; i += 3) {
    out[i] = image.data[i + 1];
    out[i + 1] = image.data[i + 2];
    out[i + 2] = image.data[i];
  }
  return out;
}
