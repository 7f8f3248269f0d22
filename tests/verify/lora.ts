/**
 * Adapters: every dialect the folder has, merged weights, whole pipelines with
 * learned tokens.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { at, disposeTree } from "../../src/core/tree.ts";
import {
  addTokens,
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import {
  type Adapter,
  attach,
  type Component,
  COMPONENTS,
  disposeAdapter,
  merge,
} from "../../src/customize/lora.ts";
import {
  DIALECTS,
  loadLora,
  type LoraFile,
  type PeftConfig,
} from "../../src/formats/lora.ts";
import { pipeline } from "../../src/diffusion/pipeline.ts";
import {
  plan,
  type SamplerCall,
  type SamplerName,
  type SamplerPlan,
} from "../../src/diffusion/samplers.ts";
import {
  parseSchedulerConfig,
  schedule,
} from "../../src/diffusion/schedule.ts";
import { decode } from "../../src/models/autoencoder.ts";
import {
  conceptConfig,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import { textEncoder } from "../../src/models/text_encoder.ts";
import { unet } from "../../src/models/unet.ts";
import type { LowRank } from "../../src/nn/linear.ts";
import { toDisk } from "../../src/models/checkpoint.ts";
import {
  type Check,
  compare,
  type Context,
  exact,
  FACTOR,
  type Line,
  line,
  maximumError,
  notCovered,
  relative,
  type Tolerance,
} from "./check.ts";
import { type Golden, item } from "./fixture.ts";

/** Names of components in the folder's keys. */
const PREFIX: Readonly<Record<Component, string>> = {
  textEncoder: "text_encoder",
  unet: "unet",
};

/** Text states of ids, and the UNet's output on them or on others. */
async function* forward(
  name: string,
  model: Model,
  g: Golden,
  prefix: string,
  tolerance: (expected: Float32Array, part: "text" | "unet") => Tolerance,
  options: {
    readonly baseText?: tf.Tensor3D;
    readonly vectors?: tf.Tensor2D;
  } = {},
): AsyncGenerator<Line> {
  const timesteps = g.integers("timesteps");
  const ids = g.has("input_ids") ? g.rows("input_ids") : undefined;
  const text = ids && tf.tidy(() =>
    textEncoder(
      model.textEncoder.params,
      model.textEncoder.config,
      ids,
      options.vectors ? { added: options.vectors } : {},
    ).last
  );
  const run = (states: tf.Tensor3D) =>
    tf.tidy(() =>
      unet(
        model.unet.params,
        model.unet.config,
        g.nhwc("sample"),
        timesteps,
        states,
      )
    );
  const at = (part: string) => (prefix === "" ? part : `${prefix}.${part}`);
  try {
    if (g.has(at("text")) && text) {
      const expected = g.values(at("text"));
      yield await compare(
        `${name}.text`,
        text.clone(),
        expected,
        tolerance(expected.data, "text"),
      );
    }
    if (g.has(at("unet"))) {
      const states = text ?? g.tensor<tf.Tensor3D>("encoder_hidden_states");
      const expected = g.values(at("unet"));
      yield await compare(
        `${name}.unet`,
        run(states),
        expected,
        tolerance(expected.data, "unet"),
        "nhwc",
      );
      if (states !== text) states.dispose();
    }
    if (g.has(at("unet_only")) && options.baseText) {
      const expected = g.values(at("unet_only"));
      yield await compare(
        `${name}.unet_only`,
        run(options.baseText),
        expected,
        tolerance(expected.data, "unet"),
        "nhwc",
      );
    }
  } finally {
    text?.dispose();
  }
}

/** Tolerance of an adapted forward: the folder's forward against merged. */
function adapted(context: Context) {
  return (expected: Float32Array, part: "text" | "unet"): Tolerance =>
    context.tolerance(
      part === "text"
        ? /lora_forward_vs_merged.*\.0$/
        : /lora_forward_vs_merged.*\.1$/,
      expected,
    );
}

