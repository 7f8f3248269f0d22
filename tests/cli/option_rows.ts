/**
 * Every option of train, fuse, sample, evaluate, convert and inspect, with
 * pairs of runs.
 *
 * @module
 */
import { completionsCommand } from "../tools/completions.ts";
import { convertCommand } from "../../src/cli/convert.ts";
import { evaluateCommand } from "../../src/cli/evaluate.ts";
import { fuseCommand } from "../../src/cli/fuse.ts";
import { inspectCommand } from "../../src/cli/inspect.ts";
import { memoryCommand } from "../../src/cli/memory.ts";
import { sampleCommand } from "../../src/cli/sample.ts";
import { trainCommand } from "../../src/cli/train.ts";
import type { Args, OptionRows, Pair } from "./option_pairs.ts";
import type { OptionWorld } from "./option_world.ts";

/** The processor without kernels of its own. */
const CPU: Pair = { add: { "--backend": "cpu" }, shows: "said" };

/** One function starts the backend of every command. */
const LIKE_SAMPLE = { as: "sample" } as const;

/** Pairs of the options about memory, on a machine without a graphics card. */
const MEMORY: Record<string, Pair> = {
  // The same result in less memory: tests/customize/memory_test.ts.
  memory: { add: { "--memory": "low" }, shows: "asked" },
  half: { add: { "--half": true }, says: /--backend webgpu with --half/ },
  card: { add: { "--card": 8 }, says: /--backend webgpu with --card/ },
};

/** Pairs of the options that say which model. */
function modelPairs(at: string): Record<string, Pair | Pair[]> {
  const single: Args = {
    "--model": `${at}/model.safetensors`,
    "--tokenizer": `${at}/model/tokenizer`,
  };
  const folder = "a single file with";
  return {
    model: { add: { "--model": `${at}/other/model` } },
    variant: [
      { add: { "--variant": "alt" } },
      { add: { "--variant": "fp16" }, says: /--variant fp16/ },
      {
        both: single,
        add: { "--variant": "alt" },
        says: /a folder with --variant/,
      },
    ],
    tokenizer: [
      { both: single, add: { "--tokenizer": `${at}/tokenizer` } },
      {
        add: { "--tokenizer": `${at}/tokenizer` },
        says: new RegExp(`${folder} --tokenizer`),
      },
    ],
    prediction: [
      { both: single, add: { "--prediction": "epsilon" } },
      {
        add: { "--prediction": "epsilon" },
        says: new RegExp(`${folder} --prediction`),
      },
    ],
    vae: { add: { "--vae": `${at}/other/model` } },
    unet: { add: { "--unet": `${at}/other.safetensors` } },
    textEncoder: { add: { "--text-encoder": `${at}/other/model` } },
  };
}

const QUEUED: Args = { "--queue": "redis://host", "--store": "s3://a" };

/** A run needs a server: tests/lab/queue_test.ts. */
const QUEUE: Record<string, Pair | Pair[]> = {
  queue: [
    { add: QUEUED, shows: "asked" },
    {
      add: { "--queue": "redis://host" },
      says: /--store FOLDER or s3:.* with --queue/,
    },
    {
      both: { "--memory": "low" },
      add: QUEUED,
      says: /no --memory, --half or --card with --queue/,
    },
  ],
  store: [
    { both: QUEUED, add: { "--store": "s3://b" }, shows: "asked" },
    { add: { "--store": "s3://b" }, says: /--queue URL with --store/ },
  ],
  patience: [
    { both: QUEUED, add: { "--patience": 5 }, shows: "asked" },
    { add: { "--patience": 5 }, says: /--queue URL with --patience/ },
  ],
};

