import { actualAndExpected, fails } from "./_message.ts";
import { equal } from "./equal.ts";

/**
 * Throws unless `expected` is a part of `actual`: every key that `expected`
 * has is equal in depth in `actual`, objects again by their part.
 */
export function assertObjectMatch(
  // deno-lint-ignore no-explicit-any
  actual: Record<PropertyKey, any>,
  expected: Record<PropertyKey, unknown>,
  msg?: string,
): void {
  if (matches(actual, expected)) return;
  const details = actualAndExpected(actual, expected);
  fails("Object does not match", msg, details);
}

function matches(actual: unknown, expected: unknown): boolean {
  if (Object.is(actual, expected)) return true;
  if (Array.isArray(expected)) {
    return Array.isArray(actual) && actual.length === expected.length &&
      expected.every((value, i) => matches(actual[i], value));
  }
  if (actual instanceof RegExp && expected instanceof RegExp) {
    return `${actual}` === `${expected}`;
  }
  if (actual instanceof Map && expected instanceof Map) {
    return [...expected].every(([key, value]) =>
      actual.has(key) && matches(actual.get(key), value)
    );
  }
  if (actual instanceof Set && expected instanceof Set) {
    return [...expected].every((x) => [...actual].some((y) => equal(x, y)));
  }
  if (!isRecord(actual) || !isRecord(expected)) return equal(actual, expected);
  if (ArrayBuffer.isView(expected) || expected instanceof Date) {
    return equal(actual, expected);
  }
  return Reflect.ownKeys(expected).every((key) =>
    key in actual && matches(actual[key], expected[key])
  );
}

function isRecord(value: unknown): value is Record<PropertyKey, unknown> {
  return typeof value === "object" && value !== null;
}
