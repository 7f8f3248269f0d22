/**
 * Runs a sampler: from noise to a latent, one model call at a time.
 *
 * {@linkcode plan} turns a sampler into a table of coefficients;
 * {@linkcode sampleSteps} runs any such table with a handful of tensor
 * operations a call. It holds no hidden state: what it remembers is in every
 * step it yields, so sampling can stop and go on elsewhere.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import {
  type Clip,
  type Combination,
  plan,
  type PlanOptions,
  type SamplerCall,
  type SamplerName,
  type SamplerPlan,
} from "./sampler_plan.ts";
import type { Schedule } from "./schedule.ts";

export {
  type Clip,
  type Combination,
  plan,
  type PlanOptions,
  type SamplerCall,
  samplerFromConfig,
  type SamplerName,
  type SamplerPlan,
  SAMPLERS,
} from "./sampler_plan.ts";

/**
 * The model, as a sampler sees it: raw output (ε, v or x0, as the schedule's
 * `prediction_type` says) for a model input at timestep `t` in call `index`.
 *
 * `x` [batch, height, width, channels] is already scaled for the model and is
 * the sampler's: do not keep or dispose it. The returned tensor becomes the
 * sampler's, which disposes it. It has the shape of `x`, or twice the channels
 * where the model also predicts variances (`variance_type` learned…).
 */
export type Predict = (
  x: tf.Tensor4D,
  t: number,
  index: number,
) => tf.Tensor4D | Promise<tf.Tensor4D>;

/** All a sampler remembers between two model calls. */
export interface SamplerState {
  /** The call to make next, an index into the plan's table. */
  readonly index: number;
  /** The latent. */
  readonly latent: tf.Tensor4D;
  /** An earlier latent that the next call goes back to. */
  readonly anchor?: tf.Tensor4D;
  /** Earlier values, newest first. */
  readonly history: readonly tf.Tensor4D[];
}

/**
 * What one model call led to.
 *
 * Its tensors belong to the generator. They are valid until the consumer asks
 * for the next step or leaves the loop; `clone()` what is to be kept.
 */
export interface SampleStep {
  /** The model call, from 0. */
  readonly index: number;
  /** Number of model calls in all. */
  readonly total: number;
  /** The timestep the model saw. */
  readonly timestep: number;
  /** The latent after this call; after the last call, the result. */
  readonly latent: tf.Tensor4D;
  /** The clean latent as predicted in this call: a preview. */
  readonly denoised: tf.Tensor4D;
  /** What to give as `resume` to go on from here. */
  readonly state: SamplerState;
}

/** Options of {@linkcode sampleSteps}. */
export interface SampleOptions extends PlanOptions {
  /** Number of steps. */
  steps: number;
  /**
   * Unit normal noise for call `index`, in the latent's shape. The tensor
   * becomes the sampler's. Needed by samplers that add noise: DDPM, ancestral
   * Euler, LCM, SDE solvers, and DDIM with eta.
   */
  noise?: (index: number) => tf.Tensor4D;
  /**
   * Image-to-image: the clean latent that is noised to the first timestep.
   * Needed with `startStep` > 0; stays the caller's.
   */
  init?: tf.Tensor4D;
  /** Goes on from a state of the same plan; its tensors stay the caller's. */
  resume?: SamplerState;
}

/**
 * Samples step by step.
 *
 * @param name The sampler.
 * @param schedule The model's forward process and scheduler config.
 * @param predict The model (with guidance, conditions and adapters inside).
 * @param noise Unit normal noise [batch, height, width, channels]; stays the
 * caller's.
 * @param options Steps and more.
 * @returns One record per model call; the last one's latent is the result.
 * @throws Before the first model call, if the plan cannot be made (see
 * {@linkcode plan}), noise is missing, or shapes differ; later, if the model's
 * output has a wrong shape.
 *
 * @example
 * ```ts
 * for await (const step of sampleSteps("ddim", s, predict, noise, { steps: 20 })) {
 *   console.log(step.index, step.timestep);
 * }
 * ```
 */
