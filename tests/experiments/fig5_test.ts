import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { parseLayout, resolveLayout } from "../../src/diffusion/layout.ts";
import { shapeMap } from "../../src/diffusion/regions.ts";
import { actingSites } from "../../src/diffusion/region_sites.ts";
import { comparisonTable } from "../../src/evaluation/compare.ts";
import { bestOrder, identify } from "../../src/evaluation/regions.ts";
import { windowsOf } from "../../src/experiments/fig5/score.ts";
import { fig5, type RegionPlan } from "../../src/experiments/fig5/run.ts";
import {
  knowsPlaces,
  REGION_ARMS,
  sceneLayout,
} from "../../src/experiments/fig5/scenes.ts";
import {
  readRegions,
  REGION_SCORES,
  regionFigures,
  type RegionFinding,
  type RegionRow,
  type RegionScore,
  regionTable,
  summarise,
} from "../../src/experiments/fig5/table.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import { type LabOptions, type LabRecord, withLab } from "../../src/lab/lab.ts";
import { nowhere } from "../../src/lab/runner.ts";
import { artHash, pathOf } from "../../src/lab/store.ts";
import { exists, readJson, writeJson } from "../../src/io/files.ts";
import { decodePng } from "../../src/io/png.ts";
import { identityOf, loadConceptArt } from "../../src/micro/concepts.ts";
import {
  captionOf,
  choices,
  columns,
  groupPrompt,
  SCENE_BACKGROUNDS,
  sketchOfScene,
} from "../../src/micro/group_scene.ts";
import { sketchImage } from "../../src/micro/sketch.ts";
import { save } from "../../src/models/checkpoint.ts";
import { parseUNetConfig } from "../../src/models/config.ts";
import { loadTokenizer } from "../../src/models/tokenizer.ts";
import {
  parseT2IAdapterConfig,
  type T2IAdapter,
  t2iAdapterSpec,
} from "../../src/models/t2i_adapter.ts";
import {
  attentionGrids,
  type UNet,
  unet,
  unetSpec,
} from "../../src/models/unet.ts";
import { initialise } from "../../src/nn/spec.ts";
import { writeTinyWorld } from "./tiny_world.ts";

const preset = PRESETS.ablation;

const scoreOf = (row: RegionRow, score: RegionScore) =>
  REGION_SCORES[score].of(row);

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
    column: 32,
  };
  const layout = (way: string) => parseLayout(sceneLayout(scene, way, preset));
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
  const { rows } = regional.regions[1].mask as { rows: readonly string[] };
  assertEquals(rows.length, 20);
  assertEquals(rows.map((row) => row.includes("#")).indexOf(true), 4);
  assertEquals(rows.map((row) => row.includes("#")).lastIndexOf(true), 15);
  assertEquals(rows[4], ".".repeat(23) + "#".repeat(14) + ".".repeat(23));
  assertEquals(
    layout("regional+negative").regions[1].negative,
    "a <kuro1> <kuro2> and a <pogo1> <pogo2>",
  );
  assertEquals(layout("regional+sketch").conditions.length, 1);
  assertEquals(layout("region-adapters").regions[2].concepts, ["pogo"]);
});

async function embeddedUNet() {
  return parseUNetConfig(await readJson("models/micro/unet/config.json"));
}

function embeddedScene(n: number, scale: number, column = 64) {
  const concepts = ["kuro", "momo", "pogo", "zorp"].slice(0, n).map(identityOf);
  return sceneLayout(
    { concepts, background: "grass", where: "on grass", scale, column },
    "regional",
    preset,
  );
}

Deno.test("columns: windows as large as concepts, outlines as wide as regions", () => {
  assertEquals(windowsOf(32), { sides: [0.8, 1], step: 0.25 });
  const wide = windowsOf(64).sides.map((share) => Math.round(64 * share));
  assertEquals(wide, [38, 48]);
  const concepts = ["kuro", "momo"].map(identityOf);
  const [left, right] = sketchOfScene({ concepts, scale: 1.5, column: 64 });
  assertEquals(left, { concept: "kuro", frame: 0, x: 15, y: 15, side: 67 });
  assertEquals([right.concept, right.x], ["momo", 15 + 96]);
});

