import { assert, assertEquals } from "@std/assert";
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../../src/core/backend.ts";
import {
  adamwUpdate,
  attention,
  geglu,
  geluExact,
  groupNorm,
  layerNorm,
  quickGelu,
  silu,
  upsampleNearest2x,
} from "../../src/core/kernels/ops.ts";

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

/** Runs `f` on the stock cpu backend and on wasm with own kernels. */
async function compare(
  shapes: number[][],
  f: (...inputs: tf.Tensor[]) => tf.Tensor[],
  tolerance: number,
  what: string,
): Promise<void> {
  const run = async (backend: "cpu" | "wasm") => {
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
  const actual = await run("wasm");
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
        const { value, grads } = tf.valueAndGrads((x, f) =>
          tf.sum(
            tf.mul(t, tf.conv2d(x as tf.Tensor4D, f as tf.Tensor4D, s, pad)),
          )
        )([x, f]);
        return [
          tf.conv2d(x as tf.Tensor4D, f as tf.Tensor4D, s, pad),
          value,
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
