/**
 * The three ED-LoRA concepts of fixtures/fusion, and the official results.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { at, updateAt } from "../../src/core/tree.ts";
import type { Concept } from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import { denseDelta, type LayerSolution } from "../../src/fusion/layer.ts";
import type { Strength } from "../../src/fusion/weight.ts";
import type { Model } from "../../src/models/model.ts";
import type { UNet } from "../../src/models/unet.ts";
import { type Golden, golden, tinySd } from "../customize/tiny_sd.ts";
import { fixtureJson, fixturePath } from "../helpers.ts";

/** A layer of pipeline.json: mean squared feature errors in float64. */
export interface GoldenLayer {
  rows: number;
  feat: number;
  mse_W0: number;
  mse_lbfgs: number;
  mse_closed: number;
  /** Condition number of the stacked features. */
  cond: number;
}

/** What the fusion tests share; `dispose` frees all of it. */
export interface FusionFixture {
  readonly base: Model;
  readonly concepts: readonly Concept[];
  /** `unet_alpha` and `text_encoder_alpha` of the concept list. */
  readonly strengths: readonly Strength[];
  /** Initial latents of the three sampling runs. */
  readonly noise: readonly tf.Tensor4D[];
  readonly io: Golden;
  /** By `text_encoder.…`, `unet_kv.…`, `unet_spatial.…`, without `.weight`. */
  readonly layers: ReadonlyMap<string, GoldenLayer>;
  dispose(): void;
}

/** Loads the fixture. */
export async function fusionFixture(): Promise<FusionFixture> {
  const base = await tinySd();
  const concepts = await Promise.all(
    ["cat", "dog", "chair"].map((classWord, i) =>
      loadConcept(fixturePath(`fusion/concept${i}_edlora.safetensors`), base, {
        name: `concept${i}`,
        classWord,
      })
    ),
  );
  const json = await fixtureJson<{
    concepts: { unet_alpha: number; text_encoder_alpha: number }[];
    layers: Record<string, GoldenLayer>;
  }>("fusion/pipeline.json");
  const io = await golden("fusion/pipeline_inputs_outputs.safetensors");
  return {
    base,
    concepts,
    strengths: json.concepts.map((c) => ({
      unet: c.unet_alpha,
      textEncoder: c.text_encoder_alpha,
    })),
    noise: [0, 1, 2].map((i) => io.nhwc(`noise${i}`)),
    io,
    layers: new Map(
      Object.entries(json.layers).map(([name, layer]) => [
        name.replace(/\.weight$/, ""),
        layer,
      ]),
    ),
    // Model and concepts are freed tensor by tensor, whoever shares them.
    dispose() {
      io.dispose();
      const all: tf.Tensor[] = [];
      const visit = (node: unknown): void => {
        if (node instanceof tf.Tensor) all.push(node);
        else if (node instanceof Map) node.forEach(visit);
        else if (node && typeof node === "object") {
          Object.values(node).forEach(visit);
        }
      };
      visit([
        base.textEncoder.params,
        base.unet.params,
        base.autoencoder.params,
        concepts.map(({ tokens, adapter }) => [tokens, adapter]),
      ]);
      for (const tensor of all) if (!tensor.isDisposed) tensor.dispose();
    },
  };
}

/** A model with weights of a golden file; the new ones are the file's. */
export function withWeights(
  model: Model,
  component: "textEncoder" | "unet",
  prefix: string,
  paths: readonly string[],
  weights: Golden,
): Model {
  const made = new Map(paths.map((path) => {
    const raw = weights.tensor<tf.Tensor2D>(`${prefix}.${path}.weight`);
    const weight = tf.transpose(raw);
    return [path, weight];
  }));
  const params = updateAt(
    model[component].params as unknown,
    paths,
    (node, path) => ({ ...node, weight: made.get(path) }),
  );
  return { ...model, [component]: { ...model[component], params } };
}

/** A model with base weights changed as solved; they are new tensors. */
export function withSolutions(
  model: Model,
  base: Model,
  solutions: ReadonlyMap<string, LayerSolution>,
): Model {
  const params = updateAt(
    model.unet.params as unknown,
    [...solutions.keys()],
    (node, path) => {
      const { data, rows, columns } = denseDelta(solutions.get(path)!.delta);
      const weight = tf.tidy(() =>
        at(base.unet.params, path).weight.add(
          tf.tensor2d(Float32Array.from(data), [rows, columns]),
        )
      );
      return { ...node, weight };
    },
  );
  return { ...model, unet: { ...model.unet, params: params as UNet } };
}

/** Values of a layer's weight as they lie on disk, [out, in]. */
export async function diskWeight(
  model: Model,
  component: "textEncoder" | "unet",
  path: string,
): Promise<Float32Array> {
  const weight: tf.Tensor2D = at(model[component].params, path).weight;
  const turned = tf.transpose(weight);
  const values = await turned.data() as Float32Array;
  turned.dispose();
  return values;
}

/** Runs a generator to its end and returns what it returned. */
export async function finish<T>(
  run: AsyncGenerator<unknown, T>,
): Promise<T> {
  let next = await run.next();
  while (!next.done) next = await run.next();
  return next.value;
}