export async function* sampleSteps(
  name: SamplerName,
  schedule: Schedule,
  predict: Predict,
  noise: tf.Tensor4D,
  options: SampleOptions,
): AsyncGenerator<SampleStep, void, void> {
  const course = plan(name, schedule, options.steps, options);
  let state = startState(course, noise, options);
  let denoised: tf.Tensor4D | undefined;
  try {
    for (let index = state.index; index < course.calls; index++) {
      const call = course.table[index];
      const after = await callModel(course, call, state, predict, options);
      disposeState(state);
      state = after.state;
      denoised = after.denoised;
      yield {
        index,
        total: course.calls,
        timestep: call.timestep,
        latent: state.latent,
        denoised,
        state,
      };
      denoised.dispose();
      denoised = undefined;
    }
  } finally {
    denoised?.dispose();
    disposeState(state);
  }
}

/**
 * Samples to the end.
 *
 * @param name The sampler.
 * @param schedule The model's forward process and scheduler config.
 * @param predict The model.
 * @param noise Unit normal noise [batch, height, width, channels]; stays the
 * caller's.
 * @param options Steps and more.
 * @returns The final latent; the caller's to dispose.
 * @throws As {@linkcode sampleSteps}.
 */
export async function sample(
  name: SamplerName,
  schedule: Schedule,
  predict: Predict,
  noise: tf.Tensor4D,
  options: SampleOptions,
): Promise<tf.Tensor4D> {
  for await (
    const step of sampleSteps(name, schedule, predict, noise, options)
  ) {
    if (step.index === step.total - 1) return step.latent.clone();
  }
  throw cannot(
    `sample with ${name}`,
    "a state to resume before the last call",
    `one at call ${options.resume?.index}`,
  );
}

/** Checks the inputs and makes the first state, all tensors its own. */
function startState(
  course: SamplerPlan,
  noise: tf.Tensor4D,
  options: SampleOptions,
): SamplerState {
  const what = `sample with ${course.name}`;
  if (noise.rank !== 4) {
    throw cannot(
      what,
      "noise [batch, height, width, channels]",
      `[${noise.shape}]`,
    );
  }
  const { init, resume } = options;
  if (course.table.some((call) => call.next.noise) && !options.noise) {
    throw cannot(what, "options.noise, for the noise it adds", "none");
  }
  if (init && !tf.util.arraysEqual(init.shape, noise.shape)) {
    throw cannot(what, `init of shape [${noise.shape}]`, `[${init.shape}]`);
  }
  if (resume) return copyState(course, resume, noise.shape);
  if (options.startStep && !init) {
    throw cannot(what, "init, the latent to start from", "none");
  }
  const [first] = course.table;
  const latent = tf.tidy(() =>
    init
      ? init.mul(first.alpha).add(noise.mul(first.sigma)) as tf.Tensor4D
      : noise.mul(course.initNoiseSigma) as tf.Tensor4D
  );
  return { index: 0, latent, history: [] };
}

function copyState(
  course: SamplerPlan,
  state: SamplerState,
  shape: readonly number[],
): SamplerState {
  const what = `resume ${course.name}`;
  const { index, latent, anchor, history } = state;
  if (!Number.isInteger(index) || index < 0 || index > course.calls) {
    throw cannot(what, `a call index in [0, ${course.calls}]`, index);
  }
  const remembered = index === 0 ? 0 : course.table.slice(0, index).reduce(
    (_, call) => call.retain.length,
    0,
  );
  if (history.length !== remembered) {
    throw cannot(
      what,
      `${remembered} remembered values at call ${index} of this plan`,
      history.length,
    );
  }
  if (index < course.calls && needsAnchor(course.table[index]) !== !!anchor) {
    throw cannot(
      what,
      `${anchor ? "no" : "an"} anchor at call ${index} of this plan`,
      anchor ? "one" : "none",
    );
  }
  for (const tensor of [latent, ...(anchor ? [anchor] : []), ...history]) {
    if (!tf.util.arraysEqual(tensor.shape, shape as number[])) {
      throw cannot(what, `tensors of shape [${shape}]`, `[${tensor.shape}]`);
    }
  }
  return {
    index,
    latent: latent.clone(),
    ...(anchor ? { anchor: anchor.clone() } : {}),
    history: history.map((value) => value.clone()),
  };
}

