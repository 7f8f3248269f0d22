/**
 * Scores, differences, tables and figures of several concepts in one picture.
 *
 * @module
 */
import { fold, key } from "../../core/random.ts";
import {
  compare,
  type Comparison,
  comparisonTable,
  finite,
} from "../../evaluation/compare.ts";
import {
  hierarchicalBootstrap,
  type Nested,
} from "../../evaluation/statistics.ts";
import {
  type Report,
  type ReportPart,
  tablePart,
} from "../../report/document.ts";
import { type Figure, plot } from "../../report/figure.ts";
import { decimal, type Interval, interval } from "../../report/format.ts";
import { type Column, type Table, tableOf } from "../../report/table.ts";
import { type RegionRow, type RegionScore, SCORE_KINDS } from "./score.ts";
import {
  knowsPlaces,
  REGION_ARMS,
  REGION_FUSIONS,
  RESOLUTION_ARMS,
} from "./scenes.ts";

/** A time with regions, and against the same without. */
export interface TimedPart {
  /** Median seconds with regions. */
  readonly seconds: number;
  /** Median of the ratios to the same part of a plain picture of the same size. */
  readonly ratio: number;
}

/** Times of the experiment's layout with a number of regions. */
export interface RegionTiming {
  /** Number of regions. */
  readonly regions: number;
  /** One sampling step. */
  readonly step: TimedPart;
  /** A whole picture: prompts and regions prepared, all steps, decoded. */
  readonly picture: TimedPart;
}

/** The number of cross-attention sites of the UNet at which regions act. */
export interface RegionSites {
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Sites at which every region has a cell. */
  readonly acting: number;
  /** All cross-attention sites. */
  readonly all: number;
}

/** The results that follow from the scores of pictures. */
export interface RegionSummary {
  /** Arms that were drawn, in the order of the table. */
  readonly arms: readonly string[];
  /** Scores at the usual resolution, a line per number of concepts and arm. */
  readonly table: readonly RegionCell[];
  /** The same at other resolutions. */
  readonly resolution: readonly RegionCell[];
  /** Differences on the same scenes and noise. */
  readonly comparisons: readonly Comparison[];
}

/** The numbers of the experiment. */
export interface RegionNumbers extends RegionSummary {
  /** What this document is. */
  readonly format: "mix-of-show regions 5";
  /** Proper names of all fused concepts. */
  readonly concepts: readonly string[];
  /** Time against the number of regions. */
  readonly timing: readonly RegionTiming[];
  /** Every picture. */
  readonly rows: readonly RegionRow[];
  /** Labels of the gallery. */
  readonly gallery: readonly string[];
  /** Edges of regions as shares of a column, and where regions act. */
  readonly regions: { readonly sites: readonly RegionSites[] };
  /** Sides of the windows that are embedded, shares of a column; their step. */
  readonly windows: {
    readonly sides: readonly number[];
    readonly step: number;
  };
  /** Factor λ of weight fusion. */
  readonly lambda: number;
}

/** A stored report. */
export interface RegionReport extends RegionNumbers {
  /** When it was made. */
  readonly created: string;
  /** How concepts were trained, fused and drawn. */
  readonly settings: Readonly<Record<string, unknown>>;
}

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
  readonly scores: Readonly<Record<RegionScore, Interval>>;
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

