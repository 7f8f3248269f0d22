/**
 * Replaces slow and adds missing tfjs kernels on wasm.
 *
 * Stock tfjs multiplies transposed or batched matrices at 2–3 GFLOP/s and has
 * no filter gradient at all; the gradients of every dense layer, attention
 * head and convolution are such products. The replacements run in `simd.as`.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { registerFused, unregisterFused } from "./fused.ts";
import { withPackedFilter } from "./packed_filters.ts";
import {
  address,
  simdFor,
  simdSupported,
  type WasmBackend,
  withScratch,
} from "./simd.ts";

/** What a kernel is called with. */
interface KernelCall {
  inputs: Record<string, tf.TensorInfo>;
  backend: WasmBackend;
  attrs: Record<string, unknown>;
}

type Kernel = (call: KernelCall) => tf.TensorInfo | tf.TensorInfo[];

const stock = new Map<string, tf.KernelConfig>();
let registered = false;

/**
 * Registers this library's wasm kernels; calling it again does nothing. So
 * does calling it where relaxed SIMD is missing: stock tfjs goes on working.
 */
export function registerKernels(): void {
  if (registered || !simdSupported()) return;
  registered = true;
  replace("BatchMatMul", batchMatMul);
  replace("_FusedMatMul", fusedMatMul);
  replace("Conv2D", conv2D);
  replace("FusedConv2D", fusedConv2D);
  replace("Conv2DBackpropInput", conv2DBackpropInput);
  replace("Conv2DBackpropFilter", conv2DBackpropFilter);
  replace("Sum", sum);
  replace("Mean", mean);
  replace("Concat", concat);
  replace("SplitV", splitV);
  replace("GatherV2", gather);
  replace("Identity", identity);
  registerFused();
}

/** Gives tfjs its own wasm kernels back: for comparisons only. */
export function unregisterKernels(): void {
  if (!registered) return;
  registered = false;
  for (const [name, config] of stock) {
    tf.unregisterKernel(name, "wasm");
    tf.registerKernel(config);
  }
  // Stock tfjs has none.
  tf.unregisterKernel("Conv2DBackpropFilter", "wasm");
  unregisterFused();
}

/** Whether {@linkcode registerKernels} is in force. */
export function kernelsRegistered(): boolean {
  return registered;
}

function replace(kernelName: string, kernel: Kernel): void {
  const config = tf.getKernel(kernelName, "wasm");
  if (config) {
    stock.set(kernelName, config);
    tf.unregisterKernel(kernelName, "wasm");
  }
  tf.registerKernel({
    kernelName,
    backendName: "wasm",
    // The stock kernel stays the fallback and needs its own setup.
    setupFunc: config?.setupFunc,
    kernelFunc: kernel as unknown as tf.KernelFunc,
  });
}

/** A second name for the same data; the stock kernel copies it. */
function identity({ inputs: { x }, backend }: KernelCall): tf.TensorInfo {
  backend.incRef(x.dataId);
  return { dataId: x.dataId, shape: x.shape, dtype: x.dtype };
}

function callStock<T = tf.TensorInfo>(name: string, call: KernelCall): T {
  return stock.get(name)!.kernelFunc(call as never) as T;
}

function product(shape: number[]): number {
  return shape.reduce((a, d) => a * d, 1);
}

