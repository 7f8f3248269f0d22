/**
 * Checks and describes the training data before training starts.
 *
 * @module
 */
import { cannot, listed } from "../core/errors.ts";
import { cutOff, type Model, type PromptCut } from "../models/model.ts";
import { fillCaption } from "./captions.ts";
import { changes, type Concept, conceptTensors } from "./concept.ts";
import type { Example } from "./dataset.ts";
import { COMPONENTS } from "./sites.ts";
import { type TrainConfig, trainedNames } from "./train.ts";

/** What was found in the captions of training pictures. */
export interface CaptionCheck {
  /** Captions in all; a picture may have several. */
  readonly total: number;
  /** Captions that name the concept. */
  readonly naming: number;
  /** Pictures with a caption file. */
  readonly files: number;
  /** Files (or pictures) with a caption that does not name the concept. */
  readonly unnamed: readonly string[];
  /** Captions longer than the text encoder's maximum. */
  readonly cut: readonly (PromptCut & {
    /** File (or picture) of the caption. */
    readonly file: string;
    /** Whether the concept is in the part that is cut off. */
    readonly concept: boolean;
  })[];
}

/**
 * Checks which captions name the concept and which are cut off.
 *
 * @param model The model with the concept's tokens (`addTokens`).
 * @param concept The concept.
 * @param examples Pictures and captions.
 */
export function checkCaptions(
  model: Pick<Model, "tokenizer" | "unet" | "added">,
  concept: Pick<Concept, "phrase">,
  examples: readonly Example[],
): CaptionCheck {
  const unnamed = new Set<string>();
  const cut: (PromptCut & { file: string; concept: boolean })[] = [];
  let total = 0, naming = 0;
  const seen = new Set<string>();
  for (const [i, example] of examples.entries()) {
    const file = example.captionFile ?? example.name ?? `picture ${i}`;
    for (const caption of example.captions) {
      total++;
      const prompt = fillCaption(caption, concept.phrase);
      const lost = cutOff(model, prompt);
      const gone = lost !== undefined && !lost.kept.includes(concept.phrase);
      // It is named by a placeholder or by its phrase.
      if (prompt.includes(concept.phrase) && !gone) naming++;
      else unnamed.add(file);
      if (lost === undefined || seen.has(prompt)) continue;
      seen.add(prompt);
      cut.push({ ...lost, file, concept: gone });
    }
  }
  const files = examples.filter(({ captionFile }) => captionFile).length;
  return { total, naming, files, unnamed: [...unnamed], cut };
}

/**
 * Throws if no caption names the concept: its tokens would be in no prompt, so
 * only weight decay would change them.
 *
 * @param check What the captions say.
 */
export function requireNamed({ naming, unnamed, cut }: CaptionCheck): void {
  if (naming > 0) return;
  throw cannot(
    "train",
    "captions that name the concept: {} in them, or a word that --trigger gives" +
      (cut.length > 0 ? ", before the text encoder's limit" : ""),
    `none in ${listed(unnamed)}`,
  );
}

/** Summary of a training run; plain data, saved with the concept. */
export interface TrainingSummary {
  /** Pictures and their side. */
  readonly pictures: string;
  /** How many captions name the concept. */
  readonly captions: string;
  /** How many masks there are, and whether the loss uses them. */
  readonly masks: string;
  /** Class pictures and their weight. */
  readonly classPictures: string;
  /** Learned tokens and their vectors. */
  readonly tokens: string;
  /** Layers with an adapter. */
  readonly layers: string;
  /** Number of trained parameters. */
  readonly parameters: string;
}

/**
 * Describes briefly what is trained, and on which data.
 *
 * @param concept The concept as it starts.
 * @param config Configuration.
 * @param data Pictures, class pictures, what the captions say, mirrored or not.
 */
export function trainingSummary(
  concept: Concept,
  config: TrainConfig,
  data: {
    readonly examples: readonly Example[];
    readonly classes: readonly Example[];
    readonly captions: CaptionCheck;
    readonly flips: boolean;
  },
): TrainingSummary {
  const { examples, classes, captions, flips } = data;
  const sizes = new Map<string, number>();
  for (const { pixels: { width, height } } of examples) {
    const size = `${width}×${height}`;
    sizes.set(size, (sizes.get(size) ?? 0) + 1);
  }
  const masks = examples.filter(({ mask }) => mask).length;
  const used = config.masked
    ? "the masked loss is on"
    : config.attention.weight > 0
    ? "of attention regularisation"
    : "not used (--masks FOLDER turns the masked loss on)";
  const all = conceptTensors(concept);
  const count = trainedNames(concept, config)
    .reduce((sum, name) => sum + all.get(name)!.size, 0);
  const vectors = concept.tokens.map(({ token, vectors }) =>
    `${token} (${vectors.shape[0]})`
  );
  const frozen = config.lr.embedding > 0 ? "" : ", frozen";
  const [text, unet] = COMPONENTS.map((c) => changes(concept, c));
  const empty = config.captionDropout
    ? `; ${100 * config.captionDropout} % of the prompts are empty`
    : "";
  return {
    pictures: `${examples.length} pictures of ` +
      listed(
        [...sizes].map(([size, n]) =>
          sizes.size === 1 ? size : `${size} (${n})`
        ),
      ) +
      (flips ? ", also mirrored" : ""),
    captions: `${captions.naming} of ${captions.total} name the concept, ` +
      `${captions.files} pictures have a caption file${empty}`,
    masks: masks === 0
      ? "none"
      : `${masks} of ${examples.length} pictures, ${used}`,
    classPictures: classes.length === 0
      ? "none"
      : `${classes.length}, weight ${config.priorWeight}`,
    tokens: `${vectors.join(", ")} vectors${frozen}`,
    layers: concept.weights
      ? `all: ${text} tensors of the text encoder, ${unet} of the UNet`
      : `${text} of the text encoder, ${unet} of the UNet`,
    parameters: `${count}`,
  };
}
