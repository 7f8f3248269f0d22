/**
 * Every dialect against its peer's golden values and against every other one.
 *
 * tests/fixtures/lora/{dora,locon}_small.safetensors hold some layers of the
 * second batch's `dora_kohya`, `dora_peft`, `kohya_locon` and their merged
 * weights (LoCon: the first four outputs); `peft_scales.json` the config and
 * scales of `peft_patterns`, `cloneofsimo_order.json` the order of modules.
 */
import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import { convertLora, inspectLora } from "../../src/formats/convert.ts";
import {
  layersOf,
  type LoraBase,
  loraBase,
} from "../../src/formats/dialects/base.ts";
import {
  parsePeftConfig,
  type PeftConfig,
} from "../../src/formats/dialects/peft_config.ts";
import {
  type Adapter,
  attach,
  type Component,
  COMPONENTS,
  merge,
} from "../../src/customize/lora.ts";
import {
  detectDialect,
  dialect,
  type DialectId,
  DIALECTS,
  disposeLora,
  loadLora,
  type LoraFile,
  readLora,
} from "../../src/formats/lora.ts";
import {
  encodeLora,
  loraBytes,
  type LoraContent,
  saveLora,
  savePeftFolder,
} from "../../src/formats/lora_write.ts";
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
import { toDisk } from "../../src/models/checkpoint.ts";
import { disposeModel } from "../../src/models/model.ts";
import {
  close,
  fixture,
  fixtureJson,
  fixturePath,
  forEachBackend,
  noLeak,
} from "../helpers.ts";
import { randomAdapter } from "./random_adapter.ts";
import { tinySd } from "../customize/tiny_sd.ts";

const tiny: LoraBase = {
  textEncoder: {
    config: parseTextEncoderConfig(
      await fixtureJson("tiny-sd/text_encoder/config.json"),
    ),
  },
  unet: {
    config: parseUNetConfig(await fixtureJson("tiny-sd/unet/config.json")),
  },
};

/** The type of a tensor with these values. */
function raw(shape: number[], values?: Float32Array): RawTensor {
  const size = shape.reduce((a, b) => a * b, 1);
  const data = values ?? normal(key(size), size);
  return { dtype: "F32", shape, data: encodeFloat(data, "F32") };
}

const isAttention = (_: Component, path: string) =>
  /\.(self_attn|attn1|attn2)\./.test(path);

const disposeContent = (content: LoraContent) =>
  disposeLora({ embeddings: new Map(), ...content });

/**
 * Largest relative difference of any number: of `down`, and of scale · `up`.
 */
async function difference(a: Adapter, b: Adapter): Promise<number> {
  let worst = 0;
  const see = (x: number, y: number) => {
    if (x !== y) worst = Math.max(worst, Math.abs(x - y) / Math.abs(x));
  };
  for (const component of COMPONENTS) {
    assertEquals([...b[component].keys()], [...a[component].keys()]);
    for (const [path, x] of a[component]) {
      const y = b[component].get(path)!;
      for (const part of ["down", "up"] as const) {
        assertEquals(y[part].shape, x[part].shape, `${path} ${part}`);
        const [u, v] = [await x[part].data(), await y[part].data()];
        const [s, t] = part === "up" ? [x.scale, y.scale] : [1, 1];
        for (let i = 0; i < u.length; i++) see(s * u[i], t * v[i]);
      }
      assertEquals(y.dora?.of, x.dora?.of, path);
      if (!x.magnitude || !y.magnitude) {
        assertEquals(x.magnitude, y.magnitude);
        continue;
      }
      const [u, v] = [await x.magnitude.data(), await y.magnitude.data()];
      assertEquals(v.length, u.length);
      for (let i = 0; i < u.length; i++) see(u[i], v[i]);
    }
  }
  return worst;
}

const LAYERED: readonly DialectId[] = [
  "kohya",
  "official",
  "cloneofsimo",
  "peft",
  "diffusers",
];

Deno.test("cloneofsimo's numbers are those of the peer", async () => {
  const order = await fixtureJson<Record<string, string[]>>(
    "lora/cloneofsimo_order.json",
  );
  const names = dialect("cloneofsimo").names(layersOf(tiny), {
    entries: new Map(),
    metadata: {
      unet: '["GEGLU", "Attention", "CrossAttention"]',
      text_encoder: '["CLIPAttention"]',
    },
  });
  assertEquals(order.unet.length, 99);
  order.unet.forEach((path, i) =>
    assertEquals(names("unet", path), [`unet:${i}`], path)
  );
  order.text_encoder.forEach((path, i) =>
    assertEquals(names("textEncoder", path), [`text_encoder:${i}`], path)
  );
});

/**
 * A file with the keys and shapes of cloneofsimo's `lora_disney.safetensors`
 * (SD 1.5, rank 1, made with diffusers 0.9): written down from the file, not
 * from our specs.
 */
