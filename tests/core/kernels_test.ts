import { assert, assertEquals, assertThrows } from "@std/assert";
import * as tf from "@tensorflow/tfjs";
import { type BackendName, selectBackend } from "../../src/core/backend.ts";
import { decodeBase64 } from "../../src/core/kernels/base64.ts";
import {
  adamwUpdate,
  attention,
  geglu,
  geluExact,
  groupNorm,
  layerNorm,
  linear,
  lowRankProduct,
  quickGelu,
  silu,
  upsampleNearest2x,
} from "../../src/core/kernels/ops.ts";
import {
  kernelsRegistered,
  registerKernels,
  unregisterKernels,
} from "../../src/core/kernels/register.ts";
import { F64_WASM } from "../../src/core/kernels/f64_wasm.ts";
import { SIMD_WASM } from "../../src/core/kernels/simd_wasm.ts";
import { gradientsOf } from "../../src/core/tape.ts";
import { forEachBackend, tolerance } from "../helpers.ts";
import { root } from "../tools/repository.ts";

/** Reproducible normal numbers; no tensor is made. */
function noise(size: number, seed: number): Float32Array {
  let state = seed * 2654435761 + 12345 >>> 0;
  const uniform = () => {
    state = Math.imul(state ^ state >>> 15, 0x2c1b3c6d) + 0x9e3779b9 >>> 0;
    const z = Math.imul(state ^ state >>> 13, 0x297a2d39);
    return ((z ^ z >>> 16) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: size }, () => {
    const r = Math.sqrt(-2 * Math.log(1 - uniform()));
    return r * Math.cos(2 * Math.PI * uniform());
  });
}

function tensor(shape: number[], seed: number): tf.Tensor {
  return tf.tensor(noise(shape.reduce((a, d) => a * d, 1), seed), shape);
}

/** Runs `f` on tfjs's cpu backend and on another, wasm with own kernels. */
async function compare(
  shapes: number[][],
  f: (...inputs: tf.Tensor[]) => tf.Tensor[],
  tolerance: number,
  what: string,
  backend: BackendName = "wasm",
): Promise<void> {
  const run = async (backend: BackendName) => {
    await selectBackend(backend);
    const before = tf.memory().numTensors;
    const inputs = shapes.map((shape, i) => tensor(shape, i + 1));
    const outputs = tf.tidy(() => f(...inputs));
    const result = await Promise.all(outputs.map(async (t) => ({
      shape: t.shape,
      data: await t.data() as Float32Array,
    })));
    tf.dispose([inputs, outputs]);
    assertEquals(tf.memory().numTensors, before, `${what}: tensors leaked`);
    return result;
  };
  const expected = await run("cpu");
  const actual = await run(backend);
  assertEquals(actual.length, expected.length);
  actual.forEach((a, i) => {
    const e = expected[i];
    assertEquals(a.shape, e.shape, `${what}: output ${i}`);
    close(a.data, e.data, tolerance, `${what}: output ${i}`);
  });
}

/** Largest difference relative to the largest magnitude. */
function close(
  a: Float32Array,
  b: Float32Array,
  tolerance: number,
  what: string,
): void {
  let error = 0, size = 0;
  for (let i = 0; i < b.length; i++) {
    const d = Math.abs(a[i] - b[i]);
    if (!(d <= error)) error = d;
    size = Math.max(size, Math.abs(b[i]));
  }
  assert(
    error <= tolerance * Math.max(size, 1e-3),
    `${what}: ${error}/${size}`,
  );
}

// float32 sums of up to a few thousand terms in another order.
const TOLERANCE = 1e-5;

Deno.test("matMul on wasm equals the cpu backend, every transposition", async () => {
  const sizes = [
    [1, 1, 1],
    [3, 5, 7],
    [4, 8, 8],
    [17, 77, 40],
    [33, 650, 9],
    [130, 5, 530],
    [8, 1, 16],
  ];
  for (const [m, k, n] of sizes) {
    for (const ta of [false, true]) {
      for (const tb of [false, true]) {
        for (const batch of [[], [3], [2, 3]]) {
          await compare(
            [
              [...batch, ...(ta ? [k, m] : [m, k])],
              [...batch, ...(tb ? [n, k] : [k, n])],
            ],
            (a, b) => [tf.matMul(a, b, ta, tb)],
            TOLERANCE,
            `[${batch}] ${m}×${k}×${n} ${ta} ${tb}`,
          );
        }
      }
    }
  }
});

