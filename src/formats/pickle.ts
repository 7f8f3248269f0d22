/**
 * Tensors out of PyTorch's `.pth`, without running anything.
 *
 * A pickle is a program, and Python's unpickler lets it call any function. The
 * reader here knows the few instructions that dictionaries of tensors are made
 * of and the few names they call, and builds plain data from them; anything
 * else in the file is an error. It exists for the official Mix-of-Show's
 * ED-LoRA files.
 *
 * Formats: PyTorch's zip archive (`data.pkl`, `data/0`, …; torch ≥ 1.6) and
 * Python's pickle protocols 2 to 5
 * (https://docs.python.org/3/library/pickletools.html).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { pathOf } from "../io/files.ts";
import {
  type DType,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
} from "../io/safetensors.ts";

/** The longest `data.pkl` that is read, in bytes (4 MiB). */
export const MAX_PICKLE_BYTES: number = 4 * 1024 * 1024;

/** The most tensors a file may hold; an ED-LoRA has some hundreds. */
export const MAX_PICKLE_TENSORS = 16_384;

/** The most files in the archive: a storage a tensor, and a few more. */
const MAX_ZIP_ENTRIES = 2 * MAX_PICKLE_TENSORS;
/** The most dictionaries, lists, tuples and tensors that are made. */
const MAX_OBJECTS = 16 * MAX_PICKLE_TENSORS;
/** The most values in nested dictionaries and lists. */
const MAX_VALUES = 4 * MAX_PICKLE_TENSORS;
const MAX_DEPTH = 32;
const MAX_NAME = 512;
const MAX_RANK = 32;

/** Plain data of a pickle; tensors by what is known without reading them. */
export type PickleValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | PickleTensor
  | readonly PickleValue[]
  | ReadonlyMap<string | number, PickleValue>;

/** A tensor that a pickle describes: a view into a storage of the archive. */
export class PickleTensor {
  /**
   * Describes a tensor that lies in a storage.
   *
   * @param dtype Type of the elements.
   * @param shape Sizes of the dimensions.
   * @param stride Steps in elements, one a dimension.
   * @param offset First element in the storage.
   * @param storage Name of the storage in the archive (`"0"`).
   */
  constructor(
    readonly dtype: DType,
    readonly shape: readonly number[],
    readonly stride: readonly number[],
    readonly offset: number,
    readonly storage: string,
  ) {}
}

/** An open `.pth`: a {@link SafetensorsFile} in all but format. */
export interface PickleFile extends SafetensorsFile {
  /** What was pickled, as plain data. */
  readonly value: PickleValue;
}

/** Bytes of one element of each type that a storage may have. */
const DTYPE_BYTES = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
} as const;

type StorageType = keyof typeof DTYPE_BYTES;

const STORAGES: Readonly<Record<string, StorageType>> = {
  "torch DoubleStorage": "F64",
  "torch FloatStorage": "F32",
  "torch HalfStorage": "F16",
  "torch BFloat16Storage": "BF16",
  "torch LongStorage": "I64",
  "torch IntStorage": "I32",
  "torch ShortStorage": "I16",
  "torch CharStorage": "I8",
  "torch ByteStorage": "U8",
  "torch BoolStorage": "BOOL",
};

const REFUSED = "pickle files can run any code when they are loaded, so only " +
  "dictionaries of tensors are read; convert the file to safetensors " +
  "with the tool that made it";

/** Random access to the bytes of a file. */
interface Bytes {
  readonly size: number;
  read(begin: number, end: number): Uint8Array;
  close(): void;
}

