/**
 * LoHa, LoKr and full differences against a second implementation: the formulas
 * written down index by index, with no factors.
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { finish } from "../../src/core/finish.ts";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import { disposeConcept } from "../../src/customize/concept.ts";
import {
  attach,
  delta,
  merge,
  rankOf,
  type Site,
} from "../../src/customize/lora.ts";
import { layersOf } from "../../src/formats/dialects/base.ts";
import { loraConcept } from "../../src/formats/lora_concept.ts";
import {
  type Algorithm,
  disposeLora,
  loadLora,
  readLora,
} from "../../src/formats/lora.ts";
import { loraBytes } from "../../src/formats/lora_write.ts";
import { fuse } from "../../src/fusion/gradient.ts";
import { mergeConcepts } from "../../src/fusion/mergers.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import {
  encodeFloat,
  encodeSafetensors,
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import { toDisk } from "../../src/models/checkpoint.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { close, forEachBackend, noLeak } from "../helpers.ts";

/** Parts of a layer: shape and values. */
type Parts = Record<string, { shape: number[]; values: Float32Array }>;

/** One way to write a layer's change, and the change itself. */
interface Case {
  name: string;
  algorithm: Algorithm;
  /** The rank in the file; of none, that of the layer. */
  rank?: number;
  parts: (site: Site) => Parts;
  /** ΔW[o, i, place] at scale 1 of the parts. */
  value: (p: Parts, site: Site, o: number, i: number, place: number) => number;
}

let seed = 0;
function random(...shape: number[]) {
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, values: normal(key(++seed), size, 0.5) };
}

const area = ({ kernel }: Site) => kernel[0] * kernel[1];
const filter = ({ kind, kernel }: Site) => kind === "conv" ? [...kernel] : [];

/** (A B)[o, i·area + place] of two parts. */
function times(
  a: Parts[string],
  b: Parts[string],
  o: number,
  column: number,
): number {
  const [rank, columns] = b.shape;
  let sum = 0;
  for (let r = 0; r < rank; r++) {
    sum += a.values[o * rank + r] * b.values[r * columns + column];
  }
  return sum;
}

/** Σ t[p, q, place] a[p, o] b[q, i], LyCORIS's einsum of a Tucker form. */
function tucker(
  t: Parts[string],
  a: Parts[string],
  b: Parts[string],
  o: number,
  i: number,
  place: number,
): number {
  const rank = b.shape[0];
  const places = t.values.length / rank / rank;
  let sum = 0;
  for (let p = 0; p < rank; p++) {
    for (let q = 0; q < rank; q++) {
      sum += t.values[(p * rank + q) * places + place] *
        a.values[p * a.shape[1] + o] * b.values[q * b.shape[1] + i];
    }
  }
  return sum;
}

/** W₁[⌊o/c⌋, ⌊i/d⌋] · W₂[o mod c, i mod d], W₂ of c rows and d inputs. */
function kron(
  first: (row: number, column: number) => number,
  second: (row: number, input: number) => number,
  [c, d]: [number, number],
  o: number,
  i: number,
): number {
  return first(Math.floor(o / c), Math.floor(i / d)) * second(o % c, i % d);
}

const loha = (rank: number): Case => ({
  name: `LoHa of rank ${rank}`,
  algorithm: "LoHa",
  rank,
  parts: (s) => ({
    hada_w1_a: random(s.outputs, rank),
    hada_w1_b: random(rank, s.inputs * area(s)),
    hada_w2_a: random(s.outputs, rank),
    hada_w2_b: random(rank, s.inputs * area(s)),
  }),
  value: (p, s, o, i, place) =>
    times(p.hada_w1_a, p.hada_w1_b, o, i * area(s) + place) *
    times(p.hada_w2_a, p.hada_w2_b, o, i * area(s) + place),
});

