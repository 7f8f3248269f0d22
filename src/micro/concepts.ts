import { cannot } from "../core/errors.ts";
import { fold, key, permutation, stream } from "../core/random.ts";
import {
  type Art,
  ART_FOLDER,
  type AtlasIndex,
  type AtlasSprite,
  readArtJson,
  readSprites,
  spriteKey,
} from "./art.ts";
import { captionScene } from "./captions.ts";
import { placeObject, renderMask, renderScene, type Scene } from "./scenes.ts";
import { IDENTITIES, type Identity, WIDE_WORLD, WORLD } from "./world.ts";

/** Which block of an identity's animation an image is made from. */
export type FrameSet = "train" | "reference" | "clip";

/** What `models/micro/art/frames.json` holds. */
export interface FrameIndex {
  /** Side of a cell in pixels. */
  readonly cell: number;
  /** Cells in a row. */
  readonly columns: number;
  /** Each identity's animation and how it was cut. */
  readonly identities: readonly {
    /** Proper name. */
    readonly name: string;
    /** npm package of the animation. */
    readonly package: string;
    /** Its version. */
    readonly version: string;
    /** SPDX identifier. */
    readonly license: string;
    /** Frames in the whole animation. */
    readonly frames: number;
    /** Frame numbers of each set. */
    readonly sets: Readonly<Record<FrameSet, readonly number[]>>;
    /** Smallest root mean square difference (0–255, mirror images too) between frames of two sets. */
    readonly distance: number;
  }[];
  /** Where the frames are. */
  readonly sprites: readonly AtlasSprite[];
}

/** An identity's place in prompts, to be filled by {@linkcode fillToken}. */
export const PLACEHOLDER = "<TOKEN>";

/** Training images of each identity. */
export const TRAIN_IMAGES = 12;
/** Reference images of each identity: two on every background. */
export const REFERENCE_IMAGES = 20;

/** One image of an identity, with its ground truth. */
export interface ConceptImage {
  /** `[64, 64, 3]` RGB bytes. */
  readonly image: Uint8Array;
  /** `[64, 64]` alpha of the identity, 0–1. */
  readonly mask: Float32Array;
  /** What is in it; the identity is the object that has its name. */
  readonly scene: Scene;
  /** A caption with {@linkcode PLACEHOLDER} in the identity's place. */
  readonly caption: string;
  /** The same caption with the class word. */
  readonly classCaption: string;
  /** The same caption with the proper name. */
  readonly nameCaption: string;
}

/**
 * Puts words in the placeholder's place and mends the article before it.
 *
 * @param text A caption or prompt with {@linkcode PLACEHOLDER}.
 * @param words A class word, a proper name, or a concept's tokens.
 *
 * @example
 * ```ts
 * fillToken("a photo of a <TOKEN> on grass", "animal"); // "a photo of an animal on grass"
 * ```
 */
export function fillToken(text: string, words: string): string {
  const article = /^[aeiou]/.test(words) ? "an" : "a";
  return text.replaceAll(`a ${PLACEHOLDER}`, `${article} ${words}`)
    .replaceAll(PLACEHOLDER, words);
}

/**
 * Finds an identity by its proper name.
 *
 * @param name The name.
 * @throws If there is none.
 */
export function identityOf(name: string): Identity {
  const found = IDENTITIES.find((identity) => identity.name === name);
  if (!found) {
    throw cannot(
      "find a concept",
      IDENTITIES.map((identity) => identity.name).join(", "),
      name,
    );
  }
  return found;
}

/** Sprites that were read, by folder: every lab needs them. */
const known = new Map<string, Promise<Art["sprites"]>>();

/**
 * Loads the still art, the identities' frames (`momo/train-0` …) and the other
 * designs of the identities' code points (`momo/cartoon` …). A folder is read
 * once.
 *
 * @param folder Where the atlases are; by default the committed ones.
 */
export async function loadConceptArt(folder: URL = ART_FOLDER): Promise<Art> {
  const reading = known.get(folder.href) ?? readConceptSprites(folder);
  known.set(folder.href, reading);
  try {
    return { sprites: await reading, scaled: new Map() };
  } catch (error) {
    known.delete(folder.href);
    throw error;
  }
}

