import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { openSafetensors, toFloat32 } from "../../src/io/safetensors.ts";
import {
  addNoise,
  parseSchedulerConfig,
  type Schedule,
  schedule,
  type SchedulerConfig,
  trainingTarget,
} from "../../src/diffusion/schedule.ts";
import {
  type Combination,
  denoiser,
  plan,
  type PlanOptions,
  type Predict,
  sample as sampleWith,
  type SampleOptions as RunOptions,
  samplerFromConfig,
  type SamplerName,
  type SamplerPlan,
  SAMPLERS,
  type SamplerState,
  sampleSteps as stepsWith,
} from "../../src/diffusion/samplers.ts";
import {
  close,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";

const SD: SchedulerConfig = {
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  clip_sample: false,
  set_alpha_to_one: false,
  skip_prk_steps: true,
  steps_offset: 1,
};

type SampleOptions = RunOptions & PlanOptions & { readonly steps: number };

/** Plans and samples step by step. */
function sampleSteps(
  name: SamplerName,
  s: Schedule,
  predict: Predict,
  noise: tf.Tensor4D,
  options: SampleOptions,
) {
  const course = plan(name, s, options.steps, options);
  return stepsWith(
    course,
    denoiser(predict, course.prediction),
    noise,
    options,
  );
}

/** Plans and samples to the end. */
async function sample(
  name: SamplerName,
  s: Schedule,
  predict: Predict,
  noise: tf.Tensor4D,
  options: SampleOptions,
): Promise<tf.Tensor4D> {
  const course = plan(name, s, options.steps, options);
  const denoise = denoiser(predict, course.prediction);
  return await sampleWith(course, denoise, noise, options);
}

// -------------------------------------------------- what a network predicts

for (const prediction of ["epsilon", "v_prediction", "sample"] as const) {
  forEachBackend(
    `${prediction}: a perfect output is denoised to x0`,
    async (backend) => {
      const s = schedule({ ...SD, prediction_type: prediction });
      await noLeak(async () => {
        const x0 = tf.tensor4d([1, -2, 0.5, 3], [1, 2, 1, 2]);
        const noise = tf.tensor4d([0.3, 1, -1, 2], [1, 2, 1, 2]);
        for (const timestep of [0, 500, 999]) {
          const bar = s.alphasCumprod[timestep];
          const [alpha, sigma] = [Math.sqrt(bar), Math.sqrt(1 - bar)];
          const x = addNoise(s, x0, noise, [timestep]);
          // The same latent as k-diffusion has it: x0 + σ·ε.
          const exploded = x.div(alpha) as tf.Tensor4D;
          for (
            const [latent, level] of [
              [x, { alpha, sigma, timestep }],
              [exploded, { alpha: 1, sigma: sigma / alpha, timestep }],
            ] as const
          ) {
            const seen: number[] = [];
            const denoise = denoiser((input) => {
              seen.push(...input.dataSync());
              return trainingTarget(s, x0, noise, [timestep]);
            }, prediction);
            const clean = await denoise(latent, level, 0);
            // x0 from ε divides by √ᾱ = 0.07 at t = 999.
            close(
              await clean.x0.data(),
              await x0.data(),
              tolerance(backend, 2e-5),
            );
            // The network sees unit variance either way.
            close(seen, await x.data(), tolerance(backend, 1e-6));
            clean.x0.dispose();
          }
          tf.dispose([x, exploded]);
        }
        tf.dispose([x0, noise]);
      });
    },
    ["cpu", "wasm"],
  );
}

// ------------------------------------------------- golden trajectories

interface Run {
  class: string;
  steps: number;
  init_noise_sigma?: number;
  timesteps: number[];
  config: SchedulerConfig;
}

/** An NCHW fixture, as NHWC values. */
interface Values {
  shape: number[];
  data: Float32Array;
}

async function readGolden() {
  const file = await openSafetensors(
    fixturePath("schedulers/schedulers.safetensors"),
  );
  const tensors = new Map<string, Values>();
  for (const name of file.entries.keys()) {
    const raw = await file.read(name);
    if (raw.dtype !== "F32") continue;
    tensors.set(name, { shape: raw.shape, data: toFloat32(raw) });
  }
  file.close();
  const runs: [string, string, Run][] = [];
  for (const part of ["schedulers", "more", "lcm"]) {
    const text = await Deno.readTextFile(
      fixturePath(`schedulers/${part}.json`),
    );
    const { runs: found } = parseSchedulerConfig(text) as unknown as {
      runs: Record<string, Run>;
    };
    for (const [name, run] of Object.entries(found)) {
      runs.push([part, name, run]);
    }
  }
  return { tensors, runs };
}

const golden = await readGolden();

function nhwc({ shape, data }: Values): tf.Tensor4D {
  return tf.tidy(() =>
    tf.tensor4d(data, shape as [number, number, number, number])
      .transpose([0, 2, 3, 1]) as tf.Tensor4D
  );
}

function row(x: tf.Tensor4D, i: number): tf.Tensor4D {
  return x.slice([i, 0, 0, 0], [1, -1, -1, -1]);
}

/** The fixtures' model. */
const model: Predict = (x, t) =>
  tf.tidy(() => x.mul(0.3).add(0.01 * t / 1000) as tf.Tensor4D);

function maximumError(a: Float32Array, b: Float32Array): number {
  return a.reduce((worst, v, i) => Math.max(worst, Math.abs(v - b[i])), 0);
}

function deviation(x: Float32Array): number {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  return Math.sqrt(
    x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length,
  );
}

assertEquals(golden.runs.length, 24, "runs in the fixtures");

for (const [part, name, run] of golden.runs) {
  const config = { ...run.config, _class_name: run.class };
  const s = schedule(config);
  const sampler = samplerFromConfig(config);

  Deno.test(`${name}: timesteps and sigmas equal diffusers'`, () => {
    const course = plan(sampler, s, run.steps);
    // Stored as float32.
    close(course.timesteps, run.timesteps, 1e-4, "timesteps");
    assertEquals(course.calls, run.timesteps.length);
    if (part !== "lcm") {
      assertEquals(Math.fround(course.initNoiseSigma), run.init_noise_sigma);
    }
    const sigmas = golden.tensors.get(`${name}.sigmas`);
    if (sigmas) {
      course.sigmas.forEach((sigma, i) =>
        close(sigma, sigmas.data[i], 1e-7 * sigma, `sigma ${i}`)
      );
    }
  });

  forEachBackend(`${name}: every step equals diffusers'`, async (backend) => {
    await noLeak(async () => {
      const x = nhwc(golden.tensors.get(`${part}.x_T`)!);
      const trajectory = nhwc(golden.tensors.get(`${name}.trajectory`)!);
      const drawn = golden.tensors.get(`${name}.noise`);
      const noise = drawn && nhwc(drawn);
      const reported = golden.tensors.get(`${name}.denoised`);
      const denoised = reported && nhwc(reported);
      let calls = 0;
      for await (
        const step of sampleSteps(sampler, s, model, x, {
          steps: run.steps,
          ...(noise ? { noise: (i) => row(noise, i) } : {}),
        })
      ) {
        const wanted = row(trajectory, step.index + 1);
        const expected = await wanted.data<"float32">();
        // Both sides round every operation to 6e-8 of values up to 4 standard
        // deviations; 50 calls of ~5 operations were seen to reach 3e-6.
        const limit = tolerance(backend, 1e-5);
        const actual = await step.latent.data<"float32">();
        const error = maximumError(actual, expected) / deviation(expected);
        assert(error <= limit, `step ${step.index}: ${error} of the deviation`);
        if (denoised) {
          const wantedX0 = row(denoised, step.index);
          // Up to 30 in the first step, where x0 = (x − σε)/α with α = 0.07.
          close(
            await step.denoised.data(),
            await wantedX0.data(),
            tolerance(backend, 2e-5),
            "denoised",
          );
          wantedX0.dispose();
        }
        wanted.dispose();
        calls++;
      }
      assertEquals(calls, run.timesteps.length);
      tf.dispose([x, trajectory, noise ?? [], denoised ?? []]);
    });
  }, ["wasm", "webgpu"]);
}

// ------------------------------------- exact solution for Gaussian data

const MEAN = 0.4;
const DEVIATION = 0.5;

/** The optimal model for x0 ~ N(MEAN, DEVIATION²), with its plan's levels. */
function gaussianModel(course: SamplerPlan): Predict {
  return (x, _t, index) =>
    tf.tidy(() => {
      const ratio = course.sigmas[index];
      const a = 1 / Math.sqrt(1 + ratio ** 2);
      const s = ratio * a;
      const gain = a * DEVIATION ** 2 / (a * a * DEVIATION ** 2 + s * s);
      const x0 = x.sub(a * MEAN).mul(gain).add(MEAN);
      const epsilon = x.sub(x0.mul(a)).div(s);
      switch (course.prediction) {
        case "epsilon":
          return epsilon as tf.Tensor4D;
        case "sample":
          return x0 as tf.Tensor4D;
        case "v_prediction":
          return epsilon.mul(a).sub(x0.mul(s)) as tf.Tensor4D;
      }
    });
}

const START = [-1.5, -0.3, 0.4, 1.2];

/**
 * How far a sampler ends from the probability-flow ODE's exact solution, in
 * which z = (x − αμ)/√(α²c² + σ²) is constant. Where the last noise level is 0
 * the last step is one jump to x0 for every solver, so that jump is exact too.
 */
async function gaussianError(
  name: SamplerName,
  config: SchedulerConfig,
  steps: number,
  options: PlanOptions = {},
): Promise<number> {
  const s = schedule({ ...SD, steps_offset: 0, ...config });
  const course = plan(name, s, steps, options);
  const noise = tf.tensor4d(START, [1, 2, 2, 1]);
  const out = await sample(name, s, gaussianModel(course), noise, {
    ...options,
    steps,
  });
  const actual = await out.data();
  tf.dispose([noise, out]);
  const first = course.table[0];
  const spread = (a: number, s: number) => Math.hypot(a * DEVIATION, s);
  const jump = course.sigmas[course.calls] === 0;
  const ratio = course.sigmas[jump ? course.calls - 1 : course.calls];
  const a = 1 / Math.sqrt(1 + ratio ** 2);
  const exact = START.map((n) => {
    const x = n * course.initNoiseSigma;
    const z = (x - first.alpha * MEAN) / spread(first.alpha, first.sigma);
    if (!jump) {
      // In the sampler's own scale at the end.
      const scale = first.alpha === 1 ? 1 : a;
      return scale * MEAN + z * spread(scale, scale * ratio);
    }
    return MEAN + DEVIATION ** 2 * z / spread(1, ratio);
  });
  return Math.max(...exact.map((v, i) => Math.abs(v - actual[i])));
}

/** Even steps in log SNR, where the solvers have their textbook orders. */
const EVEN: SchedulerConfig = {
  use_exponential_sigmas: true,
  final_sigmas_type: "sigma_min",
};

// Orders seen between 20 and 40 steps; a wrong coefficient gives 1 or less.
const ORDERS: [SamplerName, SchedulerConfig, PlanOptions, number][] = [
  ["ddim", {}, {}, 0.8],
  ["ddim", { prediction_type: "v_prediction" }, {}, 0.8],
  ["ddim", { prediction_type: "sample" }, {}, 0.8],
  ["euler", {}, {}, 0.8],
  ["euler_karras", {}, {}, 0.8],
  ["dpmpp_2m", { ...EVEN, solver_order: 1 }, {}, 0.8],
  ["dpmpp_2m", EVEN, {}, 1.7],
  ["dpmpp_2m", { ...EVEN, prediction_type: "v_prediction" }, {}, 1.7],
  ["dpmpp_2m", { ...EVEN, prediction_type: "sample" }, {}, 1.7],
  ["dpmpp_2m", { ...EVEN, solver_type: "heun" }, {}, 1.7],
  ["dpmpp_2m", { ...EVEN, algorithm_type: "dpmsolver" }, {}, 1.7],
  [
    "dpmpp_2m",
    { ...EVEN, algorithm_type: "dpmsolver", solver_type: "heun" },
    {},
    1.7,
  ],
  ["dpmpp_2m", { ...EVEN, solver_order: 3 }, {}, 1.7],
  [
    "dpmpp_2m",
    { use_lu_lambdas: true, final_sigmas_type: "sigma_min" },
    {},
    1.7,
  ],
  ["dpmpp_2m_karras", {}, { version: "main" }, 1.7],
  ["unipc", EVEN, {}, 2.2],
  ["unipc", { ...EVEN, solver_type: "bh1" }, {}, 2.2],
  ["unipc", { ...EVEN, predict_x0: false }, {}, 2.2],
  ["heun", { use_exponential_sigmas: true }, {}, 1.8],
  ["heun_karras", {}, {}, 1.8],
  ["heun_karras", { prediction_type: "sample" }, {}, 1.8],
  ["lms_karras", {}, { lmsOrder: 1 }, 0.8],
  ["lms_karras", {}, { lmsOrder: 2 }, 1.7],
];

for (const [name, config, options, order] of ORDERS) {
  Deno.test(
    `Gaussian data: ${name} ${JSON.stringify(config)} ${
      JSON.stringify(options)
    } has order ${Math.round(order)}`,
    async () => {
      await tf.setBackend("cpu");
      const coarse = await gaussianError(name, config, 20, options);
      const fine = await gaussianError(name, config, 40, options);
      const seen = Math.log2(coarse / fine);
      assert(coarse < 0.2, `error at 20 steps: ${coarse}`);
      assert(seen > order, `order ${seen}: ${coarse} → ${fine}`);
    },
  );
}

Deno.test("Gaussian data: the multistep methods beat one-step methods", async () => {
  await tf.setBackend("cpu");
  const ddim = await gaussianError("ddim", {}, 20);
  for (
    const [name, config] of [
      ["pndm", {}],
      ["pndm", { skip_prk_steps: false }],
    ] as [SamplerName, SchedulerConfig][]
  ) {
    const error = await gaussianError(name, config, 20);
    assert(error < ddim / 2, `${name}: ${error}, ddim: ${ddim}`);
  }
  const euler = await gaussianError("euler_karras", {}, 20);
  const lms = await gaussianError("lms_karras", {}, 20);
  assert(lms < euler / 5, `lms: ${lms}, euler: ${euler}`);
  const unipc3 = await gaussianError("unipc", { ...EVEN, solver_order: 3 }, 20);
  assert(unipc3 < 1e-4, `unipc of order 3: ${unipc3}`);
});

// --------------------------------- coefficients that must be exact

/** ∫ by Simpson's rule, fine enough for 1e-10. */
function integral(f: (x: number) => number, from: number, to: number): number {
  const n = 2000;
  const h = (to - from) / n;
  let sum = f(from) + f(to);
  for (let i = 1; i < n; i++) sum += (i % 2 ? 4 : 2) * f(from + i * h);
  return sum * h / 3;
}

/** Applies one row to values that are a given function of log SNR. */
function applied(
  course: SamplerPlan,
  index: number,
  latent: number,
  value: (lambda: number) => number,
): number {
  const { next } = course.table[index];
  const lambda = (i: number) => -Math.log(course.sigmas[i]);
  const own = (next.denoised ?? 0) + (next.epsilon ?? 0);
  let sum = (next.latent ?? 0) * latent + own * value(lambda(index));
  // UniPC remembers the corrected latent first.
  const values = course.name === "unipc"
    ? next.memory!.slice(1)
    : next.memory ?? [];
  values.forEach((w, k) => {
    sum += w * value(lambda(index - 1 - k));
  });
  return sum;
}

/** The exact step for x0 or ε as a function of log SNR. */
function exactStep(
  course: SamplerPlan,
  index: number,
  latent: number,
  value: (lambda: number) => number,
): number {
  const s = course.table[index];
  const ratio = course.sigmas[index + 1];
  const alpha = 1 / Math.sqrt(1 + ratio ** 2);
  const sigma = alpha * ratio;
  const from = Math.log(s.alpha / s.sigma);
  const to = -Math.log(ratio);
  return !s.next.epsilon
    ? sigma / s.sigma * latent +
      sigma * integral((l) => Math.exp(l) * value(l), from, to)
    : alpha / s.alpha * latent -
      alpha * integral((l) => Math.exp(-l) * value(l), from, to);
}

const EXACT: [SamplerName, SchedulerConfig, number][] = [
  ["dpmpp_2m", { solver_order: 1 }, 0],
  ["dpmpp_2m", { solver_type: "heun" }, 1],
  ["dpmpp_2m", { solver_order: 3 }, 1],
  ["dpmpp_2m", { algorithm_type: "dpmsolver", solver_type: "heun" }, 1],
  ["dpmpp_2m", { algorithm_type: "dpmsolver", solver_order: 3 }, 1],
  ["unipc", { solver_order: 3 }, 2],
  ["unipc", { solver_order: 3, solver_type: "bh1" }, 2],
  ["unipc", { solver_order: 4 }, 3],
  ["unipc", { solver_order: 3, predict_x0: false }, 2],
  ["unipc", { solver_order: 3, predict_x0: false, solver_type: "bh1" }, 2],
];

for (const [name, config, degree] of EXACT) {
  Deno.test(`${name} ${JSON.stringify(config)} is exact to degree ${degree}`, () => {
    for (const version of ["0.19.3", "main"] as const) {
      const final_sigmas_type = "sigma_min";
      const full = {
        ...SD,
        final_sigmas_type,
        // So that the predictor starts from the latent as it is.
        disable_corrector: Array.from({ length: 20 }, (_, i) => i),
        ...config,
      } as const;
      const course = plan(name, schedule(full), 20, {
        version,
      });
      for (const index of [5, 10, 15]) {
        for (let k = 0; k <= degree; k++) {
          const value = (l: number) => (l + 0.5) ** k;
          close(
            applied(course, index, 0.7, value),
            exactStep(course, index, 0.7, value),
            1e-7, // ᾱ's float32 rounding moves α² + σ² from 1 by 6e-8
            `degree ${k} at call ${index}, ${version}`,
          );
        }
      }
    }
  });
}

Deno.test("unipc's corrector is exact to its order", () => {
  for (const solver_type of ["bh1", "bh2"]) {
    for (const order of [2, 3]) {
      const course = plan(
        "unipc",
        schedule({ ...SD, solver_order: order, solver_type }),
        20,
      );
      const lambda = (i: number) => -Math.log(course.sigmas[i]);
      for (let k = 0; k <= order; k++) {
        const value = (l: number) => (l + 0.5) ** k;
        const [corrected] = course.table[8].memory;
        const [before, ...values] = corrected.memory!;
        let sum = before * 0.7 + corrected.denoised! * value(lambda(8));
        values.forEach((w, i) => sum += w * value(lambda(7 - i)));
        close(sum, exactStep(course, 7, 0.7, value), 1e-7, `degree ${k}`);
      }
    }
  }
});

Deno.test("lms integrates polynomials of its order in sigma exactly", () => {
  const course = plan("lms", schedule(SD), 12);
  for (const i of [0, 1, 2, 5]) {
    for (let k = 0; k <= Math.min(3, i); k++) {
      const { epsilon, memory } = course.table[i].next;
      const f = (s: number) => (s / 5 - 1) ** k;
      let sum = epsilon! * f(course.sigmas[i]);
      memory!.forEach((w, j) => sum += w * f(course.sigmas[i - 1 - j]));
      const exact = integral(f, course.sigmas[i], course.sigmas[i + 1]);
      close(sum, exact, 1e-8, `degree ${k} at call ${i}`);
    }
  }
});

// ------------------------------------------------ samplers that coincide

/** Runs a sampler on the fixtures' model with given noise. */
async function run(
  name: SamplerName,
  config: SchedulerConfig,
  options: SampleOptions,
): Promise<Float32Array> {
  const noise = tf.tensor4d(START, [1, 2, 2, 1]);
  const out = await sample(name, schedule({ ...SD, ...config }), model, noise, {
    noise: (i) =>
      tf.tensor4d(START.map((v, k) => Math.sin(7 * i + 3 * k) + v), [
        1,
        2,
        2,
        1,
      ]),
    ...options,
  });
  const values = await out.data<"float32">();
  tf.dispose([noise, out]);
  return values;
}

const TWINS: [
  string,
  [SamplerName, SchedulerConfig, PlanOptions],
  [SamplerName, SchedulerConfig, PlanOptions],
][] = [
  [
    "DDIM with eta 1 is DDPM",
    ["ddim", { set_alpha_to_one: true }, { eta: 1 }],
    ["ddpm", {}, {}],
  ],
  [
    "DPM-Solver++ of order 1 is DPM-Solver of order 1",
    ["dpmpp_2m", { solver_order: 1 }, {}],
    ["dpmpp_2m", { solver_order: 1, algorithm_type: "dpmsolver" }, {}],
  ],
  ["LMS of order 1 is Euler", ["lms", {}, { lmsOrder: 1 }], ["euler", {}, {}]],
  [
    "UniPC of order 1 without corrector is DPM-Solver++ of order 1",
    ["unipc", {
      solver_order: 1,
      disable_corrector: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    }, {}],
    ["dpmpp_2m", { solver_order: 1 }, {}],
  ],
  [
    "a config with use_karras_sigmas is the sampler with _karras",
    ["unipc", { use_karras_sigmas: true }, {}],
    ["unipc_karras", {}, {}],
  ],
  [
    "final_sigmas_type in a config means main",
    ["dpmpp_2m_karras", { final_sigmas_type: "zero" }, {}],
    ["dpmpp_2m_karras", {}, { version: "main" }],
  ],
  [
    "fixed_small_log is fixed_small",
    ["ddpm", { variance_type: "fixed_small_log" }, {}],
    ["ddpm", {}, {}],
  ],
];

for (const [name, a, b] of TWINS) {
  Deno.test(name, async () => {
    await tf.setBackend("cpu");
    const first = await run(a[0], a[1], { steps: 10, ...a[2] });
    const second = await run(b[0], b[1], { steps: 10, ...b[2] });
    // Two ways to round the same ten steps.
    close(first, second, 2e-5 * deviation(second));
  });
}

Deno.test("SDE-DPM-Solver++ of order 1 has the posterior's coefficients", () => {
  const course = plan(
    "dpmpp_2m",
    schedule({ ...SD, solver_order: 1, algorithm_type: "sde-dpmsolver++" }),
    10,
  );
  for (let i = 0; i < 10; i++) {
    const bar = 1 / (1 + course.sigmas[i] ** 2);
    const prev = 1 / (1 + course.sigmas[i + 1] ** 2);
    const beta = 1 - bar / prev;
    const { latent, denoised, noise } = course.table[i].next;
    // Ho et al. 2020, eq. 7.
    close(denoised!, Math.sqrt(prev) * beta / (1 - bar), 1e-6);
    close(latent!, Math.sqrt(bar / prev) * (1 - prev) / (1 - bar), 1e-6);
    close(noise!, Math.sqrt((1 - prev) / (1 - bar) * beta), 1e-6);
  }
});

// ---------------------------------------------------- random samplers

const RANDOM: [SamplerName, SchedulerConfig, PlanOptions][] = [
  ["ddpm", {}, {}],
  ["ddpm", { variance_type: "fixed_large", num_train_timesteps: 1000 }, {}],
  ["ddim", {}, { eta: 1 }],
  ["ddim", {}, { eta: 0.5 }],
  ["euler_a", {}, {}],
  ["euler_a", { prediction_type: "v_prediction" }, {}],
  ["dpmpp_2m", { algorithm_type: "sde-dpmsolver++", solver_order: 1 }, {}],
  ["dpmpp_2m", { algorithm_type: "sde-dpmsolver++" }, {}],
  ["dpmpp_2m", { algorithm_type: "sde-dpmsolver++", solver_type: "heun" }, {}],
  ["dpmpp_2m_karras", { algorithm_type: "sde-dpmsolver++" }, {
    version: "main",
  }],
  ["dpmpp_2m", { algorithm_type: "sde-dpmsolver", solver_order: 1 }, {}],
  ["dpmpp_2m", { algorithm_type: "sde-dpmsolver", solver_type: "heun" }, {}],
];

/**
 * The deviation a sampler ends with on Gaussian data, over the right one. With
 * the optimal model each latent is linear in all noise drawn so far, so its
 * weights are followed through the table in float64: no sampling error.
 */
function endingDeviation(
  name: SamplerName,
  config: SchedulerConfig,
  options: PlanOptions,
  steps: number,
): number {
  const s = schedule({ ...SD, steps_offset: 0, ...config });
  const course = plan(name, s, steps, options);
  let latent = [course.initNoiseSigma];
  let memory: number[][] = [];
  course.table.forEach((call, i) => {
    const { alpha, sigma, next } = call;
    const gain = alpha * DEVIATION ** 2 /
      (alpha ** 2 * DEVIATION ** 2 + sigma ** 2);
    const denoised = latent.map((w) => gain * w);
    const epsilon = latent.map((w, k) => (w - alpha * denoised[k]) / sigma);
    const before = latent;
    const sum = (of: Combination) =>
      before.map((w, k) =>
        (of.latent ?? 0) * w + (of.denoised ?? 0) * denoised[k] +
        (of.epsilon ?? 0) * epsilon[k] +
        (of.memory ?? []).reduce((s, m, j) => s + m * (memory[j][k] ?? 0), 0)
      );
    latent = [...sum(next), next.noise ?? 0];
    memory = call.memory.map(sum);
    assertEquals(latent.length, i + 2);
  });
  const ratio = course.sigmas[course.calls];
  const a = course.table[0].alpha === 1 ? 1 : 1 / Math.hypot(1, ratio);
  return Math.hypot(...latent) / Math.hypot(a * DEVIATION, a * ratio);
}

for (const [name, config, options] of RANDOM) {
  Deno.test(
    `Gaussian data: ${name} ${JSON.stringify(config)} ${
      JSON.stringify(options)
    } ends with the right deviation`,
    () => {
      const errors = [100, 200, 400].map((steps) =>
        Math.abs(endingDeviation(name, config, options, steps) - 1)
      );
      const shown = errors.join(", ");
      assert(errors[2] < 0.03, shown);
      // First order at least, where the error is not already nothing.
      assert(errors[2] < 0.002 || errors[2] < 0.6 * errors[1], shown);
      assert(errors[1] < 0.002 || errors[1] < 0.6 * errors[0], shown);
    },
  );
}

Deno.test("a learned variance scales DDPM's noise", async () => {
  await tf.setBackend("cpu");
  const noise = tf.tensor4d(START, [1, 2, 2, 1]);
  const at = async (variance_type: string, second: number) => {
    const s = schedule({ ...SD, variance_type });
    const out = await sample(
      "ddpm",
      s,
      (x) =>
        tf.tidy(() =>
          variance_type.startsWith("learned")
            ? tf.concat([x.mul(0.3), tf.fill(x.shape, second)], 3)
            : x.mul(0.3)
        ) as tf.Tensor4D,
      noise,
      { steps: 4, noise: () => noise.clone() },
    );
    const values = await out.data<"float32">();
    out.dispose();
    return values;
  };
  await noLeak(async () => {
    // The ends of the range are the two fixed variances.
    close(await at("learned_range", -1), await at("fixed_small", 0), 1e-4);
    close(await at("learned_range", 1), await at("fixed_large", 0), 1e-4);
    const zero = await at("learned", 0);
    const one = await at("learned", 1);
    assert(maximumError(zero, one) > 0.5, "the variance has no effect");
  });
  noise.dispose();
});

// --------------------------------------------------------------- clipping

forEachBackend(
  "clip_sample and thresholding bound the predicted x0",
  async (backend) => {
    const noise = tf.tensor4d(START.concat(START.map((v) => 9 * v)), [
      2,
      2,
      2,
      1,
    ]);
    const previews = async (name: SamplerName, config: SchedulerConfig) => {
      const seen: Float32Array[] = [];
      for await (
        const step of sampleSteps(
          name,
          schedule({ ...SD, ...config }),
          model,
          noise,
          { steps: 6, noise: () => tf.zerosLike(noise) },
        )
      ) seen.push(await step.denoised.data<"float32">());
      return seen;
    };
    await noLeak(async () => {
      for (const name of ["ddim", "ddpm", "heun"] as const) {
        const free = await previews(name, {});
        assert(free.some((x) => x.some((v) => Math.abs(v) > 2)), name);
        const clipped = await previews(name, {
          clip_sample: true,
          clip_sample_range: 2,
        });
        assert(clipped.every((x) => x.every((v) => Math.abs(v) <= 2)), name);
      }
      for (const name of ["ddim", "ddpm", "dpmpp_2m", "unipc"] as const) {
        const free = await previews(name, {});
        const bounded = await previews(name, {
          thresholding: true,
          dynamic_thresholding_ratio: 0.6,
          sample_max_value: 100,
        });
        // The first call sees the same latent with and without.
        const expected = [0, 1].flatMap((item) => {
          const x = [...free[0].slice(4 * item, 4 * item + 4)];
          const sorted = x.map(Math.abs).sort((a, b) => a - b);
          // Rank 0.6·3 = 1.8, interpolated as torch.quantile does.
          const bound = Math.max(1, 0.2 * sorted[1] + 0.8 * sorted[2]);
          return x.map((v) => Math.min(Math.max(v, -bound), bound) / bound);
        });
        close(bounded[0], expected, tolerance(backend, 2e-6), name);
      }
    });
    noise.dispose();
  },
  ["cpu", "wasm", "webgpu"],
);

Deno.test("a solver's ε follows the clipped x0; DDIM's only on request", async () => {
  await tf.setBackend("cpu");
  const noise = tf.fill([1, 1, 1, 1], 3) as tf.Tensor4D;
  const s = schedule({ ...SD, clip_sample: true, clip_sample_range: 0.5 });
  const [call] = plan("ddim", s, 10).table;
  for (const useClippedModelOutput of [false, true]) {
    const steps = sampleSteps("ddim", s, (x) => x.mul(0.3), noise, {
      steps: 10,
      useClippedModelOutput,
    });
    const first = (await steps.next()).value!;
    // x = 3, output 0.9: x0 is far above 0.5.
    const epsilon = useClippedModelOutput
      ? (3 - call.alpha * 0.5) / call.sigma
      : 0.9;
    const { denoised, epsilon: weight } = call.next;
    close(
      await first.latent.data(),
      [denoised! * 0.5 + weight! * epsilon],
      1e-5,
    );
    await steps.return();
  }
  noise.dispose();
});

// ------------------------------------------------- zero terminal SNR

Deno.test("zero terminal SNR starts from pure noise, and not with ε", async () => {
  await tf.setBackend("cpu");
  const config: SchedulerConfig = {
    rescale_betas_zero_snr: true,
    timestep_spacing: "trailing",
    prediction_type: "v_prediction",
  };
  for (const name of ["ddim", "ddpm", "euler", "heun", "dpmpp_2m", "unipc"]) {
    const values = await run(name as SamplerName, config, { steps: 8 });
    assert(values.every(Number.isFinite), `${name}: ${values}`);
  }
  assertEquals(
    plan("ddim", schedule({ ...SD, ...config }), 8).table[0].alpha,
    0,
  );
  assertThrows(
    () =>
      plan(
        "ddim",
        schedule({ ...SD, ...config, prediction_type: "epsilon" }),
        8,
      ),
    Error,
    "signal is zero",
  );
});

// ------------------------------------------------- timestep spacing

Deno.test("timesteps are spaced as Lin et al. 2023, table 2", () => {
  const at = (
    name: SamplerName,
    timestep_spacing: "linspace" | "leading" | "trailing",
    steps = 4,
  ) =>
    plan(name, schedule({ ...SD, timestep_spacing, steps_offset: 1 }), steps)
      .timesteps;
  assertEquals(at("ddim", "linspace"), [999, 666, 333, 0]);
  assertEquals(at("ddim", "leading"), [751, 501, 251, 1]);
  assertEquals(at("ddim", "trailing"), [999, 749, 499, 249]);
  assertEquals(at("dpmpp_2m", "linspace"), [999, 749, 500, 250]);
  assertEquals(at("dpmpp_2m", "leading"), [801, 601, 401, 201]);
  assertEquals(at("dpmpp_2m", "trailing"), [999, 749, 499, 249]);
  assertEquals(at("unipc", "linspace", 2), [999, 500]);
  assertEquals(at("euler", "linspace", 3), [999, 499.5, 0]);
  assertEquals(at("pndm", "leading", 3), [667, 334, 334, 1]);
  assertEquals(at("pndm", "leading", 1), [1]);
  assertEquals(at("heun", "trailing", 2), [999, 499, 499]);
  // 1000/61 steps of float64 end a hair above 0: no 62nd timestep.
  assertEquals(at("ddim", "trailing", 61).length, 61);
});

Deno.test("PNDM's Runge–Kutta warm-up visits diffusers' timesteps", () => {
  const course = plan(
    "pndm",
    schedule({ ...SD, skip_prk_steps: false, steps_offset: 0 }),
    10,
  );
  // deno-fmt-ignore
  assertEquals(course.timesteps, [
    900, 850, 850, 800, 800, 750, 750, 700, 700, 650, 650, 600,
    600, 500, 400, 300, 200, 100, 0,
  ]);
});

Deno.test("lambda_min_clipped leaves out the noisiest timesteps", () => {
  const config = { ...SD, beta_schedule: "squaredcos_cap_v2" as const };
  const free = plan("dpmpp_2m", schedule(config), 10);
  const clipped = plan(
    "dpmpp_2m",
    schedule({ ...config, lambda_min_clipped: -5.1 }),
    10,
  );
  assertEquals(free.timesteps[0], 999);
  assert(clipped.timesteps[0] < 999 && clipped.timesteps[0] > 980);
  assert(Math.log(clipped.sigmas[0]) <= 5.1);
});

Deno.test("Karras sigmas follow eq. 5 between the extreme noise levels", () => {
  const course = plan("euler_karras", schedule(SD), 7);
  const [first, last] = [course.sigmas[0], course.sigmas[6]];
  for (let i = 0; i < 7; i++) {
    const root = first ** (1 / 7) +
      i / 6 * (last ** (1 / 7) - first ** (1 / 7));
    close(course.sigmas[i] / root ** 7, 1, 1e-6);
  }
  assertEquals(course.sigmas[7], 0);
  assertEquals(course.timesteps[0], 999);
});

Deno.test("every sampler plans any number of steps, on any spacing", () => {
  for (const name of SAMPLERS) {
    for (
      const timestep_spacing of ["linspace", "leading", "trailing"] as const
    ) {
      for (const version of ["0.19.3", "main"] as const) {
        for (const steps of [1, 2, 3, 5, 7, 15, 50]) {
          const course = plan(
            name,
            schedule({ ...SD, timestep_spacing }),
            steps,
            { version },
          );
          const numbers = course.table.flatMap((call) => [
            call.timestep,
            call.alpha,
            call.sigma,
            ...[call.next, ...call.memory, call.reported ?? {}].flatMap(
              (sum) => Object.values(sum).flat() as number[],
            ),
          ]);
          assert(
            numbers.every(Number.isFinite),
            `${name} ${timestep_spacing} ${version} ${steps}`,
          );
          assertEquals(course.calls, course.table.length);
          assertEquals(course.sigmas.length, course.calls + 1);
        }
      }
    }
  }
});

// ----------------------------------- memory, resuming, image-to-image

const noiseAt = (i: number) =>
  tf.tensor4d(START.map((v, k) => Math.sin(7 * i + 3 * k) + v), [1, 2, 2, 1]);

for (const name of SAMPLERS) {
  forEachBackend(
    `${name}: no tensor is left, however the loop ends`,
    async () => {
      const s = schedule(SD);
      const noise = tf.tensor4d(START, [1, 2, 2, 1]);
      const options = { steps: 6, noise: noiseAt };
      await noLeak(async () => {
        for await (const _ of sampleSteps(name, s, model, noise, options));
      });
      await noLeak(async () => {
        for await (const step of sampleSteps(name, s, model, noise, options)) {
          if (step.index === 3) break;
        }
      });
      await noLeak(async () => {
        const out = await sample(name, s, model, noise, options);
        assertEquals(out.shape, noise.shape);
        out.dispose();
      });
      // A model that fails, that returns its input, that returns a wrong shape.
      await noLeak(() =>
        assertRejects(
          () =>
            sample(
              name,
              s,
              (x, t, i) => {
                if (i === 2) throw new Error("model failed");
                return model(x, t, i);
              },
              noise,
              options,
            ),
          Error,
          "model failed",
        )
      );
      await noLeak(async () =>
        (await sample(name, s, (x) => x, noise, options)).dispose()
      );
      await noLeak(() =>
        assertRejects(
          () => sample(name, s, () => tf.zeros([1, 2, 2, 3]), noise, options),
          Error,
          "model output of shape",
        )
      );
      assert(!noise.isDisposed, "the noise is the caller's");
      noise.dispose();
    },
    ["cpu"],
  );

  forEachBackend(
    `${name}: resumed at any call ends in the same numbers`,
    async () => {
      const configs = name === "pndm"
        ? [SD, { ...SD, skip_prk_steps: false }]
        : [SD, { ...SD, solver_order: 3 }];
      for (const config of configs) {
        const s = schedule(config);
        const noise = tf.tensor4d(START, [1, 2, 2, 1]);
        const options = { steps: 6, noise: noiseAt };
        const whole = await sample(name, s, model, noise, options);
        const { calls } = plan(name, s, 6);
        await noLeak(async () => {
          for (let stop = 0; stop < calls - 1; stop++) {
            let kept: SamplerState | undefined;
            for await (
              const step of sampleSteps(name, s, model, noise, options)
            ) {
              if (step.index !== stop) continue;
              kept = tf.tidy(() => copy(step.state));
              break;
            }
            const rest = await sample(name, s, model, noise, {
              ...options,
              resume: kept!,
            });
            assertEquals(await rest.data(), await whole.data(), `call ${stop}`);
            rest.dispose();
            tf.dispose([kept!.latent, ...kept!.memory]);
          }
        });
        tf.dispose([noise, whole]);
      }
    },
    ["cpu"],
  );

  Deno.test(`${name}: from a noised latent it finds the latent again`, async () => {
    await tf.setBackend("cpu");
    const s = schedule(SD);
    const steps = 12;
    // A model that knows the clean latent: any start step must lead to it.
    const init = tf.tensor4d([0.5, -1, 2, 0.1], [1, 2, 2, 1]);
    const noise = tf.tensor4d(START, [1, 2, 2, 1]);
    await noLeak(async () => {
      for (const startStep of [1, 6, 8]) {
        const course = plan(name, s, steps, { startStep });
        const out = await sample(
          name,
          s,
          (x, _t, i) =>
            tf.tidy(() => {
              const a = 1 / Math.sqrt(1 + course.sigmas[i] ** 2);
              return x.sub(init.mul(a)).div(course.sigmas[i] * a);
            }) as tf.Tensor4D,
          noise,
          { steps, startStep, init, noise: noiseAt },
        );
        // What is left is the last noise level.
        const rest = course.sigmas[course.calls];
        const error = maximumError(
          await out.data<"float32">(),
          await init.data<"float32">(),
        );
        assert(error < 0.05 + 3 * rest, `from ${startStep}: ${error}`);
        out.dispose();
        const full = plan(name, s, steps);
        assert(course.calls < full.calls);
        assertEquals(
          course.timesteps[course.calls - 1],
          full.timesteps[full.calls - 1],
        );
      }
    });
    tf.dispose([init, noise]);
  });
}

function copy(state: SamplerState): SamplerState & tf.NamedTensorMap {
  return {
    ...state,
    latent: state.latent.clone(),
    memory: state.memory.map((value) => value.clone()),
  } as unknown as SamplerState & tf.NamedTensorMap;
}

Deno.test("batches and non-square latents are sampled item by item", async () => {
  await tf.setBackend("cpu");
  const s = schedule(SD);
  const one = tf.tensor4d(START.concat([0.1, 0.2]), [1, 1, 3, 2]);
  const two = tf.tidy(() => tf.concat([one, one.mul(-2) as tf.Tensor4D], 0));
  for (const name of ["ddim", "dpmpp_2m", "unipc", "heun"] as const) {
    const alone = await sample(name, s, model, one, { steps: 5 });
    const both = await sample(name, s, model, two, { steps: 5 });
    assertEquals(both.shape, [2, 1, 3, 2]);
    close((await both.data()).slice(0, 6), await alone.data(), 0);
    tf.dispose([alone, both]);
  }
  tf.dispose([one, two]);
});

// ----------------------------------------------------------------- names

Deno.test("a config's class and flags name the sampler", () => {
  const cases: [string, boolean, SamplerName][] = [
    ["DDIMScheduler", false, "ddim"],
    ["DPMSolverMultistepScheduler", false, "dpmpp_2m"],
    ["DPMSolverMultistepScheduler", true, "dpmpp_2m_karras"],
    ["EulerAncestralDiscreteScheduler", true, "euler_a"],
    ["UniPCMultistepScheduler", true, "unipc_karras"],
    ["LMSDiscreteScheduler", true, "lms_karras"],
  ];
  for (const [_class_name, use_karras_sigmas, name] of cases) {
    assertEquals(samplerFromConfig({ _class_name, use_karras_sigmas }), name);
  }
  for (const _class_name of [undefined, "VQDiffusionScheduler", "toString"]) {
    assertThrows(
      () => samplerFromConfig({ _class_name }),
      Error,
      "Cannot choose a sampler",
    );
  }
});

// ------------------------------------------------------------ bad inputs

const BAD_PLANS: [SamplerName, SchedulerConfig, number, PlanOptions, string][] =
  [
    ["ddim", {}, 0, {}, "steps"],
    ["ddim", {}, 1.5, {}, "steps"],
    ["ddim", {}, 1001, {}, "steps"],
    ["ddim", {}, NaN, {}, "steps"],
    ["ddim", {}, 1000, {}, "steps_offset"],
    ["ddim", {}, 10, { eta: -1 }, "eta"],
    ["ddim", {}, 10, { eta: NaN }, "eta"],
    ["ddim", {}, 10, { startStep: 10 }, "startStep"],
    ["ddim", {}, 10, { startStep: -1 }, "startStep"],
    ["nope" as SamplerName, {}, 10, {}, "Cannot plan a sampler"],
    ["toString" as SamplerName, {}, 10, {}, "Cannot plan a sampler"],
    ["ddpm", { variance_type: "huge" }, 10, {}, "variance_type"],
    ["pndm", { prediction_type: "sample" }, 10, {}, "prediction_type"],
    ["pndm", { skip_prk_steps: false }, 3, {}, "4 steps"],
    ["lcm", {}, 60, {}, "originalSteps"],
    ["lcm", {}, 4, { originalSteps: 2000 }, "originalSteps"],
    ["lms", {}, 10, { lmsOrder: 5 }, "lmsOrder"],
    ["dpmpp_2m", { solver_order: 4 }, 10, {}, "solver_order"],
    ["dpmpp_2m", { solver_type: "euler" }, 10, {}, "solver_type"],
    ["dpmpp_2m", { algorithm_type: "magic" }, 10, {}, "algorithm_type"],
    [
      "dpmpp_2m",
      { algorithm_type: "dpmsolver" },
      10,
      { version: "main" },
      "final_sigmas_type",
    ],
    [
      "dpmpp_2m",
      { algorithm_type: "sde-dpmsolver++", solver_order: 3 },
      10,
      {},
      "solver_order",
    ],
    ["dpmpp_2m", { use_beta_sigmas: true }, 10, {}, "use_beta_sigmas"],
    ["dpmpp_2m", { use_flow_sigmas: true }, 10, {}, "use_flow_sigmas"],
    ["unipc", { solver_type: "bh3" }, 10, {}, "solver_type"],
    ["unipc", {}, 10, { version: "1.0" as "main" }, "version"],
  ];

for (const [name, config, steps, options, message] of BAD_PLANS) {
  Deno.test(
    `no plan: ${name} ${JSON.stringify(config)} ${steps} ${
      JSON.stringify(options)
    }`,
    () => {
      const s = schedule({ ...SD, ...config });
      const error = assertThrows(() => plan(name, s, steps, options)) as Error;
      assert(error.message.startsWith("Cannot plan"), error.message);
      assert(error.message.includes(message), error.message);
    },
  );
}

Deno.test("bad inputs are errors before the model is called", async () => {
  await tf.setBackend("cpu");
  const s = schedule(SD);
  const noise = tf.tensor4d(START, [1, 2, 2, 1]);
  const flat = tf.zeros([4]) as unknown as tf.Tensor4D;
  const other = tf.zeros([1, 2, 2, 2]) as tf.Tensor4D;
  const never: Predict = () => {
    throw new Error("the model was called");
  };
  const memory = [noise, noise, noise];
  const cases: [SamplerName, tf.Tensor4D, SampleOptions, string][] = [
    ["ddim", flat, { steps: 3 }, "noise [batch"],
    ["ddim", noise, { steps: 0 }, "steps"],
    ["ddpm", noise, { steps: 3 }, "options.noise"],
    ["euler_a", noise, { steps: 3 }, "options.noise"],
    ["lcm", noise, { steps: 3 }, "options.noise"],
    ["ddim", noise, { steps: 3, eta: 0.5 }, "options.noise"],
    ["ddim", noise, { steps: 3, startStep: 1 }, "init"],
    ["ddim", noise, { steps: 3, startStep: 1, init: other }, "shape"],
    [
      "ddim",
      noise,
      { steps: 3, resume: { index: 4, latent: noise, memory: [] } },
      "call index",
    ],
    [
      "ddim",
      noise,
      { steps: 3, resume: { index: 3, latent: noise, memory: [] } },
      "before the last call",
    ],
    [
      "dpmpp_2m",
      noise,
      { steps: 9, resume: { index: 2, latent: noise, memory } },
      "remembered tensors",
    ],
    [
      "heun",
      noise,
      { steps: 9, resume: { index: 1, latent: noise, memory: [noise] } },
      "2 remembered tensors",
    ],
    [
      "ddim",
      noise,
      { steps: 9, resume: { index: 1, latent: other, memory: [] } },
      "shape",
    ],
  ];
  await noLeak(async () => {
    for (const [name, x, options, message] of cases) {
      await assertRejects(
        () => sample(name, s, never, x, options),
        Error,
        message,
      );
    }
    await assertRejects(
      () =>
        sample("ddpm", s, model, noise, {
          steps: 3,
          noise: () => tf.zeros([1, 2, 2, 5]),
        }),
      Error,
      "noise of shape",
    );
  });
  tf.dispose([noise, flat, other]);
});
