/**
 * The ablation's image alignment by other evaluators: another CLIP, or a network
 * from outside. A result that only one evaluator gives is a property of that
 * evaluator.
 *
 * @module
 */
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import type { Evaluator } from "../evaluation/evaluator.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import { type AblationPlan, FUSIONS, table2 } from "./ablation.ts";
import type { AblationReport, Comparison } from "./ablation_schema.ts";
import { compareArms } from "./claims.ts";
import { EMBEDDINGS } from "./presets.ts";
import { rounded } from "./scorer.ts";
import { referencePictures, subjects } from "./subjects.ts";

/** What an evaluator finds. */
export interface Evaluation {
  /** Its name. */
  readonly evaluator: string;
  /** Mean image alignment by arm. */
  readonly image: Readonly<Record<string, number>>;
  /** References among themselves. */
  readonly ceiling: number;
  /** The ablation's claims by this evaluator's image alignment. */
  readonly comparisons: readonly Comparison[];
}

/**
 * The plan of a finished ablation, from its report.
 *
 * @param report The report.
 */
export function planOf(report: AblationReport): AblationPlan {
  const arms = Object.values(report.arms);
  return {
    settings: report.settings as unknown as AblationPlan["settings"],
    concepts: report.concepts.map(({ name }) => name),
    prompts: report.prompts.perConcept,
    seeds: report.seeds,
    embeddings: [...new Set(arms.map(({ embedding }) => embedding))],
    fusions: [...new Set(arms.map(({ fusion }) => fusion))],
    scale: report.scale,
  };
}

/**
 * Scores a finished ablation's pictures with another evaluator.
 *
 * @param lab A lab whose store has the ablation.
 * @param plan Of the ablation; see {@linkcode planOf}.
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
  // By arm and concept: a list of its prompts' scores for each seed.
  const scores = new Map<string, Map<string, number[][]>>();
  let done = 0;
  for await (const record of table2(lab, plan, all)) {
    if (record.type !== "drawn") continue;
    const { arm, subject: { name }, images } = record.pictures;
    const rows = await evaluator.embed(
      await Promise.all(images.map((id) => lab.picture(id))),
    );
    const own = references.get(name)!;
    const byConcept = scores.get(arm) ?? new Map<string, number[][]>();
    byConcept.set(name, [
      ...byConcept.get(name) ?? [],
      rows.map((row) => imageAlignment(row, own)),
    ]);
    scores.set(arm, byConcept);
    onProgress?.(done += images.length);
  }
  const nested = (arm: string): number[][][] =>
    all.map(({ name }) => scores.get(arm)!.get(name)!);
  const average = (arm: string): number =>
    mean(nested(arm).map((seeds) => mean(seeds.map((row) => mean(row)))));
  return {
    evaluator: evaluator.name,
    image: Object.fromEntries(
      [...scores.keys()].map((arm) => [arm, rounded(average(arm))]),
    ),
    ceiling: rounded(mean(
      [...references.values()].flatMap((rows) =>
        rows.map((row, i) =>
          imageAlignment(row, rows.filter((_, j) => j !== i))
        )
      ),
    )),
    comparisons: compareArms(nested, {
      embeddings: plan.embeddings ?? EMBEDDINGS,
      fusions: plan.fusions ?? FUSIONS,
      conclusive: plan.scale !== "quick" && all.length > 1,
      scores: ["image"],
    }),
  };
}
