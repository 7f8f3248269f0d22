import { fails, show } from "./_message.ts";

/** Throws unless `actual` is greater than `expected`. */
export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (actual > expected) return;
  fails(`Expect ${show(actual)} > ${show(expected)}`, msg);
}
