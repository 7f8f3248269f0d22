/**
 * Models by what users call them: a folder, a single file, a name on the hub.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import {
  type BackendChoice,
  type BackendName,
  selectBackend,
} from "../core/backend.ts";
import { cannot, listed } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import {
  exists,
  isRemote,
  joinPath,
  pathOf,
  readBytes,
  writeAtomic,
} from "../io/files.ts";
import { CLIP_REPOSITORY, parseHubSpec, resolveModel } from "../io/hub.ts";
import {
  loadNetworks,
  type LoadNetworksOptions,
  loadPart,
  loadSingleFile,
  type Networks,
} from "../formats/ldm.ts";
import type { LoraBaseName } from "../formats/dialects/base.ts";
import { foreignKind } from "../formats/kinds.ts";
import { isModelFolder } from "../formats/load_model.ts";
import { partsIn } from "../formats/ldm_config.ts";
import type { LdmComponent } from "../formats/ldm_names.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { embeddedFiles, embeddedModel } from "../models/embedded.ts";
import { loadModel, type Model, type ModelParts } from "../models/model.ts";
import { assertTextToImage } from "../models/purpose.ts";
import {
  file,
  folder,
  oneOf,
  optionTable,
  type OptionType,
  text,
  type Values,
} from "./options.ts";
import { createProgress, type Progress } from "./progress.ts";
import { VERSION } from "./version.ts";

/**
 * The embedded model's folder; its address where this package is not on a disk,
 * so that only those who ask for it are told that it is not there.
 */
export const EMBEDDED: string = pathOf(embeddedModel).replace(/\/$/, "");

/**
 * The path of a folder whose files are to be listed, which no server does: the
 * embedded model is copied beside the results where this package is on one.
 *
 * @param path A path, or an address of the embedded model.
 */
export async function listable(path: string): Promise<string> {
  if (!isRemote(path) || !path.startsWith(EMBEDDED)) return path;
  const copy = joinPath("out", `model-${VERSION}`);
  for (const file of embeddedFiles) {
    const to = joinPath(copy, file);
    if (await exists(to)) continue;
    await writeAtomic(to, await readBytes(joinPath(EMBEDDED, file)));
  }
  return copy + path.slice(EMBEDDED.length);
}

/** Architectures that have a name: shapes without weights. */
export const KNOWN_BASES: Readonly<Record<LoraBaseName, string>> = {
  sd15: "Stable Diffusion 1.x",
  sd21: "Stable Diffusion 2.x",
};

/** A model with its weights, which an architecture's name does not give. */
const modelWeights: OptionType<string> = {
  ...file,
  read(what, name, found) {
    if (!Object.hasOwn(KNOWN_BASES, found)) return found;
    throw cannot(
      what,
      `${name} with weights: a folder, a file, or org/name on the Hugging Face ` +
        "hub",
      `${found}, which is an architecture (./${found} is a folder)`,
    );
  },
};

