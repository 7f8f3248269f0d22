/**
 * The forward process, every sampler's trajectory, and whole pipelines.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../src/core/errors.ts";
import {
  addNoise,
  parseSchedulerConfig,
  schedule,
  velocity,
} from "../../src/diffusion/schedule.ts";
import {
  denoiser,
  plan,
  type Predict,
  samplerFromConfig,
  type SamplerPlan,
  sampleSteps,
} from "../../src/diffusion/samplers.ts";
import {
  type Check,
  compare,
  type Context,
  type Line,
  line,
  maximumError,
  notCovered,
  RELATIVE,
  relative,
} from "./check.ts";
import { type Golden, item, toNhwc, type Values } from "./fixture.ts";

/** One run of a scheduler, as the fixtures describe it. */
interface Run {
  readonly class: string;
  readonly steps: number;
  readonly diffusers?: string;
  readonly init_noise_sigma?: number;
  readonly timesteps: readonly number[];
  readonly config: Readonly<Record<string, unknown>>;
}

interface Runs {
  readonly model_output: string;
  readonly base_config: Readonly<Record<string, unknown>>;
  readonly runs: Readonly<Record<string, Run>>;
}

/** The elementwise model a file describes: `m = a*x + b*t/c`. */
function elementwise(description: string): Predict {
  const match = description.match(
    /m\s*=\s*([\d.e-]+)\s*\*[^+]*\+\s*([\d.e-]+)\s*\*\s*t\s*\/\s*([\d.e-]+)/,
  );
  if (!match) {
    throw cannot("verify a scheduler", "m = a*x + b*t/c", description);
  }
  const [a, b, c] = match.slice(1).map(Number);
  return (x, t) => tf.tidy(() => x.mul(a).add(b * t / c) as tf.Tensor4D);
}

/** Looks a tensor up in the files of a folder, nearest file first. */
function lookup(
  files: readonly Golden[],
  name: string,
): Golden | undefined {
  return files.find((file) => file.has(name));
}

/** Rounding of one sampler step relative to the latent's deviation. */
const STEP = RELATIVE;

async function* schedulerRuns(context: Context): AsyncGenerator<Line> {
  const names = await context.fixture.list("schedulers");
  const golden = new Map<string, Golden>();
  for (const name of names) {
    if (!name.endsWith(".safetensors")) continue;
    golden.set(
      name.replace(".safetensors", ""),
      await context.fixture.golden(`schedulers/${name}`),
    );
  }
  for (const name of names) {
    if (!name.endsWith(".json")) continue;
    const part = name.replace(".json", "");
    const json = await context.fixture.json<Runs>(`schedulers/${name}`);
    if (!json.runs) continue;
    const own = golden.get(part);
    const files = [...(own ? [own] : []), ...golden.values()];
    const start = own?.has("x_T")
      ? own.values("x_T")
      : (lookup(files, `${part}.x_T`) ?? lookup(files, "x_T"))?.values(
        lookup(files, `${part}.x_T`) ? `${part}.x_T` : "x_T",
      );
    const model = elementwise(json.model_output);
    for (const [run, description] of Object.entries(json.runs)) {
      const file = lookup(files, `${run}.trajectory`);
      if (!file || !start) {
        yield notCovered(`schedulers/${run}`, "no trajectory in the folder");
        continue;
      }
      try {
        yield* oneRun(run, description, file, start, model);
      } catch (error) {
        yield {
          name: `schedulers/${run}`,
          status: "FAIL",
          reason: (error as Error).message,
        };
      }
    }
  }
  for (const file of golden.values()) yield* forwardProcess(context, file);
}

async function* oneRun(
  run: string,
  description: Run,
  file: Golden,
  start: Values,
  model: Predict,
): AsyncGenerator<Line> {
  const config = parseSchedulerConfig({
    ...description.config,
    _class_name: description.class,
  });
  const forward = schedule(config);
  const sampler = samplerFromConfig(config);
  const options = {
    ...(description.diffusers
      ? {
        version: description.diffusers.startsWith("main")
          ? "main" as const
          : "0.19.3" as const,
      }
      : {}),
  };
  const course = plan(sampler, forward, description.steps, options);
  const off = maximumError(course.timesteps, description.timesteps);
  yield line(`schedulers/${run}/timesteps`, off, {
    value: 1e-4,
    source: "stored as float32",
  });
  if (file.has(`${run}.timesteps`)) file.values(`${run}.timesteps`);
  if (description.init_noise_sigma !== undefined) {
    yield line(
      `schedulers/${run}/init_noise_sigma`,
      Math.abs(course.initNoiseSigma - description.init_noise_sigma),
      {
        value: 2e-7 * description.init_noise_sigma,
        source: "one rounding to float32",
      },
    );
  }
  if (file.has(`${run}.sigmas`)) {
    yield sigmaLine(
      `schedulers/${run}/sigmas`,
      file.values(`${run}.sigmas`).data,
      course,
      forward.alphasCumprod,
    );
  }
  const trajectory = file.values(`${run}.trajectory`);
  const drawn = file.has(`${run}.noise`)
    ? file.values(`${run}.noise`)
    : undefined;
  const reported = file.has(`${run}.denoised`)
    ? file.values(`${run}.denoised`)
    : undefined;
  const noise = toNhwc(start);
  let worst: Step | undefined;
  let worstX0: Step | undefined;
  const first = item(trajectory, 0);
  const initial = tf.tidy(() => noise.mul(course.initNoiseSigma));
  yield await compare(
    `schedulers/${run}/x_T`,
    initial,
    first,
    relative(first.data, STEP),
    "nhwc",
  );
  let calls = 0;
  for await (
    const step of sampleSteps(
      course,
      denoiser(model, course.prediction),
      noise,
      {
        ...(drawn ? { noise: (i: number) => toNhwc(item(drawn, i)) } : {}),
      },
    )
  ) {
    calls++;
    worst = await worse(worst, step.latent, item(trajectory, step.index + 1));
    if (reported) {
      worstX0 = await worse(worstX0, step.denoised, item(reported, step.index));
    }
  }
  noise.dispose();
  const stepLine = (name: string, found: Step): Line => ({
    name,
    status: found.error <= found.tolerance ? "ok" : "FAIL",
    error: found.error,
    tolerance: found.tolerance,
    reason: found.source,
  });
  if (calls !== trajectory.shape[0] - 1) {
    yield {
      name: `schedulers/${run}/trajectory`,
      status: "FAIL",
      reason: `expected ${trajectory.shape[0] - 1} model calls, got ${calls}`,
    };
  } else if (worst) yield stepLine(`schedulers/${run}/trajectory`, worst);
  if (worstX0) yield stepLine(`schedulers/${run}/denoised`, worstX0);
}

