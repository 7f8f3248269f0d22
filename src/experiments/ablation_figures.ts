/**
 * The ablation's tables and plotly figures, from its report alone: for the
 * command line, the HTML report and notebooks.
 *
 * @module
 */
import type {
  AblationReport,
  Maybe,
  ScoreEstimate,
  ScoreName,
} from "./ablation_schema.ts";
import type { Figure } from "../report/html.ts";
import type { Table } from "../report/markdown.ts";

/** Table 2 of the paper, means over 14 concepts, image alignment. */
export const PAPER_TABLE_2: readonly {
  readonly arm: string;
  readonly label: string;
  readonly single: number | null;
  readonly fused: number | null;
}[] = [
  { arm: "base", label: "lower bound", single: 0.596, fused: null },
  {
    arm: "lora.weight",
    label: "LoRA + weight fusion",
    single: 0.816,
    fused: 0.701,
  },
  {
    arm: "lora.gradient",
    label: "LoRA + gradient fusion",
    single: null,
    fused: null,
  },
  {
    arm: "edlora.weight",
    label: "ED-LoRA + weight fusion",
    single: 0.843,
    fused: 0.749,
  },
  {
    arm: "edlora.gradient",
    label: "ED-LoRA + gradient fusion",
    single: 0.843,
    fused: 0.818,
  },
];

/** Table 1 of the paper: text alignment, means over 14 concepts. */
export const PAPER_TABLE_1_TEXT: Readonly<
  Record<string, readonly [single: number, fused: number]>
> = {
  "lora.weight": [0.697, 0.752],
  "edlora.gradient": [0.691, 0.714],
};

/** What an arm is called. */
export function armLabel(arm: string): string {
  const [embedding, fusion] = arm.split(".");
  const head = embedding === "lora"
    ? "LoRA"
    : embedding === "edlora"
    ? "ED-LoRA"
    : "base";
  switch (fusion) {
    case undefined:
      return head;
    case "single":
      return `${head}, single`;
    case "weight":
      return `${head} + weight fusion`;
    case "gradient":
      return `${head} + gradient fusion`;
    case "weight_best_lambda":
      return `${head} + tuned λ`;
    default:
      return arm;
  }
}

/** A number with so many decimals, `–` where there is none. */
function text(value: number | null | undefined, digits = 3): string {
  return value === null || value === undefined || !Number.isFinite(value)
    ? "–"
    : value.toFixed(digits).replace("-", "−");
}

function arrow(single: ScoreEstimate, fused: ScoreEstimate): string {
  const d = (fused.mean ?? NaN) - (single.mean ?? NaN);
  const sign = d >= 0 ? "+" : "";
  return `${text(single.mean)} → ${text(fused.mean)} (${sign}${text(d)})`;
}

/** `88 % (70 to 95)`. */
function percent({ mean, low, high }: ScoreEstimate): string {
  if (mean === null) return "–";
  const whole = (share: number) => text(Math.round(100 * share), 0);
  return low === null || high === null
    ? `${whole(mean)} %`
    : `${whole(mean)} % (${whole(low)} to ${whole(high)})`;
}

/** Fused arms in the order of the table. */
const ORDER = [
  "lora.weight",
  "lora.weight_best_lambda",
  "lora.gradient",
  "edlora.weight",
  "edlora.weight_best_lambda",
  "edlora.gradient",
];

/** The fused arms of a report in the order of the table. */
export function armsOf(report: AblationReport): string[] {
  return ORDER.filter((arm) => Object.hasOwn(report.arms, arm));
}

/**
 * The result table, single → fused, with the paper's image alignment in the
 * last column.
 *
 * @param report The report.
 */
export function ablationTable(report: AblationReport): Table {
  const paper = (arm: string): string => {
    const row = PAPER_TABLE_2.find((entry) => entry.arm === arm);
    if (!row) return "–";
    if (row.single === null) return "not in the paper";
    if (row.fused === null) return text(row.single);
    return `${text(row.single)} → ${text(row.fused)} (${
      text(row.fused - row.single)
    })`;
  };
  const { lower, ceiling } = report.base;
  const bound = (
    label: string,
    scores: typeof lower,
    last: string,
    error?: ScoreEstimate,
  ) => [
    label,
    text(scores.text.mean),
    text(scores.image.mean),
    text(scores.masked.mean),
    text(scores.retrieval.mean),
    "",
    error ? text(error.mean) : "–",
    "",
    last,
  ];
  return {
    head: [
      "",
      "text",
      "image",
      "masked image",
      "retrieval",
      "image kept",
      "held-out error",
      "held-out kept",
      "paper: image",
    ],
    rows: [
      bound(
        "class word, base model",
        lower,
        paper("base"),
        report.base.heldout,
      ),
      ...armsOf(report).map((arm) => {
        const { single, fused, retained, lambda, heldout } = report.arms[arm];
        const label = arm.endsWith("weight_best_lambda")
          ? `${armLabel(arm)} ${text(lambda, 2)}`
          : armLabel(arm);
        return [
          label,
          arrow(single.text, fused.text),
          arrow(single.image, fused.image),
          arrow(single.masked, fused.masked),
          arrow(single.retrieval, fused.retrieval),
          percent(retained.image),
          heldout ? arrow(heldout.single, heldout.fused) : "–",
          heldout ? percent(heldout.kept) : "–",
          paper(arm),
        ];
      }),
      bound("references themselves", ceiling, "–"),
    ],
  };
}

