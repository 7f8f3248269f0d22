/**
 * Pictures by what is in the file: PNG or JPEG.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { pathOf } from "./files.ts";
import { decodeJpeg } from "./jpeg.ts";
import { decodePng, type Pixels } from "./png.ts";

/** Names of files that may be pictures. */
export const PICTURE: RegExp = /\.(png|jpe?g|webp|gif|bmp|tiff?|heic|avif)$/i;

/**
 * Decodes a picture, whatever its file is called.
 *
 * @param bytes PNG or JPEG.
 * @param name What to call it in messages.
 * @throws If it is neither, or broken.
 */
export function decodePicture(bytes: Uint8Array, name = "a picture"): Pixels {
  const what = `read ${name}`;
  const starts = (...sign: number[]) => sign.every((b, i) => bytes[i] === b);
  try {
    if (starts(0x89, 0x50, 0x4e, 0x47)) return decodePng(bytes);
    if (starts(0xff, 0xd8, 0xff)) return decodeJpeg(bytes);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw cannot(what, "a whole picture", reason);
  }
  throw cannot(what, "a PNG or a JPEG", "another kind of file");
}

/**
 * Reads a picture.
 *
 * @param path The file.
 * @throws If it cannot be read, or as {@linkcode decodePicture}.
 */
export async function readPicture(path: string | URL): Promise<Pixels> {
  let bytes: Uint8Array;
  try {
    bytes = await Deno.readFile(path);
  } catch (error) {
    throw cannot(`read ${pathOf(path)}`, "a readable file", `${error}`);
  }
  return decodePicture(bytes, pathOf(path));
}

/**
 * Lists the pictures of a folder, sorted by name.
 *
 * @param folder The folder.
 * @throws If it cannot be read.
 */
export async function listPictures(folder: string | URL): Promise<string[]> {
  const names: string[] = [];
  try {
    for await (const entry of Deno.readDir(folder)) {
      if (
        !entry.isDirectory && PICTURE.test(entry.name) &&
        !entry.name.startsWith(".")
      ) names.push(entry.name);
    }
  } catch (error) {
    throw cannot(
      `list pictures in ${pathOf(folder)}`,
      "a folder that can be read",
      `${error}`,
    );
  }
  return names.sort();
}
