/**
 * Statistics of the inputs of layers for a concept: the data of gradient
 * fusion.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { fold, type Key, key as rootKey } from "../core/random.ts";
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
import { bindTokens, type Model } from "../models/model.ts";
import { textEncoder } from "../models/text_encoder.ts";
import { type Matrix, matrix, rowsOf, stack } from "../optim/least_squares.ts";
import {
  collect,
  type CollectOptions,
  collector,
  joinHalves,
  type Stats,
} from "./statistics.ts";
import { changedPaths, checkFusion, type Strength } from "./weight.ts";

/**
 * The statistics of one concept. Gradient fusion needs them in place of its
 * pictures.
 */
export interface ConceptStatistics {
  /** By path in the text encoder. */
  readonly textEncoder: ReadonlyMap<string, Stats>;
  /** By path in the UNet: keys, values and spatial layers. */
  readonly unet: ReadonlyMap<string, Stats>;
}

/** How the features of concepts are gathered. */
export interface FeatureOptions extends CollectOptions {
  /**
   * Prompts for text features; `{}` stands for the concept's phrase V. The
   * first is also the prompt of the sampling run.
   *
   * @default ["photo of a {}", "{}"]
   */
  readonly templates?: readonly string[];
  /**
   * Which token positions are used. `official`: those up to the end token; for
   * keys and values only V's and the end token's. `full`: all that the UNet
   * attends to, padding included; only then does fusing a single concept
   * reproduce its model.
   *
   * @default "official"
   */
  readonly positions?: "official" | "full";
  /**
   * Steps of the sampling run in which spatial layers are observed.
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
   * Initial noise of the run per concept, [images, h, w, c]; the caller
   * disposes it.
   */
  readonly noise?: readonly tf.Tensor4D[];
}

