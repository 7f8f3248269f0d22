/**
 * Adapters of random numbers.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { key, normal } from "../../src/core/random.ts";
import { layersOf, type LoraBase } from "../../src/formats/dialects/base.ts";
import type { Adapter, Component } from "../../src/customize/lora.ts";
import type { LowRank } from "../../src/nn/linear.ts";

/** An adapter of random factors for chosen layers of a model's configs. */
export function randomAdapter(
  base: LoraBase,
  keep: (component: Component, path: string) => boolean,
  options: {
    rank?: (path: string) => number;
    scale?: (path: string) => number;
    magnitudes?: "output" | "input";
  } = {},
): Adapter {
  const { rank = () => 2, scale = () => 1, magnitudes } = options;
  const layers = layersOf(base);
  const make = (component: Component) =>
    new Map(
      [...layers.sites[component].values()].filter(({ path }) =>
        keep(component, path)
      ).map((site, i): [string, LowRank] => {
        const r = rank(site.path);
        const linear = site.kind === "linear";
        const random = (shape: number[], seed: number) =>
          tf.tensor(
            normal(key(seed), shape.reduce((a, b) => a * b, 1), 0.1),
            shape,
          );
        const size = magnitudes === "input" ? site.inputs : site.outputs;
        return [site.path, {
          down: random(
            linear ? [site.inputs, r] : [...site.kernel, site.inputs, r],
            2 * i,
          ),
          up: random(
            linear ? [r, site.outputs] : [1, 1, r, site.outputs],
            2 * i + 1,
          ),
          scale: scale(site.path),
          ...(magnitudes
            ? { magnitude: random([size], 7 * i) as tf.Tensor1D }
            : {}),
          ...(magnitudes === "input" ? { dora: { of: "input" as const } } : {}),
        }];
      }),
    );
  return {
    name: "random",
    scaleRule: "alpha",
    textEncoder: make("textEncoder"),
    unet: make("unet"),
  };
}
