/**
 * The timesteps and noise levels of a sampler.
 *
 * Spacing and rounding follow diffusers 0.19.3, or diffusers main if chosen.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { Schedule, SchedulerConfig } from "../schedule.ts";
import type { Level, PlanRequest } from "./table.ts";

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
export function inside(request: PlanRequest, timesteps: number[]): number[] {
  const train = request.schedule.alphasCumprod.length;
  const wrong = timesteps.find((t) => !(t >= 0 && t <= train - 1));
  if (wrong !== undefined) {
    throw cannot(
      `plan ${request.name}`,
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
export function spaced(
  request: PlanRequest,
  fallback: "leading" | "linspace",
  rounded: boolean,
): number[] {
  const { config, steps: n } = request;
  const train = request.schedule.alphasCumprod.length;
  switch (config.timestep_spacing ?? fallback) {
    case "linspace": {
      const values = linspace(0, train - 1, n).reverse();
      return inside(request, rounded ? values.map(round) : values);
    }
    case "leading": {
      const ratio = Math.floor(train / n);
      const offset = config.steps_offset ?? 0;
      return inside(
        request,
        Array.from({ length: n }, (_, i) => (n - 1 - i) * ratio + offset),
      );
    }
    case "trailing":
      return inside(request, trailing(train, train / n));
  }
}

/**
 * Descending integer timesteps of the multistep solvers, which leave out the
 * last point because the solver itself ends there.
 */
function spacedOpen(request: PlanRequest, last: number): number[] {
  const { config, steps: n } = request;
  const train = request.schedule.alphasCumprod.length;
  switch (config.timestep_spacing ?? "linspace") {
    case "linspace":
      return inside(
        request,
        linspace(0, last - 1, n + 1).map(round).reverse().slice(0, -1),
      );
    case "leading": {
      const ratio = Math.floor(last / (n + 1));
      const offset = config.steps_offset ?? 0;
      return inside(
        request,
        Array.from({ length: n }, (_, i) => (n - i) * ratio + offset),
      );
    }
    case "trailing":
      return inside(request, trailing(last, train / n));
  }
}

/** √ᾱ and √(1 − ᾱ) for an ᾱ. */
export function vp(bar: number): Level {
  return { alpha: Math.sqrt(bar), sigma: Math.sqrt(1 - bar) };
}

/** The variance-preserving level of a noise-to-signal ratio. */
function vpOfSigma(sigma: number): Level {
  const alpha = 1 / Math.sqrt(sigma * sigma + 1);
  return { alpha, sigma: sigma * alpha };
}

/** λ, the log signal-to-noise ratio; +∞ at zero noise. */
export function lambda(level: Level): number {
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

/** Timesteps and n + 1 levels of a solver that integrates in λ. */
export function solverLevels(
  request: PlanRequest,
  last: number,
): { timesteps: number[]; levels: Level[] } {
  const { schedule, config, steps, karras, version } = request;
  const sigmas = trainingSigmas(schedule);
  const max = sigmas[sigmas.length - 1];
  const min = sigmas[0];
  const logs = logs32(sigmas);
  let timesteps = spacedOpen(request, last);
  if (version === "0.19.3") {
    if (karras) {
      timesteps = karrasSigmas({}, max, min, steps)
        .map((sigma) => round(timestepOf(sigma, logs)));
    }
    timesteps = timesteps.filter((t, i) => timesteps.indexOf(t) === i);
    const bars = schedule.alphasCumprod;
    // Only newer diffusers releases support zero terminal SNR; they replace ᾱ =
    // 0 by a small value.
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

/** Timesteps and sigmas (one more, the last 0) of a sigma-based sampler. */
export function sigmaLevels(
  request: PlanRequest,
): { timesteps: number[]; sigmas: number[]; initNoiseSigma: number } {
  const { schedule, config, steps, karras } = request;
  const table = trainingSigmas(schedule);
  const logs = logs32(table);
  let timesteps = spaced(request, "linspace", false);
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
