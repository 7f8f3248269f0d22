import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { parseLayout } from "../../src/diffusion/layout.ts";
import { sketchImage } from "../../src/experiments/compose.ts";
import { presetOf } from "../../src/experiments/presets.ts";
import {
  anyOrderShare,
  choices,
  columns,
  groupPrompt,
  REGION_ARMS,
  type RegionOptions,
  regionPictures,
  type RegionRow,
  regionsExperiment,
  sceneLayout,
  scoreOf,
  whoIsThere,
} from "../../src/experiments/regions.ts";
import { exists, writeJson } from "../../src/io/files.ts";
import { decodePng } from "../../src/io/png.ts";
import { identityOf, loadConceptArt } from "../../src/micro/concepts.ts";
import { save } from "../../src/models/checkpoint.ts";
import {
  parseT2IAdapterConfig,
  type T2IAdapter,
  t2iAdapterSpec,
} from "../../src/models/t2i_adapter.ts";
import { initialise } from "../../src/nn/spec.ts";
import { writeTinyWorld } from "./tiny_world.ts";

const preset = presetOf("ablation");

function vector(...values: number[]): Float32Array {
  const norm = Math.hypot(...values);
  return Float32Array.from(values, (v) => v / norm);
}

Deno.test("choices are different, spread and turned round", () => {
  const names = ["a", "b", "c", "d"];
  assertEquals(choices(names, 2, 3), [["a", "b"], ["d", "a"], ["b", "d"]]);
  assertEquals(choices(names, 4, 9), [["a", "b", "c", "d"]]);
  assertEquals(new Set(choices(names, 2, 9).map(String)).size, 6);
  assertThrows(() => choices(names, 5, 1), Error, "1 to 4 of them");
});

Deno.test("prompts say who is where", () => {
  assertEquals(
    groupPrompt(["fox", "owl"], "on grass"),
    "a fox on the left and an owl on the right on grass",
  );
  assertEquals(
    groupPrompt(["a", "b", "c", "d"], "at sea"),
    "an a and a b and a c and a d at sea",
  );
});

Deno.test("layouts of every way are drawn as they stand", () => {
  const scene = {
    concepts: ["kuro", "momo", "pogo"].map(identityOf),
    background: "grass",
    where: "on grass",
    scale: 1,
  };
  const phrase = ({ name }: { name: string }) => `<${name}1> <${name}2>`;
  const layout = (way: Parameters<typeof sceneLayout>[1]) =>
    parseLayout(sceneLayout(scene, way, phrase, preset));
  assertEquals(
    layout("plain").prompt,
    "a <kuro1> <kuro2> on the left and a <momo1> <momo2> in the center and a " +
      "<pogo1> <pogo2> on the right on grass",
  );
  assertEquals(layout("plain").regions, []);
  const regional = layout("regional");
  assertEquals(regional.size, { width: 96, height: 64 });
  assertEquals(
    regional.prompt,
    "a person on the left and an animal in the center and a bird on the " +
      "right on grass",
  );
  assertEquals(regional.regions[1].prompt, "a <momo1> <momo2>");
  // In the middle column, with a margin in which the whole's prompt holds.
  assertEquals(
    Object.entries(regional.regions[1].box!).map(([side, at]) =>
      typeof at === "number" ? `${side} ${at.toFixed(3)}` : at
    ),
    ["top 0.200", "left 0.367", "bottom 0.800", "right 0.633", "fraction"],
  );
  assertEquals(
    layout("regional+negative").regions[1].negative,
    "a <kuro1> <kuro2> and a <pogo1> <pogo2>",
  );
  assertEquals(layout("regional+sketch").conditions.length, 1);
  assertEquals(layout("region-adapters").regions[2].concepts, ["pogo"]);
});

