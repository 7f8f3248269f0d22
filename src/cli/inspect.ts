/**
 * `deno task inspect`: says what is in a file or folder.
 *
 * @module
 */
import { isModelFolder } from "../formats/load_model.ts";
import { cannot, listed } from "../core/errors.ts";
import { inspectLora, type LoraSummary } from "../formats/convert.ts";
import { detectDialect, loraFiles } from "../formats/lora.ts";
import { exists, joinPath, readJson } from "../io/files.ts";
import { componentFile } from "../io/folder.ts";
import { openTensors } from "../formats/pickle.ts";
import type { SafetensorsFile } from "../io/safetensors.ts";
import { byBeginning, ldmExtras } from "../formats/ldm.ts";
import {
  describeLdm,
  type PartNaming,
  type PartsFound,
  partsIn,
  withPrefixes,
} from "../formats/ldm_config.ts";
import type { LdmComponent } from "../formats/ldm_names.ts";
import { algorithmsOf } from "../formats/lycoris.ts";
import { scaledWeights, unscaled } from "../formats/scaled_fp8.ts";
import { type ForeignKind, foreignKind } from "../formats/kinds.ts";
import { specialPurpose } from "../models/purpose.ts";
import { type Command, command } from "./command.ts";
import { baseFor } from "./loras.ts";
import { hostBackend, KNOWN_BASES, localModel } from "./models.ts";
import { terminalColumns } from "./progress.ts";
import { wrapped } from "../report/table.ts";
import { file as filePath, flag, optionTable, type Values } from "./options.ts";

const OPTIONS = optionTable({
  path: {
    type: filePath,
    argument: true,
    needed: true,
    hint: "PATH",
    help: "a LoRA or concept (dialect, layers, ranks, scales, tokens, " +
      "metadata), a model (configs, sizes, learned tokens), or any other " +
      "safetensors or .pth file (names, shapes, types)",
  },
  model: {
    type: filePath,
    hint: "MODEL",
    otherwise: "the one that fits",
    help:
      "the model that a LoRA is for: sd15, sd21, a folder, a file or a name on " +
      "the hub",
  },
  keys: { type: flag, help: "also list every tensor" },
  words: {
    type: flag,
    help: "the words that are one token of a model folder's tokenizer",
  },
  json: { type: flag, help: "prints JSON" },
});

/** What the command line asks for. */
export type InspectRequest = Values<typeof OPTIONS>;

/** What is in a file or folder: a kind, and facts by name. */
export interface Inspection {
  /** `LoRA`, `model`, `tensors`, … */
  readonly kind: string;
  /** What is known about it. */
  readonly facts: Readonly<Record<string, unknown>>;
  /** Every tensor: type and shape, if they were asked for. */
  readonly keys?: Readonly<Record<string, string>>;
  /** Words that the tokenizer has whole, if they were asked for. */
  readonly words?: readonly string[];
}

/** How often each value occurs: `4 (×32), 8 (×2)`. */
function counted(values: Iterable<string | number>): string {
  const counts = new Map<string | number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  if (counts.size === 1) return String([...counts.keys()][0]);
  return [...counts].sort((a, b) => b[1] - a[1])
    .map(([value, count]) => `${value} (×${count})`).join(", ");
}

/** Tensors, parameters, types. */
function totals(file: SafetensorsFile): Record<string, unknown> {
  const entries = [...file.entries.values()];
  const size = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  return {
    tensors: entries.length,
    parameters: entries.reduce((sum, { shape }) => sum + size(shape), 0),
    types: counted(entries.map(({ dtype }) => dtype)),
  };
}

/** Metadata that a person can read; `hidden` is what the format needs itself. */
function metadataOf(
  metadata: Readonly<Record<string, string>> | undefined,
  hidden?: RegExp,
): Record<string, unknown> {
  const shown = Object.entries(metadata ?? {})
    .filter(([name]) => !hidden?.test(name))
    .map(([name, value]) => [
      name,
      value.length > 200 ? `${value.slice(0, 200)}… (${value.length})` : value,
    ]);
  return shown.length === 0 ? {} : { metadata: Object.fromEntries(shown) };
}

