import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import type { UNetCall } from "../../src/diffusion/pipeline.ts";
import {
  loraComposite,
  loraSwitch,
  promptShares,
} from "../../src/customize/composition.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { sites } from "../../src/customize/lora.ts";
import {
  type AdapterSampling,
  type RegionAdapterOptions,
  regionAdapters,
} from "../../src/customize/region_adapters.ts";
import {
  disposeModel,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import type { LowRank } from "../../src/nn/linear.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";
import {
  changedConcept as concept,
  DRAWN,
  drawnAttached,
  drawnWith,
  tinySd,
} from "./tiny_sd.ts";

const left = { box: { top: 0, left: 0, bottom: 1, right: 0.5 } };
const right = { box: { top: 0, left: 0.5, bottom: 1, right: 1 } };
const everything = { box: { top: 0, left: 0, bottom: 1, right: 1 } };
const draw = (
  sampling: AdapterSampling,
  prompt: string,
  negative = "",
  steps = DRAWN.steps,
) => drawnWith(sampling, prompt, { negative, steps });

const drawPlain = (
  base: Model,
  concepts: readonly Concept[],
  prompt: string,
  negative = "",
  alpha = 1,
) => drawnAttached(base, concepts, prompt, { negative }, alpha);

function differ(a: Uint8Array, b: Uint8Array): boolean {
  return a.some((v, i) => v !== b[i]);
}

forEachBackend("one region everywhere is the adapted model", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const fox = await concept(base, "fox");
    const prompt = `a ${fox.phrase} on a table`;
    const adapted = await drawPlain(base, [fox], prompt, "blurry", 0.7);
    const regional = await draw(
      regionAdapters(
        base,
        [{ shape: everything, prompt, negative: "blurry", concepts: [fox] }],
        { alpha: 0.7 },
      ),
      "something else",
      "",
    );
    assertEquals(regional, adapted);
    const half = await draw(
      regionAdapters(
        base,
        [{ shape: left, prompt, negative: "blurry", concepts: [fox] }],
        { alpha: 0.7 },
      ),
      prompt,
      "blurry",
    );
    assert(differ(half, adapted));
    assert(differ(half, await drawPlain(base, [fox], prompt, "blurry", 0)));
    disposeConcept(fox);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("an adapter that is off leaves the base", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const fox = await concept(base, "fox");
    const prompt = "a cat on a table";
    const plain = await drawPlain(base, [fox], prompt, "blurry", 0);
    const off = (options: RegionAdapterOptions) =>
      draw(
        regionAdapters(base, [
          { shape: left, prompt: `a ${fox.phrase}`, concepts: [fox] },
        ], options),
        prompt,
        "blurry",
      );
    assertEquals(await off({ start: 1, end: 1 }), plain, "at no step");
    assertEquals(await off({ replaceRatio: 0 }), plain, "nothing replaced");
    const whole = await off({});
    for (const part of [{ end: 0.5 }, { start: 0.5 }, { replaceRatio: 0.5 }]) {
      const picture = await off(part);
      assert(differ(picture, plain) && differ(picture, whole));
    }
    disposeConcept(fox);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("a gate follows the regions' part and ratio", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const fox = await concept(base, "fox");
    const sampling = regionAdapters(base, [
      { shape: left, prompt: "a <fox1>", concepts: [fox] },
    ], { start: 0.25, end: 0.75, replaceRatio: 0.5 });
    const sample = tf.zeros([1, 2, 2, 4]) as tf.Tensor4D;
    const states = tf.zeros([1, 77, 32]) as tf.Tensor3D;
    const { params } = sampling.model.unet;
    const path = sites(params).find(({ path }) =>
      path.startsWith("down_blocks.0") && path.endsWith("attn1.to_q")
    )!.path;
    for (const [index, inside] of [[0, 0], [1, 0.5], [2, 0.5], [3, 0]]) {
      const { gate } = sampling.pipeline.unet!({
        index,
        total: 4,
        timestep: 1,
        branch: "conditional",
        first: 0,
        count: 1,
        sample,
        states,
      });
      const out = tf.tidy(() =>
        gate!(at(params, path).low[0], tf.ones([4, 1]))
      );
      assertEquals([...await out.data()], [inside, 0, inside, 0]);
      out.dispose();
    }
    tf.dispose([sample, states]);
    sampling.dispose();
    disposeConcept(fox);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("an adapter acts only at its region's pixels", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const concepts = [await concept(base, "fox"), await concept(base, "owl")];
    const sampling = regionAdapters(base, [
      { shape: left, prompt: "a <fox1>", concepts: [concepts[0]] },
      { shape: right, prompt: "an <owl1>", concepts: [concepts[1]] },
    ]);
    // A latent of odd size, so that levels are rounded.
    const call: UNetCall = {
      index: 0,
      total: 1,
      timestep: 1,
      branch: "both",
      first: 0,
      count: 1,
      sample: tf.zeros([2, 10, 14, 4]),
      states: tf.zeros([2, 77, 32]) as tf.Tensor3D,
    };
    const { gate } = sampling.pipeline.unet!(call);
    const sizes = [[10, 14], [5, 7], [3, 4]];
    const { params } = sampling.model.unet;
    const leaf = (path: string, i: number): LowRank => at(params, path).low[i];
    let seen = 0;
    for (const { path } of sites(params)) {
      if (!at(params, path).low) continue;
      const level = path.startsWith("mid")
        ? 2
        : path.startsWith("down")
        ? Number(path.split(".")[1])
        : 2 - Number(path.split(".")[1]);
      const [h, w] = sizes[level];
      const text = /attn2\.to_[kv]/.test(path);
      const rows = text ? 2 * 77 : 2 * h * w;
      for (const [i, from, to] of [[0, 0, w / 2], [1, w / 2, w]]) {
        const out = tf.tidy(() =>
          gate!(leaf(path, i), tf.ones([rows, 3])).slice([0, 0], [-1, 1])
        );
        const expected = Array.from({ length: rows }, (_, row) => {
          const x = row % w;
          return !text && x >= Math.ceil(from) && x < Math.floor(to) ? 1 : 0;
        });
        assertEquals([...await out.data()], expected, path);
        out.dispose();
        seen++;
      }
    }
    // 11 cross- and self-attention layers of 4 projections, two adapters.
    assertEquals(seen, 2 * 11 * 8);
    tf.dispose([call.sample, call.states]);
    sampling.dispose();
    concepts.forEach(disposeConcept);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("Switch and Composite of one adapter are plain", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const fox = await concept(base, "fox");
    const owl = await concept(base, "owl");
    const prompt = `${fox.phrase} and a dog`;
    const options = { prompt, negative: "blurry", alpha: 0.7 };
    const adapted = await drawPlain(base, [fox], prompt, "blurry", 0.7);
    for (const make of [loraSwitch, loraComposite]) {
      assertEquals(
        await draw(make(base, [fox], options), prompt, "blurry"),
        adapted,
        make.name,
      );
    }
    // Turns that are too long for a second adapter.
    assertEquals(
      await draw(
        loraSwitch(base, [fox, owl], { ...options, every: 3 }),
        prompt,
      ),
      adapted,
    );
    const switched = await draw(loraSwitch(base, [fox, owl], options), prompt);
    const composed = await draw(
      loraComposite(base, [fox, owl], options),
      prompt,
    );
    assert(differ(switched, adapted) && differ(composed, adapted));
    assert(differ(switched, composed));
    // Without strength all are the base with the tokens.
    const none = await drawPlain(base, [fox], prompt, "blurry", 0);
    for (const make of [loraSwitch, loraComposite]) {
      assertEquals(
        await draw(make(base, [fox, owl], { ...options, alpha: 0 }), prompt),
        none,
        make.name,
      );
    }
    // The mean does not depend on the order.
    assertEquals(
      await draw(loraComposite(base, [owl, fox], options), prompt),
      composed,
    );
    [fox, owl].forEach(disposeConcept);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("Switch takes turns, Composite is the mean", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const fox = await concept(base, "fox");
    const owl = await concept(base, "owl");
    const options = { prompt: `${fox.phrase} and ${owl.phrase}` };
    const sample = tf.tensor4d(normal(key(7), 2 * 8 * 8 * 4), [2, 8, 8, 4]);
    const states = tf.zeros([2, 77, 32]) as tf.Tensor3D;
    const outputs = async (sampling: AdapterSampling, calls: number) => {
      const list: Float32Array[] = [];
      for (let index = 0; index < calls; index++) {
        const call: UNetCall = {
          index,
          total: calls,
          timestep: 261,
          branch: "both",
          first: 0,
          count: 1,
          sample,
          states,
        };
        const out = tf.tidy(() =>
          sampling.pipeline.denoise!(() => sample.clone(), call)
        );
        list.push(Float32Array.from(await out.data()));
        out.dispose();
      }
      sampling.dispose();
      return list;
    };
    const turns = await outputs(
      loraSwitch(base, [fox, owl], { ...options, every: 2 }),
      6,
    );
    const [a, , b] = turns;
    assert(a.some((v, i) => Math.abs(v - b[i]) > 1e-3));
    // Two calls each, then from the start again.
    assertEquals(turns, [a, a, b, b, a, a]);
    // Both branches are averaged, and guidance is linear in them.
    const [mean] = await outputs(loraComposite(base, [fox, owl], options), 1);
    close(mean, a.map((v, i) => (v + b[i]) / 2), 1e-6);
    // Shares weight the mean, and are turns of a switch.
    const [weighted] = await outputs(
      loraComposite(base, [fox, owl], { ...options, shares: [3, 1] }),
      1,
    );
    close(weighted, a.map((v, i) => (3 * v + b[i]) / 4), 1e-6);
    assertEquals(
      await outputs(
        loraSwitch(base, [fox, owl], { ...options, shares: [2, 1] }),
        6,
      ),
      [a, b, a, a, b, a],
    );
    tf.dispose([sample, states]);
    [fox, owl].forEach(disposeConcept);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("shares are the influence of a concept's words", async () => {
  await noLeak(async () => {
    const base = await tinySd();
    const [fox, owl] = [await concept(base, "fox"), await concept(base, "owl")];
    // By definition: 1 - cos of the text states with and without the words.
    const influence = async (one: Concept, text: string, rest: string) => {
      const model = attachConcept(base, [one]);
      const [a, b] = tf.tidy(() => {
        const [whole, less] = [text, rest].map((prompt) =>
          tf.concat(
            tf.unstack(promptStates(model, [prompt, text])).slice(0, 1),
          ).flatten()
        );
        return [whole, less];
      });
      const [x, y] = [await a.data(), await b.data()];
      tf.dispose([a, b]);
      releaseTokens(model, base);
      const dot = (p: ArrayLike<number>, q: ArrayLike<number>) =>
        Array.from(p).reduce((sum, v, i) => sum + v * q[i], 0);
      return 1 - dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
    };
    const prompt = `a ${fox.phrase} and a ${owl.phrase} at night`;
    const own = [
      await influence(
        fox,
        `a ${fox.phrase} and a ${owl.classWord} at night`,
        `a and a ${owl.classWord} at night`,
      ),
      await influence(
        owl,
        `a ${fox.classWord} and a ${owl.phrase} at night`,
        `a ${fox.classWord} and a at night`,
      ),
    ];
    const shares = await promptShares(base, [fox, owl], { prompt });
    close(shares, own.map((one) => one / (own[0] + own[1])), 1e-4);
    assert(Math.abs(shares[0] - shares[1]) > 1e-6);
    const only = { prompt: `a ${fox.phrase}` };
    assertEquals(await promptShares(base, [fox, owl], only), [1, 0]);
    const none = { prompt: "a house" };
    assertEquals(await promptShares(base, [fox, owl], none), [0.5, 0.5]);
    for (const shares of [[1], [0, 0], [1, -1]]) {
      assertThrows(
        () => loraComposite(base, [fox, owl], { prompt, shares }),
        Error,
        "2 shares",
      );
    }
    [fox, owl].forEach(disposeConcept);
    disposeModel(base);
  });
}, ["wasm"]);

forEachBackend("bad compositions are refused and leave nothing", async () => {
  const base = await tinySd();
  const fox = await concept(base, "fox");
  await noLeak(() => {
    const options = { prompt: "x" };
    assertThrows(() => loraSwitch(base, [], options), Error, "at least one");
    assertThrows(
      () => loraSwitch(base, [fox], { ...options, every: 0 }),
      Error,
      "at least 1 step",
    );
    assertThrows(
      () =>
        regionAdapters(base, [{
          shape: { box: { ...left.box, right: 3 } },
          prompt: "x",
          concepts: [fox],
        }]),
      Error,
      "place region 0",
    );
  });
  disposeConcept(fox);
  disposeModel(base);
}, ["wasm"]);
