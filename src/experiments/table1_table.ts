/**
 * Table 1, Table 3 and Fig 6 as a report, the paper's numbers beside ours.
 *
 * @module
 */
import type { MethodName } from "../customize/methods.ts";
import { type Comparison, comparisonTable } from "../evaluation/compare.ts";
import {
  figurePart,
  type Report,
  type ReportPart,
  tablePart,
} from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import type { ScoreName } from "./scores.ts";

/** A method, alone or fused; the class word on the base model. */
export interface Table1Arm {
  /** The method; nothing for the base model. */
  readonly method: MethodName | null;
  /** Whether its concepts are fused. */
  readonly fused: boolean;
}

/** Scores of an arm: means with intervals, and by concept. */
export interface Table1Row
  extends Table1Arm, Readonly<Record<ScoreName | "heldout", Interval>> {
  /** Text alignment, image alignment and held-out error of each concept. */
  readonly concepts: Readonly<
    Record<string, Readonly<Record<"text" | "image" | "heldout", number>>>
  >;
}

/** The numbers of the table. */
export interface Table1Numbers {
  /** The class word, then each method alone and fused. */
  readonly rows: readonly Table1Row[];
  /** The claims of the paper about them. */
  readonly comparisons: readonly Comparison[];
}

/** Names of the methods in papers. */
const METHOD_NAMES: Readonly<Partial<Record<MethodName, string>>> = {
  "textual-inversion": "Textual Inversion",
  "p+": "P+",
  "custom-diffusion": "Custom Diffusion",
  lora: "LoRA",
  "ed-lora": "ED-LoRA",
};

/** Name of an arm in tables and figures. */
function methodLabel({ method, fused }: Table1Arm): string {
  const name = method === null ? method : METHOD_NAMES[method] ?? method;
  return name === null
    ? "class word, base model"
    : `${name}, ${fused ? "fused" : "alone"}`;
}

/** The name of an arm in ids and random keys. */
export function armLabel({ method, fused }: Table1Arm): string {
  return method === null
    ? "class word, base model"
    : `${method}, ${fused ? "fused" : "alone"}`;
}

/** Text and image alignment, single and fused, as the paper's Table 1 has them. */
export const PAPER_TABLE_1: Readonly<
  Partial<
    Record<
      MethodName | "base",
      Readonly<Record<"text" | "image", readonly [number, number]>>
    >
  >
> = {
  base: { text: [.804, .804], image: [.596, .596] },
  "p+": { text: [.739, .739], image: [.752, .752] },
  "custom-diffusion": { text: [.722, .712], image: [.787, .751] },
  lora: { text: [.697, .752], image: [.816, .701] },
  "ed-lora": { text: [.691, .714], image: [.843, .818] },
};

function paper(score: "text" | "image") {
  return ({ method, fused }: Table1Row): string => {
    const found = PAPER_TABLE_1[method ?? "base"]?.[score][fused ? 1 : 0];
    return found === undefined ? "" : decimal(found);
  };
}

/**
 * Table 1: a row per method, alone and fused.
 *
 * @param numbers The numbers.
 */
export function methodTable({ rows }: Pick<Table1Numbers, "rows">): Table {
  return tableOf(rows, [
    ["method", methodLabel],
    ["text", ({ text }) => interval(text)],
    ["paper", paper("text")],
    ["image", ({ image }) => interval(image)],
    ["paper", paper("image")],
    ["held-out error", ({ heldout }) => interval(heldout)],
    ["masked image", ({ masked }) => interval(masked)],
    ["retrieval", ({ retrieval }) => interval(retrieval, 2)],
  ]);
}

/**
 * Table 3: text / image alignment of each concept.
 *
 * @param numbers The numbers.
 */
export function conceptTable({ rows }: Pick<Table1Numbers, "rows">): Table {
  return tableOf(rows, [
    ["text / image", methodLabel],
    ...Object.keys(rows[0].concepts).map((name) =>
      [name, ({ concepts }: Table1Row) => {
        const { text, image } = concepts[name];
        return `${decimal(text)} / ${decimal(image)}`;
      }] as const
    ),
  ]);
}

/**
 * The whole report.
 *
 * @param numbers The numbers.
 * @param sheet Pictures of the same noise, a method per column; absent for
 * stored numbers.
 */
export function table1Report(
  numbers: Table1Numbers,
  sheet?: ReportPart,
): Report {
  const { rows } = numbers;
  return {
    name: "table1",
    title: "methods, alone and fused",
    lead: [
      "Read text alignment with image alignment: a picture of the class, " +
      "without the concept, can follow its prompt well. The class word on the " +
      "base model is such a picture: it bounds text alignment from above and " +
      "image alignment from below.",
      "The paper's numbers are of Stable Diffusion and CLIP ViT-B/32: compare " +
      "the order, not the size.",
    ],
    parts: [
      tablePart(methodTable(numbers), "Table 1"),
      tablePart(comparisonTable(numbers), "What the paper claims"),
      { type: "table", title: "Table 3", table: conceptTable(numbers) },
      figurePart("image", {
        title: "Image alignment of each method",
        yTitle: "image alignment",
        series: [{
          name: "image alignment",
          as: "markers",
          x: rows.map(methodLabel),
          y: rows.map(({ image }) => image),
        }],
      }),
      ...(sheet ? [sheet] : []),
    ],
  };
}
