/**
 * One trainer for all methods: tokens, adapters, or both, by configuration.
 *
 * Every random number of a step comes from a key of that step, so a run that is
 * stopped and resumed gives the same result.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { boundCard } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { fold, key as rootKey } from "../core/random.ts";
import { valueAndGrads } from "../core/tree.ts";
import {
  parseSchedulerConfig,
  type Schedule,
  schedule,
} from "../diffusion/schedule.ts";
import type { Model } from "../models/model.ts";
import { tableSpread } from "../nn/embedding.ts";
import type { Dropout } from "../nn/linear.ts";
import {
  adamwInit,
  adamwStep,
  clipGlobalNorm,
  constantRate,
  cosineDecay,
  disposeTensors,
  linearDecay,
} from "../optim/adamw.ts";
import {
  attachConcept,
  type Concept,
  conceptTensors,
  type Weights,
} from "./concept.ts";
import type { Component } from "./sites.ts";
import type { TrainData } from "./dataset.ts";
import { adapterTensors, withDropout, withTensors } from "./lora.ts";
import { drawBatch } from "./train_batch.ts";
import {
  type Group,
  groupOf,
  type LossConfig,
  type TrainConfig,
} from "./train_config.ts";
import { type Memory, type TrainBatch, trainingLoss } from "./train_loss.ts";
import {
  disposeState,
  fingerprint,
  loadTrainState,
  saveTrainState,
  startState,
  type TrainState,
} from "./train_state.ts";

export {
  type Group,
  groupOf,
  type LossConfig,
  RATE_SCHEDULES,
  type RateSchedule,
  type TrainConfig,
  type Weighting,
} from "./train_config.ts";
export {
  type Losses,
  type Memory,
  type TrainBatch,
  trainingLoss,
} from "./train_loss.ts";
export {
  fingerprint,
  loadTrainState,
  saveTrainState,
  type TrainState,
} from "./train_state.ts";

/** One optimisation step. */
export interface TrainRecord {
  /** This step, from 0. */
  readonly step: number;
  /** Steps of the run. */
  readonly total: number;
  /** Total loss of this step. */
  readonly loss: number;
  /** The weighted parts of the loss. */
  readonly parts: Readonly<Record<string, number>>;
  /** Learning rates of this step. */
  readonly lr: Readonly<Record<Group, number>>;
  /** Mean norm of the learned vectors after the step. */
  readonly embeddingNorm?: number;
  /** Seconds this step took. */
  readonly seconds: number;
  /**
   * The state after the step. Its tensors are the generator's, valid until the
   * next record; {@linkcode conceptOf} and {@linkcode saveTrainState} copy.
   */
  readonly state: TrainState;
}

/** Encoded pictures of one size, or of several (`encodeBuckets`). */
type Data = TrainData | readonly TrainData[];

const isOne = (data: Data): data is TrainData => "count" in data;
const bucketsOf = (data: Data): readonly TrainData[] =>
  isOne(data) ? [data] : data;

/** Options of a run besides its configuration. */
export interface TrainOptions {
  /** A state to resume from; its tensors stay the caller's. */
  readonly resume?: TrainState;
  /**
   * Class pictures for prior preservation, with their own captions; every size
   * of the pictures must occur.
   */
  readonly prior?: TrainData | readonly TrainData[];
  /**
   * `low` is gradient checkpointing: it needs a fraction of the memory and a
   * fifth more operations. The results differ by rounding only.
   *
   * @default "high"
   */
  readonly memory?: Memory;
}