/** Means of pictures of one arm, number of concepts and resolution. */
function cellOf(rows: readonly RegionRow[]): RegionCell {
  const [{ arm, n, scale }] = rows;
  const scores = SCORE_KINDS.map(([name, { of }]) => [
    name,
    finite(hierarchicalBootstrap(
      nested(rows, of),
      fold(key(0), "regions", arm, n, name),
    )),
  ]);
  const pictures = rows.length;
  return { arm, n, scale, pictures, scores: Object.fromEntries(scores) };
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

/** Compares two arms on the scenes and noise that both have. */
function comparisonsOf(
  rows: readonly RegionRow[],
  n: number,
  [better, worse]: readonly [string, string],
): Comparison[] {
  const nameOf = (row: RegionRow) =>
    [...row.concepts, row.background, row.picture].join();
  const of = (arm: string) =>
    rows.filter((row) => row.arm === arm && row.n === n && row.scale === 1);
  const other = new Map(of(worse).map((row) => [nameOf(row), row]));
  const both = of(better).filter((row) => other.has(nameOf(row)));
  const sets = new Set(both.map(({ concepts }) => concepts.join())).size;
  if (sets === 0) return [];
  const placed = knowsPlaces(better, n) && knowsPlaces(worse, n);
  const fair = SCORE_KINDS.filter(([, kind]) =>
    kind.compared && (placed || !kind.byPlace)
  );
  return fair.map(([score, { of, title }]) =>
    compare(
      {
        id: `${n}: ${better} > ${worse}`,
        claim: `${n} concepts: ${regionLabel(better)}, against ${
          regionLabel(worse)
        }`,
        paper: false,
        score: title,
        less: title.endsWith("↓"),
      },
      nested(both, of),
      nested(both, (row) => of(other.get(nameOf(row))!)),
      {
        key: fold(key(0), "regions", better, worse, n, score),
        conclusive: sets > 1,
      },
    )
  );
}

/**
 * Scores of every arm, and differences between arms on the same scenes.
 *
 * @param rows Every picture.
 */
export function summarise(rows: readonly RegionRow[]): RegionSummary {
  const arms = REGION_ARMS.filter((arm) => rows.some((r) => r.arm === arm));
  const groups = Map.groupBy(
    rows,
    ({ arm, n, scale }) => [arm, n, scale].join(),
  );
  const cells = [...groups.values()].map(cellOf).sort((a, b) =>
    a.n - b.n || arms.indexOf(a.arm) - arms.indexOf(b.arm) || a.scale - b.scale
  );
  const counts = [...new Set(cells.map(({ n }) => n))];
  return {
    arms,
    table: cells.filter(({ scale }) => scale === 1),
    resolution: cells.filter(({ arm, n }) =>
      RESOLUTION_ARMS.includes(arm) &&
      cells.some((c) => c.n === n && c.scale !== 1)
    ),
    comparisons: counts.flatMap((n) =>
      PAIRS.flatMap((pair) => comparisonsOf(rows, n, pair))
    ),
  };
}

/**
 * Reads a stored report, of this format or an earlier one; all that follows
 * from the scores of its pictures is computed again.
 *
 * @param json What `regions.json` holds.
 */
export function readRegions(json: unknown): RegionReport {
  const stored = json as RegionReport;
  // Until format 4 the settings held them.
  const { regions, windows } = {
    ...stored.settings,
    ...stored,
  } as RegionNumbers;
  return {
    ...stored,
    ...{ regions, windows, format: "mix-of-show regions 5" as const },
    ...summarise(stored.rows),
  };
}

/** How arms are called in tables. */
const LABELS: Readonly<Record<string, string>> = {
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
 * The name of an arm: `plain prompt, gradient fusion`.
 *
 * @param arm The arm.
 */
export function regionLabel(arm: string): string {
  const [way, fusion] = arm.split(".");
  const label = LABELS[way] ?? way;
  return fusion === undefined ? label : `${label}, ${fusion} fusion`;
}

/** A score of a line, unless it judges places that the arm was not told. */
function fairScore(
  { arm, n, scores }: RegionCell,
  score: RegionScore,
): Interval | undefined {
  const unfair =
    SCORE_KINDS.some(([name, { byPlace }]) => name === score && byPlace) &&
    !knowsPlaces(arm, n);
  return unfair ? undefined : scores[score];
}

const SCORE_COLUMNS: readonly Column<RegionCell>[] = [
  ["arm", ({ arm }) => regionLabel(arm)],
  ...SCORE_KINDS.map(([score, { title }]): Column<RegionCell> => [
    title,
    (cell) => interval(fairScore(cell, score), 2),
  ]),
  ["pictures", ({ pictures }) => String(pictures)],
];

/**
 * The main table: a line for every number of concepts and arm.
 *
 * @param report The report.
 */
export function regionTable({ table }: Pick<RegionNumbers, "table">): Table {
  return tableOf(table, [["concepts", ({ n }) => String(n)], ...SCORE_COLUMNS]);
}

/**
 * Scores against resolution (the paper's Fig 10: small faces).
 *
 * @param report The report.
 */
export function resolutionTable(
  { resolution }: Pick<RegionNumbers, "resolution">,
): Table {
  return tableOf(resolution, [
    ["pixels of height", ({ scale }) => String(64 * scale)],
    ...SCORE_COLUMNS,
  ]);
}

/**
 * Time against the number of regions: of a step, and of a whole picture.
 *
 * @param report The report.
 */
export function regionTimingTable(
  { timing }: Pick<RegionNumbers, "timing">,
): Table {
  return tableOf(timing, [
    ["regions", ({ regions }) => String(regions)],
    ["ms per step", ({ step }) => decimal(1000 * step.seconds, 1)],
    ["against plain", ({ step }) => decimal(step.ratio, 2)],
    ["ms per picture", ({ picture }) => decimal(1000 * picture.seconds, 0)],
    ["against plain", ({ picture }) => decimal(picture.ratio, 2)],
    ["aim", ({ regions }) => `≤ ${decimal(aimOf(regions), 2)}`],
  ]);
}

/** Time against a plain picture that is hoped for. */
function aimOf(regions: number): number {
  return 1 + 0.15 * regions;
}

/** A score per arm, grouped by number of concepts. */
function barsOf(
  { table, arms }: Pick<RegionNumbers, "table" | "arms">,
  score: RegionScore,
  title: string,
): Figure {
  const counts = [...new Set(table.map(({ n }) => n))];
  return plot({
    title,
    range: [0, 1],
    series: counts.map((n) => ({
      name: `${n} concepts`,
      as: "bars",
      x: arms.map(regionLabel),
      y: arms.map((arm) => {
        const cell = table.find((one) => one.arm === arm && one.n === n);
        return cell && fairScore(cell, score);
      }),
    })),
  });
}

/** Own concept nearest, against height of the pictures (the paper's Fig 10). */
function resolutionFigure(cells: readonly RegionCell[]): Figure {
  return plot({
    title: "Own concept nearest of the picture's, against resolution",
    xTitle: "pixels of height",
    range: [0, 1],
    series: [...Map.groupBy(cells, ({ arm }) => arm)].map(([arm, own]) => ({
      name: regionLabel(arm),
      as: "lines+markers",
      x: own.map(({ scale }) => 64 * scale),
      y: own.map((cell) => fairScore(cell, "nearest")),
    })),
  });
}

/** Time against that of a plain picture, and the aim. */
function timingFigure(timing: readonly RegionTiming[]): Figure {
  const x = timing.map(({ regions }) => regions);
  const measured = (part: "step" | "picture", name: string) => ({
    ...{ name, as: "lines+markers" as const, x },
    y: timing.map((one) => one[part].ratio),
  });
  return plot({
    title: "Time with regions, against a plain picture",
    xTitle: "regions",
    series: [
      measured("picture", "whole picture"),
      measured("step", "sampling step"),
      { name: "aim", as: "lines", dotted: true, x, y: x.map(aimOf) },
    ],
  });
}

/**
 * Figures by id: identity, nearest, leakage, resolution, time against regions.
 *
 * @param report The report.
 */
export function regionFigures(
  report: Pick<RegionNumbers, "table" | "arms" | "resolution" | "timing">,
): [string, Figure][] {
  const { resolution, timing } = report;
  const bars = (score: RegionScore, title: string): [string, Figure] => [
    score,
    barsOf(report, score, title),
  ];
  return [
    bars("identity", "Right concept in its region"),
    bars("nearest", "Own concept nearest of the picture's"),
    bars("leakage", "Another concept seen in its region"),
    ...resolution.length === 0
      ? []
      : [["resolution", resolutionFigure(resolution)] as [string, Figure]],
    ...timing.length === 0
      ? []
      : [["time", timingFigure(timing)] as [string, Figure]],
  ];
}

/**
 * The whole report.
 *
 * @param report The numbers.
 * @param sheets Sheets of pictures.
 */
export function regionsReport(
  report: RegionNumbers,
  sheets: readonly Extract<ReportPart, { type: "pictures" }>[],
): Report {
  const table = (title: string, table: Table, brief = false): ReportPart[] =>
    table.rows.length === 0 ? [] : [{ type: "table", title, table, brief }];
  return {
    name: "regions",
    title: "several concepts in one picture",
    lead: [],
    parts: [
      tablePart(regionTable(report)),
      ...regionFigures(report).map(([id, figure]): ReportPart => (
        { type: "figure", id, figure }
      )),
      ...sheets,
      ...table("Same scenes, same noise", comparisonTable(report)),
      ...table("Resolution", resolutionTable(report)),
      ...table("Time", regionTimingTable(report), true),
      ...table(
        "Cross-attention sites at which regions act",
        tableOf(report.regions.sites, [
          ["concepts", ({ n }) => String(n)],
          ["pixels of height", ({ scale }) => String(64 * scale)],
          ["acting", ({ acting, all }) => `${acting} of ${all}`],
        ]),
      ),
    ],
  };
}