function disneyLike(): {
  tensors: [string, RawTensor][];
  metadata: Record<string, string>;
} {
  const widths = [320, 320, 640, 640, 1280, 1280] // down
    .concat(1280, 1280, 1280, 640, 640, 640, 320, 320, 320) // up
    .concat(1280); // mid
  const tensors: [string, RawTensor][] = [];
  const metadata: Record<string, string> = {
    "<s1>": "<embed>",
    "<s2>": "<embed>",
    text_encoder: '["CLIPAttention"]',
    unet: '["GEGLU", "CrossAttention", "Attention"]',
  };
  const layer = (name: string, inputs: number, outputs: number) => {
    const seed = key(tensors.length);
    tensors.push(
      [`${name}:down`, raw([1, inputs], normal(seed, inputs, 0.1))],
      [`${name}:up`, raw([outputs, 1], normal(seed, outputs, 0.1))],
    );
    metadata[`${name}:rank`] = "1";
  };
  tensors.push(["<s1>", raw([768])], ["<s2>", raw([768])]);
  for (let i = 0; i < 48; i++) layer(`text_encoder:${i}`, 768, 768);
  let index = 0;
  for (const c of widths) {
    // attn1, feed-forward, attn2: the order of that time.
    for (
      const [inputs, outputs] of [
        [c, c],
        [c, c],
        [c, c],
        [c, c],
        [c, 8 * c],
        [c, c],
        [768, c],
        [768, c],
        [c, c],
      ]
    ) layer(`unet:${index++}`, inputs, outputs);
  }
  return { tensors, metadata };
}

forEachBackend("an old file for SD 1.5 loads and goes round", async () => {
  await noLeak(async () => {
    const base = loraBase("sd15");
    const { tensors, metadata } = disneyLike();
    assertEquals(tensors.length, 386);
    const bytes = encodeSafetensors(tensors, metadata);
    const file = await loadLora(bytes, base);
    assertEquals(file.dialect, "cloneofsimo");
    assertEquals(
      [file.adapter.unet.size, file.adapter.textEncoder.size],
      [144, 48],
    );
    // 2 + 2 · (48 + 144): nothing is left over.
    assertEquals(
      file.embeddings.size + 2 * (144 + 48),
      tensors.length,
    );
    const named = new Map(tensors);
    const block = (path: string) => `${path}.transformer_blocks.0.`;
    for (
      const [index, path] of [
        [4, block("down_blocks.0.attentions.0") + "ff.net.0.proj"],
        [6, block("down_blocks.0.attentions.0") + "attn2.to_k"],
        [57, block("up_blocks.1.attentions.0") + "attn1.to_out.0"],
        [143, block("mid_block.attentions.0") + "attn2.to_out.0"],
      ] as const
    ) {
      close(
        await file.adapter.unet.get(path)!.up.data(),
        toFloat32(named.get(`unet:${index}:up`)!),
        0,
        path,
      );
    }
    for (const to of LAYERED) {
      const tokens = dialect(to).tokens !== undefined;
      const content = { ...file, ...(tokens ? {} : { embeddings: undefined }) };
      const again = await loadLora(
        await loraBytes(content as LoraContent, base, to),
        base,
      );
      assertEquals(again.dialect, to);
      assertEquals(await difference(file.adapter, again.adapter), 0, to);
      for (const [token, vectors] of tokens ? file.embeddings : []) {
        close(
          await again.embeddings.get(token)!.data(),
          await vectors.data(),
          0,
          `${to} ${token}`,
        );
      }
      disposeLora(again);
    }
    disposeLora(file);
  });
}, ["wasm"]);

