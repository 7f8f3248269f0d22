/**
 * Plain LoRAs of other tools, without learned tokens, through gradient fusion.
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import { type Concept, disposeConcept } from "../../src/customize/concept.ts";
import {
  type Adapter,
  attach,
  COMPONENTS,
  delta,
} from "../../src/customize/lora.ts";
import { loraConcept } from "../../src/formats/lora_concept.ts";
import { type DialectId, loadLora } from "../../src/formats/lora.ts";
import { loraBytes } from "../../src/formats/lora_write.ts";
import { pipeline } from "../../src/diffusion/pipeline.ts";
import { keyValueStatistics } from "../../src/fusion/features.ts";
import {
  fuse,
  type FuseLayerRecord,
  type FuseOptions,
} from "../../src/fusion/gradient.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { textEncoder } from "../../src/models/text_encoder.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";
import { randomAdapter } from "../formats/random_adapter.ts";
import { tinySd } from "../customize/tiny_sd.ts";

const BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0";

/** Layers of every kind: few, so that a run is short. */
const CHOSEN = [
  `${BLOCK}.attn1.to_q`,
  `${BLOCK}.attn2.to_k`,
  `${BLOCK}.attn2.to_v`,
  `${BLOCK}.ff.net.0.proj`,
  `${BLOCK}.ff.net.2`,
  "down_blocks.0.attentions.0.proj_in",
  "down_blocks.0.resnets.0.conv1",
  "down_blocks.0.resnets.0.time_emb_proj",
  "down_blocks.0.downsamplers.0.conv",
  "down_blocks.1.resnets.0.conv_shortcut",
];

const TEXT = /layers\.[01]\.(self_attn\.[qv]_proj|mlp\.fc[12])$/;

/** A LoRA as another tool would have made it, of a rank and α of its own. */
async function foreign(
  model: Model,
  dialect: DialectId,
  name: string,
  options: { rank: number; alpha: number; trigger: string; classWord: string },
): Promise<Concept> {
  const { rank, alpha, trigger, classWord } = options;
  const made = randomAdapter(
    model,
    (component, path) =>
      component === "unet" ? CHOSEN.includes(path) : TEXT.test(path),
    {
      // Convolutions of half the rank, as kohya's conv_dim.
      rank: (path) => /conv/.test(path) ? rank / 2 : rank,
      scale: () => alpha / rank,
    },
  );
  // Another LoRA has other numbers.
  const adapter: Adapter = {
    ...made,
    unet: new Map([...made.unet].map(([path, low]) => [path, {
      ...low,
      up: tf.tensor(
        normal(key(name.length * 1000 + path.length), low.up.size, 0.2),
        low.up.shape,
      ),
    }])),
  };
  const file = await loadLora(
    await loraBytes({ adapter }, model, dialect),
    model,
  );
  assertEquals(file.dialect, dialect);
  for (const c of COMPONENTS) {
    for (const [path, low] of made[c]) {
      tf.dispose([low.down, low.up, adapter[c].get(path)!.up]);
    }
  }
  return loraConcept(file, { name, trigger, classWord });
}

const FAST: FuseOptions = {
  steps: 2,
  layers: "all",
  ridge: 0,
  key: key(3),
};

async function run(model: Model, concepts: Concept[], options: FuseOptions) {
  const records: FuseLayerRecord[] = [];
  const fusing = fuse(model, concepts, options);
  let next = await fusing.next();
  for (; !next.done; next = await fusing.next()) {
    if (next.value.type === "layer") records.push(next.value);
  }
  return { records, fused: next.value };
}

