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
export {
  figureOf,
  type Report,
  reportHtml,
  reportMarkdown,
  type ReportPart,
  reportText,
  writeReport,
} from "../report/document.ts";
export {
  type Figure,
  plot,
  type PlotOptions,
  type Series,
} from "../report/figure.ts";
export {
  change,
  decimal,
  duration,
  type Interval,
  interval,
  type Maybe,
  percent,
  range,
  signed,
} from "../report/format.ts";
export {
  contactSheet,
  type ContactSheetOptions,
  type Sheet,
  sheetPixels,
} from "../report/grid.ts";
export {
  type Displayable,
  type MimeBundle,
  showFigure,
  showPicture,
  showTable,
} from "../report/notebook.ts";
export {
  type Column,
  markdownTable,
  type Table,
  tableOf,
  textTable,
} from "../report/table.ts";
