/**
 * A tfjs backend that computes nothing and counts bytes.
 *
 * It is tfjs's WebGPU backend with a device that is not there: kernels make the
 * tensors they would make on a graphics card, with their temporaries, and no
 * program is built or run. What reads a tensor gets zeros. A training step of
 * Stable Diffusion takes seconds on it and no memory.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { COUNTING } from "./device.ts";
import { FUSED, PREFIX } from "./kernels/fused.ts";
import { halfBytes } from "./kernels/half.ts";
import type { WasmBackend } from "./kernels/simd.ts";
import type { SimdExports } from "./kernels/simd_exports.ts";

/** Whose kernels are counted. */
export type CountedBackend = "webgpu" | "wasm";

/** What a graphics card lets an operation read, unless it says otherwise. */
export const USUAL_BINDING = 128 * 2 ** 20;

/** Bytes that were counted. */
export interface MemoryCount {
  /** Bytes of the tensors there are. */
  readonly live: number;
  /** The most bytes of tensors at a time. */
  readonly peak: number;
  /**
   * The most bytes of buffers at a time: tfjs frees a tensor when the commands
   * that read it have been submitted, and keeps its buffer for the next tensor
   * of that size. Equal to `peak` on wasm.
   */
  readonly held: number;
  /** Bytes of the largest tensor. */
  readonly largest: number;
  /** Operations that would have been run. */
  readonly operations: number;
}

/** Counts while {@linkcode counting} runs. */
export interface Meter {
  /** What was counted since the start, or since `restart`. */
  count(): MemoryCount;
  /** Forgets peaks; what is alive, and the largest tensor, stay counted. */
  restart(): void;
  /**
   * Makes a tensor without values.
   *
   * @param shape Its shape.
   * @param kept `host`: it waits there, as tables of vectors do, not counted
   * until an operation reads it; `half`: it takes two bytes a number.
   */
  empty(shape: number[], kept?: "host" | "half"): tf.Tensor;
}

/** Settings of {@linkcode counting}. */
export interface CountingOptions {
  /**
   * Whose kernels.
   *
   * @default "webgpu"
   */
  readonly kernels?: CountedBackend;
  /**
   * The largest tensor that an operation may read, in bytes (webgpu): larger
   * work goes through it in parts.
   *
   * @default 128 MiB
   */
  readonly binding?: number;
}

interface Entry {
  values: tf.BackendValues | null | undefined;
  readonly dtype: tf.DataType;
  readonly shape: number[];
  refCount: number;
  resource?: { readonly size: number } | null;
}

/** What is used and replaced of tfjs's WebGPU backend. */
interface Replaced extends tf.KernelBackend {
  readonly tensorMap: { get(id: object): Entry; has(id: object): boolean };
  readonly bufferManager: {
    acquireBuffer(size: number, usage: number): { size: number };
    releaseBuffer(buffer: { size: number }): void;
    readonly numBytesAllocated: number;
  };
  thresholdToIncreaseWorkgroups: number;
  commandEncoder: unknown;
  readonly commandQueueOwnedIds: WeakSet<object>;
  dispatchCountInPass: number;
  makeTensorInfo(shape: number[], dtype: tf.DataType): tf.TensorInfo;
  submitQueue(): void;
  endComputePassEncoder(): void;
  uploadToGPU(id: object): void;
  releaseResource(id: object): void;
  runWebGPUProgram(
    program: { outputShape: number[] },
    inputs: tf.TensorInfo[],
    dtype: tf.DataType,
    uniforms?: unknown,
    output?: tf.TensorInfo,
  ): tf.TensorInfo;
}

const LIMITS = {
  maxComputeWorkgroupsPerDimension: 65535,
  maxComputeWorkgroupSizeX: 256,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupStorageSize: 16384,
};

