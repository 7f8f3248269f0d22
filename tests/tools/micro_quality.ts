/**
 * How good the embedded model is: numbers against floors.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { fold, key, permutation } from "../../src/core/random.ts";
import {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "../../src/evaluation/clip.ts";
import { cosine } from "../../src/evaluation/clip_score.ts";
import {
  gallery,
  type GalleryEntry,
  retrieve,
} from "../../src/evaluation/retrieval.ts";
import {
  checkEvaluator,
  EVALUATOR_FLOORS,
  type EvaluatorCheck,
} from "../../src/evaluation/evaluator_check.ts";
import { mean } from "../../src/evaluation/statistics.ts";
import { crop } from "../../src/evaluation/preprocess.ts";
import { exists } from "../../src/io/files.ts";
import type { Pixels } from "../../src/io/png.ts";
import type { Art } from "../../src/micro/art.ts";
import {
  classWordPrompts,
  evaluatorSet,
} from "../../src/micro/evaluator_set.ts";
import { captionOf, withArticle } from "../../src/micro/captions.ts";
import {
  heldOutScene,
  isHeldOut,
  renderScene,
  type Scene,
  squarePixels,
} from "../../src/micro/scenes.ts";
import { BACKGROUNDS, NOUNS } from "../../src/micro/world.ts";
import { decode, encode } from "../../src/models/autoencoder.ts";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";

/** The numbers of `micro:report`. */
export interface MicroNumbers {
  /** Mean PSNR in dB of reconstructed held-out scenes (posterior mean). */
  readonly vae_psnr: number;
  /** Image → text top-1 among 64 held-out captions, CLIP B. */
  readonly clip_b_top1: number;
  /** The same of CLIP A; absent where the model's folder has none. */
  readonly clip_a_top1?: number;
  /** Share of generated one-object pictures with the right noun, by CLIP B. */
  readonly noun_generated: number;
  /** The same of rendered scenes. */
  readonly noun_real: number;
  /** Share with the right background. */
  readonly background_generated: number;
  /** The same of rendered scenes. */
  readonly background_real: number;
  /** Share of generated two-object pictures with both halves' nouns right. */
  readonly two_nouns_generated: number;
  /** The same of rendered scenes. */
  readonly two_nouns_real: number;
  /** Image alignment of references with the others of their identity, CLIP B. */
  readonly eye_same: number;
  /** The same with 8 px tiles of the subject shuffled. */
  readonly eye_shuffled8: number;
  /** The same with the subject pixelated in 8 px blocks. */
  readonly eye_pixelated8: number;
  /** The same of what the model draws for the class words. */
  readonly eye_class_word: number;
  /** Share of references whose nearest picture is of their identity. */
  readonly eye_1nn: number;
}

/** A number and its floor; a ratio is of generated to real. */
interface Target {
  /** What is measured. */
  readonly name: string;
  /** What came out. */
  readonly value: number;
  /** The least that will do. */
  readonly floor: number;
}

/** A picture and its prompt. */
interface Shown {
  readonly text: string;
  readonly image: Pixels;
}

/** Pictures for contact sheets. */
export interface MicroPictures {
  /** Held-out prompts of one object, drawn. */
  readonly single: readonly Shown[];
  /** Held-out prompts of two objects, drawn. */
  readonly pairs: readonly Shown[];
  /** Held-out scenes through the autoencoder. */
  readonly scenes: readonly {
    readonly real: Pixels;
    readonly decoded: Pixels;
  }[];
  /** Pictures to be named by looking, in a random order; see `naming`. */
  readonly naming: readonly (Shown & { readonly noun: string })[];
}

/** How many of the measurements are done. */
interface MeasureRecord {
  /** Measurements done. */
  readonly done: number;
  /** Measurements in all. */
  readonly total: number;
}

/** A prompt to draw. */
interface MicroSample {
  /** The prompt. */
  readonly text: string;
  /** What its noise is drawn for; the first entry is the seed. */
  readonly noise: readonly (string | number)[];
}

/** What is measured. */
interface MicroReportOptions {
  /** Folder of the model, with `clip_b` and, to measure it too, `clip_a`. */
  readonly model: string;
  /**
   * Draws prompts with the untouched model.
   *
   * @param samples Prompts, and what their noise is drawn for.
   */
  readonly draw: (samples: readonly MicroSample[]) => Promise<Pixels[]>;
  /** Loaded art. */
  readonly art: Art;
  /** One-object prompts. */
  readonly single: number;
  /** Two-object prompts. */
  readonly pairs: number;
  /** Scenes for PSNR; a multiple of 64 also gives that many batches of captions. */
  readonly scenes: number;
  /**
   * Whether each noun is also drawn twice, from held-out prompts where it has
   * any, to be named by somebody who does not see the prompts.
   */
  readonly naming: boolean;
  /** References per identity in the test of CLIP B. */
  readonly references: number;
  /** Pictures per class word that the base model draws for that test. */
  readonly classPictures: number;
}

