/**
 * Plain tfjs versions of the fused operations of `ops.ts`.
 *
 * They run on every backend (webgpu, wasm, cpu) and are what the WebAssembly
 * kernels are tested against. Everything here is differentiable.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";

/** Options of {@linkcode genericAttention}; see `AttentionOptions` in ops.ts. */
export interface GenericAttentionOptions {
  /** Factor on the scores, `1/√(c/heads)` by default. */
  scale: number;
  /** Additive mask `[n, m]`, a constant (no gradient flows into it). */
  mask?: tf.Tensor2D;
  /** Query rows handled at a time. */
  chunk: number;
}

/** `x·sigmoid(x)`, any shape. */
export function genericSilu<T extends tf.Tensor>(x: T): T {
  return tf.mul(x, tf.sigmoid(x)) as T;
}

/** `x·Φ(x)` with the exact normal distribution function, any shape. */
export function genericGelu<T extends tf.Tensor>(x: T): T {
  const phi = tf.add(tf.mul(tf.erf(tf.mul(x, Math.SQRT1_2)), 0.5), 0.5);
  return tf.mul(x, phi) as T;
}

/** `x·sigmoid(1.702·x)`, any shape (the activation of OpenAI's CLIP). */
export function genericQuickGelu<T extends tf.Tensor>(x: T): T {
  return tf.mul(x, tf.sigmoid(tf.mul(x, 1.702))) as T;
}

/** First half of the last axis times the gelu of the second half. */
export function genericGeglu<T extends tf.Tensor>(x: T): T {
  const [hidden, gate] = tf.split(x, 2, x.rank - 1);
  return tf.mul(hidden, genericGelu(gate)) as T;
}

/** Normalises over the last axis: `x [..., c]`, `gamma [c]`, `beta [c]`. */
export function genericLayerNorm<T extends tf.Tensor>(
  x: T,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
): T {
  const axis = x.rank - 1;
  const centred = tf.sub(x, tf.mean(x, axis, true));
  const variance = tf.mean(tf.square(centred), axis, true);
  const unit = tf.mul(centred, tf.rsqrt(tf.add(variance, eps)));
  return tf.add(tf.mul(unit, gamma), beta) as T;
}

/** Normalises over space and the channels of a group, `x [b, ..., c]`. */
export function genericGroupNorm<T extends tf.Tensor>(
  x: T,
  groups: number,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
  silu: boolean,
): T {
  const b = x.shape[0];
  const c = x.shape[x.rank - 1];
  const n = b === 0 ? 0 : x.size / (b * c);
  const grouped = tf.reshape(x, [b, n, groups, c / groups]);
  const centred = tf.sub(grouped, tf.mean(grouped, [1, 3], true));
  const variance = tf.mean(tf.square(centred), [1, 3], true);
  const unit = tf.mul(centred, tf.rsqrt(tf.add(variance, eps)));
  const y = tf.add(tf.mul(tf.reshape(unit, x.shape), gamma), beta) as T;
  return silu ? genericSilu(y) : y;
}

/** `x·w + bias` over the last axis: `x [..., in]`, `w [in, out]`. */
export function genericLinear(
  x: tf.Tensor,
  w: tf.Tensor2D,
  bias?: tf.Tensor1D,
): tf.Tensor {
  const [inner, out] = w.shape;
  // Rank-3 by rank-2 products have a wrong gradient in tfjs: go through 2-D.
  const flat = tf.reshape(x, [
    x.shape.slice(0, -1).reduce((a, d) => a * d, 1),
    inner,
  ]);
  let y: tf.Tensor = tf.matMul(flat, w);
  if (bias) y = tf.add(y, bias);
  return tf.reshape(y, [...x.shape.slice(0, -1), out]);
}

/** `[b, n, heads·d]` → `[b, heads, n, d]`. */
function splitHeads(x: tf.Tensor, heads: number): tf.Tensor4D {
  const [b, n, c] = x.shape;
  return tf.transpose(tf.reshape(x, [b, n, heads, c / heads]), [0, 2, 1, 3]);
}

/** `[b, heads, n, d]` → `[b, n, heads·d]`. */
function joinHeads(x: tf.Tensor4D): tf.Tensor3D {
  const [b, h, n, d] = x.shape;
  return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [b, n, h * d]);
}

/** The softmax weights of query rows `from … from+rows`, `[b, h, rows, m]`. */
function weights(
  q: tf.Tensor4D,
  k: tf.Tensor4D,
  from: number,
  rows: number,
  scale: number,
  mask?: tf.Tensor2D,
): tf.Tensor4D {
  const [b, h, , d] = q.shape;
  const part = tf.mul(tf.slice(q, [0, 0, from, 0], [b, h, rows, d]), scale);
  let scores: tf.Tensor = tf.matMul(part, k, false, true);
  if (mask) {
    const m = k.shape[2];
    scores = tf.add(scores, tf.slice(mask, [from, 0], [rows, m]));
  }
  return tf.softmax(scores, -1) as tf.Tensor4D;
}

/**
 * Multi-head softmax attention in query chunks, `q [b, n, c]`, `k`, `v`
 * `[b, m, c]` → `[b, n, c]`. The weights are never kept: the gradient makes
 * them again, one chunk at a time, so memory is bounded by `chunk`.
 */
