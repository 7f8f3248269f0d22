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
  type LayoutInput,
  parseLayout,
  resolveLayout,
} from "../../diffusion/layout.ts";
import { actingSites } from "../../diffusion/region_sites.ts";
import { type PictureTime, timeInTurns } from "../../diffusion/timing.ts";
import { median } from "../../evaluation/statistics.ts";
import { joinPath, readJson } from "../../io/files.ts";
import type { Lab } from "../../lab/lab.ts";
import { withModel } from "../../lab/model_ref.ts";
import type { ComposeHow, ModelRef, Noise } from "../../lab/specs.ts";
import { identityOf } from "../../micro/concepts.ts";
import {
  captionOf,
  choices,
  type GroupScene,
  renderColumns,
  SCENE_BACKGROUNDS,
  sizeOf,
} from "../../micro/group_scene.ts";
import { downsampleFactor } from "../../models/autoencoder.ts";
import {
  parseAutoencoderConfig,
  parseUNetConfig,
} from "../../models/config.ts";
import { disposeModel, loadModel } from "../../models/model.ts";
import { loadTokenizer, type Tokenizer } from "../../models/tokenizer.ts";
import type { ExperimentPreset } from "../presets.ts";
import { checkSettings, phraseOf, subjects, training } from "../subjects.ts";
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
  REGION_EDGES,
  REGION_FUSIONS,
  RENDERED_ARMS,
  RESOLUTION_ARMS,
  sceneLayout,
  sketchOfScene,
  type Way,
} from "./scenes.ts";
import {
  type RegionReport,
  type RegionSites,
  type RegionTiming,
  summarise,
  type TimedPart,
} from "./table.ts";

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
  /** Whether pictures with regions are timed against plain ones. @default true */
  readonly timing?: boolean;
}

function check(plan: RegionPlan): void {
  const { concepts, counts, column, sets, backgrounds, pictures } = plan;
  const refuse = (bad: unknown, expected: string, got: unknown) => {
    if (bad) throw cannot("run the regions experiment", expected, got);
  };
  const whole = (value: number, least: number, most = Infinity) =>
    Number.isInteger(value) && value >= least && value <= most;
  concepts.forEach(identityOf);
  const names = concepts.join(", ");
  refuse(
    new Set(concepts).size !== concepts.length,
    "different concepts",
    names,
  );
  refuse(counts.length === 0, "a number of concepts", "none");
  for (const n of counts) {
    const most = concepts.length;
    refuse(!whole(n, 2, most), `counts from 2 to ${most} concepts`, n);
  }
  refuse(!whole(sets, 1), "sets ≥ 1", sets);
  refuse(!whole(pictures, 1), "pictures ≥ 1", pictures);
  const most = SCENE_BACKGROUNDS.length;
  refuse(!whole(backgrounds, 1, most), `1 to ${most} backgrounds`, backgrounds);
  checkSettings(plan.settings, [plan.seed]);
  for (const arm of plan.arms ?? []) {
    refuse(!REGION_ARMS.includes(arm), `arms ${REGION_ARMS.join(", ")}`, arm);
  }
  const known = COLUMN_WIDTHS.some((width) => width === column);
  refuse(!known, `columns of ${COLUMN_WIDTHS.join(", ")} pixels`, column);
  for (const scale of plan.scales ?? []) {
    const fits = scale >= 1 && (COLUMN_WIDTHS[0] * scale) % 8 === 0;
    refuse(!fits, "scales ≥ 1 in steps of 0.25", scale);
  }
}

/** Every scene of a plan; other resolutions of those with fewest concepts. */
function scenesOf(plan: RegionPlan): GroupScene[] {
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
 * Runs the experiment: trains, fuses, draws every scene in every arm, names the
 * identity in each region.
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
  const phrase: PhraseOf = (one) => phraseOf(settings, "edlora", one);
  const hasSketch = lab.folders.networks?.sketch !== undefined;
  const arms = (plan.arms ?? REGION_ARMS)
    .filter((arm) => hasSketch || !arm.includes("sketch"));
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
  const before = performance.now();
  const model = models.get("gradient") ?? models.get("weight");
  const timing = plan.timing ?? true
    ? await timeRegions(lab, plan, model, phrase)
    : [];
  return {
    format: "mix-of-show regions 4",
    concepts,
    ...summarise(rows),
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

/** Pairs of pictures that are timed, the first not counted. */
const TIMED_PAIRS = 4;

/**
 * Times whole pictures of the experiment's layouts, one to four regions, each
 * against the plain picture of the same size, drawn in turns.
 */
async function timeRegions(
  lab: Lab,
  { concepts, column, settings }: RegionPlan,
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