/**
 * Sigmas of the calls; or (UniPC of 0.19.3) of all training timesteps; or
 * (DPM-Solver++ of 0.19.3 with Karras sigmas) ascending and as they were before
 * they were rounded to timesteps, which is where the solver then works.
 */
function sigmaLine(
  name: string,
  expected: Float32Array,
  course: SamplerPlan,
  alphasCumprod: Float64Array,
): Line {
  const { sigmas, timesteps } = course;
  const all = Array.from(alphasCumprod, (a) => Math.sqrt((1 - a) / a));
  const ascending = expected.length > 1 && expected[0] < expected[1];
  if (ascending && expected.length === timesteps.length) {
    const error = Math.max(
      ...[...expected].reverse().map((sigma, i) => {
        // Where the sigma lies between its two neighbours, in log.
        const above = all.findIndex((s) => s >= sigma * (1 - 1e-6));
        const low = Math.max(0, above - 1);
        const width = Math.log(all[above]) - Math.log(all[low]);
        const at = width > 0
          ? low + (Math.log(sigma) - Math.log(all[low])) / width
          : above;
        return Math.abs(Math.min(at, above) - timesteps[i]);
      }),
    );
    return line(name, error, {
      value: 0.501,
      source: "in timesteps; the folder's are before rounding to a timestep",
    });
  }
  const actual = expected.length === all.length ? all : sigmas;
  // A file may leave out the final 0 (or keep it).
  if (Math.abs(actual.length - expected.length) > 1) {
    return {
      name,
      status: "FAIL",
      reason: `expected ${expected.length} sigmas, got ${actual.length}`,
    };
  }
  let error = 0;
  for (let i = 0; i < Math.min(actual.length, expected.length); i++) {
    const scale = Math.max(Math.abs(expected[i]), 1e-3);
    error = Math.max(error, Math.abs(actual[i] - expected[i]) / scale);
  }
  return line(name, error, {
    value: 3e-6,
    source: "relative; float32 of √((1 − ᾱ)/ᾱ)",
  });
}

interface Step {
  readonly error: number;
  readonly tolerance: number;
  readonly source: string;
}

/** The step that uses most of its tolerance. */
async function worse(
  before: Step | undefined,
  actual: tf.Tensor4D,
  expected: Values,
): Promise<Step> {
  const moved = tf.transpose(actual, [0, 3, 1, 2]);
  const data = await moved.data();
  moved.dispose();
  const { value, source } = relative(expected.data, STEP);
  const error = maximumError(data, expected.data);
  const now = { error, tolerance: value, source };
  if (!before) return now;
  return !(error / value <= before.error / before.tolerance) ? now : before;
}

/** Betas, ᾱ, noising and velocity of `NAME.add_noise` and friends. */
async function* forwardProcess(
  context: Context,
  g: Golden,
): AsyncGenerator<Line> {
  for (const name of g.names) {
    const match = name.match(/^(.*)\.add_noise$/);
    if (!match) continue;
    const own = match[1];
    const base = (await baseConfig(context, g)) ?? {};
    const s = schedule(parseSchedulerConfig(base));
    const has = (part: string) => g.has(`${own}.${part}`);
    for (
      const [part, values] of [
        ["betas", s.betas],
        ["alphas_cumprod", s.alphasCumprod],
      ] as const
    ) {
      if (!has(part)) continue;
      const expected = g.values(`${own}.${part}`).data;
      yield line(`schedulers/${own}/${part}`, maximumError(values, expected), {
        value: 1.2e-7,
        source: "two roundings to float32 of numbers below 1",
      });
    }
    const timesteps = g.integers(`${own}.timesteps`);
    for (
      const [part, make] of [["add_noise", addNoise], [
        "velocity",
        velocity,
      ]] as const
    ) {
      if (!has(part)) continue;
      const expected = g.values(`${own}.${part}`);
      const actual = tf.tidy(() =>
        make(
          s,
          g.tensor<tf.Tensor4D>(`${own}.x0`),
          g.tensor<tf.Tensor4D>(`${own}.noise`),
          timesteps,
        )
      );
      yield await compare(
        `schedulers/${own}/${part}`,
        actual,
        expected,
        relative(expected.data, STEP),
      );
    }
  }
}

async function baseConfig(
  context: Context,
  g: Golden,
): Promise<Readonly<Record<string, unknown>> | undefined> {
  const json = g.path.replace(".safetensors", ".json");
  if (!await context.fixture.has(json)) return undefined;
  return (await context.fixture.json<Runs>(json)).base_config;
}

const schedulers: Check = {
  id: "schedulers",
  files: ["schedulers/schedulers.json"],
  run: schedulerRuns,
};

/** Every check of sampling without adapters. */
export const SAMPLING_CHECKS: readonly Check[] = [schedulers];