async function openBytes(
  pathOrBytes: string | URL | Uint8Array,
  what: string,
): Promise<Bytes> {
  if (pathOrBytes instanceof Uint8Array) {
    return {
      size: pathOrBytes.length,
      read: (begin, end) => pathOrBytes.slice(begin, end),
      close: () => {},
    };
  }
  let file: Deno.FsFile;
  try {
    file = await Deno.open(pathOrBytes, { read: true });
  } catch (error) {
    throw cannot(what, "a readable file", `${error}`);
  }
  const { size, isFile } = await file.stat();
  if (!isFile) {
    file.close();
    throw cannot(what, "a file", "a folder or device");
  }
  let open = true;
  return {
    size,
    read(begin, end) {
      if (!open) throw cannot(what, "an open file", "a closed one");
      const bytes = new Uint8Array(end - begin);
      file.seekSync(begin, Deno.SeekMode.Start);
      for (let done = 0; done < bytes.length;) {
        const count = file.readSync(bytes.subarray(done));
        if (count === null) {
          throw cannot(what, `${size} bytes`, `an end at ${begin + done}`);
        }
        done += count;
      }
      return bytes;
    },
    close() {
      if (open) file.close();
      open = false;
    },
  };
}

/**
 * Opens a `.pth` that holds nothing but tensors in nested dictionaries and
 * lists; the tensors are read one at a time, on demand.
 *
 * A tensor's name joins the keys on its way with dots; the outermost key
 * `params`, where it is the only one (official ED-LoRA), is left out.
 *
 * @param pathOrBytes The file, or its bytes.
 * @throws If the file is no archive of PyTorch's, is damaged (checksums
 * included), or holds any other thing than tensors and plain data: the error
 * names it.
 *
 * @example
 * ```ts ignore
 * const file = await openPickle("edlora.pth");
 * const { adapter, embeddings } = await readLora(file, model);
 * file.close();
 * ```
 */
export async function openPickle(
  pathOrBytes: string | URL | Uint8Array,
): Promise<PickleFile> {
  const name = pathOrBytes instanceof Uint8Array
    ? "pickle bytes"
    : pathOf(pathOrBytes);
  const what = `read ${name}`;
  const bytes = await openBytes(pathOrBytes, what);
  try {
    return openArchive(bytes, what);
  } catch (error) {
    bytes.close();
    throw error;
  }
}

/**
 * Whether a file begins like an archive of PyTorch's or a bare pickle, and not
 * like safetensors.
 *
 * @param head The first bytes, at least 9 of them.
 */
export function isPickle(head: Uint8Array): boolean {
  // A safetensors header may have any length, so any first bytes.
  if (head[8] === 0x7b) return false;
  const zip = head[0] === 0x50 && head[1] === 0x4b;
  const pickle = head[0] === 0x80 && head[1] >= 2 && head[1] <= 5;
  return zip || pickle;
}

/**
 * Opens a file of named tensors by what is in it: safetensors, or a `.pth` of
 * plain tensors.
 *
 * @param pathOrBytes The file, or its bytes.
 * @throws As {@link openSafetensors} and {@link openPickle}.
 */
export async function openTensors(
  pathOrBytes: string | URL | Uint8Array,
): Promise<SafetensorsFile> {
  if (
    pathOrBytes instanceof URL && pathOrBytes.protocol !== "file:"
  ) return await openSafetensors(pathOrBytes);
  const bytes = await openBytes(
    pathOrBytes,
    `read ${pathOrBytes instanceof Uint8Array ? "bytes" : pathOf(pathOrBytes)}`,
  );
  const head = bytes.read(0, Math.min(16, bytes.size));
  bytes.close();
  return isPickle(head)
    ? await openPickle(pathOrBytes)
    : await openSafetensors(pathOrBytes);
}

