/**
 * Which machine tfjs computes on: webgpu, wasm or plain JavaScript.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { isSoftware } from "./device.ts";
import { cannot, reasonOf } from "./errors.ts";
import { registerKernels } from "./kernels/register.ts";
import { withSharedMemory } from "./kernels/shared_memory.ts";
import { memoryShared, type WasmBackend } from "./kernels/simd.ts";
import { setThreadCount, threadCount } from "./kernels/threads.ts";
import { machine } from "./platform/machine.ts";

/** A backend tfjs can compute on. */
export type BackendName = "webgpu" | "wasm" | "cpu";

/** All of them, the fastest first. */
export const BACKENDS: readonly BackendName[] = ["webgpu", "wasm", "cpu"];

/** What a user may ask for; `auto` is the fastest there is. */
export type BackendChoice = "auto" | BackendName;

/** All of that. */
export const BACKEND_CHOICES: readonly BackendChoice[] = ["auto", ...BACKENDS];

/** The backend in use; plain data, may be posted between workers. */
export interface BackendInfo {
  /** The tfjs backend. */
  name: BackendName;
  /** The graphics adapter, on webgpu. */
  adapter?: string;
  /** Threads that share a kernel's work, on wasm. */
  threads?: number;
  /** Why this backend and not a faster one; empty if there is nothing to say. */
  note: string;
  /** All of the above in one line, for people. */
  describe: string;
}

/** Options of {@linkcode selectBackend}. */
export interface SelectBackendOptions {
  /**
   * Replace slow and missing wasm kernels by this library's own. Switched off
   * only to compare with stock tfjs.
   *
   * @default {true}
   */
  kernels?: boolean;
  /**
   * The folder of tfjs's wasm binaries, as a path or an address.
   *
   * @default that of the installed package; in a browser, the bundle's
   */
  wasmFolder?: string | URL;
  /**
   * Threads that share the kernels' work on wasm. Results do not depend on it. A
   * page has one where it is not cross-origin isolated.
   *
   * @default the number of processors, at most 8; in a worker 1
   */
  threads?: number;
}

/**
 * Chooses the tfjs backend, starts it and makes it ready for training.
 *
 * `"auto"` takes webgpu if there is a hardware adapter, else wasm, else cpu.
 * An explicit choice is never replaced by another; explicit `"webgpu"` also
 * accepts a software adapter such as Mesa lavapipe. On wasm this library's
 * kernels are registered (once). May be called again, also in a Worker.
 *
 * @param choice Which backend.
 * @param options Whether to register own kernels.
 * @returns The backend in use.
 * @throws If an explicit choice is unknown or unavailable, saying why.
 *
 * @example
 * ```ts
 * const backend = await selectBackend("auto");
 * console.log(backend.describe);
 * ```
 */
export async function selectBackend(
  choice: BackendChoice = "auto",
  options: SelectBackendOptions = {},
): Promise<BackendInfo> {
  switch (choice) {
    case "webgpu":
      return await explicit(choice, startWebgpu(true));
    case "wasm":
      return await explicit(choice, startWasm(options));
    case "cpu":
      return await explicit(choice, startCpu());
    case "auto":
      break;
    default:
      throw cannot(
        "select a backend",
        "auto, webgpu, wasm or cpu",
        String(choice),
      );
  }
  const skipped: string[] = [];
  for (
    const start of [
      () => startWebgpu(false),
      () => startWasm(options),
      startCpu,
    ]
  ) {
    const result = await start();
    if (typeof result !== "string") {
      const found = info(result, skipped.join("; "));
      // Ten times slower at least: whoever does not read `note` has to know.
      if (found.name === "cpu") machine.warn(found.describe);
      return found;
    }
    skipped.push(result);
  }
  throw cannot("select a backend", "a working backend", skipped.join("; "));
}

/** A started backend, or why it did not start. */
type Started =
  | { name: BackendName; adapter?: string; threads?: number }
  | string;

async function explicit(
  choice: BackendName,
  started: Promise<Started>,
): Promise<BackendInfo> {
  const result = await started;
  if (typeof result === "string") {
    throw cannot("select a backend", `${choice} to be available`, result);
  }
  return info(result, "");
}

function info(
  started: Exclude<Started, string>,
  note: string,
): BackendInfo {
  const { name, adapter, threads = 1 } = started;
  const describe = `backend ${name}` + (adapter ? ` on ${adapter}` : "") +
    (threads > 1 ? `, ${threads} threads` : "") + (note ? ` (${note})` : "");
  return { ...started, note, describe };
}

