/**
 * WebAssembly modules whose memory several threads see.
 *
 * tfjs has a build with threads, but it starts its own, which Deno refuses, and
 * our kernels could not join them. The build without threads does the same work
 * in any memory; what says that its memory is not shared is one bit.
 *
 * @module
 */

/** Sections of a module that can declare a memory. */
const IMPORTS = 2, MEMORIES = 5;

/** Flags of a memory's limits: it has a maximum; it is shared. */
const MAXIMUM = 1, SHARED = 2;

/** Kinds of an import. */
const TABLE = 1, MEMORY = 2, GLOBAL = 3;

/**
 * The same module with its only memory shared.
 *
 * @param bytes A module that declares or imports one memory with a maximum.
 * @returns A changed copy; nothing if there is no such memory.
 */
export function withSharedMemory(
  bytes: Uint8Array,
): Uint8Array<ArrayBuffer> | undefined {
  const at = limitsOf(bytes);
  if (at === undefined || bytes[at] !== MAXIMUM) return undefined;
  const copy = Uint8Array.from(bytes);
  copy[at] |= SHARED;
  return WebAssembly.validate(copy) ? copy : undefined;
}

/** Where the flags of the memory's limits are. */
function limitsOf(bytes: Uint8Array): number | undefined {
  let at = 8;
  const number = () => {
    let value = 0;
    for (let shift = 0; at < bytes.length; shift += 7) {
      const byte = bytes[at++];
      value |= (byte & 127) << shift;
      if (byte < 128) break;
    }
    return value >>> 0;
  };
  while (at < bytes.length) {
    const section = bytes[at++];
    const size = number();
    const end = at + size;
    if (section === IMPORTS) {
      const found = importedMemory(bytes, number, () => at, (to) => at = to);
      if (found !== undefined) return found;
    } else if (section === MEMORIES) {
      return number() === 1 ? at : undefined;
    }
    at = end;
  }
}

/** The same of an imported memory, from the start of the imports. */
function importedMemory(
  bytes: Uint8Array,
  number: () => number,
  here: () => number,
  go: (to: number) => void,
): number | undefined {
  const skipName = () => {
    const length = number();
    go(here() + length);
  };
  for (let left = number(); left > 0; left--) {
    skipName();
    skipName();
    const kind = bytes[here()];
    go(here() + 1);
    if (kind === MEMORY) return here();
    if (kind === GLOBAL) go(here() + 2);
    else if (kind === TABLE) {
      go(here() + 1);
      const flags = number();
      number();
      if (flags & MAXIMUM) number();
    } else number();
  }
}
