/**
 * `deno task sample`: draws pictures from prompts or from a layout.
 *
 * @module
 */
import { z } from "zod";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  releaseTokens,
} from "../customize/concept.ts";
import {
  type AdapterSampling,
  loraComposite,
  loraSwitch,
  regionAdapters,
} from "../customize/region_adapters.ts";
import type { ConditionNetwork } from "../diffusion/conditions.ts";
import {
  type Layout,
  layoutJsonSchema,
  modelSize,
  parseLayout,
  prepareLayout,
  type ResolvedLayout,
  resolveLayout,
  type ResolveOptions,
} from "../diffusion/layout.ts";
import {
  pipeline,
  type PipelineOptions,
  type StepRecord,
  toPixels,
} from "../diffusion/pipeline.ts";
import { SAMPLERS } from "../diffusion/samplers.ts";
import {
  assertWritable,
  joinPath,
  parentOf,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng } from "../io/png.ts";
import { loadControlNet } from "../models/controlnet.ts";
import { disposeModel, type Model } from "../models/model.ts";
import { loadT2IAdapter } from "../models/t2i_adapter.ts";
import {
  type Command,
  EXIT_CODES,
  readOptions,
  runCommand,
} from "./command.ts";
import {
  CONCEPT_HELP,
  type ConceptRequest,
  openConcepts,
  parseConcept,
} from "./concepts.ts";
import { pictureName, pictureNumber } from "./drawn.ts";
import {
  backendStarter,
  MODEL_HELP,
  MODEL_OPTIONS,
  modelOf,
  type ModelRequest,
  mustExist,
  openModel,
} from "./models.ts";
import { createProgress } from "./progress.ts";

const HELP =
  `deno task sample (--prompt TEXT | --layout FILE | --schema) [options]

Draws pictures and writes them as PNG, with layout.json, which draws them again.

  --prompt TEXT        what to draw
  --layout FILE        a layout: prompt, regions, conditions, sampler … as JSON
  --schema             print the JSON schema of layouts, for editors, and stop
${MODEL_HELP}
${CONCEPT_HELP}
  --adapters HOW       how several concepts act without fusing (default region
                       if regions of the layout name concepts, else sum):
                         sum        all everywhere
                         region     each inside the regions that name it in
                                    "concepts", and in their prompts
                         switch     one at a time, step by step (LoRA Switch)
                         composite  side by side, mean (LoRA Composite)
  --network NAME=DIR   a T2I-Adapter or ControlNet that the layout names; may be
                       given again

These replace what the layout says, --prompt too:
  --negative TEXT      what to stay away from
  --seed N             (0)
  --count N            number of pictures (1)
  --steps N            (20)
  --guidance X         (7.5)
  --sampler NAME       (dpmpp_2m)
  --size WxH           pixels (default: the model's own size)

  --batch N            pictures drawn at once (4)
  --out FOLDER         where pictures go (default out/sample); of pictures that
                       an earlier sample drew there, none beyond --count stays
  --backend NAME       auto, webgpu, wasm or cpu
  --help               this text

${EXIT_CODES}

Examples:
  deno task sample --prompt "a red fox on grass" --count 4
  deno task sample --model out/fused --layout scene.json
  deno task sample --layout scene.json --concept fox.safetensors \\
    --concept owl.safetensors,alpha=0.8 --adapters region
`;

/** How several concepts act without being fused. */
export const COMPOSITIONS = ["sum", "region", "switch", "composite"] as const;

type Composition = typeof COMPOSITIONS[number];

/** What the command line asks for. */
export interface SampleRequest {
  readonly model: ModelRequest;
  /** Path of a layout file. */
  readonly layout?: string;
  readonly concepts: readonly ConceptRequest[];
  /** Where it is left out, the layout decides. */
  readonly adapters?: Composition;
  /** Folder by name. */
  readonly networks: Readonly<Record<string, string>>;
  /** Fields of the layout that the command line gives. */
  readonly changes: Readonly<Record<string, unknown>>;
  readonly batch: number;
  readonly out: string;
  /** Print the schema of layouts and stop. */
  readonly schema: boolean;
  /** Starts the backend. */
  readonly start: () => Promise<void>;
}

const WHAT = "sample";

