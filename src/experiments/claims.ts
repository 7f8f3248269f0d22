/**
 * The ablation's claims as differences that should be positive: the paper's
 * own, and what can be asked beyond it.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import {
  hierarchicalBootstrap,
  mean,
  type PairedDifference,
  pairedDifference,
} from "../evaluation/statistics.ts";
import {
  type Arm,
  type Comparison,
  finite,
  orNull,
  type ScoreName,
  type Verdict,
} from "./ablation_schema.ts";
import { type EmbeddingName, EMBEDDINGS } from "./presets.ts";

/** Scores by concept, seed and prompt. */
export type NestedScores = readonly (readonly (readonly number[])[])[];

/** What {@linkcode compareArms} compares. */
export interface CompareOptions {
  /** Which embeddings there are. */
  readonly embeddings: readonly EmbeddingName[];
  /** Which fusions there are. */
  readonly fusions: readonly Arm["fusion"][];
  /** Whether a verdict may be given. */
  readonly conclusive: boolean;
  /**
   * By which scores.
   *
   * @default image, masked and retrieval
   */
  readonly scores?: readonly ScoreName[];
}

/** A difference that should be positive: all of `more` less all of `less`. */
interface Claim {
  readonly id: string;
  readonly claim: string;
  /** Whether the paper makes it. */
  readonly paper: boolean;
  /** Two arms, or two pairs of arms whose differences are compared. */
  readonly more: readonly [string, string?];
  readonly less: readonly [string, string?];
}

/** Every claim about arms that there are. */
function claimsOf({ embeddings, fusions }: CompareOptions): Claim[] {
  const all: Claim[] = [];
  const has = (...needed: readonly Arm["fusion"][]) =>
    needed.every((fusion) => fusions.includes(fusion));
  const both = EMBEDDINGS.every((one) => embeddings.includes(one));
  for (const embedding of embeddings) {
    const label = embedding === "lora" ? "LoRA" : "ED-LoRA";
    const add = (
      more: string,
      less: string,
      claim: string,
      paper: boolean,
    ) =>
      all.push({
        id: `${embedding}.${more} > ${embedding}.${less}`,
        claim,
        paper,
        more: [`${embedding}.${more}`],
        less: [`${embedding}.${less}`],
      });
    if (has("weight")) {
      add(
        "single",
        "weight",
        `weight fusion (1/n) of ${label} loses identity`,
        true,
      );
    }
    if (has("weight", "gradient")) {
      add(
        "gradient",
        "weight",
        `gradient fusion of ${label} keeps more identity than weight fusion`,
        // The paper has no LoRA + gradient fusion.
        embedding === "edlora",
      );
    }
    if (has("weight", "weight_best_lambda")) {
      add(
        "weight_best_lambda",
        "weight",
        `a sum of ${label} with tuned λ keeps more identity than 1/n`,
        false,
      );
    }
    if (has("weight_best_lambda", "gradient")) {
      add(
        "gradient",
        "weight_best_lambda",
        `gradient fusion of ${label} keeps more identity than a sum with tuned λ`,
        false,
      );
    }
  }
  for (const fusion of ["weight", "gradient"] as const) {
    if (!both || !has(fusion)) continue;
    const paper = fusion === "weight";
    all.push({
      id: `lora loss > edlora loss (${fusion})`,
      claim: `LoRA loses more identity in ${fusion} fusion than ED-LoRA`,
      paper,
      more: ["lora.single", `lora.${fusion}`],
      less: ["edlora.single", `edlora.${fusion}`],
    }, {
      id: `edlora.${fusion} > lora.${fusion}`,
      claim: `after ${fusion} fusion ED-LoRA has more identity than LoRA`,
      paper,
      more: [`edlora.${fusion}`],
      less: [`lora.${fusion}`],
    });
  }
  if (both && has("weight", "gradient")) {
    all.push({
      id: "edlora (gradient − weight) > lora (gradient − weight)",
      claim: "gradient fusion adds more to ED-LoRA than to LoRA",
      paper: false,
      more: ["edlora.gradient", "edlora.weight"],
      less: ["lora.gradient", "lora.weight"],
    });
  }
  return all;
}

function minus(a: NestedScores, b: NestedScores): NestedScores {
  return a.map((seeds, i) =>
    seeds.map((row, k) => row.map((value, j) => value - b[i][k][j]))
  );
}

/**
 * Compares arms: differences paired by concept with Student's t interval, and a
 * hierarchical bootstrap of the same mean beside it.
 *
 * @param values Scores of an arm.
 * @param options Which arms there are, by which scores.
 */
export function compareArms(
  values: (arm: string, score: ScoreName) => NestedScores,
  options: CompareOptions,
): Comparison[] {
  const { conclusive, scores = ["image", "masked", "retrieval"] } = options;
  const side = ([arm, other]: Claim["more"], score: ScoreName) =>
    other === undefined
      ? values(arm, score)
      : minus(values(arm, score), values(other, score));
  const overConcepts = (nested: NestedScores): number[] =>
    nested.map((seeds) => mean(seeds.map((row) => mean(row))));
  return claimsOf(options).flatMap(({ id, claim, paper, more, less }) =>
    scores.map((score): Comparison => {
      const first = side(more, score), second = side(less, score);
      const d = pairedDifference(overConcepts(first), overConcepts(second));
      const { low, high } = hierarchicalBootstrap(
        minus(first, second),
        fold(key(0), "comparison", id, score),
      );
      return {
        id,
        claim,
        paper,
        score,
        ...finite(d),
        bootstrap: { low: orNull(low), high: orNull(high) },
        n: d.n,
        wins: d.wins,
        verdict: verdictOf(d, paper, conclusive),
      };
    })
  );
}

/** What a paired difference says of a claim that it is positive. */
function verdictOf(
  { low, high }: Pick<PairedDifference, "low" | "high">,
  paper: boolean,
  conclusive: boolean,
): Verdict {
  if (!conclusive) return "no conclusion";
  if (low > 0) return paper ? "reproduced" : "shown";
  return high < 0 ? "reversed" : "not shown";
}
