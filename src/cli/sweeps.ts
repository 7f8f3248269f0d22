/**
 * `deno task experiment lambda`, `ridge`, `count`, `rank`, `tune`: scores
 * against one setting.
 *
 * @module
 */
import { z } from "zod";
import { cannot } from "../core/errors.ts";
import type { TrainConfig } from "../customize/train.ts";
import {
  EMBEDDINGS,
  type ExperimentPreset,
  TEST_CONCEPTS,
} from "../experiments/presets.ts";
import {
  bestLambdas,
  sweep,
  type SweepPlan,
  type SweepRow,
  sweepTable,
} from "../experiments/sweeps.ts";
import { DEVELOPMENT_CONCEPTS } from "../experiments/subjects.ts";
import { readJson } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import type { Command } from "./command.ts";
import {
  experiment,
  type ExperimentRequest,
  type Outcome,
} from "./experiment_command.ts";
import {
  CONCEPTS,
  LAB_OPTIONS,
  labRequest,
  type Machine,
  RUN_OPTIONS,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  file,
  folder,
  listOf,
  number,
  oneOf,
  optionTable,
  type Values,
} from "./options.ts";

const rate = z.number().nonnegative();

/** What a file of --variants may change of a training configuration. */
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

/** What is swept, and over what. */
interface Sweep {
  readonly name: string;
  readonly summary: string;
  /** Concepts by default. */
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
  /** A line below the table. */
  readonly note?: (rows: readonly SweepRow[]) => string;
}

const SWEEPS: readonly Sweep[] = [
  {
    name: "lambda",
    summary: "Weight fusion against its factor λ (development concepts)",
    split: "development",
    values: { what: "factors", default: [0.15, 0.35, 0.5, 0.6, 0.7, 0.85, 1] },
    vary: (lambdas) => ({ lambdas }),
    note: (rows) =>
      `best λ: ${
        Object.entries(bestLambdas(rows))
          .map(([arm, value]) => `${arm} ${value}`).join(", ")
      }`,
  },
  {
    name: "ridge",
    summary: "Gradient fusion against its ridge (development concepts)",
    split: "development",
    values: { what: "ridges", default: [1e-6, 1e-3, 0.1, 0.3, 1, 3] },
    vary: (ridges) => ({ ridges }),
  },
  {
    name: "count",
    summary: "Scores against the number of fused concepts (test concepts)",
    split: "test",
    values: { what: "numbers of concepts", default: [2, 4, 6, 9, 12] },
    vary: (counts, { bestLambda, gradient }) => ({
      counts,
      lambdas: Object.values(bestLambda),
      ridges: [gradient.ridge],
    }),
  },
  {
    name: "tune",
    summary: "Single concepts under several training configurations " +
      "(development concepts)",
    split: "development",
    vary: () => ({}),
  },
  {
    name: "rank",
    summary: "Single, weight- and gradient-fused concepts at several ranks, " +
      "beside n·r/d (test concepts)",
    split: "test",
    values: { what: "ranks", default: [1, 2, 4] },
    vary: (ranks, { gradient }) => ({ ranks, ridges: [gradient.ridge] }),
  },
];

/** Options of every sweep. */
const OPTIONS = optionTable({
  distractors: {
    type: CONCEPTS,
    otherwise: "none",
    help: "concepts that are fused with them and not scored; in-domain ones " +
      "(niko, finn, ulla, zara) may be among them",
  },
  ...RUN_OPTIONS,
  method: {
    type: listOf(oneOf(EMBEDDINGS)),
    otherwise: "both",
    help: "lora, edlora",
  },
  templates: {
    type: file,
    otherwise: '["photo of a {}", "{}"]',
    help: "prompts that gradient fusion's features come from, as a JSON list",
  },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
});

/** Options of one sweep. */
function optionsOf({ name, split, values }: Sweep) {
  const { rank, ...others } = OPTIONS;
  return optionTable({
    ...(values
      ? {
        values: {
          type: listOf(number()),
          default: values.default,
          help: values.what,
        },
      }
      : {}),
    concepts: {
      type: CONCEPTS,
      default: split === "test" ? TEST_CONCEPTS : DEVELOPMENT_CONCEPTS,
      help: `the ${split} concepts`,
    },
    variants: {
      type: file,
      needed: name === "tune",
      help: 'training configurations, each in turn: {"name": {"steps": 200}}',
    },
    // That of the rank sweep are its values.
    ...(name === "rank" ? {} : { rank }),
    ...others,
    out: {
      type: folder,
      default: `out/${name}`,
      help: `where ${name}.json and ${name}.md go`,
    },
  });
}

/** What the command line asks for. */
export interface SweepRequest extends ExperimentRequest {
  /** File of training configurations. */
  readonly variants?: string;
  /** File of prompts for features. */
  readonly templates?: string;
  /** What is swept. */
  readonly plan: SweepPlan;
}

/** What a sweep's options hold. */
type SweepValues =
  & Partial<Values<typeof OPTIONS>>
  & Pick<SweepRequest, "variants" | "templates">
  & Pick<SweepPlan, "concepts">
  & { readonly values?: readonly number[]; readonly out: string };

function requestOf(what: Sweep, values: SweepValues): SweepRequest {
  const settings = settingsOf(values);
  const varied = what.vary(values.values ?? [], settings);
  if (values.templates !== undefined && !varied.ridges) {
    throw cannot(what.name, "gradient fusion for --templates", "none");
  }
  if (values.distractors && !varied.ridges && !varied.lambdas) {
    throw cannot(what.name, "fused concepts for --distractors", "none");
  }
  return {
    lab: labRequest(values, values.out),
    variants: values.variants,
    templates: values.templates,
    plan: {
      ...varied,
      settings,
      concepts: values.concepts,
      distractors: values.distractors ?? [],
      prompts: values.n ?? 20,
      seeds: values.seeds ?? [0],
      embeddings: values.method ?? EMBEDDINGS,
    },
  };
}

/** Reads what the request names files of. */
async function planOf(request: SweepRequest): Promise<SweepPlan> {
  const { variants, templates, plan } = request;
  const { gradient } = plan.settings;
  return {
    ...plan,
    settings: {
      ...plan.settings,
      gradient: templates === undefined
        ? gradient
        : { ...gradient, templates: await readJson(templates, TEMPLATES) },
    },
    variants: variants === undefined
      ? undefined
      : await readJson(variants, VARIANTS) as Record<
        string,
        Partial<TrainConfig>
      >,
  };
}

async function run(
  { name, summary, note }: Sweep,
  lab: Lab,
  request: SweepRequest,
  { progress }: Machine,
): Promise<Outcome> {
  const plan = await planOf(request);
  progress.line(`${name}: ${plan.concepts.join(", ")}`);
  const rows = await sweep(lab, plan);
  const { model, clip } = lab.hashes;
  const table = sweepTable(rows, plan.concepts);
  return {
    report: {
      name,
      title: summary,
      lead: [],
      parts: [{ type: "table", table, brief: true }],
    },
    data: { ...plan, hashes: { model, clip }, rows },
    note: note?.(rows),
  };
}

/** Scores against one setting each. */
export const sweeps: readonly Command<SweepRequest>[] = SWEEPS.map((what) =>
  experiment({
    name: what.name,
    summary: what.summary,
    about: `${what.summary}.`,
    options: optionsOf(what),
    request: (values) => requestOf(what, values as SweepValues),
    // Files are checked before a lab is opened.
    prepare: async (request) => {
      await planOf(request);
      return {};
    },
    run: (lab, request, machine) => run(what, lab, request, machine),
  })
);
