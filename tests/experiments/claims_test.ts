import { assertEquals } from "@std/assert";
import { compareArms } from "../../src/experiments/table2/claims.ts";

/** Scores of three concepts, all as good as each other but for a little. */
const about = (value: number) => [value, value + 0.01, value - 0.01];

const ALL = { lora: 0, edlora: 0.02 } as const;

/** Values of an arm: identity rises from weight fusion to gradient to single. */
function values(arm: string, score: string): number[] {
  const [embedding, fusion] = arm.split(".") as [keyof typeof ALL, string];
  const lost = { single: 0, gradient: 0.1, weight: 0.4 }[fusion]!;
  // LoRA loses twice as much.
  const identity = 1 - lost * (embedding === "lora" ? 2 : 1) + ALL[embedding];
  // What an error says is the other way round.
  return about(score === "heldout" ? 5 - identity : identity);
}

const options = {
  embeddings: ["lora", "edlora"],
  fusions: ["weight", "gradient"],
} as const;

Deno.test("an error and an alignment that say the same give the same verdicts", () => {
  const comparisons = compareArms(values, {
    ...options,
    conclusive: () => true,
    scores: ["heldout", "image"],
  });
  const verdicts = (which: string) =>
    comparisons.filter(({ score }) => score === which)
      .map(({ id, wins, verdict }) => ({ id, wins, verdict }));
  assertEquals(verdicts("heldout"), verdicts("image"));
  const of = (id: string) =>
    verdicts("heldout").find((one) => one.id === id)?.verdict;
  assertEquals(of("edlora.gradient > edlora.weight"), "reproduced");
  assertEquals(of("lora loss > edlora loss (weight)"), "reproduced");
  // Weight fusion ruins LoRA, so gradient fusion has more to give back to it.
  assertEquals(
    of("edlora (gradient − weight) > lora (gradient − weight)"),
    "reversed",
  );
});

Deno.test("held-out error comes first, and each score has its own conclusion", () => {
  const comparisons = compareArms(values, {
    ...options,
    conclusive: (score) => score === "heldout",
  });
  assertEquals(comparisons[0].score, "heldout");
  for (const { score, verdict } of comparisons) {
    assertEquals(verdict === "no conclusion", score !== "heldout");
  }
});
