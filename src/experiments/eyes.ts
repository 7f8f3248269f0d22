/**
 * The ablation's image alignment seen by other eyes: another CLIP, or a network
 * from outside. A result that only one eye sees is a property of that eye.
 *
 * @module
 */
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import type { Evaluator } from "../evaluation/evaluator.ts";
import { mean } from "../evaluation/statistics.ts";
import { decodePng } from "../io/png.ts";
import { type AblationOptions, ablationStudy, FUSIONS } from "./ablation.ts";
import type { AblationReport, Comparison } from "./ablation_schema.ts";
import { compareArms } from "./claims.ts";
import type { StageProgress } from "./crew.ts";
import { store } from "./pieces.ts";
import { EMBEDDINGS } from "./presets.ts";
import { pictureId, referencePixels, rounded } from "./study.ts";

/** What an eye sees. */
export interface EyeReport {
  /** Its name. */
  readonly eye: string;
  /** Mean image alignment by arm. */
  readonly image: Readonly<Record<string, number>>;
  /** References among themselves. */
  readonly ceiling: number;
  /** The ablation's claims, all of them, by this eye's image alignment. */
  readonly comparisons: readonly Comparison[];
}

/**
 * The options of a finished ablation, from its report.
 *
 * @param report The report.
 * @param folders Where model, CLIP and cache are now.
 */
export function optionsOf(
  report: AblationReport,
  folders: Pick<AblationOptions, "model" | "clip" | "cache">,
): AblationOptions {
  const arms = Object.values(report.arms);
  return {
    ...folders,
    settings: report.settings as unknown as AblationOptions["settings"],
    concepts: report.concepts.map(({ name }) => name),
    prompts: report.prompts.perConcept,
    seeds: report.seeds,
    embeddings: [...new Set(arms.map(({ embedding }) => embedding))],
    fusions: [...new Set(arms.map(({ fusion }) => fusion))],
    workers: 0,
    backend: "wasm",
    scale: report.scale,
    version: report.machine.library,
  };
}

/**
 * Scores a finished ablation's pictures with another eye.
 *
 * @param options Of the ablation; see {@linkcode optionsOf}.
 * @param eye The eye.
 * @returns Yields progress; returns what it sees.
 * @throws If the cache lacks a picture.
 */
export async function* lookAgain(
  options: AblationOptions,
  eye: Evaluator,
): AsyncGenerator<StageProgress, EyeReport, void> {
  const study = await ablationStudy(options);
  const references = new Map<string, ClipVector[]>();
  for (const { identity: { name } } of study.jobs) {
    references.set(name, await eye.embed(await referencePixels(study, name)));
  }
  const cells = study.cells.filter(({ concept }) => concept !== "");
  const total = cells.reduce((sum, cell) => sum + cell.regions.length, 0);
  // By arm and concept: a list of its prompts' scores for each seed.
  const scores = new Map<string, Map<string, number[][]>>();
  let done = 0;
  for (const cell of cells) {
    const images = [];
    for (let i = 0; i < cell.regions.length; i++) {
      const path = store.image(options.cache, await pictureId(cell, i));
      images.push(decodePng(await Deno.readFile(path)));
    }
    const rows = await eye.embed(images);
    const own = references.get(cell.concept)!;
    const byConcept = scores.get(cell.arm) ?? new Map<string, number[][]>();
    byConcept.set(cell.concept, [
      ...byConcept.get(cell.concept) ?? [],
      rows.map((row) => imageAlignment(row, own)),
    ]);
    scores.set(cell.arm, byConcept);
    done += images.length;
    yield { stage: eye.name, done, total, unit: "image" };
  }
  const nested = (arm: string): number[][][] =>
    study.jobs.map(({ identity }) => scores.get(arm)!.get(identity.name)!);
  const average = (arm: string): number =>
    mean(nested(arm).map((seeds) => mean(seeds.map((row) => mean(row)))));
  return {
    eye: eye.name,
    image: Object.fromEntries(
      [...scores.keys()].map((arm) => [arm, rounded(average(arm))]),
    ),
    ceiling: rounded(
      mean(
        [...references.values()].flatMap((rows) =>
          rows.map((row, i) =>
            imageAlignment(row, rows.filter((_, j) => j !== i))
          )
        ),
      ),
    ),
    comparisons: compareArms(nested, {
      embeddings: options.embeddings ?? EMBEDDINGS,
      fusions: options.fusions ?? FUSIONS,
      conclusive: options.scale !== "quick" && study.jobs.length > 1,
      scores: ["image"],
    }),
  };
}
