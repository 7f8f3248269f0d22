import { assert, assertEquals } from "@std/assert";
import { createProgress, rate } from "../../src/cli/progress.ts";
import { duration } from "../../src/report/format.ts";

function double(watched: boolean) {
  let text = "";
  let time = 0;
  return {
    terminal: {
      writeSync(bytes: Uint8Array): number {
        text += new TextDecoder().decode(bytes);
        return bytes.length;
      },
      isTerminal: () => watched,
    },
    columns: 80,
    now: () => time,
    pass: (ms: number) => time += ms,
    text: () => text,
  };
}

Deno.test("durations and rates for people", () => {
  assertEquals([0, 42.4, 200, 3900].map(duration), [
    "0 s",
    "42 s",
    "3 min 20 s",
    "1 h 05 min",
  ]);
  assertEquals(rate(12.3, "image"), "12 images/s");
  assertEquals(rate(0.25, "step"), "4.0 s/step");
  assertEquals(rate(0, "step"), "");
});

Deno.test("a watched bar redraws one line and says how long is left", () => {
  const d = double(true);
  const progress = createProgress(d);
  progress.update("drawing", 0, 10, "image");
  d.pass(2000);
  progress.update("drawing", 5, 10, "image");
  assert(d.text().includes("5/10  2.5 images/s  2 s left"), d.text());
  assert(!d.text().includes("\n"));
  d.pass(2000);
  progress.update("drawing", 10, 10, "image");
  assert(d.text().endsWith("10/10  2.5 images/s  4 s\n"), d.text());
});

Deno.test("what was in the cache does not count for the rate", () => {
  const d = double(true);
  const progress = createProgress(d);
  progress.update("training", 80, 100);
  d.pass(10_000);
  progress.update("training", 90, 100);
  assert(d.text().includes("90/100  1.0 steps/s  10 s left"), d.text());
});

Deno.test("a pipe gets plain lines, few of them", () => {
  const d = double(false);
  const progress = createProgress({ ...d, every: 10 });
  for (let i = 0; i <= 100; i++) {
    progress.update("scoring", i, 100);
    d.pass(300);
  }
  progress.update("scoring", 100, 100);
  const lines = d.text().trim().split("\n");
  assertEquals(lines.length, 4);
  assertEquals(lines.at(-1), "scoring: 100/100, 3.3 steps/s, 30 s");
  assert(!d.text().includes("\x1b"));
});

Deno.test("a bar never wraps", () => {
  const d = { ...double(true), columns: 30 };
  const progress = createProgress(d);
  progress.update("a name that is long enough to wrap", 1, 3);
  const shown = d.text().replace("\r\x1b[2K", "");
  assert([...shown].length < 30);
});

Deno.test("a bar fits narrow terminals, and still says how long is left", () => {
  for (const columns of [80, 60, 40, 30, 20]) {
    const d = { ...double(true), columns };
    const progress = createProgress(d);
    progress.update("training concepts", 0, 1000, "step");
    d.pass(200_000);
    progress.update("training concepts", 50, 1000, "step");
    const line = d.text().split("\x1b[2K").at(-1)!;
    assert([...line].length < columns, `${columns}: ${line}`);
    assert(columns < 30 || line.endsWith("1 h 03 min left"), line);
    assertEquals(line.includes("·"), columns >= 60, line);
    assertEquals(line.includes("s/step"), columns >= 80, line);
  }
});
