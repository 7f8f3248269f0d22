/**
 * The lab's work on many machines: a runner that hands specs to a queue (BullMQ
 * on Redis). Workers take them, results come through the store.
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

/** What stands before each of the queue's keys in Redis. */
export const PREFIX = "mix-of-show";

/** The set of all queues' names. */
export const QUEUES = `${PREFIX}:queues`;

/** How often a job that failed is tried, on any worker. */
const ATTEMPTS = 3;

/** Milliseconds between looks at jobs, for what events do not tell. */
const LOOK = 2000;

/** Milliseconds that a result may take to show in the store. */
const LATE = 30_000;

/** Milliseconds without a worker after which that is said. */
const LONELY = 10_000;

/** What a job holds. */
export interface SpecJob {
  /** What is worked on; its hash is the job's name. */
  readonly spec: LabSpec;
  /** Identity of the store that the result goes to. */
  readonly store: string;
}

/** What workers tell of a job. */
export type JobNews =
  | { readonly done: number; readonly total: number }
  | { readonly refused: string; readonly worker: string };

/**
 * A queue's name: version, backend and base model are in it, so that a worker
 * of others never sees its jobs.
 *
 * @param identity What the workers must have in common.
 */
export function queueName({ model, backend, code }: QueueIdentity): string {
  return `v${code ?? CODE_VERSION}-${backend}-${model.slice(0, 16)}`;
}

/**
 * A queue's name for people.
 *
 * @param name Of {@linkcode queueName}.
 */
export function describeQueue(name: string): string {
  const [version, backend, model] = name.split("-");
  return `version ${version.slice(1)}, ${backend}, model ${model}`;
}

/**
 * A spec for people.
 *
 * @param spec The spec.
 * @param id Its hash.
 */
export function describeSpec(spec: LabSpec, id: string): string {
  const of = spec.kind === "train" ? ` ${spec.concept}` : "";
  return `${spec.kind}${of} ${id.slice(0, 8)}`;
}

/** The key that holds workers of a queue and until when they are alive. */
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
  // Redis's clock: those of the machines differ.
  const [seconds] = await link.wait(link.redis.time());
  return await link.wait(
    link.redis.zcount(workersKey(name), Number(seconds), "+inf"),
  );
}

/**
 * Other queues on the same Redis whose jobs wait, a line each.
 *
 * @param link The connection.
 * @param own The queue that is not other.
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
  /** Since when the queue says done and the store has nothing. */
  late?: number;
  /** A look at it is on its way. */
  looking?: boolean;
}

/**
 * A runner that hands specs to a queue.
 *
 * Nothing is lost with it: jobs stay in Redis when this program ends, and what
 * Redis forgets is handed over again. Events only hasten what regular looks at
 * jobs and store would find.
 *
 * @param options Redis, what workers must be, the store.
 * @throws If Redis does not answer or refuses.
 */
