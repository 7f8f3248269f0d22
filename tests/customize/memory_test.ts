import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { conceptTensors, disposeConcept } from "../../src/customize/concept.ts";
import type { TrainData } from "../../src/customize/dataset.ts";
import { trainingMemory } from "../../src/customize/memory.ts";
import { method, startConcept } from "../../src/customize/methods.ts";
import { train } from "../../src/customize/train.ts";
import { downsampleFactor } from "../../src/models/autoencoder.ts";
import { configsOf } from "../../src/models/blank.ts";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { close, forEachBackend, inFolder, noLeak } from "../helpers.ts";
import { tinySd } from "./tiny_sd.ts";
import { batchOf, conceptGradients } from "./gradients.ts";

const micro = () =>
  loadModel(new URL("../../models/micro", import.meta.url).pathname);

/** Gradients of a method both ways, compared relative to each largest one. */
async function compare(
  model: Model,
  name: "ed-lora" | "lora",
  preset: "paper" | "official",
  most: number,
): Promise<void> {
  const chosen = method(name, preset);
  const concept = await startConcept(model, chosen, {
    name: "n",
    classWord: "dog",
    key: key(3),
    overrides: { severalTokens: "mean" },
  });
  // `up` starts at zero, and then `down` has no gradient.
  for (const [path, tensor] of conceptTensors(concept)) {
    if (!path.endsWith(".up")) continue;
    (tensor as unknown as { dataId: object }).dataId =
      tf.randomNormal(tensor.shape, 0, 0.1, "float32", path.length).dataId;
  }
  const batch = batchOf(model, 8, [
    `photo of a ${concept.phrase}`,
    `a ${concept.phrase} on a table`,
  ]);
  const runs = [];
  for (const memory of ["high", "low"] as const) {
    runs.push(
      await conceptGradients(model, concept, batch, chosen.train, memory),
    );
  }
  const [high, low] = runs;
  close(low.losses.total, high.losses.total, most * high.losses.total, "loss");
  assertEquals([...low.grads.keys()], [...high.grads.keys()]);
  let [moved, errors, squares] = [0, 0, 0];
  for (const [path, grad] of high.grads) {
    const expected = await grad.data();
    const got = await low.grads.get(path)!.data();
    const norm = (v: ArrayLike<number>) =>
      Math.sqrt(Array.from(v).reduce((sum, x) => sum + x * x, 0));
    const size = norm(expected);
    if (size > 0) moved++;
    const error = norm(Array.from(got, (v, i) => v - expected[i]));
    // Sums in another order: small gradients are differences of large ones.
    assert(error <= 5 * most * size, `${path}: ${error} of ${size}`);
    errors += error ** 2;
    squares += size ** 2;
  }
  assert(moved > 0.9 * high.grads.size, `${moved} of ${high.grads.size}`);
  const relative = Math.sqrt(errors / squares);
  assert(relative <= most, `all gradients: ${relative}`);
  for (const { grads } of runs) tf.dispose([...grads.values()]);
  tf.dispose([batch.latents, batch.noise, batch.mask!]);
  disposeConcept(concept);
}

forEachBackend("checkpointed gradients of the embedded model", async () => {
  const model = await micro();
  await compare(model, "ed-lora", "paper", 1e-6);
  // With attention maps in the loss.
  await compare(model, "lora", "official", 1e-6);
  disposeModel(model);
}, ["wasm"]);

forEachBackend("checkpointed gradients of the tiny model", async () => {
  // The smallest: a software adapter takes 40 seconds for the tiny SD's.
  await inFolder(async (folder) => {
    const model = await loadModel((await writeTinyWorld(folder)).model);
    await compare(model, "ed-lora", "paper", 1e-5);
    disposeModel(model);
  });
}, ["webgpu"]);

/** Pictures of noise. */
function pictures(model: Model, count: number, side: number): TrainData {
  const channels = model.unet.config.in_channels;
  const size = count * side * side * channels;
  return {
    count,
    height: side,
    width: side,
    channels,
    mean: new Float32Array(size).map((_, i) => Math.sin(i)),
    std: new Float32Array(size).fill(0.1),
    captions: Array.from({ length: count }, (_, i) => [`${i} {}`]),
    mask: new Uint8Array(count * side * side).fill(1),
  };
}

/** The most bytes of tensors at a time while something runs on wasm. */
async function measuredPeak(run: () => Promise<void>): Promise<number> {
  const backend = tf.backend() as unknown as {
    dataIdMap: {
      set(id: object, entry: { shape: number[] }): void;
      delete(id: object): boolean;
      get(id: object): { shape: number[] };
      has(id: object): boolean;
    };
  };
  const { dataIdMap } = backend;
  const { set, delete: remove } = dataIdMap;
  let [live, peak] = [0, 0];
  const bytes = ({ shape }: { shape: number[] }) =>
    4 * shape.reduce((a, b) => a * b, 1);
  dataIdMap.set = (id, entry) => {
    live += bytes(entry);
    peak = Math.max(peak, live);
    return set.call(dataIdMap, id, entry);
  };
  dataIdMap.delete = (id) => {
    if (dataIdMap.has(id)) live -= bytes(dataIdMap.get(id));
    return remove.call(dataIdMap, id);
  };
  try {
    await run();
  } finally {
    Object.assign(dataIdMap, { set, delete: remove });
  }
  return peak;
}

forEachBackend("the count is what a step takes on wasm", async () => {
  const model = await micro();
  const side = 16;
  const factor = downsampleFactor(model.autoencoder.config);
  for (const memory of ["high", "low"] as const) {
    const chosen = method("ed-lora", "paper", { batch: 2, steps: 2 });
    const need = await trainingMemory(configsOf(model), {
      method: chosen,
      height: factor * side,
      width: factor * side,
      memory,
    }, { kernels: "wasm" });
    const concept = await startConcept(model, chosen, {
      name: "n",
      classWord: "dog",
      key: key(0),
      overrides: { severalTokens: "mean" },
    });
    const data = pictures(model, 2, side);
    const peak = await measuredPeak(async () => {
      for await (
        const _ of train(model, concept, data, chosen.train, { memory })
      ) { /* both steps */ }
    });
    disposeConcept(concept);
    // The weights were there before. So was the concept, which is counted; but
    // the second step, which is not, has its tensors anew.
    const counted = need.peak - need.weights;
    const off = Math.abs(counted / peak - 1);
    assert(off < 0.005, `${memory}: counted ${counted}, got ${peak}`);
  }
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a count leaves nothing behind", async () => {
  const model = await tinySd();
  const configs = configsOf(model);
  const plan = {
    method: method("ed-lora", "paper", { batch: 1 }),
    height: 64,
    width: 64,
  };
  await noLeak(async () => {
    const [high, low] = [
      await trainingMemory(configs, plan),
      await trainingMemory(configs, { ...plan, memory: "low" }),
    ];
    assertEquals(high.weights, low.weights);
    assert(low.activations < high.activations);
    const large = await trainingMemory(configs, { ...plan, width: 256 });
    assert(large.activations > 2 * high.activations);
  });
  disposeModel(model);
});
