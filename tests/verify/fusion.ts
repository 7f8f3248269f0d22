/**
 * Fusion: one layer's least squares, and whole models by their feature errors.
 *
 * @module
 */
import { finish } from "../../src/core/finish.ts";
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../src/core/errors.ts";
import { at, updateAt } from "../../src/core/tree.ts";
import {
  addTokens,
  type Concept,
  disposeConcept,
} from "../../src/customize/concept.ts";
import { loadConcept } from "../../src/formats/concept_file.ts";
import type { Component } from "../../src/customize/lora.ts";
import {
  keyValueStatistics,
  spatialStatistics,
  textStatistics,
} from "../../src/fusion/features.ts";
import { fuse } from "../../src/fusion/gradient.ts";
import {
  type Delta,
  denseDelta,
  fuseLayer,
  LeastSquares,
  solve,
} from "../../src/fusion/layer.ts";
import type { Stats } from "../../src/fusion/statistics.ts";
import { type Strength, weightFusion } from "../../src/fusion/weight.ts";
import { crossAttentionSites } from "../../src/models/config.ts";
import { toDisk } from "../../src/models/checkpoint.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import { textEncoder } from "../../src/models/text_encoder.ts";
import { unet } from "../../src/models/unet.ts";
import {
  combine,
  gram,
  identity,
  type Matrix,
  matrix,
  transpose,
} from "../../src/optim/least_squares.ts";
import {
  type Check,
  compare,
  type Context,
  exact,
  type Line,
  line,
  maximumError,
  notCovered,
  rootMeanSquare,
} from "./check.ts";
import type { Golden } from "./fixture.ts";

/** Mean squared feature errors are sums of many float32 squares. */
const LOSS = {
  value: 3e-5,
  source: "relative; features are float32 (3e-6, times ten)",
};

/** A case of linear.json. */
type LinearCase = Readonly<Record<string, number>> & {
  readonly rows: readonly number[];
};

/** A golden [r, c] tensor in float64. */
function wide(g: Golden, name: string): Matrix {
  const { shape, data } = g.values(name);
  return matrix(shape[0], shape[1], data);
}

/** Statistics of rows, as they are or as their Gram matrix. */
function statsOf(x: Matrix, form: "rows" | "gram"): Stats {
  return form === "rows"
    ? { features: x.columns, count: x.rows, rows: x }
    : { features: x.columns, count: x.rows, gram: gram(x) };
}

/** Root mean square of a difference. */
function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return rootMeanSquare(Array.from(a, (x, i) => x - b[i]));
}

const linear: Check = {
  id: "fusion/linear",
  files: ["fusion/linear.json", "fusion/linear.safetensors"],
  async *run(context) {
    const { fixture } = context;
    const cases = await fixture.json<Record<string, LinearCase>>(
      "fusion/linear.json",
    );
    const g = await fixture.golden("fusion/linear.safetensors");
    for (const [name, facts] of Object.entries(cases)) {
      const id = `fusion/linear/${name}`;
      const count = g.names.filter((key) => key.startsWith(`${name}.X`)).length;
      const w0 = transpose(wide(g, `${name}.W0`));
      const terms = (form: "rows" | "gram") =>
        Array.from({ length: count }, (_, i) => {
          const down = transpose(wide(g, `${name}.dW${i}`));
          return {
            stats: statsOf(wide(g, `${name}.X${i}`), form),
            delta: { down, up: identity(down.columns) } as Delta,
          };
        });
      const ratio = (what: string, actual: number, expected: number): Line =>
        // A minimum of 0 has no relative error: then of the first error.
        line(
          `${id}/${what}`,
          Math.abs(actual - expected) /
            Math.max(expected, 1e-9 * facts.mse_W0),
          LOSS,
        );
      const solution = fuseLayer(terms("rows"), { ridge: 0 });
      yield ratio("mse_W0", solution.lossBefore, facts.mse_W0);
      yield ratio(
        "mse_weightfusion",
        solution.lossWeightFusion,
        facts.mse_weightfusion,
      );
      yield ratio("mse_closed", solution.lossAfter, facts.mse_closed_f64);
      const streamed = fuseLayer(terms("gram"), { ridge: 0 });
      yield ratio(
        "mse_closed_gram",
        streamed.lossAfter,
        facts.mse_closed_gram_pinv < 1e-9 * facts.mse_W0
          ? facts.mse_closed_f64
          : facts.mse_closed_gram_pinv,
      );
      const weights = (key: string, actual: Delta, rounding: number): Line => {
        const golden = transpose(wide(g, key));
        const fused = combine(w0, denseDelta(actual));
        const size = rootMeanSquare(golden.data);
        return line(
          `${id}/${key.slice(name.length + 1)}`,
          distance(fused.data, golden.data) / size,
          { value: rounding, source: "relative, root mean square" },
        );
      };
      // Stored in float32; the Gram matrix squares the inputs' condition.
      yield weights(`${name}.W_closed`, solution.delta, 1e-4);
      for (const key of g.names) {
        const match = key.match(/\.W_lbfgs(\d+)$/);
        if (!match || !key.startsWith(`${name}.`)) continue;
        const iterations = Number(match[1]);
        const golden = facts[`mse_lbfgs${iterations}`];
        const descended = fuseLayer(terms("gram"), {
          method: "lbfgs",
          iterations,
          precision: "float32",
        });
        // Not converged, its path depends on how sums are rounded; it must not
        // end higher than the official one.
        yield line(
          `${id}/mse_lbfgs${iterations}`,
          Math.max(0, descended.lossAfter - golden) /
            Math.max(golden, 1e-8 * facts.mse_W0),
          { value: 0.03, source: "relative, above the official error" },
        );
        // How far the folder's own weight is from the minimum says how far
        // two L-BFGS runs may be from each other.
        const own = facts[`relW_lbfgs${iterations}`] ?? 1;
        if (own < 0.01) yield weights(key, descended.delta, 5 * own + 1e-5);
        else g.shape(key);
      }
    }
  },
};

