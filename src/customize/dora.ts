/**
 * What a weight does to a DoRA.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Dora } from "../nn/dora.ts";
import type { LowRank } from "../nn/linear.ts";

/**
 * How a weight w acts on a DoRA, which has both a scale and a magnitude:
 *
 * - `peft` multiplies the scale: m·(W₀ + w·s·BA)/‖W₀ + w·s·BA‖. At w = 0 the
 *   magnitudes stay.
 * - `lycoris` multiplies the renormalisation: (W₀ + s·BA)·(1 + w·(m/‖·‖ − 1)),
 *   so at w = 0 a plain LoRA is left.
 * - `change` multiplies the whole change (ComfyUI): W₀ + w·(W' − W₀), which is
 *   W₀ at w = 0.
 *
 * At w = 1 they are equal.
 */
export type DoraWeighting = "peft" | "lycoris" | "change";

/**
 * Sets the weight of a leaf; the result keeps the leaf at weight 1.
 *
 * @param low The leaf.
 * @param weight The weight.
 * @param weighting What it does to a DoRA.
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
 * Checks a weighting.
 *
 * @param weighting The weighting.
 * @param what What cannot be done with another.
 * @throws If it is none.
 */
export function checkDoraWeighting(
  weighting: DoraWeighting,
  what: string,
): void {
  if (!["peft", "lycoris", "change"].includes(weighting)) {
    throw cannot(what, "dora peft, lycoris or change", String(weighting));
  }
}
