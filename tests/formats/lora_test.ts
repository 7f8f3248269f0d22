import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import {
  type Adapter,
  adapterTensors,
  delta,
  disposeAdapter,
  initLora,
} from "../../src/customize/lora.ts";
import {
  detectDialect,
  dialect,
  type DialectId,
  loadLora,
  type LoraFile,
} from "../../src/formats/lora.ts";
import {
  encodeLora,
  loraBytes,
  saveLora,
} from "../../src/formats/lora_write.ts";
import {
  encodeFloat,
  encodeSafetensors,
  openSafetensors,
  type RawTensor,
} from "../../src/io/safetensors.ts";
import { disposeModel } from "../../src/models/model.ts";
import { close, fixturePath, forEachBackend, noLeak } from "../helpers.ts";
import { tinySd } from "../customize/tiny_sd.ts";

/** One LoRA: all of it, and 20 of its layers in three other namings. */
const FILES: readonly (readonly [DialectId, string])[] = [
  ["official", "lora/edlora_official.safetensors"],
  ["kohya", "lora/kohya_part.safetensors"],
  ["diffusers", "lora/attn_procs_part.safetensors"],
  ["peft", "lora/peft_part.safetensors"],
];

function disposeFile(file: LoraFile): void {
  disposeAdapter(file.adapter);
  for (const vectors of file.embeddings.values()) vectors.dispose();
}

/** ΔW of every layer. */
async function deltas(adapter: Adapter): Promise<Map<string, Float32Array>> {
  const all = new Map<string, Float32Array>();
  for (const component of ["textEncoder", "unet"] as const) {
    for (const [path, low] of adapter[component]) {
      const d = delta(low);
      all.set(`${component} ${path}`, await d.data() as Float32Array);
      d.dispose();
    }
  }
  return all;
}

