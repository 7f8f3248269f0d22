import {
  assert,
  assertAlmostEquals,
  assertEquals,
  assertRejects,
  assertThrows,
} from "@std/assert";
import { contactSheet } from "../../src/report/grid.ts";
import { figure, page, pictureGrid, table } from "../../src/report/html.ts";
import {
  change,
  decimal,
  interval,
  percent,
  signed,
} from "../../src/report/format.ts";
import { svgPixels } from "../../src/report/svg.ts";
import { markdownTable, textTable } from "../../src/report/table.ts";
import {
  escapeHtml,
  FONT,
  textWidth,
  wrapText,
} from "../../src/report/text.ts";
import type { Pixels } from "../../src/io/png.ts";

const solid = (color: number[], side = 4): Pixels => ({
  width: side,
  height: side,
  channels: 3,
  data: Uint8Array.from({ length: side * side * 3 }, (_, i) => color[i % 3]),
});

Deno.test("text is as wide as its font draws it", async () => {
  for (const text of ["Held-out error", "gradient fusion, 1/n", "WWW iii @"]) {
    const { width, height, data } = await svgPixels(
      `<svg xmlns="http://www.w3.org/2000/svg" width="400" height="40">
<text x="10" y="30" font-size="20" font-family="${FONT}">${text}</text></svg>`,
    );
    assertEquals([width, height], [400, 40]);
    const inked = Array.from({ length: width }, (_, x) => x).filter((x) =>
      Array.from({ length: height }, (_, y) => data[3 * (y * width + x)])
        .some((value) => value < 128)
    );
    // Letters stand in their advance, a pixel or two from either end.
    assertAlmostEquals(inked.at(-1)! - inked[0], textWidth(text, 20), 5);
  }
});

Deno.test("text is broken at spaces, and a long word stays whole", () => {
  const width = textWidth("two words", 12);
  assertEquals(wrapText("two words more", width, 12), ["two words", "more"]);
  assertEquals(wrapText("immeasurable a", 20, 12), ["immeasurable", "a"]);
  assertEquals(wrapText("", 20, 12), [""]);
});

Deno.test("a contact sheet has every picture where it belongs", async () => {
  const red = solid([255, 0, 0]), blue = solid([0, 0, 255]);
  const cells = [[red, undefined], [undefined, blue]];
  const sheet = await contactSheet(cells, { gap: 1 });
  assertEquals([sheet.width, sheet.height], [11, 11]);
  const at = (x: number, y: number) => [
    ...sheet.data.slice(
      (y * sheet.width + x) * 3,
      (y * sheet.width + x) * 3 + 3,
    ),
  ];
  assertEquals(at(1, 1), [255, 0, 0]);
  assertEquals(at(4, 4), [255, 0, 0]);
  assertEquals(at(5, 5), [255, 255, 255]);
  assertEquals(at(6, 6), [0, 0, 255]);
  assertEquals(at(6, 1), [255, 255, 255]);
});

Deno.test("labels stand beside their pictures; scale enlarges pictures", async () => {
  const black = solid([0, 0, 0]);
  const plain = await contactSheet([[black]], { scale: 3 });
  const { width, height, data } = await contactSheet([[black]], {
    rowLabels: ["row"],
    columnLabels: ["column"],
    title: "title",
    captions: [["two words"]],
    scale: 3,
  });
  assert(width > plain.width + 8);
  assert(height > plain.height + 8);
  const isInked = (left: number, top: number, right: number, bottom: number) =>
    Array.from(
      { length: (right - left) * (bottom - top) },
      (_, i) =>
        data[
          3 * ((top + Math.floor(i / (right - left))) * width + left +
            i % (right - left))
        ],
    ).some((value) => value < 128);
  assert(isInked(0, 0, width, 14), "the title");
  assert(isInked(0, height - 28, width, height - 14), "a caption's first line");
  assert(isInked(0, height - 14, width, height), "its second");
});

