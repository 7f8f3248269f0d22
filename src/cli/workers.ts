/**
 * How many workers a command has, and whether there is memory for them.
 *
 * @module
 */
import type { BackendName } from "../core/backend.ts";
import { hardwareWorkers } from "../core/pool.ts";
import { optionTable, whole } from "./options.ts";

/** The option `--workers`. */
export const WORKERS_OPTION = optionTable({
  workers: {
    type: whole({ least: 0 }),
    otherwise: "processors, on webgpu 0",
    help: "number of workers; 0: work in the main thread",
  },
});

/**
 * How many workers there are: as many as asked for, else none on a graphics card
 * (it is one, and they would only take turns on it), else all processors.
 *
 * @param asked Of `--workers`.
 * @param backend The backend in use.
 */
export function workersFor(
  asked: number | undefined,
  backend: BackendName,
): number {
  return asked ?? (backend === "webgpu" ? 0 : hardwareWorkers());
}

/** Bytes that a worker takes beside its tensors: code, tfjs, garbage. */
const RUNTIME = 1.5e8;

/** The workers there is memory for. */
export interface Fitting {
  /** How many, at least 1. */
  readonly workers: number;
  /** Why they are fewer than asked for; nothing where they are not. */
  readonly note?: string;
}

/**
 * How many workers fit into memory: every worker holds a copy of the weights and
 * the features of what it works on.
 *
 * @param asked How many there should be, at least 1.
 * @param bytes Tensors of a worker at work.
 * @param available Memory for all of them, the first one's included.
 */
export function fittingWorkers(
  asked: number,
  bytes: number,
  available: number,
): Fitting {
  const each = bytes + RUNTIME;
  const workers = Math.max(1, Math.min(asked, Math.floor(available / each)));
  if (workers === asked) return { workers };
  const shown = (n: number) => `${(n / 1e9).toFixed(1)} GB`;
  return {
    workers,
    note: `${workers} of ${asked} workers: each takes ${shown(each)} of ` +
      `${shown(available)} that are free`,
  };
}

/** Bytes of memory that nothing uses; infinite where that is not told. */
export function availableMemory(): number {
  try {
    return Deno.systemMemoryInfo().available;
  } catch {
    // Not permitted to ask.
    return Infinity;
  }
}

/**
 * Cuts a list into parts of nearly one length for workers, none longer than a
 * batch.
 *
 * @param count Length of the list.
 * @param workers How many share it.
 * @param batch The most that are worked on at once.
 * @returns The first of each part, and the one after its last.
 *
 * @example
 * ```ts ignore
 * shares(5, 2, 4); // [[0, 2], [2, 5]]
 * ```
 */
export function shares(
  count: number,
  workers: number,
  batch: number,
): [first: number, end: number][] {
  const rounds = Math.ceil(count / (workers * batch));
  const parts = Math.min(count, rounds * workers);
  const at = (part: number) => Math.floor(part * count / parts);
  return Array.from({ length: parts }, (_, i) => [at(i), at(i + 1)]);
}
