/**
 * The bridge to the SIMD module that works inside the wasm backend's memory.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { decodeBase64 } from "./base64.ts";
import { parallel } from "./parallel.ts";
import type { SimdExports } from "./simd_exports.ts";
import { withSharedMemory } from "./shared_memory.ts";
import { SIMD_WASM } from "./simd_wasm.ts";
import { startThreads, threadCount, type Threads } from "./threads.ts";

/** What this library uses of tfjs's wasm backend. */
export interface WasmBackend {
  /** The emscripten module. */
  wasm: {
    asm: { memory: WebAssembly.Memory };
    _malloc(bytes: number): number;
    _free(address: number): void;
  };
  /** Where a tensor's data is. */
  dataIdMap: { get(id: object): { memoryOffset: number; refCount: number } };
  /** Allocates a tensor. */
  makeOutput(shape: number[], dtype: string): tf.TensorInfo;
  /** A tensor's values. */
  readSync(id: object): ArrayLike<number>;
  /** Frees a tensor's data. */
  disposeData(id: object, force?: boolean): boolean;
  /** Counts one more tensor of the same data. */
  incRef(id: object): void;
}

/** Whether this runtime has the instructions the module needs. */
export function simdSupported(): boolean {
  return WebAssembly.validate(decodeBase64(SIMD_WASM));
}

interface Instance {
  readonly backend: WasmBackend;
  readonly exports: SimdExports;
  readonly threads: Threads | undefined;
  /** Threads that were asked for. */
  readonly count: number;
}

let instance: Instance | undefined;

/**
 * The module's exports, bound to the memory of `backend`.
 *
 * Synchronous, because kernels are: the module has a few kilobytes.
 */
export function simdFor(backend: WasmBackend): SimdExports {
  const threads = threadCount();
  if (instance?.backend !== backend || instance.count !== threads) {
    instance?.threads?.close();
    instance = { ...bind(backend, threads), count: threads };
  }
  return instance.exports;
}

/** Whether several threads can work in the memory of `backend`. */
export function memoryShared(backend: WasmBackend): boolean {
  return typeof SharedArrayBuffer !== "undefined" &&
    backend.wasm.asm.memory.buffer instanceof SharedArrayBuffer;
}

function bind(backend: WasmBackend, count: number): Omit<Instance, "count"> {
  const memory = backend.wasm.asm.memory;
  const bytes = decodeBase64(SIMD_WASM);
  const shared = memoryShared(backend);
  const module = new WebAssembly.Module(
    shared ? withSharedMemory(bytes)! : bytes,
  );
  const exports = new WebAssembly.Instance(module, { env: { memory } })
    .exports as unknown as SimdExports;
  const threads = shared && count > 1
    ? startThreads(count, module, memory, exports)
    : undefined;
  return {
    backend,
    exports: threads ? parallel(exports, threads) : exports,
    threads,
  };
}

/** Address of a tensor's first element. */
export function address(backend: WasmBackend, info: tf.TensorInfo): number {
  return backend.dataIdMap.get(info.dataId).memoryOffset;
}

/**
 * Calls `f` with the address of `floats` floats of scratch memory, taken from
 * tfjs's own allocator so that nothing overlaps, and frees them afterwards.
 */
export function withScratch<T>(
  backend: WasmBackend,
  floats: number,
  f: (address: number) => T,
): T {
  const at = backend.wasm._malloc(Math.max(floats, 4) * 4) >>> 0;
  if (at === 0) {
    throw new Error(
      `Cannot run a wasm kernel: expected ${floats * 4} bytes of scratch ` +
        "memory, got none (the 4 GB of WebAssembly are full)",
    );
  }
  try {
    return f(at);
  } finally {
    backend.wasm._free(at);
  }
}