Deno.test("a contact sheet refuses what does not fit", async () => {
  const refused = async (
    cells: Parameters<typeof contactSheet>[0],
    message: string,
    options: Parameters<typeof contactSheet>[1] = {},
  ) =>
    void await assertRejects(
      () => contactSheet(cells, options),
      Error,
      message,
    );
  const black = solid([0, 0, 0]);
  await refused([[undefined]], "at least one");
  await refused([[black, solid([0, 0, 0], 5)]], "4×4");
  await refused([[black]], "1 row labels", { rowLabels: [] });
});

Deno.test("tables: numbers to the right, pipes escaped, same width", () => {
  const t = { head: ["name", "score"], rows: [["a|b", "0.5"], ["c", "−1.25"]] };
  assertEquals(
    markdownTable(t),
    "| name | score |\n| ---- | ----: |\n| a\\|b |   0.5 |\n| c    | −1.25 |\n",
  );
  assertEquals(
    textTable(t),
    "name  score\n────  ─────\na|b     0.5\nc     −1.25\n",
  );
  assertThrows(
    () => textTable({ head: ["a"], rows: [["1", "2"]] }),
    Error,
    "rows of 1",
  );
});

Deno.test("a table fits its terminal", () => {
  const t = {
    head: ["claim", "value"],
    rows: [["gradient fusion keeps more than weight fusion", "0.12"]],
  };
  assertEquals(
    textTable(t, 24),
    [
      "claim              value",
      "─────────────────  ─────",
      "gradient fusion     0.12",
      "keeps more than",
      "weight fusion",
      "",
    ].join("\n"),
  );
  for (const most of [60, 30, 20, 12]) {
    const lines = textTable(t, most).trimEnd().split("\n");
    for (const line of lines) assert([...line].length <= most, line);
    // Nothing is lost.
    const words = lines.join(" ").split(/[\s─]+/);
    for (const word of ["gradient", "fusion", "weight", "0.12"]) {
      assert(words.includes(word), `${most}: ${lines.join("\n")}`);
    }
  }
  // Where columns have no room, each row is lines.
  assertEquals(
    textTable({ head: ["a", "b"], rows: [["one two", "0.12345678"]] }, 14),
    "a: one two\nb: 0.12345678\n",
  );
});

Deno.test("numbers for people", () => {
  assertEquals(decimal(0.12345), "0.123");
  assertEquals(decimal(-0.0001), "0.000");
  assertEquals(decimal(-0.5), "−0.500");
  assertEquals(decimal(NaN), "–");
  assertEquals(signed(0.5, 1), "+0.5");
  assertEquals(signed(-0.5, 1), "−0.5");
  assertEquals(signed(Infinity), "–");
  assertEquals(change(0.816, 0.701), "0.816 → 0.701 (−0.115)");
  assertEquals(change(0.8, null), "0.800 → – (–)");
  const share = { mean: 0.88, low: 0.7, high: 0.951 };
  assertEquals(interval(share, 2), "0.88 (0.70 to 0.95)");
  assertEquals(interval({ ...share, low: null }, 2), "0.88");
  assertEquals(interval(undefined), "–");
  assertEquals(percent(share), "88 % (70 to 95)");
});

Deno.test("nothing in a page can end its script or its element", async () => {
  const evil = "</script><b>\"'&";
  const html = await page(evil, [
    table({ head: [evil], rows: [[evil]] }),
  ]);
  assert(!html.includes("<b>"));
  assertEquals(escapeHtml(evil), "&lt;/script&gt;&lt;b&gt;&quot;'&amp;");
  const { html: plot } = figure("f", { data: [{ name: evil }] });
  assertEquals(plot.match(/<\/script>/g)?.length, 1);
});

Deno.test("plotly is inlined where it is needed, and nothing is fetched", async () => {
  const grid = pictureGrid({
    columns: ["a"],
    rows: [{ label: "b", cells: [solid([1, 2, 3])] }],
  });
  const without = await page("t", [grid]);
  assert(without.length < 10_000);
  assert(without.includes("data:image/png;base64,"));
  const withPlot = await page("t", [figure("f", { data: [] })]);
  assert(withPlot.includes("Plotly.newPlot"));
  assert(withPlot.length > 1_000_000);
  for (const html of [without, withPlot]) {
    assert(!/<(script|link|img)[^>]+(src|href)="https?:/.test(html));
  }
});
