/**
 * Configurations of the networks: diffusers' and transformers' config.json,
 * checked, with defaults filled in.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { ACTIVATIONS, isActivation } from "../nn/activation.ts";

const oneOrMany = z.union([
  z.number().int().positive(),
  z.array(z.number().int().positive()).nonempty(),
]);

/** Depths are bounded: a broken config must not make a million layers. */
const depth = z.number().int().positive().max(256);
const depths = z.union([depth, z.array(depth).nonempty()]);

/** What keeps a division from dividing by nothing. */
const epsilon = z.number().positive().max(1);

const unetSchema = z.object({
  sample_size: z.union([z.number(), z.array(z.number())]).nullish(),
  in_channels: z.number().int().positive().default(4),
  out_channels: z.number().int().positive().default(4),
  center_input_sample: z.boolean().default(false),
  flip_sin_to_cos: z.boolean().default(true),
  freq_shift: z.number().default(0),
  down_block_types: z.array(
    z.enum(["CrossAttnDownBlock2D", "DownBlock2D"]),
  ).nonempty().default([
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "DownBlock2D",
  ]),
  mid_block_type: z.literal("UNetMidBlock2DCrossAttn").nullable().default(
    "UNetMidBlock2DCrossAttn",
  ),
  up_block_types: z.array(z.enum(["CrossAttnUpBlock2D", "UpBlock2D"]))
    .nonempty().default([
      "UpBlock2D",
      "CrossAttnUpBlock2D",
      "CrossAttnUpBlock2D",
      "CrossAttnUpBlock2D",
    ]),
  only_cross_attention: z.union([z.boolean(), z.array(z.boolean())]).nullish(),
  mid_block_only_cross_attention: z.boolean().nullish(),
  block_out_channels: z.array(z.number().int().positive()).nonempty().default([
    320,
    640,
    1280,
    1280,
  ]),
  layers_per_block: depths.default(2),
  downsample_padding: z.number().int().min(0).max(8).default(1),
  mid_block_scale_factor: z.number().positive().default(1),
  act_fn: z.string().default("silu"),
  norm_num_groups: z.number().int().positive().default(32),
  norm_eps: epsilon.default(1e-5),
  cross_attention_dim: oneOrMany.default(1280),
  transformer_layers_per_block: depths.default(1),
  attention_head_dim: oneOrMany.default(8),
  num_attention_heads: oneOrMany.nullish(),
  use_linear_projection: z.boolean().default(false),
  resnet_time_scale_shift: z.enum(["default", "scale_shift"]).default(
    "default",
  ),
  resnet_skip_time_act: z.boolean().default(false),
  resnet_out_scale_factor: z.number().default(1),
  time_embedding_type: z.literal("positional").default("positional"),
  time_embedding_dim: z.number().int().positive().nullish(),
  time_embedding_act_fn: z.string().nullish(),
  timestep_post_act: z.string().nullish(),
  conv_in_kernel: z.number().int().positive().default(3),
  conv_out_kernel: z.number().int().positive().default(3),
  // Parts of other models: present in the file, and refused unless absent.
  dual_cross_attention: z.literal(false).nullish(),
  class_embed_type: z.null().optional(),
  num_class_embeds: z.null().optional(),
  encoder_hid_dim: z.null().optional(),
  addition_embed_type: z.null().optional(),
  time_cond_proj_dim: z.null().optional(),
  cross_attention_norm: z.null().optional(),
});

/** One value for all levels of a UNet, or one per level. */
export type PerLevel<T> = T | readonly T[];

