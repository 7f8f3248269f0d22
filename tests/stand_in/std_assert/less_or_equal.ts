import { fails, show } from "./_message.ts";

/** Throws unless `actual` is less than or equal to `expected`. */
export function assertLessOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (actual <= expected) return;
  fails(`Expect ${show(actual)} <= ${show(expected)}`, msg);
}
