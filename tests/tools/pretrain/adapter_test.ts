import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals } from "@std/assert";
import { fold, key, normal } from "../../../src/core/random.ts";
import { disposeTree, mapTree } from "../../../src/core/tree.ts";
import { loadArt } from "../../../src/micro/art.ts";
import { loadConceptArt } from "../../../src/micro/concepts.ts";
import { renderMask, trainScene } from "../../../src/micro/scenes.ts";
import { outlineOf } from "../../../src/micro/sketch.ts";
import { WORLD } from "../../../src/micro/world.ts";
import type { T2IAdapter } from "../../../src/models/t2i_adapter.ts";
import {
  type TextEncoder,
  textEncoderSpec,
} from "../../../src/models/text_encoder.ts";
import { type UNet, unetSpec } from "../../../src/models/unet.ts";
import { initialise } from "../../../src/nn/spec.ts";
import { ADAPTER_CONFIG, UNET_CONFIG } from "./recipe.ts";
import {
  adapterShard,
  CLIP_CONFIG,
  type Materials,
  networkLayout,
  networkSpec,
  sketchOf,
} from "./tasks.ts";
import { forEachBackend, noLeak } from "../../helpers.ts";

Deno.test("a sketch is the outline of the scene's objects", async () => {
  const art = await loadArt();
  let pairs = 0;
  for (let n = 0; n < 20; n++) {
    const scene = trainScene(n, WORLD, {}, art);
    const sketch = sketchOf(scene, art);
    assertEquals([sketch.width, sketch.height], [64, 64]);
    const masks = scene.objects.map((_, i) => renderMask(scene, art, i));
    if (masks.length > 1) pairs++;
    let lines = 0;
    sketch.values.forEach((v, i) => {
      assert(v === 0 || v === 1);
      lines += v;
      // A line has an object's edge beside it: more and less of it in reach.
      if (!v) return;
      const near = masks.map((mask) =>
        [-65, -64, -63, -1, 0, 1, 63, 64, 65].map((d) => mask[i + d] ?? 0)
      );
      assert(
        near.some((cells) => Math.max(...cells) - Math.min(...cells) > 0.1),
        `scene ${n}, pixel ${i}`,
      );
    });
    // The outline of something 23 to 46 pixels wide.
    assert(lines > 40 && lines < 900, `${lines} pixels in scene ${n}`);
  }
  assert(pairs > 0);
});

Deno.test("the outline of a rectangle is its border", () => {
  const mask = new Float32Array(10 * 8);
  for (let y = 2; y < 7; y++) mask.fill(1, y * 8 + 2, y * 8 + 6);
  const { values, width, height } = outlineOf(mask, 8);
  assertEquals([width, height], [8, 10]);
  assertEquals(values[4 * 8 + 4], 0, "inside");
  assertEquals(values[0], 0, "outside");
  for (const row of [3, 4, 5]) {
    const line = [...values.subarray(row * 8, row * 8 + 8)];
    assertEquals(line.filter((v) => v === 1).length, 2, `row ${row}`);
  }
});

forEachBackend("the adapter's gradient is its loss's slope", async () => {
  const art = await loadArt();
  const unet = initialise<UNet>(unetSpec(UNET_CONFIG), key(1));
  const text = initialise<TextEncoder>(
    textEncoderSpec(CLIP_CONFIG.text_config),
    key(2),
  );
  const params = initialise<T2IAdapter>(networkSpec("adapter"), key(3));
  const size = 16 * 16 * UNET_CONFIG.in_channels;
  const materials: Materials = {
    art,
    frames: await loadConceptArt(),
    exclude: new Set(),
    // As if every scene had the same latent: 134 MB less.
    latents: {
      length: 16 * size,
      subarray: () => normal(key(4), size),
    } as unknown as Float32Array,
    text,
    unet,
    waiting: new Map(),
  };
  const shard = { step: 3, index: 0, count: 1, batch: 2, seed: 5 };
  await noLeak(async () => {
    const { entries, size: all } = networkLayout("adapter");
    const grads = new Float32Array(all);
    const { loss } = await adapterShard(params, shard, materials, grads);
    // Along a random direction in all parameters.
    const direction = new Map(entries.map(({ path, size }) => [
      path,
      normal(fold(key(6), path), size),
    ]));
    const slope = entries.reduce((sum, { path, offset, size }) => {
      const d = direction.get(path)!;
      for (let i = 0; i < size; i++) sum += grads[offset + i] * d[i];
      return sum;
    }, 0);
    const step = 2e-4;
    const at = async (sign: number) => {
      const moved = mapTree(params, (leaf, path) =>
        tf.tidy(() =>
          leaf.add(
            tf.tensor(direction.get(path)!, leaf.shape).mul(sign * step),
          )
        ));
      const unused = new Float32Array(all);
      const result = await adapterShard(moved, shard, materials, unused);
      disposeTree(moved);
      return result.loss;
    };
    const measured = (await at(1) - await at(-1)) / (2 * step);
    assert(loss > 0);
    // float32 losses of size 1 differ by 1e-7: 5e-4 of the quotient.
    assert(
      Math.abs(measured - slope) < 0.02 * Math.abs(slope) + 2e-3,
      `measured ${measured}, gradient ${slope}`,
    );
  });
  disposeTree([unet, text, params]);
  assertEquals(ADAPTER_CONFIG.in_channels, 1);
}, ["wasm"]);
