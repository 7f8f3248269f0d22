/**
 * A sweep: concepts are trained, fused and scored in every combination of what
 * its plan lists.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { fold, key } from "../core/random.ts";
import { conceptTensors, disposeConcept } from "../customize/concept.ts";
import type { TargetName } from "../customize/lora.ts";
import type { TrainConfig } from "../customize/train.ts";
import { finite, rounded } from "../evaluation/compare.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { loadConcept } from "../formats/concept_file.ts";
import { capacityOf } from "../fusion/capacity.ts";
import type { Lab } from "../lab/lab.ts";
import type { FuseSpec, GradientSettings, ModelRef } from "../lab/specs.ts";
import { canonicalJson, pathOf } from "../lab/store.ts";
import { disposeModel, loadModel, type Model } from "../models/model.ts";
import type { Interval } from "../report/format.ts";
import type { EmbeddingName, ExperimentPreset } from "./presets.ts";
import {
  armCells,
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
  /** Proper names; for a count n the first n are fused. */
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
   * Factors λ of the sum. If anything is fused, λ = 1/n (n with distractors) is
   * always included.
   */
  readonly lambdas?: readonly number[];
  /** Ridges of gradient fusion. */
  readonly ridges?: readonly GradientSettings["ridge"][];
  /** Ranks of adapters. @default the preset's */
  readonly ranks?: readonly number[];
  /** Layers with an adapter, fused by gradient, too. @default the preset's */
  readonly layers?: readonly TargetName[];
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
  /** Layers with an adapter; absent for the base. */
  readonly layers?: TargetName;
  /** How concepts were fused. */
  readonly fusion: "none" | "sum" | "gradient";
  /** Number of fused concepts, distractors included; 1 if nothing is fused. */
  readonly n: number;
  /** λ or ridge. */
  readonly value: GradientSettings["ridge"] | null;
}

/** The size of a trained concept. */
export interface ConceptSize {
  /** Trained parameters, tokens included. */
  readonly parameters: number;
  /** Layers with an adapter. */
  readonly adapted: number;
  /** Bytes of its file. */
  readonly bytes: number;
}

/** Means over concepts, seeds and prompts of one arm. */
export interface SweepRow
  extends SweepArm, Readonly<Record<ScoreName, number>> {
  /** Largest n·r/d of an adapted layer; 0 for the base. */
  readonly capacity: number;
  /** Size of each concept; of single concepts. */
  readonly size?: ConceptSize;
  /** Seconds of the fusion; of fused arms. */
  readonly seconds?: number;
  /** Bytes of the fused concepts' files; of fused arms. */
  readonly bytes?: number;
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
  /**
   * Held-out error of the sum at λ = 1/n − that of gradient fusion, paired by
   * concept: positive if gradient fusion keeps more.
   */
  readonly overWeight?: Interval;
}

/** Refuses a plan whose lists are inconsistent. */
export function checkSweep(
  { concepts, counts = [], ranks = [], ridges = [] }: SweepPlan,
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
  for (const ridge of ridges) {
    if (ridge !== "auto" && ridge < 0) {
      throw cannot("sweep", "ridges ≥ 0", ridge);
    }
  }
}

