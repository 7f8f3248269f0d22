/**
 * `deno task experiment`: the paper's other experiments.
 *
 * @module
 */
import { runScript } from "./command.ts";
import { finish } from "../core/finish.ts";
import { parseArgs } from "@std/cli/parse-args";
import { z } from "zod";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { hardwareWorkers } from "../core/pool.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { StageProgress } from "../experiments/crew.ts";
import {
  type EmbeddingName,
  EMBEDDINGS,
  presetOf,
} from "../experiments/presets.ts";
import type { StudyOptions } from "../experiments/study.ts";
import { ablationSchema } from "../experiments/ablation_schema.ts";
import { type EyeReport, lookAgain, optionsOf } from "../experiments/eyes.ts";
import { disposeClip, embedImages, loadClip } from "../evaluation/clip.ts";
import {
  type Eye,
  mobileNetEye,
  type PackedModel,
} from "../evaluation/outside_eye.ts";
import { ranks, rankTable } from "../experiments/ranks.ts";
import { bestLambdas, sweep, type SweepRow } from "../experiments/sweep.ts";
import {
  assertWritable,
  joinPath,
  pathOf,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { loadConceptArt, loadFrameIndex } from "../micro/concepts.ts";
import { frameDistances, LEAST_FRAME_DISTANCE } from "../micro/frames.ts";
import { conceptOf } from "../micro/in_domain.ts";
import { IDENTITIES } from "../micro/world.ts";
import { type Command, runCommand } from "./command.ts";
import { domain } from "./domain.ts";
import { stageLabel } from "./stages.ts";
import { createProgress } from "./progress.ts";
import { regions } from "./regions.ts";
import {
  decimal,
  markdownTable,
  signed,
  type Table,
  textTable,
} from "./report/markdown.ts";

const HELP = `deno task experiment NAME [options]

  lambda   weight fusion against its factor λ (development concepts)
  ridge    gradient fusion against its ridge (development concepts)
  count    scores against the number of fused concepts (test concepts)
  tune     single concepts under several training configurations
           (development concepts; --variants FILE: {"name": {"steps": 200}})
  rank     single, weight- and gradient-fused concepts at several ranks, beside
           n·r/d (test concepts)
  frames   how different training, reference and evaluation frames are
  eyes     a finished ablation (--out) seen by other eyes: nsfwjs' MobileNetV2
           and the CLIPs of --clips FOLDERS
  domain   concepts that the base model can draw itself, and ones that it cannot
           (has options of its own: --help)
  regions  several concepts in one picture (has options of its own: --help)

  --concepts LIST   names
  --crowd LIST      concepts that are fused with them and not scored; in-domain
                    ones (niko, finn, ulla, zara) may be among them
  --n N             prompts of each concept (20)
  --seeds LIST      seeds (0)
  --method LIST     lora, edlora
  --values LIST     factors, ridges, counts or ranks
  --preset NAME     ablation or official
  --train-steps N   training steps of a concept
  --rank N          rank of the adapters
  --templates FILE  prompts that gradient fusion's features come from, as a JSON
                    list: ["photo of a {}", "{}"]
  --cache FOLDER    finished pieces; that of an ablation has its concepts
  --backend, --workers, --model, --clip, --out   as for ablation
`;

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
const PROMPTS = z.array(z.string().includes("{}")).min(1);

/** What nsfwjs exports of a model. */
interface PackedModule {
  readonly MobileNetV2Model: {
    readonly modelJson: () => Promise<unknown>;
    readonly weightBundles: readonly (() => Promise<unknown>)[];
  };
}

/** nsfwjs' MobileNetV2. */
async function outsideEye(): Promise<Eye> {
  // Not a literal: 25 MB are downloaded when they are asked for, not by every
  // clone that checks or tests this file.
  const specifier: string = "npm:nsfwjs@4.3.0/models/mobilenet_v2";
  const { MobileNetV2Model: packed }: PackedModule = await import(specifier);
  const unwrap = (module: unknown): unknown =>
    (module as { default?: unknown }).default ?? module;
  return await mobileNetEye({
    json: unwrap(await packed.modelJson()) as PackedModel["json"],
    weights: await Promise.all(
      packed.weightBundles.map(async (load) => unwrap(await load()) as string),
    ),
  });
}

/** A CLIP as an eye. */
async function clipEye(folder: string): Promise<Eye> {
  const clip = await loadClip(folder);
  return {
    name: folder,
    embed: (images) => embedImages(clip, images),
    [Symbol.dispose]: () => disposeClip(clip),
  };
}

/** `experiment eyes`. */
async function lookWithOthers(
  out: string,
  model: string,
  clip: string,
  clips: readonly string[],
  cache?: string,
): Promise<void> {
  const report = await readJson(joinPath(out, "ablation.json"), ablationSchema);
  const options = optionsOf(report, {
    model,
    clip,
    cache: cache ?? joinPath(out, "cache"),
  });
  const progress = createProgress();
  const seen: EyeReport[] = [];
  for (const open of [outsideEye, ...clips.map((f) => () => clipEye(f))]) {
    using eye = await open();
    seen.push(
      await finish(
        lookAgain(options, eye),
        ({ stage, done, total, unit }) =>
          progress.update(stage, done, total, unit),
      ),
    );
  }
  progress.finish();
  await writeJson(joinPath(out, "eyes.json"), seen);
  for (const { eye, image, ceiling, comparisons } of seen) {
    console.log(`\n${eye}`);
    console.log(textTable({
      head: ["arm", "image"],
      rows: [
        ...Object.entries(image).map(([arm, value]) => [arm, decimal(value)]),
        ["references themselves", decimal(ceiling)],
      ],
    }));
    console.log(textTable({
      head: ["difference", "mean", "95 % interval", "wins"],
      rows: comparisons.map((c) => [
        c.id,
        signed(c.mean),
        `${decimal(c.low)} to ${decimal(c.high)}`,
        `${c.wins}/${c.n}`,
      ]),
    }));
  }
  console.log(joinPath(out, "eyes.json"));
}

/** `experiment frames`. */
async function measureFrames(out: string): Promise<void> {
  await assertWritable(out);
  const rows = frameDistances(await loadConceptArt(), await loadFrameIndex());
  await writeJson(joinPath(out, "frames.json"), rows);
  console.log(textTable({
    head: [
      "identity",
      "frames (training, reference, CLIP B)",
      "training – reference",
      "training – CLIP B",
      "reference – CLIP B",
    ],
    rows: rows.map((row) => [
      row.name,
      `${row.frames.train}, ${row.frames.reference}, ${row.frames.clip}`,
      decimal(row.trainReference, 1),
      decimal(row.trainClip, 1),
      decimal(row.referenceClip, 1),
    ]),
  }));
  const least = Math.min(
    ...rows.flatMap((row) => [
      row.trainReference,
      row.trainClip,
      row.referenceClip,
    ]),
  );
  console.log(
    `Smallest root mean square difference of two frames of different sets, ` +
      `mirror images included, 0–255: ${decimal(least, 1)} (at least ${
        decimal(LEAST_FRAME_DISTANCE, 0)
      } is asked for; writing a frame to a file changes it by about 2).`,
  );
  console.log(joinPath(out, "frames.json"));
}

/** What comes out of an experiment. */
interface Outcome {
  readonly rows: readonly unknown[];
  readonly table: Table;
  /** A line below the table. */
  readonly note?: string;
}

/** What an experiment is run with. */
type Common = Parameters<typeof sweep>[0];

/** An experiment's progress and outcome. */
type Run = AsyncGenerator<StageProgress, Outcome, void>;

interface Experiment {
  /** Concepts by default. */
  readonly split: "test" | "development";
  /** Values by default. */
  readonly values: readonly number[];
  readonly run: (common: Common, values: readonly number[]) => Run;
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
      ...concepts.map((one) => decimal(row.concepts[one] ?? NaN)),
    ]),
  };
}

