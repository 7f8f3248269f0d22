/**
 * LoRA files from one dialect to another, and what is in one: without a model,
 * only with the configs of the one it is for.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot, KeysError } from "../core/errors.ts";
import { assertDistinct, pathOf } from "../io/files.ts";
import { openTensors } from "./pickle.ts";
import {
  layersOf,
  LORA_BASES,
  type LoraBase,
  loraBase,
  type LoraBaseName,
} from "./dialects/base.ts";
import type { PeftConfig } from "./dialects/peft_config.ts";
import {
  type Adapter,
  COMPONENTS,
  rankOf,
  type ScaleRule,
} from "../customize/lora.ts";
import {
  dialect,
  type DialectId,
  DIALECTS,
  disposeLora,
  loadLora,
  type LoraFile,
  loraFiles,
  type ReadLoraOptions,
  type ScaleSource,
} from "./lora.ts";
import {
  encodeLora,
  saveLora,
  savePeftFolder,
  type WriteLoraOptions,
} from "./lora_write.ts";

/** Settings of {@linkcode convertLora} and {@linkcode inspectLora}. */
export interface FindLoraOptions {
  /**
   * The model the LoRA is for: its name, or its configs.
   *
   * @default the first of `sd15` and `sd21` that the file fits
   */
  readonly base?: LoraBaseName | LoraBase;
  /**
   * The file's dialect.
   *
   * @default taken from its keys
   */
  readonly from?: DialectId;
  /** PEFT's adapter_config.json, where it does not lie beside the file. */
  readonly config?: PeftConfig;
  /** α of layers for which nothing says one. */
  readonly alpha?: number;
}

/** A LoRA that has been read, and for which model it turned out to be. */
interface Found {
  readonly file: LoraFile;
  readonly base: LoraBase;
  readonly name: LoraBaseName | undefined;
}

/** Reads a LoRA for the first model it fits. */
async function find(path: string, options: FindLoraOptions): Promise<Found> {
  const { base, from, config, alpha } = options;
  const read: ReadLoraOptions = { dialect: from, config, alpha };
  const candidates = base === undefined
    ? Object.keys(LORA_BASES) as LoraBaseName[]
    : [base];
  const errors: Error[] = [];
  for (const candidate of candidates) {
    const named = typeof candidate === "string";
    if (named && !Object.hasOwn(LORA_BASES, candidate)) {
      throw cannot(
        `read ${path}`,
        `a base ${Object.keys(LORA_BASES).join(", ")} or configs`,
        candidate,
      );
    }
    const configs = named ? loraBase(candidate) : candidate;
    try {
      return {
        file: await loadLora(path, configs, read),
        base: configs,
        name: named ? candidate : undefined,
      };
    } catch (error) {
      errors.push(error as Error);
    }
  }
  throw errors[closest(errors)];
}

/** The error of the model that a file was meant for: it has the fewest faults. */
function closest(errors: readonly Error[]): number {
  const faults = (error: Error) =>
    error instanceof KeysError ? error.keys.length : 1;
  return errors.reduce(
    (best, error, i) => faults(error) < faults(errors[best]) ? i : best,
    0,
  );
}

/**
 * Finds which of several models a LoRA is for.
 *
 * @param path A safetensors file, an official `.pth`, a folder of PEFT's.
 * @param candidates Models by what they are called.
 * @returns The first that the file fits.
 * @throws If it fits none: what is wrong with it for the one that it fits best
 * (a {@linkcode KeysError}).
 */
export async function fittingBase(
  path: string,
  candidates: readonly { readonly name: string; readonly base: LoraBase }[],
): Promise<{ readonly name: string; readonly base: LoraBase }> {
  const errors: Error[] = [];
  for (const candidate of candidates) {
    try {
      disposeLora(await loadLora(path, candidate.base));
      return candidate;
    } catch (error) {
      errors.push(error as Error);
    }
  }
  const best = closest(errors);
  const error = errors[best];
  // The same for all: the file itself is broken, or of another kind.
  if (errors.every(({ message }) => message === error.message)) throw error;
  const names = candidates.map(({ name }) => name);
  throw new KeysError(
    `${error.message} (as a LoRA of ${names[best]}, which it fits best of ${
      names.join(", ")
    }; --model says another)`,
    error instanceof KeysError ? error.keys : [],
  );
}