/** Captions that an image is told from. */
const BATCH = 64;

/** The usual phrase of a background. */
function phraseOf(background: string): string {
  return BACKGROUNDS.find(({ word }) => word === background)!.phrases[0];
}

/** The prompt of a one-object scene. */
export function singlePrompt(noun: string, background: string): string {
  return `a photo of ${withArticle(noun)} ${phraseOf(background)}`;
}

/** The prompt of a two-object scene. */
export function pairPrompt(
  left: string,
  right: string,
  background: string,
): string {
  return `${withArticle(left)} on the left and ${
    withArticle(right)
  } on the right ${phraseOf(background)}`;
}

/** The `i`-th held-out scene with untinted objects, as its prompt says it. */
function plainScene(i: number, objects: 1 | 2, art: Art): Scene {
  const scene = heldOutScene(i, undefined, { objects }, art);
  return {
    ...scene,
    objects: scene.objects.map((object) => ({ ...object, color: null })),
  };
}

/** Pictures of each noun that are named by looking. */
const NAMED = 2;

/**
 * What is drawn to be named: each noun twice, on two backgrounds, in a random
 * order. Held-out combinations come first; a noun with fewer than two of them
 * has others.
 */
function namingPrompts(): { noun: string; background: string }[] {
  const prompts = NOUNS.flatMap(({ word: noun }) => {
    const order = permutation(fold(key(0), "naming", noun), BACKGROUNDS.length);
    const all = [...order].map((i) => ({
      noun,
      background: BACKGROUNDS[i].word,
    }));
    const held = ({ noun, background }: typeof all[number]) =>
      isHeldOut({ objects: [{ noun }], background });
    return [...all.filter(held), ...all.filter((prompt) => !held(prompt))]
      .slice(0, NAMED);
  });
  const order = permutation(fold(key(0), "naming"), prompts.length);
  return [...order].map((i) => prompts[i]);
}

/** Zero-shot classes: nouns and backgrounds by the mean of their prompts. */
async function classes(
  clip: ClipModel,
): Promise<Record<"nouns" | "grounds", GalleryEntry[]>> {
  const nouns = NOUNS.map(({ word }) => word);
  const grounds = BACKGROUNDS.map(({ word }) => word);
  const rows = await embedTexts(
    clip,
    nouns.flatMap((noun) =>
      grounds.map((ground) => singlePrompt(noun, ground))
    ),
  );
  const at = (noun: number, ground: number) =>
    rows[noun * grounds.length + ground];
  return {
    nouns: gallery(
      nouns.map((label, i) => [label, grounds.map((_, j) => at(i, j))]),
    ),
    grounds: gallery(
      grounds.map((label, j) => [label, nouns.map((_, i) => at(i, j))]),
    ),
  };
}

/**
 * A half of a picture, doubled by its mirror image, so that it has the size and
 * the scale that the CLIP knows.
 *
 * @param image The picture.
 * @param side Which half.
 */
export function doubledHalf(image: Pixels, side: "left" | "right"): Pixels {
  const { width, height, channels } = image;
  const half = Math.floor(width / 2);
  const part = crop(image, {
    x: side === "left" ? 0 : width - half,
    y: 0,
    width: half,
    height,
  });
  const data = new Uint8Array(2 * half * height * channels);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < half; x++) {
      const from = (y * half + x) * channels;
      const pixel = part.data.subarray(from, from + channels);
      data.set(pixel, (y * 2 * half + x) * channels);
      data.set(pixel, (y * 2 * half + 2 * half - 1 - x) * channels);
    }
  }
  return { width: 2 * half, height, channels, data };
}

/** Whether each row's nearest class is the wanted one. */
function correct(
  rows: readonly ClipVector[],
  entries: readonly GalleryEntry[],
  wanted: readonly string[],
): boolean[] {
  return rows.map((row, i) => retrieve([row], entries).label === wanted[i]);
}

const share = (right: readonly boolean[]): number =>
  mean(right.map((value) => value ? 1 : 0));

/**
 * Image → text top-1 among the captions of a batch; a caption with the same
 * words counts as the same.
 */
async function top1(
  clip: ClipModel,
  scenes: readonly Scene[],
  images: readonly Pixels[],
): Promise<number> {
  const texts = scenes.map((scene, i) => captionOf(scene, i));
  const a = await embedImages(clip, images);
  const b = await embedTexts(clip, texts);
  const right: boolean[] = [];
  for (let from = 0; from + BATCH <= scenes.length; from += BATCH) {
    const captions = b.slice(from, from + BATCH);
    for (let i = 0; i < BATCH; i++) {
      const scores = captions.map((row) => cosine(a[from + i], row));
      const best = scores.indexOf(Math.max(...scores));
      right.push(texts[from + best] === texts[from + i]);
    }
  }
  return share(right);
}

