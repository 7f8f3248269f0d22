import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertThrows } from "@std/assert";
import { attention } from "../../src/core/kernels/ops.ts";
import { fold, key, normal } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { generate, type UNetCall } from "../../src/diffusion/pipeline.ts";
import {
  atSite,
  boxCells,
  isWithin,
  regionalAttention,
  regionalSampling,
  regionMaps,
  shapeMap,
  shareOut,
} from "../../src/diffusion/regions.ts";
import {
  crossAttentionSites,
  parseUNetConfig,
} from "../../src/models/config.ts";
import { disposeModel } from "../../src/models/model.ts";
import {
  type UNet,
  unet,
  type UNetOptions,
  unetSpec,
} from "../../src/models/unet.ts";
import { initialise } from "../../src/nn/spec.ts";
import { golden, nchw, tinySd } from "../customize/tiny_sd.ts";
import {
  close,
  fixtureJson,
  forEachBackend,
  noLeak,
  tolerance,
} from "../helpers.ts";

interface Case {
  feat: [number, number];
  heads: number;
  boxes: [number, number, number, number][];
  grid: [number, number, number, number][];
}

const facts = await fixtureJson<Record<string, Case>>("regional/regional.json");
const shapes = (boxes: Case["boxes"]) =>
  boxes.map(([top, left, bottom, right]) => ({
    shape: { box: { top, left, bottom, right } },
  }));
const everything = { box: { top: 0, left: 0, bottom: 1, right: 1 } };

for (const name of ["wide_three_unaligned"]) {
  forEachBackend(`${name}: attention matches region_rewrite`, async (b) => {
    await noLeak(async () => {
      const { feat: [height, width], heads, boxes, grid } = facts[name];
      const g = await golden("regional/region_rewrite.safetensors");
      assertEquals(
        shapes(boxes).map(({ shape }) =>
          Object.values(boxCells(shape.box, height, width))
        ),
        grid,
      );
      const maps = regionMaps(shapes(boxes));
      // The fixture has heads in the batch and keys and values instead of
      // states: number i stands for region i's.
      const states = boxes.map((_, i) => tf.fill([1, 1, 1], i));
      const plain = g.tensor<tf.Tensor3D>(`${name}.hidden_states`);
      const hooks = regionalAttention(maps, states)({
        index: 0,
        path: "",
        level: 0,
        height,
        width,
        heads,
      })!;
      let region = -1;
      const out = tf.tidy(() =>
        hooks.replace!(
          g.tensor<tf.Tensor3D>(`${name}.query`),
          tf.zeros([1, 1, 1]) as tf.Tensor3D,
          (query) => {
            region++;
            return region === 0 ? plain : attention(
              query,
              g.tensor<tf.Tensor3D>(`${name}.region${region - 1}.key`),
              g.tensor<tf.Tensor3D>(`${name}.region${region - 1}.value`),
              1,
            );
          },
        )
      );
      // Outputs of size 1; float32 sums of 7 keys.
      close(await out.data(), g.values(`${name}.out`), tolerance(b, 2e-6));
      maps.dispose();
      tf.dispose([out, states]);
      g.dispose();
    });
  });
}

forEachBackend("a UNet with two regions matches Mix-of-Show", async (b) => {
  await noLeak(async () => {
    const g = await golden("regional/unet.safetensors");
    const model = await tinySd();
    const maps = regionMaps(shapes(facts.unet.boxes));
    // Pictures of a batch do not meet. A software adapter takes eight seconds
    // for each, so webgpu draws the last one, with the regions.
    const first = b === "webgpu" ? 1 : 0;
    const rows = (name: string) => g.tensor<tf.Tensor4D>(name).slice(first);
    for (const regional of b === "webgpu" ? [true] : [false, true]) {
      const out = tf.tidy(() =>
        unet(
          model.unet.params,
          model.unet.config,
          g.nhwc("sample").slice(first),
          g.rows("timestep")[0],
          rows("encoder_hidden_states"),
          regional
            ? {
              crossAttend: regionalAttention(
                maps,
                [0, 1].map((i) => rows(`region${i}.encoder_hidden_states`)),
              ),
            }
            : {},
        )
      );
      close(
        await nchw(out),
        g.values(regional ? "out" : "out_no_region").slice(-out.size),
        // Ten times float32 against float64 of the UNet; the regions change
        // the output by 0.2.
        tolerance(b, 1.1e-5),
      );
      out.dispose();
    }
    maps.dispose();
    g.dispose();
    disposeModel(model);
  });
});

