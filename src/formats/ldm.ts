/**
 * Stable Diffusion in one `.safetensors` file, named as in the original latent
 * diffusion code: what Civitai offers and other tools load. Also files of one of
 * its networks alone.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { cannot, keyFaults, listed } from "../core/errors.ts";
import { joined } from "../core/joined.ts";
import { forgetHostCopy } from "../core/device.ts";
import { disposeTree, leaves } from "../core/tree.ts";
import {
  exists,
  isFolder,
  joinPath,
  parentOf,
  pythonJson,
  readJson,
} from "../io/files.ts";
import {
  type FileSource,
  type FileTarget,
  sourceName,
  targetName,
} from "../io/source.ts";
import { componentFile } from "../io/folder.ts";
import {
  encodeFloat,
  type LazyTensor,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { Spec } from "../nn/spec.ts";
import { autoencoderSpec } from "../models/autoencoder.ts";
import {
  diskShape,
  load,
  oldAutoencoderNames,
  sameDiskShape,
  type TensorSource,
  toDisk,
} from "../models/checkpoint.ts";
import {
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../models/config.ts";
import type { Model, ModelParts } from "../models/model.ts";
import { CLIP_EXTRAS, textEncoderSpec } from "../models/text_encoder.ts";
import { loadTokenizer, type Tokenizer } from "../models/tokenizer.ts";
import { unetSpec } from "../models/unet.ts";
import { LORA_BASES, SD_AUTOENCODER } from "./dialects/base.ts";
import {
  describeLdm,
  type LdmHeader,
  type LdmOverrides,
  MARKERS,
  METADATA,
  partsIn,
  withPrefixes,
} from "./ldm_config.ts";
import { unscaled } from "./scaled_fp8.ts";
import {
  LDM_PREFIX,
  type LdmComponent,
  type LdmConfigs,
  ldmEntries,
  type LdmEntry,
  type LdmLayout,
  type LdmPrediction,
} from "./ldm_names.ts";

/** Where a parameter lies in a file of other names: some rows of a tensor. */
export interface Derivation {
  /** Name in the file. */
  readonly key: string;
  /** First index along the first axis. */
  readonly begin: number;
  /** Shape of the part. */
  readonly shape: readonly number[];
}

/**
 * A source in which tensors have other names, or are rows of larger tensors.
 *
 * @param source The file.
 * @param derivations What each name stands for.
 */
function derivedSource(
  source: TensorSource,
  derivations: ReadonlyMap<string, Derivation>,
): TensorSource {
  const entries = new Map<string, TensorEntry>();
  for (const [name, { key, shape }] of derivations) {
    entries.set(name, { ...source.entries.get(key)!, shape: [...shape] });
  }
  let last: { key: string; raw: RawTensor } | undefined;
  return {
    entries,
    async read(name, scratch) {
      const { key, begin, shape } = derivations.get(name)!;
      const rows = source.entries.get(key)!.shape[0] ?? 1;
      if (begin === 0 && (shape[0] ?? 1) === rows) {
        return { ...await source.read(key, scratch), shape: [...shape] };
      }
      // Parts of one tensor are asked for one after another.
      const raw = last?.key === key ? last.raw : await source.read(key);
      last = { key, raw };
      const bytes = raw.data.length / rows;
      return {
        dtype: raw.dtype,
        shape: [...shape],
        data: raw.data.subarray(begin * bytes, (begin + shape[0]) * bytes),
      };
    },
  };
}

/** A key that may stand in a single file and is not read, and why. */
export interface LdmIgnored {
  /** The keys. */
  readonly keys: RegExp;
  /** Why they are not read. */
  readonly why: string;
  /** Whether most files have them, so that nobody need be told. */
  readonly usual?: true;
}

