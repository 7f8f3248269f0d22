/**
 * Training error against held-out error: rows, table and report.
 *
 * @module
 */
import type { TargetName } from "../customize/lora.ts";
import {
  figurePart,
  type Report,
  type ReportPart,
  tablePart,
} from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import type { EmbeddingName } from "./presets.ts";

/** How concepts were trained; the class word on the base model is null. */
export type OverfitArm = {
  /** The embedding. */
  readonly embedding: EmbeddingName;
  /** Layers with an adapter. */
  readonly layers: TargetName;
  /** Learning rate of the UNet's adapter. */
  readonly rate: number;
  /** Training steps. */
  readonly steps: number;
  /** Pictures that were trained on; null for all. */
  readonly pictures: number | null;
} | null;

/** Means over concepts and seeds of one arm. */
export interface OverfitRow {
  /** How concepts were trained. */
  readonly arm: OverfitArm;
  /** Masked denoising error on training pictures; lower is better. */
  readonly train: number;
  /** The same on held-out references. */
  readonly heldout: number;
  /** (class word − arm) / class word on training pictures. */
  readonly trainGain: Interval;
  /** The same on held-out references. */
  readonly gain: Interval;
  /** Both errors of each concept. */
  readonly concepts: Readonly<
    Record<string, { readonly train: number; readonly heldout: number }>
  >;
}

/**
 * The name of an arm.
 *
 * @param arm How concepts were trained.
 */
export function overfitLabel(arm: OverfitArm): string {
  if (!arm) return "class word, base model";
  const { embedding, layers, rate, steps, pictures } = arm;
  const count = pictures === null ? "" : `, ${pictures} pictures`;
  const name = embedding === "lora" ? "LoRA" : "ED-LoRA";
  return `${name}, ${layers}, ${rate}, ${steps} steps${count}`;
}

/**
 * The rows as a table.
 *
 * @param rows Rows of `overfit`.
 */
export function overfitTable(rows: readonly OverfitRow[]): Table {
  const both = (name: string) => ({ concepts }: OverfitRow) =>
    `${decimal(concepts[name].train, 2)} / ${
      decimal(concepts[name].heldout, 2)
    }`;
  return tableOf(rows, [
    ["error on training pictures / held-out", ({ arm }) => overfitLabel(arm)],
    ...Object.keys(rows[0].concepts).map((name) => [name, both(name)] as const),
    ["training", ({ train }) => decimal(train, 2)],
    ["held-out", ({ heldout }) => decimal(heldout, 2)],
    [
      "gain, training",
      ({ arm, trainGain }) => arm ? interval(trainGain, 2) : "",
    ],
    ["gain, held-out", ({ arm, gain }) => arm ? interval(gain, 2) : ""],
  ]);
}

/**
 * The whole report.
 *
 * @param rows Rows of `overfit`.
 * @param pictures Pictures of the same noise, an arm per column.
 */
export function overfitReport(
  rows: readonly OverfitRow[],
  pictures: ReportPart,
): Report {
  const trained = rows.filter(({ arm }) => arm);
  const x = trained.map(({ arm }) => overfitLabel(arm));
  return {
    name: "overfit",
    title: "training error and held-out error",
    lead: [
      "Gain is (class word − arm) / class word of the masked denoising error. " +
      "A gain on training pictures alone is memorisation.",
    ],
    parts: [
      tablePart(overfitTable(rows)),
      figurePart("gain", {
        title: "Gain on training pictures and on held-out ones",
        yTitle: "gain",
        series: [
          { name: "training", x, y: trained.map((row) => row.trainGain) },
          { name: "held-out", x, y: trained.map((row) => row.gain) },
        ],
      }),
      pictures,
    ],
  };
}
