/**
 * Specs of the lab's work, as plain data. A spec contains everything that
 * determines its result. So its hash names the result, any worker can compute
 * it, and computing it again gives the same.
 *
 * @module
 */
import { fold, type Key, key } from "../core/random.ts";
import type { TargetName } from "../customize/lora.ts";
import type { MergeMethod } from "../fusion/mergers.ts";
import type { MethodName, Preset } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import type { SamplerName } from "../diffusion/samplers.ts";
import type { PixelBox } from "../evaluation/preprocess.ts";
import type { SketchObject } from "../micro/sketch.ts";

/** How pictures are drawn. */
export interface SamplingSettings {
  /** The sampler. */
  readonly sampler: SamplerName;
  /** Sampling steps. */
  readonly steps: number;
  /** Scale of classifier-free guidance. */
  readonly guidance: number;
  /** Negative prompt, the same for all pictures. */
  readonly negative: string;
}

/** How concepts are fused by gradient. */
export interface GradientSettings {
  /** How least squares are solved. */
  readonly method: "closed" | "lbfgs";
  /**
   * Relative to the mean of the Gram matrix's diagonal; `auto` is chosen in each
   * layer by cross-validation between halves of its features.
   */
  readonly ridge: number | "auto";
  /** Prompts that features come from. */
  readonly templates: readonly string[];
  /** Sampling steps of the run in which spatial layers are observed. */
  readonly steps: number;
  /** Pictures per concept in that run. */
  readonly images: number;
  /** Layers fused by gradient. */
  readonly layers: TargetName;
  /** Most iterations of L-BFGS per layer. @default the official code's */
  readonly iterations?: number;
}

/** How a client measures its concept; plain data. */
export type MeasureSettings = Pick<
  GradientSettings,
  "templates" | "steps" | "images" | "layers"
>;

/** How the server merges the clients' ΔW; plain data. */
export interface MergeSettings {
  /** The merger. */
  readonly method: MergeMethod;
  /** wᵢ, one per concept. @default the merger's */
  readonly weights?: readonly number[];
  /** Share of entries that is kept. @default the merger's */
  readonly density?: number;
  /** Rank of the result, for `svd`. @default the merger's */
  readonly rank?: number;
  /** Factor of off-diagonal entries, for `regmean`. @default 1 */
  readonly a?: number;
  /** Ridge relative to the mean diagonal. @default the merger's */
  readonly ridge?: number;
  /** Ordinary captions, for `custom_diffusion`. */
  readonly captions?: readonly string[];
}

/** How IterIS is run; plain data. */
export interface IterisSettings {
  /** Rounds of measuring inputs and solving layers. */
  readonly rounds: number;
  /** Prompts that are run. */
  readonly templates: readonly string[];
  /** Sampling steps of those runs. */
  readonly steps: number;
  /** Layers that are solved; the others are averaged. */
  readonly layers: TargetName;
}

/** Determines the noise of a picture; the first entry is the seed. */
export type Noise = readonly (string | number)[];

/** A picture of the store that shows a concept. */
export interface DrawnPicture {
  /** Its name in the store. */
  readonly image: string;
  /** A caption with the placeholder in the concept's place. */
  readonly caption: string;
  /** Where the concept is, in pixels. */
  readonly box: PixelBox;
}

/** Pictures of a concept with captions and masks. */
export type PictureSet =
  | {
    readonly of: "art";
    /** Proper name of the identity. */
    readonly concept: string;
    /** Training pictures or held-out references. */
    readonly set: "train" | "reference";
    /** How many of them, from the first. @default all */
    readonly count?: number;
  }
  | {
    readonly of: "look-alike";
    /** Proper name of the identity. */
    readonly concept: string;
    /** Style word of another design of it. */
    readonly design: string;
  }
  | { readonly of: "drawn"; readonly pictures: readonly DrawnPicture[] };

/** A picture of the user's, in the store. */
export interface OwnPicture {
  /** Its name in the store. */
  readonly image: string;
  /** Name of its mask in the store: grey, white inside. */
  readonly mask?: string;
  /** Captions; `{}` or `<TOK>` stands for the concept. */
  readonly captions: readonly string[];
  /** How often it counts, relative to the others. @default 1 */
  readonly repeats?: number;
}

/** Pictures of the user's, of one size. */
export interface OwnPictures {
  /** Tells them from other sets. */
  readonly of: "own";
  /** The pictures, in order. */
  readonly pictures: readonly OwnPicture[];
  /** Also every picture mirrored. @default false */
  readonly flips?: boolean;
}

/** Pictures of several concepts that are trained together. */
export interface JointPictures {
  /** Tells them from other sets. */
  readonly of: "joint";
  /** The concepts; each has the tokens and the phrase of the method. */
  readonly parts: readonly {
    /** Proper name. */
    readonly concept: string;
    /** Class word. */
    readonly classWord: string;
    /** Its pictures. */
    readonly pictures: PictureSet;
  }[];
}