/** What a single file may hold beside the model. */
const LDM_IGNORED: readonly LdmIgnored[] = [
  { keys: /^model_ema\./, why: "running averages kept for training" },
  {
    keys: new RegExp(
      "^(betas|alphas_cumprod(_prev)?|sqrt_alphas_cumprod|" +
        "sqrt_one_minus_alphas_cumprod|log_one_minus_alphas_cumprod|" +
        "sqrt_recip(m1)?_alphas_cumprod|posterior_variance|" +
        "posterior_log_variance_clipped|posterior_mean_coef[12]|" +
        "lvlb_weights|logvar|scale_factor)$",
    ),
    why: "the noise schedule, which follows from the scheduler's config",
    usual: true,
  },
  {
    keys: /^first_stage_model\.(loss|model_ema)\./,
    why: "discriminator and averages of the autoencoder's training",
  },
  {
    keys:
      /^cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids$/,
    why: "the numbers 0, 1, 2, …",
    usual: true,
  },
  {
    keys:
      /^cond_stage_model\.((model|transformer)\.)?(text_projection(\.weight|\.bias)?|logit_scale|attn_mask)$/,
    why: "CLIP's head, which Stable Diffusion does not use",
  },
  {
    keys:
      /^cond_stage_model\.((model|transformer)\.)?(visual|vision_model|visual_projection)\./,
    why: "CLIP's image encoder",
  },
];

const MARKER_KEYS: ReadonlySet<string> = new Set(Object.values(MARKERS));

const LAST_LAYER = /^cond_stage_model\.model\.transformer\.resblocks\.(\d+)\./;

/**
 * Keys of a single file that are no part of the model and that few files have:
 * what another tool has put beside it.
 *
 * @param keys Names of the tensors.
 */
export function ldmExtras(keys: Iterable<string>): string[] {
  const prefixes = Object.values(LDM_PREFIX);
  return [...keys].filter((key) => {
    if (MARKER_KEYS.has(key)) return false;
    const known = LDM_IGNORED.find((ignored) => ignored.keys.test(key));
    return known ? !known.usual : !prefixes.some((p) => key.startsWith(p));
  });
}

/**
 * Names by their beginnings, with how many there are of each.
 *
 * @param keys Names of tensors.
 *
 * @example
 * ```ts
 * byBeginning(["model_ema.a", "model_ema.b", "c"]); // "model_ema (2), c"
 * ```
 */
export function byBeginning(keys: readonly string[]): string {
  const counts = new Map<string, number>();
  for (const key of keys) {
    const start = /^lora_/.test(key) ? key.split("_", 2).join("_") : key
        .startsWith("cond_stage_model.")
      ? key
      : key.split(".")[0];
    counts.set(start, (counts.get(start) ?? 0) + 1);
  }
  const parts = [...counts].map(([start, n]) =>
    n > 1 ? `${start} (${n})` : start
  );
  return listed(parts);
}

/** Where the parameters of each network lie in a file. */
type Matches = ReadonlyMap<LdmComponent, ReadonlyMap<string, Derivation>>;

/**
 * Matches networks of a file with what the configs say. Every key of theirs is
 * accounted for; what is no network's is let be.
 */
function matchKeys(
  file: LdmHeader,
  configs: LdmConfigs,
  layout: LdmLayout,
  wanted: ReadonlySet<LdmComponent>,
  what: string,
): Matches {
  const missing: string[] = [];
  const misshapen: string[] = [];
  const used = new Set<string>();
  const found = new Map<LdmComponent, Map<string, Derivation>>();
  for (const component of wanted) found.set(component, new Map());
  for (const entry of ldmEntries(configs, layout)) {
    const { names, shape, component, parts } = entry;
    if (!wanted.has(component)) continue;
    const key = names.find((name) => file.entries.has(name));
    if (key === undefined) {
      missing.push(names[0]);
      continue;
    }
    used.add(key);
    const got = file.entries.get(key)!.shape;
    if (!sameDiskShape(shape, got)) {
      misshapen.push(`${key} (expected [${shape}], got [${got}])`);
      continue;
    }
    let begin = 0;
    for (const { path, param } of parts) {
      const part = parts.length === 1
        ? got
        : diskShape(param.kind, param.shape);
      found.get(component)!.set(path, { key, begin, shape: part });
      begin += part[0] ?? 1;
    }
  }
  const layers = configs.textEncoder.num_hidden_layers;
  const prefixes = [...wanted].map((component) => LDM_PREFIX[component]);
  const unexpected = [...file.entries.keys()].filter((key) => {
    if (used.has(key) || !prefixes.some((p) => key.startsWith(p))) return false;
    if (LDM_IGNORED.some(({ keys }) => keys.test(key))) return false;
    // Layers after the one that is read.
    const layer = layout === "sd2" ? key.match(LAST_LAYER)?.[1] : undefined;
    return layer === undefined || Number(layer) < layers;
  });
  const faults = keyFaults(what, { missing, unexpected, misshapen });
  if (faults) throw faults;
  return found;
}

