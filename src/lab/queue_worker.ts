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
import { openLink } from "./link.ts";
import {
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
import type { Folders } from "./run.ts";
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
   * Seconds of silence after which its job is another's.
   *
   * @default {30}
   */
  readonly lease?: number;
  /** Ends it after so many seconds without work. @default never */
  readonly idle?: number;
  /** Ends it: jobs that are not done go back. */
  readonly signal?: AbortSignal;
  /** Version of the code that makes numbers. @default this one's */
  readonly code?: number;
  /**
   * Seconds until a job that was refused is offered again.
   *
   * @default {5}
   */
  readonly refused?: number;
}

/** How often a job may lose its worker before it counts as the culprit. */
const DEATHS = 5;

/** Milliseconds between two reports of progress. */
const NEWS = 1000;

/** A name in the store is a hash, whoever wrote the job. */
const HASH = /^[0-9a-f]{64}$/;

/** A thread with models of its own. */
interface Slot {
  runner?: Runner;
  busy: boolean;
}

/**
 * Works on specs of a queue until it is told to end.
 *
 * @param options Queue, store, models.
 * @returns How many specs it has done.
 * @throws If a model is not as it should be, or Redis does not answer, refuses,
 * or is away for longer than `patience`.
 */
export async function serveQueue(options: ServeOptions): Promise<number> {
  const { store, backend, threads, lease = 30, idle, signal, code } = options;
  const { onNote = () => {}, refused = 5 } = options;
  const folders: Folders = { ...options.folders, store: store.folder };
  const hashes = await labHashes(folders, await loadConceptArt());
  const name = queueName({ model: hashes.model, backend, code });
  const link = await openLink(options);
  const me = machine.processName();
  const slots: Slot[] = Array.from({ length: threads }, () => ({
    busy: false,
  }));
  const open = () => localPool(folders, backend, 1);
  let count = 0, running = 0, ending = false;
  let active = performance.now();

  const work = async (
    spec: LabSpec,
    tell: (done: number, total: number) => void,
  ): Promise<void> => {
    // BullMQ hands out no more jobs than there are slots.
    const slot = slots.find(({ busy }) => !busy)!;
    slot.busy = true;
    try {
      slot.runner ??= await open();
      await slot.runner.run(spec, tell);
    } catch (error) {
      // Bad input is the job's fault; anything else may have left the thread
      // without memory or models.
      if (!(error as Error).message.startsWith("Cannot ")) {
        slot.runner?.[Symbol.dispose]();
        slot.runner = undefined;
      }
      throw error;
    } finally {
      slot.busy = false;
    }
  };

  const process = async (job: Job<SpecJob>, token?: string): Promise<void> => {
    const { spec } = job.data;
    const wrong = await refusal(job, hashes, store);
    if (wrong !== undefined) {
      onNote(`refused ${describeSpec(spec, job.id!)}: ${wrong}`);
      await job.updateProgress(
        { refused: wrong, worker: me } satisfies JobNews,
      );
      await job.moveToDelayed(Date.now() + 1000 * refused, token);
      throw new DelayedError();
    }
    const what = describeSpec(spec, job.id!);
    const before = performance.now();
    onNote(`${what}: taken${job.stalledCounter > 0 ? " over" : ""}`);
    running++;
    let told = -Infinity;
    try {
      const inputs = inputPaths(spec);
      if (!await store.pull(inputs)) {
        throw cannot(
          `work on ${what}`,
          `its input in ${store.name}`,
          "a store without it",
        );
      }
      await work(spec, (done, total) => {
        const now = performance.now();
        if (now - told < NEWS && done < total) return;
        told = now;
        // Only news: a job whose lock is lost is another's.
        job.updateProgress({ done, total } satisfies JobNews).catch(() => {});
      });
      await store.push(await resultPaths(spec));
    } catch (error) {
      if (!ending) {
        onNote(`${what}: ${(error as Error).message}`);
        throw error;
      }
      onNote(`${what}: given back`);
      await job.moveToWait(token);
      throw new WaitingError();
    } finally {
      running--;
      active = performance.now();
    }
    count++;
    const seconds = (performance.now() - before) / 1000;
    onNote(`${what}: done in ${seconds.toFixed(1)} s`);
  };

  const beat = async () => {
    const [seconds] = await link.wait(link.redis.time());
    const until = Number(seconds) + lease;
    await link.wait(
      link.redis.multi()
        .zadd(workersKey(name), until, me)
        .zremrangebyscore(workersKey(name), "-inf", `(${seconds}`)
        .exec(),
    );
  };

  const seen = new Set<string>();
  /** Says which jobs nobody works on, since they are not for this worker. */
  const others = async () => {
    for (const line of await otherQueues(link, name)) {
      if (!line.endsWith(", 0 workers") || seen.has(line)) continue;
      seen.add(line);
      onNote(
        `not taken: expected jobs of ${describeQueue(name)}, got ${line}`,
      );
    }
  };

  let worker: Worker<SpecJob> | undefined;
  const clocks: ReturnType<typeof setInterval>[] = [];
  try {
    for (const slot of slots) slot.runner = await open();
    await link.wait(link.redis.sadd(QUEUES, name));
    await beat();
    await others();
    worker = new Worker<SpecJob>(name, process, {
      connection: link.redis,
      prefix: PREFIX,
      skipVersionCheck: true,
      name: me,
      concurrency: threads,
      lockDuration: lease * 1000,
      stalledInterval: lease * 1000,
      maxStalledCount: DEATHS,
      runRetryDelay: 1000,
    });
    worker.on("error", (error) => {
      if (link.up() && !/closed|ECONN/i.test(error.message)) {
        onNote(`${link.shown}: ${error.message}`);
      }
    });
    worker.on(
      "stalled",
      (id) =>
        onNote(
          `${id.slice(0, 8)}: its worker was silent for ${lease} s; it is ` +
            "given to the next one",
        ),
    );
    const workers = await countWorkers(link, name);
    onNote(
      `${me} works for ${link.shown}, ${describeQueue(name)}, store ` +
        `${store.name}; ${workers} worker${workers === 1 ? "" : "s"}`,
    );
    const quietly = (task: () => Promise<void>) => () => {
      if (link.up()) task().catch(() => {});
    };
    clocks.push(
      setInterval(quietly(beat), lease * 1000 / 3),
      setInterval(quietly(others), 30_000),
    );
    active = performance.now();
    await link.wait(ended(signal, () => {
      return idle !== undefined && running === 0 && link.up() &&
        performance.now() - active > idle * 1000;
    }));
    ending = true;
    // No new jobs; those at work fail with their threads and go back.
    const closing = worker.close();
    for (const { runner } of slots) runner?.[Symbol.dispose]();
    await link.wait(closing);
    await link.wait(link.redis.zrem(workersKey(name), me));
    return count;
  } finally {
    ending = true;
    for (const clock of clocks) clearInterval(clock);
    for (const { runner } of slots) runner?.[Symbol.dispose]();
    worker?.close(true).catch(() => {});
    link.close();
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

/** Resolves when the signal says so, or a condition holds. */
async function ended(
  signal: AbortSignal | undefined,
  isOver: () => boolean,
): Promise<void> {
  while (!signal?.aborted && !isOver()) {
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
