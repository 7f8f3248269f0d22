import { fails, show } from "./_message.ts";

/** Throws unless `actual` is less than `expected`. */
export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (actual < expected) return;
  fails(`Expect ${show(actual)} < ${show(expected)}`, msg);
}
