import { fails } from "./_message.ts";

/** Throws unless the text matches the pattern. */
export function assertMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  // search() ignores the pattern's lastIndex, so a /g pattern holds no state.
  if (actual.search(expected) < 0) {
    fails(`Expected actual: "${actual}" to match: "${expected}"`, msg);
  }
}
