import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../../src/core/backend.ts";
import { finish } from "../../../src/core/finish.ts";
import { loadState, pretrain, saveState } from "./pretrain.ts";
import { RECIPE } from "./recipe.ts";

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
    const stopped = options("stopped", 1000);
    for await (const { step } of pretrain("clip_a", stopped)) {
      if (step === 2) break;
    }
    const { step } = await loadState(
      stopped.checkpoint,
      whole.params.length,
      stopped.recipe,
    );
    assertEquals(step, 2);
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

Deno.test("a short checkpoint keeps parameters exactly, the rest in 16 bits", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const origin = { seed: 1, batch: 2, shards: 2 };
    const values = (scale: number) =>
      Float32Array.from({ length: 1000 }, (_, i) => scale * Math.sin(i + 1));
    const state = {
      step: 7,
      params: values(1),
      m: values(1e-3),
      v: values(1e-9).map(Math.abs),
      ema: values(0.5),
    };
    const size = async (path: string) => (await Deno.stat(path)).size;
    const [whole, short] = ["whole", "short"].map((n) => `${folder}/${n}`);
    await saveState(whole, state, origin);
    await saveState(short, state, origin, true);
    assertEquals(await loadState(whole, 1000, origin), state);
    const read = await loadState(short, 1000, origin);
    assertEquals(read.step, 7);
    assertEquals(read.params, state.params);
    for (const [part, digits] of [["m", 8], ["v", 8], ["ema", 10]] as const) {
      read[part].forEach((value, i) => {
        const off = Math.abs(value - state[part][i]);
        assert(off <= Math.abs(state[part][i]) * 2 ** -digits, part);
      });
      // Tiny second moments must not become zero.
      assertEquals(read[part].includes(0), false, part);
    }
    assert(await size(short) < 0.65 * await size(whole));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