Deno.test("matMul on wasm broadcasts batches and takes empty ones", async () => {
  for (
    const [a, b] of [
      [[3, 5, 7], [1, 7, 6]],
      [[1, 5, 7], [3, 7, 6]],
      [[0, 5, 7], [0, 7, 6]],
      [[0, 7], [7, 6]],
    ]
  ) {
    await compare([a, b], (x, y) => [tf.matMul(x, y)], TOLERANCE, `${a} ${b}`);
  }
});

Deno.test("dense layer gradients on wasm equal the cpu backend", async () => {
  await compare(
    [[77, 40], [40, 33], [33], [77, 33]],
    (x, w, b, t) => {
      const { value, grads } = tf.valueAndGrads((x, w, b) =>
        tf.sum(
          tf.mul(t, tf.add(tf.matMul(x as tf.Tensor2D, w as tf.Tensor2D), b)),
        )
      )([x, w, b]);
      return [value, ...grads];
    },
    TOLERANCE,
    "dense",
  );
});

Deno.test("convolution and gradients on wasm equal the cpu backend", async () => {
  const cases: [
    number,
    number,
    number,
    number,
    number,
    number,
    number,
    "same" | "valid" | number,
  ][] = [
    // b, h, w, cin, cout, k, stride, pad
    [2, 5, 7, 3, 5, 3, 1, "same"],
    [1, 8, 8, 8, 16, 3, 1, "same"],
    [2, 8, 8, 4, 9, 3, 2, "same"],
    [2, 7, 5, 4, 8, 3, 2, 1],
    [1, 9, 9, 1, 1, 3, 1, "valid"],
    [3, 4, 4, 17, 12, 1, 1, "same"],
    [3, 4, 4, 17, 12, 1, 2, "valid"],
    [1, 9, 9, 5, 7, 5, 3, 2],
    [1, 6, 6, 330, 11, 3, 1, "same"],
    [1, 16, 24, 6, 10, 3, 1, 1],
    [1, 14, 14, 3, 16, 7, 7, "valid"],
    // Winograd: even, odd, unpadded, one-sided, channels not in fours.
    [2, 8, 8, 16, 24, 3, 1, "same"],
    [2, 9, 7, 17, 19, 3, 1, "same"],
    [1, 11, 12, 18, 16, 3, 1, "valid"],
    [5, 5, 5, 16, 21, 3, 1, 1],
    [2, 7, 8, 16, 16, 3, 1, 2],
    [1, 9, 9, 320, 16, 3, 1, "same"],
  ];
  for (const [b, h, w, cin, cout, k, s, pad] of cases) {
    const shape = tf.backend_util.computeConv2DInfo(
      [b, h, w, cin],
      [k, k, cin, cout],
      s,
      1,
      pad,
    ).outShape;
    await compare(
      [[b, h, w, cin], [k, k, cin, cout], shape],
      (x, f, t) => {
        // Not the value: that sum cancels, so its own size says nothing.
        const { grads } = tf.valueAndGrads((x, f) =>
          tf.sum(
            tf.mul(t, tf.conv2d(x as tf.Tensor4D, f as tf.Tensor4D, s, pad)),
          )
        )([x, f]);
        return [
          tf.conv2d(x as tf.Tensor4D, f as tf.Tensor4D, s, pad),
          ...grads,
        ];
      },
      TOLERANCE * 3,
      `conv ${[b, h, w, cin, cout, k, s, pad]}`,
    );
  }
});

Deno.test("fused matMul and conv2d with bias on wasm equal the cpu backend", async () => {
  await compare(
    [[7, 9], [9, 13], [13], [2, 6, 6, 5], [3, 3, 5, 13], [1, 1, 5, 13]],
    (a, b, bias, x, f, g) =>
      (["linear", "relu"] as const).flatMap((activation) => [
        tf.fused.matMul({ a, b: b as tf.Tensor2D, bias, activation }),
        ...[f, g].map((filter) =>
          tf.fused.conv2d({
            x: x as tf.Tensor4D,
            filter: filter as tf.Tensor4D,
            strides: 1,
            pad: "same",
            bias,
            activation,
          })
        ),
      ]),
    TOLERANCE,
    "fused",
  );
});

