import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { openSafetensors, toFloat32 } from "../../src/io/safetensors.ts";
import {
  addNoise,
  parseSchedulerConfig,
  predictionType,
  schedule,
  type SchedulerConfig,
  snr,
  trainingTarget,
  velocity,
} from "../../src/diffusion/schedule.ts";
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
};

const file = await openSafetensors(
  fixturePath("schedulers/schedulers.safetensors"),
);
const golden: Record<string, Float32Array> = {};
for (
  const name of [
    "ddpm.betas",
    "ddpm.alphas_cumprod",
    "ddpm.x0",
    "ddpm.noise",
    "ddpm.add_noise",
    "ddpm.velocity",
    "zero_terminal_snr.betas",
    "zero_terminal_snr.alphas_cumprod",
    "snr",
  ]
) golden[name] = toFloat32(await file.read(name));
const timesteps = [...toFloat32(await file.read("ddpm.timesteps"))];
const snrTimesteps = [...toFloat32(await file.read("snr.timesteps"))];
file.close();

Deno.test("Stable Diffusion's betas and ᾱ equal PyTorch's to the last bit", () => {
  const s = schedule(SD);
  assertEquals(Float32Array.from(s.betas), golden["ddpm.betas"]);
  assertEquals(
    Float32Array.from(s.alphasCumprod),
    golden["ddpm.alphas_cumprod"],
  );
});

Deno.test("zero terminal SNR equals kohya's to the last bit and ends at 0", () => {
  const s = schedule({ ...SD, rescale_betas_zero_snr: true });
  assertEquals(Float32Array.from(s.betas), golden["zero_terminal_snr.betas"]);
  assertEquals(
    Float32Array.from(s.alphasCumprod),
    golden["zero_terminal_snr.alphas_cumprod"],
  );
  assertEquals(s.alphasCumprod[999], 0);
  // The first level is what the rescaling leaves alone, up to rounding.
  close(s.alphasCumprod[0], schedule(SD).alphasCumprod[0], 1e-7);
});

Deno.test("beta schedules follow their definitions", () => {
  const linear = schedule({ num_train_timesteps: 5 });
  // float32 rounding of 0.02 is 1e-9.
  close(linear.betas, [0.0001, 0.005075, 0.01005, 0.015025, 0.02], 2e-9);

  const cosine = schedule({ beta_schedule: "squaredcos_cap_v2" });
  const bar = (t: number) => Math.cos((t + 0.008) / 1.008 * Math.PI / 2) ** 2;
  // A product of 500 factors, each rounded to 6e-8.
  close(cosine.alphasCumprod[499], bar(0.5) / bar(0), 500 * 6e-8);
  assertEquals(cosine.betas[999], Math.fround(0.999), "the cap");

  const exp = schedule({ beta_schedule: "exp", num_train_timesteps: 100 });
  close(exp.alphasCumprod[49], Math.exp(-6), 1e-6);

  const sigmoid = schedule({ beta_schedule: "sigmoid" });
  close(
    [sigmoid.betas[0], sigmoid.betas[999]],
    [0.0001 + 0.0199 / (1 + Math.exp(6)), 0.0001 + 0.0199 / (1 + Math.exp(-6))],
    1e-8,
  );

  const trained = schedule({
    num_train_timesteps: 3,
    trained_betas: [0.1, 0.2, 0.5],
  });
  close(trained.alphasCumprod, [0.9, 0.72, 0.36], 1e-7);
});

Deno.test("a missing beta range is that of the config's own class", () => {
  close(
    schedule({ _class_name: "LCMScheduler" }).alphasCumprod,
    schedule(SD).alphasCumprod,
    0,
  );
  close(
    schedule({ _class_name: "HeunDiscreteScheduler" }).betas[999],
    0.012,
    1e-9,
  );
  close(schedule().betas[999], 0.02, 1e-9);
  assertEquals(predictionType(schedule()), "epsilon");
});

Deno.test("configs: Python's infinities, nulls and unknown keys are read", () => {
  const config = parseSchedulerConfig(
    '{"lambda_min_clipped": -Infinity, "trained_betas": null, ' +
      '"future_key": "-Infinity stays text", "solver_order": 3, ' +
      '"sigma_min": NaN, "other_key": Infinity}',
  );
  assertEquals(config.lambda_min_clipped, -Infinity);
  assertEquals([config.sigma_min, config.other_key], [null, Infinity]);
  assertEquals(config.trained_betas, null);
  assertEquals(config.future_key, "-Infinity stays text");
  assertEquals(config.solver_order, 3);
});

