/**
 * The state of a training run, in memory and as a file.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { sha256 } from "../core/hash.ts";
import { exists } from "../io/files.ts";
import {
  encodeFloat,
  openSafetensors,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import {
  adamwFromTensors,
  adamwInit,
  type AdamwState,
  adamwTensors,
  disposeTensors,
} from "../optim/adamw.ts";
import { type Concept, conceptTensors } from "./concept.ts";
import { COMPONENTS } from "./sites.ts";
import type { TrainData } from "./dataset.ts";
import type { TrainConfig } from "./train_config.ts";

/**
 * The state from which a run resumes: parameters, AdamW's moments and the step.
 */
export interface TrainState {
  /** Steps done. */
  readonly step: number;
  /** Trained parameters by the names of `conceptTensors`. */
  readonly params: ReadonlyMap<string, tf.Tensor>;
  /** AdamW's moments. */
  readonly adam: AdamwState;
  /** The tokens' norm has reached its limit. */
  readonly embeddingsStopped: boolean;
  /**
   * Fingerprint of initial concept, data and configuration; a run resumes only
   * its own state.
   */
  readonly fingerprint: string;
  /**
   * The run's configuration as JSON, for error messages about changed settings.
   */
  readonly config?: string;
}

/**
 * A short text that two runs share if and only if they are the same run.
 *
 * @param concept The initial concept.
 * @param data Pictures, by size.
 * @param config Configuration.
 * @param prior Class pictures, by size.
 */
export async function fingerprint(
  concept: Concept,
  data: readonly TrainData[],
  config: TrainConfig,
  prior: readonly TrainData[] = [],
): Promise<string> {
  const parts: BlobPart[] = [];
  for (const d of [...data, ...prior]) {
    parts.push(JSON.stringify([d.count, d.height, d.width, d.captions]));
    parts.push(d.mean.slice(), d.std.slice(), d.mask.slice());
  }
  parts.push(JSON.stringify([concept.phrase, sorted(config)]));
  // Scales other than 1 (α, rank-stabilised LoRA).
  for (const part of COMPONENTS) {
    for (const [path, { scale }] of concept.adapter[part]) {
      if (scale !== 1) parts.push(`${part}.${path} × ${scale}`);
    }
  }
  const { weights: _, ...small } = concept;
  for (const [name, tensor] of conceptTensors(small)) {
    parts.push(name, (await tensor.data() as Float32Array).slice());
  }
  // Whole networks are hashed one by one: together they may exceed the largest
  // array.
  for (const own of Object.values(concept.weights ?? {})) {
    for (const [path, tensor] of own) {
      const values = (await tensor.data() as Float32Array).slice();
      parts.push(path, await sha256(values.buffer as ArrayBuffer));
    }
  }
  // Half of the hash is enough to tell two runs apart.
  return (await sha256(await new Blob(parts).arrayBuffer())).slice(0, 32);
}

/** A value with the keys of its objects in order. */
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).sort(([a], [b]) => a < b ? -1 : 1).map((
      [k, v],
    ) => [k, sorted(v)]),
  );
}

/** Settings that are not those of a saved run. */
function changes(
  saved: string | undefined,
  config: TrainConfig,
): { name: string; before: string; now: string }[] {
  if (saved === undefined) return [];
  const before = new Map(Object.entries(JSON.parse(saved)));
  const now = new Map<string, unknown>(
    Object.entries(JSON.parse(JSON.stringify(sorted(config)))),
  );
  const shown = (value: unknown) => JSON.stringify(value) ?? "unset";
  return [...new Set([...before.keys(), ...now.keys()])]
    .map((name) => ({
      name,
      before: shown(before.get(name)),
      now: shown(now.get(name)),
    }))
    .filter(({ before, now }) => before !== now);
}

/**
 * The initial state of a run.
 *
 * @param names Trained parameters.
 * @param own All of the concept's tensors, by name.
 * @param id Fingerprint of the run.
 * @param config Its configuration.
 * @param resume A state to resume from; its tensors stay the caller's.
 * @throws If it belongs to another run.
 */
