/**
 * What regions cost: pictures of the experiment's layouts, timed against plain
 * pictures of the same size.
 *
 * @module
 */
import {
  drawLayout,
  parseLayout,
  type ResolvedLayout,
  resolveLayout,
} from "../../diffusion/layout.ts";
import { median } from "../../evaluation/statistics.ts";
import { withModel } from "../../lab/model_ref.ts";
import type { ModelRef } from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import { disposeModel, loadModel, type Model } from "../../models/model.ts";
import type { Lab } from "../../lab/lab.ts";
import type { ExperimentPreset } from "../presets.ts";
import {
  classOf,
  type PhraseOf,
  type Scene,
  SCENE_BACKGROUNDS,
  sceneLayout,
} from "./scenes.ts";

/** A time with regions, and against the same without. */
export interface TimedPart {
  /** Median seconds with regions. */
  readonly seconds: number;
  /**
   * Median of the ratios to the same part of a plain picture of the same size,
   * drawn in turns: whatever else the machine does slows both.
   */
  readonly ratio: number;
}

/** Times of the experiment's layout with a number of regions. */
export interface RegionTiming {
  /** Number of regions. */
  readonly regions: number;
  /** One sampling step. */
  readonly step: TimedPart;
  /** A whole picture: prompts and regions prepared, all steps, decoded. */
  readonly picture: TimedPart;
}

/** Pairs of pictures that are timed, the first not counted. */
const TIMED_PAIRS = 4;

/** Numbers of regions that are timed. */
const TIMED_REGIONS = [1, 2, 3, 4] as const;

/**
 * Times whole pictures of the experiment's layouts, one to four regions, each
 * against the plain picture of the same size; the two are drawn in turns, step
 * by step.
 *
 * @param lab The lab.
 * @param ref The model: a fused one, or the base, which knows class words only.
 * @param from Concepts of the layouts, how they stand in prompts, settings.
 */
export async function timeRegions(
  lab: Lab,
  ref: ModelRef,
  from: {
    readonly concepts: readonly string[];
    readonly column: number;
    readonly settings: ExperimentPreset;
    readonly phrase: PhraseOf;
  },
): Promise<RegionTiming[]> {
  const { concepts, column, settings } = from;
  const phrase = ref.type === "base" ? classOf : from.phrase;
  const base = await loadModel(lab.folders.model);
  try {
    return await withModel(base, lab.folders.store, ref, async (model) => {
      const timings: RegionTiming[] = [];
      for (const regions of TIMED_REGIONS) {
        const scene: Scene = {
          // With few concepts some come twice: time does not depend on them.
          concepts: Array.from(
            { length: regions },
            (_, at) => identityOf(concepts[at % concepts.length]),
          ),
          background: SCENE_BACKGROUNDS[0].word,
          where: SCENE_BACKGROUNDS[0].phrases[0],
          scale: 1,
          column,
        };
        const resolve = (way: "plain" | "regional") =>
          resolveLayout(parseLayout(sceneLayout(scene, way, phrase, settings)));
        const layouts = [await resolve("plain"), await resolve("regional")];
        const pairs: PictureTime[][] = [];
        for (let pair = 0; pair < TIMED_PAIRS; pair++) {
          pairs.push(await timeInTurns(model, layouts));
        }
        timings.push({ regions, ...timingOf(pairs.slice(1)) });
      }
      return timings;
    });
  } finally {
    disposeModel(base);
  }
}

/** Medians over pairs of a plain and a regional picture. */
function timingOf(
  pairs: readonly (readonly PictureTime[])[],
): Omit<RegionTiming, "regions"> {
  const part = (
    times: (picture: PictureTime) => readonly number[],
  ): TimedPart => ({
    seconds: median(pairs.flatMap(([, regional]) => times(regional))),
    ratio: median(
      pairs.flatMap(([plain, regional]) =>
        times(regional).map((own, at) => own / times(plain)[at])
      ),
    ),
  });
  return {
    step: part(({ steps }) => steps),
    picture: part(({ whole }) => [whole]),
  };
}

/** Seconds of one picture. */
interface PictureTime {
  /** Its sampling steps; not the first, in which prompts are read. */
  readonly steps: readonly number[];
  /** All of it. */
  readonly whole: number;
}

/** Draws one picture of each layout, all step by step in turns. */
async function timeInTurns(
  model: Model,
  layouts: readonly ResolvedLayout[],
): Promise<PictureTime[]> {
  const runs = layouts.map((layout) => timedPicture(model, layout));
  const times: PictureTime[] = [];
  try {
    while (times.length < runs.length) {
      for (const run of runs) {
        const next = await run.next();
        if (next.done) times.push(next.value);
      }
    }
  } finally {
    for (const run of runs) await run.return({ steps: [], whole: 0 });
  }
  return times;
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