function disposeState(state: SamplerState): void {
  tf.dispose([state.latent, state.anchor, ...state.history]);
}

/** Whether a call uses the anchor of the call before it. */
function needsAnchor(call: SamplerCall | undefined): boolean {
  if (!call) return false;
  return (call.anchor ? call.anchor.anchor : call.next.anchor) !== undefined;
}

/** What one call leads to. */
interface Advanced {
  readonly state: SamplerState;
  readonly denoised: tf.Tensor4D;
}

/** Calls the model and works out the next state. */
async function callModel(
  course: SamplerPlan,
  call: SamplerCall,
  state: SamplerState,
  predict: Predict,
  options: SampleOptions,
): Promise<Advanced> {
  const { index, latent } = state;
  // A fresh handle in every case, so that the model may return its own input.
  const input: tf.Tensor4D = call.inputScale === 1
    ? latent.clone()
    : latent.mul(call.inputScale);
  const owned = new Set<tf.Tensor>([input]);
  try {
    const output = await predict(input, call.timestep, index);
    owned.add(output);
    checkOutput(course, call, output, latent);
    const noise = call.next.noise ? options.noise?.(index) : undefined;
    if (noise) {
      owned.add(noise);
      if (!tf.util.arraysEqual(noise.shape, latent.shape)) {
        throw cannot(
          `sample with ${course.name}`,
          `noise of shape [${latent.shape}] for call ${index}`,
          `[${noise.shape}]`,
        );
      }
    }
    // tidy keeps every tensor in the nested result; its types say otherwise.
    return tf.tidy(() =>
      advance(
        course,
        call,
        state,
        output,
        noise,
      ) as unknown as tf.TensorContainer
    ) as unknown as Advanced;
  } finally {
    for (const tensor of owned) if (!tensor.isDisposed) tensor.dispose();
  }
}

function checkOutput(
  course: SamplerPlan,
  call: SamplerCall,
  output: tf.Tensor,
  latent: tf.Tensor4D,
): void {
  const [b, h, w, c] = latent.shape;
  const matches = (channels: number) =>
    tf.util.arraysEqual(output.shape, [b, h, w, channels]);
  if (call.learnedVariance ? matches(2 * c) : matches(c) || matches(2 * c)) {
    return;
  }
  throw cannot(
    `sample with ${course.name}`,
    `a model output of shape [${b},${h},${w},${
      call.learnedVariance ? 2 * c : c
    }]`,
    `[${output.shape}]`,
  );
}

/** The arithmetic of one call; runs inside a tidy. */
function advance(
  course: SamplerPlan,
  call: SamplerCall,
  state: SamplerState,
  raw: tf.Tensor4D,
  fresh: tf.Tensor4D | undefined,
): Advanced {
  const channels = state.latent.shape[3];
  const learned = raw.shape[3] === 2 * channels;
  // A model that predicts variances puts them in the second half.
  const output: tf.Tensor4D = learned
    ? raw.slice([0, 0, 0, 0], [-1, -1, -1, channels])
    : raw;
  const noise = fresh && call.learnedVariance
    ? fresh.mul(
      deviation(call, raw.slice([0, 0, 0, channels], [-1, -1, -1, channels])),
    ) as tf.Tensor4D
    : fresh;

  const { latent } = state;
  const predicted = toX0(course, call, latent, output);
  const denoised = clip(course.clip, predicted);
  const epsilon = course.clip.kind !== "none" && course.epsilonFromClipped
    ? combine([[1 / call.sigma, latent], [-call.alpha / call.sigma, denoised]])
    : toEpsilon(course, call, latent, output);

  const sum = (weights: Combination, anchor: tf.Tensor4D | undefined) =>
    combine([
      [weights.latent, latent],
      [weights.anchor, anchor],
      [weights.denoised, denoised],
      [weights.epsilon, epsilon],
      [weights.output, output],
      ...(weights.history ?? []).map((weight, i) =>
        [weight, state.history[i]] as const
      ),
      [weights.noise, noise],
    ]);
  const anchor = call.anchor ? sum(call.anchor, state.anchor) : state.anchor;
  const values = [
    { denoised, epsilon, output }[call.value],
    ...state.history,
  ];
  const keepAnchor = anchor && needsAnchor(course.table[state.index + 1]);
  return {
    denoised: call.reported ? sum(call.reported, anchor) : denoised.clone(),
    state: {
      index: state.index + 1,
      latent: sum(call.next, anchor),
      // Clones, because the old state's handles are disposed afterwards.
      ...(keepAnchor ? { anchor: anchor.clone() } : {}),
      history: call.retain.map((i) => values[i].clone()),
    },
  };
}

