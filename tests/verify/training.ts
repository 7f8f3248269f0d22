/**
 * Training: losses, gradients, parameters after some steps, weighted losses.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../src/core/errors.ts";
import { valueAndGrads } from "../../src/core/tree.ts";
import {
  attachConcept,
  type Concept,
  conceptTensors,
  disposeConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import {
  adapterTensors,
  attach,
  withTensors,
} from "../../src/customize/lora.ts";
import {
  debiasedWeights,
  maskedErrors,
  minSnrWeights,
  offsetNoise,
  squaredErrors,
  vLikeNoiseWeights,
} from "../../src/customize/losses.ts";
import { groupOf, type TrainBatch } from "../../src/customize/train.ts";
import {
  addNoise,
  parseSchedulerConfig,
  type Schedule,
  schedule,
  snr,
  trainingTarget,
} from "../../src/diffusion/schedule.ts";
import { crossAttentionSites } from "../../src/models/config.ts";
import {
  bindPrompt,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import { unet } from "../../src/models/unet.ts";
import {
  adamwInit,
  type AdamwState,
  adamwStep,
  disposeTensors,
} from "../../src/optim/adamw.ts";
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
  RELATIVE,
  relative,
  type Tolerance,
} from "./check.ts";
import type { Golden } from "./fixture.ts";
import { preservingPrior } from "../../src/customize/train_loss.ts";
import { conceptGradients } from "../customize/gradients.ts";

/** training.json. */
interface Facts {
  readonly prompts: readonly string[];
  readonly noise_offset: number;
  readonly attn_reg_weight: number;
  readonly lr: Readonly<
    Record<"embedding" | "text_encoder" | "unet", number>
  >;
  readonly adamw: {
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weight_decay: number;
  };
  readonly initial_params: string;
  readonly prediction_type?: string;
  readonly a?: {
    readonly losses: readonly number[];
    readonly losses_f64?: readonly number[];
    readonly lr?: number;
  };
  readonly concept_token_ids?: readonly [number, number];
  readonly b_losses?: readonly number[];
  readonly b_grad_norms?: Readonly<
    Record<"unet" | "text_encoder" | "new_concept", number>
  >;
  readonly [key: string]: unknown;
}

/** One of the `b.full_identity=…` entries. */
interface Parts {
  readonly loss_total: number;
  readonly attn_reg: number;
  readonly diffusion_loss: number;
}

/** Our name of a tensor → its name in the folder. */
function official(name: string): string {
  return name.replace(/^embedding\./, "new_concept_embedding.")
    .replace(/^textEncoder\./, "text_encoder.")
    .replace(/\.(down|up)$/, ".lora_$1.weight");
}

/** Values in PyTorch's layout. */
async function onDisk(name: string, t: tf.Tensor): Promise<Float32Array> {
  if (name.startsWith("embedding.")) return await t.data() as Float32Array;
  const turned = t.rank === 4
    ? tf.transpose(t, [3, 2, 0, 1])
    : tf.transpose(t as tf.Tensor2D);
  const values = await turned.data() as Float32Array;
  turned.dispose();
  return values;
}

const largest = (x: ArrayLike<number>): number => {
  let most = 0;
  for (let i = 0; i < x.length; i++) most = Math.max(most, Math.abs(x[i]));
  return most;
};

/** The model with the prediction type the folder was trained with. */
function predicting(model: Model, facts: Facts): Model {
  return facts.prediction_type === undefined ? model : {
    ...model,
    scheduler: { ...model.scheduler, prediction_type: facts.prediction_type },
  };
}

/** File and strength of `lora/x.safetensors, alpha 1.0`. */
function initial(facts: Facts): { path: string; alpha: number } {
  const match = facts.initial_params.match(
    /^([^,]+\.safetensors)(?:.*alpha\s+([\d.]+))?/,
  );
  if (!match) {
    throw cannot(
      "verify training",
      "initial_params to name a safetensors file",
      facts.initial_params,
    );
  }
  return { path: match[1], alpha: Number(match[2] ?? 1) };
}

