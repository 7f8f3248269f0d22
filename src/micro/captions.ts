import { cannot } from "../core/errors.ts";
import { fold, key, type Stream, stream } from "../core/random.ts";
import type { Scene, SceneObject } from "./scenes.ts";
import { BACKGROUNDS, DESIGNS } from "./world.ts";

/** Openings; the empty one lets a caption start with its object. */
const OPENINGS = ["a photo of", "photo of", "a picture of", "an image of", ""];

/** Options of a caption. */
export interface CaptionOptions {
  /**
   * What to call each object instead of its noun; undefined keeps the noun.
   * A name takes the noun's place, adjectives stay in front of it.
   */
  readonly names?: readonly (string | undefined)[];
  /** Chance that a class word stands for the noun. @default 0.15 */
  readonly classShare?: number;
  /** Chance that the style word is said. @default 0.4 */
  readonly styleShare?: number;
  /** Captions never to give: evaluation prompts, which training must not see. */
  readonly exclude?: ReadonlySet<string>;
}

const pick = <T>(items: readonly T[], draw: Stream): T =>
  items[draw.integer(items.length)];

/** `a` or `an`, by the first letter. */
export function withArticle(phrase: string): string {
  return `${/^[aeiou]/.test(phrase) ? "an" : "a"} ${phrase}`;
}

interface NamePlan {
  readonly adjectives: number;
  readonly article: boolean;
}

/** An object in words: `a small red glossy fox`, or `an animal`. */
function nounPhrase(
  object: SceneObject,
  name: string | undefined,
  plan: NamePlan,
  options: CaptionOptions,
  draw: Stream,
): string {
  const adjectives: string[] = [];
  if (object.size !== null && draw.uniform() < 0.7) {
    adjectives.push(object.size);
  }
  // A tint is always said, so that a plain noun means its own colours.
  if (object.color !== null) adjectives.push(object.color);
  const isStyle = DESIGNS.some((design) => design.word === object.design);
  const saysStyle = draw.uniform() < (options.styleShare ?? 0.4);
  if (isStyle && saysStyle) adjectives.push(object.design);
  while (adjectives.length > plan.adjectives) {
    const spare = adjectives.findIndex((word) => word !== object.color);
    adjectives.splice(spare, 1);
  }
  const saysClass = draw.uniform() < (options.classShare ?? 0.15);
  const head = name ?? (saysClass ? object.class : object.noun);
  const phrase = [...adjectives, head].join(" ");
  if (!plan.article) return phrase;
  return withArticle(phrase);
}

/** `on the left`, `at the top`, `in the center`. */
export function placePhrase(place: SceneObject["place"]): string {
  const preposition = place === "center"
    ? "in"
    : place === "left" || place === "right"
    ? "on"
    : "at";
  return `${preposition} the ${place}`;
}

/** `on grass`, `at night`, now and then `with a sunset background`. */
function backgroundPhrase(word: string, draw: Stream, long: boolean): string {
  const background = BACKGROUNDS.find((entry) => entry.word === word);
  if (!background) {
    throw cannot(
      "name a background",
      BACKGROUNDS.map((entry) => entry.word).join(", "),
      word,
    );
  }
  const u = draw.uniform();
  if (long || u < 0.55) return background.phrases[0];
  if (u < 0.85) return pick(background.phrases, draw);
  return `with ${withArticle(word)} background`;
}

/**
 * Describes a scene truthfully in the world's grammar: lower case, at most 16
 * words, optional slots left out at random.
 *
 * @param scene The scene.
 * @param draw Randomness: a scene has many captions.
 * @param options Names and shares.
 *
 * @example
 * ```ts
 * captionScene(trainScene(0), stream(key(1))); // "a photo of a red fox on grass"
 * ```
 */
export function captionScene(
  scene: Scene,
  draw: Stream,
  options: CaptionOptions = {},
): string {
  for (let attempt = 0; attempt < 1000; attempt++) {
    const caption = drawCaption(scene, draw, options);
    if (!options.exclude?.has(caption)) return caption;
  }
  throw cannot(
    "caption a scene",
    "a caption that is not excluded",
    "none in 1,000 draws",
  );
}

function drawCaption(
  scene: Scene,
  draw: Stream,
  options: CaptionOptions,
): string {
  const opening = pick(OPENINGS, draw);
  const saysWhere = draw.uniform() < 0.85;
  const form = draw.uniform();
  const wordy = scene.objects.length === 2 && form >= 0.45;
  // The long forms for two objects take only a background's short phrase.
  const where = saysWhere
    ? backgroundPhrase(scene.background, draw, wordy)
    : "";
  const name = (i: number): string | undefined => options.names?.[i];
  const say = (i: number, plan: NamePlan): string =>
    nounPhrase(scene.objects[i], name(i), plan, options, draw);
  const join = (...parts: string[]): string =>
    parts.filter((part) => part !== "").join(" ");
  if (scene.objects.length === 1) {
    const article = opening !== "photo of" || draw.uniform() < 0.3;
    const subject = say(0, { adjectives: 3, article });
    const place = draw.uniform() < 0.45
      ? placePhrase(scene.objects[0].place)
      : "";
    return join(opening, subject, place, where);
  }
  if (!wordy) {
    const plan = { adjectives: 1, article: true };
    const link = draw.uniform() < 0.7 ? "and" : "next to";
    return join(opening, say(0, plan), link, say(1, plan), where);
  }
  const plan = { adjectives: 1, article: true };
  const left = say(0, plan), right = say(1, plan);
  if (form < 0.75) {
    const a = join(left, "on the left"), b = join(right, "on the right");
    return draw.uniform() < 0.5
      ? join(a, "and", b, where)
      : join(b, "and", a, where);
  }
  return draw.uniform() < 0.5
    ? join(left, "to the left of", right, where)
    : join(right, "to the right of", left, where);
}

/**
 * The `j`-th caption of the `i`-th scene, the same every time.
 *
 * @param scene The scene.
 * @param i Index of the scene.
 * @param j Index of the caption.
 * @param options Names and shares.
 */
export function captionOf(
  scene: Scene,
  i: number,
  j = 0,
  options: CaptionOptions = {},
): string {
  return captionScene(
    scene,
    stream(fold(key(scene.texture), "caption", i, j)),
    options,
  );
}
