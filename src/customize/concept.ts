/**
 * A customised concept: learned tokens, one vector per cross-attention layer,
 * and the adapter that goes with them.
 *
 * Mix-of-Show writes a concept as two tokens, V = V_rand V_class: an adjective
 * that starts as noise and a noun that starts as the class word (paper §3.2).
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { fold, type Key, normal } from "../core/random.ts";
import { crossAttentionSites } from "../models/config.ts";
import type { AddedTokens, Model } from "../models/model.ts";
import { lookup, tableSpread } from "../nn/embedding.ts";
import { at, leaves, type TreeLike, updateAt } from "../core/tree.ts";
import {
  type Adapter,
  adapterTensors,
  attach,
  type AttachOptions,
  disposeAdapter,
  initLora,
  type InitLoraOptions,
} from "./lora.ts";
import {
  type Component,
  COMPONENTS,
  type TargetName,
  type Targets,
} from "./sites.ts";
import { initSpectral } from "./spectral.ts";

/** A learned token. */
export interface ConceptToken {
  /** Its text in prompts, such as `<potter1>`. */
  readonly token: string;
  /**
   * [sites, width], one vector per cross-attention layer (P+, ED-LoRA), or
   * [1, width], one for all (textual inversion).
   */
  readonly vectors: tf.Tensor2D;
}

/**
 * Whole parameters of networks, by their path in the network's tree
 * (`mid_block.attentions.0.proj_in.bias`); a network that is not fine-tuned has
 * none.
 */
export type Weights = Readonly<
  Record<Component, ReadonlyMap<string, tf.Tensor>>
>;

/** A customised concept; its tensors are owned by whoever made it. */
export interface Concept {
  /** Name of the concept and of its adapter. */
  readonly name: string;
  /** Learned tokens in the order in which they stand in a prompt. */
  readonly tokens: readonly ConceptToken[];
  /** The ordinary word for it, such as `man`; empty if none was given. */
  readonly classWord: string;
  /** Its phrase in prompts: `<potter1> <potter2>`, or `<toy1> toy`. */
  readonly phrase: string;
  /** May have no layers (textual inversion, P+). */
  readonly adapter: Adapter;
  /** Fine-tuned networks, which replace those of the base (DreamBooth). */
  readonly weights?: Weights;
  /** Method and settings of its training; saved in the file. */
  readonly meta: Readonly<Record<string, string>>;
}

/** How one learned token starts. */
export interface TokenInit {
  /** How it is written in prompts. */
  readonly token: string;
  /** `"random"` for V_rand, else an ordinary word for V_class. */
  readonly init: "random" | { readonly word: string };
}

/** Settings of {@linkcode initConcept}. */
export interface InitConceptOptions {
  /** Name of the concept. */
  readonly name: string;
  /** The ordinary word for it. */
  readonly classWord: string;
  /** Random key. */
  readonly key: Key;
  /**
   * Learned tokens.
   *
   * @default V_rand V_class: `<name1>` random, `<name2>` the class word
   */
  readonly tokens?: readonly TokenInit[];
  /**
   * The concept's phrase in prompts.
   *
   * @default the tokens with spaces between them
   */
  readonly phrase?: string;
  /**
   * One vector per cross-attention layer (P+, ED-LoRA) or one for all.
   *
   * @default {true}
   */
  readonly layerwise?: boolean;
  /**
   * Standard deviation of V_rand, relative to that of the model's own token
   * table (0.013 is about that of CLIP-L).
   *
   * @default {1}
   */
  readonly std?: number;
  /**
   * Whether V_rand's layers start as `independent` draws (research branch) or
   * as one `copied` draw (main branch).
   *
   * @default "independent"
   */
  readonly draws?: "independent" | "copied";
  /**
   * What to do with a word of several tokens: the official code refuses it;
   * `mean` takes the mean of their vectors.
   *
   * @default "error"
   */
  readonly severalTokens?: "error" | "mean";
  /** The adapter; `false` for none. */
  readonly lora?: Omit<InitLoraOptions, "key" | "name"> | false;
  /** Layers whose singular values are shifted, instead of a LoRA (SVDiff). */
  readonly spectral?: TargetName | Targets;
  /** Networks that are fine-tuned whole. @default none */
  readonly full?: readonly Component[];
}

