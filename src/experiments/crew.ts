/**
 * Those who do the pieces: workers side by side, or this thread where the
 * backend cannot be shared (webgpu) or one worker is enough.
 *
 * @module
 */
import type { BackendChoice } from "../core/backend.ts";
import { createPool } from "../core/pool.ts";
import type { Piece } from "./pieces.ts";
import type { ExperimentHandlers, WorkerInit } from "./worker.ts";
import {
  isDone,
  openWorkshop,
  type PieceProgress,
  type WorkshopInit,
} from "./workshop.ts";

/** What is going on. */
export interface StageProgress {
  /** Name of the stage, such as `train`. */
  readonly stage: string;
  /** Units done, pieces found in the store included. */
  readonly done: number;
  /** Units in all. */
  readonly total: number;
  /** What is counted. */
  readonly unit: string;
}

/** A stage of work: pieces that do not need each other. */
export interface Stage {
  readonly name: string;
  readonly unit: string;
  readonly pieces: readonly Piece[];
  /** Units of a piece. */
  readonly size: (piece: Piece) => number;
}

/** A crew. */
export interface Crew extends Disposable {
  /** Number of workers; 0: this thread. */
  readonly workers: number;
  /**
   * Does all pieces that the store lacks.
   *
   * @param stage The pieces.
   * @returns Yields progress; returns how many pieces had to be done.
   */
  run(stage: Stage): AsyncGenerator<StageProgress, number, void>;
}

/**
 * Gathers a crew.
 *
 * @param init Folders of the workshop.
 * @param backend The backend of workers; in place, the current one is used.
 * @param workers Number of workers; 0: in place.
 */
export async function gatherCrew(
  init: WorkshopInit,
  backend: BackendChoice,
  workers: number,
): Promise<Crew> {
  let notify = (_: PieceProgress): void => {};
  if (workers === 0) {
    const workshop = await openWorkshop(init);
    return {
      workers,
      run: (stage) =>
        runStage(
          init.cache,
          stage,
          (listener) => notify = listener,
          async (jobs) => {
            for (const [id, piece] of jobs) {
              await workshop.run(piece, (done, total) =>
                notify({ piece: id, done, total }));
            }
          },
        ),
      [Symbol.dispose]: () => workshop[Symbol.dispose](),
    };
  }
  const pool = await createPool<ExperimentHandlers, PieceProgress>({
    workers,
    module: new URL("./worker.ts", import.meta.url),
    init: { ...init, backend } satisfies WorkerInit,
    onEvent: (event) => notify(event),
  });
  return {
    workers,
    run: (stage) =>
      runStage(
        init.cache,
        stage,
        (listener) => notify = listener,
        async (jobs) => {
          await pool.map("run", jobs.map(([id, piece]) => ({ id, piece })));
        },
      ),
    [Symbol.dispose]: () => pool.close(),
  };
}

/** Runs pieces and turns what they tell into progress of the stage. */
async function* runStage(
  cache: string,
  stage: Stage,
  listen: (listener: (event: PieceProgress) => void) => void,
  work: (jobs: readonly (readonly [string, Piece])[]) => Promise<void>,
): AsyncGenerator<StageProgress, number, void> {
  const { name, unit, pieces, size } = stage;
  const total = pieces.reduce((sum, piece) => sum + size(piece), 0);
  const jobs: [string, Piece][] = [];
  let found = 0;
  for (const [i, piece] of pieces.entries()) {
    if (await isDone(cache, piece)) found += size(piece);
    else jobs.push([String(i), piece]);
  }
  const progress = (): StageProgress => ({
    stage: name,
    unit,
    total,
    done: Math.min(
      total,
      Math.floor(found + [...shares.values()].reduce((a, b) => a + b, 0)),
    ),
  });
  const shares = new Map<string, number>();
  yield progress();
  if (jobs.length === 0) return 0;
  let wake = (): void => {};
  let finished = false;
  let failure: unknown;
  let fresh = false;
  listen(({ piece, done, total }) => {
    shares.set(piece, size(pieces[Number(piece)]) * done / total);
    fresh = true;
    wake();
  });
  const running = work(jobs).catch((error) => failure = error).then(() => {
    finished = true;
    wake();
  });
  while (!finished) {
    if (!fresh) await new Promise<void>((resolve) => wake = resolve);
    if (fresh) {
      fresh = false;
      yield progress();
    }
  }
  await running;
  if (failure) throw failure;
  yield { stage: name, unit, total, done: total };
  return jobs.length;
}
