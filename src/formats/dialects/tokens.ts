/**
 * Learned tokens between files and concepts: which rows of a tensor are vectors
 * of one token and which are its layers.
 *
 * Here a token has one vector, or one per cross-attention layer. A token of
 * several vectors, as textual inversion makes them, is several tokens: `<cat>`,
 * `<cat>_1`, `<cat>_2` (diffusers names them so, too), to be written one behind
 * the other.
 *
 * @module
 */
import type * as tf from "@tensorflow/tfjs";
import { cannot } from "../../core/errors.ts";
import type { LoraLayers } from "./base.ts";
import type { Dialect, LoraHeader, TokenNames } from "./dialect.ts";

/** The token of the k-th vector. */
function numberedToken(token: string, k: number): string {
  return k === 0 ? token : `${token}_${k}`;
}

/** Rows of a token's tensor on disk. */
function tokenRows(shape: readonly number[]): number {
  return shape.length === 1 ? 1 : shape[0];
}

/** What is wrong with the shape of a token's tensor, if anything. */
export function tokenMisfit(
  names: TokenNames,
  shape: readonly number[],
  { width, crossAttentions }: LoraLayers,
): string | undefined {
  const rows = tokenRows(shape);
  const allowed = names.rows === "layers"
    ? rows === 1 || rows >= crossAttentions
    : rows === 1 || names.grouped;
  const fits = (shape.length === 1 || shape.length === 2) &&
    shape[shape.length - 1] === width && rows > 0 && allowed;
  if (fits) return undefined;
  const count = allowed
    ? "n"
    : names.rows === "layers"
    ? `1 or ${crossAttentions}`
    : "1";
  return `expected [${count}, ${width}], got [${shape}]`;
}

/** A tensor of a file and the tokens it holds. */
export interface TokenKey {
  /** Name of the tensor. */
  readonly key: string;
  /** Its tokens, one per vector, or the only one. */
  readonly tokens: readonly string[];
}

/** The tokens of a file, by the keys that hold them. */
export function tokenKeys(
  d: Dialect,
  header: LoraHeader,
  name: string,
): Map<string, TokenKey> {
  const found = new Map<string, TokenKey>();
  for (const [key, { shape }] of header.entries) {
    const token = d.tokens?.read(key, header, name);
    if (token === undefined) continue;
    const vectors = d.tokens!.rows === "vectors" ? tokenRows(shape) : 1;
    found.set(key, {
      key,
      tokens: Array.from(
        // What is not a token's shape at all must not make a million names.
        { length: Math.max(1, Math.min(vectors, 4096)) },
        (_, k) => numberedToken(token, k),
      ),
    });
  }
  return found;
}

/** A tensor to write: a token, or one with the vectors behind it. */
export interface TokenTensor {
  /** Name of the tensor. */
  readonly key: string;
  /** Shape on disk. */
  readonly shape: number[];
  /** Its numbers. */
  readonly values: Float32Array;
}

/**
 * The tensors in which a dialect keeps tokens.
 *
 * @throws If it cannot hold them: none at all, a vector per layer, several.
 */
export async function encodeTokens(
  d: Dialect,
  embeddings: ReadonlyMap<string, tf.Tensor2D>,
): Promise<TokenTensor[]> {
  const what = `write a LoRA as ${d.id}`;
  const names = d.tokens;
  if (embeddings.size === 0) return [];
  if (!names) {
    throw cannot(what, "no learned tokens", [...embeddings.keys()].join(", "));
  }
  if (names.rows === "layers") {
    return await Promise.all(
      [...embeddings].map(async ([token, vectors]) => ({
        key: names.write(token),
        shape: [...vectors.shape],
        values: await vectors.data() as Float32Array,
      })),
    );
  }
  const groups: { token: string; vectors: Float32Array[] }[] = [];
  for (const [token, tensor] of embeddings) {
    const [rows, width] = tensor.shape;
    const values = await tensor.data() as Float32Array;
    const first = values.subarray(0, width);
    for (let row = 1; row < rows; row++) {
      for (let i = 0; i < width; i++) {
        if (values[row * width + i] !== first[i]) {
          throw cannot(
            what,
            "one vector per token",
            `${rows} different ones, one per layer, of ${token}`,
          );
        }
      }
    }
    const group = names.grouped
      ? groups.find((g) => token === numberedToken(g.token, g.vectors.length))
      : undefined;
    if (group) group.vectors.push(first);
    else groups.push({ token, vectors: [first] });
  }
  if (names.single && groups.length > 1) {
    throw cannot(
      what,
      "one token per file",
      groups.map(({ token }) => token).join(", "),
    );
  }
  return groups.map(({ token, vectors }) => {
    const width = vectors[0].length;
    const values = new Float32Array(vectors.length * width);
    vectors.forEach((v, i) => values.set(v, i * width));
    return {
      key: names.write(token),
      shape: names.flat && vectors.length === 1
        ? [width]
        : [vectors.length, width],
      values,
    };
  });
}
