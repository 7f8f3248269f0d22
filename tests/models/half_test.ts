import * as tf from "@tensorflow/tfjs";
import { assert, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key, normal } from "../../src/core/random.ts";
import { disposeTree, mapTree, valueAndGrads } from "../../src/core/tree.ts";
import {
  disposeModel,
  loadModel,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import { unet } from "../../src/models/unet.ts";
import { close, fixturePath, forEachBackend } from "../helpers.ts";

declare const Float16Array: {
  new (values: ArrayLike<number>): ArrayLike<number>;
};

/** Layers' weights rounded to half floats, in a tree of their own. */
function rounded<T>(tree: T): T {
  return mapTree(tree, (leaf, path) => {
    if (leaf.rank < 2 || path.endsWith("embedding.weight")) return leaf.clone();
    return tf.tensor(
      Float32Array.from(
        new Float16Array(leaf.dataSync()) as
          & ArrayLike<number>
          & Iterable<number>,
      ),
      leaf.shape,
    );
  });
}

/** The UNet's output for a prompt, and its gradient by the latent. */
async function outcome(model: Model): Promise<[Float32Array, Float32Array]> {
  const { params, config } = model.unet;
  const x = tf.tensor4d(normal(key(1), 8 * 8 * config.in_channels), [
    1,
    8,
    8,
    config.in_channels,
  ]);
  const states = tf.tidy(() => promptStates(model, ["a photo of a dog"]));
  const made = tf.tidy(() => unet(params, config, x, [500], states));
  const { value, grads } = valueAndGrads(
    ({ x }) => tf.mean(tf.square(unet(params, config, x, [500], states))),
    { x },
  );
  const results = [
    await made.data() as Float32Array,
    await grads.get("x")!.data() as Float32Array,
  ] as [Float32Array, Float32Array];
  tf.dispose([x, states, made, value, ...grads.values()]);
  return results;
}

forEachBackend("a model of half floats computes as on wasm", async () => {
  await selectBackend("wasm");
  const plain = await loadModel(fixturePath("tiny-sd"));
  const same: Model = {
    ...plain,
    textEncoder: {
      ...plain.textEncoder,
      params: rounded(plain.textEncoder.params),
    },
    unet: { ...plain.unet, params: rounded(plain.unet.params) },
  };
  const expected = await outcome(same);
  disposeTree([same.textEncoder.params, same.unet.params]);
  disposeModel(plain);
  await selectBackend("webgpu");
  const half = await loadModel(fixturePath("tiny-sd"), { half: true });
  const got = await outcome(half);
  disposeModel(half);
  for (const [i, what] of ["output", "gradient"].entries()) {
    const largest = expected[i].reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    assert(largest > 0);
    close(got[i], expected[i], 2e-5 * largest, what);
  }
}, ["webgpu"]);

forEachBackend("elsewhere half floats are refused", async () => {
  await assertRejects(
    () => loadModel(fixturePath("tiny-sd"), { half: true }),
    Error,
    "Cannot keep half floats: expected webgpu, got wasm",
  );
}, ["wasm"]);
