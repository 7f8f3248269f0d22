/**
 * PEFT's adapter_config.json: the part that sets scales.
 *
 * @module
 */
import * as z from "zod";
import { cannot } from "../../core/errors.ts";
import { parseWith } from "../../models/config.ts";
import type { LowRank } from "../../nn/linear.ts";
import {
  type Component,
  rankOf,
  type ScaleRule,
} from "../../customize/lora.ts";

/** The parts of PEFT's adapter_config.json that set scales. */
export interface PeftConfig {
  /** What kind of adapter. @default LoRA */
  readonly peft_type?: "LORA" | "LOHA" | "LOKR";
  /** Rank; of a LoKr also where no factor has it. */
  readonly r?: number;
  /** α. */
  readonly lora_alpha?: number;
  /** Whether the scale is α/√r instead of α/r. */
  readonly use_rslora?: boolean;
  /** Whether the layers have magnitudes. */
  readonly use_dora?: boolean;
  /** Ranks of layers whose path ends like this (a regular expression). */
  readonly rank_pattern?: Readonly<Record<string, number>>;
  /** α of layers whose path ends like this. */
  readonly alpha_pattern?: Readonly<Record<string, number>>;
}

/** One config for all components, or one per component. */
export type PeftConfigs = Readonly<Partial<Record<Component, PeftConfig>>>;

const pattern = z.record(z.string(), z.number()).nullish().transform((p) =>
  p ?? {}
);

const schema = z.object({
  peft_type: z.enum(["LORA", "LOHA", "LOKR"]).optional(),
  r: z.number().int().positive().optional(),
  lora_alpha: z.number().optional(),
  // LoHa's and LoKr's word for it.
  alpha: z.number().optional(),
  // ABBA, a LoHa with other scales.
  init_weights: z.union([z.boolean(), z.literal("lycoris")]).nullish(),
  use_khatri_rao: z.union([z.literal(false), z.literal("auto")]).nullish(),
  use_rslora: z.boolean().nullish().transform((v) => v ?? false),
  use_dora: z.boolean().nullish().transform((v) => v ?? false),
  bias: z.literal("none").optional(),
  fan_in_fan_out: z.literal(false).optional(),
  modules_to_save: z.null().optional(),
  layer_replication: z.null().optional(),
  rank_pattern: pattern,
  alpha_pattern: pattern,
});

/**
 * Parses PEFT's adapter_config.json.
 *
 * @param json The parsed file.
 * @throws If it is no LoRA's, or has settings that are not known here (biases,
 * transposed layers, whole modules), naming each; if a pattern is no regular
 * expression or one that may take forever.
 */
export function parsePeftConfig(json: unknown): PeftConfig {
  const config = parseWith("an adapter_config.json", schema, json);
  for (const patterns of [config.rank_pattern, config.alpha_pattern]) {
    for (const text of Object.keys(patterns)) compile(text);
  }
  const { peft_type, r, lora_alpha, alpha, ...others } = config;
  const { init_weights: _, use_khatri_rao: __, ...rest } = others;
  const lycoris = peft_type === "LOHA" || peft_type === "LOKR";
  const own = lycoris ? alpha ?? lora_alpha : lora_alpha;
  return {
    ...rest,
    ...(lycoris ? { peft_type } : {}),
    ...(r === undefined ? {} : { r }),
    ...(own === undefined ? {} : { lora_alpha: own }),
  };
}

const compiled = new Map<string, RegExp>();

/**
 * A pattern as PEFT uses it: a regular expression on the end of a path. What
 * repeats a group, or repeats often, is refused: on a path of 80 characters it
 * could run for hours.
 */
function compile(text: string): RegExp {
  const known = compiled.get(text);
  if (known) return known;
  const what = "read an adapter_config.json";
  const repeats = text.replace(/\\./g, "_").match(/[*+{]/g)?.length ?? 0;
  if (
    text.length > 512 || repeats > 4 ||
    /\)[*+?{]/.test(text.replace(/\\./g, "_"))
  ) {
    throw cannot(
      what,
      "patterns of at most 4 repetitions, none of a group",
      JSON.stringify(text.slice(0, 80)),
    );
  }
  let result: RegExp;
  try {
    result = new RegExp(`^(?:.*\\.)?(?:${text})$`);
  } catch {
    throw cannot(
      what,
      "regular expressions as patterns",
      JSON.stringify(text.slice(0, 80)),
    );
  }
  if (compiled.size > 4096) compiled.clear();
  compiled.set(text, result);
  return result;
}

/** The value of the first pattern that fits a path, in the file's order. */
function patternValue(
  patterns: Readonly<Record<string, number>> | undefined,
  path: string,
): number | undefined {
  for (const [text, value] of Object.entries(patterns ?? {})) {
    if (compile(text).test(path)) return value;
  }
}

/** The rank a config gives a layer, if it does. */
export function configuredRank(
  config: PeftConfig,
  path: string,
): number | undefined {
  return patternValue(config.rank_pattern, path) ?? config.r;
}

/** The scale a config gives a layer of this rank, if it gives an α. */
export function configuredScale(
  config: PeftConfig | undefined,
  path: string,
  rank: number,
): number | undefined {
  const alpha = patternValue(config?.alpha_pattern, path) ??
    config?.lora_alpha;
  if (alpha === undefined) return undefined;
  return alpha / (config!.use_rslora ? Math.sqrt(rank) : rank);
}

/** The most frequent of some numbers. */
function mostFrequent(values: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const v of values) counts.set(v, (counts.get(v) ?? 0) + 1);
  return [...counts].reduce((a, b) => (b[1] > a[1] ? b : a))[0];
}

function literal(path: string): string {
  return path.replace(/[.\\^$*+?()[\]{}|]/g, "\\$&");
}

/**
 * The config that gives every layer its rank and scale, exactly.
 *
 * @param layers The layers of one network.
 * @param rule `alpha/sqrt(rank)` writes `use_rslora`.
 * @throws If only some layers are DoRAs, or one has magnitudes of its inputs.
 */
export function peftConfig(
  layers: ReadonlyMap<string, LowRank>,
  rule: ScaleRule,
): PeftConfig & Readonly<Record<string, unknown>> {
  const rslora = rule === "alpha/sqrt(rank)";
  const entries = [...layers].map(([path, low]) => {
    const rank = rankOf(low);
    return {
      path,
      rank,
      alpha: low.scale * (rslora ? Math.sqrt(rank) : rank),
      dora: low.magnitude !== undefined,
    };
  });
  const r = mostFrequent(entries.map((e) => e.rank));
  const alpha = mostFrequent(entries.map((e) => e.alpha));
  const patterns = (part: "rank" | "alpha", usual: number) =>
    Object.fromEntries(
      entries.filter((e) => e[part] !== usual).map((e) => [
        literal(e.path),
        e[part],
      ]),
    );
  const doras = entries.filter((e) => e.dora).length;
  if (doras !== 0 && doras !== entries.length) {
    throw cannot(
      "write a PEFT config",
      "magnitudes on all layers or on none",
      `${doras} of ${entries.length}`,
    );
  }
  return {
    peft_type: "LORA",
    r,
    lora_alpha: alpha,
    lora_dropout: 0,
    bias: "none",
    fan_in_fan_out: false,
    use_rslora: rslora,
    use_dora: doras > 0,
    target_modules: entries.map((e) => e.path),
    rank_pattern: patterns("rank", r),
    alpha_pattern: patterns("alpha", alpha),
  };
}
