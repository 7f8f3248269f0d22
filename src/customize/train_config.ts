/**
 * What a training run is told; plain data, part of a concept's hash.
 *
 * @module
 */

/** The three groups of parameters with learning rates of their own. */
export type Group = "embedding" | "textEncoder" | "unet";

/** Every way in which rates change. */
export const RATE_SCHEDULES = [
  "linear",
  "constant",
  "cosine",
  "cosine-with-restarts",
] as const;

/**
 * How learning rates change after the warm-up: to 0 along a line or a cosine,
 * along a cosine several times, or not at all.
 */
export type RateSchedule = typeof RATE_SCHEDULES[number];

/** How samples of different noise levels are weighted. */
export type Weighting =
  | { readonly type: "none" }
  | { readonly type: "min-snr"; readonly gamma: number }
  | { readonly type: "debiased" }
  | { readonly type: "v-like-noise" };

/** What is minimised; plain data. */
export interface LossConfig {
  /** Only the subject counts (official main branch), or the whole picture. */
  readonly masked: boolean;
  /** Weights by noise level. */
  readonly weighting: Weighting;
  /** Attention regularisation (official main branch); weight 0 is off. */
  readonly attention: {
    readonly weight: number;
    readonly fullIdentity: boolean;
  };
  /** Weight of the class pictures in prior preservation, where there are any. */
  readonly priorWeight: number;
}

/** A whole training run; plain data, part of a concept's hash. */
export interface TrainConfig extends LossConfig {
  /** Seed of all randomness. */
  readonly seed: number;
  /** Optimisation steps. */
  readonly steps: number;
  /** Pictures a step, class pictures not counted. */
  readonly batch: number;
  /**
   * Batches whose mean gradient is one step's (gradient accumulation).
   *
   * @default 1
   */
  readonly accumulate?: number;
  /** Learning rates; 0 freezes a group. */
  readonly lr: Readonly<Record<Group, number>>;
  /** How the rates change. */
  readonly schedule: RateSchedule;
  /**
   * How often the rates fall with `cosine-with-restarts`.
   *
   * @default 1
   */
  readonly cycles?: number;
  /** Steps of warm-up. */
  readonly warmup: number;
  /** AdamW's decoupled weight decay. */
  readonly weightDecay: number;
  /** AdamW's decay of both moments. */
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
   * Pivotal tuning: the share of the steps in which only the embedding learns;
   * in the rest only the adapter does. Rates decay and moments begin anew.
   *
   * @default 0, all groups learn together
   */
  readonly pivot?: number;
  /** Leaves `down` of every adapter as it started. */
  readonly freezeDown: boolean;
  /** Parts of captions between commas are shuffled, but for the first n. */
  readonly shuffleCaptions: false | { readonly keep: number };
  /**
   * Share of the prompts that are left empty, from 0 to 1.
   *
   * @default 0
   */
  readonly captionDropout?: number;
  /**
   * Share of the values of each adapter's input that are left out in a step,
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
