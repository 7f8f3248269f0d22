/**
 * Tables and plotly figures of the regions experiment, from its report alone:
 * for the command line, the HTML report and notebooks.
 *
 * @module
 */
import type { Estimate } from "../evaluation/statistics.ts";
import type { PlotlyFigure, TextTable } from "./ablation_figures.ts";
import type { RegionCell, RegionReport, RegionScore } from "./regions.ts";

/** How arms are called in tables. */
export const REGION_LABELS: Readonly<Record<string, string>> = {
  real: "rendered (ceiling)",
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
function shown({ mean, low, high }: Estimate): string {
  if (!Number.isFinite(mean)) return "–";
  const interval = Number.isFinite(low) && Number.isFinite(high)
    ? ` [${low.toFixed(2)}, ${high.toFixed(2)}]`
    : "";
  return mean.toFixed(2) + interval;
}

const COLUMNS: readonly (readonly [RegionScore, string])[] = [
  ["identity", "identity per region ↑"],
  ["leakage", "leakage ↓"],
  ["missing", "nobody there ↓"],
  ["count", "as many as asked ↑"],
  ["complete", "all in place ↑"],
  ["anyOrder", "found anywhere ↑"],
  ["own", "masked alignment ↑"],
  ["text", "text ↑"],
];

function tableOf(
  cells: readonly RegionCell[],
  first: readonly string[],
  lead: (cell: RegionCell) => readonly string[],
): TextTable {
  return {
    head: [...first, ...COLUMNS.map(([, title]) => title), "pictures"],
    rows: cells.map((cell) => [
      ...lead(cell),
      ...COLUMNS.map(([score]) => shown(cell.scores[score])),
      String(cell.pictures),
    ]),
  };
}

/**
 * The main table: a line for every number of concepts and arm.
 *
 * @param report The report.
 */
export function regionTable(report: Pick<RegionReport, "table">): TextTable {
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
): TextTable {
  return tableOf(
    report.resolution,
    ["pixels of height", "arm"],
    ({ scale, arm }) => [String(64 * scale), regionLabel(arm)],
  );
}

/**
 * Differences between arms on the same scenes and noise.
 *
 * @param report The report.
 */
export function regionComparisonTable(
  report: Pick<RegionReport, "comparisons">,
): TextTable {
  const sign = (e: Estimate) => e.mean >= 0 ? `+${shown(e)}` : shown(e);
  return {
    head: [
      "concepts",
      "arm",
      "against",
      "identity",
      "leakage",
      "masked alignment",
    ],
    rows: report.comparisons.map(({ n, better, worse, ...differences }) => [
      String(n),
      regionLabel(better),
      regionLabel(worse),
      sign(differences.identity),
      sign(differences.leakage),
      sign(differences.own),
    ]),
  };
}

/**
 * Time of a sampling step against the number of regions.
 *
 * @param report The report.
 */
export function regionTimingTable(
  report: Pick<RegionReport, "timing">,
): TextTable {
  return {
    head: ["regions", "ms a step", "relative", "aim"],
    rows: report.timing.map(({ regions, seconds, ratio }) => [
      String(regions),
      (1000 * seconds).toFixed(1),
      ratio.toFixed(2),
      `≤ ${(1 + 0.15 * regions).toFixed(2)}`,
    ]),
  };
}

/** Identity and leakage per arm, grouped by number of concepts. */
function barsOf(
  { table, arms }: Pick<RegionReport, "table" | "arms">,
  score: RegionScore,
  title: string,
): PlotlyFigure {
  const counts = [...new Set(table.map(({ n }) => n))];
  return {
    data: counts.map((n) => {
      const cells = arms.map((arm) =>
        table.find((cell) => cell.arm === arm && cell.n === n)
      );
      const at = (end: "low" | "high") =>
        cells.map((cell) => {
          const e = cell?.scores[score];
          return e && Number.isFinite(e[end]) ? Math.abs(e[end] - e.mean) : 0;
        });
      return {
        type: "bar",
        name: `${n} concepts`,
        x: arms.map(regionLabel),
        y: cells.map((cell) => cell?.scores[score].mean ?? null),
        error_y: {
          type: "data",
          symmetric: false,
          array: at("high"),
          arrayminus: at("low"),
        },
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

/** Identity against the height of the pictures (the paper's Fig 10). */
function resolutionFigure(cells: readonly RegionCell[]): PlotlyFigure {
  return {
    data: [...Map.groupBy(cells, ({ arm }) => arm)].map(([arm, own]) => {
      const scores = own.map((cell) => cell.scores.identity);
      const reach = (end: "low" | "high") =>
        scores.map((e) =>
          Number.isFinite(e[end]) ? Math.abs(e[end] - e.mean) : 0
        );
      return {
        type: "scatter",
        mode: "lines+markers",
        name: regionLabel(arm),
        x: own.map(({ scale }) => 64 * scale),
        y: scores.map((e) => e.mean),
        error_y: {
          type: "data",
          symmetric: false,
          array: reach("high"),
          arrayminus: reach("low"),
        },
      };
    }),
    layout: {
      title: { text: "Right concept in its region, against resolution" },
      xaxis: { title: { text: "pixels of height" } },
      yaxis: { range: [0, 1] },
    },
  };
}

/**
 * Figures by id: identity, leakage, resolution, time against regions.
 *
 * @param report The report.
 */
export function regionFigures(
  report: RegionReport,
): [string, PlotlyFigure][] {
  const figures: [string, PlotlyFigure][] = [
    ["identity", barsOf(report, "identity", "Right concept in its region")],
    ["leakage", barsOf(report, "leakage", "Another concept in its region")],
  ];
  if (report.resolution.length > 0) {
    figures.push(["resolution", resolutionFigure(report.resolution)]);
  }
  if (report.timing.length > 0) {
    figures.push(["time", timingFigure(report)]);
  }
  return figures;
}

/** Time of a step against the number of regions, and the aim. */
function timingFigure({ timing }: Pick<RegionReport, "timing">): PlotlyFigure {
  const x = timing.map(({ regions }) => regions);
  return {
    data: [
      {
        type: "scatter",
        mode: "lines+markers",
        name: "measured",
        x,
        y: timing.map(({ ratio }) => ratio),
      },
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
      title: { text: "Time of a step against the number of regions" },
      yaxis: { rangemode: "tozero" },
    },
  };
}
