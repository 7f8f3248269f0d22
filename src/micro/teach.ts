/**
 * Teaches the embedded model an identity of its world in one call.
 *
 * @module
 */
import { key } from "../core/random.ts";
import type { Concept } from "../customize/concept.ts";
import { encodeData } from "../customize/dataset.ts";
import { method, type MethodName, startConcept } from "../customize/methods.ts";
import { customize, type TrainRecord } from "../customize/train.ts";
import type { Model } from "../models/model.ts";
import { conceptImages, identityOf, loadConceptArt } from "./concepts.ts";

/** Settings of {@linkcode teach}. */
export interface TeachOptions {
  /** How it is trained. @default "ed-lora" */
  readonly method?: MethodName;
  /** Steps; a real training takes 300 or more. @default 60 */
  readonly steps?: number;
  /** Rank of the adapter. @default the method's */
  readonly rank?: number;
  /** Seed of first parameters and noise. @default 0 */
  readonly seed?: number;
  /** Called after each step. */
  readonly onRecord?: (record: TrainRecord) => void;
}

/**
 * Trains a concept on an identity's training pictures, with rates that suit few
 * steps on a small model.
 *
 * @param model The base model; not changed.
 * @param name Proper name of the identity.
 * @param options Method, steps, rank.
 * @returns The concept; its tensors are the caller's.
 * @throws If there is no such identity.
 *
 * @example
 * ```ts ignore
 * const bobo = await teach(await loadModel("models/micro"), "bobo");
 * ```
 */
export async function teach(
  model: Model,
  name: string,
  options: TeachOptions = {},
): Promise<Concept> {
  const { steps = 60, rank, seed = 0, onRecord } = options;
  const { class: classWord } = identityOf(name);
  const pictures = conceptImages(name, "train", await loadConceptArt());
  const data = await encodeData(
    model,
    pictures.map(({ scene: { side }, image, caption }) => ({
      pixels: { width: side, height: side, channels: 3 as const, data: image },
      captions: [caption.replace("<TOKEN>", "{}")],
    })),
  );
  const own = method(options.method ?? "ed-lora", "paper", { steps, seed });
  const rates = { embedding: 5e-3, textEncoder: 1e-3, unet: 5e-3 };
  const { lr } = own.train;
  const config = {
    ...own.train,
    // What a method leaves alone stays alone.
    lr: {
      embedding: lr.embedding && rates.embedding,
      textEncoder: lr.textEncoder && rates.textEncoder,
      unet: lr.unet && rates.unet,
    },
  };
  const start = await startConcept(model, own, {
    ...{ name, classWord, key: key(seed) },
    ...(rank === undefined ? {} : { rank }),
  });
  return await customize(model, start, data, config, { onRecord });
}
