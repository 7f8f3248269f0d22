import { sha256 } from "../core/hash.ts";
import { cannot } from "../core/errors.ts";
import { readText } from "../io/files.ts";
import { fillToken } from "./concepts.ts";
import type { ScenePlace } from "./scenes.ts";

/** The paper's four groups of prompts (Mix-of-Show, appendix), five of each. */
export const PROMPT_GROUPS = [
  "recontextualisation",
  "restylisation",
  "interaction",
  "property modification",
] as const;

/** Name of a group of prompts. */
export type PromptGroup = typeof PROMPT_GROUPS[number];

/** What a prompt asks for besides the concept, for scores and reports. */
export interface PromptFacts {
  /** Background word. */
  readonly background?: string;
  /** Style word. */
  readonly style?: string;
  /** Colour word. */
  readonly color?: string;
  /** Size word. */
  readonly size?: "small" | "big";
  /** Place word. */
  readonly place?: ScenePlace;
  /** Noun of the other object. */
  readonly partner?: string;
  /** The concept's half beside a partner (`A and B` puts A left). */
  readonly side?: "left" | "right";
}

/** One evaluation prompt. */
export interface Prompt {
  /** Its group. */
  readonly group: PromptGroup;
  /** Text with `<TOKEN>` in the concept's place. */
  readonly text: string;
  /** What it asks for. */
  readonly facts: PromptFacts;
}

/** The twenty prompts of one identity. */
export interface ConceptPrompts {
  /** Proper name of the identity. */
  readonly concept: string;
  /** Class word, what the text says on an untouched model. */
  readonly class: string;
  /** Test prompts are never trained or tuned on. */
  readonly split: "test" | "development";
  /** Five of each group, in the order of {@linkcode PROMPT_GROUPS}. */
  readonly prompts: readonly Prompt[];
}

/** SHA-256 of the prompts' canonical JSON: they were fixed before any result. */
export const PROMPTS_SHA256 =
  "7a052dbf38ad688d344c0736e4e80af3da9545e4921739f0976a338693b3ef3b";

/** The committed prompts. */
const PROMPTS_FILE: URL = new URL(
  "../../models/micro/prompts.json",
  import.meta.url,
);

/**
 * The hash by which prompts are fixed: of the JSON without white space, so that
 * formatting does not count.
 *
 * @param prompts Parsed prompts.
 * @returns Lower-case hexadecimal SHA-256.
 */
export function hashPrompts(
  prompts: readonly ConceptPrompts[],
): Promise<string> {
  return sha256(JSON.stringify(prompts));
}

/**
 * Loads the evaluation prompts.
 *
 * @param file Where they are; by default the committed ones.
 * @throws If they are not the prompts that were fixed.
 */
export async function loadPrompts(
  file: URL = PROMPTS_FILE,
): Promise<ConceptPrompts[]> {
  const text = await readText(file);
  const prompts = JSON.parse(text) as ConceptPrompts[];
  const hash = await hashPrompts(prompts);
  if (hash !== PROMPTS_SHA256) {
    throw cannot("load prompts", `prompts of hash ${PROMPTS_SHA256}`, hash);
  }
  return prompts;
}

/**
 * A prompt's text for a model: the class word for the base model, the
 * concept's tokens for a customised one.
 *
 * @param prompt The prompt.
 * @param words What stands for the concept.
 */
export function promptText(prompt: Prompt, words: string): string {
  return fillToken(prompt.text, words);
}

/**
 * Which prompts are used when not all are: one of each group in turn.
 *
 * @param count How many.
 * @param prompts All prompts of a concept.
 * @returns Indices in ascending order.
 * @throws If there are not so many.
 */
export function chosenPrompts(
  count: number,
  prompts: readonly Pick<Prompt, "group">[],
): number[] {
  if (!Number.isInteger(count) || count < 1 || count > prompts.length) {
    throw cannot("choose prompts", `1 to ${prompts.length} of them`, count);
  }
  const groups = PROMPT_GROUPS.map((group) =>
    prompts.flatMap((prompt, i) => prompt.group === group ? [i] : [])
  );
  const order = groups[0].flatMap((_, round) =>
    groups.flatMap((group) => group[round] ?? [])
  );
  return order.slice(0, count).sort((a, b) => a - b);
}
