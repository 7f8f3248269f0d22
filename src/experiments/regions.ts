/**
 * Several concepts in one picture: is each in its place, and only there? For
 * two, three and four concepts; for a plain prompt and for regions on fused
 * models, and for adapters that are not fused (the paper's Fig 5 and Fig 10 with
 * numbers).
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import {
  drawLayout,
  type LayoutInput,
  parseLayout,
  type ResolvedLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import { shapeMap } from "../diffusion/regions.ts";
import {
  type ClipModel,
  type ClipVector,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "../evaluation/clip.ts";
import {
  cosine,
  imageAlignment,
  textAlignment,
} from "../evaluation/clip_score.ts";
import { type Box, crop } from "../evaluation/preprocess.ts";
import {
  centroid,
  gallery,
  type GalleryEntry,
} from "../evaluation/retrieval.ts";
import {
  type Estimate,
  hierarchicalBootstrap,
  median,
  type Nested,
  nestedMean,
  tInterval,
} from "../evaluation/statistics.ts";
import { exists, joinPath, readJson, writeAtomic } from "../io/files.ts";
import { encodePng, type Pixels } from "../io/png.ts";
import type { Art } from "../micro/art.ts";
import { withArticle } from "../micro/captions.ts";
import { conceptImage, identityOf, TRAIN_IMAGES } from "../micro/concepts.ts";
import { renderScene } from "../micro/scenes.ts";
import { BACKGROUNDS, type Identity } from "../micro/world.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import {
  parseAutoencoderConfig,
  parseUNetConfig,
  type UNetConfig,
} from "../models/config.ts";
import { disposeModel, loadModel, type Model } from "../models/model.ts";
import { loadTokenizer, type Tokenizer } from "../models/tokenizer.ts";
import { attentionGrids } from "../models/unet.ts";
import { artHash, composedId } from "./compose.ts";
import { type Crew, gatherCrew, type StageProgress } from "./crew.ts";
import {
  type ComposeHow,
  type ComposePiece,
  type FusePiece,
  type ModelRef,
  type Piece,
  type ReferencePiece,
  type SketchObject,
  store,
  type TrainPiece,
  type ViewsPiece,
} from "./pieces.ts";
import type { ExperimentPreset } from "./presets.ts";
import { folderHash, pieceId } from "./store.ts";
import {
  addFusion,
  addTraining,
  openStudy,
  phraseOf,
  rounded,
  type StudyOptions,
} from "./study.ts";
import { pixelsOf, readEmbeddings, withModel } from "./workshop.ts";

/** Ways to fuse that are compared. */
export const REGION_FUSIONS = ["weight", "gradient"] as const;

/** A way to fuse. */
export type RegionFusion = typeof REGION_FUSIONS[number];

/** Ways to say where concepts are, on a fused model. */
const FUSED_WAYS = [
  "plain",
  "regional",
  "regional+negative",
  "regional+sketch",
] as const;

type FusedWay = typeof FUSED_WAYS[number];

/** Ways to use adapters that are not fused. */
const UNFUSED_WAYS = ["region-adapters", "switch", "composite"] as const;

/** Arms that are rendered: with everybody, the ceiling; without, the floor. */
const RENDERED_ARMS: readonly string[] = ["real", "empty"];

/** Every arm, in the order of the table. */
export const REGION_ARMS: readonly string[] = [
  ...RENDERED_ARMS,
  ...FUSED_WAYS.flatMap((way) => REGION_FUSIONS.map((f) => `${way}.${f}`)),
  ...UNFUSED_WAYS,
];

/** Arms that are also drawn at other resolutions. */
export const RESOLUTION_ARMS: readonly string[] = [
  "plain.gradient",
  "regional.gradient",
];

/** Widths a concept's column may have, pixels at scale 1. */
const COLUMN_WIDTHS = [32, 48, 64] as const;

/** Height of a picture in pixels, at scale 1. */
const HEIGHT = 64;

/**
 * Edges of a concept's region, shares of its column and of the picture's
 * height. Around it and between regions the whole picture's prompt holds: on
 * ordinary words, regions that fill the columns lose one of two things.
 */
const REGION_EDGES = {
  left: 0.15,
  right: 0.85,
  top: 0.2,
  bottom: 0.8,
} as const;

/** Cells of a mask along a column's width and along the picture's height. */
const MASK_CELLS = 20;

/** Sides of the windows in which a concept is looked for. */
const WINDOW_SIDES = [0.8, 1] as const;

/** Side, at most, of which these are shares; pixels at scale 1. */
const WINDOW_MOST = 48;

/**
 * Sides of windows as shares of a column's shorter side.
 *
 * @param column Width of a column, pixels at scale 1.
 */
export function windowShares(column: number): number[] {
  const most = Math.min(column, WINDOW_MOST) / Math.min(column, HEIGHT);
  return WINDOW_SIDES.map((side) => side * most);
}

/** Step between windows. */
const WINDOW_STEP = 0.25;

/**
 * Backgrounds of the scenes: those of two words. With "in a forest" three
 * concepts and their places are more than the embedded text encoder reads.
 */
export const SCENE_BACKGROUNDS = BACKGROUNDS.filter(({ phrases }) =>
  phrases[0].split(" ").length <= 2
);

/** Crops that stand for each background in the gallery. */
const BACKGROUND_VIEWS = 12;

/** Side of a rendered concept, as in its training frames, if it fits; pixels. */
const RENDERED_SIDE = 36;

/** Side of a concept in a rendered scene, pixels. */
function renderedSide({ column }: Pick<Scene, "column">): number {
  return Math.min(RENDERED_SIDE, column - 4);
}

/** Side of a background's crop, pixels. */
const BACKGROUND_SIDE = 32;

/** What is run. */
export interface RegionOptions extends StudyOptions {
  /** Folder of a sketch T2I-Adapter; without one the sketch arms are left out. */
  readonly sketch?: string;
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
   * Which of {@linkcode REGION_ARMS} are drawn.
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
  /**
   * When the run was made, for the record.
   *
   * @default now
   */
  readonly created?: string;
}

/** What was found in one region. */
export interface RegionFinding {
  /** Who should be there. */
  readonly concept: string;
  /** Who is: an identity's name, or `background`. */
  readonly label: string;
  /** Identities seen in some window, each name once: the label is one of them. */
  readonly seen: readonly string[];
  /** Masked alignment with who should be there. */
  readonly own: number;
  /** The largest with another concept of the picture. */
  readonly other: number;
}