/** Strengths in the names of an expected file: `alpha0.7`, `scale1.0`. */
function strengths(g: Golden, word: string): [string, number][] {
  const found = new Map<string, number>();
  for (const name of g.names) {
    const match = name.match(new RegExp(`^(${word}([\\d.]*\\d))\\.`));
    if (match) found.set(match[1], Number(match[2]));
  }
  return [...found];
}

/** Weights of a merged model against `text_encoder.X.weight`, `unet.X.weight`. */
async function* weights(
  name: string,
  model: Model,
  g: Golden,
  prefix: string,
  tolerance: (expected: Float32Array) => Tolerance,
): AsyncGenerator<Line> {
  let worst = 0;
  let limit: Tolerance | undefined;
  let count = 0;
  const shapes: string[] = [];
  for (const key of g.names) {
    if (!key.startsWith(prefix) || !key.endsWith(".weight")) continue;
    const rest = key.slice(prefix.length, -".weight".length);
    const component = COMPONENTS.find((c) => rest.startsWith(`${PREFIX[c]}.`));
    // A file of the UNet alone names modules without a prefix.
    const path = component ? rest.slice(PREFIX[component].length + 1) : rest;
    const layer = at(model[component ?? "unet"].params, path);
    const tensor = layer?.weight as tf.Tensor | undefined;
    if (!tensor) continue;
    count++;
    const expected = g.values(key);
    const values = toDisk(
      tensor.rank === 4 ? "conv" : "linear",
      tensor.shape,
      await tensor.data() as Float32Array,
    );
    if (values.length !== expected.data.length) shapes.push(key);
    const error = maximumError(values, expected.data);
    const allowed = tolerance(expected.data);
    if (
      limit === undefined || !(error / allowed.value <= worst / limit.value)
    ) {
      worst = error;
      limit = allowed;
    }
  }
  if (limit === undefined) {
    yield notCovered(name, "the folder has no weights of layers of the model");
    return;
  }
  yield {
    ...line(name, worst, limit),
    reason: shapes.length > 0
      ? `misshapen: ${shapes.join(", ")}`
      : `${count} weights; ${limit.source}`,
  };
}

/** One rounding of W + ΔW in float32, for weights of a few units. */
const WEIGHT_ROUNDING: (expected: Float32Array) => Tolerance = (expected) => ({
  value: 10 * 2 ** -24 * Math.max(...expected.map(Math.abs)),
  source: "10 roundings to float32 of the largest weight",
});

async function disposeFile(file: LoraFile): Promise<void> {
  await Promise.resolve();
  disposeAdapter(file.adapter);
  for (const vectors of file.embeddings.values()) vectors.dispose();
}

/** The same LoRA in several namings, attached and merged. */
const dialects: Check = {
  id: "lora",
  files: ["lora/expected.safetensors"],
  async *run(context) {
    const { fixture } = context;
    const base = await context.model();
    const g = await fixture.golden("lora/expected.safetensors");
    const names = (await fixture.list("lora")).filter((name) =>
      /^(lora_.*|edlora_.*)\.safetensors$/.test(name)
    );
    const baseText = tf.tidy(() =>
      textEncoder(
        base.textEncoder.params,
        base.textEncoder.config,
        g.rows("input_ids"),
      ).last
    );
    const tolerance = adapted(context);
    yield* forward("lora/base", base, g, "base", tolerance);
    for (const name of names) {
      const path = `lora/${name}`;
      context.consumed.add(path);
      const short = `lora/${name.replace(".safetensors", "")}`;
      let file: LoraFile;
      try {
        file = await loadLora(fixture.path(path), base);
      } catch (error) {
        yield {
          name: short,
          status: "FAIL",
          reason: (error as Error).message,
        };
        continue;
      }
      for (const [prefix, alpha] of strengths(g, "alpha")) {
        const model = attach(base, file.adapter, { alpha });
        yield* forward(`${short}/${prefix}`, model, g, prefix, tolerance, {
          baseText,
        });
      }
      for (const merged of await fixture.list("lora")) {
        const match = merged.match(/^merged_alpha([\d.]+)\.safetensors$/);
        if (!match) continue;
        const alpha = Number(match[1]);
        const model = await merge(attach(base, file.adapter, { alpha }));
        yield* weights(
          `${short}/merged_alpha${match[1]}`,
          model,
          await fixture.golden(`lora/${merged}`),
          "",
          WEIGHT_ROUNDING,
        );
        const prefix = `alpha${match[1]}`;
        if (g.has(`${prefix}.unet`)) {
          yield* forward(
            `${short}/merged_${prefix}`,
            model,
            g,
            prefix,
            tolerance,
            { baseText },
          );
        }
        disposeTree(
          [model.textEncoder.params, model.unet.params],
          [base.textEncoder.params, base.unet.params],
        );
      }
      await disposeFile(file);
    }
    baseText.dispose();
  },
};

