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
import type { Found } from "../../evaluation/regions.ts";
import {
  hierarchicalBootstrap,
  mean,
  type Nested,
} from "../../evaluation/statistics.ts";
import {
  type Report,
  type ReportPart,
  tablePart,
} from "../../report/document.ts";
import { type Figure, plot, type Series } from "../../report/figure.ts";
import { type Interval, interval } from "../../report/format.ts";
import { type Column, type Table, tableOf } from "../../report/table.ts";
import { knowsPlaces, REGION_ARMS, REGION_FUSIONS } from "./scenes.ts";

/** What was found in one region. */
export interface RegionFinding extends Found {
  /** The concept that should be there. */
  readonly concept: string;
  /** Masked alignment with it. */
  readonly own: number;
  /** The largest with another concept of the picture. */
  readonly other: number;
}

/** Scores of one picture. */
export interface RegionRow {
  /** How it was drawn. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Concepts from left to right. */
  readonly concepts: readonly string[];
  /** The scene's background. */
  readonly background: string;
  /** Number of the picture within its layout. */
  readonly picture: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Name of the picture in the store. */
  readonly image: string;
  /** Text alignment of the whole picture, with class words in the caption. */
  readonly text: number;
  /** What was found, from left to right. */
  readonly regions: readonly RegionFinding[];
  /** Concepts from left to right in the order that fits the picture best. */
  readonly order: readonly string[];
}

/** Name of a score, in the order of the table. */
export type RegionScore =
  | "identity"
  | "nearest"
  | "replaced"
  | "leakage"
  | "missing"
  | "occupied"
  | "complete"
  | "anyOrder"
  | "anyOrderLeakage"
  | "own"
  | "text";

/** A score: how it is computed and shown. */
export interface RegionScoreKind {
  /** Title in tables; the arrow shows which direction is better. */
  readonly title: string;
  /** The score of a picture. */
  readonly of: (row: RegionRow) => number;
  /**
   * Whether it depends on places; it is not computed for arms that do not
   * specify them.
   */
  readonly byPlace?: boolean;
  /** Whether arms are compared by it. */
  readonly compared?: boolean;
}

/**
 * A test of a region's finding, given its concept and all concepts of the
 * picture.
 */
type RegionTest = (
  found: RegionFinding,
  concept: string,
  all: readonly string[],
) => boolean;

const isRight: RegionTest = ({ label }, concept) => label === concept;
const isNearest: RegionTest = ({ own, other }) => own > other;
const isReplaced: RegionTest = ({ label }, concept, all) =>
  label !== concept && all.includes(label);
const isMixed: RegionTest = ({ seen }, concept, all) =>
  seen.some((name) => name !== concept && all.includes(name));
const isEmpty: RegionTest = ({ label }) => label === "background";
const isFull: RegionTest = ({ label }) => label !== "background";

/** The share of regions that pass, with the concepts in one of two orders. */
function share(test: RegionTest, order: "concepts" | "order" = "concepts") {
  return (row: RegionRow) => {
    const passed = row.regions.filter((found, i) =>
      test(found, row[order][i], row.concepts)
    );
    return passed.length / row.regions.length;
  };
}

/** Whether all regions pass. */
const whole = (test: RegionTest) => (row: RegionRow) =>
  share(test)(row) === 1 ? 1 : 0;

type Score = RegionScoreKind["of"];
const compared = (title: string, of: Score) => ({ title, of, compared: true });
const placed = (title: string, of: Score) => (
  { title, of, compared: true, byPlace: true }
);

/** Scores of a picture, in the order of the table. */
export const REGION_SCORES: Readonly<Record<RegionScore, RegionScoreKind>> = {
  identity: placed("identity per region ↑", share(isRight)),
  nearest: placed("own nearest of the picture's ↑", share(isNearest)),
  replaced: placed("replaced by another ↓", share(isReplaced)),
  leakage: placed("another seen there ↓", share(isMixed)),
  missing: { title: "no identity there ↓", of: share(isEmpty) },
  occupied: { title: "an identity in every region ↑", of: whole(isFull) },
  complete: { title: "all in place ↑", of: whole(isRight), byPlace: true },
  anyOrder: compared("identity, any order ↑", share(isRight, "order")),
  anyOrderLeakage: compared(
    "another seen, any order ↓",
    share(isMixed, "order"),
  ),
  own: placed(
    "masked alignment ↑",
    ({ regions }) => mean(regions.map(({ own }) => own)),
  ),
  text: { title: "text ↑", of: ({ text }) => text },
};

