import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { finish } from "../../src/core/finish.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import { joinPath } from "../../src/io/files.ts";
import { withLab } from "../../src/lab/lab.ts";
import { NOUNS } from "../../src/micro/world.ts";
import {
  doubledHalf,
  type MicroNumbers,
  microReport,
  microTargets,
  pairPrompt,
  singlePrompt,
} from "./micro_quality.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

await selectBackend("wasm");

Deno.test("a random model is measured: chance accuracies, the same every time", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    for (const name of ["clip_a", "clip_b"]) {
      const to = joinPath(model, name);
      await Deno.mkdir(to);
      for await (const { name: file } of Deno.readDir(clip)) {
        await Deno.copyFile(joinPath(clip, file), joinPath(to, file));
      }
    }
    const { sampling } = PRESETS.ablation;
    const run = async () => {
      return await withLab(
        { model, store: `${folder}/store`, workers: 0, backend: "wasm" },
        (lab) =>
          finish(microReport({
            model,
            async draw(samples) {
              const base = { type: "base" } as const;
              const two = { ...sampling, steps: 2 };
              const [ids] = await lab.draw([
                { model: base, samples, sampling: two },
              ]);
              return await Promise.all(ids.map((id) => lab.picture(id)));
            },
            art: lab.art,
            single: 24,
            pairs: 6,
            scenes: 64,
            naming: true,
            references: 2,
            classPictures: 1,
          })),
      );
    };
    const { numbers, evaluator, pictures } = await run();
    // A random CLIP tells 64 captions apart no better than one in a few.
    assert(numbers.clip_b_top1 < 0.3);
    // The two CLIPs are the same files here.
    assertEquals(numbers.clip_a_top1, numbers.clip_b_top1);
    assert(numbers.noun_generated < 0.5 && numbers.noun_real < 0.5);
    assert(numbers.vae_psnr > 0 && numbers.vae_psnr < 20);
    assertEquals(pictures.single.length, 24);
    assertEquals(pictures.pairs.length, 6);
    // Two of each noun, in an order that says nothing.
    const named = pictures.naming.map(({ noun }) => noun);
    assertEquals(
      named.toSorted(),
      NOUNS.flatMap(({ word }) => [word, word]).sort(),
    );
    assert(named.join() !== named.toSorted().join());
    pictures.naming.forEach(({ noun, text }) => assert(text.includes(noun)));
    assertEquals(numbers.eye_same, evaluator.same);
    assert(numbers.eye_1nn < 0.9);
    assert(evaluator.drawn && evaluator.failures.length > 0);
    assertEquals((await run()).numbers, numbers);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("prompts are the world's", () => {
  assertEquals(singlePrompt("owl", "grass"), "a photo of an owl on grass");
  assertEquals(
    pairPrompt("fox", "owl", "night"),
    "a fox on the left and an owl on the right at night",
  );
});

Deno.test("a doubled half is symmetric and keeps its own side", () => {
  const data = Uint8Array.from({ length: 4 * 2 * 3 }, (_, i) => i);
  const image = { width: 4, height: 2, channels: 3, data };
  const left = doubledHalf(image, "left").data;
  assertEquals([...left.slice(0, 12)], [0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2]);
  const right = doubledHalf(image, "right").data;
  assertEquals([...right.slice(0, 12)], [
    6,
    7,
    8,
    9,
    10,
    11,
    9,
    10,
    11,
    6,
    7,
    8,
  ]);
});

Deno.test("targets compare generated pictures with real ones", () => {
  const numbers: MicroNumbers = {
    vae_psnr: 25,
    clip_a_top1: 0.7,
    clip_b_top1: 0.7,
    noun_generated: 0.4,
    noun_real: 0.8,
    background_generated: 0.9,
    background_real: 0.9,
    two_nouns_generated: 0.1,
    two_nouns_real: 0,
    eye_same: 0.8,
    eye_shuffled8: 0.5,
    eye_pixelated8: 0.75,
    eye_class_word: 0.3,
    eye_1nn: 0.9,
  };
  const values = Object.fromEntries(
    microTargets(numbers).map(({ name, value }) => [name, value]),
  );
  assertEquals(values["noun, generated / real"], 0.5);
  assertEquals(values["background, generated / real"], 1);
  assert(Number.isNaN(values["two nouns, generated / real"]));
  assertAlmostEquals(values["evaluator: shuffled 8 px tiles lose"], 0.6);
  assertAlmostEquals(values["evaluator: 8 px blocks lose"], 0.1);
});