/** Trains one concept, or several together. */
export interface TrainSpec {
  /** Which work it is. */
  readonly kind: "train";
  /** Hash of the base model. */
  readonly base: string;
  /** Hash of the art. */
  readonly art: string;
  /** Proper name of the concept. */
  readonly concept: string;
  /** Class word. */
  readonly classWord: string;
  /** What it is trained on. */
  readonly pictures: PictureSet | OwnPictures | JointPictures;
  /** Class pictures for prior preservation, with the class in captions. */
  readonly prior?: OwnPictures;
  /** Initialisation by a class word of several tokens. @default the method's */
  readonly severalTokens?: "mean";
  /** What was trained on, for the file's metadata. */
  readonly summary?: string;
  /** The method it is trained with. */
  readonly method: MethodName;
  /** Which variant of the method. */
  readonly preset: Preset;
  /** Rank of the adapters. */
  readonly rank: number;
  /** Layers with an adapter. @default the method's */
  readonly layers?: TargetName;
  /** Whole configuration; its seed is derived from `seed` and the concept. */
  readonly config: TrainConfig;
  /** Seed of the initial parameters. */
  readonly seed: number;
}

/** Fuses concepts into one model. */
export interface FuseSpec {
  /** Which work it is. */
  readonly kind: "fuse";
  /** Hash of the base model. */
  readonly base: string;
  /** Names of trained concepts in the store, in order. */
  readonly concepts: readonly string[];
  /** How they come into the model or the picture. */
  readonly how:
    | { readonly type: "weight"; readonly lambda: number }
    | { readonly type: "gradient"; readonly settings: GradientSettings }
    | { readonly type: "merge"; readonly settings: MergeSettings }
    | { readonly type: "iteris"; readonly settings: IterisSettings };
  /**
   * Published files in the store, one per concept. If given, gradient fusion
   * and mergers use their statistics and run no model.
   */
  readonly published?: readonly string[];
  /** Seed of the fusion. */
  readonly seed: number;
}

/** Publishes a concept with the statistics of its layers' inputs. */
export interface PublishSpec {
  /** Which work it is. */
  readonly kind: "publish";
  /** Hash of the base model. */
  readonly base: string;
  /** Name of the trained concept in the store. */
  readonly concept: string;
  /** Pictures that it was trained on. */
  readonly pictures: number;
  /** How it is measured. */
  readonly settings: MeasureSettings;
  /** Scale of noise on the statistics. @default none */
  readonly noise?: number;
  /** Seed of the sampling run, and of the noise. */
  readonly seed: number;
}

/** A model: the base, the base with a concept, or a fused one. */
export type ModelRef =
  | { readonly type: "base" }
  | {
    readonly type: "concept";
    /** Name of the concept in the store. */
    readonly id: string;
    /** Strength α of its adapter. @default 1 */
    readonly alpha?: number;
  }
  | {
    readonly type: "fused";
    /** Name of the fused model in the store. */
    readonly id: string;
  };

/** One picture to draw. */
export interface Sample {
  /** The prompt, with the concepts' tokens. */
  readonly text: string;
  /** What its noise is drawn for: the same for all models that are compared. */
  readonly noise: Noise;
}

/** Draws pictures from one model. */
export interface DrawSpec {
  /** Which work it is. */
  readonly kind: "draw";
  /** Hash of the base model. */
  readonly base: string;
  /** The model that is drawn with or measured. */
  readonly model: ModelRef;
  /** What is drawn. */
  readonly samples: readonly Sample[];
  /** How it is drawn. */
  readonly sampling: SamplingSettings;
}

/** How a layout is drawn with its concepts. */
export type ComposeHow =
  /** With a model that contains the concepts. */
  | "model"
  /** Adapters inside their regions, not fused. */
  | "region-adapters"
  | "switch"
  | "composite"
  /** LoRA Switch and Composite with weights by the prompt. */
  | "w-switch"
  | "w-composite"
  /**
   * FreeFuse: adapters inside masks from attention; the prompt names all
   * concepts.
   */
  | "free-fuse"
  /**
   * CLoRA: a contrastive loss separates attention, outputs are blended by
   * masks.
   */
  | "clora";

/** Draws one layout with several noises. */
export interface ComposeSpec {
  /** Which work it is. */
  readonly kind: "compose";
  /** Hash of the base model. */
  readonly base: string;
  /** Hash of the art. */
  readonly art: string;
  /** The model for `how: "model"`, else the base. */
  readonly model: ModelRef;
  /** How they come into the model or the picture. */
  readonly how: ComposeHow;
  /** Names of trained concepts in the store that the model lacks. */
  readonly concepts: readonly string[];
  /** The layout. */
  readonly layout: LayoutInput;
  /** What the condition image "sketch" shows. */
  readonly sketch?: readonly SketchObject[];
  /** Hashes of condition networks by name. */
  readonly networks: Readonly<Record<string, string>>;
  /** A picture each. */
  readonly noise: readonly Noise[];
}

