/**
 * Image alignment of boxes of a picture with concepts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import type { Box } from "../diffusion/regions.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import type { ModelRef, SamplingSettings } from "../lab/specs.ts";
import { oneDomain, type Subject } from "./subjects.ts";

/** Size of a picture of two concepts. */
export const WIDE = { width: 96, height: 64 } as const;

/** Boxes of a left and of a right concept. */
const HALVES: readonly Box[] = [
  { top: 0.1, left: 0.03, bottom: 0.95, right: 0.47 },
  { top: 0.1, left: 0.53, bottom: 0.95, right: 0.97 },
];

/**
 * Masked image alignment of boxes with concepts: the largest over the windows
 * in a box, mean over pictures.
 *
 * @param lab The lab.
 * @param images Names of pictures in the store.
 * @param boxes Boxes, the same in every picture.
 * @param concepts The concepts.
 * @returns Rows of boxes, columns of concepts.
 */
export async function boxAlignment(
  lab: Lab,
  images: readonly string[],
  boxes: readonly Box[],
  concepts: readonly Pick<Subject, "references">[],
): Promise<number[][]> {
  const references = await lab.references(
    concepts.map((one) => one.references),
  );
  const regions = boxes.map(({ top, left, bottom, right }) => (
    { x: left, y: top, width: right - left, height: bottom - top }
  ));
  const [embedded] = await lab.embed([
    { images, regions: images.map(() => regions) },
  ]);
  return boxes.map((_, i) =>
    references.map(({ masked }) =>
      mean(
        embedded.map(({ regions }) =>
          Math.max(...regions[i].map((view) => imageAlignment(view, masked)))
        ),
      )
    )
  );
}

/**
 * Alignment of the halves of pictures with their own concept and with the other
 * one.
 */
export interface PairAlignment {
  /** Masked image alignment of a half with its own concept. */
  readonly own: number;
  /** The same with the other half's. */
  readonly other: number;
}

/**
 * Alignment of the left and the right half with a pair of concepts.
 *
 * @param lab The lab.
 * @param images Names of pictures in the store.
 * @param pair The left and the right concept.
 */
export async function pairAlignment(
  lab: Lab,
  images: readonly string[],
  pair: readonly Pick<Subject, "references">[],
): Promise<PairAlignment> {
  const [[a, b], [c, d]] = await boxAlignment(lab, images, HALVES, pair);
  return { own: (a + d) / 2, other: (b + c) / 2 };
}

/**
 * Regions of a pair on grass: the left half and the right one.
 *
 * @param words Words of the left and of the right concept, with their article.
 * @param negative Whether each half has the other's words as negative prompt.
 */
export function pairRegions(
  words: readonly [string, string],
  negative: boolean,
): LayoutInput["regions"] {
  return words.map((own, i) => ({
    box: HALVES[i],
    prompt: `${own} on grass`,
    ...(negative && { negative: words[1 - i] }),
  }));
}

/**
 * Draws layouts with a model that has all concepts, each from the same noise.
 *
 * @param lab The lab.
 * @param model The model.
 * @param sampling How pictures are drawn.
 * @param layouts The layouts.
 * @param noise Determines the noise, together with the picture's number.
 * @param count Pictures of each layout.
 * @returns Names of each layout's pictures in the store.
 */
export function drawLayouts(
  lab: Lab,
  model: ModelRef,
  { sampler, steps, guidance, negative }: SamplingSettings,
  layouts: readonly Pick<LayoutInput, "prompt" | "size" | "regions">[],
  noise: readonly string[],
  count: number,
): Promise<string[][]> {
  return lab.compose(layouts.map((own) => ({
    ...{ model, how: "model" as const, concepts: [] },
    layout: { negative, sampler, steps, guidance, ...own },
    noise: Array.from({ length: count }, (_, i) => [0, ...noise, i]),
  })));
}

/**
 * Refuses concepts that cannot be drawn in pairs.
 *
 * @param concepts Proper names.
 */
export function checkPairs(concepts: readonly string[]): void {
  oneDomain(concepts);
  if (concepts.length > 1) return;
  throw cannot("draw pairs", "at least two concepts", concepts.join(", "));
}
