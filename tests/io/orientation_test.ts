import { assertEquals } from "@std/assert";
import { orientationOf, upright } from "../../src/io/orientation.ts";

const FOLDER = new URL("../fixtures/pictures/", import.meta.url);

function read(name: string): Promise<Uint8Array> {
  return Deno.readFile(new URL(name, FOLDER));
}

Deno.test("EXIF orientation of JPEG, PNG and AVIF, 1 to 8", async () => {
  for (let o = 1; o <= 8; o++) {
    for (const kind of ["jpg", "png", "avif"]) {
      assertEquals(orientationOf(await read(`turned${o}.${kind}`)), o, kind);
    }
  }
});

Deno.test("where orientation is found, and where it is nonsense", async () => {
  const expected: Record<string, number> = {
    "turned-fill-bytes.jpg": 6,
    "turned-behind-xmp.jpg": 6,
    "turned-behind-comment.jpg": 6,
    "turned-two-exif.jpg": 6,
    "turned-far-directory.jpg": 8,
    "turned-xmp.jpg": 8,
    "turned-nonsense.jpg": 1,
    "exif-empty.jpg": 1,
    "444.jpg": 1,
    "turned-xmp.png": 6,
    "turned-raw-profile.png": 6,
    "rgb8.png": 1,
    "turned5-bare.webp": 5,
    "turned6.webp": 6,
    "turned-xmp.webp": 6,
    "lossy.webp": 1,
    "lossy.avif": 1,
  };
  for (const [name, orientation] of Object.entries(expected)) {
    assertEquals(orientationOf(await read(name)), orientation, name);
  }
});

Deno.test("a file that ends too early has no orientation, and no crash", async () => {
  for (
    const name of ["turned6.jpg", "turned6.png", "turned6.webp", "turned6.avif"]
  ) {
    const whole = await read(name);
    for (let end = 0; end < Math.min(whole.length, 400); end++) {
      const orientation = orientationOf(whole.subarray(0, end));
      assertEquals(orientation >= 1 && orientation <= 8, true);
    }
  }
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

Deno.test("a line of pixels is turned as well", () => {
  const line = {
    width: 3,
    height: 1,
    channels: 1,
    data: Uint8Array.of(1, 2, 3),
  };
  assertEquals([...upright(line, 2).data], [3, 2, 1]);
  assertEquals(upright(line, 6).width, 1);
  assertEquals([...upright(line, 8).data], [3, 2, 1]);
});
