/**
 * Tests the evaluation CLIP of a lab: the first line of a report.
 *
 * @module
 */
import {
  type EvaluatorCheck,
  evaluatorVerdict,
} from "../evaluation/evaluator_check.ts";
import { exists, joinPath, readJson } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import { NotInStore } from "../lab/runner.ts";
import type { SamplingSettings } from "../lab/specs.ts";
import { specId } from "../lab/store.ts";
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

/** File of a model's folder with the outcome of its evaluator's test. */
export const EVALUATOR_RECORD = "evaluator.json";

/** The outcome of an evaluator's test, stored with a model. */
export interface EvaluatorRecord {
  /**
   * Hash of all that the outcome depends on: base model, evaluation CLIP, art,
   * prompts, how pictures are drawn, version of the code.
   */
  readonly key: string;
  /** The outcome. */
  readonly check: EvaluatorCheck;
}

/**
 * Tests the evaluation CLIP anew, unless the lab's store has the outcome.
 *
 * @param lab The lab.
 * @param sampling How the base model draws class words.
 * @throws If the lab's runner refuses work and the store lacks something.
 */
export async function recordEvaluator(
  lab: Lab,
  sampling: SamplingSettings,
): Promise<EvaluatorRecord> {
  const check = await lab.testEvaluator({
    classPictures: await classPictures(lab, sampling),
    seed: 0,
  });
  return { key: await recordKey(lab, sampling), check };
}

/** The key of a record of this lab's evaluator. */
function recordKey(
  { hashes: { model, clip, art } }: Lab,
  sampling: SamplingSettings,
): Promise<string> {
  const prompts = classWordPrompts();
  return specId({
    ...{ kind: "evaluator record", model, clip, art, prompts, sampling },
  });
}

/** The outcome that is stored with the model, if it is of this very test. */
async function storedCheck(
  lab: Lab,
  sampling: SamplingSettings,
): Promise<EvaluatorCheck | undefined> {
  const path = joinPath(lab.folders.model, EVALUATOR_RECORD);
  if (!await exists(path)) return undefined;
  const { key, check } = await readJson<EvaluatorRecord>(path);
  return key === await recordKey(lab, sampling) ? check : undefined;
}

/**
 * Tests the evaluation CLIP, unless the outcome is stored with the model or in
 * the lab's store.
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
    const check = await storedCheck(lab, sampling) ??
      (await recordEvaluator(lab, sampling)).check;
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
