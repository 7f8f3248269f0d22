/**
 * Small models, pictures and files for the pairs of options.
 *
 * @module
 */
import { runCommand } from "../../src/cli/command.ts";
import { convertCommand } from "../../src/cli/convert.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { trainCommand } from "../../src/cli/train.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { key } from "../../src/core/random.ts";
import { disposeTree } from "../../src/core/tree.ts";
import { decodePng, encodePng } from "../../src/io/png.ts";
import { writeJson } from "../../src/io/files.ts";
import { method } from "../../src/customize/methods.ts";
import { withLab } from "../../src/lab/lab.ts";
import { pathOf } from "../../src/lab/store.ts";
import { save } from "../../src/models/checkpoint.ts";
import {
  flattenTree,
  networkLayout,
  networkSpec,
} from "../tools/pretrain/tasks.ts";
import { writeNetwork } from "../tools/pretrain/weights.ts";
import {
  parseT2IAdapterConfig,
  type T2IAdapter,
  t2iAdapterSpec,
} from "../../src/models/t2i_adapter.ts";
import { initialise } from "../../src/nn/spec.ts";
import type { Pretended } from "../lab/pretender.ts";
import { type Pretend, pretending } from "./pretended.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";

/** Where everything is; nothing is read to know the paths. */
export interface OptionWorld {
  /** The folder of it all. */
  readonly at: string;
  /** What commands write. */
  readonly out: string;
  /** Does what an experiment is asked for in a lab that only pretends. */
  readonly pretend?: Pretend;
}

/** The paths of a world in a folder. */
export function worldAt(folder: string): OptionWorld {
  return { at: folder, out: `${folder}/out` };
}

const SIDE = 64;

/** A picture with a square of another colour. */
function picture(shade: number, mask = false): Uint8Array {
  const data = new Uint8Array(SIDE * SIDE * 3);
  for (let p = 0; p < SIDE * SIDE; p++) {
    const inside = p % SIDE > 16 && p % SIDE < 40 && p > SIDE * 20;
    data.set(
      mask
        ? new Array(3).fill(inside ? 255 : 0)
        : inside
        ? [shade, 120, 20]
        : [20, p % 200, shade],
      3 * p,
    );
  }
  return encodePng({ width: SIDE, height: SIDE, channels: 3, data });
}

/** Two of them side by side. */
function wide(shade: number): Uint8Array {
  const { data, channels } = decodePng(picture(shade));
  const row = SIDE * channels;
  const twice = new Uint8Array(2 * data.length);
  for (let y = 0; y < SIDE; y++) {
    const pixels = data.subarray(y * row, (y + 1) * row);
    twice.set(pixels, 2 * y * row);
    twice.set(pixels, (2 * y + 1) * row);
  }
  return encodePng({ width: 2 * SIDE, height: SIDE, channels, data: twice });
}

/** The same with a transparent half. */
function cutOut(shade = 200): Uint8Array {
  const data = new Uint8Array(SIDE * SIDE * 4).fill(255);
  for (let p = 0; p < SIDE * SIDE / 2; p++) {
    data.set([shade, 40, 40, 0], 4 * p);
  }
  return encodePng({ width: SIDE, height: SIDE, channels: 4, data });
}

/** Many colours, in part transparent. */
function pattern(shade: number): Uint8Array {
  const data = Uint8Array.from(
    { length: SIDE * SIDE * 4 },
    (_, i) =>
      i % 4 === 3 ? (i % 20 < 4 ? 0 : 255) : (i * shade + (i >> 5) * 31) % 256,
  );
  return encodePng({ width: SIDE, height: SIDE, channels: 4, data });
}

/** Two networks that see a sketch. */
async function writeSketchNetworks(folder: string): Promise<void> {
  const config = parseT2IAdapterConfig({
    channels: [16],
    downscale_factor: 8,
    num_res_blocks: 1,
  });
  const spec = t2iAdapterSpec(config);
  for (const [i, name] of ["a", "b"].entries()) {
    const params = initialise<T2IAdapter>(spec, key(20 + i));
    const at = `${folder}/sketch/${name}`;
    await writeJson(`${at}/config.json`, config);
    await save(`${at}/diffusion_pytorch_model.safetensors`, spec, params);
    disposeTree(params);
  }
}

