import type { Pixels } from "../io/png.ts";
import type { Art } from "./art.ts";
import { conceptImages, otherDesignImage, otherDesigns } from "./concepts.ts";
import { IDENTITIES, WORLD } from "./world.ts";

/** Pictures of a look-alike. */
const LOOK_ALIKES = 6;

/**
 * What an evaluator of the embedded world is tested on: references of the
 * sixteen identities, their training pictures as the gallery, and their code
 * points in other hands' designs as look-alikes. The shape is that of
 * `EvaluatorSet`.
 *
 * @param art From `loadConceptArt`.
 * @param classPictures What the base model draws for a class word.
 */
export function evaluatorSet(
  art: Art,
  classPictures: (classWord: string) => readonly Pixels[],
): {
  identities: {
    name: string;
    references: { image: Pixels; mask: Float32Array }[];
    gallery: Pixels[];
    classWord: readonly Pixels[];
  }[];
  lookAlikes: { name: string; gallery: Pixels[] }[];
} {
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