/** `deno task train`. */
export function trainRows({ at, out }: OptionWorld): OptionRows {
  const images: Args = { "--images": `${at}/pictures` };
  const file = `${out}/rex.safetensors`;
  const prior: Args = { "--prior": `${at}/class` };
  const tokensOnly: Args = { "--method": "textual-inversion" };
  const adapter = (name: string, value: string | number | true): Pair => ({
    both: tokensOnly,
    add: { [name]: value },
    says: new RegExp(`a method with an adapter for ${name}`),
  });
  return {
    command: trainCommand,
    out,
    // The options themselves.
    report: (name, json) => name.endsWith(".config.json") ? null : json,
    base: {
      ...images,
      ...{ "--name": "rex", "--class": "fox", "--model": `${at}/model` },
      ...{ "--steps": 1, "--batch": 2, "--backend": "wasm" },
      ...{ "--out": file, "--seed": 3 },
    },
    pairs: {
      ...QUEUE,
      ...MEMORY,
      ...modelPairs(at),
      name: { add: { "--name": "max" } },
      class: { add: { "--class": "cat" } },
      images: { add: { "--images": `${at}/bare` } },
      masks: { add: { "--masks": `${at}/masks` } },
      trigger: [
        {
          both: { "--images": `${at}/named` },
          add: { "--trigger": "fox" },
        },
        { add: { "--trigger": "wolf" }, says: /--trigger changes nothing/ },
      ],
      caption: [
        {
          both: { "--images": `${at}/bare` },
          add: { "--caption": "a {} in snow" },
        },
        {
          add: { "--caption": "a {} in snow" },
          says: /a picture without captions for --caption/,
        },
      ],
      shuffleCaptions: [
        { add: { "--shuffle-captions": true } },
        {
          both: { "--images": `${at}/bare` },
          add: { "--shuffle-captions": true },
          says: /--shuffle-captions changes nothing/,
        },
      ],
      keepTokens: [
        {
          both: { "--shuffle-captions": true },
          add: { "--keep-tokens": 4 },
        },
        {
          add: { "--keep-tokens": 1 },
          says: /--shuffle-captions with --keep-tokens/,
        },
      ],
      captionDropout: { add: { "--caption-dropout": 1 } },
      prior: [
        { add: prior },
        { both: { "--method": "lora" }, add: prior },
        { both: { "--method": "dreambooth" }, add: prior },
        adapter("--prior", `${at}/class`),
      ],
      priorWeight: [
        { both: prior, add: { "--prior-weight": 0.2 } },
        {
          add: { "--prior-weight": 0.2 },
          says: /--prior with --prior-weight/,
        },
      ],
      background: [
        {
          both: { "--images": `${at}/clear` },
          add: { "--background": "black" },
        },
        {
          both: { ...prior, "--prior": `${at}/clear` },
          add: { "--background": "black" },
        },
        { add: { "--background": "black" }, says: /a transparent picture/ },
      ],
      flips: { add: { "--flips": true } },
      buckets: {
        both: { "--images": `${at}/wide` },
        add: { "--buckets": true },
      },
      method: { add: { "--method": "lora" } },
      preset: { add: { "--preset": "official" } },
      steps: { add: { "--steps": 2 } },
      batch: { add: { "--batch": 1 } },
      accumulate: { add: { "--accumulate": 2 } },
      alpha: [
        { both: { "--steps": 2 }, add: { "--alpha": 1 } },
        adapter("--alpha", 1),
      ],
      rslora: [
        { both: { "--steps": 2 }, add: { "--rslora": true } },
        adapter("--rslora", true),
      ],
      dora: [
        { both: { "--steps": 2 }, add: { "--dora": true } },
        adapter("--dora", true),
      ],
      dropout: [
        { both: { "--steps": 2 }, add: { "--dropout": 0.5 } },
        adapter("--dropout", 0.5),
      ],
      targets: [
        { add: { "--targets": "unet-attention" } },
        adapter("--targets", "linear"),
      ],
      scheduler: { both: { "--steps": 2 }, add: { "--scheduler": "constant" } },
      cycles: [
        {
          both: {
            ...{ "--scheduler": "cosine-with-restarts", "--steps": 3 },
            "--cycles": 2,
          },
          add: { "--cycles": 3 },
        },
        {
          add: { "--cycles": 2 },
          says: /--scheduler cosine-with-restarts and/,
        },
      ],
      warmup: { add: { "--warmup": 1 } },
      weightDecay: { add: { "--weight-decay": 1 } },
      maxGradNorm: { add: { "--max-grad-norm": 1e-9 } },
      noiseOffset: { add: { "--noise-offset": 0.5 } },
      snrGamma: { add: { "--snr-gamma": 0.1 } },
      log: { add: { "--log": `${out}/rex.csv` } },
      validationPrompt: [
        { add: { "--validation-prompt": "a {}" } },
        {
          both: { "--validation-prompt": "a {}" },
          add: { "--validation-prompt": "a {} in snow" },
        },
      ],
      validationEvery: [
        {
          both: { "--validation-prompt": "a {}", "--steps": 2 },
          add: { "--validation-every": 2 },
        },
        {
          add: { "--validation-every": 2 },
          says: /--validation-prompt with --validation-every/,
        },
      ],
      rank: [{ add: { "--rank": 2 } }, adapter("--rank", 2)],
      lrEmbedding: { add: { "--lr-embedding": 0.1 } },
      lrText: [{ add: { "--lr-text": 0.1 } }, adapter("--lr-text", 1)],
      lrUnet: [{ add: { "--lr-unet": 0.1 } }, adapter("--lr-unet", 1)],
      seed: { add: { "--seed": 5 } },
      size: { add: { "--size": 32 } },
      out: { add: { "--out": `${out}/max.safetensors` } },
      dtype: { add: { "--dtype": "F16" } },
      config: [
        { add: { "--config": `${at}/train.json` } },
        { add: { "--config": `${at}/other.json` }, says: /got short/ },
      ],
      // A state that cannot be continued lies there.
      fresh: {
        both: { "--out": `${out}/stopped.safetensors` },
        add: { "--fresh": true },
        needs: /stopped\.state\.safetensors/,
      },
      backend: LIKE_SAMPLE,
    },
    before: () =>
      Deno.writeTextFile(`${out}/stopped.state.safetensors`, "cut off"),
  };
}

