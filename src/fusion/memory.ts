/**
 * Counts the memory that gradient fusion needs, before it starts.
 *
 * @module
 */
import { counting, type CountingOptions } from "../core/counting.ts";
import { boundCard } from "../core/device.ts";
import { finish } from "../core/finish.ts";
import { key } from "../core/random.ts";
import { at } from "../core/tree.ts";
import {
  addTokens,
  conceptTensors,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import type { TargetName } from "../customize/lora.ts";
import { method, startConcept } from "../customize/methods.ts";
import {
  BLANK_WORD,
  blankModel,
  type MemoryNeed,
  type ModelConfigs,
} from "../models/blank.ts";
import { disposeModel } from "../models/model.ts";
import { KEY_OR_VALUE, spatialStatistics, split } from "./features.ts";
import type { Stats } from "./statistics.ts";

/** What is fused, and how. */
export interface FusionPlan {
  /** How many concepts. */
  readonly concepts: number;
  /**
   * Whether layers are fused by gradient, or all by weight.
   *
   * @default "gradient"
   */
  readonly method?: "gradient" | "weight";
  /**
   * Layers fused by gradient.
   *
   * @default "attention"
   */
  readonly layers?: TargetName;
  /**
   * Pictures drawn for the features of a concept.
   *
   * @default 2
   */
  readonly images?: number;
  /**
   * The pipeline's option of that name.
   *
   * @default "high"
   */
  readonly memory?: "high" | "low";
  /**
   * Whether the model's weights are float16; weights that fusion changes are
   * always float32.
   *
   * @default false
   */
  readonly half?: boolean;
}

/** Bytes of Gram matrices, each in two halves of float64 numbers. */
function gramBytes(stats: Iterable<Stats>): number {
  return [...new Set(stats)].reduce(
    (sum, { features }) => sum + 2 * 8 * features ** 2,
    0,
  );
}

/**
 * Counts the bytes of gradient fusion: those of its largest stage (sampling
 * with every layer observed, run on a backend that computes nothing), of the
 * weights changed by then, and, on the host, of the statistics of all concepts.
 *
 * @param configs Configs of the model.
 * @param plan What is fused, and how.
 * @param options Which backend is counted, and the bytes an operation may read.
 */
export async function fusionMemory(
  configs: ModelConfigs,
  plan: FusionPlan,
  options: CountingOptions = {},
): Promise<MemoryNeed> {
  const { concepts: count, layers = "attention", images = 2, half } = plan;
  return await counting(options, async (meter) => {
    const base = blankModel(configs, meter.empty, half);
    const weights = meter.count().live;
    const concept = await startConcept(base, method("ed-lora"), {
      name: "n",
      classWord: BLANK_WORD,
      key: key(0),
    });
    const paths = (["textEncoder", "unet"] as const).map((component) =>
      split(base, [concept], component, layers).fitted.map((path) => ({
        path,
        weight: at(base[component].params, path).weight,
      }))
    );
    const made = paths.flat().map(({ weight }) => meter.empty(weight.shape));
    const adapter = [...conceptTensors(concept).values()]
      .reduce((sum, { size }) => sum + 4 * size, 0);
    const adapters = count * adapter +
      made.reduce((sum, { size }) => sum + 4 * size, 0);
    const model = addTokens(base, [concept]);
    const spatial = paths[1].map(({ path }) => path)
      .filter((path) => !KEY_OR_VALUE.test(path));
    const unbound = plan.memory === "low" ? boundCard() : () => {};
    meter.restart();
    let stats: ReadonlyMap<string, Stats> = new Map();
    try {
      if (plan.method !== "weight") {
        stats = await finish(
          spatialStatistics(model, concept, spatial, { images, steps: 1 }),
        );
      }
    } finally {
      unbound();
    }
    const { peak, held, largest } = meter.count();
    releaseTokens(model, base);
    for (const tensor of made) tensor.dispose();
    disposeConcept(concept);
    disposeModel(base);
    const others = (count - 1) * adapter;
    const host = count * gramBytes(stats.values());
    // Wasm has a memory of its own; JavaScript's arrays are not in it.
    return {
      bytes: held + others,
      weights,
      adapters,
      optimizer: 0,
      activations: peak + others - weights - adapters,
      peak: peak + others,
      held: held + others,
      largest,
      host,
    };
  });
}
