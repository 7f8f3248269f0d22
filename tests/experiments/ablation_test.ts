import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { ablationPlan, evaluate } from "../../src/experiments/evaluators.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import {
  type AblationPlan,
  driftTexts,
} from "../../src/experiments/table2/draw.ts";
import {
  type AblationReport,
  readAblation,
} from "../../src/experiments/table2/json.ts";
import { table2 } from "../../src/experiments/table2/run.ts";
import {
  ablationReport,
  ablationTable,
} from "../../src/experiments/table2/table.ts";
import { exists } from "../../src/io/files.ts";
import { type LabOptions, type LabRecord, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { chosenPrompts, PROMPT_GROUPS } from "../../src/micro/prompts.ts";
import { reportHtml, reportMarkdown } from "../../src/report/document.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = PRESETS.ablation;
const plan = planOf(table2, {
  concepts: ["kuro", "momo"],
  prompts: 2,
  seeds: [0],
  settings: {
    ...preset,
    heldoutPictures: 2,
    rank: 2,
    layers: "attention",
    train: { ...preset.train, steps: 2, batch: 2 },
    sampling: { ...preset.sampling, steps: 2 },
    gradient: {
      ...preset.gradient,
      layers: "attention",
      ...{ steps: 2, images: 1 },
    },
  },
  scale: "quick",
  fusions: ["weight", "gradient", "weight_best_lambda"],
});
const labOf = (folder: string): LabOptions => ({
  model: `${folder}/model`,
  clip: `${folder}/clip`,
  store: `${folder}/store`,
  workers: 0,
  backend: "wasm",
});

async function run(options: LabOptions, own: AblationPlan = plan) {
  const records: LabRecord[] = [];
  const { data, report: document } = await withLab(
    { ...options, onRecord: (record) => records.push(record) },
    (lab) => table2.run(lab, own),
  );
  const report: AblationReport = readAblation(JSON.parse(JSON.stringify(data)));
  // Times differ; nothing else may.
  const text = JSON.stringify(
    report,
    (key, value) =>
      ["timings", "seconds", "fusionSeconds"].includes(key) ? undefined : value,
  );
  return { report, text, records, document };
}

Deno.test("an ablation of a tiny world: schema, resume, workers", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const before = tf.memory().numTensors;
    const first = await run(labOf(folder));
    await t.step(
      "no tensors are left",
      () => assertEquals(tf.memory().numTensors, before),
    );
    await t.step("the report survives JSON", () => {
      const { arms, rows, base, comparisons, retrieval } = first.report;
      assertEquals(Object.keys(arms).length, 6);
      assertEquals(rows.length, 2 * 9);
      assertEquals(arms["lora.weight"].lambda, 0.5);
      assert(comparisons.every((c) => c.verdict === "no conclusion"));
      assert(arms["edlora.gradient"].layers.length > 0);
      assert(retrieval.chance > 0 && retrieval.chance <= 1 / 16);
      for (const { concept, heldout } of rows) {
        assert(heldout! > 0, concept);
      }
      const { heldout } = arms["edlora.gradient"];
      const mean = (arm: string) =>
        rows.filter((row) => row.arm === arm)
          .reduce((sum, row) => sum + row.heldout! / 2, 0);
      assert(Math.abs(heldout!.single.mean! - mean("edlora.single")) < 1e-9);
      assert(Math.abs(base.heldout!.mean! - mean("base")) < 1e-9);
      const { head, rows: cells } = ablationTable(first.report);
      for (const row of cells) assertEquals(row.length, head.length);
    });
    await t.step("the report has every table, figure and picture", async () => {
      const [pictures] = first.document.parts.filter((part) =>
        part.type === "pictures"
      );
      const { sheet } = pictures;
      assertEquals(sheet.columns.length, 10);
      assertEquals(sheet.rows.map(({ label }) => label), [
        ...new Array(2).fill("kuro"),
        ...new Array(2).fill("momo"),
      ]);
      assert(sheet.rows.every(({ cells }) => cells.every((cell) => cell)));
      const markdown = reportMarkdown(first.document);
      for (
        const text of [
          "No conclusion: a few concepts and prompts",
          "| ED-LoRA + gradient fusion",
          "## The paper's claims",
          "| n·r/d in the UNet",
        ]
      ) {
        assert(markdown.includes(text), text);
      }
      const html = await reportHtml(first.document);
      assertEquals(html.match(/class="figure"/g)?.length, 10);
      assertEquals(html.match(/<img class="pixels"/g)?.length, 40);
    });
    await t.step("an arm that ignores its prompts is named", () => {
      const { report, document } = first;
      const of = (arm: string, text: number) =>
        ablationReport({
          ...report,
          rows: report.rows.map((row) => ({
            ...row,
            text: row.text.map(() => row.arm === arm ? text : 1),
          })),
        }, document.parts.find(({ type }) => type === "pictures")!).lead
          .filter((line) => line.includes("ignores its prompts"));
      const [line, ...others] = of("edlora.gradient", 0.85);
      assertEquals(others, []);
      assert(line.startsWith("ED-LoRA + gradient fusion ignores its prompts"));
      assert(line.includes("0.150"), line);
      // A tenth is allowed.
      assertEquals(of("edlora.gradient", 0.95), []);
      assertEquals(of("edlora.gradient", 1.5), []);
    });
    await t.step("every call ends complete", () => {
      const last = new Map(
        first.records.map((record) => [record.stage, record]),
      );
      for (const { done, total } of last.values()) assertEquals(done, total);
      // Two concepts, two embeddings, two steps.
      assertEquals(last.get("train")!.total, 8);
    });
    await t.step("what is in the store is only read", async () => {
      const again = await run({ ...labOf(folder), runner: nowhere });
      assertEquals(again.text, first.text);
    });
    await t.step("another evaluator sees the same pictures", async () => {
      const found = ablationPlan(first.report);
      assertEquals(found.concepts, ["kuro", "momo"]);
      const { image, ceiling, comparisons } = await withLab(
        { ...labOf(folder), runner: nowhere },
        (lab) =>
          evaluate(lab, found, {
            name: "colours",
            embed: (images) =>
              Promise.resolve(images.map(({ data }) => {
                const sum = [0, 0, 0];
                data.forEach((byte, i) => sum[i % 3] += byte);
                const norm = Math.hypot(...sum);
                return Float32Array.from(sum, (v) => v / norm);
              })),
            [Symbol.dispose]: () => {},
          }),
      );
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
      "after a loss of results the numbers are the same",
      async () => {
        const images = (await Array.fromAsync(
          Deno.readDir(`${folder}/store/images`),
        )).map(({ name }) => `${folder}/store/images/${name}`).sort();
        const [{ name }] = await Array.fromAsync(Deno.readDir(images[0]));
        const lost = `${images[0]}/${name}`;
        assert(await exists(lost));
        await Deno.remove(lost);
        // Of measurements some are lost: each is found or made by itself.
        for (
          const [kind, every] of [
            ...[["fused", 1], ["embeddings", 4], ["heldout", 4]] as const,
          ]
        ) {
          const at = `${folder}/store/${kind}`;
          const files = await Array.fromAsync(Deno.readDir(at));
          const lost = files.map(({ name }) => name).sort()
            .filter((_, i) => i % every === 0);
          assert(lost.length > 0, kind);
          for (const name of lost) {
            await Deno.remove(`${at}/${name}`, { recursive: true });
          }
        }
        const again = await run(labOf(folder));
        assertEquals(again.text, first.text);
      },
    );
    await t.step("two workers change nothing", async () => {
      const { report: { rows } } = await run(
        { ...labOf(folder), store: `${folder}/store2`, workers: 2 },
        { ...plan, embeddings: ["edlora"], fusions: ["gradient"] },
      );
      // Fewer arms, so only theirs are compared.
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
    const refused = async (change: Partial<AblationPlan>, why: string) =>
      await assertRejects(
        () => run(labOf(folder), { ...plan, ...change }),
        Error,
        why,
      );
    const { settings } = plan;
    await refused({ concepts: ["nobody"] }, "kuro, lila");
    await refused(
      { concepts: ["momo", "momo"] },
      "different values for --concepts",
    );
    await refused({ prompts: 21 }, "1 to 20");
    await refused({ seeds: [] }, "at least one value for --seeds");
    await refused({ seeds: [1, 1] }, "different values for --seeds");
    await refused(
      { fusions: ["weight", "weight"] },
      "different values for --fusion",
    );
    await refused(
      { settings: { ...settings, rank: 0 } },
      "--rank a whole number from 1",
    );
    assert(!await exists(`${folder}/store`));
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
