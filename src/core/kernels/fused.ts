/**
 * The fused operations of `ops.ts` on wasm: tfjs kernels under names of our
 * own, and the gradients that tie forward and backward kernels together.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { address, simdFor, type WasmBackend, withScratch } from "./simd.ts";
import type { SimdExports } from "./simd_exports.ts";

/** What the names of all our kernels start with. */
export const PREFIX = "MixOfShow";

/** Pointwise activations, numbered as in `simd.as`. */
export type Activation = "silu" | "gelu" | "quickGelu";

const ACTIVATIONS: Record<Activation, number> = {
  silu: 0,
  gelu: 1,
  quickGelu: 2,
};

/** gemm's flag: the product is added to what is there. */
const ADD = 1;

/** What a kernel body gets: addresses, allocation, the SIMD module. */
export interface Frame {
  simd: SimdExports;
  backend: WasmBackend;
  /** Inputs in order. */
  inputs: tf.TensorInfo[];
  /** Addresses of the inputs. */
  at: number[];
  /** Number attributes, in the order given to {@linkcode call}. */
  attrs: Record<string, number>;
  /** Allocates an output. */
  make(shape: number[]): { info: tf.TensorInfo; at: number };
  /** Runs with scratch memory of so many floats. */
  scratch(floats: number, f: (address: number) => void): void;
}

/** What a kernel does; it returns its outputs. */
export type Body = (frame: Frame) => tf.TensorInfo[];

