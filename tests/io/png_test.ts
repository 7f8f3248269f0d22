import { assertEquals, assertThrows } from "@std/assert";
import { decodePng, encodePng } from "../../src/io/png.ts";

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
