/**
 * Layouts: a picture with regions and conditions as data, the same JSON for the
 * command line, the API and notebooks.
 *
 * {@linkcode parseLayout} checks the document, {@linkcode resolveLayout} loads
 * its files, {@linkcode checkLayout} checks it against a model, {@linkcode
 * drawLayout} draws it.
 *
 * @module
 */
import * as z from "zod";
import { cannot, reasonOf } from "../core/errors.ts";
import { fold, key } from "../core/random.ts";
import { disposeTree } from "../core/tree.ts";
import { parentOf, pathFrom, pathOf, readJson } from "../io/files.ts";
import { fitMask, maskOf } from "../io/mask.ts";
import { readPicture } from "../io/picture.ts";
import type { Pixels } from "../io/png.ts";
import { flatten } from "../io/resize.ts";
import { downsampleFactor } from "../models/autoencoder.ts";
import type { Model } from "../models/model.ts";
import type { PromptSyntax } from "../models/prompts.ts";
import { attentionGrids, type UNetOptions } from "../models/unet.ts";
import {
  canny,
  conditionTensor,
  type Grey,
  greyOf,
  greyPixels,
  keyPointImage,
  maskImage,
} from "./condition_images.ts";
import {
  type Condition,
  conditionChannels,
  conditionedSampling,
  type ConditionNetwork,
  isPooled,
  misfits,
} from "./conditions.ts";
import { initLatents } from "./init.ts";
import {
  pipeline,
  type PipelineOptions,
  type PipelineRecord,
  type UNetCall,
} from "./pipeline.ts";
import {
  type RegionalOptions,
  regionalSampling,
  type RegionPrompt,
  type Shape,
  shapeMap,
  shareOut,
} from "./regions.ts";
import { type SamplerName, SAMPLERS } from "./samplers.ts";

const number = z.number();
const fraction = z.number().min(0).max(1);
const pixels = z.number().int().positive();
const seed = z.number().int().min(0);

const boxSchema = z.strictObject({
  top: number,
  left: number,
  bottom: number,
  right: number,
  unit: z.enum(["fraction", "pixel"]).default("fraction")
    .describe("Parts of the picture, or pixels of its size"),
}).describe("A box, from the top left");

