/**
 * Whether there is memory for a run, before it is begun: options that save some,
 * and refusals that say what would fit.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import type { CountingOptions } from "../core/counting.ts";
import { bindingLimit, boundCard } from "../core/device.ts";
import { cannot } from "../core/errors.ts";
import { type MemoryLimit, memoryLimit } from "../core/limits.ts";
import { modelSize, type Size } from "../diffusion/layout.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { joinPath, readJson } from "../io/files.ts";
import { describeLdm, partsIn } from "../formats/ldm_config.ts";
import { autoencoderSpec, downsampleFactor } from "../models/autoencoder.ts";
import type { MemoryNeed, ModelConfigs } from "../models/blank.ts";
import {
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../models/config.ts";
import { textEncoderSpec } from "../models/text_encoder.ts";
import { unetSpec, widestFeatures } from "../models/unet.ts";
import { specLeaves, type SpecLike } from "../nn/spec.ts";
import {
  loraBase,
  type LoraBaseName,
  SD_AUTOENCODER,
} from "../formats/dialects/base.ts";
import { isModelFolder } from "../formats/load_model.ts";
import {
  EMBEDDED,
  KNOWN_BASES,
  localModel,
  type ModelRequest,
} from "./models.ts";
import { flag, number, oneOf, optionTable, type Values } from "./options.ts";

/** What `--memory` may be. */
export const MEMORY_CHOICES = ["auto", "low", "high"] as const;

/** Options that save memory. */
export const MEMORY_OPTIONS = optionTable({
  memory: {
    type: oneOf(MEMORY_CHOICES),
    hint: "HOW",
    default: "auto",
    help: "low needs a fraction of the memory and more time, with the same " +
      "result; high keeps what it can; auto is high where that fits, " +
      "else low, else low with --half",
  },
  half: {
    type: flag,
    help: "keep the model's weights as half floats (webgpu)",
  },
  card: {
    type: number({ least: 0.1 }),
    hint: "GB",
    otherwise: "8, where more is only a warning",
    help: "memory of the graphics card, which WebGPU does not report",
  },
});

type MemoryRequest = Values<typeof MEMORY_OPTIONS>;

/** What a graphics card that says nothing is taken to have, in bytes. */
const USUAL_CARD = 8e9;

/** Runs this many times larger than what it is told from are not counted. */
const SURELY = 50;

/** How memory is used in a run. */
export interface MemoryUse {
  /** What is kept. */
  readonly memory: "high" | "low";
  /** Whether weights are half floats. */
  readonly half: boolean;
  /** What was counted; nothing where there is room beyond doubt. */
  readonly need?: MemoryNeed;
}

/** A run whose memory is counted. */
export interface Sized {
  /** The pictures' height in pixels. */
  readonly height: number;
  /** The pictures' width in pixels. */
  readonly width: number;
  /** Pictures at once. */
  readonly batch: number;
}

/** How a run's memory is counted. */
export interface Counted {
  /** What is to be done, a verb: `train`. */
  readonly what: string;
  /** Configs of the model. */
  readonly configs: ModelConfigs;
  /** The run. */
  readonly run: Sized;
  /** Whether there are options for its batch and its size. */
  readonly batched: boolean;
  /** Counts a run. */
  readonly count: (
    run: Sized & Pick<MemoryUse, "memory" | "half">,
    options: CountingOptions,
  ) => Promise<MemoryNeed>;
}

