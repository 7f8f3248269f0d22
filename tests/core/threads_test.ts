/** Kernels on several threads: the same numbers as on one. */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { addProduct } from "../../src/core/gemm64.ts";
import { decodeBase64 } from "../../src/core/kernels/base64.ts";
import { F64_WASM } from "../../src/core/kernels/f64_wasm.ts";
import {
  attention,
  geglu,
  groupNorm,
  layerNorm,
  silu,
  upsampleNearest2x,
} from "../../src/core/kernels/ops.ts";
import { ranges } from "../../src/core/kernels/parallel.ts";
import { withSharedMemory } from "../../src/core/kernels/shared_memory.ts";
import type { WasmBackend } from "../../src/core/kernels/simd.ts";
import { SIMD_WASM } from "../../src/core/kernels/simd_wasm.ts";
import {
  setThreadCount,
  startThreads,
} from "../../src/core/kernels/threads.ts";
import { fold, key, normal } from "../../src/core/random.ts";

await selectBackend("wasm", { threads: 3 });

function random<T extends tf.Tensor>(shape: number[], name: string): T {
  const size = shape.reduce((a, b) => a * b, 1);
  return tf.tensor(normal(fold(key(3), name), size), shape) as T;
}

/** What `f` gives on so many threads, and its gradients with respect to `xs`. */
async function numbers(
  threads: number,
  f: (...xs: tf.Tensor[]) => tf.Tensor,
  xs: tf.Tensor[],
): Promise<Float32Array[]> {
  setThreadCount(threads);
  const all = tf.tidy(() => {
    const y = f(...xs);
    const dy = random(y.shape, "dy");
    return [y, ...tf.grads((...x: tf.Tensor[]) => f(...x).mul(dy).sum())(xs)];
  });
  const values = await Promise.all(all.map((x) => x.data<"float32">()));
  tf.dispose(all);
  return values;
}

const t4 = (x: tf.Tensor) => x as tf.Tensor4D;
const WORKS: Record<string, [number[][], (...xs: tf.Tensor[]) => tf.Tensor]> = {
  "a tall product": [[[515, 64], [64, 37]], (a, b) => tf.matMul(a, b)],
  "a wide product": [[[12, 300], [300, 515]], (a, b) => tf.matMul(a, b)],
  "a deep product": [[[40, 4000], [4000, 40]], (a, b) => tf.matMul(a, b)],
  "a batch of products": [
    [[2, 130, 80], [2, 80, 90]],
    (a, b) => tf.matMul(a, b),
  ],
  "many small products": [
    [[50, 33, 20], [50, 20, 41]],
    (a, b) => tf.matMul(a, b),
  ],
  "a 3×3 convolution of five images": [
    [[5, 16, 16, 24], [3, 3, 24, 40]],
    (x, f) => tf.conv2d(t4(x), t4(f), 1, "same"),
  ],
  "a 3×3 convolution of one image with an odd side": [
    [[1, 31, 29, 32], [3, 3, 32, 48]],
    (x, f) => tf.conv2d(t4(x), t4(f), 1, "same"),
  ],
  "a convolution with stride": [
    [[2, 33, 33, 16], [3, 3, 16, 48]],
    (x, f) => tf.conv2d(t4(x), t4(f), 2, "same"),
  ],
  "a 5×5 convolution": [
    [[1, 24, 20, 12], [5, 5, 12, 30]],
    (x, f) => tf.conv2d(t4(x), t4(f), 1, "same"),
  ],
  "attention": [
    [[3, 200, 48], [3, 77, 48], [3, 77, 48]],
    (q, k, v) =>
      attention(q as tf.Tensor3D, k as tf.Tensor3D, v as tf.Tensor3D, 4),
  ],
  "group norm": [
    [[4, 24, 24, 64], [64], [64]],
    (x, g, b) => groupNorm(t4(x), 8, g as tf.Tensor1D, b as tf.Tensor1D, 1e-5),
  ],
  "layer norm": [
    [[700, 96], [96], [96]],
    (x, g, b) => layerNorm(x, g as tf.Tensor1D, b as tf.Tensor1D, 1e-5),
  ],
  "silu": [[[70_001]], (x) => silu(x)],
  "geglu": [[[500, 256]], (x) => geglu(x)],
  "upsampling": [[[3, 20, 20, 40]], (x) => upsampleNearest2x(t4(x))],
};

