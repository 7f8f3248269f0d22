import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { at, leaves, mapTree } from "../../src/core/tree.ts";
import {
  attachConcept,
  changes,
  type Concept,
  conceptTensors,
  disposeConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import type { TrainData } from "../../src/customize/dataset.ts";
import { joinData, startJoint } from "../../src/customize/joint.ts";
import { attach, delta, sites } from "../../src/customize/lora.ts";
import {
  method,
  METHODS,
  startConcept,
  startsAtClass,
} from "../../src/customize/methods.ts";
import { customize, type TrainConfig } from "../../src/customize/train.ts";
import { drawBatch } from "../../src/customize/train_batch.ts";
import { trainingLoss } from "../../src/customize/train_loss.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { close, forEachBackend } from "../helpers.ts";
import { tinySd } from "./tiny_sd.ts";

/** Latents that were never pictures: training does not care. */
function someData(model: Model, seed: number, count = 2): TrainData {
  const [height, width, channels] = [8, 8, model.unet.config.in_channels];
  const size = count * height * width * channels;
  return {
    ...{ count, height, width, channels },
    mean: normal(key(seed), size),
    std: new Float32Array(size).fill(0.1),
    captions: Array.from({ length: count }, (_, i) => [`photo ${i} of a {}`]),
    mask: new Uint8Array(count * height * width).fill(1),
  };
}

const NAMES = { name: "toy", classWord: "cat", key: key(3), rank: 2 };

/** The values of a concept's tensors. */
async function valuesOf(concept: Concept): Promise<Map<string, Float32Array>> {
  const found = new Map<string, Float32Array>();
  for (const [name, tensor] of conceptTensors(concept)) {
    found.set(name, (await tensor.data() as Float32Array).slice());
  }
  return found;
}

/**
 * Full fine-tuning as it would be written by hand: the UNet's own tensors are
 * the variables of tfjs's own autodiff, AdamW is four lines of float64.
 */
async function plainDreamBooth(
  model: Model,
  concept: Concept,
  data: TrainData,
  prior: TrainData,
  config: TrainConfig,
): Promise<Map<string, Float64Array>> {
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const named = leaves(model.unet.params);
  const values = new Map<string, Float64Array>();
  for (const [path, t] of named) {
    values.set(path, Float64Array.from(await t.data()));
  }
  const zeros = () =>
    new Map(named.map(([path, t]) => [path, new Float64Array(t.size)]));
  const [m, v] = [zeros(), zeros()];
  const { weights: _, ...words } = concept;
  for (let step = 0; step < config.steps; step++) {
    const { phrase } = concept;
    const root = key(config.seed);
    const batch = drawBatch(s, phrase, [data], [prior], config, root, step);
    const inputs = named.map(([path, t]) =>
      tf.tensor(Float32Array.from(values.get(path)!), t.shape)
    );
    const slopes = tf.grads((...tensors: tf.Tensor[]) => {
      const byPath = new Map(named.map(([path], i) => [path, tensors[i]]));
      const params = mapTree(model.unet.params, (_, path) => byPath.get(path));
      return trainingLoss(
        { ...attachConcept(model, words), unet: { ...model.unet, params } },
        s,
        batch,
        config,
      ).total;
    })(inputs);
    const [b1, b2] = config.betas;
    for (const [i, [path]] of named.entries()) {
      const g = await slopes[i].data();
      const [w, mean, square] = [values.get(path)!, m.get(path)!, v.get(path)!];
      for (let k = 0; k < w.length; k++) {
        mean[k] = b1 * mean[k] + (1 - b1) * g[k];
        square[k] = b2 * square[k] + (1 - b2) * g[k] * g[k];
        const size = Math.sqrt(square[k] / (1 - b2 ** (step + 1))) + config.eps;
        w[k] -= config.lr.unet *
          (config.weightDecay * w[k] + mean[k] / (1 - b1 ** (step + 1)) / size);
      }
    }
  }
  return values;
}

forEachBackend(
  "DreamBooth equals full fine-tuning written by hand",
  async () => {
    const model = await tinySd();
    // A large rate, so that two steps are far above rounding.
    const how = method("dreambooth", "paper", {
      steps: 2,
      batch: 1,
      lr: { embedding: 0, textEncoder: 0, unet: 1e-3 },
    });
    assertEquals([how.train.priorWeight, how.train.schedule], [1, "constant"]);
    const start = await startConcept(model, how, NAMES);
    assertEquals(start.phrase, "<toy1> cat");
    const count = leaves(model.unet.params).length;
    assertEquals([changes(start, "unet"), changes(start, "textEncoder")], [
      count,
      0,
    ]);
    const data = someData(model, 1);
    const prior = {
      ...someData(model, 2),
      captions: [["photo of a cat"], ["a cat"]],
    };
    const before = await valuesOf(start);
    const trained = await customize(model, start, data, how.train, { prior });
    assertEquals(await valuesOf(start), before);
    const byHand = await plainDreamBooth(model, start, data, prior, how.train);
    for (const [path, tensor] of trained.weights!.unet) {
      const own = await tensor.data();
      // Adam's steps have the size of the rate whatever the gradient: where one is
      // next to zero its sign is rounding's, so that entries are compared in sum.
      const theirs = byHand.get(path)!;
      const first = before.get(`unet.${path}`)!;
      let [far, moved] = [0, 0];
      for (let i = 0; i < own.length; i++) {
        far += Math.abs(own[i] - theirs[i]);
        moved += Math.abs(own[i] - first[i]);
      }
      assert(moved > 0, `${path} does not move`);
      assert(far < 0.02 * moved, `${path}: ${far} of ${moved}`);
    }
    // Tokens stay, and the model with the concept is the fine-tuned one.
    const words = (await valuesOf(trained)).get("embedding.<toy1>")!;
    assertEquals(words, before.get("embedding.<toy1>"));
    const attached = attachConcept(model, trained);
    const path = "mid_block.attentions.0.proj_in.bias";
    assertEquals(
      at(attached.unet.params, path),
      trained.weights!.unet.get(path),
    );
    releaseTokens(attached, model);
    // Half its strength is weight fusion's to give, biases included.
    assertThrows(
      () => attachConcept(model, trained, { alpha: 0.5 }),
      Error,
      "at strength 1",
    );
    const half = weightFusion(model, [trained], { lambda: 0.5 });
    const tuned = await trained.weights!.unet.get(path)!.data();
    close(
      await at(half.unet.params, path).data(),
      Float32Array.from(
        before.get(`unet.${path}`)!,
        (w, i) => 0.5 * w + 0.5 * tuned[i],
      ),
      1e-6,
    );
    disposeModel(half, model);
    [start, trained].forEach(disposeConcept);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend(
  "DreamBooth's text encoder learns where it has a rate",
  async () => {
    const model = await tinySd();
    const how = method("dreambooth", "paper", {
      steps: 1,
      batch: 1,
      lr: { embedding: 0, textEncoder: 1e-4, unet: 0 },
    });
    const start = await startConcept(model, how, NAMES);
    assertEquals([...start.weights!.unet.keys()], []);
    const trained = await customize(
      model,
      start,
      someData(model, 1),
      how.train,
    );
    const [before, after] = [await valuesOf(start), await valuesOf(trained)];
    const table = "text_model.embeddings.token_embedding.weight";
    const layer = "text_model.encoder.layers.0.self_attn.q_proj.weight";
    for (const path of [table, layer]) {
      const [a, b] = [before, after].map((v) => v.get(`textEncoder.${path}`)!);
      assert(a.some((x, i) => x !== b[i]), path);
    }
    [start, trained].forEach(disposeConcept);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("SVDiff: only singular values change", async () => {
  const model = await tinySd();
  const how = method("svdiff", "paper", { steps: 1, batch: 1 });
  const start = await startConcept(model, how, NAMES);
  const found = sites(model.unet.params);
  assertEquals(start.adapter.unet.size, found.length);
  assertEquals(start.adapter.textEncoder.size, 0);
  // One number per singular value is trained, nothing else.
  const before = await valuesOf(start);
  const trained = await customize(model, start, someData(model, 1), how.train);
  for (const [name, values] of await valuesOf(trained)) {
    const moved = values.some((x, i) => x !== before.get(name)![i]);
    assertEquals(moved, name.endsWith(".shift"), name);
  }
  for (
    const path of [
      "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
      "down_blocks.0.resnets.0.conv1",
    ]
  ) {
    const low = start.adapter.unet.get(path)!;
    const weight = at(model.unet.params, path).weight as tf.Tensor;
    const outputs = weight.shape.at(-1)!;
    const flat = tf.tidy(() => {
      const [u, v] = [
        low.down.reshape([-1, low.spectrum!.sigma.size]) as tf.Tensor2D,
        low.up.reshape([-1, outputs]) as tf.Tensor2D,
      ];
      const { sigma } = low.spectrum!;
      // The smallest is shifted below −σ, where the article's ReLU holds it at 0.
      const shift: tf.Tensor1D = sigma.mul(0.3).sub(sigma.min().mul(1.31));
      const whole = (s: tf.Tensor) => tf.matMul(u.mul(s), v);
      const leaf = { ...low, spectrum: { ...low.spectrum!, shift } };
      return {
        rebuilt: whole(sigma),
        weight: weight.reshape([-1, outputs]).clone(),
        none: delta(low),
        change: delta(leaf).reshape([-1, outputs]),
        expected: whole(sigma.add(shift).relu()),
        clipped: sigma.add(shift).less(0).any(),
      };
    });
    close(await flat.rebuilt.data(), await flat.weight.data(), 2e-6, path);
    assert((await flat.none.data()).every((x) => x === 0));
    assertEquals((await flat.clipped.data())[0], 1, `${path}: all above −σ`);
    const sum = flat.weight.add(flat.change);
    close(await sum.data(), await flat.expected.data(), 5e-6, path);
    tf.dispose([sum, Object.values(flat)]);
  }
  // δ = 0 leaves the model as it is, and the gradient of δ is uᵀ·(∂L/∂W)·v.
  const path = "down_blocks.0.resnets.0.conv1";
  const low = start.adapter.unet.get(path)!;
  const own = { ...start.adapter, unet: new Map([[path, low]]) };
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const batch = drawBatch(
    s,
    "cat",
    [someData(model, 1)],
    undefined,
    how.train,
    key(0),
    0,
  );
  const loss = (m: Model) => trainingLoss(m, s, batch, how.train).total;
  const layer = at(model.unet.params, path);
  const gradW = tf.grad((weight: tf.Tensor) => {
    const unet = {
      ...model.unet,
      params: mapTree(
        model.unet.params,
        (t) => t === layer.weight ? weight : t,
      ),
    };
    return loss({ ...model, unet });
  })(layer.weight);
  const gradShift = tf.grad((shift: tf.Tensor) => {
    const unet = new Map([[
      path,
      {
        ...low,
        spectrum: { ...low.spectrum!, shift: shift as tf.Tensor1D },
      },
    ]]);
    return loss(attach(model, { ...own, unet }));
  })(low.spectrum!.shift);
  const closed = tf.tidy(() => {
    const rank = low.spectrum!.sigma.size;
    const [u, v] = [
      low.down.reshape([-1, rank]) as tf.Tensor2D,
      low.up.reshape([rank, -1]) as tf.Tensor2D,
    ];
    const g = gradW.reshape([u.shape[0], v.shape[1]]) as tf.Tensor2D;
    return tf.matMul(u, g, true).mul(v).sum(1);
  });
  const [actual, expected] = [await gradShift.data(), await closed.data()];
  const largest = Math.max(...expected.map(Math.abs));
  assert(largest > 0);
  close(actual, expected, 1e-4 * largest, "∂L/∂δ");
  tf.dispose([gradW, gradShift, closed, Object.values(batch)]);
  [start, trained].forEach(disposeConcept);
  disposeModel(model);
}, ["wasm"]);

forEachBackend(
  "joint training of one concept is training it alone",
  async () => {
    const model = await tinySd();
    const how = method("ed-lora", "paper", { steps: 2, batch: 2 });
    const data = someData(model, 1);
    const alone = await startConcept(model, how, NAMES);
    const joint = await startJoint(model, how, {
      ...NAMES,
      concepts: [{ name: "toy", classWord: "cat" }],
    });
    const joined = joinData([{ data, phrase: alone.phrase }]);
    const [a, b] = [
      await customize(model, alone, data, how.train),
      await customize(model, joint, joined, how.train),
    ];
    assertEquals(await valuesOf(b), await valuesOf(a));
    [alone, joint, a, b].forEach(disposeConcept);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("joint training: one adapter, the words of all", async () => {
  const model = await tinySd();
  const how = method("custom-diffusion", "paper", { steps: 2, batch: 2 });
  const names = [
    { name: "toy", classWord: "cat" },
    { name: "pet", classWord: "dog" },
  ];
  const start = await startJoint(model, how, {
    ...NAMES,
    name: "both",
    concepts: names,
  });
  assertEquals(start.phrase, "<toy1> cat and <pet1> dog");
  const parts = names.map(({ name, classWord }, i) => ({
    data: someData(model, i + 1, i + 1),
    phrase: how.phrase(name, classWord),
  }));
  const data = joinData(parts);
  assertEquals(data.count, 3);
  assertEquals(data.captions.map(([c]) => c), [
    "photo 0 of a <toy1> cat",
    "photo 0 of a <pet1> dog",
    "photo 1 of a <pet1> dog",
  ]);
  // The pictures stay with their captions.
  const size = data.mean.length / 3;
  assertEquals(data.mean.subarray(size), parts[1].data.mean);
  const before = await valuesOf(start);
  const trained = await customize(model, start, data, how.train);
  const after = await valuesOf(trained);
  for (const token of ["<toy1>", "<pet1>"]) {
    const name = `embedding.${token}`;
    assert(after.get(name)!.some((x, i) => x !== before.get(name)![i]), token);
  }
  assertThrows(
    () => joinData([parts[0], { ...parts[1], data: { ...data, height: 4 } }]),
    Error,
    "latents of 8×8",
  );
  await assertRejects(
    () =>
      startJoint(model, how, {
        ...NAMES,
        concepts: [names[0], names[0]],
      }),
    Error,
    "different names",
  );
  [start, trained].forEach(disposeConcept);
  disposeModel(model);
}, ["wasm"]);

Deno.test("methods say which word they start at", () => {
  assertEquals(METHODS.filter((name) => !startsAtClass(name)), [
    "dreambooth",
    "dreambooth-lora",
    "custom-diffusion",
    "svdiff",
  ]);
});
