/**
 * Several concepts in one picture: is each in its place, and only there? For
 * two, three and four concepts; for a plain prompt and for regions on fused
 * models, and for adapters that are not fused (the paper's Fig 5 and Fig 10 with
 * numbers).
 *
 * @module
 */
import { cannot } from "../../core/errors.ts";
import type { LayoutInput } from "../../diffusion/layout.ts";
import { joinPath, readJson } from "../../io/files.ts";
import type { Lab } from "../../lab/lab.ts";
import type {
  Ask,
  ComposeHow,
  ComposeSpec,
  ModelRef,
  Noise,
} from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import { downsampleFactor } from "../../models/autoencoder.ts";
import {
  parseAutoencoderConfig,
  parseUNetConfig,
} from "../../models/config.ts";
import { loadTokenizer, type Tokenizer } from "../../models/tokenizer.ts";
import type { ExperimentPreset } from "../presets.ts";
import { checkSettings, phraseOf, subjects, training } from "../subjects.ts";
import {
  judge,
  type RegionRow,
  type ScenePictures,
  WINDOW_STEP,
  windowShares,
} from "./judge.ts";
import {
  actingSites,
  captionOf,
  choices,
  classOf,
  COLUMN_WIDTHS,
  type PhraseOf,
  REGION_ARMS,
  REGION_EDGES,
  REGION_FUSIONS,
  type RegionSites,
  renderColumns,
  RENDERED_ARMS,
  RESOLUTION_ARMS,
  type Scene,
  SCENE_BACKGROUNDS,
  sceneLayout,
  sizeOf,
  sketchOfScene,
  type Way,
} from "./scenes.ts";
import { type RegionCell, type RegionComparison, summarise } from "./table.ts";
import { type RegionTiming, timeRegions } from "./timing.ts";

/** What is run. */
export interface RegionPlan {
  /** How concepts are trained, fused and drawn. */
  readonly settings: ExperimentPreset;
  /** Proper names of identities; all are fused into one model. */
  readonly concepts: readonly string[];
  /** How many concepts are in a picture. */
  readonly counts: readonly number[];
  /** Width of a concept's column, pixels at scale 1: 32, 48 or 64. */
  readonly column: number;
  /** Choices of concepts, at most, for each count. */
  readonly sets: number;
  /** Backgrounds of each choice. */
  readonly backgrounds: number;
  /** Pictures of each layout. */
  readonly pictures: number;
  /** Seed of training and of noise. */
  readonly seed: number;
  /**
   * Which of {@linkcode REGION_ARMS} are drawn. The sketch arms need a condition
   * network "sketch" in the lab.
   *
   * @default all
   */
  readonly arms?: readonly string[];
  /** Resolutions of the resolution study, factors of 64 pixels; 1 is implied. */
  readonly scales?: readonly number[];
  /**
   * Whether pictures with regions are timed against plain ones.
   *
   * @default {true}
   */
  readonly timing?: boolean;
}

/** What the experiment gives. */
export interface RegionReport {
  /** What this document is. */
  readonly format: "mix-of-show regions 3";
  /** When it was made. */
  readonly created: string;
  /** Proper names of all fused concepts. */
  readonly concepts: readonly string[];
  /** Arms that were drawn, in the order of the table. */
  readonly arms: readonly string[];
  /** Scores at the usual resolution, a line for each number of concepts and arm. */
  readonly table: readonly RegionCell[];
  /** The same at other resolutions. */
  readonly resolution: readonly RegionCell[];
  /** Differences on the same scenes and noise. */
  readonly comparisons: readonly RegionComparison[];
  /** Time against the number of regions. */
  readonly timing: readonly RegionTiming[];
  /** Every picture. */
  readonly rows: readonly RegionRow[];
  /** Labels of the gallery. */
  readonly gallery: readonly string[];
  /** Seconds of each stage of this run; pieces that were there cost nothing. */
  readonly seconds: Readonly<Record<string, number>>;
  /** What the run was made with. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** SHA-256 of the model's and the networks' folders. */
  readonly hashes: Readonly<Record<string, string>>;
}