/** Number of cross-attention layers of a model. */
function siteCount(model: Pick<Model, "unet">): number {
  return crossAttentionSites(model.unet.config).length;
}

/**
 * The standard deviation of all entries of a model's token table.
 *
 * @param model The model.
 */
export async function tokenSpread(
  model: Pick<Model, "textEncoder">,
): Promise<number> {
  const { token_embedding } = model.textEncoder.params.text_model.embeddings;
  return (await tableSpread(token_embedding.weight)).deviation;
}

/**
 * Checks the text of a token.
 *
 * @throws If it is empty or has a space in it.
 */
function checkToken(token: string): void {
  if (token === "" || /\s/.test(token)) {
    throw cannot("make a concept", "a token without spaces", `"${token}"`);
  }
}

/**
 * Makes a concept to train: V_rand V_class and a fresh adapter.
 *
 * @param model The base model.
 * @param options Names, initialisation, adapter.
 * @returns The concept; its tensors are the caller's.
 * @throws If the class word is not one token (unless told otherwise), a token
 * is not valid or occurs twice, or the LoRA does not fit.
 *
 * @example
 * ```ts
 * const concept = await initConcept(model, {
 *   name: "potter",
 *   classWord: "man",
 *   key: key(0),
 * });
 * ```
 */
export async function initConcept(
  model: Model,
  options: InitConceptOptions,
): Promise<Concept> {
  const { name, classWord, key, layerwise = true, std = 1 } = options;
  const { draws = "independent", severalTokens = "error", lora = {} } = options;
  const what = `make the concept "${name}"`;
  const wanted = options.tokens ?? [
    { token: `<${name}1>`, init: "random" },
    { token: `<${name}2>`, init: { word: classWord } },
  ] as const;
  wanted.forEach(({ token }) => checkToken(token));
  if (new Set(wanted.map((t) => t.token)).size !== wanted.length) {
    throw cannot(what, "different tokens", wanted.map((t) => t.token).join());
  }
  if (!(std >= 0)) throw cannot(what, "a spread ≥ 0", std);
  const words = wanted.map(({ init }) => {
    if (init === "random") return undefined;
    const ids = model.tokenizer.tokenize(init.word);
    if (ids.length === 0 || (ids.length > 1 && severalTokens === "error")) {
      throw cannot(
        what,
        "a class word that is one token (or severalTokens: mean)",
        `"${init.word}" of ${ids.length}`,
      );
    }
    return ids;
  });
  const rows = layerwise ? siteCount(model) : 1;
  const table =
    model.textEncoder.params.text_model.embeddings.token_embedding.weight;
  const width = table.shape[1];
  const deviation = std * await tokenSpread(model);
  const tokens = wanted.map(({ token }, i): ConceptToken => {
    const ids = words[i];
    const draw = (index: number) =>
      normal(fold(key, "V_rand", token, index), width, deviation);
    const vectors = tf.tidy(() => {
      if (ids) {
        const one = tf.mean(lookup(table, ids), 0, true);
        return tf.tile(one, [rows, 1]) as tf.Tensor2D;
      }
      const values = new Float32Array(rows * width);
      for (let row = 0; row < rows; row++) {
        values.set(draw(draws === "copied" ? 0 : row), row * width);
      }
      return tf.tensor2d(values, [rows, width]);
    });
    return { token, vectors };
  });
  let adapter: Adapter;
  try {
    adapter = options.spectral
      ? await initSpectral(model, { name, targets: options.spectral })
      : lora === false
      ? emptyAdapter(name)
      : initLora(model, { ...lora, name, key: fold(key, "lora") });
  } catch (error) {
    tokens.forEach((t) => t.vectors.dispose());
    throw error;
  }
  const phrase = options.phrase ?? tokens.map(({ token }) => token).join(" ");
  const { full = [] } = options;
  const weights = full.length > 0 && {
    textEncoder: baseWeights(model, "textEncoder", full),
    unet: baseWeights(model, "unet", full),
  };
  return {
    ...{ name, tokens, classWord, phrase, adapter },
    ...(weights && { weights }),
    meta: {},
  };
}

