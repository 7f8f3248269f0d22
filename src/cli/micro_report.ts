/**
 * `deno task micro:report`: measures the embedded model.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { finish } from "../core/finish.ts";
import {
  evaluatorTable,
  evaluatorVerdict,
} from "../evaluation/evaluator_check.ts";
import {
  type MicroPictures,
  microReport,
  microTargets,
} from "../micro/quality.ts";
import { joinPath, writeAtomic, writeJson } from "../io/files.ts";
import { encodePng } from "../io/png.ts";
import { BACKGROUNDS } from "../micro/world.ts";
import { SETTING_OPTIONS, settingsOf } from "../experiments/presets.ts";
import { contactSheet } from "../report/grid.ts";
import { decimal } from "../report/format.ts";
import { textTable } from "../report/table.ts";
import { type Command, command, runCommand } from "./command.ts";
import { inLab, LAB_OPTIONS, labRequest } from "./lab_options.ts";
import {
  flag,
  folder,
  optionTable,
  parsed,
  type Values,
  whole,
} from "./options.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  json: { type: flag, help: "print the numbers as JSON, nothing else" },
  out: { type: folder, default: "out/micro", help: "where pictures go" },
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

/** Writes the contact sheets. */
async function writeSheets(
  out: string,
  pictures: MicroPictures,
): Promise<void> {
  const grid = <T>(list: readonly T[], columns: number): T[][] =>
    Array.from(
      { length: Math.ceil(list.length / columns) },
      (_, i) => list.slice(i * columns, (i + 1) * columns),
    );
  for (const name of ["single", "pairs"] as const) {
    const rows = grid(pictures[name], 8);
    if (rows.length === 0) continue;
    const sheet = contactSheet(
      rows.map((row) => row.map(({ image }) => image)),
      {
        captions: rows.map((row) => row.map(({ text }) => text)),
        title: "held-out prompts, base model",
        gap: 4,
      },
    );
    await writeAtomic(joinPath(out, `${name}.png`), encodePng(sheet));
  }
  if (pictures.naming.length > 0) {
    const rows = grid(pictures.naming, 8);
    const sheet = contactSheet(rows.map((row) => row.map((p) => p.image)), {
      captions: rows.map((row, i) => row.map((_, j) => `${8 * i + j + 1}`)),
      scale: 2,
      gap: 4,
    });
    await writeAtomic(joinPath(out, "naming.png"), encodePng(sheet));
    await writeJson(
      joinPath(out, "naming.json"),
      pictures.naming.map(({ noun, text }, i) => ({
        number: i + 1,
        noun,
        prompt: text,
      })),
    );
  }
  const columns = grid(pictures.scenes, 8);
  const sheet = contactSheet(
    columns.flatMap((row) => [
      row.map(({ real }) => real),
      row.map(({ decoded }) => decoded),
    ]),
    { rowLabels: columns.flatMap(() => ["scene", "decoded"]) },
  );
  await writeAtomic(joinPath(out, "autoencoder.png"), encodePng(sheet));
}

/** Measures the embedded model. */
export const microReportCommand: Command<Request> = command({
  name: "micro:report",
  summary: "measure the embedded model on held-out scenes",
  usage: "deno task micro:report [options]",
  about:
    "Measures the embedded model on held-out scenes, tests its evaluation " +
    "CLIP,\nand draws contact sheets.",
  notes: "Writes report.json, single.png, pairs.png and autoencoder.png.",
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
      const sizes = { single, pairs, scenes, references, classPictures };
      return finish(
        microReport({
          model: lab.folders.model,
          async draw(samples) {
            const model = { type: "base" } as const;
            const [ids] = await lab.draw([{ model, samples, sampling }]);
            return await Promise.all(ids.map((id) => lab.picture(id)));
          },
          naming,
          ...sizes,
        }),
        ({ done, total }) => progress.update("measuring", done, total, "part"),
      );
    },
  );
  await writeSheets(out, pictures);
  await writeJson(joinPath(out, "report.json"), numbers);
  if (json) return console.log(JSON.stringify(numbers));
  console.log(evaluatorVerdict("clip_b", evaluator));
  console.log("\n" + textTable(evaluatorTable({ clip_b: evaluator })));
  for (const [name, value] of Object.entries(numbers)) {
    console.log(`${name.padEnd(22)} ${decimal(value)}`);
  }
  console.log(
    "\n" + textTable({
      head: ["", "value", "floor", ""],
      rows: microTargets(numbers).map(({ name, value, floor }) => [
        name,
        decimal(value, 2),
        decimal(floor, 2),
        value >= floor ? "floor reached" : "BELOW THE FLOOR",
      ]),
    }),
  );
  if (naming) console.log(`${out}/naming.png, naming.json`);
  console.log(`${out}/single.png, pairs.png, autoencoder.png`);
}

if (import.meta.main) {
  Deno.exit(await runCommand(microReportCommand, Deno.args));
}
