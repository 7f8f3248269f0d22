import * as tf from "@tensorflow/tfjs";
import { checkpointed } from "../core/checkpoint.ts";
import { bindingLimit } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { geglu, upsampleNearest2x } from "../core/kernels/ops.ts";
import { activate } from "../nn/activation.ts";
import {
  attend,
  type Attention,
  type AttentionHooks,
  attentionSpec,
  type KeyValues,
} from "../nn/attention.ts";
import {
  type Context,
  type Conv,
  conv2d,
  convSpec,
  type Linear,
  linear,
  linearSpec,
} from "../nn/linear.ts";
import { groupNorm, layerNorm, type Norm, normSpec } from "../nn/norm.ts";
import type { Spec } from "../nn/spec.ts";
import {
  type CrossAttentionSite,
  crossAttentionSites,
  headsOf,
  perLevel,
  type UNetConfig,
} from "./config.ts";

/** Parameters of a diffusers `ResnetBlock2D`. */
export interface Resnet {
  /** Norm before the first convolution. */
  readonly norm1: Norm;
  /** First convolution. */
  readonly conv1: Conv;
  /** Absent in the autoencoder. */
  readonly time_emb_proj?: Linear;
  /** Norm before the second convolution. */
  readonly norm2: Norm;
  /** Second convolution. */
  readonly conv2: Conv;
  /** 1×1, where input and output channels differ. */
  readonly conv_shortcut?: Conv;
}

/** Parameters of a diffusers `BasicTransformerBlock`. */
export interface TransformerBlock {
  /** Norm before self-attention. */
  readonly norm1: Norm;
  /** Self-attention. */
  readonly attn1: Attention;
  /** Norm before cross-attention. */
  readonly norm2: Norm;
  /** Cross-attention. */
  readonly attn2: Attention;
  /** Norm before the feed-forward layers. */
  readonly norm3: Norm;
  /** GEGLU feed-forward: `net.0.proj` [c, 8c], `net.2` [4c, c]. */
  readonly ff: {
    readonly net: {
      readonly 0: { readonly proj: Linear };
      readonly 2: Linear;
    };
  };
}

/** Parameters of a diffusers `Transformer2DModel`. */
export interface SpatialTransformer {
  /** Norm before everything. */
  readonly norm: Norm;
  /** A 1×1 convolution (SD 1.x) or a linear layer (SD 2.x). */
  readonly proj_in: Conv | Linear;
  /** The blocks. */
  readonly transformer_blocks: readonly TransformerBlock[];
  /** Back to the block's channels. */
  readonly proj_out: Conv | Linear;
}

/** Parameters of one level of the encoder half. */
export interface DownBlock {
  /** Its resnets. */
  readonly resnets: readonly Resnet[];
  /** A transformer after each resnet, if it has them. */
  readonly attentions?: readonly SpatialTransformer[];
  /** Halves the resolution; the last block has none. */
  readonly downsamplers?: readonly [{ readonly conv: Conv }];
}

/** Parameters of the middle. */
export interface MidBlock {
  /** One before, and one after each transformer. */
  readonly resnets: readonly Resnet[];
  /** Its transformers. */
  readonly attentions: readonly SpatialTransformer[];
}

/** Parameters of one level of the decoder half. */
export interface UpBlock {
  /** Its resnets. */
  readonly resnets: readonly Resnet[];
  /** A transformer after each resnet, if it has them. */
  readonly attentions?: readonly SpatialTransformer[];
  /** Doubles the resolution; the last block has none. */
  readonly upsamplers?: readonly [{ readonly conv: Conv }];
}

/**
 * Parameters of a diffusers `UNet2DConditionModel`; a leaf's path is its name
 * in the state dict.
 */
export interface UNet {
  /** First convolution. */
  readonly conv_in: Conv;
  /** Two layers on the timestep features. */
  readonly time_embedding: {
    readonly linear_1: Linear;
    readonly linear_2: Linear;
  };
  /** Encoder, highest resolution first. */
  readonly down_blocks: readonly DownBlock[];
  /** The middle, if there is one. */
  readonly mid_block?: MidBlock;
  /** Decoder, lowest resolution first. */
  readonly up_blocks: readonly UpBlock[];
  /** Norm before the last convolution. */
  readonly conv_norm_out: Norm;
  /** Last convolution. */
  readonly conv_out: Conv;
}

