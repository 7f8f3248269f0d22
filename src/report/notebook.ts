/**
 * Figures, tables and pictures as notebook outputs: each in every form that
 * some reader needs (live plotly, HTML, PNG).
 *
 * @module
 */
import { encodeBase64 } from "../core/kernels/base64.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import { renderFigure, type RenderOptions } from "./chart.ts";
import type { Figure } from "./figure.ts";
import { dataUri, table as htmlTable } from "./html.ts";
import { markdownTable, type Table } from "./table.ts";

/** A MIME bundle by type. */
export type MimeBundle = Record<string, unknown>;

/**
 * What the Deno kernel shows when it is a cell's last expression: its value at
 * `Symbol.for("Jupyter.display")` gives the bundle.
 */
export interface Displayable {
  /** Gives the bundle. */
  readonly [key: symbol]: () => MimeBundle | Promise<MimeBundle>;
}

function displayable(
  bundle: () => MimeBundle | Promise<MimeBundle>,
): Displayable {
  return { [Symbol.for("Jupyter.display")]: bundle };
}

/**
 * Shows a plotly figure: live where the reader has plotly, else as a picture.
 *
 * @param figure Traces and layout.
 * @param options Size of the picture.
 *
 * @example
 * ```ts ignore
 * showFigure(scoreFigure(report, "image"));
 * ```
 */
export function showFigure(
  figure: Figure,
  options: RenderOptions = {},
): Displayable {
  return displayable(async () => {
    const image = await renderFigure(figure, options);
    return {
      "application/vnd.plotly.v1+json": {
        data: figure.data,
        layout: figure.layout ?? {},
      },
      "text/html": `<img style="max-width:100%" src="${dataUri(image)}">`,
      "image/png": encodeBase64(encodePng(image)),
    };
  });
}

/**
 * Shows a table.
 *
 * @param table The table.
 */
export function showTable(table: Table): Displayable {
  return displayable(() => ({
    "text/html": htmlTable(table).html,
    "text/markdown": markdownTable(table),
  }));
}

/**
 * Shows a picture, enlarged without smoothing.
 *
 * @param image The picture.
 * @param scale Enlargement.
 * @default scale 1
 */
export function showPicture(image: Pixels, scale = 1): Displayable {
  const uri = dataUri(image);
  return displayable(() => ({
    "text/html":
      `<img width="${image.width * scale}" style="image-rendering:pixelated" ` +
      `src="${uri}">`,
    "image/png": encodeBase64(encodePng(image)),
  }));
}
