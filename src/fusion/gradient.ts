/**
 * Gradient fusion of whole models (Mix-of-Show §3.3), in the official order:
 * embeddings → text encoder → keys and values of cross-attention → everything
 * else in the UNet.
 *
 * The order matters because each stage is fitted on what the stages before it
 * produce: keys and values see the states of the fused text encoder, spatial
 * layers are observed while sampling with both.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { at, type TreeLike } from "../core/tree.ts";
import { addTokens, type Concept } from "../customize/concept.ts";
import type { Component, TargetName, Targets } from "../customize/lora.ts";
import { disposeModel, type Model } from "../models/model.ts";
import { type LowRank, spectralGains } from "../nn/linear.ts";
import { identity, type Matrix, matrix } from "../optim/least_squares.ts";
import {
  type ConceptStatistics,
  type FeatureOptions,
  type FuseFeaturesRecord,
  KEY_OR_VALUE,
  keyValueStatistics,
  phraseOf,
  spatialStatistics,
  split,
  TEMPLATES,
  textStatistics,
  timed,
} from "./features.ts";
import {
  addConcept,
  type Change,
  type Delta,
  denseDelta,
  type Problem,
  solve,
  type SolveOptions,
  SPATIAL_RIDGE,
} from "./layer.ts";
import { replaceWeights } from "./replace.ts";
import type { Stats } from "./statistics.ts";
import {
  averageWeights,
  checkFusion,
  checkLambda,
  scaledDelta,
  type Strength,
  strengthOf,
} from "./weight.ts";

/** The stages of fusion that fit layers, in order. */
export type FuseStage = "textEncoder" | "kv" | "spatial" | "weight";

/** Settings of {@linkcode fuse}. */
export interface FuseOptions
  extends Omit<FeatureOptions, "halves">, SolveOptions {
  /**
   * αᵢ, one per concept.
   *
   * @default 1
   */
  readonly strengths?: readonly Strength[];
  /**
   * wᵢ: the weight of each concept in the least-squares loss.
   *
   * @default 1
   */
  readonly weights?: readonly number[];
  /**
   * Layers fused by least squares, of those that the adapters have: `attention`
   * as Mix-of-Show, `linear` with feed-forwards, `all` with convolutions. Other
   * layers are fused by weight.
   *
   * @default "attention"
   */
  readonly layers?: TargetName | Targets;
  /**
   * λ of weight fusion: for layers left out, and for comparison.
   *
   * @default 1/n
   */
  readonly lambda?: number;
  /**
   * L-BFGS: maximum number of iterations by stage.
   *
   * @default { textEncoder: 500, kv: 500, spatial: 50 }
   */
  readonly stageIterations?: Partial<
    Readonly<Record<"textEncoder" | "kv" | "spatial", number>>
  >;
  /**
   * Statistics that clients measured, one per concept (see
   * {@linkcode conceptStatistics}): then no model is run. They were measured on
   * each client's own model, not on the partly fused one.
   */
  readonly statistics?: readonly ConceptStatistics[];
}

/** Iterations of the official configuration. */
export const OFFICIAL_ITERATIONS: Readonly<
  Record<"textEncoder" | "kv" | "spatial", number>
> = { textEncoder: 500, kv: 500, spatial: 50 };

/** A layer has been fused. */
export interface FuseLayerRecord {
  /** Tells it from the record of features. */
  readonly type: "layer";
  /** The stage that fused it. */
  readonly stage: FuseStage;
  /** The network it is in. */
  readonly component: Component;
  /** Path of the layer. */
  readonly layer: string;
  /** Layers fused so far, this one included, and in all. */
  readonly index: number;
  /** Layers in all. */
  readonly total: number;
  /** Mean squared feature error of W₀; NaN in stage `weight`. */
  readonly lossBefore: number;
  /** The same of the fused weight. */
  readonly lossAfter: number;
  /** The same of weight fusion. */
  readonly lossWeightFusion: number;
  /** The ridge it was solved with; NaN for L-BFGS and in stage `weight`. */
  readonly ridge: number;
  /** Seconds spent on solving. */
  readonly seconds: number;
  /** Rows over all concepts. */
  readonly rows: number;
  /** Input features. */
  readonly features: number;
}

/** What {@linkcode fuse} yields. */
export type FuseRecord = FuseLayerRecord | FuseFeaturesRecord;

/**
 * ΔW of an adapter leaf on the host, as factors; dense for DoRA.
 *
 * @param low The leaf.
 * @param weight The layer's W₀.
 * @param alpha Strength.
 */
