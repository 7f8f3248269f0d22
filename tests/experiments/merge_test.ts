import { assert, assertEquals, assertRejects } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { bytesTable, cost, featureBytes } from "../../src/experiments/cost.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { federated } from "../../src/experiments/federated.ts";
import { fig4, fig4Table } from "../../src/experiments/fig4.ts";
import { fig7 } from "../../src/experiments/fig7.ts";
import { mergeLoras } from "../../src/experiments/merge.ts";
import { mergeTable } from "../../src/experiments/merge_table.ts";
import { MERGE_WAYS } from "../../src/experiments/merge_ways.ts";
import { noiseOffset } from "../../src/experiments/noise_offset.ts";
import {
  type ExperimentPreset,
  PRESETS,
} from "../../src/experiments/presets.ts";
import { DEVELOPMENT_CONCEPTS } from "../../src/experiments/subjects.ts";
import { ratesOf, table1 } from "../../src/experiments/table1.ts";
import {
  armLabel,
  conceptTable,
  methodTable,
} from "../../src/experiments/table1_table.ts";
import { MERGE_METHODS } from "../../src/fusion/mergers.ts";
import { withLab } from "../../src/lab/lab.ts";
import { parseUNetConfig } from "../../src/models/config.ts";
import { unetSpec } from "../../src/models/unet.ts";
import { close } from "../helpers.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const { ablation } = PRESETS;
const settings: ExperimentPreset = {
  ...ablation,
  heldoutPictures: 2,
  rank: 1,
  layers: "attention",
  train: { ...ablation.train, steps: 3, batch: 1 },
  sampling: { ...ablation.sampling, steps: 1 },
  gradient: {
    ...ablation.gradient,
    layers: "attention",
    ...{ steps: 1, images: 2 },
  },
};
const concepts = DEVELOPMENT_CONCEPTS.slice(0, 2);

/** Ways that combine while sampling. */
const COMPOSED = [
  ...["switch", "composite", "w-switch", "w-composite"],
  ...["regional", "free-fuse", "clora"],
];

