/**
 * The methods of the paper as configurations of one trainer.
 *
 * A method is what a concept is made of (tokens, layer-wise or not, which
 * layers have an adapter) and how it is trained. Everything can be overridden.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Key } from "../core/random.ts";
import type { Model } from "../models/model.ts";
import {
  type Concept,
  initConcept,
  type InitConceptOptions,
  type TokenInit,
} from "./concept.ts";
import { COMPONENTS, type Targets } from "./sites.ts";
import type { TrainConfig } from "./train.ts";

/** The methods. */
export type MethodName =
  | "textual-inversion"
  | "p+"
  | "lora"
  | "ed-lora"
  | "dreambooth"
  | "dreambooth-lora"
  | "custom-diffusion"
  | "pivotal-tuning"
  | "svdiff"
  | "orthogonal-adaptation";

/** Every method. */
export const METHODS: readonly MethodName[] = [
  "textual-inversion",
  "p+",
  "lora",
  "ed-lora",
  "dreambooth",
  "dreambooth-lora",
  "custom-diffusion",
  "pivotal-tuning",
  "svdiff",
  "orthogonal-adaptation",
];

/**
 * A set of settings, since paper and code differ: `paper` follows the paper,
 * `official` the main branch of the code (masked loss, attention
 * regularisation, one copied draw), `ablation` with arms that differ in the
 * embedding only.
 */
export type Preset = "paper" | "official" | "ablation";

/** A method: how a concept starts and how it is trained. */
export interface Method {
  /** Which method. */
  readonly name: MethodName;
  /** Which variant of it. */
  readonly preset: Preset;
  /** Settings of `initConcept`, names and key left out. */
  readonly concept: Omit<
    InitConceptOptions,
    "name" | "classWord" | "key" | "full"
  >;
  /**
   * Whether networks are fine-tuned whole, those with a learning rate above 0.
   *
   * @default false
   */
  readonly full?: boolean;
  /** How its tokens are made of name and class word. */
  readonly tokens: (name: string, classWord: string) => readonly TokenInit[];
  /** How it stands in prompts. */
  readonly phrase: (name: string, classWord: string) => string;
  /** How it is trained. */
  readonly train: TrainConfig;
}

/** What all methods start from (paper, §4.1 and appendix). */
const COMMON: TrainConfig = {
  seed: 0,
  steps: 1000,
  batch: 4,
  lr: { embedding: 1e-3, textEncoder: 1e-5, unet: 1e-4 },
  schedule: "linear",
  warmup: 0,
  weightDecay: 0.01,
  betas: [0.9, 0.999],
  eps: 1e-8,
  clipNorm: 0,
  noiseOffset: 0.01,
  masked: false,
  weighting: { type: "none" },
  attention: { weight: 0, fullIdentity: true },
  priorWeight: 0,
  embeddingNorm: { limit: 0, relative: false },
  freezeDown: false,
  shuffleCaptions: false,
};

/**
 * The official main branch. Its tokens stop at a norm of 0.55; with a spread of
 * 0.013 a token of CLIP-L has the norm 0.013·√768 = 0.36, so that is 1.5 times
 * the norm of an ordinary token.
 */
const OFFICIAL: Partial<TrainConfig> = {
  masked: true,
  attention: { weight: 0.01, fullIdentity: true },
  embeddingNorm: { limit: 1.5, relative: true },
};

/** DreamBooth's prior preservation, for methods that train on whole pictures. */
const PRIOR: Partial<TrainConfig> = {
  noiseOffset: 0,
  masked: false,
  attention: { weight: 0, fullIdentity: true },
  priorWeight: 1,
};

const one = (name: string, word: string): TokenInit[] => [
  { token: `<${name}1>`, init: { word } },
];
const rare = (name: string): TokenInit[] => [
  { token: `<${name}1>`, init: "random" },
];
const two = (name: string, word: string): TokenInit[] => [
  { token: `<${name}1>`, init: "random" },
  { token: `<${name}2>`, init: { word } },
];
const written = (tokens: (name: string, word: string) => TokenInit[]) =>
(
  name: string,
  word: string,
): string => tokens(name, word).map(({ token }) => token).join(" ");

/** A fixed rare word before the class word; class pictures keep the class. */
const named = (name: string, word: string): string =>
  `${written(rare)(name, word)} ${word}`;

/** Every linear layer and convolution of the UNet. */
const ofUNet: Targets = (component) => component === "unet";

/**
 * Whether a method's word starts at the class word (or has one that does); the
 * others put a rare word before the class word.
 *
 * @param name The method.
 */
export function startsAtClass(name: MethodName): boolean {
  return method(name).tokens("x", "y").some(({ init }) => init !== "random");
}

/**
 * Gives the configuration of a method.
 *
 * @param name The method.
 * @param preset Paper, official code, or ablation.
 * @param overrides Anything of the training configuration.
 * @throws If the name or the preset is unknown.
 *
 * @example
 * ```ts
 * const edLora = method("ed-lora", "ablation", { steps: 500, seed: 1 });
 * const concept = await startConcept(model, edLora, {
 *   name: "potter",
 *   classWord: "man",
 *   key: key(1),
 * });
 * ```
 */
