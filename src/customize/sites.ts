/**
 * The layers of a model that can have adapters, and named sets of them.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { TreeLike } from "../core/tree.ts";
import { ParamSpec } from "../nn/spec.ts";

/** The two networks of a model that can have adapters. */
export type Component = "textEncoder" | "unet";

/** Both components, in the order in which they are always iterated. */
export const COMPONENTS: readonly Component[] = ["textEncoder", "unet"];

/** Which part of a UNet a layer is in. */
export interface Block {
  /** Encoder, middle or decoder. */
  readonly part: "down" | "mid" | "up";
  /** Its resolution: 0 is the latent's, each level halves it. */
  readonly level: number;
  /** Resolutions of the UNet. */
  readonly levels: number;
}

/**
 * The block that a path of a UNet is in.
 *
 * @param path Path of a layer.
 * @param levels Resolutions of the UNet.
 * @returns Nothing for layers outside of blocks (`conv_in`, time embedding).
 */
export function blockOf(path: string, levels: number): Block | undefined {
  const [block, index] = path.split(".");
  switch (block) {
    case "down_blocks":
      return { part: "down", level: Number(index), levels };
    case "mid_block":
      return { part: "mid", level: levels - 1, levels };
    case "up_blocks":
      return { part: "up", level: levels - 1 - Number(index), levels };
    default:
      return undefined;
  }
}

/** A layer that can take a low-rank addition. */
export interface Site {
  /** Path of the layer in its tree, without `.weight`. */
  readonly path: string;
  /** What kind of layer it is. */
  readonly kind: "linear" | "conv";
  /** Input features or channels. */
  readonly inputs: number;
  /** Output features or channels. */
  readonly outputs: number;
  /** Height and width of the filter; [1, 1] for a linear layer. */
  readonly kernel: readonly [number, number];
  /** The block of the UNet that it is in, if any. */
  readonly block?: Block;
}

/**
 * Lists the layers of a tree that can take an adapter: linear layers and
 * convolutions, not embedding tables.
 *
 * @param tree Parameters of a network, or its spec.
 * @param filter Keeps a layer.
 * @returns The layers in the order of the tree.
 */
export function sites(
  tree: TreeLike,
  filter: (site: Site) => boolean = () => true,
): Site[] {
  const found: Site[] = [];
  const levels = Object.keys(tree?.down_blocks ?? {}).length;
  const visit = (node: TreeLike, path: string) => {
    if (
      node === undefined || node === null || typeof node !== "object" ||
      node instanceof tf.Tensor || node instanceof ParamSpec
    ) return;
    const { weight } = node;
    if (
      (weight instanceof tf.Tensor || weight instanceof ParamSpec) &&
      !path.endsWith("_embedding")
    ) {
      const { shape } = weight;
      const block = levels > 0 ? blockOf(path, levels) : undefined;
      if (shape.length === 2) {
        found.push({
          path,
          kind: "linear",
          inputs: shape[0],
          outputs: shape[1],
          kernel: [1, 1],
          ...(block && { block }),
        });
      } else if (shape.length === 4) {
        found.push({
          path,
          kind: "conv",
          inputs: shape[2],
          outputs: shape[3],
          kernel: [shape[0], shape[1]],
          ...(block && { block }),
        });
      }
      return;
    }
    for (const [key, value] of Object.entries(node)) {
      visit(value, path === "" ? key : `${path}.${key}`);
    }
  };
  visit(tree, "");
  return found.filter(filter);
}

/** Paths of linear layers inside attention modules. */
export const ATTENTION: RegExp = /(^|\.)(self_attn|attn1|attn2)\.[^.]+(\.0)?$/;

/**
 * Lists every linear layer inside attention modules: `self_attn.*` of CLIP,
 * `attn1` and `attn2` of the UNet. SD 1.5 has 48 and 128.
 *
 * @param tree Parameters of a text encoder or UNet.
 */
export function attentionSites(tree: TreeLike): Site[] {
  return sites(
    tree,
    ({ kind, path }) => kind === "linear" && ATTENTION.test(path),
  );
}

/** Which layers of which component get an adapter. */
export type Targets = (component: Component, site: Site) => boolean;

/** Names of sets of layers. */
export type TargetName =
  | "attention"
  | "unet-attention"
  | "cross-attention"
  | "cross-attention-kv"
  | "mid-block"
  | "middle-layers"
  | "high-resolution-decoder"
  | "linear"
  | "all";

/** All names of sets of layers. */
export const TARGET_NAMES: readonly TargetName[] = [
  "attention",
  "unet-attention",
  "cross-attention",
  "cross-attention-kv",
  "mid-block",
  "middle-layers",
  "high-resolution-decoder",
  "linear",
  "all",
];

/**
 * The layers of a named set: `attention` (Mix-of-Show), `unet-attention`,
 * `cross-attention`, `cross-attention-kv` (Custom Diffusion), `linear` (every
 * linear layer), `all` (and every convolution). Of the UNet's attention only:
 * `mid-block`; `middle-layers`, that is the middle block and the lower half of
 * the resolutions before and after it; `high-resolution-decoder`, the upper
 * half of the resolutions in the decoder (SD 1.5: 8, 48 and 48 of 128 layers;
 * the other 32 are the upper half of the encoder).
 *
 * @param name The name.
 * @throws If the name is unknown.
 */
export function targets(name: TargetName): Targets {
  switch (name) {
    case "attention":
      return (_, { kind, path }) => kind === "linear" && ATTENTION.test(path);
    case "unet-attention":
      return (component, { kind, path }) =>
        component === "unet" && kind === "linear" && ATTENTION.test(path);
    case "cross-attention":
      return (component, { path }) =>
        component === "unet" && /\.attn2\./.test(path);
    case "cross-attention-kv":
      return (component, { path }) =>
        component === "unet" && /\.attn2\.to_[kv]$/.test(path);
    case "mid-block":
      return inBlocks(({ part }) => part === "mid");
    case "middle-layers":
      return inBlocks(({ level, levels }) => 2 * level >= levels);
    case "high-resolution-decoder":
      return inBlocks(({ part, level, levels }) =>
        part === "up" && 2 * level < levels
      );
    case "linear":
      return (_, { kind }) => kind === "linear";
    case "all":
      return () => true;
    default:
      throw cannot(
        "choose layers",
        TARGET_NAMES.join(", "),
        String(name),
      );
  }
}

/** Attention in chosen blocks of the UNet. */
function inBlocks(chosen: (block: Block) => boolean): Targets {
  return (component, { kind, path, block }) =>
    component === "unet" && kind === "linear" && ATTENTION.test(path) &&
    block !== undefined && chosen(block);
}
