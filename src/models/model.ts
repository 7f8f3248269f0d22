/**
 * A whole text-to-image model: its type, its folder in diffusers' layout, and
 * prompts bound to learned tokens.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { disposeTree, leaves } from "../core/tree.ts";
import { joinPath, readJson, writeJson, writePythonJson } from "../io/files.ts";
import {
  type ComponentOptions,
  fileOf,
  type FolderSource,
  hasFile,
  openComponent,
  placeName,
} from "../io/folder.ts";
import { lookup, stackTables, tableRows } from "../nn/embedding.ts";
import type { Context } from "../nn/linear.ts";
import { type Autoencoder, autoencoderSpec } from "./autoencoder.ts";
import { load, oldAutoencoderNames, save } from "./checkpoint.ts";
import {
  type AutoencoderConfig,
  crossAttentionSites,
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
  type TextEncoderConfig,
  type UNetConfig,
} from "./config.ts";
import {
  CLIP_EXTRAS,
  type TextEncoder,
  textEncoder,
  textEncoderSpec,
} from "./text_encoder.ts";
import { embeddedModel } from "./embedded.ts";
import { loadTokenizer, type Tokenizer } from "./tokenizer.ts";
import { type UNet, unetSpec } from "./unet.ts";

/** A network: its config and its parameters, nothing else. */
export interface Network<Config, Params> {
  /** The config.json of the component, parsed. */
  readonly config: Config;
  /** Parameter tree, float32, tfjs layout. */
  readonly params: Params;
}

/**
 * Learned tokens of a model (`new_concept_cfg.json` of Mix-of-Show and the
 * vectors it points into).
 *
 * A concept token stands for one vector at every cross-attention layer (P+,
 * ED-LoRA); in plain textual inversion all its ids are equal.
 */
export interface AddedTokens {
  /** Names of the added vocabulary entries; entry i has id `vocab_size + i`. */
  readonly names: readonly string[];
  /** [names.length, width]. */
  readonly vectors: tf.Tensor2D;
  /** Concept token → index into `names` at each cross-attention site. */
  readonly sites: Readonly<Record<string, readonly number[]>>;
}

/**
 * A text-to-image model: base, adapted and fused models all have this type.
 */
export interface Model {
  /** Text to token ids, learned tokens included. */
  readonly tokenizer: Tokenizer;
  /** CLIP's text encoder. */
  readonly textEncoder: Network<TextEncoderConfig, TextEncoder>;
  /** The denoiser. */
  readonly unet: Network<UNetConfig, UNet>;
  /** Pictures to latents and back. */
  readonly autoencoder: Network<AutoencoderConfig, Autoencoder>;
  /** scheduler_config.json as it stands. */
  readonly scheduler: Readonly<Record<string, unknown>>;
  /** Learned tokens, if any. */
  readonly added?: AddedTokens;
}

/** The networks of a model. */
export type ModelParts = Pick<Model, "textEncoder" | "unet" | "autoencoder">;

/** Name of the file that says what a model's learned tokens stand for. */
const CONCEPTS = "new_concept_cfg.json";

const conceptsSchema = z.record(
  z.string(),
  z.object({
    concept_token_ids: z.array(z.number().int().min(0)).nonempty(),
    concept_token_names: z.array(z.string().min(1)).nonempty(),
  }),
);

/** Learned tokens of a folder, their vectors not yet read. */
interface SavedTokens {
  /** Row of the first in the token table. */
  readonly first: number;
  readonly names: readonly string[];
  readonly sites: AddedTokens["sites"];
}

