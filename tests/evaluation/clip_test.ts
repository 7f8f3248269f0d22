import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import {
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "../../src/evaluation/clip.ts";
import { cosine } from "../../src/evaluation/clip_score.ts";
import type { Pixels } from "../../src/io/png.ts";
import { normalise, textEmbedding } from "../../src/models/image_encoder.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { close } from "../helpers.ts";

await selectBackend("wasm");

const picture = (seed: number): Pixels => ({
  width: 64,
  height: 64,
  channels: 3,
  data: Uint8Array.from(
    { length: 64 * 64 * 3 },
    (_, i) => (i * (7 + seed) + 31 * seed) % 256,
  ),
});

Deno.test("a CLIP folder gives unit vectors, whatever the batch", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const { clip: path } = await writeTinyWorld(folder);
    const before = tf.memory().numTensors;
    const clip = await loadClip(path);
    await t.step("pictures: unit length, one by one as together", async () => {
      const pictures = Array.from({ length: 35 }, (_, i) => picture(i));
      const rows = await embedImages(clip, pictures);
      for (const row of rows) close(cosine(row, row), 1, 1e-5);
      const [last] = await embedImages(clip, pictures.slice(-1));
      close(rows[34], last, 1e-5);
      assert(cosine(rows[0], rows[1]) < 0.9999);
    });
    await t.step("texts: the tower's own embedding, normalised", async () => {
      const text = "a photo of a fox on grass";
      const [row] = await embedTexts(clip, [text]);
      const { ids } = clip.tokenizer.encode(text);
      const expected = tf.tidy(() =>
        normalise(textEmbedding(clip.params, clip.config, [ids]))
      );
      close(row, await expected.data(), 1e-6);
      expected.dispose();
    });
    await t.step("a picture of another size is resized", async () => {
      const [row] = await embedImages(clip, [{
        width: 128,
        height: 96,
        channels: 3,
        data: new Uint8Array(128 * 96 * 3).fill(9),
      }]);
      assertEquals(row.length, 16);
    });
    disposeClip(clip);
    assertEquals(tf.memory().numTensors, before);
    await t.step("a missing or truncated part is an error", async () => {
      await Deno.rename(`${path}/vocab.json`, `${path}/vocab`);
      await assertRejects(() => loadClip(path), Error, "vocab.json");
      await Deno.rename(`${path}/vocab`, `${path}/vocab.json`);
      await Deno.truncate(`${path}/model.safetensors`, 3000);
      await assertRejects(() => loadClip(path), Error, "Cannot");
    });
    assertEquals(tf.memory().numTensors, before);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