function checkConfig(
  config: TrainConfig,
  data: readonly TrainData[],
  priors: readonly TrainData[] | undefined,
): void {
  const what = "train";
  const whole = (name: string, value: number, least: number) => {
    if (!Number.isInteger(value) || value < least) {
      throw cannot(what, `${name} ≥ ${least}`, value);
    }
  };
  whole("steps", config.steps, 1);
  whole("batch", config.batch, 1);
  whole("accumulate", config.accumulate ?? 1, 1);
  whole("cycles", config.cycles ?? 1, 1);
  whole("warmup", config.warmup, 0);
  for (const [group, lr] of Object.entries(config.lr)) {
    if (!(lr >= 0)) throw cannot(what, `a ${group} rate ≥ 0`, lr);
  }
  const { pivot = 0 } = config;
  const pivotStep = pivotOf(config);
  if (
    pivot !== 0 &&
    !(pivot > 0 && pivotStep > 0 && pivotStep < config.steps)
  ) {
    throw cannot(what, "a pivot that leaves steps on both sides", pivot);
  }
  const { captionDropout: dropout = 0 } = config;
  if (!(dropout >= 0 && dropout <= 1)) {
    throw cannot(what, "a caption dropout from 0 to 1", dropout);
  }
  const { dropout: left = 0 } = config;
  if (!(left >= 0 && left < 1)) {
    throw cannot(what, "a dropout from 0 to below 1", left);
  }
  if (data.length === 0 || data.some(({ count }) => count < 1)) {
    throw cannot(what, "at least one picture", "none");
  }
  if (priors && priors.length !== data.length) {
    throw cannot(what, `class pictures of ${data.length} sizes`, priors.length);
  }
  data.forEach(({ height, width, channels }, i) => {
    const prior = priors?.[i];
    if (
      prior && (prior.height !== height || prior.width !== width ||
        prior.channels !== channels)
    ) {
      throw cannot(
        what,
        `class pictures of ${height}×${width}`,
        `${prior.height}×${prior.width}`,
      );
    }
  });
}

/** The first step in which adapters are trained; 0 without pivotal tuning. */
function pivotOf({ pivot = 0, steps }: TrainConfig): number {
  return Math.round(pivot * steps);
}

/**
 * Names of the trained parameters: those of groups with a learning rate above
 * 0; for SVDiff only the shifts.
 *
 * @param concept The concept.
 * @param config Learning rates, and what is frozen.
 */
export function trainedNames(
  concept: Concept,
  config: Pick<TrainConfig, "lr" | "freezeDown">,
): string[] {
  const all = conceptTensors(concept);
  return [...all.keys()].filter((name) => {
    const dot = name.lastIndexOf(".");
    const [layer, part] = [name.slice(0, dot), name.slice(dot + 1)];
    return config.lr[groupOf(name)] > 0 &&
      !(config.freezeDown && part === "down") &&
      (part === "shift" || !all.has(`${layer}.shift`));
  });
}

/**
 * The concept with other tensors in it.
 *
 * @param concept The concept; not changed.
 * @param tensors By the names of `conceptTensors`; others are kept.
 */
function withParams(
  concept: Concept,
  tensors: ReadonlyMap<string, tf.Tensor>,
): Concept {
  return {
    ...concept,
    adapter: withTensors(concept.adapter, tensors),
    ...(concept.weights && {
      weights: {
        textEncoder: replaced("textEncoder", concept.weights, tensors),
        unet: replaced("unet", concept.weights, tensors),
      },
    }),
    tokens: concept.tokens.map(({ token, vectors }) => ({
      token,
      vectors: (tensors.get(`embedding.${token}`) ?? vectors) as tf.Tensor2D,
    })),
  };
}

function replaced(
  component: Component,
  weights: Weights,
  tensors: ReadonlyMap<string, tf.Tensor>,
): Map<string, tf.Tensor> {
  return new Map(
    [...weights[component]].map(([path, own]) => [
      path,
      tensors.get(`${component}.${path}`) ?? own,
    ]),
  );
}

/**
 * The concept with the parameters of a training state.
 *
 * @param concept The concept the run was started with.
 * @param state The state.
 * @returns Tensors of its own, the caller's.
 */
export function conceptOf(concept: Concept, state: TrainState): Concept {
  const copies = new Map(
    [...conceptTensors(concept)].map(([name, tensor]) => [
      name,
      (state.params.get(name) ?? tensor).clone(),
    ]),
  );
  return withParams(concept, copies);
}

/** Mean norm of the learned vectors. */
function meanNorm(
  params: ReadonlyMap<string, tf.Tensor>,
): tf.Scalar | undefined {
  const vectors = [...params].filter(([name]) => groupOf(name) === "embedding")
    .map(([, t]) => t as tf.Tensor2D);
  if (vectors.length === 0) return undefined;
  return tf.tidy(() => tf.mean(tf.norm(tf.concat(vectors, 0), 2, 1)));
}