/**
 * The comparisons: differences with intervals, verdicts.
 *
 * @param report The report.
 * @param paper The paper's claims only, or only the others. @default all
 */
export function comparisonTable(
  report: Pick<AblationReport, "comparisons">,
  paper?: boolean,
): Table {
  return {
    head: [
      "claim",
      "score",
      "difference",
      "95 % interval (t)",
      "bootstrap",
      "wins",
      "verdict",
    ],
    rows: report.comparisons.filter((c) =>
      paper === undefined || c.paper === paper
    ).map((c) => [
      c.claim,
      c.score,
      text(c.mean),
      `${text(c.low)} to ${text(c.high)}`,
      c.bootstrap
        ? `${text(c.bootstrap.low)} to ${text(c.bootstrap.high)}`
        : "–",
      `${c.wins}/${c.n}`,
      c.verdict,
    ]),
  };
}

const COLORS: Readonly<Record<string, string>> = {
  single: "#9aa5b1",
  lora: "#d1495b",
  edlora: "#2e86ab",
};

/**
 * Intervals as plotly draws error bars; no bar where there is no number.
 *
 * @param scores Estimates, one a bar or point.
 */
export function errorBars(
  scores:
    readonly (Readonly<Record<"mean" | "low" | "high", Maybe>> | undefined)[],
): Record<string, unknown> {
  const reach = (end: "low" | "high") =>
    scores.map((score) => {
      const length = Math.abs((score?.[end] ?? NaN) - (score?.mean ?? NaN));
      return Number.isFinite(length) ? length : 0;
    });
  return {
    type: "data",
    symmetric: false,
    array: reach("high"),
    arrayminus: reach("low"),
  };
}

/** What a score is called. */
const SCORE_LABEL: Readonly<Record<ScoreName, string>> = {
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
  report: AblationReport,
  score: ScoreName,
): Figure {
  const arms = armsOf(report);
  const x = arms.map(armLabel);
  const of = (kind: "single" | "fused") =>
    arms.map((arm) => report.arms[arm][kind][score]);
  const line = (y: number | null, label: string) =>
    y === null ? [] : [{
      type: "scatter",
      mode: "lines",
      name: label,
      x: [x[0], x[x.length - 1]],
      y: [y, y],
      line: { dash: "dot", width: 1.5 },
    }];
  const { lower, ceiling } = report.base;
  return {
    data: [
      {
        type: "bar",
        name: "single concept",
        x,
        y: of("single").map((s) => s.mean),
        error_y: errorBars(of("single")),
        marker: { color: COLORS.single },
      },
      {
        type: "bar",
        name: "fused",
        x,
        y: of("fused").map((s) => s.mean),
        error_y: errorBars(of("fused")),
        marker: {
          color: arms.map((arm) => COLORS[report.arms[arm].embedding]),
        },
      },
      ...line(
        lower[score].mean,
        score === "text"
          ? "class word (upper bound)"
          : "class word (lower bound)",
      ),
      ...line(ceiling[score].mean, "references"),
      ...(score === "retrieval" ? line(report.retrieval.chance, "chance") : []),
    ],
    layout: {
      title: { text: SCORE_LABEL[score] },
      barmode: "group",
      yaxis: { title: { text: SCORE_LABEL[score] } },
      legend: { orientation: "h", y: -0.25 },
    },
  };
}

/**
 * Text against image alignment, an arrow from single to fused: when identity is
 * lost, text alignment rises.
 *
 * @param report The report.
 */
