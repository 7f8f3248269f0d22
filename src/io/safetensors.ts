/**
 * The safetensors format: a JSON header with dtypes, shapes and offsets, then
 * the raw little-endian data.
 *
 * Layout and rules: https://github.com/huggingface/safetensors#format. Every
 * rule is checked when the header is read and before any tensor is allocated,
 * so a broken or hostile file is an error, not a crash.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { otherContent, writeAtomic } from "./files.ts";
import {
  type ByteSource,
  type FileSource,
  type FileTarget,
  openSource,
  sourceName,
  targetName,
} from "./source.ts";

/**
 * The element types of the format, by their spelling on disk. Files may have
 * others, too: their tensors are listed and can be copied, but not read.
 */
export type DType =
  | "F64"
  | "F32"
  | "F16"
  | "BF16"
  | "F8_E4M3"
  | "F8_E5M2"
  | "F8_E4M3FNUZ"
  | "F8_E5M2FNUZ"
  | "F8_E8M0"
  | "F6_E2M3"
  | "F6_E3M2"
  | "F4"
  | "C64"
  | "I64"
  | "I32"
  | "I16"
  | "I8"
  | "U64"
  | "U32"
  | "U16"
  | "U8"
  | "BOOL";

/** Bits of one element of each type. */
const DTYPE_BITS: Readonly<Record<DType, number>> = {
  F64: 64,
  F32: 32,
  F16: 16,
  BF16: 16,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  F8_E8M0: 8,
  F6_E2M3: 6,
  F6_E3M2: 6,
  F4: 4,
  C64: 64,
  I64: 64,
  I32: 32,
  I16: 16,
  I8: 8,
  U64: 64,
  U32: 32,
  U16: 16,
  U8: 8,
  BOOL: 8,
};

/**
 * Whether values of a type are real numbers with fractions, as weights are:
 * F64 to F16, BF16 and the floats of 8 bits.
 *
 * @param dtype Its spelling on disk.
 */
export function isFloat(dtype: string): boolean {
  return /^(F64|F32|F16|BF16|F8_\w+)$/.test(dtype);
}

/**
 * Bytes of an element of a type; a fraction of one for those of less than 8
 * bits.
 *
 * @param dtype The type.
 */
export function elementBytes(dtype: DType): number {
  return DTYPE_BITS[dtype] / 8;
}

/** A tensor as it lies on disk: row-major, little-endian bytes. */
export interface RawTensor {
  /** Type of the elements: a {@link DType}, or one of another file's. */
  dtype: string;
  /** Sizes of the dimensions, `[]` for a scalar. */
  shape: number[];
  /** Little-endian bytes, product(shape) × bits of the dtype. */
  data: Uint8Array;
}

/** A tensor whose bytes are made only when they are written. */
export interface LazyTensor {
  /** Type of the elements. */
  dtype: DType;
  /** Sizes of the dimensions, `[]` for a scalar. */
  shape: number[];
  /** Makes the little-endian bytes; called once, in the order of the file. */
  load: () => Uint8Array | Promise<Uint8Array>;
}

/** Where one tensor lies: `[begin, end)` in bytes after the header. */
export interface TensorEntry {
  /** Type of the elements: a {@link DType}, or one that is not known here. */
  dtype: string;
  /** Sizes of the dimensions, `[]` for a scalar. */
  shape: number[];
  /** First byte, counted from the end of the header. */
  begin: number;
  /** The byte after the last. */
  end: number;
}

/** An open safetensors file; tensors are read one at a time, on demand. */
export interface SafetensorsFile extends Disposable {
  /** The header's `__metadata__`, empty where the file has none. */
  readonly metadata: Record<string, string>;
  /** Every tensor, in the order of its data. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /**
   * Reads one tensor, into fresh memory or, where it is given and large enough,
   * into the beginning of `scratch`; an unknown name throws.
   */
  read(name: string, scratch?: Uint8Array): Promise<RawTensor>;
  /** Releases the file; later reads throw. */
  close(): void;
}

