/**
 * IterIS (Chen et al., CVPR 2025, "Iterative Inference-Solving Alignment for LoRA
 * Merging"): a regression like RegMean's. But the inputs of the merged model's
 * layers are measured on the merged model itself, again in each round.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { fold, type Key, key as rootKey } from "../core/random.ts";
import { at } from "../core/tree.ts";
import { addTokens, type Concept } from "../customize/concept.ts";
import {
  attach,
  type Component,
  COMPONENTS,
  delta,
  type TargetName,
  type Targets,
} from "../customize/lora.ts";
import { pipeline } from "../diffusion/pipeline.ts";
import type { SamplerName } from "../diffusion/samplers.ts";
import { disposeModel, type Model, promptStates } from "../models/model.ts";
import { unet } from "../models/unet.ts";
import type { Conv, Linear } from "../nn/linear.ts";
import {
  combine,
  identity,
  inner,
  type Matrix,
  matrix,
  multiply,
  solver,
} from "../optim/least_squares.ts";
import { KEY_OR_VALUE, phraseOf, split, TEMPLATES } from "./features.ts";
import { replaceWeights } from "./replace.ts";
import { convolutionAt, inputRows } from "./statistics.ts";
import { averageWeights, checkFusion } from "./weight.ts";

/** One concept's weight for a layer, and the layer's inputs for the concept. */
export interface IterisTerm {
  /** Wᵢ = W₀ + ΔWᵢ [in, out]. */
  readonly weight: Matrix;
  /** XᵢᵀXᵢ [in, in]: inputs in the concept's own model. */
  readonly own: Matrix;
  /** X̃ᵢᵀX̃ᵢ [in, in]: inputs of the same samples in the merged model. */
  readonly merged: Matrix;
  /** X̃ᵢᵀXᵢ [in, in]. */
  readonly cross: Matrix;
}

/** A solved layer. */
export interface IterisSolution {
  /** The merged weight [in, out]. */
  readonly weight: Matrix;
  /** Σ λᵢ‖X̃ᵢW − XᵢWᵢ‖²_F as a share of Σ λᵢ‖XᵢWᵢ‖²_F. */
  readonly error: number;
}

/**
 * One layer: W = argmin Σ λᵢ‖X̃ᵢW − XᵢWᵢ‖²_F with λᵢ = ‖Wᵢ‖²/‖XᵢWᵢ‖²,
 * that is
 * W = (Σ λᵢ(X̃ᵢᵀX̃ᵢ + α‖X̃ᵢᵀX̃ᵢ‖_F·I))⁻¹ Σ λᵢ(X̃ᵢᵀXᵢ + α‖X̃ᵢᵀXᵢ‖_F·I)·Wᵢ.
 *
 * @param terms One per concept.
 * @param alpha α, a ridge that keeps W near the Wᵢ if there are few samples.
 * @default alpha 1e-4, the article's
 * @throws If there are no concepts, or α is not above 0.
 */
export function iterisLayer(
  terms: readonly IterisTerm[],
  alpha = 1e-4,
): IterisSolution {
  if (terms.length === 0) throw cannot("merge", "at least one change", "none");
  if (!(alpha > 0)) throw cannot("merge", "α > 0", alpha);
  const [{ weight: { rows, columns } }] = terms;
  const one = identity(rows);
  let left = matrix(rows, rows);
  let right = matrix(rows, columns);
  const weighted = terms.map(({ weight, own, merged, cross }) => {
    const energy = inner(weight, multiply(own, weight));
    const lambda = energy > 0 ? inner(weight, weight) / energy : 0;
    const kept = combine(cross, one, 1, alpha * norm(cross));
    left = combine(
      left,
      combine(merged, one, 1, alpha * norm(merged)),
      1,
      lambda,
    );
    right = combine(right, multiply(kept, weight), 1, lambda);
    return { lambda, energy };
  });
  // Already positive definite: the tiny ridge only selects the Cholesky solver.
  const solved = solver(left, 1e-14)(right);
  let [error, total] = [0, 0];
  terms.forEach(({ weight, merged, cross }, i) => {
    const { lambda, energy } = weighted[i];
    error += lambda * (inner(solved, multiply(merged, solved)) -
      2 * inner(solved, multiply(cross, weight)) + energy);
    total += lambda * energy;
  });
  return {
    weight: solved,
    error: total > 0 ? Math.max(0, error) / total : 0,
  };
}

