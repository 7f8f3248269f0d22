import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeConcept, initConcept } from "../../src/customize/concept.ts";
import { loadConcept, saveConcept } from "../../src/formats/concept_file.ts";
import { saveSingleFile } from "../../src/formats/ldm.ts";
import { loadModel } from "../../src/formats/load_model.ts";
import { loadLora } from "../../src/formats/lora.ts";
import { saveLora } from "../../src/formats/lora_write.ts";
import type { FileSource } from "../../src/io/source.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { fixturePath } from "../helpers.ts";
import { served } from "../platform/served.ts";

const FOLDER = fixturePath("tiny-sd");

/** One number that stands for all weights of a model. */
async function sumOf({ unet, autoencoder, textEncoder }: Model) {
  const [conv] = [unet.params.conv_in.weight];
  const total = tf.tidy(() =>
    tf.addN([
      conv.sum(),
      autoencoder.params.post_quant_conv.weight.sum(),
      textEncoder.params.text_model.embeddings.token_embedding.weight.sum(),
    ])
  );
  const [value] = await total.data();
  total.dispose();
  return value;
}

/** A folder's files as a page has them when someone picked it. */
async function pick(folder: string, root: string): Promise<File[]> {
  const files: File[] = [];
  for await (const { name, isDirectory } of Deno.readDir(folder)) {
    const [from, to] = [`${folder}/${name}`, `${root}/${name}`];
    if (isDirectory) files.push(...await pick(from, to));
    else {
      const file = new File([await Deno.readFile(from)], name);
      Object.defineProperty(file, "webkitRelativePath", { value: to });
      files.push(file);
    }
  }
  return files;
}

/** A file in every form that readers take. */
async function forms(path: string, url: string) {
  const bytes = await Deno.readFile(path);
  const forms: [string, FileSource][] = [
    ["a path", path],
    ["a file: URL", new URL(`file://${path}`)],
    ["a file: URL as text", `file://${path}`],
    ["an address", `${url}/${path.split("/").at(-1)}`],
    ["an address as a URL", new URL(`${url}/${path.split("/").at(-1)}`)],
    ["a Blob", new Blob([bytes])],
    ["a File", new File([bytes], "picked.safetensors")],
    ["bytes", bytes],
  ];
  return forms;
}

Deno.test("models, concepts and LoRAs are read from wherever they are", async () => {
  await selectBackend("wasm");
  const temporary = await Deno.makeTempDir();
  await using files = served(temporary);
  await using folders = served(FOLDER);
  const before = tf.memory().numTensors;
  try {
    const base = await loadModel(FOLDER);
    const expected = await sumOf(base);
    const check = async (name: string, model: Model) => {
      assertEquals([name, await sumOf(model)], [name, expected]);
      disposeModel(model);
    };
    const picked = await pick(FOLDER, "my-model");
    const named = picked.map((file) =>
      new File([file], file.webkitRelativePath.replace("my-model/", ""))
    );
    for (
      const [name, from] of [
        ["a file: URL", new URL(`file://${FOLDER}`)],
        ["a file: URL as text", `file://${FOLDER}`],
        ["an address", folders.url],
        ["an address as a URL", new URL(folders.url)],
        ["a picked folder", picked],
        ["files with paths as names", named],
      ] as const
    ) await check(name, await loadModel(from));

    const one = `${temporary}/one.safetensors`;
    await saveSingleFile(one, base);
    const tokenizer = `${FOLDER}/tokenizer`;
    for (const [name, from] of await forms(one, files.url)) {
      await check(name, await loadModel(from, { tokenizer }));
    }

    const concept = await initConcept(base, {
      ...{ name: "cat", classWord: "cat", key: key(1) },
      severalTokens: "mean",
    });
    const file = `${temporary}/cat.safetensors`;
    await saveConcept(file, concept, base);
    for (const [name, from] of await forms(file, files.url)) {
      const read = await loadConcept(from, base);
      assertEquals([name, read.phrase], [name, concept.phrase]);
      disposeConcept(read);
    }

    const lora = `${temporary}/lora.safetensors`;
    await saveLora(lora, { adapter: concept.adapter }, base, "kohya");
    for (const [name, from] of await forms(lora, files.url)) {
      const { adapter } = await loadLora(from, base);
      assertEquals([name, adapter.unet.size], [
        name,
        concept.adapter.unet.size,
      ]);
      disposeConcept({ ...concept, adapter, tokens: [] });
    }
    disposeConcept(concept);
    disposeModel(base);
    assertEquals(tf.memory().numTensors, before, "tensors");
  } finally {
    await Deno.remove(temporary, { recursive: true });
  }
});

Deno.test("a picked folder that lacks a file, and a file without tokenizer", async () => {
  const files = await pick(FOLDER, "my-model");
  const without = (part: string) =>
    files.filter(({ webkitRelativePath: path }) => !path.includes(part));
  await assertRejects(
    () => loadModel(without("tokenizer/")),
    Error,
    "Cannot load the tokenizer in my-model/tokenizer: expected vocab.json",
  );
  await assertRejects(
    () => loadModel(without("scheduler/")),
    Error,
    "Cannot read my-model/scheduler/scheduler_config.json: expected it among",
  );
  await assertRejects(
    () => loadModel(without("unet/config.json")),
    Error,
    "Cannot load my-model: expected unet/config.json in it",
  );
  await assertRejects(
    () => loadModel([]),
    Error,
    "the picked files/tokenizer",
  );
  await assertRejects(
    () => loadModel(new File([], "sd.safetensors")),
    Error,
    "Cannot load sd.safetensors: expected a tokenizer",
  );
});
