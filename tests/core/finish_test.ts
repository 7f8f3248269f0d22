import { assertEquals, assertRejects } from "@std/assert";
import { finish } from "../../src/core/finish.ts";

async function* count(to: number): AsyncGenerator<number, string, void> {
  for (let i = 1; i <= to; i++) yield await Promise.resolve(i);
  return "done";
}

Deno.test("a generator is run to its end, every record is seen", async () => {
  const seen: number[] = [];
  assertEquals(await finish(count(3), (n) => void seen.push(n)), "done");
  assertEquals(seen, [1, 2, 3]);
  assertEquals(await finish(count(0)), "done");
});

Deno.test("an error in the generator or in the observer comes out", async () => {
  await assertRejects(
    () =>
      finish(count(3), (n) => {
        if (n === 2) throw new Error("enough");
      }),
    Error,
    "enough",
  );
});
