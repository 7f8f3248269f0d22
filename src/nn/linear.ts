import * as tf from "@tensorflow/tfjs";
import { lowRankProduct } from "../core/kernels/ops.ts";
import { type Key, uniform } from "../core/random.ts";
import { type Dora, renormalisedChange } from "./dora.ts";
import { ParamSpec, type Spec } from "./spec.ts";

export type { Dora } from "./dora.ts";

/**
 * A shift of singular values (SVDiff, Han et al. 2023): with `down` and
 * `up` the singular vectors of the base weight, the addition is
 * down · diag(relu(σ + δ) − σ) · up.
 */
export interface Spectrum {
  /** σ [r], the singular values of the base weight. */
  readonly sigma: tf.Tensor1D;
  /** δ [r], what is learned. */
  readonly shift: tf.Tensor1D;
}

/**
 * What a shift of singular values adds in each direction: relu(σ + δ) − σ.
 *
 * @param spectrum σ and δ.
 * @returns [r]; differentiable by δ.
 */
export function spectralGains({ sigma, shift }: Spectrum): tf.Tensor1D {
  return tf.relu(sigma.add(shift)).sub(sigma);
}

/** Dropout of an adapter's input while it is trained (PEFT's lora_dropout). */
export interface Dropout {
  /** Share of the input's values that are left out, 0 to below 1. */
  readonly rate: number;
  /** Which ones; the same key leaves out the same. */
  readonly key: Key;
}

/**
 * The input of an adapter with values left out, the others scaled up.
 *
 * @param x The input.
 * @param dropout How many, and which.
 * @default dropout none
 */
function dropped<T extends tf.Tensor>(x: T, dropout?: Dropout): T {
  if (!dropout) return x;
  const { rate, key } = dropout;
  const kept = uniform(key, x.size).map((u) => u < rate ? 0 : 1 / (1 - rate));
  return x.mul(tf.tensor(kept, x.shape)) as T;
}

/**
 * A low-rank addition to a linear layer: `scale · (x · down) · up`.
 *
 * With `magnitude` it is a DoRA: the sum of base weight and low-rank product is
 * renormalised to that magnitude (see {@linkcode Dora}).
 */
export interface LowRank {
  /** [in, r]; for a convolution [kh, kw, in, r]. */
  readonly down: tf.Tensor;
  /** [r, out]; for a convolution [1, 1, r, out]. */
  readonly up: tf.Tensor;
  /** Factor of the product: α of Mix-of-Show, α/r of PEFT and kohya. */
  readonly scale: number;
  /** Gains of the singular directions between `down` and `up` (SVDiff). */
  readonly spectrum?: Spectrum;
  /** DoRA magnitude [out], or [in] where `dora.of` says so. */
  readonly magnitude?: tf.Tensor1D;
  /** How the magnitude acts, where that is not PEFT's way. */
  readonly dora?: Dora;
  /** What of the input is left out; in training only. */
  readonly dropout?: Dropout;
  /** Name of the adapter this belongs to. */
  readonly adapter?: string;
  /** The same leaf at weight 1, so that its weight can be changed later. */
  readonly unweighted?: Pick<LowRank, "scale" | "dora">;
}

/** Parameters of a linear layer: y = x · weight + bias. */
export interface Linear {
  /** [in, out]. */
  readonly weight: tf.Tensor2D;
  /** [out]. */
  readonly bias?: tf.Tensor1D;
  /** Attached adapters, in order. */
  readonly low?: readonly LowRank[];
}

/** Parameters of a convolution: HWIO weight and bias. */
export interface Conv {
  /** [kh, kw, in, out]. */
  readonly weight: tf.Tensor4D;
  /** [out]. */
  readonly bias?: tf.Tensor1D;
  /** Attached LoCon adapters, in order. */
  readonly low?: readonly LowRank[];
}

/**
 * What observes or alters the projections of a forward pass; passed down as an
 * argument, never stored in a model.
 */
