import { assert, assertEquals, assertRejects } from "@std/assert";
import { joinPath, writeJson } from "../../src/io/files.ts";
import {
  type LabOptions,
  type LabRecord,
  MODEL_PARTS,
  withLab,
} from "../../src/lab/lab.ts";
import { NotInStore, nowhere, type Runner } from "../../src/lab/runner.ts";
import { isDone, specId } from "../../src/lab/store.ts";
import { pretender } from "./pretender.ts";

const pixel = { width: 1, height: 1, channels: 3 };
const sampling = {
  ...{ sampler: "ddim" as const, steps: 1, guidance: 1, negative: "" },
};

async function world(
  use: (options: LabOptions, folder: string) => Promise<void>,
): Promise<void> {
  const folder = await Deno.makeTempDir();
  try {
    const model = joinPath(folder, "model");
    for (const part of MODEL_PARTS) {
      await writeJson(joinPath(model, part, "config.json"), { part });
    }
    await use({
      ...{ model, store: joinPath(folder, "store") },
      ...{ backend: "cpu", workers: 0 },
    }, folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

const sample = (i: number) => ({ text: `t${i}`, noise: [0, i] });
const asked = (count: number) => ({
  model: { type: "base" as const },
  samples: Array.from({ length: count }, (_, i) => sample(i)),
  sampling,
});

Deno.test("what the store has is not worked on again", () =>
  world(async (options) => {
    const runner = pretender(options.store);
    const run = (count: number, by: Runner = runner) =>
      withLab({ ...options, runner: by }, (lab) => lab.draw([asked(count)]));
    const [first] = await run(3);
    assertEquals(new Set(first).size, 3);
    assertEquals(runner.specs.length, 1);
    assertEquals(await run(3), [first]);
    assertEquals(runner.specs.length, 1);
    assertEquals(await run(3, nowhere), [first]);
    // A shorter list is part of it; a longer one is not there.
    assertEquals(await run(2, nowhere), [first.slice(0, 2)]);
    await assertRejects(() => run(4, nowhere), NotInStore);
  }));

Deno.test("long lists are handed over in parts, results keep their order", () =>
  world(async (options) => {
    const runner = pretender(options.store);
    const records: LabRecord[] = [];
    const onRecord = (record: LabRecord) => void records.push(record);
    const [ids, more] = await withLab(
      { ...options, runner, onRecord },
      (lab) =>
        lab.draw([asked(23), {
          ...asked(1),
          sampling: { ...sampling, steps: 2 },
        }]),
    );
    const sizes = runner.specs.map((spec) =>
      spec.kind === "draw" ? spec.samples.length : 0
    );
    // In which order they are handed over is left open.
    assertEquals(sizes.sort((a, b) => b - a), [10, 10, 3, 1]);
    assertEquals([ids.length, more.length], [23, 1]);
    assertEquals(new Set([...ids, ...more]).size, 24);
    // Progress never goes back and ends with all of it.
    records.reduce((before, { done, total }) => {
      assert(done >= before && done <= total && total === 24);
      return done;
    }, 0);
    assertEquals(records.at(-1)?.done, 24);
  }));

Deno.test("a spec that two calls ask for at once is worked on once", () =>
  world(async (options) => {
    const runner = pretender(options.store);
    await withLab({ ...options, runner }, async (lab) => {
      const [[a], [b]] = await Promise.all([
        lab.texts([["one"], ["one"]]),
        lab.texts([["one"]]),
      ]);
      assertEquals(a, b);
      assertEquals(a.length, 1);
    });
    assertEquals(runner.specs.length, 1);
  }));

Deno.test("a call fails with its runner, and a later one goes on", () =>
  world(async (options) => {
    const good = pretender(options.store);
    let fail = true;
    // Both run at once: the failure comes when the other is in the store.
    const whole = Promise.withResolvers<void>();
    const runner: Runner = {
      ...good,
      async run(spec, tell) {
        if (fail && spec.kind === "draw" && spec.samples.length < 10) {
          await whole.promise;
          throw new Error("out of paper");
        }
        await good.run(spec, tell);
        whole.resolve();
      },
    };
    const run = () =>
      withLab({ ...options, runner }, (lab) => lab.draw([asked(13)]));
    await assertRejects(run, Error, "out of paper");
    fail = false;
    const [ids] = await run();
    assertEquals(ids.length, 13);
    // The part that was done before the failure was not done again.
    const sizes = good.specs.map((spec) =>
      spec.kind === "draw" ? spec.samples.length : 0
    );
    assertEquals(sizes, [10, 3]);
  }));

Deno.test("specs say what they are worked on with", () =>
  world(async (options, folder) => {
    const runner = pretender(options.store);
    const train = {
      ...{ concept: "kuro", classWord: "animal", method: "lora" as const },
      ...{ preset: "ablation" as const, rank: 1, seed: 0 },
      pictures: { of: "art", concept: "kuro", set: "train" } as const,
      config: { steps: 7 } as never,
    };
    const run = () =>
      withLab({ ...options, runner }, (lab) => lab.train([train]));
    const [trained] = await run();
    assertEquals(trained.phrase, "<kuro>");
    const [spec] = runner.specs;
    assert(spec.kind === "train" && spec.base.length === 64);
    assertEquals(trained.model, { type: "concept", id: await specId(spec) });
    assert(await isDone(options.store, spec));
    // Another base is another result.
    await writeJson(joinPath(folder, "model/unet/config.json"), { more: 1 });
    const [again] = await run();
    assert(again.model.id !== trained.model.id);
    assertEquals(runner.specs.length, 2);
  }));

Deno.test("a model that changes under an experiment ends it", () =>
  world(async (options, folder) => {
    const runner = pretender(options.store);
    await assertRejects(
      () =>
        withLab(
          { ...options, runner },
          () =>
            writeJson(joinPath(folder, "model/vae/config.json"), {
              part: "no",
            }),
        ),
      Error,
      "changed files",
    );
    await assertRejects(
      () =>
        withLab(
          { ...options, model: `${folder}/none`, runner },
          () => Promise.resolve(),
        ),
      Error,
    );
  }));

Deno.test("a rendered picture is rendered once", () =>
  world(async (options) => {
    let count = 0;
    const image = { ...pixel, data: Uint8Array.of(1, 2, 3) };
    await withLab({ ...options, runner: nowhere }, async (lab) => {
      const put = (what: unknown) => lab.put(what, () => (count++, image));
      const id = await put(["empty", 1]);
      assertEquals(await put(["empty", 1]), id);
      assert(await put(["empty", 2]) !== id);
      assertEquals((await lab.picture(id)).data, image.data);
    });
    assertEquals(count, 2);
  }));
