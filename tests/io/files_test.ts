import { assert, assertEquals, assertRejects } from "@std/assert";
import { z } from "zod";
import {
  assertWritable,
  assertWritableFile,
  besidePath,
  exists,
  joinPath,
  otherContent,
  parentOf,
  parseJson,
  pathOf,
  pythonJson,
  readJson,
  readText,
  writeAtomic,
  writeJson,
  writePythonJson,
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

Deno.test("JSON is read as Python writes it, and written so again", async () => {
  const value = {
    low: -Infinity,
    high: Infinity,
    none: NaN,
    list: [1, -Infinity],
    Infinity: "-Infinity",
    text: 'a "NaN", Infinity \\"',
    mark: "#0:NaN",
    null: null,
  };
  const text = '{"low": -Infinity, "high": Infinity, "none": NaN, ' +
    '"list": [1, -Infinity], "Infinity": "-Infinity", ' +
    '"text": "a \\"NaN\\", Infinity \\\\\\"", "mark": "#0:NaN", "null": null}';
  assertEquals(parseJson(text, "x"), value);
  assertEquals(parseJson(pythonJson(value), "x"), value);
  assertEquals(
    pythonJson({ a: [-Infinity, "-Infinity", NaN] }),
    '{"a":[-Infinity,"-Infinity",NaN]}',
  );
  // What standard JSON can say is written as ever.
  const plain = { a: ["\u0000number NaN ", 1.5], b: { c: '\\"' } };
  assertEquals(pythonJson(plain, 2), JSON.stringify(plain, null, 2));
  for (const bad of ["{a: Infinity", "[Infinityy]", "[-NaN]", "-Infinit"]) {
    let message = "";
    try {
      parseJson(bad, "config.json");
    } catch (error) {
      message = (error as Error).message;
    }
    assert(message.startsWith("Cannot read config.json: expected valid JSON"));
  }
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "scheduler_config.json");
  await writePythonJson(path, { lambda_min_clipped: -Infinity });
  assertEquals(
    await readText(path),
    '{\n  "lambda_min_clipped": -Infinity\n}\n',
  );
  assertEquals(await readJson(path), { lambda_min_clipped: -Infinity });
  await Deno.remove(root, { recursive: true });
});

Deno.test("what lies in another file's place is named", () => {
  const lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
  assert(otherContent(lfs)!.startsWith("a git-lfs pointer"));
  for (const page of ["<!DOCTYPE html>", "\n <html lang=x>", "\ufeff<HTML>"]) {
    assert(otherContent(page)!.startsWith("an HTML page"), page);
    const bytes = new TextEncoder().encode(page);
    assert(otherContent(bytes)!.startsWith("an HTML page"), page);
  }
  assert(otherContent("<?xml version='1.0'?><Error>")!.startsWith("an XML"));
  assertEquals(otherContent("{}"), undefined);
  let message = "";
  try {
    parseJson(lfs, "vocab.json");
  } catch (error) {
    message = (error as Error).message;
  }
  assertEquals(
    message,
    "Cannot read vocab.json: expected valid JSON, got a git-lfs pointer, not " +
      "the file itself (git lfs pull gets it)",
  );
});

Deno.test("names as long as the system takes them can be written", async () => {
  const root = await Deno.makeTempDir();
  const written: string[] = [];
  for (const name of ["a", "a.b", "角".repeat(85), "x".repeat(255)]) {
    await writeAtomic(joinPath(root, name), name);
    await assertWritableFile(joinPath(root, name));
    assertEquals(await readText(joinPath(root, name)), name);
    written.push(name);
  }
  assertEquals(await names(root), written.sort());
  const long = joinPath(root, "x".repeat(256));
  for (const write of [(p: string) => writeAtomic(p, ""), assertWritableFile]) {
    await assertRejects(() => write(long), Error, "Cannot write");
  }
  await Deno.mkdir(joinPath(root, "folder"));
  await assertRejects(
    () => assertWritableFile(joinPath(root, "folder")),
    Error,
    "expected a file, got a folder",
  );
  assertEquals(await names(root), [...written, "folder"].sort());
  await Deno.remove(root, { recursive: true });
});

Deno.test("a file beside one with a long name has a name that fits", () => {
  assertEquals(besidePath("a/hero", ".state"), "a/hero.state");
  const names = ["a", "b"].map((end) =>
    besidePath(`x/${"角".repeat(83)}${end}`, ".state.safetensors")
  );
  for (const name of names) {
    assert(name.startsWith("x/角") && name.endsWith(".state.safetensors"));
    const bytes = new TextEncoder().encode(name).length - 2;
    assert(bytes <= 255 && bytes > 250, `${bytes}`);
  }
  assert(names[0] !== names[1]);
});

Deno.test("a link as output stays, and what it points to is written", async () => {
  const root = await Deno.makeTempDir();
  await Deno.mkdir(joinPath(root, "big"));
  const target = joinPath(root, "big", "a");
  await Deno.writeTextFile(target, "old");
  await Deno.symlink("big/a", joinPath(root, "link"));
  await Deno.symlink(joinPath(root, "link"), joinPath(root, "second"));
  await Deno.symlink("big/new", joinPath(root, "dangling"));
  await Deno.symlink("gone/new", joinPath(root, "lost"));
  await Deno.symlink("round", joinPath(root, "round"));
  await writeAtomic(joinPath(root, "second"), "new");
  assertEquals(await readText(target), "new");
  await writeAtomic(joinPath(root, "dangling"), "first");
  assertEquals(await readText(joinPath(root, "big", "new")), "first");
  for (const name of ["link", "second", "dangling"]) {
    assert((await Deno.lstat(joinPath(root, name))).isSymlink, name);
  }
  for (const name of ["lost", "round"]) {
    await assertRejects(
      () => writeAtomic(joinPath(root, name), ""),
      Error,
      `Cannot write ${joinPath(root, name)}`,
    );
  }
  assertEquals(await names(joinPath(root, "big")), ["a", "new"]);
  await Deno.remove(root, { recursive: true });
});

Deno.test("a full disk is said with the path", async () => {
  // A device that is always full, behind the writer's file.
  const original = Deno.FsFile.prototype.write;
  const root = await Deno.makeTempDir();
  const path = joinPath(root, "001.png");
  Deno.FsFile.prototype.write = () =>
    Promise.reject(new Error("No space left on device (os error 28)"));
  try {
    await assertRejects(
      () => writeAtomic(path, "x"),
      Error,
      `Cannot write ${path}: expected room on the disk, got No space`,
    );
  } finally {
    Deno.FsFile.prototype.write = original;
  }
  assertEquals(await names(root), []);
  await Deno.remove(root, { recursive: true });
});