/** pipeline.json. */
interface PipelineFacts {
  readonly concepts: readonly {
    readonly lora_path: string;
    readonly unet_alpha?: number;
    readonly text_encoder_alpha?: number;
    readonly concept_name: string;
  }[];
  readonly new_concept_cfg?: Readonly<Record<string, unknown>>;
  readonly final_prompt?: string;
  readonly iters?: Readonly<Record<Stage, number>>;
  readonly layers: Readonly<Record<string, LayerFacts>>;
}

interface LayerFacts {
  readonly rows: number;
  readonly feat: number;
  readonly mse_W0: number;
  readonly mse_lbfgs: number;
  readonly mse_closed: number;
  readonly cond?: number;
}

type Stage = "text_encoder" | "unet_kv" | "unet_spatial";

const STAGES: readonly [Stage, Component][] = [
  ["text_encoder", "textEncoder"],
  ["unet_kv", "unet"],
  ["unet_spatial", "unet"],
];

/** What the fusion checks share. */
interface Fused {
  readonly facts: PipelineFacts;
  readonly base: Model;
  readonly concepts: readonly Concept[];
  readonly strengths: readonly Strength[];
}

async function openFusion(context: Context): Promise<Fused | string> {
  const { fixture } = context;
  const facts = await fixture.json<PipelineFacts>("fusion/pipeline.json");
  const base = await context.model();
  const concepts: Concept[] = [];
  for (const [i, entry] of facts.concepts.entries()) {
    const path = `fusion/${entry.lora_path}`;
    if (!await fixture.has(path)) {
      concepts.forEach(disposeConcept);
      return `not in this folder: ${path}`;
    }
    context.consumed.add(path);
    const concept = await loadConcept(fixture.path(path), base, {
      name: `concept${i}`,
      classWord: "thing",
    });
    concepts.push({
      ...concept,
      phrase: entry.concept_name,
      tokens: concept.tokens.toSorted((a, b) =>
        entry.concept_name.indexOf(a.token) -
        entry.concept_name.indexOf(b.token)
      ),
    });
  }
  return {
    facts,
    base,
    concepts,
    strengths: facts.concepts.map((entry) => ({
      unet: entry.unet_alpha ?? 1,
      textEncoder: entry.text_encoder_alpha ?? 1,
    })),
  };
}

/** W₀ + mean of αᵢ·upᵢ·downᵢ. */
const weight: Check = {
  id: "fusion/weight_fusion",
  files: ["fusion/pipeline.json", "fusion/weight_fusion.safetensors"],
  async *run(context) {
    const opened = await openFusion(context);
    if (typeof opened === "string") {
      yield notCovered("fusion/weight_fusion", opened);
      return;
    }
    const { base, concepts, strengths } = opened;
    const g = await context.fixture.golden("fusion/weight_fusion.safetensors");
    const fused = weightFusion(base, concepts, { strengths });
    let worst = 0;
    let size = 0;
    let count = 0;
    const unknown: string[] = [];
    for (const name of g.names) {
      const match = name.match(/^(text_encoder|unet)\.(.*)\.weight$/);
      const tensor: tf.Tensor | undefined = match
        ? at(
          fused[match[1] === "unet" ? "unet" : "textEncoder"].params,
          match[2],
        )?.weight
        : undefined;
      if (!tensor) {
        unknown.push(name);
        continue;
      }
      const expected = g.values(name).data;
      const actual = await diskWeight(tensor);
      count++;
      worst = Math.max(worst, maximumError(actual, expected));
      size = Math.max(size, ...expected.map(Math.abs));
    }
    const result = line("fusion/weight_fusion", worst, {
      value: 10 * 2 ** -24 * size,
      source: `${count} weights; 10 roundings of the largest weight`,
    });
    yield unknown.length > 0
      ? { ...result, status: "FAIL", reason: `no layers ${unknown}` }
      : result;
    disposeModel(fused, base);
    concepts.forEach(disposeConcept);
  },
};

