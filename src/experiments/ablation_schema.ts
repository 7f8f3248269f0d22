/**
 * `ablation.json`: what the ablation writes and notebooks read.
 *
 * @module
 */
import { z } from "zod";

/** The four scores. */
export const SCORES = ["text", "image", "masked", "retrieval"] as const;

/** Name of a score. */
export type ScoreName = typeof SCORES[number];

// JSON knows no infinity: an interval of one value has no ends.
const number = z.number().nullable();

const estimate = z.object({
  mean: number.describe("mean over concepts, seeds and prompts"),
  low: number.describe("lower end of the 95 % interval"),
  high: number.describe("upper end"),
});

const scores = z.object({
  text: estimate.describe(
    "text alignment: 2.5·max(cos, 0) with the class word in the caption",
  ),
  image: estimate.describe(
    "image alignment: mean of max(cos, 0) over all references",
  ),
  masked: estimate.describe(
    "masked image alignment: references cut to their masks, best window of the picture",
  ),
  retrieval: estimate.describe(
    "share of pictures whose nearest gallery entry is the identity",
  ),
});

const arm = z.object({
  embedding: z.enum(["lora", "edlora"]),
  fusion: z.enum(["weight", "gradient", "weight_best_lambda"]),
  lambda: number.describe("factor of the sum of ΔW; null for gradient fusion"),
  single: scores.describe("before fusion: each single-concept model"),
  fused: scores.describe("after fusion: one model for all concepts"),
  loss: scores.describe("single − fused, paired by concept, t interval"),
  retained: scores.describe(
    "(fused − lower) / (single − lower) of the means, bootstrap over concepts; for text: fused / single is not meaningful and NaN is written as null",
  ),
  fusionSeconds: number,
  drift: number.describe(
    "1 − cosine to the base's picture of the same noise, on concept-free prompts",
  ),
  layers: z.array(z.object({
    stage: z.string(),
    layer: z.string(),
    rows: z.number(),
    features: z.number(),
    before: number,
    after: number,
    average: number,
  })).describe("gradient fusion, first seed: mean squared feature error"),
});

const comparison = z.object({
  id: z.string(),
  claim: z.string().describe("what the paper says"),
  score: z.enum(SCORES),
  mean: number,
  low: number,
  high: number,
  n: z.number().describe("concepts"),
  wins: z.number().describe("concepts with a positive difference"),
  verdict: z.enum([
    "reproduced",
    "not shown",
    "reversed",
    "no conclusion",
  ]),
});

/** Schema of `ablation.json`. */
export const ablationSchema = z.object({
  format: z.literal("mix-of-show ablation 1"),
  scale: z.enum(["quick", "default", "full", "custom"]),
  created: z.string().describe("ISO date"),
  concepts: z.array(z.object({
    name: z.string(),
    class: z.string(),
  })),
  seeds: z.array(z.number()),
  prompts: z.object({
    perConcept: z.number(),
    indices: z.array(z.number()),
    sha256: z.string(),
  }),
  settings: z.record(z.string(), z.unknown()).describe("the preset in full"),
  base: z.object({
    lower: scores.describe("class word on the untouched base model"),
    ceiling: scores.describe("the references themselves, leave one out"),
  }),
  arms: z.record(z.string(), arm),
  comparisons: z.array(comparison),
  headroom: z.object({
    median: number.describe(
      "median over concepts of single − lower image alignment (ED-LoRA)",
    ),
    required: z.number(),
    enough: z.boolean(),
  }),
  verdict: z.string().describe("a sentence computed from the numbers"),
  retrieval: z.object({
    chance: z.number(),
    gallery: z.array(z.string()),
  }),
  capacity: z.object({
    rank: z.number(),
    n: z.number(),
    unet: z.array(z.number()).describe("n·r/d, smallest and largest layer"),
    textEncoder: z.array(z.number()),
  }),
  distinguishability: z.record(
    z.string(),
    z.object({
      before: z.object({ mean: number, max: number }),
      after: z.object({ mean: number, max: number }),
    }),
  ).describe("cosines between the learned V of pairs of concepts"),
  drift: z.record(z.string(), number).describe("by model kind"),
  rows: z.array(z.object({
    arm: z.string(),
    concept: z.string(),
    seed: z.number(),
    text: z.array(z.number()),
    image: z.array(z.number()),
    masked: z.array(z.number()),
    retrieval: z.array(z.number()),
  })).describe("one value a prompt, in the order of prompts.indices"),
  groups: z.array(z.object({
    arm: z.string(),
    group: z.string(),
    text: number,
    image: number,
  })).describe("means by prompt group"),
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
  timings: z.record(z.string(), z.number()).describe("seconds of each stage"),
});

/** What `ablation.json` holds. */
export type AblationReport = z.infer<typeof ablationSchema>;

/** A score with its interval. */
export type ScoreEstimate = z.infer<typeof estimate>;

/** Four scores. */
export type Scores = z.infer<typeof scores>;

/** A fused arm. */
export type Arm = z.infer<typeof arm>;

/** A comparison of two arms. */
export type Comparison = z.infer<typeof comparison>;
