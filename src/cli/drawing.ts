/**
 * A layout ready to be drawn, picture by picture: model, concepts and condition
 * networks, opened from what a command line names. Workers open it as well.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { loraComposite, loraSwitch } from "../customize/composition.ts";
import {
  type AdapterSampling,
  regionAdapters,
} from "../customize/region_adapters.ts";
import { loadConditionNetworks } from "../diffusion/conditions.ts";
import {
  type Layout,
  layoutPictures,
  modelSize,
  prepareLayout,
  type ResolvedLayout,
  resolveLayout,
  type ResolveOptions,
  type Size,
} from "../diffusion/layout.ts";
import { drawingMemory } from "../diffusion/memory.ts";
import {
  pipeline,
  type PipelineOptions,
  type StepRecord,
  toPixels,
} from "../diffusion/pipeline.ts";
import { parentOf, pathFrom } from "../io/files.ts";
import { readPicture } from "../io/picture.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import { disposeModel, type Model } from "../models/model.ts";
import { type ConceptRequest, openConcepts } from "./concepts.ts";
import { type ModelRequest, openModel } from "./models.ts";
import { firstFrames } from "./options.ts";
import {
  foreignSyntax,
  longPrompts,
  spelledWords,
  uncalled,
} from "./prompts.ts";

/** How several concepts act without being fused. */
export const COMPOSITIONS = ["sum", "region", "switch", "composite"] as const;

/** One of {@linkcode COMPOSITIONS}. */
export type Composition = typeof COMPOSITIONS[number];

/** What is drawn with what; plain data, may be posted to workers. */
export interface DrawingRequest {
  /** The layout, without LoRA tags. */
  readonly layout: Layout;
  /** The layout's file, if it has one; pictures are found beside it. */
  readonly file?: string;
  /** How several concepts act. */
  readonly adapters: Composition;
  /** Pictures drawn at once. */
  readonly batch: number;
  /**
   * How memory of a graphics card is used.
   *
   * @default "high"
   */
  readonly memory?: "high" | "low";
  /**
   * Whether weights are half floats (webgpu only).
   *
   * @default false
   */
  readonly half?: boolean;
  /** The model. */
  readonly model: ModelRequest;
  /** Concepts, tags' included. */
  readonly concepts: readonly ConceptRequest[];
  /** Folders of condition networks by name. */
  readonly networks: Readonly<Record<string, string>>;
}

/** The parts of a step that say how far drawing is. */
export type DrawnStep = Pick<StepRecord, "first" | "count" | "index" | "total">;

/** A finished picture. */
export interface DrawnPicture {
  /** Its number, from 0. */
  readonly number: number;
  /** A PNG file. */
  readonly png: Uint8Array;
}

/** A layout ready to be drawn; owns tensors. */
export interface Drawing {
  /** What a user should know of the prompts. */
  readonly notices: readonly string[];
  /** Bytes of weights, and of the features of a batch at least. */
  readonly bytes: number;
  /**
   * Draws pictures.
   *
   * @param range The first, and the one after the last.
   * @param onStep Called after each step.
   */
  draw(
    range: readonly [first: number, end: number],
    onStep: (step: DrawnStep) => void,
  ): AsyncGenerator<DrawnPicture, void, void>;
  /** Frees everything. */
  dispose(): void;
}

/**
 * How a layout's pictures are read, and what it is called.
 *
 * @param file The layout's file; the command line if there is none.
 */
export function layoutFiles(file?: string): ResolveOptions {
  const name = file ?? "the command line";
  const folder = parentOf(name);
  return {
    name,
    read: (path) => readPicture(pathFrom(folder, path)),
  };
}

/** What a user should know of the prompts before drawing. */
function noticesOf(
  model: Model,
  layout: Layout,
  concepts: readonly Concept[],
): string[] {
  const prompts = [
    layout.prompt,
    layout.negative,
    ...layout.regions.flatMap((
      { prompt, negative = "" },
    ) => [prompt, negative]),
  ];
  return [
    ...longPrompts(model, prompts, layout.syntax),
    ...foreignSyntax(prompts, layout.syntax),
    ...spelledWords(model, prompts),
    ...uncalled(model, prompts, concepts),
  ];
}

/** What of the picture to start from is not seen, if anything. */
function croppedInit(
  { layout: { init }, start }: ResolvedLayout,
  { width, height }: Size,
): string[] {
  if (!init || !start) return [];
  const { picture } = start;
  const off = Math.abs(picture.width * height - picture.height * width);
  // Less than a pixel is rounding.
  if (off < Math.max(width, height)) return [];
  return [
    `${init.file}: cropped from ${picture.width}×${picture.height} to the ` +
    `shape of ${width}×${height}; --size WxH draws another shape`,
  ];
}

/** A model with concepts in it, and what the pipeline needs for them. */
interface Cast {
  readonly model: Model;
  readonly sampling?: AdapterSampling;
  dispose(): void;
}

