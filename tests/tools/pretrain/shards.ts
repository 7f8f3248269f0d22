import * as tf from "@tensorflow/tfjs";
import type { TextEncoder } from "../../../src/models/text_encoder.ts";
import type { T2IAdapter } from "../../../src/models/t2i_adapter.ts";
import { type UNet, unetSpec } from "../../../src/models/unet.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  encode,
} from "../../../src/models/autoencoder.ts";
import { disposeTree } from "../../../src/core/tree.ts";
import { type Art, loadArt } from "../../../src/micro/art.ts";
import { loadConceptArt } from "../../../src/micro/concepts.ts";
import {
  type ConceptPrompts,
  loadPrompts,
  promptText,
} from "../../../src/micro/prompts.ts";
import { matrixParts, orthogonaliseInPlace } from "./muon.ts";
import { type NetworkName, UNET_CONFIG, VAE_CONFIG } from "./recipe.ts";
import {
  adapterShard,
  clipBackward,
  clipEmbed,
  type EmbeddedShard,
  type Embeddings,
  type Losses,
  type Materials,
  networkLayout,
  networkSpec,
  pixels,
  sceneImage,
  type Shard,
  TEXT_SPEC,
  unetShard,
  unflatten,
  vaeShard,
} from "./tasks.ts";

/** What a shard server is started with: plain data, shared where it is large. */
export interface ServerInit {
  readonly name: NetworkName;
  /** Current parameters, shared with the host, read before every request. */
  readonly params: Float32Array;
  /** Cached latents, shared. */
  readonly latents?: Float32Array;
  /** CLIP A's text tower, flat. */
  readonly text?: Float32Array;
  /** The autoencoder, flat. */
  readonly autoencoder?: Float32Array;
  /** The UNet, flat, for its adapter. */
  readonly unet?: Float32Array;
}

/** One piece of work. */
export type ShardRequest =
  | {
    readonly kind: "gradient";
    readonly shard: Shard;
    /** Where the gradient of the shard's mean loss is written; shared. */
    readonly into: Float32Array;
  }
  | { readonly kind: "embed"; readonly shard: Shard }
  | {
    readonly kind: "backward";
    readonly shard: Shard;
    readonly by: Embeddings;
    /** Where the gradient is written; shared. */
    readonly into: Float32Array;
  }
  | {
    readonly kind: "encode";
    /** Scenes [from, to) to encode with the parameters as autoencoder. */
    readonly from: number;
    readonly to: number;
    /** Where they are written; shared. */
    readonly latents: Float32Array;
  }
  | {
    readonly kind: "orthogonalise";
    /** Which part of the matrices, of how many. */
    readonly part: number;
    readonly parts: number;
    /** Updates, laid out as the parameters; shared, changed in place. */
    readonly updates: Float32Array;
  };

/** What a request gives. */
export type ShardAnswer = Losses | EmbeddedShard | null;

/**
 * Every prompt with its class word: what no training caption may be; pass it
 * to `captionScene` as `exclude`.
 *
 * @param prompts From {@linkcode loadPrompts}.
 */
export function classTexts(
  prompts: readonly ConceptPrompts[],
): Set<string> {
  return new Set(
    prompts.flatMap((entry) =>
      entry.prompts.map((prompt) => promptText(prompt, entry.class))
    ),
  );
}

/** Answers shard requests of one network. */
export type ShardServer = (request: ShardRequest) => Promise<ShardAnswer>;

/**
 * Starts a shard server; the same code runs in a worker and in place.
 *
 * @param init Its data.
 */
export async function startShardServer(
  { name, params: flat, latents, ...init }: ServerInit,
): Promise<ShardServer> {
  const materials: Materials = {
    art: await loadArt(),
    frames: await loadConceptArt(),
    exclude: classTexts(await loadPrompts()),
    waiting: new Map(),
    latents,
    text: init.text && unflatten<TextEncoder>(TEXT_SPEC, init.text),
    autoencoder: init.autoencoder &&
      unflatten<Autoencoder>(autoencoderSpec(VAE_CONFIG), init.autoencoder),
    unet: init.unet && unflatten<UNet>(unetSpec(UNET_CONFIG), init.unet),
  };
  return async (request) => {
    if (request.kind === "orthogonalise") {
      const groups = matrixParts(networkLayout(name), request.parts);
      await orthogonaliseInPlace(request.updates, groups[request.part]);
      return null;
    }
    const params = unflatten(networkSpec(name), flat);
    try {
      switch (request.kind) {
        case "gradient":
          return await gradient(
            name,
            params,
            request.shard,
            materials,
            request.into,
          );
        case "embed":
          return await clipEmbed(name, params, request.shard, materials);
        case "backward":
          await clipBackward(
            name,
            params,
            request.shard,
            materials,
            request.by,
            request.into,
          );
          return null;
        case "encode":
          await encodeScenes(params, request, materials.art);
          return null;
      }
    } finally {
      disposeTree(params);
    }
  };
}

/** The gradient of one shard of any network but the CLIPs. */
function gradient(
  name: NetworkName,
  params: unknown,
  ...rest: [Shard, Materials, into: Float32Array]
): Promise<Losses> {
  switch (name) {
    case "vae":
      return vaeShard(params as Autoencoder, ...rest);
    case "adapter":
      return adapterShard(params as T2IAdapter, ...rest);
    default:
      return unetShard(params as UNet, ...rest);
  }
}

/** Encodes training scenes to the means of their latents, 32 at a time. */
async function encodeScenes(
  params: Autoencoder,
  request: { from: number; to: number; latents: Float32Array },
  art: Art,
): Promise<void> {
  for (let from = request.from; from < request.to; from += 32) {
    const to = Math.min(request.to, from + 32);
    const images = Array.from(
      { length: to - from },
      (_, i) => sceneImage(from + i, art),
    );
    const mean = tf.tidy(() => encode(params, VAE_CONFIG, pixels(images)).mean);
    const values = await mean.data() as Float32Array;
    request.latents.set(values, from * (values.length / images.length));
    mean.dispose();
  }
}