forEachBackend("LoCon: merged weights are kohya's", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const source = await openSafetensors(
      await fixture("lora/locon_small.safetensors"),
    );
    const entries = new Map(
      [...source.entries].filter(([k]) => !k.startsWith("expected.")),
    );
    const file = await readLora({ ...source, entries }, model);
    assertEquals([file.dialect, file.scales], ["kohya", "alpha tensors"]);
    assertEquals(
      [file.adapter.textEncoder.size, file.adapter.unet.size],
      [1, 5],
    );
    // Rank 4 alpha 2, and rank 2 alpha 1 in 3×3 convolutions.
    assert(
      COMPONENTS.every((c) =>
        [...file.adapter[c].values()].every(({ scale }) => scale === 0.5)
      ),
    );
    const merged = await merge(attach(model, file.adapter, { alpha: 0.6 }));
    let count = 0;
    for (const name of source.entries.keys()) {
      const match = name.match(
        /^expected\.scale0\.6\.(text_encoder|unet)\.(.*)$/,
      );
      if (!match) continue;
      const tree = match[1] === "unet" ? merged.unet : merged.textEncoder;
      const weight = at(tree.params, match[2]) as tf.Tensor;
      const expected = toFloat32(await source.read(name));
      const values = toDisk(
        weight.rank === 4 ? "conv" : "linear",
        weight.shape,
        await weight.data() as Float32Array,
      ).slice(0, expected.length);
      // Ten roundings of a number below 1.
      close(values, expected, 6e-7, name);
      count++;
    }
    assertEquals(count, 6);
    disposeModel(merged, model);
    disposeLora(file);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "DoRA: one file in two namings, and LyCORIS's forms",
  async () => {
    await noLeak(async () => {
      const model = await tinySd();
      const source = await openSafetensors(
        await fixture("lora/dora_small.safetensors"),
      );
      const only = (start: string) => ({
        ...source,
        entries: new Map(
          [...source.entries].filter(([k]) => k.startsWith(start)),
        ),
      });
      const kohya = await readLora(only("lora_unet"), model);
      const config: PeftConfig = { r: 4, lora_alpha: 8, use_dora: true };
      const peft = await readLora(only("base_model"), model, { config });
      assertEquals(peft.scales, "adapter config");
      assertEquals(await difference(kohya.adapter, peft.adapter), 0);
      const read = async (name: string) =>
        toFloat32(await source.read(`expected.${name}`));
      const compare = async (
        group: string,
        adapter: Adapter,
        options: Parameters<typeof attach>[2],
      ) => {
        const merged = await merge(attach(model, adapter, options));
        for (const path of kohya.adapter.unet.keys()) {
          const weight = at(merged.unet.params, `${path}.weight`) as tf.Tensor;
          const values = toDisk(
            "linear",
            weight.shape,
            await weight.data() as Float32Array,
          );
          // The peers themselves differ by 1.2e-7 (README of the fixtures); norms
          // of 32 numbers are summed in another order.
          close(values, await read(`${group}.${path}.weight`), 1.2e-6, path);
        }
        disposeModel(merged, model);
      };
      await compare("merged", kohya.adapter, {});
      await compare("lycoris_multiplier0.6", kohya.adapter, {
        alpha: 0.6,
        dora: "lycoris",
      });
      // Magnitudes of inputs, as a file of old LyCORIS has them.
      const raws = new Map<string, RawTensor>();
      for (const [name] of only("lora_unet").entries) {
        raws.set(name, await source.read(name));
      }
      for (const path of kohya.adapter.unet.keys()) {
        const stem = `lora_unet_${path.replaceAll(".", "_")}`;
        raws.set(
          `${stem}.dora_scale`,
          raw([1, 32], await read(`lycoris_on_input.${path}.dora_scale`)),
        );
      }
      const input = await loadLora(encodeSafetensors(raws), model);
      assert(
        [...input.adapter.unet.values()].every(({ dora }) =>
          dora?.of === "input"
        ),
      );
      await compare("lycoris_on_input", input.adapter, {});
      await assertRejects(
        () => encodeLora(input, model, "peft"),
        Error,
        "expected magnitudes of outputs, got of inputs at",
      );
      for (const file of [kohya, peft, input]) disposeLora(file);
      disposeModel(model);
    });
  },
  ["wasm"],
);