export interface Context {
  /**
   * Sees the input of every linear layer and convolution.
   *
   * @param module The parameters of the layer, by identity.
   * @param input Its input [..., in].
   */
  readonly tap?: (module: Linear | Conv, input: tf.Tensor) => void;
  /**
   * Alters the contribution of one adapter, for example to keep it inside a
   * region.
   *
   * @param low The adapter leaf.
   * @param contribution Its output [..., out].
   */
  readonly gate?: (low: LowRank, contribution: tf.Tensor) => tf.Tensor;
}

/** 1/√fan_in, the bound of PyTorch's default Kaiming uniform (a = √5). */
function defaultBound(fanIn: number): number {
  return 1 / Math.sqrt(fanIn);
}

/**
 * Spec of a linear layer with PyTorch's default initialisation.
 *
 * @param inputs Input features.
 * @param outputs Output features.
 * @param options `bias` (default true); `std` for a normal initialisation with
 * zero bias, as CLIP uses; `zero` for an all-zero layer.
 */
export function linearSpec(
  inputs: number,
  outputs: number,
  options: { bias?: boolean; std?: number; zero?: boolean } = {},
): Spec<Linear> {
  const bound = defaultBound(inputs);
  const { bias = true, std, zero } = options;
  const weight = new ParamSpec(
    [inputs, outputs],
    "linear",
    zero
      ? { type: "zeros" }
      : std === undefined
      ? { type: "uniform", bound }
      : { type: "normal", std },
  );
  if (!bias) return { weight } as Spec<Linear>;
  return {
    weight,
    bias: new ParamSpec(
      [outputs],
      "plain",
      zero || std !== undefined
        ? { type: "zeros" }
        : { type: "uniform", bound },
    ),
  } as Spec<Linear>;
}

/**
 * Spec of a square convolution with PyTorch's default initialisation.
 *
 * @param inputs Input channels.
 * @param outputs Output channels.
 * @param kernel Kernel size.
 * @param options `bias` (default true); `zero` for a zero convolution.
 */
export function convSpec(
  inputs: number,
  outputs: number,
  kernel: number,
  options: { bias?: boolean; zero?: boolean } = {},
): Spec<Conv> {
  const bound = defaultBound(inputs * kernel * kernel);
  const { bias = true, zero } = options;
  const init = zero
    ? { type: "zeros" } as const
    : { type: "uniform", bound } as const;
  const weight = new ParamSpec(
    [kernel, kernel, inputs, outputs],
    "conv",
    init,
  );
  if (!bias) return { weight } as Spec<Conv>;
  return {
    weight,
    bias: new ParamSpec([outputs], "plain", init),
  } as Spec<Conv>;
}

/** Whether an adapter only adds (x · down) · up. */
function isPlain(
  { scale, spectrum, magnitude, dropout }: LowRank,
): boolean {
  return scale === 1 && !spectrum && !magnitude && !dropout;
}

/** x [rows, in] · weight, plus every adapter, without bias. */
function project(p: Linear, x: tf.Tensor2D, context?: Context): tf.Tensor2D {
  if (p.low?.length === 1 && isPlain(p.low[0]) && !context?.gate) {
    const [{ down, up }] = p.low;
    return lowRankProduct(x, p.weight, down as tf.Tensor2D, up as tf.Tensor2D);
  }
  let y: tf.Tensor2D = tf.matMul(x, p.weight);
  for (const low of p.low ?? []) {
    let added: tf.Tensor;
    const seen = dropped(x, low.dropout);
    if (low.magnitude) {
      added = tf.matMul(seen, lowRankDelta(low, p.weight));
    } else {
      const inner = tf.matMul(seen, low.down as tf.Tensor2D);
      const product = tf.matMul(
        low.spectrum ? inner.mul(spectralGains(low.spectrum)) : inner,
        low.up as tf.Tensor2D,
      );
      added = low.scale === 1 ? product : product.mul(low.scale);
    }
    if (context?.gate) added = context.gate(low, added);
    y = tf.add(y, added);
  }
  return y;
}