async function* swept(
  common: Common,
  note: (rows: readonly SweepRow[]) => string | undefined = () => undefined,
): Run {
  const rows = yield* sweep(common);
  const line = note(rows);
  return {
    rows,
    table: sweepTable(rows, common.concepts),
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

const EXPERIMENTS: Readonly<Record<string, Experiment>> = {
  lambda: {
    split: "development",
    values: [0.15, 0.35, 0.5, 0.6, 0.7, 0.85, 1],
    run: (common, lambdas) => swept({ ...common, lambdas }, bestLine),
  },
  ridge: {
    split: "development",
    values: [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1],
    run: (common, ridges) => swept({ ...common, ridges }),
  },
  count: {
    split: "test",
    values: [2, 4, 6, 9, 12],
    run: (common, counts) =>
      swept({
        ...common,
        counts,
        lambdas: [...new Set(Object.values(common.settings.bestLambda))],
        ridges: [common.settings.gradient.ridge],
      }),
  },
  rank: {
    split: "test",
    values: [1, 2, 4],
    run: async function* (common, values) {
      const rows = yield* ranks({ ...common, ranks: values });
      return { rows, table: rankTable(rows) };
    },
  },
  tune: {
    split: "development",
    values: [],
    run: (common) => swept(common),
  },
};

function numbers(name: string, text: string): number[] {
  return text.split(",").map((part) => {
    const value = part.trim() === "" ? NaN : Number(part);
    if (!Number.isFinite(value)) {
      throw cannot(`read --${name}`, "numbers separated by commas", text);
    }
    return value;
  });
}

/**
 * Runs the command.
 *
 * @param args Arguments.
 * @throws Before work starts, if an argument, a file, the output folder or the
 * backend is not as it should be.
 */
export async function main(args: readonly string[]): Promise<void> {
  for (const own of [regions, domain] as readonly Command<unknown>[]) {
    if (args[0] !== own.name) continue;
    Deno.exitCode = await runCommand(own, args.slice(1));
    return;
  }
  const parsed = parseArgs([...args], {
    string: [
      "concepts",
      "crowd",
      "n",
      "seeds",
      "method",
      "values",
      "variants",
      "templates",
      "preset",
      "train-steps",
      "rank",
      "backend",
      "workers",
      "model",
      "clip",
      "clips",
      "cache",
      "out",
    ],
    boolean: ["help"],
    unknown: (name: string) => {
      if (!name.startsWith("-")) return true;
      throw cannot("run an experiment", "a known option (--help)", name);
    },
  });
  const [name] = parsed._.map(String);
  if (parsed.help || name === undefined) return console.log(HELP);
  if (
    parsed._.length > 1 ||
    !["eyes", "frames"].includes(name) && !Object.hasOwn(EXPERIMENTS, name)
  ) {
    throw cannot(
      "run an experiment",
      [...Object.keys(EXPERIMENTS), "frames", "eyes", "domain", "regions"]
        .join(", "),
      parsed._.join(" "),
    );
  }
  const model = parsed.model ??
    pathOf(new URL("../../models/micro", import.meta.url));
  const clip = parsed.clip ?? joinPath(model, "clip_b");
  if (name === "eyes") {
    const choice = (parsed.backend ?? "auto") as BackendChoice;
    console.log((await selectBackend(choice)).describe);
    const clips = parsed.clips?.split(",") ?? [];
    return await lookWithOthers(
      parsed.out ?? "out/ablation",
      model,
      clip,
      clips,
      parsed.cache,
    );
  }
  if (name === "frames") return await measureFrames(parsed.out ?? "out/frames");
  const experiment = EXPERIMENTS[name];
  const concepts = parsed.concepts?.split(",")
    .map((one) => conceptOf(one).name) ??
    IDENTITIES.filter(({ split }) => split === experiment.split)
      .map((identity) => identity.name);
  const crowd = parsed.crowd?.split(",").map((one) => conceptOf(one).name);
  const embeddings = parsed.method?.split(",").map((one) => {
    if (!EMBEDDINGS.includes(one as EmbeddingName)) {
      throw cannot("read --method", EMBEDDINGS.join(", "), one);
    }
    return one as EmbeddingName;
  }) ?? EMBEDDINGS;
  const preset = presetOf(parsed.preset ?? "ablation");
  const out = parsed.out ?? `out/${name}`;
  const variants = parsed.variants === undefined
    ? undefined
    : await readJson(parsed.variants, VARIANTS) as Record<
      string,
      Partial<TrainConfig>
    >;
  const templates = parsed.templates === undefined
    ? preset.gradient.templates
    : await readJson(parsed.templates, PROMPTS);
  if (name === "tune" && !variants) {
    throw cannot("tune", "--variants FILE", "none");
  }
  await assertWritable(out);
  const backend = await selectBackend(
    (parsed.backend ?? "auto") as BackendChoice,
  );
  const common: StudyOptions = {
    model,
    clip,
    cache: parsed.cache ?? joinPath(out, "cache"),
    settings: {
      ...preset,
      gradient: { ...preset.gradient, templates },
      rank: parsed.rank ? numbers("rank", parsed.rank)[0] : preset.rank,
      train: {
        ...preset.train,
        ...(parsed["train-steps"]
          ? { steps: numbers("train-steps", parsed["train-steps"])[0] }
          : {}),
      },
    },
    workers: parsed.workers
      ? numbers("workers", parsed.workers)[0]
      : backend.name === "webgpu"
      ? 0
      : hardwareWorkers(),
    backend: backend.name,
  };
  console.log(
    `${backend.describe}; ${name}: ${concepts.join(", ")}`,
  );
  const progress = createProgress();
  const run = experiment.run(
    {
      ...common,
      concepts,
      prompts: numbers("n", parsed.n ?? "20")[0],
      seeds: numbers("seeds", parsed.seeds ?? "0"),
      embeddings,
      ...(variants ? { variants } : {}),
      ...(crowd ? { crowd } : {}),
    },
    parsed.values ? numbers("values", parsed.values) : experiment.values,
  );
  const { rows, table, note } = await finish(
    run,
    ({ stage, done, total, unit }) =>
      progress.update(stageLabel(stage), done, total, unit),
  );
  progress.finish();
  await writeJson(joinPath(out, `${name}.json`), {
    settings: common.settings,
    rows,
  });
  await writeAtomic(
    joinPath(out, `${name}.md`),
    `# ${name}\n\n${markdownTable(table)}`,
  );
  console.log(`\n${textTable(table)}`);
  if (note) console.log(note);
  console.log(joinPath(out, `${name}.json`));
}

if (import.meta.main) await runScript(() => main(Deno.args));
