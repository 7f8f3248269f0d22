/**
 * Draws a layout's pictures, in place or on several cores.
 *
 * @module
 */
import type { BackendName } from "../core/backend.ts";
import { createPool, type Pool } from "../core/pool.ts";
import type { DrawHandlers } from "./draw_worker.ts";
import { layoutPictures } from "../diffusion/layout.ts";
import {
  type DrawingRequest,
  type DrawnPicture,
  type DrawnStep,
  openDrawing,
} from "./drawing.ts";
import { availableMemory, fittingWorkers, shares } from "./workers.ts";

/** Where pictures are drawn, and who hears of it. */
export interface DrawSettings {
  /** The backend in use, for workers. */
  readonly backend: BackendName;
  /** Workers; 0: in place on the current backend. */
  readonly workers: number;
  /**
   * Bytes of memory for all workers.
   *
   * @default what is free
   */
  readonly available?: number;
  /** Called with what a user should know. */
  readonly onNotice: (line: string) => void;
  /** Called after each step. */
  readonly onStep: (step: DrawnStep) => void;
  /** Called with each picture, not always in the order of their numbers. */
  readonly onPicture: (picture: DrawnPicture) => Promise<void>;
}

/**
 * Draws all pictures of a layout. They are the same whatever the number of
 * workers. Each worker holds a copy of model, concepts and networks; those whose
 * copies do not fit into memory are not used, and that is said.
 *
 * @param request What is drawn with what.
 * @param settings Where.
 * @throws As {@linkcode openDrawing}.
 */
export async function drawPictures(
  request: DrawingRequest,
  settings: DrawSettings,
): Promise<void> {
  const count = layoutPictures(request.layout);
  // A single picture is drawn sooner by who is there already.
  const workers = count > 1 ? Math.min(settings.workers, count) : 0;
  if (workers > 0) return await onWorkers(request, settings, workers);
  const drawing = await openDrawing(request);
  try {
    drawing.notices.forEach(settings.onNotice);
    const pictures = drawing.draw([0, count], settings.onStep);
    for await (const picture of pictures) await settings.onPicture(picture);
  } finally {
    drawing.dispose();
  }
}

async function onWorkers(
  request: DrawingRequest,
  { backend, available, onNotice, onStep, onPicture }: DrawSettings,
  asked: number,
): Promise<void> {
  using pool: Pool<DrawHandlers> = await createPool<DrawHandlers, DrawnStep>({
    workers: asked,
    module: new URL("./draw_worker.ts", import.meta.url),
    init: backend,
    onEvent: onStep,
  });
  // The first one downloads what is to be downloaded, finds what is wrong, and
  // tells what a copy takes.
  const free = available ?? availableMemory();
  const { notices, bytes } = await pool.run("open", request, { worker: 0 });
  notices.forEach(onNotice);
  const { workers, note } = fittingWorkers(asked, bytes, free);
  if (note) onNotice(note);
  const waiting = shares(
    layoutPictures(request.layout),
    workers,
    request.batch,
  );
  const serve = async (worker: number) => {
    if (worker > 0) await pool.run("open", request, { worker });
    for (let range = waiting.shift(); range; range = waiting.shift()) {
      const pictures = await pool.run("draw", range, { worker });
      for (const picture of pictures) await onPicture(picture);
    }
  };
  await Promise.all(Array.from({ length: workers }, (_, i) => serve(i)));
}

/**
 * Adds up how far drawing is, in steps of single pictures, whoever draws which
 * and however many at once.
 *
 * @param pictures Pictures in all.
 * @returns Takes a step that has ended; gives steps done and all steps.
 */
export function drawnSteps(
  pictures: number,
): (step: DrawnStep) => { done: number; total: number } {
  const batches = new Map<number, number>();
  return ({ first, count, index, total }) => {
    batches.set(first, count * (index + 1));
    const done = [...batches.values()].reduce((a, b) => a + b, 0);
    return { done, total: pictures * total };
  };
}
