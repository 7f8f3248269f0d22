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

/** A hidden name beside `path` that no other process or worker uses. */
function temporaryName(path: string): string {
  return joinPath(
    parentOf(path),
    `.${nameOf(path)}.${crypto.randomUUID()}.tmp`,
  );
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
 * The folder is made if it is missing. If the content's iterator throws, the
 * old file stays and nothing is left behind.
 *
 * @throws If the folder or file cannot be written, or the content fails.
 */
export async function writeAtomic(
  path: string | URL,
  content: FileContent,
): Promise<void> {
  const target = pathOf(path);
  const folder = parentOf(target);
  const temporary = temporaryName(target);
  let file: Deno.FsFile;
  try {
    await Deno.mkdir(folder, { recursive: true });
    file = await Deno.open(temporary, { write: true, createNew: true });
  } catch (error) {
    throw cannot(`write ${target}`, "a writable folder", reason(error));
  }
  try {
    try {
      for await (const chunk of chunksOf(content)) await writeAll(file, chunk);
      await file.sync();
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

async function rename(from: string, to: string): Promise<void> {
  try {
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

/** Reads a UTF-8 text file; not valid UTF-8 or larger than 256 MiB throws. */
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
    if (error instanceof Error && error.message.startsWith("Cannot ")) {
      throw error;
    }
    throw cannot(`read ${shown}`, "a readable file", reason(error));
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw cannot(`read ${shown}`, "UTF-8 text", "bytes that are not UTF-8");
  }
}

/** Parses JSON text; the error names where the text came from. */
export function parseJson(text: string, from: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw cannot(`read ${from}`, "valid JSON", reason(error));
  }
}

/**
 * Parses JSON as Python writes it: with bare `Infinity`, `-Infinity` and `NaN`
 * (read as null) outside of strings.
 *
 * @param text The document.
 * @param from Where it came from, for the error.
 * @throws If it is not JSON.
 */
export function parsePythonJson(text: string, from: string): unknown {
  // Strings are matched first, so that words inside them stay as they are.
  const plain = text.replace(
    /"(?:[^"\\]|\\.)*"|-?Infinity\b|\bNaN\b/g,
    (found) =>
      found === "Infinity"
        ? "1e999"
        : found === "-Infinity"
        ? "-1e999"
        : found === "NaN"
        ? "null"
        : found,
  );
  try {
    return JSON.parse(plain);
  } catch (error) {
    throw cannot(`read ${from}`, "JSON", reason(error));
  }
}

/**
 * Reads a JSON file, checked against a zod schema where one is given.
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
