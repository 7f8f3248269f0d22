/**
 * Several adapters in one picture, with a contrastive loss on the attention to
 * their words: CLoRA (Meral et al. 2024, arXiv 2403.19776).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { valueAndGrads } from "../core/tree.ts";
import type { UNetCall } from "../diffusion/pipeline.ts";
import { type PromptRows, promptRows } from "../diffusion/regions.ts";
import { bindPrompt, type Model } from "../models/model.ts";
import { attentionGrids, type UNetOptions } from "../models/unet.ts";
import { ofPrompt, wordsIn } from "./attention_fusion.ts";
import {
  type CompositionOptions,
  runSolo,
  type Solo,
  solos,
  withClassWords,
} from "./composition.ts";
import type { Concept } from "./concept.ts";
import { tokenMap } from "./losses.ts";
import type { AdapterSampling } from "./region_adapters.ts";

/** Settings of {@linkcode clora}. */
export interface CloraOptions extends Omit<CompositionOptions, "shares"> {
  /**
   * Number of first model calls in which the latents are optimised.
   *
   * @default half of all
   */
  readonly guided?: number;
  /**
   * Step size of the latents along the loss's gradient.
   *
   * @default 20, as Attend-and-Excite (Chefer et al. 2023)
   */
  readonly stepSize?: number;
  /** Temperature of the contrastive loss. @default 0.5 */
  readonly temperature?: number;
  /**
   * A pixel belongs to a concept if the attention on its words, relative to the
   * largest, is above this.
   *
   * @default 0.3
   */
  readonly threshold?: number;
}

/**
 * The largest number of query positions of the layers whose attention is used:
 * 16 × 16.
 */
const PLACES = 256;

/** One model, its prompt, and the positions of each concept's words in it. */
interface Reading extends Solo {
  readonly words: readonly (readonly number[])[];
}

/** The resolution of the attention that is used. */
interface Grid {
  readonly height: number;
  readonly width: number;
}

/**
 * The contrastive loss of attention maps (NT-Xent): it makes maps of the same
 * concept similar and maps of different concepts dissimilar. Each map is scaled
 * to [0, 1] first.
 *
 * @param maps [count, maps, places].
 * @param concepts The concept of each map.
 * @param temperature Of the cosines.
 * @returns Sum over pictures of the mean over pairs of the same concept.
 */
export function contrastiveLoss(
  maps: tf.Tensor3D,
  concepts: readonly number[],
  temperature: number,
): tf.Scalar {
  return tf.tidy(() => {
    const n = concepts.length;
    const pairs = (related: (a: number, b: number) => boolean) =>
      tf.tensor3d(
        concepts.flatMap((a) => concepts.map((b) => +related(a, b))),
        [1, n, n],
      );
    const same = pairs((a, b) => a === b).sub(tf.eye(n).expandDims(0));
    const other = pairs((a, b) => a !== b);
    const least = tf.min(maps, 2, true);
    const range = tf.max(maps, 2, true).sub(least);
    const scaled = maps.sub(least).div(range.add(1e-6));
    const unit = scaled.div(tf.sqrt(scaled.square().sum(2, true)).add(1e-6));
    const similar = tf.matMul(unit, unit, false, true).div(temperature);
    const power = tf.exp(similar);
    const against = power.mul(other).sum(2, true);
    const losses = tf.log(power.add(against)).sub(similar).mul(same);
    const count = concepts.reduce(
      (sum, a) => sum + concepts.filter((b) => a === b).length - 1,
      0,
    );
    return losses.sum().div(Math.max(1, count)) as tf.Scalar;
  });
}

/**
 * CLoRA: several variants of the prompt, one with class words for all concepts
 * and one per concept with its adapter. In the first steps the latents are
 * optimised so that the variants' attention on one concept's words agrees, and
 * differs from that on another's. In every step the outputs are blended by
 * masks: a concept's own output where the attention on its words is large, the
 * output for class words elsewhere.
 *
 * The article uses the attention of the 16 × 16 layers; here the layers of the
 * highest resolution up to that are used.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts, all named in the prompt.
 * @param options The prompt, the optimisation of the latents, the threshold of
 * masks.
 * @returns A model and pipeline options; dispose them afterwards.
 * @throws If there is no concept, one is not in the prompt or does not fit, or an
 * option is out of bounds.
 *
 * @example
 * ```ts
 * const prompt = "<fox1> <fox2> and <owl1> <owl2>";
 * const sampling = clora(model, [fox, owl], { prompt });
 * const [picture] = await generate(sampling.model, {
 *   prompts: [prompt],
 *   ...sampling.pipeline,
 * });
 * sampling.dispose();
 * ```
 */
