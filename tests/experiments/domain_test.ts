import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { finish } from "../../src/core/finish.ts";
import {
  ablation,
  type AblationOptions,
  ablationPictures,
  finishedSeeds,
} from "../../src/experiments/ablation.ts";
import { ablationSchema } from "../../src/experiments/ablation_schema.ts";
import {
  domainLabel,
  type DomainOptions,
  domainPictures,
  domains,
  domainTable,
  shareTable,
} from "../../src/experiments/domain.ts";
import { store } from "../../src/experiments/pieces.ts";
import { presetOf } from "../../src/experiments/presets.ts";
import { exists } from "../../src/io/files.ts";
import { writeTinyWorld } from "./tiny_world.ts";

await selectBackend("wasm");

const preset = presetOf("ablation");
const common = (folder: string) => ({
  model: `${folder}/model`,
  clip: `${folder}/clip`,
  cache: `${folder}/cache`,
  settings: {
    ...preset,
    rank: 1,
    train: { ...preset.train, steps: 2, batch: 1 },
    sampling: { ...preset.sampling, steps: 1 },
    gradient: { ...preset.gradient, steps: 1, images: 1 },
  },
  workers: 0,
  backend: "wasm" as const,
});

Deno.test("in-domain and out-domain concepts of a tiny world", async (t) => {
  const folder = await Deno.makeTempDir();
  try {
    await writeTinyWorld(folder);
    const options: DomainOptions = {
      ...common(folder),
      inDomain: ["ulla", "finn"],
      prompts: 1,
      seeds: [0],
      alphas: [0, 1],
    };
    const before = tf.memory().numTensors;
    const report = await finish(domains(options));
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
      const rows = await domainPictures(options);
      assertEquals(rows.map(({ concept }) => concept), [
        "ulla",
        "finn",
        "pogo",
        "momo",
      ]);
      for (const { domain, reference, pictures } of rows) {
        assertEquals(reference !== undefined, domain === "in");
        assertEquals(pictures.size, domain === "in" ? 10 : 9);
        for (
          const id of [...pictures.values(), ...(reference ? [reference] : [])]
        ) {
          assert(await exists(store.image(options.cache, id)));
        }
      }
    });
    await t.step("a second run finds all and says the same", async () => {
      const stages = new Map<string, number>();
      const again = await finish(domains(options), ({ stage }) => {
        stages.set(stage, (stages.get(stage) ?? 0) + 1);
      });
      assertEquals(again, report);
      assert([...stages.values()].every((count) => count === 1));
    });
    await t.step("domains are not mixed up", async () => {
      await assertRejects(
        () => finish(domains({ ...options, inDomain: ["momo"] })),
        Error,
        "niko, finn",
      );
      await assertRejects(
        () => finish(domains({ ...options, outDomain: ["finn"] })),
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
    const options: AblationOptions = {
      ...common(folder),
      concepts: ["ulla", "niko"],
      prompts: 2,
      seeds: [0, 1],
      embeddings: ["edlora"],
      fusions: ["weight"],
      scale: "custom",
      version: "test",
      created: "2000-01-01",
    };
    await assertRejects(
      () => finish(ablation({ ...options, concepts: ["ulla", "momo"] })),
      Error,
      "in-domain concepts only",
    );
    assertEquals(await finishedSeeds(options), []);
    const run = ablation(options);
    let last = "";
    for (let next = await run.next(); !next.done; next = await run.next()) {
      // The second seed begins where the first one ended.
      if (last === "score" && next.value.stage !== "score") break;
      last = next.value.stage;
    }
    await run.return(undefined as never);
    const seeds = await finishedSeeds(options);
    assertEquals(seeds, [0]);
    const part = ablationSchema.parse(JSON.parse(JSON.stringify(
      await finish(ablation({ ...options, seeds, planned: options.seeds })),
    )));
    assertEquals([part.seeds, part.planned], [[0], [0, 1]]);
    assert(part.comparisons.every((c) => c.verdict === "no conclusion"));
    const whole = await finish(ablation(options));
    assertEquals(whole.planned, undefined);
    assertEquals(
      whole.rows.filter(({ seed }) => seed === 0),
      part.rows,
    );
    assertEquals(whole.rows.length, 2 * part.rows.length);
    assert(whole.retrieval.gallery.includes("ulla (glossy owl)"));
    assert(whole.base.unrelated!.mean !== null);
    for (const { bootstrap, mean } of whole.comparisons) {
      assert(bootstrap!.low! <= mean! && mean! <= bootstrap!.high!);
    }
    const [{ reference }] = await ablationPictures(options, 1);
    assert(await exists(store.image(options.cache, reference!)));
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
