import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { key, normal } from "../../src/core/random.ts";
import { at } from "../../src/core/tree.ts";
import { type Concept, disposeConcept } from "../../src/customize/concept.ts";
import {
  type Adapter,
  attach,
  delta,
  initLora,
} from "../../src/customize/lora.ts";
import {
  iteris,
  iterisLayer,
  type IterisRecord,
  type IterisTerm,
} from "../../src/fusion/iteris.ts";
import { regMean } from "../../src/fusion/mergers.ts";
import { disposeModel } from "../../src/models/model.ts";
import {
  combine,
  gram,
  identity,
  inner,
  type Matrix,
  matrix,
  multiply,
  qr,
  solver,
  stack,
  transpose,
} from "../../src/optim/least_squares.ts";
import { withRandomUp } from "../customize/random_up.ts";
import { close, forEachBackend } from "../helpers.ts";
import { finish, fusionFixture } from "./concepts.ts";

const random = (seed: number, rows: number, columns: number): Matrix =>
  matrix(rows, columns, normal(key(seed), rows * columns));

const scaled = (a: Matrix, by: number) => combine(a, a, by, 0);

/** Inputs and the term they make. */
function term(seed: number, rows: number): {
  own: Matrix;
  merged: Matrix;
  weight: Matrix;
  term: IterisTerm;
} {
  const own = random(seed, rows, 6);
  // The merged model sees something near to it.
  const merged = combine(own, random(seed + 10, rows, 6), 1, 0.3);
  const weight = random(seed + 20, 6, 4);
  return {
    ...{ own, merged, weight },
    term: {
      weight,
      own: gram(own),
      merged: gram(merged),
      cross: multiply(transpose(merged), own),
    },
  };
}

Deno.test("IterIS solves the article's least squares", () => {
  const parts = [term(1, 9), term(2, 5)];
  const alpha = 0.01;
  // A second way: the rows themselves and those of the ridge, below each other,
  // by QR.
  const left: Matrix[] = [];
  const right: Matrix[] = [];
  for (const { own, merged, weight, term: { merged: g, cross } } of parts) {
    const shown = multiply(own, weight);
    const lambda = inner(weight, weight) / inner(shown, shown);
    const [a, b] = [g, cross].map((m) => alpha * Math.sqrt(inner(m, m)));
    const root = Math.sqrt(lambda);
    left.push(
      scaled(merged, root),
      scaled(identity(6), root * Math.sqrt(a)),
    );
    right.push(
      scaled(shown, root),
      scaled(weight, root * b / Math.sqrt(a)),
    );
  }
  const { q, r } = qr(stack(...left));
  // R·W = Qᵀ·b by its normal equations: R is small and well conditioned.
  const expected = solver(gram(r), 0)(
    multiply(transpose(r), multiply(transpose(q), stack(...right))),
  );
  const { weight, error } = iterisLayer(parts.map((p) => p.term), alpha);
  close(weight.data, expected.data, 1e-9);
  let [missed, total] = [0, 0];
  for (const { own, merged, weight: own1 } of parts) {
    const shown = multiply(own, own1);
    const gone = combine(multiply(merged, weight), shown, 1, -1);
    const lambda = inner(own1, own1) / inner(shown, shown);
    missed += lambda * inner(gone, gone);
    total += lambda * inner(shown, shown);
  }
  close(error, missed / total, 1e-9);
});

Deno.test("IterIS where the merged model sees the same is RegMean, weighted", () => {
  const parts = [term(1, 40), term(2, 30)].map(({ term }) => ({
    ...term,
    merged: term.own,
    cross: term.own,
  }));
  const lambdas = parts.map(({ weight, own }) =>
    inner(weight, weight) / inner(weight, multiply(own, weight))
  );
  const expected = regMean(parts.map(({ weight, own }, i) => ({
    delta: { down: weight, up: identity(4) },
    gram: scaled(own, lambdas[i]),
  })));
  close(iterisLayer(parts, 1e-12).weight.data, expected.data, 1e-8);
  // One concept is itself, whatever the ridge.
  close(
    iterisLayer(parts.slice(0, 1), 1).weight.data,
    parts[0].weight.data,
    1e-9,
  );
  assertThrows(() => iterisLayer([]), Error, "at least one change");
  assertThrows(() => iterisLayer(parts, 0), Error, "α > 0");
});

