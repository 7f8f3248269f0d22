import { fails } from "./_message.ts";

/** Throws if `actual` is an instance of the class. */
export function assertNotInstanceOf<A, T>(
  actual: A,
  // deno-lint-ignore no-explicit-any
  unexpectedType: abstract new (...args: any[]) => T,
  msg?: string,
): asserts actual is Exclude<A, T> {
  if (actual instanceof unexpectedType) {
    fails(
      `Expected object to not be an instance of "${unexpectedType.name}"`,
      msg,
    );
  }
}
