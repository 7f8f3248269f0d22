/**
 * `deno task experiment regions`: several concepts in one picture.
 *
 * @module
 */
import { resize } from "../evaluation/preprocess.ts";
import { type RegionRow, scoreOf } from "../experiments/fig5/judge.ts";
import { fig5, type RegionPlan } from "../experiments/fig5/run.ts";
import {
  knowsPlaces,
  REGION_ARMS,
  type RegionSites,
  RESOLUTION_ARMS,
} from "../experiments/fig5/scenes.ts";
import {
  regionComparisonTable,
  regionFigures,
  type RegionReport,
  regionTable,
  regionTimingTable,
  resolutionTable,
} from "../experiments/fig5/table.ts";
import { exists, joinPath, writeAtomic, writeJson } from "../io/files.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import type { Lab } from "../lab/lab.ts";
import { identityOf } from "../micro/concepts.ts";
import { type Command, command } from "./command.ts";
import {
  inLab,
  LAB_OPTIONS,
  type LabRequest,
  labRequest,
  SETTING_OPTIONS,
  settingsOf,
} from "./lab_options.ts";
import {
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionTable,
  parsed,
  whole,
} from "./options.ts";
import { contactSheet } from "../report/grid.ts";
import {
  details,
  figure,
  heading,
  page,
  picture,
  table,
} from "../report/html.ts";
import { markdownTable, textTable } from "../report/markdown.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  quick: { type: flag, help: "2 concepts, 1 picture: mechanics only" },
  concepts: {
    type: listOf(
      parsed("NAME", (_what, _option, name) => identityOf(name).name),
    ),
    otherwise: "kuro,lila,momo,raja,zorp",
    help: "names; all are fused into one model",
  },
  counts: {
    type: listOf(whole()),
    otherwise: "2,3,4",
    help: "concepts in a picture",
  },
  sets: { type: count, otherwise: "5", help: "choices of concepts per count" },
  backgrounds: {
    type: count,
    otherwise: "2",
    help: "backgrounds of each choice",
  },
  pictures: { type: count, otherwise: "4", help: "pictures of each layout" },
  column: {
    type: count,
    default: 64,
    help: "width of a concept's column in pixels: 32, 48 or 64",
  },
  arms: {
    type: listOf(oneOf(REGION_ARMS)),
    otherwise: "all",
    help: REGION_ARMS.join(", "),
  },
  scales: {
    type: listOf(number()),
    otherwise: "1.5,2",
    help: "resolutions of the resolution study",
  },
  seed: { type: whole(), default: 0, help: "seed of training and noise" },
  sketch: {
    type: folder,
    otherwise: "the model's, if it has one",
    help: "sketch T2I-Adapter",
  },
  noTiming: { type: flag, help: "do not time pictures with regions" },
  ...SETTING_OPTIONS,
  ...LAB_OPTIONS,
  out: { type: folder, otherwise: "out/regions", help: "where results go" },
});