async function startWebgpu(acceptSoftware: boolean): Promise<Started> {
  const gpu = machine.gpu();
  if (!gpu) return "no webgpu: this runtime has none";
  let adapter: GPUAdapter | null;
  try {
    adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  } catch (error) {
    return `no webgpu: ${reasonOf(error)}`;
  }
  if (!adapter) return "no webgpu: no graphics adapter found";
  const { description, device, vendor, architecture } = adapter.info;
  const label = [description, device, architecture, vendor].find((s) => s) ??
    "unnamed adapter";
  const software = isSoftware(adapter.info);
  if (software && !acceptSoftware) {
    return `no webgpu: only a software adapter, ${label}`;
  }
  try {
    await import("@tensorflow/tfjs-backend-webgpu");
    if (await tf.setBackend("webgpu")) {
      return {
        name: "webgpu",
        adapter: software ? `${label}, software` : label,
      };
    }
    return `no webgpu: tfjs could not start it on ${label}`;
  } catch (error) {
    return `no webgpu: ${reasonOf(error)}`;
  }
}

async function startWasm(options: SelectBackendOptions): Promise<Started> {
  try {
    const wasm = await import("@tensorflow/tfjs-backend-wasm");
    const { kernels = true } = options;
    const threads = kernels ? threadsOf(options.threads) : 1;
    if (!tf.engine().registry["wasm"]) {
      // What tfjs's own threads would speed up is ours.
      if (kernels) tf.env().set("WASM_HAS_MULTITHREAD_SUPPORT", false);
      const folder = wasmFolder(options.wasmFolder);
      const binary = threads > 1 ? await sharedBinary(folder) : undefined;
      if (binary) {
        // All names must be given; the one with SIMD is the one that is taken.
        const others = [BINARY, "tfjs-backend-wasm-threaded-simd.wasm"];
        wasm.setWasmPaths(
          Object.fromEntries([
            [SIMD_BINARY, binary],
            ...others.map((name) => [name, folder + name]),
          ]),
          true,
        );
      } else wasm.setWasmPaths(folder);
    }
    if (!await tf.setBackend("wasm")) return "no wasm: tfjs could not start it";
    await tf.ready();
    const shared = memoryShared(tf.backend() as unknown as WasmBackend);
    if ((options.threads ?? 1) > 1 && !shared) {
      return `no wasm with ${options.threads} threads: its memory is not shared`;
    }
    setThreadCount(shared ? threads : 1);
    if (kernels) registerKernels();
    return { name: "wasm", threads: threadCount() };
  } catch (error) {
    return `no wasm: ${reasonOf(error)}`;
  }
}

/** Most threads without being asked: more share too little work each. */
const THREADS = 8;

/** How many threads the kernels get. */
function threadsOf(wanted: number | undefined): number {
  if (wanted === undefined) {
    return machine.inWorker() ? 1 : Math.min(THREADS, machine.processors);
  }
  if (Number.isInteger(wanted) && wanted >= 1 && wanted <= 32) return wanted;
  throw cannot("select a backend", "threads from 1 to 32", wanted);
}

/** tfjs's binaries for one thread, without and with SIMD. */
const BINARY = "tfjs-backend-wasm.wasm";
const SIMD_BINARY = "tfjs-backend-wasm-simd.wasm";

/**
 * The address of tfjs's binary with memory that threads share; nothing where it
 * cannot be had: kernels then run in one thread.
 */
async function sharedBinary(folder: string): Promise<string | undefined> {
  if (typeof SharedArrayBuffer === "undefined") return undefined;
  if (!await tf.env().getAsync("WASM_HAS_SIMD_SUPPORT")) return undefined;
  const path = folder + SIMD_BINARY;
  const bytes = /^(https?|blob|data):/.test(path)
    ? new Uint8Array(await (await fetch(path)).arrayBuffer())
    : await machine.files.read(path);
  const shared = withSharedMemory(bytes);
  return shared && URL.createObjectURL(
    new Blob([shared], { type: "application/wasm" }),
  );
}

async function startCpu(): Promise<Started> {
  try {
    // In Deno tfjs brings it along; the bundle for pages is without it.
    if (!tf.findBackendFactory("cpu")) {
      await import("@tensorflow/tfjs-backend-cpu");
    }
    if (!await tf.setBackend("cpu")) return "no cpu: tfjs could not start it";
    return { name: "cpu" };
  } catch (error) {
    return `no cpu: ${reasonOf(error)}`;
  }
}

/** A file of tfjs's wasm backend; its folder has the binaries. */
const WASM_FILE = `@tensorflow/tfjs-backend-wasm/dist/${BINARY}`;

/**
 * The folder with tfjs's own wasm binaries, with a final slash. tfjs guesses
 * it from the running script, which is wrong in a Worker and in a notebook.
 */
function wasmFolder(given?: string | URL): string {
  if (given === undefined) {
    return machine.wasmFolder(WASM_FILE, tf.version_core);
  }
  const folder = given instanceof URL && given.protocol === "file:"
    ? decodeURIComponent(given.pathname).replace(/^\/(?=[A-Za-z]:)/, "")
    : String(given);
  return folder.replace(/\/?$/, "/");
}
