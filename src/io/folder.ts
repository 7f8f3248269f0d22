/**
 * A model folder in the layout of diffusers: one subfolder per component, with
 * a `config.json` and weights under one of a few names, whole or in shards.
 *
 * @module
 */
import * as z from "zod";
import { cannot, reasonOf } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { exists, isRemote, joinPath, readJson } from "./files.ts";
import {
  openSafetensors,
  type SafetensorsFile,
  type TensorEntry,
} from "./safetensors.ts";

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
 * Where the weights of a component lie: the path of one `.safetensors` file or
 * of the index of its shards.
 *
 * @param folder The model folder.
 * @param component The subfolder (`"unet"`), or `""` for the folder itself.
 * @throws If there are none; the error says what was looked for, and refuses
 * pickle files (`.bin`, `.ckpt`), which can run code when they are loaded.
 */
export async function componentPath(
  folder: string | URL,
  component: string,
  options: ComponentOptions = {},
): Promise<string> {
  const path = joinPath(folder, component);
  const what = `load ${component || "weights"} from ${path}`;
  const present = isRemote(path)
    ? await namesAt(path, options.variant)
    : await namesIn(path, what);
  return joinPath(path, chooseWeights(present, options.variant, what));
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
 * @throws As {@link componentPath}; or if the index and its shards disagree.
 */
export async function componentFile(
  folder: string | URL,
  component: string,
  options: ComponentOptions = {},
): Promise<SafetensorsFile> {
  const path = await componentPath(folder, component, options);
  return path.endsWith(".json")
    ? await openShards(path)
    : await openSafetensors(path);
}

/**
 * Opens sharded weights through their index (`*.safetensors.index.json`) as
 * one file; {@link TensorEntry} offsets are those within each shard.
 *
 * @throws If a shard is missing, or a tensor is not where the index says, or a
 * shard holds one that the index does not name.
 */
async function openShards(index: string): Promise<SafetensorsFile> {
  const what = `read ${index}`;
  const { weight_map: map } = await readJson(index, shardIndex);
  const folder = index.slice(0, Math.max(index.lastIndexOf("/"), 0)) || ".";
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
      const path = joinPath(folder, name);
      if (!await exists(path)) throw cannot(what, `the shard ${name}`, "none");
      shards.set(name, await openSafetensors(path));
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
  folder: string | URL,
  component: string,
  options: ComponentOptions = {},
): Promise<Component> {
  const config = await readJson(
    joinPath(folder, component, "config.json"),
    z.record(z.string(), z.unknown()),
  );
  return { config, file: await componentFile(folder, component, options) };
}
