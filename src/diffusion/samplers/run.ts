/**
 * Runs a sampler: from noise to a latent, one model call at a time.
 *
 * {@linkcode plan} turns a sampler into a table of coefficients;
 * {@linkcode sampleSteps} runs any such table. It has no hidden state: every
 * step that it yields contains the remembered tensors, so sampling can be
 * stopped and resumed elsewhere.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../core/errors.ts";
import { clip, type Denoise, type Denoised } from "./denoise.ts";
import type { Combination, SamplerCall, SamplerPlan } from "./table.ts";

/** All a sampler remembers between two model calls. */
export interface SamplerState {
  /** The call to make next, an index into the plan's table. */
  readonly index: number;
  /** The latent. */
  readonly latent: tf.Tensor4D;
  /** Tensors remembered by the previous call, as in its row of the table. */
  readonly memory: readonly tf.Tensor4D[];
}

/**
 * Result of one model call.
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
  /** State for `resume`. */
  readonly state: SamplerState;
}

/**
 * Inpainting: a clean latent that stays where a mask is 0. After each call it
 * is noised to the current noise level with the initial noise, so that the
 * repainted part fits it; after the last call it is clean.
 */
export interface KeptLatent {
  /** The clean latent, in the noise's shape; stays the caller's. */
  readonly latent: tf.Tensor4D;
  /** 1 where it is painted anew, [1 or batch, h, w, 1]; the caller's. */
  readonly mask: tf.Tensor4D;
}

/** Options of {@linkcode sampleSteps}. */
export interface SampleOptions {
  /**
   * Unit normal noise for call `index`, in the latent's shape. The tensor
   * becomes the sampler's. Needed by samplers that add noise: DDPM, ancestral
   * Euler, LCM, SDE solvers, and DDIM with eta.
   */
  readonly noise?: (index: number) => tf.Tensor4D;
  /**
   * Image-to-image: the clean latent that is noised to the first timestep.
   * Needed with a plan's `startStep` > 0; stays the caller's.
   */
  readonly init?: tf.Tensor4D;
  /** Inpainting: the part that is kept. */
  readonly keep?: KeptLatent;
  /**
   * Changes the latent before the model is called: guidance by a loss. The result
   * becomes the sampler's.
   */
  readonly adjust?: (
    latent: tf.Tensor4D,
    call: SamplerCall,
    index: number,
  ) => tf.Tensor4D;
  /** Goes on from a state of the same plan; its tensors stay the caller's. */
  readonly resume?: SamplerState;
}

/**
 * Samples step by step.
 *
 * @param plan From {@linkcode plan}.
 * @param denoise The model, from {@linkcode denoiser}.
 * @param noise Unit normal noise [batch, height, width, channels]; stays the
 * caller's.
 * @param options Noise of the steps, image-to-image, resuming.
 * @returns One record per model call; the last one's latent is the result.
 * @throws Before the first model call, if noise is missing or shapes differ;
 * later, if the model's output has a wrong shape.
 *
 * @example
 * ```ts
 * const course = plan("ddim", schedule, 20);
 * for await (const step of sampleSteps(course, denoise, noise)) {
 *   console.log(step.index, step.timestep);
 * }
 * ```
 */
