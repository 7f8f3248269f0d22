/**
 * The cost of fusion: bytes of stored features (official code) and of Gram
 * matrices, for this model and Stable Diffusion 1.5; bytes that a client sends;
 * time of client and centre.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { listOf, oneOf, whole } from "../core/options.ts";
import type { TreeLike } from "../core/tree.ts";
import { attentionSites } from "../customize/lora.ts";
import { modelSize } from "../diffusion/layout.ts";
import { mean } from "../evaluation/statistics.ts";
import { KEY_OR_VALUE } from "../fusion/features.ts";
import type { Lab } from "../lab/lab.ts";
import type { FuseSpec } from "../lab/specs.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import { parseUNetConfig } from "../models/config.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import { unetSpec } from "../models/unet.ts";
import { figurePart, type Report, tablePart } from "../report/document.ts";
import { decimal } from "../report/format.ts";
import { factsOf, type Table, tableOf } from "../report/table.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { TEST_CONCEPTS } from "./presets.ts";
import { CONCEPTS, subjects, training } from "./subjects.ts";

/** How concepts are fused. */
export type CostSolver = "average" | "gradient" | "published" | "lbfgs";

const SOLVERS: readonly CostSolver[] = [
  "average",
  "gradient",
  "published",
  "lbfgs",
];

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 5),
    help: "concepts; the first n are fused",
  },
  counts: {
    type: listOf(whole({ least: 1 })),
    default: [1, 2, 5],
    help: "numbers of fused concepts",
  },
  solvers: {
    type: listOf(oneOf(SOLVERS)),
    default: ["average", "gradient", "published"],
    help: SOLVERS.join(", "),
  },
} as const;

type CostPlan = Plan<typeof OPTIONS>;

/** Bytes that the spatial attention layers of one concept need. */
export interface FeatureBytes {
  /** Which model. */
  readonly model: string;
  /** Spatial layers that are fused. */
  readonly layers: number;
  /** Bytes of the inputs of every layer, float32, as the official code stores. */
  readonly features: number;
  /** Bytes of their Gram matrices, float32, one per shared input. */
  readonly grams: number;
}

/** Time of one fusion. */
export interface FusionTime {
  /** How it is done. */
  readonly solver: CostSolver;
  /** Number of concepts. */
  readonly n: number;
  /** Seconds at the centre. */
  readonly seconds: number;
}

/** The numbers. */
export interface CostNumbers {
  /** Of this model and of SD 1.5. */
  readonly bytes: readonly FeatureBytes[];
  /** Means of one client. */
  readonly client: {
    /** Seconds of training. */
    readonly training: number;
    /** Seconds of measuring statistics. */
    readonly measuring: number;
    /** Bytes of the adapter and tokens. */
    readonly concept: number;
    /** Bytes of the same with statistics. */
    readonly published: number;
  };
  /** Times of the centre. */
  readonly centre: readonly FusionTime[];
}

/**
 * Bytes that the spatial layers' inputs take over one sampling run, as rows or
 * as Gram matrices. Queries, keys and values of a self-attention have the same
 * input.
 *
 * @param name Name of the model.
 * @param tree Parameters of the UNet, or its spec.
 * @param run Side of the latents, sampling steps, pictures.
 */
export function featureBytes(
  name: string,
  tree: TreeLike,
  run: {
    readonly side: number;
    readonly steps: number;
    readonly images: number;
  },
): FeatureBytes {
  const layers = attentionSites(tree)
    .filter(({ path }) => !KEY_OR_VALUE.test(path));
  const shared = new Map<string, number>();
  let features = 0;
  for (const { path, inputs, block } of layers) {
    const rows = (run.side >> (block?.level ?? 0)) ** 2;
    features += 4 * run.images * run.steps * rows * inputs;
    shared.set(path.replace(/\.attn1\.to_[qkv]$/, ".attn1"), inputs);
  }
  let grams = 0;
  for (const d of shared.values()) grams += 4 * d * d;
  return { model: name, layers: layers.length, features, grams };
}

