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
import { fold, type Key, key as rootKey } from "../core/random.ts";
import { at, type TreeLike, updateAt } from "../core/tree.ts";
import {
  addTokens,
  type Concept,
  releaseTokens,
} from "../customize/concept.ts";
import {
  type Adapter,
  attach,
  type Component,
  sites,
  type TargetName,
  type Targets,
  targets,
} from "../customize/lora.ts";
import { pipeline } from "../diffusion/pipeline.ts";
import type { SamplerName } from "../diffusion/samplers.ts";
import { crossAttentionSites } from "../models/config.ts";
import type { Model } from "../models/model.ts";
import { textEncoder } from "../models/text_encoder.ts";
import type { LowRank } from "../nn/linear.ts";
import { identity, type Matrix, matrix } from "../optim/least_squares.ts";
import {
  type Delta,
  denseDelta,
  InputSystem,
  LayerProblem,
  type LayerSolution,
  type SolveOptions,
} from "./layer.ts";
import {
  collect,
  type CollectOptions,
  collector,
  type Stats,
} from "./statistics.ts";
import {
  averageWeights,
  changedPaths,
  checkFusion,
  checkLambda,
  scaledDelta,
  type Strength,
  strengthOf,
} from "./weight.ts";

/** The stages of fusion that fit layers, in order. */
export type FuseStage = "textEncoder" | "kv" | "spatial" | "weight";

/** What one concept's statistics are about: they replace its images. */
export interface ConceptStatistics {
  /** By path in the text encoder. */
  readonly textEncoder: ReadonlyMap<string, Stats>;
  /** By path in the UNet: keys, values and spatial layers. */
  readonly unet: ReadonlyMap<string, Stats>;
}

/** How the features of concepts are gathered. */
export interface FeatureOptions extends CollectOptions {
  /**
   * Prompts for text features; `{}` stands for V. The first is also the prompt
   * of the sampling run.
   *
   * @default ["photo of a {}", "{}"]
   */
  readonly templates?: readonly string[];
  /**
   * Which token positions count: `official` stops at the end token, and of those
   * takes V's and the end token's for keys and values; `full` takes all the UNet
   * attends to, padding included, without which a concept fused alone is not
   * quite itself.
   *
   * @default "official"
   */
  readonly positions?: "official" | "full";
  /**
   * Sampling steps of the run that spatial layers are observed in.
   *
   * @default 20
   */
  readonly steps?: number;
  /**
   * Sampler of that run.
   *
   * @default "dpmpp_2m"
   */
  readonly sampler?: SamplerName;
  /**
   * Pictures drawn in that run, for each concept.
   *
   * @default 1
   */
  readonly images?: number;
  /**
   * Randomness of the run; concept i draws from `fold(key, name of i)`.
   *
   * @default key(0)
   */
  readonly key?: Key;
  /**
   * Initial noise of the run for each concept, [images, h, w, c]; the caller's.
   */
  readonly noise?: readonly tf.Tensor4D[];
}

/** Settings of {@linkcode fuse}. */
export interface FuseOptions extends FeatureOptions, SolveOptions {
  /**
   * αᵢ, one a concept.
   *
   * @default 1
   */
  readonly strengths?: readonly Strength[];
  /**
   * wᵢ: how much the features of each concept count.
   *
   * @default 1
   */
  readonly weights?: readonly number[];
  /**
   * Layers fused by least squares, of those that the adapters have: `attention`
   * as Mix-of-Show, `linear` with feed-forwards, `all` with convolutions. What
   * is left out is fused by weight.
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
   * L-BFGS: most iterations by stage.
   *
   * @default { textEncoder: 500, kv: 500, spatial: 50 }
   */
  readonly stageIterations?: Partial<
    Readonly<Record<"textEncoder" | "kv" | "spatial", number>>
  >;
  /**
   * Statistics that clients measured, one a concept (see
   * {@linkcode conceptStatistics}): nothing is run then. They come from each
   * client's own model instead of the partly fused one.
   */
  readonly statistics?: readonly ConceptStatistics[];
}

/** Iterations of the official configuration. */
export const OFFICIAL_ITERATIONS: Readonly<
  Record<"textEncoder" | "kv" | "spatial", number>
> = { textEncoder: 500, kv: 500, spatial: 50 };