/** Product of stacks of matrices; undefined for exotic broadcasts. */
function multiply(
  { inputs, backend, attrs }: KernelCall,
  bias?: tf.TensorInfo,
): tf.TensorInfo | undefined {
  const { a, b } = inputs;
  const transposeA = Boolean(attrs.transposeA);
  const transposeB = Boolean(attrs.transposeB);
  if (a.dtype !== "float32" || b.dtype !== "float32") return undefined;
  const [rowsA, colsA] = a.shape.slice(-2);
  const [rowsB, colsB] = b.shape.slice(-2);
  let m = transposeA ? colsA : rowsA;
  const k = transposeA ? rowsA : colsA;
  const n = transposeB ? rowsB : colsB;
  if (k !== (transposeB ? colsB : rowsB)) return undefined;
  const batchShapeA = a.shape.slice(0, -2);
  const batchShapeB = b.shape.slice(0, -2);
  const batchA = product(batchShapeA);
  const batchB = product(batchShapeB);
  const same = batchShapeA.join() === batchShapeB.join();
  if (!same && batchA !== 1 && batchB !== 1) return undefined;
  const outer = tf.backend_util.assertAndGetBroadcastShape(
    batchShapeA,
    batchShapeB,
  );
  const out = backend.makeOutput([...outer, m, n], "float32");
  let batch = product(outer);
  if (batch * m * n === 0) return out;
  const simd = simdFor(backend);
  const [ras, cas] = transposeA ? [1, colsA] : [colsA, 1];
  const [rbs, cbs] = transposeB ? [1, colsB] : [colsB, 1];
  let strideA = batchA === 1 ? 0 : rowsA * colsA;
  const strideB = batchB === 1 ? 0 : rowsB * colsB;
  if (strideB === 0 && strideA !== 0 && !transposeA) {
    // One B for all: a single tall product.
    m *= batch;
    batch = 1;
    strideA = 0;
  }
  withScratch(backend, simd.gemmScratch(m, n, k), (scratch) => {
    simd.gemmBatch(
      batch,
      address(backend, a),
      strideA,
      ras,
      cas,
      address(backend, b),
      strideB,
      rbs,
      cbs,
      address(backend, out),
      m * n,
      n,
      m,
      n,
      k,
      0,
      bias ? address(backend, bias) : 0,
      scratch,
    );
  });
  return out;
}

function batchMatMul(call: KernelCall): tf.TensorInfo {
  return multiply(call) ?? callStock("BatchMatMul", call);
}

function fusedMatMul(call: KernelCall): tf.TensorInfo {
  const { inputs, attrs } = call;
  const plain = (attrs.activation ?? "linear") === "linear" &&
    (!inputs.bias || inputs.bias.shape.length === 1);
  return (plain ? multiply(call, inputs.bias) : undefined) ??
    callStock("_FusedMatMul", call);
}

/** Sizes of a convolution, or undefined if it is not NHWC. */
function convInfo(
  call: KernelCall,
  xShape: number[],
  filterShape: number[],
): tf.backend_util.Conv2DInfo | undefined {
  const { strides, pad, dilations, dimRoundingMode, dataFormat } = call.attrs;
  if ((dataFormat ?? "NHWC") !== "NHWC") return undefined;
  const info = tf.backend_util.computeConv2DInfo(
    xShape as [number, number, number, number],
    filterShape as [number, number, number, number],
    strides as number,
    (dilations ?? 1) as number,
    pad as "same",
    dimRoundingMode as "floor",
    false,
    "channelsLast",
  );
  return info.inChannels === filterShape[2] ? info : undefined;
}

function convolve(
  call: KernelCall,
  bias?: tf.TensorInfo,
): tf.TensorInfo | undefined {
  const { inputs: { x, filter }, backend } = call;
  const info = convInfo(call, x.shape, filter.shape);
  if (!info) return undefined;
  const out = backend.makeOutput(info.outShape, "float32");
  if (product(info.outShape) === 0) return out;
  runConvolution({
    ...{ backend, info, filter, turned: false },
    from: pictures(backend, x),
    to: pictures(backend, out),
    bias: bias ? address(backend, bias) : 0,
  });
  return out;
}

/** Pictures [batch, height, width, channels] in the backend's memory. */
interface Pictures {
  at: number;
  height: number;
  width: number;
  channels: number;
}

function pictures(backend: WasmBackend, x: tf.TensorInfo): Pictures {
  const [, height, width, channels] = x.shape;
  return { at: address(backend, x), height, width, channels };
}

