/**
 * `ablation.json`: what the ablation writes and notebooks read.
 *
 * Numbers that do not exist (an interval of one value, a share of nothing) are
 * null, since JSON has neither NaN nor infinity.
 *
 * @module
 */
import { z } from "zod";

/** The four scores. */
export const SCORES: readonly ScoreName[] = [
  "text",
  "image",
  "masked",
  "retrieval",
];

/**
 * Name of a score: text alignment (2.5·max(cos, 0), class word in the caption),
 * image alignment (mean of max(cos, 0) over references), masked image alignment
 * (references cut to their masks, best window of the picture), and the share of
 * pictures whose nearest gallery entry is the identity.
 */
export type ScoreName = "text" | "image" | "masked" | "retrieval";

/** A number, or null where there is none. */
export type Maybe = number | null;

/** The number, or null where it is none: JSON has no NaN and no infinity. */
export function orNull(value: number): Maybe {
  return Number.isFinite(value) ? value : null;
}

/** An estimate as JSON holds it. */
export function finite(
  { mean, low, high }: Readonly<Record<"mean" | "low" | "high", number>>,
): ScoreEstimate {
  return { mean: orNull(mean), low: orNull(low), high: orNull(high) };
}

/** A mean with its 95 % interval. */
export interface ScoreEstimate {
  /** Mean over concepts, seeds and prompts. */
  mean: Maybe;
  /** Lower end. */
  low: Maybe;
  /** Upper end. */
  high: Maybe;
}

/** All four scores. */
export type Scores = Record<ScoreName, ScoreEstimate>;

/** How one layer was fitted: mean squared feature errors. */
export interface LayerFit {
  /** `textEncoder`, `kv` or `spatial`. */
  stage: string;
  /** Path of the layer. */
  layer: string;
  /** Rows over all concepts. */
  rows: number;
  /** Input features. */
  features: number;
  /** Of the base weight. */
  before: Maybe;
  /** Of the fused weight. */
  after: Maybe;
  /** Of weight fusion. */
  average: Maybe;
}

/** A fused arm. */
export interface Arm {
  /** Which embedding its concepts have. */
  embedding: "lora" | "edlora";
  /** How they were fused. */
  fusion: "weight" | "gradient" | "weight_best_lambda";
  /** Factor of the sum of ΔW; null for gradient fusion. */
  lambda: Maybe;
  /** Before fusion: each single-concept model. */
  single: Scores;
  /** After fusion: one model for all concepts. */
  fused: Scores;
  /** Single − fused, paired by concept, Student's t interval. */
  loss: Scores;
  /** (fused − lower) / (single − lower) of the means; null for text. */
  retained: Scores;
  /** Masked denoising error on held-out references: lower is better. */
  heldout?: {
    single: ScoreEstimate;
    fused: ScoreEstimate;
    /** (class word − fused) / (class word − single) of the means. */
    kept: ScoreEstimate;
  };
  /** Time of fusion, first seed. */
  fusionSeconds: Maybe;
  /** 1 − cosine to the base's picture of the same noise, other prompts. */
  drift: Maybe;
  /** Layers of gradient fusion, first seed. */
  layers: LayerFit[];
}

/** What became of a claim; what the paper does not claim is shown at best. */
export type Verdict =
  | "reproduced"
  | "shown"
  | "not shown"
  | "reversed"
  | "no conclusion";

/** A claim as a difference that should be positive. */
export interface Comparison {
  /** The arms. */
  id: string;
  /** The claim in words. */
  claim: string;
  /** Whether it is the paper's; the others go beyond it. */
  paper: boolean;
  /** By which score. */
  score: ScoreName;
  /** Mean difference over concepts. */
  mean: Maybe;
  /** Lower end of Student's t interval. */
  low: Maybe;
  /** Upper end. */
  high: Maybe;
  /** Hierarchical bootstrap of the same mean: concepts, seeds, prompts. */
  bootstrap?: { low: Maybe; high: Maybe };
  /** Concepts. */
  n: number;
  /** Concepts with a positive difference. */
  wins: number;
  /** Interval above 0, below 0, or neither; none where nothing can be said. */
  verdict: Verdict;
}

/** Scores of one arm for one concept and seed, a value a prompt. */
export interface ScoreRow {
  /** `base`, `lora.single`, `lora.weight`, … */
  arm: string;
  /** Proper name. */
  concept: string;
  /** Training seed. */
  seed: number;
  /** In the order of `prompts.indices`. */
  text: number[];
  /** In the same order. */
  image: number[];
  /** In the same order. */
  masked: number[];
  /** 0 or 1, in the same order. */
  retrieval: number[];
  /** Masked denoising error on held-out references: lower is better. */
  heldout?: number;
}

/** Cosines between pairs of concepts. */
export interface PairCosines {
  /** Mean over pairs. */
  mean: Maybe;
  /** Most alike pair. */
  max: Maybe;
}

