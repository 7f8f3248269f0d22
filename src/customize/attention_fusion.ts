/**
 * Several adapters in one picture, each inside a mask that is found by
 * attention, without given regions: FreeFuse (Liu et al. 2025, arXiv
 * 2510.23515).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { at } from "../core/tree.ts";
import type { UNetCall } from "../diffusion/pipeline.ts";
import { bindPrompt, type Model } from "../models/model.ts";
import { levelSizes, type UNetOptions } from "../models/unet.ts";
import type { LowRank } from "../nn/linear.ts";
import { attachConcept, type Concept, releaseTokens } from "./concept.ts";
import type { AttachOptions } from "./lora.ts";
import { tokenMap } from "./losses.ts";
import type { AdapterSampling } from "./region_adapters.ts";
import { blockOf, sites } from "./sites.ts";

/** Settings of {@linkcode freeFuse}. */
export interface FreeFuseOptions extends AttachOptions {
  /** The prompt of all pictures, with the tokens of all concepts. */
  readonly prompt: string;
  /**
   * Number of first model calls in which all adapters act everywhere and the
   * attention on their words is recorded. The masks for the other calls are
   * made from it.
   *
   * @default 5
   */
  readonly warmup?: number;
  /**
   * A pixel belongs to no concept, and no adapter acts there, if its attention,
   * relative to the largest of the concept, is below this.
   *
   * @default 0.5
   */
  readonly threshold?: number;
}

/** Recorded attention of one batch, and the masks made from it. */
interface Watched {
  /** Sum over layers and calls [count, h, w, concepts]. */
  sum: tf.Tensor4D;
  masks?: tf.Tensor4D;
}

/**
 * The masks of concepts. Attention is divided by each concept's maximum; a
 * pixel belongs to the concept with the largest value there, if that is at
 * least the threshold.
 *
 * @param attention [count, h, w, concepts], not negative.
 * @param threshold From 0 to 1.
 * @returns The same shape, 0 or 1; at most one concept per pixel.
 */
export function attentionMasks(
  attention: tf.Tensor4D,
  threshold: number,
): tf.Tensor4D {
  return tf.tidy(() => {
    const [, , , concepts] = attention.shape;
    const largest = tf.max(attention, [1, 2], true);
    const share = attention.div(tf.maximum(largest, 1e-12)) as tf.Tensor4D;
    const winner = tf.equal(
      tf.argMax(share, 3).expandDims(3).cast("int32"),
      tf.range(0, concepts, 1, "int32").reshape([1, 1, 1, concepts]),
    );
    return winner.cast("float32").mul(
      share.greaterEqual(threshold).cast("float32"),
    ) as tf.Tensor4D;
  });
}

/**
 * FreeFuse: masks of the concepts are found in the cross-attention of the first
 * steps; after these each adapter acts inside its own mask only. In keys and
 * values, an adapter acts fully at its own words, not at the words of another,
 * and with weight 1/n at all other tokens.
 *
 * The article masks the joint attention of DiTs. Here the spatial layers of a
 * UNet are masked instead, and all text encoder adapters act.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts, all named in the prompt.
 * @param options The prompt, warm-up and threshold.
 * @returns A model and pipeline options; dispose them afterwards.
 * @throws If there is no concept, one is not in the prompt or does not fit, or an
 * option is out of bounds.
 *
 * @example
 * ```ts
 * const prompt = "<fox1> <fox2> and <owl1> <owl2>";
 * const sampling = freeFuse(model, [fox, owl], { prompt });
 * const [picture] = await generate(sampling.model, {
 *   prompts: [prompt],
 *   ...sampling.pipeline,
 * });
 * sampling.dispose();
 * ```
 */
export function freeFuse(
  base: Model,
  concepts: readonly Concept[],
  options: FreeFuseOptions,
): AdapterSampling {
  const { prompt, warmup = 5, threshold = 0.5, ...strength } = options;
  const what = "fuse adapters by attention";
  if (concepts.length === 0) throw cannot(what, "at least one concept", 0);
  if (!(Number.isInteger(warmup) && warmup >= 1)) {
    throw cannot(what, "a warm-up of at least 1 call", warmup);
  }
  if (!(threshold >= 0 && threshold <= 1)) {
    throw cannot(what, "a threshold from 0 to 1", threshold);
  }
  const tuned = concepts.find(({ weights }) => weights);
  if (tuned) throw cannot(what, "adapters", `"${tuned.name}", fine-tuned`);
  const model = attachConcept(base, concepts, strength);
  try {
    const places = concepts.map((one) => wordsIn(model, one, prompt));
    const nameless = places.findIndex((own) => own.length === 0);
    if (nameless >= 0) {
      const { phrase } = concepts[nameless];
      throw cannot(what, `${phrase} in the prompt`, `"${prompt}"`);
    }
    const names = concepts.map(({ adapter }) => adapter.name);
    const reach = reachOf(model);
    const watched = new Map<number, Watched>();
    const text = textMask(model, places);
    return {
      model,
      pipeline: {
        unet: (call) => ({
          gate: gateOf(model, call, names, reach, text, () => {
            const own = watched.get(call.first);
            if (!own || call.index < warmup) return undefined;
            return own.masks ??= tf.keep(attentionMasks(own.sum, threshold));
          }),
          ...(call.index < warmup &&
            { crossAttend: watch(call, places, watched) }),
        }),
      },
      dispose() {
        text.dispose();
        for (const { sum, masks } of watched.values()) {
          tf.dispose([sum, ...masks ? [masks] : []]);
        }
        releaseTokens(model, base);
      },
    };
  } catch (error) {
    releaseTokens(model, base);
    throw error;
  }
}

