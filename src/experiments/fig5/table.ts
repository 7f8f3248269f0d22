/**
 * Scores, differences, tables and figures of several concepts in one picture.
 *
 * @module
 */
import { fold, key } from "../../core/random.ts";
import {
  type Estimate,
  hierarchicalBootstrap,
  type Nested,
  nestedMean,
  tInterval,
} from "../../evaluation/statistics.ts";
import type { Figure } from "../../report/html.ts";
import type { Table } from "../../report/markdown.ts";
import { errorBars } from "../ablation_figures.ts";
import {
  COMPARED_SCORES,
  type ComparedScore,
  REGION_SCORES,
  type RegionRow,
  type RegionScore,
  scoreOf,
} from "./judge.ts";
import type { RegionReport } from "./run.ts";
import {
  knowsPlaces,
  REGION_ARMS,
  REGION_FUSIONS,
  RESOLUTION_ARMS,
} from "./scenes.ts";

/** One line of the table. */
export interface RegionCell {
  /** How pictures were drawn. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Pictures behind it. */
  readonly pictures: number;
  /** Means with 95 % intervals (hierarchical bootstrap over choices). */
  readonly scores: Readonly<Record<RegionScore, Estimate>>;
}

/** A difference between two arms, with two 95 % intervals. */
export interface RegionDifference extends Estimate {
  /**
   * Student's t over the means of choices: infinite, in JSON null, if there is
   * one choice.
   */
  readonly low: number;
  /** Upper end of the same interval. */
  readonly high: number;
  /** Hierarchical bootstrap: too narrow where there are few choices. */
  readonly bootstrap: Estimate;
}

/**
 * Differences that should be positive; of `replaced` and of leakage, negative.
 */
export interface RegionComparison {
  /** The arm that is expected to be better. */
  readonly better: string;
  /** The arm it is compared with. */
  readonly worse: string;
  /** Number of concepts. */
  readonly n: number;
  /** Choices of concepts behind the intervals. */
  readonly sets: number;
  /** Whether both arms were told who is where; else only any order counts. */
  readonly placed: boolean;
  /** The differences. */
  readonly differences: Readonly<Record<ComparedScore, RegionDifference>>;
}

/** Values of rows, nested by choice of concepts and background. */
function nested(
  rows: readonly RegionRow[],
  value: (row: RegionRow) => number,
): Nested[] {
  const sets = Map.groupBy(rows, ({ concepts }) => concepts.join());
  return [...sets.values()].map((own) =>
    [...Map.groupBy(own, ({ background }) => background).values()]
      .map((same) => same.map(value))
  );
}

function cellOf(
  arm: string,
  n: number,
  scale: number,
  rows: readonly RegionRow[],
): RegionCell {
  return {
    arm,
    n,
    scale,
    pictures: rows.length,
    scores: Object.fromEntries(
      REGION_SCORES.map((score) => [
        score,
        hierarchicalBootstrap(
          nested(rows, (row) => scoreOf(row, score)),
          fold(key(0), "regions", arm, n, score),
        ),
      ]),
    ) as Record<RegionScore, Estimate>,
  };
}

/** Pictures of the same scene and noise, in two arms. */
function paired(
  rows: readonly RegionRow[],
  better: string,
  worse: string,
  n: number,
): RegionComparison | undefined {
  const nameOf = (row: RegionRow) =>
    [row.n, ...row.concepts, row.background, row.picture].join();
  const own = (arm: string) =>
    rows.filter((row) => row.arm === arm && row.n === n && row.scale === 1);
  const other = new Map(own(worse).map((row) => [nameOf(row), row]));
  const both = own(better).filter((row) => other.has(nameOf(row)));
  if (both.length === 0) return undefined;
  const difference = (score: ComparedScore): RegionDifference => {
    const values = nested(
      both,
      (row) => scoreOf(row, score) - scoreOf(other.get(nameOf(row))!, score),
    );
    return {
      ...tInterval(values.map(nestedMean)),
      bootstrap: hierarchicalBootstrap(
        values,
        fold(key(0), "regions", better, worse, n, score),
      ),
    };
  };
  return {
    better,
    worse,
    n,
    sets: new Set(both.map(({ concepts }) => concepts.join())).size,
    placed: knowsPlaces(better, n) && knowsPlaces(worse, n),
    differences: Object.fromEntries(
      COMPARED_SCORES.map((score) => [score, difference(score)]),
    ) as Record<ComparedScore, RegionDifference>,
  };
}

/** Arms that are compared: the first is expected to be better. */
const PAIRS: readonly (readonly [string, string])[] = [
  ...REGION_FUSIONS.flatMap((fusion): [string, string][] => [
    [`regional.${fusion}`, `plain.${fusion}`],
    [`regional+negative.${fusion}`, `regional.${fusion}`],
    [`regional+sketch.${fusion}`, `regional.${fusion}`],
  ]),
  ["regional.gradient", "regional.weight"],
  ["regional.gradient", "region-adapters"],
  ["regional.gradient", "switch"],
  ["regional.gradient", "composite"],
];