Deno.test("regions act at every cross-attention site of the embedded UNet", async () => {
  for (const n of [2, 3, 4]) {
    for (const column of [32, 48, 64]) {
      for (const scale of [1, 1.25, 1.5, 2]) {
        assertEquals(
          await actingSites(
            "models/micro",
            embeddedScene(n, scale, column),
          ),
          { acting: 10, all: 10 },
          `${n} concepts, columns of ${column}, scale ${scale}`,
        );
      }
    }
    const { regions } = await resolveLayout(parseLayout(embeddedScene(n, 1)));
    regions.forEach(({ shape }, i) => {
      const grid = (height: number) => {
        const width = n * height;
        const map = shapeMap(shape, height, width);
        return Array.from(
          { length: height },
          (_, y) =>
            [...map.subarray(y * width, (y + 1) * width)]
              .map((v) => v ? "#" : ".").join(""),
        );
      };
      const row = (inside: string) => {
        const outside = ".".repeat(inside.length);
        return outside.repeat(i) + inside + outside.repeat(n - 1 - i);
      };
      // A cell's margin on each side, so that neighbours never touch.
      const [none, wide] = [row("........"), row(".######.")];
      assertEquals(
        grid(8),
        [none, none, wide, wide, wide, wide, none, none],
      );
      const [empty, small] = [row("...."), row(".##.")];
      assertEquals(grid(4), [empty, small, small, empty]);
    });
  }
});

Deno.test("attention grids are those of the UNet's own calls", async () => {
  await selectBackend("wasm");
  const config = await embeddedUNet();
  const params = initialise<UNet>(unetSpec(config), key(1));
  try {
    // Three columns at scale 1.25: a width that does not halve evenly.
    const seen: { height: number; width: number }[] = [];
    tf.tidy(() => {
      unet(
        params,
        config,
        tf.zeros([1, 20, 30, config.in_channels]),
        [0],
        tf.zeros<tf.Rank.R3>([1, 4, 96]),
        {
          crossAttend({ height, width }) {
            seen.push({ height, width });
            return undefined;
          },
        },
      );
    });
    assertEquals(attentionGrids(config, { height: 20, width: 30 }), seen);
  } finally {
    disposeTree(params);
  }
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
    identify(views, identities, backgrounds);
  assertEquals(see(vector(0, 0, 1)), { label: "background", seen: [] });
  assertEquals(see(vector(0.2, 0, 1), vector(0, 1, 0.2)).label, "momo");
  // Near to kuro, but nearer to nothing: not somebody.
  assertEquals(see(vector(0.9, 0, 1)), { label: "background", seen: [] });
  assertEquals(see(vector(1, 0.9, 0)), { label: "kuro", seen: ["kuro"] });
  // Momo stands out most; kuro is in another window all the same.
  assertEquals(
    see(vector(0.8, 0, 0.6), vector(0, 1, 0), vector(1, 0, 0.9)),
    { label: "momo", seen: ["momo", "kuro"] },
  );
});

/** A region in which somebody stands out most, and others are seen. */
function finding(
  concept: string,
  label: string,
  ...others: string[]
): RegionFinding {
  const seen = label === "background" ? [] : [label, ...others];
  return { concept, label, seen, own: concept === label ? 0.9 : 0.3, other: 0 };
}

function picture(
  regions: readonly RegionFinding[],
  change: Partial<RegionRow> = {},
): RegionRow {
  const concepts = regions.map(({ concept }) => concept);
  return {
    arm: "x",
    n: concepts.length,
    concepts,
    background: "grass",
    picture: 0,
    scale: 1,
    image: "",
    text: 0.5,
    regions,
    order: bestOrder(concepts, regions),
    ...change,
  };
}

Deno.test("scores of a picture", () => {
  const third = 1 / 3;
  const row = picture([
    finding("a", "a", "b"),
    finding("b", "c"),
    finding("c", "background"),
  ]);
  assertEquals(scoreOf(row, "identity"), third);
  assertEquals(scoreOf(row, "replaced"), third);
  // In the first region b is seen beside a.
  assertEquals(scoreOf(row, "leakage"), 2 / 3);
  assertEquals(scoreOf(row, "missing"), third);
  assertEquals(scoreOf(row, "occupied"), 0);
  assertEquals(scoreOf(row, "complete"), 0);
  assertEquals(row.order, ["a", "c", "b"]);
  assertEquals(scoreOf(row, "anyOrder"), 2 / 3);
  assertEquals(scoreOf(row, "anyOrderLeakage"), third);
  assertEquals(scoreOf(row, "own"), 0.5);
  // Whoever stands out, "own" is nearer than the other two or it is not.
  assertEquals(scoreOf(row, "nearest"), 1);
  const [near, far] = [finding("a", "c"), { ...finding("b", "b"), other: 1 }];
  assertEquals(scoreOf(picture([near, far]), "nearest"), 0.5);
  const both = picture(row.regions.slice(0, 2));
  assertEquals(scoreOf(both, "occupied"), 1);
  assertEquals(scoreOf(picture([finding("a", "a")]), "complete"), 1);
  // Somebody who was not asked for is wrong, but not leaked.
  const stranger = picture([finding("a", "pip", "kiki")]);
  assertEquals(scoreOf(stranger, "replaced"), 0);
  assertEquals(scoreOf(stranger, "leakage"), 0);
  assertEquals(scoreOf(stranger, "identity"), 0);
});

