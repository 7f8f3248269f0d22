import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { disposeTree, valueAndGrads } from "../../src/core/tree.ts";
import {
  crossAttentionSites,
  headsOf,
  parseUNetConfig,
} from "../../src/models/config.ts";
import {
  timestepFeatures,
  type UNet,
  unet,
  unetSpec,
} from "../../src/models/unet.ts";
import { initialise, specLeaves } from "../../src/nn/spec.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

// Every branch of the config is compared with PyTorch in tests/cli/verify_test.ts
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
