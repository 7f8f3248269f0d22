/**
 * `deno task micro:report`: measures the embedded model.
 *
 * @module
 */
import { cannot } from "../../src/core/errors.ts";
import { finish } from "../../src/core/finish.ts";
import {
  type EvaluatorCheck,
  evaluatorTable,
  evaluatorVerdict,
} from "../../src/evaluation/evaluator_check.ts";
import { joinPath, writeJson } from "../../src/io/files.ts";
import type { Pixels } from "../../src/io/png.ts";
import { BACKGROUNDS } from "../../src/micro/world.ts";
import { SETTING_OPTIONS, settingsOf } from "../../src/experiments/presets.ts";
import {
  type Report,
  type ReportPart,
  reportText,
  tablePart,
  writeReport,
} from "../../src/report/document.ts";
import type { Sheet } from "../../src/report/grid.ts";
import { decimal } from "../../src/report/format.ts";
import { tableOf } from "../../src/report/table.ts";
import { terminalColumns } from "../../src/cli/progress.ts";
import { type Command, command, runCommand } from "../../src/cli/command.ts";
import { inLab, LAB_OPTIONS, labRequest } from "../../src/cli/lab_options.ts";
import {
  flag,
  folder,
  optionTable,
  parsed,
  type Values,
  whole,
} from "../../src/cli/options.ts";
import {
  type MicroNumbers,
  type MicroPictures,
  microReport,
  microTargets,
} from "./micro_quality.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  json: { type: flag, help: "print the numbers as JSON, nothing else" },
  out: { type: folder, default: "out/micro", help: "folder of the pictures" },
  single: { type: count, default: 96, help: "one-object prompts" },
  pairs: { type: count, default: 48, help: "two-object prompts" },
  scenes: {
    type: parsed("N", (what, option, text) => {
      const value = Number(text);
      if (value >= 64 && value % 64 === 0) return value;
      throw cannot(what, `a multiple of 64 for ${option}`, text);
    }),
    default: 256,
    help: "scenes for PSNR and captions, a multiple of 64",
  },
  naming: {
    type: flag,
    help: "also naming.png, 48 numbered pictures (each noun twice) to be " +
      "named by looking, and naming.json, the key",
  },
  references: {
    type: whole({ least: 2, most: 20 }),
    default: 20,
    help: "references per identity in the evaluator's test",
  },
  classPictures: {
    type: whole({ least: 1, most: BACKGROUNDS.length }),
    default: BACKGROUNDS.length,
    help: "pictures per class word in the evaluator's test",
  },
  steps: SETTING_OPTIONS.steps,
  guidance: SETTING_OPTIONS.guidance,
  model: LAB_OPTIONS.model,
  backend: LAB_OPTIONS.backend,
  workers: LAB_OPTIONS.workers,
});

type Request = Values<typeof OPTIONS>;

/** Pictures in a row of a sheet. */
const COLUMNS = 8;

/** Rows of pictures, numbered across the sheet. */
function sheetOf(
  list: readonly { readonly image: Pixels; readonly text?: string }[],
  scale = 1,
): Sheet {
  const starts = list.flatMap((_, i) => i % COLUMNS === 0 ? [i] : []);
  return {
    scale,
    columns: list.slice(0, COLUMNS).map(() => ""),
    rows: starts.map((from) => {
      const row = list.slice(from, from + COLUMNS);
      return {
        label: `${from + 1} - ${from + row.length}`,
        cells: row.map(({ image }) => image),
        captions: row.map(({ text = "" }) => text),
      };
    }),
  };
}

/** Scenes above what the autoencoder makes of them. */
function sceneSheet(scenes: MicroPictures["scenes"]): Sheet {
  const rows = sheetOf(scenes.map(({ real }) => ({ image: real }))).rows;
  const decoded = sheetOf(scenes.map(({ decoded }) => ({ image: decoded })));
  return {
    columns: decoded.columns,
    rows: rows.flatMap(({ cells }, i) => [
      { label: "scene", cells },
      { label: "decoded", cells: decoded.rows[i].cells },
    ]),
  };
}

