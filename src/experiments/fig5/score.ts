/**
 * Scores pictures of scenes: which identity does the evaluation CLIP find in
 * each region?
 *
 * @module
 */
import { imageAlignment, textAlignment } from "../../evaluation/clip_score.ts";
import { rounded } from "../../evaluation/compare.ts";
import { bestOrder, identify } from "../../evaluation/regions.ts";
import { gallery, type GalleryEntry } from "../../evaluation/retrieval.ts";
import type { Lab } from "../../lab/lab.ts";
import {
  captionOf,
  columns,
  emptyBackground,
  type GroupScene,
  HEIGHT,
} from "../../micro/group_scene.ts";
import { BACKGROUNDS, IDENTITIES } from "../../micro/world.ts";
import type { RegionFinding, RegionRow } from "./table.ts";

/**
 * Windows that are classified, at most 48 pixels wide at scale 1.
 *
 * @param column Width of a column, pixels at scale 1.
 * @returns Sides and step, as shares of the column's shorter side.
 */
export function windowsOf(column: number): { sides: number[]; step: number } {
  const most = Math.min(column, 48) / Math.min(column, HEIGHT);
  return { sides: [0.8 * most, most], step: 0.25 };
}

/**
 * Scores pictures of scenes.
 *
 * @param lab The lab.
 * @param drawn Scenes in arms, and names of their pictures in the store.
 * @param textPrefix Prefix of captions.
 * @returns A row per picture.
 */
export async function scoreScenes(
  lab: Lab,
  drawn: readonly { arm: string; scene: GroupScene; images: string[] }[],
  textPrefix: string,
): Promise<RegionRow[]> {
  // Look-alikes are left out: a region is classified among the identities only.
  const labels = IDENTITIES.map(({ name }) => name);
  const references = await lab.references(
    labels.map((concept) => ({ of: "art", concept, set: "reference" })),
  );
  const masked = new Map(labels.map((name, i) => [name, references[i].masked]));
  const identities = gallery(masked);
  const backgrounds = await backgroundGallery(lab);
  const embedded = await lab.embed(drawn.map(({ scene, images }) => ({
    images,
    regions: images.map(() => columns(scene.concepts.length)),
    windows: windowsOf(scene.column),
  })));
  const captions = await lab.texts(
    drawn.map(({ scene }) => [captionOf(scene, textPrefix)]),
  );
  return drawn.flatMap(({ arm, scene, images }, at) => {
    const { background, scale } = scene;
    const concepts = scene.concepts.map(({ name }) => name);
    return embedded[at].map(({ whole, regions: views }, picture): RegionRow => {
      const regions = concepts.map((concept, r): RegionFinding => {
        const near = concepts.map((name) =>
          Math.max(
            ...views[r].map((view) => imageAlignment(view, masked.get(name)!)),
          )
        );
        return {
          concept,
          ...identify(views[r], identities, backgrounds),
          own: rounded(near[r]),
          other: rounded(Math.max(...near.filter((_, i) => i !== r))),
        };
      });
      return {
        ...{ arm, n: concepts.length, concepts, background, picture, scale },
        image: images[picture],
        text: rounded(textAlignment(whole, captions[at][0])),
        regions,
        order: bestOrder(concepts, regions),
      };
    });
  });
}

/** Empty backgrounds: twelve crops of each. */
async function backgroundGallery(lab: Lab): Promise<GalleryEntry[]> {
  const words = BACKGROUNDS.map(({ word }) => word);
  const views = [...new Array(12).keys()];
  const crop = (word: string, i: number) =>
    lab.put(["background", word, i], () => emptyBackground(word, i, lab.art));
  const crops = await Promise.all(
    words.map((word) => Promise.all(views.map((i) => crop(word, i)))),
  );
  const embedded = await lab.embed(
    crops.map((images) => ({ images, regions: images.map(() => []) })),
  );
  return gallery(words.map((word, i) => [
    `background (${word})`,
    embedded[i].map(({ whole }) => whole),
  ]));
}
