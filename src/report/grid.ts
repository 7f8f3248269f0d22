/**
 * Contact sheets: pictures in rows and columns, with labels.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Pixels } from "../io/png.ts";
import { drawText, GLYPH_HEIGHT, textWidth } from "./font.ts";

/** Settings of {@linkcode contactSheet}. */
export interface ContactSheetOptions {
  /** One a row, drawn on the left. */
  readonly rowLabels?: readonly string[];
  /** One a column, drawn above. */
  readonly columnLabels?: readonly string[];
  /** Drawn above everything. */
  readonly title?: string;
  /** Drawn under each cell, rows of columns. */
  readonly captions?: readonly (readonly string[])[];
  /**
   * Pixels of the sheet for a pixel of a picture, a whole number.
   *
   * @default 1
   */
  readonly scale?: number;
  /**
   * Pixels between cells.
   *
   * @default 2
   */
  readonly gap?: number;
}

/**
 * Breaks a text into lines no wider than so many pixels, at spaces where that
 * is possible.
 */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && textWidth(longer) > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}

const LINE = GLYPH_HEIGHT + 2;

/** Pictures in rows and columns, for a page and for a picture file. */
export interface Sheet {
  /** What stands above each column. */
  readonly columns: readonly string[];
  /** The rows. */
  readonly rows: readonly {
    /** What the row shows. */
    readonly label: string;
    /** What a page says beside the label. */
    readonly note?: string;
    /** A picture per column; `undefined` leaves a place empty. */
    readonly cells: readonly (Pixels | undefined)[];
    /** What stands below each picture. */
    readonly captions?: readonly string[];
  }[];
  /** Pixels of the sheet for a pixel of a picture. @default 1 */
  readonly scale?: number;
}

/**
 * A sheet as one picture.
 *
 * @param sheet The pictures and labels; smaller ones stand in the middle of
 * their places.
 * @throws If there is no picture.
 */
export function sheetPixels({ columns, rows, scale }: Sheet): Pixels {
  const all = rows.flatMap(({ cells }) => cells.flatMap((cell) => cell ?? []));
  const width = Math.max(...all.map((cell) => cell.width));
  const height = Math.max(...all.map((cell) => cell.height));
  const captions = rows.some((row) => row.captions);
  return contactSheet(
    rows.map(({ cells }) =>
      cells.map((cell) => cell && onCanvas(cell, width, height))
    ),
    {
      columnLabels: columns,
      rowLabels: rows.map(({ label }) => label),
      captions: captions ? rows.map((row) => row.captions ?? []) : undefined,
      scale,
    },
  );
}

/** A picture on white, in the middle. */
function onCanvas(image: Pixels, width: number, height: number): Pixels {
  if (image.width === width && image.height === height) return image;
  const data = new Uint8Array(width * height * 3).fill(255);
  const left = Math.floor((width - image.width) / 2);
  const top = Math.floor((height - image.height) / 2);
  paste(data, width, image, left, top, 1);
  return { width, height, channels: 3, data };
}

/**
 * Puts pictures on a white sheet.
 *
 * @param cells Rows of pictures of one size; `undefined` leaves a place empty.
 * @param options Labels, scale.
 * @returns An RGB picture.
 * @throws If there is no picture, sizes differ or labels do not match.
 *
 * @example
 * ```ts ignore
 * const sheet = contactSheet([[base, single, fused]], {
 *   columnLabels: ["base", "single", "fused"],
 * });
 * await writeAtomic("sheet.png", encodePng(sheet));
 * ```
 */
export function contactSheet(
  cells: readonly (readonly (Pixels | undefined)[])[],
  options: ContactSheetOptions = {},
): Pixels {
  const what = "make a contact sheet";
  const { rowLabels, columnLabels, title, captions, scale = 1, gap = 2 } =
    options;
  const first = cells.flat().find((cell) => cell !== undefined);
  if (!first) throw cannot(what, "at least one picture", "none");
  const columns = Math.max(...cells.map((row) => row.length));
  for (
    const [labels, count, name] of [
      [rowLabels, cells.length, "row labels"],
      [columnLabels, columns, "column labels"],
      [captions, cells.length, "rows of captions"],
    ] as const
  ) {
    if (labels && labels.length !== count) {
      throw cannot(what, `${count} ${name}`, labels.length);
    }
  }
  if (!Number.isInteger(scale) || scale < 1) {
    throw cannot(what, "a whole scale ≥ 1", scale);
  }
  const wide = first.width * scale, high = first.height * scale;
  const left = rowLabels
    ? Math.max(...rowLabels.map((label) => textWidth(label))) + 4
    : 0;
  const heads = columnLabels?.map((label) => wrap(label, wide)) ?? [];
  const notes = captions?.map((row) => row.map((text) => wrap(text, wide)));
  const noteLines = Math.max(
    0,
    ...(notes ?? []).flat().map((lines) => lines.length),
  );
  const titleHeight = title ? LINE + 2 : 0;
  const headHeight = heads.length === 0
    ? 0
    : Math.max(...heads.map((lines) => lines.length)) * LINE + 2;
  const pitch = high + gap + noteLines * LINE;
  const top = gap + titleHeight + headHeight;
  const width = Math.max(
    gap + left + columns * (wide + gap),
    title ? textWidth(title) + 2 * gap : 0,
  );
  const height = top + cells.length * pitch;
  const data = new Uint8Array(width * height * 3).fill(255);
  const xOf = (j: number) => gap + left + j * (wide + gap);
  if (title) drawText(data, width, title, [gap, gap]);
  heads.forEach((lines, j) =>
    lines.forEach((line, k) =>
      drawText(data, width, line, [xOf(j), gap + titleHeight + k * LINE])
    )
  );
  cells.forEach((row, i) => {
    const y = top + i * pitch;
    if (rowLabels) {
      drawText(data, width, rowLabels[i], [
        gap,
        y + Math.floor((high - GLYPH_HEIGHT) / 2),
      ]);
    }
    row.forEach((cell, j) => {
      notes?.[i]?.[j]?.forEach((line, k) =>
        drawText(data, width, line, [xOf(j), y + high + 1 + k * LINE])
      );
      if (!cell) return;
      if (cell.width !== first.width || cell.height !== first.height) {
        throw cannot(
          what,
          `pictures of ${first.width}×${first.height}`,
          `${cell.width}×${cell.height}`,
        );
      }
      paste(data, width, cell, xOf(j), y, scale);
    });
  });
  return { width, height, channels: 3, data };
}

/** Copies a picture, enlarged by whole pixels. */
function paste(
  to: Uint8Array,
  toWidth: number,
  cell: Pixels,
  left: number,
  top: number,
  scale: number,
): void {
  const { width, height, channels, data } = cell;
  for (let y = 0; y < height * scale; y++) {
    for (let x = 0; x < width * scale; x++) {
      const from = (Math.floor(y / scale) * width + Math.floor(x / scale)) *
        channels;
      const at = ((top + y) * toWidth + left + x) * 3;
      for (let c = 0; c < 3; c++) {
        to[at + c] = data[from + (channels < 3 ? 0 : c)];
      }
    }
  }
}
