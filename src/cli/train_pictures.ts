/**
 * Pictures that a concept draws while it is trained, and a report of them.
 *
 * @module
 */
import { fold, key } from "../core/random.ts";
import { fillCaption } from "../customize/captions.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import { conceptOf, type TrainRecord } from "../customize/train.ts";
import { generate } from "../diffusion/pipeline.ts";
import { joinPath, listFiles, readBytes, writeAtomic } from "../io/files.ts";
import { decodePng, encodePng } from "../io/png.ts";
import type { Model } from "../models/model.ts";
import { figurePart, writeReport } from "../report/document.ts";

/** What is drawn of a run, and when. */
export interface Validation {
  /** Prompts, `{}` for the concept. */
  readonly prompts: readonly string[];
  /** Steps between two drawings; the last step is one, too. */
  readonly every: number;
  /** Where pictures and report go. */
  readonly folder: string;
  /** Seed of the noise, the same each time. */
  readonly seed: number;
  /** Side of the pictures in pixels. */
  readonly size: number;
  /** How memory is used. */
  readonly memory: "high" | "low";
}

/** Name of a picture after so many steps. */
function nameOf(step: number, prompt: number): string {
  return `${String(step).padStart(5, "0")}-${prompt}.png`;
}

/** Step and prompt of a name. */
function placeOf(name: string): readonly [number, number] | undefined {
  const match = /^(\d{5,})-(\d+)\.png$/.exec(name);
  return match ? [Number(match[1]), Number(match[2])] : undefined;
}

/** Draws the pictures of a run. */
export interface RunPictures {
  /**
   * Draws what the concept is before its training, or keeps what a stopped run
   * has drawn.
   *
   * @param step Steps that are done.
   */
  begin(step: number): Promise<void>;
  /** Takes a step; draws where it is time. */
  add(record: TrainRecord): Promise<void>;
}

/**
 * Draws pictures of a run into its folder, with a report of loss and pictures.
 * Training does not depend on it: it has randomness of its own.
 *
 * @param model The base model.
 * @param start The concept as its training starts.
 * @param validation What is drawn, and when.
 */
export function runPictures(
  model: Model,
  start: Concept,
  validation: Validation,
): RunPictures {
  const { prompts, every, folder, size, seed } = validation;
  const losses: { step: number; loss: number }[] = [];
  const draw = async (step: number, concept: Concept) => {
    const drawing = attachConcept(model, concept);
    try {
      const pictures = await generate(drawing, {
        prompts: prompts.map((one) => fillCaption(one, concept.phrase)),
        // Row by row the same noise at every step.
        key: prompts.map((_, i) => fold(key(seed), "validation", i)),
        memory: validation.memory,
        width: size,
        height: size,
      });
      for (const [i, picture] of pictures.entries()) {
        const path = joinPath(folder, nameOf(step, i));
        await writeAtomic(path, encodePng(picture));
      }
    } finally {
      releaseTokens(drawing, model);
    }
    await report(validation, start, losses);
  };
  return {
    async begin(step) {
      const drawn = await listFiles(folder).catch(() => []);
      for (const name of drawn) {
        const place = placeOf(name);
        // Of another run, or of steps that come once more.
        if (place && (step === 0 || place[0] > step)) {
          await Deno.remove(joinPath(folder, name));
        }
      }
      if (step === 0) await draw(0, start);
    },
    async add({ step, total, loss, state }) {
      const done = step + 1;
      losses.push({ step: done, loss });
      if (done % every !== 0 && done !== total) return;
      const concept = conceptOf(start, state);
      await draw(done, concept).finally(() => disposeConcept(concept));
    },
  };
}

/** Writes what there is so far. */
async function report(
  { folder, prompts }: Validation,
  { name }: Concept,
  losses: readonly { readonly step: number; readonly loss: number }[],
): Promise<void> {
  const places = (await listFiles(folder)).flatMap((file) => {
    const place = placeOf(file);
    return place && place[1] < prompts.length ? [place] : [];
  });
  const steps = [...new Set(places.map(([step]) => step))]
    .toSorted((a, b) => a - b);
  const rows = await Promise.all(prompts.map(async (prompt, i) => ({
    label: fillCaption(prompt, name),
    cells: await Promise.all(
      steps.map(async (step) =>
        decodePng(await readBytes(joinPath(folder, nameOf(step, i))))
      ),
    ),
  })));
  const sheet = { columns: steps.map((step) => `${step} steps`), rows };
  await writeReport(folder, {
    name: "training",
    title: `training of ${name}`,
    lead: [
      "Each row has the same noise. The loss of a step depends on " +
      "its own pictures and noise levels: only the trend is meaningful.",
    ],
    parts: [
      { type: "pictures", name: "pictures", title: "Pictures", sheet },
      ...(losses.length > 0
        ? [figurePart("loss", {
          title: "Loss",
          ...{ xTitle: "step", legend: false },
          series: [{
            name: "loss",
            as: "lines",
            x: losses.map(({ step }) => step),
            y: losses.map(({ loss }) => loss),
          }],
        })]
        : []),
    ],
  }, { name, prompts, steps, losses });
}
