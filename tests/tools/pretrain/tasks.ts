import * as tf from "@tensorflow/tfjs";
import { joined } from "../../../src/core/joined.ts";
import {
  fold,
  type Key,
  key,
  normal,
  stream,
} from "../../../src/core/random.ts";
import { leaves, valueAndGrads } from "../../../src/core/tree.ts";
import { type Schedule, schedule } from "../../../src/diffusion/schedule.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  decode,
  downsampleFactor,
  drawLatent,
  encode,
} from "../../../src/models/autoencoder.ts";
import type { ClipConfig } from "../../../src/models/config.ts";
import {
  type Clip,
  clipSpec,
  imageEmbedding,
  normalise,
  textEmbedding,
} from "../../../src/models/image_encoder.ts";
import {
  type TextEncoder,
  textEncoder,
  textEncoderSpec,
} from "../../../src/models/text_encoder.ts";
import {
  type T2IAdapter,
  t2iAdapter,
  t2iAdapterSpec,
} from "../../../src/models/t2i_adapter.ts";
import type { Tokenizer } from "../../../src/models/tokenizer.ts";
import { type UNet, unet, unetSpec } from "../../../src/models/unet.ts";
import {
  buildTree,
  type Spec,
  specLeaves,
  type SpecLike,
} from "../../../src/nn/spec.ts";
import type { Art } from "../../../src/micro/art.ts";
import { captionOf } from "../../../src/micro/captions.ts";
import { conceptImage } from "../../../src/micro/concepts.ts";
import {
  renderMask,
  renderScene,
  type SampleSceneOptions,
  type Scene,
  trainScene,
} from "../../../src/micro/scenes.ts";
import type { Grey } from "../../../src/diffusion/condition_images.ts";
import { outlineOf } from "../../../src/micro/sketch.ts";
import {
  IDENTITIES,
  WIDE_WORLD,
  WORLD,
  type World,
} from "../../../src/micro/world.ts";
import { readInto } from "./read_into.ts";
import { type FlatLayout, flatLayout } from "./flat.ts";
import { identityLoss, identityViews, spoiltLabel } from "./evaluator.ts";
import { tokenizerOfWorld } from "./tokenizer.ts";
import {
  ADAPTER_CONFIG,
  CLIP_A_SIZE,
  CLIP_B_SIZE,
  clipConfig,
  DROP_CAPTION,
  MIN_SNR_GAMMA,
  type NetworkName,
  SCHEDULER_CONFIG,
  UNET_CONFIG,
  VAE_CONFIG,
} from "./recipe.ts";

/** What a network's training needs besides its own parameters. */
export interface Materials {
  /** The base world's art. */
  readonly art: Art;
  /** The identities' frames. */
  readonly frames: Art;
  /** The evaluation's prompts in class words: captions that are never used. */
  readonly exclude: ReadonlySet<string>;
  /** Latents of the first training scenes, end to end. */
  readonly latents?: Float32Array;
  /** CLIP A's text tower, frozen. */
  readonly text?: TextEncoder;
  /** The trained autoencoder, for round trips. */
  readonly autoencoder?: Autoencoder;
  /** The trained UNet, frozen, for its adapter. */
  readonly unet?: UNet;
  /** Inputs of a contrastive step between its two passes, by shard. */
  readonly waiting: Map<string, ClipInputs>;
}

/** Images and token ids of a contrastive shard. */
export interface ClipInputs {
  /** As the vision tower takes them. */
  readonly images: tf.Tensor4D;
  /** Captions of the first images, as token ids. */
  readonly tokens: number[][];
  /** What each image shows; null is like nothing else. */
  readonly labels: (string | null)[];
}

/** One shard of one step. */
export interface Shard {
  readonly step: number;
  readonly index: number;
  readonly count: number;
  /** Samples in the whole batch. */
  readonly batch: number;
  readonly seed: number;
}

/** Losses of a step by name. */
export type Losses = Readonly<Record<string, number>>;

/** Embeddings of a shard, and later the gradient with respect to them. */
export interface Embeddings {
  /** [n, projection], normalised, end to end. */
  readonly images: Float32Array;
  readonly texts: Float32Array;
}