/** `deno task fuse`. */
export function fuseRows({ at, out }: OptionWorld): OptionRows {
  const concepts = [`${at}/rex.safetensors`, `${at}/tom.safetensors`];
  const weight: Args = {
    ...{ "--method": "weight", "--steps": null, "--pictures": null },
  };
  const gradientOnly = (name: string, value: string | number | true): Pair => ({
    both: weight,
    add: { [name]: value },
    says: new RegExp(`--method gradient with .*${name}`),
  });
  const { tokenizer, prediction, ...models } = modelPairs(at);
  const kohya = `${at}/kohya.safetensors`;
  const fields = (path: string, one: string, other: string): Pair => ({
    both: { "--concept": `${path},${one}` },
    add: { "--concept": `${path},${other}` },
  });
  return {
    command: fuseCommand,
    out,
    base: {
      ...{ "--concept": concepts, "--model": `${at}/model` },
      ...{ "--steps": 1, "--pictures": 1, "--out": `${out}/fused` },
      "--backend": "wasm",
    },
    pairs: {
      ...MEMORY,
      ...models,
      tokenizer,
      prediction,
      concept: [
        { add: { "--concept": concepts.slice(0, 1) } },
        {
          both: { "--concept": concepts.map((path) => `${path},alpha=1`) },
          add: { "--concept": concepts.map((path) => `${path},alpha=0.5`) },
        },
        {
          both: { "--concept": kohya },
          add: { "--concept": `${kohya},trigger=fox` },
          needs: /trigger words or a class word/,
        },
        fields(kohya, "trigger=red fox", "trigger=cat"),
        fields(kohya, "class=red fox", "class=cat"),
        fields(concepts[0], "name=a", "name=b"),
        {
          both: { "--concept": concepts[0] },
          add: { "--concept": `${concepts[0]},class=cat` },
          says:
            /rex\.safetensors: class= changes nothing, "<rex1> <rex2>" calls/,
        },
      ],
      method: {
        both: { "--steps": null, "--pictures": null },
        add: { "--method": "weight" },
      },
      lambda: [
        { both: weight, add: { "--lambda": 0.3 } },
        {
          add: { "--lambda": 0.3 },
          says: /--lambda changes only the comparison/,
        },
      ],
      solver: [
        { add: { "--solver": "lbfgs" } },
        gradientOnly("--solver", "lbfgs"),
      ],
      ridge: [
        { add: { "--ridge": 0.5 } },
        {
          both: { "--solver": "lbfgs" },
          add: { "--ridge": 0.5 },
          says: /--solver closed with --ridge/,
        },
        gradientOnly("--ridge", 0.5),
      ],
      layers: [
        {
          both: { "--concept": `${at}/wide.safetensors,trigger=fox` },
          add: { "--layers": "all" },
        },
        {
          add: { "--layers": "all" },
          says: /--layers all changes nothing/,
        },
        gradientOnly("--layers", "all"),
      ],
      positions: [
        { add: { "--positions": "full" } },
        gradientOnly("--positions", "full"),
      ],
      template: [
        { add: { "--template": "{} in snow" } },
        gradientOnly("--template", "{} in snow"),
      ],
      steps: [
        { add: { "--steps": 2 } },
        {
          both: weight,
          add: { "--steps": 2 },
          says: /--method gradient with --steps/,
        },
      ],
      pictures: [
        { add: { "--pictures": 2 } },
        {
          both: weight,
          add: { "--pictures": 2 },
          says: /--method gradient with --pictures/,
        },
      ],
      seed: [{ add: { "--seed": 1 } }, gradientOnly("--seed", 1)],
      out: { add: { "--out": `${out}/elsewhere` } },
      singleFile: { add: { "--single-file": `${out}/one.safetensors` } },
      dtype: { add: { "--dtype": "F16" } },
      backend: LIKE_SAMPLE,
    },
  };
}