async function readConceptSprites(folder: URL): Promise<Art["sprites"]> {
  const atlas = await readArtJson<AtlasIndex>("atlas.json", folder);
  const frames = await loadFrameIndex(folder);
  // One call: each atlas file is decoded once.
  const still = [...atlas.sprites, ...atlas.others];
  return new Map([
    ...await readSprites(still, atlas, folder),
    ...await readSprites(frames.sprites, frames, folder),
  ]);
}

/**
 * Reads how the identities' animations were cut, with distances and credits.
 *
 * @param folder Where the atlases are; by default the committed ones.
 */
export async function loadFrameIndex(
  folder: URL = ART_FOLDER,
): Promise<FrameIndex> {
  return await readArtJson<FrameIndex>("frames.json", folder);
}

/** Number of frames that the art has of a set. */
function framesOf(art: Art, name: string, set: FrameSet): number {
  let n = 0;
  while (art.sprites.has(spriteKey(name, `${set}-${n}`))) n++;
  if (n === 0) {
    throw cannot(
      `draw ${name}`,
      `art with ${set} frames, see loadConceptArt`,
      "none",
    );
  }
  return n;
}

/** Facts of one identity image; see {@linkcode conceptImage}. */
function conceptScene(
  identity: Identity,
  set: FrameSet,
  i: number,
  art: Art,
  ground?: string,
): Scene {
  const root = fold(key(WORLD.seed), "concept", identity.name, set);
  const draw = stream(fold(root, "image", i));
  // The evaluation CLIP must know an identity anywhere, at any size.
  const world = set === "clip" ? WIDE_WORLD : WORLD;
  const { backgrounds, colors, side, sizes } = world;
  const frames = framesOf(art, identity.name, set);
  const round = Math.floor(i / backgrounds.length);
  const order = permutation(
    fold(root, "backgrounds", round),
    backgrounds.length,
  );
  const background = ground ?? backgrounds[order[i % backgrounds.length]].word;
  const frameOrder = permutation(
    fold(root, "frames", Math.floor(i / frames)),
    frames,
  );
  const design = `${set}-${frameOrder[i % frames]}`;
  const texture = draw.integer(2 ** 31);
  const pair = set === "clip" && draw.uniform() < WORLD.pairs;
  const tint = colors[draw.integer(colors.length)].word;
  const tinted = set === "clip" && draw.uniform() < WORLD.tinted;
  const u = draw.uniform();
  const size = pair || u < 0.5 ? null : u < 0.75 ? "small" : "big";
  // Faces must stay recognisable: even small ones keep 28 pixels to learn from.
  const low = set === "clip" ? sizes[pair ? "pair" : size ?? ""][0] : 28;
  const high = pair ? sizes.pair[1] : sizes[size ?? ""][1];
  const scale = Math.max(
    low,
    high - draw.integer(high - sizes[size ?? ""][0] + 1),
  );
  const slot = draw.uniform() < 0.5 ? "left" as const : "right" as const;
  const self = placeObject(
    {
      noun: identity.name,
      class: identity.class,
      design,
      color: tinted ? tint : null,
      size,
      scale,
    },
    world,
    draw,
    pair ? slot : undefined,
  );
  if (!pair) return { side, background, texture, objects: [self] };
  // Every design of the base world exists of every noun.
  const noun = WORLD.nouns[draw.integer(WORLD.nouns.length)];
  const partner = placeObject(
    {
      noun: noun.word,
      class: noun.class,
      design: WORLD.designs[draw.integer(WORLD.designs.length)].word,
      color: null,
      size: null,
      scale: sizes.pair[0] + draw.integer(sizes.pair[1] - sizes.pair[0] + 1),
    },
    world,
    draw,
    slot === "left" ? "right" : "left",
  );
  const objects = slot === "left" ? [self, partner] : [partner, self];
  return { side, background, texture, objects };
}

