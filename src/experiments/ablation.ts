/**
 * The paper's Table 2 on the embedded model, with the fourth cell: {LoRA,
 * ED-LoRA} × {weight, gradient fusion}, single against fused, and weight fusion
 * at its best λ.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import {
  type Concept,
  disposeConcept,
  loadConcept,
} from "../customize/concept.ts";
import { attentionSites } from "../customize/lora.ts";
import { method, startConcept } from "../customize/methods.ts";
import {
  disposeClip,
  type Embedding as Vector,
  embedTexts,
  loadClip,
} from "../evaluation/clip.ts";
import { cosine } from "../evaluation/clip_score.ts";
import { gallery, type GalleryEntry } from "../evaluation/retrieval.ts";
import {
  type Estimate,
  hierarchicalBootstrap,
  mean,
  median,
  pairedDifference,
  retainedShare,
} from "../evaluation/statistics.ts";
import type { Art } from "../micro/art.ts";
import { captionOf } from "../micro/captions.ts";
import {
  conceptImages,
  identityOf,
  loadConceptArt,
  otherDesigns,
} from "../micro/concepts.ts";
import {
  type ConceptPrompts,
  loadPrompts,
  type Prompt,
  PROMPT_GROUPS,
  PROMPTS_SHA256,
  promptText,
} from "../micro/prompts.ts";
import { heldOutScene } from "../micro/scenes.ts";
import { IDENTITIES, type Identity } from "../micro/world.ts";
import { disposeModel, loadModel } from "../models/model.ts";
import type {
  AblationReport,
  Arm,
  Comparison,
  ScoreEstimate,
  ScoreName,
  Scores,
} from "./ablation_schema.ts";
import { SCORES } from "./ablation_schema.ts";
import { type Crew, gatherCrew, type StageProgress } from "./crew.ts";
import {
  drift,
  type Evidence,
  promptRegion,
  scorePicture,
  scoreReferences,
  type Seen,
} from "./measure.ts";
import {
  conceptKey,
  type EmbedPiece,
  type FusePiece,
  type ModelRef,
  type Piece,
  type ReferencePiece,
  type SamplePiece,
  type Shot,
  store,
  type TrainPiece,
  trainSeed,
} from "./pieces.ts";
import {
  type Embedding,
  EMBEDDINGS,
  type ExperimentPreset,
  METHOD_OF,
} from "./presets.ts";
import { canonicalJson, folderHash, pieceId, sha256 } from "./store.ts";
import {
  imageId,
  readConceptLog,
  readEmbeddings,
  readFusedLog,
  referenceImages,
} from "./workshop.ts";

/** Kinds of fusion that are compared. */
export const FUSIONS = ["weight", "gradient", "weight_best_lambda"] as const;

/** A kind of fusion. */
export type FusionName = typeof FUSIONS[number];

/** Least median gain over the lower bound for the result to mean anything. */
export const REQUIRED_HEADROOM = 0.1;

/** Concept-free prompts on which drift is measured. */
export const DRIFT_PROMPTS = 8;

/** Pictures that are drawn at once. */
const CHUNK = 10;

/** What is run. */
export interface AblationOptions {
  /** Folder of the base model. */
  readonly model: string;
  /** Folder of the evaluation CLIP. */
  readonly clip: string;
  /** Folder of finished pieces. */
  readonly cache: string;
  /** Proper names of identities. */
  readonly concepts: readonly string[];
  /** Prompts of each concept, taken from the four groups in turn. */
  readonly prompts: number;
  /** Training seeds; each also draws its own pictures. */
  readonly seeds: readonly number[];
  readonly settings: ExperimentPreset;
  /** @default both */
  readonly embeddings?: readonly Embedding[];
  /** @default all three */
  readonly fusions?: readonly FusionName[];
  /** Workers; 0: in place on the current backend. */
  readonly workers: number;
  /** The backend in use, for workers and for the record. */
  readonly backend: "webgpu" | "wasm" | "cpu";
  /** For the record. */
  readonly scale: AblationReport["scale"];
  /** Version of the library, for the record. */
  readonly version: string;
  /** For the record. @default now */
  readonly created?: string;
}

