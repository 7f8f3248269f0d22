/**
 * What a LoRA file is read for: the layers of a model, told by its configs
 * alone, so that files can be converted without any weights at hand.
 *
 * @module
 */
import {
  crossAttentionSites,
  parseTextEncoderConfig,
  parseUNetConfig,
  type TextEncoderConfig,
  type UNetConfig,
} from "../../models/config.ts";
import { textEncoderSpec } from "../../models/text_encoder.ts";
import { unetSpec } from "../../models/unet.ts";
import { type Component, type Site, sites } from "../../customize/lora.ts";

/** The configs of the networks that adapters go into; a model has them. */
export interface LoraBase {
  /** The text encoder's config. */
  readonly textEncoder: { readonly config: TextEncoderConfig };
  /** The UNet's config. */
  readonly unet: { readonly config: UNetConfig };
}

/** The layers of a {@linkcode LoraBase}. */
export interface LoraLayers {
  /** By component and path, in the order of the parameter trees. */
  readonly sites: Readonly<Record<Component, ReadonlyMap<string, Site>>>;
  /** Width of a token's vector. */
  readonly width: number;
  /** Number of cross-attention layers. */
  readonly crossAttentions: number;
  /** What the layers were told from. */
  readonly base: LoraBase;
}

const known = new WeakMap<UNetConfig, [TextEncoderConfig, LoraLayers]>();

/**
 * Lists the layers that adapters can go into.
 *
 * @param base A model, or its configs.
 */
export function layersOf(base: LoraBase): LoraLayers {
  const [text, unet] = [base.textEncoder.config, base.unet.config];
  const cached = known.get(unet);
  if (cached && cached[0] === text) return cached[1];
  const byPath = (list: Site[]) => new Map(list.map((s) => [s.path, s]));
  const layers: LoraLayers = {
    sites: {
      textEncoder: byPath(sites(textEncoderSpec(text))),
      unet: byPath(sites(unetSpec(unet))),
    },
    width: text.hidden_size,
    crossAttentions: crossAttentionSites(unet).length,
    base: { textEncoder: { config: text }, unet: { config: unet } },
  };
  known.set(unet, [text, layers]);
  return layers;
}

/** Names of the {@linkcode LORA_BASES}. */
export type LoraBaseName = "sd15" | "sd21";

/**
 * The models that most LoRA files are for: Stable Diffusion 1.x and 2.x.
 *
 * @param name Which one.
 */
export function loraBase(name: LoraBaseName): LoraBase {
  const [text, unet] = LORA_BASES[name];
  return {
    textEncoder: { config: parseTextEncoderConfig(text) },
    unet: { config: parseUNetConfig(unet) },
  };
}

/** Configs of text encoder and UNet; what is not here is diffusers' default. */
export const LORA_BASES: Readonly<
  Record<
    LoraBaseName,
    readonly [
      textEncoder: Readonly<Record<string, unknown>>,
      unet: Readonly<Record<string, unknown>>,
    ]
  >
> = {
  sd15: [
    {
      hidden_size: 768,
      intermediate_size: 3072,
      num_hidden_layers: 12,
      num_attention_heads: 12,
      projection_dim: 768,
    },
    { sample_size: 64, cross_attention_dim: 768 },
  ],
  sd21: [
    {
      hidden_size: 1024,
      intermediate_size: 4096,
      num_hidden_layers: 23,
      num_attention_heads: 16,
      hidden_act: "gelu",
      projection_dim: 512,
    },
    {
      sample_size: 96,
      cross_attention_dim: 1024,
      attention_head_dim: [5, 10, 20, 20],
      use_linear_projection: true,
    },
  ],
};

/** Config of their autoencoder, as far as its default is another. */
export const SD_AUTOENCODER = {
  block_out_channels: [128, 256, 512, 512],
  layers_per_block: 2,
  down_block_types: new Array<string>(4).fill("DownEncoderBlock2D"),
  up_block_types: new Array<string>(4).fill("UpDecoderBlock2D"),
} as const;

/** Layouts on disk of a layer's two factors. */
export function diskShapes(
  site: Site,
  rank: number,
): Record<"down" | "up", number[]> {
  return site.kind === "linear"
    ? { down: [rank, site.inputs], up: [site.outputs, rank] }
    : {
      down: [rank, site.inputs, ...site.kernel],
      up: [site.outputs, rank, 1, 1],
    };
}

/** Layouts here of a layer's two factors. */
export function ownShapes(
  site: Site,
  rank: number,
): Record<"down" | "up", number[]> {
  return site.kind === "linear"
    ? { down: [site.inputs, rank], up: [rank, site.outputs] }
    : {
      down: [...site.kernel, site.inputs, rank],
      up: [1, 1, rank, site.outputs],
    };
}
