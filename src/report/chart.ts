/**
 * Renders a plotly figure as a picture, without a browser: plotly draws it in
 * jsdom, and resvg rasterises the SVG.
 *
 * @module
 */
import { cannot, reasonOf } from "../core/errors.ts";
import type { Pixels } from "../io/png.ts";
import { boxInPage, boxOf, type SvgElement } from "./boxes.ts";
import { type Figure, titleOf } from "./figure.ts";
import { plotlySource } from "./html.ts";
import { svgPixels } from "./svg.ts";
import { FONT, textWidth, wrapText } from "./text.ts";

/** Size of the title in pixels. */
const TITLE = 17;

/** Size of a chart. */
export interface RenderOptions {
  /** Pixels. @default 960 */
  readonly width?: number;
  /** Pixels. @default 540 */
  readonly height?: number;
}

/** The functions of plotly that are used. */
interface Plotly {
  toImage(
    figure: { readonly data: unknown; readonly layout: unknown },
    options: {
      readonly format: "svg";
      readonly width: number;
      readonly height: number;
    },
  ): Promise<string>;
}

let plotly: Promise<Plotly> | undefined;

/** Loads plotly into a jsdom page. */
async function load(): Promise<Plotly> {
  const [{ JSDOM }, source] = await Promise.all([
    import("jsdom"),
    plotlySource(),
  ]);
  const { window } = new JSDOM("<!doctype html>", { pretendToBeVisual: true });
  const { Element, SVGElement, HTMLCanvasElement } = window;
  Element.prototype.getBoundingClientRect = function (this: SvgElement) {
    return boxInPage(this);
  };
  SVGElement.prototype.getBBox = function (this: SvgElement) {
    return boxOf(this);
  };
  SVGElement.prototype.getComputedTextLength = function (this: SvgElement) {
    return boxOf(this).width;
  };
  // jsdom lacks both; plotly calls them but works without.
  HTMLCanvasElement.prototype.getContext = () => null;
  window.URL.createObjectURL = () => "";
  const module: { exports: unknown } = { exports: {} };
  // Global names that plotly expects are taken from jsdom's window.
  new Function(
    "window",
    "self",
    "module",
    "exports",
    `with (window) {${source}
}`,
  )(window, window, module, module.exports);
  return module.exports as Plotly;
}

/**
 * Draws a figure.
 *
 * @param figure Traces and layout.
 * @param options Size in pixels.
 * @returns An RGB picture.
 * @throws If plotly or the picture's font cannot be loaded, as in a page, where
 * plotly draws the figure itself.
 *
 * @example
 * ```ts ignore
 * await writeAtomic("chart.png", encodePng(await renderFigure(figure)));
 * ```
 */
export async function renderFigure(
  { data, layout = {} }: Figure,
  { width = 960, height = 540 }: RenderOptions = {},
): Promise<Pixels> {
  plotly ??= load();
  let drawn: string;
  try {
    drawn = await (await plotly).toImage(
      structuredClone({ data, layout: placed(data, layout, width) }),
      { format: "svg", width, height },
    );
  } catch (error) {
    plotly = undefined;
    throw cannot("draw a figure", "plotly in jsdom", reasonOf(error));
  }
  const svg = decodeURIComponent(drawn.slice(drawn.indexOf(",") + 1));
  return await svgPixels(svg);
}

/**
 * A layout with the title on top and the legend between title and axes, where
 * rotated labels do not overlap it.
 */
function placed(
  data: Figure["data"],
  layout: NonNullable<Figure["layout"]>,
  width: number,
): NonNullable<Figure["layout"]> {
  const { title: _, legend, ...rest } = layout;
  const title = titleOf(layout);
  const [left, right] = [64, 20];
  const lines = title === undefined
    ? []
    : wrapText(title, width - left - right, TITLE);
  const below = 10 + 1.3 * TITLE * lines.length;
  const shown = data.filter((trace) =>
    !("showlegend" in trace && trace.showlegend === false)
  );
  // Plotly has no legend for a single series unless it is asked for.
  const names = rest.showlegend ?? shown.length > 1
    ? shown.flatMap(({ name }) => typeof name === "string" ? [name] : [])
    : [];
  // Plotly gives each legend entry the width of the longest, and a symbol
  // before it.
  const widest = Math.max(...names.map((name) => textWidth(name, 12) + 50));
  const columns = Math.max(1, Math.floor((width - left - right) / widest));
  const rows = legend ? Math.ceil(names.length / columns) : 0;
  return {
    font: { family: FONT, size: 13 },
    margin: { t: below + 20 * rows + 10, r: right, b: 30, l: left },
    ...(legend
      ? { legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom" } }
      : {}),
    title: {
      ...{ text: lines.join("<br>"), font: { size: TITLE } },
      ...{ x: 0, xref: "paper", xanchor: "left" },
      ...{ y: 1 - 10 / 540, yref: "container", yanchor: "top" },
    },
    ...rest,
  };
}
