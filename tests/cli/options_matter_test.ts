/**
 * Every option of a command changes what comes out, or the run says that it
 * cannot here; see option_pairs.ts, and `tests/tools/option_table.ts` prints
 * the table.
 */
import { assertRejects } from "@std/assert";
import { command } from "../../src/cli/command.ts";
import { flag, optionTable, text } from "../../src/cli/options.ts";
import { checkOptions, type OptionRows } from "./option_pairs.ts";
import {
  completionsRows,
  convertRows,
  evaluateRows,
  fuseRows,
  inspectRows,
  sampleRows,
  trainRows,
} from "./option_rows.ts";
import { writeOptionWorld } from "./option_world.ts";

Deno.test("every option of every command matters", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const world = await writeOptionWorld(folder);
    for (
      const rows of [
        trainRows(world),
        fuseRows(world),
        sampleRows(world),
        evaluateRows(world),
        convertRows(world),
        inspectRows(world),
        completionsRows(world),
      ]
    ) {
      await t.step(rows.command.name, (t) => checkOptions(rows, t));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