forEachBackend("PEFT: patterns, rsLoRA and folders", async () => {
  await noLeak(async () => {
    const golden = await fixtureJson<{
      config: Record<string, unknown>;
      layers: Record<string, [number, number, number, number]>;
    }>("lora/peft_scales.json");
    const adapter = randomAdapter(
      tiny,
      (_, path) => golden.layers[path] !== undefined,
      { rank: (path) => golden.layers[path][0] },
    );
    assertEquals(adapter.unet.size, 88);
    const bytes = await loraBytes({ adapter }, tiny, "peft");
    for (const [column, use_rslora] of [[2, false], [3, true]] as const) {
      const config = { ...golden.config, use_rslora };
      const file = await loadLora(bytes, tiny, { config });
      for (const [path, row] of Object.entries(golden.layers)) {
        close(file.adapter.unet.get(path)!.scale, row[column], 1e-12, path);
      }
      assertEquals(
        file.adapter.scaleRule,
        use_rslora ? "alpha/sqrt(rank)" : "alpha/rank",
      );
      // A folder of PEFT's keeps all of it; a whole number of α in float64.
      const folder = await Deno.makeTempDir();
      try {
        await savePeftFolder(folder, file, tiny);
        const again = await loadLora(folder, tiny);
        assertEquals(again.scales, "adapter config");
        assertEquals(again.adapter.scaleRule, file.adapter.scaleRule);
        for (const [path, row] of Object.entries(golden.layers)) {
          close(again.adapter.unet.get(path)!.scale, row[column], 1e-12, path);
        }
        // Factors are bit for bit what they were.
        assert(await difference(file.adapter, again.adapter) < 1e-15);
        await Deno.remove(`${folder}/adapter_config.json`);
        await assertRejects(
          () => loadLora(`${folder}/adapter_model.safetensors`, tiny),
          Error,
          "expected the adapter_config.json that PEFT writes beside it, or an " +
            "alpha, got neither, so the scale is unknown",
        );
        const told = await loadLora(
          `${folder}/adapter_model.safetensors`,
          tiny,
          { alpha: 6 },
        );
        assertEquals(told.scales, "caller");
        const [path, [rank]] = Object.entries(golden.layers)[0];
        assertEquals(told.adapter.unet.get(path)!.scale, 6 / rank);
        disposeLora(told);
        disposeLora(again);
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
      disposeLora(file);
    }
    await assertRejects(
      () => loadLora(bytes, tiny, { config: { r: 4, lora_alpha: 4 } }),
      Error,
      "(rank 6, the adapter config says 4)",
    );
    await assertRejects(
      () =>
        loadLora(bytes, tiny, { config: { ...golden.config, use_dora: true } }),
      Error,
      "88 missing: unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1." +
        "to_q.lora_magnitude_vector",
    );
    disposeContent({ adapter });
  });
}, ["wasm"]);

Deno.test("PEFT configs that are not understood are refused", () => {
  const bad: [Record<string, unknown>, string][] = [
    [{ peft_type: "IA3" }, "peft_type"],
    // ABBA is a LoHa with other scales.
    [{ peft_type: "LOHA", init_weights: "abba" }, "init_weights"],
    [{ peft_type: "LOHA", use_khatri_rao: true }, "use_khatri_rao"],
    [{ bias: "all" }, "bias"],
    [{ fan_in_fan_out: true }, "fan_in_fan_out"],
    [{ lora_alpha: "8" }, "lora_alpha"],
    [{ r: 0 }, "r:"],
    [{ rank_pattern: { "(a+)+": 2 } }, "patterns of at most 4 repetitions"],
    [{ alpha_pattern: { "(": 2 } }, "regular expressions"],
    [{ alpha_pattern: { ".*.*.*.*.*x": 2 } }, "at most 4 repetitions"],
  ];
  for (const [config, said] of bad) {
    assertThrows(() => parsePeftConfig(config), Error, said);
  }
  assertEquals(parsePeftConfig({ r: 4, lora_alpha: 1, extra: "kept out" }), {
    r: 4,
    lora_alpha: 1,
    use_rslora: false,
    use_dora: false,
    rank_pattern: {},
    alpha_pattern: {},
  });
});

forEachBackend("all pairs of dialects, there and back", async () => {
  await noLeak(async () => {
    const rules: [name: string, (path: string) => number, number][] = [
      // Powers of two are exact; others are rounded once where they are folded
      // into `up`, and once more in a float32 α.
      ["exact", (path) => path.includes("attn2") ? 0.25 : 2, 0],
      ["rounded", () => 0.7, 2 ** -23],
    ];
    for (const [name, scale, tolerance] of rules) {
      const adapter = randomAdapter(tiny, isAttention, { scale });
      for (const a of LAYERED) {
        const first = await loadLora(
          await loraBytes({ adapter }, tiny, a),
          tiny,
        );
        assert(await difference(adapter, first.adapter) <= tolerance, a);
        for (const b of LAYERED) {
          const second = await loadLora(
            await loraBytes(first, tiny, b),
            tiny,
          );
          assertEquals(second.dialect, b);
          const there = await difference(first.adapter, second.adapter);
          assert(there <= tolerance, `${name}: ${a} to ${b}: ${there}`);
          const third = await loadLora(await loraBytes(second, tiny, a), tiny);
          const back = await difference(first.adapter, third.adapter);
          assert(back <= 2 * tolerance, `${name}: ${a}, ${b}, ${a}: ${back}`);
          disposeLora(second);
          disposeLora(third);
        }
        disposeLora(first);
      }
      disposeContent({ adapter });
    }
    // In F16 every number of a folded `up` is rounded once more.
    const adapter = randomAdapter(tiny, isAttention, { scale: () => 0.7 });
    const half = await loadLora(
      await loraBytes({ adapter }, tiny, "kohya", { dtype: "F16" }),
      tiny,
    );
    for (const to of LAYERED) {
      const again = await loadLora(
        await loraBytes(half, tiny, to, { dtype: "F16" }),
        tiny,
      );
      // Numbers below 2^-14 have fewer bits: compare to the usual size, 0.1.
      for (const [path, x] of half.adapter.unet) {
        const y = again.adapter.unet.get(path)!;
        const [u, v] = [await x.up.data(), await y.up.data()];
        for (let i = 0; i < u.length; i++) {
          const [p, q] = [x.scale * u[i], y.scale * v[i]];
          assert(Math.abs(p - q) <= Math.abs(p) * 2 ** -11 + 2 ** -25, path);
        }
      }
      disposeLora(again);
    }
    disposeLora(half);
    disposeContent({ adapter });
  });
}, ["wasm"]);

forEachBackend("every layer and DoRA, where they can be held", async () => {
  await noLeak(async () => {
    const all = randomAdapter(tiny, () => true, { scale: () => 0.5 });
    for (const to of ["kohya", "official", "peft", "diffusers"] as const) {
      const again = await loadLora(
        await loraBytes({ adapter: all }, tiny, to),
        tiny,
      );
      assertEquals(await difference(all, again.adapter), 0, to);
      disposeLora(again);
    }
    const doras = [
      [randomAdapter(tiny, () => true, { magnitudes: "output" }), [
        "kohya",
        "peft",
      ]],
      [randomAdapter(tiny, () => true, { magnitudes: "input" }), ["kohya"]],
    ] as const;
    for (const [adapter, can] of doras) {
      for (const to of can) {
        const again = await loadLora(
          await loraBytes({ adapter }, tiny, to),
          tiny,
        );
        assertEquals(await difference(adapter, again.adapter), 0, to);
        disposeLora(again);
      }
      await assertRejects(
        () => loraBytes({ adapter }, tiny, "official"),
        Error,
        "expected no DoRA, got a magnitude at",
      );
      disposeContent({ adapter });
    }
    // Classes of modules are whole in cloneofsimo's files, resnets too.
    const wide = randomAdapter(
      tiny,
      (component, path) =>
        component === "unet" &&
        /\.(attentions\..*\.(attn[12]|ff)|resnets)\./.test(path),
    );
    const again = await loadLora(
      await loraBytes({ adapter: wide }, tiny, "cloneofsimo"),
      tiny,
    );
    assertEquals(await difference(wide, again.adapter), 0);
    assertEquals(
      JSON.parse(again.metadata.unet),
      ["CrossAttention", "Attention", "FeedForward", "ResnetBlock2D"],
    );
    const part = { ...wide, unet: new Map([...wide.unet].slice(1)) };
    await assertRejects(
      () => loraBytes({ adapter: part }, tiny, "cloneofsimo"),
      Error,
      "expected all layers of a class of modules or none of them, got only some",
    );
    disposeLora(again);
    disposeContent({ adapter: wide });
    disposeContent({ adapter: all });
  });
}, ["wasm"]);

Deno.test("no two layers of SD 1.5 or 2.1 share a name", () => {
  for (const base of [tiny, loraBase("sd15"), loraBase("sd21")]) {
    const layers = layersOf(base);
    for (const d of DIALECTS) {
      const names = d.names(layers, {
        entries: new Map(),
        metadata: {
          unet: '["Attention", "FeedForward", "ResnetBlock2D"]',
          text_encoder: '["CLIPAttention", "CLIPMLP"]',
        },
      });
      const owner = new Map<string, string>();
      for (const component of COMPONENTS) {
        for (const path of layers.sites[component].keys()) {
          for (const name of new Set(names(component, path))) {
            assertEquals(owner.get(name), undefined, `${d.id} ${name}`);
            owner.set(name, path);
          }
        }
      }
    }
  }
});

Deno.test("kohya's names, old and new, as other tools write them", () => {
  const names = dialect("kohya").names(layersOf(loraBase("sd15")), {
    entries: new Map(),
  });
  const block = "_transformer_blocks_0_";
  for (
    const [path, expected] of [
      ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", [
        `lora_unet_down_blocks_0_attentions_0${block}attn1_to_q`,
        `lora_unet_input_blocks_1_1${block}attn1_to_q`,
      ]],
      ["mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0", [
        `lora_unet_mid_block_attentions_0${block}attn2_to_out_0`,
        `lora_unet_mid_block_attentions_0${block}attn2_to_out`,
        `lora_unet_middle_block_1${block}attn2_to_out_0`,
        `lora_unet_middle_block_1${block}attn2_to_out`,
      ]],
      ["up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2", [
        `lora_unet_up_blocks_1_attentions_0${block}ff_net_2`,
        `lora_unet_output_blocks_3_1${block}ff_net_2`,
      ]],
      ["down_blocks.0.downsamplers.0.conv", [
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_unet_input_blocks_3_0_op",
      ]],
      ["up_blocks.2.resnets.1.conv_shortcut", [
        "lora_unet_up_blocks_2_resnets_1_conv_shortcut",
        "lora_unet_output_blocks_7_0_skip_connection",
      ]],
      ["time_embedding.linear_1", [
        "lora_unet_time_embedding_linear_1",
        "lora_unet_time_embed_0",
      ]],
    ] as const
  ) assertEquals(names("unet", path), [...expected]);
  assertEquals(
    names("textEncoder", "text_model.encoder.layers.3.mlp.fc1"),
    [
      "lora_te_text_model_encoder_layers_3_mlp_fc1",
      "lora_te1_text_model_encoder_layers_3_mlp_fc1",
    ],
  );
});

