/**
 * Stable Diffusion in one `.safetensors` file, named as in the original latent
 * diffusion code: what Civitai offers and other tools load.
 *
 * The names are data: rows that pair a module of ours with a module of theirs,
 * made from the configs at hand. Reading and writing use the same rows, so one
 * is the inverse of the other by construction. Two layouts of the text encoder
 * are known: transformers' CLIP (Stable Diffusion 1.x) and OpenCLIP's with
 * fused query, key and value (2.x).
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { z } from "zod";
import { cannot, keyFaults } from "../core/errors.ts";
import { forgetHostCopy } from "../core/device.ts";
import { disposeTree, leaves, type TreeLike } from "../core/tree.ts";
import { parseJson, pathOf, pythonJson } from "../io/files.ts";
import {
  encodeFloat,
  type LazyTensor,
  openSafetensors,
  type RawTensor,
  type SafetensorsFile,
  type TensorEntry,
  writeSafetensors,
} from "../io/safetensors.ts";
import { type ParamSpec, specLeaves, type SpecLike } from "../nn/spec.ts";
import { type Autoencoder, autoencoderSpec } from "../models/autoencoder.ts";
import {
  diskShape,
  load,
  sameDiskShape,
  type TensorSource,
  toDisk,
} from "../models/checkpoint.ts";
import {
  type AutoencoderConfig,
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
  parseWith,
  perLevel,
  type TextEncoderConfig,
  type UNetConfig,
} from "../models/config.ts";
import type { Model } from "../models/model.ts";
import { type TextEncoder, textEncoderSpec } from "../models/text_encoder.ts";
import { loadTokenizer, type Tokenizer } from "../models/tokenizer.ts";
import { type UNet, unetSpec } from "../models/unet.ts";

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

/** What the noise prediction of a model is trained to be. */
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

