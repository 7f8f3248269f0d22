/**
 * Pictures on their way into a CLIP vision tower: antialiased resize, centre
 * crop, normalisation, as transformers' `CLIPImageProcessor` does them on top
 * of Pillow.
 *
 * @module
 */
import { z } from "zod";
import { cannot } from "../core/errors.ts";
import { checkJson } from "../io/files.ts";
import type { Pixels } from "../io/png.ts";

/** What is done to a picture before it is embedded. */
export interface Preprocess {
  /** Length in pixels that the shorter side is resized to; absent keeps it. */
  readonly shortest?: number;
  /** Height and width of the centre crop in pixels; absent keeps all. */
  readonly crop?: readonly [number, number];
  /** Pillow's filter. */
  readonly filter: "bicubic" | "bilinear";
  /** Mean of each channel, subtracted from values in [0, 1]. */
  readonly mean: readonly [number, number, number];
  /** Standard deviation of each channel, divided by afterwards. */
  readonly std: readonly [number, number, number];
}

const side = z.number().int().positive();
const triple = z.tuple([z.number(), z.number(), z.number()]);
const schema = z.object({
  do_resize: z.boolean().default(true),
  size: z.union([
    side,
    z.object({ shortest_edge: side }),
    z.object({ height: side, width: side }),
  ]).default(224),
  resample: z.number().int().default(3),
  do_center_crop: z.boolean().default(true),
  crop_size: z.union([side, z.object({ height: side, width: side })])
    .default(224),
  do_rescale: z.boolean().default(true),
  rescale_factor: z.number().default(1 / 255),
  do_normalize: z.boolean().default(true),
  image_mean: triple.default([0.48145466, 0.4578275, 0.40821073]),
  image_std: triple.default([0.26862954, 0.26130258, 0.27577711]),
});

/** Pillow's numbers of the filters. */
const FILTERS: Readonly<Record<number, Preprocess["filter"]>> = {
  2: "bilinear",
  3: "bicubic",
};

/**
 * Reads a `preprocessor_config.json` of transformers; what it leaves out is as
 * in `CLIPImageProcessor` (224 pixels, bicubic, OpenAI's mean and spread).
 *
 * @param json Parsed JSON.
 * @throws If a field has a wrong type, or asks for what is not done here:
 * another filter, a size that is not square, another scale than 1/255.
 */
export function parsePreprocess(json: unknown): Preprocess {
  const what = "a preprocessor config";
  const c = checkJson(json, schema, what);
  const filter = FILTERS[c.resample];
  if (!filter) {
    throw cannot(`read ${what}`, "resample 2 or 3", c.resample);
  }
  if (!c.do_rescale || Math.abs(c.rescale_factor * 255 - 1) > 1e-6) {
    throw cannot(`read ${what}`, "rescale_factor 1/255", c.rescale_factor);
  }
  if (typeof c.size === "object" && "height" in c.size) {
    // Newer files write a square where they mean the shorter side.
    if (c.size.height !== c.size.width) {
      throw cannot(`read ${what}`, "a square size", Deno.inspect(c.size));
    }
  }
  const shortest = typeof c.size === "number"
    ? c.size
    : "shortest_edge" in c.size
    ? c.size.shortest_edge
    : c.size.height;
  const crop: [number, number] = typeof c.crop_size === "number"
    ? [c.crop_size, c.crop_size]
    : [c.crop_size.height, c.crop_size.width];
  return {
    ...(c.do_resize ? { shortest } : {}),
    ...(c.do_center_crop ? { crop } : {}),
    filter,
    mean: c.do_normalize ? c.image_mean : [0, 0, 0],
    std: c.do_normalize ? c.image_std : [1, 1, 1],
  };
}

/** A filter's weight at a distance, and how far it reaches. */
const KERNELS: Readonly<
  Record<Preprocess["filter"], { reach: number; at: (x: number) => number }>
> = {
  bilinear: { reach: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  // Keys' cubic with a = −0.5, Pillow's choice.
  bicubic: {
    reach: 2,
    at(x) {
      const d = Math.abs(x);
      if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
      if (d < 2) return (((d - 5) * d + 8) * d - 4) * -0.5;
      return 0;
    },
  },
};

/** Fraction bits of Pillow's 8-bit weights. */
const PRECISION = 22;

/** For each output sample: where it starts to read, and integer weights. */
function taps(
  from: number,
  to: number,
  filter: Preprocess["filter"],
): { start: number; weights: Int32Array }[] {
  const { reach, at } = KERNELS[filter];
  const scale = from / to;
  // Shrinking widens the filter over all samples an output covers.
  const stretch = Math.max(1, scale);
  const support = reach * stretch;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    const raw = Array.from(
      { length: end - start },
      (_, k) => at((k + start - center + 0.5) * (1 / stretch)),
    );
    const sum = raw.reduce((a, b) => a + b, 0);
    return {
      start,
      weights: Int32Array.from(raw, (w) => {
        const fixed = w / sum * 2 ** PRECISION;
        return Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
      }),
    };
  });
}