/** Tolerance of losses: the folder's float32 against its own float64. */
function lossTolerance(facts: Facts): Tolerance {
  const a = facts.a;
  const f64 = a?.losses_f64;
  const size = Math.max(
    ...a?.losses ?? [],
    ...facts.b_losses ?? [],
    ...a?.losses_f64 ?? [],
  );
  // Half a unit in the last place is the least a float32 loss can be off.
  const ulp = size * 2 ** -24;
  const own = f64
    ? Math.max(...a!.losses.map((l, i) => Math.abs(l - f64[i])))
    : 0;
  return {
    value: FACTOR * Math.max(own, ulp),
    source: own > ulp
      ? `${FACTOR}× |losses − losses_f64| ${own.toExponential(2)}`
      : `${FACTOR} roundings of a loss of ${size.toPrecision(3)}`,
  };
}

/** Relative error of gradients the folder measured, times ten. */
function gradientTolerance(context: Context): Tolerance {
  const figure = context.figure(/grad_reldiff_f64/);
  const value = FACTOR * (figure?.value ?? 3e-6);
  return {
    value,
    source: figure
      ? `relative to a tensor's largest; ${FACTOR}× ${figure.name}`
      : `relative to a tensor's largest; ${FACTOR}× 3e-6`,
  };
}

/** Gradients against the folder's, each relative to its largest. */
async function gradientLine(
  context: Context,
  name: string,
  grads: ReadonlyMap<string, tf.Tensor>,
  expected: Golden,
  rename: (name: string) => string,
): Promise<Line> {
  let worst = 0;
  let where = "";
  const missing: string[] = [];
  for (const [own, gradient] of grads) {
    const theirs = rename(own);
    if (!expected.has(theirs)) {
      missing.push(theirs);
      continue;
    }
    const wanted = expected.values(theirs).data;
    const error = maximumError(await onDisk(own, gradient), wanted) /
      Math.max(largest(wanted), 1e-9);
    if (!(error <= worst)) [worst, where] = [error, theirs];
  }
  const unknown = expected.names.filter((theirs) =>
    ![...grads.keys()].some((own) => rename(own) === theirs)
  );
  const tolerance = gradientTolerance(context);
  if (missing.length + unknown.length > 0) {
    return {
      name,
      status: "FAIL",
      reason: `no gradient of ${unknown.join(", ") || "none"}; the folder ` +
        `has none of ${missing.join(", ") || "none"}`,
    };
  }
  return {
    ...line(name, worst, tolerance),
    reason: `${grads.size} tensors, worst ${where}; ${tolerance.source}`,
  };
}

/**
 * Parameters after training. Where a gradient is no larger than its own
 * rounding error Adam's g/|g| has no digits in any implementation, so there
 * only the length of the steps is checked.
 */
async function parameterLine(
  context: Context,
  name: string,
  params: ReadonlyMap<string, tf.Tensor>,
  after: Golden,
  grads: Golden,
  rename: (name: string) => string,
  steps: number,
  rate: (name: string) => number,
): Promise<Line> {
  const sure = gradientTolerance(context).value;
  const figure = context.figure(/params\d*_maxdiff_f64/);
  const tolerance = FACTOR * (figure?.value ?? 1.8e-6);
  let worst = 0;
  let where = "";
  let unsure = 0;
  let total = 0;
  for (const [own, tensor] of params) {
    const theirs = rename(own);
    const expected = after.values(theirs).data;
    const gradient = grads.values(theirs).data;
    const actual = await onDisk(own, tensor);
    const limit = sure * largest(gradient);
    for (let i = 0; i < expected.length; i++) {
      total++;
      const error = Math.abs(actual[i] - expected[i]);
      if (Math.abs(gradient[i]) <= limit) {
        // Five steps of at most the rate, in either direction.
        if (error <= 2 * steps * rate(own)) {
          unsure++;
          continue;
        }
      }
      if (!(error <= worst)) [worst, where] = [error, theirs];
    }
  }
  return {
    ...line(name, worst, { value: tolerance, source: "" }),
    reason:
      `${params.size} tensors, worst ${where}; ${FACTOR}× ${
        figure?.name ?? 1.8e-6
      }` +
      (unsure > 0 ? `; ${unsure} of ${total} without a sure gradient` : ""),
  };
}