function norm(a: Matrix): number {
  return Math.sqrt(inner(a, a));
}

/** Settings of {@linkcode iteris}. */
export interface IterisOptions {
  /**
   * Rounds of measuring inputs and solving layers; the first round measures in
   * the concepts' own models only. The article uses up to 20.
   *
   * @default 5
   */
  readonly rounds?: number;
  /** α of {@linkcode iterisLayer}. @default 1e-4 */
  readonly alpha?: number;
  /**
   * Layers that are solved, of those that the adapters have; the others are
   * averaged. A convolution is solved as the linear layer of its patches.
   *
   * @default "attention"
   */
  readonly layers?: TargetName | Targets;
  /** Prompts that are run. @default ["photo of a {}", "{}"] */
  readonly templates?: readonly string[];
  /** Sampling steps of those runs. @default 20 */
  readonly steps?: number;
  /** Sampler of those runs. @default "dpmpp_2m" */
  readonly sampler?: SamplerName;
  /** Randomness of those runs. @default key(0) */
  readonly key?: Key;
}

/** A round is done. */
export interface IterisRecord {
  /** The round, from 1. */
  readonly round: number;
  /** Rounds in all. */
  readonly rounds: number;
  /** Mean over the layers of {@linkcode IterisSolution}'s `error`. */
  readonly error: number;
  /** Change of the weights, relative to those of the last round. */
  readonly change: number;
  /** Seconds of the round. */
  readonly seconds: number;
}

/** A latent and its timestep in a sampling run. */
interface Point {
  readonly sample: tf.Tensor4D;
  readonly timestep: number;
}

/** One concept's model and the inputs to run it on. */
interface Client {
  readonly model: Model;
  readonly prompts: readonly string[];
  readonly points: readonly Point[];
}

/**
 * Merges concepts by IterIS: each round runs every concept's prompts and noised
 * latents through its own model and through the merged one, and solves all layers.
 *
 * @param base The model; not changed.
 * @param concepts The concepts; not changed.
 * @param options Rounds, ridge, what is run.
 * @returns Yields a record per round; returns a model of the same type. Its
 * changed weights and token vectors are new (`disposeModel(merged, base)` frees
 * them), all else is shared.
 * @throws Before work starts, if a concept does not fit or an option is wrong.
 *
 * @example
 * ```ts
 * const merged = await finish(iteris(base, [potter, thanos], { rounds: 3 }));
 * ```
 */
