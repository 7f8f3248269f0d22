/**
 * `deno task pretrain`: trains the embedded model from nothing.
 *
 * @module
 */
import { finish } from "../../../src/core/finish.ts";
import { sha256 } from "../../../src/core/hash.ts";
import { selectBackend } from "../../../src/core/backend.ts";
import { cannot } from "../../../src/core/errors.ts";
import { hardwareWorkers } from "../../../src/core/pool.ts";
import { disposeTree } from "../../../src/core/tree.ts";
import {
  assertWritable,
  exists,
  joinPath,
  pathOf,
} from "../../../src/io/files.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../../../src/io/safetensors.ts";
import { type Command, command, runCommand } from "../../../src/cli/command.ts";
import {
  flag,
  folder,
  givenOptions,
  listOf,
  number,
  oneOf,
  optionTable,
  seedNumber,
  type Values,
  whole,
} from "../../../src/cli/options.ts";
import { duration } from "../../../src/report/format.ts";
import { createProgress } from "../../../src/cli/progress.ts";
import { onInterrupt } from "../../../src/cli/signals.ts";
import {
  encodeLatents,
  loadState,
  normaliseLatents,
  pretrain,
  type PretrainOptions,
  saveState,
  sharedFloats,
} from "./pretrain.ts";
import {
  LATENT_SCENES,
  type NetworkName,
  type NetworkRecipe,
  RECIPE,
} from "./recipe.ts";
import { flattenTree, layoutOf, networkLayout, TEXT_SPEC } from "./tasks.ts";
import { loadNetwork, writeNetwork } from "./weights.ts";

const NAMES: readonly NetworkName[] = [
  "clip_a",
  "vae",
  "unet",
  "clip_b",
  "adapter",
];

/** Steps between two rows of the metrics file. */
const ROW = 25;

/** What --quick does: enough for every loss to fall. */
const QUICK = { steps: 50, scenes: 512 };

interface Settings {
  readonly only: readonly NetworkName[];
  readonly workers: number;
  /** Those that encode latents. */
  readonly encoders: number;
  readonly cache: string;
  readonly out: string;
  /** Where networks that come before are read; by default `out`. */
  readonly base: string | undefined;
  readonly resume: boolean;
  readonly fromWeights: boolean;
  readonly quick: boolean;
  readonly recipe: (name: NetworkName) => NetworkRecipe;
}

/** The committed weights. */
const EMBEDDED = pathOf(new URL("../../../models/micro", import.meta.url));

const OPTIONS = optionTable({
  only: { type: listOf(oneOf(NAMES)), hint: "NAMES", help: "these networks" },
  steps: {
    type: whole({ least: 1 }),
    otherwise: "the recipe's",
    help: "optimisation steps of each trained network",
  },
  resume: {
    type: flag,
    help:
      "continue a run from its checkpoint in --cache, else from the short one beside its weights; without it a run starts anew",
  },
  fromWeights: {
    type: flag,
    help: "start from the averaged weights in --out",
  },
  workers: {
    type: whole({ least: 0 }),
    otherwise: "2",
    help: "Deno workers; 0: work in the main thread",
  },
  backend: {
    type: oneOf(["wasm", "webgpu", "cpu"]),
    default: "wasm",
    help: "webgpu, wasm or cpu; webgpu and cpu run in the main thread",
  },
  cache: {
    type: folder,
    otherwise: ".cache/pretrain",
    help: "checkpoints and latents",
  },
  out: {
    type: folder,
    otherwise: "models/micro",
    help: "folder that weights are written to",
  },
  base: {
    type: folder,
    otherwise: "--out, and models/micro for networks that --out lacks",
    help: "folder of the networks that a trained one builds on",
  },
  seed: {
    type: seedNumber,
    otherwise: "the recipe's",
    help: "root seed of initialisation and data",
  },
  quick: {
    type: flag,
    help: "a few steps of each network, into out/pretrain-quick",
  },
  batch: {
    type: whole({ least: 1 }),
    otherwise: "the recipe's",
    help: "samples per step",
  },
  lr: {
    type: number({ least: 0 }),
    otherwise: "the recipe's",
    help: "peak learning rate",
  },
  export: {
    type: flag,
    help: "write the weights of a checkpoint in --cache and stop",
  },
  withState: {
    type: flag,
    help:
      "with --export: also a short checkpoint (moments in 16 bits) beside the weights, which another machine can resume",
  },
});

/** What the command line asks for. */
export type PretrainRequest = Values<typeof OPTIONS>;

/** What training alone uses: a checkpoint's weights are as they are. */
const TRAINING_ONLY = [
  "steps",
  "lr",
  "resume",
  "fromWeights",
  "base",
] as const;

/** Refuses options that do not go together. */
function checked(request: PretrainRequest): PretrainRequest {
  const what = "pretrain";
  if (request.withState && !request.export) {
    throw cannot(what, "--export with --with-state", "none");
  }
  if (request.resume && request.fromWeights) {
    throw cannot(what, "--resume or --from-weights", "both");
  }
  const [unused] = givenOptions(OPTIONS, request, TRAINING_ONLY);
  if (request.export && unused !== undefined) {
    throw cannot(what, `--export without ${unused}`, "both");
  }
  return request;
}