export function startState(
  names: readonly string[],
  own: ReadonlyMap<string, tf.Tensor>,
  id: string,
  config: TrainConfig,
  resume: TrainState | undefined,
): TrainState {
  if (!resume) {
    const params = new Map(names.map((n) => [n, own.get(n)!.clone()]));
    return {
      step: 0,
      params,
      adam: adamwInit(params),
      embeddingsStopped: false,
      fingerprint: id,
      config: JSON.stringify(sorted(config)),
    };
  }
  if (resume.fingerprint !== id) {
    const changed = changes(resume.config, config);
    throw changed.length > 0
      ? cannot(
        `resume training at step ${resume.step}`,
        `the settings that it was started with (${
          changed.map(({ name, before }) => `${name} ${before}`).join(", ")
        })`,
        changed.map(({ name, now }) => `${name} ${now}`).join(", "),
      )
      : cannot(
        `resume training at step ${resume.step}`,
        `a state of this run (the same pictures, concept and α, as the same ` +
          `backend encodes them: ${id})`,
        resume.fingerprint,
      );
  }
  const copy = (map: ReadonlyMap<string, tf.Tensor>) =>
    new Map([...map].map(([name, t]) => [name, t.clone()]));
  return {
    ...resume,
    params: copy(resume.params),
    adam: {
      step: resume.adam.step,
      m: copy(resume.adam.m),
      v: copy(resume.adam.v),
    },
  };
}

/**
 * Frees a state.
 *
 * @param state The state.
 */
export function disposeState(state: TrainState): void {
  disposeTensors(state.params, state.adam.m, state.adam.v);
}

/**
 * Writes a state as one safetensors file, atomically: a process that is killed
 * while writing leaves the previous state.
 *
 * @param path The file.
 * @param state The state; its tensors stay as they are.
 * @throws If a value is not finite; the file stays as it was.
 */
export async function saveTrainState(
  path: string,
  state: TrainState,
): Promise<void> {
  const tensors = new Map<string, tf.Tensor>([
    ...[...state.params].map(([n, t]) => [`param.${n}`, t] as const),
    ...adamwTensors(state.adam, "adam."),
  ]);
  const raw = await Promise.all(
    [...tensors].map(async ([name, t]) => {
      const values = await t.data() as Float32Array;
      // The previous state is kept, as no run can resume from values that are
      // not finite.
      if (!values.every(Number.isFinite)) {
        throw cannot(
          `keep step ${state.step}`,
          "finite values",
          `NaN in ${name}`,
        );
      }
      return [name, {
        dtype: "F32" as const,
        shape: [...t.shape],
        data: encodeFloat(values, "F32"),
      }] as [string, { dtype: "F32"; shape: number[]; data: Uint8Array }];
    }),
  );
  await writeSafetensors(path, raw, {
    format: "mix-of-show train state 1",
    step: String(state.step),
    adam_step: String(state.adam.step),
    embeddings_stopped: String(state.embeddingsStopped),
    fingerprint: state.fingerprint,
    ...(state.config === undefined ? {} : { config: state.config }),
  });
}

/**
 * Reads a state written by {@linkcode saveTrainState}.
 *
 * @param path The file.
 * @param optional Whether the file may be missing.
 * @returns The state, its tensors the caller's; undefined if the file is
 * missing and `optional`.
 * @throws If the file is broken or holds something else.
 */
export async function loadTrainState(
  path: string,
): Promise<TrainState>;
/** The same where the file may be missing. */
export async function loadTrainState(
  path: string,
  optional: boolean,
): Promise<TrainState | undefined>;
export async function loadTrainState(
  path: string,
  optional = false,
): Promise<TrainState | undefined> {
  let file: Awaited<ReturnType<typeof openSafetensors>>;
  try {
    file = await openSafetensors(path);
  } catch (error) {
    if (optional && !await exists(path)) return undefined;
    throw error;
  }
  const tensors = new Map<string, tf.Tensor>();
  try {
    const { metadata } = file;
    const step = Number(metadata.step);
    if (
      metadata.format !== "mix-of-show train state 1" ||
      !Number.isInteger(step)
    ) {
      throw cannot(`resume from ${path}`, "a train state", metadata.format);
    }
    for (const [name, { shape }] of file.entries) {
      tensors.set(name, tf.tensor(toFloat32(await file.read(name)), shape));
    }
    const params = new Map(
      [...tensors].flatMap(([name, t]) =>
        name.startsWith("param.") ? [[name.slice(6), t] as const] : []
      ),
    );
    // Older files, without pivotal tuning, have one step count for both.
    const adamStep = Number(metadata.adam_step ?? step);
    const adam = adamwFromTensors(tensors, adamStep, "adam.");
    return {
      step,
      params,
      adam,
      embeddingsStopped: metadata.embeddings_stopped === "true",
      fingerprint: metadata.fingerprint,
      config: metadata.config,
    };
  } catch (error) {
    disposeTensors(tensors);
    throw error;
  } finally {
    file.close();
  }
}
