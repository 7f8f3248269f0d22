import type { EvaluatorSet } from "../evaluation/evaluator_check.ts";
import type { Pixels } from "../io/png.ts";
import type { Art } from "./art.ts";
import { withArticle } from "./captions.ts";
import { conceptImages, otherDesignImage, otherDesigns } from "./concepts.ts";
import { BACKGROUNDS, IDENTITIES, WORLD } from "./world.ts";

/** Pictures of a look-alike. */
const LOOK_ALIKES = 6;

/**
 * Prompts with the identities' class words, one per background: what the base
 * model draws from them is the far end of an evaluator's test.
 */
export function classWordPrompts(): { classWord: string; text: string }[] {
  return [...new Set(IDENTITIES.map((identity) => identity.class))].flatMap(
    (classWord) =>
      BACKGROUNDS.map(({ phrases }) => ({
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
 */
export function evaluatorSet(
  art: Art,
  classPictures: (classWord: string) => readonly Pixels[],
): EvaluatorSet {
  const rgb = (data: Uint8Array): Pixels => ({
    width: WORLD.side,
    height: WORLD.side,
    channels: 3,
    data,
  });
  return {
    identities: IDENTITIES.map(({ name, class: classWord }) => ({
      name,
      references: conceptImages(name, "reference", art).map(
        ({ image, mask }) => ({ image: rgb(image), mask }),
      ),
      gallery: conceptImages(name, "train", art).map(({ image }) => rgb(image)),
      classWord: classPictures(classWord),
    })),
    lookAlikes: IDENTITIES.flatMap(({ name }) =>
      otherDesigns(name, art).map((design) => ({
        name: `${name}, ${design}`,
        gallery: Array.from(
          { length: LOOK_ALIKES },
          (_, i) => rgb(otherDesignImage(name, design, i, art).image),
        ),
      }))
    ),
  };
}
