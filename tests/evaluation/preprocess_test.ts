import { assertEquals, assertThrows } from "@std/assert";
import {
  crop,
  parsePreprocess,
  preprocess,
  resize,
} from "../../src/evaluation/preprocess.ts";

interface Golden {
  width: number;
  height: number;
  data: number[];
  cases: {
    filter: "bicubic" | "bilinear";
    width: number;
    height: number;
    data: number[];
  }[];
}

const golden: Golden = JSON.parse(
  await Deno.readTextFile(
    new URL("../fixtures/evaluation/resize.json", import.meta.url),
  ),
);
const picture = {
  width: golden.width,
  height: golden.height,
  channels: 3,
  data: Uint8Array.from(golden.data),
};

for (const { filter, width, height, data } of golden.cases) {
  Deno.test(`resize ${filter} to ${width}×${height} is Pillow's, bit for bit`, () => {
    const got = resize(picture, width, height, filter);
    assertEquals([got.width, got.height], [width, height]);
    assertEquals([...got.data], data);
  });
}

Deno.test("a resize to the same size changes nothing", () => {
  assertEquals(resize(picture, 19, 13).data, picture.data);
});

Deno.test("CLIPImageProcessor's defaults: shorter side, centre crop, OpenAI's mean", () => {
  const config = parsePreprocess({});
  assertEquals(config.shortest, 224);
  assertEquals(config.crop, [224, 224]);
  const grey = {
    width: 400,
    height: 300,
    channels: 3,
    data: new Uint8Array(400 * 300 * 3).fill(128),
  };
  const { width, height, values } = preprocess(grey, config);
  assertEquals([width, height], [224, 224]);
  assertEquals(values[1], Math.fround((128 / 255 - 0.4578275) / 0.26130258));
});

Deno.test("mean and spread of one half map bytes to [-1, 1]", () => {
  const config = parsePreprocess({
    size: { shortest_edge: 2 },
    crop_size: { height: 2, width: 2 },
    image_mean: [0.5, 0.5, 0.5],
    image_std: [0.5, 0.5, 0.5],
  });
  const data = Uint8Array.from([
    0,
    255,
    51,
    0,
    255,
    51,
    0,
    255,
    51,
    0,
    255,
    51,
  ]);
  const { values } = preprocess(
    { width: 2, height: 2, channels: 3, data },
    config,
  );
  assertEquals([...values.slice(0, 3)], [-1, 1, Math.fround(-0.6)]);
});

Deno.test("transparency is white and grey repeated", () => {
  const config = parsePreprocess({
    do_resize: false,
    do_center_crop: false,
    do_normalize: false,
  });
  const of = (channels: number, data: number[]) =>
    preprocess(
      { width: 1, height: 1, channels, data: Uint8Array.from(data) },
      config,
    ).values;
  assertEquals(of(4, [255, 0, 0, 255]), Float32Array.of(1, 0, 0));
  assertEquals(of(4, [255, 0, 0, 0]), Float32Array.of(1, 1, 1));
  assertEquals(of(1, [255]), Float32Array.of(1, 1, 1));
  assertEquals(of(2, [0, 255]), Float32Array.of(0, 0, 0));
  assertEquals(of(2, [0, 0]), Float32Array.of(1, 1, 1));
});

Deno.test("a centre crop starts at half the difference, rounded down", () => {
  const row = Uint8Array.from({ length: 5 * 3 }, (_, i) => i);
  const config = parsePreprocess({
    do_resize: false,
    crop_size: { height: 1, width: 2 },
    do_normalize: false,
  });
  const { values } = preprocess(
    { width: 5, height: 1, channels: 3, data: row },
    config,
  );
  assertEquals(Math.round(values[0] * 255), 3);
});

Deno.test("bad preprocessing is refused", () => {
  assertThrows(
    () => parsePreprocess({ resample: 1 }),
    Error,
    "resample 2 or 3",
  );
  assertThrows(
    () => parsePreprocess({ size: { height: 2, width: 3 } }),
    Error,
    "square",
  );
  assertThrows(
    () => parsePreprocess({ rescale_factor: 1 }),
    Error,
    "rescale_factor",
  );
  assertThrows(() => resize(picture, 0, 3), Error, "positive size");
  assertThrows(
    () => crop(picture, { x: 18, y: 0, width: 2, height: 1 }),
    Error,
    "inside 19×13",
  );
});