Deno.test("who is there: the window that stands out from backgrounds", () => {
  const identities = [
    { label: "kuro", center: vector(1, 0, 0) },
    { label: "momo", center: vector(0, 1, 0) },
  ];
  const backgrounds = [{
    label: "background (grass)",
    center: vector(0, 0, 1),
  }];
  const see = (...views: Float32Array[]) =>
    whoIsThere(views, identities, backgrounds);
  assertEquals(see(vector(0, 0, 1)), "background");
  assertEquals(see(vector(0.2, 0, 1), vector(0, 1, 0.2)), "momo");
  // Near to kuro, but nearer to nothing: not somebody.
  assertEquals(see(vector(0.9, 0, 1)), "background");
  assertEquals(see(vector(1, 0.9, 0)), "kuro");
});

Deno.test("scores of a picture", () => {
  const row: RegionRow = {
    arm: "x",
    n: 3,
    concepts: ["a", "b", "c"],
    background: "grass",
    picture: 0,
    scale: 1,
    image: "",
    text: 0.5,
    regions: [
      { concept: "a", label: "a", own: 0.9, other: 0.1 },
      { concept: "b", label: "c", own: 0.3, other: 0.1 },
      { concept: "c", label: "background", own: 0.3, other: 0.1 },
    ],
    anyOrder: anyOrderShare(["a", "b", "c"], ["a", "c", "background"]),
  };
  const third = 1 / 3;
  assertEquals(scoreOf(row, "identity"), third);
  assertEquals(scoreOf(row, "leakage"), third);
  assertEquals(scoreOf(row, "missing"), third);
  assertEquals(scoreOf(row, "count"), 0);
  assertEquals(scoreOf(row, "complete"), 0);
  assertEquals(scoreOf(row, "anyOrder"), 2 / 3);
  assertEquals(scoreOf(row, "own"), 0.5);
  assertEquals(
    scoreOf({ ...row, regions: row.regions.slice(0, 2) }, "count"),
    1,
  );
  assertEquals(scoreOf({ ...row, regions: [row.regions[0]] }, "complete"), 1);
  // Somebody who was not asked for is wrong, but not leaked.
  const stranger = { ...row.regions[0], label: "pip" };
  assertEquals(scoreOf({ ...row, regions: [stranger] }, "leakage"), 0);
  assertEquals(scoreOf({ ...row, regions: [stranger] }, "identity"), 0);
});

Deno.test("a sketch has each outline in its square", async () => {
  const art = await loadConceptArt();
  const sketch = sketchImage(
    [
      { concept: "kuro", frame: 0, x: 0, y: 16, side: 32 },
      { concept: "momo", frame: 1, x: 32, y: 16, side: 32 },
    ],
    96,
    64,
    art,
  );
  const lines = columns(3).map(({ x, width }) =>
    sketch.values.filter((v, i) =>
      v === 1 && i % 96 >= x * 96 && i % 96 < (x + width) * 96
    ).length
  );
  assert(lines[0] > 40 && lines[1] > 40, lines.join());
  assertEquals(lines[2], 0);
});

