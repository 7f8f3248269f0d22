/**
 * Pictures to train on: encoded once, kept as plain numbers.
 *
 * What training needs of a picture is its latent distribution, its captions
 * and its subject mask at latent resolution. All of it is plain data, so it
 * can be cached, hashed and posted to a worker.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { exists, joinPath, pathOf, readText } from "../io/files.ts";
import { listPictures, PICTURE, readPicture } from "../io/picture.ts";
import type { Pixels } from "../io/png.ts";
import { downsampleFactor, encode } from "../models/autoencoder.ts";
import type { Model } from "../models/model.ts";

/** Where the concept stands in a caption. */
export const PLACEHOLDERS: readonly string[] = ["{}", "<TOK>"];

/** A picture to train on. */
export interface Example {
  /** 8-bit picture; transparency is laid over white. */
  readonly pixels: Pixels;
  /**
   * Captions, one of which is drawn each time; `{}` or `<TOK>` stands for the
   * concept.
   */
  readonly captions: readonly string[];
  /** Where the subject is, same size: 1 or 255 inside, 0 outside. */
  readonly mask?: { readonly width: number; readonly height: number } & {
    /** One number a pixel. */
    readonly data: ArrayLike<number>;
  };
}

/** Encoded pictures; plain data. */
export interface TrainData {
  /** Number of pictures. */
  readonly count: number;
  /** Height of the latents. */
  readonly height: number;
  /** Width of the latents. */
  readonly width: number;
  /** Channels of the latents. */
  readonly channels: number;
  /** Means of the latent distributions [count, h, w, c], scaled. */
  readonly mean: Float32Array;
  /** Standard deviations [count, h, w, c], scaled. */
  readonly std: Float32Array;
  /** Captions of each picture. */
  readonly captions: readonly (readonly string[])[];
  /** Subject masks [count, h, w] of 0 and 1; all 1 where none was given. */
  readonly mask: Uint8Array;
}

/** Settings of {@linkcode encodeData}. */
export interface EncodeOptions {
  /**
   * Pictures encoded at once.
   *
   * @default 4
   */
  readonly batch?: number;
  /**
   * Also every picture mirrored left to right (leave it off where captions
   * say left and right).
   *
   * @default {false}
   */
  readonly flips?: boolean;
}

/**
 * Encodes pictures with a model's autoencoder.
 *
 * @param model The model.
 * @param examples Pictures of one size.
 * @param options Batch size, mirrored copies.
 * @returns Plain data.
 * @throws If there are no pictures, sizes differ or do not fit the
 * autoencoder, a picture has no caption, or a mask is empty.
 */
export async function encodeData(
  model: Pick<Model, "autoencoder">,
  examples: readonly Example[],
  options: EncodeOptions = {},
): Promise<TrainData> {
  const what = "encode training pictures";
  const { batch = 4, flips = false } = options;
  if (examples.length === 0) throw cannot(what, "at least one", "none");
  const { config, params } = model.autoencoder;
  const factor = downsampleFactor(config);
  const { width, height } = examples[0].pixels;
  examples.forEach(({ pixels, captions, mask }, i) => {
    if (pixels.width !== width || pixels.height !== height) {
      throw cannot(
        what,
        `${width}×${height} as the first`,
        `${pixels.width}×${pixels.height} (picture ${i})`,
      );
    }
    if (width % factor !== 0 || height % factor !== 0) {
      throw cannot(what, `multiples of ${factor}`, `${width}×${height}`);
    }
    if (captions.length === 0) {
      throw cannot(what, "a caption", `none (picture ${i})`);
    }
    if (
      mask && (mask.width !== width || mask.height !== height ||
        mask.data.length !== width * height)
    ) {
      throw cannot(
        what,
        `a mask ${width}×${height}`,
        `${mask.width}×${mask.height} (picture ${i})`,
      );
    }
  });
  const views = flips
    ? [...examples, ...examples.map(mirrored)]
    : [...examples];
  const [h, w] = [height / factor, width / factor];
  const c = config.latent_channels;
  const size = h * w * c;
  const mean = new Float32Array(views.length * size);
  const std = new Float32Array(views.length * size);
  const mask = new Uint8Array(views.length * h * w);
  for (let first = 0; first < views.length; first += batch) {
    const part = views.slice(first, first + batch);
    const values = new Float32Array(part.length * width * height * 3);
    part.forEach((e, i) => values.set(rgb(e.pixels), i * width * height * 3));
    const posterior = tf.tidy(() => {
      const images = tf.tensor4d(values, [part.length, height, width, 3]);
      const p = encode(params, config, images);
      return [
        p.mean.mul(config.scaling_factor),
        p.logvar.mul(0.5).exp().mul(config.scaling_factor),
      ];
    });
    mean.set(await posterior[0].data(), first * size);
    std.set(await posterior[1].data(), first * size);
    tf.dispose(posterior);
    part.forEach((e, i) => {
      const small = shrinkMask(e, factor);
      if (!small.includes(1)) {
        throw cannot(
          what,
          "a mask with something inside",
          `an empty one (picture ${(first + i) % examples.length})`,
        );
      }
      mask.set(small, (first + i) * h * w);
    });
  }
  return {
    count: views.length,
    height: h,
    width: w,
    channels: c,
    mean,
    std,
    captions: views.map((e) => e.captions),
    mask,
  };
}

