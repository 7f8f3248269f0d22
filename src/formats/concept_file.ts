/**
 * Concepts as files: the official ED-LoRA layout with this library's metadata.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import {
  type Concept,
  emptyAdapter,
  type Weights,
} from "../customize/concept.ts";
import {
  type Adapter,
  type Component,
  COMPONENTS,
  disposeAdapter,
  rankOf,
  type ScaleRule,
} from "../customize/lora.ts";
import { initSpectral } from "../customize/spectral.ts";
import { stemOf } from "../io/files.ts";
import {
  encodeFloat,
  type RawTensor,
  type SafetensorsFile,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { Model } from "../models/model.ts";
import { type FileSource, type FileTarget, sourceName } from "../io/source.ts";
import { PREFIX } from "./dialects/dialect.ts";
import { MAGNITUDE } from "./dialects/named.ts";
import { readLora } from "./lora.ts";
import { type EncodedLora, encodeLora } from "./lora_write.ts";
import { openTensors } from "./pickle.ts";

/** Keys of a concept's metadata in its file. */
const META = "mix_of_show.";

/** How a concept is written. */
export interface SaveConceptOptions {
  /**
   * Type on disk.
   *
   * @default "F32"
   */
  readonly dtype?: "F32" | "F16" | "BF16";
}

/**
 * Saves a concept as an official ED-LoRA file (safetensors), atomically. Class
 * word, order of tokens, rank, scale rule and `meta` go into its metadata.
 *
 * Of fine-tuned networks every parameter is written, of shifted singular values
 * the shifts only: the base model has the rest.
 *
 * @param path The file: path, URL or stream.
 * @param concept The concept.
 * @param model The model it is for.
 * @param options `dtype` on disk (default F32).
 */
export async function saveConcept(
  path: FileTarget,
  concept: Concept,
  model: Model,
  options: SaveConceptOptions = {},
): Promise<void> {
  const { tensors, metadata } = await encodeConcept(concept, model, options);
  await writeSafetensors(path, tensors, metadata);
}

/**
 * A concept as named tensors and metadata.
 *
 * @param concept The concept.
 * @param model The model it is for.
 * @param options `dtype` on disk (default F32).
 */
export async function encodeConcept(
  concept: Concept,
  model: Model,
  options: SaveConceptOptions = {},
): Promise<EncodedLora> {
  const { adapter } = concept;
  const lows = [...adapter.textEncoder.values(), ...adapter.unet.values()];
  const ranks = [...new Set(lows.map(rankOf))];
  const { dtype = "F32" } = options;
  // Of singular values, the shifts: the base's own vectors go with them.
  const spectral = lows.some(({ spectrum }) => spectrum);
  const plain = withoutMagnitudes(adapter);
  const { tensors, metadata } = await encodeLora(
    {
      adapter: spectral ? emptyAdapter(adapter.name) : plain,
      embeddings: new Map(concept.tokens.map((t) => [t.token, t.vectors])),
    },
    model,
    "official",
    {
      ...options,
      metadata: {
        [`${META}name`]: concept.name,
        [`${META}class_word`]: concept.classWord,
        [`${META}phrase`]: concept.phrase,
        [`${META}tokens`]: JSON.stringify(concept.tokens.map((t) => t.token)),
        // The scale is in the weights: α alone remains.
        [`${META}scale_rule`]: "alpha",
        [`${META}rank`]: ranks.join(),
        [`${META}layers`]: String(spectral ? 0 : lows.length),
        [`${META}meta`]: JSON.stringify(concept.meta),
      },
    },
  );
  for (const component of COMPONENTS) {
    for (const [path, low] of adapter[component]) {
      if (low.magnitude) {
        tensors.push([
          `${PREFIX[component]}.${path}${MAGNITUDE}`,
          await rawOf(low.magnitude, dtype),
        ]);
      }
      if (!low.spectrum) continue;
      const { shift } = low.spectrum;
      tensors.push([
        `${SHIFTS}${component}.${path}`,
        await rawOf(shift, dtype),
      ]);
    }
    for (const [path, tensor] of concept.weights?.[component] ?? []) {
      tensors.push([
        `${WEIGHTS}${component}.${path}`,
        await rawOf(tensor, dtype),
      ]);
    }
  }
  return { tensors, metadata: { format: "pt", ...metadata } };
}

/** An adapter as the official layout has it; DoRA's magnitudes go beside it. */
function withoutMagnitudes(adapter: Adapter): Adapter {
  const of = (component: Component) =>
    new Map(
      [...adapter[component]].map(([path, low]) => {
        const { magnitude: _, ...rest } = low;
        if (low.dora) {
          throw cannot(
            `save "${adapter.name}"`,
            "a DoRA of outputs at weight 1",
            `another at ${path}`,
          );
        }
        return [path, rest];
      }),
    );
  return { ...adapter, textEncoder: of("textEncoder"), unet: of("unet") };
}