function check(plan: RegionPlan): void {
  const what = "run the regions experiment";
  const { concepts, counts, column, sets, backgrounds, pictures, seed } = plan;
  concepts.forEach(identityOf);
  if (new Set(concepts).size !== concepts.length) {
    throw cannot(what, "different concepts", concepts.join(", "));
  }
  for (const n of counts) {
    if (!Number.isInteger(n) || n < 2 || n > concepts.length) {
      throw cannot(what, `counts from 2 to ${concepts.length} concepts`, n);
    }
  }
  if (counts.length === 0) throw cannot(what, "a number of concepts", "none");
  for (const [name, value] of Object.entries({ sets, pictures })) {
    if (!Number.isInteger(value) || value < 1) {
      throw cannot(what, `${name} ≥ 1`, value);
    }
  }
  if (
    !Number.isInteger(backgrounds) || backgrounds < 1 ||
    backgrounds > SCENE_BACKGROUNDS.length
  ) {
    throw cannot(
      what,
      `1 to ${SCENE_BACKGROUNDS.length} backgrounds`,
      backgrounds,
    );
  }
  checkSettings(plan.settings, [seed]);
  for (const arm of plan.arms ?? []) {
    if (!REGION_ARMS.includes(arm)) {
      throw cannot(what, `arms ${REGION_ARMS.join(", ")}`, arm);
    }
  }
  if (!COLUMN_WIDTHS.some((width) => width === column)) {
    throw cannot(what, `columns of ${COLUMN_WIDTHS.join(", ")} pixels`, column);
  }
  for (const scale of plan.scales ?? []) {
    if (!(scale >= 1) || (COLUMN_WIDTHS[0] * scale) % 8 !== 0) {
      throw cannot(what, "scales ≥ 1 in steps of 0.25", scale);
    }
  }
}

