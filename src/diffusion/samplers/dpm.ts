/**
 * DPM-Solver and DPM-Solver++ (Lu et al. 2022), multistep, with their SDE
 * variants. DPM++ 2M is order 2 on x0.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { SchedulerConfig } from "../schedule.ts";
import { lambda, solverLevels, vp } from "./levels.ts";
import {
  type Combination,
  type Course,
  type Level,
  type PlanRequest,
  pushed,
  type SamplerCall,
} from "./table.ts";

/** What kind of solver it is. */
interface Solver {
  /** It integrates x0 (DPM-Solver++), else ε. */
  readonly plus: boolean;
  /** It adds noise. */
  readonly sde: boolean;
  /** Type of the second-order step. */
  readonly type: "midpoint" | "heun";
  /** Maximum number of combined values. */
  readonly order: number;
}

const ALGORITHMS = [
  "dpmsolver++",
  "dpmsolver",
  "sde-dpmsolver++",
  "sde-dpmsolver",
];

function solverOf(what: string, config: SchedulerConfig): Solver {
  // diffusers maps DEIS and the other solvers' types to its own defaults.
  const algorithm = config.algorithm_type === "deis"
    ? "dpmsolver++"
    : config.algorithm_type ?? "dpmsolver++";
  if (!ALGORITHMS.includes(algorithm)) {
    throw cannot(what, `algorithm_type ${ALGORITHMS.join(", ")}`, algorithm);
  }
  const type = ["logrho", "bh1", "bh2"].includes(config.solver_type ?? "")
    ? "midpoint"
    : config.solver_type ?? "midpoint";
  if (type !== "midpoint" && type !== "heun") {
    throw cannot(what, "solver_type midpoint or heun", type);
  }
  const sde = algorithm.startsWith("sde");
  const order = config.solver_order ?? 2;
  if (order > (sde ? 2 : 3)) {
    throw cannot(what, `solver_order 1 to ${sde ? 2 : 3}`, order);
  }
  return { plus: algorithm.endsWith("++"), sde, type, order };
}

/**
 * DPM-Solver(++) of order 1 to 3; each step uses this call's value and those of
 * the calls before it.
 *
 * @param request The request; the config says which solver.
 */
export function dpm(request: PlanRequest): Course {
  const { schedule, config, start, version } = request;
  const what = `plan ${request.name}`;
  const solver = solverOf(what, config);
  const toZero = version === "main" && config.final_sigmas_type !== "sigma_min";
  if (toZero && !solver.plus) {
    throw cannot(
      what,
      `final_sigmas_type sigma_min for ${config.algorithm_type}`,
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
  const { timesteps, levels } = solverLevels(request, bars.length - clipped);
  const n = timesteps.length;
  const lowerOrders = (config.lower_order_final ?? true) && n < 15;
  const oneAtEnd = lowerOrders || toZero || (config.euler_at_final ?? false);
  const most = (i: number) => {
    if (i === n - 1 && oneAtEnd) return 1;
    return i === n - 2 && lowerOrders ? 2 : Infinity;
  };
  const first = Math.min(start, n - 1);
  const table = timesteps.slice(first).map((timestep, known): SamplerCall => {
    const i = first + known;
    const used = Math.min(solver.order, known + 1, most(i));
    const from = levels.slice(i - used + 1, i + 1).reverse();
    const value = solver.plus ? { denoised: 1 } : { epsilon: 1 };
    return {
      timestep,
      ...levels[i],
      next: step(solver, levels[i + 1], from),
      memory: pushed(
        value,
        Math.min(known, solver.order - 1),
        solver.order - 1,
      ),
    };
  });
  return { table, final: levels[n] };
}

/**
 * One step of order `from.length` (DPM-Solver eqs. 3.7, 3.11 and 3.13;
 * DPM-Solver++ algorithm 2 and appendix B).
 *
 * @param to The level it ends at.
 * @param from The levels of this and the earlier calls, newest first.
 */
function step(
  { plus, sde, type }: Solver,
  to: Level,
  from: readonly Level[],
): Combination {
  const [s0, s1, s2] = from;
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

  // Weights of the newest value and of the earlier ones, newest first.
  let values = [w0];
  if (from.length === 2) {
    const r0 = (lambda(s0) - lambda(s1)) / h;
    const d1 = (type === "midpoint" ? 0.5 * w0 : w1) / r0;
    values = [w0 + d1, -d1];
  } else if (from.length === 3) {
    const r0 = (lambda(s0) - lambda(s1)) / h;
    const r1 = (lambda(s1) - lambda(s2)) / h;
    // D1 = (1 + g)·D10 − g·D11 and D2 = (D10 − D11)/(r0 + r1), g = r0/(r0+r1).
    const g = r0 / (r0 + r1);
    const d10 = w1 * (1 + g) + w2 / (r0 + r1);
    const d11 = -w1 * g - w2 / (r0 + r1);
    values = [w0 + d10 / r0, d11 / r1 - d10 / r0, -d11 / r1];
  }
  const [current, ...memory] = values;
  return {
    latent: plus
      ? to.sigma / s0.sigma * (sde ? Math.exp(-h) : 1)
      : to.alpha / s0.alpha,
    [plus ? "denoised" : "epsilon"]: current,
    memory,
    noise: sde
      ? to.sigma * Math.sqrt(plus ? -Math.expm1(-2 * h) : Math.expm1(2 * h))
      : 0,
  };
}
