/**
 * Every option of the experiments, pretrain, micro:report and verify changes
 * what comes out, or the run says that it cannot here; see option_pairs.ts.
 */
import { checkOptions } from "./option_pairs.ts";
import {
  ablationRows,
  allRows,
  comparisonRows,
  domainRows,
  evaluatorsRows,
  framesRows,
  microReportRows,
  overfitRows,
  pretrainRows,
  regionsRows,
  sweepRows,
  verifyRows,
  workerRows,
} from "./option_rows_lab.ts";
import { writeLabWorld } from "./option_world.ts";

Deno.test("every option of every experiment matters", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const world = await writeLabWorld(folder);
    for (
      const rows of [
        verifyRows(world),
        pretrainRows(world),
        microReportRows(world),
        framesRows(world),
        evaluatorsRows(world),
        workerRows(world),
        ...sweepRows(world),
        ablationRows(world),
        overfitRows(world),
        domainRows(world),
        regionsRows(world),
        ...comparisonRows(world),
        allRows(world),
      ]
    ) {
      await t.step(rows.command.name, (t) => checkOptions(rows, t));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
