/**
 * Preprocessing for a CLIP vision tower: antialiased resize, centre crop,
 * normalisation, as transformers' `CLIPImageProcessor` does them on top of
 * Pillow.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { checkJson } from "../io/files.ts";
import type { Pixels } from "../io/png.ts";
import { crop, type Filter, flatten, resize } from "../io/resize.ts";

export { crop, type PixelBox, resize } from "../io/resize.ts";

/** The preprocessing of a picture before it is embedded. */
export interface Preprocess {
  /** Length in pixels that the shorter side is resized to; absent keeps it. */
  readonly shortest?: number;
  /** Height and width of the centre crop in pixels; absent keeps all. */
  readonly crop?: readonly [number, number];
  /** Pillow's filter. */
  readonly filter: Filter;
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
const FILTERS: Readonly<Record<number, Filter>> = {
  2: "bilinear",
  3: "bicubic",
};

/**
 * Reads a `preprocessor_config.json` of transformers; missing fields have the
 * defaults of `CLIPImageProcessor` (224 pixels, bicubic, OpenAI's mean and
 * standard deviation).
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
    // Newer files give a square, which means the shorter side.
    if (c.size.height !== c.size.width) {
      throw cannot(`read ${what}`, "a square size", c.size);
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

/**
 * Preprocesses a picture for a vision tower.
 *
 * @param image The picture; transparent pixels become white (see `flatten`),
 * grey is repeated.
 * @param config What to do.
 * @returns The cropped picture's size and its normalised values [h, w, 3].
 * @throws If the picture is smaller than the crop after resizing.
 *
 * @example
 * ```ts ignore
 * const config = parsePreprocess({ size: 224 });
 * const { width, height, values } = preprocess(await decodePicture(bytes), config);
 * ```
 */
export function preprocess(
  image: Pixels,
  config: Preprocess,
): { width: number; height: number; values: Float32Array } {
  let picture = flatten(image);
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
  // The normalised value of each byte, by channel.
  const tables = config.mean.map((mean, c) =>
    Float32Array.from(
      { length: 256 },
      (_, byte) => (byte / 255 - mean) / config.std[c],
    )
  );
  const values = new Float32Array(data.length);
  for (let i = 0, c = 0; i < data.length; i++, c = c === 2 ? 0 : c + 1) {
    values[i] = tables[c][data[i]];
  }
  return { width, height, values };
}
