import { disposeTree } from "../../../src/core/tree.ts";
import { joinPath, writeJson } from "../../../src/io/files.ts";
import { openComponent } from "../../../src/io/folder.ts";
import { load, save } from "../../../src/models/checkpoint.ts";
import type { Clip } from "../../../src/models/image_encoder.ts";
import { WORLD } from "../../../src/micro/world.ts";
import { modelIndex } from "../../../src/models/model.ts";
import {
  ADAPTER_CONFIG,
  type NetworkName,
  SCHEDULER_CONFIG,
  UNET_CONFIG,
  VAE_CONFIG,
} from "./recipe.ts";
import {
  CLIP_CONFIG,
  clipConfigOf,
  networkSpec,
  TEXT_SPEC,
  TOKENIZER,
  unflatten,
} from "./tasks.ts";

/**
 * Loads a network of the embedded model from its folder.
 *
 * @param folder Such as `models/micro`.
 * @param name The network.
 */
export async function loadNetwork(
  folder: string,
  name: NetworkName,
): Promise<unknown> {
  const { file } = await openComponent(folder, name);
  try {
    return await load(networkSpec(name), file, { what: name });
  } finally {
    file.close();
  }
}

/**
 * Writes a network of the embedded model in diffusers / transformers layout,
 * f16; CLIP A also as the text encoder and tokenizer of the model.
 *
 * @param folder Such as `models/micro`.
 * @param name The network.
 * @param values Flat parameters.
 * @param step Steps behind them.
 */
export async function writeNetwork(
  folder: string,
  name: NetworkName,
  values: Float32Array,
  step: number,
): Promise<void> {
  const tree = unflatten(networkSpec(name), values);
  const metadata = { step: String(step) };
  const options = { dtype: "F16" as const, metadata };
  const dir = joinPath(folder, name);
  await Deno.mkdir(dir, { recursive: true });
  try {
    const isClip = name === "clip_a" || name === "clip_b";
    await save(
      joinPath(
        dir,
        isClip ? "model.safetensors" : "diffusion_pytorch_model.safetensors",
      ),
      networkSpec(name),
      tree,
      options,
    );
    await writeJson(joinPath(dir, "config.json"), CONFIGS[name]);
    if (isClip) await writeClipParts(dir, name);
    if (name === "clip_a") await writeModelParts(folder, tree as Clip, options);
  } finally {
    disposeTree(tree);
  }
}

const clip = (name: NetworkName) => ({
  architectures: ["CLIPModel"],
  model_type: "clip",
  ...clipConfigOf(name),
});

/** The config.json of each network. */
const CONFIGS: Readonly<Record<NetworkName, unknown>> = {
  clip_a: clip("clip_a"),
  clip_b: clip("clip_b"),
  vae: { _class_name: "AutoencoderKL", ...VAE_CONFIG },
  unet: { _class_name: "UNet2DConditionModel", ...UNET_CONFIG },
  adapter: { _class_name: "T2IAdapter", ...ADAPTER_CONFIG },
};

/** What makes a CLIP's folder complete: tokenizer and preprocessing. */
async function writeClipParts(dir: string, name: NetworkName): Promise<void> {
  const side = clipConfigOf(name).vision_config.image_size;
  await TOKENIZER.save(dir);
  await writeJson(joinPath(dir, "preprocessor_config.json"), {
    image_processor_type: "CLIPImageProcessor",
    crop_size: { height: side, width: side },
    do_center_crop: true,
    do_normalize: true,
    do_rescale: true,
    do_resize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
    resample: 3,
    size: { shortest_edge: WORLD.side },
  });
}

/** What the model has of CLIP A, and what it has that is not trained. */
async function writeModelParts(
  root: string,
  clip: Clip,
  options: Parameters<typeof save>[3],
): Promise<void> {
  for (const part of ["text_encoder", "scheduler"]) {
    await Deno.mkdir(joinPath(root, part), { recursive: true });
  }
  await save(
    joinPath(root, "text_encoder", "model.safetensors"),
    TEXT_SPEC,
    { text_model: clip.text_model },
    options,
  );
  await writeJson(joinPath(root, "text_encoder", "config.json"), {
    architectures: ["CLIPTextModel"],
    model_type: "clip_text_model",
    ...CLIP_CONFIG.text_config,
  });
  await TOKENIZER.save(joinPath(root, "tokenizer"));
  await writeJson(
    joinPath(root, "scheduler", "scheduler_config.json"),
    SCHEDULER_CONFIG,
  );
  await writeJson(
    joinPath(root, "model_index.json"),
    modelIndex(SCHEDULER_CONFIG),
  );
}