/** A learning rate the folder does not state: what Adam's steps add up to. */
async function inferRate(
  params: ReadonlyMap<string, tf.Tensor>,
  after: Golden,
  rename: (name: string) => string,
  steps: number,
): Promise<number> {
  const moved: number[] = [];
  for (const [own, tensor] of params) {
    const expected = after.values(rename(own)).data;
    (await onDisk(own, tensor)).forEach((v, i) =>
      moved.push(Math.abs(expected[i] - v))
    );
  }
  moved.sort((a, b) => a - b);
  const rate = moved[Math.floor(moved.length * 0.9)] / steps;
  return Number(rate.toPrecision(1));
}

/** UNet LoRA alone, on given text states. */
const unetLora: Check = {
  id: "training/a",
  files: [
    "training/training.json",
    "training/a_inputs.safetensors",
    "training/a_grads_step0.safetensors",
    "training/a_params_after5.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const facts = await fixture.json<Facts>("training/training.json");
    const { path, alpha } = initial(facts);
    if (!facts.a || !await fixture.has(path)) {
      yield notCovered("training/a", `no "a" in training.json, or no ${path}`);
      return;
    }
    const model = predicting(await context.model(), facts);
    const s = schedule(parseSchedulerConfig(model.scheduler));
    const g = await fixture.golden("training/a_inputs.safetensors");
    const grads0 = await fixture.golden("training/a_grads_step0.safetensors");
    const after = await fixture.golden("training/a_params_after5.safetensors");
    context.consumed.add(path);
    const concept = await loadConcept(fixture.path(path), model);
    const timesteps = g.integers("timesteps");
    const inputs = tf.tidy(() => {
      const noise = g.has("noise_base")
        ? offsetNoise(
          g.nhwc("noise_base"),
          facts.noise_offset,
          g.nhwc("noise_offset_randn"),
        )
        : g.nhwc("noise");
      const latents = g.nhwc("latents");
      return {
        noise,
        noisy: addNoise(s, latents, noise, timesteps),
        target: trainingTarget(s, latents, noise, timesteps),
      };
    });
    for (
      const [name, actual] of [
        ["noise", inputs.noise],
        ["noisy_latents", inputs.noisy],
        ["target", inputs.target],
      ] as const
    ) {
      if (!g.has(name)) continue;
      const expected = g.values(name);
      yield await compare(
        `training/a/${name}`,
        actual.clone(),
        expected,
        relative(expected.data),
        "nhwc",
      );
    }
    const mask = g.nhwc("mask");
    const states = g.tensor<tf.Tensor4D>("encoder_hidden_states");
    const unetOnly = { ...concept.adapter, textEncoder: new Map() };
    if (g.has("model_pred")) {
      const adapted = attach(model, unetOnly, { alpha });
      const expected = g.values("model_pred");
      yield await compare(
        "training/a/model_pred",
        tf.tidy(() =>
          unet(
            adapted.unet.params,
            adapted.unet.config,
            inputs.noisy,
            timesteps,
            states,
          )
        ),
        expected,
        context.tolerance(/(^|\.)unet_f(32_f)?64/, expected.data),
        "nhwc",
      );
    }
    let params = new Map(
      adapterTensors(unetOnly).map(([name, t]) => [name, t.clone()]),
    );
    const rename = (name: string) => official(name).replace(/^unet\./, "");
    const { losses } = facts.a;
    const expectedLosses = facts.a.losses_f64 ?? losses;
    const steps = losses.length - 1;
    const lr = facts.a.lr ?? await inferRate(params, after, rename, steps);
    const names = [...params.keys()];
    let state: AdamwState = adamwInit(params);
    const actual: number[] = [];
    for (let step = 0; step <= steps; step++) {
      const { value, grads } = valueAndGrads(
        (leaves: readonly tf.Tensor[]) => {
          const adapter = withTensors(
            unetOnly,
            new Map(names.map((name, i) => [name, leaves[i]])),
          );
          const adapted = attach(model, adapter, { alpha });
          return tf.mean(maskedErrors(
            unet(
              adapted.unet.params,
              adapted.unet.config,
              inputs.noisy,
              timesteps,
              states,
            ),
            inputs.target,
            mask,
          ));
        },
        names.map((name) => params.get(name)!),
      );
      actual.push((await value.data())[0]);
      value.dispose();
      const named = new Map(
        names.map((name, i) => [name, grads.get(String(i))!]),
      );
      if (step === 0) {
        yield await gradientLine(
          context,
          "training/a/grads_step0",
          named,
          grads0,
          rename,
        );
      }
      if (step === steps) {
        disposeTensors(grads);
        break;
      }
      const next = adamwStep(params, named, state, {
        lr,
        weightDecay: facts.adamw.weight_decay,
        betas: facts.adamw.betas,
        eps: facts.adamw.eps,
      });
      disposeTensors(grads, params, state.m, state.v);
      ({ params, state } = next);
    }
    yield line(
      "training/a/losses",
      maximumError(actual, expectedLosses),
      lossTolerance(facts),
    );
    yield await parameterLine(
      context,
      `training/a/params_after${steps}`,
      params,
      after,
      grads0,
      rename,
      steps,
      () => lr,
    );
    disposeTensors(params, state.m, state.v);
    tf.dispose([inputs.noise, inputs.noisy, inputs.target, mask, states]);
    disposeConcept(concept);
  },
};

