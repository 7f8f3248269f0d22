/**
 * The paper's Table 2 with the fourth cell: {LoRA, ED-LoRA} × {weight, gradient
 * fusion}, single against fused, and weight fusion at its best λ.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Lab } from "../lab/lab.ts";
import { NotInStore } from "../lab/runner.ts";
import type { FuseSpec } from "../lab/specs.ts";
import { captionOf } from "../micro/captions.ts";
import { conceptOf } from "../micro/in_domain.ts";
import { promptText } from "../micro/prompts.ts";
import { heldOutScene } from "../micro/scenes.ts";
import { report } from "./ablation_report.ts";
import type {
  AblationNumbers,
  AblationPictures,
  AblationPlan,
  AblationRecord,
  FusionName,
} from "./ablation_plan.ts";
import {
  type EmbeddingName,
  EMBEDDINGS,
  type ExperimentPreset,
} from "./presets.ts";
import { type Cell, drawCells } from "./scorer.ts";
import {
  checkSettings,
  oneDomain,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";

/** Kinds of fusion that are compared. */
export const FUSIONS: readonly FusionName[] = [
  "weight",
  "gradient",
  "weight_best_lambda",
];

/** Concept-free prompts on which drift is measured. */
const DRIFT_PROMPTS = 8;

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
    yield* draw(
      lab,
      plan,
      all.map((subject) => ({
        arm: "base",
        seed,
        subject,
        model: { type: "base" },
        words: subject.class,
      })),
    );
    for (const embedding of embeddings) {
      const singles = await lab.train(
        all.map((subject) => training(settings, subject, embedding, seed)),
      );
      yield { type: "trained", embedding, seed, singles };
      const concepts = singles.map(({ model }) => model.id);
      const fused = await lab.fuse(fusions.map((fusion) => ({
        concepts,
        how: howOf(fusion, settings, embedding, all.length),
        seed,
      })));
      for (const [i, model] of fused.entries()) {
        yield { type: "fused", arm: `${embedding}.${fusions[i]}`, seed, model };
      }
      const arms = ["single", ...fusions];
      yield* draw(
        lab,
        plan,
        arms.flatMap((arm, i) =>
          all.map((subject, k): Cell => ({
            arm: `${embedding}.${arm}`,
            seed,
            subject,
            model: i === 0 ? singles[k].model : fused[i - 1].model,
            words: singles[k].phrase,
          }))
        ),
      );
    }
  }
}

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
  const heldout = await lab.heldout(
    cells.map(({ model, subject, seed, words }) => ({
      model,
      pictures: subject.references,
      phrase: words,
      noise: [seed, "heldout", subject.name],
    })),
  );
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

/**
 * Runs the ablation, seed by seed. What the lab's store has is not done again: a
 * killed run continues, and the number of workers changes nothing.
 *
 * @param lab The lab.
 * @param plan What is run.
 * @returns The report, but for what only the caller knows, and all pictures.
 * @throws Before work starts, if an option is wrong.
 */
export async function ablation(
  lab: Lab,
  plan: AblationPlan,
): Promise<{ report: AblationNumbers; pictures: AblationPictures[] }> {
  const { settings, seeds, concepts } = plan;
  const { embeddings = EMBEDDINGS, fusions = FUSIONS } = plan;
  checkSettings(settings, seeds);
  for (const list of [embeddings, fusions]) {
    if (new Set<string>(list).size !== list.length) {
      throw cannot("run the ablation", "each arm once", list);
    }
  }
  concepts.forEach(conceptOf);
  oneDomain(concepts);
  const all = await subjects(lab, concepts, plan.prompts, settings.sampling);
  const records: AblationRecord[] = [];
  for (const seed of seeds) {
    const one = { ...plan, seeds: [seed] };
    const own: AblationRecord[] = [];
    for await (const record of table2(lab, one, all)) own.push(record);
    records.push(...own);
    // Scored at once, so that a run that stops has something whole to report.
    if (seeds.length > 1) await report(lab, one, all, own);
  }
  return {
    report: await report(lab, plan, all, records),
    pictures: records.flatMap((record) =>
      record.type === "drawn" ? [record.pictures] : []
    ),
  };
}

/**
 * The seeds whose results the store has, all of them: what a stopped run can be
 * reported on, with {@linkcode AblationPlan.planned}.
 *
 * @param lab A lab whose runner is `nowhere`.
 * @param plan What was run.
 */
export async function finishedSeeds(
  lab: Lab,
  plan: AblationPlan,
): Promise<number[]> {
  const finished: number[] = [];
  for (const seed of plan.seeds) {
    try {
      await ablation(lab, { ...plan, seeds: [seed] });
      finished.push(seed);
    } catch (error) {
      if (!(error instanceof NotInStore)) throw error;
    }
  }
  return finished;
}

/** Pictures of one concept and prompt, the same noise in every arm. */
export interface PictureRow {
  /** The concept. */
  readonly subject: Subject;
  /** The prompt, with the proper name. */
  readonly text: string;
  /** Names of pictures in the store, by arm. */
  readonly images: ReadonlyMap<string, string>;
}

/**
 * Pictures for a report.
 *
 * @param pictures From {@linkcode ablation}.
 * @param perConcept Prompts of each concept, from different groups.
 * @default perConcept 2
 */
export function pictureRows(
  pictures: readonly AblationPictures[],
  perConcept = 2,
): PictureRow[] {
  const [{ seed }] = pictures;
  const own = Map.groupBy(
    pictures.filter((one) => one.seed === seed),
    ({ subject }) => subject,
  );
  return [...own].flatMap(([subject, cells]) => {
    const { prompts, name } = subject;
    const step = Math.max(1, Math.floor(prompts.length / perConcept));
    return prompts.flatMap((prompt, i) =>
      i % step !== 0 || i / step >= perConcept ? [] : [{
        subject,
        text: promptText(prompt, name),
        images: new Map(cells.map(({ arm, images }) => [arm, images[i]])),
      }]
    );
  });
}