/** The longest header the format allows, in bytes. */
const MAX_HEADER_BYTES: number = 100_000_000;

const PREFIX_BYTES = 8;

/**
 * Opens a safetensors file; only its header is read.
 *
 * Takes a path, a `file:` or `http(s):` URL, a `Blob` or the bytes of a whole
 * file. Of a server's file only what is read is fetched, where it allows that.
 *
 * @throws If the file is missing, truncated, or breaks a rule of the format:
 * header length, JSON, duplicate keys, dtype, shape, offsets with holes or
 * overlaps, metadata that is not text. The error names the file and the key.
 *
 * @example
 * ```ts
 * const file = await openSafetensors("unet/diffusion_pytorch_model.safetensors");
 * const bias = toFloat32(await file.read("conv_in.bias"));
 * file.close();
 * ```
 */
export async function openSafetensors(
  from: FileSource,
): Promise<SafetensorsFile> {
  const source = await openSource(from);
  try {
    return await readHeader(source, sourceName(from, "safetensors bytes"));
  } catch (error) {
    source.close();
    throw error;
  }
}

async function readHeader(
  source: ByteSource,
  name: string,
): Promise<SafetensorsFile> {
  const what = `read ${name}`;
  const head = await source.read(0, Math.min(512, source.size));
  const other = otherContent(head);
  if (other) throw cannot(what, "a safetensors file", other);
  if (source.size < PREFIX_BYTES) {
    const got = source.size === 0 ? "an empty file" : `${source.size} bytes`;
    throw cannot(what, "a safetensors file of at least 8 bytes", got);
  }
  const { buffer, byteOffset } = head;
  const length = Number(
    new DataView(buffer, byteOffset).getBigUint64(0, true),
  );
  const room = source.size - PREFIX_BYTES;
  const zeros = head.length > PREFIX_BYTES && head.every((b) => b === 0);
  if (zeros || length > Math.min(room, MAX_HEADER_BYTES)) {
    const format = foreignFormat(head);
    if (format) throw cannot(what, "a safetensors file", format);
    throw cannot(
      what,
      `a header of at most ${Math.min(room, MAX_HEADER_BYTES)} bytes`,
      `a header length of ${length} (truncated, or not safetensors)`,
    );
  }
  const header = parseHeader(
    await source.read(PREFIX_BYTES, PREFIX_BYTES + length),
    name,
  );
  const start = PREFIX_BYTES + length;
  checkLayout(header.entries, source.size - start, name);
  return {
    ...header,
    // The promise carries every failure, a wrong name's too.
    async read(name, scratch) {
      const entry = header.entries.get(name);
      if (!entry) {
        throw cannot(what, "a tensor of the file", JSON.stringify(name));
      }
      const { dtype, shape, begin, end } = entry;
      const data = await source.read(start + begin, start + end, scratch);
      return { dtype, shape: [...shape], data };
    },
    close: source.close,
    [Symbol.dispose]: source.close,
  };
}

/** Beginnings of other formats. */
const FOREIGN: readonly (readonly [name: string, ...starts: string[]])[] = [
  ["a GGUF file", "GGUF"],
  [
    "a zip archive (of PyTorch's, as .pth, .pt, .bin or .ckpt?)",
    "PK\x03\x04",
  ],
  [
    "a pickle (.pth, .pt, .bin or .ckpt)",
    ...["\x80\x02", "\x80\x03", "\x80\x04", "\x80\x05"],
  ],
  ["a gzip archive", "\x1f\x8b"],
  ["a 7z archive", "7z\xbc\xaf"],
  ["a RAR archive", "Rar!"],
  ["an HDF5 file", "\x89HDF"],
  ["a picture", "\x89PNG", "\xff\xd8\xff", "RIFF"],
  ["a JSON text, not the file: the download failed", "{", "["],
];

