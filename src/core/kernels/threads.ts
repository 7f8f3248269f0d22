/**
 * Threads that help one kernel call: each takes parts of it, such as rows of a
 * product, and works in the same memory.
 *
 * Parts are taken one after the other by whoever is free, the caller too. A
 * helper that the system has not woken yet is never waited for.
 *
 * @module
 */
import { machine } from "../platform/machine.ts";
import { helpOut, type ThreadStart } from "./thread.ts";

/** Most parts of a call, and most numbers of a part's arguments. */
const PARTS = 64, ARGS = 32;

/** The next part where there is none to take. */
const NONE = 255;

/** Looks at a word before a thread sleeps: some tenths of a millisecond. */
const SPINS = 30_000;

let count = 1;

/**
 * Sets how many threads kernels use.
 *
 * @param threads The caller's included.
 */
export function setThreadCount(threads: number): void {
  count = threads;
}

/** How many threads kernels use. */
export function threadCount(): number {
  return count;
}

/** Helping threads; see {@linkcode startThreads}. */
export interface Threads {
  /** Threads in all, the caller's included. */
  readonly count: number;
  /**
   * Calls an export once a part and returns when all are done.
   *
   * @param name The export.
   * @param parts Arguments of each part; the last one is scratch memory.
   * @param scratch Bytes of it a thread: as much as `count` times that is there.
   */
  run(
    name: string,
    parts: readonly (readonly number[])[],
    scratch: number,
  ): void;
  /** Ends the helpers. */
  close(): void;
}

/**
 * Starts helpers beside this thread.
 *
 * They do not keep the program running.
 *
 * @param count Threads in all.
 * @param module The kernels.
 * @param memory Shared memory that they work in.
 * @param exports The same kernels in this thread.
 */
export function startThreads(
  count: number,
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  exports: Readonly<Record<string, (...args: number[]) => unknown>>,
): Threads {
  const control = new SharedArrayBuffer(64);
  const args = new SharedArrayBuffer(8 * PARTS * ARGS);
  const words = new Int32Array(control);
  const numbers = new Float64Array(args);
  const names = Object.keys(exports);
  const numbered = new Map(names.map((name, i) => [name, i]));
  const helpers = Array.from(
    { length: count - 1 },
    (_, i) =>
      machine.startHelper(
        helpOut,
        {
          ...{ control, args, module, memory, names },
          index: i + 1,
          spins: SPINS,
        } satisfies ThreadStart,
      ),
  );
  const wait = waiter(words);
  let call = 0;
  return {
    count,
    run(name, parts, scratch) {
      const f = exports[name];
      call = (call + 1) & 0x7fffff;
      const first = (call << 8) | 0;
      // Nothing can be taken until all is written.
      Atomics.store(words, 0, first | NONE);
      parts.forEach((part, i) => numbers.set(part, ARGS * i));
      words[3] = numbered.get(name)!;
      words[4] = parts[0].length;
      words[5] = scratch;
      words[6] = memory.buffer.byteLength / 65536;
      Atomics.store(words, 2, 0);
      Atomics.store(words, 1, parts.length);
      Atomics.store(words, 0, first);
      if (Atomics.load(words, 7) > 0) Atomics.notify(words, 0);
      for (;;) {
        const ticket = Atomics.load(words, 0);
        const part = ticket & 255;
        if (part >= parts.length) break;
        if (
          Atomics.compareExchange(words, 0, ticket, ticket + 1) !== ticket
        ) continue;
        f(...parts[part]);
        Atomics.add(words, 2, 1);
      }
      wait(parts.length);
      if (Atomics.exchange(words, 9, 0) > 0) {
        throw new Error(`Cannot run ${name}: a helping thread failed`);
      }
    },
    close() {
      Atomics.store(words, 10, 1);
      Atomics.notify(words, 0);
      for (const helper of helpers) helper.terminate();
    },
  };
}

/** Waits until so many parts are done. */
function waiter(words: Int32Array): (parts: number) => void {
  // A page's own thread may not sleep.
  const mayWait = machine.mayWait();
  return (parts) => {
    for (let looked = 0;; looked++) {
      const done = Atomics.load(words, 2);
      if (done === parts) return;
      if (looked < SPINS || !mayWait) continue;
      Atomics.store(words, 8, 1);
      Atomics.wait(words, 2, done, 1);
      Atomics.store(words, 8, 0);
    }
  };
}