const maskSchema = z.union([
  z.strictObject({
    file: z.string().min(1).describe("A PNG beside the layout, white inside"),
  }),
  z.strictObject({
    // A picture in characters: "#" is inside.
    rows: z.array(z.string().regex(/^[#.]+$/, "only # and . may be here"))
      .nonempty().describe("A picture in characters: # is inside, . outside"),
  }),
]).describe("A place of any shape, stretched over the picture");

const regionSchema = z.strictObject({
  box: boxSchema.optional(),
  mask: maskSchema.optional(),
  prompt: z.string().trim().min(1, "a region needs a prompt")
    .describe("What is there"),
  negative: z.string().optional()
    .describe("What it stays away from; the layout's where it is left out"),
  priority: number.default(0)
    .describe(
      "Which region is in front where regions overlap; equal values share",
    ),
  concepts: z.array(z.string()).default([])
    .describe("Names of concepts whose adapters act here, not fused"),
});

const color = z.tuple([fraction, fraction, fraction]);

const imageSchema = z.union([
  z.strictObject({ file: z.string().min(1) })
    .describe("A PNG of the picture's size"),
  z.strictObject({
    edges: z.strictObject({
      file: z.string().min(1),
      sigma: number.min(0).default(1),
      low: number.min(0).default(0.1),
      high: number.min(0).default(0.2),
    }),
  }).describe("Canny edges of a PNG"),
  z.strictObject({ regions: z.enum(["fill", "outline"]) })
    .describe("The regions, white on black"),
  z.strictObject({
    points: z.array(
      z.strictObject({ x: number, y: number, color: color.optional() }),
    ).nonempty(),
    links: z.array(
      z.tuple([z.number().int().min(0), z.number().int().min(0)]),
    ).default([]),
    radius: z.number().positive().default(0.02),
  }).describe("Key points in fractions of the picture, joined by links"),
]);

const conditionSchema = z.strictObject({
  type: z.enum(["t2i_adapter", "controlnet"]),
  network: z.string().min(1).describe("Its name: --network NAME=FOLDER"),
  image: imageSchema.describe("What the network sees"),
  scale: number.default(1).describe("How strongly it acts"),
  start: fraction.default(0).describe("Part of the steps it waits"),
  end: fraction.default(1).describe("Part of the steps after which it ends"),
  guess: z.boolean().default(false).describe("ControlNet's guess mode"),
  regions: z.array(number).optional()
    .describe("A further factor inside each region"),
});

const layoutSchema = z.strictObject({
  $schema: z.string().optional(),
  prompt: z.string().describe("What the whole picture shows"),
  negative: z.string().default("").describe("What it stays away from"),
  size: z.strictObject({ width: pixels, height: pixels }).optional()
    .describe("Pixels; the model's own size where it is left out"),
  seed: z.union([seed, z.array(seed).nonempty()]).default(0).describe(
    "Seed of the noise, or several",
  ),
  count: z.number().int().positive().default(1)
    .describe("How many pictures of each seed"),
  sampler: z.enum(SAMPLERS as readonly [SamplerName, ...SamplerName[]])
    .default("dpmpp_2m"),
  steps: z.number().int().positive().default(20),
  guidance: number.default(7.5),
  clipSkip: z.number().int().min(1).default(1).describe(
    "Ends the text encoder early: 1 is its last layer, 2 the one before it",
  ),
  syntax: z.enum(["a1111", "plain"]).default("a1111").describe(
    "Whether (fox:1.5), [fox] and BREAK are A1111's weights and breaks and " +
      "long prompts are read in chunks, or all is plain text",
  ),
  init: z.strictObject({
    file: z.string().min(1)
      .describe("Beside the layout; cropped to the picture's shape"),
  }).optional().describe("A picture to start from, image to image"),
  mask: maskSchema.optional()
    .describe("Where init is painted anew: white; the rest stays"),
  strength: number.gt(0).max(1).optional().describe(
    "How much of init is made anew, the part of the steps that is taken: " +
      "0.8 where it is left out, 1 with a mask",
  ),
  regions: z.array(regionSchema).default([])
    .describe("Places with prompts of their own, each a box or a mask"),
  regional: z.strictObject({
    replaceRatio: fraction.default(1)
      .describe("How much of the whole prompt's attention regions replace"),
    start: fraction.default(0).describe("Part of the steps regions wait"),
    end: fraction.default(1)
      .describe("Part of the steps after which regions end"),
    feather: number.min(0).max(0.5).default(0)
      .describe("Softness of edges, a fraction of the shorter side"),
  }).prefault({}).describe("How regions are blended and when they count"),
  conditions: z.array(conditionSchema).default([])
    .describe("Pictures that steer, through T2I-Adapters and ControlNets"),
  limits: z.strictObject({
    regions: z.number().int().min(0).default(8).describe("Most regions"),
    overlap: fraction.default(0.5).describe(
      "How much of the smaller of two regions of equal priority may lie in " +
        "the other",
    ),
  }).prefault({}).describe("What makes a layout an error"),
}).describe("A picture with regions and conditions");

/** A width and a height, pixels. */
export interface Size {
  /** Width. */
  readonly width: number;
  /** Height. */
  readonly height: number;
}

/** A box of a layout. */
export interface LayoutBox {
  /** Upper edge. */
  readonly top: number;
  /** Left edge. */
  readonly left: number;
  /** Lower edge. */
  readonly bottom: number;
  /** Right edge. */
  readonly right: number;
  /**
   * Unit of the numbers: fractions of the picture's sides, or pixels of its
   * `size`.
   */
  readonly unit: "fraction" | "pixel";
}

/** A mask of a layout: a PNG, white inside, or rows of `#` (inside) and `.`. */
export type LayoutMask =
  | { readonly file: string }
  | { readonly rows: readonly string[] };

/** A region of a layout: a box or a mask, and its prompt. */
export interface LayoutRegion {
  /** The place, if it is a box. */
  readonly box?: LayoutBox | undefined;
  /** The place, if it is a mask. */
  readonly mask?: LayoutMask | undefined;
  /** Prompt of the region. */
  readonly prompt: string;
  /** Negative prompt. @default the layout's */
  readonly negative?: string | undefined;
  /** Where regions overlap, the one with the higher priority is in front. */
  readonly priority: number;
  /** Names of concepts whose adapters act here. */
  readonly concepts: readonly string[];
}

/** Where the image of a condition comes from. */
export type LayoutImage =
  | { readonly file: string }
  | {
    /** Canny edges of a picture. */
    readonly edges: {
      readonly file: string;
      readonly sigma: number;
      readonly low: number;
      readonly high: number;
    };
  }
  | { readonly regions: "fill" | "outline" }
  | {
    /** Key points, fractions of the picture, colours in [0, 1]. */
    readonly points: readonly {
      readonly x: number;
      readonly y: number;
      readonly color?: readonly [number, number, number] | undefined;
    }[];
    /** Pairs of points that are joined. */
    readonly links: readonly (readonly [number, number])[];
    readonly radius: number;
  };

/** A condition of a layout. */
export interface LayoutCondition {
  /** Kind of network. */
  readonly type: "t2i_adapter" | "controlnet";
  /** Name of the network among those given. */
  readonly network: string;
  /** The condition image. */
  readonly image: LayoutImage;
  /** Strength. */
  readonly scale: number;
  /** Fraction of the steps at which it starts. */
  readonly start: number;
  /** Fraction of the steps at which it ends. */
  readonly end: number;
  /** ControlNet's guess mode. */
  readonly guess: boolean;
  /** A factor for each region. */
  readonly regions?: readonly number[] | undefined;
}

/**
 * A layout, defaults filled in.
 *
 * `regions` have a `box` (fractions, or pixels with `unit: "pixel"`) or a
 * `mask` (a PNG, white inside, or rows of `#` and `.`); a region without
 * `negative` has the layout's. `limits.overlap` is the largest fraction of the
 * smaller of two regions with equal priority that may lie in the other.
 */
export interface Layout {
  /** JSON schema, for editors. */
  readonly $schema?: string | undefined;
  /** What the whole picture shows. */
  readonly prompt: string;
  /** Negative prompt. */
  readonly negative: string;
  /** Size of the picture; the model's own where it is left out. */
  readonly size?: Size | undefined;
  /** Seed of the noise, or several. */
  readonly seed: number | readonly number[];
  /** Pictures per seed. */
  readonly count: number;
  /** Sampler. */
  readonly sampler: SamplerName;
  /** Sampling steps. */
  readonly steps: number;
  /** Guidance scale. */
  readonly guidance: number;
  /** 1 is the text encoder's last layer, 2 the one before it. */
  readonly clipSkip: number;
  /** Whether prompts are in A1111's syntax, or plain text. */
  readonly syntax: PromptSyntax;
  /** A picture to start from. */
  readonly init?: { readonly file: string } | undefined;
  /** Where `init` is repainted (white). */
  readonly mask?: LayoutMask | undefined;
  /** Strength of image-to-image; see {@linkcode layoutStrength}. */
  readonly strength?: number | undefined;
  /** Places with prompts of their own. */
  readonly regions: readonly LayoutRegion[];
  /** How regions are blended and when they count. */
  readonly regional: {
    readonly replaceRatio: number;
    readonly start: number;
    readonly end: number;
    readonly feather: number;
  };
  /** Images that guide the picture. */
  readonly conditions: readonly LayoutCondition[];
  /** Most regions, and the largest overlap of two. */
  readonly limits: { readonly regions: number; readonly overlap: number };
}

/** A layout as it is written: fields with a default may be absent. */
export interface LayoutInput
  extends
    Partial<Omit<Layout, "regions" | "regional" | "conditions" | "limits">> {
  /** What the whole picture shows. */
  readonly prompt: string;
  /** Places with prompts of their own. */
  readonly regions?:
    | readonly (
      & Omit<LayoutRegion, "box" | "priority" | "concepts">
      & Partial<Pick<LayoutRegion, "priority" | "concepts">>
      & { readonly box?: Partial<LayoutBox> | undefined }
    )[]
    | undefined;
  /** How regions are blended and when they count. */
  readonly regional?: Partial<Layout["regional"]> | undefined;
  /** Images that guide the picture. */
  readonly conditions?:
    | readonly (
      & Omit<LayoutCondition, "image" | "scale" | "start" | "end" | "guess">
      & Partial<Pick<LayoutCondition, "scale" | "start" | "end" | "guess">>
      & { readonly image: LayoutImageInput }
    )[]
    | undefined;
  /** Most regions, and the largest overlap of two. */
  readonly limits?: Partial<Layout["limits"]> | undefined;
}

/** The image of a condition as it is written. */
export type LayoutImageInput =
  | LayoutImage
  | { readonly edges: { readonly file: string } }
  | { readonly points: readonly { readonly x: number; readonly y: number }[] };

/** The JSON schema of a layout file, for editors (`"$schema"`). */
export function layoutJsonSchema(): Record<string, unknown> {
  return z.toJSONSchema(layoutSchema, { io: "input" });
}

/** An error message and the path of its field. */
interface Problem {
  readonly path: string;
  readonly message: string;
}

function refuse(problems: readonly Problem[], name: string): void {
  if (problems.length === 0) return;
  throw cannot(
    `read ${name}`,
    "a layout that can be drawn",
    problems.map(({ path, message }) => `${path}: ${message}`).join("; "),
  );
}

/**
 * Checks a layout document as far as that is possible without other files.
 *
 * @param json Parsed JSON.
 * @param name What to call it in messages.
 * @returns The layout, defaults filled in.
 * @throws One error with the path of every field that does not fit.
 *
 * @example
 * ```ts
 * const layout = parseLayout({
 *   prompt: "two animals on grass",
 *   regions: [{
 *     box: { top: 0, left: 0, bottom: 1, right: 0.5 },
 *     prompt: "a <fox1> <fox2>",
 *   }],
 * });
 * ```
 */
export function parseLayout(json: unknown, name = "the layout"): Layout {
  const result = layoutSchema.safeParse(json);
  if (!result.success) {
    refuse(
      result.error.issues.map(({ path, message }) => ({
        path: path.join(".") || "(root)",
        message,
      })),
      name,
    );
  }
  const layout = result.data!;
  const problems: Problem[] = [];
  const report = (path: string, message: string) =>
    problems.push({ path, message });
  const { regions, limits, conditions, size } = layout;
  checkStart(layout, report);
  const seeds = layoutSeeds(layout);
  const twice = seeds.find((seed, i) => seeds.indexOf(seed) !== i);
  if (twice !== undefined) report("seed", `has ${twice} twice`);
  if (regions.length > limits.regions) {
    report(
      "regions",
      `${regions.length} are too many (limits.regions is ${limits.regions})`,
    );
  }
  regions.forEach(({ box, mask }, i) => {
    const path = `regions.${i}`;
    if ((box === undefined) === (mask === undefined)) {
      report(path, "needs a box or a mask, and not both");
    }
    if (box) checkBox(box, size, `${path}.box`, report);
    checkRows(mask, `${path}.mask`, report);
  });
  const { start, end } = layout.regional;
  if (start > end) report("regional.start", "is after regional.end");
  conditions.forEach((condition, i) => {
    const path = `conditions.${i}`;
    if (condition.start > condition.end) {
      report(`${path}.start`, "is after end");
    }
    if (condition.guess && condition.type !== "controlnet") {
      report(`${path}.guess`, "is for controlnet only");
    }
    if (condition.regions && condition.regions.length !== regions.length) {
      report(
        `${path}.regions`,
        `has ${condition.regions.length} factors for ${regions.length} regions`,
      );
    }
    if ("edges" in condition.image) {
      const { low, high } = condition.image.edges;
      if (low > high) report(`${path}.image.edges.low`, "is above high");
    }
    if ("regions" in condition.image && regions.length === 0) {
      report(`${path}.image.regions`, "there are no regions");
    }
    if ("links" in condition.image) {
      const { links, points } = condition.image;
      links.forEach((link, k) => {
        if (link.some((point) => point >= points.length)) {
          report(`${path}.image.links.${k}`, `there is no point ${link}`);
        }
      });
    }
  });
  refuse(problems, name);
  return layout;
}

/** The seeds of a layout. */
export function layoutSeeds({ seed }: Pick<Layout, "seed">): readonly number[] {
  return typeof seed === "number" ? [seed] : seed;
}

/** Number of pictures of a layout: `count` per seed. */
export function layoutPictures(
  layout: Pick<Layout, "seed" | "count">,
): number {
  return layoutSeeds(layout).length * layout.count;
}

/**
 * The strength of image to image: the layout's, else 1 with a mask, 0.8
 * without.
 */
export function layoutStrength(
  { strength, mask }: Pick<Layout, "strength" | "mask">,
): number {
  return strength ?? (mask ? 1 : 0.8);
}

/** Records a problem. */
type Report = (path: string, message: string) => void;

/** Whether there is a picture to start from, and a step to start at. */
function checkStart(layout: Layout, report: Report): void {
  const { init, mask, strength, steps } = layout;
  checkRows(mask, "mask", report);
  if (!init) {
    if (mask) report("mask", "needs init, the picture that it masks");
    if (strength !== undefined) {
      report("strength", "needs init, the picture to start from");
    }
    return;
  }
  if (Math.floor(steps * layoutStrength(layout)) < 1) {
    report(
      "strength",
      `is less than a step of ${steps}: at least ${1 / steps}`,
    );
  }
}

function checkRows(
  mask: LayoutMask | undefined,
  path: string,
  report: Report,
): void {
  if (!mask || !("rows" in mask)) return;
  const [{ length }] = mask.rows;
  mask.rows.forEach((row, y) => {
    if (row.length !== length) {
      report(`${path}.rows.${y}`, `is not ${length} wide`);
    }
  });
}

function checkBox(
  box: LayoutBox,
  size: Size | undefined,
  path: string,
  report: Report,
): void {
  const pixel = box.unit === "pixel";
  if (pixel && !size) {
    report(`${path}.unit`, "pixels need the layout's size");
    return;
  }
  const [height, width] = pixel ? [size!.height, size!.width] : [1, 1];
  const canvas = { top: height, bottom: height, left: width, right: width };
  let inside = true;
  for (const side of ["top", "left", "bottom", "right"] as const) {
    if (box[side] >= 0 && box[side] <= canvas[side]) continue;
    inside = false;
    const hint = !pixel && box[side] > 1 ? ' (pixels need unit: "pixel")' : "";
    report(
      `${path}.${side}`,
      `${box[side]} is off the canvas, 0 to ${canvas[side]}${hint}`,
    );
  }
  if (!inside) return;
  if (box.top >= box.bottom) report(path, "is empty: top is not above bottom");
  if (box.left >= box.right) report(path, "is empty: left is not before right");
}

/** A condition with its image, not yet with its network. */
export interface ResolvedCondition {
  /** The condition as the layout has it. */
  readonly spec: Layout["conditions"][number];
  /** At the size of the file; drawn ones at the layout's size. */
  readonly image: Grey | Pixels;
}

/** A layout with the files that it refers to. */
export interface ResolvedLayout {
  /** The layout itself. */
  readonly layout: Layout;
  /** What to call it in messages. */
  readonly name: string;
  /** Places and prompts, for regional sampling. */
  readonly regions: readonly RegionPrompt[];
  /** Conditions with their images. */
  readonly conditions: readonly ResolvedCondition[];
  /** Image-to-image: the picture at the size of its file, and its mask. */
  readonly start?: {
    readonly picture: Pixels;
    /** Mask of the picture's size, white where it is repainted. */
    readonly mask?: Pixels;
  };
}

/** Settings of {@linkcode resolveLayout}. */
export interface ResolveOptions {
  /** Reads a picture by the path in the layout. */
  readonly read?: (path: string) => Promise<Pixels>;
  /**
   * Size of the picture where the layout gives none, see
   * {@linkcode modelSize}; needed to draw condition images.
   */
  readonly size?: Size;
  /** What to call it in messages. */
  readonly name?: string;
}

/**
 * Loads masks and condition images of a layout and checks the regions against
 * each other.
 *
 * @param layout From {@linkcode parseLayout}.
 * @param options How pictures are read.
 * @throws One error with the path of every field that does not fit: missing
 * pictures, empty masks, regions that overlap beyond the limit.
 */
export async function resolveLayout(
  layout: Layout,
  options: ResolveOptions = {},
): Promise<ResolvedLayout> {
  const { name = "the layout", read = readPicture } = options;
  const size = layout.size ?? options.size;
  const problems: Problem[] = [];
  const picture: PictureReader = async (path, file) => {
    try {
      return await read(file);
    } catch (error) {
      problems.push({ path, message: reasonOf(error) });
    }
  };
  const shapes: (Shape | undefined)[] = [];
  for (const [i, region] of layout.regions.entries()) {
    const path = `regions.${i}`;
    shapes.push(await shapeOf(region, layout.size, path, picture, problems));
  }
  refuse(problems, name);
  const placed = shapes as Shape[];
  checkOverlap(layout, placed, problems);
  refuse(problems, name);
  const start = await startPictures(layout, picture, problems);
  const conditions: ResolvedCondition[] = [];
  for (const [i, spec] of layout.conditions.entries()) {
    const path = `conditions.${i}.image`;
    const image = await conditionImage(
      spec.image,
      path,
      placed,
      size,
      picture,
      problems,
    );
    if (image) conditions.push({ spec, image });
  }
  refuse(problems, name);
  return {
    layout,
    name,
    regions: layout.regions.map(({ prompt, negative, priority }, i) => ({
      shape: placed[i],
      prompt,
      negative: negative ?? layout.negative,
      priority,
    })),
    conditions,
    ...(start ? { start } : {}),
  };
}

/**
 * Reads a picture for a field of the layout; records a problem if that fails.
 */
type PictureReader = (
  path: string,
  file: string,
) => Promise<Pixels | undefined>;

/** A region's box as shares of the picture, or its mask. */
async function shapeOf(
  { box, mask }: Layout["regions"][number],
  size: Size | undefined,
  path: string,
  read: PictureReader,
  problems: Problem[],
): Promise<Shape | undefined> {
  if (box) {
    // parseLayout has checked that a layout with pixel boxes has a size.
    const by = box.unit === "pixel" ? size! : { width: 1, height: 1 };
    return {
      box: {
        top: box.top / by.height,
        left: box.left / by.width,
        bottom: box.bottom / by.height,
        right: box.right / by.width,
      },
    };
  }
  const grey = "file" in mask!
    ? await read(`${path}.mask.file`, mask.file).then((p) =>
      p && greyOf(maskOf(p))
    )
    : rowsMask(mask!.rows);
  if (!grey || grey.values.some((v) => v >= 0.5)) return grey && { mask: grey };
  problems.push({ path: `${path}.mask`, message: "is empty" });
}

/** Reads a condition's picture, finds its edges, or draws it. */
async function conditionImage(
  image: Layout["conditions"][number]["image"],
  path: string,
  shapes: readonly Shape[],
  size: Size | undefined,
  read: PictureReader,
  problems: Problem[],
): Promise<ResolvedCondition["image"] | undefined> {
  if ("file" in image) return await read(`${path}.file`, image.file);
  if ("edges" in image) {
    const { file, ...settings } = image.edges;
    const found = await read(`${path}.edges.file`, file);
    return found && canny(greyOf(flatten(found)), settings);
  }
  if (!size) {
    problems.push({ path: "size", message: `is needed to draw ${path}` });
    return;
  }
  const { height, width } = size;
  if ("regions" in image) {
    const draw = image.regions === "fill" ? maskImage : outlines;
    return draw(shapes, height, width);
  }
  const { points, links, radius } = image;
  return keyPointImage(
    points.map(({ color, ...at }) => color ? { ...at, color } : at),
    height,
    width,
    { links, radius },
  );
}

/** Reads the initial picture and its mask, resized to the picture. */
async function startPictures(
  { init, mask }: Layout,
  read: PictureReader,
  problems: Problem[],
): Promise<ResolvedLayout["start"]> {
  if (!init) return undefined;
  const picture = await read("init.file", init.file);
  if (!picture || !mask) return picture && { picture };
  const { width, height } = picture;
  if ("rows" in mask) {
    // Sharp edges, as a region's.
    const white = shapeMap({ mask: rowsMask(mask.rows) }, height, width);
    return { picture, mask: greyPixels({ width, height, values: white }) };
  }
  const white = await read("mask.file", mask.file);
  if (!white) return { picture };
  try {
    return { picture, mask: fitMask(maskOf(white), picture, mask.file) };
  } catch (error) {
    problems.push({ path: "mask.file", message: reasonOf(error) });
  }
}

/** A mask written in characters. */
function rowsMask(rows: readonly string[]): Grey {
  return {
    width: rows[0].length,
    height: rows.length,
    values: Float32Array.from(
      rows.join(""),
      (character) => character === "#" ? 1 : 0,
    ),
  };
}

/**
 * Edges of each region separately, so that the border between neighbours is
 * drawn.
 */
function outlines(
  shapes: readonly Shape[],
  height: number,
  width: number,
): Grey {
  const values = new Float32Array(height * width);
  for (const shape of shapes) {
    const edges = canny(maskImage([shape], height, width), { sigma: 0 });
    edges.values.forEach((v, i) => values[i] = Math.max(values[i], v));
  }
  return { width, height, values };
}

/** Side of the grid on which overlaps are measured. */
const OVERLAP_GRID = 64;

function checkOverlap(
  { regions, limits }: Layout,
  shapes: readonly Shape[],
  problems: Problem[],
): void {
  const maps = shapes.map((s) => shapeMap(s, OVERLAP_GRID, OVERLAP_GRID));
  const areas = maps.map((map) => map.reduce((a, b) => a + b, 0));
  for (let j = 0; j < maps.length; j++) {
    for (let i = 0; i < j; i++) {
      // Different priorities decide the order.
      if (regions[i].priority !== regions[j].priority) continue;
      const common = maps[j].reduce((sum, v, k) => sum + v * maps[i][k], 0);
      const part = common / Math.max(1, Math.min(areas[i], areas[j]));
      if (part <= limits.overlap) continue;
      problems.push({
        path: `regions.${j}`,
        message: `shares ${Math.round(100 * part)} % of the smaller one with ` +
          `regions.${i} (limits.overlap is ${limits.overlap}; priorities ` +
          "would say which region is in front)",
      });
    }
  }
}

/**
 * Reads a layout file; pictures are found beside it.
 *
 * @param path The JSON file.
 * @param options Size where the layout gives none; `changes` of fields, as a
 * command line does.
 * @throws As {@linkcode parseLayout} and {@linkcode resolveLayout}.
 */
export async function readLayout(
  path: string | URL,
  options: Pick<ResolveOptions, "size"> & {
    readonly changes?: Readonly<Record<string, unknown>>;
  } = {},
): Promise<ResolvedLayout> {
  const { changes, ...rest } = options;
  const name = pathOf(path);
  const json = await readJson(path, z.record(z.string(), z.unknown()));
  const layout = parseLayout({ ...json, ...changes }, name);
  const folder = parentOf(name);
  return await resolveLayout(layout, {
    ...rest,
    name,
    read: (file) => readPicture(pathFrom(folder, file)),
  });
}

/** Networks and concepts that {@linkcode checkLayout} may use. */
export interface CheckOptions {
  /** Condition networks by the name the layout uses. */
  readonly networks?: Readonly<Record<string, ConditionNetwork>>;
  /** Concepts by name, for regions that name theirs. */
  readonly concepts?: readonly string[];
}

/**
 * Checks a layout against a model.
 *
 * @param resolved The layout.
 * @param model The model that would draw it.
 * @param options Networks and concepts there are.
 * @throws One error with the path of every field that does not fit: unknown
 * concepts, sizes the autoencoder cannot do, regions that are too small for the
 * model's cross-attention or hidden behind others, condition images of another
 * size, networks that are unknown or do not fit the UNet.
 */
export function checkLayout(
  resolved: ResolvedLayout,
  model: Model,
  options: CheckOptions = {},
): void {
  const { layout, name, conditions } = resolved;
  const { networks = {}, concepts } = options;
  const problems: Problem[] = [];
  const report = (path: string, message: string) =>
    problems.push({ path, message });
  const known = Object.keys(model.added?.sites ?? {});
  const lower = new Set(known.map((token) => token.toLowerCase()));
  const tokens = (path: string, prompt: string) => {
    for (const [token] of prompt.matchAll(/<[^<>\s]+>/g)) {
      if (lower.has(token.toLowerCase()) || model.tokenizer.has(token)) {
        continue;
      }
      report(
        path,
        `unknown concept ${token} (known: ${
          known.join(", ") || "none"
        }); --concept FILE adds one`,
      );
    }
  };
  tokens("prompt", layout.prompt);
  tokens("negative", layout.negative);
  layout.regions.forEach((region, i) => {
    tokens(`regions.${i}.prompt`, region.prompt);
    tokens(`regions.${i}.negative`, region.negative ?? "");
    region.concepts.forEach((concept, k) => {
      if (concepts?.includes(concept)) return;
      report(
        `regions.${i}.concepts.${k}`,
        `unknown concept "${concept}" (known: ${
          concepts?.join(", ") || "none"
        }); --concept FILE adds one`,
      );
    });
  });
  const factor = downsampleFactor(model.autoencoder.config);
  const { width, height } = sizeOf(layout, model);
  for (const [side, value] of Object.entries({ width, height })) {
    if (value % factor !== 0) {
      report(`size.${side}`, `${value} is not a multiple of ${factor}`);
    }
  }
  const grids = attentionGrids(model.unet.config, {
    height: Math.floor(height / factor),
    width: Math.floor(width / factor),
  });
  checkSeen(resolved, grids, report);
  conditions.forEach(({ spec, image }, i) => {
    const network = networks[spec.network];
    const path = `conditions.${i}`;
    if (!network) {
      report(
        `${path}.network`,
        `unknown network "${spec.network}" (known: ${
          Object.keys(networks).join(", ") || "none"
        }); --network ${spec.network}=FOLDER adds it`,
      );
    } else if (network.type !== spec.type) {
      report(`${path}.type`, `the network is a ${network.type}`);
    } else {
      for (const misfit of misfits(network, model.unet.config, factor)) {
        report(`${path}.network`, `does not fit the UNet: ${misfit}`);
      }
      if (spec.regions && isPooled(network)) {
        report(
          `${path}.regions`,
          "the network averages over the picture (global_pool_conditions)",
        );
      }
    }
    if (image.width !== width || image.height !== height) {
      report(
        `${path}.image`,
        `is ${image.width}×${image.height}, the picture ${width}×${height}`,
      );
    }
  });
  refuse(problems, name);
}

/** Regions with a smaller share count as invisible, as rounding leaves some. */
const SEEN = 1e-3;

/** Reports regions that no cross-attention layer would see. */
function checkSeen(
  { layout, regions }: ResolvedLayout,
  grids: readonly { readonly height: number; readonly width: number }[],
  report: Report,
): void {
  // Sites of one level have the same grid.
  const distinct = new Map(
    grids.map((grid) => [`${grid.height}×${grid.width}`, grid]),
  );
  const on = [...distinct.values()].map(({ height, width }) => {
    const maps = regions.map(({ shape }) =>
      // With the same soft edges as in regional sampling.
      shapeMap(shape, height, width, { feather: layout.regional.feather })
    );
    const priorities = regions.map(({ priority = 0 }) => priority);
    return { maps, shares: shareOut(maps, priorities) };
  });
  const names = [...distinct.keys()].join(", ");
  regions.forEach(({ shape }, i) => {
    if (on.every(({ maps }) => maps[i].every((v) => v === 0))) {
      report(
        `regions.${i}.${"box" in shape ? "box" : "mask"}`,
        `is empty: it covers no cell of the cross-attention's grids (${names})`,
      );
    } else if (on.every(({ shares }) => shares[i].every((v) => v < SEEN))) {
      report(
        `regions.${i}.priority`,
        "is hidden: regions of higher priority cover it",
      );
    }
  });
}

/** Size in pixels of the picture that a layout makes with a model. */
function sizeOf(layout: Layout, model: Model): Size {
  return layout.size ?? modelSize(model);
}

/**
 * The size of picture a model was made for, pixels.
 *
 * @param model The model.
 */
export function modelSize(
  model: {
    readonly unet: Pick<Model["unet"], "config">;
    readonly autoencoder: Pick<Model["autoencoder"], "config">;
  },
): { width: number; height: number } {
  const factor = downsampleFactor(model.autoencoder.config);
  const sample = model.unet.config.sample_size ?? 64;
  const [high, wide] = typeof sample === "number" ? [sample, sample] : sample;
  return { width: wide * factor, height: high * factor };
}

/** The effect of regions on a call; {@linkcode regionalSampling} makes one. */
export interface RegionSampler {
  /** Options for one UNet call. */
  unet(call: UNetCall): UNetOptions;
  /** Frees what it owns. */
  dispose(): void;
}

/** Settings of {@linkcode prepareLayout} and {@linkcode drawLayout}. */
export interface DrawOptions extends CheckOptions {
  /**
   * How regions are sampled, for example with adapters per region.
   *
   * @default regionalSampling
   */
  readonly regions?: (
    model: Model,
    regions: readonly RegionPrompt[],
    options: RegionalOptions,
  ) => RegionSampler;
  /**
   * Changes options of the pipeline, such as `batch`. Prompts, negative prompt,
   * size and `unet` cannot be changed: the regions define them.
   */
  readonly pipeline?:
    & Partial<Omit<PipelineOptions, LayoutOption>>
    & { readonly [option in LayoutOption]?: never };
}

/** An option of the pipeline that a layout decides alone. */
export type LayoutOption =
  | "prompts"
  | "negative"
  | "width"
  | "height"
  | "unet";

const LAYOUT_OPTIONS = Object.keys(
  {
    prompts: true,
    negative: true,
    width: true,
    height: true,
    unet: true,
  } satisfies Record<LayoutOption, true>,
) as readonly LayoutOption[];

/** A layout ready for the pipeline; owns tensors. */
export interface PreparedLayout {
  /** For {@linkcode pipeline} or `generate`. */
  readonly options: PipelineOptions;
  /** Frees what was made. */
  dispose(): void;
}

/**
 * Makes the pipeline's options for a layout.
 *
 * @param model The model.
 * @param resolved The layout.
 * @param options Networks and concepts there are.
 * @returns Options; dispose them after sampling.
 * @throws As {@linkcode checkLayout}; if `pipeline` has what the layout says.
 */
export function prepareLayout(
  model: Model,
  resolved: ResolvedLayout,
  options: DrawOptions = {},
): PreparedLayout {
  for (const own of LAYOUT_OPTIONS) {
    if (options.pipeline?.[own] === undefined) continue;
    throw cannot(
      "draw a layout",
      `"${own}" from the layout`,
      "one in the pipeline's options",
    );
  }
  checkLayout(resolved, model, options);
  const { layout, regions, conditions } = resolved;
  const { networks = {}, regions: sampler = regionalSampling } = options;
  const owned: { dispose(): void }[] = [];
  const dispose = () => owned.forEach((part) => part.dispose());
  try {
    const reading = {
      skipLast: options.pipeline?.skipLast ?? layout.clipSkip - 1,
      syntax: layout.syntax,
    };
    const regional = sampler(model, regions, {
      ...layout.regional,
      ...reading,
    });
    owned.push(regional);
    const prepared = conditions.map(({ spec, image }): Condition => {
      const network = networks[spec.network];
      const tensor = conditionTensor(image, conditionChannels(network));
      owned.push(tensor);
      return {
        network,
        image: tensor,
        scale: spec.scale,
        start: spec.start,
        end: spec.end,
        // Left out, the network's config decides.
        ...(spec.guess ? { guess: true } : {}),
        ...(spec.regions && {
          places: regions.map(({ shape, priority = 0 }, i) => ({
            shape,
            priority,
            scale: spec.regions![i],
          })),
        }),
      };
    });
    const conditioned = conditionedSampling(prepared);
    owned.push(conditioned);
    const size = sizeOf(layout, model);
    const start = resolved.start &&
      initLatents(model, resolved.start.picture, resolved.start.mask, size);
    if (start) owned.push({ dispose: () => disposeTree({ ...start }) });
    return {
      options: {
        prompts: new Array<string>(layoutPictures(layout)).fill(layout.prompt),
        negative: layout.negative,
        // Each picture is the same as with its seed alone.
        key: layoutSeeds(layout).flatMap((seed) =>
          Array.from({ length: layout.count }, (_, i) => fold(key(seed), i))
        ),
        ...start,
        ...(start ? { strength: layoutStrength(layout) } : {}),
        sampler: layout.sampler,
        steps: layout.steps,
        guidance: layout.guidance,
        ...reading,
        ...size,
        ...options.pipeline,
        unet: (call) => ({
          ...regional.unet(call),
          ...conditioned.unet(call),
        }),
      },
      dispose,
    };
  } catch (error) {
    dispose();
    throw error;
  }
}

/**
 * Draws a layout, as {@linkcode pipeline} does a prompt.
 *
 * @param model The model, with the concepts the layout names.
 * @param resolved The layout.
 * @param options Networks and concepts there are.
 * @returns Steps of each batch, then its images in [0, 1].
 * @throws Before the first model call: as {@linkcode prepareLayout}.
 *
 * @example
 * ```ts
 * const layout = await readLayout("scene.json");
 * for await (const record of drawLayout(model, layout)) {
 *   if (record.type === "images") console.log(await toPixels(record.images));
 * }
 * ```
 */
export async function* drawLayout(
  model: Model,
  resolved: ResolvedLayout,
  options: DrawOptions = {},
): AsyncGenerator<PipelineRecord, void, void> {
  const prepared = prepareLayout(model, resolved, options);
  try {
    yield* pipeline(model, prepared.options);
  } finally {
    prepared.dispose();
  }
}
