import { cannot } from "../core/errors.ts";
import { readBytes } from "../io/files.ts";
import { decodePng } from "../io/png.ts";
import type { Design } from "./world.ts";

/** One sprite's place in the committed atlases. */
export interface AtlasSprite {
  /** Noun, or proper name of an identity. */
  readonly noun: string;
  /** Style word, or frame name of an identity. */
  readonly design: string;
  /** Code point of the art. */
  readonly codepoint: string;
  /** Name of the icon in its package. */
  readonly icon: string;
  /** Atlas file. */
  readonly file: string;
  /** Index of the cell, row by row. */
  readonly cell: number;
}

/** What `models/micro/art/atlas.json` holds. */
export interface AtlasIndex {
  /** Side of a cell in pixels. */
  readonly cell: number;
  /** Cells in a row. */
  readonly columns: number;
  /** The designs, with package, version and licence. */
  readonly designs: readonly Design[];
  /** Sprites that training may use. */
  readonly sprites: readonly AtlasSprite[];
  /** Other designs of the identities' code points: only for evaluation. */
  readonly others: readonly AtlasSprite[];
  /** `noun/design` pairs that the packages lack. */
  readonly absent: readonly string[];
}

/** A drawing: RGBA rows, straight (not premultiplied) alpha. */
export interface Sprite {
  /** Side of the square in pixels. */
  readonly side: number;
  /** `side * side * 4` bytes. */
  readonly data: Uint8Array;
}

/** Loaded art: sprites by `noun/design`, and a cache of scaled ones. */
export interface Art {
  /** Sprites by {@linkcode spriteKey}. */
  readonly sprites: ReadonlyMap<string, Sprite>;
  /** Scaled, premultiplied sprites by key and size; filled while rendering. */
  readonly scaled: Map<string, Float32Array>;
}

/** The folder of the committed atlases. */
export const ART_FOLDER: URL = new URL(
  "../../models/micro/art/",
  import.meta.url,
);

/**
 * The name of a sprite in {@linkcode Art}.
 *
 * @param noun The noun, or an identity's proper name.
 * @param design The style word, or a frame of the identity.
 */
export function spriteKey(noun: string, design: string): string {
  return `${noun}/${design}`;
}

/** Reads a JSON file next to the atlases. */
export async function readArtJson<T>(name: string, folder: URL): Promise<T> {
  const bytes = await readBytes(new URL(name, folder));
  return JSON.parse(new TextDecoder().decode(bytes)) as T;
}

/**
 * Cuts the cells of atlases into sprites.
 *
 * @param index The cells to cut.
 * @param grid Cell side and number of columns.
 * @param folder Where the atlas files are.
 */
export async function readSprites(
  index: readonly AtlasSprite[],
  grid: { readonly cell: number; readonly columns: number },
  folder: URL,
): Promise<Map<string, Sprite>> {
  const sprites = new Map<string, Sprite>();
  const side = grid.cell;
  for (const file of new Set(index.map((sprite) => sprite.file))) {
    const sheet = decodePng(await readBytes(new URL(file, folder)));
    const rows = Math.floor(sheet.height / side);
    if (sheet.channels !== 4 || sheet.width !== grid.columns * side) {
      throw cannot(
        `read atlas ${file}`,
        `RGBA of width ${grid.columns * side}`,
        `${sheet.channels} channels of width ${sheet.width}`,
      );
    }
    for (const sprite of index) {
      if (sprite.file !== file) continue;
      const left = (sprite.cell % grid.columns) * side;
      const row = Math.floor(sprite.cell / grid.columns);
      if (row >= rows) {
        throw cannot(`read atlas ${file}`, `a row below ${rows}`, row);
      }
      const data = new Uint8Array(side * side * 4);
      for (let y = 0; y < side; y++) {
        const from = ((row * side + y) * sheet.width + left) * 4;
        data.set(sheet.data.subarray(from, from + side * 4), y * side * 4);
      }
      sprites.set(spriteKey(sprite.noun, sprite.design), { side, data });
    }
  }
  return sprites;
}

/**
 * Loads the still art: every noun in every design that has it.
 *
 * @param folder Where the atlases are; by default the committed ones.
 * @throws If a file is missing or misshapen.
 *
 * @example
 * ```ts
 * const image = renderScene(trainScene(0), await loadArt());
 * ```
 */
export async function loadArt(folder: URL = ART_FOLDER): Promise<Art> {
  const index = await readArtJson<AtlasIndex>("atlas.json", folder);
  return {
    sprites: await readSprites(index.sprites, index, folder),
    scaled: new Map(),
  };
}

/**
 * A sprite scaled by area averaging, as premultiplied RGBA in 0–255 (alpha in
 * 0–1); kept in the art's cache.
 *
 * @param art Loaded art.
 * @param key Name of the sprite, see {@linkcode spriteKey}.
 * @param size Side in pixels.
 * @returns `[size, size, 4]`; not to be written to.
 * @throws If the art has no such sprite.
 */
export function scaledSprite(
  art: Art,
  key: string,
  size: number,
): Float32Array {
  const name = `${key}@${size}`;
  const cached = art.scaled.get(name);
  if (cached) return cached;
  const sprite = art.sprites.get(key);
  if (!sprite) throw cannot("draw a sprite", "one of the art's sprites", key);
  const { side, data } = sprite;
  // Horizontally, then vertically: each output pixel averages its footprint.
  const wide = new Float32Array(side * size * 4);
  const out = new Float32Array(size * size * 4);
  const step = side / size;
  for (let i = 0; i < size; i++) {
    const low = i * step, high = (i + 1) * step;
    for (let j = Math.floor(low); j < Math.min(side, Math.ceil(high)); j++) {
      const share = (Math.min(high, j + 1) - Math.max(low, j)) / step;
      for (let y = 0; y < side; y++) {
        const from = (y * side + j) * 4, to = (y * size + i) * 4;
        const alpha = data[from + 3] / 255 * share;
        wide[to] += data[from] * alpha;
        wide[to + 1] += data[from + 1] * alpha;
        wide[to + 2] += data[from + 2] * alpha;
        wide[to + 3] += alpha;
      }
    }
  }
  for (let i = 0; i < size; i++) {
    const low = i * step, high = (i + 1) * step;
    for (let j = Math.floor(low); j < Math.min(side, Math.ceil(high)); j++) {
      const share = (Math.min(high, j + 1) - Math.max(low, j)) / step;
      for (let k = 0; k < size * 4; k++) {
        out[i * size * 4 + k] += wide[j * size * 4 + k] * share;
      }
    }
  }
  art.scaled.set(name, out);
  return out;
}