/** What a file is that is not safetensors, where its beginning tells. */
function foreignFormat(head: Uint8Array): string | undefined {
  if (head.every((byte) => byte === 0)) {
    return "nothing but zeros: the download did not finish";
  }
  const text = String.fromCharCode(...head).trimStart();
  return FOREIGN.find(([, ...starts]) =>
    starts.some((start) => text.startsWith(start))
  )?.[0];
}

interface Header {
  metadata: Record<string, string>;
  entries: Map<string, TensorEntry>;
}

function parseHeader(bytes: Uint8Array, from: string): Header {
  const what = `read the header of ${from}`;
  let text: string;
  let value: unknown;
  try {
    // A byte order mark is not JSON: keep it, so that the parser refuses it.
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })
      .decode(bytes);
    value = JSON.parse(text);
  } catch (error) {
    throw cannot(what, "JSON in UTF-8", reasonOf(error));
  }
  if (!text.startsWith("{") || !isRecord(value)) {
    throw cannot(what, "a JSON object that starts with {", text.slice(0, 20));
  }
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) {
    throw cannot(what, "every key once", `${JSON.stringify(duplicate)} twice`);
  }
  const entries: [string, TensorEntry][] = [];
  let metadata: Record<string, string> = {};
  for (const [key, item] of Object.entries(value)) {
    if (key === "__metadata__") metadata = parseMetadata(item, what);
    else entries.push([key, parseEntry(key, item, what)]);
  }
  entries.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  return { metadata, entries: new Map(entries) };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseMetadata(value: unknown, what: string): Record<string, string> {
  if (!isRecord(value)) {
    throw cannot(what, "__metadata__ to be an object", brief(value));
  }
  for (const [key, item] of Object.entries(value)) {
    if (typeof item !== "string") {
      throw cannot(
        what,
        `__metadata__ ${JSON.stringify(key)} to be text`,
        brief(item),
      );
    }
  }
  return value as Record<string, string>;
}

const ENTRY_FIELDS = ["dtype", "shape", "data_offsets"];

function parseEntry(key: string, value: unknown, what: string): TensorEntry {
  const wrong = (expected: string, got: unknown) =>
    cannot(what, `${expected} for ${JSON.stringify(key)}`, brief(got));
  if (
    !isRecord(value) ||
    Object.keys(value).toSorted().join() !== ENTRY_FIELDS.toSorted().join()
  ) throw wrong("an object with dtype, shape and data_offsets", value);
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string" || !/^[A-Z][A-Z0-9_]{0,31}$/.test(dtype)) {
    throw wrong("a dtype, such as F16", dtype);
  }
  if (!isSizes(shape)) throw wrong("a shape of non-negative integers", shape);
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw wrong("data_offsets [begin, end] with begin ≤ end", offsets);
  }
  const [begin, end] = offsets;
  // How long an element of an unknown type is only the file knows.
  const bytes = isKnown(dtype) ? byteLength(dtype, shape) : end - begin;
  if (bytes === undefined || bytes !== end - begin) {
    throw wrong(
      `${bytes ?? "a safe number of"} bytes (${dtype} ${brief(shape)})`,
      `${end - begin} bytes [${offsets}]`,
    );
  }
  return { dtype, shape, begin, end };
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) &&
    value.every((size) =>
      Number.isSafeInteger(size) && size >= 0 && !Object.is(size, -0)
    );
}

function isKnown(dtype: string): dtype is DType {
  return Object.hasOwn(DTYPE_BITS, dtype);
}

/**
 * Bytes of a tensor, or undefined where they are not whole or the product
 * leaves exact integers.
 */
