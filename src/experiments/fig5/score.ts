/**
 * Which identity is in each region of a picture, to the evaluation CLIP, and the
 * scores that follow.
 *
 * @module
 */
import { imageAlignment, textAlignment } from "../../evaluation/clip_score.ts";
import { rounded } from "../../evaluation/compare.ts";
import { bestOrder, type Found, identify } from "../../evaluation/regions.ts";
import {
  centroid,
  gallery,
  type GalleryEntry,
} from "../../evaluation/retrieval.ts";
import { mean } from "../../evaluation/statistics.ts";
import type { Lab } from "../../lab/lab.ts";
import {
  captionOf,
  columns,
  emptyBackground,
  type GroupScene,
  HEIGHT,
} from "../../micro/group_scene.ts";
import { BACKGROUNDS, IDENTITIES } from "../../micro/world.ts";

/** Sides of the windows in which a concept is looked for. */
const WINDOW_SIDES = [0.8, 1] as const;

/** Side, at most, of which these are shares; pixels at scale 1. */
const WINDOW_MOST = 48;

/** Step between windows. */
export const WINDOW_STEP = 0.25;

/**
 * Sides of windows as shares of a column's shorter side.
 *
 * @param column Width of a column, pixels at scale 1.
 */
export function windowShares(column: number): number[] {
  const most = Math.min(column, WINDOW_MOST) / Math.min(column, HEIGHT);
  return WINDOW_SIDES.map((side) => side * most);
}

/** What was found in one region. */
export interface RegionFinding extends Found {
  /** The concept that should be there. */
  readonly concept: string;
  /** Masked alignment with it. */
  readonly own: number;
  /** The largest with another concept of the picture. */
  readonly other: number;
}

/** Scores of one picture. */
export interface RegionRow {
  /** How it was drawn. */
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

/** Name of a score, in the order of the table. */
export type RegionScore =
  | "identity"
  | "nearest"
  | "replaced"
  | "leakage"
  | "missing"
  | "occupied"
  | "complete"
  | "anyOrder"
  | "anyOrderLeakage"
  | "own"
  | "text";

/** A score: how it is computed and shown. */
export interface RegionScoreKind {
  /** What tables call it; the arrow says which way is better. */
  readonly title: string;
  /** The score of a picture. */
  readonly of: (row: RegionRow) => number;
  /** Whether it judges by place: unfair to an arm that was not told the places. */
  readonly byPlace?: boolean;
  /** Whether arms are compared by it. */
  readonly compared?: boolean;
}

/** What holds of a region, or not. */
type RegionTest = (
  finding: RegionFinding,
  row: RegionRow,
  at: number,
) => boolean;

/** A score that is a share of regions. */
function shareOf(
  title: string,
  test: RegionTest,
  use: Pick<RegionScoreKind, "byPlace" | "compared"> = {},
): RegionScoreKind {
  const of = (row: RegionRow) =>
    row.regions.filter((found, at) => test(found, row, at)).length /
    row.regions.length;
  return { title, of, ...use };
}

const COMPARED = { compared: true };
const PLACED = { byPlace: true, compared: true };
const isRight = ({ concept, label }: RegionFinding) => label === concept;
const isEmpty = ({ label }: RegionFinding) => label === "background";
const among = (
  { concepts }: RegionRow,
  names: readonly string[],
  but: string,
) => names.some((name) => name !== but && concepts.includes(name));

/** Scores of a picture, in the order of the table. */
export const REGION_SCORES: Readonly<Record<RegionScore, RegionScoreKind>> = {
  /** Regions with the right concept, of all identities. */
  identity: shareOf("identity per region ↑", isRight, PLACED),
  /** Regions nearer to their own concept than to the picture's others. */
  nearest: shareOf(
    "own nearest of the picture's ↑",
    ({ own, other }) => own > other,
    PLACED,
  ),
  /** Regions in which another concept of the picture stands out most. */
  replaced: shareOf(
    "replaced by another ↓",
    ({ concept, label }, row) => among(row, [label], concept),
    PLACED,
  ),
  /** Regions in which another concept of the picture is in some window. */
  leakage: shareOf(
    "another seen there ↓",
    ({ concept, seen }, row) => among(row, seen, concept),
    PLACED,
  ),
  /** Regions without an identity. */
  missing: shareOf("no identity there ↓", isEmpty),
  /** Whether every region has an identity, whichever. */
  occupied: {
    title: "an identity in every region ↑",
    of: ({ regions }) => regions.some(isEmpty) ? 0 : 1,
  },
  /** Whether every concept is in its place. */
  complete: {
    title: "all in place ↑",
    of: ({ regions }) => regions.every(isRight) ? 1 : 0,
    byPlace: true,
  },
  /** `identity` in the order that suits the picture best. */
  anyOrder: shareOf(
    "identity, any order ↑",
    ({ label }, { order }, at) => label === order[at],
    COMPARED,
  ),
  /** `leakage` in that order. */
  anyOrderLeakage: shareOf(
    "another seen, any order ↓",
    ({ seen }, row, at) => among(row, seen, row.order[at]),
    COMPARED,
  ),
  /** Masked alignment with the right concept. */
  own: {
    title: "masked alignment ↑",
    of: ({ regions }) => mean(regions.map(({ own }) => own)),
    ...PLACED,
  },
  /** Text alignment. */
  text: { title: "text ↑", of: ({ text }) => text },
};

/** The scores by name, in the order of the table. */
export const SCORE_KINDS: readonly [RegionScore, RegionScoreKind][] = Object
  .entries(REGION_SCORES) as [RegionScore, RegionScoreKind][];

/** Pictures of one arm and one scene. */
export interface ScenePictures {
  /** The arm. */
  readonly arm: string;
  /** The scene. */
  readonly scene: GroupScene;
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
export async function scoreScenes(
  lab: Lab,
  all: readonly ScenePictures[],
  textPrefix: string,
): Promise<{ rows: RegionRow[]; labels: string[] }> {
  // Look-alikes stay out: which of the concepts that were asked for is it?
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
        const others = names.filter((name) => name !== concept);
        return {
          concept,
          ...identify(views[r], identities, backgrounds),
          own: rounded(alignment(concept)),
          other: rounded(Math.max(...others.map(alignment))),
        };
      });
      return {
        ...{ arm, n: names.length, concepts: names },
        ...{ background: scene.background, picture: i, scale: scene.scale },
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

/** Crops that stand for each background in the gallery. */
const BACKGROUND_VIEWS = 12;

/** Embeddings of empty backgrounds, as they look between concepts. */
async function backgroundEntries(lab: Lab): Promise<GalleryEntry[]> {
  const views = [...new Array(BACKGROUND_VIEWS).keys()];
  const crops = await Promise.all(
    BACKGROUNDS.map(({ word }) =>
      Promise.all(views.map((i) =>
        lab.put(
          ["background", word, i],
          () => emptyBackground(word, i, lab.art),
        )
      ))
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