/** Options that say which model, and what its file does not tell. */
export const MODEL_OPTIONS = optionTable({
  model: {
    type: modelWeights,
    hint: "MODEL",
    otherwise: "the embedded model",
    help:
      "a diffusers folder, one .safetensors file, or a name on the Hugging " +
      "Face hub, org/name[@revision]",
  },
  variant: {
    type: text,
    hint: "NAME",
    help: "variant of the weights to prefer, such as fp16",
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
  vae: {
    type: file,
    hint: "PATH",
    help: "VAE of another file or folder, such as for checkpoints without " +
      "one",
  },
  unet: {
    type: file,
    hint: "PATH",
    help: "UNet of another file or folder",
  },
  textEncoder: {
    type: file,
    hint: "PATH",
    help: "text encoder of another file or folder",
  },
});

/** Those of {@linkcode MODEL_OPTIONS} that say more than which model. */
export const MODEL_DETAILS = [
  ...["variant", "tokenizer", "prediction"] as const,
  ...["vae", "unet", "textEncoder"] as const,
] as const;

/** Which model, and what its file does not tell. */
export type ModelRequest = Partial<Values<typeof MODEL_OPTIONS>>;

/**
 * What a command's options say of the model, and nothing else: it may be posted
 * to workers.
 *
 * @param values Of {@linkcode MODEL_OPTIONS} and others.
 */
export function modelRequest(values: ModelRequest): ModelRequest {
  return Object.fromEntries(
    Object.keys(MODEL_OPTIONS).map((
      field,
    ) => [field, values[field as keyof ModelRequest]]),
  );
}

/**
 * Starts the backend that is asked for and says which it is.
 *
 * @param choice Of `--backend`.
 * @returns Its name.
 */
export async function startBackend(
  choice: BackendChoice,
): Promise<BackendName> {
  const { name, describe } = await selectBackend(choice);
  console.error(describe);
  return name;
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
  // What a server has is seen when it is opened.
  if (isRemote(spec) || await exists(spec)) return spec;
  const known = "a folder, a .safetensors file, or org/name on the Hugging " +
    "Face hub";
  // A file's ending: no repository is meant.
  if (/\.(safetensors|ckpt|pth?|bin)$/.test(spec)) {
    throw cannot("find the file", known, spec);
  }
  const hub = parseHubSpec(spec);
  if (!hub) throw cannot("find the model", known, spec);
  // Nor where it would lie in a folder that is here; @main says that it is.
  const [folder] = hub.repository.split("/");
  if (spec === hub.repository && await exists(folder)) {
    throw cannot(
      `find ${spec}`,
      `a file or folder in ${folder} (${spec}@main is one of the Hugging Face ` +
        "hub)",
      "none of that name",
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

/** Refuses a folder of something else; of a server nothing is listed. */
async function checkFolder(path: string): Promise<void> {
  if (isRemote(path)) return;
  for (const part of ["unet", "text_encoder", "vae"]) {
    if (await exists(joinPath(path, part))) return;
  }
  const there = (await Array.fromAsync(Deno.readDir(path)))
    .map(({ name }) => name).sort();
  throw cannot(
    `load ${path}`,
    "a model folder, with unet, text_encoder and vae in it",
    there.length > 0 ? listed(there, 5) : "an empty folder",
  );
}

/** Refuses a file without a network before anything is fetched for it. */
async function checkSingleFile(path: string): Promise<void> {
  using file = await openSafetensors(path);
  if (partsIn(file.entries.keys()).size > 0) return;
  throw cannot(
    `load ${path}`,
    "a model",
    foreignKind(file)?.name ??
      "a file without its networks (inspect says what is in it)",
  );
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
  /**
   * Whether weights of layers are kept as half floats (webgpu only).
   *
   * @default {false}
   */
  readonly half?: boolean;
}

/** Networks that the user wants from elsewhere. */
async function partsOf(
  request: ModelRequest,
  half?: boolean,
): Promise<Partial<ModelParts>> {
  const { variant, vae, unet, textEncoder } = request;
  const parts: { -readonly [C in keyof ModelParts]?: ModelParts[C] } = {};
  const part = async <C extends LdmComponent>(c: C, spec: string) =>
    await loadPart(c, await localModel(spec), { variant, half });
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
 * @throws If it is not there, anything in it is missing, truncated or
 * misshapen, or an option does not concern it.
 */
export async function openModel(
  request: ModelRequest,
  options: OpenOptions = {},
): Promise<Model> {
  const { model: name = EMBEDDED, variant, tokenizer, prediction } = request;
  const path = await localModel(name, { variant });
  const what = `load ${path}`;
  const folder = await isModelFolder(path);
  if (folder) {
    for (const [option, value] of Object.entries({ tokenizer, prediction })) {
      if (value === undefined) continue;
      throw cannot(what, `a single file with --${option}`, "a folder");
    }
    await checkFolder(path);
    if (variant) await checkVariant(path, variant);
  } else if (variant) {
    throw cannot(what, "a folder with --variant", "a single file");
  } else await checkSingleFile(path);
  const parts = await partsOf(request, options.half);
  try {
    const model: Model = folder
      ? await loadModel(path, { variant, parts, half: options.half })
      : await loadSingleFile(path, {
        ...singleFileOptions(request, path, parts),
        half: options.half,
        tokenizer: await tokenizerFolder(
          tokenizer ?? `${CLIP_REPOSITORY}@main`,
        ),
      });
    return checked(model, name, options);
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
  const { model: name = EMBEDDED, variant } = request;
  const path = await localModel(name);
  if (variant) {
    throw cannot(`load ${path}`, "a folder with --variant", "a single file");
  }
  const parts = await partsOf(request, options.half);
  try {
    const networks = await loadNetworks(
      path,
      singleFileOptions(request, path, parts),
    );
    return checked(networks, name, options);
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
    predictionType: prediction,
    onNote: (note) => console.error(`${path}: ${note}`),
  };
}

/** Refuses what is no model for text to image, unless that is asked for. */
function checked<M extends ModelParts>(
  model: M,
  name: string,
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
