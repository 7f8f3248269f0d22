/**
 * `deno task bench:peer [--runs N] [--backend webgpu] [--json]`: the same works here
 * and in PyTorch, on the weights of the embedded model.
 *
 * First both results are compared: a difference ends the comparison. Then runs
 * alternate; medians count. PyTorch runs on one thread and on as many as there
 * are processors, its better median counts. Works here run in one process on as
 * many threads as there are processors. Without Debian's `python3-torch` nothing is compared,
 * and that is said. A machine that does other work beside it makes all numbers
 * larger, and those of many threads most.
 *
 * On webgpu PyTorch computes on the same card if it can, steps are done at several
 * batches, and where there is no PyTorch times here are printed alone.
 *
 * @module
 */
import * as tf from "@tensorflow/tfjs";
import { command, runCommand } from "../../src/cli/command.ts";
import { flag, oneOf, optionTable, whole } from "../../src/cli/options.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { cannot } from "../../src/core/errors.ts";
import { fold, key, normal } from "../../src/core/random.ts";
import { leaves, updateAt, valueAndGrads } from "../../src/core/tree.ts";
import {
  attachConcept,
  type Concept,
  conceptTensors,
  initConcept,
  releaseTokens,
} from "../../src/customize/concept.ts";
import { withTensors } from "../../src/customize/lora.ts";
import type { TrainBatch } from "../../src/customize/train.ts";
import {
  addNoise,
  parseSchedulerConfig,
  type Schedule,
  schedule,
  trainingTarget,
} from "../../src/diffusion/schedule.ts";
import { pipeline } from "../../src/diffusion/pipeline.ts";
import { plan } from "../../src/diffusion/samplers/plan.ts";
import { median } from "../../src/evaluation/statistics.ts";
import { denseDelta, fuseLayer } from "../../src/fusion/layer.ts";
import { GramAccumulator } from "../../src/fusion/statistics.ts";
import { pathOf, writeJson } from "../../src/io/files.ts";
import { type RawTensor, writeSafetensors } from "../../src/io/safetensors.ts";
import { toRaw } from "../models/raw.ts";
import { crossAttentionSites } from "../../src/models/config.ts";
import {
  bindPrompt,
  loadModel,
  type Model,
  promptStates,
} from "../../src/models/model.ts";
import { type UNet, unet, unetSpec } from "../../src/models/unet.ts";
import { matrix } from "../../src/optim/least_squares.ts";
import { conceptGradients } from "../customize/gradients.ts";

/** One line of the comparison. */
export interface PeerRow {
  /** What is done. */
  readonly work: string;
  /** Median here, milliseconds. */
  readonly ours_ms: number;
  /** Median there on the better number of threads, milliseconds. */
  readonly torch_ms?: number;
  /** `ours_ms / torch_ms`. */
  readonly ratio?: number;
}

/** Sizes of steps: those of the weights of one concept, and of the whole UNet. */
interface Batches {
  readonly concept: readonly number[];
  readonly full: readonly number[];
}

/** The first of each is compared, too. */
const BATCHES: Record<"wasm" | "webgpu", Batches> = {
  wasm: { concept: [4], full: [32] },
  webgpu: { concept: [4, 16, 64], full: [32, 128, 512] },
};

interface Work {
  readonly name: string;
  run(): Promise<void>;
}

/** How far results may differ: relative to the largest number. */
const TOLERANCE = 2e-4;

const [CONCEPTS, RANK, RIDGE] = [3, 4, 1e-5];
const [PICTURES, STEPS, GUIDANCE] = [8, 20, 5];
/** Closed forms: width, rows of a concept's step, steps. */
const FORMS = [
  { name: "closed form 320", width: 320, rows: 4096, steps: 20 },
  { name: "closed form 1280", width: 1280, rows: 1280, steps: 1 },
] as const;

const LOSS = {
  masked: false,
  weighting: { type: "none" },
  attention: { weight: 0, fullIdentity: false },
  priorWeight: 1,
} as const;

/** Collects what PyTorch gets. */
class Tensors {
  readonly list: [string, RawTensor][] = [];

  async add(name: string, x: tf.Tensor): Promise<void> {
    this.raw(name, "F32", x.shape, (await x.data<"float32">()).slice());
  }

  raw(
    name: string,
    dtype: "F32" | "F64" | "I32",
    shape: readonly number[],
    values: Float32Array | Float64Array | Int32Array,
  ): void {
    const data = new Uint8Array(
      values.buffer as ArrayBuffer,
      values.byteOffset,
      values.byteLength,
    );
    this.list.push([name, { dtype, shape: [...shape], data }]);
  }
}

