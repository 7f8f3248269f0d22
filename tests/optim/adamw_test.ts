import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertThrows } from "@std/assert";
import {
  adamwFromTensors,
  adamwInit,
  type AdamwState,
  adamwStep,
  adamwTensors,
  clipGlobalNorm,
  constantRate,
  cosineDecay,
  disposeTensors,
  linearDecay,
} from "../../src/optim/adamw.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

/** AdamW on plain numbers, straight from the paper's algorithm 2. */
function plain(
  p: number[],
  gradient: (step: number) => number[],
  steps: number,
  lr: number,
  decay: number,
): number[] {
  const m = p.map(() => 0);
  const v = p.map(() => 0);
  const out = [...p];
  for (let t = 1; t <= steps; t++) {
    const g = gradient(t);
    for (let i = 0; i < p.length; i++) {
      m[i] = 0.9 * m[i] + 0.1 * g[i];
      v[i] = 0.999 * v[i] + 0.001 * g[i] ** 2;
      const mHat = m[i] / (1 - 0.9 ** t);
      const vHat = v[i] / (1 - 0.999 ** t);
      out[i] -= lr * decay * out[i];
      out[i] -= lr * mHat / (Math.sqrt(vHat) + 1e-8);
    }
  }
  return out;
}

forEachBackend("AdamW follows the algorithm, by group", async (backend) => {
  await noLeak(async () => {
    const start = { a: [1, -2, 0.5], b: [3, 0] };
    const gradient = (t: number) => [0.3 * t, -1 / t, 1e-4];
    let params = new Map<string, tf.Tensor>([
      ["a", tf.tensor(start.a)],
      ["b", tf.tensor(start.b)],
    ]);
    let state: AdamwState = adamwInit(params);
    for (let t = 1; t <= 7; t++) {
      const grads = new Map<string, tf.Tensor>([
        ["a", tf.tensor(gradient(t))],
        ["b", tf.tensor(gradient(t).slice(0, 2))],
      ]);
      const next = adamwStep(params, grads, state, {
        lr: (path) => path === "a" ? 1e-2 : 1e-3,
        weightDecay: (path) => path === "a" ? 0.1 : 0,
      });
      disposeTensors(params, grads, state.m, state.v);
      ({ params, state } = next);
    }
    assertEquals(state.step, 7);
    close(
      await params.get("a")!.data(),
      plain(start.a, gradient, 7, 1e-2, 0.1),
      tolerance(backend, 1e-6),
    );
    close(
      await params.get("b")!.data(),
      plain(start.b, (t) => gradient(t).slice(0, 2), 7, 1e-3, 0),
      tolerance(backend, 1e-6),
    );
    disposeTensors(params, state.m, state.v);
  });
});

forEachBackend("a parameter without gradient stays", async () => {
  await noLeak(async () => {
    const params = new Map<string, tf.Tensor>([["a", tf.tensor([5])]]);
    const state = adamwInit(params);
    const next = adamwStep(params, new Map(), state, { lr: 1 });
    disposeTensors(params, state.m, state.v);
    assertEquals([...await next.params.get("a")!.data()], [5]);
    disposeTensors(next.params, next.state.m, next.state.v);
  });
}, ["wasm"]);

forEachBackend("bad AdamW input is an error", () => {
  const params = new Map<string, tf.Tensor>([["a", tf.tensor([5])]]);
  const state = adamwInit(params);
  const wrong = new Map<string, tf.Tensor>([["a", tf.tensor([5, 6])]]);
  const other = new Map<string, tf.Tensor>([["b", tf.tensor([5])]]);
  assertThrows(
    () => adamwStep(params, wrong, state, { lr: 1 }),
    Error,
    'Cannot take an AdamW step: expected a gradient [1] of "a", got [2]',
  );
  assertThrows(
    () => adamwStep(params, other, state, { lr: 1 }),
    Error,
    'a parameter "b"',
  );
  assertThrows(
    () => adamwStep(other, new Map(), state, { lr: 1 }),
    Error,
    'moments [1] of "b"',
  );
  disposeTensors(params, state.m, state.v, wrong, other);
}, ["wasm"]);

forEachBackend("a state survives naming its tensors", () => {
  const params = new Map<string, tf.Tensor>([["x.y", tf.tensor([5])]]);
  const state = { ...adamwInit(params), step: 12 };
  const named = adamwTensors(state, "adam.");
  assertEquals([...named.keys()], ["adam.m.x.y", "adam.v.x.y"]);
  assertEquals(
    adamwFromTensors(new Map([...named, ...params]), 12, "adam."),
    state,
  );
  named.delete("adam.v.x.y");
  assertThrows(
    () => adamwFromTensors(named, 12, "adam."),
    Error,
    'both moments of "x.y"',
  );
  disposeTensors(params, state.m, state.v);
}, ["wasm"]);

Deno.test("learning rates decay linearly to 0 after a warm-up", () => {
  assertEquals([0, 5, 10].map((s) => linearDecay(s, 10)), [1, 0.5, 0]);
  assertEquals(
    [0, 1, 2, 6, 10, 11].map((s) => linearDecay(s, 10, 2)),
    [0, 0.5, 1, 0.5, 0, 0],
  );
  assertEquals([0, 1, 4, 9].map((s) => constantRate(s, 4)), [0, 0.25, 1, 1]);
});

Deno.test("learning rates decay along a cosine, once or several times", () => {
  // diffusers 0.30, get_cosine_schedule_with_warmup(…, 2, 10) and, with hard
  // restarts, (…, 0, 12, num_cycles=3).
  close(
    [0, 1, 2, 4, 6, 8, 10].map((s) => cosineDecay(s, 10, 2)),
    [0, 0.5, 1, 0.8535534, 0.5, 0.1464466, 0],
    1e-7,
  );
  close(
    [0, 1, 2, 3, 4, 6, 8, 11, 12].map((s) => cosineDecay(s, 12, 0, 3)),
    [1, 0.8535534, 0.5, 0.1464466, 1, 0.5, 1, 0.1464466, 0],
    1e-7,
  );
});

forEachBackend("gradients are clipped by their common norm", async () => {
  await noLeak(async () => {
    const grads = new Map<string, tf.Tensor>([
      ["a", tf.tensor([3, 0])],
      ["b", tf.tensor([[4]])],
    ]);
    const { grads: clipped, norm } = clipGlobalNorm(grads, 1);
    close(await norm.data(), [5], 1e-5);
    close(await clipped.get("a")!.data(), [0.6, 0], 1e-5);
    close(await clipped.get("b")!.data(), [0.8], 1e-5);
    const untouched = clipGlobalNorm(grads, 6);
    close(await untouched.grads.get("b")!.data(), [4], 0);
    disposeTensors(grads, clipped, untouched.grads);
    norm.dispose();
    untouched.norm.dispose();
  });
});
