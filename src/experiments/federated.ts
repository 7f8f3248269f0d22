/**
 * Federated fusion: clients publish adapter, tokens and statistics in place of
 * pictures. Compares gradient fusion from these files with averaging and with
 * fusion that runs the clients' models, and measures the cost of noise on the
 * statistics.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { listOf, number } from "../core/options.ts";
import { fold, key } from "../core/random.ts";
import { mean } from "../evaluation/statistics.ts";
import { fedAvgWeights } from "../fusion/mergers.ts";
import type { Lab } from "../lab/lab.ts";
import type { ModelRef } from "../lab/specs.ts";
import { TRAIN_IMAGES } from "../micro/concepts.ts";
import {
  figurePart,
  type Report,
  type ReportPart,
  tablePart,
} from "../report/document.ts";
import { decimal, type Interval, interval } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { conceptPictures } from "./pictures.ts";
import { RUN_OPTIONS, TEST_CONCEPTS } from "./presets.ts";
import {
  armCells,
  type Cell,
  estimate,
  scoreCells,
  type ScoreName,
} from "./scores.ts";
import { CONCEPTS, oneDomain, subjects, training } from "./subjects.ts";

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts, one per client",
  },
  noise: {
    type: listOf(number({ least: 0 })),
    default: [0, 0.1, 1, 10],
    help: "scales of noise on the statistics, with 0",
  },
  prompts: RUN_OPTIONS.prompts,
  seeds: RUN_OPTIONS.seeds,
} as const;

type FederatedPlan = Plan<typeof OPTIONS>;

/**
 * What the centre uses: nothing is fused (`single`), averages (`fedavg`), the
 * clients' models (`models`), or published files with noise of a scale.
 */
export type FederatedArm = "single" | "fedavg" | "models" | number;

/** Scores of one arm. */
export interface FederatedRow {
  /** What the centre uses. */
  readonly arm: FederatedArm;
  /** Masked denoising error on held-out references; lower is better. */
  readonly heldout: Interval;
  /** Image alignment. */
  readonly image: Interval;
  /** Share of pictures whose nearest gallery entry is the identity. */
  readonly retrieval: Interval;
  /** Bytes that one client sends. */
  readonly bytes: number | null;
}

/** The numbers. */
export interface FederatedNumbers {
  /** A row per arm. */
  readonly rows: readonly FederatedRow[];
}

async function federate(
  lab: Lab,
  plan: FederatedPlan,
): Promise<Outcome<FederatedNumbers>> {
  const { settings, seeds, noise } = plan;
  const { sampling, gradient } = settings;
  const { templates, steps, images, layers } = gradient;
  const all = await subjects(lab, plan.concepts, plan.prompts, sampling);
  const counts = all.map(({ train }) =>
    train.of === "drawn" ? train.pictures.length : TRAIN_IMAGES
  );
  const cells: Cell<FederatedArm>[] = [];
  const bytes = new Map<FederatedArm, number[]>();
  for (const seed of seeds) {
    const trained = await lab.train(
      all.map((one) => training(settings, one, "edlora", seed)),
    );
    const concepts = trained.map(({ model }) => model.id);
    const add = (arm: FederatedArm, model?: ModelRef) =>
      cells.push(...armCells(arm, seed, all, trained, model));
    const sent = (arm: FederatedArm, each: readonly number[]) =>
      bytes.set(arm, [...bytes.get(arm) ?? [], ...each]);
    add("single");
    const [average, models] = await lab.fuse([
      {
        ...{ concepts, seed },
        how: {
          type: "merge",
          settings: {
            method: "task_arithmetic",
            weights: fedAvgWeights(counts),
          },
        },
      },
      { concepts, seed, how: { type: "gradient", settings: gradient } },
    ]);
    add("fedavg", average.model);
    add("models", models.model);
    for (const scale of noise) {
      const files = await lab.publish(concepts.map((concept, i) => ({
        ...{ concept, pictures: counts[i], seed },
        settings: { templates, steps, images, layers },
        // A scale of 0 must give the same spec as no noise.
        ...(scale > 0 ? { noise: scale } : {}),
      })));
      const [fused] = await lab.fuse([{
        ...{ concepts, seed },
        how: { type: "gradient", settings: { ...gradient, method: "closed" } },
        published: files.map(({ id }) => id),
      }]);
      add(scale, fused.model);
      sent(scale, files.map((file) => file.bytes));
      if (scale > 0) continue;
      for (const arm of ["fedavg", "models"] as const) {
        sent(arm, files.map(({ conceptBytes }) => conceptBytes));
      }
    }
  }
  const { arms, drawn } = await scoreCells(lab, settings, all, cells);
  const names = all.map(({ name }) => name);
  const rows = arms.map(({ arm, rows }): FederatedRow => {
    const of = (score: ScoreName | "heldout") =>
      estimate(rows, names, score, fold(key(0), "federated", arm, score));
    const sent = bytes.get(arm);
    return {
      arm,
      heldout: of("heldout"),
      image: of("image"),
      retrieval: of("retrieval"),
      bytes: sent ? mean(sent) : null,
    };
  });
  const sheet = await conceptPictures(lab, "federated", drawn, armLabel, 1);
  return { data: { rows }, report: federatedReport(rows, sheet) };
}

