/**
 * Tables, charts and contact sheets for reports and notebooks.
 *
 * @example
 * ```ts
 * import { textTable } from "@mix-of-show/mix-of-show/report";
 *
 * console.log(textTable({ head: ["arm", "score"], rows: [["gradient", "0.7"]] }));
 * ```
 *
 * @module
 */

export { renderFigure, type RenderOptions } from "../report/chart.ts";
export { contactSheet, type ContactSheetOptions } from "../report/grid.ts";
export type { Figure } from "../report/html.ts";
export { markdownTable, type Table, textTable } from "../report/markdown.ts";
export {
  type Displayable,
  type MimeBundle,
  showFigure,
  showPicture,
  showTable,
} from "../report/notebook.ts";
