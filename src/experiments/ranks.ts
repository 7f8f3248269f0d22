/**
 * The central comparison at several ranks. The embedded model's layers are
 * narrow, so n concepts of rank 4 fill far more of them than they would fill of
 * Stable Diffusion's; at rank 1 or 2 the share n·r/d is near that of the paper.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import { pairedDifference, retainedShare } from "../evaluation/statistics.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import {
  finite,
  type ScoreEstimate,
  type ScoreName,
} from "./ablation_schema.ts";
import type { TextTable } from "./ablation_figures.ts";
import type { StageProgress } from "./crew.ts";
import { type Capacity, capacityOf, SD_CAPACITY } from "./measure.ts";
import type { EmbeddingName } from "./presets.ts";
import { sweep, type SweepOptions, type SweepRow } from "./sweep.ts";

/** What is run: settings choose the ridge, all concepts are fused. */
export type RankOptions =
  & Omit<
    SweepOptions,
    "counts" | "lambdas" | "ridges" | "variants" | "ranks"
  >
  & {
    /** Ranks of adapters. */
    readonly ranks: readonly number[];
  };

/** One embedding at one rank, single or fused. */
export interface RankRow extends Readonly<Record<ScoreName, number>> {
  /** Which embedding. */
  readonly embedding: EmbeddingName;
  /** Rank of the adapters. */
  readonly rank: number;
  /** How all concepts were put into one model, if they were. */
  readonly fusion: "none" | "weight" | "gradient";
  /** n·r/d with all concepts fused. */
  readonly capacity: Capacity;
  /** Single − fused image alignment, paired by concept; null for singles. */
  readonly loss: ScoreEstimate;
  /** (fused − lower) / (single − lower) of image alignment. */
  readonly retained: ScoreEstimate;
  /**
   * Gradient − weight fusion's image alignment, paired by concept; null for all
   * but gradient fusion.
   */
  readonly overWeight: ScoreEstimate;
  /** Image alignment of each concept. */
  readonly concepts: Readonly<Record<string, number>>;
}

const NONE: ScoreEstimate = { mean: null, low: null, high: null };

/**
 * Runs the comparison at each rank.
 *
 * @param options What is run.
 * @returns Yields progress; returns rows.
 * @throws Before work starts, if an option is wrong.
 */
export async function* ranks(
  options: RankOptions,
): AsyncGenerator<StageProgress, RankRow[], void> {
  const rows = yield* sweep({
    ...options,
    counts: [options.concepts.length],
    variants: { "": {} },
    lambdas: [],
    ridges: [options.settings.gradient.ridge],
  });
  const model = await loadModel(options.model);
  const capacities = new Map(options.ranks.map((rank) => [
    rank,
    capacityOf(model, options.concepts.length, rank),
  ]));
  disposeModel(model);
  const [lower] = rows;
  const valuesOf = (row: SweepRow) =>
    options.concepts.map((name) => row.concepts[name]);
  return rows.slice(1).map((row): RankRow => {
    const { text, image, masked, retrieval, concepts } = row;
    const embedding = row.embedding as EmbeddingName;
    const rank = row.rank!;
    const fusion = row.fusion === "sum" ? "weight" : row.fusion;
    const other = (fusion: SweepRow["fusion"]) =>
      rows.find((one) =>
        one.fusion === fusion && one.embedding === embedding &&
        one.rank === rank
      )!;
    const single = other("none");
    const isFused = fusion !== "none";
    return {
      embedding,
      rank,
      fusion,
      capacity: capacities.get(rank)!,
      text,
      image,
      masked,
      retrieval,
      loss: isFused
        ? finite(pairedDifference(valuesOf(single), valuesOf(row)))
        : NONE,
      retained: isFused
        ? finite(retainedShare(
          valuesOf(row),
          valuesOf(single),
          valuesOf(lower),
          fold(key(0), "rank", rank, embedding, fusion),
        ))
        : NONE,
      overWeight: fusion === "gradient"
        ? finite(pairedDifference(valuesOf(row), valuesOf(other("sum"))))
        : NONE,
      concepts,
    };
  });
}

function decimal(value: number | null, digits = 3): string {
  return value === null ? "–" : value.toFixed(digits).replace("-", "−");
}

function interval({ mean, low, high }: ScoreEstimate, digits = 3): string {
  return mean === null
    ? ""
    : `${decimal(mean, digits)} (${decimal(low, digits)} to ${
      decimal(high, digits)
    })`;
}

/**
 * The rows as a table; n·r/d beside that of the paper's experiment.
 *
 * @param rows From {@linkcode ranks}.
 */
export function rankTable(rows: readonly RankRow[]): TextTable {
  return {
    head: [
      "rank",
      `n·r/d (SD: ≤ ${SD_CAPACITY})`,
      "embedding",
      "fusion",
      "text",
      "image",
      "masked image",
      "retrieval",
      "image lost",
      "image kept",
      "gradient − weight",
    ],
    rows: rows.map((row) => [
      String(row.rank),
      decimal(Math.max(row.capacity.unet[1], row.capacity.textEncoder[1]), 2),
      row.embedding,
      row.fusion,
      decimal(row.text),
      decimal(row.image),
      decimal(row.masked),
      decimal(row.retrieval),
      interval(row.loss),
      interval(row.retained, 2),
      interval(row.overWeight),
    ]),
  };
}
