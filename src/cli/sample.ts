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
import { samplingMemory } from "../diffusion/sampling_memory.ts";
import {
  assertWritable,
  joinPath,
  parentOf,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { readPicture } from "../io/picture.ts";
import { encodePng } from "../io/png.ts";
import { loadControlNet } from "../models/controlnet.ts";
import { disposeModel, type Model } from "../models/model.ts";
import { loadT2IAdapter } from "../models/t2i_adapter.ts";
import { type Command, command, runCommand } from "./command.ts";
import { CONCEPT_OPTION, openConcepts } from "./concepts.ts";
import { pictureName, pictureNumber } from "./drawn.ts";
import { MODEL_OPTIONS, mustExist, openModel, startBackend } from "./models.ts";
import {
  anyText,
  BACKEND_OPTION,
  file,
  flag,
  folder,
  number,
  oneOf,
  optionTable,
  parsed,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";
import {
  makeRoom,
  MEMORY_OPTIONS,
  modelConfigs,
  type Room,
  useRoom,
} from "./room.ts";
import { calledConcepts, longPrompts, loraTags, uncalled } from "./prompts.ts";

/** How several concepts act without being fused. */
export const COMPOSITIONS = ["sum", "region", "switch", "composite"] as const;

type Composition = typeof COMPOSITIONS[number];

const WHAT = "sample";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  prompt: { type: anyText, help: "what to draw" },
  layout: {
    type: file,
    help: "a layout: prompt, regions, conditions, sampler … as JSON",
  },
  schema: {
    type: flag,
    help: "print the JSON schema of layouts, for editors, and stop",
  },
  ...MODEL_OPTIONS,
  ...CONCEPT_OPTION,
  adapters: {
    type: oneOf(COMPOSITIONS),
    hint: "HOW",
    help: `how several concepts act without fusing
  sum        all everywhere
  region     each inside the regions that name it in "concepts", and in
             their prompts
  switch     one at a time, step by step (LoRA Switch)
  composite  side by side, mean (LoRA Composite)`,
    otherwise: "region if regions of the layout name concepts, else sum",
  },
  loraFolder: {
    type: folder,
    help: "where files that a prompt calls as <lora:NAME:X> are; those given " +
      "as --concept are found without it",
  },
  network: {
    type: parsed("NAME=DIR", (what, name, found) => {
      const at = found.indexOf("=");
      if (at < 1) throw cannot(what, `${name} NAME=FOLDER`, found);
      return [found.slice(0, at), found.slice(at + 1)] as const;
    }),
    many: true,
    help: "a T2I-Adapter or ControlNet that the layout names",
  },
  negative: {
    type: anyText,
    section: "These replace what the layout says, --prompt too:",
    help: "what to stay away from",
  },
  seed: {
    type: whole(),
    otherwise: "0",
    help: "any whole number; the same number draws the same pictures",
  },
  count: { type: count, otherwise: "1", help: "number of pictures" },
  steps: { type: count, otherwise: "20", help: "sampling steps" },
  guidance: {
    type: number(),
    otherwise: "7.5",
    help: "classifier-free guidance; 1 is none",
  },
  clipSkip: {
    type: count,
    otherwise: "1",
    help: "1 ends at the text encoder's last layer, 2 at the one before it",
  },
  syntax: {
    type: oneOf(["a1111", "plain"]),
    otherwise: "a1111",
    help:
      "a1111: (fox:1.5), ((fox)), [fox], \\( and BREAK mean what they do in " +
      "A1111's web UI, and long prompts are read in chunks; plain: text as it " +
      "stands, cut off at the limit",
  },
  sampler: { type: oneOf(SAMPLERS), otherwise: "dpmpp_2m", help: "sampler" },
  size: {
    type: parsed("WxH", (what, name, found) => {
      const match = /^(\d+)x(\d+)$/.exec(found);
      if (!match) throw cannot(what, `${name} such as 64x96`, found);
      return { width: Number(match[1]), height: Number(match[2]) };
    }),
    otherwise: "the model's own size",
    help: "pixels",
  },
  batch: {
    type: count,
    section: "",
    default: 4,
    help: "pictures drawn at once",
  },
  out: {
    type: folder,
    default: joinPath("out", "sample"),
    help: "where pictures go; of pictures that an earlier sample drew there, " +
      "none beyond --count stays",
  },
  ...BACKEND_OPTION,
  ...MEMORY_OPTIONS,
});

