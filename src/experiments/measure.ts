/**
 * From embeddings of pictures to the four scores.
 *
 * @module
 */
import { attentionSites } from "../customize/lora.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import {
  cosine,
  imageAlignment,
  textAlignment,
} from "../evaluation/clip_score.ts";
import type { Box } from "../evaluation/preprocess.ts";
import { type GalleryEntry, retrieve } from "../evaluation/retrieval.ts";
import type { Prompt } from "../micro/prompts.ts";
import type { Model } from "../models/model.ts";
import type { ScoreName } from "./ablation_schema.ts";

/** Embedded references of a concept. */
export interface Evidence {
  /** Whole references. */
  readonly whole: readonly ClipVector[];
  /** References cut to their masks. */
  readonly masked: readonly ClipVector[];
}

/** A picture's embeddings. */
export interface Seen {
  /** Of the whole picture. */
  readonly whole: ClipVector;
  /** Of windows in it. */
  readonly views: readonly ClipVector[];
}

/** Scores of one picture. */
export type PictureScores = Readonly<Record<ScoreName, number>>;

/**
 * The part of the picture in which a prompt wants its concept: a little more
 * than half where there is a partner, else everything.
 *
 * @param prompt The prompt.
 * @returns Shares of the picture, or null for all of it.
 */
export function promptRegion(prompt: Pick<Prompt, "facts">): Box | null {
  const { side } = prompt.facts;
  if (side === undefined) return null;
  return { x: side === "left" ? 0 : 0.4, y: 0, width: 0.6, height: 1 };
}

/**
 * Masked image alignment: the mean of max(cos, 0) to references cut to their
 * masks, of the window where it is largest.
 *
 * @param views Windows of the picture.
 * @param masked Cut references.
 */
export function maskedAlignment(
  views: readonly ClipVector[],
  masked: readonly ClipVector[],
): number {
  return Math.max(...views.map((view) => imageAlignment(view, masked)));
}

/**
 * The four scores of a picture.
 *
 * @param seen Its embeddings.
 * @param caption ClipVector of its prefixed caption with the class word.
 * @param evidence References of its concept.
 * @param entries Gallery of all identities and look-alikes.
 * @param concept Its concept's label in the gallery.
 */
export function scorePicture(
  seen: Seen,
  caption: ClipVector,
  evidence: Evidence,
  entries: readonly GalleryEntry[],
  concept: string,
): PictureScores {
  return {
    text: textAlignment(seen.whole, caption),
    image: imageAlignment(seen.whole, evidence.whole),
    masked: maskedAlignment(seen.views, evidence.masked),
    retrieval: retrieve(seen.views, entries, concept).rank === 1 ? 1 : 0,
  };
}

/**
 * What the references themselves score: alignment each with the others,
 * retrieval in a gallery whose entry for the concept they are part of.
 *
 * @param evidence References of a concept.
 * @param entries Gallery of cut references.
 * @param concept The concept's label in the gallery.
 * @returns Without text, which references have no prompt for.
 */
export function scoreReferences(
  evidence: Evidence,
  entries: readonly GalleryEntry[],
  concept: string,
): Readonly<Record<Exclude<ScoreName, "text">, number>>[] {
  return evidence.whole.map((whole, i) => {
    const others = (rows: readonly ClipVector[]) =>
      rows.filter((_, j) => j !== i);
    return {
      image: imageAlignment(whole, others(evidence.whole)),
      masked: imageAlignment(evidence.masked[i], others(evidence.masked)),
      retrieval: retrieve([evidence.masked[i]], entries, concept).rank === 1
        ? 1
        : 0,
    };
  });
}

/** n·r/d of all adapted layers: the smallest and the largest. */
export interface Capacity {
  /** Of the UNet. */
  readonly unet: [number, number];
  /** Of the text encoder. */
  readonly textEncoder: [number, number];
}

/**
 * What n·r/d is in Stable Diffusion 1.5 with the paper's 14 concepts of rank 4,
 * at most: 14·4/320.
 */
export const SD_CAPACITY = 0.175;

/**
 * The capacity ratio: ΔW of n concepts of rank r span at most n·r of a layer's
 * d inputs; above 1 they cannot all be kept apart.
 *
 * @param model The model.
 * @param n Number of fused concepts.
 * @param rank Rank of their adapters.
 */
export function capacityOf(
  model: Pick<Model, "unet" | "textEncoder">,
  n: number,
  rank: number,
): Capacity {
  const of = (tree: unknown): [number, number] => {
    const all = attentionSites(tree).map(({ inputs }) => n * rank / inputs);
    const five = (value: number) => Math.round(value * 1e5) / 1e5;
    return [five(Math.min(...all)), five(Math.max(...all))];
  };
  return {
    unet: of(model.unet.params),
    textEncoder: of(model.textEncoder.params),
  };
}

/**
 * How far pictures moved from those of the base model with the same noise.
 *
 * @param pictures Whole pictures of a model.
 * @param base Those of the base model, same order.
 * @returns Mean of 1 − cosine.
 */
export function drift(
  pictures: readonly ClipVector[],
  base: readonly ClipVector[],
): number {
  return pictures.reduce((sum, row, i) => sum + 1 - cosine(row, base[i]), 0) /
    pictures.length;
}
