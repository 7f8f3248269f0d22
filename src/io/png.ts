import { decode, encode } from "fast-png";
import { cannot } from "../core/errors.ts";

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
}

/**
 * Decodes a PNG to 8-bit pixels; palettes become RGB(A), 16 bits become 8.
 *
 * @param bytes The file's bytes.
 * @throws If the bytes are no PNG, or its pixels are packed below 8 bits.
 */
export function decodePng(bytes: Uint8Array): Pixels {
  let png: ReturnType<typeof decode>;
  try {
    png = decode(bytes);
  } catch (cause) {
    throw cannot("decode PNG", "a whole PNG file", String(cause));
  }
  const { width, height, depth, channels, palette } = png;
  if (palette) {
    if (depth !== 8) throw cannot("decode PNG", "8-bit palette indices", depth);
    const n = palette[0].length;
    const data = new Uint8Array(width * height * n);
    for (let i = 0; i < width * height; i++) {
      data.set(palette[png.data[i]], i * n);
    }
    return { width, height, channels: n, data };
  }
  if (depth === 16) {
    const data = Uint8Array.from(png.data, (v) => v >> 8);
    return { width, height, channels, data };
  }
  if (depth !== 8) throw cannot("decode PNG", "8 or 16 bits a channel", depth);
  return { width, height, channels, data: new Uint8Array(png.data) };
}

/**
 * Encodes 8-bit pixels as a PNG.
 *
 * @param image The pixels.
 * @throws If the number of bytes does not match the shape.
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
