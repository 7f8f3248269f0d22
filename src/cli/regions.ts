/**
 * `deno task experiment regions`: several concepts in one picture.
 *
 * @module
 */
import { finish } from "../core/finish.ts";
import { selectBackend } from "../core/backend.ts";
import {
  regionComparisonTable,
  regionFigures,
  regionLabel,
  regionTable,
  regionTimingTable,
  resolutionTable,
} from "../experiments/region_figures.ts";
import {
  knowsPlaces,
  REGION_ARMS,
  type RegionOptions,
  regionPicture,
  regionPictures,
  type RegionReport,
  type RegionRow,
  regionsExperiment,
  type RegionSites,
  RESOLUTION_ARMS,
  scoreOf,
  sketchFolder,
} from "../experiments/regions.ts";
import { resize } from "../evaluation/preprocess.ts";
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
  readOptions,
  runCommand,
} from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { stageLabel } from "./stages.ts";
import { settingsOf, workersFor } from "./study_options.ts";
import { createProgress } from "./progress.ts";
import { contactSheet } from "../report/grid.ts";
import {
  details,
  figure,
  heading,
  type Html,
  page,
  paragraph,
  picture,
  pictureGrid,
  table,
} from "../report/html.ts";
import { markdownTable, textTable } from "../report/markdown.ts";

