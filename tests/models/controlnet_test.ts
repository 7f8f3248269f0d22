import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { disposeTree, leaves } from "../../src/core/tree.ts";
import {
  combineControlNets,
  conditionEmbedding,
  type ControlNet,
  controlNet,
  controlNetFrom,
  type ControlNetOptions,
  controlNetSpec,
  loadControlNet,
  parseControlNetConfig,
} from "../../src/models/controlnet.ts";
import { disposeModel } from "../../src/models/model.ts";
import { unet } from "../../src/models/unet.ts";
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

// Ten times float32 against float64 (UNet with ControlNet 1.1e-6, README of
// the fixtures).
const TOLERANCE = 1.1e-5;
const FIXTURE = "controlnet/expected.safetensors";

forEachBackend("ControlNet matches diffusers", async (backend) => {
  await noLeak(async () => {
    const g = await golden(FIXTURE);
    const model = await tinySd();
    const { config, params } = await loadControlNet(fixturePath("controlnet"));
    const condition = await conditionImage(FIXTURE, "condition_u8");
    const sample = g.nhwc("sample");
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    const timesteps = g.rows("timesteps")[0];
    const first = async (x: tf.Tensor4D, name: string) => {
      const item = tf.slice(x, [0, 0, 0, 0], [1, -1, -1, -1]);
      close(
        await nchw(item),
        g.values(name),
        tolerance(backend, TOLERANCE),
        name,
      );
      tf.dispose([item, x]);
    };
    await first(
      tf.tidy(() =>
        conditionEmbedding(params.controlnet_cond_embedding, config, condition)
      ),
      "cond_embedding.item0",
    );
    const residuals = tf.tidy(() => {
      const { downResiduals, midResidual } = controlNet(
        params,
        config,
        sample,
        timesteps,
        states,
        condition,
      );
      return [...downResiduals, midResidual];
    });
    assertEquals(residuals.length, 10);
    for (const [i, residual] of residuals.entries()) {
      await first(residual, i < 9 ? `down${i}.item0` : "mid.item0");
    }
    const cases: [string, ControlNetOptions][] = [
      ["unet.scale1.0", {}],
      ["unet.scale0.6", { scale: 0.6 }],
      ["unet.guess_mode_scale0.6", { scale: 0.6, guess: true }],
    ];
    for (const [name, options] of cases) {
      const out = tf.tidy(() =>
        unet(
          model.unet.params,
          model.unet.config,
          sample,
          timesteps,
          states,
          controlNet(
            params,
            config,
            sample,
            timesteps,
            states,
            condition,
            options,
          ),
        )
      );
      close(
        await nchw(out),
        g.values(name),
        tolerance(backend, TOLERANCE),
        name,
      );
      out.dispose();
    }
    condition.dispose();
    g.dispose();
    disposeTree(params);
    disposeModel(model);
  });
});

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
    const made = controlNetFrom(model.unet.params, config, fresh);
    disposeTree(fresh);
    const trained = await loadControlNet(fixturePath("controlnet"));
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
  const { config, params } = await loadControlNet(fixturePath("controlnet"));
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
