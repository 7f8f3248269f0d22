/**
 * The ablation's grids as tables.
 *
 * @module
 */
import { type Comparison, comparisonTable } from "../evaluation/compare.ts";
import { type Report, type ReportPart, tablePart } from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import type { EmbeddingName } from "./presets.ts";

/** An arm: an embedding and a fusion. */
export interface Fig7Arm {
  /** The embedding. */
  readonly embedding: EmbeddingName;
  /** The fusion; `none` before it. */
  readonly fusion: "none" | "weight" | "gradient";
}

/** Means of an arm over concepts, seeds and prompts. */
export interface Fig7Row
  extends Fig7Arm, Readonly<Record<"text" | "image" | "heldout", Interval>> {}

/** Two concepts in one picture. */
export interface Fig7Pair {
  /** Left and right. */
  readonly concepts: readonly [string, string];
  /** Masked image alignment of each half with its own concept. */
  readonly own: Readonly<Record<"prompt" | "regions", number>>;
  /** The same with the other half's concept. */
  readonly other: Readonly<Record<"prompt" | "regions", number>>;
}

/** The numbers of the figure. */
export interface Fig7Numbers {
  /** A row per arm. */
  readonly rows: readonly Fig7Row[];
  /** A row per pair. */
  readonly pairs: readonly Fig7Pair[];
  /** The claims about the grids. */
  readonly comparisons: readonly Comparison[];
}

const LABELS = { none: "alone", weight: "weight", gradient: "gradient" };

/**
 * The name of an arm.
 *
 * @param arm Embedding and fusion.
 */
export function fig7Label({ embedding, fusion }: Fig7Arm): string {
  return `${embedding === "lora" ? "LoRA" : "ED-LoRA"}, ${LABELS[fusion]}`;
}

/**
 * Embedding and fusion, as a table.
 *
 * @param numbers The numbers.
 */
export function fig7Table({ rows }: Pick<Fig7Numbers, "rows">): Table {
  return tableOf(rows, [
    ["embedding, fusion", fig7Label],
    ["text", ({ text }) => interval(text)],
    ["image", ({ image }) => interval(image)],
    ["held-out error", ({ heldout }) => interval(heldout)],
  ]);
}

/**
 * Regions, as a table.
 *
 * @param numbers The numbers.
 */
export function pairTable({ pairs }: Pick<Fig7Numbers, "pairs">): Table {
  return tableOf(pairs, [
    ["masked image alignment", ({ concepts }) => concepts.join(" + ")],
    ["own, one prompt", ({ own }) => decimal(own.prompt)],
    ["own, regions", ({ own }) => decimal(own.regions)],
    ["the other's, one prompt", ({ other }) => decimal(other.prompt)],
    ["the other's, regions", ({ other }) => decimal(other.regions)],
  ]);
}

/**
 * The whole report.
 *
 * @param numbers The numbers.
 * @param sheets Pictures; absent for stored numbers.
 */
export function fig7Report(
  numbers: Fig7Numbers,
  sheets: readonly ReportPart[] = [],
): Report {
  return {
    name: "fig7",
    title: "the ablation: embedding, fusion, regions",
    lead: ["Every column of a grid has the same noise."],
    parts: [
      tablePart(fig7Table(numbers)),
      tablePart(comparisonTable(numbers)),
      tablePart(pairTable(numbers)),
      ...sheets,
    ],
  };
}
