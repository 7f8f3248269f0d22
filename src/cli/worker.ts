/**
 * `deno task worker`: one of many machines that work on what a queue holds.
 *
 * @module
 */
import { selectBackend } from "../core/backend.ts";
import { cannot } from "../core/errors.ts";
import { exists, joinPath } from "../io/files.ts";
import type { QueueRequest } from "../lab/open_queue.ts";
import { openSharedStore } from "../lab/open_store.ts";
import { isBucket } from "../lab/shared_store.ts";
import { type Command, command, runCommand } from "./command.ts";
import { LAB_OPTIONS } from "./lab_options.ts";
import { EMBEDDED, listable, mustExist } from "./models.ts";
import { queueRequest } from "./queue_options.ts";
import { folder, number, optionTable, type Values, whole } from "./options.ts";
import { onInterrupt } from "./signals.ts";
import { workersFor } from "./workers.ts";

const OPTIONS = optionTable({
  queue: {
    ...LAB_OPTIONS.queue,
    needed: true,
    help: "the queue: redis:// or rediss:// (TLS), with user:password@ if " +
      "needed",
  },
  store: {
    ...LAB_OPTIONS.store,
    needed: true,
    help: "store of results that all machines see: a folder, or " +
      "s3://bucket/prefix",
  },
  cache: {
    type: folder,
    otherwise: "out/worker",
    help: "local copy of a bucket's objects",
  },
  model: LAB_OPTIONS.model,
  clip: LAB_OPTIONS.clip,
  sketch: {
    type: folder,
    otherwise: "the model's, if it has one",
    help: "sketch T2I-Adapter",
  },
  backend: LAB_OPTIONS.backend,
  workers: {
    type: whole({ least: 1 }),
    otherwise: "processors",
    help: "jobs at a time, one per thread",
  },
  lease: {
    type: number({ least: 1 }),
    default: 30,
    help: "seconds without a sign of life after which another worker takes " +
      "the job",
  },
  patience: {
    ...LAB_OPTIONS.patience,
    help: "seconds to wait for a Redis that does not answer",
  },
  idle: {
    type: number({ least: 1 }),
    otherwise: "never",
    help: "end after this many seconds without work",
  },
});

/** What the command line asks for. */
export interface WorkerRequest
  extends Omit<Values<typeof OPTIONS>, "queue" | "store" | "patience"> {
  readonly queue: QueueRequest;
}

const WHAT = "start a worker";

/** Ends with the first signal, at once with the second. */
function untilSignal(): AbortSignal {
  const controller = new AbortController();
  const stop = () => {
    if (controller.signal.aborted) Deno.exit(130);
    console.error("ending: jobs that are not done go back to the queue");
    controller.abort();
  };
  onInterrupt(stop);
  return controller.signal;
}

/** Works until it is told to end. */
async function run(request: WorkerRequest): Promise<void> {
  const { queue, lease, idle } = request;
  const model = await listable(request.model ?? EMBEDDED);
  const own = joinPath(model, "clip_b");
  const clip = request.clip ?? (await exists(own) ? own : undefined);
  const adapter = joinPath(model, "adapter");
  const sketch = request.sketch ??
    (await exists(joinPath(adapter, "config.json")) ? adapter : undefined);
  await mustExist(WHAT, model, clip, sketch);
  const signal = untilSignal();
  const store = await openSharedStore(
    queue.store,
    request.cache ?? joinPath("out", "worker"),
  );
  const backend = await selectBackend(request.backend);
  // A graphics card is one: a second thread would only take turns on it.
  const threads = workersFor(request.workers, backend.name) || 1;
  console.error(`${backend.describe}, ${threads} at a time`);
  // A template stays out of the module graph: help does not load BullMQ.
  const { serveQueue }: typeof import("../lab/queue_worker.ts") = await import(
    `../lab/queue_worker.ts${""}`
  );
  const count = await serveQueue({
    url: queue.url,
    patience: queue.patience,
    store,
    folders: { model, clip, networks: sketch ? { sketch } : {} },
    backend: backend.name,
    threads,
    lease,
    idle,
    signal,
    onNote: (line) => console.error(line),
  });
  console.log(`${count} jobs done`);
}

/** Works on what a queue holds. */
export const workerCommand: Command<WorkerRequest> = command({
  name: "worker",
  what: "start a worker",
  summary: "run jobs from a queue, as one of many machines",
  usage: "deno task worker --queue URL --store FOLDER|s3://… [options]",
  about:
    `Takes the work that \`ablation\`, \`experiment\` and \`train\` hand out
with --queue, and puts results into the store. It takes only jobs of its own
version, base model and backend. Ctrl-C returns unfinished jobs to the queue. When a
worker dies, other workers take its jobs after --lease seconds.`,
  notes:
    `AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION and
AWS_ENDPOINT_URL_S3 give the access to a bucket.`,
  options: OPTIONS,
  examples: [
    "deno task worker --queue redis://10.0.0.5:6379 --store /mnt/store",
    "deno task worker --queue rediss://lab:secret@redis.example:6380 \\\n" +
    "    --store s3://bucket/lab --idle 600",
  ],
  request({ queue, store, patience, ...values }) {
    if (values.cache !== undefined && !isBucket(store)) {
      throw cannot(WHAT, "--cache with a bucket as --store", store);
    }
    return {
      ...values,
      queue: queueRequest(WHAT, { queue, store, patience })!,
    };
  },
  run,
});

if (import.meta.main) Deno.exit(await runCommand(workerCommand, Deno.args));
