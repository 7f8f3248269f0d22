/**
 * Which way up a picture is stored: EXIF and XMP in JPEG, PNG and WebP, and
 * the rotation of an AVIF.
 *
 * As Pillow's `ImageOps.exif_transpose`, EXIF goes before XMP, and the first
 * EXIF that there is counts.
 *
 * @module
 */
import { unzlibSync } from "fflate";
import {
  boxes,
  jpegSegments,
  type Piece,
  pngChunks,
  textAt,
  viewOf,
  webpChunks,
} from "./chunks.ts";
import type { Pixels } from "./png.ts";

/** What a file says about itself. */
interface Metadata {
  /** A TIFF file with the tags. */
  exif?: Uint8Array;
  xmp?: string;
}

const latin = new TextDecoder("latin1");

function jpegMetadata(bytes: Uint8Array): Metadata {
  const found: Metadata = {};
  const xap = "http://ns.adobe.com/xap/1.0/\0";
  for (const { kind, start, end } of jpegSegments(bytes)) {
    if (kind !== "e1") continue;
    if (textAt(bytes, start, 6) === "Exif\0\0") {
      found.exif ??= bytes.subarray(start + 6, end);
    } else if (textAt(bytes, start, xap.length) === xap) {
      found.xmp ??= textAt(bytes, start + xap.length, end - start);
    }
  }
  return found;
}

function pngMetadata(bytes: Uint8Array): Metadata {
  const found: Metadata = {};
  let raw: Uint8Array | undefined;
  for (const { kind, start, end } of pngChunks(bytes)) {
    if (kind === "eXIf") {
      found.exif ??= bytes.subarray(start, end);
      continue;
    }
    if (!["tEXt", "zTXt", "iTXt"].includes(kind)) continue;
    const zero = bytes.indexOf(0, start);
    if (zero < 0 || zero >= end) continue;
    const key = textAt(bytes, start, zero - start);
    if (key === "Raw profile type exif") {
      raw ??= rawProfile(pngText(bytes, kind, zero + 1, end));
    } else if (key === "XML:com.adobe.xmp") {
      found.xmp ??= pngText(bytes, kind, zero + 1, end);
    }
  }
  if (raw && !found.exif) found.exif = raw;
  return found;
}

/** Text of a PNG's text chunk from behind its key on; empty if it is broken. */
function pngText(
  bytes: Uint8Array,
  kind: string,
  start: number,
  end: number,
): string {
  let content = bytes.subarray(start, end);
  let packed = kind === "zTXt";
  if (packed) content = content.subarray(1);
  if (kind === "iTXt") {
    packed = content[0] === 1;
    // Two flags, a language and a translated key.
    const language = content.indexOf(0, 2);
    content = content.subarray(content.indexOf(0, language + 1) + 1);
  }
  try {
    return latin.decode(packed ? unzlibSync(content) : content);
  } catch {
    return "";
  }
}

/** ImageMagick's way to keep EXIF in a PNG: a name, a length and digits. */
function rawProfile(text: string): Uint8Array | undefined {
  const [, , ...lines] = text.trimStart().split("\n");
  const digits = lines.join("").replace(/[^0-9a-fA-F]/g, "");
  const content = Uint8Array.from(
    digits.match(/../g) ?? [],
    (pair) => parseInt(pair, 16),
  );
  return tiffOf(content);
}

/** EXIF without the sign that may stand before it. */
function tiffOf(content: Uint8Array): Uint8Array {
  return textAt(content, 0, 6) === "Exif\0\0" ? content.subarray(6) : content;
}

function webpMetadata(bytes: Uint8Array): Metadata {
  const found: Metadata = {};
  for (const { kind, start, end } of webpChunks(bytes)) {
    if (kind === "EXIF") found.exif ??= tiffOf(bytes.subarray(start, end));
    if (kind === "XMP ") found.xmp ??= textAt(bytes, start, end - start);
  }
  return found;
}

/** The tag in the first directory of a TIFF; 0 where there is none. */
function tiffOrientation(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  const order = textAt(bytes, 0, 2);
  if (bytes.length < 8 || (order !== "II" && order !== "MM")) return 0;
  const little = order === "II";
  const directory = view.getUint32(4, little);
  if (directory + 2 > bytes.length) return 0;
  const entries = view.getUint16(directory, little);
  for (let i = 0; i < entries; i++) {
    const entry = directory + 2 + 12 * i;
    if (entry + 12 > bytes.length) return 0;
    if (view.getUint16(entry, little) !== 0x0112) continue;
    // Most write 16 bits; some write 32.
    return view.getUint16(entry + 2, little) === 4
      ? view.getUint32(entry + 8, little)
      : view.getUint16(entry + 8, little);
  }
  return 0;
}

