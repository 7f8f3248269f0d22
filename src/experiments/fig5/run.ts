/**
 * Several concepts in one picture: is each in its place, and only there? For
 * two, three and four concepts; for a plain prompt and for regions on fused
 * models, and for adapters that are not fused (the paper's Fig 5 and Fig 10 with
 * numbers).
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import {
  flag,
  folder,
  listOf,
  number,
  oneOf,
  optionTable,
  parsed,
  whole,
} from "../../core/options.ts";
import type { LayoutInput } from "../../diffusion/layout.ts";
import { actingSites } from "../../diffusion/region_sites.ts";
import { exists, joinPath, readJson } from "../../io/files.ts";
import type { Lab } from "../../lab/lab.ts";
import type { ComposeHow, ModelRef, Noise } from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import {
  captionOf,
  choices,
  type GroupScene,
  REGION_EDGES,
  renderColumns,
  SCENE_BACKGROUNDS,
  sizeOf,
  sketchOfScene,
} from "../../micro/group_scene.ts";
import { downsampleFactor } from "../../models/autoencoder.ts";
import {
  parseAutoencoderConfig,
  parseUNetConfig,
} from "../../models/config.ts";
import { loadTokenizer, type Tokenizer } from "../../models/tokenizer.ts";
import { experiment, type Plan } from "../experiment.ts";
import { type ExperimentPreset, TEST_CONCEPTS } from "../presets.ts";
import { IDENTITY, phraseOf, subjects, training } from "../subjects.ts";
import {
  type ScenePictures,
  scoreScenes,
  WINDOW_STEP,
  windowShares,
} from "./score.ts";
import {
  classOf,
  COLUMN_WIDTHS,
  type PhraseOf,
  REGION_ARMS,
  REGION_FUSIONS,
  RENDERED_ARMS,
  RESOLUTION_ARMS,
  sceneLayout,
  type Way,
} from "./scenes.ts";
import { regionSheets } from "./sheets.ts";
import {
  type RegionNumbers,
  type RegionSites,
  regionsReport,
  summarise,
} from "./table.ts";
import { timeRegions } from "./timing.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
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
    type: count,
    default: 5,
    help: "choices of concepts per number, at most",
  },
  backgrounds: {
    type: whole({ least: 1, most: SCENE_BACKGROUNDS.length }),
    default: 2,
    help: "backgrounds per choice",
  },
  pictures: { type: count, default: 4, help: "pictures per layout" },
  column: {
    type: parsed("N", (what, option, found) => {
      const width = COLUMN_WIDTHS.find((one) => String(one) === found);
      if (width !== undefined) return width;
      throw cannot(what, `${option} ${COLUMN_WIDTHS.join(", ")}`, found);
    }),
    default: 64,
    help: "width of a concept's column in pixels: 32, 48 or 64",
  },
  arms: {
    type: listOf(oneOf(REGION_ARMS)),
    default: REGION_ARMS,
    otherwise: "all",
    help: REGION_ARMS.join(", "),
  },
  scales: {
    type: listOf(
      parsed("X", (what, option, found) => {
        const scale = number({ least: 1 }).read(what, option, found);
        if (COLUMN_WIDTHS[0] * scale % 8 === 0) return scale;
        throw cannot(what, `${option} in steps of 0.25`, found);
      }),
      true,
    ),
    default: [1.5, 2],
    help: "resolutions of the resolution study, factors of 64 pixels",
  },
  seed: { type: whole(), default: 0, help: "seed of training and noise" },
  sketch: {
    type: folder,
    otherwise: "the model's, if it has one",
    help: "sketch T2I-Adapter; without one its arms are left out",
  },
  noTiming: { type: flag, help: "do not time pictures with regions" },
});

/** What is run. */
export type RegionPlan = Plan<typeof OPTIONS>;