/**
 * Settings of the official code: L-BFGS, 500 iterations for text encoder, keys
 * and values, 50 for the rest; 20 steps of DPM-Solver++ 2M.
 */
export const OFFICIAL_FUSION: FuseOptions = {
  method: "lbfgs",
  stageIterations: OFFICIAL_ITERATIONS,
  layers: "attention",
  templates: ["photo of a {}", "{}"],
  positions: "official",
  steps: 20,
  sampler: "dpmpp_2m",
  images: 1,
};

/** A layer has been fused. */
export interface FuseLayerRecord {
  /** A layer, not features. */
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
  /** Seconds spent on solving. */
  readonly seconds: number;
  /** Rows over all concepts. */
  readonly rows: number;
  /** Input features. */
  readonly features: number;
}

/** Features of a concept are being gathered. */
export interface FuseFeaturesRecord {
  /** Features, not a layer. */
  readonly type: "features";
  /** The stage that needs them. */
  readonly stage: "textEncoder" | "kv" | "spatial";
  /** Name of the concept. */
  readonly concept: string;
  /** Steps done, and in all. */
  readonly index: number;
  /** Steps in all. */
  readonly total: number;
  /** Seconds of this step. */
  readonly seconds: number;
}

/** What {@linkcode fuse} yields. */
export type FuseRecord = FuseLayerRecord | FuseFeaturesRecord;

const TEMPLATES: readonly string[] = ["photo of a {}", "{}"];
const KEY_OR_VALUE = /\.attn2\.to_[kv]$/;

/** V: how the concept stands in prompts, or its class word. */
function phraseOf(concept: Concept): string {
  const phrase = concept.phrase || concept.classWord;
  if (phrase === "") {
    throw cannot(
      `fuse "${concept.name}"`,
      "a phrase or a class word to stand for it",
      "neither",
    );
  }
  return phrase;
}

/** A prompt's token ids bound to one site. */
interface BoundRow {
  readonly ids: number[];
  /** Positions that keys and values are fitted on. */
  readonly positions: number[];
}

/** As many ways as a concept has vectors, at least one for each site. */
function waysOf(model: Model, concept: Concept): number {
  const sites = crossAttentionSites(model.unet.config).length;
  return Math.max(
    sites,
    ...concept.tokens.map(({ token }) => model.added!.sites[token].length),
  );
}

/** Binds a prompt to site i: each learned token becomes its vector there. */
function bindSite(
  model: Model,
  concept: Concept,
  template: string,
  i: number,
  positions: "official" | "full" = "official",
): BoundRow {
  const { tokenizer, added } = model;
  const learned = concept.tokens.map(({ token }) => token);
  const bind = (text: string) =>
    // Longest first: one token may be the beginning of another.
    learned.toSorted((a, b) => b.length - a.length).reduce((bound, token) => {
      const at = added!.sites[token];
      return bound.replaceAll(
        token,
        added!.names[at[Math.min(i, at.length - 1)]],
      );
    }, text);
  const phrase = phraseOf(concept);
  const text = bind(template.replaceAll("{}", phrase));
  if (positions === "full") {
    const { ids } = tokenizer.encode(text);
    return { ids, positions: ids.map((_, at) => at) };
  }
  const room = tokenizer.modelMaxLength - 2;
  const tokens = tokenizer.tokenize(text).slice(0, room);
  const ids = [tokenizer.bosId, ...tokens, tokenizer.eosId];
  // The official rule, ids ≥ the end token's, is the same for V made of learned
  // tokens only; where a plain word is part of V, it counts here too.
  const words = tokenizer.tokenize(bind(phrase));
  const start = ids.findLastIndex((_, at) =>
    words.every((id, k) => ids[at + k] === id)
  );
  const own = start < 0 ? [] : words.map((_, k) => start + k);
  return { ids, positions: [...own, ids.length - 1] };
}

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
  return {
    down: matrix(inputs, rank, Float64Array.from(down, (x) => factor * x)),
    up: matrix(rank, outputs, await low.up.data()),
  };
}

/** The least squares problems of a stage, by path. */
class StageProblems {
  readonly #problems = new Map<string, LayerProblem>();

