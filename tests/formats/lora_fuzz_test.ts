/**
 * Mutated LoRA files of every dialect: what is read is exactly what is in the
 * file, everything else is an error that says so.
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import {
  fold,
  key,
  normal,
  type Stream,
  stream,
} from "../../src/core/random.ts";
import { layersOf, type LoraBase } from "../../src/formats/dialects/base.ts";
import type { Dialect } from "../../src/formats/dialects/dialect.ts";
import { randomAdapter } from "./random_adapter.ts";
import { COMPONENTS } from "../../src/customize/lora.ts";
import {
  DIALECTS,
  disposeLora,
  loadLora,
  type LoraFile,
} from "../../src/formats/lora.ts";
import { encodeLora } from "../../src/formats/lora_write.ts";
import {
  encodeFloat,
  encodeSafetensors,
  openSafetensors,
  type RawTensor,
  toFloat32,
} from "../../src/io/safetensors.ts";
import {
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { forEachBackend } from "../helpers.ts";

const SEED = 20231124;
/** Mutated files of each dialect. */
const MUTATIONS = 150;

/** A base with few layers: a file takes about a millisecond. */
const base: LoraBase = {
  textEncoder: {
    config: parseTextEncoderConfig({
      hidden_size: 8,
      intermediate_size: 8,
      num_hidden_layers: 1,
      num_attention_heads: 2,
    }),
  },
  unet: {
    config: parseUNetConfig({
      block_out_channels: [8],
      down_block_types: ["CrossAttnDownBlock2D"],
      up_block_types: ["CrossAttnUpBlock2D"],
      layers_per_block: 1,
      norm_num_groups: 4,
      cross_attention_dim: 8,
      attention_head_dim: 2,
    }),
  },
};

type Tensors = Map<string, RawTensor>;

/** Changes names, shapes, types, values or metadata of a file. */
function mutate(
  tensors: Tensors,
  metadata: Record<string, string>,
  random: Stream,
): string {
  const pick = <T>(list: readonly T[]): T => list[random.integer(list.length)];
  const names = [...tensors.keys()];
  const name = pick(names);
  const tensor = tensors.get(name)!;
  const rename = (to: string) => {
    tensors.delete(name);
    tensors.set(to, tensor);
    return `${name} as ${to}`;
  };
  switch (random.integer(14)) {
    case 0: { // a letter
      const at = random.integer(name.length);
      return rename(
        name.slice(0, at) + pick([..."abx_.:019"]) + name.slice(at + 1),
      );
    }
    case 1:
      return rename(name.slice(random.integer(4)));
    case 2:
      return rename(name.replace(/\d+/, String(random.integer(30))));
    case 3:
      return rename(
        pick(names).replace(/\.[^.]*$/, "") + pick([
          ".alpha",
          ".weight",
          ".dora_scale",
          ".lora_up.weight",
          ":up",
        ]),
      );
    case 4:
      tensors.delete(name);
      return `no ${name}`;
    case 5:
      tensors.set(pick(names), tensor);
      return `${name} twice`;
    case 6: { // the same numbers in another shape
      const shape = tensor.shape.toReversed();
      tensors.set(name, { ...tensor, shape });
      return `${name} as [${shape}]`;
    }
    case 7: {
      const size = tensor.shape.reduce((a, b) => a * b, 1);
      const shape = pick([[size], [size, 1], [1, size], [1, 1, size], [
        ...tensor.shape,
        1,
        1,
      ]]);
      tensors.set(name, { ...tensor, shape });
      return `${name} as [${shape}]`;
    }
    case 8: { // another size
      const shape = tensor.shape.map((n) => pick([0, 1, n, n + 1, 2 * n]));
      const size = shape.reduce((a, b) => a * b, 1);
      tensors.set(name, {
        dtype: "F32",
        shape,
        data: new Uint8Array(4 * size),
      });
      return `${name} of [${shape}]`;
    }
    case 9: { // the same numbers, rounded
      const dtype = pick(["F16", "BF16"] as const);
      tensors.set(name, {
        ...tensor,
        dtype,
        data: encodeFloat(toFloat32(tensor), dtype),
      });
      return `${name} in ${dtype}`;
    }
    case 10: { // other types of as many bytes
      const dtype = pick(["I32", "I16", "I8", "U8", "BOOL"] as const);
      const count = tensor.shape.reduce((a, b) => a * b, 1);
      const bytes = { I32: 4, I16: 2, I8: 1, U8: 1, BOOL: 1 }[dtype];
      tensors.set(name, {
        ...tensor,
        dtype,
        data: new Uint8Array(count * bytes),
      });
      return `${name} in ${dtype}`;
    }
    case 11: { // any bytes: NaN, infinities, denormals
      const data = tensor.data.slice();
      for (let i = 0; i < 1 + random.integer(4); i++) {
        data[random.integer(data.length)] = pick([0, 127, 128, 255]);
      }
      tensors.set(name, { ...tensor, data });
      return `bytes of ${name}`;
    }
    case 12: {
      const keys = Object.keys(metadata);
      if (keys.length === 0) return "nothing";
      const changed = pick(keys);
      const value = metadata[changed];
      const at = random.integer(value.length + 1);
      metadata[changed] = pick([
        "",
        "[]",
        "{}",
        "null",
        "<embed>",
        "0",
        value.slice(0, at) + pick([...'"[{9']) + value.slice(at + 1),
      ]);
      return `metadata ${changed}: ${metadata[changed]}`;
    }
    default:
      delete metadata[pick(Object.keys(metadata))];
      return "less metadata";
  }
}

