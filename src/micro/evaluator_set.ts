import type { EvaluatorSet } from "../evaluation/evaluator_check.ts";
import type { Pixels } from "../io/png.ts";
import type { Art } from "./art.ts";
import { withArticle } from "./captions.ts";
import {
  conceptImage,
  conceptImages,
  otherDesignImage,
  otherDesigns,
  REFERENCE_IMAGES,
} from "./concepts.ts";
import { squarePixels } from "./scenes.ts";
import { BACKGROUNDS, IDENTITIES, WORLD } from "./world.ts";

/** How large the set is. */
export interface EvaluatorSetSize {
  /**
   * References per identity, at least two.
   *
   * @default {20}
   */
  readonly references?: number;
  /**
   * Pictures per look-alike.
   *
   * @default {6}
   */
  readonly lookAlikes?: number;
}

/**
 * Prompts with the identities' class words, one per background: what the base
 * model draws from them is the far end of an evaluator's test.
 *
 * @param backgrounds How many backgrounds; all by default.
 */
export function classWordPrompts(
  backgrounds: number = BACKGROUNDS.length,
): { classWord: string; text: string }[] {
  return [...new Set(IDENTITIES.map((identity) => identity.class))].flatMap(
    (classWord) =>
      BACKGROUNDS.slice(0, backgrounds).map(({ phrases }) => ({
        classWord,
        text: `a photo of ${withArticle(classWord)} ${phrases[0]}`,
      })),
  );
}

/**
 * What an evaluator of the embedded world is tested on: references of the
 * sixteen identities, their training pictures as the gallery, and their code
 * points in other hands' designs as look-alikes.
 *
 * @param art From `loadConceptArt`.
 * @param classPictures What the base model draws for a class word.
 * @param size How many pictures of each.
 */
export function evaluatorSet(
  art: Art,
  classPictures: (classWord: string) => readonly Pixels[],
  { references = Infinity, lookAlikes = 6 }: EvaluatorSetSize = {},
): EvaluatorSet {
  const rgb = (data: Uint8Array) => squarePixels(WORLD.side, data);
  return {
    identities: IDENTITIES.map(({ name, class: classWord }) => ({
      name,
      references: Array.from(
        { length: Math.min(references, REFERENCE_IMAGES) },
        (_, i) => conceptImage(name, "reference", i, art),
      ).map(({ image, mask }) => ({ image: rgb(image), mask })),
      gallery: conceptImages(name, "train", art).map(({ image }) => rgb(image)),
      classWord: classPictures(classWord),
    })),
    lookAlikes: IDENTITIES.flatMap(({ name }) =>
      otherDesigns(name, art).map((design) => ({
        name: `${name}, ${design}`,
        gallery: Array.from(
          { length: lookAlikes },
          (_, i) => rgb(otherDesignImage(name, design, i, art).image),
        ),
      }))
    ),
  };
}
