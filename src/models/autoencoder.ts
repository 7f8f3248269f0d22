import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { upsampleNearest2x } from "../core/kernels/ops.ts";
import { attend, type Attention, attentionSpec } from "../nn/attention.ts";
import { type Context, type Conv, conv2d, convSpec } from "../nn/linear.ts";
import { groupNorm, type Norm, normSpec } from "../nn/norm.ts";
import type { Spec } from "../nn/spec.ts";
import type { AutoencoderConfig } from "./config.ts";
import { type Resnet, resnet, resnetSpec } from "./unet.ts";

/** Single-head self-attention of the autoencoder's middle. */
export interface AutoencoderAttention extends Attention {
  /** Norm before the projections. */
  readonly group_norm: Norm;
}

/** Parameters of the autoencoder's middle. */
export interface AutoencoderMid {
  /** Its attention. */
  readonly attentions: readonly AutoencoderAttention[];
  /** Before and after the attention. */
  readonly resnets: readonly Resnet[];
}

/** Parameters of a diffusers `AutoencoderKL`, by state dict names. */
export interface Autoencoder {
  /** Picture to moments. */
  readonly encoder: {
    readonly conv_in: Conv;
    readonly down_blocks: readonly {
      readonly resnets: readonly Resnet[];
      readonly downsamplers?: readonly [{ readonly conv: Conv }];
    }[];
    readonly mid_block: AutoencoderMid;
    readonly conv_norm_out: Norm;
    readonly conv_out: Conv;
  };
  /** Latent to picture. */
  readonly decoder: {
    readonly conv_in: Conv;
    readonly up_blocks: readonly {
      readonly resnets: readonly Resnet[];
      readonly upsamplers?: readonly [{ readonly conv: Conv }];
    }[];
    readonly mid_block: AutoencoderMid;
    readonly conv_norm_out: Norm;
    readonly conv_out: Conv;
  };
  /** 1×1, after the encoder. */
  readonly quant_conv: Conv;
  /** 1×1, before the decoder. */
  readonly post_quant_conv: Conv;
}

function midSpec(channels: number): Spec<AutoencoderMid> {
  return {
    attentions: [{
      group_norm: normSpec(channels),
      ...attentionSpec(channels, { bias: true }),
    }],
    resnets: [resnetSpec(channels, channels), resnetSpec(channels, channels)],
  } as Spec<AutoencoderMid>;
}

/**
 * Spec of an autoencoder.
 *
 * @param config Its config.
 */
export function autoencoderSpec(config: AutoencoderConfig): Spec<Autoencoder> {
  const channels = config.block_out_channels;
  const last = channels[channels.length - 1];
  const latent = config.latent_channels;
  const up = [...channels].reverse();
  return {
    encoder: {
      conv_in: convSpec(config.in_channels, channels[0], 3),
      down_blocks: channels.map((outputs, i) => ({
        resnets: Array.from(
          { length: config.layers_per_block },
          (_, j) =>
            resnetSpec(
              j === 0 && i > 0
                ? channels[i - 1]
                : j === 0
                ? channels[0]
                : outputs,
              outputs,
            ),
        ),
        ...(i < channels.length - 1
          ? { downsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }
          : {}),
      })),
      mid_block: midSpec(last),
      conv_norm_out: normSpec(last),
      conv_out: convSpec(last, 2 * latent, 3),
    },
    decoder: {
      conv_in: convSpec(latent, last, 3),
      up_blocks: up.map((outputs, i) => ({
        resnets: Array.from(
          { length: config.layers_per_block + 1 },
          (_, j) => resnetSpec(j === 0 && i > 0 ? up[i - 1] : outputs, outputs),
        ),
        ...(i < up.length - 1
          ? { upsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }
          : {}),
      })),
      mid_block: midSpec(last),
      conv_norm_out: normSpec(channels[0]),
      conv_out: convSpec(channels[0], config.out_channels, 3),
    },
    quant_conv: convSpec(2 * latent, 2 * latent, 1),
    post_quant_conv: convSpec(latent, latent, 1),
  } as unknown as Spec<Autoencoder>;
}

/** ε of every norm in the autoencoder. */
const EPS = 1e-6;

function resnetOptions(config: AutoencoderConfig) {
  return { groups: config.norm_num_groups, eps: EPS, act: config.act_fn };
}

