/**
 * Who is in each region of a picture, to the evaluation CLIP, and the scores that
 * follow.
 *
 * @module
 */
import { fold, key } from "../../core/random.ts";
import type { ClipVector } from "../../evaluation/clip.ts";
import {
  cosine,
  imageAlignment,
  textAlignment,
} from "../../evaluation/clip_score.ts";
import { crop } from "../../evaluation/preprocess.ts";
import {
  centroid,
  gallery,
  type GalleryEntry,
} from "../../evaluation/retrieval.ts";
import type { Lab } from "../../lab/lab.ts";
import { renderScene } from "../../micro/scenes.ts";
import { BACKGROUNDS, IDENTITIES } from "../../micro/world.ts";
import { rounded } from "../scorer.ts";
import { captionOf, columns, HEIGHT, type Scene } from "./scenes.ts";

/** Sides of the windows in which a concept is looked for. */
const WINDOW_SIDES = [0.8, 1] as const;

/** Side, at most, of which these are shares; pixels at scale 1. */
const WINDOW_MOST = 48;

/**
 * Sides of windows as shares of a column's shorter side.
 *
 * @param column Width of a column, pixels at scale 1.
 */
export function windowShares(column: number): number[] {
  const most = Math.min(column, WINDOW_MOST) / Math.min(column, HEIGHT);
  return WINDOW_SIDES.map((side) => side * most);
}

/** Step between windows. */
export const WINDOW_STEP = 0.25;

/** What was found in one region. */
export interface RegionFinding {
  /** Who should be there. */
  readonly concept: string;
  /** Who is: an identity's name, or `background`. */
  readonly label: string;
  /** Identities seen in some window, each name once: the label is one of them. */
  readonly seen: readonly string[];
  /** Masked alignment with who should be there. */
  readonly own: number;
  /** The largest with another concept of the picture. */
  readonly other: number;
}

/** Scores of one picture. */
export interface RegionRow {
  /** How it was drawn, one of {@linkcode REGION_ARMS}. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Concepts from left to right. */
  readonly concepts: readonly string[];
  /** Where the concepts are. */
  readonly background: string;
  /** Which picture of its layout. */
  readonly picture: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Name of the picture in the store. */
  readonly image: string;
  /** Text alignment of the whole, class words in the caption. */
  readonly text: number;
  /** What was found, from left to right. */
  readonly regions: readonly RegionFinding[];
  /** Concepts from left to right in the order that suits the picture best. */
  readonly order: readonly string[];
}

/** What a row of the table says of its pictures. */
export const REGION_SCORES = [
  "identity",
  "nearest",
  "replaced",
  "leakage",
  "missing",
  "occupied",
  "complete",
  "anyOrder",
  "anyOrderLeakage",
  "own",
  "text",
] as const;

/**
 * `identity`: share of regions with the right concept, of all identities;
 * `nearest`: share of regions that are nearer to their own concept than to the
 * others of the picture (chance: 1 / n); `replaced`: where
 * another concept of the picture stands out most; `leakage`: where another
 * concept of the picture is seen in some window, whoever stands out most;
 * `missing`: with nobody; `occupied`: share of pictures with somebody, whoever
 * it is, in every region; `complete`: with everybody in place; `anyOrder` and
 * `anyOrderLeakage`: identity and leakage in the order that suits the picture
 * best; `own`: masked alignment with the right concept; `text`: text alignment.
 */
export type RegionScore = typeof REGION_SCORES[number];

/** Scores that are compared between arms. */
export const COMPARED_SCORES = [
  "identity",
  "nearest",
  "replaced",
  "leakage",
  "anyOrder",
  "anyOrderLeakage",
  "own",
] as const satisfies readonly RegionScore[];

/** A score that is compared. */
export type ComparedScore = typeof COMPARED_SCORES[number];

/** Crops that stand for each background in the gallery. */
const BACKGROUND_VIEWS = 12;

/** Side of a background's crop, pixels. */
const BACKGROUND_SIDE = 32;

/**
 * Who is in a region: in each window the nearest identity, if it is nearer than
 * every background; of all windows the one in which an identity stands out most.
 *
 * @param views Windows of the region.
 * @param identities Gallery of identities.
 * @param backgrounds Gallery of empty backgrounds.
 * @returns `label`: who stands out most, or `background` if nobody does in any
 * window; `seen`: who does in some window, each once.
 */
export function whoIsThere(
  views: readonly ClipVector[],
  identities: readonly GalleryEntry[],
  backgrounds: readonly GalleryEntry[],
): Pick<RegionFinding, "label" | "seen"> {
  const most = (view: ClipVector, entries: readonly GalleryEntry[]) =>
    entries.map(({ label, center }) => ({ label, near: cosine(view, center) }))
      .reduce((a, b) => b.near > a.near ? b : a);
  const found = views.map((view) => {
    const { label, near } = most(view, identities);
    return { label, margin: near - most(view, backgrounds).near };
  }).filter(({ margin }) => margin > 0).sort((a, b) => b.margin - a.margin);
  return {
    label: found[0]?.label ?? "background",
    seen: [...new Set(found.map(({ label }) => label))],
  };
}

/**
 * The order of concepts that suits a picture best: the most right concepts, and
 * of such orders one with the least leakage.
 *
 * @param concepts Concepts in any order, all different.
 * @param regions What is in each region.
 * @returns A concept a region.
 */