  /**
   * Adds one concept.
   *
   * @param stats Its statistics; layers may share one object.
   * @param delta Its change of a layer.
   * @param outputs Output features of a layer.
   * @param weight wᵢ.
   */
  async add(
    stats: ReadonlyMap<string, Stats>,
    delta: (path: string) => Promise<Delta | undefined>,
    outputs: (path: string) => number,
    weight: number,
  ): Promise<void> {
    const sharers = Map.groupBy(stats.keys(), (path) => stats.get(path)!);
    for (const [own, paths] of sharers) {
      // Layers stay on one system as long as every concept's inputs are shared.
      const systems = Map.groupBy(
        paths,
        (path) => this.#problems.get(path)?.system,
      );
      for (const [known, members] of systems) {
        const others = [...this.#problems.values()].filter((p) =>
          p.system === known
        ).length;
        const system = known === undefined
          ? new InputSystem(own.features)
          : others === members.length
          ? known
          : known.clone();
        system.add(own, weight);
        for (const path of members) {
          const problem = this.#problems.get(path) ??
            new LayerProblem(system, outputs(path));
          const moved = problem.system === system
            ? problem
            : problem.withSystem(system);
          moved.add(own, await delta(path), weight);
          this.#problems.set(path, moved);
        }
      }
    }
  }

