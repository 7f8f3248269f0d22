/** Starting from a picture: strengths and masks against closed forms. */
import * as tf from "@tensorflow/tfjs";
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { encodeImages, initLatents } from "../../src/diffusion/init.ts";
import { startStepOf } from "../../src/diffusion/start_step.ts";
import {
  drawLayout,
  parseLayout,
  resolveLayout,
} from "../../src/diffusion/layout.ts";
import {
  decodeImages,
  generate,
  pipeline,
  type PipelineOptions,
  toPixels,
} from "../../src/diffusion/pipeline.ts";
import { plan, sample, SAMPLERS } from "../../src/diffusion/samplers.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import type { Pixels } from "../../src/io/png.ts";
import { cover } from "../../src/io/resize.ts";
import { disposeModel } from "../../src/models/model.ts";
import { tinySd } from "../customize/tiny_sd.ts";
import { noLeak } from "../helpers.ts";

const SIDE = 32;

/** A picture of two colours with a pattern. */
function photo(width = SIDE, height = SIDE): Pixels {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    data.set(
      [i % width * 5, i % 7 * 30, i % width < width / 2 ? 40 : 210],
      3 * i,
    );
  }
  return { width, height, channels: 3, data };
}

/** White on the right half, or all of one value. */
function mask(value?: number, width = SIDE, height = SIDE): Pixels {
  const data = Uint8Array.from(
    { length: width * height },
    (_, i) => value ?? (i % width < width / 2 ? 0 : 255),
  );
  return { width, height, channels: 1, data };
}

const SIZE = { width: SIDE, height: SIDE };

const SETTINGS = {
  prompts: ["a fox", "a cat"],
  steps: 4,
  guidance: 2,
  key: key(3),
  ...SIZE,
} as const;

/** The last latents of a run. */
async function latents(
  model: Parameters<typeof pipeline>[0],
  options: PipelineOptions,
): Promise<{ values: Float32Array; calls: number }> {
  let last = new Float32Array();
  let calls = 0;
  for await (
    const record of pipeline(model, { ...options, decode: false, batch: 2 })
  ) {
    if (record.type !== "step") continue;
    calls++;
    last = await record.latent.data<"float32">() as typeof last;
  }
  return { values: last, calls };
}

Deno.test("strength is a number of steps, as diffusers counts them", () => {
  // int(20·0.75) = 15 of 20 are taken.
  assertEquals(startStepOf(20, 0.75), 5);
  assertEquals(startStepOf(50, 0.8), 10);
  assertEquals(startStepOf(3, 0.5), 2);
  assertEquals(startStepOf(7, 1), 0);
  for (const wrong of [0, -0.1, 1.01, NaN]) {
    assertThrows(() => startStepOf(20, wrong), Error, "a strength in (0, 1]");
  }
  assertThrows(() => startStepOf(20, 0.04), Error, "at least 0.05");
});

Deno.test("the centre of a picture covers another shape", () => {
  const wide = photo(40, 20);
  const cut = cover(wide, 20, 20);
  assertEquals([cut.width, cut.height], [20, 20]);
  // Columns 10 to 29, untouched.
  for (const [x, y] of [[0, 0], [19, 7]]) {
    const at = 3 * (y * 20 + x), from = 3 * (y * 40 + x + 10);
    assertEquals([...cut.data.slice(at, at + 3)], [
      ...wide.data.slice(from, from + 3),
    ]);
  }
  assertEquals(cover(wide, 40, 20), wide);
});

Deno.test("at strength 1 nothing of the picture is left; below, more of it stays", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  try {
    await noLeak(async () => {
      const start = initLatents(model, photo(), undefined, SIZE);
      const one = await start.init.data();
      const init = [...one, ...one];
      const plain = await latents(model, SETTINGS);
      const of = (strength: number) =>
        latents(model, { ...SETTINGS, ...start, strength });
      assertEquals((await of(1)).values, plain.values);
      const far: number[] = [];
      for (const [strength, calls] of [[0.25, 1], [0.5, 2], [0.75, 3]]) {
        const got = await of(strength);
        assertEquals(got.calls, calls);
        far.push(
          got.values.reduce((sum, v, i) => sum + (v - init[i]) ** 2, 0),
        );
      }
      assert(far[0] < far[1] && far[1] < far[2], `${far}`);
      start.init.dispose();
    });
  } finally {
    disposeModel(model);
  }
});