/**
 * Spec of a `ResnetBlock2D`.
 *
 * @param inputs Input channels.
 * @param outputs Output channels.
 * @param time Features of the time embedding's projection, if there is one.
 */
export function resnetSpec(
  inputs: number,
  outputs: number,
  time?: { inputs: number; outputs: number },
): Spec<Resnet> {
  return {
    norm1: normSpec(inputs),
    conv1: convSpec(inputs, outputs, 3),
    ...(time ? { time_emb_proj: linearSpec(time.inputs, time.outputs) } : {}),
    norm2: normSpec(outputs),
    conv2: convSpec(outputs, outputs, 3),
    ...(inputs === outputs
      ? {}
      : { conv_shortcut: convSpec(inputs, outputs, 1) }),
  } as Spec<Resnet>;
}

function transformerSpec(
  config: UNetConfig,
  level: number,
  onlyCross: boolean,
): Spec<SpatialTransformer> {
  const outer = config.block_out_channels[level];
  // diffusers gives every head ⌊channels / heads⌋ features.
  const heads = headsOf(config, level);
  const c = heads * Math.floor(outer / heads);
  const states = perLevel(config.cross_attention_dim, level);
  const project = (inputs: number, outputs: number) =>
    config.use_linear_projection
      ? linearSpec(inputs, outputs)
      : convSpec(inputs, outputs, 1);
  return {
    norm: normSpec(outer),
    proj_in: project(outer, c),
    transformer_blocks: Array.from(
      { length: perLevel(config.transformer_layers_per_block, level) },
      () => ({
        norm1: normSpec(c),
        attn1: attentionSpec(c, { states: onlyCross ? states : c }),
        norm2: normSpec(c),
        attn2: attentionSpec(c, { states }),
        norm3: normSpec(c),
        ff: {
          net: {
            0: { proj: linearSpec(c, 8 * c) },
            2: linearSpec(4 * c, c),
          },
        },
      }),
    ),
    proj_out: project(c, outer),
  } as unknown as Spec<SpatialTransformer>;
}

/** Of a down or up block; `UNetMidBlock2DCrossAttn` does not read the flag. */
function isOnlyCross(config: UNetConfig, level: number): boolean {
  return perLevel(config.only_cross_attention ?? false, level);
}

/** Channels of the time embedding. */
function timeDim(config: UNetConfig): number {
  return config.time_embedding_dim ?? config.block_out_channels[0] * 4;
}

/**
 * Spec of a UNet.
 *
 * @param config Its config.
 *
 * @example
 * ```ts
 * const params = initialise(unetSpec(parseUNetConfig({})), key(0));
 * ```
 */
export function unetSpec(config: UNetConfig): Spec<UNet> {
  const channels = config.block_out_channels;
  const levels = channels.length;
  const time = timeDim(config);
  const resnet = (inputs: number, outputs: number) =>
    resnetSpec(inputs, outputs, {
      inputs: time,
      outputs: config.resnet_time_scale_shift === "scale_shift"
        ? 2 * outputs
        : outputs,
    });
  const down = config.down_block_types.map((type, level) => {
    const layers = perLevel(config.layers_per_block, level);
    const outputs = channels[level];
    const inputs = level === 0 ? channels[0] : channels[level - 1];
    return {
      ...(type === "CrossAttnDownBlock2D" && {
        attentions: Array.from(
          { length: layers },
          () => transformerSpec(config, level, isOnlyCross(config, level)),
        ),
      }),
      resnets: Array.from(
        { length: layers },
        (_, j) => resnet(j === 0 ? inputs : outputs, outputs),
      ),
      ...(level < levels - 1 &&
        { downsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }),
    };
  });
  const up = config.up_block_types.map((type, i) => {
    const level = levels - 1 - i;
    const layers = perLevel(config.layers_per_block, level) + 1;
    const outputs = channels[level];
    const previous = channels[Math.min(level + 1, levels - 1)];
    const next = channels[Math.max(level - 1, 0)];
    return {
      ...(type === "CrossAttnUpBlock2D" && {
        attentions: Array.from(
          { length: layers },
          () => transformerSpec(config, level, isOnlyCross(config, level)),
        ),
      }),
      resnets: Array.from({ length: layers }, (_, j) => {
        const hidden = j === 0 ? previous : outputs;
        const skip = j === layers - 1 ? next : outputs;
        return resnet(hidden + skip, outputs);
      }),
      ...(level > 0 &&
        { upsamplers: [{ conv: convSpec(outputs, outputs, 3) }] }),
    };
  });
  const last = channels[levels - 1];
  const midLayers = perLevel(config.transformer_layers_per_block, levels - 1);
  return {
    conv_in: convSpec(config.in_channels, channels[0], config.conv_in_kernel),
    time_embedding: {
      linear_1: linearSpec(channels[0], time),
      linear_2: linearSpec(time, time),
    },
    down_blocks: down,
    ...(config.mid_block_type && midLayers > 0 && {
      mid_block: {
        attentions: [transformerSpec(config, levels - 1, false)],
        resnets: [resnet(last, last), resnet(last, last)],
      },
    }),
    up_blocks: up,
    conv_norm_out: normSpec(channels[0]),
    conv_out: convSpec(
      channels[0],
      config.out_channels,
      config.conv_out_kernel,
    ),
  } as unknown as Spec<UNet>;
}

