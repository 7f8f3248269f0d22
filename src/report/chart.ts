/**
 * A plotly figure as a picture, drawn here because plotly's own static output
 * needs a browser's DOM, which Deno has not: the fallback that notebooks and
 * repositories show. Bars, lines, markers, error bars and legends are drawn;
 * what a trace has beyond that is left out.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Pixels } from "../io/png.ts";
import { drawText, GLYPH_HEIGHT, textWidth } from "./font.ts";
import type { Figure } from "./figure.ts";

type Color = readonly [number, number, number];

/** Plotly's colours, in their order. */
const PALETTE = [
  "#1f77b4",
  "#ff7f0e",
  "#2ca02c",
  "#d62728",
  "#9467bd",
  "#8c564b",
  "#e377c2",
  "#7f7f7f",
  "#bcbd22",
  "#17becf",
];
const INK: Color = [40, 40, 40];
const GRID: Color = [225, 228, 232];

function parseColor(text: unknown, fallback: Color): Color {
  if (typeof text !== "string") return fallback;
  const hex = /^#([0-9a-f]{3}|[0-9a-f]{6})$/i.exec(text)?.[1];
  if (!hex) return fallback;
  const full = hex.length === 3 ? [...hex].map((c) => c + c).join("") : hex;
  const at = (i: number) => parseInt(full.slice(2 * i, 2 * i + 2), 16);
  return [at(0), at(1), at(2)];
}

/** What is used of a trace. */
interface Trace {
  readonly name: string;
  readonly bars: boolean;
  readonly lines: boolean;
  readonly markers: boolean;
  readonly dashed: boolean;
  readonly colors: readonly Color[];
  readonly legend: boolean;
  readonly x: readonly (string | number)[];
  readonly y: readonly (number | null)[];
  readonly plus: readonly number[];
  readonly minus: readonly number[];
}

type Loose = Readonly<Record<string, unknown>>;
const loose = (value: unknown): Loose =>
  typeof value === "object" && value !== null ? value as Loose : {};
const list = (value: unknown): readonly unknown[] =>
  Array.isArray(value) ? value : [];

function readTrace(raw: Loose, i: number): Trace {
  const fallback = parseColor(PALETTE[i % PALETTE.length], INK);
  const marker = loose(raw.marker), line = loose(raw.line);
  const error = loose(raw.error_y);
  const bars = raw.type === "bar";
  const mode = String(raw.mode ?? "lines+markers");
  const y = list(raw.y).map((v) =>
    typeof v === "number" && Number.isFinite(v) ? v : null
  );
  const own = Array.isArray(marker.color)
    ? marker.color
    : [marker.color ?? line.color];
  return {
    name: String(raw.name ?? ""),
    bars,
    lines: !bars && mode.includes("lines"),
    markers: !bars && mode.includes("markers"),
    dashed: typeof line.dash === "string" && line.dash !== "solid",
    colors: y.map((_, k) => parseColor(own[k % own.length], fallback)),
    legend: raw.showlegend !== false && raw.name !== undefined,
    x: Array.isArray(raw.x) ? raw.x as (string | number)[] : y.map((_, k) => k),
    y,
    plus: list(error.array).map(Number),
    minus: list(error.arrayminus ?? error.array).map(Number),
  };
}

function titleOf(value: unknown): string {
  if (typeof value === "string") return value;
  const { text } = loose(value);
  return typeof text === "string" ? text : "";
}

/** Round numbers between two ends. */
function ticks(low: number, high: number, most = 6): number[] {
  const raw = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((m) => m * power >= raw) ?? 10);
  const result: number[] = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) {
    result.push(Number((i * step).toPrecision(12)));
  }
  return result;
}

/** A number in as few characters as say it. */
function label(value: number): string {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5)
    ? value.toExponential(0)
    : String(Number(value.toPrecision(4)));
}

