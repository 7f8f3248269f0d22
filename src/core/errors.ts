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
  const shown = typeof got === "string" ? got : Deno.inspect(got);
  return new Error(`Cannot ${what}: expected ${expected}, got ${shown}`);
}