/** Embeddings of a contrastive shard and what they are of. */
export interface EmbeddedShard extends Embeddings {
  /** Captions of the first images, as token ids. */
  readonly tokens: number[][];
  /** What each image shows; null is like nothing else. */
  readonly labels: (string | null)[];
}

/** Side of a scene's latent. */
export const LATENT_SIDE: number = WORLD.side / downsampleFactor(VAE_CONFIG);

/** The tokenizer of the embedded world. */
export const TOKENIZER: Tokenizer = tokenizerOfWorld();

/** Config of CLIP A. */
export const CLIP_CONFIG: ClipConfig = clipConfig(
  TOKENIZER.vocabSize,
  CLIP_A_SIZE,
);

/** Config of CLIP B. */
const EVALUATOR_CONFIG: ClipConfig = clipConfig(
  TOKENIZER.vocabSize,
  CLIP_B_SIZE,
);

/** Config of a micro CLIP, by name. */
export function clipConfigOf(name: NetworkName): ClipConfig {
  return name === "clip_b" ? EVALUATOR_CONFIG : CLIP_CONFIG;
}

/** Spec of the frozen text tower. */
export const TEXT_SPEC: Spec<TextEncoder> = textEncoderSpec(
  CLIP_CONFIG.text_config,
);

/** Spec of a network of the embedded model. */
// deno-lint-ignore no-explicit-any
export function networkSpec(name: NetworkName): Spec<any> {
  switch (name) {
    case "vae":
      return autoencoderSpec(VAE_CONFIG);
    case "unet":
      return unetSpec(UNET_CONFIG);
    case "adapter":
      return t2iAdapterSpec(ADAPTER_CONFIG);
    default:
      return clipSpec(clipConfigOf(name));
  }
}

/** Flat layout of the parameters of a spec. */
export function layoutOf(spec: SpecLike): FlatLayout {
  return flatLayout(specLeaves(spec).map(([path, p]) => [path, p.shape]));
}

/** Flat layout of a network of the embedded model. */
export function networkLayout(name: NetworkName): FlatLayout {
  return layoutOf(networkSpec(name));
}

/**
 * Parameters of a tree, flat.
 *
 * @param layout Its layout; other leaves of the tree are left out.
 * @param tree The parameters.
 */
export function flattenTree(layout: FlatLayout, tree: unknown): Float32Array {
  const flat = new Float32Array(layout.size);
  const tensors = new Map(leaves(tree));
  for (const { path, offset } of layout.entries) {
    flat.set(tensors.get(path)!.dataSync() as Float32Array, offset);
  }
  return flat;
}

/**
 * Makes a parameter tree from flat values.
 *
 * @param spec The network's spec.
 * @param values Flat parameters.
 */
export function unflatten<T>(spec: Spec<T>, values: Float32Array): T {
  const entries = new Map(layoutOf(spec).entries.map((e) => [e.path, e]));
  return buildTree<T>(spec, (param, path) => {
    const { offset, size } = entries.get(path)!;
    return tf.tensor(values.subarray(offset, offset + size), param.shape);
  });
}

/** Gives a loss and writes its gradient. */
async function differentiate<T>(
  name: NetworkName,
  params: T,
  loss: (params: T) => tf.Scalar,
  into: Float32Array,
): Promise<number> {
  const { value, grads } = valueAndGrads(loss, params);
  const [number] = await value.data();
  for (const { path, offset, size } of networkLayout(name).entries) {
    await readInto(grads.get(path)!, into.subarray(offset, offset + size));
  }
  tf.dispose([value, ...grads.values()]);
  return number;
}

/** Pixels of the world's images as [b, 64, 64, 3] in [−1, 1]. */
export function pixels(images: readonly Uint8Array[]): tf.Tensor4D {
  const { side } = WORLD, size = side * side * 3;
  const values = new Float32Array(images.length * size);
  images.forEach((image, i) => {
    for (let j = 0; j < size; j++) {
      values[i * size + j] = image[j] / 127.5 - 1;
    }
  });
  return tf.tensor4d(values, [images.length, side, side, 3]);
}

