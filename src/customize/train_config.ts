/**
 * Configuration of a training run; plain data, part of a concept's hash.
 *
 * @module
 */

/** The three groups of parameters; each has its own learning rate. */
export type Group = "embedding" | "textEncoder" | "unet";

/** All learning rate schedules. */
export const RATE_SCHEDULES = [
  "linear",
  "constant",
  "cosine",
  "cosine-with-restarts",
] as const;

/**
 * Learning rate schedule after the warm-up: linear or cosine decay to 0, cosine
 * with restarts, or constant.
 */
export type RateSchedule = typeof RATE_SCHEDULES[number];

/** Weights of the loss by noise level. */
export type Weighting =
  | { readonly type: "none" }
  | { readonly type: "min-snr"; readonly gamma: number }
  | { readonly type: "debiased" }
  | { readonly type: "v-like-noise" };

/** Configuration of the loss; plain data. */
export interface LossConfig {
  /**
   * Whether the loss covers only the subject's mask (official main branch), or
   * the whole picture.
   */
  readonly masked: boolean;
  /** Weights by noise level. */
  readonly weighting: Weighting;
  /** Attention regularisation (official main branch); weight 0 is off. */
  readonly attention: {
    readonly weight: number;
    readonly fullIdentity: boolean;
  };
  /**
   * Weight of the class pictures' loss (prior preservation), if there are any.
   */
  readonly priorWeight: number;
}

/** A whole training run; plain data, part of a concept's hash. */
export interface TrainConfig extends LossConfig {
  /** Seed of all randomness. */
  readonly seed: number;
  /** Optimisation steps. */
  readonly steps: number;
  /** Pictures per step, class pictures not counted. */
  readonly batch: number;
  /**
   * Batches per step, whose gradients are averaged (gradient accumulation).
   *
   * @default 1
   */
  readonly accumulate?: number;
  /** Learning rates; 0 freezes a group. */
  readonly lr: Readonly<Record<Group, number>>;
  /** Learning rate schedule. */
  readonly schedule: RateSchedule;
  /**
   * Number of cycles of `cosine-with-restarts`.
   *
   * @default 1
   */
  readonly cycles?: number;
  /** Steps of warm-up. */
  readonly warmup: number;
  /** AdamW's decoupled weight decay. */
  readonly weightDecay: number;
  /** AdamW's β₁ and β₂. */
  readonly betas: readonly [number, number];
  /** AdamW's ε. */
  readonly eps: number;
  /** Largest norm of all gradients together; 0 is no limit. */
  readonly clipNorm: number;
  /** Per-channel constant added to the noise. */
  readonly noiseOffset: number;
  /**
   * Tokens stop changing when their mean norm reaches this: an absolute number
   * (0.55 in the official code), or a multiple of the mean norm of the model's
   * own token table; 0 is never.
   */
  readonly embeddingNorm: {
    readonly limit: number;
    readonly relative: boolean;
  };
  /**
   * Pivotal tuning: the share of the steps in which only the embedding is
   * trained; in the rest only the adapter is. For these the learning rate
   * schedule and AdamW's moments start again.
   *
   * @default 0, all groups are trained together
   */
  readonly pivot?: number;
  /** Freezes `down` of every adapter. */
  readonly freezeDown: boolean;
  /** Shuffles the comma-separated parts of captions, except the first n. */
  readonly shuffleCaptions: false | { readonly keep: number };
  /**
   * Share of the prompts that are replaced by empty ones, from 0 to 1.
   *
   * @default 0
   */
  readonly captionDropout?: number;
  /**
   * Share of the values of each adapter's input that are dropped in a step,
   * from 0 to below 1 (PEFT's lora_dropout).
   *
   * @default 0
   */
  readonly dropout?: number;
}

/**
 * The group a parameter belongs to.
 *
 * @param name As `conceptTensors` names it.
 */
export function groupOf(name: string): Group {
  return name.slice(0, name.indexOf(".")) as Group;
}
