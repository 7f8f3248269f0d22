/**
 * `deno task memory`: the memory that a run will need, without any weights.
 *
 * @module
 */
import { USUAL_BINDING } from "../core/counting.ts";
import { cannot } from "../core/errors.ts";
import { trainingMemory } from "../customize/memory.ts";
import { method, METHODS } from "../customize/methods.ts";
import { modelSize } from "../diffusion/layout.ts";
import { samplingMemory } from "../diffusion/sampling_memory.ts";
import { fusionMemory } from "../fusion/memory.ts";
import type { MemoryNeed, ModelConfigs } from "../models/blank.ts";
import { type Command, command, runCommand } from "./command.ts";
import { hostBackend } from "./models.ts";
import {
  file,
  flag,
  number,
  oneOf,
  optionTable,
  pixels,
  type Values,
  whole,
} from "./options.ts";
import { gigabytes, MEMORY_CHOICES, modelConfigs } from "./memory_use.ts";

const count = whole({ least: 1 });

const OPTIONS = optionTable({
  model: {
    type: file,
    hint: "MODEL",
    otherwise: "the embedded model",
    help:
      "sd15, sd21, a diffusers folder, one .safetensors file or a name on " +
      "the hub; only the shapes of the weights are read",
  },
  train: {
    type: oneOf(METHODS),
    hint: "METHOD",
    section: "What is done:",
    help: `train with ${METHODS.join(", ")}`,
  },
  sample: { type: flag, help: "draw pictures" },
  fuse: { type: count, hint: "N", help: "fuse N concepts by gradient" },
  table: {
    type: flag,
    help: "drawing and training at 512, 640 and 768 pixels, as Markdown",
  },
  batch: {
    type: count,
    section: "How:",
    otherwise: "4 to train, 1 to draw",
    help: "pictures at once",
  },
  size: {
    type: pixels,
    otherwise: "the model's own size",
    help: "pixels",
  },
  rank: { type: count, otherwise: "4", help: "rank of the adapter" },
  memory: {
    type: oneOf(MEMORY_CHOICES),
    hint: "HOW",
    default: "auto",
    help: "high, low, or auto: high where --card has room for it, else low",
  },
  half: { type: flag, help: "weights as half floats" },
  card: {
    type: number({ least: 0.1 }),
    hint: "GB",
    default: 8,
    help: "memory of the graphics card, for --memory auto",
  },
  backend: {
    type: oneOf(["webgpu", "wasm"]),
    section: "",
    default: "webgpu",
    help: "backend whose kernels are counted: webgpu or wasm",
  },
  binding: {
    type: number({ least: 1 }),
    hint: "MiB",
    otherwise: "128",
    help: "the largest tensor that an operation may read on webgpu",
  },
  json: { type: flag, help: "prints JSON only" },
});

/** What the command line asks for. */
export type MemoryCommandRequest = Values<typeof OPTIONS>;

/** Refuses options that do not go together. */
function checked(request: MemoryCommandRequest): MemoryCommandRequest {
  const { train, sample, fuse, table, half, backend, binding } = request;
  const asked = [train !== undefined, sample, fuse !== undefined, table]
    .filter((one) => one).length;
  if (asked !== 1) {
    throw cannot(
      "count memory",
      "one of --train METHOD, --sample, --fuse N and --table",
      asked === 0 ? "none" : `${asked} of them`,
    );
  }
  const [use] = Object.entries({ train, sample, fuse, table })
    .flatMap(([name, value]) => value ? `--${name}` : []);
  const only = (names: readonly string[], when: boolean, what: string) => {
    for (const name of names) {
      const value = request[name as keyof MemoryCommandRequest];
      if (!when && value !== undefined && value !== false && value !== "auto") {
        throw cannot("count memory", `${what} with --${name}`, use);
      }
    }
  };
  only(["half", "memory"], !table, "a single count");
  // Only --memory auto asks for it, and the table has both answers.
  const given = request.card !== OPTIONS.card.default;
  only(["card"], !table || !given, "a single count");
  only(["rank"], train !== undefined, "--train METHOD");
  only(["batch"], train !== undefined || sample, "--train or --sample");
  only(["size"], fuse === undefined && !table, "--train or --sample");
  if (backend === "wasm" && (half || binding !== undefined || table)) {
    const name = half ? "half" : table ? "table" : "binding";
    throw cannot("count memory", `--backend webgpu with --${name}`, "wasm");
  }
  return request;
}

/** What is counted. */
interface Work {
  readonly train?: typeof METHODS[number];
  readonly sample?: boolean;
  readonly fuse?: number;
  readonly batch?: number;
  readonly width: number;
  readonly height: number;
  readonly rank?: number;
}

