import { AssertionError } from "./assertion_error.ts";
import { show } from "./_message.ts";

/** Throws if reached: the compiler should have proved that it is not. */
export function assertNever(x: never, msg?: string): never {
  throw new AssertionError(
    msg ?? `Expected a value of type never, got ${show(x)}`,
  );
}
