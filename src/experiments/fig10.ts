/**
 * The paper's Fig 10, the limits of regional sampling: attributes that leak
 * into the neighbour's region, without and with negative prompts; and small
 * regions, at several resolutions.
 *
 * @module
 */
import { listOf, number, whole } from "../core/options.ts";
import { actingSites } from "../diffusion/region_sites.ts";
import type { Box } from "../diffusion/regions.ts";
import { mean } from "../evaluation/statistics.ts";
import type { Lab } from "../lab/lab.ts";
import type { LayoutInput } from "../diffusion/layout.ts";
import {
  figurePart,
  type Report,
  type ReportPart,
  tablePart,
} from "../report/document.ts";
import { decimal } from "../report/format.ts";
import { type Table, tableOf } from "../report/table.ts";
import {
  boxAlignment,
  checkPairs,
  drawLayouts,
  type PairAlignment,
  pairAlignment,
  pairRegions,
  WIDE,
} from "./boxes.ts";
import { experiment, type Outcome, type Plan } from "./experiment.ts";
import { TEST_CONCEPTS } from "./presets.ts";
import {
  CONCEPTS,
  phraseOf,
  type Subject,
  subjects,
  training,
} from "./subjects.ts";

const OPTIONS = {
  concepts: {
    type: CONCEPTS,
    default: TEST_CONCEPTS.slice(0, 4),
    help: "concepts that are fused, and drawn in pairs of neighbours",
  },
  sides: {
    type: listOf(number({ least: 0.1, most: 1 })),
    default: [0.35, 0.5, 0.7, 0.9],
    help: "sides of a region, as shares of the picture's",
  },
  sizes: {
    type: listOf(whole({ least: 64, most: 256 })),
    default: [64, 96, 128],
    help: "sides of pictures in pixels, with the smallest region",
  },
  pictures: {
    type: whole({ least: 1, most: 40 }),
    default: 8,
    help: "pictures per layout",
  },
} as const;

type Fig10Plan = Plan<typeof OPTIONS>;

/** A layout and the scores of its regions; means over concepts and pictures. */
export interface Fig10Row {
  /**
   * Which limit: leakage between neighbours, side of the region, pixels of the
   * picture.
   */
  readonly limit: "leakage" | "side" | "pixels";
  /** What is varied: `plain` or `negative`, the side, the pixels. */
  readonly value: string | number;
  /** Masked image alignment of a region with its own concept. */
  readonly own: number;
  /** The same with its neighbour's; null where there is none. */
  readonly other: number | null;
}

/** The numbers of the figure. */
export interface Fig10Numbers {
  /** A row per layout. */
  readonly rows: readonly Fig10Row[];
}

/** A region in the middle of the lower edge, where objects stand. */
function standing(side: number): Box {
  const left = (1 - side) / 2;
  const bottom = Math.min(1, 0.95 + side / 20);
  return { top: bottom - side, left, bottom, right: left + side };
}

