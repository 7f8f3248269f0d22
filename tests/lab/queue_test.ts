import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { experimentCommand } from "../../src/cli/experiment.ts";
import { runCommand } from "../../src/cli/command.ts";
import { trainCommand } from "../../src/cli/train.ts";
import { workerCommand } from "../../src/cli/worker.ts";
import { selectBackend } from "../../src/core/backend.ts";
import { method } from "../../src/customize/methods.ts";
import { planOf } from "../../src/experiments/experiment.ts";
import { ablationTable } from "../../src/experiments/table2/table.ts";
import { table2 } from "../../src/experiments/table2/run.ts";
import { PRESETS } from "../../src/experiments/presets.ts";
import { writeAtomic } from "../../src/io/files.ts";
import { encodePng, type Pixels } from "../../src/io/png.ts";
import { type LabOptions, type LabRecord, withLab } from "../../src/lab/lab.ts";
import { queueRunner } from "../../src/lab/queue.ts";
import { type ServeOptions, serveQueue } from "../../src/lab/queue_worker.ts";
import { bucketStore } from "../../src/lab/s3.ts";
import { folderStore } from "../../src/lab/shared_store.ts";
import { CODE_VERSION } from "../../src/lab/store.ts";
import { textTable } from "../../src/report/table.ts";
import { writeTinyWorld } from "../experiments/tiny_world.ts";
import { ON_ONE_CORE } from "../tools/repository.ts";
import { hasRedis, startRedis } from "./redis_server.ts";
import { KEYS, startS3 } from "./s3_server.ts";

/** Tells CI what happened: `deno test -q` hides what tests print. */
function log(text: string): void {
  console.log(text);
  const file = Deno.env.get("MIX_OF_SHOW_QUEUE_LOG");
  if (file) Deno.writeTextFileSync(file, `${text}\n`, { append: true });
}

const root = new URL("../../", import.meta.url).pathname;
const ignore = !await hasRedis();
await selectBackend("wasm");

/** A folder with a tiny model and CLIP, gone afterwards. */
async function tinyWorld(): Promise<{ folder: string } & AsyncDisposable> {
  const folder = await Deno.makeTempDir();
  await writeTinyWorld(folder);
  return {
    folder,
    [Symbol.asyncDispose]: () => Deno.remove(folder, { recursive: true }),
  };
}

const labOf = (folder: string, store: string): LabOptions => ({
  model: `${folder}/model`,
  clip: `${folder}/clip`,
  store: `${folder}/${store}`,
  workers: 0,
  backend: "wasm",
});

/** A lab whose work goes to a queue. */
async function queueLab(
  url: string,
  options: LabOptions,
  onNote: (line: string) => void,
  patience = 20,
): Promise<LabOptions> {
  const store = await folderStore(options.store);
  return {
    ...options,
    runner: ({ model }) => {
      const identity = { model, backend: "wasm" } as const;
      return queueRunner({ url, identity, store, onNote, patience });
    },
  };
}

