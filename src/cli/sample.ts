/**
 * `deno task sample`: draws pictures from prompts or from a layout.
 *
 * @module
 */
import * as z from "zod";
import type { BackendName } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import {
  type Layout,
  layoutJsonSchema,
  layoutPictures,
  parseLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import { layoutIn, withSettings } from "../diffusion/picture_settings.ts";
import { SAMPLERS } from "../diffusion/samplers.ts";
import { samplingMemory } from "../diffusion/sampling_memory.ts";
import {
  assertWritable,
  besidePath,
  joinPath,
  parentOf,
  pathFrom,
  readJson,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { decodePng, encodePng, type Pixels } from "../io/png.ts";
import { contactSheet } from "../report/grid.ts";
import { type Command, command, runCommand } from "./command.ts";
import {
  CONCEPT_OPTION,
  type ConceptRequest,
  unusedFields,
} from "./concepts.ts";
import { drawnSteps, drawPictures } from "./draw.ts";
import { type Composition, COMPOSITIONS, layoutFiles } from "./drawing.ts";
import { pictureName, pictureNumber } from "./drawn.ts";
import {
  MODEL_OPTIONS,
  modelRequest,
  mustExist,
  startBackend,
} from "./models.ts";
import {
  anyText,
  BACKEND_OPTION,
  file,
  flag,
  folder,
  givenOptions,
  number,
  oneOf,
  optionTable,
  parsed,
  pixels,
  samplingSteps,
  seedNumber,
  type Values,
  whole,
} from "./options.ts";
import { createProgress } from "./progress.ts";
import { calledConcepts, loraTags } from "./prompts.ts";
import {
  applyMemory,
  MEMORY_OPTIONS,
  memoryFor,
  type MemoryUse,
} from "./memory_use.ts";
import { WORKERS_OPTION, workersFor } from "./workers.ts";

const WHAT = "sample";

const count = whole({ least: 1 });

const samplers = oneOf(SAMPLERS);

/** The name of a sampler that A1111 (`DPM++ 2M Karras`) or ComfyUI names. */
function samplerName(name: string): string {
  return name.toLowerCase().replaceAll("++", "pp").replace(/[\s-]+/g, "_")
    .replace("uni_pc", "unipc").replace(/ancestral$/, "a");
}

const OPTIONS = optionTable({
  prompt: { type: anyText, help: "what to draw" },
  layout: {
    type: file,
    help: "a layout: prompt, regions, conditions, sampler … as JSON",
  },
  from: {
    type: file,
    help: "a PNG that sample drew; its layout is drawn again",
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
  sum        all concepts everywhere
  region     each concept in the regions that name it in "concepts", and in their prompts
  switch     one concept per step, in turn (LoRA Switch)
  composite  the mean over the concepts at each step (LoRA Composite)`,
    otherwise: "region if regions of the layout name concepts, else sum",
  },
  loraFolder: {
    type: folder,
    help: "folder of the files that a prompt calls as <lora:NAME:X>; files " +
      "given as --concept are found without it",
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
    section: "These options, and --prompt, replace what the layout says:",
    help: "negative prompt",
  },
  seed: {
    type: parsed("N[,N…]", (what, name, found) => {
      const seeds = found.split(",").map((one) =>
        seedNumber.read(what, name, one.trim())
      );
      if (new Set(seeds).size < seeds.length) {
        throw cannot(what, `different values for ${name}`, found);
      }
      return seeds.length === 1 ? seeds[0] : seeds;
    }),
    otherwise: "0",
    help: "whole numbers; the same number draws the same pictures",
  },
  count: { type: count, otherwise: "1", help: "pictures per seed" },
  steps: { type: samplingSteps, otherwise: "20", help: "sampling steps" },
  guidance: {
    type: number(),
    otherwise: "7.5",
    help: "scale of classifier-free guidance; 1 turns it off",
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
  sampler: {
    type: {
      ...samplers,
      read: (what: string, name: string, found: string) =>
        samplers.read(what, name, samplerName(found)),
    },
    otherwise: "dpmpp_2m",
    help: "sampler; A1111's and ComfyUI's names are known, too",
  },
  size: {
    type: pixels,
    otherwise: "the model's own size",
    help: "pixels",
  },
  init: {
    type: file,
    help: "a picture to start from (image to image), cropped to the size's " +
      "shape",
  },
  mask: {
    type: file,
    help: "mask of inpainting: --init is repainted where the mask is white",
  },
  strength: {
    // Of at most 1000 steps, one.
    type: number({ least: 0.001, most: 1 }),
    otherwise: "0.8; 1 with a mask",
    help: "how much --init is changed: the share of the steps that are run",
  },
  grid: {
    type: flag,
    section: "",
    help: "also a grid of all pictures, OUT.grid.png beside the folder",
  },
  batch: {
    type: count,
    default: 4,
    help: "pictures drawn at once",
  },
  out: {
    type: folder,
    default: joinPath("out", "sample"),
    help: "folder of the pictures; those beyond --count that an earlier " +
      "sample drew there are removed",
  },
  ...BACKEND_OPTION,
  workers: {
    ...WORKERS_OPTION.workers,
    help: "workers, each with a copy of the model; 0: none. Their number " +
      "does not change the pictures",
  },
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
  "strength",
] as const;

/** Fields of a layout that are files, by the options that replace them. */
const LAYOUT_FILES = ["init", "mask"] as const;

/** Refuses options that do not go together. */
function checked(request: SampleRequest): SampleRequest {
  const { prompt, layout, schema, adapters, concept, network } = request;
  const { from } = request;
  if (layout !== undefined && from !== undefined) {
    throw cannot(WHAT, "--layout or --from", "both");
  }
  if ((prompt ?? layout ?? from) === undefined && !schema) {
    throw cannot(WHAT, "--prompt, --layout or --from", "none of them");
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
  // A file may have what an option needs.
  if ((layout ?? from) === undefined && !schema) {
    parseLayout(givenFields(request), "the command line");
  }
  return request;
}

/** What the command line says of a layout; pictures by their paths. */
function givenFields(request: SampleRequest): Record<string, unknown> {
  return Object.fromEntries([
    ...LAYOUT_FIELDS.map((field) => [field, request[field]]),
    ...LAYOUT_FILES.map((field) => {
      const file = request[field];
      return [field, file === undefined ? undefined : { file }];
    }),
  ].filter(([, value]) => value !== undefined));
}

/** What is asked for, as far as it can be known without a model. */
interface Scene {
  readonly layout: Layout;
  readonly adapters: Composition;
}

/**
 * Reads the layout and refuses what cannot be drawn with any model: loading one
 * takes long.
 */
async function sceneOf(command: SampleRequest): Promise<Scene> {
  const { layout: path } = command;
  const changes = givenFields(command);
  for (const field of LAYOUT_FILES) {
    const file = command[field];
    // Found from here, not from beside the layout.
    if (file !== undefined) {
      changes[field] = { file: await Deno.realPath(file) };
    }
  }
  const given = givenOptions(OPTIONS, command, [
    ...LAYOUT_FIELDS,
    ...LAYOUT_FILES,
  ]);
  const name = [path ?? command.from ?? [], given.join(", ") || []].flat()
    .join(" with ");
  const fields = command.from !== undefined
    ? await layoutIn(command.from)
    : path === undefined
    ? {}
    : await readJson(path, z.record(z.string(), z.unknown()));
  const layout = parseLayout({ ...fields, ...changes }, name);
  // Conditions may need the model's size to be drawn, regions do not.
  await resolveLayout({ ...layout, conditions: [] }, layoutFiles(path));
  checkNetworks(command, layout);
  return { layout, adapters: adaptersOf(command, layout) };
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

/** Draws pictures from a prompt or a layout. */
export const sampleCommand: Command<SampleRequest> = command({
  name: WHAT,
  summary: "draw pictures from a prompt or a layout",
  usage:
    "deno task sample (--prompt TEXT | --layout FILE | --from PNG) [options]",
  about:
    "Draws pictures as PNG files. The layout.json beside them draws them again.",
  options: OPTIONS,
  examples: [
    'deno task sample --prompt "a red fox on grass" --count 4',
    'deno task sample --prompt "a red fox on snow" --init out/sample/000.png \\\n' +
    "    --strength 0.6",
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
      request.from,
      request.init,
      request.mask,
      request.loraFolder,
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
    const why = "prompts call a concept by its words";
    const idle = request.concept.flatMap((one) =>
      unusedFields(one, ["trigger", "class"], why)
    );
    for (const line of idle) console.error(line);
    const backend = await startBackend(request.backend);
    const files = await draw(request, scene, {
      prompt: text,
      concepts: concept,
      workers: workersFor(request.workers, backend),
      backend,
    });
    for (const path of files) console.log(path);
  },
});

/** How memory is used, where the pictures fit at all. */
function memoryOf(
  command: SampleRequest,
  layout: Layout,
): Promise<MemoryUse> {
  const { size, guidance } = layout;
  return memoryFor(command, (configs, own) => ({
    what: WHAT,
    run: {
      ...(size ?? own),
      batch: Math.min(command.batch, layoutPictures(layout)),
    },
    batched: true,
    count: (run, options) =>
      samplingMemory(configs, { ...run, guidance }, options),
  }));
}

/** Draws what is asked for and returns the files. */
async function draw(
  command: SampleRequest,
  { layout, adapters }: Scene,
  { prompt, concepts, ...where }: {
    /** The layout's, without LoRA tags. */
    readonly prompt: string;
    readonly concepts: readonly ConceptRequest[];
    readonly workers: number;
    readonly backend: BackendName;
  },
): Promise<string[]> {
  const { out, batch } = command;
  const files: string[] = [];
  const sheet: Pixels[] = [];
  const written = await movable(layout, command.layout);
  const progress = createProgress();
  const steps = drawnSteps(layoutPictures(layout));
  const use = await memoryOf(command, layout);
  const { memory, half } = use;
  const release = applyMemory(use, command);
  await drawPictures({
    layout: { ...layout, prompt },
    file: command.layout,
    adapters,
    batch,
    memory,
    half,
    model: modelRequest(command),
    concepts,
    networks: Object.fromEntries(command.network),
  }, {
    ...where,
    onNotice: (line) => console.error(line),
    onStep(step) {
      const { done, total } = steps(step);
      progress.update("drawing", done, total, "step");
    },
    async onPicture({ number, png }) {
      files[number] = joinPath(out, pictureName(number));
      const picture = decodePng(png);
      if (command.grid) sheet[number] = picture;
      await writeAtomic(
        files[number],
        withSettings(png, {
          ...{ layout: written, settings: layout },
          ...{ number, size: picture, model: command.model ?? "embedded" },
        }),
      );
    },
  }).finally(release);
  progress.finish();
  await removeStale(out, layoutPictures(layout), JSON.stringify(written));
  await writeJson(joinPath(out, "layout.json"), written);
  if (!command.grid) return files;
  const across = Math.ceil(Math.sqrt(sheet.length));
  const rows = Array.from(
    { length: Math.ceil(sheet.length / across) },
    (_, row) => sheet.slice(row * across, (row + 1) * across),
  );
  // Inside the folder it would be one of the pictures to whoever reads it.
  const grid = besidePath(out.replace(/[\\/]+$/, ""), ".grid.png");
  await writeAtomic(grid, encodePng(await contactSheet(rows)));
  return [...files, grid];
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
    z.object({
      count: z.number(),
      seed: z.union([z.number(), z.array(z.number())]).default(0),
    }),
  ).catch(() => undefined);
  // Without a layout nobody knows whose the pictures are.
  if (!earlier) return;
  for await (const { name, isFile } of Deno.readDir(out)) {
    const number = pictureNumber(name) ?? -1;
    if (!isFile || number < count || number >= layoutPictures(earlier)) {
      continue;
    }
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
      key === "file" && typeof value === "string"
        ? pathFrom(folder, value)
        : value,
  );
}

if (import.meta.main) Deno.exit(await runCommand(sampleCommand, Deno.args));