  /** Solves and forgets one layer. */
  solve(
    path: string,
    options: SolveOptions,
    lambda: number,
  ): LayerSolution {
    const solution = this.#problems.get(path)!.solve(options, lambda);
    this.#problems.delete(path);
    return solution;
  }
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

/**
 * A concept's adapter without some of its layers, under a name of its own: the
 * text encoder's part and the UNet's may have different strengths.
 */
function onlyLayers(
  adapter: Adapter,
  component: Component,
  keep: (path: string) => boolean = () => true,
): Adapter {
  return {
    ...adapter,
    name: `${adapter.name} ${component}`,
    textEncoder: new Map(),
    unet: new Map(),
    [component]: new Map(
      [...adapter[component]].filter(([path]) => keep(path)),
    ),
  };
}

/** Attaches an adapter, if anything is left of it. */
function attachSome(model: Model, adapter: Adapter, alpha: number): Model {
  return adapter.textEncoder.size + adapter.unet.size === 0
    ? model
    : attach(model, adapter, { alpha });
}

/**
 * The inputs of text encoder layers for a concept's prompts, each bound to
 * every site, all positions up to the end token (or all, see `positions`).
 *
 * @param model Base model with the concept's tokens, no adapter attached.
 * @param concept The concept.
 * @param paths Layers of the text encoder.
 * @param options `alpha`: strength of its adapter; templates, accuracy.
 */
export function textStatistics(
  model: Model,
  concept: Concept,
  paths: readonly string[],
  options: FeatureOptions & { readonly alpha?: number } = {},
): Promise<Map<string, Stats>> {
  const { templates = TEMPLATES, alpha = 1 } = options;
  const adapted = attachSome(
    model,
    onlyLayers(concept.adapter, "textEncoder"),
    alpha,
  );
  const ways = waysOf(model, concept);
  const { config, params } = adapted.textEncoder;
  return collect(params, paths, async ({ tap, flush }) => {
    for (const template of templates) {
      const rows = Array.from(
        { length: ways },
        (_, i) => bindSite(model, concept, template, i, options.positions).ids,
      );
      tf.tidy(() =>
        void textEncoder(params, config, rows, {
          tap,
          ...(model.added ? { added: model.added.vectors } : {}),
        })
      );
      await flush();
    }
    // Few rows, and nearly dependent ones: float32 sums cost up to 2 % of the
    // loss here, float64 ones next to nothing.
  }, { accuracy: "float64", ...options });
}

/**
 * The inputs of keys and values for a concept: states of its prompts at the
 * positions of V and of the end token (or all), at each layer those of its own binding.
 *
 * @param model Model whose text encoder makes the states (the fused one).
 * @param concept The concept, its tokens added to the model.
 * @param paths `attn2.to_k` and `attn2.to_v` layers of the UNet.
 * @param options Templates.
 */
export async function keyValueStatistics(
  model: Model,
  concept: Concept,
  paths: readonly string[],
  options: FeatureOptions = {},
): Promise<Map<string, Stats>> {
  const { templates = TEMPLATES } = options;
  const result = new Map<string, Stats>();
  const { config, params } = model.textEncoder;
  const known = new Map(
    crossAttentionSites(model.unet.config).map(({ path, index }) => [
      path,
      index,
    ]),
  );
  const byModule = Map.groupBy(
    paths,
    (path) => path.slice(0, path.lastIndexOf(".")),
  );
  const bySite = new Map<number, Stats>();
  const sites = [...byModule.keys()].map((module) => {
    const index = known.get(module);
    if (index === undefined) {
      throw cannot("collect statistics", "a cross-attention layer", module);
    }
    return index;
  });
  // One batch a template: all its bindings are equally long.
  const parts = new Map<number, Matrix[]>(sites.map((site) => [site, []]));
  for (const template of templates) {
    const rows = sites.map((site) =>
      bindSite(model, concept, template, site, options.positions)
    );
    const last = tf.tidy(() =>
      textEncoder(params, config, rows.map(({ ids }) => ids), {
        ...(model.added ? { added: model.added.vectors } : {}),
      }).last
    );
    const values = await last.data();
    const [, tokens, width] = last.shape;
    last.dispose();
    rows.forEach(({ positions }, r) => {
      const part = matrix(positions.length, width);
      positions.forEach((position, k) => {
        const from = (r * tokens + position) * width;
        part.data.set(values.subarray(from, from + width), k * width);
      });
      parts.get(sites[r])!.push(part);
    });
  }
  for (const [site, list] of parts) {
    const features = list[0].columns;
    const data = list.flatMap((part) => [...part.data]);
    const rows = matrix(data.length / features, features, data);
    bySite.set(site, { features, count: rows.rows, rows });
  }
  for (const [module, members] of byModule) {
    for (const path of members) {
      result.set(path, bySite.get(known.get(module)!)!);
    }
  }
  return result;
}

/**
 * The inputs of UNet layers over one sampling run of a concept's prompt,
 * without guidance, every step recorded.
 *
 * @param model Model with fused text encoder, keys and values.
 * @param concept The concept, its tokens added to the model.
 * @param paths Layers of the UNet.
 * @param options `alpha`: strength of its adapter in the UNet (its keys and
 * values are not used); `keysAndValues`: use them too; sampler, noise, accuracy.
 * @param index Which of `options.noise` is its own.
 * @returns Yields after every step; returns the statistics.
 */
export async function* spatialStatistics(
  model: Model,
  concept: Concept,
  paths: readonly string[],
  options: FeatureOptions & {
    readonly alpha?: number;
    readonly keysAndValues?: boolean;
  } = {},
  index = 0,
): AsyncGenerator<FuseFeaturesRecord, Map<string, Stats>> {
  const { templates = TEMPLATES, alpha = 1, images = 1, steps = 20 } = options;
  const adapted = attachSome(
    model,
    onlyLayers(
      concept.adapter,
      "unet",
      (path) => options.keysAndValues === true || !KEY_OR_VALUE.test(path),
    ),
    alpha,
  );
  const noise = options.noise?.[index];
  const prompt = templates[0].replaceAll("{}", phraseOf(concept));
  const layers = collector(adapted.unet.params, paths, options);
  try {
    const run = pipeline(adapted, {
      prompts: new Array(images).fill(prompt),
      guidance: 1,
      steps,
      sampler: options.sampler ?? "dpmpp_2m",
      key: fold(options.key ?? rootKey(0), concept.name),
      batch: images,
      decode: false,
      unet: { tap: layers.tap },
      ...(noise ? { noise } : {}),
    });
    for await (const record of run) {
      if (record.type !== "step") continue;
      await layers.flush();
      yield {
        type: "features",
        stage: "spatial",
        concept: concept.name,
        index: record.index + 1,
        total: record.total,
        seconds: record.seconds,
      };
    }
    return await layers.finish();
  } finally {
    layers.dispose();
  }
}

/** Layers of a component to fuse by least squares, and those by weight. */
function split(
  base: Model,
  concepts: readonly Concept[],
  component: Component,
  layers: TargetName | Targets,
): { fitted: string[]; averaged: string[] } {
  const wanted = typeof layers === "string" ? targets(layers) : layers;
  const chosen = new Set(
    sites(base[component].params, (site) => wanted(component, site))
      .map(({ path }) => path),
  );
  const changed = changedPaths(concepts, component);
  return {
    fitted: changed.filter((path) => chosen.has(path)),
    averaged: changed.filter((path) => !chosen.has(path)),
  };
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
  const { method = "closed", ridge = 0, templates = TEMPLATES } = options;
  if (method !== "closed" && method !== "lbfgs") {
    throw cannot(what, "method closed or lbfgs", String(method));
  }
  if (!(ridge >= 0)) throw cannot(what, "a ridge ≥ 0", ridge);
  const { positions = "official" } = options;
  if (positions !== "official" && positions !== "full") {
    throw cannot(what, "positions official or full", String(positions));
  }
  if (templates.length === 0 || templates.some((t) => !t.includes("{}"))) {
    throw cannot(what, "templates with {} in them", templates);
  }
}

/**
 * Fuses concepts into one model by matching, layer by layer, what each
 * single-concept model computes on its own features.
 *
 * @param base The model; not changed.
 * @param concepts The concepts; not changed.
 * @param options Method, ridge, strengths, how features are gathered.
 * @returns Yields progress and one record a fused layer; returns a model of the
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
  const { strengths, weights, layers = "attention" } = options;
  const lambda = options.lambda ?? 1 / concepts.length;
  const text = split(base, concepts, "textEncoder", layers);
  const unet = split(base, concepts, "unet", layers);
  const kv = unet.fitted.filter((path) => KEY_OR_VALUE.test(path));
  const spatial = unet.fitted.filter((path) => !KEY_OR_VALUE.test(path));
  const total = text.fitted.length + unet.fitted.length +
    text.averaged.length + unet.averaged.length;
  let index = 0;
  const made: tf.Tensor[] = [];
  let fused = addTokens(base, concepts);
  let complete = false;

  /** Replaces the weights at the paths; what is new is freed on failure. */
  const replaceWeights = (
    component: Component,
    weight: ReadonlyMap<string, tf.Tensor>,
  ) => {
    const params = updateAt(
      fused[component].params as TreeLike,
      weight.keys(),
      (node, path) => ({ ...node, weight: weight.get(path) }),
    );
    fused = { ...fused, [component]: { ...fused[component], params } };
  };

