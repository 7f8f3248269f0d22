/**
 * Samplers as data: which timesteps are visited and how outputs are combined.
 *
 * Every sampler here is linear in what it remembers: the latent, an anchor (an
 * earlier latent), the current and earlier model outputs, and noise. So a
 * sampler and a number of steps become a table of coefficients, computed in
 * float64 on the host, and one small executor (`samplers.ts`) runs them all.
 *
 * Formulas: Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Liu et al. 2022
 * (PNDM), Lu et al. 2022 (DPM-Solver, DPM-Solver++), Karras et al. 2022 (Euler,
 * Heun, sigmas), Zhao et al. 2023 (UniPC), Luo et al. 2023 (LCM). Timesteps and
 * rounding follow diffusers 0.19.3, and diffusers main where that is asked for.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { PredictionType, Schedule, SchedulerConfig } from "./schedule.ts";

/**
 * A sampler. `_karras` spaces noise levels as Karras et al. 2022, eq. 5; so
 * does a schedule whose config says `use_karras_sigmas`.
 *
 * `dpmpp_2m` is diffusers' DPMSolverMultistepScheduler, whose `solver_order`,
 * `algorithm_type` and `solver_type` are read from the schedule's config.
 */
export type SamplerName =
  | "ddim"
  | "ddpm"
  | "pndm"
  | "dpmpp_2m"
  | "dpmpp_2m_karras"
  | "unipc"
  | "unipc_karras"
  | "euler"
  | "euler_karras"
  | "euler_a"
  | "heun"
  | "heun_karras"
  | "lms"
  | "lms_karras"
  | "lcm";

/** Every sampler, in the order of {@linkcode SamplerName}. */
export const SAMPLERS: readonly SamplerName[] = [
  "ddim",
  "ddpm",
  "pndm",
  "dpmpp_2m",
  "dpmpp_2m_karras",
  "unipc",
  "unipc_karras",
  "euler",
  "euler_karras",
  "euler_a",
  "heun",
  "heun_karras",
  "lms",
  "lms_karras",
  "lcm",
];

/** Options that shape a plan. */
export interface PlanOptions {
  /**
   * Which diffusers release DPM-Solver++ and UniPC follow. `"0.19.3"` works on
   * integer timesteps and ends at timestep 0 (Karras sigmas are rounded to
   * timesteps); `"main"` works on sigmas and ends at `final_sigmas_type`.
   *
   * @default {"main"} if the config has `final_sigmas_type`, a key only newer
   * releases write; else `"0.19.3"`.
   */
  version?: "0.19.3" | "main";
  /**
   * DDIM: 0 is deterministic, 1 has DDPM's noise.
   *
   * @default {0}
   */
  eta?: number;
  /**
   * DDIM: derive ε again from the clipped x0, as GLIDE does.
   *
   * @default {false}
   */
  useClippedModelOutput?: boolean;
  /**
   * LMS: number of derivatives combined, 1 to 4.
   *
   * @default {4}
   */
  lmsOrder?: number;
  /**
   * LCM: steps of the distillation schedule.
   *
   * @default the config's `original_inference_steps`, else 50
   */
  originalSteps?: number;
  /**
   * Image-to-image: how many of `steps` are left out at the noisy end.
   *
   * @default {0}
   */
  startStep?: number;
}

/** A linear combination of what a sampler remembers; absent means 0. */
export interface Combination {
  /** The latent before this call. */
  readonly latent?: number;
  /** The x0 of this call, after clipping. */
  readonly denoised?: number;
  /** The ε of this call. */
  readonly epsilon?: number;
  /** The raw model output of this call. */
  readonly output?: number;
  /** The anchor, after this call's change of it. */
  readonly anchor?: number;
  /** Remembered values of earlier calls, newest first. */
  readonly history?: readonly number[];
  /** Fresh unit normal noise. */
  readonly noise?: number;
}

/** One model call of a plan and what follows from it. */
export interface SamplerCall {
  /** The timestep given to the model; a fraction for sigma-based samplers. */
  readonly timestep: number;
  /** The latent is `alpha·x0 + sigma·ε`. */
  readonly alpha: number;
  /** See `alpha`. */
  readonly sigma: number;
  /** The model sees the latent times this. */
  readonly inputScale: number;
  /** Which of this call's values may enter the history. */
  readonly value: "denoised" | "epsilon" | "output";
  /** The new anchor; absent keeps the old one. */
  readonly anchor?: Combination;
  /** The next latent. */
  readonly next: Combination;
  /** What is reported as the denoised latent; absent is the x0 itself. */
  readonly reported?: Combination;
  /**
   * The history after this call: indices into [this value, …old history].
   */
  readonly retain: readonly number[];
  /** The noise's standard deviation comes from the model (DDPM). */
  readonly learnedVariance?: {
    /** Log of the smallest and the largest variance; absent if not a range. */
    readonly logRange?: readonly [number, number];
  };
}

/** How the predicted x0 is kept in range. */
export type Clip =
  | { readonly kind: "none" }
  | { readonly kind: "range"; readonly limit: number }
  | { readonly kind: "dynamic"; readonly ratio: number; readonly max: number };

/** A sampler's whole course, as plain data. */
export interface SamplerPlan {
  /** The sampler. */
  readonly name: SamplerName;
  /** The timestep of every model call. */
  readonly timesteps: readonly number[];
  /** √((1 − ᾱ)/ᾱ) before every call, and after the last one. */
  readonly sigmas: readonly number[];
  /** The first latent is unit normal noise times this. */
  readonly initNoiseSigma: number;
  /** Number of model calls. */
  readonly calls: number;
  /** One row per call. */
  readonly table: readonly SamplerCall[];
  /** What the model predicts. */
  readonly prediction: PredictionType;
  /** How the predicted x0 is kept in range. */
  readonly clip: Clip;
  /** Whether ε is derived from the clipped x0 rather than from the output. */
  readonly epsilonFromClipped: boolean;
}

