/**
 * DoRA (Liu et al. 2024) at other weights than 1, in the meanings of three peers;
 * the formula itself is in nn/linear.ts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Dora, LowRank } from "../nn/linear.ts";

/**
 * What a weight w does to a DoRA, in which scale and magnitude are two things:
 *
 * - `peft` multiplies the scale: m·(W₀ + w·s·BA)/‖W₀ + w·s·BA‖. At w = 0 the
 *   magnitudes stay.
 * - `lycoris` multiplies the renormalisation: (W₀ + s·BA)·(1 + w·(m/‖·‖ − 1)),
 *   so at w = 0 a plain LoRA is left.
 * - `change` multiplies the whole change (ComfyUI): W₀ + w·(W' − W₀), which is
 *   W₀ at w = 0.
 *
 * At w = 1 all are the same.
 */
export type DoraWeighting = "peft" | "lycoris" | "change";

/**
 * A leaf at a weight; it remembers itself at weight 1, so that the weight can be
 * changed again.
 *
 * @param low The leaf, at any weight.
 * @param weight The weight, counted from 1.
 * @param weighting What the weight does to a DoRA.
 */
export function weighted(
  low: LowRank,
  weight: number,
  weighting: DoraWeighting,
): LowRank {
  const { unweighted = low, ...rest } = low;
  const { scale, dora } = unweighted;
  const base: Pick<LowRank, "scale" | "dora"> = dora === undefined
    ? { scale }
    : { scale, dora };
  // A leaf whose weight was changed by a magnitude has none of its own.
  delete (rest as { dora?: Dora }).dora;
  if (!low.magnitude || weighting === "peft") {
    return { ...rest, ...base, scale: scale * weight, unweighted: base };
  }
  const changed: Dora = weighting === "lycoris"
    ? { ...dora, share: (dora?.share ?? 1) * weight }
    : { ...dora, strength: (dora?.strength ?? 1) * weight };
  return { ...rest, scale, dora: changed, unweighted: base };
}

/**
 * Checks the name of a way to weight DoRAs.
 *
 * @param weighting The name.
 * @param what What is being done, for messages.
 * @throws If there is no such way.
 */
export function checkDoraWeighting(
  weighting: DoraWeighting,
  what: string,
): void {
  if (!["peft", "lycoris", "change"].includes(weighting)) {
    throw cannot(what, "dora peft, lycoris or change", String(weighting));
  }
}
