/**
 * Files written whole or not at all, and JSON read with clear errors.
 *
 * A reader never sees a half-written file: bytes go to a temporary name in the
 * same folder, are flushed to the disk, and only then take the final name.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** What {@link writeAtomic} accepts: text, bytes, or chunks of bytes in order. */
export type FileContent =
  | string
  | Uint8Array
  | Iterable<Uint8Array>
  | AsyncIterable<Uint8Array>;

/** What checks a parsed document; every zod schema is one. */
export interface Schema<T> {
  /** The typed document, or what is wrong with it and where. */
  safeParse(value: unknown): { success: true; data: T } | {
    success: false;
    error: {
      issues: readonly { path: readonly PropertyKey[]; message: string }[];
    };
  };
}

/** The largest JSON file {@link readJson} reads, in bytes (256 MiB). */
export const MAX_JSON_BYTES: number = 256 * 1024 * 1024;

/**
 * A path as a string, whether it came as a path or as a `file:` URL.
 *
 * @throws If the URL has another scheme.
 */
export function pathOf(path: string | URL): string {
  if (typeof path === "string") return path;
  if (path.protocol !== "file:") {
    throw cannot("open a file", "a path or a file: URL", path.href);
  }
  const decoded = decodeURIComponent(path.pathname);
  // file:///C:/folder carries a leading slash that Windows does not want.
  return /^\/[A-Za-z]:/.test(decoded) ? decoded.slice(1) : decoded;
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

/** The folder part of a path (`"."` where there is none). */
export function parentOf(path: string): string {
  const cut = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\"));
  return cut < 0 ? "." : cut === 0 ? path.slice(0, 1) : path.slice(0, cut);
}

function nameOf(path: string): string {
  return path.slice(
    Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1,
  );
}

/** One line that says why a file operation failed. */
function reason(error: unknown): string {
  // Deno's class; Node's errors have a code.
  const { name, code } = error as { name?: string; code?: string };
  if (name === "NotADirectory" || code === "ENOTDIR") return "a file";
  return error instanceof Error
    ? `${error.name}: ${error.message}`
    : `${error}`;
}

/** Whether something exists at the path; other failures (permissions) throw. */
export async function exists(path: string | URL): Promise<boolean> {
  try {
    await Deno.stat(path);
    return true;
  } catch (error) {
    if (
      error instanceof Deno.errors.NotFound ||
      error instanceof Deno.errors.NotADirectory
    ) return false;
    throw cannot(`look at ${pathOf(path)}`, "a readable path", reason(error));
  }
}

/**
 * Makes sure a folder exists and that files can be created in it, by creating
 * and removing one; call it before long work whose output goes there.
 *
 * @throws If the folder cannot be made or written to.
 */
export async function assertWritable(folder: string | URL): Promise<void> {
  const path = pathOf(folder);
  const what = `write into ${path}`;
  try {
    await Deno.mkdir(path, { recursive: true });
  } catch (error) {
    throw cannot(what, "a folder that exists or can be made", reason(error));
  }
  const probe = temporaryName(joinPath(path, "probe"));
  try {
    await Deno.writeFile(probe, new Uint8Array(0), { createNew: true });
    await Deno.remove(probe);
  } catch (error) {
    throw cannot(what, "a writable folder", reason(error));
  }
}

/** The fewest bytes of a temporary name: `.xxx.tmp`. */
const SHORTEST_TEMPORARY = 8;
/** The most: twelve random letters are enough. */
const LONGEST_TEMPORARY = 17;

/**
 * A hidden, random name in the folder of `path`. It is no longer than the final
 * name, for systems limit the length of a name (255 bytes) and of a path; only
 * names of less than 8 bytes have a longer one.
 */
function temporaryName(path: string): string {
  const length = Math.min(
    Math.max(
      new TextEncoder().encode(nameOf(path)).length,
      SHORTEST_TEMPORARY,
    ),
    LONGEST_TEMPORARY,
  );
  const random = crypto.randomUUID().replaceAll("-", "")
    .slice(0, length - ".".length - ".tmp".length);
  return joinPath(parentOf(path), `.${random}.tmp`);
}

/** Creates an empty file of a name that nobody else has. */
async function createTemporary(
  path: string,
): Promise<{ name: string; file: Deno.FsFile }> {
  for (let attempt = 1;; attempt++) {
    const name = temporaryName(path);
    try {
      const file = await Deno.open(name, { write: true, createNew: true });
      return { name, file };
    } catch (error) {
      // A short name has few random letters, so it may be taken.
      const taken = error instanceof Deno.errors.AlreadyExists;
      if (!taken || attempt === 100) throw error;
    }
  }
}

/** How many symbolic links are followed; systems give up at 40, too. */
const MAX_LINKS = 40;

/**
 * What a path really names: the end of a chain of symbolic links, there or not.
 *
 * @throws If the chain has no end.
 */
async function linkTarget(path: string): Promise<string> {
  let target = path;
  for (let links = 0; links <= MAX_LINKS; links++) {
    const isLink = await Deno.lstat(target)
      .then(({ isSymlink }) => isSymlink, () => false);
    if (!isLink) return target;
    const next = await Deno.readLink(target);
    target = /^([/\\]|[A-Za-z]:)/.test(next)
      ? next
      : joinPath(parentOf(target), next);
  }
  throw cannot(`write ${path}`, "a link that ends", "a circle of links");
}

/**
 * Makes sure that a file can be written: its folder exists or can be made, and
 * the system takes its name; call it before long work whose output goes there.
 *
 * @throws If the folder cannot be written to, or the name is too long or that
 * of a folder.
 */
export async function assertWritableFile(path: string | URL): Promise<void> {
  const shown = pathOf(path);
  await assertWritable(parentOf(shown));
  const target = await linkTarget(shown);
  try {
    const { isFile, isDirectory } = await Deno.lstat(target);
    if (!isFile) {
      const got = isDirectory ? "a folder" : "a device";
      throw cannot(`write ${shown}`, "a file", got);
    }
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) {
      if (target !== shown) await assertWritable(parentOf(target));
      return;
    }
    if (isOurs(error)) throw error;
    throw cannot(`write ${shown}`, "a name the system takes", reason(error));
  }
}