/** DoRA in PEFT's and kohya's naming. */
const dora: Check = {
  id: "lora/dora",
  files: ["lora/dora_expected.safetensors"],
  async *run(context) {
    const { fixture } = context;
    const base = await context.model();
    const g = await fixture.golden("lora/dora_expected.safetensors");
    const tolerance = (expected: Float32Array) =>
      context.tolerance(/dora_forward_vs_merged/, expected);
    const sources: [string, string, string | undefined][] = [];
    if (await fixture.has("lora/dora_kohya.safetensors")) {
      sources.push(["dora_kohya", "lora/dora_kohya.safetensors", undefined]);
    }
    if (await fixture.has("lora/dora_peft/adapter_model.safetensors")) {
      sources.push([
        "dora_peft",
        "lora/dora_peft/adapter_model.safetensors",
        "lora/dora_peft/adapter_config.json",
      ]);
    }
    yield* forward("lora/dora/base", base, g, "base", tolerance);
    for (const [name, path, configPath] of sources) {
      context.consumed.add(path);
      const config = configPath && await fixture.has(configPath)
        ? await fixture.json<PeftConfig>(configPath)
        : undefined;
      const file = await loadLora(
        fixture.path(path),
        base,
        config ? { config } : {},
      );
      const model = attach(base, file.adapter);
      yield* forward(`lora/dora/${name}`, model, g, "", tolerance);
      const merged = await merge(model);
      yield* weights(
        `lora/dora/${name}/merged`,
        merged,
        g,
        "merged.",
        (expected) => context.tolerance(/dora_lycoris_vs_peft/, expected),
      );
      yield* forward(`lora/dora/${name}/merged`, merged, g, "", tolerance);
      disposeTree(merged.unet.params, base.unet.params);
      disposeTree(merged.textEncoder.params, base.textEncoder.params);
      if (name === sources[0][0]) {
        for (
          const group of new Set(
            g.names.filter((name) => name.startsWith("lycoris_")).map((name) =>
              name.match(/^(lycoris_[a-z_]*(?:[\d.]*\d)?)\./)?.[1] ?? name
            ),
          )
        ) {
          yield* lycoris(context, base, file.adapter, g, group);
        }
      }
      await disposeFile(file);
    }
  },
};

/**
 * LyCORIS's own forms of the same DoRA: a strength that scales the
 * renormalisation only, and magnitudes of inputs.
 */
async function* lycoris(
  context: Context,
  base: Model,
  adapter: Adapter,
  g: Golden,
  group: string,
): AsyncGenerator<Line> {
  const name = `lora/dora/${group}`;
  const multiplier = group.match(/^lycoris_multiplier([\d.]+)$/);
  const input = group === "lycoris_on_input";
  if (!multiplier && !input) {
    yield notCovered(name, "a form of DoRA the library does not know");
    return;
  }
  let model: Model;
  const magnitudes: tf.Tensor[] = [];
  if (multiplier) {
    model = attach(base, adapter, {
      alpha: Number(multiplier[1]),
      dora: "lycoris",
    });
  } else {
    const unet = new Map<string, LowRank>();
    for (const [path, low] of adapter.unet) {
      const key = `${group}.${path}.dora_scale`;
      if (!g.has(key)) continue;
      const magnitude = tf.tensor1d(g.values(key).data);
      magnitudes.push(magnitude);
      unet.set(path, { ...low, magnitude, dora: { of: "input" } });
    }
    model = attach(base, { ...adapter, textEncoder: new Map(), unet });
  }
  const merged = await merge(model);
  yield* weights(
    name,
    merged,
    g,
    `${group}.`,
    (expected) => context.tolerance(/dora_lycoris_vs_peft/, expected),
  );
  disposeTree(merged.unet.params, base.unet.params);
  disposeTree(merged.textEncoder.params, base.textEncoder.params);
  tf.dispose(magnitudes);
}

