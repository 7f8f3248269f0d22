/**
 * An evaluator embeds pictures as unit vectors.
 *
 * @module
 */
import type { Pixels } from "../io/png.ts";
import {
  type ClipVector,
  disposeClip,
  embedImages,
  loadClip,
  type LoadClipOptions,
} from "./clip.ts";

/** Embeds pictures. */
export interface Evaluator extends Disposable {
  /** Its name in reports. */
  readonly name: string;
  /** One unit vector per picture. */
  embed(images: readonly Pixels[]): Promise<ClipVector[]>;
}

/**
 * Loads a CLIP's vision tower as an evaluator.
 *
 * @param folder A transformers folder.
 * @param options Where the tokenizer is.
 * @returns The evaluator, named after the folder; the caller disposes it.
 * @throws If a file is missing, truncated, misshapen or holds an unknown key.
 *
 * @example
 * ```ts ignore
 * using clip = await loadClipEvaluator("models/micro/clip_b");
 * const rows = await clip.embed(pictures);
 * ```
 */
export async function loadClipEvaluator(
  folder: string,
  options: LoadClipOptions = {},
): Promise<Evaluator> {
  const clip = await loadClip(folder, options);
  return {
    name: folder,
    embed: (images) => embedImages(clip, images),
    [Symbol.dispose]: () => disposeClip(clip),
  };
}