export async function hostDelta(
  low: LowRank,
  weight: tf.Tensor,
  alpha: number,
): Promise<Delta> {
  const outputs = weight.shape[weight.rank - 1]!;
  const inputs = weight.size / outputs;
  if (low.magnitude) {
    const change = scaledDelta(low, weight, alpha);
    const down = matrix(inputs, outputs, await change.data());
    change.dispose();
    return { down, up: identity(outputs) };
  }
  const rank = low.down.size / inputs;
  const factor = low.scale * alpha;
  const down = await low.down.data();
  const gains = low.spectrum && tf.tidy(() => spectralGains(low.spectrum!));
  const gain = await gains?.data();
  gains?.dispose();
  return {
    down: matrix(
      inputs,
      rank,
      Float64Array.from(down, (x, i) => factor * x * (gain?.[i % rank] ?? 1)),
    ),
    up: matrix(rank, outputs, await low.up.data()),
  };
}

/**
 * W₀ + ΔW.
 *
 * @param weight W₀ [in, out] or HWIO.
 * @param delta ΔW, as factors or [in, out].
 * @returns A new tensor of W₀'s shape.
 */
export function applyDelta(
  weight: tf.Tensor,
  delta: Delta | Matrix,
): tf.Tensor {
  const { rows, columns, data } = "down" in delta ? denseDelta(delta) : delta;
  return tf.tidy(() =>
    weight.add(
      tf.tensor2d(Float32Array.from(data), [rows, columns])
        .reshape(weight.shape),
    )
  );
}

function check(
  base: Model,
  concepts: readonly Concept[],
  options: FuseOptions,
): void {
  const what = "fuse concepts";
  checkFusion(base, concepts, options.strengths);
  checkLambda(options.lambda);
  concepts.forEach(phraseOf);
  for (const name of ["weights", "noise", "statistics"] as const) {
    const given = options[name];
    if (given && given.length !== concepts.length) {
      throw cannot(what, `${concepts.length} ${name}`, given.length);
    }
  }
  if (options.weights?.some((w) => !(w >= 0 && Number.isFinite(w)))) {
    throw cannot(what, "finite weights ≥ 0", options.weights);
  }
  const { method = "closed", ridge = "auto", templates = TEMPLATES } = options;
  if (method !== "closed" && method !== "lbfgs") {
    throw cannot(what, "method closed or lbfgs", String(method));
  }
  if (ridge !== "auto" && !(ridge >= 0)) {
    throw cannot(what, "a ridge ≥ 0 or auto", ridge);
  }
  const { positions = "official" } = options;
  if (positions !== "official" && positions !== "full") {
    throw cannot(what, "positions official or full", String(positions));
  }
  if (templates.length === 0 || templates.some((t) => !t.includes("{}"))) {
    throw cannot(what, "templates with {} in them", templates);
  }
}

/** The state of a running fusion. */
interface Job {
  readonly base: Model;
  readonly concepts: readonly Concept[];
  readonly options: FuseOptions;
  readonly lambda: number;
  /** Whether features are kept in two halves. */
  readonly halves: boolean;
  /** Layers fused so far, and in all. */
  readonly done: { index: number; readonly total: number };
}

/**
 * Fuses concepts into one model by gradient fusion: layer by layer, the fused
 * weight is fitted to the outputs of each single-concept model on its own
 * features.
 *
 * @param base The model; not changed.
 * @param concepts The concepts; not changed.
 * @param options Method, ridge, strengths, how features are gathered.
 * @returns Yields progress and one record per fused layer; returns a model of the
 * same type that knows all concepts' tokens. Its changed weights and token
 * vectors are new (`disposeModel(fused, base)` frees them), all else is shared.
 * @throws Before work starts, if a concept does not fit or an option is wrong.
 *
 * @example
 * ```ts
 * const run = fuse(base, [potter, thanos]);
 * let next = await run.next();
 * for (; !next.done; next = await run.next()) console.log(next.value);
 * const fused = next.value;
 * ```
 */
export async function* fuse(
  base: Model,
  concepts: readonly Concept[],
  options: FuseOptions = {},
): AsyncGenerator<FuseRecord, Model> {
  check(base, concepts, options);
  const { layers = "attention", strengths, ridge = "auto" } = options;
  const text = split(base, concepts, "textEncoder", layers);
  const unet = split(base, concepts, "unet", layers);
  const kv = unet.fitted.filter((path) => KEY_OR_VALUE.test(path));
  const spatial = unet.fitted.filter((path) => !KEY_OR_VALUE.test(path));
  const halves = options.method !== "lbfgs" && ridge === "auto";
  const job: Job = {
    base,
    concepts,
    options,
    lambda: options.lambda ?? 1 / concepts.length,
    halves,
    done: {
      index: 0,
      total: [text, unet].flatMap((s) => [...s.fitted, ...s.averaged]).length,
    },
  };
  const features = { ...options, halves };
  const alpha = (i: number, component: Component) => ({
    alpha: strengthOf(strengths, i, component),
  });

  let fused = addTokens(base, concepts);
  let complete = false;
  try {
    fused = yield* fit(
      job,
      fused,
      "textEncoder",
      text.fitted,
      (concept, i) =>
        timed(
          "textEncoder",
          concept,
          () =>
            textStatistics(fused, concept, text.fitted, {
              ...features,
              ...alpha(i, "textEncoder"),
            }),
        ),
    );
    // Fused first, as the next stage uses the text encoder's states.
    fused = yield* average(job, fused, "textEncoder", text.averaged);
    fused = yield* fit(
      job,
      fused,
      "kv",
      kv,
      (concept) =>
        timed(
          "kv",
          concept,
          () => keyValueStatistics(fused, concept, kv, features),
        ),
    );
    fused = yield* fit(
      job,
      fused,
      "spatial",
      spatial,
      (concept, i) =>
        spatialStatistics(
          fused,
          concept,
          spatial,
          { ...features, ...alpha(i, "unet") },
          i,
        ),
    );
    // Last: the stage above still attaches each concept's own ΔW of these
    // layers.
    fused = yield* average(job, fused, "unet", unet.averaged);
    complete = true;
    return fused;
  } finally {
    if (!complete) disposeModel(fused, base);
  }
}

