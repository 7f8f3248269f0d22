import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import {
  ablation,
  type AblationOptions,
  ablationPictures,
  driftTexts,
} from "../../src/experiments/ablation.ts";
import { ablationSchema } from "../../src/experiments/ablation_schema.ts";
import { lookAgain, optionsOf } from "../../src/experiments/eyes.ts";
import { presetOf } from "../../src/experiments/presets.ts";
import { exists } from "../../src/io/files.ts";
import { store } from "../../src/experiments/pieces.ts";
import { PROMPT_GROUPS } from "../../src/micro/prompts.ts";
import { chosenPrompts } from "../../src/experiments/study.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = presetOf("ablation");
const options = (folder: string): AblationOptions => ({
  model: `${folder}/model`,
  clip: `${folder}/clip`,
  cache: `${folder}/cache`,
  concepts: ["kuro", "momo"],
  prompts: 4,
  seeds: [0],
  settings: {
    ...preset,
    rank: 2,
    train: { ...preset.train, steps: 2, batch: 2 },
    sampling: { ...preset.sampling, steps: 2 },
    gradient: { ...preset.gradient, steps: 2, images: 1 },
  },
  workers: 0,
  backend: "wasm",
  scale: "quick",
  version: "test",
  created: "2000-01-01",
});

async function run(o: AblationOptions) {
  const stages = new Map<string, [number, number]>();
  const it = ablation(o);
  let next = await it.next();
  for (; !next.done; next = await it.next()) {
    const { stage, done, total } = next.value;
    assert(done <= total);
    stages.set(stage, [done, total]);
  }
  // Times differ; nothing else may.
  const text = JSON.stringify(
    next.value,
    (key, value) =>
      ["timings", "seconds", "fusionSeconds", "workers"].includes(key)
        ? undefined
        : value,
  );
  return { report: next.value, text, stages };
}

Deno.test("an ablation of a tiny world: schema, resume, workers", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const before = tf.memory().numTensors;
    const first = await run(options(folder));
    await t.step(
      "no tensors are left",
      () => assertEquals(tf.memory().numTensors, before),
    );
    await t.step("the report fits its schema, through JSON", () => {
      const read = ablationSchema.parse(
        JSON.parse(JSON.stringify(first.report)),
      );
      assertEquals(Object.keys(read.arms).length, 6);
      assertEquals(read.rows.length, 2 * 9);
      assert(read.verdict.startsWith("Mechanics only, no conclusion"));
      assertEquals(read.arms["lora.weight"].lambda, 0.5);
      assertEquals(
        read.comparisons.every((c) => c.verdict === "no conclusion"),
        true,
      );
      assert(read.arms["edlora.gradient"].layers.length > 0);
      assert(read.retrieval.chance > 0 && read.retrieval.chance <= 1 / 16);
    });
    await t.step("stages end complete", () => {
      for (const [done, total] of first.stages.values()) {
        assertEquals(done, total);
      }
      assertEquals(first.stages.get("train"), [8, 8]);
    });
    await t.step("a second run finds all and says the same", async () => {
      const again = await run(options(folder));
      assertEquals(again.text, first.text);
    });
    await t.step("another eye sees the same pictures", async () => {
      const o = optionsOf(
        ablationSchema.parse(JSON.parse(JSON.stringify(first.report))),
        options(folder),
      );
      assertEquals(o.concepts, ["kuro", "momo"]);
      const it = lookAgain(o, {
        name: "colours",
        embed: (images) =>
          Promise.resolve(images.map(({ data }) => {
            const sum = [0, 0, 0];
            data.forEach((byte, i) => sum[i % 3] += byte);
            const norm = Math.hypot(...sum);
            return Float32Array.from(sum, (v) => v / norm);
          })),
        [Symbol.dispose]: () => {},
      });
      let next = await it.next();
      while (!next.done) next = await it.next();
      const { image, ceiling, comparisons } = next.value;
      assertEquals(Object.keys(image).length, 9);
      assert(Object.values(image).every((v) => v > 0 && v <= 1));
      assert(ceiling > 0 && ceiling < 1);
      assertEquals(comparisons.length, 13);
      assertEquals(comparisons.filter(({ paper }) => paper).length, 5);
      const [{ mean }] = comparisons;
      const difference = image["lora.single"] - image["lora.weight"];
      assert(Math.abs(mean! - difference) < 2e-5);
    });
    await t.step(
      "after a loss of some pieces the numbers are the same",
      async () => {
        const [entry] = await ablationPictures(options(folder), 1);
        const lost = store.image(`${folder}/cache`, entry.pictures[1].id);
        assert(await exists(lost));
        await Deno.remove(lost);
        await Deno.remove(`${folder}/cache/embeddings`, { recursive: true });
        await Deno.remove(`${folder}/cache/fused`, { recursive: true });
        const again = await run(options(folder));
        assertEquals(again.text, first.text);
      },
    );
    await t.step("two workers change nothing", async () => {
      const again = await run({
        ...options(folder),
        cache: `${folder}/cache2`,
        workers: 2,
        embeddings: ["edlora"],
        fusions: ["gradient"],
      });
      // Fewer arms, so only theirs are compared.
      const { rows } = again.report;
      assertEquals(
        rows,
        first.report.rows.filter(({ arm }) =>
          rows.some((row) => row.arm === arm)
        ),
      );
      assertEquals(rows.length, 2 * 3);
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("bad options are refused before work starts", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const refused = async (change: Partial<AblationOptions>, why: string) =>
      await assertRejects(
        () => run({ ...options(folder), ...change }),
        Error,
        why,
      );
    await refused({ concepts: ["nobody"] }, "kuro, lila");
    await refused({ concepts: ["momo", "momo"] }, "different concepts");
    await refused({ prompts: 21 }, "1 to 20");
    await refused({ seeds: [] }, "a seed");
    const { settings } = options(folder);
    await refused({ settings: { ...settings, rank: 0 } }, "rank");
    assert(!await exists(`${folder}/cache`));
    await Deno.truncate(
      `${folder}/model/vae/diffusion_pytorch_model.safetensors`,
      5000,
    );
    await refused({}, "truncated");
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("fewer prompts come from all groups in turn", () => {
  const prompts = PROMPT_GROUPS.flatMap((group) =>
    new Array(5).fill({ group })
  );
  assertEquals(chosenPrompts(4, prompts), [0, 5, 10, 15]);
  assertEquals(chosenPrompts(6, prompts), [0, 1, 5, 6, 10, 15]);
  assertEquals(chosenPrompts(20, prompts).length, 20);
  assertThrows(() => chosenPrompts(0, prompts), Error, "1 to 20");
});

Deno.test("drift prompts are the same every time", () => {
  assertEquals(driftTexts(3), driftTexts(4).slice(0, 3));
});