/** The fusions of n concepts that a plan has. */
function fusionsOf(
  { lambdas = [], ridges = [], settings }: SweepPlan,
  layers: TargetName,
  n: number,
): (Pick<SweepArm, "fusion" | "value"> & { how: FuseSpec["how"] })[] {
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
        settings: { ...settings.gradient, layers, ridge },
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
  const { settings, concepts, distractors = [], seeds } = plan;
  const { counts = [concepts.length] } = plan;
  const all = await subjects(
    lab,
    [...concepts, ...distractors],
    plan.prompts,
    settings.sampling,
  );
  const scored = all.slice(0, concepts.length);
  const none = { fusion: "none", n: 1, value: null } as const;
  const cells: Cell<SweepArm>[] = [];
  const fusions: Fusion[] = [];
  for (const seed of seeds) {
    const lower: SweepArm = { embedding: "base", variant: "", ...none };
    cells.push(...armCells(lower, seed, scored));
    for (const own of trainedArms(plan)) {
      const { embedding, rank, layers, change, ...names } = own;
      const trained = { embedding, rank, layers, ...names };
      const singles = await lab.train(all.map((subject) => {
        const changed = { ...settings, rank, layers };
        return training(changed, subject, embedding, seed, change);
      }));
      const single: SweepArm = { ...trained, ...none };
      cells.push(...armCells(single, seed, scored, singles));
      for (const count of counts) {
        const n = count + distractors.length;
        const ways = fusionsOf(plan, layers, n);
        const chosen = singles.filter((_, i) => i < count || i >= scored.length)
          .map(({ model }) => model.id);
        const fused = await lab.fuse(
          ways.map(({ how }) => ({ concepts: chosen, how, seed })),
        );
        for (const [k, { fusion, value }] of ways.entries()) {
          const arm: SweepArm = { ...trained, fusion, n, value };
          const { seconds, model } = fused[k];
          fusions.push({ arm, seconds, concepts: chosen });
          const own = scored.slice(0, count);
          cells.push(...armCells(arm, seed, own, singles, model));
        }
      }
    }
  }
  const { arms } = await scoreCells(lab, settings, scored, cells);
  const model = await loadModel(lab.folders.model);
  try {
    const rows: SweepRow[] = [];
    for (const own of arms) {
      const { n, rank = 0, layers } = own.arm;
      const { unet, textEncoder } = capacityOf(model, n, rank, layers);
      const cell = cells.find(({ arm }) => arm === own.arm);
      rows.push({
        ...rowOf(own, Math.max(unet[1], textEncoder[1])),
        size: await sizeOf(lab, model, cell!.model),
        ...await costOf(lab, own.arm, fusions),
      });
    }
    return rows.map((row) => ({ ...row, ...compared(row, rows) }));
  } finally {
    disposeModel(model);
  }
}

/** All training arms of a plan. */
function trainedArms(plan: SweepPlan) {
  const { settings, embeddings } = plan;
  const { ranks = [settings.rank], layers = [settings.layers] } = plan;
  const variants = Object.entries(plan.variants ?? { "": {} });
  return embeddings.flatMap((embedding) =>
    ranks.flatMap((rank) =>
      layers.flatMap((layers) =>
        variants.map(([variant, change]) => (
          { embedding, rank, layers, variant, change }
        ))
      )
    )
  );
}

/** Size of a trained concept; undefined for the base and for fused models. */
async function sizeOf(
  lab: Lab,
  base: Model,
  model: ModelRef,
): Promise<ConceptSize | undefined> {
  if (model.type !== "concept") return undefined;
  const path = pathOf.concept(lab.folders.store, model.id);
  const concept = await loadConcept(path, base);
  try {
    const { textEncoder, unet } = concept.adapter;
    const sizes = [...conceptTensors(concept).values()].map(({ size }) => size);
    return {
      parameters: sizes.reduce((sum, size) => sum + size, 0),
      adapted: textEncoder.size + unet.size,
      bytes: await fileBytes(path),
    };
  } finally {
    disposeConcept(concept);
  }
}

/** A fusion that was run. */
interface Fusion {
  readonly arm: SweepArm;
  readonly seconds: number;
  /** Names of the concepts in the store. */
  readonly concepts: readonly string[];
}

/** Mean cost of the fusions of an arm, over seeds. */
async function costOf(
  lab: Lab,
  arm: SweepArm,
  fusions: readonly Fusion[],
): Promise<Pick<SweepRow, "seconds" | "bytes">> {
  const name = canonicalJson(arm);
  const own = fusions.filter((one) => canonicalJson(one.arm) === name);
  if (own.length === 0) return {};
  const files = own[0].concepts.map((id) =>
    fileBytes(pathOf.concept(lab.folders.store, id))
  );
  return {
    seconds: rounded(mean(own.map(({ seconds }) => seconds))),
    bytes: (await Promise.all(files)).reduce((sum, bytes) => sum + bytes, 0),
  };
}

async function fileBytes(path: string): Promise<number> {
  return (await machine.files.stat(path))!.size;
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

/** What a fused arm loses and keeps, for its fused concepts. */
function compared(
  row: SweepRow,
  rows: readonly SweepRow[],
): Pick<SweepRow, "loss" | "kept" | "heldoutKept" | "overWeight"> {
  if (row.fusion === "none") return {};
  const { embedding, variant, rank, layers, fusion, n, value } = row;
  const other = (fusion: SweepRow["fusion"], n: number) =>
    rows.find((one) =>
      one.fusion === fusion && one.embedding === embedding &&
      one.variant === variant && one.rank === rank &&
      one.layers === layers && one.n === n &&
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
    ...["sweep", embedding, variant, rank ?? 0, layers ?? "", fusion, n],
    String(value),
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
      ? finite(pairedDifference(gains(row), gains(other("sum", n))))
      : undefined,
  };
}
