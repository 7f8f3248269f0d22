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
import { squarePixels } from "../micro/scenes.ts";
import type { ReportPart } from "../report/document.ts";
import type { Sheet } from "../report/grid.ts";
import type { Drawn } from "./scores.ts";
import type { Subject } from "./subjects.ts";

/**
 * A sheet of the first seed's pictures: a prompt per row, the concept's first
 * reference and an arm per column, the same noise in every column.
 *
 * @param lab The lab.
 * @param name Name of the picture file.
 * @param drawn The drawn pictures.
 * @param labelOf Name of an arm.
 * @param perConcept Prompts per concept, from different groups.
 */
export async function conceptPictures<Arm>(
  lab: Lab,
  name: string,
  drawn: readonly Drawn<Arm>[],
  labelOf: (arm: Arm) => string,
  perConcept: number,
): Promise<ReportPart> {
  const first = drawn.filter(({ seed }) => seed === drawn[0].seed);
  const arms = [...new Set(first.map(({ arm }) => labelOf(arm)))];
  const own = Map.groupBy(first, ({ subject }) => subject);
  const rows = [...own].flatMap(([subject, cells]) => {
    const { prompts } = subject;
    const step = Math.max(1, Math.floor(prompts.length / perConcept));
    const chosen = [...prompts.keys()].filter((i) => i % step === 0);
    return chosen.slice(0, perConcept).map((i) => ({ subject, cells, i }));
  });
  const sheet: Sheet = {
    columns: ["reference", ...arms],
    rows: await Promise.all(rows.map(async ({ subject, cells, i }) => ({
      label: subject.name,
      note: promptText(subject.prompts[i], subject.name),
      cells: [
        ...await referencePictures(lab, subject, 1),
        ...await Promise.all(arms.map(async (label) => {
          const cell = cells.find(({ arm }) => labelOf(arm) === label);
          return cell && await lab.picture(cell.images[i]);
        })),
      ],
    }))),
  };
  return { type: "pictures", name, title: "Same noise in every column", sheet };
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
    return squarePixels(scene.side, image);
  });
}
