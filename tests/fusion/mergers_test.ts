import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { fold, key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import type { Concept } from "../../src/customize/concept.ts";
import {
  type ConceptStatistics,
  conceptStatistics,
} from "../../src/fusion/features.ts";
import { hostDelta } from "../../src/fusion/gradient.ts";
import { type Delta, denseDelta, fuseLayer } from "../../src/fusion/layer.ts";
import {
  concatenate,
  constrainedMerge,
  dareLinear,
  dareMask,
  dareTies,
  drop,
  fedAvgWeights,
  knots,
  magnitudePrune,
  MERGE_METHODS,
  mergeConcepts,
  type MergeMethod,
  prune,
  regMean,
  rerank,
  ssr,
  taskArithmetic,
  ties,
} from "../../src/fusion/mergers.ts";
import { weightFusion } from "../../src/fusion/weight.ts";
import { openSafetensors, toFloat32 } from "../../src/io/safetensors.ts";
import { disposeModel, type Model } from "../../src/models/model.ts";
import {
  combine,
  gram,
  identity,
  inner,
  type Matrix,
  matrix,
  multiply,
  solver,
  stack,
  svd,
  transpose,
} from "../../src/optim/least_squares.ts";
import { mergeFactors } from "../verify/merge.ts";
import { close, fixtureJson, fixturePath, forEachBackend } from "../helpers.ts";
import {
  diskWeight,
  finish,
  type FusionFixture,
  fusionFixture,
} from "./concepts.ts";

interface MergeJson {
  weights: number[];
  density: number;
  lambda_sum_weights: number[];
  layers: Record<string, { in: number; out: number }>;
}

/** A file of fixtures/merge, every matrix turned to the house layout. */
async function open(name: string): Promise<Map<string, Matrix>> {
  const file = await openSafetensors(fixturePath(`merge/${name}.safetensors`));
  const found = new Map<string, Matrix>();
  for (const [key, { shape }] of file.entries) {
    const raw = await file.read(key);
    const values = toFloat32(raw);
    const [rows, columns = 1] = shape;
    found.set(key, transpose(matrix(rows, columns, values)));
  }
  file.close();
  return found;
}

const json = await fixtureJson<MergeJson>("merge/merge.json");
const [inputs, expected, masks] = await Promise.all(
  ["inputs", "expected", "masks"].map(open),
);
const { weights, density } = json;
/** Golden values are float32; sums of a few products of size 1. */
const TOLERANCE = 1e-6;

function loras(layer: string): Delta[] {
  return [0, 1, 2].map((k) => ({
    down: inputs.get(`${layer}.lora${k}.lora_A.weight`)!,
    up: inputs.get(`${layer}.lora${k}.lora_B.weight`)!,
  }));
}

const gramsOf = (layer: string) =>
  [0, 1, 2].map((k) => inputs.get(`${layer}.gram${k}`)!);

const maskOf = (layer: string, name: string) =>
  [0, 1, 2].map((k) => masks.get(`${layer}.${name.replace("K", `${k}`)}`)!);

// Golden: fixtures/merge, from PEFT's merge_utils (dense and by factors), and
// from numpy in float64 for KnOTS, RegMean and SSR.
for (const layer of Object.keys(json.layers)) {
  const check = (name: string, actual: Matrix) => {
    const golden = expected.get(`${layer}.${name}`)!;
    assertEquals(
      [actual.rows, actual.columns],
      [golden.rows, golden.columns],
      name,
    );
    close(actual.data, golden.data, TOLERANCE, name);
  };

  Deno.test(`mergers equal PEFT's on dense changes: ${layer}`, () => {
    const deltas = loras(layer).map(denseDelta);
    const dense = maskOf(layer, "dense_maskK").map(({ data }) => data);
    check("task_arithmetic", taskArithmetic(deltas, weights));
    check("lambda_sum", taskArithmetic(deltas, json.lambda_sum_weights));
    check("magnitude_prune", magnitudePrune(deltas, weights, density));
    for (const election of ["total", "frequency"] as const) {
      check(`ties_${election}`, ties(deltas, weights, { density, election }));
    }
    check("dare_linear", dareLinear(deltas, weights, dense, density));
    check("dare_ties", dareTies(deltas, weights, dense, density));
  });

  Deno.test(`mergers equal PEFT's on factors: ${layer}`, () => {
    const deltas = loras(layer);
    const factorMask = (which: "down" | "up") =>
      maskOf(layer, `factor_maskK.${which === "down" ? "A" : "B"}`)
        .map(({ data }) => data);
    const both = (name: string, { down, up }: Delta) => {
      check(`factors.${name}.A`, down);
      check(`factors.${name}.B`, up);
    };
    both("linear", mergeFactors(deltas, weights, taskArithmetic));
    both(
      "magnitude_prune",
      mergeFactors(deltas, weights, (f, w) => magnitudePrune(f, w, density)),
    );
    both(
      "ties",
      mergeFactors(deltas, weights, (f, w) => ties(f, w, { density })),
    );
    both(
      "dare_linear",
      mergeFactors(
        deltas,
        weights,
        (f, w, which) => dareLinear(f, w, factorMask(which), density),
      ),
    );
    both(
      "dare_ties",
      mergeFactors(
        deltas,
        weights,
        (f, w, which) => dareTies(f, w, factorMask(which), density),
      ),
    );
  });

  Deno.test(`KnOTS, RegMean, SSR and SVD: ${layer}`, () => {
    const deltas = loras(layer);
    const grams = gramsOf(layer);
    const terms = deltas.map((delta, k) => ({ delta, gram: grams[k] }));
    for (const form of [deltas, deltas.map(denseDelta)]) {
      const { merged, singularValues } = knots(
        form,
        (parts) => ties(parts, weights, { density }),
      );
      check("knots_ties", merged);
      close(
        singularValues,
        expected.get(`${layer}.knots_singular_values`)!.data,
        TOLERANCE * singularValues[0],
      );
    }
    check("regmean_1.0", regMean(terms));
    check("regmean_0.9", regMean(terms, { a: 0.9 }));
    const { delta, mixing } = ssr(terms);
    assertEquals(delta.down.columns, 12);
    check("ssr", denseDelta(delta));
    check("ssr.R", transpose(mixing));
    check("ssr_ridge1e-3.R", transpose(ssr(terms, { ridge: 1e-3 }).mixing));
    check("svd_rank4", denseDelta(rerank(concatenate(deltas, weights), 4)));
  });
}

function random(seed: number, rows: number, columns: number): Matrix {
  return matrix(rows, columns, normal(key(seed), rows * columns));
}

Deno.test("Custom Diffusion's merge: right on the concepts, least elsewhere", () => {
  const [d, out] = [12, 7];
  const terms = [1, 2, 3].map((seed) => ({
    rows: random(seed, 2, d),
    delta: { down: random(seed + 10, d, 2), up: random(seed + 20, 2, out) },
  }));
  const captions = random(40, 60, d);
  const merged = constrainedMerge(terms, gram(captions), 0);
  for (const { rows, delta } of terms) {
    close(
      multiply(rows, merged).data,
      multiply(multiply(rows, delta.down), delta.up).data,
      1e-9,
    );
  }
  // Anything else that is right on the concepts changes captions more.
  const energy = (change: Matrix) => {
    const seen = multiply(captions, change);
    return inner(seen, seen);
  };
  const c = stack(...terms.map(({ rows }) => rows));
  const onto = multiply(
    transpose(c),
    solver(multiply(c, transpose(c)), 0)(c),
  );
  for (const seed of [50, 51, 52]) {
    const any = random(seed, d, out);
    const free = combine(any, multiply(onto, any), 0.1, -0.1);
    close(multiply(c, free).data, new Float64Array(6 * out), 1e-9);
    assert(energy(combine(merged, free)) > energy(merged));
    assert(energy(combine(merged, free, 1, -1)) > energy(merged));
  }
  // A sum is not right on any of them.
  const sum = taskArithmetic(terms.map(({ delta }) => denseDelta(delta)), [
    1,
    1,
    1,
  ]);
  assert(
    energy(sum) > 0 && multiply(c, combine(sum, merged, 1, -1)).data
      .some((x) => Math.abs(x) > 0.1),
  );
  // The same features asked twice for different things: halfway.
  const [{ rows, delta }] = terms;
  const other = {
    down: delta.down,
    up: matrix(2, out, delta.up.data.map((x) => -x)),
  };
  const torn = constrainedMerge(
    [{ rows, delta }, { rows, delta: other }],
    gram(captions),
    0,
  );
  close(torn.data, new Float64Array(d * out), 1e-9);
  assertThrows(
    () => constrainedMerge([], gram(captions)),
    Error,
    "at least one",
  );
});

Deno.test("FedAvg counts clients by their pictures", () => {
  close(fedAvgWeights([4, 12, 16]), [0.125, 0.375, 0.5], 0);
  for (const bad of [[], [0, 1], [-1], [NaN], [Infinity]]) {
    assertThrows(() => fedAvgWeights(bad), Error, "positive");
  }
});

Deno.test("RegMean with a = 1 is gradient fusion's minimiser", () => {
  const terms = [1, 2, 3].map((seed) => {
    const x = random(seed, 30, 9);
    return {
      x,
      delta: { down: random(seed + 10, 9, 2), up: random(seed + 20, 2, 7) },
    };
  });
  const mean = regMean(terms.map(({ x, delta }) => ({
    delta,
    gram: matrix(9, 9, gram(x).data.map((v) => v / 30)),
  })));
  const fused = fuseLayer(
    terms.map(({ x, delta }) => ({
      stats: { features: 9, count: 30, gram: gram(x) },
      delta,
    })),
    { ridge: 0 },
  );
  close(mean.data, denseDelta(fused.delta).data, 1e-10);
});

Deno.test("one change alone is itself, by every merger", () => {
  const delta = { down: random(1, 8, 2), up: random(2, 2, 6) };
  const dense = denseDelta(delta);
  const term = [{ delta, gram: gram(random(3, 20, 8)) }];
  const all = new Uint8Array(48).fill(1);
  const results: Matrix[] = [
    taskArithmetic([dense], [1]),
    magnitudePrune([dense], [1], 1),
    ties([dense], [1], { density: 1 }),
    dareLinear([dense], [1], [all], 1),
    dareTies([dense], [1], [all], 1),
    knots([delta], ([part]) => part).merged,
    regMean(term),
    denseDelta(ssr(term).delta),
    denseDelta(rerank(delta, 2)),
    denseDelta(concatenate([delta], [1])),
  ];
  results.forEach((m, i) => close(m.data, dense.data, 1e-12, `merger ${i}`));
});

Deno.test("pruning keeps exactly the asked number, ties included", () => {
  const a = matrix(2, 4, [1, -1, 1, -1, 3, 0, 0, 0]);
  assertEquals([...prune(a, 0.5).data], [1, -1, 1, 0, 3, 0, 0, 0]);
  assertEquals(prune(a, 1), a);
  assertEquals([...prune(a, 0.1).data], new Array(8).fill(0));
  const b = random(1, 7, 11);
  for (const share of [0.13, 0.5, 0.99]) {
    const kept = prune(b, share).data.filter((x) => x !== 0).length;
    assertEquals(kept, Math.floor(share * 77));
  }
});

Deno.test("TIES drops what disagrees with the elected sign", () => {
  const [a, b, c] = [[5, 1, -2], [-1, 1, -2], [-1, 1, 1]].map((v) =>
    matrix(1, 3, v)
  );
  const by = (election: "total" | "frequency") => [
    ...ties([a, b, c], [1, 1, 1], { density: 1, election }).data,
  ];
  // First entry: 5 − 1 − 1 > 0 in total, but two of three vote minus.
  assertEquals(by("total"), [5, 1, -2]);
  assertEquals(by("frequency"), [-1, 1, -2]);
});

Deno.test("DARE keeps the expectation and is the same for the same key", () => {
  const a = matrix(1, 4000, new Float64Array(4000).fill(2));
  const mask = dareMask(key(1), 4000, 0.3);
  assertEquals(mask, dareMask(key(1), 4000, 0.3));
  assert(mask.some((x, i) => x !== dareMask(key(2), 4000, 0.3)[i]));
  const mean = drop(a, mask, 0.3).data.reduce((s, x) => s + x, 0) / 4000;
  // σ = 2·√(0.7/0.3/4000) = 0.048.
  close(mean, 2, 0.2);
});

Deno.test("KnOTS does not depend on the signs of singular vectors", () => {
  const deltas = [1, 2].map((seed) => ({
    down: random(seed, 9, 2),
    up: random(seed + 9, 2, 6),
  }));
  const flipped = deltas.map(({ down, up }) => ({
    down: matrix(9, 2, down.data.map((x) => -x)),
    up: matrix(2, 6, up.data.map((x) => -x)),
  }));
  const merge = (parts: readonly Matrix[]) => ties(parts, [1, 1]);
  close(
    knots(flipped, merge).merged.data,
    knots(deltas, merge).merged.data,
    1e-12,
  );
  const zero = knots([matrix(3, 2), matrix(3, 2)], merge);
  assertEquals([...zero.merged.data], new Array(6).fill(0));
});

Deno.test("SSR routes better than summing, and identity where ranks are apart", () => {
  // Inputs on which one concept's A is silent: R is the identity.
  const a = { down: matrix(4, 1, [1, 0, 0, 0]), up: random(1, 1, 3) };
  const b = { down: matrix(4, 1, [0, 0, 1, 0]), up: random(2, 1, 3) };
  const only = (rows: number[]) =>
    gram(
      matrix(
        4,
        4,
        Float64Array.from(
          random(3, 4, 4).data,
          (x, i) => rows.includes(i % 4) ? x : 0,
        ),
      ),
    );
  const { mixing } = ssr([
    { delta: a, gram: only([0, 1]) },
    { delta: b, gram: only([2, 3]) },
  ]);
  close(mixing.data, identity(2).data, 1e-12);
});

Deno.test("a reduced rank is the best one", () => {
  const delta = { down: random(1, 12, 5), up: random(2, 5, 9) };
  const reduced = rerank(delta, 2);
  assertEquals([reduced.down.columns, reduced.up.rows], [2, 2]);
  const rest = combine(denseDelta(delta), denseDelta(reduced), 1, -1);
  const { s } = svd(denseDelta(delta));
  const tail = s.slice(2).reduce((sum, x) => sum + x * x, 0);
  close(inner(rest, rest), tail, 1e-10 * tail);
});

Deno.test("mergers refuse bad input", () => {
  const m = matrix(2, 2);
  assertThrows(() => taskArithmetic([], []), Error, "at least one");
  assertThrows(() => taskArithmetic([m], [1, 2]), Error, "1 weights");
  assertThrows(() => taskArithmetic([m], [NaN]), Error, "finite");
  assertThrows(() => taskArithmetic([m, matrix(2, 3)], [1, 1]), Error, "2 × 2");
  assertThrows(() => prune(m, 0), Error, "density");
  assertThrows(() => drop(m, [1], 0.5), Error, "a mask of 4");
  assertThrows(() => dareMask(key(0), 4, 2), Error, "density");
  assertThrows(() => regMean([]), Error, "at least one");
  assertThrows(() => ssr([]), Error, "at least one");
  const delta = { down: matrix(2, 1), up: matrix(1, 2) };
  assertThrows(() => rerank(delta, 0), Error, "≥ 1");
  assertThrows(() => concatenate([delta], []), Error, "1 weights");
  assertThrows(() => mergeFactors([delta], [-1], taskArithmetic), Error, "≥ 0");
});

/** C·W of the merged model is C·Wᵢ of each concept, on its own words. */
async function keysAreEachOwn(
  f: FusionFixture,
  merged: Model,
  concepts: readonly Concept[],
  statistics: readonly ConceptStatistics[],
): Promise<void> {
  const path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k";
  const read = async (model: Model) => {
    const t: tf.Tensor2D = at(model.unet.params, path).weight;
    return matrix(...t.shape, await t.data());
  };
  const [first, now] = [await read(f.base), await read(merged)];
  for (const [i, { adapter }] of concepts.entries()) {
    const { halves } = statistics[i].unet.get(path)!;
    const rows = stack(...halves!.map(({ rows }) => rows!));
    const own = await hostDelta(
      adapter.unet.get(path)!,
      at(f.base.unet.params, path).weight,
      f.strengths[i].unet!,
    );
    const wanted = combine(first, denseDelta(own));
    const expected = multiply(rows, wanted).data;
    const size = Math.max(...expected.map(Math.abs));
    const apart = multiply(rows, combine(first, wanted, 1, -1)).data;
    assert(Math.max(...apart.map(Math.abs)) > 1e-2 * size, "a change to see");
    close(multiply(rows, now).data, expected, 1e-3 * size, concepts[i].name);
  }
}

const CAPTIONS = ["a photo of a tree", "two people on a beach"];

forEachBackend("every method merges whole models", async () => {
  const f = await fusionFixture();
  const concepts = f.concepts.slice(0, 2);
  const strengths = f.strengths.slice(0, 2);
  const statistics = [];
  for (const concept of concepts) {
    statistics.push(
      await finish(
        conceptStatistics(f.base, concept, { steps: 1, key: key(1) }),
      ),
    );
  }
  const before = tf.memory().numTensors;
  const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  const base = await diskWeight(f.base, "unet", path);
  const average = weightFusion(f.base, concepts, { strengths });
  const mean = await diskWeight(average, "unet", path);
  disposeModel(average, f.base);
  const seen = new Map<MergeMethod, Float32Array>();
  for (const method of MERGE_METHODS) {
    const merged = await mergeConcepts(f.base, concepts, {
      method,
      strengths,
      statistics,
      key: fold(key(2), method),
      ...(method === "custom_diffusion" && { captions: CAPTIONS }),
    });
    assertEquals(Object.keys(merged.added!.sites).length, 4);
    const values = await diskWeight(merged, "unet", path);
    assert(values.some((w, i) => Math.abs(w - base[i]) > 1e-3), method);
    if (method === "custom_diffusion") {
      // Outside of keys and values it is the average, in them each concept's
      // own words get exactly its own keys (eq. 5).
      close(values, mean, 1e-6);
      await keysAreEachOwn(f, merged, concepts, statistics);
    } else seen.set(method, values);
    disposeModel(merged, f.base);
    assertEquals(tf.memory().numTensors, before, method);
  }
  close(seen.get("task_arithmetic")!, mean, 1e-6);
  const distinct = new Set([...seen.values()].map((v) => v.join()));
  assertEquals(distinct.size, MERGE_METHODS.length - 1);
  const refuse = (options: unknown, message: string) =>
    assertRejects(
      () => mergeConcepts(f.base, concepts, options as { method: "ties" }),
      Error,
      message,
    );
  await refuse({ method: "mean" }, "task_arithmetic");
  await refuse({ method: "regmean" }, "statistics of 2");
  await refuse({ method: "ties", density: 0 }, "density");
  await refuse({ method: "custom_diffusion", statistics }, "expected captions");
  await refuse({ method: "ties", captions: CAPTIONS }, "custom_diffusion only");
  await refuse({ method: "ties", weights: [1] }, "2 finite weights");
  const [one] = statistics;
  const lacking = { ...one, unet: new Map() };
  await refuse(
    { method: "ssr", statistics: [one, lacking] },
    "none of concept1",
  );
  assertEquals(tf.memory().numTensors, before);
  f.dispose();
}, ["wasm"]);

Deno.test("a product is merged as its factors are", () => {
  const deltas = [1, 2].map((seed) => ({
    down: random(seed, 6, 2),
    up: random(seed + 5, 2, 4),
  }));
  const joined = concatenate(deltas, [0.3, -2]);
  assertEquals([joined.down.columns, joined.up.rows], [4, 4]);
  close(
    multiply(joined.down, joined.up).data,
    taskArithmetic(deltas.map(denseDelta), [0.3, -2]).data,
    1e-12,
  );
});