/** RGB in [−1, 1]; grey is repeated, transparency is white. */
function rgb({ channels, data, width, height }: Pixels): Float32Array {
  const result = new Float32Array(width * height * 3);
  const colour = channels >= 3 ? 3 : 1;
  const alpha = channels === 2 || channels === 4;
  for (let p = 0; p < width * height; p++) {
    const opacity = alpha ? data[p * channels + channels - 1] / 255 : 1;
    for (let k = 0; k < 3; k++) {
      const value = data[p * channels + (colour === 3 ? k : 0)] / 255;
      result[p * 3 + k] = 2 * (value * opacity + 1 - opacity) - 1;
    }
  }
  return result;
}

/** A latent pixel is inside where at least half of its pixels are. */
function shrinkMask({ pixels, mask }: Example, factor: number): Uint8Array {
  const [w, h] = [pixels.width / factor, pixels.height / factor];
  const small = new Uint8Array(w * h).fill(mask ? 0 : 1);
  if (!mask) return small;
  const sums = new Uint32Array(w * h);
  for (let y = 0; y < pixels.height; y++) {
    for (let x = 0; x < pixels.width; x++) {
      if (mask.data[y * pixels.width + x] > 0) {
        sums[Math.floor(y / factor) * w + Math.floor(x / factor)]++;
      }
    }
  }
  const half = factor * factor / 2;
  // A subject too small for that keeps what it touches.
  const enough = sums.some((s) => s >= half) ? half : 1;
  return small.map((_, i) => sums[i] >= enough ? 1 : 0);
}

/** A picture and its mask, left and right exchanged. */
function mirrored(example: Example): Example {
  const { pixels, mask } = example;
  const flip = <A extends Uint8Array | number[]>(
    from: ArrayLike<number>,
    to: A,
    channels: number,
  ): A => {
    const { width, height } = pixels;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let k = 0; k < channels; k++) {
          to[(y * width + x) * channels + k] =
            from[(y * width + width - 1 - x) * channels + k];
        }
      }
    }
    return to;
  };
  return {
    ...example,
    pixels: {
      ...pixels,
      data: flip(
        pixels.data,
        new Uint8Array(pixels.data.length),
        pixels.channels,
      ),
    },
    ...(mask
      ? { mask: { ...mask, data: flip(mask.data, [] as number[], 1) } }
      : {}),
  };
}

/**
 * Puts the concept into a caption.
 *
 * @param caption Text with `{}` or `<TOK>`; without either it stays as it is.
 * @param phrase How the concept stands in prompts.
 */
export function fillCaption(caption: string, phrase: string): string {
  return PLACEHOLDERS.reduce(
    (text, placeholder) => text.replaceAll(placeholder, phrase),
    caption,
  ).replace(/ +/g, " ").trim();
}

