import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { fold, key, normal } from "../../src/core/random.ts";
import { disposeTree, updateAt, valueAndGrads } from "../../src/core/tree.ts";
import {
  crossAttentionSites,
  headsOf,
  parseUNetConfig,
} from "../../src/models/config.ts";
import {
  timestepFeatures,
  type UNet,
  unet,
  type UNetOptions,
  unetSpec,
} from "../../src/models/unet.ts";
import { KeyValues } from "../../src/nn/attention.ts";
import type { Context, Linear } from "../../src/nn/linear.ts";
import { initialise, specLeaves } from "../../src/nn/spec.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

// Every branch of the config is compared with PyTorch in tests/verify/verify_test.ts
// (fixtures/variants); here is what that cannot show.

const tiny = {
  block_out_channels: [4, 8],
  down_block_types: ["CrossAttnDownBlock2D", "DownBlock2D"],
  up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D"],
  norm_num_groups: 2,
  layers_per_block: 1,
  cross_attention_dim: 6,
  attention_head_dim: [2, 3],
};

for (const padding of [0, 1]) {
  forEachBackend(`odd sizes have gradients, padding ${padding}`, async () => {
    await noLeak(async () => {
      const config = parseUNetConfig({ ...tiny, downsample_padding: padding });
      const params = initialise<UNet>(unetSpec(config), key(1));
      const sample = tf.tidy(() =>
        tf.ones([1, 5, 7, 4]).mul(tf.range(0, 7).reshape([1, 1, 7, 1]))
      ) as tf.Tensor4D;
      const states = tf.ones([1, 3, 6]) as tf.Tensor3D;
      const path = "down_blocks.0.downsamplers.0.conv.weight";
      const loss = (p: UNet) =>
        unet(p, config, sample, [3], states).square().mean() as tf.Scalar;
      const { value, grads } = valueAndGrads(loss, params, [path]);
      const gradient = grads.get(path)!;
      const own = await gradient.data<"float32">();
      assert(own.some((g) => Math.abs(g) > 1e-6) && own.every(Number.isFinite));
      // Against a finite difference along the gradient.
      const weight = params.down_blocks[0].downsamplers![0].conv.weight;
      const step = 1e-2 / Math.sqrt(own.reduce((s, g) => s + g * g, 0));
      const at = async (sign: number) => {
        const moved = tf.tidy(() =>
          weight.add(gradient.mul(sign * step)) as tf.Tensor4D
        );
        const there = {
          ...params,
          down_blocks: params.down_blocks.map((block, i) =>
            i === 0
              ? {
                ...block,
                downsamplers: [{
                  conv: { ...block.downsamplers![0].conv, weight: moved },
                }] as const,
              }
              : block
          ),
        };
        const y = tf.tidy(() => loss(there));
        const [number] = await y.data();
        tf.dispose([moved, y]);
        return number;
      };
      const slope = (await at(1) - await at(-1)) / (2 * step);
      const square = own.reduce((s, g) => s + g * g, 0);
      close(slope / square, 1, 0.02, "slope along the gradient");
      tf.dispose([value, gradient, sample, states]);
      disposeTree(params);
    });
  }, ["wasm"]);
}

forEachBackend("feed-forward in turns gives the same", async () => {
  await noLeak(async () => {
    const config = parseUNetConfig(tiny);
    const base = initialise<UNet>(unetSpec(config), key(1));
    const random = (shape: number[], name: string) =>
      tf.tensor(
        normal(fold(key(2), name), shape.reduce((a, b) => a * b)),
        shape,
      );
    const block = "down_blocks.0.attentions.0.transformer_blocks.0";
    const paths = [`${block}.ff.net.0.proj`, `${block}.ff.net.2`];
    const params = updateAt(base, paths, (node, path) => {
      const { weight: { shape: [inputs, outputs] } } = node as Linear;
      const down = random([inputs, 2], `${path} down`);
      const up = random([2, outputs], `${path} up`);
      return { ...node as Linear, low: [{ down, up, scale: 1 }] };
    });
    const [height, width] = [6, 5];
    const sample = random([3, height, width, 4], "sample") as tf.Tensor4D;
    const states = random([3, 4, 6], "states") as tf.Tensor3D;
    const mask = tf.tensor4d(
      Array.from({ length: height * width }, (_, i) => i % width < 2 ? 1 : 0),
      [1, height, width, 1],
    );
    const rows: number[] = [];
    // As adapters per region do: the place is told from the row.
    const gate: Context["gate"] = (_, x) => {
      rows.push(x.shape[0]);
      return x.reshape([-1, height, width, x.shape[1]!]).mul(mask)
        .reshape(x.shape);
    };
    const run = async (options: Parameters<typeof unet>[5]) => {
      const out = tf.tidy(() =>
        unet(params, config, sample, [3], states, options)
      );
      const values = await out.data();
      out.dispose();
      return values;
    };
    const whole = await run({ gate, maxBytes: Infinity });
    assertEquals(rows.splice(0), [90, 90]);
    // One picture's activations are 30 tokens of 8 · 4 values.
    const turns: [number, number[]][] = [
      [2 * 30 * 32 * 4, [60, 60, 30, 30]],
      [1, [30, 30, 30, 30, 30, 30]],
    ];
    for (const [maxBytes, expected] of turns) {
      close(
        await run({ gate, maxBytes }),
        whole,
        1e-6,
        `${maxBytes} bytes`,
      );
      assertEquals(rows.splice(0), expected);
    }
    const open = await run({ maxBytes: Infinity });
    assert(open.some((v, i) => Math.abs(v - whole[i]) > 1e-3));
    // Without a gate a picture may be cut: 7 of its 30 tokens a turn.
    close(
      await run({ maxBytes: 3 * 7 * 32 * 4 }),
      open,
      1e-6,
      "parts of pictures",
    );
    tf.dispose([sample, states, mask]);
    disposeTree(params);
  });
}, ["wasm"]);

