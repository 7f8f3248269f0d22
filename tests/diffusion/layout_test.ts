import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { disposeTree } from "../../src/core/tree.ts";
import type { ConditionNetwork } from "../../src/diffusion/conditions.ts";
import {
  checkLayout,
  drawLayout,
  type LayoutInput,
  layoutJsonSchema,
  modelSize,
  parseLayout,
  prepareLayout,
  readLayout,
  resolveLayout,
} from "../../src/diffusion/layout.ts";
import {
  generate,
  type PipelineOptions,
  toPixels,
} from "../../src/diffusion/pipeline.ts";
import { key } from "../../src/core/random.ts";
import { encodePng, type Pixels } from "../../src/io/png.ts";
import {
  type ControlNet,
  parseControlNetConfig,
} from "../../src/models/controlnet.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import {
  loadT2IAdapter,
  parseT2IAdapterConfig,
  type T2IAdapter,
} from "../../src/models/t2i_adapter.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import {
  fixtureJson,
  fixturePath,
  forEachBackend,
  noLeak,
} from "../helpers.ts";

const left = { top: 0, left: 0, bottom: 1, right: 0.5 };
const right = { top: 0, left: 0.5, bottom: 1, right: 1 };
const everything = { top: 0, left: 0, bottom: 1, right: 1 };

/** The message a document is refused with. */
function refused(document: unknown): string {
  try {
    parseLayout(document, "scene.json");
  } catch (error) {
    return (error as Error).message;
  }
  return "accepted";
}

Deno.test("defaults are filled in", () => {
  const layout = parseLayout({ prompt: "a cat" });
  assertEquals(layout.sampler, "dpmpp_2m");
  assertEquals(layout.regional, {
    replaceRatio: 1,
    start: 0,
    end: 1,
    feather: 0,
  });
  assertEquals(layout.limits, { regions: 8, overlap: 0.5 });
  const schema = layoutJsonSchema() as {
    required: string[];
    properties: Record<string, unknown>;
  };
  assertEquals(schema.required, ["prompt"]);
  assert("regions" in schema.properties);
});

const bad: [string, Record<string, unknown>, string][] = [
  ["an unknown key", { promt: "x" }, 'Unrecognized key: "promt"'],
  ["a sampler", { sampler: "magic" }, "sampler: "],
  ["steps", { steps: 0 }, "steps: "],
  [
    "off the canvas",
    { regions: [{ box: { ...left, right: 1.5 }, prompt: "x" }] },
    "regions.0.box.right: 1.5 is off the canvas, 0 to 1 (pixels need",
  ],
  [
    "off the canvas in pixels",
    {
      size: { width: 64, height: 32 },
      regions: [{
        box: { top: 0, left: 0, bottom: 40, right: 64, unit: "pixel" },
        prompt: "x",
      }],
    },
    "regions.0.box.bottom: 40 is off the canvas, 0 to 32",
  ],
  [
    "pixels of nothing",
    { regions: [{ box: { ...left, unit: "pixel" }, prompt: "x" }] },
    "regions.0.box.unit: pixels need the layout's size",
  ],
  [
    "empty",
    { regions: [{ box: { ...left, right: 0 }, prompt: "x" }] },
    "regions.0.box: is empty: left is not before right",
  ],
  [
    "no prompt",
    { regions: [{ box: left, prompt: " " }] },
    "regions.0.prompt: a region needs a prompt",
  ],
  [
    "no place",
    { regions: [{ prompt: "x" }] },
    "regions.0: needs a box or a mask",
  ],
  [
    "two places",
    { regions: [{ prompt: "x", box: left, mask: { rows: ["#"] } }] },
    "regions.0: needs a box or a mask",
  ],
  [
    "a ragged mask",
    { regions: [{ prompt: "x", mask: { rows: ["##", "#"] } }] },
    "regions.0.mask.rows.1: is not 2 wide",
  ],
  [
    "too many",
    {
      limits: { regions: 1 },
      regions: [
        { box: left, prompt: "x" },
        { box: right, prompt: "y" },
      ],
    },
    "regions: 2 are too many (limits.regions is 1)",
  ],
  [
    "times",
    { regional: { start: 0.5, end: 0.25 } },
    "regional.start: is after regional.end",
  ],
  [
    "condition factors",
    {
      conditions: [{
        type: "t2i_adapter",
        network: "sketch",
        image: { file: "x.png" },
        regions: [1],
      }],
    },
    "conditions.0.regions: has 1 factors for 0 regions",
  ],
  [
    "thresholds of edges",
    {
      conditions: [{
        type: "t2i_adapter",
        network: "sketch",
        image: { edges: { file: "x.png", low: 0.3 } },
      }],
    },
    "conditions.0.image.edges.low: is above high",
  ],
  [
    "guess mode",
    {
      conditions: [{
        type: "t2i_adapter",
        network: "sketch",
        image: { regions: "fill" },
        guess: true,
      }],
    },
    "conditions.0.guess: is for controlnet only; " +
    "conditions.0.image.regions: there are no regions",
  ],
];

