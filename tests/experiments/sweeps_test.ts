import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import {
  sweep,
  type SweepPlan,
  type SweepRow,
} from "../../src/experiments/sweep.ts";
import { bestLambdas } from "../../src/experiments/sweep_table.ts";
import { withLab } from "../../src/lab/lab.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

Deno.test("a sweep has a row for the base, singles, factors and ridges", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const preset = PRESETS.ablation;
    const run = (plan: SweepPlan): Promise<SweepRow[]> =>
      withLab({
        ...{ model, clip, store: `${folder}/store` },
        ...{ workers: 0, backend: "wasm" },
      }, (lab) => sweep(lab, plan));
    const options: SweepPlan = {
      settings: {
        ...preset,
        rank: 1,
        train: { ...preset.train, steps: 1, batch: 1 },
        sampling: { ...preset.sampling, steps: 1 },
        gradient: { ...preset.gradient, steps: 1, images: 1 },
      },
      concepts: ["jin", "bobo"],
      prompts: 1,
      seeds: [0],
      embeddings: ["lora"],
      counts: [1, 2],
      lambdas: [0, 0.5],
      ridges: [1e-3],
    };
    const rows = await run(options);
    assertEquals(
      rows.map(({ fusion, n, value }) => [fusion, n, value]),
      [
        ["none", 1, null],
        ["none", 1, null],
        ["sum", 1, 1],
        ["sum", 1, 0],
        ["sum", 1, 0.5],
        ["gradient", 1, 1e-3],
        ["sum", 2, 0.5],
        ["sum", 2, 0],
        ["gradient", 2, 1e-3],
      ],
    );
    // With one concept the sum at λ = 1 is the concept itself: the same weights
    // merged instead of attached, so equal to rounding. Scores are rounded to
    // five digits; a last-bit difference may move one by a unit.
    const [, single, whole] = rows;
    assertAlmostEquals(whole.concepts.jin, single.concepts.jin, 2.5e-5);
    assertEquals(Object.keys(rows[2].concepts), ["jin"]);
    assertEquals(Object.keys(rows[6].concepts), ["jin", "bobo"]);
    // Distractors are fused and not scored.
    const distracted = await run({
      ...options,
      concepts: ["jin"],
      distractors: ["bobo"],
      counts: [1],
    });
    assertEquals(
      distracted.filter(({ fusion }) => fusion !== "none")
        .map(({ fusion, n, value }) => [fusion, n, value]),
      [["sum", 2, 0.5], ["sum", 2, 0], ["gradient", 2, 1e-3]],
    );
    assertEquals(distracted.map(({ concepts }) => Object.keys(concepts)), [
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
    ]);
    // The same two, fused in the same order, draw the same pictures of jin.
    for (const [i, k] of [[2, 6], [3, 7], [4, 8]]) {
      assertAlmostEquals(
        distracted[i].concepts.jin,
        rows[k].concepts.jin,
        2.5e-5,
      );
    }
    await assertRejects(
      () => run({ ...options, distractors: ["jin"] }),
      Error,
      "different concepts",
    );
    const [lower, ...byRank] = await run({
      ...options,
      embeddings: ["edlora"],
      counts: [2],
      lambdas: [],
      ranks: [1, 2],
    });
    assertEquals(lower.capacity, 0);
    assertEquals(
      byRank.map(({ rank, fusion }) => [rank, fusion]),
      [1, 2].flatMap((rank) =>
        (["none", "sum", "gradient"] as const).map((one) => [rank, one])
      ),
    );
    // Two concepts in layers that are at least 16 wide.
    assertEquals(byRank[1].capacity, 2 / 16);
    assertEquals(byRank[4].capacity, 4 / 16);
    for (const { heldoutKept, heldout, fusion, rank } of byRank) {
      const [single] = byRank.filter((row) => row.rank === rank);
      if (fusion === "none") assertEquals(heldoutKept, undefined);
      else {
        // Five decimals of a small difference: compared as a product.
        const whole = lower.heldout - single.heldout;
        const { mean } = heldoutKept!;
        // Nothing gained is nothing kept.
        if (mean === null) assert(whole < 5e-5);
        else assertAlmostEquals(mean * whole, lower.heldout - heldout, 5e-5);
      }
    }
    for (const { loss, kept, image, fusion, rank, overWeight } of byRank) {
      const [single, weight] = byRank.filter((row) => row.rank === rank);
      if (fusion !== "gradient") assertEquals(overWeight, undefined);
      else assertAlmostEquals(overWeight!.mean!, image - weight.image, 2e-5);
      if (fusion === "none") assertEquals([loss, kept], [undefined, undefined]);
      else assertAlmostEquals(loss!.mean!, single.image - image, 2e-5);
    }
    await assertRejects(
      () => run({ ...options, ranks: [0] }),
      Error,
      "ranks ≥ 1",
    );
    await assertRejects(
      () => run({ ...options, counts: [3] }),
      Error,
      "counts from 1 to 2",
    );
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("the best λ has the most identity and still follows its prompts", () => {
  const row = (value: number, heldout: number, text = 1): SweepRow => ({
    embedding: "lora",
    variant: "",
    fusion: "sum",
    n: 4,
    value,
    text,
    image: 0,
    masked: 0,
    retrieval: 0,
    capacity: 0,
    concepts: {},
    heldout,
    errors: {},
  });
  const rows = [
    { ...row(0, 2), fusion: "none" as const, value: null },
    row(0.25, 5),
    row(0.6, 3, 0.91),
    row(1, 2.5, 0.89),
    { ...row(0, 1), fusion: "gradient" as const },
  ];
  assertEquals(bestLambdas(rows), { lora: 0.6 });
});