export function clora(
  base: Model,
  concepts: readonly Concept[],
  options: CloraOptions,
): AdapterSampling {
  const { prompt, guided, stepSize = 20, temperature = 0.5, threshold = 0.3 } =
    options;
  const what = "compose adapters by contrast";
  if (concepts.length === 0) throw cannot(what, "at least one concept", 0);
  if (!(guided === undefined || (Number.isInteger(guided) && guided >= 0))) {
    throw cannot(what, "a whole number of guided calls", guided);
  }
  if (!(stepSize >= 0 && Number.isFinite(stepSize))) {
    throw cannot(what, "a step size of at least 0", stepSize);
  }
  if (!(temperature > 0 && Number.isFinite(temperature))) {
    throw cannot(what, "a temperature above 0", temperature);
  }
  if (!(threshold >= 0 && threshold < 1)) {
    throw cannot(what, "a threshold from 0 to below 1", threshold);
  }
  const missing = concepts.find(({ phrase }) =>
    phrase === "" || !prompt.includes(phrase)
  );
  if (missing) throw cannot(what, `${missing.phrase} in the prompt`, prompt);
  const promptOf = (concept?: Concept) =>
    withClassWords(prompt, concepts.filter((one) => one !== concept));
  const { named, all, dispose: disposeSolos } = solos(
    base,
    concepts,
    options,
    promptOf,
  );
  let classes: PromptRows | undefined;
  const dispose = () => {
    classes?.dispose();
    disposeSolos();
  };
  try {
    const { negative = "", skipLast, syntax } = options;
    classes = promptRows(named, promptOf(), negative, { skipLast, syntax });
    const wordsOf = (model: Model, own?: Concept) =>
      concepts.map((one) =>
        one === own ? wordsIn(model, one, promptOf(own)) : classWordsIn(
          model,
          one,
          prompt,
          concepts.filter((other) => other !== one && other !== own),
        )
      );
    const readings: Reading[] = [
      { model: named, rows: classes, words: wordsOf(named) },
      ...all.map((solo, i) => ({
        ...solo,
        words: wordsOf(solo.model, concepts[i]),
      })),
    ];
    return {
      model: named,
      pipeline: {
        adjust(latent, call) {
          const end = guided ?? Math.ceil(call.total / 2);
          if (call.index >= end || stepSize === 0) return latent;
          return towardsContrast(readings, latent, call, stepSize, temperature);
        },
        denoise: (_, call) => blended(readings, call, threshold),
      },
      dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}

/**
 * Positions of a concept's class word where a prompt that calls others by their
 * class has it in place of the concept: two concepts may share the word.
 */
function classWordsIn(
  model: Model,
  { phrase, classWord }: Concept,
  prompt: string,
  others: readonly Concept[],
): number[] {
  const { eosId } = model.tokenizer;
  const length = model.tokenizer.tokenize(classWord).length;
  const parts = prompt.split(phrase);
  return parts.slice(1).flatMap((_, i) => {
    const before = parts.slice(0, i + 1).join(classWord);
    const { rows: [ids] } = bindPrompt(model, withClassWords(before, others));
    const start = ids.indexOf(eosId);
    // A prompt of the tokenizer's length has been cut.
    return start + length < ids.length
      ? Array.from({ length }, (_, k) => start + k)
      : [];
  });
}

/**
 * The highest resolution of at most {@linkcode PLACES} positions, or the lowest
 * there is.
 */
function gridOf({ unet: { config } }: Model, latent: tf.Tensor4D): Grid {
  const [, height, width] = latent.shape;
  const grids = attentionGrids(config, { height, width })
    .sort((a, b) => b.height * b.width - a.height * a.width);
  return grids.find((grid) => grid.height * grid.width <= PLACES) ??
    grids[grids.length - 1];
}

/** Adds up attention on words, [count, places, words], in layers of one grid. */
function watch(
  grid: Grid,
  positions: readonly number[],
  count: number,
): { options: UNetOptions; sum(): tf.Tensor3D } {
  let sum: tf.Tensor3D | undefined;
  const at = Array.from({ length: count }, () => positions);
  const probabilities = (p: tf.Tensor4D) => {
    const map = tokenMap(ofPrompt(p, count), at);
    sum = sum ? sum.add(map) : map;
  };
  return {
    options: {
      crossAttend: ({ height, width }) =>
        height === grid.height && width === grid.width
          ? { probabilities }
          : undefined,
    },
    sum: () => sum!,
  };
}

/** All word positions of a variant, and the concept of each. */
function wordList({ words }: Reading): { positions: number[]; of: number[] } {
  return {
    positions: words.flat(),
    of: words.flatMap((own, concept) => own.map(() => concept)),
  };
}

/** Moves latents against the gradient of the contrastive loss. */
function towardsContrast(
  readings: readonly Reading[],
  latent: tf.Tensor4D,
  { timestep, count }: Pick<UNetCall, "timestep" | "count">,
  stepSize: number,
  temperature: number,
): tf.Tensor4D {
  const grid = gridOf(readings[0].model, latent);
  const lists = readings.map(wordList);
  /** Attention of one variant, [count, words, places]. */
  const mapsOf = (i: number, sample: tf.Tensor4D) => {
    const watched = watch(grid, lists[i].positions, count);
    runSolo(
      readings[i],
      { sample, timestep, count, branch: "conditional" },
      watched.options,
    );
    return tf.transpose(watched.sum(), [0, 2, 1]) as tf.Tensor3D;
  };
  const maps = readings.map((_, i) => tf.tidy(() => mapsOf(i, latent)));
  /** Gradient of a loss by the leaves of a tree; the caller disposes it. */
  const slopes = <T>(loss: (tree: T) => tf.Scalar, tree: T) => {
    const { value, grads } = valueAndGrads(loss, tree);
    value.dispose();
    return [...grads.values()];
  };
  const byMap = slopes(
    (all: readonly tf.Tensor3D[]) =>
      contrastiveLoss(
        tf.concat([...all], 1),
        lists.flatMap(({ of }) => of),
        temperature,
      ),
    maps,
  );
  // By the chain rule, for one UNet after another, so that only one autodiff
  // tape is kept at a time.
  const byLatent = readings.flatMap((_, i) =>
    slopes(
      ({ sample }) => tf.sum(mapsOf(i, sample).mul(byMap[i])) as tf.Scalar,
      { sample: latent },
    )
  );
  const gradient = tf.addN(byLatent);
  tf.dispose([...byMap, ...byLatent]);
  return latent.sub(gradient.mul(stepSize));
}

/**
 * Blends the outputs of all variants, each where the attention on its concept
 * is large.
 */
function blended(
  readings: readonly Reading[],
  call: UNetCall,
  threshold: number,
): tf.Tensor4D {
  const [, height, width] = call.sample.shape;
  const grid = gridOf(readings[0].model, call.sample);
  const [classes, ...own] = readings;
  const runs = own.map((reading, i) => {
    const watched = watch(grid, reading.words[i], call.count);
    const output = runSolo(reading, call, watched.options);
    const attention = watched.sum().sum(2, true);
    const largest = tf.max(attention, 1, true);
    const mask = attention.greater(largest.mul(threshold)).cast("float32");
    return { output, mask };
  });
  const taken = runs.reduce<tf.Tensor>(
    (sum, { mask }) => sum.add(mask),
    tf.scalar(0),
  );
  const masks = [
    taken.equal(0).cast("float32"),
    ...runs.map(({ mask }) => mask),
  ]
    .map((mask) => {
      const sized = tf.image.resizeBilinear(
        mask.reshape([call.count, grid.height, grid.width, 1]) as tf.Tensor4D,
        [height, width],
      );
      return call.branch === "both" ? tf.concat([sized, sized], 0) : sized;
    });
  const outputs = [
    runSolo(classes, call),
    ...runs.map(({ output }) => output),
  ];
  const sum = (parts: tf.Tensor[]) => parts.reduce((a, b) => a.add(b));
  return sum(outputs.map((output, i) => output.mul(masks[i])))
    .div(sum(masks)) as tf.Tensor4D;
}
