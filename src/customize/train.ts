/**
 * One trainer for all methods: tokens, adapters, or both, by configuration.
 *
 * Every random number of a step comes from a key of that step, so a run that
 * was stopped anywhere goes on to the same numbers.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import {
  fold,
  type Key,
  key as rootKey,
  normal,
  permutation,
  stream,
} from "../core/random.ts";
import { valueAndGrads } from "../core/tree.ts";
import {
  encodeFloat,
  openSafetensors,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import { bindPrompt, type Model, promptStates } from "../models/model.ts";
import { unet } from "../models/unet.ts";
import { tableSpread } from "../nn/embedding.ts";
import {
  addNoise,
  parseSchedulerConfig,
  type Schedule,
  schedule,
  trainingTarget,
} from "../diffusion/schedule.ts";
import {
  adamwFromTensors,
  adamwInit,
  type AdamwState,
  adamwStep,
  adamwTensors,
  clipGlobalNorm,
  constantRate,
  disposeTensors,
  linearDecay,
} from "../optim/adamw.ts";
import { attachConcept, type Concept, conceptTensors } from "./concept.ts";
import { fillCaption } from "./captions.ts";
import type { TrainData } from "./dataset.ts";
import { withTensors } from "./lora.ts";
import {
  attentionRegularisation,
  debiasedWeights,
  maskedErrors,
  minSnrWeights,
  offsetNoise,
  squaredErrors,
  type TokenAttention,
  tokenMap,
  vLikeNoiseWeights,
} from "./losses.ts";

/** The three groups of parameters with learning rates of their own. */
export type Group = "embedding" | "textEncoder" | "unet";

/** How samples of different noise levels are weighted. */
export type Weighting =
  | { readonly type: "none" }
  | { readonly type: "min-snr"; readonly gamma: number }
  | { readonly type: "debiased" }
  | { readonly type: "v-like-noise" };

/** What is minimised; plain data. */
export interface LossConfig {
  /** Only the subject counts (official main branch), or the whole picture. */
  readonly masked: boolean;
  /** Weights by noise level. */
  readonly weighting: Weighting;
  /** Attention regularisation (official main branch); weight 0 is off. */
  readonly attention: {
    readonly weight: number;
    readonly fullIdentity: boolean;
  };
  /** Weight of the class pictures in prior preservation, where there are any. */
  readonly priorWeight: number;
}

/** A whole training run; plain data, part of a concept's hash. */
export interface TrainConfig extends LossConfig {
  /** Seed of all randomness. */
  readonly seed: number;
  /** Optimisation steps. */
  readonly steps: number;
  /** Pictures a step, class pictures not counted. */
  readonly batch: number;
  /** Learning rates; 0 freezes a group. */
  readonly lr: Readonly<Record<Group, number>>;
  /** How the rates change: linear decay to 0 or constant. */
  readonly schedule: "linear" | "constant";
  /** Steps of warm-up. */
  readonly warmup: number;
  /** AdamW's decoupled weight decay. */
  readonly weightDecay: number;
  /** AdamW's decay of both moments. */
  readonly betas: readonly [number, number];
  /** AdamW's ε. */
  readonly eps: number;
  /** Largest norm of all gradients together; 0 is no limit. */
  readonly clipNorm: number;
  /** Per-channel constant added to the noise. */
  readonly noiseOffset: number;
  /**
   * Tokens stop changing when their mean norm reaches this: an absolute number
   * (0.55 in the official code), or a multiple of the mean norm of the model's
   * own token table; 0 is never.
   */
  readonly embeddingNorm: {
    readonly limit: number;
    readonly relative: boolean;
  };
  /** Leaves `down` of every adapter as it started. */
  readonly freezeDown: boolean;
  /** Parts of captions between commas are shuffled, but for the first n. */
  readonly shuffleCaptions: false | { readonly keep: number };
  /**
   * Share of the prompts that are left empty, from 0 to 1.
   *
   * @default 0
   */
  readonly captionDropout?: number;
}

