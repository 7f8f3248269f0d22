/**
 * The paper's Fig 4, the fusion pipeline, with the loss that it does not show:
 * the feature error of each stage's layers against the single-concept models,
 * for weight fusion, for L-BFGS by number of iterations, and for the closed
 * form.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { listOf, number, whole } from "../core/options.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import type { FusedLayer, GradientSettings } from "../lab/specs.ts";
import { figurePart, type Report, tablePart } from "../report/document.ts";
import type { Series } from "../report/figure.ts";
import { decimal, duration } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { TEST_CONCEPTS } from "./presets.ts";
import { CONCEPTS, oneDomain, subjects, training } from "./subjects.ts";

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts that are fused, as ED-LoRA",
  },
  iterations: {
    type: listOf(whole({ least: 1 })),
    default: [1, 2, 5, 10, 20, 50, 500],
    help: "iterations of L-BFGS per layer",
  },
  ridges: {
    type: listOf(number({ least: 0 })),
    default: [0, 1e-3, 1],
    help: "ridges of the closed form",
  },
} as const;

type Fig4Plan = Plan<typeof OPTIONS>;

/** A stage of the pipeline: text encoder, keys and values, or spatial layers. */
export type FusionStage = "textEncoder" | "kv" | "spatial";

/** Stages in the order of the pipeline. */
const STAGES: readonly FusionStage[] = ["textEncoder", "kv", "spatial"];

/** One solver and its remaining loss. */
export interface Fig4Row {
  /** `weight`, `lbfgs` or `closed`. */
  readonly solver: "weight" | "lbfgs" | "closed";
  /** Iterations of L-BFGS, or the ridge of the closed form. */
  readonly value: number | null;
  /** Mean over layers of the squared feature error, as a share of W₀'s. */
  readonly left: Readonly<Record<FusionStage, number>>;
  /** Seconds, of all layers. */
  readonly seconds: number | null;
}

/** The numbers of the figure. */
export interface Fig4Numbers {
  /** Weight fusion, L-BFGS by iterations, the closed form by ridge. */
  readonly rows: readonly Fig4Row[];
  /** Layers of each stage. */
  readonly layers: Readonly<Record<FusionStage, number>>;
}

/** The share of W₀'s loss that is left in each stage. */
function leftOf(
  layers: readonly FusedLayer[],
  loss: (layer: FusedLayer) => number,
): Record<FusionStage, number> {
  return Object.fromEntries(
    STAGES.map((stage) => [
      stage,
      mean(
        layers.filter((one) => one.stage === stage && one.before > 0)
          .map((one) => loss(one) / one.before),
      ),
    ]),
  ) as Record<FusionStage, number>;
}

async function fuseInEveryWay(
  lab: Lab,
  plan: Fig4Plan,
): Promise<Outcome<Fig4Numbers>> {
  const { settings, iterations, ridges } = plan;
  const all = await subjects(lab, plan.concepts, 1, settings.sampling);
  const trained = await lab.train(
    all.map((one) => training(settings, one, "edlora", 0)),
  );
  const concepts = trained.map(({ model }) => model.id);
  const ways: (Pick<Fig4Row, "solver" | "value"> & {
    readonly change: Partial<GradientSettings>;
  })[] = [
    ...iterations.map((count) => ({
      ...{ solver: "lbfgs" as const, value: count },
      change: { method: "lbfgs" as const, iterations: count },
    })),
    ...ridges.map((ridge) => ({
      ...{ solver: "closed" as const, value: ridge },
      change: { method: "closed" as const, ridge },
    })),
  ];
  const fused = await lab.fuse(ways.map(({ change }) => ({
    concepts,
    how: {
      type: "gradient",
      settings: { ...settings.gradient, ...change },
    },
    seed: 0,
  })));
  const [{ layers }] = fused;
  const rows: Fig4Row[] = [
    {
      ...{ solver: "weight", value: null, seconds: null },
      left: leftOf(layers, ({ average }) => average),
    },
    ...ways.map(({ solver, value }, i): Fig4Row => ({
      ...{ solver, value, seconds: fused[i].seconds },
      left: leftOf(fused[i].layers, ({ after }) => after),
    })),
  ];
  const data: Fig4Numbers = {
    rows,
    layers: Object.fromEntries(
      STAGES.map((stage) => [
        stage,
        layers.filter((one) => one.stage === stage).length,
      ]),
    ) as Record<FusionStage, number>,
  };
  return { data, report: fig4Report(data) };
}

