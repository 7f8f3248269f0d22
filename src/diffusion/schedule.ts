/**
 * The forward process: how much signal and noise a latent holds at a timestep.
 *
 * A latent at timestep t is `x_t = √ᾱ_t·x0 + √(1 − ᾱ_t)·ε` (Ho et al. 2020,
 * eq. 4). Betas and ᾱ are rounded to float32 where PyTorch rounds them, because
 * that rounding changes the fourth digit of `1 − ᾱ` near t = 0.
 *
 * @module
 */
import { parseJson } from "../io/files.ts";
import * as tf from "@tensorflow/tfjs";
import * as z from "zod";
import { cannot } from "../core/errors.ts";

/** How betas grow with the timestep. */
export type BetaSchedule =
  | "linear"
  | "scaled_linear"
  | "squaredcos_cap_v2"
  | "exp"
  | "sigmoid";

/** What the network predicts: the noise, the velocity or the clean latent. */
export type PredictionType = "epsilon" | "v_prediction" | "sample";

/** How inference timesteps are spread (Lin et al. 2023, table 2). */
export type TimestepSpacing = "linspace" | "leading" | "trailing";

/**
 * A diffusers `scheduler_config.json`.
 *
 * Spelled as in the file. A key that is absent (or null) takes the default of
 * the sampler that reads it, as `from_config` does in diffusers 0.19.3: so
 * DDIM reads a missing `timestep_spacing` as `"leading"`, DPM-Solver++ as
 * `"linspace"`. Unknown keys are kept and ignored.
 */
export interface SchedulerConfig {
  /** The scheduler class the file was saved from. */
  readonly _class_name?: string | null;
  /** The release that wrote the file. */
  readonly _diffusers_version?: string | null;
  /** Number of training timesteps. */
  readonly num_train_timesteps?: number | null;
  /** The first beta. */
  readonly beta_start?: number | null;
  /** The last beta. */
  readonly beta_end?: number | null;
  /** How betas grow in between. */
  readonly beta_schedule?: BetaSchedule | null;
  /** Betas given one by one; replaces start, end and schedule. */
  readonly trained_betas?: readonly number[] | null;
  /** What the network predicts. */
  readonly prediction_type?: PredictionType | null;
  /** How inference timesteps are spread. */
  readonly timestep_spacing?: TimestepSpacing | null;
  /** Added to every timestep in `"leading"` spacing. */
  readonly steps_offset?: number | null;
  /** Whether ᾱ before timestep 0 is 1; else it is ᾱ₀ (DDIM, PNDM, LCM). */
  readonly set_alpha_to_one?: boolean | null;
  /** Whether the predicted x0 is clamped to ±clip_sample_range. */
  readonly clip_sample?: boolean | null;
  /** Limit of clip_sample. */
  readonly clip_sample_range?: number | null;
  /** Whether the predicted x0 is dynamically thresholded (Saharia et al. 2022). */
  readonly thresholding?: boolean | null;
  /** The quantile of |x0| that thresholding clamps to. */
  readonly dynamic_thresholding_ratio?: number | null;
  /** The largest bound thresholding uses. */
  readonly sample_max_value?: number | null;
  /** Rescales betas so that ᾱ ends at 0 (Lin et al. 2023, algorithm 1). */
  readonly rescale_betas_zero_snr?: boolean | null;
  /** Noise levels spaced as Karras et al. 2022, eq. 5. */
  readonly use_karras_sigmas?: boolean | null;
  /** Noise levels spaced evenly in log sigma. */
  readonly use_exponential_sigmas?: boolean | null;
  /** DPM-Solver: noise levels spaced evenly in log SNR. */
  readonly use_lu_lambdas?: boolean | null;
  /** Not supported: true is an error. */
  readonly use_beta_sigmas?: boolean | null;
  /** Not supported: true is an error. */
  readonly use_flow_sigmas?: boolean | null;
  /** The smallest Karras or exponential sigma. */
  readonly sigma_min?: number | null;
  /** The largest Karras or exponential sigma. */
  readonly sigma_max?: number | null;
  /** Where a sigma schedule ends; only newer diffusers writes this key. */
  readonly final_sigmas_type?: "zero" | "sigma_min" | null;
  /** Euler: sigmas from timesteps, or evenly spaced in log sigma. */
  readonly interpolation_type?: "linear" | "log_linear" | null;
  /** DPM-Solver: dpmsolver++ (x0) or dpmsolver (ε), with sde- in front. */
  readonly algorithm_type?: string | null;
  /** DPM-Solver: midpoint or heun; UniPC: bh1 or bh2. */
  readonly solver_type?: string | null;
  /** Order of the multistep solver. */
  readonly solver_order?: number | null;
  /** Lower orders in the last steps (DPM-Solver: of less than 15). */
  readonly lower_order_final?: boolean | null;
  /** DPM-Solver: first order in the last step. */
  readonly euler_at_final?: boolean | null;
  /** DPM-Solver: timesteps with a smaller log SNR are left out. */
  readonly lambda_min_clipped?: number | null;
  /** DDPM: fixed_small, fixed_large (or _log), learned, learned_range. */
  readonly variance_type?: string | null;
  /** UniPC: whether the solver integrates x0 (true) or ε. */
  readonly predict_x0?: boolean | null;
  /** UniPC: step indices after which the corrector does not run. */
  readonly disable_corrector?: readonly number[] | null;
  /** PNDM: whether the Runge–Kutta warm-up is left out (Stable Diffusion does). */
  readonly skip_prk_steps?: boolean | null;
  /** LCM: steps of the schedule the model was distilled on. */
  readonly original_inference_steps?: number | null;
  /** LCM: factor on t in the boundary condition. */
  readonly timestep_scaling?: number | null;
  /** Keys this library does not read. */
  readonly [key: string]: unknown;
}

