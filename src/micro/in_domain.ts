/**
 * In-domain concepts: what the base model can already draw. Each is a look that
 * it knows the words for (a colour, a style, a noun), drawn by itself with
 * other noise, backgrounds and places every time. The pictures are not
 * committed: whoever has the model draws them.
 *
 * Each has a twin among the test identities, with the same class word and the
 * same prompts: the two domains differ in the concept alone, and the prompts
 * are already the ones that no training caption may be.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key, permutation, stream } from "../core/random.ts";
import { placePhrase, withArticle } from "./captions.ts";
import { fillToken, PLACEHOLDER } from "./concepts.ts";
import type { ConceptPrompts } from "./prompts.ts";
import { placeObject } from "./scenes.ts";
import { BACKGROUNDS, IDENTITIES, type Identity, WORLD } from "./world.ts";

/** A concept that the base model can draw from words. */
export interface InDomainConcept {
  /** Made-up proper name, no word of the world. */
  readonly name: string;
  /** The class word: what prompts say instead on an untouched model. */
  readonly class: string;
  /** What it looks like, in words that the base model knows. */
  readonly look: string;
  /** Look-alikes in words, for retrieval: the same things without the tint. */
  readonly others: readonly string[];
  /** The test identity whose class word and prompts it shares. */
  readonly twin: string;
}

const concept = (
  name: string,
  twin: string,
  color: string,
  style: string,
  noun: string,
): InDomainConcept => ({
  name,
  class: WORLD.nouns.find(({ word }) => word === noun)!.class,
  look: `${color} ${style} ${noun}`,
  others: WORLD.designs.map(({ word }) => `${word} ${noun}`),
  twin,
});

/**
 * The in-domain concepts. No prompt of a twin asks for the concept's colour or
 * has its noun as the partner.
 */
export const IN_DOMAIN: readonly InDomainConcept[] = [
  concept("niko", "kuro", "purple", "cartoon", "santa"),
  concept("finn", "momo", "blue", "cartoon", "fox"),
  concept("ulla", "pogo", "pink", "glossy", "owl"),
  concept("zara", "aero", "yellow", "glossy", "rocket"),
];

/** Pictures of each set that the base model draws. */
export const DRAWN_IMAGES = { train: 12, reference: 20, other: 10 } as const;

/** Training pictures, references, or pictures of a look-alike. */
export type DrawnSet = keyof typeof DRAWN_IMAGES;

/** A rectangle in a picture, in pixels. */
export interface Frame {
  /** Left edge. */
  readonly x: number;
  /** Top edge. */
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** What the base model is asked to draw, and what is known of the result. */
export interface Drawing {
  /** The prompt, in words that it knows. */
  readonly text: string;
  /** The same with {@linkcode PLACEHOLDER} in the concept's place. */
  readonly caption: string;
  /** What its noise is drawn for; the first entry is a seed. */
  readonly noise: readonly (string | number)[];
  /**
   * Where an object of that place and of ordinary size is, in pixels: the mean
   * over the scenes that the model was taught with. There is no finer mask.
   */
  readonly box: Frame;
}

/**
 * Finds an in-domain concept.
 *
 * @param name Its name.
 * @returns Undefined if it is none.
 */
export function inDomain(name: string): InDomainConcept | undefined {
  return IN_DOMAIN.find((one) => one.name === name);
}

/**
 * Name and class word of an identity or of an in-domain concept.
 *
 * @param name Its name.
 * @throws If there is none.
 */
export function conceptOf(name: string): Pick<Identity, "name" | "class"> {
  const all = [...IDENTITIES, ...IN_DOMAIN];
  const found = all.find((one) => one.name === name);
  if (!found) {
    throw cannot(
      "find a concept",
      all.map((one) => one.name).join(", "),
      name,
    );
  }
  return found;
}

/**
 * The prompts of a concept; an in-domain one has its twin's.
 *
 * @param name Its name.
 * @param all From `loadPrompts`.
 * @throws If there are none.
 */
export function promptsOf(
  name: string,
  all: readonly ConceptPrompts[],
): ConceptPrompts {
  const owner = inDomain(name)?.twin ?? name;
  const own = all.find((entry) => entry.concept === owner);
  if (!own) throw cannot("find prompts", `prompts of ${owner}`, "none");
  return own;
}

const OPENINGS = ["a photo of", "a picture of", "an image of"];

/**
 * What the base model is asked to draw of an in-domain concept. Every
 * background once before any comes twice; the place is always said, since only
 * then it is known where the object is.
 *
 * @param name Its name.
 * @param set Which set; no two sets have noise in common.
 * @param look Another look, for a look-alike.
 * @throws If there is no such concept.
 */
export function drawings(
  name: string,
  set: DrawnSet,
  look?: string,
): Drawing[] {
  const found = inDomain(name);
  if (!found) {
    throw cannot(
      "draw an in-domain concept",
      IN_DOMAIN.map((one) => one.name).join(", "),
      name,
    );
  }
  const words = look ?? found.look;
  const purpose = ["in-domain", name, set, words];
  const root = fold(key(WORLD.seed), ...purpose);
  const [low, high] = WORLD.sizes[""];
  return Array.from({ length: DRAWN_IMAGES[set] }, (_, i) => {
    const draw = stream(fold(root, "image", i));
    const round = Math.floor(i / BACKGROUNDS.length);
    const order = permutation(
      fold(root, "backgrounds", round),
      BACKGROUNDS.length,
    );
    const { phrases } = BACKGROUNDS[order[i % BACKGROUNDS.length]];
    const opening = OPENINGS[draw.integer(OPENINGS.length)];
    const { place } = placeObject(
      {
        noun: name,
        class: found.class,
        design: "",
        color: null,
        size: null,
        scale: low,
      },
      WORLD,
      draw,
    );
    const caption = [
      opening,
      withArticle(PLACEHOLDER),
      placePhrase(place),
      phrases[0],
    ].join(" ");
    return {
      text: fillToken(caption, words),
      caption,
      noise: [WORLD.seed, ...purpose, i],
      box: placeBox(place, (low + high) / 2),
    };
  });
}

/** The square in which an object of that size is on average. */
function placeBox(
  place: ReturnType<typeof placeObject>["place"],
  scale: number,
): Frame {
  const { side } = WORLD;
  const middle = (side - scale) / 2;
  // `placeObject` leaves 0 to 3 pixels at an edge.
  const near = 1.5, far = side - scale - near;
  return {
    x: Math.round(place === "left" ? near : place === "right" ? far : middle),
    y: Math.round(place === "top" ? near : place === "bottom" ? far : middle),
    width: Math.round(scale),
    height: Math.round(scale),
  };
}

/**
 * A box as a mask.
 *
 * @param box In pixels.
 * @param side Side of the square picture.
 * @returns `[side, side]`, 1 inside.
 */
export function boxMask(box: Frame, side: number): Float32Array {
  const mask = new Float32Array(side * side);
  for (let y = box.y; y < box.y + box.height; y++) {
    mask.fill(1, y * side + box.x, y * side + box.x + box.width);
  }
  return mask;
}
