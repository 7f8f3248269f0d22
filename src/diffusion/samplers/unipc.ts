/**
 * UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that redoes
 * the last step once its end has been evaluated.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import { lambda, solverLevels } from "./levels.ts";
import {
  type Combination,
  type Course,
  type Level,
  type PlanRequest,
  remembered,
  type SamplerCall,
  weighted,
} from "./table.ts";

/**
 * UniPC; the memory holds the corrected latent, then earlier values, newest
 * first.
 *
 * @param request The request; the config says which variant.
 */
export function unipc(request: PlanRequest): Course {
  const { config, start } = request;
  const what = `plan ${request.name}`;
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
  const uncorrected = config.disable_corrector ?? [];
  const { timesteps, levels } = solverLevels(
    request,
    request.schedule.alphasCumprod.length,
  );
  const n = timesteps.length;
  const first = Math.min(start, n - 1);
  const usedAt = (i: number) =>
    Math.min(
      order,
      i - first + 1,
      config.lower_order_final ?? true ? n - i : Infinity,
      // The multistep formula has no limit at zero noise.
      levels[i + 1].sigma === 0 ? 1 : Infinity,
    );
  const value: Combination = plus ? { denoised: 1 } : { epsilon: 1 };
  const earlier = (weights: readonly number[]) => ({ memory: [0, ...weights] });

  const table = timesteps.slice(first).map((timestep, known): SamplerCall => {
    const i = first + known;
    const from = (end: number, used: number) =>
      levels.slice(end - used, end).reverse();
    let corrected: Combination = { latent: 1 };
    if (known > 0 && !uncorrected.includes(i - 1)) {
      const by = update(plus, type, levels[i], from(i, usedAt(i - 1)), true);
      corrected = weighted(
        [by.sample, remembered(0)],
        [1, earlier(by.values)],
        [by.end, value],
      );
    }
    const by = update(plus, type, levels[i + 1], from(i + 1, usedAt(i)), false);
    const [current, ...history] = by.values;
    return {
      timestep,
      ...levels[i],
      next: weighted(
        [by.sample, corrected],
        [current, value],
        [1, earlier(history)],
      ),
      memory: [
        corrected,
        value,
        ...Array.from(
          { length: Math.min(order - 1, known) },
          (_, k) => remembered(1 + k),
        ),
      ],
    };
  });
  return { table, final: levels[n] };
}

/**
 * One UniP (or UniC, with the value at the end) update of order `from.length`
 * (Zhao et al. 2023, eq. 3 and algorithms 1 and 2).
 *
 * @param from Levels of the known values, newest first.
 * @returns Weights of the sample, of the values newest first, and of the value
 * at the end of the step (0 for the predictor).
 */
function update(
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