/** What the command line asks for. */
export interface RegionRequest {
  readonly lab: LabRequest;
  /** Folder of a sketch adapter. */
  readonly sketch?: string;
  readonly plan: RegionPlan;
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

/** A contact sheet, before its pictures are read. */
interface Sheet {
  readonly name: string;
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly {
    readonly label: string;
    readonly cells: readonly (RegionRow | undefined)[];
  }[];
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

/** Draws a sheet: below each picture, who was found in each region. */
async function drawSheet(lab: Lab, { columns, rows }: Sheet): Promise<Pixels> {
  const pictures = await Promise.all(
    rows.map(({ cells }) =>
      Promise.all(cells.map(async (row) => {
        if (!row) return undefined;
        const image = await lab.picture(row.image);
        const { width, height } = image;
        // Other resolutions of one scene are shown at one size.
        return row.scale === 1
          ? image
          : resize(image, width / row.scale, height / row.scale);
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
      captions: rows.map(({ cells }) => cells.map(foundCaption)),
      scale: 2,
    },
  );
}

/** Who is in each region, in a contact sheet: `kuro, -`. */
function foundCaption(row: RegionRow | undefined): string {
  return row?.regions
    .map(({ label }) => label === "background" ? "-" : label)
    .join(", ") ?? "";
}

/** An arm's name in a contact sheet. */
function sheetLabel(arm: string): string {
  return arm.replace(/[.+-]/g, " ");
}

type Rows = readonly RegionRow[];

/** Rows of one scene and noise each. */
function scenesOf(rows: Rows): Rows[] {
  const groups = Map.groupBy(
    rows,
    (row) => [...row.concepts, row.background, row.picture].join(" "),
  );
  return [...groups.values()];
}

/** Every arm on the first scenes of each number of concepts. */
function sceneSheets({ rows, arms }: RegionReport): Sheet[] {
  const first = rows.filter(({ picture, scale }) =>
    picture === 0 && scale === 1
  );
  return [...Map.groupBy(first, ({ n }) => n)].map(([n, own]) => {
    const scenes = scenesOf(own).slice(0, 4);
    return {
      name: `regions-${n}`,
      title: `${n} concepts, the same noise along a column`,
      columns: scenes.map(([{ concepts }]) => concepts.join(" ")),
      rows: arms.map((arm) => ({
        label: sheetLabel(arm),
        cells: scenes.map((rows) => rows.find((row) => row.arm === arm)),
      })),
    };
  });
}

/** The paper's Figs 5 and 10, as far as their arms were drawn. */
function paperSheets({ rows, arms }: RegionReport): Sheet[] {
  const sheet = (
    name: string,
    title: string,
    wanted: readonly string[],
    chosen: readonly Rows[],
  ): Sheet[] => {
    const shown = wanted.filter((arm) => arms.includes(arm));
    const drawn = shown.filter((arm) => arm !== "real");
    if (drawn.length < 2 || chosen.length === 0) return [];
    return [{
      name,
      title,
      columns: shown.map(sheetLabel),
      rows: chosen.map((rows) => ({
        label: `${rows[0].concepts.join(" ")}, ${rows[0].background}`,
        cells: shown.map((arm) => rows.find((row) => row.arm === arm)),
      })),
    }];
  };
  const usual = scenesOf(rows.filter(({ scale }) => scale === 1));
  const leaked = (rows: Rows) => {
    const plain = rows.find(({ arm }) => arm === "plain.gradient");
    return plain ? scoreOf(plain, "leakage") + plain.n / 100 : 0;
  };
  // Where the plain prompt says no places, concepts elsewhere are no leakage.
  const told = usual.filter(([{ n }]) => knowsPlaces("plain.gradient", n));
  const gradient = ["plain.gradient", "regional.gradient"];
  return [
    ...sheet(
      "fig5",
      "Plain prompt and regions (Fig 5)",
      ["real", ...gradient],
      [...new Set(rows.map(({ n }) => n))].flatMap((n) =>
        usual.filter(([row]) => row.n === n && row.picture === 0).slice(0, 2)
      ),
    ),
    ...sheet(
      "fig10-leakage",
      "Where concepts mix, and negative prompts (Fig 10)",
      ["real", ...gradient, "regional+negative.gradient"],
      told.toSorted((a, b) => leaked(b) - leaked(a)).slice(0, 4),
    ),
    ...resolutionSheet(rows, arms),
  ];
}

function resolutionSheet(rows: Rows, arms: readonly string[]): Sheet[] {
  const scales = [...new Set(rows.map(({ scale }) => scale))]
    .sort((a, b) => a - b);
  const scaled = scenesOf(rows)
    .filter((own) => own.some(({ scale }) => scale !== 1));
  const lines = scaled.slice(0, 3).flatMap((own) =>
    RESOLUTION_ARMS.filter((arm) => arms.includes(arm)).map((arm) => ({
      label: `${own[0].concepts.join(" ")}, ${sheetLabel(arm)}`,
      cells: scales.map((scale) =>
        own.find((row) => row.arm === arm && row.scale === scale)
      ),
    }))
  );
  return lines.length === 0 ? [] : [{
    name: "fig10-resolution",
    title: "The same scenes at other resolutions (Fig 10)",
    columns: scales.map((scale) => `${64 * scale} pixels high`),
    rows: lines,
  }];
}

async function regionsHtml(
  report: RegionReport,
  sheets: readonly { readonly title: string; readonly pixels: Pixels }[],
): Promise<string> {
  return await page("Mix-of-Show: several concepts in one picture", [
    table(regionTable(report)),
    ...regionFigures(report).map(([id, plot]) => figure(id, plot)),
    ...sheets.flatMap(({ title, pixels }) => [
      heading(title),
      picture(pixels, title),
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
  ]);
}

/** Several concepts in one picture, measured. */
export const regions: Command<RegionRequest> = command({
  name: "regions",
  summary: "Several concepts in one picture: identity per region, leakage",
  usage: "deno task experiment regions [options]",
  about: `Several concepts in one picture: is each in its place, and only there?
Trains and fuses concepts, draws them with a plain prompt, with regions, and with
adapters that are not fused, and scores every region by the evaluation CLIP.`,
  notes: `Writes regions.json, .md, .html, regions-N.png (every arm, the first
scenes of N concepts), fig5.png (rendered, plain prompt, regions),
fig10-leakage.png (where the plain prompt mixes two or three concepts most, and
negative prompts) and fig10-resolution.png. The evaluation CLIP names each column
below a picture. On two cores the default takes about half an hour; a run that was
stopped continues.`,
  options: OPTIONS,
  request: ({ quick, out, ...values }) => ({
    lab: labRequest(
      values,
      out ?? (quick ? "out/regions-quick" : "out/regions"),
    ),
    sketch: values.sketch,
    plan: {
      concepts: values.concepts ??
        (quick ? ["kuro", "momo"] : ["kuro", "lila", "momo", "raja", "zorp"]),
      counts: values.counts ?? (quick ? [2] : [2, 3, 4]),
      column: values.column,
      sets: values.sets ?? (quick ? 1 : 5),
      backgrounds: values.backgrounds ?? (quick ? 1 : 2),
      pictures: values.pictures ?? (quick ? 1 : 4),
      seed: values.seed,
      arms: values.arms,
      scales: values.scales ?? (quick ? [] : [1.5, 2]),
      timing: !values.noTiming,
      settings: settingsOf(values),
    },
  }),
  async run({ lab: request, plan, ...given }) {
    const { out, model } = request;
    const own = joinPath(model, "adapter");
    const sketch = given.sketch ??
      (await exists(joinPath(own, "config.json")) ? own : undefined);
    const networks: Record<string, string> = sketch ? { sketch } : {};
    await inLab(
      "run the regions experiment",
      request,
      async (lab, { backend, workers, describe, progress }) => {
        progress.line(
          `${describe}; ${plan.concepts.join(", ")}; sketch adapter: ${
            sketch ?? "none, its arms are left out"
          }`,
        );
        const found = await fig5(lab, plan);
        const settings = { ...found.settings, backend: backend.name, workers };
        const created = new Date().toISOString();
        const report: RegionReport = { ...found, settings, created };
        const sheets = await Promise.all(
          [...sceneSheets(report), ...paperSheets(report)].map(async (
            sheet,
          ) => (
            { ...sheet, pixels: await drawSheet(lab, sheet) }
          )),
        );
        await writeJson(joinPath(out, "regions.json"), report);
        await writeAtomic(joinPath(out, "regions.md"), regionsMarkdown(report));
        await writeAtomic(
          joinPath(out, "regions.html"),
          await regionsHtml(report, sheets),
        );
        for (const { name, pixels } of sheets) {
          await writeAtomic(joinPath(out, `${name}.png`), encodePng(pixels));
        }
        progress.finish();
        console.log(`\n${textTable(regionTable(report))}`);
        if (report.timing.length > 0) {
          console.log(textTable(regionTimingTable(report)));
        }
        console.log(
          `${joinPath(out, "regions.html")}  (also .json, .md, .png)`,
        );
      },
      { networks },
    );
  },
});
