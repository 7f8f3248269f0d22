/**
 * Compares the library with a folder of golden values, item by item.
 *
 * @module
 */
import { reasonOf } from "../../src/core/errors.ts";
import { type Check, Context, type Line } from "./check.ts";
import { MERGE_CHECKS } from "./merge.ts";
import { MODEL_CHECKS } from "./models.ts";
import { CONDITION_CHECKS } from "./conditions.ts";
import { FUSION_CHECKS } from "./fusion.ts";
import { LORA_CHECKS } from "./lora.ts";
import { SAMPLING_CHECKS } from "./sampling.ts";
import { TRAINING_CHECKS } from "./training.ts";

export { type Line, type Status } from "./check.ts";

/** Every check, in the order in which they run. */
export const CHECKS: readonly Check[] = [
  ...MODEL_CHECKS,
  ...SAMPLING_CHECKS,
  ...LORA_CHECKS,
  ...TRAINING_CHECKS,
  ...FUSION_CHECKS,
  ...MERGE_CHECKS,
  ...CONDITION_CHECKS,
];

/** Settings of {@linkcode verify}. */
export interface VerifyOptions {
  /** Only items whose name matches this glob (`*` also crosses slashes). */
  readonly only?: string;
}

/**
 * A regular expression of a glob: `*` any characters, `?` one, `{a,b}` either.
 *
 * @param glob The glob.
 */
export function globPattern(glob: string): RegExp {
  let depth = 0;
  const source = [...glob].map((c) => {
    if (c === "*") return ".*";
    if (c === "?") return ".";
    if (c === "{") return depth++, "(?:";
    if (c === "}" && depth > 0) return depth--, ")";
    if (c === "," && depth > 0) return "|";
    return c.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
  }).join("");
  return new RegExp(`^${source}${")".repeat(depth)}$`);
}

/** The globs a glob with alternatives at its start stands for. */
function alternatives(glob: string): string[] {
  const match = glob.match(/^\{([^{}]*)\}(.*)$/);
  return match ? match[1].split(",").map((a) => a + match[2]) : [glob];
}

/** Whether a check of this id may have lines that match. */
function mayMatch(id: string, glob: string): boolean {
  return alternatives(glob).some((one) => {
    const literal = one.split(/[*?{]/, 1)[0];
    return id.startsWith(literal) || literal.startsWith(id);
  });
}

/**
 * Runs every check on a folder.
 *
 * @param folder A folder laid out like the golden fixtures.
 * @param options Which items.
 * @returns One line an item; a check that throws is a `FAIL` line.
 * @throws If the folder is not there or has no model in it.
 */
export async function* verify(
  folder: string,
  options: VerifyOptions = {},
): AsyncGenerator<Line> {
  const { only } = options;
  const pattern = only === undefined ? undefined : globPattern(only);
  const wanted = (name: string, id: string) =>
    !pattern || pattern.test(name) || pattern.test(id);
  const context = await Context.open(folder);
  try {
    for (const check of CHECKS) {
      if (only !== undefined && !mayMatch(check.id, only)) continue;
      const missing: string[] = [];
      for (const file of check.files) {
        if (!await context.fixture.has(file)) missing.push(file);
      }
      if (missing.length > 0) {
        if (wanted(check.id, check.id)) {
          yield {
            name: check.id,
            status: "not covered",
            reason: `not in this folder: ${missing.join(", ")}`,
          };
        }
        continue;
      }
      try {
        for await (const line of check.run(context)) {
          if (wanted(line.name, check.id)) yield line;
        }
      } catch (error) {
        yield {
          name: check.id,
          status: "FAIL",
          reason: reasonOf(error),
        };
      }
    }
    if (only === undefined) yield* leftOver(context);
  } finally {
    context.dispose();
  }
}

/** What lies in the folder and no check looked at. */
async function* leftOver(context: Context): AsyncGenerator<Line> {
  for (const golden of context.fixture.opened) {
    const { unread } = golden;
    if (unread.length > 0) {
      yield {
        name: golden.path,
        status: "not covered",
        reason: `no check reads ${unread.length} of its tensors: ${
          unread.slice(0, 6).join(", ")
        }${unread.length > 6 ? ", …" : ""}`,
      };
    }
  }
  const opened = new Set(context.fixture.opened.map(({ path }) => path));
  for (const folder of await context.fixture.list()) {
    if (folder === context.modelFolder) continue;
    let names: string[];
    try {
      names = await context.fixture.list(folder);
    } catch {
      continue; // a file, not a folder
    }
    for (const name of names) {
      const path = `${folder}/${name}`;
      if (name.endsWith(".safetensors") && !opened.has(path)) {
        if (context.consumed.has(path)) continue;
        yield {
          name: path,
          status: "not covered",
          reason: "no check reads this file",
        };
      }
    }
  }
}