/** The whole step of the official ED-LoRA trainer. */
const edLora: Check = {
  id: "training/b",
  files: [
    "training/training.json",
    "training/b_inputs.safetensors",
    "training/b_grads_step0.safetensors",
    "training/b_delta_after5.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const facts = await fixture.json<Facts>("training/training.json");
    const { path, alpha } = initial(facts);
    if (!facts.b_losses || !await fixture.has(path) || alpha !== 1) {
      yield notCovered(
        "training/b",
        `no b_losses, no ${path}, or a strength other than 1`,
      );
      return;
    }
    const model = predicting(await context.model(), facts);
    const g = await fixture.golden("training/b_inputs.safetensors");
    const grads0 = await fixture.golden("training/b_grads_step0.safetensors");
    const after = await fixture.golden("training/b_delta_after5.safetensors");
    context.consumed.add(path);
    const first = await loadConcept(fixture.path(path), model);
    const batch: TrainBatch = {
      latents: g.nhwc("latents"),
      noise: tf.tidy(() =>
        offsetNoise(
          g.nhwc("noise_base"),
          facts.noise_offset,
          g.nhwc("noise_offset_randn"),
        )
      ),
      timesteps: g.integers("timesteps"),
      prompts: facts.prompts,
      mask: g.nhwc("masks"),
    };
    const positions = yield* bound(model, first, facts, g);
    const maps = (of: Concept) =>
      attentionMaps(model, of, batch, facts.prompts, positions, g);
    const mapsBefore = await maps(first);
    const rates = {
      embedding: facts.lr.embedding,
      textEncoder: facts.lr.text_encoder,
      unet: facts.lr.unet,
    };
    const losses = (fullIdentity: boolean) => ({
      masked: true,
      weighting: { type: "none" } as const,
      attention: { weight: facts.attn_reg_weight, fullIdentity },
      priorWeight: 0,
    });
    const allowed = lossTolerance(facts);
    let trained = false;
    for (const fullIdentity of [false, true]) {
      const word = fullIdentity ? "True" : "False";
      const expected = facts[`b.full_identity=${word}`] as Parts | undefined;
      if (!expected) continue;
      const { losses: parts, grads } = await conceptGradients(
        model,
        first,
        batch,
        losses(fullIdentity),
      );
      disposeTensors(grads);
      // Which of the two the steps were run with is in the first loss.
      if (Math.abs(expected.loss_total - facts.b_losses[0]) < 1e-6) {
        trained = fullIdentity;
      }
      for (
        const [name, actual, wanted] of [
          ["loss_total", parts.total, expected.loss_total],
          ["attn_reg", parts.attention, expected.attn_reg],
          ["diffusion_loss", parts.diffusion, expected.diffusion_loss],
        ] as const
      ) {
        yield line(
          `training/b/full_identity=${word}/${name}`,
          Math.abs(actual - wanted),
          allowed,
        );
      }
    }
    let concept: Concept = first;
    let state: AdamwState = adamwInit(conceptTensors(first));
    const steps = facts.b_losses.length - 1;
    const actual: number[] = [];
    for (let step = 0; step <= steps; step++) {
      const { losses: parts, grads } = await conceptGradients(
        model,
        concept,
        batch,
        losses(trained),
      );
      actual.push(parts.total);
      const params = conceptTensors(concept);
      if (step === 0) {
        yield await gradientLine(
          context,
          "training/b/grads_step0",
          grads,
          grads0,
          official,
        );
        yield* norms(facts, grads);
      }
      if (step === steps) {
        disposeTensors(grads);
        break;
      }
      const next = adamwStep(params, grads, state, {
        lr: (name) => rates[groupOf(name)],
        weightDecay: facts.adamw.weight_decay,
        betas: facts.adamw.betas,
        eps: facts.adamw.eps,
      });
      const moved: Concept = {
        ...concept,
        adapter: withTensors(concept.adapter, next.params),
        tokens: concept.tokens.map(({ token }) => ({
          token,
          vectors: next.params.get(`embedding.${token}`) as tf.Tensor2D,
        })),
      };
      disposeTensors(grads, state.m, state.v, params);
      concept = moved;
      state = next.state;
    }
    const mapsAfter = await maps(concept);
    for (const [i, before] of mapsBefore.entries()) {
      const later = mapsAfter[i];
      yield later.error! < before.error!
        ? { ...later, reason: `after ${steps} steps; ${later.reason}` }
        : before;
    }
    yield line(
      "training/b/losses",
      maximumError(actual, facts.b_losses),
      allowed,
    );
    yield await parameterLine(
      context,
      `training/b/delta_after${steps}`,
      conceptTensors(concept),
      after,
      grads0,
      official,
      steps,
      (name) => rates[groupOf(name)],
    );
    disposeConcept(concept);
    disposeTensors(state.m, state.v);
    tf.dispose([batch.latents, batch.noise, batch.mask!]);
  },
};

