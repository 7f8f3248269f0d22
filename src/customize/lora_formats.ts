/**
 * The names LoRA files give to things, as data: one row a dialect, the same
 * row for reading and writing.
 *
 * A dialect says how a layer of our trees is called in the file. All names of
 * all layers of the model at hand are generated from that, so a key is either
 * exactly one part of exactly one layer or it is unknown; there is no guessing
 * from underscores, and reading is the inverse of writing by construction.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { LowRank } from "../nn/linear.ts";
import { fromDisk, type TensorSource, toDisk } from "../models/checkpoint.ts";
import {
  type Adaptable,
  type Adapter,
  attentionSites,
  type Component,
  COMPONENTS,
  rankOf,
  type ScaleRule,
  type Site,
  sites,
} from "./lora.ts";

/** The dialects this library knows. */
export type DialectId = "official" | "kohya" | "diffusers" | "peft";

/** The parts a layer may have in a file. */
export type LoraPart = "down" | "up" | "alpha" | "magnitude";

/** How one family of files names things. */
export interface Dialect {
  readonly id: DialectId;
  /** What writes such files, for people. */
  readonly describe: string;
  /** A file with a key like this is of this dialect. */
  readonly detect: RegExp;
  /**
   * Names a layer may have, the one that is written first.
   *
   * @param component Which network.
   * @param path The layer's path.
   */
  readonly stems: (component: Component, path: string) => readonly string[];
  /** Ends of the keys of each part, the one that is written first. */
  readonly parts: Readonly<Partial<Record<LoraPart, readonly string[]>>>;
  /** What the scale is without an α: of `alpha` 1, of `alpha/rank` α = rank. */
  readonly scaleRule: ScaleRule;
  /** Start of the keys of learned tokens, followed by the token. */
  readonly embedding?: string;
  /** Whether a file holds all attention layers of a component or none. */
  readonly complete?: boolean;
  /** Shape on disk of a DoRA magnitude for so many outputs. */
  readonly magnitudeShape?: (outputs: number, kind: Site["kind"]) => number[];
}

/** Names of the components in files that spell them out. */
const PREFIX: Readonly<Record<Component, string>> = {
  textEncoder: "text_encoder",
  unet: "unet",
};

const KOHYA: Readonly<Record<Component, string>> = {
  textEncoder: "lora_te",
  unet: "lora_unet",
};

/** Attention projections of the UNet as diffusers' attention processors. */
const PROCESSOR = /^(.*\.attn[12])\.(to_q|to_k|to_v|to_out)(?:\.0)?$/;

/** Every dialect, in the order in which they are tried. */
export const DIALECTS: readonly Dialect[] = [
  {
    id: "kohya",
    describe: "kohya-ss sd-scripts, LyCORIS LoCon; most of Civitai",
    detect: /^lora_(te|unet)_/,
    stems: (component, path) => [
      `${KOHYA[component]}_${path.replaceAll(".", "_")}`,
    ],
    parts: {
      down: [".lora_down.weight"],
      up: [".lora_up.weight"],
      alpha: [".alpha"],
      magnitude: [".dora_scale"],
    },
    scaleRule: "alpha/rank",
    magnitudeShape: (outputs, kind) =>
      kind === "conv" ? [outputs, 1, 1, 1] : [outputs, 1],
  },
  {
    id: "official",
    describe: "Mix-of-Show ED-LoRA",
    detect: /^(new_concept_embedding\.|(unet|text_encoder)\..*\.lora_down\.)/,
    stems: (component, path) => [`${PREFIX[component]}.${path}`],
    parts: { down: [".lora_down.weight"], up: [".lora_up.weight"] },
    scaleRule: "alpha",
    embedding: "new_concept_embedding.",
    complete: true,
  },
  {
    id: "peft",
    describe: "PEFT, and diffusers since it uses PEFT",
    detect: /\.lora_A\.([^.]+\.)?weight$/,
    stems: (component, path) => [
      `${PREFIX[component]}.${path}`,
      `base_model.model.${path}`,
    ],
    parts: {
      down: [".lora_A.weight", ".lora_A.default.weight"],
      up: [".lora_B.weight", ".lora_B.default.weight"],
      magnitude: [
        ".lora_magnitude_vector",
        ".lora_magnitude_vector.weight",
        ".lora_magnitude_vector.default.weight",
      ],
    },
    scaleRule: "alpha/rank",
    magnitudeShape: (outputs) => [outputs],
  },
  {
    id: "diffusers",
    describe: "diffusers' attention processors",
    detect: /(_lora|\.lora|\.lora_linear_layer)\.(down|up)\.weight$/,
    stems: (component, path) => {
      if (component === "textEncoder") {
        return [`${PREFIX[component]}.${path}.lora_linear_layer`];
      }
      const match = path.match(PROCESSOR);
      const processor = match
        ? [
          `${PREFIX.unet}.${match[1]}.processor.${match[2]}_lora`,
          // Files of the UNet alone have no prefix.
          `${match[1]}.processor.${match[2]}_lora`,
        ]
        : [];
      return [...processor, `${PREFIX.unet}.${path}.lora`];
    },
    parts: { down: [".down.weight"], up: [".up.weight"] },
    scaleRule: "alpha/rank",
  },
];

