/**
 * A random model and a random CLIP of the embedded world's shape, but tiny: to
 * run experiments in seconds.
 *
 * @module
 */
import { key } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { joinPath, parentOf, writeJson } from "../../src/io/files.ts";
import { SCHEDULER_CONFIG } from "../tools/pretrain/recipe.ts";
import { tokenizerOfWorld } from "../tools/pretrain/tokenizer.ts";
import {
  type Autoencoder,
  autoencoderSpec,
} from "../../src/models/autoencoder.ts";
import { save } from "../../src/models/checkpoint.ts";
import {
  parseAutoencoderConfig,
  parseClipConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { type Clip, clipSpec } from "../../src/models/image_encoder.ts";
import { saveModel } from "../../src/models/model.ts";
import {
  type TextEncoder,
  textEncoderSpec,
} from "../../src/models/text_encoder.ts";
import { type UNet, unetSpec } from "../../src/models/unet.ts";
import { initialise } from "../../src/nn/spec.ts";

/** A world that was made, as files. */
type Files = readonly (readonly [path: string, bytes: Uint8Array])[];

/** By seed: most tests of a file need the same world. */
const made = new Map<number, Files>();

/**
 * Writes the model to `folder/model` and the CLIP to `folder/clip`; another seed
 * makes other weights.
 */
export async function writeTinyWorld(
  folder: string,
  seed = 0,
): Promise<{ model: string; clip: string }> {
  const files = made.get(seed);
  if (files) {
    for (const [path, bytes] of files) {
      await Deno.mkdir(joinPath(folder, parentOf(path)), { recursive: true });
      await Deno.writeFile(joinPath(folder, path), bytes);
    }
  } else {
    await makeTinyWorld(folder, seed);
    made.set(seed, [
      ...await filesBelow(folder, "model"),
      ...await filesBelow(folder, "clip"),
    ]);
  }
  return { model: joinPath(folder, "model"), clip: joinPath(folder, "clip") };
}

/** The files of a folder and those below it. */
async function filesBelow(folder: string, path: string): Promise<Files> {
  const files: (readonly [string, Uint8Array])[] = [];
  for await (const { name, isDirectory } of Deno.readDir(`${folder}/${path}`)) {
    const inside = `${path}/${name}`;
    if (isDirectory) files.push(...await filesBelow(folder, inside));
    else files.push([inside, await Deno.readFile(`${folder}/${inside}`)]);
  }
  return files;
}

/** Makes a world's weights and saves them. */
async function makeTinyWorld(folder: string, seed: number): Promise<void> {
  const tokenizer = tokenizerOfWorld();
  const tower = {
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    projection_dim: 16,
  };
  const text = parseTextEncoderConfig({
    ...tower,
    vocab_size: tokenizer.vocabSize,
    max_position_embeddings: tokenizer.modelMaxLength,
  });
  const unet = parseUNetConfig({
    sample_size: 8,
    in_channels: 4,
    out_channels: 4,
    // One level: most of an experiment is this network.
    block_out_channels: [16],
    down_block_types: ["CrossAttnDownBlock2D"],
    up_block_types: ["CrossAttnUpBlock2D"],
    layers_per_block: 1,
    attention_head_dim: 2,
    cross_attention_dim: 16,
    norm_num_groups: 4,
  });
  const vae = parseAutoencoderConfig({
    block_out_channels: [4, 4, 8, 8],
    down_block_types: new Array(4).fill("DownEncoderBlock2D"),
    up_block_types: new Array(4).fill("UpDecoderBlock2D"),
    latent_channels: 4,
    layers_per_block: 1,
    norm_num_groups: 4,
    scaling_factor: 1,
  });
  const params = {
    text: initialise<TextEncoder>(textEncoderSpec(text), key(seed + 1)),
    unet: initialise<UNet>(unetSpec(unet), key(seed + 2)),
    vae: initialise<Autoencoder>(autoencoderSpec(vae), key(seed + 3)),
  };
  const model = joinPath(folder, "model");
  await saveModel(model, {
    tokenizer,
    textEncoder: { config: text, params: params.text },
    unet: { config: unet, params: params.unet },
    autoencoder: { config: vae, params: params.vae },
    scheduler: SCHEDULER_CONFIG,
  });
  const config = parseClipConfig({
    projection_dim: 16,
    text_config: {
      ...tower,
      vocab_size: tokenizer.vocabSize,
      max_position_embeddings: tokenizer.modelMaxLength,
    },
    vision_config: { ...tower, image_size: 64, patch_size: 16 },
  });
  const clip = joinPath(folder, "clip");
  const weights = initialise<Clip>(clipSpec(config), key(seed + 4));
  await save(joinPath(clip, "model.safetensors"), clipSpec(config), weights);
  await writeJson(joinPath(clip, "config.json"), config);
  await writeJson(joinPath(clip, "preprocessor_config.json"), {
    size: { shortest_edge: 64 },
    crop_size: { height: 64, width: 64 },
    resample: 3,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  });
  await tokenizer.save(clip);
  disposeTree([params, weights]);
}
