/**
 * Computes a sampler's table of coefficients before the first model call.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { Schedule, SchedulerConfig } from "../schedule.ts";
import { ddim, ddpm, lcm } from "./ddim.ts";
import { dpm } from "./dpm.ts";
import { pndm } from "./pndm.ts";
import { euler, eulerAncestral, heun, lms } from "./sigma.ts";
import type {
  ClipRule,
  Course,
  PlanOptions,
  PlanRequest,
  SamplerName,
  SamplerPlan,
} from "./table.ts";
import { unipc } from "./unipc.ts";

type Family = (request: PlanRequest) => Course;

/** The family that makes each sampler's table. */
const FAMILIES: Readonly<Record<SamplerName, Family>> = {
  ddim,
  ddpm,
  pndm,
  dpmpp_2m: dpm,
  dpmpp_2m_karras: dpm,
  unipc,
  unipc_karras: unipc,
  euler,
  euler_karras: euler,
  euler_a: eulerAncestral,
  heun,
  heun_karras: heun,
  lms,
  lms_karras: lms,
  lcm,
};

/** Every sampler, in the order of {@linkcode SamplerName}. */
export const SAMPLERS: readonly SamplerName[] = Object.keys(
  FAMILIES,
) as SamplerName[];

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
  const className = config._class_name ?? "";
  if (!Object.hasOwn(CLASSES, className)) {
    throw cannot(
      "choose a sampler from a config",
      `_class_name to be one of ${Object.keys(CLASSES).join(", ")}`,
      config._class_name ?? "none",
    );
  }
  const name = CLASSES[className];
  const karras = `${name}_karras` as SamplerName;
  return config.use_karras_sigmas && SAMPLERS.includes(karras) ? karras : name;
}

/**
 * Plans all steps of a sampler.
 *
 * @param name The sampler.
 * @param schedule The model's forward process and scheduler config.
 * @param steps Number of steps (a Heun step has two model calls).
 * @param options Options of the plan.
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
  const request = checked(name, schedule, steps, options);
  const { table, final, initNoiseSigma = 1 } = FAMILIES[name](request);
  const prediction = schedule.config.prediction_type ?? "epsilon";
  const blind = table.find(({ alpha }) => alpha === 0);
  if (blind && prediction === "epsilon") {
    throw cannot(
      `plan ${name}`,
      "v_prediction or sample where the signal is zero",
      `epsilon at timestep ${blind.timestep}`,
    );
  }
  // After the last call no memory is needed.
  const rows = table.with(-1, { ...table.at(-1)!, memory: [] });
  return {
    name,
    timesteps: rows.map(({ timestep }) => timestep),
    sigmas: [...rows, final].map(({ alpha, sigma }) => sigma / alpha),
    initNoiseSigma,
    calls: rows.length,
    table: rows,
    prediction,
    clip: clipOf(name, schedule.config),
    epsilonFromClipped: name !== "ddim" ||
      (options.useClippedModelOutput ?? false),
    start: request.start,
  };
}

function checked(
  name: SamplerName,
  schedule: Schedule,
  steps: number,
  options: PlanOptions,
): PlanRequest {
  const what = `plan ${name}`;
  if (!Object.hasOwn(FAMILIES, name)) {
    throw cannot("plan a sampler", SAMPLERS.join(", "), String(name));
  }
  const { config } = schedule;
  const train = schedule.alphasCumprod.length;
  if (!Number.isInteger(steps) || steps < 1 || steps > train) {
    throw cannot(what, `steps to be an integer in [1, ${train}]`, steps);
  }
  const { startStep: start = 0 } = options;
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
  const karras = name.endsWith("_karras") || config.use_karras_sigmas === true;
  return { name, schedule, config, steps, start, karras, version, options };
}

/** How diffusers' scheduler class clips x0. */
function clipOf(name: SamplerName, config: SchedulerConfig): ClipRule {
  const family = name.replace(/_karras$/, "");
  const dynamic = ["ddim", "ddpm", "lcm", "dpmpp_2m"].includes(family) ||
    (family === "unipc" && (config.predict_x0 ?? true));
  if (dynamic && config.thresholding) {
    return {
      kind: "dynamic",
      ratio: config.dynamic_thresholding_ratio ?? 0.995,
      max: config.sample_max_value ?? 1,
    };
  }
  // DDIM and DDPM clip by default; Stable Diffusion's file says false.
  const byDefault = ["ddim", "ddpm"].includes(family);
  const range = byDefault || ["lcm", "heun"].includes(family);
  return range && (config.clip_sample ?? byDefault)
    ? { kind: "range", limit: config.clip_sample_range ?? 1 }
    : { kind: "none" };
}