/** Scores of one picture. */
export interface RegionRow {
  /** How it was drawn, one of {@linkcode REGION_ARMS}. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Concepts from left to right. */
  readonly concepts: readonly string[];
  /** Where the concepts are. */
  readonly background: string;
  /** Which picture of its layout. */
  readonly picture: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Name of the picture in the store. */
  readonly image: string;
  /** Text alignment of the whole, class words in the caption. */
  readonly text: number;
  /** What was found, from left to right. */
  readonly regions: readonly RegionFinding[];
  /** Concepts from left to right in the order that suits the picture best. */
  readonly order: readonly string[];
}

/** What a row of the table says of its pictures. */
export const REGION_SCORES = [
  "identity",
  "nearest",
  "replaced",
  "leakage",
  "missing",
  "occupied",
  "complete",
  "anyOrder",
  "anyOrderLeakage",
  "own",
  "text",
] as const;

/**
 * `identity`: share of regions with the right concept, of all identities;
 * `nearest`: share of regions that are nearer to their own concept than to the
 * others of the picture (chance: 1 / n); `replaced`: where
 * another concept of the picture stands out most; `leakage`: where another
 * concept of the picture is seen in some window, whoever stands out most;
 * `missing`: with nobody; `occupied`: share of pictures with somebody, whoever
 * it is, in every region; `complete`: with everybody in place; `anyOrder` and
 * `anyOrderLeakage`: identity and leakage in the order that suits the picture
 * best; `own`: masked alignment with the right concept; `text`: text alignment.
 */
export type RegionScore = typeof REGION_SCORES[number];

/** Scores that are compared between arms. */
export const COMPARED_SCORES = [
  "identity",
  "nearest",
  "replaced",
  "leakage",
  "anyOrder",
  "anyOrderLeakage",
  "own",
] as const satisfies readonly RegionScore[];

/** A score that is compared. */
export type ComparedScore = typeof COMPARED_SCORES[number];

/** One line of the table. */
export interface RegionCell {
  /** How pictures were drawn. */
  readonly arm: string;
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Pictures behind it. */
  readonly pictures: number;
  /** Means with 95 % intervals (hierarchical bootstrap over choices). */
  readonly scores: Readonly<Record<RegionScore, Estimate>>;
}

/** A difference between two arms, with two 95 % intervals. */
export interface RegionDifference extends Estimate {
  /**
   * Student's t over the means of choices: infinite, in JSON null, if there is
   * one choice.
   */
  readonly low: number;
  /** Upper end of the same interval. */
  readonly high: number;
  /** Hierarchical bootstrap: too narrow where there are few choices. */
  readonly bootstrap: Estimate;
}

/**
 * Differences that should be positive; of `replaced` and of leakage, negative.
 */
export interface RegionComparison {
  /** The arm that is expected to be better. */
  readonly better: string;
  /** The arm it is compared with. */
  readonly worse: string;
  /** Number of concepts. */
  readonly n: number;
  /** Choices of concepts behind the intervals. */
  readonly sets: number;
  /** Whether both arms were told who is where; else only any order counts. */
  readonly placed: boolean;
  /** The differences. */
  readonly differences: Readonly<Record<ComparedScore, RegionDifference>>;
}

/** A time with regions, and against the same without. */
export interface TimedPart {
  /** Median seconds with regions. */
  readonly seconds: number;
  /**
   * Median of the ratios to the same part of a plain picture of the same size,
   * drawn in turns: whatever else the machine does slows both.
   */
  readonly ratio: number;
}

/** Times of the experiment's layout with a number of regions. */
export interface RegionTiming {
  /** Number of regions. */
  readonly regions: number;
  /** One sampling step. */
  readonly step: TimedPart;
  /** A whole picture: prompts and regions prepared, all steps, decoded. */
  readonly picture: TimedPart;
}

/** At how many cross-attention sites of the UNet regions act. */
export interface RegionSites {
  /** Number of concepts. */
  readonly n: number;
  /** Resolution, a factor of 64 pixels. */
  readonly scale: number;
  /** Sites at which every region has a cell. */
  readonly acting: number;
  /** All cross-attention sites. */
  readonly all: number;
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
  /** What the numbers say about regions against the plain prompt. */
  readonly verdict: string;
  /** Seconds of each stage of this run; pieces that were there cost nothing. */
  readonly seconds: Readonly<Record<string, number>>;
  /** What the run was made with. */
  readonly settings: Readonly<Record<string, unknown>>;
  /** SHA-256 of the model's and the networks' folders. */
  readonly hashes: Readonly<Record<string, string>>;
}

/**
 * Choices of n among names, spread evenly over all of them; every second one is
 * turned round, so that nobody is always on the left.
 *
 * @param names Names.
 * @param n How many in a choice.
 * @param most How many choices at most.
 * @throws If there are not n names.
 */
export function choices(
  names: readonly string[],
  n: number,
  most: number,
): string[][] {
  if (!Number.isInteger(n) || n < 1 || n > names.length) {
    throw cannot("choose concepts", `1 to ${names.length} of them`, n);
  }
  const all: string[][] = [];
  const grow = (chosen: string[], from: number) => {
    if (chosen.length === n) return void all.push(chosen);
    for (let i = from; i < names.length; i++) {
      grow([...chosen, names[i]], i + 1);
    }
  };
  grow([], 0);
  const count = Math.min(most, all.length);
  return Array.from({ length: count }, (_, i) => {
    const chosen = all[Math.floor(i * all.length / count)];
    return i % 2 === 0 ? chosen : [...chosen].reverse();
  });
}

/** Places in words, from left to right. */
function placeWords(n: number): readonly string[] {
  if (n === 2) return [" on the left", " on the right"];
  if (n === 3) return [" on the left", " in the center", " on the right"];
  return new Array(n).fill("");
}

/**
 * Whether an arm is told who is where: regions tell, and the places in the
 * prompt for two and three concepts; for four there are no words.
 *
 * @param arm One of {@linkcode REGION_ARMS}.
 * @param n Number of concepts.
 */
export function knowsPlaces(arm: string, n: number): boolean {
  const [way] = arm.split(".");
  return !["plain", "switch", "composite"].includes(way) || n <= 3;
}

/**
 * A prompt with everybody in it: `a fox on the left and an owl on the right on
 * grass`.
 *
 * @param phrases How each stands in prompts, from left to right.
 * @param where The background in words.
 */
