/**
 * Models by what users call them: a folder, a single file, a name on the hub.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { exists, joinPath, pathOf } from "../io/files.ts";
import { CLIP_REPOSITORY, parseHubSpec, resolveModel } from "../io/hub.ts";
import {
  type LdmPrediction,
  loadSingleFile,
  type LoadSingleFileOptions,
} from "../formats/ldm.ts";
import { loadModel, type Model } from "../models/model.ts";
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
}

/** Options that {@linkcode modelOf} reads. */
export const MODEL_OPTIONS: readonly string[] = [
  "model",
  "variant",
  "tokenizer",
  "prediction",
];

/** What `--help` says about them. */
export const MODEL_HELP =
  `  --model MODEL        a diffusers folder, one .safetensors file, or a name on
                       the Hugging Face hub, org/name[@revision]
                       (default: the embedded model)
  --variant NAME       weights to prefer where there are several, such as fp16
  --tokenizer FOLDER   CLIP's tokenizer for a single file (default: that of
                       ${CLIP_REPOSITORY} on the hub)
  --prediction NAME    epsilon or v_prediction, where a single file does not say`;

/**
 * Reads the options of {@linkcode MODEL_OPTIONS}.
 *
 * @param options The command line.
 */
export function modelOf(options: Options): ModelRequest {
  const prediction = options.oneOf("prediction", ["epsilon", "v_prediction"]);
  const variant = options.text("variant");
  const tokenizer = options.text("tokenizer");
  return {
    model: options.text("model") ?? EMBEDDED,
    ...(variant === undefined ? {} : { variant }),
    ...(tokenizer === undefined ? {} : { tokenizer }),
    ...(prediction === undefined ? {} : { prediction }),
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

/**
 * Loads a model by what the user calls it.
 *
 * @param request Which one.
 * @returns The model; its tensors are the caller's.
 * @throws If it is not there, or anything in it is missing, truncated or
 * misshapen.
 */
export async function openModel(request: ModelRequest): Promise<Model> {
  const { variant } = request;
  const path = await localModel(request.model, variant ? { variant } : {});
  if ((await Deno.stat(path)).isDirectory) {
    return await loadModel(path, variant ? { variant } : {});
  }
  const options: LoadSingleFileOptions = {
    tokenizer: await tokenizerFolder(request.tokenizer ?? CLIP_REPOSITORY),
    ...(request.prediction ? { predictionType: request.prediction } : {}),
  };
  return await loadSingleFile(path, options);
}