const bool = z.boolean().nullish();
const real = z.number().nullish();
const text = z.string().nullish();
// Far above any real schedule, but small enough for memory.
const positiveInteger = z.number().int().positive().max(1_000_000).nullish();
const infinite = z.union([z.number(), z.literal([-Infinity, Infinity])])
  .nullish();

const CONFIG = z.looseObject({
  _class_name: text,
  _diffusers_version: text,
  num_train_timesteps: positiveInteger,
  beta_start: real,
  beta_end: real,
  beta_schedule: z.enum([
    "linear",
    "scaled_linear",
    "squaredcos_cap_v2",
    "exp",
    "sigmoid",
  ]).nullish(),
  trained_betas: z.array(z.number()).nonempty().nullish(),
  prediction_type: z.enum(["epsilon", "v_prediction", "sample"]).nullish(),
  timestep_spacing: z.enum(["linspace", "leading", "trailing"]).nullish(),
  steps_offset: z.number().int().nullish(),
  set_alpha_to_one: bool,
  clip_sample: bool,
  clip_sample_range: z.number().positive().nullish(),
  thresholding: bool,
  dynamic_thresholding_ratio: z.number().min(0).max(1).nullish(),
  sample_max_value: z.number().positive().nullish(),
  rescale_betas_zero_snr: bool,
  use_karras_sigmas: bool,
  use_exponential_sigmas: bool,
  use_lu_lambdas: bool,
  use_beta_sigmas: bool,
  use_flow_sigmas: bool,
  sigma_min: real,
  sigma_max: real,
  final_sigmas_type: z.enum(["zero", "sigma_min"]).nullish(),
  interpolation_type: z.enum(["linear", "log_linear"]).nullish(),
  algorithm_type: text,
  solver_type: text,
  solver_order: z.number().int().min(1).max(9).nullish(),
  lower_order_final: bool,
  euler_at_final: bool,
  lambda_min_clipped: infinite,
  variance_type: text,
  predict_x0: bool,
  disable_corrector: z.array(z.number().int()).nullish(),
  skip_prk_steps: bool,
  original_inference_steps: positiveInteger,
  timestep_scaling: real,
});