forEachBackend("a layer under any of its names is the same layer", async () => {
  await noLeak(async () => {
    const adapter = randomAdapter(tiny, isAttention);
    const layers = layersOf(tiny);
    for (const id of ["kohya", "peft", "diffusers"] as const) {
      const d = dialect(id);
      const { tensors, metadata } = await encodeLora({ adapter }, tiny, id);
      const names = d.names(layers, { entries: new Map() });
      const most = Math.max(
        ...COMPONENTS.flatMap((c) =>
          [...adapter[c].keys()].map((path) => names(c, path).length)
        ),
      );
      assert(most > 1, id);
      for (let k = 1; k < most; k++) {
        const renamed = new Map<string, string>();
        for (const component of COMPONENTS) {
          for (const path of adapter[component].keys()) {
            const all = names(component, path);
            renamed.set(all[0], all[Math.min(k, all.length - 1)]);
          }
        }
        const changed = tensors.map(([name, tensor]): [string, RawTensor] => {
          const stem = [...renamed.keys()].filter((s) => name.startsWith(s))
            .reduce((a, b) => (b.length > a.length ? b : a));
          return [renamed.get(stem)! + name.slice(stem.length), tensor];
        });
        const again = await loadLora(
          encodeSafetensors(changed, metadata),
          tiny,
          { alpha: 2 },
        );
        assertEquals(await difference(adapter, again.adapter), 0, `${id} ${k}`);
        // A layer under two names at once is an error.
        const [[stem, other]] = [...renamed].filter(([a, b]) => a !== b);
        const twice = [
          ...tensors,
          ...changed.filter(([name]) => name.startsWith(other)),
        ].filter(([name], i, list) =>
          list.findIndex(([n]) => n === name) === i
        );
        await assertRejects(
          () => loadLora(encodeSafetensors(twice), tiny, { alpha: 2 }),
          Error,
          `(beside ${stem}`,
        );
        disposeLora(again);
      }
    }
    disposeContent({ adapter });
  });
}, ["wasm"]);