async function until(what: string, isTrue: () => boolean, seconds = 60) {
  const end = performance.now() + seconds * 1000;
  while (!isTrue()) {
    if (performance.now() > end) {
      throw new Error(`${what}: not in ${seconds} s`);
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A worker as a process of its own. */
async function startWorker(url: string, folder: string) {
  const child = new Deno.Command(Deno.execPath(), {
    args: [
      ...["run", "-q", "-P=online", ON_ONE_CORE, "src/cli/worker.ts"],
      ...["--queue", url, "--store", `${folder}/queue`],
      ...["--model", `${folder}/model`, "--clip", `${folder}/clip`],
      ...["--backend", "wasm", "--workers", "1", "--lease", "3"],
    ],
    cwd: root,
    stdout: "null",
    stderr: "piped",
  }).spawn();
  const worker = { child, log: "", name: `worker ${child.pid}` };
  (async () => {
    for await (
      const chunk of child.stderr.pipeThrough(new TextDecoderStream())
    ) worker.log += chunk;
  })().catch(() => {});
  await until(
    `${worker.name} works`,
    () => {
      if (/^Cannot/m.test(worker.log)) throw new Error(worker.log);
      return worker.log.includes("works for");
    },
  );
  return worker;
}

const ablation = experimentCommand(table2);
const preset = PRESETS.ablation;
const plan = planOf(table2, {
  concepts: ["kuro", "momo"],
  prompts: 1,
  seeds: [0],
  embeddings: ["edlora"],
  fusions: ["weight"],
  settings: {
    ...preset,
    heldoutPictures: 2,
    rank: 2,
    train: { ...preset.train, steps: 30, batch: 2 },
    sampling: { ...preset.sampling, steps: 2 },
  },
  scale: "quick",
});

/** Runs the ablation; gives its table as text. */
async function table(options: LabOptions): Promise<string> {
  const { data } = await withLab(options, (lab) => table2.run(lab, plan));
  return textTable(ablationTable(data));
}

/** Files of a store by name: tensors and pictures, not the logs of seconds. */
async function contents(
  folder: string,
): Promise<Map<string, Uint8Array<ArrayBuffer>>> {
  const files = new Map<string, Uint8Array<ArrayBuffer>>();
  const visit = async (path: string) => {
    for await (const { name, isDirectory } of Deno.readDir(folder + path)) {
      const inside = `${path}/${name}`;
      if (isDirectory) await visit(inside);
      else if (!/\.json$/.test(name) || path === "/heldout") {
        files.set(inside, await Deno.readFile(folder + inside));
      }
    }
  };
  await visit("");
  return new Map([...files].sort(([a], [b]) => a < b ? -1 : 1));
}

Deno.test({
  name: "two workers, one killed in training: the local table, byte for byte",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    await using redis = await startRedis();
    const local = await table(labOf(folder, "local"));
    const workers = await Promise.all(
      [1, 2].map(() => startWorker(redis.url, folder)),
    );
    try {
      const records: LabRecord[] = [];
      const notes: string[] = [];
      const options = await queueLab(
        redis.url,
        labOf(folder, "queue"),
        (line) => notes.push(line),
      );
      const [victim, other] = workers;
      const running = table({
        ...options,
        onRecord: (record) => records.push(record),
      });
      running.catch(() => {});
      await until("training", () => /train \w+ \w+: taken/.test(victim.log));
      // In the middle: progress of it has come back.
      await until(
        "progress",
        () => records.some(({ stage, done }) => stage === "train" && done > 0),
      );
      const job = /train \w+ \w+(?=: taken)/.exec(victim.log)![0];
      assert(!victim.log.includes(`${job}: done`), "it was too fast");
      victim.child.kill("SIGKILL");
      log(`kill -9 of ${victim.name} while it works on ${job}`);
      const queued = await running;
      const taken = other.log.split("\n").filter((line) =>
        line.startsWith(job) || line.includes("was silent")
      );
      for (const line of taken) log(`${other.name}: ${line}`);
      assert(taken.some((line) => line.startsWith(`${job}: done`)), other.log);
      assert(taken.some((line) => line.includes("was silent")), other.log);
      assert(notes.some((line) => line.startsWith(job)), notes.join("\n"));
      log(`${queued}\nthe local table:\n${local}`);
      assertEquals(queued, local);
      log(`equal: ${queued === local}`);
      // All that was trained, fused, drawn and measured, too.
      const [mine, theirs] = [
        await contents(`${folder}/local`),
        await contents(`${folder}/queue`),
      ];
      assert(mine.size > 20);
      assertEquals([...theirs.keys()], [...mine.keys()]);
      for (const [name, bytes] of mine) {
        assert(
          bytes.every((byte, i) => byte === theirs.get(name)![i]) &&
            bytes.length === theirs.get(name)!.length,
          `${name} differs`,
        );
      }
      other.child.kill("SIGTERM");
      assertEquals((await other.child.status).code, 0);
    } finally {
      for (const { child } of workers) {
        try {
          child.kill("SIGKILL");
        } catch {
          // It has ended.
        }
        await child.status;
      }
    }
  },
});

/** A worker in this process, for jobs that take no time. */
function serve(
  url: string,
  options: LabOptions,
  more: Partial<ServeOptions> & Pick<ServeOptions, "store">,
): { notes: string[]; stop: () => Promise<number> } {
  const notes: string[] = [];
  const controller = new AbortController();
  const count = serveQueue({
    url,
    folders: { model: options.model, clip: options.clip },
    backend: "wasm",
    threads: 1,
    lease: 2,
    patience: 20,
    refused: 0.5,
    signal: controller.signal,
    onNote: (line) => notes.push(line),
    ...more,
  });
  count.catch((error) => notes.push(`${error}`));
  return {
    notes,
    stop: () => {
      controller.abort();
      return count;
    },
  };
}

Deno.test({
  name: "a worker of another version, store or CLIP takes nothing and says so",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    await using redis = await startRedis();
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    const heard: string[] = [];
    const lab = await queueLab(redis.url, options, (line) => heard.push(line));
    const asked = withLab(lab, (lab) => lab.texts([["a fox"], ["a boat"]]));
    asked.catch(() => {});

    const later = serve(redis.url, options, { store, code: CODE_VERSION + 1 });
    const said = (notes: string[], text: string) =>
      until(text, () => notes.some((line) => line.includes(text)));
    await said(
      later.notes,
      `got version ${CODE_VERSION}, wasm, model`,
    );
    assertEquals(await later.stop(), 0);

    const elsewhere = serve(redis.url, options, {
      store: await folderStore(`${folder}/elsewhere`),
    });
    await said(elsewhere.notes, "expected the store");
    await said(heard, "refuses work: expected the store");
    assertEquals(await elsewhere.stop(), 0);

    const blind = serve(redis.url, options, {
      store,
      folders: { model: options.model },
    });
    await said(heard, "expected the evaluation CLIP");
    assertEquals(await blind.stop(), 0);

    const right = serve(redis.url, options, { store });
    const vectors = await asked;
    assertEquals(await right.stop(), 2);
    const local = await withLab(
      labOf(folder, "local"),
      (lab) => lab.texts([["a fox"], ["a boat"]]),
    );
    assertEquals(vectors, local);
    // A second client finds all of it in the store, without a worker.
    const again = await withLab(lab, (lab) => lab.texts([["a boat"]]));
    assertEquals(again, [local[1]]);
  },
});

Deno.test({
  name: "a Redis that comes back empty: the client hands its work out again",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    const first = await startRedis();
    const heard: string[] = [];
    const lab = await queueLab(first.url, options, (line) => heard.push(line));
    const asked = withLab(lab, (lab) => lab.texts([["a fox"], ["a boat"]]));
    asked.catch(() => {});
    await until("jobs", () => heard.some((line) => /2 jobs wait/.test(line)));
    await first[Symbol.asyncDispose]();
    await until("a note", () => heard.some((l) => /does not answer/.test(l)));
    await using _second = await startRedis([], first.port);
    const worker = serve(first.url, options, { store });
    const vectors = await asked;
    assertEquals(await worker.stop(), 2);
    assertEquals(vectors.length, 2);
    assert(heard.some((line) => line.endsWith("answers again")));
  },
});

