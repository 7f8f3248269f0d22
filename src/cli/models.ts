/**
 * Models by what users call them: a folder, a single file, a name on the hub.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import { exists, joinPath, pathOf } from "../io/files.ts";
import { CLIP_REPOSITORY, parseHubSpec, resolveModel } from "../io/hub.ts";
import {
  loadNetworks,
  type LoadNetworksOptions,
  loadPart,
  loadSingleFile,
  type Networks,
} from "../formats/ldm.ts";
import type { LdmComponent, LdmPrediction } from "../formats/ldm_names.ts";
import { loadModel, type Model, type ModelParts } from "../models/model.ts";
import { assertTextToImage } from "../models/purpose.ts";
import { backendOf, type Options } from "./command.ts";
import { createProgress, type Progress } from "./progress.ts";

/**
 * The embedded model's folder; its address where this package is not on a disk,
 * so that only those who ask for it are told that it is not there.
 */
export const EMBEDDED: string = (() => {
  const url = new URL("../../models/micro", import.meta.url);
  return url.protocol === "file:" ? pathOf(url) : url.href;
})();

/** Which model, and what its file does not tell. */
export interface ModelRequest {
  /** Folder, `.safetensors` file, or `org/name[@revision]` on the hub. */
  readonly model: string;
  /** Which weights to prefer where there are several, such as `fp16`. */
  readonly variant?: string;
  /** Folder (or name on the hub) of a single file's tokenizer. */
  readonly tokenizer?: string;
  /** What the UNet of a single file predicts. */
  readonly prediction?: LdmPrediction;
  /** A file or folder whose VAE is taken instead. */
  readonly vae?: string;
  /** A file or folder whose UNet is taken instead. */
  readonly unet?: string;
  /** A file or folder whose text encoder is taken instead. */
  readonly textEncoder?: string;
}

/** Options that {@linkcode modelOf} reads. */
export const MODEL_OPTIONS: readonly string[] = [
  "model",
  "variant",
  "tokenizer",
  "prediction",
  "vae",
  "unet",
  "text-encoder",
];

/** What `--help` says about them. */
export const MODEL_HELP =
  `  --model MODEL        a diffusers folder, one .safetensors file, or a name on
                       the Hugging Face hub, org/name[@revision]
                       (default: the embedded model)
  --variant NAME       weights to prefer where there are several, such as fp16
  --tokenizer FOLDER   CLIP's tokenizer for a single file (default: that of
                       ${CLIP_REPOSITORY} on the hub)
  --prediction NAME    epsilon or v_prediction, where a single file does not say
  --vae PATH           another file's or folder's VAE instead of the model's, as
                       for checkpoints without one
  --unet PATH          another's UNet
  --text-encoder PATH  another's text encoder`;

/**
 * Reads the options of {@linkcode MODEL_OPTIONS}.
 *
 * @param options The command line.
 */
export function modelOf(options: Options): ModelRequest {
  const prediction = options.oneOf("prediction", ["epsilon", "v_prediction"]);
  const variant = options.text("variant");
  const tokenizer = options.text("tokenizer");
  const vae = options.text("vae");
  const unet = options.text("unet");
  const textEncoder = options.text("text-encoder");
  return {
    model: options.text("model") ?? EMBEDDED,
    ...(variant === undefined ? {} : { variant }),
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...(prediction === undefined ? {} : { prediction }),
    ...(vae === undefined ? {} : { vae }),
    ...(unet === undefined ? {} : { unet }),
    ...(textEncoder === undefined ? {} : { textEncoder }),
  };
}

/**
 * Starts the backend that is asked for and says which it is.
 *
 * @param options The command line.
 */
export function backendStarter(options: Options): () => Promise<void> {
  const choice = backendOf(options);
  return async () => console.error((await selectBackend(choice)).describe);
}

/**
 * Keeps tensors in plain memory, for commands that only move numbers: no limit
 * but the machine's, and nothing to start.
 */
export async function hostBackend(): Promise<void> {
  // Else tfjs advises on the console to install another package.
  tf.env().set("PROD", true);
  await selectBackend("cpu");
}

/**
 * Checks that files and folders are there, before anything is loaded.
 *
 * @param what What is to be done, for messages.
 * @param paths The paths; what is left out is not checked.
 * @throws If one is not there.
 */
export async function mustExist(
  what: string,
  ...paths: readonly (string | undefined)[]
): Promise<void> {
  for (const path of paths) {
    if (path === undefined || await exists(path)) continue;
    throw cannot(what, "a file or folder that exists", path);
  }
}

/**
 * Finds a model's files: a local path as it is, else a name on the hub, whose
 * files are downloaded where they are not in the cache yet.
 *
 * @param spec Path or name.
 * @param options Variant; only the tokenizer.
 */