/** Counts one run. */
async function counted(
  configs: ModelConfigs,
  work: Work,
  way: { memory: "high" | "low"; half: boolean },
  { backend, binding }: MemoryCommandRequest,
): Promise<MemoryNeed> {
  const options = {
    kernels: backend,
    binding: binding === undefined ? USUAL_BINDING : binding * 2 ** 20,
  };
  const { train, fuse, batch, width, height, rank } = work;
  if (fuse !== undefined) {
    return await fusionMemory(configs, { concepts: fuse, ...way }, options);
  }
  const size = { height, width, ...way };
  if (train === undefined) {
    return await samplingMemory(
      configs,
      { ...size, batch: batch ?? 1 },
      options,
    );
  }
  return await trainingMemory(configs, {
    ...size,
    method: method(train, "paper", { batch }),
    rank,
    encoding: true,
  }, options);
}

/** Rows of the table that README has: what needs how much at which size. */
async function table(
  configs: ModelConfigs,
  request: MemoryCommandRequest,
): Promise<string> {
  const sides = [512, 640, 768];
  const runs: [string, Omit<Work, "width" | "height">][] = [
    ["draw one picture", { sample: true }],
    ["draw four at once", { sample: true, batch: 4 }],
    ["train ED-LoRA, batch 1", { train: "ed-lora", batch: 1 }],
    ["train ED-LoRA, batch 4", { train: "ed-lora", batch: 4 }],
  ];
  const ways = [
    ["high", { memory: "high", half: false }],
    ["low", { memory: "low", half: false }],
    ["low, half", { memory: "low", half: true }],
  ] as const;
  const lines = [
    `| GB at | ${
      sides.flatMap((side) => ways.map(([name]) => `${side}, ${name}`))
        .join(" | ")
    } |`,
    `| --- |${" --: |".repeat(sides.length * ways.length)}`,
  ];
  for (const [name, work] of runs) {
    const cells: string[] = [];
    for (const side of sides) {
      for (const [, way] of ways) {
        const size = { width: side, height: side };
        const { bytes } = await counted(
          configs,
          { ...work, ...size },
          way,
          request,
        );
        cells.push((bytes / 1e9).toFixed(1));
      }
    }
    lines.push(`| ${name} | ${cells.join(" | ")} |`);
  }
  return lines.join("\n");
}

/** How a run is counted: as it is asked for, or the first way with room. */
async function chosen(
  configs: ModelConfigs,
  work: Work,
  request: MemoryCommandRequest,
): Promise<{ memory: "high" | "low"; half: boolean; need: MemoryNeed }> {
  const { memory, half, card } = request;
  const first = { memory: memory === "low" ? "low" : "high", half } as const;
  const need = await counted(configs, work, first, request);
  if (memory !== "auto" || need.bytes <= 1e9 * card) return { ...first, need };
  const low = { memory: "low", half } as const;
  return { ...low, need: await counted(configs, work, low, request) };
}

/**
 * Counts and prints.
 *
 * @param request What is asked for.
 * @throws If the model is not there or its configs are broken.
 */
export async function runMemory(request: MemoryCommandRequest): Promise<void> {
  await hostBackend();
  const configs = await modelConfigs(request);
  if (request.table) {
    const text = await table(configs, request);
    console.log(request.json ? JSON.stringify({ table: text }) : text);
    return;
  }
  const { width, height } = request.size ?? modelSize({
    unet: { config: configs.unet },
    autoencoder: { config: configs.autoencoder },
  });
  const { memory, half, need } = await chosen(
    configs,
    { ...request, width, height },
    request,
  );
  if (request.json) {
    console.log(JSON.stringify({ ...need, memory, half }));
    return;
  }
  const rows: [string, number | undefined][] = [
    ["weights", need.weights],
    [request.fuse === undefined ? "adapters" : "new weights", need.adapters],
    ["optimizer", need.optimizer],
    ["activations", need.activations],
    ["tensors at once", need.peak],
    ["buffers at once", need.held],
    ["largest tensor", need.largest],
    ["on the host", need.host],
  ];
  for (const [name, bytes] of rows) {
    if (bytes) console.log(`${name.padEnd(18)}${gigabytes(bytes)}`);
  }
  console.log(
    `${gigabytes(need.bytes)} on ${request.backend}, --memory ${memory}` +
      (half ? " --half" : ""),
  );
}

/** `deno task memory`. */
export const memoryCommand: Command<MemoryCommandRequest> = command({
  name: "memory",
  what: "count memory",
  summary: "count the memory that a run will need",
  usage: "deno task memory --model MODEL --train METHOD [options]",
  about:
    `Counts the bytes that training, drawing or fusing will need. The program itself
runs, on a backend that computes nothing.`,
  options: OPTIONS,
  examples: [
    "deno task memory --model sd15 --train ed-lora --batch 4 --size 512",
    "deno task memory --model sd15 --sample --half --json",
    "deno task memory --model sd15 --table",
  ],
  request: checked,
  run: runMemory,
});

if (import.meta.main) Deno.exit(await runCommand(memoryCommand, Deno.args));
