import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { disposeModel } from "../../src/models/model.ts";
import {
  combineAdapters,
  type CombineOptions,
  loadT2IAdapter,
  parseT2IAdapterConfig,
  pixelUnshuffle,
  type T2IAdapter,
  t2iAdapter,
  t2iAdapterSpec,
} from "../../src/models/t2i_adapter.ts";
import { unet } from "../../src/models/unet.ts";
import { initialise, specLeaves } from "../../src/nn/spec.ts";
import { golden, nchw, tinySd } from "../customize/tiny_sd.ts";
import { conditionImage } from "./condition_image.ts";
import {
  close,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";

// Ten times float32 against float64 (UNet with adapter 1.3e-6, README of the
// fixtures).
const TOLERANCE = 1.3e-5;
const FIXTURE = "t2i_adapter/expected.safetensors";

// The light adapter; `deno task verify` compares the full one too.
forEachBackend("a T2I-Adapter matches diffusers", async (backend) => {
  await noLeak(async () => {
    const g = await golden(FIXTURE);
    const model = await tinySd();
    const { config, params } = await loadT2IAdapter(
      fixturePath("t2i_adapter/adapter1"),
    );
    const image = await conditionImage(FIXTURE, "adapter1.condition_u8");
    const features = tf.tidy(() => t2iAdapter(params, config, image));
    for (const [j, feature] of features.entries()) {
      close(
        await nchw(feature),
        g.values(`adapter1.feature${j}`),
        tolerance(backend, TOLERANCE),
        `adapter1.feature${j}`,
      );
    }
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    const sample = g.nhwc("sample");
    const cases: [number[], CombineOptions][] = [
      [[0.8], {}],
      // Two adapters that see the same: their strengths add up …
      [[0.5, 0.3], {}],
      // … and 0.19.3 forgets the first: 1 − 0.2.
      [[0.5, -0.2], { behaviour: "diffusers-0.19.3" }],
    ];
    for (const [weights, options] of cases) {
      const out = tf.tidy(() =>
        unet(
          model.unet.params,
          model.unet.config,
          sample,
          g.rows("timesteps")[0],
          states,
          {
            adapterFeatures: combineAdapters(
              weights.map(() => features),
              weights,
              options,
            ),
          },
        )
      );
      close(
        await nchw(out),
        g.values("unet.adapter1_scale0.8"),
        tolerance(backend, TOLERANCE),
        `weights ${weights}`,
      );
      out.dispose();
    }
    g.dispose();
    tf.dispose([image, ...features]);
    disposeTree(params);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("pixel-unshuffle orders channel, row, column", async () => {
  // x[y, x, c] = 100c + 10y + x, so the expected value can be read off.
  const x = tf.tidy(() =>
    tf.tensor4d(
      Array.from({ length: 4 * 6 * 2 }, (_, i) => {
        const [y, column, c] = [Math.floor(i / 12), (i >> 1) % 6, i % 2];
        return 100 * c + 10 * y + column;
      }),
      [1, 4, 6, 2],
    )
  );
  const y = tf.tidy(() => pixelUnshuffle(x, 2));
  assertEquals(y.shape, [1, 2, 3, 8]);
  const values = [...await y.data()];
  // Row 1, column 2 holds pixels (2..3, 4..5) of channel 0, then channel 1.
  assertEquals(values.slice(40, 48), [24, 25, 34, 35, 124, 125, 134, 135]);
  tf.dispose([x, y]);
}, ["wasm"]);

forEachBackend("weights per region keep other places untouched", async () => {
  const feature = tf.ones([1, 2, 2, 3]) as tf.Tensor4D;
  const map = tf.tensor4d([0, 1, 0.5, 0], [1, 2, 2, 1]);
  const [sum] = tf.tidy(() =>
    combineAdapters([[feature], [feature]], [1, [map]])
  );
  assertEquals(
    [...await sum.data()],
    [1, 1, 1, 2, 2, 2, 1.5, 1.5, 1.5, 1, 1, 1],
  );
  tf.dispose([feature, map, sum]);
}, ["wasm"]);

forEachBackend("odd latent sizes round up, as the UNet's do", async () => {
  const config = parseT2IAdapterConfig({
    channels: [4, 8],
    downscale_factor: 4,
    num_res_blocks: 1,
  });
  const params = initialise<T2IAdapter>(t2iAdapterSpec(config), key(1));
  const image = tf.zeros([1, 20, 12, 3]) as tf.Tensor4D;
  const maps = tf.tidy(() => t2iAdapter(params, config, image));
  assertEquals(maps.map((m) => m.shape), [[1, 5, 3, 4], [1, 3, 2, 8]]);
  const bad = tf.zeros([1, 18, 12, 3]) as tf.Tensor4D;
  assertThrows(
    () => t2iAdapter(params, config, bad),
    Error,
    "sides that are multiples of 4, got 12×18",
  );
  tf.dispose([image, bad, ...maps]);
  disposeTree(params);
  await Promise.resolve();
}, ["wasm"]);

Deno.test("T2I-Adapter specs have SD 1.5's names and shapes", () => {
  const full = new Map(specLeaves(t2iAdapterSpec(parseT2IAdapterConfig({}))));
  assertEquals(full.get("adapter.conv_in.weight")?.shape, [3, 3, 192, 320]);
  assertEquals(full.get("adapter.body.1.in_conv.weight")?.shape, [
    1,
    1,
    320,
    640,
  ]);
  assertEquals(full.has("adapter.body.3.in_conv.weight"), false);
  assertThrows(
    () => parseT2IAdapterConfig({ adapter_type: "full_adapter_xl" }),
    Error,
    "adapter_type",
  );
  assertThrows(
    () =>
      parseT2IAdapterConfig({ adapter_type: "light_adapter", channels: [3] }),
    Error,
    "at least 4 channels",
  );
  // Inside a light adapter: a quarter of the channels, rounded down.
  const light = new Map(specLeaves(t2iAdapterSpec(parseT2IAdapterConfig({
    adapter_type: "light_adapter",
    channels: [6, 10],
    num_res_blocks: 1,
  }))));
  assertEquals(light.get("adapter.body.1.in_conv.weight")?.shape, [1, 1, 6, 2]);
  assertEquals(light.get("adapter.body.2.out_conv.weight")?.shape, [
    1,
    1,
    2,
    10,
  ]);
});

Deno.test("a folder that is no T2I-Adapter is refused", async () => {
  await assertRejects(
    () => loadT2IAdapter(fixturePath("tiny-sd/unet")),
    Error,
    "unexpected",
  );
});

Deno.test("bad combinations are refused", () => {
  assertThrows(() => combineAdapters([], []), Error, "at least one");
  assertThrows(() => combineAdapters([[]], [1, 2]), Error, "1 weights");
});
