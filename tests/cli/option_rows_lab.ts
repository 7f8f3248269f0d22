/**
 * Every option of the experiments, pretrain, micro:report and verify, with pairs
 * of runs.
 *
 * @module
 */
import { evaluators } from "../../src/cli/evaluators.ts";
import {
  EXPERIMENT_COMMANDS,
  experimentCommand,
} from "../../src/cli/experiment.ts";
import { frames } from "../../src/cli/frames.ts";
import { microReportCommand } from "../tools/micro_report.ts";
import { pretrainCommand } from "../tools/pretrain/main.ts";
import { workerCommand } from "../../src/cli/worker.ts";
import { cost } from "../../src/experiments/cost.ts";
import { federated } from "../../src/experiments/federated.ts";
import { fig10 } from "../../src/experiments/fig10.ts";
import { fig3 } from "../../src/experiments/fig3.ts";
import { fig4 } from "../../src/experiments/fig4.ts";
import { fig5 } from "../../src/experiments/fig5/run.ts";
import { fig7 } from "../../src/experiments/fig7.ts";
import { mergeLoras } from "../../src/experiments/merge.ts";
import { noiseOffset } from "../../src/experiments/noise_offset.ts";
import { overfit } from "../../src/experiments/overfit.ts";
import { SWEEPS } from "../../src/experiments/sweeps.ts";
import { table1 } from "../../src/experiments/table1.ts";
import { table2 } from "../../src/experiments/table2/run.ts";
import { verifyCommand } from "../verify/main.ts";
import type { Experiment } from "../../src/experiments/experiment.ts";
import type { Args, As, OptionRows, Pair } from "./option_pairs.ts";
import type { OptionWorld } from "./option_world.ts";

/** Fields of reports that differ from run to run. */
const VOLATILE = [
  ...["created", "started", "machine", "seconds", "timings", "workers"],
  ...["fusionSeconds", "timing", "backend", "library"],
];

const CPU: Pair = { add: { "--backend": "cpu" }, shows: "said", real: true };

/** The tiny world in a lab of this thread; experiments share a store. */
function lab({ at, out }: OptionWorld): Args {
  return {
    ...{ "--model": `${at}/model`, "--clip": `${at}/clip` },
    ...{ "--backend": "wasm", "--workers": 0 },
    ...{ "--cache": `${at}/store/lab`, "--out": `${out}/a` },
  };
}

/** As little training and drawing as there can be. */
const LITTLE: Args = { "--train-steps": 1, "--steps": 1, "--rank": 1 };

/** Pairs of the lab's options. */
function labPairs({ at, out }: OptionWorld): Record<string, Pair | Pair[]> {
  return {
    model: { add: { "--model": `${at}/other/model` } },
    clip: { add: { "--clip": `${at}/other/clip` } },
    backend: CPU,
    out: { add: { "--out": `${out}/b` }, real: true },
    // A run needs a server; tests/lab has the queue's own tests.
    queue: [
      {
        both: { "--workers": null, "--cache": null },
        add: { "--queue": "redis://host", "--store": `${at}/store/x` },
        shows: "asked",
      },
      {
        add: { "--queue": "redis://host" },
        says: /--store FOLDER or s3:.* with --queue/,
      },
      {
        add: { "--queue": "redis://host", "--store": "s3://a/b" },
        says: /--workers or --queue, got both/,
      },
    ],
    store: [
      {
        both: {
          "--workers": null,
          "--queue": "redis://host",
          "--store": "s3://a",
        },
        add: { "--store": "s3://b" },
        shows: "asked",
      },
      {
        add: { "--store": "s3://a/b" },
        says: /--queue URL with --store/,
      },
    ],
    patience: [
      {
        both: {
          "--workers": null,
          "--queue": "redis://host",
          "--store": "s3://a",
        },
        add: { "--patience": 5 },
        shows: "asked",
      },
      { add: { "--patience": 5 }, says: /--queue URL with --patience/ },
    ],
  };
}

/** Pairs of the preset's options. */
function settingPairs(): Record<string, Pair> {
  return {
    preset: { add: { "--preset": "official" } },
    rank: { add: { "--rank": 2 } },
    layers: { add: { "--layers": "linear" } },
    trainSteps: { add: { "--train-steps": 2 } },
    steps: { add: { "--steps": 2 } },
    guidance: { add: { "--guidance": 2 } },
  };
}

