/**
 * The worker side of the local pool: models on a backend of its own.
 *
 * @module
 */
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { type JobContext, serve } from "../core/pool.ts";
import { type Bench, type Folders, openBench } from "./run.ts";
import type { LabSpec } from "./specs.ts";

let bench: Bench | undefined;

/** What is posted to a worker first. */
export interface WorkerInit extends Folders {
  readonly backend: BackendChoice;
}

/** A spec and the number under which its progress is told. */
export interface WorkerJob {
  readonly job: number;
  readonly spec: LabSpec;
}

/** How far a job is: from 0 to `total`. */
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
