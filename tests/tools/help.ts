/**
 * `--help` for the developer's tasks.
 *
 * @module
 */

/**
 * Prints the help if it is asked for.
 *
 * @param text What the task does and takes.
 * @returns Whether it was: then nothing else is to be done.
 */
export function helped(text: string): boolean {
  const asked = Deno.args.some((arg) => arg === "--help" || arg === "-h");
  if (asked) console.log(text.trim());
  return asked;
}

/**
 * Refuses arguments that a task does not know.
 *
 * @param what What cannot be done.
 * @param known All that it knows.
 */
export function onlyKnown(what: string, ...known: readonly string[]): void {
  const odd = Deno.args.find((arg) => !known.includes(arg));
  if (odd === undefined) return;
  const expected = ["--help", ...known].join(" or ");
  console.error(`Cannot ${what}: expected ${expected}, got ${odd}`);
  Deno.exit(2);
}
