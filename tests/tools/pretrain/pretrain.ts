import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../../src/core/errors.ts";
import { finish } from "../../../src/core/finish.ts";
import { fold, key } from "../../../src/core/random.ts";
import { createPool } from "../../../src/core/pool.ts";
import { disposeTree } from "../../../src/core/tree.ts";
import { exists } from "../../../src/io/files.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../../../src/io/safetensors.ts";
import { initialise } from "../../../src/nn/spec.ts";
import {
  type Autoencoder,
  autoencoderSpec,
  encode,
} from "../../../src/models/autoencoder.ts";
import { loadArt } from "../../../src/micro/art.ts";
import {
  flatAdamW,
  type FlatLayout,
  type FlatState,
  flatState,
  warmupLinear,
} from "./flat.ts";
import { flatMuon, type Orthogonaliser } from "./muon.ts";
import { type NetworkName, type NetworkRecipe, VAE_CONFIG } from "./recipe.ts";
import { latentBasis, rescaleLatents } from "./latent_basis.ts";
import {
  type ServerInit,
  type ShardAnswer,
  type ShardRequest,
  startShardServer,
} from "./shards.ts";
import type { ShardHandlers } from "./worker.ts";
import {
  clipLoss,
  type EmbeddedShard,
  flattenTree,
  LATENT_SIDE,
  type Losses,
  networkLayout,
  networkSpec,
  pixels,
  sceneImage,
  type Shard,
  unflatten,
} from "./tasks.ts";

/** Runs shard requests: in workers, or in place. */
interface ShardRunner {
  /** Answers in the order of the requests. */
  map(requests: readonly ShardRequest[]): Promise<ShardAnswer[]>;
  close(): void;
}

/** Memory that host and workers see alike. */
export function sharedFloats(length: number): Float32Array {
  return new Float32Array(new SharedArrayBuffer(4 * length));
}

/**
 * Starts a runner.
 *
 * @param init Data of the network's shard server.
 * @param workers Number of Deno Workers; 0 runs in place on the current backend.
 */
async function startRunner(
  init: ServerInit,
  workers: number,
): Promise<ShardRunner> {
  if (workers === 0) {
    const server = await startShardServer(init);
    return {
      async map(requests) {
        const answers: ShardAnswer[] = [];
        for (const request of requests) answers.push(await server(request));
        return answers;
      },
      close: () => {},
    };
  }
  const pool = await createPool<ShardHandlers>({
    workers,
    module: new URL("./worker.ts", import.meta.url),
    init,
  });
  return {
    // Shard i always goes to the same worker: what a CLIP's first pass kept is
    // there for its second.
    map: (requests) =>
      Promise.all(
        requests.map((request, i) =>
          pool.run("shard", request, { worker: i % workers })
        ),
      ),
    close: () => pool.close(),
  };
}

/** One step of pretraining. */
export interface PretrainRecord {
  /** Steps done. */
  readonly step: number;
  readonly steps: number;
  readonly losses: Losses;
  readonly lr: number;
  /** Gradient norm before clipping. */
  readonly norm: number;
  readonly seconds: number;
}

/** Options of {@linkcode pretrain}. */
export interface PretrainOptions {
  readonly recipe: NetworkRecipe;
  /** Deno Workers; 0 runs in place. */
  readonly workers: number;
  /** Where the run's full state lives, written every `saveEvery` seconds. */
  readonly checkpoint: string;
  /** @default 120 */
  readonly saveEvery?: number;
  /** Starting parameters (such as committed averaged weights). */
  readonly start?: Float32Array;
  /** Data the shards need. */
  readonly materials?: Omit<ServerInit, "name" | "params">;
}

/**
 * Trains one network of the embedded model, data-parallel over shards.
 *
 * The state (parameters, moments, average, step) is saved as it goes, and when the
 * caller asks for no more records; a run killed at any moment resumes from the last
 * save and ends in the same weights.
 *
 * @param name The network.
 * @param options Recipe, workers, files.
 * @returns The final state.
 */
