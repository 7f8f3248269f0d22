/**
 * The first step of image-to-image sampling.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/**
 * Number of initial (noisiest) steps that are skipped, as in diffusers.
 *
 * @param steps Sampling steps.
 * @param strength Share of the steps that are run: above 0, up to 1 for all.
 * @throws If no step would be left.
 *
 * @example
 * ```ts
 * import { assertEquals } from "@std/assert";
 * import { startStepOf } from "./start_step.ts";
 *
 * assertEquals(startStepOf(20, 0.75), 5);
 * assertEquals(startStepOf(20, 1), 0);
 * ```
 */
export function startStepOf(steps: number, strength: number): number {
  if (!(strength > 0 && strength <= 1)) {
    throw cannot("start from a picture", "a strength in (0, 1]", strength);
  }
  const left = Math.min(Math.floor(steps * strength), steps);
  if (left < 1) {
    throw cannot(
      "start from a picture",
      `a strength of at least ${1 / steps}, a step of ${steps}`,
      strength,
    );
  }
  return steps - left;
}
