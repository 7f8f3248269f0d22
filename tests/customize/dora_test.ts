/** DoRA and dropout in training, against closed forms and finite differences. */
import * as tf from "@tensorflow/tfjs";
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { finish } from "../../src/core/finish.ts";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import {
  attachConcept,
  type Concept,
  conceptTensors,
  disposeConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { encodeData } from "../../src/customize/dataset.ts";
import { attach, initLora, merge } from "../../src/customize/lora.ts";
import { method, startConcept } from "../../src/customize/methods.ts";
import {
  customize,
  type TrainConfig,
  type TrainRecord,
} from "../../src/customize/train.ts";
import { generate } from "../../src/diffusion/pipeline.ts";
import { loadConcept, saveConcept } from "../../src/formats/concept_file.ts";
import { loadLora } from "../../src/formats/lora.ts";
import { saveLora } from "../../src/formats/lora_write.ts";
import { fuse } from "../../src/fusion/gradient.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { conv2d, linear, type LowRank } from "../../src/nn/linear.ts";
import { close } from "../helpers.ts";
import { DRAWN, tinySd } from "./tiny_sd.ts";

const Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

/** Random values of a shape. */
const random = <T extends tf.Tensor>(seed: number, ...shape: number[]): T =>
  tf.tensor(normal(key(seed), shape.reduce((a, b) => a * b)), shape) as T;

Deno.test("dropout leaves values of an adapter's input out, and scales the rest", async () => {
  await tf.setBackend("cpu");
  const x = tf.ones([400, 3]) as tf.Tensor2D;
  const low: LowRank = {
    down: tf.eye(3) as tf.Tensor2D,
    up: tf.eye(3) as tf.Tensor2D,
    scale: 2,
  };
  const weight = tf.eye(3) as tf.Tensor2D;
  const run = (rate: number, seed = 1) =>
    linear({ weight, low: [{ ...low, dropout: { rate, key: key(seed) } }] }, x);
  // 1 + 2·(0 or 1/(1 − 0.25)).
  const values = await run(0.25).data();
  const far = Math.fround(1 + 2 / 0.75);
  const out = values.filter((v) => v === 1).length;
  assertEquals(
    values.filter((v) => Math.abs(v - far) < 1e-5).length + out,
    1200,
  );
  assertAlmostEquals(out / 1200, 0.25, 0.05);
  assertEquals(await run(0.25).data(), values);
  assert(String(await run(0.25, 2).data()) !== String(values));
  assertEquals(await run(0).data(), new Float32Array(1200).fill(3));
  // A convolution's input as well.
  const image = tf.ones([1, 20, 20, 3]) as tf.Tensor4D;
  const one = tf.reshape(tf.eye(3), [1, 1, 3, 3]) as tf.Tensor4D;
  const drawn = await conv2d({
    weight: one,
    low: [{
      down: one,
      up: one,
      scale: 2,
      dropout: { rate: 0.25, key: key(1) },
    }],
  }, image).data();
  // The same key, so the same places.
  close(drawn, values.slice(), 1e-6);
});

Deno.test("a fresh DoRA changes nothing; its gradients take the norm for a number", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  const adapter = initLora(model, { key: key(1), rank: 2, dora: true });
  const low = adapter.unet.get(Q)!;
  const { weight } = at(model.unet.params, Q) as { weight: tf.Tensor2D };
  const [inputs, outputs] = weight.shape;
  const w = await weight.array();
  const m = await low.magnitude!.data();
  for (let j = 0; j < outputs; j++) {
    assertAlmostEquals(m[j], Math.hypot(...w.map((row) => row[j])), 1e-5);
  }
  const x = random<tf.Tensor2D>(3, 5, inputs);
  const plain = await linear({ weight }, x).data();
  close(await linear({ weight, low: [low] }, x).data(), plain, 1e-5);
  // L = Σ y·g of y = x·(W + s·BA)·m/‖W + s·BA‖, by hand: with V = W + s·BA and
  // n = ‖V‖, ∂L/∂m = Σ (x·V)·g/n and ∂L/∂up = s·downᵀ·(xᵀ·g·m/n).
  const up = random<tf.Tensor2D>(4, 2, outputs);
  const g = random<tf.Tensor2D>(5, 5, outputs);
  const magnitude = random<tf.Tensor1D>(6, outputs);
  const scale = 0.5;
  const [dm, dup] = tf.grads((m: tf.Tensor, b: tf.Tensor) =>
    linear({
      weight,
      low: [{ ...low, up: b, magnitude: m as tf.Tensor1D, scale }],
    }, x).mul(g).sum()
  )([magnitude, up]);
  const v = weight.add(tf.matMul(low.down as tf.Tensor2D, up).mul(scale));
  const n = v.square().sum(0).sqrt();
  close(
    await dm.data(),
    await tf.matMul(x, v as tf.Tensor2D).mul(g).sum(0).div(n).data(),
    1e-4,
  );
  const back = tf.matMul(x, g.mul(magnitude.div(n)) as tf.Tensor2D, true);
  const expected = tf.matMul(low.down as tf.Tensor2D, back, true).mul(scale);
  close(await dup.data(), await expected.data(), 1e-4);
  disposeModel(model);
});

