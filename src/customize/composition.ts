/**
 * Several adapters in one picture without fusing them and without regions: one
 * after another (LoRA Switch) or side by side (LoRA Composite), in equal shares or
 * in those that the prompt gives them (W-Switch, W-Composite).
 *
 * Zhong et al. 2024, "Multi-LoRA Composition for Image Generation"; Tsoumplekas et
 * al. 2026, arXiv 2606.03792.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { UNetCall } from "../diffusion/pipeline.ts";
import { type PromptRows, promptRows } from "../diffusion/regions.ts";
import type { Model } from "../models/model.ts";
import type { PromptSyntax } from "../models/prompts.ts";
import { unet, type UNetOptions } from "../models/unet.ts";
import { addTokens, type Concept, releaseTokens } from "./concept.ts";
import type { AttachOptions } from "./lora.ts";
import {
  type AdapterSampling,
  onlyOf,
  withAdapters,
} from "./region_adapters.ts";

/** Settings of {@linkcode loraSwitch} and {@linkcode loraComposite}. */
export interface CompositionOptions extends AttachOptions {
  /** The prompt, with the tokens of all concepts; every picture's. */
  readonly prompt: string;
  /**
   * What the picture stays away from.
   *
   * @default ""
   */
  readonly negative?: string;
  /** Skips the last n layers of the text encoder. */
  readonly skipLast?: number;
  /** Whether prompts have A1111's weights, breaks and chunks. */
  readonly syntax?: PromptSyntax;
  /**
   * How much each concept counts, in the order of the concepts; their sum is
   * taken as 1. {@linkcode promptShares} makes W-Switch and W-Composite of it.
   *
   * @default equal
   */
  readonly shares?: readonly number[];
}

/** Shares whose sum is 1. */
function sharesOf(
  concepts: readonly Concept[],
  { shares = concepts.map(() => 1) }: CompositionOptions,
): number[] {
  const sum = shares.reduce((a, b) => a + b, 0);
  if (concepts.length === 0) {
    throw cannot("compose adapters", "at least one concept", 0);
  }
  if (
    shares.length !== concepts.length || !(sum > 0 && Number.isFinite(sum)) ||
    shares.some((share) => share < 0)
  ) {
    throw cannot(
      "compose adapters",
      `${concepts.length} shares ≥ 0, not all 0`,
      shares.join(", "),
    );
  }
  return shares.map((share) => share / sum);
}

/** A model and how it reads a prompt. */
export interface Solo {
  /** The model, with the tokens of all concepts. */
  readonly model: Model;
  /** The prompt's text states. */
  readonly rows: PromptRows;
}

/**
 * A prompt in which concepts are called by their class.
 *
 * @param prompt The prompt.
 * @param concepts Which.
 */
export function withClassWords(
  prompt: string,
  concepts: readonly Concept[],
): string {
  return concepts.filter(({ phrase }) => phrase !== "").reduce(
    (text, { phrase, classWord }) => text.replaceAll(phrase, classWord),
    prompt,
  );
}

/**
 * One adapted model per concept, with the tokens of all.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts.
 * @param options The prompt.
 * @param promptOf What each reads. @default the prompt
 * @returns The model with all tokens and no adapter, and those with one; dispose
 * them afterwards.
 */
export function solos(
  base: Model,
  concepts: readonly Concept[],
  options: Omit<CompositionOptions, "shares">,
  promptOf: (concept: Concept) => string = () => options.prompt,
): { named: Model; all: Solo[]; dispose(): void } {
  const { negative = "", skipLast, syntax, alpha, weights } = options;
  const named = addTokens(base, concepts);
  const all: Solo[] = [];
  const dispose = () => {
    for (const { rows } of all) rows.dispose();
    releaseTokens(named, base);
  };
  try {
    for (const concept of concepts) {
      const { textEncoder, unet } = withAdapters(
        base,
        [concept],
        onlyOf([concept], {
          ...(alpha === undefined ? {} : { alpha }),
          ...(weights === undefined ? {} : { weights }),
        }),
      );
      const model = { ...named, textEncoder, unet };
      const rows = promptRows(
        model,
        promptOf(concept),
        negative,
        { skipLast, syntax },
      );
      all.push({ model, rows });
    }
  } catch (error) {
    dispose();
    throw error;
  }
  return { named, all, dispose };
}

/**
 * One UNet run of one concept's model, with its own reading of the prompt.
 *
 * @param solo The model and its reading.
 * @param call Which call.
 * @param options What is observed.
 */
export function runSolo(
  { model, rows }: Solo,
  call: Pick<UNetCall, "sample" | "timestep" | "branch" | "count">,
  options?: UNetOptions,
): tf.Tensor4D {
  return unet(
    model.unet.params,
    model.unet.config,
    call.sample,
    [call.timestep],
    rows.of(call.branch, call.count),
    options,
  );
}

