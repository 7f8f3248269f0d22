/**
 * WebP pictures: lossy, lossless, with alpha; of moving ones the first frame.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { textAt, viewOf, webpChunks } from "./chunks.ts";
import { decodeRgba } from "./codecs.ts";
import { orientationOf, upright } from "./orientation.ts";
import { opaque, type Pixels } from "./png.ts";

/**
 * Decodes a WebP.
 *
 * @param bytes The file.
 * @returns RGB, or RGBA where something is transparent, upright.
 * @throws If the bytes are no WebP or are broken.
 *
 * @example
 * ```ts ignore
 * const { width, height, data } = await decodeWebp(bytes);
 * ```
 */
export async function decodeWebp(bytes: Uint8Array): Promise<Pixels> {
  if (textAt(bytes, 8, 4) !== "WEBP") {
    throw cannot("decode a WebP", "a WebP file", "another kind of file");
  }
  const chunks = [...webpChunks(bytes)];
  const frame = chunks.find(({ kind }) => kind === "ANMF");
  if (!frame) {
    const { width, height, data } = await decodeRgba("webp", bytes);
    const stored = opaque({ width, height, channels: 4, data });
    return upright(stored, orientationOf(bytes));
  }
  const canvas = chunks.find(({ kind }) => kind === "VP8X");
  if (!canvas || frame.end - frame.start < 16) {
    throw cannot("decode a WebP", "a whole WebP file", "one that is cut off");
  }
  const view = viewOf(bytes);
  const three = (at: number) =>
    view.getUint16(at, true) | view.getUint8(at + 2) << 16;
  const [left, top] = [2 * three(frame.start), 2 * three(frame.start + 3)];
  const width = three(canvas.start + 4) + 1;
  const height = three(canvas.start + 7) + 1;
  const first = await decodeRgba("webp", still(bytes, frame));
  // What the frame leaves free is transparent.
  const data = new Uint8Array(width * height * 4);
  const row = 4 * Math.min(first.width, width - left);
  for (let y = 0; y < Math.min(first.height, height - top); y++) {
    const from = 4 * y * first.width;
    data.set(
      first.data.subarray(from, from + row),
      4 * ((top + y) * width + left),
    );
  }
  const stored = opaque({ width, height, channels: 4, data });
  return upright(stored, orientationOf(bytes));
}

/** A frame of a moving WebP as a file of its own. */
function still(
  bytes: Uint8Array,
  frame: { readonly start: number; readonly end: number },
): Uint8Array {
  // Behind 16 bytes about the frame come the chunks of its picture.
  const content = bytes.subarray(frame.start + 16, frame.end);
  const file = new Uint8Array(30 + content.length);
  const view = new DataView(file.buffer);
  const text = new TextEncoder();
  file.set(text.encode("RIFF"), 0);
  view.setUint32(4, file.length - 8, true);
  file.set(text.encode("WEBPVP8X"), 8);
  view.setUint32(16, 10, true);
  // There may be alpha.
  file[20] = 0x10;
  file.set(bytes.subarray(frame.start + 6, frame.start + 12), 24);
  file.set(content, 30);
  return file;
}
