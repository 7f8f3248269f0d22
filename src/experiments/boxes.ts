/**
 * Concepts in boxes of a picture: how much each box shows of each concept.
 *
 * @module
 */
import type { Box } from "../diffusion/regions.ts";
import { imageAlignment } from "../evaluation/clip_score.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import type { Subject } from "./subjects.ts";

/** Boxes of a left and of a right concept. */
export const HALVES: readonly Box[] = [
  { top: 0.1, left: 0.03, bottom: 0.95, right: 0.47 },
  { top: 0.1, left: 0.53, bottom: 0.95, right: 0.97 },
];

/**
 * Masked image alignment of boxes with concepts: that of the window in the box
 * where it is largest, mean over pictures.
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
