import { machine } from "./platform/machine.ts";

/**
 * The one shape of error message this library throws for bad input.
 *
 * @param what The thing that cannot be done, a verb phrase: `"load UNet"`.
 * @param expected What a valid input looks like.
 * @param got What was given instead.
 * @returns An error reading `Cannot <what>: expected <expected>, got <got>`.
 *
 * @example
 * ```ts
 * throw cannot("sample", "steps ≥ 1", "0");
 * ```
 */
export function cannot(what: string, expected: string, got: unknown): Error {
  const shown = typeof got === "string" ? got : machine.inspect(got);
  return new Error(`Cannot ${what}: expected ${expected}, got ${shown}`);
}

/**
 * Why something failed, in words: an error's message without its class.
 *
 * @param error What was thrown; tfjs rejects with plain objects.
 *
 * @example
 * ```ts
 * reasonOf(new TypeError("no such file")); // no such file
 * ```
 */
export function reasonOf(error: unknown): string {
  return (error as { message?: string } | undefined)?.message ?? String(error);
}

/** The most keys that a message names. */
const SHOWN_KEYS = 10;

/** The variable of the environment that has the commands write all keys. */
export const KEYS_VARIABLE = "MIX_OF_SHOW_KEYS";

/**
 * An error about keys of a file. Its message names at most ten of them and says
 * how many more there are; `keys` has them all.
 */
export class KeysError extends Error {
  /** Every key, behind what is wrong with it: `missing: conv_in.weight`. */
  readonly keys: readonly string[];

  /**
   * Describes what is wrong with a file.
   *
   * @param message The whole message.
   * @param keys Every key and what is wrong with it.
   */
  constructor(message: string, keys: readonly string[]) {
    super(message);
    this.keys = keys;
  }
}

/**
 * Keys in a row, at most ten, and how many more.
 *
 * @param keys The keys.
 * @param most How many are shown.
 * @param separator What stands between them.
 *
 * @example
 * ```ts
 * listed(["a", "b", "c"], 2); // "a, b and 1 more"
 * ```
 */
export function listed(
  keys: readonly string[],
  most: number = SHOWN_KEYS,
  separator = ", ",
): string {
  const shown = keys.slice(0, most).join(separator);
  const more = keys.length - most;
  return more > 0 ? `${shown} and ${more} more` : shown;
}

/**
 * One error about everything that is wrong with the keys of a file.
 *
 * @param what The thing that cannot be done, a verb phrase.
 * @param faults Keys by what is wrong with them: `missing`, `unexpected`, …
 * @returns The error; nothing if there are no keys.
 *
 * @example
 * ```ts
 * const error = keyFaults("load the UNet", { missing: ["conv_in.weight"] });
 * if (error) throw error; // Cannot load the UNet: 1 missing: conv_in.weight
 * ```
 */
export function keyFaults(
  what: string,
  faults: Readonly<Record<string, readonly string[]>>,
): KeysError | undefined {
  const found = Object.entries(faults).filter(([, list]) => list.length > 0);
  if (found.length === 0) return undefined;
  const keys = found.flatMap(([kind, list]) =>
    list.map((key) => `${kind}: ${key}`)
  );
  // Ten in all; a kind leaves what it does not need to the ones behind it.
  let left = SHOWN_KEYS;
  const parts = found.map(([kind, list], i) => {
    const share = Math.max(1, Math.floor(left / (found.length - i)));
    left -= Math.min(share, list.length);
    return `${list.length} ${kind}: ${listed(list, share)}`;
  });
  const all = keys.length > SHOWN_KEYS
    ? ` (with ${KEYS_VARIABLE}=FILE the commands write all ${keys.length} there)`
    : "";
  return new KeysError(`Cannot ${what}: ${parts.join("; ")}${all}`, keys);
}
