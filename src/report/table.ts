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

/**
 * A table of two columns: what there is to know, and what it is.
 *
 * @param head Above the first column; the second has none.
 * @param facts Lines of the table.
 */
export function factsOf(
  head: string,
  facts: readonly (readonly [what: string, is: string])[],
): Table {
  return { head: [head, ""], rows: facts };
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
 * Lines of words no longer than so many columns; longer words are cut.
 *
 * @param text Words between spaces.
 * @param most Columns.
 */
export function wrapped(text: string, most: number): string[] {
  if (width(text) <= most) return [text];
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line === "" || width(longer) <= most) line = longer;
    else {
      lines.push(line);
      line = word;
    }
    while (width(line) > most) {
      const letters = [...line];
      lines.push(letters.slice(0, most).join(""));
      line = letters.slice(most).join("");
    }
  }
  return [...lines, line];
}

/** Narrowest column that words are wrapped into. */
const NARROW = 8;

/** Widths of columns that fit together; nothing if they cannot. */
function fitting(table: Table, most: number): number[] | undefined {
  const size = widths(table);
  const room = most - 2 * (size.length - 1);
  const least = size.map((n, j) =>
    // Numbers are not wrapped, and heads of one word are not cut.
    numeric(table, j)
      ? Math.max(3, ...table.rows.map((row) => width(row[j])))
      : Math.min(n, NARROW)
  );
  if (least.reduce((a, b) => a + b, 0) > room) return undefined;
  while (size.reduce((a, b) => a + b, 0) > room) {
    const widest = size.reduce(
      (best, n, j) => n > least[j] && n > (size[best] ?? -1) ? j : best,
      size.findIndex((n, j) => n > least[j]),
    );
    size[widest]--;
  }
  return size;
}

/** A table too wide for any width: a paragraph a row. */
function listed({ head, rows }: Table, most: number): string {
  return rows.map((row) =>
    row.flatMap((cell, j) => wrapped(`${head[j]}: ${cell}`.trim(), most))
      .join("\n")
  ).join("\n\n") + "\n";
}

/**
 * The same table for a terminal.
 *
 * @param table The table.
 * @param most Columns of the terminal: words wrap inside their columns, and
 * where that is not enough each row becomes lines of `head: cell`.
 * @default most as wide as it is
 * @throws If a row has another number of cells than the head.
 */
export function textTable(table: Table, most = Infinity): string {
  check(table);
  const size = fitting(table, most);
  if (!size) return listed(table, most);
  const right = size.map((_, j) => numeric(table, j));
  const lines = (cells: readonly string[]) => {
    const parts = cells.map((cell, j) => wrapped(cell, size[j]));
    return Array.from(
      { length: Math.max(...parts.map((part) => part.length)) },
      (_, i) =>
        parts.map((part, j) => pad(part[i] ?? "", size[j], right[j]))
          .join("  ").trimEnd(),
    );
  };
  return [
    ...lines(table.head),
    size.map((n) => "─".repeat(n)).join("  "),
    ...table.rows.flatMap(lines),
  ].join("\n") + "\n";
}