export async function* pretrain(
  name: NetworkName,
  options: PretrainOptions,
): AsyncGenerator<PretrainRecord, FlatState> {
  const { recipe, workers, checkpoint, saveEvery = 120 } = options;
  const layout = networkLayout(name);
  const shared = sharedFloats(layout.size);
  const saved = await exists(checkpoint)
    ? await loadState(checkpoint, layout.size, recipe)
    : undefined;
  shared.set(
    saved?.params ?? options.start ?? freshParams(name, recipe.seed),
  );
  const state = saved ? { ...saved, params: shared } : flatState(shared);
  const runner = await startRunner(
    { name, params: shared, ...options.materials },
    workers,
  );
  const grads = new Float32Array(layout.size);
  const ofShard = Array.from(
    { length: recipe.shards },
    () => sharedFloats(layout.size),
  );
  const orthogonaliser = recipe.optimizer === "muon"
    ? muonIn(runner, layout.size, Math.max(1, workers))
    : undefined;
  let lastSave = performance.now();
  let between = false;
  try {
    while (state.step < recipe.steps) {
      const began = performance.now();
      const shards = Array.from({ length: recipe.shards }, (_, index) => ({
        step: state.step,
        index,
        count: recipe.shards,
        batch: recipe.batch,
        seed: recipe.seed,
      }));
      const losses = name === "clip_a" || name === "clip_b"
        ? await clipGradient(runner, shards, ofShard, grads, layout, shared)
        : await meanGradient(runner, shards, ofShard, grads);
      const lr = warmupLinear(state.step, recipe);
      const norm = orthogonaliser
        ? await flatMuon(
          layout,
          state,
          grads,
          { ...recipe, lr },
          orthogonaliser,
        )
        : flatAdamW(layout, state, grads, { ...recipe, lr });
      between = true;
      yield {
        step: state.step,
        steps: recipe.steps,
        losses,
        lr,
        norm,
        seconds: (performance.now() - began) / 1000,
      };
      between = false;
      if (performance.now() - lastSave > saveEvery * 1000) {
        await saveState(checkpoint, state, recipe);
        lastSave = performance.now();
      }
    }
    await saveState(checkpoint, state, recipe);
    return state;
  } finally {
    runner.close();
    if (between) await saveState(checkpoint, state, recipe);
  }
}

/** The gradient of a loss that is a mean over shards; gives its parts. */
async function meanGradient(
  runner: ShardRunner,
  shards: readonly Shard[],
  ofShard: readonly Float32Array[],
  grads: Float32Array,
): Promise<Losses> {
  const results = await runner.map(
    shards.map((shard, i) => ({ kind: "gradient", shard, into: ofShard[i] })),
  ) as Losses[];
  grads.fill(0);
  for (const part of ofShard) add(grads, part, 1 / shards.length);
  const losses: Record<string, number> = {};
  for (const result of results) {
    for (const [part, value] of Object.entries(result)) {
      losses[part] = (losses[part] ?? 0) + value / shards.length;
    }
  }
  return losses;
}

/** The gradient of a CLIP's loss, which sees the embeddings of all shards. */
async function clipGradient(
  runner: ShardRunner,
  shards: readonly Shard[],
  ofShard: readonly Float32Array[],
  grads: Float32Array,
  layout: FlatLayout,
  params: Float32Array,
): Promise<Losses> {
  const embedded = await runner.map(
    shards.map((shard) => ({ kind: "embed", shard })),
  ) as EmbeddedShard[];
  const at = layout.entries.find((e) => e.path === "logit_scale")!.offset;
  const { by, byScale, losses } = clipLoss(embedded, params[at]);
  await runner.map(shards.map((shard, i) => ({
    kind: "backward",
    shard,
    by: by[i],
    into: ofShard[i],
  })));
  grads.fill(0);
  for (const part of ofShard) add(grads, part, 1);
  grads[at] += byScale;
  return losses;
}

/** Lets the servers of a runner orthogonalise updates, each a part of them. */
function muonIn(
  runner: ShardRunner,
  size: number,
  parts: number,
): Orthogonaliser {
  const updates = sharedFloats(size);
  return {
    updates,
    async run() {
      await runner.map(Array.from({ length: parts }, (_, part) => ({
        kind: "orthogonalise",
        part,
        parts,
        updates,
      })));
    },
  };
}

function add(to: Float32Array, from: Float32Array, factor: number): void {
  for (let i = 0; i < to.length; i++) to[i] += factor * from[i];
}

/** Freshly initialised parameters, flat. */
function freshParams(name: NetworkName, seed: number): Float32Array {
  const tree = initialise(networkSpec(name), fold(key(seed), "initialise"));
  const flat = flattenTree(networkLayout(name), tree);
  disposeTree(tree);
  return flat;
}

const STATE = ["params", "m", "v", "ema"] as const;

/** How a state is kept where its size counts: half of the full one. */
const SHORT = { params: "F32", m: "BF16", v: "BF16", ema: "F16" } as const;