function random<T extends tf.Tensor>(shape: number[], name: string): T {
  const size = shape.reduce((a, b) => a * b);
  return tf.tensor(normal(fold(key(11), name), size), shape) as T;
}

/** All works, once done; what they give goes to the tensors. */
async function prepare(
  folder: string,
  out: Tensors,
  batches: Batches,
): Promise<{ works: Work[]; peer: Record<string, unknown> }> {
  const model = await loadModel(folder);
  const { params, config } = model.unet;
  const s = schedule(parseSchedulerConfig(model.scheduler));
  const side = config.sample_size as number;
  const channels = config.in_channels;
  const works: Work[] = [];

  const sample = random<tf.Tensor4D>([32, side, side, channels], "sample");
  const target = random<tf.Tensor4D>([32, side, side, channels], "target");
  const timesteps = Array.from({ length: 32 }, (_, i) => 31 * i + 3);
  const prompts = Array.from({ length: 32 }, (_, i) => `photo ${i} of a fox`);
  const states = tf.tidy(() => promptStates(model, prompts)) as tf.Tensor3D;
  await out.add("sample", sample);
  await out.add("target", target);
  await out.add("states", states);
  out.raw("timesteps", "I32", [32], Int32Array.from(timesteps));
  const forward = (batch: number) =>
    tf.tidy(() =>
      unet(
        params,
        config,
        tf.slice(sample, 0, batch) as tf.Tensor4D,
        timesteps.slice(0, batch),
        tf.slice(states, 0, batch) as tf.Tensor3D,
      )
    );
  for (const batch of [1, 8, 32]) {
    works.push({
      name: `UNet forward, batch ${batch}`,
      async run() {
        const y = forward(batch);
        await y.data();
        y.dispose();
      },
    });
  }
  const all = forward(32);
  await out.add("expect.forward", all);
  all.dispose();

  await drawing(model, s, out, works);

  const [few] = batches.concept;
  const batch: TrainBatch = {
    latents: random([few, side, side, channels], "latents"),
    noise: random([few, side, side, channels], "noise"),
    timesteps: [20, 300, 610, 950],
    prompts: [],
  };
  const noisy = addNoise(s, batch.latents, batch.noise, batch.timesteps);
  const wanted = trainingTarget(s, batch.latents, batch.noise, batch.timesteps);
  await out.add("step.noisy", noisy);
  await out.add("step.target", wanted);
  out.raw("step.timesteps", "I32", [4], Int32Array.from(batch.timesteps));
  for (const kind of ["lora", "edlora"] as const) {
    const step = `${kind === "lora" ? "LoRA" : "ED-LoRA"} step, batch`;
    const name = `${step} ${few}`;
    const fresh = await initConcept(model, {
      name: "peer",
      classWord: "fox",
      key: key(5),
      severalTokens: "mean",
      layerwise: kind === "edlora",
      lora: { rank: RANK },
    });
    // `up` starts as zero, which would make every gradient of `down` zero.
    const moved = new Map(
      [...conceptTensors(fresh)].filter(([path]) => path.endsWith(".up"))
        .map(([path, x]) => [
          path,
          tf.tidy(() => random(x.shape, path).mul(0.05)),
        ]),
    );
    const concept: Concept = {
      ...fresh,
      adapter: withTensors(fresh.adapter, moved),
    };
    const own: TrainBatch = {
      ...batch,
      prompts: ["photo of a", "drawing of a", "a", "a shiny"].map((words) =>
        `${words} ${concept.phrase}`
      ),
    };
    const attached = attachConcept(model, concept);
    const bound = own.prompts.map((prompt) => bindPrompt(attached, prompt));
    releaseTokens(attached, model);
    const layerwise = bound.some(({ rows }) => rows.length > 1);
    const rows: (readonly number[])[] = [];
    const order = bound.flatMap(({ rows: of, site }) => {
      const first = rows.length;
      rows.push(...of);
      return (layerwise ? site : [0]).map((row) => first + row);
    });
    const shape = layerwise ? [4, order.length / 4] : [4];
    out.raw(`${kind}.order`, "I32", shape, Int32Array.from(order));
    out.raw(
      `${kind}.ids`,
      "I32",
      [rows.length, rows[0].length],
      Int32Array.from(rows.flat()),
    );
    for (const [path, x] of conceptTensors(concept)) {
      await out.add(`${kind}.param.${path}`, x);
    }
    const { grads } = await conceptGradients(model, concept, own, LOSS);
    for (const [path, x] of grads) await out.add(`expect.${name}.${path}`, x);
    tf.dispose([...grads.values()]);
    for (const size of batches.concept) {
      const larger: TrainBatch = {
        latents: rowsOf(own.latents, size),
        noise: rowsOf(own.noise, size),
        timesteps: cycled(own.timesteps, size),
        prompts: cycled(own.prompts, size),
      };
      works.push({
        name: `${step} ${size}`,
        async run() {
          const { grads } = await conceptGradients(
            model,
            concept,
            larger,
            LOSS,
          );
          await finished(grads);
        },
      });
    }
  }

  const step = (size: number) => {
    const [x, y, text] = [sample, target, states].map((t) => rowsOf(t, size));
    const times = cycled(timesteps, size);
    const made = valueAndGrads(
      (p: UNet) =>
        unet(p, config, x as tf.Tensor4D, times, text as tf.Tensor3D)
          .sub(y).square().mean() as tf.Scalar,
      params,
    );
    tf.dispose([x, y, text]);
    return made;
  };
  for (const size of batches.full) {
    works.push({
      name: `full UNet step, batch ${size}`,
      async run() {
        const { value, grads } = step(size);
        await finished(grads);
        value.dispose();
      },
    });
  }
  const { value, grads } = step(32);
  const paths = leaves(params).map(([path]) => path);
  const tree = updateAt(params, paths, (_, path) => grads.get(path)) as UNet;
  for (const [path, raw] of await toRaw(unetSpec(config), tree)) {
    out.list.push([`expect.full UNet step, batch 32.${path}`, raw]);
  }
  tf.dispose([value, ...grads.values()]);

  for (const { name, width, rows, steps } of FORMS) {
    const features = Array.from(
      { length: CONCEPTS },
      (_, i) =>
        tf.tidy(() =>
          tf.matMul(
            random<tf.Tensor2D>([rows, width], `${name} rows ${i}`),
            random<tf.Tensor2D>([width, width], `${name} mix ${i}`)
              .mul(width ** -0.5) as tf.Tensor2D,
          ).add(0.3) as tf.Tensor2D
        ),
    );
    const values = (part: string, i: number) =>
      normal(fold(key(12), `${name} ${part} ${i}`), width * RANK, 0.1);
    const deltas = features.map((_, i) => ({
      down: matrix(width, RANK, values("down", i)),
      up: matrix(RANK, width, values("up", i)),
    }));
    const solve = async () => {
      const terms = [];
      for (const [i, x] of features.entries()) {
        const sum = new GramAccumulator(width);
        for (let k = 0; k < steps; k++) {
          sum.add(x);
          await sum.flush();
        }
        terms.push({ stats: await sum.finish(), delta: deltas[i] });
      }
      return fuseLayer(terms, { ridge: RIDGE });
    };
    for (const [i, x] of features.entries()) {
      await out.add(`${name}.rows.${i}`, x);
      for (const part of ["down", "up"] as const) {
        const m = deltas[i][part];
        out.raw(`${name}.${part}.${i}`, "F64", [m.rows, m.columns], m.data);
      }
    }
    const { delta } = await solve();
    const dense = denseDelta(delta);
    out.raw(`expect.${name}`, "F64", [width, width], dense.data);
    works.push({ name, run: async () => void await solve() });
  }
  return {
    works,
    peer: {
      batches,
      unet: `${folder}/unet/diffusion_pytorch_model.safetensors`,
      text: `${folder}/text_encoder/model.safetensors`,
      unetConfig: {
        ...config,
        sites: crossAttentionSites(config).map(({ index }) => index),
      },
      textConfig: model.textEncoder.config,
      vae: `${folder}/vae/diffusion_pytorch_model.safetensors`,
      vaeConfig: model.autoencoder.config,
      guidance: GUIDANCE,
      clip: clipLimit(s),
      course: plan("ddim", s, STEPS).table.map(
        ({ timestep, alpha, sigma, next }) => ({
          ...{ timestep, alpha, sigma },
          ...{ denoised: next.denoised, epsilon: next.epsilon },
        }),
      ),
      concepts: CONCEPTS,
      ridge: RIDGE,
      closed: Object.fromEntries(FORMS.map((f) => [f.name, f.steps])),
    },
  };
}

