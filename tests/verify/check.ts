/**
 * What a check is: it reads golden values, runs the library and yields one
 * line for each item it compared.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { disposeModel, loadModel, type Model } from "../../src/models/model.ts";
import { findModel, Fixture, type Values } from "./fixture.ts";

/** How an item came out. */
export type Status = "ok" | "FAIL" | "not covered";

/** One compared item. */
export interface Line {
  /** Names of folder, file and tensor, with slashes. */
  readonly name: string;
  readonly status: Status;
  /** Maximum absolute error, where numbers were compared. */
  readonly error?: number;
  /** What the error may be. */
  readonly tolerance?: number;
  /** Where the tolerance comes from, why it failed, why it is not covered. */
  readonly reason?: string;
}

/** How much an item may be off, and why. */
export interface Tolerance {
  readonly value: number;
  readonly source: string;
}

/** How many times the fixtures' own rounding error is accepted. */
export const FACTOR = 10;

/**
 * Rounding error of a forward pass in float32 relative to the standard
 * deviation of its output, used where the folder states none. The networks of
 * set A have 1.4e-6 (text), 2.9e-6 (UNet), 5.4e-6 (decoder), samplers 3e-6.
 */
export const RELATIVE = 3e-6;

/** A group of items. */
export interface Check {
  /** First part of the names of its lines. */
  readonly id: string;
  /** Files it needs, relative to the folder; without them it is not covered. */
  readonly files: readonly string[];
  /** Runs the library. */
  readonly run: (context: Context) => AsyncIterable<Line>;
}

/** Standard deviation of numbers. */
export function deviation(data: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += data[i];
  const mean = sum / data.length;
  let square = 0;
  for (let i = 0; i < data.length; i++) square += (data[i] - mean) ** 2;
  return Math.sqrt(square / data.length);
}

/** Root of the mean square of numbers. */
export function rootMeanSquare(data: ArrayLike<number>): number {
  let square = 0;
  for (let i = 0; i < data.length; i++) square += data[i] ** 2;
  return Math.sqrt(square / data.length);
}

/** Largest |a − b|; NaN counts as infinite. */
export function maximumError(
  a: ArrayLike<number>,
  b: ArrayLike<number>,
): number {
  if (a.length !== b.length) return Infinity;
  let worst = 0;
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], b[i])) continue;
    const error = Math.abs(a[i] - b[i]);
    if (!(error <= worst)) worst = Number.isNaN(error) ? Infinity : error;
  }
  return worst;
}

/** What checks share: the folder, its figures, the model it describes. */
export class Context {
  /** The folder. */
  readonly fixture: Fixture;
  /** Every number of the folder's facts_*.json and training.json, by path. */
  readonly figures: ReadonlyMap<string, number>;
  /** Folder of the model, relative. */
  readonly modelFolder: string;
  /** Files that were read by the library itself (weights, LoRAs). */
  readonly consumed: Set<string> = new Set();
  #model: Model | undefined;

  private constructor(
    fixture: Fixture,
    figures: ReadonlyMap<string, number>,
    modelFolder: string,
  ) {
    this.fixture = fixture;
    this.figures = figures;
    this.modelFolder = modelFolder;
  }

  /** Opens a folder. */
  static async open(folder: string): Promise<Context> {
    const fixture = new Fixture(folder);
    const figures = new Map<string, number>();
    const collect = (value: unknown, path: string) => {
      if (typeof value === "number") figures.set(path, value);
      else if (value !== null && typeof value === "object") {
        for (const [key, inner] of Object.entries(value)) {
          collect(inner, path === "" ? key : `${path}.${key}`);
        }
      }
    };
    for (const name of await fixture.list("expected")) {
      if (/^facts.*\.json$/.test(name)) {
        collect(await fixture.json(`expected/${name}`), "");
      }
    }
    if (await fixture.has("training/training.json")) {
      collect(await fixture.json("training/training.json"), "training");
    }
    return new Context(fixture, figures, await findModel(fixture));
  }

