/** The chart rasteriser: what no other test sees. */
import { assert, assertEquals } from "@std/assert";
import { renderFigure } from "../../src/report/chart.ts";
import { plot } from "../../src/report/figure.ts";
import type { Pixels } from "../../src/io/png.ts";

const bars = (names: readonly string[]) =>
  plot({
    title: "bars",
    ...{ yTitle: "", legend: false },
    series: [{ name: "a", as: "bars", x: [...names], y: names.map(() => 1) }],
  });

/** Groups of ink in the lowest 28 rows, at least so many columns apart. */
function groups({ width, height, data }: Pixels, apart: number): number {
  let found = 0, blank = apart;
  for (let x = 0; x < width; x++) {
    const ink = Array.from(
      { length: 28 },
      (_, y) => data[((height - 28 + y) * width + x) * 3],
    ).some((value) => value < 255);
    if (ink && blank >= apart) found++;
    blank = ink ? 0 : blank + 1;
  }
  return found;
}

Deno.test("names below bars never overlap: a figure is as wide as they need", () => {
  // Of wide letters only, so that no gap is inside a name.
  const names = Array.from(
    { length: 20 },
    (_, i) =>
      [...i.toString(2).padStart(12, "0")].map((c) => "wm"[+c]).join(""),
  );
  assertEquals(groups(renderFigure(bars(names)), 6), names.length);
  // A width that is asked for is kept, and they run into each other.
  const narrow = renderFigure(bars(names), { width: 960 });
  assertEquals(narrow.width, 960);
  assert(groups(narrow, 6) < names.length);
  assertEquals(renderFigure(bars(["a", "b", "c"])).width, 960);
});

Deno.test("a range that is asked for is the axis's, wider where values are", () => {
  /** Middle row of a red point at y. */
  const rowOf = (y: number, range?: readonly [number, number]) => {
    const { width, height, data } = renderFigure(plot({
      ...{ title: "range", legend: false, range },
      series: [{ name: "a", x: [1], y: [y], color: "#ff0000", size: 9 }],
    }));
    const rows = Array.from({ length: height }, (_, row) => row).filter((row) =>
      Array.from({ length: width }, (_, x) => 3 * (row * width + x))
        .some((at) => data[at] > 200 && data[at + 1] < 60)
    );
    return (rows[0] + rows.at(-1)!) / 2;
  };
  const [bottom, middle, top] = [0, 5, 10].map((y) => rowOf(y, [0, 10]));
  assert(bottom - top > 200);
  assert(Math.abs(middle - (bottom + top) / 2) <= 2);
  // Beyond the range the axis goes as far as the value.
  assert(Math.abs(rowOf(20, [0, 10]) - top) <= 2);
  assertEquals(rowOf(0), rowOf(10));
});