/** What is to know of each network: its folder, its config, its parameters. */
const PARTS: {
  readonly [C in LdmComponent]: {
    readonly name: string;
    readonly option: string;
    readonly folder: string;
    readonly parse: (json: unknown) => ModelParts[C]["config"];
    readonly spec: (
      config: ModelParts[C]["config"],
    ) => Spec<ModelParts[C]["params"]>;
    readonly load?: {
      readonly aliases?: (path: string) => readonly string[];
      readonly ignore?: RegExp;
    };
  };
} = {
  textEncoder: {
    name: "a text encoder",
    option: "--text-encoder",
    folder: "text_encoder",
    parse: parseTextEncoderConfig,
    spec: textEncoderSpec,
    load: { ignore: CLIP_EXTRAS },
  },
  unet: {
    name: "a UNet",
    option: "--unet",
    folder: "unet",
    parse: parseUNetConfig,
    spec: unetSpec,
  },
  autoencoder: {
    name: "a VAE",
    option: "--vae",
    folder: "vae",
    parse: parseAutoencoderConfig,
    spec: autoencoderSpec,
    load: { aliases: oldAutoencoderNames },
  },
};

/** The networks of a model, in the order in which they are read. */
const COMPONENTS: readonly LdmComponent[] = [
  "textEncoder",
  "unet",
  "autoencoder",
];

/**
 * Names the networks that a file has: `a UNet and a VAE`.
 *
 * @param found The networks.
 */
function partNames(found: Iterable<LdmComponent>): string {
  return [...found].map((component) => PARTS[component].name).join(" and ");
}

/** Reads a network out of an open file under the names of whole checkpoints. */
async function readPart<C extends LdmComponent>(
  component: C,
  file: SafetensorsFile,
  configs: LdmConfigs,
  matches: Matches,
  what: string,
  half?: boolean,
): Promise<ModelParts[C]> {
  const { spec } = PARTS[component];
  const config = configs[component] as ModelParts[C]["config"];
  const source = derivedSource(file, matches.get(component)!);
  const params = await load(spec(config), source, { what, half });
  return { config, params } as ModelParts[C];
}

/**
 * The config of a network in diffusers' names: that beside the file, else that
 * of Stable Diffusion 1.x or 2.x.
 */
async function configOf(
  component: LdmComponent,
  beside: string | undefined,
  file: SafetensorsFile,
): Promise<unknown> {
  if (beside && await exists(beside)) return await readJson(beside);
  if (component === "autoencoder") {
    return { ...SD_AUTOENCODER, sample_size: 512 };
  }
  const key = [...file.entries.keys()].find((name) =>
    name.endsWith("attn2.to_k.weight")
  );
  const width = key === undefined ? 768 : file.entries.get(key)!.shape[1];
  const inputs = file.entries.get("conv_in.weight")?.shape[1] ?? 4;
  const [, unet] = LORA_BASES[width === 1024 ? "sd21" : "sd15"];
  return { ...unet, in_channels: inputs };
}

