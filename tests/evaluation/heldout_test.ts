import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { fold, key, normal } from "../../src/core/random.ts";
import type { TrainData } from "../../src/customize/dataset.ts";
import {
  parseSchedulerConfig,
  predictionType,
  schedule,
} from "../../src/diffusion/schedule.ts";
import { heldOutError, keptShare } from "../../src/evaluation/heldout.ts";
import { disposeModel, promptStates } from "../../src/models/model.ts";
import { unet } from "../../src/models/unet.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { forEachBackend } from "../helpers.ts";

/** Pictures as latents of 8×8, with masks of different sizes. */
function latents(channels: number, count = 3): TrainData {
  const side = 8, size = count * side * side;
  return {
    count,
    height: side,
    width: side,
    channels,
    mean: normal(key(1), size * channels),
    std: new Float32Array(size * channels),
    captions: [["a {}"], ["a {}"], ["a {}"]],
    mask: Uint8Array.from(
      { length: size },
      (_, i) => i % 64 < 16 + i / 8 ? 1 : 0,
    ),
  };
}

forEachBackend(
  "the held-out error is the masked error, written plainly",
  async (backend) => {
    const model = await tinySd();
    // A software adapter takes two seconds for a picture and timestep.
    const few = backend === "webgpu";
    const data = latents(model.unet.config.in_channels, few ? 1 : 3);
    const prompts = ["a cat", "the dog", "a cat"].slice(0, data.count);
    const timesteps = few ? [700] : [100, 700];
    const options = { key: key(9), timesteps };
    const tensors = tf.memory().numTensors;
    const found = await heldOutError(model, data, prompts, options);
    assertEquals(tf.memory().numTensors, tensors);
    const s = schedule(parseSchedulerConfig(model.scheduler));
    const { alphasCumprod } = s, prediction = predictionType(s);
    const size = 64 * data.channels;
    for (let i = 0; i < data.count; i++) {
      const errors: number[] = [];
      for (const [k, t] of timesteps.entries()) {
        const noise = normal(fold(key(9), "heldout", i, k), size);
        const signal = Math.sqrt(alphasCumprod[t]);
        const noisy = Math.sqrt(1 - alphasCumprod[t]);
        const x0 = data.mean.subarray(i * size, (i + 1) * size);
        const predicted = tf.tidy(() =>
          unet(
            model.unet.params,
            model.unet.config,
            tf.tensor4d(
              Float32Array.from(x0, (v, j) => signal * v + noisy * noise[j]),
              [1, 8, 8, data.channels],
            ),
            [t],
            promptStates(model, [prompts[i]]),
          )
        );
        const out = await predicted.data();
        predicted.dispose();
        let sum = 0, area = 0;
        for (let p = 0; p < 64; p++) {
          if (data.mask[i * 64 + p] === 0) continue;
          area++;
          for (let c = 0; c < data.channels; c++) {
            const j = p * data.channels + c;
            const target = prediction === "v_prediction"
              ? signal * noise[j] - noisy * x0[j]
              : noise[j];
            sum += (out[j] - target) ** 2;
          }
        }
        errors.push(sum / area);
      }
      assertAlmostEquals(
        found.byPicture[i],
        errors.reduce((a, b) => a + b) / errors.length,
        1e-3 * errors[0],
      );
    }
    assertAlmostEquals(
      found.mean,
      found.byPicture.reduce((a, b) => a + b) / data.count,
      1e-4,
    );
    assertEquals(found.byTimestep.length, timesteps.length);
    // The rest is about rows and prompts, the same on any backend.
    if (backend !== "wasm") return disposeModel(model);
    const seen: number[][] = [];
    const single = await heldOutError(model, data, prompts, {
      ...options,
      batch: 1,
      onProgress: (...done) => seen.push(done),
    });
    assertEquals(seen, [[1, 6], [2, 6], [3, 6], [4, 6], [5, 6], [6, 6]]);
    // Whatever is compared meets the same noise.
    assertEquals(await heldOutError(model, data, prompts, options), found);
    single.byPicture.forEach((error, i) =>
      assertAlmostEquals(error, found.byPicture[i], 1e-3 * error)
    );
    const other = await heldOutError(model, data, ["x", "y", "z"], options);
    assert(other.mean !== found.mean);
    disposeModel(model);
  },
);

Deno.test("a held-out error needs a prompt per picture and timesteps in range", async () => {
  const model = await tinySd();
  const data = latents(model.unet.config.in_channels);
  await assertRejects(
    () => heldOutError(model, data, ["a"], { key: key(1) }),
    Error,
    "a prompt for each of 3 pictures, got 1",
  );
  for (const batch of [0, -1, 1.5]) {
    await assertRejects(
      () => heldOutError(model, data, ["a", "b", "c"], { key: key(1), batch }),
      Error,
      "a batch ≥ 1",
    );
  }
  const mask = data.mask.slice().fill(0, 64, 128);
  await assertRejects(
    () =>
      heldOutError(model, { ...data, mask }, ["a", "b", "c"], { key: key(1) }),
    Error,
    "got picture 1 without",
  );
  for (const timesteps of [[1000], [-1], [1.5], []]) {
    await assertRejects(
      () =>
        heldOutError(model, data, ["a", "b", "c"], { key: key(1), timesteps }),
      Error,
      "timesteps from 0 to 999",
    );
  }
  disposeModel(model);
});

Deno.test("the kept share is 1 for the single concept and 0 for the class word", () => {
  assertEquals(keptShare(3, 5, 3), 1);
  assertEquals(keptShare(5, 5, 3), 0);
  assertEquals(keptShare(6, 5, 3), -0.5);
  assert(Number.isNaN(keptShare(4, 3, 5)));
});