/** Reconstructs pictures and gives the mean of their PSNR in dB. */
async function reconstruct(
  model: Pick<Model, "autoencoder">,
  images: readonly Pixels[],
): Promise<{ psnr: number; decoded: Pixels[] }> {
  const { config, params } = model.autoencoder;
  const decoded: Pixels[] = [];
  const values: number[] = [];
  for (let from = 0; from < images.length; from += 16) {
    const part = images.slice(from, from + 16);
    const { width, height } = part[0];
    const size = width * height * 3;
    const input = new Float32Array(part.length * size);
    part.forEach(({ data }, i) =>
      data.forEach((byte, j) => input[i * size + j] = byte / 127.5 - 1)
    );
    const output = tf.tidy(() => {
      const x = tf.tensor4d(input, [part.length, height, width, 3]);
      const { mean } = encode(params, config, x);
      return tf.clipByValue(decode(params, config, mean), -1, 1);
    });
    const out = await output.data();
    output.dispose();
    part.forEach((_, i) => {
      let sum = 0;
      for (let j = i * size; j < (i + 1) * size; j++) {
        sum += ((out[j] - input[j]) / 2) ** 2;
      }
      values.push(-10 * Math.log10(sum / size));
      decoded.push({
        width,
        height,
        channels: 3,
        data: Uint8Array.from(
          out.subarray(i * size, (i + 1) * size),
          (v) => Math.round((v + 1) * 127.5),
        ),
      });
    });
  }
  return { psnr: mean(values), decoded };
}

function nounsOf({ objects }: Scene): string[] {
  return objects.map(({ noun }) => noun);
}

/** What is drawn: one object, two, class words, and what is to be named. */
function samplesOf(
  alone: readonly Scene[],
  two: readonly Scene[],
  words: readonly { readonly text: string }[],
  named: ReturnType<typeof namingPrompts>,
): MicroSample[] {
  const of = (name: string, texts: readonly string[]) =>
    texts.map((text, i) => ({ text, noise: [0, "micro report", name, i] }));
  return [
    ...of(
      "single",
      alone.map((one) => singlePrompt(nounsOf(one)[0], one.background)),
    ),
    ...of(
      "pair",
      two.map((scene) => {
        const [left, right] = nounsOf(scene);
        return pairPrompt(left, right, scene.background);
      }),
    ),
    ...of("class word", words.map(({ text }) => text)),
    ...of(
      "naming",
      named.map(({ noun, background }) => singlePrompt(noun, background)),
    ),
  ];
}

/** Shares of pictures of the scenes that a CLIP names rightly. */
async function judgeOf(
  clip: ClipModel,
  alone: readonly Scene[],
  two: readonly Scene[],
) {
  const { nouns, grounds } = await classes(clip);
  return async (one: readonly Pixels[], pair: readonly Pixels[]) => {
    const rows = await embedImages(clip, one);
    const halves = await Promise.all(
      (["left", "right"] as const).map(async (side, k) =>
        correct(
          await embedImages(clip, pair.map((p) => doubledHalf(p, side))),
          nouns,
          two.map((scene) => nounsOf(scene)[k]),
        )
      ),
    );
    return {
      noun: share(correct(rows, nouns, alone.map((s) => nounsOf(s)[0]))),
      background: share(
        correct(rows, grounds, alone.map((s) => s.background)),
      ),
      both: share(halves[0].map((right, i) => right && halves[1][i])),
    };
  };
}

/**
 * Measures the embedded model on held-out scenes.
 *
 * Prompts are those of held-out (noun, background, partner) combinations;
 * pictures are drawn from them, and the real ones are the same scenes rendered.
 * CLIP B classifies both zero-shot: a noun is the mean embedding of "a photo of
 * a {noun} {background}" over all backgrounds, a background the same over all
 * nouns; a half of a two-object picture is doubled by its mirror image.
 *
 * @param options The model, how it draws, numbers of pictures.
 * @returns Yields progress; returns numbers and pictures.
 * @throws If a model is missing, truncated or misshapen.
 */
export async function* microReport(
  options: MicroReportOptions,
): AsyncGenerator<
  MeasureRecord,
  { numbers: MicroNumbers; evaluator: EvaluatorCheck; pictures: MicroPictures },
  void
