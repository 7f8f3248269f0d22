/**
 * Parts of self-contained HTML reports: everything is inlined, and no network
 * request is made.
 *
 * @module
 */
import { encodeBase64 } from "../core/kernels/base64.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import { type Figure, titleOf } from "./figure.ts";
import type { Sheet } from "./grid.ts";
import type { Table } from "./table.ts";
import { escapeHtml } from "./text.ts";

/** HTML that may be put into a page as it is. */
export interface Html {
  /** The markup. */
  readonly html: string;
  /** Whether it needs plotly. */
  readonly plotly?: boolean;
}

/** A heading of the second level. */
export function heading(text: string): Html {
  return { html: `<h2>${escapeHtml(text)}</h2>` };
}

/** A paragraph. */
export function paragraph(text: string): Html {
  return { html: `<p>${escapeHtml(text)}</p>` };
}

/** Preformatted text, folded away under a summary. */
export function details(summary: string, text: string): Html {
  return {
    html: `<details><summary>${escapeHtml(summary)}</summary><pre>${
      escapeHtml(text)
    }</pre></details>`,
  };
}

/** A table; on a narrow page each row becomes lines of head and cell. */
export function table({ head, rows }: Table): Html {
  const names = head.map((name) => `<th>${escapeHtml(name)}</th>`).join("");
  const line = (cells: readonly string[]) =>
    cells.map((cell, j) =>
      `<td data-head="${escapeHtml(head[j] ?? "")}">${escapeHtml(cell)}</td>`
    ).join("");
  return {
    html: `<div class="scroll"><table><thead><tr>${names}</tr></thead><tbody>${
      rows.map((row) => `<tr>${line(row)}</tr>`).join("")
    }</tbody></table></div>`,
  };
}

/** A `data:` address of a picture as PNG. */
export function dataUri(image: Pixels): string {
  return `data:image/png;base64,${encodeBase64(encodePng(image))}`;
}

/**
 * Pictures in rows and columns, enlarged twice where the page has room: every
 * column is in view, each row's label stands above its pictures.
 *
 * @param sheet The pictures and labels.
 */
export function pictureGrid({ columns, rows, scale = 1 }: Sheet): Html {
  const image = (cell: Pixels, alt: string) =>
    `<img class="pixels" width="${2 * cell.width * scale}" height="${
      2 * cell.height * scale
    }" alt="${escapeHtml(alt)}" src="${dataUri(cell)}">`;
  const cellOf = (
    cell: Pixels | undefined,
    alt: string,
    caption: string | undefined,
  ) =>
    `<td>${cell ? image(cell, alt) : ""}${
      caption ? `<small>${escapeHtml(caption)}</small>` : ""
    }</td>`;
  const body = rows.map(({ label, note, cells, captions }) =>
    `<tr><th colspan="${columns.length}">${
      escapeHtml(note ? `${label}: ${note}` : label)
    }</th></tr><tr>${
      cells.map((cell, j) =>
        cellOf(cell, `${label}, ${columns[j]}`, captions?.[j])
      ).join("")
    }</tr>`
  );
  return {
    html: `<table class="grid"><thead><tr>${
      columns.map((name) => `<th>${escapeHtml(name)}</th>`).join("")
    }</tr></thead><tbody>${body.join("")}</tbody></table>`,
  };
}

/** A script block's JSON: `</script>` in a string must not end it. */
function inlineJson(value: unknown): string {
  return JSON.stringify(value).replaceAll("<", "\\u003c");
}

/**
 * A plotly figure, its title above it: plotly's own title would not wrap on a
 * narrow page; the legend grows upwards, away from rotated labels.
 *
 * @param id Unique in the page.
 * @param figure Traces and layout.
 * @param height Height in pixels.
 * @default height 420
 */
export function figure(
  id: string,
  { data, layout = {} }: Figure,
  height = 420,
): Html {
  const { title: _, legend, ...rest } = layout;
  const title = titleOf(layout);
  const all = {
    margin: { t: 10, r: 10, l: 50 },
    ...(legend
      ? { legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } }
      : {}),
    ...rest,
  };
  const head = title === undefined ? "" : `<h3>${escapeHtml(title)}</h3>`;
  return {
    plotly: true,
    html: `${head}<div id="${
      escapeHtml(id)
    }" class="figure" style="height:${height}px"></div><script>Plotly.newPlot(${
      inlineJson(id)
    }, ${inlineJson(data)}, ${
      inlineJson(all)
    }, {responsive: true, displayModeBar: false});</script>`,
  };
}

const STYLE = `
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.2; }
h3 { margin: 1.5rem 0 0; font-size: 1rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; }
.scroll table { font-size: .85rem; line-height: 1.35; }
th, td { padding: .25rem .4rem; border-bottom: 1px solid #8884; text-align: left; font-variant-numeric: tabular-nums; }
.scroll th { vertical-align: bottom; }
table.grid { table-layout: fixed; }
table.grid td, table.grid th { border: 0; padding: .1rem .15rem; font-weight: normal; font-size: .85rem; vertical-align: bottom; }
img.pixels { image-rendering: pixelated; display: block; max-width: 100%; height: auto; }
.figure { margin: 1rem 0; background: #fff; }
pre { overflow-x: auto; font-size: .8rem; }
@media (max-width: 40rem) {
  table.grid th, table.grid small { font-size: .6rem; line-height: 1.1; overflow-wrap: anywhere; }
  table.grid td, table.grid th { padding: .05rem; }
  .scroll thead { display: none; }
  .scroll tr { display: block; padding: .4rem 0; border-bottom: 1px solid #8884; }
  .scroll td { display: grid; grid-template-columns: 40% 1fr; gap: .5rem; border: 0; padding: .05rem 0; }
  .scroll td::before { content: attr(data-head); opacity: .7; }
  .scroll td[data-head=""] { display: block; font-weight: bold; }
  .scroll td:empty, .scroll td[data-head=""]::before { display: none; }
}
`;

/** The minified plotly of the pinned npm package. */
export async function plotlySource(): Promise<string> {
  const { default: source } = await import(
    "plotly.js-dist-min/plotly.min.js",
    { with: { type: "text" } }
  );
  return source;
}

/**
 * A whole page. Plotly (4.5 MB) is inlined only if a part needs it.
 *
 * @param title Its title.
 * @param parts Its parts in order.
 * @returns HTML that opens without a network.
 *
 * @example
 * ```ts ignore
 * const html = await page("Ablation", [heading("Scores"), table(scores)]);
 * await writeAtomic("report.html", html);
 * ```
 */
export async function page(
  title: string,
  parts: readonly Html[],
): Promise<string> {
  const script = parts.some((part) => part.plotly)
    ? `<script>${await plotlySource()}</script>`
    : "";
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
${script}
</head>
<body>
<h1>${escapeHtml(title)}</h1>
${parts.map((part) => part.html).join("\n")}
</body>
</html>
`;
}
