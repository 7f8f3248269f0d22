/**
 * Figures as plotly's data, drawn by plotly in a page or by chart.ts without a
 * browser.
 *
 * @module
 */
import type { Interval, Maybe } from "./format.ts";

/** A plotly figure: what `Plotly.newPlot` takes. */
export interface Figure {
  /** Traces. */
  readonly data: readonly Readonly<Record<string, unknown>>[];
  /** Layout. */
  readonly layout?: Readonly<Record<string, unknown>>;
}

/**
 * The title of a figure, as text or as plotly's `{ text }`.
 *
 * @param layout The figure's layout.
 */
export function titleOf(layout: Figure["layout"]): string | undefined {
  const title = layout?.title as { readonly text?: unknown } | undefined;
  const text = title?.text ?? title;
  return typeof text === "string" ? text : undefined;
}

/** Values under one name in the legend. */
export interface Series {
  /** Its name. */
  readonly name: string;
  /** How it is drawn. @default "markers" */
  readonly as?: "bars" | "lines" | "markers" | "lines+markers";
  /** Names or numbers along the horizontal axis. */
  readonly x: readonly (string | Maybe)[];
  /** One value per point, or a mean with its interval as an error bar. */
  readonly y: readonly (Maybe | Interval | undefined)[];
  /** Hover text of each point. */
  readonly text?: readonly string[];
  /** Colour, of all or of each. */
  readonly color?: string | readonly string[];
  /** Diameter of markers in pixels, of all or of each. */
  readonly size?: number | readonly number[];
  /** Plotly's name of the marker, of all or of each. */
  readonly symbol?: string | readonly string[];
  /** Whether lines are dotted. */
  readonly dotted?: boolean;
}

/** What {@linkcode plot} draws. */
export interface PlotOptions {
  /** Title of the figure. */
  readonly title: string;
  /** What the horizontal axis shows. */
  readonly xTitle?: string;
  /** What the vertical axis shows. */
  readonly yTitle?: string;
  /** Whether the vertical axis is logarithmic. */
  readonly log?: boolean;
  /** Ends of the vertical axis. */
  readonly range?: readonly [number, number];
  /** Whether there is a legend. @default true */
  readonly legend?: boolean;
  /** What is drawn. */
  readonly series: readonly Series[];
}

/** A value as a mean with or without an interval. */
function intervalOf(value: Series["y"][number]): Interval {
  return typeof value === "object" && value !== null
    ? value
    : { mean: value ?? null, low: null, high: null };
}

/** Intervals as plotly draws error bars; no bar where there is no interval. */
function errorBars(values: readonly Interval[]): Record<string, unknown> {
  const reach = (end: "low" | "high") =>
    values.map((value) => {
      const length = Math.abs((value[end] ?? NaN) - (value.mean ?? NaN));
      return Number.isFinite(length) ? length : 0;
    });
  return {
    type: "data",
    symmetric: false,
    array: reach("high"),
    arrayminus: reach("low"),
  };
}

function traceOf(series: Series): Record<string, unknown> {
  const { name, as = "markers", x, text, color, size, symbol } = series;
  const values = series.y.map(intervalOf);
  const bars = as === "bars";
  return {
    type: bars ? "bar" : "scatter",
    mode: bars ? undefined : as,
    name,
    x,
    y: values.map(({ mean }) => mean),
    error_y: values.some(({ low }) => low !== null)
      ? errorBars(values)
      : undefined,
    text,
    marker: bars ? { color } : { color, size, symbol },
    line: as.includes("lines")
      ? { color, width: 1.5, dash: series.dotted ? "dot" : undefined }
      : undefined,
  };
}

/**
 * A figure of series.
 *
 * @param options Titles, axes, series.
 *
 * @example
 * ```ts
 * const figure = plot({
 *   title: "Loss",
 *   series: [{ name: "kuro", as: "lines", x: [1, 2], y: [0.5, 0.4] }],
 * });
 * ```
 */
export function plot(options: PlotOptions): Figure {
  const { title, xTitle, yTitle, log, range, legend = true, series } = options;
  const words = series.some(({ as }) => as === "bars");
  const named = series.some(({ x }) => x.some((v) => typeof v === "string"));
  // JSON leaves out what is undefined: plotly takes null for a value.
  return JSON.parse(JSON.stringify({
    data: series.map(traceOf),
    layout: {
      title: { text: title },
      barmode: words ? "group" : undefined,
      xaxis: {
        title: xTitle && { text: xTitle },
        // Otherwise plotly would read names that look like numbers as numbers.
        type: named ? "category" : undefined,
        automargin: true,
      },
      yaxis: {
        title: yTitle && { text: yTitle },
        type: log ? "log" : undefined,
        // Otherwise ticks between powers of ten show their first digit only.
        tickformat: log ? "~g" : undefined,
        range,
        automargin: true,
      },
      showlegend: legend,
      legend: { orientation: "h", y: -0.25 },
    },
  }));
}
