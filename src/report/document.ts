/**
 * The report of an experiment: lines, tables, figures and sheets of pictures,
 * written as Markdown, HTML and PNG files, with its numbers as JSON.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { joinPath, writeAtomic, writeJson } from "../io/files.ts";
import { encodePng } from "../io/png.ts";
import { type Figure, plot, type PlotOptions } from "./figure.ts";
import { type Sheet, sheetPixels } from "./grid.ts";
import {
  details,
  figure,
  heading,
  type Html,
  page,
  paragraph,
  pictureGrid,
  table,
} from "./html.ts";
import { markdownTable, type Table, textTable } from "./table.ts";

/** A part of a report. */
export type ReportPart =
  | {
    readonly type: "table";
    /** Its heading. */
    readonly title?: string;
    /** The table. */
    readonly table: Table;
    /** Whether the terminal shows it, too. */
    readonly brief?: boolean;
  }
  | {
    readonly type: "figure";
    /** Unique in the report. */
    readonly id: string;
    /** The figure; Markdown leaves it out. */
    readonly figure: Figure;
  }
  | {
    readonly type: "pictures";
    /** Name of the picture file, without `.png`. */
    readonly name: string;
    /** Its heading. */
    readonly title: string;
    /** The pictures. */
    readonly sheet: Sheet;
  }
  | {
    readonly type: "data";
    /** What it is. */
    readonly title: string;
    /** Plain data; the page folds it away, Markdown leaves it out. */
    readonly value: unknown;
  };

/**
 * A table that the terminal shows, too.
 *
 * @param table The table.
 * @param title Its heading. @default none
 */
export function tablePart(table: Table, title?: string): ReportPart {
  return { type: "table", title, table, brief: true };
}

/**
 * A figure of series.
 *
 * @param id Unique in the report.
 * @param options Titles, axes, series.
 */
export function figurePart(id: string, options: PlotOptions): ReportPart {
  return { type: "figure", id, figure: plot(options) };
}

/** A report. */
export interface Report {
  /** Name of its files. */
  readonly name: string;
  /** Its title. */
  readonly title: string;
  /** Lines under the title, with the most important facts. */
  readonly lead: readonly string[];
  /** The rest, in order. */
  readonly parts: readonly ReportPart[];
}

/**
 * A figure of a report.
 *
 * @param report The report.
 * @param id Which figure.
 * @throws If there is no such figure.
 *
 * @example
 * ```ts ignore
 * showFigure(figureOf(fig4Report(data), "kv"));
 * ```
 */
export function figureOf({ name, parts }: Report, id: string): Figure {
  const figures = parts.filter((part) => part.type === "figure");
  const found = figures.find((part) => part.id === id);
  if (found) return found.figure;
  const ids = figures.map((part) => part.id).join(", ");
  throw cannot(`show a figure of ${name}`, ids, id);
}

/**
 * A report as Markdown.
 *
 * @param report The report.
 */
export function reportMarkdown({ title, lead, parts }: Report): string {
  const blocks = parts.flatMap((part): string[] => {
    if (part.type === "table") {
      const head = part.title ? [`## ${part.title}`] : [];
      return [...head, markdownTable(part.table).trimEnd()];
    }
    return part.type === "pictures"
      ? [`![${part.title}](${part.name}.png)`]
      : [];
  });
  return [`# ${title}`, ...lead, ...blocks].join("\n\n") + "\n";
}

function htmlOf(part: ReportPart): Html[] {
  switch (part.type) {
    case "table":
      return [
        ...(part.title ? [heading(part.title)] : []),
        table(part.table),
      ];
    case "figure":
      return [figure(part.id, part.figure)];
    case "pictures":
      return [heading(part.title), pictureGrid(part.sheet)];
    case "data":
      return [details(part.title, JSON.stringify(part.value, null, 2))];
  }
}

/**
 * A report as a page that opens without a network.
 *
 * @param report The report.
 */
export async function reportHtml(report: Report): Promise<string> {
  return await page(`Mix-of-Show: ${report.title}`, [
    ...report.lead.map(paragraph),
    ...report.parts.flatMap(htmlOf),
  ]);
}

/**
 * What the terminal shows of a report: its first lines and brief tables.
 *
 * @param report The report.
 * @param columns Columns of the terminal.
 * @default columns as wide as its tables are
 */
export function reportText(
  { lead, parts }: Report,
  columns = Infinity,
): string {
  const tables = parts.flatMap((part) =>
    part.type === "table" && part.brief ? [textTable(part.table, columns)] : []
  );
  return [...lead, ...tables].join("\n\n");
}

/**
 * Writes a report: `NAME.json`, `NAME.md`, `NAME.html` and its pictures.
 *
 * @param folder Where they go.
 * @param report The report.
 * @param data The numbers, for the JSON file.
 */
export async function writeReport(
  folder: string,
  report: Report,
  data: unknown,
): Promise<void> {
  const at = (file: string) => joinPath(folder, file);
  await writeJson(at(`${report.name}.json`), data);
  await writeAtomic(at(`${report.name}.md`), reportMarkdown(report));
  await writeAtomic(at(`${report.name}.html`), await reportHtml(report));
  for (const part of report.parts) {
    if (part.type !== "pictures") continue;
    const bytes = encodePng(await sheetPixels(part.sheet));
    await writeAtomic(at(`${part.name}.png`), bytes);
  }
}
