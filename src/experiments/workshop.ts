/**
 * Where pieces of work are done: the base model, the evaluation CLIP, the art
 * and the store, and one function a kind of piece. The same code runs in a
 * worker and in place.
 *
 * @module
 */
import { BACKENDS } from "../core/backend.ts";
import { finish } from "../core/finish.ts";
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { leaves, type TreeLike, updateAt } from "../core/tree.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { loadConcept, saveConcept } from "../formats/concept_file.ts";
import { encodeData, type Example } from "../customize/dataset.ts";
import { method, startConcept } from "../customize/methods.ts";
import { customize } from "../customize/train.ts";
import { generate } from "../diffusion/pipeline.ts";
import {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  loadClip,
} from "../evaluation/clip.ts";
import { squareAround, windows } from "../evaluation/crops.ts";
import { crop } from "../evaluation/preprocess.ts";
import { fuse } from "../fusion/gradient.ts";
import { weightFusion } from "../fusion/weight.ts";
import { exists, readJson, writeAtomic, writeJson } from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import { disposeModel, loadModel, type Model } from "../models/model.ts";
import type { Art } from "../micro/art.ts";
import {
  type ConceptImage,
  conceptImages,
  loadConceptArt,
  otherDesignImage,
  PLACEHOLDER,
  REFERENCE_IMAGES,
} from "../micro/concepts.ts";
import { boxMask } from "../micro/in_domain.ts";
import {
  conceptKey,
  type ConceptLog,
  type DrawnPicture,
  type EmbedPiece,
  type FusedLayer,
  type FusedLog,
  type FusePiece,
  type ModelRef,
  type Piece,
  type ReferencePiece,
  type SamplePiece,
  type Shot,
  shotKey,
  store,
  type Tell,
  type TrainPiece,
  type ViewsPiece,
} from "./pieces.ts";
import { isComposed, runCompose, runViews } from "./compose.ts";
import { embeddingsTensor, pieceId } from "./store.ts";

/** What a workshop is opened with; plain data. */
export interface WorkshopInit {
  /** Folder of the base model. */
  readonly model: string;
  /** Folder of the evaluation CLIP; absent where nothing is scored. */
  readonly clip?: string;
  /** Folder of finished pieces. */
  readonly cache: string;
  /** Folders of condition networks, by the names that layouts use. */
  readonly networks?: Readonly<Record<string, string>>;
}

/** How far a piece is: from 0 to `total`. */
export interface PieceProgress {
  readonly piece: string;
  readonly done: number;
  readonly total: number;
}

/** An opened workshop. */
export interface Workshop extends Disposable {
  /** The base model. */
  readonly base: Model;
  /**
   * Does a piece, unless the store has it.
   *
   * @param piece The piece.
   * @param tell Called as it goes.
   */
  run(piece: Piece, tell?: Tell): Promise<void>;
}

/** Look-alike pictures that stand for a design in the gallery. */
export const LOOKALIKE_IMAGES = 10;

/**
 * The pictures behind a reference piece.
 *
 * @param art Loaded art.
 * @param concept Proper name of the identity.
 * @param design Style word of a look-alike.
 */
export function referenceImages(
  art: Art,
  concept: string,
  design?: string,
): ConceptImage[] {
  return design === undefined
    ? conceptImages(concept, "reference", art)
    : Array.from(
      { length: LOOKALIKE_IMAGES },
      (_, i) => otherDesignImage(concept, design, i, art),
    );
}

/** An identity's pictures as training examples. */
export function trainExamples(images: readonly ConceptImage[]): Example[] {
  return images.map(({ image, mask, scene, caption }) => ({
    pixels: pixelsOf(image, scene.side),
    captions: [caption.replaceAll(PLACEHOLDER, "{}")],
    mask: {
      width: scene.side,
      height: scene.side,
      data: Array.from(mask, (alpha) => alpha > 0.5 ? 1 : 0),
    },
  }));
}

/**
 * Pictures of the store as training examples.
 *
 * @param cache Folder of the store.
 * @param pictures Which.
 */
export async function drawnExamples(
  cache: string,
  pictures: readonly DrawnPicture[],
): Promise<Example[]> {
  const images = await drawnPixels(cache, pictures);
  return pictures.map(({ caption, box }, i) => {
    const { width: side } = images[i];
    return {
      pixels: images[i],
      captions: [caption.replaceAll(PLACEHOLDER, "{}")],
      mask: { width: side, height: side, data: [...boxMask(box, side)] },
    };
  });
}

/**
 * Pictures of the store that show a concept.
 *
 * @param cache Folder of the store.
 * @param pictures Which.
 */
