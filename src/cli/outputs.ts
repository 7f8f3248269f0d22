/**
 * What a command writes: checked before work starts.
 *
 * @module
 */
import { resolve } from "node:path";
import { cannot } from "../core/errors.ts";
import { joinPath, parentOf } from "../io/files.ts";

/** Where a path leads, as far as it is there; links are followed. */
async function place(path: string): Promise<string> {
  const whole = resolve(path);
  try {
    return await Deno.realPath(whole);
  } catch {
    const parent = parentOf(whole);
    if (parent === whole) return whole;
    return joinPath(await place(parent), whole.slice(parent.length + 1));
  }
}

/**
 * Refuses two outputs of one name: the second would replace the first.
 *
 * @param what What is to be done, for messages.
 * @param paths By option or argument; what is left out is not written.
 * @throws If two lead to one place.
 */
export async function assertDistinct(
  what: string,
  paths: Readonly<Record<string, string | undefined>>,
): Promise<void> {
  const seen = new Map<string, string>();
  for (const [name, path] of Object.entries(paths)) {
    if (path === undefined) continue;
    const at = await place(path);
    const other = seen.get(at);
    if (other !== undefined) {
      throw cannot(what, `different files for ${other} and ${name}`, path);
    }
    seen.set(at, name);
  }
}
