/**
 * The lab trains, fuses, draws, composes, embeds and measures. Each call takes
 * specs and returns results, memoised by the hash of the spec: results in the
 * store are read, the others are computed by a runner.
 *
 * @module
 */
import type { BackendName } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import type { EvaluatorCheck } from "../evaluation/evaluator_check.ts";
import type { HeldOutError } from "../evaluation/heldout.ts";
import { exists, readJson, writeAtomic } from "../io/files.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import type { Art } from "../micro/art.ts";
import { loadConceptArt } from "../micro/concepts.ts";
import type { Folders } from "./run.ts";
import { inPlace, localPool, type Runner } from "./runner.ts";
import type {
  Ask,
  ComposeSpec,
  DrawSpec,
  EmbedSpec,
  EvaluatorSpec,
  FuseLog,
  FuseSpec,
  HeldOutSpec,
  LabSpec,
  ModelRef,
  PictureSet,
  PublishLog,
  PublishSpec,
  ReferenceSpec,
  TextSpec,
  TrainLog,
  TrainSpec,
} from "./specs.ts";
import {
  artHash,
  folderHash,
  imageIds,
  isDone,
  pathOf,
  readImage,
  readVectors,
  specId,
} from "./store.ts";

/** Parts of a model folder that are hashed. */
export const MODEL_PARTS: readonly string[] = [
  "tokenizer",
  "text_encoder",
  "unet",
  "vae",
  "scheduler",
];

/** Pictures per batch. */
const BATCH = 10;

/** The kind of work of a call. */
export type Stage =
  | "train"
  | "fuse"
  | "publish"
  | "draw"
  | "compose"
  | "embed"
  | "heldout";

/** Hashes of models and data, which specs contain. */
export interface LabHashes {
  /** Of the base model. */
  readonly model: string;
  /** Of the evaluation CLIP; empty where there is none. */
  readonly clip: string;
  /** Of the art. */
  readonly art: string;
  /** Of condition networks by name. */
  readonly networks: Readonly<Record<string, string>>;
}

/** The progress of a call. */
export interface LabRecord {
  /** The call. */
  readonly stage: Stage;
  /** Units done, those found in the store included. */
  readonly done: number;
  /** Units of this call. */
  readonly total: number;
  /** Unit of `done` and `total`. */
  readonly unit: string;
}

/** How a lab is opened. */
export interface LabOptions {
  /** Folder of the base model. */
  readonly model: string;
  /** Folder of the evaluation CLIP; absent where nothing is embedded. */
  readonly clip?: string;
  /** Folder of the store. */
  readonly store: string;
  /** Folders of condition networks by name. */
  readonly networks?: Readonly<Record<string, string>>;
  /** The backend in use, for workers. */
  readonly backend: BackendName;
  /** Local workers; 0: in place on the current backend. */
  readonly workers: number;
  /**
   * The runner, or a function that opens one for a lab with these hashes.
   *
   * @default in place, or local workers
   */
  readonly runner?: Runner | ((hashes: LabHashes) => Promise<Runner>);
  /** Called with progress. */
  readonly onRecord?: (record: LabRecord) => void;
}

/** A trained concept. */
export interface Trained extends TrainLog {
  /** The base with this concept. */
  readonly model: Extract<ModelRef, { type: "concept" }>;
}

/** A fused model. */
export interface Fused extends FuseLog {
  /** The model. */
  readonly model: Extract<ModelRef, { type: "fused" }>;
}

/** A published concept. */
export interface PublishedFile extends PublishLog {
  /** Its name in the store. */
  readonly id: string;
}

/** An embedded picture: unit vectors. */
export interface Embedded {
  /** Of the whole picture. */
  readonly whole: ClipVector;
  /** Of the windows in each of its regions. */
  readonly regions: readonly (readonly ClipVector[])[];
}

/** Embedded pictures of a concept: unit vectors. */
export interface References {
  /** Of whole pictures. */
  readonly whole: readonly ClipVector[];
  /** Of pictures cut to their masks. */
  readonly masked: readonly ClipVector[];
}

