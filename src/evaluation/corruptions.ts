/**
 * Pictures spoiled in known ways: what an evaluator of identity has to notice.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, type Key, permutation } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";

/** A way to spoil a picture's subject. */
export type Corruption =
  | "shuffled8"
  | "shuffled4"
  | "pixelated8"
  | "pixelated4"
  | "blob"
  | "hue";

/** All of them, in the order of tables. */
export const CORRUPTIONS: readonly Corruption[] = [
  "shuffled8",
  "shuffled4",
  "pixelated8",
  "pixelated4",
  "blob",
  "hue",
];

/** A picture of RGB bytes and where its subject is. */
export interface Subject {
  /** RGB. */
  readonly image: Pixels;
  /** `[height * width]`, 0–1: the subject. */
  readonly mask: Float32Array;
}

/** A share of a square picture's side in pixels, at least 1. */
function tileOf(image: Pixels, tiles64: number): number {
  return Math.max(
    1,
    Math.round(tiles64 * Math.min(image.width, image.height) / 64),
  );
}

/**
 * Spoils the subject of a picture; the background stays.
 *
 * Tiles and blocks of 8 and 4 pixels are meant for pictures of 64 pixels and
 * grow with the picture.
 *
 * - `shuffled`: tiles that lie at least half inside the mask change places;
 * - `pixelated`: each block of the subject takes its mean colour;
 * - `blob`: the whole subject is blurred to its colours;
 * - `hue`: colours turn by a third of the circle.
 *
 * @param subject Picture and mask of the same size.
 * @param how Which way.
 * @param key Randomness of a shuffle.
 * @returns A picture of the same size.
 * @throws If the picture is not RGB or the mask has another size.
 */
export function corrupt(
  { image, mask }: Subject,
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
  switch (how) {
    case "shuffled8":
    case "shuffled4":
      return shuffled(
        image,
        mask,
        tileOf(image, how === "shuffled8" ? 8 : 4),
        key,
      );
    case "pixelated8":
    case "pixelated4":
      return blended(
        image,
        mask,
        pixelated(image, mask, tileOf(image, how === "pixelated8" ? 8 : 4)),
      );
    case "blob":
      return blended(image, mask, blurred(image, mask, tileOf(image, 10)));
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
  // The grid starts where the subject does, so that any subject has tiles.
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

/** A random order of n in which next to nothing stays in its place. */
function derangement(n: number, key: Key): number[] {
  const order = [...permutation(fold(key, "tiles"), n)];
  // Each of those that stayed changes places with its neighbour.
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
  // Premultiplied by the mask, so that no background runs in.
  const planes = [0, 1, 2, 3].map((c) =>
    Float32Array.from(
      mask,
      (m, i) => c === 3 ? m : m * image.data[i * 3 + c],
    )
  ).map((plane) => {
    let now: Float32Array = plane;
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

/** Sums along one axis: `stride` 1 is along rows, `width` along columns. */
function boxed(
  plane: Float32Array,
  width: number,
  height: number,
  radius: number,
  stride: number,
): Float32Array {
  const out = new Float32Array(plane.length);
  const length = stride === 1 ? width : height;
  for (let i = 0; i < plane.length; i++) {
    const at = stride === 1 ? i % width : Math.floor(i / width);
    let sum = 0;
    for (
      let k = Math.max(-radius, -at);
      k <= Math.min(radius, length - 1 - at);
      k++
    ) sum += plane[i + k * stride];
    out[i] = sum / (2 * radius + 1);
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