forEachBackend("four namings of one LoRA are one LoRA", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    let expected: Map<string, Float32Array> | undefined;
    for (const [id, path] of FILES) {
      const file = await loadLora(fixturePath(path), model);
      assertEquals(file.dialect, id);
      const { textEncoder, unet } = file.adapter;
      assertEquals(
        [textEncoder.size, unet.size],
        id === "official" ? [12, 88] : [4, 16],
      );
      if (id === "official") {
        assertEquals([...file.embeddings.keys()], ["<potter1>", "<potter2>"]);
        assertEquals(file.embeddings.get("<potter1>")!.shape, [16, 32]);
      }
      // Kohya's file has α/r = 1/2 and a doubled `up`: exact in float32.
      if (id === "kohya") {
        assert([...file.adapter.unet.values()].every((l) => l.scale === 0.5));
      }
      const actual = await deltas(file.adapter);
      expected ??= actual;
      for (const [layer, values] of actual) {
        close(values, expected.get(layer)!, 0, `${id} ${layer}`);
      }
      disposeFile(file);
    }
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("every dialect survives a round trip", async () => {
  const model = await tinySd();
  const folder = await Deno.makeTempDir();
  try {
    const source = await loadLora(fixturePath(FILES[0][1]), model);
    const expected = await deltas(source.adapter);
    for (const [id, path] of FILES) {
      const target = `${folder}/${id}.safetensors`;
      const embeddings = id === "official" ? source.embeddings : undefined;
      // The layers that the fixture has.
      const own = await loadLora(fixturePath(path), model);
      const only = (component: "textEncoder" | "unet") =>
        new Map(
          [...source.adapter[component]].filter(([layer]) =>
            own.adapter[component].has(layer)
          ),
        );
      const adapter = {
        ...source.adapter,
        textEncoder: only("textEncoder"),
        unet: only("unet"),
      };
      disposeFile(own);
      await saveLora(target, { adapter, embeddings }, model, id, {
        dtype: "F16",
      });
      // The names are the peer's own, key by key.
      const [ours, theirs] = await Promise.all([
        openSafetensors(target),
        openSafetensors(fixturePath(path)),
      ]);
      assertEquals(
        [...ours.entries.keys()].sort(),
        [...theirs.entries.keys()].sort(),
      );
      for (const [name, { shape }] of theirs.entries) {
        assertEquals(ours.entries.get(name)!.shape, shape, name);
      }
      ours.close();
      theirs.close();
      const again = await loadLora(target, model);
      assertEquals(again.dialect, id);
      // The fixture's values are halves, so F16 loses nothing.
      const actual = await deltas(again.adapter);
      assertEquals(actual.size, adapter.textEncoder.size + adapter.unet.size);
      for (const [layer, values] of actual) {
        close(values, expected.get(layer)!, 0, `${id} ${layer}`);
      }
      disposeFile(again);
    }
    disposeFile(source);
  } finally {
    await Deno.remove(folder, { recursive: true });
    disposeModel(model);
  }
}, ["wasm"]);

/** A LoRA of every layer, convolutions and DoRA included. */
async function widest(
  model: Awaited<ReturnType<typeof tinySd>>,
): Promise<Adapter> {
  const fresh = initLora(model, { key: key(7), rank: 2, targets: "all" });
  const unet = new Map([...fresh.unet].map(([path, low], i) => {
    const outputs = low.up.shape.at(-1)!;
    return [path, {
      ...low,
      scale: 0.75,
      ...(i % 3 === 0
        ? { magnitude: tf.fill([outputs], 2) as tf.Tensor1D }
        : {}),
    }];
  }));
  await Promise.resolve();
  return { ...fresh, unet };
}

forEachBackend("kohya holds LoCon and DoRA", async () => {
  const model = await tinySd();
  const adapter = await widest(model);
  const bytes = await loraBytes({ adapter }, model, "kohya");
  const again = await loadLora(bytes, model);
  const expected = new Map(adapterTensors(adapter));
  const actual = adapterTensors(again.adapter);
  assertEquals(actual.length, expected.size);
  for (const [name, tensor] of actual) {
    assertEquals(tensor.shape, expected.get(name)!.shape, name);
    close(await tensor.data(), await expected.get(name)!.data(), 0, name);
  }
  assertEquals(again.adapter.unet.get("conv_in")!.scale, 0.75);
  await assertRejects(
    () => encodeLora({ adapter }, model, "official"),
    Error,
    "Cannot write a LoRA as official: expected no DoRA, got a magnitude",
  );
  disposeFile(again);
  disposeAdapter(adapter);
  disposeModel(model);
}, ["wasm"]);

forEachBackend(
  "PEFT's patterns and rank stabilisation set scales",
  async () => {
    const model = await tinySd();
    const adapter = initLora(model, {
      key: key(8),
      rank: 4,
      targets: "unet-attention",
    });
    const bytes = await loraBytes({ adapter }, model, "peft");
    const scales = async (config: Record<string, unknown>) => {
      const file = await loadLora(bytes, model, { config });
      disposeFile(file);
      return file.adapter.unet;
    };
    const q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    const k = "mid_block.attentions.0.transformer_blocks.0.attn1.to_k";
    assertEquals((await scales({ lora_alpha: 8 })).get(q)!.scale, 2);
    assertEquals(
      (await scales({ lora_alpha: 8, use_rslora: true })).get(q)!.scale,
      4,
    );
    const patterned = await scales({
      lora_alpha: 8,
      // The first pattern in the file wins.
      alpha_pattern: { "attn1.to_q": 2, "to_q": 16 },
    });
    assertEquals([patterned.get(q)!.scale, patterned.get(k)!.scale], [0.5, 2]);
    disposeAdapter(adapter);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("a broken file is one error that lists every key", async () => {
  const model = await tinySd();
  const file = await openSafetensors(fixturePath(FILES[0][1]));
  const tensors = new Map<string, RawTensor>();
  for (const name of file.entries.keys()) {
    tensors.set(name, await file.read(name));
  }
  file.close();
  const stem = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  const read = (change: (t: Map<string, RawTensor>) => void) => {
    const copy = new Map(tensors);
    change(copy);
    return loadLora(encodeSafetensors(copy), model);
  };
  await assertRejects(
    () =>
      read((t) => {
        t.delete(`${stem}.lora_up.weight`);
        t.set("unet.extra.lora_up.weight", t.get(`${stem}.lora_down.weight`)!);
        t.set(`${stem.replace("to_q", "to_k")}.lora_up.weight`, {
          dtype: "F32",
          shape: [2, 2],
          data: new Uint8Array(16),
        });
      }),
    Error,
    `Cannot read a LoRA (official naming): 1 missing: ${stem}.lora_up.weight; ` +
      "1 unexpected: unet.extra.lora_up.weight; 1 misshapen: " +
      `${
        stem.replace("to_q", "to_k")
      }.lora_up.weight (expected [64,4], got [2,2])`,
  );
  // Half a LoRA does not pass for a whole one.
  await assertRejects(
    () =>
      read((t) => {
        for (const part of ["up", "down"]) {
          t.delete(`${stem}.lora_${part}.weight`);
        }
      }),
    Error,
    `2 missing: ${stem}.lora_down.weight, ${stem}.lora_up.weight`,
  );
  await assertRejects(
    () =>
      read((t) =>
        t.set(`${stem}.lora_up.weight`, {
          dtype: "F32",
          shape: [64, 4],
          data: encodeFloat(new Float32Array(256).fill(NaN), "F32"),
        })
      ),
    Error,
    `expected finite values, got NaN in ${stem}.lora_up.weight`,
  );
  await assertRejects(
    () =>
      loadLora(
        encodeSafetensors([["weight", {
          dtype: "F32",
          shape: [1],
          data: new Uint8Array(4),
        }]]),
        model,
      ),
    Error,
    "Cannot recognise a LoRA file: expected keys of kohya, official",
  );
  disposeModel(model);
}, ["wasm"]);

Deno.test("an unknown dialect is an error", () => {
  assertThrows(
    () => dialect("cohja"),
    Error,
    'Cannot choose a LoRA dialect: expected kohya, official, cloneofsimo, peft, diffusers, a1111, learned_embeds, got "cohja"',
  );
  assertThrows(() => detectDialect([]), Error, "got no tensors");
});