/** The type that all tensors of a file have, or float32. */
async function dtypeOf(path: string): Promise<"F32" | "F16" | "BF16"> {
  const types = new Set<string>();
  for (const part of await loraFiles(path)) {
    const file = await openTensors(part);
    try {
      for (const { dtype } of file.entries.values()) types.add(dtype);
    } finally {
      file.close();
    }
  }
  const [only] = types;
  return types.size === 1 && (only === "F16" || only === "BF16") ? only : "F32";
}

/** Metadata that is still true in another dialect. */
function carried(file: LoraFile): Record<string, string> {
  const own = /^(format|mix_of_show\.(scale_rule|converted_from))$/;
  return Object.fromEntries(
    Object.entries(file.metadata).filter(([key, value]) =>
      !own.test(key) && value !== "<embed>" &&
      !DIALECTS.some((d) => d.structural?.test(key))
    ),
  );
}

/** Settings of {@linkcode convertLora}. */
export interface ConvertLoraOptions extends FindLoraOptions {
  /** The dialect to write. */
  readonly to: DialectId;
  /**
   * Type on disk.
   *
   * @default the file's own
   */
  readonly dtype?: WriteLoraOptions["dtype"];
  /**
   * A second file, which all learned tokens go into instead: `learned_embeds`,
   * or `official` where they have a vector per layer.
   *
   * @default none: then a dialect that cannot hold them is an error
   */
  readonly tokens?: string;
  /**
   * Leave learned tokens out.
   *
   * @default {false}
   */
  readonly withoutTokens?: boolean;
}

/** The result of {@linkcode convertLora}. */
export interface ConvertedLora extends LoraSummary {
  /** The dialect that was written. */
  readonly to: DialectId;
  /** The type on disk. */
  readonly dtype: "F32" | "F16" | "BF16";
  /** What was written. */
  readonly written: readonly string[];
}

/**
 * Writes a LoRA in another dialect; the change of weights stays the same,
 * exactly where scales are powers of two, else within one rounding.
 *
 * @param input A safetensors file, an official `.pth`, a folder of PEFT's.
 * @param output A safetensors file; with `to: "peft"` also a folder, in which
 * scales stay apart from the weights.
 * @param options The dialect, the model, the type on disk.
 * @returns What was in it and what was written.
 * @throws If the file fits no model (one error that lists every key), or the
 * dialect cannot hold what is in it; nothing is written then.
 *
 * @example
 * ```ts ignore
 * await convertLora("cat.safetensors", "cat_kohya.safetensors", { to: "kohya" });
 * ```
 */
export async function convertLora(
  input: string | URL,
  output: string | URL,
  options: ConvertLoraOptions,
): Promise<ConvertedLora> {
  const d = dialect(options.to);
  const [from, to] = [pathOf(input), pathOf(output)];
  await assertDistinct(`convert ${from}`, {
    "the LoRA": to,
    "its tokens": options.tokens,
  });
  const found = await find(from, options);
  const { file, base } = found;
  const made: tf.Tensor[] = [];
  try {
    const dtype = options.dtype ?? await dtypeOf(from);
    const written: string[] = [];
    let embeddings: LoraFile["embeddings"] = options.withoutTokens
      ? new Map()
      : file.embeddings;
    if (d.tokens?.rows === "layers") {
      // Readers of such files want a vector per layer.
      const rows = layersOf(base).crossAttentions;
      embeddings = new Map(
        [...embeddings].map(([token, vectors]) => {
          if (vectors.shape[0] !== 1) return [token, vectors];
          const tiled = tf.tile(vectors, [rows, 1]) as tf.Tensor2D;
          made.push(tiled);
          return [token, tiled];
        }),
      );
    }
    if (options.tokens !== undefined && embeddings.size === 0) {
      throw cannot(
        `write tokens to ${pathOf(options.tokens)}`,
        `learned tokens in ${from}`,
        "none",
      );
    }
    const apart = options.tokens !== undefined;
    // A vector per layer has a place in official files only.
    const tokenDialect = [...embeddings.values()].some((v) => v.shape[0] > 1)
      ? "official"
      : "learned_embeds";
    const tokens = { adapter: without(file.adapter), embeddings };
    // To fail before anything is written.
    if (apart) await encodeLora(tokens, base, tokenDialect, { dtype });
    const content = {
      adapter: file.adapter,
      ...(apart ? {} : { embeddings }),
    };
    const metadata: Record<string, string> = {
      ...carried(file),
      "mix_of_show.converted_from": file.dialect,
    };
    // What is said of tokens is true only where they are.
    if (apart || embeddings.size === 0) delete metadata["mix_of_show.tokens"];
    const folder = d.id === "peft" && !/\.safetensors$/.test(to);
    if (folder) await savePeftFolder(to, content, base, { dtype, metadata });
    else await saveLora(to, content, base, d.id, { dtype, metadata });
    written.push(to);
    if (apart) {
      await saveLora(options.tokens!, tokens, base, tokenDialect, { dtype });
      written.push(options.tokens!);
    }
    return { ...summary(found), to: d.id, dtype, written };
  } finally {
    tf.dispose(made);
    disposeLora(file);
  }
}

