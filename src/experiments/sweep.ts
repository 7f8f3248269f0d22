/**
 * How scores depend on λ of weight fusion, on the ridge of gradient fusion, on
 * the number of fused concepts and on how concepts were trained. On development
 * concepts by default: settings are chosen here, not where they are judged.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { TrainConfig } from "../customize/train.ts";
import { mean } from "../evaluation/statistics.ts";
import { loadPrompts } from "../micro/prompts.ts";
import { type ScoreName, type ScoreRow, SCORES } from "./ablation_schema.ts";
import type { StageProgress } from "./crew.ts";
import type { FusePiece } from "./pieces.ts";
import type { EmbeddingName } from "./presets.ts";
import {
  addFusion,
  addPictures,
  addTraining,
  conceptJobs,
  oneDomain,
  openStudy,
  phraseOf,
  rounded,
  runStudy,
  type StudyOptions,
} from "./study.ts";
import { TEXT_LOSS } from "./verdict.ts";

/** What is swept. */
export interface SweepOptions extends StudyOptions {
  /** Proper names; the first n are fused where a count is n. */
  readonly concepts: readonly string[];
  /**
   * Concepts of either domain that are fused with them, always all, and are
   * neither drawn nor scored: neighbours, where the concepts are too few to be
   * in each other's way.
   *
   * @default none
   */
  readonly crowd?: readonly string[];
  /** Prompts of each. */
  readonly prompts: number;
  /** Training seeds. */
  readonly seeds: readonly number[];
  /** Which embeddings are compared. */
  readonly embeddings: readonly EmbeddingName[];
  /** Numbers of fused concepts without the crowd. @default all */
  readonly counts?: readonly number[];
  /**
   * Factors λ of the sum; one over the number of fused concepts, the crowd
   * among them, is always there where anything is fused.
   */
  readonly lambdas?: readonly number[];
  /** Ridges of gradient fusion. */
  readonly ridges?: readonly number[];
  /** Ranks of adapters. @default the preset's */
  readonly ranks?: readonly number[];
  /** Training configurations by name. @default the preset's */
  readonly variants?: Readonly<Record<string, Partial<TrainConfig>>>;
}

/** Means over concepts, seeds and prompts of one arm. */
export interface SweepRow extends Readonly<Record<ScoreName, number>> {
  /** Which embedding, or the untouched base. */
  readonly embedding: EmbeddingName | "base";
  /** Training configuration. */
  readonly variant: string;
  /** Rank of the adapters; absent for the base. */
  readonly rank?: number;
  /** How concepts were put together. */
  readonly fusion: "none" | "sum" | "gradient";
  /** Fused concepts, the crowd among them; 1 where nothing is fused. */
  readonly n: number;
  /** λ or ridge. */
  readonly value: number | null;
  /** Image alignment of each concept. */
  readonly concepts: Readonly<Record<string, number>>;
}

/**
 * Runs a sweep.
 *
 * @param options What is swept.
 * @returns Yields progress; returns a row an arm, the base first.
 * @throws Before work starts, if an option is wrong.
 */
