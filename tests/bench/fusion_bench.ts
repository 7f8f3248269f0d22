/**
 * Closed-form gradient fusion of one 320 × 320 layer with 245,760 rows: three
 * concepts, 20 sampling steps of 64 × 64 positions each, as in the first level
 * of SD 1.5. Rows are streamed into Gram matrices and never stored.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { selectBackend } from "../../src/core/backend.ts";
import { fold, key, normal } from "../../src/core/random.ts";
import {
  fuseLayer,
  type LayerSolution,
  type LayerTerm,
} from "../../src/fusion/layer.ts";
import { GramAccumulator, type Stats } from "../../src/fusion/statistics.ts";
import {
  cholesky,
  choleskySolve,
  gram,
  matrix,
} from "../../src/optim/least_squares.ts";

const [CONCEPTS, STEPS, ROWS, WIDTH, RANK] = [3, 20, 4096, 320, 4];

const { describe } = await selectBackend(
  Deno.env.get("MIX_OF_SHOW_BENCH_BACKEND") === "webgpu" ? "webgpu" : "wasm",
);

/** A concept's step: correlated rows, as features are. */
const features = Array.from({ length: CONCEPTS }, (_, i) => {
  const size = ROWS * WIDTH;
  return tf.tidy(() => {
    const latent = tf.tensor2d(normal(fold(key(1), i), size), [ROWS, WIDTH]);
    const mixing = tf.tensor2d(
      normal(fold(key(2), i), WIDTH * WIDTH, WIDTH ** -0.5),
      [WIDTH, WIDTH],
    );
    return tf.matMul(latent, mixing).add(0.3) as tf.Tensor2D;
  });
});

const deltas = Array.from({ length: CONCEPTS }, (_, i) => ({
  down: matrix(WIDTH, RANK, normal(fold(key(3), i), WIDTH * RANK, 0.1)),
  up: matrix(RANK, WIDTH, normal(fold(key(4), i), RANK * WIDTH, 0.1)),
}));

async function collectAndSolve(): Promise<LayerSolution> {
  const terms: LayerTerm[] = [];
  for (let i = 0; i < CONCEPTS; i++) {
    const sum = new GramAccumulator(WIDTH);
    for (let step = 0; step < STEPS; step++) {
      sum.add(features[i]);
      await sum.flush();
    }
    terms.push({ stats: await sum.finish(), delta: deltas[i] });
  }
  return fuseLayer(terms);
}

const began = performance.now();
const { rows, lossBefore, lossAfter, lossWeightFusion } =
  await collectAndSolve();
console.log(
  `closed-form fusion of a ${WIDTH} × ${WIDTH} layer, ${rows} rows, ${describe}: ` +
    `${((performance.now() - began) / 1000).toFixed(2)} s; loss ${
      lossBefore.toExponential(4)
    } (W₀), ${lossWeightFusion.toExponential(4)} (weight fusion), ${
      lossAfter.toExponential(4)
    } (fused)`,
);

Deno.bench(
  `closed-form fusion, ${WIDTH} × ${WIDTH}, ${CONCEPTS * STEPS * ROWS} rows`,
  { group: "fusion", n: 1, warmup: 0 },
  async () => {
    await collectAndSolve();
  },
);

const stats = {
  features: WIDTH,
  count: ROWS,
  gram: gram(matrix(ROWS, WIDTH, await features[0].data())),
};

Deno.bench(`solve alone, ${WIDTH} × ${WIDTH}`, { group: "fusion" }, () => {
  fuseLayer(deltas.map((delta) => ({ stats, delta })));
});

const halves: Stats = {
  features: WIDTH,
  count: 2 * ROWS,
  halves: [stats, stats],
};

Deno.bench(
  `solve with a cross-validated ridge, ${WIDTH} × ${WIDTH}`,
  { group: "fusion", n: 2, warmup: 0 },
  () => {
    fuseLayer(deltas.map((delta) => ({ stats: halves, delta })));
  },
);

for (const width of [640, 1280]) {
  const a = gram(
    matrix(2 * width, width, normal(key(width), 2 * width * width)),
  );
  const b = matrix(width, 12, normal(key(5), width * 12));
  Deno.bench(
    `Cholesky and solve for 12 columns, ${width} × ${width}`,
    { group: "linear algebra", n: 2, warmup: 1 },
    () => {
      choleskySolve(cholesky(a, { ridge: 1e-5 }), b);
    },
  );
}
