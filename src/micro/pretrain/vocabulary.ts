import type { Tokenizer } from "../../models/tokenizer.ts";
import { worldWords } from "../captions.ts";
import { buildTokenizer } from "../tokenizer_build.ts";
import { MAX_TOKENS } from "./recipe.ts";

/** The tokenizer of the embedded world: every word is one token. */
export function tokenizerOfWorld(): Tokenizer {
  return buildTokenizer(worldWords(), MAX_TOKENS);
}
