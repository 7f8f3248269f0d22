/**
 * The layers of a model that adapters go into, and named choices of them.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import type { TreeLike } from "../core/tree.ts";
import { ParamSpec } from "../nn/spec.ts";

/** The two networks of a model that adapters go into. */
export type Component = "textEncoder" | "unet";

/** Both components, in the order in which they are always walked. */
export const COMPONENTS: readonly Component[] = ["textEncoder", "unet"];

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
      if (shape.length === 2) {
        found.push({
          path,
          kind: "linear",
          inputs: shape[0],
          outputs: shape[1],
          kernel: [1, 1],
        });
      } else if (shape.length === 4) {
        found.push({
          path,
          kind: "conv",
          inputs: shape[2],
          outputs: shape[3],
          kernel: [shape[0], shape[1]],
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

/** Named choices of layers. */
export type TargetName =
  | "attention"
  | "unet-attention"
  | "cross-attention"
  | "cross-attention-kv"
  | "linear"
  | "all";

/** Every name of layers. */
export const TARGET_NAMES: readonly TargetName[] = [
  "attention",
  "unet-attention",
  "cross-attention",
  "cross-attention-kv",
  "linear",
  "all",
];

/**
 * The layers a name stands for: `attention` (Mix-of-Show), `unet-attention`,
 * `cross-attention`, `cross-attention-kv` (Custom Diffusion), `linear` (every
 * linear layer), `all` (and every convolution).
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
