/**
 * A pool of workers for pure jobs, each worker with its own tfjs.
 *
 * Whole jobs side by side use a machine best: data-parallel steps, clients,
 * images. (One job uses several threads by itself, `kernels/threads.ts`; in a
 * worker it has one.) A job's result may not depend on which worker runs it,
 * so the number of workers never changes a result.
 *
 * @module
 */
import { cannot } from "./errors.ts";
import { machine } from "./platform/machine.ts";
import type { Thread } from "./platform/machine_type.ts";

/** What a worker's functions get besides the job. */
export interface JobContext<Event = unknown> {
  /** Number of this worker, from 0: for messages, not for results. */
  readonly worker: number;
  /** Sends an event to the host's `onEvent`. */
  emit(event: Event): void;
}

/**
 * Functions a worker offers, by name. `init`, if there is one, is called once
 * with the pool's `init` value before any job.
 */
// deno-lint-ignore no-explicit-any
export type Handlers = Record<string, (job: any, context: any) => unknown>;

/** The job a handler takes. */
export type JobOf<H extends Handlers, K extends keyof H> = Parameters<H[K]>[0];

/** What a handler gives, as it arrives at the host. */
export type ResultOf<H extends Handlers, K extends keyof H> =
  Awaited<ReturnType<H[K]>> extends infer R ? R extends Moved<infer T> ? T : R
    : never;

/** Options of {@linkcode createPool}. */
export interface PoolOptions<H extends Handlers, Event> {
  /** Number of workers, at least 1. */
  workers: number;
  /** The worker's module, `new URL("./x_worker.ts", import.meta.url)`. */
  module: URL;
  /** Posted to every worker's `init`: plain data. */
  init?: H extends { init: (job: infer I, ...rest: never[]) => unknown } ? I
    : undefined;
  /** Called with what workers {@linkcode JobContext.emit}. */
  onEvent?: (event: Event, worker: number) => void;
}

/** Options of one job. */
export interface JobOptions {
  /** Buffers to hand over instead of copying; unusable here afterwards. */
  transfer?: Transferable[];
  /**
   * The worker that must take it, such as one that kept something for it.
   *
   * @default the next free one
   */
  worker?: number;
}

/** Running workers; see {@linkcode createPool}. */
export interface Pool<H extends Handlers> extends Disposable {
  /** Number of workers. */
  readonly workers: number;
  /**
   * Runs one job on the next free worker, or on a given one.
   *
   * @throws If there is no worker of the given number.
   */
  run<K extends keyof H & string>(
    name: K,
    job: JobOf<H, K>,
    options?: JobOptions,
  ): Promise<ResultOf<H, K>>;
  /**
   * Runs jobs on all workers; results in the order of the jobs. The first
   * error rejects, and jobs not yet started are dropped.
   */
  map<K extends keyof H & string>(
    name: K,
    jobs: readonly JobOf<H, K>[],
  ): Promise<ResultOf<H, K>[]>;
  /** Runs the same job once on every worker, to change what it holds. */
  each<K extends keyof H & string>(
    name: K,
    job: JobOf<H, K>,
  ): Promise<ResultOf<H, K>[]>;
  /** Ends all workers; unfinished jobs reject. Again does nothing. */
  close(): void;
}

/** A result whose buffers move to the host; made by {@linkcode moved}. */
export class Moved<T> {
  /** The result. */
  readonly value: T;
  /** Buffers inside it that are handed over. */
  readonly buffers: Transferable[];

  /** Wraps a result. */
  constructor(value: T, buffers: Transferable[]) {
    this.value = value;
    this.buffers = buffers;
  }
}

/**
 * Marks buffers of a worker's result as handed over, not copied.
 *
 * @param value The result.
 * @param buffers `ArrayBuffer`s inside it; the worker loses them.
 */
export function moved<T>(value: T, buffers: Transferable[]): Moved<T> {
  return new Moved(value, buffers);
}

/**
 * How many workers to start: no more than the machine has processors.
 *
 * @param requested Wish; all processors when left out.
 * @returns At least 1.
 * @throws If the wish is not a positive integer.
 */
export function hardwareWorkers(requested?: number): number {
  const all = machine.processors;
  if (requested === undefined) return all;
  if (!Number.isInteger(requested) || requested < 1) {
    throw cannot("start workers", "a positive integer", requested);
  }
  return Math.min(requested, all);
}

/** Host to worker. */
type Request = {
  id: number;
  name: string;
  job: unknown;
  worker: number;
};

/** Worker to host. */
type Reply =
  | { id: number; result: unknown }
  | { id: number; error: { name: string; message: string; stack?: string } }
  | { event: unknown };

interface Task {
  name: string;
  job: unknown;
  transfer: Transferable[];
  /** Only this worker may take it. */
  only?: number;
  resolve(result: never): void;
  reject(error: Error): void;
}

/**
 * Starts workers and waits until each has finished its `init`.
 *
 * @param options Number, module, initial data, event callback.
 * @returns The pool; `close` it, or declare it with `using`.
 * @throws If the number is not a positive integer, the module does not load,
 * or `init` throws; the error has the worker's stack.
 *
 * @example
 * ```ts
 * // double_worker.ts: const handlers = { double: (x: number) => 2 * x };
 * // serve(handlers); export type Handlers = typeof handlers;
 * using pool = await createPool<Handlers>({
 *   workers: hardwareWorkers(),
 *   module: new URL("./double_worker.ts", import.meta.url),
 * });
 * await pool.map("double", [1, 2, 3]); // [2, 4, 6]
 * ```
 */
