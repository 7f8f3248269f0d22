/**
 * `deno task experiment overfit`: training error against held-out error.
 *
 * @module
 */
import {
  overfit as run,
  type OverfitPlan,
  overfitReport,
} from "../experiments/overfit.ts";
import { conceptSheet } from "../experiments/pictures.ts";
import { EMBEDDINGS } from "../experiments/presets.ts";
import { DEVELOPMENT_CONCEPTS } from "../experiments/subjects.ts";
import { TARGET_NAMES } from "../customize/lora.ts";
import { TRAIN_IMAGES } from "../micro/concepts.ts";
import type { Command } from "./command.ts";
import { experiment, type ExperimentRequest } from "./experiment_command.ts";
import {
  CONCEPTS,
  LAB_OPTIONS,
  labRequest,
  RUN_OPTIONS,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionTable,
  whole,
} from "./options.ts";

const { preset, rank, steps, guidance } = SETTING_OPTIONS;

const OPTIONS = optionTable({
  quick: {
    type: flag,
    help: "1 concept, ED-LoRA, 20 training steps: mechanics only",
  },
  concepts: {
    type: CONCEPTS,
    otherwise: "the development concepts",
    help: "names of identities",
  },
  method: {
    type: listOf(oneOf(EMBEDDINGS)),
    otherwise: "edlora",
    help: "lora, edlora",
  },
  layers: {
    type: listOf(oneOf(TARGET_NAMES)),
    otherwise: "attention,linear,all",
    help: `layers with an adapter: ${TARGET_NAMES.join(", ")}`,
  },
  lrUnet: {
    type: listOf(number({ least: 0 })),
    otherwise: "the preset's",
    help: "learning rates of the UNet's adapter",
  },
  trainSteps: {
    type: listOf(whole({ least: 1 })),
    otherwise: "the preset's",
    help: "training steps of a concept",
  },
  pictures: {
    type: listOf(whole({ least: 1, most: TRAIN_IMAGES })),
    otherwise: "all",
    help: "pictures of a concept that are trained on",
  },
  n: {
    type: whole({ least: 1, most: 20 }),
    default: 2,
    help: "prompts of each concept that are drawn",
  },
  seeds: RUN_OPTIONS.seeds,
  ...{ preset, rank, steps, guidance },
  ...LAB_OPTIONS,
  out: { type: folder, otherwise: "out/overfit", help: "where results go" },
});

/** What the command line asks for. */
export interface OverfitRequest extends ExperimentRequest {
  /** What is run. */
  readonly plan: OverfitPlan;
}

/** Training error against held-out error. */
export const overfit: Command<OverfitRequest> = experiment({
  name: "overfit",
  summary:
    "Training error against held-out error, by layers, rate, steps and " +
    "pictures (development concepts)",
  about: `Does a concept generalise or is it learned by heart? Every combination
of layers, learning rates, steps and numbers of pictures is trained; the masked
denoising error is measured on training pictures and on held-out ones.`,
  options: OPTIONS,
  request: ({ quick, out, trainSteps, ...values }): OverfitRequest => ({
    lab: labRequest(
      values,
      out ?? (quick ? "out/overfit-quick" : "out/overfit"),
    ),
    plan: {
      settings: settingsOf(values),
      concepts: values.concepts ?? DEVELOPMENT_CONCEPTS.slice(0, quick ? 1 : 4),
      embeddings: values.method ?? ["edlora"],
      layers: values.layers ?? ["attention", "linear", "all"],
      rates: values.lrUnet,
      steps: trainSteps ?? (quick ? [20] : undefined),
      pictures: values.pictures,
      prompts: values.n,
      seeds: values.seeds ?? [0],
    },
  }),
  async run(lab, { plan }) {
    const { rows, pictures } = await run(lab, plan);
    const { model } = lab.hashes;
    return {
      report: overfitReport(rows, await conceptSheet(lab, pictures)),
      data: { ...plan, hashes: { model }, rows },
    };
  },
});
