/**
 * Classifies the identity in each region of a picture, and matches identities
 * with regions.
 *
 * @module
 */
import type { ClipVector } from "./clip.ts";
import { cosine } from "./clip_score.ts";
import type { GalleryEntry } from "./retrieval.ts";

/** The identity that was found in a region. */
export interface Found {
  /** The identity of the deciding window, or `background`. */
  readonly label: string;
  /** Identities found in any window, each once; the label is one of them. */
  readonly seen: readonly string[];
}

/**
 * Names the identity in a region. In each window the nearest identity is found,
 * if it is nearer than every background. The window with the largest margin
 * over the backgrounds decides.
 *
 * @param views Unit vectors of windows of the region.
 * @param identities Gallery of identities.
 * @param backgrounds Gallery of empty backgrounds.
 */
export function identify(
  views: readonly ClipVector[],
  identities: readonly GalleryEntry[],
  backgrounds: readonly GalleryEntry[],
): Found {
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
 * Finds the best order of concepts for a picture: the one with the most correct
 * concepts and, of equal ones, the least leakage.
 *
 * @param concepts Concepts in any order, all different.
 * @param regions The finding of each region, as many as concepts.
 * @returns A concept per region.
 */
export function bestOrder(
  concepts: readonly string[],
  regions: readonly Found[],
): readonly string[] {
  const worth = ({ label, seen }: Found, concept: string) =>
    // One correct concept outweighs leakage in all regions.
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
