import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import {
  collect,
  collector,
  GramAccumulator,
  gramOf,
  readStatistics,
  type Stats,
  unfold,
  writeStatistics,
} from "../../src/fusion/statistics.ts";
import { type Conv, conv2d, type Linear, linear } from "../../src/nn/linear.ts";
import { gram, matrix } from "../../src/optim/least_squares.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

/** Normal rows with a mean, as features have. */
function rows(seed: number, n: number, d: number): Float32Array {
  return normal(key(seed), n * d).map((x) => x + 0.5);
}

forEachBackend("a streamed Gram matrix is the whole one", async (backend) => {
  await noLeak(async () => {
    const [n, d] = [5000, 24];
    const values = rows(1, n, d);
    const expected = gram(matrix(n, d, values));
    for (const accuracy of ["mixed", "float64"] as const) {
      const sum = new GramAccumulator(d, { accuracy, blockRows: 512 });
      for (const [from, to] of [[0, 10], [10, 700], [700, n]]) {
        const x = tf.tensor(values.slice(from * d, to * d), [to - from, d]);
        tf.tidy(() => sum.add(x.reshape([1, to - from, d])));
        x.dispose();
        await sum.flush();
      }
      const stats = await sum.finish();
      assertEquals([stats.count, stats.features], [n, d]);
      assertEquals(stats.rows, undefined);
      // Sums of 512 products of size 1 in float32, at most 6e-8 of 512 each
      // time, on values of about 6000.
      close(
        stats.gram!.data,
        expected.data,
        accuracy === "float64" ? 1e-9 : tolerance(backend, 6e-3),
        accuracy,
      );
    }
  });
});

forEachBackend("few rows are kept as they are", async () => {
  await noLeak(async () => {
    const values = rows(1, 8, 8);
    const x = tf.tensor2d(values, [8, 8]);
    const sum = new GramAccumulator(8);
    sum.add(tf.tidy(() => x));
    const kept = await sum.finish();
    assertEquals(kept.gram, undefined);
    assertEquals([...kept.rows!.data], [...values]);
    // The ninth row is one too many.
    const last = tf.ones([1, 8]);
    sum.add(last);
    const summed = await sum.finish();
    assertEquals([summed.count, summed.rows], [9, undefined]);
    const all = matrix(9, 8, [...values, ...new Array(8).fill(1)]);
    close(summed.gram!.data, gram(all).data, 1e-5);
    close(gramOf(kept).data, gram(matrix(8, 8, values)).data, 0);
    tf.dispose([x, last]);
  });
}, ["wasm"]);

forEachBackend("float32 blocks cost little, also by size", async () => {
  const [n, d] = [16384, 16];
  const values = rows(3, n, d);
  const expected = gram(matrix(n, d, values));
  const x = tf.tensor2d(values, [n, d]);
  const errors: number[] = [];
  for (const blockRows of [256, 16384]) {
    const sum = new GramAccumulator(d, { blockRows });
    sum.add(x);
    const { gram: g } = await sum.finish();
    let worst = 0;
    g!.data.forEach((v, i) => {
      worst = Math.max(worst, Math.abs(v - expected.data[i]));
    });
    errors.push(worst / (1.25 * n));
  }
  x.dispose();
  assert(errors[0] < 1e-6, `blocks of 256: ${errors[0]}`);
  assert(errors[1] < 1e-5, `one block: ${errors[1]}`);
}, ["wasm"]);

forEachBackend(
  "unfolded rows times the filter are the convolution",
  async () => {
    await noLeak(async () => {
      const x = tf.tensor4d(rows(1, 2 * 7 * 6, 3), [2, 7, 6, 3]);
      for (const [kernel, stride, pad] of [[3, 1, 1], [3, 2, 1], [1, 1, 0]]) {
        const size = kernel * kernel * 3;
        const weight = tf.tensor4d(rows(2, size, 5), [kernel, kernel, 3, 5]);
        const [direct, unfolded] = tf.tidy(() => {
          const patches = unfold(x, { kernel: [kernel, kernel], stride, pad });
          return [
            conv2d({ weight }, x, { stride, pad }),
            tf.matMul(patches, weight.reshape([size, 5]) as tf.Tensor2D),
          ];
        });
        close(await unfolded.data(), await direct.data(), 1e-4);
        tf.dispose([weight, direct, unfolded]);
      }
      x.dispose();
    });
  },
  ["wasm"],
);

interface Net {
  readonly q: Linear;
  readonly k: Linear;
  readonly conv: Conv;
  readonly out: Linear;
}

function net(): Net {
  const layer = (seed: number) => ({
    weight: tf.tensor2d(rows(seed, 4, 4), [4, 4]),
  });
  return {
    q: layer(1),
    k: layer(2),
    conv: { weight: tf.tensor4d(rows(3, 9 * 4, 4), [3, 3, 4, 4]) },
    out: layer(4),
  };
}

