import * as tf from "@tensorflow/tfjs";
import {
  encodeFloat,
  isFloat,
  type LazyTensor,
  type SafetensorsFile,
  viewFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import {
  bindingLimit,
  forgetHostCopy,
  moveToCard,
  settle,
} from "../core/device.ts";
import { keyFaults } from "../core/errors.ts";
import { halfBytes, halfTensor } from "../core/kernels/half.ts";
import { leaves, type TreeLike } from "../core/tree.ts";
import {
  buildTree,
  type ParamKind,
  type ParamSpec,
  type Spec,
  specLeaves,
} from "../nn/spec.ts";

/** Where named tensors come from: a safetensors file or several of them. */
export type TensorSource = Pick<SafetensorsFile, "entries" | "read">;

/** How foreign names meet ours. */
export interface LoadOptions {
  /**
   * What is being loaded, for messages.
   *
   * @default "a checkpoint"
   */
  readonly what?: string;
  /** Prefix of the keys in the file that belong to this model. */
  readonly prefix?: string;
  /** Keys without prefix that may be there and are not parameters. */
  readonly ignore?: RegExp;
  /**
   * Other names a parameter may have in the file (without prefix), tried in
   * order after its own.
   */
  readonly aliases?: (path: string) => readonly string[];
  /** Accept keys outside `prefix` (another model's, in the same file). */
  readonly others?: boolean;
  /**
   * Weights of linear layers and convolutions are kept as half floats (webgpu
   * only). They cannot be trained; adapters beside them can.
   *
   * @default false
   */
  readonly half?: boolean;
}

/** Shape on disk of a parameter in tfjs layout. */
export function diskShape(kind: ParamKind, shape: readonly number[]): number[] {
  if (kind === "linear") return [shape[1], shape[0]];
  if (kind === "conv") return [shape[3], shape[2], shape[0], shape[1]];
  return [...shape];
}

/**
 * Converts values from PyTorch's layout to tfjs's, on the host.
 *
 * @param kind Layout on disk.
 * @param shape Shape here.
 * @param values The values; not changed.
 * @param result Where they go: as many, and other memory.
 * @returns `result`, or without one `values` itself where nothing moves.
 */
export function fromDisk(
  kind: ParamKind,
  shape: readonly number[],
  values: Float32Array,
  result?: Float32Array,
): Float32Array {
  if (kind === "linear") return transpose(values, shape[1], shape[0], result);
  if (kind === "conv") {
    const [h, w, i, o] = shape;
    // OIHW → HWIO is the transpose of the matrix [O, I·HW] followed by I↔HW.
    result ??= new Float32Array(values.length);
    const area = h * w;
    for (let oo = 0; oo < o; oo++) {
      for (let ii = 0; ii < i; ii++) {
        const from = (oo * i + ii) * area;
        for (let k = 0; k < area; k++) {
          result[(k * i + ii) * o + oo] = values[from + k];
        }
      }
    }
    return result;
  }
  if (!result) return values;
  result.set(values);
  return result;
}

/** Converts values from tfjs's layout to PyTorch's, on the host. */
export function toDisk(
  kind: ParamKind,
  shape: readonly number[],
  values: Float32Array,
): Float32Array {
  if (kind === "linear") return transpose(values, shape[0], shape[1]);
  if (kind === "conv") {
    const [h, w, i, o] = shape;
    const result = new Float32Array(values.length);
    const area = h * w;
    for (let oo = 0; oo < o; oo++) {
      for (let ii = 0; ii < i; ii++) {
        const to = (oo * i + ii) * area;
        for (let k = 0; k < area; k++) {
          result[to + k] = values[(k * i + ii) * o + oo];
        }
      }
    }
    return result;
  }
  return values;
}

function transpose(
  values: Float32Array,
  rows: number,
  columns: number,
  result: Float32Array = new Float32Array(values.length),
): Float32Array {
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      result[c * rows + r] = values[r * columns + c];
    }
  }
  return result;
}

const CONSUMED = /(^|\.)position_ids$/;

/**
 * Loads parameters strictly: every leaf of the spec is filled, every key of the
 * file is consumed exactly once and every shape fits, or nothing is loaded.
 *
 * @param spec The model's spec.
 * @param source The file.
 * @param options Names.
 * @returns The parameters, float32, in tfjs layout.
 * @throws One error about all missing, unexpected, misshapen and mistyped keys
 * (a {@linkcode KeysError}).
 *
 * @example
 * ```ts
 * const { config, file } = await openComponent("sd-v1-5", "unet");
 * const params = await load(unetSpec(parseUNetConfig(config)), file);
 * ```
 */
export async function load<T>(
  spec: Spec<T>,
  source: TensorSource,
  options: LoadOptions = {},
): Promise<T> {
  const { prefix = "", ignore, aliases, others } = options;
  const missing: string[] = [];
  const misshapen: string[] = [];
  const mistyped: string[] = [];
  const found = new Map<string, string>();
  const used = new Set<string>();
  for (const [path, param] of specLeaves(spec)) {
    const names = [path, ...(aliases?.(path) ?? [])];
    const key = names.map((n) => prefix + n).find((n) =>
      source.entries.has(n) && !used.has(n)
    );
    if (key === undefined) {
      missing.push(prefix + path);
      continue;
    }
    used.add(key);
    found.set(path, key);
    const { shape, dtype } = source.entries.get(key)!;
    if (!isFloat(dtype)) {
      mistyped.push(`${key} (expected floats, got ${dtype})`);
    }
    if (!fits(param, shape)) {
      misshapen.push(
        `${key} (expected [${
          diskShape(param.kind, param.shape)
        }], got [${shape}])`,
      );
    }
  }
  const extra = [...source.entries.keys()].filter((key) => {
    if (used.has(key)) return false;
    if (!key.startsWith(prefix)) return !others;
    const name = key.slice(prefix.length);
    return !CONSUMED.test(name) && !ignore?.test(name);
  });
  const faults = keyFaults(`load ${options.what ?? "a checkpoint"}`, {
    missing,
    unexpected: extra,
    misshapen,
    mistyped,
  });
  if (faults) throw faults;
  const loaded = new Map<string, tf.Tensor>();
  try {
    for await (
      const [path, tensor] of read(spec, source, found, options.half)
    ) {
      loaded.set(path, tensor);
    }
  } catch (error) {
    for (const tensor of loaded.values()) tensor.dispose();
    throw error;
  }
  return buildTree<T>(spec, (_, path) => loaded.get(path)!);
}

