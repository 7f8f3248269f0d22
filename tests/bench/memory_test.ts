import { assert, assertEquals } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { inFolder } from "../helpers.ts";
import { growing, type MemoryRow, watchMemory } from "./memory.ts";

const row = (done: number, change: Partial<MemoryRow> = {}): MemoryRow => ({
  ...{ work: "training", done, tensors: 100, heap: 2 ** 24, resident: done },
  ...change,
});
const drawing = { work: "drawing" } as const;
const flat = [row(1), row(2), row(1, drawing), row(2, drawing)];

Deno.test("a tensor or a byte of the heap more is growth", () => {
  assertEquals(growing(flat), undefined);
  for (const [i, change] of [[1, { tensors: 101 }], [3, { heap: 2 ** 25 }]]) {
    const rows = flat.map((r, at) =>
      at === i ? { ...r, ...change as Partial<MemoryRow> } : r
    );
    assert(growing(rows)?.includes("from"));
  }
});

Deno.test("no tensor stays from training and drawing", async () => {
  await selectBackend("wasm");
  await inFolder(async (folder) => {
    const { model } = await writeTinyWorld(folder);
    const rows = await Array.fromAsync(watchMemory(10, 10, model));
    assertEquals(rows.length, 20);
    // The heap finds its size in some hundred steps.
    assertEquals(growing(rows, ["tensors"]), undefined);
  });
});