/** A weight as it lies on disk. */
async function diskWeight(tensor: tf.Tensor): Promise<Float32Array> {
  return toDisk(
    tensor.rank === 4 ? "conv" : "linear",
    tensor.shape,
    await tensor.data() as Float32Array,
  );
}

/** A golden weight in the layout of the house. */
function goldenWeight(g: Golden, name: string): tf.Tensor2D {
  return tf.tidy(() => tf.transpose(g.tensor<tf.Tensor2D>(name)));
}

/** A model whose layers have the weights of a file; they are new tensors. */
function withWeights(
  model: Model,
  component: Component,
  stage: Stage,
  paths: readonly string[],
  g: Golden,
): Model {
  const params = updateAt(
    model[component].params as unknown,
    paths,
    (node, path) => ({
      ...node,
      weight: goldenWeight(g, `${stage}.${path}.weight`),
    }),
  );
  return { ...model, [component]: { ...model[component], params } };
}

/** Steps of the sampling run, from the rows of a layer at full resolution. */
function samplingSteps(
  facts: PipelineFacts,
  latent: readonly number[],
): number {
  const [, , height, width] = latent;
  const full = Object.entries(facts.layers).filter(([name]) =>
    name.startsWith("unet_spatial.")
  ).map(([, { rows }]) => rows);
  const rows = Math.max(...full);
  const steps = rows / (facts.concepts.length * height * width);
  if (!Number.isInteger(steps)) {
    throw cannot(
      "verify fusion",
      `rows of steps × ${height} × ${width} latents`,
      rows,
    );
  }
  return steps;
}

/** The official run, stage by stage, on what each stage was given there. */
const pipeline: Check = {
  id: "fusion/pipeline",
  files: [
    "fusion/pipeline.json",
    "fusion/pipeline_inputs_outputs.safetensors",
    "fusion/fused_lbfgs.safetensors",
  ],
  async *run(context) {
    const id = "fusion/pipeline";
    const opened = await openFusion(context);
    if (typeof opened === "string") {
      yield notCovered(id, opened);
      return;
    }
    const { fixture } = context;
    const { facts, base, concepts, strengths } = opened;
    const io = await fixture.golden(
      "fusion/pipeline_inputs_outputs.safetensors",
    );
    const lbfgs = await fixture.golden("fusion/fused_lbfgs.safetensors");
    const closed = await fixture.has("fusion/fused_closed_form.safetensors")
      ? await fixture.golden("fusion/fused_closed_form.safetensors")
      : undefined;
    const noise = concepts.map((_, i) => io.nhwc(`noise${i}`));
    const steps = samplingSteps(facts, io.shape("noise0"));
    const paths = (stage: Stage) =>
      Object.keys(facts.layers).filter((name) => name.startsWith(`${stage}.`))
        .map((name) => name.slice(stage.length + 1).replace(/\.weight$/, ""));
    let model = addTokens(base, concepts);
    if (facts.new_concept_cfg) {
      yield exact(
        `${id}/new_concept_cfg`,
        Object.fromEntries(
          Object.entries(model.added!.sites).map(([token, own]) => [token, {
            concept_token_ids: own.map((i) =>
              base.textEncoder.config.vocab_size + i
            ),
            concept_token_names: own.map((i) => model.added!.names[i]),
          }]),
        ),
        facts.new_concept_cfg,
      );
    }
    for (const [stage, component] of STAGES) {
      const own = paths(stage);
      const stats: ReadonlyMap<string, Stats>[] = [];
      for (const [i, concept] of concepts.entries()) {
        const alpha = strengths[i][component] ?? 1;
        stats.push(
          stage === "text_encoder"
            ? await textStatistics(model, concept, own, { alpha })
            : stage === "unet_kv"
            ? await keyValueStatistics(model, concept, own)
            : await finish(
              spatialStatistics(
                model,
                concept,
                own,
                { alpha, noise, steps, images: noise[0].shape[0] },
                i,
              ),
            ),
        );
      }
      yield* stageLines(id, stage, component, own, stats, opened, {
        lbfgs,
        closed,
      });
      model = withWeights(model, component, stage, own, lbfgs);
    }
    yield* wholeModel(id, context, model, facts, io);
    // Weights of the file in place of the base's: only those are new.
    disposeModel(model, base);
    tf.dispose(noise);
    yield* ownFusion(id, opened, io, steps);
    concepts.forEach(disposeConcept);
  },
};