/**
 * Makes sure that no two outputs, and no input and output, are one file: what is
 * written later would silently replace what was there.
 *
 * @param what What is to be done, a verb phrase.
 * @param outputs Files to write, by what the user calls them.
 * @param inputs Files that are read.
 * @throws If two of them are one file, by whatever path or link.
 *
 * @example
 * ```ts
 * await assertDistinct("convert", { OUT: "a.safetensors", "--tokens": "b.safetensors" });
 * ```
 */
export async function assertDistinct(
  what: string,
  outputs: Readonly<Record<string, string | undefined>>,
  inputs: Readonly<Record<string, string | undefined>> = {},
): Promise<void> {
  const seen = new Map<string, string>();
  for (
    const [name, path] of [
      ...Object.entries(inputs),
      ...Object.entries(outputs),
    ]
  ) {
    if (path === undefined) continue;
    const real = await realPath(path);
    const other = seen.get(real);
    if (other !== undefined && Object.hasOwn(outputs, name)) {
      throw cannot(what, `different files for ${other} and ${name}`, path);
    }
    seen.set(real, name);
  }
}

/** The one path of a file, whether it is there or not. */
async function realPath(path: string): Promise<string> {
  const target = await linkTarget(path).catch(() => path);
  try {
    return await Deno.realPath(target);
  } catch {
    const parent = parentOf(target);
    return parent === target || nameOf(target) === ""
      ? target
      : joinPath(await realPath(parent), nameOf(target));
  }
}

/** Whether an error is already one of {@linkcode cannot}. */
function isOurs(error: unknown): boolean {
  return error instanceof Error && error.message.startsWith("Cannot ");
}

async function* chunksOf(content: FileContent): AsyncGenerator<Uint8Array> {
  if (typeof content === "string") yield new TextEncoder().encode(content);
  else if (content instanceof Uint8Array) yield content;
  else yield* content;
}

async function writeAll(file: Deno.FsFile, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    done += await file.write(bytes.subarray(done));
  }
}

/**
 * Writes a file so that at any moment, even after `kill -9` or a power cut,
 * the path holds either its old content or all of the new.
 *
 * The folder is made if it is missing. A symbolic link stays, and what it points
 * to is written. If the content's iterator throws, the old file stays and
 * nothing is left behind.
 *
 * @throws If the folder or file cannot be written, the disk is full, or the
 * content fails.
 */