/** Progress of gathering a concept's features. */
export interface FuseFeaturesRecord {
  /** Tells it from the record of a layer. */
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

/** Default prompts for features. */
export const TEMPLATES: readonly string[] = ["photo of a {}", "{}"];

/** Keys and values of cross-attention, whose input is the text. */
export const KEY_OR_VALUE: RegExp = /\.attn2\.to_[kv]$/;

/**
 * V: the concept's phrase in prompts, or its class word.
 *
 * @param concept The concept.
 * @throws If it has neither.
 */
export function phraseOf(concept: Concept): string {
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

/**
 * The number of bindings of a concept's tokens: its vectors per token, at least
 * one per site.
 */
function waysOf(model: Model, concept: Concept): number {
  const sites = crossAttentionSites(model.unet.config).length;
  return Math.max(
    sites,
    ...concept.tokens.map(({ token }) => model.added!.sites[token].length),
  );
}

/**
 * Binds a prompt to site i: each learned token gets its vector of that site.
 */
function bindSite(
  model: Model,
  concept: Concept,
  template: string,
  i: number,
  positions: "official" | "full" = "official",
): BoundRow {
  const { tokenizer } = model;
  const phrase = phraseOf(concept);
  const text = bindTokens(model, template.replaceAll("{}", phrase), i);
  if (positions === "full") {
    const { ids } = tokenizer.encode(text);
    return { ids, positions: ids.map((_, at) => at) };
  }
  const room = tokenizer.modelMaxLength - 2;
  const tokens = tokenizer.tokenize(text).slice(0, room);
  const ids = [tokenizer.bosId, ...tokens, tokenizer.eosId];
  // The official rule is ids ≥ the end token's. It is the same if V has learned
  // tokens only; here an ordinary word in V is included, too.
  const words = tokenizer.tokenize(bindTokens(model, phrase, i));
  const start = ids.findLastIndex((_, at) =>
    words.every((id, k) => ids[at + k] === id)
  );
  const own = start < 0 ? [] : words.map((_, k) => start + k);
  return { ids, positions: [...own, ids.length - 1] };
}

/** Every second prompt, from the first and from the second. */
function halfTheTemplates(templates: readonly string[]): [string[], string[]] {
  return [
    templates.filter((_, i) => i % 2 === 0),
    templates.filter((_, i) => i % 2 === 1),
  ];
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

/** Attaches an adapter, unless it has no layers. */
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
 * @param options `alpha`: strength of its adapter; templates, accuracy. Halves
 * are every second template, or with a single one half of its
 * bindings.
 */
export async function textStatistics(
  model: Model,
  concept: Concept,
  paths: readonly string[],
  options: FeatureOptions & { readonly alpha?: number } = {},
): Promise<Map<string, Stats>> {
  const { templates = TEMPLATES, alpha = 1 } = options;
  if (options.halves && templates.length > 1) {
    const [first, second] = halfTheTemplates(templates);
    const of = (own: readonly string[]) =>
      textStatistics(model, concept, paths, {
        ...options,
        templates: own,
        halves: false,
      });
    return joinHalves(await of(first), await of(second));
  }
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
    // There are few, nearly dependent rows. Float32 sums change the loss by up
    // to 2 % here; float64 sums do not, and are fast for so few rows.
  }, { accuracy: "float64", ...options });
}

/**
 * The inputs of keys and values for a concept: text states of its prompts at
 * the positions of V and of the end token (or all, see `positions`), for each
 * layer with the vectors of its site.
 *
 * @param model Model whose text encoder makes the states (the fused one).
 * @param concept The concept, its tokens added to the model.
 * @param paths `attn2.to_k` and `attn2.to_v` layers of the UNet.
 * @param options Templates. Halves are every second template, or with a single
 * one half of its positions.
 */
export async function keyValueStatistics(
  model: Model,
  concept: Concept,
  paths: readonly string[],
  options: FeatureOptions = {},
): Promise<Map<string, Stats>> {
  const { templates = TEMPLATES } = options;
  if (options.halves && templates.length > 1) {
    const [first, second] = halfTheTemplates(templates);
    const of = (
      own: readonly string[],
      positions: FeatureOptions["positions"] = options.positions ?? "official",
    ) =>
      keyValueStatistics(model, concept, paths, {
        ...options,
        templates: own,
        positions,
        halves: false,
      });
    return joinHalves(
      await of(first),
      await of(second),
      // Fits are scored at every position, as attention reads all of them.
      [await of(first, "full"), await of(second, "full")],
    );
  }
  const known = new Map(
    crossAttentionSites(model.unet.config).map(({ path, index }) => [
      path,
      index,
    ]),
  );
  const siteOf = (path: string) => {
    const module = path.slice(0, path.lastIndexOf("."));
    const site = known.get(module);
    if (site === undefined) {
      throw cannot("collect statistics", "a cross-attention layer", module);
    }
    return site;
  };
  const wanted = [...new Set(paths.map(siteOf))];
  const parts: Matrix[][] = wanted.map(() => []);
  for (const template of templates) {
    const seen = await promptRows(model, concept, template, wanted, options);
    seen.forEach((rows, k) => parts[k].push(rows));
  }
  // Keys and values of a site have the same input.
  const bySite = new Map(wanted.map((site, k) => {
    const rows = stack(...parts[k]);
    const whole = rowStats(rows);
    const cut = Math.floor(rows.rows / 2);
    const halves = [
      rowStats(rowsOf(rows, 0, cut)),
      rowStats(rowsOf(rows, cut, rows.rows)),
    ] as const;
    const stats: Stats = options.halves
      ? { features: whole.features, count: whole.count, halves }
      : whole;
    return [site, stats];
  }));
  return new Map(paths.map((path) => [path, bySite.get(siteOf(path))!]));
}

function rowStats(rows: Matrix): Stats {
  return { features: rows.columns, count: rows.rows, rows };
}

/** States of one prompt at the chosen positions, per site. */
async function promptRows(
  model: Model,
  concept: Concept,
  template: string,
  wanted: readonly number[],
  options: FeatureOptions,
): Promise<Matrix[]> {
  const { config, params } = model.textEncoder;
  // One batch: all bindings of a template are equally long.
  const bound = wanted.map((site) =>
    bindSite(model, concept, template, site, options.positions)
  );
  const last = tf.tidy(() =>
    textEncoder(params, config, bound.map(({ ids }) => ids), {
      ...(model.added ? { added: model.added.vectors } : {}),
    }).last
  );
  const values = await last.data();
  const [, tokens, width] = last.shape;
  last.dispose();
  return bound.map(({ positions }, r) => {
    const rows = matrix(positions.length, width);
    positions.forEach((position, k) => {
      const from = (r * tokens + position) * width;
      rows.data.set(values.subarray(from, from + width), k * width);
    });
    return rows;
  });
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
 * The halves are odd and even steps. Halves by picture or by prompt lead to too
 * large a ridge (development concepts, kept by held-out error: .74 by steps,
 * .68 and .67 by pictures and prompts).
 * @param index Index of the concept in `options.noise`.
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
  const { templates = TEMPLATES, alpha = 1, steps = 20, halves = false } =
    options;
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
  const images = options.images ?? noise?.shape[0] ?? 1;
  const key = fold(options.key ?? rootKey(0), concept.name);
  const prompt = templates[0].replaceAll("{}", phraseOf(concept));
  const keys = Array.from({ length: images }, (_, i) => fold(key, i));
  const alternate = halves && steps > 1;
  const layers = Array.from(
    { length: alternate ? 2 : 1 },
    () =>
      collector(adapted.unet.params, paths, {
        ...options,
        halves: halves && !alternate,
      }),
  );
  let step = 0;
  try {
    const run = pipeline(adapted, {
      prompts: keys.map(() => prompt),
      guidance: 1,
      steps,
      sampler: options.sampler ?? "dpmpp_2m",
      key: keys,
      batch: keys.length,
      decode: false,
      unet: {
        tap: (layer, input) => layers[step % layers.length].tap(layer, input),
      },
      ...(noise && { noise }),
    });
    for await (const record of run) {
      if (record.type !== "step") continue;
      for (const { flush } of layers) await flush();
      step = record.index + 1;
      yield {
        type: "features",
        stage: "spatial",
        concept: concept.name,
        index: record.index + 1,
        total: record.total,
        seconds: record.seconds,
      };
    }
    const [first, second] = layers;
    return second
      ? joinHalves(await first.finish(), await second.finish())
      : await first.finish();
  } finally {
    for (const { dispose } of layers) dispose();
  }
}

/**
 * Splits the layers of a component: those fused by least squares, and those
 * fused by weight.
 *
 * @param base The model.
 * @param concepts The concepts; layers of their adapters change.
 * @param component Text encoder or UNet.
 * @param layers Which of them are fitted.
 */
export function split(
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

/**
 * Runs a task and yields one record.
 *
 * @param stage The stage.
 * @param concept The concept.
 * @param run Does the step.
 */
export async function* timed<T>(
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
 * single-concept model, so a centre can fuse (ΔWᵢ, Gᵢ) without running a model
 * or seeing a picture.
 *
 * @param base The model.
 * @param concept The concept.
 * @param given Strength, layers, how features are gathered; `halves` is true by
 * default, so that the centre can choose the ridge.
 * @returns Yields progress; returns the statistics of all layers of the
 * concept's adapter that `layers` chooses.
 * @throws If the concept does not fit the model.
 */
export async function* conceptStatistics(
  base: Model,
  concept: Concept,
  given: FeatureOptions & {
    readonly strength?: Strength;
    readonly layers?: TargetName | Targets;
    /** Layers to measure; those of the concept's own adapter by default. */
    readonly among?: readonly Concept[];
  } = {},
): AsyncGenerator<FuseFeaturesRecord, ConceptStatistics> {
  const options = { ...given, halves: given.halves ?? true };
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
