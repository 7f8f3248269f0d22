/**
 * Options that the experiments' commands share: which preset and what is
 * changed in it, how many workers.
 *
 * @module
 */
import { hardwareWorkers } from "../core/pool.ts";
import { type ExperimentPreset, presetOf } from "../experiments/presets.ts";
import type { StudyOptions } from "../experiments/study.ts";
import type { Options } from "./command.ts";

/**
 * The preset of `--preset`, changed by those of `--rank`, `--train-steps`,
 * `--steps` and `--guidance` that the command knows.
 *
 * @param options The command line.
 * @throws If there is no such preset, or a number is out of bounds.
 */
export function settingsOf(options: Options): ExperimentPreset {
  const preset = presetOf(options.text("preset") ?? "ablation");
  const count = (name: string, most?: number) =>
    options.number(name, { whole: true, least: 1, ...(most ? { most } : {}) });
  const trainSteps = count("train-steps");
  const { sampling } = preset;
  return {
    ...preset,
    rank: count("rank") ?? preset.rank,
    train: {
      ...preset.train,
      ...(trainSteps === undefined ? {} : { steps: trainSteps }),
    },
    sampling: {
      ...sampling,
      steps: count("steps", 1000) ?? sampling.steps,
      guidance: options.number("guidance") ?? sampling.guidance,
    },
  };
}

/**
 * How many workers a study has: as many as asked for, else none on a graphics
 * card (it is one, and they would only take turns on it), else all processors.
 *
 * @param asked Of `--workers`.
 * @param backend The backend in use.
 */
export function workersFor(
  asked: number | undefined,
  backend: StudyOptions["backend"],
): number {
  return asked ?? (backend === "webgpu" ? 0 : hardwareWorkers());
}
