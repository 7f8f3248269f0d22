/**
 * Works on specs: one function per kind. Results go to the store. The same code
 * runs in a worker and in the calling thread.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { BACKENDS } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { finish } from "../core/finish.ts";
import { machine } from "../core/platform/machine.ts";
import { fold, key } from "../core/random.ts";
import { type Concept, disposeConcept } from "../customize/concept.ts";
import {
  encodeData,
  type Example,
  type TrainData,
} from "../customize/dataset.ts";
import { fillCaption } from "../customize/captions.ts";
import { joinData, startJoint } from "../customize/joint.ts";
import { type Method, method, startConcept } from "../customize/methods.ts";
import { customize } from "../customize/train.ts";
import { generate } from "../diffusion/pipeline.ts";
import {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "../evaluation/clip.ts";
import { squareAround, windows } from "../evaluation/crops.ts";
import { orNull } from "../evaluation/compare.ts";
import { checkEvaluator } from "../evaluation/evaluator_check.ts";
import { heldOutError } from "../evaluation/heldout.ts";
import { crop, type PixelBox, resize } from "../evaluation/preprocess.ts";
import { loadConcept, saveConcept } from "../formats/concept_file.ts";
import {
  type ConceptStatistics,
  conceptStatistics,
} from "../fusion/features.ts";
import { fuse } from "../fusion/gradient.ts";
import { iteris } from "../fusion/iteris.ts";
import { mergeConcepts } from "../fusion/mergers.ts";
import { weightFusion } from "../fusion/weight.ts";
import { writeAtomic, writeJson } from "../io/files.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import type { Art } from "../micro/art.ts";
import {
  conceptImages,
  loadConceptArt,
  otherDesignImage,
  PLACEHOLDER,
} from "../micro/concepts.ts";
import { evaluatorSet } from "../micro/evaluator_set.ts";
import { boxMask } from "../micro/in_domain.ts";
import { disposeModel, loadModel, type Model } from "../models/model.ts";
import { compose } from "./compose.ts";
import { saveFused, withModel } from "./model_ref.ts";
import { publish, readPublished } from "./published.ts";
import {
  conceptKey,
  type EmbedSpec,
  type EvaluatorSpec,
  type FusedLayer,
  type FuseLog,
  type FuseSpec,
  type HeldOutSpec,
  type LabSpec,
  noiseKey,
  ownKey,
  type OwnPictures,
  type PictureSet,
  type PublishLog,
  type PublishSpec,
  type ReferenceSpec,
  type TrainLog,
  type TrainSpec,
} from "./specs.ts";
import {
  canonicalJson,
  imageIds,
  isDone,
  pathOf,
  readImage,
  specId,
  writeVectors,
} from "./store.ts";

/** Where models and results are; plain data. */
export interface Folders {
  /** Folder of the base model. */
  readonly model: string;
  /** Folder of the evaluation CLIP; absent where nothing is scored. */
  readonly clip?: string;
  /** Folder of the store. */
  readonly store: string;
  /** Folders of condition networks, by the names that layouts use. */
  readonly networks?: Readonly<Record<string, string>>;
}

/** Reports the progress of a spec. */
export type Tell = (done: number, total: number) => void;

/** Loaded models with which specs are computed. */
export interface Bench extends Disposable {
  /**
   * Computes a spec, unless the store has its result.
   *
   * @param spec The spec.
   * @param tell Called as it goes.
   */
  run(spec: LabSpec, tell?: Tell): Promise<void>;
}

/** Models, store and data for computing specs. */
interface Open {
  readonly base: Model;
  readonly store: string;
  readonly networks: Readonly<Record<string, string>>;
  readonly clip: () => Promise<ClipModel>;
  readonly art: () => Promise<Art>;
  /** Pictures of a concept as the model encodes them. */
  readonly encoded: (set: PictureSet | OwnPictures) => Promise<TrainData>;
}

/**
 * Opens models on the current tfjs backend.
 *
 * @param folders Where they are; the CLIP is read when needed.
 * @param loadedArt Loaded art. @default read when needed
 * @throws If the base model is missing, truncated or misshapen.
 */