/** Uploads lie in memory twice until the card has taken them: so many bytes. */
const UPLOAD_BYTES = 128 * 2 ** 20;

/**
 * Reads parameters one by one. Temporary memory is used again for each: left to
 * the garbage collector it would be as much as the model.
 */
async function* read<T>(
  spec: Spec<T>,
  source: TensorSource,
  keys: ReadonlyMap<string, string>,
  half = false,
): AsyncGenerator<[string, tf.Tensor]> {
  const params = specLeaves(spec);
  const largest = (sizes: number[]) =>
    sizes.reduce((a, b) => Math.max(a, b), 0);
  const sizeOf = (param: ParamSpec) => param.shape.reduce((a, b) => a * b, 1);
  const entries = params.map(([path]) => source.entries.get(keys.get(path)!)!);
  const bytes = new Uint8Array(largest(entries.map((e) => e.end - e.begin)));
  const most = largest(params.map(([, param]) => sizeOf(param)));
  const wide = entries.some((entry) => entry.dtype !== "F32");
  const floats = new Float32Array(wide ? most : 0);
  const backend = tf.getBackend();
  // These copy the array they are given; the cpu backend keeps it.
  const copies = backend === "wasm" || backend === "webgpu";
  const shared = new Float32Array(copies ? most : 0);
  const limit = bindingLimit();
  let uploaded = 0;
  for (const [path, param] of params) {
    const raw = await source.read(keys.get(path)!, bytes);
    const size = sizeOf(param);
    // Tables of vectors are read row by row, on the host (see nn/embedding.ts),
    // and nothing larger than an operation can take need leave it.
    const narrow = half && param.kind !== "plain";
    const bytesOnCard = narrow ? halfBytes(size) : 4 * size;
    const stays = backend === "webgpu" &&
      ((param.kind === "plain" && param.shape.length === 2) ||
        bytesOnCard > limit);
    const values = fromDisk(
      param.kind,
      param.shape,
      viewFloat32(raw, floats),
      copies && !stays ? shared.subarray(0, size) : new Float32Array(size),
    );
    const tensor = narrow && !stays
      ? halfTensor(values, param.shape)
      : tf.tensor(values, param.shape);
    if (!stays && moveToCard(tensor)) {
      uploaded += bytesOnCard;
      if (uploaded > UPLOAD_BYTES) {
        uploaded = 0;
        await settle();
      }
    }
    yield [path, tensor];
  }
}

/** Whether a parameter fits a tensor on disk. */
function fits(param: ParamSpec, shape: readonly number[]): boolean {
  return sameDiskShape(diskShape(param.kind, param.shape), shape);
}

/**
 * Whether two shapes on disk hold the same values in the same order: linear
 * layers may stand in a file as 1×1 convolutions, and the reverse.
 *
 * @param a One shape.
 * @param b The other.
 */
export function sameDiskShape(
  a: readonly number[],
  b: readonly number[],
): boolean {
  const trimmed = (s: readonly number[]) =>
    s.length === 4 && s[2] === 1 && s[3] === 1 ? s.slice(0, 2) : s;
  const [x, y] = [trimmed(a), trimmed(b)];
  return x.length === y.length && x.every((n, i) => n === y[i]);
}

/**
 * Writes the parameters of a model as one safetensors file, atomically and
 * tensor by tensor.
 *
 * @param path The file.
 * @param spec The model's spec.
 * @param params Its parameters.
 * @param options `dtype` on disk (default F32); `metadata`.
 */
export async function save<T>(
  path: string,
  spec: Spec<T>,
  params: T,
  options: {
    dtype?: "F32" | "F16" | "BF16";
    metadata?: Record<string, string>;
  } = {},
): Promise<void> {
  const { dtype = "F32" } = options;
  const tensors = new Map(leaves(params as TreeLike));
  // One tensor at a time, so that the model is not in memory a second time.
  const lazy = specLeaves(spec).map(([name, param]): [string, LazyTensor] => [
    name,
    {
      dtype,
      shape: diskShape(param.kind, param.shape),
      load: async () => {
        const tensor = tensors.get(name)!;
        const values = await tensor.data() as Float32Array;
        forgetHostCopy(tensor);
        return encodeFloat(toDisk(param.kind, param.shape, values), dtype);
      },
    },
  ]);
  await writeSafetensors(path, lazy, { format: "pt", ...options.metadata });
}

/**
 * Old names of the autoencoder's attention layers on the hub (`query`, `key`,
 * `value`, `proj_attn`), as aliases for {@linkcode load}.
 *
 * @param path Our name.
 */
export function oldAutoencoderNames(path: string): string[] {
  const old = path.replace(".to_q.", ".query.").replace(".to_k.", ".key.")
    .replace(".to_v.", ".value.").replace(".to_out.0.", ".proj_attn.");
  return old === path ? [] : [old];
}
