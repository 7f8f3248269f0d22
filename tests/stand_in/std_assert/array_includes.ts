import { fails, show } from "./_message.ts";
import { equal } from "./equal.ts";

/** An array-like that is not a string. */
export type ArrayLikeArg<T> = ArrayLike<T> & object;

/** Throws unless every value of `expected` is (in depth) among `actual`'s. */
export function assertArrayIncludes<T>(
  actual: ArrayLikeArg<T>,
  expected: ArrayLikeArg<T>,
  msg?: string,
): void {
  const all = Array.from(actual);
  const missing = Array.from(expected).filter((x) =>
    !all.some((y) => equal(x, y))
  );
  if (missing.length === 0) return;
  fails(
    `Expected actual: "${show(actual)}" to include: "${show(expected)}"`,
    msg,
    `    missing: ${show(missing)}`,
  );
}