function openArchive(bytes: Bytes, what: string): PickleFile {
  const zip = openZip(bytes, what);
  const pickles = [...zip.keys()].filter((name) =>
    name.endsWith("/data.pkl") && name.indexOf("/") === name.lastIndexOf("/")
  );
  if (pickles.length !== 1) {
    throw cannot(
      what,
      "an archive of PyTorch's with one data.pkl",
      `${pickles.length} of them among ${zip.size} files`,
    );
  }
  const root = pickles[0].slice(0, -"data.pkl".length);
  const order = zip.get(`${root}byteorder`);
  if (order) {
    if (order.size > 16) throw cannot(what, "a byteorder", "a long text");
    const text = new TextDecoder().decode(readEntry(bytes, order, what));
    if (text !== "little") throw cannot(what, "little-endian tensors", text);
  }
  const code = zip.get(pickles[0])!;
  if (code.size > MAX_PICKLE_BYTES) {
    throw cannot(
      what,
      `a data.pkl of at most ${MAX_PICKLE_BYTES} bytes`,
      code.size,
    );
  }
  const value = unpickle(readEntry(bytes, code, what), what);
  const tensors = nameTensors(value, what);
  const entries = new Map<string, TensorEntry>();
  for (const [name, tensor] of tensors) {
    const storage = zip.get(`${root}data/${tensor.storage}`);
    const wrong = checkTensor(tensor, storage?.size);
    if (wrong) throw cannot(what, wrong[0], `${name}: ${wrong[1]}`);
    const size = DTYPE_BYTES[tensor.dtype];
    const begin = tensor.offset * size;
    const count = tensor.shape.reduce((a, b) => a * b, 1);
    entries.set(name, {
      dtype: tensor.dtype,
      shape: [...tensor.shape],
      begin,
      end: begin + count * size,
    });
  }
  return {
    value,
    metadata: {},
    entries,
    read(name): Promise<RawTensor> {
      return Promise.resolve().then(() => {
        const tensor = tensors.get(name);
        if (!tensor) {
          throw cannot(what, "a tensor of the file", JSON.stringify(name));
        }
        const entry = zip.get(`${root}data/${tensor.storage}`)!;
        return gather(tensor, readEntry(bytes, entry, what));
      });
    },
    close: () => bytes.close(),
  };
}

/** What is wrong with a view into a storage of so many bytes, if anything. */
function checkTensor(
  { dtype, shape, stride, offset, storage }: PickleTensor,
  bytes: number | undefined,
): [expected: string, got: string] | undefined {
  if (bytes === undefined) return [`the storage ${storage}`, "none"];
  const size = DTYPE_BYTES[dtype];
  if (bytes % size !== 0) {
    return [`storage ${storage} of whole ${dtype}`, `${bytes} bytes`];
  }
  const room = bytes / size;
  const count = shape.reduce((a, b) => a * b, 1);
  // A stride of 0 would let a small file fill any memory.
  if (!Number.isSafeInteger(count) || count > room) {
    return [`at most the ${room} values of storage ${storage}`, `[${shape}]`];
  }
  const last = offset +
    shape.reduce((sum, n, i) => sum + Math.max(n - 1, 0) * stride[i], 0);
  if (count > 0 && !(Number.isSafeInteger(last) && last < room)) {
    return [`values within the ${room} of storage ${storage}`, `${last}`];
  }
}

/** Copies a view out of its storage, row-major. */
function gather(tensor: PickleTensor, storage: Uint8Array): RawTensor {
  const { dtype, shape, stride, offset } = tensor;
  const size = DTYPE_BYTES[dtype];
  const count = shape.reduce((a, b) => a * b, 1);
  const result = { dtype, shape: [...shape] };
  let step = 1;
  let contiguous = true;
  for (let i = shape.length - 1; i >= 0; i--) {
    contiguous &&= shape[i] === 1 || stride[i] === step;
    step *= shape[i];
  }
  if (contiguous || count === 0) {
    const begin = count === 0 ? 0 : offset * size;
    return { ...result, data: storage.slice(begin, begin + count * size) };
  }
  const data = new Uint8Array(count * size);
  const index = new Array<number>(shape.length).fill(0);
  let from = offset;
  for (let to = 0; to < count; to++) {
    for (let b = 0; b < size; b++) {
      data[to * size + b] = storage[from * size + b];
    }
    for (let i = shape.length - 1; i >= 0; i--) {
      from += stride[i];
      if (++index[i] < shape[i]) break;
      from -= stride[i] * shape[i];
      index[i] = 0;
    }
  }
  return { ...result, data };
}

