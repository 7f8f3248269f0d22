/**
 * The lab's work on many machines: a runner that hands specs to a queue (BullMQ
 * on Redis). Workers take them; results are exchanged through the store.
 *
 * @module
 */
import { type Job, Queue, QueueEvents } from "bullmq";
import { cannot } from "../core/errors.ts";
import { type Link, openLink } from "./link.ts";
import type { QueueIdentity, QueueOptions } from "./queue_options.ts";
import type { Tell } from "./run.ts";
import type { Runner } from "./runner.ts";
import type { LabSpec } from "./specs.ts";
import { CODE_VERSION, inputPaths, resultPaths, specId } from "./store.ts";

/** Prefix of the queue's keys in Redis. */
export const PREFIX = "mix-of-show";

/** The set of all queues' names. */
export const QUEUES = `${PREFIX}:queues`;

/** How often a job that failed is tried, on any worker. */
const ATTEMPTS = 3;

/** Milliseconds between polls of the jobs, in case events are lost. */
const LOOK = 2000;

/** Milliseconds until a result must be visible in the store. */
const LATE = 30_000;

/** Milliseconds without a worker after which a message is shown. */
const LONELY = 10_000;

/** What a job holds. */
export interface SpecJob {
  /** What is worked on; its hash is the job's name. */
  readonly spec: LabSpec;
  /** Identity of the store that the result goes to. */
  readonly store: string;
}

/** Progress messages of workers about a job. */
export type JobNews =
  | { readonly done: number; readonly total: number }
  | { readonly refused: string; readonly worker: string };

/**
 * A queue's name contains version, backend and base model, so a worker with
 * others never gets its jobs.
 *
 * @param identity What the workers must have in common.
 */
export function queueName({ model, backend, code }: QueueIdentity): string {
  return `v${code ?? CODE_VERSION}-${backend}-${model.slice(0, 16)}`;
}

/**
 * A readable form of a queue's name.
 *
 * @param name Of {@linkcode queueName}.
 */
export function describeQueue(name: string): string {
  const [version, backend, model] = name.split("-");
  return `version ${version.slice(1)}, ${backend}, model ${model}`;
}

/**
 * A readable form of a spec.
 *
 * @param spec The spec.
 * @param id Its hash.
 */
export function describeSpec(spec: LabSpec, id: string): string {
  const of = spec.kind === "train" ? ` ${spec.concept}` : "";
  return `${spec.kind}${of} ${id.slice(0, 8)}`;
}

/**
 * The key of the set of a queue's workers, with the time until which each
 * counts as alive.
 */
export function workersKey(name: string): string {
  return `${PREFIX}:workers:${name}`;
}

/**
 * How many workers a queue has.
 *
 * @param link The connection.
 * @param name The queue.
 */
export async function countWorkers(link: Link, name: string): Promise<number> {
  // Redis's clock is used, as those of the machines differ.
  const [seconds] = await link.wait(link.redis.time());
  return await link.wait(
    link.redis.zcount(workersKey(name), Number(seconds), "+inf"),
  );
}

/**
 * Other queues on the same Redis whose jobs wait, a line each.
 *
 * @param link The connection.
 * @param own The own queue, which is left out.
 */
export async function otherQueues(link: Link, own: string): Promise<string[]> {
  const lines: string[] = [];
  for (const name of await link.wait(link.redis.smembers(QUEUES))) {
    if (name === own) continue;
    const jobs = await link.wait(link.redis.llen(`${PREFIX}:${name}:wait`));
    const workers = await countWorkers(link, name);
    if (jobs + workers === 0) continue;
    lines.push(`${describeQueue(name)}: ${jobs} waiting, ${workers} workers`);
  }
  return lines.sort();
}

/** A spec whose result is waited for. */
interface Pending {
  readonly spec: LabSpec;
  readonly tell: Tell;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
  /**
   * Time since which the queue reports the job done but the store lacks the
   * result.
   */
  late?: number;
  /** Whether a poll is running. */
  looking?: boolean;
}

/**
 * A runner that hands specs to a queue.
 *
 * If this program ends, jobs stay in Redis. A job that Redis loses is submitted
 * again. Events are only an optimisation: regular polls of jobs and store find
 * the same.
 *
 * @param options Redis, the workers' identity, the store.
 * @throws If Redis does not answer or refuses.
 */
export async function queueRunner(options: QueueOptions): Promise<Runner> {
  const { identity, store, onNote = () => {} } = options;
  const link = await openLink(options);
  const name = queueName(identity);
  const runner = new QueueRunner(link, name, store, onNote);
  await link.wait(link.redis.sadd(QUEUES, name));
  await link.wait(runner.events.waitUntilReady());
  runner.workers = await countWorkers(link, name);
  return runner;
}

class QueueRunner implements Runner {
  workers = 0;
  readonly events: QueueEvents;
  readonly #queue: Queue<SpecJob>;
  readonly #pending = new Map<string, Pending>();
  readonly #refusals = new Set<string>();
  readonly #clock: ReturnType<typeof setInterval>;
  /** Time of the last message about a job. */
  #active = performance.now();
  /** Whether the message about missing workers was shown. */
  #lonely = false;