/** A batch, ready for the loss. */
export interface TrainBatch {
  /** Clean latents [b, h, w, c], scaled. */
  readonly latents: tf.Tensor4D;
  /** Noise, offset included [b, h, w, c]. */
  readonly noise: tf.Tensor4D;
  /** One a sample. */
  readonly timesteps: readonly number[];
  /** Prompts with the concept's tokens. */
  readonly prompts: readonly string[];
  /** Subject [b, h, w, 1]; without it the whole picture. */
  readonly mask?: tf.Tensor4D;
  /**
   * How many of the last rows are class pictures.
   *
   * @default 0
   */
  readonly prior?: number;
}

/** A loss and what it is made of; scalars. */
export interface Losses {
  /** What is minimised: the sum of the parts. */
  readonly total: tf.Scalar;
  /** Error of the denoiser's prediction. */
  readonly diffusion: tf.Scalar;
  /** Weighted. */
  readonly attention?: tf.Scalar;
  /** Weighted. */
  readonly prior?: tf.Scalar;
}

/**
 * The loss of a batch, differentiable by everything in the model.
 *
 * @param model The model, adapters and tokens included.
 * @param s Its schedule.
 * @param batch The batch.
 * @param config What counts.
 * @returns Total and parts.
 */
export function trainingLoss(
  model: Model,
  s: Schedule,
  batch: TrainBatch,
  config: LossConfig,
): Losses {
  const { latents, noise, timesteps, prompts, prior = 0 } = batch;
  const [rows, h, w] = latents.shape;
  const own = rows - prior;
  const regularised = config.attention.weight > 0 && batch.mask !== undefined;
  const { positions, counted } = regularised
    ? tokenPositions(model, prompts)
    : { positions: [], counted: [] };
  const samples = counted.filter((i) => i < own);
  const layers: TokenAttention[] = [];
  const prediction = unet(
    model.unet.params,
    model.unet.config,
    addNoise(s, latents, noise, timesteps),
    timesteps,
    promptStates(model, prompts),
    samples.length === 0 ? {} : {
      crossAttend: ({ height, width, heads }) => ({
        probabilities: (p) => {
          layers.push({ map: tokenMap(p, positions), height, width, heads });
        },
      }),
    },
  );
  const target = trainingTarget(s, latents, noise, timesteps);
  const full = () => tf.ones([rows, h, w, 1]) as tf.Tensor4D;
  let errors = config.masked
    ? maskedErrors(prediction, target, batch.mask ?? full())
    : squaredErrors(prediction, target);
  const weights = noiseWeights(s, timesteps, config.weighting);
  if (weights) errors = tf.mul(errors, tf.tensor1d(weights));
  const diffusion: tf.Scalar = tf.mean(tf.slice(errors, 0, own));
  const parts: { attention?: tf.Scalar; prior?: tf.Scalar } = {};
  if (prior > 0) {
    parts.prior = tf.mul(
      tf.mean(tf.slice(errors, own, prior)),
      config.priorWeight,
    );
  }
  if (samples.length > 0) {
    parts.attention = tf.mul(
      attentionRegularisation(layers, batch.mask!, {
        fullIdentity: config.attention.fullIdentity,
        samples,
      }),
      config.attention.weight,
    );
  }
  const total = tf.addN([diffusion, ...Object.values(parts)]) as tf.Scalar;
  return { total, diffusion, ...parts };
}

function noiseWeights(
  s: Schedule,
  timesteps: readonly number[],
  weighting: Weighting,
): number[] | undefined {
  switch (weighting.type) {
    case "none":
      return undefined;
    case "min-snr":
      return minSnrWeights(s, timesteps, weighting.gamma);
    case "debiased":
      return debiasedWeights(s, timesteps);
    case "v-like-noise":
      return vLikeNoiseWeights(s, timesteps);
    default:
      throw cannot(
        "weight a loss",
        "none, min-snr, debiased or v-like-noise",
        weighting,
      );
  }
}

/**
 * Positions of learned tokens in each prompt, and which prompts count: those
 * with the most of them (class prompts have none, a cut-off prompt may have
 * lost one). The others get stand-ins, so that the maps stack.
 */
