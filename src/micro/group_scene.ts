/**
 * Scenes with several concepts side by side, a column each: their prompts and
 * what pictures of them would look like.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import { crop, type PixelBox } from "../evaluation/preprocess.ts";
import type { Pixels } from "../io/png.ts";
import type { Art } from "./art.ts";
import { withArticle } from "./captions.ts";
import { conceptImage, TRAIN_IMAGES } from "./concepts.ts";
import { renderScene, squarePixels } from "./scenes.ts";
import type { SketchObject } from "./sketch.ts";
import { type Background, BACKGROUNDS, type Identity } from "./world.ts";

/** Height of a picture in pixels, at scale 1. */
export const HEIGHT = 64;

/**
 * Backgrounds of the scenes: those of two words. With "in a forest" three
 * concepts and their places are more than the embedded text encoder reads.
 */
export const SCENE_BACKGROUNDS: readonly Background[] = BACKGROUNDS.filter((
  { phrases },
) => phrases[0].split(" ").length <= 2);

/** Side of a rendered concept, as in its training frames, if it fits; pixels. */
const RENDERED_SIDE = 36;

/** Side of a concept in a rendered scene, pixels. */
function renderedSide({ column }: Pick<GroupScene, "column">): number {
  return Math.min(RENDERED_SIDE, column - 4);
}

/**
 * Choices of n among names, spread evenly over all of them; every second one is
 * turned round, so that no concept is always on the left.
 *
 * @param names Names.
 * @param n How many in a choice.
 * @param most How many choices at most.
 * @throws If there are not n names.
 */
export function choices(
  names: readonly string[],
  n: number,
  most: number,
): string[][] {
  if (!Number.isInteger(n) || n < 1 || n > names.length) {
    throw cannot("choose concepts", `1 to ${names.length} of them`, n);
  }
  const all: string[][] = [];
  const grow = (chosen: string[], from: number) => {
    if (chosen.length === n) return void all.push(chosen);
    for (let i = from; i < names.length; i++) {
      grow([...chosen, names[i]], i + 1);
    }
  };
  grow([], 0);
  const count = Math.min(most, all.length);
  return Array.from({ length: count }, (_, i) => {
    const chosen = all[Math.floor(i * all.length / count)];
    return i % 2 === 0 ? chosen : [...chosen].reverse();
  });
}

/** Places in words, from left to right. */
function placeWords(n: number): readonly string[] {
  if (n === 2) return [" on the left", " on the right"];
  if (n === 3) return [" on the left", " in the center", " on the right"];
  return new Array(n).fill("");
}

/**
 * A prompt with every concept in it: `a fox on the left and an owl on the right on
 * grass`.
 *
 * @param phrases How each stands in prompts, from left to right.
 * @param where The background in words.
 */
export function groupPrompt(phrases: readonly string[], where: string): string {
  const words = placeWords(phrases.length);
  return `${
    phrases.map((phrase, i) => withArticle(phrase) + words[i]).join(" and ")
  } ${where}`;
}

/** Concepts side by side before a background. */
export interface GroupScene {
  /** From left to right. */
  readonly concepts: readonly Identity[];
  /** Word of the background. */
  readonly background: string;
  /** The background in words. */
  readonly where: string;
  /** Resolution, a factor of 64 pixels of height. */
  readonly scale: number;
  /** Width of a column in pixels, at scale 1. */
  readonly column: number;
}

/** Pixels of a scene's picture. */
export function sizeOf(
  { concepts, scale, column }: Pick<
    GroupScene,
    "concepts" | "scale" | "column"
  >,
): { width: number; height: number } {
  return {
    width: Math.round(concepts.length * column * scale),
    height: Math.round(HEIGHT * scale),
  };
}

/** The text of a scene without names, for text alignment. */
export function captionOf(
  { concepts, where }: GroupScene,
  prefix: string,
): string {
  return prefix + groupPrompt(concepts.map((one) => one.class), where);
}

/**
 * What pictures would look like: columns side by side, each with its concept or
 * empty. Concepts show training frames: the gallery has the reference
 * frames, the evaluation CLIP has seen the third block.
 */