Deno.test("the order that suits a picture best", () => {
  const order = (...regions: RegionFinding[]) => picture(regions).order;
  assertEquals(
    order(finding("a", "b"), finding("b", "c"), finding("c", "a")),
    ["b", "c", "a"],
  );
  // One concept twice: one of the two regions is somebody else's.
  const twice = picture([finding("a", "b"), finding("b", "b")]);
  assertEquals(scoreOf(twice, "anyOrder"), 0.5);
  assertEquals(scoreOf(twice, "anyOrderLeakage"), 0.5);
  assertEquals(
    scoreOf(picture([finding("a", "b"), finding("b", "a")]), "anyOrderLeakage"),
    0,
  );
});

Deno.test("no prompt and no caption of a scene is cut", async () => {
  assertEquals(SCENE_BACKGROUNDS.length, 8);
  const folder = "models/micro";
  const all = ["kuro", "momo", "pogo", "zorp", "lila"].map(identityOf);
  const texts = SCENE_BACKGROUNDS.flatMap(({ phrases: [where], word }) =>
    [2, 3, 4, 5].flatMap((n) => {
      const concepts = all.slice(0, n);
      const scene = { concepts, where, background: word, scale: 1, column: 64 };
      const { prompt } = sceneLayout(scene, "plain", preset);
      return [prompt, captionOf(scene, preset.textPrefix)];
    })
  );
  // Each learned word is one token once concepts are loaded.
  const words = texts.flatMap((text) => text.match(/<[^<>\s]+>/g) ?? []);
  const plain = await loadTokenizer(`${folder}/tokenizer`);
  const model = plain.withAddedTokens([...new Set(words)]);
  const clip = await loadTokenizer("models/micro/clip_b");
  for (const text of texts) {
    assertEquals(model.encode(text).truncated, 0, text);
    if (!text.includes("<")) assertEquals(clip.encode(text).truncated, 0, text);
  }
});

Deno.test("comparisons leave out places that an arm was not told", () => {
  // Regions have every concept in its place, the plain prompt has none.
  const rows = [3, 4].flatMap((n) =>
    [["a", "b"], ["b", "a"]].flatMap((first) => {
      const names = [...first, "c", "d"].slice(0, n);
      const of = (arm: string, labelOf: (name: string) => string) =>
        [0, 1].map((i) =>
          picture(names.map((name) => finding(name, labelOf(name))), {
            arm,
            picture: i,
          })
        );
      return [
        ...of("regional.gradient", (name) => name),
        ...of("plain.gradient", () => "background"),
      ];
    })
  );
  const { comparisons } = summarise(rows);
  const of = (n: number) =>
    comparisons.filter(({ id }) => id.startsWith(`${n}:`));
  assertEquals(of(3).length, 7);
  assertEquals(of(4).map(({ score }) => score), [
    "identity, any order ↑",
    "another seen, any order ↓",
  ]);
  const [identity, nearest, , leakage] = of(3);
  assertEquals([identity.mean, identity.n, identity.wins], [1, 2, 2]);
  assertEquals(identity.verdict, "shown");
  assertEquals([nearest.mean, nearest.verdict], [0, "not shown"]);
  // No other concept is seen in either.
  assertEquals([leakage.mean, leakage.wins], [0, 0]);
  assertEquals(leakage.verdict, "not shown");
  const [row] = comparisonTable({ comparisons }).rows;
  assertEquals(row.slice(1), [
    ...["identity per region ↑", "+1.000", "1.000 to 1.000"],
    ...["1.000 to 1.000", "2/2", "shown"],
  ]);
});

Deno.test("which arms know who is where", () => {
  assert(knowsPlaces("plain.weight", 3) && knowsPlaces("switch", 2));
  assert(!knowsPlaces("plain.weight", 4) && !knowsPlaces("composite", 4));
  assert(knowsPlaces("regional.weight", 4) && knowsPlaces("real", 4));
});

