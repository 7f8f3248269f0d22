import { fails, show } from "./_message.ts";

/** Throws unless `actual` is greater than or equal to `expected`. */
export function assertGreaterOrEqual<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (actual >= expected) return;
  fails(`Expect ${show(actual)} >= ${show(expected)}`, msg);
}