/** A convolution, or with a filter that is turned round: its gradient. */
interface Convolution {
  backend: WasmBackend;
  /** Sizes; where the filter is turned, strides are 1. */
  info: tf.backend_util.Conv2DInfo;
  filter: tf.TensorInfo;
  /** Whether input and output, and the filter's ends, change places. */
  turned: boolean;
  from: Pictures;
  to: Pictures;
  /** Its address, or 0. */
  bias: number;
}

/** Convolves by the product, the transform or the loops that suit the sizes. */
function runConvolution(
  { backend, info: i, filter, turned, from, to, bias }: Convolution,
): void {
  const simd = simdFor(backend);
  const f = address(backend, filter);
  const [k, n] = [from.channels, to.channels];
  // Steps along the filter's channels of `from` and of `to`.
  const [fk, fn] = turned ? [1, k] : [n, 1];
  const { top, left } = i.padInfo;
  const [padTop, padLeft] = turned
    ? [
      (i.filterHeight - 1) * i.dilationHeight - top,
      (i.filterWidth - 1) * i.dilationWidth - left,
    ]
    : [top, left];
  if (isPointwise(i)) {
    const m = i.batchSize * i.outHeight * i.outWidth;
    withScratch(
      backend,
      simd.gemmScratch(m, n, k),
      // deno-fmt-ignore
      (s) => simd.gemm(from.at, k, 1, f, fk, fn, to.at, n, m, n, k, 0, bias, s),
    );
  } else if (isWinograd(i)) {
    withPackedFilter(
      backend,
      filter,
      k,
      n,
      turned,
      (packed) =>
        withScratch(backend, simd.winogradScratch(k, n), (s) =>
          simd.winograd(
            from.at,
            i.batchSize,
            from.height,
            from.width,
            k,
            packed,
            padTop,
            padLeft,
            to.height,
            to.width,
            n,
            to.at,
            bias,
            s,
          )),
    );
  } else {
    const scratch = simd.convScratch(i.filterHeight, i.filterWidth, k, n);
    withScratch(backend, scratch, (s) =>
      simd.conv2d(
        from.at,
        i.batchSize,
        from.height,
        from.width,
        k,
        f,
        i.filterHeight,
        i.filterWidth,
        fk,
        fn,
        turned ? 1 : 0,
        i.strideHeight,
        i.strideWidth,
        i.dilationHeight,
        i.dilationWidth,
        padTop,
        padLeft,
        to.height,
        to.width,
        n,
        to.at,
        bias,
        s,
      ));
  }
}

function isPointwise(i: tf.backend_util.Conv2DInfo): boolean {
  return i.filterHeight === 1 && i.filterWidth === 1 && i.strideHeight === 1 &&
    i.strideWidth === 1 && i.padInfo.top === 0 && i.padInfo.left === 0 &&
    i.outHeight === i.inHeight && i.outWidth === i.inWidth;
}

/**
 * Where F(2×2, 3×3) is faster: 1.3 to 1.9 times, measured forward and
 * backward at 16 to 320 channels. The batch is not asked, so that an image's
 * result never depends on what else is in its batch.
 */
function isWinograd(i: tf.backend_util.Conv2DInfo): boolean {
  return i.filterHeight === 3 && i.filterWidth === 3 &&
    i.strideHeight === 1 && i.strideWidth === 1 &&
    i.dilationHeight === 1 && i.dilationWidth === 1 &&
    Math.min(i.inChannels, i.outChannels) >= 16 &&
    Math.max(i.inChannels, i.outChannels) <= 320;
}

function conv2D(call: KernelCall): tf.TensorInfo {
  return convolve(call) ?? callStock("Conv2D", call);
}

function fusedConv2D(call: KernelCall): tf.TensorInfo {
  const { inputs, attrs } = call;
  const plain = (attrs.activation ?? "linear") === "linear" &&
    (!inputs.bias || inputs.bias.shape.length === 1);
  return (plain ? convolve(call, inputs.bias) : undefined) ??
    callStock("FusedConv2D", call);
}