/** Name of a row. */
function labelOf({ solver, value }: Fig4Row): string {
  switch (solver) {
    case "weight":
      return "weight fusion, 1/n";
    case "lbfgs":
      return `L-BFGS, ${value} iterations`;
    case "closed":
      return `closed form, ridge ${value}`;
  }
}

const TITLES: Readonly<Record<FusionStage, string>> = {
  textEncoder: "text encoder",
  kv: "keys and values",
  spatial: "spatial layers",
};

/**
 * The loss that is left, as a table.
 *
 * @param numbers The numbers.
 */
export function fig4Table({ rows, layers }: Fig4Numbers): Table {
  return tableOf(rows, [
    ["feature error left, share of W₀'s", labelOf],
    ...STAGES.map((stage) =>
      [
        `${TITLES[stage]} (${layers[stage]})`,
        ({ left }: Fig4Row) => decimal(left[stage], 4),
      ] as const
    ),
    ["time", ({ seconds }) => seconds === null ? "–" : duration(seconds)],
  ]);
}

/**
 * The whole report.
 *
 * @param data The numbers.
 */
export function fig4Report(data: Fig4Numbers): Report {
  const { rows } = data;
  const of = (solver: Fig4Row["solver"]) =>
    rows.filter((row) => row.solver === solver);
  const steps = of("lbfgs");
  const x = steps.map(({ value }) => value);
  return {
    name: "fig4",
    title: "the fusion pipeline, stage by stage",
    lead: [
      "The order is the paper's: embeddings side by side, then the text encoder, " +
      "then keys and values on its states, then spatial layers while sampling " +
      "with both. The error is on the features that each stage is fitted on.",
    ],
    parts: [
      tablePart(fig4Table(data)),
      ...STAGES.map((stage) =>
        figurePart(stage, {
          title: `${TITLES[stage]}: error left against iterations`,
          xTitle: "iterations of L-BFGS per layer",
          yTitle: "share of W₀'s error",
          log: true,
          series: [
            {
              name: "L-BFGS",
              as: "lines+markers",
              x,
              y: steps.map(({ left }) => left[stage]),
            },
            ...[...of("weight"), ...of("closed")].map((row): Series => ({
              ...{ name: labelOf(row), as: "lines", dotted: true, x },
              y: x.map(() => row.left[stage]),
            })),
          ],
        })
      ),
    ],
  };
}

/** The fusion pipeline with its losses. */
export const fig4 = experiment({
  name: "fig4",
  summary: "The paper's Fig 4: the fusion pipeline, with each stage's loss",
  about:
    `Trains concepts as ED-LoRA, fuses them by weight, by L-BFGS with several
numbers of iterations and in closed form with several ridges, and reports what is
left of the feature error in each stage of the pipeline.`,
  options: OPTIONS,
  without: ["steps", "guidance"],
  scales: {
    quick: {
      help: "2 concepts, up to 5 iterations: smoke test",
      plan: {
        concepts: TEST_CONCEPTS.slice(0, 2),
        iterations: [1, 5],
        ridges: [1e-3, 1],
      },
    },
  },
  check({ concepts, iterations, ridges }) {
    oneDomain(concepts);
    if (concepts.length > 1 && iterations.length > 0 && ridges.length > 0) {
      return;
    }
    throw cannot(
      "compare solvers",
      "two concepts, iterations and ridges",
      `${concepts.length} concepts`,
    );
  },
  run: fuseInEveryWay,
});
