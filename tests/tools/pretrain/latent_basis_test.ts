import { assert, assertAlmostEquals } from "@std/assert";
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../../../src/core/backend.ts";
import { key, normal } from "../../../src/core/random.ts";
import { disposeTree } from "../../../src/core/tree.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  decode,
  encode,
} from "../../../src/models/autoencoder.ts";
import { initialise } from "../../../src/nn/spec.ts";
import { latentBasis, rescaleLatents } from "./latent_basis.ts";
import { VAE_CONFIG } from "./recipe.ts";

/** Three channels: one strong, one its mixture, one weak. */
function mixed(n: number): Float32Array {
  const draw = normal(key(3), 3 * n);
  const out = new Float32Array(3 * n);
  for (let i = 0; i < n; i++) {
    const [a, b, c] = draw.subarray(3 * i, 3 * i + 3);
    out.set([2 + 4 * a, 3 * a + b, 0.1 * c - 1], 3 * i);
  }
  return out;
}

Deno.test("a latent basis: zero mean, no correlation, std^0.4, mean square one", () => {
  const n = 20_000;
  const latents = mixed(n);
  const { mean, forward, backward } = latentBasis(latents, 3);
  const moments = new Float64Array(9), centre = new Float64Array(3);
  for (let i = 0; i < n; i++) {
    const z = [0, 1, 2].map((j) =>
      forward.reduce(
        (sum, row, c) => sum + (latents[3 * i + c] - mean[c]) * row[j],
        0,
      )
    );
    for (let a = 0; a < 3; a++) {
      centre[a] += z[a] / n;
      for (let b = 0; b < 3; b++) moments[3 * a + b] += z[a] * z[b] / n;
    }
  }
  for (let a = 0; a < 3; a++) {
    assertAlmostEquals(centre[a], 0, 1e-4);
    for (let b = 0; b < a; b++) assertAlmostEquals(moments[3 * a + b], 0, 1e-4);
  }
  assertAlmostEquals((moments[0] + moments[4] + moments[8]) / 3, 1, 1e-4);
  // The axes' spreads before: √25.6…, √0.4…, 0.1; after, their ratio^0.4.
  const [a, b] = eigenvalues([[16, 12], [12, 10]]);
  assertAlmostEquals(moments[0] / moments[4], (a / b) ** 0.4, 0.2);
  assertAlmostEquals(moments[0] / moments[8], (a / 0.01) ** 0.4, 1);
  for (let i = 0; i < 3; i++) {
    for (let j = 0; j < 3; j++) {
      const identity = forward[i].reduce(
        (sum, f, k) => sum + f * backward[k][j],
        0,
      );
      assertAlmostEquals(identity, i === j ? 1 : 0, 1e-9);
    }
  }
});

function eigenvalues([[a, b], [c, d]]: number[][]): [number, number] {
  const half = (a + d) / 2, root = Math.sqrt(half ** 2 - (a * d - b * c));
  return [half + root, half - root];
}

Deno.test("latents in another basis decode to the same pixels", async () => {
  await selectBackend("wasm");
  const before = tf.memory().numTensors;
  const vae = initialise<Autoencoder>(autoencoderSpec(VAE_CONFIG), key(1));
  const channels = VAE_CONFIG.latent_channels;
  const basis = latentBasis(normal(key(2), 200 * channels), channels);
  const changed = rescaleLatents(vae, basis, new Array(channels).fill(0.25));
  const [difference, moved, variance] = tf.tidy(() => {
    const image = tf.tensor4d(normal(key(4), 16 * 16 * 3), [1, 16, 16, 3]);
    const from = encode(vae, VAE_CONFIG, image);
    const to = encode(changed, VAE_CONFIG, image);
    const max = (t: tf.Tensor) => tf.max(tf.abs(t)).dataSync()[0];
    return [
      max(tf.sub(
        decode(vae, VAE_CONFIG, from.mean),
        decode(changed, VAE_CONFIG, to.mean),
      )),
      max(tf.sub(from.mean, to.mean)),
      tf.slice(to.logvar.exp(), [0, 0, 0, 0], [1, 1, 1, 1]).dataSync()[0],
    ];
  });
  assert(difference < 1e-4, `${difference}`);
  assert(moved > 1e-2, `${moved}`);
  const expected = basis.forward.reduce((sum, row) => sum + row[0] ** 2, 0) / 4;
  assertAlmostEquals(variance, expected, 1e-5);
  // Leaves that did not change are shared.
  disposeTree([vae, changed]);
  assertAlmostEquals(tf.memory().numTensors, before, 0);
});
