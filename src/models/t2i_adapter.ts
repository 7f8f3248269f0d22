/**
 * T2I-Adapter: a small network that turns a condition image into features for
 * the UNet's encoder.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { type FolderSource, openComponent } from "../io/folder.ts";
import { type Context, type Conv, conv2d, convSpec } from "../nn/linear.ts";
import type { Spec } from "../nn/spec.ts";
import { load } from "./checkpoint.ts";
import { parseWith } from "./config.ts";
import type { Network } from "./model.ts";

const adapterSchema = z.object({
  adapter_type: z.enum(["full_adapter", "light_adapter"]).default(
    "full_adapter",
  ),
  channels: z.array(z.number().int().positive()).nonempty().default([
    320,
    640,
    1280,
    1280,
  ]),
  downscale_factor: z.number().int().positive().default(8),
  in_channels: z.number().int().positive().default(3),
  num_res_blocks: z.number().int().positive().default(2),
});

/** A `T2IAdapter` config.json, defaults filled in as by diffusers. */
export interface T2IAdapterConfig {
  /** Kind of adapter. */
  readonly adapter_type: "full_adapter" | "light_adapter";
  /** Channels of each level, as the UNet's. */
  readonly channels: readonly number[];
  /** How much smaller the first features are than the picture. */
  readonly downscale_factor: number;
  /** Channels of the condition image. */
  readonly in_channels: number;
  /** Residual blocks of a level. */
  readonly num_res_blocks: number;
}

/**
 * Parses a T2I-Adapter config; see {@linkcode T2IAdapterConfig}.
 *
 * @throws If a field does not fit; `full_adapter_xl` is not supported.
 */
export function parseT2IAdapterConfig(json: unknown): T2IAdapterConfig {
  const config = parseWith("a T2I-Adapter config", adapterSchema, json);
  if (
    config.adapter_type === "light_adapter" &&
    config.channels.some((c) => c < 4)
  ) {
    throw cannot(
      "read a T2I-Adapter config",
      "at least 4 channels in every level of a light_adapter",
      config.channels,
    );
  }
  return config;
}

/** One residual block of a T2I-Adapter: two convolutions. */
export interface AdapterResnet {
  /** 3×3. */
  readonly block1: Conv;
  /** 1×1. */
  readonly block2: Conv;
}

/** One resolution of a T2I-Adapter. */
export interface AdapterBlock {
  /** 1×1; in a full adapter only where the channels change. */
  readonly in_conv?: Conv;
  /** Its residual blocks. */
  readonly resnets: readonly AdapterResnet[];
  /** 1×1; light adapters only. */
  readonly out_conv?: Conv;
}

/** Parameters of a diffusers `T2IAdapter`, by state dict names. */
export interface T2IAdapter {
  /** Its parts, by state dict names. */
  readonly adapter: {
    /** 3×3; full adapters only. */
    readonly conv_in?: Conv;
    readonly body: readonly AdapterBlock[];
  };
}

/** Input and output channels of every block. */
function blockChannels(config: T2IAdapterConfig): [number, number][] {
  const { channels } = config;
  const outputs = config.adapter_type === "full_adapter"
    ? channels
    : [...channels, channels[channels.length - 1]];
  const first = config.adapter_type === "full_adapter"
    ? channels[0]
    : unshuffled(config);
  return outputs.map((c, i) => [i === 0 ? first : outputs[i - 1], c]);
}

/**
 * Channels of the features, one number a down block of the UNet.
 *
 * @param config The adapter's config.
 */
export function featureChannels(config: T2IAdapterConfig): number[] {
  return blockChannels(config).map(([, outputs]) => outputs);
}

/** Channels of the condition image after pixel-unshuffle. */
function unshuffled(config: T2IAdapterConfig): number {
  return config.in_channels * config.downscale_factor ** 2;
}

/**
 * Spec of a T2I-Adapter.
 *
 * @param config Its config.
 */
export function t2iAdapterSpec(config: T2IAdapterConfig): Spec<T2IAdapter> {
  const full = config.adapter_type === "full_adapter";
  const body = blockChannels(config).map(([inputs, outputs]) => {
    const middle = full ? outputs : Math.floor(outputs / 4);
    return {
      ...((!full || inputs !== outputs) &&
        { in_conv: convSpec(inputs, middle, 1) }),
      resnets: Array.from({ length: config.num_res_blocks }, () => ({
        block1: convSpec(middle, middle, 3),
        block2: convSpec(middle, middle, full ? 1 : 3),
      })),
      ...(full ? {} : { out_conv: convSpec(middle, outputs, 1) }),
    };
  });
  return {
    adapter: {
      ...(full &&
        { conv_in: convSpec(unshuffled(config), config.channels[0], 3) }),
      body,
    },
  } as unknown as Spec<T2IAdapter>;
}

/**
 * Moves every n×n square of pixels into channels, in PyTorch's order (channel,
 * row, column).
 *
 * @param x [b, h·n, w·n, c].
 * @param n Side of the square.
 * @returns [b, h, w, c·n²].
 */
