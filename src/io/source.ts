/**
 * Bytes wherever they are: on the disk, on a server, in a browser's hands.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import type { OpenFile } from "../core/platform/machine_type.ts";
import { machine } from "../core/platform/machine.ts";
import { isRemote, pathOf } from "./paths.ts";

/**
 * A file: its path, a `file:`, `http(s):` or `data:` URL (as text, too), a `Blob`
 * such as a file that someone picked in a page, or its bytes.
 */
export type FileSource = string | URL | Blob | Uint8Array;

/**
 * A place to write a file: a path, a `file:` URL, or a stream, such as that of
 * a file which someone picked in a page (`showSaveFilePicker`).
 */
export type FileTarget = string | URL | WritableStream<Uint8Array>;

/** Random access to the bytes of a file that is here. */
export interface Bytes {
  /** How many there are. */
  readonly size: number;
  /**
   * Reads `[begin, end)`, which the caller has checked, into fresh memory or the
   * beginning of `scratch`.
   */
  read(begin: number, end: number, scratch?: Uint8Array): Uint8Array;
  /** Releases the file. */
  close(): void;
}

/** Random access to the bytes of a file, wherever it is. */
export interface ByteSource {
  /** How many there are. */
  readonly size: number;
  /** Reads `[begin, end)`, as {@linkcode Bytes}. */
  read(
    begin: number,
    end: number,
    scratch?: Uint8Array,
  ): Uint8Array | Promise<Uint8Array>;
  /** Releases the file. */
  close(): void;
}

/** Bytes that are asked of a server at once, at least: 8 MiB. */
const WINDOW = 8 * 1024 * 1024;

/**
 * What to call a file in messages.
 *
 * @param from The file.
 * @param bytes What to call bytes without a name.
 */
export function sourceName(from: FileSource, bytes: string): string {
  if (typeof from === "string" || from instanceof URL) {
    return isData(from) ? bytes : pathOf(from);
  }
  return (from as { name?: string }).name || bytes;
}

/**
 * What to call a file that is written, in messages.
 *
 * @param to The file.
 */
export function targetName(to: FileTarget): string {
  return to instanceof WritableStream ? "a stream" : pathOf(to);
}

/**
 * Opens a file for reading in pieces: of what a server has only those pieces are
 * fetched, where it allows that.
 *
 * @param from The file.
 * @throws If it is none, or does not answer.
 */
export async function openSource(from: FileSource): Promise<ByteSource> {
  if (from instanceof Uint8Array) return memory(from);
  if (from instanceof Blob) return blobSource(from);
  if (isData(from)) return memory(await dataOf(from));
  return isRemote(from)
    ? await remote(String(from))
    : await openFile(pathOf(from));
}

/**
 * Opens a file for reading in pieces and at once: what is not here is fetched.
 *
 * @param from The file.
 * @throws As {@linkcode openSource}.
 */
export async function openBytes(from: FileSource): Promise<Bytes> {
  if (from instanceof Uint8Array) return memory(from);
  return from instanceof Blob || isRemote(from) || isData(from)
    ? memory(await readSource(from))
    : await openFile(pathOf(from));
}

/**
 * Reads a whole file.
 *
 * @param from The file.
 * @throws As {@linkcode openSource}.
 */
export async function readSource(
  from: FileSource,
): Promise<Uint8Array> {
  if (from instanceof Uint8Array) return from;
  const source = await openSource(from);
  try {
    return await source.read(0, source.size);
  } finally {
    source.close();
  }
}

/** Whether an address holds the bytes themselves. */
function isData(from: string | URL): boolean {
  return /^data:/i.test(String(from));
}

async function dataOf(url: string | URL): Promise<Uint8Array> {
  try {
    return new Uint8Array(await (await fetch(url)).arrayBuffer());
  } catch (error) {
    throw cannot("read a data: URL", "bytes in it", `${error}`);
  }
}

function memory(bytes: Uint8Array): Bytes {
  return {
    size: bytes.length,
    read: (begin, end) => bytes.slice(begin, end),
    close: () => {},
  };
}

