/**
 * PNG pictures of every colour type and depth, as 8-bit pixels.
 *
 * @module
 */
import { decode, encode } from "fast-png";
import { unzlibSync, zlibSync } from "fflate";
import { cannot, reasonOf } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { pngChunks } from "./chunks.ts";

/** An 8-bit image: rows from the top, channels last. */
export interface Pixels {
  /** Width in pixels. */
  readonly width: number;
  /** Height in pixels. */
  readonly height: number;
  /** 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha. */
  readonly channels: number;
  /** `height * width * channels` bytes. */
  readonly data: Uint8Array;
  /** Whether the file has more pictures behind this one, its first. */
  readonly moving?: boolean;
}

/**
 * Pixels a picture may have, millions: four bytes each must fit the memory of
 * a WebAssembly decoder.
 */
const MAX_MEGAPIXELS = 200;

/**
 * Refuses pictures that are empty or too large to decode.
 *
 * @param what What is being done.
 * @param width Width in pixels, as the file's head has it.
 * @param height Height in pixels.
 */
export function checkSize(what: string, width: number, height: number): void {
  if (width > 0 && height > 0 && width * height <= MAX_MEGAPIXELS * 1e6) return;
  throw cannot(
    what,
    `1 pixel to ${MAX_MEGAPIXELS} megapixels`,
    `${width}×${height}`,
  );
}

/**
 * RGBA as RGB, if nothing is transparent.
 *
 * @param image RGBA.
 */
export function opaque(image: Pixels): Pixels {
  const { width, height, data } = image;
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return image;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    for (let k = 0; k < 3; k++) rgb[to++] = data[from + k];
  }
  return { width, height, channels: 3, data: rgb };
}

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

/** Samples of a pixel, by colour type. */
const SAMPLES: Readonly<Record<number, number>> = {
  0: 1,
  2: 3,
  3: 1,
  4: 2,
  6: 4,
};

/** What a PNG says before its pixels. */
interface Head {
  readonly width: number;
  readonly height: number;
  /** Bits of a sample. */
  readonly depth: number;
  readonly colour: number;
  readonly interlaced: boolean;
}

/** The chunks that make the picture. */
interface Parts {
  readonly head: Head;
  /** IHDR and IDAT as they are in the file. */
  readonly bare: Uint8Array[];
  readonly data: Uint8Array[];
  readonly palette?: Uint8Array;
  readonly transparency?: Uint8Array;
}

/**
 * Decodes a PNG: palettes become RGB, samples below 8 bits are scaled to 255,
 * of 16 bits the high byte stays; a transparent colour becomes alpha.
 *
 * @param bytes The file's bytes.
 * @returns The picture as it is stored (see `upright`).
 * @throws If the bytes are no PNG, are cut off or do not match their check
 * sums, or the picture is too large.
 *
 * @example
 * ```ts ignore
 * const { width, height, channels, data } = decodePng(bytes);
 * ```
 */
export function decodePng(bytes: Uint8Array): Pixels {
  const parts = partsOf(bytes);
  try {
    return toBytes(parts, samplesOf(parts));
  } catch (cause) {
    throw cannot("decode PNG", "a whole PNG file", reasonOf(cause));
  }
}

function partsOf(bytes: Uint8Array): Parts {
  const what = "decode PNG";
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) {
    throw cannot(what, "a PNG file", "another kind of file");
  }
  const bare: Uint8Array[] = [];
  const data: Uint8Array[] = [];
  let head: Head | undefined;
  let palette: Uint8Array | undefined;
  let transparency: Uint8Array | undefined;
  for (const { kind, start, end } of pngChunks(bytes)) {
    const content = bytes.subarray(start, end);
    if (kind === "IHDR" && content.length === 13) {
      const view = new DataView(bytes.buffer, bytes.byteOffset + start, 13);
      head = {
        width: view.getUint32(0),
        height: view.getUint32(4),
        depth: content[8],
        colour: content[9],
        interlaced: content[12] === 1,
      };
    }
    if (kind === "PLTE") palette = content;
    if (kind === "tRNS") transparency = content;
    if (kind === "IDAT") data.push(content);
    if (kind === "IHDR" || kind === "IDAT") {
      bare.push(bytes.subarray(start - 8, end + 4));
    }
    if (kind === "IEND") break;
  }
  if (!head || data.length === 0) {
    throw cannot(what, "a whole PNG file", "one that is cut off");
  }
  checkSize(what, head.width, head.height);
  const allowed = { 0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8] }[head.colour] ??
    [8, 16];
  if (!(head.colour in SAMPLES) || !allowed.includes(head.depth)) {
    throw cannot(
      what,
      "a colour type and depth of PNG's",
      `type ${head.colour} with ${head.depth} bits`,
    );
  }
  if (head.colour === 3 && !palette) {
    throw cannot(what, "a palette", "none");
  }
  return {
    head,
    bare,
    data,
    ...(palette ? { palette } : {}),
    ...(transparency ? { transparency } : {}),
  };
}

/** The samples as numbers of the file's depth, one an entry. */
function samplesOf(parts: Parts): Uint8Array | Uint16Array {
  const { head, bare } = parts;
  const { width, height, depth, interlaced } = head;
  if (depth < 8 && interlaced) return interlacedBits(parts);
  // Ancillary chunks are left out: a broken colour profile is no reason to
  // refuse the picture, and transparency is dealt with below.
  const png = decode(joined(Uint8Array, [SIGNATURE, ...bare, end()]), {
    checkCrc: true,
  });
  const data = png.data as Uint8Array | Uint16Array;
  return depth < 8 ? unpacked(data, width, height, depth) : data;
}