function tokenPositions(
  model: Model,
  prompts: readonly string[],
): { positions: number[][]; counted: number[] } {
  const base = model.tokenizer.vocabSize - (model.added?.names.length ?? 0);
  const found = prompts.map((prompt) =>
    bindPrompt(model, prompt).rows[0].flatMap((id, i) => id >= base ? [i] : [])
  );
  const most = Math.max(0, ...found.map((p) => p.length));
  return {
    positions: found.map((p) =>
      p.length === most ? p : new Array<number>(most).fill(0)
    ),
    counted: found.flatMap((p, i) => most > 0 && p.length === most ? [i] : []),
  };
}

/** All a run needs to go on: parameters, moments, where it was. */
export interface TrainState {
  /** Steps done. */
  readonly step: number;
  /** Trained parameters by the names of `conceptTensors`. */
  readonly params: ReadonlyMap<string, tf.Tensor>;
  /** AdamW's moments. */
  readonly adam: AdamwState;
  /** The tokens' norm has reached its limit. */
  readonly embeddingsStopped: boolean;
  /** Of start, data and configuration; a run resumes only its own. */
  readonly fingerprint: string;
}

/** One optimisation step. */
export interface TrainRecord {
  /** This step, from 0. */
  readonly step: number;
  /** Steps of the run. */
  readonly total: number;
  /** The loss of this step, all parts together. */
  readonly loss: number;
  /** What the loss is made of; weighted. */
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

/** What a run may be given beside its configuration. */
export interface TrainOptions {
  /** Goes on from here; its tensors stay the caller's. */
  readonly resume?: TrainState;
  /** Class pictures for prior preservation, with their own captions. */
  readonly prior?: TrainData;
}

/** The group a parameter belongs to. */
export function groupOf(name: string): Group {
  return name.slice(0, name.indexOf(".")) as Group;
}

/**
 * A short text that two runs share if and only if they are the same run.
 *
 * @param concept What is trained.
 * @param data Pictures.
 * @param config Configuration.
 * @param prior Class pictures.
 */
export async function fingerprint(
  concept: Concept,
  data: TrainData,
  config: TrainConfig,
  prior?: TrainData,
): Promise<string> {
  const parts: BlobPart[] = [];
  for (const d of prior ? [data, prior] : [data]) {
    parts.push(JSON.stringify([d.count, d.height, d.width, d.captions]));
    parts.push(d.mean.slice(), d.std.slice(), d.mask.slice());
  }
  parts.push(JSON.stringify([concept.phrase, sorted(config)]));
  for (const [name, tensor] of conceptTensors(concept)) {
    parts.push(name, (await tensor.data() as Float32Array).slice());
  }
  // Half of it is plenty to tell two runs apart.
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

function checkConfig(
  config: TrainConfig,
  data: TrainData,
  options: TrainOptions,
): void {
  const what = "train";
  const whole = (name: string, value: number, least: number) => {
    if (!Number.isInteger(value) || value < least) {
      throw cannot(what, `${name} ≥ ${least}`, value);
    }
  };
  whole("steps", config.steps, 1);
  whole("batch", config.batch, 1);
  whole("warmup", config.warmup, 0);
  for (const [group, lr] of Object.entries(config.lr)) {
    if (!(lr >= 0)) throw cannot(what, `a ${group} rate ≥ 0`, lr);
  }
  const { captionDropout: dropout = 0 } = config;
  if (!(dropout >= 0 && dropout <= 1)) {
    throw cannot(what, "a caption dropout from 0 to 1", dropout);
  }
  if (data.count < 1) throw cannot(what, "at least one picture", data.count);
  const { prior } = options;
  if (
    prior && (prior.height !== data.height || prior.width !== data.width ||
      prior.channels !== data.channels)
  ) {
    throw cannot(
      what,
      `class pictures of ${data.height}×${data.width}`,
      `${prior.height}×${prior.width}`,
    );
  }
}

/** Names of the parameters that are trained. */
function trainedNames(concept: Concept, config: TrainConfig): string[] {
  return [...conceptTensors(concept).keys()].filter((name) =>
    config.lr[groupOf(name)] > 0 &&
    !(config.freezeDown && name.endsWith(".down"))
  );
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
    tokens: concept.tokens.map(({ token, vectors }) => ({
      token,
      vectors: (tensors.get(`embedding.${token}`) ?? vectors) as tf.Tensor2D,
    })),
  };
}

/**
 * The concept at a state of its training.
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

/** Draws the batch of a step; all from that step's keys. */
function drawBatch(
  s: Schedule,
  concept: Concept,
  data: TrainData,
  prior: TrainData | undefined,
  config: TrainConfig,
  root: Key,
  step: number,
): TrainBatch {
  const here = fold(root, "step", step);
  const own = pick(data, config, fold(root, "order"), here, step, concept);
  const other = prior &&
    pick(
      prior,
      config,
      fold(root, "prior"),
      fold(here, "prior"),
      step,
      concept,
    );
  const rows = own.rows + (other?.rows ?? 0);
  const shape: [number, number, number, number] = [
    rows,
    data.height,
    data.width,
    data.channels,
  ];
  const size = rows * data.height * data.width * data.channels;
  const join = (a: Float32Array, b: Float32Array | undefined) => {
    const all = new Float32Array(a.length + (b?.length ?? 0));
    all.set(a);
    if (b) all.set(b, a.length);
    return all;
  };
  const draw = stream(fold(here, "timesteps"));
  const timesteps = Array.from(
    { length: rows },
    () => draw.integer(s.alphasCumprod.length),
  );
  const latents = tf.tensor4d(join(own.latents, other?.latents), shape);
  const plain = tf.tensor4d(normal(fold(here, "noise"), size), shape);
  const noise = config.noiseOffset === 0 ? plain : offsetNoise(
    plain,
    config.noiseOffset,
    tf.tensor4d(normal(fold(here, "offset"), rows * data.channels), [
      rows,
      1,
      1,
      data.channels,
    ]),
  );
  return {
    latents,
    noise,
    timesteps,
    prompts: [...own.prompts, ...other?.prompts ?? []],
    mask: tf.tensor4d(join(own.mask, other?.mask.fill(1)), [
      rows,
      data.height,
      data.width,
      1,
    ]),
    prior: other?.rows ?? 0,
  };
}

/** Pictures of a step: epochs of permutations, one after the other. */
function pick(
  data: TrainData,
  config: TrainConfig,
  order: Key,
  here: Key,
  step: number,
  concept: Concept,
): {
  rows: number;
  latents: Float32Array;
  mask: Float32Array;
  prompts: string[];
} {
  const size = data.height * data.width * data.channels;
  const area = data.height * data.width;
  const latents = new Float32Array(config.batch * size);
  const mask = new Float32Array(config.batch * area);
  const prompts: string[] = [];
  const drawn = normal(fold(here, "posterior"), latents.length);
  for (let row = 0; row < config.batch; row++) {
    const place = step * config.batch + row;
    const epoch = fold(order, Math.floor(place / data.count));
    const i = permutation(epoch, data.count)[place % data.count];
    for (let k = 0; k < size; k++) {
      latents[row * size + k] = data.mean[i * size + k] +
        data.std[i * size + k] * drawn[row * size + k];
    }
    mask.set(data.mask.subarray(i * area, (i + 1) * area), row * area);
    const choose = fold(here, "caption", row);
    const captions = data.captions[i];
    const caption = captions[stream(choose).integer(captions.length)];
    const dropped = stream(fold(choose, 2)).uniform() <
      (config.captionDropout ?? 0);
    prompts.push(
      dropped ? "" : fillCaption(
        shuffled(caption, config, fold(choose, 1)),
        concept.phrase,
      ),
    );
  }
  return { rows: config.batch, latents, mask, prompts };
}

function shuffled(caption: string, config: TrainConfig, key: Key): string {
  if (!config.shuffleCaptions) return caption;
  const parts = caption.split(",").map((part) => part.trim());
  const { keep } = config.shuffleCaptions;
  const rest = parts.slice(keep);
  return [
    ...parts.slice(0, keep),
    ...permutation(key, rest.length).map((i) => rest[i]),
  ].join(", ");
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

/** The norm at which tokens stop, or infinity. */
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
 * parameters (so the rows of other tokens cannot move).
 *
 * @param model The base model, without the concept.
 * @param concept Where to start (`initConcept`); its tensors are not changed.
 * @param data Encoded pictures.
 * @param config Configuration (`method` in methods.ts makes it).
 * @param options A state to resume, class pictures.
 * @returns One record a step; the last one's state is the result.
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
  data: TrainData,
  config: TrainConfig,
  options: TrainOptions = {},
): AsyncGenerator<TrainRecord, void, void> {
  checkConfig(config, data, options);
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const own = conceptTensors(concept);
  const names = trainedNames(concept, config);
  if (names.length === 0) {
    throw cannot("train", "a group with a rate above 0", config.lr);
  }
  // Fails here, before work, if the concept does not fit the model.
  tf.tidy(() => void attachConcept(model, concept));
  const id = await fingerprint(concept, data, config, options.prior);
  const root = rootKey(config.seed);
  const limit = await normLimit(model, config);
  let state = start(names, own, id, options.resume);
  try {
    while (state.step < config.steps) {
      const begun = performance.now();
      const { step } = state;
      const factor = config.schedule === "linear"
        ? linearDecay(step, config.steps, config.warmup)
        : constantRate(step, config.warmup);
      const moving = state.embeddingsStopped
        ? names.filter((name) => groupOf(name) !== "embedding")
        : names;
      const { grads, values } = gradients(
        model,
        concept,
        s,
        state,
        moving,
        () => drawBatch(s, concept, data, options.prior, config, root, step),
        config,
      );
      const clipped = config.clipNorm > 0
        ? clipGlobalNorm(grads, config.clipNorm)
        : undefined;
      const next = adamwStep(
        state.params,
        clipped?.grads ?? grads,
        state.adam,
        {
          lr: (name) => config.lr[groupOf(name)] * factor,
          weightDecay: config.weightDecay,
          betas: config.betas,
          eps: config.eps,
        },
      );
      disposeTensors(grads, clipped?.grads ?? new Map());
      clipped?.norm.dispose();
      disposeState(state);
      state = {
        ...state,
        step: step + 1,
        params: next.params,
        adam: next.state,
      };
      const norm = meanNorm(next.params);
      const embeddingNorm = (await norm?.data())?.[0];
      norm?.dispose();
      if (embeddingNorm !== undefined && embeddingNorm >= limit) {
        state = { ...state, embeddingsStopped: true };
      }
      const parts: Record<string, number> = {};
      for (const [name, value] of Object.entries(values)) {
        parts[name] = (await value.data())[0];
        value.dispose();
      }
      const { total: loss, ...rest } = parts;
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
    disposeState(state);
  }
}

function start(
  names: readonly string[],
  own: ReadonlyMap<string, tf.Tensor>,
  id: string,
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
    };
  }
  if (resume.fingerprint !== id) {
    throw cannot(
      "resume training",
      `a state of this run (the same pictures, as the same backend encodes ` +
        `them, and settings: ${id})`,
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

function disposeState(state: TrainState): void {
  disposeTensors(state.params, state.adam.m, state.adam.v);
}

/** Loss parts and gradients of the moving parameters at a state. */
function gradients(
  model: Model,
  concept: Concept,
  s: Schedule,
  state: TrainState,
  moving: readonly string[],
  batch: () => TrainBatch,
  config: LossConfig,
): { grads: Map<string, tf.Tensor>; values: Losses } {
  let values: Losses | undefined;
  const { value, grads } = valueAndGrads(
    (leaves: readonly tf.Tensor[]) => {
      const params = new Map(state.params);
      moving.forEach((name, i) => params.set(name, leaves[i]));
      const adapted = attachConcept(model, withParams(concept, params));
      const losses = trainingLoss(adapted, s, batch(), config);
      values = Object.fromEntries(
        Object.entries(losses).map(([k, v]) => [k, tf.keep(v.clone())]),
      ) as unknown as Losses;
      return losses.total;
    },
    moving.map((name) => state.params.get(name)!),
  );
  value.dispose();
  return {
    grads: new Map(moving.map((name, i) => [name, grads.get(String(i))!])),
    values: values!,
  };
}

/**
 * The gradients of a batch's loss by every tensor of a concept.
 *
 * @param model The base model.
 * @param concept The concept.
 * @param batch The batch; stays the caller's.
 * @param config What counts.
 * @returns Losses as numbers, and gradients by the names of `conceptTensors`,
 * the caller's.
 */
export async function conceptGradients(
  model: Model,
  concept: Concept,
  batch: TrainBatch,
  config: LossConfig,
): Promise<
  { losses: Record<string, number>; grads: Map<string, tf.Tensor> }
> {
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const params = conceptTensors(concept);
  const { grads, values } = gradients(
    model,
    concept,
    s,
    { params } as unknown as TrainState,
    [...params.keys()],
    () => batch,
    config,
  );
  const losses: Record<string, number> = {};
  for (const [name, value] of Object.entries(values)) {
    losses[name] = (await value.data())[0];
    value.dispose();
  }
  return { losses, grads };
}

/** Settings of {@linkcode customize}. */
export interface CustomizeOptions extends Omit<TrainOptions, "resume"> {
  /** Called after every step. */
  readonly onRecord?: (record: TrainRecord) => void | Promise<void>;
  /** File that keeps the state, so that a killed run continues. */
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
 * @param concept Where to start; its tensors are not changed.
 * @param data Encoded pictures.
 * @param config Configuration.
 * @param options Checkpoint, observer, class pictures.
 * @returns The trained concept; its tensors are the caller's.
 * @throws As {@linkcode train}; a checkpoint of another run is an error.
 */
export async function customize(
  model: Model,
  concept: Concept,
  data: TrainData,
  config: TrainConfig,
  options: CustomizeOptions = {},
): Promise<Concept> {
  const { checkpoint, every = 50, onRecord, ...rest } = options;
  const resume = checkpoint
    ? await loadTrainState(checkpoint, true)
    : undefined;
  let result: Concept | undefined;
  try {
    if (resume && resume.step >= config.steps) {
      // Finished before: only checks that it is this run's.
      for await (
        const _ of train(model, concept, data, config, {
          ...rest,
          resume,
        })
      ) { /* no step is left */ }
      return conceptOf(concept, resume);
    }
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

/**
 * Writes a state as one safetensors file, atomically: whoever is killed while
 * writing leaves the state before.
 *
 * @param path The file.
 * @param state The state; its tensors stay as they are.
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
    [...tensors].map(async ([name, t]) =>
      [name, {
        dtype: "F32" as const,
        shape: [...t.shape],
        data: encodeFloat(await t.data() as Float32Array, "F32"),
      }] as [string, { dtype: "F32"; shape: number[]; data: Uint8Array }]
    ),
  );
  await writeSafetensors(path, raw, {
    format: "mix-of-show train state 1",
    step: String(state.step),
    embeddings_stopped: String(state.embeddingsStopped),
    fingerprint: state.fingerprint,
  });
}

/**
 * Reads a state written by {@linkcode saveTrainState}.
 *
 * @param path The file.
 * @param optional Whether a missing file is fine.
 * @returns The state, its tensors the caller's; nothing if there is no file and
 * that is fine.
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
    const absent = await Deno.stat(path).then(
      () => false,
      (e) => e instanceof Deno.errors.NotFound,
    );
    if (optional && absent) return undefined;
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
    const adam = adamwFromTensors(tensors, step, "adam.");
    return {
      step,
      params,
      adam,
      embeddingsStopped: metadata.embeddings_stopped === "true",
      fingerprint: metadata.fingerprint,
    };
  } catch (error) {
    disposeTensors(tensors);
    throw error;
  } finally {
    file.close();
  }
}
