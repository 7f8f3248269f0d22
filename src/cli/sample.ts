/**
 * `deno task sample`: draws pictures from prompts or from a layout.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { type BackendChoice, selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import {
  attachConcept,
  type Concept,
  disposeConcept,
  loadConcept,
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
  modelSize,
  parseLayout,
  prepareLayout,
  readLayout,
  type ResolvedLayout,
  resolveLayout,
} from "../diffusion/layout.ts";
import {
  pipeline,
  type PipelineOptions,
  toPixels,
} from "../diffusion/pipeline.ts";
import {
  assertWritable,
  exists,
  joinPath,
  parentOf,
  pathOf,
  writeAtomic,
  writeJson,
} from "../io/files.ts";
import { encodePng } from "../io/png.ts";
import { loadControlNet } from "../models/controlnet.ts";
import { disposeModel, loadModel, type Model } from "../models/model.ts";
import { loadT2IAdapter } from "../models/t2i_adapter.ts";
import { createProgress } from "./progress.ts";

const HELP = `deno task sample (--prompt TEXT | --layout FILE) [options]

Draws pictures and writes them as PNG, with layout.json, which draws them again.

  --prompt TEXT        what to draw
  --layout FILE        a layout: prompt, regions, conditions, sampler … as JSON
  --model FOLDER       base or fused model (default: the embedded one)
  --concept FILE       a concept to put into the model; may be given again
  --adapters HOW       how several concepts act without fusing (default sum):
                       sum        all everywhere
                       region     each inside the regions that name it in
                                  "concepts", and in their prompts
                       switch     one at a time, step by step (LoRA Switch)
                       composite  side by side, mean (LoRA Composite)
  --alpha X            strength of the concepts' adapters (1)
  --network NAME=DIR   a T2I-Adapter or ControlNet that the layout names

These replace what the layout says:
  --negative TEXT      what to stay away from
  --seed N             (0)
  --count N            number of pictures (1)
  --steps N            (20)
  --guidance X         (7.5)
  --sampler NAME       (dpmpp_2m)
  --size WxH           pixels (default: the model's own size)

  --batch N            pictures drawn at once (4)
  --out FOLDER         where pictures go (default out/sample)
  --backend NAME       auto, webgpu, wasm or cpu
  --help               this text

Exit code: 0 if all went well, 1 if not, 2 for bad arguments.

Examples:
  deno task sample --prompt "a red fox on grass" --count 4
  deno task sample --model out/fused --layout scene.json
  deno task sample --layout scene.json --concept fox.safetensors \\
    --concept owl.safetensors --adapters region
`;

/** How several concepts act without being fused. */
export const COMPOSITIONS = ["sum", "region", "switch", "composite"] as const;

/** What the command line asks for. */
export interface SampleCommand {
  readonly help: boolean;
  readonly model: string;
  readonly layout?: string;
  readonly concepts: readonly string[];
  readonly adapters: typeof COMPOSITIONS[number];
  readonly alpha: number;
  /** Folder by name. */
  readonly networks: Readonly<Record<string, string>>;
  /** Fields of the layout that the command line gives. */
  readonly changes: Readonly<Record<string, unknown>>;
  readonly batch: number;
  readonly out: string;
  readonly backend: BackendChoice;
}

const BACKENDS: readonly BackendChoice[] = ["auto", "webgpu", "wasm", "cpu"];

/** Where the embedded model lies. */
const EMBEDDED = new URL("../../models/micro", import.meta.url);

/**
 * Reads the command line.
 *
 * @param args Arguments after the command's name.
 * @throws If an option is unknown or a value does not fit.
 */