  constructor(
    readonly link: Link,
    readonly name: string,
    readonly store: QueueOptions["store"],
    readonly onNote: (line: string) => void,
  ) {
    // Redis's version and memory policy have been checked already.
    const quiet = { skipVersionCheck: true };
    const settings = { connection: link.redis, prefix: PREFIX, ...quiet };
    this.#queue = new Queue<SpecJob>(name, settings);
    this.events = new QueueEvents(name, settings);
    this.#queue.on("error", (error) => complain(link, error, onNote));
    this.#listen();
    this.#clock = setInterval(() => {
      if (!link.up()) return;
      for (const id of this.#pending.keys()) void this.#look(id);
      this.#sayIfAlone().catch(() => {});
    }, LOOK);
    link.lost.catch((error) => {
      clearInterval(this.#clock);
      for (const id of [...this.#pending.keys()]) this.#settle(id, error);
    });
  }

  async run(spec: LabSpec, tell: Tell): Promise<void> {
    const id = await specId(spec);
    const { link } = this;
    if (await this.store.pull(await resultPaths(spec))) return;
    await this.store.push(inputPaths(spec));
    await forget(link, await link.wait(this.#queue.getJob(id)));
    const done = new Promise<void>((resolve, reject) => {
      this.#active = performance.now();
      this.#pending.set(id, { spec, tell, resolve, reject });
    });
    this.#add(id, spec).catch((error) => this.#settle(id, error));
    await done;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#clock);
    this.events.close().catch(() => {});
    this.link.close();
    for (const id of [...this.#pending.keys()]) {
      const why = "The queue was closed before the work was done";
      this.#settle(id, new Error(why));
    }
  }

  #listen(): void {
    this.events.on(
      "error",
      (error) => complain(this.link, error, this.onNote),
    );
    this.events.on("completed", ({ jobId }) => void this.#look(jobId));
    this.events.on("failed", ({ jobId }) => void this.#look(jobId));
    this.events.on("progress", ({ jobId, data }) => {
      const one = this.#pending.get(jobId);
      if (!one) return;
      this.#active = performance.now();
      this.#lonely = false;
      const news = data as JobNews;
      if ("done" in news) return one.tell(news.done, news.total);
      const line = `worker ${news.worker} refuses work: ${news.refused}`;
      if (!this.#refusals.has(line)) this.onNote(line);
      this.#refusals.add(line);
    });
    this.events.on("stalled", ({ jobId }) => {
      const one = this.#pending.get(jobId);
      if (!one) return;
      this.onNote(
        `${describeSpec(one.spec, jobId)}: its worker is silent; the next ` +
          "free one takes it",
      );
    });
  }

  async #add(id: string, spec: LabSpec): Promise<void> {
    await this.link.wait(
      this.#queue.add(spec.kind, { spec, store: this.store.id }, {
        jobId: id,
        attempts: ATTEMPTS,
        backoff: { type: "fixed", delay: 1000 },
        // Kept for a while, to tell a wrong store from a lost job.
        removeOnComplete: { age: 3600 },
        removeOnFail: { age: 24 * 3600 },
      }),
    );
  }

  /** Polls one job, unless a poll is running. */
  async #look(id: string): Promise<void> {
    const one = this.#pending.get(id);
    if (!one || one.looking) return;
    one.looking = true;
    try {
      if (await this.#isDone(id, one)) this.#settle(id);
    } catch (error) {
      this.#settle(id, error as Error);
    } finally {
      one.looking = false;
    }
  }

  /**
   * Whether a job's result is in the store; submits the job again if it is
   * lost.
   *
   * @throws If it has failed, or its result does not come.
   */
  async #isDone(id: string, one: Pending): Promise<boolean> {
    const { link } = this;
    const { spec } = one;
    const state = await link.wait(this.#queue.getJobState(id));
    if (state === "failed") {
      const job = await link.wait(this.#queue.getJob(id));
      if (!job) return false;
      const why = job.failedReason || "it failed";
      throw new Error(`${describeSpec(spec, id)}: ${why}`);
    }
    if (state !== "completed" && state !== "unknown") return false;
    if (await this.store.pull(await resultPaths(spec))) return true;
    if (state === "unknown") {
      await this.#add(id, spec);
      return false;
    }
    one.late ??= performance.now();
    if (performance.now() - one.late < LATE) return false;
    throw cannot(
      `read the result of ${describeSpec(spec, id)}`,
      `it in ${this.store.name}, where a worker says that it is`,
      "nothing",
    );
  }

  #settle(id: string, error?: Error): void {
    const one = this.#pending.get(id);
    if (!one) return;
    this.#pending.delete(id);
    this.#active = performance.now();
    if (error) one.reject(error);
    else one.resolve();
  }

  async #sayIfAlone(): Promise<void> {
    const { link, name } = this;
    if (this.#lonely || this.#pending.size === 0) return;
    if (performance.now() - this.#active < LONELY) return;
    if (await countWorkers(link, name) > 0) return;
    this.#lonely = true;
    const others = await otherQueues(link, name);
    this.onNote(
      `${this.#pending.size} jobs wait for a worker of ` +
        `${describeQueue(name)}; ` +
        (others.length > 0
          ? `there are: ${others.join("; ")}`
          : "there is none"),
    );
  }
}

/**
 * Reports an error of BullMQ; lost connections are reported by the link.
 *
 * @param link The connection.
 * @param error The error.
 * @param onNote Receives the message.
 */
export function complain(
  link: Link,
  error: Error,
  onNote: (line: string) => void,
): void {
  if (link.up() && !/closed|ECONN/i.test(error.message)) {
    onNote(`${link.shown}: ${error.message}`);
  }
}

/**
 * Removes a finished job of an earlier run, as BullMQ would not run it again.
 */
async function forget(
  link: Link,
  job: Job<SpecJob> | undefined,
): Promise<void> {
  if (!job) return;
  const state = await link.wait(job.getState());
  if (state === "failed" || state === "completed") {
    // Another client may have been faster.
    await link.wait(job.remove().catch(() => {}));
  }
}
