/**
 * The ablation's tables, figures and report, from its numbers alone.
 *
 * @module
 */
import { comparisonTable } from "../../evaluation/compare.ts";
import { mean, pairedDifference } from "../../evaluation/statistics.ts";
import { inDomain } from "../../micro/in_domain.ts";
import {
  type Report,
  type ReportPart,
  tablePart,
} from "../../report/document.ts";
import { type Figure, plot, type Series } from "../../report/figure.ts";
import {
  change,
  decimal,
  type Interval,
  interval,
  type Maybe,
  percent,
  range,
} from "../../report/format.ts";
import { factsOf, type Table, tableOf } from "../../report/table.ts";
import type { AblationNumbers } from "./json.ts";
import { EMBEDDINGS } from "../presets.ts";
import { conceptMeans, type ScoreName, TEXT_LOSS } from "../scores.ts";

/** Table 2 of the paper, means over 14 concepts, image alignment. */
export const PAPER_TABLE_2: Readonly<
  Record<string, { readonly single: number; readonly fused: Maybe }>
> = {
  base: { single: 0.596, fused: null },
  "lora.weight": { single: 0.816, fused: 0.701 },
  "edlora.weight": { single: 0.843, fused: 0.749 },
  "edlora.gradient": { single: 0.843, fused: 0.818 },
};

const LABELS: Readonly<Record<string, string>> = {
  base: "base",
  lora: "LoRA",
  edlora: "ED-LoRA",
  single: ", single",
  weight: " + weight fusion",
  gradient: " + gradient fusion",
  weight_best_lambda: " + tuned λ",
};

/**
 * The name of an arm.
 *
 * @param arm Such as `edlora.gradient`.
 */
export function armLabel(arm: string): string {
  return arm.split(".").map((part) => LABELS[part] ?? part).join("");
}

/**
 * The fused arms of a report in the order of the table.
 *
 * @param report The report.
 */
export function armsOf(report: Pick<AblationNumbers, "arms">): string[] {
  return EMBEDDINGS.flatMap((embedding) =>
    ["weight", "weight_best_lambda", "gradient"]
      .map((fusion) => `${embedding}.${fusion}`)
  ).filter((arm) => Object.hasOwn(report.arms, arm));
}

/** A line of the table. */
interface Line {
  readonly label: string;
  /** A bound has one value per score, an arm a single and a fused value. */
  readonly of: (score: ScoreName) => readonly [Interval, Interval?];
  readonly heldout?: readonly [Interval, Interval?];
  readonly kept?: Interval;
  readonly heldoutKept?: Interval;
  readonly paper?: string;
}

/**
 * The result table, single → fused: held-out error, which decides, first; the
 * paper's image alignment last.
 *
 * @param report The report.
 */
export function ablationTable(report: AblationNumbers): Table {
  const { base } = report;
  const lines: Line[] = [
    {
      label: "class word, base model",
      of: (score) => [base.lower[score]],
      heldout: base.heldout && [base.heldout],
      paper: decimal(PAPER_TABLE_2.base.single),
    },
    ...armsOf(report).map((name): Line => {
      const arm = report.arms[name];
      const paper = PAPER_TABLE_2[name];
      const tuned = name.endsWith("weight_best_lambda");
      return {
        label: armLabel(name) + (tuned ? ` ${decimal(arm.lambda, 2)}` : ""),
        of: (score) => [arm.single[score], arm.fused[score]],
        heldout: arm.heldout && [arm.heldout.single, arm.heldout.fused],
        kept: arm.retained.image,
        heldoutKept: arm.heldout?.kept,
        paper: paper
          ? change(paper.single, paper.fused)
          : tuned
          ? undefined
          : "not in the paper",
      };
    }),
    { label: "references themselves", of: (score) => [base.ceiling[score]] },
  ];
  const cell = (found: readonly [Interval, Interval?] | undefined) =>
    found?.[1]
      ? change(found[0].mean, found[1].mean)
      : decimal(found?.[0].mean);
  const share = (found: Interval | undefined) => found ? percent(found) : "";
  return tableOf(lines, [
    ["", ({ label }) => label],
    ["held-out error", ({ heldout }) => cell(heldout)],
    ["held-out kept", ({ heldoutKept }) => share(heldoutKept)],
    ["image", ({ of }) => cell(of("image"))],
    ["image kept", ({ kept }) => share(kept)],
    ["masked image", ({ of }) => cell(of("masked"))],
    ["retrieval", ({ of }) => cell(of("retrieval"))],
    ["text", ({ of }) => cell(of("text"))],
    ["paper: image", ({ paper = "–" }) => paper],
  ]);
}

