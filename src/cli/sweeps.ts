/**
 * `deno task experiment lambda`, `ridge`, `count`, `rank`, `tune`: scores
 * against one setting.
 *
 * @module
 */
import { z } from "zod";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { finish } from "../core/finish.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { StageProgress } from "../experiments/crew.ts";
import { EMBEDDINGS, TEST_CONCEPTS } from "../experiments/presets.ts";
import { mean } from "../evaluation/statistics.ts";
import { ranks, rankTable } from "../experiments/ranks.ts";
import { folderHash } from "../experiments/store.ts";
import { MODEL_PARTS } from "../experiments/study.ts";
import {
  bestLambdas,
  sweep,
  type SweepOptions,
  type SweepRow,
} from "../experiments/sweep.ts";
import {
  assertWritable,
  joinPath,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { conceptOf } from "../micro/in_domain.ts";
import { IDENTITIES } from "../micro/world.ts";
import { backendOf, type Command, EXIT_CODES, readOptions } from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { createProgress } from "./progress.ts";
import {
  decimal,
  markdownTable,
  type Table,
  textTable,
} from "../report/markdown.ts";
import { stageLabel } from "./stages.ts";
import { settingsOf, workersFor } from "./study_options.ts";

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

/** What comes out of a sweep. */
interface Outcome {
  readonly rows: readonly unknown[];
  readonly table: Table;
  /** A line below the table. */
  readonly note?: string;
}

/** A sweep's progress and outcome. */
type Run = AsyncGenerator<StageProgress, Outcome, void>;

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
  /**
   * Whether it takes neighbours, training configurations and a rank.
   *
   * @default true
   */
  readonly varied?: boolean;
  readonly run: (options: SweepOptions, values: readonly number[]) => Run;
}

/** Share of the single concepts' gain in image alignment that fusion keeps. */
function keptBy(row: SweepRow, rows: readonly SweepRow[]): string {
  const single = rows.find((other) =>
    other.fusion === "none" && other.embedding === row.embedding &&
    other.variant === row.variant && other.rank === row.rank
  );
  if (row.fusion === "none" || !single) return "";
  // Of the fused concepts only: how hard one is differs from one to the next.
  const names = Object.keys(row.concepts);
  const over = ({ concepts }: SweepRow) =>
    mean(names.map((name) => concepts[name]));
  const lower = over(rows[0]);
  const share = (over(row) - lower) / (over(single) - lower);
  return Number.isFinite(share) ? `${decimal(100 * share, 0)} %` : "";
}

function sweepTable(
  rows: readonly SweepRow[],
  concepts: readonly string[],
): Table {
  return {
    head: [
      "embedding",
      "training",
      "fusion",
      "n",
      "λ or ridge",
      "text",
      "image",
      "masked image",
      "retrieval",
      "image kept",
      ...concepts,
    ],
    rows: rows.map((row) => [
      row.embedding,
      row.variant,
      row.fusion,
      String(row.n),
      row.value === null ? "" : String(Number(row.value.toPrecision(3))),
      decimal(row.text),
      decimal(row.image),
      decimal(row.masked),
      decimal(row.retrieval),
      keptBy(row, rows),
      ...concepts.map((one) => decimal(row.concepts[one] ?? NaN)),
    ]),
  };
}

async function* swept(
  options: SweepOptions,
  note: (rows: readonly SweepRow[]) => string | undefined = () => undefined,
): Run {
  const rows = yield* sweep(options);
  const line = note(rows);
  return {
    rows,
    table: sweepTable(rows, options.concepts),
    ...(line ? { note: line } : {}),
  };
}

/** The best λ of each embedding, in a line. */
function bestLine(rows: readonly SweepRow[]): string | undefined {
  const best = Object.entries(bestLambdas(rows));
  return best.length === 0
    ? undefined
    : `best λ: ${best.map(([arm, value]) => `${arm} ${value}`).join(", ")}`;
}

const SWEEPS: readonly Sweep[] = [
  {
    name: "lambda",
    summary: "Weight fusion against its factor λ (development concepts)",
    split: "development",
    values: { what: "factors", default: [0.15, 0.35, 0.5, 0.6, 0.7, 0.85, 1] },
    run: (options, lambdas) => swept({ ...options, lambdas }, bestLine),
  },
  {
    name: "ridge",
    summary: "Gradient fusion against its ridge (development concepts)",
    split: "development",
    values: { what: "ridges", default: [1e-6, 1e-3, 0.1, 0.3, 1, 3] },
    run: (options, ridges) => swept({ ...options, ridges }),
  },
  {
    name: "count",
    summary: "Scores against the number of fused concepts (test concepts)",
    split: "test",
    values: { what: "numbers of concepts", default: [2, 4, 6, 9, 12] },
    run: (options, counts) =>
      swept({
        ...options,
        counts,
        lambdas: [...new Set(Object.values(options.settings.bestLambda))],
        ridges: [options.settings.gradient.ridge],
      }),
  },
  {
    name: "tune",
    summary: "Single concepts under several training configurations " +
      "(development concepts)",
    split: "development",
    run: (options) => swept(options),
  },
  {
    name: "rank",
    summary: "Single, weight- and gradient-fused concepts at several ranks, " +
      "beside n·r/d (test concepts)",
    split: "test",
    values: { what: "ranks", default: [1, 2, 4] },
    varied: false,
    run: async function* (options, values) {
      const rows = yield* ranks({ ...options, ranks: values });
      return { rows, table: rankTable(rows) };
    },
  },
];

