/**
 * The effect of the noise offset in training: the official code adds a random
 * constant with standard deviation 0.01 to each channel's noise, and its
 * authors call it the key to a stable identity.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { listOf, number } from "../core/options.ts";
import { fold, key } from "../core/random.ts";
import {
  compare,
  type Comparison,
  comparisonTable,
} from "../evaluation/compare.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import { figurePart, tablePart } from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { conceptPictures } from "./pictures.ts";
import { RUN_OPTIONS, TEST_CONCEPTS } from "./presets.ts";
import {
  armCells,
  type ArmScores,
  type Cell,
  estimate,
  nested,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import { CONCEPTS, oneDomain, subjects, training } from "./subjects.ts";

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts that are trained, as ED-LoRA",
  },
  offsets: {
    type: listOf(number({ least: 0 })),
    default: [0, 0.01, 0.1],
    help: "offsets of the noise, with 0",
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: { ...RUN_OPTIONS.seeds, default: [0, 1] },
} as const;

type NoiseOffsetPlan = Plan<typeof OPTIONS>;

/** Scores of one offset. */
export interface OffsetRow {
  /** Standard deviation of the constant added to each channel's noise. */
  readonly offset: number;
  /** Masked denoising error on held-out references; lower is better. */
  readonly heldout: Interval;
  /** Image alignment. */
  readonly image: Interval;
  /** Share of pictures whose nearest gallery entry is the identity. */
  readonly retrieval: Interval;
  /** Text alignment. */
  readonly text: Interval;
  /**
   * Instability of the identity: standard deviation of masked image alignment
   * over a concept's prompts and seeds, the mean over concepts.
   */
  readonly spread: number;
}

/** The numbers. */
export interface OffsetNumbers {
  /** A row per offset. */
  readonly rows: readonly OffsetRow[];
  /** Each offset against none. */
  readonly comparisons: readonly Comparison[];
}

function deviation(values: readonly number[]): number {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((v) => (v - middle) ** 2)));
}

async function compareOffsets(
  lab: Lab,
  plan: NoiseOffsetPlan,
): Promise<Outcome<OffsetNumbers>> {
  const { settings, offsets, seeds } = plan;
  const { sampling } = settings;
  const all = await subjects(lab, plan.concepts, plan.prompts, sampling);
  const cells: Cell<number>[] = [];
  for (const seed of seeds) {
    for (const noiseOffset of offsets) {
      const trained = await lab.train(
        all.map((one) =>
          training(settings, one, "edlora", seed, { noiseOffset })
        ),
      );
      cells.push(...armCells(noiseOffset, seed, all, trained));
    }
  }
  const { arms, drawn } = await scoreCells(lab, settings, all, cells);
  const names = all.map(({ name }) => name);
  const data: OffsetNumbers = {
    rows: arms.map((arm) => rowOf(arm, names)),
    comparisons: comparisonsOf(arms, names, plan.scale !== "quick"),
  };
  const sheet = await conceptPictures(
    lab,
    "noise-offset",
    drawn,
    (offset) => `offset ${offset}`,
    2,
  );
  return {
    data,
    report: {
      name: "noise-offset",
      title: "the offset of the training noise",
      lead: [
        "Spread is the standard deviation of masked image alignment over a " +
        "concept's prompts: it is small for a stable identity.",
      ],
      parts: [
        tablePart(offsetTable(data.rows)),
        tablePart(comparisonTable(data)),
        figurePart("heldout", {
          title: "Held-out error against the offset",
          xTitle: "offset",
          yTitle: "masked denoising error",
          legend: false,
          series: [{
            name: "held-out error",
            as: "lines+markers",
            x: data.rows.map(({ offset }) => String(offset)),
            y: data.rows.map(({ heldout }) => heldout),
          }],
        }),
        sheet,
      ],
    },
  };
}

function rowOf(
  { arm, rows }: ArmScores<number>,
  names: readonly string[],
): OffsetRow {
  const of = (score: ScoreName | "heldout") =>
    estimate(rows, names, score, fold(key(0), "noise-offset", arm, score));
  return {
    offset: arm,
    heldout: of("heldout"),
    image: of("image"),
    retrieval: of("retrieval"),
    text: of("text"),
    spread: mean(names.map((name) =>
      deviation(
        rows.filter(({ concept }) => concept === name)
          .flatMap(({ masked }) => masked),
      )
    )),
  };
}

/** Each offset against none. */
function comparisonsOf(
  arms: readonly ArmScores<number>[],
  names: readonly string[],
  conclusive: boolean,
): Comparison[] {
  const none = arms.find(({ arm }) => arm === 0)!;
  return arms.filter((one) => one !== none).flatMap(({ arm, rows }) =>
    (["heldout", "masked"] as const).map((score) =>
      compare(
        {
          id: `${arm} > 0`,
          claim: `an offset of ${arm} keeps more identity than none`,
          paper: arm === 0.01,
          score,
          less: score === "heldout",
        },
        nested(rows, names, score),
        nested(none.rows, names, score),
        { key: fold(key(0), "noise-offset", arm, score), conclusive },
      )
    )
  );
}

/**
 * The rows as a table.
 *
 * @param rows A row per offset.
 */
function offsetTable(rows: readonly OffsetRow[]): Table {
  return tableOf(rows, [
    ["offset", ({ offset }) => String(offset)],
    ["held-out error", ({ heldout }) => interval(heldout)],
    ["image", ({ image }) => interval(image)],
    ["text", ({ text }) => interval(text)],
    ["retrieval", ({ retrieval }) => interval(retrieval, 2)],
    ["spread", ({ spread }) => decimal(spread)],
  ]);
}

/** The offset of the training noise. */
export const noiseOffset = experiment({
  name: "noise-offset",
  summary: "Whether an offset of the training noise makes identity stable",
  about:
    `Trains concepts as ED-LoRA with several offsets of the noise, draws the
same pictures with each, and compares held-out error, alignment and its spread.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "1 concept, 4 prompts, 1 seed: smoke test, no conclusion",
      plan: { concepts: TEST_CONCEPTS.slice(0, 1), prompts: 4, seeds: [0] },
    },
  },
  check({ concepts, offsets }) {
    oneDomain(concepts);
    if (offsets.includes(0) && new Set(offsets).size > 1) return;
    throw cannot("compare offsets", "0 and another", offsets.join(", "));
  },
  run: compareOffsets,
});
