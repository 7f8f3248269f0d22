/**
 * Several adapters in one picture without fusion and without regions: one after
 * another (LoRA Switch) or all in every step (LoRA Composite), with equal
 * weights or with weights by the prompt (W-Switch, W-Composite).
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
  /** The prompt of all pictures, with the tokens of all concepts. */
  readonly prompt: string;
  /**
   * The negative prompt.
   *
   * @default ""
   */
  readonly negative?: string;
  /** Skips the last n layers of the text encoder. */
  readonly skipLast?: number;
  /** Whether prompts have A1111's weights, breaks and chunks. */
  readonly syntax?: PromptSyntax;
  /**
   * Weight of each concept, in the order of the concepts, normalised to a sum
   * of 1. With those of {@linkcode promptShares} the methods are W-Switch and
   * W-Composite.
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

/** A model and its text states of a prompt. */
export interface Solo {
  /** The model, with the tokens of all concepts. */
  readonly model: Model;
  /** The prompt's text states. */
  readonly rows: PromptRows;
}

/**
 * Replaces the phrases of concepts in a prompt by their class words.
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
 * @param promptOf The prompt of each model. @default the prompt
 * @returns The model with all tokens and no adapter, and one model per adapter;
 * dispose them afterwards.
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
 * One UNet call of one concept's model, with its own text states.
 *
 * @param solo The model and its text states.
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
 * Computes the weight of each concept in a prompt, for W-Switch and W-Composite
 * (Tsoumplekas et al. 2026, arXiv 2606.03792). These weight each LoRA by the
 * influence of its trigger words in the prompt. This library measures the
 * influence as 1 − cos between the text states of the prompt and of the prompt
 * without the concept's words, both with the concept's adapter.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts The concepts.
 * @param options The prompt.
 * @returns A weight per concept, with sum 1: 0 for a concept that the prompt
 * does not name; equal weights if it names none.
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
    // Other concepts are replaced by their class words, as this model lacks
    // their tokens.
    const rest = concepts.filter((one) => one !== concept);
    // Encoded together, so that both are layer-wise or neither is.
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

/**
 * The concept of each turn; each concept has turns in proportion to its share.
 */
function turnsOf(shares: readonly number[], count: number): number[] {
  const taken = shares.map(() => 0);
  return Array.from({ length: count }, (_, turn) => {
    // The concept that is furthest behind its share; of equal ones the first.
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
 * LoRA Switch: one adapter at a time, changed every few steps. With shares,
 * each adapter has turns in proportion to its share.
 *
 * @param base The model without the concepts; not changed.
 * @param concepts In the order of their turns.
 * @param options The prompt; `every`: model calls per turn, which are steps
 * unless the sampler makes several calls per step (default 1, so that all
 * adapters have equal turns in a short run; the paper uses 5 in runs of 100
 * steps).
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
 * LoRA Composite: every step runs each adapter alone and averages their guided
 * predictions, weighted by shares. (Guidance is linear, so the outputs of both
 * branches are averaged instead.)
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
  // With equal shares the sum is divided at the end, which rounds once.
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