/** PEFT's rank and alpha patterns, with and without rsLoRA. */
const patterns: Check = {
  id: "lora/peft_patterns",
  files: [
    "lora/peft_patterns/adapter_model.safetensors",
    "lora/peft_patterns/expected.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const folder = "lora/peft_patterns";
    const base = await context.model();
    const g = await fixture.golden(`${folder}/expected.safetensors`);
    const path = `${folder}/adapter_model.safetensors`;
    context.consumed.add(path);
    const scales = await fixture.has(`${folder}/scales.json`)
      ? await fixture.json<Record<string, Record<string, number>>>(
        `${folder}/scales.json`,
      )
      : {};
    const tolerance = adapted(context);
    yield* forward(`${folder}/base`, base, g, "base", tolerance);
    for (const name of await fixture.list(folder)) {
      const match = name.match(/^adapter_config(?:\.(.+))?\.json$/);
      if (!match) continue;
      const suffix = match[1] === undefined ? "" : `_${match[1]}`;
      const config = await fixture.json<PeftConfig>(`${folder}/${name}`);
      const file = await loadLora(fixture.path(path), base, { config });
      let worst = 0;
      let counted = 0;
      for (const [layer, values] of Object.entries(scales)) {
        const expected = values[`scale${suffix}`];
        const low = file.adapter.unet.get(layer) ??
          file.adapter.textEncoder.get(layer);
        if (expected === undefined) continue;
        counted++;
        worst = Math.max(
          worst,
          low ? Math.abs(low.scale - expected) : Infinity,
        );
      }
      if (counted > 0) {
        yield line(`${folder}/scales${suffix}`, worst, {
          value: 1e-12,
          source: `float64 of ${counted} scales`,
        });
      }
      const model = attach(base, file.adapter);
      for (const key of [`unet.scale${suffix}`]) {
        if (!g.has(key)) continue;
        const expected = g.values(key);
        yield await compare(
          `${folder}/${key}`,
          tf.tidy(() =>
            unet(
              model.unet.params,
              model.unet.config,
              g.nhwc("sample"),
              g.integers("timesteps"),
              g.tensor<tf.Tensor3D>("encoder_hidden_states"),
            )
          ),
          expected,
          tolerance(expected.data, "unet"),
          "nhwc",
        );
      }
      await disposeFile(file);
    }
  },
};

/** kohya's LoRA with convolutions. */
const locon: Check = {
  id: "lora/kohya_locon",
  files: [
    "lora/kohya_locon.safetensors",
    "lora/kohya_locon_expected.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const base = await context.model();
    const g = await fixture.golden("lora/kohya_locon_expected.safetensors");
    context.consumed.add("lora/kohya_locon.safetensors");
    const file = await loadLora(
      fixture.path("lora/kohya_locon.safetensors"),
      base,
    );
    const tolerance = (expected: Float32Array, part: "text" | "unet") =>
      context.tolerance(
        part === "text"
          ? /locon_merge_vs_forward.*\.0$/
          : /locon_merge_vs_forward.*\.1$/,
        expected,
      );
    // The base output is on the base text states.
    yield* forward("lora/kohya_locon/base", base, g, "base", tolerance);
    for (const [prefix, alpha] of strengths(g, "scale")) {
      const model = attach(base, file.adapter, { alpha });
      const name = `lora/kohya_locon/${prefix}`;
      yield* forward(name, model, g, prefix, tolerance);
      const merged = await merge(model);
      const has = g.names.some((key) =>
        key.startsWith(`${prefix}.`) && key.endsWith(".weight")
      );
      if (has) {
        yield* weights(
          `${name}/merged`,
          merged,
          g,
          `${prefix}.`,
          WEIGHT_ROUNDING,
        );
      }
      yield* forward(`${name}/merged`, merged, g, prefix, tolerance);
      disposeTree(merged.unet.params, base.unet.params);
      disposeTree(merged.textEncoder.params, base.textEncoder.params);
    }
    await disposeFile(file);
  },
};