/**
 * Reads a diffusers `scheduler_config.json`.
 *
 * @param source The file's text (Python's bare `-Infinity` is understood) or
 * its parsed value.
 * @returns The keys the file has, checked; defaults are not filled in.
 * @throws If the text is not JSON or a known key has a bad value, naming every
 * such key.
 *
 * @example
 * ```ts
 * const config = parseSchedulerConfig('{"beta_schedule": "scaled_linear"}');
 * ```
 */
export function parseSchedulerConfig(source: unknown): SchedulerConfig {
  const value = typeof source === "string"
    ? parseJson(source, "a scheduler config")
    : source;
  const result = CONFIG.safeParse(withoutNan(value));
  if (!result.success) {
    const issues = result.error.issues.map((issue) =>
      `${issue.path.join(".") || "the whole"}: ${issue.message}`
    );
    throw cannot(
      "read a scheduler config",
      "a diffusers scheduler_config.json",
      issues.join("; "),
    );
  }
  const name = result.data._class_name ?? "";
  if (OTHER_PROCESS.test(name)) {
    throw cannot(
      "read a scheduler config",
      "a scheduler of a diffusion with betas, as Stable Diffusion has it",
      `${name}, of another forward process`,
    );
  }
  return result.data;
}

/** Schedulers of models that are trained otherwise: flows, EDM, consistency. */
const OTHER_PROCESS =
  /^(FlowMatch|EDM|CMStochastic|Consistency|ScoreSde|VQDiffusion|DDPMWuerstchen|Karras|RePaint|Amused|CogVideoX|Cosine)|Flow/;

/** Python's NaN is treated as null, which means the default. */
function withoutNan(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, v]) => [key, Number.isNaN(v) ? null : v]),
  );
}

/** The forward process of a model. */
export interface Schedule {
  /** β_t, one per training timestep, float32 values. */
  readonly betas: Float64Array;
  /** ᾱ_t = Π (1 − β), one per training timestep, float32 values. */
  readonly alphasCumprod: Float64Array;
  /** What the schedule was made of; samplers read their flags here. */
  readonly config: SchedulerConfig;
}

/** Default beta range of the config's scheduler class. */
function betaDefaults(
  className: string | null | undefined,
): { start: number; end: number; kind: BetaSchedule } {
  switch (className) {
    case "HeunDiscreteScheduler":
      return { start: 0.00085, end: 0.012, kind: "linear" };
    case "LCMScheduler":
      return { start: 0.00085, end: 0.012, kind: "scaled_linear" };
    default:
      return { start: 0.0001, end: 0.02, kind: "linear" };
  }
}

/**
 * Computes the betas and ᾱ of a config.
 *
 * @param config A diffusers scheduler config; defaults are those of the class
 * it names, else DDPM's (1000 steps, linear from 0.0001 to 0.02).
 * @throws If the config is not valid (see {@linkcode parseSchedulerConfig}),
 * or a beta is outside [0, 1].
 *
 * @example
 * ```ts
 * const sd15 = schedule({
 *   beta_start: 0.00085,
 *   beta_end: 0.012,
 *   beta_schedule: "scaled_linear",
 * });
 * ```
 */
export function schedule(config: SchedulerConfig = {}): Schedule {
  const checked = parseSchedulerConfig(config);
  const steps = checked.num_train_timesteps ?? 1000;
  let betas = betasOf(checked, steps);
  if (betas.length !== steps) {
    throw cannot(
      "make a schedule",
      `${steps} trained_betas (num_train_timesteps)`,
      betas.length,
    );
  }
  const wrong = betas.findIndex((beta) => !(beta >= 0 && beta <= 1));
  if (wrong >= 0) {
    throw cannot(
      "make a schedule",
      "every beta in [0, 1]",
      `${betas[wrong]} at timestep ${wrong}`,
    );
  }
  if (checked.rescale_betas_zero_snr) betas = zeroTerminalSnr(betas);
  return { betas, alphasCumprod: cumprod(betas), config: checked };
}