/** Value and all gradients of `Σ t·f(inputs)`, where `t` is the last input. */
function withGradients(
  f: (...inputs: tf.Tensor[]) => tf.Tensor,
): (...inputs: tf.Tensor[]) => tf.Tensor[] {
  return (...all) => {
    const weight = all[all.length - 1];
    const inputs = all.slice(0, -1);
    const { value, grads } = tf.valueAndGrads((...xs) =>
      tf.sum(tf.mul(weight, f(...xs)))
    )(inputs);
    return [f(...inputs), value, ...grads];
  };
}

const t1 = (t: tf.Tensor) => t as tf.Tensor1D;

Deno.test("activations on wasm equal the cpu backend, with gradients", async () => {
  for (const shape of [[1], [3], [2, 5, 7], [0, 4], [5000]]) {
    for (const f of [silu, geluExact, quickGelu]) {
      const steep = (x: tf.Tensor) => f(tf.mul(x, 4));
      await compare([shape, shape], withGradients(steep), 3e-6, f.name);
    }
    const double = [...shape.slice(0, -1), 2 * shape[shape.length - 1]];
    await compare([double, shape], withGradients(geglu), 3e-6, "geglu");
  }
});

Deno.test("activations keep their limits on wasm", async () => {
  await selectBackend("wasm");
  const values = [-1e4, -100, -88, -20, 0, 20, 88, 100, 1e4];
  const x = tf.tensor1d(values);
  for (const f of [silu, geluExact, quickGelu]) {
    const y = f(x);
    const data = await y.data();
    values.forEach((v, i) => {
      assert(Math.abs(data[i] - Math.max(v, 0)) < 1e-6, `${f.name}(${v})`);
    });
    y.dispose();
  }
  const nan = tf.tensor1d([NaN]);
  const y = silu(nan);
  assert(Number.isNaN((await y.data())[0]));
  tf.dispose([x, y, nan]);
});

Deno.test("layerNorm on wasm equals the cpu backend, with gradients", async () => {
  for (const shape of [[1, 1, 4], [3, 5], [2, 7, 40], [9, 77], [0, 8]]) {
    const c = shape[shape.length - 1];
    await compare(
      [shape, [c], [c], shape],
      withGradients((x, g, b) => layerNorm(x, t1(g), t1(b), 1e-5)),
      2e-5,
      `layerNorm [${shape}]`,
    );
  }
});

Deno.test("groupNorm on wasm equals the cpu backend, with gradients", async () => {
  const cases: [number[], number][] = [
    [[1, 1, 1, 4], 1],
    [[2, 3, 5, 6], 3],
    [[2, 4, 4, 32], 8],
    [[3, 7, 5, 40], 4],
    [[2, 300, 12], 2],
    [[0, 2, 2, 8], 2],
  ];
  for (const [shape, groups] of cases) {
    const c = shape[shape.length - 1];
    for (const silu of [false, true]) {
      await compare(
        [shape, [c], [c], shape],
        withGradients((x, g, b) =>
          groupNorm(tf.add(x, 3), groups, t1(g), t1(b), 1e-5, { silu })
        ),
        3e-5,
        `groupNorm [${shape}] ${groups} ${silu}`,
      );
    }
  }
});

Deno.test("attention on wasm equals the cpu backend, with gradients", async () => {
  const cases = [
    // b, n, m, heads, head size
    [1, 1, 1, 1, 1],
    [2, 3, 5, 2, 3],
    [2, 17, 77, 4, 10],
    [1, 77, 77, 2, 40],
    [1, 130, 600, 1, 8],
    [3, 16, 16, 3, 5],
    [0, 4, 4, 2, 4],
  ];
  for (const [b, n, m, heads, d] of cases) {
    const c = heads * d;
    for (const kind of ["plain", "mask", "causal", "both"]) {
      await compare(
        [[b, n, c], [b, m, c], [b, m, c], [b, n, c]],
        withGradients((q, k, v) =>
          attention(
            q as tf.Tensor3D,
            k as tf.Tensor3D,
            v as tf.Tensor3D,
            heads,
            {
              causal: kind === "causal" || kind === "both",
              mask: kind === "mask" || kind === "both"
                ? tf.tensor2d(noise(n * m, 9), [n, m])
                : undefined,
              scale: kind === "plain" ? 0.7 : undefined,
            },
          )
        ),
        2e-5,
        `attention ${[b, n, m, heads, d]} ${kind}`,
      );
    }
  }
});

