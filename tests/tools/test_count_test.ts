import { assertEquals } from "@std/assert";
import { runDeno } from "./repository.ts";
import { countJunit, countLine } from "./test_count.ts";

const tool = new URL("./test_count.ts", import.meta.url).pathname;

/** Runs the tool on a test file with this text; its exit code and last line. */
async function counted(source: string): Promise<[number, string | undefined]> {
  const file = await Deno.makeTempFile({ suffix: "_test.ts" });
  try {
    await Deno.writeTextFile(file, source);
    const { code, stdout } = await runDeno(["run", "-q", "-A", tool, file]);
    return [code, stdout.trimEnd().split("\n").at(-1)];
  } finally {
    await Deno.remove(file);
  }
}

Deno.test("the last line counts tests, not steps, and skipped ones apart", async () => {
  const source = `
    Deno.test("a > b & c", async (t) => { await t.step("x", () => {}); });
    Deno.test({ name: "ignored", ignore: true, fn() {} });
    Deno.test("d", () => { console.log("9 passed, 0 failed"); });
  `;
  assertEquals(await counted(source), [0, "2 passed, 0 failed, 1 skipped"]);
});

Deno.test("a failing test or step fails the run and is counted once", async () => {
  const source = `
    Deno.test("steps", async (t) => {
      await t.step("holds", () => {});
      await t.step("does not", () => { throw new Error("no"); });
    });
    Deno.test("holds", () => {});
  `;
  assertEquals(await counted(source), [1, "1 passed, 1 failed"]);
});

Deno.test("a file that does not compile or load is a failure", async () => {
  assertEquals(
    await counted(`const a: number = "text"; Deno.test("t", () => {});`),
    [1, "0 passed, 1 failed"],
  );
  assertEquals(
    await counted(`Deno.test("t", () => {}); throw new Error("loading");`),
    [1, "0 passed, 1 failed"],
  );
});

Deno.test("a file without tests is not a success", async () => {
  assertEquals(await counted("export {};"), [1, "0 passed, 0 failed"]);
});

Deno.test("countJunit reads an empty report; countLine omits no skips", () => {
  const none = countJunit("<testsuites></testsuites>");
  assertEquals(none, { passed: 0, failed: 0, skipped: 0 });
  assertEquals(countLine(none), "0 passed, 0 failed");
});