/** The device that is not there. */
function noDevice(binding: number): GPUDevice {
  return {
    limits: {
      ...LIMITS,
      maxStorageBufferBindingSize: binding,
      maxBufferSize: binding,
    },
    features: new Set(),
    queue: {
      submit: () => {},
      onSubmittedWorkDone: () => Promise.resolve(),
    },
    createBuffer: ({ size, usage }: GPUBufferDescriptor) => ({
      size,
      usage,
      destroy: () => {},
    }),
  } as unknown as GPUDevice;
}

const bytesOf = (shape: readonly number[]) =>
  4 * shape.reduce((a, b) => a * b, 1);

/** A backend, and what is counted on it. */
interface Counter {
  readonly backend: Replaced;
  /** Whether freed buffers wait for the next tensor of their size. */
  readonly pooled: boolean;
  readonly counts: { -readonly [Name in keyof MemoryCount]: number };
}

function updatePeaks({ backend, pooled, counts }: Counter): void {
  const { live } = counts;
  counts.peak = Math.max(counts.peak, live);
  counts.held = Math.max(
    counts.held,
    pooled ? backend.bufferManager.numBytesAllocated : live,
  );
}

function allocate(
  counter: Counter,
  entry: Entry,
  size = bytesOf(entry.shape),
): void {
  const { backend, pooled, counts } = counter;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC |
    GPUBufferUsage.COPY_DST;
  entry.resource = pooled
    ? backend.bufferManager.acquireBuffer(size, usage)
    : { size };
  counts.live += size;
  counts.largest = Math.max(counts.largest, size);
  updatePeaks(counter);
}

/** Methods of tfjs's WebGPU backend that count instead of computing. */
function countedMethods(counter: Counter): Partial<Replaced> {
  const { backend, pooled, counts } = counter;
  const { disposeData, write, submitQueue } = backend;
  const batch = tf.env().getNumber("WEBGPU_DEFERRED_SUBMIT_BATCH_SIZE");
  const readSync = (id: object): tf.BackendValues => {
    if (pooled) backend.submitQueue();
    const { values, dtype, shape } = backend.tensorMap.get(id);
    return (values ?? tf.util.getTypedArrayFromDType(
      dtype as "float32",
      tf.util.sizeFromShape(shape),
    )) as tf.BackendValues;
  };
  return {
    uploadToGPU(id) {
      const entry = backend.tensorMap.get(id);
      if (entry.resource) return;
      allocate(counter, entry);
      if (pooled) entry.values = null;
    },
    // Wasm has one memory; a card gets what an operation needs.
    write(values, shape, dtype) {
      const id = write.call(backend, values, shape, dtype);
      if (!pooled && values) backend.uploadToGPU(id);
      return id;
    },
    releaseResource(id) {
      const entry = backend.tensorMap.get(id);
      if (pooled && entry?.resource) {
        backend.bufferManager.releaseBuffer(entry.resource);
      }
      if (entry) entry.resource = null;
    },
    disposeData(id, force) {
      const entry = backend.tensorMap.has(id)
        ? backend.tensorMap.get(id)
        : undefined;
      const size = entry && entry.refCount > 0 ? entry.resource?.size ?? 0 : 0;
      const done = disposeData.call(backend, id, force);
      if (entry && entry.refCount <= 0) counts.live -= size;
      return done;
    },
    runWebGPUProgram(program, inputs, dtype, _uniforms, output) {
      counts.operations++;
      const out = output ?? backend.makeTensorInfo(program.outputShape, dtype);
      const entry = backend.tensorMap.get(out.dataId);
      if (tf.util.sizeFromShape(out.shape) === 0) {
        entry.values = new Float32Array(0);
        return out;
      }
      for (const { dataId } of [out, ...inputs]) {
        backend.uploadToGPU(dataId);
        if (pooled) backend.commandQueueOwnedIds.add(dataId);
      }
      if (pooled && ++backend.dispatchCountInPass >= batch) {
        backend.submitQueue();
      }
      return out;
    },
    readSync,
    read: (id) => Promise.resolve(readSync(id)),
    endComputePassEncoder: () => {},
    submitQueue() {
      backend.commandEncoder = { finish: () => ({}) };
      submitQueue.call(backend);
    },
  };
}

