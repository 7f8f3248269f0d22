/**
 * A model folder in the layout of diffusers: one subfolder per component, with
 * a `config.json` and weights under one of a few names, whole or in shards.
 *
 * @module
 */
import * as z from "zod";
import { cannot, reasonOf } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { exists, isRemote, joinPath, pathOf, readJson } from "./files.ts";
import {
  openSafetensors,
  type SafetensorsFile,
  type TensorEntry,
} from "./safetensors.ts";

/**
 * A folder: its path, a `file:` or `http(s):` URL, or its files as someone picked
 * them in a page (`<input type="file" webkitdirectory>`).
 */
export type FolderSource = string | URL | readonly File[];

/** Paths of picked files, without the folder that was picked. */
const paths = ({ webkitRelativePath: path, name }: File): string =>
  path ? path.slice(path.indexOf("/") + 1) : name;

const picked = (folder: readonly File[], path: string): File | undefined =>
  folder.find((file) => paths(file) === path);

const isPath = (folder: FolderSource): folder is string | URL =>
  typeof folder === "string" || folder instanceof URL;

const joined = (names: readonly string[]): string =>
  names.filter((name) => name !== "").join("/");

/**
 * What to call a folder, or what is below it, in messages.
 *
 * @param folder The folder.
 * @param names Names below it.
 */
export function placeName(folder: FolderSource, ...names: string[]): string {
  if (isPath(folder)) return joinPath(pathOf(folder), ...names);
  const [first] = folder;
  const root = first?.webkitRelativePath?.split("/")[0] || "the picked files";
  return joinPath(root, ...names);
}

/**
 * Whether a folder has a file.
 *
 * @param folder The folder.
 * @param names The file's path below it.
 */
export async function hasFile(
  folder: FolderSource,
  ...names: string[]
): Promise<boolean> {
  return isPath(folder)
    ? await exists(joinPath(folder, ...names))
    : picked(folder, joined(names)) !== undefined;
}

/**
 * A file of a folder.
 *
 * @param folder The folder.
 * @param names The file's path below it.
 * @throws If it is not among picked files; a path is not looked at.
 */
export function fileOf(
  folder: FolderSource,
  ...names: string[]
): string | File {
  if (isPath(folder)) return joinPath(folder, ...names);
  const path = joined(names);
  const found = picked(folder, path);
  if (found) return found;
  throw cannot(`read ${placeName(folder, path)}`, "it among them", "none");
}

/** How to look for a component's weights. */
export interface ComponentOptions {
  /**
   * The variant to prefer (`"fp16"`: `model.fp16.safetensors`).
   *
   * @default none: full names first, then the fp16 variant
   */
  variant?: string;
}

/** A component of a model folder: its configuration and its open weights. */
export interface Component {
  /** The content of `config.json`. */
  config: Record<string, unknown>;
  /** The weights, whole or merged from shards; close it after use. */
  file: SafetensorsFile;
}

const STEMS = ["diffusion_pytorch_model", "model"];
const PICKLES = /\.(bin|ckpt|pt|pth|pkl)$/;

const shardIndex = z.object({
  weight_map: z.record(z.string(), z.string()),
});

/** The names looked for, in order of preference. */
function candidates(variant: string | undefined): string[] {
  const variants = variant ? [variant, ""] : ["", "fp16"];
  return variants.flatMap((v) =>
    STEMS.flatMap((stem) => {
      const dotted = v && `.${v}`;
      return [
        `${stem}${dotted}.safetensors`,
        `${stem}.safetensors.index${dotted}.json`,
      ];
    })
  );
}

/**
 * Which of the files of a component hold the weights to load: one
 * `.safetensors` file or the index of its shards.
 *
 * @param names Names of the files in the component's folder.
 * @param variant The variant to prefer (`"fp16"`).
 * @param what What is being done, for the message.
 * @throws If there are none; the error says what was looked for, and refuses
 * pickle files (`.bin`, `.ckpt`), which can run code when they are loaded.
 */
export function chooseWeights(
  names: readonly string[],
  variant: string | undefined,
  what: string,
): string {
  const wanted = candidates(variant);
  const found = wanted.find((name) => names.includes(name));
  if (found) return found;
  const pickles = names.filter((name) => PICKLES.test(name));
  const looked = `one of ${wanted.join(", ")}`;
  if (pickles.length > 0) {
    throw cannot(
      what,
      looked,
      `only ${pickles.join(", ")}: pickle files can run any code when they ` +
        "are loaded and are refused; convert them to safetensors first",
    );
  }
  throw cannot(what, looked, names.join(", ") || "an empty folder");
}

/**
 * The name of a component's weights: one `.safetensors` file or the index of its
 * shards.
 *
 * @param folder The model folder.
 * @param component The subfolder (`"unet"`), or `""` for the folder itself.
 * @param options The variant to prefer.
 * @throws If there are none; the error says what was looked for, and refuses
 * pickle files (`.bin`, `.ckpt`), which can run code when they are loaded.
 */