export async function writeAtomic(
  path: string | URL,
  content: FileContent,
): Promise<void> {
  const shown = pathOf(path);
  const what = `write ${shown}`;
  const target = await linkTarget(shown);
  const folder = parentOf(target);
  let temporary: string;
  let file: Deno.FsFile;
  try {
    // What a link points to is another's: a folder missing there is an error.
    if (target === shown) await Deno.mkdir(folder, { recursive: true });
    ({ name: temporary, file } = await createTemporary(target));
  } catch (error) {
    throw cannot(what, "a writable folder", reason(error));
  }
  try {
    try {
      for await (const chunk of chunksOf(content)) {
        await writing(what, () => writeAll(file, chunk));
      }
      await writing(what, () => file.sync());
    } finally {
      file.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await Deno.remove(temporary).catch(() => {});
    throw error;
  }
  await syncFolder(folder);
}

/** Does one step of writing; if the disk is full, the error says where. */
async function writing(
  what: string,
  step: () => Promise<unknown>,
): Promise<void> {
  try {
    await step();
  } catch (error) {
    throw cannot(what, "room on the disk", reason(error));
  }
}

async function rename(from: string, to: string): Promise<void> {
  try {
    // As an administrator one could replace even /dev/null.
    const there = await Deno.lstat(to).catch(() => undefined);
    if (there && !there.isFile && !there.isDirectory) {
      throw new Error("it is a device");
    }
    await Deno.rename(from, to);
  } catch (error) {
    throw cannot(`write ${to}`, "a name that can be replaced", reason(error));
  }
}

/** Flushes the folder's entry for a renamed file, where the system can. */
async function syncFolder(folder: string): Promise<void> {
  try {
    using handle = await Deno.open(folder, { read: true });
    await handle.sync();
  } catch {
    // Windows cannot open folders; the file itself is already on the disk.
  }
}

/**
 * Reads a text file: UTF-8, or UTF-16 with a byte order mark, as editors on
 * Windows write it.
 *
 * @throws If it is in another encoding, or larger than 256 MiB.
 */
export async function readText(path: string | URL): Promise<string> {
  const shown = pathOf(path);
  let bytes: Uint8Array;
  try {
    const { size, isFile } = await Deno.stat(path);
    if (!isFile) throw cannot(`read ${shown}`, "a file", "a folder");
    if (size > MAX_JSON_BYTES) {
      throw cannot(
        `read ${shown}`,
        `at most ${MAX_JSON_BYTES} bytes`,
        `${size} bytes`,
      );
    }
    bytes = await Deno.readFile(path);
  } catch (error) {
    if (isOurs(error)) throw error;
    throw cannot(`read ${shown}`, "a readable file", reason(error));
  }
  const encoding = encodingOf(bytes);
  let text: string;
  try {
    text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw cannot(
      `read ${shown}`,
      "UTF-8 text",
      encoding === "utf-8" ? "text in another encoding" : `broken ${encoding}`,
    );
  }
  // Valid UTF-8, but no text: UTF-16 without a mark has these.
  if (!text.includes("\0")) return text;
  throw cannot(
    `read ${shown}`,
    "UTF-8 text",
    "NUL characters: UTF-16, or data",
  );
}

/** The encoding that a byte order mark says; UTF-8 without one. */
function encodingOf([first, second]: Uint8Array): string {
  if (first === 0xff && second === 0xfe) return "utf-16le";
  if (first === 0xfe && second === 0xff) return "utf-16be";
  return "utf-8";
}

/**
 * Parses JSON as Python writes it: with bare `Infinity`, `-Infinity` and `NaN`
 * outside of strings, as diffusers' own configs have them.
 *
 * @param text The document.
 * @param from Where it came from, for the error.
 * @throws If it is not JSON; a page of HTML or a pointer of git-lfs in its place
 * is called so.
 *
 * @example
 * ```ts
 * const { lambda_min_clipped } = parseJson(
 *   '{"lambda_min_clipped": -Infinity}',
 *   "scheduler_config.json",
 * ) as { lambda_min_clipped: number };
 * ```
 */
export function parseJson(text: string, from: string): unknown {
  let problem: unknown;
  try {
    return JSON.parse(text);
  } catch (error) {
    problem = error;
  }
  const mark = unusedMark(text);
  // Strings are matched first, so that words inside them stay as they are.
  const plain = text.replace(
    /"(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b/g,
    (found) => found.startsWith('"') ? found : JSON.stringify(mark + found),
  );
  try {
    return JSON.parse(
      plain,
      (_, value) =>
        typeof value === "string" && value.startsWith(mark)
          ? Number(value.slice(mark.length))
          : value,
    );
  } catch {
    const other = otherContent(text);
    throw cannot(
      `read ${from}`,
      "valid JSON",
      other ?? (problem as Error).message,
    );
  }
}

/** A beginning that no string of the document has. */
function unusedMark(text: string): string {
  for (let n = 0;; n++) {
    const mark = `#${n}:`;
    if (!text.includes(`"${mark}`)) return mark;
  }
}

/**
 * What a file is that begins like this and should be another, for messages:
 * pointers of git-lfs and pages of a failed download are often saved under the
 * name of the file that was wanted.
 *
 * @param head The beginning of the file, as text or bytes.
 * @returns What it is, or nothing if it is not known.
 */
export function otherContent(head: string | Uint8Array): string | undefined {
  const text = typeof head === "string"
    ? head.slice(0, 512)
    : String.fromCharCode(...head.subarray(0, 512));
  const start = text.replace(/^\u00ef\u00bb\u00bf|^\ufeff/, "").trimStart();
  if (start.startsWith("version https://git-lfs.github.com/")) {
    return "a git-lfs pointer, not the file itself (git lfs pull gets it)";
  }
  if (/^<(!doctype html|html|head|body|!--|script)/i.test(start)) {
    return "an HTML page, not the file: the download failed";
  }
  if (/^<(\?xml|error)/i.test(start)) {
    return "an XML page, not the file: the download failed";
  }
}

/** A number that JSON has no word for, as it is marked while encoding. */
const UNUSUAL = /(?<!\\)"\\u0000number (-?Infinity|NaN)"/g;

/**
 * Encodes JSON as Python writes it, with `Infinity`, `-Infinity` and `NaN`
 * (`JSON.stringify` makes them null): the reverse of {@linkcode parseJson}.
 *
 * @param value The document.
 * @param indent Spaces a level; 0 for one line.
 */
export function pythonJson(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_, v) =>
      typeof v === "number" && !Number.isFinite(v) ? `\0number ${v}` : v,
    indent,
  ).replace(UNUSUAL, "$1");
}

