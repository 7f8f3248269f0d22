import { assertEquals } from "@std/assert";
import { cannot, keyFaults, listed } from "../../src/core/errors.ts";

Deno.test("messages have one shape", () => {
  assertEquals(
    cannot("sample", "steps ≥ 1", 0).message,
    "Cannot sample: expected steps ≥ 1, got 0",
  );
});

Deno.test("an error names ten keys, counts the rest and keeps them all", () => {
  assertEquals(keyFaults("load x", { missing: [], unexpected: [] }), undefined);
  const few = keyFaults("load x", {
    missing: ["a", "b"],
    misshapen: ["c (d)"],
  })!;
  assertEquals(
    few.message,
    "Cannot load x: 2 missing: a, b; 1 misshapen: c (d)",
  );
  assertEquals(few.keys, ["missing: a", "missing: b", "misshapen: c (d)"]);
  const keys = Array.from({ length: 300 }, (_, i) => `key${i}.`);
  const many = keyFaults("load x", { missing: keys, unexpected: ["u"] })!;
  assertEquals(many.keys.length, 301);
  assertEquals(many.message.match(/key\d+\./g)?.length, 5);
  assertEquals(
    many.message.replace(/key.* and /, "… and "),
    "Cannot load x: 300 missing: … and 295 more; 1 unexpected: u (with " +
      "MIX_OF_SHOW_KEYS=FILE the commands write all 301 there)",
  );
  const one = keyFaults("load x", { missing: keys })!;
  assertEquals(one.message.match(/key\d+\./g)?.length, 10);
  const last = keyFaults("load x", { missing: ["a"], unexpected: keys })!;
  assertEquals(last.message.match(/key\d+\./g)?.length, 9);
  assertEquals(listed(["a", "b", "c"], 2), "a, b and 1 more");
  assertEquals(listed(["a", "b"], 2), "a, b");
});
