import { AssertionError } from "./assertion_error.ts";

/** How a value is written in a failure message: whole, but not endless. */
export function show(value: unknown): string {
  return Deno.inspect(value, {
    depth: 8,
    iterableLimit: 40,
    strAbbreviateSize: 2000,
    sorted: true,
  });
}

/** Throws: the headline, the caller's message, then the details. */
export function fails(headline: string, msg?: string, details = ""): never {
  const said = msg ? `${headline}: ${msg}` : `${headline}.`;
  throw new AssertionError(details === "" ? said : `${said}\n${details}`);
}

/** The two values below each other. */
export function actualAndExpected(actual: unknown, expected: unknown): string {
  return `    actual:   ${show(actual)}\n    expected: ${show(expected)}`;
}