/** What `ablation.json` holds. */
export interface AblationReport {
  /** Kind and version of the document. */
  format: "mix-of-show ablation 1";
  /** Which of the command's scales; `custom` if options changed it. */
  scale: "quick" | "default" | "full" | "custom";
  /** ISO date. */
  created: string;
  /** The identities. */
  concepts: { name: string; class: string }[];
  /** Training seeds. */
  seeds: number[];
  /** Seeds that were asked for, where the report is of some of them only. */
  planned?: number[];
  /** Which prompts of each concept. */
  prompts: { perConcept: number; indices: number[]; sha256: string };
  /** The preset in full. */
  settings: Record<string, unknown>;
  /**
   * Bounds: class word on the untouched base (for text the upper bound);
   * references among themselves; and for text the lower bound: the base's
   * pictures against captions of other prompts of the same concept; the
   * held-out error with the class word.
   */
  base: {
    lower: Scores;
    ceiling: Scores;
    unrelated?: ScoreEstimate;
    heldout?: ScoreEstimate;
  };
  /** Fused arms by name, such as `edlora.gradient`. */
  arms: Record<string, Arm>;
  /** The paper's claims, and what goes beyond them. */
  comparisons: Comparison[];
  /** Median over concepts of single − lower image alignment. */
  headroom: { median: Maybe; required: number; enough: boolean };
  /** The gallery of retrieval. */
  retrieval: { chance: number; gallery: string[] };
  /** n·r/d, smallest and largest over adapted layers. */
  capacity: {
    rank: number;
    n: number;
    unet: number[];
    textEncoder: number[];
  };
  /** Cosines between the learned V of pairs of concepts, by embedding. */
  distinguishability: Record<
    string,
    { before: PairCosines; after: PairCosines }
  >;
  /** Drift by arm. */
  drift: Record<string, Maybe>;
  /** Every score. */
  rows: ScoreRow[];
  /** Means by prompt group. */
  groups: { arm: string; group: string; text: Maybe; image: Maybe }[];
  /** Training runs. */
  training: {
    embedding: string;
    concept: string;
    seed: number;
    seconds: number;
    losses: number[];
  }[];
  /** SHA-256 of base model, CLIP and training data. */
  hashes: { model: string; clip: string; data: Record<string, string> };
  /** Where it ran. */
  machine: {
    backend: string;
    workers: number;
    processors: number;
    deno: string;
    library: string;
    tfjs: string;
  };
  /** Seconds of each stage of the last run; cached pieces take none. */
  timings: Record<string, number>;
}

const maybe = z.number().nullable();
const estimate = z.object({ mean: maybe, low: maybe, high: maybe });
const scores = z.object({
  text: estimate,
  image: estimate,
  masked: estimate,
  retrieval: estimate,
});
const scoreName = z.enum(["text", "image", "masked", "retrieval"]);
const pair = z.object({ mean: maybe, max: maybe });

/** Schema of {@linkcode AblationReport}. */
export const ablationSchema: z.ZodType<AblationReport> = z.object({
  format: z.literal("mix-of-show ablation 1"),
  scale: z.enum(["quick", "default", "full", "custom"]),
  created: z.string(),
  concepts: z.array(z.object({ name: z.string(), class: z.string() })),
  seeds: z.array(z.number()),
  planned: z.array(z.number()).optional(),
  prompts: z.object({
    perConcept: z.number(),
    indices: z.array(z.number()),
    sha256: z.string(),
  }),
  settings: z.record(z.string(), z.unknown()),
  base: z.object({
    lower: scores,
    ceiling: scores,
    unrelated: estimate.optional(),
    heldout: estimate.optional(),
  }),
  arms: z.record(
    z.string(),
    z.object({
      embedding: z.enum(["lora", "edlora"]),
      fusion: z.enum(["weight", "gradient", "weight_best_lambda"]),
      lambda: maybe,
      single: scores,
      fused: scores,
      loss: scores,
      retained: scores,
      heldout: z.object({ single: estimate, fused: estimate, kept: estimate })
        .optional(),
      fusionSeconds: maybe,
      drift: maybe,
      layers: z.array(z.object({
        stage: z.string(),
        layer: z.string(),
        rows: z.number(),
        features: z.number(),
        before: maybe,
        after: maybe,
        average: maybe,
      })),
    }),
  ),
  comparisons: z.array(z.object({
    id: z.string(),
    claim: z.string(),
    paper: z.boolean(),
    score: scoreName,
    mean: maybe,
    low: maybe,
    high: maybe,
    bootstrap: z.object({ low: maybe, high: maybe }).optional(),
    n: z.number(),
    wins: z.number(),
    verdict: z.enum([
      "reproduced",
      "shown",
      "not shown",
      "reversed",
      "no conclusion",
    ]),
  })),
  headroom: z.object({
    median: maybe,
    required: z.number(),
    enough: z.boolean(),
  }),
  retrieval: z.object({ chance: z.number(), gallery: z.array(z.string()) }),
  capacity: z.object({
    rank: z.number(),
    n: z.number(),
    unet: z.array(z.number()),
    textEncoder: z.array(z.number()),
  }),
  distinguishability: z.record(
    z.string(),
    z.object({ before: pair, after: pair }),
  ),
  drift: z.record(z.string(), maybe),
  rows: z.array(z.object({
    arm: z.string(),
    concept: z.string(),
    seed: z.number(),
    text: z.array(z.number()),
    image: z.array(z.number()),
    masked: z.array(z.number()),
    retrieval: z.array(z.number()),
    heldout: z.number().optional(),
  })),
  groups: z.array(z.object({
    arm: z.string(),
    group: z.string(),
    text: maybe,
    image: maybe,
  })),
  training: z.array(z.object({
    embedding: z.string(),
    concept: z.string(),
    seed: z.number(),
    seconds: z.number(),
    losses: z.array(z.number()),
  })),
  hashes: z.object({
    model: z.string(),
    clip: z.string(),
    data: z.record(z.string(), z.string()),
  }),
  machine: z.object({
    backend: z.string(),
    workers: z.number(),
    processors: z.number(),
    deno: z.string(),
    library: z.string(),
    tfjs: z.string(),
  }),
  timings: z.record(z.string(), z.number()),
});
