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
import { cannot, listed } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { exists, joinPath, pathOf, readBytes } from "../io/files.ts";
import { fitMask, maskOf } from "../io/mask.ts";
import { listPictures, readPicture } from "../io/picture.ts";
import type { Pixels } from "../io/png.ts";
import {
  BACKGROUND,
  type Colour,
  cover,
  flatten,
  isTransparent,
  square,
} from "../io/resize.ts";
import type { Size } from "../diffusion/layout.ts";
import { downsampleFactor, encode } from "../models/autoencoder.ts";
import type { Model } from "../models/model.ts";
import { kohyaFolder, triggered } from "./captions.ts";
import { type PictureFolder, pictureFolder } from "./folder.ts";

export { square };

/** A picture to train on. */
export interface Example {
  /** 8-bit picture; transparent pixels are white (see `flatten`). */
  readonly pixels: Pixels;
  /**
   * Whether the file had transparent pixels, which now have the background
   * colour.
   */
  readonly transparent?: boolean;
  /**
   * Whether the file, or its mask's, is an animation; only the first frame is
   * used.
   */
  readonly moving?: boolean;
  /**
   * Captions, one of which is sampled each time; `{}` or `<TOK>` stands for the
   * concept.
   */
  readonly captions: readonly string[];
  /** The file it comes from, for messages. */
  readonly name?: string;
  /** The file its captions come from. */
  readonly captionFile?: string;
  /** Whether trigger words were found in its captions. */
  readonly triggered?: boolean;
  /**
   * Repeats, relative to the others.
   *
   * @default 1
   */
  readonly repeats?: number;
  /** Subject mask of the same size: 1 or 255 inside, 0 outside. */
  readonly mask?: { readonly width: number; readonly height: number } & {
    /** One number per pixel. */
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
   * Adds every picture mirrored left to right. Leave it off if captions say
   * left or right.
   *
   * @default {false}
   */
  readonly flips?: boolean;
  /**
   * What a picture's `repeats` are divided by.
   *
   * @default their greatest common divisor
   */
  readonly common?: number;
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
  return repeated(
    {
      count: views.length,
      height: h,
      width: w,
      channels: c,
      mean,
      std,
      captions: views.map((e) => e.captions),
      mask,
    },
    views.map(({ repeats = 1 }) => repeats),
    options.common,
  );
}

/**
 * Encodes pictures of several sizes.
 *
 * @param model The model.
 * @param examples Pictures, from {@linkcode readExamples} with `buckets`.
 * @param options Batch size, mirrored copies.
 * @returns Data per size, in the order of first occurrence.
 * @throws As {@linkcode encodeData}.
 */
export async function encodeBuckets(
  model: Pick<Model, "autoencoder">,
  examples: readonly Example[],
  options: EncodeOptions = {},
): Promise<TrainData[]> {
  const sizes = Map.groupBy(
    examples,
    ({ pixels: { width, height } }) => `${width}×${height}`,
  );
  // Repeats are relative across all sizes.
  const common = examples.map(({ repeats = 1 }) => repeats).reduce(divisor, 0);
  const encoded: TrainData[] = [];
  for (const bucket of sizes.values()) {
    encoded.push(await encodeData(model, bucket, { ...options, common }));
  }
  return encoded;
}

const divisor = (a: number, b: number): number =>
  b === 0 ? a : divisor(b, a % b);

/** Repeats pictures as often as their `repeats` say. */
function repeated(
  data: TrainData,
  repeats: readonly number[],
  common: number = repeats.reduce(divisor),
): TrainData {
  if (repeats.every((times) => times === common)) return data;
  const order = repeats.flatMap((times, i) =>
    new Array<number>(times / common).fill(i)
  );
  const rows = <A extends Float32Array | Uint8Array>(
    from: A,
    make: (n: number) => A,
  ): A => {
    const size = from.length / data.count;
    const to = make(order.length * size);
    order.forEach((row, i) =>
      to.set(from.subarray(row * size, (row + 1) * size), i * size)
    );
    return to;
  };
  const floats = (n: number) => new Float32Array(n);
  return {
    ...data,
    count: order.length,
    mean: rows(data.mean as Float32Array<ArrayBuffer>, floats),
    std: rows(data.std as Float32Array<ArrayBuffer>, floats),
    captions: order.map((i) => data.captions[i]),
    mask: rows(data.mask as Uint8Array<ArrayBuffer>, (n) => new Uint8Array(n)),
  };
}

/** The value of each byte in [−1, 1]. */
const SHADES = Float32Array.from({ length: 256 }, (_, v) => 2 * v / 255 - 1);

/** RGB in [−1, 1]. */
function rgb(pixels: Pixels): Float32Array {
  const { data } = flatten(pixels);
  const values = new Float32Array(data.length);
  for (let i = 0; i < values.length; i++) values[i] = SHADES[data[i]];
  return values;
}

/** A latent pixel is inside if at least half of its pixels are. */
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
  // For a smaller subject, every latent pixel that it touches is inside.
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
    ...(mask &&
      { mask: { ...mask, data: flip(mask.data, [] as number[], 1) } }),
  };
}