export function renderColumns(
  scene: GroupScene,
  index: number,
  art: Art,
  arm: string,
): Pixels {
  const { width, height } = sizeOf(scene);
  const data = new Uint8Array(width * height * 3);
  scene.concepts.forEach(({ name, class: word }, i) => {
    const { scene: { objects } } = conceptImage(
      name,
      "train",
      index % TRAIN_IMAGES,
      art,
    );
    const own = objects.find(({ noun }) => noun === name)!;
    const image = renderScene({
      side: HEIGHT,
      background: scene.background,
      texture: fold(key(index), "rendered", arm, scene.background)[0] >>> 1,
      objects: arm === "empty" ? [] : [{
        ...own,
        class: word,
        place: "center",
        x: HEIGHT / 2,
        y: HEIGHT / 2,
        scale: renderedSide(scene),
      }],
    }, art);
    for (let y = 0; y < height; y++) {
      const from = (y * HEIGHT + Math.floor((HEIGHT - scene.column) / 2)) * 3;
      data.set(
        image.subarray(from, from + scene.column * 3),
        (y * width + i * scene.column) * 3,
      );
    }
  });
  return { width, height, channels: 3, data };
}

/**
 * Edges of a concept's region, shares of its column and of the picture's
 * height. Around it and between regions the whole picture's prompt holds: on
 * ordinary words, regions that fill the columns lose one of two things.
 */
export const REGION_EDGES = {
  left: 0.15,
  right: 0.85,
  top: 0.2,
  bottom: 0.8,
} as const;

/** Cells of a mask along a column's width and along the picture's height. */
const MASK_CELLS = 20;

/** Columns of a picture as shares of it. */
export function columns(n: number): PixelBox[] {
  return Array.from(
    { length: n },
    (_, i) => ({ x: i / n, y: 0, width: 1 / n, height: 1 }),
  );
}

/**
 * The mask of a concept's region: a mask's rule (at least half of a cell) has
 * cells left on the UNet's coarsest grid, where that of boxes (all of a cell)
 * has none.
 *
 * @param column The concept's column, from the left.
 * @param n Number of columns.
 * @returns {@linkcode MASK_CELLS} rows of a layout's mask over the picture.
 */
export function regionRows(column: number, n: number): [string, ...string[]] {
  const inside = (at: number, from: number, to: number) =>
    at >= Math.round(from * MASK_CELLS) && at < Math.round(to * MASK_CELLS);
  const { left, right, top, bottom } = REGION_EDGES;
  const row = (y: number) =>
    Array.from(
      { length: n * MASK_CELLS },
      (_, x) =>
        inside(y, top, bottom) && inside(x - column * MASK_CELLS, left, right)
          ? "#"
          : ".",
    ).join("");
  const rows = Array.from({ length: MASK_CELLS }, (_, y) => row(y));
  return rows as [string, ...string[]];
}

/**
 * Outlines of a scene's concepts, each as wide as its region, in its middle.
 *
 * @param scene Its concepts and its size.
 */
export function sketchOfScene(
  scene: Pick<GroupScene, "concepts" | "scale" | "column">,
): SketchObject[] {
  const column = scene.column * scene.scale;
  const side = Math.round(column * (REGION_EDGES.right - REGION_EDGES.left));
  const { height } = sizeOf(scene);
  return scene.concepts.map(({ name }, i) => ({
    concept: name,
    frame: 0,
    x: Math.round((i + 0.5) * column - side / 2),
    y: Math.round((height - side) / 2),
    side,
  }));
}

/** Side of a background's crop, pixels. */
const BACKGROUND_SIDE = 32;

/**
 * A part of an empty background, as it looks between concepts.
 *
 * @param word Word of the background.
 * @param i Which part.
 * @param art Loaded art.
 */
export function emptyBackground(word: string, i: number, art: Art): Pixels {
  const data = renderScene({
    side: HEIGHT,
    background: word,
    texture: fold(key(i), "empty", word)[0] >>> 1,
    objects: [],
  }, art);
  return crop(squarePixels(HEIGHT, data), {
    x: i % 2 * BACKGROUND_SIDE,
    y: Math.floor(i / 2) % 3 * BACKGROUND_SIDE / 2,
    width: BACKGROUND_SIDE,
    height: BACKGROUND_SIDE,
  });
}