/** Several concepts in one picture, measured. */
export const fig5 = experiment({
  name: "regions",
  also: ["fig5"],
  summary: "Several concepts in one picture: identity per region, leakage",
  about:
    `Tests whether each of several concepts is in its region, and only there.
Trains and fuses concepts, draws them with a plain prompt, with regions, and with
adapters that are not fused, and scores every region with the evaluation CLIP.`,
  notes: `Writes regions.json, .md, .html, regions-N.png (every arm, the first
scenes of N concepts), fig5.png (rendered, plain prompt, regions),
fig10-leakage.png (where the plain prompt mixes two or three concepts most, and
negative prompts) and fig10-resolution.png. Below each picture is the identity
that the evaluation CLIP finds in each column. On two cores the default takes
about half an hour; a stopped run continues.`,
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
  check({ counts, concepts: { length: most } }) {
    const over = counts.find((n) => n > most);
    if (over === undefined) return;
    throw cannot("draw scenes", `counts from 2 to ${most} concepts`, over);
  },
  async networks({ sketch: given }, model) {
    const own = joinPath(model, "adapter");
    const sketch = given ??
      (await exists(joinPath(own, "config.json")) ? own : undefined);
    const folders: Record<string, string> = sketch ? { sketch } : {};
    return folders;
  },
  async run(lab, plan) {
    const data = await measure(lab, plan);
    return { data, report: regionsReport(data, await regionSheets(lab, data)) };
  },
});

/** Every scene of a plan; other resolutions of those with fewest concepts. */
function scenesOf(plan: RegionPlan): GroupScene[] {
  const { counts, column, backgrounds } = plan;
  return counts.flatMap((n) =>
    choices(plan.concepts, n, plan.sets).flatMap((names, set) =>
      Array.from({ length: backgrounds }, (_, b) => {
        const at = (set * backgrounds + b) % SCENE_BACKGROUNDS.length;
        const { word, phrases } = SCENE_BACKGROUNDS[at];
        const more = n === Math.min(...counts) ? plan.scales : [];
        return [1, ...more.filter((scale) => scale !== 1)].map((scale) => ({
          concepts: names.map(identityOf),
          background: word,
          where: phrases[0],
          scale,
          column,
        }));
      }).flat()
    )
  );
}

/** A scene in an arm: rendered, or drawn by a model. */
interface Cell {
  readonly arm: string;
  readonly scene: GroupScene;
  /** A picture each: the same noise in every arm. */
  readonly noise: readonly Noise[];
  /** Absent for rendered pictures. */
  readonly layout?: LayoutInput;
}

function cellsOf(
  plan: RegionPlan,
  arms: readonly string[],
  phrase: PhraseOf,
): Cell[] {
  const { seed, pictures, settings } = plan;
  return scenesOf(plan).flatMap((scene) => {
    const names = scene.concepts.map(({ name }) => name);
    const noise = Array.from(
      { length: pictures },
      (_, i): Noise => [seed, "regions", ...names, scene.background, i],
    );
    return arms
      .filter((arm) => scene.scale === 1 || RESOLUTION_ARMS.includes(arm))
      .map((arm): Cell => ({
        ...{ arm, scene, noise },
        layout: RENDERED_ARMS.includes(arm)
          ? undefined
          : sceneLayout(scene, arm.split(".")[0] as Way, phrase, settings),
      }));
  });
}

/**
 * Trains, fuses, draws every scene in every arm, and names the identity in each
 * region.
 */
async function measure(lab: Lab, plan: RegionPlan): Promise<RegionNumbers> {
  const { settings, seed, concepts, column } = plan;
  const phrase: PhraseOf = (one) => phraseOf(settings, "edlora", one);
  const hasSketch = lab.folders.networks?.sketch !== undefined;
  const arms = plan.arms.filter((arm) => hasSketch || !arm.includes("sketch"));
  const cells = cellsOf(plan, arms, phrase);
  await checkPrompts(lab, settings.textPrefix, cells);

  const all = await subjects(lab, concepts, 1, settings.sampling);
  // Rendered pictures need no concept.
  const singles = cells.every(({ layout }) => layout === undefined)
    ? []
    : await lab.train(
      all.map((one) => training(settings, one, "edlora", seed)),
    );
  const ids = new Map(singles.map((one) => [one.concept, one.model.id]));
  const fusions = REGION_FUSIONS.filter((fusion) =>
    arms.some((arm) => arm.endsWith(`.${fusion}`))
  );
  const fused = await lab.fuse(fusions.map((fusion) => ({
    concepts: [...ids.values()],
    how: fusion === "gradient"
      ? { type: "gradient", settings: settings.gradient }
      : { type: "weight", lambda: 1 / concepts.length },
    seed,
  })));
  const models = new Map<string, ModelRef>(
    fusions.map((fusion, i) => [fusion, fused[i].model]),
  );
  const drawn = await draw(lab, cells, ids, models);
  const { rows, labels } = await scoreScenes(lab, drawn, settings.textPrefix);
  const model = models.get("gradient") ?? models.get("weight");
  return {
    format: "mix-of-show regions 5",
    concepts,
    ...summarise(rows),
    timing: plan.noTiming ? [] : await timeRegions(lab, plan, model, phrase),
    rows,
    gallery: labels,
    regions: { ...REGION_EDGES, sites: await sitesOf(lab, cells, settings) },
    windows: { sides: windowShares(column), step: WINDOW_STEP },
    lambda: 1 / concepts.length,
  };
}