Deno.test("the hash of the art is that of its sprites", async () => {
  const art = (...names: string[]) => ({
    sprites: new Map(
      names.map((name, i) => [name, { side: 1, data: Uint8Array.of(i) }]),
    ),
  });
  const hash = await artHash(art("a", "b"));
  assertEquals(await artHash(art("a", "b")), hash);
  assert(await artHash(art("b", "a")) !== hash);
  assert(await artHash(art("a")) !== hash);
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
      channels: [16],
      downscale_factor: 8,
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
    const lab: LabOptions = {
      ...{ model, clip, store: `${folder}/store` },
      ...{ networks: { sketch }, workers: 0, backend: "wasm" },
    };
    const plan = planOf(fig5, {
      concepts: ["kuro", "momo", "pogo"],
      counts: [2, 3],
      column: 32,
      sets: 1,
      backgrounds: 1,
      pictures: 2,
      seed: 0,
      scales: [1.5],
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
    });
    const run = async (
      change: Partial<RegionPlan> = {},
      more: Partial<LabOptions> = {},
    ) => {
      const stages = new Set<string>();
      const onRecord = ({ stage, done, total }: LabRecord) => {
        assert(done <= total);
        stages.add(stage);
      };
      const { data: report } = await withLab(
        { ...lab, onRecord, ...more },
        (open) => fig5.run(open, { ...plan, ...change }),
      );
      return { report, stages };
    };
    const before = tf.memory().numTensors;
    const { report, stages } = await run();
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
      assertEquals([...stages], ["train", "fuse", "compose", "embed"]);
      for (const row of report.rows) {
        assertEquals(row.regions.length, row.n);
        assert(row.text >= 0);
      }
      // One choice of concepts proves nothing.
      for (const { n, high, bootstrap, verdict } of report.comparisons) {
        assertEquals(n, 1);
        assertEquals(high, null);
        assert(Number.isFinite(bootstrap!.high));
        assertEquals(verdict, "no conclusion");
      }
      const { sites } = report.regions;
      assertEquals(sites.length, 3);
      assertEquals(sites[0], { n: 2, scale: 1, acting: 4, all: 4 });
      assertEquals(regionTable(report).rows.length, report.table.length);
      assertEquals(
        regionFigures(report).map(([id]) => id),
        ["identity", "nearest", "leakage"],
      );
      const stored = JSON.parse(JSON.stringify(report));
      // Of an older document the pictures are enough.
      const { regions, windows, ...others } = stored;
      const old = {
        ...others,
        ...{ format: "mix-of-show regions 4", table: [], comparisons: [] },
        settings: { regions, windows },
      };
      const { settings: _, ...read } = readRegions(old) as unknown as {
        settings: unknown;
      };
      assertEquals(read as unknown, stored);
    });
    await t.step("pictures have their sizes and differ by arm", async () => {
      const texts = new Set<string>();
      for (const { arm, n, picture, scale, image } of report.rows) {
        if (n !== 3 || picture !== 0 || scale !== 1) continue;
        const bytes = await Deno.readFile(pathOf.image(lab.store, image));
        const { width, height, data } = decodePng(bytes);
        assertEquals([width, height], [96, 64], arm);
        texts.add(data.join());
      }
      assertEquals(texts.size, REGION_ARMS.length);
    });
    await t.step("a second run only reads", async () => {
      const again = await run({}, { runner: nowhere });
      assertEquals(again.report.rows, report.rows);
      assertEquals(again.report.table, report.table);
    });
    await t.step("without a sketch its arms are left out", async () => {
      const { report: less } = await run(
        { scales: [], counts: [2] },
        { networks: {} },
      );
      assertEquals(
        less.arms,
        REGION_ARMS.filter((arm) => !arm.includes("sketch")),
      );
    });
    await t.step("bad options are refused before work starts", async () => {
      const refuse = async (change: Partial<RegionPlan>, say: string) => {
        const store = `${folder}/none`;
        await assertRejects(() => run(change, { store }), Error, say);
        assert(!await exists(store));
      };
      await refuse({ counts: [4] }, "1 to 3 of them");
      await refuse({ counts: [] }, "at least one value for --counts");
      await refuse({ concepts: ["kuro", "kuro"] }, "different values");
      await refuse({ concepts: ["nobody"] }, "nobody");
      await refuse({ arms: ["magic"] }, "--arms real");
      await refuse({ counts: [1] }, "from 2");
      await refuse({ scales: [1.1] }, "multiples of 8 pixels");
      await refuse({ column: 65 }, "--column a whole number from 32 to 64");
      await refuse({ pictures: 0 }, "--pictures a whole number from 1");
      await refuse({ backgrounds: 9 }, "from 1 to 8");
      const settings = {
        ...plan.settings,
        textPrefix: "a photo of a photo of a photo of ",
      };
      await refuse({ settings }, "prompts of at most 24 tokens");
    });
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
});
