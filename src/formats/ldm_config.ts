/**
 * What a single file holds, told by its names, shapes and metadata.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../core/errors.ts";
import { parseJson } from "../io/files.ts";
import type { SafetensorsFile } from "../io/safetensors.ts";
import {
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
  parseWith,
} from "../models/config.ts";
import { SD_AUTOENCODER } from "./dialects/base.ts";
import { foreignKind, refusal } from "./kinds.ts";
import {
  LDM_PREFIX,
  type LdmComponent,
  type LdmConfigs,
  type LdmLayout,
  ldmNamesOf,
  type LdmPrediction,
} from "./ldm_names.ts";

/**
 * How the tensors of a network are named in a file: `ldm` as in whole
 * checkpoints, `bare` so without the network's prefix, `diffusers` by the paths
 * of diffusers' modules.
 */
export type PartNaming = "ldm" | "bare" | "diffusers";

/** Networks that a file has the tensors of. */
export type PartsFound = ReadonlyMap<LdmComponent, PartNaming>;

interface PartRule {
  readonly component: LdmComponent;
  readonly naming: PartNaming;
  readonly keys: RegExp;
  /** What stands before the names in a whole checkpoint. */
  readonly prefix?: string;
}

/** The first that matches a key tells a network; names of whole files first. */
const PART_RULES: readonly PartRule[] = [
  {
    component: "textEncoder",
    naming: "ldm",
    keys:
      /^cond_stage_model\.(transformer\.|model\.(transformer|token_embedding))/,
  },
  { component: "unet", naming: "ldm", keys: /^model\.diffusion_model\./ },
  {
    component: "autoencoder",
    naming: "ldm",
    keys: /^first_stage_model\.(encoder|decoder)\./,
  },
  {
    component: "textEncoder",
    naming: "bare",
    keys: /^text_model\.(encoder|embeddings)\./,
    prefix: "cond_stage_model.transformer.",
  },
  {
    component: "textEncoder",
    naming: "bare",
    keys: /^transformer\.text_model\./,
    prefix: "cond_stage_model.",
  },
  {
    component: "textEncoder",
    naming: "bare",
    keys: /^transformer\.resblocks\./,
    prefix: "cond_stage_model.model.",
  },
  {
    component: "unet",
    naming: "bare",
    keys: /^(input_blocks|middle_block|output_blocks)\.\d/,
    prefix: LDM_PREFIX.unet,
  },
  {
    component: "unet",
    naming: "diffusers",
    keys: /^(down_blocks|up_blocks)\.\d+\.(resnets|attentions)\./,
  },
  {
    component: "autoencoder",
    naming: "diffusers",
    keys: /^(encoder\.down|decoder\.up)_blocks\.\d/,
  },
  {
    component: "autoencoder",
    naming: "bare",
    keys: /^(encoder\.down|decoder\.up)\.\d/,
    prefix: LDM_PREFIX.autoencoder,
  },
];

/** Adapters have their layers' names in front of other endings. */
const NO_NETWORK =
  /(lora|hada_|lokr_|oft_|\.alpha$|controlnet_cond_embedding|motion_modules)/;

/**
 * The networks of Stable Diffusion that a file has.
 *
 * @param keys Names of the tensors.
 *
 * @example
 * ```ts
 * partsIn(["decoder.up.0.block.0.conv1.weight"]); // Map { autoencoder → "bare" }
 * ```
 */
export function partsIn(keys: Iterable<string>): PartsFound {
  const all = [...keys];
  const found = new Map<LdmComponent, PartNaming>();
  for (const key of all) {
    const rule = PART_RULES.find((r) => r.keys.test(key));
    // Beside a checkpoint an adapter is only beside it.
    if (rule?.naming !== "ldm" && NO_NETWORK.test(key)) return onlyWhole(all);
    if (rule && !found.has(rule.component)) {
      found.set(rule.component, rule.naming);
    }
  }
  return found;
}

function onlyWhole(keys: readonly string[]): PartsFound {
  const found = new Map<LdmComponent, PartNaming>();
  for (const key of keys) {
    const rule = PART_RULES.find((r) => r.naming === "ldm" && r.keys.test(key));
    if (rule) found.set(rule.component, "ldm");
  }
  return found;
}

/**
 * A file under the names of a whole checkpoint: networks without their prefix
 * get it.
 *
 * @param file The file, or its header.
 */
