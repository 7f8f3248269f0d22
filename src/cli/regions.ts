/**
 * `deno task experiment regions`: several concepts in one picture.
 *
 * @module
 */
import { finish } from "../core/finish.ts";
import { selectBackend } from "../core/backend.ts";
import { hardwareWorkers } from "../core/pool.ts";
import { presetOf } from "../experiments/presets.ts";
import {
  regionComparisonTable,
  regionFigures,
  regionLabel,
  regionTable,
  regionTimingTable,
  resolutionTable,
} from "../experiments/region_figures.ts";
import {
  REGION_ARMS,
  type RegionOptions,
  regionPictures,
  type RegionReport,
  regionsExperiment,
  sketchFolder,
} from "../experiments/regions.ts";
import {
  assertWritable,
  joinPath,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { identityOf } from "../micro/concepts.ts";
import {
  backendOf,
  type Command,
  EXIT_CODES,
  type Options,
  readOptions,
  runCommand,
} from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { createProgress } from "./progress.ts";
import { contactSheet } from "./report/grid.ts";
import {
  details,
  figure,
  heading,
  type Html,
  page,
  paragraph,
  pictureGrid,
  table,
} from "./report/html.ts";
import { markdownTable, textTable } from "./report/markdown.ts";

const HELP = `deno task experiment regions [options]

Several concepts in one picture: is each in its place, and only there? Trains
and fuses concepts, draws them with a plain prompt, with regions, with adapters
that are not fused, and scores every region by the evaluation CLIP.

  --quick            2 concepts, 1 picture: mechanics only
  --concepts LIST    names (kuro,lila,momo,raja); all in one fused model
  --counts LIST      concepts in a picture (2,3,4)
  --sets N           choices of concepts for each count (4)
  --backgrounds N    backgrounds of each choice (2)
  --pictures N       pictures of each layout (4)
  --arms LIST        ${REGION_ARMS.slice(0, 4).join(", ")} … (default: all)
  --scales LIST      resolutions of the resolution study (1.5,2)
  --seed N           (0)
  --preset NAME      ablation or official
  --train-steps N    training steps of a concept
  --steps N          sampling steps
  --guidance X       guidance scale
  --sketch FOLDER    sketch T2I-Adapter (default: the model's, if it has one)
  --no-timing        do not time regions
  --cache FOLDER     finished pieces; that of an ablation has its concepts
  --model FOLDER     base model (default: the embedded one)
  --clip FOLDER      evaluation CLIP (default: the embedded one)
  --backend NAME     auto, webgpu, wasm or cpu
  --workers N        workers (default: processors; 0: in place)
  --out FOLDER       where results go (default out/regions)

${EXIT_CODES}
`;

/** What the command line asks for. */
export interface RegionRequest {
  readonly out: string;
  readonly sketch?: string;
  readonly workers?: number;
  readonly backend: ReturnType<typeof backendOf>;
  readonly options: Omit<RegionOptions, "workers" | "backend" | "sketch">;
}

const WHAT = "run the regions experiment";

function listOf(options: Options, name: string): string[] | undefined {
  return options.text(name)?.split(",");
}

function numbersOf(
  options: Options,
  name: string,
  fallback: readonly number[],
): readonly number[] {
  return listOf(options, name)?.map(Number) ?? fallback;
}

/** Reads the command line; nothing if it is help. */
function parse(args: readonly string[]): RegionRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: [
      "concepts",
      "counts",
      "sets",
      "backgrounds",
      "pictures",
      "arms",
      "scales",
      "seed",
      "preset",
      "train-steps",
      "steps",
      "guidance",
      "sketch",
      "cache",
      "model",
      "clip",
      "backend",
      "workers",
      "out",
    ],
    flags: ["quick", "no-timing"],
  });
  if (options.help) return undefined;
  const quick = options.flag("quick");
  const count = (name: string, fallback: number) =>
    options.number(name, { whole: true, least: 1 }) ?? fallback;
  const preset = presetOf(options.text("preset") ?? "ablation");
  const trainSteps = options.number("train-steps", { whole: true, least: 1 });
  const arms = listOf(options, "arms");
  const model = options.text("model") ?? EMBEDDED;
  const out = options.text("out") ??
    joinPath("out", quick ? "regions-quick" : "regions");
  const sketch = options.text("sketch");
  const workers = options.number("workers", { whole: true, least: 0 });
  return {
    out,
    ...(sketch === undefined ? {} : { sketch }),
    ...(workers === undefined ? {} : { workers }),
    backend: backendOf(options),
    options: {
      model,
      clip: options.text("clip") ?? joinPath(model, "clip_b"),
      cache: options.text("cache") ?? joinPath(out, "cache"),
      concepts: (listOf(options, "concepts") ??
        (quick ? ["kuro", "momo"] : ["kuro", "lila", "momo", "raja"]))
        .map((name) => identityOf(name).name),
      counts: numbersOf(options, "counts", quick ? [2] : [2, 3, 4]),
      sets: count("sets", quick ? 1 : 4),
      backgrounds: count("backgrounds", quick ? 1 : 2),
      pictures: count("pictures", quick ? 1 : 4),
      seed: options.number("seed", { whole: true }) ?? 0,
      ...(arms ? { arms } : {}),
      scales: numbersOf(options, "scales", quick ? [] : [1.5, 2]),
      timing: !options.flag("no-timing"),
      settings: {
        ...preset,
        train: {
          ...preset.train,
          ...(trainSteps === undefined ? {} : { steps: trainSteps }),
        },
        sampling: {
          ...preset.sampling,
          steps: count("steps", preset.sampling.steps),
          guidance: options.number("guidance") ?? preset.sampling.guidance,
        },
      },
    },
  };
}