function byteLength(dtype: DType, shape: number[]): number | undefined {
  let count = 1;
  for (const size of shape) {
    count *= size;
    if (!Number.isSafeInteger(count)) return undefined;
  }
  const bytes = count * DTYPE_BITS[dtype] / 8;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** A value in an error message: short, whatever the file holds. */
function brief(value: unknown): string {
  const text = typeof value === "string"
    ? value
    : JSON.stringify(value) ?? "nothing";
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** Entries (sorted by begin) must cover the data exactly: no hole or overlap. */
function checkLayout(
  entries: Map<string, TensorEntry>,
  size: number,
  from: string,
): void {
  const what = `read ${from}`;
  let at = 0;
  for (const [key, { begin, end }] of entries) {
    if (begin !== at) {
      const kind = begin > at ? "a hole" : "an overlap";
      throw cannot(
        what,
        `the data of ${JSON.stringify(key)} to begin at ${at}`,
        `${begin}: ${kind}`,
      );
    }
    if (end > size) {
      throw cannot(
        what,
        `the data of ${JSON.stringify(key)} to end at ${end}`,
        `a file whose data ends at ${size} (truncated)`,
      );
    }
    at = end;
  }
  if (at !== size) {
    throw cannot(what, `${at} bytes of tensor data`, `${size}`);
  }
}

/**
 * The first key that an object of the (valid) JSON text holds twice.
 *
 * `JSON.parse` keeps the last of two equal keys without a word, so a second
 * walk over the text compares them.
 */
function duplicateKey(json: string): string | undefined {
  const token = /"(?:[^"\\]|\\.)*"|[{}[\],:]/g;
  const open: (Set<string> | undefined)[] = [];
  let keyNext = false;
  for (let match = token.exec(json); match; match = token.exec(json)) {
    const text = match[0];
    const seen = open.at(-1);
    if (text === "{") open.push(new Set());
    else if (text === "[") open.push(undefined);
    else if (text === "}" || text === "]") open.pop();
    else if (text[0] === '"' && keyNext && seen) {
      const key: string = JSON.parse(text);
      if (seen.has(key)) return key;
      seen.add(key);
    }
    keyNext = text === "{" || (text === "," && open.at(-1) !== undefined);
  }
  return undefined;
}

/** What a tensor has elements of that can be read as numbers. */
type ReadableType = Exclude<DType, "C64" | "F4" | "F6_E2M3" | "F6_E3M2">;

function isReadable(dtype: string): dtype is ReadableType {
  return isKnown(dtype) && !/^(C64|F4|F6_\w+)$/.test(dtype);
}

/** The tensor's bytes at an address that any typed array accepts. */
function aligned(raw: RawTensor): {
  dtype: ReadableType;
  buffer: ArrayBuffer;
  offset: number;
  length: number;
} {
  const { dtype, data } = raw;
  if (!isReadable(dtype)) {
    throw cannot(
      "read a tensor",
      `a dtype of ${Object.keys(DTYPE_BITS).filter(isReadable).join(", ")}`,
      dtype,
    );
  }
  const size = DTYPE_BITS[dtype] / 8;
  const expected = byteLength(dtype, raw.shape);
  if (expected !== data.length) {
    throw cannot(
      "read a tensor",
      `${expected} bytes for ${dtype} [${raw.shape}]`,
      `${data.length}`,
    );
  }
  const bytes =
    data.byteOffset % size === 0 && data.buffer instanceof ArrayBuffer
      ? data
      : data.slice();
  return {
    dtype,
    buffer: bytes.buffer as ArrayBuffer,
    offset: bytes.byteOffset,
    length: bytes.length / size,
  };
}

/**
 * The tensor's values as float32, in fresh memory: F16, BF16 and floats of 8
 * bits widen exactly, F64 rounds to nearest, integers of 64 bits too (by way of
 * F64), BOOL gives 0 and 1.
 *
 * @throws If the bytes do not fit dtype and shape, or the dtype is no number's
 * (complex) or has less than 8 bits.
 */
