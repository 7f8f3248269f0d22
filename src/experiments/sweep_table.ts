/**
 * What a sweep found: a row per arm, and the best λ.
 *
 * @module
 */
import { verdictOf } from "../evaluation/compare.ts";
import { SD_CAPACITY } from "../fusion/capacity.ts";
import { decimal, interval } from "../report/format.ts";
import { type Column, type Table, tableOf } from "../report/table.ts";
import type { EmbeddingName } from "./presets.ts";
import type { ScoreName } from "./scores.ts";
import type { SweepRow } from "./sweep.ts";

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
