/**
 * `deno task fullsize [--folder FOLDER] [--dtype F16|F32] [--backend webgpu]
 * [--size 512] [--steps 1] [--parts unet,decoder,train] [--half] [--outputs FILE]
 * [--dry]`: Stable Diffusion 1.5 at full size with random weights.
 *
 * Writes a model folder (2.1 GB in half precision, unless it is there), loads it
 * as any model is loaded, and runs the text encoder, the UNet and the decoder
 * once, with what each took in time and memory; `--parts train` takes one step of
 * ED-LoRA. It fails if a value is not
 * finite, if the graphics card complains, or if a buffer is larger than what it
 * lets an operation read. No graphics card is needed: Mesa's software adapter
 * takes five minutes for the UNet and eleven for the decoder.
 *
 * `--dry` needs no weights and gives every command to the card except the one to
 * compute: half a minute for all buffers and checks, and no numbers.
 *
 * `--outputs` writes inputs and outputs in PyTorch's layout, to compare them
 * with another implementation that reads the same folder.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { command, runCommand } from "../../src/cli/command.ts";
import {
  flag,
  folder,
  listOf,
  oneOf,
  optionTable,
  outputFile,
  parsed,
  samplingSteps,
  type Values,
  whole,
} from "../../src/cli/options.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { bindingLimit } from "../../src/core/device.ts";
import { cannot } from "../../src/core/errors.ts";
import { halfTensor } from "../../src/core/kernels/half.ts";
import { disposeConcept } from "../../src/customize/concept.ts";
import { method, startConcept } from "../../src/customize/methods.ts";
import { train } from "../../src/customize/train.ts";
import { fold, key, normal, uniform } from "../../src/core/random.ts";
import { parameterCount } from "../../src/core/tree.ts";
import { LORA_BASES, SD_AUTOENCODER } from "../../src/formats/dialects/base.ts";
import { decodeImages } from "../../src/diffusion/pipeline.ts";
import { exists, joinPath, writeJson } from "../../src/io/files.ts";
import {
  encodeFloat,
  type LazyTensor,
  type RawTensor,
  writeSafetensors,
} from "../../src/io/safetensors.ts";
import {
  type Autoencoder,
  autoencoderSpec,
} from "../../src/models/autoencoder.ts";
import { diskShape } from "../../src/models/checkpoint.ts";
import {
  parseAutoencoderConfig,
  parseTextEncoderConfig,
  parseUNetConfig,
} from "../../src/models/config.ts";
import {
  loadModel,
  type Model,
  modelIndex,
  promptStates,
} from "../../src/models/model.ts";
import {
  type TextEncoder as ClipText,
  textEncoderSpec,
} from "../../src/models/text_encoder.ts";
import { byteAlphabet, createTokenizer } from "../../src/models/tokenizer.ts";
import { peakMemory } from "./repository.ts";
import { type UNet, unet, unetSpec } from "../../src/models/unet.ts";
import {
  buildTree,
  type Init,
  type ParamSpec,
  type Spec,
  specLeaves,
  type SpecLike,
} from "../../src/nn/spec.ts";

const SEED = key(15);

/** Stable Diffusion 1.5's scheduler. */
const SCHEDULER = {
  _class_name: "PNDMScheduler",
  beta_start: 0.00085,
  beta_end: 0.012,
  beta_schedule: "scaled_linear",
  num_train_timesteps: 1000,
  set_alpha_to_one: false,
  skip_prk_steps: true,
  steps_offset: 1,
  clip_sample: false,
};

/** Numbers as a parameter starts; a normal one's range is all that counts. */
function start(init: Init, path: string, size: number): Float32Array {
  switch (init.type) {
    case "zeros":
      return new Float32Array(size);
    case "ones":
      return new Float32Array(size).fill(1);
    case "constant":
      return new Float32Array(size).fill(init.value);
    case "normal": {
      const bound = init.std * Math.sqrt(3);
      return uniform(fold(SEED, path), size, -bound, bound);
    }
    case "uniform":
      return uniform(fold(SEED, path), size, -init.bound, init.bound);
  }
}

async function writeWeights(
  path: string,
  spec: SpecLike,
  dtype: "F16" | "F32",
): Promise<void> {
  const tensors = specLeaves(spec).map((
    [name, { shape, kind, init }]: [string, ParamSpec],
  ): [string, LazyTensor] => [name, {
    dtype,
    shape: diskShape(kind, shape),
    load: () => {
      const size = shape.reduce((a, b) => a * b, 1);
      return encodeFloat(start(init, name, size), dtype);
    },
  }]);
  await writeSafetensors(path, tensors, { format: "pt" });
}

