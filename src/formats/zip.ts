/**
 * Zip archives of files that are stored as they are, as PyTorch writes them.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { crc32 } from "../io/crc.ts";
import type { Bytes } from "../io/source.ts";

/** One file of a zip archive, stored as it is. */
export interface ZipEntry {
  readonly size: number;
  readonly crc: number;
  /** Where its local header begins. */
  readonly header: number;
  readonly name: Uint8Array;
}

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const END64_LOCATOR = 0x07064b50;
const END64 = 0x06064b50;
const FULL = 0xffffffff;

/**
 * Reads the directory of a zip archive (zip64 too, as PyTorch writes).
 *
 * @param bytes The archive.
 * @param what What is being done, for messages.
 * @param most The most files it may have.
 * @returns Its files by name.
 * @throws If it is none, is damaged, compressed or has too many files.
 */
export function openZip(
  bytes: Bytes,
  what: string,
  most: number,
): Map<string, ZipEntry> {
  const head = bytes.read(0, Math.min(2, bytes.size));
  if (bytes.size < 22 || head[0] !== 0x50 || head[1] !== 0x4b) {
    throw cannot(what, "a zip archive of PyTorch's", "other bytes");
  }
  const broken = (expected: string, got: unknown) =>
    cannot(what, `a whole zip archive with ${expected}`, `${got}`);
  // A comment of up to 64 KiB may stand behind the end record.
  const from = Math.max(0, bytes.size - 22 - 0xffff);
  const tail = bytes.read(from, bytes.size);
  const view = new DataView(tail.buffer);
  let end = -1;
  for (let i = tail.length - 22; i >= 0 && end < 0; i--) {
    const fits = view.getUint32(i, true) === END &&
      i + 22 + view.getUint16(i + 20, true) === tail.length;
    if (fits) end = i;
  }
  if (end < 0) throw broken("an end record", "none (truncated)");
  let count = view.getUint16(end + 10, true);
  let size = view.getUint32(end + 12, true);
  let start = view.getUint32(end + 16, true);
  if (end >= 20 && view.getUint32(end - 20, true) === END64_LOCATOR) {
    const where = Number(view.getBigUint64(end - 20 + 8, true));
    if (!(where <= bytes.size - 56)) throw broken("an end record", where);
    const record = new DataView(bytes.read(where, where + 56).buffer);
    if (record.getUint32(0, true) !== END64) {
      throw broken("a zip64 end record", "none");
    }
    count = Number(record.getBigUint64(32, true));
    size = Number(record.getBigUint64(40, true));
    start = Number(record.getBigUint64(48, true));
  }
  if (count > most) {
    throw broken(`at most ${most} files`, count);
  }
  // Before any of it is read: the directory lies in the file.
  if (!(start + size <= from + end) || size < 46 * count) {
    throw broken("its directory", `${size} bytes at ${start}`);
  }
  const directory = bytes.read(start, start + size);
  const rows = new DataView(directory.buffer);
  const entries = new Map<string, ZipEntry>();
  const decoder = new TextDecoder("utf-8");
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + 46 > size || rows.getUint32(at, true) !== CENTRAL) {
      throw broken(`${count} files`, i);
    }
    const flags = rows.getUint16(at + 8, true);
    const method = rows.getUint16(at + 10, true);
    const nameLength = rows.getUint16(at + 28, true);
    const extraLength = rows.getUint16(at + 30, true);
    const next = at + 46 + nameLength + extraLength +
      rows.getUint16(at + 32, true);
    if (next > size) throw broken("its directory", "a cut one");
    const rawName = directory.slice(at + 46, at + 46 + nameLength);
    const name = decoder.decode(rawName);
    if (method !== 0 || (flags & 1) !== 0) {
      throw broken("files stored as they are", `${short(name)} packed`);
    }
    const wide = zip64Fields(rows, at, nameLength, extraLength);
    if (!wide) throw broken("zip64 sizes", `none for ${short(name)}`);
    if (wide.packed !== wide.size) {
      throw broken("files stored as they are", `${short(name)} of two sizes`);
    }
    if (!(wide.header + 30 + wide.size <= start)) {
      throw broken(`room for ${short(name)}`, `${wide.size} bytes`);
    }
    if (entries.has(name)) throw broken("every file once", short(name));
    entries.set(name, {
      size: wide.size,
      header: wide.header,
      crc: rows.getUint32(at + 16, true),
      name: rawName,
    });
    at = next;
  }
  if (at !== size) throw broken(`${size} bytes of directory`, at);
  return entries;
}

/** Sizes and place of a file, from its row or the row's zip64 extension. */
function zip64Fields(
  rows: DataView,
  at: number,
  nameLength: number,
  extraLength: number,
): { packed: number; size: number; header: number } | undefined {
  let packed = rows.getUint32(at + 20, true);
  let size = rows.getUint32(at + 24, true);
  let header = rows.getUint32(at + 42, true);
  if (packed !== FULL && size !== FULL && header !== FULL) {
    return { packed, size, header };
  }
  const end = at + 46 + nameLength + extraLength;
  for (let i = at + 46 + nameLength; i + 4 <= end;) {
    const id = rows.getUint16(i, true);
    const stop = i + 4 + rows.getUint16(i + 2, true);
    if (stop > end) return undefined;
    if (id === 1) {
      let field = i + 4;
      const take = () => {
        if (field + 8 > stop) return NaN;
        field += 8;
        return Number(rows.getBigUint64(field - 8, true));
      };
      // Only the fields that did not fit stand here, in this order.
      if (size === FULL) size = take();
      if (packed === FULL) packed = take();
      if (header === FULL) header = take();
      return [packed, size, header].every(Number.isSafeInteger)
        ? { packed, size, header }
        : undefined;
    }
    i = stop;
  }
  return undefined;
}

/** The bytes of one file of the archive, checked against its checksum. */
export function readEntry(
  bytes: Bytes,
  entry: ZipEntry,
  what: string,
): Uint8Array {
  const name = new TextDecoder().decode(entry.name);
  const head = new DataView(
    bytes.read(entry.header, entry.header + 30).buffer,
  );
  const nameLength = head.getUint16(26, true);
  const begin = entry.header + 30 + nameLength + head.getUint16(28, true);
  if (
    head.getUint32(0, true) !== LOCAL || nameLength !== entry.name.length ||
    begin + entry.size > bytes.size
  ) throw cannot(what, `the file ${short(name)} in the archive`, "other bytes");
  const data = bytes.read(begin, begin + entry.size);
  const crc = crc32(data);
  if (crc !== entry.crc) {
    throw cannot(
      what,
      `${short(name)} with checksum ${entry.crc.toString(16)}`,
      `${crc.toString(16)}: the file is damaged`,
    );
  }
  return data;
}

function short(name: string): string {
  return name.length > 80 ? `${name.slice(0, 80)}…` : name;
}
