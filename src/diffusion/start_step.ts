/**
 * Where a course of sampling steps starts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/**
 * How many steps are left out at the noisy end, as diffusers counts them.
 *
 * @param steps Sampling steps.
 * @param strength How much is made anew: above 0, to 1 for all steps.
 * @throws If not one step would be left.
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
