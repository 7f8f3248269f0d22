/**
 * Draws the batches of a training run.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { fold, type Key, normal, permutation, stream } from "../core/random.ts";
import type { Schedule } from "../diffusion/schedule.ts";
import { fillCaption } from "./captions.ts";
import type { TrainData } from "./dataset.ts";
import { offsetNoise } from "./losses.ts";
import type { TrainConfig } from "./train_config.ts";
import type { TrainBatch } from "./train_loss.ts";

/**
 * Draws the batch of a step; all random numbers come from that step's keys.
 *
 * @param s The schedule, for its timesteps.
 * @param phrase Phrase of the concept in captions.
 * @param buckets Its pictures, by size; a batch has one size.
 * @param priors Class pictures of the same sizes, with their own captions.
 * @param config Batch size, noise offset, captions.
 * @param root Key of the run.
 * @param step The step.
 * @returns Tensors of its own, the caller's.
 */
export function drawBatch(
  s: Schedule,
  phrase: string,
  buckets: readonly TrainData[],
  priors: readonly TrainData[] | undefined,
  config: TrainConfig,
  root: Key,
  step: number,
): TrainBatch {
  const here = fold(root, "step", step);
  const { bucket, before } = bucketAt(buckets, root, step);
  const [data, prior] = [buckets[bucket], priors?.[bucket]];
  const own = pick(data, config, fold(root, "order"), here, before, phrase);
  const other = prior &&
    pick(
      prior,
      config,
      fold(root, "prior"),
      fold(here, "prior"),
      before,
      phrase,
    );
  const rows = own.rows + (other?.rows ?? 0);
  const shape: [number, number, number, number] = [
    rows,
    data.height,
    data.width,
    data.channels,
  ];
  const size = rows * data.height * data.width * data.channels;
  const join = (a: Float32Array, b: Float32Array | undefined) => {
    const all = new Float32Array(a.length + (b?.length ?? 0));
    all.set(a);
    if (b) all.set(b, a.length);
    return all;
  };
  const draw = stream(fold(here, "timesteps"));
  const timesteps = Array.from(
    { length: rows },
    () => draw.integer(s.alphasCumprod.length),
  );
  const latents = tf.tensor4d(join(own.latents, other?.latents), shape);
  const plain = tf.tensor4d(normal(fold(here, "noise"), size), shape);
  const noise = config.noiseOffset === 0 ? plain : offsetNoise(
    plain,
    config.noiseOffset,
    tf.tensor4d(normal(fold(here, "offset"), rows * data.channels), [
      rows,
      1,
      1,
      data.channels,
    ]),
  );
  return {
    latents,
    noise,
    timesteps,
    prompts: [...own.prompts, ...other?.prompts ?? []],
    mask: tf.tensor4d(join(own.mask, other?.mask.fill(1)), [
      rows,
      data.height,
      data.width,
      1,
    ]),
    prior: other?.rows ?? 0,
  };
}

/**
 * The bucket of a step, and how many earlier steps had it. In as many steps as
 * there are pictures, each bucket occurs as often as it has pictures.
 */
function bucketAt(
  buckets: readonly TrainData[],
  root: Key,
  step: number,
): { bucket: number; before: number } {
  if (buckets.length === 1) return { bucket: 0, before: step };
  const of = buckets.flatMap(({ count }, i) =>
    new Array<number>(count).fill(i)
  );
  const round = Math.floor(step / of.length);
  const turns = permutation(fold(root, "buckets", round), of.length)
    .slice(0, step % of.length + 1).map((picture) => of[picture]);
  const bucket = turns.at(-1)!;
  const before = turns.filter((turn) => turn === bucket).length - 1;
  return { bucket, before: round * buckets[bucket].count + before };
}

/** Pictures of a step: epochs of permutations, one after the other. */
function pick(
  data: TrainData,
  config: TrainConfig,
  order: Key,
  here: Key,
  step: number,
  phrase: string,
): {
  rows: number;
  latents: Float32Array;
  mask: Float32Array;
  prompts: string[];
} {
  const size = data.height * data.width * data.channels;
  const area = data.height * data.width;
  const latents = new Float32Array(config.batch * size);
  const mask = new Float32Array(config.batch * area);
  const prompts: string[] = [];
  const drawn = normal(fold(here, "posterior"), latents.length);
  for (let row = 0; row < config.batch; row++) {
    const place = step * config.batch + row;
    const epoch = fold(order, Math.floor(place / data.count));
    const i = permutation(epoch, data.count)[place % data.count];
    for (let k = 0; k < size; k++) {
      latents[row * size + k] = data.mean[i * size + k] +
        data.std[i * size + k] * drawn[row * size + k];
    }
    mask.set(data.mask.subarray(i * area, (i + 1) * area), row * area);
    const choose = fold(here, "caption", row);
    const captions = data.captions[i];
    const caption = captions[stream(choose).integer(captions.length)];
    const dropped = stream(fold(choose, 2)).uniform() <
      (config.captionDropout ?? 0);
    prompts.push(
      dropped
        ? ""
        : fillCaption(shuffled(caption, config, fold(choose, 1)), phrase),
    );
  }
  return { rows: config.batch, latents, mask, prompts };
}

function shuffled(caption: string, config: TrainConfig, key: Key): string {
  if (!config.shuffleCaptions) return caption;
  const parts = caption.split(",").map((part) => part.trim());
  const { keep } = config.shuffleCaptions;
  const rest = parts.slice(keep);
  return [
    ...parts.slice(0, keep),
    ...permutation(key, rest.length).map((i) => rest[i]),
  ].join(", ");
}