/**
 * Latent sizes of every level, 0 = highest resolution.
 *
 * @param config The config.
 * @param height Latent height.
 * @param width Latent width.
 * @returns [height, width] a level.
 */
export function levelSizes(
  config: UNetConfig,
  height: number,
  width: number,
): [number, number][] {
  const half = config.downsample_padding === 0
    ? (n: number) => Math.floor(n / 2)
    : (n: number) => Math.ceil(n / 2);
  const sizes: [number, number][] = [[height, width]];
  while (sizes.length < config.block_out_channels.length) {
    const [h, w] = sizes[sizes.length - 1];
    sizes.push([half(h), half(w)]);
  }
  return sizes;
}

/**
 * The grids on which a UNet attends to text, one per cross-attention site.
 *
 * @param config The config.
 * @param size The latent's height and width.
 */
export function attentionGrids(
  config: UNetConfig,
  size: { readonly height: number; readonly width: number },
): { height: number; width: number }[] {
  const sizes = levelSizes(config, size.height, size.width);
  return crossAttentionSites(config).map(({ level }) => {
    const [height, width] = sizes[level];
    return { height, width };
  });
}

/**
 * Size of the largest features of one sample between the layers of a UNet (what
 * attention and feed-forward layers need inside is bounded by themselves).
 *
 * @param config The config.
 * @param height Latent height.
 * @param width Latent width.
 * @returns Number of values.
 */
export function widestFeatures(
  config: UNetConfig,
  height: number,
  width: number,
): number {
  const channels = config.block_out_channels;
  return channels.reduce((most, own, level) => {
    const scale = 2 ** level;
    const pixels = Math.ceil(height / scale) * Math.ceil(width / scale);
    // A resnet of the decoder sees the level below, or its own, and a skip.
    const below = channels[Math.min(level + 1, channels.length - 1)];
    const skip = Math.max(own, channels[Math.max(level - 1, 0)]);
    return Math.max(most, pixels * (Math.max(own, below) + skip));
  }, 0);
}

/**
 * Sinusoidal timestep features (diffusers `get_timestep_embedding`).
 *
 * @param timesteps One per sample.
 * @param dim Number of features.
 * @param flip Cosines first.
 * @param shift `freq_shift` of the config.
 * @returns [b, dim].
 */
export function timestepFeatures(
  timesteps: readonly number[],
  dim: number,
  flip = true,
  shift = 0,
): tf.Tensor2D {
  const half = Math.floor(dim / 2);
  const values = new Float32Array(timesteps.length * dim);
  for (let b = 0; b < timesteps.length; b++) {
    for (let i = 0; i < half; i++) {
      // Rounded to float32 as the peers compute it: at t = 999 the rounding of
      // the frequency is visible in the sine.
      const exponent = Math.fround(
        Math.fround(Math.fround(-Math.log(10000)) * i) / (half - shift),
      );
      const frequency = Math.fround(Math.exp(exponent));
      const angle = Math.fround(timesteps[b] * frequency);
      values[b * dim + (flip ? half : 0) + i] = Math.sin(angle);
      values[b * dim + (flip ? 0 : half) + i] = Math.cos(angle);
    }
  }
  return tf.tensor2d(values, [timesteps.length, dim]);
}

