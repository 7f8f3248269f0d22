import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { method } from "../../src/customize/methods.ts";
import { openLab } from "../../src/lab/lab.ts";
import {
  inPlace,
  localPool,
  NotInStore,
  nowhere,
} from "../../src/lab/runner.ts";
import type { LabSpec, TrainSpec } from "../../src/lab/specs.ts";
import { imageIds, isDone, pathOf, specId } from "../../src/lab/store.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

await selectBackend("wasm");

Deno.test("nowhere works on nothing", async () => {
  const spec: LabSpec = { kind: "texts", clip: "", texts: ["a"] };
  await assertRejects(() => nowhere.run(spec, () => {}), NotInStore, "texts");
});

Deno.test("in place and in a pool: the same bytes, failures, progress", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const stores = [`${folder}/a`, `${folder}/b`];
    using lab = await openLab({
      ...{ model, clip, store: stores[0], workers: 0, backend: "wasm" },
      runner: nowhere,
    });
    const { model: base, art } = lab.hashes;
    const train: TrainSpec = {
      ...{ kind: "train", base, art, concept: "kuro", classWord: "person" },
      pictures: { of: "art", concept: "kuro", set: "train" },
      ...{ method: "lora", preset: "ablation", rank: 1, seed: 0 },
      config: {
        ...method("lora", "ablation").train,
        steps: 3,
        batch: 1,
        seed: 1,
      },
    };
    const id = await specId(train);
    const draw: LabSpec = {
      ...{ kind: "draw", base, model: { type: "concept", id } },
      samples: [{ text: "a photo of <kuro>", noise: [0] }],
      sampling: { sampler: "ddim", steps: 1, guidance: 1, negative: "" },
    };
    const results: string[][] = [];
    for (const [i, store] of stores.entries()) {
      const folders = { model, clip, store };
      const before = tf.memory().numTensors;
      const runner = i === 0
        ? await inPlace(folders)
        : await localPool(folders, "wasm", 1);
      await t.step(`${runner.workers} workers`, async () => {
        try {
          assertEquals(runner.workers, i);
          // What a spec needs must be there: the concept is not trained yet.
          await assertRejects(() => runner.run(draw, () => {}), Error, id);
          assert(!await isDone(store, draw));
        } finally {
          runner[Symbol.dispose]();
        }
        if (i === 0) assertEquals(tf.memory().numTensors, before);
        using again = i === 0
          ? await inPlace(folders)
          : await localPool(folders, "wasm", 1);
        const steps: number[] = [];
        await again.run(train, (done, total) => {
          assertEquals(total, 3);
          steps.push(done);
        });
        assertEquals(steps, [1, 2, 3]);
        await again.run(draw, () => {});
        assert(await isDone(store, draw));
        const files = [
          pathOf.concept(store, id),
          pathOf.image(store, (await imageIds(draw))[0]),
        ];
        results.push(
          await Promise.all(files.map(async (file) => {
            const bytes = await Deno.readFile(file);
            return bytes.join();
          })),
        );
        // Done is done: nothing is told, nothing is written.
        const { mtime } = await Deno.stat(files[0]);
        await again.run(train, () => assert(false));
        assertEquals((await Deno.stat(files[0])).mtime, mtime);
      });
    }
    assertEquals(results[0], results[1]);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
