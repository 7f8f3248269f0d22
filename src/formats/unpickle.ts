/**
 * Python's pickle protocols 2 to 5, as far as dictionaries of tensors need them
 * (https://docs.python.org/3/library/pickletools.html).
 *
 * A pickle is a program for a machine with a stack and a memo. The table below
 * has the instructions that are known; each is a function of the machine, and
 * only tensors and plain data can be made. Anything else is an error.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { DType } from "../io/safetensors.ts";

/** The most tensors a file may hold; an ED-LoRA has some hundreds. */
export const MAX_PICKLE_TENSORS = 16_384;

/** The most dictionaries, lists, tuples and tensors that are made. */
const MAX_OBJECTS = 16 * MAX_PICKLE_TENSORS;
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
   * @param stride Steps in elements, one per dimension.
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

const STORAGES: Readonly<Record<string, DType>> = {
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

/** Why anything but tensors and plain data is refused. */
export const REFUSED =
  "pickle files can run any code when they are loaded, so only " +
  "dictionaries of tensors are read; convert the file to safetensors " +
  "with the tool that made it";

/** A name that the program may use but that is no data. */
class Name {
  constructor(readonly name: string) {}
}

const MARK: unique symbol = Symbol("mark");

/** A storage, between its persistent id and the tensor made of it. */
class Storage {
  constructor(readonly dtype: DType, readonly key: string) {}
}

/** OrderedDict: a dictionary that an attribute may be set on. */
class Ordered extends Map<string | number, unknown> {}

/** The program: its bytes, and where it is. */
class Program {
  readonly #text = new TextDecoder("utf-8", { fatal: true });
  readonly #view: DataView;
  /** The next byte. */
  at = 0;

  constructor(readonly code: Uint8Array, readonly what: string) {
    this.#view = new DataView(code.buffer, code.byteOffset, code.byteLength);
  }

  /** The error of something that is wrong here. */
  wrong(expected: string, got: unknown): Error {
    const where = `${brief(got)} at byte ${this.at} of data.pkl`;
    return cannot(this.what, expected, where);
  }

  /** Passes over bytes and says where they begin. */
  take(count: number): number {
    const begin = this.at;
    if (count > this.code.length - begin) {
      throw this.wrong("a whole pickle", "its end");
    }
    this.at += count;
    return begin;
  }

  byte(): number {
    return this.code[this.take(1)];
  }

  uint16(): number {
    return this.#view.getUint16(this.take(2), true);
  }

  uint32(): number {
    return this.#view.getUint32(this.take(4), true);
  }

  int32(): number {
    return this.#view.getInt32(this.take(4), true);
  }

  /** Floats are the other way round. */
  float64(): number {
    return this.#view.getFloat64(this.take(8), false);
  }

  length64(): number {
    const value = this.#view.getBigUint64(this.take(8), true);
    if (value > 0xffffffffn) throw this.wrong("a length below 2³²", value);
    return Number(value);
  }

  /** Little-endian two's complement of any length. */
  integer(length: number): number | bigint {
    const begin = this.take(length);
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) {
      value = (value << 8n) | BigInt(this.code[begin + i]);
    }
    value = BigInt.asIntN(8 * length, value);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : value;
  }

  string(length: number): string {
    const begin = this.take(length);
    return this.#decode(this.code.subarray(begin, begin + length));
  }

  line(): string {
    const end = this.code.indexOf(0x0a, this.at);
    if (end < 0 || end - this.at > 256) {
      throw this.wrong("a short name", "a long one");
    }
    const bytes = this.code.subarray(this.at, end);
    this.at = end + 1;
    return this.#decode(bytes);
  }

  #decode(bytes: Uint8Array): string {
    try {
      return this.#text.decode(bytes);
    } catch {
      throw this.wrong("UTF-8 text", "other bytes");
    }
  }
}

/** What a program works on. */
interface Machine {
  readonly program: Program;
  readonly stack: unknown[];
  readonly memo: Map<number, unknown>;
}

function pop({ program, stack }: Machine): unknown {
  if (stack.length === 0) throw program.wrong("a value on the stack", "none");
  const value = stack.pop();
  if (value === MARK) throw program.wrong("a value on the stack", "a mark");
  return value;
}

