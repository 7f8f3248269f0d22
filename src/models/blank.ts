/**
 * Models without values: what their configs say of shapes, for counting.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { buildTree, type ParamSpec, type Spec } from "../nn/spec.ts";
import { type Autoencoder, autoencoderSpec } from "./autoencoder.ts";
import type {
  AutoencoderConfig,
  TextEncoderConfig,
  UNetConfig,
} from "./config.ts";
import type { Model } from "./model.ts";
import { type TextEncoder, textEncoderSpec } from "./text_encoder.ts";
import { byteAlphabet, createTokenizer, type Tokenizer } from "./tokenizer.ts";
import { type UNet, unetSpec } from "./unet.ts";

/** The configs of a model's networks, without weights. */
export interface ModelConfigs {
  /** Config of the text encoder. */
  readonly textEncoder: TextEncoderConfig;
  /** Config of the UNet. */
  readonly unet: UNetConfig;
  /** Config of the autoencoder. */
  readonly autoencoder: AutoencoderConfig;
  /** scheduler_config.json. */
  readonly scheduler: Readonly<Record<string, unknown>>;
}

/**
 * The configs of a model.
 *
 * @param model The model.
 */
export function configsOf(model: Model): ModelConfigs {
  return {
    textEncoder: model.textEncoder.config,
    unet: model.unet.config,
    autoencoder: model.autoencoder.config,
    scheduler: model.scheduler,
  };
}

/** The class word that {@linkcode blankModel}'s tokenizer knows as one token. */
export const BLANK_WORD = "a";

/** Tokenizers that have been made: a large vocabulary takes a second. */
const made = new Map<string, Tokenizer>();

/** A tokenizer that knows letters; entries without a meaning fill it up. */
function letters(config: TextEncoderConfig): Tokenizer {
  const { vocab_size, max_position_embeddings } = config;
  const name = `${vocab_size} ${max_position_embeddings}`;
  const known = made.get(name) ?? makeLetters(config);
  made.set(name, known);
  return known;
}

function makeLetters(
  { vocab_size, max_position_embeddings }: TextEncoderConfig,
): Tokenizer {
  const alphabet = byteAlphabet().map(([, letter]) => letter);
  const words = [...alphabet, ...alphabet.map((letter) => `${letter}</w>`)];
  // A vocabulary below that of bytes keeps the ones that prompts here use.
  const known = words.filter((word) => /^[a-z0-9<>{}]/.test(word))
    .concat(words.filter((word) => !/^[a-z0-9<>{}]/.test(word)))
    .slice(0, Math.max(vocab_size - 2, 1));
  while (known.length < vocab_size - 2) known.push(`unused ${known.length}`);
  const all = [...known, "<|startoftext|>", "<|endoftext|>"];
  return createTokenizer({
    vocab: Object.fromEntries(all.map((token, id) => [token, id])),
    merges: [],
    modelMaxLength: max_position_embeddings,
  });
}

/** How a tensor is kept, if not as floats where the others are. */
export type Kept = "host" | "half" | undefined;

/**
 * How a loaded parameter is kept: tables of vectors wait on the host of a
 * graphics card, weights of layers may be half floats.
 *
 * @param param The parameter.
 * @param half Whether weights are.
 */
function keptAs({ kind, shape }: ParamSpec, half: boolean): Kept {
  if (kind === "plain") return shape.length === 2 ? "host" : undefined;
  return half ? "half" : undefined;
}

/** Bytes that a run needs, and what for. */
export interface MemoryNeed {
  /** What the machine or the graphics card must have. */
  readonly bytes: number;
  /** The model's weights. */
  readonly weights: number;
  /** Adapters and learned vectors, or what a fusion makes. */
  readonly adapters: number;
  /** The optimizer's moments. */
  readonly optimizer: number;
  /** Everything else at the highest point: activations, gradients. */
  readonly activations: number;
  /** Tensors at the highest point. */
  readonly peak: number;
  /** Buffers at the highest point (see `MemoryCount`). */
  readonly held: number;
  /** The largest tensor. */
  readonly largest: number;
  /** Bytes on the host of a graphics card, where they are not few. */
  readonly host?: number;
}

/**
 * A model of a shape, with tensors from elsewhere.
 *
 * @param configs Its configs.
 * @param make Makes each tensor, such as `empty` of a counting backend's meter.
 * @param half Whether weights of layers are half floats.
 * @returns The model; its tokenizer knows letters only.
 */
export function blankModel(
  configs: ModelConfigs,
  make: (shape: number[], kept: Kept) => tf.Tensor,
  half = false,
): Model {
  const blank = <T>(spec: Spec<T>): T =>
    buildTree<T>(spec, (param) => make(param.shape, keptAs(param, half)));
  return {
    tokenizer: letters(configs.textEncoder),
    textEncoder: {
      config: configs.textEncoder,
      params: blank<TextEncoder>(textEncoderSpec(configs.textEncoder)),
    },
    unet: {
      config: configs.unet,
      params: blank<UNet>(unetSpec(configs.unet)),
    },
    autoencoder: {
      config: configs.autoencoder,
      params: blank<Autoencoder>(autoencoderSpec(configs.autoencoder)),
    },
    scheduler: configs.scheduler,
  };
}
