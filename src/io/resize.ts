/**
 * Cropping and resizing of 8-bit pictures, and what lies under transparency.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Pixels } from "./png.ts";

/** Pillow's filters. */
export type Filter = "bicubic" | "bilinear";

/** Red, green and blue, 0 to 255. */
export type Colour = readonly [number, number, number];

/**
 * What transparent pixels show: white.
 *
 * Pillow's `convert("RGB")`, which diffusers, kohya's scripts and transformers
 * call, drops alpha and shows whatever a program left under it, black with
 * most cut-outs; A1111 lays pictures over white (`img2img_background_color`),
 * which is what viewers show and what people see when they write captions.
 */
export const BACKGROUND: Colour = [255, 255, 255];

/**
 * Reads a colour: white, black, grey, or #rrggbb as the web has it.
 *
 * @param text What was written.
 * @throws If it is none of these.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { parseColour } from "./resize.ts";
 *
 * assertEquals(parseColour("#ff8000"), [255, 128, 0]);
 * ```
 */
export function parseColour(text: string): Colour {
  const named: Readonly<Record<string, Colour>> = {
    white: [255, 255, 255],
    black: [0, 0, 0],
    grey: [128, 128, 128],
    gray: [128, 128, 128],
  };
  const word = text.trim().toLowerCase();
  if (Object.hasOwn(named, word)) return named[word];
  const short = word.match(/^#?([0-9a-f])([0-9a-f])([0-9a-f])$/);
  const long = word.match(/^#?([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/);
  const digits = long?.slice(1) ?? short?.slice(1).map((d) => d + d);
  if (!digits) {
    throw cannot("read a colour", "white, black, grey or #rrggbb", text);
  }
  const [red, green, blue] = digits.map((pair) => parseInt(pair, 16));
  return [red, green, blue];
}

/**
 * Whether anything in a picture is transparent.
 *
 * @param image 1 to 4 channels.
 */
export function isTransparent({ channels, data }: Pixels): boolean {
  if (channels % 2 === 1) return false;
  for (let i = channels - 1; i < data.length; i += channels) {
    if (data[i] !== 255) return true;
  }
  return false;
}

/**
 * A picture in RGB: grey is repeated, transparency is laid over a colour.
 *
 * @param image 1 to 4 channels.
 * @param background What shows through.
 * @default background {BACKGROUND}
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { flatten } from "./resize.ts";
 *
 * const half = { width: 1, height: 1, channels: 2, data: Uint8Array.of(0, 51) };
 * assertEquals([...flatten(half).data], [204, 204, 204]);
 * ```
 */
export function flatten(
  image: Pixels,
  background: Colour = BACKGROUND,
): Pixels {
  const { width, height, channels, data } = image;
  if (channels === 3) return image;
  const out = new Uint8Array(width * height * 3);
  const alpha = channels % 2 === 0;
  for (let i = 0; i < width * height; i++) {
    const from = i * channels;
    const opacity = alpha ? data[from + channels - 1] : 255;
    for (let k = 0; k < 3; k++) {
      const value = data[from + (channels < 3 ? 0 : k)];
      out[3 * i + k] = opacity === 255
        ? value
        : Math.round((value * opacity + background[k] * (255 - opacity)) / 255);
    }
  }
  return { width, height, channels: 3, data: out };
}

/** A filter's weight at a distance, and how far it reaches. */
const KERNELS: Readonly<
  Record<Filter, { reach: number; at: (x: number) => number }>
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
  filter: Filter,
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

/** Colours times alpha, rounded as Pillow rounds. */
function premultiplied(image: Pixels): Pixels {
  const { channels, data } = image;
  const out = new Uint8Array(data);
  for (let i = 0; i < data.length; i += channels) {
    const alpha = data[i + channels - 1];
    if (alpha === 255) continue;
    for (let k = i; k < i + channels - 1; k++) {
      const product = data[k] * alpha + 128;
      out[k] = ((product >> 8) + product) >> 8;
    }
  }
  return { ...image, data: out };
}

/** Colours divided by alpha, as Pillow does it. */
function divided(image: Pixels): Pixels {
  const { channels, data } = image;
  for (let i = 0; i < data.length; i += channels) {
    const alpha = data[i + channels - 1];
    if (alpha === 255 || alpha === 0) continue;
    for (let k = i; k < i + channels - 1; k++) {
      data[k] = Math.min(255, Math.trunc(255 * data[k] / alpha));
    }
  }
  return image;
}

/**
 * Resizes a picture as Pillow's `Image.resize` does, bit for bit: separable,
 * antialiased, in 22-bit fixed point, rows first and rounded to bytes between
 * the passes. Colours are multiplied by alpha on the way, so that what is
 * transparent leaves no rim.
 *
 * @param image The picture.
 * @param width New width in pixels.
 * @param height New height in pixels.
 * @param filter The filter.
 * @default filter "bicubic"
 * @throws If a size is not a positive integer.
 *
 * @example
 * ```ts ignore
 * const small = resize(await readPicture("fox.png"), 512, 512);
 * ```
 */
export function resize(
  image: Pixels,
  width: number,
  height: number,
  filter: Filter = "bicubic",
): Pixels {
  for (const size of [width, height]) {
    if (!Number.isInteger(size) || size < 1) {
      throw cannot("resize a picture", "a positive size", size);
    }
  }
  if (width === image.width && height === image.height) return image;
  if (image.channels % 2 === 1) return resampled(image, width, height, filter);
  return divided(resampled(premultiplied(image), width, height, filter));
}

function resampled(
  image: Pixels,
  width: number,
  height: number,
  filter: Filter,
): Pixels {
  const { channels } = image;
  let { data } = image;
  const half = 1 << (PRECISION - 1);
  if (width !== image.width) {
    const out = new Uint8Array(image.height * width * channels);
    const columns = taps(image.width, width, filter);
    for (let y = 0, to = 0; y < image.height; y++) {
      for (const { start, weights } of columns) {
        const first = (y * image.width + start) * channels;
        for (let c = 0; c < channels; c++) {
          let sum = half;
          let from = first + c;
          for (let k = 0; k < weights.length; k++, from += channels) {
            sum += weights[k] * data[from];
          }
          out[to++] = toByte(sum);
        }
      }
    }
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
export interface PixelBox {
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
 *
 * @example
 * ```ts ignore
 * const face = crop(photo, { x: 100, y: 40, width: 256, height: 256 });
 * ```
 */
export function crop(image: Pixels, box: PixelBox): Pixels {
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

/**
 * Crops a picture's centre to the shape of a size, and resizes it.
 *
 * @param image The picture.
 * @param width New width in pixels.
 * @param height New height in pixels.
 * @param filter The filter.
 * @default filter "bicubic"
 *
 * @example
 * ```ts ignore
 * const wide = cover(await readPicture("fox.png"), 768, 512);
 * ```
 */
export function cover(
  image: Pixels,
  width: number,
  height: number,
  filter: Filter = "bicubic",
): Pixels {
  // Rounded to whole pixels, at least one.
  const part = (whole: number, most: number) =>
    Math.max(1, Math.min(whole, Math.round(most)));
  const box = {
    width: part(image.width, image.height * width / height),
    height: part(image.height, image.width * height / width),
  };
  const cut = box.width === image.width && box.height === image.height
    ? image
    : crop(image, {
      x: (image.width - box.width) >> 1,
      y: (image.height - box.height) >> 1,
      ...box,
    });
  return resize(cut, width, height, filter);
}

/**
 * Crops a picture to its centred square and resizes it with Pillow's bilinear
 * filter, as diffusers' training scripts do with `--center_crop`.
 *
 * @param image The picture.
 * @param size New side.
 *
 * @example
 * ```ts ignore
 * const picture = square(await readPicture("fox.png"), 512);
 * ```
 */
export function square(image: Pixels, size: number): Pixels {
  return cover(image, size, size, "bilinear");
}