/**
 * Computes the share of each concept in a prompt: the distance of the prompt's
 * text states, read with the concept's adapter, from those of the prompt
 * without its words, 1 − cos. The shares of W-Switch and W-Composite
 * (Tsoumplekas et al. 2026, arXiv 2606.03792), which weight each LoRA by the
 * influence of its trigger words in the prompt; the measure of influence is
 * this library's.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts.
 * @param options The prompt.
 * @returns A share per concept, the sum 1; 0 of one that the prompt does not
 * name, and equal ones if it names none.
 *
 * @example
 * ```ts
 * const prompt = "<fox1> <fox2> and <owl1> <owl2>";
 * const shares = await promptShares(model, [fox, owl], { prompt });
 * const sampling = loraComposite(model, [fox, owl], { prompt, shares });
 * sampling.dispose();
 * ```
 */
export async function promptShares(
  base: Model,
  concepts: readonly Concept[],
  options: CompositionOptions,
): Promise<number[]> {
  const influence: number[] = [];
  for (const concept of concepts) {
    const { phrase } = concept;
    const without = phrase === ""
      ? options.prompt
      : options.prompt.replaceAll(phrase, "").replaceAll(/\s+/g, " ").trim();
    if (without === options.prompt) {
      influence.push(0);
      continue;
    }
    // Others are their class here, as this concept's text encoder has no more.
    const rest = concepts.filter((one) => one !== concept);
    // Read together, both are layer-wise or both are plain.
    const { all: [{ rows }], dispose } = solos(base, [concept], {
      ...options,
      prompt: withClassWords(options.prompt, rest),
      negative: withClassWords(without, rest),
    });
    const states = await rows.of("both", 1).data();
    dispose();
    const half = states.length / 2;
    influence.push(
      Math.max(0, 1 - cosine(states.subarray(half), states.subarray(0, half))),
    );
  }
  const sum = influence.reduce((a, b) => a + b, 0);
  return influence.map((one) => sum > 0 ? one / sum : 1 / concepts.length);
}

/** Cosine of two vectors. */
function cosine(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [ab, aa, bb] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] ** 2;
    bb += b[i] ** 2;
  }
  return ab / Math.sqrt(aa * bb);
}

/** Whose turn each of so many turns is: as often as the shares say. */
function turnsOf(shares: readonly number[], count: number): number[] {
  const taken = shares.map(() => 0);
  return Array.from({ length: count }, (_, turn) => {
    // The one that is furthest behind; among equals the first.
    const behind = shares.map((share, i) => share * (turn + 1) - taken[i]);
    const next = behind.reduce(
      (best, one, i) => one > behind[best] + 1e-9 ? i : best,
      0,
    );
    taken[next]++;
    return next;
  });
}

/**
 * LoRA Switch: one adapter at a time, the next one every few steps; with shares,
 * each has as many turns as its share.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts In the order of their turns.
 * @param options The prompt; `every`: model calls a turn, which are steps but
 * for samplers of several calls a step (default 1, so that all have equal
 * shares of a short run; the paper has 5 of 100).
 * @returns A model and pipeline options; dispose them afterwards.
 * @throws If there is no concept or one does not fit.
 *
 * @example
 * ```ts
 * const prompt = "<fox1> <fox2> and <owl1> <owl2>";
 * const sampling = loraSwitch(model, [fox, owl], { prompt });
 * const [picture] = await generate(sampling.model, {
 *   prompts: [prompt],
 *   ...sampling.pipeline,
 * });
 * sampling.dispose();
 * ```
 */
export function loraSwitch(
  base: Model,
  concepts: readonly Concept[],
  options: CompositionOptions & { readonly every?: number },
): AdapterSampling {
  const { every = 1 } = options;
  if (!Number.isInteger(every) || every < 1) {
    throw cannot("switch adapters", "a turn of at least 1 step", every);
  }
  const shares = sharesOf(concepts, options);
  const { named, all, dispose } = solos(base, concepts, options);
  const turns: number[] = [];
  return {
    model: named,
    pipeline: {
      denoise(_, call) {
        const turn = Math.floor(call.index / every);
        if (turn >= turns.length) {
          turns.splice(0, Infinity, ...turnsOf(shares, 2 * turn + 16));
        }
        return runSolo(all[turns[turn]], call);
      },
    },
    dispose,
  };
}

/**
 * LoRA Composite: every step runs each adapter alone and takes the mean of
 * their guidance, weighted with shares. (Guidance is linear, so the mean of the outputs of both
 * branches is the same.)
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts.
 * @param options The prompt.
 * @returns A model and pipeline options; dispose them afterwards.
 * @throws If there is no concept or one does not fit.
 */
export function loraComposite(
  base: Model,
  concepts: readonly Concept[],
  options: CompositionOptions,
): AdapterSampling {
  const shares = sharesOf(concepts, options);
  // Equal shares are divided at the end, which rounds once.
  const equal = shares.every((share) => share === shares[0]);
  const { named, all, dispose } = solos(base, concepts, options);
  return {
    model: named,
    pipeline: {
      denoise: (_, call) => {
        const outputs = all.flatMap((solo, i) =>
          shares[i] === 0
            ? []
            : [equal ? runSolo(solo, call) : runSolo(solo, call).mul(shares[i])]
        );
        const sum = outputs.reduce<tf.Tensor>((a, b) => a.add(b), tf.scalar(0));
        return (equal && all.length > 1
          ? sum.div(all.length)
          : sum) as tf.Tensor4D;
      },
    },
    dispose,
  };
}