type Family =
  | "ddim"
  | "ddpm"
  | "pndm"
  | "dpm"
  | "unipc"
  | "euler"
  | "euler_a"
  | "heun"
  | "lms"
  | "lcm";

const FAMILY: Readonly<Record<SamplerName, Family>> = {
  ddim: "ddim",
  ddpm: "ddpm",
  pndm: "pndm",
  dpmpp_2m: "dpm",
  dpmpp_2m_karras: "dpm",
  unipc: "unipc",
  unipc_karras: "unipc",
  euler: "euler",
  euler_karras: "euler",
  euler_a: "euler_a",
  heun: "heun",
  heun_karras: "heun",
  lms: "lms",
  lms_karras: "lms",
  lcm: "lcm",
};

const CLASSES: Readonly<Record<string, SamplerName>> = {
  DDIMScheduler: "ddim",
  DDPMScheduler: "ddpm",
  PNDMScheduler: "pndm",
  DPMSolverMultistepScheduler: "dpmpp_2m",
  UniPCMultistepScheduler: "unipc",
  EulerDiscreteScheduler: "euler",
  EulerAncestralDiscreteScheduler: "euler_a",
  HeunDiscreteScheduler: "heun",
  LMSDiscreteScheduler: "lms",
  LCMScheduler: "lcm",
};

/**
 * The sampler a diffusers scheduler config names.
 *
 * @param config A scheduler config; `_class_name` and `use_karras_sigmas` are
 * read.
 * @throws If the class is absent or not one of this library's.
 *
 * @example
 * ```ts
 * samplerFromConfig({ _class_name: "PNDMScheduler" }); // "pndm"
 * ```
 */
export function samplerFromConfig(config: SchedulerConfig): SamplerName {
  const name = Object.hasOwn(CLASSES, config._class_name ?? "")
    ? CLASSES[config._class_name ?? ""]
    : undefined;
  if (!name) {
    throw cannot(
      "choose a sampler from a config",
      `_class_name to be one of ${Object.keys(CLASSES).join(", ")}`,
      config._class_name ?? "none",
    );
  }
  const karras = `${name}_karras` as SamplerName;
  return config.use_karras_sigmas && SAMPLERS.includes(karras) ? karras : name;
}

/** Signal and noise of a latent: `alpha·x0 + sigma·ε`. */
interface Level {
  readonly alpha: number;
  readonly sigma: number;
}

/** What every builder starts from. */
interface Context {
  readonly name: SamplerName;
  readonly schedule: Schedule;
  readonly config: SchedulerConfig;
  readonly steps: number;
  readonly start: number;
  readonly karras: boolean;
  readonly version: "0.19.3" | "main";
  readonly options: PlanOptions;
}

/** What a builder returns. */
interface Built {
  readonly table: SamplerCall[];
  readonly final: Level;
  readonly initNoiseSigma: number;
}

/**
 * Works out a sampler's whole course.
 *
 * @param name The sampler.
 * @param schedule The model's forward process and scheduler config.
 * @param steps Number of steps (a Heun step has two model calls).
 * @param options What shapes the plan.
 * @returns Timesteps, noise levels and the table of coefficients.
 * @throws If the name is unknown, steps are not an integer in
 * [1, num_train_timesteps], an option is out of range, or the config asks for
 * what the sampler cannot do.
 *
 * @example
 * ```ts
 * plan("ddim", schedule({ steps_offset: 1 }), 10).timesteps; // [901, …, 1]
 * ```
 */
export function plan(
  name: SamplerName,
  schedule: Schedule,
  steps: number,
  options: PlanOptions = {},
): SamplerPlan {
  const what = `plan ${name}`;
  const family = Object.hasOwn(FAMILY, name) ? FAMILY[name] : undefined;
  if (!family) {
    throw cannot("plan a sampler", SAMPLERS.join(", "), String(name));
  }
  const { config } = schedule;
  const train = schedule.alphasCumprod.length;
  if (!Number.isInteger(steps) || steps < 1 || steps > train) {
    throw cannot(what, `steps to be an integer in [1, ${train}]`, steps);
  }
  const start = options.startStep ?? 0;
  if (!Number.isInteger(start) || start < 0 || start >= steps) {
    throw cannot(what, `startStep to be an integer in [0, ${steps})`, start);
  }
  const version = options.version ??
    (config.final_sigmas_type ? "main" : "0.19.3");
  if (version !== "0.19.3" && version !== "main") {
    throw cannot(what, "version 0.19.3 or main", String(version));
  }
  for (const flag of ["use_beta_sigmas", "use_flow_sigmas"] as const) {
    if (config[flag]) throw cannot(what, `no ${flag}`, "true");
  }
  const built = BUILDERS[family]({
    name,
    schedule,
    config,
    steps,
    start,
    karras: name.endsWith("_karras") || config.use_karras_sigmas === true,
    version,
    options,
  });
  const prediction = config.prediction_type ?? "epsilon";
  const blind = built.table.find((call) =>
    call.alpha === 0 && prediction === "epsilon"
  );
  if (blind) {
    throw cannot(
      what,
      "v_prediction or sample where the signal is zero",
      `epsilon at timestep ${blind.timestep}`,
    );
  }
  return {
    name,
    timesteps: built.table.map((call) => call.timestep),
    sigmas: [...built.table, built.final].map((l) => l.sigma / l.alpha),
    initNoiseSigma: built.initNoiseSigma,
    calls: built.table.length,
    table: built.table,
    prediction,
    clip: clipOf(family, config),
    epsilonFromClipped: family === "ddim"
      ? options.useClippedModelOutput ?? false
      : true,
  };
}

const BUILDERS: Readonly<Record<Family, (context: Context) => Built>> = {
  ddim: buildDdim,
  ddpm: buildDdpm,
  pndm: buildPndm,
  dpm: buildDpm,
  unipc: buildUnipc,
  euler: buildEuler,
  euler_a: buildEulerAncestral,
  heun: buildHeun,
  lms: buildLms,
  lcm: buildLcm,
};