/** The fused kernels by name, without {@linkcode PREFIX}. */
export const FUSED: Readonly<Record<string, Body>> = {
  Activation({ simd, inputs: [x], at, attrs, make }) {
    const y = make(x.shape);
    simd.activation(attrs.kind, at[0], y.at, size(x));
    return [y.info];
  },
  ActivationGrad({ simd, inputs: [x], at, attrs, make }) {
    const dx = make(x.shape);
    simd.activationGrad(attrs.kind, at[0], at[1], dx.at, size(x));
    return [dx.info];
  },
  Geglu({ simd, inputs: [x], at, make }) {
    const c = last(x) / 2;
    const y = make([...x.shape.slice(0, -1), c]);
    simd.geglu(at[0], y.at, size(y.info) / Math.max(c, 1), c);
    return [y.info];
  },
  GegluGrad({ simd, inputs: [x], at, make }) {
    const c = last(x) / 2;
    const dx = make(x.shape);
    simd.gegluGrad(at[0], at[1], dx.at, size(x) / Math.max(2 * c, 1), c);
    return [dx.info];
  },
  LayerNorm({ simd, inputs: [x], at, attrs, make, scratch }) {
    const y = make(x.shape);
    const c = last(x);
    scratch(simd.layerNormScratch(), (s) =>
      simd.layerNorm(
        at[0],
        size(x) / c,
        c,
        at[1],
        at[2],
        attrs.eps,
        y.at,
        s,
      ));
    return [y.info];
  },
  LayerNormGrad({ simd, inputs: [x], at, attrs, make, scratch }) {
    const c = last(x);
    const [dx, dgamma, dbeta] = [make(x.shape), make([c]), make([c])];
    scratch(simd.layerNormScratch(), (s) =>
      simd.layerNormGrad(
        at[0],
        at[2],
        size(x) / c,
        c,
        at[1],
        attrs.eps,
        dx.at,
        dgamma.at,
        dbeta.at,
        s,
      ));
    return [dx.info, dgamma.info, dbeta.info];
  },
  GroupNorm({ simd, inputs: [x], at, attrs, make, scratch }) {
    const [b, n, c] = bnc(x);
    const [y, stats] = [make(x.shape), make([b, attrs.groups, 2])];
    scratch(simd.groupNormScratch(c), (s) =>
      simd.groupNorm(
        at[0],
        b,
        n,
        c,
        attrs.groups,
        at[1],
        at[2],
        attrs.eps,
        attrs.silu,
        y.at,
        stats.at,
        s,
      ));
    return [y.info, stats.info];
  },
  GroupNormGrad({ simd, inputs: [x], at, attrs, make, scratch }) {
    const [b, n, c] = bnc(x);
    const [dx, dgamma, dbeta] = [make(x.shape), make([c]), make([c])];
    scratch(simd.groupNormScratch(c), (s) =>
      simd.groupNormGrad(
        at[0],
        at[4],
        b,
        n,
        c,
        attrs.groups,
        at[1],
        at[2],
        attrs.silu,
        at[3],
        dx.at,
        dgamma.at,
        dbeta.at,
        s,
      ));
    return [dx.info, dgamma.info, dbeta.info];
  },
  // Inputs q, k, v and, if there is one, the mask.
  Attention({ simd, inputs: [q, k], at, attrs, make, scratch }) {
    const [b, n, c] = q.shape;
    const m = k.shape[1];
    const y = make(q.shape);
    const d = c / attrs.heads;
    scratch(simd.attentionScratch(n, m, d), (s) =>
      simd.attention(
        at[0],
        at[1],
        at[2],
        0,
        b * attrs.heads,
        n,
        m,
        c,
        attrs.heads,
        attrs.scale,
        at[3] ?? 0,
        attrs.causal,
        y.at,
        s,
      ));
    return [y.info];
  },
  // Inputs q, k, v, dy and, if there is one, the mask.
  AttentionGrad({ simd, inputs: [q, k], at, attrs, make, scratch }) {
    const [b, n, c] = q.shape;
    const m = k.shape[1];
    const [dq, dk, dv] = [make(q.shape), make(k.shape), make(k.shape)];
    const d = c / attrs.heads;
    scratch(simd.attentionScratch(n, m, d), (s) =>
      simd.attentionGrad(
        at[0],
        at[1],
        at[2],
        at[3],
        0,
        b * attrs.heads,
        n,
        m,
        c,
        attrs.heads,
        attrs.scale,
        at[4] ?? 0,
        attrs.causal,
        dq.at,
        dk.at,
        dv.at,
        s,
      ));
    return [dq.info, dk.info, dv.info];
  },
  // x·w + (x·down)·up, and the inner product, which the gradient needs.
  LowRank({ simd, inputs: [x, w, down], at, make, scratch }) {
    const [m, k] = x.shape;
    const [n, r] = [last(w), last(down)];
    const [y, inner] = [make([m, n]), make([m, r])];
    const [ax, aw, adown, aup] = at;
    const floats = Math.max(
      simd.gemmScratch(m, n, k),
      simd.gemmScratch(m, r, k),
      simd.gemmScratch(m, n, r),
    );
    // deno-fmt-ignore
    scratch(floats, (s) => {
      simd.gemm(ax, k, 1, aw, n, 1, y.at, n, m, n, k, 0, 0, s);
      simd.gemm(ax, k, 1, adown, r, 1, inner.at, r, m, r, k, 0, 0, s);
      simd.gemm(inner.at, r, 1, aup, n, 1, y.at, n, m, n, r, ADD, 0, s);
    });
    return [y.info, inner.info];
  },
  // Gradients by x (unless attrs.frozen), down and up.
  LowRankGrad(
    { simd, inputs: [x, w, down], at, attrs, make, scratch },
  ) {
    const [m, k] = x.shape;
    const [n, r] = [last(w), last(down)];
    const [ddown, dup] = [make([k, r]), make([r, n])];
    const dx = attrs.frozen ? undefined : make([m, k]);
    const [ax, aw, adown, aup, ainner, ady] = at;
    const floats = Math.max(
      simd.gemmScratch(m, r, n),
      simd.gemmScratch(r, n, m),
      simd.gemmScratch(k, r, m),
      simd.gemmScratch(m, k, n),
      simd.gemmScratch(m, k, r),
    );
    // deno-fmt-ignore
    scratch(m * r, (t) => scratch(floats, (s) => {
      simd.gemm(ady, n, 1, aup, 1, n, t, r, m, r, n, 0, 0, s);
      simd.gemm(ainner, 1, r, ady, n, 1, dup.at, n, r, n, m, 0, 0, s);
      simd.gemm(ax, 1, k, t, r, 1, ddown.at, r, k, r, m, 0, 0, s);
      if (!dx) return;
      simd.gemm(ady, n, 1, aw, 1, n, dx.at, k, m, k, n, 0, 0, s);
      simd.gemm(t, r, 1, adown, 1, r, dx.at, k, m, k, r, ADD, 0, s);
    }));
    return [...(dx ? [dx.info] : []), ddown.info, dup.info];
  },
  Upsample({ simd, inputs: [x], at, make }) {
    const [b, h, w, c] = x.shape;
    const y = make([b, 2 * h, 2 * w, c]);
    simd.upsample(at[0], b * h, w, c, y.at);
    return [y.info];
  },
  UpsampleGrad({ simd, inputs: [dy], at, make }) {
    const [b, h, w, c] = dy.shape;
    const dx = make([b, h / 2, w / 2, c]);
    simd.upsampleGrad(at[0], b * h / 2, w / 2, c, dx.at);
    return [dx.info];
  },
  Adamw({ simd, inputs: [p], at, attrs, make }) {
    const [p2, m2, v2] = [make(p.shape), make(p.shape), make(p.shape)];
    simd.adamw(
      at[0],
      at[1],
      at[2],
      at[3],
      p2.at,
      m2.at,
      v2.at,
      size(p),
      attrs.beta1,
      1 - attrs.beta1,
      attrs.beta2,
      1 - attrs.beta2,
      attrs.rate,
      attrs.root,
      attrs.eps,
      attrs.keep,
    );
    return [p2.info, m2.info, v2.info];
  },
};

