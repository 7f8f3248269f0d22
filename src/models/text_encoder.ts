import * as tf from "@tensorflow/tfjs";
import { checkpointed } from "../core/checkpoint.ts";
import { cannot } from "../core/errors.ts";
import { attention } from "../core/kernels/ops.ts";
import { activate } from "../nn/activation.ts";
import { type Embedding, embeddingSpec, lookup } from "../nn/embedding.ts";
import { type Context, type Linear, linear, linearSpec } from "../nn/linear.ts";
import { layerNorm, type Norm, normSpec } from "../nn/norm.ts";
import type { Spec } from "../nn/spec.ts";
import type { TextEncoderConfig } from "./config.ts";

/**
 * What a file of CLIP may hold beside the text encoder: its heads, its image
 * encoder. Stable Diffusion uses none of it.
 */
export const CLIP_EXTRAS =
  /^(logit_scale|(text|visual)_projection\.(weight|bias)|vision_model\..*)$/;

/** Parameters of a CLIP encoder layer, of text and vision alike. */
export interface ClipLayer {
  /** Projections of self-attention. */
  readonly self_attn: {
    readonly k_proj: Linear;
    readonly v_proj: Linear;
    readonly q_proj: Linear;
    readonly out_proj: Linear;
  };
  /** Norm before attention. */
  readonly layer_norm1: Norm;
  /** The two feed-forward layers. */
  readonly mlp: { readonly fc1: Linear; readonly fc2: Linear };
  /** Norm before the feed-forward layers. */
  readonly layer_norm2: Norm;
}

/** Parameters of a transformers `CLIPTextModel`, by state dict names. */
export interface TextEncoder {
  /** All of it, by state dict names. */
  readonly text_model: {
    readonly embeddings: {
      readonly token_embedding: Embedding;
      readonly position_embedding: Embedding;
    };
    readonly encoder: { readonly layers: readonly ClipLayer[] };
    readonly final_layer_norm: Norm;
  };
}

/**
 * Spec of a CLIP encoder layer, initialised as OpenAI's CLIP.
 *
 * @param width Features.
 * @param inner Features of the feed-forward.
 * @param layers Depth of the whole encoder, which scales the output layers.
 */
export function clipLayerSpec(
  width: number,
  inner: number,
  layers: number,
): Spec<ClipLayer> {
  const std = width ** -0.5;
  const out = std * (2 * layers) ** -0.5;
  return {
    self_attn: {
      k_proj: linearSpec(width, width, { std }),
      v_proj: linearSpec(width, width, { std }),
      q_proj: linearSpec(width, width, { std }),
      out_proj: linearSpec(width, width, { std: out }),
    },
    layer_norm1: normSpec(width),
    mlp: {
      fc1: linearSpec(width, inner, { std: (2 * width) ** -0.5 }),
      fc2: linearSpec(inner, width, { std: out }),
    },
    layer_norm2: normSpec(width),
  };
}

/**
 * Spec of a CLIP text encoder.
 *
 * @param config Its config.
 */
export function textEncoderSpec(config: TextEncoderConfig): Spec<TextEncoder> {
  return {
    text_model: {
      embeddings: {
        token_embedding: embeddingSpec(config.vocab_size, config.hidden_size),
        position_embedding: embeddingSpec(
          config.max_position_embeddings,
          config.hidden_size,
        ),
      },
      encoder: {
        layers: Array.from(
          { length: config.num_hidden_layers },
          () =>
            clipLayerSpec(
              config.hidden_size,
              config.intermediate_size,
              config.num_hidden_layers,
            ),
        ),
      },
      final_layer_norm: normSpec(config.hidden_size),
    },
  } as unknown as Spec<TextEncoder>;
}

/**
 * A CLIP encoder layer forward (pre-norm).
 *
 * @param p Parameters.
 * @param x [b, n, width].
 * @param options Heads, activation, layer norm's ε, causal or not.
 * @param context Observers.
 * @returns [b, n, width].
 */
export function clipLayer(
  p: ClipLayer,
  x: tf.Tensor3D,
  options: {
    readonly heads: number;
    readonly act: string;
    readonly eps: number;
    readonly causal: boolean;
  },
  context?: Context,
): tf.Tensor3D {
  const { heads, act, eps, causal } = options;
  const normed = layerNorm(p.layer_norm1, x, eps);
  const hidden = attention(
    linear(p.self_attn.q_proj, normed, context),
    linear(p.self_attn.k_proj, normed, context),
    linear(p.self_attn.v_proj, normed, context),
    heads,
    { causal },
  );
  const h = x.add(linear(p.self_attn.out_proj, hidden, context));
  const inner = activate(
    act,
    linear(p.mlp.fc1, layerNorm(p.layer_norm2, h, eps), context),
  );
  return h.add(linear(p.mlp.fc2, inner, context)) as tf.Tensor3D;
}

/** What a text encoder forward lets its caller add or observe. */
export interface TextEncoderOptions extends Context {
  /**
   * Vectors of added tokens [n, width]: id `vocab_size + i` is row i. They
   * stand beside the table so that they alone can be trained.
   */
  readonly added?: tf.Tensor2D;
  /**
   * Skips the last n layers and applies the final norm there (A1111's "clip
   * skip" minus one).
   *
   * @default 0
   */
  readonly skipLast?: number;
  /**
   * For gradients, keeps the inputs of layers only and computes the rest again.
   *
   * @default false
   */
  readonly recompute?: boolean;
}

