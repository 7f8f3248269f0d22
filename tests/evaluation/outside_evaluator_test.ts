import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { encodeBase64 } from "../../src/core/kernels/base64.ts";
import {
  openMobileNet,
  type PackedModel,
} from "../../src/evaluation/outside_evaluator.ts";
import { close } from "../helpers.ts";

await selectBackend("wasm");

/** A network of MobileNetV2's input, packed as nsfwjs packs its own. */
async function pack(features: string): Promise<PackedModel> {
  const net = tf.sequential({
    layers: [
      tf.layers.averagePooling2d({
        inputShape: [224, 224, 3],
        poolSize: 112,
        strides: 112,
      }),
      tf.layers.flatten({ name: features }),
      tf.layers.dense({ units: 2 }),
    ],
  });
  let artifacts: tf.io.ModelArtifacts | undefined;
  await net.save(tf.io.withSaveHandler((a) => {
    artifacts = a;
    return Promise.resolve({
      modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: "JSON" },
    });
  }));
  net.dispose();
  const { modelTopology, weightSpecs, weightData } = artifacts!;
  const bytes = new Uint8Array(weightData as ArrayBuffer);
  const cut = bytes.length >> 1;
  return {
    json: { modelTopology, weightsManifest: [{ weights: weightSpecs! }] },
    weights: [bytes.slice(0, cut), bytes.slice(cut)].map(encodeBase64),
  };
}

Deno.test("the evaluator gives the unit features of the pooled layer", async () => {
  const packed = await pack("flatten_1");
  const before = tf.memory().numTensors;
  {
    using evaluator = await openMobileNet(packed);
    // Left half black, right half red: four quarters of three channels.
    const data = new Uint8Array(64 * 64 * 3);
    for (let i = 0; i < 64 * 64; i++) data[3 * i] = i % 64 < 32 ? 0 : 255;
    const image = { width: 64, height: 64, channels: 3, data };
    const rows = await evaluator.embed(new Array(9).fill(image));
    assertEquals(rows.length, 9);
    // The middle column of the enlarged picture is a blend: 1 % of a half.
    const half = Math.SQRT1_2;
    close(rows[8], [0, 0, 0, half, 0, 0, 0, 0, 0, half, 0, 0], 0.01);
  }
  assertEquals(tf.memory().numTensors, before);
});

Deno.test("a network without the pooled layer is refused", async () => {
  const packed = await pack("something_else");
  await assertRejects(() => openMobileNet(packed), Error, "flatten_1");
});
