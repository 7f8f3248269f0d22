import { cannot } from "../core/errors.ts";
import { fold, key, type Stream, stream } from "../core/random.ts";
import type { Pixels } from "../io/png.ts";
import { type Art, scaledSprite, spriteKey } from "./art.ts";
import { PAINTERS } from "./backgrounds.ts";
import { type PLACES, WORLD, type World } from "./world.ts";

/** A place word. */
export type ScenePlace = typeof PLACES[number];

/** One object of a scene: what it is and where. */
export interface SceneObject {
  /** Noun, or an identity's proper name. */
  readonly noun: string;
  /** Coarse class word. */
  readonly class: string;
  /** Style word, or a frame of an identity. */
  readonly design: string;
  /** Tint, or null for its own colours. */
  readonly color: string | null;
  /** Size word, or null when neither. */
  readonly size: "small" | "big" | null;
  /** Where it is, in a word. */
  readonly place: ScenePlace;
  /** Centre, pixels from the left. */
  readonly x: number;
  /** Centre, pixels from the top. */
  readonly y: number;
  /** Side of the square that holds it, pixels. */
  readonly scale: number;
  /** Whether it is mirrored. */
  readonly flip: boolean;
}

/** A scene's ground truth: all that {@linkcode renderScene} needs. */
export interface Scene {
  /** Side of the image in pixels. */
  readonly side: number;
  /** Background word. */
  readonly background: string;
  /** Seed of the background's texture. */
  readonly texture: number;
  /** One object, or two from left to right. */
  readonly objects: readonly SceneObject[];
}

const pick = <T>(items: readonly T[], draw: Stream): T =>
  items[draw.integer(items.length)];

const between = (range: readonly [number, number], draw: Stream): number =>
  range[0] + draw.integer(range[1] - range[0] + 1);

/** What can be asked of {@linkcode sampleScene}. */
export interface SampleSceneOptions {
  /** How many objects; by default one or two, as the world has it. */
  readonly objects?: 1 | 2;
  /** The background; by default any. */
  readonly background?: string;
}

/**
 * Puts an object somewhere: draws its place, centre and mirroring.
 *
 * @param what The object's facts.
 * @param world Side of the image, grid, mirroring.
 * @param draw Randomness.
 * @param slot Which half it is put in; by default anywhere.
 */
export function placeObject(
  what: Pick<SceneObject, "noun" | "class" | "design" | "color" | "size"> & {
    readonly scale: number;
  },
  world: Pick<World, "side" | "grid" | "mirrored">,
  draw: Stream,
  slot?: "left" | "right",
): SceneObject {
  const { side, grid } = world;
  const u = draw.uniform();
  const place: ScenePlace = slot ??
    (u < 0.4
      ? "center"
      : u < 0.58
      ? "left"
      : u < 0.76
      ? "right"
      : u < 0.88
      ? "top"
      : "bottom");
  const half = what.scale / 2, middle = side / 2;
  const near = half + draw.integer(4), far = side - near;
  const snapped = (center: number): number =>
    Math.round((center - half) / grid) * grid + half;
  const jitter = (spread: number): number =>
    draw.integer(2 * spread + 1) - spread;
  const x = place === "left" ? near : place === "right" ? far : middle +
    jitter(3);
  const y = place === "top"
    ? near
    : place === "bottom"
    ? far
    : middle + jitter(slot ? 8 : 4);
  const { scale, ...facts } = what;
  return {
    ...facts,
    place,
    x: snapped(x),
    y: snapped(y),
    scale,
    flip: draw.uniform() < 0.5 && world.mirrored,
  };
}

/**
 * Samples a random scene.
 *
 * @param draw Randomness.
 * @param world What there is.
 * @default world WORLD
 * @param options What is fixed beforehand.
 * @param exists Whether a design of a noun exists; by default every one does.
 */
export function sampleScene(
  draw: Stream,
  world: World = WORLD,
  options: SampleSceneOptions = {},
  exists: (noun: string, design: string) => boolean = () => true,
): Scene {
  const texture = draw.integer(2 ** 31);
  const background = options.background ?? pick(world.backgrounds, draw).word;
  const pair = draw.uniform() < world.pairs;
  const count = options.objects ?? (pair ? 2 : 1);
  const objects: SceneObject[] = [];
  for (let i = 0; i < count; i++) {
    const others = world.nouns.filter((noun) => noun.word !== objects[0]?.noun);
    const noun = pick(others, draw);
    const designs = world.designs.filter((d) => exists(noun.word, d.word));
    if (designs.length === 0) {
      throw cannot("draw a scene", `art of "${noun.word}"`, "no design of it");
    }
    const design = pick(designs, draw).word;
    const tinted = draw.uniform() < world.tinted;
    const color = pick(world.colors, draw).word;
    const u = draw.uniform();
    const size = count === 2 || u < 0.5 ? null : u < 0.75 ? "small" : "big";
    const scale = between(
      count === 2 ? world.sizes.pair : world.sizes[size ?? ""],
      draw,
    );
    objects.push(placeObject(
      {
        noun: noun.word,
        class: noun.class,
        design,
        color: tinted ? color : null,
        size,
        scale,
      },
      world,
      draw,
      count === 2 ? (i === 0 ? "left" : "right") : undefined,
    ));
  }
  return { side: world.side, background, texture, objects };
}

/**
 * Whether a scene's (noun, background, partner) combination is one of the
 * tenth that is kept from training; whichever noun comes first.
 *
 * @param scene The scene.
 */
export function isHeldOut(
  scene: {
    readonly objects: readonly Pick<SceneObject, "noun">[];
    readonly background: string;
  },
): boolean {
  const nouns = scene.objects.map((object) => object.noun).sort();
  const combination = [...nouns, scene.background].join(" ");
  return (fold(key(305), combination)[0] >>> 0) % 10 === 0;
}

