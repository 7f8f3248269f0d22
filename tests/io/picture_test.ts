import { assert, assertEquals, assertThrows } from "@std/assert";
import { encode } from "jpeg-js";
import { decodeJpeg, orientationOf, upright } from "../../src/io/jpeg.ts";
import { decodePicture } from "../../src/io/picture.ts";
import { encodePng, type Pixels } from "../../src/io/png.ts";

/** A JPEG that is red in its left half and blue in its right half. */
function jpeg(width: number, height: number): Uint8Array {
  const data = new Uint8Array(width * height * 4);
  for (let p = 0; p < width * height; p++) {
    const left = p % width < width / 2;
    data.set(left ? [250, 10, 10, 255] : [10, 10, 250, 255], 4 * p);
  }
  return new Uint8Array(encode({ width, height, data }, 95).data);
}

/** The JPEG with an EXIF segment that says how to turn it. */
function turned(bytes: Uint8Array, orientation: number, little: boolean) {
  const u16 = (v: number) => little ? [v, 0] : [0, v];
  const u32 = (v: number) => little ? [v, 0, 0, 0] : [0, 0, 0, v];
  const tiff = [
    ...(little ? [0x49, 0x49, 0x2a, 0] : [0x4d, 0x4d, 0, 0x2a]),
    ...u32(8),
    ...u16(2),
    // Another entry first: image width 7.
    ...(little ? [0x00, 0x01] : [0x01, 0x00]),
    ...u16(3),
    ...u32(1),
    ...u16(7),
    0,
    0,
    ...(little ? [0x12, 0x01] : [0x01, 0x12]),
    ...u16(3),
    ...u32(1),
    ...u16(orientation),
    0,
    0,
  ];
  const content = [0x45, 0x78, 0x69, 0x66, 0, 0, ...tiff];
  const length = content.length + 2;
  return new Uint8Array([
    ...bytes.subarray(0, 2),
    0xff,
    0xe1,
    length >> 8,
    length & 255,
    ...content,
    ...bytes.subarray(2),
  ]);
}

/** Mean of one channel over a box. */
function meanOf(
  { width, channels, data }: Pixels,
  [x0, x1]: [number, number],
  [y0, y1]: [number, number],
  channel: number,
): number {
  let sum = 0;
  for (let y = y0; y < y1; y++) {
    for (let x = x0; x < x1; x++) {
      sum += data[(y * width + x) * channels + channel];
    }
  }
  return sum / ((x1 - x0) * (y1 - y0));
}

Deno.test("a JPEG is decoded to RGB", () => {
  const pixels = decodeJpeg(jpeg(32, 16));
  assertEquals([pixels.width, pixels.height, pixels.channels], [32, 16, 3]);
  assert(meanOf(pixels, [0, 14], [0, 16], 0) > 230);
  assert(meanOf(pixels, [18, 32], [0, 16], 2) > 230);
});

Deno.test("a JPEG comes upright, as its EXIF orientation says", () => {
  const stored = jpeg(32, 16);
  for (const little of [true, false]) {
    assertEquals(orientationOf(turned(stored, 6, little)), 6);
    // A quarter turn to the right: what was left is now on top.
    const right = decodeJpeg(turned(stored, 6, little));
    assertEquals([right.width, right.height], [16, 32]);
    assert(meanOf(right, [0, 16], [0, 14], 0) > 230);
    // A quarter turn to the left: what was left is now below.
    const left = decodeJpeg(turned(stored, 8, little));
    assert(meanOf(left, [0, 16], [18, 32], 0) > 230);
    // Half a turn.
    const half = decodeJpeg(turned(stored, 3, little));
    assert(meanOf(half, [18, 32], [0, 16], 0) > 230);
  }
  assertEquals(orientationOf(stored), 1);
  assertEquals(orientationOf(turned(stored, 9, true)), 1);
  // A segment that ends too early is no orientation, and no crash.
  const whole = turned(stored, 6, true);
  for (let end = 0; end < 50; end++) orientationOf(whole.subarray(0, end));
});

Deno.test("the eight orientations of a 3×2 picture", () => {
  // a b c
  // d e f
  const pixels = {
    width: 3,
    height: 2,
    channels: 1,
    data: new TextEncoder().encode("abcdef"),
  };
  const rows = (orientation: number) => {
    const { width, height, data } = upright(pixels, orientation);
    const text = new TextDecoder().decode(data);
    return Array.from(
      { length: height },
      (_, y) => text.slice(y * width, (y + 1) * width),
    ).join("/");
  };
  // EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored picture lie.
  assertEquals(
    [1, 2, 3, 4, 5, 6, 7, 8].map(rows),
    [
      "abc/def",
      "cba/fed",
      "fed/cba",
      "def/abc",
      "ad/be/cf",
      "da/eb/fc",
      "fc/eb/da",
      "cf/be/ad",
    ],
  );
});

Deno.test("a picture is told by its content, and broken ones are refused", () => {
  const png = encodePng({
    width: 1,
    height: 1,
    channels: 3,
    data: Uint8Array.of(1, 2, 3),
  });
  assertEquals([...decodePicture(png, "x.jpg").data], [1, 2, 3]);
  assertEquals(decodePicture(jpeg(8, 8), "x.png").width, 8);
  const webp = new TextEncoder().encode("RIFF0000WEBPVP8 ");
  assertThrows(
    () => decodePicture(webp, "x.webp"),
    Error,
    "Cannot read x.webp",
  );
  assertThrows(() => decodePicture(new Uint8Array()), Error, "a PNG or a JPEG");
  assertThrows(
    () => decodePicture(jpeg(64, 64).subarray(0, 300), "cut.jpg"),
    Error,
    "Cannot read cut.jpg",
  );
  assertThrows(
    () => decodePicture(png.subarray(0, 40), "cut.png"),
    Error,
    "Cannot read cut.png",
  );
});