/** The prompts of a concept that are used. */
export interface ConceptJob {
  readonly identity: Identity;
  readonly prompts: readonly Prompt[];
}

/** Pictures of one arm for one concept and seed. */
interface Cell {
  readonly arm: string;
  readonly concept: string;
  readonly seed: number;
  readonly samples: readonly SamplePiece[];
  readonly regions: readonly (ReturnType<typeof promptRegion>)[];
}

/** A cell with the pieces that embed its pictures. */
interface SeenCell extends Cell {
  readonly pictures: readonly Seen[];
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
 * @param names Proper names.
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
    const identity = identityOf(name);
    const own = all.find((entry) => entry.concept === name);
    if (!own) throw cannot("run", `prompts of ${name}`, "none");
    return {
      identity,
      prompts: chosenPrompts(count, own.prompts).map((i) => own.prompts[i]),
    };
  });
}

/** Concept-free captions of held-out scenes. */
export function driftTexts(count: number): string[] {
  return Array.from(
    { length: count },
    (_, i) => captionOf(heldOutScene(i), i),
  );
}

/**
 * The hash of a concept's training data: pictures, masks and captions.
 *
 * @param art Loaded art.
 * @param name Proper name.
 */
export async function dataHash(art: Art, name: string): Promise<string> {
  const parts = await Promise.all(
    conceptImages(name, "train", art).map(async ({ image, mask, caption }) => [
      await sha256(image.slice()),
      await sha256(new Uint8Array(mask.slice().buffer)),
      caption,
    ]),
  );
  return await sha256(new TextEncoder().encode(canonicalJson(parts)));
}

/** The training run of a concept. */
async function trainPiece(
  options: AblationOptions,
  base: string,
  art: Art,
  { identity }: ConceptJob,
  embedding: Embedding,
  seed: number,
): Promise<TrainPiece> {
  const { preset, rank, train } = options.settings;
  const name = METHOD_OF[embedding];
  return {
    kind: "train",
    base,
    concept: identity.name,
    classWord: identity.class,
    data: await dataHash(art, identity.name),
    method: name,
    preset,
    rank,
    config: {
      ...method(name, preset).train,
      ...train,
      seed: trainSeed(seed, identity.name),
    },
    seed,
  };
}

/** Parts of a model folder that shape its numbers. */
export const MODEL_PARTS = [
  "tokenizer",
  "text_encoder",
  "unet",
  "vae",
  "scheduler",
] as const;

/** The pieces of a run and what they are for. */
interface Plan {
  readonly jobs: readonly ConceptJob[];
  readonly base: string;
  readonly clip: string;
  readonly data: Readonly<Record<string, string>>;
  readonly trains: ReadonlyMap<string, { piece: TrainPiece; id: string }>;
  readonly fuses: ReadonlyMap<string, { piece: FusePiece; id: string }>;
  readonly cells: readonly Cell[];
  readonly references: readonly ReferencePiece[];
}

const nameOf = (...parts: (string | number)[]): string => parts.join("/");

