/**
 * Concatenates arrays of numbers.
 *
 * @param Numbers Constructor of the result, such as `Uint8Array`.
 * @param parts The arrays, in order.
 */
export function joined<
  T extends Uint8Array<ArrayBuffer> | Float32Array | Float64Array,
>(
  Numbers: new (length: number) => T,
  parts: readonly ArrayLike<number>[],
): T {
  const all = new Numbers(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
