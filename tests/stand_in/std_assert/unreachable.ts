import { fails } from "./_message.ts";

/** Always throws: for code that should not be reached. */
export function unreachable(reason?: string): never {
  fails("Unreachable", reason);
}
