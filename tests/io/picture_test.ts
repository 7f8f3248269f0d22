import { assert, assertEquals, assertRejects } from "@std/assert";
import { decodePicture, listPictures } from "../../src/io/picture.ts";
import { encodePng, type Pixels } from "../../src/io/png.ts";

const FOLDER = new URL("../fixtures/pictures/", import.meta.url);

interface Expected {
  readonly size: readonly [number, number];
  readonly bands: number;
  readonly data: string;
}

const { pictures: EXPECTED } = JSON.parse(
  await Deno.readTextFile(new URL("expected.json", FOLDER)),
) as { pictures: Record<string, Expected> };

function file(name: string): Promise<Uint8Array> {
  return Deno.readFile(new URL(name, FOLDER));
}

/** Red, green, blue or alpha of a pixel, whatever the channels. */
function valueOf(pixels: Pixels, pixel: number, k: number): number {
  const { channels, data } = pixels;
  const at = pixel * channels;
  if (k === 3) return channels % 2 === 0 ? data[at + channels - 1] : 255;
  return data[at + (channels < 3 ? 0 : k)];
}

/** Largest difference in columns up to `columns`. */
function difference(
  a: Pixels,
  b: Pixels,
  columns = a.width,
): number {
  assertEquals([a.width, a.height], [b.width, b.height]);
  let most = 0;
  for (let i = 0; i < a.width * a.height; i++) {
    if (i % a.width >= columns) continue;
    for (let k = 0; k < 4; k++) {
      most = Math.max(most, Math.abs(valueOf(a, i, k) - valueOf(b, i, k)));
    }
  }
  return most;
}

/** How far a picture may be from Pillow; see the folder's README.md. */
function allowance(name: string): number {
  if (name.endsWith(".avif")) return 3;
  return name.startsWith("440") ? 2 : 0;
}

function expectedOf(name: string): Pixels {
  const { size: [width, height], bands: channels, data } = EXPECTED[name];
  const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
  return { width, height, channels, data: bytes };
}

for (const kind of ["png", "jpg", "webp", "avif"]) {
  const names = Object.keys(EXPECTED).filter((name) => name.endsWith(kind));
  Deno.test(`${kind}: ${names.length} files have Pillow's pixels`, async () => {
    assert(names.length >= 10);
    const wrong: string[] = [];
    for (const name of names) {
      const pixels = await decodePicture(await file(name), name);
      assertEquals(
        pixels.data.length,
        pixels.width * pixels.height * pixels.channels,
      );
      // libavif before 1.1 has another last column where the width is odd.
      const columns = name === "odd.avif" ? pixels.width - 1 : pixels.width;
      const off = difference(pixels, expectedOf(name), columns);
      if (off > allowance(name)) wrong.push(`${name}: ${off}`);
    }
    assertEquals(wrong, []);
  });
}

Deno.test("the table notices a wrong value, a wrong turn and lost alpha", async () => {
  const name = "rgba8.png";
  const right = expectedOf(name);
  const { width, height, data } = await decodePicture(await file(name));
  const bent = Uint8Array.from(data, (v, i) => i === 17 ? v ^ 1 : v);
  assertEquals(
    difference({ width, height, channels: 4, data: bent }, right),
    1,
  );
  const bare = data.filter((_, i) => i % 4 !== 3);
  assert(difference({ width, height, channels: 3, data: bare }, right) > 100);
  const [a, b] = [expectedOf("turned3.png"), expectedOf("turned4.png")];
  assert(difference(a, b) > 20);
});

Deno.test("channels are as few as the file has", async () => {
  const channels = async (name: string) =>
    (await decodePicture(await file(name))).channels;
  assertEquals(await channels("grey1.png"), 1);
  assertEquals(await channels("grey8-key.png"), 2);
  assertEquals(await channels("palette2.png"), 3);
  assertEquals(await channels("palette2-alpha.png"), 4);
  assertEquals(await channels("grey.jpg"), 1);
  assertEquals(await channels("cmyk.jpg"), 3);
  assertEquals(await channels("lossy.webp"), 3);
  assertEquals(await channels("lossy-alpha.webp"), 4);
  assertEquals(await channels("alpha.avif"), 4);
});