/** One cross-attention call, for those who replace or observe it. */
export interface CrossAttentionCall extends CrossAttentionSite {
  /** Latent height at this layer. */
  readonly height: number;
  /** Latent width at this layer. */
  readonly width: number;
  /** Heads of the attention. */
  readonly heads: number;
}

/** What a UNet forward lets its caller add, observe or replace. */
export interface UNetOptions extends Context {
  /**
   * Replaces or observes cross-attention; return nothing for the plain one.
   *
   * @param call Which layer, and its latent size.
   */
  readonly crossAttend?: (
    call: CrossAttentionCall,
  ) => AttentionHooks | undefined;
  /**
   * Keeps what cross-attention makes of the text states, for further calls with
   * the same ones; the caller's.
   */
  readonly keyValues?: KeyValues;
  /** Sees named intermediate activations (NHWC), named as in the state dict. */
  readonly activation?: (path: string, value: tf.Tensor) => void;
  /** T2I-Adapter features, one per down block [b, h, w, c]. */
  readonly adapterFeatures?: readonly tf.Tensor4D[];
  /** ControlNet residuals of the skips, conv_in's included. */
  readonly downResiduals?: readonly tf.Tensor4D[];
  /** ControlNet residual of the mid block. */
  readonly midResidual?: tf.Tensor4D;
  /**
   * Bytes of the largest activations within a feed-forward layer; more tokens
   * go through it in turns, with the same result. A turn is at least one
   * picture where a `gate` acts on the layer, else at least one token.
   *
   * @default 64 MiB on a graphics card (less if it cannot take as much), no
   * limit elsewhere
   */
  readonly maxBytes?: number;
  /**
   * For gradients, keeps the inputs of resnets and of the parts of transformer
   * blocks only, and computes the rest again. Parts that are observed keep
   * everything.
   *
   * @default false
   */
  readonly recompute?: boolean;
}

/** Runs a part of a network; see `recompute` of {@linkcode UNetOptions}. */
export function runPart<I, T extends tf.Tensor>(
  { recompute, tap, gate }: Context & { readonly recompute?: boolean },
  inputs: I,
  f: (inputs: I) => T,
): T {
  return recompute && !tap && !gate
    ? checkpointed(f, inputs)
    : tf.tidy(() => f(inputs));
}

/**
 * A diffusers `ResnetBlock2D` forward.
 *
 * @param p Parameters.
 * @param x [b, h, w, in].
 * @param options `temb`: activated time embedding [b, d].
 * @param context Observers.
 * @returns [b, h, w, out].
 */
export function resnet(
  p: Resnet,
  x: tf.Tensor4D,
  options: {
    readonly groups: number;
    readonly eps: number;
    readonly act: string;
    readonly temb?: tf.Tensor2D;
    readonly scaleShift?: boolean;
    readonly scaleFactor?: number;
  },
  context: Context & Pick<UNetOptions, "recompute"> = {},
): tf.Tensor4D {
  return runPart(
    context,
    { p, x, temb: options.temb },
    ({ p, x, temb }) => resnetBody(p, x, { ...options, temb }, context),
  );
}

function resnetBody(
  p: Resnet,
  x: tf.Tensor4D,
  options: Parameters<typeof resnet>[2],
  context?: Context,
): tf.Tensor4D {
  const { groups, eps, act, temb, scaleShift, scaleFactor = 1 } = options;
  const silu = act === "silu" || act === "swish";
  const normAct = (norm: Norm, h: tf.Tensor4D) => {
    const y = groupNorm(norm, h, groups, eps, silu);
    return silu ? y : activate(act, y);
  };
  let h = conv2d(p.conv1, normAct(p.norm1, x), {}, context);
  if (p.time_emb_proj && temb) {
    const projected = linear(p.time_emb_proj, temb, context);
    const [b, c] = projected.shape;
    if (scaleShift) {
      const [scale, shift] = tf.split(
        projected.reshape([b, 1, 1, c]),
        2,
        3,
      );
      h = groupNorm(p.norm2, h, groups, eps).mul(scale.add(1)).add(shift);
      h = activate(act, h);
    } else {
      h = normAct(p.norm2, h.add(projected.reshape([b, 1, 1, c])));
    }
  } else {
    h = normAct(p.norm2, h);
  }
  h = conv2d(p.conv2, h, {}, context);
  const shortcut = p.conv_shortcut
    ? conv2d(p.conv_shortcut, x, { pad: 0 }, context)
    : x;
  const sum = shortcut.add(h) as tf.Tensor4D;
  return scaleFactor === 1 ? sum : sum.div(scaleFactor);
}