/**
 * Reads a JSON file, checked against a zod schema where one is given; Python's
 * `Infinity`, `-Infinity` and `NaN` are numbers.
 *
 * @throws If the file is missing, not JSON, or not what the schema says; the
 * error lists every path in the document that is wrong.
 *
 * @example
 * ```ts
 * import { z } from "zod";
 *
 * const config = await readJson("unet/config.json", z.object({ act_fn: z.string() }));
 * ```
 */
export async function readJson<T = unknown>(
  path: string | URL,
  schema?: Schema<T>,
): Promise<T> {
  const value = parseJson(await readText(path), pathOf(path));
  return schema ? checkJson(value, schema, pathOf(path)) : value as T;
}

/** Checks a parsed document against a zod schema and returns it typed. */
export function checkJson<T>(
  value: unknown,
  schema: Schema<T>,
  from: string,
): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const wrong = result.error.issues.map((issue) =>
    `${issue.path.map(String).join(".") || "document"}: ${issue.message}`
  );
  // A broken vocabulary has as many issues as words: the first few say enough.
  const shown = wrong.slice(0, 20).join("; ") +
    (wrong.length > 20 ? `; and ${wrong.length - 20} more` : "");
  throw cannot(`read ${from}`, "a document that fits its schema", shown);
}

/** Writes a value as indented JSON, atomically, with a final newline. */
export async function writeJson(
  path: string | URL,
  value: unknown,
): Promise<void> {
  await writeAtomic(path, JSON.stringify(value, null, 2) + "\n");
}

/**
 * Writes a value as {@linkcode writeJson}, but as Python would: for configs that
 * diffusers and PEFT read, where `-Infinity` is not the same as null.
 *
 * @param path The file.
 * @param value The document.
 */
export async function writePythonJson(
  path: string | URL,
  value: unknown,
): Promise<void> {
  await writeAtomic(path, pythonJson(value, 2) + "\n");
}

/**
 * Reads a file, in Deno or Node.
 *
 * @param path The file.
 * @throws If it is none, or cannot be read.
 */
export async function readBytes(
  path: string | URL,
): Promise<Uint8Array<ArrayBuffer>> {
  try {
    const node = nodeFiles();
    return node
      ? Uint8Array.from(await node.readFile(path))
      : await Deno.readFile(path);
  } catch (error) {
    throw cannot(`read ${pathOf(path)}`, "a readable file", reason(error));
  }
}

/** What is used here of Node's `node:fs/promises`. */
interface NodeFiles {
  readFile(path: string | URL): Promise<Uint8Array>;
  readdir(
    path: string | URL,
    options: { withFileTypes: true },
  ): Promise<{ name: string; isDirectory(): boolean }[]>;
}

/** Node's files, where this is not Deno; asked for so that bundlers see none. */
function nodeFiles(): NodeFiles | undefined {
  if ("Deno" in globalThis) return undefined;
  const { process } = globalThis as {
    process?: { getBuiltinModule?: (name: string) => unknown };
  };
  const found = process?.getBuiltinModule?.("node:fs/promises");
  if (!found) throw new Error("there are no files here: pass bytes instead");
  return found as NodeFiles;
}

/**
 * Names of the files in a folder, sorted; in Deno or Node.
 *
 * @param folder The folder.
 * @throws If it cannot be read.
 */
export async function listFiles(folder: string | URL): Promise<string[]> {
  const names: string[] = [];
  try {
    const node = nodeFiles();
    if (node) {
      for (const entry of await node.readdir(folder, { withFileTypes: true })) {
        if (!entry.isDirectory()) names.push(entry.name);
      }
    } else {
      for await (const entry of Deno.readDir(folder)) {
        if (!entry.isDirectory) names.push(entry.name);
      }
    }
  } catch (error) {
    throw cannot(
      `list ${pathOf(folder)}`,
      "a folder that can be read",
      reason(error),
    );
  }
  return names.sort();
}