export function toFloat32(raw: RawTensor): Float32Array {
  const { dtype, buffer, offset, length } = aligned(raw);
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, offset, length).slice();
    case "F64":
      return Float32Array.from(new Float64Array(buffer, offset, length));
    case "F16":
      return fromHalf(new Uint16Array(buffer, offset, length));
    case "BF16":
      return fromBrain(new Uint16Array(buffer, offset, length));
    case "F8_E4M3":
    case "F8_E5M2":
    case "F8_E4M3FNUZ":
    case "F8_E5M2FNUZ":
    case "F8_E8M0":
      return fromByte(dtype, new Uint8Array(buffer, offset, length));
    case "I64":
      return wide(new BigInt64Array(buffer, offset, length));
    case "U64":
      return wide(new BigUint64Array(buffer, offset, length));
    case "I32":
      return Float32Array.from(new Int32Array(buffer, offset, length));
    case "U32":
      return Float32Array.from(new Uint32Array(buffer, offset, length));
    case "I16":
      return Float32Array.from(new Int16Array(buffer, offset, length));
    case "U16":
      return Float32Array.from(new Uint16Array(buffer, offset, length));
    case "I8":
      return Float32Array.from(new Int8Array(buffer, offset, length));
    case "U8":
      return Float32Array.from(new Uint8Array(buffer, offset, length));
    case "BOOL":
      return Float32Array.from(new Uint8Array(buffer, offset, length), truth);
  }
}

function wide(values: BigInt64Array | BigUint64Array): Float32Array {
  const result = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) result[i] = Number(values[i]);
  return result;
}

/**
 * As {@link toFloat32} without fresh memory: the values lie in the tensor's own
 * bytes or in `scratch`, until one of them is written to again.
 *
 * @param raw The tensor.
 * @param scratch At least as many floats as the tensor has elements.
 * @throws If the bytes do not fit dtype and shape.
 */
export function viewFloat32(
  raw: RawTensor,
  scratch: Float32Array,
): Float32Array {
  const { dtype, buffer, offset, length } = aligned(raw);
  const target = scratch.subarray(0, length);
  switch (dtype) {
    case "F32":
      return new Float32Array(buffer, offset, length);
    case "F16":
      return fromHalf(new Uint16Array(buffer, offset, length), target);
    case "BF16":
      return fromBrain(new Uint16Array(buffer, offset, length), target);
    default:
      return toFloat32(raw);
  }
}

function truth(byte: number): number {
  return byte === 0 ? 0 : 1;
}

/** Every half-precision value by its bits, made at the first F16 tensor. */
let halfTable: Float32Array | undefined;

function makeHalfTable(): Float32Array {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    table[bits] = exponent === 31
      ? (fraction ? NaN : sign * Infinity)
      : exponent === 0
      ? sign * fraction * 2 ** -24
      : sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return table;
}

function fromHalf(
  bits: Uint16Array,
  result: Float32Array = new Float32Array(bits.length),
): Float32Array {
  const table = halfTable ??= makeHalfTable();
  for (let i = 0; i < bits.length; i++) result[i] = table[bits[i]];
  return result;
}

/** How floats of 8 bits with a sign are made up. */
const BYTE_FLOATS = {
  // Only the largest magnitude is no number, and none is infinite.
  F8_E4M3: { fraction: 3, bias: 7, special: "one NaN" },
  // As IEEE 754 has it: the upper half of an F16.
  F8_E5M2: { fraction: 2, bias: 15, special: "IEEE" },
  // "Finite, NaN, unsigned zero": what would be −0 is no number.
  F8_E4M3FNUZ: { fraction: 3, bias: 8, special: "no -0" },
  F8_E5M2FNUZ: { fraction: 2, bias: 16, special: "no -0" },
} as const;

type ByteFloat = keyof typeof BYTE_FLOATS | "F8_E8M0";

/** Every value of a float of 8 bits by its bits, made at the first tensor. */
const byteTables = new Map<ByteFloat, Float32Array>();

