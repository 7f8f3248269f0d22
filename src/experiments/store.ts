/**
 * A store of finished pieces of work: what shaped a piece is hashed, and the
 * hash is the name of its result. What is in the store is never done again, so
 * a killed run continues and two runs share what they have in common.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import { encodeFloat, type RawTensor } from "../io/safetensors.ts";
import { joinPath } from "../io/files.ts";

/** Raised whenever a change of code changes numbers: old results are left. */
export const CODE_VERSION = 1;

/** Anything JSON can say. */
export type Json =
  | null
  | boolean
  | number
  | string
  | readonly Json[]
  | { readonly [key: string]: Json | undefined };

/**
 * JSON in one way only: keys in order, no white space, `undefined` left out.
 *
 * @param value Plain data.
 */
export function canonicalJson(value: unknown): string {
  const ordered = (node: unknown): unknown => {
    if (Array.isArray(node)) return node.map(ordered);
    if (typeof node !== "object" || node === null) return node;
    return Object.fromEntries(
      Object.entries(node).filter(([, v]) => v !== undefined)
        .sort(([a], [b]) => a < b ? -1 : 1)
        .map(([key, v]) => [key, ordered(v)]),
    );
  };
  return JSON.stringify(ordered(value));
}

/**
 * The name of a piece of work: SHA-256 of its canonical JSON.
 *
 * @param piece Plain data: all that shapes the result.
 */
export async function pieceId(piece: unknown): Promise<string> {
  return await sha256(canonicalJson({ code: CODE_VERSION, piece }));
}

/**
 * SHA-256 over the files of a folder, by name: the identity of a model.
 *
 * @param folder The folder.
 * @param parts Subfolders or files of it that count; all by default.
 * @throws If a part is missing.
 */
export async function folderHash(
  folder: string,
  parts?: readonly string[],
): Promise<string> {
  // `models/micro/` is the same folder as `models/micro`.
  const root = folder.replace(/(?<=.)\/+$/, "");
  const files: string[] = [];
  const visit = async (path: string) => {
    const { isDirectory } = await Deno.stat(path);
    if (!isDirectory) return void files.push(path);
    for await (const { name } of Deno.readDir(path)) {
      if (!name.startsWith(".")) await visit(joinPath(path, name));
    }
  };
  for (const part of parts ?? [""]) await visit(joinPath(root, part));
  const hashes: [string, string][] = [];
  for (const file of files.sort()) {
    hashes.push([
      file.slice(root.length),
      await sha256(await Deno.readFile(file)),
    ]);
  }
  return await sha256(canonicalJson(hashes));
}

/**
 * Embeddings as one tensor on disk.
 *
 * @param embeddings At least one, all of one length.
 * @returns F32 [n, d].
 */
export function embeddingsTensor(embeddings: readonly ClipVector[]): RawTensor {
  const width = embeddings[0].length;
  const values = new Float32Array(embeddings.length * width);
  embeddings.forEach((row, i) => values.set(row, i * width));
  return {
    dtype: "F32",
    shape: [embeddings.length, width],
    data: encodeFloat(values, "F32"),
  };
}
