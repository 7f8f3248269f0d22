import { assert, assertEquals, assertThrows } from "@std/assert";
import {
  canny,
  conditionTensor,
  type Grey,
  greyOf,
  greyPixels,
  keyPointImage,
  maskImage,
} from "../../src/diffusion/condition_images.ts";
import { close, forEachBackend } from "../helpers.ts";

function grey(
  width: number,
  height: number,
  value: (y: number, x: number) => number,
): Grey {
  return {
    width,
    height,
    values: Float32Array.from(
      { length: width * height },
      (_, i) => value(Math.floor(i / width), i % width),
    ),
  };
}

const rows = ({ values, width, height }: Grey) =>
  Array.from(
    { length: height },
    (_, y) =>
      Array.from(
        { length: width },
        (_, x) => values[y * width + x] > 0 ? "#" : ".",
      ).join(""),
  );

Deno.test("a step gives one line, a constant none", () => {
  const step = grey(10, 4, (_, x) => x < 5 ? 0 : 1);
  for (const sigma of [0, 1]) {
    const edges = rows(canny(step, { sigma }));
    // Between columns 4 and 5 the gradient is equal on both sides.
    assertEquals(new Set(edges), new Set([".....#...."]), `sigma ${sigma}`);
  }
  const turned = rows(canny(grey(4, 10, (y) => y < 5 ? 0 : 1)));
  assertEquals(turned.map((row) => row.includes("#")), [
    ...[false, false, false, false, false],
    ...[true, false, false, false, false],
  ]);
  assert(canny(grey(8, 8, () => 0.7)).values.every((v) => v === 0));
});

Deno.test("edges of a disc are one closed ring at its radius", () => {
  const disc = grey(
    40,
    40,
    (y, x) => Math.hypot(y - 19.5, x - 19.5) < 12 ? 1 : 0,
  );
  const edges = canny(disc);
  const found: [number, number][] = [];
  edges.values.forEach((v, i) => {
    if (v) found.push([Math.floor(i / 40), i % 40]);
  });
  for (const [y, x] of found) {
    const radius = Math.hypot(y - 19.5, x - 19.5);
    assert(Math.abs(radius - 12) < 1.5, `(${y}, ${x}) is at ${radius}`);
  }
  // Closed: every direction from the centre has an edge. Thin: about 2πr.
  const directions = new Set(
    found.map(([y, x]) =>
      Math.floor(Math.atan2(y - 19.5, x - 19.5) / (2 * Math.PI) * 36 + 36) % 36
    ),
  );
  assertEquals(directions.size, 36);
  assert(found.length < 2 * Math.PI * 12 * 1.4, `${found.length} pixels`);
});

Deno.test("weak edges stay only where they touch strong ones", () => {
  // A step of 0.15 (weak) all along; in the second picture its upper half is 1.
  const weak = grey(12, 12, (_, x) => x < 6 ? 0 : 0.15);
  const both = grey(12, 12, (y, x) => x < 6 ? 0 : y < 6 ? 1 : 0.15);
  const options = { sigma: 0, low: 0.1, high: 0.3 };
  assert(canny(weak, options).values.every((v) => v === 0));
  const edges = rows(canny(both, options));
  assertEquals(edges[11][6], "#", "the weak end of the edge");
  assertThrows(() => canny(weak, { low: 0.5 }), Error, "low ≤ high");
});

Deno.test("luminance knows color and transparency", () => {
  const data = Uint8Array.of(255, 0, 0, 255, 255, 255, 255, 0);
  const image = greyOf({ width: 2, height: 1, channels: 4, data });
  close(image.values, [0.299, 0], 1e-6);
  assertEquals(
    greyPixels({ width: 2, height: 1, values: [0.5, 1.2] }).data,
    Uint8Array.of(128, 255),
  );
});

Deno.test("regions as a picture", () => {
  const image = maskImage(
    [
      { box: { top: 0, left: 0, bottom: 0.5, right: 0.5 } },
      { box: { top: 0.5, left: 0.5, bottom: 1, right: 1 } },
    ],
    4,
    4,
  );
  assertEquals(rows(image), ["##..", "##..", "..##", "..##"]);
});

Deno.test("key points are discs, links are lines", () => {
  const points = [
    { x: 0.25, y: 0.5, color: [1, 0, 0] as const },
    { x: 0.75, y: 0.5 },
    { x: 2, y: 2 },
  ];
  const image = keyPointImage(points, 8, 16, { links: [[0, 1]], radius: 0.25 });
  const at = (y: number, x: number) => [
    ...image.data.subarray((y * 16 + x) * 3, (y * 16 + x) * 3 + 3),
  ];
  assertEquals(at(4, 4), [255, 0, 0]);
  assertEquals(at(4, 12), [255, 255, 255]);
  assertEquals(at(4, 8), [255, 0, 0], "the line");
  assertEquals(at(0, 8), [0, 0, 0]);
  assertThrows(
    () => keyPointImage(points, 8, 8, { links: [[0, 9]] }),
    Error,
    "links between points 0 to 2",
  );
});

forEachBackend("condition tensors", async () => {
  const image = { width: 2, height: 1, values: [0.25, 1] };
  const three = conditionTensor(image, 3);
  assertEquals(three.shape, [1, 1, 2, 3]);
  assertEquals([...await three.data()], [0.25, 0.25, 0.25, 1, 1, 1]);
  const rgba = {
    width: 1,
    height: 1,
    channels: 4,
    data: Uint8Array.of(51, 102, 255, 51),
  };
  // On black, in color as in grey.
  const color = conditionTensor(rgba, 3);
  close(await color.data(), [0.04, 0.08, 0.2], 1e-6);
  three.dispose();
  color.dispose();
  assertThrows(() => conditionTensor(image, 2), Error, "1 or 3 channels");
}, ["wasm"]);
