import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { fold, key } from "../../src/core/random.ts";
import {
  decodeImages,
  generate,
  pipeline,
  type PipelineOptions,
  type PipelineRecord,
  toPixels,
} from "../../src/diffusion/pipeline.ts";
import { attach, disposeAdapter } from "../../src/customize/lora.ts";
import { addTokens } from "../../src/customize/concept.ts";
import { loadLora } from "../../src/formats/lora.ts";
import { decode } from "../../src/models/autoencoder.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import {
  close,
  fixtureJson,
  fixturePath,
  forEachBackend,
  noLeak,
} from "../helpers.ts";
import { type Golden, golden, nchw, tinySd } from "../customize/tiny_sd.ts";

interface Prompts {
  readonly sd_prompt: string;
  readonly negative: string;
  readonly edlora_prompt: string;
  readonly ddim_prompt: string;
  readonly ddim_negative: string;
}

/** Runs a pipeline and compares every step with rows of the fixture. */
async function compare(
  model: Model,
  g: Golden,
  name: string,
  options: PipelineOptions,
): Promise<void> {
  const expected = g.values(`${name}.latents_per_step`);
  const size = 4 * 16 * 16;
  for await (const record of pipeline(model, options)) {
    if (record.type === "step") {
      // The fixtures' float32 against float64: 6e-6 after step 1, rising to
      // 6.2e-5 after step 10; times ten.
      const tolerance = 6e-5 * (1 + record.index);
      close(
        await nchw(record.latent),
        expected.subarray(record.index * size, (record.index + 1) * size),
        tolerance,
        `${name} step ${record.index}`,
      );
      assertEquals(record.total, 10);
      assertEquals(
        record.timestep,
        g.rows(`${name}.timesteps`)[0][record.index],
      );
    } else {
      // The decoder has golden values of its own (tests/verify/verify_test.ts).
      const { params, config } = model.autoencoder;
      const latent = tf.tensor4d(expected.slice(9 * size), [1, 4, 16, 16]);
      const image = tf.tidy(() =>
        decode(
          params,
          config,
          tf.transpose(latent, [0, 2, 3, 1]).div(config.scaling_factor),
        ).div(2).add(0.5).clipByValue(0, 1)
      );
      // Latents that differ by 6e-4 are decoded.
      close(await record.images.data(), await image.data(), 1e-4, "image");
      tf.dispose([record.images, latent, image]);
    }
  }
}