/** Pairs of the prompts and seeds of an experiment. */
const RUN_PAIRS: Record<"prompts" | "seeds", Pair> = {
  prompts: { add: { "--n": 2 } },
  seeds: { add: { "--seeds": 1 } },
};

/** Options that every experiment has, checked with the ablation. */
const LIKE_ABLATION: Record<string, As> = Object.fromEntries(
  ["cache", "workers", "fresh", "dryRun"].map((field) => [
    field,
    { as: "ablation" },
  ]),
);

/**
 * Options of every experiment: where a lab runs is checked with lambda and the
 * ablation, what it is asked for with each.
 */
function everyPair(world: OptionWorld): Record<string, Pair | As> {
  const { model, clip, ...machine } = labPairs(world);
  return {
    ...Object.fromEntries(
      Object.keys(machine).map((field) => [field, { as: "lambda" }]),
    ),
    ...{ model, clip } as Record<string, Pair>,
    ...settingPairs(),
    ...LIKE_ABLATION,
  };
}

/** What the tables of all experiments share. */
function rowsOf(
  { out, pretend }: OptionWorld,
  experiment: Experiment,
): Pick<
  OptionRows,
  "command" | "out" | "volatile" | "report" | "store" | "pretend"
> {
  return {
    command: experimentCommand(experiment),
    ...{ out, volatile: VOLATILE, report: scores, store: true },
    pretend: pretend?.(experiment),
  };
}

/** The scores of an experiment, without its plan. */
const scores: OptionRows["report"] = (name, json) => {
  if (name === "runs.json") return null;
  const { rows, shares, table, resolution, comparisons, arms, base } = json;
  const { timing } = json;
  return {
    ...{ rows, shares, table, resolution, comparisons, arms, base },
    timed: timing?.length,
  };
};

/** `deno task ablation`. */
export function ablationRows(world: OptionWorld): OptionRows {
  const dry: Args = { "--dry-run": true };
  // Only read: nothing is computed, no worker starts.
  const stored: Args = { "--partial": true };
  const other = (name: string) => `${world.at}/other/${name}`;
  return {
    ...rowsOf(world, table2),
    base: {
      ...lab(world),
      ...LITTLE,
      ...{ "--concepts": "kuro,momo", "--n": 1 },
      ...{ "--method": "lora", "--fusion": "weight" },
    },
    pairs: {
      ...everyPair(world),
      ...RUN_PAIRS,
      quick: [
        { add: { "--quick": true }, shows: "said", real: true },
        { add: { "--quick": true, "--full": true }, says: /got both/ },
      ],
      // The plan is what a dry run prints.
      full: { both: dry, add: { "--full": true }, real: true },
      model: { both: dry, add: { "--model": other("model") }, real: true },
      clip: { both: dry, add: { "--clip": other("clip") }, real: true },
      // Nothing is finished there.
      cache: {
        both: stored,
        add: { "--cache": `${world.out}/cache` },
        says: /at least one finished seed/,
        real: true,
      },
      // Their number changes no result.
      workers: {
        both: stored,
        add: { "--workers": 1 },
        shows: "said",
        real: true,
      },
      concepts: { add: { "--concepts": "kuro,raja" } },
      embeddings: { add: { "--method": "edlora" } },
      fusions: { add: { "--fusion": "gradient" } },
      partial: [
        {
          add: { "--cache": `${world.out}/cache`, "--partial": true },
          says: /at least one finished seed/,
          real: true,
        },
        {
          add: { "--partial": true, "--dry-run": true },
          says: /--partial or --dry-run/,
        },
      ],
      dryRun: { add: dry, real: true },
      fresh: [
        {
          add: { "--fresh": true, "--partial": true },
          says: /--fresh or --partial/,
        },
        { add: { "--fresh": true }, shows: "said", real: true },
      ],
    },
  };
}

