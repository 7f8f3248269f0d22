/**
 * Draws pictures from prompts: text states, guided sampling, decoding.
 *
 * One generator for every model: base, adapted, with learned tokens, fused.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { bindingLimit, boundCard, trimCard } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { fold, type Key, key as rootKey, normal } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";
import { decode, downsampleFactor } from "../models/autoencoder.ts";
import { crossAttentionSites } from "../models/config.ts";
import type { Model } from "../models/model.ts";
import {
  promptChunks,
  type PromptReading,
  type PromptSyntax,
  readPrompts,
} from "../models/prompts.ts";
import { KeyValues } from "../nn/attention.ts";
import { assertTextToImage } from "../models/purpose.ts";
import { unet, type UNetOptions, widestFeatures } from "../models/unet.ts";
import { classifierFree, type GuidanceBranch } from "./guidance.ts";
import { assertFits } from "./memory.ts";
import {
  denoiser,
  plan,
  type PlanOptions,
  type SamplerName,
  type SamplerPlan,
  sampleSteps,
} from "./samplers.ts";
import { parseSchedulerConfig, schedule } from "./schedule.ts";
import { startStepOf } from "./start_step.ts";

/** Which UNet call is being made, for options that depend on it. */
export interface UNetCall {
  /** Model call, from 0. */
  readonly index: number;
  /** Model calls of a batch. */
  readonly total: number;
  /** The call's timestep. */
  readonly timestep: number;
  /** `both`: the first half of the rows is without the prompt. */
  readonly branch: GuidanceBranch;
  /** First picture of the batch. */
  readonly first: number;
  /** Pictures in the batch. */
  readonly count: number;
  /** The UNet's input [rows, h, w, c]; not to be kept. */
  readonly sample: tf.Tensor4D;
  /** The UNet's text states, one row per input row; not to be kept. */
  readonly states: tf.Tensor3D | tf.Tensor4D;
}

/** Settings of {@linkcode pipeline}. */
export interface PipelineOptions extends PlanOptions {
  /** One per picture. */
  readonly prompts: readonly string[];
  /**
   * Negative prompts: one for all, or one per picture.
   *
   * @default ""
   */
  readonly negative?: string | readonly string[];
  /**
   * Sampling steps.
   *
   * @default 20
   */
  readonly steps?: number;
  /**
   * Sampler.
   *
   * @default "dpmpp_2m"
   */
  readonly sampler?: SamplerName;
  /**
   * Guidance scale; 1 is the plain conditional model at half the cost.
   *
   * @default 7.5
   */
  readonly guidance?: number;
  /**
   * Guidance rescale φ (Lin et al. 2023), 0 to 1.
   *
   * @default 0
   */
  readonly rescale?: number;
  /**
   * Randomness: one key for all (picture i takes `fold(key, i)`), or one a
   * picture. A picture depends on its own key only, not on its batch.
   *
   * @default key(0)
   */
  readonly key?: Key | readonly Key[];
  /** Unit normal noise to start from, [pictures, h, w, c]; the caller's. */
  readonly noise?: tf.Tensor4D;
  /**
   * Height in pixels, a multiple of the autoencoder's factor.
   *
   * @default the UNet's `sample_size`
   */
  readonly height?: number;
  /** Width in pixels; see `height`. */
  readonly width?: number;
  /**
   * Pictures per batch; smaller if a tensor would exceed what a graphics card
   * can bind.
   *
   * @default 4
   */
  readonly batch?: number;
  /**
   * Only these pictures are drawn: the first, and the one after the last. They
   * are the same as when all are drawn, so that several workers can share the
   * work.
   *
   * @default all
   */
  readonly range?: readonly [first: number, end: number];
  /** Skips the last n layers of the text encoder (clip skip − 1). */
  readonly skipLast?: number;
  /**
   * Whether prompts have A1111's weights, breaks and chunks.
   *
   * @default "plain"
   */
  readonly syntax?: PromptSyntax;
  /**
   * Image-to-image: clean latents [pictures or 1, h, w, c], as of
   * `encodeImages`, with `strength` or `startStep`.
   */
  readonly init?: tf.Tensor4D;
  /**
   * Image-to-image: diffusers' `strength`, above 0 to 1: the share of the steps
   * that are run. 1 starts from noise alone.
   *
   * @default `startStep` decides
   */
  readonly strength?: number;
  /**
   * Inpainting: 1 where `init` is repainted, [pictures or 1, h, w, 1]; the rest
   * is kept.
   */
  readonly mask?: tf.Tensor4D;
  /** Observers of the UNet, residuals, replaced attention. */
  readonly unet?: UNetOptions | ((call: UNetCall) => UNetOptions);
  /**
   * Replaces a UNet call, for example by several runs that are combined; called
   * inside `tf.tidy`.
   *
   * @param run Runs the UNet, with `unet`'s options or with others.
   * @param call Which call.
   * @default one plain run
   */
  readonly denoise?: (
    run: (options?: UNetOptions) => tf.Tensor4D,
    call: UNetCall,
  ) => tf.Tensor4D;
  /**
   * Changes the latents before a call, for example by the gradient of a loss;
   * called inside `tf.tidy`.
   *
   * @param latent [count, h, w, c].
   * @param call Which call.
   */
  readonly adjust?: (
    latent: tf.Tensor4D,
    call: Pick<UNetCall, "index" | "total" | "timestep" | "first" | "count">,
  ) => tf.Tensor4D;
  /**
   * Whether latents are decoded; if not, there is no `images` record.
   *
   * @default {true}
   */
  readonly decode?: boolean;
  /**
   * `low` has a graphics card hold little beside the tensors there are, which
   * takes more time; pictures are the same.
   *
   * @default "high"
   */
  readonly memory?: "high" | "low";
}

