import * as tf from "@tensorflow/tfjs";
import { disposeTree, leaves, ownedByCaller } from "../../core/tree.ts";
import { joinPath, pathOf, writeJson } from "../../io/files.ts";
import { openComponent } from "../../io/folder.ts";
import { load, save } from "../../models/checkpoint.ts";
import type { Autoencoder } from "../../models/autoencoder.ts";
import type { Clip } from "../../models/image_encoder.ts";
import { flatLayout } from "../../optim/flat.ts";
import { specLeaves } from "../../nn/spec.ts";
import {
  ADAPTER_CONFIG,
  type NetworkName,
  SCHEDULER_CONFIG,
  UNET_CONFIG,
  VAE_CONFIG,
} from "./recipe.ts";
import {
  CLIP_CONFIG,
  networkLayout,
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
  folder: string | URL,
  name: NetworkName,
): Promise<unknown> {
  const { file } = await openComponent(folder, name);
  try {
    return await load(networkSpec(name), file, { what: name });
  } finally {
    file.close();
  }
}

/** Parameters of a text tower, flat. */
export function textTower(tree: unknown): Float32Array {
  const layout = flatLayout(
    specLeaves(TEXT_SPEC).map(([path, p]) => [path, p.shape]),
  );
  const flat = new Float32Array(layout.size);
  const tensors = new Map(leaves(tree));
  for (const { path, offset } of layout.entries) {
    flat.set(tensors.get(path)!.dataSync() as Float32Array, offset);
  }
  return flat;
}

/**
 * Shifts and scales an autoencoder's latent channels by folding the affine map
 * into `quant_conv` and `post_quant_conv`; images decode to the same pixels.
 *
 * @param p The autoencoder; it is not changed.
 * @param mean What becomes zero, a latent channel.
 * @param std What becomes one, a latent channel.
 * @returns An autoencoder that shares all other parameters.
 */
export function rescaleLatents(
  p: Autoencoder,
  mean: readonly number[],
  std: readonly number[],
): Autoencoder {
  return ownedByCaller(() => {
    const m = tf.tensor1d([...mean]);
    const s = tf.tensor1d([...std]);
    const one = tf.onesLike(s);
    const factor = tf.concat([tf.div(1, s), one]);
    const shift = tf.concat([
      m.div(s),
      // log variance shrinks by 2·log s
      s.log().mul(2),
    ]);
    const quant = {
      weight: tf.keep(p.quant_conv.weight.mul(factor)) as tf.Tensor4D,
      bias: tf.keep(p.quant_conv.bias!.mul(factor).sub(shift)) as tf.Tensor1D,
    };
    const w = p.post_quant_conv.weight;
    const back = {
      weight: tf.keep(w.mul(s.reshape([1, 1, s.size, 1]))) as tf.Tensor4D,
      bias: tf.keep(
        p.post_quant_conv.bias!.add(
          tf.matMul(
            m.reshape([1, m.size]),
            w.reshape([w.shape[2], w.shape[3]]),
          ).reshape([w.shape[3]]),
        ),
      ) as tf.Tensor1D,
    };
    return { ...p, quant_conv: quant, post_quant_conv: back };
  });
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
  folder: string | URL,
  name: NetworkName,
  values: Float32Array,
  step: number,
): Promise<void> {
  const root = pathOf(folder);
  const tree = unflatten(networkSpec(name), networkLayout(name), values);
  const metadata = { step: String(step) };
  const options = { dtype: "F16" as const, metadata };
  const dir = joinPath(root, name);
  await Deno.mkdir(dir, { recursive: true });
  try {
    switch (name) {
      case "vae":
        await save(
          joinPath(dir, "diffusion_pytorch_model.safetensors"),
          networkSpec(name),
          tree,
          options,
        );
        await writeJson(joinPath(dir, "config.json"), {
          _class_name: "AutoencoderKL",
          ...VAE_CONFIG,
        });
        break;
      case "unet":
        await save(
          joinPath(dir, "diffusion_pytorch_model.safetensors"),
          networkSpec(name),
          tree,
          options,
        );
        await writeJson(joinPath(dir, "config.json"), {
          _class_name: "UNet2DConditionModel",
          ...UNET_CONFIG,
        });
        break;
      case "adapter":
        await save(
          joinPath(dir, "diffusion_pytorch_model.safetensors"),
          networkSpec(name),
          tree,
          options,
        );
        await writeJson(joinPath(dir, "config.json"), {
          _class_name: "T2IAdapter",
          ...ADAPTER_CONFIG,
        });
        break;
      default: {
        await save(
          joinPath(dir, "model.safetensors"),
          networkSpec(name),
          tree,
          options,
        );
        await writeJson(joinPath(dir, "config.json"), {
          architectures: ["CLIPModel"],
          model_type: "clip",
          ...CLIP_CONFIG,
        });
        const side = CLIP_CONFIG.vision_config.image_size;
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
          size: { shortest_edge: side },
        });
        if (name !== "clip_a") break;
        const text = joinPath(root, "text_encoder");
        await Deno.mkdir(text, { recursive: true });
        await save(
          joinPath(text, "model.safetensors"),
          TEXT_SPEC,
          { text_model: (tree as Clip).text_model },
          options,
        );
        await writeJson(joinPath(text, "config.json"), {
          architectures: ["CLIPTextModel"],
          model_type: "clip_text_model",
          ...CLIP_CONFIG.text_config,
        });
        await TOKENIZER.save(joinPath(root, "tokenizer"));
        const scheduler = joinPath(root, "scheduler");
        await Deno.mkdir(scheduler, { recursive: true });
        await writeJson(
          joinPath(scheduler, "scheduler_config.json"),
          SCHEDULER_CONFIG,
        );
        await writeJson(joinPath(root, "model_index.json"), {
          _class_name: "StableDiffusionPipeline",
          _diffusers_version: "0.19.3",
          feature_extractor: [null, null],
          requires_safety_checker: false,
          safety_checker: [null, null],
          scheduler: ["diffusers", "DPMSolverMultistepScheduler"],
          text_encoder: ["transformers", "CLIPTextModel"],
          tokenizer: ["transformers", "CLIPTokenizer"],
          unet: ["diffusers", "UNet2DConditionModel"],
          vae: ["diffusers", "AutoencoderKL"],
        });
      }
    }
  } finally {
    disposeTree(tree);
  }
}
