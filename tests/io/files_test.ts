import { assert, assertEquals, assertRejects } from "@std/assert";
import { z } from "zod";
import {
  assertWritable,
  exists,
  joinPath,
  parentOf,
  pathOf,
  readJson,
  readText,
  writeAtomic,
  writeJson,
} from "../../src/io/files.ts";

async function names(folder: string): Promise<string[]> {
  const found: string[] = [];
  for await (const { name } of Deno.readDir(folder)) found.push(name);
  return found.sort();
}

Deno.test("paths are joined and split", () => {
  assertEquals(joinPath("a", "b", "c.json"), "a/b/c.json");
  assertEquals(joinPath("a/", "", "b"), "a/b");
  assertEquals(joinPath("/", "b"), "/b");
  assertEquals(joinPath(new URL("file:///a%20b/"), "c"), "/a b/c");
  assertEquals(parentOf("a/b"), "a");
  assertEquals(parentOf("/b"), "/");
  assertEquals(parentOf("b"), ".");
  assertEquals(pathOf(new URL("file:///C:/a")), "C:/a");
});

Deno.test("writeAtomic writes text, bytes and chunks and makes the folder", async () => {
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "deep", "er", "file");
  await writeAtomic(path, "text ✓");
  assertEquals(await readText(path), "text ✓");
  await writeAtomic(path, new Uint8Array([1, 2]));
  assertEquals(await Deno.readFile(path), new Uint8Array([1, 2]));
  await writeAtomic(path, [new Uint8Array([1]), new Uint8Array([2, 3])]);
  assertEquals(await Deno.readFile(path), new Uint8Array([1, 2, 3]));
  await writeAtomic(
    path,
    (async function* () {
      yield await Promise.resolve(new Uint8Array([9]));
    })(),
  );
  assertEquals(await Deno.readFile(path), new Uint8Array([9]));
  assertEquals(await names(parentOf(path)), ["file"]);
  await Deno.remove(root, { recursive: true });
});

Deno.test("a failing writer leaves the old file and nothing else", async () => {
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "file");
  await writeAtomic(path, "old");
  const failing = (function* () {
    yield new Uint8Array(100_000);
    throw new Error("out of data");
  })();
  await assertRejects(() => writeAtomic(path, failing), Error, "out of data");
  assertEquals(await readText(path), "old");
  assertEquals(await names(root), ["file"]);
  // A folder in the way cannot be replaced by a file.
  await Deno.mkdir(joinPath(root, "taken", "x"), { recursive: true });
  await assertRejects(
    () => writeAtomic(joinPath(root, "taken"), "x"),
    Error,
    "Cannot write",
  );
  assertEquals(await names(root), ["file", "taken"]);
  await Deno.remove(root, { recursive: true });
});

Deno.test("overlapping writers of one path leave one whole file", async () => {
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "file");
  const texts = Array.from({ length: 8 }, (_, i) => `${i}`.repeat(50_000));
  await Promise.all(texts.map((text) => writeAtomic(path, text)));
  assert(texts.includes(await readText(path)));
  assertEquals(await names(root), ["file"]);
  await Deno.remove(root, { recursive: true });
});

Deno.test("assertWritable makes a folder, and refuses what cannot be one", async () => {
  const root = await Deno.makeTempDir();
  await assertWritable(joinPath(root, "new", "folder"));
  assertEquals(await names(joinPath(root, "new", "folder")), []);
  const file = joinPath(root, "file");
  await writeAtomic(file, "");
  for (const folder of [file, joinPath(file, "below")]) {
    await assertRejects(
      () => assertWritable(folder),
      Error,
      `Cannot write into ${folder}`,
    );
    assertEquals(await exists(joinPath(folder, "x")), false);
  }
  await Deno.remove(root, { recursive: true });
});

Deno.test("JSON comes back as it went, and wrong JSON says what is wrong", async () => {
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "a.json");
  const value = { a: [1, 2.5, null], b: { c: "é" } };
  await writeJson(path, value);
  assertEquals(await readJson(path), value);
  assert((await readText(path)).endsWith("}\n"));

  const schema = z.object({ a: z.array(z.number()), d: z.string() });
  const error = await assertRejects(() => readJson(path, schema), Error);
  assert(error.message.startsWith(`Cannot read ${path}`), error.message);
  assert(error.message.includes("a.2") && error.message.includes("d:"));

  const schemaFits = z.object({ b: z.object({ c: z.string() }) });
  assertEquals((await readJson(path, schemaFits)).b.c, "é");

  await writeAtomic(path, "{");
  await assertRejects(() => readJson(path), Error, "expected valid JSON");
  await writeAtomic(path, new Uint8Array([0x22, 0xff, 0x22]));
  await assertRejects(() => readJson(path), Error, "expected UTF-8 text");
  await assertRejects(
    () => readJson(joinPath(root, "none")),
    Error,
    "expected a readable file",
  );
  await assertRejects(() => readJson(root), Error, "expected a file");
  await Deno.remove(root, { recursive: true });
});