forEachBackend(
  "other depths, odd latents: each region by itself",
  async (b) => {
    await noLeak(async () => {
      // Four levels, two of them with text, sides that halve to odd numbers; the
      // official rule is tried against a second, plain implementation of it.
      const config = parseUNetConfig({
        block_out_channels: [8, 8, 16, 16],
        down_block_types: [
          "CrossAttnDownBlock2D",
          "DownBlock2D",
          "CrossAttnDownBlock2D",
          "DownBlock2D",
        ],
        up_block_types: [
          "UpBlock2D",
          "CrossAttnUpBlock2D",
          "UpBlock2D",
          "CrossAttnUpBlock2D",
        ],
        layers_per_block: 1,
        norm_num_groups: 4,
        attention_head_dim: [2, 2, 4, 4],
        cross_attention_dim: 12,
      });
      const params = initialise<UNet>(unetSpec(config), key(1));
      const random = (shape: number[], name: string) =>
        tf.tensor(
          normal(fold(key(2), name), shape.reduce((x, y) => x * y)),
          shape,
        );
      const sites = crossAttentionSites(config).length;
      const sample = random([2, 13, 22, 4], "sample") as tf.Tensor4D;
      const global = random([2, 6, 12], "global") as tf.Tensor3D;
      // One region layer-wise, one not, of another number of tokens.
      const states = [
        random([2, sites, 6, 12], "a"),
        random([2, 9, 12], "b"),
      ];
      const boxes: Case["boxes"] = [[0.1, 0, 0.95, 0.6], [0.3, 0.4, 0.7, 1]];
      const maps = regionMaps(shapes(boxes));
      const run = (options: UNetOptions) =>
        tf.tidy(() => unet(params, config, sample, [41], global, options));
      const plainly: UNetOptions["crossAttend"] = (
        { index, height, width },
      ) => ({
        replace(query, text, attend) {
          const outputs = states.map((s) =>
            attend(query, atSite(s, index, 2)).arraySync()
          );
          const context = attend(query, text).arraySync();
          const inside =
            ([top, left, bottom, right]: Case["boxes"][number]) =>
            (cell: number) => {
              const [y, x] = [Math.floor(cell / width), cell % width];
              return y >= Math.ceil(top * height) &&
                y < Math.floor(bottom * height) &&
                x >= Math.ceil(left * width) &&
                x < Math.floor(right * width);
            };
          return tf.tensor3d(context.map((row, item) =>
            row.map((own, cell) => {
              const here = outputs.filter((_, i) => inside(boxes[i])(cell));
              return here.length === 0
                ? own
                : own.map((_, c) =>
                  here.reduce((sum, o) => sum + o[item][cell][c], 0) /
                  here.length
                );
            })
          ));
        },
      });
      const [out, expected, plain] = [
        run({ crossAttend: regionalAttention(maps, states) }),
        run({ crossAttend: plainly }),
        run({}),
      ];
      const values = await expected.data();
      close(await out.data(), values, tolerance(b, 2e-6));
      assert(
        (await plain.data()).some((v, i) => Math.abs(v - values[i]) > 0.01),
      );
      maps.dispose();
      tf.dispose([sample, global, ...states, out, expected, plain]);
      disposeTree(params);
    });
  },
  ["wasm"],
);