export async function weightsName(
  folder: FolderSource,
  component: string,
  { variant }: ComponentOptions,
): Promise<string> {
  const place = placeName(folder, component);
  const what = `load ${component || "weights"} from ${place}`;
  const present = !isPath(folder)
    ? folder.map(paths).flatMap((path) => below(component, path))
    : isRemote(folder)
    ? await namesAt(place, variant)
    : await namesIn(place, what);
  return chooseWeights(present, variant, what);
}

/** The name of a file that lies right in a folder. */
function below(folder: string, path: string): string[] {
  const start = folder && `${folder}/`;
  const name = path.slice(start.length);
  return path.startsWith(start) && !name.includes("/") ? [name] : [];
}

/** The first name looked for that a server has: it lists no folders. */
async function namesAt(
  path: string,
  variant: string | undefined,
): Promise<string[]> {
  for (const name of candidates(variant)) {
    if (await exists(joinPath(path, name))) return [name];
  }
  return [];
}

async function namesIn(path: string, what: string): Promise<string[]> {
  const names: string[] = [];
  try {
    names.push(...(await machine.files.list(path)).map(({ name }) => name));
  } catch (error) {
    throw cannot(what, "a folder that can be read", reasonOf(error));
  }
  return names.sort();
}

/**
 * Opens the weights of a component; shards appear as one file.
 *
 * @param folder The model folder.
 * @param component The subfolder (`"unet"`), or `""` for the folder itself.
 * @throws If there are none, or pickle files only, which can run code when they
 * are loaded; or if an index and its shards disagree.
 */
export async function componentFile(
  folder: FolderSource,
  component: string,
  options: ComponentOptions = {},
): Promise<SafetensorsFile> {
  const name = await weightsName(folder, component, options);
  return name.endsWith(".json")
    ? await openShards(folder, component, name)
    : await openSafetensors(fileOf(folder, component, name));
}

/**
 * Opens sharded weights through their index (`*.safetensors.index.json`) as
 * one file; {@link TensorEntry} offsets are those within each shard.
 *
 * @throws If a shard is missing, or a tensor is not where the index says, or a
 * shard holds one that the index does not name.
 */
async function openShards(
  folder: FolderSource,
  component: string,
  index: string,
): Promise<SafetensorsFile> {
  const what = `read ${placeName(folder, component, index)}`;
  const { weight_map: map } = await readJson(
    fileOf(folder, component, index),
    shardIndex,
  );
  const shards = new Map<string, SafetensorsFile>();
  const closeAll = () => shards.forEach((shard) => shard.close());
  const entries = new Map<string, TensorEntry>();
  const metadata: Record<string, string> = {};
  const homes = new Map<string, SafetensorsFile>();
  try {
    for (const name of [...new Set(Object.values(map))].sort()) {
      // An index comes from elsewhere: it may name files beside it, no others.
      if (!/^[^/\\]+\.safetensors$/.test(name)) {
        throw cannot(what, "shards beside the index", JSON.stringify(name));
      }
      if (!await hasFile(folder, component, name)) {
        throw cannot(what, `the shard ${name}`, "none");
      }
      shards.set(name, await openSafetensors(fileOf(folder, component, name)));
    }
    for (const [name, shard] of shards) {
      Object.assign(metadata, shard.metadata);
      for (const [key, entry] of shard.entries) {
        if (map[key] !== name) {
          throw cannot(
            what,
            `${JSON.stringify(key)} in ${map[key] ?? "no shard"}`,
            `it in ${name}`,
          );
        }
        entries.set(key, entry);
        homes.set(key, shard);
      }
    }
    const missing = Object.keys(map).filter((key) => !entries.has(key));
    if (missing.length > 0) {
      throw cannot(what, `${missing.join(", ")} in the shards`, "none");
    }
  } catch (error) {
    closeAll();
    throw error;
  }
  return {
    metadata,
    entries,
    async read(name, scratch) {
      const home = homes.get(name);
      if (!home) {
        throw cannot(what, "a tensor of the index", JSON.stringify(name));
      }
      return await home.read(name, scratch);
    },
    close: closeAll,
    [Symbol.dispose]: closeAll,
  };
}

/**
 * Opens a component: its `config.json` and its weights.
 *
 * @param folder The model folder.
 * @param component The subfolder (`"unet"`, `"vae"`, `"text_encoder"`), or `""`.
 * @throws As {@link componentFile}; or if `config.json` is missing or broken.
 *
 * @example
 * ```ts
 * const { config, file } = await openComponent("models/micro", "unet");
 * ```
 */
export async function openComponent(
  folder: FolderSource,
  component: string,
  options: ComponentOptions = {},
): Promise<Component> {
  const config = await readJson(
    fileOf(folder, component, "config.json"),
    z.record(z.string(), z.unknown()),
  );
  return { config, file: await componentFile(folder, component, options) };
}
