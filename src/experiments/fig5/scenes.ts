/**
 * Scenes with several concepts: who is where, in layouts of every arm, as
 * outlines and as rendered pictures.
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import { fold, key } from "../../core/random.ts";
import {
  type LayoutInput,
  parseLayout,
  resolveLayout,
} from "../../diffusion/layout.ts";
import { shapeMap } from "../../diffusion/regions.ts";
import type { PixelBox } from "../../evaluation/preprocess.ts";
import type { Pixels } from "../../io/png.ts";
import type { SketchObject } from "../../lab/specs.ts";
import type { Art } from "../../micro/art.ts";
import { withArticle } from "../../micro/captions.ts";
import { conceptImage, TRAIN_IMAGES } from "../../micro/concepts.ts";
import { renderScene } from "../../micro/scenes.ts";
import { BACKGROUNDS, type Identity } from "../../micro/world.ts";
import type { UNetConfig } from "../../models/config.ts";
import { attentionGrids } from "../../models/unet.ts";
import type { ExperimentPreset } from "../presets.ts";

/** Ways to fuse that are compared. */
export const REGION_FUSIONS = ["weight", "gradient"] as const;

/** Ways to say where concepts are, on a fused model. */
export const FUSED_WAYS = [
  "plain",
  "regional",
  "regional+negative",
  "regional+sketch",
] as const;

/** Ways to use adapters that are not fused. */
export const UNFUSED_WAYS = ["region-adapters", "switch", "composite"] as const;

/** A way to draw a scene. */
export type Way = typeof FUSED_WAYS[number] | typeof UNFUSED_WAYS[number];

/** Arms that are rendered: with everybody, the ceiling; without, the floor. */
export const RENDERED_ARMS: readonly string[] = ["real", "empty"];

/** Every arm, in the order of the table. */
export const REGION_ARMS: readonly string[] = [
  ...RENDERED_ARMS,
  ...FUSED_WAYS.flatMap((way) => REGION_FUSIONS.map((f) => `${way}.${f}`)),
  ...UNFUSED_WAYS,
];

/** Arms that are also drawn at other resolutions. */
export const RESOLUTION_ARMS: readonly string[] = [
  "plain.gradient",
  "regional.gradient",
];

/** Widths a concept's column may have, pixels at scale 1. */
export const COLUMN_WIDTHS = [32, 48, 64] as const;

/** Height of a picture in pixels, at scale 1. */
export const HEIGHT = 64;

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

/**
 * Backgrounds of the scenes: those of two words. With "in a forest" three
 * concepts and their places are more than the embedded text encoder reads.
 */
export const SCENE_BACKGROUNDS = BACKGROUNDS.filter(({ phrases }) =>
  phrases[0].split(" ").length <= 2
);

/** Side of a rendered concept, as in its training frames, if it fits; pixels. */
const RENDERED_SIDE = 36;

/** Side of a concept in a rendered scene, pixels. */
function renderedSide({ column }: Pick<Scene, "column">): number {
  return Math.min(RENDERED_SIDE, column - 4);
}

/**
 * Choices of n among names, spread evenly over all of them; every second one is
 * turned round, so that nobody is always on the left.
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
 * Whether an arm is told who is where: regions tell, and the places in the
 * prompt for two and three concepts; for four there are no words.
 *
 * @param arm One of {@linkcode REGION_ARMS}.
 * @param n Number of concepts.
 */
export function knowsPlaces(arm: string, n: number): boolean {
  const [way] = arm.split(".");
  return !["plain", "switch", "composite"].includes(way) || n <= 3;
}

/**
 * A prompt with everybody in it: `a fox on the left and an owl on the right on
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

/** One layout of the experiment, before it is known how it is drawn. */
export interface Scene {
  readonly concepts: readonly Identity[];
  readonly background: string;
  /** The background in words. */
  readonly where: string;
  readonly scale: number;
  /** Width of a column in pixels, at scale 1. */
  readonly column: number;
}