/**
 * An adapter without layers, of a concept that is only tokens.
 *
 * @param name Its name.
 */
export function emptyAdapter(name: string): Adapter {
  return {
    name,
    scaleRule: "alpha",
    textEncoder: new Map(),
    unet: new Map(),
  };
}

/** Copies of a network's parameters, if it is among those chosen. */
function baseWeights(
  model: Model,
  component: Component,
  chosen: readonly Component[],
): Map<string, tf.Tensor> {
  if (!chosen.includes(component)) return new Map();
  // Sums are whole floats of their own, also of half floats and shared copies.
  return new Map(
    leaves(model[component].params).map(([path, t]) => [path, tf.add(t, 0)]),
  );
}

/**
 * How many layers or parameters of a network a concept changes.
 *
 * @param concept The concept.
 * @param component The network.
 */
export function changes(
  { adapter, weights }: Pick<Concept, "adapter" | "weights">,
  component: Component,
): number {
  return adapter[component].size + (weights?.[component].size ?? 0);
}

/** The phrase of a concept in a prompt: `<potter1> <potter2>`. */
export function conceptPhrase(concept: Pick<Concept, "phrase">): string {
  return concept.phrase;
}

/**
 * Adds the tokens of concepts to a model; no adapter is attached.
 *
 * Entries are named `<new0>`, `<new1>`, … in the order of the concepts, their
 * ids start at the size of the vocabulary (as the official code does).
 *
 * @param model The model; not changed.
 * @param concepts One or several.
 * @returns A model that owns one new tensor, `added.vectors` (differentiable
 * by the concepts' vectors), and shares all others.
 * @throws If a token is already known or its vectors do not fit.
 */
export function addTokens(
  model: Model,
  concepts: readonly Pick<Concept, "tokens">[],
): Model {
  const what = "add concept tokens";
  const count = siteCount(model);
  const width = model.textEncoder.config.hidden_size;
  const base = model.textEncoder.params.text_model.embeddings.token_embedding
    .weight.shape[0];
  const names = [...model.added?.names ?? []];
  if (model.tokenizer.vocabSize !== base + names.length) {
    throw cannot(
      what,
      `a tokenizer of ${base + names.length} entries`,
      model.tokenizer.vocabSize,
    );
  }
  const placed: Record<string, readonly number[]> = { ...model.added?.sites };
  const fresh: string[] = [];
  const vectors: tf.Tensor2D[] = model.added ? [model.added.vectors] : [];
  let number = names.length;
  for (const { token, vectors: own } of concepts.flatMap((c) => c.tokens)) {
    // Tokens from files may contain spaces: in A1111 their text is the file's
    // name.
    if (token.trim() !== token || token === "") {
      throw cannot(what, "tokens without spaces around them", `"${token}"`);
    }
    if (placed[token] !== undefined || model.tokenizer.has(token)) {
      throw cannot(what, "tokens not yet in the model", token);
    }
    const [rows, columns] = own.shape;
    if (columns !== width || (rows !== 1 && rows < count)) {
      throw cannot(
        what,
        `vectors [${count}, ${width}] or [1, ${width}] of ${token}`,
        `[${own.shape}]`,
      );
    }
    const start = names.length;
    for (let row = 0; row < rows; row++) {
      while (model.tokenizer.has(`<new${number}>`)) number++;
      names.push(`<new${number}>`);
      fresh.push(`<new${number++}>`);
    }
    placed[token] = rows === 1
      ? new Array(count).fill(start)
      : Array.from({ length: rows }, (_, row) => start + row);
    vectors.push(own);
  }
  if (vectors.length === 0) return model;
  const added: AddedTokens = {
    names,
    vectors: vectors.length === 1 ? vectors[0].clone() : tf.concat(vectors, 0),
    sites: placed,
  };
  return {
    ...model,
    tokenizer: model.tokenizer.withAddedTokens(fresh),
    added,
  };
}

