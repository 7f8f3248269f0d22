/**
 * The paper's Table 2 with the fourth cell: {LoRA, ED-LoRA} × {weight, gradient
 * fusion}, single against fused, and weight fusion at its best λ.
 *
 * @module
 */
import type { HeldOutError } from "../evaluation/heldout.ts";
import type { Fused, Lab, Trained } from "../lab/lab.ts";
import type { FuseSpec, ModelRef } from "../lab/specs.ts";
import { captionOf } from "../micro/captions.ts";
import { heldOutScene } from "../micro/scenes.ts";
import type { AblationReport } from "./ablation_json.ts";
import {
  type EmbeddingName,
  EMBEDDINGS,
  type ExperimentPreset,
} from "./presets.ts";
import { type Cell, drawCells, type Drawn, heldOutErrors } from "./scores.ts";
import { type Subject, training } from "./subjects.ts";

/** A kind of fusion. */
export type FusionName = "weight" | "gradient" | "weight_best_lambda";

/** Kinds of fusion that are compared. */
export const FUSIONS: readonly FusionName[] = [
  "weight",
  "gradient",
  "weight_best_lambda",
];

/** What is run. */
export interface AblationPlan {
  /** Which of the command's scales; a quick run allows no conclusion. */
  readonly scale: AblationReport["scale"];
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
  /** Proper names of identities. */
  readonly concepts: readonly string[];
  /** Prompts of each concept, taken from the four groups in turn. */
  readonly prompts: number;
  /** Training seeds; each also draws its own pictures. */
  readonly seeds: readonly number[];
  /** All seeds that were planned, if these are some of them: no conclusion. */
  readonly planned?: readonly number[];
  /** Which embeddings are compared. @default both */
  readonly embeddings?: readonly EmbeddingName[];
  /** Which fusions are compared. @default all three */
  readonly fusions?: readonly FusionName[];
}

/** Pictures of one concept in one arm, and the error of the model that drew them. */
export interface AblationPictures extends Drawn {
  /** Names of pictures of concept-free prompts. */
  readonly free: readonly string[];
  /** Error on held-out references. */
  readonly heldout: HeldOutError;
}

/** What the run gives, as it goes. */
export type AblationRecord =
  | {
    readonly type: "trained";
    readonly embedding: EmbeddingName;
    readonly seed: number;
    readonly singles: readonly Trained[];
  }
  | {
    readonly type: "fused";
    readonly arm: string;
    readonly seed: number;
    readonly model: Fused;
  }
  | { readonly type: "drawn"; readonly pictures: AblationPictures };

/**
 * Trains, fuses and draws Table 2: for each seed the base model with the class
 * word; for each embedding the single concepts, then all concepts fused in each
 * way. All arms of a concept and prompt start from the same noise.
 *
 * @param lab The lab.
 * @param plan What is run.
 * @param all The concepts, from `subjects`.
 */
export async function* table2(
  lab: Lab,
  plan: AblationPlan,
  all: readonly Subject[],
): AsyncGenerator<AblationRecord, void, void> {
  const { settings, embeddings = EMBEDDINGS, fusions = FUSIONS } = plan;
  for (const seed of plan.seeds) {
    const base = all.map((subject): Cell => (
      { arm: "base", seed, subject, model: BASE, words: subject.class }
    ));
    yield* draw(lab, plan, base);
    for (const embedding of embeddings) {
      const singles = await lab.train(
        all.map((subject) => training(settings, subject, embedding, seed)),
      );
      yield { type: "trained", embedding, seed, singles };
      const concepts = singles.map(({ model }) => model.id);
      const fused = await lab.fuse(fusions.map((fusion) => {
        const how = howOf(fusion, settings, embedding, concepts.length);
        return { concepts, how, seed };
      }));
      const cells = (arm: string, modelOf: (k: number) => ModelRef): Cell[] =>
        all.map((subject, k) => (
          { arm, seed, subject, model: modelOf(k), words: singles[k].phrase }
        ));
      const arms = fusions.map((fusion) => `${embedding}.${fusion}`);
      for (const [i, arm] of arms.entries()) {
        yield { type: "fused", arm, seed, model: fused[i] };
      }
      yield* draw(lab, plan, [
        ...cells(`${embedding}.single`, (k) => singles[k].model),
        ...arms.flatMap((arm, i) => cells(arm, () => fused[i].model)),
      ]);
    }
  }
}

const BASE: ModelRef = { type: "base" };

/** How a fusion of n concepts is done. */
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
      return { type: "weight", lambda: settings.bestLambda[embedding] };
    case "gradient":
      return { type: "gradient", settings: settings.gradient };
  }
}

/** Concept-free prompts on which drift is measured. */
const DRIFT_PROMPTS = 8;

/** Draws cells, concept-free pictures beside them, and measures the models. */
async function* draw(
  lab: Lab,
  { settings: { sampling }, prompts }: AblationPlan,
  cells: readonly Cell[],
): AsyncGenerator<AblationRecord, void, void> {
  const drawn = await drawCells(lab, sampling, cells);
  const texts = driftTexts(Math.min(DRIFT_PROMPTS, prompts));
  const free = await lab.draw(cells.map(({ model, seed }) => ({
    model,
    samples: texts.map((text) => ({ text, noise: [seed, "free", text] })),
    sampling,
  })));
  const heldout = await heldOutErrors(lab, cells);
  for (const [i, cell] of drawn.entries()) {
    const pictures = { ...cell, free: free[i], heldout: heldout[i] };
    yield { type: "drawn", pictures };
  }
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