/** A tokenizer of CLIP's size whose words are pairs of characters. */
function pairTokenizer(size: number) {
  const letters = byteAlphabet().map(([, letter]) => letter);
  const words = [...letters, ...letters.map((letter) => `${letter}</w>`)];
  const merges: string[] = [];
  const count = size - words.length - 2;
  for (let i = 0; merges.length < count; i++) {
    merges.push(
      `${letters[Math.floor(i / words.length)]} ${words[i % words.length]}`,
    );
  }
  const all = [
    ...words,
    ...merges.map((merge) => merge.replace(" ", "")),
    "<|startoftext|>",
    "<|endoftext|>",
  ];
  return createTokenizer({
    vocab: Object.fromEntries(all.map((token, id) => [token, id])),
    merges,
  });
}

/** Stable Diffusion 1.5's configs and what they describe. */
function described() {
  const [text, denoiser] = LORA_BASES.sd15;
  const configs = {
    text_encoder: parseTextEncoderConfig(text),
    unet: parseUNetConfig(denoiser),
    vae: parseAutoencoderConfig({ ...SD_AUTOENCODER, sample_size: 512 }),
  };
  const specs = {
    text_encoder: textEncoderSpec(configs.text_encoder),
    unet: unetSpec(configs.unet),
    vae: autoencoderSpec(configs.vae),
  };
  return { configs, specs };
}

/** Writes the whole model in diffusers' layout. */
async function writeModel(
  folder: string,
  dtype: "F16" | "F32",
): Promise<void> {
  const { configs, specs } = described();
  await pairTokenizer(configs.text_encoder.vocab_size)
    .save(joinPath(folder, "tokenizer"));
  const at = (...names: string[]) => joinPath(folder, ...names);
  await writeJson(at("scheduler", "scheduler_config.json"), SCHEDULER);
  for (const name of ["text_encoder", "unet", "vae"] as const) {
    const file = name === "text_encoder" ? "model" : "diffusion_pytorch_model";
    await writeJson(at(name, "config.json"), configs[name]);
    await writeWeights(at(name, `${file}.safetensors`), specs[name], dtype);
  }
  await writeJson(at("model_index.json"), modelIndex(SCHEDULER));
}

/** The same model without numbers, its tensors where loading puts them. */
function emptyModel(half: boolean): Model {
  const { configs, specs } = described();
  const empty = <T>(spec: Spec<T>): T =>
    buildTree<T>(spec, ({ shape, kind }) => {
      const values = () => new Float32Array(shape.reduce((a, b) => a * b, 1));
      if (kind !== "plain" && half) return halfTensor(values(), [...shape]);
      return kind === "plain" && shape.length === 2
        ? tf.tensor(values(), shape)
        : tf.zeros(shape);
    });
  return {
    tokenizer: pairTokenizer(configs.text_encoder.vocab_size),
    textEncoder: {
      config: configs.text_encoder,
      params: empty<ClipText>(specs.text_encoder),
    },
    unet: { config: configs.unet, params: empty<UNet>(specs.unet) },
    autoencoder: { config: configs.vae, params: empty<Autoencoder>(specs.vae) },
    scheduler: SCHEDULER,
  };
}

/** What the graphics card was asked for, from the start of the watch. */
class Watch {
  /** Bytes of the largest buffer that programs read or write. */
  largest = 0;
  /** The most bytes of all buffers at a time, since it was last asked for. */
  allocated = 0;
  readonly complaints: string[] = [];

  constructor() {
    const { device } = tf.backend() as unknown as { device?: GPUDevice };
    if (!device) return;
    device.addEventListener("uncapturederror", (event) => {
      this.complaints.push((event as GPUUncapturedErrorEvent).error.message);
    });
    const create = device.createBuffer.bind(device);
    device.createBuffer = (wanted) => {
      if (wanted.usage & GPUBufferUsage.STORAGE) {
        this.largest = Math.max(this.largest, wanted.size);
      }
      const { numBytesAllocatedInGPU } = tf.memory() as unknown as {
        numBytesAllocatedInGPU: number;
      };
      this.allocated = Math.max(
        this.allocated,
        numBytesAllocatedInGPU + wanted.size,
      );
      return create(wanted);
    };
  }

  /** From here on nothing is computed; commands are still checked. */
  holdBack(): void {
    const { device } = tf.backend() as unknown as { device?: GPUDevice };
    if (device) device.queue.submit = () => undefined;
  }
}

/** Seconds this process has computed, on all cores; Linux only. */
async function computed(): Promise<number> {
  try {
    const text = await Deno.readTextFile("/proc/self/stat");
    // The second field is a name in parentheses.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / 100;
  } catch {
    return NaN;
  }
}