/**
 * The `i`-th image of an identity.
 *
 * - `train`: {@linkcode TRAIN_IMAGES} of them; one object, own colours, sizes
 *   28–46, every background at least once.
 * - `reference`: {@linkcode REFERENCE_IMAGES} of them; the same, balanced over
 *   the backgrounds, from another block of the animation.
 * - `clip`: any number, for the evaluation CLIP only; also tinted and beside
 *   other nouns, from a third block.
 *
 * @param name Proper name of the identity.
 * @param set Which block of its animation.
 * @param i Index.
 * @param art From {@linkcode loadConceptArt}.
 * @param background Instead of the one whose turn it is.
 * @throws If the name is unknown, or `i` is beyond the set.
 */
export function conceptImage(
  name: string,
  set: FrameSet,
  i: number,
  art: Art,
  background?: string,
): ConceptImage {
  const identity = identityOf(name);
  const count = set === "train"
    ? TRAIN_IMAGES
    : set === "reference"
    ? REFERENCE_IMAGES
    : Infinity;
  if (!Number.isInteger(i) || i < 0 || i >= count) {
    throw cannot(`draw ${name}`, `an index below ${count} in ${set}`, i);
  }
  const scene = conceptScene(identity, set, i, art, background);
  return describe(scene, name, identity.class, i, art);
}

function describe(
  scene: Scene,
  name: string,
  cls: string,
  i: number,
  art: Art,
): ConceptImage {
  const caption = captionScene(
    scene,
    stream(fold(key(scene.texture), "caption", i)),
    {
      names: scene.objects.map((object) =>
        object.noun === name ? PLACEHOLDER : undefined
      ),
    },
  );
  const index = scene.objects.findIndex((object) => object.noun === name);
  return {
    image: renderScene(scene, art),
    mask: renderMask(scene, art, index),
    scene,
    caption,
    classCaption: fillToken(caption, cls),
    nameCaption: fillToken(caption, name),
  };
}

/**
 * Every image of an identity's training or reference set.
 *
 * @param name Proper name of the identity.
 * @param set `train` or `reference`.
 * @param art From {@linkcode loadConceptArt}.
 */
export function conceptImages(
  name: string,
  set: "train" | "reference",
  art: Art,
): ConceptImage[] {
  const count = set === "train" ? TRAIN_IMAGES : REFERENCE_IMAGES;
  return Array.from(
    { length: count },
    (_, i) => conceptImage(name, set, i, art),
  );
}

/**
 * Style words in which another hand drew an identity's code point: look-alikes
 * that a retrieval score must tell from the identity itself. Stills of the
 * animation's own hand are left out: they show the identity.
 *
 * @param name Proper name of the identity.
 * @param art From {@linkcode loadConceptArt}.
 */
export function otherDesigns(name: string, art: Art): string[] {
  return WIDE_WORLD.designs.map((design) => design.word)
    .filter((word) => art.sprites.has(spriteKey(name, word)));
}

/**
 * The `i`-th image of a look-alike: the identity's code point in another
 * design, on every background in turn.
 *
 * @param name Proper name of the identity.
 * @param design One of {@linkcode otherDesigns}.
 * @param i Index ≥ 0.
 * @param art From {@linkcode loadConceptArt}.
 * @throws If the name is unknown or there is no such design.
 */
export function otherDesignImage(
  name: string,
  design: string,
  i: number,
  art: Art,
): ConceptImage {
  const identity = identityOf(name);
  const root = fold(key(WORLD.seed), "other", name, design);
  const draw = stream(fold(root, i));
  const { backgrounds, side, sizes } = WORLD;
  const scene: Scene = {
    side,
    background: backgrounds[i % backgrounds.length].word,
    texture: draw.integer(2 ** 31),
    objects: [placeObject(
      {
        noun: name,
        class: identity.class,
        design,
        color: null,
        size: null,
        scale: sizes[""][0] + draw.integer(sizes[""][1] - sizes[""][0] + 1),
      },
      WORLD,
      draw,
    )],
  };
  return describe(scene, name, identity.class, i, art);
}
