/**
 * What a dialect of LoRA files is: how layers, parts and learned tokens are
 * called in a file, as data that both reading and writing use.
 *
 * @module
 */
import type { Component, ScaleRule, Site } from "../../customize/lora.ts";
import type { LowRank } from "../../nn/linear.ts";
import type { LycorisPart } from "../lycoris.ts";
import type { LoraLayers } from "./base.ts";
import type { PeftConfigs } from "./peft_config.ts";

/** The dialects this library knows. */
export type DialectId =
  | "kohya"
  | "official"
  | "peft"
  | "diffusers"
  | "cloneofsimo"
  | "learned_embeds"
  | "a1111";

/**
 * The parts a layer may have in a file. With `mid`, the filter of a convolution
 * between two 1×1 ones (LyCORIS's Tucker form), `down` is 1×1. LoHa, LoKr and
 * full differences have parts of their own.
 */
export type Part =
  | "down"
  | "mid"
  | "up"
  | "alpha"
  | "magnitude"
  | LycorisPart;

/** What can be known of a file before its tensors are read. */
export interface LoraHeader {
  /** Names, shapes and types of the tensors. */
  readonly entries: ReadonlyMap<
    string,
    { readonly shape: readonly number[]; readonly dtype?: string }
  >;
  /** The file's metadata. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** What the rows of a learned token's tensor are. */
export type TokenRows = "layers" | "vectors";

/** How a dialect keeps learned tokens. */
export interface TokenNames {
  /**
   * `layers`: one row per cross-attention layer, or one row for all of them.
   * `vectors`: a token of several vectors, one behind the other in the prompt.
   */
  readonly rows: TokenRows;
  /**
   * The token a key holds, if it does hold one.
   *
   * @param key Name of the tensor.
   * @param header The file.
   * @param name What the token is called where the file does not say.
   */
  readonly read: (
    key: string,
    header: LoraHeader,
    name: string,
  ) => string | undefined;
  /** The key of a token. */
  readonly write: (token: string) => string;
  /** Whether a single vector is written as [width], not [1, width]. */
  readonly flat?: boolean;
  /** Whether a token of several vectors is one tensor. */
  readonly grouped?: boolean;
  /** Whether a file has room for one token only. */
  readonly single?: boolean;
}

/** The layers of an adapter, to find names and metadata for them. */
export type Present = Readonly<
  Record<Component, ReadonlyMap<string, LowRank>>
>;

/**
 * The names of a layer in a dialect: none, or several, of which it writes the
 * first.
 */
export type LayerNames = (
  component: Component,
  path: string,
) => readonly string[];

/** Everything that is wrong with a file, for one error. */
export interface LoraFaults {
  /** Keys that should be there. */
  readonly missing?: readonly string[];
  /** Keys that should not. */
  readonly unexpected?: readonly string[];
  /** Keys of another shape, and what it should be. */
  readonly misshapen?: readonly string[];
  /** Keys of another type, and what it should be. */
  readonly mistyped?: readonly string[];
}

/** How one family of files names things. */
export interface Dialect {
  /** Its name. */
  readonly id: DialectId;
  /** What writes such files, for people. */
  readonly describe: string;
  /**
   * Whether a file is of this dialect.
   *
   * @param header Names and shapes of its tensors.
   * @param width Width of a token's vector, where it is known.
   */
  readonly detect: (header: LoraHeader, width?: number) => boolean;
  /**
   * Names of all layers, for a file of this header.
   *
   * @param layers The layers of the model.
   * @param header The file: some dialects number layers and say in the metadata
   * which ones.
   * @throws If the header does not tell.
   */
  readonly names: (layers: LoraLayers, header: LoraHeader) => LayerNames;
  /** Ends of the keys of each part, the one that is written first. */
  readonly parts: Readonly<Partial<Record<Part, readonly string[]>>>;
  /** Parts that are read where they are there, but never written. */
  readonly readOnly?: readonly Part[];
  /** What the scale is without an α: of `alpha` 1, of `alpha/rank` α = rank. */
  readonly scaleRule: ScaleRule;
  /** Learned tokens, if the dialect holds any. */
  readonly tokens?: TokenNames;
  /**
   * Layers a file must have of a component that it has layers of.
   *
   * @param layers The layers of the model.
   * @param header The file.
   * @param component Which network.
   */
  readonly required?: (
    layers: LoraLayers,
    header: LoraHeader,
    component: Component,
  ) => Iterable<string>;
  /**
   * What a DoRA magnitude of this shape is of, or nothing if it does not fit.
   */
  readonly magnitudeOf?: (
    shape: readonly number[],
    site: Site,
  ) => "output" | "input" | undefined;
  /** Shape on disk of a DoRA magnitude; nothing if it cannot be held. */
  readonly magnitudeShape?: (
    site: Site,
    of: "output" | "input",
  ) => number[] | undefined;
  /**
   * Scales that the header has beside α tensors.
   *
   * @throws If it is malformed.
   */
  readonly configs?: (header: LoraHeader) => PeftConfigs | undefined;
  /**
   * Metadata of a file with these layers and tokens.
   *
   * @throws If the dialect cannot hold them.
   */
  readonly metadata?: (
    present: Present,
    tokens: readonly string[],
    layers: LoraLayers,
  ) => Record<string, string>;
  /** What else is wrong with a file, in addition to keys and shapes. */
  readonly faults?: (header: LoraHeader, layers: LoraLayers) => LoraFaults;
  /** Metadata keys that belong to the dialect and mean nothing in others. */
  readonly structural?: RegExp;
}

/** Names of the components in files that spell them out. */
export const PREFIX: Readonly<Record<Component, string>> = {
  textEncoder: "text_encoder",
  unet: "unet",
};

/** Whether a file has a key that matches. */
export function anyKey(header: LoraHeader, pattern: RegExp): boolean {
  for (const key of header.entries.keys()) if (pattern.test(key)) return true;
  return false;
}
