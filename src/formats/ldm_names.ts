/**
 * Names of the original latent diffusion code, as single files have them.
 *
 * The names are data: rows that pair a module of ours with a module of theirs,
 * made from the configs at hand. Reading and writing use the same rows, so one
 * is the inverse of the other by construction. Two layouts of the text encoder
 * are known: transformers' CLIP (Stable Diffusion 1.x) and OpenCLIP's with
 * fused query, key and value (2.x).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { type ParamSpec, specLeaves, type SpecLike } from "../nn/spec.ts";
import { autoencoderSpec } from "../models/autoencoder.ts";
import { diskShape } from "../models/checkpoint.ts";
import {
  type AutoencoderConfig,
  perLevel,
  type TextEncoderConfig,
  type UNetConfig,
} from "../models/config.ts";
import { textEncoderSpec } from "../models/text_encoder.ts";
import { unetSpec } from "../models/unet.ts";

/** The two layouts of single files: `sd1` has CLIP's text encoder, `sd2` OpenCLIP's. */
export type LdmLayout = "sd1" | "sd2";

/** The networks of a single file. */
export type LdmComponent = "textEncoder" | "unet" | "autoencoder";

/** The configs of the networks of a single file. */
export interface LdmConfigs {
  /** The text encoder's. */
  readonly textEncoder: TextEncoderConfig;
  /** The UNet's. */
  readonly unet: UNetConfig;
  /** The autoencoder's. */
  readonly autoencoder: AutoencoderConfig;
}

/** The quantity that a model is trained to predict. */
export type LdmPrediction = "epsilon" | "v_prediction";

/** One tensor of a single file and the parameters of ours that it holds. */
export interface LdmEntry {
  /** Names it may have; the first is the one that is written. */
  readonly names: readonly string[];
  /** Shape on disk. */
  readonly shape: readonly number[];
  readonly component: LdmComponent;
  /** Parameters, stacked along the first axis on disk where there are several. */
  readonly parts: readonly {
    readonly path: string;
    readonly param: ParamSpec;
  }[];
}

/** A module of ours and of theirs; both also as the beginning of a name. */
type Row = readonly [ours: string, theirs: string];

/** Beginnings of the names of each network. */
export const LDM_PREFIX: Readonly<Record<LdmComponent, string>> = {
  unet: "model.diffusion_model.",
  autoencoder: "first_stage_model.",
  textEncoder: "cond_stage_model.",
};

const UNET_RESNET: readonly Row[] = [
  ["norm1", "in_layers.0"],
  ["conv1", "in_layers.2"],
  ["time_emb_proj", "emb_layers.1"],
  ["norm2", "out_layers.0"],
  ["conv2", "out_layers.3"],
  ["conv_shortcut", "skip_connection"],
];

const AUTOENCODER_RESNET: readonly Row[] = [
  ["norm1", "norm1"],
  ["conv1", "conv1"],
  ["norm2", "norm2"],
  ["conv2", "conv2"],
  ["conv_shortcut", "nin_shortcut"],
];

const AUTOENCODER_ATTENTION: readonly Row[] = [
  ["group_norm", "norm"],
  ["to_q", "q"],
  ["to_k", "k"],
  ["to_v", "v"],
  ["to_out.0", "proj_out"],
];

const OPENCLIP_LAYER: readonly Row[] = [
  ["layer_norm1", "ln_1"],
  ["layer_norm2", "ln_2"],
  ["mlp.fc1", "mlp.c_fc"],
  ["mlp.fc2", "mlp.c_proj"],
  ["self_attn.out_proj", "attn.out_proj"],
  // Three of ours, one of theirs, stacked in this order.
  ["self_attn.q_proj.weight", "attn.in_proj_weight"],
  ["self_attn.k_proj.weight", "attn.in_proj_weight"],
  ["self_attn.v_proj.weight", "attn.in_proj_weight"],
  ["self_attn.q_proj.bias", "attn.in_proj_bias"],
  ["self_attn.k_proj.bias", "attn.in_proj_bias"],
  ["self_attn.v_proj.bias", "attn.in_proj_bias"],
];