/** Projects channels-last features by a linear layer or a 1×1 convolution. */
function projectTokens(
  p: Linear | Conv,
  x: tf.Tensor4D,
  context?: Context,
): tf.Tensor4D {
  return p.weight.rank === 2
    ? linear(p as Linear, x, context)
    : conv2d(p as Conv, x, { pad: 0 }, context);
}

/** What `maxBytes` is on a graphics card that can take as much. */
const FEED_FORWARD_BYTES = 64 * 2 ** 20;

/**
 * Norm and GEGLU feed-forward layers of a block. Tokens do not see each other
 * here, so that many of them can go through in turns.
 */
function feedForward(
  block: TransformerBlock,
  h: tf.Tensor3D,
  options: UNetOptions,
): tf.Tensor3D {
  const { norm3, ff } = block;
  const run = (x: tf.Tensor3D): tf.Tensor3D =>
    runPart(options, { norm3, ff, x }, ({ norm3, ff, x }) => {
      const up = linear(ff.net[0].proj, layerNorm(norm3, x), options);
      return linear(ff.net[2], geglu(up), options);
    });
  const { proj } = ff.net[0];
  const bytes = h.size / h.shape[2] * proj.weight.shape[1] * 4;
  const limit = bindingLimit();
  const maxBytes = options.maxBytes ??
    (limit === Infinity ? limit : Math.min(limit, FEED_FORWARD_BYTES));
  // Observers see all inputs of a layer at once.
  if (bytes <= maxBytes || options.tap) return run(h);
  // A gate tells a token's place from its row: it gets whole pictures.
  const gated = options.gate && (proj.low || ff.net[2].low);
  const axis = gated ? 0 : 1;
  const length = h.shape[axis];
  const most = Math.max(1, Math.floor(maxBytes * length / bytes));
  // Equal turns.
  const rows = Math.ceil(length / Math.ceil(length / most));
  return tf.tidy(() => {
    const done: tf.Tensor3D[] = [];
    for (let from = 0; from < length; from += rows) {
      const begin: [number, number, number] = [0, 0, 0];
      const size: [number, number, number] = [...h.shape];
      begin[axis] = from;
      size[axis] = Math.min(rows, length - from);
      done.push(tf.tidy(() => run(tf.slice(h, begin, size))));
    }
    return tf.concat(done, axis);
  });
}

/** What the encoder half of a UNet hands to the decoder half. */
export interface UNetEncoding {
  /** Output of the middle [b, h, w, c]. */
  readonly hidden: tf.Tensor4D;
  /** Skip connections in the order in which they are made, conv_in's first. */
  readonly skips: readonly tf.Tensor4D[];
  /** Settings of every resnet of this pass, time embedding included. */
  readonly resnetOptions: Parameters<typeof resnet>[2];
  /** Runs the next transformer of this pass (sites are counted). */
  readonly transformer: (
    t: SpatialTransformer,
    x: tf.Tensor4D,
    level: number,
    path: string,
  ) => tf.Tensor4D;
}

