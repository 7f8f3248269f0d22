import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import {
  addAll,
  bindingLimit,
  forgetHostCopy,
  hostValues,
  moveToCard,
  settle,
} from "../../src/core/device.ts";
import { forEachBackend, noLeak } from "../helpers.ts";

forEachBackend("any number of tensors are added", async () => {
  await noLeak(async () => {
    for (const count of [1, 2, 7, 8, 13, 14, 50]) {
      const parts = Array.from(
        { length: count },
        (_, i) => tf.tensor1d([i, 1]),
      );
      const sum = addAll(parts);
      assertEquals([...await sum.data()], [count * (count - 1) / 2, count]);
      tf.dispose([sum, ...parts]);
    }
    const grad = tf.tidy(() =>
      tf.grad((x) =>
        addAll(new Array(9).fill(x).map((t) => tf.mul(t, 2))).sum()
      )(
        tf.tensor1d([1, 2]),
      )
    );
    assertEquals([...await grad.data()], [18, 18]);
    grad.dispose();
  });
});

forEachBackend(
  "a tensor waits on the host until it is needed",
  async (name) => {
    const card = name === "webgpu";
    assertEquals(bindingLimit() < Infinity, card);
    await noLeak(async () => {
      const values = Float32Array.of(1, 2, 3);
      const x = tf.tensor1d(values);
      assertEquals(hostValues(x), card ? values : undefined);
      assertEquals(moveToCard(x), card);
      assertEquals(hostValues(x), undefined);
      await settle();
      if (card) values.fill(0);
      assertEquals([...await x.data()], [1, 2, 3]);
      forgetHostCopy(x);
      const y = tf.add(x, 1);
      assertEquals([...await y.data()], [2, 3, 4]);
      // What is nowhere else is not forgotten.
      const z = tf.tensor1d([5]);
      forgetHostCopy(z);
      assert((await z.data())[0] === 5);
      tf.dispose([x, y, z]);
    });
  },
);
