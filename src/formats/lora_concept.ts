/**
 * The LoRAs people already have, as concepts: so that they can be attached,
 * sampled with and fused like those trained here.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { Concept } from "../customize/concept.ts";
import type { LoraFile } from "./lora.ts";

/** Facts that a LoRA file does not hold. */
export interface LoraConceptOptions {
  /** Name of the concept and of its adapter. */
  readonly name: string;
  /**
   * The words that call the concept in a prompt, `sks dog`: what it was
   * captioned with in training, class word included. Prompts for fusion contain
   * them, and keys and values are fitted at their positions and at the end
   * token.
   *
   * @default the learned tokens, or else the class word
   */
  readonly trigger?: string;
  /**
   * The ordinary word for it.
   *
   * @default ""
   */
  readonly classWord?: string;
}

/**
 * Makes a concept of a LoRA from kohya, diffusers, PEFT or cloneofsimo, with or
 * without learned tokens.
 *
 * @param file What was read; the concept takes over its tensors.
 * @param options Name, trigger words, class word.
 * @returns The concept; its tensors are the caller's.
 * @throws If nothing says how it is called, or a learned token is not among the
 * trigger words.
 *
 * @example
 * ```ts ignore
 * const file = await loadLora("corgi_kohya.safetensors", model);
 * const corgi = loraConcept(file, { name: "corgi", trigger: "sks dog", classWord: "dog" });
 * const run = fuse(model, [corgi, potter], { layers: "all" });
 * ```
 */
export function loraConcept(
  file: Pick<LoraFile, "dialect" | "adapter" | "scales" | "embeddings">,
  options: LoraConceptOptions,
): Concept {
  const { name, trigger = "", classWord = "" } = options;
  const what = `make a concept of the LoRA "${name}"`;
  // Files keep tokens in any order; their numbers are the order in prompts.
  const learned = [...file.embeddings.keys()].sort((a, b) =>
    a.localeCompare(b, "en", { numeric: true })
  );
  const phrase = trigger.trim() || learned.join(" ") || classWord.trim();
  if (phrase === "") {
    throw cannot(what, "trigger words or a class word", "neither");
  }
  const unused = learned.filter((token) => !standsIn(phrase, token));
  if (unused.length > 0) {
    throw cannot(
      what,
      `trigger words with its tokens ${learned.join(", ")}`,
      `"${phrase}" without ${unused.join(", ")}`,
    );
  }
  return {
    name,
    classWord,
    phrase,
    tokens: learned.map((token) => ({
      token,
      vectors: file.embeddings.get(token)!,
    })),
    adapter: { ...file.adapter, name },
    meta: { dialect: file.dialect, scales: file.scales },
  };
}

/**
 * Whether a token stands in a text by itself. Tokens may have spaces (names of
 * A1111's files) and commas behind them, but `cat` does not stand in `cats`.
 */
function standsIn(text: string, token: string): boolean {
  const word = /[\p{L}\p{N}_]/u;
  for (let at = text.indexOf(token); at >= 0;) {
    const before = [...text.slice(0, at)].at(-1) ?? "";
    const [after = ""] = text.slice(at + token.length);
    const [first, last] = [[...token][0], [...token].at(-1)!];
    const joined = (a: string, b: string) => word.test(a) && word.test(b);
    if (!joined(before, first) && !joined(last, after)) return true;
    at = text.indexOf(token, at + 1);
  }
  return false;
}
