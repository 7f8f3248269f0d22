import { assertEquals, assertThrows } from "@std/assert";
import { decodePng, encodePng } from "../../src/io/png.ts";

const FOLDER = new URL("../fixtures/pictures/", import.meta.url);

Deno.test("PNG keeps pixels of every channel count", () => {
  for (const channels of [1, 2, 3, 4]) {
    const data = Uint8Array.from(
      { length: 5 * 3 * channels },
      (_, i) => (i * 37) % 256,
    );
    const image = { width: 5, height: 3, channels, data };
    assertEquals(decodePng(encodePng(image)), image);
  }
});

Deno.test("PNG refuses what is no image", () => {
  const image = { width: 2, height: 2, channels: 3, data: new Uint8Array(11) };
  assertThrows(
    () => encodePng(image),
    Error,
    "Cannot encode PNG: expected 12 bytes",
  );
  assertThrows(
    () => decodePng(new TextEncoder().encode("not a picture at all")),
    Error,
    "Cannot decode PNG",
  );
  const whole = encodePng({ ...image, data: new Uint8Array(12) });
  assertThrows(() => decodePng(whole.subarray(0, 30)), Error, "Cannot decode");
});

Deno.test("a transparent grey level is told before samples are scaled", async () => {
  // PNG, 11.3.2.1: 5 of 0 to 15 is transparent; scaled it is 85.
  const bytes = await Deno.readFile(new URL("grey4-key.png", FOLDER));
  const { channels, data } = decodePng(bytes);
  assertEquals(channels, 2);
  let transparent = 0;
  for (let i = 0; i < data.length; i += 2) {
    assertEquals(data[i] % 17, 0);
    assertEquals(data[i + 1], data[i] === 85 ? 0 : 255);
    if (data[i + 1] === 0) transparent++;
  }
  assertEquals(transparent > 0, true);
});

Deno.test("a PNG whose check sum is wrong is refused", async () => {
  for (const name of ["rgba8.png", "grey16.png", "palette4.png"]) {
    const bytes = await Deno.readFile(new URL(name, FOLDER));
    // The last byte of the pixels' check sum, before IEND's twelve.
    bytes[bytes.length - 13] ^= 1;
    assertThrows(() => decodePng(bytes), Error, "Cannot decode PNG");
  }
});

Deno.test("depths that a colour type does not have are refused", async () => {
  const bytes = await Deno.readFile(new URL("rgb8.png", FOLDER));
  bytes[24] = 4;
  assertThrows(() => decodePng(bytes), Error, "type 2 with 4 bits");
});
