/**
 * Pseudo numerical methods (Liu et al. 2022): a Runge–Kutta warm-up, then
 * linear multistep on the model's outputs.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import { inside, spaced, vp } from "./levels.ts";
import {
  type Combination,
  type Course,
  type PlanRequest,
  pushed,
  remembered,
  type SamplerCall,
  weighted,
} from "./table.ts";

/** Weights of the outputs by how many earlier ones there are, newest first. */
const ADAMS_BASHFORTH = [
  [1],
  [3 / 2, -1 / 2],
  [23 / 12, -16 / 12, 5 / 12],
  [55 / 24, -59 / 24, 37 / 24, -9 / 24],
];

/** The forward process as PNDM uses it. */
interface Transfer {
  /** A row's level, and the output its call makes. */
  at(t: number): Pick<SamplerCall, "timestep" | "alpha" | "sigma"> & {
    readonly output: Combination;
  };
  /** Liu et al. 2022, eq. 9: moves a latent from t to p along an output. */
  move(
    t: number,
    p: number,
    latent: Combination,
    output: Combination,
  ): Combination;
  /** ᾱ, also before timestep 0. */
  bar(t: number): number;
}

function transfer(request: PlanRequest): Transfer {
  const { schedule: { alphasCumprod: bars }, config } = request;
  const last = config.set_alpha_to_one ?? false ? 1 : bars[0];
  const bar = (t: number) => t < 0 ? last : bars[t];
  const velocity = config.prediction_type === "v_prediction";
  return {
    bar,
    at(t) {
      const level = vp(bar(t));
      const output = velocity
        ? { epsilon: level.alpha, denoised: -level.sigma }
        : { epsilon: 1 };
      return { timestep: t, ...level, output };
    },
    move(t, p, latent, output) {
      inside(request, [t]);
      const [a, b] = [bar(t), bar(p)];
      const k = (b - a) / (a * Math.sqrt(1 - b) + Math.sqrt(a * (1 - a) * b));
      // Velocities are summed first and turned into ε at t afterwards.
      const epsilon = velocity
        ? weighted([Math.sqrt(a), output], [Math.sqrt(1 - a), latent])
        : output;
      return weighted([Math.sqrt(b / a), latent], [-k, epsilon]);
    },
  };
}

/**
 * The warm-up: three Runge–Kutta steps of four calls over the four noisiest
 * timesteps (Liu et al. 2022, eq. 13). The memory between steps holds one
 * output per step done, newest first.
 */
function rungeKutta(
  { at, move }: Transfer,
  timesteps: readonly number[],
  half: number,
): SamplerCall[] {
  const points = timesteps.slice(0, 4).reverse().flatMap((t) => [t, t + half]);
  const calls = points.slice(0, -1).flatMap((t) => [t, t]).slice(1, -1)
    .reverse();
  // Inside a step: the latent it began with, then its outputs, newest first.
  const start = remembered(0);
  return [0, 1, 2].flatMap((done) => {
    const [t1, t2, t3, t4] = calls.slice(4 * done, 4 * done + 4);
    const row = (
      t: number,
      next: (output: Combination) => Combination,
      memory: (output: Combination) => Combination[],
    ): SamplerCall => {
      const { output, ...level } = at(t);
      return { ...level, next: next(output), memory: memory(output) };
    };
    const older = (from: number, n: number) =>
      Array.from({ length: n }, (_, i) => remembered(from + i));
    return [
      row(
        t1,
        (k1) => move(t1, t1 - half, { latent: 1 }, k1),
        (k1) => [{ latent: 1 }, k1, ...older(0, done)],
      ),
      row(
        t2,
        (k2) => move(t1, t2, start, k2),
        (k2) => [start, k2, ...older(1, 1 + done)],
      ),
      row(
        t3,
        (k3) => move(t1, t3 - half, start, k3),
        (k3) => [start, k3, ...older(1, 2 + done)],
      ),
      row(
        t4,
        (k4) =>
          move(
            t1,
            t4,
            start,
            weighted([1 / 6, k4], [1 / 3, remembered(1)], [
              1 / 3,
              remembered(2),
            ], [1 / 6, remembered(3)]),
          ),
        // Only k1 is an output at the step's own timestep.
        () => older(3, 1 + done),
      ),
    ];
  });
}

/**
 * Linear multistep (Liu et al. 2022, eq. 12).
 *
 * @param known Outputs in the memory before the first call.
 */
function multistep(
  { at, move }: Transfer,
  timesteps: readonly number[],
  stride: number,
  known: number,
): SamplerCall[] {
  return timesteps.map((t, i) => {
    const { output, ...level } = at(t);
    const before = Math.min(known + i, 3);
    const [own, ...weights] = ADAMS_BASHFORTH[before];
    const sum = weighted([own, output], [1, { memory: weights }]);
    return {
      ...level,
      next: move(t, t - stride, { latent: 1 }, sum),
      memory: pushed(output, before, 3),
    };
  });
}

/**
 * The start without a warm-up: the first step, then the same step again with
 * the mean of the outputs at both of its ends.
 */
function trapezoid(
  { at, move }: Transfer,
  t: number,
  next: number | undefined,
  stride: number,
): SamplerCall[] {
  const { output, ...level } = at(t);
  const first = {
    ...level,
    next: move(t, t - stride, { latent: 1 }, output),
    memory: [{ latent: 1 }, output],
  };
  if (next === undefined) return [first];
  const end = at(next);
  const mean = weighted([1 / 2, end.output], [1 / 2, remembered(1)]);
  return [first, {
    timestep: end.timestep,
    alpha: end.alpha,
    sigma: end.sigma,
    next: move(next + stride, next, remembered(0), mean),
    memory: [remembered(1)],
  }];
}

/**
 * PNDM, with its warm-up or (`skip_prk_steps`, Stable Diffusion) without.
 *
 * @param request The request.
 */
export function pndm(request: PlanRequest): Course {
  const { schedule: { alphasCumprod }, steps, start, config } = request;
  if (config.prediction_type === "sample") {
    throw cannot(
      "plan pndm",
      "prediction_type epsilon or v_prediction",
      "sample",
    );
  }
  const stride = Math.floor(alphasCumprod.length / steps);
  const timesteps = spaced(request, "leading", true).slice(start);
  const process = transfer(request);
  const final = vp(process.bar(timesteps.at(-1)! - stride));
  if (config.skip_prk_steps) {
    const [first, ...rest] = timesteps;
    return {
      table: [
        ...trapezoid(process, first, rest[0], stride),
        ...multistep(process, rest, stride, 1),
      ],
      final,
    };
  }
  if (timesteps.length < 4) {
    throw cannot(
      "plan pndm",
      "at least 4 steps, or skip_prk_steps (its warm-up is 4th order)",
      timesteps.length,
    );
  }
  return {
    table: [
      ...rungeKutta(process, timesteps, Math.floor(stride / 2)),
      ...multistep(process, timesteps.slice(3), stride, 3),
    ],
    final,
  };
}