export function pixelUnshuffle(x: tf.Tensor4D, n: number): tf.Tensor4D {
  const [b, height, width, c] = x.shape;
  const [h, w] = [height / n, width / n];
  // In two steps: not every backend transposes six axes.
  const rows = tf.transpose(x.reshape([b, h, n, w, n * c]), [0, 1, 3, 2, 4]);
  return tf.transpose(rows.reshape([b * h * w, n * n, c]), [0, 2, 1])
    .reshape([b, h, w, c * n * n]);
}

/**
 * A T2I-Adapter forward: features for the UNet's down blocks.
 *
 * @param p Parameters.
 * @param config Config.
 * @param condition Condition images [b, height, width, in_channels] in [0, 1].
 * @param context Observers.
 * @returns One feature map a down block, [b, h, w, c], for `adapterFeatures`
 * of the UNet; a batch of 1 serves any batch.
 * @throws If channels do not fit or a side is not a multiple of the downscale
 * factor.
 *
 * @example
 * ```ts
 * const adapterFeatures = t2iAdapter(params, config, sketch);
 * const eps = unet(model.unet.params, model.unet.config, x, [t], states, {
 *   adapterFeatures,
 * });
 * ```
 */
export function t2iAdapter(
  p: T2IAdapter,
  config: T2IAdapterConfig,
  condition: tf.Tensor4D,
  context?: Context,
): tf.Tensor4D[] {
  const what = "run a T2I-Adapter";
  const { downscale_factor: factor, in_channels: channels } = config;
  const [, height, width, got] = condition.shape;
  if (condition.rank !== 4 || got !== channels) {
    throw cannot(
      what,
      `condition images [b, h, w, ${channels}]`,
      `[${condition.shape}]`,
    );
  }
  if (height % factor !== 0 || width % factor !== 0) {
    throw cannot(
      what,
      `condition images with sides that are multiples of ${factor}`,
      `${width}×${height}`,
    );
  }
  let h = pixelUnshuffle(condition, factor);
  const { conv_in, body } = p.adapter;
  if (conv_in) h = conv2d(conv_in, h, {}, context);
  return body.map((block, i) => {
    // "same" counts only pixels that are there, as a pool with ceil_mode does.
    if (i > 0) h = tf.avgPool(h, 2, 2, "same");
    if (block.in_conv) h = conv2d(block.in_conv, h, { pad: 0 }, context);
    for (const { block1, block2 } of block.resnets) {
      const hidden = tf.relu(conv2d(block1, h, {}, context));
      h = h.add(conv2d(block2, hidden, {}, context));
    }
    if (block.out_conv) h = conv2d(block.out_conv, h, { pad: 0 }, context);
    return h;
  });
}

/** How several adapters' features are summed. */
export interface CombineOptions {
  /**
   * `weighted`: every adapter has its weight. `diffusers-0.19.3`: as its
   * `MultiAdapter`, which forgets the first weight.
   *
   * @default "weighted"
   */
  readonly behaviour?: "weighted" | "diffusers-0.19.3";
}

/**
 * Sums the features of several T2I-Adapters (diffusers' `MultiAdapter`).
 *
 * @param features Features of each adapter, as from {@linkcode t2iAdapter}.
 * @param weights One an adapter: a number, or a map a down block [1, h, w, 1]
 * (weight per region).
 * @param options Which version's behaviour.
 * @throws If there is none, or numbers of adapters, blocks or weights differ.
 */
export function combineAdapters(
  features: readonly (readonly tf.Tensor4D[])[],
  weights: readonly (number | readonly tf.Tensor4D[])[],
  options: CombineOptions = {},
): tf.Tensor4D[] {
  const what = "combine T2I-Adapters";
  const { behaviour = "weighted" } = options;
  if (features.length === 0) throw cannot(what, "at least one", 0);
  if (weights.length !== features.length) {
    throw cannot(what, `${features.length} weights`, weights.length);
  }
  const blocks = features[0].length;
  for (const own of features) {
    if (own.length !== blocks) {
      throw cannot(what, `${blocks} feature maps of each`, own.length);
    }
  }
  const weighted = (k: number, j: number): tf.Tensor4D => {
    const weight = weights[k];
    const feature = features[k][j];
    if (k === 0 && behaviour === "diffusers-0.19.3") return feature;
    if (typeof weight !== "number") return feature.mul(weight[j]);
    return weight === 1 ? feature : feature.mul(weight);
  };
  return Array.from({ length: blocks }, (_, j) => {
    let sum = weighted(0, j);
    for (let k = 1; k < features.length; k++) sum = sum.add(weighted(k, j));
    return sum;
  });
}

/**
 * Loads a T2I-Adapter from a folder in diffusers layout, strictly.
 *
 * @param folder Folder with config.json and weights.
 * @throws If a key is missing, unexpected or misshapen.
 *
 * @example
 * ```ts
 * const sketch = await loadT2IAdapter("models/micro/t2i_adapter");
 * ```
 */
export async function loadT2IAdapter(
  folder: FolderSource,
): Promise<Network<T2IAdapterConfig, T2IAdapter>> {
  const { config: json, file } = await openComponent(folder, "");
  try {
    const config = parseT2IAdapterConfig(json);
    const params = await load<T2IAdapter>(t2iAdapterSpec(config), file, {
      what: "the T2I-Adapter",
    });
    return { config, params };
  } finally {
    file.close();
  }
}