const COLORS: Readonly<Record<string, string>> = {
  single: "#9aa5b1",
  lora: "#d1495b",
  edlora: "#2e86ab",
  lower: "#555555",
  ceiling: "#2a9d5c",
  chance: "#e09f3e",
};

/** Colours of weight and gradient fusion, where both are of one embedding. */
const FUSION_COLORS = { average: "#b8a04a", after: "#7b5ea7" } as const;

/** Stages of gradient fusion in their order: name, symbol. */
const STAGES: Readonly<Record<string, readonly [string, string]>> = {
  textEncoder: ["text encoder", "square"],
  kv: ["keys and values", "triangle-up"],
  spatial: ["spatial layers", "diamond"],
};

/** The colour shows the embedding, the symbol the fusion. */
function symbolOf(arm: string): string {
  const symbols: Record<string, string> = {
    base: "x",
    single: "circle-open",
    weight_best_lambda: "triangle-up",
    gradient: "diamond",
  };
  return symbols[arm.split(".").at(-1)!] ?? "circle";
}

/** Name of a score. */
const SCORE_LABEL: Readonly<Record<ScoreName | "heldout", string>> = {
  heldout: "held-out error (lower is better)",
  text: "text alignment",
  image: "image alignment",
  masked: "masked image alignment",
  retrieval: "identity retrieved (share)",
};

/**
 * Single against fused for one score, with intervals and bounds.
 *
 * @param report The report.
 * @param score Which score.
 */
export function scoreFigure(
  report: AblationNumbers,
  score: ScoreName | "heldout",
): Figure {
  const { base } = report;
  const arms = armsOf(report);
  const x = arms.map(armLabel);
  const bars = (name: "single" | "fused", color: Series["color"]): Series => ({
    name: name === "single"
      ? "single concept"
      : "fused (LoRA red, ED-LoRA blue)",
    as: "bars",
    x,
    y: arms.map((arm) =>
      score === "heldout"
        ? report.arms[arm].heldout?.[name]
        : report.arms[arm][name][score]
    ),
    color,
  });
  const line = (
    y: Maybe | undefined,
    name: string,
    color: string,
  ): Series[] =>
    typeof y !== "number" ? [] : [{
      name,
      color,
      as: "lines",
      x: [x[0], x[x.length - 1]],
      y: [y, y],
      dotted: true,
    }];
  const bounds = score === "heldout"
    ? [base.heldout]
    : [base.lower[score], base.ceiling[score]];
  // For held-out error and text alignment the class word's value is the upper
  // bound.
  const bound = score === "text" || score === "heldout"
    ? "upper bound"
    : "lower bound";
  return plot({
    title: SCORE_LABEL[score],
    yTitle: SCORE_LABEL[score],
    series: [
      bars("single", COLORS.single),
      bars("fused", arms.map((arm) => COLORS[report.arms[arm].embedding])),
      ...line(bounds[0]?.mean, `class word (${bound})`, COLORS.lower),
      ...line(bounds[1]?.mean, "references", COLORS.ceiling),
      ...(score === "retrieval"
        ? line(report.retrieval.chance, "chance", COLORS.chance)
        : []),
    ],
  });
}

/**
 * Text against image alignment, a line from single to fused: an arm that loses
 * identity to the class moves down, and may move right.
 *
 * @param report The report.
 */
export function tradeFigure(report: AblationNumbers): Figure {
  const { lower } = report.base;
  return plot({
    title: "Text against image alignment, from single (small) to fused",
    xTitle: SCORE_LABEL.text,
    yTitle: SCORE_LABEL.image,
    series: [
      ...armsOf(report).map((arm): Series => {
        const { single, fused, embedding } = report.arms[arm];
        return {
          name: armLabel(arm),
          as: "lines+markers",
          // The legend shows the first point's symbol.
          x: [fused.text.mean, single.text.mean],
          y: [fused.image.mean, single.image.mean],
          size: [11, 6],
          symbol: [symbolOf(arm), "circle-open"],
          color: COLORS[embedding],
          dotted: !arm.endsWith("gradient"),
        };
      }),
      {
        name: "class word",
        x: [lower.text.mean],
        y: [lower.image.mean],
        ...{ size: 11, symbol: "x", color: COLORS.lower },
      },
    ],
  });
}