/** The report as Markdown. */
export function regionsMarkdown(report: RegionReport): string {
  return [
    "# Several concepts in one picture",
    "",
    report.verdict,
    "",
    markdownTable(regionTable(report)),
    "Each region is 32 pixels wide; who is there says the evaluation CLIP, " +
    "among all identities and all empty backgrounds. Means over pictures with " +
    "95 % intervals.",
    "",
    "## Same scenes, same noise",
    "",
    markdownTable(regionComparisonTable(report)),
    ...(report.resolution.length === 0 ? [] : [
      "## Resolution",
      "",
      markdownTable(resolutionTable(report)),
    ]),
    ...(report.timing.length === 0 ? [] : [
      "## Time",
      "",
      markdownTable(regionTimingTable(report)),
    ]),
  ].join("\n");
}

/** A scene's pictures, one an arm. */
interface SceneRow {
  readonly label: string;
  readonly n: number;
  readonly cells: readonly (Pixels | undefined)[];
}

async function sceneRows(
  report: RegionReport,
  cache: string,
): Promise<SceneRow[]> {
  const rows: SceneRow[] = [];
  for (const { n, concepts, pictures } of regionPictures(report, cache, 4)) {
    const cells: (Pixels | undefined)[] = [];
    for (const arm of report.arms) {
      const path = pictures.get(arm);
      cells.push(path ? decodePng(await Deno.readFile(path)) : undefined);
    }
    rows.push({ label: concepts.join(" "), n, cells });
  }
  return rows;
}

async function regionsHtml(
  report: RegionReport,
  rows: readonly SceneRow[],
): Promise<string> {
  const parts: Html[] = [
    paragraph(report.verdict),
    table(regionTable(report)),
    ...regionFigures(report).map(([id, plot]) => figure(id, plot)),
    heading("Same noise in every column"),
    pictureGrid(report.arms.map(regionLabel), rows),
    heading("Same scenes, same noise"),
    table(regionComparisonTable(report)),
    ...(report.resolution.length === 0
      ? []
      : [heading("Resolution"), table(resolutionTable(report))]),
    ...(report.timing.length === 0
      ? []
      : [heading("Time"), table(regionTimingTable(report))]),
    details("Settings", JSON.stringify(report.settings, null, 2)),
  ];
  return await page("Mix-of-Show: several concepts in one picture", parts);
}

const LABELS: Readonly<Record<string, string>> = {
  train: "training concepts",
  fuse: "fusing",
  sample: "drawing",
  score: "scoring",
  time: "timing",
};

/** Several concepts in one picture, measured. */
export const regions: Command<RegionRequest> = {
  name: "regions",
  summary: "Several concepts in one picture: identity per region, leakage",
  help: HELP,
  parse,
  async run({ out, options, ...request }) {
    await mustExist(WHAT, options.model, options.clip, request.sketch);
    await assertWritable(out);
    const backend = await selectBackend(request.backend);
    const sketch = request.sketch ?? await sketchFolder(options.model);
    const progress = createProgress();
    progress.line(
      `${backend.describe}; ${options.concepts.join(", ")}; sketch adapter: ${
        sketch ?? "none, its arms are left out"
      }`,
    );
    const run = regionsExperiment({
      ...options,
      ...(sketch === undefined ? {} : { sketch }),
      workers: request.workers ??
        (backend.name === "webgpu" ? 0 : hardwareWorkers()),
      backend: backend.name,
    });
    const report = await finish(
      run,
      ({ stage, done, total, unit }) =>
        progress.update(LABELS[stage] ?? stage, done, total, unit),
    );
    progress.finish();
    const rows = await sceneRows(report, options.cache);
    await writeJson(joinPath(out, "regions.json"), report);
    await writeAtomic(joinPath(out, "regions.md"), regionsMarkdown(report));
    await writeAtomic(
      joinPath(out, "regions.html"),
      await regionsHtml(report, rows),
    );
    for (const n of new Set(rows.map((row) => row.n))) {
      const own = rows.filter((row) => row.n === n);
      const sheet = contactSheet(own.map(({ cells }) => cells), {
        columnLabels: report.arms.map((arm) => arm.replace(/[.+-]/g, " ")),
        rowLabels: own.map(({ label }) => label),
        scale: 2,
      });
      await writeAtomic(joinPath(out, `regions-${n}.png`), encodePng(sheet));
    }
    console.log(`\n${textTable(regionTable(report))}`);
    console.log(textTable(regionTimingTable(report)));
    console.log(report.verdict);
    console.log(`\n${joinPath(out, "regions.html")}  (also .json, .md, .png)`);
  },
};

if (import.meta.main) Deno.exit(await runCommand(regions, Deno.args));