/**
 * Adds concepts to a model: their tokens, and their adapters at strength α.
 * With several concepts their ΔW add up (no fusion).
 *
 * @param model The model; not changed.
 * @param concepts One or several.
 * @param options α, weights per adapter, component or layer.
 * @returns A model that owns `added.vectors` (release it with
 * {@linkcode releaseTokens}) and shares every other tensor.
 * @throws If a token or adapter name is taken, or something does not fit.
 *
 * @example
 * ```ts
 * const withPotter = attachConcept(model, potter, { alpha: 0.7 });
 * ```
 */
export function attachConcept(
  model: Model,
  concepts: Concept | readonly Concept[],
  options: AttachOptions = {},
): Model {
  const list = Array.isArray(concepts)
    ? concepts as readonly Concept[]
    : [concepts as Concept];
  const adapted = attach(
    withWeights(model, list, options),
    list.map(({ adapter }) => adapter).filter((a) =>
      a.textEncoder.size + a.unet.size > 0
    ),
    options,
  );
  return addTokens(adapted, list);
}

/** Replaces networks of the model by the fine-tuned ones of a concept. */
function withWeights(
  model: Model,
  concepts: readonly Concept[],
  { alpha = 1, weights: factors }: AttachOptions,
): Model {
  const tuned = concepts.filter(({ weights }) => weights);
  if (tuned.length === 0) return model;
  const [{ name, weights }] = tuned;
  if (tuned.length > 1 || alpha !== 1 || factors !== undefined) {
    throw cannot(
      `attach "${name}"`,
      "one fine-tuned model at strength 1 (weight fusion takes several, at " +
        "any strength)",
      tuned.length > 1 ? `${tuned.length} of them` : "weights",
    );
  }
  const result = { ...model };
  for (const component of COMPONENTS) {
    const own = weights![component];
    const { params } = model[component];
    for (const [path, tensor] of own) {
      const shape = (at(params, path) as tf.Tensor | undefined)?.shape;
      if (!shape || !tf.util.arraysEqual(shape, tensor.shape)) {
        throw cannot(
          `attach "${name}"`,
          `${component} ${path} [${shape ?? "of the model"}]`,
          `[${tensor.shape}]`,
        );
      }
    }
    Object.assign(result, {
      [component]: {
        ...model[component],
        params: updateAt(
          params as TreeLike,
          own.keys(),
          (_, path) => own.get(path),
        ),
      },
    });
  }
  return result;
}

/**
 * Disposes the tensors that {@linkcode attachConcept} added to a model.
 *
 * @param model The model with concepts.
 * @param base The model they were attached to.
 */
export function releaseTokens(model: Model, base: Model): void {
  if (model.added && model.added !== base.added) model.added.vectors.dispose();
}

/**
 * Disposes the tensors of a concept.
 *
 * @param concept The concept.
 */
export function disposeConcept(concept: Concept): void {
  disposeAdapter(concept.adapter);
  for (const own of Object.values(concept.weights ?? {})) {
    for (const tensor of own.values()) tensor.isDisposed || tensor.dispose();
  }
  for (const { vectors } of concept.tokens) {
    if (!vectors.isDisposed) vectors.dispose();
  }
}

/**
 * The tensors of a concept by name: `embedding.<token>`, those of its adapter,
 * and `<component>.<path>` of fine-tuned networks.
 *
 * @param concept The concept.
 */
export function conceptTensors(concept: Concept): Map<string, tf.Tensor> {
  return new Map<string, tf.Tensor>([
    ...concept.tokens.map(({ token, vectors }) =>
      [`embedding.${token}`, vectors] as const
    ),
    ...adapterTensors(concept.adapter),
    ...COMPONENTS.flatMap((component) =>
      [...concept.weights?.[component] ?? []].map(([path, tensor]) =>
        [`${component}.${path}`, tensor] as const
      )
    ),
  ]);
}