/** Reads and checks `new_concept_cfg.json`, if there is one. */
async function savedTokens(
  folder: FolderSource,
  tokenizer: Tokenizer,
): Promise<SavedTokens | undefined> {
  if (!await hasFile(folder, CONCEPTS)) return undefined;
  const concepts = Object.entries(
    await readJson(fileOf(folder, CONCEPTS), conceptsSchema),
  );
  const what = `read ${placeName(folder, CONCEPTS)}`;
  const byId = new Map<number, string>();
  for (const [token, entry] of concepts) {
    const { concept_token_ids: ids, concept_token_names: names } = entry;
    if (ids.length !== names.length) {
      throw cannot(what, `${ids.length} names of ${token}`, names.length);
    }
    ids.forEach((id, i) => {
      if (tokenizer.idOf(names[i]) !== id) {
        throw cannot(
          what,
          `the tokenizer's ids (${tokenizer.idOf(names[i])} for ${names[i]})`,
          `${id}`,
        );
      }
      byId.set(id, names[i]);
    });
  }
  if (byId.size === 0) return undefined;
  const first = Math.min(...byId.keys());
  // Ours start where the vocabulary ends, and so does everything that adds more.
  if (first + byId.size !== tokenizer.vocabSize) {
    throw cannot(
      what,
      `the last ${byId.size} entries of ${tokenizer.vocabSize}, ids from ` +
        `${tokenizer.vocabSize - byId.size}`,
      `ids from ${first}`,
    );
  }
  return {
    first,
    names: Array.from({ length: byId.size }, (_, i) => byId.get(first + i)!),
    sites: Object.fromEntries(
      concepts.map(([token, entry]) => [
        token,
        entry.concept_token_ids.map((id) => id - first),
      ]),
    ),
  };
}

/** Cuts the learned rows off a token table; the whole table is disposed. */
function splitTokens(
  text: Network<TextEncoderConfig, TextEncoder>,
  { first, names, sites }: SavedTokens,
): { text: Network<TextEncoderConfig, TextEncoder>; added: AddedTokens } {
  const { text_model } = text.params;
  const { embeddings } = text_model;
  const table = embeddings.token_embedding.weight;
  const [weight, vectors] = tf.tidy(() => [
    tableRows(table, 0, first),
    tableRows(table, first, names.length),
  ]);
  table.dispose();
  return {
    text: {
      config: { ...text.config, vocab_size: first },
      params: {
        ...text.params,
        text_model: {
          ...text_model,
          embeddings: { ...embeddings, token_embedding: { weight } },
        },
      },
    },
    added: { names, vectors, sites },
  };
}

/**
 * Loads a model from a folder in diffusers layout, strictly.
 *
 * A fused model's folder (one with `new_concept_cfg.json`) comes back with its
 * learned tokens as {@linkcode AddedTokens}.
 *
 * @param folder Folder with tokenizer, text_encoder, unet, vae, scheduler: its
 * path, a `file:` or `http(s):` URL, or its files as someone picked them in a
 * page; by default the embedded model's. (`formats/load_model.ts` takes single
 * files, too.)
 * @param options `variant`: which weights to prefer where there are several
 * (`"fp16"`); `parts`: networks in place of the folder's, which are not read;
 * `half`: weights of layers are kept as half floats (webgpu).
 * @throws If a part is missing, truncated, misshapen or holds an unknown key.
 *
 * @example
 * ```ts
 * const model = await loadModel(); // the embedded one
 * ```
 */