/** As many values as asked for, again from the first after the last. */
function cycled<T>(values: readonly T[], count: number): T[] {
  return Array.from({ length: count }, (_, i) => values[i % values.length]);
}

/** As many rows as asked for, a multiple of those there are. */
function rowsOf<T extends tf.Tensor>(x: T, count: number): T {
  const times = x.shape.map((rows, axis) => axis === 0 ? count / rows : 1);
  return tf.tile(x, times) as T;
}

/** Waits until all gradients are there, the last one being last, and frees them. */
async function finished(
  grads: ReadonlyMap<string, tf.Tensor>,
): Promise<void> {
  const all = [...grads.values()];
  await all.at(-1)!.data();
  tf.dispose(all);
}

/** How far DDIM lets a clean latent go. */
function clipLimit(course: Schedule): number {
  const { clip } = plan("ddim", course, STEPS);
  if (clip.kind === "dynamic") {
    throw cannot("compare pictures", "clipping to a range, or none", clip.kind);
  }
  return clip.kind === "range" ? clip.limit : Number.MAX_VALUE;
}

/** Pictures as `sample` draws them: text, DDIM with guidance, decoder. */
async function drawing(
  model: Model,
  course: Schedule,
  out: Tensors,
  works: Work[],
): Promise<void> {
  const name = `${PICTURES} pictures, ${STEPS} steps, guidance`;
  const { prediction } = plan("ddim", course, STEPS);
  if (prediction !== "v_prediction") {
    throw cannot("compare pictures", "v_prediction", prediction);
  }
  const prompts = Array.from(
    { length: PICTURES },
    (_, i) => `photo ${i} of a fox`,
  );
  const side = model.unet.config.sample_size as number;
  const noise = random<tf.Tensor4D>(
    [PICTURES, side, side, model.unet.config.in_channels],
    "picture noise",
  );
  const rows = ["", ...prompts].map((prompt) => {
    const [row, ...more] = bindPrompt(model, prompt).rows;
    if (more.length > 0) throw cannot("compare pictures", "one row", prompt);
    return row;
  });
  out.raw(
    "pictures.ids",
    "I32",
    [rows.length, rows[0].length],
    Int32Array.from(rows.flat()),
  );
  await out.add("pictures.noise", noise);
  const draw = async (use: (images: tf.Tensor4D) => Promise<unknown>) => {
    const run = pipeline(model, {
      ...{ prompts, noise, sampler: "ddim", steps: STEPS },
      ...{ guidance: GUIDANCE, batch: PICTURES },
    });
    for await (const record of run) {
      if (record.type !== "images") continue;
      await use(record.images);
      record.images.dispose();
    }
  };
  await draw((images) => out.add(`expect.${name}`, images));
  works.push({ name, run: () => draw((images) => images.data()) });
}

