/**
 * The worker side of `sample`: opens the drawing for itself, draws its share.
 *
 * @module
 */
import { type BackendName, selectBackend } from "../core/backend.ts";
import { type JobContext, type Moved, moved, serve } from "../core/pool.ts";
import {
  type Drawing,
  type DrawingRequest,
  type DrawnPicture,
  type DrawnStep,
  openDrawing,
} from "./drawing.ts";

let drawing: Drawing | undefined;

const handlers = {
  async init(backend: BackendName): Promise<void> {
    await selectBackend(backend);
  },
  async open(
    request: DrawingRequest,
  ): Promise<Pick<Drawing, "notices" | "bytes">> {
    drawing = await openDrawing(request);
    const { notices, bytes } = drawing;
    return { notices, bytes };
  },
  async draw(
    range: readonly [first: number, end: number],
    { emit }: JobContext<DrawnStep>,
  ): Promise<Moved<DrawnPicture[]>> {
    const pictures = await Array.fromAsync(drawing!.draw(range, emit));
    return moved(
      pictures,
      pictures.map(({ png }) => png.buffer as ArrayBuffer),
    );
  },
};

/** The functions of this worker. */
export type DrawHandlers = typeof handlers;

serve(handlers);
