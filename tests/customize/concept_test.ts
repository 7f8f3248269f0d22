import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { initialise } from "../../src/nn/spec.ts";
import { leaves } from "../../src/core/tree.ts";
import {
  addTokens,
  attachConcept,
  type Concept,
  disposeConcept,
  initConcept,
  releaseTokens,
  tokenSpread,
} from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import { attachedAdapters } from "../../src/customize/lora.ts";
import { method } from "../../src/customize/methods.ts";
import {
  bindPrompt,
  disposeModel,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import { unet } from "../../src/models/unet.ts";
import { textEncoderSpec } from "../../src/models/text_encoder.ts";
import {
  close,
  fixtureJson,
  fixturePath,
  forEachBackend,
  noLeak,
} from "../helpers.ts";
import {
  crossAttentionSites,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { tinySd } from "./tiny_sd.ts";

const OFFICIAL = "lora/edlora_official.safetensors";

// The UNet on layer-wise states is compared in tests/diffusion/regions_test.ts
// (without regions), all of it in the pipeline test.
Deno.test("states have the order of the official UNet's layers", async () => {
  const { cross_attention_order: order } = await fixtureJson<
    { cross_attention_order: string[] }
  >("edlora_layerwise/order.json");
  const config = parseUNetConfig(await fixtureJson("tiny-sd/unet/config.json"));
  assertEquals(crossAttentionSites(config).map(({ path }) => path), order);
});

forEachBackend("V_rand V_class starts as the paper says", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const table = await model.textEncoder.params.text_model.embeddings
      .token_embedding.weight.array();
    const concept = await initConcept(model, {
      name: "potter",
      classWord: "cat",
      key: key(1),
      lora: false,
    });
    assertEquals(concept.phrase, "<potter1> <potter2>");
    const [rand, noun] = await Promise.all(
      concept.tokens.map((t) => t.vectors.array()),
    );
    const [id] = model.tokenizer.tokenize("cat");
    assertEquals([rand.length, noun.length], [11, 11]);
    for (const row of noun) assertEquals(row, table[id]);
    // 352 draws: their spread is known to about 4 %.
    const spread = await tokenSpread(model);
    const flat = rand.flat();
    const std = Math.sqrt(flat.reduce((s, v) => s + v * v, 0) / flat.length);
    close(std / spread, 1, 0.15);
    assert(rand.every((row, i) => i === 0 || row[0] !== rand[0][0]));
    const copied = await initConcept(model, {
      name: "potter",
      classWord: "cat",
      key: key(1),
      draws: "copied",
      std: 2,
      lora: { rank: 2, targets: "cross-attention-kv" },
    });
    const rows = await copied.tokens[0].vectors.array();
    for (const row of rows) assertEquals(row, rows[0]);
    close(rows[0], rand[0].map((v) => 2 * v), 1e-6);
    assertEquals(copied.adapter.textEncoder.size, 0);
    assertEquals(copied.adapter.unet.size, 22);
    [concept, copied].forEach(disposeConcept);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "a class word of several tokens is refused or averaged",
  async () => {
    const model = await tinySd();
    const word = "zyzzyva";
    const ids = model.tokenizer.tokenize(word);
    assert(ids.length > 1);
    const options = {
      name: "x",
      classWord: word,
      key: key(1),
      lora: false,
    } as const;
    await assertRejects(
      () => initConcept(model, options),
      Error,
      `Cannot make the concept "x": expected a class word that is one token`,
    );
    const concept = await initConcept(model, {
      ...options,
      severalTokens: "mean",
    });
    const table = await model.textEncoder.params.text_model.embeddings
      .token_embedding.weight.array();
    const [row] = await concept.tokens[1].vectors.array();
    close(
      row,
      row.map((_, i) =>
        ids.reduce((s, id) => s + table[id][i], 0) / ids.length
      ),
      1e-6,
    );
    await assertRejects(
      () =>
        initConcept(model, {
          ...options,
          tokens: [{ token: "a b", init: "random" }],
        }),
      Error,
      "a token without spaces",
    );
    disposeConcept(concept);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend(
  "tokens are named and numbered as in the official code",
  async () => {
    const model = await tinySd();
    const concepts: Concept[] = [];
    for (const name of ["a", "b"]) {
      concepts.push(
        await initConcept(model, {
          name,
          classWord: "cat",
          key: key(1),
          lora: false,
        }),
      );
    }
    const both = addTokens(model, concepts);
    assertEquals(both.added!.names.length, 44);
    assertEquals(
      both.added!.sites["<b1>"].map((i) => both.added!.names[i])[0],
      "<new22>",
    );
    const { rows } = bindPrompt(both, "a <a1> <b2>");
    assertEquals(rows.length, 11);
    assertEquals(rows[0].filter((id) => id >= 1000), [1000, 1033]);
    assertEquals(rows[10].filter((id) => id >= 1000), [1010, 1043]);
    // One after the other gives the same.
    const first = addTokens(model, [concepts[0]]);
    const second = addTokens(first, [concepts[1]]);
    assertEquals(second.added!.names, both.added!.names);
    assertEquals(second.added!.sites, both.added!.sites);
    assertThrows(
      () => addTokens(first, [concepts[0]]),
      Error,
      "Cannot add concept tokens: expected tokens not yet in the model, got <a1>",
    );
    releaseTokens(both, model);
    releaseTokens(second, first);
    releaseTokens(first, model);
    concepts.forEach(disposeConcept);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("equal layer-wise vectors are textual inversion", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const one = tf.randomNormal([1, 32], 0, 0.1, "float32", 5) as tf.Tensor2D;
    const many = tf.tile(one, [11, 1]);
    const prompts = ["photo of a <x>"];
    const single = addTokens(model, [{
      tokens: [{ token: "<x>", vectors: one }],
    }]);
    const layered = addTokens(model, [{
      tokens: [{ token: "<x>", vectors: many }],
    }]);
    const states = [single, layered].map((m) =>
      tf.tidy(() => promptStates(m, prompts))
    );
    assertEquals(states.map((s) => s.rank), [3, 4]);
    const x = tf.randomNormal(
      [1, 16, 16, 4],
      0,
      1,
      "float32",
      6,
    ) as tf.Tensor4D;
    const [a, b] = states.map((s) =>
      tf.tidy(() => unet(model.unet.params, model.unet.config, x, [500], s))
    );
    close(await a.data(), await b.data(), 1e-6);
    tf.dispose([one, many, ...states, x, a, b]);
    releaseTokens(single, model);
    releaseTokens(layered, model);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("attached concepts leave the base as it was", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const concept = await loadConcept(fixturePath(OFFICIAL), model);
    const attached = attachConcept(model, concept, { alpha: 0.7 });
    assertEquals(attachedAdapters(attached), ["edlora_official"]);
    assertEquals(attachedAdapters(model), []);
    assertEquals(model.added, undefined);
    releaseTokens(attached, model);
    disposeConcept(concept);
    assert(leaves(model.unet.params).every(([, t]) => !t.isDisposed));
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("a concept of another model is an error", async () => {
  const model = await tinySd();
  const config = { ...model.textEncoder.config, hidden_size: 64 };
  const params = initialise(textEncoderSpec(config), key(1));
  const other = {
    ...model,
    textEncoder: { config, params },
  } as unknown as Model;
  await assertRejects(
    () => loadConcept(fixturePath(OFFICIAL), other),
    Error,
    "new_concept_embedding.<potter1> (expected [n, 64], got [16,32])",
  );
  const concept = await loadConcept(fixturePath(OFFICIAL), model);
  assertThrows(
    () => addTokens(other, [concept]),
    Error,
    "expected vectors [11, 64] or [1, 64] of <potter1>, got [16,32]",
  );
  disposeConcept(concept);
  disposeModel({ ...other, unet: model.unet }, model);
  disposeModel(model);
}, ["wasm"]);

Deno.test("arms of the ablation differ in the embedding only", () => {
  const [lora, edLora] = (["lora", "ed-lora"] as const).map((name) =>
    method(name, "ablation", { steps: 10 })
  );
  assertEquals(lora.train, edLora.train);
  assertEquals(lora.concept.lora, edLora.concept.lora);
  assertEquals(lora.concept.layerwise, false);
  assertEquals(edLora.concept.layerwise, true);
  assertEquals(lora.phrase("x", "cat"), "<x1>");
  assertEquals(edLora.phrase("x", "cat"), "<x1> <x2>");
  assertEquals(method("dreambooth").phrase("x", "cat"), "<x1> cat");
  assertEquals(method("lora").train.lr.embedding, 5e-4);
  assertEquals(method("ed-lora", "official").train.masked, true);
  assertThrows(
    () => method("magic" as "lora"),
    Error,
    "Cannot choose a method: expected textual-inversion, p+",
  );
  assertThrows(() => method("lora", "best" as "paper"), Error, "a preset");
});
