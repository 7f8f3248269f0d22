import { fails, show } from "./_message.ts";

/** Throws if `actual` is `null` or `undefined`. */
export function assertExists<T>(
  actual: T,
  msg?: string,
): asserts actual is NonNullable<T> {
  if (actual === undefined || actual === null) {
    fails(
      `Expected actual: "${show(actual)}" to not be null or undefined`,
      msg,
    );
  }
}