function helpOf(
  { name, summary, split, values, varied = true }: Sweep,
): string {
  const lines = values
    ? `  --values LIST     ${values.what} (${values.default.join(",")})\n`
    : "";
  const crowd = varied
    ? `  --crowd LIST      concepts that are fused with them and not scored; in-domain
                    ones (niko, finn, ulla, zara) may be among them
  --variants FILE   training configurations, {"name": {"steps": 200}}${
      name === "tune" ? "" : ",\n                    each in turn"
    }\n`
    : "";
  return `deno task experiment ${name} [options]

${summary}.

${lines}  --concepts LIST   names (default: the ${split} concepts)
${crowd}  --n N             prompts of each concept (20)
  --seeds LIST      training seeds (0)
  --method LIST     lora, edlora (default: both)
  --templates FILE  prompts that gradient fusion's features come from, as a JSON
                    list: ["photo of a {}", "{}"]
  --preset NAME     ablation or official
  --train-steps N   training steps of a concept
${varied ? "  --rank N          rank of the adapters\n" : ""}\
  --cache FOLDER    finished pieces; that of an ablation has its concepts
  --model FOLDER    base model (default: the embedded one)
  --clip FOLDER     evaluation CLIP (default: the embedded one)
  --backend NAME    auto, webgpu, wasm or cpu
  --workers N       workers (default: processors; 0: in place)
  --out FOLDER      where ${name}.json and ${name}.md go (default out/${name})

${EXIT_CODES}
`;
}

/** What the command line asks for. */
export interface SweepRequest {
  readonly out: string;
  readonly values: readonly number[];
  /** File of training configurations. */
  readonly variants?: string;
  /** File of prompts for features. */
  readonly templates?: string;
  readonly workers?: number;
  readonly backend: BackendChoice;
  readonly options: Omit<SweepOptions, "workers" | "backend" | "variants">;
}

function parse(
  what: Sweep,
  args: readonly string[],
): SweepRequest | undefined {
  const { varied = true } = what;
  const options = readOptions(what.name, args, {
    text: [
      ...(what.values ? ["values"] : []),
      ...(varied ? ["crowd", "variants", "rank"] : []),
      "concepts",
      "n",
      "seeds",
      "method",
      "templates",
      "preset",
      "train-steps",
      "cache",
      "model",
      "clip",
      "backend",
      "workers",
      "out",
    ],
  });
  if (options.help) return undefined;
  const positive = { whole: true, least: 1 };
  const out = options.text("out") ?? `out/${what.name}`;
  const model = options.text("model") ?? EMBEDDED;
  const names = (option: string) =>
    options.list(option)?.map((one) => conceptOf(one).name);
  const crowd = names("crowd");
  const variants = what.name === "tune"
    ? options.needed("variants")
    : options.text("variants");
  const templates = options.text("templates");
  const workers = options.number("workers", { whole: true, least: 0 });
  return {
    out,
    values: options.numbers("values") ?? what.values?.default ?? [],
    ...(variants === undefined ? {} : { variants }),
    ...(templates === undefined ? {} : { templates }),
    ...(workers === undefined ? {} : { workers }),
    backend: backendOf(options),
    options: {
      model,
      clip: options.text("clip") ?? joinPath(model, "clip_b"),
      cache: options.text("cache") ?? joinPath(out, "cache"),
      settings: settingsOf(options),
      concepts: names("concepts") ??
        (what.split === "test" ? TEST_CONCEPTS : DEVELOPMENT),
      ...(crowd ? { crowd } : {}),
      prompts: options.number("n", { ...positive, most: 20 }) ?? 20,
      seeds: options.numbers("seeds", { whole: true }) ?? [0],
      embeddings: options.someOf("method", EMBEDDINGS) ?? EMBEDDINGS,
    },
  };
}

async function run(what: Sweep, request: SweepRequest): Promise<void> {
  const { out, variants, templates, values } = request;
  const { model, clip, settings } = request.options;
  await mustExist(`run ${what.name}`, model, clip);
  const changed = variants === undefined
    ? undefined
    : await readJson(variants, VARIANTS) as Record<
      string,
      Partial<TrainConfig>
    >;
  const gradient = templates === undefined ? settings.gradient : {
    ...settings.gradient,
    templates: await readJson(templates, TEMPLATES),
  };
  await assertWritable(out);
  const backend = await selectBackend(request.backend);
  const options: SweepOptions = {
    ...request.options,
    settings: { ...settings, gradient },
    ...(changed ? { variants: changed } : {}),
    workers: workersFor(request.workers, backend.name),
    backend: backend.name,
  };
  const progress = createProgress();
  progress.line(
    `${backend.describe}; ${what.name}: ${options.concepts.join(", ")}`,
  );
  const { rows, table, note } = await finish(
    what.run(options, values),
    ({ stage, done, total, unit }) =>
      progress.update(stageLabel(stage), done, total, unit),
  );
  progress.finish();
  const { concepts, crowd = [], prompts, seeds, variants: trained } = options;
  await writeJson(joinPath(out, `${what.name}.json`), {
    settings: options.settings,
    concepts,
    crowd,
    prompts,
    seeds,
    ...(trained ? { variants: trained } : {}),
    hashes: {
      model: await folderHash(model, MODEL_PARTS),
      clip: await folderHash(clip),
    },
    rows,
  });
  await writeAtomic(
    joinPath(out, `${what.name}.md`),
    `# ${what.name}\n\n${markdownTable(table)}`,
  );
  console.log(`\n${textTable(table)}`);
  if (note) console.log(note);
  console.log(joinPath(out, `${what.name}.json`));
}

/** Scores against one setting each. */
export const sweeps: readonly Command<SweepRequest>[] = SWEEPS.map((what) => ({
  name: what.name,
  summary: what.summary,
  help: helpOf(what),
  parse: (args) => parse(what, args),
  run: (request) => run(what, request),
}));
