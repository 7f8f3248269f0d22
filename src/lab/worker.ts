/**
 * The worker side of the local pool; each worker has its own backend and
 * models.
 *
 * @module
 */
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { type JobContext, serve } from "../core/pool.ts";
import { type Bench, type Folders, openBench } from "./run.ts";
import type { LabSpec } from "./specs.ts";

let bench: Bench | undefined;

/** First message to a worker. */
export interface WorkerInit extends Folders {
  readonly backend: BackendChoice;
}

/** A spec and the number under which its progress is told. */
export interface WorkerJob {
  readonly job: number;
  readonly spec: LabSpec;
}

/** Progress of a job: from 0 to `total`. */
export interface SpecProgress {
  readonly job: number;
  readonly done: number;
  readonly total: number;
}

const handlers = {
  async init({ backend, ...folders }: WorkerInit): Promise<void> {
    await selectBackend(backend);
    bench = await openBench(folders);
  },
  async run(
    { job, spec }: WorkerJob,
    { emit }: JobContext<SpecProgress>,
  ): Promise<void> {
    await bench!.run(spec, (done, total) => emit({ job, done, total }));
  },
};

/** The functions of this worker. */
export type LabHandlers = typeof handlers;

serve(handlers);
