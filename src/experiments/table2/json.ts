/**
 * The document `ablation.json`, which the ablation writes and notebooks read.
 *
 * Numbers that do not exist (an interval of one value, a share of nothing) are
 * null, since JSON has neither NaN nor infinity.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { Comparison } from "../../evaluation/compare.ts";
import type { PairCosines } from "../../evaluation/concept_cosines.ts";
import type { Interval, Maybe } from "../../report/format.ts";
import type { EvaluatorOutcome } from "../evaluator.ts";
import type { ConceptScores, ScoreName } from "../scores.ts";

/** All four scores. */
export type Scores = Record<ScoreName, Interval>;

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
  /** The ridge of the closed form; null of L-BFGS. */
  ridge?: Maybe;
}

/** Whether single concepts gain enough to measure what fusion loses. */
export interface Headroom {
  /** Of the concepts. */
  median: Maybe;
  /** Its required minimum. */
  required: number;
  /** Whether the median reaches it. */
  enough: boolean;
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
    single: Interval;
    fused: Interval;
    /** (class word − fused) / (class word − single) of the means. */
    kept: Interval;
  };
  /** Time of fusion, first seed. */
  fusionSeconds: Maybe;
  /**
   * 1 − cosine to the base's picture from the same noise, for prompts without
   * the concept.
   */
  drift: Maybe;
  /** Layers of gradient fusion, first seed. */
  layers: LayerFit[];
}

/** Scores of one arm for one concept and seed, a value per prompt. */
export interface ScoreRow extends ConceptScores {
  /** `base`, `lora.single`, `lora.weight`, … */
  arm: string;
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
  /** All planned seeds, if the report covers only some of them. */
  planned?: number[];
  /** Which prompts of each concept. */
  prompts: { perConcept: number; indices: number[]; sha256: string };
  /**
   * Whether the evaluation CLIP passes its test, and which thresholds it
   * misses.
   */
  evaluator?: EvaluatorOutcome;
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
    unrelated?: Interval;
    heldout?: Interval;
  };
  /** Fused arms by name, such as `edlora.gradient`. */
  arms: Record<string, Arm>;
  /** The tested claims: the paper's, and others. */
  comparisons: Comparison[];
  /**
   * Median over concepts of single − lower image alignment, and of the share of
   * the class word's held-out error that a single concept takes away.
   */
  headroom: Headroom & { heldout?: Headroom };
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
  /** Seconds of each stage of the last run, without cached results. */
  timings: Record<string, number>;
}

/** A report without the fields that the command adds. */
export type AblationNumbers = Omit<
  AblationReport,
  "created" | "machine" | "timings" | "evaluator"
>;

/**
 * Reads a stored report.
 *
 * @param json What `ablation.json` holds.
 * @throws If it is another document.
 */
export function readAblation(json: unknown): AblationReport {
  const format = (json as Partial<AblationReport> | null)?.format;
  if (format !== "mix-of-show ablation 1") {
    throw cannot("read an ablation", "mix-of-show ablation 1", format);
  }
  return json as AblationReport;
}
