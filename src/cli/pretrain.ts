/**
 * `deno task pretrain`: trains the embedded model from nothing.
 *
 * @module
 */
import { parseArgs } from "@std/cli/parse-args";
import { cannot } from "../core/errors.ts";
import { exists, joinPath, pathOf, writeJson } from "../io/files.ts";
import { openSafetensors, toFloat32 } from "../io/safetensors.ts";
import { disposeTree } from "../core/tree.ts";
import { selectBackend } from "../core/backend.ts";
import {
  encodeLatents,
  flatten,
  normaliseLatents,
  pretrain,
  sharedFloats,
} from "../micro/pretrain/pretrain.ts";
import {
  LATENT_SCENES,
  type NetworkName,
  RECIPE,
} from "../micro/pretrain/recipe.ts";
import {
  folderOf,
  loadNetwork,
  writeNetwork,
} from "../micro/pretrain/weights.ts";

const HELP = `deno task pretrain [options]

Trains the embedded model: clip_a, vae, unet, clip_b, adapter (sketches), in
this order.

  --only NAMES     comma-separated networks
  --steps N        optimizer steps (of each trained network)
  --resume         continue a run from its checkpoint (default: start anew)
  --from-weights   start from the committed averaged weights
  --workers N      Deno Workers (default 2; 0: in place)
  --backend NAME   webgpu, wasm or cpu; webgpu runs in place
  --cache FOLDER   checkpoints and latents (default .cache/pretrain)
  --out FOLDER     where weights are written (default models/micro)
  --quick          a few steps of each network
  --batch N --lr X other recipe values
  --export         write weights from the checkpoint and stop
`;

/** Steps between two lines of the log. */
const LOG_EVERY = 25;

const NAMES: NetworkName[] = ["clip_a", "vae", "unet", "clip_b", "adapter"];

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
    ],
    boolean: ["resume", "quick", "help", "from-weights", "export"],
    unknown: (name: string) => {
      throw cannot("start pretraining", "a known option (--help)", name);
    },
  });
  if (args.help) return console.log(HELP);
  const only = args.only
    ? args.only.split(",").map((name) => {
      if (!NAMES.includes(name as NetworkName)) {
        throw cannot("start pretraining", NAMES.join(", "), name);
      }
      return name as NetworkName;
    })
    : NAMES;
  const cache = args.cache ?? ".cache/pretrain";
  const out = args.out ?? pathOf(new URL("../../models/micro", import.meta.url));
  await Deno.mkdir(cache, { recursive: true });
  await Deno.mkdir(out, { recursive: true });
  const backend = await selectBackend(
    (args.backend ?? "wasm") as "wasm" | "webgpu" | "cpu",
  );
  const workers = backend.name === "webgpu" ? 0 : number(args.workers, 2);
  for (const name of only) {
    const recipe = {
      ...RECIPE[name],
      steps: number(args.steps, args.quick ? 20 : RECIPE[name].steps),
      batch: number(args.batch, RECIPE[name].batch),
      lr: number(args.lr, RECIPE[name].lr),
    };
    const checkpoint = joinPath(cache, `${name}.safetensors`);
    if (args.export) {
      const file = await openSafetensors(checkpoint);
      const ema = toFloat32(await file.read("ema"));
      const values = name === "vae" ? await normaliseLatents(ema, workers) : ema;
      await writeNetwork(out, name, values, Number(file.metadata.step));
      console.log(`${name}: step ${file.metadata.step} written to ${out}`);
      file.close();
      continue;
    }
    if (!args.resume && await exists(checkpoint)) await Deno.remove(checkpoint);
    let start: { params: Float32Array; step: number } | undefined;
    if (args["from-weights"]) {
      const params = await loadNetwork(out, name);
      start = { params: flatten(name, params), step: 0 };
      disposeTree(params);
    }
    const materials: {
      latents?: Float32Array;
      text?: Float32Array;
      autoencoder?: Float32Array;
      unet?: Float32Array;
    } = {};
    if (name === "adapter") {
      const unet = await loadNetwork(out, "unet");
      materials.unet = flatten("unet", unet);
      disposeTree(unet);
    }
    if (name === "unet" || name === "clip_b" || name === "adapter") {
      const vae = await loadNetwork(out, "vae");
      const flat = flatten("vae", vae);
      disposeTree(vae);
      if (name === "clip_b") materials.autoencoder = flat;
      else {
        const clip = await loadNetwork(out, "clip_a");
        const { text_model } = clip as { text_model: unknown };
        const values = textFlat({ text_model });
        materials.text = values;
        disposeTree(clip);
        materials.latents = await latents(cache, flat, Math.max(1, workers));
      }
    }
    const log = await Deno.open(joinPath(folderOf(out), `${name}.metrics.csv`), {
      create: true,
      append: true,
    });
    const run = pretrain(name, { recipe, workers, checkpoint, start, materials });
    const began = performance.now();
    let average: Record<string, number> = {};
    let count = 0;
    while (true) {
      const next = await run.next();
      if (next.done) {
        const { ema, step } = next.value;
        const values = name === "vae"
          ? await normaliseLatents(ema, workers)
          : ema;
        await writeNetwork(out, name, values, step);
        break;
      }
      const r = next.value;
      for (const [k, v] of Object.entries(r.losses)) {
        average[k] = (average[k] ?? 0) + v;
      }
      count++;
      if (r.step % LOG_EVERY === 0 || r.step === r.steps) {
        const parts = Object.entries(average).map(([k, v]) =>
          `${k} ${(v / count).toFixed(4)}`
        ).join("  ");
        const left = (performance.now() - began) / 1000;
        console.log(
          `${name} ${r.step}/${r.steps}  ${parts}  |g| ${
            r.norm.toFixed(2)
          }  lr ${r.lr.toExponential(1)}  ${r.seconds.toFixed(2)} s/step  ${
            (left / 60).toFixed(1)
          } min`,
        );
        await log.write(
          new TextEncoder().encode(
            `${r.step},${
              Object.values(average).map((v) => (v / count).toFixed(5)).join()
            },${r.lr.toExponential(3)},${r.seconds.toFixed(3)}\n`,
          ),
        );
        average = {};
        count = 0;
      }
    }
    log.close();
  }
}