/** Options that change nothing for these networks. */
function idle(request: PretrainRequest): string[] {
  const { only = NAMES, quick, steps, out, cache, base } = request;
  const first = only.every((name) => name === "clip_a" || name === "vae");
  const latents = only.some((name) => name === "unet" || name === "adapter");
  return [
    ...(base !== undefined && first
      ? [`--base changes nothing: no network comes before ${only.join(", ")}`]
      : []),
    ...(quick && !latents && steps !== undefined && out !== undefined &&
        cache !== undefined
      ? ["--quick changes nothing beside --steps, --out and --cache"]
      : []),
  ];
}

/** Trains the networks that are asked for, one after the other. */
async function runPretrain(request: PretrainRequest): Promise<void> {
  const { quick, steps, batch, lr, seed, only = NAMES } = request;
  const {
    out = quick ? "out/pretrain-quick" : EMBEDDED,
    cache = quick ? "out/pretrain-quick/cache" : ".cache/pretrain",
  } = request;
  for (const folder of [out, cache]) {
    await Deno.mkdir(folder, { recursive: true });
    await assertWritable(folder);
  }
  const backend = await selectBackend(request.backend);
  if (backend.name !== "wasm" && (request.workers ?? 0) > 0) {
    throw cannot("pretrain", "--backend wasm with --workers", backend.name);
  }
  const workers = backend.name === "wasm" ? request.workers ?? 2 : 0;
  console.log(`${backend.describe}, ${workers} workers`);
  for (const line of idle(request)) console.error(line);
  const settings: Settings = {
    only,
    out,
    base: request.base,
    cache,
    workers,
    // Drawing the scenes takes longer than any graphics card.
    encoders: backend.name === "webgpu" ? hardwareWorkers() : workers,
    resume: request.resume,
    fromWeights: request.fromWeights,
    quick,
    recipe: (name) => ({
      ...RECIPE[name],
      steps: steps ?? (quick ? QUICK.steps : RECIPE[name].steps),
      batch: batch ?? RECIPE[name].batch,
      lr: lr ?? RECIPE[name].lr,
      seed: seed ?? RECIPE[name].seed,
    }),
  };
  for (const name of only) {
    if (request.export) {
      await exportWeights(name, settings, request.withState);
    } else if (!await trainNetwork(name, settings)) break;
  }
}

/** `deno task pretrain`. */
export const pretrainCommand: Command<PretrainRequest> = command({
  name: "pretrain",
  summary: "train the embedded model from nothing",
  usage: "deno task pretrain [options]",
  about:
    `Trains the embedded model: clip_a, vae, unet, clip_b, adapter (sketches), in
this order. Ctrl-C stops a run after its step; --resume continues it, with the
same weights in the end.`,
  options: OPTIONS,
  examples: [
    "deno task pretrain --quick",
    "deno task pretrain --only unet --steps 6000 --resume",
    "deno task pretrain --only clip_b --seed 24 --base models/micro \\\n" +
    "    --cache .cache/pretrain-b2 --out out/second",
  ],
  request: checked,
  run: runPretrain,
});

/** Weights that go into the model: the average, latents made ready. */
function finished(
  name: NetworkName,
  ema: Float32Array,
  workers: number,
): Promise<Float32Array> | Float32Array {
  return name === "vae" ? normaliseLatents(ema, workers) : ema;
}

async function exportWeights(
  name: NetworkName,
  { cache, out, workers, recipe }: Settings,
  withState: boolean,
): Promise<void> {
  const state = await loadState(
    joinPath(cache, `${name}.safetensors`),
    networkLayout(name).size,
    recipe(name),
  );
  const weights = await finished(name, state.ema, workers);
  await writeNetwork(out, name, weights, state.step);
  if (withState) {
    await saveState(shortState(out, name), state, recipe(name), true);
  }
  console.log(`${name}: step ${state.step} written to ${out}`);
}

/** The short checkpoint beside a network's weights. */
function shortState(out: string, name: NetworkName): string {
  return joinPath(out, name, "checkpoint.safetensors");
}