function armLabel(arm: FederatedArm): string {
  switch (arm) {
    case "single":
      return "each concept alone";
    case "fedavg":
      return "FedAvg of adapters";
    case "models":
      return "gradient fusion, the centre runs the models";
    default:
      return arm === 0
        ? "gradient fusion of published files"
        : `the same, noise of scale ${arm}`;
  }
}

/**
 * The rows as a table.
 *
 * @param rows A row per arm.
 */
export function federatedTable(rows: readonly FederatedRow[]): Table {
  return tableOf(rows, [
    ["the centre", ({ arm }) => armLabel(arm)],
    ["held-out error", ({ heldout }) => interval(heldout)],
    ["image", ({ image }) => interval(image)],
    ["retrieval", ({ retrieval }) => interval(retrieval, 2)],
    [
      "a client sends",
      ({ bytes }) => bytes === null ? "–" : `${decimal(bytes / 1e6, 2)} MB`,
    ],
  ]);
}

/**
 * The whole report.
 *
 * @param rows A row per arm.
 * @param sheet Pictures of the same noise, an arm per column; absent for stored
 * numbers.
 */
export function federatedReport(
  rows: readonly FederatedRow[],
  sheet?: ReportPart,
): Report {
  const noisy = rows.filter(({ arm }) => typeof arm === "number");
  return {
    name: "federated",
    title: "fusion from published files",
    lead: [
      "A client sends its adapter, its tokens and the Gram matrices of its " +
      "layers' inputs; no picture leaves the client. Others can still draw the " +
      "concept from these files: that is their purpose. Nothing protects the " +
      "matrices against inversion.",
      "At noise of scale 1 each entry of a Gram matrix has noise as large as " +
      "what one typical row adds to its trace. Noise makes files larger: a " +
      "matrix of few rows is sent as its rows, a noisy one as a whole.",
    ],
    parts: [
      tablePart(federatedTable(rows)),
      figurePart("noise", {
        title: "What noise on the statistics costs",
        xTitle: "scale of the noise",
        yTitle: "held-out error",
        legend: false,
        series: [{
          name: "held-out error",
          as: "lines+markers",
          x: noisy.map(({ arm }) => String(arm)),
          y: noisy.map(({ heldout }) => heldout),
        }],
      }),
      ...(sheet ? [sheet] : []),
    ],
  };
}

/** Fusion from what clients publish. */
export const federated = experiment({
  name: "federated",
  summary: "Fusion from published files, FedAvg, and what noise costs",
  about:
    `Trains concepts as ED-LoRA, each on a client of its own, publishes adapter,
tokens and statistics of each, and fuses these files alone. Compares FedAvg, and
noise on the statistics.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 prompts: smoke test, no conclusion",
      plan: {
        concepts: TEST_CONCEPTS.slice(0, 2),
        prompts: 2,
        noise: [0, 1],
      },
    },
  },
  check({ concepts, noise }) {
    oneDomain(concepts);
    if (concepts.length < 2) {
      throw cannot("federate", "at least two concepts", concepts.join(", "));
    }
    if (!noise.includes(0)) throw cannot("add noise", "a scale of 0", noise);
  },
  run: federate,
});
