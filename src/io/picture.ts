/**
 * Pictures by what is in the file: PNG, JPEG, WebP or AVIF, always upright.
 *
 * This is the one reader: training pictures, masks, sketches, references and
 * pictures to score all come through it.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import { pngChunks, textAt, viewOf, webpChunks } from "./chunks.ts";
import { decodeRgba } from "./codecs.ts";
import { listFiles } from "./files.ts";
import { decodeJpeg } from "./jpeg.ts";
import { orientationOf, upright } from "./orientation.ts";
import { decodePng, opaque, type Pixels } from "./png.ts";
import { type FileSource, readSource, sourceName } from "./source.ts";
import { decodeWebp } from "./webp.ts";

/** Names of files that may be pictures. */
export const PICTURE: RegExp =
  /\.(png|jpe?g|jfif|webp|gif|bmp|tiff?|heic|heif|avif|jxl)$/i;

/** What is read, as messages have it. */
const READ = "a PNG, JPEG, WebP or AVIF";

/** Other pictures, by how they begin, so that a message can name them. */
const OTHERS: readonly (readonly [name: string, at: number, sign: string])[] = [
  ["a GIF", 0, "GIF8"],
  ["a BMP", 0, "BM"],
  ["a TIFF", 0, "II*\0"],
  ["a TIFF", 0, "MM\0*"],
  ["a HEIC", 4, "ftyphei"],
  ["a HEIC", 4, "ftyphev"],
  ["a HEIC", 4, "ftypmif1"],
  ["a JPEG XL", 4, "JXL "],
  ["a JPEG XL", 0, "\xff\x0a"],
  ["a JPEG 2000", 4, "jP  "],
  ["an SVG", 0, "<svg"],
  ["a web page", 0, "<!"],
  ["a web page", 0, "<html"],
  ["a git-lfs pointer (git lfs pull fetches the file)", 0, "version https://"],
];

/**
 * Decodes a picture, whatever its file is called.
 *
 * @param bytes PNG, JPEG, WebP or AVIF.
 * @param name What to call it in messages.
 * @returns Grey, grey + alpha, RGB or RGBA, upright. JPEG, PNG and WebP have
 * the values that Pillow reads (CMYK as its `convert("RGB")`, 16 bits as the
 * high byte); AVIF to within two of 255. Of an animation it is the first frame,
 * marked as `moving`.
 * @throws If it is another kind of file, broken or too large.
 *
 * @example
 * ```ts ignore
 * const photo = await decodePicture(new Uint8Array(await file.arrayBuffer()));
 * ```
 */
export async function decodePicture(
  bytes: Uint8Array,
  name = "a picture",
): Promise<Pixels> {
  const picture = await firstFrame(bytes, name);
  return isMoving(bytes) ? { ...picture, moving: true } : picture;
}

/** Whether a picture has several frames: APNG, WebP or AVIF. */
function isMoving(bytes: Uint8Array): boolean {
  if (textAt(bytes, 8, 4) === "avis") return true;
  if (textAt(bytes, 8, 4) === "WEBP") {
    const frames = [...webpChunks(bytes)].filter(({ kind }) => kind === "ANMF");
    return frames.length > 1;
  }
  if (textAt(bytes, 1, 3) !== "PNG") return false;
  const control = [...pngChunks(bytes)].find(({ kind }) => kind === "acTL");
  return control !== undefined && control.end - control.start === 8 &&
    viewOf(bytes).getUint32(control.start) > 1;
}

async function firstFrame(bytes: Uint8Array, name: string): Promise<Pixels> {
  const what = `read ${name}`;
  const starts = (...sign: number[]) => sign.every((b, i) => bytes[i] === b);
  try {
    if (starts(0x89, 0x50, 0x4e, 0x47)) {
      return upright(decodePng(bytes), orientationOf(bytes));
    }
    if (starts(0xff, 0xd8, 0xff)) return await decodeJpeg(bytes);
    if (textAt(bytes, 0, 4) === "RIFF" && textAt(bytes, 8, 4) === "WEBP") {
      return await decodeWebp(bytes);
    }
    if (isAvif(bytes)) return await decodeAvif(bytes);
  } catch (error) {
    throw cannot(what, "a whole picture", reasonOf(error));
  }
  const other = OTHERS.find(([, at, sign]) =>
    textAt(bytes, at, sign.length).toLowerCase() === sign.toLowerCase()
  );
  throw cannot(
    what,
    READ,
    bytes.length === 0 ? "an empty file" : other?.[0] ?? "another kind of file",
  );
}

/** Whether a brand of the file is one of AVIF's. */
function isAvif(bytes: Uint8Array): boolean {
  if (textAt(bytes, 4, 4) !== "ftyp") return false;
  const brands = textAt(bytes, 8, (bytes[2] << 8 | bytes[3]) - 8);
  return /avi[fs]/.test(brands);
}

async function decodeAvif(bytes: Uint8Array): Promise<Pixels> {
  const { width, height, data } = await decodeRgba("avif", bytes);
  return upright(
    opaque({ width, height, channels: 4, data }),
    orientationOf(bytes),
  );
}

/**
 * Reads a picture.
 *
 * @param from The file: path, URL, `Blob` or bytes.
 * @returns As {@linkcode decodePicture}.
 * @throws If it cannot be read, or as {@linkcode decodePicture}.
 *
 * @example
 * ```ts ignore
 * const { width, height, channels, data } = await readPicture("fox.webp");
 * ```
 */
export async function readPicture(from: FileSource): Promise<Pixels> {
  return await decodePicture(
    await readSource(from),
    sourceName(from, "a picture"),
  );
}

/**
 * Lists the pictures of a folder, sorted by name.
 *
 * @param folder The folder.
 * @throws If it cannot be read.
 *
 * @example
 * ```ts ignore
 * for (const name of await listPictures("photos")) console.log(name);
 * ```
 */
export async function listPictures(folder: string | URL): Promise<string[]> {
  return (await listFiles(folder)).filter((name) =>
    PICTURE.test(name) && !name.startsWith(".")
  );
}