function below(
  ours: string,
  theirs: string,
  rows: readonly Row[],
): Row[] {
  return rows.map(([a, b]): Row => [`${ours}.${a}`, `${theirs}.${b}`]);
}

/** Blocks are counted through all levels; a level's sampler is a block, too. */
function unetRows(config: UNetConfig): Row[] {
  const rows: Row[] = [
    ["time_embedding.linear_1", "time_embed.0"],
    ["time_embedding.linear_2", "time_embed.2"],
    ["conv_in", "input_blocks.0.0"],
    ["conv_norm_out", "out.0"],
    ["conv_out", "out.2"],
  ];
  const levels = config.block_out_channels.length;
  let block = 1;
  config.down_block_types.forEach((_, i) => {
    for (let j = 0; j < perLevel(config.layers_per_block, i); j++, block++) {
      const theirs = `input_blocks.${block}`;
      rows.push(
        ...below(`down_blocks.${i}.resnets.${j}`, `${theirs}.0`, UNET_RESNET),
        [`down_blocks.${i}.attentions.${j}`, `${theirs}.1`],
      );
    }
    if (i < levels - 1) {
      rows.push([
        `down_blocks.${i}.downsamplers.0.conv`,
        `input_blocks.${block++}.0.op`,
      ]);
    }
  });
  rows.push(
    ...below("mid_block.resnets.0", "middle_block.0", UNET_RESNET),
    ["mid_block.attentions.0", "middle_block.1"],
    ...below("mid_block.resnets.1", "middle_block.2", UNET_RESNET),
  );
  block = 0;
  config.up_block_types.forEach((type, i) => {
    const layers = perLevel(config.layers_per_block, levels - 1 - i) + 1;
    for (let j = 0; j < layers; j++, block++) {
      const theirs = `output_blocks.${block}`;
      rows.push(
        ...below(`up_blocks.${i}.resnets.${j}`, `${theirs}.0`, UNET_RESNET),
        [`up_blocks.${i}.attentions.${j}`, `${theirs}.1`],
      );
    }
    // The upsampler stands in the last block, behind whatever is there.
    const place = type === "CrossAttnUpBlock2D" ? 2 : 1;
    rows.push([
      `up_blocks.${i}.upsamplers.0.conv`,
      `output_blocks.${block - 1}.${place}.conv`,
    ]);
  });
  return rows;
}

function autoencoderRows(config: AutoencoderConfig): Row[] {
  const levels = config.block_out_channels.length;
  const rows: Row[] = [
    ["quant_conv", "quant_conv"],
    ["post_quant_conv", "post_quant_conv"],
  ];
  for (const half of ["encoder", "decoder"]) {
    rows.push(
      [`${half}.conv_in`, `${half}.conv_in`],
      [`${half}.conv_norm_out`, `${half}.norm_out`],
      [`${half}.conv_out`, `${half}.conv_out`],
      ...below(
        `${half}.mid_block.resnets.0`,
        `${half}.mid.block_1`,
        AUTOENCODER_RESNET,
      ),
      ...below(
        `${half}.mid_block.attentions.0`,
        `${half}.mid.attn_1`,
        AUTOENCODER_ATTENTION,
      ),
      ...below(
        `${half}.mid_block.resnets.1`,
        `${half}.mid.block_2`,
        AUTOENCODER_RESNET,
      ),
    );
  }
  for (let i = 0; i < levels; i++) {
    const down = `encoder.down.${i}`;
    // The decoder's levels are counted from the highest resolution, too.
    const up = `decoder.up.${levels - 1 - i}`;
    for (let j = 0; j <= config.layers_per_block; j++) {
      rows.push(
        ...below(
          `encoder.down_blocks.${i}.resnets.${j}`,
          `${down}.block.${j}`,
          AUTOENCODER_RESNET,
        ),
        ...below(
          `decoder.up_blocks.${i}.resnets.${j}`,
          `${up}.block.${j}`,
          AUTOENCODER_RESNET,
        ),
      );
    }
    rows.push(
      [
        `encoder.down_blocks.${i}.downsamplers.0.conv`,
        `${down}.downsample.conv`,
      ],
      [`decoder.up_blocks.${i}.upsamplers.0.conv`, `${up}.upsample.conv`],
    );
  }
  return rows;
}

