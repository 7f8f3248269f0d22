import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { leaves } from "../../src/core/tree.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import {
  type Autoencoder,
  autoencoderSpec,
} from "../../src/models/autoencoder.ts";
import {
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { loadSingleFile, saveSingleFile } from "../../src/formats/ldm.ts";
import { LDM_PREFIX } from "../../src/formats/ldm_names.ts";
import { describeLdm } from "../../src/formats/ldm_config.ts";
import { type LdmConfigs, ldmEntries } from "../../src/formats/ldm_names.ts";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";
import {
  type TextEncoder,
  textEncoderSpec,
} from "../../src/models/text_encoder.ts";
import { loadTokenizer } from "../../src/models/tokenizer.ts";
import { type UNet, unetSpec } from "../../src/models/unet.ts";
import { initialise } from "../../src/nn/spec.ts";
import { fixturePath, forEachBackend, noLeak } from "../helpers.ts";

const TOKENIZER = fixturePath("tiny-sd/tokenizer");

/** Stable Diffusion 1.5 and 2.1 as diffusers' configs have them. */
const SD15: LdmConfigs = {
  textEncoder: parseTextEncoderConfig({
    hidden_size: 768,
    intermediate_size: 3072,
    num_attention_heads: 12,
    projection_dim: 768,
  }),
  unet: parseUNetConfig({
    sample_size: 64,
    cross_attention_dim: 768,
    attention_head_dim: 8,
    time_embedding_dim: null,
  }),
  autoencoder: parseAutoencoderConfig({
    block_out_channels: [128, 256, 512, 512],
    layers_per_block: 2,
    down_block_types: new Array(4).fill("DownEncoderBlock2D"),
    up_block_types: new Array(4).fill("UpDecoderBlock2D"),
    sample_size: 512,
  }),
};

const SD21: LdmConfigs = {
  textEncoder: parseTextEncoderConfig({
    hidden_size: 1024,
    intermediate_size: 4096,
    num_hidden_layers: 23,
    num_attention_heads: 16,
    hidden_act: "gelu",
    projection_dim: 512,
  }),
  unet: parseUNetConfig({
    sample_size: 64,
    cross_attention_dim: 1024,
    attention_head_dim: [5, 10, 20, 20],
    use_linear_projection: true,
    time_embedding_dim: null,
  }),
  autoencoder: SD15.autoencoder,
};

/**
 * Small, but every config field that shapes can tell differs from the default:
 * three levels of one, two and one layers, the middle one without attention.
 */
function odd(layout: "sd1" | "sd2"): LdmConfigs {
  const two = layout === "sd2";
  return {
    textEncoder: parseTextEncoderConfig({
      vocab_size: 1001,
      hidden_size: 64,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 1,
      hidden_act: two ? "gelu" : "quick_gelu",
      projection_dim: two ? 512 : 768,
    }),
    unet: parseUNetConfig({
      sample_size: 64,
      in_channels: 9,
      block_out_channels: [32, 64, 96],
      layers_per_block: [1, 2, 1],
      down_block_types: [
        "CrossAttnDownBlock2D",
        "DownBlock2D",
        "CrossAttnDownBlock2D",
      ],
      up_block_types: [
        "CrossAttnUpBlock2D",
        "UpBlock2D",
        "CrossAttnUpBlock2D",
      ],
      cross_attention_dim: 64,
      attention_head_dim: two ? [1, 1, 1] : 8,
      use_linear_projection: two,
      time_embedding_dim: 48,
    }),
    autoencoder: parseAutoencoderConfig({
      block_out_channels: [32, 64],
      layers_per_block: 1,
      latent_channels: 3,
      down_block_types: new Array(2).fill("DownEncoderBlock2D"),
      up_block_types: new Array(2).fill("UpDecoderBlock2D"),
      sample_size: 512,
    }),
  };
}

async function randomModel(configs: LdmConfigs): Promise<Model> {
  return {
    tokenizer: await loadTokenizer(TOKENIZER),
    textEncoder: {
      config: configs.textEncoder,
      params: initialise<TextEncoder>(
        textEncoderSpec(configs.textEncoder),
        key(1),
      ),
    },
    unet: {
      config: configs.unet,
      params: initialise<UNet>(unetSpec(configs.unet), key(2)),
    },
    autoencoder: {
      config: configs.autoencoder,
      params: initialise<Autoencoder>(
        autoencoderSpec(configs.autoencoder),
        key(3),
      ),
    },
    scheduler: { _class_name: "DDIMScheduler", prediction_type: "epsilon" },
  };
}

async function assertSameModel(actual: Model, expected: Model): Promise<void> {
  for (const part of ["textEncoder", "unet", "autoencoder"] as const) {
    assertEquals(actual[part].config, expected[part].config, part);
    const theirs = new Map(leaves(actual[part].params));
    const ours = leaves(expected[part].params);
    assertEquals([...theirs.keys()], ours.map(([path]) => path));
    for (const [path, tensor] of ours) {
      assertEquals(theirs.get(path)!.shape, tensor.shape, path);
      assertEquals(await theirs.get(path)!.data(), await tensor.data(), path);
    }
  }
}

async function withFile(work: (path: string) => Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    await work(`${folder}/model.safetensors`);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** All tensors of a file, to write it again with changes. */
async function contents(path: string): Promise<Map<string, RawTensor>> {
  const file = await openSafetensors(path);
  const all = new Map<string, RawTensor>();
  for (const name of file.entries.keys()) all.set(name, await file.read(name));
  file.close();
  return all;
}

function zeros(shape: number[]): RawTensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return { dtype: "F32", shape, data: new Uint8Array(4 * size) };
}

Deno.test("Stable Diffusion 1.5 has the names its file has", () => {
  const entries = ldmEntries(SD15, "sd1");
  const count = (component: string) =>
    entries.filter((entry) => entry.component === component).length;
  // With position_ids: the 1131 tensors of v1-5-pruned-emaonly.
  assertEquals(count("unet"), 686);
  assertEquals(count("autoencoder"), 248);
  assertEquals(count("textEncoder"), 196);
  const shapes = new Map(entries.map((e) => [e.names[0], e.shape]));
  // Keys and shapes as other tools look for them in that file.
  const known: [string, number[]][] = [
    ["model.diffusion_model.time_embed.2.weight", [1280, 1280]],
    ["model.diffusion_model.input_blocks.0.0.weight", [320, 4, 3, 3]],
    ["model.diffusion_model.input_blocks.3.0.op.weight", [320, 320, 3, 3]],
    [
      "model.diffusion_model.input_blocks.4.0.skip_connection.weight",
      [640, 320, 1, 1],
    ],
    [
      "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
      [1280, 768],
    ],
    ["model.diffusion_model.input_blocks.11.0.out_layers.3.bias", [1280]],
    [
      "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
      [1280, 768],
    ],
    [
      "model.diffusion_model.output_blocks.2.1.conv.weight",
      [1280, 1280, 3, 3],
    ],
    [
      "model.diffusion_model.output_blocks.5.2.conv.weight",
      [1280, 1280, 3, 3],
    ],
    ["model.diffusion_model.output_blocks.8.2.conv.weight", [640, 640, 3, 3]],
    [
      "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias",
      [320],
    ],
    ["model.diffusion_model.out.2.weight", [4, 320, 3, 3]],
    ["first_stage_model.encoder.mid.attn_1.q.weight", [512, 512, 1, 1]],
    [
      "first_stage_model.encoder.down.2.block.0.nin_shortcut.weight",
      [512, 256, 1, 1],
    ],
    ["first_stage_model.decoder.up.0.block.2.conv2.weight", [128, 128, 3, 3]],
    ["first_stage_model.decoder.up.3.upsample.conv.weight", [512, 512, 3, 3]],
    ["first_stage_model.quant_conv.weight", [8, 8, 1, 1]],
    [
      "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight",
      [3072, 768],
    ],
  ];
  for (const [name, shape] of known) {
    assertEquals(shapes.get(name), shape, name);
  }
});

Deno.test("Stable Diffusion 2.x has OpenCLIP's names, q, k and v in one", () => {
  const entries = ldmEntries(SD21, "sd2");
  const byName = new Map(entries.map((e) => [e.names[0], e]));
  const layer = "cond_stage_model.model.transformer.resblocks.22";
  const fused = byName.get(`${layer}.attn.in_proj_weight`)!;
  assertEquals(fused.shape, [3072, 1024]);
  assertEquals(
    fused.parts.map((part) => part.path.split(".").at(-2)),
    ["q_proj", "k_proj", "v_proj"],
  );
  assertEquals(byName.get(`${layer}.mlp.c_proj.weight`)!.shape, [1024, 4096]);
  assertEquals(
    byName.get("cond_stage_model.model.positional_embedding")!.shape,
    [77, 1024],
  );
  assert(byName.has("cond_stage_model.model.ln_final.bias"));
  const proj = "model.diffusion_model.input_blocks.1.1.proj_in.weight";
  assertEquals(byName.get(proj)!.shape, [320, 320]);
  assertEquals(
    entries.filter((e) => e.component === "textEncoder").length,
    4 + 23 * 12,
  );
});

Deno.test("every parameter is a part of exactly one tensor", () => {
  for (const layout of ["sd1", "sd2"] as const) {
    for (const configs of [SD15, SD21, odd(layout)]) {
      const entries = ldmEntries(configs, layout);
      const names = entries.flatMap((entry) => entry.names);
      assertEquals(new Set(names).size, names.length);
      const parts = entries.flatMap((entry) =>
        entry.parts.map(({ path }) => `${entry.component} ${path}`)
      );
      assertEquals(new Set(parts).size, parts.length);
    }
  }
});

Deno.test("configs follow from the shapes of a file without metadata", () => {
  const cases = [["sd1", SD15], ["sd2", SD21], ["sd1", odd("sd1")], [
    "sd2",
    odd("sd2"),
  ]] as const;
  for (const [layout, configs] of cases) {
    const entries = new Map(
      ldmEntries(configs, layout).map(({ names, shape }) => [
        names[0],
        { dtype: "F16" as const, shape: [...shape], begin: 0, end: 0 },
      ]),
    );
    const found = describeLdm({ entries });
    assertEquals(found.layout, layout);
    assertEquals(found.configs.unet, configs.unet);
    assertEquals(found.configs.autoencoder, configs.autoencoder);
    assertEquals(found.configs.textEncoder, configs.textEncoder);
    assertEquals(
      found.predictionType,
      layout === "sd1" ? "epsilon" : undefined,
    );
    const said = describeLdm({
      entries,
      metadata: { "modelspec.prediction_type": "v" },
    });
    assertEquals(said.predictionType, "v_prediction");
  }
});

forEachBackend("a single file gives the model that was saved", async () => {
  await noLeak(async () => {
    const tiny = await loadModel(fixturePath("tiny-sd"));
    await withFile(async (path) => {
      // The fixture's weights are exact in half precision.
      for (const dtype of ["F32", "F16"] as const) {
        await saveSingleFile(path, tiny, { dtype });
        const again = await loadSingleFile(path, { tokenizer: TOKENIZER });
        await assertSameModel(again, tiny);
        assertEquals(again.scheduler, tiny.scheduler);
        disposeModel(again);
      }
    });
    disposeModel(tiny);
  });
}, ["wasm"]);

for (const layout of ["sd1", "sd2"] as const) {
  Deno.test(`any levels and layers, ${layout}, without metadata`, async () => {
    const configs = odd(layout);
    const model = await randomModel(configs);
    await noLeak(() =>
      withFile(async (path) => {
        await saveSingleFile(path, model, { layout });
        await writeSafetensors(path, await contents(path));
        const again = await loadSingleFile(path, {
          tokenizer: TOKENIZER,
          predictionType: "v_prediction",
        });
        await assertSameModel(again, model);
        assertEquals(again.scheduler.prediction_type, "v_prediction");
        assertEquals(again.scheduler._class_name, "PNDMScheduler");
        disposeModel(again);
      })
    );
    disposeModel(model);
  });
}

Deno.test("bytes of a single file are PyTorch's", async () => {
  const model = await randomModel(odd("sd2"));
  await withFile(async (path) => {
    await saveSingleFile(path, model);
    const file = await contents(path);
    const layer = model.textEncoder.params.text_model.encoder.layers[1];
    const fused = toFloat32(
      file.get(
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight",
      )!,
    );
    // Rows are outputs: first the query's, then the key's, then the value's.
    const { q_proj, k_proj, v_proj } = layer.self_attn;
    const expected = [];
    for (const { weight } of [q_proj, k_proj, v_proj]) {
      const rows = tf.tidy(() => tf.transpose(weight).dataSync());
      expected.push(...rows);
    }
    assertEquals([...fused], expected);
    const conv = toFloat32(
      file.get("model.diffusion_model.input_blocks.0.0.weight")!,
    );
    const { weight } = model.unet.params.conv_in;
    const oihw = tf.tidy(() => tf.transpose(weight, [3, 2, 0, 1]).dataSync());
    assertEquals(conv, oihw as Float32Array);
    const attention = file.get("first_stage_model.decoder.mid.attn_1.q.weight");
    assertEquals(attention!.shape, [64, 64, 1, 1]);
  });
  disposeModel(model);
});

Deno.test("position_ids are written for the tools that want them", async () => {
  const model = await randomModel(odd("sd1"));
  await withFile(async (path) => {
    await saveSingleFile(path, model);
    const ids = (await contents(path)).get(
      "cond_stage_model.transformer.text_model.embeddings.position_ids",
    )!;
    assertEquals(ids.shape, [1, 77]);
    assertEquals([...toFloat32(ids)], Array.from({ length: 77 }, (_, i) => i));
  });
  disposeModel(model);
});

Deno.test("what belongs to training is left out, by name", async () => {
  for (const layout of ["sd1", "sd2"] as const) {
    const model = await randomModel(odd(layout));
    await withFile(async (path) => {
      await saveSingleFile(path, model, { layout });
      const all = await contents(path);
      for (
        const name of [
          "model_ema.diffusion_modelinput_blocks00weight",
          "model_ema.decay",
          "alphas_cumprod",
          "alphas_cumprod_prev",
          "sqrt_recipm1_alphas_cumprod",
          "posterior_mean_coef2",
          "logvar",
          "first_stage_model.loss.discriminator.main.0.weight",
          "cond_stage_model.model.logit_scale",
        ]
      ) all.set(name, zeros([1]));
      await writeSafetensors(path, all, {
        "modelspec.prediction_type": "epsilon",
      });
      const again = await loadSingleFile(path, { tokenizer: TOKENIZER });
      await assertSameModel(again, model);
      disposeModel(again);
    });
    disposeModel(model);
  }
});

Deno.test("the last of OpenCLIP's 24 layers is left out", async () => {
  const configs = odd("sd2");
  const deep = (layers: number): LdmConfigs => ({
    ...configs,
    textEncoder: { ...configs.textEncoder, num_hidden_layers: layers },
  });
  const model = await randomModel(deep(24));
  await withFile(async (path) => {
    await saveSingleFile(path, model, { layout: "sd2" });
    const all = await contents(path);
    all.set("v_pred", zeros([0]));
    await writeSafetensors(path, all);
    const again = await loadSingleFile(path, { tokenizer: TOKENIZER });
    assertEquals(again.textEncoder.config.num_hidden_layers, 23);
    assertEquals(again.scheduler.prediction_type, "v_prediction");
    const { layers } = model.textEncoder.params.text_model.encoder;
    const read = again.textEncoder.params.text_model.encoder.layers;
    assertEquals(read.length, 23);
    assertEquals(
      await read[22].mlp.fc2.weight.data(),
      await layers[22].mlp.fc2.weight.data(),
    );
    disposeModel(again);
  });
  disposeModel(model);
});

Deno.test("a text encoder without its text_model level is read", async () => {
  const model = await randomModel(odd("sd1"));
  await withFile(async (path) => {
    await saveSingleFile(path, model);
    const all = [...await contents(path)].map(([name, raw]): [
      string,
      RawTensor,
    ] => [name.replace(".text_model.", "."), raw]);
    await writeSafetensors(path, all);
    const again = await loadSingleFile(path, { tokenizer: TOKENIZER });
    await assertSameModel(again, model);
    disposeModel(again);
  });
  disposeModel(model);
});

Deno.test("all that does not fit is named in one error", async () => {
  const model = await randomModel(odd("sd1"));
  await noLeak(() =>
    withFile(async (path) => {
      await saveSingleFile(path, model);
      const all = await contents(path);
      const gone = [
        "model.diffusion_model.out.0.bias",
        "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
      ];
      for (const name of gone) assert(all.delete(name));
      const bad = "model.diffusion_model.time_embed.2.weight";
      all.set(bad, zeros([48, 47]));
      const strange = ["model.diffusion_model.extra"];
      all.set("lora_unet_x.alpha", zeros([]));
      for (const name of strange) all.set(name, zeros([2]));
      await writeSafetensors(path, all);
      const error = await assertRejects(() =>
        loadSingleFile(path, { tokenizer: TOKENIZER })
      ) as Error;
      for (const name of [...gone, ...strange]) {
        assert(error.message.includes(name), error.message);
      }
      assert(
        error.message.includes(`${bad} (expected [48,48], got [48,47])`),
        error.message,
      );
      assert(error.message.includes("3 missing"), error.message);
      // What is no network's is no fault.
      assert(!error.message.includes("lora_unet_x"), error.message);
    })
  );
  disposeModel(model);
});

Deno.test("a file that cannot be loaded says why", async () => {
  const model = await randomModel(odd("sd2"));
  const tokenizer = TOKENIZER;
  await withFile(async (path) => {
    await assertRejects(
      () => loadSingleFile("a/model.ckpt", { tokenizer }),
      Error,
      "can run any code",
    );
    await saveSingleFile(path, model, { layout: "sd2" });
    await assertRejects(
      // deno-lint-ignore no-explicit-any
      () => loadSingleFile(path, {} as any),
      Error,
      "vocab.json",
    );
    await writeSafetensors(path, await contents(path));
    await assertRejects(
      () => loadSingleFile(path, { tokenizer }),
      Error,
      "predictionType",
    );
    await writeSafetensors(path, [["conditioner.embedders.0.x", zeros([1])]]);
    await assertRejects(
      () => loadSingleFile(path, { tokenizer }),
      Error,
      "Stable Diffusion 1.x or 2.x",
    );
    await writeSafetensors(path, [["lora_unet_x.alpha", zeros([1])]]);
    await assertRejects(
      () => loadSingleFile(path, { tokenizer }),
      Error,
      "model.diffusion_model.",
    );
    // Metadata is anyone's: it must not make a million layers.
    await writeSafetensors(path, [
      ["model.diffusion_model.out.2.weight", zeros([4, 1, 3, 3])],
    ], {
      "mix_of_show.configs": JSON.stringify({
        textEncoder: { num_hidden_layers: 1e9 },
        unet: { layers_per_block: 1e9 },
        autoencoder: {},
        scheduler: {},
      }),
    });
    await assertRejects(
      () => loadSingleFile(path, { tokenizer }),
      Error,
      "layers_per_block",
    );
  });
  disposeModel(model);
});

Deno.test("learned tokens and adapters have no place in a single file", async () => {
  const model = await randomModel(odd("sd1"));
  await withFile(async (path) => {
    const vectors = tf.zeros([1, 64]) as tf.Tensor2D;
    const learned: Model = {
      ...model,
      added: { names: ["<new0>"], vectors, sites: { "<cat>": [0, 0] } },
    };
    await assertRejects(() => saveSingleFile(path, learned), Error, "<cat>");
    await saveSingleFile(path, learned, { withoutTokens: true });
    const names = [...(await contents(path)).keys()];
    assert(names.some((name) => name.startsWith(LDM_PREFIX.unet)));
    const low = tf.zeros([1, 1]);
    const { conv_in } = model.unet.params;
    const adapted = {
      ...model,
      unet: {
        ...model.unet,
        params: {
          ...model.unet.params,
          conv_in: { ...conv_in, low: [{ down: low, up: low }] },
        },
      },
    } as unknown as Model;
    await assertRejects(() => saveSingleFile(path, adapted), Error, "merge");
    tf.dispose([vectors, low]);
  });
  disposeModel(model);
});

Deno.test("bfloat16 files are read", async () => {
  const model = await randomModel(odd("sd1"));
  await withFile(async (path) => {
    await saveSingleFile(path, model, { dtype: "BF16" });
    const again = await loadSingleFile(path, { tokenizer: TOKENIZER });
    const { weight } = again.unet.params.conv_out;
    const values = await model.unet.params.conv_out.weight.data();
    const rounded = toFloat32({
      dtype: "BF16",
      shape: [values.length],
      data: encodeFloat(values as Float32Array, "BF16"),
    });
    assertEquals(await weight.data(), rounded);
    disposeModel(again);
  });
  disposeModel(model);
});
