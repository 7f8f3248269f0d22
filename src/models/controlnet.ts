/**
 * ControlNet: a copy of the UNet's encoder that sees a condition image and adds
 * to the UNet's skip connections.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { type FolderSource, openComponent } from "../io/folder.ts";
import { activate } from "../nn/activation.ts";
import { type Conv, conv2d, convSpec } from "../nn/linear.ts";
import type { Spec } from "../nn/spec.ts";
import { load } from "./checkpoint.ts";
import { parseUNetConfig, parseWith, perLevel } from "./config.ts";
import type { UNetConfig } from "./config.ts";
import type { Network } from "./model.ts";
import { type UNet, unetEncoder, type UNetOptions, unetSpec } from "./unet.ts";

const ownSchema = z.object({
  conditioning_channels: z.number().int().positive().default(3),
  conditioning_embedding_out_channels: z.array(z.number().int().positive())
    .nonempty().default([16, 32, 96, 256]),
  controlnet_conditioning_channel_order: z.enum(["rgb", "bgr"]).default("rgb"),
  global_pool_conditions: z.boolean().default(false),
});

/** A `ControlNetModel` config.json, defaults filled in as by diffusers. */
export interface ControlNetConfig {
  /** Channels of the condition image. */
  readonly conditioning_channels: number;
  /** Channels of the convolutions that bring it to the latent's size. */
  readonly conditioning_embedding_out_channels: readonly number[];
  /** Order of its channels. */
  readonly controlnet_conditioning_channel_order: "rgb" | "bgr";
  /**
   * Whether its residuals are averaged over the picture; in guess mode they
   * then do not fade.
   */
  readonly global_pool_conditions: boolean;
  /** The config of the encoder half, whose fields stand beside the others. */
  readonly encoder: UNetConfig;
}

/**
 * Parses a ControlNet config (SD 1.x and 2.x); see
 * {@linkcode ControlNetConfig}.
 *
 * @throws If a field does not fit.
 */
export function parseControlNetConfig(json: unknown): ControlNetConfig {
  const own = parseWith("a ControlNet config", ownSchema, json);
  const shared = json as Record<string, unknown>;
  const channels = shared.block_out_channels;
  return {
    ...own,
    encoder: parseUNetConfig({
      ...shared,
      // There is no decoder; the config has to be as long as the others.
      up_block_types: new Array(Array.isArray(channels) ? channels.length : 4)
        .fill("UpBlock2D"),
    }),
  };
}

/** Convolutions that bring a condition image to the latent's size. */
export interface ConditionEmbedding {
  /** First convolution. */
  readonly conv_in: Conv;
  /** In pairs: one that keeps the size, one that halves it. */
  readonly blocks: readonly Conv[];
  /** To the UNet's first width; starts at zero. */
  readonly conv_out: Conv;
}

/** Parameters of a diffusers `ControlNetModel`, by state dict names. */
export interface ControlNet
  extends
    Pick<UNet, "conv_in" | "time_embedding" | "down_blocks" | "mid_block"> {
  /** Brings the condition image to the latent's size. */
  readonly controlnet_cond_embedding: ConditionEmbedding;
  /** Zero convolutions 1×1, one per skip. */
  readonly controlnet_down_blocks: readonly Conv[];
  /** 1×1, on the middle's output; starts at zero. */
  readonly controlnet_mid_block: Conv;
}

/**
 * Channels of a UNet's skips, conv_in's first.
 *
 * @param config The UNet's config, or that of a ControlNet's encoder.
 */
export function skipChannels(config: UNetConfig): number[] {
  const channels = config.block_out_channels;
  return [
    channels[0],
    ...channels.flatMap((c, level) =>
      new Array<number>(
        perLevel(config.layers_per_block, level) +
          (level < channels.length - 1 ? 1 : 0),
      ).fill(c)
    ),
  ];
}

/**
 * Spec of a ControlNet; its last convolutions start at zero.
 *
 * @param config Its config.
 */
export function controlNetSpec(config: ControlNetConfig): Spec<ControlNet> {
  const { encoder, conditioning_embedding_out_channels: sizes } = config;
  const { conv_in, time_embedding, down_blocks, mid_block } = unetSpec(
    encoder,
  ) as Spec<UNet>;
  const last =
    encoder.block_out_channels[encoder.block_out_channels.length - 1];
  const zero = (c: number) => convSpec(c, c, 1, { zero: true });
  return {
    conv_in,
    time_embedding,
    down_blocks,
    ...(mid_block ? { mid_block } : {}),
    controlnet_cond_embedding: {
      conv_in: convSpec(config.conditioning_channels, sizes[0], 3),
      blocks: sizes.slice(0, -1).flatMap((c, i) => [
        convSpec(c, c, 3),
        convSpec(c, sizes[i + 1], 3),
      ]),
      conv_out: convSpec(
        sizes[sizes.length - 1],
        encoder.block_out_channels[0],
        3,
        { zero: true },
      ),
    },
    controlnet_down_blocks: skipChannels(encoder).map(zero),
    controlnet_mid_block: zero(last),
  } as unknown as Spec<ControlNet>;
}

/**
 * How much smaller the latent is than the condition image.
 *
 * @param config The ControlNet's config.
 */
export function conditionFactor(config: ControlNetConfig): number {
  return 2 ** (config.conditioning_embedding_out_channels.length - 1);
}

/** Residuals for a UNet; see `downResiduals` and `midResidual` there. */
export interface ControlNetResiduals {
  /** One a skip, conv_in's first [b, h, w, c]. */
  readonly downResiduals: readonly tf.Tensor4D[];
  /** For the middle's output. */
  readonly midResidual: tf.Tensor4D;
}