/** A `UNet2DConditionModel` config.json, defaults filled in as by diffusers. */
export interface UNetConfig {
  /** Side of the latents it was trained on, or [height, width]. */
  readonly sample_size?: PerLevel<number> | null;
  /** Channels of its input. */
  readonly in_channels: number;
  /** Channels of its output. */
  readonly out_channels: number;
  /** Whether the input is moved from [0, 1] to [−1, 1]. */
  readonly center_input_sample: boolean;
  /** Whether timestep features are cosines before sines. */
  readonly flip_sin_to_cos: boolean;
  /** Shift of the timestep features' frequencies. */
  readonly freq_shift: number;
  /** Encoder blocks, highest resolution first. */
  readonly down_block_types: readonly (
    | "CrossAttnDownBlock2D"
    | "DownBlock2D"
  )[];
  /** The block in the middle; null if there is none. */
  readonly mid_block_type: "UNetMidBlock2DCrossAttn" | null;
  /** Decoder blocks, lowest resolution first. */
  readonly up_block_types: readonly ("CrossAttnUpBlock2D" | "UpBlock2D")[];
  /** Whether self-attention is replaced by cross-attention. */
  readonly only_cross_attention?: PerLevel<boolean> | null;
  /** The same in the middle. */
  readonly mid_block_only_cross_attention?: boolean | null;
  /** Channels of each level, highest resolution first. */
  readonly block_out_channels: readonly number[];
  /** Resnets of an encoder block; a decoder block has one more. */
  readonly layers_per_block: PerLevel<number>;
  /** Padding of the convolutions that halve the resolution. */
  readonly downsample_padding: number;
  /** What the middle's outputs are divided by. */
  readonly mid_block_scale_factor: number;
  /** Name of the activation. */
  readonly act_fn: string;
  /** Groups of the group norms. */
  readonly norm_num_groups: number;
  /** ε of the group norms. */
  readonly norm_eps: number;
  /** Width of the text states. */
  readonly cross_attention_dim: PerLevel<number>;
  /** Transformer blocks of each transformer. */
  readonly transformer_layers_per_block: PerLevel<number>;
  /** Heads, unless `num_attention_heads` is there (see {@linkcode headsOf}). */
  readonly attention_head_dim: PerLevel<number>;
  /** Heads. */
  readonly num_attention_heads?: PerLevel<number> | null;
  /** Whether transformers project by linear layers (SD 2.x) or 1×1 convolutions. */
  readonly use_linear_projection: boolean;
  /** How time enters a resnet: as a bias, or as scale and shift. */
  readonly resnet_time_scale_shift: "default" | "scale_shift";
  /** Whether resnets leave out the activation of the time embedding. */
  readonly resnet_skip_time_act: boolean;
  /** What the resnets' outputs are divided by. */
  readonly resnet_out_scale_factor: number;
  /** Kind of timestep features. */
  readonly time_embedding_type: "positional";
  /** Width of the time embedding; four times the first level's by default. */
  readonly time_embedding_dim?: number | null;
  /** Activation on the time embedding as a whole. */
  readonly time_embedding_act_fn?: string | null;
  /** Activation after the time embedding's second layer. */
  readonly timestep_post_act?: string | null;
  /** Kernel of the first convolution. */
  readonly conv_in_kernel: number;
  /** Kernel of the last convolution. */
  readonly conv_out_kernel: number;
}

const autoencoderSchema = z.object({
  in_channels: z.number().int().positive().default(3),
  out_channels: z.number().int().positive().default(3),
  down_block_types: z.array(z.literal("DownEncoderBlock2D")).nonempty().default(
    ["DownEncoderBlock2D"],
  ),
  up_block_types: z.array(z.literal("UpDecoderBlock2D")).nonempty().default([
    "UpDecoderBlock2D",
  ]),
  block_out_channels: z.array(z.number().int().positive()).nonempty().default([
    64,
  ]),
  layers_per_block: depth.default(1),
  act_fn: z.string().default("silu"),
  latent_channels: z.number().int().positive().default(4),
  norm_num_groups: z.number().int().positive().default(32),
  sample_size: z.union([z.number(), z.array(z.number())]).nullish(),
  scaling_factor: z.number().positive().default(0.18215),
});

/** An `AutoencoderKL` config.json, defaults filled in as by diffusers. */
export interface AutoencoderConfig {
  /** Channels of a picture going in. */
  readonly in_channels: number;
  /** Channels of a picture coming out. */
  readonly out_channels: number;
  /** Encoder blocks; all but the last halve the resolution. */
  readonly down_block_types: readonly "DownEncoderBlock2D"[];
  /** Decoder blocks. */
  readonly up_block_types: readonly "UpDecoderBlock2D"[];
  /** Channels of each level, highest resolution first. */
  readonly block_out_channels: readonly number[];
  /** Resnets of an encoder block; a decoder block has one more. */
  readonly layers_per_block: number;
  /** Name of the activation. */
  readonly act_fn: string;
  /** Channels of a latent. */
  readonly latent_channels: number;
  /** Groups of the group norms. */
  readonly norm_num_groups: number;
  /** Side of the pictures it was trained on. */
  readonly sample_size?: PerLevel<number> | null;
  /** What latents are multiplied by before the UNet sees them. */
  readonly scaling_factor: number;
}

const textSchema = z.object({
  vocab_size: z.number().int().positive().default(49408),
  hidden_size: z.number().int().positive().default(512),
  intermediate_size: z.number().int().positive().default(2048),
  num_hidden_layers: depth.default(12),
  num_attention_heads: z.number().int().positive().default(8),
  max_position_embeddings: z.number().int().positive().default(77),
  hidden_act: z.string().default("quick_gelu"),
  layer_norm_eps: epsilon.default(1e-5),
  projection_dim: z.number().int().positive().default(512),
  eos_token_id: z.number().int().default(2),
});

