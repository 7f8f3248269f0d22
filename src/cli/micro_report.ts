/**
 * `deno task micro:report`: measures the embedded model.
 *
 * @module
 */
import { finish } from "../core/finish.ts";
import { selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { withLab } from "../lab/lab.ts";
import {
  type MicroPictures,
  microReport,
  microTargets,
} from "../experiments/micro_report.ts";
import { presetOf } from "../experiments/presets.ts";
import {
  assertWritable,
  joinPath,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { encodePng } from "../io/png.ts";
import { type Command, command, runCommand } from "./command.ts";
import { LAB_OPTIONS, showRecords, workersFor } from "./lab_options.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import {
  flag,
  folder,
  number,
  optionTable,
  parsed,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";
import { contactSheet } from "../report/grid.ts";
import { decimal, textTable } from "../report/markdown.ts";

const { model: MODEL, backend: BACKEND, workers: WORKERS } = LAB_OPTIONS;
const { sampling: SAMPLING } = presetOf("ablation");

const OPTIONS = optionTable({
  model: MODEL,
  out: {
    type: folder,
    default: joinPath("out", "micro"),
    help: "where contact sheets go",
  },
  single: {
    type: whole({ least: 1 }),
    default: 96,
    help: "one-object prompts",
  },
  pairs: { type: whole({ least: 1 }), default: 48, help: "two-object prompts" },
  scenes: {
    type: parsed("N", (what, name, found) => {
      const value = whole({ least: 64 }).read(what, name, found);
      if (value % 64 === 0) return value;
      throw cannot(what, `${name} a multiple of 64`, found);
    }),
    default: 256,
    help: "scenes for PSNR and captions, a multiple of 64",
  },
  steps: {
    type: whole({ least: 1, most: 1000 }),
    default: SAMPLING.steps,
    help: "sampling steps",
  },
  guidance: {
    type: number({ least: 0 }),
    default: SAMPLING.guidance,
    help: "guidance scale",
  },
  json: {
    type: flag,
    help: "print the numbers to stdout as JSON, nothing else",
  },
  backend: BACKEND,
  workers: WORKERS,
});

/** What the command line asks for. */
export type MicroReportRequest = Values<typeof OPTIONS>;

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

/**
 * Measures and says what came out.
 *
 * @param request What is asked for.
 * @throws Before work starts, if the model, the output folder or the backend is
 * not as it should be.
 */
async function runMicroReport(request: MicroReportRequest): Promise<void> {
  const { model = EMBEDDED, out, single, pairs, scenes, json } = request;
  const { steps, guidance } = request;
  const options = {
    sampling: { ...SAMPLING, steps, guidance },
    ...{ single, pairs, scenes },
  };
  await mustExist("report on the model", model);
  await assertWritable(out);
  const backend = await selectBackend(request.backend);
  const workers = workersFor(request.workers, backend.name);
  if (!json) console.log(`${backend.describe}, ${workers} workers`);
  const progress = createProgress();
  const { numbers, pictures } = await withLab(
    {
      model,
      store: joinPath(out, "cache"),
      workers,
      backend: backend.name,
      onRecord: showRecords(progress),
    },
    (lab) =>
      finish(
        microReport(lab, options),
        ({ done, total }) => progress.update("measuring", done, total, "part"),
      ),
  );
  progress.finish();
  await writeSheets(out, pictures);
  await writeJson(joinPath(out, "report.json"), numbers);
  if (json) return console.log(JSON.stringify(numbers));
  for (const [name, value] of Object.entries(numbers)) {
    console.log(`${name.padEnd(22)} ${decimal(value)}`);
  }
  console.log(
    "\n" + textTable({
      head: ["", "value", "floor", "aim", ""],
      rows: microTargets(numbers).map(({ name, value, floor, aim }) => [
        name,
        decimal(value, 2),
        floor === null ? "" : decimal(floor, 2),
        decimal(aim, 2),
        value >= aim
          ? "aim reached"
          : floor === null
          ? "below the aim"
          : value >= floor
          ? "floor reached"
          : "BELOW THE FLOOR",
      ]),
    }),
  );
  console.log(`${out}/single.png, pairs.png, autoencoder.png`);
}

/** `deno task micro:report`. */
export const microReportCommand: Command<MicroReportRequest> = command({
  name: "micro:report",
  summary: "measure the embedded model",
  usage: "deno task micro:report [options]",
  about:
    "Measures the embedded model on held-out scenes and draws contact sheets.",
  options: OPTIONS,
  request: (values) => values,
  run: runMicroReport,
});

if (import.meta.main) {
  Deno.exit(await runCommand(microReportCommand, Deno.args));
}
