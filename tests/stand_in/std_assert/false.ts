import { AssertionError } from "./assertion_error.ts";

/** The values that are falsy. */
export type Falsy = false | 0 | 0n | "" | null | undefined;

/** Throws unless `expr` is falsy. */
export function assertFalse(expr: unknown, msg = ""): asserts expr is Falsy {
  if (expr) throw new AssertionError(msg);
}
