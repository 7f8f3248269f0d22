// Run by Node's own test runner, in dist/test, on the built package.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import process from "node:process";
import { test } from "node:test";
import * as mos from "mix-of-show";
import { createPool } from "../src/core/pool.js";
import { writeAtomic } from "../src/io/files.js";
import { behaviours } from "./behaviours.js";

const server = process.env.MIX_OF_SHOW_SERVER;
const expected = JSON.parse(readFileSync("expected.json", "utf8"));
const list = behaviours({
  mos,
  model: mos.embeddedModel.href,
  pictures: `${server}/tests/fixtures/pictures/`,
});

for (const [i, { name, run }] of list.entries()) {
  test(name, async () => {
    assert.equal(expected[i].error, undefined, "in Deno");
    assert.equal(await run(), expected[i].value);
  });
}

test("a model is loaded over HTTP", async () => {
  const model = await mos.loadModel(`${server}/models/micro/`);
  mos.disposeModel(model);
});

test("a file is written whole through a link, and nothing is left behind", async () => {
  const folder = mkdtempSync(`${tmpdir()}/mos-`);
  symlinkSync("real.bin", `${folder}/link.bin`);
  await writeAtomic(`${folder}/link.bin`, [
    new Uint8Array(3),
    new Uint8Array(4),
  ]);
  assert.equal(readFileSync(`${folder}/real.bin`).length, 7);
  await assert.rejects(
    writeAtomic(
      `${folder}/real.bin`,
      (function* () {
        yield new Uint8Array(2);
        throw new Error("enough");
      })(),
    ),
    /enough/,
  );
  assert.deepEqual(readdirSync(folder).sort(), ["link.bin", "real.bin"]);
  assert.equal(readFileSync(`${folder}/real.bin`).length, 7);
});

test("README's lines for Node draw a picture", async () => {
  const readme = readFileSync("../README.md", "utf8");
  const code = [...readme.matchAll(/```js\n([^]*?)```/g)]
    .map(([, lines]) => lines).find((lines) => lines.includes("process."));
  const folder = mkdtempSync("readme-");
  writeFileSync(`${folder}/fox.js`, code);
  const { status, stderr } = spawnSync(process.execPath, ["fox.js"], {
    cwd: folder,
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
  const picture = await mos.readPicture(`${folder}/fox.png`);
  assert.equal(picture.width, 64);
});

test("workers compute, each with its own tfjs", async () => {
  const pool = await createPool({
    workers: 2,
    module: new URL("./worker.js", import.meta.url),
    init: { backend: "wasm" },
  });
  try {
    assert.deepEqual(await pool.map("square", [1, 2, 3]), [1, 4, 9]);
    await assert.rejects(pool.run("fail", 0), /on purpose[\s\S]*/);
  } finally {
    pool.close();
  }
});

test("every entry of the package is there, with its declarations", async () => {
  const { exports } = JSON.parse(readFileSync("../package.json", "utf8"));
  for (const [name, { types, default: code }] of Object.entries(exports)) {
    if (!types) continue;
    assert.ok(existsSync(`../${types}`) && existsSync(`../${code}`), name);
    // Those are for pages.
    if (name.startsWith("./browser")) continue;
    const module = await import(`mix-of-show${name.slice(1)}`);
    assert.ok(Object.keys(module).length > 0, name);
  }
});
