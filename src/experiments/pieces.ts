/**
 * The pieces of work that experiments are made of, as plain data. A piece says
 * all that shapes its result, so its hash names the result, any worker may do
 * it, and doing it again gives the same.
 *
 * @module
 */
import { fold, type Key, key } from "../core/random.ts";
import type { MethodName, Preset } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { Box } from "../evaluation/preprocess.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import { joinPath } from "../io/files.ts";
import type { GradientSettings, SamplingSettings } from "./presets.ts";

/** A picture of the store that shows a concept, drawn by the base model. */
export interface DrawnPicture {
  /** Its name in the store. */
  readonly image: string;
  /** A caption with the placeholder in the concept's place. */
  readonly caption: string;
  /** Where the concept is, in pixels. */
  readonly box: Box;
}

/** Trains one concept. */
export interface TrainPiece {
  readonly kind: "train";
  /** Hash of the base model. */
  readonly base: string;
  /** Proper name of the identity. */
  readonly concept: string;
  /** Class word. */
  readonly classWord: string;
  /** Hash of pictures, masks and captions. */
  readonly data: string;
  /** The pictures of an in-domain concept; absent: the identity's art. */
  readonly pictures?: readonly DrawnPicture[];
  readonly method: MethodName;
  readonly preset: Preset;
  readonly rank: number;
  /** Whole configuration; its seed is made of `seed` and the concept. */
  readonly config: TrainConfig;
  readonly seed: number;
}

/** Fuses concepts into one model. */
export interface FusePiece {
  readonly kind: "fuse";
  readonly base: string;
  /** Names of trained concepts in the store, in order. */
  readonly concepts: readonly string[];
  readonly how:
    | { readonly type: "weight"; readonly lambda: number }
    | { readonly type: "gradient"; readonly settings: GradientSettings };
  readonly seed: number;
}

/** A model: the base, one with a concept, or a fused one. */
export type ModelRef =
  | { readonly type: "base" }
  | {
    readonly type: "concept";
    readonly id: string;
    /** Strength α of its adapter; absent: 1. */
    readonly alpha?: number;
  }
  | { readonly type: "fused"; readonly id: string };

/** One picture to draw. */
export interface Shot {
  /** The prompt; concepts stand in it with their tokens. */
  readonly text: string;
  /** What its noise is drawn for: the same in every arm. */
  readonly noise: readonly (string | number)[];
}

/** Draws pictures from one model. */
export interface SamplePiece {
  readonly kind: "sample";
  readonly base: string;
  readonly model: ModelRef;
  readonly shots: readonly Shot[];
  readonly sampling: SamplingSettings;
}

/** Embeds drawn pictures, whole and in windows. */
export interface EmbedPiece {
  readonly kind: "embed";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Names of pictures in the store. */
  readonly images: readonly string[];
  /** Where the object may be in each, as shares of the picture; null: anywhere. */
  readonly regions: readonly (Box | null)[];
}

/** Embeds the references of an identity, or a look-alike of it. */
export interface ReferencePiece {
  readonly kind: "reference";
  readonly clip: string;
  /** Proper name of the identity. */
  readonly concept: string;
  /** Style word of a look-alike; absent: the identity itself. */
  readonly design?: string;
  /** Hash of pictures and masks. */
  readonly data: string;
  /** The pictures of an in-domain concept; absent: the identity's art. */
  readonly pictures?: readonly DrawnPicture[];
}

/** How the concepts of a layout come into the picture. */
export type ComposeHow =
  /** The model has them: the layout is drawn as it stands. */
  | "model"
  /** Adapters inside their regions, not fused. */
  | "region-adapters"
  | "switch"
  | "composite";

/** An outline in a sketch: a frame of an identity, put somewhere. */
export interface SketchObject {
  /** Proper name. */
  readonly concept: string;
  /** Which of its training frames. */
  readonly frame: number;
  /** Left edge of the square it is drawn in, pixels. */
  readonly x: number;
  /** Top edge, pixels. */
  readonly y: number;
  /** Side of the square, pixels. */
  readonly side: number;
}

