import { fails } from "./_message.ts";
import { assertIsError } from "./is_error.ts";

/** Rejects unless the function's promise rejects; resolves to the reason. */
export function assertRejects(
  fn: () => PromiseLike<unknown>,
  msg?: string,
): Promise<unknown>;
/** Rejects unless the promise rejects with an error of class and message. */
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  // deno-lint-ignore no-explicit-any
  ErrorClass: abstract new (...args: any[]) => E,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  // deno-lint-ignore no-explicit-any
  classOrMsg?: (abstract new (...args: any[]) => E) | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const ErrorClass = typeof classOrMsg === "function" ? classOrMsg : undefined;
  const said = typeof classOrMsg === "string" ? classOrMsg : msg;
  let promised: PromiseLike<unknown>;
  try {
    promised = fn();
  } catch {
    return fails("Function throws when expected to reject", said);
  }
  if (typeof promised?.then !== "function") {
    return fails("Expected function to return a promise", said);
  }
  try {
    await promised;
  } catch (error) {
    if (ErrorClass) assertIsError(error, ErrorClass, msgIncludes, said);
    return error;
  }
  return fails("Expected function to reject", said);
}