/** A lab; every call returns its results in the order of its specs. */
export interface Lab extends Disposable {
  /** Folders of models and store. */
  readonly folders: Folders;
  /** Hashes of base model, evaluation CLIP, art and condition networks. */
  readonly hashes: LabHashes;
  /** The sprites of the embedded model's scenes. */
  readonly art: Art;
  /** Seconds that each kind of call took so far. */
  readonly seconds: Readonly<Record<string, number>>;
  /** Trains concepts. */
  train(asks: readonly Ask<TrainSpec>[]): Promise<Trained[]>;
  /** Fuses concepts, a model per ask. */
  fuse(asks: readonly Ask<FuseSpec>[]): Promise<Fused[]>;
  /** Measures concepts and writes the files that their clients would send. */
  publish(asks: readonly Ask<PublishSpec>[]): Promise<PublishedFile[]>;
  /** Draws pictures; gives their names in the store. */
  draw(asks: readonly Ask<DrawSpec>[]): Promise<string[][]>;
  /** Draws layouts; gives the pictures' names in the store. */
  compose(asks: readonly Ask<ComposeSpec>[]): Promise<string[][]>;
  /** Embeds pictures of the store. */
  embed(asks: readonly Ask<EmbedSpec>[]): Promise<Embedded[][]>;
  /** Embeds pictures of concepts. */
  references(sets: readonly PictureSet[]): Promise<References[]>;
  /** Embeds lists of texts. */
  texts(lists: readonly (readonly string[])[]): Promise<ClipVector[][]>;
  /** Measures held-out denoising errors. */
  heldout(asks: readonly Ask<HeldOutSpec>[]): Promise<HeldOutError[]>;
  /** Tests the evaluation CLIP. */
  testEvaluator(ask: Ask<EvaluatorSpec>): Promise<EvaluatorCheck>;
  /** Puts a rendered picture into the store, under the hash of what it shows. */
  put(what: unknown, render: () => Pixels): Promise<string>;
  /** A picture of the store. */
  picture(id: string): Promise<Pixels>;
}

/**
 * Hashes of what a lab works with.
 *
 * @param folders Where it is.
 * @param art Loaded art.
 * @throws If a folder lacks a part.
 */
export async function labHashes(
  { model, clip, networks = {} }: Folders,
  art: Art,
): Promise<LabHashes> {
  return {
    model: await folderHash(model, MODEL_PARTS),
    clip: clip ? await folderHash(clip) : "",
    art: await artHash(art),
    networks: Object.fromEntries(
      await Promise.all(
        Object.entries(networks).map(async (
          [name, folder],
        ) => [name, await folderHash(folder)] as const),
      ),
    ),
  };
}

/** Results of specs, each worked on once and kept in a store. */
class Memo {
  /** Seconds that each kind of call took so far. */
  readonly seconds: Record<string, number> = {};
  readonly #running = new Map<string, Promise<void>>();

  constructor(
    readonly store: string,
    readonly runner: Runner,
    readonly onRecord: LabOptions["onRecord"],
  ) {}