  /** Fits the layers of one stage. */
  async function* stage(
    name: "textEncoder" | "kv" | "spatial",
    paths: readonly string[],
    gather: (
      concept: Concept,
      i: number,
    ) => AsyncGenerator<FuseFeaturesRecord, ReadonlyMap<string, Stats>>,
  ): AsyncGenerator<FuseRecord, void> {
    if (paths.length === 0) return;
    const component = name === "textEncoder" ? "textEncoder" : "unet";
    const weightAt = (path: string): tf.Tensor =>
      at(base[component].params, path).weight;
    const problems = new StageProblems();
    for (const [i, concept] of concepts.entries()) {
      const given = options.statistics?.[i][component];
      const stats = given
        ? pick(given, paths, concept.name)
        : yield* gather(concept, i);
      const alpha = strengthOf(strengths, i, component);
      await problems.add(
        stats,
        async (path) => {
          const low = concept.adapter[component].get(path);
          return low ? await hostDelta(low, weightAt(path), alpha) : undefined;
        },
        (path) => weightAt(path).shape.at(-1)!,
        weights?.[i] ?? 1,
      );
    }
    const changed = new Map<string, tf.Tensor>();
    for (const path of paths) {
      const before = performance.now();
      const solution = problems.solve(path, {
        ...options,
        iterations: options.iterations ?? options.stageIterations?.[name] ??
          OFFICIAL_ITERATIONS[name],
      }, lambda);
      const weight = applyDelta(weightAt(path), solution.delta);
      made.push(weight);
      changed.set(path, weight);
      yield {
        type: "layer",
        stage: name,
        component,
        layer: path,
        index: ++index,
        total,
        lossBefore: solution.lossBefore,
        lossAfter: solution.lossAfter,
        lossWeightFusion: solution.lossWeightFusion,
        seconds: (performance.now() - before) / 1000,
        rows: solution.rows,
        features: solution.features,
      };
    }
    replaceWeights(component, changed);
  }

