/**
 * Where tensors lie on webgpu: on the host until an operation needs them, then
 * on the graphics card; and how large an operation's tensors may be there.
 *
 * On the other backends there is one place, and every function here says so.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";

/** The parts of tfjs's WebGPU backend that are used here. */
interface GraphicsBackend extends tf.KernelBackend {
  readonly device: GPUDevice;
  readonly tensorMap: {
    has(id: object): boolean;
    get(id: object): {
      values: tf.TypedArray | null | undefined;
      resource?: unknown;
    };
  };
  readonly bufferManager: {
    readonly freeBuffers: Map<string, GPUBuffer[]>;
    numFreeBuffers: number;
    numBytesAllocated: number;
    numBytesUsed: number;
    acquireBuffer(
      size: number,
      usage: number,
      mapped?: boolean,
      reuse?: boolean,
    ): GPUBuffer;
  };
  readonly dispatchCountInPass: number;
  disposeData(id: object, force?: boolean): boolean;
  endComputePassEncoder(): void;
  submitQueue(): void;
  uploadToGPU(id: object): void;
}

/**
 * Names of the backends that count bytes (counting.ts), by the backend that they
 * count for.
 */
export const COUNTING = {
  webgpu: "counting-webgpu",
  wasm: "counting-wasm",
} as const;

function graphics(): GraphicsBackend | undefined {
  const name = tf.getBackend();
  return name === "webgpu" || name === COUNTING.webgpu
    ? tf.backend() as GraphicsBackend
    : undefined;
}

/**
 * The largest tensor that an operation can read or write, in bytes: the storage
 * binding limit of the graphics adapter (often 128 MiB), no limit elsewhere.
 */
export function bindingLimit(): number {
  return graphics()?.device.limits.maxStorageBufferBindingSize ?? Infinity;
}

/** Names of adapters that compute on the processor, in its memory. */
const SOFTWARE =
  /llvmpipe|lavapipe|swiftshader|software|microsoft basic render/i;

/**
 * Whether an adapter is no graphics card but a program.
 *
 * @param info What it says of itself.
 */
export function isSoftware(info: GPUAdapterInfo): boolean {
  const { description, device, vendor, architecture } = info;
  return info.isFallbackAdapter === true ||
    SOFTWARE.test([description, device, vendor, architecture].join(" "));
}

/** Whether WebGPU runs on such an adapter. */
export function softwareCard(): boolean {
  const info = graphics()?.device.adapterInfo;
  return info !== undefined && isSoftware(info);
}

/**
 * The values of a tensor that waits on the host of a graphics card: no operation
 * has needed it yet. Not to be changed.
 *
 * @param tensor The tensor.
 * @returns Its values, or nothing where it is on the card, or there is none.
 */
export function hostValues(tensor: tf.Tensor): Float32Array | undefined {
  const entry = graphics()?.tensorMap.get(tensor.dataId);
  return entry && entry.resource == null && entry.values
    ? entry.values as Float32Array
    : undefined;
}

/**
 * Moves a tensor to the graphics card, so that the array it was made of can be
 * used again.
 *
 * @param tensor The tensor.
 * @returns Whether it is there: not on other backends.
 */
export function moveToCard(tensor: tf.Tensor): boolean {
  const backend = graphics();
  backend?.uploadToGPU(tensor.dataId);
  return backend !== undefined;
}

/**
 * Forgets the copy that reading a tensor leaves on the host of a graphics card.
 *
 * @param tensor The tensor, which stays where it is.
 */
export function forgetHostCopy(tensor: tf.Tensor): void {
  const entry = graphics()?.tensorMap.get(tensor.dataId);
  if (entry?.resource != null) entry.values = null;
}

/**
 * Waits until the graphics card has done what it was given. What was uploaded
 * lies in memory a second time until then.
 */
export async function settle(): Promise<void> {
  const device = graphics()?.device;
  if (!device) return;
  device.queue.submit([]);
  await device.queue.onSubmittedWorkDone();
}

/**
 * Gives buffers back to the graphics card that tfjs keeps in case a tensor of
 * exactly their size is made again. Between parts of a model whose tensors have
 * other sizes that would be all the memory there is.
 */
export function trimCard(): void {
  const manager = graphics()?.bufferManager;
  if (!manager) return;
  for (const buffers of manager.freeBuffers.values()) {
    for (const buffer of buffers.splice(0)) {
      manager.numFreeBuffers--;
      manager.numBytesAllocated -= buffer.size;
      buffer.destroy();
    }
  }
}

/**
 * Bounds what the graphics card holds beside the tensors there are. tfjs frees a
 * tensor only when the commands that use it have been submitted, fifteen
 * operations later, and then keeps its buffer for another tensor of exactly its
 * size: together as much as the tensors of a training step. From here on it
 * submits, and gives buffers back, as soon as there are more bytes than that.
 *
 * @param bytes How many bytes may wait to be freed, and how many may be free.
 * @default bytes 256 MiB
 * @returns Undoes it; does nothing where there is no card.
 */
export function boundCard(bytes = 256 * 2 ** 20): () => void {
  const backend = graphics();
  if (!backend) return () => {};
  const { bufferManager } = backend;
  const { disposeData } = backend;
  const { acquireBuffer } = bufferManager;
  let waiting = 0;
  let dispatched = 0;
  backend.disposeData = (id, force) => {
    // Commands have been submitted since: nothing waits any more.
    if (backend.dispatchCountInPass < dispatched) waiting = 0;
    dispatched = backend.dispatchCountInPass;
    const size = sizeOnCard(backend, id);
    const done = disposeData.call(backend, id, force);
    if (size === 0 || !done) return done;
    waiting += size;
    if (waiting > bytes && dispatched > 0) {
      backend.endComputePassEncoder();
      backend.submitQueue();
      [waiting, dispatched] = [0, 0];
    }
    return done;
  };
  bufferManager.acquireBuffer = (size, usage, ...rest) => {
    const free = bufferManager.freeBuffers.get(`${size}_${usage}`);
    const unused = bufferManager.numBytesAllocated - bufferManager.numBytesUsed;
    if (!free?.length && unused + size > bytes) trimCard();
    return acquireBuffer.call(bufferManager, size, usage, ...rest);
  };
  return () => {
    backend.disposeData = disposeData;
    bufferManager.acquireBuffer = acquireBuffer;
  };
}

/** Bytes of a tensor's buffer; none where it waits on the host or is gone. */
function sizeOnCard(backend: GraphicsBackend, id: object): number {
  if (!backend.tensorMap.has(id)) return 0;
  const { resource } = backend.tensorMap.get(id);
  return (resource as GPUBuffer | undefined)?.size ?? 0;
}

/** Buffers that a WebGPU program may read besides the one it writes. */
const SUMMANDS = 7;

/**
 * The sum of any number of tensors. `tf.addN` gives no error and any numbers for
 * more than seven on webgpu.
 *
 * @param tensors At least one, all of one shape.
 */
export function addAll<T extends tf.Tensor>(tensors: readonly T[]): T {
  if (!graphics() || tensors.length <= SUMMANDS) return tf.addN([...tensors]);
  return tf.tidy(() => {
    const [first, ...rest] = tensors;
    let sum = first;
    for (let i = 0; i < rest.length; i += SUMMANDS - 1) {
      sum = tf.addN([sum, ...rest.slice(i, i + SUMMANDS - 1)]);
    }
    return sum;
  });
}
