import { assert, assertEquals, assertThrows } from "@std/assert";
import { readPicture } from "../../src/io/picture.ts";
import type { Pixels } from "../../src/io/png.ts";
import {
  crop,
  type Filter,
  flatten,
  isTransparent,
  parseColour,
  resize,
  square,
} from "../../src/io/resize.ts";

const FOLDER = new URL("../fixtures/pictures/", import.meta.url);

const { resized } = JSON.parse(
  await Deno.readTextFile(new URL("expected.json", FOLDER)),
) as {
  resized: {
    file: string;
    size: [number, number];
    filter: Filter;
    data: string;
  }[];
};

Deno.test("pictures with alpha are resized as Pillow does it", async () => {
  assertEquals(resized.length, 12);
  for (const { file, size, filter, data } of resized) {
    const image = await readPicture(new URL(file, FOLDER));
    const found = resize(image, ...size, filter);
    assertEquals(
      [...found.data],
      [...Uint8Array.from(atob(data), (c) => c.charCodeAt(0))],
      `${file} ${size} ${filter}`,
    );
  }
});

/** A bright disc; what is transparent is black, as in most cut-outs. */
function cutOut(side: number): Pixels {
  const data = new Uint8Array(side * side * 4);
  for (let i = 0; i < side * side; i++) {
    const [x, y] = [i % side - side / 2, Math.floor(i / side) - side / 2];
    if (Math.hypot(x, y) < side / 3) data.set([255, 230, 40, 255], 4 * i);
  }
  return { width: side, height: side, channels: 4, data };
}

function largest(a: Pixels, b: Pixels): number {
  return a.data.reduce((m, v, i) => Math.max(m, Math.abs(v - b.data[i])), 0);
}

Deno.test("a cut-out gets no dark rim", () => {
  const image = cutOut(96);
  for (const size of [24, 31, 96, 130]) {
    const first = square(flatten(image), size);
    assert(largest(flatten(square(image, size)), first) <= 2);
  }
  // Colour and alpha averaged apart, what this is to prevent, is seen.
  const colours = resize(flatten(image, [0, 0, 0]), 31, 31, "bilinear");
  const alpha = resize(
    {
      ...image,
      channels: 1,
      data: image.data.filter((_, i) => i % 4 === 3),
    },
    31,
    31,
    "bilinear",
  );
  const data = Uint8Array.from(
    { length: 31 * 31 * 4 },
    (_, i) =>
      i % 4 === 3 ? alpha.data[i >> 2] : colours.data[3 * (i >> 2) + i % 4],
  );
  const apart = flatten({ width: 31, height: 31, channels: 4, data });
  assert(largest(apart, square(flatten(image), 31)) > 30);
});

Deno.test("transparency shows the background", () => {
  const image = (channels: number, ...data: number[]) => ({
    width: 1,
    height: 1,
    channels,
    data: Uint8Array.from(data),
  });
  const red = [255, 0, 0] as const;
  const cases: [Pixels, number[], number[]][] = [
    [image(1, 7), [7, 7, 7], [7, 7, 7]],
    [image(2, 7, 255), [7, 7, 7], [7, 7, 7]],
    [image(2, 7, 0), [255, 255, 255], [255, 0, 0]],
    [image(3, 1, 2, 3), [1, 2, 3], [1, 2, 3]],
    [image(4, 1, 2, 3, 0), [255, 255, 255], [255, 0, 0]],
    [image(4, 10, 20, 30, 51), [206, 208, 210], [206, 4, 6]],
  ];
  for (const [given, white, onRed] of cases) {
    assertEquals([...flatten(given).data], white);
    assertEquals([...flatten(given, red).data], onRed);
  }
  assertEquals(isTransparent(image(4, 1, 2, 3, 254)), true);
  assertEquals(isTransparent(image(4, 1, 2, 3, 255)), false);
  assertEquals(isTransparent(image(3, 1, 2, 3)), false);
});

Deno.test("colours as people write them", () => {
  assertEquals(parseColour("white"), [255, 255, 255]);
  assertEquals(parseColour(" Black "), [0, 0, 0]);
  assertEquals(parseColour("#0af"), [0, 170, 255]);
  assertEquals(parseColour("12ff80"), [18, 255, 128]);
  for (const bad of ["", "#12", "#1234567", "mauve", "255,0,0"]) {
    assertThrows(() => parseColour(bad), Error, "Cannot read a colour");
  }
});

Deno.test("a picture is cropped to its centred square and resized", () => {
  const ramp = {
    width: 8,
    height: 8,
    channels: 1,
    data: Uint8Array.from({ length: 64 }, (_, i) => (i % 8) * 32),
  };
  // Inside, a triangle filter keeps linear functions.
  assertEquals([...square(ramp, 4).data.subarray(0, 4)].slice(1, 3), [80, 144]);
  assertEquals(square(ramp, 8).data, ramp.data);
  assertEquals(
    square({ ...ramp, data: new Uint8Array(64).fill(7) }, 3).data,
    new Uint8Array(9).fill(7),
  );
  const wide = crop(ramp, { x: 0, y: 0, width: 8, height: 2 });
  assertEquals([...square(wide, 2).data], [96, 128, 96, 128]);
});
