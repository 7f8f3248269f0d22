/**
 * Concepts by what users call them: a file, with what the file does not say.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import { loadConcept } from "../formats/concept_file.ts";
import { loraConcept } from "../formats/lora_concept.ts";
import { detectDialect, disposeLora, loadLora } from "../formats/lora.ts";
import { openTensors } from "../formats/pickle.ts";
import { stemOf } from "../io/files.ts";
import type { Model } from "../models/model.ts";
import { optionTable, parsed } from "./options.ts";

/** A concept file and what it does not say. */
export interface ConceptRequest {
  /** The file. */
  readonly path: string;
  /** Name of the concept, if not the file's. */
  readonly name?: string;
  /** Words that call the concept, in a LoRA without learned tokens. */
  readonly trigger?: string;
  /** The ordinary word for it. */
  readonly class?: string;
  /** Strength; 1 by default. */
  readonly alpha?: number;
}

const FIELDS = ["name", "trigger", "class", "alpha"] as const;
const SPLIT = new RegExp(`,(?=(?:${FIELDS.join("|")})=)`);

/**
 * Reads `FILE[,alpha=X][,trigger=TEXT][,class=WORD][,name=NAME]`.
 *
 * @param what The command, for messages.
 * @param text The text.
 * @throws If there is no file, a field is there twice, or α is no number.
 */
export function parseConcept(what: string, text: string): ConceptRequest {
  const [path, ...fields] = text.split(SPLIT);
  const found: Record<string, string> = {};
  for (const field of fields) {
    const at = field.indexOf("=");
    const name = field.slice(0, at);
    const value = field.slice(at + 1);
    if (value === "" || found[name] !== undefined) {
      throw cannot(what, `one value for ${name} in --concept`, text);
    }
    found[name] = value;
  }
  if (path === "") throw cannot(what, "a file in --concept", text);
  const strength = /\.[a-z]+:([-.\d]+)$/i.exec(path)?.[1];
  if (strength !== undefined) {
    throw cannot(what, `--concept FILE,alpha=${strength}`, text);
  }
  const field = /\.(?:safetensors|pth?|ckpt|bin),(\w+=.*)$/i.exec(path)?.[1];
  if (field !== undefined) {
    throw cannot(what, `${FIELDS.join(", ")} after --concept FILE`, field);
  }
  const { alpha, ...rest } = found;
  if (alpha === undefined) return { path, ...rest };
  const number = alpha.trim() === "" ? NaN : Number(alpha);
  if (!Number.isFinite(number)) {
    throw cannot(what, "a number for alpha in --concept", alpha);
  }
  return { path, ...rest, alpha: number };
}

/**
 * Says which fields behind a file are not used.
 *
 * @param request The file and its fields.
 * @param fields Those that the command does not use.
 * @param why Why it does not.
 */
export function unusedFields(
  request: ConceptRequest,
  fields: readonly (typeof FIELDS)[number][],
  why: string,
): string[] {
  return fields.filter((field) => request[field] !== undefined)
    .map((field) => `${request.path}: ${field}= changes nothing, ${why}`);
}

/** The option `--concept`. */
export const CONCEPT_OPTION = optionTable({
  concept: {
    type: parsed(
      "FILE",
      (what, _name, found) => parseConcept(what, found),
      "file",
    ),
    many: true,
    help:
      "a concept, or a LoRA of any dialect that convert knows; settings of " +
      `it follow, with commas
  alpha=X       strength (1)
  trigger=TEXT  words that call the concept, if it has no tokens
  class=WORD    the ordinary word for the concept
  name=NAME     name of the concept (default: the file's)`,
  },
});

/**
 * Loads a concept: an ED-LoRA, or a plain LoRA that trigger words call.
 *
 * @param request The file and what it does not say.
 * @param model The model it is for.
 * @returns The concept; its tensors are the caller's.
 * @throws One error that lists all keys that do not fit.
 */
export async function openConcept(
  request: ConceptRequest,
  model: Model,
): Promise<Concept> {
  const { path, trigger } = request;
  const name = request.name ?? stemOf(path);
  if (await isConceptFile(path)) {
    const concept = await loadConcept(path, model, {
      name: request.name,
      classWord: request.class,
    });
    return trigger ? { ...concept, phrase: trigger } : concept;
  }
  const file = await loadLora(path, model, { name, token: name });
  // To sample with it nobody need say its words; who fuses it is asked for them.
  const nameless = trigger === undefined && request.class === undefined &&
    file.embeddings.size === 0;
  try {
    const concept = loraConcept(file, {
      name,
      trigger: trigger ?? (nameless ? name : undefined),
      classWord: request.class,
    });
    return nameless ? { ...concept, phrase: "" } : concept;
  } catch (error) {
    disposeLora(file);
    throw error;
  }
}

/** Whether a file is a concept of ours, which says all about itself. */
async function isConceptFile(path: string): Promise<boolean> {
  if ((await Deno.stat(path).catch(() => undefined))?.isDirectory) return false;
  using file = await openTensors(path);
  // Converted files keep the metadata, but not the tokens it speaks of.
  return file.metadata["mix_of_show.tokens"] !== undefined &&
    detectDialect(file).id === "official";
}

/**
 * Loads several concepts; if one fails, none is left.
 *
 * @param requests The files.
 * @param model The model they are for.
 * @throws If two have one name, or as {@linkcode openConcept}.
 */
export async function openConcepts(
  requests: readonly ConceptRequest[],
  model: Model,
): Promise<Concept[]> {
  const concepts: Concept[] = [];
  try {
    for (const request of requests) {
      concepts.push(await openConcept(request, model));
    }
    const names = concepts.map(({ name }) => name);
    if (new Set(names).size !== names.length) {
      throw cannot(
        "load concepts",
        "different names (after the file: ,name=NAME)",
        names.join(", "),
      );
    }
    return concepts;
  } catch (error) {
    concepts.forEach(disposeConcept);
    throw error;
  }
}