/** The norm at which tokens stop changing, or infinity. */
async function normLimit(model: Model, config: TrainConfig): Promise<number> {
  const { limit, relative } = config.embeddingNorm;
  if (!(limit > 0)) return Infinity;
  if (!relative) return limit;
  const { token_embedding } = model.textEncoder.params.text_model.embeddings;
  return limit * (await tableSpread(token_embedding.weight)).meanNorm;
}

/**
 * Trains a concept.
 *
 * The base model is never changed: only the concept's vectors and factors are
 * parameters, so the embeddings of other tokens stay as they are.
 *
 * @param model The base model, without the concept.
 * @param concept The initial concept (`initConcept`); its tensors are not
 * changed.
 * @param data Encoded pictures. With several sizes (`encodeBuckets`) each batch
 * has one size.
 * @param config Configuration (`method` in methods.ts makes it).
 * @param options A state to resume, class pictures.
 * @returns One record per step; the last one's state is the result.
 * @throws Before work starts, if the configuration is not valid, nothing is
 * trained, the state belongs to another run, or something does not fit; later,
 * if the loss is not finite.
 *
 * @example
 * ```ts
 * for await (const record of train(model, concept, data, config)) {
 *   console.log(record.step, record.loss);
 *   if (record.step === record.total - 1) {
 *     result = conceptOf(concept, record.state);
 *   }
 * }
 * ```
 */
export async function* train(
  model: Model,
  concept: Concept,
  data: TrainData | readonly TrainData[],
  config: TrainConfig,
  options: TrainOptions = {},
): AsyncGenerator<TrainRecord, void, void> {
  const buckets = bucketsOf(data);
  const priors = options.prior && bucketsOf(options.prior);
  checkConfig(config, buckets, priors);
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const own = conceptTensors(concept);
  const names = namesToTrain(concept, config);
  const { dropout = 0 } = config;
  const pivot = pivotOf(config);
  // Fails before training if the concept does not fit the model.
  tf.tidy(() => void attachConcept(model, concept));
  const id = await fingerprint(concept, buckets, config, priors);
  const root = rootKey(config.seed);
  const limit = await normLimit(model, config);
  let state = startState(names, own, id, config, options.resume);
  const unbound = options.memory === "low" ? boundCard() : () => {};
  try {
    while (state.step < config.steps) {
      const begun = performance.now();
      const { step } = state;
      if (pivot > 0 && step === pivot) {
        disposeTensors(state.adam.m, state.adam.v);
        state = { ...state, adam: adamwInit(state.params) };
      }
      const [from, to] = step < pivot ? [0, pivot] : [pivot, config.steps];
      const factor = rateFactor(config, step - from, to - from);
      const moving = movingNames(names, state, pivot);
      const { accumulate = 1 } = config;
      const { grads, values } = meanOf(accumulate, (part) =>
        lossGradients(
          model,
          concept,
          s,
          state.params,
          moving,
          () =>
            drawBatch(
              s,
              concept.phrase,
              buckets,
              priors,
              config,
              root,
              step * accumulate + part,
            ),
          config,
          options.memory,
          dropout === 0 ? undefined : {
            rate: dropout,
            key: fold(root, "dropout", step * accumulate + part),
          },
        ));
      state = updated(state, grads, config, factor);
      const norm = meanNorm(state.params);
      const embeddingNorm = (await norm?.data())?.[0];
      norm?.dispose();
      if (embeddingNorm !== undefined && embeddingNorm >= limit) {
        state = { ...state, embeddingsStopped: true };
      }
      const { total: loss, ...rest } = await numbersOf(values);
      if (!Number.isFinite(loss)) {
        throw cannot(`train step ${step}`, "a finite loss", loss);
      }
      yield {
        step,
        total: config.steps,
        loss,
        parts: rest,
        lr: {
          embedding: config.lr.embedding * factor,
          textEncoder: config.lr.textEncoder * factor,
          unet: config.lr.unet * factor,
        },
        ...(embeddingNorm === undefined ? {} : { embeddingNorm }),
        seconds: (performance.now() - begun) / 1000,
        state,
      };
    }
  } finally {
    unbound();
    disposeState(state);
  }
}