/** One model call of one batch. */
export interface StepRecord {
  /** A step, not images. */
  readonly type: "step";
  /** First picture of the batch. */
  readonly first: number;
  /** Pictures in the batch. */
  readonly count: number;
  /** Model call of this batch, from 0. */
  readonly index: number;
  /** Model calls of a batch. */
  readonly total: number;
  /** The call's timestep. */
  readonly timestep: number;
  /** Seconds this call took. */
  readonly seconds: number;
  /** The latent after the call; valid until the next record. */
  readonly latent: tf.Tensor4D;
  /** The clean latent as predicted; valid until the next record. */
  readonly denoised: tf.Tensor4D;
}

/** A finished batch. */
export interface ImagesRecord {
  /** Images, not a step. */
  readonly type: "images";
  /** First picture of the batch. */
  readonly first: number;
  /** Pictures in the batch. */
  readonly count: number;
  /** [count, height, width, 3] in [0, 1]; the consumer's to dispose. */
  readonly images: tf.Tensor4D;
}

/** What {@linkcode pipeline} yields. */
export type PipelineRecord = StepRecord | ImagesRecord;

/** Checked settings. */
interface Job {
  readonly negative: readonly string[];
  readonly keys: readonly Key[];
  readonly steps: number;
  readonly sampler: SamplerName;
  readonly guidance: number;
  readonly batch: number;
  /** The first picture, and the one after the last. */
  readonly range: readonly [first: number, end: number];
  /** Latent [h, w, c]. */
  readonly shape: readonly [number, number, number];
  /** Steps that are left out at the noisy end. */
  readonly startStep: number;
}

/** Checks what a picture is started from, and gives the step to start at. */
function startOf(
  { init, mask, strength, startStep }: PipelineOptions,
  steps: number,
  [height, width]: readonly number[],
  count: number,
): number {
  for (const [name, given] of Object.entries({ mask, strength })) {
    if (given !== undefined && !init) {
      throw cannot("sample", `init with ${name}`, "none");
    }
  }
  if (mask) {
    const [rows, ...place] = mask.shape;
    const fits = rows === 1 || rows === count;
    if (!fits || String(place) !== `${height},${width},1`) {
      throw cannot(
        "sample",
        `a mask [${count} or 1,${height},${width},1]`,
        `[${mask.shape}]`,
      );
    }
  }
  if (strength === undefined) return startStep ?? 0;
  if (startStep !== undefined) {
    throw cannot("sample", "strength or startStep", "both");
  }
  return startStepOf(steps, strength);
}