/** Norm of the gradients of each group. */
async function* norms(
  facts: Facts,
  grads: ReadonlyMap<string, tf.Tensor>,
): AsyncGenerator<Line> {
  const names = {
    unet: "unet",
    textEncoder: "text_encoder",
    embedding: "new_concept",
  } as const;
  for (const [group, theirs] of Object.entries(names)) {
    const expected = facts.b_grad_norms?.[theirs];
    if (expected === undefined) continue;
    let square = 0;
    for (const [name, gradient] of grads) {
      if (groupOf(name) !== group) continue;
      for (const v of await gradient.data()) square += v * v;
    }
    yield line(
      `training/b/grad_norm/${theirs}`,
      Math.abs(Math.sqrt(square) - expected),
      // Printed with six digits.
      { value: 1e-5 * expected + 5e-7, source: "1e-5, and six digits" },
    );
  }
}

/** Token ids and positions of the concept's tokens. */
async function* bound(
  base: Model,
  concept: Concept,
  facts: Facts,
  g: Golden,
): AsyncGenerator<Line, number[][]> {
  const model = attachConcept(base, concept);
  try {
    const sites = crossAttentionSites(model.unet.config);
    const prompts = facts.prompts.map((prompt) => bindPrompt(model, prompt));
    const first = base.textEncoder.config.vocab_size;
    if (facts.concept_token_ids) {
      const last = first + model.added!.names.length - 1;
      yield exact(
        "training/b/concept_token_ids",
        [first, last],
        facts.concept_token_ids,
      );
    }
    if (g.has("text_input_ids")) {
      const rows = g.rows("text_input_ids");
      // Official prompts are bound as often as a token has vectors.
      const ways = rows.length / prompts.length;
      const used = Math.min(ways, sites.length);
      yield exact(
        "training/b/text_input_ids",
        prompts.flatMap(({ rows: own, site }) =>
          site.slice(0, used).map((i) => own[i])
        ),
        prompts.flatMap((_, p) => rows.slice(p * ways, p * ways + used)),
      );
    }
    const positions = prompts.map(({ rows }) =>
      rows[0].flatMap((id, i) => id >= first ? [i] : [])
    );
    if (g.has("token_positions")) {
      yield exact(
        "training/b/token_positions",
        positions,
        g.rows("token_positions"),
      );
    }
    return positions;
  } finally {
    releaseTokens(model, base);
  }
}

