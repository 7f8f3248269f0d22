/**
 * A study: which concepts are trained how, which are fused how, which pictures
 * are drawn from which model. It is written down first, then run as pieces,
 * then scored. Every experiment on the embedded world is one.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import { cannot } from "../core/errors.ts";
import { method, type MethodName } from "../customize/methods.ts";
import type { TrainConfig } from "../customize/train.ts";
import {
  type ClipVector,
  disposeClip,
  embedTexts,
  loadClip,
} from "../evaluation/clip.ts";
import { gallery, type GalleryEntry } from "../evaluation/retrieval.ts";
import type { Art } from "../micro/art.ts";
import type { Pixels } from "../io/png.ts";
import {
  conceptImages,
  loadConceptArt,
  otherDesigns,
} from "../micro/concepts.ts";
import {
  conceptOf,
  type Drawing,
  drawings,
  inDomain,
  promptsOf,
} from "../micro/in_domain.ts";
import {
  type ConceptPrompts,
  type Prompt,
  PROMPT_GROUPS,
  promptText,
} from "../micro/prompts.ts";
import { IDENTITIES, type Identity } from "../micro/world.ts";
import type { ScoreName, ScoreRow } from "./ablation_schema.ts";
import { gatherCrew, type StageProgress } from "./crew.ts";
import {
  type Evidence,
  promptRegion,
  scorePicture,
  type Seen,
} from "./measure.ts";
import {
  type DrawnPicture,
  type EmbedPiece,
  type FusePiece,
  type ModelRef,
  type Piece,
  type ReferencePiece,
  type SamplePiece,
  type Shot,
  type TrainPiece,
  trainSeed,
} from "./pieces.ts";
import {
  type EmbeddingName,
  type ExperimentPreset,
  METHOD_OF,
} from "./presets.ts";
import { canonicalJson, folderHash, pieceId } from "./store.ts";
import {
  drawnPixels,
  imageId,
  isDone,
  pixelsOf,
  readEmbeddings,
  referenceImages,
} from "./workshop.ts";

/** Pictures that are drawn at once. */
const CHUNK = 10;

/** Parts of a model folder that shape its numbers. */
export const MODEL_PARTS: readonly string[] = [
  "tokenizer",
  "text_encoder",
  "unet",
  "vae",
  "scheduler",
];

/** Where and with what a study is done. */
export interface StudyOptions {
  /** Folder of the base model. */
  readonly model: string;
  /** Folder of the evaluation CLIP. */
  readonly clip: string;
  /** Folder of finished pieces. */
  readonly cache: string;
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
  /** Workers; 0: in place on the current backend. */
  readonly workers: number;
  /** The backend in use, for workers and for the record. */
  readonly backend: "webgpu" | "wasm" | "cpu";
}

/** A concept and those of its prompts that are used. */
export interface ConceptJob {
  /** Who or what it is: an identity, or an in-domain concept. */
  readonly identity: Pick<Identity, "name" | "class">;
  /** Prompts it is drawn from. */
  readonly prompts: readonly Prompt[];
}

/** Pictures of one arm for one concept and seed. */
export interface Cell {
  readonly arm: string;
  /** Proper name; empty for concept-free prompts. */
  readonly concept: string;
  readonly seed: number;
  readonly samples: readonly SamplePiece[];
  /** Where the concept may be in each picture. */
  readonly regions: readonly ReturnType<typeof promptRegion>[];
}

/** A cell and its embedded pictures. */
export interface SeenCell extends Cell {
  readonly pictures: readonly Seen[];
}

/** A piece and the name of its result. */
export interface Named<P extends Piece> {
  readonly piece: P;
  readonly id: string;
}

/** An in-domain concept's pictures in the store, by set. */
export interface DrawnConcept {
  readonly train: readonly DrawnPicture[];
  readonly reference: readonly DrawnPicture[];
  /** By their words. */
  readonly others: Readonly<Record<string, readonly DrawnPicture[]>>;
}