/**
 * Loads one network of a model: from a `.safetensors` file of it alone or of a
 * whole checkpoint, in diffusers' names or in those of the original code, or
 * from a folder of diffusers (the network's, or the model's around it).
 *
 * @param component Which network.
 * @param path The file or folder.
 * @param options `variant` of a folder's weights.
 * @returns The network; its tensors are the caller's.
 * @throws If there is no such network, or anything in it is missing, unexpected
 * or misshapen.
 *
 * @example
 * ```ts ignore
 * const autoencoder = await loadPart("autoencoder", "vae-ft-mse-840000.safetensors");
 * const model = await loadSingleFile("novae.safetensors", {
 *   tokenizer: "sd-v1-5/tokenizer",
 *   parts: { autoencoder },
 * });
 * ```
 */
export async function loadPart<C extends LdmComponent>(
  component: C,
  path: FileSource,
  options: { readonly variant?: string; readonly half?: boolean } = {},
): Promise<ModelParts[C]> {
  const shown = sourceName(path, "a checkpoint");
  const isPath = typeof path === "string" || path instanceof URL;
  const part = PARTS[component];
  const what = `load ${part.name} from ${shown}`;
  const read = async (json: unknown, file: SafetensorsFile) => {
    const config = part.parse(json);
    const params = await load(part.spec(config), file, {
      ...part.load,
      what: `${part.name.replace(/^a /, "the ")} of ${shown}`,
      half: options.half,
    });
    return { config, params } as ModelParts[C];
  };
  if (isPath && !await exists(shown)) {
    throw cannot(what, "a file or folder that exists", "none");
  }
  if (isPath && await isFolder(shown)) {
    const inside = joinPath(shown, part.folder);
    const folder = await exists(joinPath(inside, "config.json"))
      ? inside
      : shown;
    const config = joinPath(folder, "config.json");
    if (!await exists(config)) {
      throw cannot(what, `a config.json in it or in ${part.folder}`, "none");
    }
    const json = await readJson(config);
    const file = await componentFile(folder, "", options);
    try {
      return await read(json, file);
    } finally {
      file.close();
    }
  }
  const file = unscaled(await openSafetensors(path), shown);
  try {
    const found = partsIn(file.entries.keys());
    const naming = found.get(component);
    if (naming === undefined) {
      describeLdm(file);
      throw cannot(what, part.name, partNames(found.keys()));
    }
    if (naming === "diffusers") {
      const beside = isPath
        ? joinPath(parentOf(shown), "config.json")
        : undefined;
      return await read(await configOf(component, beside, file), file);
    }
    const whole = withPrefixes(file);
    const { configs, layout } = describeLdm(whole);
    const matches = matchKeys(
      whole,
      configs,
      layout,
      new Set<LdmComponent>([component]),
      what,
    );
    return await readPart(
      component,
      whole,
      configs,
      matches,
      shown,
      options.half,
    );
  } finally {
    file.close();
  }
}

/** Settings of {@linkcode loadNetworks}. */
export interface LoadNetworksOptions {
  /** Fields of the configs that shapes cannot tell and the caller knows. */
  readonly config?: LdmOverrides;
  /**
   * What the UNet predicts; must be given for Stable Diffusion 2.x files that
   * do not say (768-v: `v_prediction`; 512-base: `epsilon`).
   */
  readonly predictionType?: LdmPrediction;
  /** The scheduler's config, if it is not Stable Diffusion's own. */
  readonly scheduler?: Readonly<Record<string, unknown>>;
  /**
   * Networks in place of the file's, which are not read: for files without a
   * VAE, or of a UNet alone. They are the caller's until the model has them.
   */
  readonly parts?: Partial<ModelParts>;
  /**
   * Whether weights of layers are kept as half floats (webgpu only).
   *
   * @default false
   */
  readonly half?: boolean;
  /** Hears what is in the file and is not read, or is read in a special way. */
  readonly onNote?: (note: string) => void;
}

/** Settings of {@linkcode loadSingleFile}. */
export interface LoadSingleFileOptions extends LoadNetworksOptions {
  /**
   * CLIP's tokenizer, or a folder with its vocab.json and merges.txt: no
   * single file holds one.
   */
  readonly tokenizer: Tokenizer | string | URL;
}

/** The networks of a model and its scheduler: all of it but the tokenizer. */
export type Networks = ModelParts & Pick<Model, "scheduler">;