/** The samples of a shard: every one has a number of its own. */
function members(shard: Shard): number[] {
  const size = shard.batch / shard.count;
  return Array.from(
    { length: size },
    (_, i) => shard.step * shard.batch + shard.index * size + i,
  );
}

function ids(texts: readonly string[]): number[][] {
  return texts.map((text) => TOKENIZER.encode(text).ids);
}

/** KL weight: barely a prior, enough to keep the latents' scale. */
const KL = 1e-4;

/**
 * Loss of the autoencoder: L1 + L2 of pixels, L1 of neighbouring pixels'
 * differences (edges), and a weak KL.
 */
export async function vaeShard(
  params: Autoencoder,
  shard: Shard,
  materials: Materials,
  into: Float32Array,
): Promise<Losses> {
  const batch = members(shard);
  const images = pixels(
    batch.map((i) => sceneImage(i + shard.seed * 1e6, materials.art)),
  );
  const noise = tf.tensor4d(
    normal(
      fold(key(shard.seed), "posterior", shard.step, shard.index),
      batch.length * LATENT_SIDE ** 2 * VAE_CONFIG.latent_channels,
    ),
    [batch.length, LATENT_SIDE, LATENT_SIDE, VAE_CONFIG.latent_channels],
  );
  const parts: tf.Scalar[] = [];
  const loss = await differentiate("vae", params, (p) => {
    const posterior = encode(p, VAE_CONFIG, images);
    const out = decode(p, VAE_CONFIG, drawLatent(posterior, noise));
    const error = out.sub(images) as tf.Tensor4D;
    const [b, h, w, c] = error.shape;
    const dx = tf.sub(
      tf.slice(error, [0, 0, 1, 0], [b, h, w - 1, c]),
      tf.slice(error, [0, 0, 0, 0], [b, h, w - 1, c]),
    );
    const dy = tf.sub(
      tf.slice(error, [0, 1, 0, 0], [b, h - 1, w, c]),
      tf.slice(error, [0, 0, 0, 0], [b, h - 1, w, c]),
    );
    const mse = tf.mean(error.square());
    const edges = tf.mean(dx.abs()).add(tf.mean(dy.abs()));
    const kl = tf.mean(
      posterior.mean.square().add(posterior.logvar.exp()).sub(1)
        .sub(posterior.logvar),
    ).mul(0.5);
    parts.push(tf.keep(mse as tf.Scalar), tf.keep(kl as tf.Scalar));
    return mse.mul(4).add(tf.mean(error.abs())).add(edges.mul(0.5))
      .add(kl.mul(KL)) as tf.Scalar;
  }, into);
  const [mse, kl] = await Promise.all(parts.map((part) => part.data()));
  tf.dispose([...parts, images, noise]);
  return { loss, mse: mse[0], kl: kl[0] };
}

/**
 * The `n`-th image of the autoencoder's diet: base scenes. Identities stay out
 * of it, as out of every base training set.
 */
export function sceneImage(n: number, art: Art): Uint8Array {
  return renderScene(trainScene(n, WORLD, {}, art), art);
}

/**
 * What is fixed in a contrastive step: in every other one nothing, in the rest
 * the background, the same for all, and one object each. Where captions differ
 * in their background a CLIP tells them apart by it and learns nouns slowly.
 */
function clipScenes({ seed, step }: Shard): SampleSceneOptions {
  if (step % 2 === 0) return {};
  const { backgrounds } = WORLD;
  const draw = stream(fold(key(seed), "background", step));
  return {
    objects: 1,
    background: backgrounds[draw.integer(backgrounds.length)].word,
  };
}

/** Image and caption of a CLIP's training sample. */
function clipSample(
  name: NetworkName,
  i: number,
  shard: Shard,
  materials: Materials,
): { image: Uint8Array; text: string } {
  const n = i + shard.seed * 1e6;
  const fixed = clipScenes(shard);
  // The evaluation CLIP also knows the identities, by their proper names.
  if (name === "clip_b" && n % 4 === 0) {
    const identity = IDENTITIES[(n / 4) % IDENTITIES.length];
    const shown = conceptImage(
      identity.name,
      "clip",
      n,
      materials.frames,
      fixed.background,
    );
    const byName = stream(fold(key(n), "name")).uniform() < 0.8;
    return {
      image: shown.image,
      text: byName || materials.exclude.has(shown.classCaption)
        ? shown.nameCaption
        : shown.classCaption,
    };
  }
  const world: World = name === "clip_b" ? WIDE_WORLD : WORLD;
  const scene = trainScene(n, world, fixed, materials.art);
  return {
    image: renderScene(scene, materials.art, world),
    text: captionOf(scene, n, 0, { exclude: materials.exclude }),
  };
}

