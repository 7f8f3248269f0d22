/**
 * All experiments. Each entry of the list becomes a command with options, help
 * and completion.
 *
 * @module
 */
import { cost } from "./cost.ts";
import type { Experiment } from "./experiment.ts";
import { federated } from "./federated.ts";
import { fig10 } from "./fig10.ts";
import { fig3 } from "./fig3.ts";
import { fig4 } from "./fig4.ts";
import { fig5 } from "./fig5/run.ts";
import { fig7 } from "./fig7.ts";
import { mergeLoras } from "./merge.ts";
import { noiseOffset } from "./noise_offset.ts";
import { overfit } from "./overfit.ts";
import { SWEEPS } from "./sweeps.ts";
import { table1 } from "./table1.ts";
import { table2 } from "./table2/run.ts";

/** All experiments, in the order of help. */
export const EXPERIMENTS: readonly Experiment[] = [
  table2,
  table1,
  ...SWEEPS,
  overfit,
  noiseOffset,
  fig3,
  fig4,
  fig5,
  fig7,
  fig10,
  mergeLoras,
  federated,
  cost,
];
