/**
 * `deno task micro:report`: measures the embedded model.
 *
 * @module
 */
import { runScript } from "./command.ts";
import { finish } from "../core/finish.ts";
import { parseArgs } from "@std/cli/parse-args";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { withLab } from "../lab/lab.ts";
import { showRecords, workersFor } from "./lab_options.ts";
import {
  type MicroPictures,
  microReport,
  microTargets,
} from "../experiments/micro_report.ts";
import { presetOf } from "../experiments/presets.ts";
import {
  assertWritable,
  joinPath,
  pathOf,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { encodePng } from "../io/png.ts";
import { createProgress } from "./progress.ts";
import { contactSheet } from "../report/grid.ts";
import { decimal } from "../report/format.ts";
import { textTable } from "../report/table.ts";

const HELP = `deno task micro:report [options]

Measures the embedded model on held-out scenes and draws contact sheets.

  --json           print the numbers to stdout as JSON, nothing else
  --model FOLDER   the model (default: the embedded one)
  --out FOLDER     where contact sheets go (default: out/micro)
  --single N       one-object prompts (96)
  --pairs N        two-object prompts (48)
  --scenes N       scenes for PSNR and captions, a multiple of 64 (256)
  --steps N        sampling steps
  --guidance X     guidance scale
  --backend NAME   auto, webgpu, wasm or cpu
  --workers N      workers (default: processors; 0: in place)
`;

function number(
  name: string,
  text: string | undefined,
  fallback: number,
  least: number,
  step = 1,
): number {
  if (text === undefined) return fallback;
  const value = text.trim() === "" ? NaN : Number(text);
  if (!(value >= least) || (step > 0 && value % step !== 0)) {
    throw cannot(
      `read --${name}`,
      step > 1 ? `a multiple of ${step}` : `a number ≥ ${least}`,
      text,
    );
  }
  return value;
}

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
 * Runs the command.
 *
 * @param args Arguments.
 * @throws If an argument, a file, the output folder or the backend is not as it
 * should be.
 */
export async function main(args: readonly string[]): Promise<void> {
  const parsed = parseArgs([...args], {
    string: [
      "model",
      "out",
      "single",
      "pairs",
      "scenes",
      "steps",
      "guidance",
      "backend",
      "workers",
    ],
    boolean: ["json", "help"],
    unknown: (name: string) => {
      throw cannot("report on the model", "a known option (--help)", name);
    },
  });
  if (parsed.help) return console.log(HELP);
  const { sampling } = presetOf("ablation");
  const model = parsed.model ??
    pathOf(new URL("../../models/micro", import.meta.url));
  const out = parsed.out ?? "out/micro";
  const options = {
    sampling: {
      ...sampling,
      steps: number("steps", parsed.steps, sampling.steps, 1),
      guidance: number("guidance", parsed.guidance, sampling.guidance, 0, 0),
    },
    single: number("single", parsed.single, 96, 1),
    pairs: number("pairs", parsed.pairs, 48, 1),
    scenes: number("scenes", parsed.scenes, 256, 64, 64),
  };
  const asked = parsed.workers === undefined
    ? undefined
    : number("workers", parsed.workers, 0, 0);
  await assertWritable(out);
  const backend = await selectBackend(
    (parsed.backend ?? "auto") as BackendChoice,
  );
  if (!parsed.json) console.log(backend.describe);
  const progress = createProgress();
  const { numbers, pictures } = await withLab(
    {
      model,
      store: joinPath(out, "cache"),
      workers: workersFor(asked, backend.name),
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
  if (parsed.json) return console.log(JSON.stringify(numbers));
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

if (import.meta.main) await runScript(() => main(Deno.args));
