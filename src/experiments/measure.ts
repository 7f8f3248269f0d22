/**
 * What is measured of models and concepts themselves, without pictures.
 *
 * @module
 */
import { attentionSites } from "../customize/lora.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { method, startConcept } from "../customize/methods.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { cosine } from "../evaluation/clip_score.ts";
import { mean } from "../evaluation/statistics.ts";
import { loadConcept } from "../formats/concept_file.ts";
import { type Ask, conceptKey, type TrainSpec } from "../lab/specs.ts";
import { pathOf } from "../lab/store.ts";
import type { Model } from "../models/model.ts";
import type { PairCosines } from "./ablation_schema.ts";
import { rounded } from "./scorer.ts";

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
    return [rounded(Math.min(...all)), rounded(Math.max(...all))];
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
  return mean(pictures.map((row, i) => 1 - cosine(row, base[i])));
}

/**
 * How alike the embeddings of different concepts are, before and after training.
 *
 * @param model The base model.
 * @param store Folder of the lab's store.
 * @param trained What was asked for, and names of the results in the store.
 */
export async function distinguishability(
  model: Model,
  store: string,
  trained: readonly { readonly ask: Ask<TrainSpec>; readonly id: string }[],
): Promise<{ before: PairCosines; after: PairCosines }> {
  const before: ClipVector[][] = [], after: ClipVector[][] = [];
  for (const { ask, id } of trained) {
    const start = await startConcept(
      model,
      method(ask.method, ask.preset, ask.config),
      {
        name: ask.concept,
        classWord: ask.classWord,
        key: conceptKey(ask.seed, ask.concept),
        rank: ask.rank,
      },
    );
    before.push(await vectorsOf(start));
    const end = await loadConcept(pathOf.concept(store, id), model);
    after.push(await vectorsOf(end));
    disposeConcept(start);
    disposeConcept(end);
  }
  return { before: pairCosines(before), after: pairCosines(after) };
}

/** A concept's vectors, unit length: every token at every site. */
async function vectorsOf(concept: Concept): Promise<ClipVector[]> {
  const rows: ClipVector[] = [];
  for (const { vectors } of concept.tokens) {
    const [n, width] = vectors.shape;
    const values = await vectors.data() as Float32Array;
    for (let i = 0; i < n; i++) {
      const row = values.slice(i * width, (i + 1) * width);
      const norm = Math.hypot(...row);
      rows.push(row.map((value) => value / norm));
    }
  }
  return rows;
}

/** Cosines between pairs of concepts, of vectors in the same place. */
function pairCosines(
  concepts: readonly (readonly ClipVector[])[],
): PairCosines {
  const pairs: number[] = [];
  for (let i = 0; i < concepts.length; i++) {
    for (let j = i + 1; j < concepts.length; j++) {
      pairs.push(
        mean(concepts[i].map((row, k) => cosine(row, concepts[j][k]))),
      );
    }
  }
  return pairs.length === 0
    ? { mean: null, max: null }
    : { mean: rounded(mean(pairs)), max: rounded(Math.max(...pairs)) };
}
