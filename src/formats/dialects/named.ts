/**
 * The dialects that name every layer by its path: kohya, official Mix-of-Show,
 * PEFT and diffusers' attention processors.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../../core/errors.ts";
import { parseJson } from "../../io/files.ts";
import { parseAutoencoderConfig } from "../../models/config.ts";
import { ldmEntries } from "../ldm_names.ts";
import { LYCORIS_PARTS } from "../lycoris.ts";
import type { LowRank } from "../../nn/linear.ts";
import {
  type Component,
  COMPONENTS,
  rankOf,
  targets,
} from "../../customize/lora.ts";
import type { LoraLayers } from "./base.ts";
import {
  anyKey,
  type Dialect,
  type LoraHeader,
  PREFIX,
  type Present,
} from "./dialect.ts";
import {
  parsePeftConfig,
  peftConfig,
  type PeftConfigs,
} from "./peft_config.ts";

/** The last projection of an attention, with and without its list index. */
function spellings(path: string): string[] {
  return path.endsWith(".to_out.0") ? [path, path.slice(0, -2)] : [path];
}

const underscored = (path: string) => path.replaceAll(".", "_");

const LDM_PREFIX = "model.diffusion_model.";
const ldmKnown = new WeakMap<LoraLayers, ReadonlyMap<string, string>>();

/** UNet layers as the original latent diffusion code calls them, by path. */
function ldmNames(layers: LoraLayers): ReadonlyMap<string, string> {
  const cached = ldmKnown.get(layers);
  if (cached) return cached;
  const names = new Map<string, string>();
  const entries = ldmEntries({
    textEncoder: layers.base.textEncoder.config,
    unet: layers.base.unet.config,
    // Not looked at, but a single file always has one.
    autoencoder: parseAutoencoderConfig({}),
  }, "sd1");
  for (const { component, names: [theirs], parts: [{ path }] } of entries) {
    if (component !== "unet" || !path.endsWith(".weight")) continue;
    names.set(
      path.slice(0, -".weight".length),
      theirs.slice(LDM_PREFIX.length, -".weight".length),
    );
  }
  ldmKnown.set(layers, names);
  return names;
}

/** The value all layers share, or kohya's word for different ones. */
function uniform(values: readonly number[]): string {
  return values.every((v) => v === values[0]) ? String(values[0]) : "Dynamic";
}

/** kohya's metadata about a network; other tools show and check it. */
function kohyaMetadata(present: Present): Record<string, string> {
  const of = (conv: boolean): LowRank[] =>
    COMPONENTS.flatMap((c) => [...present[c].values()]).filter((low) =>
      (low.down.rank === 4 &&
        (low.down.shape[0] > 1 || low.down.shape[1]! > 1)) === conv
    );
  const [plain, wide] = [of(false), of(true)];
  const dims = (lows: LowRank[]) => uniform(lows.map(rankOf));
  const alphas = (lows: LowRank[]) =>
    uniform(lows.map((low) => low.scale * rankOf(low)));
  const main = plain.length > 0 ? plain : wide;
  if (main.length === 0) return {};
  return {
    ss_network_module: "networks.lora",
    ss_network_dim: dims(main),
    ss_network_alpha: alphas(main),
    ...(plain.length > 0 && wide.length > 0 && {
      ss_network_args: JSON.stringify({
        conv_dim: dims(wide),
        conv_alpha: alphas(wide),
      }),
    }),
  };
}