export async function* sweep(
  options: SweepOptions,
): AsyncGenerator<StageProgress, SweepRow[], void> {
  const { settings, seeds, embeddings } = options;
  const { crowd = [] } = options;
  oneDomain(options.concepts);
  const all = conceptJobs(
    [...options.concepts, ...crowd],
    options.prompts,
    await loadPrompts(),
  );
  const jobs = all.slice(0, options.concepts.length);
  const counts = options.counts ?? [jobs.length];
  for (const n of counts) {
    if (!Number.isInteger(n) || n < 1 || n > jobs.length) {
      throw cannot("sweep", `counts from 1 to ${jobs.length}`, n);
    }
  }
  const variants = Object.entries(options.variants ?? { "": {} });
  const ranks = options.ranks ?? [settings.rank];
  for (const rank of ranks) {
    if (!Number.isInteger(rank) || rank < 1) {
      throw cannot("sweep", "ranks ≥ 1", rank);
    }
  }
  const trainings = ranks.flatMap((rank) =>
    variants.map(([variant, train]) => ({ rank, variant, train }))
  );
  const study = await openStudy(options, all);
  type Arm = Pick<
    SweepRow,
    "embedding" | "variant" | "rank" | "fusion" | "n" | "value"
  >;
  const arms = new Map<string, Arm>();
  const arm = (what: Arm): string => {
    const name = JSON.stringify(what);
    arms.set(name, what);
    return name;
  };
  const lower = arm({
    embedding: "base",
    variant: "",
    fusion: "none",
    n: 1,
    value: null,
  });
  for (const seed of seeds) {
    for (const job of jobs) {
      const { class: word } = job.identity;
      addPictures(study, lower, job, seed, { type: "base" }, word);
    }
    for (const embedding of embeddings) {
      for (const { rank, variant, train } of trainings) {
        const trained = { embedding, variant, rank };
        const ids: string[] = [];
        for (const [i, job] of all.entries()) {
          const model = await addTraining(
            study,
            job,
            embedding,
            seed,
            train,
            rank,
          );
          // The name of a run knows no variants; its hash does.
          const name = `${embedding}/${job.identity.name}/${seed}`;
          study.trains.set(
            `${name}/${rank}/${variant}`,
            study.trains.get(name)!,
          );
          ids.push(model.id);
          if (i >= jobs.length) continue;
          addPictures(
            study,
            arm({ ...trained, fusion: "none", n: 1, value: null }),
            job,
            seed,
            model,
            phraseOf(settings, embedding, job.identity),
          );
        }
        for (const count of counts) {
          const n = count + crowd.length;
          const fuse = async (
            fusion: "sum" | "gradient",
            value: number,
            how: FusePiece["how"],
          ) => {
            const name = arm({ ...trained, fusion, n, value });
            const chosen = [...ids.slice(0, count), ...ids.slice(jobs.length)];
            const model = await addFusion(study, name, chosen, how, seed);
            for (const job of jobs.slice(0, count)) {
              const phrase = phraseOf(settings, embedding, job.identity);
              addPictures(study, name, job, seed, model, phrase);
            }
          };
          const { lambdas = [], ridges = [] } = options;
          const sums = lambdas.length > 0 || ridges.length > 0
            ? new Set([1 / n, ...lambdas])
            : [];
          for (const lambda of sums) {
            await fuse("sum", lambda, { type: "weight", lambda });
          }
          for (const ridge of ridges) {
            await fuse("gradient", ridge, {
              type: "gradient",
              settings: { ...settings.gradient, ridge },
            });
          }
        }
      }
    }
  }
  const { rows } = yield* runStudy(study);
  return [...arms].map(([name, what]) => ({
    ...what,
    ...averages(rows.filter((row) => row.arm === name)),
  }));
}

function averages(
  rows: readonly ScoreRow[],
): Record<ScoreName, number> & Pick<SweepRow, "concepts"> {
  const names = [...new Set(rows.map(({ concept }) => concept))];
  const of = (score: ScoreName, concept: string) =>
    mean(
      rows.filter((row) => row.concept === concept).map((row) =>
        mean(row[score])
      ),
    );
  return {
    ...Object.fromEntries(
      SCORES.map((score) => [
        score,
        rounded(mean(names.map((name) => of(score, name)))),
      ]),
    ) as Record<ScoreName, number>,
    concepts: Object.fromEntries(
      names.map((name) => [name, rounded(of("image", name))]),
    ),
  };
}

/**
 * The λ with the best image alignment, for each embedding, among those that
 * still follow their prompts: text alignment no more than a tenth below that of
 * the single-concept models.
 *
 * @param rows From {@linkcode sweep}.
 */
export function bestLambdas(
  rows: readonly SweepRow[],
): Partial<Record<EmbeddingName, number>> {
  const best: Partial<Record<EmbeddingName, SweepRow>> = {};
  for (const row of rows) {
    const { embedding, variant } = row;
    if (row.fusion !== "sum" || embedding === "base") continue;
    const single = rows.find((other) =>
      other.fusion === "none" && other.embedding === embedding &&
      other.variant === variant
    );
    if (single && row.text < (1 - TEXT_LOSS) * single.text) continue;
    const known = best[embedding];
    if (!known || row.image > known.image) best[embedding] = row;
  }
  return Object.fromEntries(
    Object.entries(best).map(([embedding, row]) => [embedding, row.value!]),
  );
}