Deno.test("flags that the peers do not read change nothing", () => {
  const shapes = (extra: object) =>
    [...specLeaves(unetSpec(parseUNetConfig({ ...tiny, ...extra })))].map((
      [path, { shape }],
    ) => `${path} ${shape}`);
  assertEquals(
    shapes({ resnet_skip_time_act: true, resnet_out_scale_factor: 2 }),
    shapes({}),
  );
  // The middle always attends to itself; the first block only to the text.
  const only = shapes({ only_cross_attention: true });
  assert(only.includes(
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight 6,4",
  ));
  assert(
    only.includes(
      "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight 8,6",
    ) === false,
  );
  assert(
    only.some((line) =>
      line.startsWith("mid_block.attentions.0.transformer_blocks.0.attn1.to_k")
    ),
  );
});

Deno.test("heads that do not divide the channels get whole features", () => {
  const config = parseUNetConfig({ ...tiny, attention_head_dim: [3, 3] });
  assertEquals(headsOf(config, 1), 3);
  const shapes = new Map(
    [...specLeaves(unetSpec(config))].map(([path, { shape }]) => [path, shape]),
  );
  const at = "mid_block.attentions.0";
  assertEquals(shapes.get(`${at}.proj_in.weight`)?.slice(-2), [8, 6]);
  assertEquals(shapes.get(`${at}.proj_out.weight`)?.slice(-2), [6, 8]);
  assertEquals(crossAttentionSites(config).length, 4);
});

forEachBackend("timestep features", async (backend) => {
  const features = timestepFeatures([0, 10], 6, true, 0);
  const w = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3)];
  close(
    await features.data(),
    [
      1,
      1,
      1,
      0,
      0,
      0,
      ...w.map((f) => Math.cos(10 * f)),
      ...w.map((f) => Math.sin(10 * f)),
    ],
    tolerance(backend, 1e-6),
  );
  features.dispose();
});

forEachBackend("keys and values of the text are projected once", async () => {
  await noLeak(async () => {
    const config = parseUNetConfig(tiny);
    const params = initialise<UNet>(unetSpec(config), key(1));
    const random = (shape: number[], name: string) =>
      tf.tensor(
        normal(fold(key(2), name), shape.reduce((a, b) => a * b)),
        shape,
      );
    const sites = crossAttentionSites(config).length;
    const sample = random([2, 4, 4, 4], "sample") as tf.Tensor4D;
    const states = random([2, sites, 3, 6], "states") as tf.Tensor4D;
    const other = tf.zerosLike(states);
    const keyValues = new KeyValues();
    const run = async (
      text: tf.Tensor4D,
      t: number,
      options: UNetOptions = {},
    ) => {
      const y = tf.tidy(() => unet(params, config, sample, [t], text, options));
      const values = await y.data();
      y.dispose();
      return values;
    };
    // Bit for bit, in the call that makes them and in those that use them.
    for (const t of [900, 400, 1]) {
      assertEquals(
        await run(states, t, { keyValues }),
        await run(states, t),
      );
    }
    // They are used indeed: other states are not looked at any more.
    const plain = await run(states, 1);
    assertEquals(await run(other, 1, { keyValues }), plain);
    assertNotEquals(await run(other, 1), plain);
    // Nor kept where somebody has to see every projection.
    assertEquals(
      await run(other, 1, { keyValues, tap: () => {} }),
      await run(other, 1),
    );
    const longer = random([2, sites, 5, 6], "longer") as tf.Tensor4D;
    await assertRejects(
      () => run(longer, 1, { keyValues }),
      Error,
      "expected states [2,3,6] as before, got [2,5,6]",
    );
    keyValues.dispose();
    assertEquals(await run(other, 1, { keyValues }), await run(other, 1));
    keyValues.dispose();
    tf.dispose([sample, states, other, longer]);
    disposeTree(params);
  });
}, ["wasm"]);
