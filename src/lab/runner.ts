/**
 * Runners compute specs: in this thread, in local workers, or not at all.
 *
 * @module
 */
import type { BackendChoice } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { createPool } from "../core/pool.ts";
import type { Art } from "../micro/art.ts";
import { type Folders, openBench, type Tell } from "./run.ts";
import type { LabSpec } from "./specs.ts";
import type { LabHandlers, SpecProgress, WorkerInit } from "./worker.ts";

/** Computes specs. */
export interface Runner extends Disposable {
  /** Number of workers; 0: this thread. */
  readonly workers: number;
  /**
   * Computes a spec; its result is in the store afterwards. It may be called
   * before earlier specs are done.
   *
   * @param spec The spec.
   * @param tell Called as it goes.
   */
  run(spec: LabSpec, tell: Tell): Promise<void>;
}

/**
 * A runner in this thread, on the current tfjs backend, one spec at a time. The
 * first failure stops it.
 *
 * @param folders Models and store.
 * @param art Loaded art. @default read when needed
 * @throws If the base model is missing, truncated or misshapen.
 */
export async function inPlace(folders: Folders, art?: Art): Promise<Runner> {
  const bench = await openBench(folders, art);
  let last: Promise<void> = Promise.resolve();
  return {
    workers: 0,
    run: (spec, tell) => last = last.then(() => bench.run(spec, tell)),
    [Symbol.dispose]: () => bench[Symbol.dispose](),
  };
}

/**
 * A runner of workers on this machine, each with its own tfjs.
 *
 * @param folders Models and store.
 * @param backend Backend of the workers.
 * @param workers How many, at least 1.
 * @throws If the base model is missing, truncated or misshapen.
 */
export async function localPool(
  folders: Folders,
  backend: BackendChoice,
  workers: number,
): Promise<Runner> {
  const listeners = new Map<number, Tell>();
  let jobs = 0;
  const pool = await createPool<LabHandlers, SpecProgress>({
    workers,
    module: new URL("./worker.ts", import.meta.url),
    init: { ...folders, backend } satisfies WorkerInit,
    onEvent: ({ job, done, total }) => listeners.get(job)?.(done, total),
  });
  return {
    workers,
    async run(spec, tell) {
      const job = jobs++;
      listeners.set(job, tell);
      try {
        await pool.run("run", { job, spec });
      } finally {
        listeners.delete(job);
      }
    },
    [Symbol.dispose]: () => pool.close(),
  };
}

/** The error that {@linkcode nowhere} throws. */
export class NotInStore extends Error {
  /** Says which kind of spec is not done. */
  constructor({ kind }: LabSpec) {
    super(cannot("read results", "all of them in the store", kind).message);
    this.name = "NotInStore";
  }
}

/** A runner that refuses all work: only results of the store are read. */
export const nowhere: Runner = {
  workers: 0,
  run: (spec) => Promise.reject(new NotInStore(spec)),
  [Symbol.dispose]: () => {},
};
