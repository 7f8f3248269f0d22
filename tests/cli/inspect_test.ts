/**
 * `inspect` on a made-up file of each family that people have: one screenful
 * that names the kind, or an error of one sentence.
 */
import { assert, assertEquals } from "@std/assert";
import { joinPath } from "../../src/io/files.ts";
import { type RawTensor, writeSafetensors } from "../../src/io/safetensors.ts";
import { fixturePath, inFolder } from "../helpers.ts";
import { said } from "./said.ts";

/** Shapes by name, as zeros of two bytes. */
type Shapes = Record<string, number[]>;

function zeros(shape: number[]): RawTensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return { dtype: "F16", shape, data: new Uint8Array(2 * size) };
}

const UNET = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k";

/** The embedded model's layer of that name. */
const [OUT, IN] = [64, 96];

/** Many keys, as real files have. */
function many(count: number, shapes: (i: number) => Shapes): Shapes {
  return Object.assign(
    {},
    ...Array.from({ length: count }, (_, i) => shapes(i)),
  );
}

/** Families: the kind that is named, what else is said, the tensors. */
const FAMILIES: [
  name: string,
  kind: string,
  more: string[],
  shapes: Shapes,
  metadata?: Record<string, string>,
][] = [
  ["LoHa", "LoHa", ["LoHa of rank 2 (×1)", "fits: "], {
    [`${UNET}.hada_w1_a`]: [OUT, 2],
    [`${UNET}.hada_w1_b`]: [2, IN],
    [`${UNET}.hada_w2_a`]: [OUT, 2],
    [`${UNET}.hada_w2_b`]: [2, IN],
    [`${UNET}.alpha`]: [],
  }],
  ["LoKr", "LoKr", ["LoKr of rank 3 (×1)", "rank as factors"], {
    [`${UNET}.lokr_w1`]: [4, 4],
    [`${UNET}.lokr_w2_a`]: [OUT / 4, 3],
    [`${UNET}.lokr_w2_b`]: [3, IN / 4],
    [`${UNET}.alpha`]: [],
  }],
  [
    "OFT",
    "OFT adapter, which multiplies weights",
    ["use: none here, where a LoRA, LoHa or LoKr is read"],
    many(90, (i) => ({
      [`lora_unet_mid_${i}_attn1_to_q.oft_blocks`]: [4, 8, 8],
      [`lora_unet_mid_${i}_attn1_to_q.alpha`]: [],
    })),
  ],
  [
    "IA3",
    "(IA)³ adapter, which multiplies activations",
    ["use: none here"],
    many(90, (i) => ({
      [`lora_unet_mid_${i}_attn1_to_k.weight`]: [32],
      [`lora_unet_mid_${i}_attn1_to_k.on_input`]: [],
    })),
  ],
  [
    "SDXL, kohya",
    "LoRA of SDXL",
    ["a LoRA of Stable Diffusion 1.x or 2.x is read", "and 38 more (--json)"],
    many(200, (i) => ({
      [`lora_unet_input_blocks_4_1_transformer_blocks_${i}_attn2_to_k.lora_down.weight`]:
        [4, 2048],
      [`lora_te2_text_model_encoder_layers_${i}_mlp_fc1.lora_up.weight`]: [
        1280,
        4,
      ],
    })),
    Object.fromEntries(
      Array.from({ length: 50 }, (_, i) => [`ss_fact_${i}`, "x".repeat(900)]),
    ),
  ],
  ["SDXL, diffusers", "LoRA of SDXL", ["naming like: peft"], {
    "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k.lora_A.weight":
      [4, 2048],
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": [4, 9],
  }],
  ["LoHa of SDXL", "LoHa of SDXL", [], {
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": [8, 2],
  }],
  ["SD3", "LoRA of Stable Diffusion 3", [], {
    "transformer.transformer_blocks.0.attn.add_k_proj.lora_A.weight": [4, 1536],
    "transformer.transformer_blocks.0.attn.to_k.lora_A.weight": [4, 1536],
  }],
  ["SD3, kohya", "LoRA of Stable Diffusion 3", [], {
    "lora_unet_joint_blocks_0_context_block_attn_qkv.lora_down.weight": [4, 9],
  }],
  ["Flux, kohya", "LoRA of Flux", [], {
    "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 3072],
    "lora_unet_single_blocks_0_linear1.lora_down.weight": [4, 3072],
  }],
  ["Flux, diffusers", "LoRA of Flux", [], {
    "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": [4, 9],
  }],
  ["Wan", "LoRA of Wan", [], {
    "diffusion_model.blocks.0.self_attn.q.lora_A.weight": [4, 5120],
    "diffusion_model.blocks.0.ffn.0.lora_B.weight": [9, 4],
  }],
  ["another transformer", "LoRA of a diffusion transformer", [], {
    "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": [4, 9],
  }],
  ["biases", "adapter with biases or norms", [], {
    [`${UNET}.diff`]: [OUT, IN],
    [`${UNET}.diff_b`]: [OUT],
    "lora_unet_conv_norm_out.w_norm": [32],
  }],
  ["full difference", "full difference of weights", ["full of rank 64"], {
    [`${UNET}.diff`]: [OUT, IN],
  }],
  ["embedding, A1111", "embedding (learned tokens)", ["fits: sd15"], {
    emb_params: [8, 768],
  }],
  ["embedding, diffusers", "embedding (learned tokens)", ["<cat-toy>"], {
    "<cat-toy>": [1024],
  }],
  ["embedding, SDXL", "embedding of SDXL (clip_l and clip_g)", [], {
    clip_l: [8, 768],
    clip_g: [8, 1280],
  }],
  ["VAE", "VAE alone", ["without a prefix", "latent channels: 4"], {
    "encoder.conv_in.weight": [128, 3, 3, 3],
    "decoder.up.0.block.0.conv1.weight": [8, 8, 3, 3],
    "post_quant_conv.weight": [4, 4, 1, 1],
    "decoder.conv_out.weight": [3, 8, 3, 3],
  }],
  ["VAE, diffusers", "VAE alone", ["diffusers'"], {
    "encoder.down_blocks.0.resnets.0.norm1.weight": [128],
    "decoder.up_blocks.0.resnets.0.norm1.weight": [128],
  }],
  ["UNet, with prefix", "UNet alone", ["prediction: v_prediction", "ztsnr"], {
    "model.diffusion_model.input_blocks.0.0.weight": [32, 4, 3, 3],
    "model.diffusion_model.time_embed.0.weight": [128, 32],
    v_pred: [0],
    ztsnr: [0],
  }],
  ["UNet, diffusers", "UNet alone", [], {
    "conv_in.weight": [32, 4, 3, 3],
    "down_blocks.0.resnets.0.norm1.weight": [32],
  }],
  ["text encoder", "text encoder alone", ["width: 768"], {
    "text_model.embeddings.token_embedding.weight": [10, 768],
    "text_model.encoder.layers.0.layer_norm1.weight": [768],
  }],
  [
    "inpainting",
    "model in a single file, for inpainting",
    ["9 input channels: latent, mask, masked latent", "embedding_manager (2)"],
    {
      "model.diffusion_model.input_blocks.0.0.weight": [32, 9, 3, 3],
      "model.diffusion_model.time_embed.0.weight": [128, 32],
      "first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3],
      "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight":
        [10, 768],
      "embedding_manager.a": [2],
      "embedding_manager.b": [2],
    },
  ],
  ["inpainting UNet, diffusers", "UNet alone, for inpainting", [], {
    "conv_in.weight": [32, 9, 3, 3],
    "down_blocks.0.resnets.0.norm1.weight": [32],
  }],
  ["SDXL checkpoint", "checkpoint of SDXL", ["use: none here"], {
    "model.diffusion_model.input_blocks.0.0.weight": [32, 4, 3, 3],
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": [
      768,
    ],
    "first_stage_model.encoder.conv_in.weight": [128, 3, 3, 3],
  }],
  ["Flux checkpoint", "checkpoint of Flux", [], {
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": [9, 9],
  }],
  ["ControlNet", "ControlNet", [], {
    "controlnet_cond_embedding.conv_in.weight": [16, 3, 3, 3],
    "down_blocks.0.resnets.0.norm1.weight": [32],
  }],
  ["unknown", "tensors", [], { "a.b.c": [3], "a.b.d": [3] }],
];

