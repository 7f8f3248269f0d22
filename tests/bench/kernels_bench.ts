/**
 * This library's wasm kernels against stock tfjs, in the same run: each group
 * ends with how many times faster.
 */
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../../src/core/backend.ts";
import {
  attention,
  geglu,
  groupNorm,
  layerNorm,
} from "../../src/core/kernels/ops.ts";
import {
  registerKernels,
  unregisterKernels,
} from "../../src/core/kernels/register.ts";

await selectBackend("wasm");

/** One thing done by stock tfjs (the baseline) and by this library. */
function versus(
  group: string,
  work: () => tf.Tensor | tf.Tensor[],
  times = 10,
): void {
  for (const own of [false, true]) {
    Deno.bench({
      name: `${group}: ${own ? "this library" : "stock tfjs"}`,
      group,
      baseline: own,
      // Enough for V8 to replace baseline code before it is measured.
      warmup: own ? 20 : 2,
      n: own ? 4 * times : times,
      fn(b) {
        if (own) registerKernels();
        else unregisterKernels();
        b.start();
        const result = work();
        b.end();
        tf.dispose(result);
      },
    });
  }
}

const normal = (...shape: number[]) =>
  tf.randomNormal(shape, 0, 1, "float32", 1);

/** Forward pass and gradients for a given gradient of the result. */
function gradients(
  f: (...inputs: tf.Tensor[]) => tf.Tensor,
  inputs: tf.Tensor[],
): () => tf.Tensor[] {
  const dy = tf.tidy(() => normal(...f(...inputs).shape));
  const grads = tf.grads(f);
  return () => grads(inputs, dy);
}

for (
  const [m, k, n] of [[2048, 256, 256], [8192, 64, 64], [512, 128, 512]]
) {
  versus(
    `dense forward + gradients [${m},${k}]x[${k},${n}]`,
    gradients(
      (x, w) => tf.matMul(x as tf.Tensor2D, w as tf.Tensor2D),
      [normal(m, k), normal(k, n)],
    ),
  );
}

for (
  const [b, m, k, n] of [[32, 256, 32, 256], [32, 256, 256, 32], [
    16,
    1024,
    40,
    1024,
  ]]
) {
  const [x, y] = [normal(b, m, k), normal(b, k, n)];
  versus(
    `batched matMul ${b}x[${m},${k}]x[${k},${n}]`,
    () => tf.matMul(x, y),
    5,
  );
}

for (const [b, side, cin, cout] of [[16, 16, 96, 96], [8, 8, 128, 128]]) {
  const dy = normal(b, side, side, cout);
  const filter = normal(3, 3, cin, cout);
  const x = normal(b, side, side, cin);
  const size = `${b}x${side}x${side}, 3x3, ${cin} to ${cout}`;
  const attrs = { strides: 1, pad: "same", dataFormat: "NHWC" };
  versus(
    `convolution forward ${size}`,
    () => tf.conv2d(x as tf.Tensor4D, filter as tf.Tensor4D, 1, "same"),
  );
  versus(
    `convolution input gradient ${size}`,
    () =>
      tf.engine().runKernel(
        "Conv2DBackpropInput",
        { dy, filter },
        { ...attrs, inputShape: x.shape },
      ) as tf.Tensor,
  );
  const group = `convolution filter gradient ${size}`;
  Deno.bench(`${group}: this library (stock tfjs has none)`, { group }, (b) => {
    registerKernels();
    b.start();
    const df = tf.engine().runKernel(
      "Conv2DBackpropFilter",
      { x, dy },
      { ...attrs, filterShape: filter.shape },
    ) as tf.Tensor;
    b.end();
    df.dispose();
  });
}

// Unregistered, the same functions are plain tfjs.
const tokens = () => normal(8, 256, 96);
versus(
  "attention forward + gradients 8x256x96, 4 heads",
  gradients(
    (q, k, v) =>
      attention(q as tf.Tensor3D, k as tf.Tensor3D, v as tf.Tensor3D, 4),
    [tokens(), tokens(), tokens()],
  ),
  5,
);
versus(
  "groupNorm + silu forward + gradients 16x16x16x96",
  gradients(
    (x, g, b) =>
      groupNorm(x, 8, g as tf.Tensor1D, b as tf.Tensor1D, 1e-5, { silu: true }),
    [normal(16, 16, 16, 96), normal(96), normal(96)],
  ),
);
versus(
  "layerNorm forward + gradients [4096,96]",
  gradients(
    (x, g, b) => layerNorm(x, g as tf.Tensor1D, b as tf.Tensor1D, 1e-5),
    [normal(4096, 96), normal(96), normal(96)],
  ),
);
versus(
  "geglu forward + gradients [4096,768]",
  gradients((x) => geglu(x), [normal(4096, 768)]),
);