export async function loadModel(
  folder: FolderSource = embeddedModel,
  options: ComponentOptions & {
    parts?: Partial<ModelParts>;
    half?: boolean;
  } = {},
): Promise<Model> {
  const { parts = {}, half } = options;
  const tokenizer = await loadTokenizer(folder, { inside: "tokenizer" });
  const scheduler = await readJson<Record<string, unknown>>(
    fileOf(folder, "scheduler", "scheduler_config.json"),
  );
  const saved = await savedTokens(folder, tokenizer);
  const made: unknown[] = [];
  const component = async <C, P>(
    name: string,
    parse: (json: unknown) => C,
    read: (config: C, file: Parameters<typeof load>[1]) => Promise<P>,
  ): Promise<Network<C, P>> => {
    if (!await hasFile(folder, name, "config.json")) {
      throw cannot(
        `load ${placeName(folder)}`,
        `${name}/config.json in it, or another file's (--${
          name.replace("_", "-")
        })`,
        "none",
      );
    }
    const { config: json, file } = await openComponent(folder, name, options);
    try {
      const config = parse(json);
      const params = await read(config, file);
      made.push(params);
      return { config, params };
    } finally {
      file.close();
    }
  };
  try {
    const whole = parts.textEncoder ?? await component(
      "text_encoder",
      parseTextEncoderConfig,
      (config, file) =>
        load<TextEncoder>(textEncoderSpec(config), file, {
          what: "the text encoder",
          ignore: CLIP_EXTRAS,
          half,
        }),
    );
    const rows = whole.config.vocab_size;
    if (saved && rows !== saved.first + saved.names.length) {
      throw cannot(
        `load ${placeName(folder, "text_encoder")}`,
        `a token table of ${saved.first + saved.names.length} rows, learned ` +
          `tokens of ${CONCEPTS} included`,
        rows,
      );
    }
    if (saved && parts.textEncoder) {
      throw cannot(
        `load ${placeName(folder, "text_encoder")}`,
        "the model's own text encoder, which has its learned tokens",
        "another",
      );
    }
    const split = saved && splitTokens(whole, saved);
    const text = split?.text ?? whole;
    if (split) made.push(split.text.params, split.added.vectors);
    const unet = parts.unet ?? await component(
      "unet",
      parseUNetConfig,
      (config, file) =>
        load<UNet>(unetSpec(config), file, { what: "the UNet", half }),
    );
    const autoencoder = parts.autoencoder ?? await component(
      "vae",
      parseAutoencoderConfig,
      (config, file) =>
        load<Autoencoder>(autoencoderSpec(config), file, {
          what: "the autoencoder",
          aliases: oldAutoencoderNames,
          half,
        }),
    );
    return {
      tokenizer,
      textEncoder: text,
      unet,
      autoencoder,
      scheduler,
      ...(split ? { added: split.added } : {}),
    };
  } catch (error) {
    disposeTree(made);
    throw error;
  }
}

/**
 * Disposes the parameters of a model.
 *
 * @param model The model.
 * @param except Models that share tensors with it and live on.
 */
export function disposeModel(model: Model, ...except: Model[]): void {
  const trees = (m: Model) => [
    m.textEncoder.params,
    m.unet.params,
    m.autoencoder.params,
    m.added?.vectors,
  ];
  disposeTree(trees(model), ...except.map(trees));
}

/** A prompt as token ids: one row for all cross-attention sites, or several. */
export interface BoundPrompt {
  /** Distinct rows of token ids. */
  readonly rows: readonly (readonly number[])[];
  /** Which row each cross-attention site uses. */
  readonly site: readonly number[];
  /** How many tokens were cut off at the model's maximum length. */
  readonly truncated: number;
}

/** A call of learned tokens in a prompt. */
export interface TokenCall {
  /** The tokens that it stands for: all vectors of an embedding. */
  readonly tokens: readonly string[];
}

const WORD = /[\p{L}\p{N}_]/u;

/** What finds learned tokens in prompts, by the tokens there are. */
const finders = new WeakMap<AddedTokens["sites"], RegExp>();

function finderOf(sites: AddedTokens["sites"]): RegExp {
  const known = finders.get(sites);
  if (known) return known;
  const edge = (char: string, pattern: string) =>
    WORD.test(char) ? pattern : "";
  const words = Object.keys(sites)
    // Longest first: one token may be the beginning of another.
    .sort((a, b) => b.length - a.length)
    .map((token) =>
      edge([...token][0], "(?<![\\p{L}\\p{N}_])") +
      token.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&") +
      edge([...token].at(-1)!, "(?![\\p{L}\\p{N}_])")
    );
  const finder = new RegExp(words.join("|"), "giu");
  finders.set(sites, finder);
  return finder;
}

/**
 * Finds the learned tokens that a prompt calls.
 *
 * The name of an embedding of several vectors (`cat`, `cat_1`, `cat_2`) stands
 * for all of them, unless they are written out. A token matches as it is
 * written, else without regard to case; one of letters does not match inside a
 * longer word.
 *
 * @param added Learned tokens of the model.
 * @param prompt The text.
 * @returns Text and calls in order.
 * @throws If a name matches several tokens but for their case.
 */
