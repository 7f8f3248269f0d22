/**
 * Text in pages and pictures: what is escaped in HTML and SVG, and how wide it is
 * in DejaVu Sans, without a font engine.
 *
 * @module
 */

/** The font of charts and sheets: it has Greek, arrows and relations. */
export const FONT = "DejaVu Sans";

/** Advance widths of U+0020 to U+007E in thousandths of the font's size. */
// deno-fmt-ignore
const WIDTHS: readonly number[] = [
  318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318,
  337, 636, 636, 636, 636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838,
  838, 531, 1000, 684, 686, 698, 770, 632, 575, 775, 752, 295, 295, 656, 557,
  863, 748, 787, 603, 787, 695, 635, 611, 732, 684, 989, 685, 611, 685, 390,
  337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278,
  579, 278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592,
  525, 636, 337, 636, 838,
];

/** Most of what is beyond: Greek letters are narrower, arrows as wide. */
const OTHERS = 838;

/** Share of the size above and below the line that letters stand on. */
export const ASCENT = 0.93;
export const DESCENT = 0.24;

/**
 * The width of a line.
 *
 * @param text The line.
 * @param size The font's size in pixels.
 * @returns Pixels; letters beyond ASCII count as wide ones.
 */
export function textWidth(text: string, size: number): number {
  let sum = 0;
  for (const letter of text) {
    sum += WIDTHS[letter.codePointAt(0)! - 32] ?? OTHERS;
  }
  return sum * size / 1000;
}

/**
 * Breaks a text at spaces into lines no wider than so many pixels, where that is
 * possible.
 *
 * @param text The text.
 * @param width Pixels.
 * @param size The font's size in pixels.
 */
export function wrapText(text: string, width: number, size: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line === "" ? word : `${line} ${word}`;
    if (line !== "" && textWidth(longer, size) > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}

/** Makes text safe inside elements and attributes. */
export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}