function prepare(model: Model, options: PipelineOptions): Job {
  const what = "sample";
  const { prompts, steps = 20, sampler = "dpmpp_2m", guidance = 7.5 } = options;
  const { batch = 4, key = rootKey(0), negative = "" } = options;
  const count = prompts.length;
  const per = <T>(name: string, list: readonly T[]): readonly T[] => {
    if (list.length !== count) {
      throw cannot(what, `${count} ${name}, one per prompt`, list.length);
    }
    return list;
  };
  if (!Number.isInteger(batch) || batch < 1) {
    throw cannot(what, "a batch of at least 1", batch);
  }
  const { range = [0, count] } = options;
  const [start, end] = range;
  if (
    !Number.isInteger(start) || !Number.isInteger(end) ||
    start < 0 || start > end || end > count
  ) {
    throw cannot(what, `a range inside 0 to ${count}`, `[${range}]`);
  }
  if (!Number.isInteger(steps) || steps < 1) {
    throw cannot(what, "steps ≥ 1", steps);
  }
  if (!Number.isFinite(guidance)) {
    throw cannot(what, "a finite guidance scale", guidance);
  }
  assertTextToImage(model, what);
  const factor = downsampleFactor(model.autoencoder.config);
  const sample = model.unet.config.sample_size ?? 64;
  const [high, wide] = typeof sample === "number" ? [sample, sample] : sample;
  const side = (name: string, pixels: number | undefined, latent: number) => {
    if (pixels === undefined) return latent;
    if (!Number.isInteger(pixels) || pixels < factor || pixels % factor !== 0) {
      throw cannot(what, `a ${name} that is a multiple of ${factor}`, pixels);
    }
    return pixels / factor;
  };
  const channels = model.unet.config.in_channels;
  const given = options.noise?.shape ?? options.init?.shape;
  const shape = [
    side("height", options.height, given?.[1] ?? high),
    side("width", options.width, given?.[2] ?? wide),
    channels,
  ] as const;
  assertFits(
    model,
    shape[0] * factor,
    shape[1] * factor,
    guidance === 1 ? 1 : 2,
  );
  for (const name of ["noise", "init"] as const) {
    const tensor = options[name];
    // One picture may start all.
    const rows = name === "init" && tensor?.shape[0] === 1 ? 1 : count;
    if (tensor && !tf.util.arraysEqual(tensor.shape, [rows, ...shape])) {
      throw cannot(what, `${name} [${[count, ...shape]}]`, `[${tensor.shape}]`);
    }
  }
  const isKey = (k: Key | readonly Key[]): k is Key => typeof k[0] === "number";
  // Every picture has its own randomness, so that batches may be smaller.
  const widest = widestFeatures(model.unet.config, shape[0], shape[1]);
  const fitting = Math.floor(
    bindingLimit() / (4 * widest * (guidance === 1 ? 1 : 2)),
  );
  return {
    negative: typeof negative === "string"
      ? new Array(count).fill(negative)
      : per("negative prompts", negative),
    keys: isKey(key) ? prompts.map((_, i) => fold(key, i)) : per("keys", key),
    steps,
    sampler,
    guidance,
    batch: Math.max(1, Math.min(batch, fitting)),
    range,
    shape,
    startStep: startOf(options, steps, shape, count),
  };
}

/** Unit normal numbers, each picture from its own key. */
function noiseOf(
  keys: readonly Key[],
  shape: readonly [number, number, number],
  ...purpose: (string | number)[]
): tf.Tensor4D {
  const size = shape[0] * shape[1] * shape[2];
  const values = new Float32Array(keys.length * size);
  keys.forEach((k, i) =>
    values.set(normal(fold(k, ...purpose), size), i * size)
  );
  return tf.tensor4d(values, [keys.length, ...shape]);
}

/** Text states by prompt, computed once and kept until their last use. */
class States {
  readonly #model: Model;
  readonly #reading: PromptReading;
  readonly #left = new Map<string, number>();
  readonly #made = new Map<string, tf.Tensor>();

  constructor(
    model: Model,
    prompts: readonly string[],
    uses: readonly string[],
    reading: PromptReading,
  ) {
    this.#model = model;
    // Prompts of one batch must be of one length, whoever draws which.
    const chunks = promptChunks(model, [...new Set(prompts)], reading.syntax);
    this.#reading = { ...reading, chunks };
    for (const p of uses) this.#left.set(p, (this.#left.get(p) ?? 0) + 1);
  }