export function calledTokens(
  added: Pick<AddedTokens, "sites"> | undefined,
  prompt: string,
): (string | TokenCall)[] {
  if (!added || Object.keys(added.sites).length === 0) return [prompt];
  const { sites } = added;
  const names = Object.keys(sites);
  const parts: (string | TokenCall)[] = [];
  let at = 0;
  for (const match of prompt.matchAll(finderOf(sites))) {
    const [found] = match;
    const others = Object.hasOwn(sites, found)
      ? [found]
      : names.filter((name) => name.toLowerCase() === found.toLowerCase());
    if (others.length > 1) {
      throw cannot(
        `read the prompt "${prompt}"`,
        `${others.join(" or ")}, written so`,
        found,
      );
    }
    // The pattern and toLowerCase differ on a few letters, such as ſ.
    if (others.length === 0) continue;
    const [token] = others;
    const end = match.index + found.length;
    const tokens = [token];
    const rest = prompt.slice(end).trimStart().toLowerCase();
    if (!rest.startsWith(`${token}_1`.toLowerCase())) {
      for (let k = 1; Object.hasOwn(sites, `${token}_${k}`); k++) {
        tokens.push(`${token}_${k}`);
      }
    }
    if (match.index > at) parts.push(prompt.slice(at, match.index));
    parts.push({ tokens });
    at = end;
  }
  if (at < prompt.length || parts.length === 0) parts.push(prompt.slice(at));
  return parts;
}

/** A prompt's text with a vocabulary entry in the place of each called token. */
function withEntries(
  parts: readonly (string | TokenCall)[],
  entry: (token: string) => string,
): string {
  return parts.map((part) =>
    typeof part === "string" ? part : part.tokens.map(entry).join(" ")
  ).join("");
}

/**
 * Replaces a text's learned tokens by their vocabulary entry at one
 * cross-attention site.
 *
 * @param model The model.
 * @param text The text; concept tokens such as `<potter1>` stand in it.
 * @param site The site; a token with fewer vectors keeps its last one.
 */
export function bindTokens(
  model: Pick<Model, "added">,
  text: string,
  site: number,
): string {
  return withEntries(calledTokens(model.added, text), (token) => {
    const { sites, names } = model.added!;
    return names[sites[token][Math.min(site, sites[token].length - 1)]];
  });
}

/**
 * Binds a prompt's concept tokens to their vocabulary entry at every
 * cross-attention site (the official `bind_concept_prompt`).
 *
 * @param model The model.
 * @param prompt The text; concept tokens such as `<potter1>` stand in it.
 */
export function bindPrompt(
  model: Pick<Model, "tokenizer" | "unet" | "added">,
  prompt: string,
): BoundPrompt {
  const sites = crossAttentionSites(model.unet.config).length;
  const { added } = model;
  const parts = calledTokens(added, prompt);
  if (!added || parts.every((part) => typeof part === "string")) {
    const { ids, truncated } = model.tokenizer.encode(prompt);
    return { rows: [ids], site: new Array(sites).fill(0), truncated };
  }
  const rows: number[][] = [];
  const index = new Map<string, number>();
  let lost = 0;
  const site = Array.from({ length: sites }, (_, i) => {
    const text = withEntries(parts, (token) => {
      const names = added.sites[token];
      if (names.length < sites) {
        throw cannot(
          `bind ${token}`,
          `a vector for each of ${sites} cross-attention layers`,
          names.length,
        );
      }
      return added.names[names[i]];
    });
    const known = index.get(text);
    if (known !== undefined) return known;
    const { ids, truncated } = model.tokenizer.encode(text);
    lost = Math.max(lost, truncated);
    index.set(text, rows.length);
    return rows.push(ids) - 1;
  });
  return { rows, site, truncated: lost };
}

