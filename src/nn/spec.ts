import * as tf from "@tensorflow/tfjs";
import { fold, type Key, normal, uniform } from "../core/random.ts";

/**
 * How a parameter is stored on disk, which decides its layout conversion:
 * `linear` [in, out] here and [out, in] there, `conv` HWIO here and OIHW there,
 * `plain` the same in both.
 */
export type ParamKind = "linear" | "conv" | "plain";

/** How a parameter starts when it is not loaded. */
export type Init =
  | { readonly type: "zeros" }
  | { readonly type: "ones" }
  | { readonly type: "constant"; readonly value: number }
  | { readonly type: "normal"; readonly std: number }
  | { readonly type: "uniform"; readonly bound: number };

/** Shape, layout and initialisation of one parameter. */
export class ParamSpec {
  /**
   * Describes a parameter.
   *
   * @param shape Shape in tfjs layout.
   * @param kind Layout on disk.
   * @param init Initial values.
   */
  constructor(
    readonly shape: number[],
    readonly kind: ParamKind,
    readonly init: Init,
  ) {}
}

/**
 * A typed parameter tree in which every tensor is replaced by its
 * {@linkcode ParamSpec}; one spec drives initialisation, strict loading and
 * saving of a model.
 */
export type Spec<T> = T extends tf.Tensor ? ParamSpec
  : T extends readonly (infer U)[] ? readonly Spec<U>[]
  : T extends object ? { readonly [K in keyof T]: Spec<T[K]> }
  : T;

/** Anything a spec function accepts. */
// deno-lint-ignore no-explicit-any
export type SpecLike = any;

/**
 * Lists the parameters of a spec with their dotted paths.
 *
 * @param spec The spec.
 * @param prefix Path of the root.
 */
export function specLeaves(
  spec: SpecLike,
  prefix = "",
): [string, ParamSpec][] {
  if (spec === undefined || spec === null) return [];
  if (spec instanceof ParamSpec) return [[prefix, spec]];
  if (typeof spec !== "object") return [];
  return Object.entries(spec).flatMap(([key, value]) =>
    specLeaves(value, prefix === "" ? key : `${prefix}.${key}`)
  );
}

/**
 * Builds the parameter tree of a spec from a function of path and parameter.
 *
 * @param spec The spec.
 * @param fn Gives the tensor of each parameter.
 * @param prefix Path of the root.
 */
export function buildTree<T>(
  spec: Spec<T>,
  fn: (param: ParamSpec, path: string) => tf.Tensor,
  prefix = "",
): T {
  const visit = (node: SpecLike, path: string): unknown => {
    if (node instanceof ParamSpec) return fn(node, path);
    if (node === undefined || node === null || typeof node !== "object") {
      return node;
    }
    const join = (key: string) => path === "" ? key : `${path}.${key}`;
    if (Array.isArray(node)) {
      return node.map((value, i) => visit(value, join(String(i))));
    }
    return Object.fromEntries(
      Object.entries(node).filter(([, value]) => value !== undefined).map((
        [key, value],
      ) => [key, visit(value, join(key))]),
    );
  };
  return visit(spec, prefix) as T;
}

/**
 * Makes random parameters for a spec; every parameter draws from a key of its
 * own path, so adding a layer does not change the others.
 *
 * @param spec The spec.
 * @param key Random key.
 *
 * @example
 * ```ts
 * const unet = initialise(unetSpec(config), key(0));
 * ```
 */
export function initialise<T>(spec: Spec<T>, key: Key): T {
  return buildTree<T>(spec, (param, path) => {
    const size = param.shape.reduce((a, b) => a * b, 1);
    const { init } = param;
    switch (init.type) {
      case "zeros":
        return tf.zeros(param.shape);
      case "ones":
        return tf.ones(param.shape);
      case "constant":
        return tf.fill(param.shape, init.value);
      case "normal":
        return tf.tensor(normal(fold(key, path), size, init.std), param.shape);
      case "uniform":
        return tf.tensor(
          uniform(fold(key, path), size, -init.bound, init.bound),
          param.shape,
        );
    }
  });
}