/** A written study. */
export interface Study {
  readonly options: StudyOptions;
  readonly jobs: readonly ConceptJob[];
  readonly art: Art;
  /** Hash of the base model. */
  readonly base: string;
  /** Hash of the evaluation CLIP. */
  readonly clip: string;
  /** Hash of each concept's training data. */
  readonly data: Readonly<Record<string, string>>;
  /** Pictures that in-domain concepts are made from. */
  readonly drawings: readonly SamplePiece[];
  /** Those of each in-domain concept by set; a look-alike by its words. */
  readonly drawn: ReadonlyMap<string, DrawnConcept>;
  /** Training runs by `embedding/concept/seed`. */
  readonly trains: Map<string, Named<TrainPiece>>;
  /** Fusions by `arm/seed`. */
  readonly fuses: Map<string, Named<FusePiece>>;
  readonly cells: Cell[];
  readonly references: readonly ReferencePiece[];
}

/** A study that has been run. */
export interface StudyResult {
  /** Scores, a row for each arm, concept and seed. */
  readonly rows: ScoreRow[];
  readonly seen: readonly SeenCell[];
  /** Captions of each concept's prompts, with the class word. */
  readonly captions: ReadonlyMap<string, readonly ClipVector[]>;
  /** References by label of the gallery. */
  readonly evidence: ReadonlyMap<string, Evidence>;
  readonly entries: readonly GalleryEntry[];
  /** Seconds of each stage. */
  readonly timings: Record<string, number>;
}

/**
 * Which prompts are used when not all are: one of each group in turn.
 *
 * @param count How many.
 * @param prompts All prompts of a concept.
 * @returns Indices in ascending order.
 * @throws If there are not so many.
 */
export function chosenPrompts(
  count: number,
  prompts: readonly Pick<Prompt, "group">[],
): number[] {
  if (!Number.isInteger(count) || count < 1 || count > prompts.length) {
    throw cannot("choose prompts", `1 to ${prompts.length} of them`, count);
  }
  const groups = PROMPT_GROUPS.map((group) =>
    prompts.flatMap((prompt, i) => prompt.group === group ? [i] : [])
  );
  const order = groups[0].flatMap((_, round) =>
    groups.flatMap((group) => group[round] ?? [])
  );
  return order.slice(0, count).sort((a, b) => a - b);
}

/**
 * Checks names and finds their prompts.
 *
 * @param names Proper names of identities or in-domain concepts.
 * @param count Prompts of each.
 * @param all From `loadPrompts`.
 * @throws If a name is unknown or comes twice.
 */
export function conceptJobs(
  names: readonly string[],
  count: number,
  all: readonly ConceptPrompts[],
): ConceptJob[] {
  if (names.length === 0) throw cannot("run", "at least one concept", "none");
  if (new Set(names).size !== names.length) {
    throw cannot("run", "different concepts", names.join(", "));
  }
  return names.map((name) => {
    const identity = conceptOf(name);
    const { prompts } = promptsOf(name, all);
    return {
      identity,
      prompts: chosenPrompts(count, prompts).map((i) => prompts[i]),
    };
  });
}

/**
 * Refuses concepts of both domains: a mean over both would be of neither.
 *
 * @param names Proper names.
 * @throws If some are in-domain concepts and some are not.
 */
export function oneDomain(names: readonly string[]): void {
  const inside = names.filter((name) => inDomain(name) !== undefined);
  if (inside.length === 0 || inside.length === names.length) return;
  throw cannot(
    "average over concepts",
    "identities only, or in-domain concepts only",
    names.join(", "),
  );
}

/** The pieces that draw pictures, and the pictures with what is known. */
async function drawnPictures(
  base: string,
  sampling: SamplePiece["sampling"],
  asked: readonly Drawing[],
): Promise<{ pieces: SamplePiece[]; pictures: DrawnPicture[] }> {
  const pieces: SamplePiece[] = [];
  const pictures: DrawnPicture[] = [];
  for (let from = 0; from < asked.length; from += CHUNK) {
    const part = asked.slice(from, from + CHUNK);
    const shots = part.map(({ text, noise }) => ({ text, noise }));
    const model = { type: "base" } as const;
    const piece: SamplePiece = { kind: "sample", base, model, shots, sampling };
    pieces.push(piece);
    for (const [i, { caption, box }] of part.entries()) {
      const image = await imageId(piece, shots[i]);
      pictures.push({ image, caption, box });
    }
  }
  return { pieces, pictures };
}