/** Registers the fused kernels for wasm. */
export function registerFused(): void {
  for (const [name, body] of Object.entries(FUSED)) {
    tf.registerKernel({
      kernelName: PREFIX + name,
      backendName: "wasm",
      kernelFunc: (call) => {
        const backend = call.backend as unknown as WasmBackend;
        const inputs = Object.values(call.inputs) as tf.TensorInfo[];
        return body({
          simd: simdFor(backend),
          backend,
          inputs,
          at: inputs.map((info) => address(backend, info)),
          attrs: call.attrs as unknown as Record<string, number>,
          make: (shape) => {
            const info = backend.makeOutput(shape, "float32");
            return { info, at: address(backend, info) };
          },
          scratch: (floats, f) => withScratch(backend, floats, f),
        });
      },
    });
  }
}

/** Removes the fused kernels again. */
export function unregisterFused(): void {
  for (const name of Object.keys(FUSED)) {
    tf.unregisterKernel(PREFIX + name, "wasm");
  }
}

/** `activation(x)`. */
export function wasmActivation<T extends tf.Tensor>(
  x: T,
  activation: Activation,
): T {
  const attrs = { kind: ACTIVATIONS[activation] };
  return differentiable([x], ([x], save) => {
    save([x]);
    const [y] = call("Activation", [x], attrs);
    return {
      value: y,
      gradFunc: (dy, [x]) => call("ActivationGrad", [x, dy], attrs),
    };
  }) as T;
}

/** Gated gelu over the last axis. */
export function wasmGeglu<T extends tf.Tensor>(x: T): T {
  return differentiable([x], ([x], save) => {
    save([x]);
    const [y] = call("Geglu", [x], {});
    return { value: y, gradFunc: (dy, [x]) => call("GegluGrad", [x, dy], {}) };
  }) as T;
}

/** Layer normalisation over the last axis. */
export function wasmLayerNorm<T extends tf.Tensor>(
  x: T,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
): T {
  return differentiable([x, gamma, beta], ([x, gamma, beta], save) => {
    save([x, gamma]);
    const [y] = call("LayerNorm", [x, gamma, beta], { eps });
    return {
      value: y,
      gradFunc: (dy, [x, gamma]) =>
        call("LayerNormGrad", [x, gamma, dy], { eps }),
    };
  }) as T;
}

/** Group normalisation with optional silu. */
export function wasmGroupNorm<T extends tf.Tensor>(
  x: T,
  groups: number,
  gamma: tf.Tensor1D,
  beta: tf.Tensor1D,
  eps: number,
  silu: boolean,
): T {
  const attrs = { groups, eps, silu: silu ? 1 : 0 };
  return differentiable([x, gamma, beta], ([x, gamma, beta], save) => {
    const [y, stats] = call("GroupNorm", [x, gamma, beta], attrs);
    save([x, gamma, beta, stats]);
    return {
      value: y,
      gradFunc: (dy, [x, gamma, beta, stats]) =>
        call("GroupNormGrad", [x, gamma, beta, stats, dy], attrs),
    };
  }) as T;
}