/** `deno task sample`. */
export function sampleRows({ at, out }: OptionWorld): OptionRows {
  const rex = `${at}/rex.safetensors`, tom = `${at}/tom.safetensors`;
  const both = { "--concept": [rex, tom] };
  const said = { "--prompt": "<rex1> <rex2>, (fox:1.5) on grass" };
  const init: Args = { "--init": `${at}/pictures/0.png` };
  return {
    command: sampleCommand,
    out,
    base: {
      ...{ "--prompt": "a (fox:1.5) on grass", "--model": `${at}/model` },
      ...{ "--steps": 2, "--backend": "wasm", "--out": `${out}/a` },
    },
    pairs: {
      // The same pictures: draw_test.ts.
      workers: { add: { "--workers": 1 }, shows: "asked" },
      ...MEMORY,
      ...modelPairs(at),
      prompt: { add: { "--prompt": "a (fox:1.5) in snow" } },
      layout: { add: { "--layout": `${at}/regions.json` } },
      from: [
        { add: { "--from": `${at}/night.png`, "--prompt": null } },
        {
          add: { "--from": `${at}/drawn/000.png`, "--prompt": null },
          says: /a PNG that sample has drawn, got no settings in it/,
        },
        {
          both: { "--layout": `${at}/regions.json` },
          add: { "--from": `${at}/night.png` },
          says: /--layout or --from, got both/,
        },
      ],
      schema: { add: { "--schema": true } },
      concept: [
        {
          both: said,
          add: { "--concept": rex },
          needs: /unknown concept <rex1>/,
        },
        {
          both: { ...said, "--concept": `${rex},alpha=1` },
          add: { "--concept": `${rex},alpha=0.5` },
        },
        // Learned tokens that no prompt calls are named.
        { add: { "--concept": rex }, says: /no prompt calls rex/ },
        {
          both: {
            ...{ "--layout": `${at}/concepts.json`, "--prompt": null },
            "--concept": [`${rex},name=fox`, tom],
          },
          add: { "--concept": [`${rex},name=rex`, tom] },
          needs: /regions\.0\.concepts: expected fox, tom, got rex/,
        },
        ...["trigger", "class"].map((field) => ({
          both: { ...said, "--concept": rex },
          add: { "--concept": `${rex},${field}=cat` },
          says: new RegExp(`rex\\.safetensors: ${field}= changes nothing`),
        })),
      ],
      adapters: [
        { both, add: { "--adapters": "switch" } },
        { both, add: { "--adapters": "composite" } },
        { add: { "--adapters": "switch" }, says: /--concept with --adapters/ },
        {
          both: {
            ...both,
            "--layout": `${at}/concepts.json`,
            "--prompt": null,
          },
          add: { "--adapters": "sum" },
          says: /regions without "concepts"/,
        },
      ],
      loraFolder: [
        {
          both: { "--prompt": "a fox <lora:fox:0.8>" },
          add: { "--lora-folder": `${at}/loras` },
          needs: /--concept FILE or --lora-folder FOLDER/,
        },
        {
          add: { "--lora-folder": `${at}/loras` },
          says: /a prompt with <lora:NAME:X> for --lora-folder/,
        },
      ],
      network: [
        {
          both: {
            "--layout": `${at}/sketch.json`,
            "--network": `sketch=${at}/sketch/a`,
          },
          add: { "--network": `sketch=${at}/sketch/b` },
        },
        {
          add: { "--network": `sketch=${at}/sketch/a` },
          says: /names that conditions of the layout have/,
        },
      ],
      negative: { add: { "--negative": "snow" } },
      seed: [
        { add: { "--seed": 1 } },
        { add: { "--seed": "0,1" } },
        { add: { "--seed": "1,1" }, says: /different values for --seed/ },
        { add: { "--seed": "1,x" }, says: /--seed a whole number/ },
      ],
      count: { add: { "--count": 2 } },
      init: [
        { add: init },
        {
          both: { ...init, "--layout": `${at}/regions.json` },
          add: { "--init": `${at}/pictures/1.png` },
        },
      ],
      mask: [
        { both: init, add: { "--mask": `${at}/masks/0_mask.png` } },
        {
          add: { "--mask": `${at}/masks/0_mask.png` },
          says: /mask: needs init/,
        },
      ],
      strength: [
        { both: init, add: { "--strength": 1 } },
        { both: init, add: { "--strength": 0 }, says: /--strength a number/ },
        { both: init, add: { "--strength": 0.1 }, says: /at least 0.5/ },
        { add: { "--strength": 0.5 }, says: /strength: needs init/ },
      ],
      steps: { add: { "--steps": 3 } },
      guidance: { add: { "--guidance": 2 } },
      clipSkip: { add: { "--clip-skip": 2 } },
      syntax: { add: { "--syntax": "plain" } },
      sampler: { add: { "--sampler": "euler" } },
      size: { add: { "--size": "32x64" } },
      grid: { add: { "--grid": true } },
      // The same pictures, in other portions.
      batch: {
        both: { "--count": 4 },
        add: { "--batch": 1 },
        shows: "said",
      },
      out: { add: { "--out": `${out}/b` } },
      backend: CPU,
    },
  };
}

