/**
 * A folder of golden values, read as data: nothing here knows an architecture.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { cannot } from "../../src/core/errors.ts";
import { exists, joinPath, parseJson, readText } from "../../src/io/files.ts";
import {
  openSafetensors,
  type RawTensor,
  toFloat32,
} from "../../src/io/safetensors.ts";

/** Values as they lie on disk. */
export interface Values {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** One safetensors file of golden values; remembers what was asked for. */
export class Golden {
  /** The file, relative to the folder. */
  readonly path: string;
  /** The file's metadata. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly #raw: ReadonlyMap<string, RawTensor>;
  readonly #read = new Set<string>();

  constructor(
    path: string,
    raw: ReadonlyMap<string, RawTensor>,
    metadata: Readonly<Record<string, string>>,
  ) {
    this.path = path;
    this.#raw = raw;
    this.metadata = metadata;
  }

  /** Names of all tensors. */
  get names(): string[] {
    return [...this.#raw.keys()];
  }

  /** Names that nothing asked for. */
  get unread(): string[] {
    return this.names.filter((name) => !this.#read.has(name));
  }

  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    return this.#raw.has(name);
  }

  #get(name: string): RawTensor {
    const found = this.#raw.get(name);
    if (!found) {
      throw cannot(`verify against ${this.path}`, `a tensor ${name}`, "none");
    }
    this.#read.add(name);
    return found;
  }

  /** Sizes of a tensor. */
  shape(name: string): readonly number[] {
    return this.#get(name).shape;
  }

  /** Element type of a tensor. */
  dtype(name: string): string {
    return this.#get(name).dtype;
  }

  /** A tensor's numbers. */
  values(name: string): Values {
    const raw = this.#get(name);
    return { shape: raw.shape, data: toFloat32(raw) };
  }

  /** A tensor as it lies on disk; the caller's to dispose. */
  tensor<T extends tf.Tensor>(name: string): T {
    const { shape, data } = this.values(name);
    return tf.tensor(data, [...shape]) as T;
  }

  /** A [b, c, h, w] tensor as [b, h, w, c]; the caller's to dispose. */
  nhwc(name: string): tf.Tensor4D {
    return toNhwc(this.values(name));
  }

  /** Rows of an integer tensor along its last axis. */
  rows(name: string): number[][] {
    const raw = this.#get(name);
    const values = [...toFloat32(raw)];
    const width = raw.shape.at(-1) ?? 1;
    return Array.from(
      { length: width === 0 ? 0 : values.length / width },
      (_, i) => values.slice(i * width, (i + 1) * width),
    );
  }

  /** All integers of a tensor. */
  integers(name: string): number[] {
    return this.rows(name).flat();
  }
}

/** A [b, c, h, w] array as a [b, h, w, c] tensor; the caller's to dispose. */
export function toNhwc({ shape, data }: Values): tf.Tensor4D {
  return tf.tidy(() =>
    tf.transpose(
      tf.tensor4d(data, shape as [number, number, number, number]),
      [0, 2, 3, 1],
    )
  );
}

/** Entry i along the first axis, kept as an axis of 1. */
export function item({ shape, data }: Values, i: number): Values {
  const size = data.length / shape[0];
  return {
    shape: [1, ...shape.slice(1)],
    data: data.slice(i * size, (i + 1) * size),
  };
}

/** A folder of golden values. */
export class Fixture {
  /** Where it is. */
  readonly folder: string;
  readonly #golden = new Map<string, Golden>();

  constructor(folder: string) {
    this.folder = folder;
  }

  /** A path inside the folder. */
  path(...names: string[]): string {
    return joinPath(this.folder, ...names);
  }

  /** Whether a file or folder is there. */
  has(path: string): Promise<boolean> {
    return exists(this.path(path));
  }

  /** Names inside a subfolder, sorted; none if it is not there. */
  async list(path = ""): Promise<string[]> {
    const names: string[] = [];
    if (path !== "" && !await this.has(path)) return names;
    for await (const entry of Deno.readDir(this.path(path))) {
      names.push(entry.name);
    }
    return names.sort();
  }

  /** A JSON document, Python's bare infinities included. */
  async json<T>(path: string): Promise<T> {
    return parseJson(await readText(this.path(path)), path) as T;
  }

  /** A safetensors file, read whole. */
  async golden(path: string): Promise<Golden> {
    const known = this.#golden.get(path);
    if (known) return known;
    const file = await openSafetensors(this.path(path));
    try {
      const raw = new Map<string, RawTensor>();
      for (const name of file.entries.keys()) {
        raw.set(name, await file.read(name));
      }
      const golden = new Golden(path, raw, file.metadata);
      this.#golden.set(path, golden);
      return golden;
    } finally {
      file.close();
    }
  }

  /** The files read so far. */
  get opened(): readonly Golden[] {
    return [...this.#golden.values()];
  }
}

/** The model folder: the one in diffusers layout. */
export async function findModel(fixture: Fixture): Promise<string> {
  const names = await fixture.list();
  const found: string[] = [];
  for (const name of names) {
    if (await fixture.has(`${name}/unet/config.json`)) found.push(name);
  }
  const [model] = found.sort((a, b) =>
    Number(b.startsWith("tiny-sd")) - Number(a.startsWith("tiny-sd"))
  );
  if (model === undefined) {
    throw cannot(
      `verify ${fixture.folder}`,
      "a model in diffusers layout (a folder with unet/config.json)",
      names.join(", ") || "nothing",
    );
  }
  return model;
}
