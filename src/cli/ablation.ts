/**
 * `deno task ablation`: {LoRA, ED-LoRA} × {weight, gradient fusion}.
 *
 * @module
 */
import { finish } from "../core/finish.ts";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { sha256 } from "../core/hash.ts";
import {
  ablation,
  type AblationOptions,
  ablationPictures,
  finishedSeeds,
  FUSIONS,
} from "../experiments/ablation.ts";
import { ablationTable } from "../experiments/ablation_figures.ts";
import { ablationSchema } from "../experiments/ablation_schema.ts";
import { store } from "../experiments/pieces.ts";
import { EMBEDDINGS, TEST_CONCEPTS } from "../experiments/presets.ts";
import { canonicalJson, folderHash } from "../experiments/store.ts";
import { MODEL_PARTS, oneDomain } from "../experiments/study.ts";
import { pixelsOf } from "../experiments/workshop.ts";
import {
  assertWritable,
  exists,
  joinPath,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { conceptImage, loadConceptArt } from "../micro/concepts.ts";
import { conceptOf } from "../micro/in_domain.ts";
import { PROMPTS_SHA256 } from "../micro/prompts.ts";
import { backendOf, readOptions, runScript } from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { stageLabel } from "./stages.ts";
import { settingsOf, workersFor } from "./study_options.ts";
import { createProgress } from "./progress.ts";
import {
  ablationHtml,
  ablationMarkdown,
  type PictureRow,
} from "./ablation_page.ts";
import { contactSheet } from "../report/grid.ts";
import { textTable } from "../report/markdown.ts";

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
  --cache FOLDER      finished pieces (default: cache in the output folder);
                      share one to score the same pictures by another CLIP
  --fresh             forget what the cache holds
  --partial           run nothing: report on the seeds that are finished
  --dry-run           run nothing: print prompts' hash, hashes and settings

A run that is stopped continues where it was; what is in the cache is not done
again. Every run is noted in runs.json of its output folder before it starts.
Concepts that the base model can draw itself (niko, finn, ulla, zara) are asked
for by name and never averaged with the others.
`;

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

/** What the command line asks for. */
export interface AblationCommand {
  readonly help: boolean;
  readonly fresh: boolean;
  /** Reports on what is there. */
  readonly partial: boolean;
  /** Only says what would be run. */
  readonly dryRun: boolean;
  readonly backend: BackendChoice;
  readonly out: string;
  readonly workers?: number;
  readonly options: Omit<AblationOptions, "workers" | "backend" | "version">;
}

const WHAT = "start the ablation";

/**
 * Reads the command line; every mistake is an error.
 *
 * @param args Arguments.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseAblation(args: readonly string[]): AblationCommand {
  const changing = [
    "concepts",
    "seeds",
    "n",
    "method",
    "fusion",
    "steps",
    "train-steps",
    "guidance",
    "rank",
  ];
  const options = readOptions(WHAT, args, {
    text: [
      ...changing,
      "preset",
      "backend",
      "workers",
      "model",
      "clip",
      "cache",
      "out",
    ],
    flags: ["quick", "full", "fresh", "partial", "dry-run"],
  });
  const quick = options.flag("quick"), full = options.flag("full");
  if (quick && full) throw cannot(WHAT, "--quick or --full", "both");
  // What runs nothing must not cost what is there.
  for (const name of ["partial", "dry-run"]) {
    if (options.flag("fresh") && options.flag(name)) {
      throw cannot(WHAT, `--fresh or --${name}`, "both");
    }
  }
  const scale = quick ? "quick" : full ? "full" : "default";
  const defaults = SCALES[scale];
  const whole = (name: string, least: number, most = Infinity) =>
    options.number(name, { whole: true, least, most });
  const isCount = !Number.isNaN(Number(options.text("concepts") ?? 0));
  const concepts = isCount
    ? TEST_CONCEPTS.slice(
      0,
      whole("concepts", 1, TEST_CONCEPTS.length) ?? defaults.concepts,
    )
    : options.list("concepts")!.map((name) => conceptOf(name).name);
  const workers = whole("workers", 0);
  const model = options.text("model") ?? EMBEDDED;
  const out = options.text("out") ?? defaults.out;
  const changed = [...changing, "preset", "model"]
    .some((name) => options.text(name) !== undefined);
  return {
    help: options.help,
    fresh: options.flag("fresh"),
    partial: options.flag("partial"),
    dryRun: options.flag("dry-run"),
    backend: backendOf(options),
    out,
    ...(workers === undefined ? {} : { workers }),
    options: {
      model,
      clip: options.text("clip") ?? joinPath(model, "clip_b"),
      cache: options.text("cache") ?? joinPath(out, "cache"),
      concepts,
      prompts: whole("n", 1, 20) ?? defaults.prompts,
      seeds: options.numbers("seeds", { whole: true }) ?? defaults.seeds,
      embeddings: options.someOf("method", EMBEDDINGS) ?? EMBEDDINGS,
      fusions: options.someOf("fusion", FUSIONS) ?? FUSIONS,
      settings: settingsOf(options),
      scale: quick ? "quick" : changed ? "custom" : scale,
    },
  };
}

/** The version in deno.json; unknown where the package is not on a disk. */
async function libraryVersion(): Promise<string> {
  const file = new URL("../../deno.json", import.meta.url);
  if (file.protocol !== "file:") return "unknown";
  return (await readJson<{ version: string }>(file)).version;
}

/** What is finished of a run. */
async function partOf(options: AblationOptions): Promise<AblationOptions> {
  const seeds = await finishedSeeds(options);
  if (seeds.length === 0) {
    throw cannot("report on a part", "at least one finished seed", "none");
  }
  return seeds.length === options.seeds.length
    ? options
    : { ...options, seeds, planned: options.seeds };
}

/** A run as `runs.json` and `--dry-run` tell of it. */
async function runRecord(
  options: AblationOptions,
): Promise<Record<string, unknown>> {
  const { settings, concepts, prompts, seeds, scale, version } = options;
  return {
    started: new Date().toISOString(),
    scale,
    concepts,
    prompts: { perConcept: prompts, sha256: PROMPTS_SHA256 },
    seeds,
    embeddings: options.embeddings,
    fusions: options.fusions,
    hashes: {
      model: await folderHash(options.model, MODEL_PARTS),
      clip: await folderHash(options.clip),
      settings: await sha256(canonicalJson(settings)),
    },
    settings,
    library: version,
  };
}

/** Notes a run before it starts: what is judged later was fixed before. */
async function noteRun(
  out: string,
  record: Record<string, unknown>,
): Promise<void> {
  const path = joinPath(out, "runs.json");
  const runs = await exists(path) ? await readJson<unknown[]>(path) : [];
  await writeJson(path, [...runs, record]);
}

/** Pictures of the store for the report, with a reference first. */
async function pictureRows(
  options: AblationOptions,
  perConcept: number,
): Promise<PictureRow[]> {
  const art = await loadConceptArt();
  const rows: PictureRow[] = [];
  for (const entry of await ablationPictures(options, perConcept)) {
    const stored = async (id: string) =>
      decodePng(await Deno.readFile(store.image(options.cache, id)));
    const cells = new Map<string, Pixels>();
    if (entry.reference === undefined) {
      const one = conceptImage(entry.concept, "reference", 0, art);
      cells.set("reference", pixelsOf(one.image, one.scene.side));
    } else cells.set("reference", await stored(entry.reference));
    for (const { arm, id } of entry.pictures) cells.set(arm, await stored(id));
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
  oneDomain(command.options.concepts);
  await mustExist(WHAT, command.options.model, command.options.clip);
  await assertWritable(out);
  const backend = await selectBackend(command.backend);
  if (command.fresh) {
    await Deno.remove(command.options.cache, { recursive: true })
      .catch((error) => {
        if (!(error instanceof Deno.errors.NotFound)) throw error;
      });
  }
  const workers = workersFor(command.workers, backend.name);
  const planned: AblationOptions = {
    ...command.options,
    workers,
    backend: backend.name,
    version: await libraryVersion(),
  };
  if (command.dryRun) {
    return console.log(JSON.stringify(await runRecord(planned), null, 2));
  }
  const options = command.partial ? await partOf(planned) : planned;
  if (!command.partial) await noteRun(out, await runRecord(options));
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
      progress.update(stageLabel(stage), done, total, unit),
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

if (import.meta.main) await runScript(() => main(Deno.args));
