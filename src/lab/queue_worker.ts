/**
 * A worker of the queue: takes specs, works on them in threads of its own, puts
 * results into the store.
 *
 * The connection lives in the main thread, so a job's lock is renewed while a
 * thread computes. A worker that dies stops renewing, and another takes its job.
 *
 * @module
 */
import { DelayedError, type Job, WaitingError, Worker } from "bullmq";
import type { BackendName } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { machine } from "../core/platform/machine.ts";
import { loadConceptArt } from "../micro/concepts.ts";
import { type LabHashes, labHashes } from "./lab.ts";
import { type Link, openLink } from "./link.ts";
import {
  complain,
  countWorkers,
  describeQueue,
  describeSpec,
  type JobNews,
  otherQueues,
  PREFIX,
  queueName,
  QUEUES,
  type SpecJob,
  workersKey,
} from "./queue.ts";
import type { LinkOptions } from "./queue_options.ts";
import type { Folders, Tell } from "./run.ts";
import { localPool, type Runner } from "./runner.ts";
import type { SharedStore } from "./shared_store.ts";
import type { LabSpec } from "./specs.ts";
import { inputPaths, resultPaths, specId } from "./store.ts";

/** How a worker of the queue works. */
export interface ServeOptions extends LinkOptions {
  /** The store. */
  readonly store: SharedStore;
  /** Models; the store's folder is taken from `store`. */
  readonly folders: Omit<Folders, "store">;
  /** The backend of its threads. */
  readonly backend: BackendName;
  /** Specs at a time, a thread each; at least 1. */
  readonly threads: number;
  /**
   * Seconds without renewal after which another worker may take its job.
   *
   * @default {30}
   */
  readonly lease?: number;
  /** Seconds without work after which it ends. @default never */
  readonly idle?: number;
  /** Ends it; unfinished jobs are returned to the queue. */
  readonly signal?: AbortSignal;
  /** Version of the code that determines results. @default this one's */
  readonly code?: number;
  /**
   * Seconds until a job that was refused is offered again.
   *
   * @default {5}
   */
  readonly refused?: number;
}

/** How often a job may lose its worker before it is failed as the cause. */
const DEATHS = 5;

/** Milliseconds between two reports of progress. */
const NEWS = 1000;

/** Names in the store are hashes; jobs from outside are checked. */
const HASH = /^[0-9a-f]{64}$/;

/** A thread with models of its own. */
interface Slot {
  runner?: Runner;
  busy: boolean;
}

/** State of a running worker. */
interface Serving {
  /** Its own name. */
  readonly me: string;
  /** The queue's name. */
  readonly name: string;
  readonly hashes: LabHashes;
  readonly store: SharedStore;
  /** Seconds until a job that was refused is offered again. */
  readonly refused: number;
  readonly slots: readonly Slot[];
  /** Starts a thread. */
  readonly open: () => Promise<Runner>;
  readonly onNote: (line: string) => void;
  /** Specs done, specs at work, and when one was last finished. */
  count: number;
  running: number;
  active: number;
  /** Whether failed jobs are returned to the queue. */
  ending: boolean;
}

/**
 * Works on specs of a queue until it is told to end.
 *
 * @param options Queue, store, models.
 * @returns How many specs it has done.
 * @throws If a model is not valid, or Redis does not answer, refuses, or is
 * away for longer than `patience`.
 */
