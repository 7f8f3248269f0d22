/**
 * Sheets of concepts' pictures: a prompt per row, an arm per column, the same
 * noise in every column.
 *
 * @module
 */
import type { Pixels } from "../io/png.ts";
import type { Lab } from "../lab/lab.ts";
import { conceptImage, REFERENCE_IMAGES } from "../micro/concepts.ts";
import { promptText } from "../micro/prompts.ts";
import type { Sheet } from "../report/grid.ts";
import type { Drawn } from "./scores.ts";
import type { Subject } from "./subjects.ts";

/** Pictures of one concept and prompt, the same noise in every arm. */
export interface PictureRow {
  /** The concept. */
  readonly subject: Subject;
  /** The prompt, with the proper name. */
  readonly text: string;
  /** Names of pictures in the store, by arm. */
  readonly images: ReadonlyMap<string, string>;
}

/**
 * Pictures of the first seed for a sheet.
 *
 * @param drawn What was drawn.
 * @param labelOf What an arm is called.
 * @param perConcept Prompts of each concept, from different groups.
 */
export function pictureRows<Arm>(
  drawn: readonly Drawn<Arm>[],
  labelOf: (arm: Arm) => string,
  perConcept: number,
): PictureRow[] {
  const first = drawn.filter(({ seed }) => seed === drawn[0].seed);
  const own = Map.groupBy(first, ({ subject }) => subject);
  return [...own].flatMap(([subject, cells]) => {
    const { prompts, name } = subject;
    const step = Math.max(1, Math.floor(prompts.length / perConcept));
    return prompts.flatMap((prompt, i) =>
      i % step !== 0 || i / step >= perConcept ? [] : [{
        subject,
        text: promptText(prompt, name),
        images: new Map(
          cells.map(({ arm, images }) => [labelOf(arm), images[i]]),
        ),
      }]
    );
  });
}

/**
 * A sheet of pictures, the concept's first reference in the first column.
 *
 * @param lab The lab.
 * @param rows From {@linkcode pictureRows}.
 */
export async function conceptSheet(
  lab: Lab,
  rows: readonly PictureRow[],
): Promise<Sheet> {
  const arms = [...new Set(rows.flatMap(({ images }) => [...images.keys()]))];
  return {
    columns: ["reference", ...arms],
    rows: await Promise.all(rows.map(async ({ subject, text, images }) => ({
      label: subject.name,
      note: text,
      cells: [
        ...await referencePictures(lab, subject, 1),
        ...await Promise.all(arms.map(async (arm) => {
          const id = images.get(arm);
          return id === undefined ? undefined : await lab.picture(id);
        })),
      ],
    }))),
  };
}

/**
 * References of a concept as pictures.
 *
 * @param lab The lab.
 * @param subject The concept.
 * @param count How many, from the first. @default all
 */
export async function referencePictures(
  lab: Lab,
  { name, references }: Pick<Subject, "name" | "references">,
  count = Infinity,
): Promise<Pixels[]> {
  if (references.of === "drawn") {
    return await Promise.all(
      references.pictures.slice(0, count)
        .map(({ image }) => lab.picture(image)),
    );
  }
  return Array.from({ length: Math.min(count, REFERENCE_IMAGES) }, (_, i) => {
    const { image, scene } = conceptImage(name, "reference", i, lab.art);
    const { side } = scene;
    return { width: side, height: side, channels: 3, data: image };
  });
}