export function genericAttention(
  q: tf.Tensor3D,
  k: tf.Tensor3D,
  v: tf.Tensor3D,
  heads: number,
  options: GenericAttentionOptions,
): tf.Tensor3D {
  const op = tf.customGrad((...args) => {
    const [q, k, v, save] = args as unknown as [
      tf.Tensor3D,
      tf.Tensor3D,
      tf.Tensor3D,
      tf.GradSaveFunc,
    ];
    // The mask too: it may be made, and disposed, inside the forward pass.
    save(options.mask ? [q, k, v, options.mask] : [q, k, v]);
    const [b, n] = q.shape;
    const chunks = chunkRows(n, options.chunk);
    const value = tf.tidy(() => {
      const [qh, kh, vh] = [q, k, v].map((x) => splitHeads(x, heads));
      const parts = chunks.map(([from, rows]) =>
        tf.tidy(() =>
          tf.matMul(
            weights(qh, kh, from, rows, options.scale, options.mask),
            vh,
          ) as tf.Tensor4D
        )
      );
      return joinHeads(parts.length === 1 ? parts[0] : tf.concat(parts, 2));
    });
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) =>
      tf.tidy(() => {
        const [qh, kh, vh, dyh] = [...saved.slice(0, 3), dy].map((x) =>
          splitHeads(x, heads)
        );
        const mask = saved[3] as tf.Tensor2D | undefined;
        const d = qh.shape[3];
        const dq: tf.Tensor4D[] = [];
        let dk: tf.Tensor4D | undefined;
        let dv: tf.Tensor4D | undefined;
        for (const [from, rows] of chunks) {
          const [dqPart, dkNext, dvNext] = tf.tidy(() => {
            const at = [0, 0, from, 0];
            const size = [b, heads, rows, d];
            const p = weights(qh, kh, from, rows, options.scale, mask);
            const dyPart = tf.slice(dyh, at, size) as tf.Tensor4D;
            const dp = tf.matMul(dyPart, vh, false, true);
            const inner = tf.sum(tf.mul(dp, p), -1, true);
            const ds = tf.mul(tf.mul(p, tf.sub(dp, inner)), options.scale);
            const qPart = tf.slice(qh, at, size);
            const dkPart = tf.matMul(ds, qPart, true, false);
            const dvPart = tf.matMul(p, dyPart, true, false);
            return [
              tf.matMul(ds, kh),
              dk ? tf.add(dk, dkPart) : dkPart,
              dv ? tf.add(dv, dvPart) : dvPart,
            ] as tf.Tensor4D[];
          });
          dk?.dispose();
          dv?.dispose();
          dq.push(dqPart);
          [dk, dv] = [dkNext, dvNext];
        }
        return [
          joinHeads(dq.length === 1 ? dq[0] : tf.concat(dq, 2)),
          joinHeads(dk!),
          joinHeads(dv!),
        ];
      });
    return { value, gradFunc: gradFunc as never };
  });
  return op(q, k, v) as tf.Tensor3D;
}

function chunkRows(n: number, chunk: number): [number, number][] {
  const out: [number, number][] = [];
  for (let from = 0; from < n; from += chunk) {
    out.push([from, Math.min(chunk, n - from)]);
  }
  return out;
}

/**
 * Every pixel twice in both directions, `[b, h, w, c]` → `[b, 2h, 2w, c]`.
 *
 * With a gradient of its own: that of tfjs's resizeNearestNeighbor leaves out
 * pixels at some odd sizes (its cpu kernel, 3 × 5).
 */
export function genericUpsample(x: tf.Tensor4D): tf.Tensor4D {
  const [b, h, w, c] = x.shape;
  const op = tf.customGrad((x) => ({
    value: tf.image.resizeNearestNeighbor(x as tf.Tensor4D, [2 * h, 2 * w]),
    gradFunc: (dy: tf.Tensor) => {
      const lines = tf.sum(tf.reshape(dy, [b * h, 2, w, 2 * c]), 1);
      const pixels = tf.sum(tf.reshape(lines, [b * h * w, 2, c]), 1);
      return tf.reshape(pixels, [b, h, w, c]);
    },
  }));
  return op(x) as tf.Tensor4D;
}

/** Settings of one `adamwUpdate` in ops.ts. */
export interface AdamwOptions {
  /** Learning rate. */
  lr: number;
  /** Decay of the first moment, PyTorch's 0.9. */
  beta1: number;
  /** Decay of the second moment, PyTorch's 0.999. */
  beta2: number;
  /** Added to the root of the second moment, PyTorch's 1e-8. */
  eps: number;
  /** Decoupled weight decay: `param` first shrinks by `lr·weightDecay`. */
  weightDecay: number;
  /** Number of this step, from 1. */
  step: number;
}

/** One AdamW step with fresh result tensors `[param, m, v]`. */
export function genericAdamw<T extends tf.Tensor>(
  param: T,
  grad: T,
  m: T,
  v: T,
  o: AdamwOptions,
): [T, T, T] {
  return tf.tidy(() => {
    const m2 = tf.add(tf.mul(m, o.beta1), tf.mul(grad, 1 - o.beta1));
    const v2 = tf.add(tf.mul(v, o.beta2), tf.mul(tf.square(grad), 1 - o.beta2));
    const rate = o.lr / (1 - o.beta1 ** o.step);
    const root = 1 / Math.sqrt(1 - o.beta2 ** o.step);
    const denominator = tf.add(tf.mul(tf.sqrt(v2), root), o.eps);
    const decayed = tf.mul(param, 1 - o.lr * o.weightDecay);
    const p2 = tf.sub(decayed, tf.div(tf.mul(m2, rate), denominator));
    return [p2, m2, v2] as [T, T, T];
  });
}