const CASES: Case[] = [
  loha(2),
  // r² is more than the layers' own rank.
  loha(9),
  {
    name: "LoHa in Tucker form",
    algorithm: "LoHa",
    rank: 2,
    parts: (s) => ({
      hada_t1: random(2, 2, ...filter(s)),
      hada_w1_a: random(2, s.outputs),
      hada_w1_b: random(2, s.inputs),
      hada_t2: random(2, 2, ...filter(s)),
      hada_w2_a: random(2, s.outputs),
      hada_w2_b: random(2, s.inputs),
    }),
    value: (p, _, o, i, place) =>
      tucker(p.hada_t1, p.hada_w1_a, p.hada_w1_b, o, i, place) *
      tucker(p.hada_t2, p.hada_w2_a, p.hada_w2_b, o, i, place),
  },
  {
    name: "LoKr of two matrices, whose scale is 1",
    algorithm: "LoKr",
    parts: (s) => ({
      lokr_w1: random(4, 2),
      lokr_w2: random(s.outputs / 4, s.inputs / 2, ...filter(s)),
    }),
    value: ({ lokr_w1: a, lokr_w2: b }, s, o, i, place) =>
      kron(
        (row, column) => a.values[row * 2 + column],
        (row, input) => b.values[(row * b.shape[1] + input) * area(s) + place],
        [b.shape[0], b.shape[1]],
        o,
        i,
      ),
  },
  {
    name: "LoKr with a factored second matrix",
    algorithm: "LoKr",
    rank: 3,
    parts: (s) => ({
      lokr_w1: random(2, 4),
      lokr_w2_a: random(s.outputs / 2, 3),
      lokr_w2_b: random(3, s.inputs / 4 * area(s)),
    }),
    value: ({ lokr_w1: w, lokr_w2_a: a, lokr_w2_b: b }, s, o, i, place) =>
      kron(
        (row, column) => w.values[row * 4 + column],
        (row, input) => times(a, b, row, input * area(s) + place),
        [s.outputs / 2, s.inputs / 4],
        o,
        i,
      ),
  },
  {
    name: "LoKr with both factored",
    algorithm: "LoKr",
    rank: 2,
    parts: (s) => ({
      lokr_w1_a: random(4, 1),
      lokr_w1_b: random(1, 4),
      lokr_w2_a: random(s.outputs / 4, 2),
      lokr_w2_b: random(2, s.inputs / 4 * area(s)),
    }),
    value: (p, s, o, i, place) =>
      kron(
        (row, column) => times(p.lokr_w1_a, p.lokr_w1_b, row, column),
        (row, input) =>
          times(p.lokr_w2_a, p.lokr_w2_b, row, input * area(s) + place),
        [s.outputs / 4, s.inputs / 4],
        o,
        i,
      ),
  },
  {
    name: "LoKr in Tucker form",
    algorithm: "LoKr",
    rank: 2,
    parts: (s) => ({
      lokr_w1: random(2, 2),
      lokr_t2: random(2, 2, ...filter(s)),
      lokr_w2_a: random(2, s.outputs / 2),
      lokr_w2_b: random(2, s.inputs / 2),
    }),
    value: (p, s, o, i, place) =>
      kron(
        (row, column) => p.lokr_w1.values[row * 2 + column],
        (row, input) =>
          tucker(p.lokr_t2, p.lokr_w2_a, p.lokr_w2_b, row, input, place),
        [s.outputs / 2, s.inputs / 2],
        o,
        i,
      ),
  },
  {
    name: "a full difference",
    algorithm: "full",
    parts: (s) => ({ diff: random(s.outputs, s.inputs, ...filter(s)) }),
    value: ({ diff }, s, o, i, place) =>
      diff.values[(o * s.inputs + i) * area(s) + place],
  },
];

const LAYERS = [
  "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
  "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
  "down_blocks.0.resnets.0.conv1",
];

const ALPHA = 0.75;

/** A file in LyCORIS's naming, and every layer's parts. */
function fileOf(
  model: Model,
  { parts }: Case,
  more: Record<string, RawTensor> = {},
): { bytes: Uint8Array; layers: [Site, Parts][] } {
  const found = LAYERS.map((path): [Site, Parts] => {
    const site = layersOf(model).sites.unet.get(path)!;
    return [site, parts(site)];
  });
  const raw = (shape: number[], values: Float32Array): RawTensor => ({
    dtype: "F32",
    shape,
    data: encodeFloat(values, "F32"),
  });
  const bytes = encodeSafetensors([
    ...found.flatMap(([site, own]): [string, RawTensor][] => {
      const stem = `lora_unet_${site.path.replaceAll(".", "_")}`;
      return [
        [`${stem}.alpha`, raw([], Float32Array.of(ALPHA))],
        ...Object.entries(own).map(([part, { shape, values }]): [
          string,
          RawTensor,
        ] => [`${stem}.${part}`, raw(shape, values)]),
      ];
    }),
    ...Object.entries(more),
  ]);
  return { bytes, layers: found };
}

