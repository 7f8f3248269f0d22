/**
 * What a helping thread does. Its text is sent, so that no runtime has to find
 * a file: nothing outside of the function may be used in it.
 *
 * @module
 */

/** What a helping thread is given. */
export interface ThreadStart {
  /** Words that all threads see; see {@linkcode helpOut}. */
  readonly control: SharedArrayBuffer;
  /** Arguments of the parts, 32 numbers each. */
  readonly args: SharedArrayBuffer;
  /** The kernels, and the memory they work in. */
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  /** Exports that can be asked for, by number. */
  readonly names: readonly string[];
  /** This thread's number, from 1. */
  readonly index: number;
  /** Looks at the ticket before it sleeps. */
  readonly spins: number;
}

/**
 * Takes parts of calls until it is told to stop.
 *
 * Words of `control`: 0 the ticket, a call's number times 256 plus the next part
 * to take; 1 parts of the call; 2 parts done; 3 number of the export; 4 numbers
 * in a part's arguments; 5 bytes of scratch memory a thread, which the last
 * argument is the start of; 6 pages that the memory has; 7 threads asleep; 8
 * whether the host sleeps; 9 parts that failed; 10 whether to stop.
 */
export function helpOut(
  { control, args, module, memory, names, index, spins }: ThreadStart,
): void {
  const words = new Int32Array(control);
  const numbers = new Float64Array(args);
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  const calls = names.map((name) =>
    exports[name] as (...args: number[]) => void
  );
  for (let looked = 0; Atomics.load(words, 10) === 0;) {
    const ticket = Atomics.load(words, 0);
    const part = ticket & 255;
    if (part < Atomics.load(words, 1)) {
      looked = 0;
      const taken = Atomics.compareExchange(words, 0, ticket, ticket + 1);
      if (taken !== ticket) continue;
      // A memory that has grown is seen by this thread a moment later.
      const bytes = words[6] * 65536;
      while (memory.buffer.byteLength < bytes);
      const count = words[4];
      const own = Array.from(
        numbers.subarray(32 * part, 32 * part + count),
      );
      own[count - 1] += index * words[5];
      try {
        calls[words[3]](...own);
      } catch {
        Atomics.add(words, 9, 1);
      }
      Atomics.add(words, 2, 1);
      if (Atomics.load(words, 8) === 1) Atomics.notify(words, 2);
    } else if (looked < spins) {
      looked++;
    } else {
      looked = 0;
      Atomics.add(words, 7, 1);
      Atomics.wait(words, 0, ticket, 1000);
      Atomics.sub(words, 7, 1);
    }
  }
}