/** Embeds timesteps, [b, time_embed_dim]; one for all or one per sample. */
function timeEmbedding(
  p: UNet["time_embedding"],
  config: UNetConfig,
  batch: number,
  timesteps: readonly number[],
  options: UNetOptions,
): tf.Tensor2D {
  const see = options.activation ?? (() => {});
  const features = timestepFeatures(
    Array.from(
      { length: batch },
      (_, i) => timesteps[timesteps.length === 1 ? 0 : i],
    ),
    config.block_out_channels[0],
    config.flip_sin_to_cos,
    config.freq_shift,
  );
  see("time_proj", features);
  const hidden = activate(
    config.act_fn,
    linear(p.linear_1, features, options),
  );
  let temb = linear(p.linear_2, hidden, options);
  if (config.timestep_post_act) temb = activate(config.timestep_post_act, temb);
  see("time_embedding", temb);
  return config.time_embedding_act_fn
    ? activate(config.time_embedding_act_fn, temb)
    : temb;
}

/** The text states of one site, of states for all or for each of them. */
function statesAt(
  states: tf.Tensor3D | tf.Tensor4D,
  site: number,
): tf.Tensor3D {
  if (states.rank === 3) return states as tf.Tensor3D;
  const [b, , tokens, width] = states.shape as [number, number, number, number];
  const own = tf.slice(states as tf.Tensor4D, [0, site, 0, 0], [
    b,
    1,
    tokens,
    width,
  ]);
  return tf.squeeze(own, [1]);
}

/**
 * Runs spatial transformers, one after the other: each of their blocks takes the
 * next cross-attention site.
 */
function transformers(
  config: UNetConfig,
  states: tf.Tensor3D | tf.Tensor4D,
  options: UNetOptions,
): UNetEncoding["transformer"] {
  const see = options.activation ?? (() => {});
  const sites = crossAttentionSites(config);
  let site = 0;
  return (t, x, level, path) => {
    const [b, height, width] = x.shape;
    const heads = headsOf(config, level);
    const onlyCross = isOnlyCross(config, level) &&
      !path.startsWith("mid_block.");
    const projected = runPart(
      options,
      { norm: t.norm, proj: t.proj_in, x },
      ({ norm, proj, x }) =>
        projectTokens(
          proj,
          groupNorm(norm, x, config.norm_num_groups, 1e-6),
          options,
        ),
    );
    const c = projected.shape[3];
    let h: tf.Tensor3D = projected.reshape([b, height * width, c]);
    t.transformer_blocks.forEach((block, k) => {
      const at = `${path}.transformer_blocks.${k}`;
      const here = sites[site++];
      const text = statesAt(states, here.index);
      const self = runPart(
        options,
        { norm: block.norm1, attn: block.attn1, h, text },
        ({ norm, attn, h, text }) => {
          const normed = layerNorm(norm, h);
          const from = onlyCross ? text : normed;
          return attend(attn, normed, from, heads, options);
        },
      );
      see(`${at}.attn1`, self);
      h = h.add(self);
      const hooks = options.crossAttend?.({ ...here, height, width, heads });
      const crossInputs = { norm: block.norm2, attn: block.attn2, h, text };
      const attendText = ({ norm, attn, h, text }: typeof crossInputs) =>
        attend(
          attn,
          layerNorm(norm, h),
          text,
          heads,
          options,
          hooks,
          options.keyValues,
        );
      // What is made of probabilities outlives the call.
      const cross = hooks?.probabilities ? attendText(crossInputs) : runPart(
        hooks ? { ...options, recompute: false } : options,
        crossInputs,
        attendText,
      );
      see(`${at}.attn2`, cross);
      h = h.add(cross);
      h = h.add(feedForward(block, h, options));
    });
    const out = runPart(
      options,
      { proj: t.proj_out, h, x },
      ({ proj, h, x }) =>
        projectTokens(proj, h.reshape([b, height, width, c]), options)
          .add(x) as tf.Tensor4D,
    );
    see(path, out);
    return out;
  };
}

/**
 * The encoder half of a UNet: time embedding, down blocks and middle. A
 * ControlNet is this half with weights of its own.
 *
 * @param p Parameters of this half.
 * @param config Config.
 * @param sample Noisy latents [b, h, w, channels].
 * @param timesteps One per sample, or one for all.
 * @param states Text states, as for {@linkcode unet}.
 * @param options As for {@linkcode unet}; `conditioning` is added to conv_in's
 * output (ControlNet).
 * @throws If channels, batch or number of sites do not fit.
 */