function blobSource(blob: Blob): ByteSource {
  return {
    size: blob.size,
    read: async (begin, end) =>
      new Uint8Array(await blob.slice(begin, end).arrayBuffer()),
    close: () => {},
  };
}

async function openFile(path: string): Promise<Bytes> {
  const what = `read ${path}`;
  let file: OpenFile;
  try {
    file = await machine.files.open(path, "read");
  } catch (error) {
    throw cannot(what, "a readable file", reasonOf(error));
  }
  let open = true;
  const close = () => {
    if (open) file.close();
    open = false;
  };
  const { size, kind } = await file.stat();
  if (kind !== "file") {
    close();
    throw cannot(what, "a file", "a folder or device");
  }
  return {
    size,
    read(begin, end, scratch) {
      if (!open) throw cannot(what, "an open file", "a closed one");
      const bytes = scratch && scratch.length >= end - begin
        ? scratch.subarray(0, end - begin)
        : new Uint8Array(end - begin);
      for (let done = 0; done < bytes.length;) {
        const count = file.readAt(begin + done, bytes.subarray(done));
        if (count === 0) {
          throw cannot(what, `${size} bytes`, `an end at ${begin + done}`);
        }
        done += count;
      }
      return bytes;
    },
    close,
  };
}

/** A file on a server: kept between visits, or read in pieces, or whole. */
async function remote(url: string): Promise<ByteSource> {
  const what = `read ${url}`;
  const refused = (response: Response) =>
    cannot(what, "an answer 200", `${response.status}`);
  const ask = async (range?: string) => {
    try {
      return await fetch(url, range ? { headers: { Range: range } } : {});
    } catch (error) {
      throw cannot(what, "an answer", reasonOf(error));
    }
  };
  const kept = await machine.kept(url).catch((error) => {
    throw cannot(what, "an answer 200", `${error.message}`);
  });
  if (kept) return blobSource(kept);
  let first = await ask(`bytes=0-${WINDOW - 1}`);
  const size = Number(
    /^bytes 0-\d+\/(\d+)$/.exec(first.headers.get("Content-Range") ?? "")?.[1],
  );
  // An empty file has no first byte; some servers do not say how long it is.
  if (first.status === 416 || first.status === 206 && !Number.isInteger(size)) {
    await first.body?.cancel();
    first = await ask();
  }
  if (!first.ok) {
    await first.body?.cancel();
    throw refused(first);
  }
  const bytes = new Uint8Array(await first.arrayBuffer());
  if (first.status !== 206) return memory(bytes);
  let window = { begin: 0, bytes };
  return {
    size,
    // Tensors stand one behind the other: the next ones come along.
    async read(begin, end) {
      const inside = () =>
        begin >= window.begin && end <= window.begin + window.bytes.length;
      if (!inside()) {
        const last = Math.min(size, Math.max(end, begin + WINDOW)) - 1;
        const response = await ask(`bytes=${begin}-${last}`);
        const part = new Uint8Array(await response.arrayBuffer());
        if (response.status !== 206 || part.length !== last + 1 - begin) {
          throw cannot(
            what,
            `bytes ${begin} to ${last}`,
            `status ${response.status}, ${part.length} bytes`,
          );
        }
        // Another read may have moved the window meanwhile: each uses its own.
        window = { begin, bytes: part };
        return part.slice(0, end - begin);
      }
      return window.bytes.slice(begin - window.begin, end - window.begin);
    },
    close: () => {},
  };
}

/**
 * Whether there is a file under an address.
 *
 * @param url The address.
 * @throws If the server cannot be asked, or says another thing than yes or no.
 */
export async function isThere(url: string): Promise<boolean> {
  const what = `look at ${url}`;
  let response: Response;
  try {
    response = await fetch(url, { method: "HEAD" });
  } catch (error) {
    throw cannot(what, "an answer", reasonOf(error));
  }
  await response.body?.cancel();
  if (response.ok) return true;
  if ([403, 404, 410].includes(response.status)) return false;
  throw cannot(what, "an answer 200 or 404", `${response.status}`);
}