/** Σ weight·tensor over the terms that are there; never an operand itself. */
function combine(
  terms: readonly (readonly [number | undefined, tf.Tensor4D | undefined])[],
): tf.Tensor4D {
  let sum: tf.Tensor4D | undefined;
  for (const [weight, tensor] of terms) {
    if (!weight || !tensor) continue;
    const term: tf.Tensor4D = weight === 1 ? tensor : tensor.mul(weight);
    sum = sum ? sum.add(term) : term;
  }
  if (!sum) return tf.zerosLike(terms[0][1]!);
  return sum.clone();
}

/** The x0 that a model output stands for. */
function toX0(
  course: SamplerPlan,
  { alpha, sigma }: SamplerCall,
  latent: tf.Tensor4D,
  output: tf.Tensor4D,
): tf.Tensor4D {
  // The model was trained on latents of unit variance: x / radius.
  const radius = Math.hypot(alpha, sigma);
  switch (course.prediction) {
    case "epsilon":
      return combine([[1 / alpha, latent], [-sigma / alpha, output]]);
    case "v_prediction":
      return combine([
        [alpha / radius ** 2, latent],
        [-sigma / radius, output],
      ]);
    case "sample":
      return output;
  }
}

/** The ε that a model output stands for. */
function toEpsilon(
  course: SamplerPlan,
  { alpha, sigma }: SamplerCall,
  latent: tf.Tensor4D,
  output: tf.Tensor4D,
): tf.Tensor4D {
  const radius = Math.hypot(alpha, sigma);
  switch (course.prediction) {
    case "epsilon":
      return output;
    case "v_prediction":
      return combine([
        [sigma / radius ** 2, latent],
        [alpha / radius, output],
      ]);
    case "sample":
      return combine([[1 / sigma, latent], [-alpha / sigma, output]]);
  }
}

function clip(how: Clip, x0: tf.Tensor4D): tf.Tensor4D {
  switch (how.kind) {
    case "none":
      return x0;
    case "range":
      return tf.clipByValue(x0, -how.limit, how.limit) as tf.Tensor4D;
    case "dynamic":
      return threshold(x0, how.ratio, how.max);
  }
}

/**
 * Dynamic thresholding (Saharia et al. 2022, §2.3): clamps each item to its own
 * quantile of |x0|, at least 1, and rescales to [−1, 1].
 */
function threshold(
  x0: tf.Tensor4D,
  ratio: number,
  max: number,
): tf.Tensor4D {
  const batch = x0.shape[0];
  const size = x0.size / batch;
  const rank = ratio * (size - 1);
  const low = Math.floor(rank);
  const weight = rank - low;
  // Descending; only the part above the quantile is needed.
  const { values } = tf.topk(x0.abs().reshape([batch, size]), size - low);
  const at = (ascending: number) =>
    values.slice([0, size - 1 - ascending], [batch, 1]);
  const quantile = weight > 0
    ? at(low).mul(1 - weight).add(at(low + 1).mul(weight))
    : at(low);
  const bound = quantile.maximum(1).minimum(max).reshape([batch, 1, 1, 1]);
  return x0.minimum(bound).maximum(bound.neg()).div(bound);
}

/** The noise's deviation from a model's second output (Nichol & Dhariwal 2021). */
function deviation(call: SamplerCall, predicted: tf.Tensor4D): tf.Tensor {
  const range = call.learnedVariance?.logRange;
  if (!range) return predicted.sqrt();
  const [small, large] = range;
  // frac·large + (1 − frac)·small with frac = (predicted + 1)/2, halved.
  return predicted.mul((large - small) / 4).add((large + small) / 4).exp();
}
