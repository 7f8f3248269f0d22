/**
 * Weights as half floats on a graphics card: two to a word, unpacked where a
 * program reads them (`unpack2x16float`, which every card has).
 *
 * To everybody else such a tensor is a tensor of floats. A program of tfjs that
 * reads it is compiled a second time, with the array it reads declared as words
 * and each access to it unpacked; so products, convolutions and their gradients
 * are tfjs's own, at half the memory traffic of the weights.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../errors.ts";

/** The part of V8's Float16Array that is used; TypeScript's library lacks it. */
declare const Float16Array: {
  new (values: ArrayLike<number>): { readonly buffer: ArrayBuffer };
};

interface Entry {
  values?: tf.BackendValues | null;
  shape: number[];
  dtype: tf.DataType;
  resource?: GPUBuffer | null;
  /** Whether the buffer has half floats. */
  half?: boolean;
}

interface Program {
  shaderKey: string;
  readonly variableNames: readonly string[];
}

/** What is used and replaced of tfjs's WebGPU backend. */
interface Backend extends tf.KernelBackend {
  readonly device: GPUDevice;
  readonly tensorMap: { get(id: object): Entry; has(id: object): boolean };
  readonly bufferManager: {
    acquireBuffer(size: number, usage: number): GPUBuffer;
  };
  makeTensorInfo(
    shape: number[],
    dtype: tf.DataType,
    values?: tf.BackendValues,
  ): tf.TensorInfo;
  runWebGPUProgram(
    program: Program,
    inputs: tf.TensorInfo[],
    ...rest: unknown[]
  ): tf.TensorInfo;
}

/** Backends whose programs can read half floats. */
const prepared = new WeakSet<Backend>();

/** Bytes of so many half floats, two to a word. */
export function halfBytes(count: number): number {
  return 4 * Math.ceil(count / 2);
}

/**
 * A shader whose inputs of some names hold half floats.
 *
 * @param code WGSL as tfjs makes it: inputs are arrays of `f32` or `vec4<f32>`.
 * @param names Names of these inputs.
 * @returns The same computation of words that hold two half floats each.
 * @throws If an input is declared in another way.
 */
export function readingHalves(code: string, names: readonly string[]): string {
  return names.reduce((text, name) => {
    const declared = new RegExp(
      `(var<storage, read> ${name}\\s*:\\s*array<)(f32|vec4<f32>)>`,
    );
    const type = text.match(declared)?.[2];
    if (!type) {
      throw cannot(
        "read half floats in a shader",
        `${name} as an array of f32 or vec4<f32>`,
        text.match(new RegExp(`var<storage[^;]*\\b${name}\\b[^;]*`))?.[0] ??
          "none",
      );
    }
    const reader = `half_${name}`;
    const word = (at: string) => `unpack2x16float(${name}[${at}])`;
    const body = type === "f32"
      ? `let pair = ${
        word("i / 2u")
      }; return select(pair.x, pair.y, (i & 1u) == 1u);`
      : `return vec4<f32>(${word("2u * i")}, ${word("2u * i + 1u")});`;
    return withReader(text.replace(declared, "$1u32>"), name, reader) +
      `\nfn ${reader}(i : u32) -> ${type} { ${body} }\n`;
  }, code);
}

/** Replaces `name[index]` by `reader(u32(index))`. */
function withReader(code: string, name: string, reader: string): string {
  const access = new RegExp(`(?<![\\w.])${name}\\[`, "g");
  let done = "";
  let from = 0;
  for (const match of code.matchAll(access)) {
    // An access inside the index of another has been rewritten with it.
    if (match.index < from) continue;
    const begin = match.index + match[0].length;
    let depth = 1;
    let end = begin;
    for (; depth > 0; end++) {
      if (code[end] === "[") depth++;
      else if (code[end] === "]") depth--;
    }
    const index = withReader(code.slice(begin, end - 1), name, reader);
    done += `${code.slice(from, match.index)}${reader}(u32(${index}))`;
    from = end;
  }
  return done + code.slice(from);
}

