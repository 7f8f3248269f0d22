import * as tf from "@tensorflow/tfjs";
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { classifierFree, guide } from "../../src/diffusion/guidance.ts";
import { denoiser, plan, sample } from "../../src/diffusion/samplers.ts";
import { schedule } from "../../src/diffusion/schedule.ts";
import { close, forEachBackend, noLeak, tolerance } from "../helpers.ts";

const UNCOND = [0.5, -1, 2, 0.25, 3, 1, -2, 0];
const COND = [1, -2, 0.1, 0.7, 1, 2, 3, 4];

function pair(): [tf.Tensor4D, tf.Tensor4D] {
  return [tf.tensor4d(UNCOND, [2, 2, 2, 1]), tf.tensor4d(COND, [2, 2, 2, 1])];
}

forEachBackend("guidance is the line through both outputs", async (backend) => {
  await noLeak(async () => {
    const [uncond, cond] = pair();
    for (const scale of [0, 1, 3, 7.5, -1]) {
      const out = guide(uncond, cond, scale);
      close(
        await out.data(),
        UNCOND.map((u, i) => u + scale * (COND[i] - u)),
        tolerance(backend, 5e-6), // values up to 40
      );
      out.dispose();
    }
    tf.dispose([uncond, cond]);
  });
}, ["cpu", "wasm", "webgpu"]);

forEachBackend(
  "guidance 1 is the conditional output, 0 the other, exactly",
  async () => {
    await noLeak(async () => {
      const [uncond, cond] = pair();
      for (
        const [scale, rescale, expected] of [
          [1, 0, cond],
          [1, 0.7, cond],
          [0, 0, uncond],
        ] as const
      ) {
        const out = guide(uncond, cond, scale, { rescale });
        assertEquals(await out.data(), await expected.data());
        out.dispose();
      }
      tf.dispose([uncond, cond]);
    });
  },
  ["cpu", "wasm", "webgpu"],
);

forEachBackend(
  "rescaled guidance follows Lin et al., eqs. 15 and 16",
  async (backend) => {
    const std = (x: number[]) => {
      const mean = x.reduce((a, b) => a + b) / x.length;
      return Math.sqrt(x.reduce((a, b) => a + (b - mean) ** 2, 0) / x.length);
    };
    await noLeak(async () => {
      const [uncond, cond] = pair();
      for (const rescale of [0.3, 1]) {
        const out = guide(uncond, cond, 7.5, { rescale });
        const expected = [0, 1].flatMap((item) => {
          const part = (x: number[]) => x.slice(4 * item, 4 * item + 4);
          const u = part(UNCOND);
          const c = part(COND);
          const guided = u.map((v, i) => v + 7.5 * (c[i] - v));
          const ratio = std(c) / std(guided);
          return guided.map((g) => rescale * g * ratio + (1 - rescale) * g);
        });
        close(await out.data(), expected, tolerance(backend, 1e-5));
        out.dispose();
      }
      tf.dispose([uncond, cond]);
    });
  },
  ["cpu", "wasm"],
);

Deno.test("a constant output survives rescaling", async () => {
  await tf.setBackend("cpu");
  const zeros = tf.zeros([1, 2, 2, 1]);
  const out = guide(zeros, zeros, 5, { rescale: 1 });
  assertEquals([...await out.data()], [0, 0, 0, 0]);
  tf.dispose([zeros, out]);
});

/** A model of both branches: the conditional one adds 1. */
function branched(calls: [number, string][]) {
  return (x: tf.Tensor4D, t: number, _i: number, branch: string) => {
    calls.push([x.shape[0], branch]);
    return tf.tidy(() => {
      const half = x.shape[0] / 2;
      const shift = branch === "both"
        ? tf.concat([tf.zeros([half, 1, 1, 1]), tf.ones([half, 1, 1, 1])], 0)
        : tf.ones([1, 1, 1, 1]);
      return x.mul(0.1 + t / 1000).add(shift) as tf.Tensor4D;
    });
  };
}

Deno.test("both branches run as one batch, uncond first", async () => {
  await tf.setBackend("cpu");
  await noLeak(async () => {
    const x = tf.tensor4d([1, 2], [2, 1, 1, 1]);
    const calls: [number, string][] = [];
    const predict = classifierFree(branched(calls), { scale: 4 });
    const out = await predict(x, 400, 0);
    close(await out.data(), [0.5 + 4, 1 + 4], 1e-6);
    assertEquals(calls, [[4, "both"]]);
    tf.dispose([x, out]);
  });
});

Deno.test("sampling with guidance 1 is conditional sampling, bit for bit", async () => {
  await tf.setBackend("cpu");
  const s = schedule({
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: "scaled_linear",
  });
  await noLeak(async () => {
    const noise = tf.tensor4d([0.3, -1, 2, 0.5], [1, 2, 2, 1]);
    const calls: [number, string][] = [];
    const model = branched(calls);
    const guided = await sample(
      plan("dpmpp_2m", s, 5),
      denoiser(
        classifierFree(model, { scale: 1 }),
        "epsilon",
      ),
      noise,
    );
    assertEquals(calls, Array(5).fill([1, "conditional"]));
    const plain = await sample(
      plan("dpmpp_2m", s, 5),
      denoiser(
        (x, t, i) => model(x, t, i, "conditional"),
        "epsilon",
      ),
      noise,
    );
    assertEquals(await guided.data(), await plain.data());

    calls.length = 0;
    const varied = await sample(
      plan("ddim", s, 4),
      denoiser(
        classifierFree(model, { scale: (_t, i) => i < 2 ? 3 : 1 }),
        "epsilon",
      ),
      noise,
    );
    assertEquals(calls.map(([, branch]) => branch), [
      "both",
      "both",
      "conditional",
      "conditional",
    ]);
    tf.dispose([noise, guided, plain, varied]);
  });
});

Deno.test("bad guidance is an error and leaves no tensor", async () => {
  await tf.setBackend("cpu");
  await noLeak(async () => {
    const [uncond, cond] = pair();
    const other = tf.zeros([1, 2, 2, 1]) as tf.Tensor4D;
    assertThrows(() => guide(uncond, other, 3), Error, "Cannot guide");
    assertThrows(() => guide(uncond, cond, NaN), Error, "finite");
    assertThrows(
      () => guide(uncond, cond, 3, { rescale: 2 }),
      Error,
      "rescale",
    );
    assertThrows(
      () => classifierFree((x) => x, { scale: Infinity }),
      Error,
      "finite",
    );
    // Half of the rows, the input itself, and a failing model.
    const half = classifierFree(() => tf.zeros([2, 2, 2, 1]), { scale: 3 });
    await assertRejects(async () => await half(uncond, 1, 0), Error, "4 rows");
    const same = await classifierFree((x) => x, { scale: 3 })(uncond, 1, 0);
    assertEquals(await same.data(), await uncond.data());
    const failing = classifierFree(() => {
      throw new Error("model failed");
    }, { scale: 3 });
    await assertRejects(
      async () => await failing(uncond, 1, 0),
      Error,
      "model failed",
    );
    tf.dispose([uncond, cond, other, same]);
  });
});