Deno.test("attention does not depend on the chunk size", async () => {
  await selectBackend("cpu");
  const run = (chunk: number) =>
    withGradients((q, k, v) =>
      attention(
        q as tf.Tensor3D,
        k as tf.Tensor3D,
        v as tf.Tensor3D,
        2,
        { chunk, causal: true },
      )
    );
  const inputs = [1, 2, 3, 4].map((seed) => tensor([2, 13, 6], seed));
  const whole = tf.tidy(() => run(1000)(...inputs));
  for (const chunk of [1, 4, 13]) {
    const parts = tf.tidy(() => run(chunk)(...inputs));
    for (let i = 0; i < whole.length; i++) {
      close(
        await parts[i].data() as Float32Array,
        await whole[i].data() as Float32Array,
        1e-6,
        `chunk ${chunk}, output ${i}`,
      );
    }
    tf.dispose(parts);
  }
  tf.dispose([inputs, whole]);
});

Deno.test("upsampleNearest2x on wasm equals the cpu backend, with gradient", async () => {
  for (const [b, h, w, c] of [[1, 1, 1, 1], [2, 3, 5, 7], [1, 4, 4, 8]]) {
    await compare(
      [[b, h, w, c], [b, 2 * h, 2 * w, c]],
      withGradients((x) => upsampleNearest2x(x as tf.Tensor4D)),
      TOLERANCE,
      "upsample",
    );
  }
});

Deno.test("sum and mean on wasm equal the cpu backend", async () => {
  const cases: [number[], number[]][] = [
    [[5000], [0]],
    [[700, 13], [0]],
    [[7, 13], [1]],
    [[2, 3, 5, 7], [1, 2]],
    [[2, 3, 5, 7], [0, 1, 2]],
    [[2, 3, 5, 7], [0, 2]],
    [[2, 3, 5, 7], [0, 1, 2, 3]],
    [[3, 4], [-1]],
    [[0, 4], [0]],
  ];
  for (const [shape, axes] of cases) {
    await compare(
      [shape],
      (x) => [
        tf.sum(x, axes),
        tf.sum(x, axes, true),
        ...(x.size > 0 ? [tf.mean(x, axes), tf.mean(x, axes, true)] : []),
      ],
      TOLERANCE,
      `sum [${shape}] over ${axes}`,
    );
  }
});

Deno.test("concat and split on wasm equal the cpu backend, with gradients", async () => {
  for (const axis of [0, 1, 2, -1]) {
    const shape = (n: number) => {
      const s = [2, 3, 5];
      s[axis < 0 ? axis + 3 : axis] = n;
      return s;
    };
    await compare(
      [shape(3), shape(1), shape(4), shape(8)],
      withGradients((a, b, c) => tf.concat([a, b, c], axis)),
      TOLERANCE,
      `concat ${axis}`,
    );
    await compare(
      [shape(6)],
      (x) => [...tf.split(x, [1, 3, 2], axis), ...tf.split(x, 2, axis)],
      0,
      `split ${axis}`,
    );
  }
  await compare(
    [[0, 2], [3, 2]],
    (a, b) => [tf.concat([a, b], 0), ...tf.split(b, [0, 3], 0)],
    0,
    "empty parts",
  );
});

Deno.test("gather on wasm equals the cpu backend", async () => {
  const rows = (data: number[], shape: number[]) =>
    tf.tensor(data, shape, "int32");
  for (
    const [shape, indices, axis] of [
      [[9, 6], rows([8, 0, 0, 3, 5, 8], [2, 3]), 0],
      [[4, 3, 5], rows([2, 1], [2]), 0],
      [[4, 7], rows([6, 0, 6], [3]), 1],
      [[3, 0], rows([1], [1]), 0],
    ] as const
  ) {
    const at = indices.arraySync();
    indices.dispose();
    await compare(
      [[...shape]],
      (x) => [
        tf.gather(x, tf.tensor(at, undefined, "int32") as tf.Tensor1D, axis),
      ],
      1e-6,
      `gather of [${shape}]`,
    );
  }
  await selectBackend("wasm");
  tf.tidy(() => {
    const table = tf.ones([4, 2]);
    assertThrows(() => tf.gather(table, tf.tensor1d([4], "int32")).dataSync());
  });
});