/** All tensors of a value by their dotted names. */
function nameTensors(
  value: PickleValue,
  what: string,
): Map<string, PickleTensor> {
  const found = new Map<string, PickleTensor>();
  let visited = 0;
  const visit = (node: PickleValue, name: string, depth: number) => {
    // Values may be shared, so a short file can describe an endless tree.
    if (++visited > MAX_VALUES) {
      throw cannot(what, `at most ${MAX_VALUES} values`, "more");
    }
    if (depth > MAX_DEPTH) {
      throw cannot(what, `at most ${MAX_DEPTH} nested values`, "more");
    }
    if (name.length > MAX_NAME) {
      throw cannot(what, `names of at most ${MAX_NAME} characters`, "more");
    }
    const below = (key: string | number) =>
      name === "" ? `${key}` : `${name}.${key}`;
    if (node instanceof PickleTensor) {
      if (found.has(name)) {
        throw cannot(what, "every tensor name once", JSON.stringify(name));
      }
      if (found.size >= MAX_PICKLE_TENSORS) {
        throw cannot(what, `at most ${MAX_PICKLE_TENSORS} tensors`, "more");
      }
      found.set(name, node);
    } else if (node instanceof Map) {
      for (const [key, child] of node) visit(child, below(key), depth + 1);
    } else if (Array.isArray(node)) {
      node.forEach((child, i) => visit(child, below(i), depth + 1));
    }
  };
  const wrapped = value instanceof Map && value.size === 1
    ? value.get("params")
    : undefined;
  visit(wrapped instanceof Map ? wrapped : value, "", 0);
  return found;
}

// ---------------------------------------------------------------- the program

/** A name that the program may use but that is no data. */
class Name {
  constructor(readonly name: string) {}
}

const MARK: unique symbol = Symbol("mark");

/** A storage, between its persistent id and the tensor made of it. */
class Storage {
  constructor(readonly dtype: StorageType, readonly key: string) {}
}

/** OrderedDict: a dictionary that an attribute may be set on. */
class Ordered extends Map<string | number, unknown> {}

const CALLS = new Set([
  "torch._utils _rebuild_tensor_v2",
  "torch._utils _rebuild_parameter",
  "collections OrderedDict",
]);

/** Dictionaries, lists, tuples, calls, names, storages, marks with a list. */
const MAKES_OBJECT = new Set([
  0x7d,
  0x5d,
  0x29,
  0x85,
  0x86,
  0x87,
  0x74,
  0x6c,
  0x64,
  0x52,
  0x63,
  0x93,
  0x51,
  0x8a,
]);

/**
 * Runs a pickle in which only tensors and plain data can be made.
 *
 * @param code The program.
 * @param what What is being done, for messages.
 */