export async function drawnPixels(
  cache: string,
  pictures: readonly DrawnPicture[],
): Promise<Pixels[]> {
  const images: Pixels[] = [];
  for (const { image } of pictures) {
    images.push(decodePng(await Deno.readFile(store.image(cache, image))));
  }
  return images;
}

/** RGB bytes of a square as a picture. */
export function pixelsOf(data: Uint8Array, side: number): Pixels {
  return { width: side, height: side, channels: 3, data };
}

/**
 * The name of a picture in the store.
 *
 * @param piece The piece that draws it.
 * @param shot Which of its pictures.
 */
export async function imageId(
  piece: Pick<SamplePiece, "base" | "model" | "sampling">,
  shot: Shot,
): Promise<string> {
  const { base, model, sampling } = piece;
  return await pieceId({ kind: "image", base, model, sampling, shot });
}

/**
 * Whether the store has all results of a piece.
 *
 * @param cache Its folder.
 * @param piece The piece.
 */
export async function isDone(cache: string, piece: Piece): Promise<boolean> {
  if (piece.kind === "sample") {
    for (const shot of piece.shots) {
      const id = await imageId(piece, shot);
      if (!await exists(store.image(cache, id))) return false;
    }
    return true;
  }
  if (piece.kind === "compose") return await isComposed(cache, piece);
  const id = await pieceId(piece);
  switch (piece.kind) {
    case "train":
      return await exists(store.concept(cache, id)) &&
        await exists(store.conceptLog(cache, id));
    case "fuse":
      return await exists(store.fused(cache, id)) &&
        await exists(store.fusedLog(cache, id));
    default:
      return await exists(store.embedding(cache, id));
  }
}

/**
 * Opens a workshop on the current tfjs backend.
 *
 * @param init Folders.
 * @throws If a model is missing, truncated or misshapen.
 */
export async function openWorkshop(init: WorkshopInit): Promise<Workshop> {
  const { cache } = init;
  const base = await loadModel(init.model);
  let clip: ClipModel | undefined;
  let art: Art | undefined;
  const needClip = async (): Promise<ClipModel> => {
    if (!init.clip) throw cannot("embed pictures", "a CLIP folder", "none");
    return clip ??= await loadClip(init.clip);
  };
  const needArt = async (): Promise<Art> => art ??= await loadConceptArt();
  return {
    base,
    async run(piece, tell = () => {}) {
      if (await isDone(cache, piece)) return;
      switch (piece.kind) {
        case "train":
          return await runTrain(base, await needArt(), cache, piece, tell);
        case "fuse":
          return await runFuse(base, cache, piece, tell);
        case "sample":
          return await runSample(base, cache, piece, tell);
        case "embed":
          return await runEmbed(await needClip(), cache, piece, tell);
        case "reference":
          return await runReference(
            await needClip(),
            await needArt(),
            cache,
            piece,
          );
        case "compose":
          return await runCompose(
            (ref, use) => withModel(base, cache, ref, use),
            await needArt(),
            cache,
            init.networks ?? {},
            piece,
            tell,
          );
        case "views":
          return await runViews(await needClip(), cache, piece, tell);
      }
    },
    [Symbol.dispose]() {
      disposeModel(base);
      if (clip) disposeClip(clip);
    },
  };
}

async function runTrain(
  base: Model,
  art: Art,
  cache: string,
  piece: TrainPiece,
  tell: Tell,
): Promise<void> {
  const id = await pieceId(piece);
  const examples = piece.pictures
    ? await drawnExamples(cache, piece.pictures)
    : trainExamples(conceptImages(piece.concept, "train", art));
  const data = await encodeData(base, examples, { batch: 12 });
  const how = method(piece.method, piece.preset, piece.config);
  const started = await startConcept(base, how, {
    name: piece.concept,
    classWord: piece.classWord,
    key: conceptKey(piece.seed, piece.concept),
    rank: piece.rank,
  });
  const losses: number[] = [];
  const before = performance.now();
  let trained: Concept | undefined;
  const state = store.trainState(cache, id, tf.getBackend());
  await Deno.mkdir(state.slice(0, state.lastIndexOf("/")), {
    recursive: true,
  });
  try {
    trained = await customize(base, started, data, how.train, {
      checkpoint: state,
      every: 100,
      onRecord({ step, total, loss }) {
        losses.push(loss);
        tell(step + 1, total);
      },
    });
    const log: ConceptLog = {
      concept: piece.concept,
      method: piece.method,
      steps: how.train.steps,
      losses: tenths(losses),
      seconds: (performance.now() - before) / 1000,
      phrase: started.phrase,
    };
    await writeJson(store.conceptLog(cache, id), log);
    await saveConcept(store.concept(cache, id), trained, base);
    // Also what a run on another backend has left of it.
    for (const backend of BACKENDS) {
      await Deno.remove(store.trainState(cache, id, backend)).catch(() => {});
    }
  } finally {
    disposeConcept(started);
    if (trained) disposeConcept(trained);
  }
}

