import { fails } from "./_message.ts";
import { assertIsError } from "./is_error.ts";

/** Throws unless the function throws; returns what it threw. */
export function assertThrows(fn: () => unknown, msg?: string): unknown;
/** Throws unless the function throws an error of the class and message. */
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  // deno-lint-ignore no-explicit-any
  ErrorClass: abstract new (...args: any[]) => E,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  // deno-lint-ignore no-explicit-any
  classOrMsg?: (abstract new (...args: any[]) => E) | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  const ErrorClass = typeof classOrMsg === "function" ? classOrMsg : undefined;
  const said = typeof classOrMsg === "string" ? classOrMsg : msg;
  try {
    fn();
  } catch (error) {
    if (ErrorClass) assertIsError(error, ErrorClass, msgIncludes, said);
    return error;
  }
  return fails("Expected function to throw", said);
}