/** Plans of the experiments, and what some commands must not write over. */
async function writePlans(folder: string): Promise<void> {
  await Deno.mkdir(`${folder}/store`);
  await Deno.writeTextFile(`${folder}/store/file`, "");
  await writeJson(`${folder}/templates.json`, ["a drawing of a {}"]);
  await writeJson(`${folder}/train.json`, { flips: true, "lr-unet": 0.1 });
  await writeJson(`${folder}/other.json`, { short: { steps: 2 } });
  await writeJson(`${folder}/batch.json`, { small: { batch: 2 } });
  await writeJson(`${folder}/variants.json`, { long: { steps: 3 } });
}

/** Files that stand for every concept and every fused model. */
async function somePretended(at: string): Promise<Pretended> {
  const folders = { model: `${at}/model`, store: `${at}/store/some` };
  const { train } = method("ed-lora", "ablation", { steps: 1, batch: 1 });
  return await withLab(
    { ...folders, backend: "wasm", workers: 0 },
    async (lab) => {
      const concepts = await lab.train(["kuro", "momo"].map((concept) => ({
        ...{ concept, classWord: "animal", method: "ed-lora" as const },
        ...{ preset: "ablation" as const, rank: 1, seed: 0, config: train },
        pictures: {
          of: "art" as const,
          concept,
          set: "train" as const,
          count: 1,
        },
      })));
      const ids = concepts.map(({ model }) => model.id);
      const [fused] = await lab.fuse([{
        concepts: ids,
        how: { type: "weight", lambda: 1 },
        seed: 0,
      }]);
      const { store } = folders;
      return {
        concept: await Deno.readFile(pathOf.concept(store, ids[0])),
        fused: await Deno.readFile(pathOf.fused(store, fused.model.id)),
      };
    },
  );
}

/** What experiments, pretraining and the report on the embedded model need. */
export async function writeLabWorld(at: string): Promise<OptionWorld> {
  await selectBackend("wasm");
  await writeTinyWorld(at);
  await writeTinyWorld(`${at}/other`, 10);
  await writeSketchNetworks(at);
  await writePlans(at);
  // As they start: a step of the autoencoder would take five seconds.
  for (const name of ["clip_a", "vae"] as const) {
    const params = initialise(networkSpec(name), key(30));
    const values = flattenTree(networkLayout(name), params);
    await writeNetwork(`${at}/base/1`, name, values, 1);
    disposeTree(params);
  }
  for (const  of of["", "other/"]) {
    for (const name of ["clip_a", "clip_b"]) {
      await copyFiles(`${at}/${of}clip`, `${at}/${of}model/${name}`);
    }
  }
  return { ...worldAt(at), pretend: pretending(at, await somePretended(at)) };
}

/** Copies the files of a folder. */
async function copyFiles(from: string, to: string): Promise<void> {
  await Deno.mkdir(to, { recursive: true });
  for await (const { name } of Deno.readDir(from)) {
    await Deno.copyFile(`${from}/${name}`, `${to}/${name}`);
  }
}

/** A tokenizer that reads two of its words as each other. */
async function swapped(from: string, to: string): Promise<void> {
  await copyFiles(from, to);
  const path = `${to}/vocab.json`;
  const vocab = JSON.parse(await Deno.readTextFile(path));
  const [a, b] = ["fox</w>", "snow</w>"];
  [vocab[a], vocab[b]] = [vocab[b], vocab[a]];
  await Deno.writeTextFile(path, JSON.stringify(vocab));
}

/** Runs a command that must succeed, silently. */
async function prepared(
  command: Parameters<typeof runCommand>[0],
  ...args: string[]
): Promise<void> {
  const { log, error } = console;
  const said: string[] = [];
  console.log = console.error = (text) => void said.push(String(text));
  try {
    const code = await runCommand(command, args);
    if (code !== 0) throw new Error(said.join("\n"));
  } finally {
    Object.assign(console, { log, error });
  }
}

// deno-lint-ignore no-explicit-any
type Any = any;

