import * as tf from "@tensorflow/tfjs";
import { assert, assertEquals, assertRejects } from "@std/assert";
import { key, normal } from "../../../src/core/random.ts";
import { flatAdamW, flatLayout, flatState } from "./flat.ts";
import {
  flatMuon,
  matrixParts,
  orthogonalised,
  orthogonaliseInPlace,
} from "./muon.ts";
import { close, forEachBackend, noLeak, tolerance } from "../../helpers.ts";

/** Newton–Schulz as Jordan et al. write it: X changes in every step. */
function direct(rows: number[][]): number[][] {
  const times = (a: number[][], b: number[][]) =>
    a.map((row) =>
      b[0].map((_, j) => row.reduce((sum, x, k) => sum + x * b[k][j], 0))
    );
  const turned = (a: number[][]) => a[0].map((_, j) => a.map((r) => r[j]));
  const tall = rows.length > rows[0].length;
  let x = tall ? turned(rows) : rows;
  const norm = Math.hypot(...x.flat());
  x = x.map((row) => row.map((v) => v / norm));
  for (let i = 0; i < 5; i++) {
    const gram = times(x, turned(x));
    const square = times(gram, gram);
    const mixed = times(
      gram.map((row, r) =>
        row.map((g, c) => -4.775 * g + 2.0315 * square[r][c])
      ),
      x,
    );
    x = x.map((row, r) => row.map((v, c) => 3.4445 * v + mixed[r][c]));
  }
  return tall ? turned(x) : x;
}

/** [k, m, n] as nested lists. */
function nested(values: ArrayLike<number>, [k, m, n]: number[]): number[][][] {
  return Array.from(
    { length: k },
    (_, i) =>
      Array.from(
        { length: m },
        (_, r) =>
          Array.from({ length: n }, (_, c) => values[(i * m + r) * n + c]),
      ),
  );
}

forEachBackend(
  "orthogonalised is Newton-Schulz's iteration, tall or wide",
  async (backend) => {
    for (const shape of [[2, 5, 12], [3, 12, 5], [1, 6, 6]] as const) {
      await noLeak(async () => {
        const values = normal(key(shape[1]), shape[0] * shape[1] * shape[2]);
        const x = tf.tensor3d(values, [...shape]);
        const y = orthogonalised(x);
        close(
          await y.data(),
          nested(values, [...shape]).flatMap(direct).flat(),
          tolerance(backend, 2e-4),
        );
        tf.dispose([x, y]);
      });
    }
  },
);

const layout = flatLayout([
  ["a", [3, 3, 4, 8]],
  ["bias", [8]],
  ["b", [8, 8]],
  ["c", [8, 8]],
  ["scale", [5]],
]);

Deno.test("matrixParts: every matrix once, vectors not at all, however many parts", () => {
  for (const parts of [1, 2, 5]) {
    const groups = matrixParts(layout, parts);
    assertEquals(groups.length, parts);
    const found = groups.flat().flatMap(({ shape, offsets }) =>
      offsets.map((offset) => [offset, ...shape])
    );
    assertEquals(
      found.sort((x, y) => x[0] - y[0]),
      [[0, 36, 8], [296, 8, 8], [360, 8, 8]],
    );
  }
});

/** A state, a gradient and a runner in `parts` parts. */
function start(parts: number) {
  const state = flatState(normal(key(1), layout.size));
  const updates = new Float32Array(layout.size);
  const orthogonaliser = {
    updates,
    async run() {
      for (const groups of matrixParts(layout, parts)) {
        if (groups.length > 0) await orthogonaliseInPlace(updates, groups);
      }
    },
  };
  return { state, grads: normal(key(2), layout.size), orthogonaliser };
}

Deno.test("flatMuon: vectors move as by AdamW, matrices by 0.2 lr a number", async () => {
  const options = { lr: 0.01, weightDecay: 0, ema: 0.5, maxNorm: 0.1 };
  const { state, grads, orthogonaliser } = start(2);
  const before = Float32Array.from(state.params);
  const norm = await flatMuon(layout, state, grads, options, orthogonaliser);
  const adam = flatState(Float32Array.from(before));
  assertEquals(norm, flatAdamW(layout, adam, grads, options));
  assertEquals(state.step, 1);
  for (const { path, offset, size, decay } of layout.entries) {
    const moved = state.params.subarray(offset, offset + size);
    if (!decay) {
      assertEquals(moved, adam.params.subarray(offset, offset + size), path);
      continue;
    }
    const squares = moved.reduce(
      (sum, p, i) => sum + (p - before[offset + i]) ** 2,
      0,
    );
    const rms = Math.sqrt(squares / size) / (0.01 * 0.2);
    assert(rms > 0.6 && rms < 1.3, `${path} moved by ${rms}`);
  }
});

Deno.test("flatMuon: the same step whatever the number of parts; decay shrinks matrices", async () => {
  const options = { lr: 0.01, weightDecay: 0.5 };
  const one = start(1);
  const three = start(3);
  await flatMuon(layout, one.state, one.grads, options, one.orthogonaliser);
  await flatMuon(
    layout,
    three.state,
    three.grads,
    options,
    three.orthogonaliser,
  );
  assertEquals(one.state.params, three.state.params);
  const free = start(1);
  await flatMuon(
    layout,
    free.state,
    free.grads,
    { ...options, weightDecay: 0 },
    free.orthogonaliser,
  );
  const start0 = start(1).state.params[0];
  close(
    [free.state.params[0] - one.state.params[0]],
    [0.01 * 0.5 * start0],
    1e-6,
  );
  assertEquals(one.state.params[288], free.state.params[288]);
});

Deno.test("flatMuon: a gradient that is not finite changes nothing", async () => {
  const { state, grads, orthogonaliser } = start(1);
  const before = Float32Array.from(state.params);
  grads[3] = NaN;
  await assertRejects(
    () => flatMuon(layout, state, grads, { lr: 0.01 }, orthogonaliser),
    Error,
    "Cannot take an optimizer step",
  );
  assertEquals(state.params, before);
  assertEquals(state.m, new Float32Array(layout.size));
});
