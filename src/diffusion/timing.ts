/**
 * What a layout costs: pictures of two layouts, timed against each other.
 *
 * @module
 */
import type { Model } from "../models/model.ts";
import { drawLayout, type ResolvedLayout } from "./layout.ts";

/** Seconds of one picture. */
export interface PictureTime {
  /** Its sampling steps; not the first, in which prompts are read. */
  readonly steps: readonly number[];
  /** All of it. */
  readonly whole: number;
}

/**
 * Draws one picture of each layout, all step by step in turns: whatever else the
 * machine does slows them all.
 *
 * @param model The model.
 * @param layouts The layouts.
 * @returns A time per layout.
 */
export async function timeInTurns(
  model: Model,
  layouts: readonly ResolvedLayout[],
): Promise<PictureTime[]> {
  const runs = layouts.map((layout) => timedPicture(model, layout));
  const times = new Map<number, PictureTime>();
  try {
    while (times.size < runs.length) {
      for (const [i, run] of runs.entries()) {
        if (times.has(i)) continue;
        const next = await run.next();
        if (next.done) times.set(i, next.value);
      }
    }
  } finally {
    for (const run of runs) await run.return({ steps: [], whole: 0 });
  }
  return runs.map((_, i) => times.get(i)!);
}

/** Draws one picture and stops after each step; only its own time counts. */
async function* timedPicture(
  model: Model,
  layout: ResolvedLayout,
): AsyncGenerator<void, PictureTime, void> {
  const parts: number[] = [];
  let before = performance.now();
  for await (const record of drawLayout(model, layout)) {
    // The numbers have to be there, not only to be on their way.
    await (record.type === "step" ? record.latent : record.images).data();
    parts.push((performance.now() - before) / 1000);
    if (record.type === "images") record.images.dispose();
    yield;
    before = performance.now();
  }
  const whole = parts.reduce((sum, part) => sum + part, 0);
  // The last part is decoding. A single step has to stand for itself.
  const steps = parts.slice(parts.length > 2 ? 1 : 0, -1);
  return { steps, whole };
}
