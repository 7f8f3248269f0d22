import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { at } from "../../src/core/tree.ts";
import { attach, merge } from "../../src/customize/lora.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import { disposeModel } from "../../src/models/model.ts";
import { golden } from "../customize/tiny_sd.ts";
import { close, forEachBackend, tolerance } from "../helpers.ts";
import { diskWeight, fusionFixture } from "./concepts.ts";

// Golden: fixtures/fusion/weight_fusion, W₀ + mean of alpha_i·up_i·down_i.
forEachBackend("weight fusion equals the official one", async (backend) => {
  const f = await fusionFixture();
  const expected = await golden("fusion/weight_fusion.safetensors");
  const before = tf.memory().numTensors;
  const fused = weightFusion(f.base, f.concepts, { strengths: f.strengths });
  assertEquals(expected.names.length, 5);
  for (const name of expected.names) {
    const [, prefix, path] = name.match(
      /^(text_encoder|unet)\.(.*)\.weight$/,
    )!;
    const component = prefix === "unet" ? "unet" : "textEncoder";
    // Sums of three float32 products of weights of size about 1.
    close(
      await diskWeight(fused, component, path),
      expected.values(name),
      tolerance(backend, 1e-6),
      name,
    );
  }
  // 100 changed weights and the token vectors; everything else is shared.
  assertEquals(tf.memory().numTensors - before, 101);
  assert(fused.autoencoder === f.base.autoencoder);
  assertEquals(Object.keys(fused.added!.sites).length, 6);
  assertEquals(fused.added!.vectors.shape, [96, 32]);
  disposeModel(fused, f.base);
  assertEquals(tf.memory().numTensors, before);
  expected.dispose();
  f.dispose();
});

forEachBackend(
  "λ scales the sum; one concept at λ 1 is its merge",
  async () => {
    const f = await fusionFixture();
    const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    const weightOf = (model: { unet: { params: unknown } }) =>
      at(model.unet.params, path).weight.dataSync() as Float32Array;
    const base = weightOf(f.base);
    const mean = weightFusion(f.base, f.concepts);
    const sum = weightFusion(f.base, f.concepts, { lambda: 0.6 });
    const none = weightFusion(f.base, f.concepts, { lambda: 0 });
    close(
      weightOf(sum).map((v, i) => (v - base[i]) / 1.8),
      weightOf(mean).map((v, i) => v - base[i]),
      1e-6,
    );
    close(weightOf(none), base, 0);
    const one = weightFusion(f.base, f.concepts.slice(1, 2));
    const merged = await merge(attach(f.base, f.concepts[1].adapter));
    close(weightOf(one), weightOf(merged), 1e-7);
    // Order does not matter, to the rounding of one sum.
    const turned = weightFusion(f.base, f.concepts.toReversed());
    close(weightOf(turned), weightOf(mean), 1e-6);
    for (const model of [mean, sum, none, one, turned, merged]) {
      disposeModel(model, f.base);
    }
    f.dispose();
  },
  ["wasm"],
);

forEachBackend(
  "what cannot be fused is refused, and nothing leaks",
  async () => {
    const f = await fusionFixture();
    const [a, b] = f.concepts;
    const before = tf.memory().numTensors;
    const refuse = (run: () => unknown, message: string) =>
      assertThrows(run, Error, message);
    refuse(() => weightFusion(f.base, []), "at least one");
    refuse(() => weightFusion(f.base, [a, a]), "different names");
    refuse(
      () => weightFusion(f.base, [a, { ...b, tokens: a.tokens }]),
      "tokens not yet in the model",
    );
    refuse(() => weightFusion(attach(f.base, a.adapter), [b]), "merge them");
    refuse(() => weightFusion(f.base, [a], { lambda: NaN }), "finite λ");
    refuse(
      () => weightFusion(f.base, [a, b], { strengths: [{}] }),
      "2 strength",
    );
    refuse(
      () => weightFusion(f.base, [a], { strengths: [{ unet: Infinity }] }),
      "finite strengths",
    );
    const [path, low] = [...a.adapter.unet][0];
    const misfits = {
      ...a,
      adapter: {
        ...a.adapter,
        unet: new Map([["no.such.layer", low], [path, {
          ...low,
          up: low.down,
        }]]),
      },
    };
    refuse(() => weightFusion(f.base, [misfits]), "2 layers do not fit");
    assertEquals(tf.memory().numTensors, before);
    f.dispose();
  },
  ["wasm"],
);