/** Feature errors of every layer of a stage, the worst of each kind. */
async function* stageLines(
  id: string,
  stage: Stage,
  component: Component,
  paths: readonly string[],
  stats: readonly ReadonlyMap<string, Stats>[],
  { facts, base, concepts, strengths }: Fused,
  golden: { readonly lbfgs: Golden; readonly closed: Golden | undefined },
): AsyncGenerator<Line> {
  const worst: Record<string, { error: number; layer: string }> = {};
  const see = (what: string, error: number, layer: string) => {
    const before = worst[what];
    if (!before || !(error <= before.error)) worst[what] = { error, layer };
  };
  const wrong: string[] = [];
  for (const path of paths) {
    const name = `${stage}.${path}.weight`;
    const expected = facts.layers[name];
    const w0: tf.Tensor = at(base[component].params, path).weight;
    const [inputs, outputs] = w0.shape;
    const problem = new LeastSquares(inputs);
    for (const [i, { adapter }] of concepts.entries()) {
      const low = adapter[component].get(path);
      const alpha = strengths[i][component] ?? 1;
      const delta = low && {
        down: matrix(
          inputs,
          low.down.shape[1]!,
          Float64Array.from(
            await low.down.data(),
            (x) => alpha * low.scale * x,
          ),
        ),
        up: matrix(low.up.shape[0]!, outputs, await low.up.data()),
      };
      const change = { outputs, ...(delta ? { delta } : {}) };
      problem.add(stats[i].get(path)!, new Map([[path, change]]));
    }
    const [[, solution]] = solve([problem], { ridge: 0 });
    if (
      solution.rows !== expected.rows || solution.features !== expected.feat
    ) {
      wrong.push(
        `${name}: ${solution.rows}×${solution.features} for ` +
          `${expected.rows}×${expected.feat}`,
      );
    }
    see(
      "mse_W0",
      Math.abs(solution.lossBefore / expected.mse_W0 - 1),
      path,
    );
    // A minimum of nearly 0 (fewer rows than features) is rounding.
    const floor = 1e-6 * expected.mse_W0;
    see(
      "mse_closed",
      Math.abs(solution.lossAfter - expected.mse_closed) /
        Math.max(expected.mse_closed, floor),
      path,
    );
    see(
      "closed_against_lbfgs",
      Math.max(0, solution.lossAfter - expected.mse_lbfgs) /
        Math.max(expected.mse_lbfgs, floor),
      path,
    );
    const before = await w0.data();
    for (const [kind, file] of Object.entries(golden)) {
      if (!file?.has(name)) continue;
      // How well the golden weight fits our features.
      const theirs = transpose(wide(file, name));
      const change = matrix(
        inputs,
        outputs,
        theirs.data.map((w, k) => w - before[k]),
      );
      const limit = kind === "lbfgs" ? expected.mse_lbfgs : expected.mse_closed;
      see(
        `fused_${kind === "lbfgs" ? "lbfgs" : "closed_form"}`,
        Math.abs(problem.objective(path)(change.data).value - limit) /
          Math.max(limit, 1e-6 * expected.mse_W0),
        path,
      );
    }
  }
  const limits: Record<string, { value: number; source: string }> = {
    mse_W0: LOSS,
    // Text layers: features with condition 4600, their Gram matrix 2e7.
    mse_closed: {
      value: 1e-3,
      source: "relative; Gram matrices of float32 features",
    },
    closed_against_lbfgs: {
      value: 1e-3,
      source: "relative, above the official L-BFGS error",
    },
    fused_lbfgs: {
      value: 1e-3,
      source: "relative; the folder's weight on our features",
    },
    fused_closed_form: {
      value: 1e-3,
      source: "relative; the folder's weight on our features",
    },
  };
  yield exact(`${id}/${stage}/rows_and_features`, wrong, []);
  for (const [what, { error, layer }] of Object.entries(worst)) {
    yield {
      ...line(`${id}/${stage}/${what}`, error, limits[what]),
      reason: `${paths.length} layers, worst ${layer}; ${limits[what].source}`,
    };
  }
}