/** What a text encoder does not read of a prompt. */
export interface PromptCut {
  /** Tokens that it reads, start and end not counted. */
  readonly limit: number;
  /** Tokens of the prompt. */
  readonly tokens: number;
  /** The words that are read. */
  readonly kept: string;
  /** The words that are not. */
  readonly lost: string;
}

/**
 * What a model does not read of a prompt, as it is longer than the limit.
 *
 * @param model The model.
 * @param prompt The text.
 * @param maxLength Tokens that are read, start and end included.
 * @returns Limit and words; nothing if all of it is read.
 */
export function cutOff(
  model: Pick<Model, "tokenizer" | "added">,
  prompt: string,
  maxLength: number = model.tokenizer.modelMaxLength,
): PromptCut | undefined {
  const { tokenizer, added } = model;
  // Any site will do: a token is one entry at each.
  const nameOf = (token: string) => added!.names[added!.sites[token][0]];
  const parts = calledTokens(added, prompt);
  const bound = withEntries(parts, nameOf);
  const written = parts.flatMap((part) =>
    typeof part === "string" ? [] : part.tokens
  );
  const ids = tokenizer.tokenize(bound);
  const limit = maxLength - 2;
  if (ids.length <= limit) return undefined;
  const words = (part: readonly number[]) =>
    written.reduce(
      (text, token) => text.replaceAll(nameOf(token), token),
      tokenizer.decode(part),
    );
  return {
    limit,
    tokens: ids.length,
    kept: words(ids.slice(0, limit)),
    lost: words(ids.slice(limit)),
  };
}

/**
 * Text states of prompts, differentiable by text encoder and added vectors.
 *
 * @param model The model.
 * @param prompts One per sample.
 * @param options `skipLast`: clip skip; `recompute`: keep less for gradients;
 * observers of the text encoder.
 * @returns [b, tokens, width], or [b, sites, tokens, width] as soon as one
 * prompt is layer-wise.
 *
 * @example
 * ```ts
 * const states = tf.tidy(() => promptStates(model, ["a photo of a cat"]));
 * ```
 */
export function promptStates(
  model: Pick<Model, "tokenizer" | "unet" | "added" | "textEncoder">,
  prompts: readonly string[],
  options: Context & {
    readonly skipLast?: number;
    readonly recompute?: boolean;
  } = {},
): tf.Tensor3D | tf.Tensor4D {
  const bound = prompts.map((prompt) => bindPrompt(model, prompt));
  const layerwise = bound.some((b) => b.rows.length > 1);
  const rows: (readonly number[])[] = [];
  const position = new Map<string, number>();
  const order: number[] = [];
  for (const { rows: own, site } of bound) {
    const at = own.map((row) => {
      const name = row.join();
      const known = position.get(name);
      if (known !== undefined) return known;
      position.set(name, rows.length);
      return rows.push(row) - 1;
    });
    order.push(...(layerwise ? site.map((i) => at[i]) : [at[0]]));
  }
  const { last } = textEncoder(
    model.textEncoder.params,
    model.textEncoder.config,
    rows,
    { ...options, added: model.added?.vectors },
  );
  const [, tokens, width] = last.shape;
  const inOrder = order.length === rows.length &&
    order.every((row, i) => row === i);
  const dealt = inOrder
    ? last
    : lookup(last.reshape([rows.length, tokens * width]), order);
  return layerwise
    ? dealt.reshape([
      prompts.length,
      order.length / prompts.length,
      tokens,
      width,
    ]) as tf.Tensor4D
    : dealt.reshape([prompts.length, tokens, width]) as tf.Tensor3D;
}

/**
 * Saves a model as a folder that diffusers loads, fused models included
 * (tokenizer with added tokens, `new_concept_cfg.json`).
 *
 * @param folder The folder, made if it is not there.
 * @param model The model.
 * @param options `dtype` on disk (default F32).
 * @throws If adapters are attached, which the folder could not hold.
 */
