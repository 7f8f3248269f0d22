import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { checkpointed } from "../../src/core/checkpoint.ts";
import { counting } from "../../src/core/counting.ts";
import { key, normal } from "../../src/core/random.ts";
import { valueAndGrads } from "../../src/core/tree.ts";
import { close, forEachBackend, tolerance } from "../helpers.ts";

interface Layer {
  readonly w: tf.Tensor2D;
  readonly scale: tf.Tensor1D;
}

/** A layer that saves much: three activations for one output. */
function layer({ p, x }: { p: Layer; x: tf.Tensor2D }): tf.Tensor2D {
  return tf.mul(tf.sigmoid(tf.matMul(x, p.w)).square().exp(), p.scale);
}

type Net = { layers: Layer[]; bias: tf.Tensor1D };

/** Several layers; the bias goes into each of them, made anew. */
function net(
  { layers, bias }: Net,
  x: tf.Tensor2D,
  run: (f: typeof layer, inputs: { p: Layer; x: tf.Tensor2D }) => tf.Tensor2D,
): tf.Scalar {
  let h = x;
  for (const p of layers) {
    const shifted = { ...p, scale: tf.add(p.scale, bias) as tf.Tensor1D };
    h = tf.tidy(() => tf.add(h, run(layer, { p: shifted, x: h })));
  }
  return tf.mean(h.square());
}

function made(size: number, rows: number): { tree: Net; x: tf.Tensor2D } {
  const draw = (name: string, shape: number[]) =>
    tf.tensor(
      normal(key(name.length), shape.reduce((a, b) => a * b, 1), 0.1),
      shape,
    );
  return {
    tree: {
      layers: Array.from({ length: 4 }, (_, i) => ({
        w: draw("w".repeat(i + 1), [size, size]) as tf.Tensor2D,
        scale: draw("s".repeat(i + 9), [size]) as tf.Tensor1D,
      })),
      bias: draw("b", [size]) as tf.Tensor1D,
    },
    x: draw("x".repeat(30), [rows, size]) as tf.Tensor2D,
  };
}

forEachBackend("gradients are those of the plain call", async (backend) => {
  const { tree, x } = made(6, 5);
  const before = tf.memory().numTensors;
  const runs = [
    valueAndGrads((t) => net(t, x, (f, inputs) => f(inputs)), tree),
    valueAndGrads((t) => net(t, x, checkpointed), tree),
    // Only one layer learns: what is before it is not computed again.
    valueAndGrads((t) => net(t, x, checkpointed), tree, ["layers.2.w"]),
  ];
  const [plain, kept, part] = runs;
  assertEquals([...kept.grads.keys()], [...plain.grads.keys()]);
  for (const { value, grads } of [kept, part]) {
    close(await value.data(), await plain.value.data(), 0);
    for (const [name, grad] of grads) {
      const expected = await plain.grads.get(name)!.data();
      assert(expected.some((v) => v !== 0), name);
      close(await grad.data(), expected, tolerance(backend, 1e-7), name);
    }
  }
  for (const { value, grads } of runs) tf.dispose([value, ...grads.values()]);
  assertEquals(tf.memory().numTensors, before);
  tf.dispose([tree.layers.map(({ w, scale }) => [w, scale]), tree.bias, x]);
});

forEachBackend("one tensor at two places counts twice", async () => {
  const x = tf.tensor1d([3]);
  const { value, grads } = valueAndGrads(
    ({ x }) =>
      checkpointed(({ a, b }) => tf.sum(a.mul(b).mul(b)), { a: x, b: x }),
    { x },
  );
  close(await grads.get("x")!.data(), [27], 1e-5);
  const made = valueAndGrads(
    ({ x }) => {
      const twice = x.mul(2);
      return checkpointed(({ a, b }) => tf.sum(a.mul(b).mul(b)), {
        a: twice,
        b: twice,
      });
    },
    { x },
  );
  close(await made.grads.get("x")!.data(), [216], 1e-4);
  tf.dispose([x, value, made.value, ...grads.values(), ...made.grads.values()]);
}, ["wasm"]);

forEachBackend("less is kept", async () => {
  const peaks = await counting({}, (meter) => {
    const [size, rows] = [10, 1000];
    const tree: Net = {
      layers: Array.from({ length: 4 }, () => ({
        w: meter.empty([size, size]) as tf.Tensor2D,
        scale: meter.empty([size]) as tf.Tensor1D,
      })),
      bias: meter.empty([size]) as tf.Tensor1D,
    };
    const x = meter.empty([rows, size]) as tf.Tensor2D;
    return [
      (f: typeof layer, i: Parameters<typeof layer>[0]) => f(i),
      checkpointed,
    ]
      .map((run) => {
        meter.restart();
        tf.tidy(() => void valueAndGrads((t) => net(t, x, run), tree));
        return meter.count().peak / (4 * rows * size);
      });
  });
  // Plain: x, and of each layer its sigmoid, square, exp and output. Kept: x
  // and each output, and the inside of one layer with its gradients.
  assert(peaks[0] > 15, `${peaks}`);
  assert(peaks[1] < 12, `${peaks}`);
}, ["wasm"]);