/** Trains a network; whether to its end. */
async function trainNetwork(
  name: NetworkName,
  settings: Settings,
): Promise<boolean> {
  const { cache, out, workers } = settings;
  const recipe = settings.recipe(name);
  const checkpoint = joinPath(cache, `${name}.safetensors`);
  if (!settings.resume && await exists(checkpoint)) {
    await Deno.remove(checkpoint);
  }
  if (
    settings.resume && !await exists(checkpoint) &&
    await exists(shortState(out, name))
  ) await Deno.copyFile(shortState(out, name), checkpoint);
  const progress = createProgress();
  const materials = await gather(
    name,
    settings,
    (done, total) => progress.update("latents", done, total, "scene"),
  );
  const start = settings.fromWeights ? await flatNetwork(out, name) : undefined;
  const metrics = joinPath(out, name, "metrics.csv");
  await Deno.mkdir(joinPath(out, name), { recursive: true });
  // A new run's rows must not follow another's.
  if (!settings.resume && await exists(metrics)) await Deno.remove(metrics);
  const began = performance.now();
  const run = pretrain(name, { recipe, workers, checkpoint, start, materials });
  const rows: Record<string, number>[] = [];
  let first: Record<string, number> | undefined;
  let last: Record<string, number> = {};
  let asked = false;
  const release = onInterrupt(() => asked = true);
  try {
    while (true) {
      const next = await run.next();
      if (next.done) {
        const { ema, step } = next.value;
        await writeNetwork(out, name, await finished(name, ema, workers), step);
        break;
      }
      const { step, steps, losses, lr, norm, seconds } = next.value;
      progress.update(name, step, steps, "step");
      if (asked) {
        await run.return(undefined as never);
        progress.finish();
        console.log(`${name}: stopped at step ${step}; --resume goes on`);
        return false;
      }
      rows.push({ ...losses, norm, seconds });
      if (step % ROW !== 0 && step !== steps) continue;
      last = averages(rows.splice(0));
      first ??= last;
      await appendRow(metrics, { step, lr, ...last });
      progress.line(
        `${name} ${step}/${steps}  ` +
          Object.entries(last).map(([k, v]) => `${k} ${v.toFixed(4)}`)
            .join("  "),
      );
    }
  } finally {
    release();
  }
  progress.finish();
  console.log(
    first
      ? `${name}: loss ${first.loss.toFixed(4)} → ${last.loss?.toFixed(4)} in ${
        duration((performance.now() - began) / 1000)
      }`
      : `${name}: nothing left to train`,
  );
  return true;
}

function averages(
  rows: readonly Record<string, number>[],
): Record<string, number> {
  const names = Object.keys(rows[0]);
  return Object.fromEntries(names.map((name) => [
    name,
    rows.reduce((sum, row) => sum + row[name], 0) / rows.length,
  ]));
}

async function appendRow(
  path: string,
  row: Record<string, number>,
): Promise<void> {
  const isNew = !await exists(path);
  const line = Object.values(row).map((v) => Number(v.toPrecision(5))).join();
  await Deno.writeTextFile(
    path,
    `${isNew ? Object.keys(row).join() + "\n" : ""}${line}\n`,
    { append: true },
  );
}

async function flatNetwork(
  folder: string,
  name: NetworkName,
): Promise<Float32Array> {
  const params = await loadNetwork(folder, name);
  const flat = flattenTree(networkLayout(name), params);
  disposeTree(params);
  return flat;
}

/** What a network's training needs of the networks before it. */
async function gather(
  name: NetworkName,
  settings: Settings,
  onLatents: (done: number, total: number) => void,
): Promise<NonNullable<PretrainOptions["materials"]>> {
  /** Where a network that comes before lies. */
  const before = async (needed: NetworkName) =>
    settings.base ??
      (await exists(joinPath(settings.out, needed, "config.json"))
        ? settings.out
        : EMBEDDED);
  if (name === "clip_a" || name === "vae") return {};
  const autoencoder = await flatNetwork(await before("vae"), "vae");
  if (name === "clip_b") return { autoencoder };
  const clip = await loadNetwork(await before("clip_a"), "clip_a");
  const text = flattenTree(layoutOf(TEXT_SPEC), clip);
  disposeTree(clip);
  return {
    text,
    latents: await latentsOf(autoencoder, settings, onLatents),
    ...(name === "adapter" &&
      { unet: await flatNetwork(await before("unet"), "unet") }),
  };
}

/** Latents, from the cache where the autoencoder is the same. */
async function latentsOf(
  autoencoder: Float32Array,
  { cache, encoders, quick }: Settings,
  onProgress: (done: number, total: number) => void,
): Promise<Float32Array> {
  const scenes = quick ? QUICK.scenes : LATENT_SCENES;
  const path = joinPath(cache, "latents.safetensors");
  const hash = await sha256(autoencoder.slice().buffer);
  if (await exists(path)) {
    using file = await openSafetensors(path);
    const { shape } = file.entries.get("latents") ?? { shape: [0] };
    if (file.metadata.autoencoder === hash && shape[0] === scenes) {
      const values = toFloat32(await file.read("latents"));
      const shared = sharedFloats(values.length);
      shared.set(values);
      return shared;
    }
  }
  const latents = await finish(
    encodeLatents(autoencoder, encoders, scenes),
    ({ done, total }) => onProgress(done, total),
  );
  const tensor: RawTensor = {
    dtype: "F16",
    shape: [scenes, latents.length / scenes],
    data: encodeFloat(latents, "F16"),
  };
  await writeSafetensors(path, [["latents", tensor]], { autoencoder: hash });
  // As a run that resumes will read them.
  latents.set(toFloat32(tensor));
  return latents;
}

if (import.meta.main) {
  Deno.exit(await runCommand(pretrainCommand, Deno.args));
}