/** `deno task experiment domain`. */
export function domainRows(world: OptionWorld): OptionRows {
  return {
    ...rowsOf(world, fig3),
    base: {
      ...lab(world),
      ...LITTLE,
      ...{ "--concepts": "ulla", "--n": 1, "--method": "lora" },
      ...{ "--alphas": "0,1", "--no-fusion": true },
    },
    pairs: {
      ...everyPair(world),
      ...RUN_PAIRS,
      quick: {
        both: { "--n": null, "--concepts": null },
        add: { "--quick": true },
        shows: "asked",
      },
      inDomain: { add: { "--concepts": "finn" } },
      outDomain: { add: { "--out-domain": "kuro" } },
      methods: { add: { "--method": "ed-lora" } },
      alphas: [
        { add: { "--alphas": "0,0.5,1" } },
        {
          both: { "--method": "p+", "--alphas": null, "--no-fusion": null },
          add: { "--alphas": "0,1" },
          says: /lora or ed-lora in --method with --alphas/,
        },
      ],
      lrEmbedding: [
        {
          both: { "--method": "p+", "--alphas": null, "--no-fusion": null },
          add: { "--lr-embedding": 0.1 },
        },
        { add: { "--lr-embedding": 0.1 }, says: /--lr-embedding/ },
      ],
      lrBeside: [
        { add: { "--lr-beside": 0.1 } },
        {
          both: { "--method": "p+", "--alphas": null, "--no-fusion": null },
          add: { "--lr-beside": 0.1 },
          says: /--lr-beside/,
        },
      ],
      noFusion: [
        {
          both: { "--no-fusion": null, "--concepts": "ulla,finn" },
          add: { "--no-fusion": true },
        },
        {
          both: { "--method": "p+", "--alphas": null, "--no-fusion": null },
          add: { "--no-fusion": true },
          says: /lora or ed-lora in --method with --no-fusion/,
        },
      ],
    },
  };
}

/** `deno task experiment overfit`. */
export function overfitRows(world: OptionWorld): OptionRows {
  const { trainSteps: _, ...shared } = everyPair(world);
  return {
    ...rowsOf(world, overfit),
    base: {
      ...lab(world),
      ...LITTLE,
      ...{ "--concepts": "jin", "--method": "lora" },
      ...{ "--layers": "cross-attention-kv", "--pictures": 1 },
    },
    pairs: {
      ...shared,
      clip: { as: "lambda" },
      seeds: RUN_PAIRS.seeds,
      quick: { add: { "--quick": true }, shows: "asked" },
      concepts: { add: { "--concepts": "dash" } },
      embeddings: { add: { "--method": "edlora" } },
      layers: { add: { "--layers": "all" } },
      rates: { add: { "--lr-unet": 0.1 } },
      lengths: { add: { "--train-steps": 2 } },
      pictures: { add: { "--pictures": 2 } },
    },
  };
}

/** `deno task experiment regions`. */
export function regionsRows(world: OptionWorld): OptionRows {
  const plain: Args = { "--arms": "plain.weight" };
  return {
    ...rowsOf(world, fig5),
    base: {
      ...lab(world),
      ...LITTLE,
      ...{ "--concepts": "kuro,momo", "--counts": 2, "--sets": 1 },
      ...{ "--backgrounds": 1, "--pictures": 1, "--column": 32 },
      ...plain,
      "--scales": 1,
    },
    pairs: {
      ...everyPair(world),
      quick: {
        // Without it the experiment is too long for a test.
        both: { "--sets": null, "--pictures": null, "--backgrounds": null },
        add: { "--quick": true },
        shows: "asked",
      },
      concepts: { add: { "--concepts": "kuro,raja" } },
      counts: {
        both: { "--concepts": "kuro,momo,raja" },
        add: { "--counts": "2,3" },
      },
      sets: {
        both: { "--concepts": "kuro,momo,raja" },
        add: { "--sets": 2 },
      },
      backgrounds: { add: { "--backgrounds": 2 } },
      pictures: { add: { "--pictures": 2 } },
      column: { add: { "--column": 48 } },
      arms: { add: { "--arms": "plain.weight,switch" } },
      scales: {
        both: { "--arms": "plain.gradient" },
        add: { "--scales": 1.5 },
      },
      seed: { add: { "--seed": 1 } },
    },
  };
}