/** Bytes as people write them. */
export function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(bytes < 1e8 ? 3 : 1)} GB`;
}

/** Whose kernels are counted for the backend in use. */
function countingOptions(): CountingOptions {
  return tf.getBackend() === "webgpu"
    ? { kernels: "webgpu", binding: bindingLimit() }
    : { kernels: "wasm" };
}

/** Bytes of weights and of the largest features. */
function floor({ textEncoder, unet, autoencoder }: ModelConfigs, run: Sized) {
  const specs: SpecLike[] = [
    textEncoderSpec(textEncoder),
    unetSpec(unet),
    autoencoderSpec(autoencoder),
  ];
  const weights = specs.flatMap((spec) => specLeaves(spec)).reduce(
    (sum, [, { shape }]) => sum + shape.reduce((a, b) => a * b, 1),
    0,
  );
  const factor = downsampleFactor(autoencoder);
  const features = 2 * run.batch *
    widestFeatures(unet, run.height / factor, run.width / factor);
  const picture = autoencoder.block_out_channels[0] * run.height * run.width;
  return 4 * (weights + features + picture);
}

const fits = ({ bytes, largest }: MemoryNeed, limit: number) =>
  bytes <= limit && largest <= bindingLimit();

/** Smaller runs of the same kind, the closest first. */
function smaller(
  { run, batched, configs }: Counted,
): { words: string; run: Sized }[] {
  if (!batched) return [];
  const { batch, height, width } = run;
  const factor = downsampleFactor(configs.autoencoder) *
    2 ** (configs.unet.block_out_channels.length - 1);
  const batches = [...new Set([Math.floor(batch / 2), 1])]
    .filter((b) => b > 0 && b < batch);
  // Down to the smallest picture there is: a size may have a digit too many.
  const shares = [3 / 4];
  for (let half = 1 / 2; half * Math.max(height, width) >= factor; half /= 2) {
    shares.push(half);
  }
  const sizes = shares.map((share) => {
    const side = (pixels: number) =>
      Math.max(factor, factor * Math.floor(share * pixels / factor));
    return { height: side(height), width: side(width) };
  }).filter((size) => size.height < height || size.width < width);
  const words = ({ batch: b, ...size }: Sized) =>
    [
      b === batch ? "" : `--batch ${b}`,
      size.height === height && size.width === width
        ? ""
        : `${size.width}×${size.height} pixels`,
    ].filter((part) => part).join(" and ");
  const runs: Sized[] = [
    ...batches.map((b) => ({ height, width, batch: b })),
    ...sizes.map((size) => ({ ...size, batch: batches.at(-1) ?? batch })),
  ];
  return runs.map((r) => ({ words: words(r), run: r }));
}

/**
 * Chooses how a run uses memory, or refuses it. The backend has been started,
 * no weights have been loaded.
 *
 * @param request What the user wants.
 * @param counted The run.
 * @param known The memory there is, as far as it is known.
 * @default known what the backend, the machine or `--card` says
 * @returns The first way that fits.
 * @throws If none does, with the bytes, the limit, and what would fit; or if an
 * option does not go with the backend.
 */
export async function chooseMemory(
  request: MemoryRequest,
  counted: Counted,
  known: MemoryLimit = memoryLimit(request.card && 1e9 * request.card),
): Promise<MemoryUse> {
  const { what, configs, run } = counted;
  const webgpu = tf.getBackend() === "webgpu";
  for (const option of ["half", "card"] as const) {
    if (!request[option] || webgpu) continue;
    throw cannot(what, `--backend webgpu with --${option}`, tf.getBackend());
  }
  const limit: MemoryLimit = known.bytes < Infinity || !webgpu
    ? known
    : { bytes: USUAL_CARD, whose: "of an ordinary graphics card (--card GB)" };
  const { memory, half } = request;
  const plain = { memory: memory === "low" ? "low" : "high", half } as const;
  if (SURELY * floor(configs, run) < limit.bytes) return plain;
  const ways: Pick<MemoryUse, "memory" | "half">[] = memory === "auto"
    ? [
      { memory: "high", half },
      { memory: "low", half },
      ...(webgpu && !half ? [{ memory: "low", half: true } as const] : []),
    ]
    : [plain];
  const options = countingOptions();
  const count = (r: Sized, way: Pick<MemoryUse, "memory" | "half">) =>
    counted.count({ ...r, ...way }, options);
  let need: MemoryNeed | undefined;
  for (const way of ways) {
    need = await count(run, way);
    if (fits(need, limit.bytes)) return { ...way, need };
  }
  const frugal = { memory: "low", half: half || webgpu } as const;
  const { weights, adapters, optimizer, activations } = need!;
  const parts = Object.entries({ weights, adapters, optimizer, activations })
    .filter(([, bytes]) => bytes > 5e7)
    .map(([name, bytes]) => `${name} ${gigabytes(bytes)}`).join(", ");
  const got = `a run that needs ${gigabytes(need!.bytes)} (${parts}), its ` +
    `largest tensor ${gigabytes(need!.largest)}`;
  if (known.bytes === Infinity && need!.largest <= bindingLimit()) {
    console.error(
      `${what}: ${got}; the memory ${limit.whose} is ${gigabytes(limit.bytes)}`,
    );
    return { ...ways.at(-1)!, need };
  }
  const found: string[] = [];
  const tried = ways.some((way) =>
    way.memory === frugal.memory && way.half === frugal.half
  );
  const saving = [
    memory === "high" ? "--memory low" : "",
    frugal.half && !half ? "--half" : "",
  ].filter((part) => part).join(" ");
  for (
    const { words, run: other } of [
      ...(tried ? [] : [{ words: "", run }]),
      ...smaller(counted),
    ]
  ) {
    const less = await count(other, frugal);
    if (!fits(less, limit.bytes)) continue;
    const all = [saving, words].filter((part) => part).join(" and ");
    found.push(`${all} (${gigabytes(less.bytes)})`);
    if (found.length === 2) break;
  }
  throw cannot(
    `${what} ${run.width}×${run.height} pixels` +
      (counted.batched ? `, ${run.batch} at once` : ""),
    `at most ${gigabytes(limit.bytes)}, the memory ${limit.whose}` +
      (bindingLimit() < Infinity
        ? `, and ${gigabytes(bindingLimit())} in a tensor`
        : ""),
    `${got}; ` +
      (found.length > 0
        ? `these fit: ${found.join(", ")}`
        : "no smaller run of this model fits either"),
  );
}

/**
 * Says how a run uses memory, where that is worth a word, and keeps to it.
 *
 * @param use What was chosen.
 * @param request What was asked for.
 * @returns Undoes it.
 */
export function applyMemory(
  use: MemoryUse,
  request: MemoryRequest,
): () => void {
  const { memory, half, need } = use;
  const chosen = [
    memory === "low" && request.memory === "auto" ? "--memory low" : "",
    half && !request.half ? "--half" : "",
  ].filter((part) => part).join(" ");
  if (need && chosen) {
    console.error(`memory: ${chosen}, ${gigabytes(need.bytes)}`);
  }
  return memory === "low" ? boundCard() : () => {};
}

/** A schedule; counting needs one, and it does not matter which. */
const SCHEDULER = {
  _class_name: "DDIMScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  num_train_timesteps: 1000,
};

/**
 * Chooses how a command's run uses memory, as {@linkcode chooseMemory} does. A
 * run is not counted where a part of the model is missing or cannot be read:
 * opening the model says what is wrong, or takes the part from another file.
 *
 * @param request Which model, and what the user wants.
 * @param counted The run, from the model's configs and its own picture size.
 */
export async function memoryFor(
  request: MemoryRequest & ModelRequest,
  counted: (configs: ModelConfigs, size: Size) => Omit<Counted, "configs">,
): Promise<MemoryUse> {
  const configs = await modelConfigs(request).catch(() => undefined);
  if (!configs) {
    const { memory, half } = request;
    return { memory: memory === "low" ? "low" : "high", half };
  }
  const { unet, autoencoder } = configs;
  const size = modelSize({
    unet: { config: unet },
    autoencoder: { config: autoencoder },
  });
  return await chooseMemory(request, { ...counted(configs, size), configs });
}

/**
 * The configs of a model by what the user calls it: `sd15`, `sd21`, a folder, a
 * single file or a name on the hub. No weights are read.
 *
 * @param request Which model.
 * @throws If it is not there, or its configs are broken.
 */
export async function modelConfigs(
  { model: spec = EMBEDDED, variant }: ModelRequest,
): Promise<ModelConfigs> {
  if (Object.hasOwn(KNOWN_BASES, spec)) {
    const { textEncoder, unet } = loraBase(spec as LoraBaseName);
    return {
      textEncoder: textEncoder.config,
      unet: unet.config,
      autoencoder: parseAutoencoderConfig({
        ...SD_AUTOENCODER,
        sample_size: 512,
      }),
      scheduler: SCHEDULER,
    };
  }
  const path = await localModel(spec, { variant });
  if (await isModelFolder(path)) {
    const config = (part: string) =>
      readJson(joinPath(path, part, "config.json"));
    return {
      textEncoder: parseTextEncoderConfig(await config("text_encoder")),
      unet: parseUNetConfig(await config("unet")),
      autoencoder: parseAutoencoderConfig(await config("vae")),
      scheduler: SCHEDULER,
    };
  }
  using file = await openSafetensors(path);
  // A part alone says nothing of the others.
  const parts = partsIn(file.entries.keys());
  if (parts.size < 3 || [...parts.values()].includes("diffusers")) {
    throw cannot(
      `count the memory of ${path}`,
      "a whole model",
      `${parts.size} of its networks`,
    );
  }
  return { ...describeLdm(file).configs, scheduler: SCHEDULER };
}