/** What a run that goes on must have in common with the one that stopped. */
type Origin = Pick<NetworkRecipe, "seed" | "batch" | "shards">;

/**
 * Writes the whole state of a run, atomically.
 *
 * @param path Where.
 * @param state The state.
 * @param origin What a run that goes on from it must have in common with it.
 * @param short Moments and average in 16 bits: a run that goes on from such a
 * file is not bit for bit the one that was stopped.
 */
export async function saveState(
  path: string,
  state: FlatState,
  origin: Origin,
  short = false,
): Promise<void> {
  const tensors = STATE.map((part): [string, RawTensor] => {
    const dtype = short ? SHORT[part] : "F32";
    return [part, {
      dtype,
      shape: [state[part].length],
      data: encodeFloat(state[part], dtype),
    }];
  });
  const { seed, batch, shards } = origin;
  await writeSafetensors(path, tensors, {
    step: String(state.step),
    seed: String(seed),
    batch: String(batch),
    shards: String(shards),
  });
}

/**
 * Reads the state of a run.
 *
 * @param path A file of {@linkcode saveState}.
 * @param size Number of parameters.
 * @param origin What the run that goes on has in common with it.
 * @throws If it is another run's.
 */
export async function loadState(
  path: string,
  size: number,
  origin: Origin,
): Promise<FlatState> {
  using file = await openSafetensors(path);
  for (const name of ["seed", "batch", "shards"] as const) {
    const saved = file.metadata[name];
    if (saved === undefined || Number(saved) === origin[name]) continue;
    throw cannot(`resume from ${path}`, `${name} ${origin[name]}`, saved);
  }
  const part = async (name: string) => {
    const values = toFloat32(await file.read(name));
    if (values.length !== size) {
      throw cannot(
        `resume from ${path}`,
        `${size} parameters`,
        values.length,
      );
    }
    return values;
  };
  return {
    step: Number(file.metadata.step),
    params: await part("params"),
    m: await part("m"),
    v: await part("v"),
    ema: await part("ema"),
  };
}

/**
 * Encodes the latents of the training scenes, in workers.
 *
 * @param autoencoder Flat parameters of the autoencoder.
 * @param workers Deno Workers; 0 runs in place.
 * @param scenes How many.
 * @returns Progress in scenes, and the latents, in shared memory.
 */
export async function* encodeLatents(
  autoencoder: Float32Array,
  workers: number,
  scenes: number,
): AsyncGenerator<{ done: number; total: number }, Float32Array> {
  const latents = sharedFloats(
    scenes * LATENT_SIDE ** 2 * VAE_CONFIG.latent_channels,
  );
  const params = sharedFloats(autoencoder.length);
  params.set(autoencoder);
  const runner = await startRunner({ name: "vae", params }, workers);
  try {
    const piece = 256;
    for (let from = 0; from < scenes;) {
      const requests: ShardRequest[] = [];
      for (let w = 0; w < Math.max(1, workers) && from < scenes; w++) {
        const to = Math.min(scenes, from + piece);
        requests.push({ kind: "encode", from, to, latents });
        from = to;
      }
      await runner.map(requests);
      yield { done: from, total: scenes };
    }
    return latents;
  } finally {
    runner.close();
  }
}

/**
 * Gives a trained autoencoder's latents the {@linkcode latentBasis}.
 *
 * @param values Flat parameters.
 * @param workers Deno Workers; 0 runs in place.
 * @returns Flat parameters that decode to the same images.
 */
export async function normaliseLatents(
  values: Float32Array,
  workers: number,
): Promise<Float32Array> {
  const latents = await finish(encodeLatents(values, workers, 512));
  const basis = latentBasis(latents, VAE_CONFIG.latent_channels);
  const tree = unflatten<Autoencoder>(autoencoderSpec(VAE_CONFIG), values);
  const changed = rescaleLatents(tree, basis, await averageVariance(tree));
  const flat = flattenTree(networkLayout("vae"), changed);
  disposeTree([tree, changed]);
  return flat;
}

/** Posterior variance of each latent channel, averaged over some scenes. */
async function averageVariance(tree: Autoencoder): Promise<number[]> {
  const art = await loadArt();
  const images = Array.from({ length: 16 }, (_, i) => sceneImage(i, art));
  const variance = tf.tidy(() =>
    encode(tree, VAE_CONFIG, pixels(images)).logvar.exp()
      .mean([0, 1, 2])
  );
  const values = Array.from(await variance.data());
  variance.dispose();
  return values;
}