Deno.test("configs: every bad key is named in one error", () => {
  const error = assertThrows(() =>
    parseSchedulerConfig({ beta_schedule: "cubic", num_train_timesteps: -1 })
  ) as Error;
  assert(error.message.startsWith("Cannot read a scheduler config"));
  assert(error.message.includes("beta_schedule"), error.message);
  assert(error.message.includes("num_train_timesteps"), error.message);
  for (
    const bad of [
      "{",
      "[]",
      null,
      3,
      { num_train_timesteps: 1e12 },
      '{"steps_offset": 0.5}',
    ]
  ) {
    assertThrows(() => parseSchedulerConfig(bad), Error, "Cannot read");
  }
  assertThrows(
    () => schedule({ trained_betas: [0.1, 0.2] }),
    Error,
    "1000 trained_betas",
  );
  assertThrows(() => schedule({ beta_end: 2 }), Error, "in [0, 1]");
});

Deno.test("the SNR equals diffusers'", () => {
  const actual = snr(schedule(SD), snrTimesteps);
  // Both quotients have one rounded float32 operand more than the other.
  actual.forEach((value, i) =>
    close(value / golden.snr[i], 1, 2e-6, `snr at ${snrTimesteps[i]}`)
  );
  assertEquals(snr(schedule(SD), []), []);
});

forEachBackend("add_noise and velocity equal diffusers'", async (backend) => {
  const s = schedule(SD);
  const shape: [number, number, number, number] = [3, 2, 4, 4];
  await noLeak(async () => {
    const x0 = tf.tensor4d(golden["ddpm.x0"], shape);
    const noise = tf.tensor4d(golden["ddpm.noise"], shape);
    const noisy = addNoise(s, x0, noise, timesteps);
    const target = velocity(s, x0, noise, timesteps);
    // Values up to 4; two products and a sum, each rounded to 6e-8.
    const limit = tolerance(backend, 1e-6);
    close(await noisy.data(), golden["ddpm.add_noise"], limit, "add_noise");
    close(await target.data(), golden["ddpm.velocity"], limit, "velocity");
    tf.dispose([x0, noise, noisy, target]);
  });
}, ["cpu", "wasm", "webgpu"]);

Deno.test("noise and velocity have gradients and one timestep serves all", async () => {
  await tf.setBackend("cpu");
  const s = schedule(SD);
  await noLeak(() => {
    const x = tf.ones([2, 3]);
    const gradient = tf.grad((x: tf.Tensor) =>
      addNoise(s, x, tf.zerosLike(x), [10]).sum()
    )(x);
    close(
      gradient.dataSync(),
      Array(6).fill(Math.sqrt(s.alphasCumprod[10])),
      1e-6,
    );
    tf.dispose([x, gradient]);
  });
});

Deno.test("bad timesteps and shapes are errors and leave no tensor", async () => {
  await tf.setBackend("cpu");
  const s = schedule({ ...SD, rescale_betas_zero_snr: true });
  await noLeak(() => {
    const x = tf.zeros([2, 3]);
    const y = tf.zeros([2, 4]);
    for (const bad of [[1000, 0], [-1, 0], [0.5, 1], [NaN, 1], [1, 2, 3], []]) {
      assertThrows(() => addNoise(s, x, x, bad), Error, "Cannot add noise");
      assertThrows(() => trainingTarget(s, x, x, bad), Error, "Cannot");
    }
    assertThrows(() => addNoise(s, x, y, [1, 2]), Error, "shape");
    assertThrows(() => velocity(s, x, y, [1, 2]), Error, "shape");
    assertThrows(() => snr(s, [1000]), Error, "Cannot compute the snr");
    tf.dispose([x, y]);
  });
});

Deno.test("schedulers of another forward process are refused by name", () => {
  for (
    const name of [
      "FlowMatchEulerDiscreteScheduler",
      "FlowMatchHeunDiscreteScheduler",
      "EDMDPMSolverMultistepScheduler",
      "ConsistencyDecoderScheduler",
    ]
  ) {
    assertThrows(
      () => parseSchedulerConfig({ _class_name: name }),
      Error,
      `${name}, of another forward process`,
    );
  }
  for (
    const name of [
      ...["PNDMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"],
      ...["KDPM2DiscreteScheduler", "TCDScheduler", "DEISMultistepScheduler"],
    ]
  ) assertEquals(parseSchedulerConfig({ _class_name: name })._class_name, name);
});