function clipOf(family: Family, config: SchedulerConfig): Clip {
  const none: Clip = { kind: "none" };
  const range: Clip = { kind: "range", limit: config.clip_sample_range ?? 1 };
  const dynamic: Clip = {
    kind: "dynamic",
    ratio: config.dynamic_thresholding_ratio ?? 0.995,
    max: config.sample_max_value ?? 1,
  };
  switch (family) {
    case "ddim":
    case "ddpm":
      // diffusers clips by default here; Stable Diffusion's file says false.
      if (config.thresholding) return dynamic;
      return config.clip_sample ?? true ? range : none;
    case "lcm":
      if (config.thresholding) return dynamic;
      return config.clip_sample ? range : none;
    case "heun":
      return config.clip_sample ? range : none;
    case "dpm":
      return config.thresholding ? dynamic : none;
    case "unipc":
      return config.thresholding && (config.predict_x0 ?? true)
        ? dynamic
        : none;
    default:
      return none;
  }
}

// ---------------------------------------------------------------- timesteps

/** numpy's linspace. */
function linspace(start: number, end: number, n: number): number[] {
  if (n === 1) return [start];
  const step = (end - start) / (n - 1);
  const values = Array.from({ length: n }, (_, i) => i * step + start);
  values[n - 1] = end;
  return values;
}

/** Timesteps counted back from the end in steps that need not be whole. */
function trailing(end: number, step: number): number[] {
  // numpy's arange may give one value too many, which would be timestep −1.
  const n = Math.ceil(end / step);
  return Array.from({ length: n }, (_, i) => round(end - i * step) - 1)
    .filter((t) => t >= 0);
}

