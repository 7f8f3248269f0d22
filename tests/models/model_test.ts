import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import {
  addTokens,
  disposeConcept,
  initConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { joinPath, readJson, writeJson } from "../../src/io/files.ts";
import { openComponent } from "../../src/io/folder.ts";
import { embeddedFiles, embeddedModel } from "../../src/models/embedded.ts";
import {
  bindPrompt,
  disposeModel,
  loadModel,
  type Model,
  promptStates,
  saveModel,
} from "../../src/models/model.ts";
import { fixturePath, forEachBackend } from "../helpers.ts";

/** The tiny model with a layer-wise and a plain concept. */
async function withTokens(base: Model): Promise<Model> {
  const concepts = [
    await initConcept(base, {
      name: "cat",
      classWord: "cat",
      key: key(1),
      lora: false,
      severalTokens: "mean",
    }),
    await initConcept(base, {
      name: "dog",
      classWord: "dog",
      key: key(2),
      lora: false,
      layerwise: false,
      severalTokens: "mean",
    }),
  ];
  const model = addTokens(base, concepts);
  concepts.forEach(disposeConcept);
  return model;
}

async function numbers(tensor: tf.Tensor): Promise<number[]> {
  const values = Array.from(await tensor.data());
  tensor.dispose();
  return values;
}

const PROMPTS = ["photo of a <cat1> <cat2> and a <dog1> <dog2>", "a photo"];

forEachBackend("a folder with learned tokens comes back whole", async () => {
  const before = tf.memory().numTensors;
  const folder = await Deno.makeTempDir();
  try {
    const base = await loadModel(fixturePath("tiny-sd"));
    const model = await withTokens(base);
    await saveModel(folder, model);
    const again = await loadModel(folder);

    assertEquals(again.added?.names, model.added?.names);
    assertEquals(again.added?.sites, model.added?.sites);
    assertEquals(again.textEncoder.config, model.textEncoder.config);
    assertEquals(again.unet.config, model.unet.config);
    assertEquals(again.tokenizer.vocabSize, model.tokenizer.vocabSize);
    // float32 on disk: the very same numbers.
    assertEquals(
      await numbers(again.added!.vectors.clone()),
      await numbers(model.added!.vectors.clone()),
    );
    for (const prompt of PROMPTS) {
      assertEquals(bindPrompt(again, prompt), bindPrompt(model, prompt));
      assertEquals(
        await numbers(tf.tidy(() => promptStates(again, [prompt]))),
        await numbers(tf.tidy(() => promptStates(model, [prompt]))),
      );
    }
    // Other tools find one table with the learned rows at its end.
    const { config, file } = await openComponent(folder, "text_encoder");
    const table = "text_model.embeddings.token_embedding.weight";
    const rows = model.tokenizer.vocabSize;
    assertEquals(config.vocab_size, rows);
    assertEquals(file.entries.get(table)?.shape[0], rows);
    file.close();

    // And once more, with a third concept on top.
    const third = await initConcept(again, {
      name: "fox",
      classWord: "cat",
      key: key(3),
      lora: false,
      severalTokens: "mean",
    });
    const more = addTokens(again, [third]);
    await saveModel(folder, more);
    const last = await loadModel(folder);
    assertEquals(last.added?.names, more.added?.names);
    assertEquals(last.added?.sites, more.added?.sites);
    assertEquals(
      bindPrompt(last, "a <fox1> and a <cat1>"),
      bindPrompt(more, "a <fox1> and a <cat1>"),
    );
    disposeConcept(third);
    releaseTokens(more, again);
    releaseTokens(model, base);
    [base, again, last].forEach((m) => disposeModel(m));
    assertEquals(tf.memory().numTensors, before);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}, ["wasm"]);

forEachBackend(
  "a folder whose learned tokens do not fit is refused",
  async () => {
    const folder = await Deno.makeTempDir();
    const path = joinPath(folder, "new_concept_cfg.json");
    try {
      const base = await loadModel(fixturePath("tiny-sd"));
      const model = await withTokens(base);
      await saveModel(folder, model);
      releaseTokens(model, base);
      disposeModel(base);
      const before = tf.memory().numTensors;
      const good = await readJson<
        Record<
          string,
          { concept_token_ids: number[]; concept_token_names: string[] }
        >
      >(path);
      const token = good["<cat1>"];
      const size = model.tokenizer.vocabSize;
      const cases: [content: unknown, message: string][] = [
        [{ "<cat1>": {} }, "concept_token_ids"],
        [
          { ...good, "<cat1>": { ...token, concept_token_names: ["<new0>"] } },
          "names of <cat1>",
        ],
        [
          {
            ...good,
            "<cat1>": {
              ...token,
              concept_token_ids: token.concept_token_ids.map((id) => id + 1),
            },
          },
          "the tokenizer's ids",
        ],
        // The dog's entries, the last ones, belong to nobody.
        [{ "<cat1>": good["<cat1>"], "<cat2>": good["<cat2>"] }, `of ${size}`],
      ];
      for (const [content, message] of cases) {
        await writeJson(path, content);
        await assertRejects(() => loadModel(folder), Error, message);
      }
      await writeJson(path, good);
      // A table of another size than tokenizer and concepts agree on.
      const config = joinPath(folder, "text_encoder", "config.json");
      const text = await readJson<Record<string, unknown>>(config);
      await writeJson(config, { ...text, vocab_size: size - 1 });
      await assertRejects(() => loadModel(folder), Error, "token_embedding");
      assertEquals(tf.memory().numTensors, before);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
  },
  ["wasm"],
);

forEachBackend("a token with too few vectors cannot be bound", async () => {
  const base = await loadModel(fixturePath("tiny-sd"));
  const model = await withTokens(base);
  const { added } = model;
  assertThrows(
    () =>
      bindPrompt(
        { ...model, added: { ...added!, sites: { "<cat1>": [0] } } },
        "a <cat1>",
      ),
    Error,
    "a vector for each",
  );
  releaseTokens(model, base);
  disposeModel(base);
}, ["wasm"]);

Deno.test("the embedded model's files are listed whole, for servers", async () => {
  const found: string[] = [];
  for await (const { name, isFile } of Deno.readDir(embeddedModel)) {
    if (isFile) found.push(name);
    // Pictures of the world are read by name; only pretraining reads CLIP A.
    else if (name !== "art" && name !== "clip_a") {
      const folder = new URL(`${name}/`, embeddedModel);
      for await (const file of Deno.readDir(folder)) {
        found.push(`${name}/${file.name}`);
      }
    }
  }
  const notOfTheModel = ["README.md", "prompts.json"];
  assertEquals(
    [...embeddedFiles].sort(),
    found.filter((name) => !notOfTheModel.includes(name)).sort(),
  );
});