function makeByteTable(dtype: ByteFloat): Float32Array {
  if (dtype === "F8_E8M0") {
    // Powers of two; no sign, no fraction.
    return Float32Array.from(
      { length: 256 },
      (_, bits) => bits === 255 ? NaN : 2 ** (bits - 127),
    );
  }
  const { fraction: width, bias, special } = BYTE_FLOATS[dtype];
  const highest = (1 << (7 - width)) - 1;
  return Float32Array.from({ length: 256 }, (_, bits) => {
    const sign = bits & 0x80 ? -1 : 1;
    const exponent = (bits & 0x7f) >> width;
    const fraction = bits & ((1 << width) - 1);
    if (special === "one NaN" && (bits & 0x7f) === 0x7f) return NaN;
    if (special === "no -0" && bits === 0x80) return NaN;
    if (special === "IEEE" && exponent === highest) {
      return fraction ? NaN : sign * Infinity;
    }
    return exponent === 0
      ? sign * fraction * 2 ** (1 - bias - width)
      : sign * (fraction + (1 << width)) * 2 ** (exponent - bias - width);
  });
}

function fromByte(dtype: ByteFloat, bits: Uint8Array): Float32Array {
  const table = byteTables.get(dtype) ?? makeByteTable(dtype);
  byteTables.set(dtype, table);
  const result = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) result[i] = table[bits[i]];
  return result;
}

function fromBrain(
  bits: Uint16Array,
  result: Float32Array = new Float32Array(bits.length),
): Float32Array {
  const { buffer, byteOffset, length } = result;
  const words = new Uint32Array(buffer, byteOffset, length);
  for (let i = 0; i < length; i++) words[i] = bits[i] << 16;
  return result;
}

/**
 * Float32 values as the bytes of a dtype, rounded to nearest, ties to even;
 * values beyond the half range become infinite, as in PyTorch.
 */
export function encodeFloat(
  values: Float32Array,
  dtype: "F32" | "F16" | "BF16",
): Uint8Array {
  if (dtype === "F32") {
    return new Uint8Array(values.slice().buffer);
  }
  const bits = new Uint32Array(
    values.buffer,
    values.byteOffset,
    values.length,
  );
  const result = new Uint16Array(values.length);
  const narrow = dtype === "F16" ? toHalf : toBrain;
  for (let i = 0; i < bits.length; i++) result[i] = narrow(bits[i]);
  return new Uint8Array(result.buffer);
}

/** float32 bits → bfloat16 bits, ties to even. */
function toBrain(bits: number): number {
  // Rounding must not carry a NaN's payload over into infinity or zero.
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

/** float32 bits → half bits, ties to even. */
function toHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  // From 65520, the midpoint above the largest half, up: infinity.
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴; under half of that they vanish.
    if (magnitude < 0x33000000) return sign;
    const shift = 126 - (magnitude >>> 23);
    const fraction = (magnitude & 0x7fffff) | 0x800000;
    return sign | shiftEven(fraction, shift);
  }
  return sign | shiftEven(magnitude - 0x38000000, 13);
}

/** `value >> shift`, rounded to nearest with ties to even. */
function shiftEven(value: number, shift: number): number {
  const half = 1 << (shift - 1);
  const kept = value >>> shift;
  const rest = value & ((1 << shift) - 1);
  return rest > half || (rest === half && (kept & 1)) ? kept + 1 : kept;
}

function bitsOf(dtype: string): number {
  return isKnown(dtype) ? DTYPE_BITS[dtype] : 0;
}

/** Bytes of a tensor that is to be written; of an unknown type, those it has. */
function bytesOf(tensor: RawTensor | LazyTensor): number | undefined {
  const { dtype, shape } = tensor;
  if (isKnown(dtype)) return byteLength(dtype, shape);
  return "data" in tensor ? tensor.data.length : undefined;
}

interface Plan<T> {
  header: Uint8Array;
  tensors: [string, T][];
}