/**
 * Loads the networks of a single file, strictly and tensor by tensor; see
 * {@linkcode loadSingleFile}. No tokenizer is needed: to write another single
 * file, for example.
 *
 * @param path The file.
 * @param options What the file does not tell.
 * @returns The networks; their tensors are the caller's.
 * @throws As {@linkcode loadSingleFile}.
 */
export async function loadNetworks(
  path: FileSource,
  options: LoadNetworksOptions = {},
): Promise<Networks> {
  const shown = sourceName(path, "a checkpoint");
  const what = `load ${shown}`;
  if (/\.(ckpt|pt|pth|bin|pkl)$/i.test(shown)) {
    throw cannot(
      what,
      "a .safetensors file",
      "a pickle checkpoint, which can run any code when it is loaded; " +
        "convert it to safetensors first",
    );
  }
  const { parts: given = {}, onNote } = options;
  const opened = unscaled(await openSafetensors(path), shown);
  const made: unknown[] = [];
  try {
    const present = partsIn(opened.entries.keys());
    const file = withPrefixes(opened);
    const described = describeLdm(file, options.config);
    const lacking = COMPONENTS.filter((c) => !given[c] && !present.has(c));
    if (lacking.length > 0) {
      throw cannot(
        what,
        `${partNames(lacking)} in it or from another file (${
          lacking.map((c) => PARTS[c].option).join(", ")
        })`,
        `only ${partNames(present.keys())}`,
      );
    }
    const predictionType = options.predictionType ?? described.predictionType;
    const scheduler = options.scheduler ?? described.scheduler;
    if (!predictionType && !scheduler) {
      throw cannot(
        what,
        'a predictionType: "v_prediction" (Stable Diffusion 2.x at 768) or ' +
          '"epsilon" (2.x base at 512)',
        "none, and the file does not tell",
      );
    }
    const own = COMPONENTS.filter((c) => !given[c]);
    const ours = own.filter((c) => present.get(c) !== "diffusers");
    const { configs, layout } = described;
    const matches = matchKeys(file, configs, layout, new Set(ours), what);
    const read = async <C extends LdmComponent>(
      c: C,
    ): Promise<ModelParts[C]> => {
      if (given[c]) return given[c] as ModelParts[C];
      const part = ours.includes(c)
        ? await readPart(c, file, configs, matches, shown, options.half)
        : await loadPart(c, path, { half: options.half });
      made.push(part.params);
      return part;
    };
    const networks: ModelParts = {
      textEncoder: await read("textEncoder"),
      unet: await read("unet"),
      autoencoder: await read("autoencoder"),
    };
    note(file, described, onNote);
    return {
      ...networks,
      scheduler: {
        ...(scheduler ??
          schedulerConfig(predictionType!, described.zeroTerminalSnr)),
        ...(described.zeroTerminalSnr && !options.scheduler ? ZERO_SNR : {}),
        ...(opened.entries.has(MARKERS.velocity) && !options.scheduler &&
          { prediction_type: "v_prediction" }),
        ...(options.predictionType &&
          { prediction_type: options.predictionType }),
      },
    };
  } catch (error) {
    for (const params of made) disposeTree(params);
    throw error;
  } finally {
    opened.close();
  }
}

/** Says what is special about a file. */
function note(
  file: LdmHeader,
  { zeroTerminalSnr }: { readonly zeroTerminalSnr: boolean },
  onNote: ((note: string) => void) | undefined,
): void {
  if (!onNote) return;
  if (file.entries.has(MARKERS.velocity)) {
    onNote(`the marker ${MARKERS.velocity}: v-prediction`);
  }
  if (zeroTerminalSnr) {
    onNote(
      `the marker ${MARKERS.zeroTerminalSnr}: betas rescaled to zero terminal ` +
        "SNR, trailing timesteps",
    );
  }
  // Networks in diffusers' naming are read by themselves, every key of them.
  const others = [...partsIn(file.entries.keys()).values()];
  const extras = others.includes("diffusers")
    ? []
    : ldmExtras(file.entries.keys());
  if (extras.length > 0) {
    onNote(
      `${extras.length} tensors beside the model are not read: ${
        byBeginning(extras)
      }`,
    );
  }
}