/** tfjs's WebGPU backend with counters in place of a card. */
async function makeBackend(
  kernels: CountedBackend,
  binding: number,
): Promise<{ backend: Replaced; meter: Meter }> {
  const { WebGPUBackend } = await import("@tensorflow/tfjs-backend-webgpu");
  const info = { vendor: "", architecture: "" } as unknown as GPUAdapterInfo;
  const pooled = kernels === "webgpu";
  const backend = new WebGPUBackend(
    noDevice(pooled ? binding : Infinity),
    info,
  ) as unknown as Replaced;
  // Small convolutions write their patches out on a card, never on wasm.
  if (!pooled) backend.thresholdToIncreaseWorkgroups = 0;
  const counts = { live: 0, peak: 0, held: 0, largest: 0, operations: 0 };
  const counter = { backend, pooled, counts };
  Object.assign(backend, countedMethods(counter));
  const meter: Meter = {
    count: () => ({ ...counts }),
    restart: () => {
      Object.assign(counts, { peak: 0, held: 0, operations: 0 });
      updatePeaks(counter);
    },
    empty: (shape, kept) => {
      if (kept === "host") {
        return tf.tensor(new Float32Array(bytesOf(shape) / 4), shape);
      }
      const info = backend.makeTensorInfo(shape, "float32");
      allocate(
        counter,
        backend.tensorMap.get(info.dataId),
        kept === "half" ? halfBytes(tf.util.sizeFromShape(shape)) : undefined,
      );
      return tf.engine().makeTensorFromTensorInfo(info);
    },
  };
  return { backend, meter };
}

/** Gives a counting backend its kernels, once. */
function registerKernels(kernels: CountedBackend): void {
  const name = COUNTING[kernels];
  if (tf.getKernelsForBackend(name).length > 0) return;
  tf.copyRegisteredKernels("webgpu", name);
  if (kernels === "webgpu") return;
  // Addresses and numbers are of no use here.
  const simd = new Proxy({}, { get: () => () => 0 }) as SimdExports;
  for (const [kernel, body] of Object.entries(FUSED)) {
    tf.registerKernel({
      kernelName: PREFIX + kernel,
      backendName: name,
      kernelFunc: (call) => {
        const backend = call.backend as unknown as Replaced;
        const inputs = Object.values(call.inputs) as tf.TensorInfo[];
        inputs.forEach(({ dataId }) => backend.uploadToGPU(dataId));
        return body({
          simd,
          backend: backend as unknown as WasmBackend,
          inputs,
          at: inputs.map(() => 0),
          attrs: call.attrs as unknown as Record<string, number>,
          make: (shape) => ({
            info: backend.runWebGPUProgram(
              { outputShape: shape },
              [],
              "float32",
            ),
            at: 0,
          }),
          scratch: (_floats, f) => f(0),
        });
      },
    });
  }
}

/**
 * Runs work on a backend that counts bytes instead of computing, then goes back
 * to the backend there was. Nothing else may use tfjs meanwhile, and the work
 * may use no tensor from outside.
 *
 * @param options Whose kernels, and what an operation may read.
 * @param work The work; its tensors are gone when it ends.
 * @returns What the work returns.
 *
 * @example
 * ```ts
 * const { peak } = await counting({}, (meter) => {
 *   tf.tidy(() => tf.matMul(meter.empty([2, 3]), meter.empty([3, 4])));
 *   return meter.count();
 * });
 * console.log(peak); // 4 · (6 + 12 + 8)
 * ```
 */
export async function counting<T>(
  options: CountingOptions,
  work: (meter: Meter) => T | Promise<T>,
): Promise<T> {
  const { kernels = "webgpu", binding = USUAL_BINDING } = options;
  const { backend, meter } = await makeBackend(kernels, binding);
  registerKernels(kernels);
  const name = COUNTING[kernels];
  const before = tf.getBackend();
  tf.registerBackend(name, () => backend);
  try {
    await tf.setBackend(name);
    return await work(meter);
  } finally {
    if (before) await tf.setBackend(before);
    tf.removeBackend(name);
  }
}