function top({ program, stack }: Machine): unknown {
  const value = stack.at(-1);
  if (value === undefined || value === MARK) {
    throw program.wrong("a value on the stack", "none");
  }
  return value;
}

/** Takes all values above the last mark, and the mark. */
function toMark({ program, stack }: Machine): unknown[] {
  const mark = stack.lastIndexOf(MARK);
  if (mark < 0) throw program.wrong("a mark on the stack", "none");
  const values = stack.splice(mark);
  values.shift();
  return values;
}

function get({ program, stack, memo }: Machine, index: number): void {
  if (!memo.has(index)) throw program.wrong("a value in the memo", index);
  stack.push(memo.get(index));
}

function put(machine: Machine, index: number): void {
  machine.memo.set(index, top(machine));
}

/** Fills the dictionary on top of the stack. */
function setItems(machine: Machine, items: readonly unknown[]): void {
  const { program } = machine;
  const target = top(machine);
  if (!(target instanceof Map)) {
    throw program.wrong("a dictionary to fill", target);
  }
  if (items.length % 2 !== 0) throw program.wrong("pairs", "an odd number");
  for (let i = 0; i < items.length; i += 2) {
    const name = items[i];
    if (typeof name !== "string" && typeof name !== "number") {
      throw program.wrong("text or a number as key", name);
    }
    if (target.has(name)) throw program.wrong("every key once", name);
    target.set(name, items[i + 1]);
  }
}

/** Fills the list on top of the stack; tuples are frozen arrays. */
function append(machine: Machine, items: readonly unknown[]): void {
  const target = top(machine);
  if (!Array.isArray(target) || Object.isFrozen(target)) {
    throw machine.program.wrong("a list to fill", target);
  }
  for (const item of items) target.push(item);
}

function tuple({ stack }: Machine, items: unknown[]): void {
  stack.push(Object.freeze(items));
}

/** The last values of the stack, in the order in which they came. */
function last(machine: Machine, count: number): unknown[] {
  return Array.from({ length: count }, () => pop(machine)).reverse();
}

/** A name, if it is one of the few that are known. */
function global({ program, stack }: Machine, module: string, name: string) {
  const full = `${module} ${name}`;
  if (!Object.hasOwn(CALLS, full) && !Object.hasOwn(STORAGES, full)) {
    throw cannot(
      program.what,
      "nothing but tensors and plain data",
      `${brief(module)}.${brief(name)}: ${REFUSED}`,
    );
  }
  stack.push(new Name(full));
}

function sizes(program: Program, value: unknown): number[] {
  if (
    !Array.isArray(value) || value.length > MAX_RANK ||
    !value.every((n) => Number.isSafeInteger(n) && n >= 0)
  ) throw program.wrong("a shape or stride", value);
  return [...value];
}

/** The functions that may be called. */
const CALLS: Readonly<
  Record<string, (program: Program, args: readonly unknown[]) => unknown>
> = {
  "collections OrderedDict": (program, args) => {
    if (args.length !== 0) throw program.wrong("an empty OrderedDict", args);
    return new Ordered();
  },
  "torch._utils _rebuild_parameter": (program, args) => {
    if (args.length !== 3 || !(args[0] instanceof PickleTensor)) {
      throw program.wrong("a tensor as parameter", args);
    }
    return args[0];
  },
  "torch._utils _rebuild_tensor_v2": (program, args) => {
    const [storage, offset, shape, stride] = args;
    if (
      (args.length !== 6 && args.length !== 7) ||
      !(storage instanceof Storage) || !Number.isSafeInteger(offset) ||
      offset as number < 0
    ) throw program.wrong("a storage and an offset", args);
    const [dims, steps] = [sizes(program, shape), sizes(program, stride)];
    if (dims.length !== steps.length) {
      throw program.wrong("a stride for each dimension", stride);
    }
    return new PickleTensor(
      storage.dtype,
      dims,
      steps,
      offset as number,
      storage.key,
    );
  },
};