for (const [name, change, message] of bad) {
  Deno.test(`a bad layout is refused with its path: ${name}`, () => {
    const said = refused({ prompt: "x", ...change });
    assert(said.includes(message), said);
    assert(said.startsWith("Cannot read scene.json: expected"), said);
  });
}

Deno.test("all problems are said at once", () => {
  const said = refused({
    prompt: "x",
    regions: [
      { box: { ...left, top: -1 }, prompt: "x" },
      { box: { ...left, bottom: 2 }, prompt: "x" },
    ],
  });
  assert(said.includes("regions.0.box.top"), said);
  assert(said.includes("regions.1.box.bottom"), said);
});

Deno.test("regions that overlap too much need a priority", async () => {
  const document = (second: Partial<typeof left>, more = {}): LayoutInput => ({
    prompt: "x",
    regions: [
      { box: left, prompt: "a" },
      { box: { ...left, ...second }, prompt: "b", ...more },
    ],
  });
  const resolve = (d: LayoutInput) => resolveLayout(parseLayout(d));
  await assertRejects(
    () => resolve(document({ right: 0.6 })),
    Error,
    "regions.1: shares 100 % of the smaller one with regions.0",
  );
  await resolve(document({ left: 0.25, right: 0.75 })); // half: the limit
  await resolve(document({ right: 0.6 }, { priority: 1 }));
  await resolve({ ...document({}), limits: { overlap: 1 } });
});

Deno.test("masks: rows, files, empty ones, missing ones", async () => {
  const pictures: Record<string, Pixels> = {
    "white.png": {
      width: 2,
      height: 1,
      channels: 1,
      data: Uint8Array.of(255, 0),
    },
    "black.png": {
      width: 2,
      height: 1,
      channels: 1,
      data: Uint8Array.of(0, 0),
    },
  };
  const read = (file: string) =>
    pictures[file]
      ? Promise.resolve(pictures[file])
      : Promise.reject(new Error("no such picture"));
  const resolve = (mask: { file: string } | { rows: [string] }) =>
    resolveLayout(
      parseLayout({
        prompt: "x",
        negative: "blurry",
        regions: [{ mask, prompt: "a" }],
      }),
      { read },
    );
  for (const mask of [{ file: "white.png" }, { rows: ["#."] as [string] }]) {
    const { regions: [region] } = await resolve(mask);
    assert("mask" in region.shape);
    assertEquals([...Array.from(region.shape.mask.values)], [1, 0]);
    assertEquals(region.negative, "blurry", "the layout's");
  }
  await assertRejects(
    () => resolve({ file: "black.png" }),
    Error,
    "regions.0.mask: is empty",
  );
  await assertRejects(
    () => resolve({ file: "grey.png" }),
    Error,
    "regions.0.mask.file: no such picture",
  );
});

async function resolved(document: LayoutInput, model: Model) {
  return await resolveLayout(parseLayout(document), { size: modelSize(model) });
}

