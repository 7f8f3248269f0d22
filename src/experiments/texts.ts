/**
 * Texts of an experiment, checked before work starts.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import { joinPath } from "../io/files.ts";
import type { Lab } from "../lab/lab.ts";
import { loadTokenizer, type Tokenizer } from "../models/tokenizer.ts";

/**
 * Refuses texts that a text encoder would truncate: prompts of layouts by the
 * base model's tokenizer, captions by the evaluation CLIP's.
 *
 * @param lab The lab; without a CLIP captions are not looked at.
 * @param layouts The layouts; each learned word is one token.
 * @param captions The captions.
 * @throws If one is too long; the error has it and its tokens.
 */
export async function refuseCutTexts(
  { folders: { model, clip } }: Pick<Lab, "folders">,
  layouts: readonly LayoutInput[],
  captions: readonly string[],
): Promise<void> {
  const refuse = (tokenizer: Tokenizer, texts: readonly string[]) => {
    for (const text of new Set(texts)) {
      const { truncated } = tokenizer.encode(text);
      if (truncated === 0) continue;
      const most = tokenizer.modelMaxLength;
      throw cannot(
        "run the experiment",
        `prompts of at most ${most} tokens, start and end included`,
        `${most + truncated}: "${text}"`,
      );
    }
  };
  const prompts = layouts.flatMap(({ prompt, negative = "", regions = [] }) => [
    ...[prompt, negative],
    ...regions.flatMap((own) => [own.prompt, own.negative ?? ""]),
  ]);
  const words = prompts.flatMap((text) => text.match(/<[^<>\s]+>/g) ?? []);
  const plain = await loadTokenizer(joinPath(model, "tokenizer"));
  refuse(plain.withAddedTokens([...new Set(words)]), prompts);
  if (clip !== undefined) refuse(await loadTokenizer(clip), captions);
}
