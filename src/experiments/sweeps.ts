/**
 * How scores depend on λ of weight fusion, on the ridge of gradient fusion, on
 * the rank, on the number of fused concepts and on how concepts were trained.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import {
  file,
  listOf,
  number,
  type OptionTable,
  optionTable,
} from "../core/options.ts";
import { fold, key } from "../core/random.ts";
import type { TrainConfig } from "../customize/train.ts";
import { finite, rounded, verdictOf } from "../evaluation/compare.ts";
import {
  mean,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import { capacityOf, SD_CAPACITY } from "../fusion/capacity.ts";
import { readJson } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import type { FuseSpec } from "../lab/specs.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Column, type Table, tableOf } from "../report/table.ts";
import { type Experiment, experiment, type Plan } from "./experiment.ts";
import {
  type EmbeddingName,
  type ExperimentPreset,
  RUN_OPTIONS,
  TEST_CONCEPTS,
} from "./presets.ts";
import {
  type ArmScores,
  type Cell,
  conceptMeans,
  perScore,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import {
  CONCEPT,
  CONCEPTS,
  DEVELOPMENT_CONCEPTS,
  oneDomain,
  subjects,
  training,
} from "./subjects.ts";

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

function check({ concepts, counts = [], ranks = [] }: SweepPlan): void {
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
  check(plan);
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

/**
 * A sweep's rows as a table.
 *
 * @param rows From {@linkcode sweep}.
 * @param concepts Whose image alignment has a column each.
 */
export function sweepTable(
  rows: readonly SweepRow[],
  concepts: readonly string[],
): Table {
  const score = (name: ScoreName, head: string = name): Column<SweepRow> => [
    head,
    (row) => decimal(row[name]),
  ];
  return tableOf(rows, [
    ["embedding", ({ embedding }) => embedding],
    ["training", ({ variant }) => variant],
    ["rank", ({ rank }) => String(rank ?? "")],
    ["fusion", ({ fusion }) => fusion],
    ["n", ({ n }) => String(n)],
    [
      "λ or ridge",
      ({ value }) => value === null ? "" : String(Number(value.toPrecision(3))),
    ],
    [
      `n·r/d (SD: ≤ ${SD_CAPACITY})`,
      ({ capacity }) => decimal(capacity, 2),
    ],
    ["held-out", ({ heldout }) => decimal(heldout)],
    [
      "held-out kept",
      ({ heldoutKept }) => heldoutKept ? interval(heldoutKept, 2) : "",
    ],
    score("text"),
    score("image"),
    score("masked", "masked image"),
    score("retrieval"),
    ["image lost", ({ loss }) => loss ? interval(loss) : ""],
    ["image kept", ({ kept }) => kept ? interval(kept, 2) : ""],
    [
      "gradient − weight",
      ({ overWeight }) => overWeight ? interval(overWeight) : "",
    ],
    [
      "verdict",
      ({ overWeight }) =>
        overWeight ? verdictOf(overWeight, { paper: false }, true) : "",
    ],
    ...concepts.map((name): Column<SweepRow> => [
      name,
      (row) => decimal(row.concepts[name]),
    ]),
  ]);
}

/** Share of text alignment whose loss means that prompts are not followed. */
const TEXT_LOSS = 0.1;

/**
 * The λ with the least error on held-out references, for each embedding, among
 * those that still follow their prompts: text alignment no more than a tenth below that of
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
    if (!known || row.heldout < known.heldout) best[embedding] = row;
  }
  return Object.fromEntries(
    Object.entries(best).map(([embedding, row]) => [embedding, row.value!]),
  );
}

const rate = z.number().nonnegative();

/** A file of --variants: what may be changed in a training configuration. */
const VARIANTS = z.record(
  z.string(),
  z.strictObject({
    steps: z.int().positive(),
    batch: z.int().positive(),
    lr: z.strictObject({ embedding: rate, textEncoder: rate, unet: rate }),
    schedule: z.enum(["linear", "constant"]),
    warmup: z.int().nonnegative(),
    weightDecay: rate,
    clipNorm: rate,
    noiseOffset: rate,
    masked: z.boolean(),
    freezeDown: z.boolean(),
  }).partial(),
);

/** A file of --templates. */
const TEMPLATES = z.array(z.string().includes("{}")).min(1);

/** Options of every sweep. */
const OPTIONS = optionTable({
  concepts: { type: CONCEPTS, default: TEST_CONCEPTS, help: "concepts" },
  distractors: {
    type: listOf(CONCEPT, true),
    default: [],
    help: "concepts that are fused with them and not scored; in-domain ones " +
      "(niko, finn, ulla, zara) may be among them",
  },
  ...RUN_OPTIONS,
  values: {
    type: listOf(number()),
    default: [] as readonly number[],
    help: "what is swept",
  },
  variants: {
    type: file,
    help: 'training configurations, each in turn: {"name": {"steps": 200}}',
  },
  templates: {
    type: file,
    otherwise: '["photo of a {}", "{}"]',
    help: "prompts that gradient fusion's features come from, as a JSON list",
  },
});