export function bestOrder(
  concepts: readonly string[],
  regions: readonly Pick<RegionFinding, "label" | "seen">[],
): readonly string[] {
  const worth = ({ label, seen }: typeof regions[number], concept: string) =>
    // One right concept outweighs leakage everywhere.
    (label === concept ? regions.length + 1 : 0) -
    (seen.some((name) => name !== concept && concepts.includes(name)) ? 1 : 0);
  // Best orders of the last regions, by the concepts that are left for them.
  const known = new Map<string, { total: number; order: string[] }>();
  const best = (
    left: readonly string[],
  ): { total: number; order: string[] } => {
    if (left.length === 0) return { total: 0, order: [] };
    const name = left.join();
    const found = known.get(name) ??
      left.map((concept) => {
        const rest = best(left.filter((other) => other !== concept));
        const region = regions[regions.length - left.length];
        return {
          total: rest.total + worth(region, concept),
          order: [concept, ...rest.order],
        };
      }).reduce((a, b) => b.total > a.total ? b : a);
    known.set(name, found);
    return found;
  };
  return best(concepts).order;
}

/**
 * A score of one picture.
 *
 * @param row The picture.
 * @param score Which.
 */
export function scoreOf(row: RegionRow, score: RegionScore): number {
  const { regions, concepts, order } = row;
  const share = (test: (finding: RegionFinding, at: number) => boolean) =>
    regions.filter(test).length / regions.length;
  const among = (names: readonly string[], but: string) =>
    names.some((name) => name !== but && concepts.includes(name));
  switch (score) {
    case "identity":
      return share(({ concept, label }) => label === concept);
    case "nearest":
      return share(({ own, other }) => own > other);
    case "replaced":
      return share(({ concept, label }) => among([label], concept));
    case "leakage":
      return share(({ concept, seen }) => among(seen, concept));
    case "missing":
      return share(({ label }) => label === "background");
    case "occupied":
      return regions.every(({ label }) => label !== "background") ? 1 : 0;
    case "complete":
      return regions.every(({ concept, label }) => label === concept) ? 1 : 0;
    case "anyOrder":
      return share(({ label }, at) => label === order[at]);
    case "anyOrderLeakage":
      return share(({ seen }, at) => among(seen, order[at]));
    case "own":
      return regions.reduce((sum, { own }) => sum + own, 0) / regions.length;
    case "text":
      return row.text;
  }
}

/** Pictures of one arm and one scene. */
export interface ScenePictures {
  readonly arm: string;
  readonly scene: Scene;
  /** Names of the pictures in the store. */
  readonly images: readonly string[];
}

/**
 * Scores pictures of scenes.
 *
 * @param lab The lab.
 * @param all The pictures.
 * @param textPrefix What stands before a caption.
 * @returns A row per picture, and the labels of the gallery.
 */
export async function judge(
  lab: Lab,
  all: readonly ScenePictures[],
  textPrefix: string,
): Promise<{ rows: RegionRow[]; labels: string[] }> {
  // Look-alikes stay out: who of those that were asked for is it?
  const references = await lab.references(IDENTITIES.map(({ name }) => (
    { of: "art", concept: name, set: "reference" }
  )));
  const masked = new Map(
    IDENTITIES.map(({ name }, i) => [name, references[i].masked]),
  );
  const identities = gallery(masked);
  const backgrounds = await backgroundEntries(lab);
  const embedded = await lab.embed(all.map(({ scene, images }) => ({
    images,
    regions: images.map(() => columns(scene.concepts.length)),
    windows: { sides: windowShares(scene.column), step: WINDOW_STEP },
  })));
  const texts = await lab.texts(
    all.map(({ scene }) => [captionOf(scene, textPrefix)]),
  );
  const rows = all.flatMap(({ arm, scene, images }, j) => {
    const names = scene.concepts.map(({ name }) => name);
    return images.map((image, i): RegionRow => {
      const { whole, regions: views } = embedded[j][i];
      const regions = names.map((concept, r): RegionFinding => {
        const alignment = (name: string) =>
          Math.max(
            ...views[r].map((view) => imageAlignment(view, masked.get(name)!)),
          );
        return {
          concept,
          ...whoIsThere(views[r], identities, backgrounds),
          own: rounded(alignment(concept)),
          other: rounded(Math.max(
            ...names.filter((name) => name !== concept).map(alignment),
          )),
        };
      });
      return {
        arm,
        n: names.length,
        concepts: names,
        background: scene.background,
        picture: i,
        scale: scene.scale,
        image,
        text: rounded(textAlignment(whole, texts[j][0])),
        regions,
        order: bestOrder(names, regions),
      };
    });
  });
  const labels = [...identities, ...backgrounds].map(({ label }) => label);
  return { rows, labels };
}

/** Embeddings of empty backgrounds, as they look between concepts. */
async function backgroundEntries(lab: Lab): Promise<GalleryEntry[]> {
  const crops = await Promise.all(
    BACKGROUNDS.map(({ word }) =>
      Promise.all(
        Array.from({ length: BACKGROUND_VIEWS }, (_, i) =>
          lab.put(["background", word, i], () => {
            const image = renderScene({
              side: HEIGHT,
              background: word,
              texture: fold(key(i), "empty", word)[0] >>> 1,
              objects: [],
            }, lab.art);
            return crop(
              { width: HEIGHT, height: HEIGHT, channels: 3, data: image },
              {
                x: i % 2 * BACKGROUND_SIDE,
                y: Math.floor(i / 2) % 3 * BACKGROUND_SIDE / 2,
                width: BACKGROUND_SIDE,
                height: BACKGROUND_SIDE,
              },
            );
          })),
      )
    ),
  );
  const embedded = await lab.embed(
    crops.map((images) => ({ images, regions: images.map(() => []) })),
  );
  return BACKGROUNDS.map(({ word }, i) => ({
    label: `background (${word})`,
    center: centroid(embedded[i].map(({ whole }) => whole)),
  }));
}