async function makePlan(options: AblationOptions, art: Art): Promise<Plan> {
  const { settings, seeds } = options;
  const embeddings = options.embeddings ?? EMBEDDINGS;
  const fusions = options.fusions ?? FUSIONS;
  const all = await loadPrompts();
  const jobs = conceptJobs(options.concepts, options.prompts, all);
  const base = await folderHash(options.model, MODEL_PARTS);
  const clip = await folderHash(options.clip);
  const trains = new Map<string, { piece: TrainPiece; id: string }>();
  const fuses = new Map<string, { piece: FusePiece; id: string }>();
  const data: Record<string, string> = {};
  const cells: Cell[] = [];
  const texts = driftTexts(Math.min(DRIFT_PROMPTS, options.prompts));

  const addCell = (
    arm: string,
    concept: string,
    seed: number,
    model: ModelRef,
    shots: readonly Shot[],
    regions: Cell["regions"],
  ) => {
    const samples: SamplePiece[] = [];
    for (let from = 0; from < shots.length; from += CHUNK) {
      samples.push({
        kind: "sample",
        base,
        model,
        shots: shots.slice(from, from + CHUNK),
        sampling: settings.sampling,
      });
    }
    cells.push({ arm, concept, seed, samples, regions });
  };
  const addConcept = (
    arm: string,
    job: ConceptJob,
    seed: number,
    model: ModelRef,
    words: string,
  ) =>
    addCell(
      arm,
      job.identity.name,
      seed,
      model,
      job.prompts.map((prompt) => ({
        text: promptText(prompt, words),
        // Named by its text, so that a shorter list draws the same pictures.
        noise: [seed, job.identity.name, prompt.text],
      })),
      job.prompts.map(promptRegion),
    );
  const addDrift = (arm: string, seed: number, model: ModelRef) =>
    addCell(
      arm,
      "",
      seed,
      model,
      texts.map((text) => ({ text, noise: [seed, "drift", text] })),
      texts.map(() => null),
    );

  for (const job of jobs) {
    data[job.identity.name] = await dataHash(art, job.identity.name);
  }
  for (const seed of seeds) {
    for (const job of jobs) {
      addConcept("base", job, seed, { type: "base" }, job.identity.class);
    }
    addDrift("base", seed, { type: "base" });
    for (const embedding of embeddings) {
      const how = method(METHOD_OF[embedding], settings.preset);
      const phrase = ({ identity: { name, class: word } }: ConceptJob) =>
        how.phrase(name, word);
      const ids: string[] = [];
      for (const job of jobs) {
        const piece = await trainPiece(
          options,
          base,
          art,
          job,
          embedding,
          seed,
        );
        const id = await pieceId(piece);
        ids.push(id);
        trains.set(nameOf(embedding, job.identity.name, seed), { piece, id });
        const model: ModelRef = { type: "concept", id };
        addConcept(`${embedding}.single`, job, seed, model, phrase(job));
        addDrift(`${embedding}.single`, seed, model);
      }
      for (const fusion of fusions) {
        const piece: FusePiece = {
          kind: "fuse",
          base,
          concepts: ids,
          how: fusion === "gradient"
            ? { type: "gradient", settings: settings.gradient }
            : {
              type: "weight",
              lambda: fusion === "weight"
                ? 1 / jobs.length
                : settings.bestLambda[embedding],
            },
          seed,
        };
        const id = await pieceId(piece);
        fuses.set(nameOf(embedding, fusion, seed), { piece, id });
        const model: ModelRef = { type: "fused", id };
        const arm = `${embedding}.${fusion}`;
        for (const job of jobs) {
          addConcept(arm, job, seed, model, phrase(job));
        }
        addDrift(arm, seed, model);
      }
    }
  }
  const references: ReferencePiece[] = [];
  for (const { name } of IDENTITIES) {
    for (const design of [undefined, ...otherDesigns(name, art)]) {
      const images = referenceImages(art, name, design);
      const hashes = await Promise.all(images.map(async ({ image, mask }) => [
        await sha256(image.slice()),
        await sha256(new Uint8Array(mask.slice().buffer)),
      ]));
      references.push({
        kind: "reference",
        clip,
        concept: name,
        ...(design === undefined ? {} : { design }),
        data: await sha256(new TextEncoder().encode(canonicalJson(hashes))),
      });
    }
  }
  return { jobs, base, clip, data, trains, fuses, cells, references };
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

/** Pieces that are not there twice (drift of one model, seeds of the base). */
async function distinct<P extends Piece>(pieces: readonly P[]): Promise<P[]> {
  const found = new Map<string, P>();
  for (const piece of pieces) found.set(await pieceId(piece), piece);
  return [...found.values()];
}

/** Yields progress of a stage and records its time. */
async function* staged<P extends Piece>(
  crew: Crew,
  timings: Record<string, number>,
  name: string,
  unit: string,
  pieces: readonly P[],
  size: (piece: P) => number,
): AsyncGenerator<StageProgress, void, void> {
  const before = performance.now();
  yield* crew.run({
    name,
    unit,
    pieces: await distinct(pieces),
    size: (piece) => size(piece as P),
  });
  timings[name] = (performance.now() - before) / 1000;
}

/**
 * Runs the ablation.
 *
 * Everything that is drawn at random comes from keys, work is cut into pieces
 * whose results are stored under the hash of what shaped them: a killed run
 * continues, and the number of workers changes nothing.
 *
 * @param options What is run.
 * @returns Yields progress; returns the report.
 * @throws Before work starts, if an option is wrong or a model does not load.
 */
export async function* ablation(
  options: AblationOptions,
): AsyncGenerator<StageProgress, AblationReport, void> {
  check(options);
  const timings: Record<string, number> = {};
  const before = performance.now();
  const art = await loadConceptArt();
  const plan = await makePlan(options, art);
  using crew = await gatherCrew(options, options.backend, options.workers);
  timings.prepare = (performance.now() - before) / 1000;
  yield* staged(
    crew,
    timings,
    "train",
    "step",
    [...plan.trains.values()].map(({ piece }) => piece),
    (piece) => piece.config.steps,
  );
  yield* staged(
    crew,
    timings,
    "fuse",
    "model",
    [...plan.fuses.values()].map(({ piece }) => piece),
    () => 1,
  );
  yield* staged(
    crew,
    timings,
    "sample",
    "image",
    plan.cells.flatMap(({ samples }) => samples),
    (piece) => piece.shots.length,
  );
  const embeds = new Map<Cell, EmbedPiece[]>();
  for (const cell of plan.cells) {
    embeds.set(cell, await embedPieces(cell, plan.clip));
  }
  yield* staged<EmbedPiece | ReferencePiece>(
    crew,
    timings,
    "score",
    "image",
    [...plan.references, ...[...embeds.values()].flat()],
    (piece) => piece.kind === "embed" ? piece.images.length : 1,
  );
  const seen: SeenCell[] = [];
  for (const cell of plan.cells) {
    const pictures: Seen[] = [];
    for (const piece of embeds.get(cell)!) {
      const rows = await readEmbeddings(options.cache, piece);
      rows.get("whole")!.forEach((whole, i) =>
        pictures.push({ whole, views: rows.get(`views.${i}`)! })
      );
    }
    seen.push({ ...cell, pictures });
  }
  timings.total = (performance.now() - before) / 1000;
  return await report(options, plan, seen, timings);
}

function check(options: AblationOptions): void {
  const what = "run the ablation";
  if (options.seeds.length === 0) throw cannot(what, "a seed", "none");
  for (const seed of options.seeds) {
    if (!Number.isSafeInteger(seed)) throw cannot(what, "whole seeds", seed);
  }
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
}

/** Scores of one cell, prompt by prompt. */
type Row = AblationReport["rows"][number];

async function report(
  options: AblationOptions,
  plan: Plan,
  seen: readonly SeenCell[],
  timings: Record<string, number>,
): Promise<AblationReport> {
  const { settings, seeds } = options;
  const embeddings = options.embeddings ?? EMBEDDINGS;
  const fusions = options.fusions ?? FUSIONS;
  const evidence = new Map<string, Evidence>();
  const examples: [string, Vector[]][] = [];
  for (const piece of plan.references) {
    const rows = await readEmbeddings(options.cache, piece);
    const label = piece.design
      ? `${piece.concept} (${piece.design})`
      : piece.concept;
    evidence.set(label, {
      whole: rows.get("whole")!,
      masked: rows.get("masked")!,
    });
    examples.push([label, rows.get("masked")!]);
  }
  const entries = gallery(examples);
  const rows = await scoreRows(options, plan, seen, evidence, entries);
  const rowsOf = (arm: string) => rows.filter((row) => row.arm === arm);
  const means = (arm: string, score: ScoreName): number[] =>
    plan.jobs.map(({ identity }) =>
      mean(
        rowsOf(arm).filter((row) => row.concept === identity.name)
          .map((row) => mean(row[score])),
      )
    );
  const driftOf = driftTable(seen);
  const root = fold(key(0), "statistics");
  const arms: Record<string, Arm> = {};
  for (const embedding of embeddings) {
    for (const fusion of fusions) {
      const arm = `${embedding}.${fusion}`;
      const { piece, id } = plan.fuses.get(
        nameOf(embedding, fusion, seeds[0]),
      )!;
      const log = await readFusedLog(options.cache, id);
      const single = `${embedding}.single`;
      const each = (
        fn: (score: ScoreName) => Estimate,
      ): Scores =>
        Object.fromEntries(
          SCORES.map((score) => [score, finite(fn(score))]),
        ) as Scores;
      arms[arm] = {
        embedding,
        fusion,
        lambda: piece.how.type === "weight" ? piece.how.lambda : null,
        single: estimates(plan.jobs, rowsOf(single), single),
        fused: estimates(plan.jobs, rowsOf(arm), arm),
        loss: each((score) =>
          pairedDifference(means(single, score), means(arm, score))
        ),
        retained: each((score) =>
          score === "text" ? { mean: NaN, low: NaN, high: NaN } : retainedShare(
            means(arm, score),
            means(single, score),
            means("base", score),
            fold(root, "retained", arm, score),
          )
        ),
        fusionSeconds: log.seconds,
        drift: driftOf[arm] ?? null,
        layers: log.layers.map((layer) => ({
          ...layer,
          before: orNull(layer.before),
          after: orNull(layer.after),
          average: orNull(layer.average),
        })),
      };
    }
  }
  const gains = embeddings.map((embedding) =>
    median(
      means(`${embedding}.single`, "image").map((value, i) =>
        value - means("base", "image")[i]
      ),
    )
  );
  // ED-LoRA's where it was run: the last.
  const gain = gains[gains.length - 1];
  const headroom = {
    median: orNull(gain),
    required: REQUIRED_HEADROOM,
    enough: gain >= REQUIRED_HEADROOM,
  };
  const conclusive = options.scale !== "quick" && plan.jobs.length > 1 &&
    headroom.enough;
  const comparisons = compare(means, embeddings, fusions, conclusive);
  const { capacity, distinguishability } = await inspect(options, plan);
  const training: AblationReport["training"] = [];
  for (const [name, { id }] of plan.trains) {
    const [embedding, concept, seed] = name.split("/");
    const log = await readConceptLog(options.cache, id);
    training.push({
      embedding,
      concept,
      seed: Number(seed),
      seconds: log.seconds,
      losses: [...log.losses],
    });
  }
  const all = await loadPrompts();
  return {
    format: "mix-of-show ablation 1",
    scale: options.scale,
    created: options.created ?? new Date().toISOString(),
    concepts: plan.jobs.map(({ identity }) => ({
      name: identity.name,
      class: identity.class,
    })),
    seeds: [...seeds],
    prompts: {
      perConcept: options.prompts,
      indices: chosenPrompts(options.prompts, all[0].prompts),
      sha256: PROMPTS_SHA256,
    },
    settings: settings as unknown as Record<string, unknown>,
    base: {
      lower: estimates(plan.jobs, rowsOf("base"), "base"),
      ceiling: ceiling(plan.jobs, evidence, entries),
    },
    arms,
    comparisons,
    headroom,
    verdict: verdict(options, comparisons, headroom),
    retrieval: {
      chance: 1 / entries.length,
      gallery: entries.map(({ label }) => label),
    },
    capacity,
    distinguishability,
    drift: driftOf,
    rows,
    groups: groupMeans(rows, plan.jobs[0].prompts),
    training,
    hashes: { model: plan.base, clip: plan.clip, data: { ...plan.data } },
    machine: {
      backend: options.backend,
      workers: options.workers,
      processors: navigator.hardwareConcurrency,
      deno: Deno.version.deno,
      library: options.version,
      tfjs: "4.22.0",
    },
    timings,
  };
}

/** JSON has no NaN and no infinity. */
function orNull(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}

function finite({ mean, low, high }: Estimate): ScoreEstimate {
  return { mean: orNull(mean), low: orNull(low), high: orNull(high) };
}

/** Five decimals: more than a score of some pictures can say. */
function rounded(value: number): number {
  return Math.round(value * 1e5) / 1e5;
}

async function scoreRows(
  options: AblationOptions,
  plan: Plan,
  seen: readonly SeenCell[],
  evidence: ReadonlyMap<string, Evidence>,
  entries: readonly GalleryEntry[],
): Promise<Row[]> {
  const clip = await loadClip(options.clip);
  try {
    const captions = new Map<string, Vector[]>();
    for (const { identity, prompts } of plan.jobs) {
      captions.set(
        identity.name,
        await embedTexts(
          clip,
          prompts.map((prompt) =>
            options.settings.textPrefix + promptText(prompt, identity.class)
          ),
        ),
      );
    }
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
  } finally {
    disposeClip(clip);
  }
}

/** Means with hierarchical bootstrap: prompts in seeds in concepts. */
function estimates(
  jobs: readonly ConceptJob[],
  rows: readonly Row[],
  arm: string,
): Scores {
  return Object.fromEntries(SCORES.map((score) => [
    score,
    finite(hierarchicalBootstrap(
      jobs.map(({ identity }) =>
        rows.filter((row) => row.concept === identity.name)
          .map((row) => row[score])
      ),
      fold(key(0), "interval", arm, score),
    )),
  ])) as Scores;
}

/** What the references score among themselves: no picture can do better. */
function ceiling(
  jobs: readonly ConceptJob[],
  evidence: ReadonlyMap<string, Evidence>,
  entries: readonly GalleryEntry[],
): Scores {
  const own = jobs.map(({ identity: { name } }) =>
    scoreReferences(evidence.get(name)!, entries, name)
  );
  return Object.fromEntries(SCORES.map((score) => [
    score,
    score === "text"
      ? { mean: null, low: null, high: null }
      : finite(hierarchicalBootstrap(
        own.map((rows) => rows.map((row) => row[score])),
        fold(key(0), "ceiling", score),
      )),
  ])) as Scores;
}

function driftTable(seen: readonly SeenCell[]): Record<string, number> {
  const cells = seen.filter(({ concept }) => concept === "");
  const values = new Map<string, number[]>();
  for (const { arm, seed, pictures } of cells) {
    if (arm === "base") continue;
    const base = cells.find((cell) =>
      cell.arm === "base" && cell.seed === seed
    );
    const moved = drift(
      pictures.map(({ whole }) => whole),
      base!.pictures.map(({ whole }) => whole),
    );
    values.set(arm, [...values.get(arm) ?? [], moved]);
  }
  return Object.fromEntries(
    [...values].map(([arm, list]) => [arm, rounded(mean(list))]),
  );
}

function groupMeans(
  rows: readonly Row[],
  prompts: readonly Prompt[],
): AblationReport["groups"] {
  const arms = [...new Set(rows.map(({ arm }) => arm))];
  return arms.flatMap((arm) =>
    PROMPT_GROUPS.flatMap((group) => {
      const at = prompts.flatMap((prompt, i) =>
        prompt.group === group ? [i] : []
      );
      if (at.length === 0) return [];
      const of = (score: "text" | "image") =>
        rounded(mean(
          rows.filter((row) => row.arm === arm)
            .map((row) => mean(at.map((i) => row[score][i]))),
        ));
      return [{ arm, group, text: of("text"), image: of("image") }];
    })
  );
}

/** The paper's claims as differences that should be positive. */
function compare(
  means: (arm: string, score: ScoreName) => number[],
  embeddings: readonly Embedding[],
  fusions: readonly FusionName[],
  conclusive: boolean,
): Comparison[] {
  const all: Comparison[] = [];
  const has = (embedding: Embedding, fusion?: FusionName) =>
    embeddings.includes(embedding) &&
    (fusion === undefined || fusions.includes(fusion));
  const add = (
    id: string,
    claim: string,
    a: (score: ScoreName) => number[],
    b: (score: ScoreName) => number[],
  ) => {
    for (const score of ["image", "masked", "retrieval"] as const) {
      const d = pairedDifference(a(score), b(score));
      all.push({
        id,
        claim,
        score,
        ...finite(d),
        n: d.n,
        wins: d.wins,
        verdict: !conclusive
          ? "no conclusion"
          : d.low > 0
          ? "reproduced"
          : d.high < 0
          ? "reversed"
          : "not shown",
      });
    }
  };
  const of = (arm: string) => (score: ScoreName) => means(arm, score);
  const minus = (arm: string, other: string) => (score: ScoreName) =>
    means(arm, score).map((value, i) => value - means(other, score)[i]);
  for (const embedding of embeddings) {
    const label = embedding === "lora" ? "LoRA" : "ED-LoRA";
    if (has(embedding, "weight")) {
      add(
        `${embedding}.single > ${embedding}.weight`,
        `weight fusion (1/n) of ${label} loses identity`,
        of(`${embedding}.single`),
        of(`${embedding}.weight`),
      );
    }
    if (has(embedding, "weight") && has(embedding, "gradient")) {
      add(
        `${embedding}.gradient > ${embedding}.weight`,
        `gradient fusion of ${label} keeps more identity than weight fusion`,
        of(`${embedding}.gradient`),
        of(`${embedding}.weight`),
      );
    }
    if (has(embedding, "weight_best_lambda") && has(embedding, "gradient")) {
      add(
        `${embedding}.gradient > ${embedding}.weight_best_lambda`,
        `gradient fusion of ${label} keeps more identity than a sum with tuned λ`,
        of(`${embedding}.gradient`),
        of(`${embedding}.weight_best_lambda`),
      );
    }
  }
  for (const fusion of ["weight", "gradient"] as const) {
    if (!has("lora", fusion) || !has("edlora", fusion)) continue;
    add(
      `lora loss > edlora loss (${fusion})`,
      `LoRA loses more identity in ${fusion} fusion than ED-LoRA`,
      minus("lora.single", `lora.${fusion}`),
      minus("edlora.single", `edlora.${fusion}`),
    );
    add(
      `edlora.${fusion} > lora.${fusion}`,
      `after ${fusion} fusion ED-LoRA has more identity than LoRA`,
      of(`edlora.${fusion}`),
      of(`lora.${fusion}`),
    );
  }
  return all;
}

/** One honest sentence, from the numbers alone. */
function verdict(
  options: AblationOptions,
  comparisons: readonly Comparison[],
  headroom: AblationReport["headroom"],
): string {
  if (options.scale === "quick") {
    return "Mechanics only, no conclusion: two concepts and four prompts each " +
      "show that everything runs, not who wins.";
  }
  if (options.concepts.length < 2) {
    return "No conclusion: with one concept there is nothing to fuse.";
  }
  if (!headroom.enough) {
    return `Uninterpretable: the median concept gains ${
      (headroom.median ?? 0).toFixed(3)
    } image alignment over the class word, less than the ${headroom.required} ` +
      "that would have to be there to be lost.";
  }
  const parts = comparisons.filter(({ score }) => score === "image").map((c) =>
    `${c.claim}: ${c.verdict} (${c.mean! >= 0 ? "+" : "−"}${
      Math.abs(c.mean!).toFixed(3)
    }, 95 % interval ${(c.low ?? NaN).toFixed(3)} to ${
      (c.high ?? NaN).toFixed(3)
    }, ${c.wins} of ${c.n} concepts)`
  );
  const few = options.concepts.length < 12
    ? ` ${options.concepts.length} concepts are few: the intervals are what ` +
      "counts."
    : "";
  return `Image alignment. ${parts.join("; ")}.${few}`;
}

/** What can be read off the trained concepts. */
async function inspect(
  options: AblationOptions,
  plan: Plan,
): Promise<Pick<AblationReport, "capacity" | "distinguishability">> {
  const model = await loadModel(options.model);
  try {
    const n = plan.jobs.length;
    const { rank } = options.settings;
    const ratios = (tree: unknown): number[] => {
      const all = attentionSites(tree).map(({ inputs }) => n * rank / inputs);
      return [Math.min(...all), Math.max(...all)].map(rounded);
    };
    const distinguishability: AblationReport["distinguishability"] = {};
    for (const embedding of options.embeddings ?? EMBEDDINGS) {
      const before: Vector[][] = [], after: Vector[][] = [];
      for (const { identity } of plan.jobs) {
        const { piece, id } = plan.trains.get(
          nameOf(embedding, identity.name, options.seeds[0]),
        )!;
        const start = await startConcept(
          model,
          method(piece.method, piece.preset, piece.config),
          {
            name: piece.concept,
            classWord: piece.classWord,
            key: conceptKey(piece.seed, piece.concept),
            rank: piece.rank,
          },
        );
        before.push(await vectorsOf(start));
        const end = await loadConcept(store.concept(options.cache, id), model);
        after.push(await vectorsOf(end));
        disposeConcept(start);
        disposeConcept(end);
      }
      distinguishability[embedding] = {
        before: pairCosines(before),
        after: pairCosines(after),
      };
    }
    return {
      capacity: {
        rank,
        n,
        unet: ratios(model.unet.params),
        textEncoder: ratios(model.textEncoder.params),
      },
      distinguishability,
    };
  } finally {
    disposeModel(model);
  }
}

/** A concept's vectors, unit length: every token at every site. */
async function vectorsOf(concept: Concept): Promise<Vector[]> {
  const rows: Vector[] = [];
  for (const { vectors } of concept.tokens) {
    const [n, width] = vectors.shape;
    const values = await vectors.data() as Float32Array;
    for (let i = 0; i < n; i++) {
      const row = values.slice(i * width, (i + 1) * width);
      const norm = Math.hypot(...row);
      rows.push(row.map((value) => value / norm));
    }
  }
  return rows;
}

/** Cosines between pairs of concepts, of vectors in the same place. */
function pairCosines(
  concepts: readonly (readonly Vector[])[],
): { mean: number | null; max: number | null } {
  const pairs: number[] = [];
  for (let i = 0; i < concepts.length; i++) {
    for (let j = i + 1; j < concepts.length; j++) {
      pairs.push(
        mean(concepts[i].map((row, k) => cosine(row, concepts[j][k]))),
      );
    }
  }
  return pairs.length === 0
    ? { mean: null, max: null }
    : { mean: rounded(mean(pairs)), max: rounded(Math.max(...pairs)) };
}

/**
 * Pictures for a report: for some prompts of each concept the same noise in
 * every arm.
 *
 * @param options What was run.
 * @param perConcept How many prompts of each concept, from different groups.
 * @returns Names of pictures in the store by concept, prompt and arm.
 */
export async function ablationPictures(
  options: AblationOptions,
  perConcept = 2,
): Promise<
  {
    concept: string;
    text: string;
    pictures: { arm: string; id: string }[];
  }[]
> {
  const plan = await makePlan(options, await loadConceptArt());
  const seed = options.seeds[0];
  const result: {
    concept: string;
    text: string;
    pictures: { arm: string; id: string }[];
  }[] = [];
  for (const { identity, prompts } of plan.jobs) {
    const step = Math.max(1, Math.floor(prompts.length / perConcept));
    for (let i = 0; i < prompts.length && i / step < perConcept; i += step) {
      const pictures: { arm: string; id: string }[] = [];
      for (const cell of plan.cells) {
        if (cell.concept !== identity.name || cell.seed !== seed) continue;
        const piece = cell.samples[Math.floor(i / CHUNK)];
        const id = await imageId(piece, piece.shots[i % CHUNK]);
        pictures.push({ arm: cell.arm, id });
      }
      result.push({
        concept: identity.name,
        text: promptText(prompts[i], identity.name),
        pictures,
      });
    }
  }
  return result;
}