function betasOf(config: SchedulerConfig, steps: number): Float64Array {
  if (config.trained_betas) {
    return Float64Array.from(config.trained_betas, Math.fround);
  }
  const defaults = betaDefaults(config._class_name);
  const start = config.beta_start ?? defaults.start;
  const end = config.beta_end ?? defaults.end;
  const kind = config.beta_schedule ?? defaults.kind;
  switch (kind) {
    case "linear":
      return linspace32(start, end, steps);
    case "scaled_linear":
      return linspace32(Math.sqrt(start), Math.sqrt(end), steps)
        .map((root) => Math.fround(root * root));
    case "squaredcos_cap_v2":
      return alphaBarBetas(
        steps,
        (t) => Math.cos((t + 0.008) / 1.008 * Math.PI / 2) ** 2,
      );
    case "exp":
      return alphaBarBetas(steps, (t) => Math.exp(-12 * t));
    case "sigmoid":
      return linspace32(-6, 6, steps).map((u) => {
        const gate = Math.fround(1 / (1 + Math.exp(-u)));
        return Math.fround(
          Math.fround(gate * Math.fround(end - start)) + Math.fround(start),
        );
      });
  }
}

/** Betas of a given ᾱ(t), t in [0, 1] (Nichol & Dhariwal 2021, eq. 17). */
function alphaBarBetas(
  steps: number,
  alphaBar: (t: number) => number,
): Float64Array {
  return Float64Array.from(
    { length: steps },
    (_, i) =>
      Math.fround(
        Math.min(1 - alphaBar((i + 1) / steps) / alphaBar(i / steps), 0.999),
      ),
  );
}

/**
 * PyTorch's float32 linspace on x86: counted from the nearer end, in vectors of
 * eight with fused multiply-adds. The last bit matters: see the module's note.
 */
function linspace32(start: number, end: number, n: number): Float64Array {
  const f = Math.fround;
  const from = f(start);
  const to = f(end);
  if (n === 1) return Float64Array.of(from);
  const step = f(f(to - from) / (n - 1));
  const half = Math.floor(n / 2);
  const vectorised = n - n % 16;
  return Float64Array.from({ length: n }, (_, i) => {
    const block = i < vectorised ? i - i % 8 : i;
    // One rounding after product and sum: what a fused multiply-add gives.
    const base = block < half
      ? f(from + step * block)
      : f(to - step * (n - block - 1));
    return i === block ? base : f(base + step * (i - block));
  });
}

/** Π (1 − β): float32 factors, accumulated in float64 as PyTorch does. */
function cumprod(betas: Float64Array): Float64Array {
  let product = 1;
  return betas.map((beta) => {
    product *= Math.fround(1 - beta);
    return Math.fround(product);
  });
}

/** Shifts and scales √ᾱ so that it ends at 0 (Lin et al. 2023, algorithm 1). */
function zeroTerminalSnr(betas: Float64Array): Float64Array {
  const f = Math.fround;
  const roots = cumprod(betas).map((a) => f(Math.sqrt(a)));
  const first = roots[0];
  const last = roots[roots.length - 1];
  const scale = f(first / f(first - last));
  const bar = roots.map((root) => {
    const scaled = f(f(root - last) * scale);
    return f(scaled * scaled);
  });
  return bar.map((a, i) => f(1 - (i === 0 ? a : f(a / bar[i - 1]))));
}

/** Checks timesteps against a schedule. */
function checkTimesteps(
  what: string,
  s: Schedule,
  timesteps: readonly number[],
  batch: number,
): void {
  if (timesteps.length !== batch && timesteps.length !== 1) {
    throw cannot(
      what,
      `one timestep, or one for each of the ${batch} batch items`,
      `${timesteps.length} timesteps`,
    );
  }
  const wrong = timesteps.find((t) =>
    !Number.isInteger(t) || t < 0 || t >= s.alphasCumprod.length
  );
  if (wrong !== undefined) {
    throw cannot(
      what,
      `integer timesteps in [0, ${s.alphasCumprod.length})`,
      wrong,
    );
  }
}

