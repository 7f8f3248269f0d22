/**
 * Joint training: one run learns several concepts from the pictures of all
 * (Custom Diffusion's joint mode). It is the upper bound for fusion of
 * separately trained concepts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import type { Key } from "../core/random.ts";
import type { Model } from "../models/model.ts";
import { fillCaption } from "./captions.ts";
import type { Concept } from "./concept.ts";
import type { TrainData } from "./dataset.ts";
import { type Method, startConcept } from "./methods.ts";

/** A concept among those that are trained together. */
export interface JointName {
  /** Name of the concept. */
  readonly name: string;
  /** The ordinary word for it. */
  readonly classWord: string;
}

/** Names, randomness and rank of {@linkcode startJoint}. */
export interface StartJointOptions {
  /** Name of the whole, and of its adapter. */
  readonly name: string;
  /** The concepts. */
  readonly concepts: readonly JointName[];
  /** Random key of its start. */
  readonly key: Key;
  /**
   * Rank of the adapter that they share.
   *
   * @default 4
   */
  readonly rank?: number;
}

/**
 * Initialises a joint run: the tokens of all concepts, and one adapter.
 *
 * @param model The base model.
 * @param m The method; each concept has its tokens and its phrase.
 * @param options Names, randomness, rank.
 * @returns The start; its tensors are the caller's. Prompts call a concept as
 * `m.phrase(name, classWord)`, or all of them by the start's own phrase.
 * @throws If there are no concepts, two have one name, or the method cannot start.
 */
export async function startJoint(
  model: Model,
  m: Method,
  { name, concepts, key, rank }: StartJointOptions,
): Promise<Concept> {
  const names = concepts.map((c) => c.name);
  if (names.length === 0 || new Set(names).size !== names.length) {
    throw cannot("train jointly", "concepts of different names", names.join());
  }
  return await startConcept(model, m, {
    name,
    classWord: concepts.map(({ classWord }) => classWord).join(" and "),
    key,
    rank,
    overrides: {
      tokens: concepts.flatMap((c) => m.tokens(c.name, c.classWord)),
      phrase: concepts.map((c) => m.phrase(c.name, c.classWord)).join(" and "),
    },
  });
}

/**
 * The pictures of several concepts as one set: captions call each by its own
 * phrase.
 *
 * @param parts Encoded pictures, and the phrase of their concept.
 * @throws If there are none, or their sizes differ.
 *
 * @example
 * ```ts
 * const both = joinData([
 *   { data: foxes, phrase: "<fox1> <fox2>" },
 *   { data: owls, phrase: "<owl1> <owl2>" },
 * ]);
 * const concept = await customize(model, start, both, config);
 * ```
 */
export function joinData(
  parts: readonly { readonly data: TrainData; readonly phrase: string }[],
): TrainData {
  const what = "join pictures";
  if (parts.length === 0) throw cannot(what, "at least one set", "none");
  const sets = parts.map(({ data }) => data);
  const [{ height, width, channels }] = sets;
  for (const other of sets) {
    if (
      other.height !== height || other.width !== width ||
      other.channels !== channels
    ) {
      throw cannot(
        what,
        `latents of ${height}×${width}×${channels}`,
        `${other.height}×${other.width}×${other.channels}`,
      );
    }
  }
  return {
    count: sets.reduce((sum, { count }) => sum + count, 0),
    ...{ height, width, channels },
    mean: joined(Float32Array, sets.map(({ mean }) => mean)),
    std: joined(Float32Array, sets.map(({ std }) => std)),
    captions: parts.flatMap(({ data, phrase }) =>
      data.captions.map((own) => own.map((c) => fillCaption(c, phrase)))
    ),
    mask: Uint8Array.from(sets.flatMap(({ mask }) => [...mask])),
  };
}