const SCORE_KINDS = Object.entries(REGION_SCORES) as [
  RegionScore,
  RegionScoreKind,
][];

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
  /** Format and version of the document. */
  readonly format: "mix-of-show regions 6";
  /** Proper names of all fused concepts. */
  readonly concepts: readonly string[];
  /** Every picture. */
  readonly rows: readonly RegionRow[];
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

/** One line of the table. */
export interface RegionCell {
  /** How pictures were drawn. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Number of pictures. */
  readonly pictures: number;
  /** Means with 95 % intervals (hierarchical bootstrap over combinations). */
  readonly scores: Readonly<Record<RegionScore, Interval>>;
}

/** Values of rows, nested by combination of concepts and background. */
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
  const [first, second] = [better, worse].map(regionLabel);
  const placed = knowsPlaces(better, n) && knowsPlaces(worse, n);
  return SCORE_KINDS.filter(([, kind]) =>
    kind.compared && (placed || !kind.byPlace)
  ).map(([score, { of, title }]) =>
    compare(
      {
        id: `${n}: ${better} > ${worse}`,
        claim: `${n} concepts: ${first}, against ${second}`,
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
  const groups = Map.groupBy(rows, (r) => `${r.arm} ${r.n} ${r.scale}`);
  const cells = [...groups.values()].map(cellOf).sort((a, b) =>
    a.n - b.n || arms.indexOf(a.arm) - arms.indexOf(b.arm) || a.scale - b.scale
  );
  const counts = [...new Set(cells.map(({ n }) => n))];
  return {
    arms,
    table: cells.filter(({ scale }) => scale === 1),
    resolution: cells.filter(({ arm, n }) =>
      cells.some((c) => c.arm === arm && c.n === n && c.scale !== 1)
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
export function readRegions(json: unknown): RegionNumbers {
  const stored = json as RegionNumbers & {
    readonly settings?: Pick<RegionNumbers, "regions" | "windows">;
  };
  // Up to format 4 these were in the settings.
  const { regions, windows } = { ...stored.settings, ...stored };
  const format = "mix-of-show regions 6";
  return { ...stored, regions, windows, format, ...summarise(stored.rows) };
}

/** Names of arms in tables. */
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

/**
 * A score of a line, unless it depends on places that the arm does not specify.
 */
function fairScore(
  { arm, n, scores }: RegionCell,
  score: RegionScore,
): Interval | undefined {
  const unfair = REGION_SCORES[score].byPlace && !knowsPlaces(arm, n);
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

/** Scores that figures show. */
const SHOWN: readonly [RegionScore, string][] = [
  ["identity", "Right concept in its region"],
  ["nearest", "Own concept nearest of the picture's"],
  ["leakage", "Another concept seen in its region"],
];

/**
 * Figures by id: a score per arm, grouped by number of concepts.
 *
 * @param report The report.
 */
export function regionFigures(
  { table, arms }: Pick<RegionNumbers, "table" | "arms">,
): [string, Figure][] {
  const counts = [...new Set(table.map(({ n }) => n))];
  const series = (score: RegionScore, n: number): Series => ({
    name: `${n} concepts`,
    as: "bars",
    x: arms.map(regionLabel),
    y: arms.map((arm) => {
      const cell = table.find((one) => one.arm === arm && one.n === n);
      return cell && fairScore(cell, score);
    }),
  });
  return SHOWN.map(([score, title]) => [
    score,
    plot({ title, range: [0, 1], series: counts.map((n) => series(score, n)) }),
  ]);
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
  const table = (title: string, table: Table): ReportPart[] =>
    table.rows.length === 0 ? [] : [{ type: "table", title, table }];
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
