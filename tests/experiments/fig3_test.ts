import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { ablation, finishedSeeds } from "../../src/experiments/ablation.ts";
import {
  domainLabel,
  type DomainPlan,
  domainTable,
  fig3,
  shareTable,
} from "../../src/experiments/fig3.ts";
import { referencePictures } from "../../src/experiments/pictures.ts";
import { presetOf } from "../../src/experiments/presets.ts";
import type { AblationPlan } from "../../src/experiments/table2.ts";
import { exists } from "../../src/io/files.ts";
import { type LabOptions, type LabRecord, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { pathOf } from "../../src/lab/store.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = presetOf("ablation");
const settings = {
  ...preset,
  rank: 1,
  train: { ...preset.train, steps: 2, batch: 1 },
  sampling: { ...preset.sampling, steps: 1 },
  gradient: { ...preset.gradient, steps: 1, images: 1 },
};
const labOf = (folder: string): LabOptions => ({
  model: `${folder}/model`,
  clip: `${folder}/clip`,
  store: `${folder}/store`,
  workers: 0,
  backend: "wasm",
});

Deno.test("in-domain and out-domain concepts of a tiny world", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const lab = labOf(folder);
    const plan: DomainPlan = {
      settings,
      inDomain: ["ulla", "finn"],
      prompts: 1,
      seeds: [0],
      alphas: [0, 1],
    };
    const before = tf.memory().numTensors;
    const { report, pictures } = await withLab(
      lab,
      (open) => fig3(open, plan),
    );
    assertEquals(tf.memory().numTensors, before);
    const of = (domain: string) =>
      report.rows.filter((row) => row.domain === domain);
    await t.step("a row an arm, the same in both domains but for words", () => {
      const labels = of("out").map(domainLabel);
      assertEquals(labels, [
        "class word, base model",
        "Textual Inversion",
        "P+",
        "LoRA, α = 0",
        "LoRA, α = 1",
        "LoRA, weight fusion",
        "ED-LoRA, α = 0",
        "ED-LoRA, α = 1",
        "ED-LoRA, gradient fusion",
        "references themselves",
      ]);
      assertEquals(
        of("in").map(domainLabel).filter((label) => !labels.includes(label)),
        ["the look in words, base model"],
      );
      assertEquals(Object.keys(of("in")[0].concepts), ["ulla", "finn"]);
      assertEquals(Object.keys(of("out")[0].concepts), ["pogo", "momo"]);
    });
    await t.step("gains are differences from the class word", () => {
      for (const domain of ["in", "out"]) {
        const [lower, ...rest] = of(domain);
        assertEquals(lower.gain.mean, null);
        for (const { image, gain } of rest) {
          assertAlmostEquals(gain.mean!, image! - lower.image!, 2e-5);
        }
      }
    });
    await t.step("tables fit", () => {
      for (const { head, rows } of [domainTable(report), shareTable(report)]) {
        for (const row of rows) assertEquals(row.length, head.length);
      }
      assertEquals(report.shares.length, 4);
    });
    await t.step("every picture of the grid is there", async () => {
      assertEquals(pictures.map(({ subject }) => subject.name), [
        "ulla",
        "finn",
        "pogo",
        "momo",
      ]);
      for (const { subject, images } of pictures) {
        const inside = ["ulla", "finn"].includes(subject.name);
        assertEquals(subject.references.of, inside ? "drawn" : "art");
        assertEquals(images.size, inside ? 10 : 9);
        for (const id of images.values()) {
          assert(await exists(pathOf.image(lab.store, id)));
        }
      }
    });
    await t.step("a second run finds all and says the same", async () => {
      const again = await withLab(
        { ...lab, runner: nowhere },
        (open) => fig3(open, plan),
      );
      assertEquals(again.report, report);
    });
    await t.step("domains are not mixed up", async () => {
      await assertRejects(
        () =>
          withLab(lab, (open) => fig3(open, { ...plan, inDomain: ["momo"] })),
        Error,
        "niko, finn",
      );
      await assertRejects(
        () =>
          withLab(lab, (open) => fig3(open, { ...plan, outDomain: ["finn"] })),
        Error,
        "identities",
      );
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});

Deno.test("an ablation of in-domain concepts, stopped after its first seed", async () => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const options = labOf(folder);
    const plan: AblationPlan = {
      settings,
      concepts: ["ulla", "niko"],
      prompts: 2,
      seeds: [0, 1],
      embeddings: ["edlora"],
      fusions: ["weight"],
      scale: "custom",
    };
    const run = (
      change: Partial<AblationPlan>,
      more: Partial<LabOptions> = {},
    ) =>
      withLab(
        { ...options, ...more },
        (lab) => ablation(lab, { ...plan, ...change }),
      );
    await assertRejects(
      () => run({ concepts: ["ulla", "momo"] }),
      Error,
      "in-domain concepts only",
    );
    const finished = () =>
      withLab(
        { ...options, runner: nowhere },
        (lab) => finishedSeeds(lab, plan),
      );
    assertEquals(await finished(), []);
    // The second seed begins with the second training.
    let trained = 0;
    const onRecord = ({ stage, done }: LabRecord) => {
      if (stage === "train" && done === 0 && ++trained > 1) {
        throw new Error("stopped");
      }
    };
    await assertRejects(() => run({}, { onRecord }), Error, "stopped");
    assertEquals(await finished(), [0]);
    const part = (await run({ seeds: [0], planned: plan.seeds })).report;
    assertEquals([part.seeds, part.planned], [[0], [0, 1]]);
    assert(part.comparisons.every((c) => c.verdict === "no conclusion"));
    const { report: whole, pictures } = await run({});
    assertEquals(whole.planned, undefined);
    assertEquals(whole.rows.filter(({ seed }) => seed === 0), part.rows);
    assertEquals(whole.rows.length, 2 * part.rows.length);
    assert(whole.retrieval.gallery.includes("ulla (glossy owl)"));
    assert(whole.base.unrelated!.mean !== null);
    for (const { bootstrap, mean } of whole.comparisons) {
      assert(bootstrap!.low! <= mean! && mean! <= bootstrap!.high!);
    }
    const [reference] = await withLab(
      { ...options, runner: nowhere },
      (lab) => referencePictures(lab, pictures[0].subject, 1),
    );
    assertEquals(reference.width, 64);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