Deno.test("a black mask gives the picture back, a white one nothing of it", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  try {
    const black = initLatents(model, photo(), mask(0), SIZE);
    const trip = decodeImages(model, black.init);
    const [same] = await toPixels(trip);
    for (const strength of [0.5, 1]) {
      const drawn = await generate(model, { ...SETTINGS, ...black, strength });
      assertEquals(drawn.map(({ data }) => data), [same.data, same.data]);
    }
    const white = initLatents(model, photo(), mask(255), SIZE);
    assertEquals(
      await generate(model, { ...SETTINGS, ...white, strength: 1 }),
      await generate(model, SETTINGS),
    );
    tf.dispose([trip, { ...black }, { ...white }]);
  } finally {
    disposeModel(model);
  }
});

Deno.test("what a mask leaves stays, what it has is drawn", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  try {
    const start = initLatents(model, photo(), mask(), SIZE);
    const init = await start.init.data();
    const [, h, w, c] = start.init.shape;
    const { values } = await latents(model, {
      ...SETTINGS,
      ...start,
      strength: 1,
    });
    let drawn = 0;
    for (let i = 0; i < values.length; i++) {
      const column = Math.floor(i / c) % w;
      const was = init[i % (h * w * c)];
      if (column < w / 2) assertEquals(values[i], was);
      else if (Math.abs(values[i] - was) > 1e-3) drawn++;
    }
    assert(drawn > values.length / 3, `${drawn} of ${values.length}`);
    tf.dispose({ ...start });
  } finally {
    disposeModel(model);
  }
});

Deno.test("every sampler keeps what is masked at the next call's noise level", async () => {
  await tf.setBackend("cpu");
  const course = schedule(parseSchedulerConfig({
    beta_schedule: "scaled_linear",
    beta_start: 0.00085,
    beta_end: 0.012,
    steps_offset: 1,
  }));
  const latent = tf.tensor4d([0.5, -1, 2, 0.1], [1, 2, 2, 1]);
  const noise = tf.tensor4d([1, -0.3, 0.2, 0.7], [1, 2, 2, 1]);
  const where = tf.tensor4d([0, 0, 1, 0], [1, 2, 2, 1]);
  for (const name of SAMPLERS) {
    const table = plan(name, course, 4);
    const seen: number[] = [];
    const out = await sample(
      table,
      async (x, { alpha, sigma }, index) => {
        const values = await x.data();
        // After the first call: α·latent + σ·noise, by the formula.
        if (index > 0) {
          seen.push(index);
          for (const [i, clean, of] of [[0, 0.5, 1], [1, -1, -0.3]]) {
            assertAlmostEquals(values[i], alpha * clean + sigma * of, 2e-4);
          }
        }
        return { x0: tf.zerosLike(x) };
      },
      noise,
      { noise: () => tf.onesLike(noise), keep: { latent, mask: where } },
    );
    assertEquals(seen.length, table.calls - 1, name);
    const result = await out.data();
    assertEquals([result[0], result[1], result[3]], [
      ...[0.5, -1, Math.fround(0.1)],
    ]);
    assert(Math.abs(result[2] - 2) > 0.1, `${name}: ${result[2]}`);
    out.dispose();
  }
  tf.dispose([latent, noise, where]);
});

Deno.test("what does not fit a picture to start from is refused", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  try {
    const { init, mask: where } = initLatents(model, photo(), mask(), SIZE);
    const refused: [Partial<PipelineOptions>, string][] = [
      [{ strength: 0.5 }, "init with strength, got none"],
      [{ mask: where! }, "init with mask, got none"],
      [{ init, strength: 0.5, startStep: 1 }, "strength or startStep"],
      [{ init, strength: 0 }, "a strength in (0, 1]"],
      [{ init, mask: init }, "expected a mask"],
    ];
    for (const [options, message] of refused) {
      await assertRejects(
        () => generate(model, { ...SETTINGS, ...options }),
        Error,
        message,
      );
    }
    const nine = {
      ...model,
      unet: {
        ...model.unet,
        config: { ...model.unet.config, in_channels: 9 },
      },
    };
    await assertRejects(
      () => generate(nine, { ...SETTINGS, init, mask: where! }),
      Error,
      "one for inpainting (9 input channels",
    );
    tf.dispose([init, where!]);
  } finally {
    disposeModel(model);
  }
});