/** What CLIP's two towers have in common. */
export interface TowerConfig {
  /** Width of the states. */
  readonly hidden_size: number;
  /** Width inside the feed-forward layers. */
  readonly intermediate_size: number;
  /** Layers. */
  readonly num_hidden_layers: number;
  /** Heads. */
  readonly num_attention_heads: number;
  /** Name of the activation. */
  readonly hidden_act: string;
  /** ε of the layer norms. */
  readonly layer_norm_eps: number;
  /** Width of the embedding both towers share. */
  readonly projection_dim: number;
}

/** A `CLIPTextModel` config.json, defaults filled in as by transformers. */
export interface TextEncoderConfig extends TowerConfig {
  /** Rows of the token table. */
  readonly vocab_size: number;
  /** Ids of a prompt. */
  readonly max_position_embeddings: number;
  /** Id of the end token; 2 means the highest id of a row, as it once did. */
  readonly eos_token_id: number;
}

const visionSchema = z.object({
  hidden_size: z.number().int().positive().default(768),
  intermediate_size: z.number().int().positive().default(3072),
  num_hidden_layers: depth.default(12),
  num_attention_heads: z.number().int().positive().default(12),
  num_channels: z.number().int().positive().default(3),
  image_size: z.number().int().positive().default(224),
  patch_size: z.number().int().positive().default(32),
  hidden_act: z.string().default("quick_gelu"),
  layer_norm_eps: epsilon.default(1e-5),
  projection_dim: z.number().int().positive().default(512),
});

/** A `CLIPVisionModel` config.json, defaults filled in as by transformers. */
export interface VisionConfig extends TowerConfig {
  /** Channels of a picture. */
  readonly num_channels: number;
  /** Side of a picture, pixels. */
  readonly image_size: number;
  /** Side of a patch, pixels. */
  readonly patch_size: number;
}

const clipSchema = z.object({
  text_config: textSchema.prefault({}),
  vision_config: visionSchema.prefault({}),
  projection_dim: z.number().int().positive().default(512),
  logit_scale_init_value: z.number().default(2.6592),
});

/** A `CLIPModel` config.json, defaults filled in as by transformers. */
export interface ClipConfig {
  /** The text tower. */
  readonly text_config: TextEncoderConfig;
  /** The vision tower. */
  readonly vision_config: VisionConfig;
  /** Width of the embedding both towers share. */
  readonly projection_dim: number;
  /** Logarithm of the factor on cosines, before training. */
  readonly logit_scale_init_value: number;
}

/**
 * Parses a value with a schema and turns every problem into one error.
 *
 * @param what What is being read, for the message.
 * @param schema The schema.
 * @param value Parsed JSON.
 * @throws If the value does not fit: one error naming every field.
 */
export function parseWith<T>(
  what: string,
  schema: z.ZodType<T>,
  value: unknown,
): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.map((issue) =>
    `${issue.path.join(".") || "(root)"}: ${issue.message}`
  );
  throw new Error(`Cannot read ${what}: ${problems.join("; ")}`);
}

/** A broken config must not make a million blocks. */
const MOST_BLOCKS = 4096;

/** Throws where settings of one level each are not as many as the levels. */
function checkLevels<
  T extends { readonly block_out_channels: readonly number[] },
>(what: string, config: T, names: readonly (keyof T & string)[]): void {
  const levels = config.block_out_channels.length;
  for (const name of names) {
    const value = config[name];
    if (Array.isArray(value) && value.length !== levels) {
      throw cannot(
        what,
        `${levels} entries in ${name}, one per level of block_out_channels`,
        value.length,
      );
    }
  }
}

/** Throws where a config of so many blocks cannot be meant. */
function checkBlocks(what: string, blocks: number): void {
  if (blocks > MOST_BLOCKS) {
    throw cannot(what, `at most ${MOST_BLOCKS} blocks`, blocks);
  }
}

function checkGroups(
  what: string,
  channels: readonly number[],
  groups: number,
): void {
  for (const count of channels) {
    if (count % groups !== 0) {
      throw cannot(
        what,
        `block_out_channels divisible by norm_num_groups ${groups}`,
        count,
      );
    }
  }
}

function checkActivation(what: string, name: string, value: string): void {
  if (!isActivation(value)) {
    throw cannot(what, `${name} ${ACTIVATIONS.join(", ")}`, value);
  }
}

/** Parses a UNet config; see {@linkcode UNetConfig}. */
export function parseUNetConfig(json: unknown): UNetConfig {
  const what = "read a UNet config";
  const config = parseWith("a UNet config", unetSchema, json);
  const { layers_per_block, transformer_layers_per_block } = config;
  checkLevels(what, config, [
    "down_block_types",
    "up_block_types",
    "layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "only_cross_attention",
  ]);
  checkBlocks(
    what,
    config.block_out_channels.reduce(
      (sum, _, i) =>
        sum +
        (2 * perLevel<number>(layers_per_block, i) + 1) *
          (1 + perLevel<number>(transformer_layers_per_block, i)),
      0,
    ),
  );
  checkGroups(what, config.block_out_channels, config.norm_num_groups);
  checkActivation(what, "an act_fn", config.act_fn);
  for (const name of ["time_embedding_act_fn", "timestep_post_act"] as const) {
    const value = config[name];
    if (typeof value === "string") checkActivation(what, `a ${name}`, value);
  }
  return config;
}