export function method(
  name: MethodName,
  preset: Preset = "paper",
  overrides: Partial<TrainConfig> = {},
): Method {
  if (!["paper", "official", "ablation"].includes(preset)) {
    throw cannot("choose a preset", "paper, official or ablation", preset);
  }
  const official = preset === "official";
  // What is undefined is not overridden.
  const given = Object.fromEntries(
    Object.entries(overrides).filter(([, value]) => value !== undefined),
  );
  const base: TrainConfig = { ...COMMON, ...(official ? OFFICIAL : {}) };
  const made = (
    parts: Pick<Method, "concept" | "tokens" | "phrase" | "full">,
    train: Partial<TrainConfig> = {},
  ): Method => ({
    name,
    preset,
    ...parts,
    train: { ...base, ...train, ...given },
  });
  const onlyTokens = { embedding: 1e-3, textEncoder: 0, unet: 0 };
  const attention = { targets: "attention" } as const;
  switch (name) {
    case "textual-inversion":
      return made({
        concept: { layerwise: false, lora: false },
        tokens: one,
        phrase: written(one),
      }, { lr: onlyTokens, noiseOffset: 0 });
    case "p+":
      return made({
        concept: { layerwise: true, lora: false },
        tokens: one,
        phrase: written(one),
      }, { lr: onlyTokens, noiseOffset: 0 });
    case "lora":
      // The ordinary embedding: one word, one vector.
      return made(
        {
          concept: { layerwise: false, lora: attention },
          tokens: one,
          phrase: written(one),
        },
        preset === "paper"
          ? { lr: { ...COMMON.lr, embedding: 5e-4 }, noiseOffset: 0 }
          : {},
      );
    case "ed-lora":
      return made({
        concept: {
          layerwise: true,
          draws: official ? "copied" : "independent",
          lora: attention,
        },
        tokens: two,
        phrase: written(two),
      });
    case "dreambooth":
      // Ruiz et al. 2023: every parameter of the UNet, of the text encoder too
      // where it has a rate (2e-6 is diffusers').
      return made({
        full: true,
        concept: { layerwise: false, lora: false },
        tokens: rare,
        phrase: named,
      }, {
        ...PRIOR,
        lr: { embedding: 0, textEncoder: 0, unet: 5e-6 },
        schedule: "constant",
      });
    case "dreambooth-lora":
      return made({
        concept: { layerwise: false, lora: attention },
        tokens: rare,
        phrase: named,
      }, { ...PRIOR, lr: { ...COMMON.lr, embedding: 0 } });
    case "svdiff":
      // Rates a thousand times those of full fine-tuning (Han et al. 2023).
      return made({
        concept: { layerwise: false, lora: false, spectral: ofUNet },
        tokens: rare,
        phrase: named,
      }, {
        ...PRIOR,
        lr: { embedding: 0, textEncoder: 0, unet: 5e-3 },
        schedule: "constant",
        weightDecay: 0,
      });
    case "custom-diffusion":
      // Keys and values of cross-attention, all of ΔW, and one new word.
      return made({
        concept: {
          layerwise: false,
          lora: { targets: "cross-attention-kv", init: "identity" },
        },
        tokens: rare,
        phrase: named,
      }, {
        ...PRIOR,
        lr: { embedding: 1e-5, textEncoder: 0, unet: 1e-5 },
        freezeDown: true,
      });
    case "pivotal-tuning":
      // First the word (a pivot), then the adapter around it.
      return made({
        concept: { layerwise: false, lora: attention },
        tokens: one,
        phrase: written(one),
      }, { pivot: 0.5, noiseOffset: 0 });
    case "orthogonal-adaptation":
      // Po et al. 2024: `down` are columns of one orthogonal basis, drawn by each
      // client for itself, and only `up` learns: adapters add up without
      // crosstalk.
      return made({
        concept: {
          layerwise: true,
          lora: { ...attention, init: "orthogonal" },
        },
        tokens: two,
        phrase: written(two),
      }, { freezeDown: true });
    default:
      throw cannot("choose a method", METHODS.join(", "), String(name));
  }
}

/** Names and randomness of a concept, and what to override. */
export interface StartConceptOptions {
  /** Name of the concept. */
  readonly name: string;
  /** The ordinary word for it. */
  readonly classWord: string;
  /** Random key of its start. */
  readonly key: Key;
  /**
   * Rank of the adapter.
   *
   * @default 4
   */
  readonly rank?: number;
  /** Anything of `initConcept`. */
  readonly overrides?: Partial<InitConceptOptions>;
}

/**
 * Makes the concept a method starts from.
 *
 * @param model The base model.
 * @param m The method.
 * @param options Names, randomness, rank.
 * @returns The concept; its tensors are the caller's.
 */
export async function startConcept(
  model: Model,
  m: Method,
  options: StartConceptOptions,
): Promise<Concept> {
  const { name, classWord, key, rank = 4, overrides } = options;
  const { lora } = m.concept;
  const full = m.full
    ? COMPONENTS.filter((component) => m.train.lr[component] > 0)
    : [];
  const concept = await initConcept(model, {
    ...m.concept,
    name,
    classWord,
    key,
    tokens: m.tokens(name, classWord),
    phrase: m.phrase(name, classWord),
    ...(lora ? { lora: { rank, ...lora } } : {}),
    full,
    ...overrides,
  });
  return {
    ...concept,
    meta: {
      ...concept.meta,
      method: m.name,
      preset: m.preset,
      config: JSON.stringify(m.train),
    },
  };
}