function xmpOrientation(xmp: string): number {
  const found = xmp.match(/tiff:Orientation(?:="|>)([0-9])/);
  return found ? Number(found[1]) : 0;
}

/**
 * What `irot` (quarter turns to the left) and then `imir` (1 exchanges left
 * and right, 0 top and bottom) of the shown item come to (ISO/IEC 23008-12).
 */
function avifOrientation(bytes: Uint8Array): number {
  const view = viewOf(bytes);
  const inside = ({ start, end }: Piece, skip = 0) => [
    ...boxes(bytes, start + skip, end),
  ];
  const named = (list: readonly Piece[], kind: string) =>
    list.find((box) => box.kind === kind);
  const meta = named([...boxes(bytes, 0, bytes.length)], "meta");
  if (!meta) return 1;
  const parts = inside(meta, 4);
  const pitm = named(parts, "pitm");
  const iprp = named(parts, "iprp");
  if (!pitm || !iprp) return 1;
  const wide = (at: number, four: boolean) =>
    four ? view.getUint32(at) : view.getUint16(at);
  const shown = wide(pitm.start + 4, bytes[pitm.start] > 0);
  const tables = inside(iprp);
  const ipco = named(tables, "ipco");
  const ipma = named(tables, "ipma");
  if (!ipco || !ipma) return 1;
  const properties = inside(ipco);
  const [four, two] = [bytes[ipma.start] > 0, bytes[ipma.start + 3] & 1];
  let at = ipma.start + 8;
  let [turns, mirror] = [0, -1];
  for (let n = view.getUint32(ipma.start + 4); n > 0 && at < ipma.end; n--) {
    const item = wide(at, four);
    at += four ? 4 : 2;
    const count = bytes[at++];
    for (let k = 0; k < count && at < ipma.end; k++) {
      const index = two ? view.getUint16(at) & 0x7fff : bytes[at] & 0x7f;
      at += two ? 2 : 1;
      const property = properties[index - 1];
      if (item !== shown || !property) continue;
      if (property.kind === "irot") turns = bytes[property.start] & 3;
      if (property.kind === "imir") mirror = bytes[property.start] & 1;
    }
  }
  // Rows: no mirror, top and bottom, left and right; columns: turns.
  return [[1, 8, 3, 6], [4, 5, 2, 7], [2, 7, 4, 5]][mirror + 1][turns];
}

/**
 * How a picture is stored, as EXIF numbers it: 1 (upright) to 8.
 *
 * @param bytes A JPEG, PNG, WebP or AVIF file.
 * @returns 1 where the file does not say, or says nonsense.
 *
 * @example
 * ```ts ignore
 * const shown = upright(stored, orientationOf(bytes));
 * ```
 */
export function orientationOf(bytes: Uint8Array): number {
  let found: Metadata = {};
  try {
    if (bytes[0] === 0xff && bytes[1] === 0xd8) found = jpegMetadata(bytes);
    else if (textAt(bytes, 1, 3) === "PNG") found = pngMetadata(bytes);
    else if (textAt(bytes, 8, 4) === "WEBP") found = webpMetadata(bytes);
    // An AVIF's EXIF is not to turn it (MIAF, 7.3.6.7).
    else if (textAt(bytes, 4, 4) === "ftyp") return avifOrientation(bytes);
  } catch (error) {
    // Metadata that points outside the file says nothing.
    if (!(error instanceof RangeError)) throw error;
  }
  const value = (found.exif ? tiffOrientation(found.exif) : 0) ||
    (found.xmp ? xmpOrientation(found.xmp) : 0);
  return value >= 1 && value <= 8 ? value : 1;
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
  // The stored pixel is linear in the shown one.
  const [[x0, y0], [xRight, yRight], [xDown, yDown]] = [[0, 0], [1, 0], [0, 1]]
    .map(([x, y]) => source(orientation, x, y, width, height));
  const right = ((yRight - y0) * width + xRight - x0) * channels;
  const down = ((yDown - y0) * width + xDown - x0) * channels;
  let to = 0;
  for (let y = 0; y < h; y++) {
    let from = (y0 * width + x0) * channels + y * down;
    for (let x = 0; x < w; x++, from += right) {
      for (let c = 0; c < channels; c++) result[to++] = data[from + c];
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