export function groupPrompt(phrases: readonly string[], where: string): string {
  const words = placeWords(phrases.length);
  return `${
    phrases.map((phrase, i) => withArticle(phrase) + words[i]).join(" and ")
  } ${where}`;
}

/** One layout of the experiment, before it is known how it is drawn. */
interface Scene {
  readonly concepts: readonly Identity[];
  readonly background: string;
  /** The background in words. */
  readonly where: string;
  readonly scale: number;
  /** Width of a column in pixels, at scale 1. */
  readonly column: number;
}

/** Pixels of a scene's picture. */
function sizeOf(
  { concepts, scale, column }: Pick<Scene, "concepts" | "scale" | "column">,
): { width: number; height: number } {
  return {
    width: Math.round(concepts.length * column * scale),
    height: Math.round(HEIGHT * scale),
  };
}

/** Columns of a picture as shares of it. */
export function columns(n: number): Box[] {
  return Array.from(
    { length: n },
    (_, i) => ({ x: i / n, y: 0, width: 1 / n, height: 1 }),
  );
}

/**
 * The mask of a concept's region: a mask's rule (at least half of a cell) has
 * cells left on the UNet's coarsest grid, where that of boxes (all of a cell)
 * has none.
 *
 * @param column The concept's column, from the left.
 * @param n Number of columns.
 * @returns {@linkcode MASK_CELLS} rows of a layout's mask over the picture.
 */
function regionRows(column: number, n: number): [string, ...string[]] {
  const inside = (at: number, from: number, to: number) =>
    at >= Math.round(from * MASK_CELLS) && at < Math.round(to * MASK_CELLS);
  const { left, right, top, bottom } = REGION_EDGES;
  const row = (y: number) =>
    Array.from(
      { length: n * MASK_CELLS },
      (_, x) =>
        inside(y, top, bottom) && inside(x - column * MASK_CELLS, left, right)
          ? "#"
          : ".",
    ).join("");
  const [first, ...rest] = Array.from({ length: MASK_CELLS }, (_, y) => row(y));
  return [first, ...rest];
}

/** How a concept stands in prompts. */
type PhraseOf = (identity: Identity) => string;

/** How it stands in prompts that a model without it is asked. */
const classOf: PhraseOf = (identity) => identity.class;

/** The layout document of a scene in one arm. */
export function sceneLayout(
  scene: {
    readonly concepts: readonly Identity[];
    readonly where: string;
    readonly scale: number;
    readonly column: number;
    readonly background: string;
  },
  way: FusedWay | typeof UNFUSED_WAYS[number],
  phrase: PhraseOf,
  settings: Pick<ExperimentPreset, "sampling">,
): LayoutInput {
  const { concepts, where } = scene;
  const { sampler, steps, guidance, negative } = settings.sampling;
  const common = { negative, sampler, steps, guidance, size: sizeOf(scene) };
  if (way === "plain" || way === "switch" || way === "composite") {
    return { ...common, prompt: groupPrompt(concepts.map(phrase), where) };
  }
  const n = concepts.length;
  return {
    ...common,
    prompt: groupPrompt(concepts.map(classOf), where),
    regions: concepts.map((concept, i) => ({
      mask: { rows: regionRows(i, n) },
      prompt: withArticle(phrase(concept)),
      negative: way === "regional+negative"
        ? [
          negative,
          ...concepts.filter((other) => other !== concept)
            .map((other) => withArticle(phrase(other))),
        ].filter((text) => text !== "").join(" and ")
        : negative,
      ...(way === "region-adapters" ? { concepts: [concept.name] } : {}),
    })),
    ...(way === "regional+sketch"
      ? {
        conditions: [{
          type: "t2i_adapter" as const,
          network: "sketch",
          image: { file: "sketch" },
        }],
      }
      : {}),
  };
}

/**
 * At how many cross-attention sites every region of a layout has a cell.
 *
 * @param config The UNet's config.
 * @param layout The layout, with a size.
 * @param factor Pixels of a latent cell's side.
 */
export async function actingSites(
  config: UNetConfig,
  layout: LayoutInput,
  factor: number,
): Promise<Pick<RegionSites, "acting" | "all">> {
  const { layout: { size }, regions } = await resolveLayout(
    parseLayout(layout),
  );
  const grids = attentionGrids(config, {
    height: size!.height / factor,
    width: size!.width / factor,
  });
  const acting = grids.filter(({ height, width }) =>
    regions.every(({ shape }) => shapeMap(shape, height, width).some((v) => v))
  );
  return { acting: acting.length, all: grids.length };
}

/**
 * Outlines of a scene's concepts, each as wide as its region, in its middle.
 *
 * @param scene Who is in it, and its size.
 */
export function sketchOfScene(
  scene: Pick<Scene, "concepts" | "scale" | "column">,
): SketchObject[] {
  const column = scene.column * scene.scale;
  const side = Math.round(column * (REGION_EDGES.right - REGION_EDGES.left));
  const { height } = sizeOf(scene);
  return scene.concepts.map(({ name }, i) => ({
    concept: name,
    frame: 0,
    x: Math.round((i + 0.5) * column - side / 2),
    y: Math.round((height - side) / 2),
    side,
  }));
}

/** Pictures of one arm and one scene. */
interface Job {
  readonly arm: string;
  readonly scene: Scene;
  readonly set: number;
  /** Absent for rendered pictures. */
  readonly piece?: ComposePiece;
  readonly images: readonly string[];
}

interface Plan {
  readonly art: Art;
  readonly base: string;
  readonly clip: string;
  readonly trains: readonly TrainPiece[];
  readonly fuses: readonly FusePiece[];
  readonly references: readonly ReferencePiece[];
  readonly jobs: readonly Job[];
  readonly networks: Readonly<Record<string, string>>;
  readonly sites: readonly RegionSites[];
  /** Model whose pictures are timed. */
  readonly timed: ModelRef;
}

function check(options: RegionOptions): void {
  const what = "run the regions experiment";
  const { concepts, counts, column, sets, backgrounds, pictures, seed } =
    options;
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
  if (!Number.isSafeInteger(seed)) throw cannot(what, "a whole seed", seed);
  for (const arm of options.arms ?? []) {
    if (!REGION_ARMS.includes(arm)) {
      throw cannot(what, `arms ${REGION_ARMS.join(", ")}`, arm);
    }
  }
  if (!COLUMN_WIDTHS.some((width) => width === column)) {
    throw cannot(what, `columns of ${COLUMN_WIDTHS.join(", ")} pixels`, column);
  }
  for (const scale of options.scales ?? []) {
    if (!(scale >= 1) || (COLUMN_WIDTHS[0] * scale) % 8 !== 0) {
      throw cannot(what, "scales ≥ 1 in steps of 0.25", scale);
    }
  }
}

