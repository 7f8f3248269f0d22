/**
 * Measures several concepts in one picture: is each concept in its region, and
 * only there? Compares a plain prompt and regions on fused models, and adapters
 * that are not fused (the paper's Fig 5 and Fig 10 with numbers).
 *
 * @module
 */
import {
  listOf,
  number,
  oneOf,
  seedNumber,
  whole,
} from "../../core/options.ts";
import { actingSites } from "../../diffusion/region_sites.ts";
import { exists, joinPath } from "../../io/files.ts";
import type { Lab } from "../../lab/lab.ts";
import type { ComposeHow, Noise } from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import {
  captionOf,
  choices,
  REGION_EDGES,
  renderColumns,
  SCENE_BACKGROUNDS,
  sizeOf,
  sketchOfScene,
} from "../../micro/group_scene.ts";
import { experiment, type Outcome, type Plan } from "../experiment.ts";
import { TEST_CONCEPTS } from "../presets.ts";
import { IDENTITY, subjects, training } from "../subjects.ts";
import { refuseCutTexts } from "../texts.ts";
import { scoreScenes, windowsOf } from "./score.ts";
import {
  REGION_ARMS,
  REGION_FUSIONS,
  RENDERED_ARMS,
  sceneLayout,
} from "./scenes.ts";
import { regionSheets } from "./sheets.ts";
import { type RegionNumbers, regionsReport, summarise } from "./table.ts";

const OPTIONS = {
  concepts: {
    type: listOf(IDENTITY),
    default: TEST_CONCEPTS.slice(0, 5),
    help: "names; all are fused into one model",
  },
  counts: {
    type: listOf(whole({ least: 2 })),
    default: [2, 3, 4],
    help: "numbers of concepts in a picture",
  },
  sets: {
    type: whole({ least: 1 }),
    default: 5,
    help: "choices of concepts per number, at most",
  },
  backgrounds: {
    type: whole({ least: 1, most: SCENE_BACKGROUNDS.length }),
    default: 2,
    help: "backgrounds per choice",
  },
  pictures: { type: whole({ least: 1 }), default: 2, help: "per layout" },
  column: {
    type: whole({ least: 32, most: 64 }),
    default: 64,
    help: "width of a concept's column in pixels",
  },
  arms: {
    type: listOf(oneOf(REGION_ARMS)),
    default: REGION_ARMS,
    otherwise: "all",
    help: REGION_ARMS.join(", "),
  },
  scales: {
    type: listOf(number({ least: 1 }), true),
    default: [1.5, 2],
    help: "resolutions of the resolution study, factors of 64 pixels",
  },
  seed: { type: seedNumber, default: 0, help: "seed of training and noise" },
} as const;

/** What is run. */
export type RegionPlan = Plan<typeof OPTIONS>;

/** Arms that are also drawn at other resolutions. */
const RESOLUTION_ARMS = ["plain.gradient", "regional.gradient"];

/** Every scene in every arm; other resolutions of scenes with fewest concepts. */
function* cellsOf(plan: RegionPlan) {
  const { concepts, counts, sets, backgrounds, pictures, column } = plan;
  for (const n of counts) {
    const more = n === Math.min(...counts) ? plan.scales : [];
    for (const [set, names] of choices(concepts, n, sets).entries()) {
      for (let b = 0; b < backgrounds; b++) {
        const at = (set * backgrounds + b) % SCENE_BACKGROUNDS.length;
        const { word: background, phrases: [where] } = SCENE_BACKGROUNDS[at];
        // The same in every arm.
        const noise = Array.from(
          { length: pictures },
          (_, i): Noise => [plan.seed, "regions", ...names, background, i],
        );
        for (const scale of new Set([1, ...more])) {
          const own = names.map(identityOf);
          const scene = { concepts: own, background, where, scale, column };
          for (const arm of plan.arms) {
            if (scale !== 1 && !RESOLUTION_ARMS.includes(arm)) continue;
            const layout = RENDERED_ARMS.includes(arm)
              ? undefined
              : sceneLayout(scene, arm, plan.settings);
            yield { arm, scene, noise, layout };
          }
        }
      }
    }
  }
}

