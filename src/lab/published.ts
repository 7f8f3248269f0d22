/**
 * What a client publishes in place of its pictures: the concept (ΔWᵢ and tokens)
 * and the statistics of its layers' inputs (Gᵢ), in one safetensors file. Such
 * files and the base model are all that fusion needs (Mix-of-Show §3.3,
 * "center-node concept fusion").
 *
 * A file reveals the concept itself, which is its purpose. For text layers,
 * keys and values it contains input rows, from which the prompts can be
 * reconstructed. For spatial layers it reveals the principal directions of the
 * activations during sampling, which an attacker can try to invert. It contains
 * no training pictures, but nothing prevents inversion. Noise hides single
 * rows; the experiment `federated` measures what it costs.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Key } from "../core/random.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { type Component, COMPONENTS } from "../customize/lora.ts";
import { BESIDE, encodeConcept, loadConcept } from "../formats/concept_file.ts";
import type { ConceptStatistics } from "../fusion/features.ts";
import { fuse, type FuseOptions, type FuseRecord } from "../fusion/gradient.ts";
import { fedAvgWeights, mergeConcepts } from "../fusion/mergers.ts";
import {
  decodeStatistics,
  encodeStatistics,
  noisyStatistics,
  type Stats,
} from "../fusion/statistics.ts";
import {
  openSafetensors,
  type RawTensor,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { Model } from "../models/model.ts";

/** A client's contribution; it owns the concept's tensors. */
export interface Published {
  /** ΔWᵢ and tokens. */
  readonly concept: Concept;
  /** Gᵢ of every layer that the adapter changes. */
  readonly statistics: ConceptStatistics;
  /** Pictures that the client trained on, FedAvg's weight. */
  readonly pictures: number;
}

/** How a contribution is written. */
export interface PublishOptions {
  /**
   * Type of the statistics on disk; F32 halves the size.
   *
   * @default "F64"
   */
  readonly dtype?: "F64" | "F32";
  /** Noise on the statistics (see {@linkcode noisyStatistics}). @default none */
  readonly noise?: { readonly scale: number; readonly key: Key };
}

/** Key of the header's part about statistics. */
const HEADER = "mix_of_show.published";

/**
 * Writes a contribution, atomically. The file is a concept file as well: other
 * tools read the adapter and the tokens in it.
 *
 * @param path The file.
 * @param base The base model.
 * @param published Concept, statistics, number of pictures.
 * @param options Type of the statistics, noise.
 * @throws If a layer of the adapter has no statistics, or the number of pictures
 * is not positive.
 *
 * @example
 * ```ts
 * const statistics = await finish(conceptStatistics(base, fox));
 * await publish("fox.safetensors", base, { concept: fox, statistics, pictures: 6 });
 * ```
 */
export async function publish(
  path: string,
  base: Model,
  { concept, statistics, pictures }: Published,
  options: PublishOptions = {},
): Promise<void> {
  const what = `publish "${concept.name}"`;
  if (!(Number.isInteger(pictures) && pictures >= 1)) {
    throw cannot(what, "at least one picture", pictures);
  }
  const measured = new Map(
    COMPONENTS.flatMap((component) =>
      [...statistics[component]].map(([layer, stats]) =>
        [`${component}.${layer}`, stats] as const
      )
    ),
  );
  if (measured.size === 0) throw cannot(what, "statistics", "none");
  const { tensors, metadata } = await encodeConcept(concept, base);
  const { dtype = "F64", noise } = options;
  const encoded = encodeStatistics(
    noise ? noisyStatistics(measured, noise) : measured,
    dtype,
  );
  await writeSafetensors(
    path,
    [
      ...tensors,
      ...encoded.tensors.map(([name, raw]): [string, RawTensor] => [
        BESIDE + name,
        raw,
      ]),
    ],
    {
      ...metadata,
      [HEADER]: JSON.stringify({
        ...encoded.metadata,
        pictures,
        noise: noise?.scale ?? 0,
      }),
    },
  );
}

/**
 * Reads a contribution.
 *
 * @param path The file.
 * @param base The base model that it is for.
 * @throws If it does not fit the model, or is a concept without statistics.
 */
export async function readPublished(
  path: string,
  base: Model,
): Promise<Published> {
  const concept = await loadConcept(path, base);
  try {
    const file = await openSafetensors(path);
    try {
      const header = file.metadata[HEADER];
      if (header === undefined) {
        throw cannot(
          `read ${path}`,
          "a concept with statistics",
          "a concept only",
        );
      }
      const { pictures, ...about } = JSON.parse(header);
      const all = await decodeStatistics(
        path,
        [...file.entries.keys()].filter((name) => name.startsWith(BESIDE))
          .map((name) => name.slice(BESIDE.length)),
        (name) => file.read(BESIDE + name),
        about,
      );
      const of = (component: Component): Map<string, Stats> =>
        new Map(
          [...all].flatMap(([name, stats]) =>
            name.startsWith(`${component}.`)
              ? [[name.slice(component.length + 1), stats] as const]
              : []
          ),
        );
      return {
        concept,
        statistics: { textEncoder: of("textEncoder"), unet: of("unet") },
        pictures,
      };
    } finally {
      file.close();
    }
  } catch (error) {
    disposeConcept(concept);
    throw error;
  }
}

/**
 * Fuses contributions by gradient fusion, from what the files hold alone: nothing
 * is sampled, no picture is needed.
 *
 * @param base The base model; not changed.
 * @param clients Their contributions.
 * @param options Options of {@linkcode fuse}.
 * @returns As {@linkcode fuse}.
 */
export function fusePublished(
  base: Model,
  clients: readonly Published[],
  options: Omit<FuseOptions, "statistics"> = {},
): AsyncGenerator<FuseRecord, Model> {
  return fuse(base, clients.map(({ concept }) => concept), {
    ...options,
    statistics: clients.map(({ statistics }) => statistics),
  });
}

/**
 * Federated averaging (McMahan et al. 2017), the baseline: W₀ + Σ nᵢ/n ΔWᵢ with
 * nᵢ the pictures of each client.
 *
 * @param base The base model; not changed.
 * @param clients Their contributions; statistics are not used.
 * @returns As {@linkcode mergeConcepts}.
 */
export function averagePublished(
  base: Model,
  clients: readonly Published[],
): Promise<Model> {
  return mergeConcepts(base, clients.map(({ concept }) => concept), {
    method: "task_arithmetic",
    weights: fedAvgWeights(clients.map(({ pictures }) => pictures)),
  });
}