const HELP = `deno task experiment regions [options]

Several concepts in one picture: is each in its place, and only there? Trains
and fuses concepts, draws them with a plain prompt, with regions, with adapters
that are not fused, and scores every region by the evaluation CLIP.

  --quick            2 concepts, 1 picture: mechanics only
  --concepts LIST    names (kuro,lila,momo,raja,zorp, as in the ablation); all
                     are fused into one model
  --counts LIST      concepts in a picture (2,3,4)
  --sets N           choices of concepts for each count (5)
  --backgrounds N    backgrounds of each choice (2)
  --pictures N       pictures of each layout (4)
  --column PIXELS    width of a concept's column: 32, 48 or 64 (64)
  --arms LIST        ${REGION_ARMS.slice(0, 4).join(", ")} … (default: all)
  --scales LIST      resolutions of the resolution study (1.5,2)
  --seed N           (0)
  --preset NAME      ablation or official
  --train-steps N    training steps of a concept
  --steps N          sampling steps
  --guidance X       guidance scale
  --sketch FOLDER    sketch T2I-Adapter (default: the model's, if it has one)
  --no-timing        do not time pictures with regions
  --cache FOLDER     finished pieces; that of an ablation has its concepts
  --model FOLDER     base model (default: the embedded one)
  --clip FOLDER      evaluation CLIP (default: the embedded one)
  --backend NAME     auto, webgpu, wasm or cpu
  --workers N        workers (default: processors; 0: in place)
  --out FOLDER       where results go (default out/regions)

Writes regions.json, .md, .html, regions-N.png (every arm, the first scenes of N
concepts), fig5.png (rendered, plain prompt, regions), fig10-leakage.png (where
the plain prompt mixes two or three concepts most, and negative prompts) and
fig10-resolution.png. Below a picture is who stands out in each column. On two
cores the default takes about half an hour; a run that was stopped continues.

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

/** Reads the command line; nothing if it is help. */
function parse(args: readonly string[]): RegionRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: [
      "concepts",
      "counts",
      "column",
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
  const arms = options.list("arms");
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
      concepts: (options.list("concepts") ??
        (quick ? ["kuro", "momo"] : ["kuro", "lila", "momo", "raja", "zorp"]))
        .map((name) => identityOf(name).name),
      counts: options.numbers("counts") ?? (quick ? [2] : [2, 3, 4]),
      column: count("column", 64),
      sets: count("sets", quick ? 1 : 5),
      backgrounds: count("backgrounds", quick ? 1 : 2),
      pictures: count("pictures", quick ? 1 : 4),
      seed: options.number("seed", { whole: true }) ?? 0,
      ...(arms ? { arms } : {}),
      scales: options.numbers("scales") ?? (quick ? [] : [1.5, 2]),
      timing: !options.flag("no-timing"),
      settings: settingsOf(options),
    },
  };
}

/** At how many cross-attention sites regions act, as a list's line. */
function sitesLine({ settings }: RegionReport): string[] {
  const { sites } = settings.regions as { sites: readonly RegionSites[] };
  const acting = sites.map(({ n, scale, acting, all }) =>
    `${acting} of ${all} (${n} concepts, ${64 * scale} pixels high)`
  );
  return [`- Regions act at cross-attention sites: ${acting.join(", ")}.`];
}

/** The report as Markdown. */
export function regionsMarkdown(report: RegionReport): string {
  return [
    "# Several concepts in one picture",
    "",
    report.verdict,
    "",
    markdownTable(regionTable(report)),
    `Each concept has a column ${report.settings.column} pixels wide; its ` +
    "region leaves a margin in it, where the prompt of the whole picture " +
    "holds. Who is in a column says the evaluation CLIP, among all " +
    "identities and all empty backgrounds. Means over pictures with 95 % intervals (hierarchical bootstrap over " +
    "choices of concepts, backgrounds and noise: rather too narrow, for " +
    "choices are few and share concepts).",
    "",
    "- *Identity per region*: of all identities and backgrounds the right one " +
    "stands out most. *Own nearest of the picture's*: whoever stands out, the " +
    "region is nearer to its own concept than to the others of the picture; " +
    "chance is one in their number. It says whether regions keep concepts " +
    "apart even where all of them are drawn badly.",
    "- *Replaced by another*: of all windows of the column, the one that " +
    "stands out most shows another concept of the picture. *Another seen " +
    "there*: some window does, whatever the others show.",
    "- *Somebody in every region* says whether nobody is missing, whoever it " +
    "is; it is no count of objects.",
    "- *Any order*: concepts are dealt to the columns as suits the picture " +
    "best. From four concepts on, prompts have no words for their places, so " +
    "that plain prompts, LoRA Switch and LoRA Composite can only be judged in " +
    "any order.",
    "- *Rendered* pictures show training frames of the concepts: the gallery " +
    "is made of the reference frames, and the evaluation CLIP has seen the " +
    "rest. *Empty backgrounds* are what it says of pictures without anybody.",
    ...sitesLine(report),
    "",
    "## Same scenes, same noise",
    "",
    "First Student's t interval over the means of the choices of concepts: it " +
    "has no bounds where there is one choice, and what contains 0 may be " +
    "chance. Then the hierarchical bootstrap, which is too narrow for few " +
    "choices. Choices share concepts: both are rather too narrow than too " +
    "wide.",
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
      "The experiment's own layouts, one picture at a time, against the plain " +
      "picture of the same size: a sampling step, and all of it (prompts and " +
      "regions prepared, every step, decoded).",
      "",
      markdownTable(regionTimingTable(report)),
    ]),
  ].join("\n");
}

/** Scenes of a number of concepts side by side, an arm a row: they are wide. */
interface Scenes {
  readonly n: number;
  readonly labels: readonly string[];
  readonly rows: readonly {
    readonly arm: string;
    readonly cells: readonly (Pixels | undefined)[];
    /** Who was found in each picture, from left to right. */
    readonly captions: readonly string[];
  }[];
}

/** Who is in each region, in a contact sheet: `kuro, -`. */
function foundCaption(labels: readonly string[] | undefined): string {
  return labels?.map((label) => label === "background" ? "-" : label)
    .join(", ") ?? "";
}

async function scenesOf(
  report: RegionReport,
  cache: string,
): Promise<Scenes[]> {
  const read = async (path: string | undefined) =>
    path === undefined ? undefined : decodePng(await Deno.readFile(path));
  const counts = Map.groupBy(regionPictures(report, cache, 4), ({ n }) => n);
  return await Promise.all([...counts].map(async ([n, scenes]) => ({
    n,
    labels: scenes.map(({ concepts }) => concepts.join(" ")),
    rows: await Promise.all(report.arms.map(async (arm) => ({
      arm,
      cells: await Promise.all(
        scenes.map(({ pictures }) => read(pictures.get(arm))),
      ),
      captions: scenes.map(({ found }) => foundCaption(found.get(arm))),
    }))),
  })));
}

/** A picture on white, in the middle. */
function onCanvas(image: Pixels, width: number, height: number): Pixels {
  const data = new Uint8Array(width * height * 3).fill(255);
  const [x0, y0] = [
    Math.floor((width - image.width) / 2),
    Math.floor((height - image.height) / 2),
  ];
  for (let y = 0; y < image.height; y++) {
    const from = y * image.width * 3;
    data.set(
      image.data.subarray(from, from + image.width * 3),
      ((y0 + y) * width + x0) * 3,
    );
  }
  return { width, height, channels: 3, data };
}

/** A sheet of pictures of any sizes, each with who was found in it. */
async function sheetOf(
  cache: string,
  columns: readonly string[],
  rows: readonly {
    readonly label: string;
    readonly cells: readonly (RegionRow | undefined)[];
  }[],
): Promise<Pixels> {
  const pictures = await Promise.all(
    rows.map(({ cells }) =>
      Promise.all(cells.map(async (row) => {
        if (!row) return undefined;
        const bytes = await Deno.readFile(regionPicture(row, cache));
        const image = decodePng(bytes);
        // Other resolutions of one scene are shown at one size.
        return row.scale === 1
          ? image
          : resize(image, image.width / row.scale, image.height / row.scale);
      }))
    ),
  );
  const all = pictures.flat().filter((image) => image !== undefined);
  const width = Math.max(...all.map((image) => image.width));
  const height = Math.max(...all.map((image) => image.height));
  return contactSheet(
    pictures.map((row) =>
      row.map((image) => image && onCanvas(image, width, height))
    ),
    {
      columnLabels: columns,
      rowLabels: rows.map(({ label }) => label),
      captions: rows.map(({ cells }) =>
        cells.map((row) => foundCaption(row?.regions.map(({ label }) => label)))
      ),
      scale: 2,
    },
  );
}

/** An arm's name in a contact sheet. */
function sheetLabel(arm: string): string {
  return arm.replace(/[.+-]/g, " ");
}

/** The paper's Figs 5 and 10, as far as their arms were drawn. */
async function paperSheets(
  report: RegionReport,
  cache: string,
): Promise<[string, Pixels][]> {
  const sceneOf = (row: RegionRow) =>
    [...row.concepts, row.background, row.picture].join(" ");
  const scenes = (
    rows: readonly RegionRow[],
  ) => [...Map.groupBy(rows, sceneOf).values()];
  const sheet = async (
    name: string,
    arms: readonly string[],
    chosen: readonly (readonly RegionRow[])[],
  ): Promise<[string, Pixels][]> => {
    const shown = arms.filter((arm) => report.arms.includes(arm));
    if (shown.filter((arm) => arm !== "real").length < 2) return [];
    if (chosen.length === 0) return [];
    const rows = chosen.map((rows) => ({
      label: `${rows[0].concepts.join(" ")}, ${rows[0].background}`,
      cells: shown.map((arm) => rows.find((row) => row.arm === arm)),
    }));
    return [[name, await sheetOf(cache, shown.map(sheetLabel), rows)]];
  };
  const usual = scenes(report.rows.filter(({ scale }) => scale === 1));
  const leaked = (rows: readonly RegionRow[]) => {
    const plain = rows.find(({ arm }) => arm === "plain.gradient");
    return plain ? scoreOf(plain, "leakage") + plain.n / 100 : 0;
  };
  // Where the plain prompt says no places, concepts elsewhere are no leakage.
  const told = usual.filter(([{ n }]) => knowsPlaces("plain.gradient", n));
  const counts = [...new Set(report.rows.map(({ n }) => n))];
  const figures = [
    ...await sheet(
      "fig5",
      ["real", "plain.gradient", "regional.gradient"],
      counts.flatMap((n) =>
        usual.filter(([row]) => row.n === n && row.picture === 0).slice(0, 2)
      ),
    ),
    ...await sheet(
      "fig10-leakage",
      [
        "real",
        "plain.gradient",
        "regional.gradient",
        "regional+negative.gradient",
      ],
      told.toSorted((a, b) => leaked(b) - leaked(a)).slice(0, 4),
    ),
  ];
  const scaled = new Set(
    report.rows.filter(({ scale }) => scale !== 1).map(sceneOf),
  );
  const scales = [...new Set(report.rows.map(({ scale }) => scale))]
    .sort((a, b) => a - b);
  const rows = scenes(report.rows.filter((row) => scaled.has(sceneOf(row))))
    .slice(0, 3)
    .flatMap((rows) =>
      RESOLUTION_ARMS.filter((arm) => report.arms.includes(arm)).map((arm) => ({
        label: `${rows[0].concepts.join(" ")}, ${sheetLabel(arm)}`,
        cells: scales.map((scale) =>
          rows.find((row) => row.arm === arm && row.scale === scale)
        ),
      }))
    );
  if (rows.length > 0) {
    const columns = scales.map((scale) => `${64 * scale} pixels high`);
    figures.push(["fig10-resolution", await sheetOf(cache, columns, rows)]);
  }
  return figures;
}

/** What the sheets of the paper's figures show. */
const SHEETS: Readonly<Record<string, string>> = {
  fig5: "Plain prompt and regions (Fig 5)",
  "fig10-leakage": "Where concepts mix, and negative prompts (Fig 10)",
  "fig10-resolution": "The same scenes at other resolutions (Fig 10)",
};

async function regionsHtml(
  report: RegionReport,
  scenes: readonly Scenes[],
  sheets: readonly (readonly [string, Pixels])[],
): Promise<string> {
  const parts: Html[] = [
    ...report.verdict.split("\n\n").map(paragraph),
    table(regionTable(report)),
    ...regionFigures(report).map(([id, plot]) => figure(id, plot)),
    ...scenes.flatMap(({ n, labels, rows }) => [
      heading(`${n} concepts, the same noise along a column`),
      pictureGrid(
        labels,
        rows.map(({ arm, cells }) => ({ label: regionLabel(arm), cells })),
        // As large as fits on a page.
        n > 2 ? 1 : 2,
      ),
    ]),
    ...sheets.flatMap(([name, sheet]) => [
      heading(SHEETS[name]),
      picture(sheet, SHEETS[name]),
    ]),
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
      workers: workersFor(request.workers, backend.name),
      backend: backend.name,
    });
    const report = await finish(
      run,
      ({ stage, done, total, unit }) =>
        progress.update(stageLabel(stage), done, total, unit),
    );
    progress.finish();
    const scenes = await scenesOf(report, options.cache);
    const sheets = await paperSheets(report, options.cache);
    await writeJson(joinPath(out, "regions.json"), report);
    await writeAtomic(joinPath(out, "regions.md"), regionsMarkdown(report));
    await writeAtomic(
      joinPath(out, "regions.html"),
      await regionsHtml(report, scenes, sheets),
    );
    for (const { n, labels, rows } of scenes) {
      const sheet = contactSheet(rows.map(({ cells }) => cells), {
        columnLabels: labels,
        rowLabels: rows.map(({ arm }) => sheetLabel(arm)),
        captions: rows.map(({ captions }) => captions),
        scale: 2,
      });
      await writeAtomic(joinPath(out, `regions-${n}.png`), encodePng(sheet));
    }
    for (const [name, sheet] of sheets) {
      await writeAtomic(joinPath(out, `${name}.png`), encodePng(sheet));
    }
    console.log(`\n${textTable(regionTable(report))}`);
    if (report.timing.length > 0) {
      console.log(textTable(regionTimingTable(report)));
    }
    console.log(report.verdict);
    console.log(`\n${joinPath(out, "regions.html")}  (also .json, .md, .png)`);
  },
};

if (import.meta.main) Deno.exit(await runCommand(regions, Deno.args));
