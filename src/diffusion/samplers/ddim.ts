/**
 * One-step samplers on integer timesteps: DDIM (Song et al. 2021), DDPM (Ho et
 * al. 2020) and LCM (Luo et al. 2023).
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import { inside, spaced, vp } from "./levels.ts";
import type { Course, PlanRequest, SamplerCall } from "./table.ts";

/** Timesteps, and ᾱ at and before each of them. */
function visited(request: PlanRequest, last: number) {
  const { schedule: { alphasCumprod: bars }, steps, start } = request;
  const stride = Math.floor(bars.length / steps);
  return spaced(request, "leading", true).slice(start).map((t) => ({
    timestep: t,
    bar: bars[t],
    previous: t >= stride ? bars[t - stride] : last,
  }));
}

/** The variance of x_{t−1} given x_t and x0 (Ho et al. 2020, eq. 7). */
function posteriorVariance(bar: number, previous: number): number {
  // At zero noise there is no variance to add.
  return bar === 1
    ? 0
    : (1 - previous) / (1 - bar) * Math.max(0, 1 - bar / previous);
}

/**
 * DDIM, Song et al. 2021, eq. 12.
 *
 * @param request The request; `options.eta` is read.
 */
export function ddim(request: PlanRequest): Course {
  const { schedule: { alphasCumprod }, config, options: { eta = 0 } } = request;
  if (!(eta >= 0 && eta <= 1)) {
    throw cannot("plan ddim", "eta in [0, 1]", eta);
  }
  const last = config.set_alpha_to_one ?? true ? 1 : alphasCumprod[0];
  const points = visited(request, last);
  const table = points.map(({ timestep, bar, previous }): SamplerCall => {
    const noise = eta * Math.sqrt(posteriorVariance(bar, previous));
    return {
      timestep,
      ...vp(bar),
      next: {
        denoised: Math.sqrt(previous),
        epsilon: Math.sqrt(Math.max(0, 1 - previous - noise ** 2)),
        noise,
      },
      memory: [],
    };
  });
  return { table, final: vp(points.at(-1)!.previous) };
}

const VARIANCES = [
  "fixed_small",
  "fixed_small_log",
  "fixed_large",
  "fixed_large_log",
  "learned",
  "learned_range",
];

/**
 * DDPM, Ho et al. 2020, eqs. 6 and 7; learned variances as Nichol & Dhariwal
 * 2021, eq. 15.
 *
 * @param request The request; the config's `variance_type` is read.
 */
export function ddpm(request: PlanRequest): Course {
  const kind = request.config.variance_type ?? "fixed_small";
  if (!VARIANCES.includes(kind)) {
    throw cannot("plan ddpm", `variance_type ${VARIANCES.join(", ")}`, kind);
  }
  const learned = kind.startsWith("learned");
  const points = visited(request, 1);
  const table = points.map(({ timestep, bar, previous }): SamplerCall => {
    const alpha = bar / previous;
    const beta = 1 - alpha;
    // The floor keeps its logarithm finite.
    const small = Math.max((1 - previous) / (1 - bar) * beta, 1e-20);
    const fixed = Math.sqrt(kind.startsWith("fixed_large") ? beta : small);
    return {
      timestep,
      ...vp(bar),
      next: {
        denoised: Math.sqrt(previous) * beta / (1 - bar),
        latent: Math.sqrt(alpha) * (1 - previous) / (1 - bar),
        noise: timestep === 0 ? 0 : learned ? 1 : fixed,
      },
      memory: [],
      ...(learned && {
        learnedVariance: kind === "learned_range"
          ? { logRange: [Math.log(small), Math.log(beta)] as const }
          : {},
      }),
    };
  });
  return { table, final: vp(points.at(-1)!.previous) };
}

/**
 * LCM, Luo et al. 2023, algorithm 3.
 *
 * @param request The request; `options.originalSteps` is read.
 */
export function lcm(request: PlanRequest): Course {
  const { schedule: { alphasCumprod: bars }, steps, start, config } = request;
  const original = request.options.originalSteps ??
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
  const stride = Math.floor(bars.length / original);
  const all = Array.from({ length: steps }, (_, i) => {
    const origin = Math.floor(i * (original / steps));
    return (original - origin) * stride - 1;
  });
  const timesteps = inside(request, all).slice(start);
  const table = timesteps.map((timestep, i): SamplerCall => {
    // The boundary condition, eq. 9 with σ_data = 1/2.
    const scaled = timestep * (config.timestep_scaling ?? 10);
    const skip = 0.25 / (scaled ** 2 + 0.25);
    const out = scaled / Math.sqrt(scaled ** 2 + 0.25);
    const last = i === timesteps.length - 1;
    const to = last ? { alpha: 1, sigma: 0 } : vp(bars[timesteps[i + 1]]);
    return {
      timestep,
      ...vp(bars[timestep]),
      next: {
        latent: to.alpha * skip,
        denoised: to.alpha * out,
        noise: to.sigma,
      },
      memory: [],
      reported: { latent: skip, denoised: out },
    };
  });
  return { table, final: { alpha: 1, sigma: 0 } };
}
