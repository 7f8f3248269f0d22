/**
 * Computes the four scores of concepts' pictures, and means of scores.
 *
 * @module
 */
import type { Key } from "../core/random.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { imageAlignment, textAlignment } from "../evaluation/clip_score.ts";
import { finite, rounded } from "../evaluation/compare.ts";
import type { HeldOutError } from "../evaluation/heldout.ts";
import type { PixelBox } from "../evaluation/preprocess.ts";
import {
  gallery,
  type GalleryEntry,
  retrieve,
} from "../evaluation/retrieval.ts";
import {
  hierarchicalBootstrap,
  type Nested,
  nestedMean,
} from "../evaluation/statistics.ts";
import type { Embedded, Lab, References, Trained } from "../lab/lab.ts";
import type { ModelRef, PictureSet, SamplingSettings } from "../lab/specs.ts";
import { canonicalJson } from "../lab/store.ts";
import { otherDesigns } from "../micro/concepts.ts";
import { type Prompt, promptText } from "../micro/prompts.ts";
import { IDENTITIES } from "../micro/world.ts";
import type { Interval } from "../report/format.ts";
import type { ExperimentPreset } from "./presets.ts";
import { firstPictures, promptSamples, type Subject } from "./subjects.ts";

/**
 * Name of a score: text alignment (2.5·max(cos, 0), class word in the caption),
 * image alignment (mean of max(cos, 0) over references), masked image alignment
 * (references cut to their masks, best window of the picture), and the share of
 * pictures whose nearest gallery entry is the identity.
 */
export type ScoreName = "text" | "image" | "masked" | "retrieval";

/** The four scores. */
const SCORES: readonly ScoreName[] = [
  "text",
  "image",
  "masked",
  "retrieval",
];

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

/** Scores of one concept and seed, a value per prompt. */
export interface ConceptScores {
  /** Proper name. */
  concept: string;
  /** Training seed. */
  seed: number;
  /** In the order of the concept's prompts. */
  text: number[];
  /** In the same order. */
  image: number[];
  /** In the same order. */
  masked: number[];
  /** 0 or 1, in the same order. */
  retrieval: number[];
  /** Masked denoising error on held-out references: lower is better. */
  heldout?: number;
}

/** A concept to draw from its prompts, in one arm of an experiment. */
export interface Cell<Arm = string> {
  /** The arm. */
  readonly arm: Arm;
  /** Training seed. */
  readonly seed: number;
  /** The concept. */
  readonly subject: Subject;
  /** The model that draws. */
  readonly model: ModelRef;
  /** The concept's phrase in prompts. */
  readonly words: string;
}

/**
 * Cells of an arm: each concept on one seed.
 *
 * @param arm The arm.
 * @param seed Training seed.
 * @param all The concepts.
 * @param trained The trained concept of each. @default the class word on the
 * base
 * @param model One model with all of them. @default each concept's own model
 */
export function armCells<Arm>(
  arm: Arm,
  seed: number,
  all: readonly Subject[],
  trained?: readonly Pick<Trained, "model" | "phrase">[],
  model?: ModelRef,
): Cell<Arm>[] {
  return all.map((subject, i) => ({
    ...{ arm, seed, subject, words: trained?.[i].phrase ?? subject.class },
    model: model ?? trained?.[i].model ?? { type: "base" },
  }));
}