const kohya: Dialect = {
  id: "kohya",
  describe: "kohya-ss sd-scripts, LyCORIS (LoCon, LoHa, LoKr); Civitai",
  detect: (header) => anyKey(header, /^lora_(te1?|unet)_/),
  names: (layers) => {
    const ldm = ldmNames(layers);
    return (component, path) => {
      const ours = spellings(path).map(underscored);
      if (component === "textEncoder") {
        return [...ours, ...ours].map((name, i) =>
          `lora_te${i < ours.length ? "" : "1"}_${name}`
        );
      }
      const theirs = ldm.get(path);
      return [
        ...ours,
        ...(theirs ? spellings(theirs).map(underscored) : []),
      ].map((name) => `lora_unet_${name}`);
    };
  },
  parts: {
    down: [".lora_down.weight"],
    mid: [".lora_mid.weight"],
    up: [".lora_up.weight"],
    alpha: [".alpha"],
    magnitude: [".dora_scale"],
    ...Object.fromEntries(
      LYCORIS_PARTS.map((part) => [
        part,
        // Of a full difference some files say that it is a weight.
        part === "diff" ? [".diff", ".diff.weight"] : [`.${part}`],
      ]),
    ),
  },
  // Made factors when they are read.
  readOnly: ["mid", ...LYCORIS_PARTS],
  scaleRule: "alpha/rank",
  tokens: {
    rows: "vectors",
    read: (key) =>
      key.match(/^bundle_emb\.(.+)\.(?:string_to_param\.\*|emb_params)$/)?.[1],
    write: (token) => `bundle_emb.${token}.string_to_param.*`,
    grouped: true,
  },
  magnitudeOf: (shape, site) => {
    const [first, second = 1, ...rest] = shape;
    if (rest.some((n) => n !== 1)) return undefined;
    if (first === site.outputs && second === 1) return "output";
    if (shape.length > 1 && first === 1 && second === site.inputs) {
      return "input";
    }
  },
  magnitudeShape: (site, of) => {
    const shape = of === "output" ? [site.outputs, 1] : [1, site.inputs];
    return site.kind === "conv" ? [...shape, 1, 1] : shape;
  },
  metadata: kohyaMetadata,
  structural: /^ss_network_(module|dim|alpha|args)$/,
};

/** All attention layers of a component. */
export function attentionPaths(
  layers: LoraLayers,
  component: Component,
): string[] {
  const attention = targets("attention");
  return [...layers.sites[component].values()].filter((site) =>
    attention(component, site)
  ).map(({ path }) => path);
}

/** PEFT's name of a DoRA's magnitude. */
export const MAGNITUDE = ".lora_magnitude_vector";

/** PEFT's magnitudes: one value an output, whatever axes there are. */
function ofOutputs(
  shape: readonly number[],
  site: { readonly outputs: number },
): "output" | undefined {
  return shape.length > 0 &&
      shape.reduce((a, b) => a * b, 1) === site.outputs &&
      shape.filter((n) => n !== 1).length <= 1
    ? "output"
    : undefined;
}

const official: Dialect = {
  id: "official",
  describe: "Mix-of-Show ED-LoRA",
  detect: (header) =>
    anyKey(
      header,
      /^(new_concept_embedding\.|(unet|text_encoder)\..*\.lora_down\.)/,
    ),
  names: () => (component, path) => [`${PREFIX[component]}.${path}`],
  parts: {
    down: [".lora_down.weight"],
    up: [".lora_up.weight"],
    magnitude: [MAGNITUDE],
  },
  // The official code knows no DoRA; concepts of this library may be one.
  readOnly: ["magnitude"],
  magnitudeOf: ofOutputs,
  scaleRule: "alpha",
  tokens: {
    rows: "layers",
    read: (key) => key.match(/^new_concept_embedding\.(.+)$/s)?.[1],
    write: (token) => `new_concept_embedding.${token}`,
  },
  required: (layers, _, component) => attentionPaths(layers, component),
};

/** Where diffusers keeps LoraConfigs in a file's header. */
const ADAPTER_METADATA = "lora_adapter_metadata";

function headerConfigs(header: LoraHeader): PeftConfigs | undefined {
  const text = header.metadata?.[ADAPTER_METADATA];
  if (text === undefined) return undefined;
  const what = `read ${ADAPTER_METADATA}`;
  const json = parseJson(text, ADAPTER_METADATA);
  const fields = z.record(z.string(), z.unknown()).safeParse(json);
  if (!fields.success) throw cannot(what, "an object", text.slice(0, 80));
  const configs: Partial<Record<Component, PeftConfigs[Component]>> = {};
  for (const component of COMPONENTS) {
    const prefix = `${PREFIX[component]}.`;
    const own = Object.entries(fields.data).filter(([name]) =>
      name.startsWith(prefix)
    ).map(([name, value]) => [name.slice(prefix.length), value]);
    if (own.length > 0) {
      configs[component] = parsePeftConfig(Object.fromEntries(own));
    }
  }
  return configs;
}

