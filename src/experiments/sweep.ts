/**
 * A sweep: concepts are trained, fused and scored in every combination of what
 * its plan lists.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import type { TrainConfig } from "../customize/train.ts";
import { finite, rounded } from "../evaluation/compare.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { capacityOf } from "../fusion/capacity.ts";
import type { Lab } from "../lab/lab.ts";
import type { FuseSpec } from "../lab/specs.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import type { Interval } from "../report/format.ts";
import type { EmbeddingName, ExperimentPreset } from "./presets.ts";
import {
  type ArmScores,
  type Cell,
  conceptMeans,
  perScore,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import { oneDomain, subjects, training } from "./subjects.ts";

/** What is swept. */
export interface SweepPlan {
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
  /** Proper names; the first n are fused where a count is n. */
  readonly concepts: readonly string[];
  /**
   * Concepts of either domain that are always fused with them, and neither
   * drawn nor scored.
   *
   * @default none
   */
  readonly distractors?: readonly string[];
  /** Prompts of each. */
  readonly prompts: number;
  /** Training seeds. */
  readonly seeds: readonly number[];
  /** Which embeddings are compared. */
  readonly embeddings: readonly EmbeddingName[];
  /** Numbers of fused concepts without the distractors. @default all */
  readonly counts?: readonly number[];
  /**
   * Factors λ of the sum; one over the number of fused concepts, distractors
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

/** One arm of a sweep. */
export interface SweepArm {
  /** Which embedding, or the untouched base. */
  readonly embedding: EmbeddingName | "base";
  /** Training configuration. */
  readonly variant: string;
  /** Rank of the adapters; absent for the base. */
  readonly rank?: number;
  /** How concepts were put together. */
  readonly fusion: "none" | "sum" | "gradient";
  /** Fused concepts, distractors among them; 1 where nothing is fused. */
  readonly n: number;
  /** λ or ridge. */
  readonly value: number | null;
}

/** Means over concepts, seeds and prompts of one arm. */
export interface SweepRow
  extends SweepArm, Readonly<Record<ScoreName, number>> {
  /** Largest n·r/d of an adapted layer; 0 for the base. */
  readonly capacity: number;
  /** Image alignment of each concept. */
  readonly concepts: Readonly<Record<string, number>>;
  /** Masked denoising error on held-out references; lower is better. */
  readonly heldout: number;
  /** The same of each concept. */
  readonly errors: Readonly<Record<string, number>>;
  /** (class word − fused) / (class word − single) of it; of fused arms. */
  readonly heldoutKept?: Interval;
  /** Single − fused image alignment, paired by concept; of fused arms. */
  readonly loss?: Interval;
  /** (fused − lower) / (single − lower) of image alignment; of fused arms. */
  readonly kept?: Interval;
  /** Gradient fusion − sum at λ = 1/n, paired by concept. */
  readonly overWeight?: Interval;
}

/** Refuses a plan whose lists do not go together. */
export function checkSweep(
  { concepts, counts = [], ranks = [] }: SweepPlan,
): void {
  oneDomain(concepts);
  for (const n of counts) {
    if (!Number.isInteger(n) || n < 1 || n > concepts.length) {
      throw cannot("sweep", `counts from 1 to ${concepts.length}`, n);
    }
  }
  for (const rank of ranks) {
    if (!Number.isInteger(rank) || rank < 1) {
      throw cannot("sweep", "ranks ≥ 1", rank);
    }
  }
}

/** The fusions of n concepts that a plan has. */
function fusionsOf(
  { lambdas = [], ridges = [], settings }: SweepPlan,
  n: number,
): { fusion: "sum" | "gradient"; value: number; how: FuseSpec["how"] }[] {
  if (lambdas.length === 0 && ridges.length === 0) return [];
  return [
    ...[...new Set([1 / n, ...lambdas])].map((lambda) => ({
      fusion: "sum" as const,
      value: lambda,
      how: { type: "weight" as const, lambda },
    })),
    ...ridges.map((ridge) => ({
      fusion: "gradient" as const,
      value: ridge,
      how: {
        type: "gradient" as const,
        settings: { ...settings.gradient, ridge },
      },
    })),
  ];
}

/**
 * Runs a sweep.
 *
 * @param lab The lab.
 * @param plan What is swept.
 * @returns A row per arm, the base first.
 * @throws Before work starts, if an option is wrong.
 */
export async function sweep(lab: Lab, plan: SweepPlan): Promise<SweepRow[]> {
  checkSweep(plan);
  const { settings, concepts, distractors = [], seeds, embeddings } = plan;
  const { counts = [concepts.length], ranks = [settings.rank] } = plan;
  const variants = Object.entries(plan.variants ?? { "": {} });
  const all = await subjects(
    lab,
    [...concepts, ...distractors],
    plan.prompts,
    settings.sampling,
  );
  const scored = all.slice(0, concepts.length);
  const none = { fusion: "none", n: 1, value: null } as const;
  const cells: Cell<SweepArm>[] = [];
  for (const seed of seeds) {
    const lower: SweepArm = { embedding: "base", variant: "", ...none };
    cells.push(...scored.map((subject): Cell<SweepArm> => ({
      ...{ arm: lower, seed, subject, words: subject.class },
      model: { type: "base" },
    })));
    for (const embedding of embeddings) {
      for (const rank of ranks) {
        for (const [variant, change] of variants) {
          const own = { embedding, variant, rank };
          const singles = await lab.train(all.map((subject) => ({
            ...training(settings, subject, embedding, seed, change),
            rank,
          })));
          cells.push(...scored.map((subject, i): Cell<SweepArm> => ({
            ...{ arm: { ...own, ...none }, seed, subject },
            model: singles[i].model,
            words: singles[i].phrase,
          })));
          for (const count of counts) {
            const n = count + distractors.length;
            const fusions = fusionsOf(plan, n);
            const chosen = singles.filter((_, i) =>
              i < count || i >= scored.length
            ).map(({ model }) => model.id);
            const fused = await lab.fuse(
              fusions.map(({ how }) => ({ concepts: chosen, how, seed })),
            );
            for (const [k, { fusion, value }] of fusions.entries()) {
              const arm: SweepArm = { ...own, fusion, n, value };
              cells.push(
                ...scored.slice(0, count).map((subject, i) => ({
                  ...{ arm, seed, subject },
                  model: fused[k].model,
                  words: singles[i].phrase,
                })),
              );
            }
          }
        }
      }
    }
  }
  const { arms } = await scoreCells(lab, settings, scored, cells);
  const model = await loadModel(lab.folders.model);
  const rows = arms.map((own): SweepRow => {
    const { unet, textEncoder } = capacityOf(
      model,
      own.arm.n,
      own.arm.rank ?? 0,
    );
    return rowOf(own, Math.max(unet[1], textEncoder[1]));
  });
  disposeModel(model);
  return rows.map((row) => ({ ...row, ...compared(row, rows) }));
}

/** Means of an arm. */
function rowOf(
  { arm, rows }: ArmScores<SweepArm>,
  capacity: number,
): SweepRow {
  const names = [...new Set(rows.map(({ concept }) => concept))];
  const of = (score: ScoreName | "heldout") => conceptMeans(rows, names, score);
  const byConcept = (score: ScoreName | "heldout") =>
    Object.fromEntries(of(score).map((v, i) => [names[i], rounded(v)]));
  return {
    ...arm,
    ...perScore((score) => rounded(mean(of(score)))),
    capacity,
    concepts: byConcept("image"),
    heldout: rounded(mean(of("heldout"))),
    errors: byConcept("heldout"),
  };
}

/** What a fused arm loses and keeps, of the concepts that are fused in it. */
function compared(
  row: SweepRow,
  rows: readonly SweepRow[],
): Pick<SweepRow, "loss" | "kept" | "heldoutKept" | "overWeight"> {
  if (row.fusion === "none") return {};
  const { embedding, variant, rank, fusion, n, value } = row;
  const other = (fusion: SweepRow["fusion"], n: number) =>
    rows.find((one) =>
      one.fusion === fusion && one.embedding === embedding &&
      one.variant === variant && one.rank === rank && one.n === n &&
      (fusion === "none" || one.value === 1 / n)
    )!;
  const values = ({ concepts }: SweepRow) =>
    Object.keys(row.concepts).map((name) => concepts[name]);
  const own = values(row), single = values(other("none", 1));
  // Lower is better.
  const gains = ({ errors }: SweepRow) =>
    Object.keys(row.errors).map((name) => -errors[name]);
  const random = fold(
    key(0),
    ...["sweep", embedding, variant, rank ?? 0, fusion, n, String(value)],
  );
  return {
    loss: finite(pairedDifference(single, own)),
    kept: finite(retainedShare(own, single, values(rows[0]), random)),
    heldoutKept: finite(
      retainedShare(
        gains(row),
        gains(other("none", 1)),
        gains(rows[0]),
        fold(random, "heldout"),
      ),
    ),
    overWeight: fusion === "gradient"
      ? finite(pairedDifference(own, values(other("sum", n))))
      : undefined,
  };
}
