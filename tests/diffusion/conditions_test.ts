import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { disposeTree } from "../../src/core/tree.ts";
import {
  type Condition,
  conditionChannels,
  conditionedSampling,
} from "../../src/diffusion/conditions.ts";
import { generate, type UNetCall } from "../../src/diffusion/pipeline.ts";
import { disposeModel } from "../../src/models/model.ts";
import { loadT2IAdapter } from "../../src/models/t2i_adapter.ts";
import { unet } from "../../src/models/unet.ts";
import { golden, nchw, tinySd } from "../customize/tiny_sd.ts";
import {
  close,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";
import { conditionImage } from "../models/condition_image.ts";
import { someControlNet } from "../models/some_controlnet.ts";

const T2I = "t2i_adapter/expected.safetensors";

async function adapter() {
  const folder = fixturePath("t2i_adapter/adapter1");
  return {
    network: { type: "t2i_adapter" as const, ...await loadT2IAdapter(folder) },
    image: await conditionImage(T2I, "adapter1.condition_u8"),
  };
}

async function controlNet() {
  return {
    network: { type: "controlnet" as const, ...await someControlNet() },
    image: await conditionImage("controlnet/part.safetensors", "condition_u8"),
  };
}

function release(conditions: readonly Condition[]) {
  for (const { network, image } of conditions) {
    disposeTree(network.params);
    image.dispose();
  }
}

forEachBackend("weighted conditions match diffusers", async (backend) => {
  await noLeak(async () => {
    const g = await golden(T2I);
    const model = await tinySd();
    const pair = [await adapter(), await adapter()];
    const states = g.tensor<tf.Tensor3D>("encoder_hidden_states");
    const sample = g.nhwc("sample");
    const call: UNetCall = {
      index: 0,
      total: 1,
      timestep: 0,
      branch: "both",
      first: 0,
      count: 1,
      sample,
      states,
    };
    // Two adapters that see the same, so that their strengths add up to 0.8.
    const both = (a: number, b: number) => [
      { ...pair[0], scale: a },
      { ...pair[1], scale: b },
    ];
    const cases: [Condition[], "weighted" | "diffusers-0.19.3"][] = [
      [[{ ...pair[0], scale: 0.8 }], "weighted"],
      [both(0.5, 0.3), "weighted"],
      // 0.19.3 forgets the first strength: 1 − 0.2.
      [both(0.5, -0.2), "diffusers-0.19.3"],
      // A place that covers everything is the same as a strength.
      [
        [0.5, 0.3].map((scale, i) => ({
          ...pair[i],
          places: [{
            shape: { box: { top: 0, left: 0, bottom: 1, right: 1 } },
            scale,
          }],
        })),
        "weighted",
      ],
    ];
    for (const [i, [conditions, behaviour]] of cases.entries()) {
      const conditioned = conditionedSampling(conditions, { behaviour });
      const out = tf.tidy(() =>
        unet(
          model.unet.params,
          model.unet.config,
          sample,
          g.rows("timesteps")[0],
          states,
          conditioned.unet(call),
        )
      );
      close(
        await nchw(out),
        g.values("unet.adapter1_scale0.8"),
        tolerance(backend, 1.3e-5),
        `case ${i}`,
      );
      out.dispose();
      conditioned.dispose();
    }
    release(pair);
    g.dispose();
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("conditions act when and where they are told to", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const conditions = [await adapter(), await controlNet()];
    const draw = async (list: Condition[]) => {
      const conditioned = conditionedSampling(list);
      const pictures = await generate(model, {
        prompts: ["a cat", "a dog"],
        negative: "blurry",
        steps: 1,
        sampler: "ddim",
        guidance: 3,
        unet: (call) => conditioned.unet(call),
      });
      conditioned.dispose();
      return pictures.map((p) => p.data);
    };
    const plain = await draw([]);
    const differs = (a: Uint8Array[]) =>
      a.every((data, i) => data.some((v, k) => v !== plain[i][k]));
    for (const condition of conditions) {
      const { type } = condition.network;
      assert(differs(await draw([condition])), type);
      assertEquals(await draw([{ ...condition, scale: 0 }]), plain, type);
      assertEquals(await draw([{ ...condition, end: 0 }]), plain, type);
      const nowhere = {
        ...condition,
        places: [{
          shape: { box: { top: 0, left: 0, bottom: 1, right: 1 } },
          scale: 0,
        }],
      };
      assertEquals(await draw([nowhere]), plain, type);
    }
    assert(differs(await draw(conditions)), "both");
    const [, net] = conditions;
    const guessed = await draw([{ ...net, guess: true }]);
    assert(differs(guessed), "guess mode");
    release(conditions);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "guess mode leaves the branch without prompt alone",
  async () => {
    await noLeak(async () => {
      const condition = await controlNet();
      const { network } = condition;
      const pooled = {
        ...network,
        config: { ...network.config, global_pool_conditions: true },
      };
      // What is averaged over the picture guesses unless told not to.
      const cases: [Condition, boolean][] = [
        [condition, false],
        [{ ...condition, guess: true }, true],
        [{ ...condition, network: pooled }, true],
        [{ ...condition, network: pooled, guess: false }, false],
      ];
      for (const [one, guesses] of cases) {
        const conditioned = conditionedSampling([one]);
        const sums = tf.tidy(() => {
          const options = conditioned.unet({
            index: 0,
            total: 1,
            timestep: 500,
            branch: "both",
            first: 0,
            count: 1,
            sample: tf.ones([2, 16, 16, 4]),
            states: tf.ones([2, 77, 32]) as tf.Tensor3D,
          });
          return options.midResidual!.abs().sum([1, 2, 3]);
        });
        const [without, with_] = await sums.data();
        assertEquals(without === 0, guesses);
        assert(with_ > 0);
        sums.dispose();
        conditioned.dispose();
      }
      release([condition]);
    });
  },
  ["wasm"],
);

forEachBackend("bad conditions are refused", async () => {
  const condition = await adapter();
  await noLeak(() => {
    const refuse = (change: Partial<Condition>, message: string) =>
      assertThrows(
        () => conditionedSampling([{ ...condition, ...change }]),
        Error,
        message,
      );
    refuse({ scale: NaN }, "finite scale of condition 0");
    refuse({ start: 0.5, end: 0.2 }, "start 0.5, end 0.2");
    refuse({ guess: true }, "ControlNet");
    const odd = tf.zeros([1, 10, 8, 3]) as tf.Tensor4D;
    refuse({ image: odd }, "multiples of 4");
    odd.dispose();
  });
  const net = await controlNet();
  await noLeak(() => {
    const { network } = net;
    const config = { ...network.config, global_pool_conditions: true };
    const shape = { box: { top: 0, left: 0, bottom: 1, right: 1 } };
    assertThrows(
      () =>
        conditionedSampling([
          condition,
          {
            ...net,
            network: { ...network, config },
            places: [{ shape, scale: 0.5 }],
          },
        ]),
      Error,
      "expected no places of condition 1, whose ControlNet averages over",
    );
  });
  release([net]);
  assertEquals(conditionChannels(condition.network), 3);
  release([condition]);
}, ["wasm"]);