function drawUntil(
  held: boolean,
  purpose: string,
  i: number,
  world: World,
  options: SampleSceneOptions,
  exists?: (noun: string, design: string) => boolean,
): Scene {
  const root = fold(key(world.seed), purpose, i);
  for (let attempt = 0; attempt < 10_000; attempt++) {
    const scene = sampleScene(
      stream(fold(root, attempt)),
      world,
      options,
      exists,
    );
    if (isHeldOut(scene) === held) return scene;
  }
  throw cannot(
    `draw a ${purpose} scene`,
    "a world with combinations of that kind",
    "none in 10,000 draws",
  );
}

/**
 * The `i`-th training scene: never a held-out combination.
 *
 * @param i Index, any integer ≥ 0.
 * @param world The world it is drawn from.
 * @param options What is fixed beforehand.
 * @param art Loaded art, needed where a world has designs that some nouns lack.
 *
 * @example
 * ```ts
 * const scene = trainScene(0);
 * ```
 */
export function trainScene(
  i: number,
  world: World = WORLD,
  options: SampleSceneOptions = {},
  art?: Art,
): Scene {
  return drawUntil(false, "train", i, world, options, has(art));
}

/**
 * The `i`-th held-out scene: always a held-out combination.
 *
 * @param i Index, any integer ≥ 0.
 * @param world The world it is drawn from.
 * @param options What is fixed beforehand.
 * @param art Loaded art, needed where a world has designs that some nouns lack.
 */
export function heldOutScene(
  i: number,
  world: World = WORLD,
  options: SampleSceneOptions = {},
  art?: Art,
): Scene {
  return drawUntil(true, "held-out", i, world, options, has(art));
}

function has(
  art: Art | undefined,
): ((noun: string, design: string) => boolean) | undefined {
  return art &&
    ((noun, design) => art.sprites.has(spriteKey(noun, design)));
}

/** Paints one object over the canvas (RGB floats), or its alpha into a mask. */
function paste(
  object: SceneObject,
  side: number,
  art: Art,
  world: World,
  canvas: Float32Array | null,
  mask: Float32Array | null,
): void {
  const { scale } = object;
  const sprite = scaledSprite(
    art,
    spriteKey(object.noun, object.design),
    scale,
  );
  const left = Math.round(object.x - scale / 2);
  const top = Math.round(object.y - scale / 2);
  const tint = object.color === null
    ? null
    : world.colors.find((color) => color.word === object.color)?.rgb;
  if (tint === undefined) {
    throw cannot("tint an object", "one of the world's colours", object.color);
  }
  for (let row = 0; row < scale; row++) {
    const y = top + row;
    if (y < 0 || y >= side) continue;
    for (let column = 0; column < scale; column++) {
      const x = left + column;
      if (x < 0 || x >= side) continue;
      const from = (row * scale + (object.flip ? scale - 1 - column : column)) *
        4;
      const alpha = sprite[from + 3];
      if (alpha <= 0) continue;
      if (mask) mask[y * side + x] = Math.max(mask[y * side + x], alpha);
      if (!canvas) continue;
      const to = (y * side + x) * 3;
      let gain = 1, shine = 0;
      if (tint) {
        const luma = (0.299 * sprite[from] + 0.587 * sprite[from + 1] +
          0.114 * sprite[from + 2]) / (255 * alpha);
        gain = Math.min(1, 0.12 + 1.3 * luma);
        shine = 0.3 * Math.max(0, (luma - 0.7) / 0.3);
      }
      for (let c = 0; c < 3; c++) {
        const own = tint
          ? (tint[c] * gain * (1 - shine) + 255 * shine) * alpha
          : sprite[from + c];
        canvas[to + c] = canvas[to + c] * (1 - alpha) + own;
      }
    }
  }
}

/** RGB bytes [side, side, 3] as a picture. */
export function squarePixels(side: number, data: Uint8Array): Pixels {
  return { width: side, height: side, channels: 3, data };
}

/**
 * Draws a scene: pure, the same bytes for the same scene and art.
 *
 * @param scene What to draw.
 * @param art Loaded art.
 * @param world Where tints are looked up.
 * @default world WORLD
 * @returns `[side, side, 3]` RGB bytes.
 * @throws If the art lacks a sprite, or the background has no painter.
 */
export function renderScene(
  scene: Scene,
  art: Art,
  world: World = WORLD,
): Uint8Array {
  const painter = PAINTERS[scene.background];
  if (!painter) {
    throw cannot(
      "draw a background",
      Object.keys(PAINTERS).join(", "),
      scene.background,
    );
  }
  const { side } = scene;
  const canvas = new Float32Array(side * side * 3);
  painter(canvas, side, stream(key(scene.texture)));
  for (const object of scene.objects) {
    paste(object, side, art, world, canvas, null);
  }
  const bytes = new Uint8Array(canvas.length);
  for (let i = 0; i < canvas.length; i++) {
    bytes[i] = Math.max(0, Math.min(255, Math.round(canvas[i])));
  }
  return bytes;
}

/**
 * Where an object is visible: its alpha.
 *
 * @param scene The scene.
 * @param art Loaded art.
 * @param index Which of its objects.
 * @returns `[side, side]`, 0–1.
 * @throws If the scene has no such object.
 */
export function renderMask(
  scene: Scene,
  art: Art,
  index = 0,
): Float32Array {
  const object = scene.objects[index];
  if (!object) {
    throw cannot(
      "draw a mask",
      `an object below ${scene.objects.length}`,
      index,
    );
  }
  const mask = new Float32Array(scene.side ** 2);
  paste({ ...object, color: null }, scene.side, art, WORLD, null, mask);
  return mask;
}
