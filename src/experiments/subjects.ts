/**
 * The concepts of an experiment: their prompts and pictures, and the specs to
 * train and draw them.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { listOf, type OptionType, parsed } from "../core/options.ts";
import { method, type MethodName } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { Lab } from "../lab/lab.ts";
import {
  type Ask,
  type PictureSet,
  type Sample,
  type SamplingSettings,
  trainSeed,
  type TrainSpec,
} from "../lab/specs.ts";
import {
  conceptOf,
  drawings,
  type DrawnSet,
  inDomain,
  promptsOf,
} from "../micro/in_domain.ts";
import {
  chosenPrompts,
  loadPrompts,
  type Prompt,
  promptText,
} from "../micro/prompts.ts";
import { identityOf } from "../micro/concepts.ts";
import { IDENTITIES } from "../micro/world.ts";
import {
  type EmbeddingName,
  type ExperimentPreset,
  METHOD_OF,
} from "./presets.ts";
import { refuseCutTexts } from "./texts.ts";

/** The identities on which settings are chosen; they are never reported. */
export const DEVELOPMENT_CONCEPTS: readonly string[] = IDENTITIES
  .filter(({ split }) => split === "development").map(({ name }) => name);

/** Name of an identity or of an in-domain concept. */
export const CONCEPT: OptionType<string> = parsed(
  "NAME",
  (_what, _option, name) => conceptOf(name).name,
);

/** Name of an identity. */
export const IDENTITY: OptionType<string> = parsed(
  "NAME",
  (_what, _option, name) => identityOf(name).name,
);

/** Comma-separated names. */
export const CONCEPTS: OptionType<readonly string[]> = listOf(CONCEPT);

/** A concept, and those of its prompts that are used. */
export interface Subject {
  /** Proper name of an identity, or of an in-domain concept. */
  readonly name: string;
  /** Class word. */
  readonly class: string;
  /** Prompts that it is drawn from. */
  readonly prompts: readonly Prompt[];
  /** Pictures that it is trained on. */
  readonly train: PictureSet;
  /** Held-out pictures for scores. */
  readonly references: PictureSet;
  /** Pictures of look-alikes that the base model draws, by their words. */
  readonly others: Readonly<Record<string, PictureSet>>;
}

/**
 * The first pictures of a set; all of a look-alike's.
 *
 * @param set The set.
 * @param count How many. @default all
 */
export function firstPictures(set: PictureSet, count?: number): PictureSet {
  if (count === undefined) return set;
  switch (set.of) {
    case "art":
      return { ...set, count };
    case "drawn":
      return { ...set, pictures: set.pictures.slice(0, count) };
    case "look-alike":
      return set;
  }
}

/**
 * Refuses a mix of both domains, as a mean over both would describe neither.
 *
 * @param names Proper names.
 * @throws If some are in-domain concepts and some are not.
 */
export function oneDomain(names: readonly string[]): void {
  const inside = names.filter((name) => inDomain(name) !== undefined);
  if (inside.length === 0 || inside.length === names.length) return;
  throw cannot(
    "average over concepts",
    "identities only, or in-domain concepts only",
    names.join(", "),
  );
}

/**
 * Checks names, finds prompts and pictures. The base model draws the pictures of
 * in-domain concepts here.
 *
 * @param lab The lab.
 * @param names Proper names of identities or in-domain concepts.
 * @param count Prompts of each.
 * @param sampling How in-domain pictures are drawn.
 * @throws Before anything is drawn, if a name is unknown or comes twice, or if a
 * text encoder would cut a prompt.
 */