/** Outputs of a text encoder. */
export interface TextStates {
  /** After the final norm [b, n, width]: what the UNet attends to. */
  readonly last: tf.Tensor3D;
  /** After the embedding and after each layer, before the final norm. */
  readonly hidden: readonly tf.Tensor3D[];
}

/**
 * A CLIP text encoder forward.
 *
 * @param p Parameters.
 * @param config Config.
 * @param ids Token ids [b][n], n ≤ `max_position_embeddings`.
 * @param options Added tokens, clip skip, observers.
 * @returns States before and after the final norm.
 * @throws If an id is out of range or a row has another length.
 */
export function textEncoder(
  p: TextEncoder,
  config: TextEncoderConfig,
  ids: readonly (readonly number[])[],
  options: TextEncoderOptions = {},
): TextStates {
  const width = config.hidden_size;
  const tokens = ids[0]?.length ?? 0;
  const vocabulary = p.text_model.embeddings.token_embedding.weight.shape[0];
  const limit = vocabulary + (options.added?.shape[0] ?? 0);
  if (tokens < 1 || tokens > config.max_position_embeddings) {
    throw cannot(
      "encode a text",
      `1 to ${config.max_position_embeddings} tokens`,
      tokens,
    );
  }
  for (const row of ids) {
    if (row.length !== tokens) {
      throw cannot("encode a text", `rows of ${tokens} tokens`, row.length);
    }
    for (const id of row) {
      if (!(Number.isInteger(id) && id >= 0 && id < limit)) {
        throw cannot("encode a text", `token ids below ${limit}`, id);
      }
    }
  }
  const flat = ids.flat();
  const base = lookup(
    p.text_model.embeddings.token_embedding.weight,
    flat.map((id) => id < vocabulary ? id : 0),
  );
  let embedded = base;
  if (options.added && flat.some((id) => id >= vocabulary)) {
    const isAdded = tf.tensor2d(
      flat.map((id) => id >= vocabulary ? 1 : 0),
      [flat.length, 1],
    );
    const extra = lookup(
      options.added,
      flat.map((id) => id >= vocabulary ? id - vocabulary : 0),
    );
    embedded = base.mul(tf.sub(1, isAdded)).add(extra.mul(isAdded));
  }
  const positions = tf.slice(
    p.text_model.embeddings.position_embedding.weight,
    [0, 0],
    [tokens, width],
  );
  let h = embedded.reshape([ids.length, tokens, width]).add(
    positions,
  ) as tf.Tensor3D;
  const hidden = [h];
  const layers = p.text_model.encoder.layers;
  const used = layers.length - (options.skipLast ?? 0);
  if (!(Number.isInteger(used) && used >= 0 && used <= layers.length)) {
    throw cannot(
      "skip text layers",
      `0 to ${layers.length} of them`,
      options.skipLast,
    );
  }
  for (const layer of layers.slice(0, used)) {
    const run = ({ layer, h }: { layer: ClipLayer; h: tf.Tensor3D }) =>
      clipLayer(layer, h, {
        heads: config.num_attention_heads,
        act: config.hidden_act,
        eps: config.layer_norm_eps,
        causal: true,
      }, options);
    const { recompute, tap, gate } = options;
    h = recompute && !tap && !gate
      ? checkpointed(run, { layer, h })
      : run({ layer, h });
    hidden.push(h);
  }
  return {
    last: layerNorm(p.text_model.final_layer_norm, h, config.layer_norm_eps),
    hidden,
  };
}

/**
 * Position of the pooled token of each row: the first highest id, as CLIP does
 * where the end token has the highest id of the vocabulary. Ids of added tokens
 * do not count.
 *
 * @param ids Token ids [b][n].
 * @param vocabulary Size of the base vocabulary.
 */
function endPositions(
  ids: readonly (readonly number[])[],
  vocabulary: number,
): number[] {
  return ids.map((row) => {
    let best = -1;
    row.forEach((id, i) => {
      if (id < vocabulary && (best < 0 || id > row[best])) best = i;
    });
    return best;
  });
}

/**
 * Position of the pooled token of each row, as transformers finds it: the first
 * end token where the config names one, else (`eos_token_id` 2, which every
 * config of Stable Diffusion 1.x says wrongly) the first highest id.
 *
 * @param config The config.
 * @param ids Token ids [b][n].
 */
export function pooledPositions(
  config: Pick<TextEncoderConfig, "eos_token_id" | "vocab_size">,
  ids: readonly (readonly number[])[],
): number[] {
  const highest = endPositions(ids, config.vocab_size);
  if (config.eos_token_id === 2) return highest;
  return ids.map((row, i) => {
    const end = row.indexOf(config.eos_token_id);
    return end < 0 ? highest[i] : end;
  });
}

/**
 * Picks one row per sample.
 *
 * @param x [b, n, c].
 * @param positions One per sample.
 * @returns [b, c].
 */
export function pickRows(
  x: tf.Tensor3D,
  positions: readonly number[],
): tf.Tensor2D {
  const [b, n, c] = x.shape;
  // A product with a constant mask: tf.gather has no gradient on wasm.
  const mask = new Float32Array(b * n);
  positions.forEach((position, i) => mask[i * n + position] = 1);
  return x.mul(tf.tensor3d(mask, [b, n, 1])).sum(1).reshape([b, c]);
}