/**
 * Loads Stable Diffusion 1.x or 2.x from one `.safetensors` file, strictly and
 * tensor by tensor. What belongs to training or to other tools
 * ({@linkcode LDM_IGNORED}, and names of no network) is left out; every key of a
 * network must be a parameter.
 *
 * @param path The file: path, URL, `Blob` or bytes.
 * @param options Tokenizer; what the file does not tell.
 * @returns The model; its tensors are the caller's.
 * @throws If the file is a pickle, no Stable Diffusion 1.x or 2.x, or holds
 * anything missing, unexpected or misshapen in a network; or if the tokenizer
 * does not fit the text encoder.
 *
 * @example
 * ```ts ignore
 * const model = await loadSingleFile("chilloutmix.safetensors", {
 *   tokenizer: "sd-v1-5/tokenizer",
 * });
 * ```
 */
export async function loadSingleFile(
  path: FileSource,
  options: LoadSingleFileOptions,
): Promise<Model> {
  const what = `load ${sourceName(path, "a checkpoint")}`;
  if (!options?.tokenizer) {
    throw cannot(
      what,
      "a tokenizer: a folder with CLIP's vocab.json and merges.txt, such as " +
        "tokenizer/ of any Stable Diffusion folder (single files have none)",
      "none",
    );
  }
  const networks = await loadNetworks(path, options);
  try {
    const tokenizer =
      typeof options.tokenizer === "string" || options.tokenizer instanceof URL
        ? await loadTokenizer(options.tokenizer)
        : options.tokenizer;
    const { vocab_size: rows } = networks.textEncoder.config;
    if (tokenizer.vocabSize > rows) {
      throw cannot(
        what,
        `a tokenizer of at most ${rows} tokens, the rows of the text encoder's ` +
          "table",
        tokenizer.vocabSize,
      );
    }
    return { tokenizer, ...networks };
  } catch (error) {
    const { parts = {} } = options;
    disposeTree(
      COMPONENTS.filter((c) => !parts[c]).map((c) => networks[c].params),
    );
    throw error;
  }
}

/** The scheduler config that diffusers ships with Stable Diffusion. */
function schedulerConfig(
  predictionType: LdmPrediction,
  zeroTerminalSnr: boolean,
): Record<string, unknown> {
  return {
    // PNDM has no zero terminal SNR in diffusers; DDIM is what its authors use.
    _class_name: zeroTerminalSnr ? "DDIMScheduler" : "PNDMScheduler",
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
    beta_start: 0.00085,
    clip_sample: false,
    num_train_timesteps: 1000,
    prediction_type: predictionType,
    set_alpha_to_one: false,
    ...(zeroTerminalSnr ? {} : { skip_prk_steps: true }),
    steps_offset: 1,
    trained_betas: null,
  };
}

/** What the marker of zero terminal SNR stands for (Lin et al. 2023). */
const ZERO_SNR = {
  rescale_betas_zero_snr: true,
  timestep_spacing: "trailing",
} as const;

/** Settings of {@linkcode saveSingleFile}. */
export interface SaveSingleFileOptions {
  /**
   * Type on disk.
   *
   * @default "F32"
   */
  readonly dtype?: "F32" | "F16" | "BF16";
  /**
   * Layout of the text encoder.
   *
   * @default `sd2` where the text encoder uses `gelu`, as OpenCLIP's
   */
  readonly layout?: LdmLayout;
  /** Further metadata. */
  readonly metadata?: Readonly<Record<string, string>>;
  /**
   * Leave learned tokens out; a single file has no place for them.
   *
   * @default false: a model with learned tokens is refused
   */
  readonly withoutTokens?: boolean;
}