/** cloneofsimo/lora, matched by the order of its target classes. */
const cloneofsimo: Check = {
  id: "lora/cloneofsimo",
  files: [
    "lora/cloneofsimo.safetensors",
    "lora/cloneofsimo_expected.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const id = "lora/cloneofsimo";
    const path = `${id}.safetensors`;
    context.consumed.add(path);
    const g = await fixture.golden(`${id}_expected.safetensors`);
    if (!DIALECTS.some((d) => String(d.id) === "cloneofsimo")) {
      for (const name of g.names) g.shape(name);
      yield notCovered(id, "the library does not read this dialect yet");
      return;
    }
    const base = await context.model();
    const file = await loadLora(fixture.path(path), base);
    try {
      if (await fixture.has(`${id}_order.json`)) {
        const order = await fixture.json<Record<string, string[]>>(
          `${id}_order.json`,
        );
        for (const component of COMPONENTS) {
          const expected = order[PREFIX[component]];
          if (!expected) continue;
          yield exact(
            `${id}/order/${PREFIX[component]}`,
            [...file.adapter[component].keys()].sort(),
            [...expected].sort(),
          );
        }
        if (order.prompts && g.has("input_ids")) {
          const withTokens = addTokens(
            base,
            [{
              tokens: [...file.embeddings].map(([token, vectors]) => ({
                token,
                vectors,
              })),
            }],
          );
          // One vector per token: its ids do not depend on the layer.
          yield exact(
            `${id}/input_ids`,
            order.prompts.map((prompt) =>
              withTokens.tokenizer.encode(
                [...file.embeddings.keys()].reduce(
                  (text, token) =>
                    text.replaceAll(
                      token,
                      withTokens.added!
                        .names[withTokens.added!.sites[token][0]],
                    ),
                  prompt,
                ),
              ).ids
            ),
            g.rows("input_ids"),
          );
          releaseTokens(withTokens, base);
        }
      }
      const vectors = file.embeddings.size === 0
        ? undefined
        : tf.tidy(() => tf.concat([...file.embeddings.values()], 0));
      const tolerance = adapted(context);
      const options = vectors ? { vectors } : {};
      yield* forward(
        `${id}/base_with_embeddings`,
        base,
        g,
        "base_with_embeddings",
        tolerance,
        options,
      );
      for (const [prefix, alpha] of strengths(g, "scale")) {
        yield* forward(
          `${id}/${prefix}`,
          attach(base, file.adapter, { alpha }),
          g,
          prefix,
          tolerance,
          options,
        );
      }
      vectors?.dispose();
    } finally {
      await disposeFile(file);
    }
  },
};

/** Samplers by the name a pipeline fixture gives them. */
const SHORT: Readonly<Record<string, SamplerName>> = {
  dpmpp: "dpmpp_2m",
  dpmpp2m: "dpmpp_2m",
  ddim: "ddim",
  ddpm: "ddpm",
  pndm: "pndm",
  euler: "euler",
  euler_a: "euler_a",
  heun: "heun",
  unipc: "unipc",
  lms: "lms",
};

/** A pipeline run, read from its name. */
export interface PipelineRun {
  /** `sd` or `edlora`. */
  readonly kind: string;
  /** The sampler as the name spells it. */
  readonly short: string;
  readonly sampler: SamplerName;
  readonly steps: number;
  readonly guidance: number;
  readonly alpha: number | undefined;
}

/**
 * Reads `edlora_dpmpp10_cfg7.5_alpha0.7`: what, sampler and steps, guidance, α.
 *
 * @returns Nothing if the name is of another form.
 */
export function parseRun(name: string): PipelineRun | undefined {
  const match = name.match(
    /^([a-z]+)_([a-z]+(?:_a)?(?:2m)?)_?(\d+)_cfg([\d.]+?)(?:_alpha([\d.]+))?$/,
  );
  if (!match || !Object.hasOwn(SHORT, match[2])) return undefined;
  return {
    kind: match[1],
    short: match[2],
    sampler: SHORT[match[2]],
    steps: Number(match[3]),
    guidance: Number(match[4]),
    alpha: match[5] === undefined ? undefined : Number(match[5]),
  };
}