/** `√ᾱ` and `√(1 − ᾱ)` per batch item, shaped to broadcast over the rest. */
function levels(
  what: string,
  s: Schedule,
  x: tf.Tensor,
  timesteps: readonly number[],
): { alpha: tf.Tensor; sigma: tf.Tensor } {
  if (x.rank < 1) throw cannot(what, "a batch of latents", "a scalar");
  checkTimesteps(what, s, timesteps, x.shape[0]);
  const shape = [timesteps.length, ...Array(x.rank - 1).fill(1)];
  const bars = timesteps.map((t) => s.alphasCumprod[t]);
  return {
    alpha: tf.tensor(bars.map(Math.sqrt), shape),
    sigma: tf.tensor(bars.map((a) => Math.sqrt(1 - a)), shape),
  };
}

function checkShapes(what: string, a: tf.Tensor, b: tf.Tensor): void {
  if (!tf.util.arraysEqual(a.shape, b.shape)) {
    throw cannot(what, `two tensors of shape [${a.shape}]`, `[${b.shape}]`);
  }
}

/**
 * Noises clean latents: `√ᾱ_t·x0 + √(1 − ᾱ_t)·noise`.
 *
 * @param s The schedule.
 * @param x0 Clean latents, [batch, …].
 * @param noise Unit normal noise, same shape.
 * @param timesteps One per batch item, or one for all.
 * @returns Noisy latents, same shape.
 * @throws If shapes differ or a timestep is out of range.
 */
export function addNoise<T extends tf.Tensor>(
  s: Schedule,
  x0: T,
  noise: T,
  timesteps: readonly number[],
): T {
  checkShapes("add noise", x0, noise);
  return tf.tidy(() => {
    const { alpha, sigma } = levels("add noise", s, x0, timesteps);
    return x0.mul(alpha).add(noise.mul(sigma)) as T;
  });
}

/**
 * The velocity target: `√ᾱ_t·noise − √(1 − ᾱ_t)·x0` (Salimans & Ho 2022).
 *
 * @param s The schedule.
 * @param x0 Clean latents, [batch, …].
 * @param noise Unit normal noise, same shape.
 * @param timesteps One per batch item, or one for all.
 * @throws If shapes differ or a timestep is out of range.
 */
export function velocity<T extends tf.Tensor>(
  s: Schedule,
  x0: T,
  noise: T,
  timesteps: readonly number[],
): T {
  checkShapes("compute the velocity", x0, noise);
  return tf.tidy(() => {
    const { alpha, sigma } = levels("compute the velocity", s, x0, timesteps);
    return noise.mul(alpha).sub(x0.mul(sigma)) as T;
  });
}

/**
 * The target a network of this schedule's `prediction_type` is trained on.
 *
 * @param s The schedule.
 * @param x0 Clean latents, [batch, …].
 * @param noise Unit normal noise, same shape.
 * @param timesteps One per batch item, or one for all.
 * @returns noise, velocity or x0: a new tensor in each case.
 * @throws If shapes differ or a timestep is out of range.
 */
export function trainingTarget<T extends tf.Tensor>(
  s: Schedule,
  x0: T,
  noise: T,
  timesteps: readonly number[],
): T {
  checkShapes("compute the training target", x0, noise);
  checkTimesteps(
    "compute the training target",
    s,
    timesteps,
    x0.shape[0] ?? 0,
  );
  switch (predictionType(s)) {
    case "epsilon":
      return noise.clone() as T;
    case "sample":
      return x0.clone() as T;
    case "v_prediction":
      return velocity(s, x0, noise, timesteps);
  }
}

/**
 * The signal-to-noise ratio ᾱ/(1 − ᾱ) at given timesteps.
 *
 * @param s The schedule.
 * @param timesteps Training timesteps.
 * @throws If a timestep is out of range.
 */
export function snr(s: Schedule, timesteps: readonly number[]): number[] {
  checkTimesteps("compute the snr", s, timesteps, timesteps.length);
  return timesteps.map((t) => s.alphasCumprod[t] / (1 - s.alphasCumprod[t]));
}

/**
 * What a network of this schedule predicts.
 *
 * @param s The schedule.
 */
export function predictionType(s: Schedule): PredictionType {
  return s.config.prediction_type ?? "epsilon";
}