/**
 * Scores of every arm, and differences between arms on the same scenes.
 *
 * @param rows Every picture.
 * @param counts Numbers of concepts.
 */
export function summarise(
  rows: readonly RegionRow[],
  counts: readonly number[],
): Pick<RegionReport, "arms" | "table" | "resolution" | "comparisons"> {
  const arms = REGION_ARMS.filter((arm) => rows.some((r) => r.arm === arm));
  const groups = Map.groupBy(
    rows,
    ({ arm, n, scale }) => [arm, n, scale].join(),
  );
  const cells = [...groups.values()]
    .map((own) => cellOf(own[0].arm, own[0].n, own[0].scale, own))
    .sort((a, b) =>
      a.n - b.n || arms.indexOf(a.arm) - arms.indexOf(b.arm) ||
      a.scale - b.scale
    );
  return {
    arms,
    table: cells.filter(({ scale }) => scale === 1),
    resolution: cells.filter(({ arm, n }) =>
      RESOLUTION_ARMS.includes(arm) &&
      cells.some((c) => c.n === n && c.scale !== 1)
    ),
    comparisons: counts.flatMap((n) =>
      PAIRS.flatMap(([better, worse]) => paired(rows, better, worse, n) ?? [])
    ),
  };
}

/** How arms are called in tables. */
export const REGION_LABELS: Readonly<Record<string, string>> = {
  real: "rendered (ceiling)",
  empty: "empty backgrounds (floor)",
  plain: "plain prompt",
  regional: "regions",
  "regional+negative": "regions + negative prompts",
  "regional+sketch": "regions + sketch adapter",
  "region-adapters": "adapter per region, not fused",
  switch: "LoRA Switch",
  composite: "LoRA Composite",
};

/**
 * How an arm is called: `plain prompt, gradient fusion`.
 *
 * @param arm The arm.
 */
export function regionLabel(arm: string): string {
  const [way, fusion] = arm.split(".");
  const label = REGION_LABELS[way] ?? way;
  return fusion === undefined ? label : `${label}, ${fusion} fusion`;
}

/** `0.75 [0.61, 0.88]`, or the mean alone where there is no interval. */
function shown(estimate: Estimate | undefined): string {
  if (!estimate || !Number.isFinite(estimate.mean)) return "–";
  const { mean, low, high } = estimate;
  const interval = Number.isFinite(low) && Number.isFinite(high)
    ? ` [${low.toFixed(2)}, ${high.toFixed(2)}]`
    : "";
  return mean.toFixed(2) + interval;
}

/** Scores that judge by place. */
const BY_PLACE: readonly RegionScore[] = [
  "identity",
  "nearest",
  "replaced",
  "leakage",
  "complete",
  "own",
];

/** A score of a line, unless it judges places that the arm was not told. */
function fairScore(
  { arm, n, scores }: RegionCell,
  score: RegionScore,
): Estimate | undefined {
  const unfair = BY_PLACE.includes(score) && !knowsPlaces(arm, n);
  return unfair ? undefined : scores[score];
}

const COLUMNS: readonly (readonly [RegionScore, string])[] = [
  ["identity", "identity per region ↑"],
  ["nearest", "own nearest of the picture's ↑"],
  ["replaced", "replaced by another ↓"],
  ["leakage", "another seen there ↓"],
  ["missing", "nobody there ↓"],
  ["occupied", "somebody in every region ↑"],
  ["complete", "all in place ↑"],
  ["anyOrder", "identity, any order ↑"],
  ["anyOrderLeakage", "another seen, any order ↓"],
  ["own", "masked alignment ↑"],
  ["text", "text ↑"],
];

function tableOf(
  cells: readonly RegionCell[],
  first: readonly string[],
  lead: (cell: RegionCell) => readonly string[],
): Table {
  return {
    head: [...first, ...COLUMNS.map(([, title]) => title), "pictures"],
    rows: cells.map((cell) => [
      ...lead(cell),
      ...COLUMNS.map(([score]) => shown(fairScore(cell, score))),
      String(cell.pictures),
    ]),
  };
}

/**
 * The main table: a line for every number of concepts and arm.
 *
 * @param report The report.
 */
export function regionTable(report: Pick<RegionReport, "table">): Table {
  return tableOf(
    report.table,
    ["concepts", "arm"],
    ({ n, arm }) => [String(n), regionLabel(arm)],
  );
}

/**
 * Scores against resolution (the paper's Fig 10: small faces).
 *
 * @param report The report.
 */
export function resolutionTable(
  report: Pick<RegionReport, "resolution">,
): Table {
  return tableOf(
    report.resolution,
    ["pixels of height", "arm"],
    ({ scale, arm }) => [String(64 * scale), regionLabel(arm)],
  );
}

/** Columns of the comparisons. */
const COMPARED: readonly (readonly [ComparedScore, string])[] = [
  ["identity", "identity ↑"],
  ["nearest", "own nearest of the picture's ↑"],
  ["replaced", "replaced by another ↓"],
  ["leakage", "another seen there ↓"],
  ["own", "masked alignment ↑"],
  ["anyOrder", "identity, any order ↑"],
  ["anyOrderLeakage", "another seen, any order ↓"],
];