/** Every scene of a plan; other resolutions of those with fewest concepts. */
function scenesOf(plan: RegionPlan): Scene[] {
  const { counts, column, backgrounds } = plan;
  return counts.flatMap((n) =>
    choices(plan.concepts, n, plan.sets).flatMap((names, set) =>
      Array.from({ length: backgrounds }, (_, b) => {
        const at = (set * backgrounds + b) % SCENE_BACKGROUNDS.length;
        const { word, phrases } = SCENE_BACKGROUNDS[at];
        const more = n === Math.min(...counts) ? plan.scales ?? [] : [];
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

/** What a scene's noise is drawn for, a picture each: the same in every arm. */
function noiseOf(scene: Scene, { seed, pictures }: RegionPlan): Noise[] {
  const names = scene.concepts.map(({ name }) => name);
  return Array.from(
    { length: pictures },
    (_, i) => [seed, "regions", ...names, scene.background, i],
  );
}

/** A scene in an arm: rendered, or drawn by a model. */
interface Cell {
  readonly arm: string;
  readonly scene: Scene;
  /** Absent for rendered pictures. */
  readonly layout?: LayoutInput;
}

function cellsOf(plan: RegionPlan, arms: readonly string[]): Cell[] {
  const phrase: PhraseOf = (one) => phraseOf(plan.settings, "edlora", one);
  return scenesOf(plan).flatMap((scene) =>
    arms.filter((arm) => scene.scale === 1 || RESOLUTION_ARMS.includes(arm))
      .map((arm): Cell =>
        RENDERED_ARMS.includes(arm) ? { arm, scene } : {
          arm,
          scene,
          layout: sceneLayout(
            scene,
            arm.split(".")[0] as Way,
            phrase,
            plan.settings,
          ),
        }
      )
  );
}

/**
 * Runs the experiment: trains, fuses, draws every scene in every arm, names who
 * is in each region.
 *
 * @param lab The lab; with a condition network "sketch" for the sketch arms.
 * @param plan What is run.
 * @returns The report, but for what only the caller knows.
 * @throws Before work starts, if an option is wrong or a prompt is too long.
 */
export async function fig5(
  lab: Lab,
  plan: RegionPlan,
): Promise<Omit<RegionReport, "created">> {
  check(plan);
  const { settings, seed, concepts, column } = plan;
  const { counts, sets, backgrounds, pictures } = plan;
  const hasSketch = lab.folders.networks?.sketch !== undefined;
  const arms = (plan.arms ?? REGION_ARMS)
    .filter((arm) => hasSketch || !arm.includes("sketch"));
  const cells = cellsOf(plan, arms);
  await checkPrompts(lab, settings.textPrefix, cells);

  const people = await subjects(lab, concepts, 1, settings.sampling);
  const fusions = REGION_FUSIONS.filter((fusion) =>
    arms.some((arm) => arm.endsWith(`.${fusion}`))
  );
  // Rendered pictures need no concept.
  const singles = cells.every(({ layout }) => layout === undefined)
    ? []
    : await lab.train(
      people.map((one) => training(settings, one, "edlora", seed)),
    );
  const ids = new Map(singles.map((one) => [one.concept, one.model.id]));
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
  const drawn = await draw(lab, plan, cells, ids, models);
  const { rows, labels } = await judge(lab, drawn, settings.textPrefix);
  const before = performance.now();
  const timing = plan.timing ?? true
    ? await timeRegions(
      lab,
      models.get("gradient") ?? models.get("weight") ?? { type: "base" },
      {
        ...{ concepts, column, settings },
        phrase: (one) => phraseOf(settings, "edlora", one),
      },
    )
    : [];
  return {
    format: "mix-of-show regions 3",
    concepts,
    ...summarise(rows, counts),
    timing,
    rows,
    gallery: labels,
    seconds: { ...lab.seconds, time: (performance.now() - before) / 1000 },
    settings: {
      ...settings,
      ...{ seed, counts, sets, backgrounds, pictures, column },
      regions: { ...REGION_EDGES, sites: await sitesOf(lab, cells, settings) },
      windows: { sides: windowShares(column), step: WINDOW_STEP },
      lambda: 1 / concepts.length,
    },
    hashes: {
      model: lab.hashes.model,
      clip: lab.hashes.clip,
      ...lab.hashes.networks,
    },
  };
}

/** Draws or renders cells. */
async function draw(
  lab: Lab,
  plan: RegionPlan,
  cells: readonly Cell[],
  ids: ReadonlyMap<string, string>,
  models: ReadonlyMap<string, ModelRef>,
): Promise<ScenePictures[]> {
  const composed = cells.filter(({ layout }) => layout !== undefined);
  const images = await lab.compose(
    composed.map((cell) => askOf(cell, noiseOf(cell.scene, plan), ids, models)),
  );
  const byCell = new Map(composed.map((cell, i) => [cell, images[i]]));
  return await Promise.all(cells.map(async (cell) => {
    const { arm, scene } = cell;
    const rendered = noiseOf(scene, plan).map((noise, i) => () =>
      lab.put(
        [arm, noise, sizeOf(scene)],
        () => renderColumns(scene, i, lab.art, arm),
      )
    );
    const images = byCell.get(cell) ??
      await Promise.all(rendered.map((render) => render()));
    return { arm, scene, images };
  }));
}

/** What the lab is asked for to draw a cell. */
function askOf(
  { arm, scene, layout }: Cell,
  noise: readonly Noise[],
  ids: ReadonlyMap<string, string>,
  models: ReadonlyMap<string, ModelRef>,
): Ask<ComposeSpec> {
  const [way, fusion] = arm.split(".");
  const isFused = fusion !== undefined;
  return {
    model: isFused ? models.get(fusion)! : { type: "base" },
    how: isFused ? "model" : way as ComposeHow,
    concepts: isFused ? [] : scene.concepts.map(({ name }) => ids.get(name)!),
    layout: layout!,
    ...(way === "regional+sketch" ? { sketch: sketchOfScene(scene) } : {}),
    noise,
  };
}

/** At how many sites regions act, for every size of picture. */
async function sitesOf(
  lab: Lab,
  cells: readonly Cell[],
  settings: ExperimentPreset,
): Promise<RegionSites[]> {
  const read = (part: string) =>
    readJson(joinPath(lab.folders.model, part, "config.json"));
  const config = parseUNetConfig(await read("unet"));
  const factor = downsampleFactor(parseAutoencoderConfig(await read("vae")));
  const sizes = Map.groupBy(
    cells,
    ({ scene: { concepts, scale } }) => `${concepts.length} ${scale}`,
  );
  return await Promise.all([...sizes.values()].map(async ([{ scene }]) => {
    const layout = sceneLayout(scene, "regional", classOf, settings);
    return {
      n: scene.concepts.length,
      scale: scene.scale,
      ...await actingSites(config, layout, factor),
    };
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
      prompt,
      negative,
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