/** Multi-head attention; the mask is a constant. */
export function wasmAttention(
  q: tf.Tensor3D,
  k: tf.Tensor3D,
  v: tf.Tensor3D,
  heads: number,
  scale: number,
  mask: tf.Tensor2D | undefined,
  causal: boolean,
): tf.Tensor3D {
  const attrs = { heads, scale, causal: causal ? 1 : 0 };
  return differentiable([q, k, v], ([q, k, v], save) => {
    const rest = mask ? [mask] : [];
    save([q, k, v, ...rest]);
    const [y] = call("Attention", [q, k, v, ...rest], attrs);
    return {
      value: y,
      gradFunc: (dy, [q, k, v, ...rest]) =>
        call("AttentionGrad", [q, k, v, dy, ...rest], attrs),
    };
  }) as tf.Tensor3D;
}

/**
 * x·w + (x·down)·up; `w` is a constant.
 *
 * @param frozen Whether no gradient by `x` is asked for either.
 */
export function wasmLowRank(
  x: tf.Tensor2D,
  w: tf.Tensor2D,
  down: tf.Tensor2D,
  up: tf.Tensor2D,
  frozen: boolean,
): tf.Tensor2D {
  const attrs = { frozen: frozen ? 1 : 0 };
  const f = (
    [x, down, up]: tf.Tensor[],
    save: (tensors: tf.Tensor[]) => void,
  ) => {
    const [y, inner] = call("LowRank", [x, w, down, up], {});
    save([x, down, up, inner]);
    return {
      value: y,
      gradFunc: (dy: tf.Tensor, [x, down, up, inner]: tf.Tensor[]) =>
        call("LowRankGrad", [x, w, down, up, inner, dy], attrs),
    };
  };
  return (frozen
    ? differentiable([down, up], (rest, save) => f([x, ...rest], save))
    : differentiable([x, down, up], f)) as tf.Tensor2D;
}

/** Every pixel twice in both directions. */
export function wasmUpsample(x: tf.Tensor4D): tf.Tensor4D {
  return differentiable([x], ([x]) => {
    const [y] = call("Upsample", [x], {});
    return { value: y, gradFunc: (dy) => call("UpsampleGrad", [dy], {}) };
  }) as tf.Tensor4D;
}

/** One AdamW step; `rate` and `root` contain the bias corrections. */
export function wasmAdamw<T extends tf.Tensor>(
  inputs: [param: T, grad: T, m: T, v: T],
  attrs: {
    beta1: number;
    beta2: number;
    rate: number;
    root: number;
    eps: number;
    keep: number;
  },
): [T, T, T] {
  return call("Adamw", inputs, attrs) as [T, T, T];
}

function call(
  name: string,
  inputs: tf.Tensor[],
  attrs: Record<string, number>,
): tf.Tensor[] {
  // Letters, not digits: objects sort digit keys, and order is meaning here.
  const named = Object.fromEntries(
    inputs.map((t, i) => [String.fromCharCode(97 + i), t]),
  );
  return tf.engine().runKernel(PREFIX + name, named, attrs) as tf.Tensor[];
}

/** `tf.customGrad` with honest types for a list of inputs. */
function differentiable(
  inputs: tf.Tensor[],
  f: (inputs: tf.Tensor[], save: (tensors: tf.Tensor[]) => void) => {
    value: tf.Tensor;
    gradFunc: (dy: tf.Tensor, saved: tf.Tensor[]) => tf.Tensor[];
  },
): tf.Tensor {
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as (tensors: tf.Tensor[]) => void;
    const { value, gradFunc } = f(args as tf.Tensor[], save);
    return { value, gradFunc: gradFunc as never };
  });
  return op(...inputs);
}

function size(info: tf.TensorInfo): number {
  return info.shape.reduce((a, d) => a * d, 1);
}

function last(info: tf.TensorInfo): number {
  return info.shape[info.shape.length - 1];
}

/** Batch, pixels, channels of `[b, …, c]`. */
function bnc(info: tf.TensorInfo): [number, number, number] {
  return [
    info.shape[0],
    info.shape.slice(1, -1).reduce((a, d) => a * d, 1),
    last(info),
  ];
}