async function makePlan(options: RegionOptions): Promise<Plan> {
  const { settings, seed, pictures, column } = options;
  const networks: Record<string, string> = options.sketch
    ? { sketch: await folderHash(options.sketch) }
    : {};
  const arms = (options.arms ?? REGION_ARMS).filter((arm) =>
    options.sketch !== undefined || !arm.includes("sketch")
  );
  const people = options.concepts.map((name) => ({
    identity: identityOf(name),
    prompts: [],
  }));
  const study = await openStudy(options, people);
  const ids = new Map<string, string>();
  for (const one of people) {
    const { id } = await addTraining(study, one, "edlora", seed);
    ids.set(one.identity.name, id);
  }
  const fused = new Map<string, string>();
  for (const fusion of REGION_FUSIONS) {
    if (!arms.some((arm) => arm.endsWith(`.${fusion}`))) continue;
    const { id } = await addFusion(
      study,
      fusion,
      [...ids.values()],
      fusion === "gradient"
        ? { type: "gradient", settings: settings.gradient }
        : { type: "weight", lambda: 1 / people.length },
      seed,
    );
    fused.set(fusion, id);
  }
  const art = await artHash(study.art);
  const jobs: Job[] = [];
  for (const n of options.counts) {
    const sets = choices(options.concepts, n, options.sets);
    for (const [set, names] of sets.entries()) {
      for (let b = 0; b < options.backgrounds; b++) {
        const at = (set * options.backgrounds + b) % SCENE_BACKGROUNDS.length;
        const background = SCENE_BACKGROUNDS[at];
        const more = n === Math.min(...options.counts)
          ? options.scales ?? []
          : [];
        for (const scale of [1, ...more.filter((s) => s !== 1)]) {
          const scene: Scene = {
            concepts: names.map(identityOf),
            background: background.word,
            where: background.phrases[0],
            scale,
            column,
          };
          for (const arm of arms) {
            if (scale !== 1 && !RESOLUTION_ARMS.includes(arm)) continue;
            jobs.push(
              await makeJob(arm, scene, set, {
                base: study.base,
                art,
                ids,
                fused,
                networks,
                pictures,
                seed,
                settings,
                phrase: (identity) => phraseOf(settings, "edlora", identity),
              }),
            );
          }
        }
      }
    }
  }
  await checkPrompts(options, jobs);
  const [id] = [...fused.values()].reverse();
  return {
    art: study.art,
    base: study.base,
    clip: study.clip,
    // Rendered pictures need no concept.
    trains: arms.some((arm) => !RENDERED_ARMS.includes(arm))
      ? [...study.trains.values()].map(({ piece }) => piece)
      : [],
    fuses: [...study.fuses.values()].map(({ piece }) => piece),
    // Look-alikes stay out: who of those that were asked for is it?
    references: study.references.filter(({ design }) => design === undefined),
    jobs,
    networks,
    sites: await sitesOf(options, jobs),
    timed: id === undefined ? { type: "base" } : { type: "fused", id },
  };
}

/** At how many sites regions act, for every size of picture. */
async function sitesOf(
  { model, settings }: RegionOptions,
  jobs: readonly Job[],
): Promise<RegionSites[]> {
  const read = (part: string) => readJson(joinPath(model, part, "config.json"));
  const config = parseUNetConfig(await read("unet"));
  const factor = downsampleFactor(parseAutoencoderConfig(await read("vae")));
  const sizes = Map.groupBy(
    jobs,
    ({ scene: { concepts, scale } }) => `${concepts.length} ${scale}`,
  );
  const sites: RegionSites[] = [];
  for (const [{ scene }] of sizes.values()) {
    const layout = sceneLayout(scene, "regional", classOf, settings);
    sites.push({
      n: scene.concepts.length,
      scale: scene.scale,
      ...await actingSites(config, layout, factor),
    });
  }
  return sites;
}

/** The text of a scene without names, for text alignment. */
function captionOf({ concepts, where }: Scene, prefix: string): string {
  return prefix + groupPrompt(concepts.map(classOf), where);
}

/** Throws if a prompt is longer than what reads it: its end would be cut. */
async function checkPrompts(
  { model, clip, settings }: RegionOptions,
  jobs: readonly Job[],
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
  const prompts = jobs.flatMap(({ piece }) => piece ? [piece.layout] : [])
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
    await loadTokenizer(clip),
    jobs.map(({ scene }) => captionOf(scene, settings.textPrefix)),
  );
}

async function makeJob(
  arm: string,
  scene: Scene,
  set: number,
  from: {
    readonly base: string;
    readonly art: string;
    readonly ids: ReadonlyMap<string, string>;
    readonly fused: ReadonlyMap<string, string>;
    readonly networks: Readonly<Record<string, string>>;
    readonly pictures: number;
    readonly seed: number;
    readonly settings: ExperimentPreset;
    readonly phrase: PhraseOf;
  },
): Promise<Job> {
  const names = scene.concepts.map(({ name }) => name);
  const noise = Array.from(
    { length: from.pictures },
    (_, i) => [from.seed, "regions", ...names, scene.background, i],
  );
  if (RENDERED_ARMS.includes(arm)) {
    const images = await Promise.all(
      noise.map((purpose) =>
        pieceId({
          kind: "rendered",
          arm,
          art: from.art,
          purpose,
          size: sizeOf(scene),
          side: renderedSide(scene),
        })
      ),
    );
    return { arm, scene, set, images };
  }
  const [way, fusion] = arm.split(".") as [FusedWay, string | undefined];
  const unfused = fusion === undefined;
  const model: ModelRef = unfused
    ? { type: "base" }
    : { type: "fused", id: from.fused.get(fusion)! };
  const piece: ComposePiece = {
    kind: "compose",
    base: from.base,
    model,
    how: unfused ? way as unknown as ComposeHow : "model",
    concepts: unfused ? names.map((name) => from.ids.get(name)!) : [],
    layout: sceneLayout(scene, way, from.phrase, from.settings),
    ...(way === "regional+sketch"
      ? { sketch: sketchOfScene(scene), art: from.art }
      : {}),
    networks: way === "regional+sketch" ? from.networks : {},
    noise,
  };
  const images = await Promise.all(
    noise.map((_, i) => composedId(piece, i)),
  );
  return { arm, scene, set, piece, images };
}

