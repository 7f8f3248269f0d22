import { fails } from "./_message.ts";

/** Throws if the text matches the pattern. */
export function assertNotMatch(
  actual: string,
  expected: RegExp,
  msg?: string,
): void {
  if (actual.search(expected) >= 0) {
    fails(`Expected actual: "${actual}" to not match: "${expected}"`, msg);
  }
}