const peft: Dialect = {
  id: "peft",
  describe: "PEFT (LoRA, LoHa, LoKr), and diffusers since it uses PEFT",
  detect: (header) =>
    anyKey(
      header,
      /\.(lora_A\.([^.]+\.)?weight|(hada_w[12]_[ab]|lokr_w[12](_[ab])?)(\.[^.]+)?)$/,
    ),
  names: () => (component, path) =>
    spellings(path).flatMap((name) => [
      `${PREFIX[component]}.${name}`,
      `base_model.model.${name}`,
      `base_model.model.${PREFIX[component]}.${name}`,
      // A network's own state, as `save_lora_adapter` and scripts write it.
      name,
    ]),
  parts: {
    down: [".lora_A.weight", ".lora_A.default.weight"],
    up: [".lora_B.weight", ".lora_B.default.weight"],
    alpha: [".alpha"],
    magnitude: [
      MAGNITUDE,
      ".lora_magnitude_vector.weight",
      ".lora_magnitude_vector.default.weight",
    ],
    ...Object.fromEntries(
      LYCORIS_PARTS.filter((part) => part !== "diff").map((part) => [
        part,
        [`.${part}`, `.${part}.default`],
      ]),
    ),
  },
  // A reader who knows no α takes α = rank, so scales go into `up`. LoHa and
  // LoKr are made factors when they are read.
  readOnly: ["alpha", ...LYCORIS_PARTS],
  scaleRule: "alpha/rank",
  magnitudeOf: ofOutputs,
  magnitudeShape: (site, of) =>
    of === "input"
      ? undefined
      : site.kind === "conv"
      ? [1, site.outputs, 1, 1]
      : [site.outputs],
  configs: headerConfigs,
  metadata: (present) => {
    const fields: Record<string, unknown> = {};
    for (const component of COMPONENTS) {
      if (present[component].size === 0) continue;
      const folded = new Map(
        [...present[component]].map(([path, low]): [string, LowRank] => [
          path,
          { ...low, scale: 1 },
        ]),
      );
      const config = peftConfig(folded, "alpha/rank");
      for (const [name, value] of Object.entries(config)) {
        fields[`${PREFIX[component]}.${name}`] = value;
      }
    }
    return { [ADAPTER_METADATA]: JSON.stringify(fields) };
  },
  structural: new RegExp(`^${ADAPTER_METADATA}$`),
};

/** Attention projections of the UNet as diffusers' attention processors. */
const PROCESSOR = /^(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(?:\.0)?$/;

/** Attention projections of the text encoder as in its first processors. */
const OLD_TEXT = /^(.*\.self_attn)\.(q|k|v|out)_proj$/;

const diffusers: Dialect = {
  id: "diffusers",
  describe: "diffusers' attention processors",
  detect: (header) =>
    anyKey(header, /(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight$/),
  names: () => (component, path) => {
    if (component === "textEncoder") {
      const own = `${PREFIX.textEncoder}.${path}.lora_linear_layer`;
      const old = path.match(OLD_TEXT);
      return old
        ? [own, `${PREFIX.textEncoder}.${old[1]}.to_${old[2]}_lora`]
        : [own];
    }
    const match = path.match(PROCESSOR);
    const processor = match ? [`${match[1]}.processor.${match[2]}_lora`] : [];
    return [
      ...processor,
      ...spellings(path).map((name) => `${name}.lora`),
      // Files of the UNet alone have no prefix.
    ].flatMap((name) => [`${PREFIX.unet}.${name}`, name]);
  },
  parts: { down: [".down.weight"], up: [".up.weight"] },
  scaleRule: "alpha/rank",
};

/** Dialects that name layers by their paths. */
export const NAMED_DIALECTS: readonly Dialect[] = [
  kohya,
  official,
  peft,
  diffusers,
];
