import { assertEquals } from "@std/assert";
import { sha256 } from "../../src/core/hash.ts";

Deno.test("sha256 gives FIPS 180-4's examples, of text and of bytes", async () => {
  const abc =
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  assertEquals(await sha256("abc"), abc);
  assertEquals(await sha256(new TextEncoder().encode("abc")), abc);
  assertEquals(
    await sha256(""),
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
  );
});