/** PyTorch, a line for a line. */
class Peer {
  readonly #child: Deno.ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #writer: WritableStreamDefaultWriter<Uint8Array<ArrayBuffer>>;

  constructor(python: string, folder: string) {
    this.#child = new Deno.Command(python, {
      args: [pathOf(new URL("./peer.py", import.meta.url)), folder],
      stdin: "piped",
      stdout: "piped",
      stderr: "inherit",
    }).spawn();
    this.#writer = this.#child.stdin.getWriter();
    this.#lines = lines(this.#child.stdout);
  }

  async read<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw cannot("compare", "an answer of peer.py", "none");
    return JSON.parse(value);
  }

  async ask<T>(...words: readonly (string | number)[]): Promise<T> {
    await this.#writer.write(new TextEncoder().encode(`${words.join("\t")}\n`));
    return await this.read();
  }

  async close(): Promise<void> {
    await this.#writer.close().catch(() => {});
    await this.#child.status;
  }
}

async function* lines(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
): AsyncGenerator<string> {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}

/** The first Python with PyTorch: the user's own, or Debian's. */
async function pythonWithTorch(): Promise<string | undefined> {
  for (const python of ["python3", "/usr/bin/python3"]) {
    try {
      const { success } = await new Deno.Command(python, {
        args: ["-c", "import torch"],
        stdout: "null",
        stderr: "null",
      }).output();
      if (success) return python;
    } catch {
      // No such program.
    }
  }
}

/** Both sides' threads look for more work for a while before they sleep. */
function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 150));
}