forEachBackend("learned tokens of one or many vectors", async () => {
  await noLeak(async () => {
    const empty = randomAdapter(tiny, () => false);
    const vector = (seed: number, rows = 1) =>
      tf.tensor2d(normal(key(seed), 32 * rows), [rows, 32]);
    const values = async (
      file: LoraFile,
      token: string,
    ) => [...await file.embeddings.get(token)!.data()];
    // diffusers: one vector, 1-D or 2-D, or several.
    for (const shape of [[32], [1, 32]]) {
      const file = await loadLora(
        encodeSafetensors([["<cat>", raw(shape)]]),
        tiny,
      );
      assertEquals(file.dialect, "learned_embeds");
      assertEquals([...file.embeddings.keys()], ["<cat>"]);
      disposeLora(file);
    }
    const several = await loadLora(
      encodeSafetensors([["<cat>", raw([3, 32])]]),
      tiny,
    );
    assertEquals([...several.embeddings.keys()], [
      "<cat>",
      "<cat>_1",
      "<cat>_2",
    ]);
    const rows = normal(key(96), 96);
    close(await values(several, "<cat>_2"), rows.slice(64), 0);
    // A1111: named by its file, or by us.
    const folder = await Deno.makeTempDir();
    try {
      await saveLora(`${folder}/fluffy.safetensors`, several, tiny, "a1111");
      const a1111 = await loadLora(`${folder}/fluffy.safetensors`, tiny);
      assertEquals(a1111.dialect, "a1111");
      assertEquals([...a1111.embeddings.keys()], [
        ...several.embeddings.keys(),
      ]);
      close(await values(a1111, "<cat>_2"), rows.slice(64), 0);
      const plain = encodeSafetensors([["emb_params", raw([2, 32])]]);
      await Deno.writeFile(`${folder}/easy.safetensors`, plain);
      const easy = await loadLora(`${folder}/easy.safetensors`, tiny);
      assertEquals([...easy.embeddings.keys()], ["easy", "easy_1"]);
      disposeLora(easy);
      disposeLora(a1111);
    } finally {
      await Deno.remove(folder, { recursive: true });
    }
    // kohya: bundled with the layers.
    const adapter = randomAdapter(tiny, isAttention);
    const bundled = await encodeLora(
      { adapter, embeddings: several.embeddings },
      tiny,
      "kohya",
    );
    const bundle = bundled.tensors.find(([name]) => name.startsWith("bundle"))!;
    assertEquals(bundle[0], "bundle_emb.<cat>.string_to_param.*");
    assertEquals(bundle[1].shape, [3, 32]);
    const again = await loadLora(
      encodeSafetensors(bundled.tensors, bundled.metadata),
      tiny,
    );
    close(await values(again, "<cat>_1"), rows.slice(32, 64), 0);
    // One vector per layer is another thing than several vectors.
    const layerwise = new Map([["<dog>", vector(1, 11)]]);
    await assertRejects(
      () =>
        encodeLora({ adapter: empty, embeddings: layerwise }, tiny, "kohya"),
      Error,
      "expected one vector per token, got 11 different ones, one per layer, of <dog>",
    );
    const one = vector(2);
    const equal = new Map([["<dog>", tf.tile(one, [11, 1]) as tf.Tensor2D]]);
    const collapsed = await encodeLora(
      { adapter: empty, embeddings: equal },
      tiny,
      "learned_embeds",
    );
    assertEquals(collapsed.tensors.map(([, t]) => t.shape), [[32]]);
    await assertRejects(
      () =>
        encodeLora(
          { adapter: empty, embeddings: new Map([["<a>", one], ["<b>", one]]) },
          tiny,
          "a1111",
        ),
      Error,
      "expected one token per file, got <a>, <b>",
    );
    await assertRejects(
      () => encodeLora({ adapter: empty, embeddings: equal }, tiny, "peft"),
      Error,
      "expected no learned tokens, got <dog>",
    );
    await assertRejects(
      () => loadLora(encodeSafetensors([["<cat>", raw([32, 1])]]), tiny),
      Error,
      "Cannot recognise a LoRA file",
    );
    await assertRejects(
      () =>
        loadLora(
          encodeSafetensors([["new_concept_embedding.<cat>", raw([3, 32])]]),
          tiny,
        ),
      Error,
      "(expected [1 or 11, 32], got [3,32])",
    );
    tf.dispose([one, ...layerwise.values(), ...equal.values()]);
    disposeLora(again);
    disposeLora(several);
    disposeContent({ adapter });
  });
}, ["wasm"]);

