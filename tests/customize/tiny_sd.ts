/**
 * The tiny Stable Diffusion of the fixtures, and named tensors from them.
 *
 * @module
 */
import type { TargetName } from "../../src/customize/lora.ts";
import * as tf from "@tensorflow/tfjs";
import { fold, key } from "../../src/core/random.ts";
import {
  attachConcept,
  type Concept,
  initConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import type { AdapterSampling } from "../../src/customize/region_adapters.ts";
import {
  generate,
  type PipelineOptions,
} from "../../src/diffusion/pipeline.ts";
import { openSafetensors, toFloat32 } from "../../src/io/safetensors.ts";
import { loadModel, type Model } from "../../src/models/model.ts";
import { fixturePath } from "../helpers.ts";
import { withRandomUp } from "./random_up.ts";

/** Loads the tiny model; the caller disposes it. */
export function tinySd(): Promise<Model> {
  return loadModel(fixturePath("tiny-sd"));
}

/** A fixture file: floats as tensors, integers as rows of numbers. */
export interface Golden {
  /** A float tensor as it lies on disk; disposed with the file. */
  tensor<T extends tf.Tensor = tf.Tensor>(name: string): T;
  /** A [b, c, h, w] tensor as [b, h, w, c]. */
  nhwc(name: string): tf.Tensor4D;
  /** Float values. */
  values(name: string): Float32Array;
  /** Rows of an integer tensor; one row if it has one axis. */
  rows(name: string): number[][];
  readonly names: string[];
  dispose(): void;
}

/** Reads a whole fixture file. */
export async function golden(path: string): Promise<Golden> {
  const file = await openSafetensors(fixturePath(path));
  const floats = new Map<string, { values: Float32Array; shape: number[] }>();
  const integers = new Map<string, number[][]>();
  for (const [name, entry] of file.entries) {
    const raw = await file.read(name);
    if (entry.dtype === "I64") {
      const values = [...toFloat32(raw)];
      const width = entry.shape.at(-1) ?? 1;
      integers.set(
        name,
        Array.from(
          { length: values.length / width },
          (_, i) => values.slice(i * width, (i + 1) * width),
        ),
      );
    } else {
      floats.set(name, { values: toFloat32(raw), shape: entry.shape });
    }
  }
  file.close();
  const made: tf.Tensor[] = [];
  const get = (name: string) => {
    const found = floats.get(name);
    if (!found) throw new Error(`no ${name} in ${path}`);
    return found;
  };
  const tensor = <T extends tf.Tensor>(name: string): T => {
    const { values, shape } = get(name);
    const t = tf.tensor(values, shape) as T;
    made.push(t);
    return t;
  };
  return {
    tensor,
    nhwc(name) {
      const t = tf.transpose(tensor<tf.Tensor4D>(name), [0, 2, 3, 1]);
      made.push(t);
      return t;
    },
    values: (name) => get(name).values,
    rows: (name) => integers.get(name)!,
    names: [...floats.keys()],
    dispose: () => made.forEach((t) => t.isDisposed || t.dispose()),
  };
}

/** A [b, h, w, c] tensor's values in the order of [b, c, h, w]. */
export async function nchw(x: tf.Tensor): Promise<Float32Array> {
  const t = tf.transpose(x as tf.Tensor4D, [0, 3, 1, 2]);
  const values = await t.data() as Float32Array;
  t.dispose();
  return values;
}

/** How the tests draw with concepts. */
export const DRAWN = {
  steps: 3,
  sampler: "ddim" as const,
  guidance: 3,
  key: key(5),
  height: 48,
  width: 64,
};

/** A concept whose LoRA does something. */
export async function changedConcept(
  model: Model,
  name: string,
  targets: TargetName = "attention",
): Promise<Concept> {
  const fresh = await initConcept(model, {
    name,
    classWord: "cat",
    key: fold(key(1), name),
    severalTokens: "mean",
    lora: { rank: 2, targets },
  });
  return {
    ...fresh,
    adapter: withRandomUp(fresh.adapter, fold(key(2), name), 0.2),
  };
}

/**
 * One picture as {@linkcode DRAWN}, with adapters that act while sampling.
 *
 * @param sampling The adapters; disposed.
 * @param prompt The prompt.
 * @param how What differs from {@linkcode DRAWN}.
 */
export async function drawnWith(
  sampling: AdapterSampling,
  prompt: string,
  how: Partial<PipelineOptions> = {},
): Promise<Uint8Array> {
  const [picture] = await generate(sampling.model, {
    ...DRAWN,
    ...how,
    prompts: [prompt],
    ...sampling.pipeline,
  });
  sampling.dispose();
  return picture.data;
}

/** The same with concepts attached to their base everywhere. */
export async function drawnAttached(
  base: Model,
  concepts: readonly Concept[],
  prompt: string,
  how: Partial<PipelineOptions> = {},
  alpha = 1,
): Promise<Uint8Array> {
  const model = attachConcept(base, concepts, { alpha });
  const dispose = () => releaseTokens(model, base);
  return await drawnWith({ model, pipeline: {}, dispose }, prompt, how);
}
