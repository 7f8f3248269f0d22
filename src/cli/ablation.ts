/**
 * `deno task ablation`: {LoRA, ED-LoRA} × {weight, gradient fusion}.
 *
 * @module
 */
import { runScript } from "./command.ts";
import { finish } from "../core/finish.ts";
import { parseArgs } from "@std/cli/parse-args";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { hardwareWorkers } from "../core/pool.ts";
import {
  ablation,
  type AblationOptions,
  ablationPictures,
  FUSIONS,
} from "../experiments/ablation.ts";
import { ablationTable } from "../experiments/ablation_figures.ts";
import { ablationSchema } from "../experiments/ablation_schema.ts";
import { store } from "../experiments/pieces.ts";
import { EMBEDDINGS, presetOf } from "../experiments/presets.ts";
import { pixelsOf } from "../experiments/workshop.ts";
import {
  assertWritable,
  exists,
  joinPath,
  pathOf,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { conceptImage, identityOf, loadConceptArt } from "../micro/concepts.ts";
import { IDENTITIES } from "../micro/world.ts";
import { createProgress } from "./progress.ts";
import {
  ablationHtml,
  ablationMarkdown,
  type PictureRow,
} from "./report/ablation.ts";
import { contactSheet } from "./report/grid.ts";
import { textTable } from "./report/markdown.ts";

const HELP = `deno task ablation [options]

Trains concepts as LoRA and as ED-LoRA, fuses them by weight and by gradient,
draws pictures before and after, scores them, and writes a report.

  (default)           5 concepts, 20 prompts each, one seed
  --quick             2 concepts, 4 prompts: mechanics only, no conclusion
  --full              12 concepts, 20 prompts, 3 seeds
  --concepts LIST     names, or how many of the test concepts
  --n N               prompts of each concept (1 to 20)
  --seeds LIST        training seeds, such as 0,1,2
  --method LIST       lora, edlora (default: both)
  --fusion LIST       weight, gradient, weight_best_lambda (default: all)
  --preset NAME       ablation (default) or official
  --steps N           sampling steps (20)
  --train-steps N     training steps of a concept
  --guidance X        guidance scale
  --rank N            rank of the adapters (4)
  --backend NAME      auto, webgpu, wasm or cpu
  --workers N         workers (default: processors; 0: in place)
  --model FOLDER      base model (default: the embedded one)
  --clip FOLDER       evaluation CLIP (default: the embedded one)
  --out FOLDER        where results go (default: out/ablation…)
  --fresh             forget what the output folder's cache holds

A run that is stopped continues where it was; what is in the cache is not done
again.
`;

/** The embedded model's folder. */
const EMBEDDED = new URL("../../models/micro", import.meta.url);

/** The scales: what the flags `--quick` and `--full` stand for. */
const SCALES = {
  quick: { concepts: 2, prompts: 4, seeds: [0], out: "out/ablation-quick" },
  default: { concepts: 5, prompts: 20, seeds: [0], out: "out/ablation" },
  full: {
    concepts: 12,
    prompts: 20,
    seeds: [0, 1, 2],
    out: "out/ablation-full",
  },
} as const;

/**
 * The default concepts: two people, two animals and a bird first, since
 * look-alikes are where fusion conflicts.
 */
const ORDER = [
  "kuro",
  "lila",
  "momo",
  "raja",
  "zorp",
  "bram",
  "pogo",
  "aero",
  "zeno",
  "pip",
  "kiki",
  "whir",
];

/** What the command line asks for. */
export interface AblationCommand {
  readonly help: boolean;
  readonly fresh: boolean;
  readonly backend: BackendChoice;
  readonly out: string;
  readonly workers?: number;
  readonly options: Omit<AblationOptions, "workers" | "backend" | "version">;
}

/** A list of known names. */
function list<T extends string>(
  what: string,
  known: readonly T[],
  text: string | undefined,
): readonly T[] {
  if (text === undefined) return known;
  return text.split(",").map((name) => {
    if (!known.includes(name as T)) {
      throw cannot(`read --${what}`, known.join(", "), name || "nothing");
    }
    return name as T;
  });
}

/** A number of the command line. */
function number(
  name: string,
  text: string | undefined,
  fallback: number,
  check: (value: number) => boolean,
  expected: string,
): number {
  if (text === undefined) return fallback;
  const value = text.trim() === "" ? NaN : Number(text);
  if (!check(value)) throw cannot(`read --${name}`, expected, text);
  return value;
}

const whole = (least: number, most = Infinity) => (value: number): boolean =>
  Number.isInteger(value) && value >= least && value <= most;

/**
 * Reads the command line; every mistake is an error.
 *
 * @param args Arguments.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseAblation(args: readonly string[]): AblationCommand {
  const strings = [
    "concepts",
    "n",
    "seeds",
    "method",
    "fusion",
    "preset",
    "steps",
    "train-steps",
    "guidance",
    "rank",
    "backend",
    "workers",
    "model",
    "clip",
    "out",
  ] as const;
  const parsed = parseArgs([...args], {
    string: [...strings],
    boolean: ["quick", "full", "fresh", "help"],
    unknown: (name: string) => {
      throw cannot("start the ablation", "a known option (--help)", name);
    },
  });
  if (parsed.quick && parsed.full) {
    throw cannot("start the ablation", "--quick or --full", "both");
  }
  const scale = parsed.quick ? "quick" : parsed.full ? "full" : "default";
  const defaults = SCALES[scale];
  const text = (name: typeof strings[number]) =>
    parsed[name] as string | undefined;
  const asked = text("concepts");
  const count = asked === undefined ? defaults.concepts : Number(asked);
  const concepts = Number.isNaN(count)
    ? asked!.split(",").map((name) => identityOf(name).name)
    : ORDER.slice(
      0,
      number(
        "concepts",
        String(count),
        0,
        whole(1, ORDER.length),
        `names of ${
          IDENTITIES.map(({ name }) => name).join(", ")
        }, or 1 to ${ORDER.length}`,
      ),
    );
  const preset = presetOf(text("preset") ?? "ablation");
  const seeds = text("seeds")?.split(",").map((seed) =>
    number("seeds", seed, 0, Number.isSafeInteger, "whole numbers")
  );
  const trainSteps = text("train-steps");
  const folder = pathOf(EMBEDDED);
  const changed = asked !== undefined || seeds !== undefined ||
    ["n", "method", "fusion", "steps", "train-steps", "guidance", "rank"].some(
      (name) => parsed[name] !== undefined,
    );
  return {
    help: parsed.help,
    fresh: parsed.fresh,
    backend: list(
      "backend",
      ["auto", "webgpu", "wasm", "cpu"] as const,
      text("backend") ?? "auto",
    )[0],
    out: text("out") ?? defaults.out,
    ...(text("workers") === undefined ? {} : {
      workers: number(
        "workers",
        text("workers"),
        0,
        whole(0),
        "a whole number ≥ 0",
      ),
    }),
    options: {
      model: text("model") ?? folder,
      clip: text("clip") ?? joinPath(folder, "clip_b"),
      cache: joinPath(text("out") ?? defaults.out, "cache"),
      concepts,
      prompts: number(
        "n",
        text("n"),
        defaults.prompts,
        whole(1, 20),
        "1 to 20 prompts",
      ),
      seeds: seeds ?? defaults.seeds,
      embeddings: list("method", EMBEDDINGS, text("method")),
      fusions: list("fusion", FUSIONS, text("fusion")),
      settings: {
        ...preset,
        rank: number(
          "rank",
          text("rank"),
          preset.rank,
          whole(1),
          "a whole number ≥ 1",
        ),
        train: {
          ...preset.train,
          ...(trainSteps === undefined ? {} : {
            steps: number(
              "train-steps",
              trainSteps,
              0,
              whole(1),
              "a whole number ≥ 1",
            ),
          }),
        },
        sampling: {
          ...preset.sampling,
          steps: number(
            "steps",
            text("steps"),
            preset.sampling.steps,
            whole(1, 1000),
            "1 to 1000 steps",
          ),
          guidance: number(
            "guidance",
            text("guidance"),
            preset.sampling.guidance,
            Number.isFinite,
            "a number",
          ),
        },
      },
      scale: scale === "quick" ? "quick" : changed ? "custom" : scale,
    },
  };
}

/** The version in deno.json; unknown where the package is not on a disk. */
async function libraryVersion(): Promise<string> {
  const file = new URL("../../deno.json", import.meta.url);
  if (file.protocol !== "file:") return "unknown";
  return (await readJson<{ version: string }>(file)).version;
}

/** Pictures of the store for the report, with a reference first. */
async function pictureRows(
  options: AblationOptions,
  perConcept: number,
): Promise<PictureRow[]> {
  const art = await loadConceptArt();
  const rows: PictureRow[] = [];
  for (const entry of await ablationPictures(options, perConcept)) {
    const { image, scene } = conceptImage(entry.concept, "reference", 0, art);
    const cells = new Map<string, Pixels>([
      ["reference", pixelsOf(image, scene.side)],
    ]);
    for (const { arm, id } of entry.pictures) {
      const bytes = await Deno.readFile(store.image(options.cache, id));
      cells.set(arm, decodePng(bytes));
    }
    rows.push({ label: `${entry.concept}: ${entry.text}`, cells });
  }
  return rows;
}

/**
 * Runs the command.
 *
 * @param args Arguments.
 * @throws Before work starts, if an argument, a file, the output folder or the
 * backend is not as it should be.
 */
export async function main(args: readonly string[]): Promise<void> {
  const command = parseAblation(args);
  if (command.help) return console.log(HELP);
  const { out } = command;
  for (const folder of [command.options.model, command.options.clip]) {
    if (!await exists(folder)) {
      throw cannot("start the ablation", "a model folder", `none: ${folder}`);
    }
  }
  await assertWritable(out);
  const backend = await selectBackend(command.backend);
  if (command.fresh) {
    await Deno.remove(command.options.cache, { recursive: true })
      .catch((error) => {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      });
  }
  // A graphics adapter is one: workers would only take turns on it.
  const workers = command.workers ??
    (backend.name === "webgpu" ? 0 : hardwareWorkers());
  const options: AblationOptions = {
    ...command.options,
    workers,
    backend: backend.name,
    version: await libraryVersion(),
  };
  const { concepts, prompts, seeds, settings } = options;
  console.log(
    `${backend.describe}, ${workers} workers; ${concepts.length} concepts (${
      concepts.join(", ")
    }), ${prompts} prompts, seeds ${seeds.join(", ")}, rank ${settings.rank}`,
  );
  if (options.scale === "quick") console.log("mechanics only, no conclusion");
  const progress = createProgress();
  const found = await finish(
    ablation(options),
    ({ stage, done, total, unit }) =>
      progress.update(LABELS[stage] ?? stage, done, total, unit),
  );
  progress.finish();
  const report = ablationSchema.parse(JSON.parse(JSON.stringify(found)));
  const rows = await pictureRows(options, options.scale === "quick" ? 4 : 2);
  await writeJson(joinPath(out, "ablation.json"), report);
  await writeAtomic(joinPath(out, "ablation.md"), ablationMarkdown(report));
  await writeAtomic(
    joinPath(out, "ablation.html"),
    await ablationHtml(report, rows),
  );
  const arms = [...rows[0].cells.keys()];
  const sheet = contactSheet(
    rows.map(({ cells }) => arms.map((arm) => cells.get(arm))),
    {
      columnLabels: arms.map((arm) => arm.replace(/[._]/g, " ")),
      rowLabels: rows.map(({ label }) => label.split(":")[0]),
    },
  );
  await writeAtomic(joinPath(out, "ablation.png"), encodePng(sheet));
  console.log(`\n${textTable(ablationTable(report))}`);
  console.log(report.verdict);
  console.log(
    `\n${joinPath(out, "ablation.html")}  (also ablation.json, .md, .png)`,
  );
}

/** What the stages are called. */
const LABELS: Readonly<Record<string, string>> = {
  train: "training concepts",
  fuse: "fusing",
  sample: "drawing",
  score: "scoring",
};

if (import.meta.main) await runScript(() => main(Deno.args));
