/**
 * The worker side of experiments: a workshop on a backend of its own.
 *
 * @module
 */
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { type JobContext, serve } from "../core/pool.ts";
import type { Piece } from "./pieces.ts";
import {
  openWorkshop,
  type PieceProgress,
  type Workshop,
  type WorkshopInit,
} from "./workshop.ts";

let workshop: Workshop | undefined;

/** What is posted to a worker first. */
export interface WorkerInit extends WorkshopInit {
  readonly backend: BackendChoice;
}

/** A piece and the name under which its progress is told. */
export interface WorkerJob {
  readonly id: string;
  readonly piece: Piece;
}

const handlers = {
  async init({ backend, ...init }: WorkerInit): Promise<void> {
    await selectBackend(backend);
    workshop = await openWorkshop(init);
  },
  async run(
    { id, piece }: WorkerJob,
    { emit }: JobContext<PieceProgress>,
  ): Promise<void> {
    await workshop!.run(piece, (done, total) => {
      emit({ piece: id, done, total });
    });
  },
};

/** The functions of this worker. */
export type ExperimentHandlers = typeof handlers;

serve(handlers);