export async function* iteris(
  base: Model,
  concepts: readonly Concept[],
  options: IterisOptions = {},
): AsyncGenerator<IterisRecord, Model> {
  const { rounds = 5, alpha = 1e-4, layers = "attention" } = options;
  const { templates = TEMPLATES } = options;
  const what = "merge by IterIS";
  checkFusion(base, concepts);
  if (!(Number.isInteger(rounds) && rounds >= 1)) {
    throw cannot(what, "rounds ≥ 1", rounds);
  }
  if (!(alpha > 0)) throw cannot(what, "α > 0", alpha);
  if (templates.length === 0 || templates.some((t) => !t.includes("{}"))) {
    throw cannot(what, "templates with {} in them", templates);
  }
  const phrases = concepts.map(phraseOf);
  const paths = Object.fromEntries(
    COMPONENTS.map((component) => [
      component,
      split(base, concepts, component, layers),
    ]),
  ) as Record<Component, ReturnType<typeof split>>;
  const named = addTokens(base, concepts);
  const points: Point[] = [];
  let merged = named;
  let complete = false;
  try {
    const clients: Client[] = [];
    for (const [i, { name, adapter }] of concepts.entries()) {
      const model = adapter.textEncoder.size + adapter.unet.size > 0
        ? attach(named, adapter)
        : named;
      const prompts = templates.map((t) => t.replaceAll("{}", phrases[i]));
      const own = await trajectory(model, prompts[0], {
        ...options,
        key: fold(options.key ?? rootKey(0), name),
      });
      points.push(...own);
      clients.push({ model, prompts, points: own });
    }
    const weights = await ownWeights(base, concepts, paths);
    let last: Map<string, Matrix> | undefined;
    for (let round = 1; round <= rounds; round++) {
      const before = performance.now();
      const terms = new Map<string, IterisTerm[]>();
      for (const [i, client] of clients.entries()) {
        // In the first round there is no merged model yet.
        const other = last ? merged : client.model;
        for (const [name, sums] of await measure(client, other, paths)) {
          const list = terms.get(name) ?? [];
          list.push({ weight: weights[i].get(name)!, ...sums });
          terms.set(name, list);
        }
      }
      const next = new Map<string, Matrix>();
      let errors = 0;
      for (const [name, list] of terms) {
        const { weight, error } = iterisLayer(list, alpha);
        next.set(name, weight);
        errors += error;
      }
      const previous = merged;
      merged = placed(named, paths, next);
      disposeModel(previous, named);
      const change = last ? distance(next, last) : 1;
      last = next;
      yield {
        round,
        rounds,
        error: errors / Math.max(1, terms.size),
        change,
        seconds: (performance.now() - before) / 1000,
      };
    }
    for (const component of COMPONENTS) {
      const { averaged } = paths[component];
      const { params } = merged[component];
      const lambda = 1 / concepts.length;
      merged = {
        ...merged,
        [component]: {
          ...merged[component],
          params: averageWeights(params, component, averaged, concepts, {
            lambda,
          }),
        },
      };
    }
    complete = true;
    return merged;
  } finally {
    tf.dispose(points.map(({ sample }) => sample));
    if (!complete) disposeModel(merged, base);
  }
}

/** The latents and timesteps of a sampling run without guidance. */
async function trajectory(
  model: Model,
  prompt: string,
  { steps = 20, sampler = "dpmpp_2m", key }: IterisOptions,
): Promise<Point[]> {
  const points: Point[] = [];
  const run = pipeline(model, {
    prompts: [prompt],
    guidance: 1,
    ...{ steps, sampler },
    key: [key!],
    decode: false,
    denoise: (plain, { sample, timestep }) => {
      points.push({ sample: tf.keep(sample.clone()), timestep });
      return plain();
    },
  });
  for await (const _ of run) { /* the points are what is wanted */ }
  return points;
}

/** Wᵢ of every layer that is solved, by `<component>.<path>`. */
async function ownWeights(
  base: Model,
  concepts: readonly Concept[],
  paths: Record<Component, ReturnType<typeof split>>,
): Promise<Map<string, Matrix>[]> {
  return await Promise.all(concepts.map(async ({ adapter }) => {
    const found = new Map<string, Matrix>();
    for (const component of COMPONENTS) {
      for (const path of paths[component].fitted) {
        const weight: tf.Tensor = at(base[component].params, path).weight;
        const low = adapter[component].get(path);
        const sum = low
          ? tf.tidy(() => weight.add(delta(low, weight)))
          : weight.clone();
        const columns = weight.shape.at(-1)!;
        found.set(
          `${component}.${path}`,
          matrix(
            weight.size / columns,
            columns,
            Float64Array.from(await sum.data()),
          ),
        );
        sum.dispose();
      }
    }
    return found;
  }));
}

type Sums = Omit<IterisTerm, "weight">;