/** `deno task experiment lambda`, `ridge`, `count`, `tune`, `rank`. */
export function sweepRows(world: OptionWorld): OptionRows[] {
  const { at } = world;
  const of: Record<string, { base: Args; values?: string }> = {
    lambda: { base: { "--values": 0.5 }, values: "0.7" },
    ridge: { base: { "--values": 0.1 }, values: "1" },
    count: { base: { "--values": 1 }, values: "2" },
    tune: { base: { "--variants": `${at}/variants.json` } },
    rank: { base: { "--values": 1, "--rank": null }, values: "2" },
  };
  return SWEEPS.map((sweep): OptionRows => {
    const { name } = sweep;
    const { base, values } = of[name];
    const { rank, ...every } = everyPair(world);
    const shared = {
      ...every,
      layers: { add: { "--layers": "attention,linear" } },
      // The experiment whose command runs for every place of work.
      ...(name === "lambda" ? labPairs(world) : {}),
      concepts: { add: { "--concepts": "jin,dash" } },
      ...RUN_PAIRS,
      embeddings: { add: { "--method": "edlora" } },
      quick: { add: { "--quick": true as const }, shows: "asked" as const },
    };
    const fuses = name !== "tune";
    const gradient = fuses && name !== "lambda";
    return {
      ...rowsOf(world, sweep),
      base: {
        ...lab(world),
        ...LITTLE,
        ...{ "--concepts": "jin,bobo", "--n": 1, "--method": "lora" },
        ...base,
      },
      pairs: {
        ...shared,
        ...(name === "rank" ? {} : { rank }),
        // A variant with steps of its own has those.
        ...(name === "tune" && {
          trainSteps: {
            both: { "--variants": `${at}/batch.json` },
            add: { "--train-steps": 2 },
          },
        }),
        ...(values === undefined
          ? {}
          : { values: { add: { "--values": values } } }),
        variants: name === "tune"
          ? { add: { "--variants": `${at}/other.json` } }
          : { add: { "--variants": `${at}/variants.json` } },
        ...(fuses && { distractors: { add: { "--distractors": "kuro" } } }),
        ...(gradient && {
          templates: { add: { "--templates": `${at}/templates.json` } },
        }),
      },
    };
  });
}

/** Rows of an experiment that neither draws nor scores pictures. */
function undrawn({ base, pairs, ...rest }: OptionRows): OptionRows {
  const { steps: _, guidance: _g, ...own } = pairs;
  return {
    ...rest,
    base: { ...base, "--steps": null },
    // Every report begins with the evaluator's test.
    pairs: { ...own, clip: { as: "lambda" } },
  };
}

/** Experiments on concepts that are trained once and then fused or compared. */
export function comparisonRows(world: OptionWorld): OptionRows[] {
  const two: Args = { "--concepts": "kuro,momo" };
  const quick: Pair = { add: { "--quick": true }, shows: "asked" };
  const full: Pair = { add: { "--full": true }, shows: "asked" };
  const others: Pair = { add: { "--concepts": "kuro,raja" } };
  const of = (
    experiment: Experiment,
    base: Args,
    pairs: OptionRows["pairs"],
  ): OptionRows => ({
    ...rowsOf(world, experiment),
    base: { ...lab(world), ...LITTLE, ...base },
    pairs: { ...everyPair(world), quick, ...pairs },
  });
  return [
    of(
      mergeLoras,
      { ...two, "--n": 1, "--ways": "average" },
      {
        concepts: others,
        ...RUN_PAIRS,
        ways: { add: { "--ways": "sum" } },
        embedding: { add: { "--embedding": "lora" } },
        rounds: {
          both: { "--ways": "iteris", "--rounds": 1 },
          add: { "--rounds": 2 },
        },
      },
    ),
    of(
      fig7,
      { ...two, "--n": 1 },
      { concepts: others, ...RUN_PAIRS },
    ),
    of(
      fig10,
      { ...two, "--sides": 0.5, "--sizes": 64, "--pictures": 1 },
      {
        concepts: others,
        sides: { add: { "--sides": 0.9 } },
        sizes: { add: { "--sizes": "64,96" } },
        pictures: { add: { "--pictures": 2 } },
      },
    ),
    of(
      table1,
      { ...two, "--n": 1, "--method": "lora" },
      {
        full,
        concepts: others,
        ...RUN_PAIRS,
        methods: { add: { "--method": "p+" } },
      },
    ),
    of(
      noiseOffset,
      {
        ...{ "--concepts": "kuro", "--n": 1, "--seeds": 0 },
        "--offsets": "0,0.1",
      },
      {
        concepts: { add: { "--concepts": "momo" } },
        ...RUN_PAIRS,
        offsets: { add: { "--offsets": "0,0.5" } },
      },
    ),
    of(
      federated,
      { ...two, "--n": 1, "--noise": 0 },
      {
        concepts: others,
        ...RUN_PAIRS,
        noise: { add: { "--noise": "0,10" } },
      },
    ),
    undrawn(of(fig4, { ...two, "--iterations": 1, "--ridges": 1 }, {
      concepts: others,
      iterations: { add: { "--iterations": 2 } },
      ridges: { add: { "--ridges": 0.5 } },
    })),
    {
      // Seconds and bytes are what it is about.
      ...undrawn(of(cost, { ...two, "--counts": 1, "--solvers": "average" }, {
        full: {
          // Given options win over what --full stands for.
          both: { "--concepts": null, "--counts": null, "--solvers": null },
          ...full,
        },
        concepts: { add: { "--concepts": "kuro,raja" } },
        counts: { add: { "--counts": 2 } },
        solvers: { add: { "--solvers": "published" } },
      })),
      volatile: [],
      report: (name, { client, centre }) =>
        name === "runs.json" ? null : { client, centre },
    },
  ];
}