export function withPrefixes<T extends LdmHeader>(file: T): T {
  const bare = partsIn(file.entries.keys());
  if (![...bare.values()].includes("bare")) return file;
  const rules = PART_RULES.filter(({ component, naming, keys, prefix }) =>
    prefix !== undefined && bare.get(component) === naming &&
    [...file.entries.keys()].some((key) => keys.test(key))
  );
  const original = new Map<string, string>();
  for (const key of file.entries.keys()) {
    const prefix = rules.length === 1 ? rules[0].prefix! : "";
    original.set(prefix + key, key);
  }
  return {
    ...file,
    entries: new Map(
      [...original].map(([name, key]) => [name, file.entries.get(key)!]),
    ),
    ...("read" in file && {
      read: (name: string, scratch?: Uint8Array) =>
        (file as unknown as SafetensorsFile).read(
          original.get(name) ?? name,
          scratch,
        ),
    }),
  };
}

/** The layout and configs of a single file, from its names and shapes. */
export interface LdmDescription {
  /** Which names it uses. */
  readonly layout: LdmLayout;
  /** Configs told from names and shapes. */
  readonly configs: LdmConfigs;
  /** Undefined where nothing in the file tells. */
  readonly predictionType?: LdmPrediction;
  /**
   * Whether the file has the marker `ztsnr`: betas rescaled to zero terminal
   * signal-to-noise ratio, trailing timesteps (Lin et al. 2023).
   */
  readonly zeroTerminalSnr: boolean;
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

/**
 * Empty tensors beside the weights by which ComfyUI and A1111 tell how a model
 * was trained.
 */
export const MARKERS = {
  velocity: "v_pred",
  zeroTerminalSnr: "ztsnr",
} as const;

/** Where our own files keep what shapes cannot tell. */
export const METADATA = "mix_of_show.configs";

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
  const kind = foreignKind(file);
  if (kind) throw refusal("a single-file model", kind);
  if (partsIn(file.entries.keys()).size === 0) {
    const first = [...file.entries.keys()].slice(0, 3).join(", ");
    throw cannot(
      what,
      `keys that begin with ${Object.values(LDM_PREFIX).join(", ")}`,
      first || "no tensors",
    );
  }
  // Without a text encoder: 2.x projects by matrices, 1.x by convolutions.
  const text = [...file.entries.keys()].some((key) =>
    key.startsWith(LDM_PREFIX.textEncoder)
  );
  const projection = shape(`${LDM_PREFIX.unet}middle_block.1.proj_in.weight`);
  const layout: LdmLayout = has("cond_stage_model.model.ln_final.weight") ||
      has("cond_stage_model.model.token_embedding.weight") ||
      (!text && projection?.length === 2)
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
    zeroTerminalSnr: has(MARKERS.zeroTerminalSnr),
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
  // A marker is put there to correct what others take a file for.
  if (file.entries.has(MARKERS.velocity)) return "v_prediction";
  const said = scheduler?.prediction_type ??
    file.metadata?.["modelspec.prediction_type"];
  if (said === "epsilon") return "epsilon";
  if (said === "v" || said === "v_prediction") return "v_prediction";
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
    ldmNamesOf("textEncoder", theirs).map(shape).find((s) => s !== undefined);
  if (layout === "sd2") {
    const table = find("model.token_embedding.weight");
    const width = table?.[1] ?? 1024;
    const layers = count(
      shape,
      (i) =>
        `${LDM_PREFIX.textEncoder}model.transformer.resblocks.${i}.ln_1.weight`,
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
      // OpenCLIP's, of 2.x, in transformers' names.
      hidden_act: width === 1024 ? "gelu" : "quick_gelu",
      projection_dim: 768,
    }),
  };
}

function inferUNet(
  layout: LdmLayout,
  shape: ShapeOf,
  stored: Readonly<Record<string, unknown>> | undefined,
): Record<string, unknown> {
  const at = (key: string) => shape(LDM_PREFIX.unet + key);
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
    ...(channels.length > 0 && {
      block_out_channels: channels,
      layers_per_block: equal(levels.map((level) => level.layers)),
      transformer_layers_per_block: equal(depths),
      down_block_types: cross.map((c) =>
        c ? "CrossAttnDownBlock2D" : "DownBlock2D"
      ),
      up_block_types: cross.toReversed().map((c) =>
        c ? "CrossAttnUpBlock2D" : "UpBlock2D"
      ),
    }),
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
  const at = (key: string) => shape(LDM_PREFIX.autoencoder + key);
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
      : SD_AUTOENCODER),
    ...(stored ? {} : { sample_size: 512, scaling_factor: 0.18215 }),
  };
}