forEachBackend("a layout is held against a model", async () => {
  const model = await tinySd();
  await noLeak(async () => {
    const refuse = async (
      document: LayoutInput,
      message: string,
      options = {},
    ) => {
      const layout = await resolved(document, model);
      assertThrows(
        () => checkLayout(layout, model, options),
        Error,
        message,
      );
    };
    await refuse(
      { prompt: "a <fox1>" },
      "prompt: unknown concept <fox1> (known: none)",
    );
    await refuse(
      {
        prompt: "x",
        regions: [{ box: left, prompt: "a", negative: "<owl1>" }],
      },
      "regions.0.negative: unknown concept <owl1>",
    );
    await refuse(
      { prompt: "x", regions: [{ box: left, prompt: "a", concepts: ["owl"] }] },
      'regions.0.concepts.0: unknown concept "owl" (known: fox)',
      { concepts: ["fox"] },
    );
    await refuse(
      { prompt: "x", size: { width: 66, height: 64 } },
      "size.width: 66 is not a multiple of 4",
    );
    await refuse(
      {
        prompt: "x",
        regions: [{
          box: { top: 0.01, left: 0, bottom: 0.05, right: 1 },
          prompt: "a",
        }],
      },
      "regions.0.box: is empty: it covers no cell of the cross-attention's " +
        "grids (16×16, 8×8, 4×4)",
    );
    await refuse(
      {
        prompt: "x",
        conditions: [{
          type: "controlnet",
          network: "sketch",
          image: { points: [{ x: 0.5, y: 0.5 }] },
        }],
      },
      'conditions.0.network: unknown network "sketch" (known: none)',
    );
  });
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a region that no layer sees is refused", async () => {
  const model = await tinySd();
  // As the embedded model: no cross-attention at the highest resolution.
  const coarse: Model = {
    ...model,
    unet: {
      ...model.unet,
      config: {
        ...model.unet.config,
        down_block_types: [
          "DownBlock2D",
          "CrossAttnDownBlock2D",
          "DownBlock2D",
        ],
        up_block_types: ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
      },
    },
  };
  const narrow = { top: 0, left: 0.0625, bottom: 1, right: 0.125 };
  const one = await resolved(
    { prompt: "x", regions: [{ box: narrow, prompt: "a" }] },
    model,
  );
  checkLayout(one, model);
  assertThrows(
    () => checkLayout(one, coarse),
    Error,
    "regions.0.box: is empty: it covers no cell of the cross-attention's " +
      "grids (8×8, 4×4)",
  );
  // Soft edges reach into cells that a box does not fill.
  checkLayout(
    await resolved({ ...one.layout, regional: { feather: 0.1 } }, model),
    coarse,
  );
  const behind = (front: typeof left, feather = 0) =>
    resolved({
      prompt: "x",
      regions: [
        { box: narrow, prompt: "a" },
        { box: front, prompt: "b", priority: 1 },
      ],
      regional: { feather },
    }, model);
  checkLayout(await behind(right), model);
  for (const feather of [0, 0.05]) {
    const hidden = await behind(everything, feather);
    assertThrows(
      () => checkLayout(hidden, model),
      Error,
      "regions.0.priority: is hidden: regions of higher priority cover it",
    );
  }
  disposeModel(model);
}, ["wasm"]);

forEachBackend("networks that do not fit are refused", async () => {
  const model = await tinySd();
  const json = await fixtureJson<Record<string, unknown>>(
    "controlnet/config.json",
  );
  const t2i = (config: unknown): ConditionNetwork => ({
    type: "t2i_adapter",
    config: parseT2IAdapterConfig(config),
    params: {} as T2IAdapter,
  });
  const net = (change: Record<string, unknown>): ConditionNetwork => ({
    type: "controlnet",
    config: parseControlNetConfig({ ...json, ...change }),
    params: {} as ControlNet,
  });
  const check = async (
    network: ConditionNetwork,
    more: { regions?: number[] } = {},
  ) =>
    checkLayout(
      await resolved({
        prompt: "x",
        regions: [{ box: left, prompt: "a" }],
        conditions: [{
          type: network.type,
          network: "own",
          image: { regions: "fill" },
          ...more,
        }],
      }, model),
      model,
      { networks: { own: network } },
    );
  const fitting = { channels: [32, 64, 64], downscale_factor: 4 };
  await check(t2i(fitting), { regions: [0.5] });
  await check(net({}), { regions: [0.5] });
  const at = "conditions.0.network: does not fit the UNet: expected ";
  const cases: [ConditionNetwork, string, { regions: number[] }?][] = [
    [
      t2i({ ...fitting, channels: [32, 64, 32] }),
      `${at}channels 32,64,64, got 32,64,32`,
    ],
    [
      t2i({ ...fitting, channels: [32, 64] }),
      `${at}channels 32,64,64, got 32,64`,
    ],
    [
      t2i({ ...fitting, downscale_factor: 8 }),
      `${at}downscale_factor 4, got 8`,
    ],
    [net({ in_channels: 8 }), `${at}in_channels 4, got 8`],
    [net({ cross_attention_dim: 48 }), `${at}cross_attention_dim 32, got 48`],
    [
      net({ layers_per_block: 1 }),
      `${at}channels of skips 32,32,32,32,64,64,64,64,64, got 32,32,32,64,64,64`,
    ],
    [
      net({ conditioning_embedding_out_channels: [8, 16] }),
      `${at}a condition embedding by 4, got 2`,
    ],
    [
      net({ global_pool_conditions: true }),
      "conditions.0.regions: the network averages over the picture",
      { regions: [0.5] },
    ],
  ];
  for (const [network, message, more] of cases) {
    await assertRejects(() => check(network, more), Error, message);
  }
  disposeModel(model);
}, ["wasm"]);

