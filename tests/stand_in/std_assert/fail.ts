import { fails } from "./_message.ts";

/** Always throws. */
export function fail(msg?: string): never {
  fails("Failed assertion", msg);
}