/** Draws or renders cells. */
async function draw(
  lab: Lab,
  cells: readonly Cell[],
  ids: ReadonlyMap<string, string>,
  models: ReadonlyMap<string, ModelRef>,
): Promise<ScenePictures[]> {
  const composed = cells.filter(({ layout }) => layout !== undefined);
  const found = await lab.compose(
    composed.map(({ arm, scene, noise, layout }) => {
      const [way, fusion] = arm.split(".");
      const isFused = fusion !== undefined;
      return {
        model: isFused ? models.get(fusion)! : { type: "base" },
        how: isFused ? "model" : way as ComposeHow,
        concepts: isFused
          ? []
          : scene.concepts.map(({ name }) => ids.get(name)!),
        layout: layout!,
        sketch: way === "regional+sketch" ? sketchOfScene(scene) : undefined,
        noise,
      };
    }),
  );
  const byCell = new Map(composed.map((cell, i) => [cell, found[i]]));
  return await Promise.all(cells.map(async (cell) => {
    const { arm, scene, noise } = cell;
    const images = byCell.get(cell) ?? await Promise.all(
      noise.map((noise, i) =>
        lab.put(
          [arm, noise, sizeOf(scene)],
          () => renderColumns(scene, i, lab.art, arm),
        )
      ),
    );
    return { arm, scene, images };
  }));
}

/** At how many sites regions act, for every size of picture. */
async function sitesOf(
  { folders: { model } }: Lab,
  cells: readonly Cell[],
  settings: ExperimentPreset,
): Promise<RegionSites[]> {
  const read = (part: string) => readJson(joinPath(model, part, "config.json"));
  const config = parseUNetConfig(await read("unet"));
  const factor = downsampleFactor(parseAutoencoderConfig(await read("vae")));
  const sizes = Map.groupBy(
    cells,
    ({ scene: { concepts, scale } }) => `${concepts.length} ${scale}`,
  );
  return await Promise.all([...sizes.values()].map(async ([{ scene }]) => {
    const layout = sceneLayout(scene, "regional", classOf, settings);
    const { concepts: { length: n }, scale } = scene;
    return { n, scale, ...await actingSites(config, layout, factor) };
  }));
}

/** Throws if a prompt is longer than what reads it: its end would be cut. */
async function checkPrompts(
  { folders: { model, clip } }: Lab,
  textPrefix: string,
  cells: readonly Cell[],
): Promise<void> {
  const refuse = (tokenizer: Tokenizer, texts: Iterable<string>) => {
    for (const text of new Set(texts)) {
      const { truncated } = tokenizer.encode(text);
      if (truncated === 0) continue;
      const most = tokenizer.modelMaxLength;
      throw cannot(
        "run the regions experiment",
        `prompts of at most ${most} tokens, start and end included`,
        `${most + truncated}: "${text}"`,
      );
    }
  };
  const prompts = cells.flatMap(({ layout }) => layout ? [layout] : [])
    .flatMap(({ prompt, negative = "", regions = [] }) => [
      ...[prompt, negative],
      ...regions.flatMap((own) => [own.prompt, own.negative ?? ""]),
    ]);
  // Each learned word is one token once concepts are loaded.
  const words = prompts.flatMap((text) => text.match(/<[^<>\s]+>/g) ?? []);
  const plain = await loadTokenizer(joinPath(model, "tokenizer"));
  refuse(plain.withAddedTokens([...new Set(words)]), prompts);
  refuse(
    await loadTokenizer(clip!),
    cells.map(({ scene }) => captionOf(scene, textPrefix)),
  );
}
