/**
 * Paths as text: on this machine, or `http(s):` addresses, which are read alike.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** Whether a path is an address on a server. */
export function isRemote(path: string | URL): boolean {
  return /^https?:\/\//i.test(String(path));
}

/**
 * A path as a string, whether it came as a path or as a `file:` URL; an
 * `http(s):` URL stays what it is.
 *
 * @throws If the URL has another scheme.
 */
export function pathOf(path: string | URL): string {
  if (isRemote(path)) return String(path);
  if (typeof path === "string") {
    return /^file:\/\//i.test(path) ? pathOf(new URL(path)) : path;
  }
  if (path.protocol !== "file:") {
    throw cannot(
      "open a file",
      "a path, or a file: or http(s): URL",
      path.href,
    );
  }
  const decoded = decodeURIComponent(path.pathname);
  // file:///C:/folder carries a leading slash that Windows does not want.
  return /^\/[A-Za-z]:/.test(decoded) ? decoded.slice(1) : decoded;
}

/**
 * The same for what is to be written.
 *
 * @throws If it is an address.
 */
export function localPath(path: string | URL): string {
  const local = pathOf(path);
  if (!isRemote(local)) return local;
  throw cannot(`write ${local}`, "a path on this machine", "an address");
}

/** The longest name that Linux and macOS take, in bytes. */
const MAX_NAME_BYTES = 255;

/**
 * The path of a file beside another: its name and an ending. Where that is
 * longer than systems allow, the name is cut, and a hash tells it from others.
 *
 * @param path The other file, without what the ending replaces.
 * @param ending What stands behind its name.
 *
 * @example
 * ```ts
 * besidePath("out/hero", ".state.safetensors"); // "out/hero.state.safetensors"
 * ```
 */
export function besidePath(path: string, ending: string): string {
  const size = (text: string) => new TextEncoder().encode(text).length;
  const name = nameOf(path);
  if (size(name + ending) <= MAX_NAME_BYTES) return path + ending;
  // FNV-1a, 32 bits.
  const hash = new TextEncoder().encode(name).reduce(
    (h, byte) => Math.imul(h ^ byte, 0x01000193) >>> 0,
    0x811c9dc5,
  ).toString(16).padStart(8, "0");
  let kept = "";
  for (const letter of name) {
    if (size(`${kept}${letter}-${hash}${ending}`) > MAX_NAME_BYTES) break;
    kept += letter;
  }
  return path.slice(0, path.length - name.length) + `${kept}-${hash}${ending}`;
}

/** Joins a folder and names below it with single slashes. */
export function joinPath(folder: string | URL, ...names: string[]): string {
  return [pathOf(folder), ...names]
    .filter((part) => part !== "")
    .reduce((left, right) =>
      left.endsWith("/") ? left + right : `${left}/${right}`
    );
}

/**
 * What a path in a file means: it is relative to the file's folder, unless it
 * begins at the root or is an address, `data:` URLs included.
 *
 * @param folder The file's folder.
 * @param path The path in it.
 */
export function pathFrom(folder: string, path: string): string {
  return /^(\/|(https?|file|data):)/i.test(path)
    ? path
    : joinPath(folder, path);
}

/** The folder part of a path (`"."` where there is none). */
export function parentOf(path: string): string {
  const cut = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\"));
  return cut < 0 ? "." : cut === 0 ? path.slice(0, 1) : path.slice(0, cut);
}

/** The name of a file without folder and ending. */
export function stemOf(path: string): string {
  return nameOf(path).replace(/\.[^.]*$/, "");
}

/** The last part of a path. */
export function nameOf(path: string): string {
  return path.slice(
    Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1,
  );
}
