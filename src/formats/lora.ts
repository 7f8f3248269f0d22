/**
 * Reading LoRA files of every dialect, strictly.
 *
 * A dialect is data (see dialects/): it says what every layer of the model at
 * hand is called. All names are generated from that, so a key is either exactly
 * one part of exactly one layer or it is unknown; there is no guessing from
 * underscores, and reading is the inverse of writing by construction.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot, keyFaults, KeysError, listed } from "../core/errors.ts";
import {
  exists,
  isFolder,
  joinPath,
  parentOf,
  pathOf,
  readJson,
  stemOf,
} from "../io/files.ts";
import { type FileSource, sourceName } from "../io/source.ts";
import { openTensors } from "./pickle.ts";
import { isFloat, toFloat32 } from "../io/safetensors.ts";
import type { LowRank } from "../nn/linear.ts";
import {
  fromDisk,
  sameDiskShape,
  type TensorSource,
} from "../models/checkpoint.ts";
import {
  diskShapes,
  layersOf,
  type LoraBase,
  type LoraLayers,
  ownShapes,
} from "./dialects/base.ts";
import { CLONEOFSIMO } from "./dialects/cloneofsimo.ts";
import type {
  Dialect,
  DialectId,
  LoraFaults,
  LoraHeader,
  Part,
} from "./dialects/dialect.ts";
import { PREFIX } from "./dialects/dialect.ts";
import { EMBEDDING_DIALECTS } from "./dialects/embeddings.ts";
import { foreignKind, refusal } from "./kinds.ts";
import {
  type Algorithm,
  algorithmsOf,
  checkParts,
  LYCORIS_PARTS,
  lycorisFactors,
  lycorisRank,
  type PartShapes,
} from "./lycoris.ts";
import { attentionPaths, NAMED_DIALECTS } from "./dialects/named.ts";
import {
  configuredRank,
  configuredScale,
  parsePeftConfig,
  type PeftConfig,
  type PeftConfigs,
} from "./dialects/peft_config.ts";
import { type TokenKey, tokenKeys, tokenMisfit } from "./dialects/tokens.ts";
import {
  type Adapter,
  type Component,
  COMPONENTS,
  disposeAdapter,
  type ScaleRule,
  type Site,
} from "../customize/lora.ts";

export type {
  Algorithm,
  Dialect,
  DialectId,
  LoraBase,
  LoraHeader,
  PeftConfig,
  PeftConfigs,
};

const [kohya, official, peft, diffusers] = NAMED_DIALECTS;

/** Every dialect, in the order in which they are tried. */
export const DIALECTS: readonly Dialect[] = [
  kohya,
  official,
  CLONEOFSIMO,
  peft,
  diffusers,
  ...EMBEDDING_DIALECTS,
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
 * @param file Names (and shapes) of the tensors; metadata where there is any.
 * @param width Width of a token's vector, where it is known.
 * @throws If no dialect names things like this.
 */
export function detectDialect(
  file: LoraHeader | Iterable<string>,
  width?: number,
): Dialect {
  const header: LoraHeader = Symbol.iterator in file
    ? { entries: new Map([...file].map((key) => [key, { shape: [] }])) }
    : file;
  const found = DIALECTS.find((d) => d.detect(header, width));
  if (!found) {
    const kind = foreignKind(header);
    if (kind) throw refusal("a LoRA", kind);
    const all = [...header.entries.keys()];
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

/**
 * Where the scales of a file come from: α tensors, an adapter_config.json (or
 * the same in the header), the caller, or nothing: then the dialect's rule with
 * α = rank (or 1) holds. `mixed` if layers differ.
 */
export type ScaleSource =
  | "alpha tensors"
  | "adapter config"
  | "caller"
  | "convention"
  | "mixed";

/** The algorithm and rank that some layers of a file have. */
export interface LayerAlgorithm {
  /** LoRA, or one of LyCORIS's others. */
  readonly algorithm: Algorithm;
  /** The rank in the file; of full differences that of the layer. */
  readonly rank: number;
  /** How many layers there are of them. */
  readonly layers: number;
}

/** What is in a LoRA file. */
export interface LoraFile {
  /** The dialect the file is written in. */
  readonly dialect: DialectId;
  /** Its layers; the tensors are the caller's. */
  readonly adapter: Adapter;
  /** Where the layers' scales come from. */
  readonly scales: ScaleSource;
  /**
   * How the file makes the layers' changes of weight, and with which ranks. The
   * adapter has low-rank factors in any case: those of a LoHa of rank r have
   * rank r², or that of the layer where that is less.
   */
  readonly algorithms: readonly LayerAlgorithm[];
  /**
   * Learned tokens and their vectors [n, width], one per cross-attention layer
   * or one for all; the caller's. A token of several vectors is several tokens,
   * `<cat>`, `<cat>_1`, … in that order.
   */
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
   * α of all layers for which nothing in the file or config says one.
   *
   * @default the dialect's convention: α = rank, or a scale of 1
   */
  readonly alpha?: number;
  /**
   * Name of the adapter.
   *
   * @default "lora"
   */
  readonly name?: string;
  /**
   * What a token is called that is named by its file (A1111).
   *
   * @default the name
   */
  readonly token?: string;
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
  readonly part: Part;
}

/** Every key a dialect has for the layers of a model. */
function slots(
  d: Dialect,
  layers: LoraLayers,
  header: LoraHeader,
): Map<string, Slot> {
  const found = new Map<string, Slot>();
  const names = d.names(layers, header);
  for (const component of COMPONENTS) {
    for (const site of layers.sites[component].values()) {
      for (const stem of new Set(names(component, site.path))) {
        for (const [part, ends] of Object.entries(d.parts)) {
          for (const end of ends) {
            const slot = { component, site, part: part as Part };
            const other = found.get(stem + end);
            if (other) {
              throw cannot(
                `name layers as ${d.id}`,
                "a name for every layer",
                `${stem}${end} for ${other.site.path} and ${site.path}`,
              );
            }
            found.set(stem + end, slot);
          }
        }
      }
    }
  }
  return found;
}

/** A layer of a file and the keys of its parts. */
interface PlannedLayer {
  readonly component: Component;
  readonly site: Site;
  readonly keys: Partial<Record<Part, string>>;
  stem: string;
  algorithm: Algorithm;
  magnitudeOf?: "output" | "input";
}

/** What is to be read from a file that has been found to be whole. */
interface LoraPlan {
  readonly dialect: Dialect;
  readonly layers: readonly PlannedLayer[];
  readonly tokens: ReadonlyMap<string, TokenKey>;
  readonly configs: PeftConfigs;
}

type Faults = { [K in keyof LoraFaults]-?: string[] };

/** Types of a scale; weights and vectors are floats. */
const isNumber = (dtype: string) => isFloat(dtype) || /^[IU]\d+$/.test(dtype);

/** Checks names, shapes and types of everything; nothing is read yet. */
function plan(
  file: LoraHeader,
  layers: LoraLayers,
  options: ReadLoraOptions,
): LoraPlan {
  const { what = "a LoRA", name = "lora", token = name } = options;
  const d = options.dialect
    ? dialect(options.dialect)
    : detectDialect(file, layers.width);
  const faults: Faults = {
    missing: [],
    unexpected: [],
    misshapen: [],
    mistyped: [],
  };
  const known = slots(d, layers, file);
  const tokens = tokenKeys(d, file, token);
  const claimed = new Set<string>();
  const found = new Map<string, PlannedLayer>();
  for (const [key, { shape, dtype }] of file.entries) {
    const held = tokens.get(key);
    const slot = known.get(key);
    const fits = slot?.part === "alpha" ? isNumber : isFloat;
    if (dtype !== undefined && !fits(dtype) && (held || slot)) {
      faults.mistyped.push(`${key} (expected floats, got ${dtype})`);
    }
    if (held) {
      const problem = tokenMisfit(d.tokens!, shape, layers);
      if (problem) faults.misshapen.push(`${key} (${problem})`);
      const twice = held.tokens.find((t) => claimed.has(t));
      if (twice !== undefined) {
        faults.unexpected.push(`${key} (a second "${twice}")`);
      }
      for (const t of held.tokens) claimed.add(t);
      continue;
    }
    if (!slot) {
      faults.unexpected.push(key);
      continue;
    }
    const id = `${slot.component} ${slot.site.path}`;
    const layer = found.get(id) ??
      {
        component: slot.component,
        site: slot.site,
        keys: {},
        stem: "",
        algorithm: "LoRA",
      };
    found.set(id, layer);
    if (layer.keys[slot.part] !== undefined) {
      faults.unexpected.push(`${key} (beside ${layer.keys[slot.part]})`);
      continue;
    }
    layer.keys[slot.part] = key;
    layer.stem = key.slice(
      0,
      key.length - d.parts[slot.part]!.find((end) => key.endsWith(end))!.length,
    );
  }
  const configs = configsOf(d, file, options);
  for (const layer of found.values()) {
    checkLayer(d, layer, file, configs[layer.component], faults);
  }
  faults.missing.push(...missingKeys(d, found, layers, file, options));
  for (const [kind, list] of Object.entries(d.faults?.(file, layers) ?? {})) {
    faults[kind as keyof Faults].push(...list);
  }
  report(what, d, faults, file);
  if (found.size + tokens.size === 0) {
    throw cannot(`read ${what}`, "at least one layer or token", "none");
  }
  // Canonical order, whatever the file's is.
  const ordered = COMPONENTS.flatMap((component) =>
    [...layers.sites[component].keys()].flatMap((path) =>
      found.get(`${component} ${path}`) ?? []
    )
  );
  const bare = ordered.find((l) =>
    l.stem.startsWith("base_model.") && !l.keys.alpha &&
    configuredScale(configs[l.component], l.site.path, 1) === undefined
  );
  if (bare && options.alpha === undefined) {
    throw cannot(
      `read ${what}`,
      "the adapter_config.json that PEFT writes beside it, or an alpha",
      "neither, so the scale is unknown",
    );
  }
  return { dialect: d, layers: ordered, tokens, configs };
}

/** Keys of layers that must be there and are not. */
function missingKeys(
  d: Dialect,
  found: ReadonlyMap<string, PlannedLayer>,
  layers: LoraLayers,
  file: LoraHeader,
  { complete }: ReadLoraOptions,
): string[] {
  const required = complete === false && d.id !== CLONEOFSIMO.id
    ? undefined
    : d.required ??
      (complete
        ? (_: LoraLayers, __: LoraHeader, c: Component) =>
          attentionPaths(layers, c)
        : undefined);
  if (!required) return [];
  const names = d.names(layers, file);
  return COMPONENTS.filter((component) =>
    [...found.values()].some((layer) => layer.component === component)
  ).flatMap((component) =>
    [...required(layers, file, component)]
      .filter((path) => !found.has(`${component} ${path}`))
      .flatMap((path) => {
        const [stem] = names(component, path);
        return (["down", "up"] as const).map((p) => stem + d.parts[p]![0]);
      })
  );
}

/** The PEFT config of each component: the caller's, or the header's. */
function configsOf(
  d: Dialect,
  file: LoraHeader,
  { config }: ReadLoraOptions,
): PeftConfigs {
  if (config) {
    const checked = parsePeftConfig(config);
    return { textEncoder: checked, unet: checked };
  }
  return d.configs?.(file) ?? {};
}

/** Adds what is wrong with one layer. */
function checkLayer(
  d: Dialect,
  layer: PlannedLayer,
  file: LoraHeader,
  config: PeftConfig | undefined,
  faults: Faults,
): void {
  const { site, keys, stem } = layer;
  const [algorithm = "LoRA", other] = algorithmsOf(Object.keys(keys));
  if (other !== undefined) {
    faults.unexpected.push(`${stem} (${algorithm} and ${other} at once)`);
    return;
  }
  layer.algorithm = algorithm;
  const shapeOf = (part: Part) =>
    keys[part] === undefined ? undefined : file.entries.get(keys[part])!.shape;
  const misshapen = (part: Part, expected: readonly number[]) =>
    faults.misshapen.push(
      `${keys[part]} (expected [${expected}], got [${shapeOf(part)}])`,
    );
  if (algorithm === "LoRA") checkFactors(d, layer, shapeOf, misshapen, faults);
  else {
    const wrong = checkParts(algorithm, site, shapesOf(layer, file));
    faults.missing.push(...wrong.missing.map((p) => stem + d.parts[p]![0]));
    for (const [part, shape] of wrong.misshapen) misshapen(part, shape);
  }
  const rank = shapeOf("down")?.[0] ?? 0;
  const alpha = shapeOf("alpha");
  if (alpha && alpha.reduce((a, b) => a * b, 1) !== 1) misshapen("alpha", []);
  const magnitude = shapeOf("magnitude");
  if (magnitude) {
    layer.magnitudeOf = d.magnitudeOf?.(magnitude, site);
    if (!layer.magnitudeOf) {
      misshapen("magnitude", d.magnitudeShape?.(site, "output") ?? []);
    }
  }
  if (!config) return;
  const configured = configuredRank(config, site.path);
  if (configured !== undefined && keys.down && configured !== rank) {
    faults.misshapen.push(
      `${keys.down} (rank ${rank}, the adapter config says ${configured})`,
    );
  }
  if (config.use_dora && keys.magnitude === undefined) {
    faults.missing.push(stem + d.parts.magnitude?.[0]);
  }
}

/** Adds what is wrong with the factors of a LoRA. */
function checkFactors(
  d: Dialect,
  { site, keys, stem }: PlannedLayer,
  shapeOf: (part: Part) => readonly number[] | undefined,
  misshapen: (part: Part, expected: readonly number[]) => void,
  faults: Faults,
): void {
  for (const part of ["down", "up"] as const) {
    if (keys[part] === undefined) faults.missing.push(stem + d.parts[part]![0]);
  }
  const rank = shapeOf("down")?.[0] ?? 0;
  const expected = keys.mid === undefined
    ? { mid: [], ...diskShapes(site, rank) }
    : {
      ...diskShapes({ ...site, kernel: [1, 1] }, rank),
      mid: [rank, rank, ...site.kernel],
    };
  for (const part of ["down", "mid", "up"] as const) {
    const shape = shapeOf(part);
    if (
      shape && keys.down && (rank < 1 || !sameDiskShape(shape, expected[part]))
    ) misshapen(part, expected[part]);
  }
}

/** Shapes of the parts of a layer that is no plain LoRA. */
function shapesOf({ keys }: PlannedLayer, file: LoraHeader): PartShapes {
  return Object.fromEntries(
    LYCORIS_PARTS.flatMap((part) =>
      keys[part] === undefined
        ? []
        : [[part, file.entries.get(keys[part])!.shape]]
    ),
  );
}

/** Throws what is wrong; if the file is of another kind, only that. */
function report(
  what: string,
  d: Dialect,
  faults: Faults,
  file: LoraHeader,
): void {
  const error = keyFaults(`read ${what} (${d.id} naming)`, faults);
  if (!error) return;
  const kind = foreignKind(file);
  if (kind) throw new KeysError(refusal(what, kind).message, error.keys);
  throw error;
}

/** Where files of ours say by which rule their scales are made. */
export const SCALE_RULE = "mix_of_show.scale_rule";

/** The rule of a file's scales, and that it says nothing else itself. */
function ruleOf(
  { dialect: d, configs }: LoraPlan,
  file: LoraHeader,
  { what = "a LoRA", config }: ReadLoraOptions,
): ScaleRule {
  const rslora = COMPONENTS.some((c) => configs[c]?.use_rslora);
  const rule = rslora ? "alpha/sqrt(rank)" : d.scaleRule;
  const told = file.metadata?.[SCALE_RULE];
  if (told !== undefined && told !== rule && !config) {
    throw cannot(
      `read ${what}`,
      `${SCALE_RULE} ${rule}, as ${d.id} files have it`,
      JSON.stringify(told.slice(0, 40)),
    );
  }
  return rule;
}

/**
 * Reads a LoRA strictly: every key of the file is one part of one layer of the
 * model (or a learned token), all parts are there and fit, all values are
 * finite — or nothing is read.
 *
 * @param file The file, already open.
 * @param base The model it is for, or only its configs.
 * @param options Dialect, PEFT config, name.
 * @returns Adapter and learned tokens.
 * @throws One error about all missing, unexpected, misshapen and mistyped keys; if
 * the file is for another architecture or of another kind, if a number is not
 * finite, if a scale is unknown.
 *
 * @example
 * ```ts
 * const file = await openSafetensors("cat.safetensors");
 * const { adapter, embeddings } = await readLora(file, model);
 * ```
 */
export async function readLora(
  file: LoraSource,
  base: LoraBase,
  options: ReadLoraOptions = {},
): Promise<LoraFile> {
  const { name = "lora", what = "a LoRA", alpha: given } = options;
  if (given !== undefined && !Number.isFinite(given)) {
    throw cannot(`read ${what}`, "a finite alpha", given);
  }
  const planned = plan(file, layersOf(base), options);
  const scaleRule = ruleOf(planned, file, options);
  const reader = readerOf(file);
  const scales = scalesOf(scaleRule, given);
  const result: Record<Component, Map<string, LowRank>> = {
    textEncoder: new Map(),
    unet: new Map(),
  };
  const counts = new Map<string, number>();
  let embeddings: Map<string, tf.Tensor2D>;
  try {
    for (const layer of planned.layers) {
      const { component, site, algorithm } = layer;
      const { rank, low } = await readLayer(layer, file, reader, {
        config: planned.configs[component],
        scales,
      });
      const kind = `${algorithm} ${rank}`;
      counts.set(kind, (counts.get(kind) ?? 0) + 1);
      result[component].set(site.path, { ...low, adapter: name });
    }
    embeddings = await readTokens(planned, file, reader);
    if (reader.broken.length > 0) {
      const { message } = cannot(
        `read ${what}`,
        "finite values",
        listed(reader.broken),
      );
      throw new KeysError(message, reader.broken);
    }
  } catch (error) {
    for (const t of reader.made) t.dispose();
    throw error;
  }
  const [source = "convention"] = scales.sources;
  return {
    dialect: planned.dialect.id,
    adapter: { name, scaleRule, ...result },
    scales: scales.sources.size > 1 ? "mixed" : source,
    algorithms: [...counts].map(([kind, layers]) => {
      const [algorithm, rank] = kind.split(" ");
      return { algorithm: algorithm as Algorithm, rank: Number(rank), layers };
    }),
    embeddings,
    metadata: file.metadata ?? {},
  };
}

/** Reads values and makes tensors; knows all that it made and found broken. */
interface Reader {
  /** Values of a key. */
  values(key: string): Promise<Float32Array>;
  /** A tensor, the reader's until the file is read. */
  tensor<T extends tf.Tensor>(data: Float32Array, shape: number[]): T;
  readonly made: readonly tf.Tensor[];
  /** Keys with values that are not finite. */
  readonly broken: readonly string[];
}

function readerOf(file: LoraSource): Reader {
  const made: tf.Tensor[] = [];
  const broken: string[] = [];
  return {
    made,
    broken,
    async values(key) {
      const data = toFloat32(await file.read(key));
      const bad = data.find((v) => !Number.isFinite(v));
      if (bad !== undefined) {
        broken.push(`${Number.isNaN(bad) ? "NaN" : "Inf"} in ${key}`);
      }
      return data;
    },
    tensor<T extends tf.Tensor>(data: Float32Array, shape: number[]): T {
      const t = tf.tensor(data, shape) as T;
      made.push(t);
      return t;
    },
  };
}

/** Scales of layers, and where they came from. */
interface Scales {
  /** The scale of a layer: its own α, else the config's, else what is given. */
  of(rank: number, path: string, own?: number, config?: PeftConfig): number;
  readonly sources: ReadonlySet<ScaleSource>;
}

function scalesOf(rule: ScaleRule, given: number | undefined): Scales {
  const sources = new Set<ScaleSource>();
  return {
    sources,
    of(rank, path, own, config) {
      if (own !== undefined) {
        sources.add("alpha tensors");
        return own / (config?.use_rslora ? Math.sqrt(rank) : rank);
      }
      const configured = configuredScale(config, path, rank);
      if (configured !== undefined) {
        sources.add("adapter config");
        return configured;
      }
      sources.add(given === undefined ? "convention" : "caller");
      if (given === undefined) return 1;
      return rule === "alpha"
        ? given
        : given / (rule === "alpha/rank" ? rank : Math.sqrt(rank));
    },
  };
}

/** One layer, and the rank that it has in the file. */
async function readLayer(
  layer: PlannedLayer,
  file: LoraSource,
  { values, tensor }: Reader,
  { config, scales }: { config?: PeftConfig; scales: Scales },
): Promise<{ rank: number; low: Omit<LowRank, "adapter"> }> {
  const { site, keys, magnitudeOf, algorithm } = layer;
  const shapes = shapesOf(layer, file);
  const fileRank = algorithm === "LoRA"
    ? file.entries.get(keys.down!)!.shape[0]
    : lycorisRank(algorithm, shapes);
  // PEFT divides α by the rank of its config, LyCORIS by that of the factors.
  const divisor = algorithm === "LoRA" || !config
    ? fileRank
    : configuredRank(config, site.path) ?? fileRank;
  const factors = algorithm === "LoRA"
    ? await plainFactors(fileRank!, keys, values)
    : await lycorisFactors(
      algorithm,
      site,
      shapes,
      (part) => values(keys[part]!),
    );
  const own = ownShapes(site, factors.rank);
  const factor = (part: "down" | "up") =>
    tensor<LowRank["down"]>(
      fromDisk(site.kind, own[part], factors[part]),
      own[part],
    );
  const alpha = keys.alpha ? (await values(keys.alpha))[0] : undefined;
  const low = {
    down: factor("down"),
    up: factor("up"),
    scale: divisor === undefined
      ? 1
      : scales.of(divisor, site.path, alpha, config),
    ...(keys.magnitude && {
      magnitude: tensor<tf.Tensor1D>(
        await values(keys.magnitude),
        [magnitudeOf === "input" ? site.inputs : site.outputs],
      ),
      ...(magnitudeOf === "input" ? { dora: { of: magnitudeOf } } : {}),
    }),
  };
  return { rank: fileRank ?? factors.rank, low };
}

/** The learned tokens of a file, [vectors, width] each. */
async function readTokens(
  { tokens: planned }: LoraPlan,
  file: LoraSource,
  { values, tensor }: Reader,
): Promise<Map<string, tf.Tensor2D>> {
  const embeddings = new Map<string, tf.Tensor2D>();
  for (const { key, tokens } of planned.values()) {
    const { shape } = file.entries.get(key)!;
    const width = shape[shape.length - 1];
    const data = await values(key);
    const size = data.length / tokens.length;
    tokens.forEach((token, k) =>
      embeddings.set(
        token,
        tensor<tf.Tensor2D>(
          data.slice(k * size, (k + 1) * size),
          [size / width, width],
        ),
      )
    );
  }
  return embeddings;
}

/** The factors of a LoRA, in PyTorch's layout. */
async function plainFactors(
  rank: number,
  keys: PlannedLayer["keys"],
  values: (key: string) => Promise<Float32Array>,
): Promise<{ rank: number; down: Float32Array; up: Float32Array }> {
  const down = await values(keys.down!);
  return {
    rank,
    down: keys.mid === undefined
      ? down
      : throughMid(down, await values(keys.mid), rank),
    up: await values(keys.up!),
  };
}

/**
 * `down` of a layer whose filter is a part of its own: what a 1×1 convolution
 * [r, in] and then a filter [r, r, h, w] do, as one [r, in, h, w].
 */
function throughMid(
  down: Float32Array,
  mid: Float32Array,
  rank: number,
): Float32Array {
  const inputs = down.length / rank;
  const area = mid.length / (rank * rank);
  const result = new Float32Array(rank * inputs * area);
  for (let r = 0; r < rank; r++) {
    for (let i = 0; i < inputs; i++) {
      for (let k = 0; k < area; k++) {
        let sum = 0;
        for (let p = 0; p < rank; p++) {
          sum += mid[(r * rank + p) * area + k] * down[p * inputs + i];
        }
        result[(r * inputs + i) * area + k] = sum;
      }
    }
  }
  return result;
}

/** Name of the weights in a folder of PEFT's. */
export const ADAPTER_MODEL = "adapter_model.safetensors";
/** Name of the config beside them. */
export const ADAPTER_CONFIG = "adapter_config.json";

/** Names of the weights in a folder of PEFT's. */
const PEFT_WEIGHTS = [ADAPTER_MODEL, "adapter_model.bin"];

/** Names of the weights that diffusers writes into a folder without a config. */
const DIFFUSERS_WEIGHTS = [
  "pytorch_lora_weights.safetensors",
  "pytorch_lora_weights.bin",
  "learned_embeds.safetensors",
  "learned_embeds.bin",
];

/** The first of several names that a folder has. */
async function firstOf(
  folder: string,
  names: readonly string[],
): Promise<string | undefined> {
  for (const name of names) {
    if (await exists(joinPath(folder, name))) return joinPath(folder, name);
  }
}

/** Folders of PEFT's: this one, or one per network below it. */
async function peftFolders(folder: string): Promise<string[]> {
  const found: string[] = [];
  for (const below of ["", ...Object.values(PREFIX)]) {
    const one = joinPath(folder, below);
    if (await exists(joinPath(one, ADAPTER_CONFIG))) found.push(one);
  }
  return found;
}

/** The weights of a folder of PEFT's. */
async function peftWeights(folder: string): Promise<string> {
  const found = await firstOf(folder, PEFT_WEIGHTS);
  if (found !== undefined) return found;
  throw cannot(`read ${folder}`, PEFT_WEIGHTS.join(" or "), "neither");
}

/**
 * The files that hold the tensors of a LoRA.
 *
 * @param path A file, or a folder of PEFT's or of diffusers'.
 * @throws If a folder has none.
 */
export async function loraFiles(path: string): Promise<string[]> {
  if (!await isFolder(path)) return [path];
  const folders = await peftFolders(path);
  if (folders.length > 0) return await Promise.all(folders.map(peftWeights));
  const other = await firstOf(path, DIFFUSERS_WEIGHTS);
  if (other !== undefined) return [other];
  throw cannot(
    `read ${path}`,
    `a folder with ${ADAPTER_CONFIG} or ${DIFFUSERS_WEIGHTS.join(", ")}`,
    "none of them",
  );
}

/**
 * Opens and reads a LoRA; see {@linkcode readLora}.
 *
 * @param from A safetensors file or an official `.pth` (path, URL, `Blob` or
 * bytes), or a folder of PEFT's (`adapter_config.json` and `adapter_model.safetensors` or `.bin`, or
 * two such folders `unet` and `text_encoder`) or diffusers'
 * (`pytorch_lora_weights`). The config beside a file is found, too.
 * @param base The model it is for, or only its configs.
 * @param options Dialect, PEFT config, name.
 */
export async function loadLora(
  from: FileSource,
  base: LoraBase,
  options: ReadLoraOptions = {},
): Promise<LoraFile> {
  if (typeof from === "string" || from instanceof URL) {
    const path = pathOf(from);
    if (await isFolder(path)) return await loadFolder(path, base, options);
    if (!options.config && /adapter_model\.[^/\\]*$/.test(path)) {
      const config = joinPath(parentOf(path), ADAPTER_CONFIG);
      if (await exists(config)) {
        options = {
          ...options,
          config: parsePeftConfig(await readJson(config)),
        };
      }
    }
  }
  const file = await openTensors(from);
  try {
    const what = sourceName(from, "");
    const named = what === "" ? { what: "a LoRA" } : {
      what,
      token: stemOf(what),
    };
    return await readLora(file, base, { ...named, ...options });
  } finally {
    file.close();
  }
}

async function loadFolder(
  folder: string,
  base: LoraBase,
  options: ReadLoraOptions,
): Promise<LoraFile> {
  const peft = (await peftFolders(folder)).length > 0;
  const files: LoraFile[] = [];
  try {
    for (const one of await loraFiles(folder)) {
      const own = options.dialect ?? (peft ? "peft" : undefined);
      files.push(await loadLora(one, base, { ...options, dialect: own }));
    }
    return files.reduce((a, b) => merged(a, b, folder));
  } catch (error) {
    files.forEach(disposeLora);
    throw error;
  }
}

/** Two halves of one LoRA. */
function merged(a: LoraFile, b: LoraFile, what: string): LoraFile {
  const join = (component: Component) => {
    const [x, y] = [a.adapter[component], b.adapter[component]];
    const twice = [...y.keys()].filter((path) => x.has(path));
    if (twice.length > 0) {
      throw cannot(`read ${what}`, "every layer once", listed(twice));
    }
    return new Map([...x, ...y]);
  };
  if (a.adapter.scaleRule !== b.adapter.scaleRule) {
    throw cannot(
      `read ${what}`,
      "one rule of scales",
      `${a.adapter.scaleRule} and ${b.adapter.scaleRule}`,
    );
  }
  return {
    ...a,
    scales: a.scales === b.scales ? a.scales : "mixed",
    algorithms: [...a.algorithms, ...b.algorithms],
    adapter: {
      ...a.adapter,
      textEncoder: join("textEncoder"),
      unet: join("unet"),
    },
    metadata: { ...b.metadata, ...a.metadata },
  };
}

/**
 * Disposes what was read from a file.
 *
 * @param file The file's content.
 */
export function disposeLora(
  file: Pick<LoraFile, "adapter" | "embeddings">,
): void {
  disposeAdapter(file.adapter);
  for (const vectors of file.embeddings.values()) {
    if (!vectors.isDisposed) vectors.dispose();
  }
}