/** Embeds pictures of the store: whole, and windows in regions of them. */
export interface EmbedSpec {
  /** Which work it is. */
  readonly kind: "embed";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Names of pictures in the store. */
  readonly images: readonly string[];
  /** Regions of each picture, as shares of it. */
  readonly regions: readonly (readonly PixelBox[])[];
  /** Sides and steps of the windows. @default those of `windows` */
  readonly windows?: {
    readonly sides: readonly number[];
    readonly step: number;
  };
}

/** Embeds pictures of a concept: whole, and cut to their masks. */
export interface ReferenceSpec {
  /** Which work it is. */
  readonly kind: "references";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Hash of the art. */
  readonly art: string;
  /** Which pictures. */
  readonly pictures: PictureSet;
}

/** Embeds texts. */
export interface TextSpec {
  /** Which work it is. */
  readonly kind: "texts";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** The texts. */
  readonly texts: readonly string[];
}

/** Measures the denoising error on pictures that were not trained on. */
export interface HeldOutSpec {
  /** Which work it is. */
  readonly kind: "heldout";
  /** Hash of the base model. */
  readonly base: string;
  /** Hash of the art. */
  readonly art: string;
  /** The model that is drawn with or measured. */
  readonly model: ModelRef;
  /** Which pictures. */
  readonly pictures: PictureSet;
  /** What stands for the concept in captions. */
  readonly phrase: string;
  /** What its noise is drawn for: the same for all models that are compared. */
  readonly noise: Noise;
}

/** Tests the evaluation CLIP on the embedded world. */
export interface EvaluatorSpec {
  /** Which work it is. */
  readonly kind: "evaluator";
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Hash of the art. */
  readonly art: string;
  /** Names of pictures in the store that the base model drew, by class word. */
  readonly classPictures: Readonly<Record<string, readonly string[]>>;
  /** Seed of the shuffles. */
  readonly seed: number;
}

/** Any spec of the lab. */
export type LabSpec =
  | TrainSpec
  | FuseSpec
  | PublishSpec
  | DrawSpec
  | ComposeSpec
  | EmbedSpec
  | ReferenceSpec
  | TextSpec
  | HeldOutSpec
  | EvaluatorSpec;

/** A spec as an experiment writes it; the lab adds the hashes. */
export type Ask<S extends LabSpec> = Omit<
  S,
  "kind" | "base" | "art" | "clip" | "networks"
>;

/** A trained concept's log. */
export interface TrainLog {
  /** Proper name of the concept. */
  readonly concept: string;
  /** The method it is trained with. */
  readonly method: MethodName;
  /** Optimisation steps. */
  readonly steps: number;
  /** Mean loss of each tenth of the steps of the last attempt. */
  readonly losses: readonly number[];
  /** Seconds of training in the last attempt. */
  readonly seconds: number;
  /** Its phrase in prompts. */
  readonly phrase: string;
}

/** A published concept's log. */
export interface PublishLog {
  /** Seconds of measuring. */
  readonly seconds: number;
  /** Bytes of the file that a client sends. */
  readonly bytes: number;
  /** Bytes of the concept alone. */
  readonly conceptBytes: number;
}

/** A fused model's log. */
export interface FuseLog {
  /** Names of the concepts, in order. */
  readonly concepts: readonly string[];
  /** Seconds that it took. */
  readonly seconds: number;
  /** Layers fitted by gradient fusion; empty for other ways. */
  readonly layers: readonly FusedLayer[];
  /** Error of each round of IterIS, as a share of the outputs. */
  readonly rounds?: readonly number[];
}

/** How one layer was fitted. */
export interface FusedLayer {
  /** Stage of the fusion: text, keys and values, or spatial. */
  readonly stage: string;
  /** Path of the layer. */
  readonly layer: string;
  /** Rows of features that were fitted. */
  readonly rows: number;
  /** Width of a row. */
  readonly features: number;
  /** Mean squared feature error of W₀. */
  readonly before: number;
  /** The same of the fused weight. */
  readonly after: number;
  /** The same of the averaged weight. */
  readonly average: number;
  /** The ridge of the closed form; null of L-BFGS. */
  readonly ridge: number | null;
}

/** The key of a training run's initial parameters; independent per concept. */
export function conceptKey(seed: number, concept: string): Key {
  return fold(key(seed), "concept", concept);
}

/** The key of a run on the user's pictures: that of `deno task train`. */
export function ownKey(seed: number): Key {
  return key(seed);
}

/** The seed of a training run's noise and order: the same for all methods. */
export function trainSeed(seed: number, concept: string): number {
  return fold(key(seed), "train", concept)[0];
}

/** The key of a picture's noise. */
export function noiseKey([seed, ...purpose]: Noise): Key {
  return fold(key(Number(seed)), "sample", ...purpose);
}
