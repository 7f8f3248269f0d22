import { fails, show } from "./_message.ts";

/** Throws if `actual` and `expected` are the same value (`Object.is`). */
export function assertNotStrictEquals<T>(
  actual: T,
  expected: T,
  msg?: string,
): void {
  if (Object.is(actual, expected)) {
    fails(
      `Expected "actual" not to be strictly equal to: ${show(actual)}`,
      msg,
    );
  }
}
