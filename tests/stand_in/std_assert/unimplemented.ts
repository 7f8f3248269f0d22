import { fails } from "./_message.ts";

/** Always throws: for code that is not written yet. */
export function unimplemented(msg?: string): never {
  fails("Unimplemented", msg);
}
