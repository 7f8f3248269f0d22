/**
 * JPEG pictures: baseline and progressive, grey, YCbCr, RGB, CMYK and YCCK.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { jpegSegments, textAt, viewOf } from "./chunks.ts";
import { decodeRgba } from "./codecs.ts";
import { type Frame, threeOfFour } from "./jpeg_split.ts";
import { orientationOf, upright } from "./orientation.ts";
import { checkSize, type Pixels } from "./png.ts";

const WHAT = "decode a JPEG";

/** Kinds of coding that no browser reads either, by marker. */
const UNREADABLE: Readonly<Record<string, string>> = {
  c3: "a lossless one",
  c5: "a hierarchical one",
  c6: "a hierarchical one",
  c7: "a hierarchical one",
  c9: "one in arithmetic coding",
  ca: "one in arithmetic coding",
  cb: "one in arithmetic coding",
};

/**
 * Decodes a JPEG.
 *
 * @param bytes The file.
 * @returns Grey or RGB, upright.
 * @throws If the bytes are no JPEG, are cut off, or the picture is too large.
 *
 * @example
 * ```ts ignore
 * const { width, height, data } = await decodeJpeg(bytes);
 * ```
 */
export async function decodeJpeg(bytes: Uint8Array): Promise<Pixels> {
  const frame = frameOf(bytes);
  const stored = frame.components.length === 4
    ? await decodeInks(bytes, frame)
    : await decodeColours(bytes, frame.components.length);
  return upright(stored, orientationOf(bytes));
}

/** The frame's head, checked. */
function frameOf(bytes: Uint8Array): Frame {
  const view = viewOf(bytes);
  let frame: Frame | undefined;
  let adobe: number | undefined;
  for (const { kind, start, end } of jpegSegments(bytes)) {
    if (kind === "ee" && textAt(bytes, start, 5) === "Adobe") {
      adobe = bytes[start + 11];
    }
    if (kind in UNREADABLE) {
      throw cannot(WHAT, "a baseline or progressive one", UNREADABLE[kind]);
    }
    if (!["c0", "c1", "c2"].includes(kind) || end - start < 6) continue;
    if (bytes[start] !== 8) {
      throw cannot(WHAT, "8 bits a sample", bytes[start]);
    }
    frame = {
      height: view.getUint16(start + 1),
      width: view.getUint16(start + 3),
      progressive: kind === "c2",
      components: Array.from({ length: bytes[start + 5] }, (_, k) => ({
        id: bytes[start + 6 + 3 * k],
        h: bytes[start + 7 + 3 * k] >> 4,
        v: bytes[start + 7 + 3 * k] & 15,
      })),
    };
  }
  if (!frame) throw cannot(WHAT, "a whole JPEG", "one without a picture");
  checkSize(WHAT, frame.width, frame.height);
  if (![1, 3, 4].includes(frame.components.length)) {
    throw cannot(WHAT, "1, 3 or 4 components", frame.components.length);
  }
  return { ...frame, ...(adobe === undefined ? {} : { adobe }) };
}

/** RGBA from the decoder; a file that is cut off is an error, as in Pillow. */
async function decodeWhole(bytes: Uint8Array) {
  const image = await decodeRgba("jpeg", bytes);
  if (image.complaints.some((line) => /premature end/i.test(line))) {
    throw cannot(WHAT, "a whole JPEG", "one that is cut off");
  }
  return image;
}

async function decodeColours(
  bytes: Uint8Array,
  channels: number,
): Promise<Pixels> {
  const { width, height, data } = await decodeWhole(bytes);
  const result = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    for (let k = 0; k < channels; k++) result[to++] = data[from + k];
  }
  return { width, height, channels, data: result };
}

/** `a * b / 255`, rounded, as Pillow computes it. */
function scaled(a: number, b: number): number {
  const product = a * b + 128;
  return ((product >> 8) + product) >> 8;
}

function clipped(value: number): number {
  return value < 0 ? 0 : value > 255 ? 255 : value;
}

/**
 * RGB of a picture in four inks. The decoder stops at three components, so
 * that the file is split into two of three; colours are libjpeg's and Pillow's
 * integer formulas. Inks are stored inverted, as Adobe does and Pillow takes
 * for granted.
 */
async function decodeInks(bytes: Uint8Array, frame: Frame): Promise<Pixels> {
  const [colours, black] = threeOfFour(bytes, frame);
  const first = await decodeWhole(colours);
  const second = await decodeWhole(black);
  const { width, height, data } = first;
  const result = new Uint8Array(width * height * 3);
  const ycck = frame.adobe !== undefined && frame.adobe !== 0;
  for (let i = 0; i < 4 * width * height; i += 4) {
    let [red, green, blue] = [data[i], data[i + 1], data[i + 2]];
    if (ycck) {
      const [luma, cb, cr] = [red, green - 128, blue - 128];
      red = 255 - clipped(luma + ((91881 * cr + 32768) >> 16));
      green = 255 - clipped(luma + ((-22554 * cb - 46802 * cr + 32768) >> 16));
      blue = 255 - clipped(luma + ((116130 * cb + 32768) >> 16));
    }
    const white = second.data[i + 2];
    const to = i / 4 * 3;
    result[to] = white - scaled(255 - red, white);
    result[to + 1] = white - scaled(255 - green, white);
    result[to + 2] = white - scaled(255 - blue, white);
  }
  return { width, height, channels: 3, data: result };
}