/** Writes down what the base model draws of in-domain concepts. */
async function drawConcepts(
  base: string,
  sampling: SamplePiece["sampling"],
  names: readonly string[],
): Promise<Pick<Study, "drawings" | "drawn">> {
  const all: SamplePiece[] = [];
  const drawn = new Map<string, DrawnConcept>();
  const put = async (asked: readonly Drawing[]) => {
    const { pieces, pictures } = await drawnPictures(base, sampling, asked);
    all.push(...pieces);
    return pictures;
  };
  for (const name of names) {
    const found = inDomain(name);
    if (!found) continue;
    const others: Record<string, DrawnPicture[]> = {};
    for (const look of found.others) {
      others[look] = await put(drawings(name, "other", look));
    }
    drawn.set(name, {
      train: await put(drawings(name, "train")),
      reference: await put(drawings(name, "reference")),
      others,
    });
  }
  return { drawings: all, drawn };
}

async function jsonHash(value: unknown): Promise<string> {
  return await sha256(canonicalJson(value));
}

async function bytesHash(values: Uint8Array | Float32Array): Promise<string> {
  return await sha256(new Uint8Array(values.slice().buffer as ArrayBuffer));
}

/**
 * The hash of a concept's training data: pictures, masks and captions.
 *
 * @param art Loaded art.
 * @param name Proper name.
 */
export async function dataHash(art: Art, name: string): Promise<string> {
  return await jsonHash(
    await Promise.all(
      conceptImages(name, "train", art).map(async (one) => [
        await bytesHash(one.image),
        await bytesHash(one.mask),
        one.caption,
      ]),
    ),
  );
}

async function referencePieces(
  art: Art,
  clip: string,
  drawn: Study["drawn"],
): Promise<ReferencePiece[]> {
  const pieces: ReferencePiece[] = [];
  for (const [concept, { reference, others }] of drawn) {
    const own = { kind: "reference", clip, concept } as const;
    const data = await jsonHash(reference);
    pieces.push({ ...own, data, pictures: reference });
    for (const [design, pictures] of Object.entries(others)) {
      const data = await jsonHash(pictures);
      pieces.push({ ...own, design, data, pictures });
    }
  }
  for (const { name } of IDENTITIES) {
    for (const design of [undefined, ...otherDesigns(name, art)]) {
      pieces.push({
        kind: "reference",
        clip,
        concept: name,
        ...(design === undefined ? {} : { design }),
        data: await jsonHash(
          await Promise.all(
            referenceImages(art, name, design).map(async ({ image, mask }) => [
              await bytesHash(image),
              await bytesHash(mask),
            ]),
          ),
        ),
      });
    }
  }
  return pieces;
}

/**
 * Opens an empty study.
 *
 * @param options Where it is done.
 * @param jobs Its concepts.
 * @throws If a model folder lacks a part, or a setting makes no sense.
 */
export async function openStudy(
  options: StudyOptions,
  jobs: readonly ConceptJob[],
): Promise<Study> {
  const what = "start an experiment";
  const { sampling, rank } = options.settings;
  if (!Number.isInteger(sampling.steps) || sampling.steps < 1) {
    throw cannot(what, "sampling steps ≥ 1", sampling.steps);
  }
  if (!Number.isFinite(sampling.guidance)) {
    throw cannot(what, "a finite guidance scale", sampling.guidance);
  }
  if (!Number.isInteger(rank) || rank < 1) {
    throw cannot(what, "a rank ≥ 1", rank);
  }
  const art = await loadConceptArt();
  const base = await folderHash(options.model, MODEL_PARTS);
  const clip = await folderHash(options.clip);
  const { drawings, drawn } = await drawConcepts(
    base,
    sampling,
    jobs.map(({ identity }) => identity.name),
  );
  const data: Record<string, string> = {};
  for (const { identity: { name } } of jobs) {
    const pictures = drawn.get(name)?.train;
    data[name] = pictures
      ? await jsonHash(pictures)
      : await dataHash(art, name);
  }
  return {
    options,
    jobs,
    art,
    base,
    clip,
    data,
    drawings,
    drawn,
    trains: new Map(),
    fuses: new Map(),
    cells: [],
    references: await referencePieces(art, clip, drawn),
  };
}

