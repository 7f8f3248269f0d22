import * as tf from "@tensorflow/tfjs";
import { cannot } from "./errors.ts";
import { gradientsOf } from "./tape.ts";

/**
 * A nested tree of tensors: the parameters of a network, or anything shaped
 * like them (gradients, optimizer moments).
 *
 * Leaves are tensors; nodes are plain objects and arrays; `undefined` marks an
 * absent optional leaf. A path joins the keys with dots, which for a model is
 * the name of the parameter in the PyTorch state dict.
 */
export type Tree =
  | tf.Tensor
  | undefined
  | readonly Tree[]
  | { readonly [key: string]: Tree };

/** Anything a {@linkcode Tree} function accepts: also typed parameter interfaces. */
// deno-lint-ignore no-explicit-any
export type TreeLike = any;

function isTensor(value: unknown): value is tf.Tensor {
  return value instanceof tf.Tensor;
}

/**
 * Lists the leaves of a tree in a fixed order (insertion order of keys).
 *
 * @param tree The tree.
 * @param prefix Path of the root.
 * @returns Pairs of path and tensor.
 *
 * @example
 * ```ts
 * for (const [path, tensor] of leaves(unet)) console.log(path, tensor.shape);
 * ```
 */
export function leaves(tree: TreeLike, prefix = ""): [string, tf.Tensor][] {
  if (tree === undefined || tree === null) return [];
  if (isTensor(tree)) return [[prefix, tree]];
  if (typeof tree !== "object") return [];
  const join = (key: string) => prefix === "" ? key : `${prefix}.${key}`;
  return Object.entries(tree as Record<string, Tree>).flatMap(([key, value]) =>
    leaves(value, join(key))
  );
}

/**
 * Maps every leaf to something else; what is not a tensor (a number, a string)
 * is kept as it is.
 *
 * @param tree The tree; it is not changed.
 * @param fn Called with each leaf and its path.
 * @param prefix Path of the root.
 * @returns A new tree of the same structure.
 */
export function mapTree<T>(
  tree: T,
  fn: (leaf: tf.Tensor, path: string) => unknown,
  prefix = "",
): T {
  if (tree === undefined || tree === null) return tree;
  if (isTensor(tree)) return fn(tree, prefix) as T;
  if (typeof tree !== "object") return tree;
  const join = (key: string) => prefix === "" ? key : `${prefix}.${key}`;
  if (Array.isArray(tree)) {
    return tree.map((value, i) => mapTree(value, fn, join(String(i)))) as T;
  }
  return Object.fromEntries(
    Object.entries(tree).map(([key, value]) => [
      key,
      mapTree(value, fn, join(key)),
    ]),
  ) as T;
}

/**
 * Returns the subtree or leaf at a dotted path, or `undefined`.
 *
 * @param tree The tree.
 * @param path Such as `"mid_block.attentions.0.proj_in.weight"`.
 */
export function at(tree: TreeLike, path: string): TreeLike {
  let node = tree;
  for (const key of path === "" ? [] : path.split(".")) {
    if (node === undefined || node === null || isTensor(node)) return undefined;
    node = node[key];
  }
  return node;
}

/**
 * Returns a tree in which the node at each given path is replaced.
 *
 * Only the nodes on the way are copied; everything else is shared.
 *
 * @param tree The tree; it is not changed.
 * @param replace Called for the node at every path in `paths`.
 * @param paths Dotted paths, each of which must exist.
 * @throws If a path does not exist.
 */
export function updateAt<T>(
  tree: T,
  paths: Iterable<string>,
  replace: (node: TreeLike, path: string) => unknown,
): T {
  type Plan = { leaf?: string; next: Map<string, Plan> };
  const root: Plan = { next: new Map() };
  for (const path of paths) {
    let plan = root;
    for (const key of path === "" ? [] : path.split(".")) {
      const next = plan.next.get(key) ?? { next: new Map() };
      plan.next.set(key, next);
      plan = next;
    }
    plan.leaf = path;
  }
  const visit = (node: TreeLike, plan: Plan): unknown => {
    let result = node;
    if (plan.next.size > 0) {
      result = Array.isArray(node) ? [...node] : { ...node };
      for (const [key, next] of plan.next) {
        if (
          node === undefined || node === null || isTensor(node) ||
          !(key in node)
        ) {
          const path = next.leaf ?? key;
          throw cannot("update a tree", `a node at "${path}"`, "nothing there");
        }
        result[key] = visit(node[key], next);
      }
    }
    return plan.leaf === undefined ? result : replace(result, plan.leaf);
  };
  return visit(tree, root) as T;
}

/**
 * Disposes every tensor of a tree that is not already disposed.
 *
 * @param tree The tree.
 * @param except Trees whose tensors are shared and must live on.
 */
export function disposeTree(tree: TreeLike, ...except: TreeLike[]): void {
  const kept = new Set(
    except.flatMap((t) => leaves(t).map(([, tensor]) => tensor.id)),
  );
  for (const [, tensor] of leaves(tree)) {
    if (!kept.has(tensor.id) && !tensor.isDisposed) tensor.dispose();
  }
}

/**
 * Counts the scalars of a tree.
 *
 * @param tree The tree.
 */
export function parameterCount(tree: TreeLike): number {
  return leaves(tree).reduce((sum, [, tensor]) => sum + tensor.size, 0);
}

/**
 * Loss and gradients of a scalar function with respect to chosen leaves of a
 * tree.
 *
 * Unlike `tf.valueAndGrads` the function sees the whole tree, not a list of
 * tensors, and leaves it does not use get a gradient of zeros.
 *
 * @param loss Scalar function of the tree.
 * @param tree Parameters; tensors, not variables.
 * @param paths Leaves to differentiate by; all of them by default.
 * @returns The loss and a map from path to gradient, owned by the caller.
 * @throws If `paths` names a leaf that does not exist.
 *
 * @example
 * ```ts
 * const { value, grads } = valueAndGrads((p) => tf.mean(tf.square(p.w)), { w });
 * ```
 */
export function valueAndGrads<T>(
  loss: (tree: T) => tf.Scalar,
  tree: T,
  paths?: readonly string[],
): { value: tf.Scalar; grads: Map<string, tf.Tensor> } {
  const names = paths ?? leaves(tree).map(([path]) => path);
  const inputs = names.map((path) => {
    const leaf = at(tree, path);
    if (!isTensor(leaf)) {
      throw cannot("differentiate", `a tensor at "${path}"`, "nothing there");
    }
    return leaf;
  });
  const byName = new Map(names.map((name, i) => [name, inputs[i]]));
  return ownedByCaller(() => {
    const { value, grads } = gradientsOf(
      () => loss(updateAt(tree, names, (_, path) => byName.get(path))),
      inputs,
    ) as { value: tf.Scalar; grads: (tf.Tensor | undefined)[] };
    if (value.rank !== 0) {
      throw cannot("differentiate", "a scalar loss", `shape [${value.shape}]`);
    }
    const filled = grads.map((g, i) => tf.keep(g ?? tf.zerosLike(inputs[i])));
    return {
      value: tf.keep(value),
      grads: new Map(names.map((name, i) => [name, filled[i]])),
    };
  });
}

/**
 * Runs a function in a `tf.tidy` and lets it return anything; what must
 * outlive it is kept by hand.
 */
export function ownedByCaller<T>(fn: () => T): T {
  let result: T | undefined;
  tf.tidy(() => {
    result = fn();
  });
  return result as T;
}