/** Text to image, with and without learned tokens. */
const pipelines: Check = {
  id: "pipeline",
  files: ["pipeline/expected.safetensors", "pipeline/prompts.json"],
  async *run(context) {
    const { fixture } = context;
    const base = await context.model();
    const g = await fixture.golden("pipeline/expected.safetensors");
    const prompts = await fixture.json<Record<string, string>>(
      "pipeline/prompts.json",
    );
    const runs = new Set<string>();
    for (const name of g.names) {
      const match = name.match(
        /^(.*)\.(timesteps|image|image_raw|latents_per_step|final_latents|prompt_embeds)$/,
      );
      if (match) runs.add(match[1]);
    }
    for (const name of runs) {
      const run = parseRun(name);
      if (!run) {
        yield notCovered(
          `pipeline/${name}`,
          "the name does not say sampler, steps and guidance",
        );
        continue;
      }
      const pick = (what: string, fallback: string) =>
        prompts[`${run.kind}_${run.short}_${what}`] ??
          prompts[`${run.short}_${what}`] ?? prompts[fallback] ??
          prompts[what] ?? "";
      const prompt = pick("prompt", `${run.kind}_prompt`);
      const negative = pick("negative", `${run.kind}_negative`);
      let concept: Concept | undefined;
      let model = base;
      if (run.kind === "edlora") {
        const path = "lora/edlora_official.safetensors";
        if (!await fixture.has(path)) {
          yield notCovered(`pipeline/${name}`, `not in this folder: ${path}`);
          continue;
        }
        concept = await loadConcept(fixture.path(path), base);
        model = attachConcept(base, concept, { alpha: run.alpha ?? 1 });
        if (await fixture.has("pipeline/new_concept_cfg.json")) {
          yield exact(
            `pipeline/${name}/new_concept_cfg`,
            conceptConfig(model.added!, model.textEncoder.config.vocab_size),
            await fixture.json("pipeline/new_concept_cfg.json"),
          );
        }
      }
      yield* onePipeline(context, g, name, run, model, prompt, negative);
      if (concept) {
        releaseTokens(model, base);
        disposeConcept(concept);
      }
    }
  },
};

/** What a unit error of the model's output does to the next latent. */
function gain(course: SamplerPlan, call: SamplerCall): number {
  const { alpha, sigma, next } = call;
  const radius = Math.hypot(alpha, sigma);
  const [x0, epsilon] = {
    epsilon: [-sigma / alpha, 1],
    v_prediction: [-sigma / radius, alpha / radius],
    sample: [1, -alpha / sigma],
  }[course.prediction];
  return Math.abs(
    (next.denoised ?? 0) * x0 + (next.epsilon ?? 0) * epsilon,
  );
}

/**
 * How much rounding a latent has gathered after each call, relative to its own
 * deviation: that of the UNet's outputs, which guidance multiplies and the
 * sampler adds up, but at least {@linkcode RELATIVE}. For set A this is what
 * its README says of float32 against float64: 6e-6 after the first step (of a
 * deviation of 2) to 6e-5 after the tenth (of 20).
 */
function latentRounding(
  context: Context,
  model: Model,
  run: PipelineRun,
): (index: number, expected: Float32Array) => Tolerance {
  const course = plan(
    run.sampler,
    schedule(parseSchedulerConfig(model.scheduler)),
    run.steps,
  );
  const figure = context.figure(/(^|\.)unet_f(32_f)?64/)?.value ?? 1e-6;
  // Both branches round on their own: uncond·(1 − g) + cond·g.
  const guided = figure * Math.hypot(run.guidance, run.guidance - 1);
  let sum = 0;
  const gathered = course.table.map((call) =>
    sum += gain(course, call) * guided
  );
  return (index, expected) => {
    const own = gathered[Math.min(index, gathered.length - 1)] ?? 0;
    const plain = relative(expected);
    return FACTOR * own <= plain.value ? plain : {
      value: FACTOR * own,
      source: `${FACTOR}× the UNet's rounding, guided and summed up, ` +
        own.toExponential(2),
    };
  };
}