/** Blur and autoencoder round trips, so that generated pictures are no stranger. */
function degrade(
  images: tf.Tensor4D,
  from: Key,
  autoencoder: Autoencoder,
): tf.Tensor4D {
  return tf.tidy(() => {
    const draw = stream(from);
    const [b, h, w] = images.shape;
    // A few are plenty, and a round trip costs more than the rest.
    const half = Math.floor(b / 8);
    const first = tf.slice(images, 0, half);
    const tripped = decode(
      autoencoder,
      VAE_CONFIG,
      encode(autoencoder, VAE_CONFIG, first).mean,
    );
    const both = tf.concat([
      tf.clipByValue(tripped, -1, 1),
      tf.slice(images, half, b - half),
    ]);
    const soft = tf.image.resizeBilinear(
      tf.avgPool(both, 2, 2, "same") as tf.Tensor4D,
      [h, w],
    );
    const blur = tf.tensor4d(
      Array.from(
        { length: b },
        () => draw.uniform() < 0.3 ? draw.uniform() : 0,
      ),
      [b, 1, 1, 1],
    );
    return both.add(soft.sub(both).mul(blur)) as tf.Tensor4D;
  });
}

function clipInputs(
  name: NetworkName,
  shard: Shard,
  materials: Materials,
): ClipInputs {
  const samples = members(shard).map((i) =>
    clipSample(name, i, shard, materials)
  );
  const root = key(shard.seed);
  // The evaluation CLIP also tells drawings apart, without words.
  const views = name === "clip_b"
    ? members(shard).filter((i) => i % 2 === 0).map((i) =>
      identityViews(fold(root, "views", i), materials.frames)
    )
    : [];
  const labels = [
    ...samples.map(() => null),
    ...views.flatMap(({ label }) => [
      label,
      label,
      spoiltLabel(label),
      spoiltLabel(label),
    ]),
  ];
  const drawn = [
    ...samples.map((s) => s.image),
    ...views.flatMap(({ views, spoilt }) => [...views, ...spoilt]),
  ];
  let images = pixels(drawn);
  if (name === "clip_b" && materials.autoencoder) {
    const degraded = degrade(
      images,
      fold(root, "degrade", shard.step, shard.index),
      materials.autoencoder,
    );
    images.dispose();
    images = degraded;
  }
  const inputs = centred(images, clipConfigOf(name).vision_config.image_size);
  images.dispose();
  return { images: inputs, tokens: ids(samples.map((s) => s.text)), labels };
}

/** The middle of images, as a centre crop takes it. */
function centred(images: tf.Tensor4D, size: number): tf.Tensor4D {
  const [b, h, w, c] = images.shape;
  const top = Math.floor((h - size) / 2), left = Math.floor((w - size) / 2);
  return tf.slice(images, [0, top, left, 0], [b, size, size, c]);
}

function shardKey(shard: Shard): string {
  return `${shard.step}/${shard.index}`;
}

/** First pass of a contrastive step: embeddings only. */
export async function clipEmbed(
  name: NetworkName,
  params: Clip,
  shard: Shard,
  materials: Materials,
): Promise<EmbeddedShard> {
  const inputs = clipInputs(name, shard, materials);
  const { images, tokens, labels } = inputs;
  const config = clipConfigOf(name);
  const [a, b] = tf.tidy(() => [
    normalise(imageEmbedding(params, config, images)),
    normalise(textEmbedding(params, config, tokens)),
  ]);
  const result = {
    images: await a.data() as Float32Array,
    texts: await b.data() as Float32Array,
    tokens,
    labels,
  };
  tf.dispose([a, b]);
  materials.waiting.set(shardKey(shard), inputs);
  return result;
}

