import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { close, fixturePath, forEachBackend, noLeak } from "./helpers.ts";

Deno.test("close accepts errors up to the tolerance and names the worst", () => {
  close([1, 2, 3], new Float32Array([1, 2, 3.25]), 0.25);
  close(Infinity, Infinity, 0);
  const error = assertThrows(() => close([1, 2, 3], [1, 2.5, 3.25], 0.25, "y"));
  assertEquals(
    (error as Error).message,
    "y: maximum error 5.000e-1 at 1 of 3 (actual 2, expected 2.5) is above " +
      "the tolerance 2.5e-1",
  );
});

Deno.test("close rejects NaN and other lengths", () => {
  assertThrows(() => close([1, NaN, 3], [1, 2, 3], 100), Error, "NaN at 1");
  assertThrows(() => close([1, 2], [1, 2, 3], 100), Error, "elements");
});

Deno.test("fixturePath lies beside this file", () => {
  assertEquals(
    fixturePath("a/b.json"),
    new URL("./fixtures/a/b.json", import.meta.url).pathname,
  );
});

forEachBackend(
  "the chosen backend computes, and noLeak counts",
  async (backend) => {
    assertEquals(tf.getBackend(), backend);
    await noLeak(async () => {
      const product = tf.tidy(() => tf.tensor1d([1, 2, 3]).mul(2));
      close(await product.data(), [2, 4, 6], 0);
      product.dispose();
    });
    const left: tf.Tensor[] = [];
    await assertRejects(
      () => noLeak(() => left.push(tf.scalar(1))),
      Error,
      "left",
    );
    left.forEach((tensor) => tensor.dispose());
  },
);