forEachBackend("three LoRAs of three tools are fused", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const concepts = [
      await foreign(model, "kohya", "one", {
        rank: 4,
        alpha: 2,
        trigger: "cat",
        classWord: "cat",
      }),
      await foreign(model, "diffusers", "second", {
        rank: 2,
        alpha: 2,
        trigger: "small dog",
        classWord: "dog",
      }),
      await foreign(model, "peft", "the third", {
        rank: 8,
        alpha: 6,
        trigger: "",
        classWord: "house",
      }),
    ];
    assertEquals(concepts.map(({ phrase }) => phrase), [
      "cat",
      "small dog",
      "house",
    ]);
    const { records, fused } = await run(model, concepts, {
      ...FAST,
      weights: [1, 1, 1],
    });
    // Every layer any of them has, convolutions and feed-forwards included.
    assertEquals(
      records.map(({ layer }) => layer).filter((l) => CHOSEN.includes(l))
        .sort(),
      CHOSEN.toSorted(),
    );
    assertEquals(records.length, CHOSEN.length + 8);
    assert(records.every(({ stage }) => stage !== "weight"));
    for (const r of records) {
      // Least squares is no worse than any other weight on the same features.
      assert(r.lossAfter <= r.lossWeightFusion * (1 + 1e-9), r.layer);
      assert(r.lossAfter < r.lossBefore, r.layer);
    }
    const rows = new Map(records.map((r) => [r.layer, r]));
    // Per prompt, "photo of a {}" and "{}": the trigger's tokens and the end.
    const lengths = ["cat", "small dog", "house"].map((text) =>
      model.tokenizer.tokenize(text).length
    );
    assertEquals(
      rows.get(`${BLOCK}.attn2.to_k`)!.rows,
      lengths.reduce((sum, n) => sum + 2 * (n + 1), 0),
    );
    // A 3×3 convolution sees 9 · 32 inputs at each of 16 · 16 places, twice a
    // concept; a downsampler a quarter of them.
    const conv = rows.get("down_blocks.0.resnets.0.conv1")!;
    assertEquals([conv.features, conv.rows], [9 * 32, 3 * 2 * 256]);
    const down = rows.get("down_blocks.0.downsamplers.0.conv")!;
    assertEquals([down.features, down.rows], [9 * 32, 3 * 2 * 64]);
    disposeModel(fused, model);
    concepts.forEach(disposeConcept);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("a LoRA fused alone acts as attached", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const concept = await foreign(model, "kohya", "one", {
      rank: 4,
      alpha: 2,
      trigger: "cat",
      classWord: "cat",
    });
    const noise = tf.tensor4d(normal(key(8), 1024), [1, 16, 16, 4]);
    const { records, fused } = await run(model, [concept], {
      ...FAST,
      positions: "full",
      noise: [noise],
    });
    for (const { layer, lossAfter, lossBefore } of records) {
      // ΔW itself is a solution; ridge 0 leaves rounding only.
      assert(lossAfter < 1e-9 * lossBefore, layer);
    }
    // Convolutions have more rows than inputs here: ΔW is the only solution.
    const path = "down_blocks.0.resnets.0.conv1";
    const change = delta(concept.adapter.unet.get(path)!);
    const found = tf.tidy(() =>
      tf.sub(
        at(fused.unet.params, path).weight,
        at(model.unet.params, path).weight,
      )
    );
    // Features are float32 sums: what the Gram matrix cannot tell apart stays.
    const [a, b] = [await found.data(), await change.data()];
    const size = Math.hypot(...b) / Math.sqrt(b.length);
    close(a, b, 0.05 * size, "ΔW of a convolution");
    tf.dispose([change, found]);
    // The run it was observed in goes as with the LoRA attached.
    const draw = async (m: Model) => {
      const run = pipeline(m, {
        prompts: ["photo of a cat"],
        guidance: 1,
        steps: 2,
        sampler: "dpmpp_2m",
        noise,
        decode: false,
      });
      let last: Float32Array = new Float32Array();
      for await (const record of run) {
        if (record.type !== "step") continue;
        last = await record.latent.data() as Float32Array;
      }
      return last;
    };
    const attached = attach(model, concept.adapter);
    const [u, v, w] = [
      await draw(fused),
      await draw(attached),
      await draw(model),
    ];
    const distance = (p: ArrayLike<number>, q: ArrayLike<number>) =>
      Math.sqrt(Array.from(p).reduce((s, e, i) => s + (e - q[i]) ** 2, 0));
    const [off, moved] = [distance(u, v), distance(w, v)];
    assert(off < 1e-3 * moved, `off ${off}, moved ${moved}`);
    noise.dispose();
    disposeModel(fused, model);
    disposeConcept(concept);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "keys and values are fitted at the trigger's positions",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const concept = await foreign(model, "kohya", "one", {
        rank: 2,
        alpha: 2,
        trigger: "small dog",
        classWord: "dog",
      });
      const path = `${BLOCK}.attn2.to_k`;
      const template = "a {} near a dog";
      const stats = await keyValueStatistics(model, concept, [path], {
        templates: [template],
      });
      const text = template.replace("{}", "small dog");
      const tokens = model.tokenizer.tokenize(text);
      const words = model.tokenizer.tokenize("small dog");
      const start = 1 +
        tokens.findIndex((_, i) => words.every((w, k) => tokens[i + k] === w));
      const positions = [
        ...words.map((_, k) => start + k),
        tokens.length + 1,
      ];
      const states = tf.tidy(() =>
        textEncoder(model.textEncoder.params, model.textEncoder.config, [
          model.tokenizer.encode(text).ids,
        ]).last
      );
      const values = await states.data();
      const expected = positions.flatMap((p) => [
        ...values.slice(p * 32, (p + 1) * 32),
      ]);
      // The same states without padding: sums of 32 numbers near 1.
      close(stats.get(path)!.rows!.data, expected, 1e-5);
      states.dispose();
      assertThrows(
        () =>
          loraConcept({
            dialect: "kohya",
            adapter: concept.adapter,
            scales: "convention",
            embeddings: new Map(),
          }, { name: "nothing" }),
        Error,
        'make a concept of the LoRA "nothing": expected trigger words or a class word',
      );
      const vectors = tf.zeros([1, 32]) as tf.Tensor2D;
      const learned = {
        dialect: "cloneofsimo",
        adapter: concept.adapter,
        scales: "convention",
        embeddings: new Map([["<s1>", vectors], ["<s2>", vectors]]),
        metadata: {},
      } as const;
      assertEquals(loraConcept(learned, { name: "x" }).phrase, "<s1> <s2>");
      assertEquals(
        loraConcept(learned, { name: "x", trigger: "<s1> <s2> man" }).phrase,
        "<s1> <s2> man",
      );
      assertThrows(
        () => loraConcept(learned, { name: "x", trigger: "<s1> man" }),
        Error,
        'got "<s1> man" without <s2>',
      );
      // A name with spaces, and what stands beside a token.
      const named = (token: string, trigger?: string) =>
        loraConcept(
          { ...learned, embeddings: new Map([[token, vectors]]) },
          trigger === undefined ? { name: "x" } : { name: "x", trigger },
        ).phrase;
      assertEquals(named("my style v2"), "my style v2");
      assertEquals(named("a-b c", "(a-b c), toy"), "(a-b c), toy");
      assertEquals(named("<cat-toy>", "<cat-toy>, toy"), "<cat-toy>, toy");
      for (
        const [token, trigger] of [
          ["cat", "cats"],
          ["my style", "my  style"],
          ["v2", "v22 xv2"],
        ]
      ) {
        assertThrows(() => named(token, trigger), Error, `without ${token}`);
      }
      vectors.dispose();
      disposeConcept(concept);
      disposeModel(model);
    });
  },
  ["wasm"],
);