/** What the command line asks for. */
export type SampleRequest = Values<typeof OPTIONS>;

/** Fields of a layout that the command line replaces. */
const LAYOUT_FIELDS = [
  "prompt",
  "negative",
  "sampler",
  "size",
  "seed",
  "count",
  "steps",
  "guidance",
  "clipSkip",
  "syntax",
] as const;

/** Refuses options that do not go together. */
function checked(request: SampleRequest): SampleRequest {
  const { prompt, layout, schema, adapters, concept, network } = request;
  if (prompt === undefined && layout === undefined && !schema) {
    throw cannot(WHAT, "--prompt or --layout", "neither");
  }
  const names = network.map(([name]) => name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) {
    throw cannot(
      WHAT,
      `one --network ${twice}`,
      network.filter(([name]) => name === twice).map(([, at]) => at)
        .join(" and "),
    );
  }
  if (adapters && concept.length === 0) {
    throw cannot(WHAT, `--concept with --adapters ${adapters}`, "none");
  }
  return request;
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
  const { layout: path } = command;
  const changes = Object.fromEntries(
    LAYOUT_FIELDS.filter((field) => command[field] !== undefined)
      .map((field) => [field, command[field]]),
  );
  const name = path ?? "the command line";
  const fields = path === undefined
    ? {}
    : await readJson(path, z.record(z.string(), z.unknown()));
  const layout = parseLayout({ ...fields, ...changes }, name);
  const folder = parentOf(name);
  const files: ResolveOptions = {
    name,
    read: (file) =>
      readPicture(file.startsWith("/") ? file : joinPath(folder, file)),
  };
  // Conditions may need the model's size to be drawn, regions do not.
  await resolveLayout({ ...layout, conditions: [] }, files);
  checkNetworks(command, layout);
  return { layout, files, adapters: adaptersOf(command, layout) };
}

/** The prompt of a layout without LoRA tags, and the tags. */
function tagsOf(layout: Layout): ReturnType<typeof loraTags> {
  if (layout.syntax === "plain") return { text: layout.prompt, tags: [] };
  const others = [
    layout.negative,
    ...layout.regions.flatMap((
      { prompt, negative = "" },
    ) => [prompt, negative]),
  ];
  for (const prompt of others) {
    const [first] = loraTags(prompt).tags;
    if (first) {
      throw cannot(
        WHAT,
        'LoRA tags in the prompt only (regions name theirs in "concepts")',
        first.tag,
      );
    }
  }
  return loraTags(layout.prompt);
}

/** Says what a user should know of the prompts before drawing. */
function noticed(model: Model, layout: Layout, concepts: readonly Concept[]) {
  const prompts = [
    layout.prompt,
    layout.negative,
    ...layout.regions.flatMap((
      { prompt, negative = "" },
    ) => [prompt, negative]),
  ];
  const lines = [
    ...longPrompts(model, prompts, layout.syntax),
    ...uncalled(model, prompts, concepts),
  ];
  for (const line of lines) console.error(line);
}

/** Refuses condition networks that would not be used. */
function checkNetworks(
  { network }: SampleRequest,
  { conditions }: Layout,
): void {
  const known = new Set(conditions.map(({ network }) => network));
  const unused = network.map(([name]) => name)
    .filter((name) => !known.has(name));
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
  { network: folders }: SampleRequest,
  { conditions }: Layout,
): Promise<Record<string, ConditionNetwork>> {
  const networks = Object.fromEntries(folders);
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
    concepts.map(({ name }, i) => [name, command.concept[i].alpha ?? 1]),
  );
  const weights = (name: string) => alphas.get(name) ?? 1;
  const { prompt, negative, regional, clipSkip, syntax } = layout;
  const reading = { skipLast: clipSkip - 1, syntax };
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
      return wrap(compose(base, concepts, {
        prompt,
        negative,
        weights,
        ...reading,
      }));
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
        { ...regional, ...reading, weights },
      ));
    }
    case "sum": {
      const model = attachConcept(base, concepts, { weights });
      return { model, dispose: () => releaseTokens(model, base) };
    }
  }
}

