import {
  assert,
  assertEquals,
  assertNotEquals,
  assertRejects,
} from "@std/assert";
import { joinPath, writeJson } from "../../src/io/files.ts";
import type { ComposeSpec, DrawSpec, TextSpec } from "../../src/lab/specs.ts";
import {
  canonicalJson,
  emptyStore,
  folderHash,
  imageIds,
  isDone,
  pathOf,
  readVectors,
  specId,
  writeVectors,
} from "../../src/lab/store.ts";

Deno.test("canonical JSON: keys in order, undefined left out, lists kept", () => {
  assertEquals(
    canonicalJson({ b: [2, { d: 1, c: undefined }], a: null }),
    '{"a":null,"b":[2,{"d":1}]}',
  );
  assertEquals(canonicalJson({ a: undefined }), canonicalJson({}));
  assertNotEquals(canonicalJson([1, 2]), canonicalJson([2, 1]));
});

Deno.test("a spec's name does not depend on the order of its keys", async () => {
  const name = await specId({ kind: "texts", clip: "c", texts: ["a"] });
  assertEquals(name, await specId({ texts: ["a"], clip: "c", kind: "texts" }));
  // Stored results are found by it: a change of this value leaves them all.
  assertEquals(
    name,
    "3ee110e4654f45180a48828a6a9f6e07faa9bc2f5c974d10ea9efe6df21d3372",
  );
  assertNotEquals(
    name,
    await specId({ kind: "texts", clip: "d", texts: ["a"] }),
  );
});

const draw = (...texts: string[]): DrawSpec => ({
  kind: "draw",
  base: "b",
  model: { type: "base" },
  samples: texts.map((text) => ({ text, noise: [0, text] })),
  sampling: { sampler: "ddim", steps: 2, guidance: 1, negative: "" },
});

Deno.test("pictures are named one by one: a longer list shares a shorter one's", async () => {
  const [a, b] = await imageIds(draw("a", "b"));
  assertEquals(await imageIds(draw("b")), [b]);
  assertNotEquals(a, b);
  const compose = (...noise: number[]): ComposeSpec => ({
    kind: "compose",
    ...{ base: "b", art: "a", model: { type: "base" }, how: "model" },
    ...{ concepts: [], layout: { prompt: "x" }, networks: {} },
    noise: noise.map((seed) => [seed]),
  });
  const [, second] = await imageIds(compose(0, 1));
  assertEquals(await imageIds(compose(1)), [second]);
});

Deno.test("a result is done when all of its files are there", async () => {
  const store = await Deno.makeTempDir();
  try {
    const spec = draw("a", "b");
    const write = async (path: string) => {
      await Deno.mkdir(path.slice(0, path.lastIndexOf("/")), {
        recursive: true,
      });
      await Deno.writeTextFile(path, "");
    };
    const [a, b] = await imageIds(spec);
    await write(pathOf.image(store, a));
    assert(!await isDone(store, spec));
    await write(pathOf.image(store, b));
    assert(await isDone(store, spec));
    const texts: TextSpec = { kind: "texts", clip: "c", texts: ["x"] };
    assert(!await isDone(store, texts));
    await write(pathOf.embedding(store, await specId(texts)));
    assert(await isDone(store, texts));
  } finally {
    await Deno.remove(store, { recursive: true });
  }
});

Deno.test("emptying a store removes its results and nothing else", async () => {
  const store = await Deno.makeTempDir();
  try {
    await emptyStore(joinPath(store, "none"));
    const images = joinPath(store, "images", "ab");
    await Deno.mkdir(images, { recursive: true });
    await Deno.writeTextFile(joinPath(images, "abc.png"), "");
    await writeJson(pathOf.heldout(store, "id"), {});
    await Deno.writeTextFile(joinPath(store, "thesis.txt"), "mine");
    await emptyStore(store);
    const left = await Array.fromAsync(Deno.readDir(store));
    assertEquals(left.map(({ name }) => name), ["thesis.txt"]);
  } finally {
    await Deno.remove(store, { recursive: true });
  }
});

Deno.test("a folder's hash is that of names and contents", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const file = (name: string) => joinPath(folder, name);
    await writeJson(file("unet/config.json"), { a: 1 });
    await writeJson(file("vae/config.json"), { a: 2 });
    const all = await folderHash(folder);
    assertEquals(await folderHash(`${folder}/`), all);
    const unet = await folderHash(folder, ["unet"]);
    await Deno.writeTextFile(file("vae/.hidden"), "x");
    assertEquals(await folderHash(folder), all);
    await writeJson(file("vae/config.json"), { a: 3 });
    assertNotEquals(await folderHash(folder), all);
    assertEquals(await folderHash(folder, ["unet"]), unet);
    await Deno.rename(file("unet/config.json"), file("unet/other.json"));
    assertNotEquals(await folderHash(folder, ["unet"]), unet);
    await assertRejects(() => folderHash(folder, ["text_encoder"]));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("vectors come back as they were", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const path = joinPath(folder, "x.safetensors");
    const rows = [[1, 0.5], [-0.25, 3]].map((row) => Float32Array.from(row));
    await writeVectors(path, [["whole", rows], ["0.1", [rows[1]]]]);
    const read = await readVectors(path);
    assertEquals(read.get("whole"), rows);
    assertEquals(read.get("0.1"), [rows[1]]);
    assertEquals(read.size, 2);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