/** An adapter without its layers. */
function without(adapter: Adapter): Adapter {
  return { ...adapter, textEncoder: new Map(), unet: new Map() };
}

/** What is in a LoRA file, for people. */
export interface LoraSummary {
  /** The dialect the file is written in. */
  readonly dialect: DialectId;
  /** What writes such files. */
  readonly describe: string;
  /** The model it fits, if it is a known one. */
  readonly base?: LoraBaseName;
  /** Adapted layers. */
  readonly layers: { readonly textEncoder: number; readonly unet: number };
  /** How many of them are convolutions larger than 1×1. */
  readonly convolutions: number;
  /** How many of them are DoRAs. */
  readonly doras: number;
  /** Ranks and how many layers have them, smallest first. */
  readonly ranks: readonly (readonly [rank: number, layers: number])[];
  /** Factors of up·down and how many layers have them, smallest first. */
  readonly factors: readonly (readonly [factor: number, layers: number])[];
  /** How factors follow from α and rank. */
  readonly scaleRule: ScaleRule;
  /** Where α comes from. */
  readonly scales: ScaleSource;
  /** How the file makes its layers: LoRA, LoHa, LoKr, full differences. */
  readonly algorithms: LoraFile["algorithms"];
  /** Learned tokens, and how many vectors each has. */
  readonly tokens: readonly (readonly [token: string, vectors: number])[];
  /** Numbers in the layers. */
  readonly parameters: number;
  /** The file's metadata, as it stands. */
  readonly metadata: Readonly<Record<string, string>>;
}

function counted(values: readonly number[]): [number, number][] {
  const counts = new Map<number, number>();
  for (const v of values) counts.set(v, (counts.get(v) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => a - b);
}

function summary({ file, name }: Found): LoraSummary {
  const { adapter } = file;
  const lows = COMPONENTS.flatMap((c) => [...adapter[c].values()]);
  return {
    dialect: file.dialect,
    describe: dialect(file.dialect).describe,
    ...(name ? { base: name } : {}),
    layers: { textEncoder: adapter.textEncoder.size, unet: adapter.unet.size },
    convolutions:
      lows.filter(({ down }) =>
        down.rank === 4 && (down.shape[0] > 1 || down.shape[1]! > 1)
      ).length,
    doras: lows.filter(({ magnitude }) => magnitude !== undefined).length,
    ranks: counted(lows.map(rankOf)),
    factors: counted(lows.map(({ scale }) => scale)),
    scaleRule: adapter.scaleRule,
    scales: file.scales,
    algorithms: file.algorithms,
    tokens: [...file.embeddings].map(([token, { shape }]) => [token, shape[0]]),
    parameters: lows.reduce((n, { down, up }) => n + down.size + up.size, 0),
    metadata: file.metadata,
  };
}

/**
 * Reads a LoRA and describes its content.
 *
 * @param path A safetensors file, an official `.pth`, a folder of PEFT's.
 * @param options The model it is for, if it is not Stable Diffusion 1.x or 2.x.
 * @throws If the file fits no model: one error that lists every key.
 */
export async function inspectLora(
  path: string | URL,
  options: FindLoraOptions = {},
): Promise<LoraSummary> {
  const found = await find(pathOf(path), options);
  const result = summary(found);
  disposeLora(found.file);
  return result;
}