forEachBackend("invariants of regional sampling", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const prompt = "a photo of a cat";
    const common = {
      prompts: [prompt, prompt],
      negative: "blurry",
      steps: 2,
      sampler: "ddim" as const,
      guidance: 3,
      key: key(5),
      height: 48,
      width: 64,
    };
    const draw = async (
      regions: Parameters<typeof regionalSampling>[1],
      options: Parameters<typeof regionalSampling>[2] = {},
    ) => {
      const regional = regionalSampling(model, regions, options);
      const pictures = await generate(model, {
        ...common,
        unet: (call: UNetCall) => regional.unet(call),
      });
      regional.dispose();
      return pictures.map((p) => p.data);
    };
    const plain = (await generate(model, common)).map((p) => p.data);
    const same = {
      shape: everything,
      prompt,
      negative: "blurry",
    };
    assertEquals(await draw([]), plain, "no regions");
    assertEquals(await draw([same]), plain, "one region, global prompt");
    assertEquals(await draw([same, same]), plain, "two, averaged");
    const other = {
      shape: everything,
      prompt: "a red dog",
      negative: "blurry",
    };
    assertEquals(
      await draw([other], { replaceRatio: 0 }),
      plain,
      "nothing replaced",
    );
    assertEquals(
      await draw([other], { start: 1, end: 1 }),
      plain,
      "regions at no step",
    );
    assertEquals(
      await draw([{ ...same, priority: 1 }, other]),
      plain,
      "the higher priority wins all",
    );
    const replaced = (await generate(model, {
      ...common,
      prompts: [other.prompt, other.prompt],
    })).map((p) => p.data);
    assertEquals(await draw([other]), replaced, "a region takes over");
    assert(replaced[0].some((v, i) => v !== plain[0][i]));
    const first = await draw([other], { end: 0.5 });
    assert(first[0].some((v, i) => v !== plain[0][i]), "the first step counts");
    assert(
      first[0].some((v, i) => v !== replaced[0][i]),
      "the second is plain",
    );
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend("a mask equals the box of its shape", async () => {
  await noLeak(async () => {
    const model = await tinySd();
    const [height, width] = [64, 64];
    const box = { top: 0.25, left: 0, bottom: 1, right: 0.5 };
    const mask = {
      width,
      height,
      values: Uint8Array.from(
        { length: height * width },
        (_, i) => Math.floor(i / width) >= 16 && i % width < 32 ? 1 : 0,
      ),
    };
    // The same cells, found through gather: a corner is missing.
    const notched = { ...mask, values: mask.values.slice() };
    for (let y = 56; y < 64; y++) notched.values.fill(0, y * 64, y * 64 + 16);
    const g = await golden("t2i_adapter/expected.safetensors");
    const run = async (shape: Parameters<typeof shapeMap>[0]) => {
      const maps = regionMaps([{ shape }]);
      const out = tf.tidy(() =>
        unet(
          model.unet.params,
          model.unet.config,
          g.nhwc("sample"),
          [261],
          g.tensor<tf.Tensor3D>("encoder_hidden_states"),
          {
            crossAttend: regionalAttention(maps, [
              tf.reverse(g.tensor("encoder_hidden_states"), 0),
            ]),
          },
        )
      );
      const values = await out.data();
      out.dispose();
      maps.dispose();
      return values;
    };
    const [a, b, c] = [
      await run({ box }),
      await run({ mask }),
      await run({ mask: notched }),
    ];
    assertEquals(a, b);
    assert(a.some((v, i) => Math.abs(v - c[i]) > 1e-4));
    g.dispose();
    disposeModel(model);
  });
}, ["wasm"]);

forEachBackend(
  "a mask of any shape is attended to pixel by pixel",
  async () => {
    await noLeak(async () => {
      const [height, width] = [4, 5];
      const values = [
        ...[0, 1, 0, 0, 0],
        ...[1, 1, 0, 0, 0],
        ...[0, 0, 0, 0, 0],
        ...[0, 0, 0, 1, 0],
      ];
      const maps = regionMaps([{ shape: { mask: { width, height, values } } }]);
      const query = tf.tensor3d(
        values.map((_, i) => i),
        [1, 20, 1],
      );
      const states = tf.zeros([1, 1, 1]);
      const counts: number[] = [];
      const out = tf.tidy(() =>
        regionalAttention(maps, [states])({
          index: 0,
          path: "",
          level: 0,
          height,
          width,
          heads: 1,
        })!.replace!(query, tf.ones([1, 1, 1]) as tf.Tensor3D, (q) => {
          counts.push(q.shape[1]);
          return q.add(counts.length === 1 ? 0 : 100) as tf.Tensor3D;
        })
      );
      assertEquals(counts, [20, 4]);
      assertEquals(
        [...await out.data()],
        values.map((v, i) => i + 100 * v),
      );
      maps.dispose();
      tf.dispose([query, states, out]);
    });
  },
  ["wasm"],
);

Deno.test("parts of the sampling meet and do not overlap", () => {
  const calls = (total: number, start: number, end: number) =>
    Array.from({ length: total }, (_, index) => index)
      .filter((index) => isWithin({ index, total }, { start, end }));
  assertEquals(calls(4, 0, 0.5), [0, 1]);
  assertEquals(calls(4, 0.5, 1), [2, 3]);
  assertEquals(calls(4, 1, 1), []);
  // The only call is at the very start.
  assertEquals(calls(1, 0, 0.1), [0]);
  assertEquals(calls(1, 0.1, 1), []);
});

Deno.test("shares: average by count, priority, never more than one", () => {
  const maps = [[1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0.5]].map((m) =>
    Float32Array.from(m)
  );
  const third = Math.fround(1 / 3);
  assertEquals(shareOut(maps).map((s) => [...s]), [
    [1, third, 0, 0],
    [0, third, 0.5, 0],
    [0, third, 0.5, 0.5],
  ]);
  assertEquals(shareOut(maps, [1, 5, 1]).map((s) => [...s]), [
    [1, 0, 0, 0],
    [0, 1, 1, 0],
    [0, 0, 0, 0.5],
  ]);
});

Deno.test("soft edges: halves meet without context, borders stay full", () => {
  const left = { box: { top: 0, left: 0, bottom: 1, right: 0.5 } };
  const right = { box: { top: 0, left: 0.5, bottom: 1, right: 1 } };
  const [a, b] = shareOut(
    [left, right].map((s) => shapeMap(s, 8, 16, { feather: 0.1 })),
  );
  for (let x = 0; x < 16; x++) {
    close(a[x] + b[x], 1, 0.011, `column ${x}`); // the cut tail is 0.01
    close(a[x], b[15 - x], 1e-6, `mirror ${x}`);
  }
  assertEquals(a[0], 1);
  assert(a[7] > 0.5 && a[7] < 1 && a[8] > 0 && a[8] < 0.5);
});

Deno.test("masks come to a grid by how much of a cell they cover", () => {
  const mask = { width: 4, height: 2, values: [1, 1, 1, 0, 1, 0, 0, 0] };
  assertEquals([...shapeMap({ mask }, 1, 2)], [1, 0]); // 3/4, 1/4
  assertEquals([...shapeMap({ mask }, 1, 2, { coverage: 0.25 })], [1, 1]);
  assertEquals([...shapeMap({ mask }, 1, 2, { coverage: 1 })], [0, 0]);
  // 4 pixels on 3 cells: the first has pixel 0 and a third of pixel 1.
  assertEquals([
    ...shapeMap({ mask: { ...mask, height: 1, values: [1, 0, 0, 1] } }, 1, 3),
  ], [1, 0, 1]);
  // Pixel fractions do not lose a cell to rounding.
  const seventh = {
    box: { top: 0, left: 7 / 100, bottom: 1, right: 57 / 100 },
  };
  const cells = boxCells(seventh.box, 1, 100);
  assertEquals([cells.left, cells.right], [7, 57]);
});

Deno.test("regions that cannot be placed are refused", () => {
  const box = { top: 0, left: 0.5, bottom: 1, right: 0.5 };
  assertThrows(
    () => regionMaps([{ shape: everything }, { shape: { box } }]),
    Error,
    "Cannot place region 1: expected a box",
  );
  assertThrows(
    () => regionMaps([{ shape: { box: { ...box, right: 1.2 } } }]),
    Error,
    "region 0",
  );
  const mask = { width: 2, height: 1, values: [0, 0] };
  assertThrows(() => regionMaps([{ shape: { mask } }]), Error, "not empty");
  assertThrows(
    () => regionMaps([{ shape: { mask: { ...mask, height: 2 } } }]),
    Error,
    "2·2 values",
  );
  assertThrows(
    () => regionMaps([{ shape: { mask: { ...mask, values: [0, NaN] } } }]),
    Error,
    "[0, 1]",
  );
  assertThrows(() => regionMaps([], { replaceRatio: 2 }), Error, "[0, 1]");
  assertThrows(() => regionMaps([], { feather: -1 }), Error, "feather");
  const maps = regionMaps([{ shape: everything }]);
  assertThrows(() => regionalAttention(maps, []), Error, "for 1 regions");
});