/** Parses an autoencoder config; see {@linkcode AutoencoderConfig}. */
export function parseAutoencoderConfig(json: unknown): AutoencoderConfig {
  const what = "read an autoencoder config";
  const config = parseWith("an autoencoder config", autoencoderSchema, json);
  const { block_out_channels } = config;
  checkLevels(what, config, ["down_block_types", "up_block_types"]);
  checkBlocks(
    what,
    block_out_channels.length * (2 * config.layers_per_block + 1),
  );
  checkGroups(what, block_out_channels, config.norm_num_groups);
  checkActivation(what, "an act_fn", config.act_fn);
  return config;
}

/** What is wrong with the layers of one of CLIP's towers throws. */
function checkTower(what: string, config: TowerConfig): void {
  const { hidden_size, num_attention_heads: heads } = config;
  if (hidden_size % heads !== 0) {
    throw cannot(
      what,
      `a hidden_size divisible by num_attention_heads ${heads}`,
      hidden_size,
    );
  }
  checkActivation(what, "a hidden_act", config.hidden_act);
}

/** Parses a CLIP text config; see {@linkcode TextEncoderConfig}. */
export function parseTextEncoderConfig(json: unknown): TextEncoderConfig {
  const config = parseWith("a text encoder config", textSchema, json);
  checkTower("read a text encoder config", config);
  return config;
}

/** Parses a CLIP config; see {@linkcode ClipConfig}. */
export function parseClipConfig(json: unknown): ClipConfig {
  const config = parseWith("a CLIP config", clipSchema, json);
  checkTower("read a CLIP config (text)", config.text_config);
  const { vision_config: vision } = config;
  checkTower("read a CLIP config (vision)", vision);
  if (vision.patch_size > vision.image_size) {
    throw cannot(
      "read a CLIP config (vision)",
      `a patch_size of at most image_size ${vision.image_size}`,
      vision.patch_size,
    );
  }
  return config;
}

/**
 * The value of a per-level setting.
 *
 * @param value One for all levels, or a list.
 * @param level Level, 0 = highest resolution.
 */
export function perLevel<T>(value: PerLevel<T>, level: number): T {
  return Array.isArray(value) ? value[level] : value as T;
}

/**
 * Number of attention heads of a level. In diffusers `attention_head_dim` holds
 * the number of heads unless `num_attention_heads` is given.
 *
 * @param config The config.
 * @param level Level, 0 = highest resolution.
 */
export function headsOf(config: UNetConfig, level: number): number {
  return perLevel(
    config.num_attention_heads ?? config.attention_head_dim,
    level,
  );
}

/** Where one cross-attention module of a UNet stands. */
export interface CrossAttentionSite {
  /** Index of its encoder states when they are layer-wise. */
  readonly index: number;
  /** Dotted path of the `attn2` module. */
  readonly path: string;
  /** Level, 0 = highest resolution; the mid block has the last level's. */
  readonly level: number;
}

/**
 * Lists the cross-attention modules in the order of layer-wise states: down,
 * mid, up. SD 1.x has 16.
 *
 * @param config The UNet's config.
 */
export function crossAttentionSites(
  config: UNetConfig,
): CrossAttentionSite[] {
  const levels = config.block_out_channels.length;
  const paths: { path: string; level: number }[] = [];
  const add = (block: string, level: number, count: number) => {
    const layers = perLevel(config.transformer_layers_per_block, level);
    for (let j = 0; j < count; j++) {
      for (let k = 0; k < layers; k++) {
        paths.push({
          path: `${block}.attentions.${j}.transformer_blocks.${k}.attn2`,
          level,
        });
      }
    }
  };
  config.down_block_types.forEach((type, i) => {
    if (type === "CrossAttnDownBlock2D") {
      add(`down_blocks.${i}`, i, perLevel(config.layers_per_block, i));
    }
  });
  if (config.mid_block_type) add("mid_block", levels - 1, 1);
  config.up_block_types.forEach((type, i) => {
    const level = levels - 1 - i;
    if (type === "CrossAttnUpBlock2D") {
      add(
        `up_blocks.${i}`,
        level,
        perLevel(config.layers_per_block, level) + 1,
      );
    }
  });
  return paths.map((site, index) => ({ index, ...site }));
}
