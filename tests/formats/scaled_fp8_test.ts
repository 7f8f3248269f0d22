/**
 * fp8 weights with a scale beside them, against the same file with the products
 * in F32.
 */
import { assert, assertEquals, assertRejects } from "@std/assert";
import { main } from "../../src/cli/main.ts";
import { leaves } from "../../src/core/tree.ts";
import { loadSingleFile, saveSingleFile } from "../../src/formats/ldm.ts";
import { scaledWeights } from "../../src/formats/scaled_fp8.ts";
import { selectBackend } from "../../src/core/backend.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { fixturePath } from "../helpers.ts";

const TOKENIZER = fixturePath("tiny-sd/tokenizer");

/** Codes of E4M3 and what they are. */
const CODES: readonly [number, number][] = [
  [0x38, 1],
  [0x3c, 1.5],
  [0xb8, -1],
  [0x40, 2],
  [0x01, 2 ** -9],
  [0x7e, 448],
  [0x00, 0],
];

Deno.test("scaled fp8 weights are the product of code and scale", async () => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  const model = await tinySd();
  const plain = `${folder}/plain.safetensors`;
  const scaled = `${folder}/scaled.safetensors`;
  try {
    await saveSingleFile(plain, model);
    const file = await openSafetensors(plain);
    const tensors = new Map<string, RawTensor>();
    for (const name of file.entries.keys()) {
      tensors.set(name, await file.read(name));
    }
    const { metadata } = file;
    file.close();
    const weights = [...tensors].filter(([name, { shape }]) =>
      /attn2\.to_[qk]\.weight$/.test(name) && shape.length === 2
    );
    assert(weights.length >= 2);
    const products = new Map(tensors), codes = new Map(tensors);
    const number = (...values: number[]): RawTensor => ({
      dtype: "F32",
      shape: values.length === 1 ? [] : [values.length],
      data: encodeFloat(Float32Array.from(values), "F32"),
    });
    codes.set("scaled_fp8", {
      ...number(0),
      dtype: "F32",
      shape: [0],
      data: new Uint8Array(0),
    });
    for (const [k, [name, { shape }]] of weights.entries()) {
      const [rows, columns] = shape, size = rows * columns;
      const pick = (i: number) => CODES[(i * 5 + k) % CODES.length];
      // One scale a weight, or one an output, in both spellings.
      const scales = k % 2 === 0
        ? [0.375]
        : Array.from({ length: rows }, (_, r) => 0.01 * (r + 1));
      const scaleName = k % 2 === 0 ? "scale_weight" : "weight_scale";
      codes.set(name, {
        dtype: "F8_E4M3",
        shape,
        data: Uint8Array.from({ length: size }, (_, i) => pick(i)[0]),
      });
      codes.set(name.replace(/weight$/, scaleName), number(...scales));
      codes.set(name.replace(/weight$/, "scale_input"), number(7));
      products.set(name, {
        dtype: "F32",
        shape,
        data: encodeFloat(
          Float32Array.from(
            { length: size },
            (_, i) =>
              pick(i)[1] *
              Math.fround(scales[Math.floor(i / columns) % scales.length]),
          ),
          "F32",
        ),
      });
    }
    await writeSafetensors(plain, products, metadata);
    await writeSafetensors(scaled, codes, metadata);
    const expected = await loadSingleFile(plain, { tokenizer: TOKENIZER });
    const notes: string[] = [];
    const actual = await loadSingleFile(scaled, {
      tokenizer: TOKENIZER,
      onNote: (note) => notes.push(note),
    });
    assertEquals(notes, []);
    const theirs = new Map(leaves(actual.unet.params));
    for (const [path, tensor] of leaves(expected.unet.params)) {
      // deno-lint-ignore no-explicit-any
      const data = async (t: any) => await t.data();
      assertEquals(await data(theirs.get(path)), await data(tensor), path);
    }
    disposeModel(expected);
    disposeModel(actual);
    const opened = await openSafetensors(scaled);
    assertEquals(scaledWeights(opened), weights.length);
    opened.close();
    const { log } = console;
    const said: string[] = [];
    console.log = (text) => void said.push(String(text));
    try {
      assertEquals(await main(["inspect", scaled]), 0);
    } finally {
      console.log = log;
      await selectBackend("wasm");
    }
    assert(
      said.join("\n").includes(
        `scaled weights: ${weights.length}, read as weight · scale`,
      ),
      said.join("\n"),
    );
    assert(!said.join("\n").includes("beside it, not read"), said.join("\n"));
    // A scale that fits no row is no scale.
    const [name] = weights[0];
    codes.set(name.replace(/weight$/, "scale_weight"), number(1, 2, 3));
    await writeSafetensors(scaled, codes, metadata);
    await assertRejects(
      () => loadSingleFile(scaled, { tokenizer: TOKENIZER }),
      Error,
      "scales of one number, or one an output",
    );
  } finally {
    disposeModel(model);
    await Deno.remove(folder, { recursive: true });
  }
});
