/**
 * Several adapters in one picture without fusing them, each inside its own region.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { LowRank } from "../nn/linear.ts";
import type { Model } from "../models/model.ts";
import { levelSizes, type UNetOptions } from "../models/unet.ts";
import type { PipelineOptions, UNetCall } from "../diffusion/pipeline.ts";
import {
  isWithin,
  type RegionalOptions,
  regionalSampling,
  type RegionPrompt,
  type RegionScope,
  shapeMap,
  shareOut,
} from "../diffusion/regions.ts";
import { at } from "../core/tree.ts";
import { addTokens, type Concept, releaseTokens } from "./concept.ts";
import { attach, type AttachOptions, sites } from "./lora.ts";
import { blockOf } from "./sites.ts";

/** A region and the concepts that act in it. */
export interface AdapterRegion extends Omit<RegionPrompt, "text"> {
  /** Their adapters are active inside this region only. */
  readonly concepts: readonly Concept[];
}

/** Settings of {@linkcode regionAdapters}. */
export interface RegionAdapterOptions
  extends Omit<RegionalOptions, "scope">, AttachOptions {}

/** Adapters ready for sampling; owns tensors. */
export interface AdapterSampling {
  /** The model to sample from: tokens of all concepts are in it. */
  readonly model: Model;
  /** Options for the pipeline, together with the prompts. */
  readonly pipeline: {
    readonly unet?: (call: UNetCall) => UNetOptions;
    readonly denoise?: NonNullable<PipelineOptions["denoise"]>;
    readonly adjust?: NonNullable<PipelineOptions["adjust"]>;
  };
  /** Disposes what was made; the concepts stay the caller's. */
  dispose(): void;
}

/**
 * Adapters per region, without fusion: a LoRA changes the UNet only at its
 * region's pixels, and the text encoder only for its region's prompt.
 *
 * Adapters act in the same steps and with the same weight as the regions'
 * prompts (`start`, `end`, `replaceRatio`), also where regions overlap. Layers
 * without positions (time embeddings) stay those of the base model. The prompt
 * outside of regions is encoded without any LoRA.
 *
 * @param base The model without the concepts; not changed.
 * @param regions Places, prompts and concepts.
 * @param options α and weights of the adapters; steps, strength and soft edges
 * of the regions.
 * @returns A model and pipeline options; dispose them afterwards.
 * @throws If a concept does not fit, or a place or option is not valid.
 *
 * @example
 * ```ts
 * const sampling = regionAdapters(model, [
 *   { shape: { box: left }, prompt: "a <fox1> <fox2>", concepts: [fox] },
 *   { shape: { box: right }, prompt: "a <owl1> <owl2>", concepts: [owl] },
 * ]);
 * const [picture] = await generate(sampling.model, {
 *   prompts: ["two animals on grass"],
 *   ...sampling.pipeline,
 * });
 * sampling.dispose();
 * ```
 */
export function regionAdapters(
  base: Model,
  regions: readonly AdapterRegion[],
  options: RegionAdapterOptions = {},
): AdapterSampling {
  const { alpha, weights, ...regional } = options;
  const strength: AttachOptions = {
    ...(alpha === undefined ? {} : { alpha }),
    ...(weights === undefined ? {} : { weights }),
  };
  const concepts = [...new Set(regions.flatMap((r) => r.concepts))];
  const named = addTokens(base, concepts);
  try {
    const model: Model = {
      ...named,
      unet: withAdapters(base, concepts, strength).unet,
    };
    let active: number | undefined;
    const scope: RegionScope = (region, run) => {
      active = region;
      try {
        return run();
      } finally {
        active = undefined;
      }
    };
    const sampling = regionalSampling(
      model,
      regions.map(({ concepts: own, ...region }) => ({
        ...region,
        text: {
          ...named,
          textEncoder: withAdapters(base, own, onlyOf(own, strength))
            .textEncoder,
        },
      })),
      { ...regional, scope },
    );
    const gate = regionGate(model, regions, regional, () => active);
    return {
      model,
      pipeline: {
        unet: (call) => ({
          ...sampling.unet(call),
          gate: gate.at(call),
        }),
      },
      dispose() {
        sampling.dispose();
        gate.dispose();
        releaseTokens(named, base);
      },
    };
  } catch (error) {
    releaseTokens(named, base);
    throw error;
  }
}