/** Samples of rows that are packed and padded to whole bytes. */
function unpacked(
  data: ArrayLike<number>,
  width: number,
  height: number,
  depth: number,
): Uint8Array {
  const line = Math.ceil(width * depth / 8);
  const [each, mask] = [8 / depth, (1 << depth) - 1];
  const result = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const byte = data[y * line + Math.floor(x / each)];
      // The first pixel lies in the highest bits.
      result[y * width + x] = (byte >> (8 - depth * (x % each + 1))) & mask;
    }
  }
  return result;
}

/** First column and row of each pass of Adam7, and its steps. */
const PASSES: readonly (readonly [number, number, number, number])[] = [
  [0, 0, 8, 8],
  [4, 0, 8, 8],
  [0, 4, 4, 8],
  [2, 0, 4, 4],
  [0, 2, 2, 4],
  [1, 0, 2, 2],
  [0, 1, 1, 2],
];

/**
 * Samples below 8 bits that are interlaced: each pass is decoded as a picture
 * of its own, as fast-png takes every pixel of a pass for whole bytes.
 */
function interlacedBits({ head, data }: Parts): Uint8Array {
  const { width, height, depth } = head;
  const lines = unzlibSync(joined(Uint8Array, data));
  const result = new Uint8Array(width * height);
  let at = 0;
  for (const [left, top, right, down] of PASSES) {
    const w = Math.ceil((width - left) / right);
    const h = Math.ceil((height - top) / down);
    if (w <= 0 || h <= 0) continue;
    const size = h * (1 + Math.ceil(w * depth / 8));
    if (at + size > lines.length) throw new Error("pixels are missing");
    const pass = lines.subarray(at, at + size);
    at += size;
    const start = new DataView(new ArrayBuffer(13));
    start.setUint32(0, w);
    start.setUint32(4, h);
    start.setUint8(8, depth);
    const png = decode(joined(Uint8Array, [
      SIGNATURE,
      chunk("IHDR", new Uint8Array(start.buffer)),
      chunk("IDAT", zlibSync(pass, { level: 0 })),
      end(),
    ]));
    const samples = unpacked(png.data, w, h, depth);
    for (let y = 0; y < h; y++) {
      for (let x = 0; x < w; x++) {
        result[(top + y * down) * width + left + x * right] =
          samples[y * w + x];
      }
    }
  }
  return result;
}

/** A chunk whose check sum nobody looks at. */
function chunk(kind: string, content: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(content.length + 12);
  new DataView(bytes.buffer).setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(kind), 4);
  bytes.set(content, 8);
  return bytes;
}

/** IEND with its check sum. */
function end(): Uint8Array {
  const bytes = chunk("IEND", new Uint8Array());
  bytes.set([0xae, 0x42, 0x60, 0x82], 8);
  return bytes;
}

/** Samples to 8 bits a channel, with colours and alpha looked up. */
function toBytes(
  { head, palette, transparency }: Parts,
  samples: Uint8Array | Uint16Array,
): Pixels {
  const { width, height, depth, colour } = head;
  const count = width * height;
  const picture = (channels: number, data: Uint8Array): Pixels => ({
    width,
    height,
    channels,
    data,
  });
  if (colour === 3) {
    const channels = transparency ? 4 : 3;
    const data = new Uint8Array(count * channels);
    for (let i = 0; i < count; i++) {
      // An index beyond the palette is black, as in Pillow.
      const entry = 3 * samples[i];
      for (let k = 0; k < 3; k++) {
        data[i * channels + k] = palette![entry + k] ?? 0;
      }
      if (channels === 4) data[i * 4 + 3] = transparency![samples[i]] ?? 255;
    }
    return picture(channels, data);
  }
  const n = SAMPLES[colour];
  const key = transparency && (colour === 0 || colour === 2) &&
      transparency.length >= 2 * n
    ? Array.from(
      { length: n },
      (_, k) => transparency[2 * k] << 8 | transparency[2 * k + 1],
    )
    : undefined;
  if (!key && depth === 8) return picture(n, samples as Uint8Array);
  const channels = n + (key ? 1 : 0);
  const data = new Uint8Array(count * channels);
  const factor = depth < 8 ? 255 / ((1 << depth) - 1) : 1;
  for (let i = 0; i < count; i++) {
    let same = true;
    for (let k = 0; k < n; k++) {
      const sample = samples[i * n + k];
      if (key && sample !== key[k]) same = false;
      data[i * channels + k] = depth === 16 ? sample >> 8 : sample * factor;
    }
    if (key) data[i * channels + n] = same ? 0 : 255;
  }
  return picture(channels, data);
}

/**
 * Encodes 8-bit pixels as a PNG.
 *
 * @param image The pixels.
 * @throws If the number of bytes does not match the shape.
 *
 * @example
 * ```ts ignore
 * const file = new Blob([encodePng(picture)], { type: "image/png" });
 * ```
 */
export function encodePng(image: Pixels): Uint8Array {
  const { width, height, channels, data } = image;
  if (data.length !== width * height * channels) {
    throw cannot(
      "encode PNG",
      `${width * height * channels} bytes for ${width}x${height}x${channels}`,
      data.length,
    );
  }
  return encode({ width, height, channels: channels as 1 | 2 | 3 | 4, data });
}