forEachBackend("in every dialect one error lists every fault", async () => {
  const before = tf.memory().numTensors;
  const adapter = randomAdapter(tiny, isAttention);
  for (const id of LAYERED) {
    const d = dialect(id);
    const { tensors, metadata } = await encodeLora({ adapter }, tiny, id);
    const [down] = d.parts.down!;
    const [up] = d.parts.up!;
    const stems = tensors.map(([name]) => name).filter((name) =>
      name.endsWith(down)
    ).map((name) => name.slice(0, -down.length));
    const [missing, misshapen, mistyped] = [stems[3], stems[20], stems[40]];
    const changed = new Map(tensors);
    changed.delete(missing + up);
    changed.set(misshapen + up, raw([5, 7]));
    const ints = changed.get(mistyped + down)!;
    changed.set(mistyped + down, { ...ints, dtype: "I32" });
    changed.set(`${stems[0]}x${down}`, raw([2, 2]));
    const error = await assertRejects(
      () => loadLora(encodeSafetensors(changed, metadata), tiny),
      Error,
      `(${id} naming)`,
    );
    for (
      const said of [
        `1 missing: ${missing}${up}`,
        `1 unexpected: ${stems[0]}x${down}`,
        `1 misshapen: ${misshapen}${up} (expected [`,
        `1 mistyped: ${mistyped}${down} (expected floats, got I32)`,
      ]
    ) assert(error.message.includes(said), `${said} in ${error.message}`);
  }
  // What the metadata says counts, too.
  const { tensors, metadata } = await encodeLora(
    { adapter },
    tiny,
    "cloneofsimo",
  );
  const meta = (change: Record<string, string>) =>
    loadLora(encodeSafetensors(tensors, { ...metadata, ...change }), tiny);
  await assertRejects(
    () => meta({ "unet:3:rank": "8", "<lost>": "<embed>" }),
    Error,
    "1 missing: <lost>; 1 misshapen: unet:3:down (rank 2, metadata says 8)",
  );
  await assertRejects(
    () => meta({ unet: "Attention" }),
    Error,
    "a list of classes",
  );
  await assertRejects(
    () => meta({ unet: '["Attention", "Mamba"]' }),
    Error,
    "target classes among CrossAttention, Attention, FeedForward",
  );
  await assertRejects(
    () => loadLora(encodeSafetensors(tensors), tiny),
    Error,
    'expected metadata "textEncoder"'.replace("textEncoder", "text_encoder"),
  );
  const kohya = await encodeLora({ adapter }, tiny, "kohya");
  await assertRejects(
    () =>
      loadLora(
        encodeSafetensors(kohya.tensors, {
          "mix_of_show.scale_rule": "alpha",
        }),
        tiny,
      ),
    Error,
    "expected mix_of_show.scale_rule alpha/rank, as kohya files have it",
  );
  const large = {
    ...adapter,
    textEncoder: new Map(),
    unet: new Map([[
      "conv_in",
      {
        down: tf.fill([3, 3, 4, 1], 7e4),
        up: tf.fill([1, 1, 1, 32], 1),
        scale: 1,
      },
    ]]),
  };
  await assertRejects(
    () => loraBytes({ adapter: large }, tiny, "kohya", { dtype: "F16" }),
    Error,
    "expected finite values below 65520 (F16), got others in " +
      "lora_unet_conv_in.lora_down.weight",
  );
  disposeContent({ adapter: large });
  disposeContent({ adapter });
  assertEquals(tf.memory().numTensors, before);
}, ["wasm"]);

forEachBackend(
  "files are converted and described without a model",
  async () => {
    await noLeak(async () => {
      const folder = await Deno.makeTempDir();
      try {
        const { tensors, metadata } = disneyLike();
        const input = `${folder}/disney.safetensors`;
        await Deno.writeFile(input, encodeSafetensors(tensors, metadata));
        const summary = await inspectLora(input);
        assertEquals(summary.dialect, "cloneofsimo");
        assertEquals(summary.base, "sd15");
        assertEquals(summary.layers, { textEncoder: 48, unet: 144 });
        assertEquals(summary.ranks, [[1, 192]]);
        assertEquals(summary.factors, [[1, 192]]);
        assertEquals(summary.tokens, [["<s1>", 1], ["<s2>", 1]]);
        // Through the official dialect, which has a vector per layer, and back.
        const official = `${folder}/official.safetensors`;
        const back = `${folder}/back.safetensors`;
        const done = await convertLora(input, official, { to: "official" });
        assertEquals([done.dtype, done.to], ["F32", "official"]);
        const tiled = await openSafetensors(official);
        assertEquals(
          tiled.entries.get("new_concept_embedding.<s1>")!.shape,
          [16, 768],
        );
        tiled.close();
        await convertLora(official, back, { to: "cloneofsimo" });
        const again = await openSafetensors(back);
        assertEquals(again.entries.size, 386);
        close(
          toFloat32(await again.read("<s2>")),
          toFloat32(new Map(tensors).get("<s2>")!),
          0,
        );
        again.close();
        // Tokens apart, in F16, as folders of PEFT's.
        await assertRejects(
          () => convertLora(input, `${folder}/peft`, { to: "peft" }),
          Error,
          "expected no learned tokens, got <s1>, <s2>",
        );
        const apart = await convertLora(input, `${folder}/peft`, {
          to: "peft",
          dtype: "F16",
          tokens: `${folder}/tokens.safetensors`,
        });
        assertEquals(apart.written.length, 2);
        const peft = await inspectLora(`${folder}/peft`);
        assertEquals(peft.layers, { textEncoder: 48, unet: 144 });
        assertEquals(
          (await inspectLora(`${folder}/tokens.safetensors`)).tokens,
          [["<s1>", 1], ["<s2>", 1]],
        );
        const kohya = await convertLora(
          `${folder}/peft`,
          `${folder}/kohya.safetensors`,
          { to: "kohya" },
        );
        assertEquals([kohya.dtype, kohya.scales], ["F16", "adapter config"]);
        // An official .pth (the fixture has some of its layers only).
        const pth = fixturePath("pickle/edlora_official.pth");
        const part = await loadLora(pth, tiny, { complete: false });
        assertEquals(part.dialect, "official");
        assertEquals(
          [...part.embeddings].map(([token, { shape }]) => [token, shape]),
          [["<potter1>", [16, 32]], ["<potter2>", [16, 32]]],
        );
        const bytes = await loraBytes(part, tiny, "official");
        const same = await loadLora(bytes, tiny, { complete: false });
        assertEquals(await difference(part.adapter, same.adapter), 0);
        disposeLora(part);
        disposeLora(same);
        // A vector per layer: kohya's files have no place for that.
        const whole = fixturePath("lora/edlora_official.safetensors");
        const out = `${folder}/whole.safetensors`;
        await assertRejects(
          () => convertLora(whole, out, { to: "kohya", base: tiny }),
          Error,
          "one vector per token, got 16 different ones, one per layer, of <potter1>",
        );
        const split = await convertLora(whole, out, {
          to: "kohya",
          base: tiny,
          tokens: `${folder}/layerwise.safetensors`,
        });
        assertEquals([split.dtype, split.written.length], ["F16", 2]);
        const halves = [
          await inspectLora(out, { base: tiny }),
          await inspectLora(`${folder}/layerwise.safetensors`, { base: tiny }),
        ];
        assertEquals(
          halves.map(({ dialect, layers, tokens }) => [
            dialect,
            layers.unet,
            tokens.length,
          ]),
          [["kohya", 88, 0], ["official", 0, 2]],
        );
        await assertRejects(
          () =>
            convertLora(pth, `${folder}/never`, { to: "kohya", base: tiny }),
          Error,
          "edlora_official.pth (official naming): ",
        );
        await assertRejects(() => inspectLora(pth), Error, "misshapen");
      } finally {
        await Deno.remove(folder, { recursive: true });
      }
    });
  },
  ["wasm"],
);

