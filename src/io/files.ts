/**
 * Files written whole or not at all, and JSON read with clear errors.
 *
 * A reader never sees a half-written file: bytes go to a temporary name in the
 * same folder, are flushed to the disk, and only then take the final name.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import type { OpenFile } from "../core/platform/machine_type.ts";
import { machine } from "../core/platform/machine.ts";
import {
  isRemote,
  joinPath,
  localPath,
  nameOf,
  parentOf,
  pathOf,
} from "./paths.ts";
import {
  type FileSource,
  type FileTarget,
  isThere,
  openSource,
  readSource,
  sourceName,
} from "./source.ts";

export {
  besidePath,
  isRemote,
  joinPath,
  parentOf,
  pathFrom,
  pathOf,
  stemOf,
} from "./paths.ts";

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
const MAX_JSON_BYTES: number = 256 * 1024 * 1024;

/** One line that says why a file operation failed. */
function reason(error: unknown): string {
  // Deno's class; Node's errors have a code.
  const { name, code } = error as { name?: string; code?: string };
  if (name === "NotADirectory" || code === "ENOTDIR") return "a file";
  return reasonOf(error);
}

/** Whether something exists at the path; other failures (permissions) throw. */
export async function exists(path: string | URL): Promise<boolean> {
  try {
    return isRemote(path)
      ? await isThere(pathOf(path))
      : await machine.files.stat(pathOf(path)) !== undefined;
  } catch (error) {
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
  const path = localPath(folder);
  const what = `write into ${path}`;
  try {
    await machine.files.makeFolder(path);
  } catch (error) {
    throw cannot(what, "a folder that exists or can be made", reason(error));
  }
  const probe = temporaryName(joinPath(path, "probe"));
  try {
    (await machine.files.open(probe, "new"))?.close();
    await machine.files.remove(probe);
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
): Promise<{ name: string; file: OpenFile }> {
  for (let attempt = 1; attempt <= 100; attempt++) {
    const name = temporaryName(path);
    const file = await machine.files.open(name, "new");
    // A short name has few random letters, so it may be taken.
    if (file) return { name, file };
  }
  throw new Error("no temporary name is free");
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
    const found = await machine.files.linkStat(target).catch(() => undefined);
    if (found?.kind !== "link") return target;
    const next = await machine.files.readLink(target);
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
  const shown = localPath(path);
  await assertWritable(parentOf(shown));
  const target = await linkTarget(shown);
  const found = await machine.files.linkStat(target).catch((error) => {
    throw cannot(`write ${shown}`, "a name the system takes", reason(error));
  });
  if (!found) {
    if (target !== shown) await assertWritable(parentOf(target));
  } else if (found.kind !== "file") {
    const got = found.kind === "folder" ? "a folder" : "a device";
    throw cannot(`write ${shown}`, "a file", got);
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
    return await machine.files.realPath(target);
  } catch {
    const parent = parentOf(target);
    return parent === target || nameOf(target) === ""
      ? target
      : joinPath(await realPath(parent), nameOf(target));
  }
}

async function* chunksOf(content: FileContent): AsyncGenerator<Uint8Array> {
  if (typeof content === "string") yield new TextEncoder().encode(content);
  else if (content instanceof Uint8Array) yield content;
  else yield* content;
}

/**
 * Writes a file so that at any moment, even after `kill -9` or a power cut,
 * the path holds either its old content or all of the new.
 *
 * The folder is made if it is missing. A symbolic link stays, and what it points
 * to is written; a stream is written as it is. If the content's iterator throws, the old file stays and
 * nothing is left behind.
 *
 * @throws If the folder or file cannot be written, the disk is full, or the
 * content fails.
 */
export async function writeAtomic(
  path: FileTarget,
  content: FileContent,
): Promise<void> {
  if (path instanceof WritableStream) return await writeStream(path, content);
  const shown = localPath(path);
  const what = `write ${shown}`;
  const target = await linkTarget(shown);
  const folder = parentOf(target);
  let temporary: string;
  let file: OpenFile;
  try {
    // What a link points to is another's: a folder missing there is an error.
    if (target === shown) await machine.files.makeFolder(folder);
    ({ name: temporary, file } = await createTemporary(target));
  } catch (error) {
    throw cannot(what, "a writable folder", reason(error));
  }
  try {
    try {
      let size = 0;
      for await (const chunk of chunksOf(content)) {
        await writing(what, () => file.writeAt(size, chunk));
        size += chunk.length;
      }
      await writing(what, () => file.sync());
    } finally {
      file.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await machine.files.remove(temporary).catch(() => {});
    throw error;
  }
  await syncFolder(folder);
}

/** Writes into a stream; it is closed, or aborted if something fails. */
async function writeStream(
  stream: WritableStream<Uint8Array>,
  content: FileContent,
): Promise<void> {
  const writer = stream.getWriter();
  try {
    for await (const chunk of chunksOf(content)) await writer.write(chunk);
    await writer.close();
  } catch (error) {
    await writer.abort(error).catch(() => {});
    throw error;
  }
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
    const there = await machine.files.linkStat(to).catch(() => undefined);
    if (there && !["file", "folder"].includes(there.kind)) {
      throw new Error("it is a device");
    }
    await machine.files.rename(from, to);
  } catch (error) {
    throw cannot(`write ${to}`, "a name that can be replaced", reason(error));
  }
}

/** Flushes the folder's entry for a renamed file, where the system can. */
async function syncFolder(folder: string): Promise<void> {
  try {
    const handle = await machine.files.open(folder, "read");
    await handle.sync().finally(() => handle.close());
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
export async function readText(from: FileSource): Promise<string> {
  const shown = sourceName(from, "text");
  const source = await openSource(from);
  let bytes: Uint8Array;
  try {
    const { size } = source;
    if (size > MAX_JSON_BYTES) {
      throw cannot(
        `read ${shown}`,
        `at most ${MAX_JSON_BYTES} bytes`,
        `${size} bytes`,
      );
    }
    bytes = await source.read(0, size);
  } finally {
    source.close();
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
  from: FileSource,
  schema?: Schema<T>,
): Promise<T> {
  const shown = sourceName(from, "JSON");
  const value = parseJson(await readText(from), shown);
  return schema ? checkJson(value, schema, shown) : value as T;
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
 * Reads a file.
 *
 * @param path The file.
 * @throws If it is none, or cannot be read.
 */
export async function readBytes(
  path: FileSource,
): Promise<Uint8Array<ArrayBuffer>> {
  return await readSource(path) as Uint8Array<ArrayBuffer>;
}

/**
 * Names of the files in a folder, sorted.
 *
 * @param folder The folder.
 * @throws If it cannot be read.
 */
export async function listFiles(folder: string | URL): Promise<string[]> {
  try {
    return (await machine.files.list(pathOf(folder)))
      .filter(({ kind }) => kind !== "folder").map(({ name }) => name).sort();
  } catch (error) {
    throw cannot(
      `list ${pathOf(folder)}`,
      "a folder that can be read",
      reason(error),
    );
  }
}

/** Whether there is a folder under a path; an address is a file's. */
export async function isFolder(path: string | URL): Promise<boolean> {
  if (isRemote(path)) return false;
  const found = await machine.files.stat(pathOf(path))
    .catch(() => undefined);
  return found?.kind === "folder";
}
