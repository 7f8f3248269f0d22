/**
 * A CLIP for scores: loaded from a transformers folder, it embeds pictures and
 * texts as unit vectors.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import { exists, joinPath, readJson } from "../io/files.ts";
import { openComponent } from "../io/folder.ts";
import type { Pixels } from "../io/png.ts";
import { load } from "../models/checkpoint.ts";
import { type ClipConfig, parseClipConfig } from "../models/config.ts";
import {
  type Clip,
  clipSpec,
  imageEmbedding,
  normalise,
  textEmbedding,
} from "../models/image_encoder.ts";
import { loadTokenizer, type Tokenizer } from "../models/tokenizer.ts";
import { parsePreprocess, type Preprocess, preprocess } from "./preprocess.ts";

/** A CLIP with its tokenizer and preprocessing. */
export interface ClipModel {
  /** Its config. */
  readonly config: ClipConfig;
  /** Its parameters; owned by whoever loaded it. */
  readonly params: Clip;
  /** Its tokenizer. */
  readonly tokenizer: Tokenizer;
  /** Preprocessing of pictures. */
  readonly preprocess: Preprocess;
}

/** A unit vector [projection_dim]. */
export type ClipVector = Float32Array;

/** Settings of {@linkcode loadClip}. */
export interface LoadClipOptions {
  /**
   * Folder of the tokenizer, where the CLIP's own has none.
   *
   * @default the CLIP's folder
   */
  readonly tokenizer?: string | URL;
}

/**
 * Loads a CLIP from a transformers folder (`config.json`, weights,
 * `preprocessor_config.json`, `vocab.json`, `merges.txt`), strictly.
 *
 * @param folder The folder.
 * @param options Where the tokenizer is.
 * @throws If a file is missing, truncated, misshapen or holds an unknown key.
 *
 * @example
 * ```ts ignore
 * const clip = await loadClip("models/micro/clip_b");
 * const [cat] = await embedTexts(clip, ["a photo of a cat"]);
 * ```
 */
export async function loadClip(
  folder: string | URL,
  options: LoadClipOptions = {},
): Promise<ClipModel> {
  const tokenizer = await loadTokenizer(options.tokenizer ?? folder);
  const settings = joinPath(folder, "preprocessor_config.json");
  const { config: json, file } = await openComponent(folder, "");
  try {
    const config = parseClipConfig(json);
    const size = config.vision_config.image_size;
    // Without the file only the tower's input size is known.
    const how = parsePreprocess(
      await exists(settings)
        ? await readJson(settings)
        : { size, crop_size: size },
    );
    const params = await load<Clip>(clipSpec(config), file, { what: "CLIP" });
    return { config, params, tokenizer, preprocess: how };
  } finally {
    file.close();
  }
}

/**
 * Disposes the parameters of a CLIP.
 *
 * @param clip The CLIP.
 */
export function disposeClip(clip: ClipModel): void {
  disposeTree(clip.params);
}

/** Pictures or texts per batch. */
const BATCH = 32;

async function inBatches<T>(
  items: readonly T[],
  embed: (items: readonly T[]) => tf.Tensor2D,
): Promise<ClipVector[]> {
  const rows: ClipVector[] = [];
  for (let from = 0; from < items.length; from += BATCH) {
    const batch = items.slice(from, from + BATCH);
    const result = tf.tidy(() => normalise(embed(batch)));
    const values = await result.data() as Float32Array;
    const width = result.shape[1];
    result.dispose();
    for (let i = 0; i < batch.length; i++) {
      rows.push(values.slice(i * width, (i + 1) * width));
    }
  }
  return rows;
}

/**
 * Embeds pictures.
 *
 * @param clip The CLIP.
 * @param images Pictures of any size that its preprocessing accepts.
 * @returns One unit vector per picture.
 */
export async function embedImages(
  clip: ClipModel,
  images: readonly Pixels[],
): Promise<ClipVector[]> {
  return await inBatches(images, (batch) => {
    const size = clip.config.vision_config.image_size;
    const values = new Float32Array(batch.length * size * size * 3);
    batch.forEach((image, i) => {
      const ready = preprocess(image, clip.preprocess);
      if (ready.width !== size || ready.height !== size) {
        throw cannot(
          "embed a picture",
          `${size}×${size} pixels after preprocessing`,
          `${ready.width}×${ready.height}`,
        );
      }
      values.set(ready.values, i * size * size * 3);
    });
    const pixels = tf.tensor4d(values, [batch.length, size, size, 3]);
    return imageEmbedding(clip.params, clip.config, pixels);
  });
}

/**
 * Embeds texts, cut off at the tokenizer's maximum length.
 *
 * @param clip The CLIP.
 * @param texts The texts.
 * @returns One unit vector per text.
 */
export async function embedTexts(
  clip: ClipModel,
  texts: readonly string[],
): Promise<ClipVector[]> {
  return await inBatches(texts, (batch) => {
    const maxLength = Math.min(
      clip.tokenizer.modelMaxLength,
      clip.config.text_config.max_position_embeddings,
    );
    const ids = batch.map((text) =>
      clip.tokenizer.encode(text, { maxLength }).ids
    );
    return textEmbedding(clip.params, clip.config, ids);
  });
}
