import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import type { TreeLike } from "../../src/core/tree.ts";
import { attentionSites } from "../../src/customize/lora.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import {
  sweep,
  type SweepPlan,
  type SweepRow,
} from "../../src/experiments/sweep.ts";
import {
  bestLambdas,
  sweepFigures,
} from "../../src/experiments/sweep_table.ts";
import { readJson, writeJson } from "../../src/io/files.ts";
import { withLab } from "../../src/lab/lab.ts";
import { disposeModel, loadModel } from "../../src/models/model.ts";
import type { Figure } from "../../src/report/figure.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

Deno.test("a sweep has a row for the base, singles, factors and ridges", async () => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const preset = PRESETS.ablation;
    const run = (
      plan: SweepPlan,
      evaluator = clip,
    ): Promise<SweepRow[]> =>
      withLab({
        ...{ model, clip: evaluator, store: `${folder}/store` },
        ...{ workers: 0, backend: "wasm" },
      }, (lab) => sweep(lab, plan));
    const options: SweepPlan = {
      settings: {
        ...preset,
        heldoutPictures: 2,
        rank: 1,
        layers: "attention",
        train: { ...preset.train, steps: 1, batch: 1 },
        sampling: { ...preset.sampling, steps: 1 },
        gradient: {
          ...preset.gradient,
          ...{ layers: "attention", steps: 1, images: 1 },
        },
      },
      concepts: ["jin", "bobo"],
      prompts: 1,
      seeds: [0],
      embeddings: ["lora"],
      counts: [1, 2],
      lambdas: [0, 0.5],
      ridges: [1e-3, "auto"],
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
        ["gradient", 1, "auto"],
        ["sum", 2, 0.5],
        ["sum", 2, 0],
        ["gradient", 2, 1e-3],
        ["gradient", 2, "auto"],
      ],
    );
    // With one concept the sum at λ = 1 is the concept itself: the same weights
    // merged instead of attached, so equal to rounding. Scores are rounded to
    // five digits; a last-bit difference may move one by a unit.
    const [, single, whole] = rows;
    assertAlmostEquals(whole.concepts.jin, single.concepts.jin, 2.5e-5);
    assertEquals(Object.keys(rows[2].concepts), ["jin"]);
    assertEquals(Object.keys(rows[7].concepts), ["jin", "bobo"]);
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
      [
        ["sum", 2, 0.5],
        ["sum", 2, 0],
        ["gradient", 2, 1e-3],
        ["gradient", 2, "auto"],
      ],
    );
    assertEquals(distracted.map(({ concepts }) => Object.keys(concepts)), [
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
      ["jin"],
    ]);
    // The same two, fused in the same order, draw the same pictures of jin.
    for (const [i, k] of [[2, 7], [3, 8], [4, 9], [5, 10]]) {
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
    // An evaluator that would cut captions is refused before any training.
    const short = `${folder}/short`;
    await Deno.mkdir(short);
    for await (const { name } of Deno.readDir(clip)) {
      await Deno.copyFile(`${clip}/${name}`, `${short}/${name}`);
    }
    const config = `${short}/tokenizer_config.json`;
    await writeJson(config, {
      ...await readJson<object>(config),
      model_max_length: 4,
    });
    await assertRejects(
      () => run({ ...options, seeds: [7] }, short),
      Error,
      "prompts of at most 4 tokens",
    );
    const [lower, ...byRank] = await run({
      ...options,
      embeddings: ["edlora"],
      counts: [2],
      lambdas: [],
      ridges: [1e-3],
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
    // A file has tokens and two factors a layer; fused models have none.
    const [one, , , two] = byRank.map(({ size }) => size);
    const { textEncoder, unet } = await sitesOf(model);
    assertEquals(one!.adapted, textEncoder.length + unet.length);
    const perRank = [...textEncoder, ...unet]
      .reduce((sum, { inputs, outputs }) => sum + inputs + outputs, 0);
    assertEquals(two!.parameters - one!.parameters, perRank);
    assert(two!.bytes > one!.bytes && one!.bytes > 4 * one!.parameters);
    assertEquals(byRank[1].size, undefined);
    // Two concepts are fused; what is not fused took no time.
    assertEquals(byRank[0].seconds, undefined);
    for (const { seconds, bytes } of byRank.slice(1, 3)) {
      assert(seconds! > 0);
      assert(Math.abs(bytes! - 2 * one!.bytes) < 64);
    }
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
    for (const row of byRank) {
      const { loss, kept, image, heldout, fusion, rank, overWeight } = row;
      const [single, weight] = byRank.filter((row) => row.rank === rank);
      if (fusion !== "gradient") assertEquals(overWeight, undefined);
      else {
        const difference = weight.heldout - heldout;
        assertAlmostEquals(overWeight!.mean!, difference, 2e-5);
      }
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

/** The layers of attention of a model. */
async function sitesOf(folder: string) {
  const model = await loadModel(folder);
  try {
    return {
      textEncoder: attentionSites(model.textEncoder.params as TreeLike),
      unet: attentionSites(model.unet.params as TreeLike),
    };
  } finally {
    disposeModel(model);
  }
}

/** A row that has nothing but what a test gives it. */
function rowWith(given: Partial<SweepRow>): SweepRow {
  return {
    ...{ embedding: "lora", variant: "", fusion: "sum", n: 4, value: 0 },
    ...{ text: 1, image: 0, masked: 0, retrieval: 0, capacity: 0 },
    ...{ concepts: {}, heldout: 0, errors: {} },
    ...given,
  };
}

Deno.test("figures of a sweep: a line per arm, what is not swept across", () => {
  const kept = (mean: number) => ({ mean, low: mean - 0.1, high: mean + 0.1 });
  const rows = [
    rowWith({ embedding: "base", fusion: "none", n: 1, value: null }),
    rowWith({ fusion: "none", n: 1, value: null, heldout: 3 }),
    rowWith({ value: 0.25, heldoutKept: kept(0.3) }),
    rowWith({ fusion: "gradient", value: 1e-3, heldoutKept: kept(0.6) }),
    rowWith({ fusion: "gradient", value: "auto", heldoutKept: kept(0.7) }),
  ];
  const parts = sweepFigures(rows, {
    title: "ridge",
    at: ({ fusion, value }) =>
      fusion === "none" ? undefined : fusion === "sum" ? null : value,
  });
  // Single concepts have no ridge.
  assertEquals(
    parts.map((part) => part.type === "figure" && part.id),
    ["kept", "text"],
  );
  const [{ figure }] = parts as { figure: Figure }[];
  assertEquals(
    figure.data.map(({ name, x, y }) => [name, x, y]),
    [
      ["LoRA, sum, 1/n", ["0.001", "auto"], [0.3, 0.3]],
      ["LoRA, gradient fusion", ["0.001", "auto"], [0.6, 0.7]],
    ],
  );
  // Sums of several factors are several lines.
  const byCount = sweepFigures(
    [2, 4].flatMap((n) =>
      [1 / n, 0.35].map((value) => rowWith({ n, value, heldoutKept: kept(1) }))
    ),
    { title: "n", at: ({ n }) => n },
  ) as unknown as { figure: Figure }[];
  assertEquals(byCount[0].figure.data.map(({ name }) => name), [
    "LoRA, sum, 1/n",
    "LoRA, sum, λ 0.35",
  ]);
});

Deno.test("the best λ has the most identity and still follows its prompts", () => {
  const row = (value: number, heldout: number, text = 1) =>
    rowWith({ value, heldout, text });
  const rows = [
    { ...row(0, 2), fusion: "none" as const, value: null },
    row(0.25, 5),
    row(0.6, 3, 0.91),
    row(1, 2.5, 0.89),
    { ...row(0, 1), fusion: "gradient" as const },
  ];
  assertEquals(bestLambdas(rows), { lora: 0.6 });
});