/** Facts about a LoRA that fits a model. */
function loraFacts(lora: LoraSummary, fits: string): Record<string, unknown> {
  const list = (counts: readonly (readonly [number, number])[]) =>
    counts.length === 1
      ? counts[0][0]
      : counts.map(([value, layers]) => `${value} (×${layers})`).join(", ");
  const layers = lora.layers.textEncoder + lora.layers.unet;
  const plain = lora.algorithms.every(({ algorithm }) => algorithm === "LoRA");
  return {
    dialect: lora.dialect,
    "written by": lora.describe,
    fits,
    ...(layers === 0 ? {} : {
      ...(plain ? {} : {
        algorithm: lora.algorithms.map(({ algorithm, rank, layers }) =>
          `${algorithm} of rank ${rank} (×${layers})`
        ),
      }),
      layers: lora.layers,
      ...(lora.convolutions > 0 ? { convolutions: lora.convolutions } : {}),
      ...(lora.doras > 0 ? { DoRA: lora.doras } : {}),
      [plain ? "rank" : "rank as factors"]: list(lora.ranks),
      "factor of up·down": list(lora.factors),
      "scale rule": lora.scaleRule,
      "scales from": lora.scales,
    }),
    ...(lora.tokens.length === 0 ? {} : {
      tokens: Object.fromEntries(
        lora.tokens.map(([token, n]) => [
          token,
          n === 1 ? "1 vector" : `${n} vectors, one per cross-attention layer`,
        ]),
      ),
    }),
  };
}

/** What a LoRA is called, by how it is made. */
function loraKind(lora: LoraSummary): string {
  const { textEncoder, unet } = lora.layers;
  if (textEncoder + unet === 0) return "embedding (learned tokens)";
  const kinds = new Set(lora.algorithms.map(({ algorithm }) => algorithm));
  const [only] = kinds;
  if (kinds.size > 1) return "LyCORIS adapter of several algorithms";
  return only === "full" ? "full difference of weights" : only;
}

/** A LoRA file, with what can be said even if it fits no known model. */
async function loraAt(
  path: string,
  file: SafetensorsFile | undefined,
  model?: string,
): Promise<Inspection> {
  const found = file && detectDialect(file);
  const own = file
    ? {
      ...totals(file),
      ...metadataOf(file.metadata, found?.structural),
    }
    : {};
  try {
    const { name, base } = await baseFor(path, model);
    const summary = await inspectLora(path, { base });
    return {
      kind: loraKind(summary),
      facts: { ...loraFacts(summary, name), ...own },
    };
  } catch (error) {
    if (model !== undefined || !file || !found) throw error;
    const foreign = foreignKind(file);
    if (foreign) return foreignFacts(foreign, file, found.id);
    const downs = [...file.entries].filter(([name]) =>
      found.parts.down?.some((end) => name.endsWith(end))
    );
    const tokens = [...file.entries.keys()].flatMap((name) =>
      found.tokens?.read(name, file, path) ?? []
    );
    // Told by the keys alone: what fits no model has not been read.
    const [algorithm = "LoRA"] = algorithmsOf(
      [...file.entries.keys()].map((key) => key.split(".").at(-1)!),
    );
    return {
      kind: algorithm === "full" ? "full difference of weights" : algorithm,
      facts: {
        dialect: found.id,
        "written by": found.describe,
        fits: `none of ${
          [...Object.keys(KNOWN_BASES), "the embedded model"].join(", ")
        } (--model says which it is for)`,
        problem: (error as Error).message.replace(`Cannot read ${path}: `, ""),
        ...(downs.length === 0 ? {} : {
          layers: downs.length,
          rank: counted(downs.map(([, { shape }]) => shape[0])),
        }),
        ...(tokens.length > 0 ? { tokens: [...new Set(tokens)] } : {}),
        ...own,
      },
    };
  }
}

/** A file of a known kind that is of no use here. */
function foreignFacts(
  { name, expected }: ForeignKind,
  file: SafetensorsFile,
  dialect?: string,
): Inspection {
  return {
    kind: name.replace(/^an? /, ""),
    facts: {
      use: `none here, where ${expected} is read`,
      ...(dialect === undefined ? {} : { "naming like": dialect }),
      names: groups(file.entries.keys()),
      ...totals(file),
      ...metadataOf(file.metadata),
    },
  };
}

