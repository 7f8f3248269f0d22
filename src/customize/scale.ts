/**
 * The scale of a low-rank adapter by the α of kohya and PEFT.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { type Adapter, rankOf } from "./lora.ts";

/**
 * The adapter with ΔW = α/r · down · up, or α/√r with rank stabilisation
 * (rsLoRA, Kalajdzievski 2023), which keeps the size of activations at any rank.
 *
 * @param adapter The adapter; its tensors are shared.
 * @param alpha α; as large as the rank it changes nothing.
 * @param stable Whether the scale is α/√r.
 * @default stable false
 * @throws If α is not a number other than 0.
 *
 * @example
 * ```ts
 * const half = scaled(adapter, 2); // of rank 4: ΔW counts half
 * ```
 */
export function scaled(
  adapter: Adapter,
  alpha: number,
  stable = false,
): Adapter {
  if (!Number.isFinite(alpha) || alpha === 0) {
    throw cannot(`scale "${adapter.name}"`, "an alpha other than 0", alpha);
  }
  const of = (layers: Adapter["unet"]): Adapter["unet"] =>
    new Map([...layers].map(([path, low]) => {
      const rank = rankOf(low);
      return [path, {
        ...low,
        scale: alpha / (stable ? Math.sqrt(rank) : rank),
      }] as const;
    }));
  return {
    ...adapter,
    textEncoder: of(adapter.textEncoder),
    unet: of(adapter.unet),
  };
}
