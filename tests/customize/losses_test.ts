import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  attentionRegularisation,
  debiasedWeights,
  maskedErrors,
  minSnrWeights,
  offsetNoise,
  squaredErrors,
  type TokenAttention,
  tokenMap,
  vLikeNoiseWeights,
} from "../../src/customize/losses.ts";
import { preservingPrior } from "../../src/customize/train_loss.ts";
import { schedule, snr } from "../../src/diffusion/schedule.ts";
import { close, fixtureJson, forEachBackend, tolerance } from "../helpers.ts";
import { golden, nchw } from "./tiny_sd.ts";

const sd15 = {
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
} as const;

interface Weighted {
  gamma: number;
  min_snr_loss: Record<"epsilon" | "v_prediction" | "unweighted", number>;
  prior_preservation: Record<string, number>;
}

forEachBackend("weighted losses, as diffusers and kohya", async (backend) => {
  const g = await golden("training/weighted_losses.safetensors");
  const facts = await fixtureJson<Weighted>("training/weighted_losses.json");
  const s = schedule(sd15);
  const [timesteps] = g.rows("timesteps");
  // Ratios of float32 betas: relative accuracy, the largest is about 1000.
  const relative = (actual: readonly number[], name: string) => {
    const expected = g.values(name);
    close(
      actual.map((a, i) => a / expected[i]),
      new Float32Array(actual.length).fill(1),
      2e-5,
      name,
    );
  };
  relative(snr(s, timesteps), "snr");
  relative(minSnrWeights(s, timesteps, facts.gamma), "weight.epsilon");
  relative(
    minSnrWeights(s, timesteps, facts.gamma, "v_prediction"),
    "weight.v_prediction",
  );
  const prediction = g.nhwc("model_pred");
  const target = g.nhwc("target");
  const errors = squaredErrors(prediction, target);
  const t = tolerance(backend, 2e-6);
  close(await errors.data(), g.values("mse_per_sample"), t);
  const times = async (weights: readonly number[]) => {
    const product = tf.mul(errors, tf.tensor1d([...weights]));
    return await product.data();
  };
  const epsilon = minSnrWeights(s, timesteps, facts.gamma);
  const v = minSnrWeights(s, timesteps, facts.gamma, "v_prediction");
  close(await times(epsilon), g.values("loss.epsilon_per_sample"), t);
  close(await times(v), g.values("loss.v_per_sample"), t);
  close(
    await times(debiasedWeights(s, timesteps)),
    g.values("kohya.debiased_epsilon_per_sample"),
    // Weights up to 14.
    tolerance(backend, 3e-5),
  );
  close(
    await times(debiasedWeights(s, timesteps, "v_prediction")),
    g.values("kohya.debiased_v_per_sample"),
    t,
  );
  close(
    await times(vLikeNoiseWeights(s, timesteps)),
    g.values("kohya.scale_v_like_noise_per_sample"),
    t,
  );
  const expected = facts.min_snr_loss;
  const mean = async (weights?: readonly number[]) => {
    const weighted = weights
      ? tf.mul(errors, tf.tensor1d([...weights]))
      : errors;
    const { diffusion } = preservingPrior(weighted as tf.Tensor1D, 0, 1);
    return await diffusion.data();
  };
  close(await mean(), [expected.unweighted], t);
  close(await mean(epsilon), [expected.epsilon], t);
  close(await mean(v), [expected.v_prediction], t);
  const both = squaredErrors(
    g.nhwc("prior.model_pred"),
    g.nhwc("prior.target"),
  );
  for (const weight of [1, 0.5]) {
    const { diffusion, prior } = preservingPrior(both, both.size / 2, weight);
    const p = facts.prior_preservation;
    close(await diffusion.data(), [p.instance_loss], t);
    close((await prior!.data())[0] / weight, p.prior_loss, t);
    const total = tf.add(diffusion, prior!);
    close(await total.data(), [p[`total_weight_${weight.toFixed(1)}`]], t);
  }
  g.dispose();
});

Deno.test("zero terminal SNR, as kohya", async () => {
  const g = await golden("training/weighted_losses.safetensors");
  const s = schedule({ ...sd15, rescale_betas_zero_snr: true });
  close(s.alphasCumprod, g.values("zero_terminal_snr.alphas_cumprod"), 1e-6);
  close(s.betas, g.values("zero_terminal_snr.betas"), 1e-5);
  assertEquals(s.alphasCumprod[999], 0);
  // The limits, not 0/0.
  assertEquals(minSnrWeights(s, [999], 5), [1]);
  assertEquals(minSnrWeights(s, [999], 5, "v_prediction"), [0]);
  assertThrows(() => debiasedWeights(s, [999]), Error, "ε at zero signal");
});