> {
  const { model: folder, single, pairs, art } = options;
  const named = options.naming ? namingPrompts() : [];
  const words = classWordPrompts(options.classPictures);
  const alone = Array.from({ length: single }, (_, i) => plainScene(i, 1, art));
  const two = Array.from({ length: pairs }, (_, i) => plainScene(i, 2, art));
  const samples = samplesOf(alone, two, words, named);
  const drawn = await options.draw(samples);
  const render = (scene: Scene) =>
    squarePixels(scene.side, renderScene(scene, art));
  const at = (done: number): MeasureRecord => ({ done, total: 5 });
  yield at(0);
  const held = Array.from(
    { length: options.scenes },
    (_, i) => heldOutScene(i, undefined, {}, art),
  );
  const images = held.map(render);
  const model = await loadModel(folder);
  const { psnr, decoded } = await reconstruct(model, images);
  disposeModel(model);
  yield at(1);
  const tokenizer = `${folder}/tokenizer`;
  let topA: number | undefined;
  if (await exists(`${folder}/clip_a/config.json`)) {
    const clip = await loadClip(`${folder}/clip_a`, { tokenizer });
    topA = await top1(clip, held, images);
    disposeClip(clip);
  }
  yield at(2);
  const clip = await loadClip(`${folder}/clip_b`, { tokenizer });
  try {
    const topB = await top1(clip, held, images);
    yield at(3);
    const judge = await judgeOf(clip, alone, two);
    const generated = await judge(
      drawn.slice(0, single),
      drawn.slice(single, single + pairs),
    );
    const real = await judge(alone.map(render), two.map(render));
    yield at(4);
    const first = single + pairs, last = first + words.length;
    const check = await checkEvaluator(
      (pictures) => embedImages(clip, pictures),
      evaluatorSet(
        art,
        (word) =>
          drawn.slice(first, last).filter((_, i) =>
            words[i].classWord === word
          ),
        { references: options.references },
      ),
      fold(key(0), "evaluator"),
    );
    yield at(5);
    const shown = (from: number, list: readonly unknown[]) =>
      list.map((_, i) => (
        { text: samples[from + i].text, image: drawn[from + i] }
      ));
    return {
      evaluator: check,
      numbers: {
        vae_psnr: psnr,
        clip_b_top1: topB,
        ...(topA === undefined ? {} : { clip_a_top1: topA }),
        noun_generated: generated.noun,
        noun_real: real.noun,
        background_generated: generated.background,
        background_real: real.background,
        two_nouns_generated: generated.both,
        two_nouns_real: real.both,
        eye_same: check.same,
        eye_shuffled8: check.spoilt.shuffled8,
        eye_pixelated8: check.spoilt.pixelated8,
        eye_class_word: check.classWord,
        eye_1nn: check.nearestNeighbour,
      },
      pictures: {
        single: shown(0, alone),
        pairs: shown(single, two),
        scenes: images.slice(0, 24).map((image, i) => ({
          real: image,
          decoded: decoded[i],
        })),
        naming: shown(last, named).map((picture, i) => (
          { ...picture, noun: named[i].noun }
        )),
      },
    };
  } finally {
    disposeClip(clip);
  }
}

/**
 * The numbers against floors.
 *
 * @param n The numbers.
 */
export function microTargets(n: MicroNumbers): Target[] {
  const ratio = (a: number, b: number) => b > 0 ? a / b : NaN;
  const loses = (spoilt: number) =>
    n.eye_same > n.eye_class_word
      ? (n.eye_same - spoilt) / (n.eye_same - n.eye_class_word)
      : 0;
  const { loses: least, nearestNeighbour } = EVALUATOR_FLOORS;
  return [
    { name: "VAE PSNR, dB", value: n.vae_psnr, floor: 27 },
    { name: "CLIP B top-1 of 64", value: n.clip_b_top1, floor: 0.7 },
    ...(n.clip_a_top1 === undefined
      ? []
      : [{ name: "CLIP A top-1 of 64", value: n.clip_a_top1, floor: 0.7 }]),
    {
      name: "noun, generated / real",
      value: ratio(n.noun_generated, n.noun_real),
      floor: 0.85,
    },
    {
      name: "two nouns, generated / real",
      value: ratio(n.two_nouns_generated, n.two_nouns_real),
      floor: 0.5,
    },
    {
      name: "background, generated / real",
      value: ratio(n.background_generated, n.background_real),
      floor: 0.95,
    },
    {
      name: "evaluator: shuffled 8 px tiles lose",
      value: loses(n.eye_shuffled8),
      floor: least,
    },
    {
      name: "evaluator: 8 px blocks lose",
      value: loses(n.eye_pixelated8),
      floor: least,
    },
    {
      name: "evaluator: nearest neighbour right",
      value: n.eye_1nn,
      floor: nearestNeighbour,
    },
  ];
}