for (const [name, [shapes, f]] of Object.entries(WORKS)) {
  Deno.test(`${name}: three threads give one thread's bits`, async () => {
    const xs = shapes.map((shape, i) => random(shape, `${name} ${i}`));
    const one = await numbers(1, f, xs);
    for (let i = 0; i < 5; i++) {
      assertEquals(await numbers(3, f, xs), one);
    }
    tf.dispose(xs);
    setThreadCount(1);
  });
}

Deno.test("a float64 product has one thread's bits", () => {
  const [m, n, k] = [130, 260, 300];
  const view = (data: Float64Array, row: number) => ({
    ...{ data, at: 0, row, column: 1 },
  });
  const values = (size: number, name: string) =>
    Float64Array.from(normal(fold(key(4), name), size));
  const [a, b] = [values(m * k, "a"), values(k * n, "b")];
  for (const part of ["all", "upper", "lower"] as const) {
    const results = [1, 3, 3, 3].map((threads) => {
      setThreadCount(threads);
      const c = new Float64Array(m * n);
      addProduct([m, n, k], view(a, k), view(b, n), view(c, n), { part });
      return c;
    });
    for (const c of results) assertEquals(c, results[0]);
  }
  setThreadCount(1);
});

Deno.test("threads see memory that has grown", async () => {
  setThreadCount(3);
  const backend = tf.backend() as unknown as WasmBackend;
  const before = backend.wasm.asm.memory.buffer.byteLength;
  const [a, b] = [random<tf.Tensor2D>([256, 64], "a"), tf.eye(64)];
  const kept: tf.Tensor[] = [];
  while (backend.wasm.asm.memory.buffer.byteLength < before + 2 ** 26) {
    kept.push(tf.zeros([2 ** 20]));
    const y = tf.matMul(a, b);
    assertEquals(await y.data(), await a.data());
    y.dispose();
  }
  tf.dispose([a, b, ...kept]);
  setThreadCount(1);
});

Deno.test("a helping thread that fails is an error of the call", () => {
  const memory = new WebAssembly.Memory({
    initial: 1,
    maximum: 65536,
    shared: true,
  });
  const bytes = withSharedMemory(decodeBase64(SIMD_WASM))!;
  const module = new WebAssembly.Module(bytes);
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  const own = { ...exports } as Record<string, (...args: number[]) => void>;
  // Here it is slow, there it writes past the end of the memory.
  own.zero = () => {
    const until = performance.now() + 1;
    while (performance.now() < until);
  };
  const threads = startThreads(2, module, memory, own);
  const parts = Array.from({ length: 64 }, () => [2 ** 20, 4]);
  const error = assertThrows(() => {
    // The first calls may find no helper awake.
    for (let i = 0; i < 1000; i++) threads.run("zero", parts, 0);
  }, Error);
  assert(error.message.includes("Cannot run zero"));
  threads.close();
});

Deno.test("ranges are neighbours, even, and end at multiples of the step", () => {
  for (const [size, count, step] of [[10, 3, 1], [17, 4, 8], [5, 9, 4]]) {
    const all = ranges(size, count, step);
    assert(all.length <= count);
    let at = 0;
    for (const { from, count } of all) {
      assertEquals(from, at);
      assert(from % step === 0 && count > 0);
      at += count;
    }
    assertEquals(at, size);
  }
});

Deno.test("only a module with one memory that has a maximum can share it", () => {
  const shared = withSharedMemory(decodeBase64(F64_WASM))!;
  const module = new WebAssembly.Module(shared);
  const at = (own: boolean) =>
    new WebAssembly.Instance(module, {
      env: {
        memory: new WebAssembly.Memory({
          initial: 1,
          maximum: 65536,
          shared: own,
        }),
      },
    });
  at(true);
  assertThrows(() => at(false), WebAssembly.LinkError);
  // The smallest module has none, and a second change is none.
  const empty = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0);
  assertEquals(withSharedMemory(empty), undefined);
  assertEquals(withSharedMemory(shared), undefined);
});

Deno.test("threads that cannot be are refused", async () => {
  for (const threads of [0, 1.5, 33, NaN]) {
    await assertRejects(
      () => selectBackend("wasm", { threads }),
      Error,
      "threads from 1 to 32",
    );
  }
});