export async function subjects(
  lab: Lab,
  names: readonly string[],
  count: number,
  sampling: SamplingSettings,
): Promise<Subject[]> {
  if (names.length === 0) throw cannot("run", "at least one concept", "none");
  if (new Set(names).size !== names.length) {
    throw cannot("run", "different concepts", names.join(", "));
  }
  const all = await loadPrompts();
  const plain = names.map((name): Subject => {
    const { prompts } = promptsOf(name, all);
    return {
      name,
      class: conceptOf(name).class,
      prompts: chosenPrompts(count, prompts).map((i) => prompts[i]),
      train: { of: "art", concept: name, set: "train" },
      references: { of: "art", concept: name, set: "reference" },
      others: {},
    };
  });
  // Every method's phrase has at most two tokens.
  const drawn = plain.flatMap(({ prompts }) =>
    prompts.map((own) => ({ prompt: promptText(own, "<a> <b>") }))
  );
  const captions = plain.flatMap(({ prompts, class: word }) =>
    prompts.map((own) => promptText(own, word))
  );
  await refuseCutTexts(lab, drawn, captions);
  const result: Subject[] = [];
  for (const subject of plain) {
    const draw = (set: DrawnSet, look?: string) =>
      drawnSet(lab, subject.name, sampling, set, look);
    const found = inDomain(subject.name);
    if (!found) {
      result.push(subject);
      continue;
    }
    const others: Record<string, PictureSet> = {};
    for (const look of found.others) others[look] = await draw("other", look);
    result.push({
      ...subject,
      train: await draw("train"),
      references: await draw("reference"),
      others,
    });
  }
  return result;
}

/** Pictures that the base model draws of an in-domain concept. */
async function drawnSet(
  lab: Lab,
  name: string,
  sampling: SamplingSettings,
  set: DrawnSet,
  look?: string,
): Promise<PictureSet> {
  const asked = drawings(name, set, look);
  const samples = asked.map(({ text, noise }) => ({ text, noise }));
  const [images] = await lab.draw([
    { model: { type: "base" }, samples, sampling },
  ]);
  const pictures = asked.map(({ caption, box }, i) => ({
    image: images[i],
    caption,
    box,
  }));
  return { of: "drawn", pictures };
}

/** A method by its own name or by that of an embedding. */
export function methodOf(name: EmbeddingName | MethodName): MethodName {
  return name === "lora" || name === "edlora" ? METHOD_OF[name] : name;
}

/**
 * The concept's phrase in prompts.
 *
 * @param settings The preset.
 * @param embedding Its embedding, or the method.
 * @param subject The concept.
 */
export function phraseOf(
  settings: ExperimentPreset,
  embedding: EmbeddingName | MethodName,
  subject: Pick<Subject, "name" | "class">,
): string {
  return method(methodOf(embedding), settings.preset)
    .phrase(subject.name, subject.class);
}

/**
 * The spec to train a concept.
 *
 * @param settings The preset.
 * @param subject The concept.
 * @param embedding Its embedding, or the method.
 * @param seed The seed.
 * @param change Changes of the preset's training configuration.
 */
export function training(
  settings: ExperimentPreset,
  subject: Subject,
  embedding: EmbeddingName | MethodName,
  seed: number,
  change: Partial<TrainConfig> = {},
): Ask<TrainSpec> {
  const name = methodOf(embedding);
  const how = method(name, settings.preset);
  const { lora } = how.concept;
  return {
    concept: subject.name,
    classWord: subject.class,
    pictures: subject.train,
    method: name,
    preset: settings.preset,
    rank: settings.rank,
    ...(lora && lora.targets === "attention" && { layers: settings.layers }),
    config: {
      ...how.train,
      ...settings.train,
      ...change,
      seed: trainSeed(seed, subject.name),
    },
    seed,
  };
}

/**
 * A concept's prompts with noise that depends on seed, concept and prompt only:
 * it is the same in every arm.
 *
 * @param subject The concept.
 * @param seed The seed.
 * @param words The concept's phrase.
 */
export function promptSamples(
  subject: Subject,
  seed: number,
  words: string,
): Sample[] {
  return subject.prompts.map((prompt) => ({
    text: promptText(prompt, words),
    // The noise depends on the prompt's text, not its index, so that a shorter
    // list draws the same pictures.
    noise: [seed, subject.name, prompt.text],
  }));
}