forEachBackend("the masked loss is a sum over channels", async (backend) => {
  const g = await golden("training/a_inputs.safetensors");
  const facts = await fixtureJson<{ a: { losses: number[] } }>(
    "training/training.json",
  );
  const noise = offsetNoise(
    g.nhwc("noise_base"),
    0.01,
    g.nhwc("noise_offset_randn"),
  );
  // ε-prediction: the target is the noise.
  close(await nchw(noise), g.values("target"), tolerance(backend, 1e-6));
  const loss = tf.mean(
    maskedErrors(g.nhwc("model_pred"), g.nhwc("target"), g.nhwc("mask")),
  );
  close(await loss.data(), [facts.a.losses[0]], tolerance(backend, 1e-5));
  const full = tf.ones([2, 16, 16, 1]) as tf.Tensor4D;
  const [a, b] = [
    maskedErrors(g.nhwc("model_pred"), g.nhwc("target"), full),
    squaredErrors(g.nhwc("model_pred"), g.nhwc("target")),
  ];
  const fourfold = tf.mul(b, 4);
  close(await a.data(), await fourfold.data(), tolerance(backend, 1e-5));
  assertThrows(
    () => maskedErrors(g.nhwc("target"), g.nhwc("target"), g.nhwc("target")),
    Error,
    "a mask [2,16,16,1]",
  );
  g.dispose();
});

forEachBackend("attention maps: samples, full masks, one token", async () => {
  const map = tf.tensor3d([[[0.2], [0.4]], [[0.8], [0.1]]]);
  const layer: TokenAttention = { map, height: 1, width: 2, heads: 3 };
  const mask = tf.tensor4d([1, 0, 1, 0], [2, 1, 2, 1]);
  const value = async (
    m: tf.Tensor4D,
    options: Parameters<typeof attentionRegularisation>[2],
  ) => (await attentionRegularisation([layer], m, options).data())[0];
  // Maximum over the batch: 0.8; outside are 0.4 and 0.1.
  close(await value(mask, { fullIdentity: false }), 0.25 / 0.8, 1e-6);
  // The first sample alone: its own maximum.
  close(await value(mask, { fullIdentity: false, samples: [0] }), 1, 1e-6);
  close(await value(mask, { samples: [0] }), (0.5 ** 2 + 1) / 2, 1e-6);
  // Nothing outside: the official code drops the term.
  assertEquals(await value(tf.onesLike(mask), {}), 0);
  assertEquals(await value(mask, { samples: [] }), 0);
  const probabilities = tf.tensor4d([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 2, 2]);
  close(await tokenMap(probabilities, [[1]]).data(), [4, 6], 1e-6);
  assertThrows(
    () => tokenMap(probabilities, [[0], [1]]),
    Error,
    "as many token positions",
  );
}, ["wasm"]);

forEachBackend("attention regularisation has finite gradients", async () => {
  const start = tf.tensor3d([0.2, 0.4, 0.8, 0.1], [1, 4, 1]);
  const mask = tf.tensor4d([1, 0, 1, 0], [1, 2, 2, 1]);
  const loss = (map: tf.Tensor) =>
    attentionRegularisation([{
      map: map as tf.Tensor3D,
      height: 2,
      width: 2,
      heads: 1,
    }], mask);
  const gradient = await tf.grad(loss as never)(start).data();
  // Against finite differences, away from the maximum's kink.
  for (const i of [0, 1, 2, 3]) {
    const moved = (by: number) => {
      const values = [...start.dataSync()];
      values[i] += by;
      return loss(tf.tensor3d(values, [1, 4, 1])).dataSync()[0];
    };
    close(gradient[i], (moved(1e-3) - moved(-1e-3)) / 2e-3, 2e-3);
  }
  assert(gradient.every(Number.isFinite));
}, ["wasm"]);

Deno.test("bad weights are errors", () => {
  assertThrows(
    () => minSnrWeights(schedule(), [1], 0),
    Error,
    "Cannot weight a loss: expected γ > 0, got 0",
  );
});
