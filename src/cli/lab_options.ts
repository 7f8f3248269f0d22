/**
 * What the experiments' commands share: options of the preset and of the lab,
 * and a lab with a progress bar.
 *
 * @module
 */
import {
  type BackendChoice,
  type BackendInfo,
  type BackendName,
  selectBackend,
} from "../core/backend.ts";
import { hardwareWorkers } from "../core/pool.ts";
import { type ExperimentPreset, presetOf } from "../experiments/presets.ts";
import { assertWritable, joinPath } from "../io/files.ts";
import { type Lab, type LabRecord, type Stage, withLab } from "../lab/lab.ts";
import type { Runner } from "../lab/runner.ts";
import { backendOf, type Options } from "./command.ts";
import { EMBEDDED, mustExist } from "./models.ts";
import { createProgress, type Progress } from "./progress.ts";

/** Where an experiment's models, results and work are. */
export interface LabRequest {
  readonly model: string;
  /** Folder of the evaluation CLIP. */
  readonly clip: string;
  /** Folder of the store. */
  readonly store: string;
  /** Folder of reports. */
  readonly out: string;
  readonly backend: BackendChoice;
  readonly workers?: number;
}

/** Names of the options that {@linkcode labRequest} reads. */
export const LAB_OPTIONS: readonly string[] = [
  "model",
  "clip",
  "cache",
  "out",
  "backend",
  "workers",
];

/** Their help, but for `--out`. */
export const LAB_HELP: string = `\
  --cache FOLDER      finished results (default: cache in the output folder);
                      what is in it is not done again
  --model FOLDER      base model (default: the embedded one)
  --clip FOLDER       evaluation CLIP (default: the embedded one)
  --backend NAME      auto, webgpu, wasm or cpu
  --workers N         workers (default: processors; 0: in place)`;

/**
 * Reads {@linkcode LAB_OPTIONS}.
 *
 * @param options The command line.
 * @param defaultOut Folder of reports by default.
 * @throws If a value does not fit.
 */
export function labRequest(options: Options, defaultOut: string): LabRequest {
  const model = options.text("model") ?? EMBEDDED;
  const out = options.text("out") ?? defaultOut;
  return {
    model,
    clip: options.text("clip") ?? joinPath(model, "clip_b"),
    store: options.text("cache") ?? joinPath(out, "cache"),
    out,
    backend: backendOf(options),
    workers: options.number("workers", { whole: true, least: 0 }),
  };
}

/** Names of the options that {@linkcode settingsOf} reads. */
export const SETTING_OPTIONS: readonly string[] = [
  "preset",
  "rank",
  "train-steps",
  "steps",
  "guidance",
];

/** Their help. */
export const SETTING_HELP: string = `\
  --preset NAME       ablation (default) or official
  --rank N            rank of the adapters (4)
  --train-steps N     training steps of a concept
  --steps N           sampling steps (20)
  --guidance X        guidance scale`;

/**
 * The preset of `--preset`, changed by the other {@linkcode SETTING_OPTIONS}
 * that the command knows.
 *
 * @param options The command line.
 * @throws If there is no such preset, or a number is out of bounds.
 */
export function settingsOf(options: Options): ExperimentPreset {
  const preset = presetOf(options.text("preset") ?? "ablation");
  const count = (name: string, most = Infinity) =>
    options.number(name, { whole: true, least: 1, most });
  const steps = count("train-steps");
  const { sampling } = preset;
  return {
    ...preset,
    rank: count("rank") ?? preset.rank,
    train: { ...preset.train, ...(steps === undefined ? {} : { steps }) },
    sampling: {
      ...sampling,
      steps: count("steps", 1000) ?? sampling.steps,
      guidance: options.number("guidance") ?? sampling.guidance,
    },
  };
}

/**
 * How many workers there are: as many as asked for, else none on a graphics card
 * (it is one, and they would only take turns on it), else all processors.
 *
 * @param asked Of `--workers`.
 * @param backend The backend in use.
 */
export function workersFor(
  asked: number | undefined,
  backend: BackendName,
): number {
  return asked ?? (backend === "webgpu" ? 0 : hardwareWorkers());
}

const LABELS: Readonly<Record<Stage, string>> = {
  train: "training concepts",
  fuse: "fusing",
  draw: "drawing",
  compose: "drawing layouts",
  embed: "scoring",
  heldout: "held-out error",
};

/**
 * Shows a lab's progress on a bar.
 *
 * @param progress The bar.
 */
export function showRecords(progress: Progress): (record: LabRecord) => void {
  return ({ stage, done, total, unit }) =>
    progress.update(LABELS[stage], done, total, unit);
}

/** Where an experiment runs. */
export interface Machine {
  readonly backend: BackendInfo;
  readonly workers: number;
  readonly progress: Progress;
}

/**
 * Opens a lab with a progress bar, uses it, and closes both.
 *
 * @param what What is done, for messages.
 * @param request Folders, backend, workers.
 * @param use What is done with the lab.
 * @param more Condition networks, another runner.
 * @throws Before work starts, if a folder or the backend is not as it should be.
 */
export async function inLab<T>(
  what: string,
  request: LabRequest,
  use: (lab: Lab, machine: Machine) => Promise<T>,
  more: {
    readonly networks?: Readonly<Record<string, string>>;
    readonly runner?: Runner;
  } = {},
): Promise<T> {
  const { model, clip, store, out } = request;
  await mustExist(what, model, clip, ...Object.values(more.networks ?? {}));
  await assertWritable(out);
  const backend = await selectBackend(request.backend);
  const workers = workersFor(request.workers, backend.name);
  const progress = createProgress();
  const result = await withLab(
    {
      ...more,
      ...{ model, clip, store, workers },
      backend: backend.name,
      onRecord: showRecords(progress),
    },
    (lab) => use(lab, { backend, workers, progress }),
  );
  progress.finish();
  return result;
}