/**
 * Attention on the concept's tokens. A folder may have taken it from any
 * forward of the run, so it is compared where it is closest: before the first
 * step or after the last one.
 */
async function attentionMaps(
  base: Model,
  concept: Concept,
  batch: TrainBatch,
  prompts: readonly string[],
  positions: readonly (readonly number[])[],
  g: Golden,
): Promise<Line[]> {
  const model = attachConcept(base, concept);
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const maps = new Map<string, tf.Tensor>();
  const counters: Record<string, number> = {};
  tf.tidy(() => {
    unet(
      model.unet.params,
      model.unet.config,
      addNoise(s, batch.latents, batch.noise, batch.timesteps),
      batch.timesteps,
      promptStates(model, prompts),
      {
        crossAttend: ({ path, height, width, heads }) => ({
          probabilities: (p) => {
            const place = path.split("_")[0];
            const number = counters[place] ?? 0;
            counters[place] = number + 1;
            const picked = positions.map((own, b) =>
              tf.stack(
                own.map((at) =>
                  tf.slice(p, [b, 0, 0, at], [1, heads, height * width, 1])
                    .reshape([heads, height, width])
                ),
                -1,
              )
            );
            maps.set(
              `attn_tokens.${place}_cross.${number}`,
              tf.keep(tf.stack(picked, 0)),
            );
          },
        }),
      },
    );
  });
  releaseTokens(model, base);
  const lines: Line[] = [];
  for (const [name, actual] of maps) {
    if (!g.has(name)) {
      actual.dispose();
      continue;
    }
    const expected = g.values(name);
    lines.push(
      await compare(
        `training/b/${name}`,
        actual,
        expected,
        // Softmax turns the rounding of a logit (size about 10) into that of a
        // probability: ten times an output's.
        relative(expected.data, 10 * RELATIVE),
      ),
    );
  }
  return lines;
}

/** weighted_losses.json. */
interface Weighted {
  readonly gamma: number;
  readonly min_snr_loss: Readonly<Record<string, number>>;
  readonly prior_preservation: Readonly<Record<string, number>>;
}