/** A canvas with lines and boxes. */
class Canvas {
  readonly data: Uint8Array;
  constructor(readonly width: number, readonly height: number) {
    this.data = new Uint8Array(width * height * 3).fill(255);
  }
  dot(x: number, y: number, color: Color): void {
    const px = Math.round(x), py = Math.round(y);
    if (px < 0 || py < 0 || px >= this.width || py >= this.height) return;
    this.data.set(color, (py * this.width + px) * 3);
  }
  box(x0: number, y0: number, x1: number, y1: number, color: Color): void {
    const [left, right] = [Math.min(x0, x1), Math.max(x0, x1)];
    const [top, bottom] = [Math.min(y0, y1), Math.max(y0, y1)];
    for (let y = Math.round(top); y <= Math.round(bottom); y++) {
      for (let x = Math.round(left); x <= Math.round(right); x++) {
        this.dot(x, y, color);
      }
    }
  }
  line(
    [x0, y0]: readonly [number, number],
    [x1, y1]: readonly [number, number],
    color: Color,
    thick = 1,
    dashed = false,
  ): void {
    const n = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let i = 0; i <= n; i++) {
      if (dashed && i % 8 >= 5) continue;
      const x = x0 + (x1 - x0) * i / n, y = y0 + (y1 - y0) * i / n;
      this.box(x, y, x + thick - 1, y + thick - 1, color);
    }
  }
  disc(x: number, y: number, radius: number, color: Color): void {
    for (let dy = -radius; dy <= radius; dy++) {
      for (let dx = -radius; dx <= radius; dx++) {
        if (dx * dx + dy * dy <= radius * radius) {
          this.dot(x + dx, y + dy, color);
        }
      }
    }
  }
  text(text: string, x: number, y: number, color: Color = INK): void {
    const at = [Math.round(x), Math.round(y)] as const;
    drawText(this.data, this.width, text, at, color, SCALE);
  }
}

/** Settings of {@linkcode renderFigure}. */
export interface RenderOptions {
  /**
   * Width in pixels.
   *
   * @default 960, or what names below the axis need
   */
  readonly width?: number;
  /**
   * Height in pixels.
   *
   * @default 540
   */
  readonly height?: number;
}

/** Pixels of a dot of text. */
const SCALE = 2;

/** Height of a line of text, pixels. */
const LINE = (GLYPH_HEIGHT + 3) * SCALE;

const GREY: Color = [110, 110, 110];

/** What the values of a figure reach over, and how they are named. */
interface Axes {
  readonly title: string;
  readonly xTitle: string;
  readonly yTitle: string;
  readonly log: boolean;
  /** Ends of the vertical axis, of logarithms where it is logarithmic. */
  readonly low: number;
  readonly high: number;
  /** Names along the horizontal axis; none where it has numbers. */
  readonly names: readonly string[];
  readonly xLow: number;
  readonly xHigh: number;
}

/** The inside of a figure in pixels, and where a value is in it. */
interface Frame extends Axes {
  readonly left: number;
  readonly right: number;
  readonly top: number;
  readonly bottom: number;
  readonly yTicks: readonly number[];
  /** Names below the axis, broken into lines. */
  readonly below: readonly (readonly string[])[];
  readonly px: (x: number) => number;
  readonly py: (y: number) => number;
}

/** Whether a value can be drawn: a logarithmic axis has no zero. */
function isShown(value: number | null, log: boolean): value is number {
  return value !== null && (!log || value > 0);
}

