import * as tf from "@tensorflow/tfjs";
import { fold, key, normal } from "../../src/core/random.ts";
import { at, disposeTree, mapTree } from "../../src/core/tree.ts";
import { openSafetensors } from "../../src/io/safetensors.ts";
import { load } from "../../src/models/checkpoint.ts";
import {
  type ControlNet,
  type ControlNetConfig,
  controlNetSpec,
  parseControlNetConfig,
} from "../../src/models/controlnet.ts";
import { initialise } from "../../src/nn/spec.ts";
import { fixtureJson, fixturePath } from "../helpers.ts";

/** A ControlNet and its config. */
export interface SomeControlNet {
  readonly config: ControlNetConfig;
  readonly params: ControlNet;
}

/**
 * A ControlNet for the tiny UNet that looks trained: what the fixture has (the
 * condition's embedding, conv_in and the first zero convolution) and random
 * numbers elsewhere, in zero convolutions too.
 */
export async function someControlNet(): Promise<SomeControlNet> {
  const config = parseControlNetConfig(
    await fixtureJson("controlnet/config.json"),
  );
  const spec = controlNetSpec(config);
  const file = await openSafetensors(
    fixturePath("controlnet/weights_part.safetensors"),
  );
  const part = await load({
    conv_in: spec.conv_in,
    controlnet_cond_embedding: spec.controlnet_cond_embedding,
    controlnet_down_blocks: spec.controlnet_down_blocks.slice(0, 1),
  }, file);
  file.close();
  const random = initialise<ControlNet>(spec, key(1));
  const params = mapTree(random, (leaf, path) => {
    const given: tf.Tensor | undefined = at(part, path);
    if (given) return given;
    if (!path.startsWith("controlnet_")) return leaf.clone();
    return tf.tensor(normal(fold(key(2), path), leaf.size, 0.1), leaf.shape);
  });
  disposeTree(random);
  return { config, params };
}