/** Lets programs of a backend read half floats. */
function prepare(backend: Backend): void {
  if (prepared.has(backend)) return;
  prepared.add(backend);
  const { device, runWebGPUProgram, read, readSync, tensorMap } = backend;
  let halves: readonly string[] = [];
  const createShaderModule = device.createShaderModule.bind(device);
  device.createShaderModule = (descriptor) =>
    createShaderModule(
      halves.length === 0
        ? descriptor
        : { ...descriptor, code: readingHalves(descriptor.code, halves) },
    );
  backend.runWebGPUProgram = (program, inputs, ...rest) => {
    const names = program.variableNames.filter((_, i) =>
      inputs[i] && tensorMap.get(inputs[i].dataId).half
    );
    if (names.length === 0) {
      return runWebGPUProgram.call(backend, program, inputs, ...rest);
    }
    program.shaderKey += `_half_${names.join("_")}`;
    halves = names;
    try {
      return runWebGPUProgram.call(backend, program, inputs, ...rest);
    } finally {
      halves = [];
    }
  };
  /** The same values as floats. */
  const floats = (id: object): tf.TensorInfo => {
    const { shape, dtype } = tensorMap.get(id);
    const one = backend.makeTensorInfo([], "float32", new Float32Array([1]));
    const made = tf.getKernel("Multiply", "webgpu").kernelFunc({
      inputs: { a: { dataId: id, shape, dtype }, b: one } as never,
      backend,
      attrs: undefined as never,
    }) as tf.TensorInfo;
    backend.disposeData(one.dataId);
    return made;
  };
  const isHalf = (id: object) => tensorMap.has(id) && tensorMap.get(id).half;
  backend.read = async (id) => {
    if (!isHalf(id)) return await read.call(backend, id);
    const { dataId } = floats(id);
    const values = await read.call(backend, dataId);
    backend.disposeData(dataId);
    return values;
  };
  backend.readSync = (id) => {
    if (!isHalf(id)) return readSync.call(backend, id);
    const { dataId } = floats(id);
    const values = readSync.call(backend, dataId);
    backend.disposeData(dataId);
    return values;
  };
}

/** Whether the backend in use can keep half floats: only WebGPU. */
function canKeepHalves(): boolean {
  return tf.getBackend() === "webgpu";
}

/**
 * A constant tensor on the graphics card at two bytes a number.
 *
 * @param values Its values, which are rounded to half floats.
 * @param shape Its shape.
 * @returns A tensor like any other; what is computed of it is float32.
 * @throws On another backend, or if a value is too large for a half float.
 *
 * @example
 * ```ts ignore
 * const weight = halfTensor(values, [320, 320]);
 * const y = tf.matMul(x, weight);
 * ```
 */
export function halfTensor(values: Float32Array, shape: number[]): tf.Tensor {
  const what = "keep half floats";
  if (!canKeepHalves()) throw cannot(what, "webgpu", tf.getBackend());
  const backend = tf.backend() as unknown as Backend;
  prepare(backend);
  const size = halfBytes(values.length);
  const packed = new Uint16Array(size / 2);
  packed.set(new Uint16Array(new Float16Array(values).buffer));
  const large = packed.findIndex((bits, i) =>
    (bits & 0x7fff) === 0x7c00 && Number.isFinite(values[i])
  );
  if (large >= 0) {
    throw cannot(what, "values below 65520", values[large]);
  }
  const info = backend.makeTensorInfo(shape, "float32");
  const entry = backend.tensorMap.get(info.dataId);
  entry.half = true;
  const buffer = backend.bufferManager.acquireBuffer(
    size,
    GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
  );
  backend.device.queue.writeBuffer(buffer, 0, packed);
  entry.resource = buffer;
  return tf.engine().makeTensorFromTensorInfo(info);
}
