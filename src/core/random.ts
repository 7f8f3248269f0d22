import { xoroshiro128plusFromState } from "pure-rand/generator/xoroshiro128plus";
import { cannot } from "./errors.ts";

/**
 * A 128-bit random key: a value, never a mutable generator.
 *
 * Keys are split by purpose with {@linkcode fold}, so that drawing one more
 * number for one purpose never shifts the numbers of another.
 */
export type Key = readonly [number, number, number, number];

/** One 32-bit finalising mix (murmur3's fmix32 constants). */
function mix(h: number): number {
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) | 0;
}

function absorb(state: Key, word: number): Key {
  const [a, b, c, d] = state;
  const x = mix(a ^ word);
  const y = mix((b + Math.imul(x, 0x9e3779b1)) | 0);
  const z = mix((c ^ y) + 0x7f4a7c15);
  const w = mix((d + Math.imul(z, 0x94d049bb) + word) | 0);
  return [(x + w) | 0, y ^ w, (z + x) | 0, w ^ Math.imul(y, 5)];
}

/**
 * Makes the root key of a seed.
 *
 * @param seed An integer; any safe integer gives a key of its own.
 * @throws If `seed` is not a safe integer.
 *
 * @example
 * ```ts
 * const noise = normal(fold(key(1), "noise"), 4);
 * ```
 */
export function key(seed: number): Key {
  if (!Number.isSafeInteger(seed)) {
    throw cannot("make a random key", "a safe integer seed", seed);
  }
  const low = seed | 0;
  const high = Math.floor(seed / 2 ** 32) | 0;
  return absorb(
    absorb([0x243f6a88, 0x13198a2e, 0x03707344, 0x299f31d0], low),
    high,
  );
}

/**
 * Derives an independent key for one purpose.
 *
 * @param parent The key to derive from.
 * @param purposes Names and counters, such as `"noise"` or a step number.
 */
export function fold(
  parent: Key,
  ...purposes: readonly (string | number)[]
): Key {
  let state = parent;
  for (const purpose of purposes) {
    if (typeof purpose === "number") {
      state = absorb(absorb(state, purpose | 0), 0x6e756d);
      continue;
    }
    for (let i = 0; i < purpose.length; i++) {
      state = absorb(state, purpose.charCodeAt(i));
    }
    state = absorb(state, 0x737472 + purpose.length);
  }
  return state;
}

/** A stream of numbers drawn from one key. */
export interface Stream {
  /** A float in [0, 1). */
  uniform(): number;
  /** An integer in [0, n). */
  integer(n: number): number;
  /** A standard normal deviate. */
  normal(): number;
}

/**
 * Opens the stream of a key; two streams of the same key give the same numbers.
 *
 * @param from The key.
 */
export function stream(from: Key): Stream {
  const generator = xoroshiro128plusFromState([...from]);
  // 32 bits a draw are enough below 2^32 choices; 53 for a double.
  const uniform = (): number =>
    ((generator.next() >>> 5) * 67108864 + (generator.next() >>> 6)) /
    9007199254740992;
  let spare: number | undefined;
  return {
    uniform,
    integer: (n) => Math.floor(uniform() * n),
    normal() {
      if (spare !== undefined) {
        const value = spare;
        spare = undefined;
        return value;
      }
      // Box–Muller; 1 − u keeps the logarithm finite.
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      const angle = 2 * Math.PI * uniform();
      spare = radius * Math.sin(angle);
      return radius * Math.cos(angle);
    },
  };
}

/**
 * Draws `n` standard normal deviates.
 *
 * @param from The key.
 * @param n How many.
 * @param std Standard deviation.
 * @default std 1
 */
export function normal(from: Key, n: number, std = 1): Float32Array {
  const draw = stream(from);
  const values = new Float32Array(n);
  for (let i = 0; i < n; i++) values[i] = std * draw.normal();
  return values;
}

/**
 * Draws `n` uniform deviates in [low, high).
 *
 * @param from The key.
 * @param n How many.
 * @param low Lower bound.
 * @param high Upper bound.
 */
export function uniform(
  from: Key,
  n: number,
  low = 0,
  high = 1,
): Float32Array {
  const draw = stream(from);
  const values = new Float32Array(n);
  for (let i = 0; i < n; i++) values[i] = low + (high - low) * draw.uniform();
  return values;
}

/**
 * Draws a random permutation of 0 … n − 1 (Fisher–Yates).
 *
 * @param from The key.
 * @param n How many.
 */
export function permutation(from: Key, n: number): number[] {
  const draw = stream(from);
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = draw.integer(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
