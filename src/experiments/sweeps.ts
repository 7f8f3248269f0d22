/**
 * How scores depend on λ of weight fusion, on the ridge of gradient fusion, on
 * the rank, on the number of fused concepts and on how concepts were trained.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import {
  file,
  listOf,
  number,
  oneOf,
  type OptionTable,
  optionTable,
} from "../core/options.ts";
import { TARGET_NAMES } from "../customize/lora.ts";
import type { TrainConfig } from "../customize/train.ts";
import { readJson } from "../io/files.ts";
import { tablePart } from "../report/document.ts";
import { type Experiment, experiment, type Plan } from "./experiment.ts";
import {
  type ExperimentPreset,
  RUN_OPTIONS,
  TEST_CONCEPTS,
} from "./presets.ts";
import { CONCEPT, CONCEPTS, DEVELOPMENT_CONCEPTS } from "./subjects.ts";
import { checkSweep, sweep, type SweepPlan, type SweepRow } from "./sweep.ts";
import {
  bestLambdas,
  type SweepAxis,
  sweepFigures,
  sweepTable,
} from "./sweep_table.ts";

const rate = z.number().nonnegative();

/** A file for --variants: changes of the training configuration, by name. */
const VARIANTS = z.record(
  z.string(),
  z.strictObject({
    steps: z.int().positive(),
    batch: z.int().positive(),
    lr: z.strictObject({ embedding: rate, textEncoder: rate, unet: rate }),
    schedule: z.enum(["linear", "constant"]),
    warmup: z.int().nonnegative(),
    weightDecay: rate,
    clipNorm: rate,
    noiseOffset: rate,
    masked: z.boolean(),
    freezeDown: z.boolean(),
  }).partial(),
);

/** A file of --templates. */
const TEMPLATES = z.array(z.string().includes("{}")).min(1);

/** Options of every sweep. */
const OPTIONS = optionTable({
  concepts: { type: CONCEPTS, default: TEST_CONCEPTS, help: "concepts" },
  distractors: {
    type: listOf(CONCEPT, true),
    default: [],
    help:
      "further concepts that are fused and not scored; in-domain concepts " +
      "(niko, finn, ulla, zara) are allowed",
  },
  ...RUN_OPTIONS,
  values: {
    type: listOf(number()),
    default: [] as readonly number[],
    help: "values of the sweep",
  },
  layers: {
    type: listOf(oneOf(TARGET_NAMES)),
    otherwise: "the preset's",
    help: "layers that have an adapter and are fused by gradient, each in " +
      `turn: ${TARGET_NAMES.join(", ")}`,
  },
  variants: {
    type: file,
    help: 'training configurations, each in turn: {"name": {"steps": 200}}',
  },
  templates: {
    type: file,
    otherwise: '["photo of a {}", "{}"]',
    help: "prompts that gradient fusion's features come from, as a JSON list",
  },
});

/** What one sweep varies. */
interface Sweep {
  readonly name: string;
  readonly also?: readonly string[];
  readonly summary: string;
  /**
   * Default concepts, all of one split, so that no concept is both tuned and
   * reported.
   */
  readonly split: "test" | "development";
  /** What --values are; nothing if there are none. */
  readonly values?: {
    readonly what: string;
    readonly default: readonly number[];
  };
  /** What is varied in the plan. */
  readonly vary: (
    values: readonly number[],
    settings: ExperimentPreset,
  ) => Partial<SweepPlan>;
  /** The horizontal axis of its figures. */
  readonly axis: SweepAxis;
  /** Options that it does not have. */
  readonly omit?: readonly (keyof typeof OPTIONS)[];
  /** A line below the table. */
  readonly note?: (rows: readonly SweepRow[]) => string;
}

/** Reads the files of a sweep, and makes its plan. */
async function sweepPlan(
  { name, vary }: Sweep,
  plan: Plan<typeof OPTIONS>,
): Promise<SweepPlan> {
  const { settings, templates, variants, values } = plan;
  const varied = vary(values ?? [], settings);
  if (templates !== undefined && !varied.ridges) {
    throw cannot(name, "gradient fusion for --templates", "none");
  }
  const distractors = plan.distractors ?? [];
  if (distractors.length > 0 && !varied.ridges && !varied.lambdas) {
    throw cannot(name, "fused concepts for --distractors", "none");
  }
  const { gradient } = settings;
  return {
    ...plan,
    ...varied,
    settings: templates === undefined ? settings : {
      ...settings,
      gradient: {
        ...gradient,
        templates: await readJson(templates, TEMPLATES),
      },
    },
    variants: variants === undefined
      ? undefined
      : await readJson(variants, VARIANTS) as Record<
        string,
        Partial<TrainConfig>
      >,
  };
}