  /**
   * Computes the specs that the store lacks, then reads all results.
   *
   * @param stage The call, for progress.
   * @param unit Unit of the progress.
   * @param specs The specs.
   * @param read Reads a result; `id` is its name in the store.
   * @param size Units of a spec. @default 1
   */
  async results<S extends LabSpec, R>(
    stage: Stage,
    unit: string,
    specs: readonly S[],
    read: (spec: S, id: string) => Promise<R>,
    size: (spec: S) => number = () => 1,
  ): Promise<R[]> {
    const before = performance.now();
    const total = specs.reduce((sum, spec) => sum + size(spec), 0);
    const shares = specs.map(() => 0);
    const report = (i: number, share: number) => {
      shares[i] = share * size(specs[i]);
      const done = Math.floor(shares.reduce((sum, one) => sum + one, 0));
      this.onRecord?.({ stage, unit, total, done });
    };
    const ids = await Promise.all(specs.map(specId));
    const there = await Promise.all(
      specs.map((spec) => isDone(this.store, spec)),
    );
    specs.forEach((spec, i) => shares[i] = there[i] ? size(spec) : 0);
    const first = Math.floor(shares.reduce((sum, one) => sum + one, 0));
    this.onRecord?.({ stage, unit, total, done: first });
    await Promise.all(specs.map(async (spec, i) => {
      if (there[i]) return;
      const job = this.#running.get(ids[i]) ??
        this.runner.run(
          spec,
          (done, all) => report(i, Math.min(1, done / all)),
        );
      this.#running.set(ids[i], job);
      await job;
      report(i, 1);
    }));
    const taken = (performance.now() - before) / 1000;
    this.seconds[stage] = (this.seconds[stage] ?? 0) + taken;
    return await Promise.all(specs.map((spec, i) => read(spec, ids[i])));
  }

  /** The same for lists cut into batches; joins the results of each list. */
  async batched<S extends LabSpec, R>(
    stage: Stage,
    lists: readonly (readonly S[])[],
    read: (spec: S, id: string) => Promise<readonly R[]>,
    size: (spec: S) => number,
  ): Promise<R[][]> {
    const found = await this.results(stage, "image", lists.flat(), read, size);
    let next = 0;
    return lists.map((own) => own.flatMap(() => found[next++]));
  }
}

/**
 * Opens a lab.
 *
 * @param options Folders, where the work runs.
 * @throws If a folder lacks a part, or the base model is not valid.
 */
export async function openLab(options: LabOptions): Promise<Lab> {
  const { model, clip, store, networks, backend, workers, runner: given } =
    options;
  const folders: Folders = { model, clip, store, networks };
  // Workers load while files are hashed here.
  const pool = given || workers === 0
    ? undefined
    : localPool(folders, backend, workers);
  pool?.catch(() => {});
  let art: Art, hashes: LabHashes;
  try {
    art = await loadConceptArt();
    hashes = await labHashes(folders, art);
  } catch (error) {
    pool?.then((runner) => runner[Symbol.dispose](), () => {});
    throw error;
  }
  const runner = typeof given === "function"
    ? await given(hashes)
    : given ?? await (pool ?? inPlace(folders, art));
  const memo = new Memo(store, runner, options.onRecord);
  return {
    ...{ folders, hashes, art, seconds: memo.seconds },
    ...callsOf(memo, hashes),
    async put(what, render) {
      const id = await specId({ kind: "rendered", art: hashes.art, what });
      const path = pathOf.image(store, id);
      if (!await exists(path)) await writeAtomic(path, encodePng(render()));
      return id;
    },
    picture: (id) => readImage(store, id),
    [Symbol.dispose]: () => runner[Symbol.dispose](),
  };
}

/** The calls of a lab. */
type LabCalls = Omit<
  Lab,
  "folders" | "hashes" | "art" | "seconds" | "put" | "picture" | symbol
>;

/**
 * The calls of a lab: they make specs of asks and read results from the store.
 */