function call(program: Program, callable: unknown, args: unknown): unknown {
  if (!(callable instanceof Name) || !Array.isArray(args)) {
    throw program.wrong("a call of a known name", callable);
  }
  if (!Object.hasOwn(CALLS, callable.name)) {
    throw program.wrong("a function", callable.name);
  }
  return CALLS[callable.name](program, args);
}

/** The storage of a persistent id. */
function persistent(program: Program, id: unknown): Storage {
  if (!Array.isArray(id) || id.length !== 5 || id[0] !== "storage") {
    throw program.wrong("a storage", id);
  }
  const [, type, name, , count] = id;
  const dtype = type instanceof Name ? STORAGES[type.name] : undefined;
  if (
    dtype === undefined || typeof name !== "string" ||
    !/^\d{1,9}$/.test(name) || !Number.isSafeInteger(count) || count < 0
  ) throw program.wrong("a typed storage", id);
  return new Storage(dtype, name);
}

/** Only a state dict's `_metadata`, which is not needed, may be set. */
function build(machine: Machine): void {
  const state = pop(machine);
  const target = top(machine);
  const harmless = target instanceof Ordered && state instanceof Map &&
    [...state.keys()].every((name) => name === "_metadata");
  if (!harmless) {
    throw cannot(
      machine.program.what,
      "nothing but tensors and plain data",
      `an object with attributes: ${REFUSED}`,
    );
  }
}

/** One instruction. */
interface Instruction {
  /** Its name in Python's pickletools. */
  readonly name: string;
  readonly run: (machine: Machine) => void;
  /** Whether it makes an object: one byte can make one of a hundred. */
  readonly makes?: true;
}

/** Every instruction that is known, but for PROTO and STOP. */
const INSTRUCTIONS: Readonly<Record<number, Instruction>> = {
  0x95: { name: "FRAME", run: (m) => void m.program.take(8) },
  0x28: { name: "MARK", run: (m) => void m.stack.push(MARK) },
  // A mark may be taken off, too.
  0x30: {
    name: "POP",
    run: (m) => void (m.stack.length > 0 ? m.stack.pop() : pop(m)),
  },
  0x31: { name: "POP_MARK", run: (m) => void toMark(m) },

  0x4e: { name: "NONE", run: (m) => void m.stack.push(null) },
  0x88: { name: "NEWTRUE", run: (m) => void m.stack.push(true) },
  0x89: { name: "NEWFALSE", run: (m) => void m.stack.push(false) },
  0x4a: { name: "BININT", run: (m) => void m.stack.push(m.program.int32()) },
  0x4b: { name: "BININT1", run: (m) => void m.stack.push(m.program.byte()) },
  0x4d: { name: "BININT2", run: (m) => void m.stack.push(m.program.uint16()) },
  0x8a: {
    name: "LONG1",
    makes: true,
    run: (m) => void m.stack.push(m.program.integer(m.program.byte())),
  },
  0x47: {
    name: "BINFLOAT",
    run: (m) => void m.stack.push(m.program.float64()),
  },
  0x58: {
    name: "BINUNICODE",
    run: (m) => void m.stack.push(m.program.string(m.program.uint32())),
  },
  0x8c: {
    name: "SHORT_BINUNICODE",
    run: (m) => void m.stack.push(m.program.string(m.program.byte())),
  },
  0x8d: {
    name: "BINUNICODE8",
    run: (m) => void m.stack.push(m.program.string(m.program.length64())),
  },

  0x7d: {
    name: "EMPTY_DICT",
    makes: true,
    run: (m) => void m.stack.push(new Map()),
  },
  0x5d: { name: "EMPTY_LIST", makes: true, run: (m) => void m.stack.push([]) },
  0x29: { name: "EMPTY_TUPLE", makes: true, run: (m) => tuple(m, []) },
  0x85: { name: "TUPLE1", makes: true, run: (m) => tuple(m, last(m, 1)) },
  0x86: { name: "TUPLE2", makes: true, run: (m) => tuple(m, last(m, 2)) },
  0x87: { name: "TUPLE3", makes: true, run: (m) => tuple(m, last(m, 3)) },
  0x74: { name: "TUPLE", makes: true, run: (m) => tuple(m, toMark(m)) },
  0x6c: {
    name: "LIST",
    makes: true,
    run: (m) => void m.stack.push(toMark(m)),
  },
  0x64: {
    name: "DICT",
    makes: true,
    run(m) {
      const items = toMark(m);
      m.stack.push(new Map());
      setItems(m, items);
    },
  },
  0x61: { name: "APPEND", run: (m) => append(m, last(m, 1)) },
  0x65: { name: "APPENDS", run: (m) => append(m, toMark(m)) },
  0x73: { name: "SETITEM", run: (m) => setItems(m, last(m, 2)) },
  0x75: { name: "SETITEMS", run: (m) => setItems(m, toMark(m)) },

  0x71: { name: "BINPUT", run: (m) => put(m, m.program.byte()) },
  0x72: { name: "LONG_BINPUT", run: (m) => put(m, m.program.uint32()) },
  0x94: { name: "MEMOIZE", run: (m) => put(m, m.memo.size) },
  0x68: { name: "BINGET", run: (m) => get(m, m.program.byte()) },
  0x6a: { name: "LONG_BINGET", run: (m) => get(m, m.program.uint32()) },

  0x63: {
    name: "GLOBAL",
    makes: true,
    run(m) {
      const module = m.program.line();
      global(m, module, m.program.line());
    },
  },
  0x93: {
    name: "STACK_GLOBAL",
    makes: true,
    run(m) {
      const [module, name] = last(m, 2);
      if (typeof module !== "string" || typeof name !== "string") {
        throw m.program.wrong("the name of a function", name);
      }
      global(m, module, name);
    },
  },
  0x51: {
    name: "BINPERSID",
    makes: true,
    run: (m) => void m.stack.push(persistent(m.program, pop(m))),
  },
  0x52: {
    name: "REDUCE",
    makes: true,
    run(m) {
      const [callable, args] = last(m, 2);
      m.stack.push(call(m.program, callable, args));
    },
  },
  0x62: { name: "BUILD", run: build },
};

