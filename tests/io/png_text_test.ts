import { assertEquals, assertThrows } from "@std/assert";
import { zlibSync } from "fflate";
import { crc32 } from "../../src/io/crc.ts";
import { decodePng, encodePng } from "../../src/io/png.ts";
import { textsOf, withTexts } from "../../src/io/png_text.ts";

const picture = encodePng({
  ...{ width: 2, height: 1, channels: 3 },
  data: Uint8Array.of(1, 2, 3, 4, 5, 6),
});

Deno.test("the check sum is that of the standard's example", () => {
  assertEquals(crc32(new TextEncoder().encode("123456789")), 0xcbf43926);
});

Deno.test("texts in a PNG come back, and its pixels stay", () => {
  const texts = {
    parameters: "a fox\nNegative prompt: snow\nSteps: 20",
    other: "лиса 🦊",
    empty: "",
  };
  const file = withTexts(picture, texts);
  assertEquals(Object.fromEntries(textsOf(file)), texts);
  // fast-png checks every sum.
  assertEquals(decodePng(file), decodePng(picture));
  assertEquals(textsOf(picture).size, 0);
  assertThrows(() => withTexts(file.slice(8), texts), Error, "a PNG file");
  assertThrows(() => withTexts(file, { "é": "" }), Error, "Latin letters");
});

Deno.test("compressed texts of other programs are read", () => {
  const chunk = (kind: string, content: Uint8Array) => {
    const body = Uint8Array.from([
      ...new TextEncoder().encode(kind),
      ...content,
    ]);
    const bytes = new Uint8Array(body.length + 8);
    new DataView(bytes.buffer).setUint32(0, content.length);
    bytes.set(body, 4);
    new DataView(bytes.buffer).setUint32(body.length + 4, crc32(body));
    return [...bytes];
  };
  const bytes = (text: string) => new TextEncoder().encode(text);
  const file = Uint8Array.from([
    ...picture.slice(0, 33),
    ...chunk("zTXt", Uint8Array.of(...bytes("a\0\0"), ...zlibSync(bytes("x")))),
    ...chunk(
      "iTXt",
      Uint8Array.of(...bytes("b\0\x01\0en\0t\0"), ...zlibSync(bytes("ž"))),
    ),
    ...chunk("zTXt", bytes("c\0\0broken")),
    ...chunk("tEXt", bytes("no end of a keyword")),
    ...picture.slice(33),
  ]);
  assertEquals(Object.fromEntries(textsOf(file)), { a: "x", b: "ž" });
});