function conv2DBackpropInput(call: KernelCall): tf.TensorInfo {
  const { inputs: { dy, filter }, backend, attrs } = call;
  const shape = attrs.inputShape as number[];
  const i = convInfo(call, shape, filter.shape);
  if (!i) return callStock("Conv2DBackpropInput", call);
  const out = backend.makeOutput(shape, "float32");
  if (product(shape) === 0) return out;
  const [from, to] = [pictures(backend, dy), pictures(backend, out)];
  const dense = i.strideHeight === 1 && i.strideWidth === 1 &&
    product(dy.shape) > 0;
  if (dense || isPointwise(i) || isWinograd(i)) {
    runConvolution({
      backend,
      info: i,
      filter,
      turned: true,
      from,
      to,
      bias: 0,
    });
    return out;
  }
  const simd = simdFor(backend);
  const scratch = simd.convInputStridedScratch(
    i.filterHeight,
    i.filterWidth,
    i.inChannels,
    i.outChannels,
  );
  withScratch(backend, scratch, (s) =>
    simd.conv2dInputStrided(
      from.at,
      i.batchSize,
      from.height,
      from.width,
      from.channels,
      address(backend, filter),
      i.filterHeight,
      i.filterWidth,
      i.strideHeight,
      i.strideWidth,
      i.dilationHeight,
      i.dilationWidth,
      i.padInfo.top,
      i.padInfo.left,
      to.height,
      to.width,
      to.channels,
      to.at,
      s,
    ));
  return out;
}

function conv2DBackpropFilter(call: KernelCall): tf.TensorInfo {
  const { inputs, backend, attrs } = call;
  const { x, dy } = inputs;
  const shape = attrs.filterShape as number[];
  const i = convInfo(call, x.shape, shape);
  if (!i) {
    throw new Error(
      "Cannot differentiate a convolution: expected NHWC data, got " +
        String(attrs.dataFormat),
    );
  }
  const simd = simdFor(backend);
  const out = backend.makeOutput(shape, "float32");
  if (product(shape) === 0) return out;
  if (isWinograd(i)) {
    const [cin, cout] = [i.inChannels, i.outChannels];
    withScratch(
      backend,
      simd.winogradFilterScratch(cin, cout),
      (s) =>
        simd.winogradFilter(
          address(backend, x),
          i.batchSize,
          i.inHeight,
          i.inWidth,
          cin,
          address(backend, dy),
          i.outHeight,
          i.outWidth,
          cout,
          i.padInfo.top,
          i.padInfo.left,
          address(backend, out),
          s,
        ),
    );
    return out;
  }
  const scratch = simd.convFilterScratch(i.inChannels, i.outChannels);
  withScratch(backend, scratch, (s) =>
    simd.conv2dFilter(
      address(backend, x),
      i.batchSize,
      i.inHeight,
      i.inWidth,
      i.inChannels,
      address(backend, dy),
      i.outHeight,
      i.outWidth,
      i.outChannels,
      i.filterHeight,
      i.filterWidth,
      i.strideHeight,
      i.strideWidth,
      i.dilationHeight,
      i.dilationWidth,
      i.padInfo.top,
      i.padInfo.left,
      address(backend, out),
      s,
    ));
  return out;
}

/**
 * Sum over neighbouring axes: the gradient of every bias and of every
 * broadcast, for which tfjs transposes the whole tensor first.
 */
