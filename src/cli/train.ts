/**
 * `deno task train`: trains a concept from pictures.
 *
 * @module
 */
import { selectBackend } from "../core/backend.ts";
import { cannot, listed } from "../core/errors.ts";
import { key } from "../core/random.ts";
import { fillCaption } from "../customize/captions.ts";
import {
  type CaptionCheck,
  checkCaptions,
  requireNamed,
  trainingSummary,
} from "../customize/check.ts";
import {
  addTokens,
  changes,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { loadConcept, saveConcept } from "../formats/concept_file.ts";
import {
  encodeBuckets,
  type Example,
  folderClass,
  readExamples,
} from "../customize/dataset.ts";
import {
  type Method,
  method,
  METHODS,
  startConcept,
  startsAtClass,
} from "../customize/methods.ts";
import { trainingMemory } from "../customize/memory.ts";
import { scaled } from "../customize/scale.ts";
import { TARGET_NAMES } from "../customize/sites.ts";
import { customize, RATE_SCHEDULES } from "../customize/train.ts";
import { modelSize, type Size } from "../diffusion/layout.ts";
import {
  assertDistinct,
  assertWritableFile,
  besidePath,
  exists,
  joinPath,
  writeJson,
} from "../io/files.ts";
import { openSafetensors } from "../io/safetensors.ts";
import { withLab } from "../lab/lab.ts";
import { openQueue, type QueueRequest } from "../lab/open_queue.ts";
import { isBucket } from "../lab/shared_store.ts";
import type { Ask, OwnPicture, TrainSpec } from "../lab/specs.ts";
import { pathOf, putImage } from "../lab/store.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import { disposeModel, type Model } from "../models/model.ts";
import { type Command, command } from "./command.ts";
import {
  EMBEDDED,
  listable,
  localModel,
  MODEL_DETAILS,
  MODEL_OPTIONS,
  mustExist,
  openModel,
  startBackend,
} from "./models.ts";
import {
  BACKEND_OPTION,
  BACKGROUND_OPTION,
  checkBackground,
  DTYPE_OPTION,
  file,
  firstFrames,
  flag,
  folder,
  givenOptions,
  isGiven,
  number,
  oneOf,
  optionName,
  optionTable,
  outputFile,
  parsed,
  seedNumber,
  text,
  unreadFiles,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";
import { trainLog } from "./train_log.ts";
import { runPictures, type Validation } from "./train_pictures.ts";
import { QUEUE_OPTIONS, queueRequest } from "./queue_options.ts";
import {
  applyMemory,
  MEMORY_OPTIONS,
  memoryFor,
  type MemoryUse,
} from "./memory_use.ts";

const rate = number({ least: 0 });
const count = whole({ least: 1 });

const OPTIONS = optionTable({
  name: {
    type: parsed("NAME", (what, name, found) => {
      if (/^[\p{L}\p{N}_-]+$/u.test(found)) return found;
      throw cannot(what, `a ${name} of letters, digits, - and _`, `"${found}"`);
    }),
    needed: true,
    help: "name of the concept; its tokens are <NAME1> <NAME2>",
  },
  class: {
    type: text,
    hint: "WORD",
    otherwise: "dog of a folder named 10_rex dog",
    help: "ordinary word for the concept, such as man, dog or chair",
  },
  images: {
    type: folder,
    needed: true,
    help: "PNG, JPEG, WebP or AVIF pictures, or kohya's folders such as " +
      "10_rex dog; captions are in a.txt or a.caption beside a.png, one per " +
      "line, or in metadata.jsonl; {} in a caption stands for the concept",
  },
  trigger: {
    type: text,
    hint: "WORDS",
    otherwise: "rex of a folder named 10_rex dog",
    help: "words that call the concept in captions without {}",
  },
  masks: {
    type: folder,
    otherwise: "masks/ inside the folder, or a_mask.png beside a.png",
    help: "masks of the subject, white or cut-outs, named like the " +
      "pictures (a.png, a_mask.jpg); turns the masked loss on",
  },
  caption: {
    type: text,
    many: true,
    otherwise: '"photo of a {}" and "{}"',
    help: "caption of pictures without one",
  },
  shuffleCaptions: {
    type: flag,
    help: "shuffle the comma-separated parts of a caption at each use",
  },
  keepTokens: {
    type: whole({ least: 0 }),
    otherwise: "0",
    help: "number of parts that stay first with --shuffle-captions",
  },
  captionDropout: {
    type: number({ least: 0, most: 1 }),
    otherwise: "0",
    help: "share of the prompts that are left empty",
  },
  prior: {
    type: folder,
    help: "pictures of the class, for prior preservation",
  },
  priorWeight: {
    type: number({ least: 0 }),
    otherwise: "1",
    help: "weight of the loss on --prior",
  },
  ...BACKGROUND_OPTION,
  flips: { type: flag, help: "train on mirrored pictures, too" },
  buckets: {
    type: flag,
    help:
      "pictures keep about their shape, and as many pixels as --size says " +
      "(kohya's --enable_bucket); otherwise they are cropped to a square",
  },
  ...MODEL_OPTIONS,
  method: {
    type: oneOf(METHODS),
    section: "",
    default: "ed-lora",
    help: METHODS.join(", "),
  },
  preset: {
    type: oneOf(["paper", "official", "ablation"]),
    default: "paper",
    help: "set of default settings: paper, official or ablation",
  },
  steps: { type: count, otherwise: "1000", help: "optimisation steps" },
  batch: { type: count, otherwise: "4", help: "pictures per batch" },
  accumulate: {
    type: count,
    otherwise: "1",
    help: "batches per step, one after the other (gradient accumulation)",
  },
  rank: { type: count, otherwise: "4", help: "rank of the adapter" },
  alpha: {
    type: number(),
    otherwise: "the rank",
    help: "scale of the adapter, which adds alpha/rank · ΔW",
  },
  rslora: {
    type: flag,
    help: "scale by alpha/√rank instead (rank-stabilised LoRA)",
  },
  dora: {
    type: flag,
    help: "each layer also learns the norms of its outputs (DoRA)",
  },
  dropout: {
    type: number({ least: 0, most: 0.99 }),
    otherwise: "0",
    help: "dropout of each adapter's input (PEFT's lora_dropout)",
  },
  targets: {
    type: oneOf(TARGET_NAMES),
    hint: "WHICH",
    otherwise: "attention; custom-diffusion: cross-attention-kv",
    help: `layers with an adapter: ${TARGET_NAMES.join(", ")}`,
  },
  lrEmbedding: {
    type: rate,
    otherwise: "1e-3 for ed-lora",
    help: "learning rate of the tokens; 0 freezes them",
  },
  lrText: {
    type: rate,
    otherwise: "1e-5 for ed-lora",
    help: "learning rate of the text encoder's adapter",
  },
  lrUnet: {
    type: rate,
    otherwise: "1e-4 for ed-lora",
    help: "learning rate of the UNet's adapter",
  },
  scheduler: {
    type: oneOf(RATE_SCHEDULES),
    otherwise: "linear",
    help: `schedule of the learning rates: ${RATE_SCHEDULES.join(", ")}`,
  },
  cycles: {
    type: whole({ least: 2 }),
    help: "number of cycles with cosine-with-restarts",
  },
  warmup: {
    type: whole({ least: 0 }),
    otherwise: "0",
    help: "steps in which the learning rates rise from 0",
  },
  weightDecay: { type: rate, otherwise: "0.01", help: "AdamW's weight decay" },
  maxGradNorm: {
    type: rate,
    otherwise: "0, no limit",
    help: "largest norm of the gradient; a larger one is scaled down",
  },
  noiseOffset: {
    type: rate,
    otherwise: "0.01 for ed-lora",
    help: "noise that a whole channel shares, for darker and lighter pictures",
  },
  snrGamma: {
    type: number({ least: 0 }),
    otherwise: "no weights",
    help: "γ of Min-SNR: the loss has the weight min(SNR, γ)/SNR; often 5",
  },
  seed: {
    type: seedNumber,
    default: 0,
    help: "seed of all randomness",
  },
  size: {
    type: count,
    otherwise: "the model's",
    help: "side of the pictures in pixels",
  },
  out: {
    type: outputFile(".safetensors"),
    section: "",
    otherwise: "out/NAME.safetensors",
    help: "file that the concept is written to",
  },
  dtype: { ...DTYPE_OPTION.dtype, otherwise: "F32" },
  log: {
    type: outputFile(".csv"),
    help:
      "CSV file for the loss and rates of each step (npm's only maintained " +
      "writer of TensorBoard's files needs native TensorFlow)",
  },
  validationPrompt: {
    type: text,
    many: true,
    help: "prompt that is drawn during training into OUT.validation, with a " +
      "report; {} stands for the concept",
  },
  validationEvery: {
    type: count,
    otherwise: "a fifth of the steps",
    help: "steps between two validations",
  },
  config: {
    type: file,
    help:
      "JSON file of these options, such as the one that is written beside " +
      "each concept; the command line takes precedence",
  },
  fresh: { type: flag, help: "do not continue a run that was stopped" },
  ...BACKEND_OPTION,
  ...QUEUE_OPTIONS,
  ...MEMORY_OPTIONS,
});

/** What the command line asks for. */
export type TrainRequest = Values<typeof OPTIONS>;

/** Refuses options that do not go together. */
function checked(request: TrainRequest): TrainRequest {
  const { keepTokens, shuffleCaptions, priorWeight, prior } = request;
  if (keepTokens !== undefined && !shuffleCaptions) {
    throw cannot("train", "--shuffle-captions with --keep-tokens", "none");
  }
  if (priorWeight !== undefined && prior === undefined) {
    throw cannot("train", "--prior with --prior-weight", "none");
  }
  const { validationPrompt: prompts, validationEvery } = request;
  if (validationEvery !== undefined && prompts.length === 0) {
    throw cannot(
      "train",
      "--validation-prompt with --validation-every",
      "none",
    );
  }
  const { scheduler, cycles } = request;
  if ((scheduler === "cosine-with-restarts") !== (cycles !== undefined)) {
    throw cannot(
      "train",
      "--scheduler cosine-with-restarts and --cycles N together",
      cycles === undefined ? "no --cycles" : `--scheduler ${scheduler}`,
    );
  }
  if (!queueRequest("train", request)) return request;
  const [here] = givenOptions(OPTIONS, request, [
    ...["alpha", "rslora", "dora", "targets"] as const,
    ...["log", "validationPrompt", "buckets"] as const,
  ]);
  if (here) throw cannot("train", `no ${here} with --queue`, "both");
  const { memory, half, card } = request;
  if (memory !== "auto" || half || card !== undefined) {
    throw cannot(
      "train",
      "no --memory, --half or --card with --queue: workers choose themselves",
      "one of them",
    );
  }
  // Workers know a model by the hash of its folder.
  const [detail] = givenOptions(OPTIONS, request, MODEL_DETAILS);
  if (detail) {
    throw cannot("train", "an unchanged model folder with --queue", detail);
  }
  if (request.fresh) throw cannot("train", "--fresh or --queue", "both");
  return request;
}

/** The class: as it is given, else as kohya's folder is named. */
async function classOf(
  { class: given, images }: TrainRequest,
): Promise<string> {
  const found = given ?? await folderClass(images);
  if (found !== undefined) return found;
  throw cannot("train", "--class WORD", "none");
}

/**
 * Class pictures, in each size that the pictures have; their captions say the
 * class where they say the concept.
 */
async function classExamples(
  { prior, trigger, background }: TrainRequest,
  classWord: string,
  sizes: readonly Size[],
  say: (line: string) => void,
): Promise<Example[]> {
  if (prior === undefined) return [];
  const captions = ["photo of a {}"];
  const examples: Example[] = [];
  for (const [i, size] of sizes.entries()) {
    examples.push(
      ...await readExamples(prior, {
        ...{ size, captions, trigger, background },
        onUnread: (names) => i === 0 && say(unreadFiles(prior, names)),
      }),
    );
  }
  return examples.map((example) => ({
    ...example,
    captions: example.captions.map((c) => fillCaption(c, classWord)),
  }));
}

/** What both sides of a picture must be multiples of: 64 for Stable Diffusion. */
function stepOf({ autoencoder, unet }: Model): number {
  const halvings = unet.config.block_out_channels.length - 1;
  return downsampleFactor(autoencoder.config) * 2 ** halvings;
}

/** The sizes of pictures, each once. */
function sizesOf(examples: readonly Example[]): Size[] {
  const sizes = examples.map(({ pixels: { width, height } }) => ({
    width,
    height,
  }));
  return [
    ...new Map(sizes.map((size) => [`${size.width}×${size.height}`, size]))
      .values(),
  ];
}

/** Refuses rates of parts that the concept does not have. */
function checkRates(request: TrainRequest, concept: Concept): void {
  const text = changes(concept, "textEncoder");
  const unet = changes(concept, "unet");
  const { lora = {} } = methodOf(request).concept;
  const adapted = lora === false ? 0 : text + unet;
  const parts = {
    ...{ lrText: text, lrUnet: unet, rank: adapted },
    // Class captions do not call the concept: its tokens learn nothing of them.
    prior: text + unet,
    ...{ alpha: adapted, rslora: adapted, dora: adapted },
    ...{ dropout: adapted, targets: adapted },
  };
  for (const [field, layers] of Object.entries(parts)) {
    if (layers > 0 || !isGiven(request[field as keyof typeof parts])) continue;
    throw cannot(
      "train",
      `a method with an adapter for ${optionName(field)}`,
      request.method,
    );
  }
}

/** Whether a method's token does not start at the class word. */
function isRare({ method }: TrainRequest): boolean {
  return !startsAtClass(method);
}

/** Tokens of a class word where a learned token starts at their mean. */
function averaged(
  request: TrainRequest,
  classWord: string,
  { tokenizer }: Model,
): string[] {
  const ids = isRare(request) ? [] : tokenizer.tokenize(classWord);
  return ids.length > 1 ? ids.map((id) => tokenizer.decode([id]).trim()) : [];
}

/** Options that change nothing with these captions. */
function idle(
  { shuffleCaptions, keepTokens = 0, trigger }: TrainRequest,
  examples: readonly Example[],
): string[] {
  const lines: string[] = [];
  const captions = examples.flatMap(({ captions }) => captions);
  const parts = Math.max(...captions.map((c) => c.split(",").length));
  if (shuffleCaptions && parts - keepTokens < 2) {
    lines.push(
      `--shuffle-captions changes nothing: the longest caption has ${parts} parts between commas`,
    );
  }
  return trigger !== undefined && !examples.some(({ triggered }) => triggered)
    ? [...lines, `--trigger changes nothing: no caption has "${trigger}"`]
    : lines;
}

/** What is wrong, but not so wrong that nothing can be trained. */
function warnings(examples: readonly Example[], check: CaptionCheck): string[] {
  const { total, naming, unnamed, cut } = check;
  const bare = examples.filter(({ mask }) => !mask)
    .map(({ name }) => name ?? "");
  const lines: string[] = [];
  if (naming < total) {
    lines.push(
      `${total - naming} of ${total} captions do not name the concept: ` +
        listed(unnamed),
    );
  }
  if (bare.length > 0 && bare.length < examples.length) {
    lines.push(
      `${bare.length} pictures have no mask, their loss counts every pixel: ${
        listed(bare)
      }`,
    );
  }
  for (const { file, limit, tokens, lost } of cut.slice(0, 10)) {
    lines.push(
      `${file}: ${tokens} tokens, the limit is ${limit}; cut off: "${lost}"`,
    );
  }
  if (cut.length > 10) {
    lines.push(`${cut.length - 10} more captions are cut off`);
  }
  return lines;
}

/** The method, with what the command line changes in it. */
function methodOf(request: TrainRequest): Method {
  const { seed, steps, batch, lrEmbedding, lrText, lrUnet } = request;
  const { masks, prior, priorWeight, keepTokens: keep = 0 } = request;
  const { lr, priorWeight: own } = method(request.method, request.preset).train;
  const { targets, snrGamma: gamma } = request;
  const made = method(request.method, request.preset, {
    seed,
    steps,
    batch,
    lr: {
      embedding: lrEmbedding ?? lr.embedding,
      textEncoder: lrText ?? lr.textEncoder,
      unet: lrUnet ?? lr.unet,
    },
    // What is given is used, whatever the method does by itself.
    masked: masks === undefined ? undefined : true,
    priorWeight: priorWeight ?? (prior === undefined ? own : own || 1),
    shuffleCaptions: request.shuffleCaptions ? { keep } : undefined,
    captionDropout: request.captionDropout,
    dropout: request.dropout,
    accumulate: request.accumulate,
    schedule: request.scheduler,
    cycles: request.cycles,
    warmup: request.warmup,
    weightDecay: request.weightDecay,
    clipNorm: request.maxGradNorm,
    noiseOffset: request.noiseOffset,
    weighting: gamma === undefined ? undefined : { type: "min-snr", gamma },
  });
  const { lora = {} } = made.concept;
  const chosen = {
    ...(targets === undefined ? {} : { targets }),
    ...(request.dora ? { dora: true } : {}),
  };
  return Object.keys(chosen).length === 0 || lora === false
    ? made
    : { ...made, concept: { ...made.concept, lora: { ...lora, ...chosen } } };
}

/**
 * Trains the concept and writes it.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written, the backend is not available or something does not fit.
 */
async function runTrain(request: TrainRequest): Promise<void> {
  const { name, out = joinPath("out", `${name}.safetensors`) } = request;
  await mustExist("train", request.images, request.masks, request.prior);
  const classWord = await classOf(request);
  await assertWritableFile(out);
  if (request.log !== undefined) {
    await assertDistinct("train", { "--out": out, "--log": request.log });
    await assertWritableFile(request.log);
  }
  const state = besidePath(
    out.replace(/\.safetensors$/, ""),
    ".state.safetensors",
  );
  await startBackend(request.backend);
  const use: MemoryUse = queueRequest("train", request)
    ? { memory: "high", half: false }
    : await memoryOf(request);
  const model = await openModel(request, use);
  const release = applyMemory(use, request);
  try {
    const size = request.size ?? modelSize(model).width;
    const pictures = await readPictures(request, model, classWord, size);
    const chosen = methodOf(request);
    const words = averaged(request, classWord, model);
    const fresh = await freshConcept(request, model, chosen, classWord, words);
    try {
      const training: Training = { ...pictures, start: fresh, chosen, words };
      const start = announced(request, model, training, pictures.unread);
      // After all checks: a refused run leaves the state of the one before.
      if (request.fresh) await Deno.remove(state).catch(ifThere);
      const queue = queueRequest("train", request);
      const { concept, loss } = queue
        ? await trainElsewhere(queue, request, model, { ...training, start })
        : await trainHere(model, {
          ...{ ...training, start, state },
          ...{ flips: request.flips, memory: use.memory, log: request.log },
          validation: validationOf(request, chosen, { out, size, use }),
        });
      try {
        await saveConcept(out, concept, model, { dtype: request.dtype });
      } finally {
        disposeConcept(concept);
      }
      await Deno.remove(state).catch(ifThere);
      await writeJson(
        besidePath(out.replace(/\.safetensors$/, ""), ".config.json"),
        asked(request),
      );
      if (loss !== undefined) console.log(`loss ${loss.toFixed(4)}`);
      console.log(out);
      console.log(
        `deno task sample --concept ${out} --prompt "photo of a ${start.phrase}"`,
      );
    } finally {
      disposeConcept(fresh);
    }
  } finally {
    release();
    disposeModel(model);
  }
}

/** Reads the concept's pictures and those of its class. */
async function readPictures(
  request: TrainRequest,
  model: Model,
  classWord: string,
  size: number,
): Promise<Pick<Training, "examples" | "classes"> & { unread: string[] }> {
  const { images, caption, masks, trigger, background } = request;
  const unread: string[] = [];
  const examples = await readExamples(images, {
    ...{ size, masks, trigger, background },
    buckets: request.buckets ? stepOf(model) : undefined,
    captions: caption.length > 0 ? caption : undefined,
    onUnread: (names) => unread.push(unreadFiles(images, names)),
  });
  const own = examples.filter(({ captionFile }) => captionFile).length;
  if (caption.length > 0 && own === examples.length) {
    throw cannot("train", "a picture without captions for --caption", "none");
  }
  const classes = await classExamples(
    request,
    classWord,
    sizesOf(examples),
    (line) => unread.push(line),
  );
  checkBackground(background, [...examples, ...classes]);
  return { examples, classes, unread };
}

/** The concept before its first step. */
async function freshConcept(
  { name, rank, alpha, rslora }: TrainRequest,
  model: Model,
  chosen: Method,
  classWord: string,
  words: readonly string[],
): Promise<Concept> {
  const begun = await startConcept(model, chosen, {
    ...{ name, classWord, rank },
    key: key(chosen.train.seed),
    overrides: words.length > 0 ? { severalTokens: "mean" } : undefined,
  });
  if (alpha === undefined && !rslora) return begun;
  const adapter = scaled(begun.adapter, alpha ?? rank ?? 4, rslora);
  return { ...begun, adapter };
}

/**
 * Checks rates and captions, and says what is trained on what.
 *
 * @returns The concept, with that in its metadata.
 */
function announced(
  request: TrainRequest,
  model: Model,
  { start: fresh, chosen: { train }, examples, classes, words }: Training,
  unread: readonly string[],
): Concept {
  checkRates(request, fresh);
  const withTokens = addTokens(model, [fresh]);
  const captions = checkCaptions(withTokens, fresh, examples);
  releaseTokens(withTokens, model);
  requireNamed(captions);
  const { method, preset, flips } = request;
  const data = { examples, classes, captions, flips };
  const summary = trainingSummary(fresh, train, data);
  console.log(
    `${method}, preset ${preset}, ${train.steps} steps of ${train.batch}, ` +
      `as ${fresh.phrase}`,
  );
  for (const [field, value] of Object.entries(summary)) {
    const label = field.replace(/[A-Z]/g, (c) => ` ${c.toLowerCase()}`);
    console.log(`  ${label.padEnd(15)}${value}`);
  }
  const notes = [
    ...words.length > 0
      ? [
        `the class "${fresh.classWord}" is ${words.length} tokens (${
          words.join(", ")
        }): the learned token starts at their mean`,
      ]
      : [],
    ...idle(request, [...examples, ...classes]),
    ...firstFrames([...examples, ...classes]),
    ...unread,
    ...warnings(examples, captions),
  ];
  for (const line of notes) console.error(line);
  return { ...fresh, meta: { ...fresh.meta, data: JSON.stringify(summary) } };
}

/** What is drawn while a concept is trained, if anything. */
function validationOf(
  { validationPrompt: prompts, validationEvery }: TrainRequest,
  { train: { steps, seed } }: Method,
  { out, size, use }: {
    readonly out: string;
    readonly size: number;
    readonly use: MemoryUse;
  },
): Validation | undefined {
  if (prompts.length === 0) return undefined;
  return {
    ...{ prompts, seed, size, memory: use.memory },
    every: validationEvery ?? Math.max(1, Math.round(steps / 5)),
    folder: besidePath(out.replace(/\.safetensors$/, ""), ".validation"),
  };
}

/** The request as `--config` reads it. */
function asked(request: TrainRequest): Record<string, unknown> {
  const { fresh: _fresh, config: _config, background, ...rest } = request;
  const hex = background &&
    `#${Uint8Array.from(background).toHex()}`;
  return Object.fromEntries(
    Object.entries({ ...rest, background: hex })
      .filter(([, value]) => isGiven(value)),
  );
}

/** What a concept is trained from. */
interface Training {
  readonly start: Concept;
  readonly chosen: Method;
  readonly examples: readonly Example[];
  readonly classes: readonly Example[];
  /** Tokens of the class, if several. */
  readonly words: readonly string[];
}

/** A trained concept, and the loss at the end of its training. */
interface Outcome {
  readonly concept: Concept;
  readonly loss: number | undefined;
}

/** Steps between two states that a stopped run continues from. */
const SAVED_EVERY = 50;

/** The step that a file has the state of; nothing if there is no file. */
async function keptStep(state: string): Promise<string | undefined> {
  if (!await exists(state)) return undefined;
  const file = await openSafetensors(state);
  file.close();
  return file.metadata.step;
}

/** Trains on this machine. */
async function trainHere(
  model: Model,
  { start, chosen, examples, classes, flips, state, memory, ...shown }:
    & Training
    & {
      readonly flips: boolean;
      readonly state: string;
      readonly memory: MemoryUse["memory"];
      readonly log: string | undefined;
      readonly validation: Validation | undefined;
    },
): Promise<Outcome> {
  const { log, validation } = shown;
  const batch = memory === "low" ? 1 : undefined;
  const data = await encodeBuckets(model, examples, { flips, batch });
  const prior = classes.length > 0
    ? await encodeBuckets(model, classes, { batch })
    : undefined;
  const progress = createProgress();
  const table = log === undefined ? undefined : trainLog(log);
  const pictures = validation && runPictures(model, start, validation);
  let smooth: number | undefined;
  const stop = async () => {
    const kept = await keptStep(state);
    console.error(
      kept === undefined
        ? `stopped before step ${SAVED_EVERY}: nothing is kept`
        : `stopped; step ${kept} is in ${state}: the same command continues`,
    );
    Deno.exit(130);
  };
  Deno.addSignalListener("SIGINT", stop);
  const concept = await customize(model, start, data, chosen.train, {
    checkpoint: state,
    prior,
    memory,
    onResume(step) {
      console.error(`continuing at step ${step} of ${state}`);
    },
    async onStart(step) {
      await pictures?.begin(step);
    },
    async onRecord(record) {
      const { step, total, loss } = record;
      smooth = smooth === undefined ? loss : 0.95 * smooth + 0.05 * loss;
      progress.update("training", step + 1, total);
      await table?.add(record);
      await pictures?.add(record);
    },
    every: SAVED_EVERY,
  }).catch(async (error) => {
    if (!(error instanceof Error)) throw error;
    const kept = await keptStep(state);
    throw new Error(
      `${error.message} (${
        kept === undefined
          ? "nothing is kept"
          : `${state} has step ${kept}; --fresh starts anew`
      })`,
      { cause: error },
    );
  }).finally(() => Deno.removeSignalListener("SIGINT", stop));
  progress.finish();
  return { concept, loss: smooth };
}

/** Trains on a worker of a queue; gives what training here gives. */
async function trainElsewhere(
  queue: QueueRequest,
  request: TrainRequest,
  model: Model,
  { start, chosen, examples, classes, words }: Training,
): Promise<Outcome> {
  const folder = await localModel(await listable(request.model ?? EMBEDDED));
  if (!(await Deno.stat(folder)).isDirectory) {
    throw cannot("train", "a model folder with --queue", folder);
  }
  const store = isBucket(queue.store) ? "out/cache" : queue.store;
  const own = async (pictures: readonly Example[]): Promise<OwnPicture[]> =>
    await Promise.all(
      pictures.map(async ({ pixels, mask, captions, repeats }) => ({
        ...{ captions, repeats },
        image: await putImage(store, pixels),
        mask: mask && await putImage(store, {
          ...mask,
          channels: 1,
          data: Uint8Array.from(mask.data, (v) => v > 0 ? 255 : 0),
        }),
      })),
    );
  const { flips, rank = 4 } = request;
  const progress = createProgress();
  const ask: Ask<TrainSpec> = {
    concept: start.name,
    classWord: start.classWord,
    pictures: {
      of: "own",
      pictures: await own(examples),
      flips: flips || undefined,
    },
    prior: classes.length > 0
      ? { of: "own", pictures: await own(classes) }
      : undefined,
    method: chosen.name,
    preset: chosen.preset,
    rank,
    config: chosen.train,
    severalTokens: words.length > 0 ? "mean" : undefined,
    summary: start.meta.data,
    seed: chosen.train.seed,
  };
  const { name: backend } = await selectBackend(request.backend);
  const [trained] = await withLab(
    {
      ...{ model: folder, store, backend, workers: 0 },
      runner: (hashes) =>
        openQueue(
          queue,
          { model: hashes.model, backend },
          store,
          (line) => progress.line(line),
        ),
      onRecord: ({ done, total }) => progress.update("training", done, total),
    },
    (lab) => lab.train([ask]),
  );
  progress.finish();
  return {
    concept: await loadConcept(pathOf.concept(store, trained.model.id), model),
    loss: trained.losses.at(-1),
  };
}

/** How memory is used, where the run fits at all. */
function memoryOf(request: TrainRequest): Promise<MemoryUse> {
  const chosen = methodOf(request);
  return memoryFor(request, (configs, { width }) => {
    const size = request.size ?? width;
    return {
      what: "train",
      run: { height: size, width: size, batch: chosen.train.batch },
      batched: true,
      count: ({ batch, ...run }, options) =>
        trainingMemory(configs, {
          ...run,
          method: { ...chosen, train: { ...chosen.train, batch } },
          rank: request.rank,
          prior: request.prior === undefined ? 0 : batch,
          encoding: true,
        }, options),
    };
  });
}

function ifThere(error: unknown): void {
  if (!(error instanceof Deno.errors.NotFound)) throw error;
}

/** `deno task train`. */
export const trainCommand: Command<TrainRequest> = command({
  name: "train",
  summary: "train a concept from pictures",
  usage: "deno task train --name NAME --images FOLDER [--class WORD] [options]",
  about:
    `Trains a concept from pictures and writes it as one .safetensors file, in the
format of the official Mix-of-Show code. A run that is stopped continues.`,
  options: OPTIONS,
  examples: [
    "deno task train --name rex --class dog --images photos/rex",
    "deno task train --name rex --class dog --images photos/rex \\\n" +
    "    --model sd-v1-5 --backend webgpu --steps 1500",
  ],
  request: checked,
  run: runTrain,
});