/** Reads the command line; nothing if it is help. */
function parse(args: readonly string[]): SampleRequest | undefined {
  const options = readOptions(WHAT, args, {
    text: [
      ...MODEL_OPTIONS,
      "prompt",
      "layout",
      "adapters",
      "negative",
      "seed",
      "count",
      "steps",
      "guidance",
      "sampler",
      "size",
      "batch",
      "out",
      "backend",
    ],
    many: ["concept", "network"],
    flags: ["schema"],
  });
  if (options.help) return undefined;
  const [prompt, layout] = [options.text("prompt"), options.text("layout")];
  const schema = options.flag("schema");
  if (prompt === undefined && layout === undefined && !schema) {
    throw cannot(WHAT, "--prompt or --layout", "neither");
  }
  const networks: Record<string, string> = {};
  for (const entry of options.many("network")) {
    const [name, ...folder] = entry.split("=");
    if (name === "" || folder.length === 0) {
      throw cannot(WHAT, "--network NAME=FOLDER", entry);
    }
    if (Object.hasOwn(networks, name)) {
      throw cannot(
        WHAT,
        `one --network ${name}`,
        `${networks[name]} and ${folder.join("=")}`,
      );
    }
    networks[name] = folder.join("=");
  }
  const adapters = options.oneOf("adapters", COMPOSITIONS);
  const concepts = options.many("concept");
  if (adapters && concepts.length === 0) {
    throw cannot(WHAT, `--concept with --adapters ${adapters}`, "none");
  }
  const changes = Object.fromEntries(
    Object.entries({
      prompt,
      negative: options.text("negative"),
      sampler: options.oneOf("sampler", SAMPLERS),
      size: sizeOf(options.text("size")),
      seed: options.number("seed", { whole: true }),
      count: options.number("count", { whole: true, least: 1 }),
      steps: options.number("steps", { whole: true, least: 1 }),
      guidance: options.number("guidance"),
    }).filter(([, value]) => value !== undefined),
  );
  return {
    model: modelOf(options),
    ...(layout === undefined ? {} : { layout }),
    concepts: concepts.map((text) => parseConcept(WHAT, text)),
    ...(adapters === undefined ? {} : { adapters }),
    networks,
    changes,
    batch: options.number("batch", { whole: true, least: 1 }) ?? 4,
    out: options.text("out") ?? joinPath("out", "sample"),
    schema,
    start: backendStarter(options),
  };
}

function sizeOf(text: string | undefined): unknown {
  if (text === undefined) return undefined;
  const match = /^(\d+)x(\d+)$/.exec(text);
  if (!match) throw cannot(WHAT, "--size such as 64x96", text);
  return { width: Number(match[1]), height: Number(match[2]) };
}

/** What is asked for, as far as it can be known without a model. */
interface Scene {
  readonly layout: Layout;
  /** How the layout's pictures are read, and its name. */
  readonly files: ResolveOptions;
  readonly adapters: Composition;
}

/**
 * Reads the layout and refuses what cannot be drawn with any model: loading one
 * takes long.
 */
async function sceneOf(command: SampleRequest): Promise<Scene> {
  const { layout: path, changes } = command;
  const name = path ?? "the command line";
  const fields = path === undefined
    ? {}
    : await readJson(path, z.record(z.string(), z.unknown()));
  const layout = parseLayout({ ...fields, ...changes }, name);
  const folder = parentOf(name);
  const files: ResolveOptions = {
    name,
    read: async (file) =>
      decodePng(
        await Deno.readFile(
          file.startsWith("/") ? file : joinPath(folder, file),
        ),
      ),
  };
  // Conditions may need the model's size to be drawn, regions do not.
  await resolveLayout({ ...layout, conditions: [] }, files);
  checkNetworks(command, layout);
  return { layout, files, adapters: adaptersOf(command, layout) };
}

/** Refuses condition networks that would not be used. */
function checkNetworks(
  { networks }: SampleRequest,
  { conditions }: Layout,
): void {
  const known = new Set(conditions.map(({ network }) => network));
  const unused = Object.keys(networks).filter((name) => !known.has(name));
  if (unused.length === 0) return;
  throw cannot(
    "sample with --network",
    `names that conditions of the layout have (${
      [...known].join(", ") || "none"
    })`,
    unused.join(", "),
  );
}

