/**
 * Contact sheets: pictures in rows and columns, with labels.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Pixels } from "../io/png.ts";
import { svgPixels } from "./svg.ts";
import { ASCENT, escapeHtml, FONT, textWidth, wrapText } from "./text.ts";

/** Settings of {@linkcode contactSheet}. */
export interface ContactSheetOptions {
  /** One per row, drawn on the left. */
  readonly rowLabels?: readonly string[];
  /** One per column, drawn above. */
  readonly columnLabels?: readonly string[];
  /** Drawn above everything. */
  readonly title?: string;
  /** Drawn under each cell, rows of columns. */
  readonly captions?: readonly (readonly string[])[];
  /**
   * Enlargement of the pictures, a whole number.
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

/** Size of labels, and from one line to the next, in pixels. */
const SIZE = 11;
const LINE = 14;

/** A line of text, and where its box begins. */
interface Label {
  readonly text: string;
  readonly left: number;
  readonly top: number;
}

/** A white sheet with labels; without any, nothing but white. */
async function labelled(
  width: number,
  height: number,
  labels: readonly Label[],
): Promise<Uint8Array> {
  if (labels.length === 0) return new Uint8Array(3 * width * height).fill(255);
  const lines = labels.map(({ text, left, top }) =>
    `<text x="${left}" y="${top + ASCENT * SIZE}">${escapeHtml(text)}</text>`
  );
  const { data } = await svgPixels(
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
      `font-family="${FONT}" font-size="${SIZE}" fill="#282828">${
        lines.join("")
      }</svg>`,
  );
  return data as Uint8Array;
}

/** Pictures in rows and columns, for a page and for a picture file. */
export interface Sheet {
  /** Label above each column. */
  readonly columns: readonly string[];
  /** The rows. */
  readonly rows: readonly {
    /** What the row shows. */
    readonly label: string;
    /** Note beside the label, in HTML only. */
    readonly note?: string;
    /** A picture per column; `undefined` leaves a place empty. */
    readonly cells: readonly (Pixels | undefined)[];
    /** Caption below each picture. */
    readonly captions?: readonly string[];
  }[];
  /** Enlargement of the pictures, a whole number. @default 1 */
  readonly scale?: number;
}

/**
 * A sheet as one picture.
 *
 * @param sheet The pictures and labels; smaller pictures are centred in their
 * cells.
 * @throws If there is no picture.
 */
export async function sheetPixels(
  { columns, rows, scale }: Sheet,
): Promise<Pixels> {
  const all = rows.flatMap(({ cells }) => cells.flatMap((cell) => cell ?? []));
  const width = Math.max(...all.map((cell) => cell.width));
  const height = Math.max(...all.map((cell) => cell.height));
  const captions = rows.some((row) => row.captions);
  return await contactSheet(
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
 * @throws If there is no picture, sizes differ or labels do not match; in a page,
 * if there are labels.
 *
 * @example
 * ```ts ignore
 * const sheet = await contactSheet([[base, single, fused]], {
 *   columnLabels: ["base", "single", "fused"],
 * });
 * await writeAtomic("sheet.png", encodePng(sheet));
 * ```
 */
export async function contactSheet(
  cells: readonly (readonly (Pixels | undefined)[])[],
  options: ContactSheetOptions = {},
): Promise<Pixels> {
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
  for (const cell of cells.flat()) {
    if (!cell) continue;
    if (cell.width === first.width && cell.height === first.height) continue;
    throw cannot(
      what,
      `pictures of ${first.width}×${first.height}`,
      `${cell.width}×${cell.height}`,
    );
  }
  const wide = first.width * scale, high = first.height * scale;
  const widthOf = (text: string) => Math.ceil(textWidth(text, SIZE));
  const left = rowLabels ? Math.max(...rowLabels.map(widthOf)) + 4 : 0;
  // Room between neighbours; what is equal to what stays on one line.
  const wrapped = (text: string) =>
    wrapText(text.replaceAll(" = ", "\u00a0=\u00a0"), wide - 4, SIZE);
  const heads = columnLabels?.map(wrapped) ?? [];
  const notes = captions?.map((row) => row.map(wrapped)) ?? [];
  const most = (texts: readonly (readonly string[])[]) =>
    Math.max(0, ...texts.map((lines) => lines.length));
  const titleHeight = title ? LINE + 2 : 0;
  const headHeight = heads.length === 0 ? 0 : most(heads) * LINE + 2;
  const pitch = high + gap + most(notes.flat()) * LINE;
  const top = gap + titleHeight + headHeight;
  const width = Math.max(
    gap + left + columns * (wide + gap),
    title ? widthOf(title) + 2 * gap : 0,
  );
  const height = top + cells.length * pitch;
  const xOf = (j: number) => gap + left + j * (wide + gap);
  const yOf = (i: number) => top + i * pitch;
  const lines = (texts: readonly string[], x: number, y: number) =>
    texts.map((text, k): Label => ({ text, left: x, top: y + k * LINE }));
  const data = await labelled(width, height, [
    ...lines(title ? [title] : [], gap, gap),
    ...heads.flatMap((texts, j) => lines(texts, xOf(j), gap + titleHeight)),
    ...(rowLabels ?? []).map((text, i): Label => (
      { text, left: gap, top: yOf(i) + (high - LINE) / 2 }
    )),
    ...notes.flatMap((row, i) =>
      row.flatMap((texts, j) => lines(texts, xOf(j), yOf(i) + high + 1))
    ),
  ]);
  cells.forEach((row, i) =>
    row.forEach((cell, j) => {
      if (cell) paste(data, width, cell, xOf(j), yOf(i), scale);
    })
  );
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