function sweepExperiment(what: Sweep): Experiment<typeof OPTIONS> {
  const { name, also, summary, split, values, axis, note, omit = [] } = what;
  const { values: list, ...others } = {
    ...Object.fromEntries(
      Object.entries(OPTIONS).filter(([field]) =>
        !omit.some((f) => f === field)
      ),
    ) as typeof OPTIONS,
    concepts: {
      ...OPTIONS.concepts,
      default: split === "test" ? TEST_CONCEPTS : DEVELOPMENT_CONCEPTS,
      help: `the ${split} concepts`,
    },
    variants: { ...OPTIONS.variants, needed: name === "tune" },
  };
  const options: OptionTable = values
    ? {
      values: { ...list, default: values.default, help: values.what },
      ...others,
    }
    : others;
  return experiment({
    ...{ name, also, summary, about: `${summary}.` },
    options: options as typeof OPTIONS,
    scales: {
      quick: {
        help: `2 concepts, 2 prompts${
          !values ? "" : name === "count" ? ", 1 value" : ", 2 values"
        }: smoke test, no conclusion`,
        plan: {
          concepts: others.concepts.default.slice(0, 2),
          prompts: 2,
          ...(values && {
            // At most as many concepts can be fused as there are.
            values: name === "count" ? [2] : values.default.slice(0, 2),
          }),
        },
      },
    },
    // Those of the rank sweep are its values; layers are a list here.
    without: name === "rank" ? ["rank", "layers"] : ["layers"],
    check: async (plan) => checkSweep(await sweepPlan(what, plan)),
    async run(lab, plan) {
      const rows = await sweep(lab, await sweepPlan(what, plan));
      return {
        data: { rows },
        report: {
          ...{ name, title: summary, lead: [] },
          parts: [
            tablePart(sweepTable(rows, plan.concepts)),
            ...sweepFigures(rows, axis),
          ],
        },
        note: note?.(rows),
      };
    },
  });
}

/** Scores against one setting each. */
export const SWEEPS: readonly Experiment<typeof OPTIONS>[] = [
  sweepExperiment({
    name: "lambda",
    summary: "Weight fusion against its factor λ (development concepts)",
    split: "development",
    values: { what: "factors", default: [0.1, 0.2, 0.3, 0.5, 0.7, 1] },
    omit: ["templates"],
    vary: (lambdas) => ({ lambdas }),
    axis: {
      title: "factor λ",
      at: ({ fusion, value }) => fusion === "sum" ? value : undefined,
    },
    note: (rows) =>
      `best λ: ${
        Object.entries(bestLambdas(rows))
          .map(([arm, value]) => `${arm} ${value}`).join(", ")
      }`,
  }),
  sweepExperiment({
    name: "ridge",
    summary: "Gradient fusion against its ridge (development concepts)",
    split: "development",
    values: {
      what: "ridges; cross-validation (auto) is compared with them",
      default: [1e-6, 1e-3, 0.01, 0.1, 1, 10],
    },
    vary: (ridges) => ({ ridges: [...ridges, "auto"] }),
    axis: {
      title: "ridge, relative to the mean diagonal",
      // The sum has no ridge.
      at: ({ fusion, value }) =>
        fusion === "none" ? undefined : fusion === "sum" ? null : value,
    },
  }),
  sweepExperiment({
    name: "count",
    also: ["scaling"],
    summary: "Scores against the number of fused concepts (test concepts)",
    split: "test",
    values: { what: "numbers of concepts", default: [2, 4, 6, 9, 12] },
    vary: (counts, { gradient }) => ({ counts, ridges: [gradient.ridge] }),
    axis: {
      title: "fused concepts",
      at: ({ fusion, n }) => fusion === "none" ? undefined : n,
    },
  }),
  sweepExperiment({
    name: "tune",
    summary: "Single concepts under several training configurations " +
      "(development concepts)",
    split: "development",
    omit: ["templates", "distractors"],
    vary: () => ({}),
    axis: { title: "training", at: ({ variant }) => variant },
  }),
  sweepExperiment({
    name: "rank",
    summary: "Single, weight- and gradient-fused concepts at several ranks, " +
      "beside n·r/d (test concepts)",
    split: "test",
    values: { what: "ranks", default: [1, 2, 4, 8] },
    vary: (ranks, { gradient }) => ({ ranks, ridges: [gradient.ridge] }),
    axis: { title: "rank", at: ({ rank }) => rank },
  }),
];
