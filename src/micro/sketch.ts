import { canny, type Grey } from "../diffusion/condition_images.ts";
import type { Art } from "./art.ts";
import { renderMask, type Scene } from "./scenes.ts";

/**
 * A sketch of a scene: the outline of every object, in front of nothing.
 *
 * @param scene The scene.
 * @param art Loaded art.
 * @returns `[side, side]`, 1 on outlines, as a condition image.
 */
export function sketchOf(scene: Scene, art: Art): Grey {
  const { side } = scene;
  const values = new Float32Array(side * side);
  scene.objects.forEach((_, i) => {
    outlineOf(renderMask(scene, art, i), side).values.forEach((v, k) => {
      values[k] = Math.max(values[k], v);
    });
  });
  return { width: side, height: side, values };
}

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
