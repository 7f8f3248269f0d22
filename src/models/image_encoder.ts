import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { Embedding } from "../nn/embedding.ts";
import { embeddingSpec } from "../nn/embedding.ts";
import {
  type Context,
  type Conv,
  conv2d,
  convSpec,
  type Linear,
  linear,
  linearSpec,
} from "../nn/linear.ts";
import { layerNorm, type Norm, normSpec } from "../nn/norm.ts";
import { ParamSpec, type Spec } from "../nn/spec.ts";
import type { ClipConfig, VisionConfig } from "./config.ts";
import {
  type ClipLayer,
  clipLayer,
  clipLayerSpec,
  pickRows,
  pooledPositions,
  type TextEncoder,
  textEncoder,
  type TextEncoderOptions,
  textEncoderSpec,
} from "./text_encoder.ts";

/** Parameters of a transformers `CLIPVisionTransformer`. */
export interface VisionModel {
  /** Class token, patches and positions. */
  readonly embeddings: {
    /** [width]. */
    readonly class_embedding: tf.Tensor1D;
    readonly patch_embedding: Conv;
    readonly position_embedding: Embedding;
  };
  /** The peers' spelling. */
  readonly pre_layrnorm: Norm;
  /** The layers. */
  readonly encoder: { readonly layers: readonly ClipLayer[] };
  /** Norm of the pooled state. */
  readonly post_layernorm: Norm;
}

/** Parameters of a transformers `CLIPModel`, by state dict names. */
export interface Clip extends TextEncoder {
  /** The vision tower. */
  readonly vision_model: VisionModel;
  /** [width, projection], no bias. */
  readonly visual_projection: Linear;
  /** [width, projection], no bias. */
  readonly text_projection: Linear;
  /** Logarithm of the inverse temperature. */
  readonly logit_scale: tf.Scalar;
}

/**
 * Spec of a CLIP model.
 *
 * @param config Its config.
 */
export function clipSpec(config: ClipConfig): Spec<Clip> {
  const v = config.vision_config;
  const width = v.hidden_size;
  const patches = Math.floor(v.image_size / v.patch_size) ** 2;
  return {
    ...textEncoderSpec(config.text_config),
    vision_model: {
      embeddings: {
        class_embedding: new ParamSpec([width], "plain", {
          type: "normal",
          std: width ** -0.5,
        }),
        patch_embedding: convSpec(v.num_channels, width, v.patch_size, {
          bias: false,
        }),
        position_embedding: embeddingSpec(patches + 1, width, width ** -0.5),
      },
      pre_layrnorm: normSpec(width),
      encoder: {
        layers: Array.from(
          { length: v.num_hidden_layers },
          () => clipLayerSpec(width, v.intermediate_size, v.num_hidden_layers),
        ),
      },
      post_layernorm: normSpec(width),
    },
    visual_projection: linearSpec(width, config.projection_dim, {
      bias: false,
      std: width ** -0.5,
    }),
    text_projection: linearSpec(
      config.text_config.hidden_size,
      config.projection_dim,
      { bias: false, std: config.text_config.hidden_size ** -0.5 },
    ),
    logit_scale: new ParamSpec([], "plain", {
      type: "constant",
      value: config.logit_scale_init_value,
    }),
  } as unknown as Spec<Clip>;
}

/** Outputs of a vision tower. */
export interface VisionStates {
  /** Embeddings before the first norm [b, patches + 1, width]. */
  readonly embeddings: tf.Tensor3D;
  /** After the last layer [b, patches + 1, width]. */
  readonly last: tf.Tensor3D;
  /** Class token after the last norm [b, width]. */
  readonly pooled: tf.Tensor2D;
}

/**
 * A CLIP vision tower forward.
 *
 * @param p Parameters.
 * @param config Config.
 * @param pixels Normalised images [b, size, size, 3].
 * @param context Observers.
 * @throws If the images have another size.
 */
export function visionModel(
  p: VisionModel,
  config: VisionConfig,
  pixels: tf.Tensor4D,
  context?: Context,
): VisionStates {
  const size = config.image_size;
  const [b, h, w] = pixels.shape;
  if (h !== size || w !== size) {
    throw cannot("encode an image", `${size}×${size} pixels`, `${h}×${w}`);
  }
  const width = config.hidden_size;
  const patches = conv2d(
    p.embeddings.patch_embedding,
    pixels,
    { stride: config.patch_size, pad: 0 },
    context,
  );
  const n = patches.shape[1] * patches.shape[2];
  // Ones times the class token: the gradient of a tile is slow and of a
  // broadcast is a sum.
  const first = tf.ones([b, 1, width]).mul(p.embeddings.class_embedding);
  const embeddings = tf.concat([first, patches.reshape([b, n, width])], 1).add(
    p.embeddings.position_embedding.weight,
  ) as tf.Tensor3D;
  let x = layerNorm(p.pre_layrnorm, embeddings, config.layer_norm_eps);
  for (const layer of p.encoder.layers) {
    x = clipLayer(layer, x, {
      heads: config.num_attention_heads,
      act: config.hidden_act,
      eps: config.layer_norm_eps,
      causal: false,
    }, context);
  }
  const token = tf.slice(x, [0, 0, 0], [b, 1, width]).reshape([b, width]);
  return {
    embeddings,
    last: x,
    pooled: layerNorm(
      p.post_layernorm,
      token as tf.Tensor2D,
      config.layer_norm_eps,
    ),
  };
}

/**
 * CLIP's image embedding, not normalised.
 *
 * @param p Parameters.
 * @param config Config.
 * @param pixels Normalised images [b, size, size, 3].
 * @returns [b, projection].
 */
export function imageEmbedding(
  p: Clip,
  config: ClipConfig,
  pixels: tf.Tensor4D,
): tf.Tensor2D {
  const { pooled } = visionModel(p.vision_model, config.vision_config, pixels);
  return linear(p.visual_projection, pooled);
}

/**
 * CLIP's text embedding, not normalised.
 *
 * @param p Parameters.
 * @param config Config.
 * @param ids Token ids [b][n].
 * @param options Added tokens.
 * @returns [b, projection].
 */
export function textEmbedding(
  p: Clip,
  config: ClipConfig,
  ids: readonly (readonly number[])[],
  options?: TextEncoderOptions,
): tf.Tensor2D {
  const { last } = textEncoder(p, config.text_config, ids, options);
  const pooled = pickRows(last, pooledPositions(config.text_config, ids));
  return linear(p.text_projection, pooled);
}

/**
 * Divides rows by their length.
 *
 * @param x [b, c].
 */
export function normalise(x: tf.Tensor2D): tf.Tensor2D {
  return x.div(x.square().sum(1, true).sqrt());
}