/** q and k see the same tensor, then a convolution, then out. */
function forward(
  p: Net,
  x: tf.Tensor4D,
  context: Parameters<typeof linear>[2],
) {
  const h = tf.add(linear(p.q, x, context), linear(p.k, x, context));
  return linear(
    p.out,
    conv2d(p.conv, h as tf.Tensor4D, {}, context),
    context,
  );
}

forEachBackend("collect sees what layers see", async () => {
  await noLeak(async () => {
    const p = net();
    const inputs = [1, 2, 3].map((seed) =>
      tf.tensor4d(rows(seed, 12, 4), [1, 4, 3, 4])
    );
    const stats = await collect(p, ["q", "k", "conv", "out"], async (c) => {
      for (const x of inputs) {
        tf.tidy(() => void forward(p, x, c));
        await c.flush();
      }
    });
    assertEquals([...stats.keys()], ["q", "k", "conv", "out"]);
    assert(stats.get("q") === stats.get("k"), "one input, one object");
    assert(stats.get("q") !== stats.get("out"));
    assertEquals(stats.get("q")!.count, 36);
    const all = matrix(
      36,
      4,
      inputs.flatMap((x) => [...x.dataSync()]),
    );
    close(stats.get("q")!.gram!.data, gram(all).data, 1e-3);
    assertEquals(stats.get("conv")!.features, 36);
    // 36 rows, 36 features: kept.
    assertEquals(stats.get("conv")!.rows!.rows, 36);
    tf.dispose([...inputs, p.q.weight, p.k.weight, p.conv.weight]);
    p.out.weight.dispose();
  });
}, ["wasm"]);

forEachBackend("collect refuses what is no layer or never ran", async () => {
  await noLeak(async () => {
    const p = net();
    const x = tf.tensor4d(rows(1, 12, 4), [1, 4, 3, 4]);
    assertThrows(() => collector(p, ["v"]), Error, '"v"');
    await assertRejects(
      () =>
        collect(p, ["q", "out"], ({ tap }) => {
          tf.tidy(() => void linear(p.q, x, { tap }));
        }),
      Error,
      "nothing at out",
    );
    // Another input in a later call: sharing would be wrong.
    await assertRejects(
      () =>
        collect(p, ["q", "k"], ({ tap }) => {
          tf.tidy(() => void forward(p, x, { tap }));
          tf.tidy(() => {
            linear(p.q, x, { tap });
            linear(p.k, tf.zerosLike(x), { tap });
          });
        }),
      Error,
      "the same input",
    );
    const bad = tf.fill([1, 4], NaN);
    await assertRejects(
      () => collect(p, ["q"], ({ tap }) => tap(p.q, bad)),
      Error,
      "finite",
    );
    tf.dispose([x, bad, p.q.weight, p.k.weight, p.conv.weight, p.out.weight]);
  });
}, ["wasm"]);

forEachBackend("an accumulator refuses rows of another width", () => {
  const sum = new GramAccumulator(4);
  const x = tf.zeros([2, 5]);
  assertThrows(() => sum.add(x), Error, "4 features");
  x.dispose();
  assertThrows(() => new GramAccumulator(4, { blockRows: 0 }), Error, "≥ 1");
}, ["wasm"]);

Deno.test("statistics survive a file", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const shared: Stats = {
      features: 3,
      count: 9,
      gram: gram(matrix(9, 3, rows(1, 9, 3))),
    };
    const few: Stats = {
      features: 3,
      count: 2,
      rows: matrix(2, 3, rows(2, 2, 3)),
    };
    const stats = new Map([
      ["attn1.to_q", shared],
      ["attn1.to_k", shared],
      ["attn2.to_k", few],
    ]);
    for (const dtype of ["F64", "F32"] as const) {
      const path = `${folder}/${dtype}.safetensors`;
      await writeStatistics(path, stats, { dtype });
      const back = await readStatistics(path);
      assertEquals(new Set(back.keys()), new Set(stats.keys()));
      assert(back.get("attn1.to_q") === back.get("attn1.to_k"));
      for (const [name, { count, features, ...values }] of stats) {
        const read = back.get(name)!;
        assertEquals([read.count, read.features], [count, features]);
        const kind = values.gram ? "gram" : "rows";
        close(
          read[kind]!.data,
          values[kind]!.data,
          dtype === "F64" ? 0 : 1e-6,
          name,
        );
      }
    }
    const size = (await Deno.stat(`${folder}/F64.safetensors`)).size;
    assert(size < 8 * 15 + 1000, "shared matrices are written once");
    const { writeSafetensors } = await import("../../src/io/safetensors.ts");
    await writeSafetensors(`${folder}/other.safetensors`, []);
    await assertRejects(
      () => readStatistics(`${folder}/other.safetensors`),
      Error,
      "format",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