/** Names of what is trained; refuses a configuration that trains nothing. */
function namesToTrain(concept: Concept, config: TrainConfig): string[] {
  const names = trainedNames(concept, config);
  if (names.length === 0) {
    throw cannot("train", "a group with a rate above 0", config.lr);
  }
  const { dropout = 0 } = config;
  if (dropout > 0 && adapterTensors(concept.adapter).length === 0) {
    throw cannot("train with dropout", "an adapter", "none");
  }
  if (pivotOf(config) > 0 && (!names.some(isWord) || names.every(isWord))) {
    throw cannot(
      "train with a pivot",
      "an embedding and an adapter with rates above 0",
      config.lr,
    );
  }
  return names;
}

function isWord(name: string): boolean {
  return groupOf(name) === "embedding";
}

/** Names of the parameters that the next step changes. */
function movingNames(
  names: readonly string[],
  { step, embeddingsStopped }: TrainState,
  pivot: number,
): string[] {
  return names.filter((name) =>
    isWord(name)
      ? !embeddingsStopped && (pivot === 0 || step < pivot)
      : step >= pivot
  );
}

/** The state after a step; disposes the one before it, and the gradients. */
function updated(
  state: TrainState,
  grads: Map<string, tf.Tensor>,
  config: TrainConfig,
  factor: number,
): TrainState {
  const { clipNorm, weightDecay, betas, eps } = config;
  const clipped = clipNorm > 0 ? clipGlobalNorm(grads, clipNorm) : undefined;
  const next = adamwStep(state.params, clipped?.grads ?? grads, state.adam, {
    lr: (name) => config.lr[groupOf(name)] * factor,
    ...{ weightDecay, betas, eps },
  });
  disposeTensors(grads, clipped?.grads ?? new Map());
  clipped?.norm.dispose();
  disposeState(state);
  return {
    ...state,
    step: state.step + 1,
    params: next.params,
    adam: next.state,
  };
}

/** Losses as numbers; disposes the scalars. */
async function numbersOf(
  values: Gradients["values"],
): Promise<Record<string, number>> {
  const numbers: Record<string, number> = {};
  for (const [name, value] of Object.entries(values)) {
    numbers[name] = (await value.data())[0];
    value.dispose();
  }
  return numbers;
}

/** The factor of the learning rates in a step. */
function rateFactor(
  { schedule, warmup, cycles }: TrainConfig,
  step: number,
  total: number,
): number {
  switch (schedule) {
    case "linear":
      return linearDecay(step, total, warmup);
    case "cosine":
      return cosineDecay(step, total, warmup);
    case "cosine-with-restarts":
      return cosineDecay(step, total, warmup, cycles);
    default:
      return constantRate(step, warmup);
  }
}

/** Gradients of a batch and its losses, by name. */
export interface Gradients {
  /** By the parameters' names. */
  readonly grads: Map<string, tf.Tensor>;
  /** Scalars: `total` and its parts. */
  readonly values: Readonly<Record<string, tf.Tensor>>;
}

/** The mean gradients and losses of several batches. */
function meanOf(count: number, of: (part: number) => Gradients): Gradients {
  let sum = of(0);
  if (count === 1) return sum;
  const each = (
    a: ReadonlyMap<string, tf.Tensor>,
    b: ReadonlyMap<string, tf.Tensor>,
    weight: number,
  ) =>
    new Map([...new Set([...a.keys(), ...b.keys()])].map((name) => {
      const both = [a.get(name), b.get(name)].filter((t) => t !== undefined);
      const added = tf.tidy(() => tf.mul(tf.addN(both), weight));
      tf.dispose(both);
      return [name, added] as const;
    }));
  for (let part = 1; part < count; part++) {
    const next = of(part);
    const weight = part === count - 1 ? 1 / count : 1;
    sum = {
      grads: each(sum.grads, next.grads, weight),
      // A part of the loss that a batch lacks is 0.
      values: Object.fromEntries(each(
        new Map(Object.entries(sum.values)),
        new Map(Object.entries(next.values)),
        weight,
      )),
    };
  }
  return sum;
}