/**
 * Positions of a concept's learned tokens in a prompt.
 *
 * @param model A model that has them.
 * @param concept The concept.
 * @param prompt The prompt.
 */
export function wordsIn(
  model: Model,
  { tokens }: Pick<Concept, "tokens">,
  prompt: string,
): number[] {
  const first = model.tokenizer.vocabSize - model.added!.names.length;
  const own = new Set(
    tokens.flatMap(({ token }) => model.added!.sites[token])
      .map((entry) => first + entry),
  );
  const { rows: [ids] } = bindPrompt(model, prompt);
  return ids.flatMap((id, i) => own.has(id) ? [i] : []);
}

/** The input of each adapter's layer: the text, or pixels of a level. */
function reachOf(model: Model): Map<LowRank, "text" | "nowhere" | number> {
  const { params, config } = model.unet;
  const levels = config.block_out_channels.length;
  const reach = new Map<LowRank, "text" | "nowhere" | number>();
  for (const { path } of sites(params)) {
    const where = /(^|\.)time_emb/.test(path)
      ? "nowhere"
      : /\.attn2\.to_[kv]$/.test(path)
      ? "text"
      : blockOf(path, levels)?.level ?? 0;
    for (const low of at(params, path).low ?? []) reach.set(low, where);
  }
  return reach;
}

/** The weight of each adapter at each token [concepts, tokens]; kept. */
function textMask(
  { tokenizer: { modelMaxLength: tokens } }: Model,
  places: readonly (readonly number[])[],
): tf.Tensor2D {
  const n = places.length;
  const values = new Float32Array(n * tokens).fill(1 / n);
  places.forEach((own, i) => {
    for (const position of own) {
      for (let k = 0; k < n; k++) values[k * tokens + position] = +(k === i);
    }
  });
  return tf.keep(tf.tensor2d(values, [n, tokens]));
}

/**
 * Attention of the rows with the positive prompt: the second half if there are
 * two branches.
 *
 * @param probabilities [rows, heads, places, tokens].
 * @param count Pictures.
 * @returns [count, heads, places, tokens].
 */
export function ofPrompt(
  probabilities: tf.Tensor4D,
  count: number,
): tf.Tensor4D {
  const from = probabilities.shape[0] - count;
  return tf.slice(probabilities, [from, 0, 0, 0], [count, -1, -1, -1]);
}

/** Adds up the attention on each concept's words, at the size of the latents. */
function watch(
  { first, count, sample }: UNetCall,
  places: readonly (readonly number[])[],
  watched: Map<number, Watched>,
): NonNullable<UNetOptions["crossAttend"]> {
  const [, height, width] = sample.shape;
  return (layer) => ({
    probabilities(p) {
      const sum = tf.tidy(() => {
        const own = ofPrompt(p, count);
        const maps = places.map((positions) => {
          const map = tokenMap(
            own,
            Array.from({ length: count }, () => positions),
          );
          return tf.mean(map, 2, true)
            .reshape([count, layer.height, layer.width, 1]) as tf.Tensor4D;
        });
        const all = tf.image.resizeBilinear(
          tf.concat(maps, 3) as tf.Tensor4D,
          [height, width],
        );
        const known = watched.get(first)?.sum;
        return known ? all.add(known) as tf.Tensor4D : all;
      });
      watched.get(first)?.sum.dispose();
      watched.set(first, { sum: tf.keep(sum) });
    },
  });
}

/** Restricts each adapter to its mask, once there is one. */
function gateOf(
  model: Model,
  { sample, branch }: UNetCall,
  names: readonly string[],
  reach: ReadonlyMap<LowRank, "text" | "nowhere" | number>,
  text: tf.Tensor2D,
  masksOf: () => tf.Tensor4D | undefined,
): NonNullable<UNetOptions["gate"]> {
  const [, height, width] = sample.shape;
  const sizes = levelSizes(model.unet.config, height, width);
  const masks = masksOf();
  return (low, contribution) => {
    const i = names.indexOf(low.adapter ?? "");
    const where = reach.get(low);
    if (i < 0 || where === undefined) return contribution;
    const channels = contribution.shape.at(-1)!;
    if (where === "text") {
      const tokens = text.shape[1];
      return contribution.reshape([-1, tokens, channels])
        .mul(tf.slice(text, [i, 0], [1, -1]).reshape([1, tokens, 1]))
        .reshape(contribution.shape);
    }
    if (!masks) return contribution;
    // A layer without positions gets the mean, as tokens of no concept do.
    if (where === "nowhere") return contribution.div(names.length);
    // The output of a down- or upsampling convolution has another size than its
    // level.
    const [h, w] = contribution.rank === 4
      ? [contribution.shape[1]!, contribution.shape[2]!]
      : sizes[where];
    const own = tf.slice(masks, [0, 0, 0, i], [-1, -1, -1, 1]) as tf.Tensor4D;
    const sized = tf.image.resizeBilinear(own, [h, w]);
    const mask = branch === "both" ? tf.concat([sized, sized], 0) : sized;
    return contribution.reshape([mask.shape[0], -1, channels])
      .mul(mask.reshape([mask.shape[0], h * w, 1]))
      .reshape(contribution.shape);
  };
}