/** Settings of {@linkcode readExamples}. */
export interface ReadExamplesOptions {
  /** Side in pixels: pictures are cropped to a centred square and resized. */
  readonly size: number;
  /**
   * Captions of a picture that has no text file.
   *
   * @default {["photo of a {}", "{}"]}
   */
  readonly captions?: readonly string[];
  /** Folder of masks, `<name>.png` each, where it is not `masks` inside. */
  readonly masks?: string;
  /** Decodes files that are neither PNG nor JPEG; else they are an error. */
  readonly decode?: (bytes: Uint8Array, name: string) => Pixels;
}

/**
 * Reads training pictures from a folder: `name.png` or `name.jpg` with an
 * optional `name.txt` (one caption a line) and an optional `masks/name.png`.
 *
 * @param folder The folder.
 * @param options Size, captions.
 * @returns Pictures in the order of their names.
 * @throws If there are none, or one cannot be decoded.
 */
export async function readExamples(
  folder: string | URL,
  options: ReadExamplesOptions,
): Promise<Example[]> {
  const what = `read training pictures from ${pathOf(folder)}`;
  const { size, captions = ["photo of a {}", "{}"] } = options;
  if (!Number.isInteger(size) || size < 1) {
    throw cannot(what, "a size in pixels", size);
  }
  const names = await listPictures(folder);
  if (names.length === 0) throw cannot(what, "png or jpg files", "none");
  if (options.masks !== undefined && !await exists(options.masks)) {
    throw cannot(what, "a folder of masks", `none: ${options.masks}`);
  }
  const picture = async (path: string): Promise<Pixels> =>
    options.decode && !/\.(png|jpe?g)$/i.test(path)
      ? options.decode(await Deno.readFile(path), path)
      : await readPicture(path);
  const examples: Example[] = [];
  for (const name of names) {
    const stem = name.replace(PICTURE, "");
    const texts = joinPath(folder, `${stem}.txt`);
    const maskPath = joinPath(
      options.masks ?? joinPath(folder, "masks"),
      `${stem}.png`,
    );
    const lines = await exists(texts)
      ? (await readText(texts)).split("\n").map((l) => l.trim()).filter((l) =>
        l !== ""
      )
      : [];
    const pixels = square(await picture(joinPath(folder, name)), size);
    const mask = await exists(maskPath)
      ? square(await picture(maskPath), size)
      : undefined;
    examples.push({
      pixels,
      captions: lines.length > 0 ? lines : captions,
      ...(mask
        ? {
          mask: {
            width: size,
            height: size,
            data: Array.from(
              { length: size * size },
              (_, i) => mask.data[i * mask.channels] >= 128 ? 1 : 0,
            ),
          },
        }
        : {}),
    });
  }
  return examples;
}

/**
 * Crops a picture to its centred square and resizes it: each new pixel is the
 * mean of the area it covers, or bilinear where it is enlarged.
 *
 * @param pixels The picture.
 * @param size New side.
 */
export function square(pixels: Pixels, size: number): Pixels {
  const { width, height, channels, data } = pixels;
  const side = Math.min(width, height);
  const [left, top] = [(width - side) >> 1, (height - side) >> 1];
  const result = new Uint8Array(size * size * channels);
  const scale = side / size;
  // A triangle of this half-width is bilinear when enlarging and area-like
  // when shrinking.
  const reach = Math.max(1, scale);
  const taps = Array.from({ length: size }, (_, i) => {
    const centre = (i + 0.5) * scale - 0.5;
    const list: [number, number][] = [];
    let sum = 0;
    for (let k = Math.ceil(centre - reach); k <= centre + reach; k++) {
      const weight = 1 - Math.abs(k - centre) / reach;
      if (weight <= 0) continue;
      list.push([Math.min(side - 1, Math.max(0, k)), weight]);
      sum += weight;
    }
    return list.map(([k, weight]) => [k, weight / sum] as const);
  });
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      for (let c = 0; c < channels; c++) {
        let value = 0;
        for (const [sy, wy] of taps[y]) {
          for (const [sx, wx] of taps[x]) {
            const at = ((top + sy) * width + left + sx) * channels + c;
            value += wy * wx * data[at];
          }
        }
        result[(y * size + x) * channels + c] = Math.round(value);
      }
    }
  }
  return { width: size, height: size, channels, data: result };
}