export function unetEncoder(
  p: Pick<UNet, "conv_in" | "time_embedding" | "down_blocks" | "mid_block">,
  config: UNetConfig,
  sample: tf.Tensor4D,
  timesteps: readonly number[],
  states: tf.Tensor3D | tf.Tensor4D,
  options: UNetOptions & { readonly conditioning?: tf.Tensor4D } = {},
): UNetEncoding {
  const sites = crossAttentionSites(config);
  check(config, sites.length, sample, timesteps, states);
  const see = options.activation ?? (() => {});
  const [batch] = sample.shape;
  const temb = timeEmbedding(
    p.time_embedding,
    config,
    batch,
    timesteps,
    options,
  );
  const resnetOptions = {
    groups: config.norm_num_groups,
    eps: config.norm_eps,
    act: config.act_fn,
    // resnet_skip_time_act and resnet_out_scale_factor stand in the config but
    // are not read by the block types of Stable Diffusion.
    temb: activate(config.act_fn, temb),
    scaleShift: config.resnet_time_scale_shift === "scale_shift",
  };
  const transformer = transformers(config, states, options);

  let h = conv2d(
    p.conv_in,
    config.center_input_sample ? sample.mul(2).sub(1) : sample,
    {},
    options,
  );
  see("conv_in", h);
  if (options.conditioning) h = h.add(options.conditioning);
  const skips: tf.Tensor4D[] = [h];
  p.down_blocks.forEach((block, level) => {
    const path = `down_blocks.${level}`;
    const feature = options.adapterFeatures?.[level];
    block.resnets.forEach((r, j) => {
      h = resnet(r, h, resnetOptions, options);
      see(`${path}.resnets.${j}`, h);
      const attention = block.attentions?.[j];
      if (attention) {
        h = transformer(attention, h, level, `${path}.attentions.${j}`);
      }
      // T2I-Adapter: after the block's last layer, before the skip is stored
      // and before the downsampler. (In a plain block diffusers adds it after
      // the block; the last one, the only one it can do that in, has no
      // downsampler.)
      if (feature && j === block.resnets.length - 1) h = h.add(feature);
      skips.push(h);
    });
    if (block.downsamplers) {
      const pad = config.downsample_padding;
      h = conv2d(
        block.downsamplers[0].conv,
        h,
        { stride: 2, pad: pad === 0 ? [[0, 1], [0, 1]] : pad },
        options,
      );
      skips.push(h);
    }
    see(path, h);
  });
  if (p.mid_block) {
    const { resnets, attentions } = p.mid_block;
    const scaleFactor = config.mid_block_scale_factor;
    const mid = { ...resnetOptions, scaleFactor };
    const level = config.block_out_channels.length - 1;
    h = resnet(resnets[0], h, mid, options);
    attentions.forEach((t, j) => {
      h = transformer(t, h, level, `mid_block.attentions.${j}`);
      h = resnet(resnets[j + 1], h, mid, options);
    });
    see("mid_block", h);
  }
  return { hidden: h, skips, resnetOptions, transformer };
}

/**
 * A UNet forward: predicts ε (or v) from a noisy latent, timesteps and text
 * states.
 *
 * @param p Parameters.
 * @param config Config.
 * @param sample Noisy latents [b, h, w, channels]; any h and w.
 * @param timesteps One per sample, or one for all.
 * @param states Text states [b, tokens, d], or layer-wise [b, sites, tokens, d]
 * with index i for the i-th of {@linkcode crossAttentionSites} (P+ and ED-LoRA).
 * @param options Observers, residuals, replaced attention.
 * @returns [b, h, w, channels].
 * @throws If channels, batch or number of sites do not fit.
 *
 * @example
 * ```ts
 * const eps = tf.tidy(() => unet(params, config, latent, [981], states));
 * ```
 */
