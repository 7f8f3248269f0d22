/**
 * Experiments in a lab that only pretends to work; see tests/lab/pretender.ts.
 *
 * @module
 */
import type { ExperimentRequest } from "../../src/cli/experiment.ts";
import type { Experiment } from "../../src/experiments/experiment.ts";
import { sheetPixels } from "../../src/report/grid.ts";
import { type Lab, openLab } from "../../src/lab/lab.ts";
import { type Pretended, pretender } from "../lab/pretender.ts";

/** Does what an experiment is asked for; gives its numbers and pictures. */
export type Pretend = (experiment: Experiment) => (
  request: ExperimentRequest,
) => Promise<{ readonly data: object; readonly pictures: readonly number[] }>;

/** Tells pictures apart. */
function checksum(data: ArrayLike<number>): number {
  return Array.from(data).reduce((sum, x) => (31 * sum + x) % 4294967291, 0);
}

/**
 * Opens labs that only pretend, one per base model and evaluation CLIP.
 *
 * @param at Where their store goes.
 * @param files What stands for concepts and fused models.
 */
export function pretending(at: string, files: Pretended): Pretend {
  const labs = new Map<string, Promise<Lab>>();
  const store = `${at}/store/pretended`;
  return (experiment: Experiment) =>
  async ({ lab: { model, clip }, plan }: ExperimentRequest) => {
    await experiment.check?.(plan);
    const networks = await experiment.networks?.(plan, model);
    const name = JSON.stringify([model, clip, networks]);
    const lab = labs.get(name) ?? openLab({
      ...{ model, clip, store, networks, workers: 0, backend: "wasm" },
      runner: pretender(store, files),
    });
    labs.set(name, lab);
    const { data, report } = await experiment.run(await lab, plan);
    const sheets = report.parts.flatMap((part) =>
      part.type === "pictures" ? [sheetPixels(part.sheet)] : []
    );
    const pictures = (await Promise.all(sheets)).map(({ data }) =>
      checksum(data)
    );
    return { data, pictures };
  };
}