/** Options of {@linkcode controlNet}. */
export interface ControlNetOptions extends UNetOptions {
  /**
   * Factor of all residuals (`controlnet_conditioning_scale`).
   *
   * @default {1}
   */
  readonly scale?: number;
  /**
   * Residuals fade from the middle to the first skip, from 1 to 0.1 in equal
   * ratios: the condition then steers without a prompt's help.
   *
   * @default {false}
   */
  readonly guess?: boolean;
}

/**
 * Embeds condition images for a ControlNet's conv_in.
 *
 * @param p Parameters.
 * @param config Config.
 * @param condition [b, height, width, channels] in [0, 1], RGB.
 * @returns [b, h, w, c] at the latent's size.
 */
export function conditionEmbedding(
  p: ConditionEmbedding,
  config: ControlNetConfig,
  condition: tf.Tensor4D,
): tf.Tensor4D {
  const ordered = config.controlnet_conditioning_channel_order === "bgr"
    ? tf.reverse(condition, 3)
    : condition;
  let h: tf.Tensor4D = activate("silu", conv2d(p.conv_in, ordered));
  p.blocks.forEach((block, i) => {
    h = activate("silu", conv2d(block, h, { stride: i % 2 === 0 ? 1 : 2 }));
  });
  return conv2d(p.conv_out, h);
}

/**
 * A ControlNet forward (diffusers `ControlNetModel`).
 *
 * @param p Parameters.
 * @param config Config.
 * @param sample Noisy latents [b, h, w, channels].
 * @param timesteps One per sample, or one for all.
 * @param states Text states, as for the UNet.
 * @param condition Condition images [1 or b, height, width, 3] in [0, 1].
 * @param options Scale, guess mode, observers.
 * @returns Residuals for the UNet's `downResiduals` and `midResidual`.
 * @throws If the condition does not come to the latent's size.
 *
 * @example
 * ```ts
 * const residuals = controlNet(params, config, x, [t], states, edges);
 * const eps = unet(model.unet.params, model.unet.config, x, [t], states,
 *   residuals);
 * ```
 */
export function controlNet(
  p: ControlNet,
  config: ControlNetConfig,
  sample: tf.Tensor4D,
  timesteps: readonly number[],
  states: tf.Tensor3D | tf.Tensor4D,
  condition: tf.Tensor4D,
  options: ControlNetOptions = {},
): ControlNetResiduals {
  const what = "run a ControlNet";
  const { scale = 1, guess = false, ...rest } = options;
  const channels = config.conditioning_channels;
  const factor = conditionFactor(config);
  const [, h, w] = sample.shape;
  if (
    condition.rank !== 4 || condition.shape[3] !== channels ||
    condition.shape[1] !== h * factor || condition.shape[2] !== w * factor
  ) {
    throw cannot(
      what,
      `condition images [b, ${h * factor}, ${w * factor}, ${channels}]`,
      `[${condition.shape}]`,
    );
  }
  if (!Number.isFinite(scale)) throw cannot(what, "a finite scale", scale);
  const conditioning = conditionEmbedding(
    p.controlnet_cond_embedding,
    config,
    condition,
  );
  const { hidden, skips } = unetEncoder(
    p,
    config.encoder,
    sample,
    timesteps,
    states,
    { ...rest, conditioning },
  );
  const factors = guess && !config.global_pool_conditions
    ? guessFactors(skips.length + 1)
    : new Array<number>(skips.length + 1).fill(1);
  const residual = (conv: Conv, x: tf.Tensor4D, i: number): tf.Tensor4D => {
    const y = conv2d(conv, x, { pad: 0 }).mul(
      factors[i] * scale,
    ) as tf.Tensor4D;
    return config.global_pool_conditions ? tf.mean(y, [1, 2], true) : y;
  };
  return {
    downResiduals: skips.map((skip, i) =>
      residual(p.controlnet_down_blocks[i], skip, i)
    ),
    midResidual: residual(p.controlnet_mid_block, hidden, skips.length),
  };
}

/** n numbers from 0.1 to 1 in equal ratios. */
function guessFactors(n: number): number[] {
  return Array.from({ length: n }, (_, i) => 10 ** (i / (n - 1) - 1));
}

/**
 * Adds up the residuals of several ControlNets (`MultiControlNetModel`).
 *
 * @param all Residuals of each.
 * @throws If there is none, or they are not of one UNet.
 */
export function combineControlNets(
  all: readonly ControlNetResiduals[],
): ControlNetResiduals {
  const what = "combine ControlNets";
  const [first, ...others] = all;
  if (!first) throw cannot(what, "at least one", 0);
  for (const other of others) {
    if (other.downResiduals.length !== first.downResiduals.length) {
      throw cannot(
        what,
        `${first.downResiduals.length} residuals of each`,
        other.downResiduals.length,
      );
    }
  }
  return others.reduce((sum, other) => ({
    downResiduals: sum.downResiduals.map((r, i) =>
      r.add(other.downResiduals[i]) as tf.Tensor4D
    ),
    midResidual: sum.midResidual.add(other.midResidual),
  }), first);
}

/**
 * Loads a ControlNet from a folder in diffusers layout, strictly.
 *
 * @param folder Folder with config.json and weights.
 * @throws If a key is missing, unexpected or misshapen.
 *
 * @example
 * ```ts
 * const canny = await loadControlNet("sd-controlnet-canny");
 * ```
 */
export async function loadControlNet(
  folder: FolderSource,
): Promise<Network<ControlNetConfig, ControlNet>> {
  const { config: json, file } = await openComponent(folder, "");
  try {
    const config = parseControlNetConfig(json);
    const params = await load<ControlNet>(controlNetSpec(config), file, {
      what: "the ControlNet",
    });
    return { config, params };
  } finally {
    file.close();
  }
}