export async function saveModel(
  folder: string,
  model: Model,
  options: { dtype?: "F32" | "F16" | "BF16" } = {},
): Promise<void> {
  const adapted = [model.textEncoder.params, model.unet.params].flatMap((
    tree,
  ) =>
    leaves(tree).map(([path]) => path).filter((path) => /\.low\.\d/.test(path))
  );
  if (adapted.length > 0) {
    throw cannot(
      "save a model",
      "no attached adapters (merge them first)",
      `one at ${adapted[0].replace(/\.low\..*$/, "")}`,
    );
  }
  const { added } = model;
  const tokenizer = added
    ? model.tokenizer.withAddedTokens(
      added.names.filter((name) => !model.tokenizer.has(name)),
    )
    : model.tokenizer;
  await tokenizer.save(joinPath(folder, "tokenizer"));
  await writePythonJson(
    joinPath(folder, "scheduler", "scheduler_config.json"),
    model.scheduler,
  );
  const text = { ...model.textEncoder.config };
  let params = model.textEncoder.params;
  let table: tf.Tensor2D | undefined;
  if (added) {
    // diffusers has one table: the added vectors become its last rows.
    const { token_embedding } = params.text_model.embeddings;
    table = await stackTables(token_embedding.weight, added.vectors);
    text.vocab_size = table.shape[0];
    params = {
      text_model: {
        ...params.text_model,
        embeddings: {
          ...params.text_model.embeddings,
          token_embedding: { weight: table },
        },
      },
    };
    await writeJson(
      joinPath(folder, CONCEPTS),
      conceptConfig(added, model.textEncoder.config.vocab_size),
    );
  }
  const parts = [
    [
      "text_encoder",
      "model",
      textEncoderSpec(text),
      params,
      {
        architectures: ["CLIPTextModel"],
        model_type: "clip_text_model",
        ...text,
      },
    ],
    [
      "unet",
      "diffusion_pytorch_model",
      unetSpec(model.unet.config),
      model.unet.params,
      { _class_name: "UNet2DConditionModel", ...model.unet.config },
    ],
    [
      "vae",
      "diffusion_pytorch_model",
      autoencoderSpec(model.autoencoder.config),
      model.autoencoder.params,
      { _class_name: "AutoencoderKL", ...model.autoencoder.config },
    ],
  ] as const;
  for (const [part, file, spec, tree, config] of parts) {
    await save(
      joinPath(folder, part, `${file}.safetensors`),
      // deno-lint-ignore no-explicit-any
      spec as any,
      tree,
      options,
    );
    await writePythonJson(joinPath(folder, part, "config.json"), config);
  }
  table?.dispose();
  await writeJson(
    joinPath(folder, "model_index.json"),
    modelIndex(model.scheduler),
  );
}

/**
 * The content of a Stable Diffusion folder's `model_index.json`.
 *
 * @param scheduler Its scheduler_config.json.
 */
export function modelIndex(
  scheduler: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  return {
    _class_name: "StableDiffusionPipeline",
    _diffusers_version: "0.19.3",
    feature_extractor: [null, null],
    requires_safety_checker: false,
    safety_checker: [null, null],
    scheduler: ["diffusers", String(scheduler._class_name ?? "PNDMScheduler")],
    text_encoder: ["transformers", "CLIPTextModel"],
    tokenizer: ["transformers", "CLIPTokenizer"],
    unet: ["diffusers", "UNet2DConditionModel"],
    vae: ["diffusers", "AutoencoderKL"],
  };
}

/**
 * The content of Mix-of-Show's `new_concept_cfg.json`.
 *
 * @param added Learned tokens.
 * @param vocabulary Size of the base vocabulary.
 */
export function conceptConfig(
  added: AddedTokens,
  vocabulary: number,
): Record<
  string,
  { concept_token_ids: number[]; concept_token_names: string[] }
> {
  return Object.fromEntries(
    Object.entries(added.sites).map(([token, at]) => [token, {
      concept_token_ids: at.map((i) => vocabulary + i),
      concept_token_names: at.map((i) => added.names[i]),
    }]),
  );
}