  /** The model of the folder; owned by this context. */
  async model(): Promise<Model> {
    return this.#model ??= await loadModel(
      this.fixture.path(this.modelFolder),
    );
  }

  /** Releases the model. */
  dispose(): void {
    if (this.#model) disposeModel(this.#model);
    this.#model = undefined;
  }

  /** The largest figure whose path matches, if any. */
  figure(pattern: RegExp): { value: number; name: string } | undefined {
    let best: { value: number; name: string } | undefined;
    for (const [name, value] of this.figures) {
      if (pattern.test(name) && Number.isFinite(value) && value >= 0) {
        if (!best || value > best.value) best = { value, name };
      }
    }
    return best;
  }

  /**
   * Tolerance of an output: ten times the folder's own figure, or where it has
   * none (or 0, which is no rounding error), ten times {@linkcode RELATIVE}
   * of the output's deviation.
   *
   * @param pattern Path of the figure.
   * @param expected The output.
   * @param factor Scale of this output against the one the figure is about.
   */
  tolerance(
    pattern: RegExp | undefined,
    expected: ArrayLike<number>,
    factor = 1,
  ): Tolerance {
    const figure = pattern && this.figure(pattern);
    if (figure && figure.value > 0) {
      return {
        value: FACTOR * figure.value * factor,
        source: `${FACTOR}× ${figure.name} ${figure.value.toExponential(2)}` +
          (factor === 1 ? "" : ` × ${factor.toPrecision(3)}`),
      };
    }
    return relative(expected);
  }
}

/** {@linkcode FACTOR} times {@linkcode RELATIVE} of an output's deviation. */
export function relative(
  expected: ArrayLike<number>,
  rounding = RELATIVE,
): Tolerance {
  const spread = Math.max(deviation(expected), 1e-30);
  return {
    value: FACTOR * rounding * spread,
    source: `${FACTOR}× ${rounding} of the deviation ${spread.toPrecision(3)}`,
  };
}

/** A line from a measured error. */
export function line(
  name: string,
  error: number,
  tolerance: Tolerance,
): Line {
  return {
    name,
    status: error <= tolerance.value ? "ok" : "FAIL",
    error,
    tolerance: tolerance.value,
    reason: tolerance.source,
  };
}

/** A line of something no part of the library does. */
export function notCovered(name: string, reason: string): Line {
  return { name, status: "not covered", reason };
}

/** A line for something that must be equal. */
export function exact(
  name: string,
  actual: unknown,
  expected: unknown,
): Line {
  const same = JSON.stringify(actual) === JSON.stringify(expected);
  return {
    name,
    status: same ? "ok" : "FAIL",
    error: same ? 0 : Infinity,
    tolerance: 0,
    reason: same
      ? "equal"
      : `expected ${short(expected)}, got ${short(actual)}`,
  };
}

function short(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 120 ? `${text.slice(0, 117)}…` : text;
}

/**
 * Compares a tensor with golden values and disposes it.
 *
 * @param name Name of the line.
 * @param actual Our value: [b, h, w, c] where the golden one is [b, c, h, w],
 * else in the same order.
 * @param expected The golden value.
 * @param tolerance How far it may be off.
 * @param layout `nhwc` if axes are to be moved.
 */
export async function compare(
  name: string,
  actual: tf.Tensor,
  expected: Values,
  tolerance: Tolerance,
  layout: "same" | "nhwc" = "same",
): Promise<Line> {
  const moved = layout === "nhwc" ? tf.transpose(actual, [0, 3, 1, 2]) : actual;
  try {
    if (!tf.util.arraysEqual(moved.shape, [...expected.shape])) {
      return {
        name,
        status: "FAIL",
        error: Infinity,
        tolerance: tolerance.value,
        reason: `expected shape [${expected.shape}], got [${moved.shape}]`,
      };
    }
    const data = await moved.data();
    return line(name, maximumError(data, expected.data), tolerance);
  } finally {
    moved.dispose();
    if (!actual.isDisposed) actual.dispose();
  }
}
