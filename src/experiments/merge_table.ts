/**
 * The comparison of ways to combine LoRAs, as a table and a figure.
 *
 * @module
 */
import {
  figurePart,
  type Report,
  type ReportPart,
  tablePart,
} from "../report/document.ts";
import {
  decimal,
  duration,
  type Interval,
  interval,
} from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import type { ScoreName } from "./scores.ts";

/** What a way needs besides the adapters. */
export type Needs = "nothing" | "statistics" | "runs" | "training" | "pictures";

/** Means over concepts, seeds and prompts of one way. */
export interface MergeRow extends Readonly<Record<ScoreName, number>> {
  /** The way's id; `single` before, `base` for the class word. */
  readonly way: string;
  /** Name in tables. */
  readonly label: string;
  /** What it needs; empty where nothing is combined. */
  readonly needs: Needs | "";
  /** Where its formula is from. */
  readonly source: string;
  /** Masked denoising error on held-out references; lower is better. */
  readonly heldout: Interval;
  /** Seconds at the centre, of all seeds. */
  readonly seconds: number | null;
  /** Seconds of one client's measuring. */
  readonly clientSeconds: number | null;
  /** Bytes that one client sends. */
  readonly bytes: number | null;
}

/** The numbers of the comparison. */
export interface MergeNumbers {
  /** A row per way, and the two bounds (single concepts and base model). */
  readonly rows: readonly MergeRow[];
}

/** Megabytes with two decimals, or a dash. */
function megabytes(bytes: number | null): string {
  return bytes === null ? "–" : `${decimal(bytes / 1e6, 2)} MB`;
}

function seconds(value: number | null): string {
  return value === null
    ? "–"
    : value < 10
    ? `${decimal(value, 1)} s`
    : duration(value);
}

/**
 * The rows as one table; the best held-out error after combination is marked.
 *
 * @param rows A row per way.
 */
export function mergeTable(rows: readonly MergeRow[]): Table {
  const errors = rows.filter(({ needs }) => needs !== "")
    .flatMap(({ heldout: { mean } }) => mean ?? []);
  const best = Math.min(...errors);
  return tableOf(rows, [
    ["way", ({ label }) => label],
    ["needs", ({ needs }) => needs],
    [
      "held-out error",
      ({ heldout, needs }) =>
        interval(heldout, 3) +
        (needs !== "" && heldout.mean === best ? " *" : ""),
    ],
    ["image", ({ image }) => decimal(image)],
    ["masked image", ({ masked }) => decimal(masked)],
    ["text", ({ text }) => decimal(text)],
    ["retrieval", ({ retrieval }) => decimal(retrieval, 2)],
    ["time, centre", (row) => seconds(row.seconds)],
    ["time, client", (row) => seconds(row.clientSeconds)],
    ["client sends", ({ bytes }) => megabytes(bytes)],
    ["formula", ({ source }) => source],
  ]);
}

/**
 * The whole report.
 *
 * @param rows A row per way.
 * @param n Number of concepts that were combined.
 * @param sheet Pictures of the same noise, a way per column; absent for stored
 * numbers.
 */
export function mergeReport(
  rows: readonly MergeRow[],
  n: number,
  sheet?: ReportPart,
): Report {
  // Adapters that are combined while sampling have no model whose error can be
  // measured.
  const measured = rows.filter(({ heldout }) => heldout.mean !== null);
  return {
    name: "merge",
    title: `every way to combine ${n} LoRAs`,
    lead: [
      "Held-out error is the masked denoising error on pictures that nothing " +
      "was trained on: lower is better; * marks the lowest of the ways.",
      "Needs are: nothing but the adapters; statistics of layers' inputs that " +
      "clients measured; runs of the clients' models at the centre; special " +
      "training by the clients; the pictures themselves.",
      "Each prompt names one concept. Ways that read the prompt (W-Switch, " +
      "W-Composite, regional adapters, FreeFuse) use the adapter of this concept " +
      "alone. The regions experiment compares regions of several concepts.",
    ],
    parts: [
      tablePart(mergeTable(rows)),
      figurePart("heldout", {
        title: "Held-out error of each way",
        yTitle: "masked denoising error",
        legend: false,
        series: [{
          name: "held-out error",
          as: "markers",
          x: measured.map(({ label }) => label),
          y: measured.map(({ heldout }) => heldout),
        }],
      }),
      ...(sheet ? [sheet] : []),
    ],
  };
}