/** `deno task evaluate`, its three uses. */
export function evaluateRows({ at, out }: OptionWorld): OptionRows {
  const clear: Args = {
    "--images": `${at}/mine`,
    ...{ "--say": "<rex1>=red", "--references": `${at}/class` },
  };
  const heldout: Args = {
    ...{ "--images": null, "--clip": null, "--no-prefix": null },
    ...{ "--heldout": `${at}/more`, "--concept": `${at}/rex.safetensors` },
    ...{ "--model": `${at}/model` },
  };
  const evaluator: Args = {
    ...{ "--images": null, "--no-prefix": null, "--test-evaluator": true },
    "--references": `${at}/subjects`,
    "--class-pictures": `${at}/class`,
  };
  const pictures = (name: string, value: string | true): Pair => ({
    add: { [name]: value },
    says: new RegExp(`with ${name}, got --images`),
  });
  const rex = `${at}/rex.safetensors`;
  const fields = (concept: string, both: Args = {}, says?: RegExp): Pair => ({
    both: { ...heldout, ...both },
    add: { "--concept": concept },
    says,
  });
  const { model, variant, tokenizer, prediction, vae, unet, textEncoder } =
    modelPairs(at);
  const held = (pairs: Pair | Pair[], refused: Pair): Pair[] => [
    ...(Array.isArray(pairs) ? pairs : [pairs]).map((pair) => ({
      ...pair,
      both: { ...heldout, ...pair.both },
    })),
    refused,
  ];
  return {
    command: evaluateCommand,
    out,
    base: {
      ...{ "--images": `${at}/drawn`, "--clip": `${at}/clip` },
      ...{ "--no-prefix": true, "--backend": "wasm" },
    },
    pairs: {
      images: { add: { "--images": `${at}/bare`, "--prompt": "a fox" } },
      prompt: [
        {
          both: { "--images": `${at}/bare` },
          add: { "--prompt": "a fox" },
          needs: /--prompt/,
        },
        {
          add: { "--prompt": "a fox" },
          says: /a picture without a prompt of its own for --prompt/,
        },
      ],
      references: [
        { add: { "--references": `${at}/class` } },
        { both: evaluator, add: { "--references": `${at}/masked` } },
      ],
      say: [
        { add: { "--say": "animals=foxes" } },
        {
          add: { "--say": "<tom1>=cat" },
          says: /--say changes nothing: no prompt has "<tom1>"/,
        },
      ],
      prefix: {
        both: { "--no-prefix": null },
        add: { "--prefix": "a drawing of " },
      },
      noPrefix: { both: { "--no-prefix": null }, add: { "--no-prefix": true } },
      regions: [
        { add: { "--regions": true } },
        {
          both: { "--images": `${at}/bare`, "--prompt": "a fox" },
          add: { "--regions": true },
          says: /a layout.json with regions/,
        },
      ],
      background: [
        { both: clear, add: { "--background": "black" } },
        { add: { "--background": "black" }, says: /a transparent picture/ },
        { both: heldout, add: { "--background": "black" } },
        {
          both: { ...heldout, "--heldout": `${at}/pictures` },
          add: { "--background": "black" },
          says: /a transparent picture/,
        },
        { both: evaluator, add: { "--background": "black" } },
      ],
      heldout: { both: heldout, add: { "--heldout": `${at}/pictures` } },
      masks: [
        { both: heldout, add: { "--masks": `${at}/masks` } },
        pictures("--masks", `${at}/masks`),
      ],
      concept: [
        { both: heldout, add: { "--concept": `${at}/tom.safetensors` } },
        pictures("--concept", rex),
        fields(`${rex},alpha=0.5`),
        fields(`${rex},class=cat`),
        fields(`${rex},trigger=<rex1>`),
        fields(`${rex},name=max`, {}, /name= changes nothing/),
        fields(
          `${rex},class=cat`,
          { "--class": "fox" },
          /class= changes nothing/,
        ),
        fields(
          `${rex},trigger=<rex1>`,
          { "--phrase": "a red fox" },
          /trigger= changes nothing/,
        ),
      ],
      model: held(model, pictures("--model", `${at}/model`)),
      variant: held(variant, pictures("--variant", "alt")),
      tokenizer: held(tokenizer, pictures("--tokenizer", `${at}/tokenizer`)),
      prediction: held(prediction, pictures("--prediction", "epsilon")),
      vae: held(vae, pictures("--vae", `${at}/other/model`)),
      unet: held(unet, pictures("--unet", `${at}/other/model`)),
      textEncoder: held(
        textEncoder,
        pictures("--text-encoder", `${at}/other/model`),
      ),
      fused: [
        {
          both: heldout,
          add: { "--fused": `${at}/other/model`, "--phrase": "a fox" },
        },
        pictures("--fused", `${at}/model`),
      ],
      phrase: [
        { both: heldout, add: { "--phrase": "a red fox" } },
        pictures("--phrase", "a fox"),
      ],
      class: [
        { both: heldout, add: { "--class": "cat" } },
        pictures("--class", "cat"),
      ],
      seed: [
        { both: heldout, add: { "--seed": 4 } },
        { both: evaluator, add: { "--seed": 4 } },
        pictures("--seed", "4"),
      ],
      testEvaluator: {
        both: { ...evaluator, "--test-evaluator": null },
        add: { "--test-evaluator": true },
        needs: /one of --images, --heldout and --test-evaluator/,
      },
      classPictures: [
        { both: evaluator, add: { "--class-pictures": `${at}/bare` } },
        {
          both: { ...evaluator, "--class-pictures": null },
          add: { "--class-pictures": `${at}/class` },
          needs: /look-alikes and pictures of the class word/,
        },
        pictures("--class-pictures", `${at}/class`),
      ],
      // The network itself is of npm: 25 MB that tests do not download.
      mobileNet: pictures("--mobile-net", true),
      clip: { add: { "--clip": `${at}/other/clip` } },
      out: { add: { "--out": `${out}/scores.json` } },
      json: { add: { "--json": true } },
      backend: LIKE_SAMPLE,
    },
  };
}

