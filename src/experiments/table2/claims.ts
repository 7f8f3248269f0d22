/**
 * The ablation's claims, as differences of arms: the paper's, and others.
 *
 * @module
 */
import { fold, key } from "../../core/random.ts";
import {
  type Claim,
  compare,
  type Comparison,
  minus,
} from "../../evaluation/compare.ts";
import type { Nested } from "../../evaluation/statistics.ts";
import { type EmbeddingName, EMBEDDINGS } from "../presets.ts";
import type { ScoreName } from "../scores.ts";
import type { FusionName } from "./draw.ts";

/** What {@linkcode compareArms} compares. */
export interface CompareOptions {
  /** Which embeddings there are. */
  readonly embeddings: readonly EmbeddingName[];
  /** Which fusions there are. */
  readonly fusions: readonly FusionName[];
  /** Whether a verdict may be given by a score. */
  readonly conclusive: (score: ScoreName | "heldout") => boolean;
  /**
   * Scores of the comparison. @default held-out error, image, masked and
   * retrieval
   */
  readonly scores?: readonly (ScoreName | "heldout")[];
}

/**
 * A claim that the first of two arms, or of two differences of arms, has a
 * higher score (a lower error).
 */
interface ArmClaim extends Omit<Claim, "score" | "less"> {
  readonly more: readonly [string, string?];
  readonly less: readonly [string, string?];
}

/** Claims about one embedding: arms, text, and whether it is the paper's. */
const WITHIN: readonly (readonly [
  more: string,
  less: string,
  claim: (label: string) => string,
  paper: readonly EmbeddingName[],
])[] = [
  [
    "single",
    "weight",
    (label) => `weight fusion (1/n) of ${label} loses identity`,
    EMBEDDINGS,
  ],
  [
    "gradient",
    "weight",
    (label) =>
      `gradient fusion of ${label} keeps more identity than weight fusion`,
    // The paper has no LoRA + gradient fusion.
    ["edlora"],
  ],
  [
    "weight_best_lambda",
    "weight",
    (label) => `a sum of ${label} with tuned λ keeps more identity than 1/n`,
    [],
  ],
  [
    "gradient",
    "weight_best_lambda",
    (label) =>
      `gradient fusion of ${label} keeps more identity than a sum with tuned λ`,
    [],
  ],
];

/** All claims about the given arms. */
function claimsOf({ embeddings, fusions }: CompareOptions): ArmClaim[] {
  const has = (...needed: readonly string[]) =>
    needed.every((one) =>
      one === "single" || fusions.some((fusion) => fusion === one)
    );
  const both = EMBEDDINGS.every((one) => embeddings.includes(one));
  const within = embeddings.flatMap((embedding) =>
    WITHIN.filter(([more, less]) => has(more, less)).map((
      [more, less, claim, paper],
    ): ArmClaim => ({
      id: `${embedding}.${more} > ${embedding}.${less}`,
      claim: claim(embedding === "lora" ? "LoRA" : "ED-LoRA"),
      paper: paper.includes(embedding),
      more: [`${embedding}.${more}`],
      less: [`${embedding}.${less}`],
    }))
  );
  if (!both) return within;
  const between = (["weight", "gradient"] as const).filter((one) => has(one))
    .flatMap((fusion): ArmClaim[] => [{
      id: `lora loss > edlora loss (${fusion})`,
      claim: `LoRA loses more identity in ${fusion} fusion than ED-LoRA`,
      paper: fusion === "weight",
      more: ["lora.single", `lora.${fusion}`],
      less: ["edlora.single", `edlora.${fusion}`],
    }, {
      id: `edlora.${fusion} > lora.${fusion}`,
      claim: `after ${fusion} fusion ED-LoRA has more identity than LoRA`,
      paper: fusion === "weight",
      more: [`edlora.${fusion}`],
      less: [`lora.${fusion}`],
    }]);
  const gains: ArmClaim[] = has("weight", "gradient")
    ? [{
      id: "edlora (gradient − weight) > lora (gradient − weight)",
      claim: "gradient fusion adds more to ED-LoRA than to LoRA",
      paper: false,
      more: ["edlora.gradient", "edlora.weight"],
      less: ["lora.gradient", "lora.weight"],
    }]
    : [];
  return [...within, ...between, ...gains];
}

/**
 * Compares arms, claim by claim and score by score.
 *
 * @param values Scores of an arm by concept, seed and prompt.
 * @param options Which arms there are, by which scores.
 */
export function compareArms(
  values: (arm: string, score: ScoreName | "heldout") => readonly Nested[],
  options: CompareOptions,
): Comparison[] {
  const { conclusive, scores = ["heldout", "image", "masked", "retrieval"] } =
    options;
  type Score = (typeof scores)[number];
  const side = ([arm, other]: ArmClaim["more"], score: Score) =>
    other === undefined
      ? values(arm, score)
      : minus(values(arm, score), values(other, score)) as readonly Nested[];
  return claimsOf(options).flatMap(({ id, claim, paper, more, less }) =>
    scores.map((score) =>
      compare(
        { ...{ id, claim, paper, score }, less: score === "heldout" },
        side(more, score),
        side(less, score),
        {
          key: fold(key(0), "comparison", id, score),
          conclusive: conclusive(score),
        },
      )
    )
  );
}