Deno.test("a picture is told by its content, not by its name", async () => {
  const png = encodePng({
    width: 1,
    height: 1,
    channels: 3,
    data: Uint8Array.of(1, 2, 3),
  });
  assertEquals([...(await decodePicture(png, "x.jpg")).data], [1, 2, 3]);
  assertEquals((await decodePicture(await file("420.jpg"), "x.png")).width, 19);
});

Deno.test("what is no picture, or another kind, is refused by name", async () => {
  const text = (sign: string) => Uint8Array.from(sign, (c) => c.charCodeAt(0));
  const bad: [string, Uint8Array, string][] = [
    ["empty.png", new Uint8Array(), "got an empty file"],
    ["a.gif", text("GIF89a...."), "got a GIF"],
    ["a.bmp", text("BM......"), "got a BMP"],
    ["a.tif", text("II*\0...."), "got a TIFF"],
    ["a.heic", text("\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "got a HEIC"],
    ["a.png", text("<!DOCTYPE html>"), "got a web page"],
    ["b.png", text("version https://git-lfs.github.com"), "git-lfs pointer"],
    ["c.png", text("hello there"), "got another kind of file"],
    ["arithmetic.jpg", await file("arithmetic.jpg"), "arithmetic coding"],
  ];
  for (const [name, bytes, message] of bad) {
    const error = await assertRejects(() => decodePicture(bytes, name), Error);
    assert(error.message.startsWith(`Cannot read ${name}: `), error.message);
    assert(error.message.includes(message), error.message);
    assert(error.message.length < 250, error.message);
  }
});

Deno.test("a file that is cut off is refused, wherever it was cut", async () => {
  for (
    const name of [
      "rgba8.png",
      "grey2-interlaced.png",
      "420.jpg",
      "420-progressive.jpg",
      "420-restart.jpg",
      "cmyk.jpg",
      "ycck-progressive.jpg",
      "lossy.webp",
      "lossless-alpha.webp",
      "two-frames.webp",
      "lossy.avif",
    ]
  ) {
    const whole = await file(name);
    // PNG needs no more than its pixels; so does a WebP's first frame.
    const most = name.endsWith("png")
      ? 0.7
      : name === "two-frames.webp"
      ? 0.4
      : 0.97;
    for (let part = 0.02; part <= most; part += 0.05) {
      await assertRejects(
        () => decodePicture(whole.subarray(0, whole.length * part), name),
        Error,
        `Cannot read ${name}: expected`,
        `${name} ${part}`,
      );
    }
    // And the next picture is read as if nothing had been.
    assertEquals(
      difference(await decodePicture(whole), expectedOf(name)) <= 3,
      true,
    );
  }
});

Deno.test("bent bytes are an error or a picture, never anything else", async () => {
  for (const name of ["420.jpg", "ycck-420.jpg", "rgb16.png", "turned6.webp"]) {
    const whole = await file(name);
    for (let at = 2; at < whole.length; at += 23) {
      const bent = Uint8Array.from(whole);
      bent[at] ^= 0x5a;
      try {
        const { width, height, channels, data } = await decodePicture(bent);
        assertEquals(data.length, width * height * channels);
      } catch (error) {
        assert(error instanceof Error);
        assert(error.message.startsWith("Cannot read a picture"), `${error}`);
      }
    }
  }
});

Deno.test("pictures too large to decode are refused by their size", async () => {
  const jpeg = Uint8Array.from(await file("444.jpg"));
  const at = jpeg.findIndex((b, i) => b === 0xff && jpeg[i + 1] === 0xc0);
  jpeg.set([0xff, 0xff, 0xff, 0xff], at + 5);
  await assertRejects(
    () => decodePicture(jpeg, "a.jpg"),
    Error,
    "got 65535×65535",
  );
});

Deno.test("the pictures of a folder are listed by name", async () => {
  const names = await listPictures(FOLDER);
  assert(names.includes("arithmetic.jpg") && names.includes("odd.avif"));
  assert(!names.includes("README.md") && !names.includes("expected.json"));
  assertEquals(names, [...names].sort());
  await assertRejects(
    () => listPictures(new URL("none/", FOLDER)),
    Error,
    "Cannot list",
  );
});
