import { assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { finish } from "../../src/core/finish.ts";
import { pretrain } from "../../src/micro/pretrain/pretrain.ts";
import { RECIPE } from "../../src/micro/pretrain/recipe.ts";

await selectBackend("wasm");

Deno.test("pretraining that was stopped ends in the same weights", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const options = (file: string, saveEvery: number) => ({
      recipe: { ...RECIPE.clip_a, steps: 3, batch: 4, warmup: 1 },
      workers: 0,
      checkpoint: `${folder}/${file}.safetensors`,
      saveEvery,
    });
    const whole = await finish(pretrain("clip_a", options("whole", 1000)));
    const stopped = options("stopped", 0);
    for await (const { step } of pretrain("clip_a", stopped)) {
      if (step === 2) break;
    }
    const again = await finish(pretrain("clip_a", stopped));
    assertEquals(again.step, 3);
    for (const part of ["params", "m", "v", "ema"] as const) {
      assertEquals([...again[part]], [...whole[part]]);
    }
    await assertRejects(
      () =>
        finish(pretrain("clip_a", {
          ...stopped,
          recipe: { ...stopped.recipe, seed: 99 },
        })),
      Error,
      "expected seed 99, got 11",
    );
    await assertRejects(
      () => finish(pretrain("vae", { ...stopped, recipe: stopped.recipe })),
      Error,
      "parameters",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
