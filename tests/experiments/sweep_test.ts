import { assertAlmostEquals, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { ranks, rankTable } from "../../src/experiments/ranks.ts";
import { finish } from "../../src/core/finish.ts";
import { presetOf } from "../../src/experiments/presets.ts";
import {
  bestLambdas,
  sweep,
  type SweepOptions,
  type SweepRow,
} from "../../src/experiments/sweep.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

async function run(options: SweepOptions): Promise<SweepRow[]> {
  const it = sweep(options);
  let next = await it.next();
  while (!next.done) next = await it.next();
  return next.value;
}

Deno.test("a sweep has a row for the base, singles, factors and ridges", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const preset = presetOf("ablation");
    const options: SweepOptions = {
      model,
      clip,
      cache: `${folder}/cache`,
      settings: {
        ...preset,
        rank: 1,
        train: { ...preset.train, steps: 1, batch: 1 },
        sampling: { ...preset.sampling, steps: 1 },
        gradient: { ...preset.gradient, steps: 1, images: 1 },
      },
      workers: 0,
      backend: "wasm",
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
    // A crowd is fused and not scored.
    const crowded = await run({
      ...options,
      concepts: ["jin"],
      crowd: ["bobo"],
      counts: [1],
    });
    assertEquals(
      crowded.filter(({ fusion }) => fusion !== "none")
        .map(({ fusion, n, value }) => [fusion, n, value]),
      [["sum", 2, 0.5], ["sum", 2, 0], ["gradient", 2, 1e-3]],
    );
    assertEquals(crowded.map(({ concepts }) => Object.keys(concepts)), [
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
    ]);
    // The same two, fused in the same order, draw the same pictures of jin.
    for (const [i, k] of [[2, 6], [3, 7], [4, 8]]) {
      assertAlmostEquals(
        crowded[i].concepts.jin,
        rows[k].concepts.jin,
        2.5e-5,
      );
    }
    await assertRejects(
      () => run({ ...options, crowd: ["jin"] }),
      Error,
      "different concepts",
    );
    const byRank = await finish(ranks({
      ...options,
      embeddings: ["edlora"],
      ranks: [1, 2],
    }));
    assertEquals(
      byRank.map(({ rank, fusion }) => [rank, fusion]),
      [1, 2].flatMap((rank) =>
        ["none", "weight", "gradient"].map((fusion) => [rank, fusion])
      ),
    );
    // Two concepts in layers that are 16 or 8 wide.
    assertEquals(byRank[0].capacity.textEncoder, [2 / 16, 2 / 16]);
    assertEquals(byRank[3].capacity.unet[1], 4 / 16);
    for (const { loss, image, fusion, rank, overWeight } of byRank) {
      const [single, weight] = byRank.filter((row) => row.rank === rank);
      if (fusion !== "gradient") assertEquals(overWeight.mean, null);
      else assertAlmostEquals(overWeight.mean!, image - weight.image, 2e-5);
      if (fusion === "none") assertEquals(loss.mean, null);
      else assertAlmostEquals(loss.mean!, single.image - image, 2e-5);
    }
    const { head, rows: cells } = rankTable(byRank);
    for (const row of cells) assertEquals(row.length, head.length);
    await assertRejects(
      () => finish(ranks({ ...options, ranks: [0] })),
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
  const row = (value: number, image: number, text = 1): SweepRow => ({
    embedding: "lora",
    variant: "",
    fusion: "sum",
    n: 4,
    value,
    text,
    image,
    masked: 0,
    retrieval: 0,
    concepts: {},
  });
  const rows = [
    { ...row(0, 0.8), fusion: "none" as const, value: null },
    row(0.25, 0.5),
    row(0.6, 0.7, 0.91),
    row(1, 0.75, 0.89),
    { ...row(0, 0.9), fusion: "gradient" as const },
  ];
  assertEquals(bestLambdas(rows), { lora: 0.6 });
});