/**
 * Saves a model as one file for the tools that load single files, atomically
 * and tensor by tensor. Configs go into the metadata, so that
 * {@linkcode loadSingleFile} restores a model of any shape.
 *
 * @param path The file.
 * @param model The model, or its networks; merge its adapters first, they have no
 * names here. v-prediction and zero terminal SNR are marked as ComfyUI and A1111
 * expect it.
 * @param options Type on disk, layout.
 * @throws If the model has learned tokens and they are not to be left out, or
 * adapters are attached.
 *
 * @example
 * ```ts ignore
 * await saveSingleFile("fused.safetensors", fused, { dtype: "F16" });
 * ```
 */
export async function saveSingleFile(
  path: FileTarget,
  model: Networks & Pick<Model, "added">,
  options: SaveSingleFileOptions = {},
): Promise<void> {
  const { dtype = "F32", metadata } = options;
  const what = `save ${targetName(path)}`;
  if (model.added && !options.withoutTokens) {
    throw cannot(
      what,
      "a model without learned tokens (save those as embeddings, or ask for " +
        "withoutTokens)",
      Object.keys(model.added.sites).join(", "),
    );
  }
  const configs: LdmConfigs = {
    textEncoder: model.textEncoder.config,
    unet: model.unet.config,
    autoencoder: model.autoencoder.config,
  };
  const layout = options.layout ??
    (configs.textEncoder.hidden_act === "gelu" ? "sd2" : "sd1");
  const tensors = new Map<LdmComponent, Map<string, tf.Tensor>>(
    COMPONENTS.map((c) => [c, new Map(leaves(model[c].params))]),
  );
  const entries = ldmEntries(configs, layout);
  const named = new Set(
    entries.flatMap(({ component, parts }) =>
      parts.map(({ path }) => `${component} ${path}`)
    ),
  );
  const unnamed = [...tensors].flatMap(([component, tree]) =>
    [...tree.keys()].map((path) => `${component} ${path}`)
  ).filter((name) => !named.has(name));
  if (unnamed.length > 0) {
    throw cannot(
      what,
      "only parameters of the base model (merge adapters first)",
      unnamed.slice(0, 3).join(", ") + (unnamed.length > 3 ? ", …" : ""),
    );
  }
  const raw: [string, RawTensor | LazyTensor][] = entries.map((entry) => [
    entry.names[0],
    {
      dtype,
      shape: [...entry.shape],
      load: () => encodeEntry(entry, tensors.get(entry.component)!, dtype),
    },
  ]);
  if (layout === "sd1") {
    // Other tools' strict loaders want this buffer.
    const length = configs.textEncoder.max_position_embeddings;
    const ids = BigInt64Array.from({ length }, (_, i) => BigInt(i));
    raw.push([
      `${LDM_PREFIX.textEncoder}transformer.text_model.embeddings.position_ids`,
      { dtype: "I64", shape: [1, length], data: new Uint8Array(ids.buffer) },
    ]);
  }
  const { prediction_type: prediction, rescale_betas_zero_snr: zero } =
    model.scheduler;
  const marks = [
    ...(prediction === "v_prediction" ? [MARKERS.velocity] : []),
    ...(zero === true ? [MARKERS.zeroTerminalSnr] : []),
  ];
  for (const name of marks) {
    raw.push([name, { dtype, shape: [0], data: new Uint8Array(0) }]);
  }
  await writeSafetensors(path, raw, {
    format: "pt",
    [METADATA]: pythonJson({ ...configs, scheduler: model.scheduler }),
    ...metadata,
  });
}

async function encodeEntry(
  { parts }: LdmEntry,
  tensors: ReadonlyMap<string, tf.Tensor>,
  dtype: "F32" | "F16" | "BF16",
): Promise<Uint8Array> {
  const encoded: Uint8Array[] = [];
  for (const { path, param } of parts) {
    const tensor = tensors.get(path)!;
    const values = await tensor.data() as Float32Array;
    forgetHostCopy(tensor);
    encoded.push(encodeFloat(toDisk(param.kind, param.shape, values), dtype));
  }
  return encoded.length === 1 ? encoded[0] : joined(Uint8Array, encoded);
}
