/**
 * The ablation's image alignment by other evaluators: another CLIP, or a
 * network trained on other data. It shows whether a result depends on the
 * evaluator.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import { type Comparison, rounded } from "../evaluation/compare.ts";
import type { Evaluator } from "../evaluation/evaluator.ts";
import {
  checkEvaluator,
  type EvaluatorCheck,
} from "../evaluation/evaluator_check.ts";
import { mean, nestedMean } from "../evaluation/statistics.ts";
import type { Pixels } from "../io/png.ts";
import type { Lab } from "../lab/lab.ts";
import type { SamplingSettings } from "../lab/specs.ts";
import { evaluatorSet } from "../micro/evaluator_set.ts";
import { decimal } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import { classPictures } from "./evaluator.ts";
import { referencePictures } from "./pictures.ts";
import { subjects } from "./subjects.ts";
import { compareArms } from "./table2/claims.ts";
import { type AblationPlan, drawTable2 } from "./table2/draw.ts";
import type { AblationReport } from "./table2/json.ts";

/** The numbers of an ablation by one evaluator. */
export interface Evaluation {
  /** Its name. */
  readonly evaluator: string;
  /** Mean image alignment by arm. */
  readonly image: Readonly<Record<string, number>>;
  /** Alignment of references with each other. */
  readonly ceiling: number;
  /** The ablation's claims by this evaluator's image alignment. */
  readonly comparisons: readonly Comparison[];
}

/**
 * The plan of a finished ablation, from its report.
 *
 * @param report The report.
 */
export function ablationPlan(report: AblationReport): AblationPlan {
  const arms = Object.values(report.arms);
  return {
    settings: report.settings as unknown as AblationPlan["settings"],
    concepts: report.concepts.map(({ name }) => name),
    prompts: report.prompts.perConcept,
    seeds: report.seeds,
    embeddings: [...new Set(arms.map(({ embedding }) => embedding))],
    fusions: [...new Set(arms.map(({ fusion }) => fusion))],
    ...{ scale: report.scale, partial: false },
  };
}

/**
 * Tests another evaluator on the embedded world.
 *
 * @param lab The lab.
 * @param evaluator The evaluator.
 * @param sampling How the base model draws class words.
 */
export async function checkOther(
  lab: Lab,
  evaluator: Evaluator,
  sampling: SamplingSettings,
): Promise<EvaluatorCheck> {
  const drawn = new Map<string, Pixels[]>();
  const found = Object.entries(await classPictures(lab, sampling));
  for (const [word, ids] of found) {
    drawn.set(word, await Promise.all(ids.map((id) => lab.picture(id))));
  }
  const set = evaluatorSet(lab.art, (word) => drawn.get(word) ?? []);
  return await checkEvaluator(
    (images) => evaluator.embed(images),
    set,
    fold(key(0), "evaluator"),
  );
}

/**
 * Scores a finished ablation's pictures with another evaluator.
 *
 * @param lab A lab whose store has the ablation.
 * @param plan Of the ablation; see {@linkcode ablationPlan}.
 * @param evaluator The evaluator.
 * @param onProgress Called with how many pictures are done.
 */
export async function evaluate(
  lab: Lab,
  plan: AblationPlan,
  evaluator: Evaluator,
  onProgress?: (done: number) => void,
): Promise<Evaluation> {
  const { concepts, prompts, settings } = plan;
  const all = await subjects(lab, concepts, prompts, settings.sampling);
  const references = new Map<string, ClipVector[]>();
  for (const subject of all) {
    const pictures = await referencePictures(lab, subject);
    references.set(subject.name, await evaluator.embed(pictures));
  }
  const rows: { arm: string; concept: string; values: number[] }[] = [];
  let done = 0;
  const { drawn } = await drawTable2(lab, plan, all);
  for (const { arm, subject: { name: concept }, images } of drawn) {
    const pictures = await Promise.all(images.map((id) => lab.picture(id)));
    const found = await evaluator.embed(pictures);
    const own = references.get(concept)!;
    const values = found.map((row) => imageAlignment(row, own));
    rows.push({ arm, concept, values });
    onProgress?.(done += images.length);
  }
  const nested = (arm: string): number[][][] =>
    concepts.map((name) =>
      rows.filter((row) => row.arm === arm && row.concept === name)
        .map(({ values }) => values)
    );
  const arms = [...new Set(rows.map(({ arm }) => arm))];
  const ceiling = [...references.values()].flatMap((rows) =>
    rows.map((row, i) => imageAlignment(row, rows.filter((_, j) => j !== i)))
  );
  return {
    evaluator: evaluator.name,
    image: Object.fromEntries(
      arms.map((arm) => [arm, rounded(nestedMean(nested(arm)))]),
    ),
    ceiling: rounded(mean(ceiling)),
    comparisons: compareArms(nested, {
      ...{ embeddings: plan.embeddings, fusions: plan.fusions },
      conclusive: () => plan.scale !== "quick" && all.length > 1,
      scores: ["image"],
    }),
  };
}

/**
 * Image alignment by arm as a table.
 *
 * @param evaluation The numbers of an evaluator.
 */
export function evaluationTable({ image, ceiling }: Evaluation): Table {
  return tableOf(
    [...Object.entries(image), ["references themselves", ceiling] as const],
    [["arm", ([arm]) => arm], ["image", ([, value]) => decimal(value)]],
  );
}