Deno.test("adamwUpdate on wasm equals the cpu backend", async () => {
  for (const shape of [[1], [3, 5], [64]]) {
    await compare(
      [shape, shape, shape, shape],
      (p, g, m, v) =>
        adamwUpdate(p, g, m, tf.square(v), {
          lr: 1e-2,
          beta1: 0.9,
          beta2: 0.999,
          eps: 1e-8,
          weightDecay: 0.1,
          step: 3,
        }),
      TOLERANCE,
      "adamw",
    );
  }
});

Deno.test("on wasm a sample's result does not depend on its batch", async () => {
  await selectBackend("wasm");
  const outputs = (x: tf.Tensor): tf.Tensor[] => {
    const [b, h, w, c] = x.shape;
    const flat = tf.reshape(x, [b, h * w, c]) as tf.Tensor3D;
    const ones = tf.ones([c]) as tf.Tensor1D;
    return [
      tf.conv2d(
        x as tf.Tensor4D,
        tensor([3, 3, c, 20], 2) as tf.Tensor4D,
        1,
        1,
      ),
      tf.conv2d(x as tf.Tensor4D, tensor([3, 3, c, 9], 3) as tf.Tensor4D, 2, 1),
      linear(x, tensor([c, 21], 4) as tf.Tensor2D),
      attention(flat, flat, flat, 3),
      groupNorm(x, 3, ones, ones, 1e-5, { silu: true }),
      layerNorm(x, ones, ones, 1e-5),
      geglu(x),
    ];
  };
  const before = tf.memory().numTensors;
  const x = tensor([5, 5, 7, 18], 1);
  const together = tf.tidy(() => outputs(x));
  for (let i = 0; i < 5; i++) {
    const alone = tf.tidy(() =>
      outputs(tf.slice(x, [i, 0, 0, 0], [1, 5, 7, 18]))
    );
    for (let k = 0; k < alone.length; k++) {
      const size = alone[k].size;
      const all = await together[k].data() as Float32Array;
      assertEquals(
        await alone[k].data(),
        all.slice(i * size, (i + 1) * size),
        `sample ${i}, output ${k}`,
      );
    }
    tf.dispose(alone);
  }
  tf.dispose([x, together]);
  assertEquals(tf.memory().numTensors, before);
});

for (const [file, wasm] of [["simd.as", SIMD_WASM], ["f64.as", F64_WASM]]) {
  Deno.test(`the embedded wasm is what AssemblyScript makes of ${file}`, () =>
    compiledIs(file, wasm));
}

async function compiledIs(file: string, wasm: string): Promise<void> {
  const module = await Deno.makeTempFile({ suffix: ".ts" });
  try {
    await Deno.writeTextFile(
      module,
      `import { encodeBase64 } from "${root}/src/core/kernels/base64.ts";
      import { compile } from "${root}/tests/tools/wasm/build.ts";
      const source = await Deno.readTextFile("${root}/tests/tools/wasm/${file}");
      console.log(encodeBase64(await compile(source)));`,
    );
    // A process of its own, so that the compiler stays out of deno.lock.
    const { success, stdout, stderr } = await new Deno.Command(
      Deno.execPath(),
      { args: ["run", "-q", "--no-lock", "--no-config", "-A", module] },
    ).output();
    if (!success) {
      const reason = new TextDecoder().decode(stderr);
      // No network and no cache: nothing to compare with.
      const compiled = reason.includes("Cannot compile");
      if (!compiled && /npm|download|connect/i.test(reason)) return;
      throw new Error(reason);
    }
    assertEquals(new TextDecoder().decode(stdout).trim(), wasm);
  } finally {
    await Deno.remove(module);
  }
}

