/**
 * The capacity ratio of fused concepts: the sum of their ranks per layer width.
 *
 * @module
 */
import type { TreeLike } from "../core/tree.ts";
import { sites, type TargetName, targets } from "../customize/lora.ts";
import type { Model } from "../models/model.ts";

/** n·r/d of all adapted layers: the smallest and the largest. */
export interface Capacity {
  /** Of the UNet. */
  readonly unet: [number, number];
  /** Of the text encoder. */
  readonly textEncoder: [number, number];
}

/**
 * The largest n·r/d in Stable Diffusion 1.5 with the paper's 14 concepts of
 * rank 4: 14·4/320.
 */
export const SD_CAPACITY = 0.175;

/**
 * The capacity ratio n·r/d: the ΔW of n concepts of rank r span at most n·r of
 * a layer's d input dimensions. Above 1 they cannot all be independent.
 *
 * @param model The model.
 * @param n Number of fused concepts.
 * @param rank Rank of their adapters.
 * @param layers Layers with an adapter.
 * @returns Rounded to five decimals.
 */
export function capacityOf(
  model: Pick<Model, "unet" | "textEncoder">,
  n: number,
  rank: number,
  layers: TargetName = "attention",
): Capacity {
  const isAdapted = targets(layers);
  const of = (component: "unet" | "textEncoder"): [number, number] => {
    const adapted = sites(
      model[component].params as TreeLike,
      (site) => isAdapted(component, site),
    );
    // The adapters have no layer in this network.
    if (adapted.length === 0) return [0, 0];
    const all = adapted.map(({ inputs, kernel: [height, width] }) =>
      Math.round(1e5 * n * rank / (inputs * height * width)) / 1e5
    );
    return [Math.min(...all), Math.max(...all)];
  };
  return { unet: of("unet"), textEncoder: of("textEncoder") };
}