/** Draws one layout with several noises. */
export interface ComposePiece {
  readonly kind: "compose";
  /** Hash of the base model. */
  readonly base: string;
  /** The model, for `how: "model"`; else the base. */
  readonly model: ModelRef;
  readonly how: ComposeHow;
  /** Names of trained concepts in the store, where the model lacks them. */
  readonly concepts: readonly string[];
  readonly layout: LayoutInput;
  /** What the condition image "sketch" shows. */
  readonly sketch?: readonly SketchObject[];
  /** Hash of the art that the sketch shows; see `artHash`. */
  readonly art?: string;
  /** Hashes of condition networks, by name. */
  readonly networks: Readonly<Record<string, string>>;
  /** What noise is drawn for, a picture each: the same in every arm. */
  readonly noise: readonly (readonly (string | number)[])[];
}

/** Embeds pictures: whole, and windows in regions of them. */
export interface ViewsPiece {
  readonly kind: "views";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Names of pictures in the store. */
  readonly images: readonly string[];
  /** Where objects may be in each of them, as shares of the picture. */
  readonly regions: readonly Box[];
  /** Sides of windows, as shares of the region's shorter side. */
  readonly sides: readonly number[];
  /** Steps between windows, as a share of their side. */
  readonly step: number;
}

/** Tells how far a piece is. */
export type Tell = (done: number, total: number) => void;

/** Any piece. */
export type Piece =
  | TrainPiece
  | FusePiece
  | SamplePiece
  | EmbedPiece
  | ReferencePiece
  | ComposePiece
  | ViewsPiece;

/** Where the results of pieces lie, below a cache folder. */
export const store = {
  concept: (cache: string, id: string): string =>
    joinPath(cache, "concepts", `${id}.safetensors`),
  conceptLog: (cache: string, id: string): string =>
    joinPath(cache, "concepts", `${id}.json`),
  // One a backend: their rounding differs, and a run continues only its own.
  trainState: (cache: string, id: string, backend: string): string =>
    joinPath(cache, "concepts", `${id}.${backend}.state`),
  fused: (cache: string, id: string): string =>
    joinPath(cache, "fused", `${id}.safetensors`),
  fusedLog: (cache: string, id: string): string =>
    joinPath(cache, "fused", `${id}.json`),
  image: (cache: string, id: string): string =>
    joinPath(cache, "images", id.slice(0, 2), `${id}.png`),
  embedding: (cache: string, id: string): string =>
    joinPath(cache, "embeddings", `${id}.safetensors`),
} as const;

/**
 * The key of a training run's first parameters.
 *
 * @param seed The experiment's seed.
 * @param concept Proper name: clients draw independently.
 */
export function conceptKey(seed: number, concept: string): Key {
  return fold(key(seed), "concept", concept);
}

/**
 * The seed of a training run's noise and order: the same for both embeddings.
 *
 * @param seed The experiment's seed.
 * @param concept Proper name.
 */
export function trainSeed(seed: number, concept: string): number {
  return fold(key(seed), "train", concept)[0];
}

/**
 * The key of a picture's noise: a function of seed, concept and prompt, so that
 * every arm starts from the same noise.
 *
 * @param noise What it is drawn for; the first entry is the seed.
 */
export function shotKey(noise: readonly (string | number)[]): Key {
  const [seed, ...purpose] = noise;
  return fold(key(Number(seed)), "sample", ...purpose);
}

/** A trained concept's log. */
export interface ConceptLog {
  readonly concept: string;
  readonly method: MethodName;
  readonly steps: number;
  /** Mean loss of each tenth of the steps that the last attempt did. */
  readonly losses: readonly number[];
  /** Seconds of training in the last attempt. */
  readonly seconds: number;
  /** How it stands in prompts. */
  readonly phrase: string;
}

/** A fused model's log. */
export interface FusedLog {
  readonly concepts: readonly string[];
  readonly seconds: number;
  /** Layers fitted by gradient fusion; empty for weight fusion. */
  readonly layers: readonly FusedLayer[];
}

/** How one layer was fitted. */
export interface FusedLayer {
  readonly stage: string;
  readonly layer: string;
  readonly rows: number;
  readonly features: number;
  /** Mean squared feature error of W₀, of the fused and of the averaged weight. */
  readonly before: number;
  readonly after: number;
  readonly average: number;
}