/** The whole report. */
function reportOf(
  numbers: MicroNumbers,
  evaluator: EvaluatorCheck,
  { single, pairs, scenes, naming }: MicroPictures,
): Report {
  const sheets: readonly (readonly [string, string, Sheet])[] = [
    ["single", "Held-out prompts of one object", sheetOf(single)],
    ["pairs", "Held-out prompts of two objects", sheetOf(pairs, 2)],
    ["autoencoder", "Scenes through the autoencoder", sceneSheet(scenes)],
    [
      "naming",
      "To be named by looking; naming.json is the key",
      sheetOf(naming.map(({ image }, i) => ({ image, text: `${i + 1}` })), 2),
    ],
  ];
  return {
    name: "report",
    title: "the embedded model",
    lead: [evaluatorVerdict("clip_b", evaluator)],
    parts: [
      tablePart(evaluatorTable({ clip_b: evaluator })),
      tablePart(tableOf(Object.entries(numbers), [
        ["number", ([name]) => name],
        ["value", ([, value]) => decimal(value)],
      ])),
      tablePart(tableOf(microTargets(numbers), [
        ["measured", ({ name }) => name],
        ["value", ({ value }) => decimal(value, 2)],
        ["floor", ({ floor }) => decimal(floor, 2)],
        [
          "",
          ({ value, floor }) =>
            value >= floor ? "floor reached" : "BELOW THE FLOOR",
        ],
      ])),
      ...sheets.filter(([, , sheet]) => sheet.rows.length > 0).map((
        [name, title, sheet],
      ): ReportPart => ({ type: "pictures", name, title, sheet })),
    ],
  };
}

/** Measures the embedded model. */
export const microReportCommand: Command<Request> = command({
  name: "micro:report",
  summary: "measure the embedded model on held-out scenes",
  usage: "deno task micro:report [options]",
  about:
    "Measures the embedded model on held-out scenes, tests its evaluation " +
    "CLIP,\nand draws contact sheets.",
  notes: "Writes report.json, .md and .html, and its pictures as PNG.",
  examples: [
    "deno task micro:report --json",
    "deno task micro:report --naming",
  ],
  options: OPTIONS,
  request: (values) => values,
  run,
});

async function run(request: Request): Promise<void> {
  const { json, naming, single, pairs, scenes, references, classPictures } =
    request;
  const lab = labRequest(request, request.out);
  const { out } = lab;
  const { sampling } = settingsOf(request);
  const { numbers, evaluator, pictures } = await inLab(
    "measure the model",
    lab,
    (lab, { describe, progress }) => {
      if (!json) progress.line(describe);
      return finish(
        microReport({
          model: lab.folders.model,
          async draw(samples) {
            const model = { type: "base" } as const;
            const [ids] = await lab.draw([{ model, samples, sampling }]);
            return await Promise.all(ids.map((id) => lab.picture(id)));
          },
          ...{ naming, single, pairs, scenes, references, classPictures },
          art: lab.art,
        }),
        ({ done, total }) => progress.update("measuring", done, total, "part"),
      );
    },
  );
  const report = reportOf(numbers, evaluator, pictures);
  await writeReport(out, report, numbers);
  if (naming) {
    const key = pictures.naming.map(({ noun, text }, i) => (
      { number: i + 1, noun, prompt: text }
    ));
    await writeJson(joinPath(out, "naming.json"), key);
  }
  if (json) return console.log(JSON.stringify(numbers));
  console.log(reportText(report, terminalColumns()));
  console.log(`\n${joinPath(out, "report.html")}  (also .json, .md, .png)`);
}

if (import.meta.main) {
  Deno.exit(await runCommand(microReportCommand, Deno.args));
}