function mid(
  p: AutoencoderMid,
  config: AutoencoderConfig,
  x: tf.Tensor4D,
  context?: Context,
): tf.Tensor4D {
  const options = resnetOptions(config);
  let h = resnet(p.resnets[0], x, options, context);
  p.attentions.forEach((a, i) => {
    const [b, height, width, c] = h.shape;
    const tokens = groupNorm(a.group_norm, h, config.norm_num_groups, EPS)
      .reshape([b, height * width, c]) as tf.Tensor3D;
    const hidden = attend(a, tokens, tokens, 1, context);
    h = h.add(hidden.reshape([b, height, width, c]));
    h = resnet(p.resnets[i + 1], h, options, context);
  });
  return h;
}

function out(
  norm: Norm,
  conv: Conv,
  config: AutoencoderConfig,
  x: tf.Tensor4D,
  context?: Context,
): tf.Tensor4D {
  // SiLU whatever `act_fn` says, as in diffusers' Encoder and Decoder.
  const y = groupNorm(norm, x, config.norm_num_groups, EPS, true);
  return conv2d(conv, y, {}, context);
}

/** A diagonal Gaussian over latents. */
export interface Posterior {
  /** [b, h, w, latent]. */
  readonly mean: tf.Tensor4D;
  /** Logarithm of the variance, clamped to [−30, 20]. */
  readonly logvar: tf.Tensor4D;
  /** Mean and raw logvar, concatenated. */
  readonly moments: tf.Tensor4D;
}

/** How many pixels one latent covers, along a side. */
export function downsampleFactor(config: AutoencoderConfig): number {
  return 2 ** (config.block_out_channels.length - 1);
}

/**
 * Encodes images to the posterior over latents (no scaling factor applied).
 *
 * @param p Parameters.
 * @param config Config.
 * @param images [b, h, w, 3] in [−1, 1].
 * @param context Observers.
 * @throws If a side is not a multiple of the downsampling factor.
 */
export function encode(
  p: Autoencoder,
  config: AutoencoderConfig,
  images: tf.Tensor4D,
  context?: Context,
): Posterior {
  const factor = downsampleFactor(config);
  if (images.shape[1] % factor !== 0 || images.shape[2] % factor !== 0) {
    throw cannot(
      "encode an image",
      `sides that are multiples of ${factor}`,
      `${images.shape[1]}×${images.shape[2]}`,
    );
  }
  const options = resnetOptions(config);
  let h = conv2d(p.encoder.conv_in, images, {}, context);
  for (const block of p.encoder.down_blocks) {
    for (const r of block.resnets) h = resnet(r, h, options, context);
    if (block.downsamplers) {
      // Pads right and bottom only, as the peers' Downsample2D with padding 0.
      h = conv2d(block.downsamplers[0].conv, h, {
        stride: 2,
        pad: [[0, 1], [0, 1]],
      }, context);
    }
  }
  h = mid(p.encoder.mid_block, config, h, context);
  h = out(p.encoder.conv_norm_out, p.encoder.conv_out, config, h, context);
  const moments = conv2d(p.quant_conv, h, { pad: 0 }, context);
  const [mean, logvar] = tf.split(moments, 2, 3) as tf.Tensor4D[];
  return { mean, logvar: tf.clipByValue(logvar, -30, 20), moments };
}

/**
 * Draws latents: mean + std · noise.
 *
 * @param posterior The Gaussian.
 * @param noise Standard normal, of the same shape.
 */
export function drawLatent(
  posterior: Posterior,
  noise: tf.Tensor4D,
): tf.Tensor4D {
  return posterior.mean.add(posterior.logvar.mul(0.5).exp().mul(noise));
}

/**
 * Decodes latents to images (no scaling factor applied).
 *
 * @param p Parameters.
 * @param config Config.
 * @param latents [b, h, w, latent].
 * @param context Observers.
 * @returns [b, h·f, w·f, 3], about [−1, 1], not clipped.
 */
export function decode(
  p: Autoencoder,
  config: AutoencoderConfig,
  latents: tf.Tensor4D,
  context?: Context,
): tf.Tensor4D {
  const options = resnetOptions(config);
  let h = conv2d(p.post_quant_conv, latents, { pad: 0 }, context);
  h = conv2d(p.decoder.conv_in, h, {}, context);
  h = mid(p.decoder.mid_block, config, h, context);
  for (const block of p.decoder.up_blocks) {
    for (const r of block.resnets) h = resnet(r, h, options, context);
    if (block.upsamplers) {
      h = conv2d(
        block.upsamplers[0].conv,
        upsampleNearest2x(h),
        {},
        context,
      );
    }
  }
  return out(p.decoder.conv_norm_out, p.decoder.conv_out, config, h, context);
}
