/**
 * `deno task evaluate`: scores pictures against prompts and references.
 *
 * @module
 */
import { cannot } from "../core/errors.ts";
import {
  type Layout,
  parseLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import { captionsBeside } from "../customize/captions.ts";
import { shapeMap } from "../diffusion/regions.ts";
import {
  type ClipModel,
  disposeClip,
  embedImages,
  embedTexts,
  loadClip,
} from "../evaluation/clip.ts";
import {
  CLIP_SCORE_PREFIX,
  imageAlignment,
  textAlignment,
} from "../evaluation/clip_score.ts";
import { squareAround } from "../evaluation/crops.ts";
import { crop } from "../evaluation/preprocess.ts";
import { type Estimate, mean, tInterval } from "../evaluation/statistics.ts";
import {
  assertWritableFile,
  exists,
  joinPath,
  readJson,
  writeJson,
} from "../io/files.ts";
import { listPictures, readPicture } from "../io/picture.ts";
import type { Pixels } from "../io/png.ts";
import { flatten, isTransparent } from "../io/resize.ts";
import { type Command, command } from "./command.ts";
import { cutOff } from "../models/model.ts";
import { plainWords } from "../models/prompts.ts";
import { pictureNumber } from "./drawn.ts";
import { loraTags, shortened } from "./prompts.ts";
import {
  EMBEDDED,
  localModel,
  MODEL_DETAILS,
  MODEL_OPTIONS,
  mustExist,
  startBackend,
} from "./models.ts";
import {
  anyText,
  BACKEND_OPTION,
  BACKGROUND_OPTION,
  file,
  firstFrames,
  flag,
  folder,
  isGiven,
  optionName,
  optionTable,
  outputFile,
  parsed,
  seedNumber,
  text,
  type Values,
} from "./options.ts";
import { decimal } from "../report/format.ts";
import { textTable } from "../report/table.ts";
import { terminalColumns } from "./progress.ts";
import { CONCEPT_OPTION } from "./concepts.ts";
import { type HeldOutRequest, runHeldOut } from "./heldout.ts";
import {
  type EvaluatorTestRequest,
  runEvaluatorTest,
} from "./test_evaluator.ts";

const OPTIONS = optionTable({
  images: {
    type: folder,
    help:
      "PNG, JPEG, WebP or AVIF pictures; their prompts are in a.txt beside " +
      "a.png (the first line that is not blank), else " +
      "in layout.json (written by sample); of the pictures 000.png … those " +
      "beyond the layout's count are left out",
  },
  prompt: {
    type: text,
    help: "prompt of pictures that have none of their own",
  },
  references: {
    type: folder,
    help: "pictures of the concept, for image alignment; with " +
      "--test-evaluator, pictures and masks/NAME.png, or one such folder per " +
      "concept",
  },
  say: {
    type: parsed("OLD=NEW", (what, name, found) => {
      const at = found.lastIndexOf("=");
      if (at < 1) throw cannot(what, `${name} OLD=NEW`, found);
      return [found.slice(0, at), found.slice(at + 1)] as const;
    }),
    many: true,
    help: "replaces learned tokens in prompts by ordinary words, such as " +
      '"<rex1> <rex2>=dog"',
  },
  prefix: {
    type: anyText,
    otherwise: `"${CLIP_SCORE_PREFIX}" with --clip, else none`,
    help: "text before each prompt",
  },
  noPrefix: { type: flag, help: "no text before prompts" },
  regions: {
    type: flag,
    help: "also score each region of layout.json against its own prompt",
  },
  heldout: {
    type: folder,
    section: "Held-out denoising error, without drawing or a CLIP:",
    help: "photos that the concept was not trained on, with captions (a.txt, " +
      "{} for the concept) and masks/a.png, as train reads them",
  },
  masks: { type: folder, help: "folder of the masks, if another" },
  ...CONCEPT_OPTION,
  ...MODEL_OPTIONS,
  fused: {
    type: file,
    hint: "MODEL",
    help: "a fused model with the concept: which share of the gain it keeps",
  },
  phrase: {
    type: text,
    otherwise: "the concept's tokens",
    help: "words that call the concept",
  },
  class: {
    type: text,
    hint: "WORD",
    otherwise: "the concept's",
    help: "ordinary word for the concept",
  },
  seed: {
    type: seedNumber,
    otherwise: "0",
    help: "seed of the noise",
  },
  testEvaluator: {
    type: flag,
    section: "Test of the evaluator itself:",
    help: "test whether --clip notices shuffled tiles, pixelation and other " +
      "subjects, on the embedded world or on --references",
  },
  classPictures: {
    type: folder,
    help: "pictures that the base model draws for the class word",
  },
  mobileNet: {
    type: flag,
    help: "also test nsfwjs' MobileNetV2 (npm, 25 MB, downloaded once)",
  },
  clip: {
    type: folder,
    hint: "CLIP",
    section: "",
    otherwise: "the embedded one",
    help: "a transformers folder, or a name on the hub, such as " +
      "openai/clip-vit-large-patch14",
  },
  ...BACKGROUND_OPTION,
  out: { type: outputFile(".json"), help: "also writes the scores as JSON" },
  json: { type: flag, help: "prints JSON only" },
  ...BACKEND_OPTION,
});

/** Options of pictures' scores. */
export type EvaluateRequest = Values<typeof OPTIONS> & {
  readonly images: string;
};

/** What the command line asks for. */
export type EvaluateUse =
  | { readonly type: "pictures"; readonly request: EvaluateRequest }
  | { readonly type: "heldout"; readonly request: HeldOutRequest }
  | { readonly type: "evaluator"; readonly request: EvaluatorTestRequest };

/** Options of every use. */
const SHARED = ["images", "heldout", "testEvaluator", "out", "json", "backend"];

/** Options that only some uses of the command have. */
const USES = {
  "--images": [
    "prompt",
    "references",
    "say",
    "prefix",
    "noPrefix",
    "regions",
    "clip",
    "background",
  ],
  "--heldout": [
    "masks",
    "concept",
    "model",
    ...MODEL_DETAILS,
    "fused",
    "phrase",
    "class",
    "seed",
    "background",
  ],
  "--test-evaluator": [
    "references",
    "classPictures",
    "mobileNet",
    "clip",
    "background",
    "seed",
  ],
} as const;

/** Which use is meant; refuses options of the others. */
function requestOf(values: Values<typeof OPTIONS>): EvaluateUse {
  const what = "evaluate";
  const chosen = [
    ...(values.images === undefined ? [] : ["--images" as const]),
    ...(values.heldout === undefined ? [] : ["--heldout" as const]),
    ...(values.testEvaluator ? ["--test-evaluator" as const] : []),
  ];
  if (chosen.length !== 1) {
    throw cannot(
      what,
      "one of --images, --heldout and --test-evaluator",
      chosen.join(" and ") || "none",
    );
  }
  const fields: readonly string[] = USES[chosen[0]];
  for (const [field, value] of Object.entries(values)) {
    if (SHARED.includes(field)) continue;
    if (!isGiven(value) || fields.includes(field)) continue;
    const use = Object.entries(USES).filter(([, own]) =>
      (own as readonly string[]).includes(field)
    ).map(([name]) => name);
    throw cannot(
      what,
      `${use.join(" or ")} with ${optionName(field)}`,
      chosen[0],
    );
  }
  if (values.prefix !== undefined && values.noPrefix) {
    throw cannot(what, "--prefix or --no-prefix", "both");
  }
  const { images, heldout, concept } = values;
  if (heldout !== undefined) {
    if (concept.length > 1) throw cannot(what, "one --concept", concept.length);
    if (concept.length === 0 && values.fused === undefined) {
      throw cannot(what, "--concept or --fused with --heldout", "neither");
    }
    return {
      type: "heldout",
      request: { ...values, heldout, concept: concept[0] },
    };
  }
  if (images !== undefined) {
    return { type: "pictures", request: { ...values, images } };
  }
  if (values.classPictures !== undefined && values.references === undefined) {
    throw cannot(what, "--references with --class-pictures", "none");
  }
  return {
    type: "evaluator",
    request: {
      ...values,
      clip: values.clip ?? joinPath(EMBEDDED, "clip_b"),
      seed: values.seed ?? 0,
    },
  };
}

/** What stands before prompts. */
function prefixOf({ prefix, noPrefix, clip }: EvaluateRequest): string {
  // The embedded CLIP knows captions of its world only.
  return noPrefix ? "" : prefix ?? (clip ? CLIP_SCORE_PREFIX : "");
}

/** A region of a picture and how well it fits its own prompt. */
export interface RegionScore {
  /** The prompt as the CLIP read it. */
  readonly prompt: string;
  /** Text alignment of the square around the region. */
  readonly text: number;
}

/** Scores of a picture. */
export interface PictureScore {
  /** Name of the file. */
  readonly file: string;
  /** The prompt as the CLIP read it. */
  readonly prompt?: string;
  /** Text alignment, 0 to 2.5. */
  readonly text?: number;
  /** Image alignment, 0 to 1. */
  readonly image?: number;
  /** Regions, if they were asked for. */
  readonly regions?: readonly RegionScore[];
}

/** What `--json` prints. */
export interface EvaluateReport {
  /** Every picture. */
  readonly pictures: readonly PictureScore[];
  /** Mean text alignment with its 95 % interval over pictures. */
  readonly text?: Estimate;
  /** Mean image alignment with its 95 % interval over pictures. */
  readonly image?: Estimate;
  /**
   * Mean text alignment of regions with its 95 % interval over pictures: the
   * regions of one picture are not independent.
   */
  readonly regions?: Estimate;
}

/**
 * Pictures of a folder, in the order of their names; of those that `sample`
 * numbers, only the first `count`.
 */
async function pictures(
  folder: string,
  count = Infinity,
): Promise<Map<string, Pixels>> {
  const names = (await listPictures(folder)).filter((name) =>
    (pictureNumber(name) ?? 0) < count
  );
  if (names.length === 0) {
    throw cannot(
      `evaluate ${folder}`,
      "PNG, JPEG, WebP or AVIF pictures in it",
      "none",
    );
  }
  const found = new Map<string, Pixels>();
  for (const name of names) {
    found.set(name, await readPicture(joinPath(folder, name)));
  }
  const shown = [...found].map(([name, { moving }]) => ({ name, moving }));
  for (const line of firstFrames(shown)) console.error(line);
  return found;
}

/** Pictures over the background. */
function over(
  images: readonly Pixels[],
  { background }: EvaluateRequest,
): Pixels[] {
  return images.map((image) => flatten(image, background));
}

/**
 * What a prompt of a layout says: LoRA tags, weights and breaks of A1111's
 * syntax are no words.
 */
function wordsOf(prompt: string, { syntax }: Pick<Layout, "syntax">): string {
  return syntax === "plain" ? prompt : plainWords(loraTags(prompt).text);
}

/** Prompts of pictures, words in the place of learned tokens. */
async function promptsOf(
  request: EvaluateRequest,
  names: Iterable<string>,
  layout: Layout | undefined,
): Promise<(string | undefined)[]> {
  const owns: (string | undefined)[] = [];
  let used = false;
  for (const name of names) {
    const beside = await captionsBeside(
      request.images,
      name.replace(/\.[^.]*$/, ""),
    );
    const found = beside?.lines[0] ??
      (layout && wordsOf(layout.prompt, layout));
    used ||= found === undefined;
    const own = found ?? request.prompt;
    owns.push(own);
  }
  if (request.prompt !== undefined && !used) {
    throw cannot(
      `evaluate ${request.images}`,
      "a picture without a prompt of its own for --prompt",
      layout ? "layout.json, which has one" : "captions beside all of them",
    );
  }
  const regions = request.regions && layout
    ? layout.regions.map(({ prompt }) => wordsOf(prompt, layout))
    : [];
  sayIdle(request, [...owns.filter((own) => own !== undefined), ...regions]);
  return owns.map((own) => own === undefined ? own : said(request, own));
}

/** Says which prompts are longer than the CLIP reads, each once. */
function saidCut(clip: ClipModel, prompts: readonly string[]): void {
  const { tokenizer, config } = clip;
  const length = Math.min(
    tokenizer.modelMaxLength,
    config.text_config.max_position_embeddings,
  );
  for (const prompt of new Set(prompts)) {
    const cut = cutOff({ tokenizer }, prompt, length);
    if (!cut) continue;
    console.error(
      `"${shortened(prompt)}" has ${cut.tokens} tokens, the CLIP reads ` +
        `${cut.limit}; not scored: "${cut.lost}"`,
    );
  }
}

/** A prompt with words in the place of learned tokens. */
function said({ say }: EvaluateRequest, prompt: string): string {
  return say.reduce((text, [old, by]) => text.replaceAll(old, by), prompt);
}

/** Names what `--say` would replace and no prompt has. */
function sayIdle({ say }: EvaluateRequest, prompts: readonly string[]): void {
  let texts = prompts;
  for (const [old, by] of say) {
    const after = texts.map((text) => text.replaceAll(old, by));
    if (after.every((text, i) => text === texts[i])) {
      console.error(`--say changes nothing: no prompt has "${old}"`);
    }
    texts = after;
  }
}

/** Refuses prompts with tokens that no CLIP knows. */
function checkTokens(prompts: readonly (string | undefined)[]): void {
  const found = prompts.join(" ").match(/<[^<>\s]+>/g);
  if (!found) return;
  throw cannot(
    "score prompts",
    'ordinary words for learned tokens (--say "<a1> <a2>=dog")',
    [...new Set(found)].join(" "),
  );
}

/** Scores of a layout's regions, in each picture. */
async function regionScores(
  request: EvaluateRequest,
  clip: ClipModel,
  images: readonly Pixels[],
  layout: Layout,
): Promise<RegionScore[][]> {
  const { regions } = await resolveLayout(layout, {
    size: images[0],
    read: readPicture,
  });
  const prompts = regions.map(({ prompt }) =>
    said(request, wordsOf(prompt, layout))
  );
  checkTokens(prompts);
  saidCut(clip, prompts.map((prompt) => prefixOf(request) + prompt));
  const texts = await embedTexts(
    clip,
    prompts.map((prompt) => prefixOf(request) + prompt),
  );
  const scores: RegionScore[][] = [];
  for (const image of images) {
    const parts = regions.map(({ shape }) =>
      crop(
        image,
        squareAround(
          shapeMap(shape, image.height, image.width),
          image.width,
          0,
        ),
      )
    );
    const vectors = await embedImages(clip, parts);
    scores.push(vectors.map((vector, i) => ({
      prompt: prompts[i],
      text: textAlignment(vector, texts[i]),
    })));
  }
  return scores;
}

/**
 * Scores the pictures.
 *
 * @param request What is asked for.
 * @param clip The CLIP.
 * @returns Scores of each picture, and means.
 * @throws If there are no pictures, nothing to compare them with, or a prompt
 * has learned tokens in it.
 */
export async function scorePictures(
  request: EvaluateRequest,
  clip: ClipModel,
): Promise<EvaluateReport> {
  const what = `evaluate ${request.images}`;
  const layoutFile = joinPath(request.images, "layout.json");
  const layout = await exists(layoutFile)
    ? parseLayout(await readJson(layoutFile), layoutFile)
    : undefined;
  // What lies there beyond the layout's count was drawn from another one.
  const images = await pictures(request.images, layout?.count);
  if (request.regions && !layout?.regions.length) {
    throw cannot(what, "a layout.json with regions in it", "none");
  }
  const prompts = await promptsOf(request, images.keys(), layout);
  checkTokens(prompts);
  const { references } = request;
  if (prompts.every((prompt) => prompt === undefined) && !references) {
    throw cannot(
      what,
      "prompts (a.txt beside a.png, layout.json or --prompt) or --references",
      "neither",
    );
  }
  saidCut(
    clip,
    prompts.flatMap((prompt) =>
      prompt === undefined ? [] : [prefixOf(request) + prompt]
    ),
  );
  const list = [...images.values()];
  const compared = references ? [...(await pictures(references)).values()] : [];
  if (request.background && ![...list, ...compared].some(isTransparent)) {
    throw cannot("use --background", "a transparent picture", "none");
  }
  const others = references
    ? await embedImages(clip, over(compared, request))
    : undefined;
  const seen = over(list, request);
  const vectors = await embedImages(clip, seen);
  const texts = await embedTexts(
    clip,
    prompts.map((prompt) => prefixOf(request) + (prompt ?? "")),
  );
  const regions = request.regions
    ? await regionScores(request, clip, seen, layout!)
    : undefined;
  const scored = [...images.keys()].map((file, i): PictureScore => {
    const prompt = prompts[i];
    return {
      file,
      ...(prompt === undefined
        ? {}
        : { prompt, text: textAlignment(vectors[i], texts[i]) }),
      ...(others ? { image: imageAlignment(vectors[i], others) } : {}),
      ...(regions ? { regions: regions[i] } : {}),
    };
  });
  const estimate = (values: (number | undefined)[]) => {
    const known = values.filter((value) => value !== undefined);
    return known.length > 0 ? tInterval(known) : undefined;
  };
  const text = estimate(scored.map((s) => s.text));
  const image = estimate(scored.map((s) => s.image));
  const region = estimate(
    scored.map((s) => s.regions && mean(s.regions.map((r) => r.text))),
  );
  return {
    pictures: scored,
    ...(text ? { text } : {}),
    ...(image ? { image } : {}),
    ...(region ? { regions: region } : {}),
  };
}

/** The report as a table, and a line a mean. */
function written(report: EvaluateReport): string {
  const score = (value: number | undefined) =>
    value === undefined ? "" : decimal(value);
  const rows = report.pictures.flatMap((
    { file, prompt, text, image, regions },
  ) => [
    [file, score(text), score(image), prompt ?? ""],
    ...(regions ?? []).map((r, i) => [
      `  region ${i}`,
      score(r.text),
      "",
      r.prompt,
    ]),
  ]);
  const lines = [
    ["text alignment", report.text],
    ["image alignment", report.image],
    ["text alignment of regions", report.regions],
  ] as const;
  const means = lines.flatMap(([name, e]) =>
    e
      ? [
        `${name} ${decimal(e.mean)}` +
        (Number.isFinite(e.low)
          ? ` (95 %: ${decimal(e.low)} to ${decimal(e.high)})`
          : ""),
      ]
      : []
  );
  return `${
    textTable(
      { head: ["picture", "text", "image", "prompt"], rows },
      terminalColumns(),
    )
  }\n${means.join("\n")}`;
}

/**
 * Scores the pictures and says how they did.
 *
 * @param request What is asked for.
 * @throws Before work starts, if files are missing, the output cannot be
 * written or the backend is not available.
 */
async function runEvaluate(request: EvaluateRequest): Promise<void> {
  const { out, clip: clipName = joinPath(EMBEDDED, "clip_b") } = request;
  await mustExist("evaluate", request.images, request.references);
  if (out) await assertWritableFile(out);
  await startBackend(request.backend);
  const clip = await loadClip(await localModel(clipName));
  try {
    const report = await scorePictures(request, clip);
    // JSON has no infinity: the interval of a single picture.
    const json = JSON.parse(JSON.stringify(report));
    if (out) await writeJson(out, json);
    console.log(
      request.json ? JSON.stringify(json, null, 2) : written(report),
    );
    if (out && !request.json) console.log(out);
  } finally {
    disposeClip(clip);
  }
}

/** `deno task evaluate`. */
export const evaluateCommand: Command<EvaluateUse> = command({
  name: "evaluate",
  summary: "score pictures against prompts and references",
  usage: `deno task evaluate --images FOLDER [options]
deno task evaluate --heldout FOLDER --concept FILE [options]
deno task evaluate --test-evaluator [options]`,
  about:
    `Scores pictures with a CLIP: text alignment, 2.5·max(cos, 0) between picture and
prompt, and image alignment, the mean of max(cos, 0) over reference pictures.
Measures the masked denoising error of a concept on held-out photos.
Tests whether the CLIP sees shape and tells subjects apart.`,
  options: OPTIONS,
  examples: [
    'deno task evaluate --images out/sample --no-prefix --say "<rex1> <rex2>=dog"',
    "deno task evaluate --images out/sample --references photos/rex \\\n" +
    "    --clip openai/clip-vit-large-patch14",
    "deno task evaluate --heldout photos/rex_more --model sd-v1-5 \\\n" +
    "    --concept out/rex.safetensors --fused out/fused",
    "deno task evaluate --test-evaluator --clip openai/clip-vit-large-patch14",
  ],
  request: requestOf,
  async run(chosen) {
    switch (chosen.type) {
      case "pictures":
        return await runEvaluate(chosen.request);
      case "heldout":
        return await runHeldOut(chosen.request);
      case "evaluator":
        return await runEvaluatorTest(chosen.request);
    }
  },
});