/**
 * What pictures would look like: columns side by side, each with its concept or
 * with nobody. Concepts show training frames: the gallery has the reference
 * frames, the evaluation CLIP has seen the third block.
 */
function renderColumns(
  scene: Scene,
  index: number,
  art: Art,
  arm: string,
): Pixels {
  const { width, height } = sizeOf(scene);
  const data = new Uint8Array(width * height * 3);
  scene.concepts.forEach(({ name, class: word }, i) => {
    const { scene: { objects } } = conceptImage(
      name,
      "train",
      index % TRAIN_IMAGES,
      art,
    );
    const own = objects.find(({ noun }) => noun === name)!;
    const image = renderScene({
      side: HEIGHT,
      background: scene.background,
      texture: fold(key(index), "rendered", arm, scene.background)[0] >>> 1,
      objects: arm === "empty" ? [] : [{
        ...own,
        class: word,
        place: "center",
        x: HEIGHT / 2,
        y: HEIGHT / 2,
        scale: renderedSide(scene),
      }],
    }, art);
    for (let y = 0; y < height; y++) {
      const from = (y * HEIGHT + (HEIGHT - scene.column) / 2) * 3;
      data.set(
        image.subarray(from, from + scene.column * 3),
        (y * width + i * scene.column) * 3,
      );
    }
  });
  return { width, height, channels: 3, data };
}

/** Embeddings of empty backgrounds, as they look between concepts. */
async function backgroundEntries(
  clip: ClipModel,
  art: Art,
): Promise<GalleryEntry[]> {
  const entries: GalleryEntry[] = [];
  for (const { word } of BACKGROUNDS) {
    const views = Array.from({ length: BACKGROUND_VIEWS }, (_, i) => {
      const image = renderScene({
        side: HEIGHT,
        background: word,
        texture: fold(key(i), "empty", word)[0] >>> 1,
        objects: [],
      }, art);
      return crop(pixelsOf(image, HEIGHT), {
        x: i % 2 * BACKGROUND_SIDE,
        y: Math.floor(i / 2) % 3 * BACKGROUND_SIDE / 2,
        width: BACKGROUND_SIDE,
        height: BACKGROUND_SIDE,
      });
    });
    entries.push({
      label: `background (${word})`,
      center: centroid(await embedImages(clip, views)),
    });
  }
  return entries;
}

/**
 * Who is in a region: in each window the nearest identity, if it is nearer than
 * every background; of all windows the one in which an identity stands out most.
 *
 * @param views Windows of the region.
 * @param identities Gallery of identities.
 * @param backgrounds Gallery of empty backgrounds.
 * @returns `label`: who stands out most, or `background` if nobody does in any
 * window; `seen`: who does in some window, each once.
 */
export function whoIsThere(
  views: readonly ClipVector[],
  identities: readonly GalleryEntry[],
  backgrounds: readonly GalleryEntry[],
): Pick<RegionFinding, "label" | "seen"> {
  const most = (view: ClipVector, entries: readonly GalleryEntry[]) =>
    entries.map(({ label, center }) => ({ label, near: cosine(view, center) }))
      .reduce((a, b) => b.near > a.near ? b : a);
  const found = views.map((view) => {
    const { label, near } = most(view, identities);
    return { label, margin: near - most(view, backgrounds).near };
  }).filter(({ margin }) => margin > 0).sort((a, b) => b.margin - a.margin);
  return {
    label: found[0]?.label ?? "background",
    seen: [...new Set(found.map(({ label }) => label))],
  };
}

/**
 * The order of concepts that suits a picture best: the most right concepts, and
 * of such orders one with the least leakage.
 *
 * @param concepts Concepts in any order, all different.
 * @param regions What is in each region.
 * @returns A concept a region.
 */
export function bestOrder(
  concepts: readonly string[],
  regions: readonly Pick<RegionFinding, "label" | "seen">[],
): readonly string[] {
  const worth = ({ label, seen }: typeof regions[number], concept: string) =>
    // One right concept outweighs leakage everywhere.
    (label === concept ? regions.length + 1 : 0) -
    (seen.some((name) => name !== concept && concepts.includes(name)) ? 1 : 0);
  // Best orders of the last regions, by the concepts that are left for them.
  const known = new Map<string, { total: number; order: string[] }>();
  const best = (
    left: readonly string[],
  ): { total: number; order: string[] } => {
    if (left.length === 0) return { total: 0, order: [] };
    const name = left.join();
    const found = known.get(name) ??
      left.map((concept) => {
        const rest = best(left.filter((other) => other !== concept));
        const region = regions[regions.length - left.length];
        return {
          total: rest.total + worth(region, concept),
          order: [concept, ...rest.order],
        };
      }).reduce((a, b) => b.total > a.total ? b : a);
    known.set(name, found);
    return found;
  };
  return best(concepts).order;
}

/**
 * Runs the experiment.
 *
 * Concepts, fused models and pictures are pieces of the store: a killed run
 * continues, and concepts trained by the ablation are used again where settings
 * are the same.
 *
 * @param options What is run.
 * @returns Yields progress; returns the report.
 * @throws Before work starts, if an option is wrong or a model does not load.
 */