/** The numbers of a file that are in layers or tokens, α apart, by size. */
async function content(d: Dialect, tensors: Iterable<[string, RawTensor]>) {
  const result: [size: number, sum: number][] = [];
  for (const [name, tensor] of tensors) {
    if (name.endsWith(".alpha")) continue;
    const values = toFloat32(tensor);
    result.push([values.length, values.reduce((a, b) => a + b * b, 0)]);
  }
  await Promise.resolve();
  void d;
  return result.sort(([a, x], [b, y]) => a - b || x - y);
}

/** What was read, as a file again, is what was in the file. */
async function sameAs(
  d: Dialect,
  tensors: Tensors,
  file: LoraFile,
  what: string,
): Promise<void> {
  const again = await encodeLora(file, base, d.id);
  const [before, after] = [
    await content(d, tensors),
    await content(d, again.tensors),
  ];
  assertEquals(after.length, before.length, what);
  before.forEach(([size, sum], i) => {
    assertEquals(after[i][0], size, what);
    // Sums of squares of float32: in files without α none is scaled here.
    assert(Math.abs(after[i][1] - sum) <= 1e-5 * Math.abs(sum) + 1e-30, what);
  });
  const alphas = new Map<string, number>();
  for (const [name, tensor] of tensors) {
    if (name.endsWith(".alpha")) alphas.set(name, toFloat32(tensor)[0]);
  }
  if (!d.parts.alpha || d.readOnly?.includes("alpha")) return;
  let found = 0;
  const names = d.names(layersOf(base), { entries: new Map() });
  for (const component of COMPONENTS) {
    for (const [path, low] of file.adapter[component]) {
      const key = names(component, path).map((n) => `${n}.alpha`).find((n) =>
        alphas.has(n)
      );
      if (key !== undefined) found++;
      const rank = low.down.shape.at(-1)!;
      const scale = key === undefined ? 1 : alphas.get(key)! / rank;
      assertEquals(low.scale, scale, `${what}: ${path}`);
    }
  }
  assertEquals(found, alphas.size, what);
}

forEachBackend(
  `${MUTATIONS} mutated files a dialect: refused, or read as they are`,
  async () => {
    const before = tf.memory().numTensors;
    const started = performance.now();
    const counts: Record<string, number> = {};
    for (const d of DIALECTS) {
      const random = stream(fold(key(SEED), d.id));
      const layers = d.parts.down !== undefined;
      const adapter = randomAdapter(
        base,
        (_, path) => layers && /\.(self_attn|attn1|attn2)\./.test(path),
      );
      const vectors = tf.tensor2d(normal(key(5), 8), [1, 8]);
      const whole = await encodeLora(
        {
          adapter,
          embeddings: new Map(d.tokens ? [["<x>", vectors]] : []),
        },
        base,
        d.id,
      );
      let accepted = 0;
      for (let i = 0; i < MUTATIONS; i++) {
        const tensors: Tensors = new Map(whole.tensors);
        const metadata = { ...whole.metadata };
        const done: string[] = [];
        for (let k = 1 + random.integer(2); k > 0 && tensors.size > 0; k--) {
          done.push(mutate(tensors, metadata, random));
        }
        const what = `${d.id} ${i}: ${done.join("; ")}`;
        let bytes = encodeSafetensors(tensors, metadata);
        if (random.integer(8) === 0) {
          // The file itself, header and all.
          bytes = bytes.slice();
          bytes[random.integer(bytes.length)] ^= 1 << random.integer(8);
        }
        let file: LoraFile;
        try {
          file = await loadLora(bytes, base);
        } catch (error) {
          assert(
            error instanceof Error && error.message.startsWith("Cannot "),
            `${what}: ${error}`,
          );
          assert(error.message.length < 20_000, what);
          continue;
        }
        accepted++;
        const source = await openSafetensors(bytes);
        const read: Tensors = new Map();
        for (const name of source.entries.keys()) {
          read.set(name, await source.read(name));
        }
        source.close();
        const own = DIALECTS.find(({ id }) => id === file.dialect)!;
        await sameAs(own, read, file, what);
        disposeLora(file);
      }
      counts[d.id] = accepted;
      disposeLora({ adapter, embeddings: new Map() });
      vectors.dispose();
    }
    // A single tensor is seldom hit so that nothing of it is left.
    for (const [id, accepted] of Object.entries(counts)) {
      assert(accepted > 0 && accepted < MUTATIONS, `${id}: ${accepted}`);
    }
    assertEquals(tf.memory().numTensors, before);
    // About 5 s alone; a hang would be minutes.
    assert(performance.now() - started < 120_000, "time");
  },
  ["wasm"],
);
