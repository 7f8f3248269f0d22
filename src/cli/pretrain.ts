/**
 * `deno task pretrain`: trains the embedded model from nothing.
 *
 * @module
 */
import { runScript } from "./command.ts";
import { finish } from "../core/finish.ts";
import { sha256 } from "../core/hash.ts";
import { parseArgs } from "@std/cli/parse-args";
import { selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { disposeTree } from "../core/tree.ts";
import { assertWritable, exists, joinPath, pathOf } from "../io/files.ts";
import {
  encodeFloat,
  openSafetensors,
  type RawTensor,
  toFloat32,
  writeSafetensors,
} from "../io/safetensors.ts";
import {
  encodeLatents,
  flatten,
  loadState,
  normaliseLatents,
  pretrain,
  type PretrainOptions,
  saveState,
  sharedFloats,
} from "../micro/pretrain/pretrain.ts";
import {
  LATENT_SCENES,
  type NetworkName,
  type NetworkRecipe,
  RECIPE,
} from "../micro/pretrain/recipe.ts";
import {
  flattenTree,
  layoutOf,
  networkLayout,
  TEXT_SPEC,
} from "../micro/pretrain/tasks.ts";
import { loadNetwork, writeNetwork } from "../micro/pretrain/weights.ts";
import { createProgress, duration } from "./progress.ts";

const HELP = `deno task pretrain [options]

Trains the embedded model: clip_a, vae, unet, clip_b, adapter (sketches), in
this order. A run that was stopped goes on with --resume and ends in the same
weights.

  --only NAMES     comma-separated networks
  --steps N        optimizer steps (of each trained network)
  --resume         continue a run from its checkpoint in --cache, else from the
                   short one beside its weights (default: start anew)
  --from-weights   start from the averaged weights in --out
  --workers N      Deno Workers (default 2; 0: in place)
  --backend NAME   webgpu, wasm or cpu; webgpu runs in place
  --cache FOLDER   checkpoints and latents (default .cache/pretrain)
  --out FOLDER     where weights are written (default models/micro)
  --base FOLDER    where networks that come before are read (default: --out, and
                   models/micro for those that --out lacks)
  --seed N         root seed of initialisation and data (default: the recipe's)
  --quick          a few steps of each network, into out/pretrain-quick
  --batch N        samples a step
  --lr X           peak learning rate
  --export         write the weights of a checkpoint in --cache and stop
  --with-state     with --export: also a short checkpoint (moments in 16 bits)
                   beside the weights, which another machine can resume

Examples:
  deno task pretrain --quick
  deno task pretrain --only unet --steps 6000 --resume
  deno task pretrain --only clip_b --seed 24 --base models/micro \\
    --cache .cache/pretrain-b2 --out out/second      (a second pair of eyes)
`;

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
const EMBEDDED = pathOf(new URL("../../models/micro", import.meta.url));

const WHAT = "start pretraining";

function number(text: string | undefined, fallback: number): number {
  if (text === undefined) return fallback;
  const value = Number(text);
  if (!Number.isFinite(value) || value < 0) {
    throw cannot(WHAT, "a number ≥ 0", text);
  }
  return value;
}

async function main(): Promise<void> {
  const args = parseArgs(Deno.args, {
    string: [
      "only",
      "steps",
      "workers",
      "backend",
      "cache",
      "out",
      "batch",
      "lr",
      "base",
      "seed",
    ],
    boolean: [
      "resume",
      "quick",
      "help",
      "from-weights",
      "export",
      "with-state",
    ],
    unknown: (name: string) => {
      throw cannot(WHAT, "a known option (--help)", name);
    },
  });
  if (args.help) return console.log(HELP);
  const only = (args.only?.split(",") ?? NAMES).map((name) => {
    const known = NAMES.find((n) => n === name);
    if (!known) throw cannot(WHAT, NAMES.join(", "), name);
    return known;
  });
  const out = args.out ?? (args.quick ? "out/pretrain-quick" : EMBEDDED);
  const cache = args.cache ??
    (args.quick ? "out/pretrain-quick/cache" : ".cache/pretrain");
  for (const folder of [out, cache]) {
    await Deno.mkdir(folder, { recursive: true });
    await assertWritable(folder);
  }
  const backend = await selectBackend(
    (args.backend ?? "wasm") as "wasm" | "webgpu" | "cpu",
  );
  console.log(backend.describe);
  const seed = args.seed === undefined ? undefined : number(args.seed, 0);
  if (seed !== undefined && !Number.isSafeInteger(seed)) {
    throw cannot(WHAT, "a whole --seed", args.seed);
  }
  const settings: Settings = {
    only,
    out,
    base: args.base,
    cache,
    workers: backend.name === "wasm" ? number(args.workers, 2) : 0,
    resume: args.resume,
    fromWeights: args["from-weights"],
    quick: args.quick,
    recipe: (name) => ({
      ...RECIPE[name],
      steps: number(args.steps, args.quick ? QUICK.steps : RECIPE[name].steps),
      batch: number(args.batch, RECIPE[name].batch),
      lr: number(args.lr, RECIPE[name].lr),
      seed: seed ?? RECIPE[name].seed,
    }),
  };
  for (const name of only) {
    if (args.export) {
      await exportWeights(name, settings, args["with-state"]);
    } else await trainNetwork(name, settings);
  }
}

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

async function trainNetwork(
  name: NetworkName,
  settings: Settings,
): Promise<void> {
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
  const start = settings.fromWeights
    ? { params: await flatNetwork(out, name), step: 0 }
    : undefined;
  const metrics = joinPath(out, name, "metrics.csv");
  await Deno.mkdir(joinPath(out, name), { recursive: true });
  // A new run's rows must not follow another's.
  if (!settings.resume && await exists(metrics)) await Deno.remove(metrics);
  const began = performance.now();
  const run = pretrain(name, { recipe, workers, checkpoint, start, materials });
  const rows: Record<string, number>[] = [];
  let first: Record<string, number> | undefined;
  let last: Record<string, number> = {};
  while (true) {
    const next = await run.next();
    if (next.done) {
      const { ema, step } = next.value;
      await writeNetwork(out, name, await finished(name, ema, workers), step);
      break;
    }
    const { step, steps, losses, lr, norm, seconds } = next.value;
    progress.update(name, step, steps, "step");
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
  progress.finish();
  if (!first) return console.log(`${name}: nothing left to train`);
  console.log(
    `${name}: loss ${first.loss.toFixed(4)} → ${last.loss?.toFixed(4)} in ${
      duration((performance.now() - began) / 1000)
    }`,
  );
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
  const flat = flatten(name, params);
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
    ...(name === "adapter"
      ? { unet: await flatNetwork(await before("unet"), "unet") }
      : {}),
  };
}

/** Latents, from the cache where the autoencoder is the same. */
async function latentsOf(
  autoencoder: Float32Array,
  { cache, workers, quick }: Settings,
  onProgress: (done: number, total: number) => void,
): Promise<Float32Array> {
  const scenes = quick ? QUICK.scenes : LATENT_SCENES;
  const path = joinPath(cache, "latents.safetensors");
  const hash = await sha256(autoencoder.slice().buffer);
  if (await exists(path)) {
    const file = await openSafetensors(path);
    try {
      const { shape } = file.entries.get("latents") ?? { shape: [0] };
      if (file.metadata.autoencoder === hash && shape[0] === scenes) {
        const values = toFloat32(await file.read("latents"));
        const shared = sharedFloats(values.length);
        shared.set(values);
        return shared;
      }
    } finally {
      file.close();
    }
  }
  const latents = await finish(
    encodeLatents(autoencoder, workers, scenes),
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

if (import.meta.main) await runScript(main);