export async function serveQueue(options: ServeOptions): Promise<number> {
  const { store, backend, threads, lease = 30, idle, signal, code } = options;
  const { onNote = () => {}, refused = 5 } = options;
  const folders: Folders = { ...options.folders, store: store.folder };
  const hashes = await labHashes(folders, await loadConceptArt());
  const name = queueName({ model: hashes.model, backend, code });
  const link = await openLink(options);
  const serving: Serving = {
    ...{ name, hashes, store, refused, onNote, me: machine.processName() },
    slots: Array.from({ length: threads }, () => ({ busy: false })),
    open: () => localPool(folders, backend, 1),
    ...{ count: 0, running: 0, active: performance.now(), ending: false },
  };
  const told = new Set<string>();
  const isIdle = () =>
    idle !== undefined && serving.running === 0 && link.up() &&
    performance.now() - serving.active > idle * 1000;
  let worker: Worker<SpecJob> | undefined;
  const clocks: ReturnType<typeof setInterval>[] = [];
  const every = (ms: number, task: () => Promise<void>) =>
    clocks.push(setInterval(() => {
      if (link.up()) task().catch(() => {});
    }, ms));
  try {
    for (const slot of serving.slots) slot.runner = await serving.open();
    await link.wait(link.redis.sadd(QUEUES, name));
    await beat(link, serving, lease);
    await sayUntaken(link, serving, told);
    worker = startWorker(link, serving, lease);
    const workers = await countWorkers(link, name);
    onNote(
      `${serving.me} works for ${link.shown}, ${describeQueue(name)}, store ` +
        `${store.name}; ${workers} worker${workers === 1 ? "" : "s"}`,
    );
    every(lease * 1000 / 3, () => beat(link, serving, lease));
    every(30_000, () => sayUntaken(link, serving, told));
    serving.active = performance.now();
    await link.wait(ended(signal, isIdle));
    serving.ending = true;
    // No new jobs are taken; running ones fail with their threads and are
    // returned.
    const closing = worker.close();
    for (const { runner } of serving.slots) runner?.[Symbol.dispose]();
    await link.wait(closing);
    await link.wait(link.redis.zrem(workersKey(name), serving.me));
    return serving.count;
  } finally {
    serving.ending = true;
    for (const clock of clocks) clearInterval(clock);
    for (const { runner } of serving.slots) runner?.[Symbol.dispose]();
    worker?.close(true).catch(() => {});
    link.close();
  }
}

/** Takes jobs from now on. */
function startWorker(
  link: Link,
  serving: Serving,
  lease: number,
): Worker<SpecJob> {
  const { name, me, slots, onNote } = serving;
  return new Worker<SpecJob>(
    name,
    (job, token) => processJob(serving, job, token),
    {
      connection: link.redis,
      prefix: PREFIX,
      skipVersionCheck: true,
      name: me,
      concurrency: slots.length,
      lockDuration: lease * 1000,
      stalledInterval: lease * 1000,
      maxStalledCount: DEATHS,
      runRetryDelay: 1000,
    },
  ).on("error", (error) => complain(link, error, onNote))
    .on("stalled", (id) =>
      onNote(
        `${id.slice(0, 8)}: its worker was silent for ${lease} s; it is ` +
          "given to the next one",
      ));
}

/** Runs a job, or returns it to the queue. */
async function processJob(
  serving: Serving,
  job: Job<SpecJob>,
  token?: string,
): Promise<void> {
  const { hashes, store, me, refused, onNote } = serving;
  const { spec } = job.data;
  const what = describeSpec(spec, job.id!);
  const wrong = await refusal(job, hashes, store);
  if (wrong !== undefined) {
    onNote(`refused ${what}: ${wrong}`);
    await job.updateProgress({ refused: wrong, worker: me } satisfies JobNews);
    await job.moveToDelayed(Date.now() + 1000 * refused, token);
    throw new DelayedError();
  }
  const before = performance.now();
  onNote(`${what}: taken${job.stalledCounter > 0 ? " over" : ""}`);
  serving.running++;
  try {
    if (!await store.pull(inputPaths(spec))) {
      throw cannot(
        `work on ${what}`,
        `its input in ${store.name}`,
        "a store without it",
      );
    }
    await work(serving, spec, newsOf(job));
    await store.push(await resultPaths(spec));
  } catch (error) {
    if (!serving.ending) {
      onNote(`${what}: ${(error as Error).message}`);
      throw error;
    }
    onNote(`${what}: given back`);
    await job.moveToWait(token);
    throw new WaitingError();
  } finally {
    serving.running--;
    serving.active = performance.now();
  }
  serving.count++;
  const seconds = (performance.now() - before) / 1000;
  onNote(`${what}: done in ${seconds.toFixed(1)} s`);
}