  try {
    yield* stage(
      "textEncoder",
      text.fitted,
      (concept, i) =>
        timed(
          "textEncoder",
          concept,
          () =>
            textStatistics(fused, concept, text.fitted, {
              ...options,
              alpha: strengthOf(strengths, i, "textEncoder"),
            }),
        ),
    );
    for (const component of ["textEncoder", "unet"] as const) {
      const { averaged } = component === "textEncoder" ? text : unet;
      // The text encoder's must be in place before its states are used; the
      // UNet's come last, or a concept's own would be added to the average.
      if (component === "unet") {
        yield* stage(
          "kv",
          kv,
          (concept) =>
            timed(
              "kv",
              concept,
              () => keyValueStatistics(fused, concept, kv, options),
            ),
        );
        yield* stage(
          "spatial",
          spatial,
          (concept, i) =>
            spatialStatistics(fused, concept, spatial, {
              ...options,
              alpha: strengthOf(strengths, i, "unet"),
            }, i),
        );
      }
      if (averaged.length === 0) continue;
      const before = performance.now();
      const average = averageWeights(
        fused[component].params as TreeLike,
        component,
        averaged,
        concepts,
        { ...(strengths ? { strengths } : {}), lambda },
      );
      const changed = new Map(
        averaged.map((path) => [path, at(average, path).weight as tf.Tensor]),
      );
      made.push(...changed.values());
      replaceWeights(component, changed);
      const seconds = (performance.now() - before) / 1000 / averaged.length;
      for (const [path, weight] of changed) {
        yield {
          type: "layer",
          stage: "weight",
          component,
          layer: path,
          index: ++index,
          total,
          lossBefore: NaN,
          lossAfter: NaN,
          lossWeightFusion: NaN,
          seconds,
          rows: 0,
          features: weight.size / weight.shape.at(-1)!,
        };
      }
    }
    complete = true;
    return fused;
  } finally {
    if (!complete) {
      tf.dispose(made);
      releaseTokens(fused, base);
    }
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

/** One record for a step that has no steps of its own. */
async function* timed<T>(
  stage: "textEncoder" | "kv",
  concept: Concept,
  run: () => Promise<T>,
): AsyncGenerator<FuseFeaturesRecord, T> {
  const before = performance.now();
  const result = await run();
  yield {
    type: "features",
    stage,
    concept: concept.name,
    index: 1,
    total: 1,
    seconds: (performance.now() - before) / 1000,
  };
  return result;
}

/**
 * Measures a concept on its own client: all features come from the
 * single-concept model, so a server can fuse (ΔWᵢ, Gᵢ) without running anything
 * and without seeing an image.
 *
 * @param base The model.
 * @param concept The concept.
 * @param options Strength, layers, how features are gathered.
 * @returns Yields progress; returns the statistics of all layers of the
 * concept's adapter that `layers` chooses.
 * @throws If the concept does not fit the model.
 */
export async function* conceptStatistics(
  base: Model,
  concept: Concept,
  options: FeatureOptions & {
    readonly strength?: Strength;
    readonly layers?: TargetName | Targets;
    /** Layers to measure; those of the concept's own adapter by default. */
    readonly among?: readonly Concept[];
  } = {},
): AsyncGenerator<FuseFeaturesRecord, ConceptStatistics> {
  const { strength = {}, layers = "attention", among = [concept] } = options;
  checkFusion(base, [concept], [strength]);
  const model = addTokens(base, [concept]);
  try {
    const text = split(base, among, "textEncoder", layers).fitted;
    const unet = split(base, among, "unet", layers).fitted;
    const kv = unet.filter((path) => KEY_OR_VALUE.test(path));
    const spatial = unet.filter((path) => !KEY_OR_VALUE.test(path));
    const alpha = strength.textEncoder ?? 1;
    const stats = text.length === 0
      ? new Map<string, Stats>()
      : yield* timed("textEncoder", concept, () =>
        textStatistics(model, concept, text, { ...options, alpha }));
    const own = attachSome(
      model,
      onlyLayers(concept.adapter, "textEncoder"),
      alpha,
    );
    const states = kv.length === 0
      ? new Map<string, Stats>()
      : yield* timed("kv", concept, () =>
        keyValueStatistics(own, concept, kv, options));
    const rest = spatial.length === 0
      ? new Map<string, Stats>()
      : yield* spatialStatistics(own, concept, spatial, {
        ...options,
        alpha: strength.unet ?? 1,
        keysAndValues: true,
      });
    return {
      textEncoder: stats,
      unet: new Map([...states, ...rest]),
    };
  } finally {
    releaseTokens(model, base);
  }
}
