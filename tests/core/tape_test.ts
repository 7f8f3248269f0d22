import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { gradientsOf } from "../../src/core/tape.ts";
import { key, normal } from "../../src/core/random.ts";
import { forEachBackend } from "../helpers.ts";

const tensor = (seed: number, ...shape: number[]): tf.Tensor =>
  tf.tensor(normal(key(seed), shape.reduce((a, b) => a * b, 1)), shape);

/** Functions of four tensors, each a trap of its own. */
const FUNCTIONS: Record<string, (...x: tf.Tensor[]) => tf.Tensor> = {
  "products, sums and shapes": (a, b, x, f) =>
    tf.sum(
      tf.matMul(a as tf.Tensor2D, b as tf.Tensor2D).add(1).sub(b.slice(0, 1))
        .mul(a.mean()),
    ).add(tf.mean(tf.conv2d(x as tf.Tensor4D, f as tf.Tensor4D, 1, "same"))),
  "one tensor used many times": (a) => tf.sum(a.mul(a).add(a).add(a.mul(3))),
  "a gradient handed on unchanged": (a, b) =>
    tf.sum(a.add(b.slice([0, 0], [3, 4]).reshape([3, 4])).add(a)),
  "parts that lead nowhere": (a, b) => {
    tf.sum(b.exp());
    return tf.sum(tf.concat([a, a.square()], 1).pad([[1, 0], [0, 2]]));
  },
  "several outputs": (a, b) => {
    const [left, right] = tf.split(a, 2, 1);
    return tf.sum(left.mul(2)).add(tf.sum(tf.softmax(b)))
      .add(tf.sum(right.square()).mul(0));
  },
  "a gradient of one's own": (a) =>
    tf.sum(
      tf.customGrad((x, save) => {
        (save as (t: tf.Tensor[]) => void)([x as tf.Tensor]);
        return {
          value: (x as tf.Tensor).square(),
          gradFunc: (dy: tf.Tensor, [saved]: tf.Tensor[]) =>
            dy.mul(saved).mul(2),
        };
      })(a),
    ),
};

forEachBackend("gradients are tfjs's, bit for bit", async (backend) => {
  const inputs = [
    tensor(1, 3, 4),
    tensor(2, 4, 4),
    tensor(3, 2, 5, 5, 3),
    tensor(4, 3, 3, 3, 2),
  ];
  for (const [name, f] of Object.entries(FUNCTIONS)) {
    // Frozen tensors, too: their gradients' inputs are not saved.
    for (const chosen of [[0, 1, 2, 3], [0], [1], [2], [3]]) {
      const xs = chosen.map((i) => inputs[i]);
      const before = tf.memory().numTensors;
      const ours = tf.tidy(() => {
        const { value, grads } = gradientsOf(() => f(...inputs), xs);
        return [value, ...grads.map((g, i) => g ?? tf.zerosLike(xs[i]))];
      });
      assertEquals(tf.memory().numTensors, before + ours.length, name);
      const theirs = tf.tidy(() => {
        // deno-lint-ignore no-explicit-any
        const { value, grads } = (tf.engine() as any).gradients(
          () => f(...inputs),
          xs,
          undefined,
          true,
        ) as { value: tf.Tensor; grads: (tf.Tensor | undefined)[] };
        return [value, ...grads.map((g, i) => g ?? tf.zerosLike(xs[i]))];
      });
      for (const [i, mine] of ours.entries()) {
        const [a, b] = [await mine.data(), await theirs[i].data()];
        if (backend === "wasm") assertEquals(a, b, `${name} ${chosen}`);
        else a.forEach((v, k) => assert(Math.abs(v - b[k]) < 1e-4, name));
      }
      tf.dispose([ours, theirs]);
    }
  }
  tf.dispose(inputs);
});

forEachBackend(
  "a gradient that is somebody else's tensor stays theirs",
  async () => {
    const x = tensor(1, 2, 2), constant = tensor(2, 2, 2);
    const before = tf.memory().numTensors;
    // Handed out as it was saved, and as it was captured: d/dx of x²/2 and of
    // constant·x, where the gradient from above is one.
    const own = tf.customGrad((x, save) => {
      (save as (t: tf.Tensor[]) => void)([x as tf.Tensor]);
      return {
        value: (x as tf.Tensor).square().div(2),
        gradFunc: (_dy: tf.Tensor, [saved]: tf.Tensor[]) => saved,
      };
    });
    const captured = tf.customGrad((x) => ({
      value: (x as tf.Tensor).mul(constant),
      gradFunc: () => constant,
    }));
    const [gradient] = tf.tidy(() =>
      gradientsOf(
        () => tf.sum(own(x.mul(1)).add(captured(x.mul(1)))),
        [x],
      ).grads
    );
    const [a, b, sum] = [x, constant, gradient!].map((t) => t.dataSync());
    sum.forEach((value, i) => assert(Math.abs(value - a[i] - b[i]) < 1e-6));
    gradient!.dispose();
    assertEquals(tf.memory().numTensors, before);
    assertEquals(await constant.data(), b);
    tf.dispose([x, constant]);
  },
  ["wasm"],
);

forEachBackend("a gradient of a gradient still works", async () => {
  const x = tf.scalar(3);
  const second = tf.grad((x) => {
    const { grads } = gradientsOf(() => x.mul(x).mul(x), [x]);
    return grads[0]!;
  })(x);
  assertEquals((await second.data())[0], 18);
  tf.dispose([x, second]);
}, ["wasm"]);

forEachBackend("an error on the way leaves no tensor behind", () => {
  const x = tensor(1, 2, 2);
  const before = tf.memory().numTensors;
  assertThrows(
    () =>
      tf.tidy(() => {
        gradientsOf(() => {
          x.square().mul(x);
          throw new Error("on the way");
        }, [x]);
      }),
    Error,
    "on the way",
  );
  assertEquals(tf.memory().numTensors, before);
  // The tape is off again: nothing is saved outside.
  const y = x.square();
  assertEquals(tf.memory().numTensors, before + 1);
  tf.dispose([x, y]);
}, ["wasm"]);