for (const [name, kind, more, shapes, metadata] of FAMILIES) {
  Deno.test(`inspect names: ${name}`, () =>
    inFolder(async (folder) => {
      const path = joinPath(folder, "file.safetensors");
      const tensors = Object.entries(shapes).map((
        [key, shape],
      ): [string, RawTensor] => [key, zeros(shape)]);
      await writeSafetensors(path, tensors, metadata);
      const { code, out, error } = await said("inspect", path);
      assertEquals([code, error], [0, ""]);
      const lines = out.split("\n");
      assertEquals(lines[0].slice(0, path.length + 2), `${path}: `);
      assert(lines[0].slice(path.length + 2).startsWith(kind), lines[0]);
      for (const part of more) assert(out.includes(part), `${part} in ${out}`);
      assert(lines.length <= 40, `${lines.length} lines`);
      assert(lines.every((line) => line.length <= 300), out);
    }));
}

/** A file of these bytes and the one sentence that is said of it. */
const BROKEN: [name: string, file: string, text: string, message: string][] = [
  [
    "a git-lfs pointer",
    "lora.safetensors",
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a git-lfs pointer, not the file itself (git lfs pull gets it)",
  ],
  [
    "an HTML page",
    "lora.safetensors",
    "<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "an HTML page, not the file: the download failed",
  ],
  [
    "a pointer in place of a pickle",
    "lora.pth",
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a git-lfs pointer, not the file itself (git lfs pull gets it)",
  ],
  ["an empty file", "lora.safetensors", "", "an empty file"],
];

for (const [name, file, text, message] of BROKEN) {
  Deno.test(`inspect says in a sentence: ${name}`, () =>
    inFolder(async (folder) => {
      const path = joinPath(folder, file);
      await Deno.writeTextFile(path, text);
      const { code, out, error } = await said("inspect", path);
      assertEquals([code, out], [1, ""]);
      assert(error.startsWith(`Cannot read ${path}: expected `), error);
      assert(error.endsWith(`got ${message}`), error);
      assertEquals(error.split("\n").length, 1);
    }));
}

Deno.test("inspect reads a pickle of tensors", async () => {
  const names: string[] = [];
  for await (const { name } of Deno.readDir(fixturePath("pickle"))) {
    if (/\.(pth|bin)$/.test(name)) names.push(name);
  }
  assert(names.length > 0);
  for (const name of names.slice(0, 3)) {
    const { code, out, error } = await said(
      "inspect",
      fixturePath(`pickle/${name}`),
    );
    assertEquals(error, "", name);
    assertEquals(code, 0, name);
    assert(/: (LoRA|embedding|tensors)/.test(out), out);
  }
});
