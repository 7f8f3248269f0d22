/**
 * From pictures to the four scores.
 *
 * @module
 */
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment, textAlignment } from "../evaluation/clip_score.ts";
import type { PixelBox } from "../evaluation/preprocess.ts";
import {
  gallery,
  type GalleryEntry,
  retrieve,
} from "../evaluation/retrieval.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Embedded, Lab, References } from "../lab/lab.ts";
import type { ModelRef, PictureSet, SamplingSettings } from "../lab/specs.ts";
import { otherDesigns } from "../micro/concepts.ts";
import { type Prompt, promptText } from "../micro/prompts.ts";
import { IDENTITIES } from "../micro/world.ts";
import { type ScoreName, type ScoreRow, SCORES } from "./ablation_schema.ts";
import { promptSamples, type Subject } from "./subjects.ts";

/** Five decimals: more than a score of some pictures can say. */
export function rounded(value: number): number {
  return Math.round(value * 1e5) / 1e5;
}

/**
 * One value per score.
 *
 * @param of Gives the value of a score.
 */
export function perScore<T>(of: (score: ScoreName) => T): Record<ScoreName, T> {
  return Object.fromEntries(
    SCORES.map((score) => [score, of(score)]),
  ) as Record<ScoreName, T>;
}

/**
 * The part of the picture in which a prompt wants its concept: a little more
 * than half where there is a partner, else everything.
 *
 * @param prompt The prompt.
 * @returns Shares of the picture.
 */
export function promptRegion({ facts }: Pick<Prompt, "facts">): PixelBox {
  if (facts.side === undefined) return { x: 0, y: 0, width: 1, height: 1 };
  return { x: facts.side === "left" ? 0 : 0.4, y: 0, width: 0.6, height: 1 };
}

/** A concept to draw from its prompts. */
export interface Cell {
  /** Name of the arm. */
  readonly arm: string;
  /** Training seed. */
  readonly seed: number;
  /** The concept. */
  readonly subject: Subject;
  /** The model that draws. */
  readonly model: ModelRef;
  /** What stands for the concept in prompts. */
  readonly words: string;
}

/** Pictures of a cell: one per prompt. */
export interface Drawn extends Cell {
  /** Names of the pictures in the store. */
  readonly images: readonly string[];
}

/**
 * Draws cells; all of one concept and seed start from the same noise.
 *
 * @param lab The lab.
 * @param sampling How pictures are drawn.
 * @param cells What is drawn.
 */
export async function drawCells<C extends Cell>(
  lab: Lab,
  sampling: SamplingSettings,
  cells: readonly C[],
): Promise<(C & Drawn)[]> {
  const images = await lab.draw(cells.map((
    { model, subject, seed, words },
  ) => ({
    model,
    samples: promptSamples(subject, seed, words),
    sampling,
  })));
  return cells.map((cell, i) => ({ ...cell, images: images[i] }));
}

/** Scores pictures of some concepts. */
export interface Scorer {
  /** References of everybody in the gallery, cut to their masks. */
  readonly entries: readonly GalleryEntry[];
  /** Embedded captions of a concept's prompts, with the class word. */
  captions(subject: Subject): readonly ClipVector[];
  /** Scores, a row per entry. */
  score(drawn: readonly Drawn[]): Promise<ScoreRow[]>;
  /**
   * What a concept's references score: alignment each with the others, and
   * retrieval. References have no prompt, so there is no text alignment.
   */
  ceiling(
    subject: Subject,
  ): Readonly<Record<Exclude<ScoreName, "text">, number>>[];
}

/**
 * Embeds references and captions.
 *
 * @param lab The lab.
 * @param all The concepts.
 * @param textPrefix What stands before a caption.
 */
export async function openScorer(
  lab: Lab,
  all: readonly Subject[],
  textPrefix: string,
): Promise<Scorer> {
  // In-domain concepts and their look-alikes, then all identities and theirs.
  const sets: [string, PictureSet][] = [
    ...all.filter(({ references }) => references.of === "drawn")
      .flatMap(({ name, references, others }): [string, PictureSet][] => [
        [name, references],
        ...Object.entries(others).map((
          [look, set],
        ): [string, PictureSet] => [`${name} (${look})`, set]),
      ]),
    ...IDENTITIES.flatMap(({ name }): [string, PictureSet][] => [
      [name, { of: "art", concept: name, set: "reference" }],
      ...otherDesigns(name, lab.art).map((design): [string, PictureSet] => [
        `${name} (${design})`,
        { of: "look-alike", concept: name, design },
      ]),
    ]),
  ];
  const found = await lab.references(sets.map(([, set]) => set));
  const references = new Map<string, References>(
    sets.map(([label], i) => [label, found[i]]),
  );
  const entries = gallery(
    [...references].map(([label, { masked }]) => [label, masked]),
  );
  const texts = await lab.texts(
    all.map(({ prompts, class: word }) =>
      prompts.map((prompt) => textPrefix + promptText(prompt, word))
    ),
  );
  const captions = new Map(all.map(({ name }, i) => [name, texts[i]]));
  const isFirst = (views: readonly ClipVector[], name: string) =>
    retrieve(views, entries, name).rank === 1 ? 1 : 0;
  /** The four scores of a picture. */
  const scoresOf = (
    { whole, regions: [views] }: Embedded,
    caption: ClipVector,
    name: string,
  ): Record<ScoreName, number> => {
    const own = references.get(name)!;
    return {
      text: textAlignment(whole, caption),
      image: imageAlignment(whole, own.whole),
      // Of the window where it is largest.
      masked: Math.max(
        ...views.map((view) => imageAlignment(view, own.masked)),
      ),
      retrieval: isFirst(views, name),
    };
  };
  return {
    entries,
    captions: ({ name }) => captions.get(name)!,
    async score(drawn) {
      const embedded = await lab.embed(drawn.map(({ images, subject }) => ({
        images,
        regions: subject.prompts.map((prompt) => [promptRegion(prompt)]),
      })));
      return drawn.map(({ arm, seed, subject: { name } }, k) => {
        const scores = embedded[k].map((picture, i) =>
          scoresOf(picture, captions.get(name)![i], name)
        );
        return {
          arm,
          concept: name,
          seed,
          ...perScore((score) => scores.map((one) => rounded(one[score]))),
        };
      });
    },
    ceiling({ name }) {
      const { whole, masked } = references.get(name)!;
      const others = (rows: readonly ClipVector[], i: number) =>
        rows.filter((_, j) => j !== i);
      return whole.map((own, i) => ({
        image: imageAlignment(own, others(whole, i)),
        masked: imageAlignment(masked[i], others(masked, i)),
        retrieval: isFirst([masked[i]], name),
      }));
    },
  };
}

/**
 * Means over a concept's rows, concept by concept: seeds and prompts count the
 * same.
 *
 * @param rows Rows of one arm.
 * @param names Proper names, in the order of the result.
 * @param score Which score.
 */
export function conceptMeans(
  rows: readonly ScoreRow[],
  names: readonly string[],
  score: ScoreName,
): number[] {
  return names.map((name) =>
    mean(
      rows.filter(({ concept }) => concept === name)
        .map((row) => mean(row[score])),
    )
  );
}
