/**
 * Counts the memory that sampling needs, before it starts.
 *
 * @module
 */
import { counting, type CountingOptions } from "../core/counting.ts";
import {
  blankModel,
  type MemoryNeed,
  type ModelConfigs,
} from "../models/blank.ts";
import { disposeModel } from "../models/model.ts";
import { pipeline } from "./pipeline.ts";

/** What is drawn, and how. */
export interface SamplingPlan {
  /** Height of the pictures in pixels. */
  readonly height: number;
  /** Width of the pictures in pixels. */
  readonly width: number;
  /**
   * Pictures per batch; the pipeline's option `batch`.
   *
   * @default 4
   */
  readonly batch?: number;
  /**
   * Guidance scale; other than 1 it doubles the UNet's batch.
   *
   * @default 7.5
   */
  readonly guidance?: number;
  /**
   * As the pipeline is told.
   *
   * @default "high"
   */
  readonly memory?: "high" | "low";
  /**
   * Whether the model's weights are float16.
   *
   * @default false
   */
  readonly half?: boolean;
}

/**
 * Counts the bytes of drawing: two steps and the decoder of the pipeline itself,
 * on a backend that computes nothing.
 *
 * @param configs Configs of the model.
 * @param plan What is drawn, and how.
 * @param options Which backend is counted, and the bytes an operation may read.
 *
 * @example
 * ```ts ignore
 * const { bytes } = await samplingMemory(configsOf(model), {
 *   height: 512,
 *   width: 512,
 *   batch: 1,
 * });
 * ```
 */
export async function samplingMemory(
  configs: ModelConfigs,
  plan: SamplingPlan,
  options: CountingOptions = {},
): Promise<MemoryNeed> {
  const { height, width, batch = 4, guidance, memory, half } = plan;
  return await counting(options, async (meter) => {
    const model = blankModel(configs, meter.empty, half);
    const weights = meter.count().live;
    meter.restart();
    const records = pipeline(model, {
      prompts: Array.from({ length: batch }, (_, i) => `a ${i}`),
      height,
      width,
      batch,
      guidance,
      memory,
      steps: 2,
    });
    for await (const record of records) {
      if (record.type === "images") record.images.dispose();
    }
    const { peak, held, largest } = meter.count();
    disposeModel(model);
    return {
      bytes: held,
      weights,
      adapters: 0,
      optimizer: 0,
      activations: peak - weights,
      peak,
      held,
      largest,
    };
  });
}
