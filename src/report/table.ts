/**
 * Tables: of typed rows, as Markdown and as aligned text.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** A table of text cells. */
export interface Table {
  /** Column heads. */
  readonly head: readonly string[];
  /** Rows of as many cells. */
  readonly rows: readonly (readonly string[])[];
}

/** A column: its head, and how a row is written in it. */
export type Column<Row> = readonly [
  head: string,
  cell: (row: Row) => string,
];

/**
 * A table of typed rows.
 *
 * @param rows The rows.
 * @param columns A head and a cell each.
 *
 * @example
 * ```ts
 * const scores = [{ name: "kuro", image: 0.75 }];
 * const table = tableOf(scores, [
 *   ["concept", ({ name }) => name],
 *   ["image", ({ image }) => decimal(image)],
 * ]);
 * ```
 */
export function tableOf<Row>(
  rows: readonly Row[],
  columns: readonly Column<Row>[],
): Table {
  return {
    head: columns.map(([head]) => head),
    rows: rows.map((row) => columns.map(([, cell]) => cell(row))),
  };
}

function check(table: Table): void {
  for (const row of table.rows) {
    if (row.length !== table.head.length) {
      throw cannot(
        "print a table",
        `rows of ${table.head.length} cells`,
        row.length,
      );
    }
  }
}

/** Columns a text takes in a terminal: code points, which suffices here. */
function width(text: string): number {
  return [...text].length;
}

function widths(table: Table): number[] {
  return table.head.map((head, j) =>
    Math.max(3, width(head), ...table.rows.map((row) => width(row[j])))
  );
}

function pad(text: string, to: number, right: boolean): string {
  const space = " ".repeat(Math.max(0, to - width(text)));
  return right ? space + text : text + space;
}

/** Whether a column holds numbers, which stand at its right edge. */
function numeric(table: Table, j: number): boolean {
  const cells = table.rows.map((row) => row[j]).filter((cell) => cell !== "");
  return cells.length > 0 && cells.every((cell) => /^[−+-]?[\d.]/.test(cell));
}

/**
 * A GitHub-flavoured Markdown table, aligned for readers of the source.
 *
 * @param table The table; `|` in cells is escaped.
 * @throws If a row has another number of cells than the head.
 */
export function markdownTable(table: Table): string {
  check(table);
  const escape = (text: string) => text.replaceAll("|", "\\|");
  const safe: Table = {
    head: table.head.map(escape),
    rows: table.rows.map((row) => row.map(escape)),
  };
  const size = widths(safe);
  const right = size.map((_, j) => numeric(table, j));
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, j) => pad(cell, size[j], right[j])).join(" | ")} |`;
  const rule = size.map((n, j) =>
    right[j] ? `${"-".repeat(n - 1)}:` : "-".repeat(n)
  );
  return [line(safe.head), line(rule), ...safe.rows.map(line)].join("\n") +
    "\n";
}

/**
 * The same table for a terminal.
 *
 * @param table The table.
 * @throws If a row has another number of cells than the head.
 */
export function textTable(table: Table): string {
  check(table);
  const size = widths(table);
  const right = size.map((_, j) => numeric(table, j));
  const line = (cells: readonly string[]) =>
    cells.map((cell, j) => pad(cell, size[j], right[j])).join("  ").trimEnd();
  return [
    line(table.head),
    size.map((n) => "─".repeat(n)).join("  "),
    ...table.rows.map(line),
  ].join("\n") + "\n";
}