/** Checks the tensors, fixes their order and makes prefix and header. */
function plan<T extends RawTensor | LazyTensor>(
  tensors: Iterable<[string, T]>,
  metadata: Record<string, string> | undefined,
  what: string,
): Plan<T> {
  // PyTorch maps the file, so every tensor must start at a multiple of its
  // element size: wide types first, otherwise the order given.
  const ordered = [...tensors].sort(([, a], [, b]) =>
    bitsOf(b.dtype) - bitsOf(a.dtype)
  );
  const header = new Map<string, unknown>();
  if (metadata && Object.keys(metadata).length > 0) {
    for (const [key, value] of Object.entries(metadata)) {
      if (typeof value !== "string") {
        throw cannot(what, `metadata ${JSON.stringify(key)} to be text`, value);
      }
    }
    header.set("__metadata__", metadata);
  }
  let at = 0;
  for (const [name, tensor] of ordered) {
    if (header.has(name) || name === "__metadata__") {
      throw cannot(what, "every tensor name once", JSON.stringify(name));
    }
    const { dtype, shape } = tensor;
    const bytes = isSizes(shape) ? bytesOf(tensor) : undefined;
    if (
      bytes === undefined || ("data" in tensor && tensor.data.length !== bytes)
    ) {
      throw cannot(
        what,
        `${bytes} bytes for ${JSON.stringify(name)}: ${dtype} [${shape}]`,
        "data" in tensor ? tensor.data.length : "an invalid shape",
      );
    }
    header.set(name, { dtype, shape, data_offsets: [at, at + bytes] });
    at += bytes;
  }
  // Written by hand: an object would move keys like "0" to the front.
  const json = `{${
    [...header].map(([key, value]) =>
      `${JSON.stringify(key)}:${JSON.stringify(value)}`
    ).join(",")
  }}`;
  const text = new TextEncoder().encode(json);
  const padded = Math.ceil(text.length / 8) * 8;
  if (padded > MAX_HEADER_BYTES) {
    throw cannot(what, `a header of ${MAX_HEADER_BYTES} bytes`, `${padded}`);
  }
  const bytes = new Uint8Array(PREFIX_BYTES + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(text, PREFIX_BYTES);
  return { header: bytes, tensors: ordered };
}

/**
 * The bytes of a safetensors file holding the tensors.
 *
 * @throws If a name comes twice or bytes do not fit dtype and shape.
 */
export function encodeSafetensors(
  tensors: Iterable<[string, RawTensor]>,
  metadata?: Record<string, string>,
): Uint8Array {
  const { header, tensors: ordered } = plan(
    tensors,
    metadata,
    "encode safetensors",
  );
  const parts = ordered.map(([, { data }]) => data);
  return joined(Uint8Array, [header, ...parts]);
}

/**
 * Writes a safetensors file, atomically and tensor by tensor.
 *
 * The same tensors give the same bytes: wider dtypes come first (so that
 * PyTorch can map the file), and within a dtype the order given; the header is
 * padded to 8 bytes. {@link LazyTensor}s are made one at a time, so a large
 * model never lies in memory twice.
 *
 * @throws If a name comes twice, bytes do not fit dtype and shape, or the path
 * cannot be written; an old file then stays as it was.
 */
export async function writeSafetensors(
  path: FileTarget,
  tensors: Iterable<[string, RawTensor | LazyTensor]>,
  metadata?: Record<string, string>,
): Promise<void> {
  const what = `write ${targetName(path)}`;
  const { header, tensors: ordered } = plan(tensors, metadata, what);
  async function* chunks(): AsyncGenerator<Uint8Array> {
    yield header;
    for (const [name, tensor] of ordered) {
      const data = "data" in tensor ? tensor.data : await tensor.load();
      const bytes = bytesOf(tensor);
      if (data.length !== bytes) {
        throw cannot(what, `${bytes} bytes for ${name}`, `${data.length}`);
      }
      yield data;
    }
  }
  await writeAtomic(path, chunks());
}