/** @throws If there is no finite value. */
function axesOf(traces: readonly Trace[], layout: Loose): Axes {
  const yaxis = loose(layout.yaxis), xaxis = loose(layout.xaxis);
  const log = yaxis.type === "log";
  const ys = traces.flatMap(({ y, plus, minus }) =>
    y.flatMap((v, i) =>
      isShown(v, log) ? [v, v + (plus[i] ?? 0), v - (minus[i] ?? 0)] : []
    )
  ).filter((v) => isShown(v, log)).map((v) => log ? Math.log10(v) : v);
  if (ys.length === 0) throw cannot("draw a figure", "finite values", "none");
  const low = Math.min(...ys), high = Math.max(...ys);
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  // As plotly has it, exponents where the axis is logarithmic. What lies beyond
  // is drawn all the same: nothing is clipped here.
  const range = yaxis.range as readonly [number, number] | undefined;
  // Bars stand on zero: cut off, their lengths would lie.
  const bars = traces.some((trace) => trace.bars) && !log;
  const words = traces.some(({ x }) => x.some((v) => typeof v === "string"));
  const names = words
    ? [...new Set(traces.flatMap(({ x }) => x.map(String)))]
    : [];
  const xs = traces.flatMap(({ x }) => x.map(Number)).filter(Number.isFinite);
  const [first, last] = words
    ? [-0.5, names.length - 0.5]
    : [Math.min(...xs), Math.max(...xs)];
  const margin = words ? 0 : (last - first || 1) * 0.05;
  return {
    title: titleOf(layout.title),
    xTitle: titleOf(xaxis.title),
    yTitle: titleOf(yaxis.title),
    ...{ log, names },
    low: Math.min(low, range?.[0] ?? (bars ? 0 : low - room)),
    high: Math.max(high, range?.[1] ?? high + room),
    xLow: first - margin,
    xHigh: last + margin,
  };
}

/** Lays out axes on a canvas with so many rows of a legend. */
function frameOf(axes: Axes, canvas: Canvas, legendRows: number): Frame {
  const { low, high, log, names, xLow, xHigh, title, xTitle, yTitle } = axes;
  const yTicks = log
    ? ticks(low, high, 5).map((t) => 10 ** t)
    : ticks(low, high);
  const left = 24 + Math.max(...yTicks.map((t) => textWidth(label(t), SCALE)));
  const right = canvas.width - 16;
  // Long names take several lines.
  const below = names.map((name) =>
    wrap(name, (right - left) / names.length - 8, SCALE)
  );
  const lines = Math.max(1, ...below.map((own) => own.length)) +
    (xTitle ? 1 : 0) + legendRows;
  const top = 14 + (title ? LINE : 0) + (yTitle ? LINE : 0);
  const bottom = canvas.height - 20 - lines * LINE;
  const of = (value: number): number => log ? Math.log10(value) : value;
  return {
    ...axes,
    ...{ left, right, top, bottom, yTicks, below },
    px: (x) => left + (x - xLow) / (xHigh - xLow || 1) * (right - left),
    py: (y) => bottom - (of(y) - low) / (high - low) * (bottom - top),
  };
}

/** Titles, grid and what stands beside it. */
function drawAxes(canvas: Canvas, frame: Frame): void {
  const { left, right, top, bottom, px, py, title, xTitle, yTitle } = frame;
  canvas.text(title, left, 10);
  canvas.text(yTitle, left, 10 + (title ? LINE : 0), GREY);
  const centred = (text: string, x: number, y: number, color = INK) =>
    canvas.text(text, x - textWidth(text, SCALE) / 2, y, color);
  for (const tick of frame.yTicks) {
    const y = py(tick), text = label(tick);
    canvas.line([left, y], [right, y], GRID);
    canvas.text(text, left - 8 - textWidth(text, SCALE), y - GLYPH_HEIGHT);
  }
  frame.below.forEach((lines, i) =>
    lines.forEach((text, k) => centred(text, px(i), bottom + 8 + k * LINE))
  );
  if (frame.names.length === 0) {
    for (const tick of ticks(frame.xLow, frame.xHigh)) {
      canvas.line([px(tick), top], [px(tick), bottom], GRID);
      centred(label(tick), px(tick), bottom + 8);
    }
  }
  const lines = Math.max(1, ...frame.below.map((own) => own.length));
  centred(xTitle, (left + right) / 2, bottom + 8 + lines * LINE, GREY);
}

