import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { counting } from "../../src/core/counting.ts";
import {
  addAll,
  bindingLimit,
  boundCard,
  forgetHostCopy,
  hostValues,
  moveToCard,
  settle,
} from "../../src/core/device.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";

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

/** Products of many sizes, each made of the one before. */
function manySizes(rounds: number): tf.Tensor2D {
  return tf.tidy(() => {
    let x: tf.Tensor2D = tf.fill([40, 50], 0.01);
    for (let i = 0; i < rounds; i++) {
      const before = x;
      x = tf.tidy(() => {
        const [rows, columns] = before.shape;
        const right = tf.fill([columns, columns + 3], 1 / columns);
        return tf.matMul(tf.add(before, 0.5), right).slice([0, 1], [
          rows,
          columns + 1,
        ]) as tf.Tensor2D;
      });
      before.dispose();
    }
    return x;
  });
}

forEachBackend("a bounded card computes the same with less", async () => {
  const plain = manySizes(40);
  const expected = await plain.data();
  const rounds = 40;
  const held = (bytes?: number) =>
    counting({}, (meter) => {
      const release = bytes === undefined ? () => {} : boundCard(bytes);
      manySizes(rounds).dispose();
      release();
      return meter.count();
    });
  const [free, bound] = [await held(), await held(50_000)];
  assertEquals(bound.peak, free.peak);
  assert(free.held > 4 * bound.held, `${free.held} and ${bound.held}`);
  assert(bound.held < bound.peak + 150_000, `${bound.held} of ${bound.peak}`);
  const before = tf.memory().numTensors;
  const release = boundCard(50_000);
  const again = manySizes(rounds);
  close(await again.data(), expected, 0);
  release();
  tf.dispose([again]);
  assertEquals(tf.memory().numTensors, before);
  plain.dispose();
});