function unpickle(code: Uint8Array, what: string): PickleValue {
  const view = new DataView(code.buffer, code.byteOffset, code.byteLength);
  const stack: unknown[] = [];
  const memo = new Map<number, unknown>();
  const text = new TextDecoder("utf-8", { fatal: true });
  let at = 0;
  const wrong = (expected: string, got: unknown) =>
    cannot(what, expected, `${brief(got)} at byte ${at} of data.pkl`);
  const take = (count: number): number => {
    const begin = at;
    if (count > code.length - begin) throw wrong("a whole pickle", "its end");
    at += count;
    return begin;
  };
  const line = (): string => {
    const end = code.indexOf(0x0a, at);
    if (end < 0 || end - at > 256) throw wrong("a short name", "a long one");
    const bytes = code.subarray(at, end);
    at = end + 1;
    return decode(bytes);
  };
  const decode = (bytes: Uint8Array): string => {
    try {
      return text.decode(bytes);
    } catch {
      throw wrong("UTF-8 text", "other bytes");
    }
  };
  const string = (length: number) => {
    const begin = take(length);
    return decode(code.subarray(begin, begin + length));
  };
  const long64 = () => {
    const value = view.getBigUint64(take(8), true);
    if (value > 0xffffffffn) throw wrong("a length below 2³²", value);
    return Number(value);
  };
  const pop = (): unknown => {
    if (stack.length === 0) throw wrong("a value on the stack", "none");
    const value = stack.pop();
    if (value === MARK) throw wrong("a value on the stack", "a mark");
    return value;
  };
  const top = (): unknown => {
    const value = stack.at(-1);
    if (value === undefined || value === MARK) {
      throw wrong("a value on the stack", "none");
    }
    return value;
  };
  const toMark = (): unknown[] => {
    const mark = stack.lastIndexOf(MARK);
    if (mark < 0) throw wrong("a mark on the stack", "none");
    const values = stack.splice(mark);
    values.shift();
    return values;
  };
  const put = (index: number) => memo.set(index, top());
  const get = (index: number) => {
    if (!memo.has(index)) throw wrong("a value in the memo", index);
    stack.push(memo.get(index));
  };
  const setItems = (items: unknown[]) => {
    const target = top();
    if (!(target instanceof Map)) throw wrong("a dictionary to fill", target);
    if (items.length % 2 !== 0) throw wrong("pairs", "an odd number");
    for (let i = 0; i < items.length; i += 2) {
      const name = items[i];
      if (typeof name !== "string" && typeof name !== "number") {
        throw wrong("text or a number as key", name);
      }
      if (target.has(name)) throw wrong("every key once", name);
      target.set(name, items[i + 1]);
    }
  };
  const append = (items: unknown[]) => {
    const target = top();
    // Tuples are frozen arrays.
    if (!Array.isArray(target) || Object.isFrozen(target)) {
      throw wrong("a list to fill", target);
    }
    for (const item of items) target.push(item);
  };
  const tuple = (items: unknown[]) => stack.push(Object.freeze(items));
  const global = (module: string, name: string) => {
    const full = `${module} ${name}`;
    if (!CALLS.has(full) && !Object.hasOwn(STORAGES, full)) {
      throw cannot(
        what,
        "nothing but tensors and plain data",
        `${brief(module)}.${brief(name)}: ${REFUSED}`,
      );
    }
    stack.push(new Name(full));
  };
  const sizes = (value: unknown): number[] => {
    if (
      !Array.isArray(value) || value.length > MAX_RANK ||
      !value.every((n) => Number.isSafeInteger(n) && n >= 0)
    ) throw wrong("a shape or stride", value);
    return [...value];
  };
  const call = (callable: unknown, args: unknown): unknown => {
    if (!(callable instanceof Name) || !Array.isArray(args)) {
      throw wrong("a call of a known name", callable);
    }
    switch (callable.name) {
      case "collections OrderedDict":
        if (args.length !== 0) throw wrong("an empty OrderedDict", args);
        return new Ordered();
      case "torch._utils _rebuild_parameter":
        if (
          args.length !== 3 || !(args[0] instanceof PickleTensor)
        ) throw wrong("a tensor as parameter", args);
        return args[0];
      case "torch._utils _rebuild_tensor_v2": {
        const [storage, offset, shape, stride] = args;
        if (
          (args.length !== 6 && args.length !== 7) ||
          !(storage instanceof Storage) || !Number.isSafeInteger(offset) ||
          offset < 0
        ) throw wrong("a storage and an offset", args);
        const [dims, steps] = [sizes(shape), sizes(stride)];
        if (dims.length !== steps.length) {
          throw wrong("a stride for each dimension", stride);
        }
        return new PickleTensor(
          storage.dtype,
          dims,
          steps,
          offset,
          storage.key,
        );
      }
      default:
        throw wrong("a function", callable.name);
    }
  };
  const persistent = (id: unknown): Storage => {
    if (!Array.isArray(id) || id.length !== 5 || id[0] !== "storage") {
      throw wrong("a storage", id);
    }
    const [, type, name, , count] = id;
    const dtype = type instanceof Name ? STORAGES[type.name] : undefined;
    if (
      dtype === undefined || typeof name !== "string" ||
      !/^\d{1,9}$/.test(name) || !Number.isSafeInteger(count) || count < 0
    ) throw wrong("a typed storage", id);
    return new Storage(dtype, name);
  };
  // One byte can make an object of a hundred.
  let objects = 0;
  for (let first = true;; first = false) {
    const opcode = code[take(1)];
    if (MAKES_OBJECT.has(opcode) && ++objects > MAX_OBJECTS) {
      throw wrong(`at most ${MAX_OBJECTS} objects`, "more");
    }
    if (first && opcode !== 0x80) throw wrong("a pickle", `byte ${opcode}`);
    switch (opcode) {
      case 0x80: { // PROTO
        const version = code[take(1)];
        if (!first || version < 2 || version > 5) {
          throw wrong("protocol 2 to 5 at the beginning", version);
        }
        break;
      }
      case 0x95: // FRAME
        take(8);
        break;
      case 0x2e: { // STOP
        const value = pop();
        if (stack.length > 0 || at !== code.length) {
          throw wrong("the end of the pickle", "more");
        }
        return plain(value, wrong);
      }
      case 0x28: // MARK
        stack.push(MARK);
        break;
      case 0x30: // POP
        stack.length > 0 ? stack.pop() : pop();
        break;
      case 0x31: // POP_MARK
        toMark();
        break;
      case 0x4e: // NONE
        stack.push(null);
        break;
      case 0x88: // NEWTRUE
        stack.push(true);
        break;
      case 0x89: // NEWFALSE
        stack.push(false);
        break;
      case 0x4a: // BININT
        stack.push(view.getInt32(take(4), true));
        break;
      case 0x4b: // BININT1
        stack.push(code[take(1)]);
        break;
      case 0x4d: // BININT2
        stack.push(view.getUint16(take(2), true));
        break;
      case 0x8a: { // LONG1: little-endian two's complement
        const length = code[take(1)];
        let value = 0n;
        const begin = take(length);
        for (let i = length - 1; i >= 0; i--) {
          value = (value << 8n) | BigInt(code[begin + i]);
        }
        value = BigInt.asIntN(8 * length, value);
        const number = Number(value);
        stack.push(Number.isSafeInteger(number) ? number : value);
        break;
      }
      case 0x47: // BINFLOAT
        stack.push(view.getFloat64(take(8), false));
        break;
      case 0x58: // BINUNICODE
        stack.push(string(view.getUint32(take(4), true)));
        break;
      case 0x8c: // SHORT_BINUNICODE
        stack.push(string(code[take(1)]));
        break;
      case 0x8d: // BINUNICODE8
        stack.push(string(long64()));
        break;
      case 0x7d: // EMPTY_DICT
        stack.push(new Map());
        break;
      case 0x5d: // EMPTY_LIST
        stack.push([]);
        break;
      case 0x29: // EMPTY_TUPLE
        tuple([]);
        break;
      case 0x85: // TUPLE1
        tuple([pop()]);
        break;
      case 0x86: { // TUPLE2
        const b = pop();
        tuple([pop(), b]);
        break;
      }
      case 0x87: { // TUPLE3
        const [c, b] = [pop(), pop()];
        tuple([pop(), b, c]);
        break;
      }
      case 0x74: // TUPLE
        tuple(toMark());
        break;
      case 0x6c: // LIST
        stack.push(toMark());
        break;
      case 0x64: { // DICT
        const items = toMark();
        stack.push(new Map());
        setItems(items);
        break;
      }
      case 0x61: { // APPEND
        const item = pop();
        append([item]);
        break;
      }
      case 0x65: // APPENDS
        append(toMark());
        break;
      case 0x73: { // SETITEM
        const value = pop();
        setItems([pop(), value]);
        break;
      }
      case 0x75: // SETITEMS
        setItems(toMark());
        break;
      case 0x71: // BINPUT
        put(code[take(1)]);
        break;
      case 0x72: // LONG_BINPUT
        put(view.getUint32(take(4), true));
        break;
      case 0x94: // MEMOIZE
        put(memo.size);
        break;
      case 0x68: // BINGET
        get(code[take(1)]);
        break;
      case 0x6a: // LONG_BINGET
        get(view.getUint32(take(4), true));
        break;
      case 0x63: { // GLOBAL
        const module = line();
        global(module, line());
        break;
      }
      case 0x93: { // STACK_GLOBAL
        const name = pop();
        const module = pop();
        if (typeof module !== "string" || typeof name !== "string") {
          throw wrong("the name of a function", name);
        }
        global(module, name);
        break;
      }
      case 0x51: // BINPERSID
        stack.push(persistent(pop()));
        break;
      case 0x52: { // REDUCE
        const args = pop();
        stack.push(call(pop(), args));
        break;
      }
      case 0x62: { // BUILD: a state dict's `_metadata`, which is not needed
        const state = pop();
        const target = top();
        const harmless = target instanceof Ordered && state instanceof Map &&
          [...state.keys()].every((name) => name === "_metadata");
        if (!harmless) {
          throw cannot(
            what,
            "nothing but tensors and plain data",
            `an object with attributes: ${REFUSED}`,
          );
        }
        break;
      }
      default:
        throw cannot(
          what,
          "nothing but tensors and plain data",
          `instruction 0x${opcode.toString(16)} at byte ${at - 1} of ` +
            `data.pkl: ${REFUSED}`,
        );
    }
  }
}

