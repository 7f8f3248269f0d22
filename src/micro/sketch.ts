import { canny, type Grey } from "../diffusion/condition_images.ts";
import type { Art } from "./art.ts";
import { renderMask } from "./scenes.ts";

/**
 * The outline of one object.
 *
 * @param mask Its alpha, rows from the top.
 * @param width Pixels in a row.
 */
export function outlineOf(mask: Float32Array, width: number): Grey {
  return canny({ width, height: mask.length / width, values: mask }, {
    // Masks are smooth enough; a blur would close narrow gaps.
    sigma: 0,
  });
}

/** An outline in a sketch: a frame of an identity in a square. */
export interface SketchObject {
  /** Proper name. */
  readonly concept: string;
  /** Which of its training frames. */
  readonly frame: number;
  /** Left edge of the square, pixels. */
  readonly x: number;
  /** Top edge, pixels. */
  readonly y: number;
  /** Side of the square, pixels. */
  readonly side: number;
}

/**
 * Outlines of identities on one picture.
 *
 * @param objects The outlines.
 * @param width Pixels of a row.
 * @param height Rows.
 * @param art Loaded art.
 */
export function sketchImage(
  objects: readonly SketchObject[],
  width: number,
  height: number,
  art: Art,
): Grey {
  const values = new Float32Array(width * height);
  for (const { concept, frame, x, y, side } of objects) {
    const mask = renderMask({
      side,
      background: "",
      texture: 0,
      objects: [{
        noun: concept,
        class: "",
        design: `train-${frame}`,
        color: null,
        size: null,
        place: "center",
        x: side / 2,
        y: side / 2,
        // A border, so that an outline that fills the square is closed.
        scale: side - 2,
        flip: false,
      }],
    }, art);
    outlineOf(mask, side).values.forEach((v, i) => {
      const [row, column] = [y + Math.floor(i / side), x + i % side];
      if (v === 0 || row < 0 || column < 0) return;
      if (row < height && column < width) values[row * width + column] = 1;
    });
  }
  return { width, height, values };
}
