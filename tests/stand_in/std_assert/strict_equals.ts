import { actualAndExpected, fails } from "./_message.ts";

/** Throws unless `actual` and `expected` are the same value (`Object.is`). */
export function assertStrictEquals<T>(
  actual: unknown,
  expected: T,
  msg?: string,
): asserts actual is T {
  if (!Object.is(actual, expected)) {
    const details = actualAndExpected(actual, expected);
    fails("Values are not strictly equal", msg, details);
  }
}