export async function openBench(
  folders: Folders,
  loadedArt?: Art,
): Promise<Bench> {
  const { store, networks = {} } = folders;
  const base = await loadModel(folders.model);
  let clip: ClipModel | undefined;
  let art = loadedArt;
  // Cached as plain numbers, as all models of an arm are measured on the same
  // pictures.
  const encoded = new Map<string, TrainData>();
  const open: Open = {
    base,
    store,
    networks,
    async clip() {
      if (!folders.clip) throw cannot("embed", "a CLIP folder", "none");
      return clip ??= await loadClip(folders.clip);
    },
    async art() {
      return art ??= await loadConceptArt();
    },
    async encoded(set) {
      const name = canonicalJson(set);
      const data = encoded.get(name) ??
        await encodeData(
          base,
          await examplesOf(open, set),
          // As `deno task train` encodes them.
          set.of === "own" ? { flips: set.flips } : { batch: 12 },
        );
      encoded.set(name, data);
      return data;
    },
  };
  return {
    async run(spec, tell = () => {}) {
      if (!await isDone(store, spec)) await work(open, spec, tell);
    },
    [Symbol.dispose]() {
      disposeModel(base);
      if (clip) disposeClip(clip);
    },
  };
}

async function work(open: Open, spec: LabSpec, tell: Tell): Promise<void> {
  switch (spec.kind) {
    case "train":
      return await train(open, spec, tell);
    case "fuse":
      return await fuseConcepts(open, spec, tell);
    case "publish":
      return await publishConcept(open, spec, tell);
    case "draw": {
      const { samples, sampling } = spec;
      const images = await withModel(
        open.base,
        open.store,
        spec.model,
        (m) =>
          generate(m, {
            ...sampling,
            prompts: samples.map(({ text }) => text),
            key: samples.map(({ noise }) => noiseKey(noise)),
            batch: samples.length,
          }, ({ index, total }) => tell(index + 1, total)),
      );
      return await saveImages(open.store, await imageIds(spec), images);
    }
    case "compose": {
      const { base, store, networks } = open;
      const images = await withModel(
        base,
        store,
        spec.model,
        async (m) =>
          await compose(
            m,
            spec,
            { store, networks, art: await open.art() },
            tell,
          ),
      );
      return await saveImages(store, await imageIds(spec), images);
    }
    case "embed":
      return await embed(open, spec, tell);
    case "references":
      return await embedReferences(open, spec);
    case "texts":
      return await saveVectors(open, spec, [
        ["texts", await embedTexts(await open.clip(), spec.texts)],
      ]);
    case "heldout":
      return await heldOut(open, spec);
    case "evaluator":
      return await testEvaluator(open, spec);
  }
}

async function saveImages(
  store: string,
  ids: readonly string[],
  images: readonly Pixels[],
): Promise<void> {
  for (const [i, id] of ids.entries()) {
    await writeAtomic(pathOf.image(store, id), encodePng(images[i]));
  }
}

async function saveVectors(
  { store }: Open,
  spec: LabSpec,
  lists: readonly (readonly [string, readonly ClipVector[]])[],
): Promise<void> {
  await writeVectors(pathOf.embedding(store, await specId(spec)), lists);
}

/** Pictures of a concept as training examples. */
async function examplesOf(
  open: Open,
  set: PictureSet | OwnPictures,
): Promise<Example[]> {
  if (set.of === "own") {
    return await Promise.all(
      set.pictures.map(async ({ image, mask, captions, repeats }) => ({
        ...{ captions, repeats },
        pixels: await readImage(open.store, image),
        mask: mask === undefined ? mask : await readImage(open.store, mask),
      })),
    );
  }
  const caption = (text: string) => [text.replaceAll(PLACEHOLDER, "{}")];
  if (set.of === "drawn") {
    return await Promise.all(set.pictures.map(async (picture) => {
      const pixels = await readImage(open.store, picture.image);
      const { width, height } = pixels;
      const data = [...boxMask(picture.box, width)];
      const captions = caption(picture.caption);
      return { pixels, captions, mask: { width, height, data } };
    }));
  }
  const art = await open.art();
  const images = set.of === "art"
    ? conceptImages(set.concept, set.set, art).slice(0, set.count)
    : Array.from(
      { length: LOOKALIKE_IMAGES },
      (_, i) => otherDesignImage(set.concept, set.design, i, art),
    );
  return images.map(({ image, mask, scene: { side }, caption: text }) => ({
    pixels: { width: side, height: side, channels: 3, data: image },
    captions: caption(text),
    mask: {
      width: side,
      height: side,
      data: Array.from(mask, (alpha) => alpha > 0.5 ? 1 : 0),
    },
  }));
}

/** Pictures that stand for a look-alike. */
const LOOKALIKE_IMAGES = 10;

