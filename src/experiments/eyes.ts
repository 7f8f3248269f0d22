/**
 * The ablation's image alignment seen by other eyes: another CLIP, or a network
 * from outside. A result that only one eye sees is a property of that eye.
 *
 * @module
 */
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import type { Eye } from "../evaluation/outside_eye.ts";
import {
  mean,
  type PairedDifference,
  pairedDifference,
} from "../evaluation/statistics.ts";
import { decodePng } from "../io/png.ts";
import { type AblationOptions, ablationStudy } from "./ablation.ts";
import type { AblationReport } from "./ablation_schema.ts";
import type { StageProgress } from "./crew.ts";
import { store } from "./pieces.ts";
import { pictureId, referencePixels, rounded } from "./study.ts";

/** What an eye sees. */
export interface EyeReport {
  /** Its name. */
  readonly eye: string;
  /** Mean image alignment by arm. */
  readonly image: Readonly<Record<string, number>>;
  /** References among themselves. */
  readonly ceiling: number;
  /** Differences that the paper says are positive, paired by concept. */
  readonly comparisons: readonly (PairedDifference & { readonly id: string })[];
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

/** Which arm should have more identity than which, by the paper. */
const PAIRS: readonly (readonly [string, string])[] = [
  ["lora.single", "lora.weight"],
  ["edlora.single", "edlora.weight"],
  ["edlora.gradient", "edlora.weight"],
  ["lora.gradient", "lora.weight"],
  ["edlora.weight", "lora.weight"],
  ["edlora.gradient", "lora.gradient"],
];

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
  eye: Eye,
): AsyncGenerator<StageProgress, EyeReport, void> {
  const study = await ablationStudy(options);
  const references = new Map<string, ClipVector[]>();
  for (const { identity: { name } } of study.jobs) {
    references.set(name, await eye.embed(await referencePixels(study, name)));
  }
  const cells = study.cells.filter(({ concept }) => concept !== "");
  const total = cells.reduce((sum, cell) => sum + cell.regions.length, 0);
  const scores = new Map<string, Map<string, number[]>>();
  let done = 0;
  for (const cell of cells) {
    const images = [];
    for (let i = 0; i < cell.regions.length; i++) {
      const path = store.image(options.cache, await pictureId(cell, i));
      images.push(decodePng(await Deno.readFile(path)));
    }
    const rows = await eye.embed(images);
    const own = references.get(cell.concept)!;
    const byConcept = scores.get(cell.arm) ?? new Map<string, number[]>();
    byConcept.set(cell.concept, [
      ...byConcept.get(cell.concept) ?? [],
      mean(rows.map((row) => imageAlignment(row, own))),
    ]);
    scores.set(cell.arm, byConcept);
    done += images.length;
    yield { stage: eye.name, done, total, unit: "image" };
  }
  const means = (arm: string): number[] =>
    study.jobs.map(({ identity }) =>
      mean(scores.get(arm)!.get(identity.name)!)
    );
  return {
    eye: eye.name,
    image: Object.fromEntries(
      [...scores.keys()].map((arm) => [arm, rounded(mean(means(arm)))]),
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
    comparisons: PAIRS.filter(([a, b]) => scores.has(a) && scores.has(b))
      .map(([a, b]) => ({
        id: `${a} > ${b}`,
        ...pairedDifference(means(a), means(b)),
      })),
  };
}