const PROTO = 0x80;
const STOP = 0x2e;

/** Reads the head: protocol 2 to 5. */
function begin(program: Program): void {
  const opcode = program.byte();
  if (opcode !== PROTO) throw program.wrong("a pickle", `byte ${opcode}`);
  const version = program.byte();
  if (version < 2 || version > 5) {
    throw program.wrong("protocol 2 to 5 at the beginning", version);
  }
}

/** The value that a finished program leaves. */
function finish(machine: Machine): PickleValue {
  const { program, stack } = machine;
  const value = pop(machine);
  if (stack.length > 0 || program.at !== program.code.length) {
    throw program.wrong("the end of the pickle", "more");
  }
  return plain(value, program);
}

/**
 * Runs a pickle in which only tensors and plain data can be made.
 *
 * @param code The program.
 * @param what What is being done, for messages.
 * @returns What was pickled.
 * @throws If the program is broken, too large, or makes anything else.
 */
export function unpickle(code: Uint8Array, what: string): PickleValue {
  const program = new Program(code, what);
  const machine: Machine = { program, stack: [], memo: new Map() };
  begin(program);
  for (let objects = 0;;) {
    const opcode = program.byte();
    if (opcode === STOP) return finish(machine);
    if (opcode === PROTO) {
      throw program.wrong(
        "protocol 2 to 5 at the beginning",
        program.byte(),
      );
    }
    const instruction = INSTRUCTIONS[opcode];
    if (instruction === undefined) {
      throw cannot(
        what,
        "nothing but tensors and plain data",
        `instruction 0x${opcode.toString(16)} at byte ${program.at - 1} of ` +
          `data.pkl: ${REFUSED}`,
      );
    }
    if (instruction.makes && ++objects > MAX_OBJECTS) {
      throw program.wrong(`at most ${MAX_OBJECTS} objects`, "more");
    }
    instruction.run(machine);
  }
}

/** Checks that nothing but data is left in what a program made. */
function plain(value: unknown, program: Program): PickleValue {
  const seen = new Set<unknown>();
  const todo = [value];
  while (todo.length > 0) {
    const node = todo.pop();
    if (node instanceof Name || node instanceof Storage) {
      const got = node instanceof Name ? node.name : "a storage";
      throw program.wrong("data", got);
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