/** Names of shifts of singular values, and of whole parameters, in a file. */
const SHIFTS = "spectral_shifts.", WEIGHTS = "weights.";

/** Beginning of names in a file that are not the concept's (see `lab/published`). */
export const BESIDE = "statistics.";

async function rawOf(
  tensor: tf.Tensor,
  dtype: "F32" | "F16" | "BF16",
): Promise<RawTensor> {
  const data = encodeFloat(await tensor.data() as Float32Array, dtype);
  return { dtype, shape: [...tensor.shape], data };
}

/** Whole parameters of a file, or nothing if it has none. */
async function readWeights(
  file: SafetensorsFile,
  what: string,
): Promise<Weights | undefined> {
  const found = { textEncoder: new Map(), unet: new Map() };
  for (const [name, { shape }] of file.entries) {
    if (!name.startsWith(WEIGHTS)) continue;
    const [, component, ...path] = name.split(".");
    if (!Object.hasOwn(found, component)) {
      throw cannot(`read ${what}`, "weights of textEncoder or unet", name);
    }
    found[component as Component].set(
      path.join("."),
      tf.tensor(toFloat32(await file.read(name)), shape),
    );
  }
  return found.textEncoder.size + found.unet.size > 0 ? found : undefined;
}

/** Shifts of singular values by layer; nothing if the file has none. */
async function readShifts(
  file: SafetensorsFile,
): Promise<Map<string, Float32Array> | undefined> {
  const shifts = new Map<string, Float32Array>();
  for (const name of file.entries.keys()) {
    if (!name.startsWith(SHIFTS)) continue;
    shifts.set(name.slice(SHIFTS.length), toFloat32(await file.read(name)));
  }
  return shifts.size > 0 ? shifts : undefined;
}

/**
 * Loads a concept from an official ED-LoRA file (safetensors, or `.pth`),
 * strictly.
 *
 * @param from The file: path, URL, `Blob` or bytes.
 * @param model The model it is for.
 * @param options Name and class word, where the file does not say.
 * @returns The concept; its tensors are the caller's.
 * @throws One error that lists all missing, unexpected and misshapen keys; if
 * the file has no tokens or its metadata is broken.
 *
 * @example
 * ```ts
 * const potter = await loadConcept("potter.safetensors", model);
 * ```
 */
export async function loadConcept(
  from: FileSource,
  model: Model,
  options: { name?: string; classWord?: string } = {},
): Promise<Concept> {
  const what = sourceName(from, "a concept");
  const file = await openTensors(from);
  try {
    const { metadata } = file;
    const text = (key: string) => metadata[META + key];
    const name = options.name ?? text("name") ??
      stemOf(sourceName(from, "concept"));
    // Files of our own say how many layers they have; others must have all.
    const layers = text("layers");
    const own = (key: string) =>
      ![SHIFTS, WEIGHTS, BESIDE].some((start) => key.startsWith(start));
    const rest = {
      ...file,
      entries: new Map([...file.entries].filter(([key]) => own(key))),
    };
    const read = await readLora(rest, model, {
      what,
      name,
      dialect: "official",
      ...(layers === undefined ? {} : { complete: false }),
    });
    const found = read.adapter.textEncoder.size + read.adapter.unet.size;
    const order: readonly string[] = text("tokens")
      ? JSON.parse(text("tokens"))
      : [...read.embeddings.keys()].sort((a, b) =>
        a.localeCompare(b, "en", { numeric: true })
      );
    const problem = layers !== undefined && Number(layers) !== found
      ? [`${layers} layers`, `${found}`]
      : order.length === 0
      ? ["learned tokens", "none"]
      : order.length !== read.embeddings.size ||
          order.some((token) => !read.embeddings.has(token))
      ? [`the tokens ${order.join()}`, [...read.embeddings.keys()].join()]
      : undefined;
    if (problem) {
      disposeAdapter(read.adapter);
      for (const vectors of read.embeddings.values()) vectors.dispose();
      throw cannot(`read ${what}`, problem[0], problem[1]);
    }
    const shifts = await readShifts(file);
    const weights = await readWeights(file, what);
    return {
      name,
      classWord: options.classWord ?? text("class_word") ?? "",
      phrase: text("phrase") ?? order.join(" "),
      tokens: order.map((token) => ({
        token,
        vectors: read.embeddings.get(token)!,
      })),
      ...(weights && { weights }),
      adapter: shifts ? await initSpectral(model, { name, shifts }) : {
        ...read.adapter,
        scaleRule: (text("scale_rule") as ScaleRule | undefined) ??
          read.adapter.scaleRule,
      },
      meta: text("meta") ? JSON.parse(text("meta")) : {},
    };
  } finally {
    file.close();
  }
}