/**
 * How a concept stands in prompts.
 *
 * @param settings The preset.
 * @param embedding Its embedding, or the method.
 * @param identity The concept.
 */
export function phraseOf(
  settings: ExperimentPreset,
  embedding: EmbeddingName | MethodName,
  { name, class: word }: ConceptJob["identity"],
): string {
  return method(methodOf(embedding), settings.preset).phrase(name, word);
}

/** A method by its own name or by that of an embedding. */
function methodOf(name: EmbeddingName | MethodName): MethodName {
  return name === "lora" || name === "edlora" ? METHOD_OF[name] : name;
}

/**
 * Writes down a training run.
 *
 * @param study The study; gets the run.
 * @param job The concept.
 * @param embedding Its embedding, or the method.
 * @param seed The seed.
 * @param train What is changed in the preset's training configuration.
 * @param rank Rank of the adapter; by default the preset's.
 * @returns The model with the concept.
 */
export async function addTraining(
  study: Study,
  { identity }: ConceptJob,
  embedding: EmbeddingName | MethodName,
  seed: number,
  train: Partial<TrainConfig> = {},
  rank = study.options.settings.rank,
): Promise<ModelRef & { readonly id: string }> {
  const { settings } = study.options;
  const name = methodOf(embedding);
  const pictures = study.drawn.get(identity.name)?.train;
  const piece: TrainPiece = {
    kind: "train",
    base: study.base,
    concept: identity.name,
    classWord: identity.class,
    data: study.data[identity.name],
    ...(pictures ? { pictures } : {}),
    method: name,
    preset: settings.preset,
    rank,
    config: {
      ...method(name, settings.preset).train,
      ...settings.train,
      ...train,
      seed: trainSeed(seed, identity.name),
    },
    seed,
  };
  const id = await pieceId(piece);
  study.trains.set(`${embedding}/${identity.name}/${seed}`, { piece, id });
  return { type: "concept", id };
}

/**
 * Writes down a fusion.
 *
 * @param study The study; gets the fusion.
 * @param arm Its name.
 * @param concepts Names of trained concepts, in order.
 * @param how By weight or by gradient.
 * @param seed The seed.
 * @returns The fused model.
 */
export async function addFusion(
  study: Study,
  arm: string,
  concepts: readonly string[],
  how: FusePiece["how"],
  seed: number,
): Promise<ModelRef & { readonly id: string }> {
  const piece: FusePiece = {
    kind: "fuse",
    base: study.base,
    concepts,
    how,
    seed,
  };
  const id = await pieceId(piece);
  study.fuses.set(`${arm}/${seed}`, { piece, id });
  return { type: "fused", id };
}

function addCell(
  study: Study,
  cell: Omit<Cell, "samples">,
  model: ModelRef,
  shots: readonly Shot[],
): void {
  const samples: SamplePiece[] = [];
  for (let from = 0; from < shots.length; from += CHUNK) {
    samples.push({
      kind: "sample",
      base: study.base,
      model,
      shots: shots.slice(from, from + CHUNK),
      sampling: study.options.settings.sampling,
    });
  }
  study.cells.push({ ...cell, samples });
}

/**
 * Writes down the pictures of a concept's prompts. Their noise depends on seed,
 * concept and prompt: it is the same in every arm.
 *
 * @param study The study; gets the pictures.
 * @param arm Name of the arm.
 * @param job The concept.
 * @param seed The seed.
 * @param model The model that draws.
 * @param words What stands for the concept in prompts.
 */
export function addPictures(
  study: Study,
  arm: string,
  job: ConceptJob,
  seed: number,
  model: ModelRef,
  words: string,
): void {
  const { identity: { name }, prompts } = job;
  addCell(
    study,
    { arm, concept: name, seed, regions: prompts.map(promptRegion) },
    model,
    prompts.map((prompt) => ({
      text: promptText(prompt, words),
      // Named by its text, so that a shorter list draws the same pictures.
      noise: [seed, name, prompt.text],
    })),
  );
}

