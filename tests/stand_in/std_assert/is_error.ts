import { fails, show } from "./_message.ts";

/**
 * Throws unless `error` is an `Error`, of the class if one is given, with a
 * message that contains the text or matches the pattern if one is given.
 */
export function assertIsError<E extends Error = Error>(
  error: unknown,
  // deno-lint-ignore no-explicit-any
  ErrorClass?: abstract new (...args: any[]) => E,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  if (!(error instanceof Error)) {
    fails(`Expected "error" to be an Error object, got ${show(error)}`, msg);
  }
  if (ErrorClass && !(error instanceof ErrorClass)) {
    fails(
      `Expected error to be instance of "${ErrorClass.name}", ` +
        `but was "${error.constructor.name}": ${error.message}`,
      msg,
    );
  }
  if (msgMatches === undefined) return;
  const holds = typeof msgMatches === "string"
    ? error.message.includes(msgMatches)
    : error.message.search(msgMatches) >= 0;
  if (holds) return;
  const relation = typeof msgMatches === "string" ? "include" : "match";
  fails(
    `Expected error message to ${relation} ${show(msgMatches)}, ` +
      `but got ${show(error.message)}`,
    msg,
  );
}