/** The method of a spec, on the spec's layers. */
function methodOf({ method: name, preset, config, layers }: TrainSpec): Method {
  const how = method(name, preset, config);
  if (layers === undefined) return how;
  const { lora } = how.concept;
  if (!lora) throw cannot("choose layers", "a method with an adapter", name);
  const concept = { ...how.concept, lora: { ...lora, targets: layers } };
  return { ...how, concept };
}

async function train(open: Open, spec: TrainSpec, tell: Tell): Promise<void> {
  const { base, store } = open;
  const id = await specId(spec);
  const how = methodOf(spec);
  const { pictures } = spec;
  const data = pictures.of === "joint"
    ? joinData(
      await Promise.all(
        pictures.parts.map(async ({ concept, classWord, pictures }) => ({
          data: await open.encoded(pictures),
          phrase: how.phrase(concept, classWord),
        })),
      ),
    )
    : await open.encoded(pictures);
  const prior = spec.prior && await open.encoded(spec.prior);
  const { severalTokens, summary } = spec;
  const start = {
    name: spec.concept,
    key: pictures.of === "own"
      ? ownKey(spec.seed)
      : conceptKey(spec.seed, spec.concept),
    rank: spec.rank,
  };
  const fresh = pictures.of === "joint"
    ? await startJoint(base, how, {
      ...start,
      concepts: pictures.parts.map(({ concept, classWord }) => ({
        name: concept,
        classWord,
      })),
    })
    : await startConcept(base, how, {
      ...start,
      classWord: spec.classWord,
      overrides: severalTokens && { severalTokens },
    });
  const started: Concept = summary === undefined
    ? fresh
    : { ...fresh, meta: { ...fresh.meta, data: summary } };
  const losses: number[] = [];
  const before = performance.now();
  let trained: Concept | undefined;
  const state = pathOf.trainState(store, id, tf.getBackend());
  await machine.files.makeFolder(state.slice(0, state.lastIndexOf("/")));
  try {
    trained = await customize(base, started, data, how.train, {
      checkpoint: state,
      every: 100,
      prior,
      onRecord({ step, total, loss }) {
        losses.push(loss);
        tell(step + 1, total);
      },
    });
    const log: TrainLog = {
      concept: spec.concept,
      method: spec.method,
      steps: how.train.steps,
      losses: tenths(losses),
      seconds: (performance.now() - before) / 1000,
      phrase: started.phrase,
    };
    await writeJson(pathOf.trainLog(store, id), log);
    await saveConcept(pathOf.concept(store, id), trained, base);
    // Also the states of runs on other backends.
    for (const backend of BACKENDS) {
      await machine.files.remove(pathOf.trainState(store, id, backend))
        .catch(() => {});
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

async function fuseConcepts(
  { base, store }: Open,
  spec: FuseSpec,
  tell: Tell,
): Promise<void> {
  const id = await specId(spec);
  const concepts: Concept[] = [];
  const layers: FusedLayer[] = [];
  const rounds: number[] = [];
  let fused: Model | undefined;
  try {
    for (const one of spec.concepts) {
      concepts.push(await loadConcept(pathOf.concept(store, one), base));
    }
    const statistics: ConceptStatistics[] = [];
    for (const one of spec.published ?? []) {
      const { concept, statistics: own } = await readPublished(
        pathOf.published(store, one),
        base,
      );
      disposeConcept(concept);
      statistics.push(own);
    }
    const measured = spec.published && { statistics };
    const before = performance.now();
    const { how } = spec;
    const key = noiseKey([spec.seed, "fusion"]);
    switch (how.type) {
      case "weight":
        fused = weightFusion(base, concepts, { lambda: how.lambda });
        break;
      case "merge":
        fused = await mergeConcepts(base, concepts, {
          ...how.settings,
          ...measured,
          key,
        });
        break;
      case "iteris":
        fused = await finish(
          iteris(base, concepts, { ...how.settings, key }),
          ({ round, rounds: all, error }) => {
            tell(round, all);
            rounds.push(error);
          },
        );
        break;
      case "gradient": {
        const run = fuse(base, concepts, {
          ...how.settings,
          ...measured,
          key,
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
            ridge: orNull(record.ridge),
          });
        });
      }
    }
    const log: FuseLog = {
      concepts: concepts.map(({ name }) => name),
      seconds: (performance.now() - before) / 1000,
      layers,
      ...(rounds.length > 0 && { rounds }),
    };
    await writeJson(pathOf.fuseLog(store, id), log);
    await saveFused(pathOf.fused(store, id), base, fused);
  } finally {
    concepts.forEach(disposeConcept);
    if (fused) disposeModel(fused, base);
  }
}

async function publishConcept(
  { base, store }: Open,
  spec: PublishSpec,
  tell: Tell,
): Promise<void> {
  const { settings, pictures, noise } = spec;
  const path = pathOf.concept(store, spec.concept);
  const concept = await loadConcept(path, base);
  try {
    const before = performance.now();
    const key = noiseKey([spec.seed, "publish"]);
    const statistics = await finish(
      conceptStatistics(base, concept, { ...settings, key }),
      ({ index, total }) => tell(index, total),
    );
    const seconds = (performance.now() - before) / 1000;
    const id = await specId(spec);
    const file = pathOf.published(store, id);
    await publish(file, base, { concept, statistics, pictures }, {
      dtype: "F32",
      ...(noise ? { noise: { scale: noise, key: fold(key, "noise") } } : {}),
    });
    const log: PublishLog = {
      seconds,
      bytes: (await machine.files.stat(file))!.size,
      conceptBytes: (await machine.files.stat(path))!.size,
    };
    await writeJson(pathOf.publishLog(store, id), log);
  } finally {
    disposeConcept(concept);
  }
}

/** A box in fractions of a picture, in whole pixels. */
function pixelBox(share: PixelBox, { width, height }: Pixels): PixelBox {
  const x = Math.round(share.x * width), y = Math.round(share.y * height);
  const right = Math.round((share.x + share.width) * width);
  const bottom = Math.round((share.y + share.height) * height);
  return {
    x,
    y,
    width: Math.min(width, right) - x,
    height: Math.min(height, bottom) - y,
  };
}

/** Embeds `whole` [pictures, d] and `PICTURE.REGION` [windows, d]. */
async function embed(open: Open, spec: EmbedSpec, tell: Tell): Promise<void> {
  const clip = await open.clip();
  const side = clip.config.vision_config.image_size;
  const images = await Promise.all(
    spec.images.map((id) => readImage(open.store, id)),
  );
  // Resized without cropping, so that the outer regions of a wide picture are
  // included.
  const wholes = images.map((image) =>
    image.width === image.height ? image : resize(image, side, side)
  );
  const lists: [string, ClipVector[]][] = [
    ["whole", await embedImages(clip, wholes)],
  ];
  for (const [i, image] of images.entries()) {
    for (const [r, share] of spec.regions[i].entries()) {
      const views = windows(image.width, image.height, {
        ...spec.windows,
        region: pixelBox(share, image),
      }).map((box) => crop(image, box));
      lists.push([`${i}.${r}`, await embedImages(clip, views)]);
    }
    tell(i + 1, images.length);
  }
  await saveVectors(open, spec, lists);
}

/** Embeds `whole` and `masked`, [pictures, d] each. */
async function embedReferences(open: Open, spec: ReferenceSpec): Promise<void> {
  const clip = await open.clip();
  const examples = await examplesOf(open, spec.pictures);
  const whole = examples.map(({ pixels }) => pixels);
  const cut = examples.map(({ pixels, mask }) =>
    crop(pixels, squareAround(Float32Array.from(mask!.data), pixels.width))
  );
  await saveVectors(open, spec, [
    ["whole", await embedImages(clip, whole)],
    ["masked", await embedImages(clip, cut)],
  ]);
}

async function heldOut(open: Open, spec: HeldOutSpec): Promise<void> {
  const { base, store } = open;
  const data = await open.encoded(spec.pictures);
  const prompts = data.captions.map(([c]) => fillCaption(c, spec.phrase));
  const key = noiseKey(spec.noise);
  const error = await withModel(
    base,
    store,
    spec.model,
    (model) => heldOutError(model, data, prompts, { key }),
  );
  await writeJson(pathOf.heldout(store, await specId(spec)), error);
}

async function testEvaluator(open: Open, spec: EvaluatorSpec): Promise<void> {
  const clip = await open.clip();
  const drawn = new Map<string, Pixels[]>();
  for (const [word, ids] of Object.entries(spec.classPictures)) {
    drawn.set(
      word,
      await Promise.all(ids.map((id) => readImage(open.store, id))),
    );
  }
  const check = await checkEvaluator(
    (images) => embedImages(clip, images),
    evaluatorSet(await open.art(), (word) => drawn.get(word) ?? []),
    fold(key(spec.seed), "evaluator"),
  );
  await writeJson(pathOf.evaluator(open.store, await specId(spec)), check);
}