/** ΔW in PyTorch's layout, number by number. */
function expected({ rank, value }: Case, site: Site, parts: Parts) {
  const scale = rank === undefined ? 1 : ALPHA / rank;
  const result = new Float32Array(site.outputs * site.inputs * area(site));
  let n = 0;
  for (let o = 0; o < site.outputs; o++) {
    for (let i = 0; i < site.inputs; i++) {
      for (let place = 0; place < area(site); place++) {
        result[n++] = scale * value(parts, site, o, i, place);
      }
    }
  }
  return result;
}

for (const one of CASES) {
  forEachBackend(`${one.name}: read, merged, written`, async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const { bytes, layers } = fileOf(model, one);
      const file = await readLora(await openSafetensors(bytes), model);
      assertEquals(file.algorithms.map(({ algorithm }) => algorithm), [
        ...new Array(file.algorithms.length).fill(one.algorithm),
      ]);
      if (one.rank !== undefined) {
        assertEquals(file.algorithms, [
          { algorithm: one.algorithm, rank: one.rank, layers: 3 },
        ]);
      }
      const again = await readLora(
        await openSafetensors(
          await loraBytes({ adapter: file.adapter }, model, "peft"),
        ),
        model,
      );
      const merged = await merge(attach(model, file.adapter, { alpha: 0.5 }));
      for (const [site, parts] of layers) {
        const want = expected(one, site, parts);
        const size = Math.max(...want.map(Math.abs));
        for (const { adapter } of [file, again]) {
          const low = adapter.unet.get(site.path)!;
          const most = Math.min(site.outputs, site.inputs * area(site));
          assert(rankOf(low) <= most, site.path);
          const change = tf.tidy(() => delta(low));
          close(
            toDisk(
              site.kind,
              change.shape,
              await change.data() as Float32Array,
            ),
            want,
            2e-6 * size,
            site.path,
          );
          change.dispose();
        }
        const base = at(model.unet.params, site.path).weight as tf.Tensor;
        const sum = at(merged.unet.params, site.path).weight as tf.Tensor;
        const moved = tf.tidy(() => sum.sub(base));
        close(
          toDisk(site.kind, moved.shape, await moved.data() as Float32Array),
          want.map((v) => 0.5 * v),
          3e-6 * Math.max(size, 1),
          site.path,
        );
        moved.dispose();
      }
      disposeModel(merged, model);
      disposeLora(file);
      disposeLora(again);
      disposeModel(model);
    });
  }, ["wasm"]);
}

