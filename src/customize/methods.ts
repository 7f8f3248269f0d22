/**
 * The training methods of the paper, and others, as configurations of one
 * trainer.
 *
 * A method defines a concept's tokens, whether they are layer-wise, which
 * layers have an adapter, and the training configuration. Everything can be
 * overridden.
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
 * A variant of the settings, as paper and official code differ. `paper` follows
 * the paper. `official` follows the main branch of the code (masked loss,
 * attention regularisation, one random vector copied to all layers). `ablation`
 * makes `lora` and `ed-lora` differ in the embedding only.
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
   * Whether networks with a learning rate above 0 are fully fine-tuned.
   *
   * @default false
   */
  readonly full?: boolean;
  /** Makes its tokens from the name and the class word. */
  readonly tokens: (name: string, classWord: string) => readonly TokenInit[];
  /** Makes its phrase in prompts. */
  readonly phrase: (name: string, classWord: string) => string;
  /** Training configuration. */
  readonly train: TrainConfig;
}

/** Defaults of all methods (paper, §4.1 and appendix). */
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
 * The official main branch. Its tokens stop changing at a norm of 0.55. With a
 * standard deviation of 0.013, a token of CLIP-L has the norm 0.013·√768 =
 * 0.36, so the limit is 1.5 times the norm of an ordinary token.
 */
const OFFICIAL: Partial<TrainConfig> = {
  masked: true,
  attention: { weight: 0.01, fullIdentity: true },
  embeddingNorm: { limit: 1.5, relative: true },
};

/**
 * DreamBooth's prior preservation, for methods whose loss covers the whole
 * picture.
 */
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

/**
 * A fixed rare token before the class word; prior preservation keeps the class.
 */
const named = (name: string, word: string): string =>
  `${written(rare)(name, word)} ${word}`;

/** Every linear layer and convolution of the UNet. */
const ofUNet: Targets = (component) => component === "unet";

/**
 * Whether a token of the method is initialised with the class word. The other
 * methods put a rare token before the class word.
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
 * @param overrides Any fields of the training configuration.
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
  // An override of `undefined` keeps the default.
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
      // Ruiz et al. 2023: every parameter of the UNet, and of the text encoder
      // if its learning rate is not 0 (diffusers uses 2e-6).
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
      // Learning rates are 1,000 times those of full fine-tuning (Han et al.
      // 2023).
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
      // Full-rank ΔW of cross-attention keys and values, and one new token.
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
      // First the token is trained (the pivot), then the adapter.
      return made({
        concept: { layerwise: false, lora: attention },
        tokens: one,
        phrase: written(one),
      }, { pivot: 0.5, noiseOffset: 0 });
    case "orthogonal-adaptation":
      // Po et al. 2024: each client draws the columns of `down` from one
      // orthogonal basis and trains only `up`, so added adapters hardly
      // interfere.
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

/** Names, random key and overrides of a concept. */
export interface StartConceptOptions {
  /** Name of the concept. */
  readonly name: string;
  /** The ordinary word for it. */
  readonly classWord: string;
  /** Random key of the initialisation. */
  readonly key: Key;
  /**
   * Rank of the adapter.
   *
   * @default 4
   */
  readonly rank?: number;
  /** Any options of `initConcept`. */
  readonly overrides?: Partial<InitConceptOptions>;
}

/**
 * Initialises a concept for a method.
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