/** Rounds halves to even, as numpy does. */
function round(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Checks that timesteps lie inside the training range. */
function inside(context: Context, timesteps: number[]): number[] {
  const train = context.schedule.alphasCumprod.length;
  const wrong = timesteps.find((t) => !(t >= 0 && t <= train - 1));
  if (wrong !== undefined) {
    throw cannot(
      `plan ${context.name}`,
      `timesteps in [0, ${train - 1}] (fewer steps or a smaller steps_offset)`,
      wrong,
    );
  }
  return timesteps;
}

/**
 * Descending timesteps with both ends used, as DDIM, DDPM, PNDM and the
 * sigma-based samplers space them.
 */
function spaced(
  context: Context,
  fallback: "leading" | "linspace",
  rounded: boolean,
): number[] {
  const { config, steps: n } = context;
  const train = context.schedule.alphasCumprod.length;
  switch (config.timestep_spacing ?? fallback) {
    case "linspace": {
      const values = linspace(0, train - 1, n).reverse();
      return inside(context, rounded ? values.map(round) : values);
    }
    case "leading": {
      const ratio = Math.floor(train / n);
      const offset = config.steps_offset ?? 0;
      return inside(
        context,
        Array.from({ length: n }, (_, i) => (n - 1 - i) * ratio + offset),
      );
    }
    case "trailing":
      return inside(context, trailing(train, train / n));
  }
}

/**
 * Descending integer timesteps of the multistep solvers, which leave out the
 * last point because the solver itself ends there.
 */
function spacedOpen(context: Context, last: number): number[] {
  const { config, steps: n } = context;
  const train = context.schedule.alphasCumprod.length;
  switch (config.timestep_spacing ?? "linspace") {
    case "linspace":
      return inside(
        context,
        linspace(0, last - 1, n + 1).map(round).reverse().slice(0, -1),
      );
    case "leading": {
      const ratio = Math.floor(last / (n + 1));
      const offset = config.steps_offset ?? 0;
      return inside(
        context,
        Array.from({ length: n }, (_, i) => (n - i) * ratio + offset),
      );
    }
    case "trailing":
      return inside(context, trailing(last, train / n));
  }
}

/** √ᾱ and √(1 − ᾱ) for an ᾱ. */
function vp(bar: number): Level {
  return { alpha: Math.sqrt(bar), sigma: Math.sqrt(1 - bar) };
}

/** The variance-preserving level of a noise-to-signal ratio. */
function vpOfSigma(sigma: number): Level {
  const alpha = 1 / Math.sqrt(sigma * sigma + 1);
  return { alpha, sigma: sigma * alpha };
}

/** log signal-to-noise, +∞ at zero noise. */
function lambda(level: Level): number {
  return Math.log(level.alpha) - Math.log(level.sigma);
}

/** Noise-to-signal ratios of the training timesteps, as float32 gives them. */
function trainingSigmas(schedule: Schedule): number[] {
  const f = Math.fround;
  const last = schedule.alphasCumprod.length - 1;
  return Array.from(schedule.alphasCumprod, (bar, t) => {
    // Zero terminal SNR would be an infinite sigma; diffusers takes 2⁻²⁴ too.
    const a = t === last && bar === 0 ? 2 ** -24 : bar;
    return f(Math.sqrt(f(f(1 - a) / a)));
  });
}

/** Linear interpolation in a table indexed by timestep. */
function interpolate(table: readonly number[], t: number): number {
  const low = Math.min(Math.floor(t), table.length - 1);
  if (low === t || low === table.length - 1) return table[low];
  return table[low] + (t - low) * (table[low + 1] - table[low]);
}

/** The timestep of a sigma, interpolated in log sigma. */
function timestepOf(sigma: number, logSigmas: readonly number[]): number {
  const log = Math.log(Math.max(sigma, 1e-10));
  let low = 0;
  while (low < logSigmas.length - 2 && logSigmas[low + 1] <= log) low++;
  const w = (logSigmas[low] - log) / (logSigmas[low] - logSigmas[low + 1]);
  return low + Math.min(Math.max(w, 0), 1);
}

/** Karras et al. 2022, eq. 5, ρ = 7: descending. */
function karrasSigmas(
  config: SchedulerConfig,
  max: number,
  min: number,
  n: number,
): number[] {
  const from = (config.sigma_max ?? max) ** (1 / 7);
  const to = (config.sigma_min ?? min) ** (1 / 7);
  return linspace(0, 1, n).map((ramp) => (from + ramp * (to - from)) ** 7);
}

/** Evenly spaced in log sigma: descending. */
function exponentialSigmas(
  config: SchedulerConfig,
  max: number,
  min: number,
  n: number,
): number[] {
  return linspace(
    Math.log(config.sigma_max ?? max),
    Math.log(config.sigma_min ?? min),
    n,
  ).map(Math.exp);
}

const logs32 = (sigmas: readonly number[]) =>
  sigmas.map((s) => Math.fround(Math.log(s)));

// ---------------------------------------------------- DDIM, DDPM, LCM, PNDM

/** A call on a variance-preserving latent at an integer timestep. */
function vpCall(
  context: Context,
  timestep: number,
  rest: Pick<SamplerCall, "value" | "next" | "retain"> & Partial<SamplerCall>,
): SamplerCall {
  const bar = context.schedule.alphasCumprod[timestep];
  return { timestep, ...vp(bar), inputScale: 1, ...rest };
}

/** ᾱ before timestep 0. */
function finalBar(context: Context, one: boolean): number {
  return context.config.set_alpha_to_one ?? one
    ? 1
    : context.schedule.alphasCumprod[0];
}

function buildDdim(context: Context): Built {
  const { schedule: { alphasCumprod: bars }, steps, start, options } = context;
  const eta = options.eta ?? 0;
  if (!(eta >= 0 && eta <= 1)) {
    throw cannot("plan ddim", "eta in [0, 1]", eta);
  }
  const stride = Math.floor(bars.length / steps);
  const last = finalBar(context, true);
  const timesteps = spaced(context, "leading", true).slice(start);
  const before = (t: number) => t - stride >= 0 ? bars[t - stride] : last;
  const table = timesteps.map((t) => {
    const bar = bars[t];
    const prev = before(t);
    // Song et al. 2021, eq. 16; at zero noise there is no variance to add.
    const variance = bar === 1
      ? 0
      : (1 - prev) / (1 - bar) * Math.max(0, 1 - bar / prev);
    const std = eta * Math.sqrt(variance);
    return vpCall(context, t, {
      value: "denoised",
      next: {
        denoised: Math.sqrt(prev),
        epsilon: Math.sqrt(Math.max(0, 1 - prev - std * std)),
        noise: std,
      },
      retain: [],
    });
  });
  return {
    table,
    final: vp(before(timesteps[timesteps.length - 1])),
    initNoiseSigma: 1,
  };
}

function buildDdpm(context: Context): Built {
  const { schedule: { alphasCumprod: bars }, steps, start, config } = context;
  const kind = config.variance_type ?? "fixed_small";
  const kinds = [
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
  ];
  if (!kinds.includes(kind)) {
    throw cannot("plan ddpm", `variance_type ${kinds.join(", ")}`, kind);
  }
  const stride = Math.floor(bars.length / steps);
  const timesteps = spaced(context, "leading", true).slice(start);
  const before = (t: number) => t - stride >= 0 ? bars[t - stride] : 1;
  const table = timesteps.map((t) => {
    const bar = bars[t];
    const prev = before(t);
    const alpha = bar / prev;
    const beta = 1 - alpha;
    // Ho et al. 2020, eq. 7; the floor keeps its logarithm finite.
    const small = Math.max((1 - prev) / (1 - bar) * beta, 1e-20);
    const learned = kind.startsWith("learned");
    const std = Math.sqrt(kind.startsWith("fixed_large") ? beta : small);
    return vpCall(context, t, {
      value: "denoised",
      next: {
        denoised: Math.sqrt(prev) * beta / (1 - bar),
        latent: Math.sqrt(alpha) * (1 - prev) / (1 - bar),
        noise: t === 0 ? 0 : learned ? 1 : std,
      },
      retain: [],
      ...(learned
        ? {
          learnedVariance: kind === "learned_range"
            ? { logRange: [Math.log(small), Math.log(beta)] as const }
            : {},
        }
        : {}),
    });
  });
  return {
    table,
    final: vp(before(timesteps[timesteps.length - 1])),
    initNoiseSigma: 1,
  };
}

function buildLcm(context: Context): Built {
  const { schedule: { alphasCumprod: bars }, steps, start, config } = context;
  const original = context.options.originalSteps ??
    config.original_inference_steps ?? 50;
  if (
    !Number.isInteger(original) || original < steps || original > bars.length
  ) {
    throw cannot(
      "plan lcm",
      `originalSteps to be an integer in [${steps}, ${bars.length}]`,
      original,
    );
  }
  const k = Math.floor(bars.length / original);
  const all = Array.from({ length: steps }, (_, i) => {
    const origin = Math.floor(i * (original / steps));
    return (original - origin) * k - 1;
  });
  const timesteps = inside(context, all).slice(start);
  const table = timesteps.map((t, i) => {
    // Luo et al. 2023, eq. 9 with σ_data = 1/2.
    const scaled = t * (config.timestep_scaling ?? 10);
    const skip = 0.25 / (scaled ** 2 + 0.25);
    const out = scaled / Math.sqrt(scaled ** 2 + 0.25);
    const last = i === timesteps.length - 1;
    const to = last ? { alpha: 1, sigma: 0 } : vp(bars[timesteps[i + 1]]);
    return vpCall(context, t, {
      value: "denoised",
      reported: { latent: skip, denoised: out },
      next: {
        latent: to.alpha * skip,
        denoised: to.alpha * out,
        noise: to.sigma,
      },
      retain: [],
    });
  });
  return { table, final: { alpha: 1, sigma: 0 }, initNoiseSigma: 1 };
}

function buildPndm(context: Context): Built {
  const { schedule: { alphasCumprod: bars }, steps, start, config } = context;
  const prediction = config.prediction_type ?? "epsilon";
  if (prediction === "sample") {
    throw cannot(
      "plan pndm",
      "prediction_type epsilon or v_prediction",
      prediction,
    );
  }
  const skipPrk = config.skip_prk_steps ?? false;
  const stride = Math.floor(bars.length / steps);
  const half = Math.floor(stride / 2);
  const last = finalBar(context, false);
  const spacing = spaced(context, "leading", true).slice(start);
  if (!skipPrk && spacing.length < 4) {
    throw cannot(
      "plan pndm",
      "at least 4 steps, or skip_prk_steps (its warm-up is 4th order)",
      spacing.length,
    );
  }
  const bar = (t: number) => t < 0 ? last : bars[t];
  /** Liu et al. 2022, eq. 9 from t to p, on a sum of outputs. */
  const transfer = (
    t: number,
    p: number,
    from: "latent" | "anchor",
    output: number,
    history: number[] = [],
  ): Combination => {
    inside(context, [t]);
    const a = bar(t);
    const b = bar(p);
    const k = (b - a) / (a * Math.sqrt(1 - b) + Math.sqrt(a * (1 - a) * b));
    // The outputs are summed first and turned into ε at t afterwards.
    const v = prediction === "v_prediction";
    const scale = v ? -k * Math.sqrt(a) : -k;
    return {
      [from]: Math.sqrt(b / a) - (v ? k * Math.sqrt(1 - a) : 0),
      output: scale * output,
      history: history.map((w) => scale * w),
    };
  };

  const table: SamplerCall[] = [];
  let known = 0; // how many usable outputs the history holds
  let end = 0; // the timestep the latent is at after the last call
  const push = (
    t: number,
    next: Combination,
    retain: number[],
    anchor?: Combination,
  ) =>
    table.push(
      vpCall(context, t, {
        value: "output",
        next,
        retain,
        ...(anchor ? { anchor } : {}),
      }),
    );
  const range = (from: number, n: number) =>
    Array.from({ length: n }, (_, i) => from + i);

  let plms = spacing;
  if (!skipPrk) {
    // Three Runge–Kutta steps of four calls over the four noisiest timesteps.
    const points = spacing.slice(0, 4).reverse().flatMap((t) => [t, t + half]);
    const calls = points.slice(0, -1).flatMap((t) => [t, t]).slice(1, -1)
      .reverse();
    for (let i = 0; i < calls.length; i += 4) {
      const t = calls[i];
      const keepAll = (n: number) => range(0, n + known);
      push(t, transfer(t, t - half, "anchor", 1), keepAll(1), { latent: 1 });
      push(
        calls[i + 1],
        transfer(t, calls[i + 1], "anchor", 1),
        keepAll(2),
      );
      push(
        calls[i + 2],
        transfer(t, calls[i + 2] - half, "anchor", 1),
        keepAll(3),
      );
      push(
        calls[i + 3],
        transfer(t, calls[i + 3], "anchor", 1 / 6, [1 / 3, 1 / 3, 1 / 6]),
        // Of k4, k3, k2, k1 only k1 is an output at the step's own timestep.
        range(3, 1 + known),
      );
      end = calls[i + 3];
      known++;
    }
    plms = spacing.slice(3);
  }
  plms.forEach((t, i) => {
    if (skipPrk && i === 1) {
      // A second-order start: the first step again, with the mean of both ends.
      push(t, transfer(t + stride, t, "anchor", 1 / 2, [1 / 2]), [1]);
    }
    const weights = [
      [],
      [-1 / 2],
      [-16 / 12, 5 / 12],
      [-59 / 24, 37 / 24, -9 / 24],
    ][known];
    const own = [1, 3 / 2, 23 / 12, 55 / 24][known];
    const first = skipPrk && i === 0;
    push(
      t,
      transfer(t, t - stride, first ? "anchor" : "latent", own, weights),
      range(0, Math.min(known + 1, 3)),
      first ? { latent: 1 } : undefined,
    );
    known = Math.min(known + 1, 3);
    end = t - stride;
  });
  return { table, final: vp(bar(end)), initNoiseSigma: 1 };
}

// ------------------------------------------------- DPM-Solver(++) and UniPC

/** Timesteps and n + 1 levels of a solver that integrates in λ. */
function solverLevels(
  context: Context,
  last: number,
): { timesteps: number[]; levels: Level[] } {
  const { schedule, config, steps, karras, version } = context;
  const sigmas = trainingSigmas(schedule);
  const max = sigmas[sigmas.length - 1];
  const min = sigmas[0];
  const logs = logs32(sigmas);
  let timesteps = spacedOpen(context, last);
  if (version === "0.19.3") {
    if (karras) {
      timesteps = karrasSigmas({}, max, min, steps)
        .map((sigma) => round(timestepOf(sigma, logs)));
    }
    timesteps = timesteps.filter((t, i) => timesteps.indexOf(t) === i);
    const bars = schedule.alphasCumprod;
    // A zero-SNR end is met only by newer releases; they lift it off zero.
    const level = (t: number) =>
      bars[t] === 0 ? vpOfSigma(sigmas[t]) : vp(bars[t]);
    return { timesteps, levels: [...timesteps, 0].map(level) };
  }
  let visited: number[];
  if (karras || config.use_exponential_sigmas) {
    const spread = karras ? karrasSigmas : exponentialSigmas;
    visited = spread(config, max, min, steps);
    timesteps = visited.map((sigma) => round(timestepOf(sigma, logs)));
  } else if (config.use_lu_lambdas) {
    visited = linspace(logs[logs.length - 1], logs[0], steps).map(Math.exp);
    timesteps = visited.map((sigma) => round(timestepOf(sigma, logs)));
  } else {
    visited = timesteps.map((t) => interpolate(sigmas, t));
  }
  const end = config.final_sigmas_type === "sigma_min" ? min : 0;
  return {
    timesteps,
    levels: [...visited, end].map((sigma) => vpOfSigma(Math.fround(sigma))),
  };
}

function buildDpm(context: Context): Built {
  const { schedule, config, start, version } = context;
  const what = `plan ${context.name}`;
  const order = config.solver_order ?? 2;
  const algorithms = [
    "dpmsolver++",
    "dpmsolver",
    "sde-dpmsolver++",
    "sde-dpmsolver",
  ];
  // diffusers maps DEIS and the other solvers' types to its own defaults.
  const algorithm = config.algorithm_type === "deis"
    ? "dpmsolver++"
    : config.algorithm_type ?? "dpmsolver++";
  if (!algorithms.includes(algorithm)) {
    throw cannot(what, `algorithm_type ${algorithms.join(", ")}`, algorithm);
  }
  const type = ["logrho", "bh1", "bh2"].includes(config.solver_type ?? "")
    ? "midpoint"
    : config.solver_type ?? "midpoint";
  if (type !== "midpoint" && type !== "heun") {
    throw cannot(what, "solver_type midpoint or heun", type);
  }
  const sde = algorithm.startsWith("sde");
  const plus = algorithm.endsWith("++");
  if (order > (sde ? 2 : 3)) {
    throw cannot(what, `solver_order 1 to ${sde ? 2 : 3}`, order);
  }
  const toZero = version === "main" && config.final_sigmas_type !== "sigma_min";
  if (toZero && !plus) {
    throw cannot(
      what,
      `final_sigmas_type sigma_min for ${algorithm}`,
      "zero, where ε has no meaning",
    );
  }

  // Timesteps with λ below the clip are left out (needed by cosine schedules).
  const clip = config.lambda_min_clipped ?? -Infinity;
  const bars = schedule.alphasCumprod;
  const clipped = bars.filter((bar) => lambda(vp(bar)) < clip).length;
  if (clipped === bars.length) {
    throw cannot(what, "a lambda_min_clipped below the largest λ", clip);
  }
  const { timesteps, levels } = solverLevels(context, bars.length - clipped);
  const n = timesteps.length;
  const lowerOrderFinal = (config.lower_order_final ?? true) && n < 15;
  const value = plus ? "denoised" : "epsilon";
  const table: SamplerCall[] = [];
  for (let i = Math.min(start, n - 1); i < n; i++) {
    const known = table.length;
    const isLast = i === n - 1;
    const first = isLast &&
      (lowerOrderFinal || toZero || (config.euler_at_final ?? false));
    const second = i === n - 2 && lowerOrderFinal;
    const used = first ? 1 : Math.min(order, known + 1, second ? 2 : Infinity);
    table.push({
      timestep: timesteps[i],
      ...levels[i],
      inputScale: 1,
      value,
      next: dpmUpdate(
        plus,
        sde,
        type,
        levels[i + 1],
        levels.slice(i - used + 1, i + 1).reverse(),
      ),
      retain: Array.from(
        { length: Math.min(order - 1, known + 1) },
        (_, k) => k,
      ),
    });
  }
  return { table, final: levels[n], initNoiseSigma: 1 };
}

/**
 * One multistep update of order `from.length` (Lu et al. 2022, DPM-Solver
 * eqs. 3.7, 3.11 and 3.13; DPM-Solver++ algorithm 2 and appendix B).
 *
 * @param from The levels of this and the earlier calls, newest first.
 */
function dpmUpdate(
  plus: boolean,
  sde: boolean,
  type: "midpoint" | "heun",
  to: Level,
  from: readonly Level[],
): Combination {
  const [s0] = from;
  const h = lambda(to) - lambda(s0);
  // 0.19.3's rounded Karras timesteps end 4, 0, 0: the last step does nothing.
  if (h === 0) return { latent: 1 };

  // Values are x0 (++) or ε. The step integrates them against e^u, where u runs
  // over the whole log-SNR step; an SDE doubles it for x0, the weight for ε.
  const u = plus ? (sde ? -2 * h : -h) : h;
  const unit = plus ? to.alpha : to.sigma * (sde ? 2 : 1);
  const growth = Math.expm1(u);
  // Weights of the value, its first and its second divided difference.
  const w0 = -unit * growth;
  const w1 = -unit * (growth / u - 1);
  const w2 = -unit * ((growth - u) / (u * u) - 0.5);
  const latent = plus
    ? to.sigma / s0.sigma * (sde ? Math.exp(-h) : 1)
    : to.alpha / s0.alpha;
  const noise = !sde
    ? 0
    : to.sigma * Math.sqrt(plus ? -Math.expm1(-2 * h) : Math.expm1(2 * h));

  // Weights of the newest value and of the earlier ones, newest first.
  const weights = Array(from.length).fill(0);
  weights[0] = w0;
  if (from.length === 2) {
    const r0 = (lambda(s0) - lambda(from[1])) / h;
    const d1 = (type === "midpoint" ? 0.5 * w0 : w1) / r0;
    weights[0] += d1;
    weights[1] -= d1;
  } else if (from.length === 3) {
    const r0 = (lambda(s0) - lambda(from[1])) / h;
    const r1 = (lambda(from[1]) - lambda(from[2])) / h;
    // D1 = (1 + g)·D10 − g·D11 and D2 = (D10 − D11)/(r0 + r1), g = r0/(r0+r1).
    const g = r0 / (r0 + r1);
    const d10 = w1 * (1 + g) + w2 / (r0 + r1);
    const d11 = -w1 * g - w2 / (r0 + r1);
    weights[0] += d10 / r0;
    weights[1] += d11 / r1 - d10 / r0;
    weights[2] -= d11 / r1;
  }
  const [current, ...history] = weights;
  return {
    latent,
    [plus ? "denoised" : "epsilon"]: current,
    history,
    noise,
  };
}

function buildUnipc(context: Context): Built {
  const { config, start } = context;
  const what = `plan ${context.name}`;
  const order = config.solver_order ?? 2;
  const plus = config.predict_x0 ?? true;
  const type = ["midpoint", "heun", "logrho"].includes(config.solver_type ?? "")
    ? "bh2"
    : config.solver_type ?? "bh2";
  if (type !== "bh1" && type !== "bh2") {
    throw cannot(what, "solver_type bh1 or bh2", type);
  }
  if (config.solver_p) {
    throw cannot(what, "no solver_p (its own predictor)", config.solver_p);
  }
  const disabled = config.disable_corrector ?? [];
  const { timesteps, levels } = solverLevels(
    context,
    context.schedule.alphasCumprod.length,
  );
  const n = timesteps.length;
  const value = plus ? "denoised" : "epsilon";
  const table: SamplerCall[] = [];
  let correctorOrder = 0;
  for (let i = Math.min(start, n - 1); i < n; i++) {
    const known = table.length;
    const used = Math.min(
      order,
      known + 1,
      config.lower_order_final ?? true ? n - i : Infinity,
      // The multistep formula has no limit at zero noise.
      levels[i + 1].sigma === 0 ? 1 : Infinity,
    );
    const predictor = unipcUpdate(
      plus,
      type,
      levels[i + 1],
      levels.slice(i - used + 1, i + 1).reverse(),
      false,
    );
    // The corrector redoes the last step, now that its end has been evaluated.
    const corrector = known > 0 && !disabled.includes(i - 1)
      ? unipcUpdate(
        plus,
        type,
        levels[i],
        levels.slice(i - correctorOrder, i).reverse(),
        true,
      )
      : undefined;
    table.push({
      timestep: timesteps[i],
      ...levels[i],
      inputScale: 1,
      value,
      anchor: corrector
        ? {
          anchor: corrector.sample,
          [value]: corrector.end,
          history: corrector.values,
        }
        : { latent: 1 },
      next: {
        anchor: predictor.sample,
        [value]: predictor.values[0],
        history: predictor.values.slice(1),
      },
      retain: Array.from({ length: Math.min(order, known + 1) }, (_, k) => k),
    });
    correctorOrder = used;
  }
  return { table, final: levels[n], initNoiseSigma: 1 };
}

/**
 * One UniP (or UniC, with the value at the end) update of order `from.length`
 * (Zhao et al. 2023, eq. 3 and algorithms 1 and 2).
 *
 * @param from Levels of the known values, newest first.
 * @returns Weights of the sample, of the values newest first, and of the value
 * at the end of the step (0 for the predictor).
 */
function unipcUpdate(
  plus: boolean,
  type: "bh1" | "bh2",
  to: Level,
  from: readonly Level[],
  correct: boolean,
): { sample: number; values: number[]; end: number } {
  const [s0] = from;
  const order = from.length;
  const values = Array(order).fill(0);
  const h = lambda(to) - lambda(s0);
  if (h === 0) return { sample: 1, values, end: 0 };
  const sample = plus ? to.sigma / s0.sigma : to.alpha / s0.alpha;
  const unit = plus ? to.alpha : to.sigma;
  const hh = plus ? -h : h;
  // σ_t·(e^h − 1) written so that it has its limit at zero noise.
  values[0] = plus
    ? -unit * Math.expm1(hh)
    : -(to.alpha * s0.sigma / s0.alpha - to.sigma);
  if (order === 1 && !correct) return { sample, values, end: 0 };

  const b = type === "bh1" ? hh : Math.expm1(hh);
  const ratios = from.slice(1).map((s) => (lambda(s) - lambda(s0)) / h);
  const nodes = [...ratios, 1];
  const right: number[] = [];
  let factorial = 1;
  let phi = Math.expm1(hh) / hh - 1;
  for (let i = 1; i <= order; i++) {
    right.push(phi * factorial / b);
    factorial *= i + 1;
    phi = phi / hh - 1 / factorial;
  }
  const size = correct ? order : order - 1;
  // Both first-order cases use 1/2 instead of the solution, as the paper does.
  const rho = size === 1 ? [0.5] : solve(
    Array.from(
      { length: size },
      (_, i) => nodes.slice(0, size).map((node) => node ** i),
    ),
    right.slice(0, size),
  );
  ratios.forEach((ratio, k) => {
    const weight = -unit * b * rho[k] / ratio;
    values[k + 1] += weight;
    values[0] -= weight;
  });
  let end = 0;
  if (correct) {
    end = -unit * b * rho[size - 1];
    values[0] -= end;
  }
  return { sample, values, end };
}

/** Solves a small dense system by elimination with pivoting. */
function solve(matrix: number[][], right: number[]): number[] {
  const n = right.length;
  const rows = matrix.map((row, i) => [...row, right[i]]);
  for (let c = 0; c < n; c++) {
    let pivot = c;
    for (let r = c + 1; r < n; r++) {
      if (Math.abs(rows[r][c]) > Math.abs(rows[pivot][c])) pivot = r;
    }
    [rows[c], rows[pivot]] = [rows[pivot], rows[c]];
    for (let r = c + 1; r < n; r++) {
      const factor = rows[r][c] / rows[c][c];
      for (let k = c; k <= n; k++) rows[r][k] -= factor * rows[c][k];
    }
  }
  const x = Array(n).fill(0);
  for (let r = n - 1; r >= 0; r--) {
    let sum = rows[r][n];
    for (let k = r + 1; k < n; k++) sum -= rows[r][k] * x[k];
    x[r] = sum / rows[r][r];
  }
  return x;
}

// -------------------------------------------- Euler, ancestral, Heun and LMS

/** Timesteps and sigmas (one more, the last 0) of a sigma-based sampler. */
function sigmaLevels(
  context: Context,
): { timesteps: number[]; sigmas: number[]; initNoiseSigma: number } {
  const { schedule, config, steps, karras } = context;
  const table = trainingSigmas(schedule);
  const logs = logs32(table);
  let timesteps = spaced(context, "linspace", false);
  const n = timesteps.length;
  let sigmas = config.interpolation_type === "log_linear"
    // One sigma more than timesteps: the last step then ends at the smallest.
    ? linspace(
      Math.log(table[table.length - 1]),
      Math.log(table[0]),
      n + 1,
    ).map(Math.exp)
    : timesteps.map((t) => interpolate(table, t));
  if (karras || config.use_exponential_sigmas) {
    const spread = karras ? karrasSigmas : exponentialSigmas;
    sigmas = spread(config, sigmas[0], sigmas[sigmas.length - 1], steps);
    timesteps = sigmas.map((sigma) => timestepOf(sigma, logs));
  }
  const end = config.final_sigmas_type === "sigma_min" ? table[0] : 0;
  sigmas = [...sigmas, end].slice(0, timesteps.length + 1).map(Math.fround);
  const max = Math.max(...sigmas);
  const spacing = config.timestep_spacing ?? "linspace";
  return {
    timesteps,
    sigmas,
    // "leading" does not start at pure noise, so the signal's share is added.
    initNoiseSigma: spacing === "leading" ? Math.sqrt(max * max + 1) : max,
  };
}

/** Leaves out the options only Euler has among the sigma-based samplers. */
function withoutSigmaOptions(config: SchedulerConfig): SchedulerConfig {
  return { ...config, interpolation_type: "linear", final_sigmas_type: null };
}

/** A call on a variance-exploding latent `x0 + σ·ε`. */
function veCall(
  timestep: number,
  sigma: number,
  rest: Pick<SamplerCall, "next" | "retain"> & Partial<SamplerCall>,
): SamplerCall {
  return {
    timestep,
    alpha: 1,
    sigma,
    inputScale: 1 / Math.sqrt(sigma * sigma + 1),
    value: "epsilon",
    ...rest,
  };
}

function buildEuler(context: Context): Built {
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels(context);
  const from = Math.min(context.start, timesteps.length - 1);
  const table = timesteps.slice(from).map((t, k) => {
    const sigma = sigmas[from + k];
    const next = { latent: 1, epsilon: sigmas[from + k + 1] - sigma };
    return veCall(t, sigma, { next, retain: [] });
  });
  return {
    table,
    final: { alpha: 1, sigma: sigmas[timesteps.length] },
    initNoiseSigma,
  };
}

function buildEulerAncestral(context: Context): Built {
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels({
    ...context,
    // This scheduler has no Karras sigmas in diffusers.
    karras: false,
    config: {
      ...withoutSigmaOptions(context.config),
      use_exponential_sigmas: false,
    },
  });
  const from = Math.min(context.start, timesteps.length - 1);
  const table = timesteps.slice(from).map((t, k) => {
    const sigma = sigmas[from + k];
    const to = sigmas[from + k + 1];
    const up = Math.sqrt(to ** 2 * (sigma ** 2 - to ** 2) / sigma ** 2);
    const down = Math.sqrt(Math.max(0, to ** 2 - up ** 2));
    return veCall(t, sigma, {
      next: { latent: 1, epsilon: down - sigma, noise: up },
      retain: [],
    });
  });
  return { table, final: { alpha: 1, sigma: 0 }, initNoiseSigma };
}

function buildHeun(context: Context): Built {
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels({
    ...context,
    config: withoutSigmaOptions(context.config),
  });
  const n = timesteps.length;
  const table: SamplerCall[] = [];
  for (let i = Math.min(context.start, n - 1); i < n; i++) {
    const dt = sigmas[i + 1] - sigmas[i];
    const last = i === n - 1;
    table.push(veCall(timesteps[i], sigmas[i], {
      anchor: { latent: 1 },
      next: { latent: 1, epsilon: dt },
      retain: last ? [] : [0],
    }));
    if (last) break;
    table.push(veCall(timesteps[i + 1], sigmas[i + 1], {
      next: { anchor: 1, epsilon: dt / 2, history: [dt / 2] },
      retain: [],
    }));
  }
  return { table, final: { alpha: 1, sigma: sigmas[n] }, initNoiseSigma };
}

function buildLms(context: Context): Built {
  const order = context.options.lmsOrder ?? 4;
  if (!Number.isInteger(order) || order < 1 || order > 4) {
    throw cannot(`plan ${context.name}`, "lmsOrder 1 to 4", order);
  }
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels({
    ...context,
    config: withoutSigmaOptions(context.config),
  });
  const n = timesteps.length;
  const from = Math.min(context.start, n - 1);
  const table = timesteps.slice(from).map((t, k) => {
    const i = from + k;
    const used = Math.min(order, k + 1);
    const nodes = Array.from({ length: used }, (_, j) => sigmas[i - j]);
    const weights = nodes.map((_, j) =>
      integrateLagrange(nodes, j, sigmas[i], sigmas[i + 1])
    );
    const [epsilon, ...history] = weights;
    return veCall(t, sigmas[i], {
      next: { latent: 1, epsilon, history },
      retain: Array.from({ length: Math.min(order - 1, k + 1) }, (_, j) => j),
    });
  });
  return { table, final: { alpha: 1, sigma: sigmas[n] }, initNoiseSigma };
}

/** ∫ of the j-th Lagrange polynomial of up to four nodes; exact. */
function integrateLagrange(
  nodes: readonly number[],
  j: number,
  from: number,
  to: number,
): number {
  // Two-point Gauss–Legendre is exact to degree 3, and degree ≤ 3 here.
  const centre = (from + to) / 2;
  const half = (to - from) / 2;
  return [-1, 1].reduce((sum, sign) => {
    const x = centre + sign * half / Math.sqrt(3);
    const value = nodes.reduce(
      (product, node, k) =>
        k === j ? product : product * (x - node) / (nodes[j] - node),
      1,
    );
    return sum + half * value;
  }, 0);
}