/** Means of ten parts of a run. */
function tenths(values: readonly number[]): number[] {
  const parts = Math.min(10, values.length);
  return Array.from({ length: parts }, (_, i) => {
    const part = values.slice(
      Math.floor(i * values.length / parts),
      Math.floor((i + 1) * values.length / parts),
    );
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
}

async function runFuse(
  base: Model,
  cache: string,
  piece: FusePiece,
  tell: Tell,
): Promise<void> {
  const id = await pieceId(piece);
  const concepts: Concept[] = [];
  const layers: FusedLayer[] = [];
  let fused: Model | undefined;
  try {
    for (const one of piece.concepts) {
      concepts.push(await loadConcept(store.concept(cache, one), base));
    }
    const before = performance.now();
    const { how } = piece;
    if (how.type === "weight") {
      fused = weightFusion(base, concepts, { lambda: how.lambda });
    } else {
      const { settings } = how;
      const run = fuse(base, concepts, {
        ...settings,
        key: shotKey([piece.seed, "fusion"]),
      });
      fused = await finish(run, (record) => {
        if (record.type !== "layer") return;
        tell(record.index, record.total);
        layers.push({
          stage: record.stage,
          layer: record.layer,
          rows: record.rows,
          features: record.features,
          before: record.lossBefore,
          after: record.lossAfter,
          average: record.lossWeightFusion,
        });
      });
    }
    const log: FusedLog = {
      concepts: concepts.map(({ name }) => name),
      seconds: (performance.now() - before) / 1000,
      layers,
    };
    await writeJson(store.fusedLog(cache, id), log);
    await saveFused(store.fused(cache, id), base, fused);
  } finally {
    concepts.forEach(disposeConcept);
    if (fused) disposeModel(fused, base);
  }
}

const COMPONENTS = ["textEncoder", "unet"] as const;

/** Writes what a fused model changes in its base, exactly and atomically. */
async function saveFused(
  path: string,
  base: Model,
  fused: Model,
): Promise<void> {
  const tensors: [string, RawTensor][] = [];
  const add = async (name: string, tensor: tf.Tensor) => {
    const data = encodeFloat(await tensor.data() as Float32Array, "F32");
    tensors.push([name, { dtype: "F32", shape: [...tensor.shape], data }]);
  };
  for (const component of COMPONENTS) {
    const old = new Map(leaves(base[component].params as TreeLike));
    for (const [name, leaf] of leaves(fused[component].params as TreeLike)) {
      if (old.get(name) !== leaf) await add(`${component}.${name}`, leaf);
    }
  }
  if (!fused.added) throw cannot("save a fused model", "tokens", "none");
  await add("added", fused.added.vectors);
  await writeSafetensors(path, tensors, {
    names: JSON.stringify(fused.added.names),
    sites: JSON.stringify(fused.added.sites),
  });
}

/** Reads a fused model back; shares with the base what is not changed. */
async function loadFused(path: string, base: Model): Promise<Model> {
  const file = await openSafetensors(path);
  try {
    const read = async (name: string): Promise<tf.Tensor> => {
      const raw = await file.read(name);
      return tf.tensor(toFloat32(raw), [...raw.shape]);
    };
    let model = base;
    for (const component of COMPONENTS) {
      const changed = new Map<string, tf.Tensor>();
      for (const name of file.entries.keys()) {
        if (!name.startsWith(`${component}.`)) continue;
        changed.set(name.slice(component.length + 1), await read(name));
      }
      const params = updateAt(
        base[component].params as TreeLike,
        changed.keys(),
        (_, name) => changed.get(name),
      );
      model = { ...model, [component]: { ...base[component], params } };
    }
    const names: string[] = JSON.parse(file.metadata.names);
    return {
      ...model,
      tokenizer: base.tokenizer.withAddedTokens(names),
      added: {
        names,
        vectors: await read("added") as tf.Tensor2D,
        sites: JSON.parse(file.metadata.sites),
      },
    };
  } finally {
    file.close();
  }
}

/**
 * Runs a function with a model of the store, and frees what is not the base's.
 *
 * @param base The base model.
 * @param cache Folder of the store.
 * @param ref Which model.
 * @param fn What is done with it.
 */
export async function withModel<T>(
  base: Model,
  cache: string,
  ref: ModelRef,
  fn: (model: Model) => Promise<T>,
): Promise<T> {
  switch (ref.type) {
    case "base":
      return await fn(base);
    case "concept": {
      const concept = await loadConcept(store.concept(cache, ref.id), base);
      const { alpha = 1 } = ref;
      const model = attachConcept(base, concept, { alpha });
      try {
        return await fn(model);
      } finally {
        releaseTokens(model, base);
        disposeConcept(concept);
      }
    }
    case "fused": {
      const model = await loadFused(store.fused(cache, ref.id), base);
      try {
        return await fn(model);
      } finally {
        disposeModel(model, base);
      }
    }
  }
}

async function runSample(
  base: Model,
  cache: string,
  piece: SamplePiece,
  tell: Tell,
): Promise<void> {
  const { shots, sampling } = piece;
  const images = await withModel(
    base,
    cache,
    piece.model,
    (model) =>
      generate(model, {
        ...sampling,
        prompts: shots.map(({ text }) => text),
        key: shots.map(({ noise }) => shotKey(noise)),
        batch: shots.length,
      }),
  );
  for (const [i, shot] of shots.entries()) {
    const id = await imageId(piece, shot);
    await writeAtomic(store.image(cache, id), encodePng(images[i]));
  }
  tell(shots.length, shots.length);
}

async function runEmbed(
  clip: ClipModel,
  cache: string,
  piece: EmbedPiece,
  tell: Tell,
): Promise<void> {
  const images: Pixels[] = [];
  for (const id of piece.images) {
    images.push(decodePng(await Deno.readFile(store.image(cache, id))));
  }
  const tensors: [string, RawTensor][] = [
    ["whole", embeddingsTensor(await embedImages(clip, images))],
  ];
  for (const [i, image] of images.entries()) {
    const { width, height } = image;
    const share = piece.regions[i] ?? { x: 0, y: 0, width: 1, height: 1 };
    const region = {
      x: Math.round(share.x * width),
      y: Math.round(share.y * height),
      width: Math.round(share.width * width),
      height: Math.round(share.height * height),
    };
    const views = windows(width, height, { region })
      .map((box) => crop(image, box));
    tensors.push([
      `views.${i}`,
      embeddingsTensor(await embedImages(clip, views)),
    ]);
    tell(i + 1, images.length);
  }
  await writeSafetensors(
    store.embedding(cache, await pieceId(piece)),
    tensors,
  );
}

async function runReference(
  clip: ClipModel,
  art: Art,
  cache: string,
  piece: ReferencePiece,
): Promise<void> {
  const images = piece.pictures
    ? (await drawnExamples(cache, piece.pictures)).map(({ pixels, mask }) => ({
      pixels,
      mask: Float32Array.from(mask!.data),
    }))
    : referenceImages(art, piece.concept, piece.design).map(
      ({ image, scene, mask }) => ({
        pixels: pixelsOf(image, scene.side),
        mask,
      }),
    );
  const whole = images.map(({ pixels }) => pixels);
  const cut = images.map(({ pixels, mask }) =>
    crop(pixels, squareAround(mask, pixels.width))
  );
  await writeSafetensors(
    store.embedding(cache, await pieceId(piece)),
    [
      ["whole", embeddingsTensor(await embedImages(clip, whole))],
      ["masked", embeddingsTensor(await embedImages(clip, cut))],
    ],
  );
}

/**
 * Reads embeddings of the store.
 *
 * @param cache Folder of the store.
 * @param piece The piece that made them.
 * @returns Lists of unit vectors by name.
 */
export async function readEmbeddings(
  cache: string,
  piece: EmbedPiece | ReferencePiece | ViewsPiece,
): Promise<Map<string, ClipVector[]>> {
  const path = store.embedding(cache, await pieceId(piece));
  const file = await openSafetensors(path);
  try {
    const result = new Map<string, ClipVector[]>();
    for (const name of file.entries.keys()) {
      const raw = await file.read(name);
      const values = toFloat32(raw);
      const [n, width] = raw.shape;
      result.set(
        name,
        Array.from(
          { length: n },
          (_, i) => values.slice(i * width, (i + 1) * width),
        ),
      );
    }
    return result;
  } finally {
    file.close();
  }
}

/** Reads a trained concept's log. */
export async function readConceptLog(
  cache: string,
  id: string,
): Promise<ConceptLog> {
  return await readJson<ConceptLog>(store.conceptLog(cache, id));
}

/** Reads a fused model's log. */
export async function readFusedLog(
  cache: string,
  id: string,
): Promise<FusedLog> {
  return await readJson<FusedLog>(store.fusedLog(cache, id));
}

/** Number of reference pictures of an identity or a look-alike. */
export function referenceCount(design?: string): number {
  return design === undefined ? REFERENCE_IMAGES : LOOKALIKE_IMAGES;
}