forEachBackend("DPM++ 2M with an ED-LoRA, as the official code", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const g = await golden("pipeline/expected.safetensors");
    const p = await fixtureJson<Prompts>("pipeline/prompts.json");
    const { adapter, embeddings } = await loadLora(
      fixturePath("lora/edlora_official.safetensors"),
      base,
    );
    const tokens = [...embeddings].map(([token, vectors]) => ({
      token,
      vectors,
    }));
    const model = addTokens(attach(base, adapter, { alpha: 0.7 }), [{
      tokens,
    }]);
    const config = await fixtureJson<
      Record<string, { concept_token_names: string[] }>
    >("pipeline/new_concept_cfg.json");
    for (
      const [token, { concept_token_names: names }] of Object.entries(config)
    ) {
      assertEquals(
        model.added!.sites[token].map((i) => model.added!.names[i]),
        names,
      );
    }
    await compare(model, g, "edlora_dpmpp10_cfg7.5_alpha0.7", {
      prompts: [p.edlora_prompt],
      negative: p.negative,
      steps: 10,
      noise: g.nhwc("initial_latents"),
    });
    g.dispose();
    model.added!.vectors.dispose();
    disposeAdapter(adapter);
    embeddings.forEach((v) => v.dispose());
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("DDIM with guidance 3, as diffusers", async () => {
  const model = await tinySd();
  const g = await golden("pipeline/expected.safetensors");
  const p = await fixtureJson<Prompts>("pipeline/prompts.json");
  const records: PipelineRecord[] = [];
  for await (
    const record of pipeline(model, {
      prompts: [p.ddim_prompt],
      negative: p.ddim_negative,
      sampler: "ddim",
      steps: 5,
      guidance: 3,
      noise: g.nhwc("initial_latents"),
      decode: false,
    })
  ) {
    records.push(record);
    if (record.type === "step" && record.index === 4) {
      close(
        await nchw(record.latent),
        g.values("sd_ddim5_cfg3.final_latents"),
        3e-4,
      );
    }
  }
  assertEquals(records.map((r) => r.type), new Array(5).fill("step"));
  g.dispose();
  disposeModel(model);
}, ["wasm"]);

forEachBackend(
  "a picture depends on its own key, not on its batch",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const prompts = ["a cat", "a dog", "a cat"];
      const shared = {
        prompts,
        key: key(7),
        steps: 2,
        sampler: "euler_a",
        guidance: 3,
      } as const;
      const [together, alone] = [
        await generate(model, { ...shared, batch: 3 }),
        await generate(model, { ...shared, batch: 1 }),
      ];
      assertEquals(together.map((p) => [p.width, p.height, p.channels]), [
        [64, 64, 3],
        [64, 64, 3],
        [64, 64, 3],
      ]);
      for (let i = 0; i < 3; i++) {
        // Rounding to bytes may fall either way by one.
        close(together[i].data, alone[i].data, 1);
      }
      assert(together[0].data.some((v, i) => v !== together[2].data[i]));
      const [again] = await generate(model, {
        ...shared,
        prompts: ["a cat"],
        key: [fold(key(7), 2)],
      });
      close(again.data, together[2].data, 1);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend(
  "guidance 1 is the conditional model; sizes may differ",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const rows: number[] = [];
      const branches: string[] = [];
      for await (
        const record of pipeline(model, {
          prompts: ["a cat"],
          negative: "ugly",
          guidance: 1,
          steps: 2,
          sampler: "ddim",
          width: 96,
          height: 32,
          unet: ({ branch }) => {
            branches.push(branch);
            return {
              activation: (path, value) => {
                if (path === "conv_in") rows.push(value.shape[0]);
              },
            };
          },
        })
      ) {
        if (record.type === "step") {
          assertEquals(record.latent.shape, [1, 8, 24, 4]);
          continue;
        }
        assertEquals(record.images.shape, [1, 32, 96, 3]);
        const [pixels] = await toPixels(record.images);
        assertEquals([pixels.width, pixels.height, pixels.data.length], [
          96,
          32,
          96 * 32 * 3,
        ]);
        record.images.dispose();
      }
      assertEquals(rows, [1, 1]);
      assertEquals(branches, ["conditional", "conditional"]);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend("leaving the loop early leaves nothing behind", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    for await (
      const record of pipeline(model, { prompts: ["a", "b"], batch: 1 })
    ) {
      assertEquals(record.first, 0);
      break;
    }
    const images = tf.tidy(() => decodeImages(model, tf.zeros([1, 4, 4, 4])));
    assertEquals(images.shape, [1, 16, 16, 3]);
    images.dispose();
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("bad settings are errors before work starts", async () => {
  const model = await tinySd();
  const bad: [Partial<PipelineOptions>, string][] = [
    [{ steps: 0 }, "steps ≥ 1"],
    [{ batch: 0 }, "a batch of at least 1"],
    [{ guidance: NaN }, "a finite guidance scale"],
    [{ width: 30 }, "a width that is a multiple of 4"],
    [{ negative: ["a", "b"] }, "1 negative prompts"],
    [{ key: [] as never }, "1 keys"],
    [{ sampler: "magic" as "ddim" }, "magic"],
  ];
  for (const [options, message] of bad) {
    const before = tf.memory().numTensors;
    await assertRejects(
      () => generate(model, { prompts: ["a"], ...options }),
      Error,
      message,
    );
    assertEquals(tf.memory().numTensors, before);
  }
  const noise = tf.zeros([2, 16, 16, 4]) as tf.Tensor4D;
  await assertRejects(
    () => generate(model, { prompts: ["a"], noise }),
    Error,
    "Cannot sample: expected noise [1,16,16,4], got [2,16,16,4]",
  );
  noise.dispose();
  disposeModel(model);
}, ["wasm"]);

Deno.test("a range of pictures is what it is among all", async () => {
  await selectBackend("wasm");
  await noLeak(async () => {
    const model = await tinySd();
    const options: PipelineOptions = {
      // Of several lengths: a batch is as long as the longest of all.
      prompts: ["a cat", "a dog BREAK on grass", "a cat", "a (bird:1.2)"],
      negative: ["", "red", "", "blue"],
      syntax: "a1111",
      steps: 2,
      batch: 3,
    };
    const all = await generate(model, options);
    const parts = [
      ...await generate(model, { ...options, range: [0, 1] }),
      ...await generate(model, { ...options, range: [1, 4], batch: 2 }),
    ];
    assertEquals(parts, all);
    assertEquals(await generate(model, { ...options, range: [2, 2] }), []);
    for (const range of [[0, 5], [-1, 2], [3, 2], [0.5, 2]] as const) {
      await assertRejects(
        () => generate(model, { ...options, range }),
        Error,
        `expected a range inside 0 to 4, got [${range}]`,
      );
    }
    disposeModel(model);
  });
});