/**
 * Writes down pictures of prompts without a concept.
 *
 * @param study The study; gets the pictures.
 * @param arm Name of the arm.
 * @param seed The seed.
 * @param model The model that draws.
 * @param texts The prompts.
 */
export function addFreePictures(
  study: Study,
  arm: string,
  seed: number,
  model: ModelRef,
  texts: readonly string[],
): void {
  addCell(
    study,
    { arm, concept: "", seed, regions: texts.map(() => null) },
    model,
    texts.map((text) => ({ text, noise: [seed, "free", text] })),
  );
}

/**
 * Where a picture of a cell lies in the store.
 *
 * @param cell The cell.
 * @param i Which of its prompts.
 * @returns The picture's name.
 */
export async function pictureId(cell: Cell, i: number): Promise<string> {
  const piece = cell.samples[Math.floor(i / CHUNK)];
  return await imageId(piece, piece.shots[i % CHUNK]);
}

/** The pieces that embed a cell's pictures. */
async function embedPieces(cell: Cell, clip: string): Promise<EmbedPiece[]> {
  let from = 0;
  const pieces: EmbedPiece[] = [];
  for (const sample of cell.samples) {
    const images: string[] = [];
    for (const shot of sample.shots) images.push(await imageId(sample, shot));
    const regions = cell.regions.slice(from, from + images.length);
    pieces.push({ kind: "embed", clip, images, regions });
    from += images.length;
  }
  return pieces;
}

/**
 * A concept's references as pictures; those of an in-domain concept must have
 * been drawn.
 *
 * @param study The study.
 * @param name Proper name.
 */
export async function referencePixels(
  study: Pick<Study, "art" | "drawn" | "options">,
  name: string,
): Promise<Pixels[]> {
  const drawn = study.drawn.get(name);
  return drawn
    ? await drawnPixels(study.options.cache, drawn.reference)
    : conceptImages(name, "reference", study.art)
      .map(({ image, scene }) => pixelsOf(image, scene.side));
}

/** A stage of a study. */
interface StudyStage {
  readonly name: string;
  readonly unit: string;
  /** Each once. */
  readonly pieces: readonly Piece[];
  readonly size: (piece: Piece) => number;
}

/** The pieces of a study in the order in which they need each other. */
async function stagesOf(study: Study): Promise<StudyStage[]> {
  const embeds: EmbedPiece[] = [];
  for (const cell of study.cells) {
    embeds.push(...await embedPieces(cell, study.clip));
  }
  const all = async <P extends Piece>(
    name: string,
    unit: string,
    pieces: readonly P[],
    size: (piece: P) => number,
  ): Promise<StudyStage> => {
    const distinct = new Map<string, P>();
    for (const piece of pieces) distinct.set(await pieceId(piece), piece);
    return {
      name,
      unit,
      pieces: [...distinct.values()],
      size: (piece) => size(piece as P),
    };
  };
  const stages = [
    await all("imagine", "image", study.drawings, (p) => p.shots.length),
    await all(
      "train",
      "step",
      [...study.trains.values()].map(({ piece }) => piece),
      (p) => p.config.steps,
    ),
    await all(
      "fuse",
      "model",
      [...study.fuses.values()].map(({ piece }) => piece),
      () => 1,
    ),
    await all(
      "sample",
      "image",
      study.cells.flatMap(({ samples }) => samples),
      (p) => p.shots.length,
    ),
    await all<EmbedPiece | ReferencePiece>(
      "score",
      "image",
      [...study.references, ...embeds],
      (p) => p.kind === "embed" ? p.images.length : 10,
    ),
  ];
  return stages.filter(({ pieces }) => pieces.length > 0);
}

/**
 * Whether the store has every piece of a study.
 *
 * @param study The study.
 */
export async function isFinished(study: Study): Promise<boolean> {
  for (const { pieces } of await stagesOf(study)) {
    for (const piece of pieces) {
      if (!await isDone(study.options.cache, piece)) return false;
    }
  }
  return true;
}

/**
 * Does the pieces of a study that the store lacks: trains, fuses, draws, embeds.
 *
 * @param study The study.
 * @returns Yields progress; returns the seconds of each stage.
 * @throws If the model or the CLIP changed while it ran.
 */