/** Trains, fuses, draws and scores. */
async function limits(
  lab: Lab,
  plan: Fig10Plan,
): Promise<Outcome<Fig10Numbers>> {
  const { settings, sides, sizes, pictures } = plan;
  const { sampling, gradient } = settings;
  // A size that the model cannot draw is refused before training.
  for (const width of sizes) {
    const size = { width, height: width };
    await actingSites(lab.folders.model, { prompt: "grass", size });
  }
  const all = await subjects(lab, plan.concepts, 1, sampling);
  const trained = await lab.train(
    all.map((one) => training(settings, one, "edlora", 0)),
  );
  const [{ model }] = await lab.fuse([{
    concepts: trained.map(({ model }) => model.id),
    how: { type: "gradient", settings: gradient },
    seed: 0,
  }]);
  // The noise depends only on the concepts in the picture.
  const draw = async (
    who: readonly Subject[],
    layout: Pick<LayoutInput, "size" | "regions">,
  ): Promise<string[]> => {
    const noise = ["fig10", ...who.map(({ name }) => name)];
    const layouts = [{ prompt: "grass", ...layout }];
    return (await drawLayouts(lab, model, sampling, layouts, noise, pictures))
      .flat();
  };
  const words = (one: Subject) => `a ${phraseOf(settings, "edlora", one)}`;
  const rows: Fig10Row[] = [];
  const shown: { label: string; images: string[] }[] = [];
  const pairs = all.slice(1).map((right, i) => [all[i], right] as const);
  for (const value of ["plain", "negative"] as const) {
    const found: PairAlignment[] = [];
    for (const pair of pairs) {
      const images = await draw(pair, {
        size: WIDE,
        regions: pairRegions(
          [words(pair[0]), words(pair[1])],
          value === "negative",
        ),
      });
      found.push(await pairAlignment(lab, images, pair));
      shown.push({
        label: `${value}: ${pair.map(({ name }) => name).join(" + ")}`,
        images,
      });
    }
    const own = mean(found.map((one) => one.own));
    const other = mean(found.map((one) => one.other));
    rows.push({ limit: "leakage", value, own, other });
  }
  // The smallest side at the fewest pixels is in both series.
  const known = new Map<string, number>();
  const alone = async (side: number, pixels: number): Promise<number> => {
    const label = `side ${side}, ${pixels} pixels`;
    const before = known.get(label);
    if (before !== undefined) return before;
    const values: number[] = [];
    for (const one of all) {
      const box = standing(side);
      const images = await draw([one], {
        size: { width: pixels, height: pixels },
        regions: [{ box, prompt: `${words(one)} on grass` }],
      });
      const [[own]] = await boxAlignment(lab, images, [box], [one]);
      values.push(own);
      if (one !== all[0]) continue;
      shown.push({ label, images });
    }
    known.set(label, mean(values));
    return mean(values);
  };
  const none = { other: null };
  for (const value of sides) {
    const own = await alone(value, Math.min(...sizes));
    rows.push({ limit: "side", value, own, ...none });
  }
  for (const value of sizes) {
    const own = await alone(Math.min(...sides), value);
    rows.push({ limit: "pixels", value, own, ...none });
  }
  const sheet: ReportPart = {
    ...{ type: "pictures", name: "fig10", title: "The first pictures" },
    sheet: {
      columns: [1, 2, 3, 4].slice(0, pictures).map(String),
      rows: await Promise.all(shown.map(async ({ label, images }) => ({
        label,
        cells: await Promise.all(
          images.slice(0, 4).map((id) => lab.picture(id)),
        ),
      }))),
    },
  };
  return { data: { rows }, report: fig10Report({ rows }, sheet) };
}

/**
 * Every layout, as a table.
 *
 * @param numbers The numbers.
 */
export function fig10Table({ rows }: Fig10Numbers): Table {
  return tableOf(rows, [
    ["limit", ({ limit }) => limit],
    ["", ({ value }) => String(value)],
    ["own concept", ({ own }) => decimal(own)],
    ["the neighbour's", ({ other }) => decimal(other)],
  ]);
}

/**
 * The whole report.
 *
 * @param numbers The numbers.
 * @param sheet Pictures; absent for stored numbers.
 */
export function fig10Report(
  numbers: Fig10Numbers,
  sheet?: ReportPart,
): Report {
  const of = (limit: Fig10Row["limit"]) =>
    numbers.rows.filter((row) => row.limit === limit);
  const line = (limit: "side" | "pixels", xTitle: string) =>
    figurePart(limit, {
      title: `A region's own concept against ${xTitle}`,
      ...{ xTitle, yTitle: "masked image alignment", legend: false },
      series: [{
        ...{ name: "own concept", as: "lines+markers" },
        x: of(limit).map(({ value }) => value),
        y: of(limit).map(({ own }) => own),
      }],
    });
  return {
    name: "fig10",
    title: "limits: leakage, small regions, pixels",
    lead: ["Masked image alignment of a region; all concepts in one model."],
    parts: [
      tablePart(fig10Table(numbers)),
      line("side", "the region's side"),
      line("pixels", "the picture's side in pixels"),
      ...(sheet ? [sheet] : []),
    ],
  };
}

/** The limits of regional sampling. */
export const fig10 = experiment({
  name: "fig10",
  summary: "The paper's Fig 10: attribute leakage, small regions, resolution",
  about: `Trains concepts as ED-LoRA, fuses them by gradient, and draws three
sets: pairs of concepts in regions, without and with the neighbour's words as
negative prompt; one concept in regions of several sizes; the smallest of these
regions in larger pictures.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 2 pictures: smoke test, no conclusion",
      plan: {
        concepts: TEST_CONCEPTS.slice(0, 2),
        ...{ sides: [0.35, 0.9], sizes: [64, 96], pictures: 2 },
      },
    },
  },
  check: ({ concepts }) => checkPairs(concepts),
  run: limits,
});
