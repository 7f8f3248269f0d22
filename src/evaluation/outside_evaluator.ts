/**
 * Features of a network that was not trained on the embedded model's data: a
 * MobileNetV2 trained on photographs and drawings from the web, as nsfwjs (MIT)
 * ships it. It gives an independent image alignment.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import type { ClipVector } from "./clip.ts";
import type { Evaluator } from "./evaluator.ts";
import { resize } from "./preprocess.ts";

/** A layers model as nsfwjs packs it. */
export interface PackedModel {
  /** Topology and weights manifest of tfjs. */
  readonly json: {
    readonly modelTopology: unknown;
    readonly weightsManifest: readonly {
      readonly weights: readonly unknown[];
    }[];
  };
  /** The weights, in order, base64. */
  readonly weights: readonly string[];
}

/** Side of MobileNetV2's input. */
const SIDE = 224;

/** The layer whose output is the pooled features. */
const FEATURES = "flatten_1";

/** Pictures per batch: 224×224 activations are large. */
const BATCH = 8;

/** What nsfwjs exports of a model. */
interface PackedModule {
  readonly MobileNetV2Model: {
    readonly modelJson: () => Promise<unknown>;
    readonly weightBundles: readonly (() => Promise<unknown>)[];
  };
}

/**
 * Loads nsfwjs' MobileNetV2 from npm: 25 MB, downloaded on the first call.
 *
 * @returns The evaluator; the caller disposes it.
 * @throws If the package cannot be loaded.
 *
 * @example
 * ```ts ignore
 * using mobileNet = await loadMobileNet();
 * const rows = await mobileNet.embed(pictures);
 * ```
 */
export async function loadMobileNet(): Promise<Evaluator> {
  // An import by a template string is not in the module graph, so nothing is
  // downloaded before the first call.
  const { MobileNetV2Model: packed }: PackedModule = await import(
    `npm:nsfwjs@4.3.0/models/${"mobilenet_v2"}`
  );
  const unwrap = (module: unknown): unknown =>
    (module as { default?: unknown }).default ?? module;
  return await openMobileNet({
    json: unwrap(await packed.modelJson()) as PackedModel["json"],
    weights: await Promise.all(
      packed.weightBundles.map(async (load) => unwrap(await load()) as string),
    ),
  });
}

/**
 * Opens a packed MobileNetV2.
 *
 * @param packed Topology and weights.
 * @returns The evaluator; the caller disposes it.
 * @throws If the model has no pooled features.
 */
export async function openMobileNet(packed: PackedModel): Promise<Evaluator> {
  const parts = packed.weights.map((text) =>
    Uint8Array.from(atob(text), (c) => c.charCodeAt(0))
  );
  const whole = await tf.loadLayersModel(tf.io.fromMemory({
    modelTopology: packed.json.modelTopology as tf.io.ModelJSON[
      "modelTopology"
    ],
    weightSpecs: packed.json.weightsManifest.flatMap((group) =>
      group.weights
    ) as tf.io.WeightsManifestEntry[],
    weightData: joined(Uint8Array, parts).buffer,
  }));
  const layer = whole.layers.find(({ name }) => name === FEATURES);
  if (!layer) {
    whole.dispose();
    throw cannot("open a MobileNetV2", `a layer ${FEATURES}`, "none");
  }
  const model = tf.model({
    inputs: whole.inputs,
    outputs: layer.output as tf.SymbolicTensor,
  });
  return {
    name: "MobileNetV2",
    async embed(images) {
      const rows: ClipVector[] = [];
      for (let from = 0; from < images.length; from += BATCH) {
        const batch = images.slice(from, from + BATCH);
        const values = new Float32Array(batch.length * SIDE * SIDE * 3);
        batch.forEach((image, i) => {
          const { data } = resize(image, SIDE, SIDE, "bilinear");
          data.forEach((byte, j) =>
            values[i * SIDE * SIDE * 3 + j] = byte / 255
          );
        });
        const result = tf.tidy(() => {
          const x = tf.tensor4d(values, [batch.length, SIDE, SIDE, 3]);
          const y = model.predict(x) as tf.Tensor2D;
          return y.div(y.square().sum(1, true).sqrt());
        });
        const numbers = await result.data() as Float32Array;
        const width = result.shape[1]!;
        result.dispose();
        for (let i = 0; i < batch.length; i++) {
          rows.push(numbers.slice(i * width, (i + 1) * width));
        }
      }
      return rows;
    },
    [Symbol.dispose]: () => void whole.dispose(),
  };
}