/** How concepts act: as is asked for, if the layout can be drawn so. */
function adaptersOf(
  { adapters }: SampleRequest,
  { regions, conditions }: Layout,
): Composition {
  const named = regions.flatMap(({ concepts }) => concepts);
  const how = adapters ?? (named.length > 0 ? "region" : "sum");
  const what = `sample with --adapters ${how}`;
  if (how === "region" && named.length === 0) {
    throw cannot(what, 'regions with "concepts"', "none");
  }
  if (how === "sum" && named.length > 0) {
    throw cannot(
      what,
      'regions without "concepts" (--adapters region)',
      named.join(", "),
    );
  }
  if (
    (how === "switch" || how === "composite") &&
    regions.length + conditions.length > 0
  ) {
    throw cannot(
      what,
      "a layout without regions and conditions",
      `${regions.length} and ${conditions.length}`,
    );
  }
  return how;
}

/** Loads the condition networks that the layout names. */
async function networksOf(
  { networks }: SampleRequest,
  { conditions }: Layout,
): Promise<Record<string, ConditionNetwork>> {
  const loaded: Record<string, ConditionNetwork> = {};
  try {
    for (const { network: name, type } of conditions) {
      const folder = networks[name];
      if (folder === undefined || loaded[name]) continue;
      loaded[name] = type === "t2i_adapter"
        ? { type, ...await loadT2IAdapter(folder) }
        : { type, ...await loadControlNet(folder) };
    }
    return loaded;
  } catch (error) {
    disposeTree(Object.values(loaded).map(({ params }) => params));
    throw error;
  }
}

/** A model with concepts in it, and what the pipeline needs for them. */
interface Cast {
  readonly model: Model;
  readonly sampling?: AdapterSampling;
  dispose(): void;
}

function castOf(
  command: SampleRequest,
  adapters: Composition,
  base: Model,
  concepts: readonly Concept[],
  { layout, regions }: ResolvedLayout,
): Cast {
  const alphas = new Map(
    concepts.map(({ name }, i) => [name, command.concepts[i].alpha ?? 1]),
  );
  const weights = (name: string) => alphas.get(name) ?? 1;
  const { prompt, negative, regional } = layout;
  const wrap = (sampling: AdapterSampling): Cast => ({
    model: sampling.model,
    sampling,
    dispose: () => sampling.dispose(),
  });
  if (concepts.length === 0) return { model: base, dispose: () => {} };
  switch (adapters) {
    case "switch":
    case "composite": {
      const compose = adapters === "switch" ? loraSwitch : loraComposite;
      return wrap(compose(base, concepts, { prompt, negative, weights }));
    }
    case "region": {
      const cast = layout.regions.map((region, i) =>
        region.concepts.map((name) => {
          const found = concepts.find((concept) => concept.name === name);
          if (found) return found;
          throw cannot(
            `read regions.${i}.concepts`,
            concepts.map((concept) => concept.name).join(", "),
            name,
          );
        })
      );
      const idle = concepts.filter((concept) => !cast.flat().includes(concept));
      if (idle.length > 0) {
        throw cannot(
          "sample with --adapters region",
          "a region for each --concept that names it",
          `none for ${idle.map(({ name }) => name).join(", ")}`,
        );
      }
      return wrap(regionAdapters(
        base,
        regions.map((region, i) => ({ ...region, concepts: cast[i] })),
        { ...regional, weights },
      ));
    }
    case "sum": {
      const model = attachConcept(base, concepts, { weights });
      return { model, dispose: () => releaseTokens(model, base) };
    }
  }
}

/** Draws pictures from a prompt or a layout. */
export const sampleCommand: Command<SampleRequest> = {
  name: "sample",
  summary: "Draw pictures from a prompt or a layout",
  help: HELP,
  parse,
  async run(request) {
    if (request.schema) {
      return console.log(JSON.stringify(layoutJsonSchema(), null, 2));
    }
    await mustExist(
      WHAT,
      request.layout,
      ...request.concepts.map(({ path }) => path),
      ...Object.values(request.networks),
    );
    const scene = await sceneOf(request);
    await assertWritable(request.out);
    await request.start();
    for (const file of await draw(request, scene)) console.log(file);
  },
};