/** Checks that nothing but data is left in what a program made. */
function plain(
  value: unknown,
  wrong: (expected: string, got: unknown) => Error,
): PickleValue {
  const seen = new Set<unknown>();
  const todo = [value];
  while (todo.length > 0) {
    const node = todo.pop();
    if (node instanceof Name || node instanceof Storage) {
      throw wrong("data", node instanceof Name ? node.name : "a storage");
    }
    if (typeof node !== "object" || node === null) continue;
    if (seen.has(node)) continue;
    seen.add(node);
    if (node instanceof Map) {
      for (const child of node.values()) todo.push(child);
    } else if (Array.isArray(node)) {
      for (const child of node) todo.push(child);
    }
  }
  return value as PickleValue;
}

function brief(value: unknown): string {
  const shown = value instanceof Name
    ? value.name
    : typeof value === "string"
    ? value
    : Array.isArray(value)
    ? `${value.length} values`
    : typeof value === "object" && value !== null
    ? value.constructor.name
    : String(value);
  return shown.length > 80 ? `${shown.slice(0, 80)}…` : shown;
}

// ---------------------------------------------------------------- the archive

/** One file of a zip archive, stored as it is. */
interface ZipEntry {
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

/** Reads the directory of a zip archive (zip64 too, as PyTorch writes). */
function openZip(bytes: Bytes, what: string): Map<string, ZipEntry> {
  const head = bytes.read(0, Math.min(4, bytes.size));
  if (head[0] === 0x80) {
    throw cannot(
      what,
      "an archive of torch ≥ 1.6",
      `a bare pickle: ${REFUSED}`,
    );
  }
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
  if (count > MAX_ZIP_ENTRIES) {
    throw broken(`at most ${MAX_ZIP_ENTRIES} files`, count);
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
      throw broken("files stored as they are", `${brief(name)} packed`);
    }
    const wide = zip64Fields(rows, at, nameLength, extraLength);
    if (!wide) throw broken("zip64 sizes", `none for ${brief(name)}`);
    if (wide.packed !== wide.size) {
      throw broken("files stored as they are", `${brief(name)} of two sizes`);
    }
    if (!(wide.header + 30 + wide.size <= start)) {
      throw broken(`room for ${brief(name)}`, `${wide.size} bytes`);
    }
    if (entries.has(name)) throw broken("every file once", brief(name));
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
function readEntry(bytes: Bytes, entry: ZipEntry, what: string): Uint8Array {
  const name = new TextDecoder().decode(entry.name);
  const head = new DataView(
    bytes.read(entry.header, entry.header + 30).buffer,
  );
  const nameLength = head.getUint16(26, true);
  const begin = entry.header + 30 + nameLength + head.getUint16(28, true);
  if (
    head.getUint32(0, true) !== LOCAL || nameLength !== entry.name.length ||
    begin + entry.size > bytes.size
  ) throw cannot(what, `the file ${brief(name)} in the archive`, "other bytes");
  const data = bytes.read(begin, begin + entry.size);
  const crc = crc32(data);
  if (crc !== entry.crc) {
    throw cannot(
      what,
      `${brief(name)} with checksum ${entry.crc.toString(16)}`,
      `${crc.toString(16)}: the file is damaged`,
    );
  }
  return data;
}

let crcTable: Uint32Array | undefined;

/** CRC-32 of zip: reflected polynomial 0xedb88320. */
function crc32(data: Uint8Array): number {
  const table = crcTable ??= Uint32Array.from({ length: 256 }, (_, n) => {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
    return c;
  });
  let crc = 0xffffffff;
  for (let i = 0; i < data.length; i++) {
    crc = table[(crc ^ data[i]) & 255] ^ (crc >>> 8);
  }
  return (crc ^ 0xffffffff) >>> 0;
}
