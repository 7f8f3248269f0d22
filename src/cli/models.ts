/**
 * Models by what users call them: a folder, a single file, a name on the hub.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { exists, joinPath, pathOf } from "../io/files.ts";
import { CLIP_REPOSITORY, parseHubSpec, resolveModel } from "../io/hub.ts";
import { loadSingleFile } from "../formats/ldm.ts";
import { loadModel, type Model } from "../models/model.ts";
import {
  file,
  folder,
  oneOf,
  optionTable,
  text,
  type Values,
} from "./options.ts";
import { createProgress, type Progress } from "./progress.ts";

/**
 * The embedded model's folder; its address where this package is not on a disk,
 * so that only those who ask for it are told that it is not there.
 */
export const EMBEDDED: string = (() => {
  const url = new URL("../../models/micro", import.meta.url);
  return url.protocol === "file:" ? pathOf(url) : url.href;
})();

/** Options that say which model, and what its file does not tell. */
export const MODEL_OPTIONS = optionTable({
  model: {
    type: file,
    hint: "MODEL",
    otherwise: "the embedded model",
    help:
      "a diffusers folder, one .safetensors file, or a name on the Hugging " +
      "Face hub, org/name[@revision]",
  },
  variant: {
    type: text,
    hint: "NAME",
    help: "weights to prefer where there are several, such as fp16",
  },
  tokenizer: {
    type: folder,
    otherwise: `that of ${CLIP_REPOSITORY} on the hub`,
    help: "CLIP's tokenizer for a single file",
  },
  prediction: {
    type: oneOf(["epsilon", "v_prediction"]),
    help: "epsilon or v_prediction, where a single file does not say",
  },
});

/** Which model, and what its file does not tell. */
export type ModelRequest = Partial<Values<typeof MODEL_OPTIONS>>;

/**
 * Starts the backend that is asked for and says which it is.
 *
 * @param choice Of `--backend`.
 */
export async function startBackend(choice: BackendChoice): Promise<void> {
  console.error((await selectBackend(choice)).describe);
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

/** Refuses a variant that no part of a model folder has. */
async function checkVariant(path: string, variant: string): Promise<void> {
  for (const part of ["unet", "text_encoder", "vae"]) {
    const files = await Array.fromAsync(Deno.readDir(joinPath(path, part)))
      .catch(() => []);
    if (files.some(({ name }) => name.includes(`.${variant}.`))) return;
  }
  throw cannot(
    `load ${path}`,
    `files of --variant ${variant}, such as model.${variant}.safetensors`,
    "none in unet, text_encoder and vae",
  );
}

/**
 * Loads a model by what the user calls it.
 *
 * @param request Which one.
 * @returns The model; its tensors are the caller's.
 * @throws If it is not there, anything in it is missing, truncated or
 * misshapen, or an option does not concern it.
 */
export async function openModel(request: ModelRequest): Promise<Model> {
  const { model = EMBEDDED, variant, tokenizer, prediction } = request;
  const path = await localModel(model, { variant });
  const what = `load ${path}`;
  if ((await Deno.stat(path)).isDirectory) {
    for (const [name, value] of Object.entries({ tokenizer, prediction })) {
      if (value === undefined) continue;
      throw cannot(what, `a single file with --${name}`, "a folder");
    }
    if (variant) await checkVariant(path, variant);
    return await loadModel(path, { variant });
  }
  if (variant) throw cannot(what, "a folder with --variant", "a single file");
  return await loadSingleFile(path, {
    tokenizer: await tokenizerFolder(tokenizer ?? CLIP_REPOSITORY),
    predictionType: prediction,
  });
}