const PREFIX: Readonly<Record<LdmComponent, string>> = {
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

/** Old names: some files lack one level of the text encoder's modules. */
function namesOf(component: LdmComponent, theirs: string): string[] {
  const name = PREFIX[component] + theirs;
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
        names: namesOf(component, name),
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

/** A key that may stand in a single file and is not read, and why. */
export interface LdmIgnored {
  /** The keys. */
  readonly keys: RegExp;
  /** Why they are not read. */
  readonly why: string;
}

/** What a single file may hold beside the model. */
export const LDM_IGNORED: readonly LdmIgnored[] = [
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
  },
  {
    keys: /^first_stage_model\.(loss|model_ema)\./,
    why: "discriminator and averages of the autoencoder's training",
  },
  {
    keys:
      /^cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids$/,
    why: "the numbers 0, 1, 2, …",
  },
  {
    keys:
      /^cond_stage_model\.(model|transformer)\.(text_projection(\.weight)?|logit_scale|attn_mask)$/,
    why: "CLIP's head, which Stable Diffusion does not use",
  },
];

/** Marker tensors by which other tools tell v-prediction. */
const V_MARKER = /^(v_pred|ztsnr)$/;

const LAST_LAYER = /^cond_stage_model\.model\.transformer\.resblocks\.(\d+)\./;

/**
 * Whether the names are those of a single file with a whole Stable Diffusion.
 *
 * @param keys Names of the tensors.
 */
export function isLdm(keys: Iterable<string>): boolean {
  for (const key of keys) {
    if (key.startsWith(PREFIX.unet)) return true;
  }
  return false;
}

/** What the names and shapes of a single file tell. */
export interface LdmDescription {
  /** Which names it uses. */
  readonly layout: LdmLayout;
  /** Configs told from names and shapes. */
  readonly configs: LdmConfigs;
  /** Undefined where nothing in the file tells. */
  readonly predictionType?: LdmPrediction;
  /** The scheduler's config, where the file (one of ours) has it. */
  readonly scheduler?: Readonly<Record<string, unknown>>;
}

/** Values that replace what is inferred, field by field. */
export interface LdmOverrides {
  /** Fields of the text encoder's config. */
  readonly textEncoder?: Readonly<Record<string, unknown>>;
  /** Fields of the UNet's config. */
  readonly unet?: Readonly<Record<string, unknown>>;
  /** Fields of the autoencoder's config. */
  readonly autoencoder?: Readonly<Record<string, unknown>>;
}

/** Where our own files keep what shapes cannot tell. */
const METADATA = "mix_of_show.configs";

const metadataSchema = z.object({
  textEncoder: z.record(z.string(), z.unknown()),
  unet: z.record(z.string(), z.unknown()),
  autoencoder: z.record(z.string(), z.unknown()),
  scheduler: z.record(z.string(), z.unknown()),
});

/** The header of a single file: names, shapes, metadata. */
export type LdmHeader = Pick<SafetensorsFile, "entries"> & {
  readonly metadata?: Readonly<Record<string, string>>;
};

/**
 * Tells layout and configs of a single file from names, shapes and metadata.
 *
 * What shapes cannot tell (heads, norm groups, ε) is Stable Diffusion 1.x's or
 * 2.x's, unless the file is one of {@linkcode saveSingleFile} or the caller
 * says otherwise.
 *
 * @param file The open file.
 * @param overrides Fields of the configs that the caller knows better.
 * @throws If the file is no Stable Diffusion 1.x or 2.x.
 */
export function describeLdm(
  file: LdmHeader,
  overrides: LdmOverrides = {},
): LdmDescription {
  const what = "read a single-file model";
  const shape = (key: string) => file.entries.get(key)?.shape;
  const has = (key: string) => file.entries.has(key);
  const foreign = [...file.entries.keys()].find((key) =>
    /^(conditioner\.|text_encoders\.|model\.diffusion_model\.joint_blocks\.|model\.diffusion_model\.label_emb\.)/
      .test(key)
  );
  if (foreign !== undefined) {
    throw cannot(
      what,
      "Stable Diffusion 1.x or 2.x",
      `a model with ${foreign}`,
    );
  }
  if (!isLdm(file.entries.keys())) {
    const first = [...file.entries.keys()].slice(0, 3).join(", ");
    throw cannot(
      what,
      `keys that begin with ${Object.values(PREFIX).join(", ")}`,
      first || "no tensors",
    );
  }
  const layout: LdmLayout = has("cond_stage_model.model.ln_final.weight") ||
      has("cond_stage_model.model.token_embedding.weight")
    ? "sd2"
    : "sd1";
  const stored = storedConfigs(file.metadata?.[METADATA]);
  const configs: LdmConfigs = {
    textEncoder: parseTextEncoderConfig({
      ...stored?.textEncoder,
      ...inferTextEncoder(layout, shape, stored?.textEncoder),
      ...overrides.textEncoder,
    }),
    unet: parseUNetConfig({
      ...stored?.unet,
      ...inferUNet(layout, shape, stored?.unet),
      ...overrides.unet,
    }),
    autoencoder: parseAutoencoderConfig({
      ...stored?.autoencoder,
      ...inferAutoencoder(shape, stored?.autoencoder),
      ...overrides.autoencoder,
    }),
  };
  const predictionType = predictionOf(file, layout, stored?.scheduler);
  return {
    layout,
    configs,
    ...(predictionType ? { predictionType } : {}),
    ...(stored ? { scheduler: stored.scheduler } : {}),
  };
}

function storedConfigs(
  text: string | undefined,
): z.infer<typeof metadataSchema> | undefined {
  if (text === undefined) return undefined;
  const from = `the metadata ${METADATA}`;
  return parseWith(from, metadataSchema, parseJson(text, from));
}

function predictionOf(
  file: LdmHeader,
  layout: LdmLayout,
  scheduler: Readonly<Record<string, unknown>> | undefined,
): LdmPrediction | undefined {
  const said = scheduler?.prediction_type ??
    file.metadata?.["modelspec.prediction_type"];
  if (said === "epsilon") return "epsilon";
  if (said === "v" || said === "v_prediction") return "v_prediction";
  if (file.entries.has("v_pred")) return "v_prediction";
  return layout === "sd1" ? "epsilon" : undefined;
}

type ShapeOf = (key: string) => readonly number[] | undefined;

/** Counts i = 0, 1, 2, … as long as the name exists. */
function count(shape: ShapeOf, name: (i: number) => string): number {
  let i = 0;
  while (shape(name(i))) i++;
  return i;
}

function inferTextEncoder(
  layout: LdmLayout,
  shape: ShapeOf,
  stored: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> {
  const find = (theirs: string) =>
    namesOf("textEncoder", theirs).map(shape).find((s) => s !== undefined);
  if (layout === "sd2") {
    const table = find("model.token_embedding.weight");
    const width = table?.[1] ?? 1024;
    const layers = count(
      shape,
      (i) =>
        `${PREFIX.textEncoder}model.transformer.resblocks.${i}.ln_1.weight`,
    );
    // Stable Diffusion 2.x reads the last layer but one of OpenCLIP's 24; the
    // last may be in the file and is left out.
    const used = stored?.num_hidden_layers ?? (layers === 24 ? 23 : layers);
    return {
      vocab_size: table?.[0],
      hidden_size: width,
      max_position_embeddings: find("model.positional_embedding")?.[0],
      num_hidden_layers: used,
      intermediate_size: find("model.transformer.resblocks.0.mlp.c_fc.weight")
        ?.[0],
      ...(stored ? {} : {
        num_attention_heads: Math.max(1, Math.floor(width / 64)),
        hidden_act: "gelu",
        projection_dim: find("model.text_projection")?.[1] ?? 512,
      }),
    };
  }
  const model = "transformer.text_model";
  const table = find(`${model}.embeddings.token_embedding.weight`);
  const width = table?.[1] ?? 768;
  let layers = 0;
  while (find(`${model}.encoder.layers.${layers}.layer_norm1.weight`)) layers++;
  return {
    vocab_size: table?.[0],
    hidden_size: width,
    max_position_embeddings: find(
      `${model}.embeddings.position_embedding.weight`,
    )?.[0],
    // None is not a depth; the strict check then names the missing keys.
    num_hidden_layers: layers || 12,
    intermediate_size: find(`${model}.encoder.layers.0.mlp.fc1.weight`)?.[0],
    ...(stored ? {} : {
      num_attention_heads: Math.max(1, Math.floor(width / 64)),
      hidden_act: "quick_gelu",
      projection_dim: 768,
    }),
  };
}

function inferUNet(
  layout: LdmLayout,
  shape: ShapeOf,
  stored: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> {
  const at = (key: string) => shape(PREFIX.unet + key);
  interface Level {
    channels: number;
    layers: number;
    depth: number;
    states?: number;
  }
  const levels: Level[] = [];
  let open: Level | undefined;
  for (let block = 1;; block++) {
    const outputs = at(`input_blocks.${block}.0.in_layers.2.weight`)?.[0];
    if (outputs !== undefined) {
      if (!open) levels.push(open = { channels: outputs, layers: 0, depth: 0 });
      open.layers++;
      const attention = `input_blocks.${block}.1.transformer_blocks`;
      open.depth = count(at, (k) => `${attention}.${k}.norm1.weight`);
      open.states ??= at(`${attention}.0.attn2.to_k.weight`)?.[1];
    } else if (at(`input_blocks.${block}.0.op.weight`)) {
      open = undefined;
    } else {
      break;
    }
  }
  const channels = levels.map((level) => level.channels);
  const middle = "middle_block.1.transformer_blocks";
  const states = at(`${middle}.0.attn2.to_k.weight`)?.[1] ??
    levels.find((level) => level.states !== undefined)?.states;
  const time = at("time_embed.0.weight")?.[0];
  const cross = levels.map((level) => level.depth > 0);
  const equal = <T>(values: readonly T[]) =>
    values.every((value) => value === values[0]) ? values[0] : values;
  const depths = levels.map((level) =>
    level.depth || count(at, (k) => `${middle}.${k}.norm1.weight`) || 1
  );
  const scaleShift = at("input_blocks.1.0.emb_layers.1.weight")?.[0] ===
    2 * (channels[0] ?? 0);
  return {
    in_channels: at("input_blocks.0.0.weight")?.[1],
    out_channels: at("out.2.weight")?.[0],
    conv_in_kernel: at("input_blocks.0.0.weight")?.[2],
    conv_out_kernel: at("out.2.weight")?.[2],
    ...(channels.length > 0
      ? {
        block_out_channels: channels,
        layers_per_block: equal(levels.map((level) => level.layers)),
        transformer_layers_per_block: equal(depths),
        down_block_types: cross.map((c) =>
          c ? "CrossAttnDownBlock2D" : "DownBlock2D"
        ),
        up_block_types: cross.toReversed().map((c) =>
          c ? "CrossAttnUpBlock2D" : "UpBlock2D"
        ),
      }
      : {}),
    mid_block_type: at("middle_block.0.in_layers.0.weight")
      ? "UNetMidBlock2DCrossAttn"
      : null,
    time_embedding_dim: time === 4 * (channels[0] ?? 0) ? null : time,
    resnet_time_scale_shift: scaleShift ? "scale_shift" : "default",
    use_linear_projection: projectionRank(at, middle) === 2,
    ...(states === undefined ? {} : { cross_attention_dim: states }),
    ...(stored ? {} : {
      // diffusers' name for the number of heads: eight of any width in 1.x,
      // any number of width 64 in 2.x.
      attention_head_dim: layout === "sd1"
        ? 8
        : channels.map((c) => Math.max(1, Math.floor(c / 64))),
      sample_size: 64,
    }),
  };
}

function projectionRank(at: ShapeOf, middle: string): number | undefined {
  return at(middle.replace("transformer_blocks", "proj_in.weight"))?.length;
}

function inferAutoencoder(
  shape: ShapeOf,
  stored: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> {
  const at = (key: string) => shape(PREFIX.autoencoder + key);
  const levels = count(at, (i) => `encoder.down.${i}.block.0.conv1.weight`);
  const layers = count(at, (j) => `encoder.down.0.block.${j}.conv1.weight`);
  const repeat = (type: string) => new Array(levels).fill(type);
  return {
    in_channels: at("encoder.conv_in.weight")?.[1],
    out_channels: at("decoder.conv_out.weight")?.[0],
    latent_channels: at("post_quant_conv.weight")?.[0],
    ...(levels > 0
      ? {
        block_out_channels: Array.from(
          { length: levels },
          (_, i) => at(`encoder.down.${i}.block.0.conv1.weight`)![0],
        ),
        layers_per_block: layers,
        down_block_types: repeat("DownEncoderBlock2D"),
        up_block_types: repeat("UpDecoderBlock2D"),
      }
      // Nothing to infer from: the check then names what Stable Diffusion has.
      : {
        block_out_channels: [128, 256, 512, 512],
        layers_per_block: 2,
        down_block_types: new Array(4).fill("DownEncoderBlock2D"),
        up_block_types: new Array(4).fill("UpDecoderBlock2D"),
      }),
    ...(stored ? {} : { sample_size: 512, scaling_factor: 0.18215 }),
  };
}

/** The scheduler config that diffusers ships with Stable Diffusion. */
function schedulerConfig(
  predictionType: LdmPrediction,
): Record<string, unknown> {
  return {
    _class_name: "PNDMScheduler",
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
    beta_start: 0.00085,
    clip_sample: false,
    num_train_timesteps: 1000,
    prediction_type: predictionType,
    set_alpha_to_one: false,
    skip_prk_steps: true,
    steps_offset: 1,
    trained_betas: null,
  };
}

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
export function derivedSource(
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

/** Matches a file with what the configs say; every key is accounted for. */
function matchKeys(
  file: LdmHeader,
  entries: readonly LdmEntry[],
  layout: LdmLayout,
  layers: number,
  what: string,
): Map<LdmComponent, Map<string, Derivation>> {
  const missing: string[] = [];
  const misshapen: string[] = [];
  const used = new Set<string>();
  const found = new Map<LdmComponent, Map<string, Derivation>>([
    ["unet", new Map()],
    ["autoencoder", new Map()],
    ["textEncoder", new Map()],
  ]);
  for (const { names, shape, component, parts } of entries) {
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
  const unexpected = [...file.entries.keys()].filter((key) => {
    if (used.has(key) || V_MARKER.test(key)) return false;
    if (LDM_IGNORED.some(({ keys }) => keys.test(key))) return false;
    // Layers after the one that is read.
    const layer = layout === "sd2" ? key.match(LAST_LAYER)?.[1] : undefined;
    return layer === undefined || Number(layer) < layers;
  });
  const faults = keyFaults(what, { missing, unexpected, misshapen });
  if (faults) throw faults;
  return found;
}

/** Settings of {@linkcode loadSingleFile}. */
export interface LoadSingleFileOptions {
  /**
   * CLIP's tokenizer, or a folder with its vocab.json and merges.txt: no
   * single file holds one.
   */
  readonly tokenizer: Tokenizer | string | URL;
  /** Fields of the configs that shapes cannot tell and the caller knows. */
  readonly config?: LdmOverrides;
  /**
   * What the UNet predicts; must be given for Stable Diffusion 2.x files that
   * do not say (768-v: `v_prediction`; 512-base: `epsilon`).
   */
  readonly predictionType?: LdmPrediction;
  /** The scheduler's config, if it is not Stable Diffusion's own. */
  readonly scheduler?: Readonly<Record<string, unknown>>;
}

/**
 * Loads Stable Diffusion 1.x or 2.x from one `.safetensors` file, strictly and
 * tensor by tensor. What belongs to training ({@linkcode LDM_IGNORED}) is left
 * out; every other key must be a parameter.
 *
 * @param path The file.
 * @param options Tokenizer; what the file does not tell.
 * @returns The model; its tensors are the caller's.
 * @throws If the file is a pickle, no Stable Diffusion 1.x or 2.x, or holds
 * anything missing, unexpected or misshapen (one error lists all keys); or if
 * the tokenizer does not fit the text encoder.
 *
 * @example
 * ```ts ignore
 * const model = await loadSingleFile("chilloutmix.safetensors", {
 *   tokenizer: "sd-v1-5/tokenizer",
 * });
 * ```
 */
export async function loadSingleFile(
  path: string | URL,
  options: LoadSingleFileOptions,
): Promise<Model> {
  const shown = pathOf(path);
  const what = `load ${shown}`;
  if (/\.(ckpt|pt|pth|bin|pkl)$/i.test(shown)) {
    throw cannot(
      what,
      "a .safetensors file",
      "a pickle checkpoint, which can run any code when it is loaded; " +
        "convert it to safetensors first",
    );
  }
  if (!options?.tokenizer) {
    throw cannot(
      what,
      "a tokenizer: a folder with CLIP's vocab.json and merges.txt, such as " +
        "tokenizer/ of any Stable Diffusion folder (single files have none)",
      "none",
    );
  }
  const tokenizer =
    typeof options.tokenizer === "string" || options.tokenizer instanceof URL
      ? await loadTokenizer(options.tokenizer)
      : options.tokenizer;
  const file = await openSafetensors(path);
  const made: unknown[] = [];
  try {
    const described = describeLdm(file, options.config);
    const { configs, layout } = described;
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
    if (tokenizer.vocabSize > configs.textEncoder.vocab_size) {
      throw cannot(
        what,
        `a tokenizer of at most ${configs.textEncoder.vocab_size} tokens, the ` +
          "rows of the text encoder's table",
        tokenizer.vocabSize,
      );
    }
    const matched = matchKeys(
      file,
      ldmEntries(configs, layout),
      layout,
      configs.textEncoder.num_hidden_layers,
      what,
    );
    const read = async <T>(
      component: LdmComponent,
      spec: SpecLike,
    ): Promise<T> => {
      const source = derivedSource(file, matched.get(component)!);
      const params = await load<T>(spec, source, { what: shown });
      made.push(params);
      return params;
    };
    const text = await read<TextEncoder>(
      "textEncoder",
      textEncoderSpec(configs.textEncoder),
    );
    const unet = await read<UNet>("unet", unetSpec(configs.unet));
    const autoencoder = await read<Autoencoder>(
      "autoencoder",
      autoencoderSpec(configs.autoencoder),
    );
    return {
      tokenizer,
      textEncoder: { config: configs.textEncoder, params: text },
      unet: { config: configs.unet, params: unet },
      autoencoder: { config: configs.autoencoder, params: autoencoder },
      scheduler: {
        ...(scheduler ?? schedulerConfig(predictionType!)),
        ...(options.predictionType
          ? { prediction_type: options.predictionType }
          : {}),
      },
    };
  } catch (error) {
    for (const params of made) disposeTree(params);
    throw error;
  } finally {
    file.close();
  }
}

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
 * @param model The model; merge its adapters first, they have no names here.
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
  path: string | URL,
  model: Model,
  options: SaveSingleFileOptions = {},
): Promise<void> {
  const { dtype = "F32", metadata } = options;
  const what = `save ${pathOf(path)}`;
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
  const trees: Readonly<Record<LdmComponent, TreeLike>> = {
    textEncoder: model.textEncoder.params,
    unet: model.unet.params,
    autoencoder: model.autoencoder.params,
  };
  const tensors = new Map<LdmComponent, Map<string, tf.Tensor>>();
  for (const component of ["textEncoder", "unet", "autoencoder"] as const) {
    tensors.set(component, new Map(leaves(trees[component])));
  }
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
      `${PREFIX.textEncoder}transformer.text_model.embeddings.position_ids`,
      { dtype: "I64", shape: [1, length], data: new Uint8Array(ids.buffer) },
    ]);
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
  if (encoded.length === 1) return encoded[0];
  const all = new Uint8Array(encoded.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of encoded) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