export async function* regionsExperiment(
  options: RegionOptions,
): AsyncGenerator<StageProgress, RegionReport, void> {
  check(options);
  const plan = await makePlan(options);
  const { art } = plan;
  const seconds: Record<string, number> = {};
  let before = performance.now();
  const lap = (stage: string) => {
    const now = performance.now();
    seconds[stage] = (now - before) / 1000;
    before = now;
  };
  const views = plan.jobs.map((job): ViewsPiece => ({
    kind: "views",
    clip: plan.clip,
    images: job.images,
    regions: columns(job.scene.concepts.length),
    sides: windowShares(options.column),
    step: WINDOW_STEP,
  }));
  {
    using crew = await gatherCrew(
      {
        model: options.model,
        clip: options.clip,
        cache: options.cache,
        ...(options.sketch ? { networks: { sketch: options.sketch } } : {}),
      },
      options.backend,
      options.workers,
    );
    const stage = (
      name: string,
      unit: string,
      pieces: readonly Piece[],
      size: (piece: Piece) => number,
    ): ReturnType<Crew["run"]> => crew.run({ name, unit, pieces, size });
    yield* stage(
      "train",
      "step",
      plan.trains,
      (piece) => (piece as TrainPiece).config.steps,
    );
    lap("train");
    yield* stage("fuse", "model", plan.fuses, () => 1);
    lap("fuse");
    for (const job of plan.jobs) {
      if (job.piece) continue;
      for (const [i, id] of job.images.entries()) {
        const path = store.image(options.cache, id);
        if (await exists(path)) continue;
        await writeAtomic(
          path,
          encodePng(renderColumns(job.scene, i, art, job.arm)),
        );
      }
    }
    yield* stage(
      "sample",
      "image",
      plan.jobs.flatMap(({ piece }) => piece ? [piece] : []),
      (piece) => (piece as ComposePiece).noise.length,
    );
    lap("sample");
    yield* stage(
      "score",
      "image",
      [...plan.references, ...views],
      (piece) => piece.kind === "views" ? piece.images.length : 1,
    );
  }
  const { rows, labels } = await scoreRows(options, plan, views);
  lap("score");
  const timing: RegionTiming[] = [];
  if (options.timing ?? true) {
    for await (const record of timeRegions(options, plan.timed)) {
      if ("stage" in record) yield record;
      else timing.push(record);
    }
    lap("time");
  }
  return report(options, plan, rows, labels, { timing, seconds });
}

async function scoreRows(
  options: RegionOptions,
  plan: Plan,
  views: readonly ViewsPiece[],
): Promise<{ rows: RegionRow[]; labels: string[] }> {
  const clip = await loadClip(options.clip);
  try {
    const masked = new Map<string, ClipVector[]>();
    for (const piece of plan.references) {
      const own = await readEmbeddings(options.cache, piece);
      masked.set(piece.concept, own.get("masked")!);
    }
    const identities = gallery(masked);
    const backgrounds = await backgroundEntries(clip, plan.art);
    const rows: RegionRow[] = [];
    for (const [j, { arm, scene, images }] of plan.jobs.entries()) {
      const names = scene.concepts.map(({ name }) => name);
      const [text] = await embedTexts(clip, [
        captionOf(scene, options.settings.textPrefix),
      ]);
      const seen = await readEmbeddings(options.cache, views[j]);
      for (const [i, image] of images.entries()) {
        const regions = names.map((concept, r): RegionFinding => {
          const own = seen.get(`views.${i}.${r}`)!;
          const alignment = (name: string) =>
            Math.max(
              ...own.map((view) => imageAlignment(view, masked.get(name)!)),
            );
          return {
            concept,
            ...whoIsThere(own, identities, backgrounds),
            own: rounded(alignment(concept)),
            other: rounded(Math.max(
              ...names.filter((name) => name !== concept).map(alignment),
            )),
          };
        });
        rows.push({
          arm,
          n: names.length,
          concepts: names,
          background: scene.background,
          picture: i,
          scale: scene.scale,
          image,
          text: rounded(textAlignment(seen.get(`whole.${i}`)![0], text)),
          regions,
          order: bestOrder(names, regions),
        });
      }
    }
    return {
      rows,
      labels: [...identities, ...backgrounds].map(({ label }) => label),
    };
  } finally {
    disposeClip(clip);
  }
}

/**
 * A score of one picture.
 *
 * @param row The picture.
 * @param score Which.
 */
export function scoreOf(row: RegionRow, score: RegionScore): number {
  const { regions, concepts, order } = row;
  const share = (test: (finding: RegionFinding, at: number) => boolean) =>
    regions.filter(test).length / regions.length;
  const among = (names: readonly string[], but: string) =>
    names.some((name) => name !== but && concepts.includes(name));
  switch (score) {
    case "identity":
      return share(({ concept, label }) => label === concept);
    case "nearest":
      return share(({ own, other }) => own > other);
    case "replaced":
      return share(({ concept, label }) => among([label], concept));
    case "leakage":
      return share(({ concept, seen }) => among(seen, concept));
    case "missing":
      return share(({ label }) => label === "background");
    case "occupied":
      return regions.every(({ label }) => label !== "background") ? 1 : 0;
    case "complete":
      return regions.every(({ concept, label }) => label === concept) ? 1 : 0;
    case "anyOrder":
      return share(({ label }, at) => label === order[at]);
    case "anyOrderLeakage":
      return share(({ seen }, at) => among(seen, order[at]));
    case "own":
      return regions.reduce((sum, { own }) => sum + own, 0) / regions.length;
    case "text":
      return row.text;
  }
}

/** Values of rows, nested by choice of concepts and background. */
function nested(
  rows: readonly RegionRow[],
  value: (row: RegionRow) => number,
): Nested[] {
  const sets = Map.groupBy(rows, ({ concepts }) => concepts.join());
  return [...sets.values()].map((own) =>
    [...Map.groupBy(own, ({ background }) => background).values()]
      .map((same) => same.map(value))
  );
}

function cellOf(
  arm: string,
  n: number,
  scale: number,
  rows: readonly RegionRow[],
): RegionCell {
  return {
    arm,
    n,
    scale,
    pictures: rows.length,
    scores: Object.fromEntries(
      REGION_SCORES.map((score) => [
        score,
        hierarchicalBootstrap(
          nested(rows, (row) => scoreOf(row, score)),
          fold(key(0), "regions", arm, n, score),
        ),
      ]),
    ) as Record<RegionScore, Estimate>,
  };
}

/** Pictures of the same scene and noise, in two arms. */
function paired(
  rows: readonly RegionRow[],
  better: string,
  worse: string,
  n: number,
): RegionComparison | undefined {
  const nameOf = (row: RegionRow) =>
    [row.n, ...row.concepts, row.background, row.picture].join();
  const own = (arm: string) =>
    rows.filter((row) => row.arm === arm && row.n === n && row.scale === 1);
  const other = new Map(own(worse).map((row) => [nameOf(row), row]));
  const both = own(better).filter((row) => other.has(nameOf(row)));
  if (both.length === 0) return undefined;
  const difference = (score: ComparedScore): RegionDifference => {
    const values = nested(
      both,
      (row) => scoreOf(row, score) - scoreOf(other.get(nameOf(row))!, score),
    );
    return {
      ...tInterval(values.map(nestedMean)),
      bootstrap: hierarchicalBootstrap(
        values,
        fold(key(0), "regions", better, worse, n, score),
      ),
    };
  };
  return {
    better,
    worse,
    n,
    sets: new Set(both.map(({ concepts }) => concepts.join())).size,
    placed: knowsPlaces(better, n) && knowsPlaces(worse, n),
    differences: Object.fromEntries(
      COMPARED_SCORES.map((score) => [score, difference(score)]),
    ) as Record<ComparedScore, RegionDifference>,
  };
}

