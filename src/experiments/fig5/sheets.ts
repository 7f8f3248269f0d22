/**
 * Sheets of scenes: every arm on some of them, and the paper's Fig 5.
 *
 * @module
 */
import { resize } from "../../evaluation/preprocess.ts";
import type { Lab } from "../../lab/lab.ts";
import type { ReportPart } from "../../report/document.ts";
import type { RegionNumbers, RegionRow } from "./table.ts";

type Line = readonly [label: string, cells: readonly (RegionRow | undefined)[]];

/** The arms of Fig 5. */
const FIG_5 = ["real", "plain gradient", "regional gradient"];

/** Label of an arm, with the resolution if it is not the usual one. */
function nameOf({ arm, scale }: RegionRow): string {
  const short = arm.replace(/[.+-]/g, " ");
  return scale === 1 ? short : `${short}, ${64 * scale} pixels high`;
}

/**
 * The sheets of a report: one per number of concepts, and Fig 5 if its arms were
 * drawn.
 *
 * @param lab The lab that drew the pictures.
 * @param report The report.
 */
export async function regionSheets(
  lab: Lab,
  { rows }: Pick<RegionNumbers, "rows">,
): Promise<Extract<ReportPart, { type: "pictures" }>[]> {
  const scenes = Map.groupBy(
    rows.filter(({ picture }) => picture === 0),
    ({ concepts, background }) => `${concepts.join(" ")}, ${background}`,
  );
  const first = (n: number, most: number) =>
    [...scenes].filter(([, [row]]) => row.n === n).slice(0, most);
  const find = (own: readonly RegionRow[], name: string) =>
    own.find((row) => nameOf(row) === name);
  const counts = [...new Set(rows.map(({ n }) => n))];
  const sheets = counts.map((n) => {
    const shown = first(n, 4);
    const names = new Set(shown.flatMap(([, own]) => own.map(nameOf)));
    return sheetOf(
      lab,
      [`regions-${n}`, `${n} concepts, the same noise along a column`],
      shown.map(([, [{ concepts }]]) => concepts.join(" ")),
      [...names].map((name) => [name, shown.map(([, own]) => find(own, name))]),
    );
  });
  if (FIG_5.every((name) => find(rows, name))) {
    sheets.push(sheetOf(
      lab,
      ["fig5", "Plain prompt and regions (Fig 5)"],
      FIG_5,
      counts.flatMap((n) => first(n, 2))
        .map(([scene, own]) => [scene, FIG_5.map((name) => find(own, name))]),
    ));
  }
  return await Promise.all(sheets);
}

/**
 * Reads a sheet's pictures; the caption of each is the identity found in each
 * region.
 */
async function sheetOf(
  lab: Lab,
  [name, title]: readonly [string, string],
  columns: readonly string[],
  lines: readonly Line[],
): Promise<Extract<ReportPart, { type: "pictures" }>> {
  const rows = lines.map(async ([label, cells]) => ({
    label,
    cells: await Promise.all(cells.map(async (row) => {
      if (!row) return undefined;
      const image = await lab.picture(row.image);
      // Other resolutions of one scene are shown at one size.
      return resize(image, image.width / row.scale, image.height / row.scale);
    })),
    captions: cells.map((row) =>
      (row?.regions ?? []).map(({ label }) => label.replace("background", "-"))
        .join(", ")
    ),
  }));
  const sheet = { columns, rows: await Promise.all(rows), scale: 2 };
  return { type: "pictures", name, title, sheet };
}