/** Names by their first parts, with how many there are. */
function groups(names: Iterable<string>): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const name of names) {
    const start = /^[^.]*_\d+_/.test(name)
      ? name.match(/^[^.]*?_\d+_/)![0].replace(/_$/, "")
      : name.split(".").slice(0, 2).join(".");
    counts[start] = (counts[start] ?? 0) + 1;
  }
  const sorted = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const more = sorted.slice(8).reduce((sum, [, count]) => sum + count, 0);
  return Object.fromEntries([
    ...sorted.slice(0, 8),
    ...(more > 0 ? [["others", more] as const] : []),
  ]);
}

/** What the networks of a file are called. */
const PART_NAMES: Readonly<Record<LdmComponent, string>> = {
  textEncoder: "text encoder",
  unet: "UNet",
  autoencoder: "VAE",
};

/** How the tensors of a network are named. */
const NAMINGS: Readonly<Record<PartNaming, string>> = {
  ldm: "as in whole checkpoints",
  bare: "of the original code, without a prefix",
  diffusers: "diffusers'",
};

/** A whole model in a file, or some of its networks. */
function modelFacts(raw: SafetensorsFile, parts: PartsFound): Inspection {
  const file = unscaled(raw);
  const scaled = scaledWeights(raw);
  const { layout, configs, predictionType, zeroTerminalSnr } = describeLdm(
    withPrefixes(file),
  );
  const whole = parts.size === 3;
  const named = [...parts.values()].includes("diffusers");
  const { in_channels, out_channels } = configs.unet;
  const size = (key: string, axis: number) =>
    parts.get("unet") === "diffusers"
      ? file.entries.get(key)?.shape[axis]
      : undefined;
  // Whatever goes in, what comes out is a latent.
  const purpose = parts.has("unet")
    ? specialPurpose(
      size("conv_in.weight", 1) ?? in_channels,
      size("conv_out.weight", 0) ?? out_channels,
    )
    : undefined;
  const extras = ldmExtras(file.entries.keys());
  const names = [...parts.keys()].map((part) => PART_NAMES[part]).join(" and ");
  return {
    kind: `${whole ? "model in a single file" : `${names} alone`}${
      purpose ? `, for ${purpose.replace(/ \(.*/, "")}` : ""
    }`,
    facts: {
      ...(whole ? {} : {
        names: [...new Set(parts.values())].map((naming) => NAMINGS[naming]),
        use: "with --unet, --vae or --text-encoder",
      }),
      ...((parts.has("textEncoder") || (parts.has("unet") && !named)) && {
        layout: layout === "sd1"
          ? "Stable Diffusion 1.x"
          : "Stable Diffusion 2.x",
      }),
      ...(purpose === undefined ? {} : { purpose }),
      ...(parts.has("unet") && {
        prediction: predictionType ?? "not said",
        ...(zeroTerminalSnr &&
          { "zero terminal SNR": "yes (ztsnr), trailing timesteps" }),
      }),
      ...(parts.has("unet") && !named && {
        unet: {
          channels: configs.unet.block_out_channels.join(", "),
          "text width": configs.unet.cross_attention_dim,
        },
      }),
      ...(parts.has("textEncoder") && {
        "text encoder": {
          layers: configs.textEncoder.num_hidden_layers,
          width: configs.textEncoder.hidden_size,
          vocabulary: configs.textEncoder.vocab_size,
        },
      }),
      ...(parts.has("autoencoder") && !named &&
        { "latent channels": configs.autoencoder.latent_channels }),
      ...(extras.length > 0 && { "beside it, not read": byBeginning(extras) }),
      ...(scaled > 0 &&
        { "scaled weights": `${scaled}, read as weight · scale` }),
      ...totals(raw),
      ...metadataOf(file.metadata, /^mix_of_show\.configs$/),
    },
  };
}

/** What is in one file. */
async function inspectFile(
  { path, model }: InspectRequest,
  file: SafetensorsFile,
): Promise<Inspection> {
  const foreign = foreignKind(file);
  const parts = partsIn(file.entries.keys());
  if (parts.size > 0) {
    return foreign ? foreignFacts(foreign, file) : modelFacts(file, parts);
  }
  if (file.metadata?.format?.startsWith("mix-of-show train state")) {
    return {
      kind: "state of a training run",
      facts: {
        "steps done": Number(file.metadata.step),
        ...totals(file),
        ...metadataOf(file.metadata),
      },
    };
  }
  try {
    detectDialect(file);
  } catch {
    if (foreign) return foreignFacts(foreign, file);
    return {
      kind: "tensors",
      facts: {
        names: groups(file.entries.keys()),
        ...totals(file),
        ...metadataOf(file.metadata),
      },
    };
  }
  return await loraAt(path, file, model);
}

/** The class a config says it is of. */
function classOf(config: Readonly<Record<string, unknown>>): string {
  const { _class_name: own, architectures } = config;
  return String(
    own ?? (Array.isArray(architectures) ? architectures[0] : undefined) ??
      config.model_type ?? "unknown",
  );
}

/** What is in a folder. */
async function inspectFolder(
  { path, model }: InspectRequest,
): Promise<Inspection> {
  if (await exists(joinPath(path, "unet", "config.json"))) {
    const facts: Record<string, unknown> = {};
    for (const part of ["text_encoder", "unet", "vae"]) {
      if (!await exists(joinPath(path, part, "config.json"))) {
        facts[part] = "none";
        continue;
      }
      const config = await readJson<Record<string, unknown>>(
        joinPath(path, part, "config.json"),
      );
      const file = await componentFile(path, part);
      const inputs = Number(config.in_channels);
      const purpose = part === "unet" && Number.isInteger(inputs)
        ? specialPurpose(inputs, Number(config.out_channels ?? 4))
        : undefined;
      facts[part] = {
        class: classOf(config),
        ...(purpose === undefined ? {} : { purpose }),
        ...totals(file),
      };
      file.close();
    }
    const scheduler = joinPath(path, "scheduler", "scheduler_config.json");
    if (await exists(scheduler)) {
      const config = await readJson<Record<string, unknown>>(scheduler);
      facts.scheduler = classOf(config);
      facts.prediction = config.prediction_type ?? "epsilon";
      if (config.rescale_betas_zero_snr === true) {
        facts["zero terminal SNR"] = "yes";
      }
    }
    const concepts = joinPath(path, "new_concept_cfg.json");
    if (await exists(concepts)) {
      const tokens = await readJson<Record<string, unknown>>(concepts);
      facts.tokens = Object.keys(tokens);
    }
    return { kind: "model folder", facts };
  }
  const weights = await loraFiles(path).catch(() => []);
  if (weights.length === 1) {
    using file = await openTensors(weights[0]);
    return await loraAt(path, file, model);
  }
  if (weights.length > 1) return await loraAt(path, undefined, model);
  if (await exists(joinPath(path, "config.json"))) {
    const config = await readJson<Record<string, unknown>>(
      joinPath(path, "config.json"),
    );
    using file = await componentFile(path, "");
    return {
      kind: "network folder",
      facts: {
        class: classOf(config),
        ...totals(file),
        ...metadataOf(file.metadata),
      },
    };
  }
  throw cannot(
    `inspect ${path}`,
    "a model, a network or a PEFT adapter in the folder",
    "none of them",
  );
}

/**
 * Looks at a file or folder.
 *
 * @param request What is asked for.
 * @throws If it is not there, broken, or nothing that is known here.
 */
export async function inspect(request: InspectRequest): Promise<Inspection> {
  const path = await localModel(request.path);
  const local = { ...request, path };
  if (await isModelFolder(path)) {
    const found = await inspectFolder(local);
    checkModel(request, found);
    return {
      ...found,
      ...(request.keys ? { keys: await folderKeys(path) } : {}),
      ...(request.words ? { words: await wordsOf(path) } : {}),
    };
  }
  if (request.words) {
    throw cannot(`inspect ${path}`, "a model folder with --words", "a file");
  }
  using file = await openTensors(path);
  const found = await inspectFile(local, file);
  checkModel(request, found);
  return request.keys ? { ...found, keys: keysOf(file) } : found;
}

/** Refuses what only a LoRA has. */
function checkModel({ path, model }: InspectRequest, found: Inspection): void {
  if (model === undefined || "dialect" in found.facts) return;
  throw cannot(`inspect ${path}`, "a LoRA with --model", found.kind);
}

/** Words of a model's tokenizer, sorted: entries that end one, of letters. */
async function wordsOf(folder: string): Promise<string[]> {
  const path = joinPath(folder, "tokenizer", "vocab.json");
  if (!await exists(path)) {
    throw cannot(`inspect ${folder}`, "a tokenizer with --words", "none");
  }
  const vocab = await readJson<Record<string, number>>(path);
  return Object.keys(vocab).flatMap((entry) =>
    /^([\p{L}\d]{2,}|[ai])<\/w>$/u.test(entry) ? [entry.slice(0, -4)] : []
  ).sort();
}

/** Every tensor of a file: type and shape. */
function keysOf(
  { entries }: Pick<SafetensorsFile, "entries">,
  folder = "",
): Record<string, string> {
  return Object.fromEntries(
    [...entries].map(([name, { dtype, shape }]) => [
      folder + name,
      `${dtype} [${shape.join(", ")}]`,
    ]),
  );
}

/** Every tensor of a folder, behind the name of the folder inside. */
async function folderKeys(path: string): Promise<Record<string, string>> {
  const keys: Record<string, string> = {};
  const add = async (opening: Promise<SafetensorsFile>, folder = "") => {
    using file = await opening;
    Object.assign(keys, keysOf(file, folder));
  };
  if (await exists(joinPath(path, "model_index.json"))) {
    for (const part of ["text_encoder", "unet", "vae"]) {
      if (!await exists(joinPath(path, part, "config.json"))) continue;
      await add(componentFile(path, part), `${part}/`);
    }
    return keys;
  }
  const weights = await loraFiles(path).catch(() => []);
  for (const file of weights) {
    const inside = file.slice(path.length).replace(/^[\\/]|[^\\/]*$/g, "");
    await add(openTensors(file), inside);
  }
  if (weights.length === 0) await add(componentFile(path, ""));
  return keys;
}

/** The most lines that one fact takes, so that all of it is one screenful. */
const MOST_LINES = 12;

/** Facts as indented lines; long ones are cut, and it is said. */
function lines(
  facts: Readonly<Record<string, unknown>>,
  most: number,
  indent = "",
): string[] {
  return Object.entries(facts).flatMap(([name, value]) => {
    if (Array.isArray(value)) {
      return [`${indent}${name}: ${listed(value.map(String), most)}`];
    }
    if (typeof value === "object" && value !== null) {
      const all = lines(value as Record<string, unknown>, most, `${indent}  `);
      const more = all.length - most;
      return [
        `${indent}${name}`,
        ...all.slice(0, most),
        ...(more > 0 ? [`${indent}  … and ${more} more (--json)`] : []),
      ];
    }
    const shown = typeof value === "number"
      ? value.toLocaleString("en")
      : `${value}`;
    return [`${indent}${name}: ${shown}`];
  });
}

/**
 * Looks and says what there is.
 *
 * @param request What is asked for.
 */
async function runInspect(request: InspectRequest): Promise<void> {
  await hostBackend();
  const found = await inspect(request);
  if (request.json) {
    console.log(JSON.stringify(found, null, 2));
    return;
  }
  console.log(`${request.path}: ${found.kind}`);
  console.log(lines(found.facts, MOST_LINES).join("\n"));
  if (found.keys) console.log(lines(found.keys, Infinity, "  ").join("\n"));
  if (found.words) {
    const text = found.words.join(" ");
    console.log(`${found.words.length} words:`);
    console.log(wrapped(text, Math.min(80, terminalColumns())).join("\n"));
  }
}

/** `deno task inspect`. */
export const inspectCommand: Command<InspectRequest> = command({
  name: "inspect",
  summary: "say what is in a file or folder",
  usage: "deno task inspect PATH [options]",
  about: "Says what is in a file or folder.",
  options: OPTIONS,
  examples: [
    "deno task inspect hero.safetensors",
    "deno task inspect out/fused",
    "deno task inspect models/micro --words",
  ],
  request: (values) => values,
  run: runInspect,
});