Deno.test({
  name: "a Redis that does not come back: client and worker end and say so",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    const redis = await startRedis();
    const lab = await queueLab(redis.url, options, () => {}, 2);
    // A job that nobody takes: the CLIP is missing.
    const worker = serve(redis.url, options, {
      store,
      folders: { model: options.model },
      patience: 2,
    });
    await until("work", () => worker.notes.some((l) => /works for/.test(l)));
    const asked = withLab(lab, (lab) => lab.texts([["a fox"]]));
    asked.catch(() => {});
    await until("a job", () => worker.notes.some((l) => /^refused/.test(l)));
    await redis[Symbol.asyncDispose]();
    const expected = `Cannot use the queue ${redis.url}: expected a Redis ` +
      "that answers within 2 s";
    for (const end of [asked, worker.stop()]) {
      const { message } = await assertRejects(() => end, Error);
      assert(message.startsWith(expected), message);
    }
  },
});

Deno.test({
  name: "a job that fails is tried again, and its reason comes back",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    await using redis = await startRedis();
    const worker = serve(redis.url, options, { store });
    const lab = await queueLab(redis.url, options, () => {});
    const bad = { of: "art", concept: "nobody", set: "train" } as const;
    const message = await withLab(lab, async (lab) => {
      const error = await assertRejects(() => lab.references([bad]), Error);
      // The same lab works on.
      assertEquals((await lab.texts([["a fox"]])).length, 1);
      return error.message;
    });
    assert(/^references \w{8}: .*nobody/.test(message), message);
    const tries = worker.notes.filter((l) => /^references \w+: taken/.test(l));
    assertEquals(tries.length, 3);
    assertEquals(await worker.stop(), 1);
  },
});

