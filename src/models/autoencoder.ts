import * as tf from "@tensorflow/tfjs";
import { bindingLimit, trimCard } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { attend, type Attention, attentionSpec } from "../nn/attention.ts";
import { type Context, type Conv, conv2d, convSpec } from "../nn/linear.ts";
import { groupNorm, type Norm, normSpec } from "../nn/norm.ts";
import type { Spec } from "../nn/spec.ts";
import {
  type Bands,
  convBands,
  cutBands,
  downsampleBands,
  joinBands,
  normConvBands,
  resnetBands,
  upsampleBands,
} from "./bands.ts";
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
        ...(i < channels.length - 1 &&
          { downsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }),
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
        ...(i < up.length - 1 &&
          { upsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }),
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

/** What a pass of the autoencoder lets its caller choose or observe. */
export interface AutoencoderOptions extends Context {
  /**
   * Bytes of the largest features held as one tensor; larger ones are computed
   * in horizontal bands, with the same result.
   *
   * @default 64 MiB on a graphics card (less if it cannot take as much), no
   * limit elsewhere
   */
  readonly maxBytes?: number;
}

/** Features larger than this are cut on a graphics card, to save its memory. */
const BAND_BYTES = 64 * 2 ** 20;

/** Options with the size of bands filled in. */
function banded(options: AutoencoderOptions | undefined) {
  const limit = bindingLimit();
  const maxBytes = options?.maxBytes ??
    (limit === Infinity ? limit : Math.min(limit, BAND_BYTES));
  return { ...options, maxBytes };
}

function out(
  norm: Norm,
  conv: Conv,
  config: AutoencoderConfig,
  x: Bands,
  context?: Context,
): tf.Tensor4D {
  // SiLU whatever `act_fn` says, as in diffusers' Encoder and Decoder.
  const settings = { groups: config.norm_num_groups, eps: EPS, act: "silu" };
  return tf.tidy(() =>
    x.length === 1
      ? conv2d(
        conv,
        groupNorm(norm, x[0], settings.groups, EPS, true),
        {},
        context,
      )
      : joinBands(normConvBands(norm, conv, x, settings, context))
  );
}

/** The next features of a pass; the last ones are no longer needed. */
function next(bands: Bands, make: (bands: Bands) => Bands): Bands {
  const made = make(bands);
  const kept = new Set(made.map(({ id }) => id));
  for (const band of bands) if (!kept.has(band.id)) band.dispose();
  // Large tensors of ever other sizes follow.
  if (made.length > 1) trimCard();
  return made;
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
 * @param context Observers; how large tensors may be.
 * @throws If a side is not a multiple of the downsampling factor.
 */
export function encode(
  p: Autoencoder,
  config: AutoencoderConfig,
  images: tf.Tensor4D,
  context?: AutoencoderOptions,
): Posterior {
  const factor = downsampleFactor(config);
  if (images.shape[1] % factor !== 0 || images.shape[2] % factor !== 0) {
    throw cannot(
      "encode an image",
      `sides that are multiples of ${factor}`,
      `${images.shape[1]}×${images.shape[2]}`,
    );
  }
  const settings = resnetOptions(config);
  const options = banded(context);
  // Every level halves the height of bands.
  const at = (level: number) => ({
    ...options,
    multiple: 2 ** (p.encoder.down_blocks.length - 1 - level),
  });
  let bands: Bands = tf.tidy(() => {
    const first = p.encoder.conv_in.weight.shape[3];
    const pictures = cutBands([images], first, at(0));
    return convBands(p.encoder.conv_in, pictures, context);
  });
  p.encoder.down_blocks.forEach((block, level) => {
    for (const r of block.resnets) {
      bands = next(bands, (x) => resnetBands(r, x, settings, at(level)));
    }
    const down = block.downsamplers?.[0].conv;
    if (down) bands = next(bands, (x) => downsampleBands(down, x, options));
  });
  const middle = tf.tidy(() =>
    mid(p.encoder.mid_block, config, joinBands(bands), context)
  );
  const h = out(
    p.encoder.conv_norm_out,
    p.encoder.conv_out,
    config,
    [middle],
    context,
  );
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
 * @param context Observers; how large tensors may be.
 * @returns [b, h·f, w·f, 3], about [−1, 1], not clipped.
 */
export function decode(
  p: Autoencoder,
  config: AutoencoderConfig,
  latents: tf.Tensor4D,
  context?: AutoencoderOptions,
): tf.Tensor4D {
  const settings = resnetOptions(config);
  const options = banded(context);
  let bands: Bands = [tf.tidy(() => {
    const h = conv2d(p.post_quant_conv, latents, { pad: 0 }, context);
    return mid(
      p.decoder.mid_block,
      config,
      conv2d(p.decoder.conv_in, h, {}, context),
      context,
    );
  })];
  for (const block of p.decoder.up_blocks) {
    for (const r of block.resnets) {
      bands = next(bands, (x) => resnetBands(r, x, settings, options));
    }
    const up = block.upsamplers?.[0].conv;
    if (up) bands = next(bands, (x) => upsampleBands(up, x, options));
  }
  return out(
    p.decoder.conv_norm_out,
    p.decoder.conv_out,
    config,
    bands,
    context,
  );
}
