import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { overfit } from "../../src/experiments/overfit.ts";
import {
  overfitLabel,
  overfitTable,
} from "../../src/experiments/overfit_table.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import { DEVELOPMENT_CONCEPTS } from "../../src/experiments/subjects.ts";
import { withLab } from "../../src/lab/lab.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = PRESETS.ablation;
const plan = planOf(overfit, {
  settings: {
    ...preset,
    heldoutPictures: 2,
    rank: 1,
    train: { ...preset.train, steps: 2, batch: 2 },
    sampling: { ...preset.sampling, steps: 1 },
  },
  concepts: DEVELOPMENT_CONCEPTS.slice(0, 1),
  embeddings: ["edlora"],
  layers: ["cross-attention-kv", "all"],
  lengths: [2, 20],
  pictures: [1],
  seeds: [0],
});

Deno.test("errors on training pictures and on others, of every combination", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const options = { model, clip, store: `${folder}/store`, workers: 0 };
    const { data: { rows }, report } = await withLab(
      { ...options, backend: "wasm" },
      (lab) => overfit.run(lab, plan),
    );
    // The class word, then two choices of layers, two lengths.
    assertEquals(rows.length, 5);
    assertEquals(rows[0].arm, null);
    // One concept has no interval.
    assertEquals(rows[0].gain, { mean: 0, low: null, high: null });
    const [{ sheet }] = report.parts.filter((part) => part.type === "pictures");
    assertEquals(sheet.rows.length, 1);
    assertEquals(sheet.columns.length, 1 + 5);
    const of = (layers: string, steps: number) =>
      rows.find(({ arm }) => arm?.layers === layers && arm.steps === steps)!;
    const [name] = plan.concepts;
    for (const layers of ["cross-attention-kv", "all"]) {
      // More steps fit the training picture better.
      const short = of(layers, 2), long = of(layers, 20);
      assert(long.train < short.train, `${layers}: ${long.train}`);
      assertAlmostEquals(
        1 - long.concepts[name].heldout / rows[0].concepts[name].heldout,
        long.gain.mean!,
        1e-3,
      );
      assertEquals(long.train, long.concepts[name].train);
    }
    assert(of("all", 20).train !== of("cross-attention-kv", 20).train);
    const more = await withLab(
      { ...options, backend: "wasm" },
      (lab) =>
        overfit.run(lab, {
          ...plan,
          layers: ["all"],
          lengths: [20],
          pictures: [3],
        }),
    );
    assert(more.data.rows[1].heldout !== of("all", 20).heldout);
    const table = overfitTable(rows);
    assertEquals(table.rows.length, 5);
    assertEquals(
      table.rows[1][0],
      "ED-LoRA, cross-attention-kv, 0.002, 2 steps, 1 pictures",
    );
    await withLab({ ...options, backend: "wasm" }, async (lab) => {
      await assertRejects(
        () => overfit.run(lab, { ...plan, concepts: ["ulla"] }),
        Error,
        "got ulla",
      );
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("arms have names", () => {
  assertEquals(overfitLabel(null), "class word, base model");
});