/** `deno task experiment all`: its runs are those of the experiments. */
export function allRows(world: OptionWorld): OptionRows {
  const asked = (add: Args): Pair => ({ add, shows: "asked" });
  const { patience: _, store: _s, queue: _q, ...here } = labPairs(world);
  const likeLambda = Object.keys({ ...here, ...settingPairs() }).map((field) =>
    [field, { as: "lambda" }] as const
  );
  const { cache, workers } = LIKE_ABLATION;
  return {
    command: EXPERIMENT_COMMANDS.find(({ name }) => name === "all")!,
    out: world.out,
    askedOnly: true,
    base: {},
    pairs: {
      ...Object.fromEntries(likeLambda),
      ...{ cache, workers },
      out: asked({ "--out": `${world.out}/b` }),
      quick: asked({ "--quick": true }),
      only: asked({ "--only": "fig4,cost" }),
      queue: asked({ "--queue": "redis://host", "--store": "s3://a" }),
      store: { as: "lambda" },
      patience: { as: "lambda" },
    },
  };
}

/** `deno task experiment evaluators`: a run downloads MobileNetV2. */
export function evaluatorsRows(world: OptionWorld): OptionRows {
  const asked = (name: string, value: string): Pair => ({
    add: { [name]: value },
    shows: "asked",
  });
  return {
    command: evaluators,
    out: world.out,
    askedOnly: true,
    base: {},
    pairs: {
      clips: asked("--clips", `${world.at}/clip`),
      cache: asked("--cache", `${world.at}/store/x`),
      model: asked("--model", `${world.at}/model`),
      clip: asked("--clip", `${world.at}/clip`),
      backend: asked("--backend", "cpu"),
      out: asked("--out", `${world.out}/b`),
    },
  };
}

/** `deno task worker`: a run needs a queue; tests/lab has its tests. */
export function workerRows(world: OptionWorld): OptionRows {
  const asked = (name: string, value: string | number): Pair => ({
    add: { [name]: value },
    shows: "asked",
  });
  return {
    command: workerCommand,
    out: world.out,
    askedOnly: true,
    base: { "--queue": "redis://host", "--store": "s3://bucket" },
    pairs: {
      queue: asked("--queue", "rediss://me:secret@host:7000"),
      store: asked("--store", "s3://bucket/prefix"),
      cache: asked("--cache", `${world.at}/store/x`),
      model: asked("--model", `${world.at}/model`),
      clip: asked("--clip", `${world.at}/clip`),
      sketch: asked("--sketch", `${world.at}/sketch/a`),
      backend: asked("--backend", "cpu"),
      workers: asked("--workers", 7),
      lease: asked("--lease", 7),
      patience: asked("--patience", 7),
      idle: asked("--idle", 7),
    },
  };
}

/** `deno task experiment frames`. */
export function framesRows({ out }: OptionWorld): OptionRows {
  return {
    command: frames,
    out,
    base: { "--out": `${out}/a` },
    pairs: { out: { add: { "--out": `${out}/b` } } },
  };
}