export async function queueRunner(options: QueueOptions): Promise<Runner> {
  const { identity, store, onNote = () => {} } = options;
  const link = await openLink(options);
  const name = queueName(identity);
  const settings = { connection: link.redis, prefix: PREFIX } as const;
  // Its version and memory policy were looked at already.
  const quiet = { ...settings, skipVersionCheck: true };
  const queue = new Queue<SpecJob>(name, quiet);
  const events = new QueueEvents(name, quiet);
  const complain = (error: Error) => {
    if (link.up() && !/closed|ECONN/i.test(error.message)) {
      onNote(`${link.shown}: ${error.message}`);
    }
  };
  queue.on("error", complain);
  events.on("error", complain);
  const pending = new Map<string, Pending>();
  const refusals = new Set<string>();
  let active = performance.now();
  let lonely = false;

  const add = async (id: string, spec: LabSpec): Promise<void> => {
    await link.wait(
      queue.add(spec.kind, { spec, store: store.id }, {
        jobId: id,
        attempts: ATTEMPTS,
        backoff: { type: "fixed", delay: 1000 },
        // Kept for a while, to tell a wrong store from a lost job.
        removeOnComplete: { age: 3600 },
        removeOnFail: { age: 24 * 3600 },
      }),
    );
  };

  /** Looks at one job: is its result there, has it failed, is it gone? */
  const look = async (id: string): Promise<void> => {
    const one = pending.get(id);
    if (!one || one.looking) return;
    one.looking = true;
    try {
      const state = await link.wait(queue.getJobState(id));
      if (state === "failed") {
        const job = await link.wait(queue.getJob(id));
        if (!job) return;
        const why = job.failedReason || "it failed";
        return settle(id, new Error(`${describeSpec(one.spec, id)}: ${why}`));
      }
      if (state !== "completed" && state !== "unknown") return;
      if (await store.pull(await resultPaths(one.spec))) return settle(id);
      if (state === "unknown") return await add(id, one.spec);
      one.late ??= performance.now();
      if (performance.now() - one.late < LATE) return;
      settle(
        id,
        cannot(
          `read the result of ${describeSpec(one.spec, id)}`,
          `it in ${store.name}, where a worker says that it is`,
          "nothing",
        ),
      );
    } catch (error) {
      settle(id, error as Error);
    } finally {
      one.looking = false;
    }
  };
  const settle = (id: string, error?: Error) => {
    const one = pending.get(id);
    if (!one) return;
    pending.delete(id);
    active = performance.now();
    if (error) one.reject(error);
    else one.resolve();
  };

  events.on("completed", ({ jobId }) => void look(jobId));
  events.on("failed", ({ jobId }) => void look(jobId));
  events.on("progress", ({ jobId, data }) => {
    const one = pending.get(jobId);
    if (!one) return;
    active = performance.now();
    lonely = false;
    const news = data as JobNews;
    if ("refused" in news) {
      const line = `worker ${news.worker} refuses work: ${news.refused}`;
      if (!refusals.has(line)) onNote(line);
      refusals.add(line);
    } else one.tell(news.done, news.total);
  });
  events.on("stalled", ({ jobId }) => {
    const one = pending.get(jobId);
    if (one) {
      onNote(
        `${describeSpec(one.spec, jobId)}: its worker is silent; the next ` +
          "free one takes it",
      );
    }
  });

  const alone = async (): Promise<void> => {
    if (lonely || pending.size === 0) return;
    if (performance.now() - active < LONELY) return;
    if (await countWorkers(link, name) > 0) return;
    lonely = true;
    const others = await otherQueues(link, name);
    onNote(
      `${pending.size} jobs wait for a worker of ${describeQueue(name)}; ` +
        (others.length > 0
          ? `there are: ${others.join("; ")}`
          : "there is none"),
    );
  };
  const clock = setInterval(() => {
    if (!link.up()) return;
    for (const id of pending.keys()) void look(id);
    alone().catch(() => {});
  }, LOOK);
  link.lost.catch((error) => {
    clearInterval(clock);
    for (const id of [...pending.keys()]) settle(id, error);
  });

  await link.wait(link.redis.sadd(QUEUES, name));
  await link.wait(events.waitUntilReady());
  const workers = await countWorkers(link, name);
  return {
    workers,
    async run(spec, tell) {
      const id = await specId(spec);
      const results = await resultPaths(spec);
      if (await store.pull(results)) return;
      await store.push(inputPaths(spec));
      await forget(link, await link.wait(queue.getJob(id)));
      const done = new Promise<void>((resolve, reject) => {
        active = performance.now();
        pending.set(id, { spec, tell, resolve, reject });
      });
      add(id, spec).catch((error) => settle(id, error));
      await done;
    },
    [Symbol.dispose]() {
      clearInterval(clock);
      events.close().catch(() => {});
      link.close();
      for (const id of [...pending.keys()]) {
        settle(id, new Error("The queue was closed before the work was done"));
      }
    },
  };
}

/** Removes what an earlier run has left of a job: it would not be done again. */
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
