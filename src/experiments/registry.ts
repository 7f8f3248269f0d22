/**
 * The experiments: whatever is in this list is a command, with options, help and
 * completion.
 *
 * @module
 */
import type { Experiment } from "./experiment.ts";
import { fig3 } from "./fig3.ts";
import { fig5 } from "./fig5/run.ts";
import { overfit } from "./overfit.ts";
import { SWEEPS } from "./sweeps.ts";
import { table2 } from "./table2/run.ts";

/** All experiments, in the order of help. */
export const EXPERIMENTS: readonly Experiment[] = [
  table2,
  ...SWEEPS,
  overfit,
  fig3,
  fig5,
];