/** Second pass: gradients, given those of the loss by the embeddings. */
export async function clipBackward(
  name: NetworkName,
  params: Clip,
  shard: Shard,
  materials: Materials,
  by: Embeddings,
  into: Float32Array,
): Promise<void> {
  const { images, tokens } = materials.waiting.get(shardKey(shard))!;
  materials.waiting.delete(shardKey(shard));
  const config = clipConfigOf(name);
  await differentiate(name, params, (p) => {
    const a = normalise(imageEmbedding(p, config, images));
    const b = normalise(textEmbedding(p, config, tokens));
    return tf.sum(a.mul(tf.tensor2d(by.images, a.shape))).add(
      tf.sum(b.mul(tf.tensor2d(by.texts, b.shape))),
    ) as tf.Scalar;
  }, into);
  images.dispose();
}

/**
 * The symmetric contrastive loss over a whole batch and its gradients, on the
 * host. Pairs with the same text count as the same pair.
 *
 * @param all Embeddings of every shard, in order.
 * @param logScale Logarithm of the inverse temperature.
 */
function contrastive(
  all: Embeddings,
  texts: readonly string[],
  logScale: number,
): { loss: number; top1: number; by: Embeddings; byScale: number } {
  const n = texts.length;
  const d = all.images.length / n;
  const scale = Math.exp(Math.min(logScale, Math.log(100)));
  const cosine = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      let dot = 0;
      for (let k = 0; k < d; k++) {
        dot += all.images[i * d + k] * all.texts[j * d + k];
      }
      cosine[i * n + j] = dot;
    }
  }
  const targets = texts.map((text) => {
    const same = texts.map((other) => other === text ? 1 : 0);
    const count = same.reduce((a: number, b) => a + b, 0);
    return same.map((s) => s / count);
  });
  // dL/dlogits of both directions, averaged.
  const g = new Float64Array(n * n);
  let loss = 0;
  let right = 0;
  for (const byRow of [true, false]) {
    for (let i = 0; i < n; i++) {
      const at = (j: number) => byRow ? i * n + j : j * n + i;
      let max = -Infinity;
      let best = 0;
      for (let j = 0; j < n; j++) {
        if (cosine[at(j)] > max) {
          max = cosine[at(j)];
          best = j;
        }
      }
      if (byRow && targets[i][best] > 0) right++;
      let sum = 0;
      for (let j = 0; j < n; j++) {
        sum += Math.exp(scale * (cosine[at(j)] - max));
      }
      const log = Math.log(sum) + scale * max;
      for (let j = 0; j < n; j++) {
        const logit = scale * cosine[at(j)];
        loss += targets[i][j] * (log - logit) / (2 * n);
        g[at(j)] += (Math.exp(logit - log) - targets[i][j]) / (2 * n);
      }
    }
  }
  const by = {
    images: new Float32Array(n * d),
    texts: new Float32Array(n * d),
  };
  let byScale = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const w = scale * g[i * n + j];
      byScale += w * cosine[i * n + j];
      for (let k = 0; k < d; k++) {
        by.images[i * d + k] += w * all.texts[j * d + k];
        by.texts[j * d + k] += w * all.images[i * d + k];
      }
    }
  }
  return { loss, top1: right / n, by, byScale };
}

/**
 * The loss of a contrastive step over all shards: of images and captions, and
 * of images that show the same drawing.
 *
 * @param shards Embeddings of every shard, in order.
 * @param logScale Logarithm of the inverse temperature.
 * @returns Losses, and the gradient by each shard's embeddings.
 */
