/** Charts without a browser: plotly's boxes, and what stands where. */
import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import type { Pixels } from "../../src/io/png.ts";
import { boxInPage, boxOf, type SvgElement } from "../../src/report/boxes.ts";
import { renderFigure } from "../../src/report/chart.ts";
import { plot, type PlotOptions } from "../../src/report/figure.ts";
import { textWidth } from "../../src/report/text.ts";

/** An element of a picture that is not drawn. */
function element(
  tagName: string,
  attributes: Record<string, string | number>,
  inside: string | SvgElement[],
): SvgElement {
  const children: SvgElement[] = typeof inside === "string" ? [] : inside;
  const self = {
    ...{ tagName, children, parentElement: null as SvgElement | null },
    textContent: typeof inside === "string" ? inside : null,
    getAttribute: (name: string) =>
      attributes[name] === undefined ? null : String(attributes[name]),
  };
  for (const child of children) {
    (child as { parentElement: SvgElement | null }).parentElement = self;
  }
  return self;
}

Deno.test("boxes: text by its anchor, turned, moved, and in a group", () => {
  const width = textWidth("single", 10);
  const text = (attributes: Record<string, string | number>) =>
    element(
      "text",
      { x: 100, y: 50, "font-size": 10, ...attributes },
      "single",
    );
  const { left, right, top, bottom } = boxOf(text({}));
  assertEquals([left, right], [100, 100 + width]);
  assert(top < 50 && top > 40 && bottom > 50 && bottom < 53);
  const middle = boxOf(text({ "text-anchor": "middle" }));
  assertAlmostEquals(middle.left + middle.right, 200);
  assertEquals(boxOf(text({ "text-anchor": "end" })).right, 100);
  // A quarter turn about its own place: it goes down, not to the right.
  const turned = boxInPage(text({ transform: "rotate(90,100,50)" }));
  assertAlmostEquals(turned.top, 50);
  assertAlmostEquals(turned.height, width);
  assertAlmostEquals(turned.width, bottom - top);
  const group = element("g", { transform: "translate(5,-5) scale(2)" }, [
    text({}),
    element("rect", { x: 0, y: 40, width: 10, height: 30 }, []),
    element("path", { d: "M0,0V900" }, []),
  ]);
  assertEquals([boxOf(group).left, boxOf(group).bottom], [0, 70]);
  const page = boxInPage(group);
  assertEquals([page.left, page.bottom, page.y], [5, 135, page.top]);
  assertAlmostEquals(page.right, 5 + 2 * (100 + width));
  assertEquals(boxOf(element("path", {}, [])).width, 0);
});

Deno.test("lines of a text stand below each other", () => {
  const line = (dy: number) =>
    element("tspan", { class: "line", dy: `${dy}em` }, "a");
  const { top, bottom } = boxOf(
    element("text", { "font-size": 10 }, [line(0), line(1.3)]),
  );
  assertAlmostEquals(bottom - top, 13 + 0.93 * 10 + 0.24 * 10);
});

/** Rows in which some pixel between two columns is no background. */
function inkedRows(
  { width, height, data }: Pixels,
  from: number,
  to: number,
): boolean[] {
  return Array.from(
    { length: height },
    (_, y) =>
      Array.from(
        { length: to - from },
        (_, x) => data[3 * (y * width + from + x)],
      )
        .some((value) => value < 160),
  );
}

Deno.test("title, legend and names below the bars do not overlap", async () => {
  const names = Array.from(
    { length: 20 },
    (_, i) => `a way with a long name ${i}`,
  );
  const options: PlotOptions = {
    title: "A title that is long enough to need two lines of the chart. " +
      "It is followed by a legend of several rows, which begins below it",
    yTitle: "error",
    series: names.slice(0, 9).map((name) => ({
      ...{ name: `${name}, and more`, as: "markers" },
      ...{ x: names, y: names.map((_, i) => i) },
    })),
  };
  const image = await renderFigure(plot(options));
  assertEquals([image.width, image.height], [960, 540]);
  // Right of the axis's own numbers; letters are rows of ink.
  const inked = inkedRows(image, 70, 900).slice(0, 200);
  const lines: number[] = [];
  inked.forEach((is, y) => is && !inked[y - 1] && lines.push(y));
  // Two lines of the title and three rows of the legend, apart.
  assert(lines.length >= 5, lines.join());
  // Names are turned: a column of the lowest rows has ink all the way down.
  const below = inkedRows(image, 0, 960).slice(380).filter((is) => is).length;
  assert(below > 60, `${below} rows`);
});

Deno.test("a range that is asked for is the axis's", async () => {
  /** Middle row of a red point at y. */
  const rowOf = async (y: number, range?: readonly [number, number]) => {
    const { width, height, data } = await renderFigure(
      plot({
        ...{ title: "range", legend: false, range },
        series: [{ name: "a", x: [1], y: [y], color: "#ff0000", size: 9 }],
      }),
      { width: 480, height: 300 },
    );
    assertEquals([width, height], [480, 300]);
    const rows = Array.from({ length: height }, (_, row) => row).filter((row) =>
      Array.from({ length: width }, (_, x) => 3 * (row * width + x))
        .some((at) => data[at] > 200 && data[at + 1] < 100)
    );
    return (rows[0] + rows.at(-1)!) / 2;
  };
  const bottom = await rowOf(0, [0, 10]), middle = await rowOf(5, [0, 10]);
  const top = await rowOf(10, [0, 10]);
  assert(bottom - top > 150);
  assert(Math.abs(middle - (bottom + top) / 2) <= 2);
  assertEquals(await rowOf(0), await rowOf(10));
});

Deno.test("names that look like numbers are names: places are evenly apart", async () => {
  const { layout } = plot({
    title: "ridges",
    series: [{ name: "a", x: ["1e-6", "1", "auto"], y: [1, 2, 3] }],
  });
  assertEquals((layout!.xaxis as { type?: string }).type, "category");
  /** Middle columns of the markers. */
  const places = async (x: (string | number)[]) => {
    const { width, height, data } = await renderFigure(plot({
      ...{ title: "", legend: false },
      series: [{ name: "a", x, y: [1, 1, 1], color: "#ff0000", size: 9 }],
    }));
    const red = Array.from({ length: width }, (_, x) => x).filter((x) =>
      Array.from({ length: height }, (_, y) => 3 * (y * width + x))
        .some((at) => data[at] > 200 && data[at + 1] < 100)
    );
    const starts = red.filter((x) => !red.includes(x - 1));
    return [starts[1] - starts[0], starts[2] - starts[1]];
  };
  const [first, second] = await places(["1", "2", "20"]);
  assertAlmostEquals(first, second, 2);
  const [near, far] = await places([1, 2, 20]);
  assert(far > 10 * near);
});