Deno.test("the SIMD module owns no memory that tfjs could also use", () => {
  const module = new WebAssembly.Module(decodeBase64(SIMD_WASM));
  assertEquals(
    WebAssembly.Module.imports(module).map((i) => `${i.module}.${i.name}`),
    ["env.memory"],
  );
  // Section 11 holds data segments, which would be copied over tensors.
  const bytes = decodeBase64(SIMD_WASM);
  for (let at = 8; at < bytes.length;) {
    const id = bytes[at++];
    let size = 0;
    for (let shift = 0;; shift += 7) {
      const byte = bytes[at++];
      size |= (byte & 127) << shift;
      if (byte < 128) break;
    }
    assert(id !== 11, "a data segment");
    at += size;
  }
});

Deno.test("kernels work on while the backend's memory grows", async () => {
  await selectBackend("wasm");
  const before = tf.memory().numTensors;
  const a = tensor([64, 64], 1);
  const first = tf.matMul(a as tf.Tensor2D, a as tf.Tensor2D);
  const expected = await first.data();
  const held: tf.Tensor[] = [];
  for (let i = 0; i < 6; i++) {
    held.push(tf.ones([4 * 2 ** 20]));
    const y = tf.matMul(a as tf.Tensor2D, a as tf.Tensor2D);
    assertEquals(await y.data(), expected);
    y.dispose();
  }
  tf.dispose([a, first, held]);
  assertEquals(tf.memory().numTensors, before);
});

Deno.test("unregistering gives back stock tfjs with equal results", async () => {
  await selectBackend("wasm");
  const [a, b] = [tensor([5, 77], 1), tensor([5, 40], 2)];
  const run = async () => {
    const y = tf.matMul(a as tf.Tensor2D, b as tf.Tensor2D, true, false);
    const data = await y.data() as Float32Array;
    y.dispose();
    return data;
  };
  const own = await run();
  unregisterKernels();
  assert(!kernelsRegistered());
  close(await run(), own, TOLERANCE, "stock");
  const x = tf.tensor1d([1, 2]);
  const y = silu(x);
  registerKernels();
  const z = silu(x);
  close(
    await y.data() as Float32Array,
    await z.data() as Float32Array,
    TOLERANCE,
    "generic silu on wasm",
  );
  assert(kernelsRegistered());
  tf.dispose([a, b, x, y, z]);
});

Deno.test("operations refuse what does not fit", async () => {
  await selectBackend("wasm");
  tf.tidy(() => {
    const x = tf.zeros([2, 4, 6]) as tf.Tensor3D;
    const c = tf.zeros([6]) as tf.Tensor1D;
    const refuse = (f: () => unknown, text: string) =>
      assertThrows(f, Error, text);
    refuse(() => groupNorm(x, 4, c, c, 1e-5), "Cannot apply groupNorm");
    refuse(() => groupNorm(x, 0, c, c, 1e-5), "Cannot apply groupNorm");
    refuse(() => layerNorm(x, tf.zeros([5]), c, 1e-5), "gamma and beta [6]");
    refuse(() => geglu(tf.zeros([2, 3])), "an even last axis");
    refuse(() => attention(x, x, x, 4), "expected heads dividing 6, got 4");
    refuse(
      () => attention(x, x, tf.zeros([2, 5, 6]), 2),
      "expected v [2, 4, 6]",
    );
    refuse(
      () => attention(x, x, x, 2, { mask: tf.zeros([4, 5]) }),
      "a mask [4, 4]",
    );
    refuse(() => linear(x, tf.zeros([5, 3])), "last axis 5");
    refuse(() => linear(x, tf.zeros([6, 3]), tf.zeros([6])), "bias [3]");
  });
});

Deno.test("linear equals the cpu backend, with gradients", async () => {
  for (const lead of [[1], [3, 5], [2, 3, 4], [0, 4]]) {
    await compare(
      [[...lead, 7], [7, 10], [10], [...lead, 10]],
      withGradients((x, w, b) => linear(x, w as tf.Tensor2D, t1(b))),
      TOLERANCE,
      `linear [${lead}]`,
    );
  }
});

