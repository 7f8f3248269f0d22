/**
 * SVDiff (Han et al. 2023, "SVDiff: Compact Parameter Space for Diffusion
 * Fine-Tuning"): only the singular values of each weight are trained.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../core/errors.ts";
import { at } from "../core/tree.ts";
import type { LowRank } from "../nn/linear.ts";
import {
  type Matrix,
  matrix,
  type SVD,
  svd,
  transpose,
} from "../optim/least_squares.ts";
import type { Adaptable, Adapter } from "./lora.ts";
import {
  type Component,
  COMPONENTS,
  type Site,
  sites,
  type TargetName,
  type Targets,
  targets,
} from "./sites.ts";

/** Settings of {@linkcode initSpectral}. */
export interface InitSpectralOptions {
  /** Name of the adapter. */
  readonly name: string;
  /**
   * Layers; a convolution [kh, kw, in, out] is the matrix [kh·kw·in, out].
   *
   * @default every linear layer and convolution of the UNet, as the article
   */
  readonly targets?: TargetName | Targets;
  /**
   * Known δ by `<component>.<path>`; other layers are left out.
   *
   * @default zeros for every layer
   */
  readonly shifts?: ReadonlyMap<string, Float32Array>;
}

/**
 * Decomposes the weights of layers, W₀ = U·diag(σ)·Vᵀ, for training of the
 * shifts δ in W = U·diag(relu(σ + δ))·Vᵀ. Costs one singular value decomposition
 * per layer, in float64 on the host.
 *
 * @param model The base model.
 * @param options Name, layers, shifts that are known.
 * @returns An adapter whose `down` and `up` are the singular vectors; its tensors
 * are the caller's.
 * @throws If no layer is chosen, or a shift has another size than its layer.
 *
 * @example
 * ```ts
 * const adapter = await initSpectral(model, { name: "rex" });
 * const same = attach(model, adapter); // δ = 0 changes nothing
 * ```
 */
export async function initSpectral(
  model: Adaptable,
  options: InitSpectralOptions,
): Promise<Adapter> {
  const { name, shifts } = options;
  const chosen = options.targets ??
    ((component: Component) => component === "unet");
  const wanted = typeof chosen === "string" ? targets(chosen) : chosen;
  const made: Record<Component, Map<string, LowRank>> = {
    textEncoder: new Map(),
    unet: new Map(),
  };
  for (const component of COMPONENTS) {
    const { params } = model[component];
    const found = sites(
      params,
      (site) =>
        shifts ? shifts.has(`${component}.${site.path}`) : wanted(
          component,
          site,
        ),
    );
    for (const site of found) {
      const weight: tf.Tensor = at(params, site.path).weight;
      const inputs = weight.size / site.outputs;
      const own = matrix(inputs, site.outputs, await weight.data());
      made[component].set(
        site.path,
        leafOf(
          site,
          decomposed(own),
          shifts?.get(`${component}.${site.path}`),
          name,
        ),
      );
    }
  }
  const count = made.textEncoder.size + made.unet.size;
  if (count === 0 || (shifts && count !== shifts.size)) {
    throw cannot(
      "shift singular values",
      shifts ? `${shifts.size} layers of the model` : "at least one layer",
      count,
    );
  }
  return { name, scaleRule: "alpha", ...made };
}

/** The singular value decomposition; weights of zeros are handled directly. */
function decomposed(weight: Matrix): SVD {
  if (weight.data.some((x) => x !== 0)) return svd(weight);
  const { rows, columns } = weight;
  const rank = Math.min(rows, columns);
  const thin = (n: number) => {
    const unit = matrix(n, rank);
    for (let i = 0; i < rank; i++) unit.data[i * rank + i] = 1;
    return unit;
  };
  return { u: thin(rows), s: new Float64Array(rank), v: thin(columns) };
}

function leafOf(
  { path, kind, kernel, inputs, outputs }: Site,
  { u, s, v }: SVD,
  shift: Float32Array | undefined,
  adapter: string,
): LowRank {
  const rank = s.length;
  if (shift && shift.length !== rank) {
    throw cannot(
      "shift singular values",
      `${rank} of ${path}`,
      shift.length,
    );
  }
  const values = (m: Matrix) => Float32Array.from(m.data);
  const right = values(transpose(v));
  return {
    down: tf.tensor(
      values(u),
      kind === "linear" ? [inputs, rank] : [...kernel, inputs, rank],
    ),
    up: tf.tensor(
      right,
      kind === "linear" ? [rank, outputs] : [1, 1, rank, outputs],
    ),
    scale: 1,
    spectrum: {
      sigma: tf.tensor1d(Float32Array.from(s)),
      shift: tf.tensor1d(shift ?? new Float32Array(rank)),
    },
    adapter,
  };
}
