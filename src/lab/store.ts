/**
 * A store of results. The name of a result is the hash of everything that
 * determines it. A result in the store is never computed again, so a killed run
 * continues, and runs share common results.
 *
 * @module
 */
import { sha256 } from "../core/hash.ts";
import { machine } from "../core/platform/machine.ts";
import type { ClipVector } from "../evaluation/clip.ts";
import {
  exists,
  isFolder,
  joinPath,
  readBytes,
  writeAtomic,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import {
  encodeFloat,
  openSafetensors,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import type { Art } from "../micro/art.ts";
import type {
  ComposeSpec,
  DrawSpec,
  JointPictures,
  LabSpec,
  ModelRef,
  OwnPictures,
  PictureSet,
} from "./specs.ts";

/**
 * Increased whenever a change of code changes results; older results are then
 * ignored.
 */
export const CODE_VERSION = 4;

/**
 * Canonical JSON: sorted keys, no white space, `undefined` left out.
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
 * The name of a result: SHA-256 of the canonical JSON of its spec.
 *
 * @param spec Plain data.
 */
export async function specId(spec: unknown): Promise<string> {
  return await sha256(canonicalJson({ code: CODE_VERSION, spec }));
}

/**
 * The names of the pictures that a spec draws. Each picture has its own hash,
 * so a longer list shares the pictures of a shorter one.
 *
 * @param spec The spec.
 */
export async function imageIds(
  spec: DrawSpec | ComposeSpec,
): Promise<string[]> {
  if (spec.kind === "draw") {
    const { samples, ...rest } = spec;
    return await Promise.all(
      samples.map((sample) => specId({ ...rest, sample })),
    );
  }
  const { noise: all, ...rest } = spec;
  return await Promise.all(all.map((noise) => specId({ ...rest, noise })));
}

/**
 * SHA-256 over the files of a folder, by name: the identity of a model.
 *
 * @param folder The folder.
 * @param parts Subfolders or files of it that count. @default all
 * @throws If a part is missing.
 */
export async function folderHash(
  folder: string,
  parts: readonly string[] = [""],
): Promise<string> {
  // `models/micro/` is the same folder as `models/micro`.
  const root = folder.replace(/(?<=.)\/+$/, "");
  const files: string[] = [];
  const visit = async (path: string) => {
    if (!await isFolder(path)) return void files.push(path);
    for (const { name } of await machine.files.list(path)) {
      if (!name.startsWith(".")) await visit(joinPath(path, name));
    }
  };
  for (const part of parts) await visit(joinPath(root, part));
  const hashes: [string, string][] = [];
  for (const file of files.sort()) {
    hashes.push([
      file.slice(root.length),
      await sha256(await readBytes(file)),
    ]);
  }
  return await sha256(canonicalJson(hashes));
}

/** Hashes of sprites that do not change. */
const artHashes = new WeakMap<Art["sprites"], Promise<string>>();

/**
 * SHA-256 of all sprites and their names; part of the specs that depend on
 * them.
 *
 * @param art Loaded art.
 */
export async function artHash(
  { sprites }: Pick<Art, "sprites">,
): Promise<string> {
  const hash = artHashes.get(sprites) ?? hashOf(sprites);
  artHashes.set(sprites, hash);
  return await hash;
}

async function hashOf(sprites: Art["sprites"]): Promise<string> {
  const hashes: [string, string][] = [];
  for (const [name, { data }] of sprites) {
    hashes.push([name, await sha256(Uint8Array.from(data))]);
  }
  return await sha256(canonicalJson(hashes.sort(([a], [b]) => a < b ? -1 : 1)));
}

/** The folders of a store. */
const FOLDERS = [
  "concepts",
  "fused",
  "published",
  "images",
  "embeddings",
  "heldout",
  "evaluators",
] as const;

/** Files of a folder of the store, one per result. */
const filesOf =
  (folder: (typeof FOLDERS)[number], ending: string) =>
  (store: string, id: string): string => joinPath(store, folder, id + ending);

/** Where results lie below the store's folder. */
export const pathOf = {
  concept: filesOf("concepts", ".safetensors"),
  trainLog: filesOf("concepts", ".json"),
  // One per backend, as rounding differs: a run resumes only a state of its own
  // backend.
  trainState: (store: string, id: string, backend: string): string =>
    joinPath(store, "concepts", `${id}.${backend}.state`),
  fused: filesOf("fused", ".safetensors"),
  fuseLog: filesOf("fused", ".json"),
  published: filesOf("published", ".safetensors"),
  publishLog: filesOf("published", ".json"),
  image: (store: string, id: string): string =>
    joinPath(store, "images", id.slice(0, 2), `${id}.png`),
  embedding: filesOf("embeddings", ".safetensors"),
  heldout: filesOf("heldout", ".json"),
  evaluator: filesOf("evaluators", ".json"),
} as const;

/**
 * Removes all results of a store. Whatever else is in its folder stays.
 *
 * @param store The folder; nothing happens if there is none.
 */
export async function emptyStore(store: string): Promise<void> {
  for (const folder of FOLDERS) {
    const path = joinPath(store, folder);
    if (await machine.files.stat(path)) await machine.files.remove(path);
  }
}

/**
 * The files of a spec's result, below the store's folder.
 *
 * @param spec The spec.
 */
export async function resultPaths(spec: LabSpec): Promise<string[]> {
  if (spec.kind === "draw" || spec.kind === "compose") {
    return (await imageIds(spec)).map((id) => pathOf.image("", id));
  }
  const id = await specId(spec);
  switch (spec.kind) {
    case "train":
      return [pathOf.concept("", id), pathOf.trainLog("", id)];
    case "fuse":
      return [pathOf.fused("", id), pathOf.fuseLog("", id)];
    case "publish":
      return [pathOf.published("", id), pathOf.publishLog("", id)];
    case "heldout":
      return [pathOf.heldout("", id)];
    case "evaluator":
      return [pathOf.evaluator("", id)];
    default:
      return [pathOf.embedding("", id)];
  }
}

/**
 * The input files of a spec, below the store's folder: concepts, fused models
 * and pictures of earlier calls.
 *
 * @param spec The spec.
 */
export function inputPaths(spec: LabSpec): string[] {
  const concepts = (ids: readonly string[]) =>
    ids.map((id) => pathOf.concept("", id));
  const model = (ref: ModelRef) =>
    ref.type === "concept"
      ? concepts([ref.id])
      : ref.type === "fused"
      ? [pathOf.fused("", ref.id)]
      : [];
  const images = (ids: readonly string[]) =>
    ids.map((id) => pathOf.image("", id));
  const pictures = (
    set: PictureSet | OwnPictures | JointPictures,
  ): string[] => {
    switch (set.of) {
      case "joint":
        return set.parts.flatMap((part) => pictures(part.pictures));
      case "drawn":
        return images(set.pictures.map(({ image }) => image));
      case "own":
        return images(
          set.pictures.flatMap(({ image, mask }) =>
            mask ? [image, mask] : image
          ),
        );
      default:
        return [];
    }
  };
  switch (spec.kind) {
    case "train":
      return [
        ...pictures(spec.pictures),
        ...spec.prior ? pictures(spec.prior) : [],
      ];
    case "references":
      return pictures(spec.pictures);
    case "fuse":
      return [
        ...concepts(spec.concepts),
        ...(spec.published ?? []).map((id) => pathOf.published("", id)),
      ];
    case "publish":
      return concepts([spec.concept]);
    case "draw":
      return model(spec.model);
    case "compose":
      return [...model(spec.model), ...concepts(spec.concepts)];
    case "embed":
      return images(spec.images);
    case "heldout":
      return [...model(spec.model), ...pictures(spec.pictures)];
    case "evaluator":
      return Object.values(spec.classPictures).flat()
        .map((id) => pathOf.image("", id));
    case "texts":
      return [];
  }
}

/**
 * Puts a picture of the user's into the store, under the hash of its bytes.
 *
 * @param store Folder of the store.
 * @param pixels The picture.
 * @returns Its name.
 */
export async function putImage(store: string, pixels: Pixels): Promise<string> {
  const bytes = Uint8Array.from(encodePng(pixels));
  const id = await sha256(bytes);
  const path = pathOf.image(store, id);
  if (!await exists(path)) await writeAtomic(path, bytes);
  return id;
}

/**
 * Whether the store has the whole result of a spec.
 *
 * @param store Its folder.
 * @param spec The spec.
 */
export async function isDone(store: string, spec: LabSpec): Promise<boolean> {
  for (const file of await resultPaths(spec)) {
    if (!await exists(joinPath(store, file))) return false;
  }
  return true;
}

/**
 * A picture of the store.
 *
 * @param store Its folder.
 * @param id The picture's name.
 */
export async function readImage(store: string, id: string): Promise<Pixels> {
  return decodePng(await readBytes(pathOf.image(store, id)));
}

/**
 * Writes lists of unit vectors, each list as one tensor F32 [n, d].
 *
 * @param path File.
 * @param lists Lists by name, none of them empty.
 */
export async function writeVectors(
  path: string,
  lists: readonly (readonly [string, readonly ClipVector[]])[],
): Promise<void> {
  await writeSafetensors(
    path,
    lists.map(([name, rows]) => {
      const width = rows[0].length;
      const values = new Float32Array(rows.length * width);
      rows.forEach((row, i) => values.set(row, i * width));
      const data = encodeFloat(values, "F32");
      return [name, { dtype: "F32", shape: [rows.length, width], data }];
    }),
  );
}

/**
 * Reads what {@linkcode writeVectors} wrote.
 *
 * @param path File.
 */
export async function readVectors(
  path: string,
): Promise<Map<string, ClipVector[]>> {
  const file = await openSafetensors(path);
  try {
    const lists = new Map<string, ClipVector[]>();
    for (const name of file.entries.keys()) {
      const raw = await file.read(name);
      const values = toFloat32(raw);
      const [n, width] = raw.shape;
      lists.set(
        name,
        Array.from(
          { length: n },
          (_, i) => values.slice(i * width, (i + 1) * width),
        ),
      );
    }
    return lists;
  } finally {
    file.close();
  }
}