function castOf(
  { adapters, concepts: asked }: DrawingRequest,
  base: Model,
  concepts: readonly Concept[],
  { layout, regions }: ResolvedLayout,
): Cast {
  const alphas = new Map(
    concepts.map(({ name }, i) => [name, asked[i].alpha ?? 1]),
  );
  const weights = (name: string) => alphas.get(name) ?? 1;
  const { prompt, negative, regional, clipSkip, syntax } = layout;
  const reading = { skipLast: clipSkip - 1, syntax };
  const wrap = (sampling: AdapterSampling): Cast => ({
    model: sampling.model,
    sampling,
    dispose: () => sampling.dispose(),
  });
  if (concepts.length === 0) return { model: base, dispose: () => {} };
  switch (adapters) {
    case "switch":
    case "composite": {
      const compose = adapters === "switch" ? loraSwitch : loraComposite;
      return wrap(compose(base, concepts, {
        prompt,
        negative,
        weights,
        ...reading,
      }));
    }
    case "region": {
      const cast = layout.regions.map((region, i) =>
        region.concepts.map((name) => {
          const found = concepts.find((concept) => concept.name === name);
          if (found) return found;
          throw cannot(
            `read regions.${i}.concepts`,
            concepts.map((concept) => concept.name).join(", "),
            name,
          );
        })
      );
      const idle = concepts.filter((concept) => !cast.flat().includes(concept));
      if (idle.length > 0) {
        throw cannot(
          "sample with --adapters region",
          "a region for each --concept that names it",
          `none for ${idle.map(({ name }) => name).join(", ")}`,
        );
      }
      return wrap(regionAdapters(
        base,
        regions.map((region, i) => ({ ...region, concepts: cast[i] })),
        { ...regional, ...reading, weights },
      ));
    }
    case "sum": {
      const model = attachConcept(base, concepts, { weights });
      return { model, dispose: () => releaseTokens(model, base) };
    }
  }
}

/** Bytes of all weights as they are, and the least features of a batch. */
function bytesOf(model: Model, { layout, batch }: DrawingRequest): number {
  const { width, height } = layout.size ?? modelSize(model);
  const branches = layout.guidance === 1 ? 1 : 2;
  const weights = drawingMemory(model, 0, 0).bytes;
  const features = drawingMemory(model, height, width, branches).bytes -
    weights;
  return tf.memory().numBytes +
    features * Math.min(batch, layoutPictures(layout));
}

/**
 * Opens all that a layout needs. A backend has been started.
 *
 * @param request What is drawn with what.
 * @returns The drawing; dispose it afterwards.
 * @throws If a part is missing, broken, or does not fit the others.
 */
export async function openDrawing(request: DrawingRequest): Promise<Drawing> {
  const { layout, batch, memory, half } = request;
  const base = await openModel(request.model, { half });
  const owned: (() => void)[] = [() => disposeModel(base)];
  const dispose = () => owned.splice(0).reverse().forEach((free) => free());
  try {
    const concepts = await openConcepts(request.concepts, base);
    owned.push(() => concepts.forEach(disposeConcept));
    const { name, read } = layoutFiles(request.file);
    const seen = new Map<string, Pixels>();
    const resolved = await resolveLayout(layout, {
      name,
      read: async (path) => {
        const picture = await read!(path);
        seen.set(path, picture);
        return picture;
      },
      size: modelSize(base),
    });
    const animations = firstFrames(
      [...seen].map(([name, { moving }]) => ({ name, moving })),
    );
    const networks = await loadConditionNetworks(
      request.layout.conditions,
      request.networks,
    );
    owned.push(() =>
      disposeTree(Object.values(networks).map(({ params }) => params))
    );
    const cast = castOf(request, base, concepts, resolved);
    owned.push(() => cast.dispose());
    const { model, sampling } = cast;
    const unet = sampling?.pipeline.unet;
    const prepared = prepareLayout(model, resolved, {
      networks,
      concepts: concepts.map(({ name }) => name),
      pipeline: { batch, memory },
      regions: unet && (() => ({ unet, dispose: () => {} })),
    });
    owned.push(() => prepared.dispose());
    const options: PipelineOptions = {
      ...prepared.options,
      denoise: sampling?.pipeline.denoise,
    };
    return {
      notices: [
        ...noticesOf(model, layout, concepts),
        ...croppedInit(resolved, layout.size ?? modelSize(base)),
        ...animations,
      ],
      bytes: bytesOf(base, request),
      async *draw(range, onStep) {
        for await (const record of pipeline(model, { ...options, range })) {
          if (record.type === "step") {
            const { first, count, index, total } = record;
            onStep({ first, count, index, total });
            continue;
          }
          const pictures = await toPixels(record.images);
          record.images.dispose();
          for (const [i, picture] of pictures.entries()) {
            yield { number: record.first + i, png: encodePng(picture) };
          }
        }
      },
      dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}