forEachBackend("a layout draws what the API draws", async () => {
  const model = await tinySd();
  await noLeak(async () => {
    const common = {
      prompt: "a cat",
      negative: "blurry",
      seed: 7,
      count: 2,
      steps: 2,
      sampler: "ddim" as const,
      guidance: 3,
      size: { width: 48, height: 32 },
    };
    const draw = async (change: Partial<LayoutInput>, options = {}) => {
      const layout = await resolved({ ...common, ...change }, model);
      const pictures: Pixels[] = [];
      for await (const record of drawLayout(model, layout, options)) {
        if (record.type !== "images") continue;
        pictures.push(...await toPixels(record.images));
        record.images.dispose();
      }
      return pictures;
    };
    const asked: PipelineOptions = {
      prompts: ["a cat", "a cat"],
      negative: "blurry",
      key: key(7),
      steps: 2,
      sampler: "ddim",
      guidance: 3,
      width: 48,
      height: 32,
    };
    const plain = await generate(model, asked);
    assertEquals(await draw({}), plain);
    assertEquals([plain[0].width, plain[0].height], [48, 32]);
    // Together the regions are the whole picture, and say what it says.
    assertEquals(
      await draw({
        regions: [
          { box: left, prompt: "a cat" },
          { box: right, prompt: "a cat" },
        ],
      }).then(difference(plain)),
      0,
    );
    // Regions read their prompts as the whole picture's is read.
    const skipped = await generate(model, { ...asked, skipLast: 1 });
    assert(difference(plain)(skipped) > 0);
    assertEquals(
      await draw({ regions: [{ box: everything, prompt: "a cat" }] }, {
        pipeline: { skipLast: 1 },
      }),
      skipped,
    );
    const dog = { regions: [{ box: left, prompt: "a dog" }] };
    assert((await draw(dog).then(difference(plain))) > 0);
    // A sketch of the regions through a T2I-Adapter, off in the first region.
    const sketch = {
      type: "t2i_adapter" as const,
      ...await loadT2IAdapter(fixturePath("t2i_adapter/adapter1")),
    };
    const conditions: LayoutInput["conditions"] = [{
      type: "t2i_adapter",
      network: "sketch",
      image: { regions: "outline" },
      scale: 0.8,
      regions: [0],
    }];
    const options = { networks: { sketch } };
    const sketched = await draw({ ...dog, conditions }, options);
    assert(difference(await draw(dog))(sketched) > 0);
    disposeTree(sketch.params);
  });
  disposeModel(model);
}, ["wasm"]);

/** Largest difference of two lists of pictures, of 255. */
function difference(a: Pixels[]) {
  return (b: Pixels[]) =>
    Math.max(
      ...a.map((p, i) =>
        p.data.reduce(
          (worst, v, k) => Math.max(worst, Math.abs(v - b[i].data[k])),
          0,
        )
      ),
    );
}

forEachBackend("a layout file finds pictures beside it", async () => {
  const folder = await Deno.makeTempDir();
  const model = await tinySd();
  await noLeak(async () => {
    const data = new Uint8Array(64 * 64).fill(255, 0, 64 * 32);
    await Deno.writeFile(
      `${folder}/top.png`,
      encodePng({ width: 64, height: 64, channels: 1, data }),
    );
    await Deno.writeTextFile(
      `${folder}/scene.json`,
      JSON.stringify({
        prompt: "x",
        regions: [{ mask: { file: "top.png" }, prompt: "sky" }],
      }),
    );
    const layout = await readLayout(`${folder}/scene.json`);
    const prepared = prepareLayout(model, layout, {
      pipeline: { batch: 3 },
    });
    assertEquals(prepared.options.batch, 3);
    assertEquals([prepared.options.width, prepared.options.height], [64, 64]);
    prepared.dispose();
    // Regions would not know of another size.
    const wider: object = { width: 128 };
    assertThrows(
      () => prepareLayout(model, layout, { pipeline: wider }),
      Error,
      'Cannot draw a layout: expected "width" from the layout',
    );
    await Deno.writeTextFile(`${folder}/scene.json`, '{"prompt": 3}');
    await assertRejects(
      () => readLayout(`${folder}/scene.json`),
      Error,
      `Cannot read ${folder}/scene.json: expected a layout that can be drawn`,
    );
  });
  disposeModel(model);
  await Deno.remove(folder, { recursive: true });
}, ["wasm"]);