Deno.test({
  name: "a bucket as the store: worker and client each have a copy",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    await using redis = await startRedis();
    await using server = startS3();
    const settings = { ...KEYS, endpoint: server.endpoint };
    const open = (copy: string) =>
      bucketStore("s3://bucket/lab", `${folder}/${copy}`, settings);
    const work = async (options: LabOptions) =>
      await withLab(options, async (lab) => {
        const sampling = {
          ...{ sampler: "ddim", steps: 2, guidance: 2, negative: "" } as const,
        };
        const [drawn] = await lab.draw([{
          model: { type: "base" },
          samples: [{ text: "a fox", noise: [0, "fox"] }],
          sampling,
        }]);
        const grey = await lab.put("grey", () => ({
          ...{ width: 64, height: 64, channels: 3 },
          data: new Uint8Array(64 * 64 * 3).fill(128),
        }));
        const images = [...drawn, grey];
        const vectors = await lab.embed([{
          images,
          regions: images.map(() => []),
        }]);
        const pixels = await Promise.all(images.map(lab.picture));
        return { images, vectors, pixels };
      });
    const options = labOf(folder, "client");
    const store = await open("client");
    const worker = serve(redis.url, options, { store: await open("worker") });
    const queued = await work({
      ...options,
      runner: ({ model }) =>
        queueRunner({
          url: redis.url,
          identity: { model, backend: "wasm" },
          store,
        }),
    });
    assertEquals(await worker.stop(), 2);
    assertEquals(queued, await work(labOf(folder, "local")));
    const kinds = [...server.objects.keys()].map((name) => name.split("/")[2]);
    assertEquals(kinds.sort(), [
      "embeddings",
      "images",
      "images",
      "store.json",
    ]);
  },
});

Deno.test({
  name: "a worker that is told to end gives its job back at once",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    await using redis = await startRedis();
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    const lab = await queueLab(redis.url, options, () => {});
    // Longer than the test: nobody waits for silence.
    const first = serve(redis.url, options, { store, lease: 300 });
    const records: LabRecord[] = [];
    const asked = withLab(
      { ...lab, onRecord: (record) => records.push(record) },
      (lab) =>
        lab.train([{
          ...{ concept: "kuro", classWord: "animal", seed: 0, rank: 2 },
          pictures: { of: "art", concept: "kuro", set: "train" },
          ...{ method: "ed-lora", preset: "ablation" },
          config: method("ed-lora", "ablation", { steps: 20, batch: 2 }).train,
        }]),
    );
    asked.catch(() => {});
    await until("a step", () => records.some(({ done }) => done > 0));
    assertEquals(await first.stop(), 0);
    assert(first.notes.some((line) => line.endsWith("given back")));
    const second = serve(redis.url, options, { store, lease: 300 });
    const [{ steps }] = await asked;
    assertEquals(steps, 20);
    assertEquals(await second.stop(), 1);
  },
});

