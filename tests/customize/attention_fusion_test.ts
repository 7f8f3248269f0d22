import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  attentionMasks,
  freeFuse,
} from "../../src/customize/attention_fusion.ts";
import { type Concept, disposeConcept } from "../../src/customize/concept.ts";
import { disposeModel } from "../../src/models/model.ts";
import { forEachBackend, noLeak } from "../helpers.ts";
import {
  changedConcept as concept,
  drawnAttached,
  drawnWith,
  tinySd,
} from "./tiny_sd.ts";

Deno.test("a pixel is the concept's that attends most, relative to itself", async () => {
  // One row of four pixels; the second concept is faint but relative counts.
  const attention = tf.tensor4d(
    [[[[1, 0.01], [0.6, 0.1], [0.2, 0.09], [0.1, 0.01]]]],
  );
  const masks = attentionMasks(attention, 0.5);
  assertEquals([...await masks.data()], [1, 0, 0, 1, 0, 1, 0, 0]);
  const all = attentionMasks(attention, 0);
  assertEquals([...await all.data()], [1, 0, 0, 1, 0, 1, 1, 0]);
  tf.dispose([attention, masks, all]);
});

forEachBackend("FreeFuse finds masks and keeps adapters inside", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const [fox, owl] = [await concept(base, "fox"), await concept(base, "owl")];
    const prompt = `${fox.phrase} and ${owl.phrase}`;
    const draw = (
      concepts: readonly Concept[],
      options: Partial<Parameters<typeof freeFuse>[2]>,
      text = prompt,
    ) =>
      drawnWith(freeFuse(base, concepts, { prompt: text, ...options }), text);
    const plain = (concepts: readonly Concept[], text: string) =>
      drawnAttached(base, concepts, text);
    // One concept that has every pixel is that concept, attached.
    const alone = `a ${fox.phrase}`;
    const [masked1, attached] = [
      await draw([fox], { threshold: 0, warmup: 1 }, alone),
      await plain([fox], alone),
    ];
    // Watched attention is computed in another order: a step of 255 at most.
    assert(masked1.every((v, i) => Math.abs(v - attached[i]) <= 1));
    // Likewise with convolutions, whose sizes are those of what they make.
    const everywhere = await concept(base, "hen", "all");
    const text = `a ${everywhere.phrase}`;
    const [gated, whole] = [
      await draw([everywhere], { threshold: 0, warmup: 1 }, text),
      await plain([everywhere], text),
    ];
    assert(gated.every((v, i) => Math.abs(v - whole[i]) <= 1));
    disposeConcept(everywhere);
    // Two: neither the sum everywhere, nor without masks, nor whatever threshold.
    const never = await draw([fox, owl], { warmup: 3 });
    const loose = await draw([fox, owl], { warmup: 1, threshold: 0 });
    const strict = await draw([fox, owl], { warmup: 1, threshold: 1 });
    const pictures = [
      never,
      loose,
      strict,
      await plain([fox, owl], prompt),
    ].map((data) => data.join());
    assertEquals(new Set(pictures).size, pictures.length);
    const refuse = (
      concepts: readonly Concept[],
      options: Parameters<typeof freeFuse>[2],
      message: string,
    ) => assertThrows(() => freeFuse(base, concepts, options), Error, message);
    refuse([], { prompt }, "at least one concept");
    refuse([fox, owl], { prompt: alone }, owl.phrase);
    refuse([fox], { prompt: alone, warmup: 0 }, "warm-up");
    refuse([fox], { prompt: alone, threshold: 2 }, "threshold");
    [fox, owl].forEach(disposeConcept);
    disposeModel(base);
  });
}, ["wasm"]);