Deno.test("the regions experiment on a tiny world", async (t) => {
  await selectBackend("wasm");
  const folder = await Deno.makeTempDir();
  try {
    const { model, clip } = await writeTinyWorld(folder);
    const config = parseT2IAdapterConfig({
      channels: [8, 16],
      downscale_factor: 4,
      in_channels: 1,
      num_res_blocks: 1,
    });
    const adapter = initialise<T2IAdapter>(t2iAdapterSpec(config), key(9));
    const sketch = `${folder}/sketch`;
    await save(
      `${sketch}/diffusion_pytorch_model.safetensors`,
      t2iAdapterSpec(config),
      adapter,
    );
    await writeJson(`${sketch}/config.json`, config);
    disposeTree(adapter);
    const options: RegionOptions = {
      model,
      clip,
      sketch,
      cache: `${folder}/cache`,
      concepts: ["kuro", "momo", "pogo"],
      counts: [2, 3],
      sets: 1,
      backgrounds: 1,
      pictures: 2,
      seed: 0,
      scales: [1.5],
      settings: {
        ...preset,
        rank: 2,
        train: { ...preset.train, steps: 2, batch: 2 },
        sampling: { ...preset.sampling, steps: 2 },
        gradient: { ...preset.gradient, steps: 2, images: 1 },
      },
      workers: 0,
      backend: "wasm",
      created: "2000-01-01",
    };
    const run = async (o: RegionOptions) => {
      const it = regionsExperiment(o);
      const stages = new Set<string>();
      let next = await it.next();
      for (; !next.done; next = await it.next()) {
        assert(next.value.done <= next.value.total);
        stages.add(next.value.stage);
      }
      return { report: next.value, stages };
    };
    const before = tf.memory().numTensors;
    const { report, stages } = await run(options);
    await t.step("no tensors are left", () => {
      assertEquals(tf.memory().numTensors, before);
    });
    await t.step("every arm, count and picture is there", () => {
      assertEquals(report.arms, [...REGION_ARMS]);
      assertEquals(report.table.length, 2 * REGION_ARMS.length);
      assertEquals(report.rows.length, 2 * (2 * REGION_ARMS.length + 2));
      assertEquals(
        report.resolution.map(({ arm, scale }) => [arm, scale]),
        [
          ["plain.gradient", 1],
          ["plain.gradient", 1.5],
          ["regional.gradient", 1],
          ["regional.gradient", 1.5],
        ],
      );
      assertEquals([...stages], ["train", "fuse", "sample", "score", "time"]);
      for (const row of report.rows) {
        assertEquals(row.regions.length, row.n);
        assert(row.text >= 0);
      }
      assertEquals(report.timing.map(({ regions }) => regions), [
        0,
        1,
        2,
        3,
        4,
      ]);
      assert(report.verdict.startsWith("2 concepts, weight fusion: regions"));
      // Nothing is learned in two steps, so the report says why.
      assert(
        report.verdict.includes("in rendered pictures, the right concept"),
      );
      for (const stage of ["train", "fuse", "sample", "score", "time"]) {
        assert(report.seconds[stage] >= 0, stage);
      }
      assert(JSON.parse(JSON.stringify(report)).format.endsWith("regions 1"));
    });
    await t.step("pictures have their sizes and differ by arm", async () => {
      const scenes = regionPictures(report, options.cache);
      assertEquals(scenes.map(({ n }) => n), [2, 3]);
      const bytes = new Map<string, Uint8Array>();
      for (const [arm, path] of scenes[1].pictures) {
        const picture = decodePng(await Deno.readFile(path));
        assertEquals([picture.width, picture.height], [96, 64], arm);
        bytes.set(arm, picture.data);
      }
      const texts = [...bytes.values()].map((b) => b.join());
      assertEquals(new Set(texts).size, REGION_ARMS.length);
    });
    await t.step("a second run finds everything", async () => {
      const seen = await Deno.stat(
        [...regionPictures(report, options.cache)[0].pictures.values()][1],
      );
      const again = await run({ ...options, timing: false });
      assertEquals(again.report.timing, []);
      assertEquals(again.report.rows, report.rows);
      assertEquals(again.report.table, report.table);
      const [, path] = [
        ...regionPictures(report, options.cache)[0].pictures.values(),
      ];
      assertEquals((await Deno.stat(path)).mtime, seen.mtime);
    });
    await t.step("without a sketch its arms are left out", async () => {
      const { sketch: _, ...rest } = options;
      const { report: less } = await run({
        ...rest,
        timing: false,
        scales: [],
        counts: [2],
      });
      assertEquals(
        less.arms,
        REGION_ARMS.filter((arm) => !arm.includes("sketch")),
      );
    });
    await t.step("bad options are refused before work starts", async () => {
      const refuse = async (change: Partial<RegionOptions>, say: string) => {
        const cache = `${folder}/none`;
        await assertRejects(
          () => regionsExperiment({ ...options, cache, ...change }).next(),
          Error,
          say,
        );
        assert(!await exists(cache));
      };
      await refuse({ counts: [4] }, "counts from 2 to 3");
      await refuse({ counts: [] }, "a number of concepts");
      await refuse({ concepts: ["kuro", "kuro"] }, "different concepts");
      await refuse({ concepts: ["nobody"] }, "nobody");
      await refuse({ arms: ["magic"] }, "arms real");
      await refuse({ scales: [1.1] }, "scales");
      await refuse({ pictures: 0 }, "pictures ≥ 1");
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
