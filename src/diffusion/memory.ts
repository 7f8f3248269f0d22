/**
 * Lower bound of the memory for drawing a picture, before it starts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { memoryLimit } from "../core/limits.ts";
import { parameterCount } from "../core/tree.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import type { ModelParts } from "../models/model.ts";

/** The minimum memory for a picture, and its parts. */
export interface DrawingMemory {
  /**
   * Bytes of the weights and of the largest feature maps that are needed at the
   * same time.
   */
  readonly bytes: number;
  /** The sum as text. */
  readonly arithmetic: string;
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;

/**
 * The least memory that drawing one picture takes: all weights, and the maps
 * that a residual block of the UNet or the decoder holds at full resolution (its
 * input, the normalised input, its output). A run cannot take less, and usually
 * takes more.
 *
 * @param model The model.
 * @param height Pixels.
 * @param width Pixels.
 * @param branches UNet inputs side by side: two with guidance.
 */
export function drawingMemory(
  model: ModelParts,
  height: number,
  width: number,
  branches = 2,
): DrawingMemory {
  const factor = downsampleFactor(model.autoencoder.config);
  const weights = 4 * [
    model.textEncoder.params,
    model.unet.params,
    model.autoencoder.params,
  ].reduce((sum, tree) => sum + parameterCount(tree), 0);
  const [first] = model.unet.config.block_out_channels;
  const [last, below = last] = model.autoencoder.config.block_out_channels;
  const maps = [
    {
      name: "the UNet",
      channels: 3 * first * branches,
      high: height / factor,
      wide: width / factor,
    },
    // The last block of the decoder has the channels of the level below at full
    // resolution.
    {
      name: "the decoder",
      channels: 2 * below + last,
      high: height,
      wide: width,
    },
  ].map((map) => ({ ...map, bytes: 4 * map.channels * map.high * map.wide }));
  const most = maps.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  return {
    bytes: weights + most.bytes,
    arithmetic: `${most.channels} channels × ${most.high} × ${most.wide} × 4 ` +
      `bytes in ${most.name} = ${gigabytes(most.bytes)}` +
      (weights < 5e7 ? "" : `, and ${gigabytes(weights)} of weights`),
  };
}

/**
 * Refuses pictures that cannot fit into memory with any option.
 *
 * @param model The model.
 * @param height Pixels.
 * @param width Pixels.
 * @param branches UNet inputs side by side.
 * @throws If the minimum exceeds the available memory; the message has the sum.
 *
 * @example
 * ```ts ignore
 * assertFits(model, 512, 512);
 * ```
 */
export function assertFits(
  model: ModelParts,
  height: number,
  width: number,
  branches?: number,
): void {
  const { bytes, arithmetic } = drawingMemory(model, height, width, branches);
  const limit = memoryLimit();
  if (bytes <= limit.bytes) return;
  throw cannot(
    `draw ${width}×${height} pixels`,
    `a size that needs at most ${gigabytes(limit.bytes)}, all ${limit.whose}`,
    `one that needs ${gigabytes(bytes)} (${arithmetic}); a smaller size fits`,
  );
}