export async function* sampleSteps(
  plan: SamplerPlan,
  denoise: Denoise,
  noise: tf.Tensor4D,
  options: SampleOptions = {},
): AsyncGenerator<SampleStep, void, void> {
  let state = startState(plan, noise, options);
  let denoised: tf.Tensor4D | undefined;
  try {
    for (let index = state.index; index < plan.calls; index++) {
      const call = plan.table[index];
      if (options.adjust) state = adjusted(options.adjust, call, state);
      const after = await callModel(plan, call, state, denoise, options);
      disposeState(state);
      state = options.keep
        ? kept(options.keep, plan.table[index + 1], after.state, noise)
        : after.state;
      denoised = after.denoised;
      yield {
        index,
        total: plan.calls,
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
 * Runs all sampling steps.
 *
 * @param plan From {@linkcode plan}.
 * @param denoise The model, from {@linkcode denoiser}.
 * @param noise Unit normal noise [batch, height, width, channels]; stays the
 * caller's.
 * @param options Noise of the steps, image-to-image, resuming.
 * @returns The final latent; the caller's to dispose.
 * @throws As {@linkcode sampleSteps}.
 *
 * @example
 * ```ts
 * const course = plan("dpmpp_2m", schedule, 20);
 * const latent = await sample(course, denoise, noise);
 * ```
 */
export async function sample(
  plan: SamplerPlan,
  denoise: Denoise,
  noise: tf.Tensor4D,
  options: SampleOptions = {},
): Promise<tf.Tensor4D> {
  for await (const step of sampleSteps(plan, denoise, noise, options)) {
    if (step.index === step.total - 1) return step.latent.clone();
  }
  throw cannot(
    `sample with ${plan.name}`,
    "a state to resume before the last call",
    `one at call ${options.resume?.index}`,
  );
}

/** Has the latent changed before a call; takes the state over. */
function adjusted(
  adjust: NonNullable<SampleOptions["adjust"]>,
  call: SamplerCall,
  { latent, ...state }: SamplerState,
): SamplerState {
  const changed = adjust(latent, call, state.index);
  if (changed !== latent) latent.dispose();
  return { ...state, latent: changed };
}

/** Puts what stays back into a latent; takes the state over. */
function kept(
  { latent: clean, mask }: KeptLatent,
  next: SamplerCall | undefined,
  { latent, ...state }: SamplerState,
  noise: tf.Tensor4D,
): SamplerState {
  const whole = tf.tidy(() => {
    const level = next
      ? clean.mul(next.alpha).add(noise.mul(next.sigma))
      : clean;
    // Not a weighted sum: what stays is exact.
    return tf.where(
      tf.broadcastTo(mask.greater(0), latent.shape),
      latent,
      level,
    ) as tf.Tensor4D;
  });
  latent.dispose();
  return { ...state, latent: whole };
}

/** Checks the inputs and makes the first state, all tensors its own. */
function startState(
  plan: SamplerPlan,
  noise: tf.Tensor4D,
  { init, keep, resume, noise: fresh }: SampleOptions,
): SamplerState {
  const what = `sample with ${plan.name}`;
  if (noise.rank !== 4) {
    throw cannot(
      what,
      "noise [batch, height, width, channels]",
      `[${noise.shape}]`,
    );
  }
  if (plan.table.some((call) => call.next.noise) && !fresh) {
    throw cannot(what, "options.noise, for the noise it adds", "none");
  }
  if (init && !tf.util.arraysEqual(init.shape, noise.shape)) {
    throw cannot(what, `init of shape [${noise.shape}]`, `[${init.shape}]`);
  }
  if (keep) checkKept(what, keep, noise.shape);
  if (resume) return copyState(plan, resume, noise.shape);
  if (plan.start > 0 && !init) {
    throw cannot(what, "init, the latent to start from", "none");
  }
  const [first] = plan.table;
  const latent = tf.tidy(() =>
    init
      ? init.mul(first.alpha).add(noise.mul(first.sigma)) as tf.Tensor4D
      : noise.mul(plan.initNoiseSigma) as tf.Tensor4D
  );
  return { index: 0, latent, memory: [] };
}

function checkKept(
  what: string,
  { latent, mask }: KeptLatent,
  shape: readonly number[],
): void {
  if (!tf.util.arraysEqual(latent.shape, shape as number[])) {
    throw cannot(what, `a kept latent [${shape}]`, `[${latent.shape}]`);
  }
  const [batch, ...place] = mask.shape;
  const [rows, height, width] = shape;
  if (
    (batch !== 1 && batch !== rows) || String(place) !== `${height},${width},1`
  ) {
    throw cannot(
      what,
      `a mask [1 or ${rows},${height},${width},1]`,
      `[${mask.shape}]`,
    );
  }
}

function copyState(
  plan: SamplerPlan,
  { index, latent, memory }: SamplerState,
  shape: readonly number[],
): SamplerState {
  const what = `resume ${plan.name}`;
  if (!Number.isInteger(index) || index < 0 || index > plan.calls) {
    throw cannot(what, `a call index in [0, ${plan.calls}]`, index);
  }
  const remembered = index === 0 ? 0 : plan.table[index - 1].memory.length;
  if (memory.length !== remembered) {
    throw cannot(
      what,
      `${remembered} remembered tensors at call ${index} of this plan`,
      memory.length,
    );
  }
  for (const tensor of [latent, ...memory]) {
    if (!tf.util.arraysEqual(tensor.shape, shape as number[])) {
      throw cannot(what, `tensors of shape [${shape}]`, `[${tensor.shape}]`);
    }
  }
  return {
    index,
    latent: latent.clone(),
    memory: memory.map((tensor) => tensor.clone()),
  };
}

function disposeState({ latent, memory }: SamplerState): void {
  tf.dispose([latent, ...memory]);
}

/** What one call leads to. */
interface Advanced {
  readonly state: SamplerState;
  readonly denoised: tf.Tensor4D;
}

/** Calls the model and works out the next state. */
async function callModel(
  plan: SamplerPlan,
  call: SamplerCall,
  state: SamplerState,
  denoise: Denoise,
  options: SampleOptions,
): Promise<Advanced> {
  const { index, latent } = state;
  const owned: tf.Tensor[] = [];
  try {
    const model = await denoise(latent, call, index);
    owned.push(model.x0, ...(model.variance ? [model.variance] : []));
    if (call.learnedVariance && !model.variance) {
      throw cannot(
        `sample with ${plan.name}`,
        "a model output with twice the channels, for the variance",
        `[${latent.shape}]`,
      );
    }
    const noise = call.next.noise ? options.noise?.(index) : undefined;
    if (noise) {
      owned.push(noise);
      if (!tf.util.arraysEqual(noise.shape, latent.shape)) {
        throw cannot(
          `sample with ${plan.name}`,
          `noise of shape [${latent.shape}] for call ${index}`,
          `[${noise.shape}]`,
        );
      }
    }
    // tidy keeps every tensor in the nested result; its types say otherwise.
    return tf.tidy(() =>
      advance(plan, call, state, model, noise) as unknown as tf.TensorContainer
    ) as unknown as Advanced;
  } finally {
    tf.dispose(owned);
  }
}

/** The arithmetic of one call; runs inside a tidy. */
function advance(
  plan: SamplerPlan,
  call: SamplerCall,
  { index, latent, memory }: SamplerState,
  { x0, variance }: Denoised,
  fresh: tf.Tensor4D | undefined,
): Advanced {
  const denoised = clip(plan.clip, x0);
  const clean = plan.epsilonFromClipped ? denoised : x0;
  let epsilon: tf.Tensor4D | undefined;
  const noise = fresh && variance && call.learnedVariance
    ? fresh.mul(deviation(call, variance)) as tf.Tensor4D
    : fresh;
  const sum = (weights: Combination): tf.Tensor4D => {
    // Not before it is needed: without noise it has no meaning.
    if (weights.epsilon) {
      epsilon ??= latent.sub(clean.mul(call.alpha)).div(call.sigma);
    }
    return combine([
      [weights.latent, latent],
      [weights.denoised, denoised],
      [weights.epsilon, epsilon],
      ...(weights.memory ?? []).map((w, i) => [w, memory[i]] as const),
      [weights.noise, noise],
    ]);
  };
  return {
    denoised: sum(call.reported ?? { denoised: 1 }),
    state: {
      index: index + 1,
      latent: sum(call.next),
      memory: call.memory.map(sum),
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
  return sum ? sum.clone() : tf.zerosLike(terms[0][1]!);
}

/** The noise's deviation from a model's second output (Nichol & Dhariwal 2021). */
function deviation(call: SamplerCall, predicted: tf.Tensor4D): tf.Tensor {
  const range = call.learnedVariance?.logRange;
  if (!range) return predicted.sqrt();
  const [small, large] = range;
  // frac·large + (1 − frac)·small with frac = (predicted + 1)/2, halved.
  return predicted.mul((large - small) / 4).add((large + small) / 4).exp();
}