/** `deno task pretrain`. */
export function pretrainRows({ at, out }: OptionWorld): OptionRows {
  const cache = `${at}/store/pretrain`;
  const exported: Args = {
    ...{ "--steps": null, "--export": true, "--cache": cache },
  };
  return {
    command: pretrainCommand,
    out,
    base: {
      ...{ "--only": "clip_a", "--steps": 1, "--batch": 4, "--workers": 0 },
      ...{ "--out": `${out}/a`, "--cache": cache },
    },
    pairs: {
      only: {
        both: { "--base": `${at}/base/1` },
        add: { "--only": "clip_b" },
      },
      steps: { add: { "--steps": 2 } },
      resume: [
        { add: { "--resume": true } },
        {
          add: { "--resume": true, "--from-weights": true },
          says: /--resume or --from-weights/,
        },
      ],
      fromWeights: { add: { "--from-weights": true } },
      workers: { add: { "--workers": 1 } },
      // On the processor a run takes half a minute.
      backend: { add: { "--backend": "cpu" }, shows: "asked" },
      // A checkpoint that cannot be continued lies there.
      cache: {
        both: { "--resume": true, "--cache": `${out}/broken` },
        add: { "--cache": `${out}/other` },
        needs: /broken.clip_a\.safetensors/,
      },
      out: { add: { "--out": `${out}/b` } },
      base: [
        {
          both: { "--only": "clip_b", "--base": `${at}/base/1` },
          add: { "--base": `${at}/base/none` },
          says: /base\/none/,
        },
        { add: { "--base": `${at}/base/1` }, says: /--base changes nothing/ },
      ],
      seed: { add: { "--seed": 77 } },
      quick: { add: { "--quick": true }, says: /--quick changes nothing/ },
      batch: { add: { "--batch": 2 } },
      lr: { add: { "--lr": 0.5 } },
      export: [
        { add: { "--export": true }, says: /--export without --steps/ },
        {
          both: { "--steps": null, "--with-state": true },
          add: { "--export": true },
          needs: /--export with --with-state/,
        },
      ],
      withState: { both: exported, add: { "--with-state": true } },
    },
    before: async () => {
      for (const name of ["a", "broken"]) await Deno.mkdir(`${out}/${name}`);
      await Deno.writeTextFile(`${out}/broken/clip_a.safetensors`, "cut off");
      await Deno.mkdir(`${out}/a/clip_a`);
      for (const name of ["config.json", "model.safetensors"]) {
        const from = `${at}/base/1/clip_a/${name}`;
        const there = await Deno.stat(from).catch(() => undefined);
        if (there) await Deno.copyFile(from, `${out}/a/clip_a/${name}`);
      }
    },
  };
}

/** `deno task micro:report`. */
export function microReportRows({ at, out }: OptionWorld): OptionRows {
  return {
    command: microReportCommand,
    out,
    volatile: VOLATILE,
    base: {
      ...{ "--model": `${at}/model`, "--out": `${out}/a`, "--single": 1 },
      ...{ "--pairs": 1, "--scenes": 64, "--steps": 1 },
      ...{ "--references": 2, "--class-pictures": 1 },
      ...{ "--backend": "wasm", "--workers": 0 },
    },
    pairs: {
      model: { as: "lambda" },
      out: { add: { "--out": `${out}/b` } },
      single: { add: { "--single": 2 } },
      pairs: { add: { "--pairs": 2 } },
      scenes: { add: { "--scenes": 128 } },
      steps: { as: "lambda" },
      guidance: { as: "lambda" },
      naming: { add: { "--naming": true } },
      references: { add: { "--references": 3 } },
      classPictures: { add: { "--class-pictures": 2 } },
      json: { add: { "--json": true } },
      // On the processor a run takes a minute.
      backend: { add: { "--backend": "cpu" }, shows: "asked" },
      workers: { as: "ablation" },
    },
  };
}

/** `deno task verify`. */
export function verifyRows({ out }: OptionWorld): OptionRows {
  const folder = (name: string) =>
    new URL(`../fixtures/variants/${name}`, import.meta.url).pathname;
  return {
    command: verifyCommand,
    out,
    volatile: VOLATILE,
    base: { "": folder("sd2"), "--only": "vae*", "--backend": "wasm" },
    pairs: {
      folder: { add: { "": folder("sd2") + "/../sd2" } },
      only: { add: { "--only": "tokenizer*" } },
      backend: { add: { "--backend": "cpu" } },
      json: [
        { add: { "--json": true } },
        {
          add: { "--json": true, "--verbose": true },
          says: /--verbose, got both/,
        },
      ],
      verbose: { add: { "--verbose": true } },
    },
  };
}