/**
 * The dialect of an id.
 *
 * @param id The id.
 * @throws If there is none.
 */
export function dialect(id: string): Dialect {
  const found = DIALECTS.find((d) => d.id === id);
  if (!found) {
    throw cannot(
      "choose a LoRA dialect",
      DIALECTS.map((d) => d.id).join(", "),
      `"${id}"`,
    );
  }
  return found;
}

/**
 * Recognises the dialect of a file by its keys.
 *
 * @param keys Names of the tensors.
 * @throws If no dialect names things like this.
 */
export function detectDialect(keys: Iterable<string>): Dialect {
  const all = [...keys];
  const found = DIALECTS.find((d) => all.some((key) => d.detect.test(key)));
  if (!found) {
    throw cannot(
      "recognise a LoRA file",
      `keys of ${DIALECTS.map((d) => d.id).join(", ")}`,
      all.length === 0
        ? "no tensors"
        : `${all.slice(0, 3).join(", ")}${all.length > 3 ? ", …" : ""}`,
    );
  }
  return found;
}

/** The parts of PEFT's adapter_config.json that set scales. */
export interface PeftConfig {
  readonly r?: number;
  readonly lora_alpha?: number;
  readonly use_rslora?: boolean;
  readonly use_dora?: boolean;
  readonly rank_pattern?: Readonly<Record<string, number>>;
  readonly alpha_pattern?: Readonly<Record<string, number>>;
}

/** PEFT's pattern lookup: a regular expression on the end of the path. */
function patternValue(
  patterns: Readonly<Record<string, number>> | undefined,
  path: string,
): number | undefined {
  for (const [pattern, value] of Object.entries(patterns ?? {})) {
    if (new RegExp(`^(.*\\.)?(${pattern})$`).test(path)) return value;
  }
}

