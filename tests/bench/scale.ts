/**
 * `deno task bench:scale [--runs N] [--out FOLDER] [--json]`: how time and memory
 * grow with concepts that are fused, with regions of a picture, with workers.
 *
 * Each run has a process of its own, as wasm memory never shrinks. Concepts have
 * random weights: what they know changes neither time nor memory.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import {
  type Concept,
  encodePng,
  fold,
  fuse,
  generate,
  initConcept,
  key,
  loadModel,
  type Model,
  regionalSampling,
  type RegionPrompt,
  selectBackend,
  weightFusion,
} from "../../mod.ts";
import { command, runCommand } from "../../src/cli/command.ts";
import {
  flag,
  folder,
  optionTable,
  parsed,
  whole,
} from "../../src/cli/options.ts";
import { cannot } from "../../src/core/errors.ts";
import type { WasmBackend } from "../../src/core/kernels/simd.ts";
import { median } from "../../src/evaluation/statistics.ts";
import { pathOf, writeAtomic } from "../../src/io/files.ts";
import { withLab } from "../../src/lab/lab.ts";
import { renderFigure } from "../../src/report/chart.ts";
import { plot } from "../../src/report/figure.ts";
import { withRandomUp } from "../customize/random_up.ts";
import { peakMemory, runDeno } from "../tools/repository.ts";

const MODEL = pathOf(new URL("../../models/micro", import.meta.url));

/** What is counted: concepts, regions or workers. */
export type Scaled = "concepts" | "regions" | "workers";

/** Sizes of each. */
export const SIZES: Readonly<Record<Scaled, readonly number[]>> = {
  concepts: [2, 5, 10, 20],
  regions: [1, 2, 4, 8],
  workers: [1, 2],
};

/** What one size took. */
export interface ScaleRow {
  /** What is counted. */
  readonly what: Scaled;
  /** How many. */
  readonly n: number;
  /** Time of the work, models loaded and kernels compiled. */
  readonly seconds: number;
  /** Time with regions against a plain picture of the same size. */
  readonly ratio?: number;
  /** Bytes of the wasm backend's memory; of the main thread alone. */
  readonly heap: number;
  /** Most bytes that the process had in the machine's memory. */
  readonly peak: number;
}

/** Milliseconds of the work, and of a plain picture beside one with regions. */
interface Took {
  readonly ms: number;
  readonly plain?: number;
}

/** A rank-4 ED-LoRA, as if trained. */
async function randomConcept(model: Model, i: number): Promise<Concept> {
  const own = fold(key(7), i);
  const fresh = await initConcept(model, {
    ...{ name: `c${i}`, classWord: "animal", key: own },
    lora: { rank: 4, targets: "attention" },
  });
  return { ...fresh, adapter: withRandomUp(fresh.adapter, own, 0.05) };
}

async function fuseMany(n: number): Promise<Took> {
  const model = await loadModel(MODEL);
  const concepts: Concept[] = [];
  for (let i = 0; i < n; i++) concepts.push(await randomConcept(model, i));
  // A small fusion first, so that every kernel is compiled.
  for await (const _ of fuse(model, concepts.slice(0, 1), { steps: 2 }));
  const before = performance.now();
  for await (const _ of fuse(model, concepts));
  return { ms: performance.now() - before };
}

/** Draws a picture with a concept in each of n columns, and a plain one of its size. */
async function drawRegions(n: number): Promise<Took> {
  const base = await loadModel(MODEL);
  const concepts: Concept[] = [];
  for (let i = 0; i < n; i++) concepts.push(await randomConcept(base, i));
  const model = weightFusion(base, concepts);
  const prompts = concepts.map(({ phrase }) => `a ${phrase}`);
  const draw = async (prompt: string, areas: readonly RegionPrompt[]) => {
    const before = performance.now();
    const regional = regionalSampling(model, areas);
    await generate(model, {
      prompts: [prompt],
      ...{ width: 64 * n, height: 64, steps: 20, guidance: 5, key: key(0) },
      unet: (call) => regional.unet(call),
    });
    regional.dispose();
    return performance.now() - before;
  };
  const columns = prompts.map((prompt, i) => ({
    shape: { box: { top: 0, bottom: 1, left: i / n, right: (i + 1) / n } },
    prompt,
  }));
  const plain: number[] = [], regions: number[] = [];
  // In turns: whatever else the machine does slows both. The first compiles.
  for (let turn = 0; turn < 4; turn++) {
    plain.push(await draw(prompts.join(" and "), []));
    regions.push(await draw("animals", columns));
  }
  return { ms: median(regions.slice(1)), plain: median(plain.slice(1)) };
}

async function drawByWorkers(n: number): Promise<Took> {
  const store = await Deno.makeTempDir();
  try {
    return await withLab(
      { model: MODEL, store, backend: "wasm", workers: n },
      async (lab) => {
        const draw = (name: string, count: number) =>
          lab.draw(Array.from({ length: count }, (_, i) => ({
            model: { type: "base" } as const,
            samples: [{ text: "a fox on grass", noise: [i, name] }],
            sampling: {
              sampler: "ddim" as const,
              ...{ steps: 20, guidance: 5, negative: "" },
            },
          })));
        await draw("warm", 4);
        const before = performance.now();
        await draw("timed", 16);
        return { ms: performance.now() - before };
      },
    );
  } finally {
    await Deno.remove(store, { recursive: true });
  }
}