function report(
  options: RegionOptions,
  plan: Plan,
  rows: readonly RegionRow[],
  labels: readonly string[],
  measured: Pick<RegionReport, "timing" | "seconds">,
): RegionReport {
  const arms = REGION_ARMS.filter((arm) => rows.some((r) => r.arm === arm));
  const cells = [
    ...Map.groupBy(
      rows,
      ({ arm, n, scale }) => [arm, n, scale].join(),
    ).values(),
  ].map((own) => cellOf(own[0].arm, own[0].n, own[0].scale, own)).sort((a, b) =>
    a.n - b.n || arms.indexOf(a.arm) - arms.indexOf(b.arm) || a.scale - b.scale
  );
  const pairs: [string, string][] = [
    ...REGION_FUSIONS.flatMap((fusion): [string, string][] => [
      [`regional.${fusion}`, `plain.${fusion}`],
      [`regional+negative.${fusion}`, `regional.${fusion}`],
      [`regional+sketch.${fusion}`, `regional.${fusion}`],
    ]),
    ["regional.gradient", "regional.weight"],
    ["regional.gradient", "region-adapters"],
    ["regional.gradient", "switch"],
    ["regional.gradient", "composite"],
  ];
  const comparisons = options.counts.flatMap((n) =>
    pairs.flatMap(([better, worse]) => paired(rows, better, worse, n) ?? [])
  );
  return {
    format: "mix-of-show regions 3",
    created: options.created ?? new Date().toISOString(),
    concepts: options.concepts,
    arms,
    table: cells.filter(({ scale }) => scale === 1),
    resolution: cells.filter(({ arm, n }) =>
      RESOLUTION_ARMS.includes(arm) &&
      cells.some((c) => c.n === n && c.scale !== 1)
    ),
    comparisons,
    ...measured,
    rows,
    gallery: labels,
    verdict: regionVerdict(comparisons, rows),
    settings: {
      ...options.settings,
      seed: options.seed,
      counts: options.counts,
      sets: options.sets,
      backgrounds: options.backgrounds,
      pictures: options.pictures,
      regions: { ...REGION_EDGES, sites: plan.sites },
      column: options.column,
      windows: {
        sides: windowShares(options.column),
        step: WINDOW_STEP,
      },
      lambda: 1 / options.concepts.length,
      backend: options.backend,
      workers: options.workers,
    },
    hashes: { model: plan.base, clip: plan.clip, ...plan.networks },
  };
}

/** What is found in the pictures of an arm, in words. */
function foundIn(
  rows: readonly RegionRow[],
  arm: string,
  n: number,
  placed: boolean,
): string | undefined {
  const own = rows.filter((row) =>
    row.arm === arm && row.n === n && row.scale === 1
  );
  if (own.length === 0) return undefined;
  const percent = (score: RegionScore) =>
    100 * own.reduce((sum, row) => sum + scoreOf(row, score), 0) / own.length;
  const nobody = percent("missing");
  if (!placed) {
    return `${percent("anyOrder").toFixed(0)} % of the concepts somewhere, ` +
      `nobody in ${nobody.toFixed(0)} % of the regions`;
  }
  const [right, replaced] = [percent("identity"), percent("replaced")];
  const strangers = 100 - right - replaced - nobody;
  return `the right concept in ${right.toFixed(0)} % of the regions, another ` +
    `of the picture in ${replaced.toFixed(0)} %, somebody else in ` +
    `${strangers.toFixed(0)} %, nobody in ${nobody.toFixed(0)} %`;
}

/** Compared scores in words, and the sign of a difference that is better. */
const COMPARED_WORDS: Readonly<Record<ComparedScore, [string, 1 | -1]>> = {
  identity: ["identity per region", 1],
  nearest: ["own concept nearest of the picture's", 1],
  replaced: ["replacement by another", -1],
  leakage: ["leakage (another is seen)", -1],
  anyOrder: ["identity in any order", 1],
  anyOrderLeakage: ["leakage in any order", -1],
  own: ["masked alignment", 1],
};

/**
 * What the numbers say about regions against the plain prompt; where regions do
 * not surely win, what is in them instead. A paragraph for every number of
 * concepts and fusion.
 *
 * @param comparisons Arms on the same scenes.
 * @param rows Every picture.
 */
export function regionVerdict(
  comparisons: readonly RegionComparison[],
  rows: readonly RegionRow[],
): string {
  const main = comparisons.filter(({ worse }) => worse.startsWith("plain."));
  if (main.length === 0) return "Regions and plain prompts were not compared.";
  const signed = (value: number) =>
    (value >= 0 ? "+" : "−") +
    (Number.isFinite(value) ? Math.abs(value).toFixed(2) : "∞");
  const said = ({ mean, low, high }: Estimate) =>
    `${signed(mean)} [${signed(low)}, ${signed(high)}]` +
    (low > 0 || high < 0 ? "" : ", which may be chance");
  return main.map(({ better, n, placed, differences }) => {
    const judged: readonly ComparedScore[] = placed
      ? ["identity", "nearest", "replaced", "leakage"]
      : ["anyOrder", "anyOrderLeakage"];
    const wins = judged.filter((score) => {
      const { low, high } = differences[score];
      return COMPARED_WORDS[score][1] === 1 ? low > 0 : high < 0;
    }).map((score) => COMPARED_WORDS[score][0]);
    const fusion = better.split(".")[1];
    const shown: readonly ComparedScore[] = placed
      ? [...judged, "own"]
      : judged;
    const numbers = shown.map((score) =>
      `${COMPARED_WORDS[score][0]} ${said(differences[score])}`
    ).join("; ");
    const head = `${n} concepts, ${fusion} fusion: ` +
      (placed
        ? ""
        : "the plain prompt has no words for so many places, so only any " +
          "order is judged; ");
    if (wins.length === judged.length) {
      return `${head}regions beat the plain prompt in ${wins.join(", ")} ` +
        `(${numbers}).`;
    }
    const bounds = [
      ["in rendered pictures", foundIn(rows, "real", n, placed)],
      ["in empty backgrounds", foundIn(rows, "empty", n, placed)],
    ].flatMap(([where, found]) => found ? [`; ${where}, ${found}`] : []);
    return head +
      (wins.length > 0
        ? `regions beat the plain prompt in ${wins.join(", ")} only`
        : "regions do not surely beat the plain prompt") +
      ` (${numbers}). Why not: with regions there is ` +
      `${foundIn(rows, better, n, placed)}; with the plain prompt, ` +
      `${foundIn(rows, `plain.${fusion}`, n, placed)}${bounds.join("")}.`;
  }).join("\n\n");
}

