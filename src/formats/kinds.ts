/**
 * What a file of tensors is, told by names and shapes: so that an error, and
 * `inspect`, can call it by its name in one sentence.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";

/** Names and shapes of the tensors, and metadata. */
export interface TensorHeader {
  /** By name. */
  readonly entries: ReadonlyMap<string, { readonly shape: readonly number[] }>;
  /** The file's metadata. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** A kind of file that this library has no use for. */
export interface ForeignKind {
  /** What it is: `a LoRA of SDXL`. */
  readonly name: string;
  /** What would be read in its place. */
  readonly expected: string;
}

/** Facts about a file that rules look at. */
interface Facts {
  readonly keys: readonly string[];
  /** Whether some name matches. */
  has(pattern: RegExp): boolean;
  /** Shape of the first tensor whose name matches. */
  shape(pattern: RegExp): readonly number[] | undefined;
}

interface Rule {
  readonly name: string;
  readonly test: (facts: Facts) => boolean;
}

/** Parts of adapters of any kind. */
const ADAPTER =
  /(lora_(down|up|mid|A|B)\b|lora\.(down|up)\b|_lora\.(down|up)\b|hada_w|hada_t|lokr_|oft_|\.(a1|b1)\.weight$|\.on_input$|vera_lambda|ia3_|\.diff(_b)?$|\.dora_scale$|\.alpha$)/;

const LORA_MODELS: readonly Rule[] = [
  {
    name: "Flux",
    test: ({ has, shape }) =>
      has(/(^|[._])single_(transformer_)?blocks[._]\d/) ||
      (has(/(^|[._])double_blocks[._]\d/)) ||
      // Of its joint blocks alone only the width tells.
      (has(/attn[._]add_[qkv]_proj/) &&
        shape(/attn[._]add_k_proj.*(down|lora_A)/)?.[1] === 3072 &&
        !has(/[._]img_m(lp|od)[._]/)),
  },
  {
    name: "Qwen-Image",
    test: ({ has }) =>
      has(/transformer_blocks[._]\d+[._](img|txt)_m(lp|od)[._]/),
  },
  {
    name: "Stable Diffusion 3",
    test: ({ has }) =>
      has(/(^|[._])joint_blocks[._]\d/) || has(/attn[._]add_[qkv]_proj/),
  },
  {
    name: "Wan",
    test: ({ has }) =>
      has(
        /(^|[._])blocks[._]\d+[._](self_attn|cross_attn|ffn)[._]/,
      ) || has(/^(transformer\.)?blocks\.\d+\.attn[12]\./),
  },
  {
    name: "Stable Cascade",
    test: ({ has }) => has(/^lora_prior_unet_/),
  },
  {
    name: "a video model (AnimateDiff's motion modules)",
    test: ({ has }) => has(/motion_modules[._]/),
  },
  {
    name: "a diffusion transformer (PixArt, LTX, Lumina or another)",
    test: ({ has }) =>
      has(
        /^(base_model\.model\.)?(transformer|diffusion_model)[._](transformer_blocks|layers|blocks)[._]\d/,
      ) ||
      has(/^lora_(unet|transformer)_(transformer_blocks|layers|blocks)_\d/),
  },
  {
    name: "SDXL",
    test: ({ has, shape }) =>
      has(/^lora_te2_/) || has(/(^|[._])text_encoder_2[._]/) ||
      has(/attentions[._]\d+[._]transformer_blocks[._][2-9][._]/) ||
      has(/(input|output)_blocks[._]\d+[._]1[._]transformer_blocks[._][2-9]/) ||
      has(/middle_block[._]1[._]transformer_blocks[._][2-9][._]/) ||
      shape(/attn2[._]to_k[._].*(lora_down|lora_A|lora\.down|w1_b)/)?.[1] ===
        2048,
  },
];

const ALGORITHMS: readonly Rule[] = [
  {
    name: "an OFT adapter, which multiplies weights",
    test: ({ has }) => has(/\.oft_(blocks|diag|R)\b|oft_r\./i),
  },
  {
    name: "a (IA)³ adapter, which multiplies activations",
    test: ({ has }) => has(/\.on_input$|ia3_l/),
  },
  {
    name: "a GLoRA adapter of LyCORIS",
    test: ({ has }) => has(/\.a1\.weight$/) && has(/\.b1\.weight$/),
  },
  { name: "a VeRA adapter", test: ({ has }) => has(/vera_lambda/) },
  {
    name: "an adapter with biases or norms, which have no low-rank form",
    test: ({ has }) => has(/\.(diff_b|w_norm|b_norm)$/),
  },
  {
    name: "a full difference of another model's layers",
    test: ({ has }) => has(/\.diff$/) && !has(/^lora_(te1?|unet)_/),
  },
];

const MODELS: readonly Rule[] = [
  {
    name: "a checkpoint of SDXL",
    test: ({ has }) =>
      has(/^conditioner\.embedders\./) ||
      has(/^model\.diffusion_model\.label_emb\./),
  },
  {
    name: "a checkpoint of Stable Diffusion 3",
    test: ({ has }) => has(/^(model\.diffusion_model\.)?joint_blocks\./),
  },
  {
    name: "a checkpoint of Flux",
    test: ({ has }) =>
      has(/^(model\.diffusion_model\.)?double_blocks\.\d/) ||
      has(/^single_transformer_blocks\.\d/),
  },
  {
    name: "a checkpoint of Wan",
    test: ({ has }) =>
      has(/^(model\.diffusion_model\.)?blocks\.\d+\.(self|cross)_attn\./),
  },
  {
    name: "a checkpoint of Stable Cascade",
    test: ({ has }) => has(/^(down_blocks|up_blocks)\.\d+\.\d+\.channelwise\./),
  },
  {
    name: "a UNet of SDXL",
    test: ({ has }) =>
      has(/^add_embedding\.linear_1\.weight$/) || has(/^label_emb\.0\.0\./),
  },
  {
    name: "a diffusion transformer",
    test: ({ has }) =>
      has(
        /^(model\.diffusion_model\.)?(transformer_blocks|layers|x_embedder)\./,
      ),
  },
];

const OTHERS: readonly Rule[] = [
  {
    name: "an embedding of SDXL (clip_l and clip_g)",
    test: ({ has }) => has(/^clip_g$/),
  },
  {
    name: "a ControlNet",
    test: ({ has }) =>
      has(/^(control_model\.|controlnet_cond_embedding\.|lora_controlnet)/),
  },
  {
    name: "an IP-Adapter",
    test: ({ has }) => has(/^(image_proj|ip_adapter)\./),
  },
  {
    name: "motion modules of AnimateDiff",
    test: ({ has }) => has(/motion_modules\./),
  },
  {
    name: "a hypernetwork",
    test: ({ has }) => has(/^\d+\.\d\.linear\.\d+\.weight$/),
  },
  {
    name: "an upscaler (ESRGAN)",
    test: ({ has }) =>
      has(/^model\.1\.sub\.0\.RDB1\./) || has(/^body\.0\.rdb1\./),
  },
  {
    name: "a language or T5 text encoder",
    test: ({ has }) =>
      has(/^(encoder\.block\.0\.layer\.0\.SelfAttention|model\.layers\.0\.)/),
  },
];

/** Names of a whole checkpoint, beside which an adapter's keys may stand. */
const WHOLE = /^(cond_stage_model|first_stage_model|model\.diffusion_model)\./;

function factsOf({ entries }: TensorHeader): Facts {
  const keys = [...entries.keys()];
  return {
    keys,
    has: (pattern) => keys.some((key) => pattern.test(key)),
    shape(pattern) {
      const key = keys.find((name) => pattern.test(name));
      return key === undefined ? undefined : entries.get(key)!.shape;
    },
  };
}

/** What kohya and Stability say a file is for, where it is none of ours. */
function saidModel(
  metadata: Readonly<Record<string, string>> | undefined,
): string | undefined {
  const said = metadata?.["modelspec.architecture"] ??
    metadata?.ss_base_model_version ?? "";
  if (/xl|sdxl/i.test(said)) return "SDXL";
  if (/^(sd3|stable-diffusion-v?3)/i.test(said)) return "Stable Diffusion 3";
  if (/flux/i.test(said)) return "Flux";
  if (/wan/i.test(said)) return "Wan";
}

const OURS = "Stable Diffusion 1.x or 2.x";

/**
 * Recognises a file of a known kind that cannot be used here: an adapter or a
 * checkpoint for another architecture, an adapter that has no low-rank form,
 * another network.
 *
 * @param header Names, shapes and metadata.
 * @returns The kind; nothing for what may be of use, and for what nobody knows.
 *
 * @example
 * ```ts
 * foreignKind({
 *   entries: new Map([["lora_te2_text_model.alpha", { shape: [] }]]),
 * })?.name; // "a LoRA of SDXL"
 * ```
 */
export function foreignKind(header: TensorHeader): ForeignKind | undefined {
  const facts = factsOf(header);
  const named = (rules: readonly Rule[]) =>
    rules.find(({ test }) => test(facts))?.name;
  if (facts.has(ADAPTER) && !facts.has(WHOLE)) {
    const model = named(LORA_MODELS) ?? saidModel(header.metadata);
    const how = facts.has(/hada_w/)
      ? "LoHa"
      : facts.has(/lokr_/)
      ? "LoKr"
      : "LoRA";
    if (model !== undefined) {
      return { name: `a ${how} of ${model}`, expected: `a LoRA of ${OURS}` };
    }
    const algorithm = named(ALGORITHMS);
    if (algorithm !== undefined) {
      return { name: algorithm, expected: "a LoRA, LoHa or LoKr" };
    }
    return undefined;
  }
  const model = named(MODELS);
  if (model !== undefined) return { name: model, expected: OURS };
  const other = named(OTHERS);
  if (other !== undefined) {
    return { name: other, expected: `a LoRA or model of ${OURS}` };
  }
}

/**
 * The error of a file of another kind, in one sentence.
 *
 * @param what What was to be read, for the message.
 * @param kind What it is.
 */
export function refusal(what: string, kind: ForeignKind): Error {
  return cannot(`read ${what}`, kind.expected, kind.name);
}