Deno.test("a low-rank product has the bits of its parts, with gradients", async () => {
  await selectBackend("wasm");
  const parts = (
    x: tf.Tensor2D,
    w: tf.Tensor2D,
    down: tf.Tensor2D,
    up: tf.Tensor2D,
  ) => tf.add(tf.matMul(x, w), tf.matMul(tf.matMul(x, down), up));
  const sizes = [[1, 7, 5, 1], [5, 33, 19, 3], [64, 80, 640, 4], [
    1024,
    64,
    64,
    8,
  ]];
  for (const [m, k, n, r] of sizes) {
    for (
      const wanted of [["x", "down", "up"], ["down", "up"], ["x", "w"], ["x"]]
    ) {
      const own = {
        x: tensor([m, k], 1) as tf.Tensor2D,
        w: tensor([k, n], 2) as tf.Tensor2D,
        down: tensor([k, r], 3) as tf.Tensor2D,
        up: tensor([r, n], 4) as tf.Tensor2D,
      };
      const by = tensor([m, n], 5);
      const before = tf.memory().numTensors;
      const xs = wanted.map((name) => own[name as keyof typeof own]);
      const results = [lowRankProduct, parts].map((f) =>
        gradientsOf(() => f(own.x, own.w, own.down, own.up), xs, by)
      );
      const [got, expected] = results.map(({ value, grads }) =>
        [value, ...grads].map((t) => t!.dataSync())
      );
      assertEquals(got, expected, `${[m, k, n, r]} by ${wanted}`);
      tf.dispose(
        results.map(({ value, grads }) => [value, ...grads as tf.Tensor[]]),
      );
      assertEquals(tf.memory().numTensors, before);
      // Without a tape, and on one of tfjs's own.
      const plain = tf.tidy(() =>
        lowRankProduct(own.x, own.w, own.down, own.up)
      );
      assertEquals(plain.dataSync(), expected[0]);
      const dw = tf.tidy(() =>
        tf.grad((w) =>
          lowRankProduct(own.x, w as tf.Tensor2D, own.down, own.up)
        )(own.w, by)
      );
      const exact = tf.tidy(() => tf.matMul(own.x, by as tf.Tensor2D, true));
      assertEquals(dw.dataSync(), exact.dataSync());
      tf.dispose([plain, dw, exact]);
      assertEquals(tf.memory().numTensors, before);
      tf.dispose([own, by]);
    }
  }
});

Deno.test("a big dense layer and attention agree with the cpu backend", async () => {
  await compare(
    [[4096, 320], [320, 32]],
    (a, b) => [tf.matMul(a as tf.Tensor2D, b as tf.Tensor2D)],
    TOLERANCE,
    "4096×320",
  );
  await compare(
    [[1, 700, 16], [1, 700, 16], [1, 700, 16], [1, 700, 16]],
    withGradients((q, k, v) =>
      attention(q as tf.Tensor3D, k as tf.Tensor3D, v as tf.Tensor3D, 2)
    ),
    2e-5,
    "700 tokens",
  );
});

// The same functions take the generic way here; with lavapipe in CI.
forEachBackend("fused operations equal the cpu backend", async (backend) => {
  const check = (
    shapes: number[][],
    f: (...inputs: tf.Tensor[]) => tf.Tensor,
    what: string,
  ) =>
    compare(
      shapes,
      withGradients(f),
      tolerance(backend, 3e-5),
      what,
      backend,
    );
  const x = [2, 4, 6, 12];
  await check([x, x], silu, "silu");
  await check([x, x], geluExact, "geluExact");
  await check([x, x], quickGelu, "quickGelu");
  await check([x, [2, 4, 6, 6]], geglu, "geglu");
  await check(
    [x, [12], [12], x],
    (x, g, b) => layerNorm(x, t1(g), t1(b), 1e-5),
    "layerNorm",
  );
  await check(
    [x, [12], [12], x],
    (x, g, b) => groupNorm(x, 3, t1(g), t1(b), 1e-5, { silu: true }),
    "groupNorm",
  );
  await check(
    [[2, 5, 7], [7, 3], [3], [2, 5, 3]],
    (x, w, b) => linear(x, w as tf.Tensor2D, t1(b)),
    "linear",
  );
  await check(
    [x, [2, 8, 12, 12]],
    (x) => upsampleNearest2x(x as tf.Tensor4D),
    "upsample",
  );
  for (const chunk of [3, undefined]) {
    await check(
      [[2, 7, 6], [2, 5, 6], [2, 5, 6], [2, 7, 6]],
      (q, k, v) =>
        attention(
          q as tf.Tensor3D,
          k as tf.Tensor3D,
          v as tf.Tensor3D,
          2,
          { chunk, causal: true },
        ),
      `attention in chunks of ${chunk}`,
    );
  }
});