/** Losses weighted by noise level, and with class pictures. */
const weighted: Check = {
  id: "training/weighted_losses",
  files: [
    "training/weighted_losses.json",
    "training/weighted_losses.safetensors",
  ],
  async *run(context) {
    const { fixture } = context;
    const id = "training/weighted_losses";
    const facts = await fixture.json<Weighted>(`${id}.json`);
    const g = await fixture.golden(`${id}.safetensors`);
    const { scheduler } = await context.model();
    const s = schedule(parseSchedulerConfig(scheduler));
    const timesteps = g.integers("timesteps");
    // Ratios of float32 ᾱ, whose rounding is divided by what is left of 1 − ᾱ.
    const ratios = (name: string, actual: ArrayLike<number>): Line => {
      const expected = g.values(name).data;
      const error = Math.max(
        ...Array.from(actual, (a, i) => Math.abs(a / expected[i] - 1)),
      );
      return line(`${id}/${name}`, error, {
        value: 2e-5,
        source: "relative; ᾱ is a float32",
      });
    };
    yield ratios("snr", snr(s, timesteps));
    const epsilon = minSnrWeights(s, timesteps, facts.gamma, "epsilon");
    const v = minSnrWeights(s, timesteps, facts.gamma, "v_prediction");
    yield ratios("weight.epsilon", epsilon);
    yield ratios("weight.v_prediction", v);
    const prediction = g.nhwc("model_pred");
    const target = g.nhwc("target");
    const errors = squaredErrors(prediction, target);
    const own = await errors.data();
    const perSample: [string, readonly number[]][] = [
      ["mse_per_sample", timesteps.map(() => 1)],
      ["loss.epsilon_per_sample", epsilon],
      ["loss.v_per_sample", v],
      [
        "kohya.debiased_epsilon_per_sample",
        debiasedWeights(s, timesteps, "epsilon"),
      ],
      [
        "kohya.debiased_v_per_sample",
        debiasedWeights(s, timesteps, "v_prediction"),
      ],
      ["kohya.scale_v_like_noise_per_sample", vLikeNoiseWeights(s, timesteps)],
    ];
    for (const [name, weights] of perSample) {
      if (!g.has(name)) continue;
      yield ratios(name, own.map((e, i) => e * weights[i]));
    }
    const value = (name: string, actual: number, expected: number): Line =>
      line(`${id}/${name}`, Math.abs(actual / expected - 1), {
        value: 1e-5,
        source: "relative",
      });
    const read = async (x: tf.Scalar) => {
      const [number] = await x.data();
      x.dispose();
      return number;
    };
    const mean = (one: tf.Tensor1D) => preservingPrior(one, 0, 1).diffusion;
    const sums: Record<string, tf.Scalar> = tf.tidy(() => ({
      epsilon: mean(tf.mul(errors, epsilon)),
      v_prediction: mean(tf.mul(errors, v)),
      unweighted: mean(errors),
    }));
    for (const [name, actual] of Object.entries(sums)) {
      const expected = facts.min_snr_loss[name];
      const number = await read(actual);
      if (expected !== undefined) {
        yield value(`min_snr_loss/${name}`, number, expected);
      }
    }
    for (const name of Object.keys(facts.prior_preservation)) {
      const match = name.match(/^total_weight_([\d.]+)$/);
      const weight = match ? Number(match[1]) : 1;
      const actual: tf.Scalar = tf.tidy(() => {
        const both = squaredErrors(
          g.nhwc("prior.model_pred"),
          g.nhwc("prior.target"),
        );
        const { diffusion, prior } = preservingPrior(
          both,
          both.size / 2,
          weight,
        );
        if (name === "instance_loss") return diffusion;
        return name === "prior_loss" ? prior! : tf.add(diffusion, prior!);
      });
      yield value(
        `prior_preservation/${name}`,
        await read(actual),
        facts.prior_preservation[name],
      );
    }
    yield* zeroTerminal(id, scheduler, g);
    tf.dispose([prediction, target, errors]);
  },
};

/** ᾱ rescaled to end at 0. */
async function* zeroTerminal(
  id: string,
  scheduler: Readonly<Record<string, unknown>>,
  g: Golden,
): AsyncGenerator<Line> {
  await Promise.resolve();
  if (!g.has("zero_terminal_snr.betas")) return;
  const s: Schedule = schedule(
    parseSchedulerConfig({ ...scheduler, rescale_betas_zero_snr: true }),
  );
  for (
    const [name, actual, rounding] of [
      ["alphas_cumprod", s.alphasCumprod, 1e-6],
      // A beta is one minus a ratio of neighbours.
      ["betas", s.betas, 1e-5],
    ] as const
  ) {
    yield line(
      `${id}/zero_terminal_snr.${name}`,
      maximumError(actual, g.values(`zero_terminal_snr.${name}`).data),
      { value: rounding, source: "float32 on both sides" },
    );
  }
}

/** Every check of training. */
export const TRAINING_CHECKS: readonly Check[] = [unetLora, edLora, weighted];