Deno.test("new experiments on a tiny world", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const options = { model, clip, store: `${folder}/store`, workers: 0 };
    await withLab({ ...options, backend: "wasm" }, async (lab) => {
      await t.step("merge: a row per way", async () => {
        const plan = planOf(mergeLoras, {
          ...{ settings, concepts, prompts: 1, rounds: 2 },
          ways: [
            "average",
            "sum",
            "ties",
            "regmean",
            "published",
            "iteris",
            "orthogonal",
            "joint",
            ...COMPOSED,
          ],
        });
        const { data: { rows }, report } = await mergeLoras.run(lab, plan);
        assertEquals(rows.map(({ way }) => way), [
          "base",
          "single",
          ...plan.ways,
        ]);
        assertEquals(rows.map(({ needs }) => needs), [
          ...["", "", "nothing", "nothing", "nothing"],
          ...["statistics", "statistics", "runs", "training", "pictures"],
          ...COMPOSED.map(() => "nothing"),
        ]);
        // No two ways give one model.
        const errors = rows.map(({ heldout }) => heldout.mean);
        const models = rows.length - COMPOSED.length;
        assertEquals(new Set(errors.slice(0, models)).size, models);
        // What is combined while sampling has pictures, but no model.
        assertEquals(errors.slice(models), COMPOSED.map(() => null));
        const shown = Object.fromEntries(
          rows.map(({ way, image, text, masked }) =>
            [way, [image, text, masked].join()] as const
          ),
        );
        // A prompt that names one concept gives it every turn and all weight: it
        // is drawn alone, as in a region that is everywhere.
        assertEquals(shown["w-switch"], shown["w-composite"]);
        assertEquals(shown["w-switch"], shown.single);
        assertEquals(shown.regional, shown.single);
        const others = ["switch", "composite", "w-switch", "average"];
        assertEquals(
          new Set(others.map((way) => shown[way])).size,
          others.length,
        );
        assert(rows.every(({ image }) => image > 0));
        // A client that sends statistics sends more; joint training sends none.
        const bytes = Object.fromEntries(
          rows.map((row) => [row.way, row.bytes]),
        );
        assert(bytes.regmean! > bytes.average! && bytes.average! > 0);
        assertEquals([bytes.joint, bytes.base], [null, null]);
        const table = mergeTable(rows);
        assertEquals(
          table.rows.filter(([, , error]) => error.endsWith("*")).length,
          1,
        );
        assertEquals(report.parts.length, 3);
        await assertRejects(
          () => mergeLoras.run(lab, { ...plan, concepts: [concepts[0]] }),
          Error,
          "at least two",
        );
      });
      await t.step("fig7: an arm per embedding and fusion, pairs", async () => {
        const plan = planOf(fig7, { settings, concepts, prompts: 1 });
        const { data, report } = await fig7.run(lab, plan);
        assertEquals(
          data.rows.map(({ embedding, fusion }) => `${embedding}.${fusion}`),
          ["lora", "edlora"].flatMap((embedding) =>
            ["none", "weight", "gradient"].map((one) => `${embedding}.${one}`)
          ),
        );
        const errors = data.rows.map(({ heldout }) => heldout.mean);
        assertEquals(new Set(errors).size, errors.length);
        const [pair] = data.pairs;
        assertEquals(pair.concepts, [concepts[0], concepts[1]]);
        // Regions draw other pictures than one prompt, of the same noise.
        assert(pair.own.regions !== pair.own.prompt);
        assert(pair.own.regions !== pair.other.regions);
        assertEquals(data.comparisons.length, 2);
        assertEquals(report.parts.length, 5);
        await assertRejects(
          () => fig7.run(lab, { ...plan, concepts: [concepts[0]] }),
          Error,
          "at least two",
        );
      });
      await t.step("table1: every method alone and fused", async () => {
        const plan = planOf(table1, {
          ...{ settings, concepts, prompts: 1 },
          methods: ["p+", "custom-diffusion", "lora", "ed-lora"],
        });
        const { data } = await table1.run(lab, plan);
        assertEquals(data.rows.map(armLabel), [
          "class word, base model",
          ...plan.methods.flatMap((m) => [`${m}, alone`, `${m}, fused`]),
        ]);
        // Tokens side by side are the tokens: fusion changes nothing.
        const [, alone, fused] = data.rows;
        assertEquals(fused.heldout.mean, alone.heldout.mean);
        const [own, merged] = data.rows.slice(3, 5);
        assert(own.heldout.mean !== merged.heldout.mean);
        assertEquals(data.comparisons.length, 10);
        assertEquals(methodTable(data).rows.length, 9);
        assertEquals(conceptTable(data).head.length, 3);
      });
      await t.step("noise-offset: an arm per offset", async () => {
        const plan = planOf(noiseOffset, {
          ...{ settings, concepts: concepts.slice(0, 1), prompts: 1 },
          ...{ seeds: [0], offsets: [0, 0.1] },
        });
        const { data } = await noiseOffset.run(lab, plan);
        assertEquals(data.rows.map(({ offset }) => offset), [0, 0.1]);
        assert(data.rows[0].heldout.mean !== data.rows[1].heldout.mean);
        assertEquals(data.comparisons.length, 2);
        await assertRejects(
          () => noiseOffset.run(lab, { ...plan, offsets: [0.1, 0.2] }),
          Error,
          "0 and another",
        );
      });
      await t.step("federated: files, FedAvg and noise", async () => {
        const plan = planOf(federated, {
          ...{ settings, concepts, prompts: 1, noise: [0, 10] },
        });
        const { data: { rows } } = await federated.run(lab, plan);
        assertEquals(rows.map(({ arm }) => arm), [
          ...["single", "fedavg", "models"],
          ...[0, 10],
        ]);
        const errors = rows.map(({ heldout }) => heldout.mean);
        assertEquals(new Set(errors).size, rows.length);
        assert(rows[3].bytes! > rows[1].bytes!);
        await assertRejects(
          () => federated.run(lab, { ...plan, noise: [1] }),
          Error,
          "a scale of 0",
        );
      });
      await t.step("fig4: error left by solver and stage", async () => {
        const plan = planOf(fig4, {
          ...{ settings, concepts, iterations: [1, 20], ridges: [1e-3] },
        });
        const { data } = await fig4.run(lab, plan);
        assertEquals(data.rows.length, 4);
        const [, one, twenty, closed] = data.rows;
        for (const stage of ["textEncoder", "kv", "spatial"] as const) {
          // More iterations leave less, the minimiser leaves least.
          assert(twenty.left[stage] < one.left[stage], stage);
          assert(closed.left[stage] < one.left[stage], stage);
        }
        assertEquals(fig4Table(data).rows.length, 4);
      });
      await t.step("cost: bytes and seconds", async () => {
        const plan = planOf(cost, { settings, concepts, counts: [1, 2] });
        const { data } = await cost.run(lab, plan);
        assertEquals(
          data.centre.map(({ n, solver }) => `${solver} ${n}`),
          [1, 2].flatMap((n) => plan.solvers.map((one) => `${one} ${n}`)),
        );
        assert(data.client.published > data.client.concept);
        assertEquals(bytesTable(data.bytes).rows.length, 2);
        await assertRejects(
          () => cost.run(lab, { ...plan, counts: [3] }),
          Error,
          "counts up to 2",
        );
      });
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("SD 1.5's features take 5.5 GB per concept, Gram matrices 0.2", () => {
  const { layers, features, grams } = featureBytes(
    "SD 1.5",
    unetSpec(parseUNetConfig({ cross_attention_dim: 768 })),
    { side: 64, steps: 20, images: 1 },
  );
  assertEquals(layers, 96);
  // By hand: 6 layers × 20 steps × 4 bytes of 5 blocks of 4096 · 320, 1024 · 640
  // and 256 · 1280, and one of 64 · 1280.
  const rows = 5 * (4096 * 320 + 1024 * 640 + 256 * 1280) + 64 * 1280;
  assertEquals(features, 6 * 20 * 4 * rows);
  close(features / 1e9, 5.5, 0.1);
  // Four distinct inputs per block.
  assertEquals(grams, 4 * 4 * (5 * (320 ** 2 + 640 ** 2) + 6 * 1280 ** 2));
});

Deno.test("rates follow the preset's, by what the method's are to the paper's", () => {
  const { lr } = ablation.train;
  assertEquals(ratesOf(ablation, "ed-lora"), lr);
  const k = lr!.unet / 1e-4;
  close(ratesOf(ablation, "dreambooth").unet / (5e-6 * k), 1, 1e-9);
  assertEquals(ratesOf(ablation, "p+").unet, 0);
});

Deno.test("every merger is in the table, under one name", () => {
  const ids = MERGE_WAYS.map(({ id }) => id);
  assertEquals(new Set(ids).size, ids.length);
  const used = new Set(MERGE_WAYS.flatMap(({ how }) => {
    const found = how?.({
      ...{ n: 2, counts: [1, 1], captions: ["a"] },
      plan: planOf(mergeLoras, {}) as never,
    });
    return found?.type === "merge" ? [found.settings.method] : [];
  }));
  assertEquals(MERGE_METHODS.filter((name) => !used.has(name)), []);
});