/**
 * The base with the adapters of concepts; concepts without layers are skipped.
 *
 * @param base The model; not changed.
 * @param concepts The concepts.
 * @param options α and weights.
 * @throws If a concept has fully fine-tuned networks.
 */
export function withAdapters(
  base: Model,
  concepts: readonly Concept[],
  options: AttachOptions,
): Model {
  const tuned = concepts.find(({ weights }) => weights);
  if (tuned) {
    throw cannot("compose adapters", "adapters", `"${tuned.name}", fine-tuned`);
  }
  return attach(
    base,
    concepts.map(({ adapter }) => adapter).filter((a) =>
      a.textEncoder.size + a.unet.size > 0
    ),
    options,
  );
}

/**
 * Weights by name, of these concepts only: attach refuses others.
 *
 * @param concepts The concepts.
 * @param options Weights by adapter name, also of others.
 */
export function onlyOf(
  concepts: readonly Concept[],
  options: AttachOptions,
): AttachOptions {
  const { weights } = options;
  if (!weights || typeof weights === "function") return options;
  const names = new Set(concepts.map(({ adapter }) => adapter.name));
  return {
    ...options,
    weights: Object.fromEntries(
      Object.entries(weights).filter(([name]) => names.has(name)),
    ),
  };
}

/** Where an adapter leaf acts. */
type Reach =
  | { readonly kind: "pixels"; readonly level: number }
  | { readonly kind: "text" }
  | { readonly kind: "nowhere" };

/** The input of a layer of the UNet, by its path. */
function reachOf(path: string, levels: number): Reach {
  if (/(^|\.)time_emb/.test(path)) return { kind: "nowhere" };
  if (/\.attn2\.to_[kv]$/.test(path)) return { kind: "text" };
  return { kind: "pixels", level: blockOf(path, levels)?.level ?? 0 };
}

/** A gate that restricts every adapter to its regions; owns tensors. */
function regionGate(
  model: Model,
  regions: readonly AdapterRegion[],
  options: RegionalOptions,
  active: () => number | undefined,
): {
  at(call: UNetCall): NonNullable<UNetOptions["gate"]>;
  dispose(): void;
} {
  const { config, params } = model.unet;
  const { replaceRatio = 1 } = options;
  const levels = config.block_out_channels.length;
  const reach = new Map<LowRank, Reach>();
  for (const { path } of sites(params)) {
    for (const low of at(params, path).low ?? []) {
      reach.set(low, reachOf(path, levels));
    }
  }
  const members = (name: string): number[] =>
    regions.flatMap(({ concepts }, i) =>
      concepts.some(({ adapter }) => adapter.name === name) ? [i] : []
    );
  const masks = new Map<string, tf.Tensor4D>();
  const mask = (name: string, height: number, width: number): tf.Tensor4D => {
    const id = `${height}x${width} ${name}`;
    const known = masks.get(id);
    if (known) return known;
    const shares = shareOut(
      regions.map(({ shape }) => shapeMap(shape, height, width, options)),
      regions.map(({ priority = 0 }) => priority),
    );
    const sum = new Float32Array(height * width);
    for (const i of members(name)) {
      shares[i].forEach((v, k) => sum[k] += v * replaceRatio);
    }
    const made = tf.keep(tf.tensor4d(sum, [1, height, width, 1]));
    masks.set(id, made);
    return made;
  };
  return {
    at(call) {
      const [, height, width] = call.sample.shape;
      const sizes = levelSizes(config, height, width);
      const on = isWithin(call, options);
      return (low, contribution) => {
        const name = low.adapter ?? "";
        const own = members(name);
        const where = reach.get(low);
        // An adapter of no region (merged into the base by someone else).
        if (own.length === 0 || !where) return contribution;
        if (!on || where.kind === "nowhere") return tf.zerosLike(contribution);
        if (where.kind === "text") {
          const region = active();
          return region !== undefined && own.includes(region)
            ? contribution
            : tf.zerosLike(contribution);
        }
        if (contribution.rank === 4) {
          const [, h, w] = contribution.shape as [number, number, number];
          return contribution.mul(mask(name, h, w));
        }
        const [h, w] = sizes[where.level];
        const channels = contribution.shape[contribution.rank - 1]!;
        return contribution.reshape([-1, h, w, channels])
          .mul(mask(name, h, w)).reshape(contribution.shape);
      };
    },
    dispose() {
      tf.dispose([...masks.values()]);
    },
  };
}