export function tradeFigure(report: AblationReport): Figure {
  const arms = armsOf(report);
  return {
    data: [
      ...arms.map((arm) => {
        const { single, fused, embedding } = report.arms[arm];
        return {
          type: "scatter",
          mode: "lines+markers+text",
          name: armLabel(arm),
          x: [single.text.mean, fused.text.mean],
          y: [single.image.mean, fused.image.mean],
          text: ["", armLabel(arm)],
          textposition: "top center",
          marker: { size: [6, 11], symbol: ["circle-open", "circle"] },
          line: {
            color: COLORS[embedding],
            dash: arm.endsWith("gradient") ? "solid" : "dot",
          },
        };
      }),
      {
        type: "scatter",
        mode: "markers+text",
        name: "class word",
        x: [report.base.lower.text.mean],
        y: [report.base.lower.image.mean],
        text: ["class word"],
        textposition: "bottom center",
        marker: { size: 11, symbol: "x", color: "#555" },
      },
    ],
    layout: {
      title: { text: "Text against image alignment, single → fused" },
      xaxis: { title: { text: SCORE_LABEL.text } },
      yaxis: { title: { text: SCORE_LABEL.image } },
      showlegend: false,
    },
  };
}

/**
 * Feature error of each layer after gradient fusion and after weight fusion,
 * relative to that of W₀.
 *
 * @param report The report.
 * @param arm A gradient fusion arm.
 */
export function fusionLossFigure(
  report: AblationReport,
  arm: string,
): Figure {
  const layers = report.arms[arm].layers.filter(({ before }) =>
    before !== null && before > 0
  );
  const share = (value: number | null, before: number | null) =>
    value === null || before === null ? null : value / before;
  const x = layers.map((_, i) => i);
  const trace = (name: string, key: "after" | "average", color: string) => ({
    type: "scatter",
    mode: "markers",
    name,
    x,
    y: layers.map((layer) => share(layer[key], layer.before)),
    text: layers.map((layer) => `${layer.stage}: ${layer.layer}`),
    marker: { color, size: 6 },
  });
  return {
    data: [
      trace("weight fusion", "average", "#d1495b"),
      trace("gradient fusion", "after", "#2e86ab"),
    ],
    layout: {
      title: { text: `Fusion loss by layer, ${armLabel(arm)}` },
      xaxis: { title: { text: "layer, in the order of fusion" } },
      yaxis: {
        title: { text: "feature error / that of the base weight" },
        type: "log",
        exponentformat: "power",
      },
      legend: { orientation: "h", y: -0.25 },
    },
  };
}

/**
 * Image alignment of each concept, single and fused.
 *
 * @param report The report.
 */
export function conceptFigure(report: AblationReport): Figure {
  const names = report.concepts.map(({ name }) => name);
  const arms = ["base", "lora.single", "edlora.single", ...armsOf(report)]
    .filter((arm) => report.rows.some((row) => row.arm === arm));
  return {
    data: arms.map((arm) => ({
      type: "scatter",
      mode: "markers",
      name: armLabel(arm),
      x: names,
      y: names.map((name) => {
        const values = report.rows
          .filter((row) => row.arm === arm && row.concept === name)
          .flatMap((row) => row.image);
        return values.reduce((a, b) => a + b, 0) / values.length;
      }),
      marker: {
        size: 10,
        symbol: arm.endsWith("single")
          ? "circle-open"
          : arm.endsWith("gradient")
          ? "diamond"
          : arm === "base"
          ? "x"
          : "circle",
      },
    })),
    layout: {
      title: { text: "Image alignment by concept" },
      yaxis: { title: { text: SCORE_LABEL.image } },
      legend: { orientation: "h", y: -0.25 },
    },
  };
}

/**
 * Training losses, a curve a concept.
 *
 * @param report The report.
 */
export function trainingFigure(report: AblationReport): Figure {
  return {
    data: report.training.map(({ embedding, concept, seed, losses }) => ({
      type: "scatter",
      mode: "lines",
      name: `${armLabel(embedding)} ${concept}, seed ${seed}`,
      x: losses.map((_, i) => (i + 0.5) / losses.length),
      y: losses,
      line: { color: COLORS[embedding], width: 1 },
      showlegend: false,
    })),
    layout: {
      title: { text: "Training loss (LoRA red, ED-LoRA blue)" },
      xaxis: { title: { text: "share of the run" } },
      yaxis: { title: { text: "loss" }, type: "log" },
    },
  };
}

/**
 * Every figure of the report, by a name that can be an element's id.
 *
 * @param report The report.
 */
export function ablationFigures(
  report: AblationReport,
): [string, Figure][] {
  const gradient = armsOf(report).filter((arm) => arm.endsWith("gradient"));
  return [
    ["image", scoreFigure(report, "image")],
    ["trade", tradeFigure(report)],
    ["masked", scoreFigure(report, "masked")],
    ["retrieval", scoreFigure(report, "retrieval")],
    ["text", scoreFigure(report, "text")],
    ["concepts", conceptFigure(report)],
    ...gradient.map((arm): [string, Figure] => [
      `loss-${arm.replace(".", "-")}`,
      fusionLossFigure(report, arm),
    ]),
    ["training", trainingFigure(report)],
  ];
}
