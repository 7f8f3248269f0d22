/**
 * JPEG pictures, turned upright as their EXIF orientation says.
 *
 * @module
 */
import * as jpeg from "jpeg-js";
import { cannot } from "../core/errors.ts";
import type { Pixels } from "./png.ts";

/** Memory a picture may take while it is decoded, MiB. */
const MAX_MEMORY = 1024;

/** Pixels of a picture, millions. */
const MAX_MEGAPIXELS = 100;

/**
 * Decodes a JPEG.
 *
 * @param bytes The file.
 * @returns RGB, upright.
 * @throws If the bytes are no JPEG, are broken or too large a picture.
 */
export function decodeJpeg(bytes: Uint8Array): Pixels {
  let decoded: { width: number; height: number; data: Uint8Array };
  try {
    decoded = jpeg.decode(bytes, {
      useTArray: true,
      formatAsRGBA: false,
      tolerantDecoding: false,
      maxMemoryUsageInMB: MAX_MEMORY,
      maxResolutionInMP: MAX_MEGAPIXELS,
    });
  } catch (error) {
    throw cannot(
      "decode a JPEG",
      "a whole baseline or progressive JPEG",
      error instanceof Error ? error.message : String(error),
    );
  }
  const { width, height, data } = decoded;
  return upright(
    { width, height, channels: 3, data: new Uint8Array(data) },
    orientationOf(bytes),
  );
}

/**
 * EXIF orientation of a JPEG, 1 (as it is) to 8; 1 where there is none.
 *
 * @param bytes The file.
 */
export function orientationOf(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  // Segments from the second marker on: 0xFF, kind, length, content.
  for (let at = 2; at + 4 <= bytes.length && bytes[at] === 0xff;) {
    const kind = bytes[at + 1];
    const length = view.getUint16(at + 2);
    // The picture itself begins: no EXIF comes after it.
    if (kind === 0xda || length < 2) return 1;
    const end = Math.min(at + 2 + length, bytes.length);
    if (kind === 0xe1 && isExif(bytes, at + 4, end)) {
      return tiffOrientation(view, at + 10, end);
    }
    at = end;
  }
  return 1;
}

function isExif(bytes: Uint8Array, at: number, end: number): boolean {
  const sign = [0x45, 0x78, 0x69, 0x66, 0, 0];
  return at + sign.length + 8 <= end &&
    sign.every((b, i) => bytes[at + i] === b);
}

/** The orientation entry (0x0112) of a TIFF's first directory. */
function tiffOrientation(view: DataView, start: number, end: number): number {
  const little = view.getUint16(start) === 0x4949;
  const directory = start + view.getUint32(start + 4, little);
  if (directory + 2 > end) return 1;
  const entries = view.getUint16(directory, little);
  for (let i = 0; i < entries; i++) {
    const entry = directory + 2 + 12 * i;
    if (entry + 12 > end) return 1;
    if (view.getUint16(entry, little) !== 0x0112) continue;
    const value = view.getUint16(entry + 8, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/**
 * Turns a picture upright.
 *
 * @param pixels The picture as it is stored.
 * @param orientation EXIF orientation, 1 to 8.
 */
export function upright(pixels: Pixels, orientation: number): Pixels {
  if (orientation === 1) return pixels;
  const { width, height, channels, data } = pixels;
  // 5 to 8 lie on their side.
  const [w, h] = orientation >= 5 ? [height, width] : [width, height];
  const result = new Uint8Array(data.length);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const [sx, sy] = source(orientation, x, y, width, height);
      for (let c = 0; c < channels; c++) {
        result[(y * w + x) * channels + c] =
          data[(sy * width + sx) * channels + c];
      }
    }
  }
  return { width: w, height: h, channels, data: result };
}

/** Where a pixel of the upright picture is in the stored one. */
function source(
  orientation: number,
  x: number,
  y: number,
  width: number,
  height: number,
): [number, number] {
  const [right, bottom] = [width - 1, height - 1];
  switch (orientation) {
    case 2:
      return [right - x, y];
    case 3:
      return [right - x, bottom - y];
    case 4:
      return [x, bottom - y];
    case 5:
      return [y, x];
    case 6:
      return [y, bottom - x];
    case 7:
      return [right - y, bottom - x];
    case 8:
      return [right - y, x];
    default:
      return [x, y];
  }
}