function textFlat(tree: unknown): Float32Array {
  return textTower(tree);
}

import { textTower } from "../micro/pretrain/weights.ts";
import {
  encodeFloat,
  writeSafetensors,
} from "../io/safetensors.ts";

/** Latents, from the cache where the autoencoder is the same. */
async function latents(
  cache: string,
  autoencoder: Float32Array,
  workers: number,
): Promise<Float32Array> {
  const path = joinPath(cache, "latents.safetensors");
  const digest = new Uint8Array(
    await crypto.subtle.digest("SHA-256", autoencoder.slice().buffer),
  );
  const hash = [...digest].map((b) => b.toString(16).padStart(2, "0")).join("");
  if (await exists(path)) {
    const file = await openSafetensors(path);
    try {
      if (file.metadata.autoencoder === hash) {
        const values = toFloat32(await file.read("latents"));
        const shared = sharedFloats(values.length);
        shared.set(values);
        return shared;
      }
    } finally {
      file.close();
    }
  }
  const run = encodeLatents(autoencoder, workers);
  while (true) {
    const next = await run.next();
    if (next.done) {
      await writeSafetensors(path, [["latents", {
        dtype: "F16",
        shape: [LATENT_SCENES, next.value.length / LATENT_SCENES],
        data: encodeFloat(next.value, "F16"),
      }]], { autoencoder: hash });
      return next.value;
    }
    const { done, total } = next.value;
    if (done % 2048 === 0) console.log(`latents ${done}/${total}`);
  }
}

function number(text: string | undefined, fallback: number): number {
  if (text === undefined) return fallback;
  const value = Number(text);
  if (!Number.isFinite(value) || value < 0) {
    throw cannot("start pretraining", "a number ≥ 0", text);
  }
  return value;
}

if (import.meta.main) {
  try {
    await main();
    void writeJson;
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    if (Deno.env.get("DEBUG")) console.error(error);
    Deno.exit(1);
  }
}
