/**
 * `deno task experiment lambda`, `ridge`, `count`, `rank`, `tune`: scores
 * against one setting.
 *
 * @module
 */
import { z } from "zod";
import { cannot } from "../core/errors.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { ScoreEstimate } from "../experiments/ablation_schema.ts";
import { SD_CAPACITY } from "../experiments/measure.ts";
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
} from "../experiments/sweeps.ts";
import { joinPath, readJson, writeAtomic, writeJson } from "../io/files.ts";
import { IDENTITIES } from "../micro/world.ts";
import { type Command, command } from "./command.ts";
import {
  CONCEPTS,
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
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
import {
  decimal,
  markdownTable,
  type Table,
  textTable,
} from "../report/markdown.ts";

/** Where settings are chosen. */
const DEVELOPMENT: readonly string[] = IDENTITIES.filter(({ split }) =>
  split === "development"
)
  .map(({ name }) => name);

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

/** A share of `digits` decimals with its interval, where it has one. */
function interval(estimate: ScoreEstimate | undefined, digits = 3): string {
  if (!estimate || estimate.mean === null) return "";
  const [mean, low, high] = [estimate.mean, estimate.low, estimate.high]
    .map((value) => decimal(value ?? NaN, digits));
  return estimate.low === null ? mean : `${mean} (${low} to ${high})`;
}

function sweepTable(
  rows: readonly SweepRow[],
  concepts: readonly string[],
): Table {
  return {
    head: [
      ...["embedding", "training", "rank", "fusion", "n", "λ or ridge"],
      `n·r/d (SD: ≤ ${SD_CAPACITY})`,
      ...["text", "image", "masked image", "retrieval"],
      ...["image lost", "image kept", "gradient − weight", ...concepts],
    ],
    rows: rows.map((row) => [
      row.embedding,
      row.variant,
      String(row.rank ?? ""),
      row.fusion,
      String(row.n),
      row.value === null ? "" : String(Number(row.value.toPrecision(3))),
      decimal(row.capacity, 2),
      ...[row.text, row.image, row.masked, row.retrieval]
        .map((score) => decimal(score)),
      interval(row.loss),
      interval(row.kept, 2),
      interval(row.overWeight),
      ...concepts.map((one) => decimal(row.concepts[one] ?? NaN)),
    ]),
  };
}

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
      default: split === "test" ? TEST_CONCEPTS : DEVELOPMENT,
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
export interface SweepRequest {
  readonly lab: LabRequest;
  /** File of training configurations. */
  readonly variants?: string;
  /** File of prompts for features. */
  readonly templates?: string;
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

async function run(what: Sweep, request: SweepRequest): Promise<void> {
  const { variants, templates, lab: { out } } = request;
  const { settings } = request.plan;
  const gradient = templates === undefined ? settings.gradient : {
    ...settings.gradient,
    templates: await readJson(templates, TEMPLATES),
  };
  const plan: SweepPlan = {
    ...request.plan,
    settings: { ...settings, gradient },
    variants: variants === undefined
      ? undefined
      : await readJson(variants, VARIANTS) as Record<
        string,
        Partial<TrainConfig>
      >,
  };
  const doing = `run ${what.name}`;
  await inLab(doing, request.lab, async (lab, { describe, progress }) => {
    progress.line(
      `${describe}; ${what.name}: ${plan.concepts.join(", ")}`,
    );
    const rows = await sweep(lab, plan);
    const table = sweepTable(rows, plan.concepts);
    const { model, clip } = lab.hashes;
    const hashes = { model, clip };
    await writeJson(joinPath(out, `${what.name}.json`), {
      ...plan,
      hashes,
      rows,
    });
    await writeAtomic(
      joinPath(out, `${what.name}.md`),
      `# ${what.name}\n\n${markdownTable(table)}`,
    );
    progress.finish();
    console.log(`\n${textTable(table)}`);
    if (what.note) console.log(what.note(rows));
    console.log(joinPath(out, `${what.name}.json`));
  });
}

/** Scores against one setting each. */
export const sweeps: readonly Command<SweepRequest>[] = SWEEPS.map((what) =>
  command({
    name: what.name,
    summary: what.summary,
    usage: `deno task experiment ${what.name} [options]`,
    about: `${what.summary}.`,
    options: optionsOf(what),
    request: (values) => requestOf(what, values as SweepValues),
    run: (request) => run(what, request),
  })
);