/** Inputs of the same samples in two models, summed as products. */
async function measure(
  { model, prompts, points }: Client,
  merged: Model,
  paths: Record<Component, ReturnType<typeof split>>,
): Promise<Map<string, Sums>> {
  const sums = new Map<string, tf.Tensor2D[]>();
  const add = (component: Component, path: string, inputs: tf.Tensor[]) => {
    const name = `${component}.${path}`;
    const layer: Linear | Conv = at(model[component].params, path);
    const [own, other] = inputs.map((x) =>
      inputRows(layer, x, convolutionAt(path))
    );
    const products = [[own, own], [other, other], [other, own]]
      .map(([a, b]) => tf.matMul(a, b, true) as tf.Tensor2D);
    const known = sums.get(name);
    sums.set(
      name,
      products.map((p, i) =>
        tf.keep((known ? known[i].add(p) : p) as tf.Tensor2D)
      ),
    );
    tf.dispose(known ?? []);
  };
  /** Runs both models and pairs the inputs of their layers. */
  const pair = (
    component: Component,
    wanted: readonly string[],
    run: (m: Model, tap: (layer: Linear | Conv, x: tf.Tensor) => void) => void,
  ) =>
    tf.tidy(() => {
      const inputsOf = (m: Model) => {
        const names = new Map(
          wanted.map((path) => [at(m[component].params, path), path]),
        );
        const seen = new Map<string, tf.Tensor>();
        run(m, (layer, x) => {
          const path = names.get(layer);
          // The network frees its inputs, so copies are kept.
          if (path !== undefined) seen.set(path, tf.keep(x.clone()));
        });
        return seen;
      };
      const own = inputsOf(model);
      const other = merged === model ? own : inputsOf(merged);
      for (const [path, x] of own) {
        add(component, path, [x, other.get(path)!]);
      }
      tf.dispose([...own.values(), ...other.values()]);
    });
  try {
    pair("textEncoder", paths.textEncoder.fitted, (m, tap) => {
      promptStates(m, prompts, { tap });
    });
    const spatial = paths.unet.fitted.filter((p) => !KEY_OR_VALUE.test(p));
    for (const [i, { sample, timestep }] of points.entries()) {
      // Text states are the same at every step: keys and values are measured
      // once.
      pair("unet", i === 0 ? paths.unet.fitted : spatial, (m, tap) => {
        const states = promptStates(m, prompts.slice(0, 1));
        unet(m.unet.params, m.unet.config, sample, [timestep], states, { tap });
      });
    }
    const read = async (t: tf.Tensor2D) =>
      matrix(...t.shape, Float64Array.from(await t.data()));
    const result = new Map<string, Sums>();
    for (const [name, [own, other, cross]] of sums) {
      result.set(name, {
        own: await read(own),
        merged: await read(other),
        cross: await read(cross),
      });
    }
    return result;
  } finally {
    tf.dispose([...sums.values()]);
  }
}

/** A model with solved weights; they are new tensors. */
function placed(
  model: Model,
  paths: Record<Component, ReturnType<typeof split>>,
  weights: ReadonlyMap<string, Matrix>,
): Model {
  return COMPONENTS.reduce((sum, component) =>
    replaceWeights(
      sum,
      component,
      new Map(paths[component].fitted.map((path) => {
        const { data } = weights.get(`${component}.${path}`)!;
        const { shape }: tf.Tensor = at(model[component].params, path).weight;
        return [path, tf.tensor(Float32Array.from(data), shape)];
      })),
    ), model);
}

function distance(
  a: ReadonlyMap<string, Matrix>,
  b: ReadonlyMap<string, Matrix>,
): number {
  let [moved, size] = [0, 0];
  for (const [name, now] of a) {
    const gone = combine(now, b.get(name)!, 1, -1);
    moved += inner(gone, gone);
    size += inner(now, now);
  }
  return Math.sqrt(moved / size);
}