/** Works on a spec in a free thread. */
async function work(
  { slots, open }: Serving,
  spec: LabSpec,
  tell: Tell,
): Promise<void> {
  // BullMQ hands out no more jobs than there are slots.
  const slot = slots.find(({ busy }) => !busy)!;
  slot.busy = true;
  try {
    slot.runner ??= await open();
    await slot.runner.run(spec, tell);
  } catch (error) {
    // "Cannot …" means bad input. After any other error the thread may lack
    // memory or models.
    if (!(error as Error).message.startsWith("Cannot ")) {
      slot.runner?.[Symbol.dispose]();
      slot.runner = undefined;
    }
    throw error;
  } finally {
    slot.busy = false;
  }
}

/** Reports the progress of a job to the queue, at intervals. */
function newsOf(job: Job<SpecJob>): Tell {
  let told = -Infinity;
  return (done, total) => {
    const now = performance.now();
    if (now - told < NEWS && done < total) return;
    told = now;
    // Errors are ignored: a job whose lock is lost belongs to another worker.
    job.updateProgress({ done, total } satisfies JobNews).catch(() => {});
  };
}

/** Registers this worker as alive, and removes dead ones. */
async function beat(
  link: Link,
  { name, me }: Serving,
  lease: number,
): Promise<void> {
  const [seconds] = await link.wait(link.redis.time());
  const until = Number(seconds) + lease;
  await link.wait(
    link.redis.multi()
      .zadd(workersKey(name), until, me)
      .zremrangebyscore(workersKey(name), "-inf", `(${seconds}`)
      .exec(),
  );
}

/**
 * Reports once each the waiting jobs of other queues, which this worker cannot
 * run.
 */
async function sayUntaken(
  link: Link,
  { name, onNote }: Serving,
  told: Set<string>,
): Promise<void> {
  for (const line of await otherQueues(link, name)) {
    if (!line.endsWith(", 0 workers") || told.has(line)) continue;
    told.add(line);
    onNote(`not taken: expected jobs of ${describeQueue(name)}, got ${line}`);
  }
}

/** Why a job is not for this worker, if it is not. */
async function refusal(
  { id, data: { spec, store: wanted } }: Job<SpecJob>,
  hashes: LabHashes,
  store: SharedStore,
): Promise<string | undefined> {
  const differ = (what: string, expected: string, got: string) =>
    `expected ${what} ${expected.slice(0, 16)}, got ${
      got.slice(0, 16) || "none"
    }`;
  if (wanted !== store.id) return differ("the store", wanted, store.id);
  if (await specId(spec) !== id) {
    return differ("a job of this version, named", await specId(spec), `${id}`);
  }
  const names = inputPaths(spec).map((path) =>
    path.replace(/^.*\//, "").replace(/\.[a-z]+$/, "")
  );
  const strange = names.find((one) => !HASH.test(one));
  if (strange !== undefined) return `expected a hash, got ${strange}`;
  if ("base" in spec && spec.base !== hashes.model) {
    return differ("the base model", spec.base, hashes.model);
  }
  if ("clip" in spec && spec.clip !== hashes.clip) {
    return differ("the evaluation CLIP", spec.clip, hashes.clip);
  }
  if ("art" in spec && spec.art !== hashes.art) {
    return differ("the art", spec.art, hashes.art);
  }
  for (
    const [name, hash] of Object.entries(
      spec.kind === "compose" ? spec.networks : {},
    )
  ) {
    const own = hashes.networks[name] ?? "";
    if (own !== hash) return differ(`the network "${name}"`, hash, own);
  }
}

/** Resolves when the signal is aborted or a condition holds. */
async function ended(
  signal: AbortSignal | undefined,
  isOver: () => boolean,
): Promise<void> {
  while (!signal?.aborted && !isOver()) {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