/**
 * Differences between arms on the same scenes and noise: Student's t interval
 * over choices of concepts, then that of the bootstrap. Where an arm was not
 * told who is where, scores by place are left out.
 *
 * @param report The report.
 */
export function regionComparisonTable(
  report: Pick<RegionReport, "comparisons">,
): Table {
  const signed = (e: Estimate) => e.mean >= 0 ? `+${shown(e)}` : shown(e);
  const both = (difference: RegionDifference) => {
    const { low, high } = difference.bootstrap;
    return `${signed(difference)}; bootstrap [${low.toFixed(2)}, ${
      high.toFixed(2)
    }]`;
  };
  return {
    head: [
      "concepts",
      "choices",
      "arm",
      "against",
      ...COMPARED.map(([, title]) => title),
    ],
    rows: report.comparisons.map(
      ({ n, sets, better, worse, placed, differences }) => [
        String(n),
        String(sets),
        regionLabel(better),
        regionLabel(worse),
        ...COMPARED.map(([score]) =>
          BY_PLACE.includes(score) && !placed ? "–" : both(differences[score])
        ),
      ],
    ),
  };
}

/**
 * Time against the number of regions: of a step, and of a whole picture.
 *
 * @param report The report.
 */
export function regionTimingTable(
  report: Pick<RegionReport, "timing">,
): Table {
  return {
    head: [
      "regions",
      "ms a step",
      "against plain",
      "ms a picture",
      "against plain",
      "aim",
    ],
    rows: report.timing.map(({ regions, step, picture }) => [
      String(regions),
      (1000 * step.seconds).toFixed(1),
      step.ratio.toFixed(2),
      (1000 * picture.seconds).toFixed(0),
      picture.ratio.toFixed(2),
      `≤ ${(1 + 0.15 * regions).toFixed(2)}`,
    ]),
  };
}

/** A score per arm, grouped by number of concepts. */
function barsOf(
  { table, arms }: Pick<RegionReport, "table" | "arms">,
  score: RegionScore,
  title: string,
): Figure {
  const counts = [...new Set(table.map(({ n }) => n))];
  return {
    data: counts.map((n) => {
      const scores = arms.map((arm) => {
        const cell = table.find((one) => one.arm === arm && one.n === n);
        return cell && fairScore(cell, score);
      });
      return {
        type: "bar",
        name: `${n} concepts`,
        x: arms.map(regionLabel),
        y: scores.map((e) => e?.mean ?? null),
        error_y: errorBars(scores),
      };
    }),
    layout: {
      title: { text: title },
      barmode: "group",
      yaxis: { range: [0, 1] },
      xaxis: { tickangle: -30, automargin: true },
    },
  };
}

/** Own concept nearest, against height of the pictures (the paper's Fig 10). */
function resolutionFigure(cells: readonly RegionCell[]): Figure {
  return {
    data: [...Map.groupBy(cells, ({ arm }) => arm)].map(([arm, own]) => {
      const scores = own.map((cell) => fairScore(cell, "nearest"));
      return {
        type: "scatter",
        mode: "lines+markers",
        name: regionLabel(arm),
        x: own.map(({ scale }) => 64 * scale),
        y: scores.map((e) => e?.mean ?? null),
        error_y: errorBars(scores),
      };
    }),
    layout: {
      title: {
        text: "Own concept nearest of the picture's, against resolution",
      },
      xaxis: { title: { text: "pixels of height" } },
      yaxis: { range: [0, 1] },
    },
  };
}

/**
 * Figures by id: identity, nearest, leakage, resolution, time against regions.
 *
 * @param report The report.
 */
export function regionFigures(
  report: Omit<RegionReport, "created">,
): [string, Figure][] {
  const figures: [string, Figure][] = [
    ["identity", barsOf(report, "identity", "Right concept in its region")],
    [
      "nearest",
      barsOf(report, "nearest", "Own concept nearest of the picture's"),
    ],
    [
      "leakage",
      barsOf(report, "leakage", "Another concept seen in its region"),
    ],
  ];
  if (report.resolution.length > 0) {
    figures.push(["resolution", resolutionFigure(report.resolution)]);
  }
  if (report.timing.length > 0) {
    figures.push(["time", timingFigure(report)]);
  }
  return figures;
}

/** Time against that of a plain picture, and the aim. */
function timingFigure({ timing }: Pick<RegionReport, "timing">): Figure {
  const x = timing.map(({ regions }) => regions);
  const measured = (part: "step" | "picture", name: string) => ({
    type: "scatter",
    mode: "lines+markers",
    name,
    x,
    y: timing.map((one) => one[part].ratio),
  });
  return {
    data: [
      measured("picture", "whole picture"),
      measured("step", "sampling step"),
      {
        type: "scatter",
        mode: "lines",
        name: "aim",
        line: { dash: "dot" },
        x,
        y: x.map((regions) => 1 + 0.15 * regions),
      },
    ],
    layout: {
      title: { text: "Time with regions, against a plain picture" },
      xaxis: { title: { text: "regions" } },
      yaxis: { rangemode: "tozero" },
    },
  };
}