/** What is in a LoRA file. */
export interface LoraFile {
  readonly dialect: DialectId;
  /** Its layers; the tensors are the caller's. */
  readonly adapter: Adapter;
  /** Learned tokens and their vectors [n, width]; the caller's. */
  readonly embeddings: ReadonlyMap<string, tf.Tensor2D>;
  /** The file's metadata, as it stands. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** Settings of {@linkcode readLora}. */
export interface ReadLoraOptions {
  /** Taken from the keys if it is left out. */
  readonly dialect?: DialectId;
  /** PEFT's adapter_config.json. */
  readonly config?: PeftConfig;
  /**
   * Name of the adapter.
   *
   * @default "lora"
   */
  readonly name?: string;
  /**
   * What is being read, for messages.
   *
   * @default "a LoRA"
   */
  readonly what?: string;
  /**
   * Whether each component in the file must have all its attention layers.
   *
   * @default what the dialect says (only `official` does)
   */
  readonly complete?: boolean;
}

/** A LoRA file: named tensors and metadata. */
export type LoraSource = TensorSource & {
  readonly metadata?: Readonly<Record<string, string>>;
};

interface Slot {
  readonly component: Component;
  readonly site: Site;
  readonly part: LoraPart;
}

/** Every key a dialect has for the layers of a model. */
function slots(d: Dialect, model: Adaptable): Map<string, Slot> {
  const found = new Map<string, Slot>();
  for (const component of COMPONENTS) {
    for (const site of sites(model[component].params)) {
      for (const stem of d.stems(component, site.path)) {
        for (const [part, ends] of Object.entries(d.parts)) {
          for (const end of ends) {
            found.set(stem + end, { component, site, part: part as LoraPart });
          }
        }
      }
    }
  }
  return found;
}

/** Layouts on disk of a layer's two factors. */
function diskShapes(site: Site, rank: number): Record<"down" | "up", number[]> {
  return site.kind === "linear"
    ? { down: [rank, site.inputs], up: [site.outputs, rank] }
    : {
      down: [rank, site.inputs, ...site.kernel],
      up: [site.outputs, rank, 1, 1],
    };
}

/** Layouts here of a layer's two factors. */
function ownShapes(site: Site, rank: number): Record<"down" | "up", number[]> {
  return site.kind === "linear"
    ? { down: [site.inputs, rank], up: [rank, site.outputs] }
    : {
      down: [...site.kernel, site.inputs, rank],
      up: [1, 1, rank, site.outputs],
    };
}

/** Linear layers may stand in the file as 1×1 convolutions and the reverse. */
function sameShape(a: readonly number[], b: readonly number[]): boolean {
  const trim = (s: readonly number[]) =>
    s.length === 4 && s[2] === 1 && s[3] === 1 ? s.slice(0, 2) : s;
  return tf.util.arraysEqual([...trim(a)], [...trim(b)]);
}

/**
 * Reads a LoRA strictly: every key of the file is one part of one layer of the
 * model (or a learned token), both factors are there and fit, all values are
 * finite — or nothing is read.
 *
 * @param file The file, already open.
 * @param model The model it is for.
 * @param options Dialect, PEFT config, name.
 * @returns Adapter and learned tokens.
 * @throws One error that lists all missing, unexpected and misshapen keys.
 *
 * @example
 * ```ts
 * const file = await openSafetensors("cat.safetensors");
 * const { adapter, embeddings } = await readLora(file, model);
 * ```
 */
export async function readLora(
  file: LoraSource,
  model: Adaptable,
  options: ReadLoraOptions = {},
): Promise<LoraFile> {
  const { name = "lora", what = "a LoRA", config } = options;
  const d = options.dialect
    ? dialect(options.dialect)
    : detectDialect(file.entries.keys());
  const known = slots(d, model);
  const problems = {
    missing: [] as string[],
    unexpected: [] as string[],
    misshapen: [] as string[],
  };
  const layers = new Map<
    string,
    {
      component: Component;
      site: Site;
      keys: Partial<Record<LoraPart, string>>;
      stem: string;
    }
  >();
  const tokens = new Map<string, string>();
  const width = model.textEncoder.config.hidden_size;
  for (const [key, { shape }] of file.entries) {
    if (d.embedding && key.startsWith(d.embedding)) {
      const ok = shape.length <= 2 && shape.length > 0 &&
        shape[shape.length - 1] === width && shape[0] > 0;
      if (!ok) {
        problems.misshapen.push(
          `${key} (expected [n, ${width}], got [${shape}])`,
        );
      }
      tokens.set(key.slice(d.embedding.length), key);
      continue;
    }
    const slot = known.get(key);
    if (!slot) {
      problems.unexpected.push(key);
      continue;
    }
    const id = `${slot.component} ${slot.site.path}`;
    const layer = layers.get(id) ?? { ...slot, keys: {}, stem: "" };
    layers.set(id, layer);
    if (layer.keys[slot.part] !== undefined) {
      problems.unexpected.push(`${key} (beside ${layer.keys[slot.part]})`);
      continue;
    }
    layer.keys[slot.part] = key;
    layer.stem = key.slice(
      0,
      key.length - d.parts[slot.part]!.find((end) => key.endsWith(end))!.length,
    );
  }
  for (const { site, keys, stem } of layers.values()) {
    for (const part of ["down", "up"] as const) {
      if (keys[part] === undefined) {
        problems.missing.push(stem + d.parts[part]![0]);
      }
    }
    const shapeOf = (part: LoraPart) =>
      keys[part] === undefined
        ? undefined
        : file.entries.get(keys[part])!.shape;
    const misshapen = (part: LoraPart, expected: readonly number[]) =>
      problems.misshapen.push(
        `${keys[part]} (expected [${expected}], got [${shapeOf(part)}])`,
      );
    const rank = shapeOf("down")?.[0] ?? 0;
    const expected = diskShapes(site, rank);
    for (const part of ["down", "up"] as const) {
      const shape = shapeOf(part);
      if (
        shape && keys.down && (rank < 1 || !sameShape(shape, expected[part]))
      ) {
        misshapen(part, expected[part]);
      }
    }
    const alpha = shapeOf("alpha");
    if (alpha && alpha.reduce((a, b) => a * b, 1) !== 1) misshapen("alpha", []);
    const magnitude = shapeOf("magnitude");
    const wanted = d.magnitudeShape?.(site.outputs, site.kind);
    if (
      magnitude && wanted &&
      (magnitude[0] !== site.outputs ||
        magnitude.slice(1).some((n) => n !== 1))
    ) misshapen("magnitude", wanted);
  }
  if (options.complete ?? d.complete) {
    for (const component of COMPONENTS) {
      const present = [...layers.values()].filter((l) =>
        l.component === component
      );
      if (present.length === 0) continue;
      for (const { path } of attentionSites(model[component].params)) {
        if (layers.has(`${component} ${path}`)) continue;
        const [stem] = d.stems(component, path);
        problems.missing.push(
          ...(["down", "up"] as const).map((p) => stem + d.parts[p]![0]),
        );
      }
    }
  }
  report(what, d, problems);
  if (layers.size + tokens.size === 0) {
    throw cannot(`read ${what}`, "at least one layer or token", "none");
  }
  return await fill(file, d, name, config, layers.values(), tokens, what);
}

function report(
  what: string,
  d: Dialect,
  problems: Readonly<Record<string, readonly string[]>>,
): void {
  const parts = Object.entries(problems).filter(([, list]) => list.length > 0)
    .map(([kind, list]) => `${list.length} ${kind}: ${list.join(", ")}`);
  if (parts.length > 0) {
    throw new Error(
      `Cannot read ${what} (${d.id} naming): ${parts.join("; ")}`,
    );
  }
}

async function fill(
  file: LoraSource,
  d: Dialect,
  name: string,
  config: PeftConfig | undefined,
  layers: Iterable<{
    component: Component;
    site: Site;
    keys: Partial<Record<LoraPart, string>>;
  }>,
  tokens: ReadonlyMap<string, string>,
  what: string,
): Promise<LoraFile> {
  const made: tf.Tensor[] = [];
  const broken: string[] = [];
  const values = async (key: string) => {
    const data = toFloat32(await file.read(key));
    if (!data.every(Number.isFinite)) broken.push(key);
    return data;
  };
  const tensor = <T extends tf.Tensor>(
    data: Float32Array,
    shape: number[],
  ): T => {
    const t = tf.tensor(data, shape) as T;
    made.push(t);
    return t;
  };
  const result: Record<Component, Map<string, LowRank>> = {
    textEncoder: new Map(),
    unet: new Map(),
  };
  const embeddings = new Map<string, tf.Tensor2D>();
  try {
    for (const { component, site, keys } of layers) {
      const rank = file.entries.get(keys.down!)!.shape[0];
      const own = ownShapes(site, rank);
      const factor = async (part: "down" | "up") =>
        tensor(
          fromDisk(site.kind, own[part], await values(keys[part]!)),
          own[part],
        );
      const alpha = keys.alpha ? (await values(keys.alpha))[0] : undefined;
      result[component].set(site.path, {
        down: await factor("down"),
        up: await factor("up"),
        scale: scaleOf(rank, alpha, site.path, config),
        adapter: name,
        ...(keys.magnitude
          ? {
            magnitude: tensor<tf.Tensor1D>(await values(keys.magnitude), [
              site.outputs,
            ]),
          }
          : {}),
      });
    }
    for (const [token, key] of tokens) {
      const { shape } = file.entries.get(key)!;
      const rows = shape.length === 1 ? 1 : shape[0];
      embeddings.set(
        token,
        tensor<tf.Tensor2D>(await values(key), [rows, shape.at(-1)!]),
      );
    }
    if (broken.length > 0) {
      throw cannot(`read ${what}`, "finite values", `NaN in ${broken}`);
    }
  } catch (error) {
    for (const t of made) t.dispose();
    throw error;
  }
  return {
    dialect: d.id,
    adapter: {
      name,
      scaleRule: config?.use_rslora ? "alpha/sqrt(rank)" : d.scaleRule,
      ...result,
    },
    embeddings,
    metadata: file.metadata ?? {},
  };
}

function scaleOf(
  rank: number,
  alpha: number | undefined,
  path: string,
  config?: PeftConfig,
): number {
  if (alpha !== undefined) return alpha / rank;
  const configured = patternValue(config?.alpha_pattern, path) ??
    config?.lora_alpha;
  if (configured === undefined) return 1;
  return configured / (config?.use_rslora ? Math.sqrt(rank) : rank);
}

/**
 * Opens and reads a LoRA file; see {@linkcode readLora}.
 *
 * @param path The safetensors file, or its bytes.
 * @param model The model it is for.
 * @param options Dialect, PEFT config, name.
 */
export async function loadLora(
  path: string | URL | Uint8Array,
  model: Adaptable,
  options: ReadLoraOptions = {},
): Promise<LoraFile> {
  const file = await openSafetensors(path);
  try {
    const what = path instanceof Uint8Array ? "a LoRA" : String(path);
    return await readLora(file, model, { what, ...options });
  } finally {
    file.close();
  }
}

/** What goes into a LoRA file. */
export interface LoraContent {
  readonly adapter: Adapter;
  /** Learned tokens, for dialects that hold them. */
  readonly embeddings?: ReadonlyMap<string, tf.Tensor2D>;
}

/**
 * Names the tensors of a LoRA as a dialect does. Where the dialect has no α,
 * the scale is multiplied into `up`, so that a reader who adds `up·down` gets
 * the same change of weights.
 *
 * @param content Adapter and learned tokens.
 * @param model The model it is for.
 * @param to The dialect.
 * @param options `dtype` on disk.
 * @throws If the dialect cannot hold something: learned tokens, DoRA, a layer.
 */
export async function encodeLora(
  content: LoraContent,
  model: Adaptable,
  to: DialectId,
  options: { dtype?: "F32" | "F16" | "BF16" } = {},
): Promise<[string, RawTensor][]> {
  const { dtype = "F32" } = options;
  const d = dialect(to);
  const what = `write a LoRA as ${to}`;
  const raw: [string, RawTensor][] = [];
  const put = (key: string, shape: number[], values: Float32Array) =>
    raw.push([key, { dtype, shape, data: encodeFloat(values, dtype) }]);
  if (content.embeddings?.size && !d.embedding) {
    throw cannot(
      what,
      "no learned tokens",
      [...content.embeddings.keys()].join(", "),
    );
  }
  for (const [token, vectors] of content.embeddings ?? []) {
    put(
      d.embedding + token,
      [...vectors.shape],
      await vectors.data() as Float32Array,
    );
  }
  for (const component of COMPONENTS) {
    const known = new Map(
      sites(model[component].params).map((site) => [site.path, site]),
    );
    for (const [path, low] of content.adapter[component]) {
      const site = known.get(path);
      const stem = d.stems(component, path)[0];
      if (!site || stem === undefined) {
        throw cannot(what, "layers of the model", `${component} ${path}`);
      }
      const rank = rankOf(low);
      const disk = diskShapes(site, rank);
      const own = ownShapes(site, rank);
      const factor = async (part: "down" | "up", scale: number) => {
        const values = await low[part].data() as Float32Array;
        const scaled = scale === 1 ? values : values.map((v) => v * scale);
        put(
          stem + d.parts[part]![0],
          disk[part],
          toDisk(site.kind, own[part], scaled),
        );
      };
      await factor("down", 1);
      await factor("up", d.parts.alpha ? 1 : low.scale);
      if (d.parts.alpha) {
        put(
          stem + d.parts.alpha[0],
          [],
          Float32Array.of(low.scale * rank),
        );
      }
      if (low.magnitude) {
        if (!d.parts.magnitude) {
          throw cannot(what, "no DoRA", `a magnitude at ${path}`);
        }
        put(
          stem + d.parts.magnitude[0],
          d.magnitudeShape!(site.outputs, site.kind),
          await low.magnitude.data() as Float32Array,
        );
      }
    }
  }
  return raw;
}

/**
 * Writes a LoRA file, atomically; see {@linkcode encodeLora}.
 *
 * @param path The safetensors file.
 * @param content Adapter and learned tokens.
 * @param model The model it is for.
 * @param to The dialect.
 * @param options `dtype` on disk; further metadata.
 */
export async function saveLora(
  path: string,
  content: LoraContent,
  model: Adaptable,
  to: DialectId,
  options: {
    dtype?: "F32" | "F16" | "BF16";
    metadata?: Readonly<Record<string, string>>;
  } = {},
): Promise<void> {
  await writeSafetensors(path, await encodeLora(content, model, to, options), {
    format: "pt",
    ...options.metadata,
  });
}
