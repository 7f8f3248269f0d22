/**
 * Tests the evaluation CLIP of a lab: the first line of a report.
 *
 * @module
 */
import { evaluatorVerdict } from "../evaluation/evaluator_check.ts";
import type { Lab } from "../lab/lab.ts";
import { NotInStore } from "../lab/runner.ts";
import type { SamplingSettings } from "../lab/specs.ts";
import { classWordPrompts } from "../micro/evaluator_set.ts";

/** The outcome of the test of the evaluation CLIP. */
export interface EvaluatorOutcome {
  /** The first line of a report. */
  line: string;
  /**
   * Thresholds that it misses, one sentence each; null if it was not tested.
   */
  failures: string[] | null;
}

/**
 * Pictures that the base model draws for each class word: the lower reference
 * of an evaluator's test.
 *
 * @param lab The lab.
 * @param sampling How they are drawn.
 * @returns Names in the store, by class word.
 */
export async function classPictures(
  lab: Lab,
  sampling: SamplingSettings,
): Promise<Record<string, string[]>> {
  const prompts = classWordPrompts();
  const samples = prompts.map(({ text }) => (
    { text, noise: [0, "class word", text] }
  ));
  const model = { type: "base" } as const;
  const [images] = await lab.draw([{ model, samples, sampling }]);
  const words = Map.groupBy(images.keys(), (i) => prompts[i].classWord);
  return Object.fromEntries(
    [...words].map(([word, own]) => [word, own.map((i) => images[i])]),
  );
}

/**
 * Tests the evaluation CLIP, unless the store has the outcome.
 *
 * @param lab The lab.
 * @param sampling How the base model draws class words.
 */
export async function testEvaluator(
  lab: Lab,
  sampling: SamplingSettings,
): Promise<EvaluatorOutcome> {
  const folder = lab.folders.clip?.split("/").findLast((part) => part !== "");
  const name = `${folder} (${lab.hashes.clip.slice(0, 8)})`;
  try {
    const check = await lab.testEvaluator({
      classPictures: await classPictures(lab, sampling),
      seed: 0,
    });
    return {
      line: evaluatorVerdict(name, check),
      failures: [...check.failures],
    };
  } catch (error) {
    if (!(error instanceof NotInStore)) throw error;
    return {
      line:
        `The evaluator ${name} was not tested: its test is not in the store.`,
      failures: null,
    };
  }
}