export function parseSample(args: readonly string[]): SampleCommand {
  const what = "sample";
  const parsed = parseArgs([...args], {
    string: [
      "prompt",
      "layout",
      "model",
      "concept",
      "adapters",
      "alpha",
      "network",
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
    collect: ["concept", "network"],
    boolean: ["help"],
    unknown: (name: string) => {
      throw cannot(what, "a known option (--help)", name);
    },
  });
  const number = (name: string, text: string | undefined) => {
    if (text === undefined) return undefined;
    const value = text.trim() === "" ? NaN : Number(text);
    if (!Number.isFinite(value)) {
      throw cannot(what, `a number for --${name}`, `"${text}"`);
    }
    return value;
  };
  const oneOf = <T extends string>(
    name: string,
    known: readonly T[],
    value: string,
  ): T => {
    if (!known.includes(value as T)) {
      throw cannot(what, `--${name} ${known.join(", ")}`, value);
    }
    return value as T;
  };
  if (
    !parsed.help && (parsed.prompt === undefined) ===
      (parsed.layout === undefined)
  ) {
    throw cannot(
      what,
      "--prompt or --layout",
      parsed.prompt === undefined ? "neither" : "both",
    );
  }
  const networks: Record<string, string> = {};
  for (const entry of parsed.network as string[]) {
    const [name, ...folder] = entry.split("=");
    if (name === "" || folder.length === 0) {
      throw cannot(what, "--network NAME=FOLDER", entry);
    }
    networks[name] = folder.join("=");
  }
  const changes: Record<string, unknown> = {};
  const change = (name: string, value: unknown) => {
    if (value !== undefined) changes[name] = value;
  };
  change("prompt", parsed.prompt);
  change("negative", parsed.negative);
  change("sampler", parsed.sampler);
  for (const name of ["seed", "count", "steps", "guidance"] as const) {
    change(name, number(name, parsed[name]));
  }
  if (parsed.size !== undefined) {
    const match = /^(\d+)x(\d+)$/.exec(parsed.size);
    if (!match) throw cannot(what, "--size such as 64x96", parsed.size);
    change("size", { width: Number(match[1]), height: Number(match[2]) });
  }
  const batch = number("batch", parsed.batch) ?? 4;
  if (!Number.isInteger(batch) || batch < 1) {
    throw cannot(what, "--batch of at least 1", batch);
  }
  return {
    help: parsed.help ?? false,
    model: parsed.model ?? pathOf(EMBEDDED),
    ...(parsed.layout === undefined ? {} : { layout: parsed.layout }),
    concepts: parsed.concept as string[],
    adapters: oneOf("adapters", COMPOSITIONS, parsed.adapters ?? "sum"),
    alpha: number("alpha", parsed.alpha) ?? 1,
    networks,
    changes,
    batch,
    out: parsed.out ?? joinPath("out", "sample"),
    backend: oneOf("backend", BACKENDS, parsed.backend ?? "auto"),
  };
}

/** The layout that is asked for, its pictures loaded. */
async function layoutOf(
  command: SampleCommand,
  model: Model,
): Promise<ResolvedLayout> {
  const { changes } = command;
  if (command.layout === undefined) {
    return await resolveLayout(parseLayout(changes, "the command line"), {
      size: modelSize(model),
    });
  }
  return await readLayout(command.layout, { size: modelSize(model), changes });
}

/** Loads the condition networks that the layout names. */
async function networksOf(
  { networks }: SampleCommand,
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
  command: SampleCommand,
  base: Model,
  concepts: readonly Concept[],
  { layout, regions }: ResolvedLayout,
): Cast {
  const { adapters, alpha } = command;
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
      if (layout.regions.length + layout.conditions.length > 0) {
        throw cannot(
          `sample with --adapters ${adapters}`,
          "a layout without regions and conditions",
          `${layout.regions.length} and ${layout.conditions.length}`,
        );
      }
      const compose = adapters === "switch" ? loraSwitch : loraComposite;
      return wrap(compose(base, concepts, { prompt, negative, alpha }));
    }
    case "region":
      return wrap(regionAdapters(
        base,
        regions.map((region, i) => ({
          ...region,
          concepts: layout.regions[i].concepts.map((name) => {
            const found = concepts.find((concept) => concept.name === name);
            if (found) return found;
            throw cannot(
              `read regions.${i}.concepts`,
              concepts.map((concept) => concept.name).join(", "),
              name,
            );
          }),
        })),
        { ...regional, alpha },
      ));
    case "sum": {
      const model = attachConcept(base, concepts, { alpha });
      return { model, dispose: () => releaseTokens(model, base) };
    }
  }
}

/**
 * Runs the command.
 *
 * @param args Arguments after the command's name.
 * @returns The exit code.
 */
export async function main(args: readonly string[]): Promise<number> {
  let command: SampleCommand;
  try {
    command = parseSample(args);
    if (command.help) {
      console.log(HELP);
      return 0;
    }
    for (
      const path of [
        command.model,
        ...command.layout === undefined ? [] : [command.layout],
        ...command.concepts,
        ...Object.values(command.networks),
      ]
    ) {
      if (!await exists(path)) throw cannot("sample", "what is there", path);
    }
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  try {
    await assertWritable(command.out);
    const backend = await selectBackend(command.backend);
    console.log(backend.describe);
    for (const file of await draw(command)) console.log(file);
    return 0;
  } catch (error) {
    console.error((error as Error).message);
    if (Deno.env.get("DEBUG")) console.error(error);
    return 1;
  }
}

/** Draws what is asked for and returns the files. */
async function draw(command: SampleCommand): Promise<string[]> {
  const { out } = command;
  const base = await loadModel(command.model);
  const concepts: Concept[] = [];
  let networks: Record<string, ConditionNetwork> = {};
  let cast: Cast | undefined;
  try {
    for (const file of command.concepts) {
      concepts.push(await loadConcept(file, base));
    }
    const resolved = await layoutOf(command, base);
    networks = await networksOf(command, resolved.layout);
    cast = castOf(command, base, concepts, resolved);
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
      const total = options.prompts.length;
      for await (const record of pipeline(model, options)) {
        if (record.type === "step") {
          const batches = Math.ceil(total / command.batch);
          const before = Math.floor(record.first / command.batch);
          progress.update(
            "drawing",
            before * record.total + record.index + 1,
            batches * record.total,
            "step",
          );
          continue;
        }
        const pictures = await toPixels(record.images);
        record.images.dispose();
        for (const [i, picture] of pictures.entries()) {
          const name = `${String(record.first + i).padStart(3, "0")}.png`;
          await writeAtomic(joinPath(out, name), encodePng(picture));
          files.push(joinPath(out, name));
        }
      }
      progress.finish();
      await writeJson(
        joinPath(out, "layout.json"),
        await movable(resolved.layout, command.layout),
      );
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

/** A layout that finds its pictures from any folder. */
async function movable(layout: Layout, path = "."): Promise<unknown> {
  const folder = await Deno.realPath(parentOf(path));
  return JSON.parse(
    JSON.stringify(layout),
    (key, value) =>
      key === "file" && typeof value === "string" && !value.startsWith("/")
        ? joinPath(folder, value)
        : value,
  );
}

if (import.meta.main) Deno.exit(await main(Deno.args));
