/**
 * A 5×7 bitmap font, for labels in contact sheets.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** Width of a glyph in pixels, without the gap after it. */
const GLYPH_WIDTH = 5;
/** Height of a glyph in pixels. */
export const GLYPH_HEIGHT = 7;

// Seven rows a glyph, two hexadecimal digits each, the lowest five bits used.
const GLYPHS: Readonly<Record<string, string>> = {
  " ": "00000000000000",
  A: "0e11111f111111",
  B: "1e11111e11111e",
  C: "0e11101010110e",
  D: "1e11111111111e",
  E: "1f10101e10101f",
  F: "1f10101e101010",
  G: "0e11101711110f",
  H: "1111111f111111",
  I: "0e04040404040e",
  J: "0702020202120c",
  K: "11121418141211",
  L: "1010101010101f",
  M: "111b1515111111",
  N: "11111915131111",
  O: "0e11111111110e",
  P: "1e11111e101010",
  Q: "0e11111115120d",
  R: "1e11111e141211",
  S: "0f10100e01011e",
  T: "1f040404040404",
  U: "1111111111110e",
  V: "11111111110a04",
  W: "1111111515150a",
  X: "11110a040a1111",
  Y: "11110a04040404",
  Z: "1f01020408101f",
  a: "00000e010f110f",
  b: "1010161911111e",
  c: "00000e1010110e",
  d: "01010d1311110f",
  e: "00000e111f100e",
  f: "0609081c080808",
  g: "00000f110f010e",
  h: "10101619111111",
  i: "04000c0404040e",
  j: "0200060202120c",
  k: "10101214181412",
  l: "0c04040404040e",
  m: "00001a15151111",
  n: "00001619111111",
  o: "00000e1111110e",
  p: "00001e111e1010",
  q: "00000d130f0101",
  r: "00001619101010",
  s: "00000e100e011e",
  t: "08081c08080906",
  u: "0000111111130d",
  v: "00001111110a04",
  w: "0000111115150a",
  x: "0000110a040a11",
  y: "000011110f010e",
  z: "00001f0204081f",
  0: "0e11131519110e",
  1: "040c040404040e",
  2: "0e11010204081f",
  3: "1f02040201110e",
  4: "02060a121f0202",
  5: "1f101e0101110e",
  6: "0608101e11110e",
  7: "1f010204080808",
  8: "0e11110e11110e",
  9: "0e11110f01020c",
  ".": "00000000000c0c",
  ",": "000000000c0408",
  "-": "0000001f000000",
  "+": "0004041f040400",
  "/": "00010204081000",
  ":": "000c0c000c0c00",
  "(": "02040808080402",
  ")": "08040202020408",
  "%": "18190204081303",
  "=": "00001f001f0000",
  "<": "02040810080402",
  ">": "08040201020408",
  "_": "0000000000001f",
  "'": "0c040800000000",
  "*": "00150e1f0e1500",
  "?": "0e110102040004",
  "λ": "1008040a0a1111",
  "α": "00000d1212120d",
  "×": "00110a040a1100",
  "±": "04041f0404001f",
  "→": "0004021f020400",
  "·": "00000004000000",
};

/** What an unknown character looks like: an empty box. */
const UNKNOWN = "1f11111111111f";

/**
 * Width of a text in pixels.
 *
 * @param text The text.
 * @param scale Pixels of a dot.
 * @default scale 1
 */
export function textWidth(text: string, scale = 1): number {
  const n = [...text].length;
  return n === 0 ? 0 : (n * (GLYPH_WIDTH + 1) - 1) * scale;
}

/**
 * Draws a text into an RGB picture; what leaves the picture is cut off.
 *
 * @param data RGB bytes, changed.
 * @param width Width of the picture in pixels.
 * @param text The text; unknown characters become boxes.
 * @param at Left and top edge in pixels.
 * @param color RGB bytes.
 * @param scale Pixels of a dot.
 * @default scale 1
 * @throws If the bytes are no multiple of the width.
 */
export function drawText(
  data: Uint8Array,
  width: number,
  text: string,
  at: readonly [number, number],
  color: readonly [number, number, number] = [0, 0, 0],
  scale = 1,
): void {
  const height = data.length / 3 / width;
  if (!Number.isInteger(height)) {
    throw cannot("draw a text", `rows of ${width} RGB pixels`, data.length);
  }
  [...text].forEach((character, i) => {
    const glyph = GLYPHS[character] ?? UNKNOWN;
    for (let row = 0; row < GLYPH_HEIGHT * scale; row++) {
      const from = 2 * Math.floor(row / scale);
      const bits = parseInt(glyph.slice(from, from + 2), 16);
      for (let column = 0; column < GLYPH_WIDTH * scale; column++) {
        const bit = GLYPH_WIDTH - 1 - Math.floor(column / scale);
        if (!(bits >> bit & 1)) continue;
        const x = at[0] + i * (GLYPH_WIDTH + 1) * scale + column;
        const y = at[1] + row;
        if (x < 0 || y < 0 || x >= width || y >= height) continue;
        data.set(color, (y * width + x) * 3);
      }
    }
  });
}
