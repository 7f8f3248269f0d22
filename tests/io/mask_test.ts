import { assertEquals, assertThrows } from "@std/assert";
import { fitMask, maskOf } from "../../src/io/mask.ts";
import type { Pixels } from "../../src/io/png.ts";

/** A row of pixels. */
function row(...pixels: number[][]): Pixels {
  return {
    width: pixels.length,
    height: 1,
    channels: pixels[0].length,
    data: Uint8Array.from(pixels.flat()),
  };
}

function mask(...pixels: number[][]): number[] {
  return [...maskOf(row(...pixels)).data];
}

Deno.test("masks as people make them", () => {
  // White on black, grey and in colour.
  assertEquals(mask([255], [0], [130]), [255, 0, 130]);
  assertEquals(mask([255, 255, 255], [0, 0, 0]), [255, 0]);
  // Painted in one colour: also blue, whose luminance is dark.
  assertEquals(mask([255, 0, 0], [0, 0, 0]), [255, 0]);
  assertEquals(mask([0, 0, 255], [0, 0, 0]), [255, 0]);
  // Saved with an alpha channel that says nothing.
  assertEquals(mask([255, 255, 255, 255], [0, 0, 0, 255]), [255, 0]);
  assertEquals(mask([255, 255], [0, 255]), [255, 0]);
  // A cut-out: dark and bright colours, alpha is the mask.
  assertEquals(
    mask([90, 60, 30, 255], [5, 5, 5, 255], [0, 0, 0, 0]),
    [255, 255, 0],
  );
  // Black or white painted on an empty layer.
  assertEquals(mask([0, 0, 0, 255], [0, 0, 0, 0]), [255, 0]);
  assertEquals(mask([255, 255, 255, 255], [255, 255, 255, 0]), [255, 0]);
  // Black and white on a layer smaller than the picture.
  assertEquals(
    mask([255, 255, 255, 255], [0, 0, 0, 255], [0, 0, 0, 0]),
    [255, 0, 0],
  );
  // Labels.
  assertEquals(mask([1], [0]), [255, 0]);
  // Nothing inside stays nothing.
  assertEquals(mask([0], [0]), [0, 0]);
  assertEquals(mask([255, 0], [255, 0]), [0, 0]);
});

Deno.test("a mask takes its picture's size, if it has its shape", () => {
  const half: Pixels = {
    width: 4,
    height: 2,
    channels: 1,
    data: Uint8Array.of(0, 0, 255, 255, 0, 0, 255, 255),
  };
  const { width, height, data } = fitMask(half, { width: 8, height: 4 });
  assertEquals([width, height], [8, 4]);
  // Bilinear, as Pillow: the edge stays in the middle.
  assertEquals([...data.subarray(0, 8)].map((v) => v >= 128 ? 1 : 0), [
    ...[0, 0, 0, 0],
    ...[1, 1, 1, 1],
  ]);
  assertEquals(fitMask(half, { width: 4, height: 2 }), half);
  // 1000×667 halved is 500×333: a pixel is rounding.
  const photo = { width: 1000, height: 667 };
  const small: Pixels = {
    width: 500,
    height: 333,
    channels: 1,
    data: new Uint8Array(500 * 333),
  };
  assertEquals(fitMask(small, photo).height, 667);
  for (
    const [w, h] of [[2, 2], [2, 4], [64, 64], [667, 1000], [500, 331]]
  ) {
    const other = { ...small, width: w, height: h };
    assertThrows(
      () => fitMask(other, photo, "masks/a.png"),
      Error,
      "Cannot lay masks/a.png over its picture: expected the picture's " +
        "1000×667, or that shape in another size, got " + `${w}×${h}`,
    );
  }
});