  /** [n, tokens, d], or [n, sites, tokens, d] if one of them is layer-wise. */
  of(prompts: readonly string[]): tf.Tensor3D | tf.Tensor4D {
    for (const prompt of prompts) {
      if (this.#made.has(prompt)) continue;
      this.#made.set(
        prompt,
        tf.tidy(() => readPrompts(this.#model, [prompt], this.#reading)),
      );
    }
    const states = tf.tidy(() => {
      const parts = prompts.map((p) => this.#made.get(p)!);
      if (parts.every((p) => p.rank === 3)) return tf.concat(parts, 0);
      const sites = crossAttentionSites(this.#model.unet.config).length;
      return tf.concat(
        parts.map((p) =>
          p.rank === 4 ? p : tf.tile(tf.expandDims(p, 1), [1, sites, 1, 1])
        ),
        0,
      );
    });
    for (const prompt of prompts) {
      const left = this.#left.get(prompt)! - 1;
      this.#left.set(prompt, left);
      if (left > 0) continue;
      this.#made.get(prompt)?.dispose();
      this.#made.delete(prompt);
    }
    return states as tf.Tensor3D | tf.Tensor4D;
  }

  dispose(): void {
    for (const tensor of this.#made.values()) tensor.dispose();
  }
}

/**
 * Draws pictures, batch by batch, and yields every step.
 *
 * Layer-wise prompts (learned tokens) and plain ones may be mixed in a call.
 *
 * @param model Any model.
 * @param options Prompts, sampler, guidance, randomness, size.
 * @returns Steps of each batch, then its images in [0, 1].
 * @throws Before the first model call, if an option does not fit.
 *
 * @example
 * ```ts
 * for await (const record of pipeline(model, { prompts: ["a red fox"] })) {
 *   if (record.type === "images") {
 *     console.log(await toPixels(record.images));
 *     record.images.dispose();
 *   }
 * }
 * ```
 */
export async function* pipeline(
  model: Model,
  options: PipelineOptions,
): AsyncGenerator<PipelineRecord, void, void> {
  const job = prepare(model, options);
  // A plan that cannot be made is an error before any work.
  const course = plan(
    job.sampler,
    schedule(parseSchedulerConfig(model.scheduler)),
    job.steps,
    { ...options, startStep: job.startStep },
  );
  const { prompts } = options;
  const guided = job.guidance !== 1;
  const [start, end] = job.range;
  const read = (list: readonly string[]) => list.slice(start, end);
  const states = new States(
    model,
    guided ? [...prompts, ...job.negative] : prompts,
    guided ? [...read(prompts), ...read(job.negative)] : read(prompts),
    { skipLast: options.skipLast, syntax: options.syntax },
  );
  const unbound = options.memory === "low" ? boundCard() : () => {};
  try {
    for (let first = start; first < end; first += job.batch) {
      const last = Math.min(first + job.batch, end);
      yield* drawBatch(model, options, job, course, states, first, last);
    }
  } finally {
    unbound();
    states.dispose();
  }
}

async function* drawBatch(
  model: Model,
  options: PipelineOptions,
  job: Job,
  course: SamplerPlan,
  states: States,
  first: number,
  last: number,
): AsyncGenerator<PipelineRecord, void, void> {
  const count = last - first;
  const asked = options.prompts.slice(first, last);
  const keys = job.keys.slice(first, last);
  const part = (x: tf.Tensor4D | undefined) =>
    x &&
    (x.shape[0] === 1
      ? tf.tile(x, [count, 1, 1, 1])
      : tf.slice(x, [first, 0, 0, 0], [count, -1, -1, -1]));
  const guided = job.guidance !== 1;
  const text = states.of(
    guided ? [...job.negative.slice(first, last), ...asked] : asked,
  );
  const noise = part(options.noise) ?? noiseOf(keys, job.shape, "initial");
  const init = part(options.init);
  const mask = part(options.mask);
  let final: tf.Tensor4D | undefined;
  // The text is the same in all steps.
  const keyValues = new KeyValues();
  try {
    const predict = classifierFree((sample, timestep, index, branch) =>
      // Inside tidy also what the options make: residuals of a ControlNet.
      tf.tidy(() => {
        const call = {
          index,
          total: course.calls,
          timestep,
          branch,
          first,
          count,
          sample,
          states: text,
        };
        const extra = typeof options.unet === "function"
          ? options.unet(call)
          : options.unet;
        const { params, config } = model.unet;
        const run = (own = extra) =>
          unet(params, config, sample, [timestep], text, {
            ...own,
            keyValues,
          });
        return options.denoise ? options.denoise(run, call) : run();
      }), {
      scale: job.guidance,
      ...(options.rescale === undefined ? {} : { rescale: options.rescale }),
    });
    let before = performance.now();
    const denoise = denoiser(predict, course.prediction);
    const steps = sampleSteps(course, denoise, noise, {
      // At full strength nothing of the picture is left to start from.
      ...(init && options.strength !== 1 ? { init } : {}),
      ...(init && mask ? { keep: { latent: init, mask } } : {}),
      noise: (index: number) => noiseOf(keys, job.shape, "step", index),
      ...(options.adjust && {
        adjust: (latent: tf.Tensor4D, { timestep }, index: number) =>
          tf.tidy(() =>
            options.adjust!(latent, {
              ...{ index, total: course.calls, timestep, first, count },
            })
          ),
      }),
    });
    for await (const step of steps) {
      const now = performance.now();
      yield {
        type: "step",
        first,
        count,
        index: step.index,
        total: step.total,
        timestep: step.timestep,
        seconds: (now - before) / 1000,
        latent: step.latent,
        denoised: step.denoised,
      };
      if (step.index === step.total - 1) final = step.latent.clone();
      before = performance.now();
    }
    keyValues.dispose();
    if (final && (options.decode ?? true)) {
      const images = decodeImages(model, final);
      yield { type: "images", first, count, images };
    }
  } finally {
    keyValues.dispose();
    tf.dispose([text, noise]);
    init?.dispose();
    mask?.dispose();
    final?.dispose();
  }
}

/**
 * Decodes sampled latents to images.
 *
 * @param model The model.
 * @param latents [b, h, w, c], scaled as the UNet sees them.
 * @returns [b, height, width, 3] in [0, 1]; the caller's.
 */
export function decodeImages(
  model: Pick<Model, "autoencoder">,
  latents: tf.Tensor4D,
): tf.Tensor4D {
  const { config, params } = model.autoencoder;
  // The UNet's buffers are of no use here.
  trimCard();
  return tf.tidy(() =>
    tf.clipByValue(
      decode(params, config, latents.div(config.scaling_factor))
        .mul(0.5).add(0.5),
      0,
      1,
    )
  ) as tf.Tensor4D;
}

/**
 * Reads images back as bytes.
 *
 * @param images [b, height, width, 3] in [0, 1]; stays the caller's.
 * @returns RGB pictures, rounded to nearest.
 */
export async function toPixels(images: tf.Tensor4D): Promise<Pixels[]> {
  const [count, height, width, channels] = images.shape;
  const values = await images.data();
  const size = height * width * channels;
  return Array.from({ length: count }, (_, i) => ({
    width,
    height,
    channels: channels as Pixels["channels"],
    data: Uint8Array.from(
      values.subarray(i * size, (i + 1) * size),
      (v) => Math.round(Math.min(1, Math.max(0, v)) * 255),
    ),
  }));
}

/**
 * Draws pictures and returns them when all are done.
 *
 * @param model Any model.
 * @param options As for {@linkcode pipeline}.
 * @param onStep Called after each step.
 * @returns RGB pictures in the order of the prompts.
 *
 * @example
 * ```ts
 * const [picture] = await generate(model, { prompts: ["a red fox"] });
 * await Deno.writeFile("fox.png", encodePng(picture));
 * ```
 */
export async function generate(
  model: Model,
  options: PipelineOptions,
  onStep?: (step: StepRecord) => void,
): Promise<Pixels[]> {
  const pictures: Pixels[] = [];
  for await (const record of pipeline(model, options)) {
    if (record.type === "step") {
      onStep?.(record);
      continue;
    }
    pictures.push(...await toPixels(record.images));
    record.images.dispose();
  }
  return pictures;
}