forEachBackend("IterIS merges whole models", async () => {
  const f = await fusionFixture();
  const before = tf.memory().numTensors;
  const path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  const read = async (model: typeof f.base) => {
    const weight: tf.Tensor = at(model.unet.params, path).weight;
    return (await weight.data() as Float32Array).slice();
  };
  // One concept: the merged model is the concept's own, in every round.
  const [first, second] = f.concepts;
  const options = { steps: 2, key: key(1) };
  const alone: IterisRecord[] = [];
  const run = iteris(f.base, [first], { ...options, rounds: 2 });
  let next = await run.next();
  for (; !next.done; next = await run.next()) alone.push(next.value);
  const merged = next.value;
  const adapter: Adapter = first.adapter;
  const low = attach(f.base, adapter);
  const own = tf.tidy(() => {
    const { weight, low: [leaf] } = at(low.unet.params, path);
    return weight.add(tf.matMul(leaf.down, leaf.up).mul(leaf.scale));
  });
  const [got, wanted, first0] = [
    await read(merged),
    await own.data(),
    await read(f.base),
  ];
  const largest = (a: ArrayLike<number>, b: ArrayLike<number>) =>
    Math.max(...Array.from(a, (x, i) => Math.abs(x - b[i])));
  // Sums of float32 products, over a ridge of 1e-4.
  assert(largest(got, wanted) < 0.01 * largest(wanted, first0));
  own.dispose();
  assertEquals(alone.map(({ round }) => round), [1, 2]);
  assert(alone.every(({ error }) => error < 1e-4), "nothing to contradict");
  assert(alone[1].change < 1e-3);
  disposeModel(merged, f.base);
  // Two: the second round sees the merged model and moves.
  const records: IterisRecord[] = [];
  const both = iteris(f.base, [first, second], { ...options, rounds: 2 });
  let step = await both.next();
  for (; !step.done; step = await both.next()) records.push(step.value);
  assert(records[0].error > 10 * alone[0].error, "nothing to agree on");
  assert(records[1].change > 10 * alone[1].change);
  const once = await finish(
    iteris(f.base, [first, second], { ...options, rounds: 1 }),
  );
  const [a, b] = [await read(step.value), await read(once)];
  assert(a.some((w, i) => Math.abs(w - b[i]) > 1e-6), "rounds change nothing");
  assertEquals(Object.keys(once.added!.sites).length, 4);
  disposeModel(step.value, f.base);
  disposeModel(once, f.base);
  assertEquals(tf.memory().numTensors, before);
  for (
    const [bad, message] of [
      [{ rounds: 0 }, "rounds ≥ 1"],
      [{ alpha: 0 }, "α > 0"],
      [{ templates: ["photo"] }, "templates with {}"],
    ] as const
  ) {
    await assertRejects(
      () => finish(iteris(f.base, [first], bad)),
      Error,
      message,
    );
  }
  f.dispose();
}, ["wasm"]);

forEachBackend("IterIS solves convolutions as well", async () => {
  const f = await fusionFixture();
  const before = tf.memory().numTensors;
  const paths = [
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
  ];
  const fresh = initLora(f.base, {
    ...{ key: key(5), rank: 2, name: "conv" },
    targets: (component, { path }) =>
      component === "unet" && paths.includes(path),
  });
  const concept: Concept = {
    ...{ name: "conv", tokens: [], classWord: "cat", phrase: "", meta: {} },
    adapter: withRandomUp(fresh, key(6), 0.1),
  };
  // One concept is its own merged model: W₀ + ΔW, nothing averaged away.
  const merged = await finish(
    iteris(f.base, [concept, { ...concept, name: "again" }], {
      ...{ layers: "all", rounds: 2, steps: 2, key: key(1) },
    }),
  );
  const attached = attach(f.base, concept.adapter);
  for (const path of paths) {
    const weights = tf.tidy(() =>
      [merged, attached, f.base].map((model): tf.Tensor => {
        const { weight, low } = at(model.unet.params, path);
        return low ? weight.add(delta(low[0], weight)) : weight.clone();
      })
    );
    const [got, wanted, first] = await Promise.all(
      weights.map((weight) => weight.data() as Promise<Float32Array>),
    );
    tf.dispose(weights);
    const largest = (a: Float32Array, b: Float32Array) =>
      Math.max(...a.map((x, i) => Math.abs(x - b[i])));
    assert(largest(got, wanted) < 0.01 * largest(wanted, first), path);
  }
  disposeModel(merged, f.base);
  disposeConcept(concept);
  assertEquals(tf.memory().numTensors, before);
  f.dispose();
}, ["wasm"]);