export function clipLoss(
  shards: readonly EmbeddedShard[],
  logScale: number,
): { losses: Losses; by: Embeddings[]; byScale: number } {
  const d = shards[0].texts.length / shards[0].tokens.length;
  const captioned = {
    images: joined(
      Float32Array,
      shards.map(({ images, tokens }) => images.subarray(0, tokens.length * d)),
    ),
    texts: joined(Float32Array, shards.map(({ texts }) => texts)),
  };
  const texts = shards.flatMap(({ tokens }) => tokens.map((t) => t.join()));
  const { loss, top1, by, byScale } = contrastive(captioned, texts, logScale);
  const labels = shards.flatMap((shard) => shard.labels);
  const known = labels.some((label) => label !== null);
  const identity = known
    ? identityLoss(
      joined(Float32Array, shards.map(({ images }) => images)),
      labels,
    )
    : undefined;
  let image = 0, caption = 0;
  return {
    losses: {
      loss,
      top1,
      ...(identity ? { identity: identity.loss, hard: identity.hard } : {}),
    },
    byScale,
    by: shards.map(({ images, tokens }) => {
      const own = identity?.by.slice(image, image + images.length) ??
        new Float32Array(images.length);
      const size = tokens.length * d;
      for (let i = 0; i < size; i++) own[i] += by.images[caption + i];
      const part = {
        images: own,
        texts: by.texts.slice(caption, caption + size),
      };
      image += images.length;
      caption += size;
      return part;
    }),
  };
}

const SCHEDULE: Schedule = schedule(SCHEDULER_CONFIG);

/** What a denoising loss is made of. */
interface DenoisingBatch {
  /** Numbers of the scenes. */
  readonly scenes: readonly number[];
  readonly timesteps: readonly number[];
  /** Noisy latents, their velocity, weights [b, h, w, 1] and text states. */
  readonly inputs: {
    readonly x: tf.Tensor4D;
    readonly v: tf.Tensor4D;
    readonly weight: tf.Tensor4D;
    readonly states: tf.Tensor3D;
  };
}

/** Weight of a latent inside an object; outside it is 1. */
const OBJECT_WEIGHT = 3;

/**
 * How much each latent's error counts, at a mean of about one. Most of a picture
 * is background, whose texture nothing can predict: with even weights it makes
 * most of the gradient.
 */
function objectWeights(scene: Scene, art: Art): Float32Array {
  const { side } = scene, factor = side / LATENT_SIDE;
  const weights = new Float32Array(LATENT_SIDE ** 2).fill(
    2 / (1 + OBJECT_WEIGHT),
  );
  const gain = (OBJECT_WEIGHT - 1) * weights[0] / factor ** 2;
  scene.objects.forEach((_, i) =>
    renderMask(scene, art, i).forEach((alpha, p) => {
      const y = Math.floor(p / side / factor);
      const x = Math.floor((p % side) / factor);
      weights[y * LATENT_SIDE + x] += gain * alpha;
    })
  );
  return weights;
}

/**
 * Scenes, captions, noise and timesteps of a shard.
 *
 * @param place Where in [0, 1) of all timesteps a stratified draw lands.
 */
function denoisingBatch(
  shard: Shard,
  materials: Materials,
  place: (u: number) => number = (u) => u,
): DenoisingBatch {
  const side = LATENT_SIDE, c = UNET_CONFIG.in_channels;
  const size = side * side * c;
  const batch = members(shard);
  const known = materials.latents!.length / size;
  const root = key(shard.seed);
  const from = shard.step * shard.batch;
  const offset = stream(fold(root, "timestep", shard.step)).uniform();
  const scenes = batch.map((n) =>
    stream(fold(root, "scene", n)).integer(known)
  );
  const timesteps = batch.map((n) =>
    Math.min(
      999,
      Math.floor(place((n - from + offset) / shard.batch) * 1000),
    )
  );
  const latents = new Float32Array(batch.length * size);
  scenes.forEach((scene, i) =>
    latents.set(
      materials.latents!.subarray(scene * size, (scene + 1) * size),
      i * size,
    )
  );
  const texts = batch.map((n, i) => {
    const draw = stream(fold(root, "caption", n));
    if (draw.uniform() < DROP_CAPTION) return "";
    return captionOf(
      trainScene(scenes[i], WORLD, {}, materials.art),
      scenes[i],
      draw.integer(1000),
      { exclude: materials.exclude },
    );
  });
  const signal = timesteps.map((t) => Math.sqrt(SCHEDULE.alphasCumprod[t]));
  const noisy = timesteps.map((t) => Math.sqrt(1 - SCHEDULE.alphasCumprod[t]));
  const weights = timesteps.map((_, i) => {
    const snr = (signal[i] / noisy[i]) ** 2;
    return (Math.min(snr, MIN_SNR_GAMMA) + 1) / (snr + 1);
  });
  const objects = new Float32Array(batch.length * side * side);
  scenes.forEach((scene, i) =>
    objects.set(
      objectWeights(trainScene(scene, WORLD, {}, materials.art), materials.art),
      i * side * side,
    )
  );
  const inputs = tf.tidy(() => {
    const x0 = tf.tensor4d(latents, [batch.length, side, side, c]);
    const noise = tf.tensor4d(
      normal(fold(root, "noise", shard.step, shard.index), latents.length),
      x0.shape,
    );
    const column = (values: number[]) =>
      tf.tensor4d(values, [batch.length, 1, 1, 1]);
    const a = column(signal), s = column(noisy);
    return {
      x: x0.mul(a).add(noise.mul(s)) as tf.Tensor4D,
      v: noise.mul(a).sub(x0.mul(s)) as tf.Tensor4D,
      weight: column(weights).mul(
        tf.tensor4d(objects, [batch.length, side, side, 1]),
      ) as tf.Tensor4D,
      states:
        textEncoder(materials.text!, CLIP_CONFIG.text_config, ids(texts)).last,
    };
  });
  return { scenes, timesteps, inputs };
}