/** Draws pictures from a prompt or a layout. */
export const sampleCommand: Command<SampleRequest> = command({
  name: WHAT,
  summary: "draw pictures from a prompt or a layout",
  usage:
    "deno task sample (--prompt TEXT | --layout FILE | --schema) [options]",
  about:
    "Draws pictures and writes them as PNG, with layout.json, which draws them again.",
  options: OPTIONS,
  examples: [
    'deno task sample --prompt "a red fox on grass" --count 4',
    "deno task sample --model out/fused --layout scene.json",
    "deno task sample --layout scene.json --concept fox.safetensors \\\n" +
    "    --concept owl.safetensors,alpha=0.8 --adapters region",
  ],
  request: checked,
  async run(request) {
    if (request.schema) {
      return console.log(JSON.stringify(layoutJsonSchema(), null, 2));
    }
    await mustExist(
      WHAT,
      request.layout,
      ...request.concept.map(({ path }) => path),
      ...request.network.map(([, path]) => path),
    );
    const scene = await sceneOf(request);
    const { text, tags } = tagsOf(scene.layout);
    if (request.loraFolder !== undefined && tags.length === 0) {
      throw cannot(WHAT, "a prompt with <lora:NAME:X> for --lora-folder", text);
    }
    const concept = await calledConcepts(
      tags,
      request.concept,
      request.loraFolder,
    );
    await assertWritable(request.out);
    await startBackend(request.backend);
    const drawn = { ...scene.layout, prompt: text };
    const files = await draw({ ...request, concept }, scene, drawn);
    for (const path of files) console.log(path);
  },
});

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

/** How memory is used, where the pictures fit at all. */
async function roomFor(
  command: SampleRequest,
  { size, count, guidance }: Layout,
): Promise<Room> {
  const configs = await modelConfigs(command);
  const { height, width } = size ?? modelSize({
    unet: { config: configs.unet },
    autoencoder: { config: configs.autoencoder },
  });
  return await makeRoom(command, {
    what: WHAT,
    configs,
    run: { height, width, batch: Math.min(command.batch, count) },
    batched: true,
    count: (run, options) =>
      samplingMemory(configs, { ...run, guidance }, options),
  });
}

/**
 * Draws what is asked for and returns the files; `layout` is the one asked for
 * without LoRA tags.
 */
async function draw(
  command: SampleRequest,
  { layout: asked, files: source, adapters }: Scene,
  layout: Layout,
): Promise<string[]> {
  const { out } = command;
  const room = await roomFor(command, layout);
  const base = await openModel(command, room);
  const release = useRoom(room, command);
  let concepts: Concept[] = [];
  let networks: Record<string, ConditionNetwork> = {};
  let cast: Cast | undefined;
  try {
    concepts = await openConcepts(command.concept, base);
    const resolved = await resolveLayout(layout, {
      ...source,
      size: modelSize(base),
    });
    networks = await networksOf(command, layout);
    cast = castOf(command, adapters, base, concepts, resolved);
    const { model, sampling } = cast;
    noticed(model, layout, concepts);
    const unet = sampling?.pipeline.unet;
    const prepared = prepareLayout(model, resolved, {
      networks,
      concepts: concepts.map(({ name }) => name),
      pipeline: { batch: command.batch },
      regions: unet && (() => ({ unet, dispose: () => {} })),
    });
    try {
      const files: string[] = [];
      const progress = createProgress();
      const options: PipelineOptions = {
        ...prepared.options,
        denoise: sampling?.pipeline.denoise,
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
      const written = await movable(asked, command.layout);
      await removeStale(out, layout.count, JSON.stringify(written));
      await writeJson(joinPath(out, "layout.json"), written);
      return files;
    } finally {
      prepared.dispose();
    }
  } finally {
    release();
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