/**
 * Parts of a batch's loss and its gradients by some parameters.
 *
 * @param model The base model.
 * @param concept The concept.
 * @param s The model's schedule.
 * @param params The concept's parameters, by the names of `conceptTensors`.
 * @param moving Names of the parameters with gradients.
 * @param batch Draws the batch; called inside the loss function.
 * @param config What counts.
 * @param memory What gradients keep.
 * @default memory "high"
 * @param dropout Dropout of the adapter's inputs.
 * @default dropout none
 * @returns Tensors, the caller's.
 */
export function lossGradients(
  model: Model,
  concept: Concept,
  s: Schedule,
  params: ReadonlyMap<string, tf.Tensor>,
  moving: readonly string[],
  batch: () => TrainBatch,
  config: LossConfig,
  memory?: Memory,
  dropout?: Dropout,
): Gradients {
  let values: Gradients["values"] | undefined;
  const { value, grads } = valueAndGrads(
    (leaves: readonly tf.Tensor[]) => {
      const own = new Map(params);
      moving.forEach((name, i) => own.set(name, leaves[i]));
      const moved = withParams(concept, own);
      const adapted = attachConcept(
        model,
        dropout
          ? {
            ...moved,
            adapter: withDropout(moved.adapter, dropout.rate, dropout.key),
          }
          : moved,
      );
      const losses = trainingLoss(adapted, s, batch(), config, memory);
      values = Object.fromEntries(
        Object.entries(losses).map(([k, v]) => [k, tf.keep(v.clone())]),
      );
      return losses.total;
    },
    moving.map((name) => params.get(name)!),
  );
  value.dispose();
  return {
    grads: new Map(moving.map((name, i) => [name, grads.get(String(i))!])),
    values: values!,
  };
}

/** Settings of {@linkcode customize}. */
export interface CustomizeOptions extends Omit<TrainOptions, "resume"> {
  /** Called after every step. */
  readonly onRecord?: (record: TrainRecord) => void | Promise<void>;
  /** Called before the first step, with the number of steps done. */
  readonly onStart?: (step: number) => void | Promise<void>;
  /** Called with the number of steps done when a stopped run is resumed. */
  readonly onResume?: (step: number) => void;
  /** File of the training state, from which a killed run is resumed. */
  readonly checkpoint?: string;
  /**
   * Steps between two writes of the checkpoint.
   *
   * @default 50
   */
  readonly every?: number;
}

/**
 * Trains a concept to the end; continues from its checkpoint if there is one.
 *
 * @param model The base model.
 * @param concept The initial concept; its tensors are not changed.
 * @param data Encoded pictures.
 * @param config Configuration.
 * @param options Checkpoint, observer, class pictures.
 * @returns The trained concept; its tensors are the caller's.
 * @throws As {@linkcode train}; a checkpoint of another run is an error.
 */
export async function customize(
  model: Model,
  concept: Concept,
  data: TrainData | readonly TrainData[],
  config: TrainConfig,
  options: CustomizeOptions = {},
): Promise<Concept> {
  const { checkpoint, every = 50, onRecord, onResume, onStart, ...rest } =
    options;
  const resume = checkpoint
    ? await loadTrainState(checkpoint, true)
    : undefined;
  if (resume) onResume?.(resume.step);
  let result: Concept | undefined;
  try {
    if (resume && resume.step >= config.steps) {
      // The run was finished before: only checks that the checkpoint belongs to
      // it.
      for await (
        const _ of train(model, concept, data, config, {
          ...rest,
          resume,
        })
      ) { /* no step is left */ }
      return conceptOf(concept, resume);
    }
    await onStart?.(resume?.step ?? 0);
    const steps = train(model, concept, data, config, {
      ...rest,
      ...(resume ? { resume } : {}),
    });
    for await (const record of steps) {
      const last = record.step === record.total - 1;
      if (checkpoint && (last || (record.step + 1) % every === 0)) {
        await saveTrainState(checkpoint, record.state);
      }
      await onRecord?.(record);
      if (last) result = conceptOf(concept, record.state);
    }
  } finally {
    if (resume) disposeState(resume);
  }
  return result!;
}
