import { actualAndExpected, fails } from "./_message.ts";
import { equal } from "./equal.ts";

/** Throws unless `actual` and `expected` are equal in depth. */
export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) return;
  const details = actualAndExpected(actual, expected);
  const place = firstDifference(actual, expected);
  fails(
    "Values are not equal",
    msg,
    place === "" ? details : `${details}\n    first difference at: ${place}`,
  );
}

function firstDifference(a: unknown, b: unknown, path = ""): string {
  if (
    typeof a !== "object" || typeof b !== "object" || a === null || b === null
  ) return path;
  // Sets and maps have no keys to name; cycles end with the depth.
  if (path.length > 400) return path;
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  for (const key of keys) {
    const x = Reflect.get(a, key);
    const y = Reflect.get(b, key);
    const named = Object.hasOwn(a, key) && Object.hasOwn(b, key);
    if (!named || !equal(x, y)) return firstDifference(x, y, `${path}/${key}`);
  }
  return path;
}