/** Trains, fuses, draws every scene in every arm, and scores the pictures. */
async function regions(
  lab: Lab,
  plan: RegionPlan,
): Promise<Outcome<RegionNumbers>> {
  const { concepts, settings, seed } = plan;
  const { sampling, gradient, textPrefix } = settings;
  const hasSketch = lab.folders.networks?.sketch !== undefined;
  const arms = plan.arms.filter((arm) => hasSketch || !arm.includes("sketch"));
  const cells = [...cellsOf({ ...plan, arms })];
  const drawn = cells.filter(({ layout }) => layout);
  const sizes = new Map(
    cells.map(({ scene }) => [JSON.stringify(sizeOf(scene)), scene]),
  );
  // Prompts that are too long and layouts that cannot be drawn are refused
  // before training.
  const captions = cells.map(({ scene }) => captionOf(scene, textPrefix));
  await refuseCutTexts(lab, drawn.map(({ layout }) => layout!), captions);
  const sites = await Promise.all([...sizes.values()].map(async (scene) => ({
    n: scene.concepts.length,
    scale: scene.scale,
    ...await actingSites(
      lab.folders.model,
      sceneLayout(scene, "regional", settings),
    ),
  })));

  const all = await subjects(lab, concepts, 1, sampling);
  const trained = await lab.train(
    all.map((one) => training(settings, one, "edlora", seed)),
  );
  const ids = trained.map(({ model }) => model.id);
  const lambda = 1 / concepts.length;
  // In the order of REGION_FUSIONS.
  const fused = await lab.fuse([
    { concepts: ids, how: { type: "weight", lambda }, seed },
    { concepts: ids, how: { type: "gradient", settings: gradient }, seed },
  ]);

  const composed = await lab.compose(drawn.map((cell) => {
    const { arm, scene, noise, layout } = cell;
    const [way, fusion] = arm.split(".");
    const model = fused[REGION_FUSIONS.indexOf(fusion)]?.model;
    const names = scene.concepts.map(({ name }) => name);
    return {
      model: model ?? { type: "base" },
      how: model ? "model" : way as ComposeHow,
      concepts: model ? [] : names.map((name) => ids[concepts.indexOf(name)]),
      layout: layout!,
      sketch: way === "regional+sketch" ? sketchOfScene(scene) : undefined,
      noise,
    };
  }));
  const pictures = await Promise.all(cells.map(async (cell) => {
    const { arm, scene, noise } = cell;
    const render = (own: Noise, i: number) =>
      lab.put(
        [arm, own, sizeOf(scene)],
        () => renderColumns(scene, i, lab.art, arm),
      );
    const images = composed[drawn.indexOf(cell)] ??
      await Promise.all(noise.map(render));
    return { arm, scene, images };
  }));
  const rows = await scoreScenes(lab, pictures, textPrefix);

  const data: RegionNumbers = {
    format: "mix-of-show regions 6",
    concepts,
    ...summarise(rows),
    rows,
    regions: { ...REGION_EDGES, sites },
    windows: windowsOf(plan.column),
    lambda,
  };
  return { data, report: regionsReport(data, await regionSheets(lab, data)) };
}

/** Several concepts in one picture, measured. */
export const fig5 = experiment({
  name: "regions",
  also: ["fig5"],
  summary: "Several concepts in one picture: identity per region, leakage",
  about:
    `Tests whether each of several concepts is in its region, and only there.
Trains and fuses concepts, draws them with a plain prompt, with regions, and with
adapters that are not fused, and scores every region with the evaluation CLIP.
Outlines need a sketch T2I-Adapter in the model's folder adapter/.`,
  notes: `Writes regions.json, .md, .html, regions-N.png (every arm, scenes of N
concepts) and fig5.png (rendered, plain prompt, regions). Below each picture is the
identity that the CLIP finds in each column. The default
plan takes about an hour and a half on two cores.`,
  options: OPTIONS,
  scales: {
    quick: {
      help: "2 concepts, 1 picture: smoke test",
      plan: {
        ...{ concepts: ["kuro", "momo"], counts: [2], scales: [] },
        ...{ sets: 1, backgrounds: 1, pictures: 1 },
      },
    },
  },
  async networks(_plan, model) {
    const sketch = joinPath(model, "adapter");
    const has = await exists(joinPath(sketch, "config.json"));
    return has ? { sketch } : {} as Record<string, string>;
  },
  check: ({ concepts, counts }) =>
    counts.forEach((n) => choices(concepts, n, 1)),
  run: regions,
});