/** A concept of two steps, and its records. */
async function trained(
  model: Model,
  more: Partial<TrainConfig>,
  dora = false,
  memory?: "low",
): Promise<{ concept: Concept; losses: number[] }> {
  const how = method("ed-lora", "paper", {
    steps: 2,
    batch: 1,
    lr: { embedding: 0.01, textEncoder: 0.02, unet: 0.05 },
    schedule: "constant",
    ...more,
  });
  const start = await startConcept(model, {
    ...how,
    concept: { ...how.concept, lora: { targets: "attention", dora } },
  }, { name: "rex", classWord: "cat", key: key(1), rank: 2 });
  const data = Uint8Array.from({ length: 32 * 32 * 3 }, (_, i) => i * 7 % 256);
  const pixels = { width: 32, height: 32, channels: 3 as const, data };
  const pictures = await encodeData(model, [{ pixels, captions: ["a {}"] }]);
  const losses: number[] = [];
  const concept = await customize(model, start, pictures, how.train, {
    memory,
    onRecord: ({ loss }: TrainRecord) => void losses.push(loss),
  });
  disposeConcept(start);
  return { concept, losses };
}

async function valuesOf(concept: Concept): Promise<Map<string, Float32Array>> {
  const values = new Map<string, Float32Array>();
  for (const [name, tensor] of conceptTensors(concept)) {
    values.set(name, await tensor.data() as Float32Array);
  }
  return values;
}

Deno.test("training with dropout is another run, repeatable, and leaves none behind", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  const plain = await trained(model, {});
  const some = await trained(model, { dropout: 0.5 });
  const again = await trained(model, { dropout: 0.5 });
  const little = await trained(model, { dropout: 0.5 }, false, "low");
  assertEquals((await trained(model, { dropout: 0 })).losses, plain.losses);
  // `up` is zero before the first step, so nothing is left out of anything.
  assertAlmostEquals(some.losses[0], plain.losses[0], 1e-6);
  assert(some.losses[1] !== plain.losses[1]);
  assertEquals(some.losses, again.losses);
  assertEquals(await valuesOf(some.concept), await valuesOf(again.concept));
  // What is computed again leaves the same out.
  little.losses.forEach((v, i) => assertAlmostEquals(v, some.losses[i], 1e-5));
  for (const low of some.concept.adapter.unet.values()) {
    assertEquals(low.dropout, undefined);
  }
  for (const dropout of [1, -0.1]) {
    await assertRejects(
      () => trained(model, { dropout }),
      Error,
      "a dropout from 0 to below 1",
    );
  }
  const tokens = method("textual-inversion", "paper", { dropout: 0.5 });
  const start = await startConcept(model, tokens, {
    ...{ name: "rex", classWord: "cat", key: key(1) },
  });
  const data = new Uint8Array(32 * 32 * 3);
  const pixels = { width: 32, height: 32, channels: 3 as const, data };
  const pictures = await encodeData(model, [{ pixels, captions: ["{}"] }]);
  await assertRejects(
    () => customize(model, start, pictures, tokens.train),
    Error,
    "Cannot train with dropout: expected an adapter, got none",
  );
  disposeModel(model);
});

Deno.test("a DoRA is trained, written, read, merged and fused", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  const folder = await Deno.makeTempDir();
  try {
    const { concept } = await trained(model, {}, true);
    const low = concept.adapter.unet.get(Q)!;
    const { weight } = at(model.unet.params, Q) as { weight: tf.Tensor2D };
    const norms = await weight.square().sum(0).sqrt().data();
    const moved = await low.magnitude!.data();
    assert(moved.some((v, i) => Math.abs(v - norms[i]) > 1e-3));
    // The file has all of it.
    const path = `${folder}/rex.safetensors`;
    await saveConcept(path, concept, model);
    const read = await loadConcept(path, model);
    assertEquals(await valuesOf(read), await valuesOf(concept));
    // Attached, merged, averaged alone: one model.
    const prompts = [`a ${concept.phrase}`];
    const attached = attachConcept(model, read);
    const [expected] = await generate(attached, { ...DRAWN, prompts });
    const [base] = await generate(model, { ...DRAWN, prompts: ["a cat"] });
    assert(String(base.data) !== String(expected.data));
    const merged = await merge(attached);
    const [whole] = await generate(merged, { ...DRAWN, prompts });
    close(whole.data, expected.data, 1);
    const average = weightFusion(model, [read]);
    const [alone] = await generate(average, { ...DRAWN, prompts });
    close(alone.data, expected.data, 1);
    const fused = await finish(fuse(model, [read], { steps: 2 }));
    const own = at(fused.unet.params, Q) as { weight: tf.Tensor2D };
    const aim = at(merged.unet.params, Q) as { weight: tf.Tensor2D };
    const [left, all] = [own, { weight }].map((from) =>
      from.weight.sub(aim.weight).square().sum()
    );
    // One concept's own features ask for its weight, as far as they reach.
    assert((await left.data())[0] < 0.5 * (await all.data())[0]);
    // PEFT has a place for magnitudes, the official code has not.
    const other = `${folder}/peft.safetensors`;
    await saveLora(other, { adapter: read.adapter }, model, "peft");
    const peft = await loadLora(other, model);
    const pair = [peft.adapter, read.adapter].map((adapter) =>
      attach(model, { ...adapter, name: "a" })
    );
    const [one, two] = await Promise.all(
      pair.map(async (m) =>
        (await generate(m, { ...DRAWN, prompts: ["a cat"] }))[0].data
      ),
    );
    assertEquals(one, two);
    await assertRejects(
      () => saveLora(other, { adapter: read.adapter }, model, "official"),
      Error,
      "expected no DoRA, got a magnitude",
    );
    releaseTokens(attached, model);
  } finally {
    disposeModel(model);
    await Deno.remove(folder, { recursive: true });
  }
});