forEachBackend("LoHa and LoKr fuse as LoRAs do", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const concepts = [];
    const files: [Case, [Site, Parts][]][] = [];
    for (const [n, one] of [CASES[0], CASES[4]].entries()) {
      const { bytes, layers } = fileOf(model, one);
      files.push([one, layers]);
      const file = await readLora(await openSafetensors(bytes), model);
      concepts.push(
        loraConcept(file, { name: `c${n}`, trigger: ["cat", "dog"][n] }),
      );
    }
    const sum = weightFusion(model, concepts, { lambda: 1 });
    const path = LAYERS[0];
    const wanted = files.map(([one, layers]) => expected(one, ...layers[0]));
    const base = at(model.unet.params, path).weight as tf.Tensor;
    const change = async (fused: Model) => {
      const weight = at(fused.unet.params, path).weight as tf.Tensor;
      const moved = tf.tidy(() => weight.sub(base));
      const values = await moved.data() as Float32Array;
      const result = toDisk("linear", moved.shape, values);
      moved.dispose();
      return result;
    };
    close(
      await change(sum),
      wanted[0].map((v, i) => v + wanted[1][i]),
      1e-5,
      "weight fusion",
    );
    const gradient = await finish(
      fuse(model, concepts, { steps: 1, layers: "all", ridge: 0, key: key(3) }),
    );
    assert((await change(gradient)).some((v) => v !== 0), "gradient fusion");
    const ties = await mergeConcepts(model, concepts, { method: "ties" });
    assert((await change(ties)).some((v) => v !== 0), "ties");
    disposeModel(ties, model);
    disposeModel(sum, model);
    disposeModel(gradient, model);
    concepts.forEach(disposeConcept);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("parts that do not fit are named", async () => {
  const model = await tinySd();
  const number = (shape: number[]): RawTensor => ({
    dtype: "F32",
    shape,
    data: new Uint8Array(4 * shape.reduce((a, b) => a * b, 1)),
  });
  const stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1";
  const cases: [Record<string, RawTensor>, string][] = [
    [{ [`${stem}_to_q.hada_w1_a`]: number([64, 2]) }, "to_q.hada_w1_b"],
    [{ [`${stem}_to_q.lokr_w1`]: number([5, 5]) }, "to_q.lokr_w2_a"],
    [
      {
        [`${stem}_to_q.lokr_w1`]: number([5, 5]),
        [`${stem}_to_q.lokr_w2`]: number([1, 1]),
      },
      "to_q.lokr_w2 (expected [",
    ],
    [
      {
        [`${stem}_to_q.diff`]: number([64, 64]),
        [`${stem}_to_q.lora_up.weight`]: number([64, 2]),
      },
      "at once",
    ],
    [{ [`${stem}_to_q.diff_b`]: number([64]) }, "biases or norms"],
  ];
  for (const [more, message] of cases) {
    const { bytes } = fileOf(model, CASES[0], more);
    await assertRejects(
      async () => readLora(await openSafetensors(bytes), model),
      Error,
      message,
    );
  }
  disposeModel(model);
}, ["wasm"]);

for (const one of CASES.filter(({ algorithm }) => algorithm !== "full")) {
  forEachBackend(`${one.name} in a folder of PEFT's`, async () => {
    const folder = await Deno.makeTempDir();
    const model = await tinySd();
    try {
      const { layers } = fileOf(model, one);
      const raw = ({ shape, values }: Parts[string]): RawTensor => ({
        dtype: "F32",
        shape,
        data: encodeFloat(values, "F32"),
      });
      await writeSafetensors(
        `${folder}/adapter_model.safetensors`,
        layers.flatMap(([site, parts]) =>
          Object.entries(parts).map(([part, values]): [string, RawTensor] => [
            `base_model.model.${site.path}.${part}`,
            raw(values),
          ])
        ),
      );
      const config = async (fields: Record<string, unknown>) =>
        await Deno.writeTextFile(
          `${folder}/adapter_config.json`,
          JSON.stringify({
            peft_type: one.algorithm.toUpperCase(),
            r: 6,
            alpha: 9,
            rank_dropout: 0,
            module_dropout: 0,
            init_weights: true,
            rank_pattern: {},
            alpha_pattern: {},
            ...fields,
          }),
        );
      await config({ alpha_pattern: { [LAYERS[1]]: 3 } });
      const file = await loadLora(folder, model);
      assertEquals(file.scales, "adapter config");
      for (const [i, [site, parts]] of layers.entries()) {
        // PEFT divides α by the config's rank, where LyCORIS takes the factors'.
        const low = file.adapter.unet.get(site.path)!;
        const whole = expected({ ...one, rank: 1 }, site, parts);
        const scale = (i === 1 ? 3 : 9) / 6 / ALPHA;
        const change = tf.tidy(() => delta(low));
        const actual = toDisk(
          site.kind,
          change.shape,
          await change.data() as Float32Array,
        );
        change.dispose();
        const size = Math.max(...whole.map(Math.abs));
        close(
          actual,
          whole.map((value) => value * scale),
          4e-6 * size,
          site.path,
        );
      }
      disposeLora(file);
      await config({ peft_type: "BOFT" });
      await assertRejects(() => loadLora(folder, model), Error, "peft_type");
    } finally {
      disposeModel(model);
      await Deno.remove(folder, { recursive: true });
    }
  }, ["wasm"]);
}
