/**
 * A plotly figure as a picture, where no browser is at hand: the fallback that
 * notebooks and repositories show. Bars, lines, markers, error bars and legends
 * are drawn; what a trace has beyond that is left out.
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
  text(
    text: string,
    x: number,
    y: number,
    color: Color = INK,
    scale = 2,
  ): void {
    drawText(
      this.data,
      this.width,
      text,
      [Math.round(x), Math.round(y)],
      color,
      scale,
    );
  }
}

/** Settings of {@linkcode renderFigure}. */
export interface RenderOptions {
  /**
   * Width in pixels.
   *
   * @default 960
   */
  readonly width?: number;
  /**
   * Height in pixels.
   *
   * @default 540
   */
  readonly height?: number;
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
  const { width = 960, height = 540 } = options;
  const traces = figure.data.map(readTrace);
  const layout = loose(figure.layout);
  const yaxis = loose(layout.yaxis), xaxis = loose(layout.xaxis);
  const log = yaxis.type === "log";
  const of = (value: number): number => log ? Math.log10(value) : value;
  const shown = (v: number | null): v is number =>
    v !== null && (!log || v > 0);
  const ys = traces.flatMap(({ y, plus, minus }) =>
    y.flatMap((v, i) =>
      shown(v) ? [v, v + (plus[i] ?? 0), v - (minus[i] ?? 0)].filter(shown) : []
    )
  ).map(of);
  if (ys.length === 0) throw cannot("draw a figure", "finite values", "none");
  const bars = traces.filter((t) => t.bars);
  let low = Math.min(...ys), high = Math.max(...ys);
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  high += room;
  // Bars stand on zero: cut off, their lengths would lie.
  low = bars.length > 0 && !log ? Math.min(0, low) : low - room;
  const words = traces.some(({ x }) => x.some((v) => typeof v === "string"));
  const names = words
    ? [...new Set(traces.flatMap(({ x }) => x.map(String)))]
    : [];
  const xs = words
    ? []
    : traces.flatMap(({ x }) => x.map(Number)).filter(Number.isFinite);
  const [xLow, xHigh] = words
    ? [-0.5, names.length - 0.5]
    : [Math.min(...xs), Math.max(...xs)];
  const margin = words ? 0 : (xHigh - xLow || 1) * 0.05;

  const canvas = new Canvas(width, height);
  const keys = layout.showlegend === false
    ? []
    : traces.filter((t) => t.legend);
  const yTicks = log
    ? ticks(low, high, 5).map((t) => 10 ** t)
    : ticks(low, high);
  const scale = 2;
  const line = (GLYPH_HEIGHT + 3) * scale;
  const left = 16 + Math.max(...yTicks.map((t) => textWidth(label(t), scale))) +
    8;
  const right = width - 16;
  // Long category names take two lines.
  const perName = words ? (right - left) / names.length : 0;
  const wrapped = names.map((name) => wrap(name, perName - 8, scale));
  const under = words
    ? Math.max(...wrapped.map((lines) => lines.length)) * line
    : line;
  const legendRows = layoutLegend(keys.map((k) => k.name), right - left, scale);
  const top = 14 + (titleOf(layout.title) ? line : 0) +
    (titleOf(yaxis.title) ? line : 0);
  const bottom = height - 12 - under - (titleOf(xaxis.title) ? line : 0) -
    legendRows.length * line - 8;
  const px = (x: number) =>
    left +
    (x - xLow + margin) / (xHigh - xLow + 2 * margin || 1) * (right - left);
  const py = (y: number) =>
    bottom - (of(y) - low) / (high - low) * (bottom - top);
  const place = (x: string | number) =>
    words ? names.indexOf(String(x)) : Number(x);

  canvas.text(titleOf(layout.title), left, 10);
  canvas.text(
    titleOf(yaxis.title),
    left,
    10 + (titleOf(layout.title) ? line : 0),
    [110, 110, 110],
  );
  for (const tick of yTicks) {
    const y = py(tick);
    canvas.line([left, y], [right, y], GRID);
    const text = label(tick);
    canvas.text(text, left - 8 - textWidth(text, scale), y - GLYPH_HEIGHT);
  }
  if (words) {
    wrapped.forEach((lines, i) =>
      lines.forEach((text, k) =>
        canvas.text(
          text,
          px(i) - textWidth(text, scale) / 2,
          bottom + 8 + k * line,
        )
      )
    );
  } else {
    for (const tick of ticks(xLow - margin, xHigh + margin)) {
      canvas.line([px(tick), top], [px(tick), bottom], GRID);
      const text = label(tick);
      canvas.text(text, px(tick) - textWidth(text, scale) / 2, bottom + 8);
    }
  }
  const xTitle = titleOf(xaxis.title);
  canvas.text(
    xTitle,
    (left + right - textWidth(xTitle, scale)) / 2,
    bottom + 8 + under,
    [110, 110, 110],
  );

  traces.forEach((trace) => {
    const k = bars.indexOf(trace);
    const slot = k < 0 ? 0 : 0.8 / bars.length;
    const shift = k < 0 ? 0 : -0.4 + (k + 0.5) * slot;
    let before: [number, number] | undefined;
    trace.y.forEach((y, i) => {
      if (!shown(y)) return before = undefined;
      const at = place(trace.x[i]) + shift;
      const point: [number, number] = [px(at), py(y)];
      const color = trace.colors[i];
      if (trace.bars) {
        canvas.box(
          px(at - slot * 0.46),
          log ? bottom : py(0),
          px(at + slot * 0.46),
          point[1],
          color,
        );
      }
      if (trace.lines && before) {
        canvas.line(before, point, color, 2, trace.dashed);
      }
      if (trace.markers) canvas.disc(...point, 5, color);
      if (trace.plus[i] || trace.minus[i]) {
        const ends = [y + trace.plus[i], y - trace.minus[i]].filter(shown);
        if (ends.length === 2) {
          const [a, b] = ends.map(py);
          canvas.line([point[0], a], [point[0], b], INK, 2);
          for (const e of [a, b]) {
            canvas.line([point[0] - 5, e], [point[0] + 5, e], INK, 2);
          }
        }
      }
      before = point;
    });
  });
  canvas.line([left, bottom], [right, bottom], INK, 2);
  legendRows.forEach((row, r) => {
    let x = left;
    const y = height - 10 - (legendRows.length - r) * line + 6;
    for (const i of row) {
      const key = keys[i];
      canvas.box(x, y, x + 12, y + 12, key.colors[0] ?? INK);
      canvas.text(key.name, x + 18, y);
      x += 18 + textWidth(key.name, scale) + 24;
    }
  });
  return { width, height, channels: 3, data: canvas.data };
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
