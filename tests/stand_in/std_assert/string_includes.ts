import { fails } from "./_message.ts";

/** Throws unless the text contains the other. */
export function assertStringIncludes(
  actual: string,
  expected: string,
  msg?: string,
): void {
  if (!actual.includes(expected)) {
    fails(`Expected actual: "${actual}" to contain: "${expected}"`, msg);
  }
}