/**
 * Sizes of about the same area and different aspect ratios, with sides from
 * half to twice a square's: aspect ratio buckets, as in kohya's scripts.
 *
 * @param side The square's side in pixels.
 * @param step Sides are multiples of this, in pixels.
 *
 * @example
 * ```ts
 * bucketSizes(512, 64).length; // 17, from 256×1024 over 512×512 to 1024×256
 * ```
 */
export function bucketSizes(side: number, step: number): Size[] {
  const sizes = new Map<string, Size>();
  const least = Math.max(step, Math.ceil(side / 2 / step) * step);
  for (let width = least; width <= 2 * side; width += step) {
    const height = Math.min(
      Math.floor(side * side / width / step) * step,
      2 * side,
    );
    if (height < least) continue;
    sizes.set(`${width}×${height}`, { width, height });
    sizes.set(`${height}×${width}`, { width: height, height: width });
  }
  return [...sizes.values()]
    .sort((a, b) => a.width - b.width || a.height - b.height);
}

/** The size whose aspect ratio is nearest to a picture's. */
function bucketOf({ width, height }: Size, sizes: readonly Size[]): Size {
  const off = (size: Size) =>
    Math.abs(Math.log(size.width / size.height * height / width));
  return sizes.reduce((best, size) => off(size) < off(best) ? size : best);
}

/** Settings of {@linkcode readExamples}. */
export interface ReadExamplesOptions {
  /**
   * Width and height in pixels, or the side of a square: pictures are cropped in
   * the middle and resized.
   */
  readonly size: number | Size;
  /**
   * Pictures nearly keep their aspect ratio: each gets the size of the nearest
   * bucket, with sides of a multiple of this and no more pixels than `size` has
   * (kohya's `--enable_bucket`; 64 for Stable Diffusion).
   *
   * @default all have one size
   */
  readonly buckets?: number;
  /**
   * Captions of a picture that has no text file.
   *
   * @default {["photo of a {}", "{}"]}
   */
  readonly captions?: readonly string[];
  /**
   * Folder of masks, named like the pictures (see `matchMasks`), where it is
   * not `masks` inside.
   */
  readonly masks?: string;
  /**
   * Colour behind transparent pixels.
   *
   * @default {BACKGROUND}
   */
  readonly background?: Colour;
  /**
   * Trigger words of the concept in captions; they become the placeholder (see
   * `triggered`). By default those of a folder named `10_sks dog`.
   */
  readonly trigger?: string;
  /** Called with the names of files and folders that are not read. */
  readonly onUnread?: (names: readonly string[]) => void;
  /** Decodes files of other kinds than `readPicture` reads. */
  readonly decode?: (bytes: Uint8Array, name: string) => Pixels;
}

/**
 * Folders of pictures: the folder itself or, if it has no pictures, its
 * subfolders in kohya's format (`10_sks dog`).
 */
async function pictureFolders(folder: string | URL): Promise<string[]> {
  const path = pathOf(folder);
  if ((await listPictures(path)).length > 0) return [path];
  const inside = (await machine.files.list(path))
    .filter(({ name, kind }) => kind === "folder" && kohyaFolder(name))
    .map(({ name }) => joinPath(path, name)).sort();
  return inside.length > 0 ? inside : [path];
}

/**
 * The class that kohya's folder names say: `dog` of `10_sks dog`.
 *
 * @param folder The folder of pictures, or of such folders.
 * @returns The class; none if the folders are named otherwise or differ.
 */
export async function folderClass(
  folder: string | URL,
): Promise<string | undefined> {
  const classes = new Set(
    (await pictureFolders(folder)).map((path) => kohyaFolder(path)?.class),
  );
  return classes.size === 1 ? [...classes][0] : undefined;
}

/**
 * Reads training pictures from a folder: `name.png`, `.jpg`, `.webp` or `.avif`
 * with an optional `name.txt` or `name.caption` (one caption per line; or
 * `metadata.jsonl` with all of them) and an optional mask of its name
 * (`masks/name.png`, `masks/name_mask.jpg`, `name-masklabel.png` beside it) in
 * the picture's shape. If kohya's folders `10_sks dog` lie in it instead of
 * pictures, those are read.
 *
 * @param folder The folder.
 * @param options Size, captions.
 * @returns Pictures in the order of their names.
 * @throws If there are none, one cannot be decoded, or a mask has another shape
 * than its picture or nothing inside.
 */