/** Text states and one UNet call of the model with the official weights. */
async function* wholeModel(
  id: string,
  context: Context,
  model: Model,
  facts: PipelineFacts,
  io: Golden,
): AsyncGenerator<Line> {
  const sites = crossAttentionSites(model.unet.config).length;
  const ids = io.rows("input_ids");
  if (facts.final_prompt !== undefined && model.added) {
    const { added, tokenizer } = model;
    const tokens = Object.keys(added.sites).sort((a, b) => b.length - a.length);
    const rows = ids.map((_, i) =>
      tokenizer.encode(
        tokens.reduce(
          (text, token) =>
            text.replaceAll(
              token,
              added.names[
                added.sites[token][Math.min(i, added.sites[token].length - 1)]
              ],
            ),
          facts.final_prompt!,
        ),
      ).ids
    );
    yield exact(`${id}/input_ids`, rows, ids);
  }
  const states = tf.tidy(() =>
    textEncoder(model.textEncoder.params, model.textEncoder.config, ids, {
      ...(model.added ? { added: model.added.vectors } : {}),
    }).last
  );
  const text = io.values("text_states");
  // Fused weights may be much larger than the base's, and so is the rounding.
  let growth = 1;
  for (const name of Object.keys(facts.layers)) {
    if (!name.startsWith("text_encoder.")) continue;
    const path = name.replace(/^text_encoder\./, "").replace(/\.weight$/, "");
    const fused: tf.Tensor = at(model.textEncoder.params, path).weight;
    const before: tf.Tensor =
      at((await context.model()).textEncoder.params, path).weight;
    const size = async (x: tf.Tensor) => rootMeanSquare(await x.data());
    growth = Math.max(growth, await size(fused) / await size(before));
  }
  const base = context.tolerance(/(^|\.)text_f(32_f)?64/, text.data);
  yield await compare(
    `${id}/text_states`,
    states.clone(),
    text,
    {
      value: base.value * growth,
      source: `${base.source} × growth of the fused weights ` +
        growth.toPrecision(3),
    },
  );
  const out = io.values("out");
  yield await compare(
    `${id}/out`,
    tf.tidy(() =>
      unet(
        model.unet.params,
        model.unet.config,
        io.nhwc("sample"),
        io.integers("timesteps"),
        // One prompt bound several ways: its batch is the sites.
        tf.slice(states, [0, 0, 0], [Math.min(sites, ids.length), -1, -1])
          .expandDims(0) as tf.Tensor4D,
      )
    ),
    out,
    context.tolerance(/(^|\.)unet_f(32_f)?64/, out.data),
    "nhwc",
  );
  states.dispose();
}

/** This library's own fusion from start to end, against the official errors. */
async function* ownFusion(
  id: string,
  { facts, base, concepts, strengths }: Fused,
  io: Golden,
  steps: number,
): AsyncGenerator<Line> {
  const noise = concepts.map((_, i) => io.nhwc(`noise${i}`));
  const after = new Map<string, number[]>();
  const run = fuse(base, concepts, {
    strengths,
    noise,
    steps,
    images: noise[0].shape[0],
    ridge: 0,
  });
  const fused = await finish(run, (record) => {
    if (record.type !== "layer") return;
    const { stage, lossAfter } = record;
    after.set(stage, [...after.get(stage) ?? [], lossAfter]);
  });
  disposeModel(fused, base);
  tf.dispose(noise);
  const mean = (values: readonly number[]) =>
    values.reduce((sum, x) => sum + x, 0) / values.length;
  const names = {
    text_encoder: "textEncoder",
    unet_kv: "kv",
    unet_spatial: "spatial",
  } as const;
  for (const [stage] of STAGES) {
    const own = after.get(names[stage]);
    const golden = Object.entries(facts.layers).filter(([name]) =>
      name.startsWith(`${stage}.`)
    ).map(([, layer]) => layer);
    if (!own || golden.length === 0) continue;
    const expected = mean(golden.map((layer) => layer.mse_lbfgs));
    const floor = 1e-6 * mean(golden.map((layer) => layer.mse_W0));
    // Stages before it were fused in closed form, so features differ a little.
    yield {
      ...line(
        `${id}/fuse/${stage}`,
        Math.max(0, mean(own) - expected) / Math.max(expected, floor),
        { value: 0.02, source: "" },
      ),
      reason: `mean feature error ${mean(own).toPrecision(4)}, official ` +
        `L-BFGS ${expected.toPrecision(4)}; 2 % above it is accepted`,
    };
  }
}

/** Every check of fusion. */
export const FUSION_CHECKS: readonly Check[] = [linear, weight, pipeline];
