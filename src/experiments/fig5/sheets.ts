/**
 * Sheets of scenes: every arm on some scenes, and the paper's Figs 5 and 10.
 *
 * @module
 */
import { resize } from "../../evaluation/preprocess.ts";
import type { Lab } from "../../lab/lab.ts";
import type { ReportPart } from "../../report/document.ts";
import { REGION_SCORES, type RegionRow } from "./score.ts";
import { knowsPlaces, RESOLUTION_ARMS } from "./scenes.ts";
import type { RegionNumbers } from "./table.ts";

type Rows = readonly RegionRow[];

/** A sheet, before its pictures are read. */
interface Plan {
  readonly name: string;
  readonly title: string;
  readonly columns: readonly string[];
  readonly rows: readonly {
    readonly label: string;
    readonly cells: readonly (RegionRow | undefined)[];
  }[];
}

/** An arm's name in a sheet. */
function short(arm: string): string {
  return arm.replace(/[.+-]/g, " ");
}

/** Rows of one scene and noise each. */
function scenesOf(rows: Rows): Rows[] {
  const groups = Map.groupBy(
    rows,
    (row) => [...row.concepts, row.background, row.picture].join(" "),
  );
  return [...groups.values()];
}

/** Every arm on the first scenes of each number of concepts. */
function sceneSheets({ rows, arms }: RegionNumbers): Plan[] {
  const first = rows.filter(({ picture, scale }) =>
    picture === 0 && scale === 1
  );
  return [...Map.groupBy(first, ({ n }) => n)].map(([n, own]) => {
    const scenes = scenesOf(own).slice(0, 4);
    return {
      name: `regions-${n}`,
      title: `${n} concepts, the same noise along a column`,
      columns: scenes.map(([{ concepts }]) => concepts.join(" ")),
      rows: arms.map((arm) => ({
        label: short(arm),
        cells: scenes.map((rows) => rows.find((row) => row.arm === arm)),
      })),
    };
  });
}

/** Some arms on some scenes, a scene per row; none with one drawn arm. */
function paperSheet(
  { arms }: RegionNumbers,
  [name, title]: readonly [string, string],
  wanted: readonly string[],
  scenes: readonly Rows[],
): Plan[] {
  const shown = wanted.filter((arm) => arms.includes(arm));
  const drawn = shown.filter((arm) => arm !== "real");
  if (drawn.length < 2 || scenes.length === 0) return [];
  return [{
    ...{ name, title, columns: shown.map(short) },
    rows: scenes.map((rows) => ({
      label: `${rows[0].concepts.join(" ")}, ${rows[0].background}`,
      cells: shown.map((arm) => rows.find((row) => row.arm === arm)),
    })),
  }];
}

/** The paper's Figs 5 and 10, as far as their arms were drawn. */
function paperSheets(report: RegionNumbers): Plan[] {
  const { rows, arms } = report;
  const usual = scenesOf(rows.filter(({ scale }) => scale === 1));
  const leaked = (rows: Rows) => {
    const plain = rows.find(({ arm }) => arm === "plain.gradient");
    return plain ? REGION_SCORES.leakage.of(plain) + plain.n / 100 : 0;
  };
  // Where the plain prompt says no places, concepts elsewhere are no leakage.
  const told = usual.filter(([{ n }]) => knowsPlaces("plain.gradient", n));
  const pair = ["real", "plain.gradient", "regional.gradient"];
  const scales = [...new Set(rows.map(({ scale }) => scale))]
    .sort((a, b) => a - b);
  const scaled = scenesOf(rows)
    .filter((own) => own.some(({ scale }) => scale !== 1)).slice(0, 3);
  return [
    ...paperSheet(
      report,
      ["fig5", "Plain prompt and regions (Fig 5)"],
      pair,
      [...new Set(rows.map(({ n }) => n))].flatMap((n) =>
        usual.filter(([row]) => row.n === n && row.picture === 0).slice(0, 2)
      ),
    ),
    ...paperSheet(
      report,
      [
        "fig10-leakage",
        "Where concepts mix, and negative prompts (Fig 10)",
      ],
      [...pair, "regional+negative.gradient"],
      told.toSorted((a, b) => leaked(b) - leaked(a)).slice(0, 4),
    ),
    ...scaled.length === 0 ? [] : [{
      name: "fig10-resolution",
      title: "The same scenes at other resolutions (Fig 10)",
      columns: scales.map((scale) => `${64 * scale} pixels high`),
      rows: scaled.flatMap((own) =>
        RESOLUTION_ARMS.filter((arm) => arms.includes(arm)).map((arm) => ({
          label: `${own[0].concepts.join(" ")}, ${short(arm)}`,
          cells: scales.map((scale) =>
            own.find((row) => row.arm === arm && row.scale === scale)
          ),
        }))
      ),
    }],
  ];
}

/**
 * The sheets of a report: below each picture, the identity of each region.
 *
 * @param lab The lab that drew the pictures.
 * @param report The report.
 */
export async function regionSheets(
  lab: Lab,
  report: RegionNumbers,
): Promise<Extract<ReportPart, { type: "pictures" }>[]> {
  const read = async (row: RegionRow | undefined) => {
    if (!row) return undefined;
    const image = await lab.picture(row.image);
    // Other resolutions of one scene are shown at one size.
    return row.scale === 1
      ? image
      : resize(image, image.width / row.scale, image.height / row.scale);
  };
  const caption = (row: RegionRow | undefined) =>
    row?.regions.map(({ label }) => label === "background" ? "-" : label)
      .join(", ") ?? "";
  const plans = [...sceneSheets(report), ...paperSheets(report)];
  return await Promise.all(
    plans.map(async ({ name, title, columns, rows }) => ({
      ...{ type: "pictures" as const, name, title },
      sheet: {
        columns,
        scale: 2,
        rows: await Promise.all(rows.map(async ({ label, cells }) => ({
          label,
          cells: await Promise.all(cells.map(read)),
          captions: cells.map(caption),
        }))),
      },
    })),
  );
}
