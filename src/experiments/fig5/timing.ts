/**
 * Time of pictures with regions against that of plain pictures.
 *
 * @module
 */
import { parseLayout, resolveLayout } from "../../diffusion/layout.ts";
import { type PictureTime, timeInTurns } from "../../diffusion/timing.ts";
import { median } from "../../evaluation/statistics.ts";
import type { Lab } from "../../lab/lab.ts";
import { withModel } from "../../lab/model_ref.ts";
import type { ModelRef } from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import { SCENE_BACKGROUNDS } from "../../micro/group_scene.ts";
import { disposeModel, loadModel } from "../../models/model.ts";
import type { ExperimentPreset } from "../presets.ts";
import { classOf, type PhraseOf, sceneLayout } from "./scenes.ts";
import type { RegionTiming, TimedPart } from "./table.ts";

/** What is timed. */
interface TimingPlan {
  readonly concepts: readonly string[];
  readonly column: number;
  readonly settings: ExperimentPreset;
}

/** Pairs of pictures that are timed, the first not counted. */
const TIMED_PAIRS = 4;

/**
 * Times whole pictures of the experiment's layouts, one to four regions, each
 * against the plain picture of the same size, drawn in turns.
 *
 * @param lab The lab.
 * @param plan Concepts, columns and sampling.
 * @param ref The fused model. @default the base model
 * @param fusedPhrase How concepts stand in prompts of the fused model.
 */
export async function timeRegions(
  lab: Lab,
  { concepts, column, settings }: TimingPlan,
  ref: ModelRef = { type: "base" },
  fusedPhrase: PhraseOf,
): Promise<RegionTiming[]> {
  // The base knows class words only.
  const phrase = ref.type === "base" ? classOf : fusedPhrase;
  const [{ word: background, phrases: [where] }] = SCENE_BACKGROUNDS;
  const base = await loadModel(lab.folders.model);
  try {
    return await withModel(base, lab.folders.store, ref, async (model) => {
      const timings: RegionTiming[] = [];
      for (const regions of [1, 2, 3, 4]) {
        // With few concepts some come twice: time does not depend on them.
        const own = Array.from(
          { length: regions },
          (_, at) => identityOf(concepts[at % concepts.length]),
        );
        const scene = { concepts: own, background, where, scale: 1, column };
        const layouts = await Promise.all(
          (["plain", "regional"] as const).map((way) =>
            resolveLayout(
              parseLayout(sceneLayout(scene, way, phrase, settings)),
            )
          ),
        );
        const pairs: PictureTime[][] = [];
        for (let pair = 0; pair < TIMED_PAIRS; pair++) {
          pairs.push(await timeInTurns(model, layouts));
        }
        timings.push({
          regions,
          step: timedPart(pairs.slice(1), ({ steps }) => steps),
          picture: timedPart(pairs.slice(1), ({ whole }) => [whole]),
        });
      }
      return timings;
    });
  } finally {
    disposeModel(base);
  }
}

/** Medians over pairs of a plain and a regional picture. */
function timedPart(
  pairs: readonly (readonly PictureTime[])[],
  times: (picture: PictureTime) => readonly number[],
): TimedPart {
  return {
    seconds: median(pairs.flatMap(([, regional]) => times(regional))),
    ratio: median(
      pairs.flatMap(([plain, regional]) =>
        times(regional).map((own, at) => own / times(plain)[at])
      ),
    ),
  };
}