/** What one sweep varies. */
interface Sweep {
  readonly name: string;
  readonly summary: string;
  /** Concepts by default: of one split, so that none is tuned and reported. */
  readonly split: "test" | "development";
  /** What --values are; nothing if there are none. */
  readonly values?: {
    readonly what: string;
    readonly default: readonly number[];
  };
  /** What is varied in the plan. */
  readonly vary: (
    values: readonly number[],
    settings: ExperimentPreset,
  ) => Partial<SweepPlan>;
  /** A line below the table. */
  readonly note?: (rows: readonly SweepRow[]) => string;
}

/** Reads the files that a sweep names, and varies what it varies. */
async function sweepPlan(
  { name, vary }: Sweep,
  plan: Plan<typeof OPTIONS>,
): Promise<SweepPlan> {
  const { settings, templates, variants, values } = plan;
  const varied = vary(values ?? [], settings);
  if (templates !== undefined && !varied.ridges) {
    throw cannot(name, "gradient fusion for --templates", "none");
  }
  if (plan.distractors.length > 0 && !varied.ridges && !varied.lambdas) {
    throw cannot(name, "fused concepts for --distractors", "none");
  }
  const { gradient } = settings;
  return {
    ...plan,
    ...varied,
    settings: templates === undefined ? settings : {
      ...settings,
      gradient: {
        ...gradient,
        templates: await readJson(templates, TEMPLATES),
      },
    },
    variants: variants === undefined
      ? undefined
      : await readJson(variants, VARIANTS) as Record<
        string,
        Partial<TrainConfig>
      >,
  };
}

function sweepExperiment(what: Sweep): Experiment<typeof OPTIONS> {
  const { name, summary, split, values, note } = what;
  const { values: list, ...others } = {
    ...OPTIONS,
    concepts: {
      ...OPTIONS.concepts,
      default: split === "test" ? TEST_CONCEPTS : DEVELOPMENT_CONCEPTS,
      help: `the ${split} concepts`,
    },
    variants: { ...OPTIONS.variants, needed: name === "tune" },
  };
  const options: OptionTable = values
    ? {
      values: { ...list, default: values.default, help: values.what },
      ...others,
    }
    : others;
  return experiment({
    ...{ name, summary, about: `${summary}.` },
    options: options as typeof OPTIONS,
    scales: {
      quick: {
        help: "2 concepts, 2 prompts, 2 values: mechanics only, no conclusion",
        plan: {
          concepts: others.concepts.default.slice(0, 2),
          prompts: 2,
          ...(values && {
            // No more concepts can be fused than there are.
            values: name === "count" ? [2] : values.default.slice(0, 2),
          }),
        },
      },
    },
    // Those of the rank sweep are its values.
    without: name === "rank" ? ["rank"] : [],
    check: async (plan) => check(await sweepPlan(what, plan)),
    async run(lab, plan) {
      const rows = await sweep(lab, await sweepPlan(what, plan));
      const table = sweepTable(rows, plan.concepts);
      return {
        data: { rows },
        report: {
          ...{ name, title: summary, lead: [] },
          parts: [{ type: "table", table, brief: true }],
        },
        note: note?.(rows),
      };
    },
  });
}

/** Scores against one setting each. */
export const SWEEPS: readonly Experiment<typeof OPTIONS>[] = [
  sweepExperiment({
    name: "lambda",
    summary: "Weight fusion against its factor λ (development concepts)",
    split: "development",
    values: { what: "factors", default: [0.15, 0.35, 0.5, 0.6, 0.7, 0.85, 1] },
    vary: (lambdas) => ({ lambdas }),
    note: (rows) =>
      `best λ: ${
        Object.entries(bestLambdas(rows))
          .map(([arm, value]) => `${arm} ${value}`).join(", ")
      }`,
  }),
  sweepExperiment({
    name: "ridge",
    summary: "Gradient fusion against its ridge (development concepts)",
    split: "development",
    values: { what: "ridges", default: [1e-6, 1e-3, 0.1, 0.3, 1, 3] },
    vary: (ridges) => ({ ridges }),
  }),
  sweepExperiment({
    name: "count",
    summary: "Scores against the number of fused concepts (test concepts)",
    split: "test",
    values: { what: "numbers of concepts", default: [2, 4, 6, 9, 12] },
    vary: (counts, { bestLambda, gradient }) => ({
      counts,
      lambdas: Object.values(bestLambda),
      ridges: [gradient.ridge],
    }),
  }),
  sweepExperiment({
    name: "tune",
    summary: "Single concepts under several training configurations " +
      "(development concepts)",
    split: "development",
    vary: () => ({}),
  }),
  sweepExperiment({
    name: "rank",
    summary: "Single, weight- and gradient-fused concepts at several ranks, " +
      "beside n·r/d (test concepts)",
    split: "test",
    values: { what: "ranks", default: [1, 2, 4] },
    vary: (ranks, { gradient }) => ({ ranks, ridges: [gradient.ridge] }),
  }),
];