/** Fits the layers of one stage by least squares; returns the next model. */
async function* fit(
  { base, concepts, options, lambda, done }: Job,
  fused: Model,
  stage: "textEncoder" | "kv" | "spatial",
  paths: readonly string[],
  gather: (
    concept: Concept,
    i: number,
  ) => AsyncGenerator<FuseFeaturesRecord, ReadonlyMap<string, Stats>>,
): AsyncGenerator<FuseRecord, Model> {
  if (paths.length === 0) return fused;
  const component = stage === "textEncoder" ? "textEncoder" : "unet";
  const { params } = base[component];
  let problems: Problem[] = [];
  for (const [i, concept] of concepts.entries()) {
    const given = options.statistics?.[i][component];
    const stats = given
      ? pick(given, paths, concept.name)
      : yield* gather(concept, i);
    const strength = strengthOf(options.strengths, i, component);
    const changes = new Map<string, Change>();
    for (const path of paths) {
      const { weight } = at(params, path);
      const low = concept.adapter[component].get(path);
      changes.set(path, {
        outputs: weight.shape.at(-1)!,
        ...(low && { delta: await hostDelta(low, weight, strength) }),
      });
    }
    problems = addConcept(problems, stats, changes, options.weights?.[i] ?? 1);
  }
  const settings = {
    ...options,
    iterations: options.iterations ?? options.stageIterations?.[stage] ??
      OFFICIAL_ITERATIONS[stage],
  };
  const least = stage === "spatial" ? SPATIAL_RIDGE : undefined;
  const made = new Map<string, tf.Tensor>();
  let complete = false;
  try {
    let before = performance.now();
    // Each problem is freed as soon as it is solved.
    for (let next = problems.shift(); next; next = problems.shift()) {
      for (const [layer, solution] of solve(next, settings, lambda, least)) {
        made.set(layer, applyDelta(at(params, layer).weight, solution.delta));
        const { delta: _delta, dual: _dual, ...numbers } = solution;
        yield {
          type: "layer",
          stage,
          component,
          layer,
          index: ++done.index,
          total: done.total,
          ...numbers,
          seconds: (performance.now() - before) / 1000,
        };
        before = performance.now();
      }
    }
    complete = true;
    return replaceWeights(fused, component, made);
  } finally {
    if (!complete) tf.dispose([...made.values()]);
  }
}

/** Fuses layers by weight; returns the next model. */
async function* average(
  { concepts, options: { strengths }, lambda, done }: Job,
  fused: Model,
  component: Component,
  paths: readonly string[],
): AsyncGenerator<FuseRecord, Model> {
  if (paths.length === 0) return fused;
  const before = performance.now();
  const params = averageWeights(
    fused[component].params as TreeLike,
    component,
    paths,
    concepts,
    { ...(strengths ? { strengths } : {}), lambda },
  );
  const made = new Map(
    paths.map((path) => [path, at(params, path).weight as tf.Tensor]),
  );
  const seconds = (performance.now() - before) / 1000 / paths.length;
  let complete = false;
  try {
    for (const [layer, weight] of made) {
      yield {
        type: "layer",
        stage: "weight",
        component,
        layer,
        index: ++done.index,
        total: done.total,
        ridge: NaN,
        lossBefore: NaN,
        lossAfter: NaN,
        lossWeightFusion: NaN,
        seconds,
        rows: 0,
        features: weight.size / weight.shape.at(-1)!,
      };
    }
    complete = true;
    return replaceWeights(fused, component, made);
  } finally {
    if (!complete) tf.dispose([...made.values()]);
  }
}

/** The wanted layers of given statistics. */
function pick(
  given: ReadonlyMap<string, Stats>,
  paths: readonly string[],
  concept: string,
): Map<string, Stats> {
  const missing = paths.filter((path) => !given.has(path));
  if (missing.length > 0) {
    throw cannot(
      `fuse "${concept}"`,
      "statistics of every layer",
      `none of ${missing.join(", ")}`,
    );
  }
  return new Map(paths.map((path) => [path, given.get(path)!]));
}
