import * as tf from "@tensorflow/tfjs";
import { assertEquals } from "@std/assert";
import { counting } from "../../src/core/counting.ts";
import { gradientsOf } from "../../src/core/tape.ts";
import { forEachBackend } from "../helpers.ts";

forEachBackend("bytes are those of the shapes", async (backend) => {
  const before = tf.memory().numTensors;
  const counts = await counting({}, (meter) => {
    const [a, b] = [meter.empty([200, 30]), meter.empty([30, 400])];
    const weights = 4 * (200 * 30 + 30 * 400);
    assertEquals(meter.count().live, weights);
    const y = tf.tidy(() => {
      // The product, its square; the product goes when the square is there.
      const product = tf.matMul(a as tf.Tensor2D, b as tf.Tensor2D);
      assertEquals(meter.count().live, weights + 4 * 200 * 400);
      return product.square();
    });
    const product = meter.count();
    assertEquals(product.live, weights + 4 * 200 * 400);
    assertEquals(product.peak, weights + 2 * 4 * 200 * 400);
    assertEquals(product.largest, 4 * 200 * 400);
    assertEquals(product.operations, 2);
    // Views share their bytes.
    const flat = y.reshape([80000]);
    assertEquals(meter.count().live, product.live);
    y.dispose();
    assertEquals(meter.count().live, product.live);
    tf.dispose([flat, a, b]);
    assertEquals(meter.count().live, 0);
    meter.restart();
    assertEquals(meter.count().peak, 0);
    return product;
  });
  // The buffers: nothing is submitted and freed before 15 operations.
  assertEquals(counts.held, counts.peak);
  assertEquals(tf.memory().numTensors, before);
  assertEquals(tf.getBackend(), backend);
});

forEachBackend("a convolution and its gradients", async () => {
  const { live, peak } = await counting({}, (meter) => {
    const x = meter.empty([2, 16, 16, 8]) as tf.Tensor4D;
    const f = meter.empty([3, 3, 8, 40]) as tf.Tensor4D;
    meter.restart();
    tf.tidy(() => {
      const { grads } = gradientsOf(
        () => tf.sum(tf.conv2d(x, f, 1, "same")),
        [x],
      );
      assertEquals(grads[0]!.shape, x.shape);
    });
    return meter.count();
  });
  const [x, f, y] = [2 * 16 * 16 * 8, 9 * 8 * 40, 2 * 16 * 16 * 40];
  assertEquals(live, 4 * (x + f));
  // On the way back: the sum, its gradient spread over all pixels, and the
  // gradient of x. The convolution saves neither the input that only its frozen
  // filter needs nor its output.
  assertEquals(peak, 4 * (x + f + y + x + 1));
}, ["wasm"]);

forEachBackend(
  "an error on the way gives the backend back",
  async (backend) => {
    let message = "";
    await counting({}, () => {
      throw new Error("on the way");
    }).catch((error: Error) => message = error.message);
    assertEquals(message, "on the way");
    assertEquals(tf.getBackend(), backend);
    assertEquals(tf.tidy(() => tf.add(1, 2).dataSync()[0]), 3);
  },
  ["wasm"],
);
