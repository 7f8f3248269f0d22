import { fails, show } from "./_message.ts";
import { equal } from "./equal.ts";

/** Throws if `actual` and `expected` are equal in depth. */
export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) {
    fails(`Expected actual: ${show(actual)} not to be: ${show(expected)}`, msg);
  }
}