/** Most memory of this process since the last call, in bytes; Linux only. */
async function peak(): Promise<number> {
  try {
    const bytes = await peakMemory();
    await Deno.writeTextFile("/proc/self/clear_refs", "5");
    return bytes;
  } catch {
    return NaN;
  }
}

const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(2)} GB`;

/** Runs a stage and reports time, memory of the process and of the card. */
async function stage<T>(
  name: string,
  run: () => Promise<T>,
  watch?: Watch,
): Promise<T> {
  await peak();
  if (watch) watch.allocated = 0;
  const [started, before] = [performance.now(), await computed()];
  const result = await run();
  const seconds = (performance.now() - started) / 1000;
  const processor = await computed() - before;
  const { numBytesInGPU, numBytesAllocatedInGPU } = tf.memory() as unknown as
    & tf.MemoryInfo
    & { numBytesInGPU?: number; numBytesAllocatedInGPU?: number };
  console.log(
    `${name.padEnd(28)} ${seconds.toFixed(1).padStart(7)} s (processor ${
      processor.toFixed(0)
    } s), peak RSS ${gigabytes(await peak())}` +
      (numBytesInGPU === undefined
        ? ""
        : `   tensors on the card ${gigabytes(numBytesInGPU)}, buffers ${
          gigabytes(numBytesAllocatedInGPU!)
        }`),
  );
  return result;
}

/** One step of ED-LoRA on noise, checkpointed; the loss must be finite. */
async function trainOnce(
  model: Model,
  side: number,
  watch: Watch,
): Promise<void> {
  const chosen = method("ed-lora", "paper", { batch: 1, steps: 1 });
  const concept = await startConcept(model, chosen, {
    name: "n",
    classWord: "a",
    key: SEED,
  });
  const size = (side / 8) ** 2 * 4;
  const data = {
    count: 1,
    height: side / 8,
    width: side / 8,
    channels: 4,
    mean: normal(fold(SEED, "latent"), size),
    std: new Float32Array(size),
    captions: [["a {}"]],
    mask: new Uint8Array(size / 4).fill(1),
  };
  await stage(`ED-LoRA, batch 1, ${side} × ${side}`, async () => {
    const steps = train(model, concept, data, chosen.train, { memory: "low" });
    for await (const { loss, seconds } of steps) {
      console.log(`  loss ${loss.toFixed(4)}, ${seconds.toFixed(0)} s`);
    }
  }, watch);
  console.log(`  most in buffers at a time ${gigabytes(watch.allocated)}`);
  disposeConcept(concept);
}

/** A tensor's finite values in PyTorch's order. */
async function values(
  name: string,
  tensor: tf.Tensor,
): Promise<[string, RawTensor]> {
  const there = tensor.rank === 4
    ? tf.tidy(() => tf.transpose(tensor, [0, 3, 1, 2]))
    : tensor.clone();
  const data = await there.data() as Float32Array;
  there.dispose();
  if (!data.every(Number.isFinite)) {
    throw cannot(`run ${name}`, "finite values", "NaN");
  }
  const mean = data.reduce((a, b) => a + b, 0) / data.length;
  const square = data.reduce((a, b) => a + (b - mean) ** 2, 0) / data.length;
  console.log(
    `  ${name} [${tensor.shape}], mean ${mean.toExponential(3)}, deviation ` +
      Math.sqrt(square).toExponential(3),
  );
  return [name, {
    dtype: "F32",
    shape: there.shape,
    data: encodeFloat(data, "F32"),
  }];
}

/** Runs each network once and gives back inputs and outputs. */
async function forward(
  model: Model,
  side: number,
  steps: number,
  parts: ReadonlySet<string>,
  watch: Watch,
): Promise<[string, RawTensor][]> {
  const prompt = "a photo of a red fox on grass";
  const { ids } = model.tokenizer.encode(prompt);
  const kept: [string, RawTensor][] = [["input_ids", {
    dtype: "I32",
    shape: [1, ids.length],
    data: new Uint8Array(Int32Array.from(ids).buffer),
  }]];
  const states = await stage("text encoder, 77 tokens", async () => {
    const made = tf.tidy(() => promptStates(model, [prompt])) as tf.Tensor3D;
    await made.data();
    return made;
  }, watch);
  kept.push(await values("states", states));
  const size = side / 8;
  const latent = tf.tensor4d(
    normal(fold(SEED, "latent"), size * size * 4),
    [1, size, size, 4],
  );
  kept.push(await values("sample", latent));
  const { params, config } = model.unet;
  for (let step = 0; parts.has("unet") && step < steps; step++) {
    const noise = await stage(`UNet, ${size} × ${size} latents`, async () => {
      const made = tf.tidy(() => unet(params, config, latent, [500], states));
      await made.data();
      return made;
    }, watch);
    if (step === 0) kept.push(await values("noise", noise));
    noise.dispose();
  }
  if (parts.has("decoder")) {
    const picture = await stage(`decoder, ${side} × ${side}`, async () => {
      const made = decodeImages(model, latent);
      await made.data();
      return made;
    }, watch);
    kept.push(await values("picture", picture));
    picture.dispose();
  }
  tf.dispose([states, latent]);
  return kept;
}

const WHAT = "run at full size";

const OPTIONS = optionTable({
  folder: {
    type: folder,
    default: "out/fullsize",
    help: "where the random model is, or is written",
  },
  dtype: {
    type: oneOf(["F16", "F32"]),
    default: "F16",
    help: "numbers in its files: F16 or F32",
  },
  backend: {
    type: oneOf(["webgpu", "wasm", "cpu"]),
    default: "webgpu",
    help: "webgpu, wasm or cpu",
  },
  size: {
    type: parsed("N", (what, name, found) => {
      const side = whole({ least: 64 }).read(what, name, found);
      if (side % 64 === 0) return side;
      throw cannot(what, `${name} a multiple of 64`, found);
    }),
    default: 512,
    help: "side of the picture in pixels",
  },
  steps: { type: samplingSteps, default: 1, help: "sampling steps" },
  parts: {
    type: listOf(oneOf(["unet", "decoder", "train"])),
    default: ["unet", "decoder"],
    help: "what is run, of unet, decoder and train, a step of ED-LoRA",
  },
  half: { type: flag, help: "weights as half floats on the card" },
  outputs: {
    type: outputFile(".safetensors"),
    help: "inputs and outputs in PyTorch's layout, to compare them",
  },
  dry: {
    type: flag,
    help: "no weights, and nothing is computed: buffers and checks only",
  },
});

type Request = Values<typeof OPTIONS>;

/** Refuses options that do not go together. */
function checked(request: Request): Request {
  const { backend, dry, half, outputs } = request;
  if (backend !== "webgpu" && (dry || half)) {
    throw cannot(WHAT, "--backend webgpu with --dry and --half", backend);
  }
  if (dry && outputs !== undefined) {
    throw cannot(WHAT, "--outputs or --dry, which computes nothing", "both");
  }
  return request;
}

async function run(request: Request): Promise<void> {
  const { folder, dtype, size: side, half, outputs, dry } = request;
  const info = await selectBackend(request.backend);
  console.log(`${info.describe}, binding limit ${gigabytes(bindingLimit())}`);
  if (!dry && !await exists(joinPath(folder, "model_index.json"))) {
    await stage(`write ${folder}, ${dtype}`, () => writeModel(folder, dtype));
  }
  const watch = new Watch();
  if (dry) watch.holdBack();
  const model = dry
    ? await stage("make room", () => Promise.resolve(emptyModel(half)))
    : await stage("load", () => loadModel(folder, { half }));
  const counts = [model.textEncoder, model.unet, model.autoencoder].map((n) =>
    parameterCount(n.params)
  );
  console.log(
    `  parameters ${counts.map((n) => n.toLocaleString("en")).join(" + ")}, ` +
      `${gigabytes(4 * counts.reduce((a, b) => a + b))} in 32 bits, largest ` +
      `component ${gigabytes(4 * Math.max(...counts))}`,
  );
  const parts = new Set<string>(request.parts);
  const kept = await forward(model, side, request.steps, parts, watch);
  if (parts.has("train")) await trainOnce(model, side, watch);
  if (outputs) await writeSafetensors(outputs, kept);
  const limit = bindingLimit();
  console.log(
    `largest buffer ${watch.largest} bytes of ${limit}, ` +
      `${watch.complaints.length} complaints`,
  );
  for (const complaint of watch.complaints.slice(0, 3)) console.log(complaint);
  if (watch.complaints.length > 0 || watch.largest > limit) Deno.exit(1);
}

/** `deno task fullsize`. */
const fullsizeCommand = command({
  name: "fullsize",
  what: WHAT,
  summary: "run Stable Diffusion 1.5's size with random weights",
  usage: "deno task fullsize [options]",
  about: "Runs the networks of Stable Diffusion 1.5 at full size with random " +
    "weights (2 GB on disk): do they fit, and how long does a step take?",
  options: OPTIONS,
  request: checked,
  run,
});

if (import.meta.main) Deno.exit(await runCommand(fullsizeCommand, Deno.args));