/** `deno task convert`. */
export function convertRows({ at, out }: OptionWorld): OptionRows {
  const file = `${out}/a.safetensors`;
  const lora: Args = {
    "": [`${at}/rex.safetensors`, file],
    ...{ "--to": "kohya", "--without-tokens": true, "--model": `${at}/model` },
  };
  const model: Args = {
    "": [`${at}/model`, file],
    ...{ "--to": "single-file", "--without-tokens": null, "--model": null },
  };
  const toFolder: Args = {
    ...model,
    ...{ "": [`${at}/model.safetensors`, `${out}/b`], "--to": "folder" },
    "--tokenizer": `${at}/model/tokenizer`,
  };
  const difference: Args = {
    ...model,
    ...{ "--to": "kohya", "--difference-to": `${at}/other/model` },
  };
  const ofModel = (name: string, value: string): Pair => ({
    add: { [name]: value },
    says: new RegExp(`a model with .*${name}`),
  });
  return {
    command: convertCommand,
    out,
    base: lora,
    pairs: {
      from: { add: { "": [`${at}/tom.safetensors`, file] } },
      out: { add: { "": [`${at}/rex.safetensors`, `${out}/c.safetensors`] } },
      to: { add: { "--to": "peft" } },
      base: [
        {
          // It fits nothing but the tiny model.
          both: { "--model": null },
          add: { "--model": `${at}/model` },
          needs: /--model says another/,
        },
        {
          both: model,
          add: { "--model": "sd15" },
          says: /a LoRA with --model/,
        },
      ],
      dtype: [
        { add: { "--dtype": "BF16" } },
        { both: model, add: { "--dtype": "F16" } },
      ],
      withoutTokens: [
        {
          both: { "--to": "official", "--without-tokens": null },
          add: { "--without-tokens": true },
        },
        {
          both: model,
          add: { "--without-tokens": true },
          says: /--without-tokens changes nothing/,
        },
        {
          both: {
            "": [`${at}/kohya.safetensors`, file],
            "--without-tokens": null,
          },
          add: { "--without-tokens": true },
          says: /--without-tokens changes nothing/,
        },
      ],
      tokens: [
        {
          both: { "--without-tokens": null },
          add: { "--tokens": `${out}/tokens.safetensors` },
          needs: /one vector per token/,
        },
        {
          add: { "--tokens": `${out}/tokens.safetensors` },
          says: /--tokens or --without-tokens, got both/,
        },
        {
          both: {
            "": [`${at}/kohya.safetensors`, file],
            "--without-tokens": null,
          },
          add: { "--tokens": `${out}/tokens.safetensors` },
          says: /learned tokens in/,
        },
        {
          both: model,
          add: { "--tokens": `${out}/tokens.safetensors` },
          says: /a LoRA with --tokens/,
        },
      ],
      differenceTo: [
        {
          both: { ...model, "--to": "kohya" },
          add: { "--difference-to": `${at}/other/model` },
          needs: /--difference-to/,
        },
        ofModel("--difference-to", `${at}/other/model`),
      ],
      rank: [
        { both: difference, add: { "--rank": 2 } },
        { add: { "--rank": 2 }, says: /--rank with --difference-to/ },
      ],
      variant: [
        { both: model, add: { "--variant": "alt" } },
        ofModel("--variant", "alt"),
      ],
      tokenizer: [
        { both: toFolder, add: { "--tokenizer": `${at}/tokenizer` } },
        {
          both: model,
          add: { "--tokenizer": `${at}/tokenizer` },
          says: /--tokenizer/,
        },
        {
          both: { ...model, "": [`${at}/model.safetensors`, file] },
          add: { "--tokenizer": `${at}/tokenizer` },
          says: /--tokenizer/,
        },
        ofModel("--tokenizer", `${at}/tokenizer`),
      ],
      prediction: [
        { both: toFolder, add: { "--prediction": "epsilon" } },
        {
          both: model,
          add: { "--prediction": "epsilon" },
          says: /a single file with --prediction/,
        },
        ofModel("--prediction", "epsilon"),
      ],
      vae: [
        { both: model, add: { "--vae": `${at}/other/model` } },
        {
          both: difference,
          add: { "--vae": `${at}/other/model` },
          says: /--vae/,
        },
        ofModel("--vae", `${at}/other/model`),
      ],
      unet: [
        { both: model, add: { "--unet": `${at}/other/model` } },
        ofModel("--unet", `${at}/other/model`),
      ],
      textEncoder: [
        { both: model, add: { "--text-encoder": `${at}/other/model` } },
        ofModel("--text-encoder", `${at}/other/model`),
      ],
    },
  };
}