/** One trace; bars stand side by side, each in its slot of a name's width. */
function drawTrace(
  canvas: Canvas,
  { names, log, bottom, px, py }: Frame,
  trace: Trace,
  bar: { readonly index: number; readonly count: number },
): void {
  const slot = trace.bars ? 0.8 / bar.count : 0;
  const shift = trace.bars ? -0.4 + (bar.index + 0.5) * slot : 0;
  let before: [number, number] | undefined;
  trace.y.forEach((y, i) => {
    if (!isShown(y, log)) return before = undefined;
    const x = trace.x[i];
    const at = shift +
      (names.length > 0 ? names.indexOf(String(x)) : Number(x));
    const point: [number, number] = [px(at), py(y)];
    const color = trace.colors[i];
    if (trace.bars) {
      const foot = log ? bottom : py(0);
      const half = slot * 0.46;
      canvas.box(px(at - half), foot, px(at + half), point[1], color);
    }
    if (trace.lines && before) {
      canvas.line(before, point, color, 2, trace.dashed);
    }
    if (trace.markers) canvas.disc(...point, 5, color);
    const ends = [y + trace.plus[i], y - trace.minus[i]];
    if (
      (trace.plus[i] || trace.minus[i]) && ends.every((e) => isShown(e, log))
    ) {
      const [a, b] = ends.map(py);
      canvas.line([point[0], a], [point[0], b], INK, 2);
      for (const e of [a, b]) {
        canvas.line([point[0] - 5, e], [point[0] + 5, e], INK, 2);
      }
    }
    before = point;
  });
}

function drawLegend(
  canvas: Canvas,
  left: number,
  keys: readonly Trace[],
  rows: readonly (readonly number[])[],
): void {
  rows.forEach((row, r) => {
    let x = left;
    const y = canvas.height - 4 - (rows.length - r) * LINE;
    for (const { name, colors: [color = INK] } of row.map((i) => keys[i])) {
      canvas.box(x, y, x + 12, y + 12, color);
      canvas.text(name, x + 18, y);
      x += 18 + textWidth(name, SCALE) + 24;
    }
  });
}

/**
 * Draws a figure.
 *
 * @param figure Traces of type `bar` and `scatter`, and a layout.
 * @param options Size in pixels.
 * @returns An RGB picture.
 * @throws If the figure has no finite value.
 */
export function renderFigure(
  figure: Figure,
  options: RenderOptions = {},
): Pixels {
  const traces = figure.data.map(readTrace);
  const layout = loose(figure.layout);
  const axes = axesOf(traces, layout);
  const { width = widthFor(axes.names), height = 540 } = options;
  const canvas = new Canvas(width, height);
  const keys = layout.showlegend === false
    ? []
    : traces.filter((t) => t.legend);
  const rows = layoutLegend(keys.map((k) => k.name), width - 64, SCALE);
  const frame = frameOf(axes, canvas, rows.length);
  const { left, right, bottom } = frame;
  drawAxes(canvas, frame);
  const bars = traces.filter((trace) => trace.bars);
  for (const trace of traces) {
    const bar = { index: bars.indexOf(trace), count: bars.length };
    drawTrace(canvas, frame, trace, bar);
  }
  canvas.line([left, bottom], [right, bottom], INK, 2);
  drawLegend(canvas, left, keys, rows);
  return { width, height, channels: 3, data: canvas.data };
}

/** Pixels a figure needs so that no two names below it overlap. */
function widthFor(names: readonly string[]): number {
  const words = names.flatMap((name) => name.split(" "));
  const widest = Math.max(0, ...words.map((word) => textWidth(word, SCALE)));
  // What stands beside the columns, the labels of ticks included.
  return Math.max(960, 140 + names.length * (widest + 8));
}

/** Lines of words no wider than so many pixels, where that is possible. */
function wrap(text: string, width: number, scale: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && textWidth(longer, scale) > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}

/** Which keys stand in which row of the legend. */
function layoutLegend(
  names: readonly string[],
  width: number,
  scale: number,
): number[][] {
  const rows: number[][] = [];
  let used = Infinity;
  names.forEach((name, i) => {
    const needs = 18 + textWidth(name, scale) + 24;
    if (used + needs > width) {
      rows.push([]);
      used = 0;
    }
    rows[rows.length - 1].push(i);
    used += needs;
  });
  return rows;
}
