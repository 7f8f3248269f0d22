/**
 * Concepts as files: the official ED-LoRA layout with this library's metadata.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Concept } from "../customize/concept.ts";
import { disposeAdapter, rankOf, type ScaleRule } from "../customize/lora.ts";
import type { Model } from "../models/model.ts";
import { type FileSource, sourceName } from "../io/source.ts";
import { readLora } from "./lora.ts";
import { saveLora } from "./lora_write.ts";
import { openTensors } from "./pickle.ts";

/** Keys of a concept's metadata in its file. */
const META = "mix_of_show.";

/**
 * Saves a concept as an official ED-LoRA file (safetensors), atomically. Class
 * word, order of tokens, rank, scale rule and `meta` go into its metadata.
 *
 * @param path The file.
 * @param concept The concept.
 * @param model The model it is for.
 * @param options `dtype` on disk (default F32).
 */
export async function saveConcept(
  path: string,
  concept: Concept,
  model: Model,
  options: { dtype?: "F32" | "F16" | "BF16" } = {},
): Promise<void> {
  const { adapter } = concept;
  const lows = [...adapter.textEncoder.values(), ...adapter.unet.values()];
  const ranks = [...new Set(lows.map(rankOf))];
  await saveLora(
    path,
    {
      adapter,
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
        [`${META}layers`]: String(lows.length),
        [`${META}meta`]: JSON.stringify(concept.meta),
      },
    },
  );
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
      baseName(sourceName(from, "concept"));
    // Files of our own say how many layers they have; others must have all.
    const layers = text("layers");
    const read = await readLora(file, model, {
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
    return {
      name,
      classWord: options.classWord ?? text("class_word") ?? "",
      phrase: text("phrase") ?? order.join(" "),
      tokens: order.map((token) => ({
        token,
        vectors: read.embeddings.get(token)!,
      })),
      adapter: {
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

function baseName(path: string): string {
  return path.replace(/^.*[\\/]/, "").replace(/\.[^.]*$/, "");
}