async function measureCost(
  lab: Lab,
  plan: CostPlan,
): Promise<Outcome<CostNumbers>> {
  const { settings, counts, solvers } = plan;
  const { sampling, gradient } = settings;
  const { templates, steps, images, layers } = gradient;
  const all = await subjects(lab, plan.concepts, 1, sampling);
  const trained = await lab.train(
    all.map((one) => training(settings, one, "edlora", 0)),
  );
  const published = await lab.publish(trained.map(({ model }) => ({
    ...{ concept: model.id, pictures: 1, seed: 0 },
    settings: { templates, steps, images, layers },
  })));
  const hows: Record<CostSolver, (n: number) => FuseSpec["how"]> = {
    average: (n) => ({ type: "weight", lambda: 1 / n }),
    gradient: () => ({ type: "gradient", settings: gradient }),
    published: () => ({ type: "gradient", settings: gradient }),
    lbfgs: () => ({
      type: "gradient",
      settings: { ...gradient, method: "lbfgs" },
    }),
  };
  const centre: FusionTime[] = [];
  for (const n of counts) {
    for (const solver of solvers) {
      const [{ seconds }] = await lab.fuse([{
        concepts: trained.slice(0, n).map(({ model }) => model.id),
        how: hows[solver](n),
        ...(solver === "published" && {
          published: published.slice(0, n).map(({ id }) => id),
        }),
        seed: 0,
      }]);
      centre.push({ solver, n, seconds });
    }
  }
  const model = await loadModel(lab.folders.model);
  const side = modelSize(model).height /
    downsampleFactor(model.autoencoder.config);
  const bytes = [
    featureBytes("this model", model.unet.params, { side, steps, images }),
    featureBytes(
      "Stable Diffusion 1.5",
      unetSpec(parseUNetConfig({ cross_attention_dim: 768 })),
      { side: 64, steps: 20, images: 1 },
    ),
  ];
  disposeModel(model);
  const data: CostNumbers = {
    bytes,
    client: {
      training: mean(trained.map(({ seconds }) => seconds)),
      measuring: mean(published.map(({ seconds }) => seconds)),
      concept: mean(published.map(({ conceptBytes }) => conceptBytes)),
      published: mean(published.map((file) => file.bytes)),
    },
    centre,
  };
  return { data, report: costReport(data) };
}

const mega = (bytes: number) => `${decimal(bytes / 1e6, bytes < 1e7 ? 2 : 0)}`;

/**
 * Bytes of features against Gram matrices, as a table.
 *
 * @param rows Of several models.
 */
export function bytesTable(rows: readonly FeatureBytes[]): Table {
  return tableOf(rows, [
    ["one concept's spatial layers", ({ model }) => model],
    ["layers", ({ layers }) => String(layers)],
    ["features, MB", ({ features }) => mega(features)],
    ["Gram matrices, MB", ({ grams }) => mega(grams)],
    ["times smaller", ({ features, grams }) => decimal(features / grams, 0)],
  ]);
}

/**
 * The whole report.
 *
 * @param data The numbers.
 */
export function costReport(data: CostNumbers): Report {
  const { bytes, client, centre } = data;
  const time = (seconds: number) => `${decimal(seconds, 1)} s`;
  const clientTable = factsOf("one client", [
    ["training", time(client.training)],
    ["measuring statistics", time(client.measuring)],
    ["adapter and tokens", `${mega(client.concept)} MB`],
    ["the same with statistics", `${mega(client.published)} MB`],
  ]);
  return {
    name: "cost",
    title: "cost of client and centre",
    lead: [
      "The official code stores the inputs of every layer; their Gram " +
      "matrices give the same minimiser and do not grow with steps or pictures.",
    ],
    parts: [
      tablePart(bytesTable(bytes)),
      tablePart(clientTable),
      tablePart(tableOf(centre, [
        ["centre", ({ solver }) => solver],
        ["n", ({ n }) => String(n)],
        ["seconds", ({ seconds }) => decimal(seconds, 1)],
      ])),
      figurePart("seconds", {
        title: "Seconds at the centre against the number of concepts",
        xTitle: "fused concepts",
        yTitle: "seconds",
        log: true,
        series: [...Map.groupBy(centre, ({ solver }) => solver)].map((
          [name, own],
        ) => ({
          ...{ name, as: "lines+markers" },
          x: own.map(({ n }) => n),
          y: own.map(({ seconds }) => seconds),
        })),
      }),
    ],
  };
}

/** What fusion costs. */
export const cost = experiment({
  name: "cost",
  summary:
    "Time and bytes of client and centre; features against Gram matrices",
  about:
    `Trains concepts as ED-LoRA, measures and fuses them, and reports the cost:
bytes of features and of Gram matrices, bytes that a client sends, seconds.`,
  options: OPTIONS,
  without: ["steps", "guidance"],
  scales: {
    quick: {
      help: "2 concepts: smoke test",
      plan: { concepts: TEST_CONCEPTS.slice(0, 2), counts: [1, 2] },
    },
    full: {
      help: "12 concepts, L-BFGS too",
      plan: {
        concepts: TEST_CONCEPTS,
        counts: [1, 2, 4, 8, 12],
        solvers: SOLVERS,
      },
    },
  },
  check({ concepts, counts }) {
    const most = Math.max(...counts);
    if (most <= concepts.length) return;
    throw cannot("count costs", `counts up to ${concepts.length}`, most);
  },
  run: measureCost,
});