/**
 * Feature error of each layer after gradient fusion and after weight fusion,
 * relative to that of W₀.
 *
 * @param report The report.
 * @param arm A gradient fusion arm.
 */
export function fusionLossFigure(
  report: AblationNumbers,
  arm: string,
): Figure {
  const layers = report.arms[arm].layers
    .filter(({ before }) => before !== null && before > 0)
    .map((layer, i) => ({ ...layer, i }));
  const series = (
    name: string,
    key: keyof typeof FUSION_COLORS,
    symbol: string,
    of: typeof layers,
  ): Series => ({
    ...{ name, symbol, color: FUSION_COLORS[key], size: 7 },
    x: of.map(({ i }) => i),
    y: of.map((layer) =>
      layer[key] === null ? null : layer[key] / layer.before!
    ),
    text: of.map(({ stage, layer }) => `${stage}: ${layer}`),
  });
  return plot({
    title: `Feature error by layer, ${armLabel(arm)}`,
    xTitle: "layer, in the order of fusion",
    yTitle: "feature error / that of the base weight",
    log: true,
    series: [
      series("weight fusion", "average", "circle", layers),
      ...[...Map.groupBy(layers, ({ stage }) => stage)].map(([stage, own]) => {
        const [name, symbol] = STAGES[stage] ?? [stage, "diamond"];
        return series(`gradient fusion, ${name}`, "after", symbol, own);
      }),
    ],
  });
}

/**
 * Image alignment of each concept, single and fused.
 *
 * @param report The report.
 */
export function conceptFigure(report: AblationNumbers): Figure {
  const names = report.concepts.map(({ name }) => name);
  const arms = ["base", "lora.single", "edlora.single", ...armsOf(report)]
    .filter((arm) => report.rows.some((row) => row.arm === arm));
  return plot({
    title: "Image alignment by concept",
    yTitle: SCORE_LABEL.image,
    series: arms.map((arm): Series => ({
      name: armLabel(arm),
      x: names,
      y: names.map((name) => {
        const values = report.rows
          .filter((row) => row.arm === arm && row.concept === name)
          .flatMap((row) => row.image);
        return values.reduce((a, b) => a + b, 0) / values.length;
      }),
      size: 10,
      symbol: symbolOf(arm),
      color: COLORS[arm.split(".")[0]] ?? COLORS.lower,
    })),
  });
}

/**
 * Training losses, means over concepts and seeds.
 *
 * @param report The report.
 */
export function trainingFigure(report: AblationNumbers): Figure {
  return plot({
    title: "Training loss, mean over concepts",
    xTitle: "share of the run",
    yTitle: "loss",
    series: EMBEDDINGS.flatMap((embedding): Series[] => {
      const own = report.training.filter((one) => one.embedding === embedding);
      return own.length === 0 ? [] : [{
        name: armLabel(embedding),
        as: "lines+markers",
        x: own[0].losses.map((_, i, { length }) => (i + 0.5) / length),
        y: own[0].losses.map((_, i) =>
          mean(own.flatMap(({ losses }) => losses[i] ?? []))
        ),
        color: COLORS[embedding],
      }];
    }),
  });
}

/** What was run, as a table of two columns. */
function factsTable(report: AblationNumbers): Table {
  const { concepts, seeds, prompts, capacity } = report;
  const ends = ([low, high]: readonly number[]) => range({ low, high }, 2);
  const each = <T>(
    of: Readonly<Record<string, T>>,
    text: (value: T) => string,
  ): string =>
    Object.entries(of).map(([arm, value]) => `${armLabel(arm)} ${text(value)}`)
      .join(", ");
  const inside = concepts.some(({ name }) => inDomain(name));
  return factsOf("what was run", [
    [
      inside ? "in-domain concepts" : "concepts",
      concepts.map(({ name, class: word }) => `${name} (${word})`).join(", "),
    ],
    ["prompts per concept", String(prompts.perConcept)],
    ["seeds", seeds.join(", ")],
    [
      "time of fusion",
      each(report.arms, (a) => `${decimal(a.fusionSeconds, 1)} s`),
    ],
    ["n·r/d in the UNet", ends(capacity.unet)],
    ["n·r/d in the text encoder", ends(capacity.textEncoder)],
    [
      "text alignment: captions of other prompts, class word",
      `${decimal(report.base.unrelated?.mean)}, ${
        decimal(report.base.lower.text.mean)
      }`,
    ],
    [
      "retrieval: labels, chance",
      `${report.retrieval.gallery.length}, ${decimal(report.retrieval.chance)}`,
    ],
    [
      "cosine of two concepts' learned V: mean before, after, largest",
      each(
        report.distinguishability,
        ({ before, after }) =>
          [before.mean, after.mean, after.max].map((v) => decimal(v)).join(" "),
      ),
    ],
    [
      "drift on concept-free prompts (1 − cosine, same noise)",
      each(report.drift, (value) => decimal(value)),
    ],
  ]);
}