export async function createPool<H extends Handlers, Event = unknown>(
  options: PoolOptions<H, Event>,
): Promise<Pool<H>> {
  const { workers: count, init } = options;
  if (!Number.isInteger(count) || count < 1) {
    throw cannot("create a worker pool", "a positive number of workers", count);
  }
  const pool = new WorkerPool<H, Event>(options);
  try {
    await pool.each("init", init as never);
  } catch (error) {
    pool.close();
    throw error;
  }
  return pool;
}

class WorkerPool<H extends Handlers, Event> implements Pool<H> {
  readonly workers: number;
  readonly #threads: readonly Thread[];
  readonly #queue: Task[] = [];
  /** What each thread works on. */
  readonly #running: (Task | undefined)[];
  #failed: Error | undefined;
  #ids = 0;

  constructor({ workers, module, onEvent }: PoolOptions<H, Event>) {
    this.workers = workers;
    this.#running = new Array(workers).fill(undefined);
    this.#threads = Array.from(
      { length: workers },
      (_, i) =>
        machine.startThread(module, `worker ${i}`, {
          message: (message) => {
            const data = message as Reply;
            if ("event" in data) return onEvent?.(data.event as Event, i);
            const task = this.#running[i];
            this.#running[i] = undefined;
            if ("error" in data) task?.reject(revive(data.error, i));
            else task?.resolve(data.result as never);
            this.#feed();
          },
          error: (message) =>
            this.#fail(new Error(`Worker ${i} (${module}) ${message}`)),
        }),
    );
  }

  #fail(error: Error): void {
    this.#failed ??= error;
    for (const thread of this.#threads) thread.terminate();
    for (const task of [...this.#running, ...this.#queue.splice(0)]) {
      task?.reject(this.#failed);
    }
    this.#running.fill(undefined);
  }

  /** Gives waiting tasks to free threads. */
  #feed(): void {
    for (let i = 0; i < this.workers && this.#queue.length > 0; i++) {
      if (this.#running[i]) continue;
      const at = this.#queue.findIndex(({ only = i }) => only === i);
      if (at < 0) continue;
      const [task] = this.#queue.splice(at, 1);
      const { name, job, transfer } = task;
      try {
        this.#threads[i].post(
          { id: this.#ids++, name, job, worker: i } satisfies Request,
          transfer,
        );
        this.#running[i] = task;
      } catch (error) {
        // Not clonable: the job's fault, not the worker's.
        task.reject(error as Error);
        i--;
      }
    }
  }

  #submit(
    name: string,
    job: unknown,
    { transfer = [], worker: only }: JobOptions = {},
    mine?: Set<Task>,
  ): Promise<never> {
    return new Promise((resolve, reject) => {
      if (this.#failed) return reject(this.#failed);
      const task: Task = { name, job, transfer, only, resolve, reject };
      mine?.add(task);
      this.#queue.push(task);
      this.#feed();
    });
  }

  async run(name: string, job: unknown, options: JobOptions = {}) {
    const { worker = 0 } = options;
    if (!this.#threads[worker]) {
      const last = this.workers - 1;
      throw cannot("run a job", `a worker from 0 to ${last}`, worker);
    }
    return await this.#submit(name, job, options);
  }

  async map(name: string, jobs: readonly unknown[]) {
    const mine = new Set<Task>();
    const results = jobs.map((job) => this.#submit(name, job, {}, mine));
    try {
      return await Promise.all(results);
    } catch (error) {
      const others = this.#queue.filter((task) => !mine.has(task));
      this.#queue.splice(0, Infinity, ...others);
      throw error;
    }
  }

  each(name: string, job: unknown) {
    return Promise.all(
      this.#threads.map((_, worker) => this.#submit(name, job, { worker })),
    );
  }

  close(): void {
    this.#fail(
      new Error("The worker pool was closed before the job was done"),
    );
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function revive(
  error: { name: string; message: string; stack?: string },
  worker: number,
): Error {
  const result = new Error(error.message);
  result.name = error.name;
  const here = result.stack?.split("\n").slice(1).join("\n") ?? "";
  result.stack = `${error.stack ?? error.message}\n    in worker ${worker}` +
    (here ? `\n${here}` : "");
  return result;
}

/**
 * The worker's side: answers jobs with these functions, one at a time.
 *
 * Call it once at the top of the worker's module, before the first `await`.
 *
 * @param handlers Functions by name; `init` gets the pool's `init` value.
 */
export function serve(handlers: Handlers): void {
  const post: (message: Reply, transfer: Transferable[]) => void = machine
    .listen(async (data) => {
      const { id, name, job, worker } = data as Request;
      const emit = (event: unknown) => post({ event }, []);
      try {
        const handler = handlers[name];
        if (!handler && name !== "init") {
          throw cannot(
            "run a job",
            `one of ${Object.keys(handlers).join(", ")}`,
            name,
          );
        }
        const result = await handler?.(job, { worker, emit });
        if (result instanceof Moved) {
          post({ id, result: result.value }, result.buffers);
        } else {
          post({ id, result }, []);
        }
      } catch (error) {
        const { name, message, stack } = error instanceof Error
          ? error
          : new Error(
            String((error as { message?: string })?.message ?? error),
          );
        post({ id, error: { name, message, stack } }, []);
      }
    });
}
