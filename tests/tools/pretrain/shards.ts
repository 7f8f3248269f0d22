import * as tf from "@tensorflow/tfjs";
import type { Autoencoder } from "../../../src/models/autoencoder.ts";
import type { Clip } from "../../../src/models/image_encoder.ts";
import type { TextEncoder } from "../../../src/models/text_encoder.ts";
import type { T2IAdapter } from "../../../src/models/t2i_adapter.ts";
import { type UNet, unetSpec } from "../../../src/models/unet.ts";
import { autoencoderSpec, encode } from "../../../src/models/autoencoder.ts";
import { disposeTree } from "../../../src/core/tree.ts";
import { matrixParts, orthogonaliseInPlace } from "./muon.ts";
import { loadArt } from "../../../src/micro/art.ts";
import { loadConceptArt } from "../../../src/micro/concepts.ts";
import {
  type ConceptPrompts,
  loadPrompts,
  promptText,
} from "../../../src/micro/prompts.ts";
import { renderScene, trainScene } from "../../../src/micro/scenes.ts";
import { WORLD } from "../../../src/micro/world.ts";
import { type NetworkName, UNET_CONFIG, VAE_CONFIG } from "./recipe.ts";
import {
  adapterShard,
  clipBackward,
  clipEmbed,
  type EmbeddedShard,
  type Embeddings,
  layoutOf,
  type Materials,
  networkLayout,
  networkSpec,
  pixels,
  type Shard,
  type ShardResult,
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
export type ShardAnswer =
  | ShardResult
  | EmbeddedShard
  | null;

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
export interface ShardServer {
  readonly ready: Promise<void>;
  run(request: ShardRequest): Promise<ShardAnswer>;
}

/**
 * Makes a shard server; the same code runs in a worker and in place.
 *
 * @param init Its data.
 */
export function createShardServer(init: ServerInit): ShardServer {
  const layout = networkLayout(init.name);
  const spec = networkSpec(init.name);
  let materials: Materials;
  const start = async () => {
    materials = {
      art: await loadArt(),
      frames: await loadConceptArt(),
      exclude: classTexts(await loadPrompts()),
      waiting: new Map(),
      latents: init.latents,
      text: init.text && unflatten<TextEncoder>(
        TEXT_SPEC,
        layoutOf(TEXT_SPEC),
        init.text,
      ),
      autoencoder: init.autoencoder && unflatten<Autoencoder>(
        autoencoderSpec(VAE_CONFIG),
        networkLayout("vae"),
        init.autoencoder,
      ),
      unet: init.unet && unflatten<UNet>(
        unetSpec(UNET_CONFIG),
        networkLayout("unet"),
        init.unet,
      ),
    };
  };
  const ready = start();
  return {
    ready,
    async run(request) {
      await ready;
      if (request.kind === "orthogonalise") {
        const { part, parts, updates } = request;
        await orthogonaliseInPlace(updates, matrixParts(layout, parts)[part]);
        return null;
      }
      const params = unflatten(spec, layout, init.params);
      try {
        switch (request.kind) {
          case "gradient":
            return await gradient(
              init.name,
              params,
              request.shard,
              materials,
              request.into,
            );
          case "embed":
            return await clipEmbed(
              init.name,
              params as Clip,
              request.shard,
              materials,
            );
          case "backward":
            return await clipBackward(
              init.name,
              params as Clip,
              request.shard,
              materials,
              request.by,
              request.into,
            );
          case "encode":
            await encodeScenes(params as Autoencoder, request, materials);
            return null;
        }
      } finally {
        disposeTree(params);
      }
    },
  };
}

/** The gradient of one shard of any network but the CLIPs. */
function gradient(
  name: NetworkName,
  params: unknown,
  ...rest: [Shard, Materials, into: Float32Array]
): Promise<ShardResult> {
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
  materials: Materials,
): Promise<void> {
  for (let from = request.from; from < request.to; from += 32) {
    const to = Math.min(request.to, from + 32);
    const images = Array.from(
      { length: to - from },
      (_, i) =>
        renderScene(
          trainScene(from + i, WORLD, {}, materials.art),
          materials.art,
        ),
    );
    const mean = tf.tidy(() =>
      encode(params, VAE_CONFIG, pixels(images, WORLD.side)).mean
    );
    const values = await mean.data() as Float32Array;
    request.latents.set(values, from * (values.length / images.length));
    mean.dispose();
  }
}
