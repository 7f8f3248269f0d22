/**
 * `deno task evaluate --test-evaluator`: does a CLIP see shape, and tell
 * subjects apart?
 *
 * @module
 */
import type { BackendChoice } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import { type Example, readExamples } from "../customize/dataset.ts";
import { generate } from "../diffusion/pipeline.ts";
import type { MaskedPicture } from "../evaluation/corruptions.ts";
import { loadClipEvaluator } from "../evaluation/evaluator.ts";
import {
  checkEvaluator,
  type EvaluatorCheck,
  type EvaluatorSet,
  evaluatorTable,
  evaluatorVerdict,
} from "../evaluation/evaluator_check.ts";
import { loadMobileNet } from "../evaluation/outside_evaluator.ts";
import { PRESETS } from "../experiments/presets.ts";
import { assertWritableFile, joinPath, writeJson } from "../io/files.ts";
import type { Pixels } from "../io/png.ts";
import type { Colour } from "../io/resize.ts";
import { loadConceptArt } from "../micro/concepts.ts";
import { classWordPrompts, evaluatorSet } from "../micro/evaluator_set.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import { textTable } from "../report/table.ts";
import { EMBEDDED, localModel, mustExist, startBackend } from "./models.ts";
import { checkBackground, firstFrames } from "./options.ts";
import { createProgress, terminalColumns } from "./progress.ts";

/** What `--test-evaluator` is asked. */
export interface EvaluatorTestRequest {
  /** A CLIP's folder, or its name on the hub. */
  readonly clip: string;
  /** Whether MobileNetV2 is tested, too. */
  readonly mobileNet: boolean;
  /** Pictures with masks, or a folder of them per concept. */
  readonly references?: string;
  /** What the base model draws for the class word. */
  readonly classPictures?: string;
  /** What transparent pixels show. */
  readonly background?: Colour;
  /** Seed of the shuffles. */
  readonly seed: number;
  /** Where JSON goes, too. */
  readonly out?: string;
  /** Prints JSON only. */
  readonly json: boolean;
  /** Where it is computed. */
  readonly backend: BackendChoice;
}

/** Side in pixels that users' pictures are tested at. */
const SIDE = 256;

/** Pictures of a folder, cut to squares. */
async function read(
  folder: string,
  background: Colour | undefined,
): Promise<Example[]> {
  const examples = await readExamples(folder, { size: SIDE, background });
  for (const line of firstFrames(examples)) console.error(line);
  return examples;
}

/**
 * Reads what an evaluator is tested on.
 *
 * @param references Pictures with `masks/NAME.png`, or a folder of them per
 * concept.
 * @param classPictures What the base model draws for the class word.
 * @param background What transparent pixels show.
 * @throws If a picture has no mask, or there are none.
 */
export async function readEvaluatorSet(
  references: string,
  classPictures?: string,
  background?: Colour,
): Promise<EvaluatorSet> {
  const names: string[] = [];
  for await (const { name, isDirectory } of Deno.readDir(references)) {
    if (isDirectory && name !== "masks") names.push(name);
  }
  const seen: Example[] = [];
  const pictures = async (folder: string) => {
    const found = await read(folder, background);
    seen.push(...found);
    return found;
  };
  const drawn = classPictures
    ? (await pictures(classPictures)).map(({ pixels }) => pixels)
    : [];
  const subjects = async (folder: string): Promise<MaskedPicture[]> =>
    (await pictures(folder)).map(({ pixels, mask }, i) => {
      if (!mask) {
        throw cannot(
          `test an evaluator on ${folder}`,
          "masks/NAME.png for each picture",
          `none for picture ${i}`,
        );
      }
      return { image: pixels, mask: Float32Array.from(mask.data) };
    });
  const folders: [string, string][] = names.length > 0
    ? names.sort().map((name) => [name, joinPath(references, name)])
    : [["the concept", references]];
  const identities = await Promise.all(
    folders.map(async ([name, folder]) => ({
      name,
      references: await subjects(folder),
      gallery: [],
      classWord: drawn,
    })),
  );
  checkBackground(background, seen);
  return {
    identities,
    lookAlikes: drawn.length > 0
      ? [{ name: "class word", gallery: drawn }]
      : [],
  };
}

/** The embedded world; the embedded model draws the class words. */
async function embeddedSet(): Promise<EvaluatorSet> {
  const prompts = classWordPrompts();
  const { sampling } = PRESETS.ablation;
  const model = await loadModel(EMBEDDED);
  const progress = createProgress();
  const drawn = new Map<string, Pixels[]>();
  try {
    const words = [...new Set(prompts.map(({ classWord }) => classWord))];
    for (const [i, word] of words.entries()) {
      progress.update("class words", i, words.length, "word");
      const texts = prompts.filter(({ classWord }) => classWord === word)
        .map(({ text }) => text);
      const images = await generate(model, {
        ...sampling,
        prompts: texts,
        key: texts.map((text) => fold(key(0), "class word", text)),
        batch: texts.length,
      });
      drawn.set(word, images);
    }
    progress.update("class words", words.length, words.length, "word");
  } finally {
    disposeModel(model);
    progress.finish();
  }
  return evaluatorSet(await loadConceptArt(), (word) => drawn.get(word)!);
}

/**
 * Tests the evaluators and says what came out.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written or the backend is not available.
 */
export async function runEvaluatorTest(
  request: EvaluatorTestRequest,
): Promise<void> {
  const { references, classPictures, background, out } = request;
  await mustExist("evaluate", references, classPictures);
  if (out) await assertWritableFile(out);
  await startBackend(request.backend);
  const clip = await localModel(request.clip);
  const set = references
    ? await readEvaluatorSet(references, classPictures, background)
    : await embeddedSet();
  const checks: Record<string, EvaluatorCheck> = {};
  for (
    const open of [
      () => loadClipEvaluator(clip),
      ...(request.mobileNet ? [loadMobileNet] : []),
    ]
  ) {
    using evaluator = await open();
    checks[evaluator.name === clip ? request.clip : evaluator.name] =
      await checkEvaluator(
        (images) => evaluator.embed(images),
        set,
        fold(key(request.seed), "evaluator"),
      );
  }
  if (out) await writeJson(out, checks);
  if (request.json) return console.log(JSON.stringify(checks, null, 2));
  for (const [name, check] of Object.entries(checks)) {
    console.log(evaluatorVerdict(name, check));
  }
  console.log(
    `\n${textTable(evaluatorTable(checks), terminalColumns())}\n` +
      "In brackets: the share of the distance from the first row to " +
      "the class word (else other identities) that is lost.",
  );
  if (out) console.log(out);
}