Deno.test("the dialect of names alone", () => {
  for (
    const [name, id] of [
      ["lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha", "kohya"],
      ["unet:0:up", "cloneofsimo"],
      ["unet.conv_in.lora_down.weight", "official"],
      ["base_model.model.conv_in.lora_A.weight", "peft"],
      ["down_blocks.0.attn1.processor.to_q_lora.up.weight", "diffusers"],
      ["emb_params", "a1111"],
    ]
  ) assertEquals(detectDialect([name]).id, id);
  assertEquals(
    detectDialect({ entries: new Map([["<x>", { shape: [768] }]]) }).id,
    "learned_embeds",
  );
});

forEachBackend(
  "LyCORIS's filter between two 1×1 convolutions is joined",
  async () => {
    await noLeak(async () => {
      const stem = "lora_unet_down_blocks_0_resnets_0_conv1";
      const path = "down_blocks.0.resnets.0.conv1";
      const site = layersOf(tiny).sites.unet.get(path)!;
      const [rank, alpha] = [3, 1.5];
      const parts = {
        down: normal(key(1), rank * site.inputs),
        mid: normal(key(2), rank * rank * 9),
        up: normal(key(3), site.outputs * rank),
      };
      const file = (mid: number[]) =>
        encodeSafetensors([
          [
            `${stem}.lora_down.weight`,
            raw([rank, site.inputs, 1, 1], parts.down),
          ],
          [`${stem}.lora_mid.weight`, raw(mid)],
          [`${stem}.lora_up.weight`, raw([site.outputs, rank, 1, 1], parts.up)],
          [`${stem}.alpha`, raw([], Float32Array.of(alpha))],
        ].map(([name, tensor]) =>
          (name as string).includes("mid") &&
            mid.join() === `${rank},${rank},3,3`
            ? [name, raw(mid, parts.mid)]
            : [name, tensor]
        ) as [string, RawTensor][]);
      const read = await loadLora(file([rank, rank, 3, 3]), tiny);
      const low = read.adapter.unet.get(path)!;
      assertEquals(low.scale, alpha / rank);
      // The three convolutions one after the other, as LyCORIS runs them.
      const filter = (values: Float32Array, out: number, size: number) =>
        tf.transpose(
          tf.tensor4d(values, [
            out,
            values.length / out / size ** 2,
            size,
            size,
          ]),
          [2, 3, 1, 0],
        );
      const [joined, chain] = tf.tidy(() => {
        const x = tf.tensor4d(
          normal(key(4), 5 * 6 * site.inputs),
          [1, 5, 6, site.inputs],
        );
        const one = tf.conv2d(x, filter(parts.down, rank, 1), 1, "valid");
        const two = tf.conv2d(one, filter(parts.mid, rank, 3), 1, "same");
        return [
          tf.conv2d(
            tf.conv2d(x, low.down as tf.Tensor4D, 1, "same"),
            low.up as tf.Tensor4D,
            1,
            "valid",
          ),
          tf.conv2d(two, filter(parts.up, site.outputs, 1), 1, "valid"),
        ];
      });
      close(await joined.data(), await chain.data(), 2e-3);
      tf.dispose([joined, chain]);
      disposeLora(read);
      await assertRejects(
        () => loadLora(file([rank, 1, 3, 3]), tiny),
        Error,
        `1 misshapen: ${stem}.lora_mid.weight (expected [3,3,3,3], got [3,1,3,3])`,
      );
    });
  },
);
