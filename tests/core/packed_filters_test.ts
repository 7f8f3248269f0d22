/** Filters that Winograd's convolution keeps packed. */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import type { WasmBackend } from "../../src/core/kernels/simd.ts";
import { fold, key, normal } from "../../src/core/random.ts";

await selectBackend("wasm");

function random(shape: number[], name: string): tf.Tensor4D {
  const size = shape.reduce((a, b) => a * b);
  return tf.tensor<tf.Rank.R4>(
    normal(fold(key(7), name), size),
    shape as [number, number, number, number],
  );
}

/** A convolution and its gradient with respect to the input. */
function both(x: tf.Tensor4D, filter: tf.Tensor4D): Float32Array[] {
  const all = tf.tidy(() => [
    tf.conv2d(x, filter, 1, "same"),
    tf.grad((x: tf.Tensor) =>
      tf.conv2d(x as tf.Tensor4D, filter, 1, "same").square().sum()
    )(x),
  ]);
  const values = all.map((y) => y.dataSync<"float32">().slice());
  tf.dispose(all);
  return values;
}

Deno.test("a filter's second and third use give the bits of the first", () => {
  const x = random([2, 9, 8, 24], "x");
  const [f, g] = [random([3, 3, 24, 40], "f"), random([3, 3, 24, 40], "g")];
  const first = both(x, f);
  const other = both(x, g);
  for (let i = 0; i < 3; i++) {
    assertEquals(both(x, f), first);
    assertEquals(both(x, g), other);
  }
  // A clone is the same data; the original may go before it.
  const clone = f.clone();
  f.dispose();
  assertEquals(both(x, clone), first);
  tf.dispose([x, g, clone]);
});

Deno.test("what is packed goes with the filter, kept or not", () => {
  const backend = tf.backend() as unknown as WasmBackend;
  const size = () => backend.wasm.asm.memory.buffer.byteLength;
  const x = random([1, 4, 4, 256], "x");
  // Used four times, as in sampling; once, as in training.
  for (const uses of [4, 1]) {
    const round = (i: number) => {
      const f = random([3, 3, 256, 256], `${i}`);
      for (let use = 0; use < uses; use++) both(x, f);
      f.dispose();
    };
    for (let i = 0; i < 3; i++) round(i);
    const before = size();
    // 9 MB each packed, both ways: 90 MB if they stayed.
    for (let i = 0; i < 10; i++) round(i);
    assert(size() - before < 2 ** 24, `${size() - before} bytes more`);
  }
  x.dispose();
});