export async function readExamples(
  folder: string | URL,
  options: ReadExamplesOptions,
): Promise<Example[]> {
  const what = `read training pictures from ${pathOf(folder)}`;
  const { size, buckets, captions = ["photo of a {}", "{}"] } = options;
  const sides = typeof size === "number" ? [size] : [size.width, size.height];
  if (!sides.every((side) => Number.isInteger(side) && side >= 1)) {
    throw cannot(what, "a size in pixels", size);
  }
  if (buckets !== undefined && typeof size !== "number") {
    throw cannot(what, "the side of a square with buckets", size);
  }
  if (options.masks !== undefined && !await exists(options.masks)) {
    throw cannot(what, "a folder of masks", `none: ${options.masks}`);
  }
  const folders: PictureFolder[] = [];
  for (const at of await pictureFolders(folder)) {
    folders.push(await pictureFolder(at, options.masks));
  }
  const examples: Example[] = [];
  for (const one of folders) {
    examples.push(...await examplesIn(one, { ...options, captions }));
  }
  const unread = [
    ...folders.flatMap(({ unread }) => unread),
    // One folder of masks may serve several folders of pictures.
    ...folders[0].unusedMasks.filter((mask) =>
      folders.every(({ unusedMasks }) => unusedMasks.includes(mask))
    ),
  ];
  if (unread.length > 0) options.onUnread?.(unread);
  if (examples.length === 0) {
    const inside = (await machine.files.list(folder))
      .flatMap(({ name, kind }) => kind === "folder" ? [`${name}/`] : []);
    throw cannot(
      what,
      "PNG, JPEG, WebP or AVIF pictures in it" +
        (inside.length > 0 ? ", or in folders such as 10_rex dog" : ""),
      inside.length > 0 ? `none, and ${listed(inside.sort())}` : "none",
    );
  }
  return examples;
}

/** Pictures of one folder. */
async function examplesIn(
  { folder, pictures }: PictureFolder,
  options: ReadExamplesOptions & { readonly captions: readonly string[] },
): Promise<Example[]> {
  const { size, buckets, captions, decode, background = BACKGROUND } = options;
  const sizes = typeof size !== "number"
    ? [size]
    : buckets === undefined
    ? [{ width: size, height: size }]
    : bucketSizes(size, buckets);
  if (sizes.length === 0) {
    throw cannot("make buckets", `a size of at least ${buckets}`, size);
  }
  const picture = async (path: string): Promise<Pixels> =>
    decode && !/\.(png|jpe?g|webp|avif)$/i.test(path)
      ? decode(await readBytes(path), path)
      : await readPicture(path);
  const kohya = kohyaFolder(folder);
  const trigger = options.trigger ?? kohya?.trigger;
  const examples: Example[] = [];
  for (const { name, captions: beside, mask: maskPath } of pictures) {
    const whole = await picture(joinPath(folder, name));
    const size = bucketOf(whole, sizes);
    const cut = (image: Pixels) =>
      cover(image, size.width, size.height, "bilinear");
    const pixels = cut(flatten(whole, background));
    const drawn = maskPath === undefined ? undefined : await picture(maskPath);
    const mask = drawn && insideOf(maskOf(drawn), whole, cut, maskPath!);
    const written = beside?.lines ?? captions;
    const filled = trigger
      ? written.map((caption) => triggered(caption, trigger))
      : written;
    examples.push({
      pixels,
      name,
      captions: filled,
      triggered: filled.some((caption, i) => caption !== written[i]),
      captionFile: beside?.file,
      repeats: kohya?.repeats,
      mask,
      ...(isTransparent(whole) ? { transparent: true } : {}),
      ...(whole.moving || drawn?.moving ? { moving: true } : {}),
    });
  }
  return examples;
}

/** A mask, cropped and resized like its picture: 1 inside, 0 outside. */
function insideOf(
  mask: Pixels,
  picture: Pixels,
  cut: (image: Pixels) => Pixels,
  path: string,
): NonNullable<Example["mask"]> {
  const { width, height, data } = cut(fitMask(mask, picture, path));
  const values = Array.from(data, (value) => value >= 128 ? 1 : 0);
  if (!values.includes(1)) {
    throw cannot(
      `use mask ${path}`,
      "something white in the part of the picture that is trained on",
      "nothing",
    );
  }
  return { width, height, data: values };
}
