/**
 * What the page and its worker say to each other: plain data.
 *
 * @module
 */
import type { LayoutInput } from "@mix-of-show/mix-of-show";

/** How several concepts act in one picture. */
export type Combine = "boxes" | "weight" | "gradient";

/** A model that is ready. */
export interface ModelInfo {
  /** What to call it. */
  readonly name: string;
  /** Where it runs, for people. */
  readonly backend: string;
  /** Its own size of picture, pixels. */
  readonly size: { readonly width: number; readonly height: number };
  /** What sides of a picture are multiples of. */
  readonly factor: number;
  /** Whether a sketch can steer it. */
  readonly sketch: boolean;
}

/** A concept that is ready. */
export interface ConceptInfo {
  /** Its name. */
  readonly name: string;
  /** How it stands in prompts. */
  readonly phrase: string;
  /** The ordinary word for it; may be empty. */
  readonly classWord: string;
  /** Whether it has learned tokens; without, its phrase may be changed. */
  readonly tokens: boolean;
}

/** A picture to draw. */
export interface DrawRequest {
  /** What `sample --layout` takes. */
  readonly layout: LayoutInput;
  /** How concepts act. */
  readonly combine: Combine;
  /** Strengths of concepts by name; 1 where none is given. */
  readonly strengths: Readonly<Record<string, number>>;
}

/** A picture, and how it came about. */
export interface Drawn {
  /** A PNG with its settings inside. */
  readonly png: Uint8Array<ArrayBuffer>;
  /** Seconds it took, fusion included. */
  readonly seconds: number;
  /** Names of the concepts in it. */
  readonly concepts: readonly string[];
}

/** What a PNG or a layout file says; the studio's own part may be missing. */
export interface Found {
  /** The layout, checked. */
  readonly layout: LayoutInput;
  /** How concepts acted. */
  readonly combine?: Combine;
  /** How strongly. */
  readonly strengths?: Readonly<Record<string, number>>;
}

/** How far some work is. */
export interface Progress {
  /** What is being done. */
  readonly what: string;
  /** Parts done. */
  readonly done: number;
  /** Parts in all; 0 where nobody knows. */
  readonly total: number;
}

/** What the worker does, by name. */
export interface Jobs {
  /** Loads the embedded model, or a file with a tokenizer from an address. */
  model(job: {
    readonly file?: Blob;
    readonly tokenizer?: string;
    /** What computes, as the page's address asks for it. @default "auto" */
    readonly backend?: string;
  }): ModelInfo;
  /** Loads a concept or LoRA for the model. */
  concept(job: { readonly file: Blob | string }): ConceptInfo;
  /** Changes how a LoRA without tokens is called. */
  call(job: { readonly name: string; readonly phrase: string }): ConceptInfo;
  /** Lets a concept go. */
  forget(job: { readonly name: string }): void;
  /** Draws. */
  draw(job: DrawRequest): Drawn;
  /** Reads a picture's settings or a layout file. */
  read(job: { readonly file: Blob }): Found;
}

/** Name of a job. */
export type JobName = keyof Jobs;

/** To the worker: a job, or the wish to stop the one that runs. */
export type Asked =
  | { readonly stop: true }
  | { readonly id: number; readonly name: JobName; readonly job: unknown };

/** From the worker: progress, a result, an error, or that a job was stopped. */
export type Answered =
  & { readonly id: number }
  & (
    | { readonly progress: Progress }
    | { readonly result: unknown }
    | { readonly error: string }
    | { readonly stopped: true }
  );
