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
import {
  elementBytes,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
} from "../io/safetensors.ts";
import {
  type Bytes,
  type FileSource,
  openBytes,
  openSource,
  sourceName,
} from "../io/source.ts";
import {
  MAX_PICKLE_TENSORS,
  PickleTensor,
  type PickleValue,
  REFUSED,
  unpickle,
} from "./unpickle.ts";
import { openZip, readEntry } from "./zip.ts";

export { MAX_PICKLE_TENSORS, PickleTensor, type PickleValue };

/** The longest `data.pkl` that is read, in bytes (4 MiB). */
const MAX_PICKLE_BYTES: number = 4 * 1024 * 1024;

/** The most values in nested dictionaries and lists. */
const MAX_VALUES = 4 * MAX_PICKLE_TENSORS;
const MAX_DEPTH = 32;
const MAX_NAME = 512;

/** An open `.pth`: a {@link SafetensorsFile} in all but format. */
export interface PickleFile extends SafetensorsFile {
  /** What was pickled, as plain data. */
  readonly value: PickleValue;
}

/**
 * Opens a `.pth` that holds nothing but tensors in nested dictionaries and
 * lists; the tensors are read one at a time, on demand.
 *
 * A tensor's name joins the keys on its way with dots; the outermost key
 * `params`, where it is the only one (official ED-LoRA), is left out.
 *
 * @param from The file: path, URL, `Blob` or bytes.
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
export async function openPickle(from: FileSource): Promise<PickleFile> {
  const what = `read ${sourceName(from, "pickle bytes")}`;
  const bytes = await openBytes(from);
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
 * @param from The file: path, URL, `Blob` or bytes.
 * @throws As {@link openSafetensors} and {@link openPickle}.
 */
export async function openTensors(from: FileSource): Promise<SafetensorsFile> {
  const source = await openSource(from);
  const head = await source.read(0, Math.min(16, source.size));
  source.close();
  return isPickle(head) ? await openPickle(from) : await openSafetensors(from);
}

function openArchive(bytes: Bytes, what: string): PickleFile {
  const head = bytes.read(0, Math.min(4, bytes.size));
  if (head[0] === 0x80) {
    throw cannot(
      what,
      "an archive of torch ≥ 1.6",
      `a bare pickle: ${REFUSED}`,
    );
  }
  const zip = openZip(bytes, what, 2 * MAX_PICKLE_TENSORS);
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
    const size = elementBytes(tensor.dtype);
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
    [Symbol.dispose]: () => bytes.close(),
  };
}

/** What is wrong with a view into a storage of so many bytes, if anything. */
function checkTensor(
  { dtype, shape, stride, offset, storage }: PickleTensor,
  bytes: number | undefined,
): [expected: string, got: string] | undefined {
  if (bytes === undefined) return [`the storage ${storage}`, "none"];
  const size = elementBytes(dtype);
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
  const size = elementBytes(dtype);
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