export async function* runPieces(
  study: Study,
): AsyncGenerator<StageProgress, Record<string, number>, void> {
  const { options } = study;
  const timings: Record<string, number> = {};
  let before = performance.now();
  const lap = (name: string) => {
    timings[name] = (performance.now() - before) / 1000;
    before = performance.now();
  };
  using crew = await gatherCrew(options, options.backend, options.workers);
  const stages = await stagesOf(study);
  lap("prepare");
  for (const stage of stages) {
    yield* crew.run(stage);
    lap(stage.name);
  }
  // Customised models are judged by the CLIP that was there before them.
  if (
    await folderHash(options.model, MODEL_PARTS) !== study.base ||
    await folderHash(options.clip) !== study.clip
  ) {
    throw cannot(
      "finish an experiment",
      "the model and the CLIP that it began with",
      "changed files",
    );
  }
  return timings;
}

/**
 * Runs a study: trains, fuses, draws, embeds, scores.
 *
 * @param study The study.
 * @returns Yields progress; returns the scores.
 */
export async function* runStudy(
  study: Study,
): AsyncGenerator<StageProgress, StudyResult, void> {
  const { options } = study;
  const before = performance.now();
  const timings = yield* runPieces(study);
  const seen: SeenCell[] = [];
  for (const cell of study.cells) {
    const pictures: Seen[] = [];
    for (const piece of await embedPieces(cell, study.clip)) {
      const rows = await readEmbeddings(options.cache, piece);
      rows.get("whole")!.forEach((whole, i) =>
        pictures.push({ whole, views: rows.get(`views.${i}`)! })
      );
    }
    seen.push({ ...cell, pictures });
  }
  const { evidence, entries } = await readEvidence(study);
  const captions = await embedCaptions(study);
  const rows = scoreRows(seen, captions, evidence, entries);
  timings.total = (performance.now() - before) / 1000;
  return { rows, seen, captions, evidence, entries, timings };
}

async function readEvidence(
  study: Study,
): Promise<{ evidence: Map<string, Evidence>; entries: GalleryEntry[] }> {
  const evidence = new Map<string, Evidence>();
  for (const piece of study.references) {
    const rows = await readEmbeddings(study.options.cache, piece);
    const { concept, design } = piece;
    evidence.set(design ? `${concept} (${design})` : concept, {
      whole: rows.get("whole")!,
      masked: rows.get("masked")!,
    });
  }
  const entries = gallery(
    [...evidence].map(([label, { masked }]) => [label, masked]),
  );
  return { evidence, entries };
}

/** Five decimals: more than a score of some pictures can say. */
export function rounded(value: number): number {
  return Math.round(value * 1e5) / 1e5;
}

/** A concept's captions as the scores see them, with the class word. */
async function embedCaptions(
  study: Study,
): Promise<Map<string, ClipVector[]>> {
  const { clip: folder, settings } = study.options;
  const clip = await loadClip(folder);
  try {
    const captions = new Map<string, ClipVector[]>();
    for (const { identity, prompts } of study.jobs) {
      const texts = prompts.map((prompt) =>
        settings.textPrefix + promptText(prompt, identity.class)
      );
      captions.set(identity.name, await embedTexts(clip, texts));
    }
    return captions;
  } finally {
    disposeClip(clip);
  }
}

function scoreRows(
  seen: readonly SeenCell[],
  captions: ReadonlyMap<string, readonly ClipVector[]>,
  evidence: ReadonlyMap<string, Evidence>,
  entries: readonly GalleryEntry[],
): ScoreRow[] {
  return seen.filter(({ concept }) => concept !== "").map((cell) => {
    const scores = cell.pictures.map((picture, i) =>
      scorePicture(
        picture,
        captions.get(cell.concept)![i],
        evidence.get(cell.concept)!,
        entries,
        cell.concept,
      )
    );
    const column = (score: ScoreName) =>
      scores.map((one) => rounded(one[score]));
    return {
      arm: cell.arm,
      concept: cell.concept,
      seed: cell.seed,
      text: column("text"),
      image: column("image"),
      masked: column("masked"),
      retrieval: column("retrieval"),
    };
  });
}