export async function localModel(
  spec: string,
  options: { variant?: string; only?: "model" | "tokenizer" } = {},
): Promise<string> {
  if (await exists(spec)) return spec;
  if (!parseHubSpec(spec)) {
    throw cannot(
      "find the model",
      "a folder, a .safetensors file, or org/name on the Hugging Face hub",
      spec,
    );
  }
  const progress: Progress = createProgress();
  let bytes = 0;
  const loaded = new Map<string, number>();
  const shown = (n: number) => Math.round(n / 2 ** 20);
  const path = await resolveModel(spec, {
    ...options,
    onEvent(event) {
      switch (event.type) {
        case "resolved":
          bytes = event.bytes;
          progress.line(
            `${event.repository}: ${event.files} files, ${shown(bytes)} MiB`,
          );
          break;
        case "retry":
          progress.line(`${event.path}: ${event.reason}; trying again`);
          break;
        case "progress":
          loaded.set(event.path, event.loaded);
          if (event.cached) break;
          progress.update(
            "downloading",
            shown([...loaded.values()].reduce((a, b) => a + b, 0)),
            shown(bytes),
            "MiB",
          );
      }
    },
  });
  progress.finish();
  return path;
}

/** The folder of a tokenizer: as given, or that of a model around it. */
async function tokenizerFolder(spec: string): Promise<string> {
  const folder = await localModel(spec, { only: "tokenizer" });
  const inside = joinPath(folder, "tokenizer");
  return await exists(inside) ? inside : folder;
}

/** How a model is opened. */
export interface OpenOptions {
  /**
   * Whether models for other things than text to image, such as inpainting, are
   * opened as well.
   *
   * @default {false}
   */
  readonly anyPurpose?: boolean;
}

/** Networks that the user wants from elsewhere. */
async function partsOf(request: ModelRequest): Promise<Partial<ModelParts>> {
  const { variant, vae, unet, textEncoder } = request;
  const parts: { -readonly [C in keyof ModelParts]?: ModelParts[C] } = {};
  const part = async <C extends LdmComponent>(c: C, spec: string) =>
    await loadPart(c, await localModel(spec), variant ? { variant } : {});
  try {
    if (textEncoder !== undefined) {
      parts.textEncoder = await part("textEncoder", textEncoder);
    }
    if (unet !== undefined) parts.unet = await part("unet", unet);
    if (vae !== undefined) parts.autoencoder = await part("autoencoder", vae);
    return parts;
  } catch (error) {
    disposeTree(Object.values(parts).map(({ params }) => params));
    throw error;
  }
}

/**
 * Loads a model by what the user calls it.
 *
 * @param request Which one.
 * @param options Which kinds of models are of use.
 * @returns The model; its tensors are the caller's.
 * @throws If it is not there, or anything in it is missing, truncated or
 * misshapen.
 */
export async function openModel(
  request: ModelRequest,
  options: OpenOptions = {},
): Promise<Model> {
  const { variant, tokenizer = CLIP_REPOSITORY } = request;
  const path = await localModel(request.model, variant ? { variant } : {});
  const parts = await partsOf(request);
  try {
    const folder = (await Deno.stat(path)).isDirectory;
    const model: Model = folder
      ? await loadModel(path, { ...(variant ? { variant } : {}), parts })
      : await loadSingleFile(path, {
        ...singleFileOptions(request, path, parts),
        tokenizer: await tokenizerFolder(tokenizer),
      });
    return checked(model, request, options);
  } catch (error) {
    disposeTree(Object.values(parts).map(({ params }) => params));
    throw error;
  }
}

/**
 * Loads the networks of a single file, for work that needs no tokenizer; see
 * {@linkcode openModel}.
 *
 * @param request Which file.
 * @param options Which kinds of models are of use.
 */
export async function openNetworks(
  request: ModelRequest,
  options: OpenOptions = {},
): Promise<Networks> {
  const path = await localModel(request.model);
  const parts = await partsOf(request);
  try {
    const networks = await loadNetworks(
      path,
      singleFileOptions(request, path, parts),
    );
    return checked(networks, request, options);
  } catch (error) {
    disposeTree(Object.values(parts).map(({ params }) => params));
    throw error;
  }
}

function singleFileOptions(
  { prediction }: ModelRequest,
  path: string,
  parts: Partial<ModelParts>,
): LoadNetworksOptions {
  return {
    parts,
    ...(prediction ? { predictionType: prediction } : {}),
    onNote: (note) => console.error(`${path}: ${note}`),
  };
}

/** Refuses what is no model for text to image, unless that is asked for. */
function checked<M extends ModelParts>(
  model: M,
  { model: name }: ModelRequest,
  { anyPurpose }: OpenOptions,
): M {
  if (anyPurpose) return model;
  try {
    assertTextToImage(model, `use ${name}`);
    return model;
  } catch (error) {
    disposeTree([
      model.textEncoder.params,
      model.unet.params,
      model.autoencoder.params,
    ]);
    throw error;
  }
}