/** Pairs of pictures that are timed, the first not counted. */
const TIMED_PAIRS = 4;

/** Numbers of regions that are timed. */
const TIMED_REGIONS = [1, 2, 3, 4] as const;

/**
 * Times whole pictures of the experiment's layouts, one to four regions, each
 * against the plain picture of the same size; the two are drawn in turns, step
 * by step.
 *
 * @param options Model, settings and whose words stand in the prompts.
 * @param ref The model: a fused one, or the base, which knows class words only.
 * @returns Yields progress and, after each layout, its record.
 */
async function* timeRegions(
  { model, cache, settings, concepts, column }: RegionOptions,
  ref: ModelRef,
): AsyncGenerator<StageProgress | RegionTiming, void, void> {
  const phrase: PhraseOf = ref.type === "base"
    ? classOf
    : (identity) => phraseOf(settings, "edlora", identity);
  const base = await loadModel(model);
  try {
    for (const [i, regions] of TIMED_REGIONS.entries()) {
      const scene: Scene = {
        // Who it is costs nothing: with few concepts they come twice.
        concepts: Array.from(
          { length: regions },
          (_, at) => identityOf(concepts[at % concepts.length]),
        ),
        background: SCENE_BACKGROUNDS[0].word,
        where: SCENE_BACKGROUNDS[0].phrases[0],
        scale: 1,
        column,
      };
      const resolve = (way: "plain" | "regional") =>
        resolveLayout(parseLayout(sceneLayout(scene, way, phrase, settings)));
      const layouts = [await resolve("plain"), await resolve("regional")];
      const pairs = await withModel(base, cache, ref, async (model) => {
        const pairs: PictureTime[][] = [];
        for (let pair = 0; pair < TIMED_PAIRS; pair++) {
          pairs.push(await timeInTurns(model, layouts));
        }
        return pairs.slice(1);
      });
      yield {
        stage: "time",
        unit: "layout",
        done: i + 1,
        total: TIMED_REGIONS.length,
      };
      const part = (
        times: (picture: PictureTime) => readonly number[],
      ): TimedPart => ({
        seconds: median(pairs.flatMap(([, regional]) => times(regional))),
        ratio: median(
          pairs.flatMap(([plain, regional]) =>
            times(regional).map((own, at) => own / times(plain)[at])
          ),
        ),
      });
      yield {
        regions,
        step: part(({ steps }) => steps),
        picture: part(({ whole }) => [whole]),
      };
    }
  } finally {
    disposeModel(base);
  }
}

/** Seconds of one picture. */
interface PictureTime {
  /** Its sampling steps; not the first, in which prompts are read. */
  readonly steps: readonly number[];
  /** All of it. */
  readonly whole: number;
}

/** Draws one picture of each layout, all step by step in turns. */
async function timeInTurns(
  model: Model,
  layouts: readonly ResolvedLayout[],
): Promise<PictureTime[]> {
  const runs = layouts.map((layout) => timedPicture(model, layout));
  const times: PictureTime[] = [];
  try {
    while (times.length < runs.length) {
      for (const run of runs) {
        const next = await run.next();
        if (next.done) times.push(next.value);
      }
    }
  } finally {
    for (const run of runs) await run.return({ steps: [], whole: 0 });
  }
  return times;
}

/** Draws one picture and stops after each step; only its own time counts. */
async function* timedPicture(
  model: Model,
  layout: ResolvedLayout,
): AsyncGenerator<void, PictureTime, void> {
  const parts: number[] = [];
  let before = performance.now();
  for await (const record of drawLayout(model, layout)) {
    // The numbers have to be there, not only to be on their way.
    await (record.type === "step" ? record.latent : record.images).data();
    parts.push((performance.now() - before) / 1000);
    if (record.type === "images") record.images.dispose();
    yield;
    before = performance.now();
  }
  const whole = parts.reduce((sum, part) => sum + part, 0);
  // The last part is decoding. A single step has to stand for itself.
  const steps = parts.slice(parts.length > 2 ? 1 : 0, -1);
  return { steps, whole };
}

/**
 * Pictures for a contact sheet: the first scene of every number of concepts, in
 * every arm.
 *
 * @param report The report.
 * @param cache Folder of the store.
 * @param perCount Scenes of each number of concepts.
 * @returns Paths by arm, one entry a scene.
 */
export function regionPictures(
  report: Pick<RegionReport, "rows" | "arms">,
  cache: string,
  perCount = 3,
): {
  readonly n: number;
  readonly concepts: readonly string[];
  readonly pictures: ReadonlyMap<string, string>;
  /** Who is in each region, by arm. */
  readonly found: ReadonlyMap<string, readonly string[]>;
}[] {
  const first = report.rows.filter(({ picture, scale }) =>
    picture === 0 && scale === 1
  );
  const scenes = Map.groupBy(
    first,
    ({ concepts, background }) => [...concepts, background].join(),
  );
  const taken = new Map<number, number>();
  return [...scenes.values()].flatMap((own) => {
    const [{ n, concepts }] = own;
    const count = taken.get(n) ?? 0;
    if (count >= perCount) return [];
    taken.set(n, count + 1);
    return [{
      n,
      concepts,
      pictures: new Map(
        own.map((row) => [row.arm, regionPicture(row, cache)]),
      ),
      found: new Map(
        own.map(({ arm, regions }) => [arm, regions.map(({ label }) => label)]),
      ),
    }];
  });
}

/**
 * Where the picture of a row is.
 *
 * @param row The row.
 * @param cache Folder of the store.
 */
export function regionPicture(
  { image }: Pick<RegionRow, "image">,
  cache: string,
): string {
  return store.image(cache, image);
}

/** Folder of the sketch adapter in a model folder, if it is there. */
export async function sketchFolder(
  model: string,
): Promise<string | undefined> {
  const folder = joinPath(model, "adapter");
  return await exists(joinPath(folder, "config.json")) ? folder : undefined;
}
