/**
 * A sampler as a table: one row per model call, coefficients in float64.
 *
 * Every sampler here is linear in the latent, the x₀ and the ε of this call,
 * remembered tensors, and fresh noise. A row has the coefficients of the next
 * latent and of the remembered tensors.
 *
 * @module
 */
import type { PredictionType, Schedule, SchedulerConfig } from "../schedule.ts";

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

/** Coefficients of a linear combination; absent means 0. */
export interface Combination {
  /** The latent before this call. */
  readonly latent?: number;
  /** The x0 of this call, after clipping. */
  readonly denoised?: number;
  /** The ε of this call. */
  readonly epsilon?: number;
  /** What the call before this one remembered, in its order. */
  readonly memory?: readonly number[];
  /** Fresh unit normal noise. */
  readonly noise?: number;
}

/** How much signal and noise a latent holds: it is `alpha·x0 + sigma·ε`. */
export interface Level {
  /** Factor of the clean latent. */
  readonly alpha: number;
  /** Factor of the unit normal noise. */
  readonly sigma: number;
}

/** One model call of a plan and what follows from it. */
export interface SamplerCall extends Level {
  /** The timestep given to the model; a fraction for sigma-based samplers. */
  readonly timestep: number;
  /** The next latent. */
  readonly next: Combination;
  /** Tensors that are remembered for the next call. */
  readonly memory: readonly Combination[];
  /** The reported denoised latent. @default x0 */
  readonly reported?: Combination;
  /** The noise's standard deviation comes from the model (DDPM). */
  readonly learnedVariance?: {
    /** Log of the smallest and the largest variance; absent if not a range. */
    readonly logRange?: readonly [number, number];
  };
}

/** How the predicted x0 is kept in range. */
export type ClipRule =
  | { readonly kind: "none" }
  | { readonly kind: "range"; readonly limit: number }
  | { readonly kind: "dynamic"; readonly ratio: number; readonly max: number };

/** All steps of a sampler, as plain data. */
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
  readonly clip: ClipRule;
  /** Whether ε is derived from the clipped x0 rather than from the output. */
  readonly epsilonFromClipped: boolean;
  /** Image-to-image: how many steps are left out at the noisy end. */
  readonly start: number;
}

/** Input of every sampler family. */
export interface PlanRequest {
  /** The sampler, for messages. */
  readonly name: SamplerName;
  /** The model's forward process. */
  readonly schedule: Schedule;
  /** The schedule's own config. */
  readonly config: SchedulerConfig;
  /** Number of steps. */
  readonly steps: number;
  /** How many of them are left out at the noisy end. */
  readonly start: number;
  /** Whether sigmas are spaced as Karras et al. 2022, eq. 5. */
  readonly karras: boolean;
  /** Which diffusers release is followed. */
  readonly version: "0.19.3" | "main";
  /** What else shapes the plan. */
  readonly options: PlanOptions;
}

/** Output of a sampler family. */
export interface Course {
  /** One row per call. */
  readonly table: readonly SamplerCall[];
  /** The level after the last call. */
  readonly final: Level;
  /**
   * The first latent is unit normal noise times this.
   *
   * @default 1
   */
  readonly initNoiseSigma?: number;
}

/**
 * The weighted sum of combinations.
 *
 * @param terms Weights and combinations.
 */
export function weighted(
  ...terms: readonly (readonly [weight: number, of: Combination])[]
): Combination {
  const total = (part: Exclude<keyof Combination, "memory">) =>
    terms.reduce((sum, [w, of]) => sum + w * (of[part] ?? 0), 0);
  const length = Math.max(0, ...terms.map(([, of]) => of.memory?.length ?? 0));
  return {
    latent: total("latent"),
    denoised: total("denoised"),
    epsilon: total("epsilon"),
    noise: total("noise"),
    memory: Array.from(
      { length },
      (_, i) =>
        terms.reduce((sum, [w, of]) => sum + w * (of.memory?.[i] ?? 0), 0),
    ),
  };
}

/**
 * The i-th tensor remembered, alone.
 *
 * @param i Its place in the memory.
 */
export function remembered(i: number): Combination {
  return { memory: [...Array(i).fill(0), 1] };
}

/**
 * A multistep memory after a call: this call's value, then earlier ones.
 *
 * @param value This call's value.
 * @param known Earlier values in the memory.
 * @param most How many are kept.
 */
export function pushed(
  value: Combination,
  known: number,
  most: number,
): Combination[] {
  const earlier = Array.from({ length: known }, (_, i) => remembered(i));
  return [value, ...earlier].slice(0, most);
}