async function* onePipeline(
  context: Context,
  g: Golden,
  name: string,
  run: PipelineRun,
  model: Model,
  prompt: string,
  negative: string,
): AsyncGenerator<Line> {
  const id = `pipeline/${name}`;
  const has = (part: string) => g.has(`${name}.${part}`);
  if (has("prompt_embeds")) {
    const expected = g.values(`${name}.prompt_embeds`);
    const states = tf.tidy(() => promptStates(model, [negative, prompt]));
    yield await compare(
      `${id}/prompt_embeds`,
      states,
      expected,
      relative(expected.data),
    );
  }
  const noise = g.nhwc("initial_latents");
  const rounding = latentRounding(context, model, run);
  /** Of an image: as far as the latents it is decoded from. */
  const imageRounding = (expected: Float32Array): Tolerance => {
    const latents = has("final_latents")
      ? g.values(`${name}.final_latents`)
      : steps && item(steps, steps.shape[0] - 1);
    const plain = relative(expected);
    if (!latents) return plain;
    const { value, source } = rounding(run.steps - 1, latents.data);
    const share = value / relative(latents.data).value;
    return share <= 1
      ? plain
      : { value: plain.value * share, source: `as the latents: ${source}` };
  };
  const steps = has("latents_per_step")
    ? g.values(`${name}.latents_per_step`)
    : undefined;
  const timesteps: number[] = [];
  let worst: Line | undefined;
  let final: tf.Tensor4D | undefined;
  let images: tf.Tensor4D | undefined;
  for await (
    const record of pipeline(model, {
      prompts: [prompt],
      negative,
      steps: run.steps,
      sampler: run.sampler,
      guidance: run.guidance,
      noise,
    })
  ) {
    if (record.type === "images") {
      images = record.images;
      continue;
    }
    timesteps.push(record.timestep);
    if (steps && record.index < steps.shape[0]) {
      const expected = item(steps, record.index);
      const here = await compare(
        `${id}/latents_per_step`,
        record.latent.clone(),
        expected,
        rounding(record.index, expected.data),
        "nhwc",
      );
      const use = (l: Line) => l.error! / l.tolerance!;
      if (!worst || !(use(here) <= use(worst))) worst = here;
    }
    if (record.index === record.total - 1) final = record.latent.clone();
  }
  if (has("timesteps")) {
    yield exact(
      `${id}/timesteps`,
      timesteps,
      g.integers(`${name}.timesteps`),
    );
  }
  if (worst) {
    yield steps && steps.shape[0] !== timesteps.length
      ? {
        name: `${id}/latents_per_step`,
        status: "FAIL",
        reason: `expected ${steps.shape[0]} steps, got ${timesteps.length}`,
      }
      : worst;
  }
  if (has("final_latents") && final) {
    const expected = g.values(`${name}.final_latents`);
    yield await compare(
      `${id}/final_latents`,
      final.clone(),
      expected,
      rounding(run.steps - 1, expected.data),
      "nhwc",
    );
  }
  if (has("image_raw") && final) {
    const expected = g.values(`${name}.image_raw`);
    const { params, config } = model.autoencoder;
    const latents = final;
    yield await compare(
      `${id}/image_raw`,
      tf.tidy(() => decode(params, config, latents.div(config.scaling_factor))),
      expected,
      imageRounding(expected.data),
      "nhwc",
    );
  }
  if (has("image") && images) {
    const expected = g.values(`${name}.image`);
    yield await compare(
      `${id}/image`,
      images,
      expected,
      imageRounding(expected.data),
      "nhwc",
    );
    images = undefined;
  }
  tf.dispose([noise, ...(final ? [final] : []), ...(images ? [images] : [])]);
}

/** Every check of adapters. */
export const LORA_CHECKS: readonly Check[] = [
  pipelines,
  dialects,
  cloneofsimo,
  locon,
  dora,
  patterns,
];
