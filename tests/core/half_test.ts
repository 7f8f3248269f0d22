import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { halfTensor, readingHalves } from "../../src/core/kernels/half.ts";
import { key, normal } from "../../src/core/random.ts";
import { gradientsOf } from "../../src/core/tape.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";

declare const Float16Array: {
  new (values: ArrayLike<number>): ArrayLike<number>;
};

const draw = (seed: number, ...shape: number[]): Float32Array =>
  normal(key(seed), shape.reduce((a, b) => a * b, 1));

/** Values that half floats hold exactly. */
const exact = (values: Float32Array): Float32Array =>
  Float32Array.from(
    new Float16Array(values) as Iterable<number> & ArrayLike<number>,
  );

forEachBackend("layers read half floats", async () => {
  // Every way tfjs has of a product and a convolution: few and many rows, inner
  // sizes that divide by four and that do not, one pixel, strides, padding.
  const products = [
    [64, 48, 96],
    [1, 320, 7],
    [5, 33, 19],
    [300, 128, 320],
    [2, 4000, 40],
  ];
  for (const [rows, inputs, outputs] of products) {
    const values = exact(draw(1, inputs, outputs));
    const x = tf.tensor2d(draw(2, rows, inputs), [rows, inputs]);
    const [half, full] = [
      halfTensor(values, [inputs, outputs]),
      tf.tensor(values, [inputs, outputs]),
    ];
    const results = [half, full].map((w) =>
      tf.tidy(() => {
        const { value, grads } = gradientsOf(
          () => tf.matMul(x, w as tf.Tensor2D),
          [x],
        );
        return [value, grads[0]!];
      })
    );
    for (const i of [0, 1]) {
      close(
        await results[0][i].data(),
        await results[1][i].data(),
        1e-6,
        `[${rows}, ${inputs}, ${outputs}], ${i}`,
      );
    }
    tf.dispose([x, half, full, results]);
  }
  const convolutions = [
    { side: 16, kernel: 3, inputs: 32, outputs: 64, stride: 1 },
    { side: 9, kernel: 3, inputs: 5, outputs: 6, stride: 2 },
    { side: 8, kernel: 1, inputs: 12, outputs: 20, stride: 1 },
    { side: 33, kernel: 3, inputs: 4, outputs: 32, stride: 1 },
  ];
  for (const { side, kernel, inputs, outputs, stride } of convolutions) {
    const shape = [kernel, kernel, inputs, outputs];
    const values = exact(draw(3, ...shape));
    const x = tf.tensor4d(draw(4, 2 * side * side * inputs), [
      2,
      side,
      side,
      inputs,
    ]);
    const [half, full] = [halfTensor(values, shape), tf.tensor(values, shape)];
    const results = [half, full].map((w) =>
      tf.tidy(() => {
        const { value, grads } = gradientsOf(
          () => tf.conv2d(x, w as tf.Tensor4D, stride, "same"),
          [x],
        );
        return [value, grads[0]!];
      })
    );
    for (const i of [0, 1]) {
      close(
        await results[0][i].data(),
        await results[1][i].data(),
        1e-5,
        `${shape}, ${i}`,
      );
    }
    tf.dispose([x, half, full, results]);
  }
}, ["webgpu"]);

forEachBackend("half floats are tensors like others", async () => {
  const values = draw(5, 7, 9);
  const rounded = exact(values);
  await noLeak(async () => {
    const half = halfTensor(values, [7, 9]);
    // Half the bytes, and an odd number of values.
    const { numBytesInGPU } = tf.memory() as unknown as {
      numBytesInGPU: number;
    };
    const other = halfTensor(values, [7, 9]);
    assertEquals(
      (tf.memory() as unknown as { numBytesInGPU: number }).numBytesInGPU -
        numBytesInGPU,
      4 * 32,
    );
    close(await half.data(), rounded, 0);
    close(await half.data(), rounded, 0, "a second time");
    const sums = tf.tidy(() => [
      half.add(other),
      half.reshape([9, 7]).transpose(),
      half.clone().slice([2, 0], [3, 9]),
      tf.concat([half, half], 0),
      half.sum(0),
    ]);
    close(await sums[0].data(), rounded.map((v) => 2 * v), 1e-6);
    const turned = await sums[1].data();
    close(turned[1], rounded[7], 0);
    close(await sums[2].data(), rounded.slice(18, 45), 0);
    close(await sums[3].data(), [...rounded, ...rounded], 0);
    close(
      (await sums[4].data())[0],
      rounded.filter((_, i) => i % 9 === 0).reduce((a, b) => a + b),
      1e-5,
    );
    tf.dispose([half, other, sums]);
  });
  assertThrows(
    () => halfTensor(new Float32Array([1, 70000]), [2]),
    Error,
    "Cannot keep half floats: expected values below 65520, got 70000",
  );
}, ["webgpu"]);

forEachBackend("elsewhere there are none", () => {
  assertThrows(
    () => halfTensor(new Float32Array(4), [4]),
    Error,
    "Cannot keep half floats: expected webgpu, got wasm",
  );
}, ["wasm"]);

Deno.test("every access in a shader is unpacked", () => {
  const code = readingHalves(
    `@group(0) @binding(1) var<storage, read> W: array<vec4<f32>>;
     fn a() -> f32 { return W[(row * uniforms.wShape[3] + i32(W[2].x)) / 4].x + uniforms.W[0] + subW[1]; }`,
    ["W"],
  );
  assert(code.includes("W: array<u32>;"));
  assert(
    code.includes(
      "half_W(u32((row * uniforms.wShape[3] + i32(half_W(u32(2)).x)) / 4)).x + uniforms.W[0] + subW[1]",
    ),
    code,
  );
  assertThrows(
    () => readingHalves("var<storage, read> W: array<i32>;", ["W"]),
    Error,
    "Cannot read half floats in a shader",
  );
});
