/**
 * A model from wherever it is: a folder or one file, here, on a server, or in a
 * browser's hands.
 *
 * @module
 */
import { exists, isFolder, isRemote, pathOf } from "../io/files.ts";
import type { ComponentOptions, FolderSource } from "../io/folder.ts";
import type { FileSource } from "../io/source.ts";
import {
  loadModel as loadFolder,
  type Model,
  type ModelParts,
} from "../models/model.ts";
import { loadSingleFile, type LoadSingleFileOptions } from "./ldm.ts";

/** Settings of {@linkcode loadModel}. */
export type LoadModelOptions =
  & ComponentOptions
  & Partial<LoadSingleFileOptions>
  & {
    /** Networks in place of the model's own, which are not read. */
    readonly parts?: Partial<ModelParts>;
  };

/**
 * Whether what a model is loaded from is a folder. A server is not asked: an
 * address that ends in `.safetensors` is a file's.
 *
 * @param from Path, URL, files of a folder, `Blob` or bytes.
 */
export async function isModelFolder(
  from: FileSource | FolderSource,
): Promise<boolean> {
  if (from instanceof Blob || from instanceof Uint8Array) return false;
  if (typeof from !== "string" && !(from instanceof URL)) return true;
  if (/^data:/i.test(String(from))) return false;
  return isRemote(from)
    ? !new URL(from).pathname.endsWith(".safetensors")
    : await isFolder(from) || !await exists(from) &&
        !pathOf(from).endsWith(".safetensors");
}

/**
 * Loads a model, strictly: a folder in diffusers' layout, or a single file of
 * Stable Diffusion 1.x or 2.x (see {@linkcode loadSingleFile}).
 *
 * @param from A path, a `file:` or `http(s):` URL, a folder's files as someone
 * picked them in a page (`<input type="file" webkitdirectory>`), or a single file
 * as a `File`, another `Blob` or bytes; by default the embedded model.
 * @param options `variant` (`"fp16"`) of a folder's weights; `tokenizer` and what
 * else a single file does not tell; `parts`: networks in place of the model's;
 * `half`: weights of layers are kept as half floats (webgpu).
 * @returns The model; a fused model's folder comes with its learned tokens.
 * @throws If a part is missing, truncated, misshapen or holds an unknown key, or
 * a single file comes without a tokenizer.
 *
 * @example
 * ```ts
 * const model = await loadModel(); // the embedded one
 * ```
 */
export async function loadModel(
  from?: FileSource | FolderSource,
  options: LoadModelOptions = {},
): Promise<Model> {
  return from === undefined || await isModelFolder(from)
    ? await loadFolder(from as FolderSource | undefined, options)
    : await loadSingleFile(
      from as FileSource,
      options as LoadSingleFileOptions,
    );
}
