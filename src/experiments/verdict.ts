/**
 * What the ablation's numbers say, in words that follow from them alone.
 *
 * @module
 */
import type { AblationReport, Arm, Comparison } from "./ablation_schema.ts";

/** What a verdict is made from. */
export type VerdictFacts =
  & Pick<AblationReport, "scale" | "headroom" | "comparisons" | "arms">
  & {
    readonly concepts: number;
    /** Seeds behind the numbers. */
    readonly seeds?: readonly number[];
    /** Seeds that were planned, if those are some of them. */
    readonly planned?: readonly number[];
  };

/** Share of text alignment whose loss means that prompts are not followed. */
export const TEXT_LOSS = 0.1;

function signed(value: number | null): string {
  if (value === null) return "–";
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(3)}`;
}

const NAMES: Readonly<Record<Arm["embedding"], string>> = {
  lora: "LoRA",
  edlora: "ED-LoRA",
};
const FUSION: Readonly<Record<Arm["fusion"], string>> = {
  weight: "weight fusion",
  gradient: "gradient fusion",
  weight_best_lambda: "a sum with tuned λ",
};

/** `88 % (LoRA) and 90 % (ED-LoRA)` of a kind of fusion. */
function kept(
  arms: readonly Arm[],
  fusion: Arm["fusion"],
): string | undefined {
  const parts = arms.filter((arm) => arm.fusion === fusion).map((arm) => {
    const share = arm.retained.image.mean;
    return `${share === null ? "–" : Math.round(100 * share)} % (${
      NAMES[arm.embedding]
    })`;
  });
  return parts.length === 0
    ? undefined
    : `${FUSION[fusion]} ${parts.join(" and ")}`;
}

/**
 * Short paragraphs with empty lines between: how much identity each fusion
 * keeps, which of the paper's claims are reproduced, not shown or reversed, and
 * what speaks against reading the numbers so.
 *
 * @param facts The numbers.
 */
export function verdict(facts: VerdictFacts): string {
  const { seeds = [], planned } = facts;
  const words = judge(facts);
  return planned
    ? `Partial run, no conclusion: seeds ${seeds.join(", ")} of the planned ${
      planned.join(", ")
    }. ${words}`
    : words;
}

/** A note where the bootstrap's interval does not agree about zero. */
function disagreement({ low, high, bootstrap }: Comparison): string {
  const excludes = (from: number | null, to: number | null) =>
    from !== null && to !== null && (from > 0 || to < 0);
  return !bootstrap ||
      excludes(low, high) === excludes(bootstrap.low, bootstrap.high)
    ? ""
    : ` [the bootstrap's interval, ${signed(bootstrap.low)} to ${
      signed(bootstrap.high)
    }, says otherwise]`;
}

function judge(facts: VerdictFacts): string {
  const { scale, concepts, headroom, comparisons } = facts;
  if (scale === "quick") {
    return "Mechanics only, no conclusion: a few concepts and prompts show that " +
      "everything runs, not who wins.";
  }
  if (concepts < 2) {
    return "No conclusion: with one concept there is nothing to fuse.";
  }
  if (!headroom.enough) {
    return `Uninterpretable: the median concept gains ${
      (headroom.median ?? 0).toFixed(3)
    } image alignment over the class word, less than the ${headroom.required} ` +
      "that would have to be there to be lost.";
  }
  const arms = Object.values(facts.arms);
  const shares = (["weight", "weight_best_lambda", "gradient"] as const)
    .flatMap((fusion) => kept(arms, fusion) ?? []);
  const sentences = [
    "Of the image alignment that single concepts gain over the class word, " +
    `fusion keeps: ${shares.join(", ")}.`,
  ];
  for (
    const [kind, paper, head] of [
      ["reproduced", true, "Of the paper's claims, reproduced"],
      ["reversed", true, "Of the paper's claims, reversed"],
      ["not shown", true, "Of the paper's claims, not shown"],
      ["shown", false, "Beyond the paper, shown"],
      ["reversed", false, "Beyond the paper, the reverse shown"],
      ["not shown", false, "Beyond the paper, not shown"],
    ] as const
  ) {
    const own = comparisons.filter((c) =>
      c.score === "image" && c.verdict === kind && c.paper === paper
    );
    if (own.length === 0) continue;
    // Numbers of what is not shown are in the table: they would bury the rest.
    sentences.push(
      `${head}: ${
        own.map((c) =>
          kind === "not shown"
            ? c.claim + disagreement(c)
            : `${c.claim} (${signed(c.mean)}, ${signed(c.low)} to ${
              signed(c.high)
            }, ${c.wins} of ${c.n}${disagreement(c)})`
        ).join("; ")
      }.`,
    );
  }
  for (const { embedding, fusion, single, fused, loss } of arms) {
    const before = single.text.mean, after = fused.text.mean;
    if (before === null || after === null || loss.text.low === null) continue;
    if (before - after <= TEXT_LOSS * before || loss.text.low <= 0) continue;
    sentences.push(
      `But text alignment falls from ${before.toFixed(2)} to ${
        after.toFixed(2)
      } in ${FUSION[fusion]} of ${
        NAMES[embedding]
      }: it follows its prompts less, so that what it keeps of the identity ` +
        "is worth less.",
    );
  }
  sentences.push(
    "Differences are of image alignment, paired by concept, with 95 % " +
      `intervals over ${concepts} concepts` +
      (concepts < 12 ? ", which are few." : "."),
  );
  return sentences.join("\n\n");
}