/**
 * The only place a projection happens: x · W + Σ scale · (x · down) · up + b.
 *
 * @param p Parameters.
 * @param x [..., in].
 * @param context Observers.
 * @returns [..., out].
 */
export function linear<T extends tf.Tensor>(
  p: Linear,
  x: T,
  context?: Context,
): T {
  context?.tap?.(p, x);
  // Always 2-D: the gradient of a batched matMul with a shared right operand
  // has the wrong shape in tfjs.
  const rows = x.size / p.weight.shape[0];
  const y = project(p, x.reshape([rows, p.weight.shape[0]]), context);
  const out = p.bias ? y.add(p.bias) : y;
  return out.reshape([...x.shape.slice(0, -1), p.weight.shape[1]]) as T;
}

/** Strides and padding of a convolution. */
export interface ConvOptions {
  /** @default 1 */
  readonly stride?: number;
  /** Zero padding: one number for all sides, or [[top, bottom], [left, right]].
   * @default ⌊(kernel − 1) / 2⌋, "same" for an odd kernel at stride 1 */
  readonly pad?:
    | number
    | readonly [
      readonly [number, number],
      readonly [number, number],
    ];
}

/**
 * A 2-D convolution, NHWC, with its LoCon adapters.
 *
 * @param p Parameters.
 * @param x [b, h, w, in].
 * @param options Stride and padding.
 * @param context Observers.
 * @returns [b, h', w', out].
 */
export function conv2d(
  p: Conv,
  x: tf.Tensor4D,
  options: ConvOptions = {},
  context?: Context,
): tf.Tensor4D {
  context?.tap?.(p, x);
  const { stride = 1 } = options;
  const pad = options.pad ?? Math.floor((p.weight.shape[0] - 1) / 2);
  const sides: [[number, number], [number, number]] = typeof pad === "number"
    ? [[pad, pad], [pad, pad]]
    : [[...pad[0]], [...pad[1]]];
  const run = (filter: tf.Tensor4D, input = x) =>
    tf.conv2d(
      input,
      filter,
      stride,
      [[0, 0], ...sides, [0, 0]] as tf.backend_util.ExplicitPadding,
    );
  let y = run(p.weight);
  for (const low of p.low ?? []) {
    const seen = dropped(x, low.dropout);
    const inner = () => {
      const y = run(low.down as tf.Tensor4D, seen);
      return low.spectrum ? y.mul(spectralGains(low.spectrum)) : y;
    };
    const change = () => run(lowRankDelta(low, p.weight), seen);
    const added = low.magnitude ? change() : tf.conv2d(
      inner() as tf.Tensor4D,
      low.up as tf.Tensor4D,
      1,
      "valid",
    ).mul(low.scale) as tf.Tensor4D;
    y = y.add(context?.gate ? context.gate(low, added) : added);
  }
  return p.bias ? y.add(p.bias) : y;
}

/**
 * The change of a layer's weight by one adapter: scale · down · up, and what a
 * DoRA makes of it.
 *
 * @param low The adapter leaf.
 * @param weight The layer's own weight; only a DoRA depends on it.
 * @returns [in, out], or [kh, kw, in, out]; differentiable.
 */
export function lowRankDelta<T extends tf.Tensor>(low: LowRank, weight: T): T {
  const [inputs, outputs] = [
    low.down.shape.slice(0, -1),
    low.up.shape[low.up.rank - 1] as number,
  ];
  const rank = low.down.shape[low.down.rank - 1] as number;
  const down = low.down.reshape([inputs.reduce((a, b) => a * b, 1), rank]);
  const product = tf.matMul(
    (low.spectrum
      ? down.mul(spectralGains(low.spectrum))
      : down) as tf.Tensor2D,
    low.up.reshape([rank, outputs]) as tf.Tensor2D,
  ).mul(low.scale).reshape([...inputs, outputs]);
  if (!low.magnitude) return product as T;
  return renormalisedChange(low.magnitude, low.dora, product, weight) as T;
}
