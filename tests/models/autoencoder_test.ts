import * as tf from "@tensorflow/tfjs";
import { assert } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { disposeTree, valueAndGrads } from "../../src/core/tree.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  decode,
  encode,
} from "../../src/models/autoencoder.ts";
import { parseAutoencoderConfig } from "../../src/models/config.ts";
import { initialise } from "../../src/nn/spec.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

/** Three levels, as many channels as make a difference between them. */
const config = parseAutoencoderConfig({
  block_out_channels: [8, 16, 16],
  down_block_types: new Array(3).fill("DownEncoderBlock2D"),
  up_block_types: new Array(3).fill("UpDecoderBlock2D"),
  layers_per_block: 1,
  norm_num_groups: 4,
  latent_channels: 4,
});

const random = (seed: number, ...shape: number[]) =>
  tf.tensor(normal(key(seed), shape.reduce((a, b) => a * b, 1)), shape);

/** Bytes of the largest tensor an operation of a function makes. */
function largest(run: () => tf.Tensor): { bytes: number; result: tf.Tensor } {
  let bytes = 0;
  const engine = tf.engine() as unknown as {
    makeTensorFromTensorInfo(info: tf.TensorInfo): tf.Tensor;
  };
  const plain = engine.makeTensorFromTensorInfo;
  // A product of sizes: what an operation gives back, views aside.
  engine.makeTensorFromTensorInfo = function (info) {
    bytes = Math.max(bytes, 4 * info.shape.reduce((a, b) => a * b, 1));
    return plain.call(this, info);
  };
  try {
    return { result: run(), bytes };
  } finally {
    engine.makeTensorFromTensorInfo = plain;
  }
}

forEachBackend(
  "bands of any height give the whole picture",
  async (backend) => {
    await noLeak(async () => {
      const p = initialise<Autoencoder>(autoencoderSpec(config), key(1));
      const latents = random(2, 2, 10, 6, 4) as tf.Tensor4D;
      const pictures = random(3, 2, 40, 24, 3) as tf.Tensor4D;
      const whole = {
        decoded: tf.tidy(() => decode(p, config, latents)),
        encoded: tf.tidy(() => encode(p, config, pictures).moments),
      };
      // The largest features: 2 × 40 × 24 pixels, 16 channels upsampled.
      for (const part of [2, 3, 8, 20]) {
        const maxBytes = Math.floor(4 * 2 * 40 * 24 * 16 / part);
        const decoded = tf.tidy(() => {
          const made = largest(() => decode(p, config, latents, { maxBytes }));
          // Where a band is one line its neighbours come on top.
          if (part < 8) {
            assert(made.bytes <= maxBytes, `${made.bytes} of ${maxBytes}`);
          }
          return made.result;
        });
        const encoded = tf.tidy(() =>
          encode(p, config, pictures, { maxBytes }).moments
        );
        for (
          const [name, bands, plain] of [
            ["decode", decoded, whole.decoded],
            ["encode", encoded, whole.encoded],
          ] as const
        ) {
          close(
            await bands.data(),
            await plain.data(),
            tolerance(backend, 2e-6),
            `${name} in 1/${part}`,
          );
          bands.dispose();
        }
      }
      tf.dispose([latents, pictures, whole.decoded, whole.encoded]);
      disposeTree(p);
    });
  },
);

forEachBackend("bands have the whole picture's gradients", async (backend) => {
  await noLeak(async () => {
    const p = initialise<Autoencoder>(autoencoderSpec(config), key(4));
    const latents = random(5, 1, 6, 6, 4) as tf.Tensor4D;
    const paths = [
      "decoder.conv_in.weight",
      "decoder.up_blocks.2.resnets.0.norm1.weight",
      "decoder.up_blocks.1.upsamplers.0.conv.bias",
    ];
    const grads = (maxBytes: number) =>
      valueAndGrads(
        (p) => decode(p, config, latents, { maxBytes }).square().mean(),
        p,
        paths,
      );
    const whole = grads(Infinity);
    const bands = grads(4 * 24 * 24 * 16 / 4);
    for (const path of paths) {
      close(
        await bands.grads.get(path)!.data(),
        await whole.grads.get(path)!.data(),
        tolerance(backend, 1e-5),
        path,
      );
    }
    for (const { value, grads } of [whole, bands]) {
      tf.dispose([value, ...grads.values()]);
    }
    disposeTree(p);
    latents.dispose();
  });
});