/** Pictures with masks and captions, and pictures of the class. */
async function writePictures(folder: string): Promise<void> {
  const picture = (hue: number, channels: number): Pixels => ({
    ...{ width: 64, height: 64, channels },
    data: Uint8Array.from(
      { length: 64 * 64 * channels },
      (_, i) => channels === 1 ? (i % 64 < 40 ? 255 : 0) : (i * hue) % 256,
    ),
  });
  for (
    const [path, pixels] of [
      ["own/a.png", picture(7, 3)],
      ["own/b.png", picture(11, 3)],
      ["own/masks/a.png", picture(0, 1)],
      ["class/c.png", picture(13, 3)],
    ] as const
  ) {
    await writeAtomic(`${folder}/${path}`, encodePng(pixels));
  }
  await writeAtomic(`${folder}/own/a.txt`, "a {} on grass, at night\n{}\n");
}

Deno.test({
  name: "train --queue gives the file that train gives, byte for byte",
  ignore,
  sanitizeOps: false,
  sanitizeResources: false,
  async fn() {
    await using world = await tinyWorld();
    const { folder } = world;
    await writePictures(folder);
    await using redis = await startRedis();
    const options = labOf(folder, "store");
    const store = await folderStore(options.store);
    const worker = serve(redis.url, options, { store });
    const train = async (out: string, ...more: string[]) => {
      const code = await runCommand(trainCommand, [
        ...["--name", "rex", "--class", "fox boat"],
        ...["--images", `${folder}/own`, "--masks", `${folder}/own/masks`],
        ...["--prior", `${folder}/class`, "--prior-weight", "0.5", "--flips"],
        ...["--steps", "3", "--batch", "2", "--rank", "2", "--seed", "5"],
        ...["--backend", "wasm", "--dtype", "F16"],
        ...["--model", options.model, "--out", `${folder}/${out}`, ...more],
      ]);
      assertEquals(code, 0);
      return await Deno.readFile(`${folder}/${out}`);
    };
    const queue = ["--queue", redis.url, "--store", options.store];
    const queued = await train("queued.safetensors", ...queue);
    assertEquals(await worker.stop(), 1);
    assertEquals(queued, await train("here.safetensors"));
    // Finished before: no worker is needed.
    assertEquals(await train("again.safetensors", ...queue), queued);
  },
});

Deno.test("--queue is refused with what would change nothing or break others' work", () => {
  const queue = ["--queue", "redis://h", "--store", "s"];
  const ours = ["--name", "a", "--images", "."];
  for (
    const [command, args, expected] of [
      [trainCommand, [...ours, ...queue, "--fresh"], "--fresh or --queue"],
      [trainCommand, [...ours, ...queue, "--vae", "x"], "got --vae"],
      [trainCommand, [...ours, "--queue", "redis://h"], "--store FOLDER or s3"],
      [trainCommand, [...ours, "--store", "s"], "--queue URL with --store"],
      [trainCommand, [...ours, "--patience", "3"], "--queue URL with"],
      [
        trainCommand,
        [...ours, "--queue", "http://me:pass@h", "--store", "s"],
        "got http://me:***@h",
      ],
      [ablation, [...queue, "--workers", "1"], "--workers or --queue"],
      [ablation, [...queue, "--cache", "c"], "--cache or a folder"],
      [ablation, [...queue, "--fresh"], "--fresh or --queue"],
      [ablation, [...queue, "--dry-run"], "--dry-run or --queue"],
      [workerCommand, ["--store", "s"], "--queue URL"],
      [workerCommand, [...queue, "--cache", "c"], "a bucket as --store"],
      [workerCommand, [...queue, "--workers", "0"], "from 1"],
    ] as const
  ) {
    const { message } = assertThrows(() => command.parse(args), Error);
    assert(message.includes(expected), message);
  }
  const { lab } = ablation.parse(queue)!;
  assertEquals([lab.store, lab.queue?.url], ["s", "redis://h"]);
  const bucket = ["--queue", "redis://h", "--store", "s3://b/p", "--out", "o"];
  assertEquals(ablation.parse(bucket)!.lab.store, "o/cache");
});