function reduce(call: KernelCall, mean: boolean): tf.TensorInfo | undefined {
  const { inputs: { x }, backend, attrs } = call;
  if (x.dtype !== "float32") return undefined;
  const axes = tf.util.parseAxisParam(attrs.axis as number[], x.shape)
    .sort((a, b) => a - b);
  if (axes.length === 0) return undefined;
  const [first, last] = [axes[0], axes[axes.length - 1]];
  if (last - first + 1 !== axes.length) return undefined;
  const outer = product(x.shape.slice(0, first));
  const n = product(x.shape.slice(first, last + 1));
  const inner = product(x.shape.slice(last + 1));
  const kept = x.shape.flatMap((d, i) =>
    axes.includes(i) ? (attrs.keepDims ? [1] : []) : [d]
  );
  const out = backend.makeOutput(kept, "float32");
  if (outer * inner > 0) {
    simdFor(backend).sumMiddle(
      address(backend, x),
      outer,
      n,
      inner,
      mean ? 1 / n : 1,
      address(backend, out),
    );
  }
  return out;
}

function sum(call: KernelCall): tf.TensorInfo {
  return reduce(call, false) ?? callStock("Sum", call);
}

function mean(call: KernelCall): tf.TensorInfo {
  return reduce(call, true) ?? callStock("Mean", call);
}

/** Joins along an axis: tfjs copies rows one by one in JavaScript. */
function concat(call: KernelCall): tf.TensorInfo {
  const { inputs, backend, attrs } = call;
  const parts = Object.values(inputs).filter((t) => product(t.shape) > 0);
  if (parts.length < 2 || parts.some((t) => t.dtype !== "float32")) {
    return callStock("Concat", call);
  }
  const [axis] = tf.util.parseAxisParam(attrs.axis as number, parts[0].shape);
  const shape = tf.backend_util.computeOutShape(
    parts.map((t) => t.shape),
    axis,
  );
  const out = backend.makeOutput(shape, "float32");
  const rows = product(shape.slice(0, axis));
  const width = product(shape.slice(axis));
  let to = address(backend, out);
  for (const part of parts) {
    const n = product(part.shape.slice(axis));
    simdFor(backend).copyRows(address(backend, part), n, to, width, rows, n);
    to += 4 * n;
  }
  return out;
}

/** Splits along an axis: the gradient of {@linkcode concat}. */
function splitV(call: KernelCall): tf.TensorInfo[] {
  const { inputs: { x }, backend, attrs } = call;
  if (x.dtype !== "float32") return callStock("SplitV", call);
  const [axis] = tf.util.parseAxisParam(attrs.axis as number, x.shape);
  const sizes = tf.backend_util.prepareSplitSize(
    x as tf.Tensor,
    attrs.numOrSizeSplits as number[],
    axis,
  );
  const rows = product(x.shape.slice(0, axis));
  const width = product(x.shape.slice(axis));
  let from = address(backend, x);
  return sizes.map((size) => {
    const shape = x.shape.map((d, i) => i === axis ? size : d);
    const out = backend.makeOutput(shape, "float32");
    const n = product(shape.slice(axis));
    const to = address(backend, out);
    simdFor(backend).copyRows(from, width, to, n, rows, n);
    from += 4 * n;
    return out;
  });
}

/** Takes rows of a table, such as token embeddings: a copy for each row. */
function gather(call: KernelCall): tf.TensorInfo {
  const { inputs: { x, indices }, backend, attrs } = call;
  const [axis] = tf.util.parseAxisParam(attrs.axis as number, x.shape);
  const rows = backend.readSync(indices.dataId) as Int32Array;
  const known = (row: number) => row >= 0 && row < x.shape[0];
  const plain = x.dtype === "float32" && axis === 0 && !attrs.batchDims;
  // The stock kernel says what is wrong with an index.
  if (!plain || !rows.every(known)) return callStock("GatherV2", call);
  const width = product(x.shape.slice(1));
  const shape = [...indices.shape, ...x.shape.slice(1)];
  const out = backend.makeOutput(shape, "float32");
  if (product(shape) === 0) return out;
  const [from, to] = [address(backend, x), address(backend, out)];
  const simd = simdFor(backend);
  rows.forEach((row, i) =>
    simd.copyRows(
      from + 4 * width * row,
      width,
      to + 4 * width * i,
      width,
      1,
      width,
    )
  );
  return out;
}