/** Pictures of a cell: one per prompt. */
export interface Drawn<Arm = string> extends Cell<Arm> {
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
export async function drawCells<Arm>(
  lab: Lab,
  sampling: SamplingSettings,
  cells: readonly Cell<Arm>[],
): Promise<Drawn<Arm>[]> {
  const images = await lab.draw(
    cells.map(({ model, subject, seed, words }) => ({
      model,
      samples: promptSamples(subject, seed, words),
      sampling,
    })),
  );
  return cells.map((cell, i) => ({ ...cell, images: images[i] }));
}

/** Scores pictures of some concepts. */
export interface Scorer {
  /** References of every identity in the gallery, cut to their masks. */
  readonly entries: readonly GalleryEntry[];
  /** Embedded captions of a concept's prompts, with the class word. */
  captions(subject: Subject): readonly ClipVector[];
  /** Scores, in the order of what was drawn. */
  score(drawn: readonly Drawn<unknown>[]): Promise<ConceptScores[]>;
  /**
   * Scores of a concept's references: alignment of each with the others, and
   * retrieval. References have no prompt, so there is no text alignment.
   */
  ceiling(
    subject: Subject,
  ): Readonly<Record<Exclude<ScoreName, "text">, number>>[];
}

/**
 * Pictures of the gallery: concepts and their look-alikes, each with its own
 * label.
 */
function gallerySets(
  lab: Lab,
  all: readonly Subject[],
): [string, PictureSet][] {
  // In-domain concepts and their look-alikes, then all identities and theirs.
  return [
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
}

/**
 * The part of the picture in which a prompt places its concept: a little more
 * than half if there is a second object, else everything.
 *
 * @param prompt The prompt.
 * @returns Shares of the picture.
 */
export function promptRegion({ facts: { side } }: Prompt): PixelBox {
  if (side === undefined) return { x: 0, y: 0, width: 1, height: 1 };
  return { x: side === "left" ? 0 : 0.4, y: 0, width: 0.6, height: 1 };
}

/**
 * Embeds references and captions.
 *
 * @param lab The lab.
 * @param all The concepts.
 * @param textPrefix Prefix of captions.
 */
export async function openScorer(
  lab: Lab,
  all: readonly Subject[],
  textPrefix: string,
): Promise<Scorer> {
  const sets = gallerySets(lab, all);
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
      return drawn.map(({ seed, subject: { name } }, k) => {
        const scores = embedded[k].map((picture, i) =>
          scoresOf(picture, captions.get(name)![i], name)
        );
        return {
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

/** An arm and its scores. */
export interface ArmScores<Arm> {
  /** The arm. */
  readonly arm: Arm;
  /** Scores of each of its concepts and seeds. */
  readonly rows: readonly ConceptScores[];
}

/**
 * Errors of cells' models on their concepts' held-out references, the same noise
 * in all of one concept and seed.
 *
 * @param lab The lab.
 * @param settings How many references.
 * @param cells Models and the concepts' phrases.
 */
export async function heldOutErrors(
  lab: Lab,
  { heldoutPictures }: Pick<ExperimentPreset, "heldoutPictures">,
  cells: readonly Cell<unknown>[],
): Promise<HeldOutError[]> {
  return await lab.heldout(
    cells.map(({ model, subject, seed, words }) => ({
      model,
      pictures: firstPictures(subject.references, heldoutPictures),
      phrase: words,
      noise: [seed, "heldout", subject.name],
    })),
  );
}

/**
 * Draws cells and scores them, arm by arm; the error on held-out references is
 * among the scores.
 *
 * @param lab The lab.
 * @param settings How pictures are drawn, how captions begin, how many held-out
 * references there are.
 * @param all The concepts that are scored.
 * @param cells What is drawn; arms that are equal as data are one arm.
 * @returns Arms in the order of first occurrence, with their pictures.
 */
export async function scoreCells<Arm>(
  lab: Lab,
  settings: Pick<
    ExperimentPreset,
    "sampling" | "textPrefix" | "heldoutPictures"
  >,
  all: readonly Subject[],
  cells: readonly Cell<Arm>[],
): Promise<{ arms: ArmScores<Arm>[]; drawn: Drawn<Arm>[]; scorer: Scorer }> {
  const drawn = await drawCells(lab, settings.sampling, cells);
  const scorer = await openScorer(lab, all, settings.textPrefix);
  const scores = await scorer.score(drawn);
  const errors = await heldOutErrors(lab, settings, cells);
  const rows = scores.map((row, i) => ({ ...row, heldout: errors[i].mean }));
  const groups = Map.groupBy(
    rows.keys(),
    (i) => canonicalJson(drawn[i].arm),
  );
  return {
    drawn,
    scorer,
    arms: [...groups.values()].map((own) => ({
      arm: drawn[own[0]].arm,
      rows: own.map((i) => rows[i]),
    })),
  };
}

/**
 * A fused model that loses more than this share of text alignment does not
 * follow its prompts.
 */
export const TEXT_LOSS = 0.1;

/**
 * Values of a score by concept, then seed, then prompt.
 *
 * @param rows Rows of one arm.
 * @param names Proper names, in the order of the result.
 * @param score Which score.
 */
export function nested(
  rows: readonly ConceptScores[],
  names: readonly string[],
  score: ScoreName | "heldout",
): readonly (readonly Nested[])[] {
  return names.map((name) =>
    rows.filter(({ concept }) => concept === name).map((row) => row[score]!)
  );
}

/**
 * Means over a concept's rows, concept by concept: seeds and prompts have equal
 * weights.
 *
 * @param rows Rows of one arm.
 * @param names Proper names, in the order of the result.
 * @param score Which score.
 */
export function conceptMeans(
  rows: readonly ConceptScores[],
  names: readonly string[],
  score: ScoreName | "heldout",
): number[] {
  return nested(rows, names, score).map(nestedMean);
}

/**
 * The mean of an arm with its 95 % interval: a bootstrap of prompts in seeds in
 * concepts.
 *
 * @param rows Rows of one arm.
 * @param names Proper names.
 * @param score Which score.
 * @param key Random key.
 */
export function estimate(
  rows: readonly ConceptScores[],
  names: readonly string[],
  score: ScoreName | "heldout",
  key: Key,
): Interval {
  return finite(hierarchicalBootstrap(nested(rows, names, score), key));
}