/**
 * How far drawing is, in steps of single pictures: how many the pipeline draws
 * at once is its own affair.
 *
 * @param step The step that has ended.
 * @param pictures Pictures in all.
 */
export function stepsDrawn(
  { first, count, index, total }: Pick<
    StepRecord,
    "first" | "count" | "index" | "total"
  >,
  pictures: number,
): { done: number; total: number } {
  return {
    done: first * total + count * (index + 1),
    total: pictures * total,
  };
}

/** Draws what is asked for and returns the files. */
async function draw(
  command: SampleRequest,
  { layout, files: source, adapters }: Scene,
): Promise<string[]> {
  const { out } = command;
  const base = await openModel(command.model);
  let concepts: Concept[] = [];
  let networks: Record<string, ConditionNetwork> = {};
  let cast: Cast | undefined;
  try {
    concepts = await openConcepts(command.concepts, base);
    const resolved = await resolveLayout(layout, {
      ...source,
      size: modelSize(base),
    });
    networks = await networksOf(command, layout);
    cast = castOf(command, adapters, base, concepts, resolved);
    const { model, sampling } = cast;
    const unet = sampling?.pipeline.unet;
    const prepared = prepareLayout(model, resolved, {
      networks,
      concepts: concepts.map(({ name }) => name),
      pipeline: { batch: command.batch },
      ...(unet ? { regions: () => ({ unet, dispose: () => {} }) } : {}),
    });
    try {
      const files: string[] = [];
      const progress = createProgress();
      const options: PipelineOptions = {
        ...prepared.options,
        ...(sampling?.pipeline.denoise
          ? { denoise: sampling.pipeline.denoise }
          : {}),
      };
      for await (const record of pipeline(model, options)) {
        if (record.type === "step") {
          const { done, total } = stepsDrawn(record, options.prompts.length);
          progress.update("drawing", done, total, "step");
          continue;
        }
        const pictures = await toPixels(record.images);
        record.images.dispose();
        for (const [i, picture] of pictures.entries()) {
          const name = pictureName(record.first + i);
          await writeAtomic(joinPath(out, name), encodePng(picture));
          files.push(joinPath(out, name));
        }
      }
      progress.finish();
      const written = await movable(layout, command.layout);
      await removeStale(out, layout.count, JSON.stringify(written));
      await writeJson(joinPath(out, "layout.json"), written);
      return files;
    } finally {
      prepared.dispose();
    }
  } finally {
    cast?.dispose();
    disposeTree(Object.values(networks).map(({ params }) => params));
    concepts.forEach(disposeConcept);
    disposeModel(base);
  }
}

/**
 * Removes what an earlier sample drew into a folder beyond the new count, which
 * would pass for pictures of the new layout.
 *
 * @param out The folder.
 * @param count How many pictures are new.
 * @param layout The new layout as text; pictures it refers to stay.
 */
async function removeStale(
  out: string,
  count: number,
  layout: string,
): Promise<void> {
  const earlier = await readJson(
    joinPath(out, "layout.json"),
    z.object({ count: z.number() }),
  ).catch(() => undefined);
  // Without a layout nobody knows whose the pictures are.
  if (!earlier) return;
  for await (const { name, isFile } of Deno.readDir(out)) {
    const number = pictureNumber(name) ?? -1;
    if (!isFile || number < count || number >= earlier.count) continue;
    if (!layout.includes(`/${name}"`)) await Deno.remove(joinPath(out, name));
  }
}

/** A layout that finds its pictures from any folder. */
async function movable(layout: Layout, path = "."): Promise<unknown> {
  const folder = await Deno.realPath(parentOf(path));
  const { $schema, ...rest } = layout;
  return JSON.parse(
    JSON.stringify({
      // A path would lead from the new folder to nothing.
      ...($schema && URL.canParse($schema) ? { $schema } : {}),
      ...rest,
    }),
    (key, value) =>
      key === "file" && typeof value === "string" && !value.startsWith("/")
        ? joinPath(folder, value)
        : value,
  );
}

if (import.meta.main) Deno.exit(await runCommand(sampleCommand, Deno.args));