function callsOf(memo: Memo, hashes: LabHashes): LabCalls {
  const { store } = memo;
  const { model: base, clip: clipHash, art: artId } = hashes;
  const vectors = (id: string) => readVectors(pathOf.embedding(store, id));
  return {
    train: (asks) =>
      memo.results(
        "train",
        "step",
        asks.map((ask): TrainSpec => (
          { kind: "train", base, art: artId, ...ask }
        )),
        async (_, id) => ({
          ...await readJson<TrainLog>(pathOf.trainLog(store, id)),
          model: { type: "concept", id },
        }),
        ({ config }) => config.steps,
      ),
    fuse: (asks) =>
      memo.results(
        "fuse",
        "model",
        asks.map((ask): FuseSpec => ({ kind: "fuse", base, ...ask })),
        async (_, id) => ({
          ...await readJson<FuseLog>(pathOf.fuseLog(store, id)),
          model: { type: "fused", id },
        }),
      ),
    publish: (asks) =>
      memo.results(
        "publish",
        "concept",
        asks.map((ask): PublishSpec => ({ kind: "publish", base, ...ask })),
        async (_, id) => ({
          ...await readJson<PublishLog>(pathOf.publishLog(store, id)),
          id,
        }),
      ),
    draw: (asks) =>
      memo.batched(
        "draw",
        asks.map(({ samples, ...ask }) =>
          batches(samples).map((samples): DrawSpec => (
            { kind: "draw", base, ...ask, samples }
          ))
        ),
        imageIds,
        ({ samples }) => samples.length,
      ),
    compose: (asks) =>
      memo.results(
        "compose",
        "image",
        asks.map((ask): ComposeSpec => ({
          kind: "compose",
          ...{ base, art: artId },
          // Layouts without conditions do not depend on networks.
          networks: ask.layout.conditions?.length ? hashes.networks : {},
          ...ask,
        })),
        imageIds,
        ({ noise }) => noise.length,
      ),
    embed: (asks) =>
      memo.batched(
        "embed",
        asks.map((ask) =>
          batches(ask.images).map((images, i): EmbedSpec => ({
            kind: "embed",
            clip: clipHash,
            ...ask,
            images,
            regions: ask.regions.slice(i * BATCH, i * BATCH + images.length),
          }))
        ),
        async ({ images, regions }, id) => {
          const lists = await vectors(id);
          return images.map((_, i): Embedded => ({
            whole: lists.get("whole")![i],
            regions: regions[i].map((_, r) => lists.get(`${i}.${r}`)!),
          }));
        },
        ({ images }) => images.length,
      ),
    references: (sets) =>
      memo.results(
        "embed",
        "set",
        sets.map((pictures): ReferenceSpec => (
          { kind: "references", clip: clipHash, art: artId, pictures }
        )),
        async (_, id) => {
          const lists = await vectors(id);
          return { whole: lists.get("whole")!, masked: lists.get("masked")! };
        },
      ),
    texts: (lists) =>
      memo.results(
        "embed",
        "list",
        lists.map((texts): TextSpec => (
          { kind: "texts", clip: clipHash, texts }
        )),
        async (_, id) => (await vectors(id)).get("texts")!,
      ),
    heldout: (asks) =>
      memo.results(
        "heldout",
        "model",
        asks.map((ask): HeldOutSpec => (
          { kind: "heldout", base, art: artId, ...ask }
        )),
        (_, id) => readJson<HeldOutError>(pathOf.heldout(store, id)),
      ),
    async testEvaluator(ask) {
      const spec: EvaluatorSpec = {
        kind: "evaluator",
        ...{ clip: clipHash, art: artId },
        ...ask,
      };
      const [check] = await memo.results(
        "embed",
        "evaluator",
        [spec],
        (_, id) => readJson<EvaluatorCheck>(pathOf.evaluator(store, id)),
      );
      return check;
    },
  };
}

/** Splits a list into batches. */
function batches<T>(list: readonly T[]): T[][] {
  return Array.from(
    { length: Math.ceil(list.length / BATCH) },
    (_, i) => list.slice(i * BATCH, (i + 1) * BATCH),
  );
}

/**
 * Opens a lab, uses it, and closes it.
 *
 * @param options Folders, where the work runs.
 * @param use What is done with the lab.
 * @returns What `use` gives.
 * @throws If the model's or the CLIP's files changed meanwhile.
 */
export async function withLab<T>(
  options: LabOptions,
  use: (lab: Lab) => Promise<T>,
): Promise<T> {
  using lab = await openLab(options);
  const result = await use(lab);
  if (
    await folderHash(options.model, MODEL_PARTS) !== lab.hashes.model ||
    (options.clip && await folderHash(options.clip) !== lab.hashes.clip)
  ) {
    throw cannot(
      "finish an experiment",
      "the model and the CLIP that it began with",
      "changed files",
    );
  }
  return result;
}