/**
 * Loss of the UNet: v-prediction with min-SNR weighting, timesteps stratified
 * over the batch.
 *
 * The weight of the error of x₀ is min(SNR, γ) + 1: v's own weight SNR + 1,
 * capped. Without the one the noisiest third of the steps, where small latents
 * take their shapes, would weigh next to nothing.
 */
export async function unetShard(
  params: UNet,
  shard: Shard,
  materials: Materials,
  into: Float32Array,
): Promise<Losses> {
  const { timesteps, inputs } = denoisingBatch(shard, materials);
  const loss = await differentiate("unet", params, (p) => {
    const out = unet(p, UNET_CONFIG, inputs.x, timesteps, inputs.states);
    return tf.mean(out.sub(inputs.v).square().mul(inputs.weight)) as tf.Scalar;
  }, into);
  tf.dispose(Object.values(inputs));
  return { loss };
}

/**
 * A sketch of a scene: the outline of every object, in front of nothing.
 *
 * @param scene The scene.
 * @param art Loaded art.
 * @returns `[side, side]`, 1 on outlines, as a condition image.
 */
export function sketchOf(scene: Scene, art: Art): Grey {
  const { side } = scene;
  const values = new Float32Array(side * side);
  scene.objects.forEach((_, i) => {
    outlineOf(renderMask(scene, art, i), side).values.forEach((v, k) => {
      values[k] = Math.max(values[k], v);
    });
  });
  return { width: side, height: side, values };
}

/**
 * Loss of the sketch adapter: the UNet's, which stays frozen, given outlines of
 * the scene's objects. Early steps decide the layout: timesteps are drawn
 * cubically towards them, as T2I-Adapter's authors do (Mou et al. 2023, §3.3).
 */
export async function adapterShard(
  params: T2IAdapter,
  shard: Shard,
  materials: Materials,
  into: Float32Array,
): Promise<Losses> {
  const { scenes, timesteps, inputs } = denoisingBatch(
    shard,
    materials,
    (u) => 1 - u ** 3,
  );
  const { side } = WORLD;
  const sketches = scenes.map((n) =>
    sketchOf(trainScene(n, WORLD, {}, materials.art), materials.art)
  );
  const condition = tf.tensor4d(
    Float32Array.from(sketches.flatMap(({ values }) => [...values])),
    [sketches.length, side, side, 1],
  );
  const loss = await differentiate("adapter", params, (p) => {
    const out = unet(
      materials.unet!,
      UNET_CONFIG,
      inputs.x,
      timesteps,
      inputs.states,
      { adapterFeatures: t2iAdapter(p, ADAPTER_CONFIG, condition) },
    );
    // Unweighted: min-SNR would mute the noisy steps that outlines are for.
    return tf.mean(out.sub(inputs.v).square()) as tf.Scalar;
  }, into);
  tf.dispose([...Object.values(inputs), condition]);
  return { loss };
}
