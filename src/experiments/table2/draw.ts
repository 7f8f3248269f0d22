/**
 * The paper's Table 2, with the combination that the paper leaves out (LoRA
 * with gradient fusion): {LoRA, ED-LoRA} × {weight, gradient fusion}, single
 * against fused, and weight fusion at its best λ.
 *
 * @module
 */
import {
  flag,
  listOf,
  oneOf,
  optionTable,
  parsed,
  whole,
} from "../../core/options.ts";
import type { HeldOutError } from "../../evaluation/heldout.ts";
import type { Fused, Lab, Trained } from "../../lab/lab.ts";
import type { FuseSpec } from "../../lab/specs.ts";
import { captionOf } from "../../micro/captions.ts";
import { conceptOf } from "../../micro/in_domain.ts";
import { heldOutScene } from "../../micro/scenes.ts";
import type { Plan } from "../experiment.ts";
import {
  type EmbeddingName,
  type ExperimentPreset,
  RUN_OPTIONS,
  TEST_CONCEPTS,
} from "../presets.ts";
import {
  armCells,
  type Cell,
  drawCells,
  type Drawn,
  heldOutErrors,
} from "../scores.ts";
import { type Subject, training } from "../subjects.ts";

/** A kind of fusion. */
export type FusionName = "weight" | "gradient" | "weight_best_lambda";

/** Kinds of fusion that can be compared. */
export const FUSIONS: readonly FusionName[] = [
  "weight",
  "gradient",
  "weight_best_lambda",
];

/** Names of concepts, or a number of test concepts. */
const CONCEPTS = parsed("LIST", (what, option, found): readonly string[] => {
  if (!/^[-\d.]+$/.test(found)) {
    return found.split(",").map((name) => conceptOf(name).name);
  }
  const bounds = { least: 1, most: TEST_CONCEPTS.length };
  return TEST_CONCEPTS.slice(0, whole(bounds).read(what, option, found));
});

/** The options of the ablation. */
export const ABLATION_OPTIONS = optionTable({
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "names, or how many of the test concepts",
  },
  ...RUN_OPTIONS,
  prompts: { ...RUN_OPTIONS.prompts, default: 5 },
  fusions: {
    name: "fusion",
    type: listOf(oneOf(FUSIONS)),
    default: ["weight", "gradient"],
    help: FUSIONS.join(", "),
  },
  partial: {
    type: flag,
    help: "run nothing: report on the seeds that are finished",
  },
});

/** What is run. */
export type AblationPlan = Plan<typeof ABLATION_OPTIONS>;

/** Pictures of one concept in one arm, and the error of the model that drew them. */
export interface AblationPictures extends Drawn {
  /** Names of pictures of concept-free prompts. */
  readonly free: readonly string[];
  /** Error on held-out references. */
  readonly heldout: HeldOutError;
}

/** Outputs of a run. */
export interface AblationWork {
  /** Trained concepts. */
  readonly trained: {
    readonly embedding: EmbeddingName;
    readonly seed: number;
    readonly singles: readonly Trained[];
  }[];
  /** Fused models. */
  readonly fused: {
    readonly arm: string;
    readonly seed: number;
    readonly model: Fused;
  }[];
  /** Pictures of every arm. */
  readonly drawn: AblationPictures[];
}

/**
 * Trains, fuses and draws Table 2: for each seed the base model with the class
 * word; for each embedding the single concepts, then all concepts fused in each
 * way. All arms of a concept and prompt start from the same noise.
 *
 * @param lab The lab.
 * @param plan What is run.
 * @param all The concepts, from `subjects`.
 */
export async function drawTable2(
  lab: Lab,
  plan: AblationPlan,
  all: readonly Subject[],
): Promise<AblationWork> {
  const { settings, embeddings, fusions } = plan;
  const work: AblationWork = { trained: [], fused: [], drawn: [] };
  for (const seed of plan.seeds) {
    // Both embeddings are trained in one call, so that no worker waits for a
    // fusion.
    const concepts = await lab.train(
      embeddings.flatMap((embedding) =>
        all.map((subject) => training(settings, subject, embedding, seed))
      ),
    );
    const trained = embeddings.map((embedding, i) => {
      const from = i * all.length;
      const singles = concepts.slice(from, from + all.length);
      return { embedding, seed, singles };
    });
    const asked = trained.flatMap(({ embedding, singles }) =>
      fusions.map((fusion) => ({
        arm: `${embedding}.${fusion}`,
        singles,
        spec: {
          concepts: singles.map(({ model }) => model.id),
          how: howOf(fusion, settings, embedding, singles.length),
          seed,
        },
      }))
    );
    const models = await lab.fuse(asked.map(({ spec }) => spec));
    const fused = asked.map((one, i) => ({ ...one, model: models[i] }));
    work.trained.push(...trained);
    work.fused.push(...fused.map(({ arm, model }) => ({ arm, seed, model })));
    work.drawn.push(
      ...await draw(lab, plan, [
        ...armCells("base", seed, all),
        ...trained.flatMap(({ embedding, singles }) => [
          ...armCells(`${embedding}.single`, seed, all, singles),
          ...fused.filter((one) => one.singles === singles).flatMap(
            ({ arm, model }) => armCells(arm, seed, all, singles, model.model),
          ),
        ]),
      ]),
    );
  }
  return work;
}

/** The spec of a fusion of n concepts. */
function howOf(
  fusion: FusionName,
  settings: ExperimentPreset,
  embedding: EmbeddingName,
  n: number,
): FuseSpec["how"] {
  switch (fusion) {
    case "weight":
      return { type: "weight", lambda: 1 / n };
    case "weight_best_lambda":
      return { type: "weight", lambda: settings.sumStrength[embedding] / n };
    case "gradient":
      return { type: "gradient", settings: settings.gradient };
  }
}

/** Concept-free prompts on which drift is measured. */
const DRIFT_PROMPTS = 8;

/**
 * Draws cells and pictures of concept-free prompts, and measures held-out
 * errors.
 */
async function draw(
  lab: Lab,
  { settings, prompts }: AblationPlan,
  cells: readonly Cell[],
): Promise<AblationPictures[]> {
  const { sampling } = settings;
  const drawn = await drawCells(lab, sampling, cells);
  const texts = driftTexts(Math.min(DRIFT_PROMPTS, prompts));
  const free = await lab.draw(cells.map(({ model, seed }) => ({
    model,
    samples: texts.map((text) => ({ text, noise: [seed, "free", text] })),
    sampling,
  })));
  const heldout = await heldOutErrors(lab, settings, cells);
  return drawn.map((cell, i) => ({
    ...cell,
    free: free[i],
    heldout: heldout[i],
  }));
}

/**
 * Concept-free captions of held-out scenes.
 *
 * @param count How many.
 */
export function driftTexts(count: number): string[] {
  return Array.from(
    { length: count },
    (_, i) => captionOf(heldOutScene(i), i),
  );
}
