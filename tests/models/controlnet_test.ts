import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fold, key, normal } from "../../src/core/random.ts";
import {
  disposeTree,
  leaves,
  mapTree,
  type TreeLike,
} from "../../src/core/tree.ts";
import {
  combineControlNets,
  type ControlNet,
  controlNet,
  type ControlNetOptions,
  controlNetSpec,
  loadControlNet,
  parseControlNetConfig,
} from "../../src/models/controlnet.ts";
import { save } from "../../src/models/checkpoint.ts";
import { disposeModel } from "../../src/models/model.ts";
import { type UNet, unet } from "../../src/models/unet.ts";
import { initialise, specLeaves } from "../../src/nn/spec.ts";
import { golden, nchw, tinySd } from "../customize/tiny_sd.ts";
import {
  close,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";
import { conditionImage } from "./condition_image.ts";
import { someControlNet } from "./some_controlnet.ts";

// Ten times float32 against float64 (UNet with ControlNet 1.1e-6, README of
// the fixtures).
const TOLERANCE = 1.1e-5;
const FIXTURE = "controlnet/part.safetensors";

// The fixture has the first of two items, and only the weights up to the first
// residual; `deno task verify` compares whole networks.
forEachBackend("what a ControlNet adds matches diffusers", async (backend) => {
  await noLeak(async () => {
    const g = await golden(FIXTURE);
    const model = await tinySd();
    const { config, params } = await someControlNet();
    const condition = await conditionImage(FIXTURE, "condition_u8");
    const sample = g.nhwc("sample");
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    const timesteps = g.rows("timesteps")[0];
    const residual = tf.tidy(() =>
      controlNet(params, config, sample, timesteps, states, condition)
        .downResiduals[0]
    );
    close(
      await nchw(residual),
      g.values("down0.item0"),
      tolerance(backend, TOLERANCE),
      "condition embedding, conv_in and zero convolution",
    );
    const names = Array.from({ length: 9 }, (_, i) => `down${i}.item0`);
    const residuals = [...names, "mid.item0"].map((name) => g.nhwc(name));
    const cases: [string, (i: number) => number][] = [
      ["unet.scale1.0", () => 1],
      ["unet.scale0.6", () => 0.6],
      ["unet.guess_mode_scale0.6", (i) => 0.6 * 10 ** (i / 9 - 1)],
    ];
    for (const [name, factor] of cases) {
      const out = tf.tidy(() => {
        const scaled = residuals.map((r, i) => r.mul(factor(i)) as tf.Tensor4D);
        return unet(
          model.unet.params,
          model.unet.config,
          sample,
          timesteps,
          states,
          {
            downResiduals: scaled.slice(0, -1),
            midResidual: scaled.at(-1)!,
          },
        );
      });
      close(
        await nchw(out),
        g.values(name),
        tolerance(backend, TOLERANCE),
        name,
      );
      out.dispose();
    }
    tf.dispose([residual, condition]);
    g.dispose();
    disposeTree(params);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("scale and guess mode are factors of residuals", async () => {
  await noLeak(async () => {
    const { config, params } = await someControlNet();
    const ratios = tf.tidy(() => {
      const run = (options: ControlNetOptions) => {
        const { downResiduals, midResidual } = controlNet(
          params,
          config,
          tf.ones([1, 8, 8, 4]),
          [37],
          tf.ones([1, 5, 32]) as tf.Tensor3D,
          tf.ones([1, 32, 32, 3]),
          options,
        );
        return [...downResiduals, midResidual].map((r) => r.flatten().norm());
      };
      const plain = run({});
      return [{ scale: 0.6 }, { guess: true }, { scale: 0.6, guess: true }]
        .map((options) =>
          tf.stack(run(options).map((norm, i) => norm.div(plain[i])))
        );
    });
    const logspace = Array.from({ length: 10 }, (_, i) => 10 ** (i / 9 - 1));
    const expected = [
      new Array(10).fill(0.6),
      logspace,
      logspace.map((f) => 0.6 * f),
    ];
    for (const [i, ratio] of ratios.entries()) {
      close(await ratio.data(), expected[i], 1e-6);
    }
    tf.dispose(ratios);
    disposeTree(params);
  });
}, ["wasm"]);

forEachBackend(
  "other depths, widths and shapes have their residuals",
  async () => {
    await noLeak(async () => {
      // Four levels, one layer each, a condition of one channel that is halved
      // once, latents of odd sides.
      const config = parseControlNetConfig({
        block_out_channels: [8, 8, 16, 16],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: 2,
        cross_attention_dim: 12,
        conditioning_channels: 1,
        conditioning_embedding_out_channels: [4, 6],
        global_pool_conditions: false,
      });
      const fresh = initialise<ControlNet>(controlNetSpec(config), key(4));
      const params = mapTree(
        fresh,
        (leaf, path) =>
          path.startsWith("controlnet_")
            ? tf.tensor(normal(fold(key(5), path), leaf.size, 0.1), leaf.shape)
            : leaf.clone(),
      );
      disposeTree(fresh);
      const run = (pooled: boolean, options: ControlNetOptions) => {
        const { downResiduals, midResidual } = controlNet(
          params,
          { ...config, global_pool_conditions: pooled },
          tf.ones([2, 9, 14, 4]),
          [37],
          tf.ones([2, 5, 12]) as tf.Tensor3D,
          tf.ones([1, 18, 28, 1]),
          options,
        );
        return [...downResiduals, midResidual];
      };
      tf.tidy(() => {
        assertEquals(
          run(false, {}).map((r) => r.shape.slice(1)),
          [
            ...[[9, 14, 8], [9, 14, 8], [5, 7, 8], [5, 7, 8], [3, 4, 8]],
            ...[[3, 4, 16], [2, 2, 16], [2, 2, 16], [2, 2, 16]],
          ],
        );
      });
      // Averaged over the picture, residuals do not fade in guess mode.
      const [worst, means] = tf.tidy(() => {
        const guessed = run(true, { guess: true, scale: 0.6 });
        const plain = run(false, {}).map((r) =>
          r.mean([1, 2], true).mul(0.6) as tf.Tensor4D
        );
        return [
          tf.stack(guessed.map((r, i) => r.sub(plain[i]).abs().max())).max(),
          tf.stack(plain.map((r) => r.abs().max())).min(),
        ];
      });
      assert((await worst.data())[0] < 1e-6);
      assert((await means.data())[0] > 1e-3);
      tf.dispose([worst, means]);
      disposeTree(params);
    });
  },
  ["wasm"],
);

forEachBackend("a ControlNet folder comes back whole", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await noLeak(async () => {
      const { config, params } = await someControlNet();
      await Deno.copyFile(
        fixturePath("controlnet/config.json"),
        `${folder}/config.json`,
      );
      await save(
        `${folder}/diffusion_pytorch_model.safetensors`,
        controlNetSpec(config),
        params,
      );
      const again = await loadControlNet(folder);
      assertEquals(again.config, config);
      const own = leaves(params);
      for (const [i, [path, tensor]] of leaves(again.params).entries()) {
        assertEquals(path, own[i][0]);
        assertEquals(await tensor.data(), await own[i][1].data(), path);
      }
      disposeTree(again.params);
      disposeTree(params);
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}, ["wasm"]);

/** A new ControlNet on a UNet: its encoder half copied, the rest as given. */
function controlNetFrom(p: UNet, fresh: ControlNet): ControlNet {
  const { conv_in, time_embedding, down_blocks, mid_block } = p;
  const unet = new Map(
    leaves({ conv_in, time_embedding, down_blocks, mid_block } as TreeLike),
  );
  return mapTree(
    fresh,
    (leaf, path) => (unet.get(path) ?? leaf).clone(),
  ) as ControlNet;
}

forEachBackend("a new ControlNet changes nothing; two add up", async () => {
  await noLeak(async () => {
    const g = await golden(FIXTURE);
    const model = await tinySd();
    const config = parseControlNetConfig(
      JSON.parse(
        await Deno.readTextFile(fixturePath("controlnet/config.json")),
      ),
    );
    const fresh = initialise<ControlNet>(controlNetSpec(config), key(3));
    const made = controlNetFrom(model.unet.params, fresh);
    disposeTree(fresh);
    const trained = await someControlNet();
    const condition = await conditionImage(FIXTURE, "condition_u8");
    const sample = g.nhwc("sample");
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    const timesteps = g.rows("timesteps")[0];
    const run = (p: ControlNet) =>
      controlNet(p, config, sample, timesteps, states, condition);
    const sums = tf.tidy(() => {
      const [a, b] = [run(made), run(trained.params)];
      const both = combineControlNets([a, b]);
      const alone = combineControlNets([b]);
      return [
        tf.addN([...a.downResiduals, a.midResidual].map((r) => r.abs().max())),
        both.midResidual.sub(alone.midResidual).abs().max(),
        both.midResidual.abs().max(),
      ];
    });
    const [none, difference, some] = await Promise.all(
      sums.map(async (t) => (await t.data())[0]),
    );
    assertEquals(none, 0);
    assertEquals(difference, 0);
    assert(some > 0.01);
    tf.dispose([...sums, condition]);
    g.dispose();
    [made, trained.params].forEach((p) => disposeTree(p));
    disposeModel(model);
  });
}, ["wasm"]);

Deno.test("SD 1.5's ControlNet has 340 parameters", () => {
  // As counted in the state dict of lllyasviel/sd-controlnet-canny.
  const config = parseControlNetConfig({
    cross_attention_dim: 768,
    attention_head_dim: 8,
  });
  const paths = new Map(specLeaves(controlNetSpec(config)));
  assertEquals(paths.size, 340);
  assertEquals(
    paths.get("controlnet_cond_embedding.conv_out.weight")?.shape,
    [3, 3, 256, 320],
  );
  assertEquals(
    [...paths.keys()].filter((p) =>
      /^controlnet_down_blocks\.\d+\.weight$/.test(p)
    ).length,
    12,
  );
});

forEachBackend("bad conditions and folders are refused", async () => {
  await assertRejects(
    () => loadControlNet(fixturePath("tiny-sd/unet")),
    Error,
    "missing",
  );
  const { config, params } = await someControlNet();
  const x = tf.zeros([1, 8, 8, 4]) as tf.Tensor4D;
  const states = tf.zeros([1, 77, 32]) as tf.Tensor3D;
  const condition = tf.zeros([1, 32, 16, 3]) as tf.Tensor4D;
  assertThrows(
    () => controlNet(params, config, x, [1], states, condition),
    Error,
    "expected condition images [b, 32, 32, 3], got [1,32,16,3]",
  );
  assert(leaves(params).length > 0);
  tf.dispose([x, states, condition]);
  disposeTree(params);
  assertThrows(() => combineControlNets([]), Error, "at least one");
}, ["wasm"]);
