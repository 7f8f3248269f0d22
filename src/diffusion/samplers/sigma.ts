/**
 * Samplers on sigmas, whose latent is `x0 + σ·ε`: Euler, ancestral Euler, Heun
 * (Karras et al. 2022) and linear multistep (k-diffusion's LMS).
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { SchedulerConfig } from "../schedule.ts";
import { sigmaLevels } from "./levels.ts";
import {
  type Course,
  type PlanRequest,
  pushed,
  type SamplerCall,
} from "./table.ts";

/** ε is the derivative dx/dσ. */
const DERIVATIVE = { epsilon: 1 };

/** One call at each sigma but the last. */
function course(
  request: PlanRequest,
  row: (
    sigmas: readonly number[],
    i: number,
    known: number,
  ) => Pick<SamplerCall, "next" | "memory">,
): Course {
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels(request);
  const first = Math.min(request.start, timesteps.length - 1);
  return {
    table: timesteps.slice(first).map((timestep, known) => ({
      timestep,
      alpha: 1,
      sigma: sigmas[first + known],
      ...row(sigmas, first + known, known),
    })),
    final: { alpha: 1, sigma: sigmas[timesteps.length] },
    initNoiseSigma,
  };
}

/** Leaves out the options that only Euler has among these samplers. */
function plain(
  request: PlanRequest,
  more: Partial<SchedulerConfig> = {},
): PlanRequest {
  const config = {
    ...request.config,
    interpolation_type: "linear" as const,
    final_sigmas_type: null,
    ...more,
  };
  return { ...request, config };
}

/**
 * Euler, Karras et al. 2022, algorithm 1 without its second half.
 *
 * @param request The request.
 */
export function euler(request: PlanRequest): Course {
  return course(request, (sigmas, i) => ({
    next: { latent: 1, epsilon: sigmas[i + 1] - sigmas[i] },
    memory: [],
  }));
}

/**
 * Ancestral Euler: a step down to σ_down, then noise of σ_up.
 *
 * @param request The request; it has no Karras sigmas in diffusers.
 */
export function eulerAncestral(request: PlanRequest): Course {
  const linear = plain(request, { use_exponential_sigmas: false });
  return course({ ...linear, karras: false }, (sigmas, i) => {
    const [from, to] = [sigmas[i], sigmas[i + 1]];
    const up = Math.sqrt(to ** 2 * (from ** 2 - to ** 2) / from ** 2);
    const down = Math.sqrt(Math.max(0, to ** 2 - up ** 2));
    return {
      next: { latent: 1, epsilon: down - from, noise: up },
      memory: [],
    };
  });
}

/**
 * Heun, Karras et al. 2022, algorithm 1: a step to the next sigma, then the
 * same step again with the mean of the derivatives at both ends.
 *
 * @param request The request.
 */
export function heun(request: PlanRequest): Course {
  const { timesteps, sigmas, initNoiseSigma } = sigmaLevels(plain(request));
  const n = timesteps.length;
  const table: SamplerCall[] = [];
  for (let i = Math.min(request.start, n - 1); i < n; i++) {
    const dt = sigmas[i + 1] - sigmas[i];
    table.push({
      timestep: timesteps[i],
      alpha: 1,
      sigma: sigmas[i],
      next: { latent: 1, epsilon: dt },
      memory: [{ latent: 1 }, DERIVATIVE],
    });
    // At sigma 0 there is no derivative.
    if (i === n - 1) break;
    table.push({
      timestep: timesteps[i + 1],
      alpha: 1,
      sigma: sigmas[i + 1],
      next: { epsilon: dt / 2, memory: [1, dt / 2] },
      memory: [],
    });
  }
  return { table, final: { alpha: 1, sigma: sigmas[n] }, initNoiseSigma };
}

/**
 * Linear multistep: the derivatives' interpolating polynomial, integrated.
 *
 * @param request The request; `options.lmsOrder` is read.
 */
export function lms(request: PlanRequest): Course {
  const order = request.options.lmsOrder ?? 4;
  if (!Number.isInteger(order) || order < 1 || order > 4) {
    throw cannot(`plan ${request.name}`, "lmsOrder 1 to 4", order);
  }
  return course(plain(request), (sigmas, i, known) => {
    const used = Math.min(order, known + 1);
    const nodes = sigmas.slice(i - used + 1, i + 1).reverse();
    const [epsilon, ...memory] = nodes.map((_, j) =>
      integrateLagrange(nodes, j, sigmas[i], sigmas[i + 1])
    );
    return {
      next: { latent: 1, epsilon, memory },
      memory: pushed(DERIVATIVE, Math.min(known, order - 1), order - 1),
    };
  });
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