export function unet(
  p: UNet,
  config: UNetConfig,
  sample: tf.Tensor4D,
  timesteps: readonly number[],
  states: tf.Tensor3D | tf.Tensor4D,
  options: UNetOptions = {},
): tf.Tensor4D {
  const see = options.activation ?? (() => {});
  const encoding = unetEncoder(p, config, sample, timesteps, states, options);
  const { resnetOptions, transformer } = encoding;
  let h = encoding.hidden;
  const skips = [...encoding.skips];
  const residuals = options.downResiduals;
  if (residuals) {
    if (residuals.length !== skips.length) {
      throw cannot(
        "add ControlNet residuals",
        `${skips.length} of them`,
        residuals.length,
      );
    }
    residuals.forEach((r, i) => skips[i] = skips[i].add(r));
  }
  if (options.midResidual) h = h.add(options.midResidual);
  p.up_blocks.forEach((block, i) => {
    const path = `up_blocks.${i}`;
    const level = config.block_out_channels.length - 1 - i;
    block.resnets.forEach((r, j) => {
      h = runPart(
        options,
        { r, h, skip: skips.pop()!, temb: resnetOptions.temb },
        ({ r, h, skip, temb }) =>
          resnet(r, tf.concat([h, skip], 3), { ...resnetOptions, temb }, {
            ...options,
            recompute: false,
          }),
      );
      see(`${path}.resnets.${j}`, h);
      if (block.attentions) {
        h = transformer(
          block.attentions[j],
          h,
          level,
          `${path}.attentions.${j}`,
        );
      }
    });
    if (block.upsamplers) {
      // To the size of the next skip: twice, unless a size was odd.
      const [, height, width] = skips[skips.length - 1].shape;
      h = upsample(h, height, width);
      h = conv2d(block.upsamplers[0].conv, h, {}, options);
    }
    see(path, h);
  });
  const silu = config.act_fn === "silu" || config.act_fn === "swish";
  return runPart(
    options.activation ? { ...options, recompute: false } : options,
    { norm: p.conv_norm_out, conv: p.conv_out, h },
    ({ norm, conv, h }) => {
      const normed = groupNorm(
        norm,
        h,
        config.norm_num_groups,
        config.norm_eps,
      );
      see("conv_norm_out", normed);
      const name = silu ? "silu" : config.act_fn;
      return conv2d(conv, activate(name, normed), {}, options);
    },
  );
}

/**
 * Nearest-neighbour upsampling to a size, pixel ⌊i·from/to⌋ of each axis.
 *
 * From ⌈n/2⌉ to n that is the doubled image without its last line, from ⌊n/2⌋
 * (downsampling without padding) with its first line once more; both have a
 * gradient on every backend, which a resize has not on wasm.
 */
function upsample(x: tf.Tensor4D, height: number, width: number): tf.Tensor4D {
  const near = (to: number, from: number) => Math.abs(to - 2 * from) <= 1;
  if (!near(height, x.shape[1]) || !near(width, x.shape[2])) {
    return tf.image.resizeNearestNeighbor(x, [height, width]);
  }
  let y = upsampleNearest2x(x);
  for (const [axis, to] of [[1, height], [2, width]] as const) {
    const size: number[] = [...y.shape];
    if (to === size[axis]) continue;
    size[axis] = Math.min(to, size[axis]);
    const begin = [0, 0, 0, 0];
    const line = [...size];
    line[axis] = 1;
    y = to < y.shape[axis]
      ? tf.slice(y, begin, size) as tf.Tensor4D
      : tf.concat([tf.slice(y, begin, line) as tf.Tensor4D, y], axis);
  }
  return y;
}

function check(
  config: UNetConfig,
  sites: number,
  sample: tf.Tensor4D,
  timesteps: readonly number[],
  states: tf.Tensor,
): void {
  const what = "run the UNet";
  const [batch, , , channels] = sample.shape;
  if (sample.rank !== 4 || channels !== config.in_channels) {
    throw cannot(
      what,
      `a sample [b, h, w, ${config.in_channels}]`,
      `[${sample.shape}]`,
    );
  }
  if (timesteps.length !== 1 && timesteps.length !== batch) {
    throw cannot(what, `1 or ${batch} timesteps`, timesteps.length);
  }
  const dims = [config.cross_attention_dim].flat();
  const last = states.shape[states.rank - 1];
  if (
    (states.rank !== 3 && states.rank !== 4) || states.shape[0] !== batch ||
    last === undefined || !dims.includes(last) ||
    (states.rank === 4 && states.shape[1]! < sites)
  ) {
    throw cannot(
      what,
      `states [${batch}, tokens, ${dims}] or [${batch}, ${sites}, tokens, ${dims}]`,
      `[${states.shape}]`,
    );
  }
}