/**
 * Measures one size in this process.
 *
 * @param what What is counted.
 * @param n How many.
 */
export async function measureSize(what: Scaled, n: number): Promise<ScaleRow> {
  await selectBackend("wasm");
  const work = {
    concepts: fuseMany,
    regions: drawRegions,
    workers: drawByWorkers,
  }[what];
  const { ms, plain } = await work(n);
  const { wasm } = tf.backend() as unknown as WasmBackend;
  return {
    what,
    n,
    seconds: ms / 1000,
    ...(plain && { ratio: ms / plain }),
    heap: wasm.asm.memory.buffer.byteLength,
    peak: await peakMemory(),
  };
}

/**
 * Measures all sizes, each run in a process of its own.
 *
 * @param runs Runs of each size; medians count.
 * @param say Called with lines for people.
 */
export async function measureScale(
  runs: number,
  say: (line: string) => void,
): Promise<ScaleRow[]> {
  const rows: ScaleRow[] = [];
  for (const [what, sizes] of Object.entries(SIZES) as [Scaled, number[]][]) {
    for (const n of sizes) {
      const found: ScaleRow[] = [];
      for (let i = 0; i < runs; i++) {
        const ended = await runDeno([
          ...["run", "-q", "-P=develop", "tests/bench/scale.ts"],
          ...["--one", `${what}:${n}`],
        ]);
        if (ended.code !== 0) {
          throw cannot(`measure ${n} ${what}`, "a result", ended.stderr);
        }
        found.push(JSON.parse(ended.stdout));
      }
      const of = (part: "seconds" | "ratio" | "heap" | "peak") =>
        median(found.map((row) => row[part]!));
      const row = {
        ...{ what, n },
        ...{ seconds: of("seconds"), heap: of("heap"), peak: of("peak") },
        ...(found[0].ratio && { ratio: of("ratio") }),
      };
      rows.push(row);
      const [heap, peak] = [row.heap, row.peak].map((bytes) =>
        Math.round(bytes / 1e6)
      );
      say(
        `${n} ${what}: ${row.seconds.toFixed(2)} s, ${
          row.ratio ? `${row.ratio.toFixed(2)} of plain, ` : ""
        }${heap} MB in wasm, ${peak} MB at most`,
      );
    }
  }
  return rows;
}

const TITLES: Readonly<Record<Scaled, string>> = {
  concepts: "Seconds to fuse n concepts by gradient",
  regions: "Seconds to draw a picture with n regions",
  workers: "Seconds to draw 16 pictures with n workers",
};

/** Draws a chart of each work as PNG. */
export async function writeCharts(
  rows: readonly ScaleRow[],
  folder: string,
): Promise<void> {
  for (const what of Object.keys(SIZES) as Scaled[]) {
    const own = rows.filter((row) => row.what === what);
    const figure = plot({
      title: TITLES[what],
      ...{ xTitle: what, yTitle: "seconds", legend: false },
      range: [0, 1.1 * Math.max(...own.map((row) => row.seconds))],
      series: [{
        ...{
          name: "seconds",
          as: what === "workers" ? "bars" : "lines+markers",
          size: 8,
        },
        // Workers come in whole numbers.
        x: own.map(({ n }) => what === "workers" ? String(n) : n),
        y: own.map((row) => row.seconds),
      }],
    });
    await writeAtomic(
      `${folder}/${what}.png`,
      encodePng(await renderFigure(figure)),
    );
  }
}

/** One size, such as `regions:4`. */
const size = parsed("WHAT:N", (what, name, found) => {
  const [, word, n] = /^(\w+):(\d+)$/.exec(found) ?? [];
  const scaled = (Object.keys(SIZES) as Scaled[]).find((one) => one === word);
  if (scaled && Number(n) > 0) return [scaled, Number(n)] as const;
  throw cannot(
    what,
    `${name} ${Object.keys(SIZES).join(", ")} as WHAT:N`,
    found,
  );
});

/** `deno task bench:scale`. */
const scaleBench = command({
  name: "bench:scale",
  what: "measure",
  summary: "say how time and memory grow",
  usage: "deno task bench:scale [options]",
  about: "Fuses 2, 5, 10 and 20 concepts, draws pictures with 1 to 8 regions " +
    "and plain ones of the same size, draws 16 pictures with 1 and 2 workers, " +
    "and says time and memory of each.",
  options: optionTable({
    runs: {
      type: whole({ least: 1 }),
      default: 3,
      help: "runs of each; medians count",
    },
    out: { type: folder, help: "writes a chart of each there" },
    one: { type: size, help: "only this, once, in this process, as JSON" },
    json: { type: flag, help: "prints JSON only" },
  }),
  request: (values) => values,
  async run({ runs, out, one, json }) {
    if (one) return console.log(JSON.stringify(await measureSize(...one)));
    const rows = await measureScale(runs, (line) => console.error(line));
    if (json) console.log(JSON.stringify(rows, null, 2));
    if (out) await writeCharts(rows, pathOf(out));
  },
});

if (import.meta.main) Deno.exit(await runCommand(scaleBench, Deno.args));