/** Times works here alone. */
async function timeAlone(
  works: readonly Work[],
  runs: number,
  say: (line: string) => void,
): Promise<PeerRow[]> {
  const rows: PeerRow[] = [];
  for (const { name, run } of works) {
    const ours: number[] = [];
    for (let i = 0; i <= runs; i++) {
      const before = performance.now();
      await run();
      if (i > 0) ours.push(performance.now() - before);
    }
    rows.push({ work: name, ours_ms: median(ours) });
    say(`${name}: ${median(ours).toFixed(1)} ms`);
  }
  return rows;
}

/**
 * Compares.
 *
 * @param runs Runs of each work.
 * @param say Called with lines for people.
 * @param backend Where works run here.
 * @returns A row per work; none without PyTorch, on webgpu only times here.
 * @throws If results differ by more than rounding.
 */
export async function comparePeer(
  runs: number,
  say: (line: string) => void,
  backend: "wasm" | "webgpu" = "wasm",
): Promise<PeerRow[]> {
  const python = await pythonWithTorch();
  if (python === undefined) {
    say("No PyTorch here (Debian: python3-torch): nothing is compared.");
    if (backend === "wasm") return [];
  }
  const { describe } = await selectBackend(backend);
  const folder = await Deno.makeTempDir();
  try {
    const tensors = new Tensors();
    const { works, peer: given } = await prepare(
      pathOf(new URL("../../models/micro", import.meta.url)),
      tensors,
      BATCHES[backend],
    );
    if (python === undefined) {
      say(describe);
      return await timeAlone(works, runs, say);
    }
    await writeSafetensors(`${folder}/tensors.safetensors`, tensors.list);
    const device = backend === "webgpu" ? "cuda" : "cpu";
    await writeJson(`${folder}/peer.json`, { ...given, device });
    const peer = new Peer(python, folder);
    try {
      const { torch, card } = await peer.read<{
        torch: string;
        card: boolean;
      }>();
      const threads = [...new Set([1, navigator.hardwareConcurrency])];
      say(
        `${describe}; PyTorch ${torch}, ${
          card ? "on the card" : `${threads} threads`
        }`,
      );
      const found = await peer.ask<Record<string, number>>("check");
      for (const [work, difference] of Object.entries(found)) {
        say(`${work}: differs by ${difference.toExponential(1)}`);
        if (difference <= TOLERANCE) continue;
        throw cannot(
          `compare "${work}"`,
          `a difference of at most ${TOLERANCE}`,
          difference,
        );
      }
      const rows: PeerRow[] = [];
      for (const { name, run } of works) {
        const ours: number[] = [];
        const theirs = threads.map((): number[] => []);
        // The first run of each is not counted.
        for (let i = 0; i <= runs; i++) {
          await pause();
          const before = performance.now();
          await run();
          const took = performance.now() - before;
          if (i > 0) ours.push(took);
          for (const [t, n] of threads.entries()) {
            await pause();
            const ms = await peer.ask<number>("run", name, n);
            if (i > 0) theirs[t].push(ms);
          }
        }
        const medians = theirs.map(median);
        const best = Math.min(...medians);
        const row: PeerRow = {
          work: name,
          ours_ms: median(ours),
          torch_ms: best,
          ratio: median(ours) / best,
        };
        rows.push(row);
        say(
          `${name}: ${row.ours_ms.toFixed(1)} ms, PyTorch ${
            best.toFixed(1)
          } ms on ${threads[medians.indexOf(best)]}, ratio ${
            (row.ours_ms / best).toFixed(2)
          }`,
        );
      }
      return rows;
    } finally {
      await peer.close();
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** `deno task bench:peer`. */
const peerBench = command({
  name: "bench:peer",
  what: "compare",
  summary: "compare with PyTorch",
  usage: "deno task bench:peer [options]",
  about:
    "Compares this library with PyTorch (Debian's python3-torch, if it is " +
    "there): the same works on the embedded model's weights, equal results " +
    "first, then times.",
  options: optionTable({
    runs: {
      type: whole({ least: 1 }),
      default: 5,
      help: "runs of each; medians count",
    },
    backend: {
      type: oneOf(["wasm", "webgpu"]),
      default: "wasm",
      help:
        "wasm or webgpu: steps at several batches, in PyTorch on the same " +
        "card if it can, alone if there is none",
    },
    json: { type: flag, help: "prints JSON only" },
  }),
  request: (values) => values,
  async run({ runs, backend, json }) {
    const rows = await comparePeer(
      runs,
      (line) => console.error(line),
      backend,
    );
    if (json) console.log(JSON.stringify(rows, null, 2));
  },
});

if (import.meta.main) Deno.exit(await runCommand(peerBench, Deno.args));