/** `deno task inspect`. */
export function inspectRows({ at, out }: OptionWorld): OptionRows {
  return {
    command: inspectCommand,
    out,
    base: { "": `${at}/kohya.safetensors` },
    pairs: {
      path: { add: { "": `${at}/tom.safetensors` } },
      model: [
        { add: { "--model": `${at}/model` } },
        {
          both: { "": `${at}/model` },
          add: { "--model": `${at}/model` },
          says: /--model/,
        },
        {
          both: { "": `${at}/model.safetensors` },
          add: { "--model": `${at}/model` },
          says: /--model/,
        },
      ],
      keys: [
        { add: { "--keys": true } },
        { both: { "": `${at}/model` }, add: { "--keys": true } },
      ],
      words: [
        { both: { "": `${at}/model` }, add: { "--words": true } },
        { add: { "--words": true }, says: /a model folder with --words/ },
      ],
      json: { add: { "--json": true } },
    },
  };
}

/** `deno task memory`. */
export function memoryRows({ at, out }: OptionWorld): OptionRows {
  const train: Args = { "--sample": null, "--train": "ed-lora" };
  return {
    command: memoryCommand,
    out,
    base: { "--model": `${at}/model`, "--sample": true, "--json": true },
    pairs: {
      model: { add: { "--model": "sd15" } },
      train: {
        both: { "--sample": null, "--fuse": 2 },
        add: { ...train, "--fuse": null },
      },
      sample: {
        both: { ...train },
        add: { "--train": null, "--sample": true },
      },
      fuse: { add: { "--sample": null, "--fuse": 2 } },
      table: { add: { "--sample": null, "--table": true } },
      batch: { add: { "--batch": 3 } },
      size: { add: { "--size": "128" } },
      rank: { both: train, add: { "--rank": 8 } },
      memory: { add: { "--memory": "low" } },
      half: [
        { add: { "--half": true } },
        {
          both: { "--sample": null, "--table": true },
          add: { "--half": true },
          says: /a single count with --half/,
        },
      ],
      card: [
        { both: { ...train, "--size": "384" }, add: { "--card": 0.1 } },
        {
          both: { "--sample": null, "--table": true },
          add: { "--card": 4 },
          says: /a single count with --card/,
        },
      ],
      backend: { add: { "--backend": "wasm" } },
      binding: { both: { "--size": "512" }, add: { "--binding": 1 } },
      json: { both: { "--json": null }, add: { "--json": true } },
    },
  };
}

/** `deno task completions`. */
export function completionsRows({ out }: OptionWorld): OptionRows {
  return {
    command: completionsCommand,
    out,
    base: { "": "bash" },
    pairs: { shell: { add: { "": "fish" } } },
  };
}
