/**
 * Results of a sweep: a row per arm, figures, and the best λ.
 *
 * @module
 */
import { verdictOf } from "../evaluation/compare.ts";
import { SD_CAPACITY } from "../fusion/capacity.ts";
import { figurePart, type ReportPart } from "../report/document.ts";
import type { Series } from "../report/figure.ts";
import { decimal, interval } from "../report/format.ts";
import { type Column, type Table, tableOf } from "../report/table.ts";
import type { EmbeddingName } from "./presets.ts";
import { type ScoreName, TEXT_LOSS } from "./scores.ts";
import type { SweepRow } from "./sweep.ts";
import { armLabel } from "./table2/table.ts";

/**
 * A sweep's rows as a table.
 *
 * @param rows From {@linkcode sweep}.
 * @param concepts Concepts whose image alignment has a column.
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
    ["layers", ({ layers }) => layers ?? ""],
    ["adapted", ({ size }) => String(size?.adapted ?? "")],
    ["parameters", ({ size }) => String(size?.parameters ?? "")],
    [
      "files, KB",
      ({ size, bytes }) =>
        size || bytes ? decimal((size?.bytes ?? bytes!) / 1000, 0) : "",
    ],
    ["fusion", ({ fusion }) => fusion],
    ["n", ({ n }) => String(n)],
    ["λ or ridge", ({ value }) => value === null ? "" : shortNumber(value)],
    [
      `n·r/d (SD: ≤ ${SD_CAPACITY})`,
      ({ capacity }) => decimal(capacity, 2),
    ],
    ["fusion, s", ({ seconds }) => seconds ? decimal(seconds, 1) : ""],
    ["held-out", ({ heldout }) => decimal(heldout)],
    [
      "held-out kept",
      ({ heldoutKept }) => heldoutKept ? interval(heldoutKept, 2) : "",
    ],
    [
      "held-out, weight − gradient",
      ({ overWeight }) => overWeight ? interval(overWeight) : "",
    ],
    [
      "verdict",
      ({ overWeight }) =>
        overWeight ? verdictOf(overWeight, { paper: false }, true) : "",
    ],
    score("text"),
    score("image"),
    score("masked", "masked image"),
    score("retrieval"),
    ["image lost", ({ loss }) => loss ? interval(loss) : ""],
    ["image kept", ({ kept }) => kept ? interval(kept, 2) : ""],
    ...concepts.map((name): Column<SweepRow> => [
      name,
      (row) => decimal(row.concepts[name]),
    ]),
  ]);
}

/** Three digits; other values unchanged. */
function shortNumber(value: number | string): string {
  return typeof value === "string" ? value : String(+value.toPrecision(3));
}

/** The horizontal axis of a sweep's figures. */
export interface SweepAxis {
  /** Its title. */
  readonly title: string;
  /**
   * The position of an arm on it; undefined for an arm that does not depend on
   * it.
   */
  readonly at: (row: SweepRow) => number | string | null | undefined;
}

const FUSION_LABELS: Readonly<Record<SweepRow["fusion"], string>> = {
  none: "single",
  sum: "sum",
  gradient: "gradient fusion",
};

/**
 * Arms of one embedding and one fusion as a line; an arm without a position is
 * a horizontal line.
 */
function seriesOf(
  rows: readonly SweepRow[],
  { at }: SweepAxis,
  y: (row: SweepRow) => Series["y"][number],
): Series[] {
  const places = [
    ...new Set(rows.flatMap((row) => {
      const place = at(row);
      return place === null || place === undefined ? [] : [shortNumber(place)];
    })),
  ];
  const severalLayers = new Set(rows.map(({ layers }) => layers)).size > 1;
  const lines = Map.groupBy(rows, (row) => {
    const { embedding, fusion, variant, layers, value, n } = row;
    const lambda = fusion !== "sum" || at(row) === value
      ? ""
      : value === 1 / n
      ? "1/n"
      : `λ ${shortNumber(value!)}`;
    const apart = at(row) === variant ? "" : variant;
    const parts = [armLabel(embedding), FUSION_LABELS[fusion], lambda];
    return [...parts, apart, severalLayers ? layers : ""]
      .filter((part) => part).join(", ");
  });
  return [...lines].map(([name, own]): Series => {
    const [first] = own;
    return at(first) === null
      ? {
        ...{ name, as: "lines", dotted: true },
        ...{ x: places, y: places.map(() => y(first)) },
      }
      : {
        ...{ name, as: "lines+markers" },
        ...{ x: own.map((row) => shortNumber(at(row)!)), y: own.map(y) },
      };
  });
}

/**
 * The figures of a sweep, against the swept value: the share of the gain in
 * held-out error that is kept (without fusion, that error), and text alignment.
 *
 * @param rows From {@linkcode sweep}.
 * @param axis What was swept.
 */
export function sweepFigures(
  rows: readonly SweepRow[],
  axis: SweepAxis,
): ReportPart[] {
  const shown = rows.filter((row) =>
    row.embedding !== "base" && axis.at(row) !== undefined
  );
  const fused = shown.filter(({ fusion }) => fusion !== "none");
  const figure = (
    id: string,
    title: string,
    yTitle: string,
    own: readonly SweepRow[],
    y: (row: SweepRow) => Series["y"][number],
  ): ReportPart[] =>
    own.length === 0 ? [] : [figurePart(id, {
      ...{ title, xTitle: axis.title, yTitle },
      series: seriesOf(own, axis, y),
    })];
  return [
    ...figure(
      "kept",
      "Identity kept in fusion",
      "held-out gain kept",
      fused,
      ({ heldoutKept }) => heldoutKept,
    ),
    ...figure(
      "single",
      "Single concepts",
      "held-out error",
      shown.filter(({ fusion }) => fusion === "none"),
      ({ heldout }) => heldout,
    ),
    ...figure(
      "text",
      "Prompts followed",
      "text alignment",
      fused,
      ({ text }) => text,
    ),
  ];
}

/**
 * The λ with the least error on held-out references, for each embedding, among
 * those that still follow their prompts (text alignment at most a tenth below
 * that of the single-concept models).
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
    Object.entries(best).map((
      [embedding, { value }],
    ) => [embedding, value as number]),
  );
}
