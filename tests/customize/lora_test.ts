import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key } from "../../src/core/random.ts";
import { at, leaves, parameterCount } from "../../src/core/tree.ts";
import {
  type Adapter,
  adapterTensors,
  assertFinite,
  attach,
  attachedAdapters,
  attentionSites,
  blockWeights,
  delta,
  detach,
  disposeAdapter,
  initLora,
  merge,
  rankOf,
  setWeights,
  sites,
  type TargetName,
  targets,
  withTensors,
} from "../../src/customize/lora.ts";
import { loadLora } from "../../src/formats/lora.ts";
import {
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { disposeModel, type Model, saveModel } from "../../src/models/model.ts";
import { textEncoder, textEncoderSpec } from "../../src/models/text_encoder.ts";
import { unet, unetSpec } from "../../src/models/unet.ts";
import { specLeaves } from "../../src/nn/spec.ts";
import type { LowRank } from "../../src/nn/linear.ts";
import {
  close,
  fixturePath,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";
import { golden, nchw, tinySd } from "./tiny_sd.ts";

// Ten times float32 against float64: UNet 1.1e-6, text 1.3e-6 (README of the
// fixtures); LoRA forward against merged weights 1.7e-6.
const UNET = 1.1e-5;
const TEXT = 1.3e-5;
const MERGED = 1.7e-5;

async function official(model: Model): Promise<Adapter> {
  const { adapter, embeddings } = await loadLora(
    fixturePath("lora/edlora_official.safetensors"),
    model,
  );
  for (const vectors of embeddings.values()) vectors.dispose();
  return adapter;
}

/** A UNet output of fixed input, and of the text encoder before it. */
function run(model: Model, g: Awaited<ReturnType<typeof golden>>) {
  return tf.tidy(() => {
    const text = textEncoder(
      model.textEncoder.params,
      model.textEncoder.config,
      g.rows("input_ids"),
    ).last;
    const out = unet(
      model.unet.params,
      model.unet.config,
      g.nhwc("sample"),
      g.rows("timesteps")[0],
      text,
    );
    return { text, out };
  });
}

forEachBackend("a LoRA acts as in the official code", async (backend) => {
  await noLeak(async () => {
    const model = await tinySd();
    const g = await golden("lora/expected.safetensors");
    const adapter = await official(model);
    for (const alpha of [0, 0.7, 1]) {
      const name = alpha === 0 ? "base" : `alpha${alpha.toFixed(1)}`;
      const adapted = attach(model, adapter, { alpha });
      const { text, out } = run(adapted, g);
      // The UNet's output depends on the text states, which are kept for one α.
      if (alpha === 0.7) {
        close(
          await text.data(),
          g.values(`${name}.text`),
          tolerance(backend, TEXT),
          `${name} text`,
        );
      }
      close(
        await nchw(out),
        g.values(`${name}.unet`),
        tolerance(backend, UNET),
        `${name} unet`,
      );
      tf.dispose([text, out]);
      if (alpha !== 0.7) continue;
      const unetOnly = attach(model, { ...adapter, textEncoder: new Map() }, {
        alpha,
      });
      const second = run(unetOnly, g);
      close(
        await nchw(second.out),
        g.values(`${name}.unet_only`),
        tolerance(backend, UNET),
        `${name} unet only`,
      );
      tf.dispose([second.text, second.out]);
    }
    g.dispose();
    disposeAdapter(adapter);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("merging gives the peers' weights", async (backend) => {
  await noLeak(async () => {
    const model = await tinySd();
    const g = await golden("lora/merged_alpha0.7.safetensors");
    const adapter = await official(model);
    const merged = await merge(attach(model, adapter, { alpha: 0.7 }));
    for (const name of g.names) {
      const [component, ...path] = name.split(".");
      const tree = component === "unet"
        ? merged.unet.params
        : merged.textEncoder.params;
      const weight = at(tree, path.join(".")) as tf.Tensor2D;
      const onDisk = tf.transpose(weight);
      // One addition and four products of numbers below 1.
      close(
        await onDisk.data(),
        g.values(name),
        tolerance(backend, 1e-6),
        name,
      );
      onDisk.dispose();
    }
    assertEquals(attachedAdapters(merged), []);
    // Adapted ≡ merged.
    const e = await golden("lora/expected.safetensors");
    const { text, out } = run(merged, e);
    close(
      await nchw(out),
      e.values("alpha0.7.unet"),
      tolerance(backend, MERGED),
    );
    tf.dispose([text, out]);
    g.dispose();
    e.dispose();
    disposeModel(merged, model);
    disposeAdapter(adapter);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("what is attached can be taken off again", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const before = new Map(leaves(model.unet.params));
    const a = initLora(model, { key: key(1), name: "a" });
    const b = initLora(model, {
      key: key(2),
      name: "b",
      rank: 2,
      targets: "cross-attention-kv",
    });
    const both = attach(attach(model, a), b);
    assertEquals(attachedAdapters(both), ["a", "b"]);
    const onlyB = detach(both, "a");
    assertEquals(attachedAdapters(onlyB), ["b"]);
    const none = detach(onlyB, "b");
    const after = leaves(none.unet.params);
    assertEquals(after.length, before.size);
    for (const [path, tensor] of after) assert(before.get(path) === tensor);
    assertEquals(
      leaves(detach(both).textEncoder.params).map(([p]) => p),
      leaves(model.textEncoder.params).map(([p]) => p),
    );
    assertThrows(
      () => detach(model, "a"),
      Error,
      'Cannot detach an adapter: expected an adapter, got "a"',
    );
    assertThrows(
      () => attach(both, a),
      Error,
      "expected a name not in use",
    );
    disposeAdapter(a);
    disposeAdapter(b);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("a fresh LoRA changes nothing, exactly", async () => {
  const model = await tinySd();
  const g = await golden("lora/expected.safetensors");
  for (const init of ["kaiming", "normal"] as const) {
    const adapter = initLora(model, { key: key(3), init, targets: "all" });
    const base = run(model, g);
    const fresh = run(attach(model, adapter), g);
    assertEquals(await fresh.out.data(), await base.out.data());
    assertEquals(await fresh.text.data(), await base.text.data());
    tf.dispose([base, fresh]);
    disposeAdapter(adapter);
  }
  g.dispose();
  disposeModel(model);
}, ["wasm"]);

forEachBackend("down starts with the spread it should have", async () => {
  const model = await tinySd();
  const spread = async (init: "kaiming" | "normal", rank: number) => {
    const adapter = initLora(model, { key: key(4), init, rank });
    const low = adapter.unet.get(
      "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    )!;
    const values = await low.down.data();
    disposeAdapter(adapter);
    return values;
  };
  const uniform = await spread("kaiming", 16);
  assert(uniform.every((v) => Math.abs(v) <= 1 / 8));
  const std = (v: ArrayLike<number>) =>
    Math.sqrt(Array.from(v).reduce((s, x) => s + x * x, 0) / v.length);
  // 1024 draws: the spread is known to about 2 %.
  close(std(uniform), 1 / 8 / Math.sqrt(3), 0.005);
  close(std(await spread("normal", 16)), 1 / 16, 0.005);
  assert(uniform.some((v, i) => v !== uniform[(i + 1) % uniform.length]));
  disposeModel(model);
}, ["wasm"]);

Deno.test("SD 1.5 has 48 + 128 attention layers", () => {
  // Shapes only: the specs stand in for the weights.
  const shapes = (spec: unknown) => {
    const tree: Record<string, unknown> = {};
    for (const [path, param] of specLeaves(spec)) {
      let node = tree;
      const keys = path.split(".");
      for (const k of keys.slice(0, -1)) {
        node = (node[k] ??= {}) as Record<string, unknown>;
      }
      node[keys.at(-1)!] = Object.setPrototypeOf(
        { shape: param.shape, rank: param.shape.length },
        tf.Tensor.prototype,
      );
    }
    return tree;
  };
  const text = shapes(textEncoderSpec(parseTextEncoderConfig({
    hidden_size: 768,
    num_hidden_layers: 12,
  })));
  const net = shapes(unetSpec(parseUNetConfig({ cross_attention_dim: 768 })));
  assertEquals(attentionSites(text).length, 48);
  assertEquals(attentionSites(net).length, 128);
  const linear = sites(text, ({ kind }) => kind === "linear");
  assertEquals(linear.length, 72);
  assert(linear.every(({ path }) => !path.includes("embedding")));
  assertEquals(
    sites(net, ({ kind, kernel }) => kind === "conv" && kernel[0] === 1).length,
    16 * 2 + 14,
  );
  const kv = targets("cross-attention-kv");
  assertEquals(sites(net, (s) => kv("unet", s)).length, 32);
  assertEquals(sites(text, (s) => kv("textEncoder", s)).length, 0);
  const counted = (name: TargetName) =>
    sites(net, (s) => targets(name)("unet", s)).length;
  assertEquals(counted("mid-block"), 8);
  assertEquals(counted("middle-layers"), 48);
  assertEquals(counted("high-resolution-decoder"), 48);
  const decoder = targets("high-resolution-decoder");
  const places = sites(net, (s) => decoder("unet", s)).map(({ path }) => path);
  assert(places.every((path) => /^up_blocks\.[23]\./.test(path)));
});

forEachBackend(
  "down may be the identity or a basis given by hand",
  async () => {
    const model = await tinySd();
    const identity = initLora(model, {
      key: key(1),
      init: "identity",
      targets: "cross-attention-kv",
    });
    const [low] = identity.unet.values();
    const up = tf.randomNormal([32, 32], 0, 1, "float32", 1) as tf.Tensor2D;
    // up is all of ΔW.
    const change = delta({ ...low, up });
    assertEquals(await change.data(), await up.data());
    assertEquals(rankOf(low), 32);
    const basis = initLora(model, {
      key: key(1),
      rank: 2,
      targets: "cross-attention-kv",
      init: (_, site, rank) => new Float32Array(site.inputs * rank).fill(3),
    });
    for (const { down } of basis.unet.values()) {
      assert((await down.data()).every((v) => v === 3));
    }
    assertThrows(
      () => initLora(model, { key: key(1), init: () => new Float32Array(1) }),
      Error,
      "expected 128 values of down",
    );
    tf.dispose([up, change]);
    [identity, basis].forEach(disposeAdapter);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("weights act per adapter and per block", async () => {
  const model = await tinySd();
  const a = initLora(model, { key: key(1), name: "a" });
  const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  const scale = (m: Model) =>
    (at(m.unet.params, path).low as LowRank[])[0].scale;
  assertEquals(scale(attach(model, a, { weights: { a: 0.5 } })), 0.5);
  const half = attach(model, a, {
    alpha: 0.5,
    weights: blockWeights({ mid: 0.5, textEncoder: 0 }),
  });
  assertEquals(scale(half), 0.25);
  // A diffusers folder could not hold them.
  await assertRejects(
    () => saveModel("never", half),
    Error,
    "no attached adapters (merge them first)",
  );
  assertEquals(
    half.textEncoder.params.text_model.encoder.layers[0].self_attn.q_proj
      .low![0]
      .scale,
    0,
  );
  assertThrows(
    () => attach(model, a, { weights: { b: 1 } }),
    Error,
    "Cannot attach adapters: expected weights of a, got b",
  );
  assertThrows(
    () => attach(model, a, { alpha: NaN }),
    Error,
    "a finite weight",
  );
  disposeAdapter(a);
  disposeModel(model);
}, ["wasm"]);

forEachBackend("weights change later, and no tensor does", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const g = await golden("lora/expected.safetensors");
    const a = await official(model);
    const b = {
      ...initLora(model, { key: key(2), name: "b" }),
      scaleRule: "alpha" as const,
    };
    const full = attach(model, { ...a, name: "a" }, { alpha: 1 });
    const both = attach(full, b, { weights: { b: 0.5 } });
    const changed = setWeights(both, { weights: { a: 0.7 } });
    // `up` of b is 0: what acts is a, as if it had been attached at 0.7.
    const { text, out } = run(changed, g);
    close(await text.data(), g.values("alpha0.7.text"), TEXT);
    close(await nchw(out), g.values("alpha0.7.unet"), UNET);
    tf.dispose([text, out]);
    const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    const scales = (m: Model, at_ = path) =>
      (at(m.unet.params, at_).low as LowRank[]).map(({ scale }) => scale);
    close(scales(changed), [0.7, 0.5], 0);
    // Counted from weight 1, so nothing is lost at 0.
    const off = setWeights(changed, { weights: { a: 0 } });
    close(scales(setWeights(off, { weights: { a: 0.9 } })), [0.9, 0.5], 0);
    const parts = setWeights(both, {
      alpha: 0.5,
      weights: {
        a: { mid: 0.5, textEncoder: 0, paths: { "mid_block.attentions": 3 } },
        b: {
          up: 4,
          paths: { "up_blocks.1": 0.25, "up_blocks.1.attentions.2": 2 },
        },
      },
    });
    const up = path.replace(
      "mid_block.attentions.0",
      "up_blocks.1.attentions.0",
    );
    close(scales(parts), [1.5, 0.5], 0);
    close(scales(parts, up), [0.5, 0.125], 0);
    close(scales(parts, up.replace("ns.0", "ns.2")), [0.5, 1], 0);
    close(scales(parts, up.replace("ks.1", "ks.2")), [0.5, 2], 0);
    const base = new Map(leaves(model.unet.params));
    const shared = leaves(detach(parts).unet.params);
    assertEquals(shared.length, base.size);
    for (const [name, tensor] of shared) assert(base.get(name) === tensor);
    assertThrows(
      () => setWeights(both, { weights: { c: 1 } }),
      Error,
      "Cannot set weights: expected weights of a, b, got c",
    );
    assertThrows(
      () => setWeights(model, { alpha: 1 }),
      Error,
      "a model with adapters",
    );
    assertThrows(
      () => setWeights(both, { weights: { a: { mid: Infinity } } }),
      Error,
      "a finite weight",
    );
    g.dispose();
    disposeAdapter(a);
    disposeAdapter(b);
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "three ways to weaken a DoRA: PEFT's, LyCORIS's, the whole change",
  async (backend) => {
    await noLeak(async () => {
      // W₀ = I, up·down = 0.5 everywhere, m = 3.
      const low: LowRank = {
        down: tf.fill([2, 1], 0.5),
        up: tf.fill([1, 2], 1),
        scale: 1,
        magnitude: tf.fill([2], 3) as tf.Tensor1D,
      };
      const weight = tf.eye(2) as tf.Tensor2D;
      const layer = { weight };
      const model = {
        textEncoder: { params: {}, config: {} },
        unet: { params: { layer }, config: {} },
      } as unknown as Model;
      const adapter: Adapter = {
        name: "d",
        scaleRule: "alpha",
        textEncoder: new Map(),
        unet: new Map([["layer", low]]),
      };
      const w = 0.6;
      const first = (d: number, s: number, share: number, strength: number) => {
        // A column of W₀ + s·BA is (1 + s/2, s/2).
        const [a, b] = [1 + s * d, s * d];
        const factor = 1 + share * (3 / Math.hypot(a, b) - 1);
        return [strength * (a * factor - 1), strength * b * factor];
      };
      for (
        const [dora, expected] of [
          ["peft", first(0.5, w, 1, 1)],
          ["lycoris", first(0.5, 1, w, 1)],
          ["change", first(0.5, 1, 1, w)],
        ] as const
      ) {
        // From another weight and way, to show that nothing is left of it.
        const before = attach(model, adapter, { alpha: 0.1, dora: "lycoris" });
        const adapted = setWeights(before, { alpha: w, dora });
        const [leaf] = at(adapted.unet.params, "layer").low as LowRank[];
        const change = delta(leaf, weight);
        close(
          await change.data(),
          [expected[0], expected[1], expected[1], expected[0]],
          tolerance(backend, 1e-6),
          dora,
        );
        change.dispose();
      }
      assertThrows(
        () => attach(model, adapter, { dora: "half" as "peft" }),
        Error,
        "expected dora peft, lycoris or change, got half",
      );
      disposeAdapter(adapter);
      weight.dispose();
    });
  },
);

forEachBackend("ΔW is up·down with rank at most r", async (backend) => {
  const down = tf.tensor2d([[1, 2], [3, 4], [5, 6]]);
  const up = tf.tensor2d([[1, 0, 2, 1], [0, 1, 1, 3]]);
  const low: LowRank = { down, up, scale: 0.5 };
  const d = delta(low);
  close(
    await d.data(),
    [0.5, 1, 2, 3.5, 1.5, 2, 5, 7.5, 2.5, 3, 8, 11.5],
    tolerance(backend, 1e-6),
  );
  // Every 3×3 minor of a rank-2 matrix is 0.
  const m = await d.array() as number[][];
  for (const columns of [[0, 1, 2], [0, 1, 3], [1, 2, 3]]) {
    const [[a, b, c], [e, f, g], [h, i, j]] = m.map((row) =>
      columns.map((k) => row[k])
    );
    close(
      a * (f * j - g * i) - b * (e * j - g * h) + c * (e * i - f * h),
      0,
      tolerance(backend, 1e-4),
    );
  }
  assertEquals(rankOf(low), 2);
  tf.dispose([d, down, up]);
});

forEachBackend(
  "DoRA: merged weights act as the attached ones",
  async (backend) => {
    const model = await tinySd();
    const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    const fresh = initLora(model, {
      key: key(5),
      targets: (_, site) => site.path === path,
    });
    const adapter: Adapter = {
      ...fresh,
      unet: new Map([...fresh.unet].map(([p, low]) => [p, {
        ...low,
        up: tf.fill(low.up.shape, 0.05),
        magnitude: tf.fill([64], 0.7) as tf.Tensor1D,
      }])),
    };
    const g = await golden("lora/expected.safetensors");
    const adapted = attach(model, adapter);
    const merged = await merge(adapted);
    const [x, y, base] = [adapted, merged, model].map((m) => run(m, g));
    close(await x.out.data(), await y.out.data(), tolerance(backend, MERGED));
    const weight = at(merged.unet.params, path).weight as tf.Tensor2D;
    const norms = tf.tidy(() => tf.sqrt(tf.sum(tf.square(weight), 0)));
    close(await norms.data(), new Float32Array(64).fill(0.7), 1e-5);
    const moved = tf.max(tf.abs(tf.sub(x.out, base.out)));
    assert((await moved.data())[0] > 1e-3);
    tf.dispose([x, y, base, norms, moved]);
    assertThrows(
      () => delta(adapter.unet.get(path)!),
      Error,
      "its base weight",
    );
    g.dispose();
    disposeModel(merged, model);
    disposeAdapter(fresh);
    disposeAdapter(adapter);
    disposeModel(model);
  },
  ["wasm"],
);

forEachBackend("NaN and misfits are errors that name the layers", async () => {
  const model = await tinySd();
  const adapter = initLora(model, {
    key: key(6),
    targets: "cross-attention-kv",
  });
  const [[name, down]] = adapterTensors(adapter);
  const broken = withTensors(
    adapter,
    new Map([[name, tf.fill(down.shape, NaN)]]),
  );
  await assertRejects(() => assertFinite(broken), Error, name);
  await assertRejects(
    () => merge(attach(model, broken)),
    Error,
    "Cannot merge adapters: expected finite weights",
  );
  const wrong: Adapter = {
    ...adapter,
    unet: new Map([
      ["no.such.layer", [...adapter.unet.values()][0]],
      ["conv_in", [...adapter.unet.values()][0]],
    ]),
  };
  assertThrows(
    () => attach(model, wrong),
    Error,
    "2 layers do not fit: unet no.such.layer: no such layer; unet conv_in: down",
  );
  assertThrows(
    () => initLora(model, { key: key(1), rank: 40 }),
    Error,
    "expected a rank ≤ 32",
  );
  assertThrows(
    () => initLora(model, { key: key(1), targets: () => false }),
    Error,
    "at least one layer",
  );
  assertThrows(
    () => targets("everything" as "all"),
    Error,
    "Cannot choose layers",
  );
  assert(parameterCount([...adapter.unet.values()].map((l) => l.down)) > 0);
  disposeAdapter(broken);
  disposeAdapter(adapter);
  disposeModel(model);
}, ["wasm"]);