/** Pixels of a scene's picture. */
export function sizeOf(
  { concepts, scale, column }: Pick<Scene, "concepts" | "scale" | "column">,
): { width: number; height: number } {
  return {
    width: Math.round(concepts.length * column * scale),
    height: Math.round(HEIGHT * scale),
  };
}

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
function regionRows(column: number, n: number): [string, ...string[]] {
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
  const [first, ...rest] = Array.from({ length: MASK_CELLS }, (_, y) => row(y));
  return [first, ...rest];
}

/** How a concept stands in prompts. */
export type PhraseOf = (identity: Identity) => string;

/** How it stands in prompts that a model without it is asked. */
export const classOf: PhraseOf = (identity) => identity.class;

/** The layout document of a scene in one arm. */
export function sceneLayout(
  scene: Scene,
  way: Way,
  phrase: PhraseOf,
  settings: Pick<ExperimentPreset, "sampling">,
): LayoutInput {
  const { concepts, where } = scene;
  const { sampler, steps, guidance, negative } = settings.sampling;
  const common = { negative, sampler, steps, guidance, size: sizeOf(scene) };
  if (way === "plain" || way === "switch" || way === "composite") {
    return { ...common, prompt: groupPrompt(concepts.map(phrase), where) };
  }
  const n = concepts.length;
  return {
    ...common,
    prompt: groupPrompt(concepts.map(classOf), where),
    regions: concepts.map((concept, i) => ({
      mask: { rows: regionRows(i, n) },
      prompt: withArticle(phrase(concept)),
      negative: way === "regional+negative"
        ? [
          negative,
          ...concepts.filter((other) => other !== concept)
            .map((other) => withArticle(phrase(other))),
        ].filter((text) => text !== "").join(" and ")
        : negative,
      ...(way === "region-adapters" ? { concepts: [concept.name] } : {}),
    })),
    ...(way === "regional+sketch"
      ? {
        conditions: [{
          type: "t2i_adapter" as const,
          network: "sketch",
          image: { file: "sketch" },
        }],
      }
      : {}),
  };
}

/**
 * At how many cross-attention sites every region of a layout has a cell.
 *
 * @param config The UNet's config.
 * @param layout The layout, with a size.
 * @param factor Pixels of a latent cell's side.
 */
export async function actingSites(
  config: UNetConfig,
  layout: LayoutInput,
  factor: number,
): Promise<Pick<RegionSites, "acting" | "all">> {
  const { layout: { size }, regions } = await resolveLayout(
    parseLayout(layout),
  );
  const grids = attentionGrids(config, {
    height: size!.height / factor,
    width: size!.width / factor,
  });
  const acting = grids.filter(({ height, width }) =>
    regions.every(({ shape }) => shapeMap(shape, height, width).some((v) => v))
  );
  return { acting: acting.length, all: grids.length };
}

/**
 * Outlines of a scene's concepts, each as wide as its region, in its middle.
 *
 * @param scene Who is in it, and its size.
 */
export function sketchOfScene(
  scene: Pick<Scene, "concepts" | "scale" | "column">,
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

/** At how many cross-attention sites of the UNet regions act. */
export interface RegionSites {
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Sites at which every region has a cell. */
  readonly acting: number;
  /** All cross-attention sites. */
  readonly all: number;
}

/** The text of a scene without names, for text alignment. */
export function captionOf({ concepts, where }: Scene, prefix: string): string {
  return prefix + groupPrompt(concepts.map(classOf), where);
}

/**
 * What pictures would look like: columns side by side, each with its concept or
 * with nobody. Concepts show training frames: the gallery has the reference
 * frames, the evaluation CLIP has seen the third block.
 */
export function renderColumns(
  scene: Scene,
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
      const from = (y * HEIGHT + (HEIGHT - scene.column) / 2) * 3;
      data.set(
        image.subarray(from, from + scene.column * 3),
        (y * width + i * scene.column) * 3,
      );
    }
  });
  return { width, height, channels: 3, data };
}