/** Makes the world in a folder. */
export async function writeOptionWorld(folder: string): Promise<OptionWorld> {
  await selectBackend("wasm");
  const world = worldAt(folder);
  const { model } = await writeTinyWorld(folder);
  await Deno.mkdir(`${folder}/other`);
  await writeTinyWorld(`${folder}/other`, 10);
  // Weights of another variant in the same folder.
  await Deno.copyFile(
    `${folder}/other/model/unet/diffusion_pytorch_model.safetensors`,
    `${model}/unet/diffusion_pytorch_model.alt.safetensors`,
  );
  await swapped(`${model}/tokenizer`, `${folder}/tokenizer`);
  for (
    const name of [
      ...["pictures", "named", "masks", "class", "clear", "bare", "more"],
      "wide",
      ...["loras", "drawn", "mine", "subjects", "subjects/masks", "sketch"],
      ...["masked", "masked/masks"],
    ]
  ) await Deno.mkdir(`${folder}/${name}`);
  for (let i = 0; i < 2; i++) {
    const bytes = picture(80 + 90 * i), mask = picture(0, true);
    const put = (path: string, data: Uint8Array | string) =>
      typeof data === "string"
        ? Deno.writeTextFile(`${folder}/${path}`, data)
        : Deno.writeFile(`${folder}/${path}`, data);
    await put(`pictures/${i}.png`, bytes);
    await put(`pictures/${i}.txt`, "{}, a fox, on grass, snow, night\n");
    await put(`named/${i}.png`, bytes);
    await put(`named/${i}.txt`, i ? "a fox on grass\n" : "{} in snow\n");
    await put(`bare/${i}.png`, bytes);
    await put(`class/${i}.png`, picture(40 + i));
    await put(`wide/${i}.png`, wide(80 + 90 * i));
    await put(`masks/${i}_mask.png`, mask);
    await put(`clear/${i}.png`, cutOut(150 + 30 * i));
    await put(`more/${i}.png`, cutOut(90 + 70 * i));
    await put(`more/${i}.txt`, "a photo of a {}\n");
    await put(`drawn/00${i}.png`, bytes);
    await put(`mine/${i}.png`, cutOut(60 + i));
    await put(`mine/${i}.txt`, "a <rex1> fox\n");
    await put(`subjects/${i}.png`, pattern(7 + 4 * i));
    await put(`subjects/masks/${i}.png`, mask);
    await put(`masked/${i}.png`, pattern(13 + 4 * i));
    await put(`masked/masks/${i}.png`, mask);
  }
  const left = { top: 0, left: 0, bottom: 1, right: 0.5 };
  const regions = [{ box: left, prompt: "a red fox" }];
  await writeJson(`${folder}/drawn/layout.json`, {
    prompt: "two animals",
    count: 2,
    regions,
  });
  await writeJson(`${folder}/regions.json`, {
    prompt: "animals on grass",
    regions,
  });
  const own = { ...regions[0], prompt: "<rex1> <rex2>", concepts: ["rex"] };
  await writeJson(`${folder}/concepts.json`, {
    prompt: "animals on grass",
    regions: [own, {
      ...own,
      box: { ...left, left: 0.5, right: 1 },
      prompt: "<tom1> <tom2>",
      concepts: ["tom"],
    }],
  });
  await writeJson(`${folder}/sketch.json`, {
    prompt: "a fox",
    regions,
    conditions: [
      { type: "t2i_adapter", network: "sketch", image: { regions: "outline" } },
    ],
  });
  await writeSketchNetworks(folder);
  for (const [of, name] of [["", "model"], ["other/", "other"]] as const) {
    await prepared(
      convertCommand as Any,
      ...[`${folder}/${of}model`, `${folder}/${name}.safetensors`],
      ...["--to", "single-file"],
    );
  }
  // After a step with such rates they change what is drawn.
  for (const [name, word] of [["rex", "fox"], ["tom", "cat"]]) {
    await prepared(
      trainCommand as Any,
      ...["--model", model, "--backend", "wasm", "--images", `${folder}/bare`],
      ...["--name", name, "--class", word, "--steps", "1", "--batch", "1"],
      ...["--lr-embedding", "0.1", "--lr-text", "0.1", "--lr-unet", "0.1"],
      ...["--out", `${folder}/${name}.safetensors`, "--seed", "1"],
    );
  }
  await Deno.copyFile(
    `${folder}/rex.safetensors`,
    `${folder}/loras/fox.safetensors`,
  );
  for (const [name, to] of [["rex", "kohya"]]) {
    await prepared(
      convertCommand as Any,
      ...[`${folder}/${name}.safetensors`, `${folder}/${to}.safetensors`],
      ...["--to", to, "--model", model, "--without-tokens"],
    );
  }
  await prepared(
    sampleCommand as Any,
    ...["--prompt", "a fox at night", "--model", model, "--backend", "wasm"],
    ...["--steps", "1", "--seed", "3", "--out", `${folder}/night`],
  );
  await Deno.rename(`${folder}/night/000.png`, `${folder}/night.png`);
  // A LoRA with every layer, convolutions too.
  await prepared(
    convertCommand as Any,
    ...[`${folder}/other/model`, `${folder}/wide.safetensors`],
    ...["--to", "kohya", "--difference-to", model, "--rank", "2"],
  );
  await writePlans(folder);
  return world;
}