function textRows(config: TextEncoderConfig, layout: LdmLayout): Row[] {
  if (layout === "sd1") return [["text_model", "transformer.text_model"]];
  const rows: Row[] = [
    ["text_model.embeddings.token_embedding", "model.token_embedding"],
    [
      "text_model.embeddings.position_embedding.weight",
      "model.positional_embedding",
    ],
    ["text_model.final_layer_norm", "model.ln_final"],
  ];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    rows.push(
      ...below(
        `text_model.encoder.layers.${i}`,
        `model.transformer.resblocks.${i}`,
        OPENCLIP_LAYER,
      ),
    );
  }
  return rows;
}

/** Names a tensor may have: some files lack one level of the text encoder's modules. */
export function ldmNamesOf(component: LdmComponent, theirs: string): string[] {
  const name = LDM_PREFIX[component] + theirs;
  const old = component === "textEncoder" &&
    theirs.startsWith("transformer.text_model.");
  return old ? [name, name.replace(".text_model.", ".")] : [name];
}

/** Their name of a parameter, by the longest row that begins it. */
function translate(rows: ReadonlyMap<string, string>, path: string): string {
  for (let end = path.length; end > 0; end = path.lastIndexOf(".", end - 1)) {
    const theirs = rows.get(path.slice(0, end));
    if (theirs !== undefined) return theirs + path.slice(end);
  }
  throw cannot("name a parameter as LDM does", "a known module", path);
}

/**
 * Every tensor of a single file for a model of these configs.
 *
 * @param configs The configs.
 * @param layout Layout of the text encoder.
 * @returns The tensors; each parameter of the model is a part of exactly one.
 *
 * @example
 * ```ts ignore
 * const entries = ldmEntries(configs, "sd1");
 * entries[0].names[0]; // "model.diffusion_model.input_blocks.0.0.weight"
 * ```
 */
export function ldmEntries(
  configs: LdmConfigs,
  layout: LdmLayout,
): LdmEntry[] {
  const components: [LdmComponent, readonly Row[], SpecLike][] = [
    ["unet", unetRows(configs.unet), unetSpec(configs.unet)],
    [
      "autoencoder",
      autoencoderRows(configs.autoencoder),
      autoencoderSpec(configs.autoencoder),
    ],
    [
      "textEncoder",
      textRows(configs.textEncoder, layout),
      textEncoderSpec(configs.textEncoder),
    ],
  ];
  return components.flatMap(([component, rows, spec]) => {
    const theirs = new Map(rows);
    const order = new Map(rows.map(([ours], i) => [ours, i]));
    const groups = new Map<string, LdmEntry["parts"][number][]>();
    for (const [path, param] of specLeaves(spec)) {
      const name = translate(theirs, path);
      const group = groups.get(name) ?? [];
      groups.set(name, group);
      group.push({ path, param });
    }
    return [...groups].map(([name, group]): LdmEntry => {
      const parts = group.length === 1
        ? group
        : group.toSorted((a, b) => order.get(a.path)! - order.get(b.path)!);
      return {
        component,
        names: ldmNamesOf(component, name),
        shape: stackedShape(component, parts),
        parts,
      };
    });
  });
}

function stackedShape(
  component: LdmComponent,
  parts: LdmEntry["parts"],
): number[] {
  const shapes = parts.map(({ param }) => diskShape(param.kind, param.shape));
  const shape = [...shapes[0]];
  for (const other of shapes.slice(1)) shape[0] += other[0];
  // Their autoencoder attends through 1×1 convolutions.
  const conv = component === "autoencoder" && parts[0].param.kind === "linear";
  return conv ? [...shape, 1, 1] : shape;
}
