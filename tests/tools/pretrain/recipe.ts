import {
  parseT2IAdapterConfig,
  type T2IAdapterConfig,
} from "../../../src/models/t2i_adapter.ts";
import {
  type AutoencoderConfig,
  type ClipConfig,
  parseAutoencoderConfig,
  parseClipConfig,
  parseUNetConfig,
  type UNetConfig,
} from "../../../src/models/config.ts";

/** How one network is trained. */
export interface NetworkRecipe {
  /** Optimizer steps in all. */
  readonly steps: number;
  /** Samples a step. */
  readonly batch: number;
  /** Logical shards of a batch; fixed, so workers do not change the result. */
  readonly shards: number;
  /** Peak learning rate. */
  readonly lr: number;
  /** Warm-up steps. */
  readonly warmup: number;
  readonly weightDecay: number;
  /** Largest gradient norm. */
  readonly maxNorm: number;
  /** Decay of the averaged weights. */
  readonly ema: number;
  /** Root seed of initialisation and data. */
  readonly seed: number;
  /** How matrices and kernels move. @default "adamw" */
  readonly optimizer?: "adamw" | "muon";
  /** Share of the steps, the last ones, in which the rate decays. @default 1 */
  readonly decay?: number;
}

/** The networks of the embedded model, by name. */
export type NetworkName = "clip_a" | "vae" | "unet" | "clip_b" | "adapter";

/** Longest text in tokens, start and end included. */
export const MAX_TOKENS = 24;

/** Width of the CLIPs' text towers; the UNet attends to that of CLIP A. */
const TEXT_WIDTH = 96;

/** What differs between the micro CLIPs. */
export interface ClipSize {
  /** Width of the vision tower. */
  readonly width: number;
  /** Side of its pictures in pixels. */
  readonly image: number;
  /** Side of its patches in pixels. */
  readonly patch: number;
}

/** Vision tower of CLIP A, whose text tower the UNet attends to. */
export const CLIP_A_SIZE: ClipSize = { width: 96, image: 64, patch: 8 };

/**
 * Vision tower of CLIP B, the evaluation CLIP: 100 patches of 6 pixels in the
 * middle 60. With 64 patches of 8 a scrambled picture was as good as a whole.
 */
export const CLIP_B_SIZE: ClipSize = { width: 96, image: 60, patch: 6 };

/** Config of a micro CLIP. */
export function clipConfig(vocabulary: number, size: ClipSize): ClipConfig {
  const width = TEXT_WIDTH;
  return parseClipConfig({
    projection_dim: 64,
    text_config: {
      vocab_size: vocabulary,
      hidden_size: width,
      intermediate_size: 4 * width,
      num_hidden_layers: 4,
      num_attention_heads: 4,
      max_position_embeddings: MAX_TOKENS,
      hidden_act: "quick_gelu",
      projection_dim: 64,
    },
    vision_config: {
      hidden_size: size.width,
      intermediate_size: 4 * size.width,
      num_hidden_layers: 4,
      num_attention_heads: 4,
      image_size: size.image,
      patch_size: size.patch,
      hidden_act: "quick_gelu",
      projection_dim: 64,
    },
  });
}

/** Config of the micro autoencoder: ×4, eight latent channels. */
export const VAE_CONFIG: AutoencoderConfig = parseAutoencoderConfig({
  block_out_channels: [16, 32, 32],
  down_block_types: new Array(3).fill("DownEncoderBlock2D"),
  up_block_types: new Array(3).fill("UpDecoderBlock2D"),
  latent_channels: 8,
  layers_per_block: 2,
  norm_num_groups: 8,
  sample_size: 64,
  scaling_factor: 1,
});

/**
 * Config of the micro UNet, laid out as Stable Diffusion 1.x: cross-attention on
 * every level but the lowest, and in the middle. Transformers hold almost half
 * of the parameters, so that adapters on attention reach as much of it as there.
 */
export const UNET_CONFIG: UNetConfig = parseUNetConfig({
  sample_size: 16,
  in_channels: 8,
  out_channels: 8,
  block_out_channels: [80, 128, 64],
  down_block_types: [
    "CrossAttnDownBlock2D",
    "CrossAttnDownBlock2D",
    "DownBlock2D",
  ],
  up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
  layers_per_block: 1,
  transformer_layers_per_block: [1, 2, 1],
  attention_head_dim: 4,
  cross_attention_dim: TEXT_WIDTH,
  norm_num_groups: 8,
});

/**
 * Config of the sketch T2I-Adapter: outlines of objects in. A full adapter: a
 * light one has the same width on its last two levels.
 */
export const ADAPTER_CONFIG: T2IAdapterConfig = parseT2IAdapterConfig({
  adapter_type: "full_adapter",
  channels: UNET_CONFIG.block_out_channels,
  downscale_factor: 4,
  in_channels: 1,
  num_res_blocks: 1,
});

/** scheduler_config.json of the micro model: SD's schedule, v-prediction. */
export const SCHEDULER_CONFIG: Record<string, unknown> = {
  _class_name: "DPMSolverMultistepScheduler",
  _diffusers_version: "0.19.3",
  algorithm_type: "dpmsolver++",
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  beta_start: 0.00085,
  num_train_timesteps: 1000,
  prediction_type: "v_prediction",
  set_alpha_to_one: false,
  solver_order: 2,
  solver_type: "midpoint",
  steps_offset: 1,
  trained_betas: null,
};

/** γ of min-SNR weighting (Hang et al. 2023). */
export const MIN_SNR_GAMMA = 5;

/** Share of captions replaced by the empty text, for guidance. */
export const DROP_CAPTION = 0.1;

/** Scenes whose latents are encoded once and trained on. */
export const LATENT_SCENES = 32768;

/**
 * How a fresh run trains each network. The committed weights came about in
 * pieces; `models/micro/README.md` lists them.
 */
export const RECIPE: Readonly<Record<NetworkName, NetworkRecipe>> = {
  clip_a: {
    steps: 750,
    batch: 64,
    shards: 2,
    lr: 1e-3,
    warmup: 100,
    weightDecay: 0.05,
    maxNorm: 1,
    ema: 0.995,
    seed: 11,
  },
  vae: {
    steps: 1300,
    batch: 16,
    shards: 2,
    lr: 2e-3,
    warmup: 50,
    weightDecay: 0.01,
    maxNorm: 1,
    ema: 0.995,
    seed: 12,
  },
  unet: {
    steps: 20000,
    batch: 32,
    shards: 2,
    // 1.2e-3 went well for 2,600 steps; then the gradient's norm rose fourfold.
    lr: 6e-4,
    warmup: 200,
    weightDecay: 0.01,
    maxNorm: 0.5,
    ema: 0.9995,
    seed: 13,
    // From step 8,108 on: the loss of the same batches fell by .0055 in the next
    // 170 steps, which took AdamW 900.
    optimizer: "muon",
    decay: 0.3,
  },
  clip_b: {
    steps: 1800,
    batch: 32,
    shards: 2,
    lr: 1e-3,
    warmup: 100,
    weightDecay: 0.05,
    maxNorm: 1,
    ema: 0.995,
    seed: 14,
  },
  adapter: {
    steps: 800,
    batch: 32,
    shards: 4,
    lr: 1e-3,
    warmup: 50,
    weightDecay: 0.01,
    maxNorm: 1,
    ema: 0.99,
    seed: 15,
  },
};