function toByte(sum: number): number {
  return Math.max(0, Math.min(255, sum >> PRECISION));
}

/**
 * Resizes a picture as Pillow's `Image.resize` does, bit for bit: separable,
 * antialiased, in 22-bit fixed point, rows first and rounded to bytes between
 * the passes.
 *
 * @param image The picture.
 * @param width New width in pixels.
 * @param height New height in pixels.
 * @param filter The filter.
 * @default filter "bicubic"
 * @throws If a size is not a positive integer.
 */
export function resize(
  image: Pixels,
  width: number,
  height: number,
  filter: Preprocess["filter"] = "bicubic",
): Pixels {
  for (const size of [width, height]) {
    if (!Number.isInteger(size) || size < 1) {
      throw cannot("resize a picture", "a positive size", size);
    }
  }
  const { channels } = image;
  let { data } = image;
  const half = 1 << (PRECISION - 1);
  if (width !== image.width) {
    const out = new Uint8Array(image.height * width * channels);
    taps(image.width, width, filter).forEach(({ start, weights }, x) => {
      for (let y = 0; y < image.height; y++) {
        for (let c = 0; c < channels; c++) {
          let sum = half;
          let from = (y * image.width + start) * channels + c;
          for (let k = 0; k < weights.length; k++, from += channels) {
            sum += weights[k] * data[from];
          }
          out[(y * width + x) * channels + c] = toByte(sum);
        }
      }
    });
    data = out;
  }
  if (height !== image.height) {
    const row = width * channels;
    const out = new Uint8Array(height * row);
    taps(image.height, height, filter).forEach(({ start, weights }, y) => {
      for (let j = 0; j < row; j++) {
        let sum = half;
        for (let k = 0; k < weights.length; k++) {
          sum += weights[k] * data[(start + k) * row + j];
        }
        out[y * row + j] = toByte(sum);
      }
    });
    data = out;
  }
  return { width, height, channels, data };
}

/** A rectangle of pixels. */
export interface Box {
  /** Left edge in pixels. */
  readonly x: number;
  /** Top edge in pixels. */
  readonly y: number;
  /** Width in pixels. */
  readonly width: number;
  /** Height in pixels. */
  readonly height: number;
}

/**
 * Cuts a rectangle out of a picture.
 *
 * @param image The picture.
 * @param box Whole pixels inside the picture.
 * @throws If the box leaves the picture or is empty.
 */
export function crop(image: Pixels, box: Box): Pixels {
  const { x, y, width, height } = box;
  const fits = [x, y, width, height].every(Number.isInteger) && x >= 0 &&
    y >= 0 && width > 0 && height > 0 && x + width <= image.width &&
    y + height <= image.height;
  if (!fits) {
    throw cannot(
      "crop a picture",
      `a box inside ${image.width}×${image.height}`,
      `${width}×${height} at ${x}, ${y}`,
    );
  }
  const row = width * image.channels;
  const data = new Uint8Array(height * row);
  for (let i = 0; i < height; i++) {
    const from = ((y + i) * image.width + x) * image.channels;
    data.set(image.data.subarray(from, from + row), i * row);
  }
  return { width, height, channels: image.channels, data };
}

/** Drops alpha and repeats grey, so that there are three channels. */
function toRgb(image: Pixels): Pixels {
  const { width, height, channels, data } = image;
  if (channels === 3) return image;
  const out = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) {
      out[3 * i + c] = data[i * channels + (channels < 3 ? 0 : c)];
    }
  }
  return { width, height, channels: 3, data: out };
}

/**
 * Makes a picture ready for a vision tower.
 *
 * @param image The picture; alpha is dropped, grey is repeated.
 * @param config What to do.
 * @returns The cropped picture's size and its normalised values [h, w, 3].
 * @throws If the picture is smaller than the crop after resizing.
 *
 * @example
 * ```ts ignore
 * const config = parsePreprocess({ size: 224 });
 * const { width, height, values } = preprocess(decodePng(bytes), config);
 * ```
 */
export function preprocess(
  image: Pixels,
  config: Preprocess,
): { width: number; height: number; values: Float32Array } {
  let picture = toRgb(image);
  if (config.shortest !== undefined) {
    const { width, height } = picture;
    const short = Math.min(width, height);
    const long = Math.trunc(config.shortest * Math.max(width, height) / short);
    picture = resize(
      picture,
      width <= height ? config.shortest : long,
      width <= height ? long : config.shortest,
      config.filter,
    );
  }
  if (config.crop) {
    const [height, width] = config.crop;
    picture = crop(picture, {
      x: Math.floor((picture.width - width) / 2),
      y: Math.floor((picture.height - height) / 2),
      width,
      height,
    });
  }
  const { data, width, height } = picture;
  const values = new Float32Array(data.length);
  for (let i = 0; i < data.length; i++) {
    values[i] = (data[i] / 255 - config.mean[i % 3]) / config.std[i % 3];
  }
  return { width, height, values };
}