/** Reasons why a run allows no conclusion, if any. */
function reservations(
  { scale, concepts, seeds, planned, headroom }: AblationNumbers,
): string[] {
  const reasons = [
    scale === "quick" &&
    "a few concepts and prompts show only that everything runs",
    concepts.length < 2 && "with one concept there is nothing to fuse",
    !headroom.enough &&
    `the median concept gains ${
      decimal(headroom.median)
    } image alignment over the class word, less than ${headroom.required}`,
    headroom.heldout && !headroom.heldout.enough &&
    `the median concept lowers the class word's held-out error by a share of ${
      decimal(headroom.heldout.median)
    }, less than ${headroom.heldout.required}`,
    planned &&
    `only seeds ${seeds.join(", ")} of the planned ${
      planned.join(", ")
    } are done`,
  ];
  return reasons.flatMap((why) => why ? [`No conclusion: ${why}.`] : []);
}

/** Fused models that do not follow their prompts, for the report's warning. */
function disobedient(report: AblationNumbers): string[] {
  const names = report.concepts.map(({ name }) => name);
  const text = (arm: string) =>
    conceptMeans(report.rows.filter((row) => row.arm === arm), names, "text");
  return armsOf(report).flatMap((arm) => {
    const single = text(`${report.arms[arm].embedding}.single`);
    const loss = pairedDifference(single, text(arm));
    return loss.low > 0 && loss.mean > TEXT_LOSS * mean(single)
      ? [
        `${armLabel(arm)} ignores its prompts: text alignment falls by ` +
        `${interval(loss)}.`,
      ]
      : [];
  });
}

/**
 * The whole report.
 *
 * @param report The numbers.
 * @param pictures Pictures of the same noise, an arm per column.
 */
export function ablationReport(
  report: AblationNumbers,
  pictures: ReportPart,
): Report {
  const figure = (id: string, figure: Figure): ReportPart => (
    { type: "figure", id, figure }
  );
  const claims = (paper: boolean, title: string): ReportPart => (
    { type: "table", title, table: comparisonTable(report, paper) }
  );
  return {
    name: "ablation",
    title: "weight against gradient fusion, LoRA against ED-LoRA",
    lead: [
      ...reservations(report),
      ...disobedient(report),
      "Single concept → fused. Intervals and all numbers are in ablation.json.",
      "held-out error: how wrong the model is about the noise of unseen " +
      "pictures of the subject, lower is better; held-out kept: the share of " +
      "its decrease from the class word to the single concept that is left " +
      "after fusion; image: how alike the evaluation CLIP finds picture and " +
      "references; image kept: the same share of its gain; masked image: the " +
      "same for the subject alone; retrieval: how often the concept is the " +
      "nearest of all; text: how well it finds the prompt in a picture.",
    ],
    parts: [
      tablePart(ablationTable(report)),
      pictures,
      ...report.base.heldout
        ? [figure("heldout", scoreFigure(report, "heldout"))]
        : [],
      figure("image", scoreFigure(report, "image")),
      figure("trade", tradeFigure(report)),
      figure("masked", scoreFigure(report, "masked")),
      figure("retrieval", scoreFigure(report, "retrieval")),
      figure("text", scoreFigure(report, "text")),
      figure("concepts", conceptFigure(report)),
      ...armsOf(report).filter((arm) => arm.endsWith("gradient")).map((arm) =>
        figure(`loss-${arm.replace(".", "-")}`, fusionLossFigure(report, arm))
      ),
      figure("training", trainingFigure(report)),
      claims(true, "The paper's claims"),
      claims(false, "Beyond the paper"),
      { type: "table", title: "What was run", table: factsTable(report) },
    ],
  };
}