Deno.test("an encoded picture is what decoding undoes", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  try {
    const images = tf.fill([1, SIDE, SIDE, 3], 128 / 255) as tf.Tensor4D;
    const latent = encodeImages(model, images);
    const [, h, w, c] = latent.shape;
    assertEquals([h, w, c], [8, 8, 4]);
    const grey = photo();
    grey.data.fill(128);
    const start = initLatents(model, grey, undefined, SIZE);
    const [a, b] = [await latent.data(), await start.init.data()];
    a.forEach((v, i) => assertAlmostEquals(v, b[i], 1e-5));
    tf.dispose([images, latent, start.init]);
  } finally {
    disposeModel(model);
  }
});

Deno.test("a layout starts from a picture; its seeds are theirs alone", async () => {
  await selectBackend("wasm");
  const model = await tinySd();
  const files: Record<string, Pixels> = {
    "a.png": photo(),
    "half.png": mask(),
    "small.png": mask(undefined, SIDE / 2, SIDE / 2),
    "wide.png": mask(undefined, 2 * SIDE, SIDE),
  };
  const read = (name: string) => Promise.resolve(files[name]);
  const base = { prompt: "a fox", steps: 2, guidance: 1, size: SIZE };
  const drawn = async (more: Record<string, unknown>) => {
    const layout = await resolveLayout(parseLayout({ ...base, ...more }), {
      read,
    });
    const pictures: Pixels[] = [];
    for await (const record of drawLayout(model, layout)) {
      if (record.type !== "images") continue;
      pictures.push(...await toPixels(record.images));
      record.images.dispose();
    }
    return pictures;
  };
  try {
    const several = await drawn({ seed: [5, 1], count: 2 });
    assertEquals(several, [
      ...await drawn({ seed: 5, count: 2 }),
      ...await drawn({ seed: 1, count: 2 }),
    ]);
    const init = { file: "a.png" };
    const [plain] = await drawn({});
    const [again] = await drawn({ init, strength: 0.5 });
    assert(String(again.data) !== String(plain.data));
    // 0.8 of two steps is one, as 0.5 is; a mask's default is all of them.
    assertEquals(await drawn({ init }), [again]);
    const masked = await drawn({ init, mask: { file: "half.png" } });
    for (
      const same of [
        { mask: { rows: [".#"] } },
        { mask: { file: "half.png" }, strength: 1 },
        // The picture's shape in another size.
        { mask: { file: "small.png" } },
      ]
    ) assertEquals(await drawn({ init, ...same }), masked);
    assert(
      String((await drawn({ init, mask: { rows: ["#."] } }))[0].data) !==
        String(masked[0].data),
    );
    await assertRejects(
      () => drawn({ init, mask: { file: "wide.png" } }),
      Error,
      "mask.file: Cannot lay wide.png over its picture",
    );
  } finally {
    disposeModel(model);
  }
});

for (
  const [name, fields, message] of [
    ["a mask of nothing", { mask: { rows: ["#"] } }, "mask: needs init"],
    ["a strength of nothing", { strength: 0.5 }, "strength: needs init"],
    ["no step", { init: { file: "a" }, strength: 0.04 }, "at least 0.05"],
    ["no strength", { init: { file: "a" }, strength: 0 }, "strength: "],
    ["too much", { init: { file: "a" }, strength: 2 }, "strength: "],
    [
      "ragged rows",
      { init: { file: "a" }, mask: { rows: ["##", "#"] } },
      "mask.rows.1: is not 2 wide",
    ],
    ["a seed twice", { seed: [1, 2, 1] }, "seed: has 1 twice"],
    ["no seed", { seed: [] }, "seed: "],
  ] as const
) {
  Deno.test(`a layout is refused: ${name}`, () => {
    assertThrows(
      () => parseLayout({ prompt: "a fox", steps: 20, ...fields }),
      Error,
      message,
    );
  });
}
