import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import {
  domainLabel,
  domainTable,
  fig3,
  shareTable,
} from "../../src/experiments/fig3.ts";
import {
  type ExperimentPreset,
  PRESETS,
} from "../../src/experiments/presets.ts";
import type { AblationPlan } from "../../src/experiments/table2/draw.ts";
import { table2 } from "../../src/experiments/table2/run.ts";
import { type LabOptions, type LabRecord, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = PRESETS.ablation;
const settings: ExperimentPreset = {
  ...preset,
  heldoutPictures: 2,
  rank: 1,
  layers: "attention",
  train: { ...preset.train, steps: 2, batch: 1 },
  sampling: { ...preset.sampling, steps: 1 },
  gradient: {
    ...preset.gradient,
    layers: "attention",
    ...{ steps: 1, images: 1 },
  },
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
    const plan = planOf(fig3, {
      settings,
      inDomain: ["ulla", "finn"],
      prompts: 1,
      alphas: [0, 1],
    });
    const before = tf.memory().numTensors;
    const { data: report, report: document } = await withLab(
      lab,
      (open) => fig3.run(open, plan),
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
        assertEquals([lower.gain.mean, lower.heldoutGain.mean], [null, null]);
        for (const { image, gain, heldout, heldoutGain } of rest) {
          assertAlmostEquals(gain.mean!, image! - lower.image!, 2e-5);
          // An error is better where it is lower; references have none.
          if (heldout === null) assertEquals(heldoutGain.mean, null);
          else {
            const below = lower.heldout! - heldout;
            assertAlmostEquals(heldoutGain.mean!, below, 2e-5);
          }
        }
      }
    });
    await t.step("tables fit", () => {
      for (const { head, rows } of [domainTable(report), shareTable(report)]) {
        for (const row of rows) assertEquals(row.length, head.length);
      }
      assertEquals(report.shares.length, 4);
    });
    await t.step("shares are of what α = 1 gains", () => {
      for (const { domain, method, heldout, image } of report.shares) {
        const at = (alpha: number) =>
          of(domain).find((row) =>
            row.method === method && row.alpha === alpha &&
            row.fusion === "none"
          )!;
        for (
          const [share, gain] of [
            [heldout, "heldoutGain"],
            [image, "gain"],
          ] as const
        ) {
          const whole = at(1)[gain].mean!;
          // Five decimals of a small difference; nothing gained, no share.
          if (share.mean === null) assert(whole < 5e-5);
          else assertAlmostEquals(share.mean * whole, at(0)[gain].mean!, 5e-5);
        }
      }
    });
    await t.step("every picture of the sheet is there", () => {
      const [{ sheet }] = document.parts.filter((part) =>
        part.type === "pictures"
      );
      assertEquals(sheet.rows.map(({ label }) => label), [
        "ulla",
        "finn",
        "pogo",
        "momo",
      ]);
      assertEquals(sheet.columns.length, 1 + 10);
      for (const { label, cells } of sheet.rows) {
        // Identities have no arm that says their look in words.
        const there = cells.filter((cell) => cell).length;
        assertEquals(there, ["ulla", "finn"].includes(label) ? 11 : 10, label);
      }
    });
    await t.step("a second run finds all and says the same", async () => {
      const again = await withLab(
        { ...lab, runner: nowhere },
        (open) => fig3.run(open, plan),
      );
      assertEquals(again.data, report);
    });
    await t.step("domains are not mixed up", async () => {
      await assertRejects(
        () =>
          withLab(
            lab,
            (open) => fig3.run(open, { ...plan, inDomain: ["momo"] }),
          ),
        Error,
        "niko, finn",
      );
      await assertRejects(
        () =>
          withLab(
            lab,
            (open) => fig3.run(open, { ...plan, outDomain: ["finn"] }),
          ),
        Error,
        "kuro, lila",
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
    const plan = planOf(table2, {
      settings,
      concepts: ["ulla", "niko"],
      prompts: 2,
      seeds: [0, 1],
      embeddings: ["edlora"],
      fusions: ["weight"],
      scale: "custom",
    });
    const run = (
      change: Partial<AblationPlan>,
      more: Partial<LabOptions> = {},
    ) =>
      withLab(
        { ...options, ...more },
        (lab) => table2.run(lab, { ...plan, ...change }),
      );
    await assertRejects(
      () => run({ concepts: ["ulla", "momo"] }),
      Error,
      "in-domain concepts only",
    );
    const partial = async () =>
      (await run({ partial: true }, { runner: nowhere })).data;
    await assertRejects(partial, Error, "at least one finished seed");
    // The second seed begins with the second training.
    let trained = 0;
    const onRecord = ({ stage, done }: LabRecord) => {
      if (stage === "train" && done === 0 && ++trained > 1) {
        throw new Error("stopped");
      }
    };
    await assertRejects(() => run({}, { onRecord }), Error, "stopped");
    const part = await partial();
    assertEquals([part.seeds, part.planned], [[0], [0, 1]]);
    assert(part.comparisons.every((c) => c.verdict === "no conclusion"));
    const { data: whole } = await run({});
    assertEquals(whole.planned, undefined);
    assertEquals(whole.rows.filter(({ seed }) => seed === 0), part.rows);
    assertEquals(whole.rows.length, 2 * part.rows.length);
    assert(whole.retrieval.gallery.includes("ulla (glossy owl)"));
    assert(whole.base.unrelated!.mean !== null);
    for (const { bootstrap, mean } of whole.comparisons) {
      assert(bootstrap!.low! <= mean! && mean! <= bootstrap!.high!);
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
