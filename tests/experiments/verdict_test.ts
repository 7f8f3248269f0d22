import { assert, assertEquals } from "@std/assert";
import type {
  Arm,
  Comparison,
  ScoreEstimate,
} from "../../src/experiments/ablation_schema.ts";
import { verdict, type VerdictFacts } from "../../src/experiments/verdict.ts";

const score = (mean: number, low = mean): ScoreEstimate => ({
  mean,
  low,
  high: mean,
});
const scores = (text: number, image: number, low = 0) => ({
  text: score(text, low),
  image: score(image),
  masked: score(image),
  retrieval: score(0),
});
const arm = (change: Partial<Arm> = {}): Arm => ({
  embedding: "edlora",
  fusion: "gradient",
  lambda: null,
  single: scores(0.7, 0.8),
  fused: scores(0.7, 0.78),
  loss: scores(0, 0.02),
  retained: scores(0, 0.9),
  fusionSeconds: 1,
  drift: 0,
  layers: [],
  ...change,
});
const comparison = (change: Partial<Comparison> = {}): Comparison => ({
  id: "a > b",
  claim: "a keeps more than b",
  paper: true,
  score: "image",
  mean: 0.05,
  low: 0.01,
  high: 0.09,
  n: 5,
  wins: 4,
  verdict: "reproduced",
  ...change,
});
const facts = (change: Partial<VerdictFacts> = {}): VerdictFacts => ({
  scale: "default",
  concepts: 5,
  headroom: { median: 0.2, required: 0.1, enough: true },
  comparisons: [comparison()],
  arms: { "edlora.gradient": arm() },
  ...change,
});

Deno.test("a verdict follows from the numbers", () => {
  const text = verdict(facts());
  assert(text.includes("fusion keeps: gradient fusion 90 % (ED-LoRA)."), text);
  assert(
    text.includes(
      "Of the paper's claims, reproduced: a keeps more than b (+0.050, +0.010 to +0.090, 4 of 5).",
    ),
    text,
  );
  assert(!text.includes("reversed") && !text.includes("But"), text);
  assert(text.endsWith("5 concepts, which are few."));
});

Deno.test("claims change sides with their verdicts", () => {
  const text = verdict(facts({
    comparisons: [
      comparison({ verdict: "reversed", mean: -0.05, low: -0.09, high: -0.01 }),
      comparison({ verdict: "not shown", claim: "c", low: -0.1 }),
      // Other scores are in the table, not in the sentence.
      comparison({ score: "masked", claim: "masked claim" }),
    ],
  }));
  assert(text.includes("claims, reversed: a keeps more than b (−0.050"), text);
  assert(text.includes("claims, not shown: c"), text);
  assert(!text.includes("reproduced") && !text.includes("masked claim"), text);
});

Deno.test("what goes beyond the paper is shown, not reproduced", () => {
  const text = verdict(facts({
    comparisons: [
      comparison({ paper: false, verdict: "shown", claim: "a" }),
      comparison({ paper: false, verdict: "reversed", claim: "b" }),
      comparison({ paper: false, verdict: "not shown", claim: "c" }),
    ],
  }));
  assert(text.includes("Beyond the paper, shown: a (+0.050"), text);
  assert(text.includes("Beyond the paper, the reverse shown: b"), text);
  assert(text.includes("Beyond the paper, not shown: c."), text);
  assert(!text.includes("the paper's claims"), text);
});

Deno.test("a bootstrap that disagrees about zero is told of", () => {
  const says = (low: number, high: number) =>
    verdict(facts({ comparisons: [comparison({ bootstrap: { low, high } })] }))
      .includes("says otherwise");
  assertEquals([says(0.02, 0.08), says(-0.01, 0.08)], [false, true]);
});

Deno.test("a fused model that ignores its prompts is called that", () => {
  const text = verdict(facts({
    arms: {
      "edlora.gradient": arm({
        fused: scores(0.5, 0.8),
        loss: scores(0.2, 0, 0.1),
      }),
    },
  }));
  assert(
    text.includes("But text alignment falls from 0.70 to 0.50 in gradient"),
    text,
  );
});

Deno.test("no headroom, one concept or a quick run: no conclusion", () => {
  const headroom = { median: 0.05, required: 0.1, enough: false };
  assert(
    verdict(facts({ headroom })).startsWith("Uninterpretable: the median"),
  );
  assert(verdict(facts({ concepts: 1 })).startsWith("No conclusion"));
  assertEquals(
    verdict(facts({ scale: "quick", headroom })).slice(0, 30),
    "Mechanics only, no conclusion:",
  );
});

Deno.test("a part of a run says first that it is one", () => {
  const part = { seeds: [0], planned: [0, 1, 2] };
  const first = "Partial run, no conclusion: seeds 0 of the planned 0, 1, 2. ";
  assertEquals(verdict(facts(part)), first + verdict(facts()));
  const headroom = { median: 0.05, required: 0.1, enough: false };
  assert(verdict(facts({ ...part, headroom })).startsWith(first));
});
