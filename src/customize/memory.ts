/**
 * Counts the memory that training needs, before it starts.
 *
 * @module
 */
import {
  type CountedBackend,
  counting,
  type CountingOptions,
  type Meter,
} from "../core/counting.ts";
import { boundCard } from "../core/device.ts";
import { key } from "../core/random.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import {
  BLANK_WORD,
  blankModel,
  type MemoryNeed,
  type ModelConfigs,
} from "../models/blank.ts";
import { disposeModel } from "../models/model.ts";
import { conceptTensors, disposeConcept } from "./concept.ts";
import { encodeData, type TrainData } from "./dataset.ts";
import { type Method, startConcept } from "./methods.ts";
import { type Memory, train, trainedNames } from "./train.ts";

/** What is trained, and how. */
export interface TrainingPlan {
  /** The method, with its configuration. */
  readonly method: Method;
  /**
   * Rank of the adapter.
   *
   * @default 4
   */
  readonly rank?: number;
  /** Height of the pictures in pixels. */
  readonly height: number;
  /** Width of the pictures in pixels. */
  readonly width: number;
  /**
   * Class pictures per step.
   *
   * @default 0
   */
  readonly prior?: number;
  /**
   * What gradients keep.
   *
   * @default "high"
   */
  readonly memory?: Memory;
  /**
   * Whether the model's weights are float16.
   *
   * @default false
   */
  readonly half?: boolean;
  /**
   * Whether pictures are encoded first: in batches of four, or of one with
   * `memory: "low"`.
   *
   * @default false
   */
  readonly encoding?: boolean;
}

/** Pictures of zeros, each with a caption of its own. */
function noPictures(
  { height, width }: TrainingPlan,
  { autoencoder, unet }: ModelConfigs,
  count: number,
): TrainData {
  const factor = downsampleFactor(autoencoder);
  const [h, w] = [Math.ceil(height / factor), Math.ceil(width / factor)];
  const size = count * h * w * unet.in_channels;
  return {
    count,
    height: h,
    width: w,
    channels: unet.in_channels,
    mean: new Float32Array(size),
    std: new Float32Array(size),
    captions: Array.from({ length: count }, (_, i) => [`${i} {}`]),
    mask: new Uint8Array(count * h * w).fill(1),
  };
}

/**
 * Counts the bytes of training: a step of the trainer itself, on a backend that
 * computes nothing.
 *
 * @param configs Configs of the model.
 * @param plan What is trained, and how.
 * @param options Which backend is counted, and the bytes an operation may read.
 *
 * @example
 * ```ts ignore
 * const { bytes } = await trainingMemory(configsOf(model), {
 *   method: method("ed-lora"),
 *   height: 512,
 *   width: 512,
 * });
 * ```
 */
export async function trainingMemory(
  configs: ModelConfigs,
  plan: TrainingPlan,
  options: CountingOptions = {},
): Promise<MemoryNeed> {
  return await counting(
    options,
    (meter) => countTraining(configs, plan, meter, options.kernels),
  );
}

async function countTraining(
  configs: ModelConfigs,
  plan: TrainingPlan,
  meter: Meter,
  kernels: CountedBackend = "webgpu",
): Promise<MemoryNeed> {
  const { method, rank, prior = 0 } = plan;
  const model = blankModel(configs, meter.empty, plan.half);
  const weights = meter.count().live;
  const concept = await startConcept(model, method, {
    name: "n",
    classWord: BLANK_WORD,
    key: key(0),
    rank,
  });
  const data = noPictures(plan, configs, method.train.batch);
  const config = { ...method.train, steps: 1, pivot: 0 };
  meter.restart();
  const unbound = plan.memory === "low" ? boundCard() : () => {};
  if (plan.encoding) {
    const { height, width } = plan;
    const pixels = {
      width,
      height,
      channels: 3 as const,
      data: new Uint8Array(3 * height * width),
    };
    const picture = { pixels, captions: ["{}"] };
    const count = plan.memory === "low" ? 1 : 4;
    await encodeData(model, new Array(count).fill(picture));
  }
  for await (
    const _ of train(model, concept, data, config, {
      memory: plan.memory,
      ...(prior > 0 ? { prior: noPictures(plan, configs, prior) } : {}),
    })
  ) { /* one step has all there is in any */ }
  unbound();
  const counted = meter.count();
  const params = conceptTensors(concept);
  const bytesOf = (names: Iterable<string>) =>
    [...names].reduce((sum, name) => sum + 4 * params.get(name)!.size, 0);
  const adapters = bytesOf(params.keys());
  const optimizer = 2 * bytesOf(trainedNames(concept, method.train));
  disposeConcept(concept);
  disposeModel(model);
  // They are allocated in the first update, after the first peak.
  const late = kernels === "wasm" ? 0 : optimizer;
  const [peak, held] = [counted.peak + late, counted.held + late];
  return {
    bytes: held,
    weights,
    adapters,
    optimizer,
    activations: peak - weights - adapters - optimizer,
    peak,
    held,
    largest: counted.largest,
  };
}
